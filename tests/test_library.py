"""The library's database: grouping, due sets, generations, transactions, what a crash leaves."""

import contextlib
import dataclasses
import datetime as dt
import hashlib
import random
import sqlite3
import threading
from pathlib import Path, PurePosixPath

import pytest

from calib_library import match, schema
from calib_library.ageing import ANY_AGE, Ageing
from calib_library.catalogue import agenda, by_hand, candidates, filing, registry
from calib_library.catalogue.records import BuiltMaster, Input
from calib_library.errors import LibraryError
from calib_library.frame import FrameType
from calib_library.library import CalibrationLibrary
from calib_library.schema import transaction
from tests.daemons import PATIENCE_S
from tests.records import KEY, NIGHT, key, record

BIAS, DARK, FLAT, FLAT_DARK, LIGHT = (
    FrameType.BIAS,
    FrameType.DARK,
    FrameType.FLAT,
    FrameType.FLAT_DARK,
    FrameType.LIGHT,
)


@pytest.fixture
def library(tmp_path):
    with CalibrationLibrary.open(tmp_path) as opened:
        yield opened


def at(seconds: float) -> dt.datetime:
    return NIGHT + dt.timedelta(seconds=seconds)


def sha(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def put(library, kind, name, *, now=0.0, session="", **fields) -> int:
    return filing.file_frame(
        library,
        record(kind, **fields),
        sha256=sha(name),
        path=Path(f"/camera/{name}.fits"),
        session=session,
        now=at(now),
    )


def put_many(library, kind, count, *, name="f", **fields) -> int:
    [set_id] = {put(library, kind, f"{name}{n}", **fields) for n in range(count)}
    return set_id


def built(library, set_id, *, generation=None, subtracted=None, without=()) -> BuiltMaster:
    group = library.set(set_id)
    generation = generation or registry.next_generation(library, set_id)
    return BuiltMaster(
        set_id=set_id,
        generation=generation,
        path=PurePosixPath(f"masters/Master_{set_id}_v{generation}.fits"),
        sha256=sha((set_id, generation)),
        exposure_s=group.exposure_s,
        temperature_c=group.temperature_c,
        date_obs=NIGHT,
        inputs=tuple(
            Input(frame.sha256, "cloud" if frame.sha256 in without else None)
            for frame in library.frames_of(set_id)
        ),
        subtracted=subtracted,
        version="test",
        notes=("One ä note.",),
    )


def due(library, *, now=1e6, min_frames=5, quiet_s=60.0) -> list[int]:
    return [g.id for g in agenda.due_sets(library, at(now), min_frames=min_frames, quiet_s=quiet_s)]


# --- sets ----------------------------------------------------------------------------------------


def test_like_frames_are_one_set_and_the_record_comes_back(library):
    frame = record(DARK, temperature_c=-10.2, rotator_deg=3.0, date_obs=None)
    first = filing.file_frame(
        library, frame, sha256=sha(1), path=Path("/a/1.fits"), session="2026-11-20", now=at(5)
    )
    assert put(library, DARK, 2, exposure_s=301.0, temperature_c=-9.8, now=7) == first
    [group] = library.sets()
    assert (group.id, group.n_frames, group.frame_type) == (first, 2, DARK)
    assert group.temperature_c == pytest.approx(-10.0)
    assert group.last_filed_at == at(7)
    assert (group.key, group.session, group.rotator_deg) == (KEY, "", None)
    stored = library.frame(sha(1))
    assert stored.record == frame
    assert (stored.path, stored.filed_at) == (Path("/a/1.fits"), at(5))


@pytest.mark.parametrize(
    ("kind", "one", "other", "together"),
    [
        (DARK, {}, {"exposure_s": 303.0}, True),
        (DARK, {}, {"exposure_s": 304.0}, False),
        (DARK, {}, {"temperature_c": -11.0}, True),
        (DARK, {}, {"temperature_c": -11.1}, False),
        (FLAT_DARK, {}, {"temperature_c": -11.1}, False),
        (DARK, {}, {"temperature_c": None}, False),
        (DARK, {"temperature_c": None}, {"temperature_c": None}, True),
        (DARK, {"temperature_c": None}, {"temperature_c": 0.0}, False),
        (DARK, {}, {"key": key(gain=0.0)}, False),
        (DARK, {"key": key(gain=None)}, {"key": key(gain=None)}, True),
        (DARK, {"key": key(gain=None)}, {"key": key(gain=0.0)}, False),
        (DARK, {"key": key(gain=100)}, {}, True),
        (DARK, {}, {"row_order": "BOTTOM-UP"}, False),
        (DARK, {}, {"filter": "H", "session": "x", "rotator_deg": 90.0}, True),
        (BIAS, {"exposure_s": 0.0}, {"exposure_s": 0.001}, True),
        (BIAS, {"exposure_s": 0.0}, {"exposure_s": 0.0, "temperature_c": -5.0}, True),
        (BIAS, {"exposure_s": 0.0}, {"exposure_s": 0.0, "temperature_c": -4.9}, False),
        (FLAT, {}, {"temperature_c": 25.0}, True),
        (FLAT, {}, {"temperature_c": None}, True),
        (FLAT, {"filter": "H"}, {"filter": "O"}, False),
        (FLAT, {"filter": "H"}, {"filter": None}, False),
        (FLAT, {"session": "a"}, {"session": "b"}, False),
        (FLAT, {"rotator_deg": 359.0}, {"rotator_deg": 1.0}, True),
        (FLAT, {"rotator_deg": 359.0}, {"rotator_deg": 1.5}, False),
        (FLAT, {"rotator_deg": 0.0}, {"rotator_deg": None}, False),
        (FLAT, {"telescope": "A"}, {"telescope": "a"}, True),
        (FLAT, {"telescope": "A"}, {"telescope": "B"}, False),
    ],
)
def test_grouping(library, kind, one, other, together):
    assert (put(library, kind, 1, **one) == put(library, kind, 2, **other)) is together
    assert (put(library, kind, 3, **one) == put(library, kind, 1)) is True


def test_kinds_never_share_a_set(library):
    kinds = (BIAS, DARK, FLAT, FLAT_DARK)
    assert len({put(library, kind, kind) for kind in kinds}) == 4


def test_a_frame_between_two_sets_joins_the_nearer(library):
    warm = put(library, DARK, "w", temperature_c=-9.0)
    cold = put(library, DARK, "c", temperature_c=-10.5)
    assert warm != cold
    assert put(library, DARK, "x", temperature_c=-9.7) == warm
    assert put(library, DARK, "y", temperature_c=-10.0) == cold  # means are −9.35 and −10.5


def test_the_grouping_tolerance_is_the_users(tmp_path):
    with CalibrationLibrary.open(tmp_path, temperature_tolerance_c=0.2) as library:
        assert put(library, DARK, 1, temperature_c=-10.0) != put(
            library, DARK, 2, temperature_c=-10.3
        )


def test_filing_the_same_bytes_again_changes_nothing(library):
    first = put(library, DARK, 1, now=0)
    before = library.sets()
    assert put(library, DARK, 1, now=500, exposure_s=1.0) == first
    assert library.sets() == before


def test_the_path_is_renewed_only_where_the_old_one_is_gone(library, tmp_path):
    old, new, other = (tmp_path / name for name in ("old.fits", "new.fits", "other.fits"))
    old.touch()
    for path, known in ((old, old), (new, old)):
        filing.file_frame(library, record(DARK), sha256=sha(1), path=path, session="", now=at(0))
        assert library.frame(sha(1)).path == known
    old.unlink()
    filing.file_frame(library, record(DARK), sha256=sha(1), path=other, session="", now=at(0))
    assert library.frame(sha(1)).path == other


def test_a_path_that_is_no_text_survives(library):
    path = Path(b"/camera/dark_\xff\xfe.fits".decode("utf-8", "surrogateescape"))
    filing.file_frame(library, record(DARK), sha256=sha(1), path=path, session="", now=at(0))
    assert library.frame(sha(1)).path == path


@pytest.mark.parametrize(
    "fields",
    [
        {"frame_type": LIGHT},
        {"frame_type": None},
        {"is_master": True},
        {"stack_count": 20},
        {"calibrated": "BD"},
        {"planes": 3},
    ],
)
def test_only_raw_calibration_frames_are_filed(library, fields):
    frame = dataclasses.replace(record(DARK), **fields)
    with pytest.raises(LibraryError, match=r"^x\.fits cannot be filed: it "):
        filing.file_frame(
            library, frame, sha256=sha(1), path=Path("/c/x.fits"), session="", now=at(0)
        )
    assert library.sets() == []


def test_the_same_frames_in_the_same_order_make_the_same_sets(tmp_path):
    generator = random.Random(3)
    frames = [
        (n, generator.choice([10.0, 300.0]), round(generator.uniform(-12, -8), 2))
        for n in range(60)
    ]
    found = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with CalibrationLibrary.open(tmp_path / folder) as library:
            found.append(
                [put(library, DARK, n, exposure_s=e, temperature_c=t) for n, e, t in frames]
            )
            assert sum(group.n_frames for group in library.sets()) == 60
    assert found[0] == found[1]


# --- due -----------------------------------------------------------------------------------------


def test_a_set_is_due_when_it_is_large_enough_and_quiet(library):
    set_id = put_many(library, DARK, 4, now=0)
    assert due(library) == []
    put(library, DARK, "last", now=100)
    assert due(library, now=159) == []
    assert due(library, now=160) == [set_id]
    assert due(library, now=160, min_frames=6) == []


def test_pedestals_are_built_before_flats(library):
    flat = put_many(library, FLAT, 5, name="f")
    dark = put_many(library, DARK, 5, name="d")
    flat_dark = put_many(library, FLAT_DARK, 5, name="fd")
    bias = put_many(library, BIAS, 5, name="b")
    assert due(library) == [bias, flat_dark, dark, flat]


def test_a_built_set_is_due_again_only_when_its_frames_change(library):
    set_id = put_many(library, DARK, 6)
    registry.register(library, built(library, set_id), at(50))
    assert due(library) == []
    put(library, DARK, "f0")
    assert due(library) == []
    put(library, DARK, "new", now=60)
    assert due(library) == [set_id]
    registry.register(library, built(library, set_id, without={sha("new")}), at(70))
    assert due(library) == []  # it was looked at, and left out


def test_a_frame_filed_during_a_build_leaves_the_set_due(library):
    set_id = put_many(library, DARK, 5)
    made = built(library, set_id)
    put(library, DARK, "late")
    registry.register(library, made, at(50))
    assert due(library) == [set_id]


def test_a_failed_build_rests_until_a_frame_joins(library):
    set_id = put_many(library, DARK, 5)
    agenda.build_failed(library, set_id, "the disk is full")
    assert library.set(set_id).refused == "the disk is full"
    assert due(library) == []
    put(library, DARK, "another")
    assert library.set(set_id).refused is None
    assert due(library) == [set_id]


def test_a_fault_that_may_pass_is_tried_again_after_hours(library):
    set_id = put_many(library, DARK, 5)
    agenda.build_failed(library, set_id, "the share is away", at(1000))
    assert due(library, now=1000 + 5 * 3600) == []
    assert due(library, now=1000 + 7 * 3600) == [set_id]


# --- pending -------------------------------------------------------------------------------------


def pending(library, light, kind=DARK, *, now=0.0, session=None):
    found = agenda.pending(
        library, light, kind, session=session, now=at(now), min_frames=5, quiet_s=60.0
    )
    return found.id if found else None


def test_a_light_waits_for_a_set_that_will_fit_it(library):
    light = record(LIGHT)
    assert pending(library, light) is None
    set_id = put_many(library, DARK, 4)
    assert pending(library, light, now=59) == set_id  # more may follow
    assert pending(library, light, now=61) is None  # nobody is taking darks any more
    put(library, DARK, "fifth")
    assert pending(library, light, now=1e6) == set_id  # it will be built
    for unfit in (
        record(LIGHT, exposure_s=10.0),
        record(LIGHT, temperature_c=-5.0),
        record(LIGHT, key=key(gain=0.0)),
    ):
        assert pending(library, unfit) is None
    agenda.build_failed(library, set_id, "x")
    assert pending(library, light) is None


def test_nothing_is_pending_once_the_master_is_there(library):
    set_id = put_many(library, DARK, 5)
    registry.register(library, built(library, set_id), at(50))
    assert pending(library, record(LIGHT)) is None


def test_a_light_waits_for_the_flats_of_its_filter(library):
    set_id = put_many(library, FLAT, 5, filter="H", session="n")
    assert pending(library, record(LIGHT, filter="H"), FLAT, session="n") == set_id
    assert pending(library, record(LIGHT, filter="O"), FLAT, session="n") is None


# --- masters -------------------------------------------------------------------------------------


def test_a_master_supersedes_its_predecessor(library):
    set_id = put_many(library, DARK, 5)
    first = registry.register(library, built(library, set_id), at(50))
    assert (first.generation, first.frames, first.key, first.row_order) == (1, 5, KEY, "TOP-DOWN")
    assert (first.notes, first.built_at, first.date_obs) == (("One ä note.",), at(50), NIGHT)
    assert (first.frame_type, first.exposure_s, first.temperature_c) == (DARK, 300.0, -10.0)
    put(library, DARK, "new")
    second = registry.register(library, built(library, set_id), at(90))
    assert (second.generation, second.frames) == (2, 6)
    assert library.masters() == [second]
    assert library.set(set_id).master == second
    assert [m.id for m in library.masters(current=False)] == [first.id, second.id]
    assert library.master(first.id).superseded_by == second.id
    assert len(library.inputs_of(first.id)) == 5


def test_the_inputs_of_a_master_tell_what_was_left_out(library):
    set_id = put_many(library, DARK, 6)
    made = registry.register(library, built(library, set_id, without={sha("f3")}), at(50))
    assert made.frames == 5
    reasons = {frame.sha256: reason for frame, reason in library.inputs_of(made.id)}
    assert reasons == {sha(f"f{n}"): "cloud" if n == 3 else None for n in range(6)}


def test_a_build_that_was_overtaken_is_refused(library):
    set_id = put_many(library, DARK, 5)
    stale = built(library, set_id)
    registry.register(library, built(library, set_id), at(50))
    with pytest.raises(LibraryError, match="out of date"):
        registry.register(library, stale, at(60))
    assert len(library.masters(current=False)) == 1


def test_registering_is_part_of_the_callers_transaction(library):
    set_id = put_many(library, DARK, 5)
    with pytest.raises(RuntimeError, match="killed"), transaction(library.db):  # noqa: PT012
        registry.register(library, built(library, set_id), at(50))
        raise RuntimeError("killed")
    assert library.masters(current=False) == []
    assert due(library) == [set_id]


def test_unknown_numbers_are_a_sentence(library):
    with pytest.raises(LibraryError, match="no calibration set 9"):
        library.set(9)
    with pytest.raises(LibraryError, match="no master 9"):
        library.master(9)


def subtracted_from(library, flat):
    """The one master that is subtracted from every frame of a set of flats."""
    frames = library.frames_of(flat)
    chosen = candidates.pedestals(library, library.set(flat), frames)
    assert set(chosen) == {frame.sha256 for frame in frames}
    [master] = {master.id: master for master in chosen.values()}.values()
    return master


def test_flats_without_a_pedestal_are_built_again_when_one_comes(library):
    flat = put_many(library, FLAT, 5, name="f", exposure_s=2.0, filter="H", session="n")
    registry.register(library, built(library, flat), at(1))
    other = put_many(library, FLAT, 5, name="o", exposure_s=2.0, key=key(gain=0.0))
    registry.register(library, built(library, other), at(1))
    assert due(library) == []

    bias = put_many(library, BIAS, 5, name="b", exposure_s=0.0)
    bias_master = registry.register(library, built(library, bias), at(2))
    assert due(library) == [flat]
    assert subtracted_from(library, flat) == bias_master
    registry.register(library, built(library, flat, subtracted=bias_master.id), at(3))
    assert due(library) == []

    # a newer bias is no reason, flat-darks of another exposure are none, the right ones are
    put(library, BIAS, "b9", exposure_s=0.0)
    registry.register(library, built(library, bias), at(4))
    wrong = put_many(library, FLAT_DARK, 5, name="w", exposure_s=9.0)
    registry.register(library, built(library, wrong), at(5))
    assert due(library) == []
    right = put_many(library, FLAT_DARK, 5, name="r", exposure_s=2.0)
    best = registry.register(library, built(library, right), at(6))
    assert due(library) == [flat]
    assert subtracted_from(library, flat) == best


def test_orphans_are_files_that_no_master_speaks_of(library, tmp_path):
    folder = tmp_path / "masters"
    folder.mkdir()
    set_id = put_many(library, DARK, 5)
    made = built(library, set_id)
    (tmp_path / made.path).touch()
    (folder / "MasterDark_orphan_v1.fits").touch()
    (folder / "notes.txt").touch()
    assert (
        registry.orphans(library) == []
    )  # no master known: the database may be the one that is new
    registry.register(library, made, at(50))
    assert registry.orphans(library) == [folder / "MasterDark_orphan_v1.fits"]


# --- candidates ----------------------------------------------------------------------------------


def fill(library, generator, count):
    """Many masters over cameras, gains, exposures, temperatures, filters and nights."""
    for n in range(count):
        kind = generator.choice([BIAS, DARK, DARK, DARK, FLAT_DARK, FLAT, FLAT])
        fields = {
            "key": key(
                gain=generator.choice([100.0, 100.0, 0.0, None]),
                camera=generator.choice([KEY.camera, KEY.camera, "Other", None]),
                width=generator.choice([64, 64, 64, 32]),
            ),
            "exposure_s": generator.choice([0.001, 2.0, 60.0, 300.0, 300.0, None]),
            "temperature_c": generator.choice([None, *map(float, range(-20, 10, 2))]),
            "filter": generator.choice(["H", "O", None]),
            "rotator_deg": generator.choice([None, 0.0, 1.0, 90.0, 359.0]),
            "telescope": generator.choice([None, "FSQ", "Newton"]),
            "date_obs": NIGHT + dt.timedelta(days=generator.randrange(60)),
        }
        session = f"{generator.randrange(20)}"
        set_id = put(library, kind, f"c{n}", session=session, **fields)
        made = dataclasses.replace(
            built(library, set_id),
            date_obs=fields["date_obs"],
            path=PurePosixPath(f"masters/M{n}.fits"),
        )
        registry.register(library, made, at(n))


@pytest.mark.parametrize(
    "ageing", [Ageing(), Ageing(dark_days=20.0, flat_days=5.0), Ageing(only_older=True), ANY_AGE]
)
def test_candidates_lead_to_the_same_choice_as_all_masters(library, ageing):
    library.ageing = ageing
    generator = random.Random(11)
    with transaction(library.db):
        fill(library, generator, 500)
    everything = library.masters()
    chosen = 0
    for _ in range(120):
        light = record(
            generator.choice([LIGHT, LIGHT, FLAT]),
            key=key(gain=generator.choice([100.0, 0.0, None])),
            exposure_s=generator.choice([2.0, 60.0, 300.0, 302.0, 77.0, None]),
            temperature_c=generator.choice([None, round(generator.uniform(-21, 9), 1)]),
            filter=generator.choice(["H", "O", "L", None]),
            rotator_deg=generator.choice([None, 0.5, 90.0]),
            telescope=generator.choice([None, "fsq"]),
            date_obs=NIGHT + dt.timedelta(days=generator.randrange(60)),
        )
        for kind in (BIAS, DARK, FLAT, FLAT_DARK):
            session = generator.choice([None, "3", "7"])
            brute = match.rank(
                light,
                everything,
                kind=kind,
                temperature_tolerance_c=1.0,
                session=session,
                ageing=library.ageing,
            )
            found = candidates.best(library, light, kind, session=session)
            assert found.chosen == brute.chosen
            assert len(found.candidates) <= 3 * 70
            assert bool(found.candidates) == bool(brute.candidates)
            chosen += found.chosen is not None
    assert chosen > 60  # the comparison was about something


def test_near_misses_of_every_sort_are_shown(library):
    misses = {
        "exposure": {"exposure_s": 60.0},
        "temperature": {"temperature_c": 5.0},
        "gain": {"key": key(gain=0.0)},
        "camera": {"key": key(camera="Other")},
        "size": {"key": key(width=32)},
    }
    names = {}
    for what, fields in misses.items():
        set_id = put(library, DARK, what, **fields)
        names[registry.register(library, built(library, set_id), at(1)).id] = what
    found = candidates.best(library, record(LIGHT), DARK, session=None)
    assert found.chosen is None
    assert {names[candidate.master_id] for candidate in found.candidates} == set(misses)


def test_no_query_of_the_candidates_reads_the_whole_table(library):
    plans = []
    library.db.conn.set_trace_callback(plans.append)
    candidates.near(library, record(LIGHT, filter="H"), DARK)
    candidates.near(library, record(LIGHT, filter="H"), FLAT)
    candidates.near(library, record(FLAT, filter="H"), FLAT_DARK)
    library.db.conn.set_trace_callback(None)
    queries = [sql for sql in plans if "FROM master WHERE" in sql]
    assert len(queries) >= 20
    for sql in queries:
        steps = library.db.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()
        assert not [step for step in steps if step[3].startswith("SCAN")], sql


# --- the database --------------------------------------------------------------------------------


def test_a_constraint_refuses_an_unknown_kind_and_a_missing_set(library):
    set_id = put(library, DARK, 1)
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        library.db.execute("UPDATE calibration_set SET frame_type = 'light'")
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        library.db.execute("UPDATE calibration_frame SET set_id = ?", [set_id + 1])
    with pytest.raises(sqlite3.IntegrityError, match="cannot store"):
        library.db.execute("UPDATE calibration_set SET exposure_s = 'long'")


def test_nan_is_missing(library):
    frame = record(DARK)
    set_id = put(library, DARK, 1)
    made = dataclasses.replace(built(library, set_id), temperature_c=float("nan"))
    assert registry.register(library, made, at(1)).temperature_c is None
    assert frame.temperature_c is not None


def test_a_transaction_is_all_or_nothing_and_nests(library):
    with transaction(library.db):
        put(library, DARK, "kept")
        with pytest.raises(RuntimeError), transaction(library.db):  # noqa: PT012
            put(library, DARK, "undone")
            raise RuntimeError
        assert library.frame(sha("undone")) is None
    assert library.frame(sha("kept"))
    assert not library.db.conn.in_transaction


def test_two_writers_wait_for_each_other(tmp_path):
    """A deferred transaction would fail at once with BUSY when it turns to writing."""
    with CalibrationLibrary.open(tmp_path) as first:
        put(first, DARK, "first")
        inside = threading.Event()
        problems = []

        def write():
            try:
                with CalibrationLibrary.open(tmp_path) as second:
                    inside.set()
                    with transaction(second.db):
                        assert second.frame(sha("held"))  # sees what the first committed
                        put(second, DARK, "second")
            except (sqlite3.Error, AssertionError, LibraryError) as error:
                problems.append(error)

        thread = threading.Thread(target=write)
        with transaction(first.db):
            put(first, DARK, "held")
            thread.start()
            assert inside.wait(PATIENCE_S)
        thread.join(PATIENCE_S)
        assert not problems
        assert first.frame(sha("second"))


def test_a_reader_sees_the_library_and_cannot_write(tmp_path):
    with CalibrationLibrary.open(tmp_path) as library:
        put(library, DARK, 1)
        with CalibrationLibrary.open(tmp_path, readonly=True) as reader:
            with transaction(library.db):
                put(library, DARK, 2)
                assert reader.frame(sha(2)) is None
            assert reader.frame(sha(2))
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                put(reader, DARK, 3)


def test_what_is_no_library_is_a_sentence(tmp_path):
    with pytest.raises(LibraryError, match="no such file"):
        CalibrationLibrary.open(tmp_path, readonly=True)
    (tmp_path / schema.DATABASE_NAME).write_bytes(b"not a database, but long enough" * 100)
    with pytest.raises(LibraryError, match="cannot be opened"):
        CalibrationLibrary.open(tmp_path)
    (tmp_path / schema.DATABASE_NAME).unlink()
    schema.connect(tmp_path / schema.DATABASE_NAME).close()
    with pytest.raises(LibraryError, match="not made by this version"):
        CalibrationLibrary.open(tmp_path, readonly=True)


def test_opening_again_migrates_nothing_and_keeps_everything(tmp_path):
    for n in range(2):
        with CalibrationLibrary.open(tmp_path) as library:
            put(library, DARK, n)
            assert not schema.MIGRATIONS.pending(library.db)
            settings = [
                library.db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
            assert settings == ["wal", 2, 1]
            assert all(table.strict for table in library.db.tables if "calib" in table.name)
    with CalibrationLibrary.open(tmp_path, readonly=True) as library:
        assert library.sets()[0].n_frames == 2


def test_a_backup_is_whole_and_the_oldest_go(library, tmp_path):
    put(library, DARK, 1)
    folder = tmp_path / "backup"
    copies = [schema.backup(library.db, folder, keep=2, now=at(86400.0 * day)) for day in range(3)]
    assert sorted(folder.iterdir()) == copies[1:]
    with contextlib.closing(sqlite3.connect(copies[-1])) as copy:
        assert copy.execute("SELECT sha256 FROM calibration_frame").fetchall() == [(sha(1),)]


def test_no_question_of_a_night_reads_a_whole_table(library):
    """What is asked for every frame: filing, matching, waiting, choices by hand. In a library of
    200,000 frames a scan would cost seconds.
    """
    set_id = put_many(library, DARK, 5)
    registry.register(library, built(library, set_id), at(1))
    statements = []
    library.db.conn.set_trace_callback(statements.append)
    put(library, DARK, "one more")
    library.frame(sha("one more"))
    for kind in (BIAS, DARK, FLAT):
        candidates.best(library, record(LIGHT, filter="H"), kind, session="n")
        agenda.pending(
            library, record(LIGHT), kind, session="n", now=at(2), min_frames=5, quiet_s=60.0
        )
    by_hand.chosen(library, target="M 31", sha256=sha(1))
    by_hand.for_single_frames(library)
    library.db.conn.set_trace_callback(None)
    tables = ("calibration_set", "calibration_frame", "master")
    asked = {sql for sql in statements if any(table in sql for table in tables)}
    asked = {sql for sql in asked if "sqlite_master" not in sql and "pragma" not in sql.lower()}
    assert len(asked) >= 30
    for sql in asked:
        for *_, step in library.db.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall():
            # A list of kinds of frame is no table; a row without a table is no reading.
            assert not step.startswith("SCAN") or "json_each" in step or "CONSTANT" in step, sql
