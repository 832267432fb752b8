"""What the library keeps, as frozen records: filed frames, their sets, what a build hands over."""

import dataclasses
import datetime as dt
import math
from pathlib import Path, PurePosixPath

from calib_library.frame import CalibrationKey, FrameRecord, FrameType
from calib_library.match import MasterRecord


@dataclasses.dataclass(frozen=True, slots=True)
class FiledFrame:
    """One calibration frame of the library."""

    id: int
    sha256: str
    """Of the file, hexadecimal."""
    path: Path
    """Where the file was last seen."""
    version: tuple[int, int] | None
    """Size (bytes) and mtime_ns of the file when it was hashed; None where they are not known."""
    set_id: int
    record: FrameRecord
    filed_at: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Frames that belong together: one master is made of them."""

    id: int
    frame_type: FrameType
    key: CalibrationKey
    row_order: str
    exposure_s: float | None
    """Of the first frame; the others are within 1 % or 1 ms, but those of flats, which may all
    differ (twilight)."""
    temperature_c: float | None
    """°C, mean of the frames."""
    date_obs: dt.datetime | None
    """Mean start of the frames, UTC."""
    filter: str | None
    session: str
    telescope: str | None
    focal_length_mm: float | None
    rotator_deg: float | None
    flat_light: str | None
    """`sky`, `dome`, or None where nothing says it."""
    n_frames: int
    """Frames that a master may use."""
    last_filed_at: dt.datetime
    accepted: bool
    """A person has said that its next master may be unlike the one before."""
    changed: bool
    """The current master was not made of exactly these frames."""
    refused: str | None
    """Why the last build of these frames failed; it rests until a frame joins, or for RETRY_S."""
    master: MasterRecord | None
    """The current one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """One frame that a build looked at."""

    sha256: str
    left_out: str | None
    """Why the build did without it; None where it is in the master."""
    subtracted: int | None = None
    """The master (id) that was subtracted from it, where that differs from the others'."""


@dataclasses.dataclass(frozen=True, slots=True)
class BuiltMaster:
    """A master whose file is written and which is not registered yet."""

    set_id: int
    generation: int
    path: PurePosixPath
    """Relative to the library's folder."""
    sha256: str
    exposure_s: float | None
    temperature_c: float | None
    date_obs: dt.datetime | None
    inputs: tuple[Input, ...]
    subtracted: int | None
    version: str
    notes: tuple[str, ...]

    @property
    def frames(self) -> int:
        """How many frames are in it."""
        return sum(entry.left_out is None for entry in self.inputs)


def grouping_distance(frame_type: FrameType, a_c: float | None, b_c: float | None) -> float:
    """°C that count between a set and a frame; missing is infinitely far from a temperature."""
    if frame_type is FrameType.FLAT or (a_c is None and b_c is None):
        return 0.0
    return math.inf if a_c is None or b_c is None else abs(a_c - b_c)
