"""What is missing from the library, and how many frames would be enough.

Per pixel, in electrons (`algorithms.md` section 2): a light has the variance v_L = S + D + R², a
master dark v_D = Σ w² (D + R²)/N over the darks it is interpolated from, a flat
v_F = S² [1/(N_f F) + R²/(N_f F²) + R²/(N_fd F²)]. M lights that were dithered into groups of n_j at
the same place average the masters' noise as K = M²/Σ n_j² of them would, so that calibration adds

    x = sqrt(1 + (M/K)(v_D + v_F)/v_L) − 1

of noise to the stack. Without dithering K is 1: more darks hardly help then, dithering does.
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from calib_library import dark_model
from calib_library.frame import CalibrationKey, FrameType
from calib_library.match import MasterRecord, same_exposure

GOAL = 0.01
"""Noise that each master may add to a stack, as a fraction."""
USUAL = 30
"""Frames of a master, where nothing asks for more."""
LEAST = 5
MOST = 100
"""More darks than this nobody takes: where so many are needed without dithering, dither."""
STEP_C = 5.0
"""Darks every so many °C can be interpolated."""
WIDEST_C = 20.0
"""Beyond this gap nothing is interpolated."""
TOLERANCE_C = 1.0
"""A dark this close in temperature is taken as it is."""


class Site(NamedTuple):
    """A camera in one of its settings: what darks and flats must share."""

    key: CalibrationKey
    row_order: str


@dataclasses.dataclass(frozen=True, slots=True)
class Noise:
    """What is known of a camera in one setting."""

    e_per_adu: float
    read_noise_e: float
    """e- rms."""
    dark_e_s: float
    """e- a second and pixel."""
    flat_e: float
    """Level of a flat, e-."""
    assumed: tuple[str, ...] = ()
    """What was not measured, in words."""


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """Lights that were taken, or that somebody plans to take, and that one dark serves."""

    site: Site
    filter: str | None
    exposure_s: float
    temperature_c: float | None
    groups: tuple[int, ...]
    """Lights at the same place on the sky to a pixel: (1, 1, …) dithered, (M,) not at all."""
    sky_e: float
    """e- a pixel in one light."""
    name: str
    """For a person: the target, or `plan`."""
    filter_name: str | None = None
    """As the camera's program writes it."""

    @property
    def lights(self) -> int:
        """How many."""
        return sum(self.groups)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """What one kind of master adds to the stack of a use."""

    kind: FrameType
    have: str
    """Which master serves, in words; empty where none does."""
    frames: int
    """How many are in it; the fewest where it is interpolated."""
    added: float | None
    """x, the fraction of noise that it adds by itself; None where there is none."""
    needed: int
    """Frames that bring it to the goal, for lights taken as these were."""
    needed_dithered: int
    """The same, were every light dithered."""
    advice: str
    """What to do, in words."""


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One use with its masters."""

    use: Use
    noise: Noise
    dark: Part
    flat: Part
    added: float | None
    """x of all masters together; None where one is missing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One square of the grid of darks: what there is, is used, is wanted."""

    site: Site
    exposure_s: float
    temperature_c: float | None
    frames: int
    """In the master that is there; 0 without."""
    lights: int
    """That were taken with this exposure at about this temperature."""
    wanted: int
    """Frames to take; 0 where nothing is missing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shot:
    """Calibration frames to take."""

    site: Site
    kind: FrameType
    exposure_s: float | None
    """None: by the light, 40 to 60 % of full scale."""
    temperature_c: float | None
    filter: str | None
    count: int
    why: str
    filter_name: str | None = None
    """As the camera's program writes it, for lists that it reads."""


@dataclasses.dataclass(frozen=True, slots=True)
class Advice:
    """Everything there is to say."""

    lines: tuple[Line, ...]
    grid: tuple[Cell, ...]
    shots: tuple[Shot, ...]


# --- the formula ---------------------------------------------------------------------------------


def independent(groups: Sequence[int]) -> float:
    """K = M²/Σ n_j²: of how many masters the dithered groups average the noise."""
    return sum(groups) ** 2 / sum(n * n for n in groups)


def light_variance(noise: Noise, *, sky_e: float, exposure_s: float) -> float:
    """Compute v_L = S + D + R², e-²."""
    return sky_e + noise.dark_e_s * exposure_s + noise.read_noise_e**2


