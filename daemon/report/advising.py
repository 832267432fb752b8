"""`lightkeeper library advice`: what the lights of the last nights, or a plan, lack."""

import collections
import dataclasses
import datetime as dt
import statistics
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType

from calib_library import advice
from calib_library.advice import Advice, Cell, Line, Noise, Part, Shot, Site, Use
from calib_library.catalogue import cameras
from calib_library.header import normalise_filter
from calib_library.library import CalibrationLibrary
from calib_library.match import MasterRecord, seconds
from calib_library.sensor_record import SensorRecord
from daemon.config import Config
from daemon.ledger import lights
from daemon.ledger.lights import UsedLight
from daemon.report import collect, layout

SAME_PLACE_PX = 0.7
"""Lights whose corners lie this close are on the same pixels: not dithered."""
ASSUMED_READ_NOISE_E = 3.0
ASSUMED_FLAT_ADU = 32_768.0
SKY_LIMITED = 10.0
"""A sky that nobody has measured is taken to be so many times the read noise squared."""


class NoAdviceError(Exception):
    """There is nothing to give advice on."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Lights that somebody is going to take."""

    exposure_s: float
    filter: str | None = None
    temperature_c: float | None = None
    """None: that of the last lights."""
    lights: int = 50
    dithered: bool = False
    camera: str | None = None
    """A part of its name; None: the one used last."""
    sky_e: float | None = None
    """e- a pixel in one light; None: as the last lights through this filter had it."""


def gather(config: Config, *, nights: int, goal: float, plan: Plan | None) -> Advice:
    """Read what was used lately and say what is lacking for it, or for a plan.

    Raises NoAdviceError, and as collect.open_library.
    """
    with collect.open_library(config) as library:
        found = lights.used(library.db, nights=nights)
        by_site: dict[Site, list[UsedLight]] = {}
        for light in found:
            site = Site(light.record.key, light.record.row_order)
            by_site.setdefault(site, []).append(light)
        if plan is not None:
            chosen = _planned_site(plan, by_site, library)
            by_site = {chosen: by_site.get(chosen, [])}
        if not by_site:
            raise NoAdviceError("no light has been stacked yet: tell a plan by --exposure")
        noise = {}
        uses: list[Use] = []
        masters: list[MasterRecord] = []
        for site, taken in by_site.items():
            noise[site] = _noise(cameras.sensors(library, site.key, site.row_order), taken)
            masters += cameras.masters_of(library, site.key, site.row_order)
            if plan is None:
                uses += _uses(site, taken, noise[site])
            else:
                uses.append(_planned(plan, site, taken, noise[site]))
    return advice.advise(uses, masters, noise, goal=goal)


def _planned_site(
    plan: Plan, by_site: dict[Site, list[UsedLight]], library: CalibrationLibrary
) -> Site:
    wanted = (plan.camera or "").casefold()
    for site in by_site:
        if wanted in (site.key.camera or "").casefold():
            return site
    for master in reversed(library.masters()):
        if wanted in (master.key.camera or "").casefold():
            return Site(master.key, master.row_order)
    raise NoAdviceError(f"no camera {plan.camera or ''} is known yet: take some frames with it")


def _planned(plan: Plan, site: Site, taken: Sequence[UsedLight], noise: Noise) -> Use:
    filter_name = normalise_filter(plan.filter) if plan.filter else None
    same = [light for light in taken if light.record.filter == filter_name] or list(taken)
    temperature = plan.temperature_c
    if temperature is None:
        temperature = _median(light.record.temperature_c for light in taken)
    sky_e = plan.sky_e
    if sky_e is None:
        rate = _median(
            _sky_e(light, noise) / light.record.exposure_s
            for light in same
            if light.record.exposure_s
        )
        sky_e = SKY_LIMITED * noise.read_noise_e**2 if rate is None else rate * plan.exposure_s
    return Use(
        site=site,
        filter=filter_name,
        exposure_s=plan.exposure_s,
        temperature_c=temperature,
        groups=(1,) * plan.lights if plan.dithered else (plan.lights,),
        sky_e=sky_e,
        name="plan",
        # The program's own name, where the filter was used; else as it was typed.
        filter_name=_commonest(
            light.record.filter_name for light in taken if light.record.filter == filter_name
        )
        or plan.filter,
    )


