"""The median of the 5×5 pixels of one colour round each pixel: hot and cold ones stand out of it.

Each column of five is sorted, then each row of what that gives. Of the 25 values six are then below
the median and six above it wherever they came from; the median of the other thirteen takes twenty
comparisons. No step branches on a value, so that the compiler makes vector instructions of it.
"""

import numpy as np
import numpy.typing as npt

from calib_library.kernels import kernel, side_by_side

Floats = npt.NDArray[np.float32]
Five = tuple[np.float32, np.float32, np.float32, np.float32, np.float32]

REACH = 2
"""Steps of one colour from the middle to the edge of the surroundings."""
_ROWS = 16


def local_median(image: Floats, *, bayer: bool = False) -> Floats:
    """Median of the 5×5 same-colour pixels around each pixel, (ny, nx) float32.

    Beyond the edge the nearest pixel of the same colour stands in. Values that are not finite count
    as the highest. `image` is not changed.
    """
    out = np.empty(image.shape, np.float32)
    pixels = np.ascontiguousarray(image, np.float32)
    side_by_side(_local_median, -(-len(out) // _ROWS), pixels, 2 if bayer else 1, out)
    return out


@kernel(allocates=True)
def _local_median(begin: int, end: int, image: Floats, step: int, out: Floats) -> None:
    for band in range(begin, end):
        _median_rows(image, step, band * _ROWS, out)


@kernel(allocates=True)
def _median_rows(image: Floats, step: int, first: int, out: Floats) -> None:
    """The medians of a few rows from `first` on."""
    ny, nx = image.shape
    last = min(first + _ROWS, ny)
    margin = REACH * step
    # The rows that are looked at, with what stands in beyond the edges.
    rows = np.empty((last - first + 2 * margin, nx + 2 * margin), np.float32)
    for k in range(len(rows)):
        row = rows[k]
        _copy_finite(image[_inside(first + k - margin, ny, step)], row[margin : margin + nx])
        for i in range(margin):
            row[i] = row[margin + _inside(i - margin, nx, step)]
            row[margin + nx + i] = row[margin + _inside(nx + i, nx, step)]
    for y in range(first, last):
        top = (y - first) * rows.shape[1]
        _median_row(
            rows.reshape(-1)[top:], np.uint64(step * rows.shape[1]), np.uint64(step), out[y]
        )


@kernel()
def _inside(i: int, length: int, step: int) -> int:
    """The nearest index of the same colour within 0 … length - 1."""
    while i < 0:
        i += step
    while i >= length:
        i -= step
    return max(i, 0)


@kernel()
def _copy_finite(row: Floats, out: Floats) -> None:
    """Copy a row; what is not finite becomes the highest of all."""
    highest = np.float32(np.inf)
    for x in range(out.size):
        out[x] = row[x] if abs(row[x]) < highest else highest


@kernel()
def _median_row(rows: Floats, down: np.uint64, right: np.uint64, out: Floats) -> None:
    """The medians of one row; the first of its surroundings is at 0, the next in a column `down`
    further, the next in a row `right` further.
    """
    # Unsigned, or a place could count from the end, and there would be a branch for each.
    for place in range(out.size):
        x = np.uint64(place)
        a0, a1, a2, a3, a4 = _column(rows, x, down)
        b0, b1, b2, b3, b4 = _column(rows, x + right, down)
        c0, c1, c2, c3, c4 = _column(rows, x + np.uint64(2) * right, down)
        d0, d1, d2, d3, d4 = _column(rows, x + np.uint64(3) * right, down)
        e0, e1, e2, e3, e4 = _column(rows, x + np.uint64(4) * right, down)
        _, _, _, d0, e0 = _sorted(a0, b0, c0, d0, e0)
        _, _, c1, d1, e1 = _sorted(a1, b1, c1, d1, e1)
        _, b2, c2, d2, _ = _sorted(a2, b2, c2, d2, e2)
        a3, b3, c3, _, _ = _sorted(a3, b3, c3, d3, e3)
        a4, b4, _, _, _ = _sorted(a4, b4, c4, d4, e4)
        out[place] = _middle(d0, e0, c1, d1, e1, b2, c2, d2, a3, b3, c3, a4, b4)


@kernel()
def _column(rows: Floats, at: np.uint64, down: np.uint64) -> Five:
    return _sorted(
        rows[at],
        rows[at + down],
        rows[at + np.uint64(2) * down],
        rows[at + np.uint64(3) * down],
        rows[at + np.uint64(4) * down],
    )


@kernel()
def _low(a: np.float32, b: np.float32) -> np.float32:
    return a if a < b else b  # noqa: FURB136 — so it is one instruction


@kernel()
def _high(a: np.float32, b: np.float32) -> np.float32:
    return b if a < b else a  # noqa: FURB136 — so it is one instruction


@kernel()
def _sorted(a: np.float32, b: np.float32, c: np.float32, d: np.float32, e: np.float32) -> Five:
    """Five values, ascending."""
    a, d = _low(a, d), _high(a, d)
    b, e = _low(b, e), _high(b, e)
    a, c = _low(a, c), _high(a, c)
    b, d = _low(b, d), _high(b, d)
    a, b = _low(a, b), _high(a, b)
    c, e = _low(c, e), _high(c, e)
    b, c = _low(b, c), _high(b, c)
    d, e = _low(d, e), _high(d, e)
    c, d = _low(c, d), _high(c, d)
    return a, b, c, d, e


@kernel()
def _middle(
    d0: np.float32, e0: np.float32, c1: np.float32, d1: np.float32, e1: np.float32,
    b2: np.float32, c2: np.float32, d2: np.float32, a3: np.float32, b3: np.float32,
    c3: np.float32, a4: np.float32, b4: np.float32,
) -> np.float32:  # fmt: skip
    """The seventh of thirteen values, of which rows (a to e) and columns (0 to 4) ascend."""
    b4, e0 = _low(b4, e0), _high(b4, e0)
    c2, d1 = _low(c2, d1), _high(c2, d1)
    a3, c1 = _low(a3, c1), _high(a3, c1)
    b4, a4 = _low(b4, a4), _high(b4, a4)
    d0, b2 = _low(d0, b2), _high(d0, b2)
    b3, e1 = _low(b3, e1), _high(b3, e1)
    c1, b3 = _low(c1, b3), _high(c1, b3)
    c3, d1 = _low(c3, d1), _high(c3, d1)
    b4, c2 = _low(b4, c2), _high(b4, c2)
    c1, b2 = _low(c1, b2), _high(c1, b2)
    a4, c3 = _low(a4, c3), _high(a4, c3)
    b3, d2 = _low(b3, d2), _high(b3, d2)
    e0, d1 = _low(e0, d1), _high(e0, d1)
    c2, e0 = _low(c2, e0), _high(c2, e0)
    c2, a4 = _low(c2, a4), _high(c2, a4)
    b2, b3 = _low(b2, b3), _high(b2, b3)
    b4, b3 = _low(b4, b3), _high(b4, b3)
    c2, b2 = _low(c2, b2), _high(c2, b2)
    a4, b3 = _low(a4, b3), _high(a4, b3)
    return _high(a4, b2)
