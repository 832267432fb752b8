"""The exact stack of a target, made at dawn or by command from the raw frames of its members.

The numbers with which the frames entered the growing stack, the masters they were calibrated with,
and where they lie on the sky are in the ledger; the pixels are calibrated again. This goes band by
band: for some rows of the stack, each frame gives the rows that lie under them, so that no
calibrated frame is kept anywhere and memory does not grow with their number. A thread reads the
next band while the present one is worked on.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from calib_library import image_io
from calib_library.errors import ImageError
from calib_library.frame import Card, FrameRecord
from daemon.calibration import Calibration, noise_of, sampled_rows
from daemon.ledger.ledger import Frame
from daemon.ledger.stacks import Member, Stack
from daemon.light import calibrate, debayer, distortion, warp
from daemon.pipeline import Pipeline
from daemon.stack import final, holes, product
from daemon.stack.live import StackImage

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
Beat = Callable[[str], None]

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
SETTINGS = "exact, 2 passes, gate 4 sigma, grown at 2 sigma"


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """An exact stack that lies on disk, whole; nothing points at it yet."""

    stack: Stack
    """As it was before: its `final_path` is the generation to delete."""
    path: Path
    """Relative to the library, as is the link."""
    link: Path
    generation: int
    frames: int
    exposure_s: float
    rejected: float
    """The share of all values that was left out."""
    difference: float | None
    """rms over the covered pixels, in σ of this stack, from the growing one; None where there is
    none of the same frames to compare with."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One frame of the stack, as it is needed to make its pixels again."""

    member: Member
    frame: Frame
    record: FrameRecord
    calibration: Calibration
    shape: tuple[int, int]
    """(ny, nx) of the raw file."""
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


def finish(
    pipeline: Pipeline,
    stack: Stack,
    *,
    memory_bytes: int,
    beat: Beat,
) -> Finished | None:
    """Make the exact stack of a stack's members and write its next generation.

    memory_bytes: for the tiles; the masters and the finished image (14 bytes a pixel of each
    plane) come on top. beat is called with what is being done. A frame whose raw file is gone or
    has changed is left out, and the log says so; None where no frame is left.

    Recording it is the caller's: one transaction that points the ledger at it, then `settle`.
    """
    beat(f"finishing {stack.label}")
    sources = open_sources(pipeline, pipeline.stacks.members(stack.id))
    made: final.Final | None = None
    while sources and made is None:
        try:
            made = combine(
                pipeline,
                sources,
                memory_bytes=memory_bytes,
                progress=lambda share: beat(f"finishing {stack.label}: {share:.0%}"),
            )
        except LostFrameError as lost:
            pipeline.log.warning("MISSING", str(lost), frame=lost.source.frame.name)
            sources = [source for source in sources if source is not lost.source]
    if made is None:
        pipeline.log.warning("FINAL", f"{stack.label}: no raw frame of it can be read")
        return None
    beat(f"writing the exact stack of {stack.label}")
    return _write(pipeline, stack, sources, made)


def settle(pipeline: Pipeline, finished: Finished) -> None:
    """After the commit: the link leads to the new generation, and the one before goes."""
    root = pipeline.config.library.path
    product.link_newest(root, finished.link, finished.path)
    before = finished.stack.final_path
    if before and before != str(finished.path):
        (root / before).unlink(missing_ok=True)


# --- the frames ----------------------------------------------------------------------------------


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
    with image_io.RowReader(frame.path) as reader:
        ny, nx = reader.shape
        rows = range(ny)[sampled_rows(ny)]
        sample = np.concatenate([_native(reader, reader.rows(y, y + 1)) for y in rows])
    nothing = np.empty(0, np.int64), np.empty(0, np.float32)
    cleaned = clean and "cosmics cleaned" in member.flags
    return Source(
        member=member,
        frame=frame,
        record=record,
        calibration=calibration,
        shape=(ny, nx),
        version=version,
        noise_adu=noise_of(sample, bayer=record.key.bayer_pattern is not None),
        rays=_rays(pipeline, frame, record, calibration) if cleaned else nothing,
    )


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _rays(
    pipeline: Pipeline, frame: Frame, record: FrameRecord, calibration: Calibration
) -> tuple[npt.NDArray[np.int64], Image]:
    """Where cosmic rays were cleaned from one whole frame, and what stands there now."""
    loaded = image_io.load(frame.path)
    cleaned, _ = pipeline.calibrated(loaded, record, calibration, clean=True)
    plain, _ = pipeline.calibrated(loaded, record, calibration, clean=False)
    at = np.flatnonzero(cleaned != plain)
    return at, cleaned.reshape(-1)[at]


