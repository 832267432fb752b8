"""Least squares that outliers do not bend: reweighted by Tukey's biweight, in one kernel, since a
registration asks for a hundred small ones.
"""

import numpy as np
import numpy.typing as npt

from calib_library.kernels import kernel

F64 = npt.NDArray[np.float64]

RAYLEIGH = 1.1774
"""The median of distances in a plane over σ of one coordinate …"""
NORMAL = 1 / 1.4826
"""… and of those along a line."""
_BIWEIGHT = 4.685
_LEAST_SCALE = 1e-12
_SETTLED = 1e-10
"""Of the largest number: so little is rounding."""
_SINGULAR = 1e-13
"""Of a number's own square: what the others leave of it, from which it cannot be told."""


def fit(
    design: F64, values: F64, *, rounds: int, least: int = 1, median: float = RAYLEIGH
) -> F64 | None:
    """The numbers (p, q) with which `design` (n, r, p) gives `values` (n, r, q) of n stars.

    A star has r rows, or q columns with the same design: the distance by which it is missed is that
    of all of them together. Least squares; then reweighted by the biweight of the distances (c =
    4.685 σ, where σ is their median over `median`) until nothing changes any more, `rounds` fits
    are made, or fewer than `least` stars count. Columns of the design should be of about the same
    size. None if the stars do not determine the numbers.
    """
    design, values = np.ascontiguousarray(design), np.ascontiguousarray(values)
    answer, determined = _fit(design, values, rounds, least, median)
    return answer if determined else None


@kernel(allocates=True)
def _fit(design: F64, values: F64, rounds: int, least: int, median: float) -> tuple[F64, bool]:
    n, rows, numbers = design.shape
    columns = values.shape[2]
    answer = np.zeros((numbers, columns))
    weights, distance = np.ones(n), np.empty(n)
    normal, right = np.empty((numbers, numbers)), np.empty((numbers, columns))
    for k in range(rounds):
        _sum_up(design, values, weights, normal, right)
        if not _solve(normal, right):
            return answer, False
        change = largest = 0.0
        for a in range(numbers):
            for c in range(columns):
                change = max(change, abs(right[a, c] - answer[a, c]))
                largest = max(largest, abs(right[a, c]))
                answer[a, c] = right[a, c]
        if k == rounds - 1 or change <= _SETTLED * largest:
            break
        for i in range(n):
            square = 0.0
            for row in range(rows):
                for c in range(columns):
                    missed = values[i, row, c]
                    for a in range(numbers):
                        missed -= design[i, row, a] * answer[a, c]
                    square += missed * missed
            distance[i] = np.sqrt(square)
        scale = max(_BIWEIGHT * np.median(distance) / median, _LEAST_SCALE)
        count = 0
        for i in range(n):
            inside = max(1.0 - (distance[i] / scale) ** 2, 0.0)
            weights[i] = inside * inside
            count += weights[i] > 0.0
        if count < least:
            break
    return answer, True


@kernel()
def _sum_up(design: F64, values: F64, weights: F64, normal: F64, right: F64) -> None:
    """The normal equations."""
    n, rows, numbers = design.shape
    normal[:] = 0.0
    right[:] = 0.0
    for i in range(n):
        for row in range(rows):
            line, wanted = design[i, row], values[i, row]
            for a in range(numbers):
                weighted = weights[i] * line[a]
                for b in range(numbers):
                    normal[a, b] += weighted * line[b]
                for c in range(len(wanted)):
                    right[a, c] += weighted * wanted[c]


@kernel()
def _solve(normal: F64, right: F64) -> bool:
    """Cholesky's way; both are overwritten, `right` by the solution. False where there is none."""
    numbers, columns = right.shape
    for a in range(numbers):
        own = normal[a, a]
        for b in range(a):
            left = normal[a, b]
            for c in range(b):
                left -= normal[a, c] * normal[b, c]
            normal[a, b] = left / normal[b, b]
        rest = own
        for c in range(a):
            rest -= normal[a, c] ** 2
        if not rest > _SINGULAR * own:
            return False
        normal[a, a] = np.sqrt(rest)
    for k in range(columns):
        for a in range(numbers):
            for c in range(a):
                right[a, k] -= normal[a, c] * right[c, k]
            right[a, k] /= normal[a, a]
        for a in range(numbers - 1, -1, -1):
            for c in range(a + 1, numbers):
                right[a, k] -= normal[c, a] * right[c, k]
            right[a, k] /= normal[a, a]
    return True
