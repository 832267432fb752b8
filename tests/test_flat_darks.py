"""Flats that have no flat-dark of their own: the dark model's dark, at their exposure."""

import numpy as np
import pytest

from calib_library import flat_darks
from calib_library.catalogue import candidates
from calib_library.dark_model import dark_current
from calib_library.frame import FrameType
from calib_library.library import CalibrationLibrary
from tests.test_build import LEVEL, NOISE, VIGNETTE, Bench, noisy, shape_error
from tests.test_twilight import EXPOSURES, GLOW, take_dusk

BIAS, DARK, FLAT, FLAT_DARK = (
    FrameType.BIAS,
    FrameType.DARK,
    FrameType.FLAT,
    FrameType.FLAT_DARK,
)


@pytest.fixture
def bench(tmp_path):
    with CalibrationLibrary.open(tmp_path) as library:
        yield Bench(tmp_path, library)


def darks(bench, exposure_s, *, kind=DARK, current=1.0, count=8, **fields):
    images = noisy(LEVEL + exposure_s * current * GLOW, count, seed=int(100 * exposure_s))
    return bench.build(bench.take_many(kind, images, exposure_s=exposure_s, **fields))[0]


def chosen(bench, set_id):
    group, frames = bench.library.set(set_id), bench.library.frames_of(set_id)
    masters = candidates.pedestals(bench.library, group, frames)
    return masters, flat_darks.for_flats(bench.library, group, frames, masters)


def build(bench, set_id):
    subtract, made = chosen(bench, set_id)
    return bench.build(set_id, subtract=subtract, made=made)


def test_twilight_flats_between_two_darks_lose_the_dark_of_their_own_exposure(bench):
    """As well as with a flat-dark of each; a bias leaves ten times as much (test_twilight)."""
    darks(bench, 0.3)
    darks(bench, 30.0)
    bench.build(bench.take_many(BIAS, noisy(LEVEL, 8), exposure_s=0.0))
    set_id = take_dusk(bench)
    master, image, _ = build(bench, set_id)
    assert master.frames == len(EXPOSURES)
    assert shape_error(image) < 0.0006
    assert master.notes == ()
    _, made = chosen(bench, set_id)
    assert len(made) == len(EXPOSURES)
    # Each is 0.3 s and 30 s, by their exposures: at 10 s (10 − 0.3)/29.7 of the long one.
    longest = max(made.values(), key=lambda one: one.plan.exposure_s)
    weights = {source.exposure_s: weight for source, weight, _ in longest.plan.weights}
    assert weights == pytest.approx({0.3: 20.0 / 29.7, 30.0: 9.7 / 29.7})
    truth = LEVEL + 10.0 * GLOW
    noise = NOISE / np.sqrt(8) * np.hypot(*weights.values())
    assert np.std(longest.image[:] - truth) == pytest.approx(noise, rel=0.1)
    header = (bench.root / master.path).read_bytes()[: 2880 * 4].decode("latin-1")
    assert "HISTORY Subtracted: for 10 s a dark was made: " in header


def test_flat_darks_of_two_temperatures_make_that_between(bench):
    """An uncooled camera: dark current as the law has it, 0.57 eV."""
    for celsius in (8.0, 12.0):
        current = dark_current(celsius, 0.57)
        darks(bench, 4.0, kind=FLAT_DARK, current=current, temperature_c=celsius)
    truth = LEVEL + 4.0 * dark_current(10.0, 0.57) * GLOW
    flats = [
        truth + light
        for light in np.random.default_rng(4).poisson(28000 * VIGNETTE, (6, *VIGNETTE.shape))
    ]
    fields = {"exposure_s": 4.0, "filter": "L", "session": "2026-11-20", "temperature_c": 10.0}
    set_id = bench.take_many(FLAT, flats, **fields)
    _, made = chosen(bench, set_id)
    [dark] = {id(one): one for one in made.values()}.values()
    # Two masters of 8, weights near a half: 2 ADU of noise; the law leaves less.
    assert np.abs(np.mean(dark.image[:] - truth)) < 0.2
    assert shape_error(build(bench, set_id)[1]) < 0.0006


@pytest.mark.parametrize(
    "others",
    [
        {"first": (20.0, {}), "second": (60.0, {})},  # all longer
        {"first": (0.1, {}), "second": (0.3, {})},  # all shorter
        {"first": (0.3, {"temperature_c": -3.0}), "second": (30.0, {"temperature_c": 0.0})},
        {"first": (0.3, {"key": {"gain": 0.0}}), "second": (30.0, {"key": {"gain": 0.0}})},
    ],
)
def test_nothing_is_extrapolated_the_bias_serves(bench, others):
    for exposure, fields in others.values():
        darks(bench, exposure, **fields)
    bias = bench.build(bench.take_many(BIAS, noisy(LEVEL, 8), exposure_s=0.0))[0]
    masters, made = chosen(bench, take_dusk(bench))
    assert made == {}
    assert {master.id for master in masters.values()} == {bias.id}


def test_flats_are_built_again_when_the_model_can_do_it_and_when_their_own_dark_comes(bench):
    bench.build(bench.take_many(BIAS, noisy(LEVEL, 8), exposure_s=0.0))
    set_id = take_dusk(bench)
    first, _, _ = build(bench, set_id)
    assert [note for note in first.notes if "only a bias" in note]
    darks(bench, 30.0)
    assert not bench.library.set(set_id).changed  # one exposure says nothing of another
    darks(bench, 0.3)
    assert bench.library.set(set_id).changed
    second, image, _ = build(bench, set_id)
    assert shape_error(image) < 0.0006
    assert second.notes == ()
    assert not bench.library.set(set_id).changed
    darks(bench, 20.0)  # better for none of them than what it was made of
    assert not bench.library.set(set_id).changed
    own = darks(bench, 10.0, kind=FLAT_DARK)
    assert bench.library.set(set_id).changed
    masters, made = chosen(bench, set_id)
    assert [master.id for master in masters.values()].count(own.id) == 1
    assert len(made) == len(EXPOSURES) - 1
    assert build(bench, set_id)[0].path != second.path
    assert not bench.library.set(set_id).changed


def test_other_sets_have_nothing_made(bench):
    darks(bench, 0.3)
    darks(bench, 30.0)
    set_id = bench.take_many(DARK, noisy(LEVEL, 5), exposure_s=5.0)
    assert chosen(bench, set_id) == ({}, {})