def _native(reader: image_io.RowReader, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
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
    y = distortion.to_frame(source.member.matrix, None, points)[:, 1]
    first = max(int(np.floor(y.min())) - MARGIN_ROWS, 0) // 2 * 2
    last = min(int(np.ceil(y.max())) + MARGIN_ROWS + 1, ny)
    return (first, last) if first < last else (0, 0)


# --- the pixels ----------------------------------------------------------------------------------


def combine(
    pipeline: Pipeline,
    sources: Sequence[Source],
    *,
    memory_bytes: int,
    on_rejected: final.RejectedSink | None = None,
    progress: Callable[[float], None] | None = None,
) -> final.Final:
    """The exact stack of these frames. Raises LostFrameError, and what `final.combine` raises."""
    ny, nx = sources[0].shape
    planes = 3 if sources[0].record.key.bayer_pattern else 1
    shape = (planes, ny, nx)
    order = [
        (position, *band_of(source, y0, y1, nx))
        for y0, y1, _, _ in final.tiles(shape, len(sources), memory_bytes)
        for position, source in enumerate(sources)
    ]
    with Bands(pipeline, sources, order) as bands:
        sigmas = np.array([bands.plane_sigmas(k, planes) for k in range(len(sources))])

        def fill(position: int, y0: int, y1: int, out: Image) -> None:
            source = sources[position]
            first, last = band_of(source, y0, y1, nx)
            if first == last:
                out[:] = np.nan
                return
            image, mask = bands.calibrated(position, first, last)
            lower = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, first], [0.0, 0.0, 1.0]])
            for plane in range(planes):
                warp.warp_rows(
                    image[plane : plane + 1],
                    source.member.matrix @ lower,
                    rows=(y0, y1),
                    width=nx,
                    mask=mask,
                    noise_adu=sigmas[position, plane] / source.member.terms.scale,
                    out=out[plane : plane + 1],
                )

        return final.combine_into(
            fill,
            [source.member.terms for source in sources],
            shape=shape,
            memory_bytes=memory_bytes,
            sigmas=sigmas,
            on_rejected=on_rejected,
            progress=progress,
        )


