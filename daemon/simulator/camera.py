"""A camera with truth: pedestal, dark current and its temperature, gain, noise, flat field, limits.

Signal per pixel, in electrons, and what the file holds:

    e = Poisson(scene · flat · t + dark(T) · t) + strikes, at most the full well
    ADU = round(e / gain + pedestal + read noise), 0 … 65535

Dark current follows f(T) = T^1.5 exp(−E / kT) with an energy of its own for hot pixels and for the
smooth level (Widenhorn et al. 2002); an amplifier's glow does not depend on temperature.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt16 = NDArray[np.uint16]

REFERENCE_C = -10.0
"""°C at which the dark rates are stated."""

BAYER_PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")

_BOLTZMANN_EV_K = 8.617333e-5
_ZERO_C_IN_K = 273.15
_ROWS = 64  # rows exposed at a time: bounds the memory of the noise
_ADU_LIMIT = 65535


@dataclasses.dataclass(frozen=True, slots=True)
class Camera:
    """The truth inside one camera. Arrays are (ny, nx) float32 and never changed."""

    name: str
    shape: tuple[int, int]
    """(ny, nx), px."""
    e_per_adu: float
    read_noise_e: float
    full_well_e: float
    gain_setting: int
    offset_setting: int
    pixel_size_um: float
    bayer_pattern: str | None
    """One of `BAYER_PATTERNS`, None for a monochrome camera."""
    pedestal_adu: Float32
    """What a noiseless bias would show: offset, columns, a slight ramp."""
    bulk_rate_e_s: Float32
    """e-/s at `REFERENCE_C`: the smooth dark current, slightly uneven."""
    bulk_energy_ev: float
    hot_index: NDArray[np.int64]
    """(n,) flat indices of the hot pixels."""
    hot_rate_e_s: Float32
    """(n,) e-/s at `REFERENCE_C`, on top of the smooth rate."""
    hot_energy_ev: Float32
    """(n,) eV."""
    glow_e_s: Float32 | None
    """e-/s, the amplifier's glow at any temperature."""
    flats: Mapping[str | None, Float32]
    """Filter → throughput of optics and pixel, about 1 at the centre. The key None is a camera
    without a filter wheel."""

    @property
    def saturation_adu(self) -> float:
        """The lowest level (ADU) at which a pixel may be full."""
        full = float(self.pedestal_adu.min()) + self.full_well_e / self.e_per_adu
        return min(float(_ADU_LIMIT), full)

    def dark_rate(self, temperature_c: float) -> Float32:
        """Dark current of every pixel at a temperature, glow included: (ny, nx) float32 e-/s."""
        bulk = np.float32(dark_ratio(temperature_c, energy_ev=self.bulk_energy_ev))
        rate = self.bulk_rate_e_s * bulk
        hot = dark_ratio(temperature_c, energy_ev=self.hot_energy_ev)
        rate.ravel()[self.hot_index] += self.hot_rate_e_s * hot.astype(np.float32)
        if self.glow_e_s is not None:
            rate += self.glow_e_s
        return rate

    def ideal_dark(self, *, exposure_s: float, temperature_c: float) -> Float32:
        """Compute what a perfect master dark would hold: (ny, nx) float32 ADU, with pedestal."""
        signal = self.dark_rate(temperature_c) * np.float32(exposure_s / self.e_per_adu)
        signal += self.pedestal_adu
        return signal

    def master_dark(
        self, *, exposure_s: float, temperature_c: float, frames: int, rng: np.random.Generator
    ) -> Float32:
        """Take the mean of `frames` darks at once: (ny, nx) float32 ADU, with pedestal.

        A sum of Poisson numbers is one of the summed rate; nothing is clipped or rounded.
        """
        expected = self.dark_rate(temperature_c) * (float(exposure_s) * frames)
        electrons = rng.poisson(expected) / frames
        electrons += self.read_noise_e / frames**0.5 * rng.standard_normal(self.shape)
        signal: Float32 = (self.pedestal_adu + electrons / self.e_per_adu).astype(np.float32)
        return signal

    def expose(
        self,
        scene_e_s: Float32 | None,
        *,
        filter_name: str | None,
        exposure_s: float,
        temperature_c: float,
        rng: np.random.Generator,
        strikes_e: Float32 | None = None,
    ) -> UInt16:
        """Take one frame: (ny, nx) uint16 ADU.

        `scene_e_s` (ny, nx) is the light that reaches the optics, e-/s/px (None: cover closed);
        `strikes_e` (ny, nx) are electrons that light never made. Nothing is mutated but `rng`.
        Raises KeyError for a filter the camera has no flat of.
        """
        flat = None if scene_e_s is None else self.flats[filter_name]
        dark = self.dark_rate(temperature_c) if exposure_s > 0.0 else None
        frame = np.empty(self.shape, dtype=np.uint16)
        for top in range(0, self.shape[0], _ROWS):
            rows = slice(top, top + _ROWS)
            adu = self.pedestal_adu[rows].copy()
            electrons = np.zeros(adu.shape, dtype=np.float32)
            if dark is not None:
                electrons += dark[rows]
            if scene_e_s is not None and flat is not None:
                electrons += scene_e_s[rows] * flat[rows]
            if exposure_s > 0.0:
                electrons = rng.poisson(electrons * exposure_s).astype(np.float32)
            if strikes_e is not None:
                electrons += strikes_e[rows]
            np.minimum(electrons, np.float32(self.full_well_e), out=electrons)
            electrons += np.float32(self.read_noise_e) * rng.standard_normal(
                adu.shape, dtype=np.float32
            )
            adu += electrons / np.float32(self.e_per_adu)
            frame[rows] = np.clip(np.rint(adu), 0, _ADU_LIMIT)
        return frame


