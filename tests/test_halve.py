"""A stack of half the size, against the same frames halved and stacked by hand."""

import dataclasses

import numpy as np
import pytest

from daemon.ledger.stacks import Member
from daemon.light import distortion as distortions
from daemon.light import quality
from daemon.stack import halve, live
from daemon.stack.store import Growing

TO_WHOLE = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1.0]])
BENT = np.array(
    [
        [3.0, -90.0, 40.0, 150.0, -70.0, 30.0, -900.0, 400.0, -500.0, 200.0],
        [-2.0, 50.0, 120.0, -40.0, 90.0, -110.0, 300.0, -600.0, 800.0, 500.0],
    ]
)
TILTED = np.array([[0.999, -0.02, 12.5], [0.021, 1.001, -7.25], [1e-6, -2e-6, 1.0]])


def terms(index=0, **changes):
    whole = live.FrameTerms(
        index=index, weight=1.0, scale=1.0, planes=((0.0, 0.0, 0.0),), sigma_adu=10.0,
        e_per_adu=1.0, sky_adu=1000.0, fwhm_px=4.0,
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)


def test_four_pixels_become_their_mean_without_the_bad_ones():
    rng = np.random.default_rng(1)
    whole = rng.normal(1000, 10, (3, 9, 13)).astype(np.float32)
    mask = np.zeros((9, 13), np.uint8)
    mask[2, 4] = 1  # one of four
    mask[4, 6] = mask[5, 7] = 1  # two of four
    mask[0, 1] = 2
    kept = whole.copy()
    half, bits = halve.image(whole, mask)
    expected = whole[:, :8, :12].astype(float).reshape(3, 4, 2, 6, 2).mean(axis=(2, 4))
    good = whole[:, 2:4, 4:6].astype(float)
    expected[:, 1, 2] = (good[:, 0, 1] + good[:, 1, 0] + good[:, 1, 1]) / 3
    np.testing.assert_allclose(half, expected, rtol=1e-6)
    wanted = np.zeros((4, 6), np.uint8)
    wanted[2, 3], wanted[0, 0] = 1, 2
    np.testing.assert_array_equal(bits, wanted)
    np.testing.assert_array_equal(whole, kept)


@pytest.mark.parametrize("distortion", [None, BENT])
def test_the_half_lies_where_the_whole_does(distortion):
    half_matrix, half_distortion = halve.place(TILTED, distortion)
    points = np.random.default_rng(2).uniform(0, 3000, (50, 2))
    whole = distortions.to_frame(TILTED, distortion, points * 2 + 0.5)
    half = distortions.to_frame(half_matrix, half_distortion, points)
    np.testing.assert_allclose(half * 2 + 0.5, whole, atol=1e-7)


def test_the_numbers_of_a_frame_at_half_the_size():
    whole = terms(planes=((5.0, 0.02, -0.01),), sigma_adu=8.0, e_per_adu=0.7, fwhm_px=3.0)
    half = halve.terms(whole)
    x, y = 200.0, 90.0
    (a, bx, by), (ha, hbx, hby) = whole.planes[0], half.planes[0]
    assert ha + hbx * x + hby * y == pytest.approx(a + bx * (2 * x + 0.5) + by * (2 * y + 0.5))
    # 1000 ADU of a source, in a pixel of four times the area: noise of the mean of four.
    rng = np.random.default_rng(3)
    electrons = rng.poisson(1000 * 0.7, (4, 200_000)) / 0.7 + rng.normal(0, 8.0, (4, 200_000))
    expected = half.sigma_adu**2 + 1000 / half.e_per_adu
    assert electrons.mean(axis=0).var() == pytest.approx(expected, rel=0.02)
    assert half.fwhm_px == 1.5


def member(index, matrix):
    measured = quality.Quality(**{f.name: 1 for f in dataclasses.fields(quality.Quality)})
    values = {f.name: None for f in dataclasses.fields(Member)}
    values |= {
        "frame_id": index + 1, "matrix": matrix, "terms": terms(index), "distortion": None,
        "quality": measured, "exposure_s": 30.0, "masters": {}, "flags": (),
    }  # fmt: skip
    return Member(**values)


def test_a_stack_without_memory_for_all_pixels_grows_at_half_the_size_and_forgets_frames():
    rng = np.random.default_rng(4)
    shape = (1, 80, 100)
    truth = 1000 + 0.5 * np.arange(100)[None, None, :] + np.zeros(shape)
    mask = np.zeros(shape[1:], np.uint8)
    small, enough = Growing(20 * truth.size), Growing(100 * truth.size)
    frames = []
    for index in range(12):
        dx, dy = rng.integers(-3, 4, 2) if index else (0, 0)
        matrix = np.array([[1, 0, float(dx)], [0, 1, float(dy)], [0, 0, 1]])
        x = np.arange(100)[np.newaxis]
        image = 1000 + 0.5 * (x + dx) + rng.uniform(-17, 17, (80, 100))
        frames.append((image.astype(np.float32)[np.newaxis], mask, member(index, matrix)))
        small.add(*frames[-1])
        enough.add(*frames[-1])
    assert small.halved
    assert not enough.halved
    assert small.image.shape == (1, 40, 50)
    assert small.nbytes * 3.9 < enough.nbytes
    shown = live.render(small.image)
    inner = np.s_[0, 6:-6, 6:-6]
    expected = 1000 + 0.5 * (2 * np.arange(50) + 0.5)
    # 12 frames of 4 pixels of σ 9.8.
    assert np.abs(shown.mean[inner] - expected[6:-6]).max() < 5 * 9.8 / np.sqrt(48)
    assert (shown.coverage[6:-6, 6:-6] >= 11).all()
    for frame in frames:
        small.remove(*frame)
    assert not small.image.weight.any()
    assert not small.image.settled.any()
    with pytest.raises(ValueError, match="empty"):
        Growing(10**9).remove(*frames[0])
