"""A lost database: made again from the files or the backup, and nothing counted twice."""

import contextlib
import dataclasses
import shutil
import sqlite3

import numpy as np
import pytest

from calib_library import schema
from daemon import cli
from daemon.errors import FatalError
from daemon.ledger.ledger import Ledger
from daemon.rebuild import rebuild
from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests import killing
from tests.daemons import write_config
from tests.nights import Outcome, config_for, run

import datetime as dt  # isort: skip
from pathlib import Path  # isort: skip

NOW = dt.datetime(2026, 11, 21, 9, 0, tzinfo=dt.UTC)
RELEASED = sorted(Path(__file__).parent.glob("data/schema_*.sql"))


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A finished night with its backup, and what it left."""
    tmp_path = tmp_path_factory.mktemp("night")
    plan = small_plan(
        seed=21, shape=(256, 384), bias=5, darks=5, flats=5, flat_darks=5, lights=4, trails=1
    )
    for frame in frames(plan):
        write_frame(tmp_path / "in", frame)
    write_config(tmp_path)
    assert killing.night(config_for(tmp_path)) == 0
    return tmp_path, killing.end_state(tmp_path / "library")


@pytest.fixture
def copy(night, tmp_path):
    """The same, to be spoiled. The frames stay where they were: their paths are recorded."""
    shutil.copytree(night[0] / "library", tmp_path / "library", symlinks=True)
    (tmp_path / "config.toml").write_text(
        f'[library]\npath = "{tmp_path / "library"}"\n'
        f'[[watch]]\npath = "{night[0] / "in"}"\nsettle_s = 0.1\n'
    )
    return tmp_path


def settings(copy, night):
    config = config_for(copy)
    watch = config.watch[0].model_copy(update={"path": night[0] / "in"})
    return config.model_copy(update={"watch": (watch,)})


def lose(root):
    for path in root.glob("lightkeeper.db*"):
        path.unlink()


@pytest.mark.parametrize("how", [["--from-files"], []])
def test_a_lost_database_is_made_again(how, night, copy, capsys):
    root = copy / "library"
    before = {path.name: path.read_bytes() for path in root.glob("stacks/**/*_v*.fits")}
    lose(root)
    toml = str(copy / "config.toml")
    assert cli.main(["run", "--until-idle", "--config", toml]) == 1
    assert "lightkeeper rebuild" in capsys.readouterr().err
    assert cli.main(["rebuild", "--config", toml, *how]) == 0
    assert "4 masters" in capsys.readouterr().out
    # Nothing of what was there is lost.
    aside = {path.name: path.read_bytes() for path in root.glob("recovered/**/*_v*.fits")}
    assert aside == before
    masters = {path.name: path.stat().st_mtime_ns for path in root.glob("masters/*")}
    assert killing.night(settings(copy, night)) == 0
    assert {path.name: path.stat().st_mtime_ns for path in root.glob("masters/*")} == masters, (
        "no master was built twice from the same frames"
    )
    shutil.rmtree(root / "recovered")
    ended = killing.end_state(root)
    for state in (ended, night[1]):
        for row in state["frames"]:
            row[-1] = None  # the stack's number
    assert ended == night[1]


def test_the_camera_is_measured_when_its_frames_are_seen_again(night, copy):
    """A scan may take long: the worker finds the masters before the first of their frames."""
    lose(copy / "library")
    rebuild(copy / "library", from_files=True, now=NOW)
    config = settings(copy, night)
    nothing = copy / "nothing"
    nothing.mkdir()
    elsewhere = config.watch[0].model_copy(update={"path": nothing})
    run(config.model_copy(update={"watch": (elsewhere,)}))
    assert killing.end_state(copy / "library")["cameras"] == []
    run(config)
    assert killing.end_state(copy / "library")["cameras"] == night[1]["cameras"]


def test_masters_serve_though_their_frames_are_gone(night, copy, tmp_path):
    """Raw calibration frames are often deleted: their masters are all there is."""
    lose(copy / "library")
    assert rebuild(copy / "library", from_files=True, now=NOW).masters == 4
    lights = tmp_path / "lights"
    lights.mkdir()
    for path in (night[0] / "in").rglob("*120.00s*.fits"):
        if "_R_" in path.name:
            shutil.copy2(path, lights)
    # One dark came back: too few to replace a master of five.
    dark = next(p for p in sorted((night[0] / "in").rglob("*120.00s*.fits")) if "_R_" not in p.name)
    shutil.copy2(dark, lights)
    config = config_for(copy)
    watch = config.watch[0].model_copy(update={"path": lights})
    config = config.model_copy(update={"watch": (watch,)})
    run(config)
    outcome = Outcome(config)
    assert {m.frames for m in outcome.masters} == {5}
    assert {m.generation for m in outcome.masters} == {1}
    expected = killing.end_state(night[0] / "library")
    assert killing.end_state(copy / "library")["pixels"][:1] == expected["pixels"][:1]


def test_a_damaged_database_is_set_aside(night, copy):
    root = copy / "library"
    database = root / schema.DATABASE_NAME
    data = bytearray(database.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    database.write_bytes(data)
    config = settings(copy, night)
    from daemon import service

    with pytest.raises(FatalError, match="rebuild"):
        service.run(config, until_idle=True)
    made = rebuild(root, from_files=False, now=NOW)
    assert made.backup is not None
    assert (made.aside / schema.DATABASE_NAME).read_bytes() == bytes(data)
    assert schema.verdict(database) == "ok"


def test_a_sound_database_is_left_alone(copy):
    with pytest.raises(FatalError, match="nothing to rebuild"):
        rebuild(copy / "library", from_files=True, now=NOW)


@pytest.mark.parametrize("dump", RELEASED, ids=lambda path: path.stem)
def test_every_released_schema_is_brought_up_to_date(dump, tmp_path):
    """A dump of a real night of each release becomes the tables that a new library has."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    with contextlib.closing(sqlite3.connect(old)) as db:
        db.executescript(dump.read_text())
    with contextlib.closing(sqlite3.connect(old)) as db:
        before = [db.execute(f"SELECT count(*) FROM {t}").fetchone() for t in ("frame", "master")]
    tables = []
    for path in (old, new):
        db = schema.connect(path)
        with contextlib.closing(db.conn):
            schema.apply(db)
            Ledger.prepare(db)
            schema.identify(db, proposed="abc")
            tables.append({
                table.name: [dataclasses.astuple(column) if dataclasses.is_dataclass(column)
                             else tuple(column) for column in table.columns]
                for table in db.tables
            })  # fmt: skip
            if path == old:
                after = [table.count for table in (db["frame"], db["master"])]
                assert [(n,) for n in after] == before
                assert after[0] > 0
                frame = Ledger(db).get(1)
                assert frame is not None
                assert frame.record is not None
        assert schema.verdict(path) == "ok"
    assert tables[0] == tables[1]


def test_the_dumps_are_there():
    assert RELEASED


def test_no_pixel_is_new(night):
    """The end state that the tests compare with does hold pixels."""
    assert len(night[1]["pixels"]) == 2
    assert np.unique(night[1]["counts"]).size == 1
