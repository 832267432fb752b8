"""The calibration library: frames filed in sets, masters built of them, both found by their key.

The only SQL of this package. Every method that writes is one transaction, or part of the caller's.
A frame's file stays where it is; the library remembers its path and its hash.
"""

import dataclasses
import datetime as dt
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Self

from sqlite_utils import Database

from calib_library import dark_model, match, schema
from calib_library.ageing import USUAL, Ageing
from calib_library.errors import LibraryError
from calib_library.frame import CalibrationKey, FrameRecord, FrameType
from calib_library.match import MasterRecord, Match
from calib_library.schema import transaction
from calib_library.sensor_record import Measured, SensorRecord

if TYPE_CHECKING:
    from calib_library.restore import FoundMaster

BIAS_GROUPING_C = 5.0
"""Biases this close in temperature are one set, °C."""
SET_SPAN_DAYS = 60.0
"""Darks, flat-darks and biases further from a set's mean date begin a new set: they age."""
RETRY_S = 6 * 3600.0
"""A build that failed is tried again after this, s: the disk may have been away."""
MASTERS_FOLDER = "masters"
"""Inside the library's folder."""
_KNOWN_DIGITS = 16
"""Digits of a frame's SHA-256 in a master's header."""
_UNSEEN = b"(not seen since the database was lost)"
BUILD_ORDER = (FrameType.BIAS, FrameType.FLAT_DARK, FrameType.DARK, FrameType.FLAT)
"""What a flat needs is built before it."""

# How many masters of each sort `candidates` returns: enough to choose from, and to explain by.
_FITTING, _NEAR, _FAR = 24, 8, 4
_DARKS = 96  # from which a dark is combined


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
    excluded: str | None
    """Why no master may use it; None for a good frame."""


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


Scope = Literal["target", "frame"]
"""What a choice by hand is for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A master that a person chose, against the rules or beside them."""

    master: MasterRecord
    scope: Scope
    chosen_at: dt.datetime


