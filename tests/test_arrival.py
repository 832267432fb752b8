"""How frames arrive: every failure that a watcher must survive, by its number in that list.

The intake, the probe, the kernel and the file systems are the real ones. Where a test needs a
mount or a limit of the kernel it runs in a namespace of its own.
"""

import contextlib
import dataclasses
import datetime as dt
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from calib_library import schema
from daemon import service, worker
from daemon.inbox import Inbox
from daemon.intake import intake as module
from daemon.intake.intake import Arrival, Timing, file_probe
from daemon.intake.watcher import Mode, kernel_watches, queue_limit
from daemon.log import StatusLog
from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import fits_bytes, write_frame
from tests.daemons import PATIENCE_S, wait_for
from tests.incoming import (
    EXTENSION,
    IMPATIENT,
    NEVER_S,
    TIMING,
    WHOLE,
    Night,
    appear,
    frame,
    in_own_mounts,
    mount,
    unmount,
)
from tests.nights import Outcome, config_for, run

# A race inside watchdog 7, harmless: its thread survives where warnings are not errors.
pytestmark = pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")

SCANNING = dataclasses.replace(TIMING, scan_s=0.05, often_s=0.05)
"""For where events tell nothing."""


@pytest.fixture
def inbox(tmp_path):
    path = tmp_path / "inbox"
    path.mkdir()
    return path


def arrives(night, path):
    """Wait until a file is delivered."""
    wait_for(lambda: path in night.paths())


# --- 1 to 5: not before it is complete -----------------------------------------------------------


def taken_as(inbox, stages, *, watch=True, keywords_late=False):
    """Write a file in stages, each left alone until it was taken or looked at twice, and return
    what it held at each delivery. Nothing may be reported of it.
    """
    path = inbox / "light.fits"
    timing = dataclasses.replace(TIMING, scan_s=0.05)
    taken, seen = [], []

    def probe(path):
        seen.append(path.read_bytes())
        return file_probe(path)

    with Night(
        inbox,
        watch=watch,
        timing=timing,
        probe=probe,
        arrived=lambda _: taken.append(path.read_bytes()),
    ) as night:
        for stage in stages:
            with path.open("r+b" if path.exists() else "wb") as file:
                file.write(stage)
            held = path.read_bytes()
            wait_for(lambda held=held: taken[-1:] == [held] or seen.count(held) > 1)
        wait_for(lambda: taken and taken[-1] == stages[-1])
        night.settled()
    assert night.unusables == []
    return taken


by_events_and_by_scans = pytest.mark.parametrize("watch", [True, False], ids=["events", "scan"])


@by_events_and_by_scans
def test_01_full_size_without_the_end_of_its_header(inbox, watch):
    unfinished = WHOLE[:2880] + b" " * 2880 + WHOLE[5760:]
    assert taken_as(inbox, [unfinished, WHOLE], watch=watch) == [WHOLE]


@by_events_and_by_scans
def test_01_full_size_before_its_keywords(inbox, watch):
    """CFITSIO's order: the data, the keywords, a block more of header where they need one."""
    bare = frame(keywords=())
    assert taken_as(inbox, [bare, frame()], watch=watch) == [frame()]
    (inbox / "light.fits").unlink()
    many = frame(keywords=[f"KEY{n:<5}= {n:20d}" for n in range(50)])
    assert len(many) > len(bare)
    assert taken_as(inbox, [bare, many], watch=watch) == [many]


@by_events_and_by_scans
def test_02_preallocated_and_filled_later(inbox, watch):
    stages = [bytes(len(WHOLE)), WHOLE[:5760], WHOLE[:15000], WHOLE]
    assert taken_as(inbox, stages, watch=watch) == [WHOLE]


@by_events_and_by_scans
def test_03_a_writer_that_pauses_for_longer_than_the_settle_time(inbox, watch):
    assert taken_as(inbox, [WHOLE[:9000], WHOLE[:15000], WHOLE], watch=watch) == [WHOLE]


def test_03_a_pause_beyond_the_grace_time_is_told_and_the_file_still_taken(inbox):
    path = inbox / "light.fits"
    with Night(inbox, timing=IMPATIENT) as night:
        path.write_bytes(WHOLE[:9000])
        wait_for(lambda: night.unusables)
        with path.open("ab") as file:
            file.write(WHOLE[9000:])
        arrives(night, path)
    assert len(night.unusables) == 1