def _uses(site: Site, taken: Sequence[UsedLight], noise: Noise) -> list[Use]:
    """The lights of one camera setting by target, filter, exposure and whole degree."""
    groups: dict[tuple[str, str | None, float, int | None], list[UsedLight]] = {}
    for light in taken:
        record = light.record
        if record.exposure_s is None:
            continue
        degree = None if record.temperature_c is None else round(record.temperature_c)
        place = (light.target, record.filter, float(f"{record.exposure_s:.3g}"), degree)
        groups.setdefault(place, []).append(light)
    return [
        Use(
            site=site,
            filter=filter_name,
            exposure_s=exposure_s,
            temperature_c=_median(light.record.temperature_c for light in members),
            groups=_places(members),
            sky_e=statistics.median(_sky_e(one, noise) for one in members),
            name=target,
            filter_name=_commonest(light.record.filter_name for light in members),
        )
        for (target, filter_name, exposure_s, _), members in groups.items()
    ]


def _places(members: Sequence[UsedLight]) -> tuple[int, ...]:
    """How many lights lie on the same pixels, largest first."""
    counts: collections.Counter[tuple[float, float, float, float]] = collections.Counter()
    for light in members:
        for place in counts:
            if all(abs(a - b) < SAME_PLACE_PX for a, b in zip(place, light.corners, strict=True)):
                counts[place] += 1
                break
        else:
            counts[light.corners] = 1
    return tuple(sorted(counts.values(), reverse=True))


def _noise(measured: Sequence[SensorRecord], taken: Sequence[UsedLight]) -> Noise:
    """What is known of a camera setting: measured, else from headers and lights, else assumed."""
    assumed = []
    last = next((one for one in measured if one.sensor is not None), None)
    if last is not None and last.sensor is not None:
        gain, read_noise = last.sensor.gain.value, last.sensor.read_noise.value
        flat_e = gain * statistics.mean(last.sensor.level_adu)
    else:
        header = _median(light.record.e_per_adu for light in taken)
        gain = header or 1.0
        assumed.append(f"{gain:g} e-/ADU " + ("as the header has it" if header else "assumed"))
        beyond = _median(
            (one.noise_adu * gain) ** 2 - max(0.0, one.sky_adu) * gain
            for one in taken
            if not one.keeps_pedestal
        )
        if beyond is not None and beyond > 1.0:
            read_noise = beyond**0.5
            assumed.append(f"read noise {read_noise:.1f} e- from the lights' own noise")
        else:
            read_noise = ASSUMED_READ_NOISE_E
            assumed.append(f"read noise {read_noise:g} e- assumed")
        flat_e = gain * ASSUMED_FLAT_ADU
        assumed.append("flats at half of full scale")
    darks = last.darks if last is not None else ()
    temperature = _median(light.record.temperature_c for light in taken)
    dark_e_s = 0.0
    if darks:
        nearest = min(
            darks, key=lambda dark: abs((dark.temperature_c or 0.0) - (temperature or 0.0))
        )
        dark_e_s = max(0.0, nearest.rate.value)
    else:
        assumed.append("no dark current")
    return Noise(gain, read_noise, dark_e_s, flat_e, tuple(assumed))


def _sky_e(light: UsedLight, noise: Noise) -> float:
    """The sky of a light, e- a pixel: its level, or its noise where the camera's offset is in the
    level.
    """
    if light.keeps_pedestal:
        return max(0.0, (light.noise_adu * noise.e_per_adu) ** 2 - noise.read_noise_e**2)
    return max(0.0, light.sky_adu) * noise.e_per_adu


def _commonest(names: Iterable[str | None]) -> str | None:
    return next((name for name, _ in collections.Counter(names).most_common(1)), None)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


# --- on the terminal -----------------------------------------------------------------------------


