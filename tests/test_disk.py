"""A disk that is full, read-only or gone: the work pauses, says so once, and goes on by itself."""

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from calib_library import schema
from calib_library.images import product_file
from daemon import opening, service, storage
from daemon.config import parse
from daemon.errors import FatalError
from daemon.simulator.writer import write_frame
from daemon.storage import Kind, Storage
from tests.daemons import Daemon, wait_for, write_config
from tests.nights import Outcome, assert_same, config_for, run, short_night, without_trouble
from tests.power import released

QUICK = "[calibration]\nquiet_s = 0.3"

can_mount = (
    os.geteuid() == 0
    and shutil.which("mount") is not None
    and subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    ).returncode
    == 0
)
needs_mount = pytest.mark.skipif(
    not can_mount, reason="mounting a small disk needs root, or pytest inside `unshare -rm`"
)


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


@pytest.fixture
def disk(tmp_path):
    """A tmpfs of 32 MB, bound to `tmp_path/library`."""
    medium, place = tmp_path / "disk", tmp_path / "library"
    medium.mkdir()
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=32m", "none", medium)
    mount("--bind", medium, place)
    yield medium
    for point in (place, medium):
        while os.path.ismount(point):
            subprocess.run(["umount", "-l", point], check=True)


@pytest.fixture(scope="module")
def taken():
    return short_night()


@pytest.fixture(scope="module")
def undisturbed(taken, tmp_path_factory):
    return without_trouble(taken, tmp_path_factory.mktemp("undisturbed"))


def fill(folder, leave):
    """Fill a disk so that `leave` bytes are free."""
    with (folder / "ballast").open("wb") as file, contextlib.suppress(OSError):
        while (free := storage.free_bytes(folder)) > leave:
            file.write(bytes(min(1 << 20, free - leave)))
            file.flush()


def sound(root):
    """The database is whole, and every product that it speaks of."""
    with contextlib.closing(sqlite3.connect(root / schema.DATABASE_NAME)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        recorded = {path for (path,) in db.execute("SELECT path FROM stack")}
        recorded |= {path for (path,) in db.execute("SELECT path FROM master")}
    for path in recorded - {None}:
        product_file.read_product(root / path)


def finish_and_compare(tmp_path, undisturbed):
    config = config_for(tmp_path, extra=QUICK)
    run(config)
    sound(config.library.path)
    assert_same(config, undisturbed)
    assert not list(config.library.path.rglob("*.tmp"))
    # Once; a light that waited for its master twice. A full disk is no frame's fault.
    assert max(frame.attempts for frame in Outcome(config).frames) <= 2


@needs_mount
@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "leave"),
    [("database and log", 0), ("master", 250_000), ("product", 1_000_000)],
)
def test_a_full_disk_pauses_the_work(victim, leave, disk, taken, undisturbed, tmp_path):
    calibration = [frame for frame in taken if frame.kind != "light"]
    lights = [frame for frame in taken if frame.kind == "light"]
    first, then = (calibration, lights) if victim == "product" else ([], taken)
    with Daemon(write_config(tmp_path, QUICK)) as daemon:
        daemon.wait("START")
        wait_for(lambda: "READY=1" in daemon.heard)
        for frame in first:
            write_frame(tmp_path / "in", frame)
        if first:
            daemon.wait("MASTER .*masters/", 3)
        fill(disk, leave)
        for frame in then:
            write_frame(tmp_path / "in", frame)
        daemon.wait("paused: .* is full")
        pings = daemon.pings()
        wait_for(lambda: daemon.pings() >= pings + 3)  # not dead: it waits
        wait_for(lambda: any("is full" in line for line in daemon.heard))
        sound(disk)
        (disk / "ballast").unlink()
        daemon.wait("written again: the work goes on")
        daemon.wait("STACKED|REJECTED", len(lights))
        assert len(daemon.lines("paused:")) == 1
        assert daemon.stop() == 0
    finish_and_compare(tmp_path, undisturbed)


