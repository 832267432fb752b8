"""What other threads hand to the worker. It outlives a worker: while the library's disk is in
trouble there is none, and the frames that arrive are kept here for the next one.
"""

import collections
import os
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

from daemon.intake.intake import Arrival


class Request(StrEnum):
    """What other threads may ask of the worker; each is idempotent."""

    MASTERS = "masters"
    END_OF_NIGHT = "end of the night"
    BACKUP = "backup"
    HOUSEKEEPING = "housekeeping"


ARRIVALS_KEPT = 400
"""With so many waiting to be recorded the intake delivers no more: it knows which is the newest,
and tonight's frame must not stand in line behind an archive."""

Refusal = tuple[str, bool]
"""Why a file is no frame, and whether that is final."""


class Inbox:
    """Arrivals and requests. Any thread puts in; the worker's alone takes out."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        """Set whenever something was put in; the worker clears it."""
        self.forgotten: Callable[[Path, int, int], None] = lambda _path, _size, _mtime_ns: None
        """Told of the version of a file (path, bytes, mtime in ns) that was gone when its turn
        came: should it appear again, it is to be delivered again."""
        self.all_seen: Callable[[], bool] = lambda: True
        """Whether no file of the watched folders is on its way here."""
        self._arrivals: collections.deque[tuple[Arrival, Refusal | None]] = collections.deque()
        self._requests: dict[Request, None] = {}
        self._lock = threading.Lock()

    def arrived(self, arrival: Arrival, refusal: Refusal | None = None) -> None:
        """A file is complete; or is no frame, for the reason given."""
        self._arrivals.append((arrival, refusal))
        self.wake.set()

    def full(self) -> bool:
        """Enough files wait to be recorded."""
        return len(self._arrivals) >= ARRIVALS_KEPT

    def refused(
        self, root: Path, path: Path, reason: str, stat: os.stat_result, *, final: bool
    ) -> None:
        """A file below `root` is no image, or is not complete after the time of grace."""
        arrival = Arrival(root, path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        self.arrived(arrival, (reason, final))

    def request(self, request: Request) -> None:
        """Ask for something; it is done when the worker comes to it."""
        with self._lock:
            self._requests[request] = None
        self.wake.set()

    def arrivals(self, most: int) -> list[tuple[Arrival, Refusal | None]]:
        """Up to `most` arrivals, which stay here until they are `recorded`: what fails to be is
        not lost.
        """
        return [self._arrivals[n] for n in range(min(most, len(self._arrivals)))]

    def recorded(self, count: int) -> None:
        """Let go of the first `count` arrivals."""
        for _ in range(count):
            self._arrivals.popleft()

    def requests(self) -> Iterator[Request]:
        """What was asked, each once; it stays asked until the caller comes for the next."""
        while self._requests:
            request = next(iter(self._requests))
            yield request
            with self._lock:
                del self._requests[request]

    def empty(self) -> bool:
        """Is nothing waiting here?"""
        return not self._arrivals and not self._requests
