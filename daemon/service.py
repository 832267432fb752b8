"""The composition root: library, lock, log, threads, signals, supervision, start and stop."""

import contextlib
import datetime as dt
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import calib_library
from calib_library import schema
from daemon import jobs, opening, orders, storage
from daemon.config import Config
from daemon.errors import ConfigError, FatalError
from daemon.inbox import Inbox
from daemon.intake.intake import Intake, Timing, Watched
from daemon.ledger.known import KnownFiles
from daemon.lock import Lock
from daemon.log import LOG_NAME, StatusLog
from daemon.report.collect import HEARTBEAT_NAME
from daemon.sdnotify import Notifier
from daemon.storage import Kind, Storage, StorageError, Trouble
from daemon.worker import Worker

HEARTBEAT_LIMIT_S = 120.0
"""A worker that has not shown itself for so long (s) gets no more watchdog pings: one frame, one
replayed frame or one tile of a master takes seconds even on a small machine."""

INTAKE_LIMIT_S = 120.0
"""The same for the intake: it works in small steps, but a slow share can hold one up."""

GRACE_S = 60.0
"""A file that is not whole and does not grow is reported after so long (s)."""

HURRIED_GRACE_S = 5.0
"""`--until-idle` waits so long (s) for a file that is not whole."""

STOP_LIMIT_S = 45.0
"""s that worker and intake get together to finish the frame at hand and to write the stacks; less
than the unit's TimeoutStopSec. What is not written then is made again at the next start."""

IDLE_LOOKS = 3
"""`--until-idle` ends when nothing was left to do at so many looks in a row …"""
IDLE_PERIOD_S = 0.05
"""… of which the next one follows the one before after so long (s)."""

PERIOD_S = 5.0
"""Between two looks at the threads (s), where the watchdog does not ask for more."""

ROOM_EVERY_S = 600.0
"""Between two looks at the room on the library's disk (s)."""

Reread = Callable[[], Config]
"""Reads the configuration again; raises ConfigError."""


def run(
    config: Config,
    *,
    until_idle: bool = False,
    not_before: threading.Event | None = None,
    reread: Reread | None = None,
) -> int:
    """Run the service until SIGTERM or SIGINT, or until there is nothing left to do.

    With `until_idle` and `not_before`, it does not end before that event is set: somebody else
    still writes frames. On SIGHUP the configuration is read again by `reread`. Returns the exit
    code: 0, or 1 where something fatal happened. Raises FatalError where it cannot begin
    (AlreadyRunningError: another instance holds the library).
    """
    root = config.library.path
    signals = Signals()
    notifier = Notifier.from_environment()
    lock = Lock(root)
    opened = opening.open_when_there(
        root, lock, stopping=signals.stopping, notifier=notifier, wait=not until_idle
    )
    if opened is None:
        return 0
    library, new = opened
    with lock:  # taken already
        log = StatusLog(root / LOG_NAME, present=library.present)
        _bridge(log)
        if new:
            log.info("LIBRARY", f"a new library was begun in {root}")
        log.info("START", _watches(config))
        service = Service(
            config,
            library=library,
            lock=lock,
            log=log,
            notifier=notifier,
            signals=signals,
            reread=reread,
            until_idle=until_idle,
            not_before=not_before,
        )
        try:
            code = service.run()
        except FatalError as error:
            log.error("FATAL", str(error))
            code = 1
        log.info("STOP", "stopped" if code == 0 else "stopped by an error")
        return code


