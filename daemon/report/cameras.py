"""`lightkeeper library sensor`: what was measured of each camera, with its history."""

import dataclasses
import datetime as dt
from collections.abc import Sequence

from rich.console import Group, RenderableType

from calib_library.advice import Site
from calib_library.catalogue import cameras
from calib_library.sensor_record import Measured, Sensor, SensorRecord
from daemon.config import Config
from daemon.report import collect, layout, status
from daemon.report.advising import setting

HISTORY = 8
"""Earlier measurements that are shown."""


@dataclasses.dataclass(frozen=True, slots=True)
class SensorReport:
    """Everything `lightkeeper library sensor` shows."""

    cameras: Sequence[Sequence[SensorRecord]]
    """Of each camera setting, the newest first."""


def gather(config: Config) -> SensorReport:
    """Read the measurements. Raises as collect.open_library."""
    found: dict[Site, list[SensorRecord]] = {}
    with collect.open_library(config) as library:
        for one in cameras.sensors(library):
            found.setdefault(Site(one.key, one.row_order), []).append(one)
    return SensorReport(list(found.values()))


def render(report: SensorReport, *, now: dt.datetime) -> RenderableType:
    """Lay the measurements out for a terminal, each with its error."""
    parts: list[RenderableType] = []
    for history in report.cameras:
        newest = next((one for one in history if one.sensor is not None), history[0])
        parts += layout.section(setting(Site(newest.key, newest.row_order)))
        if newest.sensor is None:
            parts.append(layout.indented(f"not measured: {newest.refused}"))
            continue
        parts += [_row(name, text) for name, text in _lines(newest, newest.sensor)]
        parts += [layout.indented(note) for note in newest.sensor.notes]
        parts += [layout.indented(text, style="red") for text in newest.warnings.values()]
        if len(history) > 1:
            parts.append(_history(history, now))
    if not parts:
        parts.append(
            layout.indented(
                "No camera has been measured yet: flats and biases (or flat-darks) of one setting "
                "are needed."
            )
        )
    return Group(*parts)


def _lines(one: SensorRecord, found: Sensor) -> list[tuple[str, str]]:
    header = f"; the header says {one.header_e_per_adu:g}" if one.header_e_per_adu else ""
    lines = [("Gain", f"{_pm(found.gain)} e-/ADU{header}")]
    if len(found.plane_gains) > 1:
        lines.append(("by plane", ", ".join(_pm(plane) for plane in found.plane_gains)))
    lines += [
        ("Noise", f"{_pm(found.read_noise)} e- a pixel, {found.row_noise:.2g} e- a row"),
        ("Offset", f"{found.offset_adu:.0f} ADU, values in steps of {found.step_adu or '< 1'} ADU"),
        ("Linear", _linearity(found)),
    ]
    lines += [
        (
            "Dark",
            f"{_pm(dark.rate)} e-/s"
            + (f" at {dark.temperature_c:.1f} °C" if dark.temperature_c is not None else "")
            + f", from {dark.exposure_s:g} s"
            + (" (by its noise: the camera moves its black level)" if dark.clamped else ""),
        )
        for dark in one.darks
    ]
    flats, biases = found.pairs
    lines.append(("From", f"{flats} pairs of flats, {biases} pairs of biases"))
    return lines


def _linearity(found: Sensor) -> str:
    bend = found.nonlinearity
    low, high = found.level_adu
    if not bend.error < 0.05:
        return f"not known: the flats' levels, {low:.0f} to {high:.0f} ADU, tell too little"
    return f"falls short by {100 * bend.value:.2g} ± {100 * bend.error:.2g} % at {high:.0f} ADU"


def _history(history: Sequence[SensorRecord], now: dt.datetime) -> RenderableType:
    table = layout.table("Measured>", "Gain e-/ADU>", "Read noise e->", "Temp.>", "")
    for one in history[:HISTORY]:
        found = one.sensor
        table.add_row(
            *map(
                layout.cell,
                (
                    status.local_time(one.measured_at, now),
                    _pm(found.gain) if found else "-",
                    _pm(found.read_noise) if found else "-",
                    "-" if one.temperature_c is None else f"{one.temperature_c:.1f} °C",
                    "; ".join(one.warnings) if found else one.refused or "",
                ),
            )
        )
    return table


def _row(name: str, text: str) -> RenderableType:
    return layout.line(name, text)


def _pm(value: Measured) -> str:
    """`0.801 ± 0.002`: as many digits as the error has two of."""
    if not 0 < value.error < float("inf"):
        return f"{value.value:.3g}"
    digits = max(0, min(6, 1 - _exponent(value.error)))
    return f"{value.value:.{digits}f} ± {value.error:.{digits}f}"


def _exponent(number: float) -> int:
    return int(f"{number:e}".partition("e")[2])
