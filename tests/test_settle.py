"""Completeness, with a clock and a file that the test holds in its hands."""

import errno
import itertools
import os
import stat as st
from pathlib import Path

import pytest

from daemon.intake.settle import (
    BACKOFF_LIMIT_S,
    Blocked,
    Complete,
    Incomplete,
    Refused,
    Settled,
    Settler,
    Unusable,
    Vanished,
)

PATH = Path("/inbox/light.fits")
SETTLE_S, GRACE_S = 2.0, 60.0


def stat_of(size=100, mtime_ns=1, inode=7, mode=st.S_IFREG | 0o644):
    fields = (mode, inode, 1, 1, 0, 0, size, 0, 0, 0)
    return os.stat_result(fields, {"st_mtime_ns": mtime_ns, "st_ctime_ns": mtime_ns})


class World:
    """One file as it is now, and what a probe would say of it."""

    def __init__(self, grace_s=GRACE_S):
        self.stat = stat_of()
        self.verdict = Complete()
        self.error = None
        self.probes = 0
        self.on_probe = None
        self.settler = Settler(self.probe, settle_s=SETTLE_S, grace_s=grace_s, stat=self.look)

    def look(self, path):
        if self.stat is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return self.stat

    def probe(self, _path):
        self.probes += 1
        if self.on_probe:
            self.on_probe()
        if self.error:
            raise self.error
        return self.verdict

    def run(self, start, end, step=0.5, hints=()):
        """Outcomes (time, outcome) of all looks from start to end; `hints`: times of an event."""
        said = []
        for n in range(round((end - start) / step) + 1):
            now = start + n * step
            if now in hints and self.stat is not None:
                self.settler.note(PATH, self.stat, now)
            for path in self.settler.due(now):
                outcome = self.settler.examine(path, now)
                if outcome is not None:
                    said.append((now, outcome))
        return said


@pytest.fixture
def world():
    return World()


def test_a_file_that_stands_still_settles_once_after_the_settle_time(world):
    world.settler.note(PATH, world.stat, 0.0)
    assert world.run(0.0, 1.9, step=0.1) == []
    assert world.probes == 0  # not even opened before
    assert world.run(2.0, 30.0) == [(2.0, Settled(world.stat))]
    assert len(world.settler) == 0
    assert world.probes == 1


@pytest.mark.parametrize("changed", [{"size": 101}, {"mtime_ns": 2}, {"inode": 8}])
def test_a_change_of_size_mtime_or_inode_starts_afresh(world, changed):
    world.settler.note(PATH, world.stat, 0.0)
    world.run(0.0, 1.5)
    world.stat = stat_of(**changed)
    # The change is seen when the file is looked at, at 2 s; it has to stand still from then on.
    assert world.run(2.0, 10.0) == [(4.0, Settled(world.stat))]


def test_the_same_hint_again_does_not_prolong_the_wait(world):
    assert world.run(0.0, 10.0, hints=(0.0, 0.5, 1.0, 1.5)) == [(2.0, Settled(world.stat))]


def test_a_writer_that_pauses_longer_than_the_settle_time_is_waited_for(world):
    """Scenarios 1 to 5: quiet for a while, but the probe knows that something is missing."""
    world.verdict = Incomplete("END is missing")
    world.settler.note(PATH, world.stat, 0.0)
    assert world.run(0.0, 30.0) == []
    world.stat, world.verdict = stat_of(size=5760, mtime_ns=2), Complete()
    assert world.run(30.5, 60.0) == [(34.0, Settled(world.stat))]


def test_a_file_that_changes_while_it_is_probed_is_not_taken(world):
    world.on_probe = lambda: setattr(world, "stat", stat_of(size=200 + world.probes))
    world.settler.note(PATH, world.stat, 0.0)
    assert world.run(0.0, 20.0) == []
    world.on_probe = None
    assert [o for _, o in world.run(20.5, 40.0)] == [Settled(world.stat)]


def test_incomplete_beyond_the_grace_time_is_reported_once_and_still_watched(world):
    world.verdict = Incomplete("the header has no END")
    world.settler.note(PATH, world.stat, 0.0)
    said = world.run(0.0, 5000.0)
    assert [t for t, _ in said] == [60.0]
    refused = said[0][1]
    assert refused == Refused(
        "not complete after 60 s: the header has no END; "
        "looked at again, at least every 10 minutes",
        world.stat,
        final=False,
    )
    assert world.settler.pending == 0  # it holds nothing up
    assert PATH in world.settler
    # It becomes whole without any change that stat shows: found within the longest backoff.
    world.verdict = Complete()
    said = world.run(5000.5, 5000.5 + BACKOFF_LIMIT_S)
    assert [o for _, o in said] == [Settled(world.stat)]


def test_a_change_after_the_report_starts_afresh_and_may_be_reported_again(world):
    world.verdict = Incomplete("cut short")
    world.settler.note(PATH, world.stat, 0.0)
    world.run(0.0, 100.0)
    world.stat = stat_of(size=300)
    world.settler.note(PATH, world.stat, 100.5)
    assert world.settler.pending
    said = world.run(100.5, 400.0)
    assert [(t, type(o)) for t, o in said] == [(160.5, Refused)]


