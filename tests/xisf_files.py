"""XISF files for the tests, written byte by byte as the specification has them."""

import base64
import ctypes
import ctypes.util
import hashlib
import struct
import zlib
from xml.sax.saxutils import quoteattr

import numpy as np

FORMATS = {"u1": "UInt8", "u2": "UInt16", "u4": "UInt32", "f4": "Float32", "f8": "Float64"}


def lz4(data: bytes) -> bytes | None:
    """Packed by the library of LZ4's author; None where the system does not have it."""
    name = ctypes.util.find_library("lz4")
    if name is None:
        return None
    library = ctypes.CDLL(name)
    out = ctypes.create_string_buffer(library.LZ4_compressBound(len(data)))
    size = library.LZ4_compress_default(data, out, len(data), len(out))
    return out.raw[:size]


def lz4_literals(data: bytes) -> bytes:
    """The simplest LZ4 block: one run of literals."""
    rest = len(data) - 15
    if rest < 0:
        return bytes([len(data) << 4]) + data
    return bytes([0xF0]) + b"\xff" * (rest // 255) + bytes([rest % 255]) + data


PACKERS = {"zlib": zlib.compress, "lz4": lz4, "lz4hc": lz4, "literals": lz4_literals}


def shuffled(data: bytes, item: int) -> bytes:
    """All first bytes, all second bytes, …"""
    whole = len(data) // item * item
    return b"".join(data[k:whole:item] for k in range(item)) + data[whole:]


def keywords(**cards) -> str:
    """`FITSKeyword` elements; strings in quotes as PixInsight has them."""
    lines = []
    for name, value in cards.items():
        text = f"'{value}'" if isinstance(value, str) else str(value)
        element = f"name={quoteattr(name.replace('_', '-'))} value={quoteattr(text)}"
        lines.append(f'<FITSKeyword {element} comment=""/>')
    return "".join(lines)


def prop(id_: str, value: object, kind: str = "Float32") -> str:
    """A `Property` element; strings have their text inside."""
    if kind == "String":
        return f'<Property id="{id_}" type="String">{value}</Property>'
    return f'<Property id="{id_}" type="{kind}" value="{value}"/>'


def write(
    path,
    image,
    inside="",
    *,
    codec=None,
    shuffle=False,
    sub_blocks=1,
    where="attachment",
    checksum=None,
    big=False,
    normal=False,
    said="",
    creator="PixInsight 1.8.9",
    after="",
    block=b"",
):
    """Write (ny, nx) or (3, ny, nx) pixels of a plain dtype; `inside` goes into the Image, where
    BLOCK stands for the place of a further `block`.
    """
    planes = image if image.ndim == 3 else image[np.newaxis]
    count, ny, nx = planes.shape
    kind = planes.dtype.str[1:]
    pixels = planes.transpose(1, 2, 0) if normal else planes
    data = pixels.astype((">" if big else "<") + kind).tobytes()
    size = len(data)
    attributes = f'geometry="{nx}:{ny}:{count}" sampleFormat="{FORMATS[kind]}"'
    if kind.startswith("f"):
        attributes += ' bounds="0:1"'
    attributes += ' byteOrder="big"' if big else ""
    attributes += ' pixelStorage="Normal"' if normal else ""
    if codec:
        item = int(kind[1])
        plain = shuffled(data, item) if shuffle else data
        step = -(-len(plain) // sub_blocks)
        pieces = [plain[at : at + step] for at in range(0, len(plain), step)]
        packed = [PACKERS[codec](piece) for piece in pieces]
        data = b"".join(packed)
        name = "lz4" if codec == "literals" else codec
        attributes += f' compression="{name}{"+sh" if shuffle else ""}:{size}'
        attributes += f':{item}"' if shuffle else '"'
        if sub_blocks > 1:
            pairs = zip(packed, pieces, strict=True)
            attributes += f' subblocks="{":".join(f"{len(a)},{len(b)}" for a, b in pairs)}"'
    if checksum:
        digest = hashlib.new(checksum.replace("-", ""), data).hexdigest()
        attributes += f' checksum="{checksum}:{digest}"'
    content = inside
    if where == "inline":
        attributes += ' location="inline:base64"'
        content = base64.b64encode(data).decode() + inside
    elif where == "embedded":
        attributes += ' location="embedded"'
        content = f'<Data encoding="hex">{data.hex()}</Data>{inside}'
    start = 8192
    if where == "attachment":
        attributes += f' location="attachment:{start}:{len(data)}"'
    content = content.replace("BLOCK", f"attachment:{start + len(data)}:{len(block)}")
    header = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<!-- Extensible Image Serialization Format -->\n'
        '<xisf version="1.0" xmlns="http://www.pixinsight.com/xisf">'
        f"<Image {attributes} {said}>{content}</Image>{after}"
        "<Metadata>"
        f'<Property id="XISF:CreatorApplication" type="String">{creator}</Property>'
        "</Metadata></xisf>"
    ).encode()
    raw = b"XISF0100" + struct.pack("<II", len(header), 0) + header
    if where == "attachment":
        assert len(raw) <= start
        raw = raw.ljust(start, b"\0") + data + block
    path.write_bytes(raw)
    return path
