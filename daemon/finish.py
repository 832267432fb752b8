"""The exact stack of a target, made at dawn or by command from the raw frames of its members.

The numbers with which the frames entered the growing stack, the masters they were calibrated with,
and where they lie on the sky are in the ledger; the pixels are calibrated again. This goes band by
band: for some rows of the stack, each frame gives the rows that lie under them, so that no
calibrated frame is kept anywhere and memory does not grow with their number. Several frames' bands
are read, calibrated and resampled side by side.
"""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calib_library.errors import ImageError
from calib_library.frame import Card
from calib_library.images import product_file
from daemon.bands import Band, Bands, LostFrameError, Source, band_of, open_sources
from daemon.calibration import masters_in
from daemon.ledger.stacks import Stack
from daemon.light import warp
from daemon.pipeline import Pipeline
from daemon.stack import drizzle, final, holes, product
from daemon.stack.live import StackImage

Image = npt.NDArray[np.float32]
Beat = Callable[[str], None]

SETTINGS = "exact, 2 passes, gate 4 sigma, grown at 2 sigma"
CORRELATED = (
    "VARIANCE: ADU^2 of each pixel of the image, by itself. Neighbours share",
    f"drops: sigma of a mean over many is up to {drizzle.CORRELATION:.2f} times what they say.",
)


DIFFERENCE_ROWS = 64
"""Rows that are compared at a time."""


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
    drizzled: Path | None
    """The image on a grid twice as fine, where it was asked for."""
    difference: float | None
    """rms over the covered pixels, in σ of this stack, from the growing one; None where there is
    none of the same frames to compare with."""


def finish(
    pipeline: Pipeline,
    stack: Stack,
    *,
    memory_bytes: int,
    beat: Beat,
    drizzle: bool = False,
) -> Finished | None:
    """Make the exact stack of a stack's members and write its next generation; with `drizzle` also
    an image on a grid twice as fine, `TARGET_FILTER_drizzle.fits`, which replaces the one before.

    memory_bytes: for the tiles; the masters and the finished image (14 bytes a pixel of each
    plane) come on top. beat is called with what is being done. A frame whose raw file is gone or
    has changed is left out, and the log says so; None where no frame is left.

    Recording it is the caller's: one transaction that points the ledger at it, then `settle`.
    """
    beat(f"finishing {stack.label}")
    sources = open_sources(pipeline, pipeline.stacks.members(stack.id))
    while sources:
        try:
            return _finish(
                pipeline, stack, sources, memory_bytes=memory_bytes, beat=beat, drizzle=drizzle
            )
        except LostFrameError as lost:
            pipeline.log.warning("MISSING", str(lost), frame=lost.source.frame.name)
            sources = [source for source in sources if source is not lost.source]
    pipeline.log.warning("FINAL", f"{stack.label}: no raw frame of it can be read")
    return None


def _finish(
    pipeline: Pipeline,
    stack: Stack,
    sources: Sequence[Source],
    *,
    memory_bytes: int,
    beat: Beat,
    drizzle: bool,
) -> Finished:
    rejections = Rejections()
    made = combine(
        pipeline,
        sources,
        memory_bytes=memory_bytes,
        on_rejected=rejections.add if drizzle else None,
        progress=lambda share: beat(f"finishing {stack.label}: {share:.0%}"),
    )
    drizzled = None
    if drizzle:
        drizzled = _drizzle(
            pipeline,
            stack,
            sources,
            made,
            rejections,
            memory_bytes=memory_bytes,
            progress=lambda share: beat(f"drizzling {stack.label}: {share:.0%}"),
        )
    beat(f"writing the exact stack of {stack.label}")
    return dataclasses.replace(_write(pipeline, stack, sources, made), drizzled=drizzled)


