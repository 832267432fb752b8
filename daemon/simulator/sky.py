"""A sky with truth: stars and a nebula, free of noise, in any filter, seeing and pointing.

Positions are pixels of the *reference* frame (x the column, y the row, pixel centres at integers).
Light is counted in photo-electrons per second, above the atmosphere's glow, at transparency 1.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from calib_library.kernels import kernel

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

MOFFAT_BETA = 3.5
"""Exponent of the star profile (1 + r²/α²)^−β, amid measured 2.5 to 4.8."""

_FAINTEST_E_S = 2e-3  # a star's stamp ends where its light falls below this, e-/s/px
_CANVAS_PX = 1400  # the nebula's grid has at most about this many cells along its longer side
_SECOND_RADIATION_NM_K = 1.43878e7  # hc/k, CODATA


@dataclasses.dataclass(frozen=True, slots=True)
class Band:
    """One filter's passband, and what part of each of the nebula's lights it lets through."""

    centre_nm: float
    width_nm: float
    hydrogen: float
    oxygen: float
    sulphur: float
    reflection: float
    """Scattered star light, bluer than its stars."""
    sky_e_s: float
    """e-/s/px, the glow of a rural sky without a moon."""


BANDS: Mapping[str, Band] = {
    "L": Band(550.0, 300.0, 1.00, 0.95, 0.90, 1.00, 4.2),
    "R": Band(640.0, 100.0, 0.92, 0.00, 0.85, 0.16, 1.5),
    "G": Band(530.0, 100.0, 0.02, 0.62, 0.00, 0.30, 1.5),
    "B": Band(450.0, 100.0, 0.13, 0.66, 0.00, 0.54, 1.2),
    "Ha": Band(656.3, 6.0, 0.90, 0.00, 0.00, 0.01, 0.08),
    "OIII": Band(500.7, 6.0, 0.00, 0.90, 0.00, 0.02, 0.09),
    "SII": Band(672.4, 6.0, 0.00, 0.00, 0.90, 0.01, 0.08),
}
"""Filters that the simulated sky knows, by the name a filter wheel would give them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sky:
    """The truth above one target. Arrays are never changed after `make_sky`."""

    shape: tuple[int, int]
    """(ny, nx) of the reference frame, px."""
    x: Float64
    """(n,) reference px; the stars reach beyond the frame, so that dithers stay full."""
    y: Float64
    flux: Float64
    """(n,) e-/s in a band 100 nm wide at 550 nm, brightest first."""
    temperature_k: Float64
    """(n,) K: the colour of each star is that of a black body."""
    nebula: Mapping[str, Float32]
    """Light by source (`hydrogen`, `oxygen`, `sulphur`, `reflection`): coefficients (gy, gx) of a
    cubic B-spline, e-/s/px."""
    origin_px: float
    """Reference px of the spline's first coefficient, on both axes."""
    cell_px: float
    """Reference px between two coefficients."""

    def star_flux(self, band: str) -> Float64:
        """Each star's flux in a filter, (n,) e-/s. Raises ValueError for an unknown filter."""
        passband = band_of(band)
        colour = _photons(passband.centre_nm, self.temperature_k) / _photons(
            550.0, self.temperature_k
        )
        flux: Float64 = self.flux * colour * (passband.width_nm / 100.0)
        return flux

    def render(
        self,
        band: str,
        *,
        fwhm_px: float,
        matrix: Float64 | None = None,
        shape: tuple[int, int] | None = None,
        with_stars: bool = True,
        with_nebula: bool = True,
    ) -> Float32:
        """Render the noiseless scene, (ny, nx) float32, e-/s/px, without the sky's glow.

        `matrix` maps frame px to reference px, 3×3, affine (identity: the reference itself);
        `shape` is the frame's (ny, nx), the reference's where it is None. `fwhm_px` is the width
        of a star on the sensor, the pixel's own width included. The nebula is as smooth as the
        sky gave it: it has no structure finer than the seeing, which does not blur it further.
        Raises ValueError for an unknown filter.
        """
        passband = band_of(band)
        to_reference = np.eye(3) if matrix is None else np.asarray(matrix, dtype=np.float64)
        image = np.zeros(shape or self.shape, dtype=np.float32)
        if with_nebula:
            to_grid = np.array(
                [
                    [1.0 / self.cell_px, 0.0, -self.origin_px / self.cell_px],
                    [0.0, 1.0 / self.cell_px, -self.origin_px / self.cell_px],
                    [0.0, 0.0, 1.0],
                ]
            )
            area = abs(float(np.linalg.det(to_reference[:2, :2])))
            _sample_spline(self.nebula_light(passband), to_grid @ to_reference, area, image)
        if with_stars:
            to_frame: Float64 = np.linalg.inv(to_reference).astype(np.float64)
            stars = np.stack([*transform(to_frame, self.x, self.y), self.star_flux(band)])
            _add_stars(image, stars, moffat_alpha(fwhm_px), 5.0 * fwhm_px)
        return image

    def nebula_light(self, passband: Band) -> Float32:
        """Spline coefficients (gy, gx) of the nebula in one passband, e-/s/px."""
        light = np.zeros_like(self.nebula["hydrogen"])
        for source, coefficients in self.nebula.items():
            light += np.float32(getattr(passband, source)) * coefficients
        return light


