"""How good a frame is: its stars, its sky, and how both compare with a reference frame.

Transparency and background are measured from star lists and cells, never from a fit to
pixels: scales from pixels err by 25–260 % under a bright sky or cloud.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from daemon.light import pairing, register, reweighted
from daemon.light.background import Background, bilinear_cells
from daemon.light.stars import StarList

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_GOOD_SNR = 20.0
_ENOUGH_GOOD = 8  # below, fainter stars are asked too
_INTRINSIC = 0.01  # scatter of ln flux ratios beyond the noise: flat field, what rings took in
_STRUCTURED = 0.05  # scatter of fluxes over a median of the sky, where nebula or neighbours lean
_CROWDED = 0.03  # share of the neighbours' light that seeing may move across an aperture's rim
_PLANE_POINTS = 5000
_PLASTIC = np.array([0.7548776662466927, 0.5698402909980532])  # 1/ρ, 1/ρ² with ρ³ = ρ + 1
_OUTLIER = 3.5
_LEAST_SCATTER = 0.05
_LEAST_HISTORY = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Quality:
    """The measured quality of one frame."""

    stars: int
    """Stars found in the frame."""
    fwhm_px: float
    """px, median of the good stars; 0 without stars."""
    eccentricity: float
    """√(1 − (b/a)²), median of the good stars; 0 without stars."""
    sky_adu: float
    """ADU, median level of the background."""
    noise_adu: float
    """ADU, noise of one background pixel."""
    transparency: float | None
    """Star flux over that in the reference frame; None for the reference."""
    weight: float
    """t² / (σ² FWHM), with t = 1 where there is no transparency; 0 without stars."""
    residual_px: float | None = None
    """px, rms of the registration, where there was one."""


def measure(stars: StarList, background: Background) -> Quality:
    """Quality of a frame by itself: `transparency` is None, the weight is for t = 1."""
    good = stars.take(_good(stars))
    fwhm = float(np.median(good.fwhm)) if len(good) else 0.0
    elongation = float(np.median(good.elongation)) if len(good) else 1.0
    return Quality(
        stars=stars.found,
        fwhm_px=fwhm,
        eccentricity=math.sqrt(max(0.0, 1 - 1 / elongation**2)),
        sky_adu=background.level_adu,
        noise_adu=background.sigma_adu,
        transparency=None,
        weight=weight(1.0, background.sigma_adu, fwhm),
    )


def _good(stars: StarList) -> npt.NDArray[np.bool_]:
    """Stars fit for widths and fluxes: unsaturated, S/N > 20 if there are enough of those."""
    clean = ~stars.saturated
    bright: npt.NDArray[np.bool_] = clean & (stars.snr > _GOOD_SNR)
    if bright.sum() >= _ENOUGH_GOOD:
        return bright
    return clean if clean.any() else np.ones(len(stars), dtype=np.bool_)


def weight(transparency: float, noise_adu: float, fwhm_px: float) -> float:
    """Return t² / (σ² FWHM), 1 / (ADU² px); 0 where the noise or the width is not known."""
    if noise_adu <= 0 or fwhm_px <= 0:
        return 0.0
    return transparency**2 / (noise_adu**2 * fwhm_px)


def transparency(stars: StarList, reference: StarList, transform: F64) -> float:
    """Star flux of a frame over that of the reference frame, by their common stars.

    `transform` is 3×3, frame → reference px. Unsaturated stars with S/N > 20 in both are used
    (fainter ones if fewer than eight have it): the robust mean of ln(f/f_ref), that is Tukey's
    biweight about the median, each star weighted by its noise and its neighbours. The aperture is
    the same in both frames and at least 3 times the larger FWHM, so that neither the seeing nor
    the neighbours and nebula that it takes in change the ratio; where a star's ring is cut off by
    the frame or holds more light than the star, its fluxes over a median of the sky stand in, with
    less weight. Exposures are not divided out.
    Raises register.RegistrationError where no star is common.
    """
    moved = register.apply(transform, stars.xy)
    radius = max(2.0, 0.5 * float(np.median(reference.fwhm))) if len(reference) else 2.0
    if len(stars) == 0 or len(reference) == 0:
        raise register.RegistrationError("no stars to measure the transparency with")
    i, j = pairing.mutual(moved, reference.xy, radius)
    a, b = stars.take(i), reference.take(j)
    own, wanted = _same_aperture(a, b)
    linear = (own > 0) & (wanted > 0)
    own, wanted = np.where(linear, own, a.flux), np.where(linear, wanted, b.flux)
    clean = ~a.saturated & ~b.saturated & (own > 0) & (wanted > 0)
    structured = np.where(linear, 0.0, _STRUCTURED)[clean]
    a, b, own, wanted = a.take(clean), b.take(clean), own[clean], wanted[clean]
    noise, noise_wanted = a.flux / (a.snr * own), b.flux / (b.snr * wanted)
    bright = np.maximum(noise, noise_wanted) < 1 / _GOOD_SNR
    chosen = bright if bright.sum() >= _ENOUGH_GOOD else np.ones(len(own), dtype=np.bool_)
    if not chosen.any():
        raise register.RegistrationError("no unsaturated star in common with the reference")
    crowd = _neighbours(b, reference, 2 * max(a.radius_px, b.radius_px)) / wanted
    variance = _INTRINSIC**2 + structured**2 + noise**2 + noise_wanted**2 + (_CROWDED * crowd) ** 2
    return math.exp(_biweight(np.log(own / wanted)[chosen], 1 / variance[chosen]))


def _neighbours(stars: StarList, field: StarList, reach: float) -> F64:
    """(n,) ADU, light of all other stars of `field` within `reach` px of each of `stars`."""
    return pairing.light_around(stars.xy, field.xy, field.flux, reach) - stars.flux


def _same_aperture(a: StarList, b: StarList) -> tuple[F64, F64]:
    """Fluxes (n,) of the same stars within one radius; where the seeing differs so much that there
    is none in common, within 3 FWHM of each frame.
    """
    steps = round(2 * math.log2(b.radius_px / a.radius_px))
    if abs(steps) > 1:
        return a.flux, b.flux
    return a.shared[:, int(steps > 0)], b.shared[:, int(steps < 0)]


def _biweight(values: F64, weights: F64) -> float:
    """Tukey's biweight mean (c = 6 MAD) of `values` (n,) with prior `weights` (n,), 1/variance."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    centre = float(values[order][np.searchsorted(below, 0.5 * below[-1])])
    for _ in range(10):
        deviation = np.abs(values - centre) * np.sqrt(weights)
        scale = 6 * max(float(np.median(deviation)), 1e-6)
        robust = weights * np.maximum(1 - (deviation / scale) ** 2, 0) ** 2
        if robust.sum() <= 0:
            break
        centre = float(robust @ values / robust.sum())
    return centre


