"""Records of frames and masters for tests, every field with a plausible default."""

import dataclasses
import datetime as dt
from pathlib import PurePosixPath
from typing import Any

from calib_library.frame import CalibrationKey, FrameRecord, FrameType
from calib_library.match import MasterRecord

NIGHT = dt.datetime(2026, 11, 20, 22, 0, tzinfo=dt.UTC)

KEY = CalibrationKey(
    camera="ZWO ASI2600MM Pro",
    width=64,
    height=48,
    xbinning=1,
    ybinning=1,
    gain=100.0,
    offset=50.0,
    readout_mode=None,
    sections=None,
    storage="uint16",
    bayer_pattern=None,
)


def key(**fields: Any) -> CalibrationKey:
    return dataclasses.replace(KEY, **fields)


def record(frame_type: FrameType | None, **fields: Any) -> FrameRecord:
    defaults: dict[str, Any] = {
        "key": KEY,
        "planes": 1,
        "exposure_s": 300.0,
        "temperature_c": -10.0,
        "set_temperature_c": None,
        "filter": None,
        "filter_name": None,
        "row_order": "TOP-DOWN",
        "e_per_adu": None,
        "saturation_adu": None,
        "pixel_size_um": None,
        "focal_length_mm": None,
        "telescope": None,
        "object_name": None,
        "ra_deg": None,
        "dec_deg": None,
        "rotator_deg": None,
        "pier_side": None,
        "date_obs": NIGHT,
        "program": None,
        "stack_count": 1,
        "is_master": False,
        "calibrated": "",
        "sources": {},
    }
    return FrameRecord(frame_type=frame_type, **(defaults | fields))


def master(number: int, frame_type: FrameType, **fields: Any) -> MasterRecord:
    defaults: dict[str, Any] = {
        "set_id": number,
        "generation": 1,
        "key": KEY,
        "row_order": "TOP-DOWN",
        "exposure_s": 300.0,
        "temperature_c": -10.0,
        "filter": None,
        "session": "",
        "telescope": None,
        "focal_length_mm": None,
        "rotator_deg": None,
        "frames": 20,
        "date_obs": NIGHT,
        "path": PurePosixPath(f"masters/Master{number}.fits"),
        "sha256": "",
        "subtracted": None,
        "built_at": NIGHT,
        "superseded_by": None,
        "version": "",
        "notes": (),
    }
    return MasterRecord(id=number, frame_type=frame_type, **(defaults | fields))
