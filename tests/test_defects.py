"""Defects are found where they were put, and repaired from the pixels that theory names."""

import numpy as np
import pytest
from scipy import ndimage

from calib_library.combine import ArrayRows
from calib_library.defects import (
    cold_pixels,
    exceeded,
    find_telegraph,
    pack_pixels,
    quiet_noise,
    repair_pixels,
    telegraph_pixels,
    unpack_pixels,
)
from calib_library.errors import IncompatibleFramesError


def planted(shape, fraction, seed):
    return np.random.default_rng(seed).random(shape) < fraction


@pytest.mark.parametrize("bayer", [False, True])
def test_cold_pixels_are_those_that_differ_from_their_colour(bayer):
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:100, :140]
    flat = 1 - 3e-5 * ((x - 70) ** 2 + (y - 50) ** 2) + rng.normal(0, 0.01, x.shape)
    if bayer:
        flat *= np.where(y % 2 + x % 2 == 1, 1.0, 0.4)
    cold = planted(flat.shape, 0.002, 6)
    bright = planted(flat.shape, 0.002, 7) & ~cold
    flat = np.where(cold, flat * 0.4, np.where(bright, flat * 1.7, flat)).astype(np.float32)
    assert np.array_equal(cold_pixels(flat, bayer=bayer), cold | bright)


def test_telegraph_pixels_exceed_the_model():
    variance = np.array([[59.0, 61.0]], np.float32)
    assert telegraph_pixels(variance, model_variance=10.0).tolist() == [[False, True]]


def darks(n, shape, seed, *, read=3.0, jump=0.0, jumping=None, dark=0.0, step=1):
    """Darks of 1 e-/ADU: Gaussian read noise, Poisson dark charge, jumps half of the time, rays."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(n):
        frame = 500 + rng.normal(0, read, shape) + rng.poisson(np.broadcast_to(dark, shape))
        if jumping is not None:
            frame = frame + jump * jumping * (rng.random(shape) < 0.5)
        rays = rng.random(shape) < 2e-3
        frame += rays * rng.uniform(100, 3000, shape)
        frames.append(ArrayRows((np.rint(frame / step) * step).astype(np.uint16)))
    return frames


@pytest.mark.parametrize("step", [1, 16])
def test_jumping_pixels_are_found_and_hot_ones_and_cosmic_rays_are_not(step):
    """A jump of 9 σ half of the time has a variance of 81/4 + 1 = 21 times the quiet one's."""
    shape, read = (200, 300), 3.0 * step
    jumping = planted(shape, 0.003, 1)
    hot = planted(shape, 0.01, 2) & ~jumping
    charge = np.where(hot, 3000.0, 0.0)
    found = find_telegraph(
        darks(24, shape, 3, read=read, jump=9 * read, jumping=jumping, dark=charge, step=step)
    )
    mask = np.zeros(shape, np.bool_)
    mask.reshape(-1)[found] = True
    assert not (mask & ~jumping).any()
    assert mask.sum() >= 0.95 * jumping.sum()


def test_darks_stored_in_different_ways_are_the_same_darks():
    jumping = planted((100, 150), 0.005, 11)
    taken = darks(20, (100, 150), 12, jump=40.0, jumping=jumping)
    expected = find_telegraph(taken, e_per_adu=1.0)
    assert len(expected) > 0.9 * jumping.sum()
    floats = [ArrayRows(dark.pixels.astype(np.float32)) for dark in taken]
    signed = [ArrayRows(dark.pixels.astype(np.int16)) for dark in taken]
    assert np.array_equal(find_telegraph(floats, e_per_adu=1.0), expected)
    for mixed in (floats[:7] + signed[7:14] + taken[14:], signed[:9] + taken[9:]):
        assert np.array_equal(find_telegraph(mixed, e_per_adu=1.0), expected)


def test_a_jump_within_the_noise_is_no_defect():
    # Half of the time 3 σ higher: 9/4 + 1 = 3.25 times the variance.
    jumping = planted((200, 300), 0.01, 4)
    found = find_telegraph(darks(30, (200, 300), 5, jump=9.0, jumping=jumping))
    assert len(found) < 0.05 * jumping.sum()


def test_fewer_than_twenty_darks_do_not_tell():
    with pytest.raises(IncompatibleFramesError, match="20 are needed"):
        find_telegraph(darks(19, (20, 30), 6))


@pytest.mark.parametrize("drift", [0.0, 0.01])
def test_the_quiet_variance_is_read_noise_shot_noise_and_drift(drift):
    """In darks of 1 e-/ADU it is read noise², the charge, and (1 % of the charge)²: 9 + D + …

    Half of the hot pixels jump besides.
    """
    rng = np.random.default_rng(7)
    shape = (400, 500)
    charge = np.where(planted(shape, 0.05, 8), 50.0 + rng.exponential(3000, shape), 0.0)
    truth = 9.0 + charge + (drift * charge) ** 2
    variance = truth * rng.chisquare(20, shape) / 20
    variance[planted(shape, 0.5, 10) & (charge > 0)] *= 30
    mean = (500 + charge).astype(np.float32)
    found = quiet_noise(mean, variance.astype(np.float32), least=1 / 12)
    assert found.level == pytest.approx(500)
    assert found.v0 == pytest.approx(9, rel=0.05)
    ratio = found.variance(mean) / truth
    # A quarter too small or twice too large at most, well within the factor 6.
    assert ratio.min() > 0.75
    assert ratio.max() < 2


