"""The one thread that does the work: takes arrivals in, claims frames, builds masters, makes stale
stacks again, writes products. It owns the only writing connection to the database.
"""

import contextlib
import datetime as dt
import sqlite3
import threading
import time
import traceback

from calib_library import schema
from calib_library.frame import FrameType
from calib_library.images import frame_file
from daemon import heal, masters, memory, orders, reader, remake, retention, sensors, warmup
from daemon.config import Config
from daemon.errors import (
    FrameDeferredError,
    FrameQuarantinedError,
    FrameRejectedError,
)
from daemon.inbox import Inbox, Refusal, Request
from daemon.intake.intake import Arrival
from daemon.ledger.ledger import Explanation, Frame, Identity
from daemon.ledger.states import State
from daemon.log import StatusLog
from daemon.parts import SMALL_MB, Parts, compose
from daemon.pipeline import night_of
from daemon.storage import Storage, Trouble

ARRIVALS_AT_ONCE = 200
"""Recorded in one transaction before a frame is worked on: a burst must not hold back the work."""

TAKING_S = 5.0
"""After so long (s) of nothing but recording, one frame of tonight's is worked on between two
batches. A burst is recorded whole before: only then is its order known."""

RETRY_S = 30.0
"""After an error that nobody foresaw a frame is tried again after so long (s)."""

LONGEST_RETRY_S = 600.0
"""What cannot be read is tried again for ever, but not more seldom than this (s)."""


