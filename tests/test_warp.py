"""Resampling against the truth: stars drawn where they belong, and shifts that must copy."""

import numba
import numpy as np
import pytest

from daemon.light import warp


def stars_at(shape, x, y, flux, fwhm):
    """A noiseless image (1, ny, nx) of Gaussian stars, sampled at pixel centres."""
    sigma = fwhm / 2.3548
    gy, gx = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros(shape)
    for cx, cy, f in zip(x, y, flux, strict=True):
        profile = np.exp(-((gx - cx) ** 2 + (gy - cy) ** 2) / (2 * sigma**2))
        image += f * profile / (2 * np.pi * sigma**2)
    return image.astype(np.float32)[np.newaxis]


def similarity(angle_deg, dx, dy, scale=1.0):
    c, s = scale * np.cos(np.deg2rad(angle_deg)), scale * np.sin(np.deg2rad(angle_deg))
    return np.array([[c, -s, dx], [s, c, dy], [0, 0, 1.0]])


def about_centre(angle_deg, shape, dx=0.0, dy=0.0):
    cx, cy = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    shift = np.array([[1, 0, cx + dx], [0, 1, cy + dy], [0, 0, 1.0]])
    back = np.array([[1, 0, -cx], [0, 1, -cy], [0, 0, 1.0]])
    return shift @ similarity(angle_deg, 0, 0) @ back


def aperture(image, x, y, radius):
    """Flux and centroid within a square window around (x, y)."""
    x0, y0 = round(x), round(y)
    cut = image[y0 - radius : y0 + radius + 1, x0 - radius : x0 + radius + 1].astype(np.float64)
    gy, gx = np.mgrid[y0 - radius : y0 + radius + 1, x0 - radius : x0 + radius + 1]
    flux = cut.sum()
    return flux, (cut * gx).sum() / flux, (cut * gy).sum() / flux


@pytest.mark.parametrize("fwhm", [2.5, 3.0, 3.7])
@pytest.mark.parametrize("angle", [0.0, 0.21, 37.0, 180.0])
def test_flux_and_place_of_stars_come_through(fwhm, angle):
    rng = np.random.default_rng(11)
    shape = (180, 200)
    grid = np.array([(gx, gy) for gx in (60, 100, 140) for gy in (60, 90, 120)], float)
    places = grid + rng.uniform(-0.5, 0.5, grid.shape)
    image = stars_at(shape, *places.T, np.full(9, 1e5), fwhm)
    matrix = about_centre(angle, shape, 0.37, -1.61)
    warped, coverage = warp.warp(image, matrix, shape=shape, noise_adu=5.0)
    for x, y in places @ matrix[:2, :2].T + matrix[:2, 2]:
        if not (16 < x < 184 and 16 < y < 164):
            continue
        assert coverage[round(y) - 12 : round(y) + 13, round(x) - 12 : round(x) + 13].all()
        flux, cx, cy = aperture(warped[0], x, y, 12)
        assert abs(flux / 1e5 - 1) < (1e-4 if fwhm >= 3 else 2e-4)
        assert np.hypot(cx - x, cy - y) < 0.005


def test_a_shift_by_whole_pixels_and_a_flip_copy():
    image = np.random.default_rng(1).normal(1000, 10, (3, 40, 50)).astype(np.float32)
    shifted, coverage = warp.warp(image, similarity(0, 4, -3), shape=(40, 50))
    np.testing.assert_array_equal(shifted[:, :37, 4:], image[:, 3:, :46])
    assert coverage[:37, 4:].all()
    assert not coverage[37:].any()
    assert not coverage[:, :4].any()
    assert not shifted[:, 37:].any()
    flip = np.array([[-1, 0, 49.0], [0, -1, 39.0], [0, 0, 1]])
    flipped, coverage = warp.warp(image, flip, shape=(40, 50))
    np.testing.assert_array_equal(flipped, image[:, ::-1, ::-1])
    assert coverage.all()


