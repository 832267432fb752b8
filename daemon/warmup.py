"""Compile the kernels before the first frame of the night needs them; cached, it takes a second."""

import numpy as np

from daemon.light import calibrate, stars
from daemon.stack import live


def kernels() -> None:
    """Run every kernel of a light's way once, on a tiny image."""
    raw = np.full((64, 64), 1000, np.uint16)
    raw[::7, ::5] += 50
    dark = np.zeros((64, 64), np.float32)
    result = calibrate.calibrate(
        raw,
        dark=dark,
        flat=dark + 1,
        bad=np.zeros((64, 64), np.uint8),
        bayer=False,
        saturation_adu=None,
    )
    background = stars.measure_background(result.image)
    stars.detect(result.image, mask=result.mask, background=background, saturation_adu=None)
    stack = live.LiveStack.empty((1, 64, 64), high=3, low=2)
    terms = live.FrameTerms(
        index=0,
        weight=1.0,
        scale=1.0,
        planes=((0.0, 0.0, 0.0),),
        sigma_adu=1.0,
        e_per_adu=1.0,
        sky_adu=1000.0,
        fwhm_px=3.0,
    )
    live.add(stack, result.image[np.newaxis], np.eye(3), terms, mask=result.mask)
    live.render(stack)
