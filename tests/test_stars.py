import dataclasses

import numpy as np
import pytest
import sep

from daemon.light.stars import StarList, detect
from tests.star_fields import exposed, moffat, nearest, spread_out

SHAPE = (320, 384)


def field(rng, *, fwhm=3.0, step=40, fluxes=(1500, 100_000), shape=SHAPE, **sky):
    x, y = spread_out(rng, shape, step)
    flux = rng.permutation(np.geomspace(*fluxes, len(x)))
    return exposed(rng, moffat(shape, x, y, flux, fwhm), **sky), x, y, flux


# Detection: positions, fluxes, widths.


@pytest.mark.parametrize("fwhm", [1.5, 2.2, 3.5, 7.0])
def test_stars_are_found_where_they_are(fwhm):
    rng = np.random.default_rng(10)
    image, x, y, flux = field(rng, fwhm=fwhm, step=48, fluxes=(8000, 200_000))
    stars = detect(image)
    distance, which = nearest(stars, x, y)
    assert distance.max() < 0.5
    assert len(stars) == len(set(which)) == len(x) == stars.found
    bright = stars.snr > 100
    assert np.sqrt(np.mean(distance[bright] ** 2)) < 0.05
    ratio = stars.flux[bright] / flux[which][bright]
    assert np.median(ratio) == pytest.approx(1, abs=0.03)
    # Pixels convolve the profile (variance 1/12 px²); the matched Gaussian of a Moffat profile is
    # a little wider than its half maximum.
    seen = np.sqrt(fwhm**2 + 2.3548**2 / 12)
    assert 0.97 * seen < np.median(stars.fwhm[bright]) < 1.16 * seen
    assert np.median(stars.elongation[bright]) < 1.1


@pytest.mark.parametrize("flux", [3_000, 10_000])
def test_positions_are_as_precise_as_light_allows(flux):
    """Against the Cramér-Rao bound of a known profile; isophotal centroids err 1.4 to 1.6 times."""
    rng = np.random.default_rng(15)
    x, y = spread_out(rng, SHAPE, 40)
    stars = detect(exposed(rng, moffat(SHAPE, x, y, np.full(len(x), float(flux)), 3.0)))
    star = [moffat((41, 41), [20.3 + d], [20.4], [flux], 3.0) for d in (-0.05, 0.0, 0.05)]
    slope = (star[2] - star[0]) / 0.1
    bound = 1 / np.sqrt(np.sum(slope**2 / (star[1] + 200 + 9)))
    distance, _ = nearest(stars, x, y)
    assert len(stars) >= len(x) - 1
    assert np.sqrt(np.mean(distance**2)) < 1.25 * np.sqrt(2) * bound


def test_width_of_a_gaussian_star_is_exact():
    rng = np.random.default_rng(11)
    x, y = spread_out(rng, SHAPE, 48)
    image = exposed(rng, moffat(SHAPE, x, y, np.full(len(x), 50_000.0), 4.0, beta=200))
    seen = np.sqrt(16 + 2.3548**2 / 12)
    assert np.median(detect(image).fwhm) == pytest.approx(seen, rel=0.02)


def test_list_is_sorted_and_limited():
    rng = np.random.default_rng(12)
    image, x, *_ = field(rng)
    stars = detect(image, limit=10)
    assert len(stars) == 10
    assert (np.diff(stars.flux) <= 0).all()
    assert stars.found == pytest.approx(len(x), abs=3)


def test_an_elongated_frame_keeps_its_stars():
    rng = np.random.default_rng(13)
    x, y = spread_out(rng, SHAPE, 48)
    flux = np.full(len(x), 30_000.0)
    scene = sum(moffat(SHAPE, x + d, y, flux / 7, 2.5) for d in np.linspace(-3, 3, 7))
    stars = detect(exposed(rng, scene))
    assert len(stars) > 0.9 * len(x)
    assert np.median(stars.elongation) > 1.4


def test_large_frames_are_searched_binned_and_measured_in_full():
    rng = np.random.default_rng(14)
    shape = (2400, 3400)
    x, y = spread_out(rng, shape, 200)
    flux = rng.uniform(5000, 100_000, len(x))
    image = exposed(rng, moffat(shape, x, y, flux, 2.5))
    stars = detect(image)
    distance, which = nearest(stars, x, y)
    assert len(set(which)) == len(x)
    assert np.sqrt(np.mean(distance[stars.snr > 50] ** 2)) < 0.04


