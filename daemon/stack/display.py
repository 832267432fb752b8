"""What a growing stack looks like now: kernels of `live.render`.

The mean of a pixel is that of its settled values and of the waiting ones inside the gate. Nearly
everywhere these are all of them, and are added by plain loops over a row that the compiler turns
into vector instructions. Where a value of a pixel or of one of its neighbours is far off, each
value is judged by itself.
"""

import numpy as np
import numpy.typing as npt

from calib_library.kernels import kernel
from daemon.stack import settle
from daemon.stack.settle import GATE_SIGMA

Image = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]
Count = npt.NDArray[np.uint16]
Sums = npt.NDArray[np.int64]
Weights = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.float64]
Marks = npt.NDArray[np.bool_]

EDGE_SIGMA = 2.0
"""k of the gate for display beside a pixel where the same frame is rejected: the edge of a trail
(about 2.3 σ of the values compared)."""
SEED_SHARE = 1.25
"""How many times the gate a neighbour must be off to be a trail and not the noise's own tail."""
MODEL_FREEDOM = 8.0
"""The noise model weighs as many values as this against the measured spread, in the variance."""

LESS = 0.9999
"""A limit that is looked for before the exact one is less by more than what float32 rounds."""
MANY_VALUES = 2**40
"""More than any pixel has: the gate is at its narrowest."""
NO_FRAME = np.uint16(0)
TILE_ROWS = 16


