"""The polynomial beside the matrix, against its definition written out and against chance."""

import numpy as np
import pytest

from daemon.light import distortion

SHAPE = (4176, 6248)
POWERS = [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3)]
MATRICES = [
    np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1.0]]),
    np.array([[-0.98, 0.05, 6100.0], [-0.05, -0.98, 4200.0], [0, 0, 1.0]]),
    np.array([[1.01, 0.02, -30.0], [-0.015, 0.99, 41.0], [2e-7, -3e-7, 1.0]]),
]


def corners_bent_by(px, *, seed):
    """A random distortion of some `px` at the corners of a 26-megapixel frame."""
    rng = np.random.default_rng(seed)
    sizes = np.array([(6248 / 4096) ** i * (4176 / 4096) ** j for i, j in POWERS])
    return rng.normal(0, px / 3, (2, 10)) / sizes


def by_definition(matrix, coefficients, xy):
    homogeneous = np.linalg.inv(matrix) @ np.vstack((xy.T, np.ones(len(xy))))
    there = (homogeneous[:2] / homogeneous[2]).T
    u, v = xy.T / 4096
    for k in (0, 1):
        for c, (i, j) in zip(coefficients[k], POWERS, strict=True):
            there[:, k] += c * u**i * v**j
    return there


@pytest.mark.parametrize("matrix", MATRICES)
def test_to_the_frame_as_defined_and_back_again(matrix):
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, SHAPE[::-1], (300, 2))
    bend = corners_bent_by(60, seed=2)
    there = distortion.to_frame(matrix, bend, xy)
    np.testing.assert_allclose(there, by_definition(matrix, bend, xy), atol=1e-8)
    np.testing.assert_allclose(distortion.to_reference(matrix, bend, there), xy, atol=1e-6)
    none = np.zeros((2, 10))
    np.testing.assert_allclose(
        distortion.to_frame(matrix, None, xy), by_definition(matrix, none, xy), atol=1e-8
    )
    np.testing.assert_allclose(
        distortion.to_reference(matrix, None, by_definition(matrix, none, xy)), xy, atol=1e-8
    )


def test_points_that_lie_nowhere_are_not_a_number():
    fold = np.zeros((2, 10))
    fold[0, 3] = -4096.0  # frame x = x − x²/4096 never reaches 1024
    back = distortion.to_reference(np.eye(3), fold, np.array([[200.0, 50.0], [1500.0, 50.0]]))
    x = 2048 * (1 - np.sqrt(1 - 4 * 200 / 4096))
    np.testing.assert_allclose(back[0], (x, 50.0), atol=1e-6)
    assert np.isnan(back[1]).all()


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("px", [0, 60])
def test_the_area_is_that_of_a_small_square(matrix, px):
    xy = np.random.default_rng(3).uniform(0, SHAPE[::-1], (100, 2))
    bend = corners_bent_by(px, seed=4)
    half = 0.5
    corners = [
        by_definition(matrix, bend, xy + half * np.array(c))
        for c in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    # The shoelace formula, about the first corner.
    a, b, c = (corner - corners[0] for corner in corners[1:])
    shoelace = (a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1] + b[:, 0] * c[:, 1] - c[:, 0] * b[:, 1]) / 2
    given = distortion.area(matrix, bend if px else None, xy)
    np.testing.assert_allclose(given, np.abs(shoelace), rtol=1e-7)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_fit_finds_the_polynomial_among_outliers(order):
    rng = np.random.default_rng(5)
    truth = corners_bent_by(60, seed=6)
    truth[:, (3, 6, 10)[order - 1] :] = 0
    xy = rng.uniform(0, SHAPE[::-1], (400, 2))
    shift = by_definition(np.eye(3), truth, xy) - xy + rng.normal(0, 0.05, xy.shape)
    shift[:40] += rng.uniform(-30, 30, (40, 2))
    found = distortion.fit(xy, shift, order=order)
    grid = np.stack(np.meshgrid(np.linspace(0, 6247, 9), np.linspace(0, 4175, 9)), -1)
    grid = grid.reshape(-1, 2)
    error = by_definition(np.eye(3), found, grid) - by_definition(np.eye(3), truth, grid)
    # The mean variance of a fit at its own points is σ² · terms / points; a grid up to the rim
    # doubles it at most.
    assert np.sqrt(np.mean(error**2)) < 2 * 0.05 * np.sqrt((3, 6, 10)[order - 1] / 360)
    assert not found[:, (3, 6, 10)[order - 1] :].any()


