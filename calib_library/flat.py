"""Flat fields: their levels, their normalisation for division, and what can be wrong with them.

A colour camera's flat is four flats, one for each phase of the mosaic, 2 (y mod 2) + x mod 2: the
light of the panel has a colour of its own, and each phase is scaled by its own level.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library.combine import Rows
from calib_library.defects import FLAT_FLOOR

Floats = npt.NDArray[np.float32]

_SAMPLE = 250_000
"""Pixels of one phase that are enough for a level: 0.002 % of it at 30,000 e-."""


def levels(
    frame: npt.NDArray[np.generic] | Rows, *, bayer: bool, subtract: Floats | None = None
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
    # The levels of the phases of two rows, or of all pixels: (2, nx).
    phases = np.resize(level, (2, 2)) if bayer else np.full((2, 2), level[0])
    scale = np.tile(phases.astype(np.float32), (1, nx // 2 + 1))[:, :nx]
    for y in range(0, ny, 2):
        rows = flat[y : y + 2]
        np.divide(master[y : y + 2], scale[: len(rows)], out=rows)
        rows[~((rows > FLAT_FLOOR) & np.isfinite(rows))] = 0.0
    return flat


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
