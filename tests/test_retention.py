"""What is old goes where that was asked for, and nothing else ever."""

import datetime as dt
import os

import pytest

from daemon import retention
from daemon.log import LOG_NAME, StatusLog
from daemon.parts import compose
from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests.nights import Outcome, config_for, run

from calib_library import schema  # isort: skip

LATER = dt.datetime.now(dt.UTC) + dt.timedelta(days=40)


@pytest.fixture
def library(tmp_path):
    """A night, and a second one with five more darks: the first master is superseded."""
    plan = small_plan(seed=5, shape=(256, 384), bias=0, darks=10, flats=0, flat_darks=0, lights=3)
    taken = list(frames(plan))
    darks = [frame for frame in taken if frame.kind == "dark"]
    config = config_for(tmp_path, extra="[lights]\nkeep_calibrated = true")
    for part in (darks[:5], darks[5:], [f for f in taken if f.kind == "light"]):
        for frame in part:
            write_frame(tmp_path / "in", frame)
        run(config)
    assert Outcome(config).states()["stacked"] >= 1
    return config


def clear(config, **days):
    config = config.model_copy(update={"library": config.library.model_copy(update=days)})
    db = schema.connect(config.library.path / schema.DATABASE_NAME)
    try:
        log = StatusLog(config.library.path / LOG_NAME)
        parts = compose(config, db, log, quiet_s=lambda: 0.0, beat=lambda _: None)
        try:
            return retention.clear(parts, now=LATER)
        finally:
            parts.pipeline.reader.close()
    finally:
        db.conn.close()


def masters(config):
    return sorted(path.name for path in config.library.path.glob("masters/*"))


def test_nothing_goes_by_default(library):
    assert clear(library) == 0


def test_calibrated_lights_go_by_their_age(library):
    files = sorted(library.library.path.glob("calibrated/**/*.fits"))
    assert len(files) >= 2
    os.utime(files[0], (LATER.timestamp() - 86400,) * 2)  # of yesterday
    assert clear(library, keep_calibrated_days=30) == len(files) - 1
    assert sorted(library.library.path.glob("calibrated/**/*.fits")) == files[:1]


def test_a_superseded_master_goes_and_the_one_in_use_stays(library):
    old, new = masters(library)
    assert clear(library, keep_old_masters_days=50) == 0
    assert clear(library, keep_old_masters_days=30) == 1
    assert masters(library) == [new]
    run(library)  # and the library is content without it
    assert masters(library) == [new]
    assert "LOST" not in Outcome(library).log
    assert old.replace("v1", "v2")[:30] == new[:30]


def test_a_master_that_a_stack_needs_stays(library):
    db = schema.connect(library.library.path / schema.DATABASE_NAME)
    db.execute("UPDATE stack_frame SET masters = '{\"dark\": 1}'")
    db.conn.commit()
    db.conn.close()
    assert clear(library, keep_old_masters_days=30) == 0
    assert len(masters(library)) == 2
