"""The clip against astropy's, the tiles and threads against each other, the figures of theory."""

import dataclasses
import warnings
from fractions import Fraction

import numpy as np
import pytest
from astropy.io import fits
from astropy.stats import sigma_clip

from calib_library import combine
from calib_library.clip import sorting_network
from calib_library.combine import ArrayRows, median, sigma_clipped_mean, sigma_clipped_rows
from calib_library.errors import IncompatibleFramesError
from calib_library.images.row_reader import RowReader


def cube(n, *, shape=(9, 150), seed=1, dtype=np.uint16):
    """Noise with outliers of both signs, where a clip at 3 sigma has work to do."""
    rng = np.random.default_rng(seed)
    values = rng.normal(1000, 12, (n, *shape))
    values[rng.random(values.shape) < 0.02] += 4000
    values[rng.random(values.shape) < 0.01] -= 700
    return (
        np.rint(values).astype(dtype) if np.issubdtype(dtype, np.integer) else values.astype(dtype)
    )


def readers(frames):
    return [ArrayRows(frame) for frame in frames]


def by_astropy(frames, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy warns of values that are not finite
        clipped = sigma_clip(
            frames.astype(np.float64), axis=0, cenfunc="median", stdfunc="std", **options
        )
    count = np.ma.count(clipped, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.where(count > 1, clipped.var(axis=0, ddof=1).filled(0) / count, 0)
    return clipped.mean(axis=0).filled(0), variance, count


@pytest.mark.parametrize("n", [1, 2, 3, 5, 11, 12, 16, 20, 31, 33, 64, 100])
def test_network_sorts_every_arrangement_of_zeros_and_ones(n):
    # The zero-one principle: a network that sorts all 0/1 inputs sorts everything. All of them for
    # small n, the n + 1 sorted ones in many random orders for larger.
    rng = np.random.default_rng(n)
    if n <= 12:
        inputs = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        inputs = (rng.random((4000, n)) < rng.random((4000, 1))).astype(int)
    values = inputs.copy()
    for i, j in sorting_network(n):
        low, high = values[:, i].copy(), values[:, j].copy()
        values[:, i], values[:, j] = np.minimum(low, high), np.maximum(low, high)
    assert np.array_equal(values, np.sort(inputs, axis=1))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.uint8])
@pytest.mark.parametrize("n", [1, 2, 7, 20, 41])
def test_equals_astropy(n, dtype):
    frames = cube(n, dtype=dtype) if dtype != np.uint8 else (cube(n) % 251).astype(np.uint8)
    mean, variance, count = by_astropy(frames, sigma=3, maxiters=5)
    result = sigma_clipped_mean(readers(frames))
    assert np.array_equal(result.count, count)
    assert np.allclose(result.mean, mean, rtol=2e-7, atol=0)
    assert np.allclose(result.variance, variance, rtol=1e-5, atol=1e-9)
    if n >= 20 and dtype == np.uint16:
        assert (result.count < n).mean() > 0.3  # the clip did have work to do


@pytest.mark.parametrize(("sigma", "iterations"), [(2.0, 1), (1.5, 5), (2.5, 2)])
def test_equals_astropy_with_other_options(sigma, iterations):
    frames = cube(15, seed=3)
    # Named functions take astropy's short cut, which applies only the last bounds: a value that an
    # earlier step dropped may come back. Functions of our own take its documented way.
    clipped = sigma_clip(
        frames.astype(np.float64),
        axis=0,
        sigma=sigma,
        maxiters=iterations,
        cenfunc=lambda a, axis: np.nanmedian(a, axis=axis),
        stdfunc=lambda a, axis: np.nanstd(a, axis=axis),
    )
    mean, count = clipped.mean(axis=0), np.ma.count(clipped, axis=0)
    result = sigma_clipped_mean(readers(frames), sigma=sigma, iterations=iterations)
    assert np.array_equal(result.count, count)
    assert np.allclose(result.mean, mean, rtol=2e-7)


