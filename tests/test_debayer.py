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


@pytest.mark.parametrize("pattern", PATTERNS)
def test_superpixels_take_each_cell_for_itself(pattern):
    mosaic = np.random.default_rng(6).normal(1000, 50, (9, 13)).astype(np.float32)
    rgb = debayer.debayer(mosaic, pattern, superpixel=True)
    assert rgb.shape == (3, 4, 6)
    cells = [mosaic[k // 2 : 8 : 2, k % 2 : 12 : 2].astype(np.float64) for k in range(4)]
    for plane, letter in enumerate("RGB"):
        expected = np.mean([cells[k] for k in range(4) if pattern[k] == letter], axis=0)
        np.testing.assert_allclose(rgb[plane], expected, rtol=1e-6)


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


def test_luminance_weighs_every_pixel_of_the_mosaic_alike():
    rgb = np.random.default_rng(7).normal(100, 5, (3, 5, 6)).astype(np.float32)
    expected = (rgb[0].astype(float) + 2 * rgb[1] + rgb[2]) / 4
    np.testing.assert_allclose(debayer.luminance(rgb), expected, rtol=1e-6)
