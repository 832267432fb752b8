"""Opening the library at the start of the service: its lock, its tables, its mark; and the wait for
a disk that is not there.
"""

import contextlib
import threading
from pathlib import Path

from calib_library import schema
from calib_library.errors import LibraryError
from calib_library.library import MASTERS_FOLDER
from daemon import storage
from daemon.errors import FatalError
from daemon.ledger.ledger import Ledger
from daemon.lock import Lock
from daemon.log import StatusLog
from daemon.sdnotify import Notifier
from daemon.storage import Storage, StorageError

LOOK_S = 5.0
"""Between two looks for a disk that is not there (s), where the watchdog does not ask for more."""


def open_library(root: Path) -> tuple[Storage, bool]:
    """Make or migrate the library's tables, mark its folder; the second value: it is new.

    Raises StorageError where its disk is in trouble, FatalError where a person must act.
    """
    database = root / schema.DATABASE_NAME
    absent = storage.missing(root, database=database)
    if absent is not None:
        raise StorageError(absent)
    new = not database.exists()
    marked = storage.read_marker(root)
    if marked and not database.exists() and _has_products(root):
        raise FatalError(
            f"the database of the library {root} is gone, its masters and stacks are there: copy "
            f"the newest file of {root / 'backup'} to {database}, or let `lightkeeper rebuild` "
            "make a new one from the files"
        )
    try:
        _check_whole(database)
        db = schema.connect(database)
        with contextlib.closing(db.conn):
            schema.apply(db)
            Ledger.prepare(db)
            id_ = schema.identify(db, proposed=marked or storage.new_id())
        return storage.establish(root, id_), new
    except Exception as error:
        kind = storage.kind_of(error)
        if kind is not None:
            raise StorageError(storage.describe(kind, root, error)) from error
        if isinstance(error, LibraryError):
            raise FatalError(
                f"{error} Copy the newest file of {root / 'backup'} over it, or let `lightkeeper "
                "rebuild` make a new one from the library's files."
            ) from error
        raise


def _check_whole(database: Path) -> None:
    """Raise LibraryError where the database is damaged, before anything is written to it."""
    if database.exists() and database.stat().st_size:
        wrong = schema.verdict(database)
        if wrong != "ok":
            raise LibraryError(f"The database {database} is damaged ({wrong}).")


def _has_products(root: Path) -> bool:
    masters = (root / MASTERS_FOLDER).glob("Master*.fits")
    return next(masters, None) is not None or next(root.glob("stacks/**/*.fits"), None) is not None


def _begin(root: Path, lock: Lock) -> tuple[Storage, bool]:
    """Make the folder, take the lock, open the library. Raises as `open_library`."""
    absent = storage.missing(root, database=root / schema.DATABASE_NAME)
    if absent is not None:
        raise StorageError(absent)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.take()
    except OSError as error:
        kind = storage.kind_of(error)
        if kind is not None:
            raise StorageError(storage.describe(kind, root, error)) from error
        raise FatalError(
            f"the library folder {root} cannot be written ({error.strerror}): make it, or give it "
            "to the user that runs Lightkeeper"
        ) from error
    return open_library(root)


def open_when_there(
    root: Path, lock: Lock, *, stopping: threading.Event, notifier: Notifier, wait: bool
) -> tuple[Storage, bool] | None:
    """Open the library as soon as its disk is there and well; None where it was told to stop.

    Until then nothing is written and nothing is lost: the frames lie in their folders. Without
    `wait` that is a FatalError.
    """
    journal = StatusLog(None)
    said = ""
    while True:
        try:
            return _begin(root, lock)
        except StorageError as error:
            lock.release()
            if not wait:
                raise FatalError(str(error)) from error
            if str(error) != said:
                said = str(error)
                journal.error("DISK", f"waiting: {said}")
        except BaseException:
            lock.release()
            raise
        # Started as far as that is possible: systemd must not take the waiting for a failure.
        notifier.ready()
        notifier.status(f"waiting: {said}")
        notifier.watchdog()
        if stopping.wait(min(notifier.watchdog_interval_s or LOOK_S, LOOK_S)):
            notifier.stopping()
            return None
