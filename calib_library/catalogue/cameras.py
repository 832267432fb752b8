"""What was measured of the cameras, and which of them is to be measured."""

from collections.abc import Mapping
from typing import Any

from calib_library.catalogue.rows import (
    UNSEEN,
    insert,
    join_key,
    master_of,
    moment,
    real,
    select,
    split_key,
    timestamp,
)
from calib_library.frame import CalibrationKey
from calib_library.library import CalibrationLibrary
from calib_library.match import MasterRecord
from calib_library.schema import transaction
from calib_library.sensor_record import Measured, SensorRecord


def unmeasured(library: CalibrationLibrary) -> tuple[CalibrationKey, str] | None:
    """Return the key and row order of a camera whose flats and biases (or flat-darks) are at
    hand, of which a master was built, or a master's frame seen again, since it was last
    measured.
    """
    # Where the database was lost, masters stand before their frames are seen again.
    row = library.db.execute(
        "SELECT master.key FROM master"
        " JOIN master_input AS input ON input.master = master.id AND input.left_out IS NULL"
        " JOIN calibration_frame AS frame ON frame.id = input.frame"
        " WHERE superseded_by IS NULL AND frame.path != ? GROUP BY master.key"
        " HAVING sum(frame_type = 'flat') AND sum(frame_type IN ('bias', 'flat-dark'))"
        " AND max(max(built_at, filed_at)) > coalesce("
        "  (SELECT max(measured_at) FROM sensor WHERE sensor.key = master.key), 0)"
        " LIMIT 1",
        [UNSEEN],
    ).fetchone()
    return split_key(row[0]) if row else None


def masters_of(
    library: CalibrationLibrary, key: CalibrationKey, row_order: str
) -> list[MasterRecord]:
    """Return the masters in use of one camera setting, newest first."""
    rows = select(
        library.db,
        "master",
        "superseded_by IS NULL AND key = ?",
        [join_key(key, row_order)],
        order_by="built_at DESC, id DESC",
    )
    return [master_of(row) for row in rows]


def keys_of(
    library: CalibrationLibrary, camera: str | None, width: int, height: int
) -> frozenset[tuple[CalibrationKey, str]]:
    """Return the keys, with the order of rows, under which frames of a camera and size have been
    filed.
    """
    rows = select(
        library.db,
        "calibration_set",
        "camera IS ? AND width = ? AND height = ? AND imported IS NULL",
        [camera, width, height],
    )
    return frozenset(split_key(row["key"]) for row in rows)


def add_sensor(library: CalibrationLibrary, measured: SensorRecord) -> None:
    """Keep one measurement of a camera; earlier ones stay."""
    found = measured.sensor
    with transaction(library.db):
        insert(
            library.db,
            "sensor",
            {
                "key": join_key(measured.key, measured.row_order),
                "camera": measured.key.camera,
                "gain_setting": real(measured.key.gain),
                "readout_mode": measured.key.readout_mode,
                "measured_at": timestamp(measured.measured_at),
                "gain": real(found.gain.value) if found else None,
                "gain_error": real(found.gain.error) if found else None,
                "read_noise": real(found.read_noise.value) if found else None,
                "read_noise_error": real(found.read_noise.error) if found else None,
                "details": measured.details(),
            },
        )


def sensor(library: CalibrationLibrary, key: CalibrationKey, row_order: str) -> SensorRecord | None:
    """Return what was measured last of one camera setting, where it could be measured."""
    rows = select(
        library.db,
        "sensor",
        "id = (SELECT id FROM sensor WHERE key = ? AND gain IS NOT NULL"
        " ORDER BY measured_at DESC, id DESC LIMIT 1)",
        [join_key(key, row_order)],
    )
    return next(map(_sensor, rows), None)


def sensors(
    library: CalibrationLibrary, key: CalibrationKey | None = None, row_order: str = "TOP-DOWN"
) -> list[SensorRecord]:
    """Return what was measured of one camera setting (None: of all), the newest first."""
    rows = select(
        library.db,
        "sensor",
        "1" if key is None else "key = ?",
        [] if key is None else [join_key(key, row_order)],
        order_by="measured_at DESC, id DESC",
    )
    return [_sensor(row) for row in rows]


def gain(library: CalibrationLibrary, key: CalibrationKey, row_order: str) -> Measured | None:
    """Return the gain, e-/ADU, that was measured last of one camera setting."""
    row = library.db.execute(
        "SELECT gain, gain_error FROM sensor WHERE key = ? AND gain IS NOT NULL"
        " ORDER BY measured_at DESC, id DESC LIMIT 1",
        [join_key(key, row_order)],
    ).fetchone()
    return Measured(*row) if row else None


def _sensor(row: Mapping[str, Any]) -> SensorRecord:
    key, row_order = split_key(row["key"])
    return SensorRecord.restore(
        row["details"], key=key, row_order=row_order, measured_at=moment(row["measured_at"])
    )
