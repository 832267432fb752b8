"""Gain, read noise, linearity and dark current of a camera, from frames that arrive anyway.

Photon transfer (Janesick 2007; `algorithms.md` section 3) on pairs of flats and of biases:

    G  = (S1 + r² S2) / (σ²(F1 − r F2) − (1 + r²)/2 · σ²(B1 − B2))        e-/ADU
    RN = G sqrt(σ²(B1 − B2)/2 − q²/12)                                    e-

S are levels above the bias, r = S1/S2 row by row (lamps flicker, and rows carry noise of their
own), q the step of the values in ADU. Variances are those of 64×64 patches of one Bayer plane,
symmetrically clipped at 4 σ with the truncation made good, so that cosmic rays do not count; G is
the ratio of the sums over the patches that lie within 4 MAD, its error 1.4826 MAD / √n of the
patches' own ratios.

Neighbours that share charge make the variance too small: 0.5 % of coupling makes G 4 % too large.
The correlation of neighbouring pixels shows it, and where it is certain it is made good.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calib_library.combine import Rows
from calib_library.errors import IncompatibleFramesError
from calib_library.robust import mad_sigma
from calib_library.sensor_record import DarkCurrent, Measured, Sensor

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

PATCH = 64
"""px, side of a patch within one Bayer plane."""
PAIRS = 4
"""So many pairs of flats, and of biases, are used at most."""
BAND_PIXELS = 1_000_000
"""Of one plane and one pair: more say no more than the camera's own irregularities allow."""
LEAST_BANDS = 4
"""Bands of rows, spread down the frame."""
CLIP = 4.0
"""Standard deviations …"""
_COARSE = 8.0
"""… after a first cut by the σ of a whole band, in which bright patches have more than the rest."""
CERTAIN = 4.0
"""A correlation of neighbours of so many standard errors is real."""
FULL = 0.9
"""Flats above this fraction of saturation are left out."""
COLOURS = 0.02
"""Gains of a mosaic's planes that differ by more than this fraction are worth a note."""
DRIFT = 0.02
"""Changes of a gain or a read noise below this fraction are not worth a warning …"""
DRIFT_SIGMA = 5.0
"""… nor those within so many standard errors."""
HEADER_AGREES = 0.10
"""A header's e-/ADU is a maker's round figure: this far off it still tells the truth."""

CLAMPED_SIGMA = 5.0
"""A dark whose noise exceeds its level by so many standard errors had its black level moved."""

_TRUNCATION_PASSES = 12
_DISCRETE = 0.4  # steps: below this a noise is hidden by the rounding of its values


def measure(
    flats: Sequence[Rows],
    biases: Sequence[Rows],
    *,
    bayer: bool,
    saturation_adu: float | None = None,
) -> Sensor:
    """Measure a camera from flats of like exposure and the biases (or flat-darks) under them.

    Frames are (ny, nx), read by rows; neighbours in the sequence make a pair. `saturation_adu`:
    where pixels are full; for integers that fill their type it need not be known. Nothing is
    mutated.

    Raises IncompatibleFramesError where there are fewer than two of a kind, shapes differ, the
    frame is smaller than a patch, or no patch of the flats shows photon noise.
    """
    shape, step = _checked(flats, biases, bayer=bayer)
    ceiling = _ceiling(flats[0], saturation_adu)
    flats, biases = flats[: 2 * PAIRS], biases[: 2 * PAIRS]
    n_flat, n_bias = len(flats) // 2, len(biases) // 2
    planes: list[list[_Patches]] = [[] for _ in range(step * step)]
    neighbours = _Neighbours()
    quantum = 0
    offsets: list[float] = []
    for y0, y1 in _bands(shape, step):
        dark = [_read(one, y0, y1) for one in biases[: 2 * n_bias]]
        pedestal = _mean(dark)
        offsets.append(float(np.median(pedestal)))
        raw = [_read(one, y0, y1) for one in flats[:2]]
        quantum = _common_step([dark[0], raw[0]], quantum)
        dark_noise = [
            _difference(dark[2 * k], dark[2 * k + 1], None, step=step, quantum=quantum)
            for k in range(n_bias)
        ]
        for pair in range(n_flat):
            if pair:
                raw = [_read(one, y0, y1) for one in flats[2 * pair : 2 * pair + 2]]
            light = _difference(raw[0], raw[1], pedestal, step=step, quantum=0)
            neighbours.add(light, dark_noise, step=step)
            for plane, found in enumerate(planes):
                found.append(
                    _patches(light, dark_noise, plane, step=step, ceiling=ceiling, n=2 * n_bias)
                )
    return _result(
        [_joined(found) for found in planes],
        neighbours,
        quantum=quantum,
        offset_adu=float(np.median(offsets)),
        pairs=(n_flat, n_bias),
    )