@needs_mount
@pytest.mark.slow
def test_a_disk_that_becomes_read_only(taken, undisturbed, tmp_path):
    """As ext4 does it after an error: the kernel closes it for writing under the open files."""
    image, place = tmp_path / "image", tmp_path / "library"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    options = ("-o", "loop,errors=remount-ro", image, place)
    if subprocess.run(["mkfs.ext4", "-q", image], check=False).returncode:
        pytest.skip("mkfs.ext4 is not here")
    if subprocess.run(["mount", *map(str, options)], check=False).returncode:
        pytest.skip("no loop device can be mounted here")
    try:
        _read_only(place, options, taken, tmp_path)
        finish_and_compare(tmp_path, undisturbed)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def _read_only(place, options, taken, tmp_path):
    with Daemon(write_config(tmp_path, QUICK)) as daemon:
        for frame in taken[:18]:
            write_frame(tmp_path / "in", frame)
        daemon.wait("STACKED|REJECTED", 2)
        trigger = Path("/sys/fs/ext4", _device_of(place), "trigger_fs_error")
        assert trigger.exists()
        with contextlib.suppress(OSError):
            trigger.write_text("1")
        for frame in taken[18:]:
            write_frame(tmp_path / "in", frame)
        daemon.wait("paused: .* read-only")
        # Nothing of it is open any more: it can be unmounted, repaired and mounted.
        wait_for(lambda: subprocess.run(["umount", place], check=False).returncode == 0)
        wait_for(lambda: released(place.with_name("image")))
        mount(*options)
        daemon.wait("written again: the work goes on")
        daemon.wait("STACKED|REJECTED", 6)
        assert len(daemon.lines("paused:")) == 1
        assert daemon.stop() == 0


def _device_of(place):
    number = place.stat().st_dev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name


@needs_mount
@pytest.mark.slow
def test_a_library_that_is_unmounted_and_mounted_again(disk, taken, undisturbed, tmp_path):
    place = tmp_path / "library"
    with Daemon(write_config(tmp_path, QUICK)) as daemon:
        for frame in taken[:18]:
            write_frame(tmp_path / "in", frame)
        daemon.wait("STACKED|REJECTED", 3)
        subprocess.run(["umount", "-l", place], check=True)
        daemon.wait("paused: .* is not there")
        for frame in taken[18:]:
            write_frame(tmp_path / "in", frame)
        pings = daemon.pings()
        wait_for(lambda: daemon.pings() >= pings + 3)
        assert list(place.iterdir()) == [], "nothing is written on the bare mount point"
        mount("--bind", disk, place)
        daemon.wait("written again: the work goes on")
        daemon.wait("STACKED|REJECTED", 6)
        assert daemon.stop() == 0
    finish_and_compare(tmp_path, undisturbed)


