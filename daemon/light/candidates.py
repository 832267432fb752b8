"""Where stars may be: the peaks of one image plane above its noise.

The image is divided by its noise (background taken off, binned 2×2 where the frame is large), what
the background left of nebulae is taken off, and the result is smoothed. A candidate is a peak that
stands by itself: from no higher pixel can one come to it without going down by a quarter of its
height and by four times the noise. That joins the bumps that noise makes on a bright star, a
nebula or a trail to one candidate, and tells two stars apart that stand more than about
1.2 FWHM from each other. Trails leave by the shape of what belongs to their peak.

Positions are px, x the column and y the row, centres of pixels at integers.
"""

import functools
import math

import numpy as np
import numpy.typing as npt

from calib_library.clip import LANES, sort_lanes, sorting_network
from calib_library.kernels import kernel, side_by_side

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_THRESHOLD_SIGMA = 5.0
_BLOCK_PX = 32  # nebulae are taken off at this scale
_HOT_RATIO = 0.28  # smoothed over raw peak; a single pixel has 0.25 under the 1-2-1 kernel
_LEAST_PX = 4  # of the 3×3 at a peak above the threshold, itself included
_LONGEST = 5.0  # major over minor axis
_HEIGHT = 0.75  # of its peak, down to which a candidate must stand by itself …
_DEPTH_SIGMA = 4.0  # … and at least so much below it
_SMOOTHING_PX2 = 0.5  # variance of the 1-2-1 kernel
_REACH_PX = 40  # as far as a footprint is followed
_SIDE_PX = 2 * _REACH_PX + 3  # of the window for that, with a rim
_SEGMENT_PX = 64  # columns that are looked through at once for what is rare
_STRIP_PX = 16  # rows that are worked through together, while they are near
_HUGE = np.float32(1e30)  # what is not below is infinite, NaN or no measurement; sums are below


def find(
    image: F32, flags: U8, level: F32, noise: F32, *, binning: int, most: int
) -> tuple[F64, int]:
    """(n ≤ `most`, 3) candidates: x, y (px of `image`), width (px, the σ of a Gaussian), highest
    first; and how many there are in all.

    `image` (ny, nx) ADU, NaN allowed; `flags` (ny, nx) has bit 1 for bad pixels, or any other shape
    where there is no mask; `level` and `noise` (cy, cx) ADU are cells that divide the image evenly,
    the noise above 0; `binning` is 1 or 2. Lone hot pixels come last: full resolution decides about
    them. Nothing is changed.
    """
    if min(image.shape) // binning < 3:
        return np.empty((0, 3)), 0
    significance, residual = _significance(image, flags, level, noise, binning)
    sigma = max(_noise(significance, residual), 0.1)
    smoothed, peaks = _peaks(significance, residual, _THRESHOLD_SIGMA * sigma)
    found = np.empty((len(peaks), 6))
    side_by_side(_footprints, len(peaks), significance, smoothed, peaks, sigma, found)
    found = found[found[:, _LONG] < _LONGEST]
    x, y, _, width, _, _ = found[_highest(found, most)].T
    centre = (binning - 1) / 2
    columns = (x * binning + centre, y * binning + centre, np.clip(width * binning, 0.8, 12))
    return np.column_stack(columns), len(found)


_HEIGHT_OF, _LONG, _RAW = 2, 4, 5


def _highest(found: F64, most: int) -> I64:
    """Places of the `most` highest, highest first, hot pixels last; equal ones in the order of the
    image.
    """
    peak = found[:, _HEIGHT_OF]
    hot = peak < _HOT_RATIO * found[:, _RAW]
    places = []
    for kind in (np.flatnonzero(~hot), np.flatnonzero(hot)):
        heights = peak[kind]
        least = np.partition(heights, -most)[-most] if len(kind) > most else 0.0
        high = kind[heights >= least]
        places.append(high[np.argsort(-peak[high], kind="stable")])
    return np.concatenate(places)[:most]


