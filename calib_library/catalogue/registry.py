"""Masters registered, generation after generation, with what belongs to each."""

import dataclasses
import datetime as dt
import json
from pathlib import Path

from calib_library.catalogue import agenda
from calib_library.catalogue.records import BuiltMaster
from calib_library.catalogue.rows import insert, join_key, real, set_columns, timestamp, update
from calib_library.errors import LibraryError
from calib_library.frame import FrameRecord
from calib_library.library import MASTERS_FOLDER, CalibrationLibrary
from calib_library.match import MasterRecord
from calib_library.schema import transaction


def register(
    library: CalibrationLibrary, built: BuiltMaster, now: dt.datetime, *, frames: int | None = None
) -> MasterRecord:
    """Make a written master the current one of its set; its predecessor is superseded.
    `frames` is how many are in it, where its inputs do not tell.

    Flats that had to be built without a pedestal, or with a worse one than this, become due
    again. Frames that were filed during the build leave the set due.

    Raises LibraryError where another generation was registered since the build began.
    """
    with transaction(library.db):
        group = library.set(built.set_id)
        if built.generation != next_generation(library, group.id):
            raise LibraryError(
                f"{built.path.name} is out of date: another master of its set has been "
                "registered since its build began."
            )
        [(master_id,)] = library.db.execute("SELECT coalesce(max(id), 0) + 1 FROM master")
        if group.master:
            update(library.db, "master", group.master.id, {"superseded_by": master_id})
        insert(
            library.db,
            "master",
            {
                "id": master_id,
                "set_id": group.id,
                "generation": int(built.generation),
                "frame_type": group.frame_type.value,
                "key": join_key(group.key, group.row_order),
                "camera": group.key.camera,
                "width": group.key.width,
                "height": group.key.height,
                "exposure_s": real(built.exposure_s),
                "temperature_c": real(built.temperature_c),
                "filter": group.filter,
                "session": group.session,
                "telescope": group.telescope,
                "focal_length_mm": group.focal_length_mm,
                "rotator_deg": group.rotator_deg,
                "flat_light": group.flat_light,
                "frames": built.frames if frames is None else frames,
                "date_obs": timestamp(built.date_obs) if built.date_obs else None,
                "path": built.path.as_posix(),
                "sha256": built.sha256,
                "subtracted": built.subtracted,
                "built_at": timestamp(now),
                "version": built.version,
                "notes": json.dumps(built.notes, ensure_ascii=False),
            },
        )
        library.db.conn.executemany(
            "INSERT INTO master_input (master, frame, left_out, subtracted)"
            " SELECT ?, id, ?, ? FROM calibration_frame WHERE sha256 = ?",
            [
                (
                    master_id,
                    entry.left_out,
                    None if entry.left_out else entry.subtracted or built.subtracted,
                    entry.sha256,
                )
                for entry in built.inputs
            ],
        )
        update(library.db, "calibration_set", group.id, {"accepted": 0})
        agenda.compare_with_master(library, group.id, master_id)
        master = library.master(master_id)
        agenda.reopen_flats(library, master)
    return master


def register_import(
    library: CalibrationLibrary,
    record: FrameRecord,
    built: BuiltMaster,
    *,
    source: str,
    session: str,
    now: dt.datetime,
) -> MasterRecord:
    """Make a master that was made elsewhere one of the library's: `built` without inputs, its
    file written, its `set_id` of no meaning; `record` is what it is for, `source` its file.

    Raises LibraryError where it is in the library already.
    """
    with transaction(library.db):
        if library.db.execute(
            "SELECT 1 FROM master WHERE path = ?", [built.path.as_posix()]
        ).fetchone():
            raise LibraryError(f"{source} is in the library already, as {built.path.name}.")
        set_id = insert(
            library.db,
            "calibration_set",
            {
                **set_columns(record, session),
                "temperature_c": real(record.temperature_c),
                "date_obs": timestamp(record.date_obs) if record.date_obs else None,
                "last_filed_at": timestamp(now),
                "imported": source,
            },
        )
        return register(
            library,
            dataclasses.replace(built, set_id=set_id, generation=1),
            now,
            frames=max(1, record.stack_count),
        )


def next_generation(library: CalibrationLibrary, set_id: int) -> int:
    """Return the generation that the next master of this set will have."""
    row = library.db.execute(
        "SELECT coalesce(max(generation), 0) + 1 FROM master WHERE set_id = ?", [set_id]
    ).fetchone()
    return int(row[0])


def keep_telegraph(
    library: CalibrationLibrary, master_id: int, *, pixels: bytes, found: int, frames: int
) -> None:
    """Keep the telegraph pixels (`defects.pack_pixels`) that a dark's frames showed.

    Joins the caller's transaction: that which registers the master, so that what a master
    does to a light never changes.
    """
    with transaction(library.db):
        row = {"master": master_id, "frames": frames, "found": found, "pixels": pixels}
        insert(library.db, "telegraph", row)


def telegraph(library: CalibrationLibrary, master_id: int) -> bytes | None:
    """Return what `keep_telegraph` kept with this master; None for one of too few frames."""
    row = library.db.execute(
        "SELECT pixels FROM telegraph WHERE master = ?", [master_id]
    ).fetchone()
    return bytes(row[0]) if row else None


def orphans(library: CalibrationLibrary) -> list[Path]:
    """Return master files that no row speaks of: left by a crash between writing and commit.

    Empty while the library has no master at all: the database may have been lost, and then
    the files are all there is.
    """
    known = {name for (name,) in library.db.execute("SELECT path FROM master")}
    if not known:
        return []
    files = sorted((library.root / MASTERS_FOLDER).glob("Master*.fits"))
    return [path for path in files if path.relative_to(library.root).as_posix() not in known]
