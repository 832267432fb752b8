"""The sensor's temperature, read off a light: its hot pixels know it better than the header.

A header's temperature that is wrong by 1 °C leaves hot pixels of 1.5 σ; fitted on the light, none.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calib_library.dark_compose import TILE_ROWS, Floats, LightNoise, ReadRows, noise_of
from calib_library.dark_model import (
    WIDEST_GAP_C,
    DarkPlan,
    Source,
    dark_current,
    relative_slope,
    temperature_at,
)
from calib_library.local_median import local_median
from calib_library.match import MasterRecord, celsius, same_exposure

FIT_SIGMAS = 10.0
"""Pixels that take part in the fit of the temperature differ this much between the masters."""
FIT_PIXELS = 20_000
"""The hottest of them are enough."""
LEAST_PIXELS = 50
"""Fewer tell no temperature."""
LEAST_LEVER_C = 2.0
"""Masters closer than this (°C) hardly differ."""
CAUCHY = 2.5
"""Beyond so many σ a pixel counts little in the fit: telegraph noise, a cosmic ray, a star."""
STAR_SIGMAS = 4.0
"""Where the fourth brightest neighbour stands out so many σ there is a star."""
FIT_WITHIN_C, FIT_ERROR_C = 1.5, 0.1
"""A fitted temperature is believed this near to the header's, and with this error at most, °C."""
FIT_STEP_C = 0.05
"""Fitted temperatures are rounded to this, °C: one composed dark serves many frames, and half a
step changes the hot pixels by 0.25 %, a hundredth of what the header's error costs."""


class _Term(NamedTuple):
    source: Source
    base: float
    slope: float


