"""What the C library does with memory that was freed.

It keeps it for whatever asks next: some tens of megabytes for each thread that ever worked, and in
pieces that no frame fits into. Building masters uses many threads, and the night after it needs
none of that; on a small machine a frame's own planes are too much to keep.

Only glibc can be told. Another library keeps less or more, and nothing depends on it.
"""

import ctypes

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_LARGE_BYTES = 16_000_000
"""A plane of one byte a pixel at 16 megapixels."""


def give_back() -> None:
    """Let the system have what lies free: some milliseconds, after work that comes seldom."""
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(ctypes.c_size_t(0))


def keep_little() -> None:
    """From now on let the system have all large planes as soon as they are freed. It costs a light
    some hundredths of a second, for fresh memory must be emptied.
    """
    if (set_option := _of_glibc("mallopt")) is not None:
        set_option(ctypes.c_int(_MMAP_THRESHOLD), ctypes.c_int(_LARGE_BYTES))


def _of_glibc(name: str) -> "ctypes._NamedFuncPointer | None":
    return getattr(ctypes.CDLL(None), name, None)
