"""Helpers of the tests that let the whole service work on a folder of frames."""

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from calib_library import image_io, schema
from calib_library.library import CalibrationLibrary
from daemon import service
from daemon.config import Config, parse
from daemon.ledger.ledger import Frame, Ledger
from daemon.ledger.stacks import Member, Stack, Stacks
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
        self.log = (self.root / service.LOG_NAME).read_text()

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
        return image_io.read_product(self.root / stack.path)[0]