def dark_ratio(temperature_c: float, *, energy_ev: float | Float32) -> NDArray[np.float64]:
    """Dark current at a temperature (°C) over that at `REFERENCE_C`, for an energy in eV."""
    kelvin = temperature_c + _ZERO_C_IN_K
    reference = REFERENCE_C + _ZERO_C_IN_K
    exponent = np.asarray(energy_ev, dtype=np.float64) / _BOLTZMANN_EV_K
    ratio: NDArray[np.float64] = (kelvin / reference) ** 1.5 * np.exp(
        exponent * (1.0 / reference - 1.0 / kelvin)
    )
    return ratio


def make_camera(
    shape: tuple[int, int],
    *,
    seed: int,
    filters: tuple[str | None, ...],
    name: str = "Candela 294M",
    bayer_pattern: str | None = None,
    e_per_adu: float = 0.8,
    read_noise_e: float = 2.2,
    full_well_e: float = 50_000.0,
    offset_adu: float = 500.0,
    bulk_rate_e_s: float = 0.012,
    bulk_energy_ev: float = 0.85,
    hot_fraction: float = 0.005,
    hot_rate_e_s: float = 0.8,
    hot_energy_ev: float = 0.57,
    hot_energy_spread_ev: float = 0.02,
    glow_e_s: float = 0.25,
    vignetting: float = 0.35,
    dust_motes: int = 7,
) -> Camera:
    """Make a camera; the same seed gives the same camera.

    `hot_rate_e_s` is the median of a log-normal distribution (σ = 1.2) over `hot_fraction` of the
    pixels; `glow_e_s` the glow at its corner (0: none); `vignetting` the light lost in the corners;
    `dust_motes` their number on every filter. Rates hold at `REFERENCE_C`.
    """
    if bayer_pattern is not None and bayer_pattern not in BAYER_PATTERNS:
        raise ValueError(f"no Bayer pattern {bayer_pattern!r}: use {', '.join(BAYER_PATTERNS)}")
    ny, nx = shape
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    # Every column and row has an offset of its own: the striped bias that amateurs know.
    columns = rng.normal(0.0, 3.0, nx) + np.where(rng.random(nx) < 0.004, 25.0, 0.0)
    ramp = np.linspace(0.0, 6.0, ny)[:, None]
    pedestal = (offset_adu + columns + rng.normal(0.0, 0.7, (ny, 1)) + ramp).astype(np.float32)
    bulk = bulk_rate_e_s * rng.lognormal(0.0, 0.15, shape)
    hot = np.flatnonzero(rng.random(ny * nx) < hot_fraction)
    shared = _throughput(shape, rng, vignetting=vignetting)
    return Camera(
        name=name,
        shape=shape,
        e_per_adu=e_per_adu,
        read_noise_e=read_noise_e,
        full_well_e=full_well_e,
        gain_setting=120,
        offset_setting=30,
        pixel_size_um=4.63,
        bayer_pattern=bayer_pattern,
        pedestal_adu=pedestal,
        bulk_rate_e_s=bulk.astype(np.float32),
        bulk_energy_ev=bulk_energy_ev,
        hot_index=hot,
        hot_rate_e_s=(hot_rate_e_s * rng.lognormal(0.0, 1.2, hot.size)).astype(np.float32),
        hot_energy_ev=rng.normal(hot_energy_ev, hot_energy_spread_ev, hot.size).astype(np.float32),
        glow_e_s=_glow(shape, glow_e_s) if glow_e_s > 0.0 else None,
        flats={name: shared * _dust(shape, rng, motes=dust_motes) for name in filters},
    )


