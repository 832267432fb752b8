"""Holes in a stack are filled from their rims; the outside is not."""

import numpy as np

from daemon.stack import holes


def plane_with(empty):
    """A tilted plane, which the mean of symmetric neighbours reproduces exactly."""
    y, x = np.mgrid[:40, :50].astype(np.float32)
    mean = (100 + 2 * x + 3 * y)[np.newaxis].copy()
    coverage = np.ones(mean.shape[1:], np.uint16)
    coverage[empty] = 0
    truth = mean.copy()
    mean[0][empty] = 0
    return mean, coverage, truth


def test_a_single_pixel_gets_the_mean_of_its_neighbours():
    mean, coverage, truth = plane_with((np.array([10]), np.array([20])))
    filled = holes.fill(mean, coverage)
    assert filled is mean
    np.testing.assert_allclose(filled, truth, rtol=1e-6)
    assert coverage[10, 20] == 0


def test_a_short_column_of_two_is_filled_within_the_slope():
    mean, coverage, truth = plane_with((np.array([10, 11]), np.array([20, 20])))
    assert np.abs(holes.fill(mean, coverage) - truth).max() < 3


def test_the_outside_stays_empty():
    empty = np.zeros((40, 50), bool)
    empty[:, :12] = True
    mean, coverage, _ = plane_with(empty)
    assert (holes.fill(mean, coverage)[0][:, :11] == 0).all()


def test_a_whole_image_is_returned_as_it_is():
    mean, coverage, truth = plane_with((np.array([], int), np.array([], int)))
    np.testing.assert_array_equal(holes.fill(mean, coverage), truth)
