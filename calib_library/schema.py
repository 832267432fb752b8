"""The library's tables, their migrations, and the one way to open and to write the database.

The file is shared with the daemon, whose ledger adds its own tables to it. Times are REAL, seconds
since 1970-01-01 UTC; paths are the file system's bytes; a missing value is NULL and a NaN never
gets in.
"""

import contextlib
import datetime as dt
import sqlite3
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from sqlite_utils import Database, Migrations

from calib_library.atomic import sync
from calib_library.errors import LibraryError
from calib_library.frame import FrameType

DATABASE_NAME = "lightkeeper.db"
"""The file's name inside the library's folder."""

BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for another process, s."""

CALIBRATION_TYPES = (FrameType.BIAS, FrameType.DARK, FrameType.FLAT, FrameType.FLAT_DARK)
"""What is filed; lights are stacked."""

MIGRATIONS = Migrations("calib_library")


def one_of(column: str, values: type[StrEnum] | tuple[StrEnum, ...]) -> str:
    """Return the CHECK constraint that a column holds one of an enum's values."""
    return f"CHECK ({column} IN ({', '.join(repr(value.value) for value in values)}))"


@MIGRATIONS()
def create_tables(db: Database) -> None:
    """Create the sets of like frames, the frames in them, the masters made of them."""
    frame_type = f"frame_type TEXT NOT NULL {one_of('frame_type', CALIBRATION_TYPES)}"
    # What frames of a set have in common, and a master with its set. NULL is missing.
    identity = f"""
        {frame_type},
        key TEXT NOT NULL,              -- CalibrationKey and row order as JSON: hard equality
        camera TEXT,
        width INTEGER NOT NULL,         -- px
        height INTEGER NOT NULL,        -- px
        exposure_s REAL,
        temperature_c REAL,             -- mean of the frames
        filter TEXT,                    -- of a flat
        session TEXT NOT NULL,          -- a flat's night; '' otherwise
        telescope TEXT,                 -- of a flat, as are the next two
        focal_length_mm REAL,
        rotator_deg REAL"""
    db.executescript(f"""
        CREATE TABLE calibration_set (
            id INTEGER PRIMARY KEY,
            {identity},
            frames INTEGER NOT NULL DEFAULT 0,      -- those not excluded
            last_filed_at REAL NOT NULL,
            changed INTEGER NOT NULL DEFAULT 1 CHECK (changed IN (0, 1)),
            refused TEXT,                           -- why the last build of these frames failed
            refused_at REAL
        ) STRICT;
        CREATE INDEX calibration_set_key ON calibration_set (key, frame_type, filter, session);
        CREATE INDEX calibration_set_changed ON calibration_set (last_filed_at) WHERE changed;

        CREATE TABLE calibration_frame (
            id INTEGER PRIMARY KEY,
            sha256 TEXT NOT NULL UNIQUE,
            path BLOB NOT NULL,
            set_id INTEGER NOT NULL REFERENCES calibration_set (id),
            record TEXT NOT NULL,                   -- FrameRecord.to_json()
            temperature_c REAL,
            date_obs REAL,
            filed_at REAL NOT NULL,
            excluded TEXT                           -- the reason, for a person
        ) STRICT;
        CREATE INDEX calibration_frame_set
            ON calibration_frame (set_id, excluded, temperature_c, filed_at);

        CREATE TABLE master (
            id INTEGER PRIMARY KEY,
            set_id INTEGER NOT NULL REFERENCES calibration_set (id),
            generation INTEGER NOT NULL CHECK (generation > 0),
            {identity},
            frames INTEGER NOT NULL CHECK (frames > 0),
            date_obs REAL,                          -- mean of the frames
            path TEXT NOT NULL UNIQUE,              -- relative to the library's folder, made by us
            sha256 TEXT NOT NULL,
            subtracted INTEGER REFERENCES master (id),
            built_at REAL NOT NULL,
            -- deferred: the old one steps aside before its successor is there
            superseded_by INTEGER REFERENCES master (id) DEFERRABLE INITIALLY DEFERRED,
            version TEXT NOT NULL,
            notes TEXT NOT NULL,                    -- a JSON list of sentences
            UNIQUE (set_id, generation)
        ) STRICT;
        CREATE UNIQUE INDEX master_current ON master (set_id) WHERE superseded_by IS NULL;
        CREATE INDEX master_dark ON master (frame_type, key, exposure_s, temperature_c)
            WHERE superseded_by IS NULL;
        CREATE INDEX master_flat ON master (frame_type, key, filter, session)
            WHERE superseded_by IS NULL;
        CREATE INDEX master_camera ON master (frame_type, camera, width, height, key)
            WHERE superseded_by IS NULL;
        CREATE INDEX master_size ON master (frame_type, width, height, camera)
            WHERE superseded_by IS NULL;

        CREATE TABLE master_input (
            master INTEGER NOT NULL REFERENCES master (id),
            frame INTEGER NOT NULL REFERENCES calibration_frame (id),
            left_out TEXT,                          -- why this build did without the frame
            PRIMARY KEY (master, frame)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX master_input_frame ON master_input (frame);
        """)


