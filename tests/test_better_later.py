"""Masters that come after the lights: the night is calibrated again, by itself."""

import numpy as np
import pytest

from daemon.simulator.night import frames, noiseless, small_plan
from daemon.simulator.writer import write_frame
from tests.nights import Outcome, config_for, run

LIGHTS = 6


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The lights first; then the darks, flats and flat-darks of the same night."""
    tmp_path = tmp_path_factory.mktemp("later")
    plan = small_plan(
        seed=8,
        shape=(384, 512),
        bias=0,
        darks=8,
        flats=8,
        flat_darks=6,
        lights=LIGHTS,
        flip=False,
    )
    taken = list(frames(plan))
    config = config_for(tmp_path)
    for frame in taken:
        if frame.kind == "light":
            write_frame(tmp_path / "in", frame)
    run(config)
    before = Outcome(config)
    first = before.image(before.stacks[0])
    for frame in taken:
        if frame.kind != "light":
            write_frame(tmp_path / "in", frame)
    run(config)
    after = Outcome(config)
    return plan, config, before, first, after


def test_lights_without_masters_are_stacked_and_flagged(outcomes):
    _, _, before, _, _ = outcomes
    assert before.states() == {"stacked": LIGHTS}
    (members,) = before.members.values()
    assert all({"no dark", "no flat"} <= set(m.flags) for m in members)


def test_the_stack_is_made_again_with_all_frames(outcomes):
    _, config, before, _, after = outcomes
    assert after.stacks[0].generation > before.stacks[0].generation
    (members,) = after.members.values()
    assert len(members) == LIGHTS
    assert all(m.masters["dark"] and m.masters["flat"] for m in members)
    assert after.stacks[0].stale is None
    assert not (config.library.path / before.stacks[0].path).exists()


def test_it_is_better(outcomes):
    """Against the noiseless truth: without flats the vignette stays, with them it is gone."""
    plan, _, _, first, after = outcomes
    shot = next(s for s in plan.shots if s.kind == "light")
    truth = noiseless(
        plan, "R", fwhm_px=shot.fwhm_px, exposure_s=shot.exposure_s, matrix=shot.matrix
    )
    again = after.image(after.stacks[0])

    def slope(image):
        """Corner sky over centre sky."""
        rest = image - truth
        ny, nx = rest.shape
        corners = [rest[8:48, 8:48], rest[-48:-8, 8:48], rest[8:48, -48:-8], rest[-48:-8, -48:-8]]
        centre = rest[ny // 2 - 40 : ny // 2 + 40, nx // 2 - 40 : nx // 2 + 40]
        return np.mean([np.median(c) for c in corners]) / np.median(centre)

    assert abs(slope(again) - 1) < abs(slope(first) - 1)
