"""Drizzle: the frames' pixels dropped onto a grid twice as fine.

After Fruchter & Hook (2002, PASP 114, 144), with the square kernel. Dithered frames sample the sky
between each other's pixels. Here every pixel, shrunk to `PIXFRAC` of its size, is laid onto the
fine grid as the quadrangle it is there, and its value goes to each pixel of the grid by the exact
area that the two share. Nothing is interpolated, so nothing rings, and neighbours share less noise
than after a resampling. A colour camera's mosaic is dropped colour by colour, without being
demosaiced first.

The fine grid: pixel (i, j) spans the reference's x from i/2 − ½ to (i + 1)/2 − ½, and y likewise.
Flux is conserved: a pixel holds the light that falls on its own quarter of a reference pixel, the
sky's as well.

The variance is that of the weighted mean, as the exact stack has it: each pixel's own. A drop falls
on several pixels of the grid, so that neighbours err together: the mean of many of them is noisier
than their variances say, in σ by up to `CORRELATION`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from numba import prange

from calib_library.kernels import kernel
from daemon.light import distortion as distortions
from daemon.stack.live import FrameTerms

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Colours = npt.NDArray[np.int64]

SCALE = 2
"""Pixels of the fine grid along one of the reference."""
PIXFRAC = 0.8
"""Edge of a drop over that of its pixel: smaller drops are sharper and need more frames."""
CORRELATION = SCALE * PIXFRAC / (1.0 - 1.0 / (3.0 * SCALE * PIXFRAC))
"""σ of the mean of a large area over that of independent pixels with the same variance, where drops
lie evenly: r/(1 − 1/(3r)) with r the drop's edge in pixels of the grid (Fruchter & Hook, on
correlated noise)."""
CELL = 16
"""px between the points at which a frame's place in the reference is computed; between them it is
interpolated, which is exact without a distortion and good to 0.002 px with 60 px of it."""
GROUP = 32
"""Rows of the fine grid that one thread fills."""
BAD = np.uint8(1)
_COLOURS = {"R": 0, "G": 1, "B": 2}


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """Rows of the fine grid that are being filled. `add` mutates the arrays."""

    first: int
    """The row of the whole fine grid that is row 0 here."""
    total: Matrix
    """(planes, rows, SCALE · nx), Σ weight · area · value, ADU."""
    weight: Matrix
    """Σ weight · area, area in pixels of the fine grid."""
    noise: Matrix
    """Σ (weight · area)² · σ² of the value that was dropped, ADU²: of the sky and the readout."""
    photons: Matrix
    """Σ (weight · area)² · what a source adds to that variance for each ADU of it, ADU."""

    @classmethod
    def empty(cls, planes: int, rows: tuple[int, int], width: int) -> Self:
        """Room for the fine pixels of rows first … last of a reference of `width` px."""
        shape = (planes, SCALE * (rows[1] - rows[0]), SCALE * width)
        return cls(SCALE * rows[0], *(np.zeros(shape) for _ in range(4)))

    def mean(self) -> Image:
        """(planes, rows, columns) ADU, 0 where nothing fell."""
        some = self.weight > 0
        return (self.total / np.where(some, self.weight, 1.0)).astype(np.float32)

    def variance(self, skies: Sequence[float]) -> Image:
        """(planes, rows, columns) ADU², of `mean`; 0 where nothing fell. skies: ADU, the sky's
        level in each plane of the stack, in pixels of the reference.
        """
        some = self.weight > 0
        weight = np.where(some, self.weight, 1.0)
        levels = np.asarray(skies, np.float64)[:, np.newaxis, np.newaxis]
        sources = np.maximum(SCALE**2 * self.total / weight - levels, 0.0)
        variance: Matrix = (self.noise + self.photons * sources) / weight**2
        return variance.astype(np.float32)


def add(
    grid: Grid,
    samples: Image,
    matrix: Matrix,
    terms: FrameTerms,
    *,
    first_row: int = 0,
    distortion: Matrix | None = None,
    pattern: str | None = None,
    mask: Mask | None = None,
    rejected: Bool | None = None,
    rejected_from: int = 0,
    pixfrac: float = PIXFRAC,
    sigmas: Sequence[float] | None = None,
) -> None:
    """Drop some rows of one frame onto a grid; only `grid` is changed.

    samples: (ny, nx) f32 ADU, a monochrome frame or a mosaic of `pattern` (`RGGB`…), of which
    row 0 is row `first_row` of the frame, an even one with a mosaic. matrix, distortion, terms: as
    for the live stack. mask: (ny, nx); pixels with bit 1 are not used. rejected: (planes, rows,
    width) of the reference from its row `rejected_from` on; a pixel whose centre lies on a rejected
    one is not used. pixfrac: 0 … 1, edge of a drop over that of a pixel. sigmas: ADU, the noise of
    one pixel of each colour of the sky, after scaling; None: that of the terms.

    The result does not depend on how a frame is cut into rows, nor on threads; rows that do not
    reach the grid cost little. Raises ValueError for wrong shapes.
    """
    if samples.ndim != 2 or samples.dtype != np.float32 or not 0 < pixfrac <= 1:
        raise ValueError(f"(ny, nx) float32 and 0 < pixfrac ≤ 1, not {samples.shape}, {pixfrac}")
    planes = grid.total.shape[0]
    if (
        planes != len(terms.planes)
        or (pattern is None) != (planes == 1)
        or (pattern is not None and first_row % 2)
    ):
        raise ValueError(f"a mosaic of {pattern} from row {first_row} for {planes} planes")
    if mask is not None and mask.shape != samples.shape:
        raise ValueError(f"a mask of {mask.shape} for {samples.shape}")
    colours = np.zeros((2, 2), np.int64)
    if pattern is not None:
        colours[:] = np.array([_COLOURS[letter] for letter in pattern]).reshape(2, 2)
    points = lattice(matrix, distortion, shape=samples.shape, first_row=first_row)
    _drop_rows(
        np.ascontiguousarray(samples),
        points,
        np.empty((0, 0), np.uint8) if mask is None else np.ascontiguousarray(mask),
        np.empty((0, 0, 0), np.bool_) if rejected is None else np.ascontiguousarray(rejected),
        rejected_from,
        colours,
        np.array(terms.planes, dtype=np.float64),
        np.square(np.full(planes, terms.sigma_adu) if sigmas is None else np.array(sigmas)),
        1.0 / terms.e_per_adu,
        terms.scale,
        terms.weight,
        pixfrac,
        _slack(points),
        grid.first,
        grid.total,
        grid.weight,
        grid.noise,
        grid.photons,
    )


def lattice(
    matrix: Matrix, distortion: Matrix | None, *, shape: tuple[int, ...], first_row: int
) -> Matrix:
    """Where the points (CELL (k − 1), CELL (j − 1) + first_row) of a frame lie on the fine grid,
    (rows, columns, 2) in its pixels, whose first spans 0 … 1; around `shape` (ny, nx) pixels.
    """
    ny, nx = shape
    x = CELL * (np.arange(nx // CELL + 4) - 1.0)
    y = CELL * (np.arange(ny // CELL + 4) - 1.0) + first_row
    points = np.stack(np.meshgrid(x, y), axis=-1)
    there = distortions.to_reference(matrix, distortion, points.reshape(-1, 2))
    return np.ascontiguousarray(SCALE * (there.reshape(points.shape) + 0.5))


def _slack(points: Matrix) -> float:
    """Rows of the fine grid that no drop reaches beyond its centre, and as many again."""
    steps = [np.abs(np.diff(points[..., 1], axis=axis)) for axis in (0, 1)]
    return 1.0 + sum(float(np.nanmax(step, initial=0.0)) for step in steps) / CELL


@kernel()
def _place(points: Matrix, x: float, y: float) -> tuple[float, float]:
    """A position of the frame (x, y from the first row) on the fine grid, from its lattice."""
    along, down = x / CELL + 1.0, y / CELL + 1.0
    k, j = int(along), int(down)
    s, t = along - k, down - j
    a, b, c, d = (1.0 - s) * (1.0 - t), s * (1.0 - t), (1.0 - s) * t, s * t
    u = a * points[j, k, 0] + b * points[j, k + 1, 0]
    u += c * points[j + 1, k, 0] + d * points[j + 1, k + 1, 0]
    v = a * points[j, k, 1] + b * points[j, k + 1, 1]
    v += c * points[j + 1, k, 1] + d * points[j + 1, k + 1, 1]
    return u, v


@kernel()
def _reach(points: Matrix, y: int, width: int, out: Matrix) -> None:
    """`out`: the lowest and the highest v of the pixels of row y."""
    out[0], out[1] = np.inf, -np.inf
    for edge in (-0.5, 0.5):
        for k in range(points.shape[1] - 2):
            x = min(float(CELL * k), width - 0.5) if k > 0 else -0.5
            _, v = _place(points, x, y + edge)
            # NaN, a place that cannot be told, compares false: nothing is dropped there.
            out[0] = v if v < out[0] else out[0]  # noqa: FURB136
            out[1] = v if v > out[1] else out[1]  # noqa: FURB136


@kernel(parallel=True, allocates=True)
def _drop_rows(
    samples: Image, points: Matrix, mask: Mask, rejected: Bool, rejected_from: int,
    colours: Colours, planes: Matrix, variances: Matrix, per_adu: float, scale: float,
    share: float, pixfrac: float, slack: float, first: int, total: Matrix, weight: Matrix,
    noise: Matrix, photons: Matrix,
) -> None:  # fmt: skip
    """Every thread takes rows of the grid and all drops that reach them, in the frame's order, so
    that each sum is built in the same order whoever builds it.
    """
    height, width = samples.shape
    rows = total.shape[1]
    reach = np.empty((height, 2))
    for y in prange(height):
        _reach(points, y, width, reach[y])
    for group in prange((rows + GROUP - 1) // GROUP):
        top = group * GROUP
        bottom = min(top + GROUP, rows)
        low, high = first + top - slack, first + bottom + slack
        corners = np.empty((4, 2))
        near = True
        for y in range(height):
            if reach[y, 1] < low or reach[y, 0] > high:
                continue
            for x in range(width):
                if x % CELL == 0:
                    _, a = _place(points, x - 0.5, y)
                    _, b = _place(points, min(x + CELL, width) - 0.5, y)
                    near = max(a, b) > low and min(a, b) < high
                if not near or (mask.size > 0 and mask[y, x] & BAD):
                    continue
                u, v = _place(points, x, y)
                if not (low < v < high):
                    continue
                plane = colours[y % 2, x % 2]
                if rejected.size > 0:
                    column = int(np.floor(u / SCALE))
                    row = int(np.floor(v / SCALE)) - rejected_from
                    if (
                        0 <= row < rejected.shape[1]
                        and 0 <= column < rejected.shape[2]
                        and rejected[plane, row, column]
                    ):
                        continue
                area = _corners(points, x, y, 0.5 * pixfrac, corners)
                if not area > 0.0:
                    continue
                # The area of a pixel of the fine grid in those of the frame.
                pixel = pixfrac * pixfrac / area
                offset = (
                    planes[plane, 0]
                    + planes[plane, 1] * (u / SCALE - 0.5)
                    + planes[plane, 2] * (v / SCALE - 0.5)
                )
                value = scale * samples[y, x] * pixel + offset / (SCALE * SCALE)
                _drop(
                    corners, value, pixel * pixel * variances[plane], pixel * pixel * per_adu,
                    share, first, top, bottom, total[plane], weight[plane], noise[plane],
                    photons[plane],
                )  # fmt: skip


@kernel()
def _corners(points: Matrix, x: int, y: int, half: float, out: Matrix) -> float:
    """Corners (u, v) of a drop, `half` px to each side, anticlockwise on the grid's axes; returns
    its area.
    """
    out[0, 0], out[0, 1] = _place(points, x - half, y - half)
    out[1, 0], out[1, 1] = _place(points, x + half, y - half)
    out[2, 0], out[2, 1] = _place(points, x + half, y + half)
    out[3, 0], out[3, 1] = _place(points, x - half, y + half)
    twice = (out[2, 0] - out[0, 0]) * (out[3, 1] - out[1, 1])
    twice -= (out[3, 0] - out[1, 0]) * (out[2, 1] - out[0, 1])
    if twice < 0.0:  # a mirrored frame
        for k in range(2):
            out[1, k], out[3, k] = out[3, k], out[1, k]
    return float(0.5 * abs(twice))


@kernel()
def _drop(
    corners: Matrix, value: float, variance: float, per_adu: float, share: float, first: int,
    top: int, bottom: int, total: Matrix, weight: Matrix, noise: Matrix, photons: Matrix,
) -> None:  # fmt: skip
    """Add a drop to the pixels that it touches in rows top … bottom of the arrays."""
    left = min(corners[0, 0], corners[1, 0], corners[2, 0], corners[3, 0])
    right = max(corners[0, 0], corners[1, 0], corners[2, 0], corners[3, 0])
    lower = min(corners[0, 1], corners[1, 1], corners[2, 1], corners[3, 1]) - first
    upper = max(corners[0, 1], corners[1, 1], corners[2, 1], corners[3, 1]) - first
    x0, x1 = max(int(np.floor(left)), 0), min(int(np.ceil(right)), total.shape[1])
    for j in range(max(int(np.floor(lower)), top), min(int(np.ceil(upper)), bottom)):
        for i in range(x0, x1):
            area = 0.0
            for k in range(4):
                n = (k + 1) % 4
                area -= _beneath(
                    corners[k, 0] - i, corners[k, 1] - first - j,
                    corners[n, 0] - i, corners[n, 1] - first - j,
                )  # fmt: skip
            if area > 0.0:
                part = share * area
                total[j, i] += part * value
                weight[j, i] += part
                noise[j, i] += part * part * variance
                photons[j, i] += part * part * per_adu


@kernel()
def _beneath(x1: float, y1: float, x2: float, y2: float) -> float:
    """The area of the unit square beneath the line from (x1, y1) to (x2, y2), negative for a line
    to the left. Around a polygon, anticlockwise, they sum to minus the area that it shares with
    the square.
    """
    if x1 == x2:
        return 0.0
    if x1 > x2:
        return -_beneath_rightwards(x2, y2, x1, y1)
    return _beneath_rightwards(x1, y1, x2, y2)


@kernel()
def _beneath_rightwards(x1: float, y1: float, x2: float, y2: float) -> float:
    if x1 >= 1.0 or x2 <= 0.0 or (y1 <= 0.0 and y2 <= 0.0):
        return 0.0
    slope = (y2 - y1) / (x2 - x1)
    a, b = max(x1, 0.0), min(x2, 1.0)
    low, high = y1 + slope * (a - x1), y1 + slope * (b - x1)
    if low > high:
        low, high = high, low
    if high <= 0.0:
        return 0.0
    if low >= 1.0:
        return b - a
    if low >= 0.0 and high <= 1.0:
        return (b - a) * 0.5 * (low + high)
    # The line crosses the square's lower or upper side: the mean height between 0 and 1.
    rise = high - low
    inside = min(high, 1.0) - max(low, 0.0)
    mean = inside * 0.5 * (min(high, 1.0) + max(low, 0.0)) + max(high - 1.0, 0.0)
    return (b - a) * mean / rise
