"""Pairs of stars, and least squares without outliers, against scipy and numpy."""

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.spatial import cKDTree

from daemon.light import pairing, reweighted


@pytest.mark.parametrize("radius", [1.0, 12.0, 1e4])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 40), (300, 250)])
def test_pairs_are_those_of_two_trees(n, m, radius):
    rng = np.random.default_rng([n, m])
    points, others = rng.uniform(0, 400, (n, 2)), rng.uniform(0, 400, (m, 2))
    distance, nearest = cKDTree(others).query(points, distance_upper_bound=radius)
    back = cKDTree(points).query(others)[1]
    expected = [
        (i, nearest[i]) for i in range(n) if np.isfinite(distance[i]) and back[nearest[i]] == i
    ]
    i, j = pairing.mutual(points, others, radius)
    assert list(zip(i, j, strict=True)) == expected


def test_points_that_are_nowhere_are_no_pair():
    points = np.array([[np.nan, 1.0], [5.0, np.nan], [9.0, 9.0], [np.inf, 9.0]])
    i, j = pairing.mutual(points, np.array([[9.0, 9.5], [5.0, 5.0]]), 1.0)
    assert i.tolist() == [2]
    assert j.tolist() == [0]


def test_light_around_is_that_of_a_tree():
    rng = np.random.default_rng(2)
    xy, field, flux = rng.uniform(0, 99, (30, 2)), rng.uniform(0, 99, (80, 2)), rng.random(80)
    near = cKDTree(field).query_ball_point(xy, 20.0)
    expected = [flux[index].sum() for index in near]
    np.testing.assert_allclose(pairing.light_around(xy, field, flux, 20.0), expected)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 2), (2, 1)])
def test_one_round_is_least_squares(rows, columns):
    rng = np.random.default_rng([rows, columns])
    design, values = rng.normal(size=(60, rows, 3)), rng.normal(size=(60, rows, columns))
    expected = np.linalg.lstsq(design.reshape(-1, 3), values.reshape(-1, columns), rcond=None)[0]
    found = reweighted.fit(design, values, rounds=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_what_comes_of_many_rounds_is_the_minimum_of_the_biweights_loss():
    """ρ(r) = 1 − (1 − (r/s)²)³ inside s, with the s of what was found."""
    rng = np.random.default_rng(5)
    design = np.column_stack((np.ones(400), rng.uniform(-1, 1, (400, 2))))
    values = design @ (3.0, -1.0, 2.0) + rng.normal(0, 0.1, 400)
    values[:120] += rng.uniform(1, 30, 120)
    found = reweighted.fit(
        design[:, np.newaxis],
        values[:, np.newaxis, np.newaxis],
        rounds=100,
        median=reweighted.NORMAL,
    )[:, 0]
    scale = 4.685 * 1.4826 * np.median(np.abs(values - design @ found))

    def roots(numbers):
        inside = np.minimum(((values - design @ numbers) / scale) ** 2, 1.0)
        return np.sqrt(1.0 - (1.0 - inside) ** 3)

    best = least_squares(roots, found + 0.003, xtol=1e-14, ftol=1e-14, gtol=1e-14).x
    np.testing.assert_allclose(found, best, atol=1e-5)
    np.testing.assert_allclose(found, (3.0, -1.0, 2.0), atol=0.03)


def test_stars_that_do_not_determine_the_numbers_give_none():
    line = np.column_stack((np.ones(20), np.arange(20.0), 2.0 * np.arange(20.0) + 1.0))
    assert reweighted.fit(line[:, np.newaxis], line[:, np.newaxis, :1], rounds=3) is None
    assert reweighted.fit(line[:2, np.newaxis], line[:2, np.newaxis, :1], rounds=3) is None
    assert reweighted.fit(np.empty((0, 1, 3)), np.empty((0, 1, 1)), rounds=3) is None
