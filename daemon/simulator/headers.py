"""Headers and file names as two camera programs write them: N.I.N.A. 2 and INDI with Ekos.

Names, types and comments follow dumps of real frames. The two differ where it hurts: only N.I.N.A.
tells e-/ADU, a flat-dark's kind and the set point; INDI calls the type `Dark Frame` and writes the
filter of the wheel into every frame.
"""

import dataclasses
import datetime as dt
from typing import Literal

from calib_library.frame import Card, FrameType

Style = Literal["nina", "indi"]

_NINA_TYPES = {
    FrameType.BIAS: "BIAS",
    FrameType.DARK: "DARK",
    FrameType.FLAT: "FLAT",
    FrameType.FLAT_DARK: "DARKFLAT",
    FrameType.LIGHT: "LIGHT",
}
_INDI_TYPES = {
    FrameType.BIAS: "Bias",
    FrameType.DARK: "Dark",
    FrameType.FLAT: "Flat",
    FrameType.FLAT_DARK: "Dark",
    FrameType.LIGHT: "Light",
}
_LOCAL = dt.timedelta(hours=1)  # the observatory's clock is ahead of UTC
_MJD_EPOCH = dt.datetime(1858, 11, 17, tzinfo=dt.UTC)
_FOCAL_LENGTH_MM = 530.0
_RA_DEG, _DEC_DEG = 83.6331, 21.9145


@dataclasses.dataclass(frozen=True, slots=True)
class Exposure:
    """What a camera program knows about one exposure."""

    kind: FrameType
    number: int
    filter: str | None
    exposure_s: float
    start: dt.datetime
    """Aware, UTC."""
    reading_c: float
    set_temperature_c: float | None
    pier_side: str | None
    target: str | None
    camera: str
    shape: tuple[int, int]
    gain_setting: int
    offset_setting: int
    e_per_adu: float
    pixel_size_um: float
    bayer_pattern: str | None


def cards_of(exposure: Exposure, *, style: Style) -> tuple[Card, ...]:
    """Write the header, without the structural keywords (SIMPLE to BZERO, END)."""
    return _nina_cards(exposure) if style == "nina" else _indi_cards(exposure)


def name_of(exposure: Exposure, *, style: Style) -> str:
    """Name the file, with its folders, below the output folder."""
    return _nina_name(exposure) if style == "nina" else _indi_name(exposure)


def _nina_cards(exposure: Exposure) -> tuple[Card, ...]:
    middle = exposure.start + dt.timedelta(seconds=exposure.exposure_s / 2)
    cards = [
        Card("IMAGETYP", _NINA_TYPES[exposure.kind], "Type of exposure"),
        Card("EXPOSURE", exposure.exposure_s, "[s] Exposure duration"),
        Card("EXPTIME", exposure.exposure_s, "[s] Exposure duration"),
        Card("DATE-LOC", _iso(exposure.start + _LOCAL), "Time of observation (local)"),
        Card("DATE-OBS", _iso(exposure.start), "Time of observation (UTC)"),
        Card("MJD-OBS", _mjd(exposure.start), "Modified Julian Date of observation"),
        Card("DATE-AVG", _iso(middle), "Averaged midpoint time (UTC)"),
        Card("XBINNING", 1, "X axis binning factor"),
        Card("YBINNING", 1, "Y axis binning factor"),
        Card("GAIN", exposure.gain_setting, "Sensor gain"),
        Card("OFFSET", exposure.offset_setting, "Sensor gain offset"),
        Card("EGAIN", exposure.e_per_adu, "[e-/ADU] Electrons per A/D unit"),
        Card("XPIXSZ", exposure.pixel_size_um, "[um] Pixel X axis size"),
        Card("YPIXSZ", exposure.pixel_size_um, "[um] Pixel Y axis size"),
        Card("INSTRUME", exposure.camera, "Imaging instrument name"),
    ]
    if exposure.set_temperature_c is not None:
        cards.append(
            Card("SET-TEMP", exposure.set_temperature_c, "[degC] CCD temperature setpoint")
        )
    cards += [
        Card("CCD-TEMP", exposure.reading_c, "[degC] CCD temperature"),
        Card("READOUTM", "Default", "Sensor readout mode"),
    ]
    if exposure.bayer_pattern is not None:
        cards += [
            Card("BAYERPAT", exposure.bayer_pattern, "Sensor Bayer pattern"),
            Card("XBAYROFF", 0, "Bayer pattern X axis offset"),
            Card("YBAYROFF", 0, "Bayer pattern Y axis offset"),
        ]
    cards += [
        Card("TELESCOP", "Lamplighter 106", "Name of telescope"),
        Card("FOCALLEN", _FOCAL_LENGTH_MM, "[mm] Focal length"),
        Card("FOCRATIO", 5.0, "Focal ratio"),
        Card("RA", _RA_DEG, "[deg] RA of telescope"),
        Card("DEC", _DEC_DEG, "[deg] Declination of telescope"),
    ]
    if exposure.pier_side is not None:
        cards.append(Card("PIERSIDE", exposure.pier_side, "Telescope pointing state"))
    if exposure.filter is not None:
        cards += [
            Card("FWHEEL", "Wheel", "Filter Wheel name"),
            Card("FILTER", exposure.filter, "Active filter name"),
        ]
    if exposure.target is not None:
        cards.append(Card("OBJECT", exposure.target, "Name of the object of interest"))
    cards += [
        Card("ROWORDER", "TOP-DOWN", "FITS Image Orientation"),
        Card("EQUINOX", 2000.0, "Equinox of celestial coordinate system"),
        Card("SWCREATE", "N.I.N.A. 2.3.0.9001 (x64)", "Software that created this file"),
    ]
    return tuple(cards)


