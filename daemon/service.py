"""The composition root: lock, log, threads, signals, supervision, start and stop."""

import contextlib
import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import calib_library
from calib_library import schema
from calib_library.library import CalibrationLibrary
from daemon import jobs
from daemon.config import Config
from daemon.errors import AlreadyRunningError, FatalError
from daemon.intake.intake import Intake
from daemon.ledger.ledger import KnownFiles, Ledger
from daemon.log import StatusLog
from daemon.sdnotify import Notifier
from daemon.worker import Worker

LOCK_NAME = "lightkeeper.lock"
LOG_NAME = "status.log"

HEARTBEAT_LIMIT_S = 120.0
"""A worker that has not shown itself for so long (s) gets no more watchdog pings: one frame, one
replayed frame or one tile of a master takes seconds even on a small machine."""

STOP_LIMIT_S = 60.0
"""s that the worker gets to finish the frame at hand and to write the stacks."""

IDLE_LOOKS = 3
"""`--until-idle` ends when nothing was left to do at so many looks in a row."""


def run(config: Config, *, until_idle: bool = False) -> int:
    """Run the service until SIGTERM or SIGINT, or until there is nothing left to do.

    Returns the exit code: 0, or 1 where something fatal happened. Raises AlreadyRunningError
    where another instance holds the library.
    """
    root = config.library.path
    new = not root.exists() or not any(root.iterdir())
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root):
        log = StatusLog(root / LOG_NAME)
        _bridge(log)
        database = root / schema.DATABASE_NAME
        _prepare(database, root)
        if new:
            log.info("LIBRARY", f"a new library was begun in {root}")
        log.info(
            "START",
            f"Lightkeeper {calib_library.__version__} watches "
            + ", ".join(str(watch.path) for watch in config.watch),
        )
        try:
            code = _supervise(config, database, log, until_idle=until_idle)
        except FatalError as error:
            log.error("FATAL", str(error))
            code = 1
        log.info("STOP", "stopped" if code == 0 else "stopped by an error")
        return code


def _supervise(config: Config, database: Path, log: StatusLog, *, until_idle: bool) -> int:
    notifier = Notifier.from_environment()
    stopping = _signals()
    worker = Worker(config=config, database=database, log=log, hurry=until_idle)
    intake = Intake(
        roots={watch.path: watch.settle_s for watch in config.watch},
        known=KnownFiles(database),
        arrived=worker.arrived,
        unusable=worker.unusable,
        log=log,
        rescan_s=config.service.rescan_s,
        ignore=(config.library.path,),
        until_idle=until_idle,
    )
    worker.start()
    intake.start()
    scheduler = jobs.schedule(
        config.service, rescan=intake.rescan, request=worker.request, log=log
    )
    quiet = 0
    period = min(notifier.watchdog_interval_s or 5.0, 0.2 if until_idle else 5.0)
    ready = False
    try:
        while not stopping.wait(period):
            if not worker.is_alive() or not intake.is_alive():
                break
            if not ready and worker.started.is_set() and intake.scanning.is_set():
                ready = notifier.ready() or True
            fresh = time.monotonic() - worker.beat_at < HEARTBEAT_LIMIT_S
            notifier.status(worker.doing)
            if fresh and not intake.problems():
                notifier.watchdog()
            if until_idle:
                quiet = quiet + 1 if worker.started.is_set() and _idle(intake, worker) else 0
                if quiet >= IDLE_LOOKS:
                    break
    finally:
        notifier.stopping()
        scheduler.shutdown(wait=False)
        intake.stop()
        intake.join(STOP_LIMIT_S)
        worker.stop()
        worker.join(STOP_LIMIT_S)
    if worker.error is not None or worker.is_alive():
        return 1
    return 0


def _idle(intake: Intake, worker: Worker) -> bool:
    # The intake first: what it hands over shows at the worker.
    return intake.idle() and worker.idle


def _signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set (only where this is the main thread)."""
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
    return stopping


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Hold the library's lock; the kernel releases it however the process ends."""
    descriptor = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunningError(
                f"another Lightkeeper works on {root} already: stop it first "
                "(systemctl stop lightkeeper), or give this one another library"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _prepare(database: Path, root: Path) -> None:
    """Make or migrate the tables before any thread opens the database."""
    db = schema.connect(database)
    CalibrationLibrary(db, root)
    schema.apply(db)
    Ledger.prepare(db)
    db.conn.close()


def _bridge(log: StatusLog) -> None:
    """What other libraries warn of belongs into the status log."""
    for name in ("apscheduler", "watchdog"):
        logger = logging.getLogger(name)
        logger.handlers = [log.handler()]
        logger.setLevel(logging.WARNING)
        logger.propagate = False
