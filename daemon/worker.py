"""The one thread that does the work: takes arrivals in, claims frames, builds masters, makes stale
stacks again, writes products. It owns the only writing connection to the database.
"""

import dataclasses
import datetime as dt
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

from sqlite_utils import Database

from calib_library import image_io, schema
from calib_library.errors import HeaderError, ImageError
from calib_library.library import CalibrationLibrary
from daemon import masters, remake, warmup
from daemon.calibration import Calibrator
from daemon.config import Config
from daemon.errors import (
    FrameDeferredError,
    FrameQuarantinedError,
    FrameRejectedError,
)
from daemon.intake.intake import Arrival
from daemon.ledger.ledger import Explanation, Frame, Identity, Ledger
from daemon.ledger.stacks import Stacks
from daemon.ledger.states import State
from daemon.log import StatusLog
from daemon.pipeline import Pipeline, night_of
from daemon.publish import Publisher
from daemon.stack.store import Growing, LiveStacks

MEGABYTE = 1_000_000

ARRIVALS_AT_ONCE = 200
"""Recorded in one go before a frame is worked on: a burst must not hold back the work."""

RETRY_S = 30.0

MASTERS_EVERY_S = 2.0


class Request(StrEnum):
    """What other threads may ask of the worker; each is idempotent."""

    MASTERS = "masters"
    END_OF_NIGHT = "end of the night"
    BACKUP = "backup"
    HOUSEKEEPING = "housekeeping"


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """What works on frames, put together over one connection."""

    ledger: Ledger
    stacks: Stacks
    live: LiveStacks
    pipeline: Pipeline
    publisher: Publisher


def compose(
    config: Config,
    db: Database,
    log: StatusLog,
    *,
    quiet_s: Callable[[], float],
    beat: remake.Beat,
) -> Parts:
    """Put the parts together. `quiet_s` tells how long a set must be quiet before its master is
    built; `beat` is called with what is being done whenever something takes time.
    """
    settings = config.calibration
    root = config.library.path
    ledger, stacks = Ledger(db), Stacks(db)
    library = CalibrationLibrary(db, root, temperature_tolerance_c=settings.temperature_tolerance_c)
    calibrator = Calibrator(
        library,
        root=root,
        temperature_tolerance_c=settings.temperature_tolerance_c,
        min_frames=settings.min_frames,
        quiet_s=quiet_s,
    )
    images = LiveStacks(
        memory_bytes=config.stack.memory_mb * MEGABYTE,
        # A replay takes the frames' way again, which is put together below.
        replay=lambda stack, members: remake.replay(pipeline, stack, members, beat),
    )
    pipeline = Pipeline(
        config=config,
        library=library,
        ledger=ledger,
        stacks=stacks,
        live=images,
        calibrator=calibrator,
        log=log,
    )
    publisher = Publisher(
        config=config, ledger=ledger, library=library, stacks=stacks, live_stacks=images, log=log
    )
    return Parts(ledger, stacks, images, pipeline, publisher)


