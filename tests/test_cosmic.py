import astroscrappy
import numba
import numpy as np
import pytest
from astropy.io import fits
from astroscrappy.utils import laplaceconvolve, medfilt3, medfilt5, medfilt7, rebin, subsample
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from daemon.light import cosmic
from tests.star_fields import exposed, moffat, shared, spread_out

SHAPE = (200, 240)
NOISE = {"read_noise_e": 3.0, "sky_adu": 300.0}


def whole_frame(image, *, e_per_adu, read_noise_e, saturation_adu=None):
    """astroscrappy over the whole frame at once, with the options of algorithms.md, section 8."""
    return astroscrappy.detect_cosmics(
        image,
        niter=1,
        sigclip=6.0,
        objlim=10.0,
        sepmed=False,
        gain=e_per_adu,
        readnoise=read_noise_e,
        satlevel=1e12 if saturation_adu is None else saturation_adu * e_per_adu,
        cleantype="meanmask",
    )


def assert_same_as_whole_frame(image, *, sky_adu=300.0, **camera):
    """The mask equals astroscrappy's, the repaired values but for rounding; returns the mask."""
    cleaned, mask = cosmic.clean(image, sky_adu=sky_adu, **camera)
    expected_mask, expected = whole_frame(image, **camera)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_array_equal(cleaned[~mask], image[~mask])
    # Where all of 5×5 is flagged (or may belong to a saturated star) a level stands in: there
    # astroscrappy has the median of the whole frame, and we have the sky.
    bright = image >= camera.get("saturation_adu", np.inf)
    not_good = ndimage.binary_dilation(bright, np.ones((9, 9))) | mask
    compared = mask & ~ndimage.binary_erosion(not_good, np.ones((5, 5)), border_value=1)
    np.testing.assert_allclose(cleaned[compared], expected[compared], rtol=1e-5, atol=1e-3)
    return mask


def rays(rng, count):
    """Tracks of 1 to 6 pixels, 400 ADU a pixel and more."""
    track = np.zeros(SHAPE)
    for _ in range(count):
        x, y = rng.uniform(10, 190, 2)
        angle = rng.uniform(0, np.pi)
        for step in range(rng.integers(1, 7)):
            row, column = int(y + step * np.sin(angle)), int(x + step * np.cos(angle))
            track[row, column] = rng.uniform(400, 4000)
    return track


def test_rays_are_found_and_replaced():
    rng = np.random.default_rng(1)
    clean = exposed(rng, np.zeros(SHAPE), sky=300)
    track = rays(rng, 40)
    image = clean + track.astype(np.float32)
    before = image.copy()
    cleaned, mask = cosmic.clean(image, e_per_adu=1.0, **NOISE)
    hit = track > 0
    assert mask[hit].mean() > 0.95
    assert mask[~hit].mean() < 0.002
    assert abs(cleaned[hit & mask] - 300).max() < 6 * np.sqrt(309)
    np.testing.assert_array_equal(cleaned[~mask], before[~mask])
    np.testing.assert_array_equal(image, before)
    assert cleaned.dtype == np.float32


@pytest.mark.parametrize("fwhm", [1.4, 2.0, 4.0])
def test_cores_of_stars_are_left_alone(fwhm):
    rng = np.random.default_rng(2)
    x, y = spread_out(rng, SHAPE, 30)
    flux = rng.permutation(np.geomspace(1000, 500_000, len(x)))
    image = exposed(rng, moffat(SHAPE, x, y, flux, fwhm), sky=300)
    cleaned, mask = cosmic.clean(image, e_per_adu=1.0, **NOISE)
    assert not mask[np.rint(y).astype(int), np.rint(x).astype(int)].any()
    assert cleaned.sum() == pytest.approx(image.sum(), rel=1e-4)


