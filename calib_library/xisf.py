"""XISF 1.0, PixInsight's own format: the bytes of a file → its image and its cards.

The parts that masters use: one monolithic file, one plane or three, real or unsigned samples, data
blocks plain, zlib or LZ4, with shuffled bytes and in sub-blocks. (XISF Version 1.0 Specification,
Pleiades Astrophoto; LZ4 Block Format Description.) What the file says in properties becomes the
FITS cards that say the same, behind the FITS keywords that the file keeps.
"""

import base64
import binascii
import dataclasses
import hashlib
import re
import xml.parsers.expat
import zlib
from collections.abc import Mapping
from typing import Any, Final, Never

import numpy as np
import numpy.typing as npt

from calib_library.errors import ImageError, IncompleteImageError
from calib_library.fits_cards import parse_value
from calib_library.frame import Card
from calib_library.kernels import kernel

Bytes = npt.NDArray[np.uint8]

SIGNATURE: Final = b"XISF0100"
MAX_HEADER_BYTES: Final = 2**24
"""PixInsight writes the whole history of a master into it; real ones have 10 kB to 2 MB."""
MAX_BYTES: Final = 2**31
"""Largest block, unpacked."""
MAX_RATIO: Final = 1100
"""Unpacked bytes for each packed one: zlib can reach 1032, LZ4 255."""

_SAMPLES: Final = {"UInt8": "u1", "UInt16": "u2", "UInt32": "u4", "Float32": "f4", "Float64": "f8"}
_CHECKSUMS: Final = {
    "sha-1": "sha1", "sha1": "sha1", "sha-256": "sha256", "sha256": "sha256",
    "sha-512": "sha512", "sha512": "sha512", "sha3-256": "sha3_256", "sha3-512": "sha3_512",
}  # fmt: skip
_PROPERTIES: Final = {
    "Instrument:Camera:Name": "INSTRUME",
    # Electrons per ADU by the specification; the camera's setting has no property.
    "Instrument:Camera:Gain": "EGAIN",
    "Instrument:Camera:ISOSpeed": "ISOSPEED",
    "Instrument:Camera:XBinning": "XBINNING",
    "Instrument:Camera:YBinning": "YBINNING",
    "Instrument:ExposureTime": "EXPTIME",
    "Instrument:Filter:Name": "FILTER",
    "Instrument:Sensor:Temperature": "CCD-TEMP",
    "Instrument:Sensor:TargetTemperature": "SET-TEMP",
    "Instrument:Sensor:XPixelSize": "XPIXSZ",
    "Instrument:Sensor:YPixelSize": "YPIXSZ",
    "Instrument:Telescope:Name": "TELESCOP",
    "Instrument:Telescope:FocalLength": "FOCALLEN",
    "Observation:Object:Name": "OBJECT",
    "Observation:Time:Start": "DATE-OBS",
    "Process:Integration:ImageCount": "NCOMBINE",
    "XISF:CreatorApplication": "PROGRAM",
}
"""Property → the FITS keyword that says the same."""
_TYPES: Final = {
    name: re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    for name in ("Bias", "Dark", "Flat", "Light", "MasterBias", "MasterDark", "MasterFlat")
}
_HISTORY: Final = "PixInsight:ProcessingHistory"
_IMAGES: Final = re.compile(r'<table\s+id="images"\s+rows="(\d{1,6})"')
"""In the history: what was integrated."""


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """The first image of a file: of an integration the integrated one, rejection maps follow it."""

    pixels: npt.NDArray[Any]
    """(ny, nx) or (3, ny, nx), native, as stored; the first row is the image's top. It may be a
    view of the file's bytes."""
    cards: tuple[Card, ...]
    compressed: bool


def is_xisf(start: bytes) -> bool:
    """Whether a file that begins so is one."""
    return start.startswith(SIGNATURE)