def dark_variance(noise: Noise, *, exposure_s: float, parts: Sequence[tuple[float, int]]) -> float:
    """Compute v_D = Σ w² (D + R²)/N, e-², of a dark made of `parts`: (weight w, frames N) each."""
    one = noise.dark_e_s * exposure_s + noise.read_noise_e**2
    return sum(weight**2 * one / frames for weight, frames in parts)


def flat_variance(noise: Noise, *, sky_e: float, flats: int, pedestals: int) -> float:
    """Compute v_F, e-², of `flats` flats less a master of `pedestals` flat-darks or biases."""
    read2, level = noise.read_noise_e**2, noise.flat_e
    return sky_e**2 * (
        1 / (flats * level) + read2 / (flats * level**2) + read2 / (pedestals * level**2)
    )


def added_noise(light_e2: float, masters_e2: float, groups: Sequence[int]) -> float:
    """Compute x: the fraction of noise that masters of this variance add to the stack."""
    share = sum(groups) / independent(groups)
    return math.sqrt(1 + share * masters_e2 / light_e2) - 1


def frames_needed(light_e2: float, one_e2: float, groups: Sequence[int], goal: float) -> int:
    """How many frames bring a master under the goal, where one of them has the variance `one_e2`.

    At least LEAST, below which nothing is rejected.
    """
    share = sum(groups) / independent(groups)
    needed = share * one_e2 / light_e2 / ((1 + goal) ** 2 - 1)
    return max(LEAST, math.ceil(round(needed, 9)))


# --- advice --------------------------------------------------------------------------------------


def advise(
    uses: Sequence[Use],
    masters: Sequence[MasterRecord],
    noise: Mapping[Site, Noise],
    *,
    goal: float = GOAL,
) -> Advice:
    """Say what each use lacks, which darks the grid lacks, and what to take.

    `masters`: those in use, of these sites at least; `noise` has every site of `uses`. What is
    taken for one use serves the others too: the list asks for nothing twice.
    """
    stock = _Stock(masters)
    lines = tuple(_line(use, stock, noise[use.site], goal) for use in uses)
    grid = tuple(cell for site in _sites(uses) for cell in _grid(site, lines, stock))
    return Advice(lines, grid, (*_dark_shots(grid), *_flat_shots(lines, stock)))


class _Stock:
    """The masters, by site and kind."""

    def __init__(self, masters: Sequence[MasterRecord]) -> None:
        self._kept: dict[tuple[CalibrationKey, str, FrameType], list[MasterRecord]] = {}
        for master in sorted(masters, key=_exposure):
            place = (master.key, master.row_order, master.frame_type)
            self._kept.setdefault(place, []).append(master)

    def of(self, site: Site, kind: FrameType) -> list[MasterRecord]:
        return self._kept.get((*site, kind), [])

    def darks(self, site: Site, exposure_s: float) -> list[MasterRecord]:
        darks = self.of(site, FrameType.DARK)
        # Somewhat wider than the rule itself, which decides.
        first = bisect.bisect_left(darks, 0.98 * exposure_s - 0.002, key=_exposure)
        last = bisect.bisect_right(darks, 1.02 * exposure_s + 0.002, key=_exposure)
        return [dark for dark in darks[first:last] if same_exposure(dark.exposure_s, exposure_s)]

    def dark_at(
        self, site: Site, exposure_s: float, temperature_c: float | None
    ) -> MasterRecord | None:
        """The dark that can be taken as it is: the nearest in temperature, then the largest."""
        near = [
            (distance, -dark.frames, dark.id, dark)
            for dark in self.darks(site, exposure_s)
            if (distance := _apart(dark.temperature_c, temperature_c)) <= TOLERANCE_C
        ]
        return min(near)[-1] if near else None

    def flat(self, site: Site, filter_name: str | None) -> MasterRecord | None:
        """The newest flat of a filter."""
        flats = [one for one in self.of(site, FrameType.FLAT) if one.filter == filter_name]
        return max(flats, key=lambda one: (one.built_at, one.id), default=None)

    def pedestal(self, site: Site, flat: MasterRecord) -> MasterRecord | None:
        """What is subtracted from flats: flat-dark, dark or bias."""
        for kind in (FrameType.FLAT_DARK, FrameType.DARK):
            for one in self.of(site, kind):
                if same_exposure(one.exposure_s, flat.exposure_s):
                    return one
        return next(iter(self.of(site, FrameType.BIAS)), None)


def _exposure(master: MasterRecord) -> float:
    return -1.0 if master.exposure_s is None else master.exposure_s


def _apart(a_c: float | None, b_c: float | None) -> float:
    if a_c is None or b_c is None:
        return 0.0 if a_c is b_c else math.inf
    return round(abs(a_c - b_c), 1)


