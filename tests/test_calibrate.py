"""The fused pass against plain numpy, and what it does where an input is worthless."""

import numba
import numpy as np
import pytest

from calib_library.errors import IncompatibleFramesError
from daemon.light.calibrate import SATURATED, Noise, calibrate

SHAPE = (61, 83)


def inputs(seed=1, dtype=np.uint16):
    rng = np.random.default_rng(seed)
    raw = rng.integers(300, 60000, SHAPE).astype(dtype)
    dark = rng.normal(500, 30, SHAPE).astype(np.float32)
    flat = rng.uniform(0.4, 1.3, SHAPE).astype(np.float32)
    return raw, dark, flat


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int16, np.uint8, np.float64])
@pytest.mark.parametrize("has_dark", [True, False])
@pytest.mark.parametrize("has_flat", [True, False])
def test_equals_numpy(dtype, has_dark, has_flat):
    raw, dark, flat = inputs()
    raw = (raw % 200).astype(dtype)
    expected = raw.astype(np.float64)
    expected = expected - dark if has_dark else expected
    expected = expected / flat if has_flat else expected
    result = calibrate(raw, dark=dark if has_dark else None, flat=flat if has_flat else None)
    assert result.image.dtype == np.float32
    assert np.allclose(result.image, expected, rtol=3e-7, atol=1e-4)
    assert not result.mask.any()
    if has_dark:
        assert (result.image < 0).any()  # negative values are kept


def test_saturation_is_marked_from_the_raw_value_and_kept():
    raw, dark, flat = inputs()
    result = calibrate(raw, dark=dark, flat=flat, saturation_adu=55000)
    assert np.array_equal(result.mask == SATURATED, raw >= 55000)
    assert np.allclose(result.image, (raw - dark.astype(np.float64)) / flat, rtol=1e-6)


@pytest.mark.parametrize("bayer", [False, True])
def test_bad_pixels_take_the_mean_of_their_neighbours_of_the_same_colour(bayer):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    # Each phase has a level of its own and a slope: the mean of four neighbours is exact.
    truth = 1000.0 + 3.0 * x + 5.0 * y
    if bayer:
        truth += 4000.0 * (y % 2) + 2000.0 * (x % 2)
    bad = np.zeros(SHAPE, np.uint8)
    bad[7:60:11, 6:80:9] = 1
    raw = np.where(bad, 65000.0, truth).astype(np.float32)
    result = calibrate(raw, bad=bad, bayer=bayer)
    assert np.allclose(result.image, truth, rtol=1e-6)
    assert np.array_equal(result.mask, bad)


def test_pixels_without_light_or_without_a_value_are_bad_and_repaired():
    raw = np.full(SHAPE, 1200.0, np.float32)
    dark = np.full(SHAPE, 200.0, np.float32)
    flat = np.ones(SHAPE, np.float32)
    flat[5, 5], flat[9, 9], flat[12, 60] = 0.0, np.nan, 0.05
    raw[20, 20] = np.nan
    dark[30, 30] = np.inf
    result = calibrate(raw, dark=dark, flat=flat)
    marked = {tuple(int(i) for i in at) for at in np.argwhere(result.mask)}
    assert marked == {(5, 5), (9, 9), (12, 60), (20, 20), (30, 30)}
    assert (result.image == 1000.0).all()


def test_inputs_are_not_touched_and_buffers_are_reused():
    raw, dark, flat = inputs()
    before = [a.copy() for a in (raw, dark, flat)]
    bad = np.zeros(SHAPE, np.uint8)
    bad[3, 3] = 1
    out = np.full(SHAPE, np.nan, np.float32)
    mask = np.full(SHAPE, 255, np.uint8)
    result = calibrate(raw, dark=dark, flat=flat, bad=bad, out=out, mask_out=mask)
    assert result.image is out
    assert result.mask is mask
    fresh = calibrate(raw, dark=dark, flat=flat, bad=bad)
    assert fresh.image.tobytes() == out.tobytes()
    assert np.array_equal(fresh.mask, mask)
    for array, copy in zip((raw, dark, flat), before, strict=True):
        assert np.array_equal(array, copy)


