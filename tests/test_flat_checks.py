"""Whether the flats of a set agree: simulated skies and panels whose truth is known."""

import dataclasses

import numpy as np
import pytest

from calib_library import flat_checks
from calib_library.frame import FrameType
from calib_library.library import CalibrationLibrary
from tests.records import key, record
from tests.test_build import Bench

NY, NX = 240, 320
LEVEL = 20_000.0
"""ADU and e-: the gain is 1."""
Y, X = np.mgrid[:NY, :NX]
_GRAIN = np.random.default_rng(8)
RESPONSE = (1 - 0.3 * (((X - NX / 2) / NX) ** 2 + ((Y - NY / 2) / NY) ** 2)) * _GRAIN.normal(
    1, 0.005, (NY, NX)
)


def panel(count, *, light=lambda _: 1.0, seed=1):
    """Flats of `light(n)` (a number or an image) through the response, without a pedestal."""
    rng = np.random.default_rng(seed)
    return [rng.poisson(LEVEL * RESPONSE * light(n)).astype(np.float32) for n in range(count)]


def agreement(frames, *, step=1):
    strips = (
        (y, np.stack([frame[y : y + flat_checks.STRIP_ROWS] for frame in frames]))
        for y in flat_checks.strip_starts(NY)
    )
    return flat_checks.compare_halves(strips, step=step)


@pytest.mark.parametrize("count", [6, 12, 25])
@pytest.mark.parametrize("step", [1, 2])
def test_noise_alone_gives_a_chi2_of_one_and_no_note(count, step):
    found = agreement(panel(count), step=step)
    assert found.chi2 == pytest.approx(1.0, abs=0.02)
    assert found.notes == ()


def test_few_flats_have_no_halves():
    assert agreement(panel(5)) is None


def test_light_that_changes_its_slope_is_told_with_its_size():
    """The second half has a slope of 2 % across the image: 0.577 % rms."""
    slope = 0.02 * (X / (NX - 1) - 0.5)
    found = agreement(panel(12, light=lambda n: 1 + (n >= 6) * slope))
    # Each half has the variance LEVEL/6 a pixel; the slope's mean square is (0.02 LEVEL)²/12.
    assert found.chi2 == pytest.approx(1 + (0.02 * LEVEL) ** 2 / 12 / (2 * LEVEL / 6), rel=0.1)
    [note] = found.notes
    assert "differ by 0.6% (χ² 2." in note
    assert "the light changed" in note


def test_a_slope_that_spoils_nothing_is_not_told():
    slope = 0.004 * (X / (NX - 1) - 0.5)
    assert agreement(panel(12, light=lambda n: 1 + (n >= 6) * slope)).notes == ()


def test_dust_that_moved_is_told_with_its_place():
    """A shadow of 3 % and 40 px, there in the second half only, over one of the strips."""
    y, x = flat_checks.strip_starts(NY)[3] + 16, 208
    shadow = 1 - 0.03 * (np.hypot(Y - y, X - x) < 20)
    [note] = agreement(panel(12, light=lambda n: shadow if n >= 6 else 1.0)).notes
    assert f"around x {x}, y {y}" in note
    assert "dust has moved" in note


# --- flats of the sky ----------------------------------------------------------------------------


def stars(seed, *, count=60):
    """One field: e- a second of its stars in each pixel, FWHM 3.5 px."""
    rng = np.random.default_rng(seed)
    image = np.zeros((NY, NX))
    for flux in np.exp(rng.uniform(np.log(2e3), np.log(1e5), count)):
        y, x = rng.uniform(0, NY), rng.uniform(0, NX)
        image += flux / (2 * np.pi * 2.25) * np.exp(-((Y - y) ** 2 + (X - x) ** 2) / 4.5)
    return image


def dusk(fields, *, pedestal=0.0, seed=2):
    """Flats of equal level from a falling sky: the exposure, and the stars with it, grow."""
    rng = np.random.default_rng(seed)
    frames = []
    for n, field in enumerate(fields):
        exposure = 0.3 * 1.12**n
        frames.append((exposure, pedestal + rng.poisson(RESPONSE * (LEVEL + exposure * field))))
    return frames