def test_points_that_do_not_determine_it_give_none():
    rng = np.random.default_rng(7)
    line = np.column_stack((np.arange(50.0), 2 * np.arange(50.0)))
    assert distortion.fit(line, rng.normal(size=(50, 2)), order=2) is None
    few = rng.uniform(0, 1000, (8, 2))
    assert distortion.fit(few, rng.normal(size=(8, 2)), order=3) is None
    assert distortion.leverage(line, line, order=2) == np.inf
    assert distortion.leverage(few, few, order=3) == np.inf


@pytest.mark.parametrize("order", [2, 3])
def test_leverage_is_the_error_of_repeated_fits(order):
    """Stars in the left half only: how wrong is the fit at the right edge?"""
    rng = np.random.default_rng(8)
    xy = rng.uniform(0, (3124, 4176), (120, 2))
    where = np.array([[6200.0, 100.0], [1500.0, 2000.0]])
    said = distortion.leverage(xy, where, order=order)
    errors = []
    for _ in range(400):
        found = distortion.fit(xy, rng.normal(0, 1, xy.shape), order=order, rounds=1)
        errors.append(by_definition(np.eye(3), found, where) - where)
    rms = np.sqrt(np.mean(np.square(errors), axis=(0, 2)))
    # 800 values give an rms to 2.5 %.
    assert said == pytest.approx(rms.max(), rel=0.1)
    assert rms[0] > 5 * rms[1]
    assert distortion.leverage(xy, where[1:], order=order) == pytest.approx(rms[1], rel=0.1)


def test_what_kernels_take():
    assert distortion.checked(None).shape == (0, 0)
    bend = corners_bent_by(60, seed=9)
    given = distortion.checked(np.asfortranarray(bend))
    assert given.flags.c_contiguous
    np.testing.assert_array_equal(given, bend)
    for wrong in (np.zeros((10, 2)), np.zeros(10), np.full((2, 10), np.inf)):
        with pytest.raises(ValueError, match="distortion"):
            distortion.checked(wrong)


def test_between_two_frames_is_the_way_over_the_reference():
    rng = np.random.default_rng(10)
    xy = rng.uniform(0, SHAPE[::-1], (300, 2))  # px of theirs
    flip = np.array([[-1, 0.002, 6300.0], [-0.002, -1, 4100.0], [0, 0, 1.0]])
    theirs = np.array([[1, 0.001, 12.0], [-0.001, 1, -7.0], [0, 0, 1.0]])
    matrix, bend = distortion.between((flip, None), (theirs, None), shape=SHAPE)
    assert bend is None
    exact = by_definition(
        flip, np.zeros((2, 10)), by_definition(np.linalg.inv(theirs), np.zeros((2, 10)), xy)
    )
    np.testing.assert_allclose(distortion.to_frame(matrix, None, xy), exact, atol=1e-6)

    bent, other = corners_bent_by(20, seed=11), corners_bent_by(20, seed=12)
    reference = rng.uniform(0, SHAPE[::-1], (300, 2))
    ours_px = by_definition(flip, bent, reference)
    theirs_px = by_definition(theirs, other, reference)
    inside = np.all((theirs_px > 0) & (theirs_px < SHAPE[::-1]), axis=1)
    inside &= np.all((ours_px > 0) & (ours_px < SHAPE[::-1]), axis=1)
    matrix, bend = distortion.between((flip, bent), (theirs, other), shape=SHAPE)
    error = distortion.to_frame(matrix, bend, theirs_px[inside]) - ours_px[inside]
    # What is of fifth order: D ∂D ∂D, some 20 px · (3 · 20 / 3755)² · a few.
    assert np.abs(error).max() < 0.2
    bare = distortion.to_frame(matrix, None, theirs_px[inside]) - ours_px[inside]
    assert np.abs(bare).max() > 10
    apart = np.array([[1, 0, 9000.0], [0, 1, 0.0], [0, 0, 1.0]])
    assert distortion.between((apart, bent), (np.eye(3), None), shape=SHAPE)[1] is None
