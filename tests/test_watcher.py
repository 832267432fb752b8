"""The watch, against the real kernel: what it hints at, and how it knows that it has died."""

import errno
import logging
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from daemon.intake import watcher
from daemon.intake.watcher import Mode, Watch, kernel_watches, mount_of, parse_mountinfo
from tests.daemons import wait_for

# A race inside watchdog 7, harmless: its thread survives where warnings are not errors.
pytestmark = pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")

DESCRIPTORS = Path("/proc/self/fd")


class Hints:
    def __init__(self):
        self.paths = []

    def __call__(self, path):
        self.paths.append(path)

    def __contains__(self, path):
        return path in self.paths


@pytest.fixture
def hints():
    return Hints()


@pytest.fixture
def start(hints):
    watches = []

    def start(*roots):
        watch = Watch(roots, hints)
        watches.append(watch)
        return watch, watch.start(0.0)

    yield start
    for watch in watches:
        watch.stop()


def test_hints_at_files_written_in_place_and_renamed_in(start, inbox, tmp_path, hints):
    watch, (health,) = start(inbox)
    assert (health.mode, health.trouble) == (Mode.EVENTS, False)
    (inbox / "written.fits").write_bytes(b"x")
    (tmp_path / "outside.fits").write_bytes(b"x")
    (tmp_path / "outside.fits").rename(inbox / "renamed.fits")
    (inbox / "a.tmp").write_bytes(b"x")
    (inbox / "a.tmp").rename(inbox / "inside.fits")
    os.link(inbox / "written.fits", inbox / "linked.fits")
    for name in ("written", "renamed", "inside", "linked"):
        wait_for(lambda name=name: inbox / f"{name}.fits" in hints)
    assert watch.healthy(1.0) == {}


def test_folders_that_come_to_be_are_hinted_at(start, inbox, tmp_path, hints):
    """What lay in them before they were watched is found by scanning them."""
    watch, _ = start(inbox)
    (inbox / "night" / "Ha").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.rename(inbox / "moved")
    wait_for(lambda: inbox / "night" in hints)
    wait_for(lambda: inbox / "moved" in hints)
    if watch.unwatched(inbox, [(inbox / "moved").stat().st_ino]):  # watchdog 6
        watch.follow(inbox, inbox / "moved")
    (inbox / "night").rename(inbox / "night 1")
    wait_for(lambda: inbox / "night 1" in hints)
    (inbox / "moved" / "later.fits").write_bytes(b"x")
    (inbox / "night 1" / "Ha" / "later.fits").write_bytes(b"x")
    wait_for(lambda: inbox / "moved" / "later.fits" in hints)
    wait_for(lambda: inbox / "night 1" / "Ha" / "later.fits" in hints)


def test_a_root_that_is_a_symlink_is_watched_and_keeps_its_name(start, tmp_path, inbox, hints):
    link = tmp_path / "link"
    link.symlink_to(inbox)
    start(link)
    (inbox / "a.fits").write_bytes(b"x")
    wait_for(lambda: link / "a.fits" in hints)


def test_a_linked_folder_is_watched_once_it_is_followed(start, tmp_path, inbox, hints):
    disk = tmp_path / "disk"
    disk.mkdir()
    (inbox / "disk").symlink_to(disk)
    watch, _ = start(inbox)
    watch.follow(inbox, inbox / "disk")
    watch.follow(inbox, inbox / "disk")
    (disk / "a.fits").write_bytes(b"x")
    wait_for(lambda: inbox / "disk" / "a.fits" in hints)
    assert watch.healthy(1.0) == {}


def test_a_name_that_is_not_utf8_comes_through(start, inbox, hints):
    start(inbox)
    raw = os.fsencode(inbox) + b"/\xff\xe9.fits"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    wait_for(lambda: any(os.fsencode(path) == raw for path in hints.paths))


