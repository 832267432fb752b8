"""The queue and the record: each promise of the ledger, on a real database."""

import dataclasses
import datetime as dt
import os
import sqlite3
from pathlib import Path

import pytest

from calib_library import schema
from calib_library.frame import CalibrationKey, FrameRecord, FrameType
from daemon.ledger.known import KnownFiles
from daemon.ledger.ledger import FRESH, Identity, Ledger
from daemon.ledger.states import State

NOW = dt.datetime(2026, 11, 21, 2, 0, tzinfo=dt.UTC)
KEY = CalibrationKey("Cam", 100, 80, 1, 1, 100.0, 50.0, None, None, "uint16", None)
RECORD = FrameRecord(
    frame_type=FrameType.LIGHT,
    key=KEY,
    planes=1,
    exposure_s=60.0,
    temperature_c=-10.0,
    set_temperature_c=-10.0,
    filter="R",
    filter_name="Red",
    row_order="TOP-DOWN",
    e_per_adu=None,
    saturation_adu=None,
    pixel_size_um=None,
    focal_length_mm=None,
    telescope=None,
    object_name="M42",
    ra_deg=None,
    dec_deg=None,
    rotator_deg=None,
    pier_side=None,
    date_obs=NOW,
    program=None,
    stack_count=1,
    is_master=False,
    calibrated="",
    sources={"frame_type": "IMAGETYP"},
)


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "test.db"
    db = schema.connect(path)
    schema.apply(db)
    Ledger.prepare(db)
    db.close()
    return path


@pytest.fixture
def ledger(database):
    db = schema.connect(database)
    yield Ledger(db)
    db.close()


def add(ledger, name, *, kind=FrameType.LIGHT, age_h=1.0, minute=0, size=100):
    moment = NOW - dt.timedelta(hours=age_h)
    record = dataclasses.replace(
        RECORD, frame_type=kind, date_obs=NOW + dt.timedelta(minutes=minute)
    )
    return ledger.add(
        path=Path("/in") / name,
        root=Path("/in"),
        size=size,
        mtime_ns=int(moment.timestamp() * 1e9),
        identity=Identity(record, "M42", "2026-11-20"),
        now=NOW,
    )


def test_one_version_of_a_file_is_recorded_once(ledger):
    assert add(ledger, "a.fits") is not None
    assert add(ledger, "a.fits") is None
    assert add(ledger, "a.fits", size=101) is not None


def test_tonight_before_the_backlog_calibration_before_lights_then_as_exposed(ledger):
    old = FRESH.total_seconds() / 3600 + 1
    add(ledger, "old_dark.fits", kind=FrameType.DARK, age_h=old, minute=-48 * 60)
    add(ledger, "light_2.fits", minute=2)
    add(ledger, "light_1.fits", minute=1)
    add(ledger, "dark.fits", kind=FrameType.DARK, minute=9)
    names = []
    while (frame := ledger.claim(NOW)) is not None:
        names.append(frame.name)
    assert names == ["dark.fits", "light_1.fits", "light_2.fits", "old_dark.fits"]


def test_a_claim_counts_the_attempt_before_the_work(ledger, database):
    add(ledger, "a.fits")
    assert ledger.claim(NOW).attempts == 1
    other = Ledger(schema.connect(database))
    assert other.get(1).attempts == 1
    assert other.claim(NOW) is None
    assert other.release_claims() == 1
    assert other.claim(NOW).attempts == 2
    other.db.close()


def test_deferred_frames_come_back_in_time(ledger):
    add(ledger, "a.fits")
    frame = ledger.claim(NOW)
    ledger.defer(frame, reason="busy", until=NOW + dt.timedelta(seconds=30))
    assert ledger.claim(NOW) is None
    assert ledger.claim(NOW + dt.timedelta(seconds=31)).name == "a.fits"


def test_what_was_exposed_tonight_goes_before_what_was_copied_today(ledger):
    """An archive copied without its times looks new by its files alone."""
    add(ledger, "copied_dark.fits", kind=FrameType.DARK, minute=-60 * 24 * 300)
    add(ledger, "copied.fits", minute=-60 * 24 * 300)
    assert ledger.claim(NOW, tonight=True) is None
    add(ledger, "tonight.fits", minute=1)
    names = [ledger.claim(NOW, tonight=True).name]
    assert ledger.claim(NOW, tonight=True) is None
    while (frame := ledger.claim(NOW)) is not None:
        names.append(frame.name)
    assert names == ["tonight.fits", "copied_dark.fits", "copied.fits"]


