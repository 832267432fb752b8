"""Is a file complete? The rules, without threads and without a clock of their own.

A file is complete when its inode, size and mtime have not changed for the settle time *and* the
probe finds it whole. Programs write in many ways (in place with pauses, at full size and filled
later, header last), so neither an event nor the size alone says anything.

Time is passed in, by a monotonic clock, in s; `stat` and `probe` are passed in too. Nothing is
kept on disk: after a restart the scan notes every file again.
"""

import dataclasses
import errno
import heapq
import itertools
import os
import stat as st
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

BACKOFF_LIMIT_S = 600.0
"""s; a file that stays incomplete or unreadable is still looked at this often, for ever."""

_SHORTEST_WAIT_S = 0.1
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})


class Signature(NamedTuple):
    """What must stand still before a file is opened."""

    inode: int
    size: int
    """bytes"""
    mtime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> "Signature":
        """Take the signature from a stat result."""
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns)


@dataclasses.dataclass(frozen=True, slots=True)
class Complete:
    """A probe's verdict: the file is whole."""


@dataclasses.dataclass(frozen=True, slots=True)
class Incomplete:
    """A probe's verdict: something is still missing."""

    reason: str
    """What is missing, a clause for people."""
    tolerable: bool = False
    """True: suspicious rather than broken; after the grace time the file is taken as it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Unusable:
    """A probe's verdict: this content will never be a frame."""

    reason: str


Verdict = Complete | Incomplete | Unusable
Probe = Callable[[Path], Verdict]
"""Opens a file and judges it. May raise OSError: the file is looked at again later."""


@dataclasses.dataclass(frozen=True, slots=True)
class Settled:
    """The file is complete; the settler has let go of it."""

    stat: os.stat_result
    """Taken after the probe, and equal to the one before it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """The file as it stands is no frame. Said once for each signature."""

    reason: str
    stat: os.stat_result
    final: bool
    """True: only a changed file is looked at again. False: it stays under observation."""


@dataclasses.dataclass(frozen=True, slots=True)
class Blocked:
    """The file cannot be read at present; it is tried again. Said once for each signature."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Vanished:
    """The file disappeared before it was complete and is forgotten."""


Outcome = Settled | Refused | Blocked | Vanished | None
"""What `Settler.examine` found; None: nothing to say, the file waits."""


@dataclasses.dataclass(slots=True)
class _Candidate:
    signature: Signature
    since: float
    """Monotonic time since which the signature has stood still, s."""
    ticket: int = -1
    """The valid entry in one of the two heaps; others are stale."""
    delay: float = 0.0
    """The last backoff, s; 0: none yet."""
    reported: bool = False
    """The caller has been told that this signature is no good."""