def band_of(name: str) -> Band:
    """Look up a filter. Raises ValueError with the names there are."""
    try:
        return BANDS[name]
    except KeyError:
        raise ValueError(
            f"the simulated sky has no filter {name!r}: use {', '.join(BANDS)}"
        ) from None


def moffat_alpha(fwhm_px: float) -> float:
    """Scale radius α (px) of the star profile with this full width at half maximum (px)."""
    return fwhm_px / (2.0 * float(np.sqrt(2.0 ** (1.0 / MOFFAT_BETA) - 1.0)))


def transform(matrix: Float64, x: Float64, y: Float64) -> tuple[Float64, Float64]:
    """Apply an affine 3×3 matrix to points, px; new arrays."""
    return (
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2],
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2],
    )


def make_sky(
    shape: tuple[int, int],
    *,
    seed: int,
    stars: int | None = None,
    faintest_e_s: float = 2.0,
    brightest_e_s: float = 5000.0,
    nebula_e_s: float = 4.0,
) -> Sky:
    """Make a sky for frames of `shape` (ny, nx); the same seed gives the same sky.

    `stars` counts those inside the frame (None: 2,600 a megapixel, at least 220). Their number
    grows with faintness as N(> F) ∝ F^−0.85, a slope of 0.34 a magnitude, as in the Milky Way.
    `nebula_e_s` is the surface brightness of the brightest parts, e-/s/px; 0 for none.
    """
    ny, nx = shape
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    margin = max(64.0, 0.08 * max(shape))
    wanted = max(220, round(2.6e-3 * ny * nx)) if stars is None else stars
    count = round(wanted * (ny + 2 * margin) * (nx + 2 * margin) / (ny * nx))
    x = rng.uniform(-margin, nx - 1 + margin, count)
    y = rng.uniform(-margin, ny - 1 + margin, count)
    flux = np.minimum(faintest_e_s * rng.random(count) ** (-1.0 / 0.85), brightest_e_s)
    temperature = np.clip(rng.lognormal(np.log(5600.0), 0.32, count), 2900.0, 22000.0)

    cell = max(1.0, max(shape) / _CANVAS_PX)
    grid = (int((ny + 2 * margin) / cell) + 4, int((nx + 2 * margin) / cell) + 4)
    origin = -margin - cell
    nebula, dust = _nebula(grid, rng, shape_cells=(ny / cell, nx / cell))
    # Stars behind the dust are dimmed and reddened in one: half of them stand in front.
    behind = rng.random(count) < 0.5
    depth = ndimage.map_coordinates(
        dust, [(y - origin) / cell, (x - origin) / cell], order=1, mode="nearest"
    )
    flux = np.where(behind, flux * np.exp(-depth), flux)
    temperature = np.where(behind, temperature / (1.0 + 0.15 * depth), temperature)
    order = np.argsort(flux)[::-1]
    return Sky(
        shape=shape,
        x=x[order],
        y=y[order],
        flux=flux[order],
        temperature_k=temperature[order],
        nebula={name: (nebula_e_s * light).astype(np.float32) for name, light in nebula.items()},
        origin_px=origin,
        cell_px=cell,
    )