def dark_current(
    darks: Sequence[Rows],
    biases: Sequence[Rows],
    *,
    exposure_s: float,
    temperature_c: float | None,
    gain: Measured,
    bayer: bool,
) -> DarkCurrent:
    """Measure the dark current from two or more darks of `exposure_s` and the biases under them.

    The level above the bias and the noise above the bias's each give it. Where the level is lower
    than the noise allows, the camera clamps its black level, and the noise is believed. Raises as
    `measure`.
    """
    shape, step = _checked(darks, biases, bayer=bayer)
    levels: list[Doubles] = []
    noises: list[Doubles] = []
    for y0, y1 in _bands(shape, step):
        pairs = [[_read(one, y0, y1) for one in frames[:2]] for frames in (darks, biases)]
        lit, unlit = (
            _difference(a, b, None, step=step, quantum=_common_step([a], 0)) for a, b in pairs
        )
        above = _mean(pairs[0]) - _mean(pairs[1])
        for plane in range(step * step):
            levels.append(_clipped_means(_tiles(_plane(above, plane, step))))
            noise, own = (_variances(one, plane, step)[0] for one in (lit, unlit))
            noises.append((noise - own) / 2)
    level, excess = (_robust_mean(np.concatenate(values)) for values in (levels, noises))
    by_level = Measured(
        gain.value * level.value,
        math.hypot(gain.value * level.error, gain.error * level.value),
    )
    by_noise = Measured(
        gain.value**2 * excess.value,
        math.hypot(gain.value**2 * excess.error, 2 * gain.value * gain.error * excess.value),
    )
    margin = CLAMPED_SIGMA * math.hypot(by_level.error, by_noise.error)
    clamped = by_noise.value > max(2 * by_level.value, by_level.value + margin)
    found = by_noise if clamped else by_level
    rate = Measured(found.value / exposure_s, found.error / exposure_s)
    return DarkCurrent(rate, clamped, exposure_s, temperature_c)


def drift(before: Measured, now: Measured, *, what: str, unit: str) -> str | None:
    """Say that a value has changed beyond its errors since it was last measured; None where not."""
    change = now.value - before.value
    error = math.hypot(before.error, now.error)
    if abs(change) <= max(DRIFT_SIGMA * error, DRIFT * abs(before.value)):
        return None
    return (
        f"the {what} was {before.value:.3f} ± {before.error:.3f} {unit} and is now "
        f"{now.value:.3f} ± {now.error:.3f} {unit}: has the camera's driver, mode or gain changed?"
    )


def contradiction(gain: Measured, header_e_per_adu: float | None) -> str | None:
    """Say that a header's e-/ADU (EGAIN, CVF) is not what the frames show; None where it is.

    Never to be asked about GAIN, which is a setting of the camera.
    """
    if not header_e_per_adu:
        return None
    limit = max(HEADER_AGREES * gain.value, DRIFT_SIGMA * gain.error)
    if abs(header_e_per_adu - gain.value) <= limit:
        return None
    inverse = ""
    if abs(1 / header_e_per_adu - gain.value) <= limit:
        inverse = " (the header has it upside down, ADU per electron)"
    return (
        f"the header says {header_e_per_adu:g} e-/ADU, the flats show "
        f"{gain.value:.3f} ± {gain.error:.3f}{inverse}"
    )


