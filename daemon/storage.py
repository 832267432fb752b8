"""The disk beneath the library: is it there, can it be written, is there room on it?

A library that was made holds a marker, a small file with the library's id. An unmounted disk is an
empty folder: without the marker nothing is written there.
"""

import contextlib
import errno
import json
import os
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from calib_library import atomic
from daemon.errors import FatalError

MARKER = ".lightkeeper"
"""The file in the library's folder that says: this is it."""

PROBE = ".probe"
PROBE_BYTES = 65536

FULL_RETRY_S = 300.0
"""A full disk is tried again when there is more room, or after so long (s): a quota is not seen."""

FAULTY_RETRY_S = 15.0
"""A disk that reported an error is tried again after so long (s)."""

MORE_ROOM = 1.25
MORE_BYTES = 1_000_000
"""More room than when it was full: so many times as much, and so many bytes more."""

MEGABYTE = 1_000_000


class Kind(StrEnum):
    """What is wrong with the disk."""

    FULL = "full"
    READ_ONLY = "read-only"
    GONE = "gone"
    FAULTY = "faulty"


_ERRNO: Mapping[int, Kind] = {
    errno.ENOSPC: Kind.FULL,
    errno.EDQUOT: Kind.FULL,
    errno.EROFS: Kind.READ_ONLY,
    errno.EIO: Kind.FAULTY,
    errno.ESTALE: Kind.FAULTY,
    errno.ENODEV: Kind.FAULTY,
    errno.ENXIO: Kind.FAULTY,
    errno.ENOTCONN: Kind.FAULTY,
}
_SQLITE: Mapping[int, Kind] = {
    sqlite3.SQLITE_FULL: Kind.FULL,
    sqlite3.SQLITE_READONLY: Kind.READ_ONLY,
    sqlite3.SQLITE_IOERR: Kind.FAULTY,
    sqlite3.SQLITE_CANTOPEN: Kind.FAULTY,
}


EVERYBODYS = (Kind.FULL, Kind.READ_ONLY, Kind.GONE)
"""Certainly not the fault of one file; an input/output error may be."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the work pauses."""

    kind: Kind
    text: str
    """One sentence: what is wrong, and what to do."""
    free_bytes: int
    """On the library's disk when it happened; 0 where it cannot be asked."""


class StorageError(Exception):
    """The library's disk is in trouble; the work pauses until it is not."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.text)
        self.trouble = trouble


@dataclass(frozen=True, slots=True)
class Storage:
    """One library's folder, known by its id."""

    root: Path
    id: str

    def present(self) -> bool:
        """Is the marker of this very library there?"""
        return read_marker(self.root) == self.id

    def check(self) -> None:
        """Raise StorageError where the library is not there."""
        if not self.present():
            raise StorageError(describe(Kind.GONE, self.root))

    def trouble(self, error: BaseException) -> Trouble | None:
        """What an error says of the library's disk; None where it is about something else."""
        if isinstance(error, StorageError):
            return error.trouble
        kind = kind_of(error)
        if not self.present():
            kind = Kind.GONE
        return None if kind is None else describe(kind, self.root, error)

    def concerns_all(self, error: BaseException) -> bool:
        """Is this the disk's trouble, and not that of one file on it? One bad sector beneath a
        master or a raw frame is that file's.
        """
        found = self.trouble(error)
        if found is None:
            return False
        one_file = found.kind is Kind.FAULTY and isinstance(error, OSError)
        return not (one_file and writable(self.root))

    def over(self, trouble: Trouble, waited_s: float) -> bool:
        """Is it worth a new attempt, `waited_s` after the trouble came?"""
        if not self.present() or not writable(self.root):
            return False
        if trouble.kind is Kind.FULL:
            wanted = MORE_ROOM * trouble.free_bytes + MORE_BYTES
            return free_bytes(self.root) > wanted or waited_s >= FULL_RETRY_S
        return trouble.kind is not Kind.FAULTY or waited_s >= FAULTY_RETRY_S


def kind_of(error: BaseException | None) -> Kind | None:
    """What sort of disk trouble an error, or one that caused it, tells of."""
    while error is not None:
        if isinstance(error, StorageError):
            return error.trouble.kind
        if isinstance(error, sqlite3.Error):
            code = getattr(error, "sqlite_errorcode", None)
            kind = None if code is None else _SQLITE.get(code & 0xFF)
        else:
            kind = _ERRNO.get(error.errno or 0) if isinstance(error, OSError) else None
        if kind is not None:
            return kind
        error = error.__cause__
    return None


def describe(kind: Kind, root: Path, error: BaseException | None = None) -> Trouble:
    """Put a trouble of the library in `root` into words."""
    free = free_bytes(root)
    if kind is Kind.FAULTY:
        # After an error the kernel often closes a disk for writing: then that is what to say.
        kind = kind_of(_probe(root)) or kind
    return Trouble(kind, _sentence(kind, root, free, str(error or "")), free)


