"""Raw light → calibrated light: overscan and dark subtracted, flat divided, bad pixels repaired, in
ADU; its variance where that is wanted.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library.defects import BAD, FLAT_FLOOR, repair_pixels
from calib_library.errors import IncompatibleFramesError
from calib_library.kernels import kernel, side_by_side

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
    variance: Floats | None = None
    """(ny, nx) ADU², of `image`; infinite where it was repaired. Only where it was asked for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Noise:
    """What the variance of a calibrated light is made of."""

    e_per_adu: float
    """The sensor's gain."""
    read_noise_e: float
    """All that does not grow with the light."""


def calibrate(
    raw: npt.NDArray[Any],
    *,
    dark: Floats | None = None,
    flat: Floats | None = None,
    bad: npt.NDArray[np.uint8] | None = None,
    bad_above: int = 0,
    overscan_adu: Floats | None = None,
    noise: Noise | None = None,
    saturation_adu: float | None = None,
    bayer: bool = False,
    out: Floats | None = None,
    mask_out: npt.NDArray[np.uint8] | None = None,
) -> Calibrated:
    """Calibrate one raw frame: (raw - overscan - dark) / flat, then repair what is bad.

    All arrays are (ny, nx). `raw` in ADU: uint16 and float32 as they are, other types through
    float32. `dark` is whatever is to be subtracted, in ADU: a dark for this exposure and
    temperature, or a bias. `flat` is normalised (`flat.normalise`); pixels of 0.05 or less are bad.
    `bad`: above `bad_above` where a pixel is bad. `overscan_adu`, ADU, is taken off first: a level
    for each row (ny, 1), for each column (1, nx), or whatever else extends to (ny, nx), as where a
    sensor has several amplifiers. Raw and dark values that are not finite are bad as well.
    Raw pixels of `saturation_adu` or more are marked. Bad pixels are replaced from neighbours of
    the same colour (`bayer`), as `defects.repair_pixels` does, and stay marked.

    With `noise` there is a variance, ADU²: (max(raw - overscan - dark, 0) / gain + read noise²) /
    flat², the read noise in ADU.

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
    variance = None if noise is None else np.empty(raw.shape, np.float32)
    side_by_side(
        _calibrate,
        len(raw),
        np.ascontiguousarray(raw),
        _levels(overscan_adu, raw.shape),
        overscan_adu is not None,
        _or_nothing(dark),
        _or_nothing(flat),
        np.empty((0, 0), np.uint8) if bad is None else np.ascontiguousarray(bad, np.uint8),
        bad_above,
        np.float32(np.inf if saturation_adu is None else saturation_adu),
        np.float32(1.0 / noise.e_per_adu if noise else 0.0),
        np.float32((noise.read_noise_e / noise.e_per_adu) ** 2 if noise else 0.0),
        image,
        mask,
        _or_nothing(variance),
    )
    repair_pixels(image, mask, 2 if bayer else 1)
    return Calibrated(image, mask, variance)


def _or_nothing(array: Floats | None) -> Floats:
    """For the kernel, where a (0, 0) array stands for one that is not there."""
    return (
        np.empty((0, 0), np.float32) if array is None else np.ascontiguousarray(array, np.float32)
    )


def _levels(overscan_adu: Floats | None, shape: tuple[int, ...]) -> Floats:
    """The overscan as a view of `shape`; zeros for none, so that one compiled kernel serves all."""
    levels = np.asarray(0.0 if overscan_adu is None else overscan_adu, np.float32)
    try:
        return np.broadcast_to(levels, shape)
    except ValueError:
        raise IncompatibleFramesError(
            f"the overscan levels {levels.shape} do not fit a light of {_size(shape)} px"
        ) from None


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(str(length) for length in reversed(shape))


@kernel()
def _calibrate(
    first: int, last: int, raw: npt.NDArray[Any], overscan: Floats, has_overscan: bool,  # noqa: FBT001
    dark: Floats, flat: Floats, bad: npt.NDArray[np.uint8], bad_above: int,
    saturation: np.float32, adu_per_e: np.float32, read_variance: np.float32,
    image: Floats, mask: npt.NDArray[np.uint8], variance: Floats,
) -> None:  # fmt: skip
    """Fill rows begin … end of `image`, `mask` and `variance`; a (0, 0) array stands for one that
    is not there.

    Row by row, each step over a row that is still in the first cache: one pass over memory.
    """
    for y in range(first, last):
        row, marks = image[y], mask[y]
        _take(raw[y], saturation, row, marks)
        if has_overscan:
            _subtract(row, overscan[y])
        if dark.shape[0] > 0:
            _subtract(row, dark[y])
        if variance.shape[0] > 0:
            _charge_noise(row, adu_per_e, read_variance, variance[y])
        if flat.shape[0] > 0:
            _divide(row, flat[y], marks)
            if variance.shape[0] > 0:
                _divide_twice(variance[y], flat[y])
        if bad.shape[0] > 0:
            _mark(bad[y], bad_above, marks)
        _mark_broken(row, marks)
        if variance.shape[0] > 0:
            _forget(variance[y], marks)


@kernel()
def _take(
    source: npt.NDArray[Any], saturation: np.float32, row: Floats, marks: npt.NDArray[np.uint8]
) -> None:
    for x in range(row.size):
        value = np.float32(source[x])
        row[x] = value
        marks[x] = SATURATED if value >= saturation else 0


@kernel()
def _subtract(row: Floats, less: Floats) -> None:
    for x in range(row.size):
        row[x] -= less[x]


@kernel()
def _charge_noise(
    row: Floats, adu_per_e: np.float32, read_variance: np.float32, spread: Floats
) -> None:
    for x in range(row.size):
        spread[x] = max(row[x], np.float32(0.0)) * adu_per_e + read_variance


@kernel()
def _divide(row: Floats, flat: Floats, marks: npt.NDArray[np.uint8]) -> None:
    for x in range(row.size):
        lit = flat[x] > np.float32(FLAT_FLOOR)
        row[x] /= flat[x] if lit else np.float32(1.0)
        marks[x] |= 0 if lit else BAD


@kernel()
def _divide_twice(spread: Floats, flat: Floats) -> None:
    for x in range(spread.size):
        spread[x] /= flat[x] * flat[x]


@kernel()
def _mark(bad: npt.NDArray[np.uint8], above: int, marks: npt.NDArray[np.uint8]) -> None:
    for x in range(marks.size):
        marks[x] |= BAD if bad[x] > above else 0


@kernel()
def _mark_broken(row: Floats, marks: npt.NDArray[np.uint8]) -> None:
    """NaN compares false; infinities come from broken masters."""
    for x in range(row.size):
        marks[x] |= 0 if abs(row[x]) < np.float32(3.4e38) else BAD


@kernel()
def _forget(spread: Floats, marks: npt.NDArray[np.uint8]) -> None:
    """A repaired pixel has measured nothing."""
    for x in range(spread.size):
        spread[x] = np.float32(np.inf) if marks[x] & BAD else spread[x]
