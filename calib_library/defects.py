"""Hot, cold and telegraph pixels: finding them, and repairing images that have them.

Masks are (ny, nx): bool where they are results, uint8 (bit 1 is bad) inside the kernels. Neighbours
of the same colour are 2 px apart in a Bayer mosaic (`bayer=True`), else 1 px.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calib_library.combine import Rows, alike, through_tiles, tile_height
from calib_library.errors import IncompatibleFramesError
from calib_library.kernels import kernel, side_by_side
from calib_library.local_median import REACH, local_median

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.int64]

FLAT_FLOOR = 0.05
"""A normalised flat up to this is no measurement: the pixel is bad."""
BAD = 1
"""Bit of a mask: the pixel's value is worthless."""
TELEGRAPH_FRAMES = 20
"""Darks below this number do not tell a pixel that jumps."""
TELEGRAPH_FACTOR = 6.0
"""Times the variance of a quiet pixel of the same level."""
_LOW = 25.0
"""Percentile of hot pixels that is taken for the quiet ones: three in four may jump …"""
_LOW_SHARE = 0.75
"""… and what a quiet pixel's own variance over twenty darks is there, over its true one."""
_MOST_DRIFT = 0.1**2
"""Dark current that changes by a tenth within a set: more than a degree, no set holds that."""
_LOOKED_THROUGH = 256
"""Pixels of a row that are looked through at once for bad ones."""
_REACH = 3
"""A repair looks for good pixels up to so many same-colour steps away."""
_BAND_ROWS = 256
_READ_AT_ONCE_BYTES = 64_000_000


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
    dark: Floats,
    thresholds: npt.NDArray[np.float32],
    *,
    bayer: bool = False,
    doubt: Floats | None = None,
    doubt_scale: float = 1.0,
) -> npt.NDArray[np.uint8]:
    """Count for each pixel of a dark (ny, nx), ADU, by how many thresholds it stands above its 5×5
    surroundings: a plane (ny, nx) from which the hot pixels of any threshold are read.

    `thresholds` (k,), ADU, rise, k < 255; beyond the i-th are the pixels whose count is above i.
    Pixels that are not finite exceed them all: 255. Where `doubt` (ny, nx) times
    `doubt_scale`, ADU, exceeds more of them, that counts; one that is not a number exceeds k.
    """
    counts = np.empty(dark.shape, np.uint8)
    nothing = np.empty((0, dark.shape[1]), np.float32)
    for rows, around in _surroundings(dark, bayer=bayer):
        beside = nothing if doubt is None else doubt[rows]
        part = np.ascontiguousarray(dark[rows])
        side_by_side(
            _count_exceeded, len(part), part, around, beside, np.float32(doubt_scale), thresholds,
            counts[rows],
        )  # fmt: skip
    return counts


def telegraph_pixels(
    variance: Floats, *, model_variance: float | Floats, factor: float = TELEGRAPH_FACTOR
) -> Mask:
    """Find pixels that jump between levels: their variance over many darks exceeds the model's.

    `variance` (ny, nx), ADU², of single darks at each pixel, over 20 or more, the two highest and
    the lowest dropped; `model_variance` ADU², of a quiet pixel under the same dropping: one for all
    or (ny, nx).
    """
    return np.asarray(variance > np.float32(factor) * model_variance, np.bool_)


def find_telegraph(
    darks: Sequence[Rows], *, e_per_adu: float | None = None, factor: float = TELEGRAPH_FACTOR
) -> Pixels:
    """Find the telegraph pixels of a camera from 20 or more like darks, read by rows.

    Returns their flat indices (n,) int64, ascending. The variance of each pixel, its two highest
    and its lowest value dropped (cosmic rays), is compared with that of quiet pixels of its own
    level, so that the shot noise of hot pixels, of glow, and a drift of temperature do not count.
    `e_per_adu`: the camera's gain, where it was measured. Without it the shot noise is learnt from
    the hot pixels, and where nearly all of these jump, they are taken for quiet.

    Raises IncompatibleFramesError for fewer frames or different shapes.
    """
    if len(darks) < TELEGRAPH_FRAMES:
        raise IncompatibleFramesError(
            f"{len(darks)} darks do not tell which pixels jump; {TELEGRAPH_FRAMES} are needed"
        )
    if len({dark.shape for dark in darks}) > 1 or len(darks[0].shape) != 2:
        raise IncompatibleFramesError("darks of different sizes cannot be compared")
    ny, nx = darks[0].shape
    mean, variance = np.empty((ny, nx), np.float32), np.empty((ny, nx), np.float32)
    # As stored: the constant that plain rows lack is no matter where all lack the same.
    plain = alike(darks)
    height = tile_height(darks, _READ_AT_ONCE_BYTES, plain=plain)

    def work(y0: int, y1: int, tile: npt.NDArray[Any]) -> float:
        values = tile.view(np.int16).byteswap(inplace=True) if plain else tile
        _trimmed_moments(values, mean[y0:y1], variance[y0:y1])
        return _value_step(values[0]) if y0 == 0 else 0.0

    step = math.fsum(found for _, found in through_tiles(darks, height, work, plain=plain))
    quiet = quiet_noise(mean, variance, least=step**2 / 12, e_per_adu=e_per_adu)
    found = [
        nx * y0
        + np.flatnonzero(
            telegraph_pixels(
                variance[y0 : y0 + height],
                model_variance=quiet.variance(mean[y0 : y0 + height]),
                factor=factor,
            )
        )
        for y0 in range(0, ny, height)
    ]
    return np.concatenate(found)