def _sentence(kind: Kind, root: Path, free: int, detail: str) -> str:
    match kind:
        case Kind.FULL:
            return (
                f"the disk of the library {root} is full ({free / MEGABYTE:.0f} MB free): make "
                "room; the work goes on by itself"
            )
        case Kind.READ_ONLY:
            return (
                f"the library {root} has become read-only: look what the disk has (dmesg) and "
                "mount it writable again; the work goes on by itself"
            )
        case Kind.GONE:
            return (
                f"the library {root} is not there (no {MARKER} of it in that folder): mount its "
                "disk; the work goes on by itself"
            )
        case Kind.FAULTY:
            return (
                f"the disk of the library {root} reports an error ({detail}): look what it has "
                "(dmesg); the work is tried again by itself"
            )


# --- the marker ----------------------------------------------------------------------------------


def read_marker(root: Path) -> str | None:
    """The id in the marker; None where there is none, or it cannot be read."""
    try:
        return (root / MARKER).read_text("ascii", errors="replace").strip()
    except OSError:
        return None


def establish(root: Path, id_: str) -> Storage:
    """Mark the folder as the library of this id, where it is not marked yet. Raises OSError, and
    FatalError where it is marked as another library.
    """
    there = read_marker(root)
    if there and there != id_:
        raise FatalError(
            f"the library {root} is marked as {there}, its database is of {id_}: two libraries "
            "were mixed; put the database and the folder together that belong to each other"
        )
    if not there:
        atomic.write_bytes(root / MARKER, f"{id_}\n".encode())
    _remember(root, id_)
    return Storage(root, id_)


def new_id() -> str:
    """An id for a library that is begun."""
    return uuid.uuid4().hex


def missing(root: Path, *, database: Path) -> Trouble | None:
    """Why no library may be begun or opened in `root` now: its disk is not mounted; else None.

    A folder without a marker and without a database is either a new library, or the empty folder
    beneath one that is not mounted. It is the latter where fstab names a mount point on its way
    that is not mounted, or where the service remembers (in systemd's $CACHE_DIRECTORY) a library.
    """
    if read_marker(root) is not None or database.exists():
        return None
    point = unmounted_point(root)
    if point is not None:
        text = f"the library {root} is on {point}, which is not mounted: mount it"
    elif _remembered(root):
        text = (
            f"the library {root} was here before, and now the folder is empty: mount its disk; or, "
            f"to begin a new library, make an empty file {root / MARKER}"
        )
    else:
        return None
    return Trouble(Kind.GONE, f"{text}; the work begins by itself", 0)


def unmounted_point(root: Path, fstab: Path = Path("/etc/fstab")) -> Path | None:
    """The mount point at or above `root` that fstab names, where nothing is mounted on it."""
    try:
        lines = fstab.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split("#")[0].split()
        if len(fields) >= 2 and fields[1].startswith("/"):
            point = Path(fields[1].replace("\\040", " "))
            if point != Path("/") and root.is_relative_to(point) and not os.path.ismount(point):
                return point
    return None


def _memory() -> Path | None:
    folder = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    return Path(folder) / "libraries.json" if folder else None


def _remembered(root: Path) -> bool:
    memory = _memory()
    if memory is None:
        return False
    try:
        return str(root) in json.loads(memory.read_text())
    except (OSError, ValueError):  # nothing is remembered
        return False


def _remember(root: Path, id_: str) -> None:
    memory = _memory()
    if memory is not None and not _remembered(root):
        with contextlib.suppress(OSError):  # a convenience: the service goes on without
            atomic.write_bytes(memory, json.dumps({str(root): id_}).encode())


# --- room ----------------------------------------------------------------------------------------


def writable(root: Path) -> bool:
    """Can a small file be written and synced in the library's folder now?"""
    return _probe(root) is None


def _probe(root: Path) -> OSError | None:
    """Write a small file, sync it, delete it: the error, if there is one."""
    probe = root / PROBE
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            written = os.write(descriptor, bytes(PROBE_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return None if written == PROBE_BYTES else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def free_bytes(folder: Path) -> int:
    """Room for a user without privileges, bytes; 0 where it cannot be asked."""
    try:
        stat = os.statvfs(folder)
    except OSError:
        return 0
    return stat.f_bavail * stat.f_frsize


def files(folder: Path) -> Iterator[os.stat_result]:
    """The files below a folder, symlinks not followed; what vanishes meanwhile is left out."""
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                yield os.lstat(Path(where, name))


LEAST_ROOM_BYTES = 500 * MEGABYTE
"""Less free than this is low, whatever was written so far."""

DAY_S = 86_400.0


def a_nights_bytes(root: Path, *, now: float) -> int:
    """Bytes of what was written to the library within the day before `now` (s since 1970)."""
    return sum(stat.st_size for stat in files(root) if now - stat.st_mtime < DAY_S)


def low_room(root: Path, *, now: float) -> str | None:
    """A sentence where the disk may be full before the night is over; None where there is room."""
    free = free_bytes(root)
    if free == 0:
        return None  # full, or not there: that is trouble, told as such
    wanted = max(LEAST_ROOM_BYTES, a_nights_bytes(root, now=now))
    if free >= wanted:
        return None
    return (
        f"only {free / MEGABYTE:.0f} MB are free on the disk of the library {root}, and a night "
        f"may need {wanted / MEGABYTE:.0f} MB: make room"
    )
