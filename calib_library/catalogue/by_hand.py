"""Masters that a person chose, whatever the rules say."""

import dataclasses
import datetime as dt
from typing import Literal

from calib_library.catalogue.rows import moment, timestamp
from calib_library.frame import FrameType
from calib_library.library import CalibrationLibrary
from calib_library.match import MasterRecord
from calib_library.schema import transaction

Scope = Literal["target", "frame"]
"""What a choice by hand is for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A master that a person chose, against the rules or beside them."""

    master: MasterRecord
    scope: Scope
    chosen_at: dt.datetime


def use(
    library: CalibrationLibrary,
    master_id: int,
    kind: FrameType,
    *,
    scope: Scope,
    subject: str,
    now: dt.datetime,
) -> None:
    """Use this master as `kind` (bias, dark or flat) for a target, or for one frame (its hash),
    whatever the rules say. Raises LibraryError where there is no such master.
    """
    with transaction(library.db):
        library.master(master_id)
        unuse(library, kind, scope=scope, subject=subject)
        library.db.table("master_choice").insert(
            {
                "kind": kind.value,
                "scope": scope,
                "subject": subject,
                "master": master_id,
                "chosen_at": timestamp(now),
            }
        )


def unuse(
    library: CalibrationLibrary, kind: FrameType | None, *, scope: Scope, subject: str
) -> int:
    """Go back to the rules for a target or a frame, for one kind or for all; return how many
    choices there were.
    """
    forced = 0
    with transaction(library.db):
        if kind in {None, FrameType.DARK}:
            forced = library.db.execute(
                "DELETE FROM forced_dark WHERE scope = ? AND subject = ?", [scope, subject]
            ).rowcount
        cursor = library.db.execute(
            "DELETE FROM master_choice WHERE scope = ? AND subject = ? AND (? IS NULL OR kind = ?)",
            [scope, subject, kind and kind.value, kind and kind.value],
        )
    return int(cursor.rowcount + forced)


def force_dark(
    library: CalibrationLibrary, *, scope: Scope, subject: str, now: dt.datetime
) -> None:
    """Let the dark of a target, or of one frame (its hash), be extrapolated farther than the rules
    do (`dark_model.FORCED_C`); a dark chosen for it by hand is given up.
    """
    with transaction(library.db):
        unuse(library, FrameType.DARK, scope=scope, subject=subject)
        library.db.table("forced_dark").insert(
            {"scope": scope, "subject": subject, "chosen_at": timestamp(now)}
        )


def for_single_frames(library: CalibrationLibrary) -> bool:
    """Whether a person has chosen anything for a single frame, whichever."""
    rows = library.db.execute(
        "SELECT 1 FROM master_choice WHERE scope = 'frame'"
        " UNION ALL SELECT 1 FROM forced_dark WHERE scope = 'frame'"
    )
    return rows.fetchone() is not None


def is_dark_forced(library: CalibrationLibrary, *, target: str | None, sha256: str | None) -> bool:
    """Whether a person wants the dark of this frame extrapolated."""
    rows = library.db.execute(
        "SELECT 1 FROM forced_dark WHERE (scope = 'target' AND subject = ?)"
        " OR (scope = 'frame' AND subject = ?)",
        [target, sha256],
    )
    return rows.fetchone() is not None


def chosen(
    library: CalibrationLibrary, *, target: str | None, sha256: str | None
) -> dict[FrameType, Choice]:
    """Return the masters chosen by hand for a frame; its own go before its target's."""
    rows = library.db.query(
        "SELECT * FROM master_choice WHERE (scope = 'target' AND subject = :target)"
        " OR (scope = 'frame' AND subject = :sha256) ORDER BY scope DESC",
        {"target": target, "sha256": sha256},
    )
    return {
        FrameType(row["kind"]): Choice(
            library.master(row["master"]), row["scope"], moment(row["chosen_at"])
        )
        for row in rows
    }
