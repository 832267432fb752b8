"""Noise of one pixel from the differences of neighbours, of a few rows of a frame."""

from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library.kernels import kernel

Floats = npt.NDArray[np.float32]


def neighbour_noise(sample: npt.NDArray[Any], *, bayer: bool) -> float:
    """Noise of one pixel in the units of `sample` (n, nx), whole rows of a frame: 1.4826 MAD of the
    differences of neighbours of one colour, over √2. NaN where there is none, or where one of them
    is not a number.
    """
    rows = np.ascontiguousarray(sample, np.float32)
    return float(1.4826 * np.float32(_median_step(rows, 2 if bayer else 1)) / np.sqrt(2.0))


@kernel(allocates=True)
def _median_step(rows: Floats, step: int) -> np.float32:
    """Median size of the differences of pixels `step` apart in a row.

    The value of a rank is found by halving the floats that it may be, and counting the values below
    the middle one: some twenty passes without a branch, a fraction of what a partition takes.
    """
    height, width = rows.shape
    number = height * max(width - step, 0)
    if number == 0:
        return np.float32(np.nan)
    steps = np.empty((height, width - step), np.float32)
    unknown = 0
    for y in range(height):
        row, sizes = rows[y], steps[y]
        for x in range(width - step):
            sizes[x] = abs(row[x + step] - row[x])
        for x in range(width - step):
            unknown += sizes[x] != sizes[x]  # NaN is not itself
    if unknown:
        return np.float32(np.nan)
    values = steps.reshape(-1)
    rank = number // 2
    # Floats from 0 up are in the order of their bits.
    low, high = 0, 0x7F800001
    while high - low > 1:
        middle = (low + high) // 2
        if _below(values, np.int32(middle).view(np.float32)) <= rank:
            low = middle
        else:
            high = middle
    upper = np.int32(low).view(np.float32)
    if number % 2 == 1 or _below(values, upper) < rank:
        return upper
    lower = np.float32(0.0)
    for value in values:
        if value < upper:
            lower = max(lower, value)
    return (lower + upper) / np.float32(2.0)


@kernel()
def _below(values: Floats, limit: np.float32) -> int:
    number = 0
    for k in range(len(values)):
        number += values[k] < limit
    return number
