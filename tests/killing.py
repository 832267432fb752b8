"""A night in a process that is killed, at a named point or at any instant, and what it left.

    python -m tests.killing CONFIG [WHAT WHERE]

works through the whole night: all frames, the masters, the stacks, the exact stacks, the backup.
With WHAT and WHERE it kills itself with SIGKILL at that point; with `steps` in their place it tells
how far it is. The production code has no hook for it: the functions are wrapped here, in the child.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from calib_library import atomic, schema
from calib_library.images import product_file
from daemon import opening, reader, service
from daemon.config import Config, load
from daemon.inbox import Inbox, Request
from daemon.ledger.ledger import Ledger
from daemon.ledger.stacks import Stacks
from daemon.log import LOG_NAME, StatusLog
from daemon.stack import product
from daemon.worker import Worker

ROOT = Path(__file__).resolve().parents[1]

FILES = {
    "master": r"masters/Master.*\.fits$",
    "product": r"stacks/.*_v\d+\.fits$",
    "picture": r"stacks/.*\.png$",
    "exact": r"stacks/.*_final_v\d+\.fits$",
    "calibrated": r"calibrated/.*\.fits$",
}
"""What is written → the path of it. The product's pattern fits the exact stack too."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- the points ----------------------------------------------------------------------------------


def _wrap(owner, name, *, before=None, after=None):
    """Call `before` ahead of a function, `after` when it has ended well."""
    inner = getattr(owner, name)

    def wrapped(*arguments, **named):
        if before:
            before(*arguments)
        result = inner(*arguments, **named)
        if after:
            after()
        return result

    setattr(owner, name, wrapped)


def _at_file(pattern, moment):
    """Die while a file is written whose path matches: `half`, `renamed`, `whole`; or around the
    next COMMIT of the database after it: `uncommitted`, `committed`.
    """
    atomically, sync, connect = atomic.atomically, atomic.sync, schema.connect
    state = {"writing": False, "written": False, "commit": False}

    @contextlib.contextmanager
    def watched(path):
        state["writing"] = re.search(pattern, str(path)) is not None
        with atomically(path) as file:
            yield file
            if state["writing"] and moment == "half":
                file.flush()
                die()
        if state["writing"]:
            if moment == "whole":
                die()
            state["written"] = True

    def sync_folder(folder):
        if state["writing"] and moment == "renamed":
            die()
        sync(folder)

    def trace(statement):
        if state["commit"]:  # the statement after the COMMIT
            die()
        if state["written"] and statement.startswith("COMMIT"):
            if moment == "uncommitted":
                die()
            state["commit"] = moment == "committed"

    def connected(path, **named):
        db = connect(path, **named)
        if not named.get("readonly"):
            db.conn.set_trace_callback(trace)
        return db

    atomic.atomically, atomic.sync, schema.connect = watched, sync_folder, connected


def tell_steps() -> None:
    """Let this process write a byte to its standard output at each COMMIT of the database, so that
    somebody can end it at an instant of its work, however fast that goes.
    """
    connect = schema.connect

    def trace(statement):
        if statement.startswith("COMMIT"):
            os.write(sys.stdout.fileno(), b".")

    def connected(path, **named):
        db = connect(path, **named)
        if not named.get("readonly"):
            db.conn.set_trace_callback(trace)
        return db

    schema.connect = connected


def undisturbed(config: Path) -> int:
    """Let a night come to its end; returns its number of steps."""
    life = start(config, "steps")
    with life.stdout as told:
        steps = len(told.read())
    assert life.wait() == 0
    return steps


def let_live(life: subprocess.Popen, steps: int, rng: random.Random) -> bool:
    """Wait until a life that tells its steps has done so many, and a little longer; returns False
    where it has ended before.
    """
    with life.stdout as told:
        if len(told.read(steps)) < steps:
            return False
        time.sleep(0.1 * rng.random())  # somewhere between two steps
        return True


def arm(what: str, where: str) -> None:
    """Let this process die at a point."""
    match what, where:
        case "link", "before":
            _wrap(product, "link_newest", before=lambda *_: die())
        case "link", "after":
            _wrap(product, "link_newest", after=die)
        case "backup", "copied":
            _wrap(schema, "sync", before=lambda *_: die())
        case "backup", "renamed":
            _wrap(schema, "sync", before=lambda path: path.is_dir() and die())
        case "claim", "after":
            _wrap(Ledger, "claim", after=die)
        case "live", "added":
            _wrap(Stacks, "add_member", before=lambda *_: die())
        case "read", name:
            _wrap(reader.frame_file, "load", before=lambda path: name in path.name and die())
        case _:
            _at_file(FILES[what], where)