class QuietNoise(NamedTuple):
    """The variance of a quiet pixel: v0 + shot · D + drift · D², D its ADU above `level`."""

    level: float
    """ADU, of the middle pixel."""
    v0: float
    """ADU²."""
    shot: float
    """ADU: the inverse of the gain."""
    drift: float
    """The square of the dark current's relative change from dark to dark, of the temperature."""

    def variance(self, mean: Floats) -> Floats:
        """Return that of each pixel of the mean dark `mean` (ny, nx), ADU²."""
        above = np.maximum(mean - np.float32(self.level), np.float32(0))
        per_adu = np.float32(self.shot) + np.float32(self.drift) * above
        return np.asarray(np.float32(self.v0) + above * per_adu, np.float32)


def quiet_noise(
    mean: Floats, variance: Floats, *, least: float, e_per_adu: float | None = None
) -> QuietNoise:
    """Measure the variance of quiet pixels from a dark's mean and variance (ny, nx), ADU, ADU².

    Of hot pixels, 10 σ above the middle, the lower quarter shows the slope; of the hottest tenth of
    them what the slope leaves shows the drift. v0 is at least `least`, ADU². Where the gain is
    known, the slope is no more than its inverse.
    """
    thin = max(1, round((mean.size / 4_000_000) ** 0.5))
    level = float(np.median(mean[::thin, ::thin]))
    v0 = max(float(np.median(variance[::thin, ::thin])), least)
    hot = mean > level + 10 * math.sqrt(v0)
    above = mean[hot].astype(np.float64) - level
    excess = variance[hot] - v0
    if len(above) == 0:
        return QuietNoise(level, v0, 0.0, 0.0)
    shot = max(0.0, float(np.percentile(excess / above, _LOW))) / _LOW_SHARE
    if e_per_adu is not None:
        shot = min(shot, 1 / e_per_adu)
    hottest = above >= np.percentile(above, 90)
    rest = (excess - shot * above)[hottest] / above[hottest] ** 2
    drift = max(0.0, float(np.percentile(rest, _LOW))) / _LOW_SHARE
    return QuietNoise(level, v0, shot, min(drift, _MOST_DRIFT))


def pack_pixels(pixels: Pixels) -> bytes:
    """Write flat indices (n,) as few bytes: little-endian uint32, differences, deflated."""
    steps = np.diff(pixels, prepend=0).astype("<u4")
    return zlib.compress(steps.tobytes())


def unpack_pixels(packed: bytes) -> Pixels:
    """Read what `pack_pixels` wrote."""
    return np.cumsum(np.frombuffer(zlib.decompress(packed), "<u4"), dtype=np.int64)


def _surroundings(image: Floats, *, bayer: bool) -> Iterator[tuple[slice, Floats]]:
    """The local median of an image in bands of rows, which need little memory."""
    margin = REACH * (2 if bayer else 1)
    for y0 in range(0, len(image), _BAND_ROWS):
        y1 = min(y0 + _BAND_ROWS, len(image))
        # An even first row keeps a mosaic's colours, and the edge of the band outside of it.
        top = max(y0 - margin, 0)
        around = local_median(image[top : y1 + margin], bayer=bayer)
        yield slice(y0, y1), around[y0 - top : y1 - top]


def _value_step(sample: npt.NDArray[Any]) -> float:
    """The step of the values, 1 or that of a padded converter; 0 for values that are no integers.

    A row is enough: a step that is taken too large only makes the test less sharp.
    """
    values = np.unique(sample)
    if not np.array_equal(values, np.rint(values)) or len(values) < 2:
        return 0.0
    return float(np.gcd.reduce(np.diff(values).astype(np.int64)))