def _line(use: Use, stock: _Stock, noise: Noise, goal: float) -> Line:
    light = light_variance(noise, sky_e=use.sky_e, exposure_s=use.exposure_s)
    dark, dark_e2 = _dark_part(use, stock, noise, light, goal)
    flat, flat_e2 = _flat_part(use, stock, noise, light, goal)
    added = None
    if dark_e2 is not None and flat_e2 is not None:
        added = added_noise(light, dark_e2 + flat_e2, use.groups)
    return Line(use, noise, dark, flat, added)


def _dark_part(
    use: Use, stock: _Stock, noise: Noise, light: float, goal: float
) -> tuple[Part, float | None]:
    one = dark_variance(noise, exposure_s=use.exposure_s, parts=[(1.0, 1)])
    found = _dark_for(use, stock)
    parts = [(weight, dark.frames) for weight, dark in found]
    factor = math.fsum(weight**2 for weight, _ in found) if found else 1.0
    needed = frames_needed(light, factor * one, use.groups, goal)
    dithered = frames_needed(light, factor * one, (1,) * use.lights, goal)
    variance = dark_variance(noise, exposure_s=use.exposure_s, parts=parts) if found else None
    part = _part(FrameType.DARK, _in_words(found), parts, variance, needed, dithered, light, use)
    return part, variance


def _flat_part(
    use: Use, stock: _Stock, noise: Noise, light: float, goal: float
) -> tuple[Part, float | None]:
    one = flat_variance(noise, sky_e=use.sky_e, flats=1, pedestals=1)
    needed = frames_needed(light, one, use.groups, goal)
    dithered = frames_needed(light, one, (1,) * use.lights, goal)
    flat = stock.flat(use.site, use.filter)
    if flat is None:
        return _part(FrameType.FLAT, "", [], None, needed, dithered, light, use), None
    pedestal = stock.pedestal(use.site, flat)
    variance = flat_variance(
        noise,
        sky_e=use.sky_e,
        flats=flat.frames,
        pedestals=pedestal.frames if pedestal else flat.frames,
    )
    words = f"{flat.frames} flats of {flat.session}" if flat.session else f"{flat.frames} flats"
    parts = [(1.0, flat.frames)]
    return _part(FrameType.FLAT, words, parts, variance, needed, dithered, light, use), variance


def _part(
    kind: FrameType,
    have: str,
    parts: Sequence[tuple[float, int]],
    variance: float | None,
    needed: int,
    dithered: int,
    light: float,
    use: Use,
) -> Part:
    frames = min((n for _, n in parts), default=0)
    added = None if variance is None else added_noise(light, variance, use.groups)
    if frames >= needed:
        advice = "enough"
    elif needed > MOST and dithered < needed:
        advice = f"dither: {dithered} are then enough, instead of {needed}"
        if frames < dithered:
            advice += f"; take {max(dithered, USUAL) - frames}" + (" more" if frames else "")
    elif frames:
        advice = f"take {needed - frames} more" + (", or dither" if frames >= dithered else "")
    else:
        advice = f"take {max(needed, USUAL)}"
    return Part(kind, have, frames, added, needed, dithered, advice)


def _dark_for(use: Use, stock: _Stock) -> list[tuple[float, MasterRecord]]:
    """The darks that make one for these lights, with their weights (section 1, in its order)."""
    site, exposure, temperature = use.site, use.exposure_s, use.temperature_c
    exact = stock.dark_at(site, exposure, temperature)
    if exact:
        return [(1.0, exact)]
    if temperature is None:
        return []
    pair = _bracket(stock.darks(site, exposure), temperature)
    if pair:
        cold, warm = pair
        assert cold.temperature_c is not None
        assert warm.temperature_c is not None
        w = dark_model.weight_of_second(
            temperature, cold.temperature_c, warm.temperature_c, dark_model.ENERGY_EV
        )
        return [(1 - w, cold), (w, warm)]
    near = [
        dark
        for dark in stock.of(site, FrameType.DARK)
        if dark.exposure_s is not None and _apart(dark.temperature_c, temperature) <= TOLERANCE_C
    ]
    below = [dark for dark in near if (dark.exposure_s or 0.0) < exposure]
    above = [dark for dark in near if (dark.exposure_s or 0.0) > exposure]
    if not below or not above:
        return []
    short = max(below, key=lambda dark: (dark.exposure_s, dark.frames, dark.id))
    long = min(above, key=lambda dark: (dark.exposure_s, -dark.frames, dark.id))
    w = (exposure - (short.exposure_s or 0.0)) / (
        (long.exposure_s or 0.0) - (short.exposure_s or 0)
    )
    return [(1 - w, short), (w, long)]