def settle(pipeline: Pipeline, finished: Finished) -> None:
    """After the commit: the link leads to the new generation, and the one before goes."""
    root = pipeline.config.library.path
    product.link_newest(root, finished.link, finished.path)
    before = finished.stack.final_path
    if before and before != str(finished.path):
        (root / before).unlink(missing_ok=True)


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
    tiles = [
        [(position, *band_of(source, y0, y1, nx)) for position, source in enumerate(sources)]
        for y0, y1, _, _ in final.tiles(shape, len(sources), memory_bytes)
    ]
    # Not ahead: several threads read and calibrate, one its band while others do theirs.
    with Bands(pipeline, sources, tiles, read_ahead=False) as bands:
        sigmas = np.array([bands.plane_sigmas(k, planes) for k in range(len(sources))])

        def rows(position: int, y0: int, y1: int) -> final.RowFiller:
            source = sources[position]
            first, last = band_of(source, y0, y1, nx)
            if first == last:
                return _nothing
            noises = sigmas[position] / source.member.terms.scale
            return functools.partial(_resample, bands, bands.at(position, first, last), noises, y0)

        return final.combine_into(
            rows,
            [source.member.terms for source in sources],
            shape=shape,
            memory_bytes=memory_bytes,
            sigmas=sigmas,
            on_rejected=on_rejected,
            progress=progress,
        )


def _nothing(out: Image) -> None:
    """A frame covers nothing of these rows."""
    out[:] = np.nan


def _resample(
    bands: Bands, band: Band, noises_adu: npt.NDArray[np.float64], y0: int, out: Image
) -> None:
    """Fill `out` (planes, rows, nx), from row y0 of the stack on, with what a frame has there.
    noises_adu: (planes,), of a pixel. Raises LostFrameError.
    """
    image, mask = bands.calibrated(band)
    lower = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, band.first], [0.0, 0.0, 1.0]])
    planes, rows, nx = out.shape
    for plane in range(planes):
        warp.warp_rows(
            image[plane : plane + 1],
            band.source.member.matrix @ lower,
            rows=(y0, y0 + rows),
            width=nx,
            distortion=band.source.member.distortion,
            mask=mask,
            noise_adu=noises_adu[plane],
            out=out[plane : plane + 1],
        )


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
    cards = _cards(pipeline, stack, sources, made, settings=SETTINGS)
    cards += [Card("LKREJECT", round(rejected, 6), "share of the values left out")]
    if difference is not None:
        cards += [Card("LKLIVE", round(difference, 4), "[sigma] rms from the growing stack")]
    with ThreadPoolExecutor(1, "picture") as beside:
        max_px = pipeline.config.stack.preview_px
        picture = beside.submit(product.picture_of, image, max_px=max_px)
        product.write(root, path, image, cards, scale=pipeline.config.stack.scale)
        product.write_picture(root, folder / f"{stem}.png", picture.result())
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
        drizzled=None,
        difference=difference,
    )


def _cards(
    pipeline: Pipeline,
    stack: Stack,
    sources: Sequence[Source],
    made: final.Final,
    *,
    settings: str,
) -> list[Card]:
    members = [source.member for source in sources]
    masters = set().union(*(masters_in(member.masters) for member in members))
    return product.cards_for(
        stack,
        members,
        sources[0].record,
        generation=stack.final_generation + 1,
        names=[
            f"{source.frame.name} ({share:.2%} left out)"
            for source, share in zip(sources, made.rejected, strict=True)
        ],
        masters=[Path(pipeline.library.master(i).path).name for i in sorted(masters)],
        settings=settings,
    )


def difference_to_live(root: Path, stack: Stack, frames: int, image: StackImage) -> float | None:
    """The rms of (growing stack − exact stack) / σ over the pixels that both cover, σ of the
    exact one; None where the growing stack's product is not of `frames` frames, is
    of half the size, or cannot be read.
    """
    if stack.path is None or stack.published_frames != frames:
        return None
    try:
        with product_file.ProductImages(root / stack.path) as growing:
            return _difference(growing, image)
    except (ImageError, OSError):
        return None


