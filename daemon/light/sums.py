"""Sums of an image's rows and columns in one pass over it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library.kernels import kernel

Words = npt.NDArray[np.uint64]


@kernel(allocates=True)
def of_rows_and_columns(words: npt.NDArray[Any]) -> tuple[Words, Words]:
    """Sums (ny,) of the rows and (nx,) of the columns of whole numbers (ny, nx), modulo 2^64."""
    rows = np.zeros(words.shape[0], np.uint64)
    columns = np.zeros(words.shape[1], np.uint64)
    for y in range(len(rows)):
        across = np.uint64(0)
        for x in range(len(columns)):
            word = np.uint64(words[y, x])
            across += word
            columns[x] += word
        rows[y] = across
    return rows, columns