def background_plane(
    cells: F32, reference_cells: F32, transform: F64, scale: float, shape: tuple[int, ...]
) -> tuple[float, float, float]:
    """Plane (a, bx, by) with  scale · warped frame + a + bx x + by y  ≈  reference's background.

    `cells` (cy, cx) ADU are the frame's (`background.cell_means`), `reference_cells` those of the
    reference; both frames have `shape` (ny, nx). `transform` is 3×3, frame → reference px; x, y are
    reference px; a is ADU, bx and by ADU/px. The warp conserves flux, so the frame's level is
    multiplied by the area of a reference pixel in frame pixels. Both are interpolated at points
    that lie anywhere in their cells, so that it blurs a nebula alike in both: compared at the
    centres of the reference's cells, where those are sharp, a nebula's crests would pass for sky.
    Tukey's biweight keeps what differs, a trail or a saturated star, from bending the plane. Fewer
    than six common points give a level only; none, zeros.
    """
    ny, nx = shape[-2:]
    size = np.array([nx, ny])
    # A sequence of low discrepancy (Roberts' R2): it fits no grid of cells.
    points = np.arange(1, _PLANE_POINTS + 1)[:, None] * _PLASTIC % 1 * size - 0.5
    inverse = np.asarray(np.linalg.inv(transform), dtype=np.float64)
    inverse /= inverse[2, 2]
    there = register.apply(inverse, points)
    inside = _between_centres(points, reference_cells, size)
    inside &= _between_centres(there, cells, size)
    points, there = points[inside], there[inside]
    area = abs(float(np.linalg.det(inverse[:2, :2])))
    level = scale * area * bilinear_cells(cells, (ny, nx), there[:, 0], there[:, 1])
    wanted = bilinear_cells(reference_cells, (ny, nx), points[:, 0], points[:, 1])
    difference = wanted - level
    known = np.isfinite(difference)
    if not known.any():
        return 0.0, 0.0, 0.0
    middle, half = (size - 1) / 2, 0.5 * float(size.max())
    plane = _robust_plane((points[known] - middle) / half, difference[known])
    offset, slope_x, slope_y = plane / (1, half, half)
    a = offset - slope_x * middle[0] - slope_y * middle[1]
    return float(a), float(slope_x), float(slope_y)


