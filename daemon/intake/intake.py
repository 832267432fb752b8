"""The thread in which files arrive: hints and scans in, complete files out, each once.

Events are hints, the scan is the truth, and both feed the same settler. One thread does all of
it in small steps, so that a new frame never waits for the end of a long scan.
"""

import collections
import dataclasses
import os
import re
import stat as st
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from calib_library.errors import ImageError, IncompleteImageError
from calib_library.images.frame_file import probe
from daemon.intake.scan import Folder, Found, belongs, image_name, scan
from daemon.intake.settle import (
    Blocked,
    Complete,
    Incomplete,
    Probe,
    Refused,
    Settled,
    Settler,
    Unusable,
    Vanished,
    Verdict,
)
from daemon.intake.watcher import Health, Mode, Watch
from daemon.log import Event, Level

_SLICE_S = 0.2  # of scanning before the other work has its turn
_BATCH = 8  # files examined before the other work has its turn
_HINTS = 50_000  # more than these are not kept: a scan is cheaper
_WINDOW = 20_000  # with so many files on their way, old ones are left to a later scan
_OLD_S = 12 * 3600.0  # of a file's age; younger ones are tonight's
_LARGEST_MTIME_NS = 2**63 - 1  # what the database holds: the year 2262
_FULL_S = 0.1  # between two looks whether files are taken again
_TOGETHER_S = 2.0  # what vanishes within this time is told in one line
_SAY_AGAIN_S = 600.0  # the same trouble with the watch is not told more often
_SCAN_SHARE = 4.0  # a scan that takes long is repeated after this many times its own duration

