"""What calibration left in a light, or took too much of: measured on the light itself.

A dark that was too cold leaves its hot pixels behind, a flat of another night its vignette; one
that took too much leaves them negative. Each measure is the *fraction of the master's own pattern*
that is still there: 0 where the master was right.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calib_library import dark_model
from daemon.light.noise import neighbour_noise

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

_WARM_SIGMA = 8.0  # excess over the dark's own noise from which a pixel is a witness
_MOST = 4000  # witnesses: their slope is good to 1 % long before
_STRIP = 16  # rows; strips are spread over the frame
_STRIPS = 24
_CAUCHY = 2.5  # stars and cosmic rays on a witness, and pixels that jump
_ROUNDS = 12
_LEAST_WITNESSES = 30
_BLOCKS = 4  # along each side, for the errors
_LEAST_FALLOFF = 0.02
_LEAST_GLOW = 0.02
_LEAST_NOISE_ADU = 0.5


class Estimate(NamedTuple):
    """A measured number and its standard error."""

    value: float
    error: float

    def differs(self, by: float, *, sigmas: float = 4.0) -> bool:
        """Is it away from 0 by more than `by`, and by more than so many errors?"""
        return abs(self.value) > max(by, sigmas * self.error)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Witnesses:
    """Warm pixels of a dark that tell, in a light, how much dark current the light has."""

    index: npt.NDArray[np.int64]
    """(n,) flat indices."""
    excess_adu: Doubles
    """(n,) ADU above the mean of the four same-colour neighbours, in the dark."""
    strength_adu: float
    """ADU, excess of a typical hot pixel: the median of the hottest 0.5 %; 0 in a quiet dark."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LargeScale:
    """The large-scale structure of a dark and of a flat over n cells, prepared once for all lights.

    None where there is no such master.
    """

    shape: tuple[int, int]
    """(cy, cx) of the cells."""
    plane: Doubles
    """(n, 3): 1, x and y."""
    glow: "_Pattern | None"
    """Of the dark, divided by the flat, without its median, ADU."""
    vignetting: "_Pattern | None"
    """Of the flat, less 1."""
    blocks: tuple[npt.NDArray[np.intp], ...]
    """The cells of each sixteenth of the frame."""


class _Pattern(NamedTuple):
    values: Doubles
    """(n,)"""
    beside: Doubles
    """(n,) without its best plane: a plane of the sky could not be told from it."""
    range: float
    """Of the master itself, 2 % to 98 %, without its plane; 0 where it is not finite."""


@dataclasses.dataclass(frozen=True, slots=True)
class Residuals:
    """What was found in one light; None where it cannot be told."""

    hot: Estimate | None
    """Hot-pixel signal of the light over the dark's, less 1: +0.1 means 10 % was left."""
    glow: Estimate | None
    """Fraction of the dark's large-scale structure that is left."""
    vignetting: Estimate | None
    """Fraction of the flat's large-scale structure that is left; negative: over-corrected."""
    added_noise: float | None
    """Noise of neighbouring pixels after calibration over that before, less 1."""
    unexplained_noise: float | None
    """Noise of neighbouring pixels over what photons and the camera's read noise make, less 1."""