def _significance(image: F32, flags: U8, level: F32, noise: F32, binning: int) -> tuple[F32, F32]:
    """The (binned) image less its level, over its noise; and what the level left of nebulae, the
    median of each block, widened to its columns (by, nx // binning).
    """
    ny, nx = (side // binning for side in image.shape)
    side = _BLOCK_PX // binning
    blocks = (ny // side, nx // side)
    if min(ny, nx) < _BLOCK_PX:
        blocks = (1, 0)
    edges = np.arange(blocks[1] + 1) * nx // max(blocks[1], 1)
    samples = edges[:-1] + np.arange(side // 2)[:, np.newaxis] * np.diff(edges) // (side // 2)
    significance = np.empty((ny, nx), dtype=np.float32)
    medians = np.empty(blocks, dtype=np.float32)
    cells = _widened(np.concatenate((level, noise)), image.shape[1], binning)
    network = _median_network((side // 2) ** 2)
    side_by_side(
        _divide, len(medians), image, flags, cells[: len(level)], cells[len(level) :], samples,
        network, significance, medians,
    )  # fmt: skip
    if medians.size == 0:
        medians = np.zeros((1, 1), dtype=np.float32)
    return significance, _widened(medians, nx, 1)


@functools.lru_cache(2)
def _median_network(number: int) -> I32:
    """(k, 2) the steps of a sorting network that the middle one of `number` values depends on."""
    needed = {number // 2}
    steps = []
    for step in sorting_network(number)[::-1].tolist():
        if not needed.isdisjoint(step):
            needed.update(step)
            steps.append(step)
    return np.array(steps[::-1], dtype=np.int32)


def _widened(cells: F32, nx: int, binning: int) -> F32:
    """(cy, nx // binning): `cells` (cy, cx) of an image `nx` px wide, interpolated along the rows
    to its (binned) columns.

    What is left for each pixel is one interpolation between two rows, side by side in memory.
    """
    cx = cells.shape[1]
    u = (np.arange(nx // binning) + 0.5) * (binning * cx / nx) - 0.5
    u = np.clip(u, 0.0, cx - 1.0)
    left = np.minimum(u.astype(np.intp), max(cx - 2, 0))
    out = np.empty((len(cells), nx // binning), dtype=np.float32)
    share = (u - left).astype(np.float32)
    side_by_side(_interpolate, len(out), cells, left, share, out)
    return out


def _noise(significance: F32, residual: F32) -> float:
    """Noise of the smoothed image, from a sparse grid of pixels.

    0.375 where pixels are independent; more where an interpolation has correlated them.
    """
    ny, nx = significance.shape
    if min(ny, nx) < 8:
        return 0.375
    step = max(1, math.isqrt(ny * nx // 100_000))
    rows = np.empty((len(range(1, ny - 1, step)), nx), dtype=np.float32)
    side_by_side(_smooth_some, len(rows), significance, residual, step, rows)
    # Sorted first: a fraction of the time of finding four ranks.
    low, middle = np.quantile(np.sort(rows[:, 1:-1:step], axis=None), (0.1587, 0.5))
    return float(middle - low)  # the lower side: stars are on the other


def _peaks(significance: F32, residual: F32, threshold: float) -> tuple[F32, I32]:
    """The smoothed image, and the places in it (flattened) of its local maxima above `threshold`,
    in order.
    """
    ny, nx = significance.shape
    smoothed = np.empty((ny, nx), dtype=np.float32)
    strips = -(-ny // _STRIP_PX)
    # Of neighbours but one is a maximum. What is not written to takes no memory.
    places = np.empty((strips, _STRIP_PX // 2 * (nx // 2 + 1)), dtype=np.int32)
    counts = np.empty(strips, dtype=np.int64)
    side_by_side(
        _smooth_and_mark, strips, significance, residual, threshold, smoothed, counts, places
    )
    return smoothed, np.concatenate([row[:n] for row, n in zip(places, counts, strict=True)])


# Kernels. Each row, block or peak is worked out by itself, so the number of threads changes
# nothing.


@kernel()
def _interpolate(first: int, last: int, cells: F32, left: I64, share: F32, out: F32) -> None:
    """Each row of `cells` at the columns left + share."""
    cx = cells.shape[1]
    for row in range(first, last):
        for col in range(len(left)):
            i = left[col]
            a = cells[row, i]
            out[row, col] = a + share[col] * (cells[row, min(i + 1, cx - 1)] - a)


@kernel()
def _between(row: int, rows: int, cells: int) -> tuple[int, int, np.float32]:
    """The two rows of `cells` beside a row (of `rows`) of the image, and the second one's share."""
    v = min(max((row + 0.5) * cells / rows - 0.5, 0.0), cells - 1.0)
    first = min(int(v), max(cells - 2, 0))
    return first, min(first + 1, cells - 1), np.float32(v - first)


@kernel()
def _mean(image: F32, flags: U8, top: int, left: int, binning: int) -> tuple[np.float32, int]:
    """Mean of the pixels of a block that are finite and not flagged as bad, and their number."""
    masked = flags.shape[0] == image.shape[0] and flags.shape[1] == image.shape[1]
    total, good = np.float32(0.0), 0
    for y in range(top, top + binning):
        for x in range(left, left + binning):
            value = image[y, x]
            if np.isfinite(value) and not (masked and flags[y, x] & 1):
                total += value
                good += 1
    return total / np.float32(max(good, 1)), good


@kernel()
def _bad(upper: U8, lower: U8, out: U8) -> None:
    """1 where one of the pixels is bad: of two rows, or of one (twice the same)."""
    if len(out) < len(upper):
        for col in range(len(out)):
            pixels = upper[2 * col] | upper[2 * col + 1] | lower[2 * col] | lower[2 * col + 1]
            out[col] = pixels & 1
    else:
        for col in range(len(out)):
            out[col] = upper[col] & 1


@kernel()
def _all_good(values: F32, bad: U8) -> bool:
    """Are all values numbers, and none bad?"""
    good = 0
    for k in range(len(values)):
        good += (abs(values[k]) < _HUGE) & (bad[k] == 0)
    return good == len(values)


@kernel()
def _any(marks: U8) -> bool:
    """Is one of them not 0?"""
    most = np.uint8(0)
    for mark in marks:
        most = mark if mark > most else most  # noqa: FURB136 - a vector instruction as it stands
    return bool(most > 0)


@kernel(allocates=True)
def _divide(
    begin: int, end: int, image: F32, flags: U8, level: F32, noise: F32, samples: I64,
    network: I32, out: F32, medians: F32,
) -> None:  # fmt: skip
    """Significance, and medians of its blocks from the columns `samples` (side, bx) and as many
    rows of each; a row of blocks after the other, while it is near.
    """
    my = len(out)
    by = len(medians)
    for j in range(begin, end):
        first, last = j * my // by, (j + 1) * my // by
        for row in range(first, last):
            _divide_row(image, flags, level, noise, row, out)
        _medians_of_row(out[first:last], samples, network, medians[j])


@kernel(allocates=True)
def _divide_row(image: F32, flags: U8, level: F32, noise: F32, row: int, out: F32) -> None:
    """(mean of binning² good pixels − level) / its noise; 0 where none is good, or out of range."""
    my, mx = out.shape
    binning = 2 if my < len(image) else 1
    per_bin = np.float32(binning)
    top = row * binning
    upper, lower = image[top], image[top + binning - 1]
    j, j1, share = _between(row, my, len(level))
    level0, level1, noise0, noise1 = level[j], level[j1], noise[j], noise[j1]
    # Plain loops over whole rows first, which the compiler makes vectors of …
    mean = np.empty(mx, np.float32)
    if binning == 2:
        for col in range(mx):
            pair = (upper[2 * col] + upper[2 * col + 1]) + (lower[2 * col] + lower[2 * col + 1])
            mean[col] = np.float32(0.25) * pair
    else:
        for col in range(mx):
            mean[col] = upper[col]
    target = out[row]
    for col in range(mx):
        base = level0[col] + share * (level1[col] - level0[col])
        scatter = noise0[col] + share * (noise1[col] - noise0[col])
        target[col] = per_bin * (mean[col] - base) / scatter
    bad = np.zeros(mx, np.uint8)
    if flags.shape == image.shape:
        _bad(flags[top], flags[top + binning - 1], bad)
    # … then the few places where a pixel is bad.
    for first in range(0, mx, _SEGMENT_PX):
        last = min(first + _SEGMENT_PX, mx)
        if _all_good(target[first:last], bad[first:last]):
            continue
        for col in range(first, last):
            if bad[col] or not abs(target[col]) < _HUGE:
                value, good = _mean(image, flags, top, col * binning, binning)
                base = level0[col] + share * (level1[col] - level0[col])
                scatter = noise0[col] + share * (noise1[col] - noise0[col])
                ratio = per_bin * (value - base) / scatter
                target[col] = ratio if good and abs(ratio) < _HUGE else 0.0


@kernel(allocates=True)
def _medians_of_row(rows: F32, samples: I64, network: I32, medians: F32) -> None:
    """The medians of a row of blocks, many at once."""
    side, bx = samples.shape
    values = np.zeros((side * side, LANES), np.float32)
    for first in range(0, bx, LANES):
        last = min(first + LANES, bx)
        for y in range(side):
            row = rows[y * len(rows) // side]
            for x in range(side):
                columns, target = samples[x, first:last], values[y * side + x]
                for lane in range(last - first):
                    target[lane] = row[columns[lane]]
        sort_lanes(values, network)
        middle = values[side * side // 2]
        for lane in range(last - first):
            medians[first + lane] = middle[lane]


@kernel(allocates=True)
def _smooth_some(first: int, last: int, image: F32, residual: F32, step: int, out: F32) -> None:
    """Every `step`-th row, from the second one on, smoothed."""
    column = np.empty(image.shape[1], np.float32)
    for k in range(first, last):
        _smooth_row(image, residual, 1 + k * step, column, out[k])


@kernel(allocates=True)
def _smooth_and_mark(
    begin: int, end: int, image: F32, residual: F32, threshold: float, out: F32, counts: I64,
    places: I32,
) -> None:  # fmt: skip
    """Smooth; and of each strip of rows find the places of its local maxima above `threshold`, and
    their number. Of equal neighbours the first is the maximum.
    """
    ny, nx = image.shape
    limit = np.float32(threshold)
    column = np.empty(nx, np.float32)
    rim = np.empty((2, nx), np.float32)  # the neighbours' nearest rows
    for strip in range(begin, end):
        first, last = strip * _STRIP_PX, min((strip + 1) * _STRIP_PX, ny)
        if first > 0:
            _smooth_row(image, residual, first - 1, column, rim[0])
        if last < ny:
            _smooth_row(image, residual, last, column, rim[1])
        for row in range(first, last):
            _smooth_row(image, residual, row, column, out[row])
        count = 0
        for row in range(max(first, 1), min(last, ny - 1)):
            above = out[row - 1] if row > first else rim[0]
            below = out[row + 1] if row + 1 < last else rim[1]
            marked = places[strip, count:]
            count += _mark_row(above, out[row], below, limit, row * nx, marked)
        counts[strip] = count


@kernel()
def _smooth_row(image: F32, residual: F32, row: int, column: F32, target: F32) -> None:
    """A row of `image` under the 1-2-1 kernel, less `residual` (rows of cells); 0 at the rim.
    `column` (nx,) is overwritten.
    """
    ny, nx = image.shape
    if row == 0 or row == ny - 1:
        target[:] = 0.0
        return
    above, here, below = image[row - 1], image[row], image[row + 1]
    j, j1, share = _between(row, ny, len(residual))
    level0, level1 = residual[j], residual[j1]
    for col in range(nx):
        column[col] = (above[col] + below[col]) + (here[col] + here[col])
    for col in range(1, nx - 1):
        total = (column[col - 1] + column[col + 1]) + (column[col] + column[col])
        level = level0[col] + share * (level1[col] - level0[col])
        target[col] = np.float32(0.0625) * total - level
    target[0] = target[nx - 1] = 0.0


@kernel(allocates=True)
def _mark_row(above: F32, here: F32, below: F32, limit: np.float32, start: int, places: I32) -> int:
    """The number of maxima of a row that begins at the place `start`, and `places` of them."""
    maximum = np.zeros(len(here), np.uint8)
    # A plain loop first, which the compiler makes vectors of …
    yes, no = np.uint8(1), np.uint8(0)
    for col in range(1, len(here) - 1):
        before = _higher(_higher(above[col - 1], above[col]), _higher(above[col + 1], limit))
        before = _higher(before, here[col - 1])
        after = _higher(_higher(below[col - 1], below[col]), _higher(below[col + 1], here[col + 1]))
        maximum[col] = (yes if here[col] > before else no) if here[col] >= after else no
    # … then the few that it found.
    count = 0
    for first in range(1, len(here) - 1, _SEGMENT_PX):
        last = min(first + _SEGMENT_PX, len(here) - 1)
        if not _any(maximum[first:last]):
            continue
        for col in range(first, last):
            if maximum[col] and _area(above, here, below, limit, col) >= _LEAST_PX:
                places[count] = start + col
                count += 1
    return count


@kernel(inline=True)
def _higher(a: np.float32, b: np.float32) -> np.float32:
    return a if a > b else b  # noqa: FURB136 - becomes a vector instruction as it stands


@kernel()
def _area(above: F32, here: F32, below: F32, limit: np.float32, col: int) -> int:
    """How many of the 3×3 pixels round a column are above the limit."""
    area = 0
    for x in range(col - 1, col + 2):
        area += (above[x] > limit) + (here[x] > limit) + (below[x] > limit)
    return area


@kernel()
def _follow(image: F32, nx: int, peak: int, level: float, seen: U8, queue: I64) -> int:
    """Collect in `queue` the pixels (places in the window `seen` round the peak) that are connected
    to the peak above `level`, as far as the window reaches; their number, or 0 where one is higher.

    `image` is flattened, and its rows are `nx` long. The window's own rim is marked as seen, and
    the image's is 0 and thus below any level: no place lies beyond either.
    """
    top_left = peak - (_REACH_PX + 1) * (nx + 1)
    height = image[peak]
    queue[0] = (_REACH_PX + 1) * (_SIDE_PX + 1)
    seen[queue[0]] = 1
    head, count = 0, 1
    alone = True
    while alone and head < count:
        centre = queue[head]
        at_centre = top_left + centre // _SIDE_PX * nx + centre % _SIDE_PX
        head += 1
        for j in range(-1, 2):
            for i in range(-1, 2):
                place, at = centre + j * _SIDE_PX + i, at_centre + j * nx + i
                if seen[place] == 0 and image[at] > level:
                    if image[at] > height or (image[at] == height and at < peak):
                        alone = False
                    seen[place] = 1
                    queue[count] = place
                    count += 1
    for k in range(count):
        seen[queue[k]] = 0
    return count if alone else 0


@kernel(allocates=True)
def _footprints(
    begin: int, end: int, raw: F32, image: F32, peaks: I32, sigma: float, out: F64
) -> None:
    """Of each peak: x, y, height, width (Gaussian σ, px), elongation (infinite where it does not
    stand by itself), height before smoothing.
    """
    nx = image.shape[1]
    flat = image.reshape(-1)
    window = np.ones((_SIDE_PX, _SIDE_PX), np.uint8)
    window[1:-1, 1:-1] = 0
    seen = window.reshape(-1)
    queue = np.empty(len(seen), np.int64)
    for k in range(begin, end):
        row, col = peaks[k] // nx, peaks[k] % nx
        peak = float(image[row, col])
        level = min(_HEIGHT * peak, peak - _DEPTH_SIGMA * sigma)
        count = _follow(flat, nx, int(peaks[k]), level, seen, queue)
        if count == 0:
            out[k] = np.inf
            continue
        s = sx = sy = sxx = syy = sxy = 0.0
        for place in queue[:count]:
            dy, dx = place // _SIDE_PX - _REACH_PX - 1, place % _SIDE_PX - _REACH_PX - 1
            light = image[row + dy, col + dx] - level
            s += light
            sx += light * dx
            sy += light * dy
            sxx += light * dx * dx
            syy += light * dy * dy
            sxy += light * dx * dy
        mx, my = sx / s, sy / s
        # The pixel's own extent keeps a row of pixels from having no width.
        cxx, cyy, cxy = (
            sxx / s - mx * mx + 1 / 12,
            syy / s - my * my + 1 / 12,
            sxy / s - mx * my,
        )
        half, split = 0.5 * (cxx + cyy), np.sqrt(0.25 * (cxx - cyy) ** 2 + cxy * cxy)
        # The volume of a Gaussian above a part f of its height is 2πσ² (1 − f + f ln f) of it.
        f = max(level / peak, 0.05)
        variance = s / (2.0 * np.pi * peak * (1.0 - f + f * np.log(f))) - _SMOOTHING_PX2
        highest = np.float32(-np.inf)
        total = 0.0
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                value = raw[row + dy, col + dx]
                highest = max(highest, value)
                total += (2 - abs(dx)) * (2 - abs(dy)) * value
        out[k, 0] = col + mx
        out[k, 1] = row + my
        out[k, 2] = peak
        out[k, 3] = np.sqrt(max(variance, 0.09))
        out[k, 4] = np.sqrt((half + split) / max(half - split, 1e-3))
        out[k, 5] = highest - (total / 16.0 - peak)
