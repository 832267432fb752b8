"""The files of single calibrated lights, and the variance in them."""

import types

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData, VarianceUncertainty

from calib_library.frame import FrameType
from calib_library.library import CalibrationLibrary
from daemon import kept
from daemon.calibration import Calibration, Calibrator
from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests.nights import Outcome, config_for, run
from tests.records import key, record

BOTH = "[lights]\nkeep_calibrated = true\nkeep_variance = true\n"


@pytest.mark.parametrize(
    ("pattern", "wrong"), [(None, 1.0), ("RGGB", 1.0), (None, 0.5)], ids=["grey", "colour", "gain"]
)
def test_photons_and_reading_scatter_as_the_variance_says(tmp_path, pattern, wrong):
    """A sky of 400 e-, and a small part that is fifty times as bright. No master is there, so the
    light is what the sensor gave; its read noise is known from nothing but itself. A gain of half
    the true one would have the sky noisier than it is.
    """
    gain, read_noise, shape = 0.8, 6.0 if wrong == 1.0 else 1.0, (400, 600)
    rng = np.random.default_rng(3)
    level = np.full(shape, 400.0)
    bright = np.s_[100:130, 200:300]
    level[bright] = 20_000.0
    raw = ((rng.poisson(level) + rng.normal(0.0, read_noise, shape)) / gain).astype(np.float32)
    told = record(
        FrameType.LIGHT,
        key=key(width=shape[1], height=shape[0], bayer_pattern=pattern),
        e_per_adu=wrong * gain,
    )
    nothing = Calibration(None, None, None, (), [])
    cleaned = raw.copy()
    cleaned[50, 60] -= 500.0
    light = types.SimpleNamespace(image=cleaned, pattern=pattern, calibration=nothing, cleaned=True)
    with CalibrationLibrary.open(tmp_path) as library:
        calibrator = Calibrator(library, root=tmp_path, min_frames=5, quiet_s=lambda: 60.0)
        spread = kept.variance(calibrator, told, light, raw, wrong * gain)
    if pattern is not None:  # where a plane has the mosaic's own pixels
        red, green = spread[0, ::2, ::2], spread[1, ::2, 1::2]
        assert np.isinf(red[25, 30])
        spread = np.full(shape, np.nan)
        spread[::2, ::2], spread[::2, 1::2] = red, green
    assert np.isinf(spread[50, 60])
    pull = (raw - level / gain) / np.sqrt(spread)
    sky = np.ones(shape, bool)
    sky[bright] = False
    for part in (bright, sky):
        some = pull[part][np.isfinite(pull[part]) & (pull[part] != 0)]
        # The bright part widens the differences of neighbours by 1 %; 3000 px tell 1.3 %.
        assert some.std() == pytest.approx(1.0, abs=0.05)


def test_a_light_that_is_kept_has_its_variance_beside_it(tmp_path):
    plan = small_plan(seed=5, shape=(256, 384), bias=0, darks=6, flats=0, flat_darks=0, lights=3)
    for frame in frames(plan):
        write_frame(tmp_path / "in", frame)
    config = config_for(tmp_path, extra=BOTH)
    run(config)
    stacked = Outcome(config).states()["stacked"]
    files = sorted(config.library.path.glob("calibrated/**/*.fits"))
    assert len(files) == stacked >= 2
    for path in files:
        with fits.open(path) as hdus:
            assert [hdu.name for hdu in hdus] == ["PRIMARY", "VARIANCE"]
            scale = 65535.0 if hdus[0].header["LKSCALE"] == "unit" else 1.0
            image, variance = scale * hdus[0].data, hdus[1].data
        assert variance.shape == image.shape
        made_up = np.isinf(variance)
        assert 0 < made_up.mean() < 0.02
        # The sky of neighbours scatters so.
        steps = np.diff(image, axis=1)[~(made_up[:, 1:] | made_up[:, :-1])]
        sigma = 1.4826 * np.median(np.abs(steps)) / np.sqrt(2.0)
        assert np.median(variance) == pytest.approx(sigma**2, rel=0.1)
        read = CCDData.read(path, unit="adu", hdu_uncertainty="VARIANCE")
        assert isinstance(read.uncertainty, VarianceUncertainty)
        np.testing.assert_array_equal(read.uncertainty.array, variance)


def test_without_a_gain_there_is_no_variance(tmp_path):
    plan = small_plan(seed=5, shape=(256, 384), bias=0, darks=0, flats=0, flat_darks=0, lights=2)
    for frame in frames(plan):
        path = write_frame(tmp_path / "in", frame)
        with fits.open(path, mode="update") as hdus:
            hdus[0].header.remove("EGAIN", ignore_missing=True)
    config = config_for(tmp_path, extra=BOTH)
    run(config)
    files = list(config.library.path.glob("calibrated/**/*.fits"))
    assert files
    for path in files:
        with fits.open(path) as hdus:
            assert len(hdus) == 1
