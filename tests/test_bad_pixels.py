"""Which pixels a light's masters declare bad: by the harm that theory says they do it."""

from pathlib import PurePosixPath

import numpy as np
import pytest

from calib_library.frame import FrameType
from calib_library.images import product_file
from calib_library.library import CalibrationLibrary
from daemon.calibration import Calibration, Calibrator
from tests.records import KEY, master, record

NY, NX = KEY.height, KEY.width
GAIN = 0.8  # e-/ADU


@pytest.fixture
def calibrator(tmp_path):
    with CalibrationLibrary.open(tmp_path) as library:
        yield Calibrator(
            library,
            root=tmp_path,
            min_frames=5,
            quiet_s=lambda: 0.0,
        )


def written(root, number, kind, image):
    path = PurePosixPath(f"masters/{kind}.fits")
    product_file.write_fits(root / path, image.astype(np.float32), [], scale="adu")
    return master(number, kind, path=path)


def test_hot_pixels_are_those_that_double_the_noise_of_each_frame(calibrator, tmp_path):
    rng = np.random.default_rng(1)
    excess = np.zeros((NY, NX))
    spots = rng.permutation(NY * NX)[:200]
    excess.flat[spots] = np.geomspace(20, 50_000, 200)  # ADU above the others
    dark = written(tmp_path, 1, FrameType.DARK, 500 + excess)
    image = np.ones((NY, NX))
    image[5, 6] = 0.2  # a dead pixel
    flat = written(tmp_path, 2, FrameType.FLAT, 20_000 * image)
    light = record(FrameType.LIGHT, e_per_adu=GAIN)
    chosen = Calibration(dark, None, flat, (), [])
    planes = []
    for noise_adu in (5.0, 10.0, 31.0, 80.0):
        arrays = calibrator.arrays(noise_adu, light, chosen)
        planes.append(arrays.bad)
        bad = arrays.bad > arrays.bad_above
        # The charge of the excess adds its shot noise: at three times the variance, the double.
        charge_e, variance_e = GAIN * excess, (GAIN * noise_adu) ** 2
        assert bad[charge_e > 3.0 * variance_e].all()
        assert not bad[(charge_e < 3.0 * variance_e / np.sqrt(2)) & (image == 1)].any()
        assert 10 < bad.sum() < 190
    assert all(plane is planes[0] for plane in planes)  # found once, for all frames
    made = calibrator.apply(np.full((NY, NX), 700, np.uint16), light, chosen)
    assert made.mask[5, 6] == 1
    # Repaired: not the light divided by the dead pixel's response.
    assert made.image[5, 6] == pytest.approx(200.0, rel=1e-3)


def test_without_masters_nothing_is_known_to_be_bad(calibrator):
    light = record(FrameType.LIGHT)
    assert calibrator.arrays(10.0, light, Calibration(None, None, None, (), [])).bad is None
