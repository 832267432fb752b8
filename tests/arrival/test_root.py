"""13 to 18: what happens to the watched folder itself."""

import shutil

import pytest

from daemon.intake.watcher import kernel_watches
from tests.daemons import wait_for
from tests.incoming import (
    SCANNING,
    Night,
    arrives,
    by_events_and_by_scans,
    frame,
    in_own_mounts,
    mount,
    unmount,
)


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
