"""Bad files: each gets one clear line that names it, and the good frames are worked on."""

from contextlib import closing

import numpy as np
import pytest
from astropy.io import fits

from calib_library import schema
from daemon.calibration import Calibrator
from daemon.errors import FrameRejectedError
from daemon.pipeline import Pipeline
from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import fits_bytes
from tests.nights import Outcome, config_for, run


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Two good lights among everything that a disk can hold."""
    tmp_path = tmp_path_factory.mktemp("bad")
    folder = tmp_path / "in"
    folder.mkdir()
    plan = small_plan(
        seed=5, shape=(384, 512), bias=0, darks=0, flats=0, flat_darks=0, lights=2, flip=False
    )
    good = list(frames(plan))
    for number, frame in enumerate(good):
        (folder / f"good_{number}.fits").write_bytes(fits_bytes(frame))
    whole = fits_bytes(good[0])
    light = {"IMAGETYP": "LIGHT", "EXPTIME": 60.0, "OBJECT": "X", "INSTRUME": "C"}

    def write(name, pixels, **cards):
        fits.PrimaryHDU(pixels, header=fits.Header(cards)).writeto(folder / name)

    (folder / "empty.fits").touch()
    (folder / "truncated.fits").write_bytes(whole[: len(whole) // 2])
    (folder / "text.fits").write_text("Dear diary, the clouds came at nine.\n" * 200)
    (folder / "absurd.fits").write_bytes(
        whole[:2880].replace(b"NAXIS1  =                  512", b"NAXIS1  = 100000000000000000000")
    )
    write("zeros.fits", np.zeros((100, 120), np.uint16), **light)
    write("planes.fits", np.ones((3, 100, 120), np.uint16), **light)
    write("nan.fits", np.full((100, 120), np.nan, np.float32), **light)
    rng = np.random.default_rng(1)
    write("untyped.fits", rng.normal(8000, 90, (100, 120)).astype(np.uint16), EXPTIME=60.0)
    (folder / "copy_of_good_0.fits").write_bytes(whole)
    run(config_for(tmp_path))
    return Outcome(config_for(tmp_path))


def test_the_good_frames_are_stacked(outcome):
    assert {f.name for f in outcome.frames if f.state == "stacked"} == {
        "good_0.fits",
        "good_1.fits",
    } or {f.name for f in outcome.frames if f.state == "stacked"} == {
        "copy_of_good_0.fits",
        "good_1.fits",
    }


@pytest.mark.parametrize(
    ("name", "state", "says"),
    [
        ("empty", "rejected", "empty"),
        ("truncated", "rejected", "bytes"),
        ("text", "rejected", "FITS"),
        ("absurd", "rejected", ""),
        ("zeros", "rejected", ""),
        ("planes", "rejected", "three planes"),
        ("nan", "rejected", ""),
        ("untyped", "quarantined", "what kind of frame"),
    ],
)
def test_each_bad_file_gets_one_line(outcome, name, state, says):
    frame = outcome.frame(name)
    assert frame.state == state
    assert says in (frame.reason or "")
    lines = [line for line in outcome.log.splitlines() if frame.name in line]
    assert len(lines) == 1, lines


def test_the_same_content_is_counted_once(outcome):
    twins = [f for f in outcome.frames if f.name in ("good_0.fits", "copy_of_good_0.fits")]
    assert sorted(f.state for f in twins) == ["rejected", "stacked"]
    (loser,) = [f for f in twins if f.state == "rejected"]
    assert "the same content as" in loser.reason


@pytest.mark.parametrize("step", [(Pipeline, "_inspect"), (Calibrator, "apply")])
def test_of_a_copy_nothing_else_is_said(tmp_path, monkeypatch, step):
    """Though its pixels are looked at and calibrated before the file is hashed."""
    plan = small_plan(
        seed=6, shape=(384, 512), bias=0, darks=0, flats=0, flat_darks=0, lights=1, flip=False
    )
    (frame,) = frames(plan)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.fits").write_bytes(fits_bytes(frame))
    run(config_for(tmp_path))

    def all_is_wrong(*_args):
        raise FrameRejectedError("all is wrong")

    monkeypatch.setattr(*step, all_is_wrong)
    (folder / "copy.fits").write_bytes(fits_bytes(frame))
    run(config_for(tmp_path))
    outcome = Outcome(config_for(tmp_path))
    assert outcome.frame("good").state == "stacked"
    copy = outcome.frame("copy")
    assert copy.state == "rejected"
    assert copy.reason == f"the same content as good.fits (frame {outcome.frame('good').id})"
    lines = [line for line in outcome.log.splitlines() if "copy.fits" in line]
    assert len(lines) == 1
    assert "all is wrong" not in lines[0]


def test_a_copy_begins_no_stack(tmp_path):
    """In the folder of another target, which is the only one to name it."""
    plan = small_plan(
        seed=6, shape=(384, 512), bias=0, darks=0, flats=0, flat_darks=0, lights=1, flip=False
    )
    (frame,) = frames(plan)
    light = fits.PrimaryHDU.fromstring(fits_bytes(frame))
    del light.header["OBJECT"]
    for target in ("M 31", "M 33"):
        (tmp_path / "in" / target / "LIGHT").mkdir(parents=True)
        light.writeto(tmp_path / "in" / target / "LIGHT" / f"{target}.fits")
        run(config_for(tmp_path))
    outcome = Outcome(config_for(tmp_path))
    assert outcome.frame("M 31").state == "stacked"
    assert "the same content as M 31.fits" in outcome.frame("M 33").reason
    with closing(schema.connect(outcome.root / schema.DATABASE_NAME, readonly=True).conn) as db:
        assert db.execute("SELECT target FROM stack").fetchall() == [("M 31",)]
