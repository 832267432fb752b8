"""Lights whose file was written anew after they were stacked, or was copied with another header: a
plate solver adds its solution, a program adds a keyword. Each is one exposure and counts once.
"""

from calib_library.frame import FrameRecord
from daemon.ledger.stacks import Member
from daemon.placing import Light

_OF_THE_PIXELS = ("key", "exposure_s", "e_per_adu", "saturation_adu", "row_order")
"""What a record says of the pixels: where one differs, they are read or calibrated otherwise."""

_MEASURED = ("stars", "fwhm_px", "eccentricity", "sky_adu", "noise_adu")
"""What a light's pixels alone decide: equal to the last bit where the pixels are."""


def same_exposure(one: FrameRecord, other: FrameRecord | None) -> bool:
    """Did these two begin at the same instant, for the same time, in the same camera? A file whose
    name the camera's program has used again is another exposure.
    """
    return (
        other is not None
        and one.date_obs is not None
        and (one.date_obs, one.exposure_s, one.key.camera)
        == (other.date_obs, other.exposure_s, other.key.camera)
    )


def alike(one: FrameRecord, other: FrameRecord | None) -> bool:
    """Do two headers say the same of how pixels are to be read and calibrated?"""
    return other is not None and all(
        getattr(one, name) == getattr(other, name) for name in _OF_THE_PIXELS
    )


def same_picture(light: Light, member: Member) -> bool:
    """Is a light, calibrated and measured as this member of a stack was, that one, pixel for pixel?
    The daemon keeps no pixels: what was measured on them agrees to the last bit, or it is another.
    """
    return all(getattr(light.quality, name) == getattr(member.quality, name) for name in _MEASURED)
