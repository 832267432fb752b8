"""The exact stack against simulated truth and against plain numpy."""

import dataclasses
import threading

import numba
import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from daemon.light import warp
from daemon.stack import final, live
from tests.test_live import SIZE, night, plain, score, simple_terms, stack_of, weighted


def source_of(shots, *, clean=False):
    def rows(position, y0, y1):
        shot = shots[position]
        return warp.warp_rows(
            shot.clean if clean else shot.dirty, shot.matrix, rows=(y0, y1), width=SIZE,
            noise_adu=shot.terms.sigma_adu / shot.terms.scale,
        )  # fmt: skip

    return rows


def array_source(frames):
    return lambda position, y0, y1: frames[position][:, y0:y1]


def combine_shots(shots, **options):
    terms = [shot.terms for shot in shots]
    return final.combine(source_of(shots), terms, shape=(1, SIZE, SIZE), **options)


def test_it_is_at_least_as_good_as_the_live_stack():
    shots, stars = night(60)
    exact = combine_shots(shots).image
    ours = score(exact.mean[0].astype(float), shots, stars)
    growing = live.render(stack_of(shots))
    theirs = score(growing.mean[0].astype(float), shots, stars)
    assert ours.efficiency < 1.01
    assert ours.artefacts < theirs.artefacts
    assert ours.flux < 0.002
    inner = np.s_[12:-12, 12:-12]
    sigma = np.sqrt(growing.variance[0][inner])
    difference = (exact.mean - growing.mean)[0][inner] / sigma
    assert np.sqrt(np.mean(difference**2)) < 0.25


def test_without_artefacts_it_is_the_weighted_mean():
    rng = np.random.default_rng(1)
    frames = [rng.uniform(985, 1015, (1, 40, 50)).astype(np.float32) for _ in range(9)]
    frames[4][0, 3, 7] = np.nan
    weights = rng.uniform(0.2, 2, 9)
    terms = [simple_terms(k, weight=float(w)) for k, w in enumerate(weights)]
    result = final.combine(array_source(frames), terms, shape=(1, 40, 50))
    cube = np.array(frames)[:, 0].astype(float)
    expected, total = weighted(cube, weights)
    np.testing.assert_allclose(result.image.mean[0], expected, rtol=1e-6)
    np.testing.assert_allclose(result.image.weight[0], total, rtol=1e-6)
    assert result.image.coverage[3, 7] == 8
    assert not result.rejected.any()


def test_hysteresis_takes_the_edge_of_a_trail_with_its_core():
    rng = np.random.default_rng(2)
    frames = [rng.normal(1000, 10, (1, 64, 64)).astype(np.float32) for _ in range(20)]
    x = np.arange(64)
    profile = 300 * np.exp(-((x - 30.0) ** 2) / (2 * 2.0**2))
    frames[0][0] += profile.astype(np.float32)
    masks = {}

    def keep(position, y0, mask):
        masks.setdefault(position, np.zeros((1, 64, 64), bool))[:, y0 : y0 + mask.shape[1]] = mask

    terms = [simple_terms(k) for k in range(20)]
    result = final.combine(array_source(frames), terms, shape=(1, 64, 64), on_rejected=keep)
    # Independently: numpy around the mean of the other frames.
    away = np.abs(frames[0][0] - np.mean([f[0] for f in frames[1:]], axis=0))
    core = away > 6 * 10
    assert masks[0][0][core].all()
    # 35 ADU at 4.1 px from the axis: below the gate of 4 σ, taken by growth.
    edge = np.abs(x - 30) == 4
    assert masks[0][0][:, edge].mean() > 0.75
    far = ~binary_dilation(core, iterations=4)
    assert masks[0][0][far].mean() < 0.002
    assert result.rejected[0] == pytest.approx(masks[0].mean())
    assert max(m.mean() for k, m in masks.items() if k) < 0.002


