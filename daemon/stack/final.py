"""The exact stack, when all frames are there: two passes over row tiles, at bounded memory.

In each tile: the median of the frames → a gate around it → hysteresis, so that the faint edge of a
trail goes with its core (beyond 4 σ a value is out; beyond 1.7 σ it is out next to one that is,
three times over) → the weighted mean. Then the same once more around that mean. Unlike the live
stack it sees every value at once; the two agree to a fifth of the stack's noise.

For speed a tile is worked in strips of `STRIP` columns, row by row, each step a row behind the one
whose neighbours it looks at, so that the values are fetched from memory once and stay in the second
cache until their mean is known. What is decided about a value is one bit of a word that holds 32
frames; growing is then an "or" of words, for all frames together. Each pixel is computed by itself:
the result depends neither on the tiles nor on the threads.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, zip_longest
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from calib_library.clip import LANES, sort_lanes, sorting_network
from calib_library.kernels import PROCESSORS, aligned, kernel, work_alone
from daemon.stack.display import MODEL_FREEDOM
from daemon.stack.live import SEEING_FLOOR, FrameTerms, StackImage, steepness
from daemon.stack.settle import CENTRE_VARIANCE, CONTRAST_SHARE, EMPIRICAL_FROM

Image = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint32]
Count = npt.NDArray[np.uint16]
Numbers = npt.NDArray[np.float64]
RowSource = Callable[[int, int, int], Image]
"""(position, y0, y1) → (planes, y1 − y0, nx) f32: rows of that frame on the reference grid, before
scaling, NaN where it has nothing: `warp.warp_rows`."""
RowFiller = Callable[[Image], None]
"""Writes the same into the array that it is given, C-contiguous. Several threads call such at a
time, each for a frame of its own; their kernels run in them alone (`kernels.work_alone`)."""
RowFillers = Callable[[int, int, int], RowFiller]
"""(position, y0, y1) → what writes these rows: called by the thread that wants the stack."""
RejectedSink = Callable[[int, int, npt.NDArray[np.bool_]], None]
"""(position, y0, mask (planes, rows, nx)): the values of one frame left out of some rows."""

SEED_SIGMA = 4.0
GROW_SIGMA = 1.7
"""σ is measured before resampling, which takes a tenth or more off the noise: 2 σ of the values."""
GROW_TIMES = 3
PASSES = 2
LAG = GROW_TIMES + 1
"""Rows by which the mean of a pass follows what the pass started from: one for the contrast with
the neighbours, three for the growth."""
HALO = PASSES * LAG
"""px around a pixel that have a say in it."""
RING = 16
"""Rows of a strip that are kept: more than HALO + 1, and a power of two."""
STRIP = 256
"""px, width of a strip with its halo …"""
CORE = STRIP - 2 * HALO
"""… and without it: what a thread takes of a tile at a time."""
WORD = 32
"""Frames in a word of bits."""
THREADS = min(PROCESSORS, 8)
"""Each that fills a tile needs memory of its own …"""
FILLER_FRAMES = 7 / 4
"""… for its frame's raw and calibrated pixels and their mask: as much as so many frames of it."""


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
    sigmas: Numbers | None = None,
    on_rejected: RejectedSink | None = None,
    progress: Callable[[float], None] | None = None,
) -> Final:
    """Combine frames with rejection.

    rows: gives each frame's rows on the reference grid; asked tile by tile, for every frame in
    the order of `terms`, with 8 rows of overlap. terms: one for each frame, as for the live stack.
    shape: (planes, ny, nx). memory_bytes: for the tiles and for what the threads that fill them
    need of their own; the result does not depend on it. skies: ADU, the sky's level in each plane
    of the stack; None measures it on the first frame. sigmas: (n, planes) ADU, noise of one pixel
    after scaling; None takes that of the terms for each plane.
    progress is called with the share done, 0 … 1.

    Raises ValueError without frames, or where `rows` gives a wrong shape.
    """

    def fillers(position: int, y0: int, y1: int) -> RowFiller:
        part = rows(position, y0, y1)
        if part.shape != (shape[0], y1 - y0, shape[2]):
            raise ValueError(f"rows of shape {part.shape} for frame {terms[position].index}")
        return lambda out: np.copyto(out, part)

    return combine_into(
        fillers,
        terms,
        shape=shape,
        memory_bytes=memory_bytes,
        skies=skies,
        sigmas=sigmas,
        on_rejected=on_rejected,
        progress=progress,
    )


