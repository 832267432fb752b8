"""Sigma-clipped mean and median of many frames, in tiles of rows, at bounded memory.

Each of some threads reads a tile and combines it, while it is still in the processor's cache.

Every pixel is computed by itself (`clip`): the result does not depend on the number of threads or
on the size of the tiles. Frames of 16-bit integers are combined as they are stored; others, and
frames that are to be scaled, as float32.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from calib_library.clip import LANES, Scratch, clip_floats, clip_integers, decode, sorting_network
from calib_library.errors import IncompatibleFramesError
from calib_library.kernels import PROCESSORS, aligned

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
                decode(tile, offset, values)
            factors = aligned((n, LANES), np.float32)
            scratch = Scratch.of(n, np.float32, np.float64)
            clip_floats(values, y0, dark, scale, network, factors, *scratch, *clipping, *out)
        else:
            scratch = Scratch.of(n, np.uint16, np.int32)
            clip_integers(tile, offset, network, *scratch, *clipping, *out)
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
