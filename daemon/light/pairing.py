"""Which stars of two lists lie on each other: plain loops over a few hundred points."""

import numpy as np
import numpy.typing as npt

from calib_library.kernels import kernel

F64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]


def mutual(points: F64, others: F64, radius: float) -> tuple[Index, Index]:
    """Pairs (i, j) of `points` (n, 2) and `others` (m, 2) that are nearest to each other, and
    nearer than `radius` px; in the order of i. Of several at one distance the first counts.
    """
    order = np.argsort(others[:, 1], kind="stable")
    # One layout: each would be compiled by itself.
    nearest = _nearest(np.ascontiguousarray(points), np.ascontiguousarray(others[order]), radius)
    i = np.flatnonzero(nearest >= 0)
    return i, order[nearest[i]]


def light_around(xy: F64, field: F64, flux: F64, reach: float) -> F64:
    """(n,) the sum of `flux` (m,) over the points of `field` (m, 2) within `reach` px of each of
    `xy` (n, 2).
    """
    xy, field, flux = (np.ascontiguousarray(one) for one in (xy, field, flux))
    return _light_around(xy, field, flux, reach)


@kernel(allocates=True)
def _nearest(points: F64, others: F64, radius: float) -> Index:
    """(n,) for each point that of `others`, which are in the order of y, with which it is a pair;
    -1 where there is none.
    """
    n, m = len(points), len(others)
    nearest, back = np.full(n, -1), np.full(m, -1)
    least, least_back = np.full(n, radius * radius), np.full(m, radius * radius)
    for i in range(n):
        x, y = points[i, 0], points[i, 1]
        j, after = 0, m
        while j < after:
            middle = (j + after) // 2
            if others[middle, 1] <= y - radius:
                j = middle + 1
            else:
                after = middle
        while j < m and others[j, 1] < y + radius:
            apart = (others[j, 0] - x) ** 2 + (others[j, 1] - y) ** 2
            if apart < least[i]:
                nearest[i], least[i] = j, apart
            if apart < least_back[j]:
                back[j], least_back[j] = i, apart
            j += 1
    for i in range(n):
        if nearest[i] >= 0 and back[nearest[i]] != i:
            nearest[i] = -1
    return nearest


@kernel(allocates=True)
def _light_around(xy: F64, field: F64, flux: F64, reach: float) -> F64:
    result = np.zeros(len(xy))
    for i in range(len(xy)):
        for j in range(len(field)):
            apart = (field[j, 0] - xy[i, 0]) ** 2 + (field[j, 1] - xy[i, 1]) ** 2
            if apart <= reach * reach:
                result[i] += flux[j]
    return result
