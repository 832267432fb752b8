"""Colours from a Bayer mosaic: bilinear, or one pixel of each colour from each 2×2 cell.

Bilinear is what a stack wants: linear in the pixels, so that noise stays what theory says and no
edge-directed guess differs from frame to frame. The dithers fill in the colours that each frame
lacks. A stack of half the size takes each cell's own pixels (`superpixels`): nothing is
interpolated, and each colour lies where its pixels are (`offset`).

What is measured on a frame needs no planes of full size: `luminance` makes grey and the means of
cells row by row.
"""

import numpy as np
import numpy.typing as npt

from calib_library.defects import BAD
from calib_library.kernels import kernel, side_by_side

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Colours = npt.NDArray[np.int64]

_COLOURS = {"R": 0, "G": 1, "B": 2}
_PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")


def debayer(mosaic: Image, pattern: str, *, out: Image | None = None) -> Image:
    """Red, green and blue planes of a mosaic.

    mosaic: (ny, nx) f32, ADU. pattern: the colours of the first two rows' first two pixels,
    `RGGB`, `BGGR`, `GRBG` or `GBRG`, row 0 being the first in the file. Returns (3, ny, nx) f32,
    into `out` if given: at a colour's own pixels the value itself, elsewhere the mean of the 2 or
    4 nearest of that colour; beyond the border the mosaic is continued on a straight line, so
    that a sloped background is exact up to the border.

    Raises ValueError for another pattern, a wrong `out`, and a mosaic smaller than 4×4.
    """
    colours = _checked(mosaic, pattern)
    shape = (3, *mosaic.shape)
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    if out.shape != shape or out.dtype != np.float32:
        raise ValueError(f"out is {out.shape} {out.dtype}, {shape} float32 is needed")
    side_by_side(_bilinear, len(mosaic), mosaic, colours, out)
    return out


def variance(mosaic: Image, pattern: str) -> Image:
    """The variances of `debayer`'s planes, (3, ny, nx) f32, from those of the mosaic's pixels, (ny,
    nx) f32 in the square of their units: the mean of n pixels has 1/n of their mean variance.

    Infinite where one of them is, and in the outermost rows and columns, which need values beyond
    the border. Raises as `debayer`.
    """
    planes = debayer(mosaic, pattern)
    for k, letter in enumerate(pattern):
        y, x = divmod(k, 2)
        own = _COLOURS[letter]
        for plane in range(3):
            if plane == own:
                continue
            # Green: four beside any red or blue. Of red and blue: four across, else two beside.
            beside = own == _COLOURS["G"]
            planes[plane, y::2, x::2] /= np.float32(2.0 if beside else 4.0)
    planes[:, (0, -1)] = np.inf
    planes[:, :, (0, -1)] = np.inf
    return planes


def luminance(mosaic: Image, pattern: str, *, grid: tuple[int, int]) -> tuple[Image, Image]:
    """What `debayer` would give, without keeping it: (R + 2 G + B)/4, in which every pixel of a
    mosaic weighs the same, (ny, nx) f32 ADU; and the mean of each colour in each cell of a `grid`
    (cy, cx) that divides the frame evenly, (3, cy, cx) f32 ADU. Raises as `debayer`.
    """
    colours = _checked(mosaic, pattern)
    grey = np.empty(mosaic.shape, dtype=np.float32)
    cells = np.empty((3, *grid), dtype=np.float32)
    side_by_side(_measure, cells.shape[1], mosaic, colours, grey, cells)
    return grey, cells


