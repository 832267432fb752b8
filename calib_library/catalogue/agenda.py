"""Which sets want a master built, which rest, and which will soon give one."""

import dataclasses
import datetime as dt
import json
from pathlib import PurePosixPath

from calib_library import dark_model, match
from calib_library.catalogue import candidates
from calib_library.catalogue.records import CalibrationSet, grouping_distance
from calib_library.catalogue.rows import join_key, key_text, sets_where, timestamp, update
from calib_library.frame import FrameRecord, FrameType
from calib_library.library import CalibrationLibrary
from calib_library.match import MasterRecord
from calib_library.schema import transaction

RETRY_S = 6 * 3600.0
"""A build that failed is tried again after this, s: the disk may have been away."""
BUILD_ORDER = (FrameType.BIAS, FrameType.FLAT_DARK, FrameType.DARK, FrameType.FLAT)
"""What a flat needs is built before it."""


def due_sets(
    library: CalibrationLibrary, now: dt.datetime, *, min_frames: int, quiet_s: float
) -> list[CalibrationSet]:
    """Return the sets to build now, in the order to build them: a flat's bias before the flat.

    Due is a set of at least `min_frames` that are not those of its current master, to which
    nothing was added for `quiet_s`, and whose build has not failed since (or long ago).
    """
    found = sets_where(
        library.db,
        "changed AND frames >= ? AND last_filed_at <= ? AND (refused IS NULL OR refused_at <= ?)",
        [int(min_frames), timestamp(now) - float(quiet_s), timestamp(now) - RETRY_S],
    )
    return sorted(found, key=lambda group: (BUILD_ORDER.index(group.frame_type), group.id))


def pending(
    library: CalibrationLibrary,
    record: FrameRecord,
    kind: FrameType,
    *,
    session: str | None,
    now: dt.datetime,
    min_frames: int,
    quiet_s: float,
) -> CalibrationSet | None:
    """Return the set that will soon give this frame a master of `kind`, if there is one.

    Soon: it has enough frames and is not built yet; or it has too few but the last one came
    within `quiet_s` of `now`, so that more may follow. Ask when `best` chose nothing: a frame
    that waits for such a set is calibrated once instead of twice.
    """
    kinds = match.serving(kind, record.frame_type)
    groups = sets_where(
        library.db,
        "key = ? AND frame_type IN (SELECT value FROM json_each(?)) AND refused IS NULL"
        " AND frames > 0 AND (frames >= ? OR last_filed_at > ?)"
        " AND NOT EXISTS (SELECT 1 FROM master WHERE set_id = calibration_set.id)",
        [
            key_text(record),
            json.dumps(kinds),
            int(min_frames),
            timestamp(now) - float(quiet_s),
        ],
    )
    best = match.rank(
        record,
        [_prospect(group) for group in groups],
        kind=kind,
        temperature_tolerance_c=library.temperature_tolerance_c,
        session=session,
        ageing=library.ageing,
    ).chosen
    return next((group for group in groups if best and group.id == best.set_id), None)


def build_failed(
    library: CalibrationLibrary, set_id: int, reason: str, now: dt.datetime | None = None
) -> None:
    """Remember why a set could not be built: it rests until its frames change.

    With `now` it is tried again after RETRY_S: for a fault that may pass.
    """
    values = {"refused": reason, "refused_at": timestamp(now) if now else None}
    update(library.db, "calibration_set", set_id, values)


def rebuild_due(library: CalibrationLibrary, set_id: int) -> None:
    """Have the master of a set built again from its frames: its file is gone."""
    update(library.db, "calibration_set", set_id, {"changed": 1, "refused": None})


def accept(library: CalibrationLibrary, set_id: int) -> None:
    """Let the next master of a set be unlike its predecessor: it is due again."""
    with transaction(library.db):
        library.set(set_id)
        update(
            library.db,
            "calibration_set",
            set_id,
            {"accepted": 1, "refused": None, "refused_at": None},
        )


def recount(library: CalibrationLibrary, set_id: int) -> None:
    """Bring a set's own columns up to date with its frames."""
    library.db.execute(
        "UPDATE calibration_set SET refused = NULL, refused_at = NULL,"
        " (frames, temperature_c, date_obs) ="
        " (SELECT count(*), avg(temperature_c), avg(date_obs) FROM calibration_frame"
        "  WHERE set_id = :set),"
        " last_filed_at ="
        " (SELECT max(filed_at) FROM calibration_frame WHERE set_id = :set)"
        " WHERE id = :set",
        {"set": set_id},
    )
    row = library.db.execute(
        "SELECT id FROM master WHERE set_id = ? AND superseded_by IS NULL", [set_id]
    ).fetchone()
    compare_with_master(library, set_id, row[0] if row else None)