def test_the_gain_sets_the_noise():
    """The same electrons in other units: the same rays."""
    rng = np.random.default_rng(3)
    electrons = exposed(rng, rays(rng, 30), sky=300)
    _, mask = cosmic.clean(electrons, e_per_adu=1.0, **NOISE)
    _, scaled = cosmic.clean(
        (electrons / np.float32(4)).astype(np.float32),
        e_per_adu=4.0,
        read_noise_e=3.0,
        sky_adu=75.0,
    )
    assert mask.sum() > 30
    assert (mask != scaled).sum() <= 2
    # Taken for a quarter of the electrons, the noise looks twice as large: fewer are flagged.
    _, wrong = cosmic.clean(electrons, e_per_adu=0.05, **NOISE)
    assert wrong.sum() < mask.sum()


def test_strips_join_without_a_seam():
    rng = np.random.default_rng(4)
    image = exposed(rng, np.zeros((1100, 64)), sky=300)
    for row in (510, 511, 512, 513, 1023, 1024):
        image[row, 20 + row % 7] += 5000
    _, mask = cosmic.clean(image, e_per_adu=1.0, **NOISE)
    rows = set(np.flatnonzero(mask.any(axis=1)))
    assert {510, 511, 512, 513, 1023, 1024} <= rows
    assert len(rows) < 12


def test_saturated_stars_and_holes_are_not_flagged():
    rng = np.random.default_rng(5)
    image = exposed(rng, np.zeros(SHAPE), sky=300)
    image[97:104, 97:104] = 60_000  # a flat top with vertical walls, as an anti-blooming CCD's
    image[50, 50] = np.nan
    cleaned, mask = cosmic.clean(image, e_per_adu=1.0, saturation_adu=59_000, **NOISE)
    assert not mask[95:106, 95:106].any()
    assert not mask[50, 50]
    assert np.isnan(cleaned[50, 50])
    assert np.isfinite(cleaned).sum() == cleaned.size - 1
    assert cosmic.clean(image, e_per_adu=1.0, **NOISE)[1][95:106, 95:106].any()


def test_read_noise_is_what_the_sky_does_not_explain():
    # 300 ADU at 2 e-/ADU: 600 e-; R = 8 e-: σ = √(600 + 64) e-.
    sigma_adu = np.sqrt(600 + 64) / 2
    assert cosmic.read_noise(sigma_adu, 300.0, 2.0) == pytest.approx(8.0)
    assert cosmic.read_noise(1.0, 300.0, 2.0) == 1.0


# ---- the mask is that of astroscrappy over the whole frame --------------------------------------


def scatter_rays(rng, image, count, *, low=60, high=6000):
    """Add tracks of 1 to 12 pixels, also over the edges, in place."""
    ny, nx = image.shape
    for _ in range(count):
        y, x = rng.uniform(-2, ny + 2), rng.uniform(-2, nx + 2)
        angle, steps = rng.uniform(0, 2 * np.pi), np.arange(rng.integers(1, 13))
        rows = np.rint(y + steps * np.sin(angle)).astype(int)
        columns = np.rint(x + steps * np.cos(angle)).astype(int)
        inside = (rows >= 0) & (rows < ny) & (columns >= 0) & (columns < nx)
        energy = np.exp(rng.uniform(np.log(low), np.log(high)))
        image[rows[inside], columns[inside]] += np.float32(energy)


@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("fwhm", [1.4, 2.0, 2.8, 4.0])
def test_same_mask_on_stars_with_rays(fwhm, seed):
    rng = np.random.default_rng(seed)
    count = 120
    y, x = rng.uniform(-3, SHAPE[0] + 3, count), rng.uniform(-3, SHAPE[1] + 3, count)
    flux = np.geomspace(300, 1_000_000, count)
    scene = moffat(SHAPE, x, y, flux, fwhm)
    image = exposed(rng, scene, sky=300)
    scatter_rays(rng, image, 80)
    e_per_adu = float(rng.uniform(0.3, 3))
    mask = assert_same_as_whole_frame(image, e_per_adu=e_per_adu, read_noise_e=3.0)
    assert mask.sum() > 100


