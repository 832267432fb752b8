"""Which files the ledger has already: asked by the thread that takes files in."""

import os
import sqlite3
import threading
from pathlib import Path

import sqlite_utils

from calib_library.errors import LibraryError
from calib_library.schema import connect
from daemon.ledger import schema


class KnownFiles:
    """Which versions of which files the ledger has: asked by the intake's thread. One that is
    recorded as incomplete is not among them: it is looked at again.

    It has its own read-only connection, opened at the first question.
    While the library's disk is in trouble nothing is known: what is delivered twice is recorded
    once all the same.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._db: sqlite_utils.Database | None = None
        self._away = False
        self._lock = threading.Lock()

    def away(self, *, away: bool) -> None:
        """Let go of the database, so that its disk can be unmounted; or come back to it. For any
        thread.
        """
        with self._lock:
            self._away = away
            self._close()

    def __call__(self, path: Path, size: int, mtime_ns: int) -> bool:
        """Is this version of the file recorded?"""
        with self._lock:
            if self._away:
                return False
            try:
                if self._db is None:
                    self._db = connect(self._database, readonly=True, any_thread=True)
                rows = self._db.query(
                    "SELECT 1 FROM frame "  # noqa: S608
                    f"WHERE path = ? AND size = ? AND mtime_ns = ? AND NOT {schema.INCOMPLETE}",
                    (os.fsencode(path), size, mtime_ns),
                )
                return next(iter(rows), None) is not None
            except (LibraryError, sqlite3.Error):
                # The worker meets the same trouble, and says what it is.
                self._close()
                return False

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
