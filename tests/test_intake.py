"""The intake as a whole: real files, the real probe, the real kernel."""

import dataclasses
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from daemon.intake import intake as module
from daemon.intake.intake import Arrival, file_probe
from daemon.intake.settle import Complete, Incomplete, Unusable
from tests.daemons import PATIENCE_S, wait_for
from tests.incoming import IMPATIENT, TIMING, WHOLE, Night, appear, frame

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


# --- delivering ----------------------------------------------------------------------------------


def test_delivers_what_was_there_before_and_what_comes_later_once_each(inbox):
    (inbox / "before.fits").write_bytes(frame())
    with Night(inbox) as night:
        wait_for(lambda: night.paths() == [inbox / "before.fits"])
        appear(inbox / "after.fits", frame())
        wait_for(lambda: inbox / "after.fits" in night.paths())
        for _ in range(3):
            night.settled()
            os.utime(inbox)
    assert sorted(night.paths()) == [inbox / "after.fits", inbox / "before.fits"]
    assert len(night.probed) == 2
    stat = (inbox / "after.fits").stat()
    assert night.arrivals[1] == Arrival(
        inbox, inbox / "after.fits", stat.st_size, stat.st_mtime_ns, stat.st_ino
    )
    assert night.intake.failure is None


def test_the_scan_alone_finds_everything_too(inbox):
    (inbox / "a").mkdir()
    (inbox / "a" / "1.fits").write_bytes(frame())
    with Night(inbox, watch=False) as night:
        wait_for(night.intake.idle)
        (inbox / "2.fits").write_bytes(frame())
        night.settled()
    assert night.paths() == [inbox / "a" / "1.fits", inbox / "2.fits"]


def test_a_new_version_under_the_same_name_arrives_again(inbox):
    path = inbox / "light.fits"
    path.write_bytes(frame(value=1))
    with Night(inbox) as night:
        wait_for(lambda: len(night.arrivals) == 1)
        path.write_bytes(frame(ny=40, value=2))
        wait_for(lambda: len(night.arrivals) == 2)
    assert night.arrivals[1].mtime_ns == path.stat().st_mtime_ns > night.arrivals[0].mtime_ns


def test_what_the_ledger_knows_is_not_even_opened(inbox):
    for n in range(20):
        (inbox / f"{n}.fits").write_bytes(frame())
    with Night(inbox) as first:
        wait_for(lambda: len(first.arrivals) == 20)
    second = Night(inbox)
    second.seen_by_ledger = {(a.path, a.size, a.mtime_ns) for a in first.arrivals[:19]}
    with second:
        wait_for(second.intake.idle)
    assert second.paths() == second.probed == [first.arrivals[19].path]


def test_a_file_taken_back_is_delivered_again(inbox):
    (inbox / "a.fits").write_bytes(frame())
    with Night(inbox) as night:
        wait_for(lambda: len(night.arrivals) == 1)
        arrival = night.arrivals[0]
        night.intake.again(arrival.path, arrival.size, arrival.mtime_ns)
        wait_for(lambda: len(night.arrivals) == 2)
    assert night.arrivals[0] == night.arrivals[1]


