"""Flat fields: their levels, their normalisation for division, and what can be wrong with them.

A colour camera's flat is four flats, one for each phase of the mosaic, 2 (y mod 2) + x mod 2: the
light of the panel has a colour of its own, and each phase is scaled by its own level.
"""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library.combine import Rows
from calib_library.defects import FLAT_FLOOR
from calib_library.kernels import side_by_side
from calib_library.made_dark import Mixed

Floats = npt.NDArray[np.float32]

BLOCK = 32
"""px: below this scale the dome is believed, above it the twilight."""

_SAMPLE = 250_000
"""Pixels of one phase that are enough for a level: 0.002 % of it at 30,000 e-."""

_ROWS = 64
"""An even number of rows that are in the cache while they are scaled."""


def levels(
    frame: npt.NDArray[np.generic] | Rows, *, bayer: bool, subtract: Floats | Mixed | None = None
) -> npt.NDArray[np.float64]:
    """Mean level (ADU) of the central quarter of a flat, of the frame (1,) or of each phase (4,).

    `frame` is (ny, nx) in ADU, or a reader, of which only the central rows are read. `subtract`
    (ny, nx), ADU, is taken off first. Pixels beyond 5 robust sigma (dust, stars, defects) and those
    that are not finite do not count; 0 where none is left.
    """
    ny, nx = frame.shape
    y0, y1 = 2 * (ny // 8), max(ny - 2 * (ny // 8), 1)
    x0, x1 = 2 * (nx // 8), max(nx - 2 * (nx // 8), 1)
    pedestal = frame.bzero if not isinstance(frame, np.ndarray) and frame.plain else 0.0
    phases = [(0, 0), (0, 1), (1, 0), (1, 1)] if bayer else [(0, 0)]
    step = 2 if bayer else 1
    thin = step * max(1, round(((y1 - y0) * (x1 - x0) / step**2 / _SAMPLE) ** 0.5))
    # Only the rows that are looked at are read: one, or a mosaic's two, of every `thin`.
    centre = [_rows(frame, y, min(y + step, y1))[:, x0:x1] for y in range(y0, y1, thin)]
    result = []
    for dy, dx in phases:
        rows = [part[dy, dx::thin] for part in centre if dy < len(part)]
        sample = np.array(rows, np.float64) + pedestal
        if subtract is not None:
            sample -= subtract[y0 + dy : y1 : thin, x0 + dx : x1 : thin]
        result.append(_clipped_mean(sample[np.isfinite(sample)]))
    return np.array(result)


def _rows(frame: npt.NDArray[np.generic] | Rows, y0: int, y1: int) -> npt.NDArray[Any]:
    return frame[y0:y1] if isinstance(frame, np.ndarray) else frame.rows(y0, y1)


def _clipped_mean(sample: npt.NDArray[np.float64]) -> float:
    if sample.size == 0:
        return 0.0
    centre = np.median(sample)
    # Quantised values may have no spread by this measure: never clip closer than 1 ADU.
    reach = max(5 * 1.4826 * float(np.median(np.abs(sample - centre))), 1.0)
    return float(sample[np.abs(sample - centre) <= reach].mean())


def scales(frame_levels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Factors (n, k) that bring flats of `frame_levels` (n, k), ADU, to their common level.

    k is 1, or 4 for the phases of a mosaic. The common level of each phase is the mean of the
    frames', so that the master keeps its native level. A frame without light gets the factor 0.
    """
    common = frame_levels.mean(axis=0)
    with np.errstate(divide="ignore"):
        return np.where(frame_levels > 0, common / frame_levels, 0.0)


def normalise(master: Floats, *, bayer: bool) -> Floats:
    """Scale a master flat (ny, nx), ADU, for division: mean 1 in its centre, phase by phase.

    Values up to 0.05, and those that are not finite, become 0: no light reaches those pixels, and
    `calibrate` treats them as bad. Raises ValueError where the centre has no light at all.
    """
    level = levels(master, bayer=bayer)
    if not (level > 0).all():
        raise ValueError("the flat has no light in its centre")
    ny, nx = master.shape
    flat = np.empty((ny, nx), np.float32)
    # The levels of the phases of some rows, or of all pixels.
    phases = np.resize(level, (2, 2)) if bayer else np.full((2, 2), level[0])
    scale = np.tile(phases.astype(np.float32), (_ROWS // 2, nx // 2 + 1))[:, :nx]

    def divide(first: int, last: int) -> None:
        for y in range(first * _ROWS, min(last * _ROWS, ny), _ROWS):
            rows = flat[y : y + _ROWS]
            np.divide(master[y : y + _ROWS], scale[: len(rows)], out=rows)
            rows[~((rows > FLAT_FLOOR) & np.isfinite(rows))] = 0.0

    side_by_side(divide, -(-ny // _ROWS))
    return flat


def with_twilight(dome: Floats, twilight: Floats, *, bayer: bool) -> Floats:
    """Give the dome's flat the large scale of the twilight's: dome × smooth(twilight / dome).

    Both (ny, nx) float32, as `normalise` returns them; so is the result, which is new. The screen
    of a dome is never even (2.5 % over a field), but its flats have photons enough for every pixel;
    of the twilight's the opposite is true. Smooth is: medians of blocks of about 32 px (each
    phase of a mosaic by itself), a median of 3×3 blocks, bicubic between their centres. Pixels that
    are 0 in the dome's flat stay 0; those that are 0 in either tell nothing.
    """
    flat = np.empty_like(dome)
    step = 2 if bayer else 1
    for dy, dx in np.ndindex(step, step):
        ours, theirs, out = (image[dy::step, dx::step] for image in (dome, twilight, flat))
        if ours.size:
            _enlarge_times(_smoothed(_medians(ours, theirs, BLOCK // step)), ours, out=out)
    return flat


def _medians(dome: Floats, twilight: Floats, block_px: int) -> npt.NDArray[np.float64]:
    """Medians of twilight / dome in blocks of one size, near `block_px`; NaN where all is dark."""
    edges = [
        np.linspace(0, size, max(1, round(size / block_px)) + 1).astype(int) for size in dome.shape
    ]
    medians = np.full((len(edges[0]) - 1, len(edges[1]) - 1), np.nan)
    for j, (y0, y1) in enumerate(itertools.pairwise(edges[0])):
        above, below = twilight[y0:y1], dome[y0:y1]
        ratio = np.divide(above, below, out=np.zeros_like(below), where=below > 0)
        for i, (x0, x1) in enumerate(itertools.pairwise(edges[1])):
            block = ratio[:, x0:x1]
            lit = block[block > 0]
            if lit.size:
                medians[j, i] = np.median(lit)
    return medians


def _smoothed(medians: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Median of 3×3; past the edges the slope goes on. Dark blocks take the others' median."""
    dark = np.isnan(medians)
    medians = np.where(dark, 1.0 if dark.all() else np.median(medians[~dark]), medians)
    around = np.lib.stride_tricks.sliding_window_view(_continued(medians, 1), (3, 3))
    return np.asarray(np.median(around, axis=(2, 3)))


def _continued(grid: npt.NDArray[np.float64], by: int) -> npt.NDArray[np.float64]:
    return np.pad(grid, by, mode="reflect", reflect_type="odd")


def _enlarge_times(grid: npt.NDArray[np.float64], image: Floats, *, out: Floats) -> None:
    """Write to `out` the image (ny, nx) × the grid, bicubic between the centres of its blocks (Keys
    1981, a = −1/2).
    """
    grid = _continued(grid, 2)
    row, column = (
        _cubic(size, count - 4) for size, count in zip(image.shape, grid.shape, strict=True)
    )
    wide = sum(grid[:, column[0] + k] * column[1][k] for k in range(4))
    for y, first in enumerate(row[0]):
        # No product of matrices: its bits may depend on the number of threads.
        out[y] = image[y] * sum(wide[first + k] * row[1][k, y] for k in range(4))


def _cubic(size: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For each of `size` pixels the first (size,) and the weights (4, size) of the four of `count`
    blocks, continued by two on either side, between which it lies.
    """
    at = (np.arange(size) + 0.5) * (count / size) - 0.5
    before = np.floor(at)
    t = at - before
    weights = [
        ((-0.5 * t + 1.0) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1.0,
        ((-1.5 * t + 2.0) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    ]
    return before.astype(np.int64) + 1, np.array(weights)


def half_split(
    first: Floats, first_variance: Floats, second: Floats, second_variance: Floats
) -> float:
    """Reduced χ² of two half sets of flats: 1 ± 0.02 where nothing but noise tells them apart.

    Masters (ny, nx) at the same level, ADU, and the variances of their means, ADU². It is a ratio
    of sums, Σ (a - b)² / Σ (v_a + v_b), because variances of few frames are themselves noisy; the
    farthest 0.1 % of the pixels are left out on both sides of the fraction.
    """
    difference = (first - second).astype(np.float64) ** 2
    variance = first_variance.astype(np.float64) + second_variance
    kept = difference <= np.quantile(difference, 0.999)
    total = float(variance[kept].sum())
    # A normal deviate squared loses 1.2 % of its mean with its largest 0.1 %.
    return float(difference[kept].sum()) / total / 0.9877 if total > 0 else float("inf")


def checks(
    frame_levels: npt.NDArray[np.float64],
    *,
    saturation_adu: float = 65535.0,
    flat: Floats | None = None,
) -> tuple[str, ...]:
    """Say in sentences what is wrong with a set of flats, and what to do; empty where nothing is.

    `frame_levels` (n, k), ADU above the pedestal, from `levels`; `flat` (ny, nx) the normalised
    master.
    """
    found: list[str] = []
    part = frame_levels / saturation_adu
    if part.max() > 0.85:
        found.append(
            f"Flats reach {part.max():.0%} of full scale, where sensors are no longer linear: "
            "expose them to 40–60 %."
        )
    if part.min() < 0.1:
        found.append(
            f"Flats have only {part.min():.1%} of full scale: their noise and their pedestal enter "
            "every light; expose them to 40–60 %."
        )
    brightness = frame_levels.mean(axis=1)
    if brightness.min() <= 0 or brightness.max() / brightness.min() > 3:
        found.append(
            "The levels of the flats differ by more than a factor of 3: one of them may be no flat."
        )
    if len(frame_levels) < 5:
        found.append(f"{len(frame_levels)} flats are few: take at least 5, better 30.")
    if flat is not None:
        dead = float((flat <= FLAT_FLOOR).mean())
        if dead > 0.01:
            found.append(
                f"{dead:.1%} of the flat's pixels get no light: something covers the sensor."
            )
    return tuple(found)
