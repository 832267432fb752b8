"""A list of calibration frames to take, as CSV and as a sequence that Ekos loads.

N.I.N.A. imports lists of targets but none of calibration frames; its users take the CSV.
"""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from calib_library.advice import Shot
from calib_library.frame import FrameType

COLUMNS = (
    "type", "exposure_s", "temperature_c", "filter", "count",
    "gain", "offset", "binning", "readout_mode", "camera", "why",
)  # fmt: skip

_EKOS_TYPES = {
    FrameType.BIAS: "Bias",
    FrameType.DARK: "Dark",
    FrameType.FLAT: "Flat",
    FrameType.FLAT_DARK: "Dark",
}
_UNKNOWN_FLAT_S = 1.0
"""Ekos wants a number; from it the job's own calibration finds the right one …"""
_FLAT_ADU, _FLAT_TOLERANCE_ADU = 30_000, 3_000
"""… for this level, 46 % of 16 bits; drivers shift cameras of fewer bits to them."""


def write(shots: Sequence[Shot], path: Path) -> list[Path]:
    """Write the list to `path` (.csv or .esq); for several cameras one sequence each, named so.

    Returns the files that were written. Raises OSError.
    """
    if path.suffix == ".csv":
        texts = {path: to_csv(shots)}
    else:
        cameras = list(dict.fromkeys(shot.site.key.camera for shot in shots))
        texts = {
            path if len(cameras) == 1 else path.with_stem(f"{path.stem}-{_safe(name)}"): to_esq(
                shots, camera=name
            )
            for name in cameras
        }
    for place, text in texts.items():
        place.write_text(text, encoding="utf-8")
    return list(texts)


def _safe(camera: str | None) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", camera or "").strip("-") or "camera"


def to_csv(shots: Sequence[Shot]) -> str:
    """Write one line a kind of frame; an exposure is empty where the light decides it."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    for shot in shots:
        key = shot.site.key
        table.writerow(
            [
                _plain(value)
                for value in (
                    shot.kind,
                    shot.exposure_s,
                    shot.temperature_c,
                    shot.filter_name or shot.filter,
                    shot.count,
                    key.gain,
                    key.offset,
                    f"{key.xbinning}x{key.ybinning}",
                    key.readout_mode,
                    key.camera,
                    shot.why,
                )
            ]
        )
    return out.getvalue()


def _plain(value: object) -> str:
    if value is None:
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    # Spreadsheets run a cell that begins so as a formula; a number may have its sign.
    return f"'{text}" if isinstance(value, str) and text[:1] in "=+-@\t\r" else text


def to_esq(shots: Sequence[Shot], *, camera: str | None) -> str:
    """Write the shots of one camera as an Ekos sequence (version 2.6 of its format).

    The temperature is enforced, gain and offset are set under both names that INDI's drivers use.
    The folder is left to the Capture module.
    """
    jobs = "".join(_job(shot) for shot in shots if shot.site.key.camera == camera)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<SequenceQueue version='2.6'>\n{jobs}</SequenceQueue>\n"
    )


def _job(shot: Shot) -> str:
    key = shot.site.key
    exposure = _UNKNOWN_FLAT_S if shot.exposure_s is None else shot.exposure_s
    lines = [
        f"<Exposure>{exposure:g}</Exposure>",
        "<Encoding>FITS</Encoding>",
        f"<Binning><X>{key.xbinning}</X><Y>{key.ybinning}</Y></Binning>",
    ]
    if shot.temperature_c is not None:
        lines.append(f"<Temperature force='true'>{shot.temperature_c:g}</Temperature>")
    if (named := shot.filter_name or shot.filter) is not None:
        # By the wheel's own name: of one that it does not know Ekos takes the first filter.
        lines.append(f"<Filter>{escape(named)}</Filter>")
    lines += [
        f"<Type>{_EKOS_TYPES[shot.kind]}</Type>",
        f"<Count>{shot.count}</Count>",
        "<Delay>0</Delay>",
        "<UploadMode>0</UploadMode>",
        "<Properties>",
    ]
    known = [
        (name, value)
        for name, value in (("Gain", key.gain), ("Offset", key.offset))
        if value is not None
    ]
    lines += [_vector(f"CCD_{name.upper()}", [(name.upper(), value)]) for name, value in known]
    lines += [_vector("CCD_CONTROLS", known)] if known else []
    lines += ["</Properties>"]
    if shot.kind is FrameType.FLAT and shot.exposure_s is None:
        level = f"<Value>{_FLAT_ADU}</Value><Tolerance>{_FLAT_TOLERANCE_ADU}</Tolerance>"
        duration = f"<FlatDuration dark='false'><Type>ADU</Type>{level}</FlatDuration>"
        lines += [f"<Calibration>{duration}</Calibration>"]
    return "<Job>\n" + "\n".join(lines) + "\n</Job>\n"


def _vector(name: str, elements: Sequence[tuple[str, float]]) -> str:
    inside = "".join(
        f"<OneElement name='{element}'>{value:g}</OneElement>" for element, value in elements
    )
    return f"<PropertyVector name='{name}'>{inside}</PropertyVector>"
