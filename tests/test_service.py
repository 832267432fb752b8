"""The service as systemd and a second instance see it, and what the clock asks of it."""

import datetime as dt
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from daemon import jobs, opening, service
from daemon.config import ServiceConfig
from daemon.errors import AlreadyRunningError, FatalError
from daemon.inbox import Inbox, Request
from daemon.lock import Lock
from daemon.log import StatusLog
from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests.daemons import COMMAND, PATIENCE_S, wait_for, write_config
from tests.nights import Outcome, config_for, run


@pytest.fixture
def watched(tmp_path):
    write_config(tmp_path)
    return tmp_path


def test_systemd_hears_ready_alive_and_stopping(watched):
    address = str(watched / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(PATIENCE_S)
        environment = {**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000"}
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "run", "--config", str(watched / "config.toml")],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        heard = []
        try:
            while "READY=1" not in heard or heard.count("WATCHDOG=1") < 2:
                heard += listener.recv(4096).decode().split("\n")
            frame = next(
                f for f in frames(small_plan(shape=(384, 512), seed=5)) if f.kind == "light"
            )
            write_frame(watched / "in", frame)
            log = watched / "library" / "status.log"

            def stacked():
                # systemd listens all the time: a socket that nobody empties takes ten messages.
                heard.extend(listener.recv(4096).decode().split("\n"))
                return "STACKED" in log.read_text()

            wait_for(stacked)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
            while "STOPPING=1" not in heard:
                heard += listener.recv(4096).decode().split("\n")
        finally:
            process.kill()
            process.wait()
    assert any(line.startswith("STATUS=") for line in heard)
    # The product was written before it stopped.
    outcome = Outcome(config_for(watched))
    assert outcome.stacks[0].published_frames == 1


def test_a_second_instance_is_refused(watched):
    config = config_for(watched)
    config.library.path.mkdir()
    with (
        Lock(config.library.path),
        pytest.raises(AlreadyRunningError, match="stop it first"),
    ):
        service.run(config, until_idle=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_library_that_cannot_be_written_is_one_sentence(watched):
    (watched / "library").mkdir(mode=0o500)
    with pytest.raises(FatalError, match="cannot be written"):
        service.run(config_for(watched), until_idle=True)


def test_a_library_below_a_file_is_one_sentence(watched):
    (watched / "library").write_text("not a folder")
    with pytest.raises(FatalError, match="cannot be written"):
        service.run(config_for(watched), until_idle=True)


def test_the_clock_asks_and_late_jobs_are_not_dropped():
    asked, scans = [], []
    config = ServiceConfig(rescan_s=1.0)
    scheduler = jobs.schedule(
        config, rescan=lambda: scans.append(1), request=asked.append, log=StatusLog(None)
    )
    try:
        wait_for(lambda: scans)
        planned = {job.id: job for job in scheduler.get_jobs()}
        assert set(planned) == {"rescan", *map(str, Request)}
        assert all(job.misfire_grace_time is None for job in planned.values())
        assert all(job.coalesce and job.max_instances == 1 for job in planned.values())
        end = planned[str(Request.END_OF_NIGHT)].next_run_time.astimezone()
        assert (end.hour, end.minute) == (config.end_of_night.hour, config.end_of_night.minute)
        # By a day, not by years: the scheduler steps through every time that was missed.
        late = end - dt.timedelta(days=2)
        scheduler.modify_job(str(Request.MASTERS), next_run_time=late)
        wait_for(lambda: Request.MASTERS in asked)
    finally:
        scheduler.shutdown(wait=False)


def test_a_time_zone_without_a_name_is_a_time_zone(monkeypatch):
    """POSIX writes two hours east of Greenwich so; embedded systems often know no other way."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-2")
        time.tzset()
        scheduler = jobs.schedule(
            ServiceConfig(), rescan=lambda: None, request=lambda _: None, log=StatusLog(None)
        )
        try:
            ends = scheduler.get_job(str(Request.END_OF_NIGHT)).next_run_time
        finally:
            scheduler.shutdown(wait=False)
    time.tzset()
    end = ServiceConfig().end_of_night
    assert (ends.utcoffset(), ends.hour) == (dt.timedelta(hours=2), end.hour)


def test_the_end_of_the_night_builds_writes_and_copies(tmp_path, capfd):
    from daemon.worker import Worker

    plan = small_plan(seed=9, shape=(384, 512), bias=5, darks=0, flats=0, flat_darks=0, lights=3)
    for frame in frames(plan):
        write_frame(tmp_path / "in", frame)
    config = config_for(tmp_path, extra="[lights]\nkeep_calibrated = true")
    run(config)
    library, _ = opening.open_library(config.library.path)
    inbox = Inbox()
    worker = Worker(
        config=config,
        storage=library,
        log=StatusLog(config.library.path / "status.log"),
        inbox=inbox,
    )
    inbox.request(Request.END_OF_NIGHT)
    inbox.request(Request.BACKUP)
    worker.start()
    log = config.library.path / "status.log"
    wait_for(lambda: "BACKUP" in log.read_text())
    worker.stop()
    worker.join(PATIENCE_S)
    assert worker.error is None
    assert "NIGHT" in log.read_text()
    (copy,) = (config.library.path / "backup").glob("*.db")
    assert copy.stat().st_size > 10_000
    kept = list((config.library.path / "calibrated").rglob("*.fits"))
    assert len(kept) == 3


def test_hurried_right_after_its_last_look_it_is_not_idle(tmp_path, monkeypatch):
    """What it found then says nothing of masters for which nothing has to be waited any more."""
    from daemon import warmup
    from daemon.worker import Worker

    monkeypatch.setattr(warmup, "kernels", lambda *_, **__: None)
    monkeypatch.setattr(warmup, "later", lambda *_, **__: None)
    config = config_for(tmp_path)
    config.library.path.mkdir()
    library, _ = opening.open_library(config.library.path)
    worker = Worker(config=config, storage=library, log=StatusLog(None), inbox=Inbox())
    look, idle_when_hurried = worker._step, []

    def step():
        if worker._hurried.is_set():
            idle_when_hurried.append(worker.idle)
        busy = look()
        if not (busy or worker._hurried.is_set()):
            worker.hurry()  # by another thread, before what the look found is recorded
        return busy

    monkeypatch.setattr(worker, "_step", step)
    worker.start()
    wait_for(lambda: worker.idle and idle_when_hurried)
    worker.stop()
    worker.join(PATIENCE_S)
    assert worker.error is None
    assert idle_when_hurried[0] is False


def test_an_order_is_carried_out_without_preparing_the_kernels_of_frames(tmp_path, monkeypatch):
    from daemon import orders, service, warmup

    def prepare(*_, **__):
        raise AssertionError("nobody waits for frames")

    monkeypatch.setattr(warmup, "kernels", prepare)
    config = config_for(tmp_path)
    config.library.path.mkdir()
    order = orders.Order(orders.Action.REMOVE, 1)
    assert service.carry_out(config, [order]) == 0
    log = (config.library.path / "status.log").read_text()
    assert "nothing to take out" in log
    assert "FATAL" not in log


def test_no_frame_is_worked_on_while_more_are_on_their_way_at_the_start(tmp_path, monkeypatch):
    """Whatever order a folder is read in: the first light is what all others register to."""
    from daemon import warmup
    from daemon import worker as module
    from daemon.intake.intake import Arrival

    monkeypatch.setattr(warmup, "later", lambda *_, **__: None)
    monkeypatch.setattr(module, "TAKING_S", 1e6)
    config = config_for(tmp_path)
    config.library.path.mkdir()
    library, _ = opening.open_library(config.library.path)
    plan = small_plan(seed=21, shape=(256, 384), bias=0, darks=0, flats=0, flat_darks=0, lights=3)
    paths = [write_frame(tmp_path / "in", frame) for frame in frames(plan)]
    inbox, all_seen = Inbox(), threading.Event()
    inbox.all_seen = all_seen.is_set
    worker = module.Worker(
        config=config,
        storage=library,
        log=StatusLog(config.library.path / "status.log"),
        inbox=inbox,
    )
    worker.hurry()
    worker.start()
    for path in reversed(paths):
        stat = path.stat()
        inbox.arrived(Arrival(path.parent, path, stat.st_size, stat.st_mtime_ns, stat.st_ino))
        wait_for(inbox.empty)
        steps = worker.steps
        wait_for(lambda steps=steps: worker.steps > steps + 3)
    all_seen.set()
    wait_for(lambda: worker.idle)
    worker.stop()
    worker.join(PATIENCE_S)
    assert worker.error is None
    outcome = Outcome(config)
    names = {frame.id: frame.name for frame in outcome.frames}
    assert [names[member.frame_id] for member in outcome.members[1]] == [p.name for p in paths]
