"""The sigma clip of many frames' values at each pixel: the kernels of `combine`.

The values are sorted, 64 neighbouring pixels at a time: a sorting network is a fixed list of
compare-and-swap steps, and each step works on 64 pixels side by side, which the compiler turns into
vector instructions. In sorted order the clipped values lie at the two ends, so that what is kept is
always a range.
"""

import math
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from calib_library.kernels import aligned, kernel

LANES = 64
"""Pixels sorted side by side: one cache line of uint16 twice, small enough for any first cache."""
_ALL_SETTLED = np.uint64(0x0101010101010101)
"""Eight times True."""

Floats = npt.NDArray[np.float32]


def sorting_network(n: int) -> npt.NDArray[np.int32]:
    """Steps (i, j), i < j, that sort any n values: swap so that value i ≤ value j. Shape (k, 2).

    Batcher's merge exchange: Knuth, The Art of Computer Programming 3, section 5.2.2, algorithm M.
    """
    rounds = [np.empty((0, 2), np.int32)]
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top if n > 1 else 0
    while p > 0:
        q, r, d = top, 0, p
        while True:
            i = np.arange(n - d, dtype=np.int32)
            i = i[i & p == r]
            rounds.append(np.stack((i, i + d), axis=1))
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return np.concatenate(rounds).astype(np.int32, copy=False)


@kernel()
def sort_lanes(values: npt.NDArray[Any], network: npt.NDArray[np.int32]) -> None:
    """Sort every column of `values` (n, LANES) in place, ascending."""
    for step in range(network.shape[0]):
        low = values[network[step, 0]]
        high = values[network[step, 1]]
        for lane in range(LANES):
            a = low[lane]
            b = high[lane]
            low[lane] = min(a, b)
            high[lane] = max(a, b)


@kernel()
def _median_of(values: npt.NDArray[Any], lane: int, first: int, last: int) -> float:
    """Median of the sorted values first … last - 1 of one lane."""
    middle = (first + last) // 2
    centre = np.float64(values[middle, lane])
    if (last - first) % 2 == 0:
        centre = 0.5 * (centre + np.float64(values[middle - 1, lane]))
    return centre


@kernel()
def _moments(
    values: npt.NDArray[Any], lane: int, first: int, last: int, centre: float
) -> tuple[float, float]:
    """(Σ d, Σ d²) of the differences d of the values first … last - 1 from `centre`."""
    total = 0.0
    squares = 0.0
    for k in range(first, last):
        difference = np.float64(values[k, lane]) - centre
        total += difference
        squares += difference * difference
    return total, squares


@kernel()
def _moved(total: float, squares: float, count: int, step: float) -> tuple[float, float]:
    """The moments of so many values about a centre that is higher by `step`."""
    return total - count * step, squares + step * (count * step - 2.0 * total)


@kernel()
def _clip_lane(
    values: npt.NDArray[Any],
    lane: int,
    last: int,
    total: float,
    squares: float,
    whole: int,
    sigma: float,
    iterations: int,
) -> tuple[float, float, int]:
    """(mean, variance of the mean, count) of what the clip keeps of values 0 … last - 1, whose
    moments about their median are `total` and `squares`.

    `whole` numbers are summed without an error: what is dropped is taken off the moments. Those of
    others are summed anew: beside a wild value the small ones are lost in rounding.
    """
    first = 0
    centre = _median_of(values, lane, 0, last)
    for _ in range(iterations):
        kept = last - first
        reach = sigma * math.sqrt(max(0.0, squares - total * (total / kept)) / kept)
        low, high = centre - reach, centre + reach
        while first < last and np.float64(values[first, lane]) < low:
            d = np.float64(values[first, lane]) - centre
            total -= d
            squares -= d * d
            first += 1
        while last > first and np.float64(values[last - 1, lane]) > high:
            last -= 1
            d = np.float64(values[last, lane]) - centre
            total -= d
            squares -= d * d
        count = last - first
        if count == kept:
            break
        if count == 0:
            return 0.0, 0.0, 0
        median = _median_of(values, lane, first, last)
        if whole:
            total, squares = _moved(total, squares, count, median - centre)
        else:
            total, squares = _moments(values, lane, first, last, median)
        centre = median
    kept = last - first
    shift = total / kept
    about_mean = max(0.0, squares - total * shift)
    return centre + shift, about_mean / (kept - 1) / kept if kept > 1 else 0.0, kept