def _photons(wavelength_nm: float, temperature_k: Float64) -> Float64:
    """Planck's law in photons, per unit wavelength, without its constants."""
    radiance: Float64 = wavelength_nm**-4.0 / np.expm1(
        _SECOND_RADIATION_NM_K / (wavelength_nm * temperature_k)
    )
    return radiance


def _turbulence(
    grid: tuple[int, int], rng: np.random.Generator, *, slope: float, finest: float, largest: float
) -> Float64:
    """Gaussian noise (gy, gx) of power k^−slope, mean 0, variance 1.

    `finest` and `largest` bound its structure, in cells.
    """
    ky = np.fft.fftfreq(grid[0])[:, None]
    kx = np.fft.rfftfreq(grid[1])[None, :]
    k2 = ky**2 + kx**2
    amplitude = (k2 + largest**-2.0) ** (-slope / 4.0) * np.exp(-k2 * (finest**2) * 2.0)
    amplitude[0, 0] = 0.0
    field: Float64 = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(grid)) * amplitude, s=grid)
    field -= field.mean()
    field /= field.std()
    return field


def _nebula(
    grid: tuple[int, int], rng: np.random.Generator, *, shape_cells: tuple[float, float]
) -> tuple[dict[str, Float64], Float64]:
    """Light by source, 0 to about 1, and the dust's optical depth, each (gy, gx).

    A cavity of doubly ionised oxygen inside a broken shell of hydrogen, its rim drawn out into
    filaments by a turbulent displacement, with lanes of dust in front and a blue reflection.
    """
    long = max(shape_cells)
    gy, gx = np.mgrid[0 : grid[0], 0 : grid[1]].astype(np.float64)
    u = (gx - grid[1] / 2) / long
    v = (gy - grid[0] / 2) / long

    def noise(largest: float, slope: float, finest: float = 2.0) -> Float64:
        return _turbulence(grid, rng, slope=slope, finest=finest, largest=largest * long)

    swirl_u, swirl_v = noise(0.35, 4.2), noise(0.35, 4.2)
    detail = noise(0.2, 3.1)
    clumps = noise(0.3, 3.3)
    lanes = noise(0.4, 3.2)
    ridge = _fronts(noise(0.30, 4.6, 4.0)) * np.exp(0.5 * noise(0.2, 4.0))
    veil = _fronts(noise(0.22, 4.8, 4.0)) * np.exp(0.5 * noise(0.3, 4.0))

    cos, sin = np.cos(0.5), np.sin(0.5)
    wu, wv = u + 0.055 * swirl_u, v + 0.055 * swirl_v
    major, minor = cos * wu + sin * wv, cos * wv - sin * wu
    radius = np.hypot(major / 0.29, minor / 0.215)
    cloud = np.exp(0.55 * clumps + 0.30 * detail)
    shell = np.exp(-(((radius - 0.95) / 0.26) ** 2))
    cavity = np.exp(-((radius / 0.80) ** 2))
    halo = np.exp(-((radius / 1.35) ** 2))

    dust = 1.5 * np.clip(lanes + 0.35 * detail - 0.55, 0.0, None) * np.exp(-((radius / 1.6) ** 2))
    transmitted = np.exp(-1.1 * dust)
    hydrogen = (
        0.20 * halo * cloud + 0.34 * shell * cloud * (0.55 + 1.3 * ridge) + 0.10 * halo * veil
    )
    oxygen = 0.30 * cavity * np.exp(0.30 * clumps + 0.22 * detail) + 0.20 * cavity * veil
    sulphur = 0.22 * shell * cloud * (0.3 + 1.2 * ridge)
    reflection = 0.16 * np.exp(-((np.hypot(wu + 0.22, wv - 0.17) / 0.15) ** 2)) * cloud
    return {
        "hydrogen": hydrogen * transmitted,
        "oxygen": oxygen * np.exp(-1.3 * dust),
        "sulphur": sulphur * transmitted,
        "reflection": reflection * np.exp(-0.6 * dust),
    }, dust