def _bracket(
    darks: Sequence[MasterRecord], temperature_c: float
) -> tuple[MasterRecord, MasterRecord] | None:
    """The nearest colder and the nearest warmer dark, where they can be interpolated."""
    known = [(dark.temperature_c, dark) for dark in darks if dark.temperature_c is not None]
    cold = max((one for one in known if one[0] < temperature_c), key=lambda c: c[0], default=None)
    warm = min((one for one in known if one[0] > temperature_c), key=lambda c: c[0], default=None)
    if cold is None or warm is None or warm[0] - cold[0] > WIDEST_C:
        return None
    return cold[1], warm[1]


def _in_words(found: Sequence[tuple[float, MasterRecord]]) -> str:
    if not found:
        return ""
    if len(found) == 1:
        dark = found[0][1]
        where = "" if dark.temperature_c is None else f" at {_celsius(dark.temperature_c)}"
        return f"{dark.frames} darks{where}"
    (_, a), (_, b) = found
    if same_exposure(a.exposure_s, b.exposure_s):
        return (
            f"{a.frames} at {_celsius(a.temperature_c or 0.0)} with "
            f"{b.frames} at {_celsius(b.temperature_c or 0.0)}"
        )
    return f"{a.frames} of {a.exposure_s:g} s with {b.frames} of {b.exposure_s:g} s"


def _celsius(value: float) -> str:
    return f"{round(value, 1) + 0.0:g} °C"


# --- the grid ------------------------------------------------------------------------------------


def _sites(uses: Sequence[Use]) -> list[Site]:
    return list(dict.fromkeys(use.site for use in uses))


def _grid(site: Site, lines: Sequence[Line], stock: _Stock) -> list[Cell]:
    """The darks that a good library has for these lights, and all others that there are."""
    mine = [line for line in lines if line.use.site == site]
    wanted: dict[tuple[float, float | None], int] = {}
    for cluster in _clusters(mine):
        exposures = sorted({line.use.exposure_s for line in cluster})
        # Exposures between two are interpolated.
        ends = exposures if len(exposures) < 3 else [exposures[0], exposures[-1]]
        frames = max(_dark_goal(line) for line in cluster)
        for temperature in _temperatures(cluster):
            for exposure in ends:
                darks = stock.darks(site, exposure)
                if _bracketed(darks, temperature) or _serve(darks, temperature, cluster):
                    continue
                # The dark that is there may be grown: it has its own square.
                there = stock.dark_at(site, exposure, temperature)
                place = _place(exposure, there.temperature_c if there else temperature)
                wanted[place] = max(frames, wanted.get(place, 0))
    have: dict[tuple[float, float | None], int] = {}
    for dark in stock.of(site, FrameType.DARK):
        if dark.exposure_s is not None:
            place = _place(dark.exposure_s, dark.temperature_c)
            have[place] = max(dark.frames, have.get(place, 0))
    cells = []
    for exposure, temperature in dict.fromkeys([*wanted, *have]):
        goal = wanted.get((exposure, temperature), 0)
        dark_there = stock.dark_at(site, exposure, temperature) if goal else None
        frames = dark_there.frames if dark_there else have.get((exposure, temperature), 0)
        lights = sum(
            line.use.lights
            for line in mine
            if same_exposure(line.use.exposure_s, exposure)
            and _apart(line.use.temperature_c, temperature) <= TOLERANCE_C
        )
        cells.append(Cell(site, exposure, temperature, frames, lights, max(0, goal - frames)))
    return sorted(cells, key=lambda c: (c.exposure_s, c.temperature_c is None, c.temperature_c))


def _place(exposure_s: float, temperature_c: float | None) -> tuple[float, float | None]:
    """A square of the grid: three digits of the exposure, whole degrees; for display only."""
    return float(f"{exposure_s:.3g}"), None if temperature_c is None else float(
        round(temperature_c)
    )


def _dark_goal(line: Line) -> int:
    """Frames that a dark should have: what the goal asks for, within what anybody takes."""
    part = line.dark
    needed = part.needed if part.needed <= MOST else part.needed_dithered
    return min(MOST, max(needed, LEAST if part.have else USUAL))