class Worker(threading.Thread):
    """Runs until `stop`. An error that is not one frame's ends it, and is kept in `error`.

    Where the library's disk is in trouble it ends as if it were killed, and `trouble` tells: the
    next worker, when the disk is well, goes on from what was committed.
    """

    def __init__(
        self,
        *,
        config: Config,
        storage: Storage,
        log: StatusLog,
        inbox: Inbox,
        innocent: int | None = None,
        frames_come: bool = True,
    ) -> None:
        """`innocent`: the frame whose attempt ended with the disk's trouble; it does not count.
        Without `frames_come` the kernels that frames need are not prepared.
        """
        # A daemon thread: one that is wedged must not keep the process from ending.
        super().__init__(name="worker", daemon=True)
        self._config = config
        self._storage = storage
        self._log = log
        self._inbox = inbox
        self._innocent = innocent
        self._frames_come = frames_come
        self._stopping = threading.Event()
        self._reconsidered = False
        """What an archive left out was judged again, at its end."""
        self._prepared = False
        """The kernels that masters and the dawn need were asked for, once."""
        self._unmeasured = True
        """A camera may have masters that it was not measured by yet."""
        self._taking_since: float | None = None
        self._started_at = time.monotonic()
        self._begun = False
        """Since when nothing but recording was done (monotonic s)."""
        self._parts: Parts
        self._hurried = threading.Event()
        self.started = threading.Event()
        """Set once the tables are ready and the first frame could be taken."""
        self.error: BaseException | None = None
        self.trouble: Trouble | None = None
        """Of the library's disk, where that ended it."""
        self.at_hand: int | None = None
        """The frame that is being worked on."""
        self.steps = 0
        """Pieces of work that were done without trouble."""
        self.beat_at = time.monotonic()
        """When the worker last showed that it is alive (monotonic s)."""
        self.doing = "starting"
        self.doing_since = self._now()
        self._rested: bool | None = None
        """It looked and found nothing to do: whether it was hurried then. None: it has not."""

    # -- called by other threads ------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing is left to do at the moment."""
        # Hurried since, there may be masters to build for which nothing has to be waited any more.
        return self._inbox.empty() and self._rested is self._hurried.is_set()

    def hurry(self) -> None:
        """All frames are there: wait for no more before a master is built."""
        if not self._hurried.is_set():
            self._hurried.set()
            self._inbox.wake.set()

    def stop(self) -> None:
        """Finish the frame at hand, write what is not written, and end."""
        self._stopping.set()
        self._inbox.wake.set()

    # -- the thread -------------------------------------------------------------------------

    def run(self) -> None:
        """The loop; see the module."""
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 — kept for the supervisor, who ends with it
            self.error, self.trouble = error, self._storage.trouble(error)
            if self.trouble is None:
                self._log.error("FATAL", f"the worker has ended: {error}")
                traceback.print_exc()

    def _work(self) -> None:
        db = schema.connect(self._storage.root / schema.DATABASE_NAME)
        # Closed whatever happens: an open file would keep a lost disk from being unmounted.
        with contextlib.closing(db.conn):
            parts = compose(self._config, db, self._log, quiet_s=self._quiet_s, beat=self._beat)
            with contextlib.closing(parts.pipeline.reader):
                self._parts = parts
                self._loop()

    def _loop(self) -> None:
        void = self._parts.ledger.release_claims(innocent=self._innocent)
        if void:
            self._log.info("RESUME", f"{void} frames were being worked on when it stopped")
        heal.heal(self._parts)
        heal.sweep(self._parts)
        self.started.set()
        if self._config.stack.memory_mb < SMALL_MB:
            memory.keep_little()
        if self._frames_come:
            doing = "preparing the kernels"
            self._beat(doing)
            warmup.kernels(lambda: self._beat(doing), stopping=self._stopping.is_set)
        self._started_at = time.monotonic()
        while not self._stopping.is_set():
            self._storage.check()
            self._requests_now()
            # Before the look: what it says holds for what was asked of it until now.
            hurried = self._hurried.is_set()
            busy = self._step()
            self.steps += 1
            self._rested = hurried if not busy and self._inbox.empty() else None
            if self._rested is not None:
                self._beat("waiting for frames")
                self._inbox.wake.wait(1.0)
                self._inbox.wake.clear()
        self._beat("stopping: writing the stacks")
        self._parts.publisher.tick(self._now(), flush=True)
        if self._hurried.is_set():
            self._parts.publisher.colour()

    def _step(self) -> bool:
        """One piece of work, the most urgent first. False where there is none."""
        now = self._now()
        if self._take_arrivals():
            self._taking_since = self._taking_since or time.monotonic()
            if time.monotonic() - self._taking_since > TAKING_S:
                self._work_on(self._parts.ledger.claim(now, tonight=True), now)
            return True
        self._taking_since = None
        if self._more_is_coming():
            self._inbox.wake.wait(0.05)
            self._inbox.wake.clear()
            return True
        # Masters go before lights: once no more calibration frames are queued, what is complete
        # is built, and the lights that come after get it.
        if not self._parts.ledger.calibration_pending() and (
            self._build_masters(now) or self._measure()
        ):
            return True
        if self._work_on(self._parts.ledger.claim(now), now):
            return True
        stale = self._parts.stacks.stale()
        if stale:
            self._remake(stale[0].id)
            return True
        self._parts.publisher.tick(now)
        return self._catch_up() or self._reconsider() or self._prepare()

    def _more_is_coming(self) -> bool:
        """At the start, for some seconds: what lies in the folders comes in no order, and the first
        light of a stack is what all others register to.
        """
        if not self._begun:
            late = time.monotonic() - self._started_at > TAKING_S
            self._begun = late or self._inbox.all_seen()
        return not self._begun

    def _prepare(self) -> bool:
        """While there is nothing else to do: compile, once, what masters and the dawn will need."""
        if self._prepared or self._hurried.is_set():
            return False
        self._prepared = True
        doing = "preparing the kernels of the masters and of the end of the night"
        self._beat(doing)
        warmup.later(lambda: self._beat(doing), stopping=self._stopping.is_set)
        return True

    def _work_on(self, frame: Frame | None, now: dt.datetime) -> bool:
        """Take a claimed frame to its end, while the next one is read. False without one."""
        if frame is None:
            return False
        coming = self._parts.ledger.next_files(now, most=reader.AHEAD)
        if frame.attempts == 1:
            # Otherwise the one before may have died of a frame that was read ahead of it.
            self._parts.pipeline.reader.ahead(frame.path, reader.worth_it(coming))
        self._attempt(frame, now)
        # It may be one of a master whose frames had to be seen again, see `unmeasured`.
        self._unmeasured |= frame.frame_type is not FrameType.LIGHT
        self._parts.publisher.tick(
            self._now(), backlog=bool(coming), archive=self._hurried.is_set()
        )
        return True

    def _reconsider(self) -> bool:
        """At the end of an archive: judge what was left out by all that is there now."""
        if not self._hurried.is_set() or self._reconsidered:
            return False
        self._reconsidered = True
        return orders.reconsider(self._parts) > 0

    def _measure(self) -> bool:
        """Measure a camera of which new masters were built: lights after it may need its gain."""
        if not self._unmeasured:
            return False
        self._unmeasured = sensors.measure_next(
            self._parts.pipeline, now=self._now(), beat=self._beat
        )
        return self._unmeasured

    def _catch_up(self) -> bool:
        """Bring a stack into memory whose product lacks frames, the publisher does the rest; replay
        one from which a frame was taken out, so that it is exact again.
        """
        for stack in self._parts.stacks.behind():
            if stack.id not in self._parts.live:
                self._parts.live.get(stack, self._parts.stacks.members(stack.id))
                return True
        for stack_id in self._parts.live.inexact():
            self._parts.live.forget(stack_id)
            stack = self._parts.stacks.get(stack_id)
            growing = self._parts.live.get(stack, self._parts.stacks.members(stack_id))
            self._parts.publisher.publish(stack, growing, now=self._now())
            return True
        return False

    def _build_masters(self, now: dt.datetime) -> bool:
        quiet_s = self._quiet_s()
        built = masters.build_due(self._parts.pipeline, now=now, quiet_s=quiet_s, beat=self._beat)
        self._unmeasured |= built > 0
        return built + masters.release(self._parts.pipeline, now=now, quiet_s=quiet_s) > 0

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
        """Record what has arrived, in one transaction: each costs a wait for the disk."""
        arrived = self._inbox.arrivals(ARRIVALS_AT_ONCE)
        if not arrived:
            return False
        self._rested = None
        with self._parts.ledger.transaction():
            for arrival, refusal in arrived:
                self._beat("taking files in")
                self._take(arrival, refusal)
        self._inbox.recorded(len(arrived))
        return True

    def _take(self, arrival: Arrival, refusal: Refusal | None) -> None:
        stat = (arrival.path, arrival.root, arrival.size, arrival.mtime_ns)
        if refusal is None:
            self._parts.ledger.add(*stat, identity=self._identify(arrival), now=self._now())
            return
        reason, final = refusal
        if self._parts.ledger.add_unusable(*stat, reason=reason, now=self._now(), final=final):
            self._log.warning("REJECTED", reason, frame=arrival.path.name)

    def _identify(self, arrival: Arrival) -> Identity | None:
        """What the header says, for the order of the queue. What is wrong with it is said when
        the frame's turn comes.
        """
        try:
            info = frame_file.probe(arrival.path)
            return self._parts.pipeline.identify(info, root=arrival.root, mtime_ns=arrival.mtime_ns)
        except Exception:  # noqa: BLE001 — said, and bounded, when the frame's turn comes
            return None

    # -- frames -----------------------------------------------------------------------------

    def _attempt(self, frame: Frame, now: dt.datetime) -> None:
        """Process one claimed frame; whatever happens to it is recorded."""
        self._beat(f"working on {frame.name}")
        most = self._config.service.max_attempts
        if frame.attempts > most:
            self._parts.ledger.finish(
                frame,
                State.FAILED,
                now=now,
                reason=f"given up after {most} attempts: {frame.reason}",
            )
            self._log.error("FAILED", f"given up after {most} attempts", frame=frame.name)
            return
        self.at_hand = frame.id
        try:
            self._parts.pipeline.process(frame, now=now)
        except FrameRejectedError as error:
            self._parts.ledger.finish(frame, State.REJECTED, now=now, reason=str(error))
            self._log.warning("REJECTED", str(error), frame=frame.name)
        except FrameQuarantinedError as error:
            self._parts.ledger.finish(frame, State.QUARANTINED, now=now, reason=str(error))
            self._log.warning("QUARANTINED", str(error), frame=frame.name)
        except FrameDeferredError as error:
            self._defer(frame, error, now)
        except sqlite3.Error:
            raise  # the database is everybody's, not this frame's
        except Exception as error:
            if self._storage.concerns_all(error):
                raise
            self._retry(frame, error, now)
        self.at_hand = None

    def _defer(self, frame: Frame, error: FrameDeferredError, now: dt.datetime) -> None:
        """Put a frame back that cannot be read now: tried again for ever, ever more seldom."""
        try:
            stat = frame.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._forget(frame)
            self._log.warning("GONE", "the file vanished before it was read", frame=frame.name)
            return
        except OSError:  # a share that does not answer: the file may well be there
            stat = None
        if stat and (stat.st_size, stat.st_mtime_ns) != (frame.size, frame.mtime_ns):
            self._forget(frame)  # the intake delivers the new version
            return
        age_s = (now - frame.seen_at).total_seconds()
        delay_s = min(max(error.retry_s, age_s), LONGEST_RETRY_S)
        self._parts.ledger.defer(
            frame, reason=str(error), until=now + dt.timedelta(seconds=delay_s), counted=False
        )
        if str(error) != frame.reason:
            self._log.warning("DEFERRED", f"{error}; it is tried again", frame=frame.name)

    def _forget(self, frame: Frame) -> None:
        self._parts.ledger.forget(frame)
        self._inbox.forgotten(frame.path, frame.size, frame.mtime_ns)

    def _retry(self, frame: Frame, error: Exception, now: dt.datetime) -> None:
        """An error that nobody foresaw: tried again, a bounded number of times."""
        reason = f"{type(error).__name__}: {error}"
        trace: Explanation = [("Error", traceback.format_exc().splitlines())]
        if frame.attempts >= self._config.service.max_attempts:
            self._parts.ledger.finish(
                frame, State.FAILED, now=now, reason=reason, explanation=trace
            )
            self._log.error(
                "FAILED", f"given up after {frame.attempts} attempts: {reason}", frame=frame.name
            )
            return
        delay = 0.0 if self._hurried.is_set() else RETRY_S
        self._parts.ledger.defer(frame, reason=reason, until=now + dt.timedelta(seconds=delay))
        self._log.warning("RETRY", f"{reason}; tried again", frame=frame.name)

    # -- stacks -----------------------------------------------------------------------------

    def _remake(self, stack_id: int) -> None:
        """Make a stale stack again; one transaction replaces it."""
        stack = self._parts.stacks.get(stack_id)
        why = stack.stale or ""
        self._log.info("AGAIN", f"{stack.label}: {why}")
        self._parts.live.forget(stack_id)
        growing = self._parts.live.begin(stack)
        made = remake.remake(self._parts.pipeline, stack, growing, beat=self._beat)
        product = self._parts.publisher.write(stack, growing, made.members)
        with self._parts.ledger.transaction():
            remake.record(self._parts.pipeline, stack, made, now=self._now())
            if product is not None:
                self._parts.publisher.point(product, now=self._now())
        self._parts.live.put(stack_id, growing)
        if product is not None:
            self._parts.publisher.settle(product, growing)

    # -- requests ---------------------------------------------------------------------------

    def _requests_now(self) -> None:
        for request in self._inbox.requests():
            self._beat(f"{request}")
            if request is Request.MASTERS:
                self._build_masters(self._now())
            elif request is Request.END_OF_NIGHT:
                self._end_of_night()
            elif request is Request.BACKUP:
                self._backup()
            elif request is Request.HOUSEKEEPING:
                heal.sweep(self._parts)
                retention.clear(self._parts, now=self._now())

        for path, order in orders.waiting(self._parts.root):
            if order is None:
                self._log.warning("ORDER", "this is no order", file=path.name)
            else:
                self._beat(f"{order.action} {order.id}")
                orders.carry_out(self._parts, order, now=self._now())
            path.unlink(missing_ok=True)

    def _end_of_night(self) -> None:
        """Whatever waits goes on, every stack is written, the night is summed up."""
        now = self._now()
        masters.build_due(self._parts.pipeline, now=now, quiet_s=0.0, beat=self._beat)
        self._unmeasured = True
        self._parts.ledger.release_waiting()
        orders.reconsider(self._parts)
        self._parts.publisher.tick(now, flush=True)
        self._parts.publisher.colour()
        orders.finish_due(self._parts)
        counts = self._parts.ledger.night_summary(night_of(now))
        text = ", ".join(
            f"{n} {kind or 'unknown'} {state}" for (kind, state), n in sorted(counts.items())
        )
        self._log.info("NIGHT", text or "no frames")

    def _backup(self) -> None:
        """Copy the database while it is in use, and check the copy."""
        folder = self._config.library.path / "backup"
        copy = schema.backup(
            self._parts.ledger.db, folder, keep=self._config.service.backup_keep, now=self._now()
        )
        self._log.info(
            "BACKUP", f"database copied and checked: {copy.relative_to(self._config.library.path)}"
        )
