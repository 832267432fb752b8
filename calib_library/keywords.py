"""What camera programs write into headers, as tables: the dialects that `header` reads.

Data only. Where a field has several keywords, the first one with a usable value wins.
"""

import re
from collections.abc import Mapping
from typing import Final

from calib_library.frame import FrameType

KEYWORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "exposure_s": ("EXPTIME", "EXPOSURE", "EXP_TIME", "EXP", "EXPOINUS", "EXPOINMS"),
    "sub_exposure_s": ("SUBEXP",),
    "stack_count": ("STACKCNT", "NCOMBINE", "INTEGRAT", "SNAPSHOT", "NUMFRAME"),
    "temperature_c": (
        "CCD-TEMP",
        "CCD_TEMP",
        "CCDTEMP",
        "CCDATEMP",
        "TEMPERAT",
        "CAMTCCD",
        "CAMTEMP",
        "DET-TEMP",
        "DETTEMP",
        "TEMP",
    ),
    "set_temperature_c": ("SET-TEMP", "CCDSTEMP"),
    "gain": ("GAIN", "DET-GAIN", "CAM-GAIN", "ISO", "ISOSPEED"),
    # SharpCap's EGAIN counts at the sensor's bits, EGAINSAV at those of the file.
    "e_per_adu": ("EGAINSAV", "EGAIN", "CVF"),
    "offset": ("OFFSET", "BLKLEVEL"),
    "readout_mode": ("READOUTM", "CONFMODE"),
    "filter": ("FILTER", "FILT-1", "FILTERS"),
    "filter_late": ("FILTNAME", "INSFLNAM"),
    "camera": ("CAMERAID", "INSTRUME", "CAMERA", "DETECTOR"),
    "pixel_size_um": ("XPIXSZ", "XPIXELSZ", "PIXSIZE1", "PIXSIZEX"),
    "focal_length_mm": ("FOCALLEN", "FOCAL", "FLENGTH"),
    "telescope": ("TELESCOP",),
    "object_name": ("OBJECT",),
    "rotator_deg": ("ROTATOR", "ROTATANG"),
    "pier_side": ("PIERSIDE",),
    "saturation_adu": ("SATURATE",),
    "program": ("SWCREATE", "CREATOR", "PROGRAM", "SOFTWARE"),
}

NAMED: Final[Mapping[str, tuple[str, ...]]] = {
    "exposure_s": ("exposure", "exposure_ms"),
    "temperature_c": ("temperature",),
    "gain": ("gain",),
    "offset": ("offset",),
    "filter": ("filter",),
    "camera": ("camera",),
    "object_name": ("target",),
    "binning": ("binning",),
    "frame_type": ("type",),
    "stack_count": ("stack",),
}
"""Field → the groups of a file name pattern, and the names of defaults, that can fill it."""

NAME_PATTERNS: Final = (
    # Dwarf's master darks: dark_exp_60.000000_gain_60_bin_1_20C_stack_8.fits
    re.compile(
        r"_exp_(?P<exposure>[\d.]+)_gain_(?P<gain>\d+)_bin_(?P<binning>\d)"
        r"(?:_(?P<temperature>-?\d+)C)?(?:_stack_(?P<stack>\d+))?",
        re.IGNORECASE,
    ),
    # Seestar's and Dwarf's stacks, which lie beside the raw frames
    re.compile(r"^stacked[-_](?P<stack>\d+)_", re.IGNORECASE),
)
"""File names of programs that leave the header nearly empty; tried after the user's pattern."""

TYPE_KEYWORDS: Final = ("IMAGETYP", "FRAME", "FRAMETYP", "OBSTYPE", "PICTTYPE", "CALFRAME")
BINNING: Final = (
    ("XBINNING", "YBINNING"),
    ("BINX", "BINY"),
    ("CCDXBIN", "CCDYBIN"),
    ("DET-BIN1", "DET-BIN2"),
    ("CCDSUM", "CCDSUM"),
    ("BINNING", "BINNING"),
    ("HBIN", "VBIN"),
    ("DETXBIN", "DETYBIN"),
    ("IMAGEBIN", "IMAGEBIN"),
)
POSITIONS: Final = (("OBJCTRA", "OBJCTDEC"), ("RA", "DEC"), ("CRVAL1", "CRVAL2"))
DATES: Final = ("DATE-OBS", "DATEOBS", "DATE_OBS", "UT_DATE")
TIMES: Final = ("UT", "UTSTART", "TIME-OBS")
JULIAN: Final = (("MJD-OBS", 0.0), ("JD", 2_400_000.5))
"""Keyword and what to take off it for a modified Julian date."""
SECTIONS: Final = ("TRIMSEC", "BIASSEC", "DATASEC")
CORRECTED: Final = (("ZEROCOR", "B"), ("BIASCOR", "B"), ("DARKCOR", "D"), ("FLATCOR", "F"))
"""IRAF's marks of a correction, and the letter of CALSTAT that says the same."""
READ_NOISE: Final = ("RDNOISE", "READNOIS", "READNOI", "RON")
"""Cards that stand beside a GAIN in electrons per ADU in NOAO, ING and IRAF-era headers."""

UNKNOWN: Final = frozenset(
    {"", "-", "?", "n/a", "na", "nan", "null", "unknown", "undefined", "notavailable"}
)
NO_OBJECT: Final = UNKNOWN | {"none", "noobject", "notset", "untitled", "object"}
DEFAULT_READOUT: Final = UNKNOWN | {"0", "normal", "default"}
NO_FILTER: Final = UNKNOWN | {"none", "no", "nofilter"}
EMPTY_SLOT: Final = NO_FILTER | {"air", "open", "empty", "clear", "out"}
"""What the second of two wheels says when it does nothing."""

