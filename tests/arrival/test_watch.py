"""9 to 12: the watch gives way."""

import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from daemon.intake.watcher import Mode, kernel_watches, queue_limit
from tests.daemons import PATIENCE_S, wait_for
from tests.incoming import SCANNING, TIMING, Night, arrives, frame, in_own_mounts


def deliver(inbox, said):
    """Take frames in until told to stop; in a process of its own, which can be held."""
    with Night(inbox) as night:
        wait_for(night.intake.idle)
        said.send("ready")
        while said.recv() != "stop":
            night_idle = night.intake.idle()
            said.send((night_idle, len(night.arrivals), len(set(night.paths())), night.events))


@contextlib.contextmanager
def held(process):
    """Stop a process as a machine that is busy with something else would."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


@pytest.mark.slow
def test_09_the_event_queue_overflows(inbox, tmp_path):
    count = queue_limit() + 500
    if count > 60_000:
        pytest.skip(f"the kernel queues {queue_limit()} events: too many to overflow here")
    source = tmp_path / "frame.fits"
    source.write_bytes(frame(1, 8))
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=deliver, args=(inbox, there))
    process.start()
    try:
        assert here.recv() == "ready"
        with held(process):  # nobody reads the queue
            for n in range(count):  # one event each
                os.link(source, inbox / f"{n}.fits")

        def state():
            here.send("how is it?")
            return here.recv()

        wait_for(lambda: state()[1] >= count)
        _, delivered, different, events = state()
    finally:
        here.send("stop")
        process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert delivered == different == count
    assert any("events may have been lost" in text for _, text, _ in events)


@in_own_mounts
def test_10_the_kernels_watches_run_out(inbox):
    limit = Path("/proc/sys/user/max_inotify_watches")
    if not limit.exists():
        pytest.skip("this kernel has no limit of watches that a namespace may set")
    limit.write_text("6")
    timing = dataclasses.replace(TIMING, often_s=0.1)
    with Night(inbox, timing=timing) as night:
        wait_for(night.intake.idle)
        assert night.intake._watch.mode(inbox) is Mode.EVENTS
        for n in range(10):
            (inbox / f"{n}").mkdir()
            (inbox / f"{n}" / "first.fits").write_bytes(frame())
        wait_for(lambda: len(night.arrivals) == 10)
        for n in range(10):
            (inbox / f"{n}" / "later.fits").write_bytes(frame())
        wait_for(lambda: len(night.arrivals) == 20)
        wait_for(lambda: any("max_user_watches" in text for text in night.said("WATCH")))
        night.settled()
        complaints = [text for text in night.said("WATCH") if "max_user_watches" in text]
    assert len(complaints) == len(set(complaints)), complaints
    assert len(set(night.paths())) == 20 == len(night.arrivals)


@in_own_mounts
def test_10_no_watch_at_all_leaves_the_scan(inbox):
    limit = Path("/proc/sys/user/max_inotify_instances")
    if not limit.exists():
        pytest.skip("this kernel has no limit of instances that a namespace may set")
    limit.write_text("0")
    with Night(inbox, timing=SCANNING) as night:
        (inbox / "a.fits").write_bytes(frame())
        arrives(night, inbox / "a.fits")
        assert night.intake._watch.mode(inbox) is Mode.SCAN
        assert sum("max_user_instances" in text for text in night.said("WATCH")) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_11_an_exception_in_the_event_handler(inbox):
    faults = []

    def faulty(path):
        if not faults:
            faults.append(path)
            raise RuntimeError("a fault in the handler")
        hint(path)

    with Night(inbox) as night:
        wait_for(night.intake.idle)
        hint, night.intake._watch._hint = night.intake._watch._hint, faulty
        (inbox / "a.fits").write_bytes(frame())
        arrives(night, inbox / "a.fits")
        (inbox / "b.fits").write_bytes(frame())
        arrives(night, inbox / "b.fits")
    assert faults
    assert sum("has died" in text for text in night.said("WATCH")) == 1


def test_12_the_root_is_deleted_and_made_again(inbox):
    with Night(inbox) as night:
        wait_for(night.intake.idle)
        for n in range(3):
            shutil.rmtree(inbox)
            inbox.mkdir()
            (inbox / f"{n}.fits").write_bytes(frame())
            arrives(night, inbox / f"{n}.fits")
        wait_for(lambda: inbox.stat().st_ino in kernel_watches())
        scans = len(night.said("SCAN"))
        (inbox / "by event.fits").write_bytes(frame())
        arrives(night, inbox / "by event.fits")
        assert len(night.said("SCAN")) == scans
    anew = [text for text in night.said("WATCH") if "watching anew" in text]
    # Its inode may be the old one again (a dead watch) or another: two troubles.
    assert anew
    assert len(anew) == len(set(anew)), "the same trouble is told once in ten minutes"
