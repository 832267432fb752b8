"""The transform from a frame to the reference, from their star lists.

First offset voting: for every trial rotation each pair of bright stars votes for the shift that
would bring one onto the other, and the true shift collects as many votes as there are common stars.
Spurious and missing stars only thin it out. Near 0° and 180° (a meridian flip) first, then at any
angle; then astroalign's triangles, which also find another scale. Whatever proposes a transform, it
counts only once the stars of both lists have been verified to lie on each other far more often than
chance would have it. All matched stars then refine it.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import astroalign
import numpy as np
import numpy.typing as npt
from numba import prange
from scipy.spatial import cKDTree

from calib_library.kernels import kernel
from daemon.light.stars import StarList

F64 = npt.NDArray[np.float64]
I16 = npt.NDArray[np.int16]
Index = npt.NDArray[np.intp]

_VOTERS = 150
_VOTERS_ANY_ANGLE = 60
_CELL_PX = 12.0
_TRIED = 8  # best rotations that are verified
_VERIFIED_PX = 1.0
_LEAST_STARS = 5
_LEAST_VERIFIED = 10  # or 60 % of the stars that could match
_CHANCE_LOG = -22.0  # ln of how improbable the verified stars must be by chance
_UPGRADE = 0.95  # a richer model must lower the held-out residual by 5 %
_CHUNKS = 4
_NEAR = math.radians(3.0)  # of 0° and 180°

_Proposal = tuple[F64, float]  # a transform, and how far from the truth it may be, px


class RegistrationError(Exception):
    """The frame does not lie on the reference, as far as its stars tell; a sentence says why."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """Where a frame lies on the reference."""

    matrix: F64
    """(3, 3), frame → reference px, acting on (x, y, 1)."""
    matched: int
    """Stars that were matched and used."""
    rms_px: float
    """Root mean square distance of the matched stars after the transform, px."""
    method: str
    """`identity`, `voting`, `voting at any angle` or `astroalign`."""
    flipped: bool
    """Turned by more than 90°: the other side of a meridian flip."""
    model: str = "similarity"
    """`similarity`, `affine` or `homography`."""


def register(stars: StarList, reference: StarList, *, shape: tuple[int, int]) -> Registration:
    """Find the transform from the frame of `stars` to that of `reference`.

    `shape` is (ny, nx) of the frame; trial rotations turn about its centre. A richer model than a
    similarity is taken only where it lowers the residual on stars left out of the fit by 5 %.
    Raises RegistrationError where no transform can be verified.
    """
    if stars is reference:
        return Registration(np.eye(3), len(stars), 0.0, "identity", flipped=False)
    n, m = len(stars), len(reference)
    if min(n, m) < _LEAST_STARS:
        raise RegistrationError(
            f"registration needs {_LEAST_STARS} stars; the frame has {n}, the reference {m}"
        )
    frame, target = stars.xy, reference.xy
    tolerance = _tolerance(stars, reference)
    for method, proposals in _proposals(frame, target, shape):
        near = _best(proposals, frame[:_VOTERS], target[:_VOTERS], tolerance)
        if near is not None:
            return _refine(near, frame, target, tolerance, method)
    raise RegistrationError(
        f"no transform brings the frame's {n} stars onto the reference's {m}: "
        "another field, clouds, or too few common stars"
    )


def _tolerance(stars: StarList, reference: StarList) -> float:
    """How near matched stars must lie, px: 1, or more where the stars are very wide."""
    widest = max(float(np.median(stars.fwhm)), float(np.median(reference.fwhm)))
    return max(_VERIFIED_PX, 0.2 * widest)


def _proposals(
    frame: F64, target: F64, shape: tuple[int, int]
) -> Iterator[tuple[str, list[_Proposal]]]:
    """Transforms worth verifying, method by method; the dear ones only if those before fail."""
    cell = _cell(frame[:_VOTERS], target[:_VOTERS])
    # A step in angle moves the corners by at most half a cell to either side.
    step = max(math.radians(0.1), 0.5 * cell / math.hypot(*shape))
    near = np.arange(-math.ceil(_NEAR / step), math.ceil(_NEAR / step) + 1) * step
    angles = np.concatenate((near, math.pi + near))
    yield "voting", _vote(frame[:_VOTERS], target[:_VOTERS], angles, cell, shape)
    few = slice(_VOTERS_ANY_ANGLE)
    angles = np.arange(0, 2 * math.pi, step)
    cell = _cell(frame[few], target[few])
    yield "voting at any angle", _vote(frame[few], target[few], angles, cell, shape)
    try:
        with np.errstate(all="ignore"):  # coincident stars make triangles without sides
            transform, _ = astroalign.find_transform(frame[:50], target[:50])
    except (astroalign.MaxIterError, ValueError, TypeError, IndexError):
        return  # how astroalign says that it found nothing
    yield "astroalign", [(np.asarray(transform.params, dtype=np.float64), 4.0)]


def _cell(frame: F64, target: F64) -> float:
    """Edge of a voting cell, px: in a crowd a wide one would collect votes for everything."""
    span = np.ptp(np.concatenate((frame, target)), axis=0)
    spacing = math.sqrt(max(float(span[0] * span[1]), 1.0) / max(len(frame), len(target)))
    return min(_CELL_PX, max(3.0, spacing / 4))


def _vote(
    frame: F64, target: F64, angles: F64, cell: float, shape: tuple[int, int]
) -> list[_Proposal]:
    """Rotations with their most voted shift, most votes first."""
    centre = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    votes = np.zeros((len(angles), 3))
    _count_votes(frame - centre, target - centre, angles, cell, votes)
    proposals = []
    for k in np.argsort(-votes[:, 0], kind="stable")[:_TRIED]:
        if votes[k, 0] >= 3:
            cos, sin = math.cos(angles[k]), math.sin(angles[k])
            matrix = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
            matrix[:2, 2] = centre + votes[k, 1:] - matrix[:2, :2] @ centre
            proposals.append((matrix, 1.5 * cell))
    return proposals


def _best(proposals: list[_Proposal], frame: F64, target: F64, tolerance: float) -> F64 | None:
    """The proposal that, refitted, lays most stars on each other; None if none is verified."""
    best, most = None, 0
    for matrix, radius in proposals:
        near = _converge(matrix, frame, target, max(radius, 2 * tolerance), tolerance)
        if near is None:
            continue
        count, fraction = _verify(near, frame, target, tolerance)
        if count > most:
            best, most = near, count
        if fraction > 0.6 and count >= _LEAST_VERIFIED:
            break
    return best


def _converge(matrix: F64, frame: F64, target: F64, radius: float, tolerance: float) -> F64 | None:
    """Refit a similarity to mutual nearest neighbours within a shrinking radius (px)."""
    while True:
        i, j = _match(matrix, frame, target, radius)
        if len(i) < 3:
            return None
        fitted = _fit("similarity", frame[i], target[j], rounds=3)
        if fitted is None:
            return None
        matrix = fitted
        if radius <= 2 * tolerance:
            return matrix
        radius = max(0.6 * radius, 2 * tolerance)


def _verify(matrix: F64, frame: F64, target: F64, tolerance: float) -> tuple[int, float]:
    """How many stars lie on each other, and their share of those that could; (0, 0) if too few.

    Enough are at least ten, or 60 %; never below a share of 20 %; and chance must not explain them.
    """
    moved = apply(matrix, frame)
    back = apply(np.asarray(np.linalg.inv(matrix), dtype=np.float64), target)
    inside = int(_inside(moved, target).sum())
    possible = max(min(inside, int(_inside(back, frame).sum())), 1)
    count = len(_match(matrix, frame, target, tolerance)[0])
    share = count / possible
    if count < _LEAST_STARS or share < 0.2 or (count < _LEAST_VERIFIED and share < 0.6):
        return 0, 0.0
    # Poisson: stars expected by chance within the tolerance; a similarity fits two of them exactly.
    area = max(float(np.prod(np.ptp(target, axis=0))), 1.0)
    expected = inside * len(target) * math.pi * tolerance**2 / area
    free = count - 2
    log_chance = free * math.log(max(expected, 1e-9)) - expected - math.lgamma(free + 1)
    if free <= expected or log_chance > _CHANCE_LOG:
        return 0, 0.0
    return count, share


def _inside(points: F64, others: F64) -> npt.NDArray[np.bool_]:
    low, high = others.min(axis=0), others.max(axis=0)
    return np.asarray(np.all((points >= low) & (points <= high), axis=1))


def _refine(matrix: F64, frame: F64, target: F64, tolerance: float, method: str) -> Registration:
    """Fit all matched stars, with the model that predicts left-out stars best."""
    i, j = _match(matrix, frame, target, 2 * tolerance)
    chosen, least = "similarity", _held_out("similarity", frame[i], target[j])
    for model, enough in (("affine", 24), ("homography", 50)):
        if len(i) >= enough:
            residual = _held_out(model, frame[i], target[j])
            if residual < _UPGRADE * least:
                chosen, least = model, residual
    for _ in range(3):
        fitted = _fit(chosen, frame[i], target[j])
        if fitted is None:
            raise RegistrationError("the matched stars lie on one line or on one point")
        matrix = fitted
        again = _match(matrix, frame, target, 2 * tolerance)
        if np.array_equal(again[0], i) and np.array_equal(again[1], j):
            break
        i, j = again
    distance = _distance(matrix, frame[i], target[j])
    used = distance <= max(4 * _spread(distance), 1e-6)
    rms = math.sqrt(float(np.mean(distance[used] ** 2)))
    flipped = bool(matrix[0, 0] + matrix[1, 1] < 0)
    return Registration(matrix, int(used.sum()), rms, method, flipped, chosen)


def apply(matrix: F64, points: F64) -> F64:
    """Transform `points` (n, 2) px by a 3×3 matrix."""
    homogeneous = points @ matrix[:, :2].T + matrix[:, 2]
    return np.asarray(homogeneous[:, :2] / homogeneous[:, 2:], dtype=np.float64)


def _distance(matrix: F64, frame: F64, target: F64) -> F64:
    return np.asarray(np.hypot(*(apply(matrix, frame) - target).T), dtype=np.float64)


def _spread(distance: F64) -> float:
    """Robust σ of one coordinate from radial distances (Rayleigh: the median is 1.1774 σ)."""
    return float(np.median(distance)) / 1.1774


def _match(matrix: F64, frame: F64, target: F64, radius: float) -> tuple[Index, Index]:
    """Pairs of mutual nearest neighbours nearer than `radius` px, in the frame's order."""
    moved = apply(matrix, frame)
    distance, nearest = cKDTree(target).query(moved, distance_upper_bound=radius)
    _, back = cKDTree(moved).query(target)
    i = np.flatnonzero(np.isfinite(distance))
    j = nearest[i]
    mutual = back[j] == i
    return i[mutual], j[mutual]