# Detection: what is not a star.


def test_empty_sky_constant_image_and_tiny_image_give_no_stars():
    rng = np.random.default_rng(20)
    assert len(detect(rng.normal(100, 5, SHAPE).astype(np.float32))) <= 1
    assert len(detect(np.full(SHAPE, 100, dtype=np.float32))) == 0
    assert len(detect(np.full(SHAPE, np.nan, dtype=np.float32))) == 0
    assert len(detect(np.zeros((5, 5), dtype=np.float32))) == 0


def test_hot_pixels_are_not_stars():
    rng = np.random.default_rng(21)
    image, x, y, _ = field(rng, fwhm=2.0)
    clean = detect(image)
    hot = rng.integers(10, 300, (2, 150))
    image[hot[0], hot[1]] += rng.uniform(300, 30_000, 150).astype(np.float32)
    stars = detect(image)
    distance, which = nearest(stars, x, y)
    assert (distance > 1.5).sum() <= 0.05 * len(stars)
    assert len(set(which[distance < 1.0])) > 0.85 * len(clean)


def test_cosmic_rays_of_a_few_pixels_are_not_stars():
    rng = np.random.default_rng(27)
    image, x, y, _ = field(rng, fwhm=5.0, step=60, fluxes=(10_000, 100_000))
    there = rng.integers(10, 300, (12, 2))
    for row, column in there:
        image[row : row + 2, column : column + 2] += rng.uniform(1000, 5000)
    stars = detect(image)
    distance, _ = nearest(stars, x, y)
    assert (distance > 2.5).sum() == 0
    assert len(stars) > 0.6 * len(x)


def test_satellite_trails_are_not_stars():
    rng = np.random.default_rng(22)
    image, x, y, _ = field(rng)
    v, u = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for slope, offset, level in ((0.3, 80, 60), (-0.8, 310, 900)):
        across = (v - slope * u - offset) / np.hypot(1, slope)
        image += (level * np.exp(-(across**2) / (2 * 1.5**2))).astype(np.float32)
    stars = detect(image)
    distance, which = nearest(stars, x, y)
    assert (distance > 1.5).sum() <= 2
    assert len(set(which[distance < 1.5])) > 0.75 * len(x)


@pytest.mark.parametrize(("amplitude", "share"), [(1500, 0.8), (8000, 0.4)])
def test_a_nebula_hides_few_stars_and_makes_none(amplitude, share):
    rng = np.random.default_rng(23)
    x, y = spread_out(rng, SHAPE, 40)
    v, u = np.mgrid[: SHAPE[0], : SHAPE[1]]
    nebula = sum(
        a * np.exp(-((u - cx) ** 2 + (v - cy) ** 2) / (2 * size**2))
        for a, cx, cy, size in ((amplitude, 200, 150, 60), (3000, 260, 200, 15), (900, 90, 90, 25))
    )
    # The peak of such a star is 800 ADU.
    scene = moffat(SHAPE, x, y, np.full(len(x), 10_000.0), 3.0) + nebula
    stars = detect(exposed(rng, scene))
    distance, which = nearest(stars, x, y)
    assert (distance > 1.5).sum() <= 2
    assert len(set(which[distance < 1.5])) > share * len(x)


def test_saturated_stars_are_flagged_and_placed():
    rng = np.random.default_rng(24)
    x, y = spread_out(rng, SHAPE, 64)
    flux = np.where(np.arange(len(x)) % 2 == 0, 2e6, 5e4)
    image = np.minimum(exposed(rng, moffat(SHAPE, x, y, flux, 3.0)), np.float32(20_000))
    stars = detect(image, saturation_adu=20_000)
    distance, which = nearest(stars, x, y)
    assert distance.max() < 0.5
    assert len(set(which)) == len(x)
    np.testing.assert_array_equal(stars.saturated, flux[which] > 1e6)
    mask = np.where(image >= 20_000, 2, 0).astype(np.uint8)
    np.testing.assert_array_equal(detect(image, mask=mask).saturated, stars.saturated)


def test_masked_pixels_are_not_searched():
    rng = np.random.default_rng(25)
    image, x, *_ = field(rng)
    mask = np.zeros(SHAPE, dtype=np.uint8)
    image[100:110, 50:56] = 30_000
    mask[100:110, 50:56] = 1
    stars = detect(image, mask=mask)
    assert ((np.abs(stars.x - 52.5) > 5) | (np.abs(stars.y - 104.5) > 7)).all()
    assert len(stars) > 0.9 * len(x)


