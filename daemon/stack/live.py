"""The stack that grows: one frame more in a fraction of a second, and no trail is ever in it.

Each pixel keeps the sums of the values that are settled, and its few lowest and highest values
undecided, each with the frame it came from. When these are full, a new value pushes the innermost
of them out; it is settled into the sums, or dropped if it lies outside the gate. A satellite trail
is an extreme, so it waits at the edge of the buffer until the pixel knows its own mean. For
display, `render` admits the waiting values that lie inside the gate, without touching the state;
therefore the first frames are no special case.

Exactness. Weights are integers and values are counted in a quantum of at most 1/1024 of the first
frame's noise, so that the sums are integers: adding and taking away are exact, and the mean does
not depend on which of its values are settled and which still wait. Only the decisions of the gate
depend on the order of the frames.

Memory of a pixel: 8 + 4 + 4 + 2 + 2 bytes for sums, weight, spread, count and contrast, and 6 for
each waiting value: 50 bytes with 3 high and 2 low.
"""

import dataclasses
import functools
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from calib_library.kernels import CACHE_LINE, aligned, kernel, side_by_side
from daemon.light import warp
from daemon.light.sweeps import BLOCK_COLUMNS, BLOCK_ROWS, Scratch
from daemon.stack import settle
from daemon.stack.display import TILE_ROWS, centre_row, contrast_row, render_tiles, smallest

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
Count = npt.NDArray[np.uint16]
Sums = npt.NDArray[np.int64]
Weights = npt.NDArray[np.int32]

SEEING_FLOOR = 0.05
"""Relative error of a source that even equal seeing leaves."""
SHARPEST_SHARE = 0.25
"""A star of FWHM w stands above its sky by no more than 1 + w²/4 times its contrast, at its peak;
more light than that is a nebula, to which the seeing does nothing. (A Moffat star of β = 3.5 needs
w²/5.5 + 0.6.)"""

WEIGHT_UNITS = 512.0
"""Integer weight of the first frame; other frames are rounded to 1/512 of it and held within
64 times it."""
MAX_WEIGHT = 32767
QUANTA_PER_SIGMA = 1024.0
MAX_INDEX = 65533
CONTRAST_PER_SIGMA = 4.0
"""Resolution of the stored contrast: σ/4, up to 16 000 σ."""

BYTES_FIXED = 20
BYTES_WAITING = 6
BYTES_RENDERED = 12
"""Mean, weight and variance of a rendered pixel."""
DEPTHS = ((3, 2), (3, 1), (2, 1))
"""High and low, the best first."""
EDGES = (1, 2, 4)


class Depth(NamedTuple):
    """How many extremes a pixel keeps undecided."""

    high: int
    low: int
    edge: int
    """The stack has one pixel for so many by so many of the frames, because not even the shallowest
    fits otherwise: one of EDGES."""


def memory_for(shape: tuple[int, int, int], high: int, low: int) -> int:
    """Bytes of a stack of `shape` (planes, ny, nx) with one rendered image."""
    pixels = shape[0] * shape[1] * shape[2]
    return (BYTES_FIXED + BYTES_WAITING * (high + low) + BYTES_RENDERED) * pixels


def depth_for(shape: tuple[int, int, int], memory_bytes: int) -> Depth:
    """The deepest buffers for a stack of `shape` (planes, ny, nx) that fit into `memory_bytes`
    together with one rendered image; the shallowest of the smallest where nothing does.
    """
    for edge in EDGES:
        for high, low in DEPTHS:
            if memory_for(shape, high, low) <= memory_bytes * edge**2:
                return Depth(high, low, edge)
    return Depth(*DEPTHS[-1], EDGES[-1])


@dataclasses.dataclass(frozen=True, slots=True)
class FrameTerms:
    """The numbers with which one frame enters the stack: y = scale · warp(image) + plane."""

    index: int
    """0 … 65533, this frame's own in its stack."""
    weight: float
    """> 0, in any unit that all frames share: t² / (σ² FWHM)."""
    scale: float
    """1 / transparency."""
    planes: tuple[tuple[float, float, float], ...]
    """ADU (a, bx, by) for each colour plane: a + bx·x + by·y is added, in reference px."""
    sigma_adu: float
    """ADU, measured noise of one background pixel, after scaling, before resampling."""
    e_per_adu: float
    """e- per ADU after scaling (the camera's divided by `scale`); 1 if unknown."""
    sky_adu: float
    """ADU, the frame's own sky level before scaling (of the luminance, for a colour frame)."""
    fwhm_px: float
    """px, in the reference's pixels."""


