"""Compile the kernels before the first frame of the night needs them; cached, it takes a second."""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from calib_library import combine, defects
from daemon.light import calibrate, cosmic, debayer, quality, register, stars
from daemon.stack import final, halve, live

SIDE_PX = 192
STARS = 40


def kernels(beat: Callable[[], None] = lambda: None) -> None:
    """Take a small invented frame through every kernel of a light's way, in grey and in colour.

    `beat` is called between the steps: the very first start may take a minute on a small machine.
    """
    raw = _frame()
    dark = np.zeros(raw.shape, np.float32)
    bad = np.zeros(raw.shape, np.uint8)
    for bayer in (False, True):
        result = calibrate.calibrate(
            raw, dark=dark, flat=dark + 1, bad=bad, bayer=bayer, saturation_adu=None
        )
        beat()
        if bayer:
            image = debayer.debayer(result.image, "RGGB")
            luminance = debayer.luminance(image)
        else:
            luminance, _ = cosmic.clean(
                result.image, e_per_adu=1.0, read_noise_e=3.0, sky_adu=1000.0
            )
            image = luminance[np.newaxis]
        _stack(image, luminance, result.mask, beat)


def later(beat: Callable[[], None] = lambda: None) -> None:
    """Compile what only masters and the end of the night need, when nothing else is to be done."""
    counts = combine.ArrayRows(_frame())
    combine.sigma_clipped_mean([counts] * 3)
    beat()
    combine.sigma_clipped_mean([counts] * 3, scales=np.ones(3))
    beat()
    image = _frame().astype(np.float32)
    defects.exceeded(image, np.array([1.0], np.float32))
    terms = [_terms(index, planes=1) for index in range(3)]
    beat()
    final.combine(lambda _, y0, y1: image[np.newaxis, y0:y1], terms, shape=(1, *image.shape))


def _terms(index: int, *, planes: int) -> live.FrameTerms:
    return live.FrameTerms(
        index=index, weight=1.0, scale=1.0, planes=((0.0, 0.0, 0.0),) * planes,
        sigma_adu=10.0, e_per_adu=1.0, sky_adu=1000.0, fwhm_px=3.0,
    )  # fmt: skip


def _stack(
    image: npt.NDArray[np.float32],
    luminance: npt.NDArray[np.float32],
    mask: npt.NDArray[np.uint8],
    beat: Callable[[], None],
) -> None:
    beat()
    background = stars.measure_background(luminance)
    cells = stars.cell_means(luminance)
    found = stars.detect(luminance, mask=mask, background=background, saturation_adu=None)
    beat()
    beside = dataclasses.replace(found, x=found.x + 1.0)
    registration = register.register(found, beside, shape=(SIDE_PX, SIDE_PX))
    quality.background_plane(cells, cells, registration.matrix, 1.0, luminance.shape)
    halve.image(image, mask)
    stack = live.LiveStack.empty(image.shape, high=3, low=2)
    for index in range(2):
        beat()
        terms = _terms(index, planes=len(image))
        live.add(stack, image, np.eye(3), terms, mask=mask)
    live.render(stack)


def _frame() -> npt.NDArray[np.uint16]:
    """(ny, nx) a sky of noise and round stars, always the same."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    image = rng.normal(1000.0, 10.0, (SIDE_PX, SIDE_PX))
    for sx, sy in rng.uniform(12, SIDE_PX - 12, (STARS, 2)):
        image += rng.uniform(1000, 5000) * np.exp(-((x - sx) ** 2 + (y - sy) ** 2) / (2 * 1.5**2))
    return image.astype(np.uint16)
