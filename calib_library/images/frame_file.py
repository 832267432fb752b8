"""Any program's image file: looked at (`probe`) or read whole (`load`)."""

import contextlib
import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from calib_library.errors import ImageError, IncompleteImageError
from calib_library.images.checksums import check_sums
from calib_library.images.fits_headers import BLOCK, Read, check_magic, read_hdus
from calib_library.images.pixels import physical, stored_pixels
from calib_library.images.structure import MAX_BYTES, ImageInfo, examine
from calib_library.images.tiles import decompress


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """One whole image file."""

    info: ImageInfo
    pixels: npt.NDArray[Any]
    """`info.shape`, native byte order, dtype `info.storage`, C-contiguous, writable."""
    sha256: str
    """Hexadecimal, of all the file's bytes."""
    size: int
    """bytes."""
    mtime_ns: int
    inode: int


def probe(path: Path) -> ImageInfo:
    """Read the headers of every HDU, no pixels, and check that the file is as long as they declare.

    Raises IncompleteImageError (empty, no END, shorter than declared, rows not yet filled),
    ImageError (not FITS, absurd size, unsupported shape), OSError.
    """
    with opened(path) as (file, status):
        return examine(path, reader_of(file.fileno()), status.st_size)[0]


def load(path: Path, *, verify: bool = True, buffer: npt.NDArray[np.uint8] | None = None) -> Loaded:
    """Read a file from disk once: its hash, header and pixels come from the same bytes.

    `verify` checks DATASUM and CHECKSUM where they are present. `buffer` (1-D uint8) is used for
    the bytes where it is large enough; the pixels are then a view of it, so reuse it only when
    the pixels are no longer needed.

    Raises as `probe`; IncompleteImageError also where a checksum does not hold or the file
    changed while it was read.
    """
    with opened(path) as (file, status):
        size = status.st_size
        check_magic(path, os.pread(file.fileno(), BLOCK, 0), size)
        if size > MAX_BYTES:
            raise ImageError(
                f"{path.name}: {size / 1e9:.1f} GB is more than the {MAX_BYTES / 1e9:.1f} GB that "
                "one frame may have; move it out of the folder"
            )
        read_hdus(path, reader_of(file.fileno()), size)  # before anything is allocated for its size
        raw = np.empty(size, np.uint8) if buffer is None or buffer.size < size else buffer[:size]
        digest = _read_and_hash(file, raw)
        after = os.fstat(file.fileno())
    if digest is None or (after.st_size, after.st_mtime_ns) != (size, status.st_mtime_ns):
        raise IncompleteImageError(
            f"{path.name}: changed while it was read; it will be read again once it rests"
        )
    view = raw.data
    info, hdus = examine(path, lambda offset, length: bytes(view[offset : offset + length]), size)
    if verify:
        for hdu in hdus:
            check_sums(path, hdu, raw)
    pixels = decompress(info, raw) if info.compressed else stored_pixels(info, raw)
    return Loaded(info, physical(info, pixels), digest, size, status.st_mtime_ns, status.st_ino)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Open a regular file for reading; a pipe or a device that bears an image's name is refused."""
    # O_NONBLOCK: the open of a named pipe without a writer would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path.name}: is not a regular file; move it out of the folder")
        yield file, status


def reader_of(descriptor: int) -> Read:
    """Read an open file at any place."""
    return lambda offset, length: os.pread(descriptor, length, offset)


def _read_and_hash(file: BinaryIO, raw: npt.NDArray[np.uint8]) -> str | None:
    """Fill `raw` from the file and return its SHA-256; None where the file ends early."""
    view = raw.data
    digest = hashlib.sha256()
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + 2**22])  # type: ignore[attr-defined]
        if not count:
            return None
        digest.update(view[done : done + count])
        done += count
    return digest.hexdigest()