def compare_with_master(library: CalibrationLibrary, set_id: int, master_id: int | None) -> None:
    """Note whether the set has frames that its master's build did not look at."""
    library.db.execute(
        "UPDATE calibration_set SET changed = EXISTS"
        " (SELECT 1 FROM calibration_frame AS frame"
        "  LEFT JOIN master_input AS input ON input.master = :master AND input.frame = frame.id"
        "  WHERE frame.set_id = :set AND input.frame IS NULL)"
        " WHERE id = :set",
        {"set": set_id, "master": master_id},
    )


def reopen_flats(library: CalibrationLibrary, pedestal: MasterRecord) -> None:
    """Make due the flats of this camera that would rather have had this master subtracted."""
    if pedestal.frame_type is FrameType.FLAT:
        return
    key = join_key(pedestal.key, pedestal.row_order)
    # Those that were refused for want of a pedestal are tried again.
    library.db.execute(
        "UPDATE calibration_set SET refused = NULL, refused_at = NULL"
        " WHERE frame_type = 'flat' AND key = ? AND refused IS NOT NULL",
        [key],
    )
    for group in sets_where(library.db, "frame_type = 'flat' AND NOT changed AND key = ?", [key]):
        if group.master and _would_rather(library, group, group.master, pedestal):
            update(library.db, "calibration_set", group.id, {"changed": 1})


def _would_rather(
    library: CalibrationLibrary, group: CalibrationSet, master: MasterRecord, pedestal: MasterRecord
) -> bool:
    """Whether a flat of this master had nothing subtracted, or something worse than this."""
    kinds = match.serving(FrameType.FLAT_DARK, FrameType.FLAT)
    used = dict(
        library.db.execute(
            "SELECT frame, subtracted FROM master_input WHERE master = ? AND left_out IS NULL",
            [master.id],
        )
    )
    seen: set[tuple[float | None, int | None]] = set()
    for frame, _ in library.inputs_of(master.id):
        case = (frame.record.exposure_s, used.get(frame.id))
        if frame.id not in used or case in seen:
            continue
        seen.add(case)
        typical = dataclasses.replace(
            frame.record, frame_type=group.frame_type, temperature_c=group.temperature_c
        )
        present = None if used[frame.id] is None else library.master(used[frame.id])
        rank: float = len(kinds) if present is None else kinds.index(present.frame_type)
        bias = kinds.index(FrameType.BIAS)
        if rank < bias and present and _was_made(library, typical, present):
            rank = bias - 0.5
        fits = match.rank(
            typical,
            [pedestal],
            kind=FrameType.FLAT_DARK,
            temperature_tolerance_c=library.temperature_tolerance_c,
            session=group.session,
            ageing=library.ageing,
        ).chosen
        if fits and kinds.index(pedestal.frame_type) < rank:
            return True
        if (
            rank >= bias
            and pedestal.frame_type is not FrameType.BIAS
            and dark_model.for_flat(
                candidates.darks(library, typical, flat_darks=True),
                typical,
                nearest_within_c=library.temperature_tolerance_c,
            )
        ):
            return True
    return False


def _was_made(library: CalibrationLibrary, flat: FrameRecord, present: MasterRecord) -> bool:
    """Whether a dark that was subtracted from a flat was one of several: it is not its own."""
    return not match.same_exposure(flat.exposure_s, present.exposure_s) or (
        grouping_distance(present.frame_type, flat.temperature_c, present.temperature_c)
        > library.temperature_tolerance_c
    )


def _prospect(group: CalibrationSet) -> MasterRecord:
    """Return the master that a set would give now, for `match.rank` to judge."""
    return MasterRecord(
        id=group.id,
        set_id=group.id,
        generation=1,
        frame_type=group.frame_type,
        key=group.key,
        row_order=group.row_order,
        exposure_s=group.exposure_s,
        temperature_c=group.temperature_c,
        filter=group.filter,
        session=group.session,
        telescope=group.telescope,
        focal_length_mm=group.focal_length_mm,
        rotator_deg=group.rotator_deg,
        flat_light=group.flat_light,
        frames=group.n_frames,
        date_obs=group.date_obs,
        path=PurePosixPath(f"set {group.id}"),
        sha256="",
        subtracted=None,
        built_at=group.last_filed_at,
        superseded_by=None,
        version="",
        notes=(),
    )
