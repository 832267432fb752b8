"""24: the disk, the power, the clock."""

import sqlite3
import time
from contextlib import closing

import numpy as np
import pytest

from calib_library import schema
from daemon.intake.intake import Timing
from daemon.simulator.writer import write_frame
from tests.daemons import wait_for
from tests.incoming import NEVER_S, WHOLE, Night, arrives, in_own_mounts, mount
from tests.nights import Outcome, config_for, run


@in_own_mounts
def test_24_the_source_is_read_only(lights, tmp_path):
    for light in lights[:2]:
        write_frame(tmp_path / "in", light)
    mount("--bind", tmp_path / "in", tmp_path / "in")
    mount("-o", "remount,bind,ro", tmp_path / "in")
    with pytest.raises(OSError, match="Read-only"):
        (tmp_path / "in" / "x").touch()
    run(config_for(tmp_path))
    assert Outcome(config_for(tmp_path)).states() == {"stacked": 2}


def test_24_the_clock_steps(inbox):
    """Back by a day and forward by ten years: a settle time is measured by the monotonic clock."""
    offset = [0.0]
    timing = Timing(grace_s=NEVER_S, quiet_s=60.0, scan_s=0.05, often_s=0.05, health_s=0.1)
    with Night(inbox, timing=timing, settle_s=0.3, wall=lambda: time.time() + offset[0]) as night:
        for n, step in enumerate((-86_400.0, 3.2e8, 0.0)):
            offset[0] = step
            path = inbox / f"{n}.fits"
            path.write_bytes(WHOLE[:9000])
            wait_for(lambda path=path: path in night.intake._settlers[inbox])
            path.write_bytes(WHOLE)
            arrives(night, path)
        night.settled()
    assert len(night.arrivals) == 3
    assert all(a.size == len(WHOLE) for a in night.arrivals)
    assert night.unusables == []


def test_24_the_power_goes_between_writing_a_product_and_recording_it(lights, tmp_path):
    """The files are there, the transaction is not: all of it is done again, and nothing doubled."""
    config = config_for(tmp_path)
    database = config.library.path / schema.DATABASE_NAME
    for light in lights[:2]:
        write_frame(tmp_path / "in", light)
    run(config)
    before = sqlite3.connect(":memory:")
    with closing(sqlite3.connect(database)) as connection:
        connection.backup(before)
    for light in lights[2:]:
        write_frame(tmp_path / "in", light)
    run(config)
    undisturbed = Outcome(config)
    image = undisturbed.image(undisturbed.stacks[0])
    with closing(sqlite3.connect(database)) as connection, closing(before):
        before.backup(connection)
    run(config)
    outcome = Outcome(config)
    assert outcome.states() == undisturbed.states() == {"stacked": 4}
    assert [stack.published_frames for stack in outcome.stacks] == [4]
    np.testing.assert_array_equal(outcome.image(outcome.stacks[0]), image)
    stacks = list((config.library.path / "stacks").rglob("*_v[0-9]*.fits"))
    assert len(stacks) == 1