def test_the_backoff_grows_to_ten_minutes_and_no_further(world):
    world.verdict = Incomplete("cut short")
    world.settler.note(PATH, world.stat, 0.0)
    world.run(0.0, 60.0)
    looks = []
    for now in range(61, 8000):
        for path in world.settler.due(float(now)):
            looks.append(now)
            world.settler.examine(path, float(now))
    gaps = [b - a for a, b in itertools.pairwise(looks)]
    assert gaps == sorted(gaps)
    assert max(gaps) == BACKOFF_LIMIT_S
    assert len(looks) < 25


def test_an_unusable_file_is_refused_for_good_without_a_grace_time(world):
    world.verdict = Unusable("is not a FITS file")
    world.settler.note(PATH, world.stat, 0.0)
    assert world.run(0.0, 100.0) == [(2.0, Refused("is not a FITS file", world.stat, final=True))]
    assert PATH not in world.settler


def test_a_tolerable_lack_delays_but_does_not_refuse(world):
    world.verdict = Incomplete("no keywords yet", tolerable=True)
    world.settler.note(PATH, world.stat, 0.0)
    assert world.run(0.0, 100.0) == [(60.0, Settled(world.stat))]


def test_a_file_of_an_old_archive_is_taken_at_first_sight(world):
    world.settler.note(PATH, world.stat, 1000.0, quiet_s=86_400.0)
    assert world.run(1000.0, 1010.0) == [(1000.0, Settled(world.stat))]


def test_an_old_file_that_is_cut_short_is_reported_at_first_sight(world):
    world.verdict = Incomplete("cut short")
    world.settler.note(PATH, world.stat, 1000.0, quiet_s=86_400.0)
    assert [(t, type(o)) for t, o in world.run(1000.0, 1050.0)] == [(1000.0, Refused)]


def test_a_vanished_file_is_said_once_and_forgotten(world):
    world.settler.note(PATH, world.stat, 0.0)
    world.stat = None
    assert world.run(0.0, 20.0) == [(2.0, Vanished())]
    assert len(world.settler) == 0


def test_a_file_that_vanishes_between_stat_and_open_is_forgotten(world):
    world.error = FileNotFoundError(errno.ENOENT, "No such file or directory")
    world.settler.note(PATH, world.stat, 0.0)
    assert world.run(0.0, 20.0) == [(2.0, Vanished())]


def test_permission_denied_is_said_at_once_and_tried_until_it_is_granted(world):
    world.error = PermissionError(errno.EACCES, "Permission denied")
    world.settler.note(PATH, world.stat, 0.0)
    said = world.run(0.0, 300.0)
    assert [(t, type(o)) for t, o in said] == [(2.0, Blocked)]
    assert "read access" in said[0][1].reason
    assert world.settler.pending == 0
    world.error = None
    assert [o for _, o in world.run(300.5, 1000.0)] == [Settled(world.stat)]


def test_a_device_that_is_busy_for_a_moment_is_nobodys_concern(world):
    world.error = OSError(errno.EBUSY, "Device or resource busy")
    world.settler.note(PATH, world.stat, 0.0)
    assert world.run(0.0, 30.0) == []
    world.error = None
    assert [o for _, o in world.run(30.5, 40.0)] == [Settled(world.stat)]


def test_a_fault_that_lasts_is_reported_once(world):
    world.error = OSError(errno.EIO, "Input/output error")
    world.settler.note(PATH, world.stat, 0.0)
    said = world.run(0.0, 3000.0)
    assert [(t, type(o)) for t, o in said] == [(60.0, Blocked)]
    assert "Input/output error" in said[0][1].reason


def test_what_is_no_regular_file_is_dropped_unopened(world):
    world.stat = stat_of(mode=st.S_IFIFO | 0o644)
    world.settler.note(PATH, world.stat, 0.0)
    assert world.run(0.0, 20.0) == []
    assert world.probes == 0
    assert len(world.settler) == 0


def test_the_newest_file_goes_first_and_the_limit_holds_the_rest_back():
    settler = Settler(lambda _: Complete(), settle_s=2.0, grace_s=60.0, stat=lambda _: stat_of())
    ages = [5, 3, 9, 1, 7]
    for age in ages:
        settler.note(Path(f"/inbox/{age}.fits"), stat_of(mtime_ns=1000 - age), 0.0)
    first = settler.due(2.0, 2)
    settler.note(Path("/inbox/0.fits"), stat_of(mtime_ns=2000), 2.0, quiet_s=100.0)
    then = settler.due(2.0, 2)
    assert [p.stem for p in first + then] == ["1", "3", "0", "5"]
    assert [p.stem for p in settler.due(2.0)] == ["7", "9"]


def test_next_due_tells_when_to_wake(world):
    assert world.settler.next_due() is None
    world.settler.note(PATH, world.stat, 10.0)
    assert world.settler.next_due() == 12.0
    world.settler.note(PATH, stat_of(size=7), 11.0)
    assert world.settler.next_due() == 13.0
    world.settler.gone(PATH)
    assert world.settler.next_due() is None