class Settler:
    """Files on their way to completeness. Not thread-safe: it belongs to one thread.

    Feed it with `note`, take what is due, newest file first, from `due`, and hand each of those
    to `examine`.
    """

    def __init__(
        self,
        probe: Probe,
        *,
        settle_s: float,
        grace_s: float,
        stat: Callable[[Path], os.stat_result] = os.stat,
    ) -> None:
        self._probe, self._stat = probe, stat
        self._settle_s, self._grace_s = settle_s, grace_s
        self._candidates: dict[Path, _Candidate] = {}
        self._waiting: list[tuple[float, int, Path]] = []  # by the time of the next look
        self._ready: list[tuple[int, int, Path]] = []  # due already: newest mtime first
        self._tickets = itertools.count()
        self._pending = 0

    def __len__(self) -> int:
        """Files under observation."""
        return len(self._candidates)

    def __contains__(self, path: Path) -> bool:
        return path in self._candidates

    @property
    def pending(self) -> int:
        """Files under observation of which nothing has been reported yet."""
        return self._pending

    def note(self, path: Path, stat: os.stat_result, now: float, *, quiet_s: float = 0.0) -> None:
        """Take a file under observation, or learn that a known one has changed.

        `quiet_s`: how long it is known to have been unchanged when seen for the first time (the
        age of an old archive's file), so that such a file need not wait.
        """
        signature = Signature.of(stat)
        candidate = self._candidates.get(path)
        if candidate is None:
            candidate = self._candidates[path] = _Candidate(signature, now - quiet_s)
            self._pending += 1
        elif candidate.signature != signature:
            self._start_afresh(candidate, signature, now)
        else:
            return
        self._schedule(path, candidate, candidate.since + self._settle_s)

    def gone(self, path: Path) -> bool:
        """Forget a file. Returns whether it was under observation."""
        candidate = self._candidates.pop(path, None)
        if candidate is not None:
            self._pending -= not candidate.reported
        return candidate is not None

    def due(self, now: float, limit: int | None = None) -> list[Path]:
        """Return the files to `examine` now, newest mtime first, at most `limit`.

        The newest come first so that a frame of tonight never waits behind an archive.
        """
        while self._waiting and self._waiting[0][0] <= now:
            _, ticket, path = heapq.heappop(self._waiting)
            if self._valid(path, ticket):
                mtime_ns = self._candidates[path].signature.mtime_ns
                heapq.heappush(self._ready, (-mtime_ns, ticket, path))
        due: list[Path] = []
        while self._ready and (limit is None or len(due) < limit):
            _, ticket, path = heapq.heappop(self._ready)
            if self._valid(path, ticket):
                due.append(path)
        return due

    def next_due(self) -> float | None:
        """Return the monotonic time of the next look, s; None: there is no file."""
        while self._ready and not self._valid(self._ready[0][2], self._ready[0][1]):
            heapq.heappop(self._ready)
        while self._waiting and not self._valid(self._waiting[0][2], self._waiting[0][1]):
            heapq.heappop(self._waiting)
        if self._ready:
            return float("-inf")
        return self._waiting[0][0] if self._waiting else None

    def examine(self, path: Path, now: float) -> Outcome:
        """Look at one file that is due: stat, probe, stat again.

        `Settled`, `Vanished` and a final `Refused` end the observation, as does, in silence, a
        path that is no regular file. Otherwise the file waits for its next look.
        """
        candidate = self._candidates[path]
        try:
            stat = self._stat(path)
            if not st.S_ISREG(stat.st_mode):
                self.gone(path)
                return None
            if self._moving(path, candidate, stat, now):
                return None
            verdict = self._probe(path)
            # What changed while it was read was not the file that the verdict is about.
            stat = self._stat(path)
        except OSError as error:
            return self._trouble(path, candidate, error, now)
        if self._moving(path, candidate, stat, now):
            return None
        return self._judge(path, candidate, verdict, stat, now)

    def _moving(self, path: Path, candidate: _Candidate, stat: os.stat_result, now: float) -> bool:
        """Whether the file has not stood still long enough; if so it is scheduled again."""
        signature = Signature.of(stat)
        if signature != candidate.signature:
            self._start_afresh(candidate, signature, now)
        if now - candidate.since >= self._settle_s:
            return False
        self._schedule(path, candidate, candidate.since + self._settle_s)
        return True

    def _judge(
        self,
        path: Path,
        candidate: _Candidate,
        verdict: Verdict,
        stat: os.stat_result,
        now: float,
    ) -> Outcome:
        graced = now - candidate.since >= self._grace_s
        match verdict:
            case Complete():
                self.gone(path)
                return Settled(stat)
            case Unusable(reason):
                self.gone(path)
                return Refused(reason, stat, final=True)
            case Incomplete(tolerable=True) if graced:
                self.gone(path)
                return Settled(stat)
            case Incomplete(reason):
                first = self._wait(path, candidate, now, report=graced)
                if not first:
                    return None
                sentence = (
                    f"not complete after {self._grace_s:g} s: {reason}; "
                    f"looked at again, at least every {BACKOFF_LIMIT_S / 60:g} minutes"
                )
                return Refused(sentence, stat, final=False)

    def _trouble(self, path: Path, candidate: _Candidate, error: OSError, now: float) -> Outcome:
        if error.errno in _GONE:
            self.gone(path)
            return Vanished()
        # A busy device is normal for a moment; a lack of permission needs a person, at once.
        forbidden = error.errno in _FORBIDDEN
        overdue = now - candidate.since >= self._grace_s
        first = self._wait(path, candidate, now, report=forbidden or overdue)
        if not first:
            return None
        if forbidden:
            return Blocked(
                "permission denied: give the user of this service read access to the file and "
                "its folders; it is tried again"
            )
        return Blocked(f"cannot be read: {error.strerror or error}; it is tried again")

    def _wait(self, path: Path, candidate: _Candidate, now: float, *, report: bool) -> bool:
        """Schedule the next look; within the grace time soon, then ever more seldom.

        Returns whether this is the first time that `report` holds for this signature.
        """
        first = report and not candidate.reported
        if candidate.reported:
            candidate.delay = min(2 * candidate.delay, BACKOFF_LIMIT_S)
        else:
            candidate.delay = max(self._settle_s, _SHORTEST_WAIT_S)
        candidate.reported = candidate.reported or report
        self._pending -= first
        self._schedule(path, candidate, now + candidate.delay)
        return first

    def _start_afresh(self, candidate: _Candidate, signature: Signature, now: float) -> None:
        self._pending += candidate.reported
        candidate.signature, candidate.since = signature, now
        candidate.delay, candidate.reported = 0.0, False

    def _schedule(self, path: Path, candidate: _Candidate, due: float) -> None:
        candidate.ticket = next(self._tickets)
        heapq.heappush(self._waiting, (due, candidate.ticket, path))

    def _valid(self, path: Path, ticket: int) -> bool:
        candidate = self._candidates.get(path)
        return candidate is not None and candidate.ticket == ticket
