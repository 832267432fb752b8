"""The sky of one image plane: its level and its noise, in cells.

`measure_background` looks at a sparse grid of pixels and clips stars away; `cell_means` takes every
pixel, to compare the sky of two frames. Cells divide the image evenly.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library.kernels import kernel, side_by_side
from daemon.light import clipped
from daemon.light.clipped import SETS, Network

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_SPARSE_FROM_PX = 6_000_000  # from here on the background looks at some of the rows and columns


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Background:
    """The sky of one plane, in cells that divide the image evenly."""

    level_adu: float
    """Median of the cells, ADU."""
    sigma_adu: float
    """Noise of one pixel: median over the cells, ADU."""
    cells: F32
    """(cy, cx) clipped median of each cell, ADU."""
    noise: F32
    """(cy, cx) noise of one pixel in each cell, gradients taken off, ADU."""
    cell_px: int
    """Nominal edge of a cell; the true pitch is shape / cells.shape."""
    shape: tuple[int, int]
    """(ny, nx) of the image."""

    def at(self, x: F64, y: F64) -> F64:
        """Level (ADU) at px positions (n,), bilinear between the centres of the cells."""
        return bilinear_cells(self.cells, self.shape, x, y)


def measure_background(image: npt.NDArray[Any], *, cell_px: int = 64) -> Background:
    """Measure level and noise of `image` (ny, nx), ADU, in cells of about `cell_px` px.

    Samples are clipped at 3σ about their median until they settle; the noise is that of second
    differences of pixels where there is no star, to which a gradient or a nebula adds next to
    nothing. Large frames are sampled at every fifth row and column (an odd step, so that a mosaic's
    planes count equally). NaN is left out; a cell without samples takes the frame's
    median. `image` is not changed.
    """
    pixels = np.ascontiguousarray(image, dtype=np.float32)
    ny, nx = pixels.shape
    grid = (max(1, round(ny / cell_px)), max(1, round(nx / cell_px)))
    cells = np.empty(grid, dtype=np.float32)
    noise = np.empty(grid, dtype=np.float32)
    step = 5 if pixels.size >= _SPARSE_FROM_PX else 1
    rows, columns = (
        math.ceil(math.ceil(side / parts) / step)
        for side, parts in zip(pixels.shape, grid, strict=True)
    )
    network = clipped.network(rows * columns)
    groups = -(-cells.size // SETS)
    side_by_side(_measure_levels, groups, pixels, step, network, cells)
    level = _fill_unseen(cells)
    side_by_side(_measure_noise, groups, pixels, step, network, cells, noise)
    sigma = _fill_unseen(noise)
    return Background(level, sigma, cells, noise, cell_px, (ny, nx))


def _fill_unseen(cells: F32) -> float:
    """Return the median of the cells that are not NaN (0 without any), and fill the others with it,
    in place.
    """
    seen = np.isfinite(cells)
    middle = float(np.median(cells[seen])) if seen.any() else 0.0
    cells[~seen] = middle
    return middle


def cell_means(image: F32) -> F32:
    """Mean of each cell of `image` (ny, nx), ADU: (cy, cx), cells of 8 px (16 in a large frame).

    A mean holds all light of what it covers, whatever the seeing, so that two frames' cells differ
    by nothing but the sky; a median leaves out more of a star the sharper it is. NaN is left out;
    a cell without pixels is NaN. `image` is not changed.
    """
    pixels = np.ascontiguousarray(image, dtype=np.float32)
    cells = np.empty(cell_grid(pixels.shape), dtype=np.float32)
    side_by_side(_mean_cells, len(cells), pixels, cells)
    return cells


def cell_grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many cells (cy, cx) `cell_means` divides a frame of `shape` (ny, nx) into."""
    ny, nx = shape
    cell_px = 16 if ny * nx >= _SPARSE_FROM_PX else 8
    return max(1, round(ny / cell_px)), max(1, round(nx / cell_px))


def bilinear_cells(cells: F32, shape: tuple[int, int], x: F64, y: F64) -> F64:
    """Interpolate `cells` (cy, cx) of an image of `shape` at px positions; flat beyond its rim."""
    cy, cx = cells.shape
    u = np.clip((x + 0.5) * cx / shape[1] - 0.5, 0, cx - 1)
    v = np.clip((y + 0.5) * cy / shape[0] - 0.5, 0, cy - 1)
    i = np.minimum(u.astype(np.intp), max(cx - 2, 0))
    j = np.minimum(v.astype(np.intp), max(cy - 2, 0))
    i1, j1 = np.minimum(i + 1, cx - 1), np.minimum(j + 1, cy - 1)
    p, q = u - i, v - j
    upper = cells[j, i] * (1 - p) + cells[j, i1] * p
    lower = cells[j1, i] * (1 - p) + cells[j1, i1] * p
    return np.asarray(upper * (1 - q) + lower * q, dtype=np.float64)


# Kernels. Each cell or row is worked out by itself, so the number of threads changes nothing.


@kernel(allocates=True)
def _measure_levels(
    begin: int, end: int, image: F32, step: int, network: Network, cells: F32
) -> None:
    """Clipped median of each cell, from every `step`-th row and column; `network` sorts as many."""
    for group in range(begin, end):
        _levels_of_some(image, step, network, group * SETS, cells)


