"""The whole way of a frame: a simulated night through the real service, against its truth."""

import hashlib

import numpy as np
import pytest
from astropy.io import fits

from daemon.simulator.night import small_plan
from daemon.simulator.writer import write_night
from tests.nights import Outcome, config_for, run

LIGHTS = 8


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A night in one filter, taken in whole."""
    tmp_path = tmp_path_factory.mktemp("night")
    plan = small_plan(
        seed=3,
        shape=(384, 512),
        bias=5,
        darks=6,
        flats=6,
        flat_darks=5,
        lights=LIGHTS,
        cloud=False,
        bump=False,
    )
    write_night(tmp_path / "in", plan)
    config = config_for(tmp_path)
    sources = {p: p.read_bytes() for p in (tmp_path / "in").rglob("*.fits")}
    run(config)
    return plan, config, Outcome(config), sources


def test_every_frame_comes_to_its_end(night):
    plan, _, outcome, _ = night
    assert outcome.states() == {"filed": 5 + 6 + 6 + 5, "stacked": LIGHTS}
    assert len(outcome.frames) == len(plan.shots)


def test_one_master_of_each_kind_with_all_its_frames(night):
    _, _, outcome, _ = night
    assert {(str(m.frame_type), m.frames) for m in outcome.masters} == {
        ("bias", 5),
        ("dark", 6),
        ("flat", 6),
        ("flat-dark", 5),
    }


def test_lights_wait_for_their_masters_and_are_calibrated_once(night):
    _, _, outcome, _ = night
    (members,) = outcome.members.values()
    assert all(m.masters["dark"] and m.masters["flat"] for m in members)
    assert "AGAIN" not in outcome.log


def test_registration_agrees_with_the_truth(night):
    plan, _, outcome, _ = night
    (members,) = outcome.members.values()
    shots = [shot for shot in plan.shots if shot.kind == "light"]
    frames = {f.id: f for f in outcome.frames}
    by_date = {shot.start.isoformat(timespec="milliseconds"): shot for shot in shots}
    ny, nx = plan.camera.shape
    corners = np.array([[0, 0, 1], [nx, 0, 1], [0, ny, 1], [nx, ny, 1]], float).T
    truths = [
        by_date[frames[m.frame_id].record.date_obs.isoformat(timespec="milliseconds")].matrix
        for m in members
    ]
    first = np.linalg.inv(truths[0])
    for member, truth in zip(members, truths, strict=True):
        expected = first @ truth @ corners
        assert np.abs(member.matrix @ corners - expected)[:2].max() < 0.3


def test_the_flip_is_registered(night):
    _, _, outcome, _ = night
    (members,) = outcome.members.values()
    assert sum(m.matrix[0, 0] < -0.9 for m in members) == LIGHTS // 2


def test_the_product_opens_and_says_what_it_is(night):
    _, config, outcome, _ = night
    (stack,) = outcome.stacks
    with fits.open(config.library.path / stack.path) as hdus:
        header = hdus[0].header
        assert header["STACKCNT"] == LIGHTS
        assert header["CALSTAT"] == "BDF"
        assert header["LIVETIME"] == pytest.approx(LIGHTS * header["EXPTIME"])
        assert 0 <= hdus[0].data.min() <= hdus[0].data.max() <= 1
        assert sum(str(line).startswith("frame:") for line in header["HISTORY"]) == LIGHTS
    picture = (config.library.path / stack.path).with_name(
        f"{stack.target}_R.png".replace(" ", "_")
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_second_start_changes_nothing(night):
    _, config, outcome, _ = night
    (stack,) = outcome.stacks
    before = hashlib.sha256((config.library.path / stack.path).read_bytes()).hexdigest()
    run(config)
    again = Outcome(config)
    assert again.states() == outcome.states()
    assert again.stacks[0].generation == stack.generation
    after = hashlib.sha256((config.library.path / again.stacks[0].path).read_bytes()).hexdigest()
    assert before == after


def test_sources_are_untouched(night):
    _, _, _, sources = night
    assert all(path.read_bytes() == content for path, content in sources.items())
