"""The one decorator for compiled kernels.

Kernels are compiled by numba, cached on disk (`NUMBA_CACHE_DIR`, or beside the source), release the
interpreter lock, and divide by zero as numpy does. Floating-point operations are never reordered
(`fastmath` is off), so that a result does not depend on the number of threads.

Kernels with `parallel=True` are called from one thread at a time: numba's portable thread pool is
not re-entrant. In the daemon that thread is the worker.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")


def kernel(
    *, parallel: bool = False, inline: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function of arrays and numbers; the first call with new types compiles.

    `inline=True` is for small device functions that are called once a pixel.
    """

    def compile_lazily(function: Callable[P, R]) -> Callable[P, R]:
        compiled: Callable[P, R] = numba.njit(
            cache=True,
            nogil=True,
            parallel=parallel,
            error_model="numpy",
            inline="always" if inline else "never",
        )(function)
        return compiled

    return compile_lazily