def test_a_turn_by_180_degrees_in_floating_point_covers_the_whole_frame():
    image = np.random.default_rng(1).normal(1000, 10, (1, 40, 50)).astype(np.float32)
    flipped, coverage = warp.warp(image, about_centre(180.0, (40, 50)), shape=(40, 50))
    assert coverage.all()
    np.testing.assert_array_equal(flipped, image[:, ::-1, ::-1])


def test_a_flat_and_a_slope_are_reproduced_and_noise_keeps_its_mean():
    y, x = np.mgrid[:120, :140].astype(np.float64)
    slope = (500 + 0.3 * x - 0.2 * y).astype(np.float32)[np.newaxis]
    matrix = about_centre(5.0, (120, 140), 0.4, 0.3)
    warped, coverage = warp.warp(slope, matrix, shape=(120, 140), noise_adu=1.0)
    inverse = np.linalg.inv(matrix)
    sx = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
    sy = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]
    inner = (sx > 3) & (sx < 136) & (sy > 3) & (sy < 116)
    assert coverage[inner].all()
    np.testing.assert_allclose(warped[0][inner], (500 + 0.3 * sx - 0.2 * sy)[inner], atol=1e-3)
    noise = np.random.default_rng(2).normal(1000, 10, (1, 400, 400)).astype(np.float32)
    warped, coverage = warp.warp(noise, similarity(0, 0.5, 0.5), shape=(400, 400))
    # The kernel averages 400² independent pixels: σ of the mean is 10/400.
    assert abs(warped[0][coverage > 0].mean() - noise.mean()) < 0.02


def test_a_binned_frame_keeps_its_flux():
    image = stars_at((60, 70), [30.2], [29.7], [1e5], 3.0)
    double = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1.0]])
    warped, _ = warp.warp(image, double, shape=(120, 140), noise_adu=5.0)
    flux, x, y = aperture(warped[0], 60.9, 59.9, 24)
    assert abs(flux / 1e5 - 1) < 2e-4
    assert np.hypot(x - 60.9, y - 59.9) < 0.01


def test_a_homography_moves_stars_to_where_it_says():
    shape = (150, 160)
    places = np.array([[50.3, 60.1], [110.7, 40.2], [100.5, 110.9]])
    matrix = np.array([[1.01, 0.02, -3.2], [-0.015, 0.99, 4.1], [2e-5, -3e-5, 1.0]])
    image = stars_at(shape, *places.T, [1e5] * 3, 3.0)
    warped, _ = warp.warp(image, matrix, shape=shape, noise_adu=5.0)
    for place in places:
        u, v, w = matrix @ [*place, 1.0]
        flux, x, y = aperture(warped[0], u / w, v / w, 12)
        assert abs(flux / 1e5 - 1) < 2e-4
        assert np.hypot(x - u / w, y - v / w) < 0.02


def test_a_hot_pixel_does_not_ring():
    image = np.random.default_rng(3).normal(1000, 10, (1, 60, 60)).astype(np.float32)
    image[0, 30, 30] = 20000
    image[0, 10:14, 40:50] = 60000
    warped, _ = warp.warp(image, similarity(0, 0.5, 0.4), shape=(60, 60))
    # Unclamped, the first lobe draws −0.13 × 19000 = −2500 ADU, and −0.17 × 59000 at the block.
    inner = warped[0][3:-3, 3:-3]
    assert inner.min() > 1000 - 0.01 * 59000 - 6 * 10
    assert warped[0][25:36, 25:36].min() > 1000 - 0.01 * 19000 - 6 * 10
    far = warped[0].copy()
    far[29:33, 29:33] = 1000
    far[9:16, 39:53] = 1000
    assert far[3:-3, 3:-3].max() < 1000 + 0.01 * 59000 + 6 * 10


