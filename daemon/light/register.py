"""The transform from a frame to the reference, from their star lists.

First offset voting: for every trial rotation each pair of bright stars votes for the shift that
would bring one onto the other, and the true shift collects as many votes as there are common stars.
Spurious and missing stars only thin it out. Near 0° and 180° (a meridian flip) first, then at any
angle; then astroalign's triangles, which also find another scale; then about a hint from the
headers, which needs fewer stars. Whatever proposes a transform, it counts only once the stars of
both lists have been verified to lie on each other far more often than chance would have it.

Where the field is bent, a similarity holds in its middle only: from there the match grows outwards,
each ring found by a polynomial through those inside it. All matched stars then refine the model
that predicts left-out stars best.
"""

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import astroalign
import numpy as np
import numpy.typing as npt

from calib_library.kernels import kernel, side_by_side
from daemon.light import distortion, pairing, reweighted
from daemon.light.stars import StarList

F64 = npt.NDArray[np.float64]
I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
Index = npt.NDArray[np.intp]

_VOTERS = 150
_VOTERS_ANY_ANGLE = 60
_CELL_PX = 12.0
_DITHER_PX = 500.0  # larger shifts have a vote only if those up to here are in vain
_TRIED = 8  # best rotations that are verified
_VERIFIED_PX = 1.0
_LEAST_STARS = 5
_LEAST_HINTED = 3  # where the headers tell rotation and scale
_LEAST_VERIFIED = 10  # or 60 % of the stars that could match
_CHANCE_LOG = -22.0  # ln of how improbable the verified stars must be by chance
_CHANCE_HINTED_LOG = -16.0
_UPGRADE = 0.95  # a richer model must lower the held-out residual by 5 %
_TRUSTED_PX = 0.5  # a polynomial's error must stay below this throughout the overlap
_NEAR = math.radians(3.0)  # of 0° and 180°

_FREE = {"similarity": 3, "affine": 4, "homography": 5}
_ORDER = {"second-order": 2, "third-order": 3}
_LEAST_BENT = 100
_RICHER = (
    ("affine", 24, _UPGRADE),
    ("homography", 50, _UPGRADE),
    ("second-order", _LEAST_BENT, _UPGRADE),
    ("third-order", _LEAST_BENT, 0.9),
    ("third-order", 300, _UPGRADE),
)
"""Models, the matches from which each is tried, and to what it must lower the residual."""

_SEED_STARS = 8  # the middle from which a match grows outwards
_GROWTH = 1.25
_GROWN_PX = 12.0  # how far a prediction for the next ring may be off
_GROWN_TRIED = 3
_GROWN_ORDER = ((60, 3), (30, 2), (_SEED_STARS, 1))  # matches needed while growing


class _Numpy(types.ModuleType):
    """numpy as astroalign sees it: what it shuffles comes out the same every time, so that a frame
    that is registered again gets the same transform.
    """

    random = types.SimpleNamespace(default_rng=functools.partial(np.random.default_rng, 0))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever numpy has
        return getattr(np, name)


astroalign._np = _Numpy("numpy")  # noqa: SLF001 - it offers no way to hand in a generator


class RegistrationError(Exception):
    """The frame does not lie on the reference, as far as its stars tell; a sentence says why."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """Where a frame lies on the reference."""

    matrix: F64
    """(3, 3), frame → reference px, acting on (x, y, 1). With a distortion, the similarity that
    comes nearest."""
    matched: int
    """Stars that were matched and used."""
    rms_px: float
    """Root mean square distance of the matched stars after the transform, reference px."""
    method: str
    """`identity`, `voting`, `voting at any angle`, `astroalign`, `header`, `phase correlation`."""
    flipped: bool
    """Turned by more than 90°: the other side of a meridian flip."""
    model: str = "similarity"
    """`similarity`, `affine`, `homography`, `second-order` or `third-order`."""
    distortion: F64 | None = None
    """(2, 10), what `daemon.light.distortion` adds to the matrix, with the last two models."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Map:
    """A transform, as `Registration` has it."""

    matrix: F64
    distortion: F64 | None = None


