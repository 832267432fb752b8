"""Clipped medians of many sets at once, and noise by counting, against numpy."""

import numpy as np
import pytest

from calib_library.kernels import kernel
from daemon.light import clipped
from daemon.light.noise import neighbour_noise


@kernel(allocates=True)
def medians(values, counts, network):
    """The clipped median and deviation of each column."""
    out = np.zeros((clipped.SETS, 2))
    samples = np.empty(network.room, np.float32)
    clipped.sort(values, counts, network)
    for k in range(clipped.SETS):
        if counts[k] > 0:
            out[k, 0], out[k, 1] = clipped.median(values, k, counts[k], samples)
    return out


@pytest.mark.parametrize("most", [40, 169, 804])
def test_many_sets_come_out_as_each_by_itself(most):
    rng = np.random.default_rng(1)
    network = clipped.network(most)
    assert network.room >= most
    counts = rng.integers(most // 2, most + 1, clipped.SETS)
    values = rng.normal(1000, 20, (network.room, clipped.SETS)).astype(np.float32)
    values[: most // 20] += 500  # stars
    sets = [values[:count, k].copy() for k, count in enumerate(counts)]
    found = medians(values, counts, network)
    for one, (median, sigma) in zip(sets, found, strict=True):
        expected, scatter = plain(one)
        assert median == pytest.approx(expected, rel=1e-7)
        assert sigma == pytest.approx(scatter, rel=1e-5)


def plain(one):
    """The same by numpy: from the quartiles on, what is within 3σ, of which a Gaussian keeps a
    standard deviation of 0.9866.
    """
    low, median, high = np.sort(one)[np.array([1, 2, 3]) * len(one) // 4].astype(np.float64)
    sigma = (high - low) / 1.349
    for _ in range(7):
        kept = one[(one >= median - 3 * sigma) & (one < median + 3 * sigma)].astype(np.float64)
        median, sigma = np.median(kept), np.std(kept) / 0.9866
    return median, sigma


def test_sets_of_one_value_and_of_equal_values_have_no_scatter():
    network = clipped.network(8)
    counts = np.full(clipped.SETS, 5)
    counts[0] = 1
    found = medians(np.full((network.room, clipped.SETS), 7, np.float32), counts, network)
    assert (found == (7, 0)).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("bayer", [False, True])
@pytest.mark.parametrize("shape", [(65, 1001), (3, 4), (1, 3)])
def test_noise_of_neighbours_is_the_median_of_their_differences(dtype, bayer, shape):
    sample = np.random.default_rng(2).normal(1000, 3, shape).astype(dtype)
    step = 2 if bayer else 1
    rows = sample.astype(np.float64)
    expected = 1.4826 * np.median(np.abs(rows[:, step:] - rows[:, :-step])) / np.sqrt(2)
    assert neighbour_noise(sample, bayer=bayer) == pytest.approx(expected, rel=1e-4)


def test_noise_of_what_is_not_a_number_is_none():
    sample = np.ones((4, 9), np.float32)
    assert neighbour_noise(sample, bayer=False) == 0
    sample[2, 3] = np.nan
    assert np.isnan(neighbour_noise(sample, bayer=False))
    assert np.isnan(neighbour_noise(sample[:, :1], bayer=False))
