"""6 to 8, 21 and 23: files and folders that come, go and come twice."""

import os
import shutil
import time

from daemon.intake import intake as module
from daemon.intake.watcher import kernel_watches
from daemon.simulator.writer import write_frame
from tests.daemons import wait_for
from tests.incoming import WHOLE, Night, appear, arrives, frame
from tests.nights import Outcome, config_for, run


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
