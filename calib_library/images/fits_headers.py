"""The headers of a FITS file, each checked to be covered by the file before anything is allocated.

Files come from other programs, whole or half-written, honest or hostile. Headers are read within
fixed bounds; a card that cannot be read costs that card alone; whatever goes wrong ends as one
sentence: `IncompleteImageError` where the file may still be growing, `ImageError` where waiting
will not help.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from calib_library.errors import ImageError, IncompleteImageError
from calib_library.fits_cards import CARD, parse_card, parse_cards
from calib_library.frame import Card

BLOCK = 2880
"""bytes; every FITS header and data unit fills whole blocks."""
MAX_HEADER_BYTES = 4_000_000
"""All headers of one file together; real ones have 3 to 50 kB."""
MAX_HDUS = 64
MAX_STRING = 16_000
"""bytes of a card with those that continue it; each more would copy all before it."""
MAX_PIXELS = 1_000_000_000
MAX_REST = 2**26
"""bytes behind the last part of a file that are read with it."""
Read = Callable[[int, int], bytes]
"""(offset, length) → the file's bytes there, fewer at its end."""

STORED = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
"""BITPIX → dtype of the pixels in the file."""
_STRUCTURE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|BLOCKED|END|CHECKSUM|DATASUM"
)


class Header:
    """The cards of one header as stored, 80 bytes each, found by name without a search."""

    __slots__ = ("_first", "images")

    def __init__(self, images: Sequence[bytes]) -> None:
        self.images = images
        self._first: dict[bytes, bytes] = {}
        for image in images:
            self._first.setdefault(image[:8], image)

    def has(self, keyword: str) -> bool:
        """Whether there is a card of that name."""
        return keyword.ljust(8).encode() in self._first

    def value(self, keyword: str) -> str | int | float | bool | None:
        """Of the first card of that name, None where there is none or it cannot be read."""
        image = self._first.get(keyword.ljust(8).encode())
        return None if image is None or image[8:9] != b"=" else parse_card(image).value


@dataclasses.dataclass(frozen=True, slots=True)
class Hdu:
    """One header and where its data unit lies."""

    index: int
    header: "Header"
    header_offset: int
    data_offset: int
    data_bytes: int
    """Without the filling of the last block."""
    bitpix: int
    axes: tuple[int, ...]
    """Slowest axis first, as numpy has it."""

    def cards(self) -> tuple[Card, ...]:
        """Read all cards."""
        return parse_cards(self.header.images)

    def value(self, keyword: str) -> str | int | float | bool | None:
        """Of the first card of that name, None where there is none or it cannot be read."""
        return self.header.value(keyword)


def read_hdus(path: Path, read: Read, size: int) -> tuple[Hdu, ...]:
    """All headers of a file of `size` bytes, each checked to be covered by it."""
    check_magic(path, read(0, BLOCK), size)
    hdus: list[Hdu] = []
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
        offset = data_offset + padded(hdu.data_bytes)
    if size - offset > MAX_REST:
        raise ImageError(
            f"{path.name}: has {(size - offset) / 1e6:.0f} MB behind its image that no header "
            "declares; it is not a frame"
        )
    return tuple(hdus)


def _hdu(path: Path, index: int, header: Header, offset: int, data: int) -> Hdu:
    bitpix = pixel_type(path, header, "BITPIX")
    naxis = integer(path, header, "NAXIS", least=0, most=99)
    axes = [integer(path, header, f"NAXIS{n + 1}", least=0) for n in range(naxis)]
    groups = integer(path, header, "GCOUNT", least=0, missing=1) if index else 1
    parameters = integer(path, header, "PCOUNT", least=0, missing=0) if index else 0
    pixels = math.prod(axes) if axes else 0
    count = groups * (parameters + pixels)
    if count > 8 * MAX_PIXELS:
        raise ImageError(
            f"{path.name}: declares more pixels than a frame can have; "
            "the header is damaged, or this is not a frame"
        )
    return Hdu(index, header, offset, data, count * abs(bitpix) // 8, bitpix, tuple(reversed(axes)))


def check_magic(path: Path, start: bytes, size: int) -> None:
    """Refuse a file of `size` bytes whose first ones are not those of FITS."""
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


def _header(path: Path, read: Read, offset: int, budget: int) -> tuple[Header, int]:
    """Read the cards of the header at `offset`, CONTINUE joined, and where its data begins."""
    images: list[bytes] = []
    at = offset
    while at - offset < budget:
        block = read(at, BLOCK)
        for i in range(0, len(block), CARD):
            image = block[i : i + CARD]
            keyword = image[:8]
            if image.rstrip() == b"END":
                return Header(images), at + BLOCK
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


def pixel_type(path: Path, header: Header, keyword: str) -> int:
    """Read BITPIX, or its namesake of a compressed image; ImageError where it is no such type."""
    bitpix = integer(path, header, keyword)
    if bitpix not in STORED:
        raise ImageError(f"{path.name}: {keyword} = {bitpix} is not a FITS pixel type")
    return bitpix


def integer(
    path: Path,
    header: Header,
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


def structural(keyword: str) -> bool:
    """Whether a card describes the layout of its own file."""
    return _STRUCTURE.fullmatch(keyword) is not None


def padded(length: int) -> int:
    """Bytes of the whole blocks that `length` bytes take up."""
    return -(-length // BLOCK) * BLOCK