def test_a_bright_nebula_does_not_shelter_a_trail():
    """The seeing changes stars by a share of their light; a nebula it leaves as it is."""
    rng = np.random.default_rng(12)
    y, x = np.mgrid[:64, :64]
    nebula = 1000 + 3000 * np.exp(-((x - 32) ** 2 + (y - 32) ** 2) / (2 * 60**2))
    frames = [(nebula + rng.normal(0, 10, x.shape)).astype(np.float32)[None] for _ in range(20)]
    clean = np.mean(frames, axis=0)[0]
    trail = abs(x - y) < 4
    frames[6][0, trail] += 150
    terms = [
        dataclasses.replace(simple_terms(k), fwhm_px=3.0 + 0.5 * np.sin(k), e_per_adu=1e3)
        for k in range(20)
    ]
    stack = live.LiveStack.empty((1, 64, 64))
    for frame, one in zip(frames, terms, strict=True):
        live.add(stack, frame, np.eye(3), one)
    exact = final.combine(array_source(frames), terms, shape=(1, 64, 64), skies=[1000.0])
    # Left in, it would add 150/20 = 7.5 ADU.
    assert abs((exact.image.mean[0] - clean)[trail].mean()) < 0.3
    assert abs((live.render(stack).mean[0] - clean)[trail].mean()) < 0.3


def test_tiles_and_threads_do_not_change_a_bit():
    shots, _ = night(20)
    shots = shots[:12]
    whole = combine_shots(shots)
    before = numba.get_num_threads()
    steps = []
    try:
        numba.set_num_threads(1)
        tiled = combine_shots(shots, memory_bytes=1, progress=steps.append)
    finally:
        numba.set_num_threads(before)
    for name in ("mean", "weight", "variance", "coverage"):
        np.testing.assert_array_equal(
            getattr(whole.image, name), getattr(tiled.image, name), err_msg=name
        )
    np.testing.assert_array_equal(whole.rejected, tiled.rejected)
    assert len(steps) == SIZE / 16
    assert steps[-1] == 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_few_frames(number):
    rng = np.random.default_rng(3)
    frames = [rng.normal(1000, 10, (1, 32, 32)).astype(np.float32) for _ in range(number)]
    if number > 1:
        frames[0][0, 10:13] += 300
    terms = [simple_terms(k) for k in range(number)]
    image = final.combine(array_source(frames), terms, shape=(1, 32, 32)).image
    if number == 1:
        np.testing.assert_array_equal(image.mean, frames[0])
    assert np.abs(image.mean - 1000).max() < 50


def test_colours_and_uncovered_pixels():
    rng = np.random.default_rng(4)
    levels = np.array([300.0, 900.0, 500.0])[:, None, None]
    frames = [(levels + rng.normal(0, 5, (3, 40, 40))).astype(np.float32) for _ in range(10)]
    for frame in frames:
        frame[:, :, :5] = np.nan
    frames[2][1, 20, 20] += 1000
    terms = [simple_terms(k, sigma=5.0, planes=3) for k in range(10)]
    image = final.combine(array_source(frames), terms, shape=(3, 40, 40)).image
    for array in (image.mean, image.weight, image.variance, image.coverage):
        assert not array[..., :5].any()
    assert np.abs(image.mean[..., 5:] - levels).max() < 10
    assert image.weight[1, 20, 20] <= 9
    variance = image.variance[..., 5:].mean()
    assert variance == pytest.approx(25 / 10, rel=0.1)


def dilated(flags):
    """Each frame's flags (n, ny, nx), grown into the eight neighbours."""
    return np.array([binary_dilation(one, np.ones((3, 3))) for one in flags])


