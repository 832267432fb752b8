"""Colour from a mosaic: exact on planes, for every pattern, up to the border."""

import numpy as np
import pytest

from daemon.light import debayer

PATTERNS = ["RGGB", "BGGR", "GRBG", "GBRG"]
SLOPES = {"R": (100.0, 0.5, -0.25), "G": (300.0, -0.125, 0.375), "B": (50.0, 1.0, 2.0)}


def mosaic_of_planes(pattern, shape):
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    truth = np.stack([a + bx * x + by * y for a, bx, by in SLOPES.values()])
    mosaic = np.empty(shape)
    for k, letter in enumerate(pattern):
        dy, dx = divmod(k, 2)
        mosaic[dy::2, dx::2] = truth["RGB".index(letter), dy::2, dx::2]
    return mosaic.astype(np.float32), truth


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(16, 22), (17, 21), (4, 5)])
def test_sloped_planes_are_exact_up_to_the_border(pattern, shape):
    mosaic, truth = mosaic_of_planes(pattern, shape)
    kept = mosaic.copy()
    rgb = debayer.debayer(mosaic, pattern)
    assert rgb.dtype == np.float32
    np.testing.assert_allclose(rgb, truth, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(mosaic, kept)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_interior_agrees_with_a_convolution(pattern):
    from scipy.ndimage import convolve

    mosaic = np.random.default_rng(5).normal(1000, 50, (20, 24)).astype(np.float32)
    rgb = debayer.debayer(mosaic, pattern)
    corners = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    cross = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    for plane, letter in enumerate("RGB"):
        sites = np.zeros(mosaic.shape)
        for k, found in enumerate(pattern):
            sites[k // 2 :: 2, k % 2 :: 2] = found == letter
        expected = convolve(mosaic * sites, cross if letter == "G" else corners)
        np.testing.assert_allclose(rgb[plane, 1:-1, 1:-1], expected[1:-1, 1:-1], rtol=1e-6)


@pytest.mark.parametrize(("pattern", "edge"), [*((one, 2) for one in PATTERNS), ("GBRG", 4)])
def test_superpixels_take_each_block_for_itself_without_its_bad_pixels(pattern, edge):
    rng = np.random.default_rng(6)
    mosaic = rng.normal(1000, 50, (41, 53)).astype(np.float32)
    mask = (rng.random(mosaic.shape) < 0.3).astype(np.uint8)
    mask |= 2 * (rng.random(mosaic.shape) < 0.1).astype(np.uint8)
    planes, bits = debayer.superpixels(mosaic, mask, pattern, edge=edge)
    ny, nx = 41 // edge, 53 // edge
    assert planes.shape == bits.shape == (3, ny, nx)
    for plane, letter in enumerate("RGB"):
        sites = [
            np.s_[y : edge * ny : edge, x : edge * nx : edge]
            for y in range(edge)
            for x in range(edge)
            if pattern[2 * (y % 2) + x % 2] == letter
        ]
        values = np.stack([mosaic[site] for site in sites]).astype(np.float64)
        flags = np.stack([mask[site] for site in sites])
        good = flags & 1 == 0
        assert debayer.pixels_of(pattern, plane, edge=edge) == len(sites)
        enough = good.sum(axis=0) >= (1 if len(sites) == 2 else 0.75 * len(sites))
        # Of too few good ones, the mean of all: no value that could not be one.
        some = good | ~enough
        expected = (values * some).sum(axis=0) / some.sum(axis=0)
        np.testing.assert_allclose(planes[plane], expected, rtol=1e-6)
        np.testing.assert_array_equal(bits[plane] & 1, ~enough)
        np.testing.assert_array_equal(bits[plane] & 2, np.bitwise_or.reduce(flags, axis=0) & 2)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_superpixels_lie_where_the_offset_says(pattern):
    """Of a sloped plane each has the value at its own place."""
    mosaic, _ = mosaic_of_planes(pattern, (16, 22))
    planes, _ = debayer.superpixels(mosaic, np.zeros(mosaic.shape, np.uint8), pattern)
    y, x = np.mgrid[:8, :11]
    for plane, (a, bx, by) in enumerate(SLOPES.values()):
        right, down = debayer.offset(pattern, plane)
        expected = a + bx * (2 * x + 0.5 + right) + by * (2 * y + 0.5 + down)
        np.testing.assert_allclose(planes[plane], expected, atol=1e-4)
    assert debayer.offset("RGGB", 0) == (-0.5, -0.5)
    assert debayer.offset("GBRG", 0) == (-0.5, 0.5)


def test_out_is_used_and_wrong_input_is_refused():
    mosaic = np.ones((8, 8), np.float32)
    out = np.zeros((3, 8, 8), np.float32)
    assert debayer.debayer(mosaic, "RGGB", out=out) is out
    assert (out == 1).all()
    with pytest.raises(ValueError, match="pattern"):
        debayer.debayer(mosaic, "RGBG")
    with pytest.raises(ValueError, match="out is"):
        debayer.debayer(mosaic, "RGGB", out=out[:, :4])
    with pytest.raises(ValueError, match="mosaic"):
        debayer.debayer(mosaic.astype(np.float64), "RGGB")
    with pytest.raises(ValueError, match="mask"):
        debayer.superpixels(mosaic, np.zeros((8, 7), np.uint8), "RGGB")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_luminance_weighs_every_pixel_of_the_mosaic_alike(pattern):
    mosaic = np.random.default_rng(7).normal(100, 5, (45, 62)).astype(np.float32)
    red, green, blue = debayer.debayer(mosaic, pattern).astype(float)
    grey, cells = debayer.luminance(mosaic, pattern, grid=(6, 8))
    np.testing.assert_allclose(grey, (red + 2 * green + blue) / 4, rtol=1e-6)
    # Every pixel well inside gives all of itself.
    point = np.zeros((12, 12), np.float32)
    for y, x in ((5, 5), (5, 6), (6, 5), (6, 6)):
        point[:] = 0
        point[y, x] = 1
        assert debayer.luminance(point, pattern, grid=(1, 1))[0].sum() == pytest.approx(1)
    edges = [np.arange(n + 1) * side // n for n, side in zip((6, 8), mosaic.shape, strict=True)]
    for plane, image in enumerate((red, green, blue)):
        for j, i in ((0, 0), (3, 5), (5, 7)):
            cell = image[edges[0][j] : edges[0][j + 1], edges[1][i] : edges[1][i + 1]]
            assert cells[plane, j, i] == pytest.approx(cell.mean(), rel=1e-6)


@pytest.mark.parametrize("pattern", ["RGGB", "GBRG"])
def test_variance_of_the_planes_is_their_scatter(pattern):
    """Mosaics of independent pixels, each of a variance of its own, a thousand times; what is
    infinite spreads to all that it goes into, and no further.
    """
    rng = np.random.default_rng(4)
    shape, times = (12, 14), 1000
    sigma = rng.uniform(1.0, 3.0, shape).astype(np.float32)
    planes = [
        debayer.debayer(rng.normal(0.0, sigma).astype(np.float32), pattern) for _ in range(times)
    ]
    told = debayer.variance(sigma**2, pattern)
    inside = np.s_[:, 1:-1, 1:-1]
    ratio = np.var(planes, axis=0)[inside] / told[inside]
    # Each is known to 4.5 %, their mean of 360 to 0.3 %.
    assert ratio.mean() == pytest.approx(1.0, abs=0.01)
    assert ratio.std() < 0.06
    assert np.isinf(told).sum() == 3 * (2 * 14 + 2 * 10)
    spread = sigma**2
    spread[6, 6] = np.inf
    lost = np.isinf(debayer.variance(spread, pattern)[inside])
    probe = np.zeros(shape, np.float32)
    probe[6, 6] = 1.0
    np.testing.assert_array_equal(lost, debayer.debayer(probe, pattern)[inside] != 0)
