"""Where a light belongs in its stack, and with which numbers it is added: arrays and records in,
records out.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from calib_library.frame import FrameRecord
from daemon.calibration import Calibration
from daemon.errors import FrameRejectedError
from daemon.ledger.stacks import Member, Photometry, Reference
from daemon.light import background, debayer, distortion, fallback, quality, register, stars
from daemon.stack.live import FrameTerms

Image = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]
Plane = tuple[float, float, float]

SMALL_PX = 512
"""What is kept of a reference's image, for frames whose stars tell nothing."""

REFERENCE_MIN_STARS = 10
"""A frame with fewer stars never becomes what others register to."""


@dataclasses.dataclass(frozen=True, slots=True)
class Light:
    """One calibrated and measured light."""

    image: Image
    """(ny, nx) ADU, of a colour camera still a mosaic."""
    mask: npt.NDArray[np.uint8]
    """(ny, nx): 1 bad, 2 saturated."""
    pattern: str | None
    """Of the mosaic, `RGGB`…; None: monochrome."""
    stars: stars.StarList
    cells: Image
    """(planes, cy, cx) ADU, `background.cell_means` of each plane."""
    quality: quality.Quality
    calibration: Calibration
    cleaned: bool


class NotAdmittedError(FrameRejectedError):
    """The light is registered, but too poor for its stack; with more frames the judgement may be
    another.
    """

    def __init__(self, reason: str, measured: quality.Quality) -> None:
        super().__init__(reason)
        self.quality = measured


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A light's place in its stack."""

    member: Member
    registration: register.Registration
    begun: Photometry | None
    """Set where the light is the first of its stack: the others are matched to it."""
    reference: Reference | None
    """Set where the light is the first of its target: the others register to it."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Brightness:
    """What brings a frame to the brightness of the first frame of its stack."""

    transparency: float
    """Star flux over the first frame's, exposures not divided out."""
    planes: tuple[Plane, ...]


def place(
    frame_id: int,
    light: Light,
    record: FrameRecord,
    *,
    photometry: Photometry | None,
    members: Sequence[Member],
    reference: Reference | None,
    no_light: str | None = None,
    forced: bool = False,
) -> Place:
    """Register a light and find the numbers it is added with.

    `members` are the frames of its stack so far, `photometry` that of the first of them. `no_light`
    tells why the frame is none (a closed cover, a flat), where it is none. With
    `forced` a person has admitted it: its quality is not judged. Raises FrameRejectedError with
    the reason where it does not belong into the stack.
    """
    if no_light and not forced:
        raise FrameRejectedError(no_light)
    if reference is None and light.quality.stars < REFERENCE_MIN_STARS:
        raise FrameRejectedError(f"only {light.quality.stars} stars, too few to begin a stack with")
    begins = None
    if reference is None:
        begins = reference = Reference(frame_id, light.stars, small_of(light), record)
    first = photometry if members else None
    exposures = _exposure_ratio(record, first)
    try:
        registration = _register(light, record, reference)
        matched = _match_brightness(light, registration, first, expected=exposures)
    except register.RegistrationError as error:
        raise FrameRejectedError(f"cannot be registered: {error}") from error
    t = matched.transparency
    measured = dataclasses.replace(
        light.quality,
        residual_px=registration.rms_px,
        # The air's transparency: a shorter exposure is not a cloud.
        transparency=None if first is None else t / exposures,
        weight=quality.weight(t, light.quality.noise_adu, light.quality.fwhm_px),
    )
    if first is not None and not forced:
        admitted, reason = quality.admit(measured, [member.quality for member in members])
        if not admitted:
            raise NotAdmittedError(reason, measured)
    terms = FrameTerms(
        index=1 + max((member.terms.index for member in members), default=-1),
        weight=measured.weight,
        scale=1.0 / t,
        planes=matched.planes,
        sigma_adu=measured.noise_adu / t,
        e_per_adu=(record.e_per_adu or 1.0) * t,
        sky_adu=measured.sky_adu,
        fwhm_px=measured.fwhm_px,
    )
    member = Member(
        frame_id=frame_id,
        exposure_s=record.exposure_s,
        matrix=registration.matrix,
        distortion=registration.distortion,
        terms=terms,
        quality=measured,
        masters=light.calibration.ids(),
        flags=(*light.calibration.flags, *(("cosmics cleaned",) if light.cleaned else ())),
    )
    begun = None
    if first is None:
        begun = Photometry(
            stars=light.stars,
            cells=light.cells,
            matrix=registration.matrix,
            distortion=registration.distortion,
            quality=measured,
            exposure_s=record.exposure_s,
        )
    return Place(member, registration, begun, begins)


