"""Flats of the twilight: every frame has its own exposure, and its own pedestal."""

import numpy as np
import pytest

from calib_library.catalogue import candidates
from calib_library.frame import FrameType
from calib_library.library import CalibrationLibrary
from tests.test_build import LEVEL, VIGNETTE, Bench, X, noisy, shape_error

BIAS, DARK, FLAT, FLAT_DARK = (
    FrameType.BIAS,
    FrameType.DARK,
    FrameType.FLAT,
    FrameType.FLAT_DARK,
)
EXPOSURES = (0.5, 0.9, 1.6, 3.0, 5.5, 10.0)
GLOW = 150.0 * (X / X.max()) ** 2  # ADU a second: at 10 s it is 5 % of the flat at one side


@pytest.fixture
def bench(tmp_path):
    with CalibrationLibrary.open(tmp_path) as library:
        yield Bench(tmp_path, library)


def dusk(*, seed=3, level=28000.0):
    """Flats of rising exposure, each at a level of its own, over a glow that grows with it."""
    generator = np.random.default_rng(seed)
    for n, exposure in enumerate(EXPOSURES):
        light = generator.poisson(level * (1.0 + 0.05 * n) * VIGNETTE)
        yield exposure, LEVEL + exposure * GLOW + light


def take_dusk(bench):
    taken = {
        bench.take(FLAT, image, exposure_s=exposure, filter="L", session="2026-11-20")[0]
        for exposure, image in dusk()
    }
    [set_id] = taken  # one set, though no two exposures agree
    return set_id


def pedestals_of(bench, set_id):
    frames = bench.library.frames_of(set_id)
    return candidates.pedestals(bench.library, bench.library.set(set_id), frames)


def test_each_flat_loses_the_dark_of_its_own_exposure(bench):
    for n, exposure in enumerate(EXPOSURES):
        kind = FLAT_DARK if n % 2 else DARK
        images = noisy(LEVEL + exposure * GLOW, 8, seed=n)
        bench.build(bench.take_many(kind, images, exposure_s=exposure))
    set_id = take_dusk(bench)
    chosen = pedestals_of(bench, set_id)
    master, image, _ = bench.build(set_id, subtract=chosen)
    assert master.frames == len(EXPOSURES)
    # Six flats of 28,000 e- in blocks of 64 pixels: 0.03 % of photon noise, and the darks' own.
    assert shape_error(image) < 0.0006
    inputs = bench.library.inputs_of(master.id)
    assert len({chosen[frame.sha256].id for frame, _ in inputs}) == len(EXPOSURES)
    assert master.notes == ()


def test_a_bias_serves_where_there_is_no_dark_and_the_note_names_the_longest(bench):
    bench.build(bench.take_many(BIAS, noisy(LEVEL, 8), exposure_s=0.0))
    set_id = take_dusk(bench)
    master, image, _ = bench.build(set_id, subtract=pedestals_of(bench, set_id))
    assert [note for note in master.notes if "only a bias" in note] == [
        "Flats of 10 s had only a bias subtracted: flat-darks of that exposure would be better."
    ]
    # The glow of the long ones stays in: this is what the flat-darks above are for.
    assert shape_error(image) > 0.002


def test_a_flat_dark_of_one_exposure_makes_the_set_due_again(bench):
    bench.build(bench.take_many(BIAS, noisy(LEVEL, 8), exposure_s=0.0))
    set_id = take_dusk(bench)
    bench.build(set_id, subtract=pedestals_of(bench, set_id))
    assert not bench.library.set(set_id).changed
    bench.build(bench.take_many(FLAT_DARK, noisy(LEVEL, 6, seed=8), exposure_s=77.0))
    assert not bench.library.set(set_id).changed  # no flat of this exposure
    bench.build(bench.take_many(FLAT_DARK, noisy(LEVEL, 6, seed=9), exposure_s=10.0))
    assert bench.library.set(set_id).changed
    master, _, _ = bench.build(set_id, subtract=pedestals_of(bench, set_id))
    # The next longest, 5.5 s, still has only the bias.
    bias_only = [note[:18] for note in master.notes if "only a bias" in note]
    assert bias_only == ["Flats of 5.5 s had"]
    assert not bench.library.set(set_id).changed


def test_a_saturated_and_a_faint_flat_are_left_out(bench):
    bias = bench.build(bench.take_many(BIAS, noisy(LEVEL, 8), exposure_s=0.0))[0]
    set_id = take_dusk(bench)
    flats = {"filter": "L", "session": "2026-11-20"}
    bench.take(FLAT, np.full(LEVEL.shape, 65535.0), exposure_s=20.0, **flats)
    generator = np.random.default_rng(4)
    faint = LEVEL + generator.normal(0, 8.0, LEVEL.shape) + generator.poisson(40.0 * VIGNETTE)
    bench.take(FLAT, faint, exposure_s=0.1, **flats)
    master, image, _ = bench.build(set_id, subtract=bias)
    reasons = [reason for _, reason in bench.library.inputs_of(master.id) if reason]
    assert len(reasons) == 2
    assert reasons[0].startswith("it is saturated (level 655")
    assert "it is faint: " in reasons[1]
    assert master.frames == len(EXPOSURES)
    assert np.isfinite(image).all()


# --- darks that are not what they say ------------------------------------------------------------


def hot_darks(count, *, strength=1.0, seed=1):
    """Darks of a modern sensor: hardly any level, some hot pixels."""
    generator = np.random.default_rng(77)
    hot = np.zeros(LEVEL.shape)
    hot.flat[generator.choice(hot.size, 40, replace=False)] = generator.uniform(300, 3000, 40)
    return noisy(LEVEL + strength * hot, count, seed=seed)


@pytest.mark.parametrize(
    ("strength", "told"),
    [(2.0, "the sensor was warmer, or the exposure longer"), (0.4, "the sensor was colder, or")],
)
def test_a_dark_of_another_temperature_or_exposure_is_known_by_its_hot_pixels(
    bench,
    strength,
    told,
):
    images = [*hot_darks(5), *hot_darks(1, strength=strength, seed=9)]
    master, _, _ = bench.build(bench.take_many(DARK, images))
    reasons = [reason for _, reason in bench.library.inputs_of(master.id)]
    assert [reason is not None for reason in reasons] == [False] * 5 + [True]
    assert f"{strength:.1f}" in reasons[5][:30]
    assert told in reasons[5]


def test_darks_within_a_degree_stay(bench):
    """Dark current doubles in 6 °C: within the tolerance of ±1 °C it differs by 12 %."""
    images = [*hot_darks(3), *hot_darks(2, strength=2 ** (1 / 6), seed=9)]
    assert bench.build(bench.take_many(DARK, images))[0].frames == 5


def test_telegraph_noise_in_some_hot_pixels_is_no_warm_sensor(bench):
    images = hot_darks(6)
    blinking = images[0] > LEVEL + 1500
    images[3][blinking] += 2000.0
    assert bench.build(bench.take_many(DARK, images))[0].frames == 6


def test_a_light_leak_at_one_side_is_found(bench):
    """It does not move the rows' levels: most of every row is dark."""
    images = noisy(LEVEL, 6)
    images[2] += 60.0 * np.clip(1.0 - X / 12.0, 0.0, None)
    master, image, _ = bench.build(bench.take_many(DARK, images))
    reasons = [reason for _, reason in bench.library.inputs_of(master.id)]
    assert [reason is not None for reason in reasons] == [False, False, True, False, False, False]
    assert abs(np.mean((image - LEVEL)[:, :8])) < 2.0