def read(name: str, raw: Bytes) -> Image:
    """Read a whole file, (n,) bytes.

    Raises IncompleteImageError where it ends too early or a checksum does not hold, ImageError
    for what is damaged or not read, each with a sentence that begins with `name`.
    """
    if raw.size < 16:
        raise IncompleteImageError(f"{name}: ends within its header; copy it again")
    length = int(raw[8:12].view("<u4")[0])
    if length > MAX_HEADER_BYTES:
        raise ImageError(f"{name}: its header of {length / 1e6:.0f} MB is damaged")
    if 16 + length > raw.size:
        raise IncompleteImageError(f"{name}: ends within its header; copy it again")
    found = _Found(name)
    found.parse(raw[16 : 16 + length].tobytes().rstrip(b"\0"))
    if found.image is None:
        raise ImageError(f"{name}: holds no image")
    pixels = _pixels(name, found.image, raw)
    return Image(pixels, _cards(found, raw), "compression" in found.image.attributes)


@dataclasses.dataclass(slots=True)
class _Element:
    """An element of the header whose data may lie in a block."""

    attributes: Mapping[str, str]
    text: list[str] = dataclasses.field(default_factory=list)
    """Pieces of its own text."""
    data: "_Element | None" = None
    """The block that is embedded in it."""


class _Found:
    """Collects what matters of a header, element by element: nothing is kept of the rest."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.image: _Element | None = None
        self.keywords: list[Mapping[str, str]] = []
        self.properties: dict[str, _Element] = {}
        self.pattern: str | None = None
        self._open: list[tuple[str, _Element | None]] = []

    def parse(self, header: bytes) -> None:
        parser = xml.parsers.expat.ParserCreate("utf-8")  # whatever it declares
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = lambda _: self._open.pop()
        parser.CharacterDataHandler = self._text
        try:
            parser.Parse(header, True)  # noqa: FBT003 — expat takes it by position
        except xml.parsers.expat.ExpatError as error:
            raise ImageError(f"{self.name}: its header is damaged ({error})") from None

    def _refuse(self, *_: object) -> Never:
        # Entities of a document type could unfold without end; XISF has none.
        raise ImageError(f"{self.name}: its header is not one of XISF")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        inside = [one for one, _ in self._open]
        # Further images, of rejection maps, are not kept, nor what is in them.
        mine = inside == ["xisf", "Image"] and self._open[1][1] is self.image
        element: _Element | None = None
        if inside == ["xisf"] and tag == "Image" and self.image is None:
            element = self.image = _Element(attributes)
        elif mine and tag == "FITSKeyword":
            self.keywords.append(attributes)
        elif mine and tag == "ColorFilterArray":
            self.pattern = attributes.get("pattern")
        elif tag == "Property" and (mine or inside in (["xisf"], ["xisf", "Metadata"])):
            id_ = attributes.get("id", "")
            if id_ in _PROPERTIES or id_ == _HISTORY:
                element = self.properties.setdefault(id_, _Element(attributes))
        elif tag == "Data" and self._open and (parent := self._open[-1][1]) is not None:
            element = parent.data = _Element(attributes)
        self._open.append((tag, element))

    def _text(self, text: str) -> None:
        if self._open and (element := self._open[-1][1]) is not None:
            element.text.append(text)


# --- pixels --------------------------------------------------------------------------------------


def _pixels(name: str, image: _Element, raw: Bytes) -> npt.NDArray[Any]:
    said = image.attributes
    sizes = [_whole(part) for part in said.get("geometry", "").split(":")]
    if len(sizes) == 2:
        sizes.append(1)
    if len(sizes) != 3 or sizes[2] not in {1, 3} or 0 in sizes:
        raise ImageError(
            f"{name}: an image of {said.get('geometry')} is neither one plane nor three"
        )
    sample = _SAMPLES.get(said.get("sampleFormat", ""))
    if sample is None:
        raise ImageError(f"{name}: its pixels, {said.get('sampleFormat')}, are not read")
    nx, ny, planes = sizes
    kind = np.dtype((">" if said.get("byteOrder") == "big" else "<") + sample)
    size = nx * ny * planes * kind.itemsize
    if size > MAX_BYTES:
        raise ImageError(f"{name}: declares more pixels than a frame can have")
    block = _block(name, image, raw, size)
    if block.size != size:
        raise ImageError(f"{name}: has {block.size} bytes of pixels where {size} belong")
    stored = block.view(kind)
    if said.get("pixelStorage", "Planar") == "Normal":
        pixels = stored.reshape(ny, nx, planes).transpose(2, 0, 1)
    else:
        pixels = stored.reshape(planes, ny, nx)
    pixels = pixels.astype(kind.newbyteorder("="), order="C", copy=False)
    return pixels[0] if planes == 1 else pixels


def _block(name: str, element: _Element, raw: Bytes, most: int) -> Bytes:
    """The bytes of an element's data block, unpacked: at most `most`."""
    said = element.attributes
    place, *numbers = said.get("location", "").split(":")
    if place == "embedded" and (data := element.data) is not None:
        element, said = data, {**said, **data.attributes}
        place, numbers = "inline", [said.get("encoding", "base64")]
    if place == "attachment" and len(numbers) == 2:
        start, length = map(_whole, numbers)
        if start + length > raw.size:
            raise IncompleteImageError(
                f"{name}: has {raw.size} of the {start + length} bytes that its header declares; "
                "copy it again"
            )
        stored = raw[start : start + length]
    elif place == "inline" and numbers in (["base64"], ["hex"]):
        text = "".join("".join(element.text).split())
        try:
            plain = base64.b64decode(text) if numbers == ["base64"] else bytes.fromhex(text)
        except (binascii.Error, ValueError):
            raise ImageError(f"{name}: a block in its header is damaged") from None
        stored = np.frombuffer(plain, np.uint8)
    else:
        raise ImageError(f"{name}: its pixels are in another file; save it as one .xisf file")
    _check(name, said.get("checksum"), stored)
    packed = said.get("compression")
    return stored if packed is None else _unpacked(name, packed, said, stored, most)


