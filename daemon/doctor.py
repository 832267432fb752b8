"""`lightkeeper doctor`: looks at everything that the service stands on, and says what to do.

It only reads, and may run beside the service. Each finding is one sentence.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from calib_library import schema
from calib_library.catalogue import registry
from calib_library.errors import ImageError, LibraryError
from calib_library.images import frame_file
from calib_library.library import CalibrationLibrary
from daemon import storage
from daemon.config import Config
from daemon.intake import scan
from daemon.intake.watcher import mount_of, read_mounts
from daemon.ledger.stacks import Stacks

INOTIFY = Path("/proc/sys/fs/inotify/max_user_watches")

FUTURE_S = 3600.0
"""A file that is newer than now by more than this (s) shows that a clock is wrong."""

SAMPLE = 2000
"""Files of a watched folder that are looked at."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    about: str
    good: bool
    text: str
    """What is so; where it is not good, what to do."""


def _good(about: str, text: str) -> Finding:
    return Finding(about, good=True, text=text)


def _bad(about: str, text: str) -> Finding:
    return Finding(about, good=False, text=text)


def examine(config: Config, *, now: float, inotify: Path = INOTIFY) -> Iterator[Finding]:
    """Look at everything. `now` in s since 1970."""
    root = config.library.path
    database = root / schema.DATABASE_NAME
    absent = storage.missing(root, database=database)
    if absent is not None:
        yield _bad("library", absent.text)
    elif not root.is_dir():
        yield _bad("library", f"there is no {root} yet: lightkeeper run makes it")
    else:
        yield from _library(root, database)
        yield from _disk(root, now=now)
    for watch in config.watch:
        yield from _watched(watch.path, now=now)
    yield _inotify([watch.path for watch in config.watch], inotify)
    yield _clock(database, now=now)


# --- the library ---------------------------------------------------------------------------------


def _library(root: Path, database: Path) -> Iterator[Finding]:
    if storage.read_marker(root) is None:
        yield _bad("library", f"{root} has no marker {storage.MARKER}: lightkeeper run makes it")
    if not database.exists():
        yield _bad("database", f"{database} is not there: lightkeeper rebuild makes it")
        return
    try:
        wrong = schema.verdict(database)
    except sqlite3.Error as error:
        yield _bad("database", f"{database} cannot be read ({error}): look at its disk")
        return
    if wrong != "ok":
        yield _bad(
            "database", f"{database} is damaged ({wrong}): stop the service and let "
            "lightkeeper rebuild make it again"
        )  # fmt: skip
        return
    size = database.stat().st_size / storage.MEGABYTE
    yield _good("database", f"{database} is sound ({size:.1f} MB)")
    try:
        db = schema.connect(database, readonly=True)
        with contextlib.closing(db.conn):
            schema.require(db, root)
            library, stacks = CalibrationLibrary(db, root), Stacks(db)
            yield from _masters(root, library)
            yield from _stacks(root, stacks)
            yield _orphans(root, library, stacks)
    except LibraryError as error:
        yield _bad("database", str(error))
    yield _backups(root / "backup")


def _masters(root: Path, library: CalibrationLibrary) -> Iterator[Finding]:
    """Compare each master's file with its recorded hash."""
    count = 0
    for master in library.masters():
        path = root / master.path
        again = "restart the service: it builds it again from its frames"
        try:
            with path.open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == master.sha256
        except FileNotFoundError:
            yield _bad("masters", f"{master.path} is gone: {again}")
        except OSError as error:
            yield _bad("masters", f"{master.path} cannot be read ({error.strerror})")
        else:
            count += same
            if not same:
                yield _bad(
                    "masters", f"{master.path} is not what was written: delete it and {again}"
                )  # fmt: skip
    yield _good("masters", f"{count} masters are as they were written")


def _stacks(root: Path, stacks: Stacks) -> Iterator[Finding]:
    """Compare each stack's pixels with the checksum in its header."""
    count = 0
    for stack in stacks.all():
        for relative in filter(None, (stack.path, stack.final_path)):
            try:
                frame_file.load(root / relative)
            except FileNotFoundError:
                wrong = "is gone: restart the service, it is made again"
            except (ImageError, OSError) as error:
                wrong = f"cannot be read ({error}): delete it and restart the service"
            else:
                count += 1
                continue
            yield _bad("stacks", f"{relative} {wrong}")
    yield _good("stacks", f"{count} stacks are as they were written")


