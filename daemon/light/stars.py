"""Background and stars of one image plane.

The background is measured in cells on a sparse grid of pixels. Stars are *found* as peaks above the
local noise (`candidates`, on 2×2 means where the frame is large) and *measured* at full resolution
with adaptive moments, that is by matching an elliptical Gaussian weight to each star (Bernstein &
Jarvis 2002, AJ 123, 583, section 3). That tells stars from hot pixels (narrower than one pixel),
trails (elongated) and knots of nebulae (wide).

Positions are px, x the column and y the row, centres of pixels at integers.
"""

import base64
import dataclasses
import json
import math
import zlib
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from numba import prange
from scipy.ndimage import median_filter
from scipy.spatial import cKDTree

from calib_library.kernels import kernel
from daemon.light import candidates, clipped
from daemon.light.clipped import SETS, Network

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

FWHM_PER_SIGMA = 2.354820045
BAD = 1
SATURATED = 2

_STORED = 500  # stars kept by StarList.to_json
_BINNED_FROM_PX = 8_000_000  # from here on stars are found on 2×2 means
_SPARSE_FROM_PX = 6_000_000  # from here on the background looks at some of the rows and columns
_NARROWEST_FWHM_PX = 1.05  # below: a single pixel, not light through optics
_APERTURE_FWHM = 3.0  # radius; scales with the seeing, so that the enclosed fraction does not
_SNR_MIN = 5.0
_ALIKE = 0.3  # in ln FWHM: stars of one frame differ by less
_LEAST_WEIGHT = 0.7  # px², variance of the narrowest weight


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Background:
    """The sky of one plane, in cells that divide the image evenly."""

    level_adu: float
    """Median of the cells, ADU."""
    sigma_adu: float
    """Noise of one pixel: median over the cells, ADU."""
    cells: F32
    """(cy, cx) clipped median of each cell, ADU."""
    noise: F32
    """(cy, cx) noise of one pixel in each cell, gradients taken off, ADU."""
    cell_px: int
    """Nominal edge of a cell; the true pitch is shape / cells.shape."""
    shape: tuple[int, int]
    """(ny, nx) of the image."""

    def at(self, x: F64, y: F64) -> F64:
        """Level (ADU) at px positions (n,), bilinear between the centres of the cells."""
        return bilinear_cells(self.cells, self.shape, x, y)

    def to_json(self) -> str:
        """Write the background as JSON, without loss."""
        fields = {
            "level_adu": self.level_adu,
            "sigma_adu": self.sigma_adu,
            "cell_px": self.cell_px,
            "shape": self.shape,
            "grid": self.cells.shape,
            "cells": _pack(self.cells),
            "noise": _pack(self.noise),
        }
        return json.dumps(fields, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        grid = tuple(fields.pop("grid"))
        fields["cells"] = _unpack(fields["cells"], grid)
        fields["noise"] = _unpack(fields["noise"], grid)
        fields["shape"] = tuple(fields["shape"])
        return cls(**fields)


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


def measure_background(image: npt.NDArray[Any], *, cell_px: int = 64) -> Background:
    """Measure level and noise of `image` (ny, nx), ADU, in cells of about `cell_px` px.

    Samples are clipped at 3σ about their median until they settle; the noise is that of second
    differences of pixels where there is no star, to which a gradient or a nebula adds next to
    nothing. Large frames are sampled at every fifth row and column (an odd step, so that a mosaic's
    planes count equally). NaN is left out; a cell without samples takes the frame's
    median. `image` is not changed.
    """
    pixels = np.ascontiguousarray(image, dtype=np.float32)
    ny, nx = pixels.shape
    grid = (max(1, round(ny / cell_px)), max(1, round(nx / cell_px)))
    cells = np.empty(grid, dtype=np.float32)
    noise = np.empty(grid, dtype=np.float32)
    step = 5 if pixels.size >= _SPARSE_FROM_PX else 1
    rows, columns = (
        math.ceil(math.ceil(side / parts) / step)
        for side, parts in zip(pixels.shape, grid, strict=True)
    )
    network = clipped.network(rows * columns)
    _measure_levels(pixels, step, network, cells)
    level = _fill_unseen(cells)
    _measure_noise(pixels, step, network, cells, noise)
    sigma = _fill_unseen(noise)
    return Background(level, sigma, cells, noise, cell_px, (ny, nx))


def _fill_unseen(cells: F32) -> float:
    """Return the median of the cells that are not NaN (0 without any), and fill the others with it,
    in place.
    """
    seen = np.isfinite(cells)
    middle = float(np.median(cells[seen])) if seen.any() else 0.0
    cells[~seen] = middle
    return middle


def cell_means(image: F32) -> F32:
    """Mean of each cell of `image` (ny, nx), ADU: (cy, cx), cells of 8 px (16 in a large frame).

    A mean holds all light of what it covers, whatever the seeing, so that two frames' cells differ
    by nothing but the sky; a median leaves out more of a star the sharper it is. NaN is left out;
    a cell without pixels is NaN. `image` is not changed.
    """
    pixels = np.ascontiguousarray(image, dtype=np.float32)
    cells = np.empty(cell_grid(pixels.shape), dtype=np.float32)
    _mean_cells(pixels, cells)
    return cells


def cell_grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many cells (cy, cx) `cell_means` divides a frame of `shape` (ny, nx) into."""
    ny, nx = shape
    cell_px = 16 if ny * nx >= _SPARSE_FROM_PX else 8
    return max(1, round(ny / cell_px)), max(1, round(nx / cell_px))


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
    found = _find(pixels, flags, sky, binning)
    if len(found) == 0:
        return _empty()
    # The brightest by peak, so that a nebula does not crowd out stars; twice as many as are asked
    # for, because some will not be stars.
    chosen = found[: 2 * limit + 100]
    level = math.inf if saturation_adu is None else saturation_adu
    stars = _measure(pixels, flags, sky, chosen, level)
    estimate = round(len(stars) * len(found) / len(chosen))
    stars = stars.take(slice(limit))
    return dataclasses.replace(stars, found=estimate, shared=_shared(pixels, stars))


def _find(pixels: F32, flags: U8, sky: Background, binning: int) -> F64:
    """(n, 3) candidates: x, y (px of the full image), sigma (px); highest peak first."""
    # A constant image has no noise; the floor keeps its significance finite.
    floor = max(0.5 * sky.sigma_adu, 1e-5 * abs(sky.level_adu), 1e-6)
    noise = np.maximum(median_filter(sky.noise, size=3, mode="nearest"), np.float32(floor))
    return candidates.find(pixels, flags, sky.cells, noise, binning=binning)


def _measure(pixels: F32, flags: U8, sky: Background, chosen: F64, saturation: float) -> StarList:
    """Measure the candidates twice: for the frame's FWHM, then with apertures made to it."""
    x, y, width = (np.ascontiguousarray(column) for column in chosen.T)
    guess = FWHM_PER_SIGMA * float(np.median(width))
    first = np.empty((len(x), 7))
    local = _local_sky(pixels, sky, x, y, guess, sparse=3)
    _moments(pixels, flags, x, y, width, local, saturation, first)
    fwhm = _typical_fwhm(first)
    if fwhm is None:
        return _empty()
    first = first[first[:, _OK] > 0]
    x, y = (np.ascontiguousarray(first[:, column]) for column in (_X, _Y))
    local = _local_sky(pixels, sky, x, y, fwhm)
    second = np.empty((len(x), 7))
    width = np.ascontiguousarray(first[:, _FWHM] / FWHM_PER_SIGMA)
    _moments(pixels, flags, x, y, width, local, saturation, second)
    radius = max(_APERTURE_FWHM * fwhm, 2.5)
    flux = np.empty(len(x))
    _aperture(
        pixels,
        np.ascontiguousarray(second[:, _X]),
        np.ascontiguousarray(second[:, _Y]),
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
    network = clipped.network(math.ceil(most))
    _annulus_sky(pixels, x, y, inner, outer, step, network, sky.at(x, y), local)
    return local


def _shared(pixels: F32, stars: StarList) -> F64:
    """(n, 2) ADU, fluxes in the apertures that other frames have as well."""
    fluxes = np.empty((2, len(stars)))
    for radius, flux in zip((stars.radius_px, math.sqrt(2) * stars.radius_px), fluxes, strict=True):
        _linear_flux(pixels, stars.x, stars.y, radius, flux)
    return np.round(fluxes.T, 2)


_X, _Y, _FWHM, _ELONGATION, _PEAK, _SATURATED, _OK = range(7)


def _typical_fwhm(moments: F64) -> float | None:
    """Return the FWHM of the frame's stars, px: median over the highest unsaturated peaks; where
    knots of a nebula outnumber the stars, over the densest of widths: knots have all, stars one.
    """
    good = (moments[:, _OK] > 0) & (moments[:, _FWHM] >= _NARROWEST_FWHM_PX)
    clean = good & (moments[:, _SATURATED] == 0) & (moments[:, _ELONGATION] < 3)
    pool = moments[clean] if clean.any() else moments[good]
    if len(pool) == 0:
        return None
    highest = np.argsort(-pool[:, _PEAK], kind="stable")[:100]
    widths = np.sort(np.log(pool[highest, _FWHM]))
    middle = float(np.median(widths))
    if np.mean(np.abs(widths - middle) < _ALIKE) < 0.5:
        counts = np.searchsorted(widths, widths + _ALIKE, side="right") - np.arange(len(widths))
        densest = int(np.argmax(counts))  # of equal ones the narrowest
        middle = float(np.median(widths[densest : densest + counts[densest]]))
    return math.exp(middle)


def _starlike(moments: F64, fwhm: float) -> Bool:
    """(n,) True for what has the frame's own star shape; a trailed frame keeps its stars."""
    good = moments[:, _OK] > 0
    width, elongation = moments[:, _FWHM], moments[:, _ELONGATION]
    saturated = moments[:, _SATURATED] > 0
    typical = float(np.median(elongation[good])) if good.any() else 1.0
    longest = np.where(saturated, 2.5, max(1.8, 1.5 * min(typical, 3.0)))
    widest = np.where(saturated, 8.0 * fwhm, 2.0 * fwhm + 1.0)
    narrowest = max(_NARROWEST_FWHM_PX, 0.6 * fwhm)
    shape: Bool = good & (width >= narrowest) & (width <= widest) & (elongation <= longest)
    return shape


def _sorted_list(moments: F64, flux: F64, snr: F64, fwhm: float) -> StarList:
    """Brightest first, one entry a star, rounded to what JSON carries without loss."""
    order = np.lexsort((moments[:, _X], moments[:, _Y], -flux))
    moments, flux, snr = moments[order], flux[order], snr[order]
    keep = np.ones(len(flux), dtype=np.bool_)
    for first, second in sorted(cKDTree(moments[:, :2]).query_pairs(fwhm)) if len(flux) else ():
        if keep[first]:
            keep[second] = False  # the fainter of two that converged on one star
    moments, flux, snr = moments[keep], flux[keep], snr[keep]
    return StarList(
        x=np.round(moments[:, _X], 4),
        y=np.round(moments[:, _Y], 4),
        flux=np.round(flux, 2),
        fwhm=np.round(moments[:, _FWHM], 4),
        peak=np.round(moments[:, _PEAK], 2),
        elongation=np.round(moments[:, _ELONGATION], 4),
        snr=np.round(snr, 2),
        shared=np.column_stack((flux, flux)),
        saturated=moments[:, _SATURATED] > 0,
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


def bilinear_cells(cells: F32, shape: tuple[int, int], x: F64, y: F64) -> F64:
    """Interpolate `cells` (cy, cx) of an image of `shape` at px positions; flat beyond its rim."""
    cy, cx = cells.shape
    u = np.clip((x + 0.5) * cx / shape[1] - 0.5, 0, cx - 1)
    v = np.clip((y + 0.5) * cy / shape[0] - 0.5, 0, cy - 1)
    i = np.minimum(u.astype(np.intp), max(cx - 2, 0))
    j = np.minimum(v.astype(np.intp), max(cy - 2, 0))
    i1, j1 = np.minimum(i + 1, cx - 1), np.minimum(j + 1, cy - 1)
    p, q = u - i, v - j
    upper = cells[j, i] * (1 - p) + cells[j, i1] * p
    lower = cells[j1, i] * (1 - p) + cells[j1, i1] * p
    return np.asarray(upper * (1 - q) + lower * q, dtype=np.float64)


def _pack(array: F32) -> str:
    return base64.b64encode(zlib.compress(array.astype("<f4").tobytes())).decode("ascii")


def _unpack(text: str, shape: tuple[int, ...]) -> F32:
    raw = zlib.decompress(base64.b64decode(text))
    return np.frombuffer(raw, dtype="<f4").astype(np.float32).reshape(shape)


# Kernels. Each cell, row or star is worked out by itself, so the number of threads changes nothing.


@kernel(parallel=True)
def _measure_levels(image: F32, step: int, network: Network, cells: F32) -> None:
    """Clipped median of each cell, from every `step`-th row and column; `network` sorts as many."""
    for group in prange((cells.size + SETS - 1) // SETS):
        _levels_of_some(image, step, network, group * SETS, cells)


@kernel()
def _levels_of_some(image: F32, step: int, network: Network, first: int, cells: F32) -> None:
    """The levels of cells first …, so many as are sorted at once."""
    ny, nx = image.shape
    cy, cx = cells.shape
    room = network.room
    values = np.empty((room, SETS), np.float32)
    counts = np.zeros(SETS, np.int64)
    samples = np.empty(room, np.float32)
    last = min(first + SETS, cells.size)
    for cell in range(first, last):
        j, i = cell // cx, cell % cx
        count = 0
        for y in range(j * ny // cy, (j + 1) * ny // cy, step):
            for x in range(i * nx // cx, (i + 1) * nx // cx, step):
                value = image[y, x]
                if np.isfinite(value):
                    values[count, cell - first] = value
                    count += 1
        counts[cell - first] = count
    clipped.sort(values, counts, network)
    for cell in range(first, last):
        place = cell - first
        level = np.nan
        if counts[place] >= 4:
            level, _ = clipped.median(values, place, counts[place], samples)
        cells[cell // cx, cell % cx] = level


@kernel(parallel=True)
def _measure_noise(image: F32, step: int, network: Network, cells: F32, noise: F32) -> None:
    """Noise of each cell, from second differences of pixels three columns apart.

    To those a slope adds nothing, even one that changes across the cell, as a nebula's; and over
    three pixels the correlation that an interpolated mosaic has is gone. Stars' wings are kept out
    by their light: a difference counts only where the eight pixels between and beside its three are
    not above the level (bilinear from `cells`). Those have noise of their own, so that the choice
    does not depend on the difference.
    """
    for group in prange((cells.size + SETS - 1) // SETS):
        _noise_of_some(image, step, network, group * SETS, cells, noise)


@kernel()
def _noise_of_some(
    image: F32, step: int, network: Network, first: int, cells: F32, noise: F32
) -> None:
    """The noise of cells first …, so many as are sorted at once."""
    cx = cells.shape[1]
    room = network.room
    values = np.empty((room, SETS), np.float32)
    counts = np.zeros(SETS, np.int64)
    samples = np.empty(room, np.float32)
    last = min(first + SETS, cells.size)
    for cell in range(first, last):
        count = _differences(image, step, cells, cell // cx, cell % cx, values[:, cell - first])
        counts[cell - first] = count
    clipped.sort(values, counts, network)
    for cell in range(first, last):
        place = cell - first
        sigma = np.nan
        if counts[place] >= 4:
            _, sigma = clipped.median(values, place, counts[place], samples)
        noise[cell // cx, cell % cx] = sigma / np.sqrt(1.5)


@kernel()
def _differences(image: F32, step: int, cells: F32, j: int, i: int, out: F32) -> int:
    """The second differences of cell (j, i) that count, and their number."""
    ny, nx = image.shape
    cy, cx = cells.shape
    count = 0
    for y in range(j * ny // cy, (j + 1) * ny // cy, step):
        v = min(max((y + 0.5) * cy / ny - 0.5, 0.0), cy - 1.0)
        j0 = min(int(v), max(cy - 2, 0))
        j1 = min(j0 + 1, cy - 1)
        for x in range(i * nx // cx + 5, (i + 1) * nx // cx - 5, step):
            u = min(max((x + 0.5) * cx / nx - 0.5, 0.0), cx - 1.0)
            i0 = min(int(u), max(cx - 2, 0))
            i1 = min(i0 + 1, cx - 1)
            upper = cells[j0, i0] + (u - i0) * (cells[j0, i1] - cells[j0, i0])
            lower = cells[j1, i0] + (u - i0) * (cells[j1, i1] - cells[j1, i0])
            beside = (
                (image[y, x - 5] + image[y, x - 4])
                + (image[y, x - 2] + image[y, x - 1])
                + (image[y, x + 1] + image[y, x + 2])
                + (image[y, x + 4] + image[y, x + 5])
            )
            # A comparison with NaN is false.
            if beside <= 8.0 * (upper + (v - j0) * (lower - upper)):
                bent = image[y, x] - np.float32(0.5) * (image[y, x - 3] + image[y, x + 3])
                if np.isfinite(bent):
                    out[count] = bent
                    count += 1
    return count


@kernel(parallel=True)
def _mean_cells(image: F32, cells: F32) -> None:
    """Mean of each cell, which divide the image evenly."""
    for j in prange(len(cells)):
        _mean_row(image, j, cells)


@kernel()
def _mean_row(image: F32, j: int, cells: F32) -> None:
    """The means of row `j` of the cells: first of each column of pixels, which is fast."""
    ny, nx = image.shape
    cy, cx = cells.shape
    totals = np.zeros(nx)
    counts = np.zeros(nx, np.int32)
    for y in range(j * ny // cy, (j + 1) * ny // cy):
        row = image[y]
        for x in range(nx):
            good = abs(row[x]) < np.inf  # false for NaN
            totals[x] += row[x] if good else np.float32(0.0)
            counts[x] += good
    for i in range(cx):
        total, count = 0.0, 0
        for x in range(i * nx // cx, (i + 1) * nx // cx):
            total += totals[x]
            count += counts[x]
        cells[j, i] = total / count if count > 0 else np.nan


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


@kernel(parallel=True)
def _moments(
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
    for star in prange(len(xs)):
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


@kernel(parallel=True)
def _annulus_sky(
    image: F32, xs: F64, ys: F64, inner: float, outer: float, step: int, network: Network,
    fallback: F64, out: F64,
) -> None:  # fmt: skip
    """Clipped median of the ring inner ≤ r ≤ outer (px) round each star, from every `step`-th row
    and column, ADU; `network` sorts as many values.
    """
    for group in prange((len(xs) + SETS - 1) // SETS):
        first = group * SETS
        _rings_of_some(
            image, xs[first : first + SETS], ys[first : first + SETS], inner, outer,
            step, network, fallback[first : first + SETS], out[first : first + SETS],
        )  # fmt: skip


@kernel()
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


@kernel()
def _ring(image: F32, x: float, y: float, inner: float, outer: float, step: int, out: F32) -> int:
    """The pixels of a ring that are finite, and their number."""
    ny, nx = image.shape
    count = 0
    for row in range(max(int(y - outer), 0), min(int(y + outer) + 1, ny), step):
        for col in range(max(int(x - outer), 0), min(int(x + outer) + 1, nx), step):
            square = (row - y) ** 2 + (col - x) ** 2
            value = image[row, col]
            if inner * inner <= square <= outer * outer and np.isfinite(value):
                out[count] = value
                count += 1
    return count


@kernel(parallel=True)
def _aperture(image: F32, xs: F64, ys: F64, skies: F64, radius: float, out: F64) -> None:
    """Sum of light − sky within `radius` px; pixels at the rim count by a linear ramp."""
    ny, nx = image.shape
    reach = radius + 0.5
    for star in prange(len(xs)):
        x, y = xs[star], ys[star]
        total = 0.0
        for row in range(max(int(np.ceil(y - reach)), 0), min(int(y + reach) + 1, ny)):
            for col in range(max(int(np.ceil(x - reach)), 0), min(int(x + reach) + 1, nx)):
                weight = reach - np.sqrt((row - y) ** 2 + (col - x) ** 2)
                value = image[row, col] - skies[star]
                if weight > 0.0 and np.isfinite(value):
                    total += min(weight, 1.0) * value
        out[star] = total


@kernel(parallel=True)
def _linear_flux(image: F32, xs: F64, ys: F64, radius: float, out: F64) -> None:
    """Light within `radius` px over the mean of the ring from 4/3 to 9/5 of it; 0 where the frame
    cuts it off.

    Neighbours in aperture and ring add the same to it in every frame, whatever the seeing.
    """
    ny, nx = image.shape
    inner, outer = radius * 4.0 / 3.0, radius * 1.8
    for star in prange(len(xs)):
        x, y = xs[star], ys[star]
        out[star] = 0.0
        if min(x, y, nx - 1 - x, ny - 1 - y) < outer:
            continue
        light, area, ring, count = 0.0, 0.0, 0.0, 0
        for row in range(int(y - outer), int(y + outer) + 2):
            for col in range(int(x - outer), int(x + outer) + 2):
                if not (row < ny and col < nx and np.isfinite(image[row, col])):
                    continue
                value = float(image[row, col])
                r = np.sqrt((row - y) ** 2 + (col - x) ** 2)
                weight = min(radius + 0.5 - r, 1.0)
                if weight > 0.0:
                    light += weight * value
                    area += weight
                elif inner <= r <= outer:
                    ring += value
                    count += 1
        if count > 0:
            out[star] = light - area * ring / count
