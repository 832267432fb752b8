"""Upright frames, larger than one block: the two sweeps against functions whose value is known."""

import numba
import numpy as np
import pytest

from daemon.light import lanczos, sweeps, warp

SHAPE = (130, 2300)
"""More than two blocks in each direction."""


def placed(angle_deg=0.0, dx=0.0, dy=0.0, *, scale=1.0, flip_x=False, flip_y=False):
    """Frame → reference: about the centre, then shifted."""
    c, s = scale * np.cos(np.deg2rad(angle_deg)), scale * np.sin(np.deg2rad(angle_deg))
    turn = np.array([[c, -s], [s, c]]) @ np.diag([-1 if flip_x else 1, -1 if flip_y else 1])
    centre = np.array([(SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2])
    matrix = np.eye(3)
    matrix[:2, :2] = turn
    matrix[:2, 2] = centre - turn @ centre + (dx, dy)
    return matrix


UPRIGHT = {
    "shift": placed(0.0, 3.37, -2.61),
    "turn": placed(0.35, -1.3, 0.8),
    "other turn": placed(-0.8, 0.4, 1.7),
    "meridian flip": placed(180.2, 2.2, -0.4),
    "mirror": placed(0.1, 0.3, 0.2, flip_x=True),
    "upside down": placed(-0.1, 0.3, 0.2, flip_y=True),
    "larger": placed(0.2, 0.3, 0.2, scale=1.004),
    "smaller": placed(-0.2, 0.3, 0.2, scale=0.991),
}


def waves(x, y):
    """Smooth on the scale of the kernel: the shortest wave is 15 px, on which it errs by 1e-3."""
    return (
        1000
        + 100 * np.sin(2 * np.pi * x / 15 + 0.3)
        + 80 * np.cos(2 * np.pi * (y / 17 + x / 40))
        + 0.02 * x
    )


def there(matrix):
    """Frame px (x, y) of every reference pixel."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    inverse = np.linalg.inv(matrix)
    return (
        inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2],
        inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2],
    )


@pytest.mark.parametrize("name", UPRIGHT)
def test_an_upright_frame_is_swept_to_the_truth_in_every_block(name):
    matrix = UPRIGHT[name]
    inverse = warp.invert(matrix)
    assert sweeps.sweeps_of(inverse, width=SHAPE[1]).area > 0
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    image = waves(x, y).astype(np.float32)[np.newaxis]
    warped, coverage = warp.warp(image, matrix, shape=SHAPE, noise_adu=5.0)
    at_x, at_y = there(matrix)
    edge = np.minimum.reduce([at_x, SHAPE[1] - 1 - at_x, at_y, SHAPE[0] - 1 - at_y])
    clear = np.abs(edge) > 1e-3
    np.testing.assert_array_equal(coverage[clear], (edge > 0)[clear])
    inner = edge > 3
    area = abs(np.linalg.det(inverse[:2, :2]))
    # The kernel reproduces what is quadratic: its error is that of the third derivative.
    assert np.abs(warped[0] - waves(at_x, at_y) * area)[inner].max() < 0.25
    assert inner.mean() > 0.9


def test_frames_that_are_turned_farther_or_bent_are_not_swept():
    for matrix in (placed(2.0), placed(90.0), placed(0, scale=1.05), placed(0, scale=0.5)):
        assert sweeps.sweeps_of(warp.invert(matrix), width=SHAPE[1]) == sweeps.NOT_UPRIGHT
    tilted = np.eye(3)
    tilted[2, 0] = 1e-6
    assert sweeps.sweeps_of(warp.invert(tilted), width=SHAPE[1]) == sweeps.NOT_UPRIGHT
    bent = warp.way_of(np.eye(3), np.zeros((2, 10)), None, shape=SHAPE, width=SHAPE[1])
    assert sweeps.unpacked(bent.sweeps) == sweeps.NOT_UPRIGHT


def test_both_ways_of_resampling_agree_on_stars():
    """Pixel by pixel (a distortion of nothing asks for it) and swept, at the same turn."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    image = np.zeros(SHAPE)
    for sx, sy in zip(rng.uniform(20, 2280, 60), rng.uniform(20, 110, 60), strict=True):
        near = np.s_[max(int(sy) - 12, 0) : int(sy) + 13, max(int(sx) - 12, 0) : int(sx) + 13]
        image[near] += 1e4 * np.exp(-((x[near] - sx) ** 2 + (y[near] - sy) ** 2) / (2 * 1.3**2))
    image = image.astype(np.float32)[np.newaxis]
    swept, _ = warp.warp(image, UPRIGHT["turn"], shape=SHAPE, noise_adu=5.0)
    single, _ = warp.warp(
        image, UPRIGHT["turn"], shape=SHAPE, distortion=np.zeros((2, 10)), noise_adu=5.0
    )
    # Both are the kernel, once along the turned axes and once beside them; the clamp differs.
    assert np.abs(swept - single).max() < 0.012 * 1e4
    assert abs(swept.sum() / single.sum() - 1) < 2e-4


@pytest.mark.parametrize("name", ["turn", "meridian flip", "larger"])
def test_the_bits_depend_on_neither_threads_nor_rows_asked_for(name):
    rng = np.random.default_rng(4)
    image = rng.normal(1000, 10, (3, *SHAPE)).astype(np.float32)
    mask = (rng.random(SHAPE) < 0.002).astype(np.uint8)
    kept, kept_mask = image.copy(), mask.copy()
    image.setflags(write=False)
    mask.setflags(write=False)

    def rows(first, last):
        return warp.warp_rows(
            image, UPRIGHT[name], rows=(first, last), width=SHAPE[1], mask=mask, noise_adu=10.0
        )

    before = numba.get_num_threads()
    results = []
    try:
        for threads in {1, min(2, before), before}:
            numba.set_num_threads(threads)
            results.append(rows(0, SHAPE[0]))
    finally:
        numba.set_num_threads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    for first, last in ((0, 1), (17, 83), (100, 130)):
        np.testing.assert_array_equal(rows(first, last), results[0][:, first:last])
    np.testing.assert_array_equal(image, kept)
    np.testing.assert_array_equal(mask, kept_mask)


@pytest.mark.parametrize("name", ["shift", "turn", "meridian flip"])
def test_bad_rows_columns_and_corners_leave_no_trace(name):
    """What is bad holds 50 000 ADU: not a thousandth of it may come through anywhere."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    truth = (1000 + 0.05 * x + 0.1 * y).astype(np.float32)
    mask = np.zeros(SHAPE, np.uint8)
    mask[0], mask[:, 0], mask[-1], mask[:, -1] = 1, 1, 1, 1
    mask[60] = 1
    mask[:, 1022:1025] = 1
    mask[30:39, 500:509] = 1
    mask[90, 1700], mask[91, 1701], mask[20, 20] = 1, 1, 3
    image = np.where(mask & 1, np.float32(50000), truth)[np.newaxis]
    result = warp.warp_rows(
        image, UPRIGHT[name], rows=(0, SHAPE[0]), width=SHAPE[1], mask=mask, noise_adu=1.0
    )[0]
    at_x, at_y = there(UPRIGHT[name])
    expected = 1000 + 0.05 * at_x + 0.1 * at_y
    seen = np.isfinite(result)
    assert np.abs(result - expected)[seen].max() < 0.5
    nearest = np.zeros(SHAPE, np.uint8)
    inside = (at_x > -0.49) & (at_x < 2299.49) & (at_y > -0.49) & (at_y < 129.49)
    nearest[inside] = mask[np.rint(at_y[inside]).astype(int), np.rint(at_x[inside]).astype(int)]
    # Where the nearest pixel is bad, more than a tenth of the kernel is.
    assert not seen[nearest > 0].any()
    far = np.ones(SHAPE, bool)
    for dy in range(-4, 5):
        for dx in range(-4, 5):
            far &= np.roll(nearest, (dy, dx), (0, 1)) == 0
    clear = far & (at_x > 4) & (at_x < 2295) & (at_y > 4) & (at_y < 125)
    assert seen[clear].all()
    assert clear.mean() > 0.7


def test_the_polynomials_are_the_table():
    """A frame of one pixel of 1 shows the kernel, mirrored."""
    for phase in range(0, lanczos.PHASES, 37):
        image = np.zeros((1, 15, 15), np.float32)
        image[0, 7, 7] = 1
        matrix = np.array([[1, 0, -phase / lanczos.PHASES], [0, 1, 0], [0, 0, 1.0]])
        # A large noise keeps the clamp away.
        warped, _ = warp.warp(image, matrix, shape=(15, 15), noise_adu=10.0)
        np.testing.assert_allclose(warped[0, 7, 4:10], lanczos.TABLE[phase][::-1], atol=3e-6)