def test_bad_pixels_are_not_used():
    rng = np.random.default_rng(4)
    image = rng.normal(1000, 1, (1, 80, 80)).astype(np.float32)
    mask = np.zeros((80, 80), np.uint8)
    mask[rng.integers(0, 80, 60), rng.integers(0, 80, 60)] = 1
    mask[40, 20] |= 2
    spoiled = image.copy()
    spoiled[0][(mask & 1) > 0] = 50000
    for shift in (0.0, 0.3, 0.5):
        out = warp.warp_rows(
            spoiled, similarity(0, shift, 0), rows=(0, 80), width=80, mask=mask, noise_adu=1.0
        )
        assert np.nanmax(out) < 1010
        assert np.nanmin(out) > 990
    whole = warp.warp_rows(spoiled, np.eye(3), rows=(0, 80), width=80, mask=mask, noise_adu=1.0)
    # Not moved, only the bad pixels themselves are lost; saturated ones (bit 2) stay.
    np.testing.assert_array_equal(np.isnan(whole[0]), (mask & 1) > 0)


def test_not_finite_pixels_are_not_covered_and_rows_agree_with_the_whole():
    image = np.random.default_rng(5).normal(1000, 10, (1, 50, 50)).astype(np.float32)
    image[0, 20, 20] = np.nan
    matrix = about_centre(10.0, (50, 50))
    warped, coverage = warp.warp(image, matrix, shape=(50, 50), noise_adu=10.0)
    assert np.isfinite(warped).all()
    assert coverage[20, 20] == 0
    rows = warp.warp_rows(image, matrix, rows=(17, 31), width=50, noise_adu=10.0)
    np.testing.assert_array_equal(np.nan_to_num(rows), warped[:, 17:31])


def test_input_is_unmodified_and_wrong_input_refused():
    image = np.random.default_rng(6).normal(0, 1, (1, 30, 30)).astype(np.float32)
    kept = image.copy()
    out = np.empty_like(image)
    assert warp.warp(image, np.eye(3), shape=(30, 30), out=out)[0] is out
    np.testing.assert_array_equal(image, kept)
    with pytest.raises(ValueError, match="inverted"):
        warp.warp(image, np.zeros((3, 3)), shape=(30, 30))
    with pytest.raises(ValueError, match="finite"):
        warp.warp(image, np.full((3, 3), np.nan), shape=(30, 30))
    with pytest.raises(ValueError, match="float32"):
        warp.warp(image[0], np.eye(3), shape=(30, 30))
    with pytest.raises(ValueError, match="out is"):
        warp.warp(image, np.eye(3), shape=(31, 30), out=out)
    with pytest.raises(ValueError, match="mask"):
        warp.warp_rows(image, np.eye(3), rows=(0, 30), width=30, mask=np.zeros((2, 2), np.uint8))


def test_a_frame_far_away_covers_nothing():
    image = np.ones((1, 20, 20), np.float32)
    for matrix in (similarity(0, 1e9, 0), np.array([[1, 0, 0], [0, 1, 0], [-0.2, 0, 1.0]])):
        warped, coverage = warp.warp(image, matrix, shape=(20, 20))
        assert np.isfinite(warped).all()
        assert not warped[:, coverage == 0].any()
    assert not warp.warp(image, similarity(0, 1e9, 0), shape=(20, 20))[1].any()


def test_pixel_noise_sees_through_stars_and_slopes():
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:200, :300]
    image = stars_at((200, 300), rng.uniform(0, 300, 20), rng.uniform(0, 200, 20), [1e4] * 20, 3.0)
    image += (rng.normal(500, 7, (1, 200, 300)) + 0.5 * x + 0.2 * y).astype(np.float32)
    assert abs(warp.pixel_noise(image) / 7 - 1) < 0.05


# With a distortion: the polynomial is written out here once more, from its definition.

POWERS = [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3)]