def render(found: Advice, *, now: dt.datetime) -> RenderableType:
    """Lay the advice out for a terminal: the table, the grid and the list of shots."""
    del now
    parts: list[RenderableType] = []
    for site in dict.fromkeys(line.use.site for line in found.lines):
        lines = [line for line in found.lines if line.use.site == site]
        parts += layout.section(setting(site))
        parts.append(_known(lines[0].noise))
        parts.append(_table(lines))
        grid = [cell for cell in found.grid if cell.site == site]
        if grid:
            parts += layout.section("Darks: there/wanted (lights taken)")
            parts.append(_grid(grid))
    parts += layout.section("To take")
    if not found.shots:
        parts.append(layout.indented("nothing: the library has what these lights need"))
    else:
        parts.append(_shot_table(found.shots))
    return Group(*parts)


def setting(site: Site) -> str:
    """`ZWO ASI2600MM Pro, gain 100, offset 50`: a camera in one of its settings."""
    key = site.key
    parts = [key.camera or "a camera without a name"]
    parts += [f"gain {key.gain:g}"] if key.gain is not None else []
    parts += [f"offset {key.offset:g}"] if key.offset is not None else []
    parts += [key.readout_mode] if key.readout_mode else []
    parts += [f"{key.xbinning}×{key.ybinning}"] if key.xbinning * key.ybinning > 1 else []
    return ", ".join(parts)


def _shot_table(shots: Sequence[Shot]) -> RenderableType:
    several = len({shot.site for shot in shots}) > 1
    columns = ("Frame", "Count>", "Exposure>", "Temp.>", "Filter", "Why")
    table = layout.table(*columns, *(["Setting"] if several else []))
    for shot in shots:
        texts = [
            str(shot.kind),
            str(shot.count),
            seconds(shot.exposure_s) or "40-60 % full",
            _celsius(shot.temperature_c),
            shot.filter_name or shot.filter or "-",
            shot.why,
        ]
        texts += [setting(shot.site)] if several else []
        table.add_row(*map(layout.cell, texts))
    return table


def _known(noise: Noise) -> RenderableType:
    text = (
        f"{noise.e_per_adu:.3g} e-/ADU, read noise {noise.read_noise_e:.2g} e-, "
        f"dark current {noise.dark_e_s:.2g} e-/s"
    )
    return layout.indented("; ".join([text, *noise.assumed]), style="dim")


def _table(lines: Sequence[Line]) -> RenderableType:
    table = layout.table("Lights", "Sky>", "Dark adds>", "Dark", "Flat adds>", "Flat")
    for line in lines:
        use = line.use
        dithered = "" if len(use.groups) > 1 or use.lights == 1 else ", not dithered"
        what = " ".join(part for part in (use.name, use.filter) if part)
        where = f" at {_celsius(use.temperature_c)}" if use.temperature_c is not None else ""
        table.add_row(
            *map(
                layout.cell,
                (
                    f"{what}: {use.lights} × {seconds(use.exposure_s)}{where}{dithered}",
                    f"{use.sky_e:.3g} e-",
                    _percent(line.dark.added),
                    _said(line.dark),
                    _percent(line.flat.added),
                    _said(line.flat),
                ),
            )
        )
    return table


def _said(part: Part) -> str:
    return f"{part.have or 'none'}: {part.advice}"


def _grid(cells: Sequence[Cell]) -> RenderableType:
    """Temperature down, exposure across."""
    exposures = sorted({cell.exposure_s for cell in cells})
    temperatures = sorted(
        {cell.temperature_c for cell in cells}, key=lambda t: (t is None, t), reverse=True
    )
    found = {(cell.exposure_s, cell.temperature_c): cell for cell in cells}
    table = layout.table("", *(f"{seconds(exposure)}>" for exposure in exposures))
    for temperature in temperatures:
        row = [layout.cell(_celsius(temperature))]
        for exposure in exposures:
            cell = found.get((exposure, temperature))
            if cell is None:
                row.append(layout.cell("·", style="dim"))
                continue
            text = str(cell.frames)
            text += f"/{cell.frames + cell.wanted}" if cell.wanted else ""
            text += f" ({cell.lights})" if cell.lights else ""
            row.append(layout.cell(text, style="yellow" if cell.wanted else ""))
        table.add_row(*row)
    return table


def _celsius(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 1) + 0.0:g} °C"


def _percent(added: float | None) -> str:
    return "-" if added is None else f"{100 * added:.2g} %"
