"""Levels, normalisation and checks of flats with a known vignetting."""

import numpy as np
import pytest

from calib_library.combine import ArrayRows, sigma_clipped_mean
from calib_library.flat import checks, half_split, levels, normalise, scales

SHAPE = (160, 220)


def vignetting():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return 1 - 1.5e-5 * ((x - 110) ** 2 + (y - 80) ** 2)


def colours():
    """Phase levels of a panel: (y even, x even), (even, odd), (odd, even), (odd, odd)."""
    return np.array([9000.0, 20000.0, 21000.0, 14000.0])


def mosaic():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return colours()[(y % 2) * 2 + x % 2]


def test_levels_are_those_of_each_colour_and_ignore_dust_and_stars():
    frame = mosaic() + np.random.default_rng(1).normal(0, 20, SHAPE)
    frame[60:64, 100:104] = 65535
    frame[90:99, 100:109] *= 0.3
    frame[80, 110] = np.nan
    assert levels(frame.astype(np.float32), bayer=True) == pytest.approx(colours(), rel=1e-3)


def test_levels_of_a_reader_equal_those_of_its_pixels():
    rng = np.random.default_rng(2)
    frame = np.rint(vignetting() * 30000 + rng.normal(0, 50, SHAPE)).astype(np.uint16)
    dark = np.full(SHAPE, 500, np.float32)
    from_reader = levels(ArrayRows(frame), bayer=False, subtract=dark)
    assert from_reader == pytest.approx(levels(frame - dark, bayer=False), rel=1e-12)
    centre = vignetting()[40:120, 54:166].mean() * 30000 - 500
    assert from_reader[0] == pytest.approx(centre, rel=2e-4)


def test_scales_bring_flats_of_a_fading_twilight_to_one_level():
    rng = np.random.default_rng(3)
    fading = np.array([1.0, 0.8, 0.64, 0.5])
    frames = [
        ArrayRows(np.rint(f * mosaic() * vignetting() + rng.normal(0, 5, SHAPE)).astype(np.uint16))
        for f in fading
    ]
    found = np.array([levels(frame, bayer=True) for frame in frames])
    factors = scales(found)
    # Relative factors are the inverse of the fading, the same for every colour.
    assert factors / factors[:1] == pytest.approx(np.tile(1 / fading[:, None], 4), rel=1e-3)
    master = sigma_clipped_mean(frames, scales=factors)
    truth = fading.mean() * mosaic() * vignetting()
    assert np.median(np.abs(master.mean / truth - 1)) < 1e-3


def test_a_frame_without_light_gets_no_weight():
    assert scales(np.array([[100.0], [0.0]])).tolist() == [[0.5], [0.0]]


@pytest.mark.parametrize("bayer", [False, True])
def test_normalise_leaves_the_shape_of_the_field_alone(bayer):
    light = mosaic() if bayer else np.full(SHAPE, 30000.0)
    flat = normalise((light * vignetting()).astype(np.float32), bayer=bayer)
    assert levels(flat, bayer=bayer) == pytest.approx(1.0, abs=1e-6)
    ratio = flat / vignetting()
    assert ratio == pytest.approx(ratio[80, 110], rel=2e-3)


def test_normalise_marks_what_gets_no_light():
    master = np.full(SHAPE, 20000.0, np.float32)
    master[0, 0], master[1, 1], master[2, 2], master[3, 3] = 900, 1100, np.nan, -50
    flat = normalise(master, bayer=False)
    assert flat[0, 0] == 0  # 0.045
    assert flat[1, 1] == np.float32(0.055)
    assert flat[2, 2] == 0
    assert flat[3, 3] == 0
    assert master[0, 0] == 900


def test_a_flat_without_light_is_refused():
    with pytest.raises(ValueError, match="no light"):
        normalise(np.zeros(SHAPE, np.float32), bayer=False)


def test_half_split_is_one_for_noise_and_more_for_a_difference():
    rng = np.random.default_rng(4)
    halves = []
    for _ in range(2):
        frames = [
            ArrayRows(np.rint(rng.normal(20000, 100, (300, 400))).astype(np.uint16))
            for _ in range(10)
        ]
        halves.append(sigma_clipped_mean(frames))
    a, b = halves
    assert half_split(a.mean, a.variance, b.mean, b.variance) == pytest.approx(1, abs=0.02)
    # A ripple of 0.2 %: amplitude 40 ADU, mean square 800 beside a variance of 2 × 1000.
    ripple = 40 * np.sin(np.arange(400) / 5).astype(np.float32)
    assert half_split(a.mean + ripple, a.variance, b.mean, b.variance) == pytest.approx(
        1.4, abs=0.05
    )


def test_checks_say_what_is_wrong():
    good = np.full((20, 1), 30000.0)
    assert checks(good) == ()
    assert "no longer linear" in checks(good * 2)[0]
    assert "full scale" in checks(good / 20)[0]
    assert "factor of 3" in checks(good * np.linspace(0.4, 1.5, 20)[:, None])[0]
    assert "take at least 5" in checks(good[:3])[0]
    shaded = np.ones(SHAPE, np.float32)
    shaded[:10] = 0
    assert "covers the sensor" in checks(good, flat=shaded)[0]
