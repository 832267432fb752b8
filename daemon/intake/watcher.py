"""The kernel's events, as hints; the only user of watchdog.

Nothing depends on an event: the scan finds every file. Events make it a matter of seconds. So
this module keeps watching, tells when it cannot (a network file system, an absent folder, the
kernel's limits), and finds out when it no longer does although everything looks alive.
"""

import dataclasses
import errno
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.utils import BaseThread

# Not the modifications: a file written in small pieces makes thousands, the settler sees them
# by itself. Not the deletions: a file that is gone is noticed when it is looked at.
_EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileClosedEvent,
    FileMovedEvent,
    DirCreatedEvent,
    DirMovedEvent,
]

# Not `fuseblk`: a disk behind FUSE (ntfs-3g) is changed by this kernel alone.
_NETWORK_TYPES = frozenset(
    {
        *(
            "9p",
            "afs",
            "beegfs",
            "ceph",
            "cifs",
            "coda",
            "davfs",
            "drvfs",
            "fuse",
            "gfs2",
            "glusterfs",
        ),
        *("gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "smb2", "smb3"),
        *("smbfs", "vboxsf", "virtiofs", "vmhgfs"),
    }
)
_RETRY_S = 300.0
"""s between attempts to watch a folder that the kernel would not watch."""

log = logging.getLogger(__name__)

# watchdog 7 warns of its own race between a new folder's event and its walk through it; harmless.
warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)


@dataclasses.dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    id: int
    point: str
    """Where it is mounted; bytes that are not UTF-8 as surrogate escapes."""
    fstype: str

    @property
    def network(self) -> bool:
        """Whether other machines can change what lies there without this kernel noticing."""
        return self.fstype in _NETWORK_TYPES or self.fstype.startswith("fuse.")


def parse_mountinfo(text: bytes) -> list[Mount]:
    """Read the contents of /proc/self/mountinfo (proc(5)); a later mount covers an earlier."""
    mounts = []
    for line in text.splitlines():
        fields, _, rest = line.partition(b" - ")
        words, kind = fields.split(b" "), rest.split(b" ")
        point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), words[4])
        mounts.append(Mount(int(words[0]), os.fsdecode(point), os.fsdecode(kind[0])))
    return mounts


def read_mounts() -> list[Mount]:
    """Return the mounts that this process sees; none where the kernel does not tell."""
    try:
        return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    except OSError:
        return []


