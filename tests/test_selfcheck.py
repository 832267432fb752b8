"""A night whose calibration is wrong says so: once, in words, with the cause."""

import dataclasses
import datetime as dt
from contextlib import closing

import numpy as np
import pytest

from calib_library import schema
from calib_library.frame import FrameType
from daemon.ledger import conditions
from daemon.ledger.conditions import Finding
from daemon.ledger.ledger import Ledger
from daemon.report import collect
from daemon.simulator.night import frames, small_plan
from daemon.simulator.sky import make_sky
from daemon.simulator.writer import write_frame
from tests.nights import Outcome, config_for, run

LIGHTS = 5
NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
DARK, FLAT, LIGHT = FrameType.DARK, FrameType.FLAT, FrameType.LIGHT


def worked(tmp_path, *, shots=None, pixels=None, nebula_e_s=4.0):
    """A night through the service; `shots` changes a planned shot, `pixels` a taken frame's."""
    plan = small_plan(
        seed=21,
        shape=(384, 512),
        bias=0,
        darks=8,
        flats=8,
        flat_darks=6,
        lights=LIGHTS,
        exposure_s=300.0,
        flip=False,
    )
    sky = make_sky(plan.camera.shape, seed=21, nebula_e_s=nebula_e_s)
    plan = dataclasses.replace(plan, sky=sky)
    if shots:
        plan = dataclasses.replace(plan, shots=tuple(shots(shot) for shot in plan.shots))
    for frame in frames(plan):
        image = frame.pixels if pixels is None else pixels(frame, plan)
        write_frame(tmp_path / "in", dataclasses.replace(frame, pixels=image))
    config = config_for(tmp_path)
    run(config)
    return config, Outcome(config)


def warnings(outcome):
    return [line for line in outcome.log.splitlines() if "  CHECK  " in line]


def lights_only(change):
    return lambda shot: change(shot) if shot.kind is LIGHT else shot


def test_a_nebula_that_fills_the_frame_is_no_fault(tmp_path):
    config, outcome = worked(tmp_path)
    assert warnings(outcome) == []
    assert collect.status(config).problems == []


def test_a_right_calibration_is_silent_and_says_what_it_measured(tmp_path):
    config, outcome = worked(tmp_path, nebula_e_s=0.0)
    assert warnings(outcome) == []
    assert collect.status(config).problems == []
    light = next(f for f in outcome.frames if f.frame_type is LIGHT)
    lines = dict(light.explanation)["Calibration check"]
    told = [line.partition(":")[0].replace(" or nebula", "") for line in lines]
    assert told == [
        "hot pixels",
        "glow left",
        "vignetting left",
        "noise of neighbouring pixels",
        "noise over that of sky and readout, as measured",
    ]
    assert float(lines[-1].rpartition(" ")[2]) == pytest.approx(1.0, abs=0.06)


def test_a_lying_thermometer_is_named_once(tmp_path):
    """4 °C warmer than the header says: 1.5 times the hot pixels, at 0.57 eV."""
    config, outcome = worked(
        tmp_path,
        shots=lights_only(lambda shot: dataclasses.replace(shot, temperature_c=-6.0)),
    )
    found = [line for line in warnings(outcome) if "hot pixels" in line]
    assert len(found) == 1
    assert "4.0 °C warmer" in found[0] or "3.9 °C warmer" in found[0] or "4.1 °C" in found[0]
    assert any("hot pixels" in problem for problem in collect.status(config).problems)


def test_a_failed_cooler_is_named_once(tmp_path):
    _, outcome = worked(
        tmp_path,
        shots=lights_only(lambda s: dataclasses.replace(s, temperature_c=3.0, reading_c=3.0)),
    )
    found = [line for line in warnings(outcome) if "cooler does not hold" in line]
    assert len(found) == 1
    assert "3.0 °C" in found[0]
    assert "-10.0 °C" in found[0]


def test_a_closed_cover_is_no_light(tmp_path):
    _, outcome = worked(
        tmp_path,
        shots=lights_only(lambda s: dataclasses.replace(s, transparency=0.0, sky_e_s=0.0)),
    )
    assert outcome.states()["rejected"] == LIGHTS
    reasons = {f.reason for f in outcome.frames if f.state == "rejected"}
    assert all("the cover was closed" in reason for reason in reasons)
    assert len(warnings(outcome)) == 1


def test_a_light_leak_in_the_darks_is_named(tmp_path):
    """Light all over the darks, more than the sky itself brings."""

    def leak(frame, _):
        return frame.pixels + np.uint16(900) if frame.kind == DARK else frame.pixels

    _, outcome = worked(tmp_path, pixels=leak)
    found = [line for line in warnings(outcome) if "light leaked into the darks" in line]
    assert len(found) == 1


def test_flats_that_overcorrect_are_named(tmp_path):
    """Flats of a telescope with a quarter more of vignetting; those of much more are refused."""

    def steeper(frame, plan):
        if frame.kind != FLAT:
            return frame.pixels
        truth = plan.camera.flats["R"]
        signal = (frame.pixels - plan.camera.pedestal_adu) * truth**0.25
        return np.clip(np.rint(signal + plan.camera.pedestal_adu), 0, 65535).astype(np.uint16)

    _, outcome = worked(tmp_path, pixels=steeper, nebula_e_s=0.0)
    found = [line for line in warnings(outcome) if "over-corrects the vignetting" in line]
    assert len(found) == 1


# --- conditions ----------------------------------------------------------------------------------


@pytest.fixture
def db(tmp_path):
    opened = schema.connect(tmp_path / "test.db")
    schema.apply(opened)
    with closing(opened.conn):
        yield Ledger.prepare(opened).db


def say(db, verdicts, *, certain=False):
    """What these frames begin or end: `x` shows the condition, `.` does not."""
    turns = []
    for mark in verdicts:
        finding = Finding("hot pixels", "MasterDark", mark == "x", "too many", certain=certain)
        with schema.transaction(db):
            changed = conditions.note(db, [finding], now=NOW)
        turns += ["is over" if one.over else "begins" for one in changed]
    return turns


def test_a_measured_condition_needs_three_frames_in_a_row(db):
    assert say(db, "xx.xx") == []
    assert conditions.current(db) == []
    assert say(db, "x") == ["begins"]
    (one,) = conditions.current(db)
    assert (one.sentence, one.frames) == ("too many", 3)


def test_it_is_over_after_three_good_frames_and_may_begin_again(db):
    assert say(db, "xxxxx..x..") == ["begins"]
    assert say(db, ".") == ["is over"]
    assert conditions.current(db) == []
    assert say(db, "xxx") == ["begins"]


def test_a_certain_one_begins_and_ends_at_once(db):
    assert say(db, "xx.", certain=True) == ["begins", "is over"]
