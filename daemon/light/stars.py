"""The stars of one image plane.

Stars are *found* as peaks above the local noise (`candidates`, on 2×2 means where the frame is
large) and *measured* at full resolution with adaptive moments (`moments`). That tells stars from
hot pixels (narrower than one pixel), trails (elongated) and knots of nebulae (wide).

Positions are px, x the column and y the row, centres of pixels at integers.
"""

import dataclasses
import json
import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.ndimage import median_filter
from scipy.spatial import cKDTree

from calib_library.kernels import side_by_side
from daemon.light import candidates, clipped, moments
from daemon.light.background import Background, measure_background

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

FWHM_PER_SIGMA = 2.354820045

_STORED = 500  # stars kept by StarList.to_json
_BINNED_FROM_PX = 8_000_000  # from here on stars are found on 2×2 means
_NARROWEST_FWHM_PX = 1.05  # below: a single pixel, not light through optics
_APERTURE_FWHM = 3.0  # radius; scales with the seeing, so that the enclosed fraction does not
_SNR_MIN = 5.0
_ALIKE = 0.3  # in ln FWHM: stars of one frame differ by less


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StarList:
    """The stars of one plane, brightest first; all arrays are (n,)."""

    x: F64
    """px, the column."""
    y: F64
    """px, the row."""
    flux: F64
    """ADU above the local sky within 3 FWHM; too low for a saturated star."""
    fwhm: F64
    """px, of the matched Gaussian, geometric mean of the axes; it includes the pixel, and is 10 %
    more than the width at half maximum of a Moffat profile of β = 3.5."""
    peak: F64
    """ADU above the local sky, of the highest pixel."""
    elongation: F64
    """Major over minor axis, ≥ 1."""
    snr: F64
    """Flux over the background noise in the aperture."""
    shared: F64
    """(n, 2) ADU within `radius_px` and √2 · `radius_px`, over the mean of a ring: linear in the
    image, to be compared with other frames. 0 where the ring is cut off."""
    saturated: Bool
    """The core is clipped: good for a position, not for a flux or a width."""
    found: int
    """Stars in the whole frame (estimated where there are more than the list holds)."""
    radius_px: float
    """px, a power of √2 and at least 3 FWHM: frames of different seeing have one in common."""

    def __len__(self) -> int:
        return len(self.x)

    @property
    def xy(self) -> F64:
        """Positions, (n, 2) px."""
        return np.column_stack((self.x, self.y))

    def take(self, index: npt.NDArray[Any] | slice) -> Self:
        """Pick the stars that `index` selects (mask, indices or slice), in its order."""
        arrays = {name: getattr(self, name)[index] for name in _COLUMNS}
        return dataclasses.replace(self, **arrays)

    def to_json(self) -> str:
        """Write the 500 brightest as one line of JSON; `from_json` gives them back bit for bit."""
        fields: dict[str, Any] = {n: getattr(self, n)[:_STORED].tolist() for n in _COLUMNS}
        fields["saturated"] = np.flatnonzero(self.saturated[:_STORED]).tolist()
        fields["found"] = self.found
        fields["radius_px"] = self.radius_px
        return json.dumps(fields, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        saturated = np.zeros(len(fields["x"]), dtype=np.bool_)
        saturated[np.array(fields.pop("saturated"), dtype=np.intp)] = True
        found = int(fields.pop("found"))
        radius = float(fields.pop("radius_px"))
        arrays = {name: np.array(values, dtype=np.float64) for name, values in fields.items()}
        arrays["shared"] = arrays["shared"].reshape(-1, 2)
        return cls(**arrays, saturated=saturated, found=found, radius_px=radius)


_COLUMNS = ("x", "y", "flux", "fwhm", "peak", "elongation", "snr", "shared", "saturated")


def detect(
    image: F32,
    *,
    mask: U8 | None = None,
    background: Background | None = None,
    saturation_adu: float | None = None,
    limit: int = 500,
) -> StarList:
    """Find and measure the stars of `image` (ny, nx) float32, ADU; the brightest `limit` of them.

    `mask` (ny, nx) uint8 has bit 1 for bad pixels (not searched) and bit 2 for saturated ones;
    `saturation_adu` marks saturation by level as well. Left out are single hot pixels, trails and
    other elongated things, and what is much wider than the frame's stars. NaN counts as sky.
    A frame without stars gives an empty list. Nothing is changed.
    """
    sky = background if background is not None else measure_background(image)
    pixels = np.ascontiguousarray(image, dtype=np.float32)
    flags = np.zeros((1, 1), dtype=np.uint8) if mask is None else np.ascontiguousarray(mask)
    binning = 2 if pixels.size >= _BINNED_FROM_PX else 1
    # The brightest by peak, so that a nebula does not crowd out stars; twice as many as are asked
    # for, because some will not be stars.
    chosen, found = _find(pixels, flags, sky, binning, most=2 * limit + 100)
    if found == 0:
        return _empty()
    level = math.inf if saturation_adu is None else saturation_adu
    stars = _measure(pixels, flags, sky, chosen, level)
    estimate = round(len(stars) * found / len(chosen))
    stars = stars.take(slice(limit))
    return dataclasses.replace(stars, found=estimate, shared=_shared(pixels, stars))


def _find(pixels: F32, flags: U8, sky: Background, binning: int, *, most: int) -> tuple[F64, int]:
    """(n, 3) candidates: x, y (px of the full image), sigma (px); and how many there are in all."""
    # A constant image has no noise; the floor keeps its significance finite.
    floor = max(0.5 * sky.sigma_adu, 1e-5 * abs(sky.level_adu), 1e-6)
    noise = np.maximum(median_filter(sky.noise, size=3, mode="nearest"), np.float32(floor))
    return candidates.find(pixels, flags, sky.cells, noise, binning=binning, most=most)


def _measure(pixels: F32, flags: U8, sky: Background, chosen: F64, saturation: float) -> StarList:
    """Measure the candidates twice: for the frame's FWHM, then with apertures made to it."""
    x, y, width = (np.ascontiguousarray(column) for column in chosen.T)
    guess = FWHM_PER_SIGMA * float(np.median(width))
    first = np.empty((len(x), 7))
    local = _local_sky(pixels, sky, x, y, guess, sparse=3)
    side_by_side(moments.adaptive, len(x), pixels, flags, x, y, width, local, saturation, first)
    fwhm = _typical_fwhm(first)
    if fwhm is None:
        return _empty()
    first = first[first[:, moments.OK] > 0]
    x, y = (np.ascontiguousarray(first[:, column]) for column in (moments.X, moments.Y))
    local = _local_sky(pixels, sky, x, y, fwhm)
    second = np.empty((len(x), 7))
    width = np.ascontiguousarray(first[:, moments.FWHM] / FWHM_PER_SIGMA)
    side_by_side(moments.adaptive, len(x), pixels, flags, x, y, width, local, saturation, second)
    radius = max(_APERTURE_FWHM * fwhm, 2.5)
    flux = np.empty(len(x))
    side_by_side(
        moments.aperture_flux,
        len(x),
        pixels,
        np.ascontiguousarray(second[:, moments.X]),
        np.ascontiguousarray(second[:, moments.Y]),
        local,
        radius,
        flux,
    )
    snr = flux / (max(sky.sigma_adu, 1e-9) * math.sqrt(math.pi) * radius)
    # A Gaussian filter of the star's own width sees it at a better ratio than the aperture.
    matched = snr * _APERTURE_FWHM * FWHM_PER_SIGMA / 2
    starlike = _starlike(second, fwhm) & (flux > 0) & (matched >= _SNR_MIN)
    return _sorted_list(second[starlike], flux[starlike], snr[starlike], fwhm)


def _local_sky(
    pixels: F32, sky: Background, x: F64, y: F64, fwhm: float, *, sparse: int = 1
) -> F64:
    """(n,) ADU: the ring from 4 to 6 FWHM round each star, of which a `sparse`-th of rows and
    columns is looked at; the cells' level where it is cut off.
    """
    inner = max(4.0 * fwhm, 6.0)
    local = np.empty(len(x))
    outer = 1.5 * inner + 2.0
    step = max(1, int(outer / 15.0), min(sparse, int(outer / 8.0)))
    # Each pixel's square of `step` px, put together, lies within half its diagonal of the ring.
    most = math.pi * ((outer / step + 0.71) ** 2 - max(inner / step - 0.71, 0.0) ** 2)
    network = clipped.network(math.ceil(most) + 1)
    side_by_side(
        moments.ring_sky, -(-len(x) // clipped.SETS), pixels, x, y, inner, outer, step, network,
        sky.at(x, y), local,
    )  # fmt: skip
    return local


def _shared(pixels: F32, stars: StarList) -> F64:
    """(n, 2) ADU, fluxes in the apertures that other frames have as well."""
    fluxes = np.empty((len(stars), 2))
    radii = np.array([stars.radius_px, math.sqrt(2) * stars.radius_px])
    side_by_side(moments.linear_fluxes, len(stars), pixels, stars.x, stars.y, radii, fluxes)
    return np.round(fluxes, 2)


def _typical_fwhm(measured: F64) -> float | None:
    """Return the FWHM of the frame's stars, px: median over the highest unsaturated peaks; where
    knots of a nebula outnumber the stars, over the densest of widths: knots have all, stars one.
    """
    good = (measured[:, moments.OK] > 0) & (measured[:, moments.FWHM] >= _NARROWEST_FWHM_PX)
    clean = good & (measured[:, moments.SATURATED] == 0) & (measured[:, moments.ELONGATION] < 3)
    pool = measured[clean] if clean.any() else measured[good]
    if len(pool) == 0:
        return None
    highest = np.argsort(-pool[:, moments.PEAK], kind="stable")[:100]
    widths = np.sort(np.log(pool[highest, moments.FWHM]))
    middle = float(np.median(widths))
    if np.mean(np.abs(widths - middle) < _ALIKE) < 0.5:
        counts = np.searchsorted(widths, widths + _ALIKE, side="right") - np.arange(len(widths))
        densest = int(np.argmax(counts))  # of equal ones the narrowest
        middle = float(np.median(widths[densest : densest + counts[densest]]))
    return math.exp(middle)


def _starlike(measured: F64, fwhm: float) -> Bool:
    """(n,) True for what has the frame's own star shape; a trailed frame keeps its stars."""
    good = measured[:, moments.OK] > 0
    width, elongation = measured[:, moments.FWHM], measured[:, moments.ELONGATION]
    saturated = measured[:, moments.SATURATED] > 0
    typical = float(np.median(elongation[good])) if good.any() else 1.0
    longest = np.where(saturated, 2.5, max(1.8, 1.5 * min(typical, 3.0)))
    widest = np.where(saturated, 8.0 * fwhm, 2.0 * fwhm + 1.0)
    narrowest = max(_NARROWEST_FWHM_PX, 0.6 * fwhm)
    shape: Bool = good & (width >= narrowest) & (width <= widest) & (elongation <= longest)
    return shape


def _sorted_list(measured: F64, flux: F64, snr: F64, fwhm: float) -> StarList:
    """Brightest first, one entry a star, rounded to what JSON carries without loss."""
    order = np.lexsort((measured[:, moments.X], measured[:, moments.Y], -flux))
    measured, flux, snr = measured[order], flux[order], snr[order]
    keep = np.ones(len(flux), dtype=np.bool_)
    for first, second in sorted(cKDTree(measured[:, :2]).query_pairs(fwhm)) if len(flux) else ():
        if keep[first]:
            keep[second] = False  # the fainter of two that converged on one star
    measured, flux, snr = measured[keep], flux[keep], snr[keep]
    return StarList(
        x=np.round(measured[:, moments.X], 4),
        y=np.round(measured[:, moments.Y], 4),
        flux=np.round(flux, 2),
        fwhm=np.round(measured[:, moments.FWHM], 4),
        peak=np.round(measured[:, moments.PEAK], 2),
        elongation=np.round(measured[:, moments.ELONGATION], 4),
        snr=np.round(snr, 2),
        shared=np.column_stack((flux, flux)),
        saturated=measured[:, moments.SATURATED] > 0,
        found=len(flux),
        radius_px=_shared_radius(fwhm),
    )


def _shared_radius(fwhm: float) -> float:
    """Return the power of √2 from 3 `fwhm` on, px."""
    return float(2 ** (math.ceil(2 * math.log2(max(_APERTURE_FWHM * fwhm, 2.5))) / 2))


def _empty() -> StarList:
    none = np.empty(0)
    columns = (none, none, none, none, none, none, none, np.empty((0, 2)))
    return StarList(*columns, np.empty(0, dtype=np.bool_), 0, 1.0)
