"""Drizzle against areas and sums that are known, and against the noiseless sky."""

import dataclasses

import numba
import numpy as np
import pytest

from daemon.light.distortion import to_reference
from daemon.stack import drizzle
from tests.test_live import simple_terms

NY, NX = 48, 56


def rigid(angle_deg, dx, dy, *, shape=(NY, NX), zoom=1.0, mirror=False):
    """Frame → reference: about the centre, then a shift."""
    angle = np.deg2rad(angle_deg)
    c, s = zoom * np.cos(angle), zoom * np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    if mirror:
        turn = turn @ np.diag([-1.0, 1, 1])
    cy, cx = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    there = np.array([[1, 0, cx + dx], [0, 1, cy + dy], [0, 0, 1.0]])
    return there @ turn @ np.array([[1, 0, -cx], [0, 1, -cy], [0, 0, 1.0]])


def dropped(samples, matrix, terms=None, *, rows=(0, NY), planes=1, width=NX, **options):
    grid = drizzle.Grid.empty(planes, rows, width)
    terms = terms or simple_terms(0, planes=planes)
    drizzle.add(grid, samples.astype(np.float32), matrix, terms, **options)
    return grid


def share_of(samples, matrix, i, j, *, pixfrac, steps=41):
    """(area, area · value) that a pixel (i, j) of the fine grid shares with the drops, by points
    spread over it: each is led back into the frame, and lies on a drop or not.
    """
    t = (np.arange(steps) + 0.5) / steps
    u, v = np.meshgrid(i + t, j + t)
    points = np.stack([u / 2 - 0.5, v / 2 - 0.5, np.ones_like(u)]).reshape(3, -1)
    x, y, w = np.linalg.inv(matrix) @ points
    x, y = x / w, y / w
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    inside = (abs(x - column) < pixfrac / 2) & (abs(y - row) < pixfrac / 2)
    ny, nx = samples.shape
    inside &= (column >= 0) & (column < nx) & (row >= 0) & (row < ny)
    values = samples[np.clip(row, 0, ny - 1), np.clip(column, 0, nx - 1)]
    return inside.mean(), (inside * values).mean()


@pytest.mark.parametrize(
    ("matrix", "pixfrac"),
    [
        (rigid(0, 0.3, -0.2), 0.8),
        (rigid(33, 1.5, 2.25), 0.7),
        (rigid(180.2, -3.1, 0.4), 0.8),
        (rigid(8, 0, 0, zoom=1.13), 1.0),
        (rigid(75, 2, 1, mirror=True), 0.5),
    ],
)
def test_shares_are_the_areas_that_drops_and_pixels_have_in_common(matrix, pixfrac):
    rng = np.random.default_rng(1)
    samples = rng.uniform(100, 200, (NY, NX))
    grid = dropped(samples, matrix, pixfrac=pixfrac)
    zoom = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    compared = 0
    for i, j in rng.integers((0, 0), (2 * NX, 2 * NY), (60, 2)):
        area, light = share_of(samples, matrix, i, j, pixfrac=pixfrac)
        # 41 × 41 points find an area to about a hundredth.
        assert grid.weight[0, j, i] == pytest.approx(area, abs=0.02)
        if area > 0.3:
            mean = light / area / 4 / zoom**2
            assert grid.total[0, j, i] / grid.weight[0, j, i] == pytest.approx(mean, rel=0.02)
            compared += 1
    assert compared >= 15


