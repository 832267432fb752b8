"""What is wrong with a camera or a master for longer than one frame: said once when it begins, once
when it is over, and shown in between.
"""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlite_utils

PATIENCE = 3
"""Frames in a row that must agree before a condition that is measured begins or ends."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What one frame says of one possible condition."""

    kind: str
    """What could be wrong, in a word or two: `cooler`, `hot pixels`."""
    subject: str
    """Of which camera or master."""
    bad: bool
    sentence: str
    """For a person: what is wrong and what to do; where it is not, what was found."""
    certain: bool = False
    """One frame is enough to believe it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Condition:
    """A condition that has begun."""

    kind: str
    subject: str
    sentence: str
    since: str
    """UTC, ISO."""
    frames: int
    """That showed it."""
    over: bool


def note(
    db: sqlite_utils.Database, findings: Iterable[Finding], *, now: dt.datetime
) -> Sequence[Condition]:
    """Count what a frame says; return the conditions that begin or end with it.

    Joins the caller's transaction, so that a frame is counted once.
    """
    moment = now.astimezone(dt.UTC).isoformat(timespec="seconds")
    return [changed for finding in findings if (changed := _count(db, finding, moment)) is not None]


def current(db: sqlite_utils.Database) -> Sequence[Condition]:
    """The conditions that hold now, the oldest first."""
    return [
        _condition(row)
        for row in db.query("SELECT * FROM condition WHERE since IS NOT NULL ORDER BY since, id")
    ]


def _count(db: sqlite_utils.Database, finding: Finding, moment: str) -> Condition | None:
    """One row for each kind and subject: it is `since` a time, or not; `against` counts the frames
    in a row that say the opposite.
    """
    rows = list(
        db.query(
            "SELECT * FROM condition WHERE kind = :kind AND subject = :subject",
            {"kind": finding.kind, "subject": finding.subject},
        )
    )
    if not rows and not finding.bad:
        return None
    row = rows[0] if rows else _new(db, finding)
    holds = row["since"] is not None
    against = row["against"] + 1 if finding.bad != holds else 0
    frames = row["frames"] + 1 if finding.bad else row["frames"]
    patience = 1 if finding.certain else PATIENCE
    turns = against >= patience
    begins = turns and not holds
    values: dict[str, Any] = {
        "against": 0 if turns else against,
        "frames": frames if holds or finding.bad else 0,
        "sentence": finding.sentence if finding.bad else row["sentence"],
        "since": moment if begins else None if turns else row["since"],
    }
    db.conn.execute(
        "UPDATE condition SET against = :against, frames = :frames, sentence = :sentence, "
        "since = :since WHERE id = :id",
        {**values, "id": row["id"]},
    )
    if not turns:
        return None
    return _condition({**row, **values, "since": moment}, over=holds)


def _new(db: sqlite_utils.Database, finding: Finding) -> dict[str, Any]:
    cursor = db.conn.execute(
        "INSERT INTO condition (kind, subject, sentence) VALUES (?, ?, ?) RETURNING *",
        (finding.kind, finding.subject, finding.sentence),
    )
    names = [column[0] for column in cursor.description]
    return dict(zip(names, cursor.fetchone(), strict=True))


def _condition(row: Mapping[str, Any], *, over: bool = False) -> Condition:
    return Condition(
        kind=row["kind"],
        subject=row["subject"],
        sentence=row["sentence"],
        since=row["since"],
        frames=row["frames"],
        over=over,
    )
