"""A new master beside its predecessor, and a flat beside a light's sky."""

import numpy as np
import pytest

from calib_library import compare
from calib_library.catalogue import agenda, candidates
from calib_library.errors import IncompatibleFramesError
from calib_library.frame import FrameType
from calib_library.library import CalibrationLibrary
from tests.test_build import LEVEL, NOISE, VIGNETTE, Bench, X, flat_images, noisy

BIAS, DARK, FLAT = FrameType.BIAS, FrameType.DARK, FrameType.FLAT
HOT = np.zeros(LEVEL.shape)
HOT.flat[np.random.default_rng(5).choice(HOT.size, 40, replace=False)] = 900.0


def darks(new, old=LEVEL + HOT, **options):
    fields = {"noise_adu": NOISE, "old_noise_adu": NOISE, "step": 1} | options
    return compare.darks(new.astype(np.float32), old.astype(np.float32), **fields)


def test_the_same_again_is_nothing_to_speak_of():
    assert darks(LEVEL + HOT + 1.0) == compare.Verdict()


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (LEVEL + HOT + 50.0, "its level is 55"),
        (LEVEL + HOT + 90.0 * (X < 8), "ADU brighter than before"),
        (LEVEL + 2.5 * HOT, "its hot pixels are 2.5 times as strong"),
    ],
)
def test_light_and_warmth_are_poison(new, told):
    assert told in darks(new).poison


@pytest.mark.parametrize(
    ("new", "options", "told"),
    [
        (LEVEL + HOT - 50.0, {}, "its level moved from"),
        (LEVEL + HOT + 15.0, {}, "its level moved from"),
        (LEVEL + HOT - 40.0 * (X < 8), {}, "a part of it moved by -"),
        (LEVEL + 0.5 * HOT, {}, "its hot pixels are 0.50 times"),
        (LEVEL + HOT, {"noise_adu": 14.0}, "the noise of its frames is 14.0 ADU where it was 8.0"),
    ],
)
def test_what_speaks_against_the_old_one_is_only_said(new, options, told):
    found = darks(new, **options)
    assert found.poison is None
    assert [note for note in found.notes if told in note] == list(found.notes)
    assert found.notes


def test_flats_are_compared_by_shape_at_any_level():
    flat = (20000 * VIGNETTE).astype(np.float32)
    assert compare.flats(2 * flat, flat) == compare.Verdict()
    mote = flat.copy()
    mote[16:32, 22:48] *= 0.9
    [note] = compare.flats(mote, flat).notes
    assert "a part of it moved by -10.0%" in note
    assert "corners" in compare.flats(1 / flat, flat).poison


def light(sky, pedestal=500.0, response=VIGNETTE):
    return compare.edges(pedestal + sky * response)


def test_a_pedestal_divided_by_a_flat_shines_in_the_corners():
    flat, dark = compare.edges(VIGNETTE), compare.edges(np.full(VIGNETTE.shape, 500.0))
    assert compare.turned_around(light(40.0), dark, flat, noise_adu=8.0) is None
    told = compare.turned_around(light(40.0), None, flat, noise_adu=8.0)
    assert "since no dark or bias was subtracted" in told
    # Much sky over a small pedestal: the flat is better than none.
    assert compare.turned_around(light(9000.0, 300.0), None, flat, noise_adu=30.0) is None


def test_a_flat_of_other_optics_contradicts_the_sky():
    deeper = compare.edges(VIGNETTE**2)
    dark = compare.edges(np.full(VIGNETTE.shape, 500.0))
    assert compare.turned_around(light(900.0, response=VIGNETTE**0.5), dark, deeper, noise_adu=8.0)


def test_a_bright_target_in_the_centre_is_no_fault_of_the_flat():
    flat, dark = compare.edges(VIGNETTE), compare.edges(np.full(VIGNETTE.shape, 500.0))
    nebula = light(300.0)
    nebula[4] += 400.0
    assert compare.turned_around(nebula, dark, flat, noise_adu=8.0) is None


def test_a_sky_too_faint_to_tell_keeps_its_flat():
    flat, dark = compare.edges(VIGNETTE), compare.edges(np.full(VIGNETTE.shape, 497.0))
    assert compare.turned_around(light(3.0), dark, flat, noise_adu=8.0) is None


# --- in the library ------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path):
    with CalibrationLibrary.open(tmp_path) as library:
        yield Bench(tmp_path, library)


def following(bench, set_id):
    return candidates.predecessor(bench.library, bench.library.set(set_id))


def test_a_poisoned_successor_is_refused_until_a_person_accepts_it(bench):
    first = bench.take_many(DARK, noisy(LEVEL + HOT, 5))
    good = bench.build(first)[0]
    # A flood of leaking darks outvotes the good ones of their own set.
    bench.take_many(DARK, noisy(LEVEL + HOT + 60.0, 9, seed=2))
    with pytest.raises(IncompatibleFramesError) as caught:
        bench.build(first, predecessor=following(bench, first))
    assert "light has leaked in, or it was warm" in str(caught.value)
    assert f"lightkeeper library accept {first}" in str(caught.value)
    assert bench.library.set(first).master == good

    agenda.accept(bench.library, first)
    assert following(bench, first) is None
    second = bench.build(first, predecessor=following(bench, first))[0]
    assert second.generation == 2
    assert following(bench, first) == second  # accepted once, not for ever


def test_a_jump_downwards_is_registered_and_said_once(bench):
    first = bench.take_many(DARK, noisy(LEVEL + 60.0, 5))
    bench.build(first)
    bench.take_many(DARK, noisy(LEVEL, 9, seed=2))
    second = bench.build(first, predecessor=following(bench, first))[0]
    assert [note for note in second.notes if note.startswith("Beside its predecessor")]
    bench.take(DARK, noisy(LEVEL, 1, seed=3)[0])
    third = bench.build(first, predecessor=following(bench, first))[0]
    assert not [note for note in third.notes if note.startswith("Beside its predecessor")]


def test_a_flat_of_another_session_is_compared_with_the_last_one(bench):
    bias = bench.build(bench.take_many(BIAS, noisy(LEVEL, 8), exposure_s=0.0))[0]
    one = bench.take_many(FLAT, flat_images([20000] * 5), filter="H", session="a")
    first = bench.build(one, subtract=bias)[0]
    moved = [image - 0.1 * (image - LEVEL) * (X < 8) for image in flat_images([20000] * 5, seed=8)]
    two = bench.take_many(FLAT, moved, filter="H", session="b")
    assert following(bench, two) == first
    second = bench.build(two, subtract=bias, predecessor=first)[0]
    assert [note for note in second.notes if "dust or optics have changed" in note]
