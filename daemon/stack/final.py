# ruff: noqa: PLR0917 - a compiled kernel is called with its arguments in order
"""The exact stack, when all frames are there: two passes over row tiles, at bounded memory.

In each tile: the median of the frames → a gate around it → hysteresis, so that the faint edge of a
trail goes with its core (beyond 4 σ a value is out; beyond 2 σ it is out next to one that is, three
times over) → the weighted mean. Then the same once more around that mean. Unlike the live stack it
sees every value at once; the two agree to a fifth of the stack's noise.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from numba import prange

from calib_library.kernels import kernel
from daemon.stack.live import (
    CENTRE_VARIANCE,
    CONTRAST_SHARE,
    EMPIRICAL_FROM,
    MODEL_FREEDOM,
    SEEING_FLOOR,
    FrameTerms,
    StackImage,
)

Image = npt.NDArray[np.float32]
Flags = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]
RowSource = Callable[[int, int, int], Image]
"""(position, y0, y1) → (planes, y1 − y0, nx) f32: rows of that frame on the reference grid, before
scaling, NaN where it has nothing: `warp.warp_rows`."""
RejectedSink = Callable[[int, int, npt.NDArray[np.bool_]], None]
"""(position, y0, mask (planes, rows, nx)): the values of one frame left out of some rows."""

SEED_SIGMA = 4.0
GROW_SIGMA = 2.0
GROW_TIMES = 3
HALO = 2 * (GROW_TIMES + 1)
"""px around a tile that have a say in it: each pass looks at the neighbours once for the contrast
and three times for the growth."""
CANDIDATE = 1
REJECTED = 2
"""Flags; values grown in round i get REJECTED + i."""


@dataclasses.dataclass(frozen=True, slots=True)
class Final:
    """The finished stack."""

    image: StackImage
    rejected: Numbers
    """(n,) the share of each frame's values that was left out, per covered pixel."""


def combine(
    rows: RowSource,
    terms: Sequence[FrameTerms],
    *,
    shape: tuple[int, int, int],
    memory_bytes: int = 500_000_000,
    skies: Sequence[float] | None = None,
    on_rejected: RejectedSink | None = None,
    progress: Callable[[float], None] | None = None,
) -> Final:
    """Combine frames with rejection.

    rows: gives each frame's rows on the reference grid; asked tile by tile, for every frame in
    the order of `terms`, with 8 rows of overlap. terms: one for each frame, as for the live stack.
    shape: (planes, ny, nx). memory_bytes: for the tiles; the result does not depend on it. skies:
    ADU, the sky's level in each plane of the stack; None measures it on the first frame.
    progress is called with the share done, 0 … 1.

    Raises ValueError without frames, or where `rows` gives a wrong shape.
    """
    if not terms:
        raise ValueError("there are no frames to combine")
    planes, height, width = shape
    number = len(terms)
    if skies is None:
        skies = _measure_skies(rows, terms[0], shape)
    table = _table(terms)
    image = StackImage(
        mean=np.zeros(shape, np.float32),
        weight=np.zeros(shape, np.float32),
        variance=np.zeros(shape, np.float32),
        coverage=np.zeros((height, width), np.uint16),
    )
    # Values and their flags take 5 bytes each.
    affordable = memory_bytes // (5 * number * planes * width) - 2 * HALO
    step = int(np.clip(affordable, 16, height))
    values = np.empty((planes, number, min(step + 2 * HALO, height), width), np.float32)
    flags = np.empty(values.shape, np.uint8)
    left_out = np.zeros(number)
    covered = np.zeros(number)
    for first in range(0, height, step):
        last = min(first + step, height)
        y0, y1 = max(first - HALO, 0), min(last + HALO, height)
        inner = slice(first - y0, last - y0)
        tile, marks = values[:, :, : y1 - y0], flags[:, :, : y1 - y0]
        for position, frame in enumerate(terms):
            part = rows(position, y0, y1)
            if part.shape != (planes, y1 - y0, width):
                raise ValueError(f"rows of shape {part.shape} for frame {frame.index}")
            tile[:, position] = _scaled(part, frame, y0)
        for plane in range(planes):
            mean, weight, variance, count = _two_passes(
                tile[plane], marks[plane], table, float(skies[plane])
            )
            image.mean[plane, first:last] = mean[inner]
            image.weight[plane, first:last] = weight[inner]
            image.variance[plane, first:last] = variance[inner]
            np.maximum(image.coverage[first:last], count[inner], out=image.coverage[first:last])
        for position in range(number):
            out = marks[:, position, inner] >= REJECTED
            left_out[position] += np.count_nonzero(out)
            covered[position] += np.count_nonzero(~np.isnan(tile[:, position, inner]))
            if on_rejected is not None:
                on_rejected(position, first, out)
        if progress is not None:
            progress(last / height)
    return Final(image=image, rejected=left_out / np.maximum(covered, 1.0))


