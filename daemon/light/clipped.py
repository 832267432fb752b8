"""Clipped medians of many small sets of samples: the cells of a background, rings round stars.

The sets lie side by side and are sorted together by one network of comparisons
(`clip.sort_lanes`), which branches on no value: a tenth of the time that it takes to sort one
after the other.
"""

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calib_library.clip import LANES, sort_lanes, sorting_network
from calib_library.kernels import kernel

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

SETS = LANES
"""Sets that are sorted together."""
_ROUNDED = 32
_KEPT = 8  # of a few hundred kB each
_SUMS = 16  # partial sums, side by side


class Network(NamedTuple):
    """How sets are sorted."""

    steps: I32
    """(k, 2), the comparisons."""
    room: int
    """Values that they sort."""


@functools.lru_cache(_KEPT)
def network(most: int) -> Network:
    """The network for sets of at most `most` values."""
    room = -(-max(most, 1) // _ROUNDED) * _ROUNDED
    return Network(sorting_network(room), room)


@kernel()
def sort(values: F32, counts: I64, network: Network) -> None:
    """Sort the first counts[k] values of each column k of `values` (room, SETS) in place; what lies
    beyond them becomes infinite. None may be NaN.
    """
    for k in range(SETS):
        values[counts[k] :, k] = np.inf
    sort_lanes(values, network.steps)


@kernel(allocates=True)
def median(sorted_: F32, place: int, count: int, samples: F32) -> tuple[float, float]:
    """Median and standard deviation, clipped at 3σ, of the first `count` values of a column that
    `sort` sorted; `samples` (room,) is overwritten.
    """
    for k in range(count):
        samples[k] = sorted_[k, place]
    return _clipped(samples[:count])


@kernel(allocates=True)
def _clipped(samples: F32) -> tuple[float, float]:
    """Median and standard deviation of sorted samples, clipped at 3σ."""
    count = len(samples)
    middle_value = float(samples[count // 2])
    sigma = (samples[(3 * count) // 4] - samples[count // 4]) / 1.349
    low, high = 0, count
    for _ in range(7):
        if sigma > 0.0:  # quartiles of coarsely quantised data can coincide
            next_low = int(np.searchsorted(samples, np.float32(middle_value - 3.0 * sigma)))
            next_high = int(np.searchsorted(samples, np.float32(middle_value + 3.0 * sigma)))
            if next_high - next_low < 2:
                break
            settled = next_low == low and next_high == high
            low, high = next_low, next_high
        else:
            settled = False
        middle = (low + high) // 2
        if (high - low) % 2 == 1:
            middle_value = float(samples[middle])
        else:
            middle_value = 0.5 * (float(samples[middle - 1]) + float(samples[middle]))
        # What clipping at 3σ takes from a Gaussian.
        sigma = _deviation(samples[low:high], middle_value) / 0.9866
        if settled or sigma <= 0.0:
            break
    return middle_value, sigma


@kernel(allocates=True)
def _deviation(samples: F32, near: float) -> float:
    """Standard deviation, from what the samples are off a number near their mean."""
    sums, squares = np.zeros(_SUMS), np.zeros(_SUMS)
    whole = len(samples) // _SUMS * _SUMS
    for first in range(0, whole, _SUMS):
        for lane in range(_SUMS):
            off = samples[first + lane] - near
            sums[lane] += off
            squares[lane] += off * off
    for k in range(whole, len(samples)):
        off = samples[k] - near
        sums[k - whole] += off
        squares[k - whole] += off * off
    mean = np.sum(sums) / len(samples)
    return float(np.sqrt(max(np.sum(squares) / len(samples) - mean * mean, 0.0)))