@kernel()
def _sums(values: npt.NDArray[Any], totals: npt.NDArray[Any], squares: npt.NDArray[Any]) -> None:
    """Σ d and Σ d² of the differences d of sorted `values` (n, LANES) from their middle one."""
    middle = values[values.shape[0] // 2]
    totals[:] = 0
    squares[:] = 0
    for k in range(values.shape[0]):
        row = values[k]
        for lane in range(LANES):
            d = totals.dtype.type(row[lane]) - totals.dtype.type(middle[lane])
            totals[lane] += d
            squares[lane] += d * d


@kernel()
def _first_look(
    values: npt.NDArray[Any],
    totals: npt.NDArray[Any],
    squares: npt.NDArray[Any],
    settled: npt.NDArray[np.bool_],
    widest: float,
    offset: float,
    sigma: float,
    mean: Floats,
    variance: Floats,
    count: npt.NDArray[np.uint16],
) -> None:
    """Combine the lanes in which the clip drops nothing, all side by side; `settled` says which.

    `widest` is the spread of values up to which the sums hold. What is so near the limit that
    rounding could decide is left to the exact clip; so the limit needs no root and no quotient.
    """
    n = values.shape[0]
    lowest, highest = values[0], values[n - 1]
    below, middle = values[(n - 1) // 2], values[n // 2]
    limit = sigma * sigma * (1.0 - 1e-6)
    for lane in range(mean.size):
        origin = np.float64(middle[lane])
        centre = 0.5 * (np.float64(below[lane]) + origin)
        low, high = np.float64(lowest[lane]), np.float64(highest[lane])
        total = np.float64(totals[lane])
        shift = total / n
        about_mean = max(0.0, np.float64(squares[lane]) - total * shift)
        reach = max(centre - low, high - centre)
        settled[lane] = (reach * reach * n <= limit * about_mean) & (high - low <= widest)
        mean[lane] = origin + shift + offset
        variance[lane] = about_mean / (n - 1) / n
        count[lane] = n


@kernel()
def _clip_block(
    values: npt.NDArray[Any],
    totals: npt.NDArray[Any],
    squares: npt.NDArray[Any],
    settled: npt.NDArray[np.bool_],
    eights: npt.NDArray[np.uint64],
    whole: int,
    widest: float,
    offset: float,
    sigma: float,
    iterations: int,
    want_median: int,
    mean: Floats,
    variance: Floats,
    count: npt.NDArray[np.uint16],
) -> None:
    """Combine sorted `values` (n, LANES) into the three results, one element a lane.

    `offset` is added to the mean; `whole`: the values are whole numbers; the rest is `Scratch`.
    In nineteen pixels of twenty nothing is dropped: these are done together, the others one by one.
    """
    n = values.shape[0]
    if want_median or n == 1:
        settled[:] = False
    else:
        _sums(values, totals, squares)
        _first_look(values, totals, squares, settled, widest, offset, sigma, mean, variance, count)
    for eight in range(eights.size):
        if eights[eight] == _ALL_SETTLED:
            continue
        for lane in range(8 * eight, min(8 * eight + 8, mean.size)):
            if settled[lane]:
                continue
            finite = n
            while finite > 0 and not np.isfinite(values[finite - 1, lane]):
                finite -= 1
            if finite == 0:
                mean[lane], variance[lane], count[lane] = 0.0, 0.0, 0
                continue
            centre = _median_of(values, lane, 0, finite)
            if want_median:
                mean[lane], variance[lane], count[lane] = centre + offset, 0.0, finite
                continue
            spread = np.float64(values[n - 1, lane]) - np.float64(values[0, lane])
            if whole and n > 1 and spread <= widest:
                step = centre - np.float64(values[n // 2, lane])
                total, about = _moved(float(totals[lane]), float(squares[lane]), n, step)
            else:
                total, about = _moments(values, lane, 0, finite, centre)
            kept_mean, variance[lane], kept = _clip_lane(
                values, lane, finite, total, about, whole, sigma, iterations
            )
            mean[lane] = kept_mean + offset if kept > 0 else 0.0
            count[lane] = kept


class Scratch(NamedTuple):
    """Memory for the kernels, which load in two thirds of the time where they make none."""

    values: npt.NDArray[Any]
    """(n, LANES)."""
    totals: npt.NDArray[Any]
    """(LANES,)."""
    squares: npt.NDArray[Any]
    """(LANES,)."""
    settled: npt.NDArray[np.bool_]
    """(LANES,)."""
    eights: npt.NDArray[np.uint64]
    """(LANES / 8,): the memory of `settled`, eight pixels in a number."""

    @classmethod
    def of(cls, n: int, dtype: npt.DTypeLike, sums: npt.DTypeLike) -> Self:
        """For n frames of this type, whose sums are of that one."""
        values = aligned((n, LANES), dtype)
        totals, squares = aligned((LANES,), sums), aligned((LANES,), sums)
        settled = aligned((LANES,), np.bool_)
        return cls(values, totals, squares, settled, settled.view(np.uint64))


@kernel()
def clip_integers(
    tile: npt.NDArray[np.uint16],
    offset: float,
    network: npt.NDArray[np.int32],
    values: npt.NDArray[np.uint16],
    totals: npt.NDArray[np.int32],
    squares: npt.NDArray[np.int32],
    settled: npt.NDArray[np.bool_],
    eights: npt.NDArray[np.uint64],
    sigma: float,
    iterations: int,
    want_median: int,
    mean: Floats,
    variance: Floats,
    count: npt.NDArray[np.uint16],
) -> None:
    """Combine a tile (n, rows, nx) of big-endian int16 pixels, as stored.

    With the sign bit flipped, the stored numbers sort as unsigned ones. `offset` is added to the
    mean of those, which is that of the stored numbers + 32768.
    """
    n, height, nx = tile.shape
    widest = math.sqrt(2.0**31 / n)  # ADU, so that the sums of squares stay whole numbers of 32 bit
    for y in range(height):
        for x in range(0, nx, LANES):
            width = min(LANES, nx - x)
            for k in range(n):
                source = tile[k, y, x : x + width]
                target = values[k]
                for lane in range(width):
                    v = source[lane]
                    target[lane] = ((v >> 8) | (v << 8)) ^ 0x8000
            sort_lanes(values, network)
            end = x + width
            _clip_block(
                values, totals, squares, settled, eights, 1, widest, offset, sigma, iterations,
                want_median, mean[y, x:end], variance[y, x:end], count[y, x:end],
            )  # fmt: skip


@kernel()
def clip_floats(
    tile: Floats,
    y0: int,
    dark: Floats,
    scales: Floats,
    network: npt.NDArray[np.int32],
    factors: Floats,
    values: Floats,
    totals: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
    settled: npt.NDArray[np.bool_],
    eights: npt.NDArray[np.uint64],
    sigma: float,
    iterations: int,
    want_median: int,
    mean: Floats,
    variance: Floats,
    count: npt.NDArray[np.uint16],
) -> None:
    """Combine (tile - dark) × scale, tile (n, rows, nx) whose first row is row y0 of the frame.

    `dark` (rows, nx), or (0, 0) for none; `scales` (n, 4) by Bayer phase. `factors` (n, LANES) is
    scratch too.
    """
    n, height, nx = tile.shape
    has_dark = dark.shape[0] > 0
    largest = np.float32(3.4e38)
    for y in range(height):
        phase = 2 * ((y0 + y) % 2)
        for k in range(n):
            for lane in range(LANES):  # LANES is even: a lane's parity is its column's
                factors[k, lane] = scales[k, phase + lane % 2]
        for x in range(0, nx, LANES):
            width = min(LANES, nx - x)
            for k in range(n):
                source = tile[k, y, x : x + width]
                target = values[k]
                factor = factors[k]
                if has_dark:
                    pedestal = dark[y, x : x + width]
                    for lane in range(width):
                        target[lane] = (source[lane] - pedestal[lane]) * factor[lane]
                else:
                    for lane in range(width):
                        target[lane] = source[lane] * factor[lane]
                for lane in range(width):  # what is not finite sorts to the end
                    v = target[lane]
                    target[lane] = v if abs(v) < largest else np.float32(np.inf)
            sort_lanes(values, network)
            end = x + width
            _clip_block(
                values, totals, squares, settled, eights, 0, np.inf, 0.0, sigma, iterations,
                want_median, mean[y, x:end], variance[y, x:end], count[y, x:end],
            )  # fmt: skip


@kernel()
def decode(tile: npt.NDArray[np.uint16], offset: float, out: Floats) -> None:
    """Big-endian int16 pixels as stored, (n, rows, nx) → stored + 32768 + offset."""
    n, height, nx = tile.shape
    for y in range(height):
        for k in range(n):
            for x in range(nx):
                v = tile[k, y, x]
                out[k, y, x] = np.float32((((v >> 8) | (v << 8)) & 0xFFFF) ^ 0x8000) + offset