AMATEUR: Final = re.compile(
    r"n\.i\.n\.a|nina|indi\b|ekos|kstars|ccdciel|maxim|ccdsoft|thesky|sequence generator|sgp|"
    r"astro ?photography tool|\bapt\b|sharpcap|\basi|zwo|seestar|dwarf|prism|voyager|firecapture|"
    r"siril|pixinsight|astroart|nebulosity|backyard|cartes|phd|lightkeeper|touptek|qhy|svbony|"
    r"player ?one|all ?sky|jocular",
    re.IGNORECASE,
)
"""Programs in which GAIN is a camera setting, whatever the card's comment says."""
TOTAL_EXPOSURE: Final = re.compile(r"ccdciel|sharpcap", re.IGNORECASE)
"""Programs whose stacks hold the total time in EXPTIME."""
GUIDER: Final = re.compile(r"\bphd", re.IGNORECASE)

_LIGHT, _FLAT, _DARK, _BIAS = FrameType.LIGHT, FrameType.FLAT, FrameType.DARK, FrameType.BIAS
_FLAT_DARK = FrameType.FLAT_DARK
IGNORED: Final = "ignored"

TYPES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("light", "science", "object", "expose", "standard"), _LIGHT),
    **dict.fromkeys(("tricolorimage", "tricolourimage"), _LIGHT),
    **dict.fromkeys(("flat", "flatfield", "skyflat", "domeflat", "twilightflat"), _FLAT),
    **dict.fromkeys(("dark",), _DARK),
    **dict.fromkeys(("darkflat", "flatdark"), _FLAT_DARK),
    **dict.fromkeys(("bias", "zero", "offset"), _BIAS),
    **dict.fromkeys(("snapshot", "focus", "focusing", "autofocus"), IGNORED),
    **dict.fromkeys(("acquisition", "acquire", "pointing", "platesolve", "preview"), IGNORED),
    **dict.fromkeys(("guide", "guiding", "autoguide", "test", "experimental"), IGNORED),
    **dict.fromkeys(("arc", "lamp", "comp", "comparison", "lampflat", "calibrationlamp"), IGNORED),
}
"""A type's name, casefolded, without blanks, `_`, `-` and a closing `frame` → the type."""
FLAT_LIGHTS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("skyflat", "twilightflat"), "sky"),
    "domeflat": "dome",
}
"""A flat's name, compact, without plural and what follows → what it was taken of."""
PICTTYPES: Final[Mapping[str, FrameType]] = {"1": _LIGHT, "2": _BIAS, "3": _DARK, "4": _FLAT}

PATH_WORDS: Final[Mapping[str, FrameType]] = {
    **dict.fromkeys(("light", "lights"), _LIGHT),
    **dict.fromkeys(("flat", "flats", "skyflat", "skyflats", "domeflat", "domeflats"), _FLAT),
    **dict.fromkeys(("dark", "darks"), _DARK),
    **dict.fromkeys(("darkflat", "darkflats", "flatdark", "flatdarks"), _FLAT_DARK),
    **dict.fromkeys(("bias", "biases"), _BIAS),
}
"""Words of a folder's or a file's name, split at `_` and blanks."""
PATH_PAIRS: Final[Mapping[tuple[str, str], FrameType]] = {
    ("flat", "dark"): _FLAT_DARK,
    ("flat", "darks"): _FLAT_DARK,
    ("dark", "flat"): _FLAT_DARK,
    ("dark", "flats"): _FLAT_DARK,
    ("dwarf", "raw"): _LIGHT,
}
FOLDERS: Final[Mapping[str, FrameType]] = {
    **dict.fromkeys(("zero", "zeros", "offset", "offsets"), _BIAS),
    **dict.fromkeys(("science", "objects"), _LIGHT),
}
"""Words that say a type only where they are a folder's whole name."""
AFTER_DARK: Final = frozenset(
    {"nebula", "nebulae", "shark", "wolf", "doodad", "horse", "river", "tower", "cloud", "seahorse"}
)
"""`Dark Shark` is a target."""
PLAIN_FOLDERS: Final = frozenset(
    {"raw", "raws", "fits", "fit", "sub", "subs", "capture", "captures", "image", "images", "night"}
    | {"session", "frame", "frames", "autosave", "incoming", "calibration", "cali", "tele", "wide"}
)
"""Folder names that say nothing about the target."""

FILTERS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("ha", "halpha", "hα", "h"), "H"),
    **dict.fromkeys(("oiii", "o3", "o"), "O"),
    **dict.fromkeys(("sii", "s2", "s"), "S"),
    **dict.fromkeys(("lum", "luminance", "luminosity", "l"), "L"),
    "red": "R",
    "green": "G",
    **dict.fromkeys(("blue", "b"), "B"),
}
"""A filter's name, casefolded and compact → its normal form."""

BAYER: Final = frozenset({"RGGB", "BGGR", "GRBG", "GBRG"})
MONO_CAMERA: Final = re.compile(r"\d{3,4}MM\b|\bmono", re.IGNORECASE)
"""Names of cameras without a mosaic, on which some programs write BAYERPAT all the same."""
STACK_HISTORY: Final = (
    re.compile(r"numberOfImages:\s*(\d+)", re.IGNORECASE),
    re.compile(
        r"\b(?:stack|integrat|combin|averag|median)\w*\s+(?:of\s+|from\s+)?(\d+)\s+"
        r"(?:images|frames|subs|exposures)\b",
        re.IGNORECASE,
    ),
)
"""How programs that have no keyword for it say in HISTORY how many frames they combined."""
