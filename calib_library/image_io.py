"""The only reader and writer of image files: FITS, plain and tile-compressed (`.fz`); of masters
made elsewhere XISF too.

Files come from other programs, whole or half-written, honest or hostile. Nothing is allocated
before the sizes that the headers declare have been compared with the size on disk; headers are read
within fixed bounds; a card that cannot be read costs that card alone; whatever goes wrong ends as
one sentence: `IncompleteImageError` where the file may still be growing, `ImageError` where waiting
will not help.

Products are written under a temporary name in the same folder, synced, and renamed: a crash leaves
the old file or the new one, never half of either.
"""

import contextlib
import dataclasses
import errno
import hashlib
import io
import math
import os
import re
import secrets
import stat
import sys
import threading
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self

import numpy as np
import numpy.typing as npt

from calib_library.errors import ImageError, IncompleteImageError
from calib_library.fits_cards import CARD, format_card, parse_card, parse_cards
from calib_library.frame import Card

if TYPE_CHECKING:
    from astropy.io import fits

BLOCK = 2880
"""bytes; every FITS header and data unit fills whole blocks."""
MAX_HEADER_BYTES = 4_000_000
"""All headers of one file together; real ones have 3 to 50 kB."""
MAX_HDUS = 64
MAX_STRING = 16_000
"""bytes of a card with those that continue it; each more would copy all before it."""
MAX_PIXELS = 1_000_000_000
MAX_BYTES = 2**31
"""Largest file, and largest decompressed image, that is read at once."""
MAX_REST = 2**26
"""bytes behind the last part of a file that are read with it."""
FREE_UNPACKED = 2**26
"""bytes to which any compressed image may unpack; beyond them only in proportion to its size."""
MAX_RATIO = 300
"""Unpacked bytes for each compressed one. RICE can at best reach 205, and a frame 10."""
TEMPORARY_PREFIX = ".lightkeeper-"
"""Unfinished products begin so (and end in `.tmp`); left over from a crash, they may be deleted."""

FULL_SCALE_ADU = 65535.0
Scale = Literal["unit", "adu", "uint16"]
Read = Callable[[int, int], bytes]
"""(offset, length) → the file's bytes there, fewer at its end."""

