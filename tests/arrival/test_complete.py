"""1 to 5: no file is taken before it is complete."""

import dataclasses
import os

import numpy as np

from daemon.intake.intake import file_probe
from tests.daemons import wait_for
from tests.incoming import (
    EXTENSION,
    IMPATIENT,
    TIMING,
    WHOLE,
    Night,
    arrives,
    by_events_and_by_scans,
    frame,
)
from tests.nights import Outcome, config_for, run


def taken_as(inbox, stages, *, watch=True):
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