def test_03_a_file_that_becomes_whole_without_a_sign_is_found_by_looking_again(inbox):
    """A share may report the same size and mtime before and after: only reading it tells."""
    path = inbox / "light.fits"
    broken = WHOLE[:2880] + b" " * 2880 + WHOLE[5760:]
    path.write_bytes(broken)
    before = path.stat()
    with Night(inbox, timing=IMPATIENT) as night:
        wait_for(lambda: night.unusables)
        with path.open("r+b") as file:
            file.write(WHOLE)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        arrives(night, path)
    assert len(night.unusables) == 1
    assert "looked at again, at least every 10 minutes" in night.unusables[0][1]


@by_events_and_by_scans
def test_04_opened_and_closed_several_times(inbox, watch):
    stages = [b"", WHOLE[:100], WHOLE[:5760], WHOLE]
    assert taken_as(inbox, stages, watch=watch) == [WHOLE]


@by_events_and_by_scans
def test_05_later_hdus_that_are_still_being_written(inbox, watch):
    header = EXTENSION[:2880]
    stages = [WHOLE + header.replace(b"END", b"   "), WHOLE + header, WHOLE + EXTENSION]
    assert taken_as(inbox, stages, watch=watch) == [WHOLE + EXTENSION]


@by_events_and_by_scans
def test_05_later_hdus_that_were_promised(inbox, watch):
    promising = frame(keywords=["IMAGETYP= 'Light   '", "NEXTEND =                    2"])
    stages = [promising, promising + EXTENSION, promising + 2 * EXTENSION]
    assert taken_as(inbox, stages, watch=watch) == [stages[-1]]


@by_events_and_by_scans
def test_05_later_hdus_that_nobody_could_expect_make_a_new_version(inbox, watch):
    """A pause between two HDUs leaves a whole file; what comes after it arrives again."""
    stages = [WHOLE, WHOLE + EXTENSION]
    assert taken_as(inbox, stages, watch=watch) == stages


# --- 6 to 8: files and folders that come and go --------------------------------------------------


def test_06_only_created_is_ever_seen(inbox, tmp_path):
    """Renamed in from outside, linked, or first in a folder that was made a moment ago."""
    for name in ("x", "y", "z"):
        (tmp_path / f"{name}.fits").write_bytes(frame())
    with Night(inbox) as night:
        wait_for(night.intake.idle)
        os.link(tmp_path / "x.fits", inbox / "hard.fits")
        (inbox / "soft.fits").symlink_to(tmp_path / "y.fits")
        (tmp_path / "z.fits").rename(inbox / "renamed.fits")
        (inbox / "night" / "Ha").mkdir(parents=True)
        (inbox / "night" / "Ha" / "first.fits").write_bytes(frame())
        names = {"hard.fits", "soft.fits", "renamed.fits", "night/Ha/first.fits"}
        wait_for(lambda: {str(p.relative_to(inbox)) for p in night.paths()} == names)
    assert len(night.arrivals) == 4


def test_07_a_folder_is_moved_in_and_then_written_into(inbox, tmp_path):
    outside = tmp_path / "outside"
    (outside / "Ha").mkdir(parents=True)
    (outside / "Ha" / "old.fits").write_bytes(frame())
    with Night(inbox) as night:
        wait_for(night.intake.idle)
        outside.rename(inbox / "moved")
        arrives(night, inbox / "moved" / "Ha" / "old.fits")
        (inbox / "moved" / "Ha" / "later.fits").write_bytes(frame())
        arrives(night, inbox / "moved" / "Ha" / "later.fits")
    assert len(night.arrivals) == 2


def test_08_a_folder_is_renamed_and_moved_away(inbox, tmp_path):
    (inbox / "night").mkdir()
    (inbox / "night" / "a.fits").write_bytes(frame())
    with Night(inbox) as night:
        arrives(night, inbox / "night" / "a.fits")
        (inbox / "night").rename(inbox / "M 42")
        # The same content under a new name: the ledger, which knows contents, calls it a duplicate.
        arrives(night, inbox / "M 42" / "a.fits")
        (inbox / "M 42" / "b.fits").write_bytes(frame())
        arrives(night, inbox / "M 42" / "b.fits")
        (inbox / "M 42" / "unfinished.fits").write_bytes(WHOLE[:9000])
        (inbox / "M 42").rename(tmp_path / "away")
        wait_for(night.intake.idle)
        (inbox / "M 42").mkdir()
        (inbox / "M 42" / "c.fits").write_bytes(frame())
        arrives(night, inbox / "M 42" / "c.fits")
        (tmp_path / "away" / "outside.fits").write_bytes(frame())
        night.settled()
    assert len(night.arrivals) == 4
    assert night.intake.failure is None


