"""The growing stack against simulated truth: nothing lost to rejection, no trail left, and exact.

The night: stars under changing seeing and transparency, a tilted sky, dithers, and artefacts that
are known, so that the same frames exist with and without them.
"""

import dataclasses
import functools

import numba
import numpy as np
import pytest
from astropy.stats import sigma_clip

from daemon.light import warp
from daemon.stack import live

SIZE = 192
SKY = 400.0
READ_NOISE = 3.0
E_PER_ADU = 0.8


@dataclasses.dataclass(frozen=True)
class Shot:
    clean: np.ndarray
    dirty: np.ndarray
    touched: np.ndarray
    """(ny, nx) of the reference: reached by an artefact."""
    matrix: np.ndarray
    terms: live.FrameTerms


def stars_truth(rng):
    x, y = rng.uniform(12, SIZE - 12, (2, 60))
    flux = 10 ** rng.uniform(2.5, 4.2, 60)
    grid = np.array([(gx, gy) for gx in (45, 95, 145) for gy in (45, 95, 145)], float)
    bright = grid + rng.uniform(-3, 3, grid.shape)
    keep = np.ones(60, bool)
    for bx, by in bright:
        keep &= np.hypot(x - bx, y - by) > 16
    bx, by = bright.T
    return np.append(x[keep], bx), np.append(y[keep], by), np.append(flux[keep], [2e5] * 9)


