"""The composition root: lock, log, threads, signals, supervision, start and stop."""

import contextlib
import datetime as dt
import fcntl
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import calib_library
from calib_library import schema
from calib_library.library import CalibrationLibrary
from daemon import jobs, orders
from daemon.config import Config
from daemon.errors import AlreadyRunningError, FatalError
from daemon.intake.intake import Intake, Timing, Watched
from daemon.ledger.ledger import KnownFiles, Ledger
from daemon.log import StatusLog
from daemon.report.collect import HEARTBEAT_NAME, LOCK_NAME
from daemon.sdnotify import Notifier
from daemon.worker import Worker

LOG_NAME = "status.log"

HEARTBEAT_LIMIT_S = 120.0
"""A worker that has not shown itself for so long (s) gets no more watchdog pings: one frame, one
replayed frame or one tile of a master takes seconds even on a small machine."""

INTAKE_LIMIT_S = 120.0
"""The same for the intake: it works in small steps, but a slow share can hold one up."""

GRACE_S = 60.0
"""A file that is not whole and does not grow is reported after so long (s)."""

HURRIED_GRACE_S = 5.0
"""`--until-idle` waits so long (s) for a file that is not whole."""

STOP_LIMIT_S = 60.0
"""s that the worker gets to finish the frame at hand and to write the stacks."""

IDLE_LOOKS = 3
"""`--until-idle` ends when nothing was left to do at so many looks in a row."""


def run(
    config: Config, *, until_idle: bool = False, not_before: threading.Event | None = None
) -> int:
    """Run the service until SIGTERM or SIGINT, or until there is nothing left to do.

    With `until_idle` and `not_before`, it does not end before that event is set: somebody else
    still writes frames. Returns the exit code: 0, or 1 where something fatal happened. Raises
    AlreadyRunningError where another instance holds the library.
    """
    root = config.library.path
    try:
        new = not root.exists() or not any(root.iterdir())
        root.mkdir(parents=True, exist_ok=True)
        (root / LOCK_NAME).touch()
    except OSError as error:
        raise FatalError(
            f"the library folder {root} cannot be written ({error.strerror}): make it, or give it "
            "to the user that runs Lightkeeper"
        ) from error
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
            code = _supervise(config, database, log, until_idle=until_idle, not_before=not_before)
        except FatalError as error:
            log.error("FATAL", str(error))
            code = 1
        log.info("STOP", "stopped" if code == 0 else "stopped by an error")
        return code


def carry_out(config: Config, asked: Sequence[orders.Order]) -> int:
    """Do what is asked where no daemon runs; returns the exit code.

    Raises AlreadyRunningError where one does.
    """
    root = config.library.path
    with _lock(root):
        log = StatusLog(root / LOG_NAME)
        for order in asked:
            orders.leave(root, order)
        log.info("START", f"Lightkeeper {calib_library.__version__} does what was asked")
        worker = Worker(config=config, database=root / schema.DATABASE_NAME, log=log)
        worker.hurry()
        worker.start()
        while worker.is_alive() and not worker.idle:
            time.sleep(0.1)
        worker.stop()
        worker.join()
        return 1 if worker.error is not None else 0


def _supervise(
    config: Config,
    database: Path,
    log: StatusLog,
    *,
    until_idle: bool,
    not_before: threading.Event | None,
) -> int:
    notifier = Notifier.from_environment()
    stopping = _signals()
    worker = Worker(config=config, database=database, log=log)
    intake = Intake(
        [Watched(watch.path, watch.settle_s) for watch in config.watch],
        arrived=worker.arrived,
        unusable=worker.unusable,
        known=KnownFiles(database),
        event=log.event,
        full=worker.full,
        ignore=(config.library.path,),
        timing=Timing(
            grace_s=HURRIED_GRACE_S if until_idle else GRACE_S,
            scan_s=config.service.rescan_s,
        ),
        # An archive needs no events; a camera that is still at work does.
        watch=not until_idle or not_before is not None,
    )
    worker.forgotten = intake.again
    worker.start()
    intake.start()
    scheduler = jobs.schedule(config.service, rescan=intake.rescan, request=worker.request, log=log)
    quiet = 0
    period = min(notifier.watchdog_interval_s or 5.0, 0.2 if until_idle else 5.0)
    ready = False
    try:
        while not stopping.wait(period):
            if not worker.is_alive() or not intake.is_alive():
                break
            if not ready and worker.started.is_set() and intake.wait_started(0.0):
                ready = notifier.ready() or True
            problems = _problems(worker, intake)
            notifier.status("; ".join([worker.doing, *problems]))
            _heartbeat(config.library.path, worker, problems)
            if not problems:
                notifier.watchdog()
            if until_idle and (not_before is None or not_before.is_set()):
                if intake.idle():
                    worker.hurry()
                quiet = quiet + 1 if worker.started.is_set() and _idle(intake, worker) else 0
                if quiet >= IDLE_LOOKS:
                    break
    finally:
        notifier.stopping()
        scheduler.shutdown(wait=False)
        intake.stop(STOP_LIMIT_S)
        worker.stop()
        worker.join(STOP_LIMIT_S)
    if intake.failure is not None:
        log.error("FATAL", f"the intake has ended: {intake.failure}")
    failed = worker.error is not None or intake.failure is not None or worker.is_alive()
    return 1 if failed else 0


def _problems(worker: Worker, intake: Intake) -> list[str]:
    """Why systemd should not be told that all is well."""
    problems = []
    silent = time.monotonic() - worker.beat_at
    if silent > HEARTBEAT_LIMIT_S:
        problems.append(f"the worker has been silent for {silent:.0f} s ({worker.doing})")
    silent = intake.silent_s()
    if silent > INTAKE_LIMIT_S:
        problems.append(f"the intake has been silent for {silent:.0f} s")
    return problems


def _heartbeat(root: Path, worker: Worker, problems: Sequence[str]) -> None:
    """Leave word for `lightkeeper status` of what happens now."""
    said = {
        "pid": os.getpid(),
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "doing": worker.doing,
        "since": worker.doing_since.isoformat(timespec="seconds"),
        "problems": list(problems),
    }
    # A convenience that is written often: replaced whole, but not worth an fsync.
    temporary = root / f".{HEARTBEAT_NAME}.tmp"
    temporary.write_text(json.dumps(said, indent=1))
    temporary.replace(root / HEARTBEAT_NAME)


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