@pytest.mark.parametrize("seed", [21, 22, 23])
def test_same_mask_round_saturated_stars(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-3, SHAPE[1] + 3, 40), rng.uniform(-3, SHAPE[0] + 3, 40)
    image = exposed(rng, moffat(SHAPE, x, y, np.geomspace(1e4, 3e6, 40), 3.0), sky=300)
    scatter_rays(rng, image, 150, low=300, high=40_000)
    for _ in range(8):  # towers with vertical walls, and rays beside them
        row, column = rng.integers(0, SHAPE[0] - 6), rng.integers(0, SHAPE[1] - 6)
        height, width = rng.integers(1, 7, 2)
        image[row : row + height, column : column + width] = 40_000
    image = np.minimum(image, np.float32(30_000))
    camera = {"e_per_adu": 1.3, "read_noise_e": 3.0}
    limited = assert_same_as_whole_frame(image, saturation_adu=29_990.0, **camera)
    free = assert_same_as_whole_frame(image, **camera)
    assert (free & ~limited).sum() > 20


def test_same_mask_in_a_nebula_with_bad_pixels():
    rng = np.random.default_rng(31)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    nebula = 4000 * np.exp(-((y - 90) ** 2 + (x - 130) ** 2) / 2000) + 3 * x
    scene = nebula + moffat(SHAPE, *rng.uniform(0, 200, (2, 60)), np.geomspace(500, 1e5, 60), 2.2)
    image = exposed(rng, scene, sky=300)
    image[rng.random(SHAPE) < 0.004] *= 3  # hot
    image[rng.random(SHAPE) < 0.002] = 0  # dead
    image[rng.random(SHAPE) < 0.002] -= 2000  # subtracted too much
    image[:, 77] += 800  # a hot column, and a row
    image[140] -= 500
    scatter_rays(rng, image, 60)
    mask = assert_same_as_whole_frame(image, e_per_adu=0.8, read_noise_e=2.0)
    assert mask.sum() > 300


@pytest.mark.parametrize("seed", range(6))
def test_same_mask_at_the_edges(seed):
    rng = np.random.default_rng(40 + seed)
    shape = tuple(rng.integers(24, 44, 2))
    image = exposed(rng, np.zeros(shape), sky=300)
    edge = np.ones(shape, bool)
    edge[9:-9, 9:-9] = False
    hit = edge & (rng.random(shape) < 0.04)
    image[hit] += rng.uniform(100, 5000, hit.sum()).astype(np.float32)
    mask = assert_same_as_whole_frame(image, e_per_adu=1.0, read_noise_e=3.0)
    assert mask[edge].any()


def test_bright_edges_are_reckoned_as_astroscrappy_does():
    """Its Laplacian takes what lies beyond the edge for zero."""
    rng = np.random.default_rng(50)
    flagged = 0
    for _ in range(20):
        image = rng.uniform(0, 300, (14, 14)).astype(np.float32)
        image[rng.integers(2, 12, 4), rng.integers(2, 12, 4)] += 2000
        image[:2] *= rng.uniform(0, 30)
        image[:, -2:] *= rng.uniform(0, 30)
        flagged += assert_same_as_whole_frame(image, e_per_adu=1.7, read_noise_e=3.0).sum()
    assert flagged > 20


@pytest.mark.parametrize("seed", [51, 52, 53])
def test_the_parts_are_astroscrappys_up_to_the_edges(seed):
    """F and the variance to the bit; S within its doubt, which is small."""
    rng = np.random.default_rng(seed)
    image = (rng.uniform(-50, 300, (17, 19)) + 5000 * rng.random((17, 19)) ** 9).astype(np.float32)
    gain, variance = np.float32(1.7), np.float32(9)
    electrons = image * gain
    noise = np.sqrt(np.maximum(medfilt5(electrons + variance), np.float32(1e-5)))
    levels = medfilt3(electrons)
    fine = np.maximum((levels - medfilt7(levels)) / noise, np.float32(0.01))
    signal = rebin(np.maximum(laplaceconvolve(subsample(electrons)), 0)) / (2 * noise)
    for y in range(17):
        for x in range(19):
            found, doubt, found_noise = cosmic._signal(image, y, x, gain, variance)
            assert found_noise == noise[y, x]
            assert cosmic._fine(image, y, x, noise[y, x], gain) == fine[y, x]
            assert abs(found - signal[y, x]) <= doubt
            assert doubt * noise[y, x] < 0.05  # e-, of up to 8500


