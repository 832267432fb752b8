"""Where the image of a FITS file lies, and what its pixels mean: all that the headers declare."""

import dataclasses
import math
import re
from pathlib import Path

from calib_library.errors import ImageError, IncompleteImageError
from calib_library.frame import Card
from calib_library.images.fits_headers import (
    BLOCK,
    MAX_HDUS,
    MAX_PIXELS,
    Hdu,
    Read,
    integer,
    pixel_type,
    read_hdus,
    structural,
)

MAX_BYTES = 2**31
"""Largest file, and largest decompressed image, that is read at once."""
FREE_UNPACKED = 2**26
"""bytes to which any compressed image may unpack; beyond them only in proportion to its size."""
MAX_RATIO = 300
"""Unpacked bytes for each compressed one. RICE can at best reach 205, and a frame 10."""

_TABLE = re.compile(
    r"T(FIELDS|HEAP|(TYPE|FORM|UNIT|NULL|SCAL|ZERO|DISP|DIM)\d+)"
    r"|Z(IMAGE|SIMPLE|TENSION|EXTEND|BITPIX|NAXIS\d*|TILE\d+|CMPTYPE|NAME\d+|VAL\d+|QUANTIZ"
    r"|DITHER0|BLANK|SCALE|ZERO|PCOUNT|GCOUNT|HECKSUM|DATASUM|MASKCMP)"
)
_NATIVE = {8: "uint8", 16: "int16", 32: "int32", -32: "float32", -64: "float64"}
_COMPRESSIONS = ("RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "NOCOMPRESS")
"""What capture programs and fpack write. Damaged HCOMPRESS data make the decompressor overwrite
memory and end the process; no camera program writes it, so it is refused."""


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


def examine(path: Path, read: Read, size: int) -> tuple[ImageInfo, tuple[Hdu, ...]]:
    """Find the image and check everything that can be checked without its pixels."""
    hdus = read_hdus(path, read, size)
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


def _info(path: Path, primary: Hdu, image: Hdu) -> ImageInfo:
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


def _is_image(hdu: Hdu) -> bool:
    kind = hdu.value("XTENSION") if hdu.index else "IMAGE"
    return kind == "IMAGE" and len(hdu.axes) >= 2 and all(hdu.axes)


def _is_compressed(hdu: Hdu) -> bool:
    return hdu.index > 0 and hdu.value("XTENSION") == "BINTABLE" and hdu.value("ZIMAGE") is True


def _compressed_geometry(path: Path, hdu: Hdu) -> tuple[int, tuple[int, ...]]:
    """(bitpix, axes) of the image inside a compressed table, its tiles checked to lie within."""
    kind = hdu.value("ZCMPTYPE")
    if kind not in _COMPRESSIONS:
        raise ImageError(
            f"{path.name}: its kind of compression is not read; compress with RICE or GZIP"
        )
    bitpix = pixel_type(path, hdu.header, "ZBITPIX")
    naxis = integer(path, hdu.header, "ZNAXIS", least=1, most=9)
    axes = [integer(path, hdu.header, f"ZNAXIS{n + 1}", least=0) for n in range(naxis)]
    for n, length in enumerate(axes):
        # A tile larger than the image would make the decompressor allocate what it claims.
        integer(path, hdu.header, f"ZTILE{n + 1}", least=1, most=max(1, length), missing=1)
    return bitpix, tuple(reversed(axes))


def _stream_limit(path: Path, hdu: Hdu) -> int:
    """Bytes of the largest tile as the widest type; 0 where no stream is one of gzip."""
    fields = integer(path, hdu.header, "TFIELDS", least=0, most=999)
    columns = (hdu.value(f"TTYPE{n + 1}") for n in range(fields))
    fallback = any(isinstance(c, str) and c.upper().startswith("GZIP") for c in columns)
    if not fallback and not str(hdu.value("ZCMPTYPE")).startswith("GZIP"):
        return 0
    naxis = integer(path, hdu.header, "ZNAXIS", least=1, most=9)
    row = integer(path, hdu.header, "ZNAXIS1", least=0)  # by default a tile is a row
    tile = [
        integer(path, hdu.header, f"ZTILE{n + 1}", least=1, missing=1 if n else row)
        for n in range(naxis)
    ]
    return 8 * math.prod(tile) + BLOCK


def _scaling(path: Path, hdu: Hdu) -> tuple[float, float]:
    """(BZERO, BSCALE), which default to 0 and 1 where they are absent."""
    scaling = []
    for keyword, default in (("BZERO", 0.0), ("BSCALE", 1.0)):
        value = hdu.value(keyword) if hdu.header.has(keyword) else default
        if not isinstance(value, int | float) or (keyword == "BSCALE" and value == 0):
            raise ImageError(f"{path.name}: {keyword} cannot be read; the header is damaged")
        scaling.append(float(value))
    return scaling[0], scaling[1]


def _merged(primary: Hdu, image: Hdu, *, compressed: bool) -> tuple[Card, ...]:
    cards = image.cards()
    if compressed:
        cards = tuple(
            c for c in cards if not _TABLE.fullmatch(c.keyword) and not structural(c.keyword)
        )
    if image is primary:
        return cards
    named = {c.keyword for c in cards}
    return cards + tuple(
        c for c in primary.cards() if c.keyword not in named and not structural(c.keyword)
    )


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
