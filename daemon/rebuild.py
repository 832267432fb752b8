"""`lightkeeper rebuild`: a lost or damaged database is made again, from its newest sound backup or
from the library's files.

Nothing is deleted: the damaged database, the stacks that were written, and masters that the new
database does not know are set aside in the library's `recovered` folder. The frames are found again
by the next scan, and the stacks are made again from them; a stack whose raw frames are gone remains
in `recovered`.
"""

import contextlib
import dataclasses
import datetime as dt
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from calib_library import atomic, restore, schema
from calib_library.catalogue import recovery, registry
from calib_library.library import MASTERS_FOLDER, CalibrationLibrary
from daemon import storage
from daemon.errors import FatalError
from daemon.ledger.ledger import Ledger
from daemon.lock import Lock

RECOVERED = "recovered"
UNFINISHED = ".rebuild.db"


@dataclasses.dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of it."""

    backup: Path | None
    """The copy that was taken; None: it was made from the files."""
    masters: int
    aside: Path | None
    """Where the old database and stacks are now."""
    problems: tuple[str, ...]


def rebuild(root: Path, *, from_files: bool, now: dt.datetime) -> Rebuilt:
    """Make the database again. `from_files`: do without the backups.

    Raises FatalError where the database is sound (AlreadyRunningError where a daemon has it).
    """
    database = root / schema.DATABASE_NAME
    if not root.is_dir():
        raise FatalError(f"there is no library in {root}: mount its disk")
    with Lock(root):
        if database.exists() and schema.verdict(database) == "ok":
            raise FatalError(
                f"the database {database} is sound: there is nothing to rebuild. To have it made "
                "anew all the same, move it away first"
            )
        backup = None if from_files else newest_sound(root / "backup")
        new = root / UNFINISHED
        _remove(new)
        if backup is not None:
            shutil.copyfile(backup, new)
        found = list(restore.masters(root))
        masters = [one for one in found if isinstance(one, restore.FoundMaster)]
        db = schema.connect(new)
        with contextlib.closing(db.conn):
            library = CalibrationLibrary(db, root)
            schema.apply(db)
            Ledger.prepare(db)
            id_ = schema.identify(db, proposed=storage.read_marker(root) or storage.new_id())
            if backup is None:
                recovery.register_again(library, masters)
            known = {one.path for one in library.masters(current=False)}
            for one in found:
                # A backup may be older than an import.
                if isinstance(one, restore.FoundImport) and one.built.path not in known:
                    registry.register_import(
                        library,
                        one.record,
                        one.built,
                        source=one.source,
                        session=one.session,
                        now=one.imported_at,
                    )
            known = {one.path for one in library.masters(current=False)}
        # The sweep of the next start would take these for what a crash left.
        files = sorted((root / MASTERS_FOLDER).glob("Master*.fits"))
        unknown = [path for path in files if PurePosixPath(path.relative_to(root)) not in known]
        aside = _set_aside(root, unknown, now)
        # The last step: a death before it leaves a library without a database, to rebuild again.
        atomic.sync(new)
        new.replace(database)
        atomic.sync(root)
        storage.establish(root, id_)
    problems = tuple(one for one in found if isinstance(one, str))
    return Rebuilt(backup, len(known), aside, problems)


def newest_sound(folder: Path) -> Path | None:
    """The newest backup that is whole."""
    copies = sorted(folder.glob("*.db"), reverse=True)
    return next((copy for copy in copies if schema.verdict(copy) == "ok"), None)


def _set_aside(root: Path, masters: Sequence[Path], now: dt.datetime) -> Path | None:
    """Move what the new database does not speak of, these masters too, to a folder of its own;
    None: there was none.
    """
    names = [schema.DATABASE_NAME + end for end in ("", "-wal", "-shm")] + ["stacks"]
    there = [root / name for name in names if (root / name).exists()]
    if not there and not masters:
        return None
    aside = root / RECOVERED / f"{now:%Y%m%d-%H%M%S}"
    for path in (*there, *masters):
        place = aside / path.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    return aside


def _remove(database: Path) -> None:
    for end in ("", "-wal", "-shm"):
        database.with_name(database.name + end).unlink(missing_ok=True)