def trail(rng, shape, fwhm, height):
    """A satellite: a straight line of the seeing's width through the frame."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    angle = rng.uniform(0, np.pi)
    cx, cy = rng.uniform(40, SIZE - 40, 2)
    distance = (x - cx) * np.sin(angle) - (y - cy) * np.cos(angle)
    return height * np.exp(-(distance**2) / (2 * (fwhm / 2.3548) ** 2))


def take(rng, index, stars, *, trail_sigma, hot, cosmics):
    """One frame of the night, with and without its artefacts."""
    turn = rng.normal(0, 0.05) + (180 if index % 10 >= 7 else 0)
    angle = np.deg2rad(turn if index else 0)
    c, s = np.cos(angle), np.sin(angle)
    centre = (SIZE - 1) / 2
    dx, dy = rng.uniform(-4, 4, 2) if index else (0, 0)
    matrix = np.array(
        [
            [c, -s, centre - c * centre + s * centre + dx],
            [s, c, centre - s * centre - c * centre + dy],
            [0, 0, 1],
        ]
    )
    fwhm = 3.0 if index == 0 else rng.uniform(2.5, 3.7)
    t = 1.0 if index == 0 else rng.uniform(0.6, 1.0)
    slope = rng.uniform(-0.15, 0.15, 2) if index else np.zeros(2)
    gy, gx = np.mgrid[:SIZE, :SIZE].astype(float)
    inverse = np.linalg.inv(matrix)
    x, y, flux = stars
    sx = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
    sy = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]
    sigma = fwhm / 2.3548
    sky = SKY + slope[0] * gx + slope[1] * gy
    light = sky.copy()
    for star_x, star_y, f in zip(sx, sy, flux, strict=True):
        profile = np.exp(-((gx - star_x) ** 2 + (gy - star_y) ** 2) / (2 * sigma**2))
        light += t * f * profile / (2 * np.pi * sigma**2)
    noisy = rng.poisson(light * E_PER_ADU) / E_PER_ADU + rng.normal(0, READ_NOISE, gx.shape)
    noise = np.sqrt(SKY / E_PER_ADU + READ_NOISE**2)
    artefact = np.zeros(gx.shape)
    for height in trail_sigma:
        artefact += trail(rng, gx.shape, fwhm, height * noise)
    artefact[hot] += 40 * noise
    for _ in range(cosmics):
        cy, cx = rng.integers(2, SIZE - 4, 2)
        artefact[cy, cx : cx + rng.integers(1, 4)] += 10 ** rng.uniform(1, 3) * noise
    clean = noisy.astype(np.float32)[np.newaxis]
    dirty = (noisy + artefact).astype(np.float32)[np.newaxis]
    reach = warp.warp(
        (artefact > 0.05 * noise).astype(np.float32)[np.newaxis], matrix, shape=gx.shape,
        noise_adu=10.0,
    )[0][0]  # fmt: skip
    # y = scale · frame + plane must lie at the reference's sky: the plane in reference px.
    per_px = slope @ inverse[:2]
    plane = (
        SKY - (SKY + per_px[2]) / t,
        -per_px[0] / t,
        -per_px[1] / t,
    )
    terms = live.FrameTerms(
        index=index,
        weight=t**2 / (noise**2 * fwhm),
        scale=1 / t,
        planes=(plane,),
        sigma_adu=noise / t,
        e_per_adu=E_PER_ADU * t,
        sky_adu=SKY,
        fwhm_px=fwhm,
    )
    return Shot(clean, dirty, np.abs(reach) > 0.02, matrix, terms)


@functools.cache
def night(frames=40, seed=2026):
    """Trails of 30σ in the first frame, of other heights in every eighth, always hot pixels."""
    rng = np.random.default_rng(seed)
    stars = stars_truth(rng)
    hot = tuple(rng.integers(3, SIZE - 3, (2, 12)))
    shots = []
    for index in range(frames):
        heights = [30.0] if index == 0 else [10 ** rng.uniform(0.7, 2.2)] if index % 8 == 1 else []
        shots.append(take(rng, index, stars, trail_sigma=heights, hot=hot, cosmics=6))
    return tuple(shots), stars


def stack_of(shots, *, clean=False, high=3, low=2):
    stack = live.LiveStack.empty((1, SIZE, SIZE), high=high, low=low)
    for shot in shots:
        live.add(stack, shot.clean if clean else shot.dirty, shot.matrix, shot.terms)
    return stack


def plain(shots, *, clean=True):
    """Each frame on the reference grid, scaled, (n, ny, nx) with NaN, and the weights."""
    y, x = np.mgrid[:SIZE, :SIZE]
    cube = []
    for shot in shots:
        image, covered = warp.warp(
            shot.clean if clean else shot.dirty, shot.matrix, shape=(SIZE, SIZE),
            noise_adu=shot.terms.sigma_adu / shot.terms.scale,
        )  # fmt: skip
        a, bx, by = shot.terms.planes[0]
        scaled = shot.terms.scale * image[0].astype(float) + a + bx * x + by * y
        cube.append(np.where(covered > 0, scaled, np.nan))
    return np.array(cube), np.array([shot.terms.weight for shot in shots])


def weighted(cube, weights):
    """The weighted mean and sum of weights of what is not NaN."""
    w = weights[:, None, None] * np.isfinite(cube)
    total = w.sum(axis=0)
    return np.sum(np.nan_to_num(cube) * w, axis=0) / np.where(total > 0, total, 1), total


@dataclasses.dataclass(frozen=True)
class Score:
    efficiency: float
    """Background noise over that of the artefact-free mean, where no artefact reached."""
    artefacts: float
    """rms in σ of the stack, where some artefact reached, against the artefact-free mean."""
    flux: float
    """Bright stars against the artefact-free mean: median of the absolute error."""


def score(image, shots, stars):
    cube, weights = plain(shots)
    best, _ = weighted(cube, weights)
    reached = np.array([shot.touched for shot in shots])
    inner = np.zeros((SIZE, SIZE), bool)
    inner[12:-12, 12:-12] = True
    gy, gx = np.mgrid[:SIZE, :SIZE]
    background = inner.copy()
    for x, y, f in zip(*stars, strict=True):
        background &= np.hypot(gx - x, gy - y) > (12 if f > 3e4 else 7)
    touched = reached.any(axis=0)
    quiet = background & ~touched
    sigma = best[quiet].std()
    left = (image - best)[background & touched] / sigma
    ratios = []
    for x, y in zip(stars[0][-9:], stars[1][-9:], strict=True):
        disc = np.hypot(gx - x, gy - y) < 9
        ratios.append((image[disc] - SKY).sum() / (best[disc] - SKY).sum() - 1)
    return Score(
        efficiency=float(image[quiet].std() / sigma),
        artefacts=float(np.sqrt(np.mean(left**2))),
        flux=float(np.median(np.abs(ratios))),
    )


def simple_terms(index, *, sigma=10.0, planes=1, weight=1.0):
    return live.FrameTerms(
        index=index, weight=weight, scale=1.0, planes=((0.0, 0.0, 0.0),) * planes,
        sigma_adu=sigma, e_per_adu=1.0, sky_adu=1000.0, fwhm_px=3.0,
    )  # fmt: skip


def flat_frames(number, *, shape=(1, 64, 64), seed=1, sigma=10.0):
    """Noise that no gate may touch: bounded, so that every frame counts in every pixel."""
    rng = np.random.default_rng(seed)
    half = sigma * np.sqrt(3)
    return [rng.uniform(1000 - half, 1000 + half, shape).astype(np.float32) for _ in range(number)]


def state_of(stack):
    names = ["values", "frames", "total", "weight", "spread", "settled", "contrast"]
    return {name: getattr(stack, name).copy() for name in names}


def test_nothing_is_lost_and_no_artefact_is_left():
    shots, stars = night(60)
    ours = score(live.render(stack_of(shots)).mean[0].astype(float), shots, stars)
    cube, weights = plain(shots, clean=False)
    with np.errstate(all="ignore"):
        clipped = sigma_clip(np.ma.masked_invalid(cube), sigma=3, maxiters=5, axis=0)
    batch = score(weighted(clipped.filled(np.nan), weights)[0], shots, stars)
    mean = score(weighted(cube, weights)[0], shots, stars)
    assert mean.artefacts > 5  # the artefacts are there to be found
    assert ours.efficiency < min(1.01, batch.efficiency)
    # 0.26 to 0.30 for several seeds. Leaving out exactly the values that an artefact reached
    # gives 0.21 to 0.23: the noise of what is lost.
    assert ours.artefacts < min(0.32, batch.artefacts)
    assert ours.flux < 0.002


@pytest.mark.parametrize(("high", "low"), [(3, 2), (3, 1), (2, 1)])
def test_without_artefacts_it_is_the_weighted_mean(high, low):
    shots, stars = night(20)
    stack = stack_of(shots, clean=True, high=high, low=low)
    result = score(live.render(stack).mean[0].astype(float), shots, stars)
    assert result.efficiency < 1.002
    assert result.flux < 0.001


def test_one_frame_is_shown_as_it_is():
    shots, _ = night(20)
    image = live.render(stack_of(shots[:1])).mean
    quantum = shots[0].terms.sigma_adu / live.QUANTA_PER_SIGMA
    np.testing.assert_allclose(image, shots[0].dirty, rtol=1e-6, atol=quantum / 2)


@pytest.mark.parametrize("others", [(2,), (2, 3), (2, 3, 4)])
def test_a_trail_in_the_first_frame_is_gone_as_soon_as_there_are_two(others):
    shots, stars = night(20)
    chosen = [shots[0], *(shots[k] for k in others)]
    image = live.render(stack_of(chosen)).mean[0]
    trail_pixels = (shots[0].dirty - shots[0].clean)[0] > 20 * shots[0].terms.sigma_adu
    gy, gx = np.mgrid[:SIZE, :SIZE]
    for x, y, _ in zip(*stars, strict=True):
        trail_pixels &= np.hypot(gx - x, gy - y) > 12
    for shot in chosen[1:]:
        trail_pixels &= ~shot.touched
    cube, weights = plain(chosen, clean=False)
    covered = np.isfinite(cube).all(axis=0)
    left = image[trail_pixels & covered] - SKY
    mean = weighted(cube, weights)[0][trail_pixels & covered] - SKY
    sigma = shots[0].terms.sigma_adu
    assert left.size > 100
    assert mean.mean() > 5 * sigma
    assert abs(left.mean()) < 0.5 * sigma
    assert np.sqrt(np.mean(left**2)) < 1.5 * sigma


@pytest.mark.parametrize("taken", [(5,), (9, 4, 17)])
def test_a_frame_taken_out_leaves_the_stack_that_never_had_it(taken):
    shots, _ = night(20)
    stack = stack_of(shots)
    for index in taken:
        shot = shots[index]
        live.remove(stack, shot.dirty, shot.matrix, shot.terms)
    without = stack_of([shot for shot in shots if shot.terms.index not in taken])
    ours, theirs = live.render(stack), live.render(without)
    enough = 0.999 ** len(taken)
    assert np.mean(ours.mean == theirs.mean) >= enough
    assert np.mean(ours.weight == theirs.weight) >= enough
    assert np.mean(ours.coverage == theirs.coverage) >= enough
    assert list(stack.terms) == [k for k in range(20) if k not in taken]
    # And the stack goes on as if nothing had been.
    for index in taken:
        live.add(stack, shots[index].dirty, shots[index].matrix, shots[index].terms)
    whole = live.render(stack_of(shots))
    assert np.mean(live.render(stack).mean == whole.mean) >= enough


def test_adding_and_taking_away_everything_leaves_nothing():
    frames = flat_frames(9)
    stack = live.LiveStack.empty((1, 64, 64))
    for index, frame in enumerate(frames):
        live.add(stack, frame, np.eye(3), simple_terms(index))
    for index in (3, 0, 8, 1, 2, 7, 6, 5, 4):
        live.remove(stack, frames[index], np.eye(3), simple_terms(index))
    for name in ("frames", "total", "weight", "settled"):
        assert not getattr(stack, name).any(), name
    assert not live.render(stack).weight.any()


def test_a_stack_of_fewer_frames_than_it_was_goes_on():
    """With three left of nine, what is settled of them stays, and pixels have room again."""
    frames = flat_frames(14)
    stack = live.LiveStack.empty((1, 64, 64))
    for index in range(9):
        live.add(stack, frames[index], np.eye(3), simple_terms(index))
    for index in (2, 8, 0, 4, 5, 1):
        live.remove(stack, frames[index], np.eye(3), simple_terms(index))
    members = [3, 6, 7]
    for index in range(9, 14):
        live.add(stack, frames[index], np.eye(3), simple_terms(index))
        members.append(index)
        image = live.render(stack)
        # The gate of so few may have dropped one of nine, or take a value for one that it dropped.
        whole = image.coverage == len(members)
        assert whole.mean() >= 0.999
        expected = np.mean([frames[k] for k in members], axis=0, dtype=np.float64)
        np.testing.assert_allclose(
            image.mean[0, whole], expected[0, whole], rtol=1e-6, atol=10 / 1024
        )


@pytest.mark.parametrize("width", [1, 7, 64, 65, 1031])
def test_values_outside_the_gate_are_dropped_at_any_place_of_a_row(width):
    """Six of sixteen frames are disturbed in some columns, twice as many as can wait."""
    frames = flat_frames(16, shape=(1, 3, width))
    columns = sorted({0, width // 2, width - 1, max(width - 8, 0), max(width - 9, 0)})
    disturbed = [frame.copy() for frame in frames]
    for frame in disturbed[10:]:
        frame[:, :, columns] += 500
    stack = live.LiveStack.empty((1, 3, width))
    for index, frame in enumerate(disturbed):
        live.add(stack, frame, np.eye(3), simple_terms(index))
    image = live.render(stack)
    counts, expected = np.full(width, 16), np.mean(frames, axis=0, dtype=np.float64)
    counts[columns] = 10
    expected[:, :, columns] = np.mean(frames[:10], axis=0, dtype=np.float64)[:, :, columns]
    # Beside a rejected value a narrower gate holds, for what is shown.
    beside = {column + step for column in columns for step in (-1, 1)} - set(columns)
    sure = [column for column in range(width) if column not in beside]
    np.testing.assert_array_equal(image.coverage[:, sure], np.tile(counts[sure], (3, 1)))
    np.testing.assert_allclose(
        image.mean[:, :, sure], expected[:, :, sure], rtol=1e-6, atol=10 / 1024
    )


def test_the_mean_depends_on_neither_the_depth_nor_the_order():
    frames = flat_frames(15)
    expected = np.mean(np.array(frames, dtype=np.float64), axis=0)
    results = []
    for high, low, order in ((3, 2, range(15)), (2, 1, range(15)), (3, 1, [0, *range(14, 0, -1)])):
        stack = live.LiveStack.empty((1, 64, 64), high=high, low=low)
        for index in order:
            live.add(stack, frames[index], np.eye(3), simple_terms(index))
        image = live.render(stack)
        assert (image.coverage == 15).all()
        results.append(image.mean)
    np.testing.assert_allclose(results[0], expected, rtol=1e-6, atol=10 / 1024)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_weights_count_as_given():
    frames = flat_frames(8)
    weights = np.array([1.0, 0.5, 2.0, 0.25, 1.0, 4.0, 0.125, 1.0]) * 3e-3
    stack = live.LiveStack.empty((1, 64, 64))
    for index, (frame, weight) in enumerate(zip(frames, weights, strict=True)):
        live.add(stack, frame, np.eye(3), simple_terms(index, weight=float(weight)))
    image = live.render(stack)
    expected = np.average(np.array(frames, dtype=np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(image.mean, expected, rtol=1e-6, atol=10 / 1024)
    np.testing.assert_allclose(image.weight, weights.sum(), rtol=1e-5)


def test_noise_falls_with_the_root_of_the_number_and_the_variance_says_so():
    rng = np.random.default_rng(8)
    stack = live.LiveStack.empty((1, 128, 128))
    for index in range(64):
        frame = rng.normal(1000, 10, (1, 128, 128)).astype(np.float32)
        live.add(stack, frame, np.eye(3), simple_terms(index))
        if index + 1 in {1, 2, 4, 16, 64}:
            image = live.render(stack)
            noise = image.mean.std() * np.sqrt(index + 1)
            # 16384 pixels give σ to 0.6 %; the gate may cost 0.5 %.
            assert abs(noise / 10 - 1) < 0.025
            assert abs(np.mean(image.variance) * (index + 1) / 100 - 1) < 0.06


def test_the_same_bits_for_any_number_of_threads():
    shots, _ = night(20)
    before = numba.get_num_threads()
    states, images = [], []
    try:
        for threads in {1, min(2, before), before}:
            numba.set_num_threads(threads)
            stack = stack_of(shots[:12])
            live.remove(stack, shots[3].dirty, shots[3].matrix, shots[3].terms)
            states.append(state_of(stack))
            images.append(live.render(stack))
    finally:
        numba.set_num_threads(before)
    for state, image in zip(states[1:], images[1:], strict=True):
        for name, array in state.items():
            np.testing.assert_array_equal(array, states[0][name], err_msg=name)
        np.testing.assert_array_equal(image.mean, images[0].mean)
        np.testing.assert_array_equal(image.variance, images[0].variance)


BENT = np.array(
    [
        [3.0, -90.0, 40.0, 1500.0, -700.0, 300.0, -9000.0, 4000.0, -5000.0, 2000.0],
        [-2.0, 50.0, 120.0, -400.0, 900.0, -1100.0, 3000.0, -6000.0, 8000.0, 5000.0],
    ]
)
"""Up to 4 px of displacement and 9 % of area within a frame of 192 px."""


def test_a_distorted_frame_enters_as_it_is_warped_and_leaves_without_a_trace():
    """Frames with and without a distortion: the stack of the warped ones, and exact to undo."""
    frames = flat_frames(9)
    shift = np.array([[1, 0, 2.3], [0, 1, -1.6], [0, 0, 1.0]])
    rng = np.random.default_rng(5)
    bends = [None if k % 3 == 0 else BENT * rng.uniform(-1, 1) for k in range(9)]
    stack = live.LiveStack.empty((1, 64, 64))
    expected, covered = np.zeros((64, 64)), np.zeros((64, 64))
    for index, (frame, bend) in enumerate(zip(frames, bends, strict=True)):
        live.add(stack, frame, shift, simple_terms(index), distortion=bend)
        warped, coverage = warp.warp(frame, shift, shape=(64, 64), distortion=bend, noise_adu=10.0)
        expected += warped[0]
        covered += coverage
    image = live.render(stack)
    whole = covered == 9
    assert whole.mean() > 0.8
    # A value that is an outlier for the gate is dropped: one in some thousands.
    np.testing.assert_array_equal(image.coverage > 0, covered > 0)
    same = whole & (image.coverage == 9)
    assert same.sum() > 0.99 * whole.sum()
    np.testing.assert_allclose(image.mean[0][same], (expected / 9)[same], rtol=1e-6, atol=10 / 1024)
    for index in (3, 0, 8, 1, 2, 7, 6, 5, 4):
        live.remove(stack, frames[index], shift, simple_terms(index), distortion=bends[index])
    for name in ("frames", "total", "weight", "settled"):
        assert not getattr(stack, name).any(), name


@pytest.mark.parametrize("taken", [(5,), (9, 4, 17)])
def test_a_distorted_frame_taken_out_leaves_the_stack_that_never_had_it(taken):
    shots, _ = night(20)
    scales = np.random.default_rng(6).uniform(-0.2, 0.2, 20)
    with_all, without = (live.LiveStack.empty((1, SIZE, SIZE)) for _ in range(2))
    for index, shot in enumerate(shots):
        terms, bend = shot.terms, BENT * scales[index]
        live.add(with_all, shot.dirty, shot.matrix, terms, distortion=bend)
        if index not in taken:
            live.add(without, shot.dirty, shot.matrix, terms, distortion=bend)
    for index in taken:
        shot = shots[index]
        live.remove(with_all, shot.dirty, shot.matrix, shot.terms, distortion=BENT * scales[index])
    ours, theirs = live.render(with_all), live.render(without)
    enough = 0.999 ** len(taken)
    assert np.mean(ours.mean == theirs.mean) >= enough
    assert np.mean(ours.weight == theirs.weight) >= enough
    assert np.mean(ours.coverage == theirs.coverage) >= enough


def test_distorted_frames_give_the_same_bits_for_any_number_of_threads():
    shots, _ = night(20)
    before = numba.get_num_threads()
    states = []
    try:
        for threads in {1, min(2, before), before}:
            numba.set_num_threads(threads)
            stack = live.LiveStack.empty((1, SIZE, SIZE))
            for shot in shots[:8]:
                live.add(stack, shot.dirty, shot.matrix, shot.terms, distortion=BENT)
            shot = shots[3]
            live.remove(stack, shot.dirty, shot.matrix, shot.terms, distortion=BENT)
            states.append(state_of(stack))
    finally:
        numba.set_num_threads(before)
    for state in states[1:]:
        for name, array in state.items():
            np.testing.assert_array_equal(array, states[0][name], err_msg=name)


def test_inputs_are_unmodified_and_looking_changes_nothing():
    shots, _ = night(20)
    shot = shots[1]
    image, matrix, mask = shot.dirty.copy(), shot.matrix.copy(), np.zeros((SIZE, SIZE), np.uint8)
    mask[5:9, 7] = 1
    kept = mask.copy()
    for array in (image, matrix, mask):
        array.setflags(write=False)
    stack = stack_of(shots[:1])
    live.add(stack, image, matrix, shot.terms, mask=mask)
    np.testing.assert_array_equal(image, shot.dirty)
    np.testing.assert_array_equal(matrix, shot.matrix)
    np.testing.assert_array_equal(mask, kept)
    before = state_of(stack)
    live.render(stack)
    for name, array in state_of(stack).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_what_a_frame_does_not_cover_is_not_averaged_in():
    stack = live.LiveStack.empty((1, 60, 70))
    frame = np.full((1, 60, 70), 1000, np.float32)
    shifts = [(0, 0), (10.5, 0), (0, -20.25), (10.5, -20.25), (30, 5), (-12, 7), (3, 3), (200, 0)]
    for index, (dx, dy) in enumerate(shifts):
        matrix = np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1.0]])
        live.add(stack, frame, matrix, simple_terms(index))
    image = live.render(stack)
    y, x = np.mgrid[:60, :70]
    expected = sum(
        ((x >= dx) & (x <= 69 + dx) & (y >= dy) & (y <= 59 + dy)).astype(int) for dx, dy in shifts
    )
    np.testing.assert_array_equal(image.coverage, expected)
    np.testing.assert_allclose(image.mean, 1000, atol=0.01)
    np.testing.assert_allclose(image.weight[0], expected, rtol=1e-6)
    # A stack of frames none of which reaches a pixel.
    empty = live.LiveStack.empty((1, 60, 70))
    live.add(empty, frame, np.array([[1, 0, 40.0], [0, 1, 0], [0, 0, 1]]), simple_terms(0))
    image = live.render(empty)
    for array in (image.mean[0], image.weight[0], image.variance[0], image.coverage):
        assert not array[:, :40].any()
        assert array[:, 40:].all()


def test_masked_pixels_do_not_count():
    frames = flat_frames(6)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:24, 30:34] = 1
    mask[40, 40] = 2
    stack = live.LiveStack.empty((1, 64, 64))
    for index, frame in enumerate(frames):
        if index == 2:
            frame[0, 20:24, 30:34] = 1e6
        live.add(stack, frame, np.eye(3), simple_terms(index), mask=mask if index == 2 else None)
    image = live.render(stack)
    assert (image.coverage[20:24, 30:34] == 5).all()
    assert image.coverage[40, 40] == 6
    others = np.array([frames[k][0, 20:24, 30:34] for k in (0, 1, 3, 4, 5)], dtype=np.float64)
    np.testing.assert_allclose(image.mean[0, 20:24, 30:34], others.mean(axis=0), atol=0.02)


def test_not_finite_pixels_do_not_count():
    frames = flat_frames(7)
    frames[3][0, 10, 10] = np.nan
    frames[4][0, 10, 10] = np.inf
    stack = live.LiveStack.empty((1, 64, 64))
    for index, frame in enumerate(frames):
        live.add(stack, frame, np.eye(3), simple_terms(index))
    image = live.render(stack)
    assert image.coverage[10, 10] == 5
    assert np.isfinite(image.mean).all()
    assert np.isfinite(image.variance).all()


def test_colours_have_their_own_planes():
    rng = np.random.default_rng(3)
    levels = np.array([300.0, 900.0, 500.0])
    stack = live.LiveStack.empty((3, 48, 56))
    y, x = np.mgrid[:48, :56]
    for index in range(10):
        offsets = rng.uniform(-50, 50, (3, 3)) * [1, 0.02, 0.02] if index else np.zeros((3, 3))
        tilt = offsets[:, 0, None, None] + offsets[:, 1, None, None] * x
        tilt = tilt + offsets[:, 2, None, None] * y
        image = levels[:, None, None] - tilt + rng.uniform(-10, 10, (3, 48, 56))
        if index == 4:
            image[1, 20, 20] += 500
        terms = dataclasses.replace(
            simple_terms(index, sigma=6.0, planes=3),
            planes=tuple(tuple(float(v) for v in plane) for plane in offsets),
            sky_adu=650.0,
        )
        live.add(stack, image.astype(np.float32), np.eye(3), terms)
    image = live.render(stack)
    assert image.mean.shape == (3, 48, 56)
    assert image.coverage.shape == (48, 56)
    np.testing.assert_allclose(image.mean.mean(axis=(1, 2)), levels, atol=0.2)
    assert np.abs(image.mean - levels[:, None, None]).max() < 10
    assert image.weight[1, 20, 20] == pytest.approx(9)
    assert image.weight[0, 20, 20] == pytest.approx(10)


def test_depth_is_what_memory_allows():
    pixels = 6248 * 4176
    shape = (1, 4176, 6248)
    assert live.depth_for(shape, 70 * pixels) == (3, 2, 1)
    assert live.depth_for(shape, 60 * pixels) == (3, 1, 1)
    assert live.depth_for(shape, 50 * pixels) == (2, 1, 1)
    assert live.depth_for(shape, 30 * pixels) == (3, 2, 2)
    assert live.depth_for(shape, 10 * pixels) == (3, 2, 4)
    assert live.depth_for(shape, 1000) == (2, 1, 4)
    stack = live.LiveStack.empty((1, 10, 10))
    assert stack.nbytes == 50 * 100


def test_what_cannot_be_added_leaves_the_stack_unchanged():
    frame = flat_frames(1)[0]
    stack = live.LiveStack.empty((1, 64, 64))
    live.add(stack, frame, np.eye(3), simple_terms(0))
    before = state_of(stack)
    cases = [
        (frame, np.eye(3), simple_terms(0), "already"),
        (frame, np.zeros((3, 3)), simple_terms(1), "inverted"),
        (frame[0], np.eye(3), simple_terms(1), "shape"),
        (frame.astype(np.float64), np.eye(3), simple_terms(1), "float32"),
        (frame, np.eye(3), simple_terms(1, weight=0.0), "positive"),
        (frame, np.eye(3), simple_terms(1, sigma=np.nan), "positive"),
        (frame, np.eye(3), simple_terms(70000), "index"),
        (frame, np.eye(3), simple_terms(1, planes=3), "planes"),
    ]
    for image, matrix, terms, word in cases:
        with pytest.raises(ValueError, match=word):
            live.add(stack, image, matrix, terms)
    with pytest.raises(ValueError, match="mask"):
        live.add(stack, frame, np.eye(3), simple_terms(1), mask=np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="distortion"):
        live.add(stack, frame, np.eye(3), simple_terms(1), distortion=np.zeros((3, 3)))
    with pytest.raises(ValueError, match="not in the stack"):
        live.remove(stack, frame, np.eye(3), simple_terms(1))
    with pytest.raises(ValueError, match="a stack is"):
        live.LiveStack.empty((2, 64, 64))
    assert list(stack.terms) == [0]
    for name, array in state_of(stack).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