def _held_out(model: str, frame: F64, target: F64) -> float:
    """Median distance of stars that a fit to the others did not see, px (four folds)."""
    folds = np.arange(len(frame)) % 4
    distances = []
    for fold in range(4):
        fitted = _fit(model, frame[folds != fold], target[folds != fold], rounds=4)
        if fitted is None:
            return math.inf
        distances.append(_distance(fitted, frame[folds == fold], target[folds == fold]))
    return float(np.sqrt(np.mean(np.minimum(np.concatenate(distances), 2.0) ** 2)))


def _fit(model: str, frame: F64, target: F64, *, rounds: int = 10) -> F64 | None:
    """Robust least squares (Tukey's biweight, reweighted) of one model; None if degenerate.

    Coordinates are centred and scaled first, so that the equations are well conditioned.
    """
    a, b = _normaliser(frame), _normaliser(target)
    p, q = apply(a, frame), apply(b, target)
    solve: Any = {"similarity": _similarity, "affine": _affine, "homography": _homography}[model]
    weights = np.ones(len(p))
    for _ in range(rounds):
        fitted = solve(p, q, weights)
        if fitted is None or not np.isfinite(fitted).all():
            return None
        distance = _distance(fitted, p, q)
        scale = max(4.685 * _spread(distance), 1e-12)
        weights = np.where(distance < 1.5 * scale, (1 - np.minimum(distance / scale, 1) ** 2), 0.0)
        weights = weights**2
        if np.count_nonzero(weights) < _FREE[model]:
            break
    matrix = np.linalg.inv(b) @ fitted @ a
    return np.asarray(matrix / matrix[2, 2], dtype=np.float64)