ONE = [stars(1)] * 12
THREE = [stars(n % 3) for n in range(12)]
EACH = [stars(n) for n in range(12)]


def test_stars_at_one_place_are_told():
    [note] = agreement([frame.astype(np.float32) for _, frame in dusk(ONE)]).notes
    assert note.startswith("Stars stand at the same place in these flats (")
    assert "move the telescope between twilight flats" in note


@pytest.mark.parametrize("fields", [THREE, EACH])
def test_stars_of_moving_fields_are_not(fields):
    assert agreement([frame.astype(np.float32) for _, frame in dusk(fields)]).notes == ()


@pytest.fixture
def bench(tmp_path):
    with CalibrationLibrary.open(tmp_path) as library:
        yield Bench(tmp_path, library)


def built(bench, fields, *, places=None, **kind):
    """(master, its error where stars were, as a part)"""
    bias = {"exposure_s": 0.0, "key": {"width": NX, "height": NY}}
    rng = np.random.default_rng(3)
    biases = [500 + rng.normal(0, 3, (NY, NX)) for _ in range(8)]
    bias_master = bench.build(bench.take_many(FrameType.BIAS, biases, **bias))[0]
    sets = set()
    for n, (exposure, frame) in enumerate(dusk(fields, pedestal=500.0)):
        ra, dec = places[n] if places else (None, None)
        sets.add(
            bench.take(
                FrameType.FLAT,
                frame,
                exposure_s=exposure,
                filter="L",
                session="2026-11-20",
                ra_deg=ra,
                dec_deg=dec,
                key={"width": NX, "height": NY},
                **kind,
            )[0]
        )
    [set_id] = sets
    master, image, cards = bench.build(set_id, subtract=bias_master)
    response = image / np.median(image) * np.median(RESPONSE)
    bright = np.mean([exposure * f for f, (exposure, _) in zip(fields, dusk(fields), strict=True)],
                     axis=0) > 0.005 * LEVEL  # fmt: skip
    return master, float(np.sqrt(np.mean((response / RESPONSE - 1)[bright] ** 2))), cards


@pytest.mark.parametrize("light", ["sky", None])
def test_three_fields_take_the_stars_out_of_the_master(bench, light):
    """The noise of twelve flats, with a fifth more by the closer clip, is 0.25 %; a usual 3 sigma
    would keep the third part of every star, several per cent.
    """
    master, error, cards = built(bench, THREE, flat_light=light)
    assert master.notes == ()
    assert error < 0.008
    assert cards["LKSIGMA"] == 2.0
    assert cards["LKHALF"] < 1.02


def test_one_field_leaves_them_in_and_the_note_says_so(bench):
    places = [(100.0 + 0.001 * n, 20.0) for n in range(12)]
    master, error, cards = built(bench, ONE, places=places, flat_light="sky")
    assert error > 0.02
    assert [note[:36] for note in master.notes] == [
        "These flats of the sky are all of on",
        "Stars stand at the same place in the",
    ]
    assert cards["LKHALF"] > 1.02


@pytest.mark.parametrize(
    ("places", "told"),
    [
        ([(10.0, 5.0)] * 5, "all of one field"),
        ([(359.999, 5.0), (0.001, 5.0)], "all of one field"),
        ([(10.0, 5.0), (10.5, 5.0)], "all of 2 fields"),
        ([(10.0, 80.0), (10.1, 80.0), (10.0, 80.005)], "all of 2 fields"),
        ([(10.0, 5.0), (10.1, 5.0), (10.2, 5.0)], None),
        ([(10.0, 5.0), (None, None)], None),
        ([], None),
    ],
)
def test_fields_are_counted_on_the_sky(places, told):
    plain = record(FrameType.FLAT, key=key())
    records = [dataclasses.replace(plain, ra_deg=ra, dec_deg=dec) for ra, dec in places]
    found = flat_checks.one_field(records)
    assert (found is None) if told is None else (told in found)