def mount_of(real: str, mounts: Sequence[Mount]) -> Mount | None:
    """Find the mount on which a path without symlinks lies."""
    best = None
    for mount in mounts:
        if _below(real, mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


class Mode(StrEnum):
    """How new files in a watched folder are found."""

    EVENTS = "events"
    SCAN = "scan"
    """By the scan alone: a network file system, or the kernel refuses to watch."""
    ABSENT = "absent"
    """The folder does not exist."""


@dataclasses.dataclass(frozen=True, slots=True)
class Health:
    """The state of one watched folder after a look at it."""

    root: Path
    mode: Mode
    text: str
    """A sentence for people."""
    trouble: bool
    """Whether a person should know."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Identity:
    """What must stay the same under a path as long as a watch on it stands."""

    device: int
    inode: int
    mount: int | None
    network: str | None
    """The type of a network file system on which the folder lies."""
    below: tuple[Mount, ...]
    """What is mounted inside it."""


class _Handler(FileSystemEventHandler):
    """Notes paths. An exception here would end the observer's thread, so nothing else is done."""

    def __init__(self, real: str, shown: Path, hint: Callable[[Path], None]) -> None:
        self._real, self._shown, self._hint = real, shown, hint

    def on_any_event(self, event: FileSystemEvent) -> None:
        path = os.fsdecode(event.dest_path or event.src_path)
        if _below(path, self._real):
            self._hint(self._shown / os.path.relpath(path, self._real))


class _RootWatch:
    """The watch on one folder: built, checked, torn down and built again."""

    def __init__(self, root: Path, hint: Callable[[Path], None]) -> None:
        self.root = root
        self._hint = hint
        self._observer: BaseObserver | None = None
        self._threads: list[BaseThread] = []
        self._identity: _Identity | None = None
        self._links: set[Path] = set()
        self._seen_in_kernel = False
        self._failed_at: float | None = None
        self.mode = Mode.ABSENT

    def build(self, now: float) -> Health:
        self.close()
        try:
            self._identity = _identify(self.root)
        except OSError as error:
            return self._state(Mode.ABSENT, self._absence(error), trouble=True)
        if self._identity.network is not None:
            return self._state(
                Mode.SCAN,
                f"{self.root} lies on a network file system ({self._identity.network}), where "
                "changes by other machines cause no events: it is scanned often instead",
                trouble=False,
            )
        try:
            self._observe(self.root)
        except OSError as error:
            self._release()
            self._failed_at = now
            return self._state(
                Mode.SCAN,
                f"{self.root} cannot be watched ({_why(error)}): it is scanned often instead",
                trouble=True,
            )
        self._seen_in_kernel = self._identity.inode in kernel_watches()
        return self._state(Mode.EVENTS, f"watching {self.root}", trouble=False)

    def check(self, now: float) -> str | None:
        """Return why the watch must be built again, None if it need not."""
        try:
            identity = _identify(self.root)
        except OSError as error:
            return None if self.mode is Mode.ABSENT else self._absence(error)
        if self.mode is Mode.ABSENT:
            return f"{self.root} is there now"
        if identity != self._identity:
            return f"{self.root} is another folder now: made again, or something was mounted"
        if self._failed_at is not None and now - self._failed_at >= _RETRY_S:
            return f"trying again to watch {self.root}"
        return self._lifeless(identity.inode) if self.mode is Mode.EVENTS else None

    def _lifeless(self, inode: int) -> str | None:
        if not all(thread.is_alive() for thread in self._threads):
            return f"the watch on {self.root} has died"
        if self._seen_in_kernel and inode not in kernel_watches():
            return f"the kernel no longer watches {self.root}"
        return None

    def often(self) -> bool:
        if self.mode is Mode.SCAN:
            return True
        return self._identity is not None and any(m.network for m in self._identity.below)

    def unwatched(self, inodes: frozenset[int]) -> int:
        if self.mode is not Mode.EVENTS or not self._seen_in_kernel:
            return 0
        return len(inodes - kernel_watches())

    def follow(self, folder: Path) -> None:
        if self.mode is not Mode.EVENTS or folder in self._links:
            return
        self._links.add(folder)
        try:
            if _identify(folder).network is None:
                self._observe(folder)
        except OSError as error:  # the scan finds what lies there
            log.debug("the folder %s cannot be watched: %s", folder, _why(error))

    def close(self) -> None:
        self._release()
        self._identity = self._failed_at = None

    def _release(self) -> None:
        observer, self._observer = self._observer, None
        self._threads, self._links = [], set()
        if observer is not None:
            _stop(observer)

    def _observe(self, folder: Path) -> None:
        """Watch a folder, by its path without symlinks: watchdog does not follow them."""
        before = set(threading.enumerate())
        real = os.path.realpath(folder)
        if self._observer is None:
            self._observer = Observer()
        self._observer.schedule(
            _Handler(real, folder, self._hint), real, recursive=True, event_filter=_EVENTS
        )
        if not self._observer.is_alive():
            self._observer.start()
        new = set(threading.enumerate()) - before
        # All of watchdog's own threads must live; the observer's alone says nothing.
        self._threads += [t for t in new if isinstance(t, BaseThread)]
        if self._observer not in self._threads:
            self._threads.append(self._observer)

    def _state(self, mode: Mode, text: str, *, trouble: bool) -> Health:
        self.mode = mode
        return Health(self.root, mode, text, trouble)

    def _absence(self, error: OSError) -> str:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return f"the watched folder {self.root} does not exist; waiting for it"
        return f"the watched folder {self.root} cannot be opened ({_why(error)}); waiting for it"


def _identify(folder: Path) -> _Identity:
    stat = folder.stat()
    with os.scandir(folder):  # raises where it is no folder, or may not be read
        pass
    real = os.path.realpath(folder)
    mounts = read_mounts()
    mount = mount_of(real, mounts)
    return _Identity(
        device=stat.st_dev,
        inode=stat.st_ino,
        mount=mount.id if mount else None,
        network=mount.fstype if mount and mount.network else None,
        below=tuple(m for m in mounts if m.point != real and _below(m.point, real)),
    )


def _why(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the kernel's fs.inotify.max_user_watches is used up"
    if error.errno == errno.EMFILE:
        return "the kernel's fs.inotify.max_user_instances, or the limit of open files, is used up"
    return error.strerror or str(error)


def _stop(observer: BaseObserver) -> None:
    started = observer.is_alive()
    observer.stop()
    if started:
        observer.join(10)


def kernel_watches() -> frozenset[int]:
    """Return the inodes that the kernel watches for this process (proc(5), fdinfo of inotify)."""
    inodes: set[int] = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            if str(link.readlink()) != "anon_inode:inotify":
                continue
            text = Path(f"/proc/self/fdinfo/{link.name}").read_text("ascii")
        except OSError:  # closed meanwhile
            continue
        inodes.update(int(found, 16) for found in re.findall(r"\bino:([0-9a-f]+)", text))
    return frozenset(inodes)


def queue_limit() -> int:
    """Return how many events the kernel queues before it drops the rest."""
    try:
        return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text("ascii"))
    except (OSError, ValueError):
        return 16384


class Watch:
    """Watches folders and hints at paths: of files, and of folders that came to be.

    `hint` is called in watchdog's thread with a path below the root as it was given; it must
    only note it. The other methods belong to one thread.
    """

    def __init__(self, roots: Sequence[Path], hint: Callable[[Path], None]) -> None:
        self._count = 0
        self._overflow = threading.Event()
        self._hint = hint
        self._roots = {root: _RootWatch(root, self._noted) for root in roots}
        self._complaints = _Complaints(self._overflow.set)

    def start(self, now: float) -> list[Health]:
        """Begin to watch, at the monotonic time `now` (s); the state of each folder."""
        logging.getLogger("watchdog").addHandler(self._complaints)
        return [watch.build(now) for watch in self._roots.values()]

    def stop(self) -> None:
        """End all watches."""
        logging.getLogger("watchdog").removeHandler(self._complaints)
        for watch in self._roots.values():
            watch.close()

    def healthy(self, now: float) -> dict[Path, str]:
        """Check all watches at the monotonic time `now` (s): root → why it must be rebuilt."""
        problems = {}
        for root, watch in self._roots.items():
            problem = watch.check(now)
            if problem is not None:
                problems[root] = problem
        return problems

    def rebuild(self, root: Path, now: float) -> Health:
        """Build the watch on one folder again. What happened meanwhile only a scan can tell."""
        return self._roots[root].build(now)

    def mode(self, root: Path) -> Mode:
        """Tell how new files in a folder are found at present."""
        return self._roots[root].mode

    def often(self, root: Path) -> bool:
        """Whether a folder must be scanned often, since events do not tell all of it."""
        return self._roots[root].often()

    def follow(self, root: Path, folder: Path) -> None:
        """Watch also a folder in `root` that its watch leaves out, as one behind a symlink."""
        self._roots[root].follow(folder)

    def unwatched(self, root: Path, inodes: Iterable[int]) -> int:
        """Count those folders (by inode) of a watched root that the kernel does not watch.

        0 where that cannot be told.
        """
        return self._roots[root].unwatched(frozenset(inodes))

    def events_lost(self) -> bool:
        """Whether events may have been lost since the last call: a scan is needed.

        The kernel drops events when its queue is full. Some versions of watchdog say so, some
        do not; a burst as long as a good part of the queue is reason enough.
        """
        count, self._count = self._count, 0
        complained = self._overflow.is_set()
        self._overflow.clear()
        return complained or count >= queue_limit() // 4

    def _noted(self, path: Path) -> None:
        self._count += 1
        self._hint(path)


class _Complaints(logging.Handler):
    """Hears watchdog's warnings: whatever it complains about, a scan puts right."""

    def __init__(self, heard: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        self._heard()