_STRUCTURE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|BLOCKED|END|CHECKSUM|DATASUM"
)
_PIXEL_SCALE = re.compile(r"BZERO|BSCALE|BLANK|DATAMIN|DATAMAX")
_TABLE = re.compile(
    r"T(FIELDS|HEAP|(TYPE|FORM|UNIT|NULL|SCAL|ZERO|DISP|DIM)\d+)"
    r"|Z(IMAGE|SIMPLE|TENSION|EXTEND|BITPIX|NAXIS\d*|TILE\d+|CMPTYPE|NAME\d+|VAL\d+|QUANTIZ"
    r"|DITHER0|BLANK|SCALE|ZERO|PCOUNT|GCOUNT|HECKSUM|DATASUM|MASKCMP)"
)
_NATIVE = {8: "uint8", 16: "int16", 32: "int32", -32: "float32", -64: "float64"}
_STORED = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_COMPRESSIONS = ("RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "NOCOMPRESS")
"""What capture programs and fpack write. Damaged HCOMPRESS data make the decompressor overwrite
memory and end the process; no camera program writes it, so it is refused."""
_GZIP_COLUMNS = frozenset({"COMPRESSED_DATA", "GZIP_COMPRESSED_DATA"})
_ASTROPY = threading.Lock()
"""`warnings.catch_warnings` is not safe across threads; astropy is called under this lock."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image file declares, checked against its size; no pixel has been read."""

    path: Path
    shape: tuple[int, ...]
    """(ny, nx) or (3, ny, nx)."""
    storage: str
    """dtype of the physical values: `uint16`, `int16`, `uint8`, `int32`, `float32`, `float64`."""
    cards: tuple[Card, ...]
    """The cards of the image HDU, then those that only the primary HDU has."""
    data_offset: int
    """bytes, from the start of the file to the first pixel (to the table, where compressed)."""
    hdu: int
    """Index of the image HDU, 0 for the primary."""
    bitpix: int
    bzero: float
    bscale: float
    compressed: bool
    """Tile-compressed (`.fz`)."""
    stream_limit: int
    """bytes to which one gzip stream of a compressed image may unpack; 0: it has none."""
    plain: bool
    """16-bit, big-endian, uncompressed, BZERO 0 or 32768: rows can be read straight."""


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


# --- reading -------------------------------------------------------------------------------------


def probe(path: Path) -> ImageInfo:
    """Read the headers of every HDU, no pixels, and check that the file is as long as they declare.

    Raises IncompleteImageError (empty, no END, shorter than declared, rows not yet filled),
    ImageError (not FITS, absurd size, unsupported shape), OSError.
    """
    with _opened(path) as (file, status):
        return _examine(path, _reader(file.fileno()), status.st_size)[0]


def load(path: Path, *, verify: bool = True, buffer: npt.NDArray[np.uint8] | None = None) -> Loaded:
    """Read a file from disk once: its hash, header and pixels come from the same bytes.

    `verify` checks DATASUM and CHECKSUM where they are present. `buffer` (1-D uint8) is used for
    the bytes where it is large enough; the pixels are then a view of it, so reuse it only when
    the pixels are no longer needed.

    Raises as `probe`; IncompleteImageError also where a checksum does not hold or the file
    changed while it was read.
    """
    with _opened(path) as (file, status):
        size = status.st_size
        _check_magic(path, os.pread(file.fileno(), BLOCK, 0), size)
        if size > MAX_BYTES:
            raise ImageError(
                f"{path.name}: {size / 1e9:.1f} GB is more than the {MAX_BYTES / 1e9:.1f} GB that "
                "one frame may have; move it out of the folder"
            )
        _hdus(path, _reader(file.fileno()), size)  # before anything is allocated for its size
        raw = np.empty(size, np.uint8) if buffer is None or buffer.size < size else buffer[:size]
        digest = _read_and_hash(file, raw)
        after = os.fstat(file.fileno())
    if digest is None or (after.st_size, after.st_mtime_ns) != (size, status.st_mtime_ns):
        raise IncompleteImageError(
            f"{path.name}: changed while it was read; it will be read again once it rests"
        )
    view = raw.data
    info, hdus = _examine(path, lambda offset, length: bytes(view[offset : offset + length]), size)
    if verify:
        for hdu in hdus:
            _check_sums(path, hdu, raw)
    pixels = _decompress(info, raw) if info.compressed else _stored(info, raw)
    return Loaded(info, _physical(info, pixels), digest, size, status.st_mtime_ns, status.st_ino)


def load_any(path: Path) -> Loaded:
    """As `load`, of a file that may be XISF too: for masters made elsewhere. Its cards are the FITS
    keywords it keeps, and those that say what its properties do.
    """
    from calib_library import xisf  # noqa: PLC0415 — compiled kernels; frames do not need them

    with _opened(path) as (file, status):
        if not xisf.is_xisf(os.pread(file.fileno(), BLOCK, 0)):
            return load(path)
        if status.st_size > MAX_BYTES:
            raise ImageError(
                f"{path.name}: {status.st_size / 1e9:.1f} GB is too large for a master"
            )
        raw = np.empty(status.st_size, np.uint8)
        digest = _read_and_hash(file, raw)
    if digest is None:
        raise IncompleteImageError(f"{path.name}: became shorter while it was read")
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
    return Loaded(info, image.pixels, digest, raw.size, status.st_mtime_ns, status.st_ino)


class RowReader:
    """Reads an open image file row by row, for combining many frames in bounded memory."""

    def __init__(self, path: Path) -> None:
        """Open and probe; raises as `probe`."""
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._file, status = stack.enter_context(_opened(path))
            read = _reader(self._file.fileno())
            self.info = _examine(path, read, status.st_size)[0]
            self._section = _open_section(self.info, stack) if self.info.compressed else None
            self._stack = stack.pop_all()
        self._hashed: hashlib._Hash | None = None
        self._next_row = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(ny, nx) or (3, ny, nx)."""
        return self.info.shape

    @property
    def storage(self) -> str:
        """The dtype of the physical values."""
        return self.info.storage

    @property
    def plain(self) -> bool:
        """Rows come as stored: big-endian int16, physical value = stored + `bzero`."""
        return self.info.plain

    @property
    def bzero(self) -> float:
        """ADU to add to plain rows: 32768 for unsigned data, 0 for signed."""
        return self.info.bzero

    @np.errstate(over="ignore", invalid="ignore")  # a double beyond float32 becomes infinite
    def rows(self, y0: int, y1: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Rows y0 to y1 (exclusive) of a (ny, nx) image, into `out` where it is given.

        Plain files: dtype `>i2`, as stored. All others: float32 physical values (ADU).
        `out` is (y1 - y0, nx), C-contiguous, of that dtype.
        """
        if len(self.shape) != 2:
            raise ImageError(f"{self.info.path.name}: a colour image cannot be read by rows")
        nx = self.shape[1]
        if self.plain:
            raw = np.empty((y1 - y0, nx), ">i2") if out is None else out
            self._read_into(raw, y0 * nx * 2)
            if self._hashed is not None and y0 == self._next_row:
                self._hashed.update(raw.reshape(-1).view(np.uint8).data)
                self._next_row = y1
            return raw
        if self._section is not None:
            stored = _section_rows(self.info, self._section, y0, y1)
        else:
            stored = np.empty((y1 - y0, nx), _STORED[self.info.bitpix])
            self._read_into(stored, y0 * nx * stored.itemsize)
        values = _physical(self.info, stored)
        if out is None:
            return values.astype(np.float32)
        np.copyto(out, values, casting="unsafe")
        return out

    def to_float(
        self, raw: npt.NDArray[Any], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Turn what `rows` gave into float32 physical values (ADU), into `out` if given."""
        if out is None:
            out = np.empty(raw.shape, np.float32)
        if self.plain:
            np.add(raw, np.float32(self.bzero), out=out, casting="unsafe")
        else:
            np.copyto(out, raw, casting="unsafe")
        return out

    @property
    def version(self) -> tuple[int, int]:
        """Size (bytes) and mtime_ns of the opened file, now."""
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def hash_rows(self) -> None:
        """From now on hash what `rows` reads, so that `digest` need not read it once more."""
        self._hashed = hashlib.sha256(self._pread(0, self.info.data_offset)) if self.plain else None
        self._next_row = 0

    def digest(self) -> str:
        """SHA-256 of the file, hexadecimal: of the very bytes that `rows` gave, where it gave all
        rows once and in order since `hash_rows`, as they are stored; else the file is read for it.
        """
        if self._hashed is not None and self._next_row == self.shape[0]:
            end = self.info.data_offset + 2 * math.prod(self.shape)
            complete = self._hashed.copy()
            complete.update(self._pread(end, os.fstat(self._file.fileno()).st_size - end))
            return complete.hexdigest()
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the file; further reads fail."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _pread(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def _read_into(self, target: npt.NDArray[Any], offset: int) -> None:
        view = target.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            at = self.info.data_offset + offset + done
            count = os.preadv(self._file.fileno(), [view[done:]], at)
            if count == 0:
                raise IncompleteImageError(
                    f"{self.info.path.name}: became shorter while it was read"
                )
            done += count


def read_product(path: Path) -> tuple[npt.NDArray[np.float32], tuple[Card, ...]]:
    """Read what `write_fits` wrote: the image in ADU, scale and pedestal undone, and its cards.

    A file without our scale keyword is taken to be in ADU. Raises as `load`.
    """
    loaded = load(path)
    image = loaded.pixels.astype(np.float32, copy=False)
    _undo_scale(image, loaded.info.cards)
    return image, loaded.info.cards


class ProductRows:
    """Reads a (ny, nx) image that `write_fits` wrote by rows: the same bits as `read_product`."""

    def __init__(self, path: Path) -> None:
        """Open and probe; raises as `probe`."""
        self._reader = RowReader(path)

    @property
    def shape(self) -> tuple[int, ...]:
        """(ny, nx) or (3, ny, nx)."""
        return self._reader.shape

    def rows(self, y0: int, y1: int) -> npt.NDArray[np.float32]:
        """Rows y0 to y1 (exclusive) in ADU, a new array."""
        image = self._reader.to_float(self._reader.rows(y0, y1))
        _undo_scale(image, self._reader.info.cards)
        return image

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()


def _undo_scale(image: npt.NDArray[np.float32], cards: Sequence[Card]) -> None:
    """Bring the values of a product's file to ADU, in place."""
    values = {card.keyword: card.value for card in cards}
    if values.get("LKSCALE") == "unit":
        image *= np.float32(FULL_SCALE_ADU)
    pedestal = values.get("PEDESTAL")
    if "LKSCALE" in values and isinstance(pedestal, int | float) and pedestal:
        image -= np.float32(pedestal)


def read_extra(path: Path, name: str) -> npt.NDArray[np.float32]:
    """Read the image extension `name` (EXTNAME) of a product, float32 as written.

    Raises ImageError where there is none; else as `load`.
    """
    with _opened(path) as (file, status):
        read = _reader(file.fileno())
        for hdu in _hdus(path, read, status.st_size):
            values = {card.keyword: card.value for card in hdu.cards()}
            if hdu.index and values.get("EXTNAME") == name and hdu.bitpix == -32:
                raw = read(hdu.data_offset, hdu.data_bytes)
                return np.frombuffer(raw, ">f4").reshape(hdu.axes).astype(np.float32)
    raise ImageError(f"{path.name}: has no image extension {name}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Open a regular file for reading; a pipe or a device that bears an image's name is refused."""
    # O_NONBLOCK: the open of a named pipe without a writer would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path.name}: is not a regular file; move it out of the folder")
        yield file, status


def _reader(descriptor: int) -> Read:
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


def _stored(info: ImageInfo, raw: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """View the pixels of an uncompressed image, as stored, in the file's bytes."""
    dtype = np.dtype(_STORED[info.bitpix])
    end = info.data_offset + math.prod(info.shape) * dtype.itemsize
    return raw[info.data_offset : end].view(dtype).reshape(info.shape)


@np.errstate(over="ignore", invalid="ignore")  # an absurd scale: the pixels' inspection says so
def _physical(info: ImageInfo, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Make stored pixels physical values in native order; in place where the dtype allows."""
    if info.bzero == 0 and info.bscale == 1 and info.bitpix != 64:
        return _native(stored)
    if info.storage == "uint16":
        unsigned = _native(stored).view(np.uint16)
        unsigned ^= np.uint16(0x8000)  # + 32768 modulo 65536
        return unsigned
    values = stored.astype(np.float64) * info.bscale + info.bzero
    return values.astype(info.storage, copy=False)


def _native(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if stored.dtype.isnative:
        return stored
    return stored.byteswap(inplace=True).view(stored.dtype.newbyteorder("="))


# --- compressed images ---------------------------------------------------------------------------


@contextlib.contextmanager
def _astropy(path: Path) -> Iterator[None]:
    """Run astropy without its warnings; whatever it raises on a broken file is an ImageError.

    It is imported where it is needed, for compressed files: that takes a quarter of a second.
    """
    with _ASTROPY, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            raise ImageError(
                f"{path.name}: the compressed pixels cannot be read ({_sentence(error)}); "
                "copy the file again from the camera's computer"
            ) from error


def _sentence(error: Exception) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return (text or type(error).__name__)[:200]


def _decompress(info: ImageInfo, raw: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Decompress the stored pixels, (ny, nx) or (3, ny, nx), before BZERO."""
    from astropy.io import fits  # noqa: PLC0415

    with (
        _astropy(info.path),
        fits.open(io.BytesIO(raw.data), do_not_scale_image_data=True, memmap=False) as hdus,
    ):
        _check_streams(info, io.BytesIO(raw.data))
        pixels = np.ascontiguousarray(hdus[info.hdu].data)
        return _expected(info, pixels, info.shape)


def _check_streams(info: ImageInfo, file: BinaryIO | Path) -> None:
    """Refuse gzip streams that unpack to more than their tile holds: astropy unpacks all of it."""
    if not info.stream_limit:
        return
    from astropy.io import fits  # noqa: PLC0415

    with fits.open(file, disable_image_compression=True, memmap=False) as hdus:
        table = hdus[info.hdu]
        for name in _GZIP_COLUMNS & {str(name).upper() for name in table.columns.names}:
            for stream in table.data[name]:
                if _unpacks_beyond(np.asarray(stream).tobytes(), info.stream_limit):
                    raise ImageError("a tile unpacks to more than the header says")


def _unpacks_beyond(stream: bytes, limit: int) -> bool:
    """Whether a gzip stream, of all its members, holds more than `limit` bytes."""
    size = 0
    while stream.startswith(b"\x1f\x8b"):
        member = zlib.decompressobj(31)
        size += len(member.decompress(stream, limit - size + 1))
        if size > limit:
            return True
        stream = member.unused_data
    return False


def _open_section(info: ImageInfo, stack: contextlib.ExitStack) -> "fits.CompImageSection":
    from astropy.io import fits  # noqa: PLC0415

    with _astropy(info.path):
        _check_streams(info, info.path)
        hdus = stack.enter_context(
            fits.open(info.path, do_not_scale_image_data=True, memmap=False, mode="readonly")
        )
        return hdus[info.hdu].section


def _section_rows(
    info: ImageInfo, section: "fits.CompImageSection", y0: int, y1: int
) -> npt.NDArray[Any]:
    with _astropy(info.path):
        # Leading axes of length 1 are not part of our shape.
        index = (0,) * (len(section.shape) - 2)
        pixels = np.ascontiguousarray(section[(*index, slice(y0, y1))])
        return _expected(info, pixels, (y1 - y0, info.shape[1]))


def _expected(
    info: ImageInfo, pixels: npt.NDArray[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    if pixels.size != math.prod(shape) or pixels.dtype.itemsize * 8 != abs(info.bitpix):
        raise ImageError(f"{info.path.name}: the compressed pixels are not what the header says")
    return pixels.reshape(shape)


# --- headers -------------------------------------------------------------------------------------


class _Header:
    """The cards of one header as stored, 80 bytes each, found by name without a search."""

    __slots__ = ("_first", "images")

    def __init__(self, images: Sequence[bytes]) -> None:
        self.images = images
        self._first: dict[bytes, bytes] = {}
        for image in images:
            self._first.setdefault(image[:8], image)

    def has(self, keyword: str) -> bool:
        return keyword.ljust(8).encode() in self._first

    def value(self, keyword: str) -> str | int | float | bool | None:
        """Of the first card of that name, None where there is none or it cannot be read."""
        image = self._first.get(keyword.ljust(8).encode())
        return None if image is None or image[8:9] != b"=" else parse_card(image).value


@dataclasses.dataclass(frozen=True, slots=True)
class _Hdu:
    """One header and where its data unit lies."""

    index: int
    header: "_Header"
    header_offset: int
    data_offset: int
    data_bytes: int
    """Without the filling of the last block."""
    bitpix: int
    axes: tuple[int, ...]
    """Slowest axis first, as numpy has it."""

    def cards(self) -> tuple[Card, ...]:
        return parse_cards(self.header.images)

    def value(self, keyword: str) -> str | int | float | bool | None:
        return self.header.value(keyword)


def _examine(path: Path, read: Read, size: int) -> tuple[ImageInfo, tuple[_Hdu, ...]]:
    """Find the image and check everything that can be checked without its pixels."""
    hdus = _hdus(path, read, size)
    primary = hdus[0]
    image = next((h for h in hdus if _is_compressed(h) or _is_image(h)), None)
    if image is None:
        if len(hdus) == 1 and not primary.axes:
            raise IncompleteImageError(
                f"{path.name}: has a header but no image yet; it may still be being written"
            )
        raise ImageError(f"{path.name}: holds no image; move it out of the folder")
    promised = primary.value("NEXTEND")
    if isinstance(promised, int) and len(hdus) - 1 < min(promised, MAX_HDUS):
        raise IncompleteImageError(
            f"{path.name}: promises {promised} extensions and has {len(hdus) - 1}; "
            "it may still be being written"
        )
    info = _info(path, primary, image)
    _check_filled(info, read)
    return info, hdus


def _info(path: Path, primary: _Hdu, image: _Hdu) -> ImageInfo:
    compressed = _is_compressed(image)
    bitpix, axes = _compressed_geometry(path, image) if compressed else (image.bitpix, image.axes)
    while len(axes) > 2 and axes[0] == 1:
        axes = axes[1:]
    pixels = math.prod(axes)
    unpacked = pixels * abs(bitpix) // 8
    if pixels > MAX_PIXELS or unpacked > MAX_BYTES:
        raise ImageError(
            f"{path.name}: declares more pixels than a frame can have; "
            "the header is damaged, or this is not a frame"
        )
    if compressed and unpacked > max(FREE_UNPACKED, MAX_RATIO * image.data_bytes):
        raise ImageError(
            f"{path.name}: claims to unpack to {unpacked / 1e6:.0f} MB from {image.data_bytes} "
            "bytes; it is damaged, or this is not a frame"
        )
    if not (len(axes) == 2 or (len(axes) == 3 and axes[0] == 3)) or pixels == 0:
        size = " × ".join(str(n) for n in reversed(axes[-4:]))
        raise ImageError(
            f"{path.name}: an image of {size} is neither one plane nor three colour planes"
        )
    bzero, bscale = _scaling(path, image)
    unsigned = bitpix == 16 and (bzero, bscale) == (32768, 1)
    if unsigned:
        storage = "uint16"
    elif (bzero, bscale) == (0, 1) and bitpix in _NATIVE:
        storage = _NATIVE[bitpix]
    else:
        storage = "float64" if bitpix in (32, 64, -64) else "float32"
    return ImageInfo(
        path=path,
        shape=axes,
        storage=storage,
        cards=_merged(primary, image, compressed=compressed),
        data_offset=image.data_offset,
        hdu=image.index,
        bitpix=bitpix,
        bzero=bzero,
        bscale=bscale,
        compressed=compressed,
        stream_limit=_stream_limit(path, image) if compressed else 0,
        plain=not compressed and (unsigned or storage == "int16"),
    )


def _is_image(hdu: _Hdu) -> bool:
    kind = hdu.value("XTENSION") if hdu.index else "IMAGE"
    return kind == "IMAGE" and len(hdu.axes) >= 2 and all(hdu.axes)


def _is_compressed(hdu: _Hdu) -> bool:
    return hdu.index > 0 and hdu.value("XTENSION") == "BINTABLE" and hdu.value("ZIMAGE") is True


def _compressed_geometry(path: Path, hdu: _Hdu) -> tuple[int, tuple[int, ...]]:
    """(bitpix, axes) of the image inside a compressed table, its tiles checked to lie within."""
    kind = hdu.value("ZCMPTYPE")
    if kind not in _COMPRESSIONS:
        raise ImageError(
            f"{path.name}: its kind of compression is not read; compress with RICE or GZIP"
        )
    bitpix = _bitpix(path, hdu.header, "ZBITPIX")
    naxis = _integer(path, hdu.header, "ZNAXIS", least=1, most=9)
    axes = [_integer(path, hdu.header, f"ZNAXIS{n + 1}", least=0) for n in range(naxis)]
    for n, length in enumerate(axes):
        # A tile larger than the image would make the decompressor allocate what it claims.
        _integer(path, hdu.header, f"ZTILE{n + 1}", least=1, most=max(1, length), missing=1)
    return bitpix, tuple(reversed(axes))


def _stream_limit(path: Path, hdu: _Hdu) -> int:
    """Bytes of the largest tile as the widest type; 0 where no stream is one of gzip."""
    fields = _integer(path, hdu.header, "TFIELDS", least=0, most=999)
    columns = (hdu.value(f"TTYPE{n + 1}") for n in range(fields))
    fallback = any(isinstance(c, str) and c.upper().startswith("GZIP") for c in columns)
    if not fallback and not str(hdu.value("ZCMPTYPE")).startswith("GZIP"):
        return 0
    naxis = _integer(path, hdu.header, "ZNAXIS", least=1, most=9)
    row = _integer(path, hdu.header, "ZNAXIS1", least=0)  # by default a tile is a row
    tile = [
        _integer(path, hdu.header, f"ZTILE{n + 1}", least=1, missing=1 if n else row)
        for n in range(naxis)
    ]
    return 8 * math.prod(tile) + BLOCK


def _bitpix(path: Path, header: _Header, keyword: str) -> int:
    bitpix = _integer(path, header, keyword)
    if bitpix not in _STORED:
        raise ImageError(f"{path.name}: {keyword} = {bitpix} is not a FITS pixel type")
    return bitpix


def _scaling(path: Path, hdu: _Hdu) -> tuple[float, float]:
    """(BZERO, BSCALE), which default to 0 and 1 where they are absent."""
    scaling = []
    for keyword, default in (("BZERO", 0.0), ("BSCALE", 1.0)):
        value = hdu.value(keyword) if hdu.header.has(keyword) else default
        if not isinstance(value, int | float) or (keyword == "BSCALE" and value == 0):
            raise ImageError(f"{path.name}: {keyword} cannot be read; the header is damaged")
        scaling.append(float(value))
    return scaling[0], scaling[1]


def _merged(primary: _Hdu, image: _Hdu, *, compressed: bool) -> tuple[Card, ...]:
    cards = image.cards()
    if compressed:
        cards = tuple(
            c for c in cards if not _TABLE.fullmatch(c.keyword) and not _structural(c.keyword)
        )
    if image is primary:
        return cards
    named = {c.keyword for c in cards}
    return cards + tuple(
        c for c in primary.cards() if c.keyword not in named and not _structural(c.keyword)
    )


def _structural(keyword: str) -> bool:
    return _STRUCTURE.fullmatch(keyword) is not None


def _hdus(path: Path, read: Read, size: int) -> tuple[_Hdu, ...]:
    """All headers of a file of `size` bytes, each checked to be covered by it."""
    _check_magic(path, read(0, BLOCK), size)
    hdus: list[_Hdu] = []
    offset = budget = 0
    while offset < size:
        if hdus:
            start = read(offset, 8)
            if not b"XTENSION".startswith(start):
                break  # special records, or a writer's own filling: not ours to judge
        if len(hdus) == MAX_HDUS:
            raise ImageError(f"{path.name}: has more than {MAX_HDUS} parts; it is not a frame")
        header, data_offset = _header(path, read, offset, MAX_HEADER_BYTES - budget)
        budget += data_offset - offset
        hdu = _hdu(path, len(hdus), header, offset, data_offset)
        if data_offset + hdu.data_bytes > size:
            raise IncompleteImageError(
                f"{path.name}: has {size} of the {data_offset + hdu.data_bytes} bytes that its "
                "header declares; it may still be being written, or the copy was cut short"
            )
        hdus.append(hdu)
        offset = data_offset + _padded(hdu.data_bytes)
    if size - offset > MAX_REST:
        raise ImageError(
            f"{path.name}: has {(size - offset) / 1e6:.0f} MB behind its image that no header "
            "declares; it is not a frame"
        )
    return tuple(hdus)


def _hdu(path: Path, index: int, header: _Header, offset: int, data: int) -> _Hdu:
    bitpix = _bitpix(path, header, "BITPIX")
    naxis = _integer(path, header, "NAXIS", least=0, most=99)
    axes = [_integer(path, header, f"NAXIS{n + 1}", least=0) for n in range(naxis)]
    groups = _integer(path, header, "GCOUNT", least=0, missing=1) if index else 1
    parameters = _integer(path, header, "PCOUNT", least=0, missing=0) if index else 0
    pixels = math.prod(axes) if axes else 0
    count = groups * (parameters + pixels)
    if count > 8 * MAX_PIXELS:
        raise ImageError(
            f"{path.name}: declares more pixels than a frame can have; "
            "the header is damaged, or this is not a frame"
        )
    return _Hdu(
        index, header, offset, data, count * abs(bitpix) // 8, bitpix, tuple(reversed(axes))
    )


def _check_magic(path: Path, start: bytes, size: int) -> None:
    if size == 0:
        raise IncompleteImageError(f"{path.name}: is empty; it may still be being written")
    if start.startswith(b"\x1f\x8b"):
        raise ImageError(f"{path.name}: is compressed with gzip; unpack it with gunzip")
    if start.startswith(b"XISF0100"):
        raise ImageError(f"{path.name}: is an XISF file; let the camera program write FITS")
    if b"SIMPLE  =".startswith(start[:9]) or not start.strip(b"\0"):
        if len(start.strip(b"\0")) < 9:
            raise IncompleteImageError(
                f"{path.name}: has no header yet; it may still be being written"
            )
        return
    raise ImageError(f"{path.name}: is not a FITS file; move it out of the folder")


def _check_filled(info: ImageInfo, read: Read) -> None:
    """Refuse a preallocated file whose last row is not written yet.

    Unsigned 16-bit pixels are stored less 32768, so a row of zero bytes would be a row of exactly
    32768 ADU, which no sensor gives. Other pixel types may honestly be zero.
    """
    if info.plain and info.storage == "uint16":
        row = info.shape[-1] * 2
        last = info.data_offset + math.prod(info.shape) * 2 - row
        if not read(last, row).strip(b"\0"):
            raise IncompleteImageError(
                f"{info.path.name}: its last rows are not filled; it may still be being written"
            )


def _header(path: Path, read: Read, offset: int, budget: int) -> tuple[_Header, int]:
    """Read the cards of the header at `offset`, CONTINUE joined, and where its data begins."""
    images: list[bytes] = []
    at = offset
    while at - offset < budget:
        block = read(at, BLOCK)
        for i in range(0, len(block), CARD):
            image = block[i : i + CARD]
            keyword = image[:8]
            if image.rstrip() == b"END":
                return _Header(images), at + BLOCK
            if len(image) < CARD or any(byte < 0x20 for byte in keyword):
                # Zeros or pixels where cards should be: END has not been written.
                raise IncompleteImageError(
                    f"{path.name}: its header has no END yet; it may still be being written"
                )
            if keyword == b"CONTINUE" and images and len(images[-1]) < MAX_STRING:
                images[-1] += image
            else:
                images.append(image)
        at += BLOCK
        if len(block) < BLOCK:
            raise IncompleteImageError(
                f"{path.name}: ends within its header; it may still be being written"
            )
    raise ImageError(
        f"{path.name}: its headers are longer than {MAX_HEADER_BYTES // 10**6} MB; it is damaged"
    )


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _integer(
    path: Path,
    header: _Header,
    keyword: str,
    *,
    least: int | None = None,
    most: int | None = None,
    missing: int | None = None,
) -> int:
    """Read a whole number without which the file is unreadable; ImageError where it is none."""
    value = header.value(keyword)
    if value is None and missing is not None and not header.has(keyword):
        return missing
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or (least is not None and value < least)
        or (most is not None and value > most)
    ):
        raise ImageError(f"{path.name}: {keyword} is missing or makes no sense; it is damaged")
    return value


# --- checksums -----------------------------------------------------------------------------------


def _check_sums(path: Path, hdu: _Hdu, raw: npt.NDArray[np.uint8]) -> None:
    """Compare DATASUM and CHECKSUM, where present, with the bytes (FITS standard 4.0, app. J)."""
    declared = hdu.value("DATASUM")
    checksum = hdu.value("CHECKSUM")
    has_datasum = isinstance(declared, int) or (isinstance(declared, str) and declared.isdigit())
    has_checksum = isinstance(checksum, str) and len(checksum.strip()) == 16
    if not has_datasum and not has_checksum:
        return
    end = hdu.data_offset + _padded(hdu.data_bytes)
    total = _ones_sum(raw[hdu.data_offset : end])
    if has_datasum and declared is not None and total != int(declared):
        raise IncompleteImageError(
            f"{path.name}: its pixels do not agree with DATASUM; the file is damaged or unfinished"
        )
    if has_checksum:
        total = _ones_sum(raw[hdu.header_offset : hdu.data_offset], total)
        if total not in (0, 0xFFFFFFFF):
            raise IncompleteImageError(
                f"{path.name}: does not agree with its CHECKSUM; the file is damaged or unfinished"
            )


def _ones_sum(raw: npt.NDArray[np.uint8], start: int = 0) -> int:
    """32-bit ones' complement sum of big-endian words; a missing last byte counts as zero."""
    whole = raw.size // 4 * 4
    total = start + int(raw[:whole].view(">u4").sum(dtype=np.uint64))
    total += int.from_bytes(raw[whole:].tobytes().ljust(4, b"\0"), "big")
    while total > 0xFFFFFFFF:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


# --- writing -------------------------------------------------------------------------------------


def write_fits(
    path: Path,
    image: npt.NDArray[np.float32],
    cards: Sequence[Card],
    *,
    scale: Scale = "unit",
    pedestal_adu: float = 0.0,
    extra: Mapping[str, npt.NDArray[Any]] | None = None,
) -> None:
    """Write an image in ADU, (ny, nx) or (3, ny, nx), so that other programs open it correctly.

    `unit`: float32 (ADU + pedestal) / 65535, clipped to [0, 1]. `adu`: float32 ADU + pedestal.
    `uint16`: ADU + pedestal, rounded and clipped. NaN becomes 0. The scale stands in LKSCALE, the
    pedestal in PEDESTAL; `read_product` undoes both. `extra`: image extensions by name, written
    as float32, unscaled (NaN kept). Cards that describe the file's own layout or an old value range
    (DATAMAX, BZERO, …) are left out. The folder is made where it is missing.

    The file appears whole or not at all: temporary name in the same folder, fsync, rename, fsync of
    the folder. Raises OSError; the old file is then untouched and the temporary one removed.
    """
    with atomically(path) as file:
        with RowWriter(file, image.shape, cards, scale=scale, pedestal_adu=pedestal_adu) as writer:
            writer.write(image)
        for name, plane in (extra or {}).items():
            with RowWriter(file, plane.shape, (), extension=name) as writer:
                writer.write(plane)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically, as `write_fits` does. Raises OSError."""
    with atomically(path) as file:
        file.write(data)


_SCALE_COMMENT = {
    "unit": "pixels are (ADU + PEDESTAL) / 65535",
    "adu": "pixels are ADU + PEDESTAL",
    "uint16": "pixels are ADU + PEDESTAL",
}


@contextlib.contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that becomes `path` when the block ends well, and vanishes otherwise."""
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; the rename stands all the same.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


class RowWriter:
    """Appends one image HDU to a file that `atomically` gave, from the first row to the last: for
    images that need not be in memory as a whole.

    As `write_fits`, whose arguments these are; an extension (`extension` is its name) is written
    as it is. When the block ends well, the rows must all be there (ValueError), and the header is
    written once more, with its DATASUM.
    """

    def __init__(
        self,
        file: BinaryIO,
        shape: tuple[int, ...],
        cards: Sequence[Card],
        *,
        scale: Scale | None = None,
        pedestal_adu: float = 0.0,
        extension: str | None = None,
    ) -> None:
        self._file, self._shape, self._extension = file, shape, extension
        self._scale, self._pedestal = scale, pedestal_adu
        self._start = file.tell()
        self._header = self._header_of(cards)
        file.write(_padded_header(self._header, 0))
        self._total = self._written = 0
        self._carry = b""

    def describe(self, cards: Sequence[Card]) -> None:
        """Replace the header's cards by others that take up as much room (ValueError)."""
        header = self._header_of(cards)
        if len(header) != len(self._header):
            raise ValueError("a header that is replaced must keep its length")
        self._header = header

    def write(self, rows: npt.NDArray[Any]) -> None:
        """Append rows, (…, nx) in ADU, float32 (of an extension any type)."""
        rows = rows.reshape(-1, rows.shape[-1])
        step = max(1, 100_000 // max(1, rows.shape[1]))
        for y in range(0, len(rows), step):
            stored = _encoded(rows[y : y + step], self._scale, self._pedestal)
            if self._carry:
                stored = np.concatenate([np.frombuffer(self._carry, np.uint8), stored])
            self._append(stored)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            return
        size = 2 if self._scale == "uint16" else 4
        if self._written + len(self._carry) != size * math.prod(self._shape):
            raise ValueError(f"not all rows of an image of {self._shape} were written")
        self._total = _ones_sum(np.frombuffer(self._carry, np.uint8), self._total)
        self._file.write(self._carry)
        self._written += len(self._carry)
        self._file.write(bytes(_padded(self._written) - self._written))
        end = self._file.tell()
        self._file.seek(self._start)
        self._file.write(_padded_header(self._header, self._total))
        self._file.seek(end)

    def _append(self, stored: npt.NDArray[np.uint8]) -> None:
        """Write whole words of 4 bytes, for the sum; keep what is over."""
        whole = stored.size // 4 * 4
        self._carry = stored[whole:].tobytes()
        self._total = _ones_sum(stored[:whole], self._total)
        self._file.write(stored[:whole].data)
        self._written += whole

    def _header_of(self, cards: Sequence[Card]) -> bytes:
        if self._scale is not None:
            own = [Card("LKSCALE", self._scale, _SCALE_COMMENT[self._scale])]
            if self._pedestal:
                own.append(Card("PEDESTAL", float(self._pedestal), "ADU added to every pixel"))
            cards = [*own, *(c for c in cards if c.keyword not in {"LKSCALE", "PEDESTAL"})]
        return _image_header(
            self._shape, cards, integer=self._scale == "uint16", extension=self._extension
        )


def _encoded(rows: npt.NDArray[Any], scale: Scale | None, pedestal: float) -> npt.NDArray[np.uint8]:
    """Rows in ADU → the bytes that are stored. The bounds of fmax and fmin take the place of NaN.

    float32 steps in place, one after the other, over rows that stay in the second cache.
    """
    if scale is None:
        return _big_endian(rows.astype(np.float32))
    values = rows + np.float32(pedestal)
    if scale == "adu":
        np.nan_to_num(values, copy=False, nan=0.0)
    elif scale == "unit":
        values /= np.float32(FULL_SCALE_ADU)
        np.fmin(np.fmax(values, 0.0, out=values), 1.0, out=values)
    else:
        np.fmin(np.fmax(values, 0.0, out=values), FULL_SCALE_ADU, out=values)
        return _big_endian((np.rint(values, out=values).astype(np.int32) - 32768).astype(np.int16))
    return _big_endian(values)


def _big_endian(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The bytes of native values; in place."""
    stored = values.byteswap(inplace=True) if sys.byteorder == "little" else values
    return stored.reshape(-1).view(np.uint8)


def _image_header(
    shape: tuple[int, ...], cards: Sequence[Card], *, integer: bool, extension: str | None
) -> bytes:
    """The cards of an image's header, as bytes, without DATASUM and END."""
    if extension is None:
        own = [Card("SIMPLE", True, "conforms to FITS standard")]  # noqa: FBT003 — FITS's own T
    else:
        own = [Card("XTENSION", "IMAGE", "image extension")]
    own += [Card("BITPIX", 16 if integer else -32), Card("NAXIS", len(shape))]
    own += [Card(f"NAXIS{n}", length) for n, length in enumerate(reversed(shape), start=1)]
    if extension is None:
        own.append(Card("EXTEND", True))  # noqa: FBT003
    else:
        own += [Card("PCOUNT", 0), Card("GCOUNT", 1), Card("EXTNAME", extension)]
    if integer:
        own += [Card("BZERO", 32768), Card("BSCALE", 1)]
    kept = (
        card
        for card in cards
        if not _structural(card.keyword) and not _PIXEL_SCALE.fullmatch(card.keyword)
    )
    return b"".join(map(_card_bytes, (*own, *kept)))


def _card_bytes(card: Card) -> bytes:
    """A card in the form that FITS allows: printable ASCII, a finite value, a fitting comment.

    A card that cannot be written (a keyword with strange characters) is left out: it came from a
    foreign header, and the product must not fail for it.
    """
    value = card.value
    if isinstance(value, str):
        value = _ascii(value)
    elif isinstance(value, float) and not math.isfinite(value):
        value = None
    plain = Card(card.keyword, value, _ascii(card.comment))
    return format_card(plain) or _unusual_card(plain)


def _unusual_card(card: Card) -> bytes:
    """A card with a long name or a long text: HIERARCH and CONTINUE are astropy's."""
    from astropy.io import fits  # noqa: PLC0415

    with _ASTROPY, warnings.catch_warnings(), contextlib.suppress(ValueError, fits.VerifyError):
        warnings.simplefilter("ignore")  # long names become HIERARCH, long comments are cut
        encoded: bytes = fits.Card(card.keyword, card.value, card.comment).image.encode("ascii")
        return encoded
    return b""


def _ascii(text: str) -> str:
    """Reduce to printable ASCII: accents are dropped, what has no such form becomes `?`."""
    if text.isascii() and text.isprintable():
        return text
    plain = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" else "?" for c in plain)


def _padded_header(cards: bytes, datasum: int) -> bytes:
    last = _card_bytes(Card("DATASUM", str(datasum).rjust(10), "data unit checksum"))
    header = cards + last + b"END".ljust(CARD)
    return header.ljust(_padded(len(header)))