def _clusters(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines whose temperatures follow one another within the step of a good library."""
    known = sorted(
        (line for line in lines if line.use.temperature_c is not None),
        key=lambda line: line.use.temperature_c or 0.0,
    )
    clusters: list[list[Line]] = []
    for line in known:
        last = clusters[-1][-1].use.temperature_c if clusters else None
        if last is not None and (line.use.temperature_c or 0.0) - last <= STEP_C:
            clusters[-1].append(line)
        else:
            clusters.append([line])
    unknown = [line for line in lines if line.use.temperature_c is None]
    return [*clusters, *([unknown] if unknown else [])]


def _temperatures(cluster: Sequence[Line]) -> list[float | None]:
    """One temperature for lights that keep to it, else every 5 °C across those used."""
    known = [one for line in cluster if (one := line.use.temperature_c) is not None]
    if not known:
        return [None]
    low, high = min(known), max(known)
    if high - low <= 2 * TOLERANCE_C:
        lights = [line.use.lights for line in cluster]
        mean = sum(n * t for n, t in zip(lights, known, strict=True)) / sum(lights)
        return [float(round(mean))]
    first, last = math.floor(low / STEP_C), math.ceil(high / STEP_C)
    return [STEP_C * step for step in range(first, last + 1)]


def _bracketed(darks: Sequence[MasterRecord], temperature_c: float | None) -> bool:
    """Do darks on both sides, 5 °C apart at most, make one for this temperature as good?"""
    if temperature_c is None or any(
        _apart(dark.temperature_c, temperature_c) <= TOLERANCE_C for dark in darks
    ):
        return False  # the one that is there may be grown
    pair = _bracket(darks, temperature_c)
    if pair is None:
        return False
    cold, warm = pair
    return (warm.temperature_c or 0.0) - (cold.temperature_c or 0.0) <= STEP_C + 0.5


def _serve(
    darks: Sequence[MasterRecord], temperature_c: float | None, cluster: Sequence[Line]
) -> bool:
    """Do other darks serve all lights for which one of this temperature is wanted? It is the end
    of a grid that reaches beyond lights of wandering temperature.
    """
    near = [
        line.use.temperature_c
        for line in cluster
        if _apart(line.use.temperature_c, temperature_c) < STEP_C
    ]
    return (
        bool(near)
        and all(
            _bracketed(darks, one)
            or any(_apart(d.temperature_c, one) <= TOLERANCE_C for d in darks)
            for one in near
        )
        and not any(_apart(dark.temperature_c, temperature_c) <= TOLERANCE_C for dark in darks)
    )


# --- shots ---------------------------------------------------------------------------------------


def _dark_shots(grid: Sequence[Cell]) -> list[Shot]:
    return [
        Shot(
            site=cell.site,
            kind=FrameType.DARK,
            exposure_s=cell.exposure_s,
            temperature_c=cell.temperature_c,
            filter=None,
            count=cell.wanted,
            why=f"{cell.frames} of {cell.frames + cell.wanted} are there",
        )
        for cell in grid
        if cell.wanted
    ]


def _flat_shots(lines: Sequence[Line], stock: _Stock) -> list[Shot]:
    """Flats of each filter that has too few, and flat-darks where flats have no pedestal."""
    shots: dict[tuple[Site, str | None], Shot] = {}
    pedestals: dict[Site, Shot] = {}
    for line in lines:
        use, part = line.use, line.flat
        needed = part.needed if part.needed <= MOST else part.needed_dithered
        count = min(MOST, max(needed, LEAST if part.frames else USUAL)) - part.frames
        flat = stock.flat(use.site, use.filter)
        place = (use.site, use.filter)
        if count > 0 and (place not in shots or shots[place].count < count):
            # A flat belongs to its session: those of another night are no part of a new set.
            why = "there are none of this filter" if not part.frames else part.advice
            shots[place] = Shot(
                site=use.site,
                kind=FrameType.FLAT,
                exposure_s=None,
                temperature_c=None,
                filter=use.filter,
                count=count + part.frames,
                why=why,
                filter_name=use.filter_name,
            )
        # A dark that was made of several may have served it.
        bare = flat is not None and flat.subtracted is None
        if flat is not None and bare and stock.pedestal(use.site, flat) is None:
            pedestals[use.site] = Shot(
                site=use.site,
                kind=FrameType.FLAT_DARK,
                exposure_s=flat.exposure_s,
                temperature_c=flat.temperature_c,
                filter=None,
                count=USUAL,
                why="nothing can be subtracted from the flats",
            )
    return [*shots.values(), *pedestals.values()]
