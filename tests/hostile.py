"""Files that break readers: one each of what a disk, a network or an ill will can put in a folder.

All are made here, small, and the same in every run. `CORPUS` holds those that must be refused,
`TOLERATED` those that are whole images with absurd headers.
"""

import gzip
import io
import zlib

import numpy as np
from astropy.io import fits

BLOCK = 2880


def card(text):
    return text.encode("latin-1")[:80].ljust(80)


def header(*cards, end=True):
    raw = b"".join(c if isinstance(c, bytes) else card(c) for c in cards)
    raw += card("END") if end else b""
    return raw.ljust(-(-len(raw) // BLOCK) * BLOCK)


def image(*cards, axes=(30, 20), bitpix=16, data=None):
    """A primary image; axes fastest first. Without `data`: as many bytes as it declares."""
    sizes = [f"NAXIS{n + 1:<3}= {length}" for n, length in enumerate(axes)]
    top = header(
        "SIMPLE  =                    T",
        f"BITPIX  = {bitpix}",
        f"NAXIS   = {len(axes)}",
        *sizes,
        *cards,
    )
    if data is None:
        count = int(np.prod(axes)) * abs(bitpix) // 8
        data = (b"\x12\x34" * count)[:count]
    return top + data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")


def extension(*cards):
    return header(*cards)


def table(*cards, kind="RICE_1", zbitpix=16, axes=(10, 10), tile=None, heap=b"", rows=1, begin=0):
    """A tile-compressed image of one column, whose first row points at `heap`."""
    structure = [
        "XTENSION= 'BINTABLE'",
        "BITPIX  = 8",
        "NAXIS   = 2",
        "NAXIS1  = 8",
        f"NAXIS2  = {rows}",
        f"PCOUNT  = {len(heap)}",
        "GCOUNT  = 1",
        "TFIELDS = 1",
        "TTYPE1  = 'COMPRESSED_DATA'",
        "TFORM1  = '1PB(0)'",
        "ZIMAGE  =                    T",
        f"ZBITPIX = {zbitpix}",
        f"ZNAXIS  = {len(axes)}",
        *(f"ZNAXIS{n + 1} = {length}" for n, length in enumerate(axes)),
        *(f"ZTILE{n + 1}  = {length}" for n, length in enumerate(tile or axes)),
        f"ZCMPTYPE= '{kind}'",
    ]
    rowdata = np.array([[len(heap), begin]] * rows, ">i4").tobytes()
    raw = rowdata + heap
    return header(*structure, *cards) + raw.ljust(-(-len(raw) // BLOCK) * BLOCK, b"\0")


PRIMARY = header("SIMPLE  =                    T", "BITPIX  = 8", "NAXIS   = 0")
PART = header("XTENSION= 'IMAGE   '", "BITPIX  = 8", "NAXIS   = 0", "PCOUNT  = 0", "GCOUNT  = 1")


def _deflated(size):
    """`size` zero bytes as a gzip stream: a thousandth of that."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(squeeze.compress(bytes(10**6)) for _ in range(size // 10**6)) + squeeze.flush()


def _fz(pixels, kind="RICE_1", **named):
    file = io.BytesIO()
    hdu = fits.CompImageHDU(pixels, compression_type=kind, **named)
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(file)
    return file.getvalue()


def compressed(kind="RICE_1"):
    """A whole `.fz` of 30 × 20 noise."""
    pixels = np.random.default_rng(1).normal(1000, 9, (20, 30)).astype(np.int16)
    return _fz(pixels, kind)


_STREAM = gzip.compress(bytes(200))

CORPUS = {
    "text": b"Once upon a time" * 300,
    "gzip": b"\x1f\x8b\x08" + bytes(3000),
    "xisf": b"XISF0100" + bytes(3000),
    "xisf with a bomb": b"XISF0100" + b"\x00" * 8 + b'<xisf compression="zlib:1099511627776">' * 99,
    "noise": np.random.default_rng(2).bytes(20_000),
    "pixels by 10^18": image(axes=(10**18, 2), data=b"1" * 2880),
    "10^9 by 10^9": image(axes=(10**9, 10**9), data=b"1" * 2880),
    "10^18 in 60 axes": image(axes=(10**18,) * 60, data=b"1" * 2880),
    "an integer of 70 digits": image(axes=(int("9" * 68), 1), data=b"1" * 2880),
    "a thousand axes": header("SIMPLE  =                    T", "BITPIX  = 16", "NAXIS   = 999"),
    "negative axes": image(axes=(-5, -5), data=b"1" * 2880),
    "negative zero": image(axes=(-0, 5), data=b"1" * 2880),
    "type 17": image(bitpix=17, data=b"1" * 2880),
    "type of 30 digits": image(bitpix=10**30, data=b"1" * 2880),
    "bscale zero": image("BSCALE  = 0.0"),
    "bscale infinite": image("BSCALE  = 1e400"),
    "bzero nan": image("BZERO   = nan"),
    "endless header": header("SIMPLE  =                    T", end=False)
    + card("COMMENT x") * 60_000,
    "endless continued string": header(
        "SIMPLE  =                    T", "A       = 'x&'", end=False
    )
    + card("CONTINUE  'x&'") * 60_000,
    "endless hierarch": header("SIMPLE  =                    T", end=False)
    + card("HIERARCH a b c = 1") * 60_000,
    "thousands of parts": PRIMARY + PART * 3000,
    "parts without end": image(axes=()) + PART.replace(b"GCOUNT  = 1", b"GCOUNT  = 0") * 100,
    "a heap of 10^40": PRIMARY
    + header("XTENSION= 'IMAGE   '", "BITPIX  = 8", "NAXIS   = 0", f"PCOUNT  = {10**40}"),
    "10^30 groups": PRIMARY
    + header("XTENSION= 'IMAGE   '", "BITPIX  = 8", "NAXIS   = 0", f"GCOUNT  = {10**30}"),
    "fz of 10^18 pixels": PRIMARY + table(axes=(10**9, 10**9)),
    "fz of 10^9 pixels in nothing": PRIMARY + table(axes=(30_000, 30_000), tile=(30_000, 1)),
    "fz with a tile of 10^18": PRIMARY + table(tile=(10**9, 10**9)),
    "fz with a gzip bomb in a tile": PRIMARY + table(kind="GZIP_1", heap=_deflated(2 * 10**9)),
    "fz whose heap points outside": PRIMARY + table(kind="GZIP_1", heap=_STREAM, begin=2**31 - 1),
    "fz whose gzip is cut": PRIMARY + table(kind="GZIP_1", heap=_STREAM[:-9]),
    "fz of too few rows": PRIMARY + table(kind="GZIP_1", heap=_STREAM, tile=(10, 1)),
    "fz by hcompress": PRIMARY + table(kind="HCOMPRESS_1", heap=bytes(100)),
    "fz by nobody": PRIMARY + table(kind="../../etc/passwd", heap=bytes(100)),
    "fz of nan axes": PRIMARY + table("ZNAXIS2 = nan", axes=(10,), tile=(10,)),
}
"""Refused with one sentence, at once, in little memory."""

STRANGE = (
    "../../../../etc/cron.d/evil",
    "/etc/passwd",
    "..",
    "~root/.ssh",
    "'; DROP TABLE frame; --",
    "\x1b[2J\x1b]0;owned\x07",
    "a\nb\rc\td",
    "\x00\x7f\x85",
    "CON:|<>*?",
    "-rf",
    "%n%s{0}$(reboot)`reboot`",
    "x" * 68,
    "\xff\xfe\xe9",
)
"""Values of header strings that look like paths, commands, terminal escapes."""

_KEYWORDS = ("OBJECT", "FILTER", "INSTRUME", "TELESCOP", "IMAGETYP", "DATE-OBS", "BAYERPAT")


def _strange(text):
    cards = [f"{keyword:<8}= '{text.replace(chr(39), 2 * chr(39))}'" for keyword in _KEYWORDS]
    return image("IMAGETYP= 'Light   '", "EXPTIME = 60.0", *cards)


TOLERATED = {
    **{f"strange {n}": _strange(text) for n, text in enumerate(STRANGE)},
    "nan everywhere": image(
        *(f"{k:<8}= {v}" for k in ("EXPTIME", "CCD-TEMP", "GAIN", "RA") for v in ("NaN", "-inf")),
        bitpix=-32,
        data=np.full(600, np.nan, ">f4").tobytes(),
    ),
    "infinity everywhere": image(bitpix=-64, data=np.full(600, np.inf, ">f8").tobytes()),
    "half of each": image(
        bitpix=-32, data=np.array([np.nan, np.inf, -np.inf, 1e38] * 150, ">f4").tobytes()
    ),
    "absurd numbers": image(
        "EXPTIME = 1E+299",
        "CCD-TEMP= -1E+299",
        "GAIN    = 99999999999999999999999999999999999999",
        "XBINNING= 99999999999999999999999999999999999999",
        "XBAYROFF= -99999999999999999999999999999999999999",
        "BAYERPAT= 'RGGB'",
        "STACKCNT= 1E+99",
        "MJD-OBS = 1E+99",
        "FOCALLEN= 1E-299",
    ),
    "the first year": image(
        "DATE-OBS= '0001-01-01T00:00:00' / end of exposure", "EXPTIME = 9999999999"
    ),
    "the last year": image("DATE-OBS= '9999-12-31T23:59:59.999999'"),
    "the last year in the west": image("DATE-OBS= '9999-12-31T23:59:59-1200'"),
    "the day beyond the last": image("DATE-OBS= '9999-12-31T24:00:00'", "MJD-OBS = 2973483.9"),
    "integers of 8 bytes": image(bitpix=64),
}
"""Whole images, however absurd what is said of them."""