def _indi_cards(exposure: Exposure) -> tuple[Card, ...]:
    kind = _INDI_TYPES[exposure.kind]
    cards = [
        Card("INSTRUME", exposure.camera, "CCD Name"),
        Card("TELESCOP", "EQMod Mount", "Telescope name"),
        Card("OBJECT", exposure.target or "Unknown", "Object name"),
        Card("EXPTIME", exposure.exposure_s, "Total Exposure Time (s)"),
        Card("CCD-TEMP", exposure.reading_c, "CCD Temperature (Celsius)"),
        Card("PIXSIZE1", exposure.pixel_size_um, "Pixel Size 1 (microns)"),
        Card("PIXSIZE2", exposure.pixel_size_um, "Pixel Size 2 (microns)"),
        Card("XBINNING", 1, "Binning factor in width"),
        Card("YBINNING", 1, "Binning factor in height"),
        Card("XPIXSZ", exposure.pixel_size_um, "X binned pixel size in microns"),
        Card("YPIXSZ", exposure.pixel_size_um, "Y binned pixel size in microns"),
        Card("FRAME", kind, "Frame Type"),
        Card("IMAGETYP", f"{kind} Frame", "Frame Type"),
    ]
    if exposure.filter is not None:
        cards.append(Card("FILTER", exposure.filter, "Filter"))
    if exposure.bayer_pattern is not None:
        cards += [
            Card("XBAYROFF", 0, "X offset of Bayer array"),
            Card("YBAYROFF", 0, "Y offset of Bayer array"),
            Card("BAYERPAT", exposure.bayer_pattern, "Bayer color pattern"),
        ]
    cards.append(Card("FOCALLEN", _FOCAL_LENGTH_MM, "Focal Length (mm)"))
    if exposure.pier_side is not None:
        cards.append(Card("PIERSIDE", exposure.pier_side.upper(), "Side of Pier"))
    cards += [
        Card("OBJCTRA", "05 34 31.94", "Object J2000 RA in Hours"),
        Card("OBJCTDEC", "+21 54 52.2", "Object J2000 DEC in Degrees"),
        Card("ROWORDER", "TOP-DOWN", "Row Order"),
        Card("EQUINOX", 2000, "Equinox"),
        Card("DATE-OBS", _iso(exposure.start), "UTC start date of observation"),
        Card("GAIN", float(exposure.gain_setting), "Gain"),
        Card("OFFSET", float(exposure.offset_setting), "Offset"),
        Card("COMMENT", "Generated by INDI"),
    ]
    return tuple(cards)


def _nina_name(exposure: Exposure) -> str:
    """Follow N.I.N.A.'s default pattern: night (noon to noon), type, then a telling name."""
    local = exposure.start + _LOCAL
    night = (local - dt.timedelta(hours=12)).date().isoformat()
    kind = _NINA_TYPES[exposure.kind]
    stamp = local.strftime("%Y-%m-%d_%H-%M-%S")
    return (
        f"{night}/{kind}/{stamp}_{exposure.filter or ''}_{exposure.reading_c:.2f}"
        f"_{exposure.exposure_s:.2f}s_{exposure.number:04d}.fits"
    )


def _indi_name(exposure: Exposure) -> str:
    """Follow Ekos: target, type, filter, then all of them again in the name."""
    kind = _INDI_TYPES[exposure.kind]
    words = [(exposure.target or "Calibration").replace(" ", "_"), kind]
    folders = "/".join([*words, exposure.filter] if exposure.filter else words)
    name = "_".join([*words, exposure.filter] if exposure.filter else words)
    stamp = exposure.start.strftime("%Y-%m-%dT%H-%M-%S")
    return f"{folders}/{name}_{exposure.exposure_s:g}_secs_{stamp}_{exposure.number:03d}.fits"


def _iso(moment: dt.datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds")


def _mjd(moment: dt.datetime) -> float:
    return (moment - _MJD_EPOCH) / dt.timedelta(days=1)