_FREE = {"similarity": 3, "affine": 4, "homography": 5}


def _normaliser(points: F64) -> F64:
    """Similarity that brings `points` to mean 0 and rms radius √2 (Hartley 1997)."""
    mean = points.mean(axis=0)
    radius = math.sqrt(float(np.mean(np.sum((points - mean) ** 2, axis=1))))
    k = math.sqrt(2) / radius if radius > 0 else 1.0
    return np.array([[k, 0, -k * mean[0]], [0, k, -k * mean[1]], [0, 0, 1.0]])


def _similarity(p: F64, q: F64, weights: F64) -> F64 | None:
    """Weighted z' = a z + b in complex numbers, closed form."""
    z, t = p[:, 0] + 1j * p[:, 1], q[:, 0] + 1j * q[:, 1]
    total = weights.sum()
    if total <= 0:
        return None
    z0, t0 = (weights @ z) / total, (weights @ t) / total
    power = float(weights @ np.abs(z - z0) ** 2)
    if power <= 1e-12 * total:
        return None
    a = (weights @ (np.conj(z - z0) * (t - t0))) / power
    b = t0 - a * z0
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag], [0, 0, 1.0]])


def _affine(p: F64, q: F64, weights: F64) -> F64 | None:
    """Weighted least squares of six numbers."""
    root = np.sqrt(weights)[:, None]
    solution, _, rank, _ = np.linalg.lstsq(
        root * np.column_stack((p, np.ones(len(p)))), root * q, rcond=None
    )
    return np.vstack((solution.T, (0.0, 0.0, 1.0))) if rank == 3 else None


