"""Raw light → calibrated light: dark subtracted, flat divided, bad pixels repaired, in ADU."""

import dataclasses
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from calib_library.defects import BAD, FLAT_FLOOR, repair_pixels
from calib_library.errors import IncompatibleFramesError
from calib_library.kernels import kernel

Floats = npt.NDArray[np.float32]

SATURATED = 2
"""Bit of a mask: the raw pixel reached saturation; its value is kept."""


@dataclasses.dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibrated light, both arrays (ny, nx)."""

    image: Floats
    """ADU; negative values are kept. Finite everywhere."""
    mask: npt.NDArray[np.uint8]
    """Bit 1: bad (repaired from its neighbours); bit 2: saturated in the raw frame."""


def calibrate(
    raw: npt.NDArray[Any],
    *,
    dark: Floats | None = None,
    flat: Floats | None = None,
    bad: npt.NDArray[np.uint8] | None = None,
    saturation_adu: float | None = None,
    bayer: bool = False,
    out: Floats | None = None,
    mask_out: npt.NDArray[np.uint8] | None = None,
) -> Calibrated:
    """Calibrate one raw frame: (raw - dark) / flat, then repair what is bad.

    All arrays are (ny, nx). `raw` in ADU: uint16 and float32 as they are, other types through
    float32. `dark` is whatever is to be subtracted, in ADU: a dark for this exposure and
    temperature, or a bias. `flat` is normalised (`flat.normalise`); pixels of 0.05 or less are bad.
    `bad`: non-zero where a pixel is bad. Raw and dark values that are not finite are bad as well.
    Raw pixels of `saturation_adu` or more are marked. Bad pixels are replaced from neighbours of
    the same colour (`bayer`), as `defects.repair` does, and stay marked.

    `out` and `mask_out` are overwritten and returned where given; nothing else is mutated. `out`
    must not be one of the inputs. Raises IncompatibleFramesError where shapes differ.
    """
    for name, array in (("dark", dark), ("flat", flat), ("bad-pixel map", bad)):
        if array is not None and array.shape != raw.shape:
            raise IncompatibleFramesError(
                f"the {name} has {_size(array.shape)} px and the light {_size(raw.shape)}"
            )
    if raw.dtype not in (np.uint16, np.float32):
        raw = raw.astype(np.float32)
    image = np.empty(raw.shape, np.float32) if out is None else out
    mask = np.empty(raw.shape, np.uint8) if mask_out is None else mask_out
    nothing = np.empty((0, 0), np.float32)
    _calibrate(
        np.ascontiguousarray(raw),
        nothing if dark is None else np.ascontiguousarray(dark, np.float32),
        nothing if flat is None else np.ascontiguousarray(flat, np.float32),
        np.empty((0, 0), np.uint8) if bad is None else np.ascontiguousarray(bad, np.uint8),
        np.float32(np.inf if saturation_adu is None else saturation_adu),
        image,
        mask,
    )
    repair_pixels(image, mask, 2 if bayer else 1)
    return Calibrated(image, mask)


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(str(length) for length in reversed(shape))


@kernel(parallel=True)
def _calibrate(
    raw: npt.NDArray[Any],
    dark: Floats,
    flat: Floats,
    bad: npt.NDArray[np.uint8],
    saturation: np.float32,
    image: Floats,
    mask: npt.NDArray[np.uint8],
) -> None:
    """Fill `image` and `mask`; a (0, 0) array stands for one that is not there.

    Row by row, each step over a row that is still in the first cache: one pass over memory.
    """
    ny, nx = raw.shape
    has_dark = dark.shape[0] > 0
    has_flat = flat.shape[0] > 0
    has_bad = bad.shape[0] > 0
    for y in numba.prange(ny):
        source = raw[y]
        row = image[y]
        marks = mask[y]
        for x in range(nx):
            value = np.float32(source[x])
            row[x] = value
            marks[x] = SATURATED if value >= saturation else 0
        if has_dark:
            dark_row = dark[y]
            for x in range(nx):
                row[x] -= dark_row[x]
        if has_flat:
            flat_row = flat[y]
            for x in range(nx):
                lit = flat_row[x] > np.float32(FLAT_FLOOR)
                row[x] /= flat_row[x] if lit else np.float32(1.0)
                marks[x] |= 0 if lit else BAD
        if has_bad:
            bad_row = bad[y]
            for x in range(nx):
                marks[x] |= BAD if bad_row[x] else 0
        for x in range(nx):
            # NaN compares false; infinities come from broken masters.
            marks[x] |= 0 if abs(row[x]) < np.float32(3.4e38) else BAD
