"""Masters registered again whose rows were lost with the database."""

from collections.abc import Sequence

from calib_library.catalogue import agenda
from calib_library.catalogue.rows import UNSEEN, insert, real, set_columns, sets_where, timestamp
from calib_library.errors import LibraryError
from calib_library.library import CalibrationLibrary
from calib_library.restore import FoundMaster
from calib_library.schema import transaction


def register_again(library: CalibrationLibrary, found: Sequence[FoundMaster]) -> int:
    """Register masters again whose rows were lost with the database, by what their headers say;
    returns how many. Into a library without sets only.

    Their frames become rows that know the beginning of the frame's hash and no path; filing
    such a frame again completes its row.
    """
    with transaction(library.db):
        if library.sets():
            raise LibraryError("Masters are restored into an empty library only.")
        newest = {(one.set_id, one.generation): one for one in _by_age(found)}
        for one in sorted(newest.values(), key=lambda one: (one.set_id, one.generation)):
            _register_again(library, one)
        for one in newest.values():
            library.db.execute(
                "UPDATE master SET subtracted = (SELECT id FROM master WHERE"
                " substr(sha256, 1, 16) = ?) WHERE path = ?",
                [one.subtracted, str(one.path)],
            )
    return len(newest)


def _register_again(library: CalibrationLibrary, one: FoundMaster) -> None:
    """Register one master, the newest so far of its set."""
    identity = set_columns(one.record, one.session)
    built = timestamp(one.built_at)
    if not sets_where(library.db, "id = ?", [one.set_id]):
        insert(
            library.db, "calibration_set", {"id": one.set_id, **identity, "last_filed_at": built}
        )
    [(master_id,)] = library.db.execute("SELECT coalesce(max(id), 0) + 1 FROM master")
    library.db.execute(
        "UPDATE master SET superseded_by = ? WHERE set_id = ? AND superseded_by IS NULL",
        [master_id, one.set_id],
    )
    insert(
        library.db,
        "master",
        {
            **identity,
            "id": master_id,
            "set_id": one.set_id,
            "generation": one.generation,
            "temperature_c": real(one.record.temperature_c),
            "frames": len(one.inputs),
            "date_obs": timestamp(one.date_obs) if one.date_obs else None,
            "path": str(one.path),
            "sha256": one.sha256,
            "built_at": built,
            "version": one.version,
            "notes": "[]",
        },
    )
    for sha256 in one.inputs:
        known = library.frame(sha256)
        frame_id = (
            known.id
            if known
            else insert(
                library.db,
                "calibration_frame",
                {
                    "sha256": sha256,
                    "path": UNSEEN,
                    "set_id": one.set_id,
                    "record": one.record.to_json(),
                    "temperature_c": real(one.record.temperature_c),
                    "date_obs": timestamp(one.date_obs) if one.date_obs else None,
                    "filed_at": built,
                },
            )
        )
        library.db.execute(
            "INSERT INTO master_input (master, frame) VALUES (?, ?)", [master_id, frame_id]
        )
    agenda.recount(library, one.set_id)
    library.db.execute(
        "UPDATE calibration_set SET temperature_c = ? WHERE id = ?",
        [real(one.record.temperature_c), one.set_id],
    )


def _by_age(found: Sequence[FoundMaster]) -> list[FoundMaster]:
    return sorted(found, key=lambda one: one.built_at)