def _scaled(rows: Image, terms: FrameTerms, y0: int) -> Image:
    """Bring rows (planes, rows, nx) to the reference: scale · rows + plane."""
    y = np.arange(y0, y0 + rows.shape[1])[:, None]
    x = np.arange(rows.shape[2])
    planes = [a + bx * x + by * y for a, bx, by in terms.planes]
    return (terms.scale * rows.astype(np.float64) + np.array(planes)).astype(np.float32)


def _measure_skies(
    rows: RowSource, terms: FrameTerms, shape: tuple[int, int, int]
) -> tuple[float, ...]:
    """ADU, the median of each plane of one frame, in eight strips of four rows."""
    tops = np.linspace(0, max(shape[1] - 4, 0), 8).astype(int)
    strips = [
        _scaled(rows(0, int(top), min(int(top) + 4, shape[1])), terms, int(top)) for top in tops
    ]
    sample = np.concatenate(strips, axis=1).reshape(shape[0], -1)
    if np.isnan(sample).all():
        return (terms.sky_adu * terms.scale,) * shape[0]
    return tuple(float(sky) for sky in np.nanmedian(sample, axis=1))


def _table(terms: Sequence[FrameTerms]) -> Numbers:
    """What the gate asks of each frame, (n, 4): weight, σ² in ADU², ADU² a source adds per ADU,
    the relative seeing term.
    """
    weights = np.array([frame.weight for frame in terms])
    widths = np.array([frame.fwhm_px for frame in terms])
    width = weights @ widths / weights.sum()
    return np.column_stack(
        [
            weights,
            np.square([frame.sigma_adu for frame in terms]),
            [1.0 / frame.e_per_adu for frame in terms],
            np.abs((width / widths) ** 2 - 1.0) + SEEING_FLOOR,
        ]
    )


def _two_passes(
    values: Image, flags: Flags, table: Numbers, sky: float
) -> tuple[Image, Image, Image, npt.NDArray[np.uint16]]:
    """Mean, weight, variance and count (rows, nx) of one plane's tile (n, rows, nx); `flags` of
    the tile's shape is overwritten with what was rejected.
    """
    shape = values.shape[1:]
    centre = np.empty(shape, np.float32)
    spread = np.empty(shape, np.float32)
    weight = np.empty(shape, np.float32)
    count = np.empty(shape, np.uint16)
    _median_rows(values, centre, spread)
    for _ in range(2):
        _mark_rows(values, centre, spread, table, sky, flags)
        for times in range(GROW_TIMES):
            _grow_rows(flags, times)
        _mean_rows(values, flags, table, centre, spread, weight, count)
    variance = _variance(centre, spread, count, table, sky)
    return np.nan_to_num(centre, copy=False), weight, variance, count


def _variance(
    mean: Image, spread: Image, count: npt.NDArray[np.uint16], table: Numbers, sky: float
) -> Image:
    """ADU² of the mean: spread and noise model weighed as in the live stack, over n_eff."""
    weights = table[:, 0]
    typical = weights @ table[:, 1] / weights.sum()
    per_adu = weights @ table[:, 2] / weights.sum()
    worth = typical * weights.sum() ** 2 / (weights**2 @ table[:, 1]) / len(table)
    model = typical + per_adu * np.maximum(mean - sky, 0)
    freedom = np.maximum(count.astype(np.float64) - 1.0, 0.0)
    combined = (MODEL_FREEDOM * model + freedom * spread) / (MODEL_FREEDOM + freedom)
    seen = count > 0
    return np.where(seen, combined / (np.where(seen, count, 1) * worth), 0).astype(np.float32)