def _fronts(field: Float64) -> Float64:
    """Light, 0 to 1, along the zero lines of a smooth field: sharp outside, fading inwards."""
    inside = np.exp(-np.clip(field, 0.0, None) / 0.35)
    fronts: Float64 = inside * np.exp(-((np.clip(field, None, 0.0) / 0.07) ** 2))
    return fronts


@kernel()
def _add_stars(image: Float32, stars: Float64, alpha: float, least_radius: float) -> None:
    """Add Moffat stars to `image` in place: `stars` (3, n) x, y (px), flux (e-/s).

    The flux is the integral over the infinite plane.

    Each stamp is a disc that ends where the star is fainter than anything the camera records.
    """
    ny, nx = image.shape
    x, y, flux = stars[0], stars[1], stars[2]
    for i in range(stars.shape[1]):
        peak = flux[i] * (MOFFAT_BETA - 1.0) / (np.pi * alpha * alpha)
        reach = (peak / _FAINTEST_E_S) ** (1.0 / MOFFAT_BETA) - 1.0
        radius = max(least_radius, alpha * np.sqrt(max(reach, 0.0)))
        for row in range(max(0, int(y[i] - radius)), min(ny, int(y[i] + radius) + 2)):
            dy2 = (row - y[i]) ** 2
            for column in range(max(0, int(x[i] - radius)), min(nx, int(x[i] + radius) + 2)):
                r2 = (column - x[i]) ** 2 + dy2
                if r2 <= radius * radius:
                    base = 1.0 / (1.0 + r2 / (alpha * alpha))
                    image[row, column] += peak * base * base * base * np.sqrt(base)


@kernel()
def _sample_spline(coefficients: Float32, matrix: Float64, factor: float, image: Float32) -> None:
    """Add `factor` × the cubic B-spline, seen through `matrix` (frame → grid), in place.

    Beyond its grid the spline goes on with its edge.
    """
    gy, gx = coefficients.shape
    ny, nx = image.shape
    for row in range(ny):
        for column in range(nx):
            x = matrix[0, 0] * column + matrix[0, 1] * row + matrix[0, 2]
            y = matrix[1, 0] * column + matrix[1, 1] * row + matrix[1, 2]
            x = min(max(x, 1.0), gx - 2.001)
            y = min(max(y, 1.0), gy - 2.001)
            x0 = int(x)
            y0 = int(y)
            fx = x - x0
            fy = y - y0
            x_near = (1.0 - fx) ** 3
            x_mid = 3.0 * fx**3 - 6.0 * fx**2 + 4.0
            x_next = -3.0 * fx**3 + 3.0 * fx**2 + 3.0 * fx + 1.0
            x_far = fx**3
            y_mid = 3.0 * fy**3 - 6.0 * fy**2 + 4.0
            y_next = -3.0 * fy**3 + 3.0 * fy**2 + 3.0 * fy + 1.0
            total = 0.0
            for k in range(4):
                weight = (1.0 - fy) ** 3 if k == 0 else y_mid if k == 1 else y_next
                if k == 3:
                    weight = fy**3
                line = coefficients[y0 - 1 + k]
                total += weight * (
                    x_near * line[x0 - 1]
                    + x_mid * line[x0]
                    + x_next * line[x0 + 1]
                    + x_far * line[x0 + 2]
                )
            image[row, column] += factor * total / 36.0
