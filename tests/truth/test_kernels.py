"""Warp and demosaic give the same bits with one, two and four threads, and change no input; other
kernels' own tests show it of them.
"""

import numba
import numpy as np
import pytest

from daemon.light import debayer, warp
from daemon.light.background import cell_means


def with_threads(work):
    """What `work` returns with 1, 2 and 4 threads, as far as there are so many."""
    before = numba.get_num_threads()
    try:
        for threads in sorted({1, min(2, before), min(4, before)}):
            numba.set_num_threads(threads)
            yield work()
    finally:
        numba.set_num_threads(before)


def frozen(rng, shape):
    image = rng.normal(1000, 30, shape).astype(np.float32)
    image.setflags(write=False)
    return image


@pytest.mark.parametrize("planes", [1, 3])
def test_warp(planes):
    rng = np.random.default_rng(1)
    image = frozen(rng, (planes, 150, 131))
    mask = (rng.random((150, 131)) < 0.01).astype(np.uint8)
    mask.setflags(write=False)
    matrix = np.array([[-1.0, 0.02, 128.3], [-0.02, -1.0, 151.7], [0.0, 0.0, 1.0]])
    matrix.setflags(write=False)
    first, *others = with_threads(
        lambda: warp.warp_rows(image, matrix, rows=(0, 150), width=131, mask=mask)
    )
    assert np.isfinite(first).any()
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize(
    "colours",
    [
        lambda mosaic, _: (debayer.debayer(mosaic, "GRBG"),),
        lambda mosaic, _: debayer.luminance(mosaic, "GRBG", grid=(9, 8)),
        lambda mosaic, mask: debayer.superpixels(mosaic, mask, "GRBG"),
    ],
)
def test_debayer(colours):
    rng = np.random.default_rng(2)
    mosaic, mask = frozen(rng, (151, 130)), rng.integers(0, 4, (151, 130)).astype(np.uint8)
    mask.setflags(write=False)
    first, *others = with_threads(lambda: colours(mosaic, mask))
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            np.testing.assert_array_equal(theirs, ours)


def test_cell_means():
    image = frozen(np.random.default_rng(3), (150, 131))
    first, *others = with_threads(lambda: cell_means(image))
    # Independently: cells that divide the frame evenly.
    edges = [np.arange(n + 1) * side // n for n, side in zip(first.shape, image.shape, strict=True)]
    for j, i in ((0, 0), (7, 3), (18, 15)):
        cell = image[edges[0][j] : edges[0][j + 1], edges[1][i] : edges[1][i + 1]]
        assert first[j, i] == pytest.approx(cell.mean(dtype=float), rel=1e-6)
    for other in others:
        np.testing.assert_array_equal(other, first)
