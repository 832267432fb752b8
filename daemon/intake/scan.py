"""What lies in the watched folders: the truth that events only hint at."""

import dataclasses
import fnmatch
import os
import stat as st
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

IMAGE_SUFFIXES = (".fit", ".fits", ".fts", ".fz")
"""In any case; `.fits.fz` is among them."""

_IGNORED_NAMES = (
    ".*",  # dot files; rsync's `.name.XXXXXX` and `.~tmp~`; Syncthing's; macOS's `._name`
    "*.tmp",
    "*.part",
    "*.partial",
    "~syncthing~*",
    "@eadir",  # Synology's thumbnails
    "thumbs.db",
)

FolderId = tuple[int, int]
"""A folder's device and inode, whatever path leads to it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A file that may be a frame."""

    path: Path
    """Below the root as given; a name that is not UTF-8 carries surrogate escapes."""
    stat: os.stat_result
    """Of the file itself, where the path is a symlink."""


@dataclasses.dataclass(frozen=True, slots=True)
class Folder:
    """A folder that a scan has entered."""

    path: Path
    id: FolderId
    linked: bool
    """It was reached through a symlink."""


def ignored_name(name: str) -> bool:
    """Whether a file or folder of this name is somebody's temporary or private one."""
    lower = name.lower()
    return any(fnmatch.fnmatchcase(lower, pattern) for pattern in _IGNORED_NAMES)


def image_name(name: str) -> bool:
    """Whether a file of this name is looked at."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not ignored_name(name)


def folder_ids(folders: Iterable[Path]) -> frozenset[FolderId]:
    """Identify those folders that exist."""
    ids = set()
    for folder in folders:
        try:
            stat = folder.stat()
        except OSError:  # one that is not made yet cannot be met either
            continue
        ids.add((stat.st_dev, stat.st_ino))
    return frozenset(ids)


def belongs(path: Path, root: Path, ignore: Iterable[Path] = ()) -> bool:
    """Whether a scan of `root` would come as far as `path` (a file or a folder), by its name.

    The same rules as `scan`, for a single path from an event. Nothing is said about whether
    the path exists or, for a file, ends like an image.
    """
    try:
        parts = path.relative_to(root).parts
    except ValueError:
        return False
    if any(ignored_name(part) for part in parts):
        return False
    inside = [root, *(root.joinpath(*parts[: n + 1]) for n in range(len(parts)))]
    return not (folder_ids(inside) & folder_ids(ignore))


def _say_nothing(*_: object) -> None:
    """Ignore a report: the default for both of `scan`."""


def scan(
    root: Path,
    ignore: Iterable[Path] = (),
    *,
    folder: Path | None = None,
    on_folder: Callable[[Folder], None] = _say_nothing,
    on_error: Callable[[Path, OSError], None] = _say_nothing,
) -> Iterator[Found]:
    """Every file below `root` (or below `folder` in it) that may be a frame.

    Of the folders in a folder the one that changed last comes first: tonight's before the archive.
    Symlinks are followed; a folder is entered once, so a loop ends. Folders in `ignore` (the
    daemon's own) are not entered, by whatever path. A file that disappears meanwhile is left
    out. `on_folder` gets each folder entered, `on_error` each that cannot be read.
    """
    entered = set(folder_ids(ignore))
    pending = [(folder or root, False)]
    while pending:
        here, linked = pending.pop()
        try:
            stat = here.stat()
            identity = (stat.st_dev, stat.st_ino)
            if identity in entered:
                continue
            entered.add(identity)
            with os.scandir(here) as entries:
                on_folder(Folder(here, identity, linked))
                folders: list[tuple[int, Path]] = []
                for entry in entries:
                    kind = None if ignored_name(entry.name) else _kind(entry)
                    if kind == "folder":
                        folders.append((entry.stat().st_mtime_ns, here / entry.name))
                    elif kind == "link":
                        # Last: a folder that is also below the root gets its plain path.
                        pending.insert(0, (here / entry.name, True))
                    elif kind == "file" and image_name(entry.name):
                        found = _regular(entry, here)
                        if found is not None:
                            yield found
                pending.extend((path, False) for _, path in sorted(folders))
        except OSError as error:
            on_error(here, error)


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "link", "file"] | None:
    """Tell a folder, a symlink to one, and the rest apart; None: it leads nowhere."""
    try:
        if not entry.is_dir():
            return "file"
        return "link" if entry.is_symlink() else "folder"
    except OSError:  # a symlink that leads round in a circle, or where we may not look
        return None


def _regular(entry: os.DirEntry[str], folder: Path) -> Found | None:
    """Accept the entry if it leads to a regular file: opening a pipe would block."""
    try:
        stat = entry.stat()
    except OSError:  # deleted since, or a symlink that leads nowhere
        return None
    return Found(folder / entry.name, stat) if st.S_ISREG(stat.st_mode) else None