def test_threads_do_not_show():
    raw, dark, flat = inputs()
    bad = (np.random.default_rng(3).random(SHAPE) < 0.3).astype(np.uint8)
    default = numba.get_num_threads()
    results = []
    try:
        for threads in {1, min(2, default), default}:
            numba.set_num_threads(threads)
            results.append(calibrate(raw, dark=dark, flat=flat, bad=bad, bayer=True).image)
    finally:
        numba.set_num_threads(default)
    assert len({image.tobytes() for image in results}) == 1


def test_a_master_of_another_size_is_refused():
    raw, dark, _ = inputs()
    with pytest.raises(IncompatibleFramesError, match="the dark has 83 × 60 px"):
        calibrate(raw, dark=dark[:-1])


def test_bad_is_what_is_above_the_bound():
    raw, _, _ = inputs()
    counts = np.random.default_rng(4).integers(0, 256, SHAPE).astype(np.uint8)
    marked = calibrate(raw, bad=counts, bad_above=200).mask
    assert np.array_equal(marked != 0, counts > 200)


@pytest.mark.parametrize("shape", [(SHAPE[0], 1), (1, SHAPE[1]), SHAPE])
def test_overscan_is_taken_off_in_the_same_pass(shape):
    raw, dark, flat = inputs()
    levels = np.random.default_rng(2).normal(400, 20, shape).astype(np.float32)
    result = calibrate(raw, overscan_adu=levels, dark=dark, flat=flat, saturation_adu=55000)
    expected = (raw - levels.astype(np.float64) - dark) / flat
    assert np.allclose(result.image, expected, rtol=3e-7, atol=1e-3)
    # Saturation is the converter's: of the raw value.
    assert np.array_equal(result.mask == SATURATED, raw >= 55000)


def test_overscan_of_another_size_is_refused():
    raw, _, _ = inputs()
    with pytest.raises(IncompatibleFramesError, match="overscan levels"):
        calibrate(raw, overscan_adu=np.zeros((SHAPE[0] - 1, 1), np.float32))


def test_variance_is_that_of_simulated_frames():
    """Photons are Poisson, reading is Gaussian: the scatter of many calibrated frames about the
    true light is what the variance plane says, at a faint and at a bright level.
    """
    rng = np.random.default_rng(7)
    gain, read_noise, bias = 1.6, 4.0, 300.0  # e-/ADU, e-, ADU
    shape, times = (40, 50), 400
    vignette = np.linspace(0.4, 1.2, shape[1]) * np.ones(shape)
    light = np.where(np.arange(shape[0])[:, None] < 20, 30.0, 6000.0) * np.ones(shape)  # e-
    errors, told = [], []
    for _ in range(times):
        raw = bias + (rng.poisson(light * vignette) + rng.normal(0, read_noise, shape)) / gain
        result = calibrate(
            raw.astype(np.float32),
            dark=np.full(shape, bias, np.float32),
            flat=vignette.astype(np.float32),
            noise=Noise(e_per_adu=gain, read_noise_e=read_noise),
        )
        errors.append(result.image - light / gain)
        told.append(result.variance)
    measured, predicted = np.mean(np.square(errors), axis=0), np.mean(told, axis=0)
    for rows in (slice(0, 20), slice(20, 40)):
        for columns in (slice(0, 15), slice(35, 50)):
            at = rows, columns
            # 300 pixels × 400 frames: the ratio is known to 0.4 %; clipping at 0 e- adds 1 %.
            assert measured[at].mean() == pytest.approx(predicted[at].mean(), rel=0.03)


def test_variance_only_where_wanted_and_none_for_repaired_pixels():
    raw, dark, flat = inputs()
    bad = np.zeros(SHAPE, np.uint8)
    bad[8, 9] = 1
    assert calibrate(raw, dark=dark, flat=flat, bad=bad).variance is None
    noise = Noise(e_per_adu=2.0, read_noise_e=3.0)
    result = calibrate(raw, dark=dark, flat=flat, bad=bad, noise=noise)
    expected = (np.maximum(raw - dark.astype(np.float64), 0) / 2.0 + 1.5**2) / flat**2.0
    assert np.isinf(result.variance[8, 9])
    good = bad == 0
    assert np.allclose(result.variance[good], expected[good], rtol=1e-5)
    plain = calibrate(raw, noise=noise).variance
    assert np.allclose(plain, raw / 2.0 + 1.5**2, rtol=1e-6)