@given(
    seed=st.integers(0, 2**32 - 1),
    ny=st.integers(5, 70),
    nx=st.integers(5, 50),
    kind=st.sampled_from(["normal", "ties", "heavy", "checks", "steps", "negative"]),
    spikes=st.sampled_from([0.0, 0.003, 0.03, 0.2]),
    e_per_adu=st.floats(0.01, 20),
    read_noise_e=st.floats(0, 30),
    saturation_adu=st.sampled_from([None, 400.0, 2000.0]),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_same_mask_on_any_image(
    seed, ny, nx, kind, spikes, e_per_adu, read_noise_e, saturation_adu
):
    rng = np.random.default_rng(seed)
    shape = (ny, nx)
    y, x = np.mgrid[:ny, :nx]
    image = {
        "normal": lambda: rng.normal(300, 17, shape),
        "ties": lambda: rng.integers(98, 103, shape),
        "heavy": lambda: 300 + 20 * rng.standard_t(1.5, shape),
        "checks": lambda: 100 + 300 * ((x + y) % 2) + rng.normal(0, 3, shape),
        "steps": lambda: 50 + 500 * (x // 7 + y // 5) + rng.normal(0, 3, shape),
        "negative": lambda: rng.normal(-20, 15, shape),
    }[kind]()
    image = image.astype(np.float32)
    image[rng.random(shape) < spikes] += np.float32(rng.uniform(50, 5000))
    camera = {"e_per_adu": e_per_adu, "read_noise_e": read_noise_e}
    if saturation_adu is not None:
        camera["saturation_adu"] = saturation_adu
    assert_same_as_whole_frame(image, **camera)


@pytest.mark.parametrize("seed", [54, 55])
def test_medians_are_known_from_counts(seed):
    """Against medians that are worked out; half of the levels are values of the image."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 110, (17, 19)).astype(np.float32)
    gain = np.float32(1.3)
    levels = medfilt3(image * gain)
    middles, wide = medfilt5(image * gain), medfilt7(levels)
    for level in (gain * np.arange(95, 105, 0.5, np.float32)).astype(np.float32):
        for y in range(4, 13):
            for x in range(4, 15):
                reaches = cosmic._median25_reaches(image, y, x, gain, level)
                assert reaches == (middles[y, x] >= level)
                assert cosmic._median49_upto(image, y, x, gain, level) == (wide[y, x] <= level)


@pytest.mark.parametrize("sky", [0.5, 3.0, 30.0])
def test_same_mask_under_a_dark_sky(sky):
    """Where the least values near say next to nothing of the noise."""
    rng = np.random.default_rng(56)
    image = rng.poisson(sky + rays(rng, 30)) + rng.normal(0, 1.2, SHAPE)
    assert_same_as_whole_frame(image.astype(np.float32), e_per_adu=1.0, read_noise_e=1.2)


def test_an_image_can_be_cleaned_in_its_own_memory():
    rng = np.random.default_rng(57)
    image = exposed(rng, rays(rng, 40), sky=300)
    expected, rays_were = cosmic.clean(image, e_per_adu=1.0, **NOISE)
    cleaned, mask = cosmic.clean(image, e_per_adu=1.0, out=image, **NOISE)
    assert cleaned is image
    np.testing.assert_array_equal(cleaned, expected)
    np.testing.assert_array_equal(mask, rays_were)
    assert mask.sum() > 50


def test_holes_are_sky_while_rays_are_looked_for():
    rng = np.random.default_rng(61)
    image = exposed(rng, np.zeros(SHAPE), sky=300)
    scatter_rays(rng, image, 100)
    image[rng.random(SHAPE) < 0.01] = np.nan
    image[20:24, 30:34] = np.inf
    finite = np.isfinite(image)
    camera = {"e_per_adu": 1.0, "read_noise_e": 3.0}
    cleaned, mask = cosmic.clean(image, sky_adu=300.0, **camera)
    expected, _ = whole_frame(np.where(finite, image, np.float32(300)), **camera)
    np.testing.assert_array_equal(mask, expected & finite)
    np.testing.assert_array_equal(cleaned[~finite], image[~finite])
    assert np.isfinite(cleaned[finite]).all()
    assert mask.sum() > 100


def test_a_hole_is_no_ray():
    """Filled with a sky far above its neighbours, it looks like one."""
    image = exposed(np.random.default_rng(62), np.zeros((40, 40)), sky=30)
    image[20, 20] = np.nan
    camera = {"e_per_adu": 1.0, "read_noise_e": 3.0}
    cleaned, mask = cosmic.clean(image, sky_adu=3000.0, **camera)
    assert whole_frame(np.where(np.isfinite(image), image, np.float32(3000)), **camera)[0][20, 20]
    assert not mask.any()
    np.testing.assert_array_equal(cleaned, image)


@pytest.fixture
def calls(monkeypatch):
    """Shapes of what astroscrappy is given."""
    seen = []
    original = astroscrappy.detect_cosmics

    def spy(image, **options):
        seen.append(image.shape)
        return original(image, **options)

    monkeypatch.setattr(cosmic.astroscrappy, "detect_cosmics", spy)
    return seen


def test_crowded_strips_go_to_astroscrappy_and_join_without_a_seam(calls):
    rng = np.random.default_rng(71)
    image = exposed(rng, np.zeros((1400, 40)), sky=300)
    scatter_rays(rng, image, 100)
    for low, high in ((96, 224), (640, 1312)):  # whole strips
        spikes = rng.random((high - low, 40)) < 0.25
        image[low:high][spikes] += 3000
        # Rays that begin in the crowd and spread out of it.
        image[[low, high - 1], 3::6] += 8000
        image[[low - 1, high], 3::6] += rng.uniform(20, 200, (2, 7)).astype(np.float32)
    camera = {"e_per_adu": 1.0, "read_noise_e": 3.0}
    _, mask = cosmic.clean(image, sky_adu=300.0, **camera)
    whole = [shape for shape in calls if shape[1] == 40]
    assert len(whole) == 3  # one run of strips, and one that is longer than a call takes
    assert sum(shape[0] for shape in whole) < 1000
    np.testing.assert_array_equal(mask, whole_frame(image, **camera)[0])
    assert mask[96:224].mean() > 0.05
    assert mask[[95, 224, 639, 1312]].sum() > 5


def test_astroscrappy_is_asked_about_next_to_nothing_of_a_usual_frame(calls):
    rng = np.random.default_rng(72)
    asked = 0
    for _ in range(10):
        image = exposed(rng, rays(rng, 40), sky=300)
        assert cosmic.clean(image, e_per_adu=1.0, **NOISE)[1].sum() > 50
        asked += sum(rows * columns for rows, columns in calls)
        calls.clear()
    assert asked < 0.02 * 10 * image.size


@pytest.mark.parametrize("seed", range(4))
def test_astroscrappy_is_asked_where_a_verdict_hangs_on_rounding(calls, seed):
    """Where one more unit in the last place of one pixel changes its mask, somewhere in a frame."""
    rng = np.random.default_rng(80 + seed)
    image = exposed(rng, np.zeros((90, 120)), sky=300)
    y, x = rng.integers(2, 88), rng.integers(2, 118)
    image[y, min(x + 1, 119)] += 60
    camera = {"e_per_adu": 1.1, "read_noise_e": 3.0}

    def flagged(value):
        image[y, x] = value
        return whole_frame(image, **camera)[0].sum()

    low, high = np.float32(300), np.float32(3000)
    below = flagged(low)
    assert flagged(high) != below
    while (middle := np.float32((low + high) / 2)) not in {low, high}:
        low, high = (low, middle) if flagged(middle) != below else (middle, high)
    for value in (low, high):
        image[y, x] = value
        calls.clear()
        _, mask = cosmic.clean(image, sky_adu=300.0, **camera)
        assert 0 < sum(rows * columns for rows, columns in calls) < 0.1 * image.size
        np.testing.assert_array_equal(mask, whole_frame(image, **camera)[0])


@pytest.mark.parametrize("seed", [91, 92])
def test_what_astroscrappy_is_shown_is_enough_for_its_verdict(seed):
    """Asked about each pixel, or each strip by itself, it says what it says of the whole frame."""
    rng = np.random.default_rng(seed)
    image = rng.lognormal(5, 1, (100, 40)).astype(np.float32)  # flags and saturation everywhere
    image[rng.random(image.shape) < 0.04] *= 20
    saturation = np.float32(np.quantile(image, 0.99))
    expected, _ = whole_frame(
        image, e_per_adu=1.0, read_noise_e=3.0, saturation_adu=float(saturation)
    )
    assert expected.sum() > 100
    of_frame = (np.float32(1), np.float32(3), saturation)

    mask = np.zeros(image.shape, bool)
    rows = slice(30, 70)  # and the edges left and right of them
    places = np.arange(image.size).reshape(image.shape)[rows].ravel()
    cosmic._ask_about_pixels(image, *of_frame, places, mask)
    np.testing.assert_array_equal(mask[32:68], expected[32:68])
    assert not (mask & ~expected).any()

    for strip in range(4):
        mask = np.zeros(image.shape, bool)
        cosmic._ask_about_strips(image, *of_frame, np.array([strip]), mask)
        around = slice(max(strip * 32 - 2, 0), strip * 32 + 34)
        np.testing.assert_array_equal(mask[around], expected[around])


def test_a_ray_without_a_good_pixel_near_becomes_sky():
    """A ring of saturated pixels, whose rims reach up to the ray and not onto it."""
    rng = np.random.default_rng(73)
    image = exposed(rng, np.zeros((60, 60)), sky=300)
    distance = np.maximum(*np.abs(np.mgrid[:60, :60] - 30))
    image[distance == 5] = 3000
    image[30, 30] = 2000
    camera = {"e_per_adu": 1.0, "read_noise_e": 3.0, "saturation_adu": 2500.0}
    cleaned, mask = cosmic.clean(image, sky_adu=123.0, **camera)
    expected_mask, expected = whole_frame(image, **camera)
    np.testing.assert_array_equal(mask, expected_mask)
    assert mask[30, 30]
    assert cleaned[30, 30] == 123
    assert expected[30, 30] == pytest.approx(300, abs=3)  # the median of the frame


def test_the_number_of_threads_changes_nothing():
    rng = np.random.default_rng(74)
    image = exposed(rng, np.zeros((300, 200)), sky=300)
    scatter_rays(rng, image, 300)
    default = numba.get_num_threads()
    results = []
    try:
        for threads in {1, 2, default}:
            numba.set_num_threads(threads)
            results.append(cosmic.clean(image, e_per_adu=1.0, **NOISE))
    finally:
        numba.set_num_threads(default)
    for cleaned, mask in results[1:]:
        np.testing.assert_array_equal(cleaned, results[0][0])
        np.testing.assert_array_equal(mask, results[0][1])


@pytest.mark.parametrize("shape", [(1, 1), (4, 30), (30, 3), (5, 5), (6, 9)])
def test_frames_hardly_larger_than_a_median_are_left_alone(shape):
    image = np.full(shape, 300, np.float32)
    image[0, 0] = 5000
    cleaned, mask = cosmic.clean(image, e_per_adu=1.0, **NOISE)
    assert not mask.any()
    np.testing.assert_array_equal(cleaned, image)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "saturation_adu"),
    [
        ("tres1/tres1-021.fit", None),
        ("tres1/tres1-040.fit", 55_000.0),
        ("tres1/tres1-012d.fit", None),  # a dark: hot pixels and rays, no stars
        ("messier8/light_L_15000ms_13.fit", 60_000.0),
        ("messier8/light_R_15000ms_10.fit", None),
        ("messier8/light_B_15000ms_1.fit", 60_000.0),
    ],
)
def test_same_mask_on_real_frames(name, saturation_adu):
    folder, file = name.split("/")
    with fits.open(shared(folder) / file) as hdus:
        image = hdus[0].data.astype(np.float32)
        e_per_adu = float(hdus[0].header.get("EGAIN", 0.5))
    camera = {"e_per_adu": e_per_adu, "read_noise_e": 8.0}
    if saturation_adu is not None:
        camera["saturation_adu"] = saturation_adu
    offset = np.float32(np.percentile(image, 0.1) - 50)
    mask = assert_same_as_whole_frame(image - offset, **camera)
    assert mask.sum() > 10
