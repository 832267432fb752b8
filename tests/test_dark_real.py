"""Darks of real cameras: one set is left out, predicted from the others, and compared.

By the median of χ²: the plain rms of hot pixels is set by telegraph noise even for an exact
master.
"""

import itertools
from pathlib import PurePath

import numpy as np
import pytest

from calib_library import dark_compose, dark_model, header, judging
from calib_library.frame import FrameType
from calib_library.images import frame_file
from calib_library.local_median import local_median
from calib_library.robust import mad_sigma
from tests.nights import shared
from tests.records import master

pytestmark = pytest.mark.shared

MEDIAN_OF_CHI2 = 0.4549  # with one degree of freedom


def frames_of(folder, pattern) -> tuple[np.ndarray, list]:
    """(frames, ny, nx) float32 ADU and their records."""
    loaded = [frame_file.load(path) for path in sorted(folder.glob(pattern))]
    records = [
        header.parse(
            one.info.cards,
            shape=one.info.shape,
            storage=one.info.storage,
            path=PurePath(one.info.path.name),
        )
        for one in loaded
    ]
    return np.stack([one.pixels for one in loaded]).astype(np.float32), records


def whole(frames) -> np.ndarray:
    """Those that the library finds exposed and read to the end."""
    starts = judging.strip_starts(frames.shape[1])
    strips = [[image[y : y + judging.STRIP_ROWS] for y in starts] for image in frames]
    levels = np.array([[judging.trimmed_mean(strip) for strip in one] for one in strips])
    noise = float(np.median([mad_sigma(strip) for one in strips for strip in one]))
    reasons = judging.judge_levels(levels, noise_adu=noise, rows=starts)
    return frames[[reason is None for reason in reasons]]


def standing_out(image, *, bayer) -> np.ndarray:
    return image - local_median(np.ascontiguousarray(image), bayer=bayer)


def variance_of(frames, *, bayer) -> np.ndarray:
    """Of one frame at each pixel: by its signal, from the differences of following frames."""
    signal = standing_out(frames.mean(axis=0), bayer=bayer)
    squares = np.mean(np.diff(frames, axis=0) ** 2 / 2, axis=0)
    edges = np.quantile(signal, [0, 0.1, 0.5, 0.9, 0.97, 0.99, 0.995, 0.998, 0.9995, 1])
    inside = [(signal >= a) & (signal <= b) for a, b in itertools.pairwise(edges)]
    n = len(frames) - 1
    # The median of a mean of n squares that are not quite independent lies a little below one.
    below = np.median(np.mean(np.random.default_rng(0).chisquare(1, (20_000, n)), axis=1))
    x = [np.median(signal[one]) for one in inside]
    return np.interp(signal, x, [np.median(squares[one]) / below for one in inside])


def chi2(predicted, measured, variance, hot, *, bayer) -> float:
    """The median over hot pixels, 1 for a perfect prediction."""
    residual = standing_out(measured, bayer=bayer) - standing_out(predicted, bayer=bayer)
    return float(np.median((residual**2 / variance)[hot]) / MEDIAN_OF_CHI2)


def test_asi120_darks_of_10_s_are_predicted_from_the_shortest_and_50_s():
    """An uncooled mosaic; three darks of each five are cut short and are left out."""
    folder = shared("asi120")
    bias, _ = frames_of(folder, "bias/*.fit")
    short, long = (whole(frames_of(folder, f"dark_{t}s/*.fit")[0]) for t in (10, 50))
    assert (len(bias), len(short), len(long)) == (5, 2, 2)
    ends = [
        master(1, FrameType.DARK, exposure_s=6.4e-05, temperature_c=26.0, frames=5),
        master(2, FrameType.DARK, exposure_s=50.0, temperature_c=26.0, frames=2),
    ]
    images = {1: bias.mean(axis=0), 2: long.mean(axis=0)}
    plan = dark_model.plan(ends, exposure_s=10.0, temperature_c=26.0)
    rows = {i: lambda a, b, image=image: image[a:b] for i, image in images.items()}
    shape = short.shape[1:]
    predicted = dark_compose.compose(plan, rows, shape=shape, bayer=True).dark
    measured = short.mean(axis=0)
    signal = standing_out(images[2], bayer=True)
    hot = signal > np.quantile(signal, 0.995)
    own = variance_of(short, bayer=True) / 2
    between = own + 0.8**2 * variance_of(bias, bayer=True) / 5
    between += 0.2**2 * variance_of(long, bayer=True) / 2
    assert chi2(predicted, measured, between, hot, bayer=True) < 2.0
    assert abs(np.median(measured - predicted)) < 1.5
    for image in images.values():
        assert chi2(image, measured, own, hot, bayer=True) > 500


def test_tres1_readings_wander_and_the_sensor_does_not():
    """CCD-TEMP jumps between −9.79 and −10.20 °C: the darks of the one predict those of the other,
    and the hot pixels differ by no more than 0.05 °C would make.
    """
    frames, records = frames_of(shared("tres1"), "*d.fit")
    readings = np.array([one.temperature_c for one in records])
    assert np.ptp(readings) == pytest.approx(0.415, abs=0.01)
    warm, cold = frames[readings > -10], frames[readings < -10]
    signal = standing_out(frames.mean(axis=0), bayer=False)
    hot = signal > np.quantile(signal, 0.995)
    variance = variance_of(warm, bayer=False) / len(warm)
    variance += variance_of(cold, bayer=False) / len(cold)
    assert chi2(cold.mean(axis=0), warm.mean(axis=0), variance, hot, bayer=False) < 1.3
    apart = standing_out(warm.mean(axis=0) - cold.mean(axis=0), bayer=False)
    relative = float(np.median(apart[hot] / signal[hot]))
    assert abs(relative) / dark_model.relative_slope(-10.0, dark_model.ENERGY_EV) < 0.05