def test_a_night_is_never_parted_in_the_queue(ledger):
    """Whenever a night is worked off, its last frames do not go before its first ones."""
    dusk = dt.datetime(2026, 11, 20, 18, 0).astimezone()  # by the local clock
    first = (dusk - NOW).total_seconds() / 60
    for hour in range(13):
        add(ledger, f"{hour}.fits", minute=first + 60 * hour)
    taken = []
    for later in range(60):
        now = dusk + dt.timedelta(hours=later)
        taken.append(len(ledger._next(now, tonight=True, most=20)))
    assert set(taken) == {0, 13}
    assert taken[:24] == [13] * 24  # until the evening after
    assert taken[-1] == 0


def test_the_next_frame_is_not_searched_for(ledger):
    """However long the queue is: every search goes by an index, and only few rows are sorted."""
    plans = []
    ledger.db.conn.set_trace_callback(plans.append)
    add(ledger, "a.fits", age_h=100, minute=-60 * 24 * 300)
    assert ledger.claim(NOW).name == "a.fits"
    ledger.db.conn.set_trace_callback(None)
    searches = [query for query in plans if "INDEXED BY" in query]
    assert len(searches) == 3
    for query in searches:
        steps = [row[3] for row in ledger.db.conn.execute(f"EXPLAIN QUERY PLAN {query}")]
        assert "USING INDEX frame_queue" in steps[0], steps
        assert ("TEMP B-TREE" in str(steps)) == ("frame_queue_" in steps[0]), steps


def test_an_attempt_that_was_not_the_frames_fault_does_not_count(ledger):
    add(ledger, "a.fits")
    for _ in range(10):
        frame = ledger.claim(NOW)
        assert frame.attempts == 1
        ledger.defer(frame, reason="busy", until=NOW, counted=False)
    ledger.defer(ledger.claim(NOW), reason="fault", until=NOW)
    assert ledger.claim(NOW).attempts == 2


def test_an_incomplete_file_is_known_only_once_it_is_whole(ledger, database):
    version = (Path("/in/a.fits"), Path("/in"), 100, 5)
    known = KnownFiles(database)
    asked = (version[0], version[2], version[3])
    reason = "has no END"
    number = ledger.add_unusable(*version, reason=reason, now=NOW, final=False)
    assert number is not None
    assert ledger.add_unusable(*version, reason=reason, now=NOW, final=False) is None  # said once
    assert not known(*asked)
    assert ledger.claim(NOW) is None
    assert ledger.add(*version, identity=None, now=NOW) == number
    assert known(*asked)
    assert ledger.add(*version, identity=None, now=NOW) is None
    frame = ledger.claim(NOW)
    assert (frame.id, frame.reason) == (number, None)
    ledger.finish(frame, State.REJECTED, now=NOW, reason="cloud")
    assert ledger.add(*version, identity=None, now=NOW) is None
    assert known(*asked)


def test_the_database_refuses_to_count_twice(ledger):
    add(ledger, "a.fits")
    add(ledger, "b.fits")
    first, second = ledger.claim(NOW), ledger.claim(NOW)
    ledger.finish(first, State.STACKED, now=NOW, sha256="x" * 64)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.finish(second, State.STACKED, now=NOW, sha256="x" * 64)
    assert ledger.get(second.id).state is State.NEW


def test_waiting_lights_are_released_by_their_set(ledger):
    for number in range(3):
        add(ledger, f"{number}.fits", minute=number)
    for set_id in (1, 1, 2):
        ledger.finish(ledger.claim(NOW), State.WAITING, now=NOW, waits_for=set_id)
    assert ledger.awaited_sets() == [1, 2]
    assert ledger.release_waiting([1]) == 2
    assert ledger.awaited_sets() == [2]


def test_a_failed_transaction_leaves_nothing(ledger):
    def interrupted():
        with ledger.transaction():
            add(ledger, "a.fits")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert ledger.open_count() == 0


def test_names_that_are_not_text_survive(ledger):
    raw = b"/in/caf\xe9\n\x1b[31m.fits"
    ledger.add(
        path=Path(os.fsdecode(raw)), root=Path("/in"), size=1, mtime_ns=1, identity=None, now=NOW
    )
    frame = ledger.get(1)
    assert os.fsencode(frame.path) == raw
    assert frame.name == r"caf\xe9\x0a\x1b[31m.fits"


def test_known_files_are_seen_from_another_thread(ledger, database):
    add(ledger, "a.fits", size=7)
    frame = ledger.get(1)
    known = KnownFiles(database)
    assert known(frame.path, 7, frame.mtime_ns)
    assert not known(frame.path, 8, frame.mtime_ns)


def test_a_record_comes_back_as_it_went(ledger):
    add(ledger, "a.fits")
    assert ledger.get(1).record == RECORD
