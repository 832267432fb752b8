"""Measures that a few wild values do not move."""

from typing import Any

import numpy as np
import numpy.typing as npt


def mad_sigma(values: npt.NDArray[Any]) -> float:
    """1.4826 times the median distance of the values from their median: σ where they are normal."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))