def carry_out(config: Config, asked: Sequence[orders.Order]) -> int:
    """Do what is asked where no daemon runs; returns the exit code.

    Raises FatalError (AlreadyRunningError where a daemon runs).
    """
    root = config.library.path
    with Lock(root):
        try:
            library, _ = opening.open_library(root)
        except StorageError as error:
            raise FatalError(str(error)) from error
        log = StatusLog(root / LOG_NAME, present=library.present)
        for order in asked:
            orders.leave(root, order)
        log.info("START", f"Lightkeeper {calib_library.__version__} does what was asked")
        worker = Worker(config=config, storage=library, log=log, inbox=Inbox(), frames_come=False)
        worker.hurry()
        worker.start()
        while worker.is_alive() and not worker.idle:
            time.sleep(0.1)
        worker.stop()
        worker.join()
        if worker.trouble is not None:
            log.error("DISK", worker.trouble.text)
        return 1 if worker.error is not None else 0


# --- supervision ---------------------------------------------------------------------------------


class Signals:
    """What SIGTERM, SIGINT and SIGHUP ask for (only where this is the main thread)."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.reload = threading.Event()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._stop)
            signal.signal(signal.SIGHUP, self._reload)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopping.set()

    def _reload(self, _number: int, _frame: FrameType | None) -> None:
        self.reload.set()


class Service:
    """The threads of a running service, watched over by the thread that calls `run`.

    The worker is replaced where the library's disk was in trouble (as after a crash, it goes on
    from what was committed) and where the configuration was read again; what arrives meanwhile is
    kept in the inbox.
    """

    def __init__(
        self,
        config: Config,
        *,
        library: Storage,
        lock: Lock,
        log: StatusLog,
        notifier: Notifier,
        signals: Signals,
        reread: Reread | None,
        until_idle: bool,
        not_before: threading.Event | None,
    ) -> None:
        self._config = config
        self._library = library
        self._lock = lock
        self._log = log
        self._notifier = notifier
        self._signals = signals
        self._reread = reread
        self._until_idle = until_idle
        self._not_before = not_before
        self._inbox = Inbox()
        self._known = KnownFiles(library.root / schema.DATABASE_NAME)
        self._worker = self._new_worker()
        self._intake = self._new_intake()
        self._trouble: Trouble | None = None
        """Of the library's disk: while there is any, no worker runs."""
        self._trouble_at = 0.0
        """When it began (monotonic s)."""
        self._said: str | None = None
        """The trouble that was told, until the work goes on."""
        self._announced = False
        """systemd has been told that the work has begun, with this configuration."""
        self._room_at = float("-inf")
        """When the room on the disk was looked at (monotonic s)."""
        self._low: str | None = None
        """That the room is low, as a sentence."""

    def run(self) -> int:
        """Supervise until something ends; returns the exit code."""
        self._worker.start()
        self._intake.start()
        self._clock = self._schedule()
        period = min(
            self._notifier.watchdog_interval_s or PERIOD_S, 0.2 if self._until_idle else PERIOD_S
        )
        quiet = 0
        try:
            while not self._signals.stopping.wait(IDLE_PERIOD_S if quiet else period):
                self._look_at_the_disk()
                if not self._intake.is_alive() or not (self._worker.is_alive() or self._trouble):
                    break
                begun = self._worker.started.is_set() or self._trouble is not None
                if not self._announced and begun and self._intake.wait_started(0.0):
                    self._announced = self._announce()
                if self._signals.reload.is_set():
                    self._signals.reload.clear()
                    self._reload()
                self._tell()
                if self._may_end():
                    quiet = quiet + 1 if self._idle() else 0
                    if quiet >= IDLE_LOOKS:
                        break
        finally:
            self._notifier.stopping()
            self._stop()
        return self._verdict()

    # -- parts ------------------------------------------------------------------------------

    def _new_worker(self, *, innocent: int | None = None) -> Worker:
        return Worker(
            config=self._config,
            storage=self._library,
            log=self._log,
            inbox=self._inbox,
            innocent=innocent,
        )

    def _new_intake(self) -> Intake:
        watched = [Watched(watch.path, watch.settle_s) for watch in self._config.watch]

        def unusable(path: Path, reason: str, stat: os.stat_result, final: bool) -> None:  # noqa: FBT001 — the intake's callback
            roots = (watch.path for watch in watched if path.is_relative_to(watch.path))
            self._inbox.refused(next(roots, path.parent), path, reason, stat, final=final)

        intake = Intake(
            watched,
            arrived=self._inbox.arrived,
            unusable=unusable,
            known=self._known,
            event=self._log.event,
            full=self._inbox.full,
            ignore=(self._library.root,),
            timing=Timing(
                grace_s=HURRIED_GRACE_S if self._until_idle else GRACE_S,
                scan_s=self._config.service.rescan_s,
            ),
            # An archive needs no events; a camera that is still at work does.
            watch=not self._until_idle or self._not_before is not None,
        )
        self._inbox.forgotten = intake.again
        self._inbox.all_seen = intake.idle
        return intake

    def _schedule(self) -> jobs.Clock:
        return jobs.schedule(
            self._config.service,
            rescan=self._intake.rescan,
            request=self._inbox.request,
            log=self._log,
        )

    def _stop(self) -> None:
        """End all threads, within STOP_LIMIT_S."""
        self._clock.shutdown(wait=False)
        end = time.monotonic() + STOP_LIMIT_S
        self._intake.stop(STOP_LIMIT_S / 4)
        # Before the worker's: only a writer that closes last takes the -wal file away.
        self._known.away(away=True)
        self._worker.stop()
        if self._worker.ident is not None:  # it was started
            self._worker.join(max(0.0, end - time.monotonic()))

    def _verdict(self) -> int:
        if self._intake.failure is not None:
            self._log.error("FATAL", f"the intake has ended: {self._intake.failure}")
        if self._worker.is_alive():
            self._log.error(
                "STOP",
                f"the worker ({self._worker.doing}) did not end within {STOP_LIMIT_S:.0f} s and is "
                "left behind; nothing is lost",
            )
        worker_failed = self._worker.error is not None and self._worker.trouble is None
        if self._until_idle and self._worker.trouble is not None:
            self._log.error("DISK", self._worker.trouble.text)
            worker_failed = True
        failed = worker_failed or self._worker.is_alive() or self._intake.failure is not None
        return 1 if failed else 0

    # -- what is told -----------------------------------------------------------------------

    def _announce(self) -> bool:
        """Tell systemd that all stands; False where it does not listen at the moment."""
        return self._notifier.ready() or self._notifier.address is None

    def _tell(self) -> None:
        """Tell systemd, and leave word for `lightkeeper status`, of what happens now."""
        problems = self._problems()
        notes = [note for note in (self._trouble and self._trouble.text, self._low) if note]
        doing = "paused" if self._trouble else self._worker.doing
        self._notifier.status("; ".join([doing, *problems, *notes]))
        if not problems:
            self._notifier.watchdog()
        if not self._library.present():
            return
        said = {
            "pid": os.getpid(),
            "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "doing": doing,
            "since": self._worker.doing_since.isoformat(timespec="seconds"),
            "problems": [*problems, *notes],
        }
        # A convenience that is written often: replaced whole, but not worth an fsync; and not
        # worth a word where the disk refuses it: that is told already.
        temporary = self._library.root / f".{HEARTBEAT_NAME}.tmp"
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(said, indent=1))
            temporary.replace(self._library.root / HEARTBEAT_NAME)

    def _problems(self) -> list[str]:
        """Why systemd should not be told that all is well."""
        problems = []
        silent = time.monotonic() - self._worker.beat_at
        if self._trouble is None and silent > HEARTBEAT_LIMIT_S:
            problems.append(f"the worker has been silent for {silent:.0f} s ({self._worker.doing})")
        silent = self._intake.silent_s()
        if silent > INTAKE_LIMIT_S:
            problems.append(f"the intake has been silent for {silent:.0f} s")
        return problems

    def _may_end(self) -> bool:
        return self._until_idle and (self._not_before is None or self._not_before.is_set())

    def _idle(self) -> bool:
        # The intake first: what it hands over shows at the worker.
        if self._intake.idle():
            self._worker.hurry()
        return self._worker.started.is_set() and self._intake.idle() and self._worker.idle

    # -- the library's disk -----------------------------------------------------------------

    def _look_at_the_disk(self) -> None:
        """Pause where the worker ended with the disk's trouble, go on when that is over."""
        if self._trouble is not None:
            self._try_again(self._trouble)
        elif not self._worker.is_alive() and self._worker.trouble and not self._until_idle:
            self._pause(self._worker.trouble)
        elif self._said and self._worker.steps:
            self._said = None
            self._log.info("DISK", "the library can be written again: the work goes on")
        now = time.monotonic()
        if now - self._room_at >= ROOM_EVERY_S and self._trouble is None:
            self._room_at = now
            low = storage.low_room(self._library.root, now=time.time())
            if low and not self._low:
                self._log.warning("DISK", low)
            self._low = low

    def _pause(self, trouble: Trouble) -> None:
        self._trouble, self._trouble_at = trouble, time.monotonic()
        # Nothing of the library stays open, so that its disk can be unmounted and repaired.
        self._known.away(away=True)
        self._lock.release()
        if self._said is None:
            self._log.error("DISK", f"paused: {trouble.text}")
        self._said = trouble.text

    def _try_again(self, trouble: Trouble) -> None:
        if not self._library.over(trouble, time.monotonic() - self._trouble_at):
            return
        try:
            self._lock.take()
        except OSError:  # gone again this very moment
            return
        innocent = None if trouble.kind is Kind.FAULTY else self._worker.at_hand
        self._trouble = None
        self._known.away(away=False)
        self._worker = self._new_worker(innocent=innocent)
        self._worker.start()

    # -- the configuration ------------------------------------------------------------------

    def _reload(self) -> None:
        """Read the configuration again and go on with it; with mistakes the old one stays."""
        if self._reread is None:
            return
        self._notifier.reloading()
        try:
            config = self._reread()
        except ConfigError as error:
            for problem in error.problems:
                self._log.error("CONFIG", problem)
            self._log.error("CONFIG", "the configuration has mistakes: the old one stays in force")
        else:
            self._take_over(config)
        self._announced = self._announce()

    def _take_over(self, config: Config) -> None:
        """Replace the parts that are made of the configuration. The frame at hand is finished."""
        if config == self._config:
            self._log.info("CONFIG", "read again: nothing has changed")
            return
        if config.library.path != self._config.library.path:
            self._log.warning(
                "CONFIG",
                f"another library ({config.library.path}) is taken at the next start only "
                "(systemctl restart lightkeeper); everything else is taken now",
            )
            config = config.model_copy(update={"library": self._config.library})
        changed = [
            name for name in type(config).model_fields
            if getattr(config, name) != getattr(self._config, name)
        ]  # fmt: skip
        self._clock.shutdown(wait=False)
        self._intake.stop(STOP_LIMIT_S / 4)
        self._worker.stop()
        while self._worker.is_alive() and not self._signals.stopping.is_set():
            self._worker.join(1.0)
            if not self._problems():
                self._notifier.watchdog()
        self._config = config
        if self._worker.error is None and self._trouble is None:
            self._worker = self._new_worker()
            self._worker.start()
        self._intake = self._new_intake()
        self._intake.start()
        self._clock = self._schedule()
        self._log.info("CONFIG", f"read again; changed: {', '.join(changed)}. {_watches(config)}")


def _watches(config: Config) -> str:
    return f"Lightkeeper {calib_library.__version__} watches " + ", ".join(
        str(watch.path) for watch in config.watch
    )


def _bridge(log: StatusLog) -> None:
    """What other libraries warn of belongs into the status log."""
    for name in ("apscheduler", "watchdog"):
        logger = logging.getLogger(name)
        logger.handlers = [log.handler()]
        logger.setLevel(logging.WARNING)
        logger.propagate = False
