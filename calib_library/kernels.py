"""The one decorator for compiled kernels.

Kernels are compiled by numba, cached on disk (`cache_folder`), release the interpreter lock, and
divide by zero as numpy does. Floating-point operations are never reordered
(`fastmath` is off), so that a result does not depend on the number of threads.

What is worth several threads is called by `side_by_side`. A parallel loop of numba's is compiled
three times over, with all that it calls: `parallel=True` is for what is slower otherwise (numba
takes the arrays of such a loop for separate ones) and rarely needed. Those kernels are called from
one thread at a time: numba's portable thread pool is not re-entrant. Nor is an array assigned to a
slice of another: numba compiles what it would say if they differed in size, for more than a second.
"""

import concurrent.futures
import contextlib
import fcntl
import functools
import gc
import hashlib
import math
import os
import platform
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from calib_library import __version__

# numba brings seventy thousand objects, which stay: the collector of garbage need not look through
# them again and again while they come, nor ever after, nor at the process's end.
_collecting = gc.isenabled()
gc.disable()
import numba  # noqa: E402
from llvmlite import binding  # type: ignore[import-untyped]  # noqa: E402
from numba.core.caching import FunctionCache  # noqa: E402
from numba.core.runtime import _nrt_python  # type: ignore[attr-defined]  # noqa: E402

gc.freeze()
if _collecting:
    gc.enable()

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


CACHE_LINE = 64
"""bytes."""
PROCESSORS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
"""Threads that work at a time."""
numba.config.CACHE_DIR = str(cache_folder())  # type: ignore[attr-defined]


class _SharedCache(FunctionCache):
    """numba's cache of one function, used by one process at a time.

    numba writes a function's list of signatures first and the code afterwards, and a name in that
    list is free for whoever looks: of two processes that compile one function for different types
    at the same moment, one would find the other's code under its own types, for good.

    And numba first gathers all it knows of numpy and scipy: two hundred modules, 0.2 s, and
    compiles its memory manager. What was compiled once needs of all that only the manager's names;
    the compiler gathers it for itself.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:  # noqa: ANN401 — numba's own
        """Load the machine code for a signature; None where it was never compiled."""
        _name_memory_manager()
        with _alone(Path(self.cache_path)), self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)  # type: ignore[no-untyped-call]

    def save_overload(self, sig: Any, data: Any) -> None:  # noqa: ANN401 — numba's own
        """Keep what was compiled for a signature."""
        with _alone(Path(self.cache_path)):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]


@functools.cache
def _name_memory_manager() -> None:
    """Tell the linker where numba's memory manager is, as numba does before it compiles that."""
    for name, address in _nrt_python.c_helpers.items():
        binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes and threads out; not where the folder cannot be written or locked."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / "index.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeros that begin with a cache line: vectors across two of them take twice the time."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + CACHE_LINE, np.uint8)
    first = -room.ctypes.data % CACHE_LINE
    return room[first : first + size].view(dtype).reshape(shape)


def kernel(
    *, parallel: bool = False, inline: bool = False, allocates: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function of arrays and numbers; the first call with new types compiles.

    `inline=True` is for small device functions that are called once a pixel. One that makes an
    array, or calls another that does, must say so: `allocates=True`, or it does not compile. numba
    then counts who refers to any array, also to the parts that it takes of those it was given, and
    the threads wait for each other's counting, which can cost half the time. What is called often
    gets its memory from outside (`side_by_side`, `scratch`).
    """
    counting: dict[str, Any] = {"_nrt": allocates}  # numba's name, which its types leave out

    def compile_lazily(function: Callable[P, R]) -> Callable[P, R]:
        compiled: Callable[P, R] = numba.njit(  # type: ignore[call-overload]
            nogil=True,
            parallel=parallel,
            error_model="numpy",
            inline="always" if inline else "never",
            no_cfunc_wrapper=True,  # for calls from C: a tenth of the time to compile
            **counting,
        )(function)
        # As numba's `cache=True` does it, with a cache of its own.
        cache = _SharedCache(function)  # type: ignore[no-untyped-call]
        setattr(compiled, "_cache", cache)  # noqa: B010 - the type of a function has none
        return compiled

    return compile_lazily


def side_by_side(
    work: Callable[..., R],
    count: int,
    *arguments: object,
    scratch: Callable[[], object] | None = None,
) -> list[R]:
    """Call a kernel as `work(first, last, *arguments)` for parts of 0 … `count`, by as many threads
    as numba has, and wait for all of them. Returns what the parts return, in order.

    `scratch` makes memory of its own for each thread, which is then the third argument of `work`.

    What a part raises is raised here, once all have ended. A part must not call this in its turn.
    """
    threads = max(1, min(numba.get_num_threads(), count))
    spans: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
    for span in (*_spans(count, threads), *[None] * threads):
        spans.put(span)
    made: dict[int, R] = {}

    def work_on() -> None:
        own = () if scratch is None else (scratch(),)
        for first, last in iter(spans.get, None):
            made[first] = work(first, last, *own, *arguments)

    begun = [_threads().submit(work_on) for _ in range(threads - 1)]
    try:
        work_on()
    finally:
        concurrent.futures.wait(begun)
    for one in begun:
        one.result()
    return [made[first] for first in sorted(made)]


def _spans(count: int, threads: int) -> Iterator[tuple[int, int]]:
    """Parts of 0 … `count`, for whichever thread is free, and smaller towards the end: processors
    are not equally quick, some have other work, and none shall wait long for the last.
    """
    first, least = 0, -(-count // (8 * threads))
    while first < count:
        part = count if threads == 1 else max((count - first) // (2 * threads), least)
        yield first, min(first + part, count)
        first += part


def work_alone() -> None:
    """Have what this thread calls `side_by_side`, and parallel loops, run in it alone: for threads
    of which each has frames of its own to work on.
    """
    numba.set_num_threads(1)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, PROCESSORS - 1), "kernel")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads
