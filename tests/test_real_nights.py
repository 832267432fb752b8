"""Real frames of real cameras through the real service."""

import numpy as np
import pytest

from tests.nights import Outcome, config_for, drop, run, shared

pytestmark = [pytest.mark.shared, pytest.mark.slow]


def block_noise(image: np.ndarray, size: int = 8) -> float:
    """Robust σ of the differences of neighbouring block means: the sky's large-scale noise."""
    ny, nx = (n // size * size for n in image.shape)
    means = image[:ny, :nx].reshape(ny // size, size, nx // size, size).mean(axis=(1, 3))
    steps = np.diff(means, axis=1).ravel()
    return float(1.4826 * np.median(np.abs(steps - np.median(steps))) / np.sqrt(2))


def test_tres1_darks_and_a_drift_of_many_pixels(tmp_path):
    drop(shared("tres1"), tmp_path)
    config = config_for(tmp_path)
    run(config)
    outcome = Outcome(config)
    assert outcome.states() == {"filed": 20, "stacked": 40}
    (master,) = outcome.masters
    assert (master.frame_type, master.frames) == ("dark", 20)
    assert master.temperature_c == pytest.approx(-10.0, abs=0.2)
    (stack,) = outcome.stacks
    members = outcome.members[stack.id]
    shifts = np.array([m.matrix[:2, 2] for m in members])
    assert np.ptp(shifts, axis=0).max() > 5
    assert all(m.flags == ("no flat",) or "cosmics cleaned" in m.flags for m in members)
    assert np.median([m.quality.eccentricity for m in members]) < 0.6


def test_messier8_type_filter_and_exposure_from_the_name(tmp_path):
    drop(shared("messier8"), tmp_path)
    config = config_for(
        tmp_path,
        watch="pattern = '(?P<type>light)_(?P<filter>[LRGB])_(?P<exposure_ms>\\d+)ms'\n"
        'defaults = { target = "M8" }',
    )
    run(config)
    outcome = Outcome(config)
    assert {(s.target, s.filter) for s in outcome.stacks} == {("M8", f) for f in "LRGB"}
    assert outcome.states().get("stacked", 0) >= 30
    assert all(f.record.exposure_s == 15.0 for f in outcome.frames)


def test_m27_one_colour_stack(tmp_path):
    drop(shared("m27_osc"), tmp_path)
    config = config_for(tmp_path, watch='defaults = { target = "M27" }')
    run(config)
    outcome = Outcome(config)
    assert outcome.states() == {"stacked": 6}
    (stack,) = outcome.stacks
    image = outcome.image(stack)
    assert image.shape == (3, 976, 1304)


def test_asi120_four_masters_from_paths_and_decimal_commas(tmp_path):
    drop(shared("asi120"), tmp_path)
    config = config_for(tmp_path)
    run(config)
    outcome = Outcome(config)
    assert outcome.states() == {"filed": 20}
    assert sorted((str(m.frame_type), m.exposure_s, m.frames) for m in outcome.masters) == [
        ("bias", pytest.approx(6.4e-5), 5),
        ("dark", 10.0, 5),
        ("dark", 50.0, 5),
        ("flat", 0.005, 5),
    ]
