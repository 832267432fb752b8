"""Hot, cold and telegraph pixels: finding them, and repairing images that have them.

Masks are (ny, nx): bool where they are results, uint8 (bit 1 is bad) inside the kernels. Neighbours
of the same colour are 2 px apart in a Bayer mosaic (`bayer=True`), else 1 px.
"""

from collections.abc import Iterator

import numba
import numpy as np
import numpy.typing as npt

from calib_library.combine import LANES, sort_lanes, sorting_network
from calib_library.kernels import kernel

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

FLAT_FLOOR = 0.05
"""A normalised flat up to this is no measurement: the pixel is bad."""
BAD = 1
"""Bit of a mask: the pixel's value is worthless."""
_REACH = 3
"""A repair looks for good pixels up to so many same-colour steps away."""
_BAND_ROWS = 256


def hot_pixels(dark: Floats, *, sigma: float = 8.0, bayer: bool = False) -> Mask:
    """Find pixels of a dark (ny, nx), ADU, that stand `sigma` above their 5×5 surroundings.

    Sigma is 1.4826 MAD of the difference from the local median, at least that of rounding to
    whole ADU (√(1/12)), which is what a MAD of zero hides. Pixels that are not finite are hot.
    """
    excess = dark - local_median(dark, bayer=bayer)
    spread = max(_robust_sigma(excess), 12**-0.5)
    return ~(excess <= sigma * spread)


def harmful_pixels(
    dark_e: Floats, *, sky_e: float, read_noise_e: float, factor: float = 2.0
) -> Mask:
    """Find hot pixels by the harm done: those whose dark signal multiplies the noise by `factor`.

    `dark_e` (ny, nx) is the dark charge of one light (rate × exposure, e-), `sky_e` its sky (e- a
    pixel), `read_noise_e` e- rms:  dark > (factor² - 1) (sky + read noise²).
    """
    return np.asarray(dark_e > (factor**2 - 1) * (sky_e + read_noise_e**2), np.bool_)


def cold_pixels(flat: Floats, *, low: float = 0.5, high: float = 1.5, bayer: bool = False) -> Mask:
    """Find pixels of a flat (ny, nx) below `low` or above `high` times their 5×5 surroundings.

    The surroundings are the median of pixels of the same colour. Pixels that are not finite, and
    those whose surroundings have no light, count too.
    """
    cold = np.empty(flat.shape, np.bool_)
    for rows, around in _surroundings(flat, bayer=bayer):
        part = flat[rows]
        cold[rows] = ~((part >= low * around) & (part <= high * around) & (around > 0))
    return cold


def exceeded(
    dark: Floats, thresholds: npt.NDArray[np.float32], *, bayer: bool = False
) -> npt.NDArray[np.uint8]:
    """Count for each pixel of a dark (ny, nx), ADU, by how many thresholds it stands above its 5×5
    surroundings: a plane (ny, nx) from which the hot pixels of any threshold are read.

    `thresholds` (k,), ADU, rise, k < 255; beyond the i-th are the pixels whose count is above i.
    Pixels that are not finite exceed them all: 255.
    """
    counts = np.empty(dark.shape, np.uint8)
    for rows, around in _surroundings(dark, bayer=bayer):
        _count_exceeded(np.ascontiguousarray(dark[rows]), around, thresholds, counts[rows])
    return counts


def telegraph_pixels(variance: Floats, *, model_variance: float, factor: float = 6.0) -> Mask:
    """Find pixels that jump between levels: their variance over many darks exceeds the model's.

    `variance` (ny, nx), ADU², of single darks at each pixel, over 20 or more, the two highest and
    the lowest dropped; `model_variance` ADU², of a quiet pixel under the same dropping.
    """
    return np.asarray(variance > factor * model_variance, np.bool_)


def _surroundings(image: Floats, *, bayer: bool) -> Iterator[tuple[slice, Floats]]:
    """The local median of an image in bands of rows, which need little memory."""
    margin = 4 if bayer else 2
    for y0 in range(0, len(image), _BAND_ROWS):
        y1 = min(y0 + _BAND_ROWS, len(image))
        # An even first row keeps a mosaic's colours, and the edge of the band outside of it.
        top = max(y0 - margin, 0)
        around = local_median(image[top : y1 + margin], bayer=bayer)
        yield slice(y0, y1), around[y0 - top : y1 - top]


