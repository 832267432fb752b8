"""Gathers what the commands show, from the database (read-only) and the daemon's heartbeat file."""

import datetime as dt
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlite_utils

from calib_library import schema
from calib_library.library import CalibrationLibrary
from calib_library.match import MasterRecord
from daemon.config import Config
from daemon.errors import NoLibraryError
from daemon.ledger import conditions, summary
from daemon.ledger.ledger import Frame, Ledger
from daemon.ledger.states import State
from daemon.report.status import (
    Explanation,
    FrameStatus,
    IncompleteSet,
    LibraryReport,
    MasterStatus,
    StackReport,
    StackStatus,
    StatusReport,
)

HEARTBEAT_NAME = "status.json"
LOCK_NAME = "lightkeeper.lock"

TROUBLE = (State.QUARANTINED, State.FAILED)
"""States that a person should look at."""


@contextmanager
def _opened(config: Config) -> Iterator[sqlite_utils.Database]:
    path = config.library.path / schema.DATABASE_NAME
    if not path.exists():
        raise NoLibraryError(
            f"there is no library in {config.library.path} yet: start `lightkeeper run` first"
        )
    db = schema.connect(path, readonly=True)
    with closing(db.conn):
        yield db


def running(root: Path) -> bool:
    """Does a daemon hold the library's lock?"""
    try:
        descriptor = os.open(root / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _heartbeat(root: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((root / HEARTBEAT_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return content


def _time(text: str | None) -> dt.datetime | None:
    return dt.datetime.fromisoformat(text) if text else None


def status(config: Config) -> StatusReport:
    """What `lightkeeper status` shows. Raises NoLibraryError."""
    root = config.library.path
    with _opened(config) as db:
        ledger, library = Ledger(db), CalibrationLibrary(db, root)
        by_state: dict[str, int] = {}
        by_type: dict[str, int] = {}
        for (state, kind), n in ledger.count_states().items():
            by_state[state] = by_state.get(state, 0) + n
            by_type[kind or "unknown"] = by_type.get(kind or "unknown", 0) + n
        alive = running(root)
        beat = _heartbeat(root) if alive else {}
        problems = list(beat.get("problems", []))
        problems += [one.sentence for one in conditions.current(db)]
        problems += [
            f"{frame.name}: {frame.state}: {frame.reason}"
            for frame in ledger.in_states(TROUBLE, limit=5)
        ]
        return StatusReport(
            folder=str(root),
            worker=beat.get("doing", "starting") if alive else "not running",
            since=_time(beat.get("since")),
            queue=ledger.open_count(),
            frames_by_state=by_state,
            frames_by_type=by_type,
            stacks=[_stack(root, stack) for stack in summary.stacks(db)],
            library=[_master(master) for master in library.masters()],
            problems=problems,
            last_frames=[_frame(frame) for frame in ledger.recent()],
        )


def library(config: Config) -> LibraryReport:
    """What `lightkeeper library` shows. Raises NoLibraryError."""
    root = config.library.path
    with _opened(config) as db:
        found = CalibrationLibrary(db, root)
        return LibraryReport(
            folder=str(root),
            masters=[_master(master) for master in found.masters()],
            incomplete=[
                IncompleteSet(
                    kind=str(one.frame_type),
                    camera=one.key.camera,
                    exposure_s=one.exposure_s,
                    temperature_c=one.temperature_c,
                    gain=one.key.gain,
                    filter=one.filter,
                    frames=one.n_frames,
                    needed=config.calibration.min_frames,
                    refused=one.refused,
                )
                for one in found.sets()
                if one.master is None or one.refused
            ],
        )


def stacks(config: Config) -> StackReport:
    """What `lightkeeper stack` shows. Raises NoLibraryError."""
    root = config.library.path
    with _opened(config) as db:
        return StackReport(str(root), [_stack(root, stack) for stack in summary.stacks(db)])


def frames(config: Config, text: str) -> list[tuple[int, str, str]]:
    """(number, name, state) of the frames that `text` may mean. Raises NoLibraryError."""
    with _opened(config) as db:
        return [(frame.id, frame.name, str(frame.state)) for frame in Ledger(db).find(text)]


def masters(config: Config, text: str) -> list[tuple[int, str]]:
    """(number, name) of the masters that `text` may mean, of any generation; a whole name means
    only itself. Raises NoLibraryError.
    """
    root = config.library.path
    with _opened(config) as db:
        known = [(m.id, m.name) for m in CalibrationLibrary(db, root).masters(current=False)]
    wanted = text.removesuffix(".fits")
    return [one for one in known if one[1] == wanted] or [one for one in known if wanted in one[1]]


def explain(config: Config, text: str) -> Explanation | None:
    """What `lightkeeper explain` shows of the frame that `text` means (name, path, number); None
    where there is none. Raises NoLibraryError.
    """
    with _opened(config) as db:
        frames = Ledger(db).find(text)
        if not frames:
            return None
        return _explanation(frames[0], frames[1:])


def _explanation(frame: Frame, others: Sequence[Frame]) -> Explanation:
    fate = [f"{frame.state}" + (f": {frame.reason}" if frame.reason else "")]
    fate.append(f"{frame.path}")
    fate.append(f"frame {frame.id}, {frame.size} bytes, sha256 {frame.sha256 or 'not read yet'}")
    return Explanation(
        frame=frame.name,
        sections=[("State", fate), *frame.explanation],
        others=[f"{other.id}: {other.name} ({other.state})" for other in others],
    )


def _stack(root: Path, stack: summary.StackSummary) -> StackStatus:
    flags = {flag for flag in stack.flags if flag.startswith("no ")}
    if stack.stale:
        flags.add("will be made again")
    picture = None
    if stack.path:
        stem = Path(stack.path).stem.rpartition("_v")[0]
        picture = (root / stack.path).with_name(f"{stem}.png")
    return StackStatus(
        number=stack.id,
        target=stack.target,
        filter=stack.filter or None,
        camera=stack.camera_name,
        frames=stack.frames,
        exposure_s=stack.exposure_s,
        generation=stack.generation,
        path=str(root / stack.path) if stack.path else None,
        preview=str(picture) if picture and picture.exists() else None,
        flags=sorted(flags),
        updated=_time(stack.updated_at),
    )


def _master(master: MasterRecord) -> MasterStatus:
    return MasterStatus(
        kind=str(master.frame_type),
        camera=master.key.camera,
        exposure_s=master.exposure_s,
        temperature_c=master.temperature_c,
        gain=master.key.gain,
        filter=master.filter,
        frames=master.frames,
        generation=master.generation,
        path=str(master.path),
        built=master.built_at,
    )


def _frame(frame: Frame) -> FrameStatus:
    measured = next((lines[0] for heading, lines in frame.explanation if heading == "Measured"), "")
    return FrameStatus(
        name=frame.name,
        frame_type=str(frame.frame_type) if frame.frame_type else None,
        state=str(frame.state),
        target=frame.target if frame.frame_type == "light" else None,
        filter=frame.filter,
        note=frame.reason or measured,
        done=frame.done_at,
    )


def open_library(config: Config) -> CalibrationLibrary:
    """The calibration library to read from; use it in a `with`.

    Raises NoLibraryError, and LibraryError where an older version made it.
    """
    root = config.library.path
    if not (root / schema.DATABASE_NAME).exists():
        raise NoLibraryError(f"there is no library in {root} yet: start `lightkeeper run` first")
    return CalibrationLibrary.open(root, readonly=True)
