"""What systemd sees of a daemon in trouble, the configuration read again, and what it opens."""

import os
import signal
from pathlib import Path

import pytest

from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests.daemons import COMMAND, Daemon, wait_for, write_config
from tests.nights import Outcome, config_for

WEDGED = """
import time
from daemon import service
from daemon.pipeline import Pipeline
service.HEARTBEAT_LIMIT_S, service.STOP_LIMIT_S, service.PERIOD_S = 2.0, 3.0, 0.2
Pipeline.process = lambda self, frame, *, now: time.sleep(1000)
"""


UNHEARD = """
from daemon.sdnotify import Notifier
ready, refusals = Notifier.ready, [False, False]
Notifier.ready = lambda self: refusals.pop() if refusals else ready(self)
"""
"""As where systemd is busy with something else for a second."""


@pytest.fixture(scope="module")
def lights():
    plan = small_plan(
        seed=21, shape=(256, 384), bias=0, darks=0, flats=0, flat_darks=0, lights=6, trails=1
    )
    return list(frames(plan))


def listening(pid):
    """Sockets of a process on which somebody could call (proc(5): state 0A is LISTEN)."""
    own = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            own.add(str(entry.readlink()))
        except FileNotFoundError:
            continue
    found = []
    for name in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" in own and (fields[3] == "0A" or name[:3] != "tcp"):
                found.append((name, fields[1]))
    return found


def test_a_wedged_worker_stops_the_pings_and_does_not_stop_the_end(lights, tmp_path):
    config = write_config(tmp_path)
    with Daemon(config, program=WEDGED + COMMAND, watchdog_s=1.0) as daemon:
        wait_for(lambda: "READY=1" in daemon.heard and daemon.pings() >= 3)
        write_frame(tmp_path / "in", lights[0])
        # Silent in this frame's work: a busy machine may be as silent while it starts.
        silent = r"^STATUS=.*the worker has been silent .*working on"
        wait_for(lambda: len(daemon.told(silent)) >= 6)
        first = daemon.heard.index(daemon.told(silent)[0])
        assert "WATCHDOG=1" not in daemon.heard[first:]
        assert daemon.stop() == 1
        assert daemon.lines("did not end within 3 s and is left behind")
    # Nothing is lost: the next one takes the frame.
    with Daemon(config) as daemon:
        daemon.wait("STACKED")
        assert daemon.stop() == 0


def test_what_systemd_did_not_hear_is_said_again(tmp_path):
    with Daemon(write_config(tmp_path), program=UNHEARD + COMMAND) as daemon:
        wait_for(lambda: "READY=1" in daemon.heard)
        assert daemon.stop() == 0


def test_it_ends_within_a_bound_in_the_middle_of_the_work(lights, tmp_path):
    for frame in lights:
        write_frame(tmp_path / "in", frame)
    with Daemon(write_config(tmp_path)) as daemon:
        daemon.wait("STACKED")
        # Beyond STOP_LIMIT_S the worker would be left behind, and the code be 1.
        assert daemon.stop() == 0
    outcome = Outcome(config_for(tmp_path))
    assert outcome.stacks[0].published_frames == len(outcome.members[1]) >= 1


def test_the_configuration_is_read_again(lights, tmp_path):
    config = write_config(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with Daemon(config) as daemon:
        write_frame(tmp_path / "in", lights[0])
        daemon.wait("STACKED")

        good = config.read_text()
        config.write_text(good + "[stack]\nmemory = 3\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait("the old one stays in force")
        assert daemon.lines(r"config.toml:\d+: .*memory")

        config.write_text(good + f'[[watch]]\npath = "{other}"\nsettle_s = 0.1\n')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait("read again; changed: watch")
        wait_for(lambda: daemon.heard.count("READY=1") == 3)
        assert daemon.heard.count("RELOADING=1") == 2
        for frame in lights[1:3]:
            write_frame(other, frame)
        daemon.wait("STACKED|REJECTED", 3)

        config.write_text(good.replace(str(tmp_path / "library"), str(tmp_path / "elsewhere")))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait("is taken at the next start only")
        assert not (tmp_path / "elsewhere").exists()

        assert daemon.stop() == 0
    outcome = Outcome(config_for(tmp_path))
    names = [frame.name for frame in outcome.frames]
    assert len(names) == len(set(names)) == 3


def test_nobody_can_call_it(lights, tmp_path):
    write_frame(tmp_path / "in", lights[0])
    with Daemon(write_config(tmp_path)) as daemon:
        daemon.wait("STACKED")
        assert listening(daemon.process.pid) == []
        assert daemon.stop() == 0


def test_a_listener_would_be_seen():
    import socket

    with socket.create_server(("127.0.0.1", 0)):
        assert [name for name, _ in listening(os.getpid())] == ["tcp"]