def test_no_star_is_listed_twice():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(15, 497, (2, 3000))
        scene = moffat((512, 512), x, y, rng.uniform(4000, 60_000, 3000), 2.5, oversampling=3)
        stars = detect(exposed(rng, scene), limit=2000)
        apart = np.hypot(stars.x[:, None] - stars.x, stars.y[:, None] - stars.y)
        np.fill_diagonal(apart, 99)
        assert len(stars) > 500
        assert apart.min() > 2.5


@pytest.mark.parametrize("count", [8, 3000])
def test_few_and_many_stars(count):
    rng = np.random.default_rng(26)
    shape = (512, 512)
    x, y = rng.uniform(15, 497, (2, count))
    flux = rng.uniform(4000, 60_000, count)
    stars = detect(exposed(rng, moffat(shape, x, y, flux, 2.5, oversampling=3)))
    distance, _ = nearest(stars, x, y)
    assert len(stars) == 8 if count == 8 else len(stars) > 300
    assert np.mean(distance < 1) > 0.9


# Values and promises.


def test_not_a_number_is_sky():
    rng = np.random.default_rng(5)
    image = rng.normal(50, 2, SHAPE).astype(np.float32)
    image[:70, :70] = np.nan
    image[200, ::2] = np.nan
    assert not np.isnan(detect(image).flux).any()


@pytest.mark.parametrize("shape", [(97, 131), (3000, 2801)])
def test_values_beyond_all_measure_do_no_harm(shape):
    rng = np.random.default_rng(6)
    image = rng.normal(50, 2, shape).astype(np.float32)
    x, y = spread_out(rng, (60, shape[1]), 30)
    image[:60] += moffat((60, shape[1]), x, y, np.full(len(x), 5000.0), 3.0).astype(np.float32)
    wild = np.float32([3e38, -3e38, np.inf, -np.inf, np.nan, 1e35])
    image[-7:] = rng.choice(wild, (7, shape[1]))
    stars = detect(image)
    distance, which = nearest(stars, x, y)
    assert len(set(which[distance < 0.5])) == len(x)
    assert np.isfinite(stars.flux).all()


def test_json_gives_back_the_same_bits():
    rng = np.random.default_rng(30)
    image, *_ = field(rng)
    stars = detect(image, saturation_adu=3000)
    assert stars.saturated.any()
    again = StarList.from_json(stars.to_json())
    for part in dataclasses.fields(StarList):
        np.testing.assert_array_equal(getattr(again, part.name), getattr(stars, part.name))


def test_an_empty_list_survives_json():
    empty = detect(np.zeros((64, 64), dtype=np.float32))
    again = StarList.from_json(empty.to_json())
    assert len(again) == 0
    assert again.found == 0


def test_inputs_are_not_changed_and_threads_do_not_matter():
    import numba

    rng = np.random.default_rng(31)
    image, *_ = field(rng)
    mask = np.zeros(SHAPE, dtype=np.uint8)
    before = image.copy()
    stars = detect(image, mask=mask)
    np.testing.assert_array_equal(image, before)
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        assert detect(image, mask=mask).to_json() == stars.to_json()
    finally:
        numba.set_num_threads(threads)


def test_an_independent_extractor_finds_the_same_stars():
    """SExtractor's algorithm (sep), at 5 σ a pixel: of what either sees clearly, the other hardly
    misses anything. The faintest are a matter of where each draws its line.
    """
    rng = np.random.default_rng(33)
    image, *_ = field(rng, shape=(600, 720), fluxes=(1500, 60_000), sky=300.0)
    background = sep.Background(image)
    theirs = sep.extract(image - background, 5.0, err=background.globalrms)
    theirs = theirs[np.argsort(-theirs["flux"])]
    ours = detect(image, limit=2000)

    def distance(ax, ay, bx, by):
        """From each of the first to the nearest of the second, px."""
        return np.hypot(ax[:, None] - bx, ay[:, None] - by).min(axis=1)

    assert len(ours) > 100
    clear = slice(len(ours) * 4 // 5)
    missed = distance(theirs["x"][clear], theirs["y"][clear], ours.x, ours.y) > 0.5
    invented = distance(ours.x[clear], ours.y[clear], theirs["x"], theirs["y"]) > 0.5
    assert missed.mean() < 0.02
    assert invented.mean() < 0.02
