"""The light of stars at known places: the sky round them, adaptive moments, fluxes in apertures.

Adaptive moments match an elliptical Gaussian weight to each star (Bernstein & Jarvis 2002, AJ 123,
583, section 3). Positions are px, x the column and y the row, centres of pixels at integers. Each
star is worked out by itself, so the number of threads changes nothing: the kernels take stars begin
… end.
"""

import numpy as np
import numpy.typing as npt

from calib_library.kernels import kernel
from daemon.light import clipped
from daemon.light.clipped import SETS, Network

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

X, Y, FWHM, ELONGATION, PEAK, SATURATED, OK = range(7)
"""The columns of `adaptive`."""

_LEAST_WEIGHT = 0.7  # px², variance of the narrowest weight


@kernel(allocates=True)
def ring_sky(
    begin: int, end: int, image: F32, xs: F64, ys: F64, inner: float, outer: float, step: int,
    network: Network, fallback: F64, out: F64,
) -> None:  # fmt: skip
    """Clipped median of the ring inner ≤ r ≤ outer (px) round each star, from every `step`-th row
    and column, ADU; `network` sorts as many values. Groups begin … end of `SETS` stars.
    """
    for group in range(begin, end):
        first = group * SETS
        _rings_of_some(
            image, xs[first : first + SETS], ys[first : first + SETS], inner, outer,
            step, network, fallback[first : first + SETS], out[first : first + SETS],
        )  # fmt: skip


@kernel(allocates=True)
def _rings_of_some(
    image: F32, xs: F64, ys: F64, inner: float, outer: float, step: int, network: Network,
    fallback: F64, out: F64,
) -> None:  # fmt: skip
    """The rings of so many stars as are sorted at once."""
    room = network.room
    values = np.empty((room, SETS), np.float32)
    counts = np.zeros(SETS, np.int64)
    samples = np.empty(room, np.float32)
    for star in range(len(xs)):
        counts[star] = _ring(image, xs[star], ys[star], inner, outer, step, values[:, star])
    clipped.sort(values, counts, network)
    for star in range(len(xs)):
        out[star] = fallback[star]
        if counts[star] >= 16:
            out[star], _ = clipped.median(values, star, counts[star], samples)


@kernel(allocates=True)
def _ring(image: F32, x: float, y: float, inner: float, outer: float, step: int, out: F32) -> int:
    """The pixels of a ring that are finite, and their number, of which `out` holds one more."""
    ny, nx = image.shape
    columns = np.arange(max(int(x - outer), 0), min(int(x + outer) + 1, nx), step)
    along = (columns - x) ** 2
    chosen = np.empty(len(columns), np.uint8)
    count = 0
    for row in range(max(int(y - outer), 0), min(int(y + outer) + 1, ny), step):
        line, across = image[row], (row - y) ** 2
        for k in range(len(along)):
            square = across + along[k]
            chosen[k] = (inner * inner <= square) & (square <= outer * outer)
        for k in range(len(columns)):
            value = line[columns[k]]
            # Written in any case: a branch costs more.
            out[count] = value
            count += chosen[k] & (abs(value) < np.inf)
    return count