def _homography(p: F64, q: F64, weights: F64) -> F64 | None:
    """Weighted least squares of eight numbers; nearly affine, so the linear form is unbiased."""
    one, zero = np.ones(len(p)), np.zeros((len(p), 3))
    base = np.column_stack((p, one))
    upper = np.hstack((base, zero, -q[:, :1] * p))
    lower = np.hstack((zero, base, -q[:, 1:] * p))
    root = np.sqrt(np.concatenate((weights, weights)))
    solution, _, rank, _ = np.linalg.lstsq(
        root[:, None] * np.vstack((upper, lower)),
        root * np.concatenate((q[:, 0], q[:, 1])),
        rcond=None,
    )
    return np.append(solution, 1.0).reshape(3, 3) if rank == 8 else None


@kernel()
def _add_votes(
    moved: F64, target: F64, reach: float, half: float, step: int, counts: I16
) -> tuple[int, int, int]:
    """Add `step` to the four cells that hold each pair's shift; the fullest cell and its count."""
    limit = counts.shape[0] - 1
    most, best_u, best_v = 0, 0, 0
    for i in range(len(moved)):
        for j in range(len(target)):
            u = int((target[j, 0] - moved[i, 0] + reach) / half)
            v = int((target[j, 1] - moved[i, 1] + reach) / half)
            if 1 <= u <= limit and 1 <= v <= limit:
                for b in range(v - 1, v + 1):
                    for a in range(u - 1, u + 1):
                        counts[b, a] += step
                        if counts[b, a] > most:
                            most, best_u, best_v = counts[b, a], a, b
    return most, best_u, best_v


@kernel(parallel=True)
def _count_votes(frame: F64, target: F64, angles: F64, cell: float, out: F64) -> None:
    """For each angle: most votes in one cell, and the mean shift of those votes (x, y), px.

    Cells overlap by half, so that a peak on the border of two is not halved. Shifts of more than
    the target's radius, where little would overlap, have no cell.
    """
    half = 0.5 * cell
    reach = 4.0 * cell
    for i in range(len(target)):
        reach = max(reach, np.hypot(target[i, 0], target[i, 1]))
    side = int(2.0 * reach / half) + 1
    for chunk in prange(_CHUNKS):
        counts = np.zeros((side, side), np.int16)
        moved = np.empty_like(frame)
        for k in range(chunk, len(angles), _CHUNKS):
            cos, sin = np.cos(angles[k]), np.sin(angles[k])
            for i in range(len(frame)):
                moved[i, 0] = cos * frame[i, 0] - sin * frame[i, 1]
                moved[i, 1] = sin * frame[i, 0] + cos * frame[i, 1]
            most, best_u, best_v = _add_votes(moved, target, reach, half, 1, counts)
            _add_votes(moved, target, reach, half, -1, counts)  # clears what was touched
            x0, y0 = best_u * half - reach, best_v * half - reach
            dx = dy = 0.0
            for i in range(len(frame)):
                for j in range(len(target)):
                    x, y = target[j, 0] - moved[i, 0], target[j, 1] - moved[i, 1]
                    if 0.0 <= x - x0 < cell and 0.0 <= y - y0 < cell:
                        dx += x
                        dy += y
            out[k, 0] = most
            out[k, 1] = dx / max(most, 1)
            out[k, 2] = dy / max(most, 1)
