"""Lights whose file was written anew after they were stacked, or was copied with another header: a
plate solver adds its solution, a program adds a keyword. Each is one exposure and counts once.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from calib_library.frame import FrameRecord
from daemon.ledger.ledger import Frame
from daemon.light import sums

_OF_THE_PIXELS = ("key", "exposure_s", "e_per_adu", "saturation_adu", "row_order")
"""What a record says of the pixels: where one differs, they are read or calibrated otherwise."""


def mark_of(pixels: npt.NDArray[np.generic]) -> str:
    """By what an image (ny, nx) of any type is known again: 16 digits, the same for the same pixels
    alone.

    The sums of its rows and of its columns, as whole numbers modulo 2^64, are hashed: that goes at
    the speed of memory, and no pixel changes, moves or is mirrored without one of them.
    """
    stored = np.ascontiguousarray(pixels).view(np.uint8)
    words = stored.view(np.uint64 if stored.shape[1] % 8 == 0 else np.uint8)
    rows, columns = sums.of_rows_and_columns(words)
    return hashlib.sha256(columns.tobytes() + rows.tobytes()).hexdigest()[:16]


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


def same_picture(mark: str, record: FrameRecord, stacked: Frame) -> bool:
    """Is a light the one that is in a stack already, pixel for pixel, to be calibrated alike?"""
    other = stacked.record
    return (
        mark == stacked.pixels
        and other is not None
        and all(getattr(record, name) == getattr(other, name) for name in _OF_THE_PIXELS)
    )
