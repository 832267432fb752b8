"""Pixels that no frame has, in the midst of pixels that frames have.

Bad pixels have no weight in a stack: dithering fills their places from other frames. In the first
frames of a stack, or without dithering, a hole is left. In what people look at and other programs
open it is filled from its neighbours; the weight plane stays 0 there and tells.
"""

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]

LARGEST_PX = 3
"""Holes up to twice this across are filled; larger ones, and the outside, stay empty."""

_AROUND = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
_MOST_SIDES = 5
"""A pixel with this many covered neighbours lies in a hole and not at the edge of the field."""


def fill(mean: Image, coverage: npt.NDArray[np.uint16]) -> Image:
    """Fill small holes of `mean` (planes, ny, nx) ADU, where `coverage` (ny, nx) is 0, with the
    mean of their covered neighbours, from the rim inwards: in place. Returns `mean`.
    """
    empty = coverage == 0
    if not empty.any():
        return mean
    known = np.pad(~empty, 1)
    for _ in range(LARGEST_PX):
        y, x = np.nonzero(~known[1:-1, 1:-1])
        sides = np.stack([known[1 + y + dy, 1 + x + dx] for dy, dx in _AROUND])
        ready = sides.sum(axis=0) >= _MOST_SIDES
        if not ready.any():
            break
        y, x, sides = y[ready], x[ready], sides[:, ready]
        ny, nx = coverage.shape
        rows = np.stack([np.clip(y + dy, 0, ny - 1) for dy, _ in _AROUND])
        columns = np.stack([np.clip(x + dx, 0, nx - 1) for _, dx in _AROUND])
        for plane in mean:
            plane[y, x] = (plane[rows, columns] * sides).sum(axis=0) / sides.sum(axis=0)
        known[1 + y, 1 + x] = True
    return mean
