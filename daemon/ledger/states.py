"""The states of a frame. A state exists only where something durable exists."""

from enum import StrEnum


class State(StrEnum):
    """Where a frame is on its way."""

    NEW = "new"
    """Recorded, not worked on yet (or to be worked on again)."""
    WAITING = "waiting"
    """A light whose master is about to be built from frames that are filed already."""
    FILED = "filed"
    """A calibration frame in the library."""
    STACKED = "stacked"
    """A light that is a member of its stack."""
    REJECTED = "rejected"
    """Not used; the reason is recorded."""
    FAILED = "failed"
    """Given up after repeated errors; the error is recorded."""
    QUARANTINED = "quarantined"
    """Label and pixels disagree, or the type is unknown: a person may decide."""


OPEN_STATES = (State.NEW, State.WAITING)
"""The states from which a frame still moves by itself."""
