import numpy as np
import pytest

from daemon.light.background import measure_background
from tests.star_fields import exposed, moffat, spread_out

SHAPE = (320, 384)


def test_level_and_noise_are_the_scene_s():
    rng = np.random.default_rng(1)
    image = rng.normal(500, 12, SHAPE).astype(np.float32)
    background = measure_background(image)
    assert background.level_adu == pytest.approx(500, abs=0.3)  # 1.25 × 12 / √(pixels) is 0.04
    assert background.sigma_adu == pytest.approx(12, rel=0.02)
    assert background.cells.shape == background.noise.shape == (5, 6)


def test_stars_do_not_raise_the_level_or_the_noise():
    rng = np.random.default_rng(2)
    x, y = spread_out(rng, SHAPE, 40)
    flux = rng.permutation(np.geomspace(1500, 100_000, len(x)))
    image = exposed(rng, moffat(SHAPE, x, y, flux, 3.0), sky=400.0)
    background = measure_background(image)
    true_noise = np.sqrt(400 + 9)
    assert background.level_adu == pytest.approx(400, abs=0.1 * true_noise)
    assert background.sigma_adu == pytest.approx(true_noise, rel=0.06)


def test_cells_follow_a_gradient():
    rng = np.random.default_rng(3)
    ny, nx = SHAPE
    truth = 300 + 0.5 * np.arange(nx)[None, :] + 0.2 * np.arange(ny)[:, None]
    background = measure_background((truth + rng.normal(0, 5, SHAPE)).astype(np.float32))
    x, y = np.array([100.0, 250.5, 300.0]), np.array([60.0, 150.5, 250.0])
    # The median of a cell is exact for a plane; between cells a plane is interpolated exactly.
    np.testing.assert_allclose(background.at(x, y), 300 + 0.5 * x + 0.2 * y, atol=1.0)


def test_quantised_noise_below_one_adu_is_measured():
    rng = np.random.default_rng(4)
    image = np.rint(rng.normal(100.2, 0.6, SHAPE)).astype(np.float32)
    # Rounding adds 1/12 ADU²; the MAD of such data would be 0 or 1.48.
    assert measure_background(image).sigma_adu == pytest.approx(np.sqrt(0.36 + 1 / 12), rel=0.05)


def test_not_a_number_is_left_out():
    rng = np.random.default_rng(5)
    image = rng.normal(50, 2, SHAPE).astype(np.float32)
    image[:70, :70] = np.nan
    image[200, ::2] = np.nan
    background = measure_background(image)
    assert np.isfinite(background.cells).all()
    assert background.level_adu == pytest.approx(50, abs=0.2)


def test_sparse_sampling_of_a_large_frame_agrees():
    rng = np.random.default_rng(6)
    image = rng.normal(1000, 30, (2500, 2500)).astype(np.float32)
    background = measure_background(image)
    assert background.level_adu == pytest.approx(1000, abs=0.5)
    assert background.sigma_adu == pytest.approx(30, rel=0.02)


def test_any_number_type_and_any_layout():
    rng = np.random.default_rng(7)
    image = rng.poisson(1000, SHAPE).astype(np.uint16)
    expected = measure_background(image.astype(np.float32))
    assert measure_background(image.astype(">u2")).level_adu == expected.level_adu
    assert measure_background(np.asfortranarray(image)).sigma_adu == expected.sigma_adu


def test_noise_is_not_what_a_nebula_changes_by():
    rng = np.random.default_rng(14)
    y, x = np.mgrid[:256, :320]
    image = (500 + 30 * np.sin(x / 8 + y / 11) + rng.normal(0, 10, x.shape)).astype(np.float32)
    assert measure_background(image).sigma_adu == pytest.approx(10, rel=0.05)


def test_noise_is_not_the_wings_of_stars():
    rng = np.random.default_rng(15)
    x, y = rng.uniform(0, 320, 200), rng.uniform(0, 256, 200)
    scene = moffat((256, 320), x, y, rng.uniform(500, 20_000, 200), 3.5)
    image = (500 + scene + rng.normal(0, 10, scene.shape)).astype(np.float32)
    assert measure_background(image).sigma_adu == pytest.approx(10, rel=0.03)


def test_cosmic_rays_change_neither_the_level_nor_the_noise():
    """A frame is measured once, before they are cleaned. These are a hundred times as many as an
    exposure of minutes has.
    """
    rng = np.random.default_rng(16)
    image = rng.normal(500, 12, SHAPE).astype(np.float32)
    before = measure_background(image)
    rays = rng.choice(image.size, image.size // 1000, replace=False)
    image.flat[rays] += rng.exponential(500, len(rays)).astype(np.float32)
    after = measure_background(image)
    assert after.level_adu == pytest.approx(before.level_adu, abs=0.01 * 12)
    assert after.sigma_adu == pytest.approx(before.sigma_adu, rel=0.005)