# --- frames --------------------------------------------------------------------------------------


def _checked(
    lit: Sequence[Rows], biases: Sequence[Rows], *, bayer: bool
) -> tuple[tuple[int, int], int]:
    """Return the shape (ny, nx) and the step between pixels of a plane."""
    if len(lit) < 2 or len(biases) < 2:
        raise IncompatibleFramesError(
            "two flats (or darks) and two biases are needed to measure a camera; "
            f"there are {len(lit)} and {len(biases)}"
        )
    shapes = {one.shape for one in (*lit, *biases)}
    if len(shapes) > 1 or len(lit[0].shape) != 2:
        raise IncompatibleFramesError("the flats and biases have different sizes")
    ny, nx = lit[0].shape
    step = 2 if bayer else 1
    if min(ny, nx) < step * PATCH:
        raise IncompatibleFramesError(f"a frame of {nx} × {ny} px is too small to measure a camera")
    return (ny, nx), step


def _ceiling(reader: Rows, saturation_adu: float | None) -> float:
    """Level (ADU) above which a patch is left out."""
    if saturation_adu is not None:
        return FULL * saturation_adu
    full = {"uint16": 65535.0, "uint8": 255.0}.get(reader.storage)
    return math.inf if full is None else FULL * full


def _bands(shape: tuple[int, int], step: int) -> list[tuple[int, int]]:
    """Rows to read: bands one patch high, spread evenly, all of a small frame."""
    ny, nx = shape
    height = PATCH * step
    most = ny // height
    per_band = PATCH * (nx // (PATCH * step)) * PATCH
    count = min(most, max(LEAST_BANDS, round(BAND_PIXELS / per_band)))
    starts = np.linspace(0, ny - height, count).astype(int) // step * step
    return [(int(y), int(y) + height) for y in starts]


def _read(reader: Rows, y0: int, y1: int) -> Floats:
    raw = reader.rows(y0, y1)
    values = raw.astype(np.float32)
    if reader.plain:
        values += np.float32(reader.bzero)
    return values


def _mean(frames: Sequence[Floats]) -> Floats:
    return np.asarray(np.mean(frames, axis=0), np.float32)


def _common_step(images: Sequence[Floats], known: int) -> int:
    """Greatest common divisor of the values and `known`; 0 where they are not whole numbers.

    65535 does not count: some programs write it for a full pixel, whatever their step.
    """
    for image in images:
        whole = image.astype(np.int64)
        if not np.array_equal(whole, image):
            return 0
        whole[whole == 65535] = 0
        known = math.gcd(known, int(np.gcd.reduce(whole.ravel()[:4096])))  # mostly 1 at once
        if known == 1:
            break
        known = math.gcd(known, int(np.gcd.reduce(whole, axis=None)))
    return known


# --- differences of two frames -------------------------------------------------------------------


class _Difference(NamedTuple):
    """Two frames' difference within a band, freed of what whole rows have in common."""

    residual: Floats
    """(rows, nx) ADU; 0 where clipped."""
    kept: npt.NDArray[np.bool_]
    """(rows, nx)"""
    signal: Floats | None
    """(rows, nx) ADU: F1 + r² F2 above the bias; None for biases."""
    ratio2: Doubles
    """(rows, step): r² of each row, for each plane in it."""
    row_variance: float
    """ADU², of what the rows have in common, beyond what the pixels' own noise makes of it."""


def _difference(
    a: Floats, b: Floats, pedestal: Floats | None, *, step: int, quantum: int
) -> _Difference:
    """Take two frames' difference row by row, each plane of a mosaic by itself.

    `pedestal`: of flats, whose rows are brought to one level before; `quantum`: the step of the
    values of the difference, which tells where in fact it is clipped (0: it has none).
    """
    rows, nx = a.shape
    residual = np.empty((rows, nx), np.float32)
    kept = np.empty((rows, nx), np.bool_)
    signal = None if pedestal is None else np.empty((rows, nx), np.float32)
    ratio2 = np.ones((rows, step))
    shared = []
    for phase in range(step):
        first, second = a[:, phase::step], b[:, phase::step]
        if pedestal is not None and signal is not None:
            first, second = first - pedestal[:, phase::step], second - pedestal[:, phase::step]
            below = np.median(second, axis=1)
            rough = np.median(first, axis=1) / np.where(below > 0, below, np.inf)
            ratio = _refined_ratio(first, second, rough.astype(np.float32))
            ratio2[:, phase] = ratio.astype(np.float64) ** 2
            second = second * ratio[:, None]
            signal[:, phase::step] = first + second * ratio[:, None]
        values, good, centres, sigma = _centred(first - second, quantum)
        for row in range(step):
            _level(values[row::step], good[row::step])
        residual[:, phase::step], kept[:, phase::step] = values, good
        shared.append(float(np.var(centres, ddof=1)) - sigma**2 / values.shape[1])
    return _Difference(residual, kept, signal, ratio2, max(0.0, float(np.mean(shared))))


def _refined_ratio(first: Floats, second: Floats, ratio: Floats) -> Floats:
    """Ratio of two rows' levels from all their pixels but the wild ones, (rows,)."""
    rest = first - ratio[:, None] * second
    good = np.abs(rest) <= _COARSE * _start_sigma(rest, 0)
    above = np.where(good, first, 0).sum(axis=1, dtype=np.float64)
    below = np.where(good, second, 0).sum(axis=1, dtype=np.float64)
    safe = np.where(below > 0, below, np.inf)
    return np.asarray(above / safe, np.float32)


def _centred(
    difference: Floats, quantum: int
) -> tuple[Floats, npt.NDArray[np.bool_], Doubles, float]:
    """(rows minus their clipped mean, which pixels count, the rows' means, σ in ADU)."""
    centres = np.median(difference, axis=1).astype(np.float64)
    values = difference - centres[:, None].astype(np.float32)
    reach = _COARSE * _start_sigma(values, quantum)
    good = np.abs(values) <= reach
    counts = np.maximum(1, good.sum(axis=1))
    shift = np.where(good, values, 0).sum(axis=1, dtype=np.float64) / counts
    values -= shift[:, None].astype(np.float32)
    good = np.abs(values) <= reach
    values[~good] = 0
    sigma = math.sqrt(float(np.square(values, dtype=np.float64).sum()) / max(1, int(good.sum())))
    return values, good, centres + shift, sigma


def _level(values: Floats, good: npt.NDArray[np.bool_]) -> None:
    """Take its mean off each patch of a plane's band (PATCH, columns), in place: the light of a
    twilight moves from frame to frame.
    """
    starts = np.arange(0, values.shape[1], PATCH)
    total = np.add.reduceat(values.sum(axis=0, dtype=np.float64), starts)
    count = np.add.reduceat(good.sum(axis=0), starts)
    mean = (total / np.maximum(1, count)).astype(np.float32)
    values -= np.repeat(mean, PATCH)[: values.shape[1]]
    values[~good] = 0


def _start_sigma(values: Floats, quantum: int) -> float:
    """A first guess of σ; a MAD of 0 only says that the noise is below one step of the values."""
    thin = values[:: max(1, len(values) // 16)]
    return max(1.4826 * float(np.median(np.abs(thin))), 0.75 * quantum, 1e-6)


def _plane(image: npt.NDArray[Any], plane: int, step: int) -> npt.NDArray[Any]:
    return image[plane // step :: step, plane % step :: step]


def _tiles(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The patches of a band, (patches, PATCH²), of a plane (PATCH, columns)."""
    columns = plane.shape[1] // PATCH
    cut = plane[:, : columns * PATCH].reshape(PATCH, columns, PATCH)
    return cut.transpose(1, 0, 2).reshape(columns, PATCH * PATCH)


def _variances(
    difference: _Difference, plane: int, step: int
) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Variance (ADU²) of each patch of a plane, (patches,), and which pixels were kept.

    Clipped at ±4 σ again and again until that changes nothing: then σ² is the clipped variance over
    the share of a normal distribution's variance that lies within its own ±4 σ.
    """
    values = _tiles(_plane(difference.residual, plane, step)).astype(np.float64)
    good = _tiles(_plane(difference.kept, plane, step)).astype(np.bool_)
    within = math.erf(CLIP / math.sqrt(2))
    density = math.exp(-(CLIP**2) / 2) / math.sqrt(2 * math.pi)
    share = 1 - 2 * CLIP * density / within
    columns = difference.residual.shape[1] // step
    # The degrees of freedom that a row's mean, or ratio, and the patch's mean took.
    lost = (1 - 1 / columns) * (1 - 1 / PATCH**2)
    variance = np.zeros(len(values))
    for _ in range(_TRUNCATION_PASSES):
        count = np.maximum(2, good.sum(axis=1))
        new = np.square(np.where(good, values, 0)).sum(axis=1) / count / share / lost
        if np.array_equal(new, variance):
            break
        variance = new
        good &= np.abs(values) <= CLIP * np.sqrt(variance)[:, None]
    return variance, good


# --- patches -------------------------------------------------------------------------------------


class _Patches(NamedTuple):
    """Patches of one plane, (n,) each."""

    signal: Doubles
    """ADU: S1 + r² S2."""
    shot: Doubles
    """ADU²: the variance of F1 − r F2 that light made."""
    bias: Doubles
    """ADU²: the variance of B1 − B2."""
    level: Doubles
    """ADU above the bias, of one flat."""
    row: float
    """ADU²: the variance of what the rows of one bias have in common."""


def _patches(
    light: _Difference,
    dark: Sequence[_Difference],
    plane: int,
    *,
    step: int,
    ceiling: float,
    n: int,
) -> _Patches:
    """Measure the patches of one plane of a band; full and empty ones are left out."""
    assert light.signal is not None
    total, good = _variances(light, plane, step)
    signal = _tiles(_plane(light.signal, plane, step)).astype(np.float64)
    signal = np.where(good, signal, 0).sum(axis=1) / np.maximum(1, good.sum(axis=1))
    ratio2 = float(light.ratio2[plane // step :: step, plane % step].mean())
    bias = np.mean([_variances(one, plane, step)[0] for one in dark], axis=0)
    # The pedestal is the mean of n biases, of which F1 − r F2 holds the part 1 − r.
    own = (1 + ratio2) / 2 + (1 - math.sqrt(ratio2)) ** 2 / (2 * n)
    level = signal / (1 + ratio2)
    shot = total - own * bias
    lit = (level > 0) & (level < ceiling) & (shot > 0)
    row = float(np.mean([one.row_variance for one in dark])) / 2
    return _Patches(signal[lit], shot[lit], bias[lit], level[lit], row)


def _joined(found: Sequence[_Patches]) -> _Patches:
    return _Patches(
        signal=np.concatenate([one.signal for one in found]),
        shot=np.concatenate([one.shot for one in found]),
        bias=np.concatenate([one.bias for one in found]),
        level=np.concatenate([one.level for one in found]),
        row=float(np.mean([one.row for one in found])),
    )


def _clipped_means(tiles: Floats) -> Doubles:
    """Mean of each patch (patches, PATCH²) within 4 σ of its median: hot pixels do not count."""
    middle = np.median(tiles, axis=1, keepdims=True)
    rest = tiles - middle
    good = np.abs(rest) <= CLIP * _start_sigma(rest, 1)
    total = np.where(good, rest, 0).sum(axis=1, dtype=np.float64)
    return np.asarray(middle[:, 0] + total / np.maximum(1, good.sum(axis=1)), np.float64)


def _inliers(values: Doubles) -> npt.NDArray[np.bool_]:
    rest = np.abs(values - np.median(values))
    return np.asarray(rest <= 4 * np.median(rest), np.bool_)


def _robust_mean(values: Doubles) -> Measured:
    good = values[_inliers(values)]
    spread = mad_sigma(values)
    return Measured(float(good.mean()), spread / math.sqrt(len(good)))


def _gain(found: _Patches) -> tuple[Measured, npt.NDArray[np.bool_]]:
    """Ratio of sums over the patches that agree; which they are."""
    ratios = found.signal / found.shot
    good = _inliers(found.shot / found.signal)  # a variance is less skewed than its inverse
    spread = mad_sigma(ratios)
    value = float(found.signal[good].sum() / found.shot[good].sum())
    return Measured(value, spread / math.sqrt(int(good.sum()))), good


def _trend(found: _Patches, good: npt.NDArray[np.bool_]) -> Measured:
    """How far the response falls short of a line at the highest level.

    Of y = x − a x² the variance is (1 − 2 a x)² x, so that the apparent gain rises as 1 + 3 a x:
    a third of its rise, of the straight line through the patches.
    """
    level, ratio = found.level[good], (found.signal / found.shot)[good]
    centre = level.mean()
    spread = level - centre
    moment = float(np.square(spread).sum())
    if len(level) < 3 or moment == 0:
        return Measured(0.0, math.inf)
    slope = float((spread * ratio).sum()) / moment
    rest = ratio - ratio.mean() - slope * spread
    error = math.sqrt(float(np.square(rest).sum()) / (len(level) - 2) / moment)
    zero = float(ratio.mean()) - slope * centre
    per = float(level.max()) / (3 * zero)
    return Measured(slope * per, error * per)


class _Neighbours:
    """Sums up the covariance of pixels beside and above one another."""

    def __init__(self) -> None:
        self.covariance = 0.0
        """ADU², of the light alone, right and lower neighbours together."""
        self.variance = 0.0
        self.pixels = 0

    def add(self, light: _Difference, dark: Sequence[_Difference], *, step: int) -> None:
        """Take in one pair of flats; what the biases show as well is not the light's."""
        own = (1 + float(light.ratio2.mean())) / 2
        dark_sums = np.mean([_lag_sums(one, step) for one in dark], axis=0)
        covariance, variance = _lag_sums(light, step) - own * dark_sums
        n = light.residual.size
        self.covariance += float(covariance) * n
        self.variance += float(variance) * n
        self.pixels += n

    def coupling(self) -> Measured:
        """Fraction of its signal that a pixel gives to each of its four neighbours.

        The kernel (c; c, 1 − 4c, c; c) makes the covariance with a neighbour 2c of the variance,
        in each of the two directions. The error is that of white noise, 1/√n for each.
        """
        if self.variance <= 0:
            return Measured(0.0, math.inf)
        return Measured(self.covariance / self.variance / 4, math.sqrt(2 / self.pixels) / 4)


def _lag_sums(one: _Difference, step: int) -> Doubles:
    """(covariance with the right neighbour + with the lower one, variance), ADU²."""
    values, kept = one.residual, one.kept
    across = float(np.vdot(values[:, 1:], values[:, :-1]))
    down = float(np.vdot(values[1:], values[:-1]))
    n_across = max(1, int(np.count_nonzero(kept[:, 1:] & kept[:, :-1])))
    n_down = max(1, int(np.count_nonzero(kept[1:] & kept[:-1])))
    variance = float(np.vdot(values, values)) / max(1, int(np.count_nonzero(kept)))
    # Pixels whose common mean was taken off are anticorrelated; in a mosaic neighbours have
    # different means.
    lost = variance * (1 / values.shape[1] + 2 / PATCH**2) if step == 1 else 0.0
    return np.array([across / n_across + lost + down / n_down, variance])


def _result(
    planes: Sequence[_Patches],
    neighbours: _Neighbours,
    *,
    quantum: int,
    offset_adu: float,
    pairs: tuple[int, int],
) -> Sensor:
    if any(len(one.signal) == 0 for one in planes):
        raise IncompatibleFramesError(
            "the flats show no photon noise: they are saturated, or hold no light"
        )
    gains: list[Measured] = []
    noises: list[Measured] = []
    trends: list[Measured] = []
    coupling = neighbours.coupling()
    certain = coupling.value > CERTAIN * coupling.error
    # Of the variance the kernel leaves (1 − 4c)² + 4c².
    left = (1 - 4 * coupling.value) ** 2 + 4 * coupling.value**2 if certain else 1.0
    left_error = 8 * coupling.error if certain else 0.0
    for one in planes:
        raw, good = _gain(one)
        error = math.hypot(raw.error * left, raw.value * left_error)
        gains.append(Measured(raw.value * left, error))
        trends.append(_trend(one, good))
        noises.append(_read_noise(one, gains[-1], quantum))
    gain = _weighted(gains)
    levels = np.concatenate([one.level for one in planes])
    sigma_adu = math.sqrt(float(np.median(np.concatenate([one.bias for one in planes]))) / 2)
    return Sensor(
        gain=gain,
        read_noise=_weighted(noises),
        plane_gains=tuple(gains),
        row_noise=gain.value * math.sqrt(float(np.mean([one.row for one in planes]))),
        offset_adu=offset_adu,
        level_adu=(float(levels.min()), float(levels.max())),
        nonlinearity=_weighted(trends),
        coupling=coupling,
        step_adu=quantum,
        pairs=pairs,
        notes=_notes(gains, coupling, certain=certain, hidden=sigma_adu < _DISCRETE * quantum),
    )


def _read_noise(found: _Patches, gain: Measured, quantum: int) -> Measured:
    variance = _robust_mean(found.bias)
    noise2 = max(0.0, variance.value / 2 - quantum**2 / 12)
    noise = math.sqrt(noise2)
    error_adu = variance.error / (4 * noise) if noise else math.sqrt(variance.error / 2)
    return Measured(gain.value * noise, math.hypot(gain.value * error_adu, gain.error * noise))


def _weighted(values: Sequence[Measured]) -> Measured:
    """Combine planes by 1/error²; by the plain mean where an error is unknown.

    Planes that differ by more than their errors make the error larger by √(χ²/(n − 1)).
    """
    if len(values) == 1:
        return values[0]
    errors = [one.error for one in values]
    if not all(0 < error < math.inf for error in errors):
        return Measured(math.fsum(one.value for one in values) / len(values), max(errors))
    weights = [error**-2 for error in errors]
    total = math.fsum(weights)
    mean = math.fsum(w * one.value for w, one in zip(weights, values, strict=True)) / total
    chi2 = math.fsum(w * (one.value - mean) ** 2 for w, one in zip(weights, values, strict=True))
    return Measured(mean, math.sqrt(max(1.0, chi2 / (len(values) - 1)) / total))


def _notes(
    gains: Sequence[Measured], coupling: Measured, *, certain: bool, hidden: bool
) -> tuple[str, ...]:
    notes = []
    if certain:
        notes.append(
            f"Neighbouring pixels share {coupling.value:.2%} of their charge; the gain allows for "
            "it."
        )
    low, high = min(gains), max(gains)
    apart = CERTAIN * math.hypot(low.error, high.error)
    if high.value - low.value > max(apart, COLOURS * low.value):
        notes.append(
            f"The colours differ: {low.value:.3f} to {high.value:.3f} e-/ADU. A white balance "
            "that the camera applies does that; switch it off."
        )
    if hidden:
        notes.append(
            "The read noise is hidden by the rounding of the values: it may be smaller than this."
        )
    return tuple(notes)