def exactly_clipped(values, sigma, iterations):
    """(mean, variance of the mean, count) by the definition, in rational numbers."""
    kept = sorted(map(Fraction, values))
    for _ in range(iterations):
        n = len(kept)
        centre = (kept[(n - 1) // 2] + kept[n // 2]) / 2
        mean = sum(kept) / n
        squared = sum((value - mean) ** 2 for value in kept) / n
        left = [value for value in kept if (value - centre) ** 2 <= sigma**2 * squared]
        if len(left) == n:
            break
        kept = left
    n, mean = len(kept), sum(kept) / len(kept)
    return float(mean), float(sum((value - mean) ** 2 for value in kept) / (n - 1) / n), n


@pytest.mark.parametrize("n", [15, 20])
def test_wild_values_leave_no_rounding_in_the_mean_of_whole_numbers(n):
    frames = cube(n, shape=(2, 100), seed=n)
    rng = np.random.default_rng(n)
    for wild, share in ((65535, 0.03), (0, 0.02), (30000, 0.02)):
        frames[rng.random(frames.shape) < share] = wild
    result = sigma_clipped_mean(readers(frames), sigma=2.5)
    found = np.stack([result.mean, result.variance, result.count], axis=-1).reshape(-1, 3)
    pixels = frames.reshape(n, -1).T.tolist()
    expected = [exactly_clipped(pixel, Fraction(5, 2), 5) for pixel in pixels]
    assert np.array_equal(found, np.array(expected, np.float32))


def test_values_that_are_not_finite_are_left_out():
    frames = cube(20, dtype=np.float32)
    rng = np.random.default_rng(5)
    frames[rng.random(frames.shape) < 0.1] = np.nan
    frames[rng.random(frames.shape) < 0.05] = -np.inf
    frames[rng.random(frames.shape) < 0.05] = np.inf
    frames[:, 4, 7] = np.nan
    mean, _, count = by_astropy(np.where(np.isfinite(frames), frames, np.nan), sigma=3, maxiters=5)
    result = sigma_clipped_mean(readers(frames))
    assert np.array_equal(result.count, count)
    assert np.allclose(result.mean, mean, rtol=2e-7)
    assert result.count[4, 7] == 0
    assert result.mean[4, 7] == 0


def test_median_equals_numpy_for_odd_and_even_numbers():
    for n in (1, 2, 5, 8):
        frames = cube(n)
        assert np.array_equal(median(readers(frames)), np.median(frames, axis=0))


def test_tiles_do_not_show():
    frames = cube(12, shape=(40, 70))
    whole = sigma_clipped_mean(readers(frames))
    done = []
    memory_bytes = combine.THREADS * 12 * 70 * 2 * 7  # a tile of 7 rows for each thread
    tiled = sigma_clipped_mean(readers(frames), memory_bytes=memory_bytes, progress=done.append)
    assert len(done) == 6
    assert done[-1] == 1.0
    assert np.array_equal(whole.mean, tiled.mean)
    assert np.array_equal(whole.variance, tiled.variance)
    assert np.array_equal(whole.count, tiled.count)


@pytest.mark.parametrize("scaled", [False, True])
def test_threads_do_not_show(scaled, monkeypatch):
    frames = cube(21, shape=(33, 129))
    scales = np.linspace(0.9, 1.1, 21) if scaled else None
    results = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(combine, "THREADS", threads)
        memory_bytes = threads * 21 * 129 * 6 * 3  # of a few rows each
        results.append(
            sigma_clipped_mean(readers(frames), scales=scales, memory_bytes=memory_bytes)
        )
    for other in results[1:]:
        assert results[0].mean.tobytes() == other.mean.tobytes()
        assert results[0].variance.tobytes() == other.variance.tobytes()


@dataclasses.dataclass(frozen=True)
class Watched(ArrayRows):
    """Notes which rows were asked for, and fails at some row."""

    asked: list = dataclasses.field(default_factory=list)
    fails_at: int | None = None

    def rows(self, y0, y1, out=None):
        self.asked.append((y0, y1))
        if y0 == self.fails_at:
            raise OSError("the disk is gone")
        return ArrayRows.rows(self, y0, y1, out)


def test_every_frame_is_read_once_and_in_order():
    frames = [Watched(frame) for frame in cube(5, shape=(60, 70))]
    memory_bytes = combine.THREADS * 5 * 70 * 2 * 4
    pieces = sigma_clipped_rows(
        frames, lambda y0, part: (y0, len(part.mean)), memory_bytes=memory_bytes
    )
    assert [(y1, *piece) for y1, piece in pieces] == [(y0 + 4, y0, 4) for y0 in range(0, 60, 4)]
    for frame in frames:
        assert frame.asked == [(y0, y0 + 4) for y0 in range(0, 60, 4)]


def test_a_frame_that_cannot_be_read_ends_it():
    frames = [Watched(frame) for frame in cube(5, shape=(60, 70))]
    frames[2] = dataclasses.replace(frames[2], fails_at=20)
    with pytest.raises(OSError, match="the disk is gone"):
        sigma_clipped_mean(frames, memory_bytes=combine.THREADS * 5 * 70 * 2 * 4)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_subtracts_and_scales_each_bayer_phase(dtype):
    # Rows of 5 in a tile: the phase must follow the frame's rows, not the tile's.
    rng = np.random.default_rng(2)
    frames = cube(15, shape=(23, 131), dtype=dtype)
    dark = rng.normal(100, 5, (23, 131)).astype(np.float32)
    scales = rng.uniform(0.5, 2.0, (15, 4))
    y, x = np.mgrid[:23, :131]
    factors = scales.astype(np.float32)[:, (y % 2) * 2 + x % 2]
    expected, _, count = by_astropy(
        (frames.astype(np.float32) - dark) * factors, sigma=3, maxiters=5
    )
    result = sigma_clipped_mean(
        readers(frames), scales=scales, subtract=dark, memory_bytes=15 * 131 * 8 * 5
    )
    assert np.array_equal(result.count, count)
    assert np.allclose(result.mean, expected, rtol=1e-6)


def test_subtract_alone_shifts_the_mean():
    frames = cube(14)
    dark = np.random.default_rng(4).normal(300, 9, frames.shape[1:]).astype(np.float32)
    plain = sigma_clipped_mean(readers(frames))
    shifted = sigma_clipped_mean(readers(frames), subtract=dark)
    assert np.allclose(shifted.mean, plain.mean - dark, atol=1e-3)
    assert np.array_equal(shifted.count, plain.count)


def test_noise_of_the_master_is_that_of_theory():
    # n frames of pure noise σ: the variance of the mean is σ²/n, and the plane must say so.
    rng = np.random.default_rng(9)
    frames = np.rint(rng.normal(2000, 15, (25, 128, 128))).astype(np.uint16)
    result = sigma_clipped_mean(readers(frames))
    theory = (15**2 + 1 / 12) / 25
    assert result.mean.var() == pytest.approx(theory, rel=0.04)
    assert result.variance.mean() == pytest.approx(theory, rel=0.03)


def test_reads_files_of_every_kind_as_astropy_does(tmp_path):
    rng = np.random.default_rng(6)
    frames = cube(12, shape=(20, 90))
    for name, pixels, hdu in (
        ("unsigned", frames, fits.PrimaryHDU),
        ("signed", frames.astype(np.int16), fits.PrimaryHDU),
        ("float", frames + rng.random(frames.shape).astype(np.float32), fits.PrimaryHDU),
        ("double", frames.astype(np.float64) / 7, fits.PrimaryHDU),
        ("wide", frames.astype(np.int32), fits.PrimaryHDU),
        ("rice", frames, fits.CompImageHDU),
    ):
        paths = []
        for i, frame in enumerate(pixels):
            paths.append(tmp_path / f"{name}-{i}.fits")
            hdu(frame).writeto(paths[-1])
        opened = [RowReader(path) for path in paths]
        expected, _, count = by_astropy(pixels.astype(np.float32), sigma=3, maxiters=5)
        result = sigma_clipped_mean(opened, memory_bytes=90 * 12 * 4 * 7)
        for reader in opened:
            reader.close()
        assert np.array_equal(result.count, count), name
        assert np.allclose(result.mean, expected, rtol=2e-7), name


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("scales", [None, np.ones(7)])
def test_plain_and_compressed_frames_of_one_set_go_together(tmp_path, first, scales):
    """Their rows come in different forms: as stored, and as values."""
    frames = np.random.default_rng(3).integers(0, 65536, (7, 60, 90)).astype(np.uint16)
    paths = []
    for i, frame in enumerate(frames):
        paths.append(tmp_path / f"{i}.fits")
        (fits.CompImageHDU if i % 2 == first else fits.PrimaryHDU)(frame).writeto(paths[-1])
    opened = [RowReader(path) for path in paths]
    expected, _, count = by_astropy(frames.astype(np.float32), sigma=3, maxiters=5)
    result = sigma_clipped_mean(opened, scales=scales, memory_bytes=90 * 12 * 4 * 7)
    for reader in opened:
        reader.close()
    assert np.array_equal(result.count, count)
    assert np.allclose(result.mean, expected, rtol=2e-7)


def test_frames_that_do_not_belong_together_are_refused():
    a = np.zeros((4, 6), np.uint16)
    with pytest.raises(IncompatibleFramesError, match="no frames"):
        sigma_clipped_mean([])
    with pytest.raises(IncompatibleFramesError, match="6 × 4 and 4 × 6"):
        sigma_clipped_mean(readers([a, a.T]))
    with pytest.raises(IncompatibleFramesError, match="uint16 and int16"):
        sigma_clipped_mean(readers([a, a.astype(np.int16)]))
    with pytest.raises(IncompatibleFramesError, match="subtracted"):
        sigma_clipped_mean(readers([a, a]), subtract=np.zeros((4, 5), np.float32))
    with pytest.raises(IncompatibleFramesError, match="colour"):
        sigma_clipped_mean(readers([np.zeros((3, 4, 6), np.uint16)]))
