"""The daemon's tables. They live in the same SQLite file as the library's, so that one transaction
can register a master and release the lights that waited for it.
"""

import sqlite_utils
from sqlite_utils import Migrations

from daemon.ledger.states import State

MIGRATIONS = Migrations("lightkeeper.ledger")

CLAIM_ORDER = (
    "(frame_type IS NOT NULL AND frame_type NOT IN ('bias', 'dark', 'flat', 'flat-dark')), "
    "date_obs, name, id"
)
"""Calibration frames before lights (whose masters they make), then as they were exposed."""

INCOMPLETE = "(frame.state = 'rejected' AND frame.not_before IS NOT NULL)"
"""A file that was recorded as not whole: it is looked at again, and may be recorded anew."""

_STATES = ", ".join(f"'{state}'" for state in State)


@MIGRATIONS()
def m001_frames_and_stacks(db: sqlite_utils.Database) -> None:
    """Frames, stacks, who is a member of which, and the references that stacks register to."""
    for statement in (
        f"""
        CREATE TABLE frame (
            id INTEGER PRIMARY KEY,
            path BLOB NOT NULL,             -- paths are bytes on Linux
            root BLOB NOT NULL,             -- the watched folder it was found in
            name TEXT NOT NULL,             -- the file's name, printable
            size INTEGER NOT NULL,
            mtime_ns INTEGER NOT NULL,
            sha256 TEXT,                    -- of the content, once read
            state TEXT NOT NULL CHECK (state IN ({_STATES})),
            reason TEXT,                    -- why it is rejected, waits, failed or is quarantined
            frame_type TEXT,
            record TEXT,                    -- FrameRecord as JSON
            target TEXT,
            filter TEXT,
            night TEXT,                     -- local date, noon to noon
            date_obs TEXT,
            waits_for INTEGER,              -- the calibration set a waiting light waits for
            stack_id INTEGER REFERENCES stack(id),
            quality TEXT,                   -- JSON, of a light that was left out for it
            by_hand TEXT CHECK (by_hand IN ('in', 'out')),  -- a person's word on the stack
            explanation TEXT,               -- JSON: [[heading, [line, ...]], ...]
            attempts INTEGER NOT NULL DEFAULT 0,
            claimed_at TEXT,
            not_before TEXT,                -- a deferred frame is not tried again earlier
            seen_at TEXT NOT NULL,
            done_at TEXT,
            UNIQUE (path, size, mtime_ns)
        ) STRICT
        """,
        # The promise "nothing counted twice", held by the database itself.
        """
        CREATE UNIQUE INDEX frame_counted_once ON frame(sha256)
        WHERE state IN ('filed', 'stacked')
        """,
        "CREATE INDEX frame_by_state ON frame(state, frame_type, date_obs)",
        "CREATE INDEX frame_by_hash ON frame(sha256)",
        "CREATE INDEX frame_by_name ON frame(name)",
        "CREATE INDEX frame_by_stack ON frame(stack_id)",
        """
        CREATE TABLE reference (
            id INTEGER PRIMARY KEY,
            target TEXT NOT NULL,
            camera TEXT NOT NULL,           -- camera, geometry, binning, pattern
            thumbnail BLOB,                 -- float32 .npy, small: for phase correlation
            frame_id INTEGER NOT NULL REFERENCES frame(id),
            stars TEXT NOT NULL,            -- StarList as JSON
            UNIQUE (target, camera)
        ) STRICT
        """,
        """
        CREATE TABLE stack (
            id INTEGER PRIMARY KEY,
            target TEXT NOT NULL,
            filter TEXT NOT NULL,           -- '' without one
            camera TEXT NOT NULL,
            camera_name TEXT,
            generation INTEGER NOT NULL DEFAULT 0,  -- of the product; 0: none written yet
            path TEXT,                      -- of the product, relative to the library
            published_frames INTEGER NOT NULL DEFAULT 0,
            published_exposure_s REAL NOT NULL DEFAULT 0,
            updated_at TEXT,
            final_generation INTEGER NOT NULL DEFAULT 0,
            final_path TEXT,                -- the exact stack, relative to the library
            final_frames INTEGER NOT NULL DEFAULT 0,
            stale TEXT,                     -- why it must be made again, NULL while it is right
            first_stars TEXT,               -- of its first frame: the photometric reference
            first_background BLOB,          -- float32 cell means, (planes, cy, cx), as .npy
            first_matrix TEXT,
            first_quality TEXT,
            first_exposure_s REAL,
            first_distortion TEXT,
            UNIQUE (target, filter, camera)
        ) STRICT
        """,
        """
        CREATE TABLE stack_frame (
            frame_id INTEGER PRIMARY KEY REFERENCES frame(id),
            stack_id INTEGER NOT NULL REFERENCES stack(id),
            position INTEGER NOT NULL,      -- the order in which frames were added
            exposure_s REAL,
            matrix TEXT NOT NULL,           -- JSON 3x3, frame -> reference px
            distortion TEXT,                -- JSON 2x10, see daemon.light.distortion; or NULL
            terms TEXT NOT NULL,            -- JSON, the numbers the frame was added with
            quality TEXT NOT NULL,          -- JSON
            masters TEXT NOT NULL,          -- JSON {kind: master id or null}
            flags TEXT NOT NULL,            -- comma separated: no dark, no flat, ...
            UNIQUE (stack_id, position)
        ) STRICT
        """,
    ):
        db.conn.execute(statement)


@MIGRATIONS()
def m002_conditions(db: sqlite_utils.Database) -> None:
    """What is wrong for longer than a frame: see `daemon.ledger.conditions`."""
    db.conn.execute(
        """
        CREATE TABLE condition (
            id INTEGER PRIMARY KEY,
            kind TEXT NOT NULL,
            subject TEXT NOT NULL,          -- the camera or the master
            sentence TEXT NOT NULL,         -- of the last frame that showed it
            since TEXT,                     -- UTC; NULL while it does not hold
            frames INTEGER NOT NULL DEFAULT 0,      -- that showed it
            against INTEGER NOT NULL DEFAULT 0,     -- frames in a row that say the opposite
            UNIQUE (kind, subject)
        ) STRICT
        """
    )


@MIGRATIONS()
def m003_queue(db: sqlite_utils.Database) -> None:
    """The queue in its order: with 100,000 frames in it the next one must not be searched for."""
    queued = "WHERE state = 'new' AND claimed_at IS NULL"
    for statement in (
        f"CREATE INDEX frame_queue ON frame({CLAIM_ORDER}) {queued}",
        f"CREATE INDEX frame_queue_date ON frame(date_obs) {queued}",
        f"CREATE INDEX frame_queue_mtime ON frame(mtime_ns) {queued}",
    ):
        db.conn.execute(statement)


@MIGRATIONS()
def m004_pixels(db: sqlite_utils.Database) -> None:
    """By what a light's pixels are known again, whatever a plate solver wrote into its header."""
    db.conn.execute("ALTER TABLE frame ADD COLUMN pixels TEXT")


def apply(db: sqlite_utils.Database) -> None:
    """Bring the daemon's tables up to date; mutates the database."""
    MIGRATIONS.apply(db)