@dataclasses.dataclass(frozen=True, slots=True)
class StackImage:
    """A stack to look at or to write. Pixels that no frame covers are 0 everywhere."""

    mean: Image
    """(planes, ny, nx) ADU of the reference."""
    weight: Image
    """(planes, ny, nx), sum of the admitted frames' weights, in their unit."""
    variance: Image
    """(planes, ny, nx) ADU², of each pixel's mean. Resampling makes neighbours agree: the mean over
    a block of pixels is noisier than 1/√n of it."""
    coverage: Count
    """(ny, nx), frames admitted; with colour, in the plane with the most."""


@dataclasses.dataclass(slots=True)
class LiveStack:
    """The state of one growing stack. `add` and `remove` change it; `render` does not.

    Waiting values are sorted, lowest first; their number is that of the non-zero `frames`.
    """

    low: int
    """Waiting values below the place where a value is settled; `len(values) − low` above."""
    values: Image
    """(high + low, planes, ny, nx) ADU, waiting."""
    frames: Count
    """(high + low, planes, ny, nx), index + 1 of the frame of each waiting value, 0 for none."""
    total: Sums
    """(planes, ny, nx), Σ weight · value, in quanta."""
    weight: Weights
    """(planes, ny, nx), Σ weight."""
    spread: Image
    """(planes, ny, nx), Σ weight · (value − mean)², ADU²."""
    settled: Count
    """(planes, ny, nx), number of settled values."""
    contrast: Count
    """(planes, ny, nx), the largest difference to the eight neighbours in `contrast_unit`."""
    terms: dict[int, FrameTerms] = dataclasses.field(default_factory=dict)
    """The frames in the stack, in the order they came."""
    sigmas: dict[int, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """ADU, each frame's noise in each plane, after scaling."""
    quantum: float = 0.0
    """ADU; set, as are the following, by the first frame."""
    weight_unit: float = 0.0
    sky: tuple[float, ...] = ()
    """ADU, level of the sky in each plane of the stack: above it, light comes from sources."""
    contrast_due: int = 0
    """Number of frames at which the contrast is looked at again."""

    @classmethod
    def empty(cls, shape: tuple[int, ...], *, high: int = 3, low: int = 2) -> Self:
        """A stack of no frames of `shape` (planes, ny, nx), with room for `high` and `low` ≥ 1
        waiting values. Memory is taken up only as pixels are touched.
        """
        if len(shape) != 3 or shape[0] not in {1, 3} or high < 1 or low < 1:
            raise ValueError(
                f"a stack is (1 or 3, ny, nx) with high, low ≥ 1, not {shape}, {high}, {low}"
            )
        depth = high + low
        return cls(
            low=low,
            values=np.zeros((depth, *shape), np.float32),
            frames=np.zeros((depth, *shape), np.uint16),
            total=np.zeros(shape, np.int64),
            weight=np.zeros(shape, np.int32),
            spread=np.zeros(shape, np.float32),
            settled=np.zeros(shape, np.uint16),
            contrast=np.zeros(shape, np.uint16),
            contrast_due=depth,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(planes, ny, nx)."""
        planes, height, width = self.total.shape
        return planes, height, width

    @property
    def nbytes(self) -> int:
        """Bytes of memory, once every pixel is touched."""
        arrays = (self.values, self.frames, self.total, self.weight, self.spread, self.settled)
        return sum(array.nbytes for array in arrays) + self.contrast.nbytes

    @property
    def contrast_unit(self) -> float:
        """ADU of one step of `contrast`."""
        return self.quantum * QUANTA_PER_SIGMA / CONTRAST_PER_SIGMA


def add(
    stack: LiveStack,
    image: Image,
    matrix: Matrix,
    terms: FrameTerms,
    *,
    distortion: Matrix | None = None,
    mask: Mask | None = None,
) -> None:
    """Resample one frame onto the stack's grid and accumulate it, in one pass.

    image: (planes, ny, nx) f32 ADU, of any size. matrix: 3×3, frame → reference px. distortion:
    (2, 10), what `daemon.light.distortion` adds to it. mask: (ny, nx) uint8 of the frame; pixels
    with bit 1 are not used. Only `stack` is changed.

    Raises ValueError, with the stack unchanged, for a wrong shape, a matrix without inverse, terms
    that are not finite or not positive, and an index that is in the stack already.
    """
    _check_terms(terms, stack)
    if terms.index in stack.terms:
        raise ValueError(f"frame {terms.index} is in the stack already")
    way = _way(stack, image, matrix, distortion, mask)
    sigmas = _plane_sigmas(image, terms)
    if not stack.quantum:
        stack.quantum = 2.0 ** np.floor(np.log2(min(sigmas) / QUANTA_PER_SIGMA))
        stack.weight_unit = terms.weight / WEIGHT_UNITS
        stack.sky = _plane_skies(image, terms, stack.shape)
    stack.terms[terms.index] = terms
    stack.sigmas[terms.index] = sigmas
    table = _table(stack)
    side_by_side(
        _add_bands, -(-stack.shape[1] // BLOCK_ROWS), image, way,
        *_frame_numbers(stack, terms, image), table, table[:, 0].astype(np.float32),
        np.array(stack.sky), stack.quantum, stack.contrast_unit, stack.low, len(stack.terms) - 1,
        stack.values, stack.frames, stack.total, stack.weight, stack.spread, stack.settled,
        stack.contrast, scratch=functools.partial(_Rows.of, stack.shape[2]),
    )  # fmt: skip
    if len(stack.terms) >= stack.contrast_due:
        _refresh_contrast(stack)


def remove(
    stack: LiveStack,
    image: Image,
    matrix: Matrix,
    terms: FrameTerms,
    *,
    distortion: Matrix | None = None,
    mask: Mask | None = None,
) -> None:
    """Take one frame out again, given exactly what it was added with.

    A waiting value is deleted, a settled one subtracted; a value that the gate would drop now is
    taken for one that it dropped then. At least 99.9 % of the pixels then render as if the frame
    had never been there; where it must be all of them, stack anew.

    Raises ValueError, with the stack unchanged, if the frame is not in the stack or its terms
    differ, and as `add`.
    """
    if stack.terms.get(terms.index) != terms:
        raise ValueError(f"frame {terms.index} is not in the stack with these terms")
    way = _way(stack, image, matrix, distortion, mask)
    side_by_side(
        _remove_bands, -(-stack.shape[1] // BLOCK_ROWS), image, way,
        *_frame_numbers(stack, terms, image), _table(stack), np.array(stack.sky), stack.quantum,
        stack.contrast_unit, stack.values, stack.frames, stack.total, stack.weight, stack.spread,
        stack.settled, stack.contrast, scratch=functools.partial(_Rows.of, stack.shape[2]),
    )  # fmt: skip
    del stack.terms[terms.index], stack.sigmas[terms.index]


def empty_image(shape: tuple[int, int, int]) -> StackImage:
    """An image (planes, ny, nx) of nothing, for `render` to fill."""
    return StackImage(
        mean=np.zeros(shape, np.float32),
        weight=np.zeros(shape, np.float32),
        variance=np.zeros(shape, np.float32),
        coverage=np.zeros(shape[1:], np.uint16),
    )


def render(stack: LiveStack, *, into: StackImage | None = None) -> StackImage:
    """The stack as it is now: the weighted mean of the settled values and of the waiting ones
    inside the gate. With one frame it is that frame. The stack is not changed. `into`, zeros or
    what other planes have left in its coverage, is filled where it is given.

    The variance of the mean is σ²/n_eff, with σ² the measured spread, weighed against the noise
    model with `MODEL_FREEDOM` degrees of freedom, so that it makes sense from the first frame on.
    """
    image = empty_image(stack.shape) if into is None else into
    if not stack.terms:
        return image
    table = _table(stack)
    side_by_side(
        render_tiles, -(-stack.shape[1] // TILE_ROWS), table, _typical(stack, table),
        np.array(stack.sky), stack.quantum, stack.weight_unit, stack.values, stack.frames,
        stack.total, stack.weight, stack.spread, stack.settled, image.mean, image.weight,
        image.variance, image.coverage,
    )  # fmt: skip
    return image


def _check_terms(terms: FrameTerms, stack: LiveStack) -> None:
    numbers = [terms.weight, terms.scale, terms.sigma_adu, terms.e_per_adu, terms.fwhm_px]
    offsets = [terms.sky_adu, *(number for plane in terms.planes for number in plane)]
    if not (all(np.isfinite(numbers)) and min(numbers) > 0 and all(np.isfinite(offsets))):
        raise ValueError(
            "weight, scale, σ, e-/ADU and FWHM of a frame must be positive, all its terms finite: "
            f"{terms}"
        )
    if not 0 <= terms.index <= MAX_INDEX:
        raise ValueError(f"a frame's index is 0 … {MAX_INDEX}, not {terms.index}")
    if len(terms.planes) != stack.shape[0]:
        raise ValueError(f"{len(terms.planes)} background planes for {stack.shape[0]} image planes")


def _way(
    stack: LiveStack, image: Image, matrix: Matrix, distortion: Matrix | None, mask: Mask | None
) -> warp.Way:
    """How a frame comes onto the stack's grid."""
    if image.ndim != 3 or image.shape[0] != stack.shape[0]:
        raise ValueError(f"an image of shape {image.shape} for a stack of {stack.shape}")
    if image.dtype != np.float32 or not image.flags.c_contiguous:
        raise ValueError(f"an image must be float32 in C order, not {image.dtype}")
    return warp.way_of(
        matrix, distortion, mask, shape=(image.shape[1], image.shape[2]), width=stack.shape[2]
    )


def _plane_sigmas(image: Image, terms: FrameTerms) -> tuple[float, ...]:
    """ADU, the noise in each plane. A colour frame's terms know only one number; a plane that is
    noisier by its own pixels keeps its own.
    """
    if len(image) == 1:
        return (terms.sigma_adu,)
    return tuple(
        max(terms.sigma_adu, terms.scale * warp.pixel_noise(plane[np.newaxis])) for plane in image
    )


def _plane_skies(image: Image, terms: FrameTerms, shape: tuple[int, int, int]) -> tuple[float, ...]:
    """ADU in the stack, the sky's level in each plane at the centre of the field.

    The planes of a colour frame differ from its luminance, (R + 2 G + B)/4, by their medians.
    """
    step = max(1, int(np.sqrt(image[0].size / 50_000)))
    medians = np.nanmedian(image[:, ::step, ::step].reshape(len(image), -1), axis=1)
    luminance = medians @ [0.25, 0.5, 0.25] if len(image) == 3 else medians[0]
    skies = terms.scale * (terms.sky_adu + np.nan_to_num(medians - luminance))
    y, x = shape[1] / 2, shape[2] / 2
    offsets = [a + bx * x + by * y for a, bx, by in terms.planes]
    return tuple(float(sky) for sky in skies + offsets)


def _frame_numbers(
    stack: LiveStack, terms: FrameTerms, image: Image
) -> tuple[int, float, Matrix, Image]:
    """The frame's number in the stack, its scale, planes, and the clamp's tolerances in its ADU."""
    tolerances = [warp.CLAMP_SIGMA * sigma / terms.scale for sigma in stack.sigmas[terms.index]]
    return (
        terms.index + 1,
        terms.scale,
        np.array(terms.planes, dtype=np.float64).reshape(len(image), 3),
        np.array(tolerances, dtype=np.float32),
    )


def steepness(fwhm_px: float) -> float:
    """How many times its contrast a star's light may be, at most."""
    return 1.0 + SHARPEST_SHARE * fwhm_px**2


def _table(stack: LiveStack) -> Matrix:
    """Everything the gate asks of a frame, by frame number: (numbers, 4 + planes) f64: integer
    weight, ADU² a source adds per ADU, relative seeing term of a source, the same of a contrast,
    and σ² of each plane.

    A waiting value is judged by its own frame, whichever frame pushes it out.
    """
    table = np.zeros((max(stack.terms) + 2, 4 + stack.shape[0]))
    # Without a loop over the frames: it is made for each, and there may be thousands.
    numbers = np.array(
        [(t.index + 1, t.weight, t.fwhm_px, t.e_per_adu) for t in stack.terms.values()]
    )
    rows, weights, widths, e_per_adu = numbers.T.copy()
    sigmas = np.array([stack.sigmas[index] for index in stack.terms])
    width = float(weights @ widths / weights.sum())
    seeing = np.abs((width / widths) ** 2 - 1.0) + SEEING_FLOOR
    units = np.clip(np.rint(weights / stack.weight_unit), 1, MAX_WEIGHT)
    table[rows.astype(np.intp)] = np.column_stack(
        (units, 1.0 / e_per_adu, seeing, seeing * steepness(width), np.square(sigmas))
    )
    return table


def _typical(stack: LiveStack, table: Matrix) -> Matrix:
    """For the variance, (planes, 3): the weighted mean of σ², that of a source's share, and the
    number of frames of equal weight that are worth one.
    """
    weights = table[:, 0]
    numbers = len(stack.terms)
    typical = np.empty((stack.shape[0], 3))
    for plane, row in enumerate(typical):
        variances = table[:, 4 + plane]
        row[0] = weights @ variances / weights.sum()
        row[1] = weights @ table[:, 1] / weights.sum()
        row[2] = row[0] * weights.sum() ** 2 / (weights**2 @ variances) / numbers
    return typical


def _refresh_contrast(stack: LiveStack) -> None:
    """Look at the contrast again, and say when next.

    Not with every frame, because it costs a pass over the state and changes little once a few
    frames are averaged; and by the number of frames alone, so that replaying gives the same bits
    whenever the stack was looked at. The first time is before anything is settled.
    """
    side_by_side(
        _contrast_tiles, -(-stack.shape[1] // TILE_ROWS), stack.quantum, stack.contrast_unit,
        stack.values, stack.frames, stack.total, stack.weight, stack.settled, stack.contrast,
        scratch=lambda: aligned((TILE_ROWS + 3, _whole_lines(stack.shape[2])), np.float32),
    )  # fmt: skip
    frames = len(stack.terms)
    stack.contrast_due = frames + min(max(frames // 2, 1), 32)


class _Rows(NamedTuple):
    """Memory of a thread's own: rows of the stack, which all begin with a cache line."""

    warp: Scratch
    made: Image
    """(BLOCK_ROWS, columns)."""
    pixels: Image
    """(4, columns)."""
    who: Count
    """(columns,)."""
    far: Mask
    """(columns,)."""

    @classmethod
    def of(cls, width: int) -> Self:
        """For a stack of that width, px."""
        columns = _whole_lines(width)
        return cls(
            Scratch.of(),
            aligned((BLOCK_ROWS, columns), np.float32),
            aligned((4, columns), np.float32),
            aligned((columns,), np.uint16),
            aligned((columns,), np.uint8),
        )


def _whole_lines(width: int) -> int:
    """Pixels of a row that ends with a cache line, so that the next one begins with one."""
    return -(-width // CACHE_LINE) * CACHE_LINE


@kernel()
def _add_bands(
    first: int, last: int, rows: _Rows, image: Image, way: warp.Way, number: int, scale: float,
    planes: Matrix, tolerances: Image, table: Matrix, shares: Image, skies: Matrix,
    quantum: float, contrast_unit: float, low: int, most: int, values: Image, frames: Count,
    total: Sums, weight: Weights, spread: Image, settled: Count, contrast: Count,
) -> None:  # fmt: skip
    """Some bands of BLOCK_ROWS rows. A frame's registered pixels, which are in the cache, enter by
    whole rows: the state is larger than any cache, and memory is fastest where it is read on and
    on.
    """
    depth, plane_count, height, width = values.shape
    blocks = (width + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    frame = np.uint16(number)
    made, far = rows.made, rows.far
    fresh, out, who = rows.pixels[0, :width], rows.pixels[1, :width], rows.who[:width]
    away, share = rows.pixels[2, :width], rows.pixels[3, :width]
    for band in range(first, last):
        y0 = band * BLOCK_ROWS
        y1 = min(y0 + BLOCK_ROWS, height)
        for plane in range(plane_count):
            a, bx, by = planes[plane, 0], planes[plane, 1], planes[plane, 2]
            variance = np.float32(smallest(table[:, 4 + plane]))
            for block in range(blocks):
                warp.warp_block(
                    image[plane], way, tolerances[plane], y0, y1, block, rows.warp, made
                )
            for y in range(y0, y1):
                for block in range(blocks):
                    x0, x1 = warp.columns_of(way, block)
                    settle.scale_row(
                        made[y - y0, x0:x1],
                        scale,
                        a + by * y + bx * x0,
                        bx,
                        way.steps,
                        fresh[x0:x1],
                    )
                sums, weights = total[plane, y], weight[plane, y]
                squares, counts = spread[plane, y], settled[plane, y]
                settle.fill(values, frames, plane, y, most, frame, fresh, out)
                if most < depth:
                    continue
                settle.push(values, frames, plane, y, low, frame, fresh, out, who)
                settle.measure(out, who, sums, weights, quantum, shares, variance, away, share, far)
                settle.judge(
                    out, who, table, plane, skies[plane], contrast_unit, depth, weights, squares,
                    counts, contrast[plane, y], away, share, far,
                )  # fmt: skip
                settle.sum_up(out, share, away, quantum, sums, weights, squares, counts)


@kernel()
def _remove_bands(
    first: int, last: int, rows: _Rows, image: Image, way: warp.Way, number: int, scale: float,
    planes: Matrix, tolerances: Image, table: Matrix, skies: Matrix, quantum: float,
    contrast_unit: float, values: Image, frames: Count, total: Sums, weight: Weights,
    spread: Image, settled: Count, contrast: Count,
) -> None:  # fmt: skip
    depth, plane_count, height, width = values.shape
    share = int(table[number, 0])
    per_adu = 1.0 / quantum
    for band in range(first, last):
        y0 = band * BLOCK_ROWS
        y1 = min(y0 + BLOCK_ROWS, height)
        for plane in range(plane_count):
            a, bx, by = planes[plane, 0], planes[plane, 1], planes[plane, 2]
            for block in range((width + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS):
                x0, x1 = warp.columns_of(way, block)
                warp.warp_block(
                    image[plane], way, tolerances[plane], y0, y1, block, rows.warp, rows.made
                )
                fresh = rows.pixels[0, : x1 - x0]
                for y in range(y0, y1):
                    settle.scale_row(
                        rows.made[y - y0, x0:x1],
                        scale,
                        a + by * y + bx * x0,
                        bx,
                        way.steps,
                        fresh,
                    )
                    for x in range(x0, x1):
                        value = fresh[x - x0]
                        if np.isnan(value):
                            continue
                        found = _delete_waiting(values, frames, plane, y, x, number)
                        count = settled[plane, y, x]
                        if found or count == 0:
                            continue
                        rest = weight[plane, y, x] - share
                        rest_total = total[plane, y, x] - int(
                            share * settle.quanta(float(value), per_adu)
                        )
                        if count > 1:
                            if rest <= 0:
                                continue
                            centre = rest_total * quantum / rest
                            away = value - centre
                            lost = share * away * away * rest / (rest + share)
                            without = np.float32(max(spread[plane, y, x] - lost, 0.0))
                            if abs(away) > settle.gate(
                                centre, skies[plane], contrast[plane, y, x] * contrast_unit,
                                table[number, 4 + plane], table[number, 1], table[number, 2],
                                table[number, 3], count - 1 + depth,
                                settle.empirical(float(without), rest, count - 1),
                            ):  # fmt: skip
                                continue
                            spread[plane, y, x] = without
                        elif rest != 0:
                            continue
                        else:
                            spread[plane, y, x] = 0
                        total[plane, y, x] = rest_total
                        weight[plane, y, x] = rest
                        settled[plane, y, x] = count - 1


@kernel()
def _delete_waiting(values: Image, frames: Count, plane: int, y: int, x: int, number: int) -> bool:
    """Delete the waiting value of a frame; tells whether there was one."""
    depth = values.shape[0]
    found = False
    for k in range(depth):
        if frames[k, plane, y, x] == number:
            found = True
        if found:
            last = k == depth - 1
            values[k, plane, y, x] = 0 if last else values[k + 1, plane, y, x]
            frames[k, plane, y, x] = 0 if last else frames[k + 1, plane, y, x]
    return found


@kernel()
def _contrast_tiles(
    begin: int, end: int, scratch: Image, quantum: float, contrast_unit: float, values: Image,
    frames: Count, total: Sums, weight: Weights, settled: Count, contrast: Count,
) -> None:  # fmt: skip
    _, plane_count, height, width = values.shape
    row = scratch[TILE_ROWS + 2, :width]
    for tile in range(begin, end):
        first = tile * TILE_ROWS
        last = min(first + TILE_ROWS, height)
        for plane in range(plane_count):
            for y in range(first - 1, last + 1):
                inside = min(max(y, 0), height - 1)
                centre_row(
                    values, frames, total, weight, settled, quantum, plane, inside,
                    scratch[y - first + 1, :width],
                )  # fmt: skip
            for y in range(first, last):
                k = y - first + 1
                contrast_row(
                    scratch[k - 1, :width], scratch[k, :width], scratch[k + 1, :width], row
                )
                for x in range(width):
                    steps = row[x] / contrast_unit
                    contrast[plane, y, x] = np.uint16(min(steps + 0.5, 65535.0))
