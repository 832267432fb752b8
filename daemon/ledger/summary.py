"""The stacks in figures, for faces: read without the mathematics that stacking needs, so that a
command answers at once.
"""

import dataclasses
from collections.abc import Sequence

import sqlite_utils


@dataclasses.dataclass(frozen=True, slots=True)
class StackSummary:
    """One stack as a person sees it."""

    id: int
    target: str
    filter: str
    camera_name: str | None
    frames: int
    exposure_s: float
    """s, of all frames together."""
    generation: int
    path: str | None
    """Of the product, relative to the library."""
    updated_at: str | None
    stale: str | None
    flags: tuple[str, ...]
    """What its frames' calibration lacks, each once."""


def stacks(db: sqlite_utils.Database) -> Sequence[StackSummary]:
    """Every stack that has frames or a product."""
    rows = db.query(
        """
        SELECT stack.id AS id, target, filter, camera_name, generation, path, updated_at, stale,
               count(frame_id) AS frames, coalesce(sum(exposure_s), 0.0) AS exposure_s,
               coalesce(group_concat(DISTINCT flags), '') AS flags
        FROM stack LEFT JOIN stack_frame ON stack_id = stack.id
        GROUP BY stack.id HAVING frames > 0 OR generation > 0
        ORDER BY target, filter
        """
    )
    return [
        StackSummary(**{**row, "flags": tuple(sorted(set(row["flags"].split(",")) - {""}))})
        for row in rows
    ]