@kernel()
def adaptive(
    begin: int,
    end: int,
    image: F32,
    flags: U8,
    xs: F64,
    ys: F64,
    widths: F64,
    skies: F64,
    saturation: float,
    out: F64,
) -> None:
    """Adaptive moments of each star: x, y, fwhm, elongation, peak, saturated, ok.

    The weight is an elliptical Gaussian. At the fixed point its covariance is twice that of the
    weighted light, which is where weight and star agree.
    """
    ny, nx = image.shape
    for star in range(begin, end):
        x, y, sky = xs[star], ys[star], skies[star]
        # m: covariance of the star; w: of the weight, which is the star's but for a least width,
        # below which the sum over pixels no longer stands for the integral.
        mxx = myy = widths[star] ** 2
        mxy = 0.0
        allowed = max(3.0, 2.0 * widths[star])
        ok = 1.0
        for _ in range(30):
            narrow = 0.5 * (mxx + myy) - np.sqrt(0.25 * (mxx - myy) ** 2 + mxy * mxy)
            widen = max(_LEAST_WEIGHT - narrow, 0.0)
            wxx, wyy = mxx + widen, myy + widen
            s, dx, dy, cxx, cyy, cxy = _weighted(image, x, y, sky, wxx, wyy, mxy)
            if s <= 0.0 or min(cxx, cyy) <= 0.0 or cxx * cyy <= cxy * cxy:
                ok = 0.0
                break
            if widen > 0.0:
                nxx, nyy, nxy, gain = _unweight(cxx, cyy, cxy, wxx, wyy, mxy)
            else:
                nxx, nyy, nxy, gain = 2.0 * cxx, 2.0 * cyy, 2.0 * cxy, 2.0
            # The weight holds back a part of the shift.
            x += gain * dx
            y += gain * dy
            changed = abs(nxx - mxx) + abs(nyy - myy) + abs(nxy - mxy)
            mxx, myy, mxy = nxx, nyy, nxy
            # The light of a single pixel; wandered off; as wide as the window; or cut by the rim,
            # where no centroid is honest.
            if (
                min(mxx, myy) <= 0.05
                or mxx * myy - mxy * mxy <= 0.0025
                or abs(x - xs[star]) + abs(y - ys[star]) > allowed
                or mxx + myy > 900.0
                or min(x, y, nx - 1 - x, ny - 1 - y) < 1.5 * np.sqrt(max(mxx, myy))
            ):
                ok = 0.0
                break
            if abs(dx) + abs(dy) < 2e-5 and changed < 2e-4 * (mxx + myy):
                break
        half = 0.5 * (mxx + myy)
        split = np.sqrt(0.25 * (mxx - myy) ** 2 + mxy * mxy)
        out[star, 0] = x
        out[star, 1] = y
        out[star, 2] = 2.354820045 * np.sqrt(np.sqrt(max(half * half - split * split, 0.0)))
        out[star, 3] = np.sqrt((half + split) / max(half - split, 1e-3))
        out[star, 4] = 0.0
        out[star, 5] = 0.0
        out[star, 6] = ok
        if ok > 0.0:
            peak, saturated = _core(image, flags, x, y, sky, saturation)
            out[star, 4] = peak
            out[star, 5] = saturated


@kernel()
def _weighted(
    image: F32, x: float, y: float, sky: float, wxx: float, wyy: float, wxy: float
) -> tuple[float, float, float, float, float, float]:
    """Light under the Gaussian weight W at (x, y): its sum, mean offset (x, y) and covariance."""
    ny, nx = image.shape
    reach = min(3.0 * np.sqrt(max(wxx, wyy)) + 0.5, 40.0)
    determinant = wxx * wyy - wxy * wxy
    pxx, pyy, pxy = wyy / determinant, wxx / determinant, -wxy / determinant
    s = sx = sy = sxx = syy = sxy = 0.0
    for row in range(max(int(np.ceil(y - reach)), 0), min(int(np.floor(y + reach)), ny - 1) + 1):
        dy = row - y
        for col in range(
            max(int(np.ceil(x - reach)), 0), min(int(np.floor(x + reach)), nx - 1) + 1
        ):
            dx = col - x
            q = pxx * dx * dx + 2.0 * pxy * dx * dy + pyy * dy * dy
            value = image[row, col] - sky
            if q < 9.0 and np.isfinite(value):
                light = np.exp(-0.5 * q) * value
                s += light
                sx += light * dx
                sy += light * dy
                sxx += light * dx * dx
                syy += light * dy * dy
                sxy += light * dx * dy
    if s <= 0.0:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    mx, my = sx / s, sy / s
    return s, mx, my, sxx / s - mx * mx, syy / s - my * my, sxy / s - mx * my