def _difference(growing: product_file.ProductImages, image: StackImage) -> float | None:
    planes, ny, nx = image.mean.shape
    if growing.shape != ((planes, ny, nx) if planes > 1 else (ny, nx)):
        return None
    # What the file's scale cuts off is no difference.
    limit = product_file.FULL_SCALE_ADU - growing.pedestal_adu - 1

    def part(plane: int, y: int) -> tuple[float, int]:
        end = min(y + DIFFERENCE_ROWS, ny)
        rows = np.s_[y:end]
        shown, exact = growing.rows(plane * ny + y, plane * ny + end), image.mean[plane, rows]
        variance = image.variance[plane, rows]
        covered = growing.rows(y, end, extension="COVERAGE") > 0
        both = covered & (image.coverage[rows] > 0) & (variance > 0)
        both &= (shown < limit) & (exact < limit)
        away = (shown[both] - exact[both]).astype(np.float64)
        return float(np.sum(away**2 / variance[both])), away.size

    places = [(plane, y) for plane in range(planes) for y in range(0, ny, DIFFERENCE_ROWS)]
    with ThreadPoolExecutor(final.THREADS, "difference") as pool:
        squares, counts = zip(*pool.map(part, *zip(*places, strict=True)), strict=True)
    mean = sum(squares) / max(sum(counts), 1)
    return float(np.sqrt(mean)) if sum(counts) and np.isfinite(mean) else None


# --- the grid twice as fine ----------------------------------------------------------------------