@pytest.mark.parametrize("pixfrac", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("angle", [0.0, 0.01, 27.0, 180.0])
def test_no_light_and_no_area_is_lost(angle, pixfrac):
    """Drops that land inside the grid give all of their area, and all of their light."""
    samples = np.zeros((NY, NX))
    inner = samples[14:-14, 18:-18]
    inner[:] = np.random.default_rng(2).uniform(10, 20, inner.shape).astype(np.float32)
    matrix = rigid(angle, 0.37, -0.81)
    mask = (samples == 0).astype(np.uint8)
    grid = dropped(samples, matrix, mask=mask, pixfrac=pixfrac)
    assert grid.weight.sum() == pytest.approx(inner.size * pixfrac**2 * 4, rel=1e-12)
    # Light: of a drop pixfrac² of its pixel's, at a quarter in each of four fine pixels.
    assert grid.total.sum() == pytest.approx(inner.sum() * pixfrac**2, rel=1e-12)


def test_whole_drops_tile_the_frame_and_end_at_its_border():
    """With drops as large as pixels a frame of ones has weight one inside; along the border the
    weight is the area of the fine pixel on this side of it.
    """
    shift = np.array([[1, 0, 6.3], [0, 1, 5.1], [0, 0, 1.0]])
    grid = dropped(np.ones((20, 24)), shift, pixfrac=1)
    expected = np.zeros((2 * NY, 2 * NX))
    u0, u1, v0, v1 = 2 * 6.3, 2 * 30.3, 2 * 5.1, 2 * 25.1
    across = np.clip(np.arange(2 * NX) + 1, u0, u1) - np.clip(np.arange(2 * NX), u0, u1)
    down = np.clip(np.arange(2 * NY) + 1, v0, v1) - np.clip(np.arange(2 * NY), v0, v1)
    expected = np.outer(down, across)
    np.testing.assert_allclose(grid.weight[0], expected, atol=1e-12)
    turned = dropped(np.ones((NY, NX)), rigid(31, 0.2, 0.7), pixfrac=1).weight[0]
    assert turned.max() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(turned[40:60, 48:68], 1, atol=1e-12)
    np.testing.assert_allclose(grid.mean()[0][expected > 0], 0.25, rtol=1e-6)
    assert not grid.mean()[0][expected == 0].any()


def test_scale_plane_and_weight_enter_as_they_do_in_the_stack():
    y, x = np.mgrid[:NY, :NX]
    samples = 50 + 0.0 * x
    grid = drizzle.Grid.empty(1, (0, NY), NX)
    first = dataclasses.replace(
        simple_terms(0, weight=3.0), scale=1.25, planes=((10.0, 0.2, -0.1),)
    )
    second = simple_terms(1, weight=1.0)
    drizzle.add(grid, samples.astype(np.float32), rigid(0, 0, 0), first, pixfrac=1)
    drizzle.add(grid, samples.astype(np.float32), rigid(0, 0, 0), second, pixfrac=1)
    expected = (3 * (1.25 * 50 + 10 + 0.2 * x - 0.1 * y) + 50) / 4 / 4
    mean = grid.mean()[0].reshape(NY, 2, NX, 2)
    for dy in range(2):
        for dx in range(2):
            np.testing.assert_allclose(mean[:, dy, :, dx], expected, rtol=1e-6)
    np.testing.assert_allclose(grid.weight, 4)


def night(rng, number, *, fwhm=1.6, noise=0.0, flux=5000.0):
    """Dithered, turned frames of one undersampled Gaussian star at (27.3, 22.8) on a sky of 100,
    integrated over pixels by 8 × 8 points.
    """
    star = np.array([27.3, 22.8, 1.0])
    sigma = fwhm / 2.3548
    fine = (np.arange(8) - 3.5) / 8
    for k in range(number):
        matrix = rigid(rng.normal(0, 3) + 180 * (k % 2), *rng.uniform(-3, 3, 2))
        sx, sy, _ = np.linalg.inv(matrix) @ star
        gx = (np.arange(NX)[:, None] + fine - sx).ravel()
        gy = (np.arange(NY)[:, None] + fine - sy).ravel()
        profile = np.outer(np.exp(-(gy**2) / (2 * sigma**2)), np.exp(-(gx**2) / (2 * sigma**2)))
        light = profile.reshape(NY, 8, NX, 8).mean(axis=(1, 3)) * flux / (2 * np.pi * sigma**2)
        yield 100 + light + rng.normal(0, noise or 1e-9, light.shape), matrix


def stacked(frames, *, pixfrac=0.8):
    grid = drizzle.Grid.empty(1, (0, NY), NX)
    for k, (samples, matrix) in enumerate(frames):
        drizzle.add(grid, samples.astype(np.float32), matrix, simple_terms(k), pixfrac=pixfrac)
    return grid


def measured(image, sky, *, x=27.3, y=22.8, radius=12):
    """Flux, centroid in reference px, and rms width in reference px, of a star on a fine grid."""
    gy, gx = np.mgrid[: image.shape[0], : image.shape[1]]
    u, v = 2 * (x + 0.5) - 0.5, 2 * (y + 0.5) - 0.5
    inside = np.hypot(gx - u, gy - v) < radius
    light = (image - sky) * inside
    flux = light.sum()
    cu, cv = (light * gx).sum() / flux, (light * gy).sum() / flux
    width = np.sqrt((light * ((gx - cu) ** 2 + (gy - cv) ** 2)).sum() / flux / 2) / 2
    return flux, (cu + 0.5) / 2 - 0.5, (cv + 0.5) / 2 - 0.5, width


def test_flux_and_place_of_a_star_come_through():
    """Flux to 0.2 %, place to 0.01 px, and no wider than the pixels of frame, drop and grid make
    it.
    """
    grid = stacked(night(np.random.default_rng(3), 40))
    flux, x, y, width = measured(grid.mean()[0].astype(float), 25.0)
    assert flux == pytest.approx(5000, rel=2e-3)
    assert x == pytest.approx(27.3, abs=0.01)
    assert y == pytest.approx(22.8, abs=0.01)
    # Variances add: the star's, the frame's pixel's, the drop's and the fine pixel's, each a
    # square's.
    sigma = np.sqrt((1.6 / 2.3548) ** 2 + (1 + 0.8**2 + 0.5**2) / 12)
    assert width == pytest.approx(sigma, rel=0.01)


def test_noise_of_the_sum_is_that_of_the_frames():
    """In blocks so large that the drops' reach does not matter, the noise is that of the mean of
    all frames over the block; no correlation hides it.
    """
    rng = np.random.default_rng(4)
    grid = stacked(night(rng, 30, noise=8.0, flux=0.0))
    mean = grid.mean()[0][16:80, 16:96]
    blocks = mean.reshape(4, 16, 5, 16).mean(axis=(1, 3)) * 4
    # A block of 8 × 8 reference px in 30 frames; the weights of drops are not quite even.
    expected = 8 / np.sqrt(30) / 8
    assert blocks.std() == pytest.approx(expected, rel=0.35)
    assert blocks.mean() == pytest.approx(100, abs=4 * expected / np.sqrt(20))


def test_the_variance_is_the_scatter_over_many_nights():
    """Of frames unlike in noise, exposure and weight, over a faint and a bright source: photons and
    readout drawn anew 300 times. Independent of it: the scatter of each pixel of the grid.
    """
    rng = np.random.default_rng(8)
    gain, sky, nights = 0.8, 400.0, 300
    source = np.zeros((24, 28))
    source[:, 14:] = 3000.0
    frames = []
    for k, (read, scale, weight) in enumerate(((5.0, 1.0, 3.0), (20.0, 1.3, 0.7), (9.0, 0.9, 2.0))):
        terms = dataclasses.replace(
            simple_terms(k, weight=weight), scale=scale, e_per_adu=gain / scale,
            sigma_adu=scale * np.hypot(np.sqrt(sky / scale / gain), read),
            planes=((0.0, 0.0, 0.0),),
        )  # fmt: skip
        # Turned by so little that the source's edge stays where it is.
        frames.append((terms, read, rigid(0.5 * k, *rng.uniform(-1, 1, 2), shape=source.shape)))
    sums, squares = np.zeros((48, 56)), np.zeros((48, 56))
    told = []
    for _ in range(nights):
        grid = drizzle.Grid.empty(1, (0, 24), 28)
        for terms, read, matrix in frames:
            light = (sky + source) / terms.scale
            samples = rng.poisson(light * gain) / gain + rng.normal(0, read, light.shape)
            drizzle.add(grid, samples.astype(np.float32), matrix, terms)
        mean = grid.mean()[0].astype(float)
        sums += mean
        squares += (mean - (sky + source.repeat(2, 0).repeat(2, 1)) / 4) ** 2
        told.append(grid.variance([sky])[0])
    scatter = squares / nights - (sums / nights - (sky + source.repeat(2, 0).repeat(2, 1)) / 4) ** 2
    scatter *= nights / (nights - 1)
    for part in (np.s_[8:-8, 8:22], np.s_[8:-8, 36:-8]):
        ratio = np.mean(told, axis=0)[part] / scatter[part]
        # The mean of some 400 ratios, each good to √(2/300); neighbours are not independent.
        assert ratio.mean() == pytest.approx(1 + 2 / nights, abs=0.02)
        assert ratio.std() == pytest.approx(np.sqrt(2 / nights), rel=0.3)
    # Where nothing fell there is nothing to tell.
    empty = grid.weight[0] == 0
    assert not grid.variance([sky])[0][empty].any()


def test_each_colour_of_a_mosaic_has_its_own_noise():
    terms = simple_terms(0, planes=3)
    grid = drizzle.Grid.empty(3, (0, NY), NX)
    drizzle.add(
        grid, np.full((NY, NX), 50, np.float32), rigid(0, 0, 0), terms, pattern="RGGB",
        sigmas=(3.0, 5.0, 7.0),
    )  # fmt: skip
    for plane, sigma in enumerate((3.0, 5.0, 7.0)):
        told = grid.variance([50.0] * 3)[plane][grid.weight[plane] > 0]
        # One drop a pixel of the grid, a quarter of its pixel's light.
        np.testing.assert_allclose(told, sigma**2 / 16, rtol=1e-5)


def test_neighbours_err_together_as_the_theory_says():
    """The noise of large blocks, which no correlation hides, over what their pixels' variances
    would make it if they were independent.
    """
    rng = np.random.default_rng(9)
    blocks, told = [], []
    for _ in range(12):
        grid = stacked(night(rng, 30, noise=8.0, flux=0.0))
        inner = np.s_[16:80, 16:96]
        means = grid.mean()[0][inner].astype(float).reshape(4, 16, 5, 16).mean(axis=(1, 3))
        blocks.append(means - 25.0)
        # `simple_terms` has another σ than these frames.
        one = grid.noise[0][inner] / grid.weight[0][inner] ** 2
        told.append(one.mean() * (8.0 / simple_terms(0).sigma_adu) ** 2)
    ratio = np.sqrt(np.mean(np.square(blocks)) / (np.mean(told) / 256))
    # 240 blocks tell a σ to 5 %; a block's rim shares some with its neighbours.
    assert ratio == pytest.approx(drizzle.CORRELATION, rel=0.12)
    assert pytest.approx(2.02, abs=0.005) == drizzle.CORRELATION


def test_bad_and_rejected_pixels_are_left_out():
    samples = np.full((NY, NX), 40.0)
    samples[20, 30] = 9000.0
    matrix = rigid(0, 0.25, 0.25)
    bad = np.zeros((NY, NX), np.uint8)
    bad[20, 30] = 1
    rejected = np.zeros((1, 10, NX), bool)
    rejected[0, 20 - 15, 30] = True
    for options in ({"mask": bad}, {"rejected": rejected, "rejected_from": 15}):
        grid = dropped(samples, matrix, **options)
        np.testing.assert_allclose(grid.mean()[grid.weight > 0], 10, rtol=1e-6)
        lost = dropped(samples, matrix).weight - grid.weight
        assert lost.sum() == pytest.approx(0.64 * 4)
    saturated = 2 * bad
    assert dropped(samples, matrix, mask=saturated).mean().max() > 1000


@pytest.mark.parametrize("pattern", ["RGGB", "BGGR", "GRBG", "GBRG"])
def test_a_mosaic_is_dropped_by_its_colours(pattern):
    levels = {"R": 10.0, "G": 30.0, "B": 90.0}
    samples = np.empty((NY, NX))
    for k, letter in enumerate(pattern):
        samples[k // 2 :: 2, k % 2 :: 2] = levels[letter]
    terms = simple_terms(0, planes=3)
    rng = np.random.default_rng(5)
    grid = drizzle.Grid.empty(3, (0, NY), NX)
    for _ in range(30):
        drizzle.add(
            grid, samples.astype(np.float32), rigid(rng.normal(0, 2), *rng.uniform(-4, 4, 2)),
            terms, pattern=pattern,
        )  # fmt: skip
    inner = np.s_[20:-20, 20:-20]
    for plane, letter in enumerate("RGB"):
        weight = grid.weight[plane][inner]
        assert (weight > 0).mean() > 0.97
        mean = grid.mean()[plane][inner][weight > 0]
        np.testing.assert_allclose(mean, levels[letter] / 4, rtol=1e-3)
    green, red = grid.weight[1][inner].mean(), grid.weight[0][inner].mean()
    assert green / red == pytest.approx(2, rel=0.05)


def test_rows_and_threads_do_not_change_a_bit():
    rng = np.random.default_rng(6)
    frames = [(rng.uniform(10, 20, (NY, NX)), rigid(a, 1.3, -2.2)) for a in (0.5, 64, 181)]
    whole = stacked(frames)
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        for first, last in ((0, 7), (7, 29), (29, NY)):
            part = drizzle.Grid.empty(1, (first, last), NX)
            for k, (samples, matrix) in enumerate(frames):
                drizzle.add(part, samples.astype(np.float32), matrix, simple_terms(k))
            rows = np.s_[:, 2 * first : 2 * last]
            np.testing.assert_array_equal(part.total, whole.total[rows])
            np.testing.assert_array_equal(part.weight, whole.weight[rows])
    finally:
        numba.set_num_threads(before)


def test_a_band_of_a_frame_is_as_good_as_all_of_it():
    rng = np.random.default_rng(7)
    samples = rng.uniform(10, 20, (NY, NX))
    matrix = rigid(2, 0.4, 0.1)
    whole = dropped(samples, matrix, rows=(20, 26))
    band = dropped(samples[14:34], matrix, rows=(20, 26), first_row=14)
    np.testing.assert_allclose(band.weight, whole.weight, atol=1e-11)
    np.testing.assert_allclose(band.total, whole.total, rtol=1e-9)


def test_a_distortion_moves_the_drops():
    bend = np.zeros((2, 10))
    bend[0, 3], bend[1, 4] = 30000.0, -20000.0
    matrix = rigid(5, 1, 1)
    samples = np.zeros((NY, NX))
    samples[30, 40] = 100.0
    mask = (samples == 0).astype(np.uint8)
    grid = dropped(samples, matrix, mask=mask, distortion=bend)
    weight = grid.weight[0] / grid.weight.sum()
    gy, gx = np.mgrid[: 2 * NY, : 2 * NX]
    place = [((weight * g).sum() + 0.5) / 2 - 0.5 for g in (gx, gy)]
    (expected,) = to_reference(matrix, bend, np.array([[40.0, 30.0]]))
    assert abs(expected - to_reference(matrix, None, np.array([[40.0, 30.0]]))).max() > 1
    # The lattice of 16 px is coarse for so strong a bend in so small a frame.
    np.testing.assert_allclose(place, expected, atol=0.2)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (np.zeros((4, 4, 1)), {}, "float32"),
        (np.zeros((8, 8)), {"pixfrac": 0.0}, "pixfrac"),
        (np.zeros((8, 8)), {"pixfrac": 1.1}, "pixfrac"),
        (np.zeros((8, 8)), {"pattern": "RGGB"}, "mosaic"),
        (np.zeros((8, 8)), {"mask": np.zeros((8, 7), np.uint8)}, "mask"),
    ],
)
def test_what_cannot_be_meant_is_refused(samples, options, message):
    with pytest.raises(ValueError, match=message):
        dropped(samples, np.eye(3), **options)