# --- 9 to 12: the watch gives way ----------------------------------------------------------------


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
    # By which sign it shows (died, another folder, there again) is a matter of the moment.
    assert 1 <= len(anew) == len(set(anew)), "the same trouble is told once in ten minutes"


# --- 13 to 18: the root itself -------------------------------------------------------------------


@in_own_mounts
def test_13_the_root_is_unmounted_and_mounted_again(inbox, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("--bind", disk, inbox)
    with Night(inbox) as night:
        wait_for(night.intake.idle)
        (inbox / "before.fits").write_bytes(frame())
        arrives(night, inbox / "before.fits")
        unmount(inbox)
        (disk / "while away.fits").write_bytes(frame())
        wait_for(lambda: any("another folder" in text for text in night.said("WATCH")))
        mount("--bind", disk, inbox)
        arrives(night, inbox / "while away.fits")
        unmount(inbox)  # too fast to be seen gone: the same device and inode as before
        mount("--bind", disk, inbox)
        (inbox / "after.fits").write_bytes(frame())
        arrives(night, inbox / "after.fits")
    assert len(night.arrivals) == 3


@in_own_mounts
def test_14_another_file_system_is_mounted_over_the_root(inbox):
    with Night(inbox) as night:
        (inbox / "below.fits").write_bytes(frame())
        arrives(night, inbox / "below.fits")
        mount("-t", "tmpfs", "none", inbox)
        (inbox / "above.fits").write_bytes(frame())
        arrives(night, inbox / "above.fits")
        unmount(inbox)
        (inbox / "below again.fits").write_bytes(frame())
        arrives(night, inbox / "below again.fits")
        mount("-t", "tmpfs", "none", inbox)
        (inbox / "above again.fits").write_bytes(frame())
        arrives(night, inbox / "above again.fits")
    assert len(night.arrivals) == 4


def test_15_the_root_is_a_symlink_and_then_leads_elsewhere(inbox, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    link = tmp_path / "camera"
    link.symlink_to(inbox)
    with Night(link) as night:
        wait_for(night.intake.idle)
        (inbox / "a.fits").write_bytes(frame())
        arrives(night, link / "a.fits")
        (tmp_path / "new").symlink_to(other)
        (tmp_path / "new").rename(link)
        (other / "b.fits").write_bytes(frame())
        arrives(night, link / "b.fits")
        wait_for(lambda: other.stat().st_ino in kernel_watches())
        (other / "c.fits").write_bytes(frame())
        arrives(night, link / "c.fits")
    assert len(night.arrivals) == 3


def test_16_a_symlinked_folder_inside(inbox, tmp_path):
    disk = tmp_path / "disk"
    (disk / "deep").mkdir(parents=True)
    (disk / "old.fits").write_bytes(frame())
    (disk / "round").symlink_to(inbox)  # a loop
    with Night(inbox) as night:
        wait_for(night.intake.idle)
        (inbox / "linked").symlink_to(disk)
        arrives(night, inbox / "linked" / "old.fits")
        (disk / "deep" / "later.fits").write_bytes(frame())
        arrives(night, inbox / "linked" / "deep" / "later.fits")
        night.settled()
    assert len(night.arrivals) == 2


@by_events_and_by_scans
def test_17_the_root_does_not_exist_at_start(tmp_path, watch):
    root = tmp_path / "mnt" / "camera"
    with Night(root, watch=watch, timing=SCANNING) as night:
        wait_for(night.intake.idle)
        night.turns()
        root.mkdir(parents=True)
        (root / "a.fits").write_bytes(frame())
        arrives(night, root / "a.fits")
    said = night.said("WATCH" if watch else "SCAN")
    assert sum((str(root) in t and "exist" in t) or "No such" in t for t in said) == 1, said


@pytest.mark.parametrize("way", ["removed", "moved away"])
def test_18_by_scans_alone_no_closed_events_and_a_root_that_vanishes(inbox, tmp_path, way):
    """The polling of other watchers stops for good here; ours is a scan, which begins anew."""
    with Night(inbox, watch=False, timing=SCANNING) as night:
        (inbox / "a.fits").write_bytes(frame())
        arrives(night, inbox / "a.fits")
        if way == "removed":
            shutil.rmtree(inbox)
        else:
            inbox.rename(tmp_path / "away")
        wait_for(lambda: any("cannot be scanned" in text for text in night.said("SCAN")))
        inbox.mkdir()
        (inbox / "b.fits").write_bytes(frame())
        arrives(night, inbox / "b.fits")
    assert len(night.arrivals) == 2
    assert sum("cannot be scanned" in text for text in night.said("SCAN")) == 1


# --- 19 and 20: archives and shares --------------------------------------------------------------


def test_19_an_archive_does_not_hold_back_tonight(inbox, tmp_path, monkeypatch):
    """Old files are taken in a window, tonight's at once; what is recorded is not opened again."""
    count, window = 3000, 200
    monkeypatch.setattr(module, "_WINDOW", window)
    source = tmp_path / "frame.fits"
    source.write_bytes(frame(1, 8))
    for n in range(count):
        folder = inbox / f"{n // 500}"
        folder.mkdir(exist_ok=True)
        os.link(source, folder / f"{n}.fits")
    tonight = inbox / "tonight" / "light.fits"
    now = time.time() + 86_400.0  # a day later: everything there is old
    delivered, most = [], 0

    def arrived(arrival):
        nonlocal most
        most = max(most, night.intake._pending())
        delivered.append(arrival)
        if len(delivered) == 50:
            tonight.parent.mkdir()
            tonight.write_bytes(frame())
            os.utime(tonight, (now, now))
            wait_for(lambda: tonight.parent in night.intake._hints)

    # The worker takes a few at a time.
    turns = [0]

    def full():
        turns[0] += 1
        return turns[0] % 20 == 0

    timing = dataclasses.replace(TIMING, quiet_s=60.0)
    night = Night(inbox, arrived=arrived, timing=timing, full=full, wall=lambda: now)
    with night:
        wait_for(lambda: len(delivered) == count + 1)
        wait_for(night.intake.idle)
    paths = [arrival.path for arrival in delivered]
    assert len(set(paths)) == count + 1
    assert paths.index(tonight) < 150
    assert most <= window + 1  # tonight's is let in beyond it

    again = Night(inbox, timing=timing, wall=lambda: now)
    again.seen_by_ledger = {(a.path, a.size, a.mtime_ns) for a in delivered}
    with again:
        wait_for(again.intake.idle)
    assert again.probed == []


def test_19_the_folder_that_changed_last_is_scanned_first(inbox):
    for n, age_s in enumerate((3000, 10, 2000, 1000)):
        (inbox / f"{n}").mkdir()
        (inbox / f"{n}" / "a.fits").write_bytes(frame())
        os.utime(inbox / f"{n}", (time.time() - age_s,) * 2)
    found = [str(f.path.parent.name) for f in module.scan(inbox)]
    assert found == ["1", "3", "2", "0"]


def test_19_tonights_frame_is_worked_on_while_an_archive_is_recorded(lights, tmp_path, monkeypatch):
    """A worker that had first to record all of it would leave tonight's frame for minutes."""
    monkeypatch.setattr(worker, "ARRIVALS_AT_ONCE", 1)
    monkeypatch.setattr(worker, "TAKING_S", 0.0)
    (tmp_path / "in").mkdir()

    def put(name, exposed):
        day = f"{exposed:%Y-%m-%dT%H:%M:%S}"
        content = fits_bytes(lights[0])
        at = content.index(b"DATE-OBS=")
        card = f"DATE-OBS= '{day}'".encode().ljust(80)
        path = tmp_path / "in" / name
        path.write_bytes(content[:at] + card + content[at + 80 :])
        stat = path.stat()
        return Arrival(path.parent, path, stat.st_size, stat.st_mtime_ns, stat.st_ino)

    now, began = dt.datetime(2026, 11, 20, 21, tzinfo=dt.UTC), time.monotonic()  # no noon is near

    def by_this_clock(_worker):
        return now + dt.timedelta(seconds=time.monotonic() - began)

    monkeypatch.setattr(worker.Worker, "_now", by_this_clock)
    arrivals = [put("tonight.fits", now)]
    arrivals += [put(f"old_{n}.fits", now - dt.timedelta(days=90)) for n in range(20)]
    config = config_for(tmp_path)
    config.library.path.mkdir()
    storage, _ = service.open_library(config.library.path)
    log = StatusLog(config.library.path / "status.log")
    inbox = Inbox()
    one = worker.Worker(config=config, storage=storage, log=log, inbox=inbox)
    for arrival in arrivals:
        inbox.arrived(arrival)
    one.start()
    try:
        wait_for(lambda: one.started.is_set() and one.idle)
    finally:
        one.stop()
        one.join()
    database = config.library.path / schema.DATABASE_NAME
    with closing(schema.connect(database, readonly=True).conn) as db:
        done = db.execute("SELECT done_at FROM frame WHERE name = 'tonight.fits'").fetchone()[0]
        last = db.execute("SELECT max(seen_at) FROM frame").fetchone()[0]
    assert done < last


@contextlib.contextmanager
def fuse(source, target):
    """A real FUSE mount of `source` at `target`: changes in `source` cause no events there."""
    if shutil.which("bindfs") is None or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("bindfs or /dev/fuse is missing")
    process = subprocess.Popen(["bindfs", "-f", str(source), str(target)])
    try:
        wait_for(lambda: os.path.ismount(target) or process.poll() is not None)
        if process.returncode is not None:
            pytest.skip("FUSE mounts are not allowed here")
        yield process
    finally:
        process.kill()
        process.wait()
        subprocess.run(["umount", "--lazy", str(target)], check=False, capture_output=True)


@in_own_mounts
def test_20_one_local_and_one_network_root(tmp_path):
    local, camera, share = (tmp_path / name for name in ("local", "camera", "share"))
    for folder in (local, camera, share):
        folder.mkdir()
    timing = dataclasses.replace(TIMING, often_s=0.2)
    with fuse(camera, share), Night(local, share, timing=timing) as night:
        wait_for(night.intake.idle)
        watch = night.intake._watch
        assert (watch.mode(local), watch.mode(share)) == (Mode.EVENTS, Mode.SCAN)
        (camera / "a.fits").write_bytes(frame())  # as another machine would
        (local / "b.fits").write_bytes(frame())
        arrives(night, share / "a.fits")
        arrives(night, local / "b.fits")
    said = [text for text in night.said("WATCH") if "network" in text]
    assert len(said) == 1
    assert str(share) in said[0]
    assert "fuse" in said[0]
    assert "scanned often" in said[0]


@in_own_mounts
def test_20_a_share_whose_server_dies_and_comes_back(tmp_path):
    camera, share = tmp_path / "camera", tmp_path / "share"
    camera.mkdir()
    share.mkdir()
    timing = dataclasses.replace(TIMING, often_s=0.1)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(fuse(camera, share))
        night = stack.enter_context(Night(share, timing=timing))
        (camera / "a.fits").write_bytes(frame())
        arrives(night, share / "a.fits")
        server.kill()
        server.wait()
        wait_for(lambda: any("cannot be opened" in text for text in night.said("WATCH")))
        unmount(share)
        (camera / "b.fits").write_bytes(frame())
        stack.enter_context(fuse(camera, share))
        arrives(night, share / "b.fits")
        assert night.intake.failure is None
    assert len(night.arrivals) == 2


# --- 21 to 23 ------------------------------------------------------------------------------------


def test_21_the_same_file_seen_twice(inbox, tmp_path):
    """By an event and a scan, by hints without end, by two paths."""
    with Night(inbox) as night:
        wait_for(night.intake.idle)
        appear(inbox / "a.fits", frame())
        for _ in range(50):
            night.intake.hint(inbox / "a.fits")
            night.intake.rescan()
        arrives(night, inbox / "a.fits")
        for _ in range(5):
            night.settled()
            night.intake.hint(inbox / "a.fits")
            (inbox / "a.fits").chmod(0o600)
        night.settled()
    assert night.paths() == [inbox / "a.fits"]
    assert night.probed == [inbox / "a.fits"]


@pytest.fixture(scope="module")
def lights():
    """A few lights of one target."""
    plan = small_plan(
        seed=8, shape=(256, 384), bias=0, darks=0, flats=0, flat_darks=0, lights=4, flip=False
    )
    return list(frames(plan))


def test_21_the_same_content_under_two_names_is_counted_once(lights, tmp_path):
    for light in lights[:2]:
        path = write_frame(tmp_path / "in", light)
    (tmp_path / "in" / "again").mkdir()
    shutil.copyfile(path, tmp_path / "in" / "again" / "copy.fits")
    os.link(path, tmp_path / "in" / "linked.fits")
    (tmp_path / "in" / "soft.fits").symlink_to(path)
    run(config_for(tmp_path))
    outcome = Outcome(config_for(tmp_path))
    assert outcome.states() == {"stacked": 2, "rejected": 3}
    assert [stack.published_frames for stack in outcome.stacks] == [2]


LEASE = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
sys.stdin.read()
"""


def test_22_a_device_that_is_busy_then_free_again(inbox, tmp_path):
    """A lease, as Samba holds one for a client that still writes: opening fails with EAGAIN."""
    source = tmp_path / "light.fits"
    source.write_bytes(frame())
    holder = subprocess.Popen(
        [sys.executable, "-c", LEASE, str(source)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        if holder.stdout.readline() != b"held\n":
            pytest.skip("this file system grants no leases")
        with pytest.raises(BlockingIOError):
            os.close(os.open(source, os.O_RDONLY | os.O_NONBLOCK))
        with Night(inbox, timing=IMPATIENT) as night:
            wait_for(night.intake.idle)
            source.rename(inbox / "light.fits")
            wait_for(lambda: night.said("UNREADABLE"))
            assert night.arrivals == []
            holder.communicate()
            arrives(night, inbox / "light.fits")
        assert len(night.said("UNREADABLE")) == 1
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()


def test_22_a_folder_that_is_gone_while_its_frame_waits_its_turn(lights, tmp_path):
    """A share that is away for a moment: the frame comes back with it, in the same life."""
    for light in lights:
        write_frame(tmp_path / "in" / "night", light)
    config = config_for(tmp_path, extra="[service]\nrescan_s = 10")
    log = tmp_path / "library" / "status.log"
    finished = threading.Event()
    codes = []
    thread = threading.Thread(
        target=lambda: codes.append(service.run(config, until_idle=True, not_before=finished))
    )
    thread.start()
    try:
        wait_for(lambda: log.exists() and "STACKED" in log.read_text())
        (tmp_path / "in" / "night").rename(tmp_path / "away")
        wait_for(lambda: log.read_text().count("STACKED") + log.read_text().count("GONE") >= 4)
        (tmp_path / "away").rename(tmp_path / "in" / "night")
        wait_for(lambda: log.read_text().count("STACKED") == 4)
    finally:
        finished.set()
        thread.join()
    assert codes == [0]
    assert Outcome(config).states() == {"stacked": 4}


def test_23_thousands_of_deletes_while_watching(inbox, monkeypatch):
    monkeypatch.setattr(module, "_TOGETHER_S", 3600.0)
    later_s = [0.0]
    folders = [inbox / f"{n}" for n in range(50)]
    for folder in folders:
        folder.mkdir()
        for n in range(60):
            (folder / f"{n}.fits").write_bytes(b"")
    with Night(inbox, clock=lambda: time.monotonic() + later_s[0]) as night:
        wait_for(lambda: night.intake._pending() == 3000)
        for folder in folders:
            shutil.rmtree(folder)
        (inbox / "after.fits").write_bytes(frame())
        arrives(night, inbox / "after.fits")
        wait_for(night.intake.idle)
        assert inbox.stat().st_ino in kernel_watches()
        later_s[0] = 4000.0
        wait_for(lambda: night.said("VANISHED"))
    assert night.paths() == [inbox / "after.fits"]
    (said,) = night.said("VANISHED")
    assert " and 2999 more" in said


# --- 24: the disk, the power, the clock ----------------------------------------------------------


@in_own_mounts
def test_24_the_source_is_read_only(tmp_path):
    plan = small_plan(
        seed=8, shape=(256, 384), bias=0, darks=0, flats=0, flat_darks=0, lights=2, flip=False
    )
    for light in frames(plan):
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


def test_what_is_recorded_as_incomplete_is_looked_at_again_in_the_next_life(tmp_path):
    """The state is in the database; the file becomes whole without a new size or mtime."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "light.fits"
    keywords = ["IMAGETYP= 'BIAS    '", "EXPTIME =                  0.0"]
    pixels = (
        np.random.default_rng(3).normal(1000.0 - 32768.0, 8.0, (100, 120)).astype(">i2").tobytes()
    )
    whole = frame(100, 120, keywords=keywords)
    whole = whole[:2880] + pixels.ljust(len(whole) - 2880, b"\0")
    path.write_bytes(whole.replace(b"END     ", b"        ", 1))
    before = path.stat()
    config = config_for(tmp_path)
    run(config)
    run(config)
    outcome = Outcome(config)
    assert outcome.states() == {"rejected": 1}
    assert outcome.log.count("REJECTED") == 1
    path.write_bytes(whole)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    run(config)
    assert Outcome(config).states() == {"filed": 1}
