"""Calibrated lights as files of their own, for those who ask for them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library.frame import FrameRecord
from calib_library.images import product_file
from daemon.calibration import Calibrator, sampled_rows
from daemon.config import Config
from daemon.ledger.ledger import Frame, Identity
from daemon.light import calibrate, cosmic, debayer
from daemon.light.noise import neighbour_noise
from daemon.placing import Light
from daemon.stack import product

Image = npt.NDArray[np.float32]


def write(
    config: Config,
    calibrator: Calibrator,
    frame: Frame,
    identity: Identity,
    light: Light,
    raw: npt.NDArray[Any],
) -> None:
    """Write a calibrated light, replacing what an earlier calibration of it left there: in colour
    (3, ny, nx). Where it is asked for and the camera's gain is known, its variance stands beside it
    in the extension VARIANCE. `raw` are the light's raw pixels, (ny, nx) ADU. Raises OSError.
    """
    record = identity.record
    folder = Path("calibrated") / identity.night / product.safe(identity.target)
    folder /= product.safe(record.filter or "nofilter")
    path = config.library.path / folder / f"{product.safe(frame.path.stem)}_c.fits"
    path.parent.mkdir(parents=True, exist_ok=True)
    image, extra = light.image, {}
    if config.lights.keep_variance and record.e_per_adu is not None:
        extra["VARIANCE"] = variance(calibrator, record, light, raw, record.e_per_adu)
    if light.pattern is not None:
        image = debayer.debayer(light.image, light.pattern)
    product_file.write_fits(
        path,
        image,
        product.calibrated_cards(record, light.calibration.ids(), frame.name),
        scale=config.stack.scale,
        pedestal_adu=product.pedestal_for(
            image if image.ndim == 3 else image[np.newaxis], light.mask >= 0
        ),
        extra=extra,
    )


def variance(
    calibrator: Calibrator,
    record: FrameRecord,
    light: Light,
    raw: npt.NDArray[Any],
    e_per_adu: float,
) -> Image:
    """ADU², of each pixel of a calibrated light, (ny, nx), or (3, ny, nx) in colour; infinite where
    a value was made up: repaired, or cleaned of a cosmic ray.

    The photons' share is reckoned from `e_per_adu`, e-/ADU. All the rest (reading, dark current,
    the masters' own noise) is what the light itself shows beyond it in its background. A background
    that is quieter than its photons tells that the gain is wrong (a header's need not be that of
    the binning): then the least is taken with which it could be so quiet.
    """
    sample = light.image[sampled_rows(len(light.image))]
    sigma_adu = neighbour_noise(sample, bayer=light.pattern is not None)
    sky_adu = float(np.median(sample))
    gain = max(e_per_adu, sky_adu / sigma_adu**2) if sigma_adu > 0 else e_per_adu
    noise = calibrate.Noise(gain, cosmic.read_noise(sigma_adu, sky_adu, gain))
    plain = calibrator.apply(raw, record, light.calibration, noise=noise)
    assert plain.variance is not None
    spread = plain.variance
    if light.cleaned:
        spread[plain.image != light.image] = np.inf
    return spread if light.pattern is None else debayer.variance(spread, light.pattern)
