"""20 and 22: shares and devices that are away for a while."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import threading

import pytest

from daemon import service
from daemon.intake.watcher import Mode
from daemon.simulator.writer import write_frame
from tests.daemons import wait_for
from tests.incoming import IMPATIENT, TIMING, Night, arrives, frame, in_own_mounts, unmount
from tests.nights import Outcome, config_for


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
