"""Which frames of a set are like the others, told by strips of their pixels.

Physics comes first (a frame that was cut short, a saturated or an empty flat), be these the
majority; then the frames vote. What single pixels betray is in `suspects`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from calib_library import suspects

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

STRIPS = 16
"""Places down the image at which a frame's level is compared with the others'."""
STRIP_ROWS = 8
SATURATED = 0.95
"""A flat whose level is above this fraction of saturation is no longer linear."""
FLAT_RATIO = 3.0
"""A flat this many times brighter or darker than the set's median is not one of them."""
BLOCKS = 4
"""Parts of a strip, side by side …"""
BLOCK_PIXELS = 3000
"""… of which so many pixels are enough for a level."""
HOT_SAMPLE = 100_000
"""Pixels of a frame, in whole strips, whose hot ones are compared."""
NOISE_STRIPS = 4
"""The noise is taken from every fourth strip."""
FLAT_SHAPE = 0.3
"""Flats differ by flicker bands of 13 %; a strip that differs by more than this is damaged."""


def strip_starts(height: int) -> list[int]:
    """Return first rows of the strips, even, so that each holds all Bayer phases."""
    last = max(0, height - STRIP_ROWS)
    return sorted({int(y) // 2 * 2 for y in np.linspace(0, last, STRIPS)})


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """What is kept of a frame's strips for the comparison with the others."""

    levels: list[float]
    """Of each strip, ADU."""
    noises: list[float]
    """Of a pixel, in some of the strips, ADU."""


@dataclasses.dataclass(frozen=True, slots=True)
class DarkLook(Look):
    """The same of a bias or a dark."""

    spreads: list[float]
    """Of each strip: σ of all that differs in it, ADU."""
    blocks: list[float]
    """Levels of the `BLOCKS` parts of each strip, ADU."""
    hot: Floats
    """Of those strips in which hot pixels are compared: by how much each pixel stands above its
    neighbours, (rows, nx) ADU.
    """


def look_at_dark(strips: Sequence[Floats], *, step: int) -> DarkLook:
    """Look at a bias or a dark by its strips, (rows, nx) each, ADU. `step` is 2 for a mosaic."""
    # All strips at once: threads that call numpy for small arrays only wait for each other.
    together = np.stack(strips)
    thin = max(1, strips[0].size // (BLOCKS * BLOCK_PIXELS))
    some = strips[:: max(1, together.size // HOT_SAMPLE)]
    blocks = [
        _trimmed_means(np.sort(block[:, :, ::thin].reshape(len(strips), -1), axis=1))
        for block in np.array_split(together, BLOCKS, axis=2)
    ]
    ordered = together.reshape(len(strips), -1)
    ordered.sort(axis=1)
    return DarkLook(
        levels=_trimmed_means(ordered).tolist(),
        noises=_noises(some, step),
        spreads=(1.4826 * _median_distances(ordered)).tolist(),
        blocks=np.stack(blocks, axis=1).reshape(-1).tolist(),
        hot=suspects.above_neighbours(np.concatenate(some), step),
    )


def _median_distances(ordered: Floats) -> Floats:
    """The median distance from the median, of each row of sorted values (n, number): (n,).

    The values nearest to the median stand side by side: it is the least, over all runs of so many,
    of the larger distance at a run's two ends.
    """
    middle = ordered.shape[1] // 2
    centre = ordered[:, middle : middle + 1]
    below = centre - ordered[:, : ordered.shape[1] - middle]
    above = ordered[:, middle:] - centre
    least: Floats = np.fmin.reduce(np.maximum(below, above, out=below), axis=1)
    return least


def look_at_flat(strips: Sequence[Floats], *, step: int) -> Look:
    """The same of a flat."""
    return Look([trimmed_mean(strip) for strip in strips], _noises(strips, step))


def _noises(strips: Sequence[Floats], step: int) -> list[float]:
    return [suspects.pixel_noise(strip, step=step) for strip in strips[::NOISE_STRIPS]]


def darks(
    looks: Sequence[DarkLook], *, starts: Sequence[int]
) -> tuple[list[str | None], str | None]:
    """Judge bias or dark frames whose strips begin at the rows `starts`: None, or what is wrong
    with it, for each; and what is wrong with all of them.
    """
    noise = float(np.median([spread for look in looks for spread in look.spreads]))
    reasons = judge_levels(np.array([look.levels for look in looks]), noise_adu=noise, rows=starts)
    _add(reasons, looks, lambda left: _judge_blocks(left, starts, noise))
    _add(reasons, looks, _judge_hot)
    alike = [look for look, reason in zip(looks, reasons, strict=True) if reason is None]
    # A leak makes the strips' own spread large: here the noise is that of single pixels.
    pixel = float(np.median([noise for look in looks for noise in look.noises]))
    blocks = np.array([look.blocks for look in alike])
    return reasons, suspects.disagreeing(blocks, noise_adu=pixel)


def flats(
    looks: Sequence[Look], *, base_adu: Doubles, saturation_adu: float | None
) -> list[str | None]:
    """The same of flats; `base_adu` (frames, strips) is what will be subtracted from them."""
    return judge_flats(
        np.array([look.levels for look in looks]),
        base_adu=base_adu,
        saturation_adu=saturation_adu,
        noise_adu=np.array([np.median(look.noises) for look in looks]),
    )


def _add(
    reasons: list[str | None],
    looks: Sequence[DarkLook],
    judge: Callable[[Sequence[DarkLook]], Sequence[str | None]],
) -> None:
    """Let a further rule judge the frames that are left; its reasons go into `reasons`."""
    left = [i for i, reason in enumerate(reasons) if reason is None]
    for i, reason in zip(left, judge([looks[i] for i in left]) if left else (), strict=True):
        reasons[i] = reason


def _judge_blocks(
    looks: Sequence[DarkLook], starts: Sequence[int], noise_adu: float
) -> Sequence[str | None]:
    """Judge darks once more by blocks of the strips: light leaks in at a side or a corner."""
    rows = [row for row in starts for _ in range(BLOCKS)]
    levels = np.array([look.blocks for look in looks])
    return judge_levels(levels, noise_adu=noise_adu, rows=rows)


def _judge_hot(looks: Sequence[DarkLook]) -> Sequence[str | None]:
    """Judge darks by their hot pixels, which show a warm sensor and another exposure."""
    noise = float(np.median([noise for look in looks for noise in look.noises]))
    ratios = suspects.hot_ratios([look.hot for look in looks], noise_adu=noise)
    return [None] * len(looks) if ratios is None else suspects.judge_hot_pixels(ratios)


def judge_levels(levels: Doubles, *, noise_adu: float, rows: Sequence[int]) -> list[str | None]:
    """Judge bias or dark frames by their levels (frames, strips), ADU: None, or what is wrong.

    `noise_adu` is the noise of a pixel, `rows` (strips,) are the strips' first rows. As a whole a
    frame must not differ from the median frame by more than 3 times the noise, 2 % of the level and
    6 robust standard deviations: that was an open cover; slow drifts stay. Then each strip, drifts
    taken off: by physics first (`_cut_short`), then by vote among those left.
    """
    centre = np.median(levels, axis=0)
    offsets = np.median(levels - centre, axis=1)
    reasons: list[str | None] = [None] * len(levels)
    if len(levels) >= 3:
        robust = 1.4826 * float(np.median(np.abs(offsets)))
        typical = float(np.median(centre))
        limit = max(6.0 * robust, 3.0 * noise_adu, 0.02 * abs(typical))
        for i in np.flatnonzero(np.abs(offsets) > limit).tolist():
            reasons[i] = (
                f"its level is {typical + offsets[i]:.0f} ADU "
                f"where the others have {typical:.0f} ADU"
            )
    even = levels - offsets[:, None]
    good = even[[reason is None for reason in reasons]]
    if len(good) < 2:
        return reasons
    limit = _gap_limit(good, noise_adu=noise_adu)
    if np.diff(np.sort(good, axis=0), axis=0).max() <= limit:
        return reasons  # they agree on every strip
    for judge in (_cut_short, _outvoted):
        for strip, row in enumerate(rows):
            left = [i for i, reason in enumerate(reasons) if reason is None]
            for i, reason in judge(even[left], strip, noise_adu=noise_adu).items():
                reasons[left[i]] = f"around row {row} its level is {reason}"
    return reasons


def _cut_short(levels: Doubles, strip: int, *, noise_adu: float) -> dict[int, str]:
    """Return the frames that hold too little in one strip, be they the majority.

    Dark current cannot fall: where frames disagree, those that lie below their own usual level, and
    the others do not, were not exposed or not read to the end.
    """
    groups = _two_groups(levels, strip, noise_adu=noise_adu)
    if groups is None:
        return {}
    low, high, limit = groups
    here, usual = levels[:, strip], np.median(levels, axis=1)
    fallen = here < usual - limit
    if not fallen[low].all() or fallen[high].any():
        return {}
    expected = np.median(here[high])
    return {i: f"{here[i]:.0f} ADU instead of {expected:.0f} ADU: it was cut short" for i in low}


def _outvoted(levels: Doubles, strip: int, *, noise_adu: float) -> dict[int, str]:
    """Return the smaller of two groups that disagree on one strip; equal ones are left alone."""
    groups = _two_groups(levels, strip, noise_adu=noise_adu)
    if groups is None or len(groups[0]) == len(groups[1]):
        return {}
    few, many = sorted(groups[:2], key=len)
    here = levels[:, strip]
    expected = np.median(here[many])
    return {i: f"{here[i]:.0f} ADU where the others have {expected:.0f} ADU" for i in few}


def _gap_limit(levels: Doubles, *, noise_adu: float) -> float:
    """Return how far apart levels (frames, strips) may lie, ADU: half the pixel noise, 1 % of the
    level or 6 times the frames' usual scatter.
    """
    scatter = 1.4826 * float(np.median(np.abs(levels - np.median(levels, axis=0))))
    return max(0.5 * noise_adu, 0.01 * abs(float(np.median(levels))), 6.0 * scatter)


def _two_groups(
    levels: Doubles, strip: int, *, noise_adu: float
) -> tuple[list[int], list[int], float] | None:
    """Split frames (frames, strips) at the widest gap between their levels in one strip.

    Returns (the lower, the higher, the limit in ADU); None where the gap is within it: they agree.
    """
    if len(levels) < 2:
        return None
    limit = _gap_limit(levels, noise_adu=noise_adu)
    order = np.argsort(levels[:, strip], kind="stable")
    gaps = np.diff(levels[order, strip])
    if gaps.max() <= limit:
        return None
    cut = int(np.argmax(gaps)) + 1
    return order[:cut].tolist(), order[cut:].tolist(), limit


def judge_flats(
    levels: Doubles,
    *,
    base_adu: Doubles,
    saturation_adu: float | None,
    noise_adu: Doubles | None = None,
) -> list[str | None]:
    """Judge flats by their levels (frames, strips), ADU, above `base_adu`, (strips,) or one a frame
    (frames, strips).

    Physics first: a saturated, an empty or a faint frame (`noise_adu` (frames,) is the noise of a
    pixel) is no flat, whatever the others are. Then the vote:
    a frame 3 times brighter or darker than the median, or one whose strips differ from the common
    shape by 30 %. Different exposures of a twilight are no fault.
    """
    signal = levels - base_adu
    noises = np.zeros(len(levels)) if noise_adu is None else noise_adu
    reasons: list[str | None] = []
    for row, light, noise in zip(levels, signal, noises, strict=True):
        if saturation_adu is not None and np.median(row) > SATURATED * saturation_adu:
            reasons.append(f"it is saturated (level {np.median(row):.0f} ADU)")
        elif np.median(light) <= 0:
            reasons.append(f"there is no light on it (level {np.median(row):.0f} ADU)")
        else:
            reasons.append(suspects.faint(float(np.median(light)), float(noise)))
    good = np.array([reason is None for reason in reasons])
    if good.sum() < 3:
        return reasons
    middle = np.median(signal, axis=1)
    typical = float(np.median(middle[good]))
    shape = signal[good] / middle[good, None]
    common = np.median(shape, axis=0)
    for i in np.flatnonzero(good):
        ratio = middle[i] / typical
        with np.errstate(divide="ignore", invalid="ignore"):
            departure = float(np.max(np.abs(signal[i] / middle[i] / common - 1.0)))
        if not 1.0 / FLAT_RATIO <= ratio <= FLAT_RATIO:
            reasons[i] = f"its level is {middle[i]:.0f} ADU where the others have {typical:.0f} ADU"
        elif departure > FLAT_SHAPE:
            reasons[i] = f"a part of it differs by {departure:.0%} from the other flats' shape"
    return reasons


def trimmed_mean(strip: Floats) -> float:
    """The mean of the middle four fifths: robust as a median, and not quantised as one."""
    # Sorting is ten times as fast as numpy's quantiles.
    return float(_trimmed_means(np.sort(strip.reshape(1, -1), axis=1))[0])


def _trimmed_means(ordered: Floats) -> Doubles:
    """The same of each row of sorted values (n, number): (n,)."""
    number = ordered.shape[1]
    tenth = number // 10
    means: Doubles = ordered[:, tenth : number - tenth].mean(axis=1, dtype=np.float64)
    return means