class Worker(threading.Thread):
    """Runs until `stop`. An error that is not one frame's ends it, and is kept in `error`."""

    def __init__(self, *, config: Config, database: Path, log: StatusLog) -> None:
        super().__init__(name="worker")
        self._config = config
        self._database = database
        self._log = log
        self._arrivals: queue.SimpleQueue[tuple[Arrival, str | None]] = queue.SimpleQueue()
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._hurried = threading.Event()
        self.started = threading.Event()
        """Set once the tables are ready and the first frame could be taken."""
        self.error: BaseException | None = None
        self.beat_at = time.monotonic()
        """When the worker last showed that it is alive (monotonic s)."""
        self.doing = "starting"
        self.doing_since = self._now()
        self.idle = False
        """Nothing is left to do at the moment."""

    # -- called by other threads ------------------------------------------------------------

    def arrived(self, arrival: Arrival) -> None:
        """A file is complete."""
        self.idle = False
        self._arrivals.put((arrival, None))
        self._wake.set()

    def unusable(self, path: Path, reason: str, stat: os.stat_result) -> None:
        """A file is no image, or is not complete after the time of grace."""
        self.idle = False
        root = next(
            (watch.path for watch in self._config.watch if path.is_relative_to(watch.path)),
            path.parent,
        )
        arrival = Arrival(root, path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        self._arrivals.put((arrival, reason))
        self._wake.set()

    def request(self, request: Request) -> None:
        """Ask for something; it is done when the worker comes to it."""
        self._requests.put(request)
        self._wake.set()

    def hurry(self) -> None:
        """All frames are there: wait for no more before a master is built."""
        if not self._hurried.is_set():
            self._hurried.set()
            self.idle = False
            self._wake.set()

    def stop(self) -> None:
        """Finish the frame at hand, write what is not written, and end."""
        self._stopping.set()
        self._wake.set()

    # -- the thread -------------------------------------------------------------------------

    def run(self) -> None:
        """The loop; see the module."""
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 — kept for the supervisor, who ends with it
            self.error = error
            self._log.error("FATAL", f"the worker has ended: {error}")
            traceback.print_exc()

    def _work(self) -> None:
        db = schema.connect(self._database)
        parts = compose(self._config, db, self._log, quiet_s=self._quiet_s, beat=self._beat)
        self._ledger, self._stacks, self._live = parts.ledger, parts.stacks, parts.live
        self._pipeline, self._publisher = parts.pipeline, parts.publisher
        void = self._ledger.release_claims()
        if void:
            self._log.info("RESUME", f"{void} frames were being worked on when it stopped")
        self._sweep()
        self.started.set()
        self._beat("preparing the kernels")
        warmup.kernels()
        while not self._stopping.is_set():
            self._requests_now()
            busy = self._step()
            self.idle = not busy and self._arrivals.empty() and self._requests.empty()
            if self.idle:
                self._beat("waiting for frames")
                self._wake.wait(1.0)
                self._wake.clear()
        self._beat("stopping: writing the stacks")
        self._publisher.tick(self._now(), flush=True)
        if self._hurried.is_set():
            self._publisher.colour()
        db.conn.close()

    def _step(self) -> bool:
        """One piece of work, the most urgent first. False where there is none."""
        now = self._now()
        taken = self._take_arrivals()
        if taken:
            return True
        # Masters go before lights: once no more calibration frames are queued, what is complete
        # is built, and the lights that come after get it.
        if not self._ledger.calibration_pending() and self._build_masters(now):
            return True
        frame = self._ledger.claim(now)
        if frame is not None:
            self._attempt(frame, now)
            self._publisher.tick(self._now())
            return True
        stale = self._stacks.stale()
        if stale:
            self._remake(stale[0].id)
            return True
        self._publisher.tick(now)
        return self._catch_up()

    def _catch_up(self) -> bool:
        """Bring a stack into memory whose product lacks frames: the publisher does the rest."""
        for stack in self._stacks.behind():
            if stack.id not in self._live:
                self._live.get(stack, self._stacks.members(stack.id))
                return True
        return False

    def _build_masters(self, now: dt.datetime) -> bool:
        quiet_s = self._quiet_s()
        built = masters.build_due(self._pipeline, now=now, quiet_s=quiet_s, beat=self._beat)
        return built + masters.release(self._pipeline, now=now, quiet_s=quiet_s) > 0

    def _quiet_s(self) -> float:
        return 0.0 if self._hurried.is_set() else self._config.calibration.quiet_s

    def _now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC)

    def _beat(self, doing: str) -> None:
        self.beat_at = time.monotonic()
        if doing != self.doing:
            self.doing, self.doing_since = doing, self._now()

    # -- arrivals ---------------------------------------------------------------------------

    def _take_arrivals(self) -> bool:
        taken = False
        for _ in range(ARRIVALS_AT_ONCE):
            try:
                arrival, unusable = self._arrivals.get_nowait()
            except queue.Empty:
                break
            taken = True
            self._take(arrival, unusable)
        return taken

    def _take(self, arrival: Arrival, unusable: str | None) -> None:
        stat = (arrival.path, arrival.root, arrival.size, arrival.mtime_ns)
        if unusable is None:
            self._ledger.add(*stat, identity=self._identify(arrival), now=self._now())
        elif self._ledger.add_unusable(*stat, reason=unusable, now=self._now()):
            self._log.warning("REJECTED", unusable, frame=arrival.path.name)

    def _identify(self, arrival: Arrival) -> Identity | None:
        """What the header says, for the order of the queue. What is wrong with it is said when
        the frame's turn comes.
        """
        try:
            info = image_io.probe(arrival.path)
            return self._pipeline.identify(info, root=arrival.root, mtime_ns=arrival.mtime_ns)
        except (ImageError, HeaderError, OSError):
            return None

    # -- frames -----------------------------------------------------------------------------

    def _attempt(self, frame: Frame, now: dt.datetime) -> None:
        """Process one claimed frame; whatever happens to it is recorded."""
        self._beat(f"working on {frame.name}")
        most = self._config.service.max_attempts
        if frame.attempts > most:
            self._ledger.finish(
                frame,
                State.FAILED,
                now=now,
                reason=f"given up after {most} attempts: {frame.reason}",
            )
            self._log.error("FAILED", f"given up after {most} attempts", frame=frame.name)
            return
        try:
            self._pipeline.process(frame, now=now)
        except FrameRejectedError as error:
            self._ledger.finish(frame, State.REJECTED, now=now, reason=str(error))
            self._log.warning("REJECTED", str(error), frame=frame.name)
        except FrameQuarantinedError as error:
            self._ledger.finish(frame, State.QUARANTINED, now=now, reason=str(error))
            self._log.warning("QUARANTINED", str(error), frame=frame.name)
        except FrameDeferredError as error:
            self._defer(frame, error, now)
        except (MemoryError, OSError, ValueError, ArithmeticError, LookupError) as error:
            self._retry(frame, error, now)

    def _defer(self, frame: Frame, error: FrameDeferredError, now: dt.datetime) -> None:
        if not frame.path.exists():
            self._ledger.forget(frame)
            self._log.warning("GONE", "the file vanished before it was read", frame=frame.name)
            return
        stat = frame.path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (frame.size, frame.mtime_ns):
            self._ledger.forget(frame)  # the intake delivers the new version
            return
        self._ledger.defer(
            frame, reason=str(error), until=now + dt.timedelta(seconds=error.retry_s)
        )
        self._log.warning(
            "DEFERRED", f"{error}; tried again in {error.retry_s:.0f} s", frame=frame.name
        )

    def _retry(self, frame: Frame, error: Exception, now: dt.datetime) -> None:
        """An error that nobody foresaw: tried again, a bounded number of times."""
        reason = f"{type(error).__name__}: {error}"
        trace: Explanation = [("Error", traceback.format_exc().splitlines())]
        if frame.attempts >= self._config.service.max_attempts:
            self._ledger.finish(frame, State.FAILED, now=now, reason=reason, explanation=trace)
            self._log.error(
                "FAILED", f"given up after {frame.attempts} attempts: {reason}", frame=frame.name
            )
            return
        delay = 0.0 if self._hurried.is_set() else RETRY_S
        self._ledger.defer(frame, reason=reason, until=now + dt.timedelta(seconds=delay))
        self._log.warning("RETRY", f"{reason}; tried again", frame=frame.name)

    # -- stacks -----------------------------------------------------------------------------

    def _remake(self, stack_id: int) -> None:
        """Make a stale stack again; one transaction replaces it."""
        stack = self._stacks.get(stack_id)
        why = stack.stale or ""
        self._log.info("AGAIN", f"{stack.label}: {why}")
        self._live.forget(stack_id)
        growing = Growing(self._config.stack.memory_mb * MEGABYTE)
        made = remake.remake(self._pipeline, stack, growing, beat=self._beat)
        product = self._publisher.write(stack, growing, made.members)
        with self._ledger.transaction():
            remake.record(self._pipeline, stack, made, now=self._now())
            if product is not None:
                self._publisher.point(product, now=self._now())
        self._live.put(stack_id, growing)
        if product is not None:
            self._publisher.settle(product, growing)

    def _sweep(self) -> None:
        """Delete products that no row points at: their transaction never came."""
        root = self._config.library.path
        used = self._stacks.product_paths()
        for path in (root / "stacks").rglob("*_v[0-9][0-9][0-9][0-9]*.fits"):
            if str(path.relative_to(root)) not in used:
                path.unlink()

    # -- requests ---------------------------------------------------------------------------

    def _requests_now(self) -> None:
        for request in self._asked():
            self._beat(f"{request}")
            if request is Request.MASTERS:
                self._build_masters(self._now())
            elif request is Request.END_OF_NIGHT:
                self._end_of_night()
            elif request is Request.BACKUP:
                self._backup()
            elif request is Request.HOUSEKEEPING:
                self._sweep()

    def _asked(self) -> Iterator[Request]:
        seen: set[Request] = set()
        while not self._requests.empty():
            request = self._requests.get()
            if request not in seen:
                seen.add(request)
                yield request

    def _end_of_night(self) -> None:
        """Whatever waits goes on, every stack is written, the night is summed up."""
        now = self._now()
        masters.build_due(self._pipeline, now=now, quiet_s=0.0, beat=self._beat)
        self._ledger.release_waiting()
        self._publisher.tick(now, flush=True)
        self._publisher.colour()
        counts = self._ledger.night_summary(night_of(now))
        text = ", ".join(
            f"{n} {kind or 'unknown'} {state}" for (kind, state), n in sorted(counts.items())
        )
        self._log.info("NIGHT", text or "no frames")

    def _backup(self) -> None:
        """Copy the database while it is in use, and check the copy."""
        folder = self._config.library.path / "backup"
        copy = schema.backup(
            self._ledger.db, folder, keep=self._config.service.backup_keep, now=self._now()
        )
        self._log.info(
            "BACKUP", f"database copied and checked: {copy.relative_to(self._config.library.path)}"
        )