def local_median(image: Floats, *, bayer: bool = False) -> Floats:
    """Median of the 5×5 same-colour pixels around each pixel, (ny, nx) float32.

    Beyond the edge the nearest pixel of the same colour stands in. Values that are not finite count
    as the highest.
    """
    out = np.empty(image.shape, np.float32)
    step = 2 if bayer else 1
    _local_median(np.ascontiguousarray(image, np.float32), step, sorting_network(25), out)
    return out


def repair(image: Floats, mask: npt.NDArray[np.generic], *, bayer: bool) -> int:
    """Replace the masked pixels of `image` (ny, nx) in place; return how many could not be.

    The new value is the mean of the good ones among the 4 same-colour neighbours; where none of
    these is good, of all good ones in the smallest surrounding square up to 3 steps away. A pixel
    without any becomes 0. `mask` (ny, nx): bool, or uint8 whose bit 1 is bad.
    """
    bad = mask.astype(np.uint8, copy=False)
    return int(repair_pixels(image, bad, 2 if bayer else 1))


def _robust_sigma(values: Floats) -> float:
    thin = max(1, round((values.size / 1_000_000) ** 0.5))
    sample = values[::thin, ::thin]
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0
    return 1.4826 * float(np.median(np.abs(sample - np.median(sample))))


@kernel()
def _inside(i: int, length: int, step: int) -> int:
    """The nearest index of the same colour within 0 … length - 1."""
    while i < 0:
        i += step
    while i >= length:
        i -= step
    return max(i, 0)


@kernel(parallel=True)
def _local_median(image: Floats, step: int, network: npt.NDArray[np.int32], out: Floats) -> None:
    ny, nx = image.shape
    for y in numba.prange(ny):
        values = np.zeros((25, LANES), np.float32)
        for x in range(0, nx, LANES):
            width = min(LANES, nx - x)
            inner = x >= 2 * step and x + width + 2 * step <= nx
            for k in range(25):
                source = image[_inside(y + (k // 5 - 2) * step, ny, step)]
                shift = x + (k % 5 - 2) * step
                for lane in range(width):
                    i = shift + lane if inner else _inside(shift + lane, nx, step)
                    v = source[i]
                    values[k, lane] = v if np.isfinite(v) else np.float32(np.inf)
            sort_lanes(values, network)
            for lane in range(width):
                out[y, x + lane] = values[12, lane]


@kernel(parallel=True)
def _count_exceeded(
    image: Floats,
    around: Floats,
    thresholds: npt.NDArray[np.float32],
    out: npt.NDArray[np.uint8],
) -> None:
    for y in numba.prange(image.shape[0]):
        for x in range(image.shape[1]):
            excess = image[y, x] - around[y, x]
            count = 0
            if excess > thresholds[0]:
                while count < thresholds.size and excess > thresholds[count]:
                    count += 1
            out[y, x] = count if np.isfinite(excess) else 255


@kernel()
def _good_mean(
    image: Floats, mask: npt.NDArray[np.uint8], y: int, x: int, step: int
) -> tuple[float, int]:
    """(mean, number) of the good same-colour neighbours that a repair of pixel (y, x) uses."""
    ny, nx = image.shape
    for reach in range(_REACH + 1):  # 0: the four nearest; then squares
        total = 0.0
        count = 0
        r = max(reach, 1)
        for dy in range(-r, r + 1):
            for dx in range(-r, r + 1):
                j = y + dy * step
                i = x + dx * step
                if j < 0 or j >= ny or i < 0 or i >= nx or (reach == 0 and dy != 0 and dx != 0):
                    continue
                if mask[j, i] & BAD == 0:
                    total += image[j, i]
                    count += 1
        if count > 0:
            return total / count, count
    return 0.0, 0


@kernel(parallel=True)
def repair_pixels(image: Floats, mask: npt.NDArray[np.uint8], step: int) -> int:
    """Repair `image` in place where `mask` has bit 1; return how many had no good neighbour.

    Only bad pixels are written and only good ones read, so that the order does not matter.
    """
    ny, nx = image.shape
    lost = 0
    for y in numba.prange(ny):
        for x in range(nx):
            if mask[y, x] & BAD:
                value, count = _good_mean(image, mask, y, x, step)
                image[y, x] = value
                if count == 0:
                    lost += 1
    return lost