POINTS_BY_DAY = [
    *(("master", moment) for moment in ("half", "renamed", "whole", "uncommitted", "committed")),
    ("claim", "after"),
    ("live", "added"),
    *(("product", moment) for moment in ("half", "renamed", "whole", "uncommitted")),
    ("link", "before"),
    ("link", "after"),
    ("picture", "half"),
    ("picture", "whole"),
    ("product", "committed"),
]
POINTS_BY_DAWN = [
    *(("calibrated", moment) for moment in ("half", "renamed", "whole", "committed")),
    *(("exact", moment) for moment in ("half", "renamed", "whole", "uncommitted", "committed")),
    ("backup", "copied"),
    ("backup", "renamed"),
]


# --- the night -----------------------------------------------------------------------------------


def night(config: Config) -> int:
    """Everything from the first frame to the backup; returns the exit code."""
    code = service.run(config, until_idle=True)
    if code:
        return code
    root = config.library.path
    library, _ = opening.open_library(root)
    inbox = Inbox()
    inbox.request(Request.END_OF_NIGHT)
    inbox.request(Request.BACKUP)
    worker = Worker(config=config, storage=library, log=StatusLog(root / LOG_NAME), inbox=inbox)
    worker.hurry()
    worker.start()
    while worker.is_alive() and not worker.idle:
        time.sleep(0.02)
    worker.stop()
    worker.join()
    return 0 if worker.error is None else 1


def start(config: Path, *point: str) -> subprocess.Popen:
    """Begin the night in a process of its own; its steps, if asked for, come by its `stdout`."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.killing", str(config), *point],
        cwd=ROOT,
        stdout=subprocess.PIPE if point == ("steps",) else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


# --- what it left --------------------------------------------------------------------------------


def end_state(root: Path) -> dict:
    """All that must be the same after any number of deaths: the ledger, the masters, the members
    with their numbers, the pixels. Generations of stacks may differ, they count the attempts.
    """
    with contextlib.closing(sqlite3.connect(root / schema.DATABASE_NAME)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        state = {
            "frames": db.execute(
                # The gain is the header's, or the one that the camera was measured to have.
                "SELECT name, state, reason, sha256, night, target,"
                " json_extract(record, '$.e_per_adu'), stack_id FROM frame"
                " ORDER BY name"
            ).fetchall(),
            "sets": db.execute(
                "SELECT frame_type, frames, changed FROM calibration_set ORDER BY 1, 2"
            ).fetchall(),
            "conditions": db.execute(
                "SELECT kind, subject, since IS NOT NULL, frames, against FROM condition"
                " ORDER BY kind, subject"
            ).fetchall(),
            # What is known of each now; how often it was measured is a matter of when.
            "cameras": db.execute(
                "SELECT gain FROM sensor AS one WHERE measured_at ="
                " (SELECT max(measured_at) FROM sensor WHERE key = one.key) ORDER BY gain"
            ).fetchall(),
            "masters": [
                (*row, _digest(root / row[0]))
                for row in db.execute("SELECT path, generation, sha256 FROM master ORDER BY path")
            ],
            "members": db.execute(
                "SELECT name, position, matrix, terms, stack_frame.quality, flags FROM stack_frame"
                " JOIN frame ON frame.id = frame_id ORDER BY stack_frame.stack_id, position"
            ).fetchall(),
        }
        pointers = db.execute(
            "SELECT path, published_frames, final_path, final_frames FROM stack ORDER BY id"
        ).fetchall()
    state["counts"] = [(published, final) for _, published, _, final in pointers]
    state["pixels"] = [
        _digest_pixels(root / path) for row in pointers for path in (row[0], row[2]) if path
    ]
    calibrated = sorted(root.glob("calibrated/**/*.fits"))
    state["calibrated"] = [(path.name, _digest(path)) for path in calibrated]
    state["files"] = sorted(
        {
            re.sub(r"_v\d{4}\.fits$", "_v.fits", str(path.relative_to(root)))
            for path in root.rglob("*")
            if path.is_file() and path.parent.name != "backup"
        }
    )
    # Two generations side by side would hide in a set of names.
    state["products"] = len(list(root.rglob("stacks/**/*_v*.fits")))
    links = [path for path in root.rglob("*.fits") if path.is_symlink()]
    state["links"] = sorted((path.name, path.exists()) for path in links)
    return json.loads(json.dumps(state))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest_pixels(path: Path) -> list[str]:
    planes = [product_file.read_product(path)[0], product_file.read_extra(path, "WEIGHT")]
    return [hashlib.sha256(plane.tobytes()).hexdigest() for plane in planes]


if __name__ == "__main__":
    settings = load(Path(sys.argv[1]))
    if sys.argv[2:] == ["steps"]:
        tell_steps()
    elif sys.argv[2:]:
        arm(*sys.argv[2:])
    sys.exit(night(settings))