class Bands:
    """Bands of the frames, calibrated; their bytes are read ahead by a thread in the `order`
    (position, first row, one past the last) in which they will be asked for.

    The arrays that are given out are overwritten by the next call.
    """

    def __init__(
        self, pipeline: Pipeline, sources: Sequence[Source], order: Sequence[tuple[int, int, int]]
    ) -> None:
        self._calibrator = pipeline.calibrator
        self._sources = sources
        self._coming = iter([one for one in order if one[1] < one[2]])
        self._ahead: collections.deque[tuple[tuple[int, int, int], Future[npt.NDArray[Any]]]] = (
            collections.deque()
        )
        self._pool = ThreadPoolExecutor(1, "band-reader")
        self._buffers = [Scratch() for _ in range(AHEAD + 2)]
        self._turn = 0
        self._image, self._mask, self._planes = Scratch(), Scratch(), Scratch()

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

    def calibrated(self, position: int, first: int, last: int) -> tuple[Image, Mask]:
        """(planes, last − first, nx) ADU and the mask of rows first … last of a frame. Raises
        LostFrameError.
        """
        mosaic, mask = self.mosaic(position, first, last)
        pattern = self._sources[position].record.key.bayer_pattern
        if pattern is None:
            return mosaic[np.newaxis], mask
        planes = self._planes.array((3, *mosaic.shape), np.float32)
        return debayer.debayer(mosaic, pattern, out=planes), mask

    def mosaic(self, position: int, first: int, last: int) -> tuple[Image, Mask]:
        """The same before the colours are told apart, (last − first, nx)."""
        source = self._sources[position]
        raw = self._raw((position, first, last))
        arrays = self._calibrator.arrays(source.noise_adu, source.record, source.calibration)
        dark, flat, bad = arrays.rows(first, last)
        result = calibrate.calibrate(
            raw,
            dark=dark,
            flat=flat,
            bad=bad,
            bayer=source.record.key.bayer_pattern is not None,
            out=self._image.array(raw.shape, np.float32),
            mask_out=self._mask.array(raw.shape, np.uint8),
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
        ny = source.shape[0]
        rows = min(STRIP_ROWS, ny)
        tops = np.linspace(0, ny - rows, STRIPS).astype(int) // 2 * 2
        measured = []
        for top in tops:
            image, _ = self.calibrated(position, int(top), int(top) + rows)
            measured.append([warp.pixel_noise(plane[np.newaxis]) for plane in image])
        own = terms.scale * np.median(measured, axis=0)
        return [max(terms.sigma_adu, float(sigma)) for sigma in own]

    def _raw(self, request: tuple[int, int, int]) -> npt.NDArray[Any]:
        if not self._ahead or self._ahead[0][0] != request:
            return self._read(request, Scratch())
        _, future = self._ahead.popleft()
        self._read_ahead()
        return future.result()

    def _read_ahead(self) -> None:
        while len(self._ahead) < AHEAD and (request := next(self._coming, None)) is not None:
            buffer = self._buffers[self._turn % len(self._buffers)]
            self._turn += 1
            self._ahead.append((request, self._pool.submit(self._read, request, buffer)))

    def _read(self, request: tuple[int, int, int], buffer: "Scratch") -> npt.NDArray[Any]:
        """Raw pixels of some rows, in the reader's thread."""
        position, first, last = request
        source = self._sources[position]
        try:
            if _version(source.frame.path) != source.version:
                raise LostFrameError(source, "has changed since it was stacked")
            with image_io.RowReader(source.frame.path) as reader:
                shape = (last - first, source.shape[1])
                out = buffer.array(shape, ">i2") if reader.plain else None
                return _native(reader, reader.rows(first, last, out))
        except (ImageError, OSError) as error:
            raise LostFrameError(source, f"cannot be read again: {error}") from error


class Scratch:
    """Memory that is used again: an array of any shape, made larger only when it must be."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array with anything in it."""
        needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self._bytes.size < needed:
            self._bytes = np.empty(needed, np.uint8)
        return self._bytes[:needed].view(dtype).reshape(shape)


# --- the product ---------------------------------------------------------------------------------


def _write(
    pipeline: Pipeline, stack: Stack, sources: Sequence[Source], made: final.Final
) -> Finished:
    root = pipeline.config.library.path
    members = [source.member for source in sources]
    difference = difference_to_live(root, stack, len(members), made.image)
    rejected = float(np.mean(made.rejected))
    generation = stack.final_generation + 1
    stem = f"{product.stem_of(stack, pipeline.stacks.all())}_final"
    folder = product.folder_of(stack)
    path = folder / f"{stem}_v{generation:04d}.fits"
    image = dataclasses.replace(made.image, mean=holes.fill(made.image.mean, made.image.coverage))
    masters = {i for member in members for i in member.masters.values() if i is not None}
    cards = product.cards_for(
        stack,
        members,
        sources[0].record,
        generation=generation,
        names=[
            f"{source.frame.name} ({share:.2%} left out)"
            for source, share in zip(sources, made.rejected, strict=True)
        ],
        masters=[Path(pipeline.library.master(i).path).name for i in sorted(masters)],
        settings=SETTINGS,
    )
    cards += [Card("LKREJECT", round(rejected, 6), "share of the values left out")]
    if difference is not None:
        cards += [Card("LKLIVE", round(difference, 4), "[sigma] rms from the growing stack")]
    product.write(root, path, image, cards, scale=pipeline.config.stack.scale)
    product.write_preview(
        root, folder / f"{stem}.png", image, max_px=pipeline.config.stack.preview_px
    )
    exposure_s = sum(member.exposure_s or 0.0 for member in members)
    compared = "" if difference is None else f", {difference:.2f} sigma from the growing stack"
    pipeline.log.info(
        "FINAL",
        f"{stack.label}: {len(members)} frames, {exposure_s:.0f} s, {rejected:.2%} of the values "
        f"left out{compared}: {path}",
    )
    return Finished(
        stack=stack,
        path=path,
        link=folder / f"{stem}.fits",
        generation=generation,
        frames=len(members),
        exposure_s=exposure_s,
        rejected=rejected,
        difference=difference,
    )


def difference_to_live(root: Path, stack: Stack, frames: int, image: StackImage) -> float | None:
    """The rms of (growing stack − exact stack) / σ over the pixels that both cover, σ of the
    exact one; None where the growing stack's product is not of `frames` frames, or cannot be read.
    """
    if stack.path is None or stack.published_frames != frames:
        return None
    try:
        growing, cards = image_io.read_product(root / stack.path)
        coverage = image_io.read_extra(root / stack.path, "COVERAGE")
    except (ImageError, OSError):
        return None
    growing = growing.reshape(image.mean.shape)
    values = {card.keyword: card.value for card in cards}
    pedestal = values.get("PEDESTAL")
    # What the file's scale cuts off is no difference.
    limit = image_io.FULL_SCALE_ADU - (pedestal if isinstance(pedestal, float) else 0.0)
    squares, count = 0.0, 0
    for plane, exact, variance in zip(growing, image.mean, image.variance, strict=True):
        for y in range(0, len(exact), 64):
            rows = np.s_[y : y + 64]
            both = (coverage[rows] > 0) & (image.coverage[rows] > 0) & (variance[rows] > 0)
            both &= (plane[rows] < limit - 1) & (exact[rows] < limit - 1)
            away = (plane[rows][both] - exact[rows][both]).astype(np.float64)
            squares += float(np.sum(away**2 / variance[rows][both]))
            count += away.size
    return float(np.sqrt(squares / count)) if count else None
