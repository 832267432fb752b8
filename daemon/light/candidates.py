"""Where stars may be: the peaks of one image plane above its noise.

The image is divided by its noise (background taken off, binned 2×2 where the frame is large), what
the background left of nebulae is taken off, and the result is smoothed. A candidate is a peak that
stands by itself: from no higher pixel can one come to it without going down by a quarter of its
height and by four times the noise. That joins the bumps that noise makes on a bright star, a
nebula or a trail to one candidate, and tells two stars apart that stand more than about
1.2 FWHM from each other. Trails leave by the shape of what belongs to their peak.

Positions are px, x the column and y the row, centres of pixels at integers.
"""

import math

import numpy as np
import numpy.typing as npt
from numba import prange

from calib_library.kernels import kernel

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
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
_SEGMENT_PX = 64  # columns that are looked through at once for what is rare
_BATCH = 32  # candidates that share their working memory


def find(image: F32, flags: U8, level: F32, noise: F32, *, binning: int) -> F64:
    """(n, 3) candidates: x, y (px of `image`), width (px, the σ of a Gaussian); highest first.

    `image` (ny, nx) ADU, NaN allowed; `flags` (ny, nx) has bit 1 for bad pixels, or any other shape
    where there is no mask; `level` and `noise` (cy, cx) ADU are cells that divide the image evenly,
    the noise above 0; `binning` is 1 or 2. Lone hot pixels come last: full resolution decides about
    them. Nothing is changed.
    """
    shape = [side // binning for side in image.shape]
    if min(shape) < 3:
        return np.empty((0, 3))
    significance = np.empty(shape, dtype=np.float32)
    _significance(
        image, flags, _widened(level, image, binning), _widened(noise, image, binning), significance
    )
    smoothed = np.empty(shape, dtype=np.float32)
    _smooth(significance, _widened(_residual(significance, binning), significance, 1), smoothed)
    sigma = max(_noise(smoothed), 0.1)
    rows, columns = _maxima(smoothed, _THRESHOLD_SIGMA * sigma)
    found = np.empty((len(rows), 6))
    _footprints(significance, smoothed, rows, columns, sigma, found)
    x, y, peak, width, _, raw = found[found[:, _LONG] < _LONGEST].T
    hot = peak < _HOT_RATIO * raw
    order = np.argsort(-peak, kind="stable")  # equal ones in the order of the image
    order = np.concatenate((order[~hot[order]], order[hot[order]]))
    centre = (binning - 1) / 2
    columns_of = (x * binning + centre, y * binning + centre, np.clip(width * binning, 0.8, 12))
    return np.column_stack(columns_of)[order]


_LONG = 4


def _residual(significance: F32, binning: int) -> F32:
    """(by, bx) the median of each block: what the background left of a nebula."""
    if min(significance.shape) < _BLOCK_PX:
        return np.zeros((1, 1), dtype=np.float32)
    blocks = [side // (_BLOCK_PX // binning) for side in significance.shape]
    medians = np.empty(blocks, dtype=np.float32)
    _block_medians(significance, _BLOCK_PX // binning // 2, medians)
    return medians


def _widened(cells: F32, image: F32, binning: int) -> F32:
    """(cy, nx // binning): `cells` of `image`, interpolated along the rows to its (binned) columns.

    What is left for each pixel is one interpolation between two rows, side by side in memory.
    """
    nx = image.shape[1]
    cx = cells.shape[1]
    u = (np.arange(nx // binning) + 0.5) * (binning * cx / nx) - 0.5
    u = np.clip(u, 0.0, cx - 1.0)
    left = np.minimum(u.astype(np.intp), max(cx - 2, 0))
    out = np.empty((len(cells), nx // binning), dtype=np.float32)
    _interpolate(cells, left, (u - left).astype(np.float32), out)
    return out


def _noise(smoothed: F32) -> float:
    """Noise of the smoothed image, from a sparse grid of pixels.

    0.375 where pixels are independent; more where an interpolation has correlated them.
    """
    if min(smoothed.shape) < 8:
        return 0.375
    step = max(1, math.isqrt(smoothed.size // 100_000))
    low, middle = np.quantile(smoothed[1:-1:step, 1:-1:step], (0.1587, 0.5))
    return float(middle - low)  # the lower side: stars are on the other


def _maxima(smoothed: F32, threshold: float) -> tuple[I64, I64]:
    """Rows and columns of the local maxima above `threshold`, in the image's order."""
    counts = np.empty(len(smoothed), dtype=np.int64)
    nothing = np.empty(0, dtype=np.int64)
    _mark(smoothed, threshold, counts, nothing, nothing)
    ends = np.cumsum(counts)
    columns = np.empty(ends[-1], dtype=np.int64)
    _mark(smoothed, threshold, counts, ends, columns)
    return np.repeat(np.arange(len(smoothed)), counts), columns


# Kernels. Each row, block or peak is worked out by itself, so the number of threads changes
# nothing.


@kernel(parallel=True)
def _interpolate(cells: F32, left: I64, share: F32, out: F32) -> None:
    """Each row of `cells` at the columns left + share."""
    cx = cells.shape[1]
    for row in prange(len(cells)):
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
def _any_bad(flags: U8, row: int, lines: int, left: int, binning: int, values: F32) -> bool:
    """Is one of the values not finite, or one of the pixels flagged as bad that they are made of?
    Those are in `lines` rows from `row` on, from column `left` on, `binning` for each value.
    """
    bad, finite = np.uint8(0), 0
    for y in range(row, row + lines):
        line = flags[y, left : left + len(values) * binning]
        for x in range(len(line)):
            bad |= line[x]
    for col in range(len(values)):
        finite += abs(values[col]) < np.float32(3e38)
    return bool(bad & 1) or finite < len(values)


@kernel(parallel=True)
def _significance(image: F32, flags: U8, level: F32, noise: F32, out: F32) -> None:
    """(mean of binning² good pixels − level) / its noise; 0 where no pixel is good."""
    ny, nx = image.shape
    my, mx = out.shape
    binning = 2 if my < ny else 1
    masked = flags.shape[0] == ny and flags.shape[1] == nx
    lines = binning if masked else 0
    per_bin = np.float32(binning)
    for row in prange(my):
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
        # … then the few places where a pixel is bad.
        for first in range(0, mx, _SEGMENT_PX):
            last = min(first + _SEGMENT_PX, mx)
            if not _any_bad(flags, top, lines, first * binning, binning, target[first:last]):
                continue
            for col in range(first, last):
                one = target[col : col + 1]
                if _any_bad(flags, top, lines, col * binning, binning, one):
                    value, good = _mean(image, flags, top, col * binning, binning)
                    base = level0[col] + share * (level1[col] - level0[col])
                    scatter = noise0[col] + share * (noise1[col] - noise0[col])
                    target[col] = per_bin * (value - base) / scatter if good else 0.0


@kernel(parallel=True)
def _block_medians(image: F32, side: int, out: F32) -> None:
    """Median of side × side pixels, evenly spread over each block; `side` is a power of 2.

    The blocks of a row are sorted side by side by one network of comparisons (Batcher's odd-even
    merge sort, Knuth, The Art of Computer Programming 5.3.4), which branches on no value.
    """
    ny, nx = image.shape
    by, bx = out.shape
    count = side * side
    for j in prange(by):
        top, height = j * ny // by, (j + 1) * ny // by - j * ny // by
        samples = np.empty((count, bx), np.float32)
        for i in range(bx):
            left, width = i * nx // bx, (i + 1) * nx // bx - i * nx // bx
            for y in range(side):
                for x in range(side):
                    samples[y * side + x, i] = image[top + y * height // side,
                                                     left + x * width // side]  # fmt: skip
        merged = 1
        while merged < count:
            apart = merged
            while apart >= 1:
                for first in range(apart % merged, count - apart, 2 * apart):
                    for k in range(first, min(first + apart, count - apart)):
                        if k // (2 * merged) == (k + apart) // (2 * merged):
                            _order(samples[k], samples[k + apart])
                apart //= 2
            merged *= 2
        for i in range(bx):
            out[j, i] = samples[count // 2, i]


@kernel()
def _order(low: F32, high: F32) -> None:
    """Exchange what is not in order, element by element, in place."""
    for i in range(len(low)):
        a, b = low[i], high[i]
        low[i] = a if a < b else b  # noqa: FURB136 - becomes a vector instruction as it stands
        high[i] = b if a < b else a  # noqa: FURB136


@kernel(parallel=True)
def _smooth(image: F32, residual: F32, out: F32) -> None:
    """`image` under the 1-2-1 kernel, less `residual` (rows of cells); 0 at the rim."""
    ny, nx = image.shape
    for row in prange(ny):
        target = out[row]
        if row == 0 or row == ny - 1:
            target[:] = 0.0
            continue
        above, here, below = image[row - 1], image[row], image[row + 1]
        j, j1, share = _between(row, ny, len(residual))
        level0, level1 = residual[j], residual[j1]
        column = np.empty(nx, np.float32)
        for col in range(nx):
            column[col] = (above[col] + below[col]) + (here[col] + here[col])
        for col in range(1, nx - 1):
            total = (column[col - 1] + column[col + 1]) + (column[col] + column[col])
            level = level0[col] + share * (level1[col] - level0[col])
            target[col] = np.float32(0.0625) * total - level
        target[0] = target[nx - 1] = 0.0


@kernel(parallel=True)
def _mark(image: F32, threshold: float, counts: I64, ends: I64, columns: I64) -> None:
    """Count each row's local maxima above `threshold`; with `ends`, their last places, write their
    columns too. Of equal neighbours the first is the maximum.
    """
    for row in prange(len(image)):
        if 0 < row < len(image) - 1:
            place = ends[row] - counts[row] if len(ends) else 0
            counts[row] = _mark_row(
                image[row - 1], image[row], image[row + 1], np.float32(threshold), columns[place:]
            )
        else:
            counts[row] = 0


@kernel()
def _mark_row(above: F32, here: F32, below: F32, limit: np.float32, columns: I64) -> int:
    """The number of maxima of a row; their columns, where there is room for any."""
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
        some = 0
        for col in range(first, last):
            some |= maximum[col]
        if not some:
            continue
        for col in range(first, last):
            if maximum[col] and _area(above, here, below, limit, col) >= _LEAST_PX:
                if len(columns):
                    columns[count] = col
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
def _follow(image: F32, row: int, col: int, level: float, seen: U8, queue: I64) -> int:
    """Collect in `queue` the pixels (places in the window `seen` round the peak) that are connected
    to the peak above `level`, as far as the window reaches; their number, or 0 where one is higher.
    """
    ny, nx = image.shape
    side = 2 * _REACH_PX + 1
    peak = image[row, col]
    top, left = row - _REACH_PX, col - _REACH_PX
    queue[0] = _REACH_PX * side + _REACH_PX
    seen[queue[0]] = 1
    head, count = 0, 1
    alone = True
    while alone and head < count:
        v, u = queue[head] // side, queue[head] % side
        head += 1
        for j in range(max(v - 1, 0, -top), min(v + 2, side, ny - top)):
            for i in range(max(u - 1, 0, -left), min(u + 2, side, nx - left)):
                place = j * side + i
                y, x = top + j, left + i
                value = image[y, x]
                if value > level and not seen[place]:
                    before = y < row or (y == row and x < col)
                    if value > peak or (value == peak and before):
                        alone = False
                    seen[place] = 1
                    queue[count] = place
                    count += 1
    for k in range(count):
        seen[queue[k]] = 0
    return count if alone else 0


@kernel(parallel=True)
def _footprints(raw: F32, image: F32, rows: I64, columns: I64, sigma: float, out: F64) -> None:
    """Of each peak: x, y, height, width (Gaussian σ, px), elongation (infinite where it does not
    stand by itself), height before smoothing.
    """
    side = 2 * _REACH_PX + 1
    for batch in prange((len(rows) + _BATCH - 1) // _BATCH):
        seen = np.zeros(side * side, np.uint8)
        queue = np.empty(side * side, np.int64)
        for k in range(batch * _BATCH, min((batch + 1) * _BATCH, len(rows))):
            row, col = rows[k], columns[k]
            peak = float(image[row, col])
            level = min(_HEIGHT * peak, peak - _DEPTH_SIGMA * sigma)
            count = _follow(image, row, col, level, seen, queue)
            if count == 0:
                out[k] = np.inf
                continue
            s = sx = sy = sxx = syy = sxy = 0.0
            for place in queue[:count]:
                dy, dx = place // side - _REACH_PX, place % side - _REACH_PX
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
