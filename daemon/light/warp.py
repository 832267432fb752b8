"""Resampling a frame onto the reference grid: Lanczos-3, clamped where it would ring.

The kernel is that of `lanczos`. A frame that is nearly upright, as almost every one of a night is,
is resampled in two sweeps (`sweeps`); one that is turned farther, or bent by a distortion, pixel by
pixel from 6×6 others, at three to four times the cost.

Beside an edge that the sampling does not resolve (a hot pixel, a saturated core, a satellite trail)
the kernel's lobes would draw dark and bright rings. There the value is held within the range of the
pixels nearest to it, give or take the noise.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calib_library.kernels import kernel, side_by_side
from daemon.light import distortion as distortions
from daemon.light.lanczos import (
    BAD,
    BAD_SHARE,
    EDGE_CONTRAST,
    PHASE_BITS,
    PHASES,
    RING_SHARE,
    SHARES,
    TABLE,
    TAPS,
)
from daemon.light.sweeps import (
    AREA,
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    MIRRORED,
    NOT_UPRIGHT,
    STEPS,
    Scratch,
    sweep_block,
    sweeps_of,
    unpacked,
)

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
Place = npt.NDArray[np.int32]
Bend = tuple[float, float, float, float, float, float, float]

CLAMP_SIGMA = 1.0
"""How far, in σ of one pixel, a value may lie outside the range of its four nearest pixels."""
MOST_BENT = 0.5
"""By how much of the matrix's own area a distortion may change a pixel's; beyond, it is out of its
depth, and the frame covers nothing there."""
UNIT_PX = distortions.UNIT_PX
NOT_BENT = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
BLOCK = 4
"""px, edge of the blocks in which the surroundings of bad pixels are marked."""
CHUNK = 256
"""Pixels of a mask that are looked at together."""


class Way(NamedTuple):
    """How a frame comes onto the reference grid: what `warp_block` needs beside its pixels."""

    width: int
    """px of a reference row."""
    inverse: Matrix
    bend: Matrix
    sweeps: Matrix
    """(8,) f64, a `sweeps.Sweeps`: a parallel kernel takes no records within a record."""
    bad: Mask
    """(ny, nx), bit 1 = bad. This and the next three are empty where no pixel is."""
    near: Mask
    """For each block of BLOCK×BLOCK kernel positions, whether a kernel there can touch one."""
    first_bad: Place
    """(ny + 1,), where the bad columns of each row begin."""
    bad_columns: Place
    """Row by row."""
    table: Image
    shares: Image
    steps: Image


def warp(
    image: Image,
    matrix: Matrix,
    *,
    shape: tuple[int, int],
    distortion: Matrix | None = None,
    noise_adu: float | None = None,
    out: Image | None = None,
) -> tuple[Image, Mask]:
    """Resample `image` onto the reference grid.

    image: (planes, ny, nx) f32, ADU. matrix: 3×3 f64, frame → reference px, acting on (x, y, 1).
    shape: (ny, nx) of the reference. distortion: (2, 10) f64, what `daemon.light.distortion` adds
    to the matrix. noise_adu: σ of one pixel of the background, for the clamp; None measures it.
    out: (planes, ny, nx) f32 of the reference's shape, overwritten.

    Returns the resampled image (planes, ny, nx) f32 and the coverage (ny, nx) uint8: 1 where the
    position lies within the centres of the frame's outermost pixels. Elsewhere, and where a pixel
    is not finite, coverage and value are 0. Flux is conserved: values are multiplied by the
    area of a reference pixel in frame pixels, |det| of the inverse map there.

    Raises ValueError for a wrong shape or a singular matrix.
    """
    if out is None:
        out = np.empty((image.shape[0], *shape), dtype=np.float32)
    warp_rows(
        image, matrix, rows=(0, shape[0]), width=shape[1], distortion=distortion,
        noise_adu=noise_adu, out=out,
    )  # fmt: skip
    coverage = np.empty(shape, dtype=np.uint8)
    side_by_side(_split_coverage, len(coverage), out, coverage)
    return out, coverage


def warp_rows(
    image: Image,
    matrix: Matrix,
    *,
    rows: tuple[int, int],
    width: int,
    distortion: Matrix | None = None,
    mask: Mask | None = None,
    noise_adu: float | None = None,
    out: Image | None = None,
) -> Image:
    """Resample `image` onto some rows of the reference grid, NaN where it does not cover them.

    rows: first and one past the last row of the reference. width: px of a reference row.
    mask: (ny, nx) uint8 of the frame, bit 1 = bad: those pixels are not used. The rest, and what
    is raised, as `warp`. Returns (planes, rows, width) f32.
    """
    _check_image(image)
    way = way_of(matrix, distortion, mask, shape=(image.shape[1], image.shape[2]), width=width)
    shape = (image.shape[0], rows[1] - rows[0], width)
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    if out.shape != shape or out.dtype != np.float32:
        raise ValueError(f"out is {out.shape} {out.dtype}, {shape} float32 is needed")
    if noise_adu is None:
        noise_adu = pixel_noise(image)
    tolerance = np.float32(CLAMP_SIGMA * noise_adu)
    bands = -(-shape[1] // BLOCK_ROWS)
    side_by_side(_warp_bands, bands, image, way, tolerance, rows[0], out, scratch=Scratch.of)
    return out


def way_of(
    matrix: Matrix,
    distortion: Matrix | None,
    mask: Mask | None,
    *,
    shape: tuple[int, int],
    width: int,
) -> Way:
    """The way of a frame of `shape` (ny, nx) onto a reference `width` px wide. Raises ValueError as
    `invert`, `bad_pixels` and `distortion.checked`.
    """
    inverse, bend = invert(matrix), distortions.checked(distortion)
    bad = bad_pixels(mask, shape=shape)
    sweeps = NOT_UPRIGHT if bend.size else sweeps_of(inverse, width=width)
    return Way(width, inverse, bend, np.array(sweeps), *bad, TABLE, SHARES, STEPS)


def invert(matrix: Matrix) -> Matrix:
    """The map reference → frame of a map frame → reference, scaled so that [2, 2] is 1.

    Raises ValueError where there is none.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ValueError("a transform is a 3×3 matrix of finite numbers")
    if abs(np.linalg.det(matrix)) < 1e-12:
        raise ValueError("the transform cannot be inverted")
    inverse = np.linalg.inv(matrix)
    if inverse[2, 2] == 0:
        raise ValueError("the transform sends the reference's origin to infinity")
    return np.ascontiguousarray(inverse / inverse[2, 2])


