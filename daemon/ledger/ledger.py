"""What happened to every frame: the daemon's queue and its record.

One writer connection, owned by the worker's thread. Every method that writes is one transaction,
or joins the transaction that its caller has opened with `with ledger.transaction():`.
"""

import contextlib
import dataclasses
import datetime as dt
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlite_utils

from calib_library.frame import FrameRecord, FrameType
from calib_library.schema import transaction
from daemon.ledger import schema
from daemon.ledger.states import OPEN_STATES, State
from daemon.log import clean

FRESH = dt.timedelta(hours=12)
"""A file younger than this is probably tonight's, and goes before any backlog."""
TONIGHT = dt.timedelta(hours=12)
"""A frame is tonight's for so long at least, whatever its time zone was taken for, and goes before
what was merely copied today."""

_CALIBRATION = "('bias', 'dark', 'flat', 'flat-dark')"
_OPEN = ", ".join(f"'{state}'" for state in OPEN_STATES)

Explanation = list[tuple[str, list[str]]]
"""What was decided about a frame and why: headings with their lines."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One row of the ledger: one version of one file."""

    id: int
    path: Path
    root: Path
    """The watched folder in which it was found."""
    name: str
    """The file's name as it may be shown: what no terminal should get is written out."""
    size: int
    """bytes"""
    mtime_ns: int
    """ns since 1970, of the file when it arrived."""
    sha256: str | None
    """Of the file's bytes; None before it was read."""
    pixels: str | None
    """Of a light: `rewritten.mark_of` its pixels."""
    state: State
    reason: str | None
    """Why it is in its state, or what went wrong at the last attempt."""
    frame_type: FrameType | None
    record: FrameRecord | None
    """None where the header could not be read, or has not been yet."""
    target: str | None
    filter: str | None
    night: str | None
    """As `Identity.night`."""
    stack_id: int | None
    """Of a light: the stack that it is in, or was left out of."""
    by_hand: str | None
    """`in` or `out`: a person's word on its place in the stack."""
    explanation: Explanation
    attempts: int
    """Times that it was claimed, the present one with it."""
    seen_at: dt.datetime
    """UTC, when it arrived."""
    done_at: dt.datetime | None
    """UTC, when it came to its end."""


@dataclasses.dataclass(frozen=True, slots=True)
class Waiting:
    """A frame of the queue, as far as reading it ahead asks for."""

    path: Path
    size: int
    """bytes."""
    frame_type: FrameType | None


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """What the header of a newly arrived frame says, as far as it could be read."""

    record: FrameRecord
    target: str
    night: str
    """The local date of its evening, `2026-11-20`: nights go from noon to noon."""


def _utc(now: dt.datetime) -> str:
    return now.astimezone(dt.UTC).isoformat(timespec="milliseconds")


def _noon_before(moment: dt.datetime) -> dt.datetime:
    """The last noon, by the local clock, before a moment: where a night begins. A queue that was
    parted elsewhere would take a night's later frames before its earlier ones.
    """
    day = (moment.astimezone() - dt.timedelta(hours=12)).date()
    return dt.datetime.combine(day, dt.time(12)).astimezone(dt.UTC)


def _frame(row: Mapping[str, Any]) -> Frame:
    explanation = json.loads(row["explanation"]) if row["explanation"] else []
    return Frame(
        id=row["id"],
        path=Path(os.fsdecode(row["path"])),
        root=Path(os.fsdecode(row["root"])),
        name=row["name"],
        size=row["size"],
        mtime_ns=row["mtime_ns"],
        sha256=row["sha256"],
        pixels=row["pixels"],
        state=State(row["state"]),
        reason=row["reason"],
        frame_type=FrameType(row["frame_type"]) if row["frame_type"] else None,
        record=FrameRecord.from_json(row["record"]) if row["record"] else None,
        target=row["target"],
        filter=row["filter"],
        night=row["night"],
        stack_id=row["stack_id"],
        by_hand=row["by_hand"],
        explanation=[(heading, list(lines)) for heading, lines in explanation],
        attempts=row["attempts"],
        seen_at=dt.datetime.fromisoformat(row["seen_at"]),
        done_at=dt.datetime.fromisoformat(row["done_at"]) if row["done_at"] else None,
    )


