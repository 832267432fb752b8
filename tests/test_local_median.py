"""The local median against scipy's, and against every order that 25 values can have."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from calib_library.local_median import local_median


@pytest.mark.parametrize("shape", [(40, 200), (5, 5), (33, 64), (3, 2), (1, 1)])
def test_it_equals_scipy(shape):
    image = np.random.default_rng(1).normal(100, 10, shape).astype(np.float32)
    assert np.array_equal(local_median(image), ndimage.median_filter(image, size=5, mode="nearest"))


def test_that_of_a_mosaic_is_that_of_each_colour():
    image = np.random.default_rng(2).normal(100, 10, (44, 150)).astype(np.float32)
    result = local_median(image, bayer=True)
    for dy in (0, 1):
        for dx in (0, 1):
            colour = image[dy::2, dx::2]
            assert np.array_equal(
                result[dy::2, dx::2], ndimage.median_filter(colour, size=5, mode="nearest")
            )


def test_it_is_the_median_of_any_25_values():
    """A network of comparisons that takes the median of all zeros and ones takes that of all values
    (Knuth, The Art of Computer Programming 3, section 5.3.4). It sorts columns first, so that only
    the number of ones in each counts: 6^5 cases.
    """
    ones = np.array(list(itertools.product(range(6), repeat=5)))
    patches = (np.arange(5)[np.newaxis, :, np.newaxis] < ones[:, np.newaxis, :]).astype(np.float32)
    medians = local_median(patches.reshape(-1, 5))[2::5, 2]
    assert np.array_equal(medians, ones.sum(axis=1) >= 13)


def test_values_that_are_not_finite_count_as_the_highest():
    image = np.arange(25, dtype=np.float32).reshape(5, 5)
    image[0, :3] = np.nan, np.inf, -np.inf  # 0, 1 and 2: the median moves by three
    assert local_median(image)[2, 2] == 15
