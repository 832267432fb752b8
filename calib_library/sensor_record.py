"""What was measured of a camera, in records that are kept: values with their errors and inputs.

Apart from `sensor`, which measures, so that a face shows them without the mathematics.
"""

import dataclasses
import datetime as dt
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from calib_library.frame import CalibrationKey


class Measured(NamedTuple):
    """A value and its standard error, in the same unit."""

    value: float
    error: float


@dataclasses.dataclass(frozen=True, slots=True)
class Sensor:
    """What a set of flats and a set of biases say about the camera."""

    gain: Measured
    """e-/ADU."""
    read_noise: Measured
    """e- rms of a pixel, without what whole rows have in common."""
    plane_gains: tuple[Measured, ...]
    """e-/ADU, of each Bayer plane in the order of the mosaic (00, 01, 10, 11); one for a mono
    camera."""
    row_noise: float
    """e- rms: what all pixels of a row have in common, in one bias."""
    offset_adu: float
    """ADU, median level of the biases."""
    level_adu: tuple[float, float]
    """ADU above the bias, lowest and highest of the flats' patches."""
    nonlinearity: Measured
    """Fraction by which the response falls short of a straight line at the highest level; the error
    is infinite where the levels do not differ."""
    coupling: Measured
    """Fraction of a pixel's signal that each of its four neighbours takes."""
    step_adu: int
    """Greatest common divisor of the values: 16 for a 12-bit converter padded to 16 bits; 0 where
    they are not whole numbers."""
    pairs: tuple[int, int]
    """Pairs of flats and of biases that were used."""
    notes: tuple[str, ...]
    """What a person should know of this measurement, a sentence each."""


@dataclasses.dataclass(frozen=True, slots=True)
class DarkCurrent:
    """What a set of darks adds, at one temperature."""

    rate: Measured
    """e-/s, of the middle of the pixels' values."""
    clamped: bool
    """The camera moves its black level: the rate is that which the darks' noise shows."""
    exposure_s: float
    temperature_c: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class SensorRecord:
    """One measurement of a camera in one setting, as the library keeps it."""

    key: CalibrationKey
    row_order: str
    measured_at: dt.datetime
    temperature_c: float | None
    """°C, of the biases."""
    header_e_per_adu: float | None
    """EGAIN or CVF of the flats."""
    sensor: Sensor | None
    """None where it could not be measured."""
    darks: tuple[DarkCurrent, ...]
    inputs: tuple[str, ...]
    """SHA-256 of the frames that were read."""
    refused: str | None
    """Why it, or a dark current, could not be measured."""
    warnings: Mapping[str, str]
    """What was found to be wrong, by its sort (`gain`, `read noise`, `header`)."""

    def details(self) -> str:
        """Everything but key and time, as one line of JSON."""
        fields = dataclasses.asdict(self)
        for name in ("key", "row_order", "measured_at"):
            del fields[name]
        return json.dumps(_finite(fields), ensure_ascii=False, allow_nan=False)

    @classmethod
    def restore(
        cls, details: str, *, key: CalibrationKey, row_order: str, measured_at: dt.datetime
    ) -> "SensorRecord":
        """Read what `details` wrote."""
        fields: dict[str, Any] = json.loads(details)
        found = fields["sensor"]
        return cls(
            key=key,
            row_order=row_order,
            measured_at=measured_at,
            temperature_c=fields["temperature_c"],
            header_e_per_adu=fields["header_e_per_adu"],
            sensor=None if found is None else _sensor(found),
            darks=tuple(
                DarkCurrent(**{**dark, "rate": _measured(dark["rate"])}) for dark in fields["darks"]
            ),
            inputs=tuple(fields["inputs"]),
            refused=fields["refused"],
            warnings=fields["warnings"],
        )


def _sensor(fields: Mapping[str, Any]) -> Sensor:
    return Sensor(
        gain=_measured(fields["gain"]),
        read_noise=_measured(fields["read_noise"]),
        plane_gains=tuple(map(_measured, fields["plane_gains"])),
        row_noise=fields["row_noise"],
        offset_adu=fields["offset_adu"],
        level_adu=(fields["level_adu"][0], fields["level_adu"][1]),
        nonlinearity=_measured(fields["nonlinearity"]),
        coupling=_measured(fields["coupling"]),
        step_adu=fields["step_adu"],
        pairs=(fields["pairs"][0], fields["pairs"][1]),
        notes=tuple(fields["notes"]),
    )


def _measured(pair: Sequence[float | None]) -> Measured:
    value, error = pair
    return Measured(value or 0.0, math.inf if error is None else error)


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """JSON has no infinity: an unknown error is null."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
