"""Any program's image file: looked at (`probe`) or read whole (`load`); masters also of XISF."""

import contextlib
import dataclasses
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from calib_library.errors import ImageError, IncompleteImageError
from calib_library.images.checksums import check_sums
from calib_library.images.fits_headers import BLOCK, Read, check_magic
from calib_library.images.hashing import Hashing, fill, read_and_hash
from calib_library.images.pixels import physical, physical_into, stored_pixels
from calib_library.images.structure import MAX_BYTES, ImageInfo, examine
from calib_library.images.tiles import decompress


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """One whole image file."""

    info: ImageInfo
    pixels: npt.NDArray[Any]
    """`info.shape`, native byte order, dtype `info.storage`, C-contiguous, writable."""
    hashing: Hashing | None
    """None where the hash was left out."""
    size: int
    """bytes."""
    mtime_ns: int
    inode: int

    @property
    def sha256(self) -> str:
        """Hexadecimal, of all the file's bytes; waited for where a thread is still at it. Empty
        where it was left out.
        """
        return self.hashing.hexdigest() if self.hashing else ""


def probe(path: Path) -> ImageInfo:
    """Read the headers of every HDU, no pixels, and check that the file is as long as they declare.

    Raises IncompleteImageError (empty, no END, shorter than declared, rows not yet filled),
    ImageError (not FITS, absurd size, unsupported shape), OSError.
    """
    with opened(path) as (file, status):
        return examine(path, reader_of(file.fileno()), status.st_size)[0]


def load(path: Path, *, verify: bool = True, hashed: bool = True, awaited: bool = True) -> Loaded:
    """Read a file from disk once: its hash, header and pixels come from the same bytes.

    `verify` checks DATASUM and CHECKSUM where they are present. Without `hashed` the hash is left
    out. With it, a thread may still be hashing when the pixels are there: until it has done so the
    file's bytes are in memory beside them. Where the pixels are not `awaited`, they are decoded in
    place once the hash is there, which saves that memory.

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
        # Before anything is allocated for its size.
        before, _ = examine(path, reader_of(file.fileno()), size)
        raw = np.empty(size, np.uint8)
        # While the bytes are being hashed they must stay what they are.
        apart = _Apart(before, raw) if hashed and awaited and not before.compressed else None
        decode = apart.decode if apart else None
        hashing = read_and_hash(file, raw, decode) if hashed else None
        whole = hashing is not None if hashed else fill(file, raw.data)
        after = os.fstat(file.fileno())
    changed = IncompleteImageError(
        f"{path.name}: changed while it was read; it will be read again once it rests"
    )
    if not whole or (after.st_size, after.st_mtime_ns) != (size, status.st_mtime_ns):
        raise changed
    if hashing and not awaited:
        hashing.hexdigest()
    view = raw.data
    info, hdus = examine(path, lambda offset, length: bytes(view[offset : offset + length]), size)
    if verify:
        for hdu in hdus:
            check_sums(path, hdu, raw)
    if apart is None:
        pixels = physical(
            info, decompress(info, raw) if info.compressed else stored_pixels(info, raw)
        )
    elif dataclasses.replace(info, cards=before.cards) == before:
        pixels = apart.pixels
    else:
        raise changed
    return Loaded(info, pixels, hashing, size, status.st_mtime_ns, status.st_ino)


class _Apart:
    """The physical pixels of an uncompressed image in memory of their own, decoded from a file's
    bytes while these are being read.
    """

    def __init__(self, info: ImageInfo, raw: npt.NDArray[np.uint8]) -> None:
        self.pixels = np.empty(info.shape, info.storage)
        self._info = info
        self._stored = stored_pixels(info, raw).reshape(-1)
        self._done = 0

    def decode(self, end: int) -> None:
        """Decode what lies before byte `end` of the file and is not decoded yet."""
        first, stored = self._done, self._stored
        count = (end - self._info.data_offset) // stored.itemsize
        self._done = last = min(max(count, first), stored.size)
        physical_into(self._info, stored[first:last], self.pixels.reshape(-1)[first:last])


def load_any(path: Path) -> Loaded:
    """As `load`, of a file that may be XISF too: for masters made elsewhere. Its cards are the FITS
    keywords it keeps, and those that say what its properties do.
    """
    from calib_library import xisf  # noqa: PLC0415 — compiled kernels; frames do not need them

    with opened(path) as (file, status):
        if not xisf.is_xisf(os.pread(file.fileno(), BLOCK, 0)):
            return load(path)
        if status.st_size > MAX_BYTES:
            raise ImageError(
                f"{path.name}: {status.st_size / 1e9:.1f} GB is too large for a master"
            )
        raw = np.empty(status.st_size, np.uint8)
        hashing = read_and_hash(file, raw)
    if hashing is None:
        raise IncompleteImageError(f"{path.name}: became shorter while it was read")
    hashing.hexdigest()  # the pixels may lie in the bytes
    image = xisf.read(path.name, raw)
    info = ImageInfo(
        path=path,
        shape=image.pixels.shape,
        storage=image.pixels.dtype.name,
        cards=image.cards,
        data_offset=0,
        hdu=0,
        bitpix=8 * image.pixels.dtype.itemsize,
        bzero=0.0,
        bscale=1.0,
        compressed=image.compressed,
        stream_limit=0,
        plain=False,
    )
    return Loaded(info, image.pixels, hashing, raw.size, status.st_mtime_ns, status.st_ino)


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