class Rejections:
    """What the exact stack left out, as lists: it is a small part of everything."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], list[npt.NDArray[np.int64]]] = {}
        self._width = 0

    def add(self, position: int, first: int, mask: npt.NDArray[np.bool_]) -> None:
        """Take down (planes, rows, nx) of a frame from row `first` on; rows come in order."""
        self._width = mask.shape[2]
        for plane, flags in enumerate(mask):
            places = np.flatnonzero(flags) + first * self._width
            self._places.setdefault((position, plane), []).append(places)

    def rows(self, position: int, planes: int, first: int, last: int) -> npt.NDArray[np.bool_]:
        """(planes, last − first, nx), True for what was left out of a frame."""
        mask = np.zeros((planes, (last - first) * self._width), np.bool_)
        for plane, flags in enumerate(mask):
            for places in self._places.get((position, plane), ()):
                low, high = np.searchsorted(places, (first * self._width, last * self._width))
                flags[places[low:high] - first * self._width] = True
        return mask.reshape(planes, last - first, self._width)


def _drizzle(
    pipeline: Pipeline,
    stack: Stack,
    sources: Sequence[Source],
    made: final.Final,
    rejections: Rejections,
    *,
    memory_bytes: int,
    progress: Callable[[float], None],
) -> Path:
    """Drop the frames onto the fine grid and write it; returns its path in the library."""
    root = pipeline.config.library.path
    planes, ny, nx = made.image.mean.shape
    shape = (planes, drizzle.SCALE * ny, drizzle.SCALE * nx)
    folder = product.folder_of(stack)
    relative = folder / f"{product.stem_of(stack, pipeline.stacks.all())}_drizzle.fits"
    with contextlib.ExitStack() as room:
        # Half a gigabyte at 26 megapixels, each: on disk where it is more than the budget.
        mean, weight, variance = (
            room.enter_context(_room(shape, root / folder, memory_bytes // 3)) for _ in range(3)
        )
        fill_drizzled(
            pipeline,
            sources,
            made.image,
            rejections,
            mean,
            weight,
            variance,
            memory_bytes=memory_bytes,
            progress=progress,
        )
        settings = f"drizzle x{drizzle.SCALE}, pixfrac {drizzle.PIXFRAC}, {SETTINGS}"
        cards = [
            Card(c.keyword, float(c.value) / drizzle.SCALE, c.comment)
            if c.keyword == "XPIXSZ" and isinstance(c.value, int | float)
            else c
            for c in _cards(pipeline, stack, sources, made, settings=settings)
        ]
        cards += [Card("HISTORY", line) for line in CORRELATED]
        covered = weight[:, :: drizzle.SCALE, :: drizzle.SCALE].min(axis=0) > 0
        product_file.write_fits(
            root / relative,
            mean if planes > 1 else mean[0],
            cards,
            scale=pipeline.config.stack.scale,
            pedestal_adu=product.pedestal_for(mean[:, :: drizzle.SCALE, :: drizzle.SCALE], covered),
            extra={
                "WEIGHT": weight if planes > 1 else weight[0],
                "VARIANCE": variance if planes > 1 else variance[0],
            },
        )
        seen = made.image.coverage > 0
        holes_share = float(np.mean(~covered[seen])) if seen.any() else 0.0
    pipeline.log.info(
        "DRIZZLE",
        f"{stack.label}: {len(sources)} frames on a grid twice as fine, {holes_share:.2%} of it "
        f"filled from the exact stack: {relative}",
    )
    return relative


def fill_drizzled(
    pipeline: Pipeline,
    sources: Sequence[Source],
    exact: StackImage,
    rejections: Rejections,
    mean: Image,
    weight: Image,
    variance: Image,
    *,
    memory_bytes: int,
    progress: Callable[[float], None],
) -> None:
    """Fill `mean` (ADU), `weight` and `variance` (ADU², of the mean), each (planes, 2 ny, 2 nx),
    tile by tile from the raw frames.

    Where no drop fell, the mean is a quarter of the exact stack's, and the weight 0 tells. Raises
    LostFrameError.
    """
    planes, ny, nx = exact.mean.shape
    # Four sums of 8 bytes, and as much again while they become an image.
    affordable = memory_bytes // (8 * 8 * drizzle.SCALE**2 * planes * nx)
    step = int(np.clip(affordable, 16, ny))
    spans = [(first, min(first + step, ny)) for first in range(0, ny, step)]
    around = 2  # rows of the reference from which a drop may reach into others
    tiles = [
        [
            (position, *band_of(source, first - around, last + around, nx))
            for position, source in enumerate(sources)
        ]
        for first, last in spans
    ]
    skies = _skies(exact)
    with Bands(pipeline, sources, tiles, read_ahead=True) as bands:
        sigmas = [bands.pixel_sigmas(k) for k in range(len(sources))]
        for first, last in spans:
            grid = drizzle.Grid.empty(planes, (first, last), nx)
            begin, end = max(first - around, 0), min(last + around, ny)
            for position, source in enumerate(sources):
                low, high = band_of(source, first - around, last + around, nx)
                if low == high:
                    continue
                samples, mask = bands.mosaic(bands.at(position, low, high))
                drizzle.add(
                    grid,
                    samples,
                    source.member.matrix,
                    source.member.terms,
                    first_row=low,
                    distortion=source.member.distortion,
                    pattern=source.record.key.bayer_pattern,
                    mask=mask,
                    rejected=rejections.rows(position, planes, begin, end),
                    rejected_from=begin,
                    sigmas=sigmas[position],
                )
            fine = np.s_[:, drizzle.SCALE * first : drizzle.SCALE * last]
            some = grid.weight > 0
            mean[fine] = np.where(some, grid.mean(), _refined(exact.mean[:, first:last], 2))
            weight[fine] = grid.weight
            filled = _refined(exact.variance[:, first:last], 4)
            variance[fine] = np.where(some, grid.variance(skies), filled)
            progress(last / ny)


def _refined(coarse: Image, power: int) -> Image:
    """(planes, rows, nx) as pixels of the fine grid, each with 1/SCALE**power of the value."""
    part = coarse / np.float32(drizzle.SCALE**power)
    return part.repeat(drizzle.SCALE, axis=1).repeat(drizzle.SCALE, axis=2)


def _skies(exact: StackImage) -> list[float]:
    """ADU, the sky's level in each plane: the median of what is covered."""
    step = max(1, int(np.sqrt(exact.coverage.size / 100_000)))
    covered = exact.coverage[::step, ::step] > 0
    samples = exact.mean[:, ::step, ::step][:, covered]
    return [float(np.median(sample)) if sample.size else 0.0 for sample in samples]


@contextlib.contextmanager
def _room(shape: tuple[int, ...], folder: Path, memory_bytes: int) -> Iterator[Image]:
    """A float32 array: in memory, or in a file without a name where it is larger than
    `memory_bytes`.
    """
    if 4 * int(np.prod(shape)) <= memory_bytes:
        yield np.zeros(shape, np.float32)
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        yield np.memmap(file, np.float32, mode="w+", shape=shape)