def test_darks_without_hot_pixels_have_one_variance():
    flat = np.full((50, 60), 500.0, np.float32)
    found = quiet_noise(flat, np.full((50, 60), 4.0, np.float32), least=1 / 12)
    assert (found.v0, found.shot, found.drift) == (4.0, 0.0, 0.0)
    assert quiet_noise(flat, np.zeros((50, 60), np.float32), least=1 / 12).v0 == 1 / 12


def test_pixels_are_packed_small_and_whole():
    pixels = np.flatnonzero(planted((2000, 3000), 0.001, 9))
    packed = pack_pixels(pixels)
    assert len(packed) < 3 * len(pixels)
    assert np.array_equal(unpack_pixels(packed), pixels)
    assert unpack_pixels(pack_pixels(pixels[:0])).size == 0


def test_repair_uses_only_good_neighbours():
    image = np.array([[1, 2, 3, 4], [5, 900, 7, 8], [9, 10, 800, 12], [13, 14, 15, 16]], np.float32)
    mask = np.zeros((4, 4), np.bool_)
    mask[1, 1] = mask[2, 2] = True
    untouched = mask.copy()
    assert repair_pixels(image, mask.view(np.uint8), 1) == 0
    assert image[1, 1] == np.float32((2 + 5 + 7 + 10) / 4)
    assert image[2, 2] == np.float32((7 + 10 + 12 + 15) / 4)
    assert np.array_equal(mask, untouched)
    assert image[0, 0] == 1


def test_repair_reaches_farther_where_the_nearest_are_bad():
    image = np.arange(81, dtype=np.float32).reshape(9, 9)
    truth = image.copy()
    mask = np.zeros((9, 9), np.uint8)
    mask[3:6, 3:6] = 1  # the middle one has no good neighbour within one step
    mask[0, 0] = 2  # another bit: not bad
    image[mask == 1] = -1e6
    assert repair_pixels(image, mask, 1) == 0
    assert image[4, 4] == truth[4, 4]  # symmetric surroundings of a slope: exact
    assert image[0, 0] == 0.0


def test_repair_says_what_it_could_not_do():
    image = np.full((20, 20), 7.0, np.float32)
    assert repair_pixels(image, np.ones((20, 20), np.uint8), 1) == 400
    assert (image == 0).all()


def surroundings(image, *, bayer):
    """The 5×5 median of each colour, by scipy."""
    step = 2 if bayer else 1
    out = np.empty_like(image)
    for dy in range(step):
        for dx in range(step):
            colour = np.s_[dy::step, dx::step]
            out[colour] = ndimage.median_filter(image[colour], size=5, mode="nearest")
    return out


@pytest.mark.parametrize("bayer", [False, True])
def test_one_plane_tells_the_hot_pixels_of_every_threshold(bayer):
    # More rows than are worked on at once, so that the seams are in it.
    rng = np.random.default_rng(8)
    dark = rng.normal(500, 6, (531, 70)).astype(np.float32)
    dark[planted(dark.shape, 0.01, 9)] += rng.exponential(800)
    thresholds = np.sqrt(2.0 ** np.arange(30)).astype(np.float32)
    counts = exceeded(dark, thresholds, bayer=bayer)
    excess = dark - surroundings(dark, bayer=bayer)
    for i, threshold in enumerate(thresholds):
        assert np.array_equal(counts > i, excess > threshold)
    dark[300, 20], dark[301, 30] = np.nan, np.inf
    assert (exceeded(dark, thresholds, bayer=bayer)[[300, 301], [20, 30]] == 255).all()


def test_a_doubt_counts_as_an_excess_does():
    rng = np.random.default_rng(9)
    dark = rng.normal(500, 6, (40, 70)).astype(np.float32)
    thresholds = np.sqrt(2.0 ** np.arange(30)).astype(np.float32)
    doubt = (4.0 ** rng.uniform(-1, 20, dark.shape)).astype(np.float32)
    doubt[3, 4] = np.nan
    counts = exceeded(dark, thresholds, doubt=doubt, doubt_scale=2.0)
    by_itself = exceeded(dark, thresholds)
    beside = np.searchsorted(thresholds, np.float32(2) * doubt)
    assert np.array_equal(counts, np.maximum(by_itself, beside))
    assert counts[3, 4] == 30


@pytest.mark.parametrize("bayer", [False, True])
def test_cold_pixels_do_not_know_the_seams(bayer):
    rng = np.random.default_rng(10)
    flat = rng.normal(1, 0.2, (531, 70)).astype(np.float32)
    around = surroundings(flat, bayer=bayer)
    expected = (flat < 0.5 * around) | (flat > 1.5 * around)
    assert np.array_equal(cold_pixels(flat, bayer=bayer), expected)
