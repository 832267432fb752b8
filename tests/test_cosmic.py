import numpy as np
import pytest

from daemon.light import cosmic
from tests.star_fields import exposed, moffat, spread_out

SHAPE = (200, 240)
NOISE = {"read_noise_e": 3.0, "sky_adu": 300.0}


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
