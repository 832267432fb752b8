"""Helpers of the tests that let the whole service work on a folder of frames."""

import contextlib
import datetime as dt
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from calib_library import schema
from calib_library.images import frame_file, product_file
from calib_library.library import CalibrationLibrary
from daemon import service
from daemon.config import Config, parse
from daemon.ledger.ledger import Frame, Ledger
from daemon.ledger.stacks import Member, Stack, Stacks
from daemon.log import LOG_NAME, StatusLog
from daemon.parts import Parts, compose
from daemon.simulator.night import SimulatedFrame, frames, small_plan
from daemon.simulator.writer import write_frame
from tests.daemons import at_another_hour

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(name: str) -> Path:
    """A folder of real frames, or a skip that says what is missing."""
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip(f"the real frames of {name} are not here ({folder})")
    return folder


def config_for(tmp_path: Path, *, watch: str = "", extra: str = "") -> Config:
    """A configuration of `tmp_path/in` → `tmp_path/library`; `watch` lines go into [[watch]]."""
    text = (
        f'[library]\npath = "{tmp_path / "library"}"\n'
        f'[[watch]]\npath = "{tmp_path / "in"}"\nsettle_s = 0.1\n{watch}\n{at_another_hour(extra)}'
    )
    return parse(text, base=tmp_path)


def drop(source: Path, tmp_path: Path, pattern: str = "**/*.fit*") -> int:
    """Copy frames into the watched folder, with old times: they need not settle."""
    count = 0
    for path in sorted(source.glob(pattern)):
        target = tmp_path / "in" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        count += 1
    return count


def short_night() -> list[SimulatedFrame]:
    """Five darks, flats and flat-darks and six lights, one with a trail."""
    plan = small_plan(
        seed=21, shape=(256, 384), bias=0, darks=5, flats=5, flat_darks=5, lights=6, trails=1
    )
    return list(frames(plan))


def write(tmp_path: Path, taken: Iterable[SimulatedFrame]) -> None:
    """Put frames into the watched folder."""
    for frame in taken:
        write_frame(tmp_path / "in", frame)


@contextlib.contextmanager
def new_parts(folder: Path) -> Iterator[Parts]:
    """The daemon's parts on a new library `folder/library`, which watch `folder/in`."""
    root = folder / "library"
    root.mkdir()
    config = parse(
        f'[library]\npath = "{root}"\n[[watch]]\npath = "{folder / "in"}"\n', base=folder
    )
    db = schema.connect(root / schema.DATABASE_NAME)
    with closing(db.conn), Path(os.devnull).open("w") as nowhere:
        schema.apply(db)
        Ledger.prepare(db)
        log = StatusLog(root / LOG_NAME, stream=nowhere)
        parts = compose(config, db, log, quiet_s=lambda: 0.0, beat=lambda _: None)
        with closing(parts.pipeline.reader):
            yield parts


def add(parts: Parts, path: Path, root: Path, *, now: dt.datetime) -> None:
    """Queue a file below the watched folder `root`, as the worker does when it arrives."""
    stat = path.stat()
    parts.ledger.add(
        path=path,
        root=root,
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        identity=parts.pipeline.identify(
            frame_file.probe(path), root=root, mtime_ns=stat.st_mtime_ns
        ),
        now=now,
    )


def run(config: Config) -> None:
    """The service, until everything is done."""
    assert service.run(config, until_idle=True) == 0


class Outcome:
    """What a night left, read from the database."""

    def __init__(self, config: Config) -> None:
        self.root = config.library.path
        db = schema.connect(self.root / schema.DATABASE_NAME, readonly=True)
        with closing(db.conn):
            ledger, stacks = Ledger(db), Stacks(db)
            self.frames: list[Frame] = [
                ledger.get(row["id"]) for row in db.query("SELECT id FROM frame ORDER BY id")
            ]
            self.stacks: list[Stack] = stacks.all()
            self.members: dict[int, list[Member]] = {
                stack.id: stacks.members(stack.id) for stack in self.stacks
            }
            self.masters = CalibrationLibrary(db, self.root).masters()
        self.log = (self.root / LOG_NAME).read_text()

    def states(self) -> dict[str, int]:
        """State → number of frames."""
        counts: dict[str, int] = {}
        for frame in self.frames:
            counts[frame.state] = counts.get(frame.state, 0) + 1
        return counts

    def frame(self, name: str) -> Frame:
        """The one frame whose name contains `name`."""
        found = [frame for frame in self.frames if name in frame.name]
        assert len(found) == 1, found
        return found[0]

    def image(self, stack: Stack) -> np.ndarray:
        """The stack's product, (ny, nx) or (3, ny, nx) float32 ADU."""
        return product_file.read_product(self.root / stack.path)[0]


def told(frame: Frame) -> str:
    """All that `explain` says of a frame."""
    return "\n".join(line for _, lines in frame.explanation for line in lines)


Result = tuple[dict[str, int], np.ndarray]
"""Frames by state, and the image of the first stack."""


def result(config: Config) -> Result:
    """What came of a night, in short."""
    outcome = Outcome(config)
    return outcome.states(), outcome.image(outcome.stacks[0])


def without_trouble(taken: Iterable[SimulatedFrame], tmp_path: Path) -> Result:
    """What comes of these frames where nothing goes wrong."""
    write(tmp_path, taken)
    config = config_for(tmp_path)
    run(config)
    return result(config)


def assert_same(config: Config, expected: Result) -> None:
    """The same states, and the same stack bit for bit."""
    states, image = result(config)
    assert states == expected[0]
    np.testing.assert_array_equal(image, expected[1])
