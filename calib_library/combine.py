"""Sigma-clipped mean and median of many frames, in tiles of rows, at bounded memory.

Each of some threads reads a tile and combines it, while it is still in the processor's cache.

The frames' values at a pixel are sorted, 64 neighbouring pixels at a time: a sorting network is a
fixed list of compare-and-swap steps, and each step works on 64 pixels side by side, which the
compiler turns into vector instructions. In sorted order the clipped values lie at the two ends, so
that what is kept is always a range. Every pixel is computed by itself: the result does not depend
on the number of threads or on the size of the tiles.

Frames of 16-bit integers are sorted as they are stored; others, and frames that are to be scaled,
as float32.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from calib_library.errors import IncompatibleFramesError
from calib_library.kernels import PROCESSORS, aligned, kernel

LANES = 64
"""Pixels sorted side by side: one cache line of uint16 twice, small enough for any first cache."""
TILE_BYTES = 8_000_000
"""Of one tile's input: what each core can keep in its share of the last cache."""
READ_BYTES = 64_000
"""Less is not read at once of a frame, however many frames there are."""
AHEAD = 2
"""Tiles that may be done before those above them are given out."""
THREADS = max(2, PROCESSORS)
"""Each reads (and hashes) and combines one tile at a time; with two, one reads meanwhile."""

Floats = npt.NDArray[np.float32]
T = TypeVar("T")