@MIGRATIONS()
def add_sensor(db: Database) -> None:
    """Keep what was measured of each camera in each of its settings, with its history."""
    db.executescript("""
        CREATE TABLE sensor (
            id INTEGER PRIMARY KEY,
            key TEXT NOT NULL,              -- of the frames, as in calibration_set
            camera TEXT,
            gain_setting REAL,
            readout_mode TEXT,
            measured_at REAL NOT NULL,
            gain REAL,                      -- e-/ADU; NULL where it could not be measured
            gain_error REAL,
            read_noise REAL,                -- e-
            read_noise_error REAL,
            details TEXT NOT NULL           -- SensorRecord.details()
        ) STRICT;
        CREATE INDEX sensor_key ON sensor (key, measured_at);
        """)


@MIGRATIONS()
def add_telegraph(db: Database) -> None:
    """Keep which pixels of a camera jump: found with a dark master, never changed after."""
    db.executescript("""
        CREATE TABLE telegraph (
            master INTEGER PRIMARY KEY REFERENCES master (id),
            frames INTEGER NOT NULL,        -- darks that told
            found INTEGER NOT NULL,         -- pixels
            pixels BLOB NOT NULL            -- defects.pack_pixels
        ) STRICT;
        """)


@MIGRATIONS()
def create_identity(db: Database) -> None:
    """Create the one row that says which library this is: the folder's marker has the same id."""
    db.executescript("CREATE TABLE library (id TEXT NOT NULL) STRICT;")


def identify(db: Database, *, proposed: str) -> str:
    """Return the library's id; where it has none yet, `proposed` becomes it."""
    with transaction(db):
        for (known,) in db.conn.execute("SELECT id FROM library"):
            return str(known)
        db.conn.execute("INSERT INTO library (id) VALUES (?)", (proposed,))
    return proposed


@MIGRATIONS()
def ages_pedestals_imports_overrides(db: Database) -> None:
    """Date the sets, say what was subtracted from each input, know imports and choices by hand."""
    db.executescript("""
        ALTER TABLE calibration_set ADD COLUMN date_obs REAL;   -- mean of the frames
        UPDATE calibration_set SET date_obs =
            (SELECT avg(date_obs) FROM calibration_frame
             WHERE set_id = calibration_set.id AND excluded IS NULL);

        -- A person has said that its next master may be unlike the one before.
        ALTER TABLE calibration_set ADD COLUMN accepted INTEGER NOT NULL DEFAULT 0;

        -- Twilight flats: the master that was subtracted from this one frame.
        ALTER TABLE master_input ADD COLUMN subtracted INTEGER REFERENCES master (id);
        UPDATE master_input SET subtracted = (SELECT subtracted FROM master WHERE id = master)
            WHERE left_out IS NULL;

        -- Masters made elsewhere have a set of their own, which no frame joins; their file's name.
        ALTER TABLE calibration_set ADD COLUMN imported TEXT;

        -- Masters of frames with a BIASSEC still have their pedestal, which lights now lose with
        -- their overscan: they fit nothing any more, and their sets are due.
        UPDATE calibration_set SET changed = 1, refused = NULL
            WHERE json_extract(key, '$.sections') LIKE '%;[%;%';
        UPDATE master SET key = json_set(key, '$.sections',
                json_extract(key, '$.sections') || ' (with its overscan level)')  -- overscan.KEPT
            WHERE json_extract(key, '$.sections') LIKE '%;[%;%';

        -- Masters that a person chose, for one target or for one frame.
        CREATE TABLE master_choice (
            kind TEXT NOT NULL CHECK (kind IN ('bias', 'dark', 'flat')),
            scope TEXT NOT NULL CHECK (scope IN ('target', 'frame')),
            subject TEXT NOT NULL,                  -- the target's name; the frame's SHA-256
            master INTEGER NOT NULL REFERENCES master (id),
            chosen_at REAL NOT NULL,
            PRIMARY KEY (scope, subject, kind)
        ) STRICT, WITHOUT ROWID;
        """)


@MIGRATIONS()
def versions_of_files(db: Database) -> None:
    """Know the file whose bytes were hashed by its size and time, so that it is not hashed again
    for every master.
    """
    db.executescript("""
        ALTER TABLE calibration_frame ADD COLUMN size INTEGER;          -- bytes
        ALTER TABLE calibration_frame ADD COLUMN mtime_ns INTEGER;
        """)


