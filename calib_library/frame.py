"""What one frame is, in records that every module speaks: frozen, each field with its unit."""

import dataclasses
import datetime as dt
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple, Self


class FrameType(StrEnum):
    """The five kinds of frame that are filed or stacked."""

    BIAS = "bias"
    DARK = "dark"
    FLAT = "flat"
    FLAT_DARK = "flat-dark"
    LIGHT = "light"


class Card(NamedTuple):
    """One header card, already mended where a program wrote it badly.

    Strings are stripped of trailing blanks. A card whose value cannot be read at all is None.
    """

    keyword: str
    value: str | int | float | bool | None
    comment: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class CalibrationKey:
    """The fields in which a frame and its master must be equal, whatever the kind of master.

    A field that is missing (None) equals only another missing one.
    """

    camera: str | None
    """Camera name, as the header gives it, blanks collapsed."""
    width: int
    """px, along a row of the stored image."""
    height: int
    """px, number of rows."""
    xbinning: int
    ybinning: int
    gain: float | None
    """The camera's gain *setting*, never electrons per ADU."""
    offset: float | None
    """The camera's offset (black level) setting."""
    readout_mode: str | None
    """None also for a mode named `normal`, `default`, `n/a` or `0`."""
    sections: str | None
    """TRIMSEC, BIASSEC and DATASEC as written, joined by `;`: a trimmed master never meets an
    untrimmed light."""
    storage: str
    """How the pixels are stored: `uint16`, `int16`, `uint8`, `float32`, …"""
    bayer_pattern: str | None
    """`RGGB`, `BGGR`, `GRBG`, `GBRG`, or None for a monochrome camera."""

    def text(self) -> str:
        """One stable line, for an index and for people; missing fields stand as `-`."""
        return "|".join("-" if v is None else f"{v}" for v in dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True, slots=True)
class FrameRecord:
    """A normalised header: what one frame is, and which keyword said so."""

    frame_type: FrameType | None
    """None: neither the header nor the path told; the pixels may propose one."""
    key: CalibrationKey
    planes: int
    """1 for a mosaic or monochrome frame, 3 for a colour image already demosaiced."""
    exposure_s: float | None
    """s, rounded to 1 ms (shorter exposures to 1 µs)."""
    temperature_c: float | None
    """°C, the *measured* sensor temperature. Missing is missing, never 0."""
    set_temperature_c: float | None
    """°C, the cooler's set point."""
    filter: str | None
    """The filter in its normal form (`Ha`, `HALPHA` → `H`), None without one."""
    filter_name: str | None
    """The filter as the header writes it, for display."""
    row_order: str
    """`TOP-DOWN` (also where the header is silent) or `BOTTOM-UP`."""
    e_per_adu: float | None
    """e-/ADU from EGAIN or CVF."""
    saturation_adu: float | None
    """ADU at which pixels saturate, where the header tells."""
    pixel_size_um: float | None
    """µm, as written."""
    focal_length_mm: float | None
    telescope: str | None
    object_name: str | None
    """OBJECT as written, None where it is blank or says nothing (`Unknown`)."""
    ra_deg: float | None
    dec_deg: float | None
    rotator_deg: float | None
    """°, the mechanical angle."""
    pier_side: str | None
    """`east` or `west`."""
    date_obs: dt.datetime | None
    """Start of the exposure, aware, UTC."""
    program: str | None
    """The program that wrote the file."""
    stack_count: int
    """Frames combined in this file; 1 for a raw frame."""
    is_master: bool
    """A combined calibration frame made by some program."""
    calibrated: str
    """Letters of CALSTAT (`BDF`), empty for a raw frame."""
    sources: Mapping[str, str]
    """Field name → the keyword, `path` or `pattern` that gave its value."""
    warnings: tuple[str, ...] = ()
    """Contradictions and oddities, one sentence each."""
    flat_light: str | None = None
    """Of a flat: `sky` (twilight) or `dome`, None where nothing says it."""

    def to_json(self) -> str:
        """The record as one line of JSON, from which `from_json` makes an equal record."""
        fields = _fields(self)
        fields["key"] = _fields(self.key)
        fields["sources"] = dict(self.sources)
        fields["date_obs"] = self.date_obs.isoformat() if self.date_obs else None
        return json.dumps(fields, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        fields["frame_type"] = FrameType(fields["frame_type"]) if fields["frame_type"] else None
        fields["key"] = CalibrationKey(**fields["key"])
        fields["warnings"] = tuple(fields["warnings"])
        if fields["date_obs"]:
            fields["date_obs"] = dt.datetime.fromisoformat(fields["date_obs"])
        return cls(**fields)


def _fields(record: FrameRecord | CalibrationKey) -> dict[str, Any]:
    """What `dataclasses.asdict` gives, but not copied, which takes most of its time."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