def bent(inverse, distortion, x, y):
    """Frame px of reference px (x, y), by the definition."""
    w = inverse[2, 0] * x + inverse[2, 1] * y + inverse[2, 2]
    out = []
    for k in (0, 1):
        value = (inverse[k, 0] * x + inverse[k, 1] * y + inverse[k, 2]) / w
        for c, (i, j) in zip(distortion[k], POWERS, strict=True):
            value = value + c * (x / 4096) ** i * (y / 4096) ** j
        out.append(value)
    return out


def barrel(shape, corner_px, *, keystone_px=0.0):
    """A distortion (2, 10) of `corner_px` along the radius at the corners, and a keystone."""
    ny, nx = shape
    cx, cy, radius = (nx - 1) / 2, (ny - 1) / 2, np.hypot(nx, ny) / 2
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, nx, 200), rng.uniform(0, ny, 200)
    u, v = (x - cx) / radius, (y - cy) / radius
    dx = corner_px * u * (u**2 + v**2) + keystone_px * u * v
    dy = corner_px * v * (u**2 + v**2) + keystone_px * v * v
    basis = np.stack([(x / 4096) ** i * (y / 4096) ** j for i, j in POWERS], axis=1)
    return np.linalg.lstsq(basis / basis.max(axis=0), np.stack((dx, dy), axis=1), rcond=None)[
        0
    ].T / basis.max(axis=0)


TWISTED = [about_centre(0.0, (200, 220)), about_centre(181.3, (200, 220), 2.3, -3.7)]
TILTED = about_centre(7.0, (200, 220), -1.2, 0.4)
TILTED[2, :2] = 4e-5, -6e-5


@pytest.mark.parametrize("fwhm", [2.5, 3.0, 3.7])
@pytest.mark.parametrize("matrix", [*TWISTED, TILTED])
def test_flux_and_place_of_stars_come_through_a_cubic_distortion(matrix, fwhm):
    """The corners are bent by 6 px of 149, as 150 px in a frame of 26 megapixels, and the area of a
    pixel by 10 %.
    """
    rng = np.random.default_rng(12)
    shape = (200, 220)
    distortion = barrel(shape, 6.0, keystone_px=3.0)
    grid = np.array([(x, y) for x in (45, 75, 105, 135, 165) for y in (45, 75, 105, 135)], float)
    places = grid + rng.uniform(-0.5, 0.5, grid.shape)
    there = np.array(bent(np.linalg.inv(matrix), distortion, *places.T))
    seen = np.all((there > 14) & (there < np.array([[205], [185]])), axis=0)
    places, there = places[seen], there[:, seen]
    assert len(places) > 12
    image = stars_at(shape, *there, np.full(len(places), 1e5), fwhm)
    warped, coverage = warp.warp(image, matrix, shape=shape, distortion=distortion, noise_adu=5.0)
    fluxes, away = [], []
    for x, y in places:
        assert coverage[round(y) - 12 : round(y) + 13, round(x) - 12 : round(x) + 13].all()
        flux, cx, cy = aperture(warped[0], x, y, 12)
        fluxes.append(flux / 1e5 - 1)
        away.append(np.hypot(cx - x, cy - y))
    assert np.abs(np.mean(fluxes)) < 1e-4
    assert np.max(np.abs(fluxes)) < (2e-4 if fwhm >= 3 else 4e-4)
    assert np.sqrt(np.mean(np.square(away))) < 0.005