def test_every_way_to_come_into_a_folder(inbox, tmp_path):
    """Scenarios 4, 6, 7, 8, 16: one delivery each, without any scan after the first."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (inbox / "linked").symlink_to(disk)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "old.fits").write_bytes(frame())
    (tmp_path / "x.fits").write_bytes(frame())
    (tmp_path / "y.fits").write_bytes(frame())
    with Night(inbox) as night:
        wait_for(night.intake.idle)
        os.link(tmp_path / "x.fits", inbox / "hard.fits")
        (inbox / "soft.fits").symlink_to(tmp_path / "y.fits")
        (inbox / "new" / "folder").mkdir(parents=True)
        (inbox / "new" / "folder" / "first.fits").write_bytes(frame())
        (inbox / ".light.fits.Xy1").write_bytes(frame())
        (inbox / ".light.fits.Xy1").rename(inbox / "renamed.fits")
        outside.rename(inbox / "moved")
        (inbox / "moved" / "later.fits").write_bytes(frame())
        (disk / "through.fits").write_bytes(frame())
        with (inbox / "reopened.fits").open("wb") as file:
            file.write(frame()[:2880])
        with (inbox / "reopened.fits").open("ab") as file:
            file.write(frame()[2880:])
        names = {
            *("hard.fits", "soft.fits", "new/folder/first.fits", "renamed.fits"),
            *("moved/old.fits", "moved/later.fits", "linked/through.fits", "reopened.fits"),
        }
        wait_for(lambda: {str(p.relative_to(inbox)) for p in night.paths()} == names)
        (inbox / "moved").rename(inbox / "moved again")
        wait_for(lambda: inbox / "moved again" / "old.fits" in night.paths())
        night.settled()
    assert len(night.arrivals) == len(names) + 2
    assert night.unusables == []


def test_a_name_that_is_not_utf8_arrives_as_it_is(inbox):
    raw = os.fsencode(inbox) + b"/M42_\xe9\xff.fits"
    Path(os.fsdecode(raw)).write_bytes(frame())
    with Night(inbox) as night:
        wait_for(lambda: len(night.arrivals) == 1)
    assert os.fsencode(night.arrivals[0].path) == raw


def test_the_daemons_own_folder_and_temporary_files_are_left_alone(inbox):
    library = inbox / "library"
    library.mkdir()
    with Night(inbox, ignore=[library]) as night:
        wait_for(night.intake.idle)
        (library / "master.fits").write_bytes(frame())
        (inbox / ".part.fits").write_bytes(frame())
        (inbox / "@eaDir").mkdir()
        (inbox / "@eaDir" / "thumb.fits").write_bytes(frame())
        appear(inbox / "real.fits", frame())
        wait_for(lambda: night.paths() != [])
        night.settled()
    assert night.paths() == night.probed == [inbox / "real.fits"]


def test_of_two_roots_each_file_tells_its_own(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for root in (a, b):
        root.mkdir()
        (root / "x.fits").write_bytes(frame())
    with Night(a, b) as night:
        wait_for(lambda: len(night.arrivals) == 2)
    assert {(x.root, x.path) for x in night.arrivals} == {(a, a / "x.fits"), (b, b / "x.fits")}


# --- not before it is complete -------------------------------------------------------------------


def test_a_header_without_keywords_waits_for_them_for_the_grace_time(inbox):
    bare = frame(keywords=())
    (inbox / "cfitsio.fits").write_bytes(bare)
    assert file_probe(inbox / "cfitsio.fits") == Incomplete(
        "its header has no keywords yet", tolerable=True
    )
    with Night(inbox) as night:
        (inbox / "bare.fits").write_bytes(bare)
        wait_for(lambda: night.probed.count(inbox / "bare.fits") > 2)
        assert night.arrivals == []
        night.intake._settlers[inbox]._grace_s = 0.1  # from now on it is over soon
        wait_for(lambda: inbox / "bare.fits" in night.paths())
        wait_for(night.intake.idle)
    assert night.unusables == []


def test_a_file_that_stays_incomplete_is_told_once_and_taken_when_it_is_whole(inbox):
    path = inbox / "cut.fits"
    path.write_bytes(WHOLE[:9000])
    with Night(inbox, timing=IMPATIENT) as night:
        wait_for(lambda: night.unusables)
        wait_for(night.intake.idle)  # nobody waits for it
        night.settled()
        assert len(night.unusables) == 1
        assert night.unusables[0][0] == path
        assert night.unusables[0][1].startswith("not complete after 0.6 s: has 9000 of the")
        assert night.arrivals == []
        with path.open("ab") as file:
            file.write(WHOLE[9000:])
        wait_for(lambda: night.paths() == [path])
    assert len(night.unusables) == 1


def test_what_is_no_image_is_told_once_with_the_reason(inbox):
    path = inbox / "notes.fits"
    path.write_bytes(b"this is a text, not an image" * 200)
    with Night(inbox) as night:
        wait_for(lambda: night.unusables)
        night.settled()
        assert night.probed == [path]
        assert "not a FITS file" in night.unusables[0][1]
        path.write_bytes(frame())
        wait_for(lambda: night.paths() == [path])
    assert len(night.unusables) == 1


def test_verdicts_of_the_probe(tmp_path):
    path = tmp_path / "x.fits"
    path.write_bytes(frame())
    assert file_probe(path) == Complete()
    path.write_bytes(b"")
    assert isinstance(file_probe(path), Incomplete)
    path.write_bytes(b"not an image" * 1000)
    assert isinstance(file_probe(path), Unusable)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        file_probe(path)


def test_a_file_that_cannot_be_opened_is_told_once_and_does_not_hold_up(inbox):
    (inbox / "closed.fits").write_bytes(frame())
    allowed = threading.Event()

    def probe(path):
        if path.name == "closed.fits" and not allowed.is_set():
            raise PermissionError(13, "Permission denied", str(path))
        return file_probe(path)

    with Night(inbox, probe=probe) as night:
        wait_for(lambda: night.said("UNREADABLE"))
        (inbox / "open.fits").write_bytes(frame())
        wait_for(lambda: night.paths() == [inbox / "open.fits"])
        wait_for(night.intake.idle)
        night.settled()
        assert len(night.said("UNREADABLE")) == 1
        assert "closed.fits: permission denied" in night.said("UNREADABLE")[0]
        allowed.set()
        wait_for(lambda: inbox / "closed.fits" in night.paths())


def test_files_that_vanish_are_told_in_one_line_and_forgotten(inbox):
    later_s = [0.0]
    with Night(inbox, settle_s=3600.0, clock=lambda: time.monotonic() + later_s[0]) as night:
        for n in range(30):
            (inbox / f"{n}.fits").write_bytes(frame())
        wait_for(lambda: len(night.intake._settlers[inbox]) == 30)
        for n in range(30):
            (inbox / f"{n}.fits").unlink()
        appear(inbox / "stays.fits", frame())
        wait_for(lambda: len(night.intake._settlers[inbox]) == 31)
        later_s[0] = 4000.0
        wait_for(lambda: night.paths() == [inbox / "stays.fits"])
        wait_for(night.intake.idle)
        wait_for(lambda: night.said("VANISHED"))
    said = night.said("VANISHED")
    assert sum(int(text.split(" and ")[1].split()[0]) + 1 for text in said if " and " in text) == 30
    assert len(said) < 5
    assert all(path.name == "stays.fits" for path in night.probed)


# --- archives ------------------------------------------------------------------------------------


def test_an_old_archive_is_taken_without_waiting_and_tonights_frame_first(inbox):
    for n in range(200):
        (inbox / f"{n:03d}.fits").write_bytes(frame())
    tonight = inbox / "tonight.fits"
    timing = dataclasses.replace(TIMING, quiet_s=60.0)
    now = time.time() + 86_400.0  # a day later: everything there is old

    def probe(path):
        if len(night.probed) == 20:
            tonight.write_bytes(frame())
            os.utime(tonight, (now, now))
            wait_for(lambda: tonight in night.intake._hints)
        time.sleep(0.005)  # a few files take longer than the settle time
        return Complete()

    night = Night(inbox, probe=probe, timing=timing, settle_s=0.01, wall=lambda: now)
    with night:
        wait_for(lambda: len(night.arrivals) == 201)
    assert night.paths().index(tonight) < 100


def test_old_files_need_not_settle_but_fresh_ones_must(inbox):
    (inbox / "a.fits").write_bytes(frame())
    timing = dataclasses.replace(TIMING, quiet_s=3600.0)
    with Night(inbox, timing=timing, settle_s=600.0) as fresh:
        wait_for(lambda: fresh.said("SCAN"))
        assert not fresh.intake.idle()
        assert fresh.probed == []
    soon = time.time() + 1800.0  # older than the settle time, but a clock may be wrong
    with Night(inbox, timing=timing, settle_s=600.0, wall=lambda: soon) as recent:
        wait_for(lambda: recent.said("SCAN"))
        assert not recent.intake.idle()
        assert recent.probed == []
    later = time.time() + 7200.0
    with Night(inbox, timing=timing, settle_s=600.0, wall=lambda: later) as old:
        wait_for(lambda: old.paths() == [inbox / "a.fits"])


def test_a_cut_short_file_of_an_archive_does_not_delay_idleness(inbox):
    (inbox / "cut.fits").write_bytes(WHOLE[:9000])
    later = time.time() + 3600.0
    timing = dataclasses.replace(TIMING, grace_s=60.0, quiet_s=60.0)
    with Night(inbox, timing=timing, watch=False, settle_s=2.0, wall=lambda: later) as night:
        wait_for(night.intake.idle)
    assert len(night.unusables) == 1


# --- the watched folder itself -------------------------------------------------------------------


def test_a_folder_that_does_not_exist_yet_is_said_once_and_waited_for(tmp_path):
    root = tmp_path / "later"
    with Night(root) as night:
        wait_for(night.intake.idle)
        night.turns()
        assert night.said("WATCH") == [f"the watched folder {root} does not exist; waiting for it"]
        root.mkdir()
        (root / "a.fits").write_bytes(frame())
        wait_for(lambda: night.paths() == [root / "a.fits"])
        (root / "b.fits").write_bytes(frame())
        wait_for(lambda: len(night.arrivals) == 2)


def test_a_folder_deleted_and_made_again_is_watched_anew(inbox):
    """Scenario 12."""
    with Night(inbox) as night:
        wait_for(night.intake.idle)
        shutil.rmtree(inbox)
        inbox.mkdir()
        (inbox / "a.fits").write_bytes(frame())
        wait_for(lambda: night.paths() == [inbox / "a.fits"])
        before = len(night.said("SCAN"))
        (inbox / "b.fits").write_bytes(frame())
        wait_for(lambda: len(night.arrivals) == 2)
        assert len(night.said("SCAN")) == before  # by an event, not by a scan
        assert len([t for t in night.said("WATCH") if "anew" in t]) == 1


def test_troubles_of_the_watch_that_take_turns_are_told_once_each(inbox, monkeypatch):
    troubles = ["the watch has died", "it is another folder now"]
    looks = []

    def healthy(now):
        looks.append(now)
        return {inbox: troubles[len(looks) % 2]}

    with Night(inbox) as night:
        wait_for(night.intake.idle)
        monkeypatch.setattr(night.intake._watch, "healthy", healthy)
        wait_for(lambda: len(looks) > 6)
    said = [text.partition(";")[0] for text in night.said("WATCH") if "anew" in text]
    assert sorted(said) == sorted(troubles)


def test_a_hint_at_a_folder_has_it_scanned(inbox):
    """Scenarios 6 and 7: the files in it were there before it was watched."""
    with Night(inbox, watch=False) as night:
        wait_for(night.intake.idle)
        (inbox / "a" / "b").mkdir(parents=True)
        (inbox / "a" / "b" / "x.fits").write_bytes(frame())
        (inbox / "c").mkdir()
        (inbox / "c" / "y.fits").write_bytes(frame())
        night.intake.hint(inbox / "a")
        wait_for(lambda: night.arrivals)
        wait_for(night.intake.idle)
    assert night.paths() == [inbox / "a" / "b" / "x.fits"]


def test_a_new_folder_that_the_watch_leaves_out_is_watched_by_itself(inbox, tmp_path, monkeypatch):
    """Scenario 7, as with watchdog 6: a folder moved in is hinted at but not watched."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "old.fits").write_bytes(frame())
    followed = []
    with Night(inbox) as night:
        wait_for(night.intake.idle)
        watch = night.intake._watch
        monkeypatch.setattr(watch, "unwatched", lambda _root, inodes: len(inodes))
        monkeypatch.setattr(watch, "follow", lambda root, folder: followed.append((root, folder)))
        outside.rename(inbox / "moved")
        wait_for(lambda: followed)
        wait_for(lambda: night.paths() == [inbox / "moved" / "old.fits"])
    assert set(followed) == {(inbox, inbox / "moved")}


