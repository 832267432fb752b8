"""The dark of a plan, made of its masters' pixels; and what masters tell about the camera.

Images are (ny, nx) float32 ADU. Masters are read by rows, so that no more than some of each are in
memory. A hot pixel's signal is what stands out of the median of its 5×5 surroundings (of one colour
in a mosaic, `bayer=True`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from calib_library.dark_model import (
    BOLTZMANN_EV_K,
    ENERGIES_EV,
    LEAST_GAP_C,
    ZERO_C_IN_K,
    DarkPlan,
    dark_current,
)
from calib_library.kernels import kernel, side_by_side
from calib_library.local_median import local_median
from calib_library.robust import mad_sigma

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]
ReadRows = Callable[[int, int], Floats]
"""(first, last) → rows first … last − 1 of a master, (last − first, nx) float32 ADU."""

LOG_SIGMAS = 20.0
"""Hot signals that exceed their master's noise so many times are interpolated by logarithm."""
HARMFUL, WARN = 0.5, 0.3
"""In σ of the light: a pixel whose dark may be this wrong counts nothing; a warning is due where
the 99.5th percentile reaches this."""
MOST_HARMFUL = 0.01
"""A dark that is this wrong in more than this share of its pixels is refused."""
LEAST_PIXELS = 50
"""Fewer hot pixels tell no energy."""

TILE_ROWS = 128
_STEPS_PER_SIGMA = 100
BINS = 2 * _STEPS_PER_SIGMA
"""Of error over the light's noise; the last holds all that is larger."""


