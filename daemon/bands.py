"""Bands of calibrated frames, made again from their raw files: for work that goes over a stack in
tiles and must not keep frames in memory.

For some rows of the stack, each frame gives the rows that lie under them. What is applied to a band
is looked up by the thread that owns the library; after that any thread can make it.
"""

import collections
import dataclasses
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from calib_library import overscan
from calib_library.dark_model import DarkPlan
from calib_library.errors import ImageError
from calib_library.frame import FrameRecord
from calib_library.images import frame_file
from calib_library.images.row_reader import RowReader
from daemon.calibration import (
    Arrays,
    Calibration,
    Calibrator,
    applied_sections,
    hot_step,
    sampled_rows,
    useful_correction,
)
from daemon.darkroom import key_of
from daemon.ledger.ledger import Frame
from daemon.ledger.stacks import Member
from daemon.light import calibrate, debayer, distortion, warp
from daemon.light.noise import neighbour_noise
from daemon.pipeline import Pipeline

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Request = tuple[int, int, int]
"""(position of a frame, first row, one past the last)."""

MARGIN_ROWS = 16
"""Rows of a frame beyond those that lie under a tile: 3 for the kernel, 6 for the repair of bad
pixels in a mosaic, 1 for its colours, and some for the bend between the points that are looked at.
"""
LOOKED_AT = 33
"""Points along a tile's width at which its place in a frame is computed."""
AHEAD = 2
"""Bands that are read ahead."""
STRIPS, STRIP_ROWS = 4, 64
"""Where the noise of a colour frame's planes is measured."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One frame of the stack, as it is needed to make its pixels again."""

    member: Member
    frame: Frame
    record: FrameRecord
    calibration: Calibration
    shape: tuple[int, int]
    """(ny, nx) of the useful part of the raw file …"""
    useful: tuple[slice, slice]
    """… and where it lies there."""
    overscan_adu: Image | None
    """What is taken off it first, (ny, 1) or (1, nx); None without an overscan."""
    version: tuple[int, int]
    """Size and mtime_ns that the raw file had when it was found to be the one that was stacked."""
    noise_adu: float
    """Of a raw pixel."""
    rays: tuple[npt.NDArray[np.int64], Image]
    """Pixels that were cleaned of cosmic rays, by their place in the flattened frame, and what
    stands there now (ADU)."""


class LostFrameError(Exception):
    """A raw file that was there a moment ago cannot be read any more."""

    def __init__(self, source: Source, why: str) -> None:
        super().__init__(why)
        self.source = source


def open_sources(pipeline: Pipeline, members: Sequence[Member]) -> list[Source]:
    """The members whose raw files are what was stacked; of the others a line in the log."""
    # With enough frames the stack finds cosmic rays by itself, and better.
    clean = pipeline.cleans(len(members))
    sources: list[Source] = []
    for member in members:
        frame = pipeline.ledger.get(member.frame_id)
        if frame is None or frame.record is None:
            continue
        try:
            source = _open(pipeline, frame, frame.record, member, clean=clean)
        except (ImageError, OSError) as error:
            pipeline.log.warning("MISSING", f"cannot be read again: {error}", frame=frame.name)
            continue
        if source is not None:
            sources.append(source)
    return sources