def _check(name: str, checksum: str | None, stored: Bytes) -> None:
    algorithm, _, digest = (checksum or "").partition(":")
    known = _CHECKSUMS.get(algorithm.lower())
    if known and hashlib.new(known, stored.data).hexdigest() != digest.strip().lower():
        raise IncompleteImageError(f"{name}: does not agree with its checksum; copy it again")


def _unpacked(
    name: str, compression: str, said: Mapping[str, str], stored: Bytes, most: int
) -> Bytes:
    codec, *numbers = compression.split(":")
    codec, _, shuffled = codec.partition("+")
    if codec not in {"zlib", "lz4", "lz4hc"} or shuffled not in {"", "sh"}:
        raise ImageError(
            f"{name}: its compression, {codec}, is not read; save it without compression, or with "
            "zlib or LZ4"
        )
    sizes = [_whole(one) for one in numbers]
    blocks = _sub_blocks(said.get("subblocks"), stored.size, sizes[0] if sizes else 0)
    total = sum(size for _, size in blocks)
    if (
        total > min(most, MAX_RATIO * stored.size + 1000)
        or [total] != sizes[:1]
        or sum(packed for packed, _ in blocks) > stored.size
    ):
        raise ImageError(f"{name}: its compressed pixels are not what the header says")
    out = np.empty(total, np.uint8)
    begin = at = 0
    for packed, size in blocks:
        part, into = stored[begin : begin + packed], out[at : at + size]
        if not (_inflate(part, into) if codec == "zlib" else _unpack_lz4(part, into) == size):
            raise ImageError(f"{name}: its compressed pixels are damaged; copy it again")
        begin, at = begin + packed, at + size
    if not shuffled or len(sizes) < 2 or sizes[1] < 2:
        return out
    items = total // sizes[1]
    whole = items * sizes[1]
    return np.concatenate([out[:whole].reshape(sizes[1], items).T.reshape(-1), out[whole:]])


def _sub_blocks(text: str | None, packed: int, size: int) -> list[tuple[int, int]]:
    """(packed, unpacked) bytes of each part of a block."""
    if text is None:
        return [(packed, size)]
    pairs = [one.partition(",") for one in text.split(":")]
    return [(_whole(one), _whole(other)) for one, _, other in pairs]


def _whole(text: str) -> int:
    """A number of the header; 0 for what is none, which nothing accepts."""
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else 0


