"""What other threads hand to the worker. It outlives a worker: while the library's disk is in
trouble there is none, and the frames that arrive are kept here for the next one.
"""

import collections
import os
import threading
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from daemon.intake.intake import Arrival


class Request(StrEnum):
    """What other threads may ask of the worker; each is idempotent."""

    MASTERS = "masters"
    END_OF_NIGHT = "end of the night"
    BACKUP = "backup"
    HOUSEKEEPING = "housekeeping"


class Inbox:
    """Arrivals and requests. Any thread puts in; the worker's alone takes out."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        """Set whenever something was put in; the worker clears it."""
        self._arrivals: collections.deque[tuple[Arrival, str | None]] = collections.deque()
        self._requests: dict[Request, None] = {}
        self._lock = threading.Lock()

    def arrived(self, arrival: Arrival, unusable: str | None = None) -> None:
        """A file is complete; or is no frame, for the reason given."""
        self._arrivals.append((arrival, unusable))
        self.wake.set()

    def refused(self, root: Path, path: Path, reason: str, stat: os.stat_result) -> None:
        """A file below `root` is no image, or is not complete after the time of grace."""
        arrival = Arrival(root, path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        self.arrived(arrival, reason)

    def request(self, request: Request) -> None:
        """Ask for something; it is done when the worker comes to it."""
        with self._lock:
            self._requests[request] = None
        self.wake.set()

    def arrivals(self, most: int) -> Iterator[tuple[Arrival, str | None]]:
        """Up to `most` arrivals, each of which stays here until the caller comes for the next:
        what fails to be recorded is not lost.
        """
        for _ in range(most):
            if not self._arrivals:
                return
            yield self._arrivals[0]
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