@needs_mount
def test_no_library_is_begun_on_a_bare_mount_point(tmp_path, monkeypatch):
    """As at boot, before the disk is there: the service remembers that there was a library."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    place = tmp_path / "library"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m", "none", place)
    try:
        opening.open_library(place)
        subprocess.run(["umount", place], check=True)
        with Daemon(write_config(tmp_path)) as daemon:
            daemon.wait("waiting: .*was here before")
            wait_for(lambda: "READY=1" in daemon.heard and daemon.pings() > 2)
            assert list(place.iterdir()) == []
            (place / storage.MARKER).touch()  # a person says: begin a new one
            daemon.wait("a new library was begun")
            assert daemon.stop() == 0
        shutil.rmtree(place)
        with pytest.raises(FatalError, match="was here before"):
            service.run(config_for(tmp_path), until_idle=True)
    finally:
        if os.path.ismount(place):
            subprocess.run(["umount", "-l", place], check=True)


def test_a_mount_point_of_fstab_that_is_not_mounted(tmp_path):
    fstab = tmp_path / "fstab"
    fstab.write_text(f"# disks\n/dev/sda1 / ext4\nUUID=1 {tmp_path}/usb\\040disk ext4 nofail 0 2\n")
    point = tmp_path / "usb disk"
    assert storage.unmounted_point(point / "library", fstab) == point
    assert storage.unmounted_point(tmp_path / "elsewhere", fstab) is None


def test_what_the_errors_of_sqlite_say(tmp_path):
    """Real errors of the database, not invented ones."""
    path = tmp_path / "x.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (b BLOB)")
        db.execute("PRAGMA max_page_count = 3")
        with pytest.raises(sqlite3.OperationalError) as full:
            db.execute("INSERT INTO t VALUES (zeroblob(100000))")
    with (
        contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
        pytest.raises(sqlite3.OperationalError) as readonly,
    ):
        db.execute("CREATE TABLE u (a)")
    assert storage.kind_of(full.value) is Kind.FULL
    assert storage.kind_of(readonly.value) is Kind.READ_ONLY
    with (
        contextlib.closing(sqlite3.connect(":memory:")) as db,
        pytest.raises(sqlite3.OperationalError) as mistake,
    ):
        db.execute("SELECT nothing")
    assert storage.kind_of(mistake.value) is None


def test_one_bad_sector_is_one_files_fault(tmp_path):
    library = storage.establish(tmp_path, "abc")
    assert not library.concerns_all(OSError(errno.EIO, "Input/output error"))
    assert library.concerns_all(OSError(errno.ENOSPC, "No space left on device"))
    assert not library.concerns_all(PermissionError(errno.EACCES, "Permission denied"))
    (tmp_path / storage.MARKER).unlink()
    assert library.concerns_all(ValueError("anything, when the library is not there"))


def test_a_full_disk_is_tried_again_when_there_is_more_room(tmp_path):
    library = storage.establish(tmp_path, "abc")
    free = storage.free_bytes(tmp_path)
    more = storage.Trouble(Kind.FULL, "", free // 2)
    same = storage.Trouble(Kind.FULL, "", free)
    assert library.over(more, 0.0)
    assert not library.over(same, 10.0)
    assert library.over(same, storage.FULL_RETRY_S)  # a quota cannot be seen
    faulty = storage.Trouble(Kind.FAULTY, "", free)
    assert not library.over(faulty, 1.0)
    assert library.over(faulty, storage.FAULTY_RETRY_S)


def test_two_libraries_are_not_mixed(tmp_path):
    storage.establish(tmp_path, "abc")
    with pytest.raises(FatalError, match="mixed"):
        storage.establish(tmp_path, "def")


def test_a_library_from_before_the_marker_gets_one(tmp_path):
    first, new = opening.open_library(tmp_path)
    assert new
    (tmp_path / storage.MARKER).unlink()
    again, new = opening.open_library(tmp_path)
    assert (again, new) == (Storage(tmp_path, first.id), False)
    assert again.present()


def test_a_lost_database_is_not_begun_anew_over_the_masters(tmp_path):
    opening.open_library(tmp_path)
    for path in tmp_path.glob("lightkeeper.db*"):
        path.unlink()
    (tmp_path / "masters").mkdir()
    (tmp_path / "masters" / "MasterDark_v1.fits").touch()
    config = parse(f'[library]\npath = "{tmp_path}"\n[[watch]]\npath = "/nowhere"\n', base=tmp_path)
    with pytest.raises(FatalError, match="rebuild"):
        service.run(config, until_idle=True)


def test_low_room_is_told_before_it_is_full(tmp_path, monkeypatch):
    mega = 1_000_000
    monkeypatch.setattr(storage, "free_bytes", lambda _: 900 * mega)
    assert storage.low_room(tmp_path, now=1e9) is None
    with (tmp_path / "product").open("wb") as file:
        file.truncate(1000 * mega)  # sparse: 1 GB by its size
    os.utime(tmp_path / "product", (1e9, 1e9))
    assert "900 MB are free" in storage.low_room(tmp_path, now=1e9 + 3600)
    assert "may need 1000 MB" in storage.low_room(tmp_path, now=1e9 + 3600)
    assert storage.low_room(tmp_path, now=1e9 + 2 * 86400) is None  # written another night
    monkeypatch.setattr(storage, "free_bytes", lambda _: 400 * mega)
    assert "make room" in storage.low_room(tmp_path, now=1e9 + 2 * 86400)
