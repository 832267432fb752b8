"""Cosmic rays in a single monochrome frame, by L.A.Cosmic (van Dokkum 2001, PASP 113, 1420).

With the defaults of astroscrappy 92 % of star cores of FWHM 1.4 px are flagged; the options here
were chosen because they leave cores alone and still find 95 % and more of the rays.

astroscrappy computes five medians for every pixel of the frame, and takes ten seconds and more for
26 megapixels. Here the same numbers are worked out only where they can matter. The mask is that of
astroscrappy over the whole frame:

- A ray begins where S' > `sigclip` and S'/F > `objlim`: S is the Laplacian's signal to noise, S'
  what it exceeds its median of 5×5 by, F the fine structure. It spreads to neighbours by S' alone.
- S is nowhere negative, so S' ≤ S: no ray begins where S ≤ `sigclip` or S/F ≤ `objlim`.
- The noise in S is a median of 5×5 values. Of 25 values 13 are at or below their median; so in one
  of the five rows three are, and the least of the five rows' medians is at or below it. That bound
  costs a few operations a pixel.
- The Laplacian is at most twice what a pixel exceeds the least of its four neighbours by. That
  costs less still; only beside pixels that exceed one so far is the Laplacian worked out. One pixel
  in some hundred of a field full of stars comes further.
- Whether a median is above a value is known from how many of its values are: no sorting. That
  settles nearly all of those, which are in stars; one pixel in some ten thousands comes further.
- Medians, F and the noise come out the same to the last bit. The Laplacian need not: astroscrappy
  is compiled with leave to reorder its sums. So S has a doubt, a bound on what any order can make
  of it, and where a verdict is within the doubt, astroscrappy itself is asked about a patch: for
  one ray in some thousands.
- It is also asked where suspects crowd, as in a frame whose gain is far wrong: there all medians of
  all pixels cost less.
"""

import math

import astroscrappy
import numpy as np
import numpy.typing as npt

from calib_library.kernels import kernel, side_by_side

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
I64 = npt.NDArray[np.int64]

_SIGCLIP = 6.0
_OBJLIM = 10.0
_UNLIMITED_E = 1e12  # stands for no saturation

_BORDER = 2  # px at each edge of the frame that have no median of 5×5, and are never flagged
_STRIP = 32  # rows of one piece of parallel work
_PIECE = 64  # pixels of a row that are looked through at once for suspects
_CROWDED = 8  # a strip with one suspect in so many pixels is quicker done by astroscrappy
_ROOM = 32  # for unclear pixels of a strip; with more, all of it is unclear
_TILE_STRIPS = 16  # at most in one call of it: it takes some 60 bytes a pixel
_GROWTH = 2  # px: a ray spreads twice by one pixel from where it begins
_REACH = 8  # px that a verdict rests on: growth 2, saturated stars' rims 2 + 2, their median 2

_INNOCENT, _SUSPECT, _UNCLEAR = range(3)  # what a closer look says

_ZERO = np.float32(0)
_TWO = np.float32(2)
_FOUR = np.float32(4)
_LEAST_VARIANCE = np.float32(1e-5)  # e-²
_LEAST_FINE = np.float32(0.01)
_NEVER = np.float32(-1)
_S_BEGIN = np.float32(_SIGCLIP)
_S_SPREAD = np.float32(0.3) * np.float32(_SIGCLIP)  # sigfrac, by default 0.3
_CONTRAST = np.float32(_OBJLIM)
_BOUND = np.float32(2 * _SIGCLIP * (1 - 1e-6))  # below 2 sigclip by more than rounding

# A sum of n numbers in float32 is off by at most (n - 1) u, u = 2⁻²⁴, times the sum of their sizes,
# in any order (Higham 2002, Accuracy and Stability of Numerical Algorithms, 4.2). L+ of a pixel v
# and its neighbours is the mean of 4 sums of 5 numbers, here of 3: two ways to it differ by at most
# u (40 |v| + 6 Σ |neighbour|).
_ROUNDING = np.float32(11 * 2.0**-24)

# Twice the difference to a neighbour, as computed, against L+ with its doubt, as computed: the
# doubt is at most 8 _ROUNDING of the largest size near, roundings on both ways add less than 3.
_STEP_ROUNDING = np.float32(16) * _ROUNDING
_LESS, _MORE = np.float32(1 - 1e-5), np.float32(1 + 1e-5)  # by more than a dozen roundings


