import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from daemon.report import preview


def noise(shape, *, seed=1, level=1000.0, sigma=10.0):
    return np.random.default_rng(seed).normal(level, sigma, shape).astype(np.float32)


def auto_stf(values, covered, *, target=0.25, shadows=-2.8):
    """PixInsight's AutoSTF, written from its documentation in plain float64."""
    values = values.astype(np.float64)
    median = np.median(values[covered])
    mad = 1.4826 * np.median(np.abs(values[covered] - median))
    black, white = median + shadows * mad, values[covered].max()

    def mtf(m, x):
        return np.where(x <= 0, 0.0, np.where(x >= 1, 1.0, (m - 1) * x / ((2 * m - 1) * x - m)))

    unit = (values - black) / (white - black)
    balance = mtf(target, (median - black) / (white - black))
    return np.where(covered, 255.0 * mtf(balance, unit), 0.0)


def test_midtones_has_its_three_fixed_points_and_the_published_form():
    x = np.array([0.0, 0.3, 1.0, 0.5])
    np.testing.assert_allclose(preview.midtones(x, 0.3)[:3], [0.0, 0.5, 1.0], atol=1e-15)
    assert preview.midtones(x, 0.25)[3] == pytest.approx(0.75)
    np.testing.assert_allclose(preview.midtones(x, 0.5), x)


def test_stretched_median_is_the_target():
    image = noise((1, 128, 200))
    image[0, 60:64, 60:64] = 40000.0
    picture = preview.stretch(image)
    assert picture.dtype == np.uint8
    assert picture.shape == (128, 200)
    assert np.median(picture) == pytest.approx(0.25 * 255, abs=1)
    assert picture[61, 61] == 255
    assert np.median(preview.stretch(image, target=0.1)) == pytest.approx(25.5, abs=1)


def test_stretch_equals_an_independent_autostf_on_the_covered_part_only():
    image = noise((1, 90, 120), seed=2)
    image[0, 10:30, 10:30] += np.linspace(0.0, 3000.0, 20, dtype=np.float32)
    coverage = np.full((90, 120), 7, dtype=np.uint16)
    coverage[:, 80:] = 0
    image[0, :, 80:] = 1e7  # what lies where nothing is covered must not matter
    image[0, 40, 40] = np.nan
    covered = (coverage > 0) & np.isfinite(image[0])
    expected = auto_stf(np.nan_to_num(image[0]), covered)
    picture = preview.stretch(image, coverage)
    assert np.abs(picture - expected).max() <= 0.51  # rounding, and float32
    assert not picture[:, 80:].any()
    assert picture[40, 40] == 0


def test_shadows_sets_where_black_begins():
    image = noise((1, 200, 200), seed=3)
    # Of a Gaussian, 0.256 % lie below −2.8 σ and 15.87 % below −1 σ. Level 0 begins a little above.
    black = preview.stretch(image) == 0
    assert black.mean() == pytest.approx(0.00256, abs=0.0015)
    assert (preview.stretch(image, shadows=-1.0) == 0).mean() == pytest.approx(0.1587, abs=0.01)


def test_colour_loses_the_glow_and_keeps_the_hues():
    image = np.stack(
        [noise((160, 160), seed=s, level=level) for s, level in ((1, 900), (2, 1500), (3, 600))]
    )
    image[:, 50:54, 50:54] += 5000.0  # a white star
    image[0, 100:104, 100:104] += 5000.0  # a red one
    picture = preview.stretch(image).astype(int)
    assert picture.shape == (160, 160, 3)
    medians = np.median(picture, axis=(0, 1))
    assert np.ptp(medians) <= 1
    assert medians.mean() == pytest.approx(0.25 * 255, abs=1.5)
    assert np.ptp(picture[52, 52]) <= 2
    assert picture[102, 102, 0] > 80 + picture[102, 102, 1:].max()


def test_neutral_background_is_the_open_sky_not_the_nebula():
    image = np.full((3, 128, 128), 100.0, dtype=np.float32)
    image[1] += 40.0
    image[0, :, :90] += 500.0  # red nebula over 70 % of the frame
    covered = np.ones(image.shape[1:], bool)
    shifted = image + preview._neutral_shifts(image, covered)[:, np.newaxis, np.newaxis]
    np.testing.assert_allclose(shifted[:, 64, 120], shifted[:, 64, 120].mean(), rtol=1e-6)
    assert shifted[0, 64, 20] - shifted[1, 64, 20] == pytest.approx(500.0)


@pytest.mark.parametrize("planes", [1, 3])
def test_an_image_without_any_coverage_is_black(planes):
    image = noise((planes, 20, 30))
    picture = preview.stretch(image, np.zeros((20, 30), np.uint8))
    assert picture.shape[:2] == (20, 30)
    assert not picture.any()