_STRUCTURE = re.compile(
    r"(SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|BZERO|BSCALE|BLANK|CHECKSUM|DATASUM"
    r"|COMMENT|HISTORY|LONGSTRN)?"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """One complete file."""

    root: Path
    """The watched folder in which it lies."""
    path: Path
    """Absolute, below `root`; a name that is not UTF-8 carries surrogate escapes."""
    size: int
    """bytes"""
    mtime_ns: int
    inode: int


@dataclasses.dataclass(frozen=True, slots=True)
class Watched:
    """One folder to take frames from."""

    path: Path
    """Absolute. It need not exist yet, and may be a symlink."""
    settle_s: float = 2.0
    """s for which a file must not have changed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """How long the intake waits for what, in s."""

    grace_s: float = 60.0
    """An incomplete file that does not change is reported after this time."""
    quiet_s: float = 60.0
    """A file whose age is more than this when it is first seen need not settle."""
    network_quiet_s: float = 3600.0
    """The same on a network file system, whose clock may be another."""
    scan_s: float = 300.0
    """Between two scans where events tell of new files."""
    often_s: float = 20.0
    """Between two scans where they do not."""
    health_s: float = 10.0
    """Between two looks at the watch itself, and at a folder that is absent."""


def file_probe(path: Path) -> Verdict:
    """Judge a file by its headers and its size. Raises OSError."""
    try:
        info = probe(path)
    except IncompleteImageError as error:
        return Incomplete(_reason(path, error))
    except ImageError as error:
        return Unusable(_reason(path, error))
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 — one file, whatever it holds, must not end the night
        return Unusable(f"cannot be read ({type(error).__name__}: {error}); move it out")
    if all(_STRUCTURE.fullmatch(card.keyword) for card in info.cards):
        # CFITSIO writes the data before the keywords: for a moment the file looks whole. A
        # program that never writes any keywords gets its frames taken after the grace time.
        return Incomplete("its header has no keywords yet", tolerable=True)
    return Complete()


def _reason(path: Path, error: Exception) -> str:
    return str(error).removeprefix(f"{path.name}: ")


@dataclasses.dataclass(slots=True)
class _Scan:
    """A scan under way."""

    root: Path
    found: Iterator[Found]
    folder: Path | None
    """The one folder that is scanned; None: the whole root."""
    started: float
    rest: bool = False
    """Of an archive that an earlier scan did not take in whole."""
    repeat: bool = False
    """Another was asked for meanwhile."""
    files: int = 0
    new: int = 0
    inodes: set[int] = dataclasses.field(default_factory=set)
    """Of the folders entered."""


class Intake(threading.Thread):
    """Finds files that have arrived whole and delivers each of them once.

    All callbacks are called in this thread. `arrived` has taken the file when it returns; an
    exception from a callback ends the thread and is kept in `failure`, for the service to see.
    `known` tells whether a file (path, size in bytes, mtime in ns) was taken in an earlier
    life; it is asked once for each version of a file. `unusable` gets the reason why a file as
    it stands is no frame, once for each version, and whether that is final: a file that is only
    incomplete stays under observation. While `full` holds nothing is delivered.
    """

    def __init__(
        self,
        roots: Sequence[Watched],
        *,
        arrived: Callable[[Arrival], None],
        unusable: Callable[[Path, str, os.stat_result, bool], None],
        known: Callable[[Path, int, int], bool],
        event: Event,
        full: Callable[[], bool] = lambda: False,
        ignore: Sequence[Path] = (),
        probe: Probe = file_probe,
        timing: Timing = Timing(),
        watch: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`ignore`: the daemon's own folders. `watch` False: scan only (`--until-idle`)."""
        super().__init__(name="intake", daemon=True)
        self.failure: BaseException | None = None
        self._roots = tuple(root.path for root in roots)
        self._arrived, self._unusable, self._known = arrived, unusable, known
        self._full = full
        self._event, self._ignore, self._timing = event, tuple(ignore), timing
        self._clock, self._wall = clock, wall
        self._begun = wall() - clock()
        self._settlers = {
            root.path: Settler(probe, settle_s=root.settle_s, grace_s=timing.grace_s)
            for root in roots
        }
        self._watch = Watch(self._roots, self.hint) if watch else None
        # Shared with other threads, under the condition's lock:
        self._wake = threading.Condition()
        self._hints: dict[Path, None] = {}
        self._rescans: dict[Path, None] = {}
        self._stopping = False
        self._busy = True
        self._beat = clock()
        # This thread's own:
        self._started = threading.Event()
        self._scans: collections.deque[_Scan] = collections.deque()
        self._seen: set[int] = set()  # hashes of (path, size, mtime): one small number a file
        self._scanned: set[Path] = set()
        self._left: set[Path] = set()  # roots of which a scan left old files for later
        self._next_scan = dict.fromkeys(self._roots, float("-inf"))
        self._next_health = float("-inf")
        self._told: dict[object, tuple[str, float]] = {}
        self._vanished: list[Path] = []
        self._tell_vanished_at = float("inf")

    # --- for other threads -----------------------------------------------------------------------

    def hint(self, path: Path) -> None:
        """Note that something may have happened at a path (a file or a folder)."""
        with self._wake:
            if len(self._hints) < _HINTS:
                self._hints[path] = None
            else:
                self._rescans.update(dict.fromkeys(self._roots))
            self._wake.notify()

    def rescan(self) -> None:
        """Scan all folders now."""
        with self._wake:
            self._rescans.update(dict.fromkeys(self._roots))
            self._wake.notify()

    def again(self, path: Path, size: int, mtime_ns: int) -> None:
        """Take a version of a file back that was gone when it was wanted (a share that was away,
        a folder moved to and fro): where it is found again, it is delivered again.
        """
        with self._wake:
            self._seen.discard(_key(path, size, mtime_ns))
        self.hint(path)

    def idle(self) -> bool:
        """Whether all folders have been scanned and no file is on its way to completeness.

        A file that stays incomplete beyond the grace time, or cannot be read, and a folder that
        does not exist, are reported and do not count.
        """
        with self._wake:
            return not (self._busy or self._hints or self._rescans)

    def wait_started(self, timeout_s: float) -> bool:
        """Wait until the watch stands and the first scan has begun."""
        return self._started.wait(timeout_s)

    def silent_s(self) -> float:
        """Return the time since this thread last showed life, s."""
        return self._clock() - self._beat

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread and the watch."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self.is_alive():
            self.join(timeout_s)

    # --- the thread ------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stop`, or until a callback fails."""
        try:
            # The watch before the first scan: what comes in between is seen by both.
            if self._watch is not None:
                for health in self._watch.start(self._clock()):
                    self._tell_health(health)
            self._next_health = self._clock() + self._timing.health_s
            while not self._stopping:
                self._turn()
        except BaseException as error:  # noqa: BLE001 - the service decides, in its own thread
            self.failure = error
        finally:
            self._started.set()
            if self._watch is not None:
                self._watch.stop()

    def _turn(self) -> None:
        """Do a little of everything that is due, then sleep until something is."""
        self._beat = now = self._clock()
        self._take_hints()
        if now >= self._next_health:
            self._check_health(now)
        self._begin_scans(now)
        self._started.set()
        self._scan_slice()
        full = self._full()
        if not full:
            self._examine_batch()
        if now >= self._tell_vanished_at:
            self._tell_vanished()
        with self._wake:
            self._busy = bool(self._scans or self._left or self._pending())
            timeout = _FULL_S if full and not self._scans else self._rest()
            if timeout > 0 and not (self._hints or self._rescans or self._stopping):
                self._wake.wait(timeout)

    def _rest(self) -> float:
        """Return for how long there is nothing to do, s."""
        if self._scans:
            return 0.0
        times = [self._next_health, self._tell_vanished_at, *self._next_scan.values()]
        times += [t for s in self._settlers.values() if (t := s.next_due()) is not None]
        return min(times) - self._clock()

    def _pending(self) -> int:
        return sum(settler.pending for settler in self._settlers.values())

    # --- files -----------------------------------------------------------------------------------

    def _take_hints(self) -> None:
        with self._wake:
            hints, self._hints = self._hints, {}
            self._busy = True
        for path in hints:
            root = next((root for root in self._roots if path.is_relative_to(root)), None)
            if root is None or not belongs(path, root, self._ignore):
                continue
            try:
                stat = path.stat()
            except OSError:  # gone already, or unreadable: the scan speaks of the latter
                continue
            if st.S_ISDIR(stat.st_mode):
                self._begin_scan(root, folder=path)
            elif st.S_ISREG(stat.st_mode) and image_name(path.name):
                self._note(root, path, stat)

    def _note(self, root: Path, path: Path, stat: os.stat_result) -> bool:
        """Show a file to the settler unless it was taken already. Returns whether it is new.

        An old file is left alone while many are on their way, so that an archive of any size
        takes a bounded memory.
        """
        settler = self._settlers[root]
        key = _key(path, stat.st_size, stat.st_mtime_ns)
        if key in self._seen:
            settler.gone(path)
            return False
        if abs(stat.st_mtime_ns) > _LARGEST_MTIME_NS:
            text = f"{path}: its time of change cannot be right; set it with touch"
            self._tell((path, "mtime"), "UNREADABLE", text, Level.WARNING)
            return False
        new = path not in settler
        if new and self._known(path, stat.st_size, stat.st_mtime_ns):
            self._seen.add(key)
            return False
        if new and self._pending() >= _WINDOW and self._wall() - stat.st_mtime > _OLD_S:
            self._left.add(root)
            return False
        settler.note(path, stat, self._clock(), quiet_s=self._quiet_s(root, stat))
        return new

    def _quiet_s(self, root: Path, stat: os.stat_result) -> float:
        """Return for how long the file has certainly been unchanged, s.

        By its ctime too, which no copying program can set back.
        """
        network = self._watch is not None and self._watch.mode(root) is Mode.SCAN
        limit = self._timing.network_quiet_s if network else self._timing.quiet_s
        age = self._age_s(stat)
        return age if age > limit else 0.0

    def _age_s(self, stat: os.stat_result) -> float:
        # The clock may have been set meanwhile, in either direction: the younger age is believed.
        now = min(self._wall(), self._begun + self._clock())
        return now - max(stat.st_mtime, stat.st_ctime)

    def _examine_batch(self) -> None:
        for root, settler in self._settlers.items():
            for path in settler.due(self._clock(), _BATCH):
                outcome = settler.examine(path, self._clock())
                match outcome:
                    case Settled(stat):
                        self._deliver(root, path, stat)
                    case Refused(reason, stat, final):
                        if final:
                            self._seen.add(_key(path, stat.st_size, stat.st_mtime_ns))
                        self._unusable(path, reason, stat, final)
                    case Blocked(reason):
                        self._event("UNREADABLE", f"{path}: {reason}", level=Level.WARNING)
                    case Vanished():
                        if not self._vanished:
                            self._tell_vanished_at = self._clock() + _TOGETHER_S
                        self._vanished.append(path)
                    case None:
                        pass

    def _tell_vanished(self) -> None:
        """Tell of vanished files in one line, however many went together."""
        first, *others = self._vanished
        more = f" and {len(others)} more" if others else ""
        self._event("VANISHED", f"{first}{more}: gone before it was complete")
        self._vanished.clear()
        self._tell_vanished_at = float("inf")

    def _deliver(self, root: Path, path: Path, stat: os.stat_result) -> None:
        self._arrived(Arrival(root, path, stat.st_size, stat.st_mtime_ns, stat.st_ino))
        self._seen.add(_key(path, stat.st_size, stat.st_mtime_ns))

    # --- scans -----------------------------------------------------------------------------------

    def _begin_scans(self, now: float) -> None:
        with self._wake:
            asked, self._rescans = self._rescans, {}
        rest: set[Path] = set()
        if self._left and not self._scans and self._pending() < _WINDOW // 2:
            rest, self._left = self._left, rest
        for root in self._roots:
            if root in asked or root in rest or now >= self._next_scan[root]:
                under_way = next(
                    (s for s in self._scans if s.folder is None and s.root == root), None
                )
                if under_way is not None:  # it has passed places where something is new by now
                    under_way.repeat = True
                else:
                    self._begin_scan(root, rest=root in rest)
                self._next_scan[root] = float("inf")  # set when it has ended

    def _begin_scan(self, root: Path, *, folder: Path | None = None, rest: bool = False) -> None:
        def on_folder(entered: Folder) -> None:
            current.inodes.add(entered.id[1])
            if entered.linked and self._watch is not None:
                self._watch.follow(root, entered.path)

        def on_error(path: Path, error: OSError) -> None:
            # An absent root is the watch's to speak of.
            if path != root or self._watch is None:
                text = f"{path} cannot be scanned: {error.strerror or error}"
                self._tell(path, "SCAN", text, Level.WARNING)

        found = scan(root, self._ignore, folder=folder, on_folder=on_folder, on_error=on_error)
        current = _Scan(root, found, folder, self._clock(), rest)
        if folder is None:
            self._scans.append(current)
        else:  # small, and probably tonight's: it does not wait for the archive
            self._scans.appendleft(current)

    def _scan_slice(self) -> None:
        """Go on with the first scan in the queue for a moment."""
        if not self._scans:
            return
        current = self._scans[0]
        end = self._clock() + _SLICE_S
        for found in current.found:
            current.files += 1
            current.new += self._note(current.root, found.path, found.stat)
            if self._clock() >= end:
                return
        self._scans.popleft()
        if current.folder is None:
            self._end_scan(current)
        elif self._watch is not None and self._watch.unwatched(current.root, current.inodes):
            # watchdog 6 does not watch a folder that was moved in from outside.
            self._watch.follow(current.root, current.folder)
            if self._watch.unwatched(current.root, current.inodes):
                # The kernel's watches are used up: from now on the scans go often.
                with self._wake:
                    self._rescans[current.root] = None

    def _end_scan(self, current: _Scan) -> None:
        root, now = current.root, self._clock()
        took = now - current.started
        often = False
        if self._watch is not None and current.inodes:
            unwatched = self._watch.unwatched(root, current.inodes)
            often = self._watch.often(root) or unwatched > 0
            if unwatched:
                text = (
                    f"not all folders in {root} are watched; raise the kernel's "
                    "fs.inotify.max_user_watches. Frames in the others are found by scanning "
                    f"every {self._timing.often_s:g} s"
                )
                self._tell((root, "unwatched"), "WATCH", text, Level.WARNING)
        period = self._timing.often_s if often else self._timing.scan_s
        self._next_scan[root] = now + max(period, _SCAN_SHARE * took)
        if current.repeat:
            with self._wake:
                self._rescans[root] = None
        if current.inodes and root not in self._scanned:
            self._scanned.add(root)
            text = f"{root}: {current.files} files, {current.new} not known yet ({took:.1f} s)"
            self._event("SCAN", text)
        elif current.rest:
            self._event("SCAN", f"{root}: {current.new} more files of the archive")
        elif current.new and not often:
            self._event("SCAN", f"{root}: found {current.new} files that no event had told of")

    # --- the watch's own health ------------------------------------------------------------------

    def _check_health(self, now: float) -> None:
        self._next_health = now + self._timing.health_s
        if self._watch is None:
            return
        for root, problem in self._watch.healthy(now).items():
            health = self._watch.rebuild(root, now)
            if health.mode is not Mode.ABSENT:
                text = f"{problem}; watching anew, and scanning"
                # By its text too: two troubles that take turns are told once each.
                self._tell((root, problem), "WATCH", text, Level.WARNING, again_s=_SAY_AGAIN_S)
            self._tell_health(health)
            with self._wake:
                self._rescans[root] = None
        if self._watch.events_lost():
            self._event("WATCH", "events may have been lost in a burst: scanning all folders")
            self.rescan()

    def _tell_health(self, health: Health) -> None:
        level = Level.WARNING if health.trouble else Level.INFO
        self._tell(health.root, "WATCH", health.text, level)

    def _tell(
        self, about: object, kind: str, text: str, level: Level, *, again_s: float = float("inf")
    ) -> None:
        """Say something, unless it is what was last said about the same thing."""
        now = self._clock()
        last, when = self._told.get(about, ("", now))
        if text != last or now - when >= again_s:
            self._told[about] = (text, now)
            self._event(kind, text, level=level)


def _key(path: Path, size: int, mtime_ns: int) -> int:
    return hash((os.fspath(path), size, mtime_ns))