def clean(
    image: F32,
    *,
    e_per_adu: float,
    read_noise_e: float,
    sky_adu: float,
    saturation_adu: float | None = None,
    out: F32 | None = None,
) -> tuple[F32, Bool]:
    """Replace cosmic rays in `image` (ny, nx) float32, ADU, calibrated with its sky left in.

    `e_per_adu` is e-/ADU; `read_noise_e` e-, everything that does not grow with the light (see
    `read_noise`); `sky_adu` stands in for pixels that are not finite while rays are looked for,
    and for rays without a good pixel near. Stars saturated at `saturation_adu` are not taken for
    rays. Returns the cleaned copy (flagged pixels are the mean of their good neighbours in 5×5) and
    the mask, True where a ray was. Monochrome only: in a mosaic every pixel differs from its
    neighbours.

    `out` (ny, nx) is overwritten and returned where given. It may be `image` itself, where that is
    finite everywhere; else `image` is not changed.
    """
    given = np.ascontiguousarray(image, dtype=np.float32)
    sky = np.float32(sky_adu)
    gain, noise = np.float32(e_per_adu), np.float32(read_noise_e)
    limit = np.float32(_UNLIMITED_E if saturation_adu is None else saturation_adu * e_per_adu)

    cleaned = np.empty_like(given) if out is None else out
    counts = [0] if cleaned is given else side_by_side(_fill, len(given), given, sky, cleaned)
    mask = np.zeros(given.shape, dtype=np.bool_)
    strips = -(-len(given) // _STRIP)
    unclear = np.full((strips, _ROOM), -1, dtype=np.int64)
    crowded = np.zeros(strips, dtype=np.bool_)
    side_by_side(_flag, len(crowded), cleaned, gain, noise * noise, limit, mask, unclear, crowded)
    _ask_about_pixels(cleaned, gain, noise, limit, unclear[unclear >= 0], mask)
    _ask_about_strips(cleaned, gain, noise, limit, np.flatnonzero(crowded), mask)
    places = np.flatnonzero(mask)
    values = np.empty(len(places), dtype=np.float32)
    side_by_side(_repair, len(places), cleaned, mask, places, gain, limit, sky, values)
    cleaned.ravel()[places] = values
    if any(counts):
        empty = ~np.isfinite(given)
        mask[empty] = False
        cleaned[empty] = given[empty]
    return cleaned, mask


def read_noise(sigma_adu: float, sky_adu: float, e_per_adu: float) -> float:
    """Noise (e-) beyond the sky's photons, from a background pixel's measured noise; at least 1.

    σ² = sky / g + R² / g² with g in e-/ADU; for cameras whose read noise is not known. Dark
    current, masters' noise and a wrong `e_per_adu` are in it, as they should be.
    """
    return math.sqrt(max((sigma_adu * e_per_adu) ** 2 - max(sky_adu, 0.0) * e_per_adu, 1.0))


def _astroscrappy(
    image: F32, gain: np.float32, noise: np.float32, saturation_e: np.float32
) -> Bool:
    found: Bool
    found, _ = astroscrappy.detect_cosmics(
        image,
        sigclip=_SIGCLIP,
        objlim=_OBJLIM,
        gain=float(gain),
        readnoise=float(noise),
        satlevel=float(saturation_e),
        niter=1,
        sepmed=False,
        cleantype="meanmask",
    )
    return found


def _ask_about_pixels(
    image: F32,
    gain: np.float32,
    noise: np.float32,
    saturation_e: np.float32,
    places: I64,
    mask: Bool,
) -> None:
    """Set in `mask` the rays that begin at some pixels (flat indices).

    A patch that an edge of the frame cuts is looked at alone, for astroscrappy has its own ways at
    edges. The others are put one above another: many small calls are slow on a busy machine.
    """
    ny, nx = image.shape
    size = 2 * (_GROWTH + _REACH) + 1
    stacked, spreads = [], []
    for y, x in zip(*divmod(places, nx), strict=True):
        seen = _around(y, _GROWTH + _REACH, ny), _around(x, _GROWTH + _REACH, nx)
        spread = _around(y, _GROWTH, ny), _around(x, _GROWTH, nx)
        if image[seen].shape == (size, size):
            stacked.append(image[seen])
            spreads.append(spread)
        else:
            found = _astroscrappy(image[seen], gain, noise, saturation_e)
            rows, columns = (
                slice(a.start - b.start, a.stop - b.start)
                for a, b in zip(spread, seen, strict=True)
            )
            mask[spread] |= found[rows, columns]
    if stacked:
        found = _astroscrappy(np.concatenate(stacked), gain, noise, saturation_e)
        inner = found.reshape(-1, size, size)[:, _REACH:-_REACH, _REACH:-_REACH]
        for spread, flags in zip(spreads, inner, strict=True):
            mask[spread] |= flags


def _around(place: int, margin: int, length: int) -> slice:
    return slice(max(place - margin, 0), min(place + margin + 1, length))


def _ask_about_strips(
    image: F32,
    gain: np.float32,
    noise: np.float32,
    saturation_e: np.float32,
    strips: I64,
    mask: Bool,
) -> None:
    """Set in `mask` the rays that begin in some strips, those beside one another together."""
    for run in np.split(strips, np.flatnonzero(np.diff(strips) > 1) + 1):
        for first in range(0, len(run), _TILE_STRIPS):
            some = run[first : first + _TILE_STRIPS]
            y0 = max(some[0] * _STRIP - _GROWTH, 0)
            y1 = min((some[-1] + 1) * _STRIP + _GROWTH, len(image))
            low, high = max(y0 - _REACH, 0), min(y1 + _REACH, len(image))
            found = _astroscrappy(image[low:high], gain, noise, saturation_e)
            mask[y0:y1] |= found[y0 - low : y1 - low]


@kernel()
def _fill(first: int, last: int, image: F32, value: np.float32, out: F32) -> int:
    """Copy, with `value` where `image` is not finite; returns how many there were."""
    nx = image.shape[1]
    holes = 0
    for y in range(first, last):
        for x in range(nx):
            finite = abs(image[y, x]) < np.inf
            out[y, x] = image[y, x] if finite else value
            holes += 0 if finite else 1
    return holes


# ---- flags: `image` in ADU; `gain` e-/ADU; `variance` the read noise's, e-² ---------------------


@kernel(allocates=True)
def _flag(
    begin_strip: int,
    end_strip: int,
    image: F32,
    gain: np.float32,
    variance: np.float32,
    saturation_e: np.float32,
    mask: Bool,
    unclear: I64,
    crowded: Bool,
) -> None:
    """Set in `mask` what begins in some strips, but at unclear pixels, or in crowded ones.

    `unclear` (strips, room) takes flat indices from the left.
    """
    ny, nx = image.shape
    inner = nx - 2 * _BORDER
    for strip in range(begin_strip, end_strip):
        first = max(strip * _STRIP, _BORDER)
        last = min((strip + 1) * _STRIP, ny - _BORDER)
        if first >= last or inner <= 0:
            continue
        limit, step = np.empty(inner, np.float32), np.empty(inner, np.float32)
        _least_laplacian(image, first - 2, last + 2, gain, variance, limit, step)
        laplacian = np.empty(_PIECE, np.float32)
        signal = np.empty((2, 9, 9), np.float32)
        excess = np.empty((5, 5), np.float32)
        left = _STRIP * nx // _CROWDED
        asked = 0
        for y in range(first, last):
            above, row, below = image[y - 1], image[y], image[y + 1]
            for begin in range(0, inner, _PIECE):
                end = min(begin + _PIECE, inner)
                if not _any_stands_out(above, row, below, begin, step[begin:end]):
                    continue
                _laplacians(above, row, below, begin, gain, laplacian[: end - begin])
                for x in range(begin, end):
                    if not laplacian[x - begin] > limit[x]:
                        continue
                    verdict = _flag_round(
                        image, y, x + _BORDER, gain, variance, saturation_e, signal, excess, mask
                    )
                    left -= verdict != _INNOCENT
                    if verdict == _UNCLEAR:
                        if asked < unclear.shape[1]:
                            unclear[strip, asked] = y * nx + x + _BORDER
                        asked += 1
            if left < 0 or asked > unclear.shape[1]:
                unclear[strip] = -1
                crowded[strip] = True
                break


@kernel()
def _any_stands_out(above: F32, row: F32, below: F32, begin: int, step: F32) -> bool:
    """Does a pixel from column begin + _BORDER on exceed the least of its neighbours by more than
    its step, ADU? Without a branch, so that it becomes vector instructions; NaN stands out.
    """
    first, last = begin + _BORDER, begin + _BORDER + len(step)
    north, south, middle = above[first:last], below[first:last], row[first:last]
    west, east = row[first - 1 : last - 1], row[first + 1 : last + 1]
    innocent = 0
    for x in range(len(step)):
        least = min(west[x], east[x], north[x], south[x])
        innocent += middle[x] - least <= step[x]
    return innocent < len(step)


@kernel(allocates=True)
def _least_laplacian(
    image: F32, top: int, bottom: int, gain: np.float32, variance: np.float32, limit: F32, step: F32
) -> None:
    """For each column but two at either end: no pixel of rows top … bottom - 1, but two at either
    end, is a suspect with an L+ below `limit` (e-), nor where it exceeds no neighbour by more than
    `step` (ADU).
    """
    nx = image.shape[1]
    size = np.zeros(nx, np.float32)
    limit[:] = np.inf
    for y in range(top, bottom):
        row = image[y]
        for x in range(nx):
            size[x] = max(size[x], abs(row[x]))
        for x in range(len(limit)):
            middle = _median5(row[x], row[x + 1], row[x + 2], row[x + 3], row[x + 4])
            limit[x] = min(limit[x], gain * middle)
    half = np.float32(0.5) / gain
    for x in range(len(limit)):
        limit[x] = _BOUND * np.sqrt(max(limit[x] + variance, _LEAST_VARIANCE))
        largest = gain * max(size[x + 1], size[x + 2], size[x + 3])
        step[x] = (_LESS * limit[x] - _STEP_ROUNDING * largest) * half


@kernel()
def _laplacians(above: F32, row: F32, below: F32, begin: int, gain: np.float32, out: F32) -> None:
    """What L+ may be at most for a row's pixels from column begin + _BORDER on, e-."""
    first, last = begin + _BORDER, begin + _BORDER + len(out)
    north, south, middle = above[first:last], below[first:last], row[first:last]
    west, east = row[first - 1 : last - 1], row[first + 1 : last + 1]
    for x in range(len(out)):
        value, doubt = _laplacian(
            gain * middle[x], gain * west[x], gain * east[x], gain * north[x], gain * south[x]
        )
        out[x] = value + doubt


@kernel()
def _laplacian(
    v: np.float32, west: np.float32, east: np.float32, north: np.float32, south: np.float32
) -> tuple[np.float32, np.float32]:
    """L+ of a pixel, the mean of its four quarters' Laplacians, from 0 up; and the doubt of it."""
    twice = _TWO * v  # four times the quarter itself, less the two beside it in the same pixel
    total = max(twice - west - north, _ZERO) + max(twice - west - south, _ZERO)
    total += max(twice - east - south, _ZERO) + max(twice - east - north, _ZERO)
    sizes = _FOUR * abs(v) + abs(west) + abs(east) + abs(north) + abs(south)
    return total / _FOUR, _ROUNDING * sizes


@kernel(allocates=True)
def _flag_round(
    image: F32,
    y: int,
    x: int,
    gain: np.float32,
    variance: np.float32,
    saturation_e: np.float32,
    signal: F32,
    excess: F32,
    mask: Bool,
) -> int:
    """Flag (y, x) if a ray begins there, and where it spreads to; innocent by S or S/F alone.

    Unclear where a verdict is within the doubt. `signal` (2, 9, 9) and `excess` (5, 5) are scratch.
    Two threads may set a pixel on the border of their strips: both to True.
    """
    if _innocent_at_once(image, y, x, gain, variance):
        return _INNOCENT
    signal[:] = _NEVER
    central, doubt, noise = _signal(image, y, x, gain, variance)
    if central + doubt <= _S_BEGIN:
        return _INNOCENT
    fine = _fine(image, y, x, noise, gain)
    if (central + doubt) / fine <= _CONTRAST:
        return _INNOCENT
    least, most = _excess(image, y, x, 2, 2, gain, variance, signal)
    if (
        most <= _S_BEGIN
        or most / fine <= _CONTRAST
        or _near_saturated(image, y, x, gain, saturation_e)
    ):
        return _SUSPECT
    if least <= _S_BEGIN or least / fine <= _CONTRAST:
        return _UNCLEAR
    return _flag_ray(image, y, x, gain, variance, saturation_e, signal, excess, mask)


@kernel()
def _innocent_at_once(image: F32, y: int, x: int, gain: np.float32, variance: np.float32) -> bool:
    """Innocent by S or S/F, as far as counting tells; never near the edges."""
    ny, nx = image.shape
    if not (4 <= y < ny - 4 and 4 <= x < nx - 4):
        return False
    value, doubt = _laplacian(
        gain * image[y, x],
        gain * image[y, x - 1],
        gain * image[y, x + 1],
        gain * image[y - 1, x],
        gain * image[y + 1, x],
    )
    # A median of 5×5 that makes S just `sigclip`, or very little more.
    most = _MORE * (value + doubt)
    level = _MORE * (most / (_TWO * _S_BEGIN)) ** 2 - variance
    signal, doubt = _in_noise(value, doubt, np.sqrt(max(level + variance, _LEAST_VARIANCE)))
    if signal + doubt <= _S_BEGIN and _median25_reaches(image, y, x, gain, level):
        return True
    # F is such a difference over the noise, or more; and S is half of L+ over the same noise.
    least = _MORE * (most / (_TWO * _CONTRAST))
    middle = _median9(image, y, x, gain)
    level = middle - _MORE * least
    return bool(middle - level >= least) and _median49_upto(image, y, x, gain, level)


@kernel()
def _median25_reaches(image: F32, y: int, x: int, gain: np.float32, level: np.float32) -> bool:
    """Whether the median of 5×5, e-, is at least `level`."""
    count = 0
    for j in range(y - 2, y + 3):
        for i in range(x - 2, x + 3):
            count += gain * image[j, i] >= level
    return count >= 13


@kernel()
def _median49_upto(image: F32, y: int, x: int, gain: np.float32, level: np.float32) -> bool:
    """Whether the median of the 7×7 medians of 3×3, e-, is at most `level`; not near the edges.

    A median of 3×3 is so if five of its pixels are. Each hexadecimal digit is one column's count.
    """
    above, here, below = np.int64(0), np.int64(0), np.int64(0)
    counts = np.int64(0)
    for j in range(y - 4, y + 5):
        above, here, below = here, below, np.int64(0)
        for i in range(9):
            below |= np.int64(gain * image[j, x - 4 + i] <= level) << (4 * i)
        columns = above + here + below  # 3 at most
        pixels = columns + (columns >> 4) + (columns >> 8)  # 9 at most
        if j >= y - 2:
            counts += ((pixels + 0x3333333) >> 3) & 0x1111111  # + 3 is 8 or more; in 7 columns
    number = np.int64(0)
    for i in range(7):
        number += (counts >> (4 * i)) & 0xF
    return bool(number >= 25)


@kernel(allocates=True)
def _flag_ray(
    image: F32,
    y: int,
    x: int,
    gain: np.float32,
    variance: np.float32,
    saturation_e: np.float32,
    signal: F32,
    excess: F32,
    mask: Bool,
) -> int:
    """Flag what a ray that begins at (y, x) spreads to; returns as `_flag_round`."""
    ny, nx = image.shape
    excess[:] = _NEVER  # for what is not to be flagged
    for j in range(max(y - 2, _BORDER), min(y + 3, ny - _BORDER)):
        for i in range(max(x - 2, _BORDER), min(x + 3, nx - _BORDER)):
            dy, dx = j - y + 2, i - x + 2
            if signal[0, dy + 2, dx + 2] + signal[1, dy + 2, dx + 2] > _S_SPREAD:
                least, most = _excess(image, y, x, dy, dx, gain, variance, signal)
                if most > _S_SPREAD and not _near_saturated(image, j, i, gain, saturation_e):
                    if least <= _S_SPREAD or least <= _S_BEGIN < most:
                        return _UNCLEAR
                    excess[dy, dx] = least
    _spread(excess, mask[y - 2 : y + 3, x - 2 : x + 3])
    return _SUSPECT


@kernel()
def _spread(excess: F32, mask: Bool) -> None:
    """Flag the neighbours of the middle above sigclip, and theirs above sigfrac sigclip."""
    for dy in range(1, 4):
        for dx in range(1, 4):
            if excess[dy, dx] > _S_BEGIN:
                for b in range(dy - 1, dy + 2):
                    for a in range(dx - 1, dx + 2):
                        if excess[b, a] > _S_SPREAD:
                            mask[b, a] = True


@kernel(allocates=True)
def _excess(
    image: F32,
    y: int,
    x: int,
    dy: int,
    dx: int,
    gain: np.float32,
    variance: np.float32,
    signal: F32,
) -> tuple[np.float32, np.float32]:
    """The least and the most that S' of pixel (y - 2 + dy, x - 2 + dx) may be.

    `signal` keeps S and its doubt once known, from (y - 4, x - 4).
    """
    lowest, highest = np.empty(25, np.float32), np.empty(25, np.float32)
    count = 0
    for b in range(dy, dy + 5):
        for a in range(dx, dx + 5):
            if signal[0, b, a] == _NEVER:
                value, doubt, _ = _signal(image, y + b - 4, x + a - 4, gain, variance)
                signal[0, b, a], signal[1, b, a] = value, doubt
            lowest[count] = signal[0, b, a] - signal[1, b, a]
            highest[count] = signal[0, b, a] + signal[1, b, a]
            count += 1
    own = 12
    return lowest[own] - _median(highest), highest[own] - _median(lowest)


@kernel(allocates=True)
def _signal(
    image: F32, y: int, x: int, gain: np.float32, variance: np.float32
) -> tuple[np.float32, np.float32, np.float32]:
    """S of any pixel, the doubt of it, and its noise, e-; beyond the edges of the frame is zero."""
    ny, nx = image.shape
    value, doubt = _laplacian(
        gain * image[y, x],
        gain * image[y, x - 1] if x > 0 else _ZERO,
        gain * image[y, x + 1] if x < nx - 1 else _ZERO,
        gain * image[y - 1, x] if y > 0 else _ZERO,
        gain * image[y + 1, x] if y < ny - 1 else _ZERO,
    )
    noise = np.sqrt(_variance(image, y, x, gain, variance))
    signal, doubt = _in_noise(value, doubt, noise)
    return signal, doubt, noise


@kernel()
def _in_noise(
    value: np.float32, doubt: np.float32, noise: np.float32
) -> tuple[np.float32, np.float32]:
    """S of an L+ and its doubt, e-, and the doubt of that; both the less, the more the noise."""
    signal = value / (_TWO * noise)
    # The second term is for what is done with S: it is rounded five times at most.
    return signal, doubt / (_TWO * noise) + _ROUNDING * signal


@kernel(allocates=True)
def _variance(image: F32, y: int, x: int, gain: np.float32, variance: np.float32) -> np.float32:
    """Variance (e-²) of a pixel from the median of 5×5; two pixels from an edge, from itself."""
    ny, nx = image.shape
    level = gain * image[y, x]
    if 2 <= y < ny - 2 and 2 <= x < nx - 2:
        level = _median25(image, y, x, gain)
    return max(level + variance, _LEAST_VARIANCE)


@kernel(allocates=True)
def _fine(image: F32, y: int, x: int, noise: np.float32, gain: np.float32) -> np.float32:
    """F: a median of 3×3 less the median of 7×7 such, in units of the noise; at least 0.01."""
    ny, nx = image.shape
    if y < 3 or x < 3 or y >= ny - 3 or x >= nx - 3:
        return _LEAST_FINE
    values = np.empty(49, np.float32)
    count = 0
    for j in range(y - 3, y + 4):
        for i in range(x - 3, x + 4):
            values[count] = _median9(image, j, i, gain)
            count += 1
    return max((values[24] - _median(values)) / noise, _LEAST_FINE)


@kernel(allocates=True)
def _near_saturated(image: F32, y: int, x: int, gain: np.float32, saturation_e: np.float32) -> bool:
    """Whether a saturated star is so near that astroscrappy takes the pixel for a part of it.

    Saturated pixels, dilated twice by 5×5 without its corners; but what lies within 2 px of an edge
    of the frame is never dilated into.
    """
    ny, nx = image.shape
    bright = False
    for j in range(max(y - 4, 0), min(y + 5, ny)):
        for i in range(max(x - 4, 0), min(x + 5, nx)):
            bright |= gain * image[j, i] >= saturation_e
    if not bright:
        return False
    if not (2 <= y < ny - 2 and 2 <= x < nx - 2):
        return _is_saturated(image, y, x, gain, saturation_e)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            if abs(dy) + abs(dx) < 4 and _beside_saturated(
                image, y + dy, x + dx, gain, saturation_e
            ):
                return True
    return False


@kernel(allocates=True)
def _beside_saturated(
    image: F32, y: int, x: int, gain: np.float32, saturation_e: np.float32
) -> bool:
    """The first of the two dilations."""
    ny, nx = image.shape
    if not (2 <= y < ny - 2 and 2 <= x < nx - 2):
        return _is_saturated(image, y, x, gain, saturation_e)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            if abs(dy) + abs(dx) < 4 and _is_saturated(image, y + dy, x + dx, gain, saturation_e):
                return True
    return False


@kernel(allocates=True)
def _is_saturated(image: F32, y: int, x: int, gain: np.float32, saturation_e: np.float32) -> bool:
    """Saturated itself, and the median of 5×5 above a tenth of saturation."""
    ny, nx = image.shape
    level = gain * image[y, x]
    if level < saturation_e:
        return False
    if 2 <= y < ny - 2 and 2 <= x < nx - 2:
        level = _median25(image, y, x, gain)
    return bool(level > np.float32(np.float64(saturation_e) / 10.0))


@kernel(allocates=True)
def _repair(
    first: int,
    last: int,
    image: F32,
    mask: Bool,
    places: npt.NDArray[np.intp],
    gain: np.float32,
    saturation_e: np.float32,
    sky: np.float32,
    values: F32,
) -> None:
    """Write to `values` (n,) the means of the good neighbours of some pixels (flat indices), or
    `sky` where none is good.
    """
    for n in range(first, last):
        y, x = divmod(places[n], image.shape[1])
        total = _ZERO
        count = 0
        for j in range(y - 2, y + 3):
            for i in range(x - 2, x + 3):
                if not mask[j, i] and not _near_saturated(image, j, i, gain, saturation_e):
                    total += gain * image[j, i]
                    count += 1
        values[n] = total / np.float32(count) / gain if count else sky


# ---- medians ------------------------------------------------------------------------------------


@kernel()
def _median(values: F32) -> np.float32:
    """Median of an odd number of values: that of the middle rank. No branch in the inner loop."""
    middle = len(values) // 2
    candidate: np.float32
    for candidate in values:
        below = 0
        upto = 0
        for value in values:
            below += value < candidate
            upto += value <= candidate
        if below <= middle < upto:
            break
    return candidate


@kernel(allocates=True)
def _median25(image: F32, y: int, x: int, gain: np.float32) -> np.float32:
    """Median of 5×5, e-."""
    values = np.empty(25, np.float32)
    count = 0
    for j in range(y - 2, y + 3):
        for i in range(x - 2, x + 3):
            values[count] = gain * image[j, i]
            count += 1
    return _median(values)


@kernel()
def _median9(image: F32, y: int, x: int, gain: np.float32) -> np.float32:
    """Median of 3×3, e-; at an edge of the frame the pixel itself."""
    ny, nx = image.shape
    if y < 1 or x < 1 or y >= ny - 1 or x >= nx - 1:
        alone: np.float32 = gain * image[y, x]
        return alone
    a, b, c = image[y - 1], image[y], image[y + 1]
    low1, middle1, high1 = _sorted3(a[x - 1], a[x], a[x + 1])
    low2, middle2, high2 = _sorted3(b[x - 1], b[x], b[x + 1])
    low3, middle3, high3 = _sorted3(c[x - 1], c[x], c[x + 1])
    _, middle, _ = _sorted3(middle1, middle2, middle3)
    _, median, _ = _sorted3(max(low1, low2, low3), middle, min(high1, high2, high3))
    return gain * median


@kernel()
def _median5(
    a: np.float32, b: np.float32, c: np.float32, d: np.float32, e: np.float32
) -> np.float32:
    low = max(min(a, b), min(c, d))
    high = min(max(a, b), max(c, d))
    return max(min(low, high), min(max(low, high), e))


@kernel()
def _sorted3(
    a: np.float32, b: np.float32, c: np.float32
) -> tuple[np.float32, np.float32, np.float32]:
    low, high = min(a, b), max(a, b)
    return min(low, c), max(low, min(high, c)), max(high, c)