def warm_pixels(dark: Floats, *, bayer: bool) -> Witnesses:
    """Pick witnesses from a dark (ny, nx) float32, ADU: pixels 8σ above their neighbours, from
    strips of rows all over the frame, at most 4000. Nothing is mutated.
    """
    ny, nx = dark.shape
    step = 2 if bayer else 1
    # Neither the border, which lacks neighbours, nor more rows than it takes.
    apart = max(_STRIP, (ny - 2 * step) // _STRIPS)
    y = np.arange(step, ny - step)
    y = y[(y - step) % apart < _STRIP]
    every = (y[:, None] * nx + np.arange(step, nx - step)).ravel()
    if not len(every):
        return Witnesses(every, np.empty(0), 0.0)
    excess = _excess(dark, every, step)
    spread = max(1.4826 * float(np.median(np.abs(excess))), 0.05)
    strength = float(np.quantile(excess, 0.9975))
    warm = np.isfinite(excess) & (excess > _WARM_SIGMA * spread)
    index, chosen = every[warm], excess[warm]
    if len(index) > _MOST:
        # The strongest say most.
        strongest = np.sort(np.argpartition(chosen, -_MOST)[-_MOST:])
        index, chosen = index[strongest], chosen[strongest]
    return Witnesses(index, chosen, strength if strength > _WARM_SIGMA * spread else 0.0)


def hot_residual(
    raw: npt.NDArray[Any],
    witnesses: Witnesses,
    *,
    noise_adu: float,
    saturation_adu: float,
    bayer: bool,
) -> Estimate | None:
    """How much more of the dark's hot-pixel signal a raw light (ny, nx), ADU, has: slope - 1.

    The same linear high-pass is taken of both, so the slope of a right dark is 1 whatever the
    neighbours are. Cauchy-weighted least squares (c = 2.5): stars on witnesses do not count.
    `noise_adu` is that of one pixel of the light. None with fewer than 30 witnesses.
    """
    step = 2 if bayer else 1
    usable = raw.ravel()[witnesses.index] < 0.9 * saturation_adu
    index, x = witnesses.index[usable], witnesses.excess_adu[usable]
    if len(index) < _LEAST_WITNESSES:
        return None
    y = _excess(raw, index, step)
    # Of a pixel less the mean of four.
    sigma = max(noise_adu, 0.3) * math.sqrt(1.25)
    fit = _robust(x[:, None], y, np.hypot(sigma, 0.02 * x))
    if fit is None:
        return None
    answer, weights = fit
    return Estimate(float(answer[0]) - 1.0, float((weights @ x**2) ** -0.5))


def warmer_by(
    hot: float, *, temperature_c: float, energy_ev: float = dark_model.ENERGY_EV
) -> float:
    """°C by which a light was warmer than its dark, from its hot residual (slope - 1 > -1).

    By `dark_model.relative_slope` (algorithms, section 1).
    """
    return math.log1p(hot) / dark_model.relative_slope(temperature_c, energy_ev)


def structure(dark_cells: Floats | None, flat_cells: Floats | None) -> LargeScale | None:
    """What `large_scale` needs of the masters, whose cells (cy, cx) are from `coarse`: a dark's in
    ADU, a flat's normalised. None where no flat tells how the light falls off, or there are fewer
    than four cells along a side: beside vignetting that no flat took off a glow could not be told.
    """
    if flat_cells is None or min(flat_cells.shape) < _BLOCKS:
        return None
    cy, cx = flat_cells.shape
    v, u = np.mgrid[-1 : 1 : cy * 1j, -1 : 1 : cx * 1j]
    plane = np.column_stack((np.ones(v.size), u.ravel(), v.ravel()))
    glow = None
    if dark_cells is not None and dark_cells.shape == flat_cells.shape:
        # What is left of it was divided by the flat; the dark's pedestal is not left.
        left = (dark_cells - np.median(dark_cells)) / flat_cells
        glow = _pattern(left, dark_cells, plane)
    vignetting = _pattern(flat_cells.astype(np.float64) - 1.0, flat_cells, plane)
    block = np.floor((v + 1.0) * _BLOCKS / 2.001) * _BLOCKS + np.floor((u + 1.0) * _BLOCKS / 2.001)
    blocks = tuple(np.flatnonzero(block == one) for one in np.unique(block))
    return LargeScale((cy, cx), plane, glow, vignetting, blocks)


def _pattern(values: npt.NDArray[Any], master: Floats, plane: Doubles) -> _Pattern:
    if not np.isfinite(master).all():
        return _Pattern(values.ravel(), values.ravel(), 0.0)
    low, high = np.quantile(_beside(master, plane), (0.02, 0.98))
    return _Pattern(values.ravel(), _beside(values, plane), float(high - low))


def _beside(pattern: npt.NDArray[np.floating[Any]], plane: Doubles) -> Doubles:
    values = pattern.ravel().astype(np.float64)
    return np.asarray(values - plane @ np.linalg.lstsq(plane, values, rcond=None)[0], np.float64)


def large_scale(
    cells: Floats, masters: LargeScale | None
) -> tuple[Estimate | None, Estimate | None]:
    """Fractions of the dark's and of the flat's large-scale pattern left in a light: (glow,
    vignetting). `cells` (cy, cx), ADU, are the calibrated light's, from `coarse`.

    They are fitted together with a plane, robustly. What a fit leaves over is not noise but sky: so
    the error is that of leaving out one sixteenth of the frame after the other, and with it the
    size of what is left over where the pattern is strong. A nebula that fills the middle still
    looks like vignetting that was left; none looks like vignetting that was over-corrected. None
    where the master has no pattern to speak of beside a plane (glow: less than the cells' scatter
    or 2 % of the sky; flat: 2 %), or the light no sky.
    """
    if masters is None or cells.shape != masters.shape:
        return None, None
    y = np.asarray(cells, np.float64)
    sky = float(np.median(y))
    scatter = _scatter(y)
    patterns: dict[str, tuple[Doubles, Doubles]] = {}
    glow, vignetting = masters.glow, masters.vignetting
    if glow is not None and glow.range > max(scatter, _LEAST_GLOW * sky):
        patterns["glow"] = glow.values, glow.beside
    if vignetting is not None and sky > 3.0 * scatter and vignetting.range > _LEAST_FALLOFF:
        patterns["vignetting"] = sky * vignetting.values, sky * vignetting.beside
    if not patterns:
        return None, None
    design = np.column_stack([*(values for values, _ in patterns.values()), masters.plane])
    floor = max(scatter, 1e-4 * abs(sky), 1e-6)
    fit = _robust(design, y.ravel(), np.full(y.size, floor))
    if fit is None:
        return None, None
    answer, weights = fit
    errors = _jackknife(design, y.ravel(), weights, masters.blocks)
    rest = y.ravel() - design @ answer
    found = {}
    for i, (name, (_, beside)) in enumerate(patterns.items()):
        misfit = _misfit(rest, beside)
        found[name] = Estimate(float(answer[i]), math.hypot(float(errors[i]), misfit))
    return found.get("glow"), found.get("vignetting")


def coarse(cells: Floats) -> Floats:
    """(cy/4, cx/4) medians of 4 × 4 of the cells (cy, cx) of `background.cell_means`: without
    stars.
    """
    cy, cx = (length // 4 for length in cells.shape)
    blocks = cells[: 4 * cy, : 4 * cx].reshape(cy, 4, cx, 4).swapaxes(1, 2)
    # A sort of sixteen takes a fraction of what `np.median` does; what is no number comes last.
    ordered = np.sort(blocks.reshape(cy, cx, 16), axis=-1)
    middle = (ordered[..., 7] + ordered[..., 8]) / np.float32(2.0)
    return np.asarray(np.where(np.isnan(ordered[..., 15]), np.nan, middle), np.float32)


def sky_noise(calibrated: Floats, flat: Floats | None, *, bayer: bool) -> float:
    """Noise of one pixel, ADU, of a calibrated mosaic by the differences of neighbours.

    Both are (n, nx), the same rows of a frame; what dividing by `flat` did to the noise is undone.
    """
    return neighbour_noise(calibrated if flat is None else calibrated * flat, bayer=bayer)


def added_noise(after_adu: float, before_adu: float) -> float | None:
    """The noise that calibration left, `sky_noise`, over that of the same rows when they were raw
    (`noise.neighbour_noise`), less 1.

    A master of too few frames adds its own noise; a right one takes the fixed pattern away, and the
    value is 0 or below. None where the raw frame has no noise to compare with.
    """
    return after_adu / before_adu - 1.0 if before_adu > _LEAST_NOISE_ADU else None


def unexplained_noise(
    after_adu: float,
    raw: npt.NDArray[Any],
    *,
    e_per_adu: float,
    read_noise_e: float,
    offset_adu: float,
) -> float | None:
    """`sky_noise` over √(S/G + R²/G²), ADU, less 1: S the median of the raw rows (n, nx) above the
    offset (algorithms, section 3). None below an offset that is another than the one measured.
    """
    level = float(np.median(raw)) - offset_adu
    variance = level / e_per_adu + (read_noise_e / e_per_adu) ** 2
    return after_adu / math.sqrt(variance) - 1.0 if variance > 0 else None


def _excess(image: npt.NDArray[Any], index: npt.NDArray[np.int64], step: int) -> Doubles:
    """Pixels at flat `index`, none of them at the border, less the mean of their 4 neighbours."""
    flat = image.ravel()
    nx = image.shape[1]
    around = sum(
        flat[index + shift].astype(np.float64) for shift in (-step, step, -step * nx, step * nx)
    )
    result: Doubles = flat[index].astype(np.float64) - around / 4.0
    return result


def _scatter(cells: Doubles) -> float:
    """Noise of one cell, from second differences along rows: a smooth sky has none."""
    second = cells[:, 2:] - 2.0 * cells[:, 1:-1] + cells[:, :-2]
    return 1.4826 * float(np.median(np.abs(second))) / math.sqrt(6.0) if second.size else 0.0


def _misfit(rest: Doubles, pattern: Doubles) -> float:
    """What is left over (n,), in units of the pattern (n,), both taken where the pattern is."""
    square = pattern * pattern
    return math.sqrt(float(square @ (rest * rest)) / float(square @ square))


def _robust(design: Doubles, y: Doubles, sigma: Doubles) -> tuple[Doubles, Doubles] | None:
    """Cauchy-weighted least squares of y (n,) on `design` (n, p): the answer (p,) and the weights
    (n,), which are inverse variances in the scatter that was found. None where it is degenerate.
    """
    weights = 1.0 / sigma**2
    columns = np.ascontiguousarray(design.T)
    for _ in range(_ROUNDS):
        weighted = columns * weights
        try:
            answer = np.linalg.solve(weighted @ design, weighted @ y)
        except np.linalg.LinAlgError:
            return None
        residual = (y - design @ answer) / sigma
        spread = max(1.0, 1.4826 * _median(np.abs(residual)))
        robust = 1.0 / (1.0 + (residual / (_CAUCHY * spread)) ** 2)
        weights = np.asarray(robust / (sigma * spread) ** 2, np.float64)
    return np.asarray(answer, np.float64), weights


def _median(values: Doubles) -> float:
    """Of values (n,), all of them finite: `np.median` asks more than once whether they are."""
    upper = len(values) // 2
    lower = upper - 1 + len(values) % 2
    ordered = np.partition(values, (lower, upper))
    return float(ordered[lower] + ordered[upper]) / 2.0


def _jackknife(
    design: Doubles, y: Doubles, weights: Doubles, blocks: Sequence[npt.NDArray[np.intp]]
) -> Doubles:
    """Errors (p,) of a weighted fit, each block (indices) left out in its turn."""
    normals, rights = [], []
    for block in blocks:
        part = design[block]
        weighted = part.T * weights[block]
        normals.append(weighted @ part)
        rights.append(weighted @ y[block])
    normal, right = np.array(normals), np.array(rights)
    without = np.linalg.solve(normal.sum(axis=0) - normal, (right.sum(axis=0) - right)[..., None])
    n = len(blocks)
    return np.asarray(np.sqrt((n - 1) * np.var(without[..., 0], axis=0)))