def _inflate(packed: Bytes, out: Bytes) -> bool:
    try:
        inflater = zlib.decompressobj()
        plain = inflater.decompress(packed.data, out.size + 1)
    except zlib.error:
        return False
    if len(plain) != out.size:
        return False
    out[:] = np.frombuffer(plain, np.uint8)
    return True


@kernel(allocates=True)
def _unpack_lz4(packed: Bytes, out: Bytes) -> int:
    """Unpack one LZ4 block into `out`; returns how many bytes came, −1 for a damaged one.

    Sequences of literals and of copies of what came before (LZ4 Block Format Description); the
    last one has no copy.
    """
    at = done = 0
    while at < packed.size:
        token = packed[at]
        literals, at = _length(packed, at + 1, token >> 4)
        if literals < 0 or at + literals > packed.size or done + literals > out.size:
            break
        for k in range(literals):
            out[done + k] = packed[at + k]
        at += literals
        done += literals
        if at == packed.size:
            return done
        if at + 2 > packed.size:
            break
        back = int(np.int64(packed[at]) + 256 * np.int64(packed[at + 1]))
        length, at = _length(packed, at + 2, token & 15)
        if length < 0 or back == 0 or back > done or done + length + 4 > out.size:
            break
        for k in range(done, done + length + 4):  # it may copy what it writes
            out[k] = out[k - back]
        done += length + 4
    return -1


@kernel()
def _length(packed: Bytes, at: int, nibble: int) -> tuple[int, int]:
    """(a length that begins in a nibble and goes on in bytes, where it ends); −1: it has no end."""
    length = int(np.int64(nibble))
    if length < 15:
        return length, at
    while at < packed.size:
        more = int(np.int64(packed[at]))
        at += 1
        length += more
        if more < 255:
            return length, at
    return -1, at


# --- cards ---------------------------------------------------------------------------------------


def _cards(found: _Found, raw: Bytes) -> tuple[Card, ...]:
    """The FITS keywords of the image, then what only properties and attributes say."""
    assert found.image is not None
    cards = [_card(keyword) for keyword in found.keywords]
    # The first row of an XISF image is its top, whatever the frames' FITS files had.
    cards = [card for card in cards if card.keyword != "ROWORDER"]
    cards.append(Card("ROWORDER", "TOP-DOWN", "order of rows"))
    named = {card.keyword for card in cards}
    said = found.image.attributes
    more: list[tuple[str, str | None]] = [
        ("IMAGETYP", _TYPES.get(said.get("imageType", ""))),
        ("BAYERPAT", found.pattern),
        ("PEDESTAL", said.get("offset")),
    ]
    for id_, keyword in _PROPERTIES.items():
        if (one := found.properties.get(id_)) is not None:
            more.append((keyword, one.attributes.get("value") or "".join(one.text).strip()))
    for keyword, text in more:
        if text and keyword not in named:
            value = parse_value(keyword, text)
            if keyword == "FOCALLEN" and isinstance(value, int | float):
                value *= 1000  # m
            cards.append(Card(keyword, value))
    if (history := found.properties.get(_HISTORY)) is not None:
        counts = [int(count) for count in _IMAGES.findall(_prose(found.name, history, raw))]
        if counts:
            cards.append(Card("HISTORY", f"ImageIntegration.numberOfImages: {max(counts)}"))
    return tuple(cards)


def _card(keyword: Mapping[str, str]) -> Card:
    name = keyword.get("name", "").strip().upper()
    value, comment = keyword.get("value", ""), keyword.get("comment", "")
    if name in {"HISTORY", "COMMENT"}:
        return Card(name, f"{value.strip()} {comment}".strip())
    return Card(name, parse_value(name, value), comment)


def _prose(name: str, element: _Element, raw: Bytes) -> str:
    """The text of a property, which long ones keep in a block; what cannot be read is empty."""
    if "location" not in element.attributes:
        return element.attributes.get("value") or "".join(element.text)
    try:
        return _block(name, element, raw, MAX_HEADER_BYTES).tobytes().decode("utf-8", "replace")
    except ImageError:
        return ""