def test_hints_beyond_what_is_kept_are_made_good_by_a_scan(inbox, monkeypatch):
    """Scenario 9, on our own side of the kernel's queue."""
    monkeypatch.setattr(module, "_HINTS", 10)
    paths = [inbox / f"{n}.fits" for n in range(30)]
    taken, go_on = [], threading.Event()

    def arrived(arrival):
        taken.append(arrival.path)
        assert go_on.wait(PATIENCE_S)

    (inbox / "first.fits").write_bytes(frame())
    with Night(inbox, watch=False, arrived=arrived) as night:
        wait_for(lambda: taken)  # the thread is busy with the first while the rest comes
        for path in paths:
            path.write_bytes(frame())
            night.intake.hint(path)
        go_on.set()
        wait_for(lambda: len(taken) == 31)
    assert set(taken) == {inbox / "first.fits", *paths}


def test_a_burst_of_files_arrives_whole(inbox):
    with Night(inbox) as night:
        wait_for(night.intake.idle)
        for n in range(300):
            (inbox / f"{n}.fits").write_bytes(frame())
        wait_for(lambda: len(night.arrivals) == 300)
    assert len(set(night.paths())) == 300


def test_folders_that_are_not_watched_are_said_and_scanned_often(inbox, monkeypatch):
    """Scenario 10."""
    (inbox / "beyond").mkdir()
    timing = dataclasses.replace(TIMING, often_s=0.1)
    with Night(inbox, timing=timing) as night:
        wait_for(night.intake.idle)
        monkeypatch.setattr(night.intake._watch, "unwatched", lambda _root, _inodes: 1)
        night.intake._watch._hint = lambda _path: None  # no event comes through any more
        night.intake._watch.rebuild(inbox, 0.0)
        night.settled()
        (inbox / "beyond" / "a.fits").write_bytes(frame())
        wait_for(lambda: night.paths() == [inbox / "beyond" / "a.fits"])
    assert sum("max_user_watches" in text for text in night.said("WATCH")) == 1