def _orphans(root: Path, library: CalibrationLibrary, stacks: Stacks) -> Finding:
    used = stacks.product_paths()
    found = [path.relative_to(root) for path in registry.orphans(library)]
    if used:
        found += [
            relative
            for path in (root / "stacks").rglob("*_v[0-9][0-9][0-9][0-9]*.fits")
            if str(relative := path.relative_to(root)) not in used
        ]
    if not found:
        return _good("orphans", "no file without a row in the database")
    return _bad(
        "orphans", f"{len(found)} files that no row speaks of ({found[0]} …): the service "
        "clears them away at its next start"
    )  # fmt: skip


def _backups(folder: Path) -> Finding:
    copies = sorted(folder.glob("*.db"), reverse=True)
    if not copies:
        return _good("backup", "no backup yet: one is made each morning")
    try:
        wrong = schema.verdict(copies[0])
    except sqlite3.Error as error:
        wrong = str(error)
    if wrong != "ok":
        return _bad("backup", f"{copies[0]} is damaged ({wrong}): delete it")
    return _good("backup", f"{len(copies)} backups, the newest ({copies[0].name}) is sound")


def _disk(root: Path, *, now: float) -> Iterator[Finding]:
    mount = mount_of(os.path.realpath(root), read_mounts())
    if mount is not None and mount.network:
        yield _bad(
            "disk", f"the library {root} is on a network file system ({mount.fstype}), which may "
            "damage its database: move it to a local disk"
        )  # fmt: skip
    if not os.access(root, os.W_OK | os.X_OK):
        yield _bad(
            "disk", f"this user may not write to {root}: run this as the service's user "
            "(sudo -u lightkeeper lightkeeper doctor), or give the folder to it"
        )  # fmt: skip
    low = storage.low_room(root, now=now)
    free = storage.free_bytes(root) / storage.MEGABYTE
    yield _bad("disk", low) if low else _good("disk", f"{free:.0f} MB are free for the library")


# --- the camera's folders ------------------------------------------------------------------------


def _watched(folder: Path, *, now: float) -> Iterator[Finding]:
    point = storage.unmounted_point(folder)
    if point is not None:
        yield _bad("watch", f"{folder} is on {point}, which is not mounted: mount it")
        return
    if not folder.is_dir():
        yield _bad("watch", f"{folder} is not there: make it, or mount its disk")
        return
    if not os.access(folder, os.R_OK | os.X_OK):
        yield _bad(
            "watch", f"this user may not read {folder}: put it in the group of who writes "
            "the frames (usermod --append --groups …)"
        )  # fmt: skip
        return
    files = [found for _, found in zip(range(SAMPLE), scan.scan(folder), strict=False)]
    closed = [found.path for found in files if not os.access(found.path, os.R_OK)]
    future = [found.path for found in files if found.stat.st_mtime > now + FUTURE_S]
    if closed:
        yield _bad(
            "watch", f"{len(closed)} files cannot be read ({closed[0]} …): chmod g+r, and "
            "the umask of the program that writes them"
        )  # fmt: skip
    if future:
        yield _bad(
            "clock", f"{len(future)} files are from the future ({future[0]} …): set the "
            "clock of this computer, or of the one that writes them"
        )  # fmt: skip
    if not closed:
        yield _good("watch", f"{folder} can be read ({len(files)} frames looked at)")


def _inotify(folders: list[Path], limit_file: Path) -> Finding:
    try:
        limit = int(limit_file.read_text())
    except (OSError, ValueError):
        return _good("inotify", "the kernel does not tell its limit of watched folders")
    needed = sum(1 for folder in folders for _ in os.walk(folder))
    if needed < limit:
        return _good("inotify", f"{needed} folders to watch, {limit} may be")
    wanted = max(2 * limit, 2 ** (2 * needed).bit_length())
    return _bad(
        "inotify", f"{needed} folders to watch, and only {limit} may be: echo "
        f"fs.inotify.max_user_watches={wanted} > /etc/sysctl.d/60-lightkeeper.conf; sysctl --system"
    )  # fmt: skip


def _clock(database: Path, *, now: float) -> Finding:
    """A small machine without a battery starts in the past."""
    try:
        written = database.stat().st_mtime
    except OSError:
        written = 0.0
    if written > now + FUTURE_S:
        return _bad(
            "clock", "the clock stands before the last night: set it (timedatectl), else "
            "frames are filed under a wrong night"
        )  # fmt: skip
    return _good("clock", "the clock stands after the last night")


def text(finding: Finding) -> str:
    """One line for a person."""
    mark = "ok     " if finding.good else "PROBLEM"
    return re.sub(r"\s+", " ", f"{mark} {finding.about}: {finding.text}")
