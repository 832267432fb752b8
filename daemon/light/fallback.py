"""Where the stars alone do not tell: what the headers make likely, and the images as a whole.

A guess from the headers is a hint to `register`, never a registration by itself: telescopes write
where they were sent. Phase correlation looks at everything that is in both images, a nebula or a
comet too, and finds a shift only; it counts where its peak stands out far beyond noise.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy.ndimage import median_filter, uniform_filter1d

from calib_library.frame import Card, FrameRecord
from daemon.light.background import Background
from daemon.light.distortion import project
from daemon.light.register import Registration, RegistrationError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
C128 = npt.NDArray[np.complex128]

_ARCSEC_PER_RADIAN = 206264.806

_TAPER = 0.25
"""The share of each side of an image that is faded out, so that its borders do not correlate."""
_BAND = 0.2
"""Cycles per px, σ of the frequencies that have a say: finer ones are noise."""
_SIGNIFICANT = 8.0
"""σ of the map; noise alone reaches 5.5 in a million pixels."""
_ALONE = 1.5
"""How many times higher than any other peak."""
_PEAK_PX = 6
"""Beyond this distance it is another peak."""
_RINGS = 24
_SLOPE_ROUNDS = 6
_WINDOWED = 2.0
"""Frequencies that the window makes tell the same."""
_WORST_PX = 0.25
"""Error of the shift, binned px, beyond which it is none."""
_SMALLEST = 32


@dataclasses.dataclass(frozen=True, slots=True)
class _Peak:
    height: float
    """In σ of the map."""
    others: float
    """The highest elsewhere, σ."""
    shift: F64
    """(x, y), whole px."""

    @property
    def stands_out(self) -> bool:
        return self.height >= max(_SIGNIFICANT, _ALONE * self.others)


def wcs_guess(
    record: FrameRecord,
    reference: FrameRecord,
    *,
    cards: Sequence[Card] = (),
    reference_cards: Sequence[Card] = (),
) -> F64 | None:
    """The transform (3, 3), frame → reference px, that the headers of two frames of one camera
    make likely; None where they tell nothing, or another field.

    With a solved position in both headers (`cards`, of CTYPE RA---TAN) it is the projection from
    one to the other (Calabretta & Greisen 2002, A&A 395, 1077). Otherwise no header tells which way
    is north, only how the camera was turned between the two frames, by the side of the pier and the
    rotator's angle: the matrix turns about the centre, with no shift.
    """
    solved, target = _tangent_plane(cards), _tangent_plane(reference_cards)
    if solved is not None and target is not None:
        matrix = np.linalg.inv(target[1]) @ target[0].T @ solved[0] @ solved[1]
        return _overlapping(matrix, record, reference)
    if _apart(record, reference):
        return None
    turn = _turned(record, reference)
    if turn is None:
        return None
    # Seen with row 0 on top, a camera that turned anticlockwise shows the stars turned clockwise.
    angle = math.radians(turn if record.row_order == "BOTTOM-UP" else -turn)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = (reference.key.width - 1) / 2, (reference.key.height - 1) / 2
    u, v = (record.key.width - 1) / 2, (record.key.height - 1) / 2
    return np.array(
        [[cos, -sin, x - cos * u + sin * v], [sin, cos, y - sin * u - cos * v], [0, 0, 1]]
    )


def _tangent_plane(cards: Sequence[Card]) -> tuple[F64, F64] | None:
    """Axes of a solved image on the sky (3, 3), its columns east, north and towards it; and its
    matrix (3, 3), px counted from 0 → radians in the tangent plane. None without a solution.
    """
    values = {card.keyword: card.value for card in cards}
    types = [str(values.get(f"CTYPE{k}", "")).upper() for k in (1, 2)]
    if not (types[0].startswith("RA---TAN") and types[1].startswith("DEC--TAN")):
        return None
    linear = _linear(values)
    place = [_number(values, name) for name in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")]
    if linear is None or any(number is None for number in place):
        return None
    if abs(float(np.linalg.det(linear))) < 1e-20:
        return None
    ra, dec, *pixel = (float(number or 0.0) for number in place)
    a, d = math.radians(ra), math.radians(dec)
    axes = np.array(
        [
            [-math.sin(a), -math.sin(d) * math.cos(a), math.cos(d) * math.cos(a)],
            [math.cos(a), -math.sin(d) * math.sin(a), math.cos(d) * math.sin(a)],
            [0.0, math.cos(d), math.sin(d)],
        ]
    )
    matrix = np.eye(3)
    matrix[:2, :2] = np.radians(linear)
    matrix[:2, 2] = matrix[:2, :2] @ (1 - np.array(pixel))  # FITS counts pixels from 1
    return axes, matrix


def _linear(values: Mapping[str, object]) -> F64 | None:
    """(2, 2) °/px, from CD, or CDELT with PC or CROTA2."""
    names = [(i, j) for i in (1, 2) for j in (1, 2)]
    if any(f"CD{i}_{j}" in values for i, j in names):
        entries = [_number(values, f"CD{i}_{j}", default=0.0) for i, j in names]
        return np.array(entries, dtype=np.float64).reshape(2, 2)
    steps = [_number(values, f"CDELT{k}") for k in (1, 2)]
    if any(step is None for step in steps):
        return None
    if any(f"PC{i}_{j}" in values for i, j in names):
        entries = [_number(values, f"PC{i}_{j}", default=float(i == j)) for i, j in names]
        turned = np.array(entries, dtype=np.float64).reshape(2, 2)
        return np.asarray(np.diag(np.array(steps, dtype=np.float64)) @ turned)
    angle = math.radians(_number(values, "CROTA2", default=0.0) or 0.0)
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]]) @ np.diag(np.array(steps, dtype=np.float64))


def _number(
    values: Mapping[str, object], name: str, *, default: float | None = None
) -> float | None:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return default
    return float(value)


def _overlapping(matrix: F64, record: FrameRecord, reference: FrameRecord) -> F64 | None:
    """The matrix, where it brings the middle of the frame to within one frame of the reference."""
    size = np.array([reference.key.width, reference.key.height])
    middle = np.array([record.key.width - 1, record.key.height - 1]) / 2
    if matrix[2, :2] @ middle + matrix[2, 2] <= 0:
        return None  # on the other half of the sky
    matrix = np.asarray(matrix / matrix[2, 2], dtype=np.float64)
    there = project(matrix, middle[None])[0]
    inside = np.all((there > -size) & (there < 2 * size))
    return matrix if np.isfinite(matrix).all() and inside else None


def _apart(record: FrameRecord, reference: FrameRecord) -> bool:
    """Whether two telescopes pointed farther apart than the diagonal of the field."""
    places = (record.ra_deg, record.dec_deg, reference.ra_deg, reference.dec_deg)
    pixel, focal = record.pixel_size_um, record.focal_length_mm
    if any(number is None for number in places) or not pixel or not focal:
        return False
    ra, dec, ra_0, dec_0 = (math.radians(number or 0.0) for number in places)
    haversine = (
        math.sin((dec - dec_0) / 2) ** 2
        + math.cos(dec) * math.cos(dec_0) * math.sin((ra - ra_0) / 2) ** 2
    )
    separation = 2 * math.asin(min(math.sqrt(haversine), 1.0)) * _ARCSEC_PER_RADIAN
    scale = _ARCSEC_PER_RADIAN * 1e-3 * pixel / focal
    return separation > scale * math.hypot(record.key.width, record.key.height)


def _turned(record: FrameRecord, reference: FrameRecord) -> float | None:
    """° by which the camera was turned on the sky from the reference's frame to this one."""
    turn: float | None = None
    if record.rotator_deg is not None and reference.rotator_deg is not None:
        turn = record.rotator_deg - reference.rotator_deg
    if record.pier_side is not None and reference.pier_side is not None:
        turn = (turn or 0.0) + (180.0 if record.pier_side != reference.pier_side else 0.0)
    return turn