@kernel(allocates=True)
def _trimmed_moments(tile: npt.NDArray[Any], mean: Floats, variance: Floats) -> None:
    """Mean and sample variance of `tile` (n, rows, nx) over n, two highest and the lowest dropped.

    Sums are about the first value, so that float32 is enough for the values themselves.
    """
    n, height, nx = tile.shape
    kept = n - 3
    for y in range(height):
        first = tile[0, y]
        total = np.zeros(nx, np.float64)
        squares = np.zeros(nx, np.float64)
        high = np.full(nx, -np.inf, np.float32)
        second = np.full(nx, -np.inf, np.float32)
        low = np.full(nx, np.inf, np.float32)
        for k in range(n):
            row = tile[k, y]
            for x in range(nx):
                v = np.float32(np.float32(row[x]) - np.float32(first[x]))
                total[x] += v
                squares[x] += np.float64(v) * np.float64(v)
                second[x] = max(second[x], min(high[x], v))
                high[x] = max(high[x], v)
                low[x] = min(low[x], v)
        for x in range(nx):
            a, b, c = np.float64(high[x]), np.float64(second[x]), np.float64(low[x])
            shift = (total[x] - a - b - c) / kept
            rest = squares[x] - a * a - b * b - c * c - kept * shift * shift
            mean[y, x] = np.float64(first[x]) + shift
            variance[y, x] = max(0.0, rest) / (kept - 1)


@kernel()
def _count_exceeded(
    first: int,
    last: int,
    image: Floats,
    around: Floats,
    doubt: Floats,
    doubt_scale: np.float32,
    thresholds: npt.NDArray[np.float32],
    out: npt.NDArray[np.uint8],
) -> None:
    for y in range(first, last):
        _count_row(image[y], around[y], doubt[y : y + 1], doubt_scale, thresholds, out[y])


@kernel()
def _count_row(
    image: Floats,
    around: Floats,
    doubts: Floats,
    doubt_scale: np.float32,
    thresholds: npt.NDArray[np.float32],
    out: npt.NDArray[np.uint8],
) -> None:
    """By how many thresholds each pixel of a row exceeds its surroundings: nearly all by none.
    `doubts` is one row or none.
    """
    lowest, none, some = thresholds[0], np.uint8(0), np.uint8(1)
    for x in range(out.size):
        out[x] = none if image[x] - around[x] <= lowest else some  # NaN is some
    for doubt in doubts:
        for x in range(out.size):
            out[x] |= none if doubt_scale * doubt[x] <= lowest else some
    for first in range(0, out.size, _LOOKED_THROUGH):
        last = min(first + _LOOKED_THROUGH, out.size)
        if not _all_flags(out[first:last]):
            continue
        for x in range(first, last):
            if out[x]:
                excess = image[x] - around[x]
                count = _count(excess, thresholds) if np.isfinite(excess) else 255
                for doubt in doubts:
                    count = max(count, _count(doubt_scale * doubt[x], thresholds))
                out[x] = count


@kernel()
def _count(excess: np.float32, thresholds: npt.NDArray[np.float32]) -> int:
    """How many thresholds something exceeds; all of them if it is not a number."""
    count = 0
    while count < thresholds.size and not excess <= thresholds[count]:
        count += 1
    return count


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


def repair_pixels(image: Floats, mask: npt.NDArray[np.uint8], step: int) -> int:
    """Repair `image` in place where `mask` has bit 1; return how many had no good neighbour.

    Only bad pixels are written and only good ones read, so that the order does not matter.
    """
    return sum(side_by_side(_repair_rows, len(image), image, mask, step))


@kernel()
def _repair_rows(
    begin: int, end: int, image: Floats, mask: npt.NDArray[np.uint8], step: int
) -> int:
    nx = image.shape[1]
    lost = 0
    for y in range(begin, end):
        for first in range(0, nx, _LOOKED_THROUGH):
            last = min(first + _LOOKED_THROUGH, nx)
            if not _all_flags(mask[y, first:last]) & BAD:
                continue
            for x in range(first, last):
                if mask[y, x] & BAD:
                    value, count = _good_mean(image, mask, y, x, step)
                    image[y, x] = value
                    if count == 0:
                        lost += 1
    return lost


@kernel()
def _all_flags(marks: npt.NDArray[np.uint8]) -> np.uint8:
    """All bits that are set in a piece of a row: most have none."""
    flags = np.uint8(0)
    for x in range(marks.size):
        flags |= marks[x]
    return flags
