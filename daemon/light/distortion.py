"""The smooth bend by which a frame departs from its matrix: a cubic polynomial beside it.

    frame_xy = H⁻¹(ref_xy) + D(ref_xy)

with H the 3×3 matrix frame → reference, and D the displacement in frame px: for each axis Σ c_k of
the monomials 1, u, v, u², uv, v², u³, u²v, uv², v³, where u = x/4096 and v = y/4096 are reference
px. The unit is a constant, so that the numbers mean the same for any part of the image. It goes
from the reference to the frame because that is the way in which an image is resampled.

`distortion` is such an array (2, 10) f64, rows x and y, or None for the matrix alone.
"""

import math

import numpy as np
import numpy.typing as npt

from daemon.light import reweighted

F64 = npt.NDArray[np.float64]

UNIT_PX = 4096.0
TERMS = 10
TERMS_OF_ORDER = (1, 3, 6, 10)
"""How many of the monomials a polynomial of order 0, 1, 2, 3 has."""
_STEPS = 50
_GRID = 17
_CLOSE_PX = 1e-9


def project(matrix: F64, xy: F64) -> F64:
    """Points (n, 2) px through a 3×3 matrix acting on (x, y, 1)."""
    homogeneous = xy @ matrix[:, :2].T + matrix[:, 2]
    return np.asarray(homogeneous[:, :2] / homogeneous[:, 2:], dtype=np.float64)


def monomials(xy: F64, *, order: int = 3) -> F64:
    """(n, terms) the monomials at reference px `xy` (n, 2)."""
    u, v = xy.T / UNIT_PX
    every = (u**0, u, v, u * u, u * v, v * v, u * u * u, u * u * v, u * v * v, v * v * v)
    return np.stack(every[: TERMS_OF_ORDER[order]], axis=1)


def to_frame(matrix: F64, distortion: F64 | None, xy: F64) -> F64:
    """Where points of the reference (n, 2) px lie in the frame, px."""
    there = project(_inverse(matrix), xy)
    return there if distortion is None else there + monomials(xy) @ distortion.T


def to_reference(matrix: F64, distortion: F64 | None, xy: F64) -> F64:
    """Where points of the frame (n, 2) px lie in the reference, px.

    With a distortion by fixed-point iteration, which converges where the bend is less than the
    distances it bends; NaN for points for which it does not.
    """
    there = project(matrix, xy)
    if distortion is None:
        return there
    with np.errstate(all="ignore"):  # points far outside may run away; they become NaN
        change = np.full(len(xy), np.inf)
        for _ in range(_STEPS):
            last, there = there, project(matrix, xy - monomials(there) @ distortion.T)
            change = np.hypot(*(there - last).T)
            if np.all(change < _CLOSE_PX):
                break
        return np.where((change < 1e-6)[:, None], there, np.nan)


def area(matrix: F64, distortion: F64 | None, xy: F64) -> F64:
    """(n,) area of a reference pixel at `xy` (n, 2) reference px, in frame pixels: what `warp`
    multiplies values by.
    """
    inverse = _inverse(matrix)
    w = xy @ inverse[2, :2] + 1.0
    there = project(inverse, xy)
    slopes = [
        [(inverse[k, axis] - inverse[2, axis] * there[:, k]) / w for axis in (0, 1)] for k in (0, 1)
    ]
    if distortion is not None:
        u, v = xy.T / UNIT_PX
        zero, one = np.zeros(len(xy)), np.ones(len(xy))
        by_u = (zero, one, zero, 2 * u, v, zero, 3 * u * u, 2 * u * v, v * v, zero)
        by_v = (zero, zero, one, zero, u, 2 * v, zero, u * u, 2 * u * v, 3 * v * v)
        for k in (0, 1):
            slopes[k][0] += distortion[k] @ np.stack(by_u) / UNIT_PX
            slopes[k][1] += distortion[k] @ np.stack(by_v) / UNIT_PX
    (xx, xy_), (yx, yy) = slopes
    return np.asarray(np.abs(xx * yy - xy_ * yx), dtype=np.float64)


def between(
    ours: tuple[F64, F64 | None], theirs: tuple[F64, F64 | None], *, shape: tuple[int, int]
) -> tuple[F64, F64 | None]:
    """The transform from one frame to another, of two that are both known to the reference.

    `ours` and `theirs` are (matrix, distortion) of frames of `shape` (ny, nx). Returns the same of
    frame `ours` → frame `theirs`: exact without distortions; with them, the cubic through the exact
    map where the frames overlap.
    """
    matrix = np.asarray(_inverse(theirs[0]) @ ours[0], dtype=np.float64)
    matrix /= matrix[2, 2]
    if ours[1] is None and theirs[1] is None:
        return matrix, None
    size = np.array(shape[::-1]) - 1
    grid = np.stack(np.meshgrid(*(np.linspace(0, end, _GRID) for end in size)), axis=-1)
    points = grid.reshape(-1, 2)
    there = to_frame(*ours, to_reference(*theirs, points))
    covered = np.all((there >= 0) & (there <= size), axis=1)
    points, there = points[covered], there[covered]
    if len(points) <= 2 * TERMS:
        return matrix, None
    return matrix, fit(points, there - project(_inverse(matrix), points), order=3, rounds=1)


def fit(xy: F64, shift: F64, *, order: int, rounds: int = 10) -> F64 | None:
    """The polynomial of `order` 1, 2 or 3 through displacements `shift` (n, 2) px at reference px
    `xy` (n, 2): least squares, reweighted by Tukey's biweight (c = 4.685 σ) `rounds` times.

    Returns (2, 10); None if the points do not determine it.
    """
    basis = monomials(xy, order=order)
    size = np.maximum(np.abs(basis).max(axis=0), 1e-300)
    terms = len(size)
    if len(xy) <= terms:
        return None
    found = reweighted.fit(
        (basis / size)[:, np.newaxis], shift[:, np.newaxis], rounds=rounds, least=terms + 1
    )
    if found is None:
        return None
    result = np.zeros((2, TERMS))
    result[:, :terms] = (found / size[:, np.newaxis]).T
    return result


def leverage(xy: F64, where: F64, *, order: int) -> float:
    """The largest error of a polynomial fitted at `xy` (n, 2), over the points `where` (m, 2), in
    units of the error of one displacement; inf if the points do not determine it.
    """
    basis = monomials(xy, order=order)
    size = np.maximum(np.abs(basis).max(axis=0), 1e-300)
    _, r = np.linalg.qr(basis / size)
    diagonal = np.abs(np.diag(r))
    if len(xy) <= basis.shape[1] or diagonal.min() < 1e-10 * diagonal.max():
        return math.inf
    spread = np.linalg.solve(r.T, (monomials(where, order=order) / size).T)
    return math.sqrt(float(np.max(np.sum(spread**2, axis=0))))


def checked(distortion: F64 | None) -> F64:
    """The array as kernels take it: (2, 10) f64 in C order, or (0, 0) for none.

    Raises ValueError for another shape and for numbers that are not finite.
    """
    if distortion is None:
        return np.empty((0, 0))
    array = np.ascontiguousarray(distortion, dtype=np.float64)
    if array.shape != (2, TERMS) or not np.isfinite(array).all():
        raise ValueError(f"a distortion is (2, {TERMS}) finite numbers, not {array.shape}")
    return array


def _inverse(matrix: F64) -> F64:
    inverse = np.linalg.inv(matrix)
    return np.asarray(inverse / inverse[2, 2], dtype=np.float64)