class Ledger:
    """The frames' table. `db` is an open writer connection of the calling thread."""

    def __init__(self, db: sqlite_utils.Database) -> None:
        self.db = db

    @classmethod
    def prepare(cls, db: sqlite_utils.Database) -> "Ledger":
        """Bring the tables up to date and open them."""
        schema.apply(db)
        return cls(db)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One immediate transaction over the ledger and the library: all of it or nothing."""
        with transaction(self.db):
            yield

    # -- arrivals ---------------------------------------------------------------------------

    def add(
        self,
        path: Path,
        root: Path,
        size: int,
        mtime_ns: int,
        *,
        identity: Identity | None,
        now: dt.datetime,
    ) -> int | None:
        """Record a complete file as `new`; None if this version of it is known already.

        One that was recorded as incomplete is known no longer.
        """
        return self._insert(
            path=path,
            root=root,
            size=size,
            mtime_ns=mtime_ns,
            state=State.NEW,
            reason=None,
            identity=identity,
            now=now,
        )

    def add_unusable(
        self,
        path: Path,
        root: Path,
        size: int,
        mtime_ns: int,
        *,
        reason: str,
        now: dt.datetime,
        final: bool = True,
    ) -> int | None:
        """Record a file that is no image, with the reason; None if it is known already.

        `final` False: it is incomplete, and may yet become whole without any sign of change. Its
        `not_before` marks it: `KnownFiles` denies it, so a later life looks at it again too.
        """
        return self._insert(
            path=path,
            root=root,
            size=size,
            mtime_ns=mtime_ns,
            state=State.REJECTED,
            reason=reason,
            identity=None,
            now=now,
            not_before=None if final else now,
        )

    def _insert(
        self,
        *,
        path: Path,
        root: Path,
        size: int,
        mtime_ns: int,
        state: State,
        reason: str | None,
        identity: Identity | None,
        now: dt.datetime,
        not_before: dt.datetime | None = None,
    ) -> int | None:
        record = identity.record if identity else None
        with self.transaction():
            rows = self.db.conn.execute(
                f"""
                INSERT INTO frame (path, root, name, size, mtime_ns, state, reason, frame_type,
                                   record, target, filter, night, date_obs, seen_at, done_at,
                                   not_before)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (path, size, mtime_ns) DO UPDATE SET
                    state = excluded.state, reason = excluded.reason,
                    frame_type = excluded.frame_type, record = excluded.record,
                    target = excluded.target, filter = excluded.filter, night = excluded.night,
                    date_obs = excluded.date_obs, done_at = excluded.done_at,
                    not_before = excluded.not_before
                WHERE {schema.INCOMPLETE} AND frame.reason IS NOT excluded.reason
                RETURNING id
                """,  # noqa: S608 — a constant
                (
                    os.fsencode(path),
                    os.fsencode(root),
                    clean(path.name),
                    size,
                    mtime_ns,
                    state,
                    reason,
                    record.frame_type if record else None,
                    record.to_json() if record else None,
                    identity.target if identity else None,
                    record.filter if record else None,
                    identity.night if identity else None,
                    record.date_obs.isoformat() if record and record.date_obs else None,
                    _utc(now),
                    None if state in OPEN_STATES else _utc(now),
                    None if not_before is None else _utc(not_before),
                ),
            ).fetchall()
            return int(rows[0][0]) if rows else None

    # -- the queue --------------------------------------------------------------------------

    def release_claims(self, *, innocent: int | None = None) -> int:
        """After a crash nobody works on anything: every claim is void. Returns how many were.

        The last attempt at the frame `innocent` ended for no fault of its own: it is not counted.
        """
        with self.transaction():
            self.db.conn.execute(
                "UPDATE frame SET attempts = attempts - 1 WHERE id = ? AND claimed_at IS NOT NULL",
                (innocent,),
            )
            return self.db.conn.execute(
                "UPDATE frame SET claimed_at = NULL WHERE claimed_at IS NOT NULL"
            ).rowcount

    def claim(self, now: dt.datetime, *, tonight: bool = False) -> Frame | None:
        """Take the next new frame; its attempts are counted before the work begins.

        Tonight's frames go before a backlog, by the time of exposure and then by that of the file;
        among them calibration frames before lights (whose masters they make), then the order in
        which they were exposed. With `tonight` only a frame that was exposed tonight.
        """
        with self.transaction():
            rows = self._next(now, tonight=tonight)
            if not rows:
                return None
            self.db.conn.execute(
                "UPDATE frame SET claimed_at = ?, attempts = attempts + 1 WHERE id = ?",
                (_utc(now), rows[0]["id"]),
            )
        return dataclasses.replace(_frame(rows[0]), attempts=rows[0]["attempts"] + 1)

    def next_files(self, now: dt.datetime, *, most: int) -> list[Waiting]:
        """The frame that `claim` would take now, and some of those that may come after it."""
        return [
            Waiting(
                Path(os.fsdecode(row["path"])),
                row["size"],
                FrameType(row["frame_type"]) if row["frame_type"] else None,
            )
            for row in self._next(now, most=most)
        ]

    def _next(
        self, now: dt.datetime, *, tonight: bool = False, most: int = 1
    ) -> list[dict[str, Any]]:
        """The frame to claim and up to `most` − 1 of those after it; none where there is none. Each
        search has an index that holds the queue.
        """
        evening = _noon_before(now - TONIGHT).isoformat()
        fresh = int((now - FRESH).timestamp() * 1e9)
        exposed_tonight = self._first("frame_queue_date", "date_obs >= :from", now, evening, most)
        if exposed_tonight or tonight:
            return exposed_tonight
        first = self._first("frame_queue", ":from = 0", now, 0, most)
        if not first or first[0]["mtime_ns"] >= fresh:
            return first
        return self._first("frame_queue_mtime", "mtime_ns >= :from", now, fresh, most) or first

    def _first(
        self, index: str, condition: str, now: dt.datetime, begin: str | int, most: int
    ) -> list[dict[str, Any]]:
        return list(
            self.db.query(
                f"""
                SELECT * FROM frame INDEXED BY {index}
                WHERE state = 'new' AND claimed_at IS NULL AND {condition}
                  AND (not_before IS NULL OR not_before <= :now)
                ORDER BY {schema.CLAIM_ORDER} LIMIT :most
                """,  # noqa: S608 — the callers' literals
                {"now": _utc(now), "from": begin, "most": most},
            )
        )

    def finish(
        self,
        frame: Frame,
        state: State,
        *,
        now: dt.datetime,
        reason: str | None = None,
        sha256: str | None = None,
        pixels: str | None = None,
        identity: Identity | None = None,
        stack_id: int | None = None,
        waits_for: int | None = None,
        explanation: Explanation | None = None,
        quality: str | None = None,
        by_hand: str | None = None,
    ) -> None:
        """Move a claimed frame to `state`, and record what was learned about it."""
        record = identity.record if identity else frame.record
        with self.transaction():
            self.db.conn.execute(
                """
                UPDATE frame SET state = ?, reason = ?, sha256 = coalesce(?, sha256),
                       pixels = coalesce(?, pixels),
                       frame_type = ?, record = ?, target = ?, filter = ?, night = ?,
                       date_obs = ?, stack_id = ?, waits_for = ?,
                       quality = ?, by_hand = coalesce(?, by_hand),
                       explanation = coalesce(?, explanation),
                       claimed_at = NULL, not_before = NULL, done_at = ?
                WHERE id = ?
                """,
                (
                    state,
                    reason,
                    sha256,
                    pixels,
                    record.frame_type if record else None,
                    record.to_json() if record else None,
                    identity.target if identity else frame.target,
                    record.filter if record else None,
                    identity.night if identity else frame.night,
                    record.date_obs.isoformat() if record and record.date_obs else None,
                    stack_id,
                    waits_for,
                    quality,
                    by_hand,
                    json.dumps(explanation) if explanation is not None else None,
                    None if state in OPEN_STATES else _utc(now),
                    frame.id,
                ),
            )

    def defer(self, frame: Frame, *, reason: str, until: dt.datetime, counted: bool = True) -> None:
        """Put a claimed frame back; it is not tried before `until`.

        `counted` False: the attempt does not count, since the frame was not to blame.
        """
        with self.transaction():
            self.db.conn.execute(
                "UPDATE frame SET claimed_at = NULL, not_before = ?, reason = ?, "
                "attempts = attempts - ? WHERE id = ?",
                (_utc(until), reason, not counted, frame.id),
            )

    def try_again(self, frame: Frame, *, by_hand: str | None) -> None:
        """Let a rejected light go its way again; `by_hand` is a person's word on it, if any."""
        with self.transaction():
            self.db.conn.execute(
                "UPDATE frame SET state = 'new', attempts = 0, done_at = NULL, by_hand = ? "
                "WHERE id = ?",
                (by_hand, frame.id),
            )

    def judged(self, stack_id: int) -> list[tuple[Frame, str]]:
        """Lights that were left out of a stack for their quality alone, with that quality (JSON),
        and on which no person has had a word.
        """
        rows = self.db.query(
            "SELECT * FROM frame WHERE stack_id = ? AND state = 'rejected' "
            "AND quality IS NOT NULL AND by_hand IS NULL ORDER BY date_obs, id",
            (stack_id,),
        )
        return [(_frame(row), row["quality"]) for row in rows]

    def forget(self, frame: Frame) -> None:
        """Drop the row of a file that vanished or changed before it was read: a later version
        arrives as a new frame.
        """
        with self.transaction():
            self.db.conn.execute("DELETE FROM frame WHERE id = ?", (frame.id,))

    def release_waiting(self, set_ids: Iterable[int] | None = None) -> int:
        """Let lights that wait for these sets (None: for any) be worked on; returns how many."""
        with self.transaction():
            # To wait was no attempt that failed.
            query = (
                "UPDATE frame SET state = 'new', waits_for = NULL, attempts = 0 "
                "WHERE state = 'waiting'"
            )
            if set_ids is None:
                return self.db.conn.execute(query).rowcount
            return sum(
                self.db.conn.execute(query + " AND waits_for = ?", (set_id,)).rowcount
                for set_id in set_ids
            )

    def awaited_sets(self) -> list[int]:
        """The calibration sets that waiting lights wait for."""
        rows = self.db.query(
            "SELECT DISTINCT waits_for FROM frame "
            "WHERE state = 'waiting' AND waits_for IS NOT NULL ORDER BY waits_for"
        )
        return [row["waits_for"] for row in rows]

    # -- questions --------------------------------------------------------------------------

    def calibration_pending(self) -> bool:
        """Are there new frames that may belong into a master?"""
        return bool(
            list(
                self.db.query(
                    f"""
                    SELECT 1 FROM frame WHERE state = 'new' AND not_before IS NULL
                      AND (frame_type IS NULL OR frame_type IN {_CALIBRATION}) LIMIT 1
                    """  # noqa: S608
                )
            )
        )

    def open_count(self, now: dt.datetime | None = None) -> int:
        """Frames that still move by themselves; with `now`, only those that may move at once."""
        query = f"SELECT count(*) AS n FROM frame WHERE state IN ({_OPEN})"  # noqa: S608
        if now is not None:
            query += " AND (not_before IS NULL OR not_before <= :now)"
        row = next(iter(self.db.query(query, {"now": _utc(now)} if now else {})))
        return int(row["n"])

    def count_states(self) -> dict[tuple[str, str], int]:
        """(state, frame type or '') → number of frames."""
        return {
            (row["state"], row["frame_type"] or ""): row["n"]
            for row in self.db.query(
                "SELECT state, frame_type, count(*) AS n FROM frame GROUP BY state, frame_type"
            )
        }

    def with_content(self, sha256: str, *, other_than: int) -> Frame | None:
        """The frame in use that holds the same content under another name, if there is one."""
        return self._one(
            "sha256 = ? AND id != ? AND state IN ('filed', 'stacked')", (sha256, other_than)
        )

    def stacked_before(self, frame: Frame, date_obs: dt.datetime | None) -> Sequence[Frame]:
        """Stacked lights that may be the same exposure as this frame: the earlier version of its
        file, then those that began at the same instant.
        """
        moment = date_obs.isoformat() if date_obs else None
        return [
            *self._many(
                "path = ? AND id != ? AND state = 'stacked'", (os.fsencode(frame.path), frame.id)
            ),
            *self._many(
                "state = 'stacked' AND frame_type = 'light' AND date_obs = ? AND path != ?",
                (moment, os.fsencode(frame.path)),
            ),
        ]

    def get(self, frame_id: int) -> Frame | None:
        """One frame by its number."""
        return self._one("id = ?", (frame_id,))

    def find(self, text: str) -> Sequence[Frame]:
        """Frames by number, path, name, or the beginning or a part of the name; newest first."""
        if text.isdecimal() and text == str(int(text)):  # not 0095, which is part of a name
            frame = self.get(int(text))
            if frame:
                return [frame]
        for condition, value in (
            ("path = ?", os.fsencode(text)),
            ("name = ?", Path(text).name),
            ("instr(name, ?) > 0", Path(text).name),
        ):
            frames = self._many(f"{condition} ORDER BY id DESC LIMIT 20", (value,))
            if frames:
                return frames
        return []

    def recent(self, limit: int = 10) -> Sequence[Frame]:
        """The frames that were finished last."""
        return self._many("done_at IS NOT NULL ORDER BY done_at DESC, id DESC LIMIT ?", (limit,))

    def in_states(self, states: Sequence[State], *, limit: int) -> Sequence[Frame]:
        """The newest frames in any of these states."""
        marks = ", ".join("?" * len(states))
        return self._many(f"state IN ({marks}) ORDER BY id DESC LIMIT ?", (*states, limit))

    def of_stack(self, stack_id: int) -> Sequence[Frame]:
        """Every light that was worked on for a stack, members and rejected, as exposed."""
        return self._many(
            "stack_id = ? AND state IN ('stacked', 'rejected') ORDER BY date_obs, id", (stack_id,)
        )

    def night_summary(self, night: str) -> dict[tuple[str, str], int]:
        """(frame type, state) → frames of one night."""
        return {
            (row["frame_type"] or "", row["state"]): row["n"]
            for row in self.db.query(
                "SELECT frame_type, state, count(*) AS n FROM frame WHERE night = ? "
                "GROUP BY frame_type, state",
                (night,),
            )
        }

    def _many(self, condition: str, values: Sequence[object]) -> list[Frame]:
        query = f"SELECT * FROM frame WHERE {condition}"  # noqa: S608 — conditions are literals
        return [_frame(row) for row in self.db.query(query, values)]

    def _one(self, condition: str, values: Sequence[object]) -> Frame | None:
        frames = self._many(f"{condition} LIMIT 1", values)
        return frames[0] if frames else None