def combine_into(
    rows: RowFillers,
    terms: Sequence[FrameTerms],
    *,
    shape: tuple[int, int, int],
    memory_bytes: int = 500_000_000,
    skies: Sequence[float] | None = None,
    sigmas: Numbers | None = None,
    on_rejected: RejectedSink | None = None,
    progress: Callable[[float], None] | None = None,
) -> Final:
    """As `combine`, from a source that writes its rows where they are needed, those of several
    frames side by side. What one raises is raised once those that were begun have ended.
    """
    if not terms:
        raise ValueError("there are no frames to combine")
    planes, height, width = shape
    number = len(terms)
    if skies is None:
        skies = _measure_skies(rows, terms[0], shape)
    if sigmas is None:
        sigmas = np.repeat([[frame.sigma_adu] for frame in terms], planes, axis=1)
    places = np.array(
        [[(frame.scale, *frame.planes[plane]) for frame in terms] for plane in range(planes)]
    )
    network = sorting_network(number)
    image = StackImage(
        mean=np.zeros(shape, np.float32),
        weight=np.zeros(shape, np.float32),
        variance=np.zeros(shape, np.float32),
        coverage=np.zeros((height, width), np.uint16),
    )
    words = -(-number // WORD) if on_rejected is not None else 0
    strips = -(-width // CORE)
    tallies = np.zeros((strips, number, 2), np.int64)
    spans = tiles(shape, number, memory_bytes)
    buffer = np.empty(number * planes * max(y1 - y0 for y0, y1, *_ in spans) * width, np.float32)
    with ThreadPoolExecutor(THREADS, "final", initializer=work_alone) as pool:
        ahead: list[RowFiller] = []
        for (y0, y1, first, last), following in zip_longest(spans, spans[1:]):
            extent = (number, planes, y1 - y0, width)
            values = buffer[: np.prod(extent)].reshape(extent)
            others = (rows(position, y0, y1) for position in range(len(ahead), number))
            _fill(pool, chain(ahead, others), values)
            rejected = np.zeros((planes, last - first, words, width), np.uint32)
            for plane in range(planes):
                table = _table(terms, sigmas[:, plane])
                work = functools.partial(
                    _work_on_strip, values, plane, y0, first - y0, last - y0, places[plane], table,
                    table.astype(np.float32), _typical(table), np.float32(skies[plane]), network,
                    image.mean[plane, first:last], image.weight[plane, first:last],
                    image.variance[plane, first:last], image.coverage[first:last], rejected[plane],
                    tallies,
                )  # fmt: skip
                combined = pool.map(work, range(strips))
                if plane == planes - 1 and following is not None:
                    # What the next tile begins with is looked up meanwhile.
                    few = range(min(2 * THREADS, number))
                    ahead = [rows(position, *following[:2]) for position in few]
                _wait_for(combined)
            if on_rejected is not None:
                for position in range(number):
                    word, bit = divmod(position, WORD)
                    on_rejected(position, first, (rejected[:, :, word] >> bit & 1).astype(np.bool_))
            if progress is not None:
                progress(last / height)
    left_out, there = tallies.sum(axis=0).T
    return Final(image=image, rejected=left_out / np.maximum(there, 1.0))


def _work_on_strip(values: Image, *arguments: Any) -> None:  # noqa: ANN401 - those of the kernel
    """Call `_combine_strip` with memory of its own."""
    _combine_strip(_Strip.of(len(values)), values, *arguments)


def _fill(pool: ThreadPoolExecutor, fillers: Iterable[RowFiller], values: Image) -> None:
    """Fill a tile (n, planes, rows, nx), each frame's rows by their filler."""
    begun: collections.deque[Future[None]] = collections.deque()
    for filler, out in zip(fillers, values, strict=True):
        begun.append(pool.submit(filler, out))
        if len(begun) > 2 * THREADS:
            begun.popleft().result()
    _wait_for(one.result() for one in begun)


def _wait_for(results: Iterable[object]) -> None:
    """Until all are there; what one of them raises is raised here."""
    collections.deque(results, maxlen=0)


def tiles(
    shape: tuple[int, int, int], number: int, memory_bytes: int
) -> list[tuple[int, int, int, int]]:
    """The tiles in which `number` frames of `shape` (planes, ny, nx) are combined, in order: rows
    y0 … y1 are asked of every frame, rows first … last are finished with them.
    """
    planes, height, width = shape
    row_bytes = 4 * planes * width * (number + FILLER_FRAMES * THREADS)
    step = int(np.clip(memory_bytes // row_bytes - 2 * HALO, 16, height))
    return [
        (max(first - HALO, 0), min(first + step + HALO, height), first, min(first + step, height))
        for first in range(0, height, step)
    ]


def _measure_skies(
    fillers: RowFillers, terms: FrameTerms, shape: tuple[int, int, int]
) -> tuple[float, ...]:
    """ADU, the median of each plane of one frame, in eight strips of four rows."""
    planes, height, width = shape
    strips = []
    for top in np.linspace(0, max(height - 4, 0), 8).astype(int):
        rows = np.empty((planes, min(4, height - top), width), np.float32)
        fillers(0, int(top), int(top) + rows.shape[1])(rows)
        y, x = np.mgrid[top : top + rows.shape[1], :width]
        offsets = np.array([a + bx * x + by * y for a, bx, by in terms.planes])
        strips.append(terms.scale * rows + offsets)
    sample = np.concatenate(strips, axis=1).reshape(planes, -1)
    if np.isnan(sample).all():
        return (terms.sky_adu * terms.scale,) * planes
    return tuple(float(sky) for sky in np.nanmedian(sample, axis=1))


def _table(terms: Sequence[FrameTerms], sigmas: Numbers) -> Numbers:
    """What the gate asks of each frame, (n, 5): weight, σ² in ADU², ADU² a source adds per ADU,
    the relative seeing term of a source, the same of the share of the contrast that is allowed.
    """
    weights = np.array([frame.weight for frame in terms])
    widths = np.array([frame.fwhm_px for frame in terms])
    width = weights @ widths / weights.sum()
    seeing = np.abs((width / widths) ** 2 - 1.0) + SEEING_FLOOR
    return np.column_stack(
        [
            weights,
            np.square(sigmas),
            [1.0 / frame.e_per_adu for frame in terms],
            seeing,
            seeing * steepness(float(width)) / CONTRAST_SHARE,
        ]
    )


def _typical(table: Numbers) -> Numbers:
    """For the variance, as in the live stack: the weighted mean of σ², that of a source's share,
    and the number of frames of equal weight that are worth one.
    """
    weights = table[:, 0]
    typical = weights @ table[:, 1] / weights.sum()
    per_adu = weights @ table[:, 2] / weights.sum()
    worth = typical * weights.sum() ** 2 / (weights**2 @ table[:, 1]) / len(table)
    return np.array([typical, per_adu, worth])


# --- kernels -------------------------------------------------------------------------------------


class _Strip(NamedTuple):
    """The rows of a strip that are being worked on: row y in slot y mod RING. Arrays that are
    looked up at a neighbour are one wider at both ends.
    """

    values: Image
    """(RING, n, STRIP) ADU, scaled; NaN where a frame has nothing."""
    present: Image
    """(RING, STRIP), how many of them are values."""
    centre: Image
    """(PASSES + 1, RING, STRIP + 2) ADU: the median, then the mean of each pass."""
    spread: Image
    """(PASSES + 1, RING, STRIP) ADU², measured variance of one value, 0 where unknown."""
    candidates: Bits
    """(PASSES, RING, words, STRIP), beyond the inner gate."""
    rejected: Bits
    """(PASSES, GROW_TIMES + 1, RING, words, STRIP + 2), after so many rounds of growth."""
    sorted: Image
    """(n, LANES), scratch."""
    lanes: Image
    """(6, STRIP), scratch."""
    weights: Numbers
    """(CORE,), scratch."""

    @classmethod
    def of(cls, number: int) -> Self:
        """For so many frames."""
        words = -(-number // WORD)
        centre = aligned((PASSES + 1, RING, STRIP + 2), np.float32)
        centre[:] = np.nan
        return cls(
            aligned((RING, number, STRIP), np.float32),
            aligned((RING, STRIP), np.float32),
            centre,
            aligned((PASSES + 1, RING, STRIP), np.float32),
            aligned((PASSES, RING, words, STRIP), np.uint32),
            aligned((PASSES, GROW_TIMES + 1, RING, words, STRIP + 2), np.uint32),
            aligned((number, LANES), np.float32),
            aligned((6, STRIP), np.float32),
            aligned((CORE,), np.float64),
        )


@kernel()
def _combine_strip(
    strip: _Strip, values: Image, plane: int, y0: int, first: int, last: int, places: Numbers,
    table: Numbers, gates: Image, typical: Numbers, sky: np.float32,
    network: npt.NDArray[np.int32], mean: Image, weight: Image, variance: Image, coverage: Count,
    rejected: Bits, tallies: npt.NDArray[np.int64], index: int,
) -> None:  # fmt: skip
    """Combine rows first … last of one plane of a tile (n, planes, rows, nx) whose first row is
    row y0 of the image, in the strip of that index. Results are the rows of the tile that are
    finished; `tallies` (strips, n, 2) is added to: values left out and values that there were.
    """
    height, width = values.shape[2:]
    left = index * CORE
    right = min(left + CORE, width)
    x0, x1 = max(left - HALO, 0), min(right + HALO, width)
    for step in range(height + HALO):
        if step < height:
            _centre(strip, values, plane, places, network, step, y0, x0, x1)
        for turn in range(PASSES):
            late = step - LAG * turn
            if 0 <= late - 1 < height:
                _mark(strip, turn, late - 1, x1 - x0, height, gates, sky)
            for times in range(GROW_TIMES):
                y = late - 2 - times
                if 0 <= y < height:
                    _grow(strip, turn, times, y, x1 - x0, height)
            if 0 <= late - LAG < height:
                _mean(strip, turn, late - LAG, x1 - x0, gates)
        y = step - HALO
        if first <= y < last:
            _finish(
                strip, y, left - x0, table, typical, sky, mean[y - first, left:right],
                weight[y - first, left:right], variance[y - first, left:right],
                coverage[y - first, left:right], rejected[y - first, :, left:right],
                tallies[index],
            )  # fmt: skip


@kernel()
def _centre(
    strip: _Strip,
    tile: Image,
    plane: int,
    places: Numbers,
    network: npt.NDArray[np.int32],
    y: int,
    y0: int,
    x0: int,
    x1: int,
) -> None:
    """Scale columns x0 … x1 of row y of a tile (n, planes, rows, nx) that begins at row y0, and
    find their median (of two middle values the lower, because what disturbs is bright; NaN of
    none) and the variance by the median absolute deviation, 0 of fewer than EMPIRICAL_FROM.
    """
    number, width = tile.shape[0], x1 - x0
    slot = y % RING
    values, count = strip.values[slot], strip.present[slot]
    centre, spread = strip.centre[0, slot], strip.spread[0, slot]
    count[:] = 0
    for i in range(number):
        scale, a, bx, by = places[i, 0], places[i, 1], places[i, 2], places[i, 3]
        rise = by * (y + y0)
        row, target = tile[i, plane, y, x0:x1], values[i]
        for x in range(width):
            value = np.float32(scale * row[x] + ((a + bx * (x + x0)) + rise))
            target[x] = value
            count[x] += np.float32(value == value)  # noqa: PLR0124 — NaN is not itself
    middle = (number - 1) // 2
    for x in range(0, width, LANES):
        lanes = min(LANES, width - x)
        for i in range(number):
            row = values[i, x : x + lanes]
            target = strip.sorted[i]
            for lane in range(lanes):
                value = row[lane]
                target[lane] = value if value == value else np.float32(np.inf)  # noqa: PLR0124
        sort_lanes(strip.sorted, network)
        centres, spreads = centre[x + 1 : x + 1 + lanes], spread[x : x + lanes]
        for lane in range(lanes):
            centres[lane] = strip.sorted[middle, lane]
        if number >= EMPIRICAL_FROM:
            _deviations(strip.sorted, centres, spreads)
        else:
            spreads[:] = 0
        for lane in range(lanes):
            n = int(count[x + lane])
            if n < number:
                _median_lane(strip.sorted, lane, n, centres, spreads)


@kernel()
def _deviations(values: Image, centres: Image, spreads: Image) -> None:
    """(1.4826 MAD)² of sorted values (n, LANES), all lanes together.

    The values nearest to the centre are neighbours in sorted order: the median deviation is the
    least, over all such groups of ⌊n/2⌋ + 1, of the larger deviation at the group's two ends.
    """
    number = values.shape[0]
    group = number // 2
    spreads[:] = np.inf
    for j in range(number - group):
        low, high = values[j], values[j + group]
        for lane in range(centres.size):
            farther = max(centres[lane] - low[lane], high[lane] - centres[lane])
            spreads[lane] = min(spreads[lane], farther)
    for lane in range(centres.size):
        sigma = np.float32(1.4826) * spreads[lane]
        spreads[lane] = sigma * sigma


@kernel()
def _median_lane(values: Image, lane: int, n: int, centres: Image, spreads: Image) -> None:
    """As above for one lane of which only the first n values are values."""
    spreads[lane] = 0
    if n == 0:
        centres[lane] = np.nan
        return
    centre = values[(n - 1) // 2, lane]
    centres[lane] = centre
    if n >= EMPIRICAL_FROM:
        group = n // 2
        deviation = np.float32(np.inf)
        for j in range(n - group):
            farther = max(centre - values[j, lane], values[j + group, lane] - centre)
            deviation = min(deviation, farther)
        sigma = np.float32(1.4826) * deviation
        spreads[lane] = sigma * sigma


@kernel()
def _contrasts(above: Image, here: Image, below: Image, out: Numbers) -> None:
    """The largest difference of each pixel to its eight neighbours; the rows are one wider than
    `out` at both ends. A comparison with NaN is false, so that NaN neighbours are left out.
    """
    for x in range(out.size):
        centre = here[x + 1]
        largest = np.float32(0)
        for k in range(3):
            difference = abs(above[x + k] - centre)
            largest = difference if difference > largest else largest  # noqa: FURB136
            difference = abs(here[x + k] - centre)
            largest = difference if difference > largest else largest  # noqa: FURB136
            difference = abs(below[x + k] - centre)
            largest = difference if difference > largest else largest  # noqa: FURB136
        out[x] = largest


@kernel()
def _mark(
    strip: _Strip, turn: int, y: int, width: int, height: int, table: Image, sky: np.float32
) -> None:
    """Flag values beyond the inner gate as candidates and beyond the outer one as rejected."""
    slot = y % RING
    zero, none = np.float32(0), np.uint32(0)
    centre = strip.centre[turn]
    here = centre[slot, 1:]
    lanes = strip.lanes
    sources, known, least, fixed = lanes[0], lanes[1], lanes[2], lanes[3]
    sigma, excess = lanes[4], lanes[5]
    _contrasts(
        centre[max(y - 1, 0) % RING],
        centre[slot],
        centre[min(y + 1, height - 1) % RING],
        fixed[:width],
    )
    count, spread = strip.present[slot], strip.spread[turn, slot]
    for x in range(width):
        n = count[x]
        sources[x] = max(here[x] - sky, zero)
        known[x] = np.float32(1) + np.float32(CENTRE_VARIANCE) / max(n, np.float32(1))
        least[x] = spread[x] if n >= EMPIRICAL_FROM else zero
        fixed[x] *= np.float32(CONTRAST_SHARE)
    strip.candidates[turn, slot] = 0
    strip.rejected[turn, 0, slot] = 0
    for i in range(table.shape[0]):
        word, bit = i // WORD, np.uint32(1) << np.uint32(i % WORD)
        row = strip.values[slot, i]
        candidates = strip.candidates[turn, slot, word]
        rejected = strip.rejected[turn, 0, slot, word, 1:]
        variance, per_adu, seeing, steep = table[i, 1], table[i, 2], table[i, 3], table[i, 4]
        for x in range(width):
            noise = (variance + sources[x] * per_adu) * known[x]
            sigma[x] = np.sqrt(max(noise, least[x]))
        for x in range(width):
            blurred, steepest = seeing * sources[x], steep * fixed[x]
            slack = (blurred if blurred < steepest else steepest) + fixed[x]  # noqa: FURB136
            excess[x] = abs(row[x] - here[x]) - slack
        for x in range(width):
            candidates[x] |= bit if excess[x] > np.float32(GROW_SIGMA) * sigma[x] else none
            rejected[x] |= bit if excess[x] > np.float32(SEED_SIGMA) * sigma[x] else none


@kernel()
def _grow(strip: _Strip, turn: int, times: int, y: int, width: int, height: int) -> None:
    """Reject candidates next to values rejected in the rounds before this one."""
    slot = y % RING
    before, after = strip.rejected[turn, times], strip.rejected[turn, times + 1, slot]
    above, below = before[max(y - 1, 0) % RING], before[min(y + 1, height - 1) % RING]
    here = before[slot]
    for word in range(after.shape[0]):
        candidates = strip.candidates[turn, slot, word]
        a, b, c, out = above[word], here[word], below[word], after[word]
        for x in range(width):
            near = (a[x] | a[x + 1] | a[x + 2]) | (b[x] | b[x + 2]) | (c[x] | c[x + 1] | c[x + 2])
            out[x + 1] = b[x + 1] | (candidates[x] & near)


@kernel()
def _mean(strip: _Strip, turn: int, y: int, width: int, table: Image) -> None:
    """Weighted mean and variance of one value of what is not rejected. Where nothing is left the
    centre stays.

    Sums are of differences to the centre, so that single precision is enough.
    """
    slot = y % RING
    zero = np.float32(0)
    values = strip.values[slot]
    rejected = strip.rejected[turn, GROW_TIMES, slot]
    before, after = strip.centre[turn, slot, 1:], strip.centre[turn + 1, slot, 1:]
    lanes = strip.lanes
    total, weights, count, squares = lanes[0], lanes[1], lanes[2], lanes[3]
    share, away = lanes[4], lanes[5]
    total[:] = 0
    weights[:] = 0
    count[:] = 0
    squares[:] = 0
    for i in range(values.shape[0]):
        bit, weight = np.uint32(1) << np.uint32(i % WORD), table[i, 0]
        row, out = values[i], rejected[i // WORD, 1:]
        for x in range(width):
            difference = row[x] - before[x]
            kept = (out[x] & bit) == 0 and difference == difference  # noqa: PLR0124 — not NaN
            share[x] = weight if kept else zero
            away[x] = difference if kept else zero
        for x in range(width):
            weights[x] += share[x]
            count[x] += np.float32(share[x] > zero)
        for x in range(width):
            total[x] += share[x] * away[x]
            squares[x] += share[x] * (away[x] * away[x])
    spread = strip.spread[turn + 1, slot]
    for x in range(width):
        n = count[x]
        some, many = n > 0, n > 1
        weight = weights[x] if some else np.float32(1)
        shift = total[x] / weight
        after[x] = before[x] + shift
        about_mean = max(squares[x] / weight - shift * shift, zero)
        spread[x] = about_mean * n / (n - np.float32(1)) if many else zero


@kernel()
def _finish(
    strip: _Strip, y: int, left: int, table: Numbers, typical: Numbers, sky: np.float32,
    mean: Image, weight: Image, variance: Image, coverage: Count, rejected: Bits,
    tally: npt.NDArray[np.int64],
) -> None:  # fmt: skip
    """Hand out one row: columns `left` … of the strip, as many as `mean` has.

    The variance weighs the measured spread and the noise model as the live stack does.
    """
    slot = y % RING
    weights, count = strip.weights[: mean.size], strip.lanes[1]
    weights[:] = 0.0
    count[:] = 0
    out_of = strip.rejected[PASSES - 1, GROW_TIMES, slot]
    for i in range(table.shape[0]):
        bit, share = np.uint32(i % WORD), table[i, 0]
        row, out = strip.values[slot, i, left:], out_of[i // WORD, left + 1 :]
        missing = 0
        present = 0
        for x in range(mean.size):
            there = row[x] == row[x]
            gone = (out[x] >> bit) & np.uint32(1) != 0
            present += there
            missing += gone
            weights[x] += share if there and not gone else 0.0
            count[x] += np.float32(1) if there and not gone else np.float32(0)
        tally[i, 0] += missing
        tally[i, 1] += present
    for word in range(rejected.shape[0]):
        for x in range(mean.size):
            rejected[word, x] = out_of[word, left + 1 + x]
    centre, spread = strip.centre[PASSES, slot, left + 1 :], strip.spread[PASSES, slot, left:]
    for x in range(mean.size):
        value, n = centre[x], count[x]
        mean[x] = value if value == value else np.float32(0)  # noqa: PLR0124
        weight[x] = weights[x]
        variance[x] = 0
        if n > 0:
            model = typical[0] + typical[1] * max(value - sky, 0.0)
            freedom = n - 1.0
            combined = (MODEL_FREEDOM * model + freedom * spread[x]) / (MODEL_FREEDOM + freedom)
            variance[x] = combined / (n * typical[2])
        coverage[x] = max(coverage[x], int(n))
