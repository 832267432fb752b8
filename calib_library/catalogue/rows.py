"""The rows of the library's tables ↔ records, and the statements that all its modules share."""

import dataclasses
import datetime as dt
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sqlite_utils import Database

from calib_library.catalogue.records import CalibrationSet, FiledFrame
from calib_library.frame import CalibrationKey, FrameRecord, FrameType
from calib_library.match import MasterRecord
from calib_library.schema import transaction

UNSEEN = b"(not seen since the database was lost)"
_SETS_WHERE = "SELECT id FROM calibration_set WHERE"


def select(
    db: Database,
    table: str,
    where: str,
    arguments: Sequence[Any] | Mapping[str, Any] = (),
    *,
    order_by: str | None = None,
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table that fulfil a condition."""
    # All of it this package's own fragments. `rows_where` would look for the table first each time.
    query = f"SELECT * FROM {table} WHERE {where}"  # noqa: S608
    query += f" ORDER BY {order_by}" if order_by else ""
    query += f" LIMIT {limit}" if limit else ""
    return db.query(query, dict(arguments) if isinstance(arguments, Mapping) else list(arguments))


def insert(db: Database, table: str, values: Mapping[str, Any]) -> int:
    """Insert a row and return its id. Joins the caller's transaction."""
    row_id = db.table(table).insert(dict(values)).last_pk
    assert isinstance(row_id, int)
    return row_id


def update(db: Database, table: str, row_id: int, values: Mapping[str, Any]) -> None:
    """Change some columns of a row; a transaction, or part of the caller's."""
    with transaction(db):
        db.table(table).update(row_id, dict(values))


def sets_where(db: Database, where: str, arguments: Sequence[Any] = ()) -> list[CalibrationSet]:
    """Return the sets that fulfil a condition, each with its current master."""
    masters = {
        row["set_id"]: master_of(row)
        for row in select(
            db,
            "master",
            # `where` is always one of this package's own fragments.
            f"superseded_by IS NULL AND set_id IN ({_SETS_WHERE} {where})",
            arguments,
        )
    }
    rows = select(db, "calibration_set", where, arguments, order_by="id")
    return [set_of(row, masters.get(row["id"])) for row in rows]


def frame_of(row: Mapping[str, Any]) -> FiledFrame:
    """Return the frame of a row of `calibration_frame`."""
    return FiledFrame(
        id=row["id"],
        sha256=row["sha256"],
        path=Path(os.fsdecode(row["path"])),
        version=None if row["size"] is None else (row["size"], row["mtime_ns"]),
        set_id=row["set_id"],
        record=FrameRecord.from_json(row["record"]),
        filed_at=moment(row["filed_at"]),
    )


def set_of(row: Mapping[str, Any], master: MasterRecord | None) -> CalibrationSet:
    """Return the set of a row of `calibration_set`, with its current master."""
    key, row_order = split_key(row["key"])
    return CalibrationSet(
        id=row["id"],
        frame_type=FrameType(row["frame_type"]),
        key=key,
        row_order=row_order,
        exposure_s=row["exposure_s"],
        temperature_c=row["temperature_c"],
        date_obs=None if row["date_obs"] is None else moment(row["date_obs"]),
        filter=row["filter"],
        session=row["session"],
        telescope=row["telescope"],
        focal_length_mm=row["focal_length_mm"],
        rotator_deg=row["rotator_deg"],
        flat_light=row["flat_light"],
        n_frames=row["frames"],
        last_filed_at=moment(row["last_filed_at"]),
        accepted=bool(row["accepted"]),
        changed=bool(row["changed"]),
        refused=row["refused"],
        master=master,
    )


def master_of(row: Mapping[str, Any]) -> MasterRecord:
    """Return the master of a row of `master`."""
    key, row_order = split_key(row["key"])
    return MasterRecord(
        id=row["id"],
        set_id=row["set_id"],
        generation=row["generation"],
        frame_type=FrameType(row["frame_type"]),
        key=key,
        row_order=row_order,
        exposure_s=row["exposure_s"],
        temperature_c=row["temperature_c"],
        filter=row["filter"],
        session=row["session"],
        telescope=row["telescope"],
        focal_length_mm=row["focal_length_mm"],
        rotator_deg=row["rotator_deg"],
        flat_light=row["flat_light"],
        frames=row["frames"],
        date_obs=None if row["date_obs"] is None else moment(row["date_obs"]),
        path=PurePosixPath(row["path"]),
        sha256=row["sha256"],
        subtracted=row["subtracted"],
        built_at=moment(row["built_at"]),
        superseded_by=row["superseded_by"],
        version=row["version"],
        notes=tuple(json.loads(row["notes"])),
    )


def set_columns(record: FrameRecord, session: str) -> dict[str, Any]:
    """Return the columns in which frames of a set agree; only flats have optics and a night."""
    flat = record.frame_type is FrameType.FLAT
    return {
        "frame_type": str(record.frame_type),
        "key": key_text(record),
        "camera": record.key.camera,
        "width": int(record.key.width),
        "height": int(record.key.height),
        "exposure_s": real(record.exposure_s),
        "filter": record.filter if flat else None,
        "session": session if flat else "",
        "telescope": record.telescope if flat else None,
        "focal_length_mm": real(record.focal_length_mm) if flat else None,
        "rotator_deg": real(record.rotator_deg) if flat else None,
        "flat_light": record.flat_light if flat else None,
    }


def key_text(record: FrameRecord) -> str:
    """Return a frame's key and row order as `join_key` writes them."""
    return join_key(record.key, record.row_order)


@functools.lru_cache(maxsize=4096)
def join_key(key: CalibrationKey, row_order: str) -> str:
    """Return a key and a row order as one JSON line: equal where and only where they are equal."""
    fields = dataclasses.asdict(key) | {"row_order": row_order}
    # 100 and 100.0 are one gain.
    fields |= {name: real(fields[name]) for name in ("gain", "offset")}
    fields |= {name: int(fields[name]) for name in ("width", "height", "xbinning", "ybinning")}
    return json.dumps(fields, ensure_ascii=False, allow_nan=False)


@functools.lru_cache(maxsize=4096)
def split_key(text: str) -> tuple[CalibrationKey, str]:
    """Return the key and the row order that `join_key` wrote."""
    fields = json.loads(text)
    row_order = fields.pop("row_order")
    return CalibrationKey(**fields), row_order


def real(value: float | None) -> float | None:
    """Return a plain number for SQL; what is not finite is missing."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def timestamp(moment: dt.datetime) -> float:
    """Return a moment as the tables have it: seconds since 1970-01-01 UTC."""
    return moment.timestamp()


def moment(seconds: float) -> dt.datetime:
    """Return what `timestamp` made a number of, in UTC."""
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC)