def test_a_slope_is_reproduced_through_a_distortion_and_covered_exactly():
    """Within a slope every position can be read off, and the area is that of its neighbours."""
    shape = (200, 220)
    distortion = barrel(shape, 6.0, keystone_px=3.0)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    slope = (500 + 0.3 * x - 0.2 * y).astype(np.float32)[np.newaxis]
    for matrix in (*TWISTED, TILTED):
        inverse = np.linalg.inv(matrix)
        inverse /= inverse[2, 2]
        sx, sy = bent(inverse, distortion, x, y)
        step = 1e-3
        right, left, down, up = (
            np.array(bent(inverse, distortion, x + i * step, y + j * step))
            for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1))
        )
        east, south = (right - left) / (2 * step), (down - up) / (2 * step)
        area = np.abs(east[0] * south[1] - east[1] * south[0])
        warped, coverage = warp.warp(
            slope, matrix, shape=shape, distortion=distortion, noise_adu=1.0
        )
        expected = (500 + 0.3 * sx - 0.2 * sy) * area
        inner = (sx > 3) & (sx < 216) & (sy > 3) & (sy < 196)
        np.testing.assert_allclose(warped[0][inner], expected[inner], rtol=1e-6)
        edge = np.minimum.reduce([sx, 219 - sx, sy, 199 - sy])
        # On the border itself the rounding to 1/1024 px decides.
        clear = np.abs(edge) > 1e-3
        np.testing.assert_array_equal(coverage[clear], (edge > 0)[clear])


def test_a_distortion_of_nothing_is_none():
    image = np.random.default_rng(8).normal(1000, 10, (1, 60, 70)).astype(np.float32)
    for matrix in (about_centre(3.0, (60, 70), 0.3, 0.7), TILTED):
        plain = warp.warp_rows(image, matrix, rows=(0, 60), width=70)
        zero = warp.warp_rows(image, matrix, rows=(0, 60), width=70, distortion=np.zeros((2, 10)))
        # The area is reckoned in another way, to the last digit of a float64.
        np.testing.assert_allclose(zero, plain, rtol=1e-6)
        np.testing.assert_array_equal(np.isnan(zero), np.isnan(plain))
    # A constant displacement is a shift.
    shift = np.zeros((2, 10))
    shift[:, 0] = 4.0, -3.0
    moved = warp.warp_rows(image, np.eye(3), rows=(0, 60), width=70, distortion=shift)
    np.testing.assert_array_equal(moved[:, 3:, :66], image[:, :57, 4:])
    assert np.isnan(moved[:, :3]).all()
    assert np.isnan(moved[:, :, 66:]).all()


def test_where_a_distortion_folds_the_frame_over_itself_there_is_nothing():
    """Frame x = x − x³/4800 turns back at x = 40, and would show the frame again, mirrored."""
    image = np.ones((1, 40, 100), np.float32)
    fold = np.zeros((2, 10))
    fold[0, 6] = -(4096.0**3) / (3 * 40.0**2)
    warped, coverage = warp.warp(image, np.eye(3), shape=(40, 100), distortion=fold)
    x = np.arange(100)
    slope = 1 - (x / 40.0) ** 2
    assert coverage[:, slope > 0.51].all()
    assert not coverage[:, slope < 0.49].any()
    np.testing.assert_allclose(warped[0, 5, slope > 0.51], slope[slope > 0.51], rtol=1e-5)


def test_distorted_rows_agree_with_the_whole_for_any_number_of_threads():
    shape = (200, 220)
    image = np.random.default_rng(9).normal(1000, 10, (3, *shape)).astype(np.float32)
    distortion = barrel(shape, 6.0, keystone_px=3.0)
    kept = distortion.copy()
    distortion.setflags(write=False)
    before = numba.get_num_threads()
    results = []
    try:
        for threads in {1, min(2, before), before}:
            numba.set_num_threads(threads)
            warped, _ = warp.warp(image, TILTED, shape=shape, distortion=distortion, noise_adu=10.0)
            results.append(warped)
    finally:
        numba.set_num_threads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    rows = warp.warp_rows(
        image, TILTED, rows=(50, 61), width=220, distortion=distortion, noise_adu=10.0
    )
    np.testing.assert_array_equal(np.nan_to_num(rows), results[0][:, 50:61])
    np.testing.assert_array_equal(distortion, kept)
    for wrong in (np.zeros((2, 9)), np.full((2, 10), np.nan)):
        with pytest.raises(ValueError, match="distortion"):
            warp.warp(image, TILTED, shape=shape, distortion=wrong)