def _between_centres(points: F64, cells: F32, size: npt.NDArray[np.int_]) -> npt.NDArray[np.bool_]:
    """Which `points` (n, 2) lie between the centres of the outermost cells of a frame of `size` (x,
    y): beyond, its level would be a guess.
    """
    rim = size / cells.shape[::-1] / 2 - 0.5 - 1e-6
    inside: npt.NDArray[np.bool_] = np.all((points >= rim) & (points <= size - 1 - rim), axis=1)
    return inside


def _robust_plane(points: F64, values: F64) -> F64:
    """(3,) level and slopes of the plane through `values` (n,) at `points` (n, 2), robustly."""
    if len(points) < 6:
        return np.array([float(np.median(values)), 0.0, 0.0])
    design = np.column_stack((np.ones(len(points)), points))
    plane = reweighted.fit(
        design[:, np.newaxis],
        values[:, np.newaxis, np.newaxis],
        rounds=20,
        median=reweighted.NORMAL,
    )
    return np.array([float(np.median(values)), 0.0, 0.0]) if plane is None else plane[:, 0]


def admit(
    quality: Quality,
    history: Sequence[Quality],
    *,
    least_transparency: float = 0.3,
    most_fwhm: float = 2.0,
    least_stars: int = 10,
) -> tuple[bool, str]:
    """Whether a frame may join a stack, and why not, as a sentence; the reason is empty if it may.

    `history` is the stack's frames so far, the reference first. Absolute limits come first: fewer
    than `least_stars` stars, a transparency below `least_transparency`, a FWHM above `most_fwhm`
    times the reference's. From five frames on, a frame is an outlier if it is worse than the median
    in ln FWHM, ln star count, ln sky, transparency or registration residual by more than 3.5 times
    max(1.4826 MAD, 0.05). Only the harmful side counts: a frame that is sharper, darker or clearer
    than the others is welcome.
    """
    if quality.stars < least_stars:
        return False, f"{quality.stars} stars, fewer than {least_stars}: cloud, or out of focus"
    t = quality.transparency
    if t is not None and t < least_transparency:
        return (
            False,
            f"transparency {t:.2f} of the reference, below {least_transparency:.2f}: cloud",
        )
    if history and quality.fwhm_px > most_fwhm * history[0].fwhm_px > 0:
        return False, (
            f"FWHM {quality.fwhm_px:.2f} px, more than {most_fwhm:g} times the reference's "
            f"{history[0].fwhm_px:.2f} px: focus, wind or seeing"
        )
    if len(history) < _LEAST_HISTORY:
        return True, ""
    return _outlier(quality, history)


def _outlier(quality: Quality, history: Sequence[Quality]) -> tuple[bool, str]:
    own, past = _harm([quality]), _harm(history)
    for name, values in past.items():
        if len(values) < _LEAST_HISTORY or not len(own[name]):
            continue
        value = float(own[name][0])
        median = float(np.median(values))
        scatter = max(1.4826 * float(np.median(np.abs(values - median))), _LEAST_SCATTER)
        deviation = (value - median) / scatter
        if deviation > _OUTLIER:
            return False, (
                f"{name} is worse than the other {len(history)} frames' by {deviation:.1f} σ, "
                f"more than {_OUTLIER:g}"
            )
    return True, ""


def _harm(frames: Sequence[Quality]) -> dict[str, npt.NDArray[np.float64]]:
    """Measures of frames by name, each the worse the larger; what is not known is left out."""
    fwhm = np.array([q.fwhm_px for q in frames], dtype=np.float64)
    stars = np.array([q.stars for q in frames], dtype=np.float64)
    sky = np.array([q.sky_adu for q in frames], dtype=np.float64)
    residual = [q.residual_px for q in frames if q.residual_px is not None]
    return {
        "the FWHM": np.log(fwhm[fwhm > 0]),
        "the number of stars": -np.log(stars[stars > 0]),
        "the sky's brightness": np.log(sky[sky > 0]),
        "the transparency": -np.array(
            [1.0 if q.transparency is None else q.transparency for q in frames], dtype=np.float64
        ),
        "the registration's residual": np.array(residual, dtype=np.float64),
    }
