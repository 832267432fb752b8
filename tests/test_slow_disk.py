"""A disk on which each write takes long: the watch goes on, nothing is lost, the order is kept."""

import numpy as np
import pytest

from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests.daemons import COMMAND, Daemon, wait_for, write_config
from tests.nights import Outcome, config_for, run

SLOW = """
import os, sys, threading, time
from calib_library import schema
from daemon.sdnotify import Notifier

sync, connect, watchdog, stopping = os.fsync, schema.connect, Notifier.watchdog, Notifier.stopping
pings, stopped = [0], []

def ping(self):
    pings[0] += 1
    return watchdog(self)

def stop(self):
    stopped.append(True)
    return stopping(self)

def slowly(descriptor):
    until = pings[0] + 2
    if threading.current_thread().name == "worker":
        while pings[0] < until and not stopped:
            time.sleep(0.01)
        if not stopped:
            print("SYNCED after two pings", file=sys.stderr, flush=True)
    sync(descriptor)

def traced(statement):
    if statement.startswith("COMMIT"):
        time.sleep(0.2)

def connected(path, **named):
    db = connect(path, **named)
    if not named.get("readonly"):
        db.conn.set_trace_callback(traced)
    return db

os.fsync, schema.connect = slowly, connected
Notifier.watchdog, Notifier.stopping = ping, stop
"""
"""As a memory card does it that cleans up: of a file, until systemd was called twice, and of
the database's journal. Were the calls held up by the disk, this would never end."""
EXTRA = "[calibration]\nquiet_s = 0.3"


@pytest.mark.slow
def test_a_slow_disk_holds_up_nothing_but_the_writing(tmp_path, tmp_path_factory):
    plan = small_plan(seed=21, shape=(256, 384), bias=0, darks=5, flats=0, flat_darks=0, lights=5)
    taken = list(frames(plan))
    lights = [frame for frame in taken if frame.kind == "light"]
    swift = tmp_path_factory.mktemp("swift")
    for frame in taken:
        write_frame(swift / "in", frame)
    run(config_for(swift, extra=EXTRA))

    with Daemon(write_config(tmp_path, EXTRA), program=SLOW + COMMAND, watchdog_s=1.0) as daemon:
        wait_for(lambda: "READY=1" in daemon.heard)
        for frame in taken:
            if frame.kind != "light":
                write_frame(tmp_path / "in", frame)
        daemon.wait("MASTER .*masters/")
        synced = len(daemon.lines("SYNCED"))
        for frame in lights:
            write_frame(tmp_path / "in", frame)
        daemon.wait("STACKED|REJECTED", len(lights))
        daemon.wait("STACK .*: 5 frames")
        # Several products were: each a file and its folder.
        assert len(daemon.lines("SYNCED")) >= synced + 4
        assert not daemon.lines("paused:|RETRY|FAILED|silent for")
        assert daemon.stop() == 0

    slow, expected = Outcome(config_for(tmp_path)), Outcome(config_for(swift))
    assert slow.states() == expected.states()
    names = {frame.id: frame.name for frame in slow.frames}
    order = [names[member.frame_id] for member in slow.members[1]]
    assert order == [frame.name.rpartition("/")[2] for frame in lights]
    np.testing.assert_array_equal(slow.image(slow.stacks[0]), expected.image(expected.stacks[0]))
    assert max(frame.attempts for frame in slow.frames) <= 2  # a light that waited for its master