class Rows(Protocol):
    """A frame that can be read by rows, such as `RowReader` or `ArrayRows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(ny, nx)."""

    @property
    def storage(self) -> str:
        """Name of the dtype of the physical values."""

    @property
    def plain(self) -> bool:
        """`rows` gives `>i2`; physical value = stored + `bzero`. Otherwise float32 values."""

    @property
    def bzero(self) -> float:
        """32768 or 0 (ADU), for plain frames."""

    def rows(self, y0: int, y1: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Rows y0 to y1 (exclusive) into `out`, (y1 - y0, nx)."""


@dataclasses.dataclass(frozen=True, slots=True)
class ArrayRows:
    """An image in memory, read by rows."""

    pixels: npt.NDArray[Any]
    """(ny, nx), any real dtype, ADU."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(ny, nx)."""
        return self.pixels.shape

    @property
    def storage(self) -> str:
        """The dtype of the values."""
        return self.pixels.dtype.name

    @property
    def plain(self) -> bool:
        """Whether the rows are big-endian 16-bit: unsigned pixels are given in the FITS form."""
        return self.pixels.dtype in (np.uint16, np.int16)

    @property
    def bzero(self) -> float:
        """32768 for unsigned 16-bit pixels."""
        return 32768.0 if self.pixels.dtype == np.uint16 else 0.0

    def rows(self, y0: int, y1: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Rows y0 to y1 (exclusive), `>i2` where plain, else float32, into `out` where given."""
        part = self.pixels[y0:y1]
        if out is None:
            out = np.empty(part.shape, ">i2" if self.plain else np.float32)
        if self.plain:
            part = (part.astype(np.int32) - int(self.bzero)).astype(np.int16)
        np.copyto(out, part, casting="unsafe")
        return out


@dataclasses.dataclass(frozen=True, slots=True)
class Combined:
    """A combined frame, all arrays (ny, nx)."""

    mean: Floats
    """ADU (times the scale, where frames were scaled); 0 where no frame has a finite value."""
    variance: Floats
    """ADU², of the mean: sample variance of the kept values / their number; 0 below two values."""
    count: npt.NDArray[np.uint16]
    """Values kept."""

    @classmethod
    def empty(cls, ny: int, nx: int) -> Self:
        """Room for one, with anything in it."""
        return cls(
            np.empty((ny, nx), np.float32),
            np.empty((ny, nx), np.float32),
            np.empty((ny, nx), np.uint16),
        )

    def rows(self, y0: int, y1: int) -> Self:
        """Rows y0 to y1 (exclusive), as views."""
        return type(self)(self.mean[y0:y1], self.variance[y0:y1], self.count[y0:y1])


def reachable_sigma(sigma: float, n: int) -> float:
    """Return the clip for n frames, in standard deviations, that can still reject one of them.

    One wild value among n lies n/√(n−1) population standard deviations from the others' median,
    however wild: at 3σ nothing could be rejected from 8 frames or fewer. Nine tenths of it leaves
    room for the others' own noise.
    """
    return sigma if n < 2 else min(sigma, 0.9 * n / math.sqrt(n - 1))


def sigma_clipped_mean(
    readers: Sequence[Rows],
    *,
    sigma: float = 3.0,
    iterations: int = 5,
    scales: npt.NDArray[np.float64] | None = None,
    subtract: Floats | None = None,
    memory_bytes: int = 256_000_000,
    progress: Callable[[float], None] | None = None,
) -> Combined:
    """Combine frames of one geometry and storage by the mean of what a sigma clip keeps.

    The clip is that of `astropy.stats.sigma_clip` with cenfunc="median", stdfunc="std": up to
    `iterations` times, values farther than `sigma` population standard deviations from the median
    of those still kept are dropped. Values that are not finite are never kept. Note that the
    largest deviation among n values is (n - 1) / √n standard deviations: at 3 sigma, fewer than
    11 frames lose nothing.

    `subtract` (ny, nx), ADU, is taken from every frame first. `scales` then multiplies: (n,) a
    factor a frame, or (n, 4) a factor a frame and Bayer phase, phase = 2 (y mod 2) + x mod 2.
    `memory_bytes` bounds the working memory beside the result. `progress` is given the fraction
    done, 0 to 1, from the calling thread. Nothing is mutated.

    Raises IncompatibleFramesError (no frames, geometry or storage differ, fewer than 1 px), and
    whatever the readers raise.
    """
    clip = _Clip(sigma=sigma, iterations=iterations, median=False)
    return _combine(
        readers,
        clip,
        scales=scales,
        subtract=subtract,
        memory_bytes=memory_bytes,
        progress=progress,
    )


def sigma_clipped_rows(
    readers: Sequence[Rows],
    then: Callable[[int, Combined], T],
    *,
    sigma: float = 3.0,
    iterations: int = 5,
    scales: npt.NDArray[np.float64] | None = None,
    subtract: Floats | None = None,
    memory_bytes: int = 256_000_000,
) -> Generator[tuple[int, T]]:
    """The same in pieces, for results that need not be in memory as a whole: (y1, what `then` made
    of the rows up to y1, exclusive), from the top to the bottom.

    `then` is given their first row y0 and the rows; several threads call it at a time. Every reader
    is asked for all its rows, once and in order, by one thread at a time.
    """
    clip = _Clip(sigma=sigma, iterations=iterations, median=False)
    return _pieces(readers, clip, then, scales=scales, subtract=subtract, memory_bytes=memory_bytes)


def median(
    readers: Sequence[Rows],
    *,
    scales: npt.NDArray[np.float64] | None = None,
    subtract: Floats | None = None,
    memory_bytes: int = 256_000_000,
    progress: Callable[[float], None] | None = None,
) -> Floats:
    """Combine frames by the median of their finite values, (ny, nx) float32, ADU.

    The mean of the middle two for an even number; 0 where no value is finite. Arguments and errors
    as for `sigma_clipped_mean`.
    """
    clip = _Clip(sigma=math.inf, iterations=0, median=True)
    return _combine(
        readers,
        clip,
        scales=scales,
        subtract=subtract,
        memory_bytes=memory_bytes,
        progress=progress,
    ).mean


@dataclasses.dataclass(frozen=True, slots=True)
class _Clip:
    sigma: float
    iterations: int
    median: bool
    """The result is the median of all values instead of the mean of those kept."""


def _combine(
    readers: Sequence[Rows],
    clip: _Clip,
    *,
    scales: npt.NDArray[np.float64] | None,
    subtract: Floats | None,
    memory_bytes: int,
    progress: Callable[[float], None] | None,
) -> Combined:
    ny, nx = _common_shape(readers, subtract)
    result = Combined.empty(ny, nx)
    pieces = _pieces(
        readers,
        clip,
        lambda _y0, _part: None,
        scales=scales,
        subtract=subtract,
        memory_bytes=memory_bytes,
        result=result,
    )
    for y1, _ in pieces:
        if progress is not None:
            progress(y1 / ny)
    return result


def _pieces(
    readers: Sequence[Rows],
    clip: _Clip,
    then: Callable[[int, Combined], T],
    *,
    scales: npt.NDArray[np.float64] | None,
    subtract: Floats | None,
    memory_bytes: int,
    result: Combined | None = None,
) -> Generator[tuple[int, T]]:
    """Combine tile by tile, as `sigma_clipped_rows`; into `result` where it is given."""
    _, nx = _common_shape(readers, subtract)
    n = len(readers)
    plain, bzero = alike(readers), readers[0].bzero
    factors = _factors(scales, n)
    offset = bzero - 32768.0
    if subtract is not None:
        subtract = np.ascontiguousarray(subtract, np.float32)
    floats = not plain or factors is not None
    scale = factors if factors is not None else np.ones((n, 4), np.float32)
    network = sorting_network(n)
    clipping = clip.sigma, clip.iterations, int(clip.median)
    height = tile_height(readers, memory_bytes // (3 if plain and floats else 1), plain=plain)

    def work(y0: int, y1: int, tile: npt.NDArray[Any]) -> T:
        part = result.rows(y0, y1) if result else Combined.empty(y1 - y0, nx)
        out = part.mean, part.variance, part.count
        dark = subtract[y0:y1] if subtract is not None else np.empty((0, 0), np.float32)
        if floats:
            values = tile
            if plain:
                values = np.empty(tile.shape, np.float32)
                _decode(tile, offset, values)
            factors = aligned((n, LANES), np.float32)
            scratch = _Scratch.of(n, np.float32, np.float64)
            _clip_floats(values, y0, dark, scale, network, factors, *scratch, *clipping, *out)
        else:
            scratch = _Scratch.of(n, np.uint16, np.int32)
            _clip_integers(tile, offset, network, *scratch, *clipping, *out)
            if subtract is not None:
                part.mean[:] -= dark  # a shift common to all frames does not move the clip
        return then(y0, part)

    return through_tiles(readers, height, work, plain=plain)


def _common_shape(readers: Sequence[Rows], subtract: Floats | None) -> tuple[int, int]:
    if not readers:
        raise IncompatibleFramesError("there are no frames to combine")
    first = readers[0]
    for reader in readers:
        if len(reader.shape) != 2:
            raise IncompatibleFramesError("colour images cannot be combined into a master")
        if reader.shape != first.shape:
            raise IncompatibleFramesError(
                f"frames of {_size(first.shape)} and {_size(reader.shape)} px cannot be combined"
            )
        if reader.storage != first.storage:
            raise IncompatibleFramesError(
                f"frames stored as {first.storage} and {reader.storage} cannot be combined"
            )
    if subtract is not None and subtract.shape != first.shape:
        raise IncompatibleFramesError(
            f"what is to be subtracted has {_size(subtract.shape)} px, "
            f"the frames have {_size(first.shape)}"
        )
    return first.shape[0], first.shape[1]


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(str(length) for length in reversed(shape))


def _factors(scales: npt.NDArray[np.float64] | None, n: int) -> Floats | None:
    """Scales as (n, 4) float32, or None."""
    if scales is None:
        return None
    columns = np.asarray(scales, np.float64).reshape(n, -1)
    return np.ascontiguousarray(np.broadcast_to(columns, (n, 4)), np.float32)


def alike(readers: Sequence[Rows]) -> bool:
    """Whether all frames give their rows as stored, with one offset. Compressed ones do not: a set
    may hold both.
    """
    return all(one.plain and one.bzero == readers[0].bzero for one in readers)


def tile_height(readers: Sequence[Rows], memory_bytes: int, *, plain: bool) -> int:
    """Return how many rows a tile has; all that are read at a time fit into `memory_bytes`."""
    ny, nx = readers[0].shape
    row_bytes = nx * (2 if plain else 4)
    wanted = max(TILE_BYTES // (len(readers) * row_bytes), -(-READ_BYTES // row_bytes))
    fitting = memory_bytes // (THREADS * len(readers) * row_bytes)
    return max(1, min(ny, wanted, fitting))


def through_tiles(
    readers: Sequence[Rows],
    height: int,
    work: Callable[[int, int, npt.NDArray[Any]], T],
    *,
    plain: bool,
) -> Generator[tuple[int, T]]:
    """Read like frames in tiles of so many rows, each taken through `work` by one of some threads:
    (y1, what `work` returned for the rows up to y1, exclusive), from the top to the bottom.

    `work` is given y0, y1 and the values (n, y1 - y0, nx), which it may change and must not keep;
    at most THREADS + AHEAD tiles are worked on or done and not yet given out. `plain` tiles (for
    frames that are `alike`) hold the stored bytes, viewed as uint16 in native order; others float32
    values, ADU.
    """
    (ny, nx), n = readers[0].shape, len(readers)
    dtype = np.dtype(">i2") if plain else np.dtype(np.float32)
    # The last one that was given back is the first to be used again: it is still in the cache.
    buffers = [np.empty(n * height * nx, dtype) for _ in range(THREADS)]

    def one(y0: int, y1: int, above: _Turns, own: _Turns) -> tuple[int, T]:
        buffer = buffers.pop()
        try:
            tile = buffer[: n * (y1 - y0) * nx].reshape(n, y1 - y0, nx)
            _read_in_turn(readers, y0, y1, tile, above, own)
            return y1, work(y0, y1, tile.view(np.uint16) if plain else tile)
        finally:
            buffers.append(buffer)

    running: deque[Future[tuple[int, T]]] = deque()
    above: _Turns = SimpleQueue()
    _release(above, n)
    with ThreadPoolExecutor(THREADS, "combine") as pool:
        for y0 in range(0, ny, height):
            if len(running) == THREADS + AHEAD:
                yield running.popleft().result()
            own: _Turns = SimpleQueue()
            running.append(pool.submit(one, y0, min(y0 + height, ny), above, own))
            above = own
        while running:
            yield running.popleft().result()


_Turns = SimpleQueue[None]
"""One entry for each frame whose rows of a tile have been read."""


def _release(turns: _Turns, count: int) -> None:
    for _ in range(count):
        turns.put(None)


def _read_in_turn(
    readers: Sequence[Rows],
    y0: int,
    y1: int,
    tile: npt.NDArray[Any],
    above: _Turns,
    own: _Turns,
) -> None:
    """Fill a tile, of each frame only after the tile above: rows are hashed in order."""
    left = len(readers)
    try:
        for reader, rows in zip(readers, tile, strict=True):
            above.get()
            _read(reader, y0, y1, rows)
            own.put(None)
            left -= 1
    finally:
        _release(own, left)  # of an error nobody below must wait for ever


def _read(reader: Rows, y0: int, y1: int, rows: npt.NDArray[Any]) -> None:
    if reader.plain and rows.dtype == np.float32:
        np.add(reader.rows(y0, y1), np.float32(reader.bzero), out=rows, casting="unsafe")
    else:
        reader.rows(y0, y1, rows)


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


# --- kernels -------------------------------------------------------------------------------------


_ALL_SETTLED = np.uint64(0x0101010101010101)
"""Eight times True."""


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

    `offset` is added to the mean; `whole`: the values are whole numbers; the rest is `_Scratch`.
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


class _Scratch(NamedTuple):
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
def _clip_integers(
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
def _clip_floats(
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
def _decode(tile: npt.NDArray[np.uint16], offset: float, out: Floats) -> None:
    """Big-endian int16 pixels as stored, (n, rows, nx) → stored + 32768 + offset."""
    n, height, nx = tile.shape
    for y in range(height):
        for k in range(n):
            for x in range(nx):
                v = tile[k, y, x]
                out[k, y, x] = np.float32((((v >> 8) | (v << 8)) & 0xFFFF) ^ 0x8000) + offset
