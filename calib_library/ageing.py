"""How old a master may be: dust moves between sessions, sensors change over months.

The age is the time between the master's frames and the light, in either direction: flats of the
morning after serve the night before, and an archive is calibrated with the masters of its day.
"""

import dataclasses
import datetime as dt
import math

from calib_library.frame import FrameType

STEPS = 10
"""The freshness falls in so many steps, so that two masters of one week are equally fresh."""
HALF = 0.5
"""Of its limit: older masters are still used, but the match says that new ones are due."""

_NAMES = {
    FrameType.FLAT: "flats",
    FrameType.DARK: "darks",
    FrameType.FLAT_DARK: "flat-darks",
    FrameType.BIAS: "bias frames",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Ageing:
    """The limits by kind of master, in days from the light; 0 is no limit."""

    flat_days: float = 14.0
    """Within its own session a flat is always fresh."""
    dark_days: float = 365.0
    """Of darks and flat-darks."""
    bias_days: float = 365.0
    only_older: bool = False
    """A light takes only masters that were there before it, so that its calibration never changes.
    """

    def limit_days(self, kind: FrameType) -> float:
        """Days beyond which a master of this kind is refused; infinite without a limit."""
        limits = {FrameType.FLAT: self.flat_days, FrameType.BIAS: self.bias_days}
        return limits.get(kind, self.dark_days) or math.inf


USUAL = Ageing()
"""Flats of a fortnight at most, darks and biases of a year."""
ANY_AGE = Ageing(flat_days=0.0, dark_days=0.0, bias_days=0.0)
"""No master is too old."""


def days_apart(a: dt.datetime | None, b: dt.datetime | None) -> float | None:
    """Days between two moments; None where one is not known."""
    return None if a is None or b is None else abs((a - b).total_seconds()) / 86400.0


def refusal(
    kind: FrameType,
    taken: dt.datetime | None,
    used: dt.datetime | None,
    *,
    ageing: Ageing,
    same_session: bool,
    subject: str,
) -> str | None:
    """Say why a master whose frames were `taken` then is too old, or too new, for a light.

    `used` is the light's own time, `subject` what it is called (“the light”). What is not known is
    not held against a master, except where only older ones are allowed.
    """
    days = days_apart(taken, used)
    if ageing.only_older:
        if taken is None or used is None:
            return f"only_older is set, and it is not known whether it is older than {subject}"
        if taken > used:
            return f"taken after {subject}, and only_older is set"
    limit = ageing.limit_days(kind)
    if days is None or same_session or days <= limit:
        return None
    return (
        f"{_days(days)} from {subject}: {_NAMES[kind]} are used for {_days(limit)} "
        f"({_setting(kind)})"
    )


def freshness(
    kind: FrameType, taken: dt.datetime | None, used: dt.datetime | None, *, ageing: Ageing
) -> float:
    """A factor of the score: 1 for a new master, 0.5 for one at its limit; unknown ages are new."""
    days, limit = days_apart(taken, used), ageing.limit_days(kind)
    if days is None or math.isinf(limit):
        return 1.0
    return 1.0 - 0.5 * min(STEPS, math.floor(STEPS * days / limit)) / STEPS


def note(
    kind: FrameType, taken: dt.datetime | None, used: dt.datetime | None, *, ageing: Ageing
) -> str | None:
    """Say that a master is past half its time, and new ones are due."""
    days, limit = days_apart(taken, used), ageing.limit_days(kind)
    if days is None or days <= HALF * limit:
        return None
    return (
        f"Its frames are {_days(days)} from the light; beyond {_days(limit)} they are no longer "
        f"used ({_setting(kind)}): take new {_NAMES[kind]}."
    )


def _setting(kind: FrameType) -> str:
    named = {FrameType.FLAT: "flat_days", FrameType.BIAS: "bias_days"}
    return named.get(kind, "dark_days")


def _days(days: float) -> str:
    return f"{days:.1f} days" if days < 10 and days != round(days) else f"{days:.0f} days"
