"""The one decorator for compiled kernels.

Kernels are compiled by numba, cached on disk (`cache_folder`), release the interpreter lock, and
divide by zero as numpy does. Floating-point operations are never reordered
(`fastmath` is off), so that a result does not depend on the number of threads.

Kernels with `parallel=True` are called from one thread at a time: numba's portable thread pool is
not re-entrant. In the daemon that thread is the worker.
"""

import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba
from numba.core.caching import FunctionCache
from numba.core.runtime.nrt import rtsys

from calib_library import __version__

P = ParamSpec("P")
R = TypeVar("R")


def cache_folder() -> Path:
    """Return where compiled kernels are kept: a folder of `NUMBA_CACHE_DIR`, else of the package's
    own cache, else of the user's; each version of the kernels has its own.

    numba's files hold types by their names. A version that has renamed one could not even see that
    an older version's files are out of date.
    """
    here = Path(__file__).parent
    beside = here / "__pycache__"
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        base = Path(given)
    elif os.access(beside if beside.is_dir() else here, os.W_OK):
        base = beside / "kernels"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightkeeper"
    digest = hashlib.sha256(
        f"{__version__} {numba.__version__} {platform.python_version()}".encode()
    )
    # The daemon's kernels lie beside this package, wherever that is installed.
    for path in sorted(here.parent.glob("calib_library/*.py")) + sorted(
        here.parent.glob("daemon/*/*.py")
    ):
        source = path.read_bytes()
        if b"@kernel" in source:
            digest.update(source)
    return base / digest.hexdigest()[:16]


numba.config.CACHE_DIR = str(cache_folder())  # type: ignore[attr-defined]


class _Cache(FunctionCache):
    """numba's cache of one kernel's machine code, which a start of the program does not wait for.

    numba first gathers all it knows of numpy and scipy: two hundred modules, 0.2 s. What was
    compiled once needs the memory manager of that alone; the compiler gathers it for itself.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:  # noqa: ANN401 — numba's own
        """Load the machine code for a signature; None where it was never compiled."""
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)  # type: ignore[no-untyped-call]


def kernel(
    *, parallel: bool = False, inline: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function of arrays and numbers; the first call with new types compiles.

    `inline=True` is for small device functions that are called once a pixel.
    """

    def compile_lazily(function: Callable[P, R]) -> Callable[P, R]:
        compiled: Callable[P, R] = numba.njit(
            nogil=True,
            parallel=parallel,
            error_model="numpy",
            inline="always" if inline else "never",
        )(function)
        # What `cache=True` does, with a cache of our own.
        compiled._cache = _Cache(function)  # type: ignore[attr-defined, no-untyped-call] # noqa: SLF001
        return compiled

    return compile_lazily