@MIGRATIONS()
def light_of_flats(db: Database) -> None:
    """Tell flats of the sky from those of the dome; what was filed before stays as it is."""
    db.executescript("""
        ALTER TABLE calibration_set ADD COLUMN flat_light TEXT;  -- sky, dome; NULL: nothing says it
        ALTER TABLE master ADD COLUMN flat_light TEXT;
        """)


@MIGRATIONS()
def darks_forced_by_hand(db: Database) -> None:
    """Know for which target, or for which frame, a person wants the dark extrapolated."""
    db.executescript("""
        CREATE TABLE forced_dark (
            scope TEXT NOT NULL CHECK (scope IN ('target', 'frame')),
            subject TEXT NOT NULL,                  -- the target's name; the frame's SHA-256
            chosen_at REAL NOT NULL,
            PRIMARY KEY (scope, subject)
        ) STRICT, WITHOUT ROWID;
        """)


def apply(db: Database) -> None:
    """Bring the library's tables to this version; other tables of the file are left alone.

    Does not write where nothing is to be done. Two processes may call it at once.
    """
    if MIGRATIONS.pending(db):
        with transaction(db):
            MIGRATIONS.apply(db)


def require(db: Database, root: Path) -> None:
    """Raise LibraryError where tables of this version are missing: a reader cannot make them."""
    if MIGRATIONS.pending(db):
        raise LibraryError(
            f"The library in {root} was not made by this version; start the service once."
        )


def connect(path: Path, *, readonly: bool = False, any_thread: bool = False) -> Database:
    """Open the database; the connection belongs to the calling thread, or with `any_thread` to
    whoever holds a lock on it.

    The one writer gets WAL and `synchronous=FULL`: what a transaction committed survives a power
    cut. A reader sees a consistent state while the writer works, and cannot write.

    Raises LibraryError where the file cannot be opened or is no database.
    """
    mode = "ro" if readonly else "rwc"
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            check_same_thread=not any_thread,
        )
        try:
            db = Database(connection)
            db.execute("PRAGMA foreign_keys=ON")
            if readonly:
                db.execute("PRAGMA query_only=ON")
            else:
                db.enable_wal()
                db.execute("PRAGMA synchronous=FULL")
            db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        hint = "" if path.exists() else ": there is no such file"
        raise LibraryError(f"The database {path} cannot be opened ({error}){hint}.") from error
    return db


@contextlib.contextmanager
def transaction(db: Database) -> Iterator[None]:
    """Write all of the block or nothing of it.

    The outermost block is BEGIN IMMEDIATE: it takes the write lock first, so that it waits for
    another process instead of failing half-way. A block inside another is a savepoint: its error
    undoes only its own part where the outer block catches it, and the outer commit makes it last.
    """
    if db.conn.in_transaction:
        with db.atomic():
            yield
        return
    db.conn.execute("BEGIN IMMEDIATE")
    try:
        yield
        # A COMMIT can fail too (a full disk), and then leaves the transaction open.
        db.conn.execute("COMMIT")
    except BaseException:
        db.rollback()
        raise


def verdict(path: Path) -> str:
    """Look whether a database file is whole: `ok`, or what is wrong with it. Does not write.

    Raises sqlite3.OperationalError where it cannot be read now.
    """
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            for statement in ("PRAGMA quick_check", "PRAGMA foreign_key_check"):
                for row in connection.execute(statement):
                    if row != ("ok",):
                        return " ".join(map(str, row))
            if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                return "it is empty"
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        return str(error)
    return "ok"


def backup(db: Database, folder: Path, *, keep: int, now: dt.datetime) -> Path:
    """Copy the database while it is in use, check the copy, keep the `keep` newest; return it.

    Raises LibraryError where the copy is not sound (the older copies are then left alone), OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = Path(DATABASE_NAME).stem
    copy = folder / f"{stem}-{now:%Y%m%d-%H%M%S}.db"
    unfinished = folder / f".{copy.name}.tmp"
    unfinished.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(unfinished)) as target:
            db.conn.backup(target)
            # A copy of a WAL database would need its own -wal file beside it.
            target.execute("PRAGMA journal_mode=DELETE")
            verdict = target.execute("PRAGMA quick_check").fetchone()[0]
        if verdict != "ok":
            raise LibraryError(f"The copy of the database is not sound: {verdict}.")
        sync(unfinished)
        unfinished.replace(copy)
        sync(folder)
    except sqlite3.Error as error:
        raise LibraryError(f"The database could not be copied: {error}.") from error
    finally:
        unfinished.unlink(missing_ok=True)
    for old in sorted(folder.glob(f"{stem}-*.db"))[: -max(1, keep)]:
        old.unlink()
    return copy