def mosaic(planes: Float32, pattern: str) -> Float32:
    """See a colour scene (3, ny, nx), R G B, through a Bayer pattern: a new (ny, nx) array."""
    picked = np.empty(planes.shape[1:], dtype=planes.dtype)
    for phase, colour in enumerate(pattern):
        row, column = divmod(phase, 2)
        picked[row::2, column::2] = planes["RGB".index(colour), row::2, column::2]
    return picked


def _throughput(shape: tuple[int, int], rng: np.random.Generator, *, vignetting: float) -> Float32:
    """Vignetting, slightly off centre, times each pixel's own response; a few are nearly dead."""
    ny, nx = shape
    y = (np.arange(ny) - 0.48 * ny)[:, None]
    x = (np.arange(nx) - 0.53 * nx)[None, :]
    r2 = (x**2 + y**2) / (0.25 * (nx**2 + ny**2))
    light = (1.0 - vignetting * (0.7 * r2 + 0.3 * r2**2)).astype(np.float32)
    light *= 1.0 + np.float32(0.004) * rng.standard_normal(shape, dtype=np.float32)
    light[rng.random(shape) < 3e-5] *= 0.3
    return light


def _dust(shape: tuple[int, int], rng: np.random.Generator, *, motes: int) -> Float32:
    """Shadows of dust out of focus: rings, since the telescope's pupil has a hole."""
    ny, nx = shape
    shadow = np.ones(shape, dtype=np.float32)
    for _ in range(motes):
        radius = max(6.0, max(shape) * rng.uniform(0.012, 0.035))
        cy, cx = rng.uniform(0, ny), rng.uniform(0, nx)
        rows = slice(max(0, int(cy - 1.5 * radius)), max(0, int(cy + 1.5 * radius) + 2))
        cols = slice(max(0, int(cx - 1.5 * radius)), max(0, int(cx + 1.5 * radius) + 2))
        y, x = np.arange(ny)[rows, None], np.arange(nx)[None, cols]
        r = np.hypot(x - cx, y - cy) / radius
        disc = 1.0 / (1.0 + np.exp((r - 1.0) / 0.06))
        hole = 1.0 / (1.0 + np.exp((r - 0.4) / 0.06))
        shadow[rows, cols] *= 1.0 - rng.uniform(0.03, 0.10) * (disc - 0.8 * hole)
    return shadow


def _glow(shape: tuple[int, int], corner_e_s: float) -> Float32:
    """Glow of an amplifier at the right edge, fading over a tenth of the frame."""
    ny, nx = shape
    scale = 0.10 * max(shape)
    y = (np.arange(ny) - 0.85 * ny)[:, None]
    x = (np.arange(nx) - (nx - 1))[None, :]
    glow: Float32 = (corner_e_s * np.exp(-np.hypot(x, 0.6 * y) / scale)).astype(np.float32)
    return glow