def superpixels(mosaic: Image, mask: Mask, pattern: str, *, edge: int = 2) -> tuple[Image, Mask]:
    """One pixel of each colour from each `edge`×`edge` pixels, an even number: (3, ny//edge,
    nx//edge) f32 ADU, and the mask of each plane, of the same shape, uint8.

    It is the mean of the block's good pixels of that colour (bit 1 of `mask` (ny, nx) not set); bad
    where fewer than three quarters of them are good, of two where none is, and has the other bits
    of all of them. What is left over of rows and columns is left out. Raises as `debayer`.
    """
    colours = _checked(mosaic, pattern)
    if mask.shape != mosaic.shape or edge % 2:
        raise ValueError(f"a mask of {mask.shape} for {mosaic.shape}, blocks of {edge}")
    planes = np.empty((3, mosaic.shape[0] // edge, mosaic.shape[1] // edge), dtype=np.float32)
    bits = np.empty(planes.shape, dtype=np.uint8)
    side_by_side(_superpixels, planes.shape[1], mosaic, mask, colours, edge, planes, bits)
    return planes, bits


def offset(pattern: str, plane: int) -> tuple[float, float]:
    """Where the pixels of a colour lie from the centre of a block of cells, the mean of them, (x,
    y) in px of the mosaic: (−½, −½) for the red of RGGB, (0, 0) for any green.
    """
    sites = [divmod(k, 2) for k, letter in enumerate(pattern) if _COLOURS[letter] == plane]
    y, x = np.mean(sites, axis=0) - 0.5
    return float(x), float(y)


def pixels_of(pattern: str, plane: int, *, edge: int = 2) -> int:
    """How many of `edge`×`edge` pixels are of that colour."""
    return edge * edge // 4 * sum(_COLOURS[letter] == plane for letter in pattern)


def _checked(mosaic: Image, pattern: str) -> Colours:
    """The colours of a cell, (2, 2), 0 … 2; ValueError for what is no mosaic."""
    if pattern not in _PATTERNS:
        raise ValueError(f"Bayer pattern {pattern!r}: one of {', '.join(_PATTERNS)} is needed")
    if mosaic.ndim != 2 or mosaic.dtype != np.float32 or min(mosaic.shape) < 4:
        raise ValueError(f"a mosaic is (ny, nx) ≥ 4×4 float32, not {mosaic.shape} {mosaic.dtype}")
    return np.array([_COLOURS[letter] for letter in pattern], dtype=np.int64).reshape(2, 2)


@kernel(allocates=True)
def _superpixels(
    first: int, last: int, mosaic: Image, mask: Mask, colours: Colours, edge: int, planes: Image,
    bits: Mask,
) -> None:  # fmt: skip
    width = planes.shape[2]
    for y in range(first, last):
        # Of the good pixels and of all, which stand in where too few are good.
        sums = np.zeros((3, width), np.float32)
        everything = np.zeros((3, width), np.float32)
        good = np.zeros((3, width), np.uint8)
        bits[:, y] = 0
        for dy in range(edge):
            row, flags = mosaic[y * edge + dy], mask[y * edge + dy]
            for dx in range(edge):
                plane = colours[dy % 2, dx % 2]
                _add_sites(
                    row, flags, edge, dx, sums[plane], everything[plane], good[plane],
                    bits[plane, y],
                )  # fmt: skip
        for plane in range(3):
            number = edge * edge // 4 * (2 if plane == 1 else 1)
            least = 1 if number == 2 else (3 * number + 3) // 4
            _take_means(
                sums[plane], everything[plane], good[plane], number, least, planes[plane, y],
                bits[plane, y],
            )  # fmt: skip


@kernel()
def _add_sites(
    row: Image, flags: Mask, edge: int, dx: int, sums: Image, everything: Image, good: Mask,
    bits: Mask,
) -> None:  # fmt: skip
    """Add every `edge`-th pixel of a row, from `dx` on."""
    for x in range(sums.size):
        value, flag = row[x * edge + dx], flags[x * edge + dx]
        fine = 1 - (flag & BAD)
        sums[x] += value if fine else np.float32(0)
        everything[x] += value
        good[x] += fine
        bits[x] |= flag


@kernel()
def _take_means(
    sums: Image, everything: Image, good: Mask, number: int, least: int, out: Image, bits: Mask
) -> None:
    for x in range(out.size):
        enough = good[x] >= least
        mean, count = (sums[x], good[x]) if enough else (everything[x], number)
        out[x] = mean / np.float32(count)
        bits[x] = (bits[x] & ~np.uint8(BAD)) | np.uint8(0 if enough else BAD)


@kernel()
def _continue_row(source: Image, row: Image) -> None:
    """`row` is `source` with one pixel more at each end, on a line through the nearest two of its
    colour.
    """
    width = source.size
    for x in range(width):
        row[x + 1] = source[x]
    row[0] = 2 * source[1] - source[3]
    row[width + 1] = 2 * source[width - 2] - source[width - 4]


@kernel(allocates=True)
def _padded_row(mosaic: Image, y: int, row: Image) -> None:
    """Row −1 … ny of a mosaic, one pixel wider at each end."""
    height, width = mosaic.shape
    if 0 <= y < height:
        _continue_row(mosaic[y], row)
        return
    near, far = (1, 3) if y < 0 else (height - 2, height - 4)
    line = np.empty(width, np.float32)
    for x in range(width):
        line[x] = 2 * mosaic[near, x] - mosaic[far, x]
    _continue_row(line, row)


@kernel(allocates=True)
def _bilinear_row(
    mosaic: Image, colours: Colours, y: int, rows: Image, held: int,
    red: Image, green: Image, blue: Image,
) -> None:  # fmt: skip
    """Row y of all three planes; `rows` (3, nx + 2) is scratch. It holds the first `held` of the
    three rows that are needed: 2 where row y − 1 was made before, else 0.
    """
    half, quarter = np.float32(0.5), np.float32(0.25)
    for near in range(y - 1 + held, y + 2):
        _padded_row(mosaic, near, rows[near % 3])
    above, here, below = rows[(y - 1) % 3], rows[y % 3], rows[(y + 1) % 3]
    # A row holds green and one other colour; `own` is that colour, the rows around hold `other`.
    red_row = colours[y % 2, 0] == 0 or colours[y % 2, 1] == 0
    own, other = (red, blue) if red_row else (blue, red)
    first = 0 if colours[y % 2, 0] == 1 else 1
    for x in range(green.size):
        k = x + 1
        beside = half * (here[k - 1] + here[k + 1])
        upright = half * (above[k] + below[k])
        diagonal = (above[k - 1] + above[k + 1]) + (below[k - 1] + below[k + 1])
        is_green = (x & 1) == first
        green[x] = here[k] if is_green else half * (beside + upright)
        own[x] = beside if is_green else here[k]
        other[x] = upright if is_green else quarter * diagonal


@kernel(allocates=True)
def _bilinear(begin: int, end: int, mosaic: Image, colours: Colours, out: Image) -> None:
    rows = np.empty((3, mosaic.shape[1] + 2), np.float32)
    for y in range(begin, end):
        held = 2 if y > begin else 0
        _bilinear_row(mosaic, colours, y, rows, held, out[0, y], out[1, y], out[2, y])


@kernel(allocates=True)
def _measure(
    begin: int, end: int, mosaic: Image, colours: Colours, grey: Image, cells: Image
) -> None:
    height, width = mosaic.shape
    _, cy, cx = cells.shape
    for j in range(begin, end):
        rows = np.empty((3, width + 2), np.float32)
        made = np.empty((3, width), np.float32)
        totals = np.zeros((3, width))
        first, last = j * height // cy, (j + 1) * height // cy
        for y in range(first, last):
            red, green, blue = made[0], made[1], made[2]
            _bilinear_row(mosaic, colours, y, rows, 2 if y > first else 0, red, green, blue)
            _mix(red, green, blue, grey[y])
            for plane in range(3):
                _add(made[plane], totals[plane])
        for i in range(cx):
            left, right = i * width // cx, (i + 1) * width // cx
            for plane in range(3):
                mean = totals[plane, left:right].sum() / ((last - first) * (right - left))
                cells[plane, j, i] = mean


@kernel()
def _mix(red: Image, green: Image, blue: Image, grey: Image) -> None:
    for x in range(grey.size):
        grey[x] = np.float32(0.25) * (red[x] + blue[x]) + np.float32(0.5) * green[x]


@kernel()
def _add(row: Image, totals: npt.NDArray[np.float64]) -> None:
    for x in range(row.size):
        totals[x] += row[x]