class CalibrationLibrary:
    """The frames and masters of one library folder, through one open connection."""

    def __init__(
        self,
        db: Database,
        root: Path,
        *,
        temperature_tolerance_c: float = 1.0,
        ageing: Ageing = USUAL,
    ) -> None:
        """Use a connection whose tables exist (`schema.apply`); it belongs to the calling thread.

        `temperature_tolerance_c`: darks this far (°C) from a set's mean belong to the set.
        `ageing`: masters that are too old are refused.
        """
        self.db = db
        self.root = root
        self.temperature_tolerance_c = temperature_tolerance_c
        self.ageing = ageing

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        readonly: bool = False,
        temperature_tolerance_c: float = 1.0,
        ageing: Ageing = USUAL,
    ) -> Self:
        """Open the library in a folder, for a notebook or a script; use it in a `with`.

        Raises LibraryError where there is none to read.
        """
        db = schema.connect(root / schema.DATABASE_NAME, readonly=readonly)
        try:
            if readonly:
                schema.require(db, root)
            else:
                schema.apply(db)
        except BaseException:
            db.close()
            raise
        return cls(db, root, temperature_tolerance_c=temperature_tolerance_c, ageing=ageing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.db.close()

    # --- frames and sets -------------------------------------------------------------------------

    def file_frame(
        self,
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
        with transaction(self.db):
            known = self.frame(sha256) or self._seen_again(record, sha256, path, now)
            if known:
                if known.path == path or not known.path.exists():
                    self._update("calibration_frame", known.id, place)
                return known.set_id
            identity = _identity(record, session)
            set_id = self._set_for(identity, record.temperature_c, record.date_obs)
            if set_id is None:
                set_id = self._insert(
                    "calibration_set", {**identity, "last_filed_at": _seconds(now)}
                )
            self._insert(
                "calibration_frame",
                {
                    "sha256": sha256,
                    **place,
                    "set_id": set_id,
                    "record": record.to_json(),
                    "temperature_c": _real(record.temperature_c),
                    "date_obs": _seconds(record.date_obs) if record.date_obs else None,
                    "filed_at": _seconds(now),
                },
            )
            self._recount(set_id)
        return set_id

    def exclude(self, sha256: str, reason: str | None) -> None:
        """Keep a frame out of every master from now on, or (None) let it in again.

        Its set is due for a new master. Raises LibraryError where no such frame is filed.
        """
        with transaction(self.db):
            frame = self.frame(sha256)
            if frame is None:
                raise LibraryError(f"No calibration frame with the hash {sha256[:12]}… is filed.")
            self._update("calibration_frame", frame.id, {"excluded": reason})
            self._recount(frame.set_id)

    def frame(self, sha256: str) -> FiledFrame | None:
        """Return the filed frame with these bytes."""
        rows = self._rows("calibration_frame", "sha256 = ?", [sha256])
        return next(map(_frame, rows), None)

    def frames_of(self, set_id: int) -> list[FiledFrame]:
        """Return the frames that a master of this set may use, in the order they were taken."""
        rows = self._rows(
            "calibration_frame",
            "set_id = ? AND excluded IS NULL",
            [set_id],
            order_by="date_obs, sha256",
        )
        return [_frame(row) for row in rows]

    def excluded_of(self, set_id: int) -> list[FiledFrame]:
        """Return the frames of this set that are kept out, each with its reason."""
        rows = self._rows(
            "calibration_frame",
            "set_id = ? AND excluded IS NOT NULL",
            [set_id],
            order_by="date_obs, sha256",
        )
        return [_frame(row) for row in rows]

    def sets(self) -> list[CalibrationSet]:
        """Return every set, with its current master."""
        return self._sets("1")

    def set(self, set_id: int) -> CalibrationSet:
        """Return one set. Raises LibraryError where there is none of this number."""
        found = self._sets("id = ?", [set_id])
        if not found:
            raise LibraryError(f"There is no calibration set {set_id}.")
        return found[0]

    def due_sets(
        self, now: dt.datetime, *, min_frames: int, quiet_s: float
    ) -> list[CalibrationSet]:
        """Return the sets to build now, in the order to build them: a flat's bias before the flat.

        Due is a set of at least `min_frames` that are not those of its current master, to which
        nothing was added for `quiet_s`, and whose build has not failed since (or long ago).
        """
        found = self._sets(
            "changed AND frames >= ? AND last_filed_at <= ?"
            " AND (refused IS NULL OR refused_at <= ?)",
            [int(min_frames), _seconds(now) - float(quiet_s), _seconds(now) - RETRY_S],
        )
        return sorted(found, key=lambda group: (BUILD_ORDER.index(group.frame_type), group.id))

    def pending(
        self,
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
        within `quiet_s` of `now`, so that more may follow. Ask when `rank` chose nothing: a frame
        that waits for such a set is calibrated once instead of twice.
        """
        kinds = match.serving(kind, record.frame_type)
        groups = self._sets(
            "key = ? AND frame_type IN (SELECT value FROM json_each(?)) AND refused IS NULL"
            " AND frames > 0 AND (frames >= ? OR last_filed_at > ?)"
            " AND NOT EXISTS (SELECT 1 FROM master WHERE set_id = calibration_set.id)",
            [
                _key_text(record),
                json.dumps(kinds),
                int(min_frames),
                _seconds(now) - float(quiet_s),
            ],
        )
        best = match.rank(
            record,
            [_prospect(group) for group in groups],
            kind=kind,
            temperature_tolerance_c=self.temperature_tolerance_c,
            session=session,
            ageing=self.ageing,
        ).chosen
        return next((group for group in groups if best and group.id == best.set_id), None)

    def build_failed(self, set_id: int, reason: str, now: dt.datetime | None = None) -> None:
        """Remember why a set could not be built: it rests until its frames change.

        With `now` it is tried again after RETRY_S: for a fault that may pass.
        """
        values = {"refused": reason, "refused_at": _seconds(now) if now else None}
        self._update("calibration_set", set_id, values)

    def rebuild_due(self, set_id: int) -> None:
        """Have the master of a set built again from its frames: its file is gone."""
        self._update("calibration_set", set_id, {"changed": 1, "refused": None})

    # --- masters ---------------------------------------------------------------------------------

    def restore(self, found: Sequence["FoundMaster"]) -> int:
        """Register masters again whose rows were lost with the database, by what their headers say;
        returns how many. Into a library without sets only.

        Their frames become rows that know the beginning of the frame's hash and no path; filing
        such a frame again completes its row.
        """
        with transaction(self.db):
            if self.sets():
                raise LibraryError("Masters are restored into an empty library only.")
            newest = {(one.set_id, one.generation): one for one in _by_age(found)}
            for one in sorted(newest.values(), key=lambda one: (one.set_id, one.generation)):
                self._restore(one)
            for one in newest.values():
                self.db.execute(
                    "UPDATE master SET subtracted = (SELECT id FROM master WHERE"
                    " substr(sha256, 1, 16) = ?) WHERE path = ?",
                    [one.subtracted, str(one.path)],
                )
        return len(newest)

    def _restore(self, one: "FoundMaster") -> None:
        """Register one master, the newest so far of its set."""
        identity = _identity(one.record, one.session)
        built = _seconds(one.built_at)
        if not self._sets("id = ?", [one.set_id]):
            self._insert("calibration_set", {"id": one.set_id, **identity, "last_filed_at": built})
        [(master_id,)] = self.db.execute("SELECT coalesce(max(id), 0) + 1 FROM master")
        self.db.execute(
            "UPDATE master SET superseded_by = ? WHERE set_id = ? AND superseded_by IS NULL",
            [master_id, one.set_id],
        )
        self._insert(
            "master",
            {
                **identity,
                "id": master_id,
                "set_id": one.set_id,
                "generation": one.generation,
                "temperature_c": _real(one.record.temperature_c),
                "frames": len(one.inputs),
                "date_obs": _seconds(one.date_obs) if one.date_obs else None,
                "path": str(one.path),
                "sha256": one.sha256,
                "built_at": built,
                "version": one.version,
                "notes": "[]",
            },
        )
        for sha256 in one.inputs:
            known = self.frame(sha256)
            frame_id = (
                known.id
                if known
                else self._insert(
                    "calibration_frame",
                    {
                        "sha256": sha256,
                        "path": _UNSEEN,
                        "set_id": one.set_id,
                        "record": one.record.to_json(),
                        "temperature_c": _real(one.record.temperature_c),
                        "date_obs": _seconds(one.date_obs) if one.date_obs else None,
                        "filed_at": built,
                    },
                )
            )
            self.db.execute(
                "INSERT INTO master_input (master, frame) VALUES (?, ?)", [master_id, frame_id]
            )
        self._recount(one.set_id)
        self.db.execute(
            "UPDATE calibration_set SET temperature_c = ? WHERE id = ?",
            [_real(one.record.temperature_c), one.set_id],
        )

    def _seen_again(
        self, record: FrameRecord, sha256: str, path: Path, now: dt.datetime
    ) -> FiledFrame | None:
        """Complete the row of a frame of which a restored master told only the hash's beginning."""
        known = self.frame(sha256[:_KNOWN_DIGITS])
        if known is None:
            return None
        self._update(
            "calibration_frame",
            known.id,
            {
                "sha256": sha256,
                "path": os.fsencode(path),
                "record": record.to_json(),
                "temperature_c": _real(record.temperature_c),
                "date_obs": _seconds(record.date_obs) if record.date_obs else None,
                "filed_at": _seconds(now),
            },
        )
        self._recount(known.set_id)
        return self.frame(sha256)

    def next_generation(self, set_id: int) -> int:
        """Return the generation that the next master of this set will have."""
        row = self.db.execute(
            "SELECT coalesce(max(generation), 0) + 1 FROM master WHERE set_id = ?", [set_id]
        ).fetchone()
        return int(row[0])

    def register(
        self, built: BuiltMaster, now: dt.datetime, *, frames: int | None = None
    ) -> MasterRecord:
        """Make a written master the current one of its set; its predecessor is superseded.
        `frames` is how many are in it, where its inputs do not tell.

        Flats that had to be built without a pedestal, or with a worse one than this, become due
        again. Frames that were filed during the build leave the set due.

        Raises LibraryError where another generation was registered since the build began.
        """
        with transaction(self.db):
            group = self.set(built.set_id)
            if built.generation != self.next_generation(group.id):
                raise LibraryError(
                    f"{built.path.name} is out of date: another master of its set has been "
                    "registered since its build began."
                )
            [(master_id,)] = self.db.execute("SELECT coalesce(max(id), 0) + 1 FROM master")
            if group.master:
                self._update("master", group.master.id, {"superseded_by": master_id})
            self._insert(
                "master",
                {
                    "id": master_id,
                    "set_id": group.id,
                    "generation": int(built.generation),
                    "frame_type": group.frame_type.value,
                    "key": _join_key(group.key, group.row_order),
                    "camera": group.key.camera,
                    "width": group.key.width,
                    "height": group.key.height,
                    "exposure_s": _real(built.exposure_s),
                    "temperature_c": _real(built.temperature_c),
                    "filter": group.filter,
                    "session": group.session,
                    "telescope": group.telescope,
                    "focal_length_mm": group.focal_length_mm,
                    "rotator_deg": group.rotator_deg,
                    "flat_light": group.flat_light,
                    "frames": built.frames if frames is None else frames,
                    "date_obs": _seconds(built.date_obs) if built.date_obs else None,
                    "path": built.path.as_posix(),
                    "sha256": built.sha256,
                    "subtracted": built.subtracted,
                    "built_at": _seconds(now),
                    "version": built.version,
                    "notes": json.dumps(built.notes, ensure_ascii=False),
                },
            )
            self.db.conn.executemany(
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
            self._update("calibration_set", group.id, {"accepted": 0})
            self._compare_with_master(group.id, master_id)
            master = self.master(master_id)
            self._reopen_flats(master)
        return master

    def register_import(
        self,
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
        with transaction(self.db):
            if self.db.execute(
                "SELECT 1 FROM master WHERE path = ?", [built.path.as_posix()]
            ).fetchone():
                raise LibraryError(f"{source} is in the library already, as {built.path.name}.")
            set_id = self._insert(
                "calibration_set",
                {
                    **_identity(record, session),
                    "temperature_c": _real(record.temperature_c),
                    "date_obs": _seconds(record.date_obs) if record.date_obs else None,
                    "last_filed_at": _seconds(now),
                    "imported": source,
                },
            )
            return self.register(
                dataclasses.replace(built, set_id=set_id, generation=1),
                now,
                frames=max(1, record.stack_count),
            )

    def keys_of(
        self, camera: str | None, width: int, height: int
    ) -> frozenset[tuple[CalibrationKey, str]]:
        """Return the keys, with the order of rows, under which frames of a camera and size have
        been filed.
        """
        rows = self._rows(
            "calibration_set",
            "camera IS ? AND width = ? AND height = ? AND imported IS NULL",
            [camera, width, height],
        )
        return frozenset(_split_key(row["key"]) for row in rows)

    def master(self, master_id: int) -> MasterRecord:
        """Return one master, current or not. Raises LibraryError where there is none."""
        for row in self._rows("master", "id = ?", [master_id]):
            return _master(row)
        raise LibraryError(f"There is no master {master_id}.")

    def masters(self, *, current: bool = True) -> list[MasterRecord]:
        """Return the masters in use, or all generations."""
        rows = self._rows("master", "superseded_by IS NULL" if current else "1", order_by="id")
        return [_master(row) for row in rows]

    def inputs_of(self, master_id: int) -> list[tuple[FiledFrame, str | None]]:
        """Return the frames that a master's build looked at; with the reason where left out."""
        reasons = dict(
            self.db.execute(
                "SELECT frame, left_out FROM master_input WHERE master = ?", [master_id]
            )
        )
        rows = self._rows(
            "calibration_frame",
            "id IN (SELECT frame FROM master_input WHERE master = ?)",
            [master_id],
            order_by="date_obs, sha256",
        )
        return [(frame, reasons[frame.id]) for frame in map(_frame, rows)]

    def candidates(
        self,
        record: FrameRecord,
        kind: FrameType,
        *,
        session: str | None = None,
        flat_light: str | None = None,
    ) -> list[MasterRecord]:
        """Return the current masters from which `match.rank` chooses `kind` for this frame;
        with `flat_light` (sky, dome) only flats of that light.

        All that could be chosen are among them, and a few near misses of every sort (another
        exposure, another gain, another camera), so that a refusal can be explained. Their number
        is bounded: asking costs milliseconds however large the library is.
        """
        found: dict[int, MasterRecord] = {}
        only = "" if flat_light is None else " AND flat_light = :flat_light"
        for serving in match.serving(kind, record.frame_type):
            queries = _FLAT_QUERIES if serving is FrameType.FLAT else _dark_queries(record, serving)
            for where, order_by, limit in (*queries, *_FAR_QUERIES):
                rows = self._rows(
                    "master",
                    f"superseded_by IS NULL AND frame_type = :kind{only} AND {where}",
                    {
                        **_terms(record, serving, session, self.ageing),
                        "flat_light": flat_light,
                    },
                    order_by=order_by,
                    limit=limit,
                )
                found.update((row["id"], _master(row)) for row in rows if row["id"] not in found)
        return list(found.values())

    def match(
        self,
        record: FrameRecord,
        kind: FrameType,
        *,
        session: str | None,
        flat_light: str | None = None,
    ) -> Match:
        """Choose the master of `kind` for this frame: `candidates`, then `match.rank`."""
        return match.rank(
            record,
            self.candidates(record, kind, session=session, flat_light=flat_light),
            kind=kind,
            temperature_tolerance_c=self.temperature_tolerance_c,
            session=session,
            ageing=self.ageing,
        )

    def darks(self, record: FrameRecord, *, flat_darks: bool = False) -> list[MasterRecord]:
        """Return the current darks that fit this frame but for exposure and temperature, the
        nearest in temperature first: what `dark_model.plan` combines. Their number is bounded.

        `flat_darks`: these too, for a flat.
        """
        kinds = "('dark', 'flat-dark')" if flat_darks else "('dark')"
        rows = self._rows(
            "master",
            f"superseded_by IS NULL AND frame_type IN {kinds} AND key = :key"
            " AND exposure_s IS NOT NULL AND temperature_c IS NOT NULL",
            {"key": _key_text(record), "temperature": _real(record.temperature_c)},
            order_by="abs(temperature_c - :temperature), frames DESC, id DESC",
            limit=_DARKS,
        )
        found = []
        for master in map(_master, rows):
            there = dataclasses.replace(
                record, exposure_s=master.exposure_s, temperature_c=master.temperature_c
            )
            if match.rank(
                there,
                [master],
                kind=FrameType.FLAT_DARK if flat_darks else FrameType.DARK,
                temperature_tolerance_c=0.0,
                session=None,
                ageing=self.ageing,
            ).chosen:
                found.append(master)
        return found

    def pedestal_for(self, group: CalibrationSet) -> Match:
        """Choose what is subtracted from the first flat of a set: flat-dark, dark or bias."""
        return self.match(self._typical(group), FrameType.FLAT_DARK, session=group.session)

    def pedestals(
        self, group: CalibrationSet, frames: Sequence[FiledFrame]
    ) -> dict[str, MasterRecord]:
        """Choose what is subtracted from each of these frames, by its hash: for flats the flat-dark
        or the dark of the frame's own exposure, or the bias; for other frames nothing.
        """
        if group.frame_type is not FrameType.FLAT:
            return {}
        chosen: dict[float | None, MasterRecord | None] = {}
        for frame in frames:
            exposure = frame.record.exposure_s
            if exposure not in chosen:
                typical = dataclasses.replace(
                    frame.record, frame_type=group.frame_type, temperature_c=group.temperature_c
                )
                found = self.match(typical, FrameType.FLAT_DARK, session=group.session)
                chosen[exposure] = found.chosen
        return {
            frame.sha256: master
            for frame in frames
            if (master := chosen[frame.record.exposure_s]) is not None
        }

    def predecessor(self, group: CalibrationSet) -> MasterRecord | None:
        """Return the master that a new one of this set is compared with: the set's present one, or
        the best of another set that would serve the same frames. None where a person has accepted
        that the camera is another now.
        """
        if group.accepted:
            return None
        if group.master:
            return group.master
        typical = self._typical(group)
        others = [
            master
            for master in self.candidates(typical, group.frame_type, session=group.session)
            if master.frame_type is group.frame_type and master.flat_light == group.flat_light
        ]
        return match.rank(
            typical,
            others,
            kind=group.frame_type,
            temperature_tolerance_c=self.temperature_tolerance_c,
            session=group.session,
        ).chosen

    # --- chosen by hand --------------------------------------------------------------------------

    def use(
        self, master_id: int, kind: FrameType, *, scope: Scope, subject: str, now: dt.datetime
    ) -> None:
        """Use this master as `kind` (bias, dark or flat) for a target, or for one frame (its hash),
        whatever the rules say. Raises LibraryError where there is no such master.
        """
        with transaction(self.db):
            self.master(master_id)
            self.unuse(kind, scope=scope, subject=subject)
            self.db.table("master_choice").insert(
                {
                    "kind": kind.value,
                    "scope": scope,
                    "subject": subject,
                    "master": master_id,
                    "chosen_at": _seconds(now),
                }
            )

    def unuse(self, kind: FrameType | None, *, scope: Scope, subject: str) -> int:
        """Go back to the rules for a target or a frame, for one kind or for all; return how many
        choices there were.
        """
        forced = 0
        with transaction(self.db):
            if kind in {None, FrameType.DARK}:
                forced = self.db.execute(
                    "DELETE FROM forced_dark WHERE scope = ? AND subject = ?", [scope, subject]
                ).rowcount
            cursor = self.db.execute(
                "DELETE FROM master_choice"
                " WHERE scope = ? AND subject = ? AND (? IS NULL OR kind = ?)",
                [scope, subject, kind and kind.value, kind and kind.value],
            )
        return int(cursor.rowcount + forced)

    def force_dark(self, *, scope: Scope, subject: str, now: dt.datetime) -> None:
        """Let the dark of a target, or of one frame (its hash), be extrapolated farther than the
        rules do (`dark_model.FORCED_C`); a dark chosen for it by hand is given up.
        """
        with transaction(self.db):
            self.unuse(FrameType.DARK, scope=scope, subject=subject)
            self.db.table("forced_dark").insert(
                {"scope": scope, "subject": subject, "chosen_at": _seconds(now)}
            )

    def is_dark_forced(self, *, target: str | None, sha256: str | None) -> bool:
        """Whether a person wants the dark of this frame extrapolated."""
        rows = self.db.execute(
            "SELECT 1 FROM forced_dark WHERE (scope = 'target' AND subject = ?)"
            " OR (scope = 'frame' AND subject = ?)",
            [target, sha256],
        )
        return rows.fetchone() is not None

    def by_hand(self, *, target: str | None, sha256: str | None) -> dict[FrameType, Choice]:
        """Return the masters chosen by hand for a frame; its own go before its target's."""
        rows = self.db.query(
            "SELECT * FROM master_choice WHERE (scope = 'target' AND subject = :target)"
            " OR (scope = 'frame' AND subject = :sha256) ORDER BY scope DESC",
            {"target": target, "sha256": sha256},
        )
        return {
            FrameType(row["kind"]): Choice(
                self.master(row["master"]), row["scope"], _when(row["chosen_at"])
            )
            for row in rows
        }

    def accept(self, set_id: int) -> None:
        """Let the next master of a set be unlike its predecessor: it is due again."""
        with transaction(self.db):
            self.set(set_id)
            self._update(
                "calibration_set",
                set_id,
                {"accepted": 1, "refused": None, "refused_at": None},
            )

    def keep_telegraph(self, master_id: int, *, pixels: bytes, found: int, frames: int) -> None:
        """Keep the telegraph pixels (`defects.pack_pixels`) that a dark's frames showed.

        Joins the caller's transaction: that which registers the master, so that what a master
        does to a light never changes.
        """
        with transaction(self.db):
            row = {"master": master_id, "frames": frames, "found": found, "pixels": pixels}
            self._insert("telegraph", row)

    def telegraph(self, master_id: int) -> bytes | None:
        """Return what `keep_telegraph` kept with this master; None for one of too few frames."""
        row = self.db.execute(
            "SELECT pixels FROM telegraph WHERE master = ?", [master_id]
        ).fetchone()
        return bytes(row[0]) if row else None

    # --- cameras ---------------------------------------------------------------------------------

    def unmeasured(self) -> tuple[CalibrationKey, str] | None:
        """Return the key and row order of a camera whose flats and biases (or flat-darks) are at
        hand, of which a master was built, or a master's frame seen again, since it was last
        measured.
        """
        # Where the database was lost, masters stand before their frames are seen again.
        row = self.db.execute(
            "SELECT master.key FROM master"
            " JOIN master_input AS input ON input.master = master.id AND input.left_out IS NULL"
            " JOIN calibration_frame AS frame ON frame.id = input.frame"
            " WHERE superseded_by IS NULL AND frame.path != ? GROUP BY master.key"
            " HAVING sum(frame_type = 'flat') AND sum(frame_type IN ('bias', 'flat-dark'))"
            " AND max(max(built_at, filed_at)) > coalesce("
            "  (SELECT max(measured_at) FROM sensor WHERE sensor.key = master.key), 0)"
            " LIMIT 1",
            [_UNSEEN],
        ).fetchone()
        return _split_key(row[0]) if row else None

    def masters_of(self, key: CalibrationKey, row_order: str) -> list[MasterRecord]:
        """Return the masters in use of one camera setting, newest first."""
        rows = self._rows(
            "master",
            "superseded_by IS NULL AND key = ?",
            [_join_key(key, row_order)],
            order_by="built_at DESC, id DESC",
        )
        return [_master(row) for row in rows]

    def add_sensor(self, measured: SensorRecord) -> None:
        """Keep one measurement of a camera; earlier ones stay."""
        found = measured.sensor
        with transaction(self.db):
            self._insert(
                "sensor",
                {
                    "key": _join_key(measured.key, measured.row_order),
                    "camera": measured.key.camera,
                    "gain_setting": _real(measured.key.gain),
                    "readout_mode": measured.key.readout_mode,
                    "measured_at": _seconds(measured.measured_at),
                    "gain": _real(found.gain.value) if found else None,
                    "gain_error": _real(found.gain.error) if found else None,
                    "read_noise": _real(found.read_noise.value) if found else None,
                    "read_noise_error": _real(found.read_noise.error) if found else None,
                    "details": measured.details(),
                },
            )

    def gain(self, key: CalibrationKey, row_order: str) -> Measured | None:
        """Return the gain, e-/ADU, that was measured last of one camera setting."""
        row = self.db.execute(
            "SELECT gain, gain_error FROM sensor WHERE key = ? AND gain IS NOT NULL"
            " ORDER BY measured_at DESC, id DESC LIMIT 1",
            [_join_key(key, row_order)],
        ).fetchone()
        return Measured(*row) if row else None

    def sensor(self, key: CalibrationKey, row_order: str) -> SensorRecord | None:
        """Return what was measured last of one camera setting, where it could be measured."""
        rows = self._rows(
            "sensor",
            "id = (SELECT id FROM sensor WHERE key = ? AND gain IS NOT NULL"
            " ORDER BY measured_at DESC, id DESC LIMIT 1)",
            [_join_key(key, row_order)],
        )
        return next(map(_sensor, rows), None)

    def sensors(
        self, key: CalibrationKey | None = None, row_order: str = "TOP-DOWN"
    ) -> list[SensorRecord]:
        """Return what was measured of one camera setting (None: of all), the newest first."""
        rows = self._rows(
            "sensor",
            "1" if key is None else "key = ?",
            [] if key is None else [_join_key(key, row_order)],
            order_by="measured_at DESC, id DESC",
        )
        return [_sensor(row) for row in rows]

    def orphans(self) -> list[Path]:
        """Return master files that no row speaks of: left by a crash between writing and commit.

        Empty while the library has no master at all: the database may have been lost, and then
        the files are all there is.
        """
        known = {name for (name,) in self.db.execute("SELECT path FROM master")}
        if not known:
            return []
        files = sorted((self.root / MASTERS_FOLDER).glob("Master*.fits"))
        return [path for path in files if path.relative_to(self.root).as_posix() not in known]

    # --- inside ----------------------------------------------------------------------------------

    def _set_for(
        self, identity: Mapping[str, Any], temperature_c: float | None, taken: dt.datetime | None
    ) -> int | None:
        """Return the nearest set that such a frame may join."""
        frame_type = FrameType(identity["frame_type"])
        rows = self._rows(
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
            distance = _grouping_distance(frame_type, row["temperature_c"], temperature_c)
            tolerance = (
                BIAS_GROUPING_C if frame_type is FrameType.BIAS else self.temperature_tolerance_c
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

    def _recount(self, set_id: int) -> None:
        """Bring a set's own columns up to date with its frames."""
        self.db.execute(
            "UPDATE calibration_set SET refused = NULL, refused_at = NULL,"
            " (frames, temperature_c, date_obs) ="
            " (SELECT count(*), avg(temperature_c), avg(date_obs) FROM calibration_frame"
            "  WHERE set_id = :set AND excluded IS NULL),"
            " last_filed_at ="
            " (SELECT max(filed_at) FROM calibration_frame WHERE set_id = :set)"
            " WHERE id = :set",
            {"set": set_id},
        )
        row = self.db.execute(
            "SELECT id FROM master WHERE set_id = ? AND superseded_by IS NULL", [set_id]
        ).fetchone()
        self._compare_with_master(set_id, row[0] if row else None)

    def _compare_with_master(self, set_id: int, master_id: int | None) -> None:
        """Note whether the set's frames are exactly those its master's build looked at."""
        self.db.execute(
            "UPDATE calibration_set SET changed = EXISTS"
            " (SELECT 1 FROM calibration_frame AS frame"
            "  LEFT JOIN master_input AS input ON input.master = :master AND input.frame = frame.id"
            "  WHERE frame.set_id = :set AND CASE WHEN frame.excluded IS NULL"
            "   THEN input.frame IS NULL"
            "   ELSE input.frame IS NOT NULL AND input.left_out IS NULL END)"
            " WHERE id = :set",
            {"set": set_id, "master": master_id},
        )

    def _reopen_flats(self, pedestal: MasterRecord) -> None:
        """Make due the flats of this camera that would rather have had this master subtracted."""
        if pedestal.frame_type is FrameType.FLAT:
            return
        key = _join_key(pedestal.key, pedestal.row_order)
        # Those that were refused for want of a pedestal are tried again.
        self.db.execute(
            "UPDATE calibration_set SET refused = NULL, refused_at = NULL"
            " WHERE frame_type = 'flat' AND key = ? AND refused IS NOT NULL",
            [key],
        )
        for group in self._sets("frame_type = 'flat' AND NOT changed AND key = ?", [key]):
            if group.master and self._would_rather(group, group.master, pedestal):
                self._update("calibration_set", group.id, {"changed": 1})

    def _would_rather(
        self, group: CalibrationSet, master: MasterRecord, pedestal: MasterRecord
    ) -> bool:
        """Whether a flat of this master had nothing subtracted, or something worse than this."""
        kinds = match.serving(FrameType.FLAT_DARK, FrameType.FLAT)
        used = dict(
            self.db.execute(
                "SELECT frame, subtracted FROM master_input WHERE master = ? AND left_out IS NULL",
                [master.id],
            )
        )
        seen: set[tuple[float | None, int | None]] = set()
        for frame, _ in self.inputs_of(master.id):
            case = (frame.record.exposure_s, used.get(frame.id))
            if frame.id not in used or case in seen:
                continue
            seen.add(case)
            typical = dataclasses.replace(
                frame.record, frame_type=group.frame_type, temperature_c=group.temperature_c
            )
            present = None if used[frame.id] is None else self.master(used[frame.id])
            rank: float = len(kinds) if present is None else kinds.index(present.frame_type)
            bias = kinds.index(FrameType.BIAS)
            if rank < bias and present and self._was_made(typical, present):
                rank = bias - 0.5
            fits = match.rank(
                typical,
                [pedestal],
                kind=FrameType.FLAT_DARK,
                temperature_tolerance_c=self.temperature_tolerance_c,
                session=group.session,
                ageing=self.ageing,
            ).chosen
            if fits and kinds.index(pedestal.frame_type) < rank:
                return True
            if (
                rank >= bias
                and pedestal.frame_type is not FrameType.BIAS
                and dark_model.for_flat(
                    self.darks(typical, flat_darks=True),
                    typical,
                    nearest_within_c=self.temperature_tolerance_c,
                )
            ):
                return True
        return False

    def _was_made(self, flat: FrameRecord, present: MasterRecord) -> bool:
        """Whether a dark that was subtracted from a flat was one of several: it is not its own."""
        return not match.same_exposure(flat.exposure_s, present.exposure_s) or (
            _grouping_distance(present.frame_type, flat.temperature_c, present.temperature_c)
            > self.temperature_tolerance_c
        )

    def _typical(self, group: CalibrationSet) -> FrameRecord:
        """Return a record that stands for a set: its first frame's, at the mean temperature."""
        rows = self._rows(
            "calibration_frame", "set_id = ?", [group.id], order_by="date_obs, sha256", limit=1
        )
        return dataclasses.replace(
            next(map(_frame, rows)).record,
            frame_type=group.frame_type,
            exposure_s=group.exposure_s,
            temperature_c=group.temperature_c,
        )

    def _sets(self, where: str, arguments: Sequence[Any] = ()) -> list[CalibrationSet]:
        masters = {
            row["set_id"]: _master(row)
            for row in self._rows(
                "master",
                # `where` is always one of this class's own fragments.
                f"superseded_by IS NULL AND set_id IN ({_SETS_WHERE} {where})",
                arguments,
            )
        }
        rows = self._rows("calibration_set", where, arguments, order_by="id")
        return [_set(row, masters.get(row["id"])) for row in rows]

    def _rows(
        self,
        table: str,
        where: str,
        arguments: Sequence[Any] | Mapping[str, Any] = (),
        *,
        order_by: str | None = None,
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        return self.db.table(table).rows_where(
            where,
            dict(arguments) if isinstance(arguments, Mapping) else list(arguments),
            order_by=order_by,
            limit=limit,
        )

    def _insert(self, table: str, values: Mapping[str, Any]) -> int:
        row_id = self.db.table(table).insert(dict(values)).last_pk
        assert isinstance(row_id, int)
        return row_id

    def _update(self, table: str, row_id: int, values: Mapping[str, Any]) -> None:
        with transaction(self.db):
            self.db.table(table).update(row_id, dict(values))


_SETS_WHERE = "SELECT id FROM calibration_set WHERE"
_Query = tuple[str, str, int]  # WHERE, ORDER BY, LIMIT

# Those that are too old, or too new, come last: they are among the candidates to be explained.
_BY_AGE = (
    "(abs(date_obs - :date) > :reach) IS 1, (:only_older AND (date_obs > :date) IS NOT 0) IS 1,"
)
_NEAREST_TEMPERATURE = (
    f"{_BY_AGE} (temperature_c IS NULL) <> (:temperature IS NULL),"
    " abs(temperature_c - :temperature), frames DESC, id DESC"
)
# Another key of this camera (the lexical neighbours share the most), another camera, another size.
_FAR_QUERIES: tuple[_Query, ...] = (
    ("camera IS :camera AND width = :width AND height = :height AND key < :key", "key DESC", _FAR),
    ("camera IS :camera AND width = :width AND height = :height AND key > :key", "key", _FAR),
    ("width = :width AND height = :height AND camera IS NOT :camera", "id DESC", _FAR),
    ("camera IS :camera AND (width <> :width OR height <> :height)", "id DESC", _FAR),
)

# What is unknown on a side compares as NULL, which `IS 1` takes for agreeing, as the rule does.
_BY_OPTICS = (
    "(telescope <> :telescope COLLATE NOCASE) IS 1,"
    " (abs(focal_length_mm - :focal) > :focal_tolerance) IS 1,"
    " (telescope IS NULL OR :telescope IS NULL) AND (focal_length_mm IS NULL OR :focal IS NULL)"
    " AND coalesce(telescope, :telescope, focal_length_mm, :focal) IS NOT NULL,"
    " (rotator_deg IS NULL) <> (:rotator IS NULL),"
    " (min(abs(rotator_deg - :rotator), abs(360 - abs(rotator_deg - :rotator))) > :turn) IS 1,"
)
_BY_NIGHT = " session <> :session, date_obs IS NULL, abs(date_obs - :date), id DESC"
_FLAT_QUERIES: tuple[_Query, ...] = (
    ("key = :key AND filter IS :filter", _BY_OPTICS + _BY_AGE + _BY_NIGHT, _FITTING),
    ("key = :key AND filter IS NOT :filter", _BY_NIGHT, _NEAR),
)


def _dark_queries(record: FrameRecord, kind: FrameType) -> tuple[_Query, ...]:
    """Return the queries for a bias, a dark or a flat-dark of this frame's own key."""
    if kind is FrameType.BIAS:
        return (("key = :key", _NEAREST_TEMPERATURE, _FITTING),)
    if record.exposure_s is None:
        return (
            ("key = :key AND exposure_s IS NULL", _NEAREST_TEMPERATURE, _FITTING),
            ("key = :key AND exposure_s IS NOT NULL", _NEAREST_TEMPERATURE, _NEAR),
        )
    return (
        ("key = :key AND exposure_s BETWEEN :low AND :high", _NEAREST_TEMPERATURE, _FITTING),
        ("key = :key AND exposure_s < :low", "exposure_s DESC", _NEAR),
        ("key = :key AND exposure_s > :high", "exposure_s", _NEAR),
        ("key = :key AND exposure_s IS NULL", "id DESC", _FAR),
    )


def _by_age(found: "Sequence[FoundMaster]") -> "list[FoundMaster]":
    return sorted(found, key=lambda one: one.built_at)


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


def _identity(record: FrameRecord, session: str) -> dict[str, Any]:
    """Return the columns in which frames of a set agree; only flats have optics and a night."""
    flat = record.frame_type is FrameType.FLAT
    return {
        "frame_type": str(record.frame_type),
        "key": _key_text(record),
        "camera": record.key.camera,
        "width": int(record.key.width),
        "height": int(record.key.height),
        "exposure_s": _real(record.exposure_s),
        "filter": record.filter if flat else None,
        "session": session if flat else "",
        "telescope": record.telescope if flat else None,
        "focal_length_mm": _real(record.focal_length_mm) if flat else None,
        "rotator_deg": _real(record.rotator_deg) if flat else None,
        "flat_light": record.flat_light if flat else None,
    }


def _same_setup(row: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether a flat was taken through the optics of a set; unknown joins only unknown."""
    columns = ("telescope", "focal_length_mm", "rotator_deg")
    if any((row[column] is None) != (identity[column] is None) for column in columns):
        return False
    telescope, focal, rotator = ((row[column], identity[column]) for column in columns)
    return all(match.same_optics(telescope, focal, rotator))


def _grouping_distance(frame_type: FrameType, a_c: float | None, b_c: float | None) -> float:
    """°C that count between a set and a frame; missing is infinitely far from a temperature."""
    if frame_type is FrameType.FLAT or (a_c is None and b_c is None):
        return 0.0
    return math.inf if a_c is None or b_c is None else abs(a_c - b_c)


def _same_season(frame_type: FrameType, mean: float | None, taken: dt.datetime | None) -> bool:
    """Whether a frame is near enough in time to a set; flats are, by their session."""
    if frame_type is FrameType.FLAT or mean is None or taken is None:
        return True
    return abs(_seconds(taken) - mean) <= 86400.0 * SET_SPAN_DAYS


def _terms(
    record: FrameRecord, kind: FrameType, session: str | None, ageing: Ageing
) -> dict[str, Any]:
    """Return the named values of the candidates' queries."""
    limit_days = ageing.limit_days(kind)
    exposure = _real(record.exposure_s)
    focal = _real(record.focal_length_mm)
    reach = max(match.EXPOSURE_ABSOLUTE_S, 0.02 * exposure) if exposure is not None else None
    return {
        "kind": kind.value,
        "key": _key_text(record),
        "camera": record.key.camera,
        "width": int(record.key.width),
        "height": int(record.key.height),
        # Somewhat wider than the rule itself, which `match` applies.
        "low": exposure - reach if exposure is not None and reach is not None else None,
        "high": exposure + reach if exposure is not None and reach is not None else None,
        "temperature": _real(record.temperature_c),
        "filter": record.filter,
        "telescope": record.telescope or None,
        "focal": focal or None,
        "focal_tolerance": match.FOCAL_LENGTH_RELATIVE * focal if focal else None,
        "rotator": _real(record.rotator_deg),
        "turn": match.ROTATOR_TOLERANCE_DEG,
        "session": session or "",
        "date": _seconds(record.date_obs) if record.date_obs else None,
        "reach": 86400.0 * limit_days if math.isfinite(limit_days) else None,
        "only_older": int(ageing.only_older and record.frame_type is not FrameType.FLAT),
    }


def _key_text(record: FrameRecord) -> str:
    return _join_key(record.key, record.row_order)


def _join_key(key: CalibrationKey, row_order: str) -> str:
    """Return a key and a row order as one JSON line: equal where and only where they are equal."""
    fields = dataclasses.asdict(key) | {"row_order": row_order}
    # 100 and 100.0 are one gain.
    fields |= {name: _real(fields[name]) for name in ("gain", "offset")}
    fields |= {name: int(fields[name]) for name in ("width", "height", "xbinning", "ybinning")}
    return json.dumps(fields, ensure_ascii=False, allow_nan=False)


@functools.lru_cache(maxsize=4096)
def _split_key(text: str) -> tuple[CalibrationKey, str]:
    fields = json.loads(text)
    row_order = fields.pop("row_order")
    return CalibrationKey(**fields), row_order


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


def _sensor(row: Mapping[str, Any]) -> SensorRecord:
    key, row_order = _split_key(row["key"])
    return SensorRecord.restore(
        row["details"], key=key, row_order=row_order, measured_at=_when(row["measured_at"])
    )


def _frame(row: Mapping[str, Any]) -> FiledFrame:
    return FiledFrame(
        id=row["id"],
        sha256=row["sha256"],
        path=Path(os.fsdecode(row["path"])),
        version=None if row["size"] is None else (row["size"], row["mtime_ns"]),
        set_id=row["set_id"],
        record=FrameRecord.from_json(row["record"]),
        filed_at=_when(row["filed_at"]),
        excluded=row["excluded"],
    )


def _set(row: Mapping[str, Any], master: MasterRecord | None) -> CalibrationSet:
    key, row_order = _split_key(row["key"])
    return CalibrationSet(
        id=row["id"],
        frame_type=FrameType(row["frame_type"]),
        key=key,
        row_order=row_order,
        exposure_s=row["exposure_s"],
        temperature_c=row["temperature_c"],
        date_obs=None if row["date_obs"] is None else _when(row["date_obs"]),
        filter=row["filter"],
        session=row["session"],
        telescope=row["telescope"],
        focal_length_mm=row["focal_length_mm"],
        rotator_deg=row["rotator_deg"],
        flat_light=row["flat_light"],
        n_frames=row["frames"],
        last_filed_at=_when(row["last_filed_at"]),
        accepted=bool(row["accepted"]),
        changed=bool(row["changed"]),
        refused=row["refused"],
        master=master,
    )


def _master(row: Mapping[str, Any]) -> MasterRecord:
    key, row_order = _split_key(row["key"])
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
        date_obs=None if row["date_obs"] is None else _when(row["date_obs"]),
        path=PurePosixPath(row["path"]),
        sha256=row["sha256"],
        subtracted=row["subtracted"],
        built_at=_when(row["built_at"]),
        superseded_by=row["superseded_by"],
        version=row["version"],
        notes=tuple(json.loads(row["notes"])),
    )


def _real(value: float | None) -> float | None:
    """Return a plain number for SQL; what is not finite is missing."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def _seconds(moment: dt.datetime) -> float:
    return moment.timestamp()


def _when(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC)