def small_of(light: Light) -> Image:
    """A light binned to at most `SMALL_PX` across, (ny, nx) ADU, its background taken off."""
    luminance = light.image
    if light.pattern is not None:
        grid = light.cells.shape[1:]
        luminance, _ = debayer.luminance(light.image, light.pattern, grid=(grid[0], grid[1]))
    factor = _binning(light)
    return fallback.small_image(luminance, background.measure_background(luminance), factor=factor)


def _binning(light: Light) -> int:
    longest: int = max(light.image.shape)
    return math.ceil(max(longest, SMALL_PX) / SMALL_PX)


def _register(light: Light, record: FrameRecord, reference: Reference) -> register.Registration:
    """By the stars; where they fail, by the whole image, a shift only."""
    hint = fallback.wcs_guess(record, reference.record) if reference.record else None
    shape = light.image.shape
    try:
        return register.register(
            light.stars, reference.stars, shape=(shape[0], shape[1]), hint=hint
        )
    except register.RegistrationError:
        if reference.small is None:
            raise
        return fallback.phase_shift(small_of(light), reference.small, factor=_binning(light))


def _match_brightness(
    light: Light,
    registration: register.Registration,
    first: Photometry | None,
    *,
    expected: float,
) -> _Brightness:
    """`expected` is the transparency where no star tells it."""
    if first is None:
        return _Brightness(1.0, ((0.0, 0.0, 0.0),) * len(light.cells))
    try:
        # Both lists in reference px: distortions are out of the way.
        t = quality.transparency(
            _on_reference(light.stars, registration.matrix, registration.distortion),
            _on_reference(first.stars, first.matrix, first.distortion),
            np.eye(3),
        )
    except register.RegistrationError:
        if registration.method != "phase correlation":
            raise
        t = expected
    inverse = np.linalg.inv(first.matrix)
    to_first = inverse @ registration.matrix
    planes = tuple(
        moved_plane(
            quality.background_plane(cells, first_cells, to_first, 1.0 / t, light.image.shape),
            inverse,
        )
        for cells, first_cells in zip(light.cells, first.cells, strict=True)
    )
    return _Brightness(t, planes)


def _on_reference(found: stars.StarList, matrix: Matrix, bend: Matrix | None) -> stars.StarList:
    """A frame's stars with their places in reference px."""
    there = distortion.to_reference(matrix, bend, found.xy)
    inside: npt.NDArray[np.bool_] = np.asarray(np.isfinite(there).all(axis=1))
    return dataclasses.replace(found.take(inside), x=there[inside, 0], y=there[inside, 1])


def _exposure_ratio(record: FrameRecord, first: Photometry | None) -> float:
    """This frame's exposure over the first one's; 1 where one of them is not known."""
    if first is None or not first.exposure_s or not record.exposure_s:
        return 1.0
    return record.exposure_s / first.exposure_s


def moved_plane(
    plane: tuple[float, float, float], matrix: npt.NDArray[np.floating]
) -> tuple[float, float, float]:
    """The plane a + bx·x + by·y (ADU) of coordinates that `matrix` (affine, 3×3) leads to, as a
    plane of the coordinates it comes from.
    """
    a, bx, by = plane
    return (
        float(a + bx * matrix[0, 2] + by * matrix[1, 2]),
        float(bx * matrix[0, 0] + by * matrix[1, 0]),
        float(bx * matrix[0, 1] + by * matrix[1, 1]),
    )