@kernel()
def centre_row(
    values: Image, frames: Count, total: Sums, weight: Weights, settled: Count,
    quantum: float, plane: int, y: int, out: Image,
) -> None:  # fmt: skip
    """A robust estimate of each pixel of a row, NaN where there is no value: the mean of the
    settled values, which come from the middle; before that the median of the waiting ones, the
    lower of two, because what disturbs a frame is bright.
    """
    for x in range(out.size):
        if settled[plane, y, x] > 0:
            out[x] = np.float32(total[plane, y, x] * quantum / weight[plane, y, x])
            continue
        waiting = 0
        while waiting < values.shape[0] and frames[waiting, plane, y, x] != 0:
            waiting += 1
        out[x] = values[(waiting - 1) // 2, plane, y, x] if waiting else np.float32(np.nan)


@kernel()
def contrast_row(above: Image, here: Image, below: Image, out: Image) -> None:
    """The largest difference of each pixel to its eight neighbours; NaN neighbours are left
    out.
    """
    width = here.size
    # Written out: with a loop over the rows in it, it would not become vector instructions.
    for x in range(1, width - 1):
        centre = here[x]
        largest = _farther(np.float32(0), here[x - 1], centre)
        largest = _farther(largest, here[x + 1], centre)
        largest = _farther(largest, above[x - 1], centre)
        largest = _farther(largest, above[x], centre)
        largest = _farther(largest, above[x + 1], centre)
        largest = _farther(largest, below[x - 1], centre)
        largest = _farther(largest, below[x], centre)
        largest = _farther(largest, below[x + 1], centre)
        out[x] = largest
    for x in (0, width - 1):
        largest = np.float32(0)
        for neighbour in range(max(x - 1, 0), min(x + 2, width)):
            for row in (above, here, below):
                largest = _farther(largest, row[neighbour], here[x])
        out[x] = largest


@kernel(inline=True)
def _farther(largest: np.float32, value: np.float32, centre: np.float32) -> np.float32:
    """The larger of a difference and that of a value; a comparison with NaN is false."""
    difference = abs(value - centre)
    return difference if difference > largest else largest  # noqa: FURB136


@kernel()
def _contrast_at(centres: Image, k: int, x: int) -> float:
    """What `_contrast_row` gives for one pixel of row `k`."""
    largest = 0.0
    for row in range(k - 1, k + 2):
        for column in range(max(x - 1, 0), min(x + 2, centres.shape[1])):
            # A comparison with NaN is false.
            difference = abs(float(centres[row, column]) - float(centres[k, x]))
            largest = difference if difference > largest else largest  # noqa: FURB136
    return largest


@kernel()
def _beside_rejected(
    values: Image, frames: Count, centres: Image, k: int, plane: int, y: int, x: int, frame: int,
    sky: float, variance: float, terms: Matrix, number: int, empirical: float,
) -> bool:  # fmt: skip
    """Whether one of the eight neighbours has a waiting value of the same frame outside the gate,
    whose noise is that of the pixel itself. `centres[k]` are those of row `y`, two more on each
    side.
    """
    depth, _, height, width = values.shape
    for row in range(max(y - 1, 0), min(y + 2, height)):
        for column in range(max(x - 1, 0), min(x + 2, width)):
            centre = float(centres[k + row - y, column])
            for i in range(depth):
                if frames[i, plane, row, column] == frame:
                    away = values[i, plane, row, column] - centre
                    if away * away > GATE_SIGMA * GATE_SIGMA * variance and abs(
                        away
                    ) > SEED_SHARE * settle.gate(
                        centre, sky, _contrast_at(centres, k + row - y, column), variance,
                        terms[1], terms[2], terms[3], number, empirical,
                    ):  # fmt: skip
                        return True
    return False


@kernel(allocates=True)
def render_tiles(
    begin: int, end: int, table: Matrix, typical: Matrix, skies: Numbers, quantum: float,
    weight_unit: float, values: Image, frames: Count, total: Sums, weight: Weights, spread: Image,
    settled: Count, mean: Image, weight_out: Image, variance: Image, coverage: Count,
) -> None:  # fmt: skip
    """Fill the rows of some tiles of mean, weight and variance (planes, ny, nx) and coverage (ny,
    nx); see `live.render`.
    """
    for tile in range(begin, end):
        for plane in range(values.shape[1]):
            _render_tile(
                tile * TILE_ROWS, plane, table, typical[plane], skies[plane], quantum, weight_unit,
                values, frames, total, weight, spread, settled,
                mean[plane], weight_out[plane], variance[plane], coverage,
            )  # fmt: skip


@kernel(allocates=True)
def _render_tile(
    first: int, plane: int, table: Matrix, typical: Numbers, sky: float, quantum: float,
    weight_unit: float, values: Image, frames: Count, total: Sums, weight: Weights, spread: Image,
    settled: Count, mean: Image, weight_out: Image, variance: Image, coverage: Count,
) -> None:  # fmt: skip
    """A few rows of one plane, from `first` on."""
    _, _, height, width = values.shape
    last = min(first + TILE_ROWS, height)
    centres = np.empty((TILE_ROWS + 4, width), np.float32)
    far = np.zeros((TILE_ROWS + 4, width), np.bool_)
    seeds = np.zeros((TILE_ROWS + 4, width), np.bool_)
    contrasts = np.empty((TILE_ROWS + 4, width), np.float32)
    beside, alone = np.empty(width, np.bool_), np.empty(width, np.bool_)
    sums, share = np.empty(width, np.int64), np.empty(width)
    weights, squares, counts = np.empty(width), np.empty(width), np.empty(width)
    limit = np.float32(LESS * GATE_SIGMA * GATE_SIGMA * smallest(table[:, 4 + plane]))
    shares, per_adu = table[:, 0].copy(), 1.0 / quantum
    for y in range(first - 2, last + 2):
        k, inside = y - first + 2, min(max(y, 0), height - 1)
        centre_row(values, frames, total, weight, settled, quantum, plane, inside, centres[k])
        if y == inside:
            for i in range(values.shape[0]):
                _mark_far(values[i, plane, y], frames[i, plane, y], centres[k], limit, far[k])
    for y in range(max(first - 1, 0), min(last + 1, height)):
        k = y - first + 2
        contrast_row(centres[k - 1], centres[k], centres[k + 1], contrasts[k])
        _mark_seeds(
            values, frames, plane, y, centres[k], contrasts[k], far[k], limit, sky, table, seeds[k]
        )
    for y in range(first, last):
        k = y - first + 2
        _widen(seeds[k - 1], seeds[k], seeds[k + 1], far[k], beside, alone)
        _take_settled(
            total[plane, y], weight[plane, y], spread[plane, y], settled[plane, y],
            sums, weights, squares, counts,
        )  # fmt: skip
        for i in range(values.shape[0]):
            _admit(
                values[i, plane, y], frames[i, plane, y], centres[k], shares, per_adu, alone,
                share, sums, weights, squares, counts,
            )  # fmt: skip
        _judge(
            plane, y, k, alone, beside, table, sky, per_adu, values, frames, centres, contrasts[k],
            sums, weights, squares, counts,
        )  # fmt: skip
        _finish(
            centres[k], sums, weights, squares, counts, typical, sky, quantum, weight_unit,
            mean[y], weight_out[y], variance[y], coverage[y],
        )  # fmt: skip


@kernel()
def _take_settled(
    total: Sums, weight: Weights, spread: Image, settled: Count,
    sums: Sums, weights: Numbers, squares: Numbers, counts: Numbers,
) -> None:  # fmt: skip
    for x in range(sums.size):
        sums[x] = total[x]
        weights[x] = weight[x]
    for x in range(sums.size):
        squares[x] = spread[x]
        counts[x] = settled[x]


@kernel()
def smallest(variances: Numbers) -> float:
    """The smallest that is not 0: numbers without a frame have 0."""
    smallest = np.inf
    for variance in variances:
        if 0.0 < variance < smallest:
            smallest = variance
    return float(smallest)


@kernel()
def _mark_far(values: Image, frames: Count, centres: Image, limit: np.float32, far: Marks) -> None:
    """Mark the pixels of a row of one layer that lie further from the centre than any frame's
    smallest gate, whose square is `limit`.
    """
    for x in range(far.size):
        away = values[x] - centres[x]
        far[x] |= (frames[x] != NO_FRAME) & (away * away > limit)


@kernel()
def _mark_seeds(
    values: Image, frames: Count, plane: int, y: int, centres: Image, contrasts: Image, far: Marks,
    limit: np.float32, sky: float, table: Matrix, seeds: Marks,
) -> None:  # fmt: skip
    """Of the pixels that are `far` mark those beside which a value of the same frame may be left
    out: with the smallest gate that `_beside_rejected` can ask of them, and a little less.
    """
    for x in range(far.size):
        seeds[x] = False
        if not far[x] or np.isnan(centres[x]):
            continue
        centre, contrast = float(centres[x]), float(contrasts[x])
        for i in range(values.shape[0]):
            frame = frames[i, plane, y, x]
            away = values[i, plane, y, x] - centre
            if frame != NO_FRAME and away * away > limit:
                seeds[x] |= abs(away) > LESS * SEED_SHARE * settle.gate(
                    centre, sky, contrast, table[frame, 4 + plane],
                    table[frame, 1], table[frame, 2], table[frame, 3], MANY_VALUES, 0.0,
                )  # fmt: skip


@kernel()
def _widen(
    above: Marks, here: Marks, below: Marks, far: Marks, beside: Marks, alone: Marks
) -> None:
    """Mark what is `beside` a seed, in its own row or the next; and what is judged `alone`: that,
    and what is far off itself.
    """
    for x in range(beside.size):
        beside[x] = above[x] | here[x] | below[x]
    before = False
    for x in range(beside.size):
        seed = beside[x]
        beside[x] = before | seed | (x + 1 < beside.size and beside[x + 1])
        before = seed
    for x in range(beside.size):
        alone[x] = far[x] | beside[x]


@kernel()
def _admit(
    values: Image, frames: Count, centres: Image, shares: Numbers, per_adu: float, alone: Marks,
    share: Numbers, sums: Sums, weights: Numbers, squares: Numbers, counts: Numbers,
) -> None:  # fmt: skip
    """Add the waiting values of one layer, but for pixels that are judged `alone`; `share` is
    overwritten.
    """
    for x in range(share.size):
        share[x] = shares[frames[x]]  # that of no frame is 0
    for x in range(share.size):
        share[x] = 0.0 if alone[x] else share[x]
    for x in range(share.size):
        sums[x] += int(share[x] * settle.quanta(float(values[x]), per_adu))
    for x in range(share.size):
        away = float(values[x]) - float(centres[x])
        squares[x] += share[x] * away * away
    for x in range(share.size):
        weights[x] += share[x]
        counts[x] += 1.0 if share[x] > 0.0 else 0.0


@kernel()
def _judge(
    plane: int, y: int, k: int, alone: Marks, beside: Marks, table: Matrix, sky: float,
    per_adu: float, values: Image, frames: Count, centres: Image, contrasts: Image,
    sums: Sums, weights: Numbers, squares: Numbers, counts: Numbers,
) -> None:  # fmt: skip
    """Where a pixel is judged `alone` add those of its waiting values that are inside the gate;
    `centres[k]` are of row `y`, two more on each side.
    """
    depth = values.shape[0]
    for x in range(alone.size):
        centre = float(centres[k, x])
        if not alone[x] or np.isnan(centre):
            continue
        waiting = 0
        while waiting < depth and frames[waiting, plane, y, x] != NO_FRAME:
            waiting += 1
        count = int(counts[x])
        number = count + waiting
        empirical = settle.empirical(squares[x], int(weights[x]), count)
        for i in range(waiting):
            frame = frames[i, plane, y, x]
            value = values[i, plane, y, x]
            away = value - centre
            least = table[frame, 4 + plane]
            smallest = GATE_SIGMA * GATE_SIGMA * least
            if away * away > smallest and abs(away) > settle.gate(
                centre, sky, float(contrasts[x]), least,
                table[frame, 1], table[frame, 2], table[frame, 3], number, empirical,
            ):  # fmt: skip
                continue
            edge = beside[x] and away * away > EDGE_SIGMA * EDGE_SIGMA * least
            if edge and _beside_rejected(
                values, frames, centres, k, plane, y, x, frame, sky, least, table[frame], number,
                empirical,
            ):  # fmt: skip
                continue
            share = table[frame, 0]
            squares[x] += share * away * away
            sums[x] += int(share * settle.quanta(float(value), per_adu))
            weights[x] += share
            counts[x] += 1.0


@kernel()
def _finish(
    centres: Image, sums: Sums, weights: Numbers, squares: Numbers, counts: Numbers,
    typical: Numbers, sky: float, quantum: float, weight_unit: float,
    mean: Image, weight_out: Image, variance: Image, coverage: Count,
) -> None:  # fmt: skip
    """The planes of one row; a pixel that no frame covers stays as it is."""
    for x in range(mean.size):
        seen = weights[x] > 0.0
        result = float(sums[x]) * quantum / weights[x]
        mean[x] = result if seen else mean[x]
    for x in range(mean.size):
        seen = weights[x] > 0.0
        weight_out[x] = weights[x] * weight_unit if seen else weight_out[x]
        count = int(counts[x])
        coverage[x] = max(coverage[x], np.uint16(count))
    for x in range(mean.size):
        seen = weights[x] > 0.0
        result = float(sums[x]) * quantum / weights[x]
        source = max(result - sky, 0.0)
        model = typical[0] + typical[1] * source
        # Σ w (y − mean)² / W · n / (n − 1), with n − 1 degrees of freedom.
        shift = result - float(centres[x])
        measured = max(squares[x] / weights[x] - shift * shift, 0.0) * counts[x]
        combined = (MODEL_FREEDOM * model + measured) / (MODEL_FREEDOM + counts[x] - 1.0)
        variance[x] = combined / (counts[x] * typical[2]) if seen else variance[x]