def test_a_flat_image_is_shown_at_the_target_without_warnings():
    picture = preview.stretch(np.full((1, 20, 20), 812.0, np.float32))
    assert np.all(np.abs(picture.astype(int) - 64) <= 1)


@pytest.mark.parametrize("shape", [(2, 10, 10), (10, 10)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="1 or 3 planes"):
        preview.stretch(np.zeros(shape, np.float32))


def test_downscale_by_a_whole_factor_is_the_block_mean():
    image = noise((2, 120, 160))
    small, covered = preview.downscale(image, None, max_px=40)
    np.testing.assert_allclose(small, image.reshape(2, 30, 4, 40, 4).mean(axis=(2, 4)), rtol=1e-5)
    assert covered.all()


def test_downscale_counts_fractions_of_pixels_by_their_area():
    row = np.array([3.0, 6.0, 12.0], dtype=np.float32)
    small, _ = preview.downscale(np.tile(row, (1, 3, 1)), None, max_px=2)
    np.testing.assert_allclose(small[0, 0], [4.0, 10.0], rtol=1e-6)  # (3 + 6/2)/1.5, (6/2 + 12)/1.5
    image = noise((1, 150, 300), seed=4)
    smaller, _ = preview.downscale(image, None, max_px=200)
    assert smaller.shape == (1, 100, 200)
    assert smaller.mean(dtype=np.float64) == pytest.approx(image.mean(dtype=np.float64), rel=1e-6)


def test_downscale_leaves_out_what_is_not_covered():
    image = np.full((1, 40, 40), 5.0, np.float32)
    coverage = np.ones((40, 40), np.uint8)
    coverage[:, :11] = 0  # the third output column is covered in one of its four columns
    image[0, :, :11] = 1e6
    small, covered = preview.downscale(image, coverage, max_px=10)
    np.testing.assert_array_equal(covered[0], [False, False, False] + 7 * [True])
    np.testing.assert_allclose(small[0][covered], 5.0)
    assert not small[0, :, :2].any()


def test_downscale_never_enlarges_and_never_returns_its_input():
    image = noise((1, 20, 20))
    small, _ = preview.downscale(image, None, max_px=100)
    np.testing.assert_array_equal(small, image)
    assert not np.shares_memory(small, image)


def test_compose_gives_white_stars_on_a_neutral_sky_whatever_the_levels():
    rng = np.random.default_rng(5)
    stars = np.zeros((128, 128), np.float32)
    stars[rng.integers(0, 128, 200), rng.integers(0, 128, 200)] = rng.uniform(2000, 5000, 200)
    planes = [stars * scale + level for scale, level in ((1.0, 300), (0.4, 800), (2.5, 100))]
    image = preview.compose(*planes)
    at = stars == stars.max()
    np.testing.assert_allclose(image[1:, at], image[:1, at].repeat(2, 0), rtol=0.01)
    np.testing.assert_allclose(image[:, stars == 0], 400.0, rtol=1e-4)  # the mean of the levels


def test_compose_covers_only_what_all_planes_cover():
    planes = [noise((64, 64), seed=s) for s in range(3)]
    planes[1][:, :10] = np.nan
    coverage = np.ones((64, 64), bool)
    coverage[-5:] = False
    image = preview.compose(*planes, coverage)
    missing = np.isnan(image)
    assert missing[:, :, :10].all()
    assert missing[:, -5:].all()
    assert not missing[:, :-5, 10:].any()


def test_png_opens_at_the_size_asked_for_and_carries_its_caption():
    image = noise((3, 90, 180))
    plain = Image.open(io.BytesIO(preview.png(image, max_px=120)))
    assert (plain.format, plain.size, plain.mode) == ("PNG", (120, 60), "RGB")
    framed = Image.open(io.BytesIO(preview.png(image, max_px=120, caption="Lantern · 12 × 120 s")))
    assert framed.width == 120
    assert framed.height > 60
    np.testing.assert_array_equal(np.asarray(framed)[:60], np.asarray(plain))
    assert np.asarray(framed)[60:].max() > 100  # the text
    assert Image.open(io.BytesIO(preview.png(image[:1]))).mode == "L"


def test_a_caption_uses_only_signs_that_the_font_has():
    font = ImageFont.load_default(14)
    missing = bytes(font.getmask("\uffff"))
    text = preview._drawable("Rosette é ½ α 12 × 120 s · −10 °C ± 0.1 → 3 σ\n\x1b[2J")
    assert text.startswith("Rosette e ")
    assert "12 x 120 s · -10 °C ± 0.1 > 3 sigma??[2J" in text
    assert not [c for c in text if bytes(font.getmask(c)) == missing]


def test_nothing_is_mutated():
    image, coverage = noise((3, 64, 64)), np.ones((64, 64), np.uint16)
    before = image.copy()
    preview.png(image, coverage, max_px=32)
    preview.stretch(image, coverage)
    preview.compose(*image, coverage)
    np.testing.assert_array_equal(image, before)