@dataclasses.dataclass(frozen=True, slots=True)
class LightNoise:
    """What a dark's error is measured against."""

    noise_adu: float
    """Of a pixel of the light without dark current of its own, ADU."""
    e_per_adu: float


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """How wrong a dark may be, as seen from a light."""

    errors: Counts
    """(bins,), as `Composed.errors`, of all its pixels."""

    @property
    def share_harmful(self) -> float:
        """The fraction of pixels whose light is harmed; 0 where there was none."""
        total = int(self.errors.sum())
        over = int(self.errors[round(HARMFUL * _STEPS_PER_SIGMA) :].sum())
        return over / total if total else 0.0

    @property
    def error_sigmas(self) -> float:
        """Error over the light's noise at the 99.5th percentile; 0 where there was no light."""
        total = int(self.errors.sum())
        place = int(np.searchsorted(np.cumsum(self.errors), 0.995 * total)) if total else 0
        return place / _STEPS_PER_SIGMA

    @property
    def refused(self) -> str | None:
        """Why this dark must not be used; None for a good one."""
        if self.share_harmful <= MOST_HARMFUL:
            return None
        return (
            f"the dark could be wrong by more than {HARMFUL:g} σ in {self.share_harmful:.1%} of "
            "the pixels: take darks nearer to the lights' temperature and exposure"
        )

    @property
    def warning(self) -> str | None:
        """What a person should know about a dark that is used; None where it is good."""
        if self.refused or self.error_sigmas < WARN:
            return None
        return (
            f"The dark may be wrong by {self.error_sigmas:.2f} σ of the light in its hot pixels: "
            "take darks nearer to the lights' temperature."
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Composed:
    """A dark, or some rows of one, and what is known of its error. Images are (ny, nx)."""

    dark: Floats
    """ADU, pedestal included."""
    error: Floats | None
    """ADU, 1 σ: what the model may be wrong by at each pixel. The masters' own noise is not in
    it."""
    doubt: Floats | None
    """ADU²: lights whose noise (without the pixel's own dark current) has a smaller variance are
    harmed, because the error exceeds half the noise. Such a pixel counts nothing."""
    errors: Counts
    """(ny, bins), how many pixels of each row may be wrong by so many hundredths of the light's
    noise, the last bin's by more; zeros where there was no light to judge by."""

    @property
    def judgement(self) -> Judgement:
        """Of all its rows."""
        return Judgement(self.errors.sum(axis=0))


def compose(
    made: DarkPlan,
    rows: Mapping[int, ReadRows],
    *,
    shape: tuple[int, int],
    bayer: bool,
    light: LightNoise | None = None,
    with_error: bool = True,
    noises: Mapping[int, float] | None = None,
    span: tuple[int, int] | None = None,
) -> Composed:
    """Make the dark of a plan, in tiles of rows.

    `rows`: master id → reader of its rows, each master (ny, nx) = `shape`. With `light` its pixels
    are judged; `with_error=False` saves the error's image. A plan of a single master gives that
    master's own pixels. `noises`: what `noise_of` gives of each master, where that is known. With
    `span` (first, last) only these rows are made, to the same bits; `first` is even. Besides the
    results a few rows of each master are in memory.
    """
    begin, end = (0, shape[0]) if span is None else span
    size = end - begin, shape[1]
    if noises is None:
        noises = {source.master_id: math.inf for source in made.sources}
        for leg in made.legs:
            for source in (leg.near, leg.other):
                if source is not None and leg.log:
                    reader = rows[source.master_id]
                    noises[source.master_id] = noise_of(reader, shape, bayer=bayer)
    sources = made.sources
    hot = np.array([w for _, w, _ in made.weights], np.float32)
    bulk = np.array([w for _, _, w in made.weights], np.float32)
    legs, floors = _log_legs(made, noises)
    dark = np.empty(size, np.float32)
    error = np.empty(size if with_error else (0, 0), np.float32)
    doubt = np.empty(size if light else (0, 0), np.float32)
    errors = np.zeros((size[0], BINS), np.int64)
    for first, last, values, smooth in _tiles(
        [rows[s.master_id] for s in sources], (begin, end), shape, bayer=bayer
    ):
        here = np.s_[first - begin : last - begin]
        tile = here if with_error else np.s_[:0]
        marks = here if light else np.s_[:0]
        side_by_side(
            _mix,
            last - first,
            values,
            smooth,
            hot,
            bulk,
            legs,
            floors,
            np.float32(made.relative_error),
            np.float32(made.relative_error_log),
            np.float32(light.noise_adu if light else 0.0),
            np.float32(1.0 / light.e_per_adu if light else 0.0),
            dark[here],
            error[tile],
            doubt[marks],
            errors[here],
        )
    return Composed(
        dark=dark,
        error=error if with_error else None,
        doubt=doubt if light else None,
        errors=errors,
    )


def _log_legs(
    made: DarkPlan, noises: Mapping[int, float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """(legs, 5): position of the first master, of the second or −1, share, u, ln c, so that a hot
    pixel's signal is c · h1^(1−u) · h2^u; and the least signal (masters,) for which it holds, ADU.
    """
    table, position = [], 0
    for leg in made.legs:
        second = -1 if leg.other is None else position + 1
        u = log_scale = 0.0
        if leg.other is not None and leg.log:
            t, t1, t2 = (
                c + ZERO_C_IN_K
                for c in (made.temperature_c, leg.near.temperature_c, leg.other.temperature_c)
            )
            u = (1.0 / t1 - 1.0 / t) / (1.0 / t1 - 1.0 / t2)
            log_scale = 1.5 * (math.log(t) - (1.0 - u) * math.log(t1) - u * math.log(t2))
        table.append((position, second, leg.share, u, log_scale))
        position += 1 if leg.other is None else 2
    floors = np.full(len(made.sources), np.inf, np.float32)
    at = 0
    for leg in made.legs:
        for source in (leg.near, *([leg.other] if leg.other else [])):
            if leg.log:
                floors[at] = LOG_SIGMAS * noises[source.master_id]
            at += 1
    return np.array(table, np.float64), floors


def _tiles(
    readers: Sequence[ReadRows], span: tuple[int, int], shape: tuple[int, int], *, bayer: bool
) -> Iterator[tuple[int, int, Floats, Floats]]:
    """(first, last, values, smooth) from the top of a span to its end; both (masters, rows, nx),
    smooth the median of the 5×5 pixels of one colour.
    """
    ny, nx = shape
    around = 4 if bayer else 2
    for first in range(*span, TILE_ROWS):
        last = min(first + TILE_ROWS, span[1])
        top, bottom = max(first - around, 0), min(last + around, ny)
        values = np.empty((len(readers), last - first, nx), np.float32)
        smooth = np.empty_like(values)
        for k, read in enumerate(readers):
            band = read(top, bottom)
            inner = slice(first - top, last - top)
            values[k] = band[inner]
            smooth[k] = local_median(band, bayer=bayer)[inner]
        yield first, last, values, smooth


@kernel(allocates=True)
def _mix(
    begin: int,
    end: int,
    values: Floats,
    smooth: Floats,
    hot: Floats,
    bulk: Floats,
    legs: npt.NDArray[np.float64],
    floors: Floats,
    relative: np.float32,
    relative_log: np.float32,
    noise: np.float32,
    adu_per_e: np.float32,
    dark: Floats,
    error: Floats,
    doubt: Floats,
    counts: Counts,
) -> None:
    """Fill rows of the dark; of the error, the doubt and the counts where asked for."""
    for y in range(begin, end):
        _mix_row(
            y, values, smooth, hot, bulk, legs, floors, relative, relative_log, noise, adu_per_e,
            dark, error, doubt, counts,
        )  # fmt: skip


@kernel(allocates=True)
def _mix_row(
    y: int, values: Floats, smooth: Floats, hot: Floats, bulk: Floats,
    legs: npt.NDArray[np.float64], floors: Floats, relative: np.float32, relative_log: np.float32,
    noise: np.float32, adu_per_e: np.float32, dark: Floats, error: Floats, doubt: Floats,
    counts: Counts,
) -> None:  # fmt: skip
    """One row, step by step in loops that the compiler turns into vector instructions."""
    masters, _, nx = values.shape
    level, signal = np.zeros(nx, np.float32), np.zeros(nx, np.float32)
    wrong = np.full(nx, relative)
    for k in range(masters):
        for x in range(nx):
            level[x] += bulk[k] * smooth[k, y, x]
            signal[x] += hot[k] * (values[k, y, x] - smooth[k, y, x])
    for leg in range(legs.shape[0]):
        a, b = int(legs[leg, 0]), int(legs[leg, 1])
        if b < 0 or floors[a] == np.inf or floors[b] == np.inf:
            continue
        for x in range(nx):
            h1 = values[a, y, x] - smooth[a, y, x]
            h2 = values[b, y, x] - smooth[b, y, x]
            if h1 > floors[a] and h2 > floors[b]:
                u = legs[leg, 3]
                alone = np.exp((1.0 - u) * np.log(h1) + u * np.log(h2) + legs[leg, 4])
                signal[x] -= hot[a] * h1 + hot[b] * h2
                signal[x] += np.float32(legs[leg, 2] * alone)
                wrong[x] = relative_log
    for x in range(nx):
        dark[y, x] = values[0, y, x] if masters == 1 else level[x] + signal[x]
        wrong[x] = abs(signal[x]) * wrong[x]
    if error.shape[0] > 0:
        for x in range(nx):
            error[y, x] = wrong[x]
    if doubt.shape[0] > 0:
        _doubt_row(signal, wrong, noise, adu_per_e, doubt[y], counts[y])


@kernel(allocates=True)
def _doubt_row(
    signal: Floats, wrong: Floats, noise: np.float32, adu_per_e: np.float32, doubt: Floats,
    counts: Counts,
) -> None:  # fmt: skip
    """What the error of one row does to lights: how often which share of their noise it is, and
    which lights it harms.
    """
    places = np.empty(signal.size, np.int32)
    last, nothing = np.float32(BINS - 1), np.float32(0.0)
    for x in range(signal.size):
        own = max(nothing, signal[x]) * adu_per_e
        steps = np.float32(_STEPS_PER_SIGMA) * wrong[x] / np.sqrt(noise * noise + own)
        # What is not finite compares false, and is as wrong as can be.
        places[x] = int(min(last, steps))
        most = wrong[x] / np.float32(HARMFUL)
        doubt[x] = most * most - own
    for place in places:
        counts[place] += 1


# --- what masters tell about the camera ----------------------------------------------------------


_BANDS, _BAND_ROWS = 16, 64


def _sampled(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(first, last) of bands of rows spread over the image: all of a small one."""
    ny = shape[0]
    starts = {int(y) // 2 * 2 for y in np.linspace(0, max(0, ny - _BAND_ROWS), _BANDS)}
    end = 0
    for start in sorted(starts):
        first = max(start, end)
        end = min(start + _BAND_ROWS, ny)
        if first < end:
            yield first, end


def sampled_hot(read: ReadRows, shape: tuple[int, int], *, bayer: bool) -> tuple[Floats, Floats]:
    """(what stands out of its 5×5 surroundings, the surroundings), each (n, nx) ADU, in bands of
    rows spread over a master: the same pixels of every master of one shape.
    """
    bands = [read(first, last) for first, last in _sampled(shape)]
    smooth = [local_median(band, bayer=bayer) for band in bands]
    hot = [band - level for band, level in zip(bands, smooth, strict=True)]
    return np.concatenate(hot), np.concatenate(smooth)


def noise_of(read: ReadRows, shape: tuple[int, int], *, bayer: bool) -> float:
    """The noise of a master's quiet pixels against their surroundings, ADU: 1.4826 MAD. The
    pedestal's own pattern is in it.
    """
    return robust_sigma(sampled_hot(read, shape, bayer=bayer)[0])


def robust_sigma(values: npt.NDArray[np.floating]) -> float:
    """1.4826 MAD of the finite values; at least that of rounding to a hundredth of an ADU."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return math.inf
    spread = mad_sigma(finite)
    return max(spread, 0.01 * 12**-0.5)


def hot_energy(
    first: Floats, second: Floats, *, first_c: float, second_c: float
) -> tuple[float, int] | None:
    """(activation energy in eV, pixels it was measured on) from the hot signals (ADU, of the same
    pixels and exposure) in masters of two temperatures: the median of the log ratios.

    Pixels count that stand 20 σ out in both. None where they are too few or tell no energy.
    """
    low = [LOG_SIGMAS * robust_sigma(one) for one in (first, second)]
    bright = (first > low[0]) & (second > low[1]) & np.isfinite(first) & np.isfinite(second)
    count = int(np.count_nonzero(bright))
    if count < LEAST_PIXELS or abs(first_c - second_c) < LEAST_GAP_C:
        return None
    ratio = float(np.median(np.log(second[bright].astype(np.float64) / first[bright])))
    t1, t2 = first_c + ZERO_C_IN_K, second_c + ZERO_C_IN_K
    energy = BOLTZMANN_EV_K * (ratio - 1.5 * math.log(t2 / t1)) / (1.0 / t1 - 1.0 / t2)
    return (energy, count) if ENERGIES_EV[0] <= energy <= ENERGIES_EV[1] else None


def bulk_energy(
    temperatures_c: Sequence[float], levels_adu: Sequence[float], *, error_adu: float
) -> float | None:
    """Activation energy (eV) of the smooth level from masters of one exposure at three or more
    temperatures: the E for which  level = c + b f(T; E)  fits best. The constant c takes the
    pedestal and the glow.

    `error_adu`: what a level may be wrong by. None where the levels do not rise by more than 20
    times that, tell no energy, or contradict the law (a black level that is clamped or drifts).
    """
    order = np.argsort(temperatures_c)
    celsius_, level = np.array(temperatures_c)[order], np.array(levels_adu, np.float64)[order]
    if len(set(celsius_.tolist())) < 3 or np.min(np.diff(celsius_)) < LEAST_GAP_C:
        return None
    if level[-1] - level[0] < LOG_SIGMAS * error_adu:
        return None

    def misfit(energy: float) -> float:
        current = np.array([dark_current(t, energy) for t in celsius_])
        current /= current[-1]
        x, y = current - current.mean(), level - level.mean()
        slope = float(x @ y / (x @ x))
        return float(np.sum((y - slope * x) ** 2)) if slope > 0 else math.inf

    energies = np.arange(ENERGIES_EV[0], ENERGIES_EV[1] + 1e-9, 0.001)
    misfits = [misfit(float(energy)) for energy in energies]
    best = int(np.argmin(misfits))
    if best in (0, len(energies) - 1):
        return None
    rms = math.sqrt(misfits[best] / len(level))
    return float(energies[best]) if rms < 0.05 * (level[-1] - level[0]) else None