def test_a_root_made_again_is_noticed_and_watched_anew(start, inbox, hints):
    """Scenario 12: the emitter is dead while the observer is alive."""
    watch, _ = start(inbox)
    shutil.rmtree(inbox)
    inbox.mkdir()
    wait_for(lambda: inbox in watch.healthy(1.0))
    assert watch.rebuild(inbox, 1.0).mode is Mode.EVENTS
    assert watch.healthy(2.0) == {}
    (inbox / "a.fits").write_bytes(b"x")
    wait_for(lambda: inbox / "a.fits" in hints)


def test_a_root_moved_away_and_another_in_its_place(start, inbox, tmp_path):
    watch, _ = start(inbox)
    inbox.rename(tmp_path / "away")
    assert "does not exist" in watch.healthy(1.0)[inbox]
    assert watch.rebuild(inbox, 1.0).mode is Mode.ABSENT
    assert watch.healthy(2.0) == {}  # known, nothing to do
    inbox.mkdir()
    assert "is there now" in watch.healthy(3.0)[inbox]


def test_a_root_that_does_not_exist_yet_is_said_and_waited_for(start, tmp_path, hints):
    root = tmp_path / "later"
    watch, (health,) = start(root)
    assert (health.mode, health.trouble) == (Mode.ABSENT, True)
    assert str(root) in health.text
    assert watch.healthy(1.0) == {}
    root.mkdir()
    assert root in watch.healthy(2.0)
    assert watch.rebuild(root, 2.0).mode is Mode.EVENTS
    (root / "a.fits").write_bytes(b"x")
    wait_for(lambda: root / "a.fits" in hints)