def small_image(image: F32, background: Background, *, factor: int) -> F32:
    """`image` (ny, nx) ADU less its background, as means of `factor`² px: (ny//f, nx//f) f32.

    Pixels that are not finite count as background.
    """
    ny, nx = (size // factor for size in image.shape)
    blocks = image[: ny * factor, : nx * factor].reshape(ny, factor, nx, factor)
    y, x = (factor * np.arange(size) + (factor - 1) / 2 for size in (ny, nx))
    level = background.at(np.tile(x, ny), np.repeat(y, nx)).reshape(ny, nx)
    means = blocks.mean(axis=(1, 3), dtype=np.float64)
    return np.asarray(np.nan_to_num(means - level), dtype=np.float32)


def phase_shift(small: F32, reference_small: F32, *, factor: int) -> Registration:
    """The shift between two images of one shape (ny, nx), background taken off, each pixel the
    mean of `factor`² px: by phase correlation (Kuglin & Hines 1975), the frame as it is and turned
    by 180°.

    The shift found is between whole images: less than half of either. `matched` is 0, `rms_px` the
    error to be expected of the peak's place. What stays with the sensor (rows and columns, hot
    pixels) correlates at no shift: rows and columns are left out, and a shift of less than one
    binned px counts only if it is found without isolated pixels too.
    Raises RegistrationError where no peak is significant; ValueError for wrong shapes.
    """
    if small.shape != reference_small.shape or small.ndim != 2 or min(small.shape) < _SMALLEST:
        raise ValueError(f"images of one shape ≥ {_SMALLEST} px are needed, not {small.shape}")
    image, target = _without_pattern(small), _without_pattern(reference_small)
    pair, turned, flipped = (image, target), (image[::-1, ::-1], target), False
    peak, other = _peak(*pair), _peak(*turned)
    if other.height > peak.height:
        pair, flipped, peak = turned, True, other
    elif peak.stands_out and np.hypot(*peak.shift) < 1.5:
        pair = (_without_isolated(image), _without_isolated(target))
        still = _peak(*pair)
        peak = still if np.hypot(*(still.shift - peak.shift)) < 1.5 else _Peak(0.0, 0.0, peak.shift)
    if not peak.stands_out:
        raise RegistrationError(
            f"phase correlation finds no shift: its highest peak is {peak.height:.1f} σ, "
            f"{_SIGNIFICANT:g} σ and {_ALONE:g} times the next are needed"
        )
    left, error = _slope(*_overlap(*pair, peak.shift))
    shift = peak.shift + left
    if not error < _WORST_PX or np.hypot(*left) > _PEAK_PX:
        raise RegistrationError("phase correlation finds no shift: its peak has no sharp place")
    matrix = np.eye(3)
    if flipped:
        matrix[:2] = [[-1, 0, factor * small.shape[1] - 1], [0, -1, factor * small.shape[0] - 1]]
    matrix[:2, 2] += factor * shift
    return Registration(matrix, 0, factor * error, "phase correlation", flipped)


def _cross(image: F64, reference: F64) -> C128:
    """(ny, nx//2 + 1) the phases between two images, as numbers of size 1; 0 where the sensor's
    rows and columns are.
    """
    cross = scipy.fft.rfft2(_tapered(reference)) * np.conj(scipy.fft.rfft2(_tapered(image)))
    size = np.abs(cross)
    cross /= np.maximum(size, max(1e-12 * float(size.max()), 1e-300))
    cross[0], cross[:, 0] = 0.0, 0.0
    return np.asarray(cross, dtype=np.complex128)


def _frequencies(shape: tuple[int, ...]) -> tuple[F64, F64]:
    """Cycles per px along x (1, nx//2 + 1) and y (ny, 1)."""
    x, y = np.fft.rfftfreq(shape[1]), np.fft.fftfreq(shape[0])
    return np.asarray(x[None, :], np.float64), np.asarray(y[:, None], np.float64)


def _peak(image: F64, reference: F64) -> _Peak:
    ny, nx = image.shape
    fx, fy = _frequencies(image.shape)
    band = np.exp(-(fx**2 + fy**2) / (2 * _BAND**2))
    found = scipy.fft.irfft2(_cross(image, reference) * band, s=image.shape)
    sigma = max(1.4826 * float(np.median(np.abs(found))), 1e-300)
    y, x = divmod(int(np.argmax(found)), nx)
    height = float(found[y, x])
    reach = np.arange(-_PEAK_PX, _PEAK_PX + 1)
    found[np.ix_((y + reach) % ny, (x + reach) % nx)] = 0.0
    half = np.array([nx // 2, ny // 2])
    shift = (np.array([x, y]) + half) % (nx, ny) - half
    return _Peak(height / sigma, float(found.max()) / sigma, shift.astype(np.float64))


def _overlap(image: F64, reference: F64, shift: F64) -> tuple[F64, F64]:
    """What both images show, with the frame shifted by whole px (x, y)."""
    (x, y), (ny, nx) = np.rint(shift).astype(int), image.shape
    here = reference[max(y, 0) : ny + min(y, 0), max(x, 0) : nx + min(x, 0)]
    return image[max(-y, 0) : ny + min(-y, 0), max(-x, 0) : nx + min(-x, 0)], here


def _slope(image: F64, reference: F64) -> tuple[F64, float]:
    """The small shift (x, y) px that the slope of the phases tells, and its error, px: least
    squares, each ring of frequencies with the weight that its coherence gives it.
    """
    phases = _cross(image, reference)
    shift = np.zeros(2)
    fx, fy = np.broadcast_arrays(*_frequencies(image.shape))
    rings = np.minimum(np.hypot(fx, fy) * 2 * _RINGS, _RINGS - 1).astype(np.intp)
    used = phases != 0
    f, ring, phase = np.stack((fx[used], fy[used])), rings[used], phases[used]
    number = np.maximum(np.bincount(ring, minlength=_RINGS), 1)
    covariance: F64 = np.full((2, 2), np.inf)
    for _ in range(_SLOPE_ROUNDS):
        left = phase * np.exp(2j * math.pi * (shift @ f))
        coherence = np.bincount(ring, left.real, _RINGS) / number
        coherence[coherence < 3 / np.sqrt(number)] = 0.0  # noise
        noise = np.bincount(ring, left.imag**2, _RINGS) / number + 1e-6
        gain = (-2 * math.pi * coherence / noise)[ring] * f
        normal = (gain * (-2 * math.pi * coherence)[ring]) @ f.T
        if np.linalg.cond(normal) > 1e12:
            break
        covariance = np.linalg.inv(normal)
        shift = shift + covariance @ (gain @ left.imag)
    return shift, math.sqrt(_WINDOWED * float(np.trace(covariance)))


def _without_pattern(image: F32) -> F64:
    """Without what single rows and columns stand out by."""
    values = np.nan_to_num(image.astype(np.float64))
    for axis in (0, 1):
        level = np.median(values, axis=axis, keepdims=True)
        values -= level - uniform_filter1d(level, 15, axis=1 - axis, mode="nearest")
    return values


def _without_isolated(image: F64) -> F64:
    """Pixels that differ from the median of their 3×3 by more than 5 σ are replaced by it."""
    level = median_filter(image, size=3)
    away = np.abs(image - level)
    return np.where(away > 5 * 1.4826 * float(np.median(away)), level, image)


def _tapered(image: F64) -> F64:
    """Outliers held back, mean 0 within a window that fades out at the borders."""
    values = image - np.median(image)
    scale = 1.4826 * float(np.median(np.abs(values)))
    if scale > 0:
        values = np.arcsinh(values / (3 * scale))
    window = np.outer(*(_window(size) for size in image.shape))
    values *= window
    return np.asarray(values - window * (values.sum() / window.sum()))


def _window(size: int) -> F64:
    """1 in the middle, a cosine's fall over `_TAPER` of either side."""
    place = (np.arange(size) + 0.5) / size
    edge = np.minimum(np.minimum(place, 1 - place) / _TAPER, 1.0)
    return np.asarray(0.5 - 0.5 * np.cos(math.pi * edge))
