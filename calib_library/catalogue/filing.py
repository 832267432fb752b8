"""Frames filed in sets of their like."""

import datetime as dt
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calib_library import match, schema
from calib_library.catalogue import agenda
from calib_library.catalogue.records import FiledFrame, grouping_distance
from calib_library.catalogue.rows import insert, real, select, set_columns, timestamp, update
from calib_library.errors import LibraryError
from calib_library.frame import FrameRecord, FrameType
from calib_library.library import CalibrationLibrary
from calib_library.schema import transaction

BIAS_GROUPING_C = 5.0
"""Biases this close in temperature are one set, °C."""
SET_SPAN_DAYS = 60.0
"""Darks, flat-darks and biases further from a set's mean date begin a new set: they age."""
_KNOWN_DIGITS = 16
"""Digits of a frame's SHA-256 in a master's header."""


def file_frame(
    library: CalibrationLibrary,
    record: FrameRecord,
    *,
    sha256: str,
    path: Path,
    session: str,
    now: dt.datetime,
    version: tuple[int, int] | None = None,
) -> int:
    """File one raw calibration frame; return the id of the set it belongs to.

    The frame joins the nearest set of its kind, key, exposure (flats: of any, since twilight's
    differ), filter, optics, light (sky or dome) and `session` (a flat's night; ignored
    otherwise) whose mean temperature is within the tolerance, or begins a new one; so does a
    dark or a bias that is SET_SPAN_DAYS from the set's mean date. Filing the same bytes again
    changes nothing, except that the path is renewed where the old one is gone. `version` is the
    (size, mtime_ns) that the file had when it was hashed: as long as it has them it need not be
    hashed again.

    Raises LibraryError for a light, a master or a frame that is already calibrated.
    """
    reason = _unfit(record)
    if reason:
        raise LibraryError(f"{path.name} cannot be filed: {reason}.")
    size, mtime_ns = version or (None, None)
    place = {"path": os.fsencode(path), "size": size, "mtime_ns": mtime_ns}
    with transaction(library.db):
        known = library.frame(sha256) or _seen_again(library, record, sha256, path, now)
        if known:
            if known.path == path or not known.path.exists():
                update(library.db, "calibration_frame", known.id, place)
            return known.set_id
        identity = set_columns(record, session)
        set_id = _set_for(library, identity, record.temperature_c, record.date_obs)
        if set_id is None:
            set_id = insert(
                library.db, "calibration_set", {**identity, "last_filed_at": timestamp(now)}
            )
        insert(
            library.db,
            "calibration_frame",
            {
                "sha256": sha256,
                **place,
                "set_id": set_id,
                "record": record.to_json(),
                "temperature_c": real(record.temperature_c),
                "date_obs": timestamp(record.date_obs) if record.date_obs else None,
                "filed_at": timestamp(now),
            },
        )
        agenda.recount(library, set_id)
    return set_id


def _seen_again(
    library: CalibrationLibrary, record: FrameRecord, sha256: str, path: Path, now: dt.datetime
) -> FiledFrame | None:
    """Complete the row of a frame of which a restored master told only the hash's beginning."""
    known = library.frame(sha256[:_KNOWN_DIGITS])
    if known is None:
        return None
    update(
        library.db,
        "calibration_frame",
        known.id,
        {
            "sha256": sha256,
            "path": os.fsencode(path),
            "record": record.to_json(),
            "temperature_c": real(record.temperature_c),
            "date_obs": timestamp(record.date_obs) if record.date_obs else None,
            "filed_at": timestamp(now),
        },
    )
    agenda.recount(library, known.set_id)
    return library.frame(sha256)


def _set_for(
    library: CalibrationLibrary,
    identity: Mapping[str, Any],
    temperature_c: float | None,
    taken: dt.datetime | None,
) -> int | None:
    """Return the nearest set that such a frame may join."""
    frame_type = FrameType(identity["frame_type"])
    rows = select(
        library.db,
        "calibration_set",
        "key = :key AND frame_type = :frame_type AND filter IS :filter AND session = :session"
        " AND flat_light IS :flat_light AND imported IS NULL"
        # Somewhat wider than the rule itself, which decides below.
        " AND (frame_type = 'flat' OR exposure_s IS :exposure_s"
        " OR abs(exposure_s - :exposure_s) <= 0.0011 + 0.02 * :exposure_s)",
        identity,
    )
    fitting = []
    for row in rows:
        distance = grouping_distance(frame_type, row["temperature_c"], temperature_c)
        tolerance = (
            BIAS_GROUPING_C if frame_type is FrameType.BIAS else library.temperature_tolerance_c
        )
        exposures = row["exposure_s"], identity["exposure_s"]
        if (
            (frame_type is FrameType.FLAT or match.same_exposure(*exposures))
            and _same_setup(row, identity)
            and distance <= tolerance
            and _same_season(frame_type, row["date_obs"], taken)
        ):
            fitting.append((not match.same_exposure(*exposures), distance, row["id"]))
    return min(fitting)[2] if fitting else None


def _unfit(record: FrameRecord) -> str | None:
    """Return why a frame must not be filed as a raw calibration frame."""
    if record.frame_type not in schema.CALIBRATION_TYPES:
        return f"it is {'of no known type' if record.frame_type is None else 'a light'}"
    if record.is_master or record.stack_count > 1:
        return "it is a master already, not one raw frame"
    if record.calibrated:
        return f"it has been calibrated before (CALSTAT {record.calibrated})"
    if record.planes != 1:
        return "it is a colour image, not a raw frame"
    return None


def _same_setup(row: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether a flat was taken through the optics of a set; unknown joins only unknown."""
    columns = ("telescope", "focal_length_mm", "rotator_deg")
    if any((row[column] is None) != (identity[column] is None) for column in columns):
        return False
    telescope, focal, rotator = ((row[column], identity[column]) for column in columns)
    return all(match.same_optics(telescope, focal, rotator))


def _same_season(frame_type: FrameType, mean: float | None, taken: dt.datetime | None) -> bool:
    """Whether a frame is near enough in time to a set; flats are, by their session."""
    if frame_type is FrameType.FLAT or mean is None or taken is None:
        return True
    return abs(timestamp(taken) - mean) <= 86400.0 * SET_SPAN_DAYS