def in_numpy(cube, terms, sky):
    """The same method for one plane, (n, ny, nx) already scaled, in float64 and whole: mean,
    weight and what is left out.
    """
    number, ny, nx = cube.shape
    there = np.isfinite(cube)
    count = there.sum(axis=0)
    order = np.sort(np.where(there, cube, np.inf), axis=0)
    y, x = np.mgrid[:ny, :nx]
    centre = np.where(count > 0, order[np.maximum(count - 1, 0) // 2, y, x], np.nan)
    deviations = np.sort(np.where(there, abs(cube - centre), np.inf), axis=0)
    middle = deviations[np.minimum(count // 2, number - 1), y, x]
    spread = np.where(count >= 8, (1.4826 * middle) ** 2, 0)
    weights = np.array([t.weight for t in terms])[:, None, None]
    widths = np.array([t.fwhm_px for t in terms])[:, None, None]
    width = (weights * widths).sum() / weights.sum()
    seeing = abs((width / widths) ** 2 - 1) + 0.05
    variance = np.array([t.sigma_adu**2 for t in terms])[:, None, None]
    per_adu = 1 / np.array([t.e_per_adu for t in terms])[:, None, None]
    for _ in range(2):
        contrast = np.zeros((ny, nx))
        padded = np.pad(centre, 1, constant_values=np.nan)
        for dy in range(3):
            for dx in range(3):
                step = abs(padded[dy : dy + ny, dx : dx + nx] - centre)
                contrast = np.fmax(contrast, step)
        source = np.fmax(centre - sky, 0)
        noise = (variance + source * per_adu) * (1 + 1.5 / np.maximum(count, 1))
        sigma = np.sqrt(np.maximum(noise, np.where(count >= 8, spread, 0)))
        of_stars = np.fmin(source, (1 + width**2 / 4) * contrast)
        beyond = abs(cube - centre) - seeing * of_stars - 0.5 * contrast
        out, candidate = beyond > 4 * sigma, beyond > 1.7 * sigma
        for _ in range(3):
            out = out | (candidate & dilated(out))
        kept = there & ~out
        total = (weights * kept).sum(axis=0)
        some = total > 0
        mean = np.sum(np.where(kept, weights * cube, 0), axis=0) / np.where(some, total, 1)
        centre = np.where(some, mean, centre)
        squares = np.sum(np.where(kept, weights * (cube - centre) ** 2, 0), axis=0)
        n = kept.sum(axis=0)
        spread = squares / np.where(some, total, 1) * n / np.maximum(n - 1, 1)
    return np.nan_to_num(centre), total, out


@pytest.mark.parametrize(("number", "width"), [(5, 40), (9, 270), (37, 65)])
def test_it_is_what_plain_numpy_finds(number, width):
    """Steep stars, trails, missing pixels and borders, more frames than a word has bits, more
    columns than a strip: the same values left out, the same mean.
    """
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:50, :width]
    sky = 100 + 400 * np.exp(-((x - 20) ** 2 + (y - 25) ** 2) / 8)
    frames, terms = [], []
    for k in range(number):
        frame = sky + rng.normal(0, 5, sky.shape)
        if k % 4 == 1:
            frame += 60 * np.exp(-((x - y - 3 * k) ** 2) / 6)
        frame[rng.random(sky.shape) < 0.01] += 300
        frame[rng.random(sky.shape) < 0.02] = np.nan
        frame[:, : k % 5] = np.nan
        frame[:, -1] = np.nan
        scale, plane = rng.uniform(0.8, 1.2), (rng.normal(0, 2), 0.002, -0.003)
        offset = plane[0] + plane[1] * x + plane[2] * y
        frames.append(((frame - offset) / scale).astype(np.float32)[np.newaxis])
        terms.append(
            live.FrameTerms(
                index=k, weight=rng.uniform(0.2, 2), scale=scale, planes=(plane,), sigma_adu=5.0,
                e_per_adu=2.0, sky_adu=100.0, fwhm_px=rng.uniform(2.5, 3.5),
            )
        )  # fmt: skip
    masks = np.zeros((number, 50, width), bool)

    def keep(position, y0, mask):
        masks[position, y0 : y0 + mask.shape[1]] = mask[0]

    result = final.combine(
        array_source(frames), terms, shape=(1, 50, width), skies=[100.0], on_rejected=keep,
        memory_bytes=4 * number * width * 50,
    )  # fmt: skip
    scaled = [
        (t.scale * f[0].astype(float) + t.planes[0][0] + 0.002 * x - 0.003 * y).astype(np.float32)
        for f, t in zip(frames, terms, strict=True)
    ]
    mean, weight, out = in_numpy(np.array(scaled, dtype=float), terms, 100.0)
    assert out.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(masks, out)
    np.testing.assert_allclose(result.image.mean[0], mean, rtol=3e-7, atol=1e-6)
    np.testing.assert_allclose(result.image.weight[0], weight, rtol=3e-7)


def test_a_noisier_plane_is_judged_by_its_own_noise():
    """Red of a colour camera has more noise than the luminance that the terms speak of."""
    rng = np.random.default_rng(5)
    noise = np.array([20.0, 8.0, 8.0])
    frames = [
        (500 + noise[:, None, None] * rng.normal(size=(3, 64, 64))).astype(np.float32)
        for _ in range(6)
    ]
    terms = [simple_terms(k, sigma=8.0, planes=3) for k in range(6)]

    def left_out(**options):
        shares = []

        def keep(position, y0, mask):
            shares.append(mask.mean(axis=(1, 2)))

        final.combine(array_source(frames), terms, shape=(3, 64, 64), on_rejected=keep, **options)
        return np.mean(shares, axis=0)

    assert left_out()[0] > 0.02
    assert left_out(sigmas=np.tile(noise, (6, 1)))[0] < 0.001


def test_a_hidden_mistake_in_the_rows_is_an_error():
    with pytest.raises(ValueError, match="no frames"):
        final.combine(array_source([]), [], shape=(1, 8, 8))
    with pytest.raises(ValueError, match="rows of shape"):
        final.combine(
            array_source([np.zeros((1, 8, 9), np.float32)]), [simple_terms(0)],
            shape=(1, 8, 8), skies=[0.0],
        )  # fmt: skip


def test_rows_that_are_written_where_they_are_needed_give_the_same():
    """By threads, each a frame of its own."""
    shots, _ = night(9)
    rows, terms = source_of(shots), [shot.terms for shot in shots]
    threads = set()

    def fillers(position, y0, y1):
        def fill(out):
            threads.add(threading.get_ident())
            out[:] = rows(position, y0, y1)

        return fill

    shape = (1, SIZE, SIZE)
    expected = final.combine(rows, terms, shape=shape)
    made = final.combine_into(fillers, terms, shape=shape, memory_bytes=1_000_000)
    for ours, theirs in zip(
        dataclasses.astuple(made.image), dataclasses.astuple(expected.image), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(made.rejected, expected.rejected)
    assert made.rejected.max() > 0
    assert threads - {threading.get_ident()}  # this one measures the first frame's sky


def test_what_goes_wrong_with_one_frame_s_rows_is_raised():
    frames = [np.ones((1, 40, 50), np.float32)] * 6
    before = threading.active_count()

    def fillers(position, y0, y1):
        def fill(out):
            if position == 3:
                raise OSError("the disk is gone")
            out[:] = frames[position][:, y0:y1]

        return fill

    with pytest.raises(OSError, match="the disk is gone"):
        final.combine_into(
            fillers, [simple_terms(k) for k in range(6)], shape=(1, 40, 50), skies=[1.0]
        )
    assert threading.active_count() == before


def test_tiles_and_what_fills_them_share_the_memory():
    """26 megapixels, 30 frames, 500 MB: rows of all of them, and of each thread's own."""
    spans = final.tiles((1, 4176, 6248), 30, 500_000_000)
    assert [span[2] for span in spans[1:]] == [span[3] for span in spans[:-1]]
    assert (spans[0][2], spans[-1][3]) == (0, 4176)
    rows = max(y1 - y0 for y0, y1, _, _ in spans)
    own = final.THREADS * (2 + 4 + 1)  # raw, calibrated, mask
    assert 0.9 < rows * 6248 * (30 * 4 + own) / 500e6 <= 1.0


def test_the_helpers_of_the_simulation_know_what_they_say():
    """The clean frames' own weighted mean scores as perfect."""
    shots, stars = night(20)
    cube, weights = plain(shots)
    perfect = score(weighted(cube, weights)[0], shots, stars)
    assert perfect.efficiency == 1
    assert perfect.artefacts == 0
    assert perfect.flux == 0