_Linear = tuple[F64, F64, Callable[[F64], F64]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Proposals:
    """Transforms worth verifying, each with how far from the truth it may be, px."""

    method: str
    transforms: list[tuple[F64, float]]
    hinted: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class _Fields:
    """The positions of both lists (n, 2) px, brightest first."""

    frame: F64
    target: F64
    shape: tuple[int, int]
    tolerance: float
    """How near matched stars must lie, px."""

    def brightest(self, number: int) -> "_Fields":
        return dataclasses.replace(self, frame=self.frame[:number], target=self.target[:number])

    @property
    def fewest(self) -> int:
        return min(len(self.frame), len(self.target))


def register(
    stars: StarList, reference: StarList, *, shape: tuple[int, int], hint: F64 | None = None
) -> Registration:
    """Find the transform from the frame of `stars` to that of `reference`.

    `shape` is (ny, nx) of the frame; trial rotations turn about its centre. `hint` is a matrix
    (3, 3), frame → reference px, that the headers make likely; its shift may be wrong, its rotation
    and scale should be right to 3° and 1 %. A richer model than a similarity is taken only where it
    lowers the residual on stars left out of the fit by 5 %: affine from 24 matches, homography from
    50, second-order polynomial from 100, third-order from 300 (for 10 % from 100, so that a field
    bent by tens of px keeps its corners); and a polynomial only where stars hold it throughout the
    overlap. The same lists give the same transform.
    Raises RegistrationError where no transform can be verified.
    """
    if stars is reference:
        return Registration(np.eye(3), len(stars), 0.0, "identity", flipped=False)
    n, m = len(stars), len(reference)
    least = _LEAST_STARS if hint is None else _LEAST_HINTED
    if min(n, m) < least:
        raise RegistrationError(
            f"registration needs {least} stars; the frame has {n}, the reference {m}"
        )
    fields = _Fields(stars.xy, reference.xy, shape, _tolerance(stars, reference))
    for proposals in _proposals(fields, hint):
        near = _best(proposals, fields.brightest(_VOTERS))
        if near is not None:
            pairs = _match(near, fields.frame, fields.target, 2 * fields.tolerance)
            grown = _grow(near, fields)
            if grown is not None and len(grown[0]) > len(pairs[0]):
                pairs = grown
            return _refine(pairs, fields, proposals.method)
        grown = _best_grown(proposals, fields)
        if grown is not None:
            return _refine(grown, fields, proposals.method)
    raise RegistrationError(
        f"no transform brings the frame's {n} stars onto the reference's {m}: "
        "another field, clouds, or too few common stars"
    )


def _tolerance(stars: StarList, reference: StarList) -> float:
    """How near matched stars must lie, px: 1, or more where the stars are very wide."""
    widest = max(float(np.median(stars.fwhm)), float(np.median(reference.fwhm)))
    return max(_VERIFIED_PX, 0.2 * widest)


def _proposals(fields: _Fields, hint: F64 | None) -> Iterator[_Proposals]:
    """Transforms worth verifying, method by method; the dear ones only if those before fail."""
    some, few = fields.brightest(_VOTERS), fields.brightest(_VOTERS_ANY_ANGLE)
    cell, wide = _cell(some), _cell(few)
    # A step in angle moves the corners by at most half a cell to either side.
    step = max(math.radians(0.1), 0.5 * cell / math.hypot(*fields.shape))
    half = math.ceil(_NEAR / step)
    near: F64 = step * np.arange(-half, half + 1, dtype=np.float64)
    angles = np.concatenate((near, math.pi + near))
    for reach in _reaches(fields):
        yield _Proposals("voting", _vote(some, angles, cell, reach))
    angles = np.arange(0, 2 * math.pi, step)
    for reach in _reaches(fields):
        yield _Proposals("voting at any angle", _vote(few, angles, wide, reach))
    try:
        with np.errstate(all="ignore"):  # coincident stars make triangles without sides
            transform, _ = astroalign.find_transform(fields.frame[:50], fields.target[:50])
    except (astroalign.MaxIterError, ValueError, TypeError, IndexError):
        pass  # how astroalign says that it found nothing
    else:
        matrix = np.asarray(transform.params, dtype=np.float64)
        yield _Proposals("astroalign", [(matrix, 4.0)])
    if hint is not None:
        hinted = dataclasses.replace(some, frame=apply(hint, some.frame))
        voted = _vote(hinted, near, _cell(hinted), _reaches(fields)[-1])
        yield _Proposals("header", [(matrix @ hint, r) for matrix, r in voted], hinted=True)


def _reaches(fields: _Fields) -> list[float]:
    """How large a shift may be, px: a dither's first, then all that lets some of both overlap."""
    centre = np.array(fields.shape[::-1]) / 2
    whole = max(4 * _CELL_PX, float(np.max(np.hypot(*(fields.target - centre).T))))
    return [_DITHER_PX, whole] if whole > 2 * _DITHER_PX else [whole]


def _cell(fields: _Fields) -> float:
    """Edge of a voting cell, px: in a crowd a wide one would collect votes for everything."""
    span = np.ptp(np.concatenate((fields.frame, fields.target)), axis=0)
    most = max(len(fields.frame), len(fields.target))
    spacing = math.sqrt(max(float(span[0] * span[1]), 1.0) / most)
    return min(_CELL_PX, max(3.0, spacing / 4))


def _vote(fields: _Fields, angles: F64, cell: float, reach: float) -> list[tuple[F64, float]]:
    """Rotations with their most voted shift, most votes first."""
    centre = (np.array(fields.shape[::-1]) - 1) / 2
    votes = np.zeros((len(angles), 3))
    side_by_side(
        _count_votes, len(angles), fields.frame - centre, fields.target - centre, angles, cell,
        reach, votes,
    )  # fmt: skip
    proposals = []
    for k in np.argsort(-votes[:, 0], kind="stable")[:_TRIED]:
        if votes[k, 0] >= 3:
            cos, sin = math.cos(angles[k]), math.sin(angles[k])
            matrix = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
            matrix[:2, 2] = centre + votes[k, 1:] - matrix[:2, :2] @ centre
            proposals.append((matrix, 1.5 * cell))
    return proposals


def _best(proposals: _Proposals, fields: _Fields) -> F64 | None:
    """The proposal that, refitted, lays most stars on each other; None if none is verified."""
    best, most = None, 0
    for matrix, radius in proposals.transforms:
        near = _converge(matrix, fields, radius)
        if near is None:
            continue
        count, share = _verify(_Map(near), fields, hinted=proposals.hinted)
        if count > most:
            best, most = near, count
        if share > 0.6 and count >= _LEAST_VERIFIED:
            break
    return best


def _converge(matrix: F64, fields: _Fields, radius: float) -> F64 | None:
    """Refit a similarity to mutual nearest neighbours within a shrinking radius (px)."""
    least = 2 * fields.tolerance
    radius = max(radius, least)
    while True:
        i, j = _match(matrix, fields.frame, fields.target, radius)
        if len(i) < 3:
            return None
        fitted = _fit("similarity", fields.frame[i], fields.target[j], rounds=3)
        if fitted is None:
            return None
        matrix = fitted
        if radius <= least:
            return matrix
        radius = max(0.6 * radius, least)


def _verify(transform: _Map, fields: _Fields, *, hinted: bool = False) -> tuple[int, float]:
    """How many stars lie on each other, and their share of those that could; (0, 0) if too few.

    Enough are at least ten, or 60 %; never below a share of 20 %; and chance must not explain them.
    With a distortion at least as many as a polynomial asks for.
    """
    frame, target = fields.frame, fields.target
    moved = distortion.to_reference(transform.matrix, transform.distortion, frame)
    back = distortion.to_frame(transform.matrix, transform.distortion, target)
    inside = int(_inside(moved, target).sum())
    possible = max(min(inside, int(_inside(back, frame).sum())), 1)
    count = len(_pairs(transform, fields, fields.tolerance)[0])
    share = count / possible
    least, fixed = (_LEAST_HINTED, 1) if hinted else (_LEAST_STARS, 2)
    if transform.distortion is not None:
        least, fixed = _LEAST_BENT, distortion.TERMS
    if count < least or share < 0.2 or (count < _LEAST_VERIFIED and share < 0.6):
        return 0, 0.0
    # Poisson: stars expected by chance within the tolerance; a similarity fits two of them exactly,
    # a cubic ten; a hint leaves only the shift, one.
    area = max(float(np.prod(np.ptp(target, axis=0))), 1.0)
    expected = inside * len(target) * math.pi * fields.tolerance**2 / area
    free = count - fixed
    log_chance = free * math.log(max(expected, 1e-9)) - expected - math.lgamma(free + 1)
    if free <= expected or log_chance > (_CHANCE_HINTED_LOG if hinted else _CHANCE_LOG):
        return 0, 0.0
    return count, share


def _inside(points: F64, others: F64) -> npt.NDArray[np.bool_]:
    low, high = others.min(axis=0), others.max(axis=0)
    return np.asarray(np.all((points >= low) & (points <= high), axis=1))


def _best_grown(proposals: _Proposals, fields: _Fields) -> tuple[Index, Index] | None:
    """The most pairs into which the middle of a bent field grows; None if none is verified."""
    if fields.fewest < _LEAST_BENT:
        return None
    best: tuple[Index, Index] | None = None
    for matrix, radius in proposals.transforms[:_GROWN_TRIED]:
        near = _converge(matrix, fields.brightest(_VOTERS), radius)
        pairs = _grow(near, fields) if near is not None else None
        if pairs is None or (best is not None and len(pairs[0]) <= len(best[0])):
            continue
        fitted = _fit_map("third-order", fields.frame[pairs[0]], fields.target[pairs[1]])
        if fitted is not None and _verify(fitted, fields)[0]:
            best = pairs
    return best


def _grow(matrix: F64, fields: _Fields) -> tuple[Index, Index] | None:
    """Match from the middle of what a similarity lays on each other outwards.

    Circle by circle, each a quarter wider: the polynomial through the stars matched so far, of the
    order that their number allows, says where those of the next ring lie. None where there are too
    few stars for a polynomial, or the middle is lost.
    """
    frame, target = fields.frame, fields.target
    if fields.fewest < _LEAST_BENT:
        return None
    least = 2 * fields.tolerance
    i, j = _match(matrix, frame, target, least)
    if len(i) < _SEED_STARS:
        return None
    distance = np.hypot(*(target - np.median(target[j], axis=0)).T)
    reach, whole = float(np.median(distance[j])), float(distance.max())
    spacing = math.sqrt(float(np.prod(np.ptp(frame, axis=0))) / len(frame))
    radius = min(_GROWN_PX, max(least, spacing / 6))
    plain = distortion.to_frame(matrix, None, target)
    predicted = plain
    while True:
        inner = np.flatnonzero(distance <= reach)
        j, i = pairing.mutual(predicted[inner], frame, radius)
        j = inner[j]
        order = next((order for enough, order in _GROWN_ORDER if len(i) >= enough), 0)
        bend = distortion.fit(target[j], frame[i] - plain[j], order=order, rounds=4)
        if order == 0 or bend is None:
            return None
        predicted = plain + distortion.monomials(target) @ bend.T
        if reach < whole:
            reach *= _GROWTH
        elif radius > least:
            radius = least
        else:
            break
    j, i = pairing.mutual(predicted, frame, least)
    in_order = np.argsort(i)
    return i[in_order], j[in_order]


def _refine(pairs: tuple[Index, Index], fields: _Fields, method: str) -> Registration:
    """Fit all matched stars, with the model that predicts left-out stars best."""
    frame, target = fields.frame, fields.target
    i, j = pairs
    chosen, least = "similarity", _held_out("similarity", frame[i], target[j])
    residuals: dict[str, float] = {}  # a model may be asked for twice
    for model, enough, upgrade in _RICHER:
        if len(i) >= enough and model != chosen:
            if model not in residuals:
                residuals[model] = _held_out(model, frame[i], target[j])
            residual = residuals[model]
            if residual < upgrade * least and _trusted(model, residual, fields, (i, j)):
                chosen, least = model, residual
    fitted = None
    for _ in range(3):
        fitted = _fit_map(chosen, frame[i], target[j])
        if fitted is None:
            break
        again = _pairs(fitted, fields, 2 * fields.tolerance)
        if np.array_equal(again[0], i) and np.array_equal(again[1], j):
            break
        i, j = again
    if fitted is None:
        raise RegistrationError("the matched stars lie on one line or on one point")
    distance = _distance(fitted, frame[i], target[j])
    used = distance <= max(4 * _spread(distance), 1e-6)
    return Registration(
        matrix=fitted.matrix,
        matched=int(used.sum()),
        rms_px=math.sqrt(float(np.mean(distance[used] ** 2))),
        method=method,
        flipped=bool(fitted.matrix[0, 0] + fitted.matrix[1, 1] < 0),
        model=chosen,
        distortion=fitted.distortion,
    )


def _trusted(model: str, residual: float, fields: _Fields, pairs: tuple[Index, Index]) -> bool:
    """Whether a polynomial is held by stars throughout the overlap, and not only where they are."""
    if model not in _ORDER:
        return True
    matched = fields.target[pairs[1]]
    matrix = _similar(fields.frame[pairs[0]], matched)
    if matrix is None:
        return False
    ny, nx = fields.shape
    grid = np.stack(np.meshgrid(np.linspace(0, nx - 1, 7), np.linspace(0, ny - 1, 7)), axis=-1)
    there = distortion.to_frame(matrix, None, grid.reshape(-1, 2))
    covered = np.all((there >= 0) & (there <= (nx - 1, ny - 1)), axis=1)
    if not covered.any():
        return False
    where = grid.reshape(-1, 2)[covered]
    one_axis = residual / math.sqrt(2)
    return one_axis * distortion.leverage(matched, where, order=_ORDER[model]) < _TRUSTED_PX


def apply(matrix: F64, points: F64) -> F64:
    """Transform `points` (n, 2) px by a 3×3 matrix."""
    return distortion.project(matrix, points)


def _distance(transform: _Map, frame: F64, target: F64) -> F64:
    """Reference px between stars that belong together."""
    if transform.distortion is None:
        return np.asarray(np.hypot(*(apply(transform.matrix, frame) - target).T))
    back = distortion.to_frame(transform.matrix, transform.distortion, target)
    return np.asarray(_scale(transform.matrix) * np.hypot(*(back - frame).T))


def _scale(matrix: F64) -> float:
    """Reference px per frame px."""
    return math.sqrt(abs(float(np.linalg.det(matrix[:2, :2]))))


def _spread(distance: F64) -> float:
    """Robust σ of one coordinate from radial distances."""
    return float(np.median(distance)) / reweighted.RAYLEIGH


def _pairs(transform: _Map, fields: _Fields, radius: float) -> tuple[Index, Index]:
    """Pairs of mutual nearest neighbours nearer than `radius` px, in the frame's order."""
    if transform.distortion is None:
        return _match(transform.matrix, fields.frame, fields.target, radius)
    back = distortion.to_frame(transform.matrix, transform.distortion, fields.target)
    j, i = pairing.mutual(back, fields.frame, radius / _scale(transform.matrix))
    in_order = np.argsort(i)
    return i[in_order], j[in_order]


def _match(matrix: F64, frame: F64, target: F64, radius: float) -> tuple[Index, Index]:
    """As `_pairs`, by a matrix alone."""
    return pairing.mutual(apply(matrix, frame), target, radius)


def _held_out(model: str, frame: F64, target: F64) -> float:
    """Root mean square distance, each at most 2 px, of stars that a fit to the others did not see
    (four folds).
    """
    folds = np.arange(len(frame)) % 4
    near = _similar(frame, target) if model in _ORDER else None
    distances = []
    for fold in range(4):
        others = folds != fold
        fitted = _fit_map(model, frame[others], target[others], near=near, rounds=4)
        if fitted is None:
            return math.inf
        distances.append(_distance(fitted, frame[~others], target[~others]))
    return float(np.sqrt(np.mean(np.minimum(np.concatenate(distances), 2.0) ** 2)))


def _fit_map(
    model: str, frame: F64, target: F64, *, near: F64 | None = None, rounds: int = 10
) -> _Map | None:
    """Robust least squares of any model; None if degenerate. A polynomial lies beside a similarity:
    that of these stars, or `near`, with which the sum of both is the same.
    """
    if model not in _ORDER:
        matrix = _fit(model, frame, target, rounds=rounds)
        return None if matrix is None else _Map(matrix)
    near = _similar(frame, target) if near is None else near
    if near is None:
        return None
    shift = frame - distortion.to_frame(near, None, target)
    bend = distortion.fit(target, shift, order=_ORDER[model], rounds=rounds)
    return None if bend is None else _Map(near, bend)


def _similar(frame: F64, target: F64) -> F64 | None:
    """The similarity of least squares, with every star alike."""
    return _fit("similarity", frame, target, rounds=1)


def _fit(model: str, frame: F64, target: F64, *, rounds: int = 10) -> F64 | None:
    """Robust least squares of one model; None if degenerate.

    Coordinates are centred and scaled first, so that the equations are well conditioned.
    """
    a, b = _normaliser(frame), _normaliser(target)
    p, q = apply(a, frame), apply(b, target)
    design, values, whole = _LINEAR[model](p, q)
    found = reweighted.fit(design, values, rounds=rounds, least=_FREE[model])
    if found is None:
        return None
    matrix = np.linalg.inv(b) @ whole(found) @ a
    return np.asarray(matrix / matrix[2, 2], dtype=np.float64)


def _normaliser(points: F64) -> F64:
    """Similarity that brings `points` to mean 0 and rms radius √2 (Hartley 1997)."""
    mean = points.sum(axis=0) / len(points)
    beside = (points - mean).ravel()
    radius = math.sqrt(float(beside @ beside) / len(points))
    k = math.sqrt(2) / radius if radius > 0 else 1.0
    return np.array([[k, 0, -k * mean[0]], [0, k, -k * mean[1]], [0, 0, 1.0]])


# Each as `reweighted.fit` takes it, with what makes the matrix (3, 3) of the numbers found.


def _similarity(p: F64, q: F64) -> _Linear:
    """Four numbers: x' = a x − b y + c, y' = b x + a y + d."""
    design = np.zeros((len(p), 2, 4))
    design[:, 0, 0], design[:, 0, 1], design[:, 0, 2] = p[:, 0], -p[:, 1], 1.0
    design[:, 1, 0], design[:, 1, 1], design[:, 1, 3] = p[:, 1], p[:, 0], 1.0

    def whole(found: F64) -> F64:
        a, b, c, d = found[:, 0]
        return np.array([[a, -b, c], [b, a, d], [0, 0, 1.0]])

    return design, q[:, :, np.newaxis], whole


def _affine(p: F64, q: F64) -> _Linear:
    """Six numbers."""
    design = np.column_stack((p, np.ones(len(p))))

    def whole(found: F64) -> F64:
        return np.vstack((found.T, (0.0, 0.0, 1.0)))

    return design[:, np.newaxis], q[:, np.newaxis], whole


def _homography(p: F64, q: F64) -> _Linear:
    """Eight numbers; nearly affine, so the linear form is unbiased."""
    design = np.zeros((len(p), 2, 8))
    for axis in (0, 1):
        design[:, axis, 3 * axis : 3 * axis + 2] = p
        design[:, axis, 3 * axis + 2] = 1.0
        design[:, axis, 6:] = -q[:, axis, np.newaxis] * p

    def whole(found: F64) -> F64:
        return np.append(found[:, 0], 1.0).reshape(3, 3)

    return design, q[:, :, np.newaxis], whole


_LINEAR = {"similarity": _similarity, "affine": _affine, "homography": _homography}


@kernel()
def _most_voted(
    moved: F64, target: F64, reach: float, half: float, counts: I16, units: I32, pairs: I32
) -> tuple[int, float, float]:
    """Votes in the fullest cell of the pairs' shifts, and the mean of those shifts, px.

    A cell is two by two units with an edge of `half` px, so that cells overlap by half. `counts`,
    a square of units as one row, is zero before and after; `units` and `pairs` are scratch.
    """
    side = int(2.0 * reach / half) + 3
    number = 0
    for i in range(len(moved)):
        for j in range(len(target)):
            x = target[j, 0] - moved[i, 0]
            y = target[j, 1] - moved[i, 1]
            if abs(x) < reach and abs(y) < reach:
                unit = (int((y + reach) / half) + 1) * side + int((x + reach) / half) + 1
                counts[unit] += 1
                units[number] = unit
                pairs[number] = i * len(target) + j
                number += 1
    most, corner = 0, 0
    for k in range(number):
        # A fuller cell has a unit with more than a quarter of its votes.
        if 4 * counts[units[k]] > most:
            for back in (0, 1, side, side + 1):
                at = units[k] - back
                votes = counts[at] + counts[at + 1] + counts[at + side] + counts[at + side + 1]
                if votes > most:
                    most, corner = votes, at
    dx = dy = 0.0
    for k in range(number):
        counts[units[k]] = 0
        if units[k] - corner in (0, 1, side, side + 1):
            i, j = pairs[k] // len(target), pairs[k] % len(target)
            dx += target[j, 0] - moved[i, 0]
            dy += target[j, 1] - moved[i, 1]
    return most, dx / max(most, 1), dy / max(most, 1)


@kernel(allocates=True)
def _count_votes(
    first: int, last: int, frame: F64, target: F64, angles: F64, cell: float, reach: float, out: F64
) -> None:
    """For some of the angles: most votes in one cell, and the mean shift of those votes (x, y), px.

    Shifts of `reach` px or more in x or y have no vote.
    """
    half = 0.5 * cell
    side = int(2.0 * reach / half) + 3
    counts = np.zeros(side * side, np.int16)
    units = np.empty(len(frame) * len(target), np.int32)
    pairs = np.empty(len(frame) * len(target), np.int32)
    moved = np.empty_like(frame)
    for k in range(first, last):
        cos, sin = np.cos(angles[k]), np.sin(angles[k])
        for i in range(len(frame)):
            moved[i, 0] = cos * frame[i, 0] - sin * frame[i, 1]
            moved[i, 1] = sin * frame[i, 0] + cos * frame[i, 1]
        out[k, 0], out[k, 1], out[k, 2] = _most_voted(
            moved, target, reach, half, counts, units, pairs
        )