@kernel(allocates=True)
def _levels_of_some(image: F32, step: int, network: Network, first: int, cells: F32) -> None:
    """The levels of cells first …, so many as are sorted at once."""
    ny, nx = image.shape
    cy, cx = cells.shape
    room = network.room
    values = np.empty((room, SETS), np.float32)
    counts = np.zeros(SETS, np.int64)
    samples = np.empty(room, np.float32)
    last = min(first + SETS, cells.size)
    for cell in range(first, last):
        j, i = cell // cx, cell % cx
        count = 0
        for y in range(j * ny // cy, (j + 1) * ny // cy, step):
            for x in range(i * nx // cx, (i + 1) * nx // cx, step):
                value = image[y, x]
                if np.isfinite(value):
                    values[count, cell - first] = value
                    count += 1
        counts[cell - first] = count
    clipped.sort(values, counts, network)
    for cell in range(first, last):
        place = cell - first
        level = np.nan
        if counts[place] >= 4:
            level, _ = clipped.median(values, place, counts[place], samples)
        cells[cell // cx, cell % cx] = level


@kernel(allocates=True)
def _measure_noise(
    begin: int, end: int, image: F32, step: int, network: Network, cells: F32, noise: F32
) -> None:
    """Noise of each cell, from second differences of pixels three columns apart.

    To those a slope adds nothing, even one that changes across the cell, as a nebula's; and over
    three pixels the correlation that an interpolated mosaic has is gone. Stars' wings are kept out
    by their light: a difference counts only where the eight pixels between and beside its three are
    not above the level (bilinear from `cells`). Those have noise of their own, so that the choice
    does not depend on the difference.
    """
    for group in range(begin, end):
        _noise_of_some(image, step, network, group * SETS, cells, noise)


@kernel(allocates=True)
def _noise_of_some(
    image: F32, step: int, network: Network, first: int, cells: F32, noise: F32
) -> None:
    """The noise of cells first …, so many as are sorted at once."""
    cx = cells.shape[1]
    room = network.room
    values = np.empty((room, SETS), np.float32)
    counts = np.zeros(SETS, np.int64)
    samples = np.empty(room, np.float32)
    levels = np.empty((2, image.shape[1] // cx + 1))
    last = min(first + SETS, cells.size)
    for cell in range(first, last):
        j, i = cell // cx, cell % cx
        count = _differences(image, step, cells, j, i, levels, values[:, cell - first])
        counts[cell - first] = count
    clipped.sort(values, counts, network)
    for cell in range(first, last):
        place = cell - first
        sigma = np.nan
        if counts[place] >= 4:
            _, sigma = clipped.median(values, place, counts[place], samples)
        noise[cell // cx, cell % cx] = sigma / np.sqrt(1.5)


@kernel()
def _differences(image: F32, step: int, cells: F32, j: int, i: int, levels: F64, out: F32) -> int:
    """The second differences of cell (j, i) that count, and their number; `levels` (2, width of a
    cell) is overwritten with the level between the cells of two rows, all along the cell.
    """
    ny, nx = image.shape
    cy, cx = cells.shape
    left, right = i * nx // cx + 5, (i + 1) * nx // cx - 5
    upper, lower = levels
    count = 0
    above = -1
    for y in range(j * ny // cy, (j + 1) * ny // cy, step):
        v = min(max((y + 0.5) * cy / ny - 0.5, 0.0), cy - 1.0)
        j0 = min(int(v), max(cy - 2, 0))
        if j0 != above:
            above = j0
            _between(cells[j0], nx, left, right, step, upper)
            _between(cells[min(j0 + 1, cy - 1)], nx, left, right, step, lower)
        row = image[y, left - 5 : right + 5]
        for k in range(0, right - left, step):
            beside = (
                (row[k] + row[k + 1])
                + (row[k + 3] + row[k + 4])
                + (row[k + 6] + row[k + 7])
                + (row[k + 9] + row[k + 10])
            )
            bent = row[k + 5] - np.float32(0.5) * (row[k + 2] + row[k + 8])
            # Written in any case, for a branch would be taken at random. A comparison with NaN is
            # false.
            out[count] = bent
            level = upper[k] + (v - j0) * (lower[k] - upper[k])
            count += (beside <= 8.0 * level) & (abs(bent) < np.inf)
    return count


@kernel()
def _between(cells: F32, nx: int, left: int, right: int, step: int, out: F64) -> None:
    """A row of cells of an image `nx` px wide, interpolated at every `step`-th column."""
    cx = len(cells)
    for k in range(0, right - left, step):
        u = min(max((left + k + 0.5) * cx / nx - 0.5, 0.0), cx - 1.0)
        i = min(int(u), max(cx - 2, 0))
        out[k] = cells[i] + (u - i) * (cells[min(i + 1, cx - 1)] - cells[i])


@kernel(allocates=True)
def _mean_cells(begin: int, end: int, image: F32, cells: F32) -> None:
    """Mean of each cell, which divide the image evenly."""
    for j in range(begin, end):
        _mean_row(image, j, cells)


@kernel(allocates=True)
def _mean_row(image: F32, j: int, cells: F32) -> None:
    """The means of row `j` of the cells: first of each column of pixels, which is fast."""
    ny, nx = image.shape
    cy, cx = cells.shape
    totals = np.zeros(nx)
    counts = np.zeros(nx, np.int32)
    for y in range(j * ny // cy, (j + 1) * ny // cy):
        row = image[y]
        for x in range(nx):
            good = abs(row[x]) < np.inf  # false for NaN
            totals[x] += row[x] if good else np.float32(0.0)
            counts[x] += good
    for i in range(cx):
        total, count = 0.0, 0
        for x in range(i * nx // cx, (i + 1) * nx // cx):
            total += totals[x]
            count += counts[x]
        cells[j, i] = total / count if count > 0 else np.nan
