"""The stacked lights of the last nights, from which the advice on calibration is given."""

import dataclasses
import json

import sqlite_utils

from calib_library.frame import FrameRecord

MOST = 5000
"""Lights that are looked at: more would not change the advice."""


@dataclasses.dataclass(frozen=True, slots=True)
class UsedLight:
    """One light of a stack."""

    record: FrameRecord
    target: str
    sky_adu: float
    """ADU, of the calibrated light."""
    noise_adu: float
    """ADU, of one of its background pixels."""
    corners: tuple[float, float, float, float]
    """Reference px (x, y) of two opposite corners: lights with the same ones were not dithered."""
    keeps_pedestal: bool
    """Neither dark nor bias was subtracted: the camera's offset is in `sky_adu`."""


def used(db: sqlite_utils.Database, *, nights: int) -> list[UsedLight]:
    """Return the stacked lights of the last `nights` nights that have some, newest first."""
    rows = db.query(
        """
        SELECT record, target, stack_frame.quality AS quality, matrix, masters
        FROM frame JOIN stack_frame ON frame_id = frame.id
        WHERE state = 'stacked' AND frame_type = 'light' AND night IN (
            SELECT DISTINCT night FROM frame WHERE state = 'stacked' AND frame_type = 'light'
            ORDER BY night DESC LIMIT ?)
        ORDER BY date_obs DESC LIMIT ?
        """,
        [nights, MOST],
    )
    return [
        _light(row["record"], row["target"] or "", row["quality"], row["matrix"], row["masters"])
        for row in rows
    ]


def _light(
    record_text: str, target: str, quality_text: str, matrix_text: str, masters_text: str
) -> UsedLight:
    record = FrameRecord.from_json(record_text)
    masters = json.loads(masters_text)
    overscan = record.key.sections is not None
    keeps = masters.get("dark") is None and masters.get("bias") is None and not overscan
    quality = json.loads(quality_text)
    (a, b, x), (c, d, y), (e, f, g) = json.loads(matrix_text)
    nx, ny = record.key.width, record.key.height
    far = e * nx + f * ny + g
    corners = (x / g, y / g, (a * nx + b * ny + x) / far, (c * nx + d * ny + y) / far)
    return UsedLight(record, target, quality["sky_adu"], quality["noise_adu"], corners, keeps)
