"""A colour image from a Bayer mosaic: bilinear, or one pixel from each 2×2 cell.

Bilinear is what a stack wants: linear in the pixels, so that noise stays what theory says and no
edge-directed guess differs from frame to frame. The dithers fill in the colours that each frame
lacks.
"""

import numpy as np
import numpy.typing as npt
from numba import prange

from calib_library.kernels import kernel

Image = npt.NDArray[np.float32]

_COLOURS = {"R": 0, "G": 1, "B": 2}
_PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")


def debayer(
    mosaic: Image, pattern: str, *, superpixel: bool = False, out: Image | None = None
) -> Image:
    """Red, green and blue planes of a mosaic.

    mosaic: (ny, nx) f32, ADU. pattern: the colours of the first two rows' first two pixels,
    `RGGB`, `BGGR`, `GRBG` or `GBRG`, row 0 being the first in the file. Returns (3, ny, nx) f32,
    into `out` if given: at a colour's own pixels the value itself, elsewhere the mean of the 2 or
    4 nearest of that colour; beyond the border the mosaic is continued on a straight line, so
    that a sloped background is exact up to the border.

    With `superpixel`, (3, ny//2, nx//2): each 2×2 cell is one pixel, green the mean of two; the
    colours are then sampled up to half a cell apart. An odd last row or column is left out.

    Raises ValueError for another pattern, a wrong `out`, and a mosaic smaller than 4×4.
    """
    if pattern not in _PATTERNS:
        raise ValueError(f"Bayer pattern {pattern!r}: one of {', '.join(_PATTERNS)} is needed")
    if mosaic.ndim != 2 or mosaic.dtype != np.float32 or min(mosaic.shape) < 4:
        raise ValueError(f"a mosaic is (ny, nx) ≥ 4×4 float32, not {mosaic.shape} {mosaic.dtype}")
    height, width = mosaic.shape
    shape = (3, height // 2, width // 2) if superpixel else (3, height, width)
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    if out.shape != shape or out.dtype != np.float32:
        raise ValueError(f"out is {out.shape} {out.dtype}, {shape} float32 is needed")
    colours = np.array([_COLOURS[letter] for letter in pattern], dtype=np.int64).reshape(2, 2)
    if superpixel:
        _superpixels(mosaic, colours, out)
    else:
        _bilinear(mosaic, colours, out)
    return out


def luminance(rgb: Image) -> Image:
    """(R + 2 G + B)/4 of (3, ny, nx) ADU, as (ny, nx) f32: every pixel of a mosaic weighs the
    same.
    """
    if rgb.ndim != 3 or rgb.shape[0] != 3:
        raise ValueError(f"a colour image is (3, ny, nx), not {rgb.shape}")
    grey = np.empty(rgb.shape[1:], dtype=np.float32)
    _mix(rgb, grey)
    return grey


@kernel(parallel=True)
def _mix(rgb: Image, grey: Image) -> None:
    for y in prange(grey.shape[0]):
        for x in range(grey.shape[1]):
            red, green, blue = rgb[0, y, x], rgb[1, y, x], rgb[2, y, x]
            grey[y, x] = np.float32(0.25) * (red + blue) + np.float32(0.5) * green


@kernel(parallel=True)
def _superpixels(mosaic: Image, colours: npt.NDArray[np.int64], out: Image) -> None:
    _, height, width = out.shape
    for y in prange(height):
        for plane in range(3):
            for x in range(width):
                value = np.float32(0)
                number = np.float32(0)
                for dy in range(2):
                    for dx in range(2):
                        if colours[dy, dx] == plane:
                            value += mosaic[2 * y + dy, 2 * x + dx]
                            number += np.float32(1)
                out[plane, y, x] = value / number


@kernel()
def _continue_row(source: Image, row: Image) -> None:
    """`row` is `source` with one pixel more at each end, on a line through the nearest two of its
    colour.
    """
    width = source.size
    row[1 : width + 1] = source
    row[0] = 2 * source[1] - source[3]
    row[width + 1] = 2 * source[width - 2] - source[width - 4]


@kernel()
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


@kernel(parallel=True)
def _bilinear(mosaic: Image, colours: npt.NDArray[np.int64], out: Image) -> None:
    height, width = mosaic.shape
    half = np.float32(0.5)
    quarter = np.float32(0.25)
    for y in prange(height):
        rows = np.empty((3, width + 2), np.float32)
        for k in range(3):
            _padded_row(mosaic, y + k - 1, rows[k])
        above, here, below = rows[0], rows[1], rows[2]
        # A row holds green and one other colour; `own` is that colour, the rows around hold
        # `other`.
        own = colours[y % 2, 0] + colours[y % 2, 1] - 1
        other = 2 - own
        green_first = colours[y % 2, 0] == 1
        for x in range(width):
            k = x + 1
            beside = half * (here[k - 1] + here[k + 1])
            upright = half * (above[k] + below[k])
            if (x % 2 == 0) == green_first:
                out[1, y, x] = here[k]
                out[own, y, x] = beside
                out[other, y, x] = upright
            else:
                diagonal = (above[k - 1] + above[k + 1]) + (below[k - 1] + below[k + 1])
                out[1, y, x] = half * (beside + upright)
                out[own, y, x] = here[k]
                out[other, y, x] = quarter * diagonal