def _open(
    pipeline: Pipeline, frame: Frame, record: FrameRecord, member: Member, *, clean: bool
) -> Source | None:
    version = _version(frame.path)
    # The content is read only where size or time make it doubtful.
    if version != (frame.size, frame.mtime_ns) and pipeline.raw(frame) is None:
        return None
    calibration = pipeline.calibrator.recorded(member.masters)
    sections = applied_sections(record, calibration)
    with RowReader(frame.path) as reader:
        useful = overscan.useful(sections, reader.shape)
        rows = range(reader.shape[0])[sampled_rows(reader.shape[0])]
        sample = np.concatenate([_native(reader, reader.rows(y, y + 1)) for y in rows])
    nothing = np.empty(0, np.int64), np.empty(0, np.float32)
    cleaned = clean and "cosmics cleaned" in member.flags
    return Source(
        member=member,
        frame=frame,
        record=record,
        calibration=calibration,
        shape=(useful[0].stop - useful[0].start, useful[1].stop - useful[1].start),
        useful=useful,
        overscan_adu=useful_correction(frame_file.load(frame.path).pixels, sections)
        if sections.bias
        else None,
        version=version,
        noise_adu=neighbour_noise(sample, bayer=record.key.bayer_pattern is not None),
        rays=_rays(pipeline, frame, record, calibration) if cleaned else nothing,
    )


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _rays(
    pipeline: Pipeline, frame: Frame, record: FrameRecord, calibration: Calibration
) -> tuple[npt.NDArray[np.int64], Image]:
    """Where cosmic rays were cleaned from one whole frame, and what stands there now."""
    loaded = frame_file.load(frame.path)
    cleaned, _ = pipeline.calibrated(loaded, record, calibration, clean=True)
    plain, _ = pipeline.calibrated(loaded, record, calibration, clean=False)
    at = np.flatnonzero(cleaned != plain)
    return at, cleaned.reshape(-1)[at]