@kernel()
def _core(
    image: F32, flags: U8, x: float, y: float, sky: float, saturation: float
) -> tuple[float, float]:
    """Peak above the sky (ADU) of the 3×3 pixels round (x, y), and 1.0 if one is saturated."""
    ny, nx = image.shape
    masked = flags.shape[0] == ny and flags.shape[1] == nx
    col, row = int(np.rint(x)), int(np.rint(y))
    peak = 0.0
    saturated = 0.0
    for j in range(max(row - 1, 0), min(row + 2, ny)):
        for i in range(max(col - 1, 0), min(col + 2, nx)):
            value = image[j, i]
            if np.isfinite(value):
                peak = max(peak, value - sky)
            if value >= saturation or (masked and flags[j, i] & 2):
                saturated = 1.0
    return peak, saturated


@kernel()
def _unweight(
    cxx: float, cyy: float, cxy: float, wxx: float, wyy: float, wxy: float
) -> tuple[float, float, float, float]:
    """Covariance (C⁻¹ − W⁻¹)⁻¹ of a Gaussian that is C under the weight W; and shift per shift."""
    dc = cxx * cyy - cxy * cxy
    dw = wxx * wyy - wxy * wxy
    pxx, pyy, pxy = cyy / dc - wyy / dw, cxx / dc - wxx / dw, wxy / dw - cxy / dc
    dp = pxx * pyy - pxy * pxy
    if dp <= 0.0 or pxx <= 0.0:
        return 4.0 * cxx, 4.0 * cyy, 4.0 * cxy, 1.0
    nxx, nyy, nxy = pyy / dp, pxx / dp, -pxy / dp
    return nxx, nyy, nxy, min((nxx + nyy) / (cxx + cyy), 4.0)


@kernel()
def aperture_flux(
    begin: int, end: int, image: F32, xs: F64, ys: F64, skies: F64, radius: float, out: F64
) -> None:
    """Sum of light − sky within `radius` px; pixels at the rim count by a linear ramp."""
    ny, nx = image.shape
    reach = radius + 0.5
    for star in range(begin, end):
        x, y = xs[star], ys[star]
        total = 0.0
        for row in range(max(int(np.ceil(y - reach)), 0), min(int(y + reach) + 1, ny)):
            for col in range(max(int(np.ceil(x - reach)), 0), min(int(x + reach) + 1, nx)):
                weight = reach - np.sqrt((row - y) ** 2 + (col - x) ** 2)
                value = image[row, col] - skies[star]
                if weight > 0.0 and np.isfinite(value):
                    total += min(weight, 1.0) * value
        out[star] = total


@kernel(allocates=True)
def linear_fluxes(begin: int, end: int, image: F32, xs: F64, ys: F64, radii: F64, out: F64) -> None:
    """Light within each of `radii` over the mean of the ring from 4/3 to 9/5 of it, (n, radii); 0
    where the frame cuts it off.

    Neighbours in aperture and ring add the same to it in every frame, whatever the seeing.
    """
    for star in range(begin, end):
        for k in range(len(radii)):
            out[star, k] = _linear_flux(image, xs[star], ys[star], radii[k])


@kernel(allocates=True)
def _linear_flux(image: F32, x: float, y: float, radius: float) -> float:
    """Light within `radius` over the mean of its ring: sums of each column first, which is fast."""
    ny, nx = image.shape
    inner, outer = radius * 4.0 / 3.0, radius * 1.8
    if min(x, y, nx - 1 - x, ny - 1 - y) < outer:
        return 0.0
    left, right = int(x - outer), min(int(x + outer) + 2, nx)
    along = (np.arange(left, right) - x) ** 2
    light, area, ring, count = np.zeros((4, right - left))
    for row in range(int(y - outer), min(int(y + outer) + 2, ny)):
        line = image[row, left:right]
        across = (row - y) ** 2
        for k in range(len(line)):
            value = float(line[k])
            fine = abs(value) < np.inf
            r = np.sqrt(across + along[k])
            weight = min(max(radius + 0.5 - r, 0.0), 1.0) if fine else 0.0
            beyond = 1.0 if fine & (inner <= r) & (r <= outer) else 0.0
            light[k] += weight * (value if fine else 0.0)
            area[k] += weight
            ring[k] += beyond * (value if fine else 0.0)
            count[k] += beyond
    if count.sum() == 0.0:
        return 0.0
    return float(light.sum() - area.sum() * ring.sum() / count.sum())