def test_a_file_in_the_place_of_a_root_is_as_good_as_absent(start, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    _, (health,) = start(tmp_path / "file")
    assert health.mode is Mode.ABSENT


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_in_the_handler_is_noticed(inbox):
    """Scenario 11: it kills the observer's thread."""
    calls = []

    def faulty(path):
        calls.append(path)
        if len(calls) == 1:
            raise RuntimeError("a fault in the handler")

    watch = Watch([inbox], faulty)
    watch.start(0.0)
    try:
        (inbox / "a.fits").write_bytes(b"x")
        wait_for(lambda: inbox in watch.healthy(1.0))
        watch.rebuild(inbox, 1.0)
        assert watch.healthy(2.0) == {}
        (inbox / "b.fits").write_bytes(b"x")
        wait_for(lambda: inbox / "b.fits" in calls)
    finally:
        watch.stop()


def test_an_emitter_that_has_died_under_a_living_observer_is_noticed(start, inbox, hints):
    watch, _ = start(inbox)
    observer = watch._roots[inbox]._observer
    for emitter in observer.emitters:
        emitter.stop()
        emitter.join()
    assert observer.is_alive()
    assert "has died" in watch.healthy(1.0)[inbox]
    watch.rebuild(inbox, 1.0)
    (inbox / "a.fits").write_bytes(b"x")
    wait_for(lambda: inbox / "a.fits" in hints)


def test_a_watch_that_the_kernel_has_dropped_is_noticed(start, inbox, monkeypatch):
    """As after an unmount: all threads live, the folder looks the same, no event ever comes."""
    watch, _ = start(inbox)
    assert inbox.stat().st_ino in kernel_watches()
    assert watch.healthy(1.0) == {}
    monkeypatch.setattr(watcher, "kernel_watches", frozenset)
    assert "no longer watches" in watch.healthy(1.0)[inbox]


def test_one_root_in_trouble_leaves_the_other_alone(start, tmp_path, hints):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    watch, _ = start(good, bad)
    shutil.rmtree(bad)
    assert set(watch.healthy(1.0)) == {bad}
    watch.rebuild(bad, 1.0)
    (good / "a.fits").write_bytes(b"x")
    wait_for(lambda: good / "a.fits" in hints)


def test_thousands_of_deletions_do_no_harm(start, inbox, hints):
    """Scenario 23."""
    folders = [inbox / f"{n}" for n in range(100)]
    for folder in folders:
        folder.mkdir()
        for n in range(20):
            (folder / f"{n}.fits").touch()
    watch, _ = start(inbox)
    for folder in folders:
        shutil.rmtree(folder)
    (inbox / "after.fits").write_bytes(b"x")
    wait_for(lambda: inbox / "after.fits" in hints)
    assert watch.healthy(1.0) == {}


def test_folders_beyond_the_kernels_limit_are_counted(start, inbox, monkeypatch):
    """Scenario 10."""
    inodes = []
    for n in range(5):
        (inbox / f"{n}").mkdir()
        inodes.append((inbox / f"{n}").stat().st_ino)
    watch, _ = start(inbox)
    assert watch.unwatched(inbox, inodes) == 0
    refused = set(inodes[3:])
    held = kernel_watches()
    monkeypatch.setattr(watcher, "kernel_watches", lambda: held - refused)
    assert watch.unwatched(inbox, inodes) == 2


def test_a_kernel_without_free_watches_leaves_the_scan(start, inbox, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    with monkeypatch.context() as patch:
        patch.setattr(watcher, "Observer", refuse)
        watch, (health,) = start(inbox)
    assert (health.mode, health.trouble) == (Mode.SCAN, True)
    assert "max_user_watches" in health.text
    assert watch.often(inbox)
    assert watch.healthy(10.0) == {}
    assert "trying again" in watch.healthy(400.0)[inbox]
    assert watch.rebuild(inbox, 400.0).mode is Mode.EVENTS
    assert not watch.often(inbox)


def test_a_burst_of_events_asks_for_a_scan(start, inbox, hints, monkeypatch):
    """Scenario 9: some versions of watchdog are silent about a full queue."""
    watch, _ = start(inbox)
    (inbox / "a.fits").write_bytes(b"x")
    wait_for(lambda: inbox / "a.fits" in hints)
    assert not watch.events_lost()
    monkeypatch.setattr(watcher, "queue_limit", lambda: 64)
    for n in range(64):
        (inbox / f"{n}.fits").write_bytes(b"x")
    wait_for(lambda: inbox / "63.fits" in hints)
    assert watch.events_lost()
    assert not watch.events_lost()


def test_whatever_watchdog_complains_of_asks_for_a_scan(start, inbox):
    watch, _ = start(inbox)
    logging.getLogger("watchdog.observers.inotify_c").warning("queue overflowed")
    assert watch.events_lost()
    assert not watch.events_lost()


def test_stop_leaves_no_thread_and_no_descriptor(inbox, hints):
    before = set(threading.enumerate()), len(list(DESCRIPTORS.iterdir()))
    watch = Watch([inbox], hints)
    for _ in range(3):
        watch.start(0.0)
    watch.stop()
    wait_for(lambda: set(threading.enumerate()) <= before[0])
    wait_for(lambda: len(list(DESCRIPTORS.iterdir())) <= before[1])


MOUNTINFO = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 27 0:45 / /mnt/nas rw,relatime shared:5 master:2 - cifs //nas/astro rw,vers=3.0
41 27 0:46 / /mnt/my\040card rw - fuse.sshfs user@host:/ rw
42 27 8:17 / /media/usb rw - fuseblk /dev/sdb1 rw
43 27 0:50 / /mnt/nas rw - ext4 /dev/sdc1 rw
44 27 0:51 / /mnt/m\351 rw - nfs4 host:/x rw
"""


def test_mounts_are_read_as_the_kernel_writes_them():
    mounts = parse_mountinfo(MOUNTINFO)
    assert [m.id for m in mounts] == [22, 27, 40, 41, 42, 43, 44]
    assert mounts[3].point == "/mnt/my card"
    assert os.fsencode(mounts[6].point) == b"/mnt/m\xe9"
    assert [m.network for m in mounts] == [False, False, True, True, False, False, True]


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/", 27),
        ("/home/astro", 27),
        ("/mnt/nasty", 27),
        ("/mnt/nas", 43),  # the later mount covers the earlier
        ("/mnt/nas/night", 43),
        ("/mnt/my card/x", 41),
    ],
)
def test_the_mount_of_a_path_is_the_longest_and_latest(path, mount):
    assert mount_of(path, parse_mountinfo(MOUNTINFO)).id == mount


def pretend_mounted(monkeypatch, point, fstype):
    """Let the kernel's list say that a network file system is mounted at a folder."""
    mounts = watcher.read_mounts()
    mine = watcher.Mount(10**9, str(point), fstype)
    monkeypatch.setattr(watcher, "read_mounts", lambda: [*mounts, mine])


def test_a_network_root_is_left_to_the_scan_and_a_local_one_watched(
    start, tmp_path, hints, monkeypatch
):
    """Scenario 20."""
    local, share = tmp_path / "local", tmp_path / "share"
    local.mkdir()
    share.mkdir()
    pretend_mounted(monkeypatch, share, "cifs")
    watch, (a, b) = start(local, share)
    assert (a.mode, b.mode) == (Mode.EVENTS, Mode.SCAN)
    assert "cifs" in b.text
    assert (watch.often(local), watch.often(share)) == (False, True)
    (local / "a.fits").write_bytes(b"x")
    wait_for(lambda: local / "a.fits" in hints)


def test_a_share_mounted_inside_a_local_root_later(start, inbox, monkeypatch):
    watch, _ = start(inbox)
    (inbox / "share").mkdir()
    assert not watch.often(inbox)
    pretend_mounted(monkeypatch, inbox / "share", "nfs4")
    assert inbox in watch.healthy(1.0)
    watch.rebuild(inbox, 1.0)
    assert watch.often(inbox)
    assert watch.healthy(2.0) == {}


def mount(*arguments):
    if subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")


def test_a_file_system_mounted_over_the_root_and_taken_away(start, inbox, hints):
    """Scenarios 13 and 14."""
    watch, _ = start(inbox)
    mount("-t", "tmpfs", "none", str(inbox))
    try:
        assert inbox in watch.healthy(1.0)
        watch.rebuild(inbox, 1.0)
        (inbox / "above.fits").write_bytes(b"x")
        wait_for(lambda: inbox / "above.fits" in hints)
    finally:
        subprocess.run(["umount", "-l", str(inbox)], check=True)
    assert inbox in watch.healthy(2.0)
    watch.rebuild(inbox, 2.0)
    (inbox / "below.fits").write_bytes(b"x")
    wait_for(lambda: inbox / "below.fits" in hints)


def test_the_same_file_system_unmounted_and_mounted_again_at_once(start, inbox, tmp_path, hints):
    """Scenario 13, too fast to be seen gone: it has the same device and inode as before."""
    if shutil.which("mkfs.ext4") is None or shutil.which("losetup") is None:
        pytest.skip("mkfs.ext4 or losetup is missing")
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    loop = subprocess.run(
        ["losetup", "-f", "--show", str(disk)], capture_output=True, text=True, check=False
    )
    if loop.returncode:
        pytest.skip("loop devices are not allowed here")
    device = loop.stdout.strip()
    try:
        mount(device, str(inbox))
        before = inbox.stat()
        watch, _ = start(inbox)
        subprocess.run(["umount", str(inbox)], check=True)
        mount(device, str(inbox))
        after = inbox.stat()
        assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
        wait_for(lambda: inbox in watch.healthy(1.0))
        watch.rebuild(inbox, 1.0)
        (inbox / "a.fits").write_bytes(b"x")
        wait_for(lambda: inbox / "a.fits" in hints)
        watch.stop()
    finally:
        subprocess.run(["umount", "-l", str(inbox)], check=False)
        subprocess.run(["losetup", "-d", device], check=False)