# --- the thread ----------------------------------------------------------------------------------


def test_a_failing_callback_ends_the_thread_and_is_kept(inbox):
    def arrived(_arrival):
        raise RuntimeError("the ledger is gone")

    night = Night(inbox, arrived=arrived)
    night.intake.start()
    (inbox / "a.fits").write_bytes(frame())
    wait_for(lambda: not night.intake.is_alive())
    assert str(night.intake.failure) == "the ledger is gone"
    night.intake.stop()


def test_it_shows_life_while_there_is_nothing_to_do(inbox):
    with Night(inbox) as night:
        wait_for(night.intake.idle)
        night.turns()
        assert night.intake.silent_s() < PATIENCE_S


def test_stop_is_prompt_and_leaves_no_thread(inbox):
    before = set(threading.enumerate())
    with Night(inbox):
        pass
    wait_for(lambda: set(threading.enumerate()) <= before)


@pytest.mark.shared
def test_the_real_frames_all_arrive(tmp_path):
    if not SHARED.is_dir():
        pytest.skip("the real frames in ../shared are not here")
    data = SHARED / "data"
    images = {p for p in data.rglob("*") if p.suffix.lower() in {".fit", ".fits", ".fts", ".fz"}}
    timing = dataclasses.replace(TIMING, grace_s=0.5)
    with Night(data, watch=False, timing=timing) as night:
        wait_for(night.intake.idle)
    assert len(images) > 100
    assert set(night.paths()) == images
    assert night.unusables == []