def pixel_noise(image: Image) -> float:
    """σ of one pixel, ADU, from the differences of next-but-one pixels in a row: their median
    absolute value / (0.6745 √2). Next but one, because a demosaiced row repeats itself halfway.

    image: (planes, ny, nx). Some 200 000 pixels of all planes are looked at.
    """
    step = max(1, int(np.sqrt(image.size / 200_000)))
    sample = image[:, ::step]
    steps = np.abs(sample[:, :, 2::step] - sample[:, :, : sample.shape[2] - 2 : step])
    finite = steps[np.isfinite(steps)]
    return float(np.median(finite)) / (0.6745 * np.sqrt(2.0)) if finite.size else 0.0


def bad_pixels(mask: Mask | None, *, shape: tuple[int, int]) -> tuple[Mask, Mask, Place, Place]:
    """What `Way` says of the bad pixels. The mask is not changed; ValueError where
    its shape is not `shape`.
    """
    none, nowhere = np.empty((0, 0), dtype=np.uint8), np.empty(0, dtype=np.int32)
    if mask is None:
        return none, none, nowhere, nowhere
    if mask.shape != shape or mask.dtype != np.uint8:
        raise ValueError(f"the mask is {mask.shape} {mask.dtype}, {shape} uint8 is needed")
    mask = np.ascontiguousarray(mask)
    first = np.zeros(shape[0] + 1, dtype=np.int32)
    side_by_side(_list_bad, len(mask), mask, first, nowhere)
    np.cumsum(first, out=first)
    if not first[-1]:
        return none, none, nowhere, nowhere
    columns = np.empty(first[-1], dtype=np.int32)
    side_by_side(_list_bad, len(mask), mask, first, columns)
    near = np.zeros((-(-shape[0] // BLOCK), -(-shape[1] // BLOCK)), dtype=np.uint8)
    _mark_blocks(first, columns, near)
    return mask, near, first, columns


@kernel()
def _list_bad(begin: int, end: int, mask: Mask, first: Place, columns: Place) -> None:
    """Of rows begin … end, write the number of bad pixels of row y to first[y + 1], or, with
    `columns`, their columns from there on. Most pixels are good, and looked at by the chunk.
    """
    width = mask.shape[1]
    for y in range(begin, end):
        row = mask[y]
        number = 0
        for left in range(0, width, CHUNK):
            right = min(left + CHUNK, width)
            if not _flags(row[left:right]) & BAD:
                continue
            for x in range(left, right):
                if row[x] & BAD:
                    if columns.size:
                        columns[first[y] + number] = x
                    number += 1
        if not columns.size:
            first[y + 1] = number


@kernel()
def _flags(mask: Mask) -> np.uint8:
    """All bits that are set in a piece of a row."""
    flags = np.uint8(0)
    for k in range(mask.size):
        flags |= mask[k]
    return flags


@kernel()
def _mark_blocks(first: Place, columns: Place, near: Mask) -> None:
    """A kernel placed at (x, y) touches pixels x − 2 … x + 3, y − 2 … y + 3."""
    rows, across = near.shape
    for y in range(first.size - 1):
        top, bottom = max(y - 3, 0) // BLOCK, min((y + 2) // BLOCK + 1, rows)
        for k in range(first[y], first[y + 1]):
            left = max(columns[k] - 3, 0) // BLOCK
            right = min((columns[k] + 2) // BLOCK + 1, across)
            near[top:bottom, left:right] = BAD


def _check_image(image: Image) -> None:
    if image.ndim != 3 or image.dtype != np.float32 or not image.flags.c_contiguous:
        raise ValueError(
            f"an image is (planes, ny, nx) float32 in C order, not {image.shape} {image.dtype}"
        )


@kernel()
def _warp_bands(
    begin: int, end: int, scratch: Scratch, image: Image, way: Way, tolerance: np.float32,
    first_row: int, out: Image,
) -> None:  # fmt: skip
    """Fill bands begin … end of `out`, of BLOCK_ROWS rows each; it begins at `first_row`."""
    planes, height, width = out.shape
    for band in range(begin, end):
        y0 = band * BLOCK_ROWS
        y1 = min(y0 + BLOCK_ROWS, height)
        for block in range((width + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS):
            for plane in range(planes):
                warp_block(
                    image[plane], way, tolerance, first_row + y0, first_row + y1, block, scratch,
                    out[plane, y0:y1],
                )  # fmt: skip


@kernel()
def _split_coverage(first: int, last: int, image: Image, coverage: Mask) -> None:
    """Turn NaN into value 0 and coverage 0, in place."""
    planes, _, width = image.shape
    for y in range(first, last):
        for x in range(width):
            covered = True
            for plane in range(planes):
                covered = covered and not np.isnan(image[plane, y, x])
            coverage[y, x] = covered
            if not covered:
                for plane in range(planes):
                    image[plane, y, x] = 0


@kernel()
def columns_of(way: Way, block: int) -> tuple[int, int]:
    """First and one past the last reference column of a block of BLOCK_COLUMNS; a mirrored frame is
    swept from the right.
    """
    begin = block * BLOCK_COLUMNS
    end = min(begin + BLOCK_COLUMNS, way.width)
    if way.sweeps[MIRRORED] > 0.0:
        return way.width - end, way.width - begin
    return begin, end


@kernel()
def warp_block(
    plane: Image, way: Way, tolerance: np.float32, y0: int, y1: int, block: int, scratch: Scratch,
    out: Image,
) -> None:  # fmt: skip
    """Resample one plane (ny, nx) onto rows y0 … y1 of the reference, BLOCK_ROWS at most, and the
    columns of a block, as `columns_of` gives them, of `out` (rows, nx of the reference), whose
    first row is y0; NaN where there is nothing. For kernels; `tolerance` in ADU. The bits do not
    depend on which rows are asked for together.
    """
    x0, x1 = columns_of(way, block)
    if way.sweeps[AREA] > 0.0:
        begin = block * BLOCK_COLUMNS
        sweep_block(
            plane, unpacked(way.sweeps), tolerance, way.steps, way.shares, way.bad, way.first_bad,
            way.bad_columns, y0, y1, begin, begin + x1 - x0, scratch, out, x0,
        )  # fmt: skip
        return
    for y in range(y0, y1):
        _warp_row(plane, way, tolerance, y, x0, scratch, out[y - y0, x0:x1])


@kernel()
def _warp_row(
    plane: Image, way: Way, tolerance: np.float32, y: int, x0: int, scratch: Scratch, out: Image
) -> None:
    """Resample one plane (ny, nx) onto row `y` of the reference from column x0 on, pixel by pixel:
    `out` (columns,), NaN where there is nothing.
    """
    height, width = plane.shape
    pixels = plane.reshape(-1)
    stride = np.uint64(width)
    table, bad, near = way.table, way.bad, way.near
    masked = near.size > 0
    at_x, at_y = scratch.places[0], scratch.places[1]
    area = scratch.line[: out.size]
    _positions(way.inverse, way.bend, y, x0, width, height, at_x, at_y, area)
    for x in range(out.size):
        if at_x[x] < 0:
            out[x] = np.nan
            continue
        column = at_x[x] >> PHASE_BITS
        row = at_y[x] >> PHASE_BITS
        phase_x = np.uint64(at_x[x] & (PHASES - 1))
        phase_y = np.uint64(at_y[x] & (PHASES - 1))
        inside = 2 <= column < width - 3 and 2 <= row < height - 3
        if masked and near[row // BLOCK, column // BLOCK]:
            value = _sample_good(plane, bad, table, column, row, phase_x, phase_y)
        elif inside:
            base = np.uint64(row - 2) * stride + np.uint64(column - 2)
            value = _sample(pixels, base, stride, table, phase_x, phase_y, tolerance)
        else:
            value = _sample_edge(plane, table, column, row, phase_x, phase_y)
        value *= area[x]
        out[x] = value if abs(value) < np.float32(np.inf) else np.float32(np.nan)


@kernel()
def _positions(
    inverse: Matrix,
    bend: Matrix,
    y: int,
    x0: int,
    width: int,
    height: int,
    at_x: Place,
    at_y: Place,
    area: Image,
) -> None:
    """Where the pixels of row `y` from column x0 on lie in a frame of `width`×`height`, in
    1/1024 px, −1 outside; and the area of each in frame pixels.
    """
    x_limit = float((width - 1) * PHASES)
    y_limit = float((height - 1) * PHASES)
    x_start = inverse[0, 1] * y + inverse[0, 2]
    y_start = inverse[1, 1] * y + inverse[1, 2]
    w_start = inverse[2, 1] * y + 1.0
    perspective = inverse[2, 0] != 0.0 or inverse[2, 1] != 0.0
    determinant = _determinant(inverse)
    bent = bend.size > 0
    bend_x = _row_of(bend, 0, y) if bent else NOT_BENT
    bend_y = _row_of(bend, 1, y) if bent else NOT_BENT
    for k in range(area.size):
        x = x0 + k
        w = 1.0
        source_x = inverse[0, 0] * x + x_start
        source_y = inverse[1, 0] * x + y_start
        local = determinant
        inside = True
        if perspective:
            w = inverse[2, 0] * x + w_start
            inside = w > 0.0
            source_x /= w
            source_y /= w
            local /= w**3
        if bent:
            plain = local
            source_x, source_y, local = _bend(
                inverse, bend_x, bend_y, x / UNIT_PX, source_x, source_y, w
            )
            # Far from the stars that it was fitted to, a cubic may fold the frame over itself.
            inside = inside and abs(local - plain) <= MOST_BENT * abs(plain)
        # Rounding to a phase also absorbs the 1e-10 px that inverting a matrix costs.
        scaled_x = np.floor(source_x * PHASES + 0.5)
        scaled_y = np.floor(source_y * PHASES + 0.5)
        inside = inside and 0.0 <= scaled_x <= x_limit and 0.0 <= scaled_y <= y_limit
        at_x[k] = int(scaled_x) if inside else -1
        at_y[k] = int(scaled_y) if inside else -1
        area[k] = abs(local)


@kernel()
def _row_of(bend: Matrix, axis: int, y: int) -> Bend:
    """One axis of a distortion along row `y`, as polynomials of u = x/4096: four coefficients of
    the displacement in px, then three of its slope in y, px per px.
    """
    c = bend[axis]
    v = y / UNIT_PX
    return (
        c[0] + v * (c[2] + v * (c[5] + v * c[9])),
        c[1] + v * (c[4] + v * c[8]),
        c[3] + v * c[7],
        c[6],
        (c[2] + v * (2.0 * c[5] + v * 3.0 * c[9])) / UNIT_PX,
        (c[4] + v * 2.0 * c[8]) / UNIT_PX,
        c[7] / UNIT_PX,
    )


@kernel()
def _bend(
    inverse: Matrix, bend_x: Bend, bend_y: Bend, u: float, x: float, y: float, w: float
) -> tuple[float, float, float]:
    """A position (x, y) in the frame by the matrix alone, whose divisor is `w`, with the
    distortion added; and the area of a reference pixel there in frame pixels, negative where it
    is mirrored.
    """
    xx = (inverse[0, 0] - inverse[2, 0] * x) / w + _slope_x(bend_x, u)
    xy = (inverse[0, 1] - inverse[2, 1] * x) / w + _slope_y(bend_x, u)
    yx = (inverse[1, 0] - inverse[2, 0] * y) / w + _slope_x(bend_y, u)
    yy = (inverse[1, 1] - inverse[2, 1] * y) / w + _slope_y(bend_y, u)
    return x + _shift(bend_x, u), y + _shift(bend_y, u), xx * yy - xy * yx


@kernel(inline=True)
def _shift(bend: Bend, u: float) -> float:
    return bend[0] + u * (bend[1] + u * (bend[2] + u * bend[3]))


@kernel(inline=True)
def _slope_x(bend: Bend, u: float) -> float:
    return (bend[1] + u * (2.0 * bend[2] + u * 3.0 * bend[3])) / UNIT_PX


@kernel(inline=True)
def _slope_y(bend: Bend, u: float) -> float:
    return bend[4] + u * (bend[5] + u * bend[6])


@kernel()
def _determinant(m: Matrix) -> float:
    return float(
        m[0, 0] * (m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1])
        - m[0, 1] * (m[1, 0] * m[2, 2] - m[1, 2] * m[2, 0])
        + m[0, 2] * (m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0])
    )


@kernel(inline=True)
def _sample(
    pixels: Image,
    base: np.uint64,
    stride: np.uint64,
    table: Image,
    phase_x: np.uint64,
    phase_y: np.uint64,
    tolerance: np.float32,
) -> np.float32:
    """The clamped value from the 6×6 pixels whose first is at `base`, all of them inside.

    Six column sums first, so that the compiler can use vector registers without reordering.
    """
    one = np.uint64(1)
    a0 = a1 = a2 = a3 = a4 = a5 = np.float32(0)
    at = base
    for i in range(TAPS):
        weight = table[phase_y, np.uint64(i)]
        a0 += weight * pixels[at]
        a1 += weight * pixels[at + one]
        a2 += weight * pixels[at + np.uint64(2)]
        a3 += weight * pixels[at + np.uint64(3)]
        a4 += weight * pixels[at + np.uint64(4)]
        a5 += weight * pixels[at + np.uint64(5)]
        at += stride
    value = (
        table[phase_x, np.uint64(0)] * a0
        + table[phase_x, one] * a1
        + table[phase_x, np.uint64(2)] * a2
        + table[phase_x, np.uint64(3)] * a3
        + table[phase_x, np.uint64(4)] * a4
        + table[phase_x, np.uint64(5)] * a5
    )
    inner = base + np.uint64(2) * stride + np.uint64(2)
    p00 = pixels[inner]
    p01 = pixels[inner + one]
    p10 = pixels[inner + stride]
    p11 = pixels[inner + stride + one]
    lowest = min(p00, p01, p10, p11)
    highest = max(p00, p01, p10, p11)
    if lowest - tolerance <= value <= highest + tolerance:
        return np.float32(value)
    bottom, top = _range(pixels, base, stride)
    allowed = tolerance + RING_SHARE * (top - bottom)
    if top - bottom > EDGE_CONTRAST * (highest + tolerance - bottom):
        value = min(max(value, lowest - allowed), highest + allowed)
    return np.float32(value)


@kernel()
def _range(pixels: Image, base: np.uint64, stride: np.uint64) -> tuple[np.float32, np.float32]:
    """The smallest and the largest of 6×6 pixels."""
    bottom = pixels[base]
    top = bottom
    at = base
    for _ in range(TAPS):
        for j in range(TAPS):
            pixel = pixels[at + np.uint64(j)]
            bottom = min(bottom, pixel)
            top = max(top, pixel)
        at += stride
    return bottom, top


@kernel()
def _sample_edge(
    plane: Image, table: Image, column: int, row: int, phase_x: np.uint64, phase_y: np.uint64
) -> np.float32:
    """As `_sample` near the frame's border, which repeats its last pixels outwards."""
    height, width = plane.shape
    value = np.float32(0)
    for i in range(TAPS):
        y = min(max(row + i - 2, 0), height - 1)
        line = np.float32(0)
        for j in range(TAPS):
            line += table[phase_x, j] * plane[y, min(max(column + j - 2, 0), width - 1)]
        value += table[phase_y, i] * line
    return value


@kernel()
def _sample_good(
    plane: Image,
    bad: Mask,
    table: Image,
    column: int,
    row: int,
    phase_x: np.uint64,
    phase_y: np.uint64,
) -> np.float32:
    """As `_sample_edge` without the bad pixels: NaN where they carry too much of the kernel."""
    height, width = plane.shape
    value = np.float32(0)
    total = np.float32(0)
    share = np.float32(0)
    lost = np.float32(0)
    for i in range(TAPS):
        y = min(max(row + i - 2, 0), height - 1)
        for j in range(TAPS):
            x = min(max(column + j - 2, 0), width - 1)
            weight = table[phase_y, i] * table[phase_x, j]
            share += abs(weight)
            if bad[y, x] & BAD:
                lost += abs(weight)
            else:
                total += weight
                value += weight * plane[y, x]
    if lost > np.float32(BAD_SHARE) * share:
        return np.float32(np.nan)
    return value / total