@dataclasses.dataclass(frozen=True, slots=True)
class FitBasis:
    """Masters of two temperatures whose difference shows how a dark changes with temperature.

    D(T) = base + (f(T) / f(reference) − 1) · slope; both are sums of masters, the slope is each
    pixel's dark signal at the reference.
    """

    reference_c: float
    energy_ev: float
    terms: tuple[_Term, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The masters."""
        return tuple(term.source.master_id for term in self.terms)


@dataclasses.dataclass(frozen=True, slots=True)
class FitPixels:
    """The hot pixels that tell the temperature, and what a dark holds around them."""

    basis: FitBasis
    index: npt.NDArray[np.int64]
    """(n,) places in the flattened image."""
    slope: Floats
    """(n,) ADU: the dark signal at the reference temperature."""
    patches: Floats
    """(n, 25) ADU: the dark at the reference temperature, the 5×5 pixels of one colour."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """A temperature that was read off a light."""

    temperature_c: float
    error_c: float
    """1 σ."""
    pixels: int


def fit_basis(made: DarkPlan, masters: Sequence[MasterRecord]) -> FitBasis | None:
    """The masters on which the temperature of the plan's frame can be fitted; where a leg of the
    plan is a single master, another of its exposure joins it. None where there is none.
    """
    pairs: list[tuple[float, Source, Source]] = []
    for leg in made.legs:
        other = leg.other or partner(leg.near, masters)
        if other is None:
            return None
        # In one order, whichever is nearer to this frame: frames share what is found on them.
        cold, warm = sorted((leg.near, other), key=lambda one: one.temperature_c)
        pairs.append((leg.share, cold, warm))
    energy = made.energies.hot_ev
    reference = pairs[0][1].temperature_c
    terms: list[_Term] = []
    for share, cold, warm in pairs:
        # Both in units of the dark current at the reference.
        cold_f, warm_f = (
            dark_current(one.temperature_c, energy) / dark_current(reference, energy)
            for one in (cold, warm)
        )
        w = (1.0 - cold_f) / (warm_f - cold_f)
        slope = share / (warm_f - cold_f)
        terms.append(_Term(cold, share * (1.0 - w), -slope))
        terms.append(_Term(warm, share * w, slope))
    return FitBasis(reference, energy, tuple(terms))


def partner(near: Source, masters: Sequence[MasterRecord]) -> Source | None:
    """Another master of the same exposure, far enough away to tell temperatures apart."""
    others = [
        Source.of(one)
        for one in masters
        if one.temperature_c is not None and same_exposure(one.exposure_s, near.exposure_s)
    ]
    gaps = [(abs(one.temperature_c - near.temperature_c), one.master_id, one) for one in others]
    far = [gap for gap in gaps if LEAST_LEVER_C <= gap[0] <= WIDEST_GAP_C]
    return min(far)[2] if far else None


def fit_pixels(
    basis: FitBasis, rows: Mapping[int, ReadRows], *, shape: tuple[int, int], bayer: bool
) -> FitPixels | None:
    """Find the pixels whose dark depends on temperature by more than 10 σ of the masters' noise;
    None where they are too few. Reads each master once, in tiles.
    """
    weights = np.array([[term.base, term.slope] for term in basis.terms], np.float32)
    readers = [rows[term.source.master_id] for term in basis.terms]

    def slope_rows(first: int, last: int) -> Floats:
        return _sum([read(first, last) for read in readers], weights[:, 1])

    least = FIT_SIGMAS * noise_of(slope_rows, shape, bayer=bayer)
    ny, nx = shape
    around = 4 if bayer else 2
    places, slopes, patches = [], [], []
    for first in range(0, ny, TILE_ROWS):
        last = min(first + TILE_ROWS, ny)
        top, bottom = max(first - around, 0), min(last + around, ny)
        bands = [read(top, bottom) for read in readers]
        slope = _sum(bands, weights[:, 1])
        slope -= local_median(slope, bayer=bayer)
        with np.errstate(invalid="ignore"):
            found = np.argwhere(slope > least)
        y, x = found[:, 0], found[:, 1]
        # A pixel at the border has no 5×5 around it; one in the overlap belongs to another tile.
        keep = (y >= around) & (y < bottom - top - around) & (x >= around) & (x < nx - around)
        keep &= (y + top >= first) & (y + top < last)
        y, x = y[keep], x[keep]
        places.append((y + top) * nx + x)
        slopes.append(slope[y, x])
        patches.append(_patches(_sum(bands, weights[:, 0]), y, x, around // 2))
    index, hot = np.concatenate(places), np.concatenate(slopes)
    if len(index) < LEAST_PIXELS:
        return None
    chosen = np.sort(np.argsort(-hot, kind="stable")[:FIT_PIXELS])
    return FitPixels(basis, index[chosen], hot[chosen], np.concatenate(patches)[chosen])


def _sum(bands: Sequence[Floats], weights: Floats) -> Floats:
    total: Floats = weights[0] * bands[0]
    for band, weight in zip(bands[1:], weights[1:], strict=True):
        total += weight * band
    return total


def _patches(
    image: npt.NDArray[Any], y: npt.NDArray[np.int64], x: npt.NDArray[np.int64], step: int
) -> Floats:
    """(n, 25) the 5×5 same-colour pixels around each place; the 13th is the place itself."""
    offsets = np.arange(-2, 3) * step
    rows = (y[:, None, None] + offsets[:, None]).astype(np.int64)
    columns = (x[:, None, None] + offsets[None, :]).astype(np.int64)
    patches: Floats = image[rows, columns].reshape(-1, 25).astype(np.float32)
    return patches


def fit(
    raw: npt.NDArray[Any],
    pixels: FitPixels,
    *,
    light: LightNoise,
    bayer: bool,
    saturation_adu: float | None = None,
) -> Fit | None:
    """Read the sensor's temperature off a raw light (ny, nx), ADU; None where it does not tell.

    hp(light − base) = c + s · slope, by least squares with Cauchy weights (2.5 σ) on the hot pixels
    that are neither saturated nor in a star; f(T) = (1 + s) f(reference). Takes milliseconds.
    """
    nx = raw.shape[1]
    y, x = np.divmod(pixels.index, nx)
    around = _patches(raw, y, x, 2 if bayer else 1)
    bright = around[:, 12] >= (math.inf if saturation_adu is None else 0.9 * saturation_adu)
    around -= pixels.patches
    centre = around[:, 12].copy()
    around.sort(axis=1)
    level = around[:, 12]
    # Of 25 values the centre may be one of the largest: the fifth then is the fourth neighbour.
    star = around[:, 20] - level > STAR_SIGMAS * light.noise_adu
    good = ~(star | bright) & np.isfinite(centre - level)
    if np.count_nonzero(good) < LEAST_PIXELS:
        return None
    answer = _robust_line(
        pixels.slope[good].astype(np.float64),
        (centre - level)[good].astype(np.float64),
        light,
    )
    if answer is None:
        return None
    s, error = answer
    basis = pixels.basis
    temperature = temperature_at(1.0 + s, basis.reference_c, basis.energy_ev)
    if temperature is None:
        return None
    steepness = (1.0 + s) * relative_slope(temperature, basis.energy_ev)
    return Fit(temperature, error / steepness, int(np.count_nonzero(good)))


def _robust_line(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], light: LightNoise
) -> tuple[float, float] | None:
    """(slope, its error) of y = c + s x by least squares with Cauchy weights.

    A pixel's variance is that of the light, the shot noise of its dark signal, and the spread of
    the energies, which grows with the signal.
    """
    s, c = float(np.median(y / x)), 0.0
    design = np.stack([np.ones_like(x), x], axis=1)
    for _ in range(50):
        signal = np.maximum(x * (1.0 + s), 0.0)
        sigma = np.sqrt(light.noise_adu**2 + signal / light.e_per_adu + (0.05 * signal) ** 2)
        residual = (y - c - s * x) / sigma
        scale = max(1.4826 * float(np.median(np.abs(residual))), 1e-6)
        weight = 1.0 / (sigma**2 * (1.0 + (residual / (CAUCHY * scale)) ** 2))
        normal = design.T @ (weight[:, None] * design)
        if np.linalg.cond(normal) > 1e15:
            return None
        before = s
        c, s = np.linalg.solve(normal, design.T @ (weight * y))
        if abs(s - before) < 1e-7:
            break
    inverse = np.linalg.inv(normal)
    scatter = design * (weight * (y - c - s * x))[:, None]
    return float(s), float(math.sqrt((inverse @ (scatter.T @ scatter) @ inverse)[1, 1]))


def believed(found: Fit | None, header_c: float) -> tuple[float | None, str | None]:
    """(the temperature to use for a frame whose header says `header_c`, or None for the header's;
    why the header's, or None) from what the fit gave.
    """
    if found is None:
        return None, "Too few hot pixels tell the light's temperature: the header's was used."
    if not found.error_c <= FIT_ERROR_C:
        return None, (
            f"The hot pixels tell the light's temperature only within {found.error_c:.2f} °C: the "
            "header's was used."
        )
    if abs(found.temperature_c - header_c) > FIT_WITHIN_C:
        return None, (
            f"The hot pixels say {celsius(found.temperature_c)} where the header says "
            f"{celsius(header_c)}; the header was used: look at the cooler and at the darks."
        )
    return FIT_STEP_C * round(found.temperature_c / FIT_STEP_C), None