def _native(reader: RowReader, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What a reader gave, as physical values in the machine's byte order: in place."""
    if not reader.plain:
        return rows
    native = rows.byteswap(inplace=True).view(rows.dtype.newbyteorder("="))
    if not reader.bzero:
        return native
    unsigned = native.view(np.uint16)
    unsigned ^= np.uint16(0x8000)  # + 32768 modulo 65536
    return unsigned


def band_of(source: Source, y0: int, y1: int, width: int) -> tuple[int, int]:
    """The rows of a frame that rows y0 … y1 of the stack, `width` px wide, are made from; an even
    first row, so that a mosaic's pattern stays what it is. (0, 0) where there are none.
    """
    ny = source.shape[0]
    across = np.linspace(0, width - 1, LOOKED_AT)
    down = np.linspace(y0, y1 - 1, 5)
    points = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
    inverse = warp.invert(source.member.matrix)
    if np.any(points @ inverse[2, :2] + 1.0 <= 0):
        return 0, ny
    y = distortion.to_frame(source.member.matrix, source.member.distortion, points)[:, 1]
    first = max(int(np.floor(y.min())) - MARGIN_ROWS, 0) // 2 * 2
    last = min(int(np.ceil(y.max())) + MARGIN_ROWS + 1, ny)
    return (first, last) if first < last else (0, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Band:
    """Rows first … last of a frame, and what makes them of its raw file."""

    source: Source
    first: int
    last: int
    arrays: Arrays
    """What is applied to these rows."""
    raw: Future[npt.NDArray[Any]] | None
    """Their raw pixels, where they are read ahead."""


class Bands:
    """Bands of the frames, calibrated. `tiles`: for each tile that is gone through, in turn, the
    bands that will be asked for. With `read_ahead` a thread reads their bytes in that order.

    `at` is for the thread that made this. What it gives may be made by any thread, several at a
    time where nothing is read ahead; the arrays that a thread gets are overwritten by its next.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        sources: Sequence[Source],
        tiles: Sequence[Sequence[Request]],
        *,
        read_ahead: bool,
    ) -> None:
        self._sources = sources
        self._masters = _Masters(pipeline.calibrator, sources, tiles)
        order = itertools.chain.from_iterable(tiles) if read_ahead else ()
        self._coming = iter([one for one in order if one[1] < one[2]])
        self._ahead: collections.deque[tuple[Request, Future[npt.NDArray[Any]]]] = (
            collections.deque()
        )
        self._pool = ThreadPoolExecutor(1, "band-reader")
        self._buffers = [Scratch() for _ in range(AHEAD + 2)]
        self._turn = 0
        self._room = _Room()

    def __enter__(self) -> Self:
        self._read_ahead()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def at(self, position: int, first: int, last: int) -> Band:
        """Rows first … last of a frame, to be made. Raises LibraryError where a master cannot be
        read.
        """
        arrays = self._masters.arrays(position, first, last)
        raw = self._read_before((position, first, last))
        return Band(self._sources[position], first, last, arrays, raw)

    def calibrated(self, band: Band) -> tuple[Image, Mask]:
        """(planes, last − first, nx) ADU and the mask of these rows. Raises LostFrameError."""
        mosaic, mask = self.mosaic(band)
        pattern = band.source.record.key.bayer_pattern
        if pattern is None:
            return mosaic[np.newaxis], mask
        planes = self._room.planes.array((3, *mosaic.shape), np.float32)
        return debayer.debayer(mosaic, pattern, out=planes), mask

    def mosaic(self, band: Band) -> tuple[Image, Mask]:
        """The same before the colours are told apart, (last − first, nx)."""
        source, first, last, part = band.source, band.first, band.last, band.arrays
        rows = band.raw.result() if band.raw else _read(source, first, last, self._room.raw)
        raw = rows[:, source.useful[1]]
        levels = source.overscan_adu
        result = calibrate.calibrate(
            raw,
            overscan_adu=levels[first:last] if levels is not None and len(levels) > 1 else levels,
            dark=part.dark,
            flat=part.flat,
            bad=part.bad,
            bad_above=part.bad_above,
            bayer=source.record.key.bayer_pattern is not None,
            out=self._room.image.array(raw.shape, np.float32),
            mask_out=self._room.mask.array(raw.shape, np.uint8),
        )
        width = source.shape[1]
        places, values = source.rays
        low, high = np.searchsorted(places, (first * width, last * width))
        result.image.reshape(-1)[places[low:high] - first * width] = values[low:high]
        return result.image, result.mask

    def plane_sigmas(self, position: int, planes: int) -> list[float]:
        """ADU after scaling, the noise in each plane, as the growing stack takes it: a plane that
        is noisier than the luminance, by its own pixels, keeps its own.
        """
        source = self._sources[position]
        terms = source.member.terms
        if planes == 1:
            return [terms.sigma_adu]
        measured = []
        for first, last in _strips(source.shape[0]):
            image, _ = self.calibrated(self.at(position, first, last))
            measured.append([warp.pixel_noise(plane[np.newaxis]) for plane in image])
        own = terms.scale * np.median(measured, axis=0)
        return [max(terms.sigma_adu, float(sigma)) for sigma in own]

    def pixel_sigmas(self, position: int) -> list[float]:
        """ADU after scaling, the noise of one pixel of each colour, before the colours are told
        apart.
        """
        source = self._sources[position]
        terms, pattern = source.member.terms, source.record.key.bayer_pattern
        if pattern is None:
            return [terms.sigma_adu]
        measured = []
        for first, last in _strips(source.shape[0]):
            mosaic, _ = self.mosaic(self.at(position, first, last))
            sites = [mosaic[np.newaxis, k // 2 :: 2, k % 2 :: 2] for k in range(4)]
            found = [warp.pixel_noise(site) for site in sites]
            measured.append(
                [np.mean([found[k] for k in range(4) if pattern[k] == c]) for c in "RGB"]
            )
        return [float(sigma) for sigma in terms.scale * np.median(measured, axis=0)]

    def _read_before(self, request: Request) -> Future[npt.NDArray[Any]] | None:
        """What is read ahead of a band; None where it is not its turn."""
        if not self._ahead or self._ahead[0][0] != request:
            return None
        _, future = self._ahead.popleft()
        self._read_ahead()
        return future

    def _read_ahead(self) -> None:
        while len(self._ahead) < AHEAD and (request := next(self._coming, None)) is not None:
            position, first, last = request
            buffer = self._buffers[self._turn % len(self._buffers)]
            self._turn += 1
            reading = self._pool.submit(_read, self._sources[position], first, last, buffer)
            self._ahead.append((request, reading))


def _read(source: Source, first: int, last: int, buffer: "Scratch") -> npt.NDArray[Any]:
    """Raw pixels of rows first … last of a frame, in `buffer`. Raises LostFrameError."""
    try:
        if _version(source.frame.path) != source.version:
            raise LostFrameError(source, "has changed since it was stacked")
        with RowReader(source.frame.path) as reader:
            top = source.useful[0].start
            shape = (last - first, reader.shape[1])
            out = buffer.array(shape, ">i2") if reader.plain else None
            return _native(reader, reader.rows(top + first, top + last, out))
    except (ImageError, OSError) as error:
        raise LostFrameError(source, f"cannot be read again: {error}") from error


class _Alike(NamedTuple):
    """What frames share whose darks have the same pixels, the bad ones too."""

    plan: str | None
    """None for a master that is subtracted as it is."""
    dark: int | None
    e_per_adu: float | None


def _alike(source: Source) -> _Alike:
    calibration = source.calibration
    plan, dark = calibration.subtracted, calibration.dark
    return _Alike(
        key_of(plan) if isinstance(plan, DarkPlan) else None,
        dark.id if dark else None,
        source.record.e_per_adu,
    )


class _Masters:
    """What is applied to bands. The darks of a few temperatures are kept whole; of many, only the
    rows are made that lie under a tile, once for all of its frames that need the same.
    """

    def __init__(
        self, calibrator: Calibrator, sources: Sequence[Source], tiles: Sequence[Sequence[Request]]
    ) -> None:
        self._calibrator = calibrator
        self._sources = sources
        self._alike = [_alike(source) for source in sources]
        self._many = len({one.plan for one in self._alike if one.plan}) > calibrator.kept_darks
        self._spans = dict(self._shared(tiles)) if self._many else {}
        self._made: collections.OrderedDict[tuple[_Alike, int, int], Arrays] = (
            collections.OrderedDict()
        )

    def arrays(self, position: int, first: int, last: int) -> Arrays:
        """Of rows first … last of a frame."""
        source, alike = self._sources[position], self._alike[position]
        frame = source.noise_adu, source.record, source.calibration
        if not self._many or alike.plan is None:
            return self._calibrator.arrays(*frame).rows(first, last)
        top, bottom = self._spans.get((position, first, last), (first, last))
        key = alike, top, bottom
        if key not in self._made:
            self._make_room(bottom - top, source.shape[0])
            # The flat is the calibrator's to keep.
            self._made[key] = self._calibrator.band(*frame, top, bottom)._replace(flat=None)
        self._made.move_to_end(key)
        made = self._made[key].rows(first - top, last - top)
        flat = self._calibrator.flat_of(source.record, source.calibration)
        return made._replace(
            flat=None if flat is None else flat[first:last],
            bad_above=hot_step(source.noise_adu, source.record),
        )

    def _make_room(self, rows: int, ny: int) -> None:
        """For so many rows more: half as much memory as darks that are kept whole take."""
        most = self._calibrator.kept_darks * ny
        while self._made and 2 * (rows + sum(end - top for _, top, end in self._made)) > most:
            self._made.popitem(last=False)

    def _shared(
        self, tiles: Iterable[Sequence[Request]]
    ) -> Iterator[tuple[Request, tuple[int, int]]]:
        """Each band with the rows for which its dark is made: those of all bands of the tile that
        need the same dark and overlap.
        """
        for tile in tiles:
            groups = collections.defaultdict(list)
            for position, first, last in tile:
                groups[self._alike[position]].append((first, last, position))
            for group in groups.values():
                spans: list[tuple[int, int]] = []
                for first, last, _ in sorted(group):
                    if spans and first < spans[-1][1]:
                        top, bottom = spans.pop()
                        spans.append((top, max(bottom, last)))
                    else:
                        spans.append((first, last))
                for first, last, position in group:
                    yield (
                        (position, first, last),
                        next(span for span in spans if span[0] <= first <= last <= span[1]),
                    )


def _strips(ny: int) -> list[tuple[int, int]]:
    """The rows of a frame in which its noise is measured, even first ones."""
    rows = min(STRIP_ROWS, ny)
    tops = np.linspace(0, ny - rows, STRIPS).astype(int) // 2 * 2
    return [(int(top), int(top) + rows) for top in tops]


class _Room(threading.local):
    """Memory of a thread's own."""

    def __init__(self) -> None:
        self.raw, self.image, self.mask, self.planes = (Scratch() for _ in range(4))


class Scratch:
    """Memory that is used again: an array of any shape, made larger only when it must be."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array with anything in it."""
        needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self._bytes.size < needed:
            self._bytes = np.empty(0, np.uint8)  # so that both are not in memory at once
            self._bytes = np.empty(needed + needed // 8, np.uint8)  # bands differ by some rows
        return self._bytes[:needed].view(dtype).reshape(shape)