@kernel()
def _select(values: Image, number: int, rank: int) -> np.float32:
    """The value of `rank` (0 the smallest) among the first `number`, which are rearranged
    (Hoare's quickselect).
    """
    low, high = 0, number - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return np.float32(values[rank])


@kernel(parallel=True)
def _median_rows(values: Image, centre: Image, spread: Image) -> None:
    """Median (of two middle values the lower, because what disturbs is bright; NaN of none) and
    the variance by the median absolute deviation, 0 of fewer than EMPIRICAL_FROM.
    """
    number, height, width = values.shape
    for y in prange(height):
        buffer = np.empty(number, np.float32)
        for x in range(width):
            n = 0
            for i in range(number):
                if not np.isnan(values[i, y, x]):
                    buffer[n] = values[i, y, x]
                    n += 1
            spread[y, x] = 0
            if n == 0:
                centre[y, x] = np.nan
                continue
            middle = _select(buffer, n, (n - 1) // 2)
            centre[y, x] = middle
            if n >= EMPIRICAL_FROM:
                for i in range(n):
                    buffer[i] = abs(buffer[i] - middle)
                deviation = np.float32(1.4826) * _select(buffer, n, n // 2)
                spread[y, x] = deviation * deviation


@kernel(parallel=True)
def _mark_rows(
    values: Image, centre: Image, spread: Image, table: Numbers, sky: float, flags: Flags
) -> None:
    """Flag values beyond the inner gate as candidates and beyond the outer one as rejected."""
    number, height, width = values.shape
    for y in prange(height):
        for x in range(width):
            here = centre[y, x]
            contrast = 0.0
            for v in range(max(y - 1, 0), min(y + 2, height)):
                for u in range(max(x - 1, 0), min(x + 2, width)):
                    # A comparison with NaN is false.
                    if abs(centre[v, u] - here) > contrast:
                        contrast = float(abs(centre[v, u] - here))
            n = 0
            for i in range(number):
                n += not np.isnan(values[i, y, x])
            source = max(here - sky, 0.0)
            known = 1.0 + CENTRE_VARIANCE / max(n, 1)
            for i in range(number):
                away = abs(values[i, y, x] - here)
                noise = (table[i, 1] + source * table[i, 2]) * known
                sigma = np.sqrt(max(noise, spread[y, x] if n >= EMPIRICAL_FROM else 0.0))
                slack = table[i, 3] * source + CONTRAST_SHARE * contrast
                flag = 0
                if away > GROW_SIGMA * sigma + slack:
                    flag = CANDIDATE
                if away > SEED_SIGMA * sigma + slack:
                    flag = REJECTED
                flags[i, y, x] = flag


@kernel(parallel=True)
def _grow_rows(flags: Flags, times: int) -> None:
    """Reject candidates next to values rejected in the rounds before this one."""
    number, height, width = flags.shape
    for i in prange(number):
        for y in range(height):
            for x in range(width):
                if flags[i, y, x] != CANDIDATE:
                    continue
                for v in range(max(y - 1, 0), min(y + 2, height)):
                    for u in range(max(x - 1, 0), min(x + 2, width)):
                        if REJECTED <= flags[i, v, u] <= REJECTED + times:
                            flags[i, y, x] = REJECTED + 1 + times


@kernel(parallel=True)
def _mean_rows(
    values: Image,
    flags: Flags,
    table: Numbers,
    centre: Image,
    spread: Image,
    weight: Image,
    count: npt.NDArray[np.uint16],
) -> None:
    """Weighted mean, variance of one value, Σ weight and number of what is not rejected.

    Where nothing is left the centre stays.
    """
    number, height, width = values.shape
    for y in prange(height):
        for x in range(width):
            total, weights, n = 0.0, 0.0, 0
            for i in range(number):
                if flags[i, y, x] < REJECTED and not np.isnan(values[i, y, x]):
                    total += table[i, 0] * values[i, y, x]
                    weights += table[i, 0]
                    n += 1
            weight[y, x] = weights
            count[y, x] = n
            spread[y, x] = 0
            if n == 0:
                continue
            mean = total / weights
            squares = 0.0
            for i in range(number):
                if flags[i, y, x] < REJECTED and not np.isnan(values[i, y, x]):
                    squares += table[i, 0] * (values[i, y, x] - mean) ** 2
            centre[y, x] = mean
            if n > 1:
                spread[y, x] = squares / weights * n / (n - 1)
