"""The measures of section 10 of the algorithms' reference, each against the simulator's truth.

Everything expected is computed here from the plan of the night: what reached each pixel, with what
noise, and where a perfect stack would show it. Of the daemon, only the weights enter (a stack's
stars are the weighted mean of its frames' seeing), and the definition of a flat's level.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from calib_library import flat
from daemon.light import distortion
from daemon.simulator import night as simulated
from daemon.simulator.sky import moffat_alpha, transform
from daemon.stack import live
from tests.truth.nights import Night, Taken

CELL_PX = 64
"""px, edge of the cells of the large-scale measures 4 and 5 (32 for the flat)."""
SPREAD = {
    "R": np.outer([1, 2, 1], [1, 2, 1]) / 16,
    "G": np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 8,
    "B": np.outer([1, 2, 1], [1, 2, 1]) / 16,
}
"""What bilinear interpolation makes of a star, on average over where its pixels fall."""


# -- one light -----------------------------------------------------------------------------------


def flat_level(night: Night) -> np.ndarray:
    """What `flat.normalise` divides the true flat by: (1,), or (4,) for the phases of a mosaic."""
    true = night.camera.flats[night.lights[0].shot.filter]
    return flat.levels(true * 1e4, bayer=night.camera.bayer_pattern is not None) / 1e4


def _by_phase(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Spread (1,) or (4,) values over a frame (ny, nx)."""
    if len(values) == 1:
        return np.full(shape, values[0])
    return np.tile(values.reshape(2, 2), (shape[0] // 2, shape[1] // 2))


def expected_light(night: Night, light: Taken) -> np.ndarray:
    """(ny, nx) ADU: the calibrated mosaic without noise, trails and cosmic rays."""
    shot, camera = light.shot, night.camera
    level = _by_phase(flat_level(night), camera.shape)
    return simulated.scene(night.plan, shot) * level * (shot.exposure_s / camera.e_per_adu)


def light_variance(night: Night, light: Taken) -> np.ndarray:
    """(ny, nx) ADU²: what theory gives the calibrated mosaic, with its masters' noise."""
    camera, shot = night.camera, light.shot
    counts = {kind: _count(night, kind) for kind in ("dark", "flat", "flat-dark")}
    throughput = camera.flats[shot.filter].astype(float)
    source = simulated.scene(night.plan, shot) * throughput * shot.exposure_s
    # Rounding to whole ADU adds 1/12 ADU².
    read = camera.read_noise_e**2 + camera.e_per_adu**2 / 12
    dark = camera.dark_rate(shot.temperature_c) * shot.exposure_s
    variance = source + dark + read
    if counts["dark"]:
        variance += (dark + read) / counts["dark"]
    if counts["flat"]:
        panel = next(s for s in night.plan.shots if s.kind == "flat")
        lamp = simulated.scene(night.plan, panel) * throughput * panel.exposure_s
        relative = (1 / lamp + read / lamp**2) / counts["flat"]
        relative += read / lamp**2 / max(counts["flat-dark"], 1)
        variance += source**2 * relative
    level = _by_phase(flat_level(night), camera.shape)
    return variance * (level / throughput / camera.e_per_adu) ** 2


def _count(night: Night, kind: str) -> int:
    return sum(shot.kind == kind for shot in night.plan.shots)


def light_noise(night: Night, light: Taken) -> float:
    """Measure 1: rms of what noise there is over the predicted, away from artefacts and stars."""
    image, mask = night.mosaic(light)
    off = (image - expected_light(night, light)) / np.sqrt(light_variance(night, light))
    used = (mask == 0) & ~_struck(light, reach=0) & ~bright_pixels(night, light)
    return float(np.sqrt(np.mean(off[used] ** 2)))


def told_noise(night: Night, light: Taken) -> float:
    """Measure 1 as the daemon has it: the noise that it weighs a light with, over the predicted:
    the median over cells of the rms of a pixel's noise.
    """
    variance = light_variance(night, light)
    pattern = night.camera.bayer_pattern
    if pattern is not None:
        # (R + 2 G + B)/4 of bilinear planes: weights of a photosite's own value and of its
        # neighbours', squared, where it is green and where it is not.
        green = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 8
        other = np.outer([1, 2, 1], [1, 2, 1]) / 16
        is_green = np.tile(
            np.array([colour == "G" for colour in pattern]).reshape(2, 2),
            (variance.shape[0] // 2, variance.shape[1] // 2),
        )
        variance = np.where(
            is_green,
            ndimage.convolve(variance, green**2, mode="mirror"),
            ndimage.convolve(variance, other**2, mode="mirror"),
        )
    variance = np.where(bright_pixels(night, light), np.nan, variance)
    sigmas = np.sqrt(np.nanmean(blocks(variance, CELL_PX), axis=-1))
    return float(light.member.quality.noise_adu / np.median(sigmas))


def bright_pixels(night: Night, light: Taken) -> np.ndarray:
    """(ny, nx) where stars outshine a third of the sky."""
    seen = night.plan.sky.render(
        light.shot.filter or "G",
        fwhm_px=light.shot.fwhm_px,
        matrix=light.shot.matrix,
        shape=night.camera.shape,
        with_nebula=False,
    )
    return seen > 0.3 * light.shot.sky_e_s


def _struck(light: Taken, *, reach: int) -> np.ndarray:
    """(ny, nx) pixels of the frame that a trail or a cosmic ray reached, grown by `reach` px."""
    truth = light.simulated.truth
    struck = np.zeros(light.simulated.pixels.shape, bool)
    for mask in (truth.trail, truth.cosmic):
        if mask is not None:
            struck |= mask
    return ndimage.binary_dilation(struck, iterations=reach) if reach else struck


# -- the stack -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a perfect stack of the same frames shows, (planes, ny, nx) each unless stated."""

    mean: np.ndarray
    """ADU."""
    sigma: np.ndarray
    """ADU, noise of a pixel with the best weights, before resampling makes it smoother."""
    star_light: np.ndarray
    """ADU, the part of `mean` that is stars."""
    sky_adu: np.ndarray
    """(planes,) level of the sky at the centre."""
    trails: np.ndarray
    """(ny, nx) pixels on the trail of some frame."""
    struck: np.ndarray
    """(ny, nx) pixels that some frame's trail or cosmic ray can have reached."""
    covered: np.ndarray
    """(ny, nx) pixels that every frame covers."""


def expected_stack(night: Night) -> Expected:
    """Compute the truth of a stack, in the geometry and brightness of its first frame."""
    camera, first = night.camera, night.lights[0].shot
    planes = len(night.bands)
    unit = _plane_levels(night) * first.exposure_s / camera.e_per_adu
    weights = np.array([terms.weight for terms in night.terms])
    weights /= weights.sum()
    nebula, stars, sky = (np.zeros((planes, *camera.shape)) for _ in range(3))
    glow = simulated._sky_glow(night.plan, first)
    for plane, band in enumerate(night.bands):
        for weight, light in zip(weights, night.lights, strict=True):
            stars[plane] += weight * night.plan.sky.render(
                band,
                fwhm_px=light.shot.fwhm_px,
                matrix=first.matrix,
                shape=camera.shape,
                with_nebula=False,
            )
        nebula[plane] = night.plan.sky.render(
            band, fwhm_px=3.0, matrix=first.matrix, shape=camera.shape, with_stars=False
        )
        if camera.bayer_pattern:
            for light in (stars, nebula):
                light[plane] = ndimage.convolve(light[plane], SPREAD[band], mode="nearest")
            at = [p for p, colour in enumerate(camera.bayer_pattern) if colour == band]
            dy, dx = divmod(at[0], 2)
            own = glow[dy::2, dx::2].astype(float)
            sky[plane] = _tilted(own, camera.shape, dy, dx)
        else:
            sky[plane] = glow
    light = first.transparency * (nebula + stars) + sky
    centre = np.s_[:, camera.shape[0] // 2, camera.shape[1] // 2]
    return Expected(
        mean=light * unit[:, None, None],
        sigma=_best_sigma(night),
        star_light=first.transparency * stars * unit[:, None, None],
        sky_adu=sky[centre] * unit,
        trails=np.logical_or.reduce(
            [_seen(night, light, light.simulated.truth.trail) > 0.5 for light in night.lights]
        ),
        struck=np.logical_or.reduce([reached(night, light) for light in night.lights]),
        covered=np.logical_and.reduce(
            [_seen(night, light, np.ones(camera.shape)) > 0.999 for light in night.lights]
        ),
    )


def _share(night: Night, band: str) -> float:
    """The share of the pixels that see this band."""
    pattern = night.camera.bayer_pattern
    return 1.0 if pattern is None else pattern.count(band) / 4


def _plane_levels(night: Night) -> np.ndarray:
    """(planes,) the flat's level in each plane."""
    level = flat_level(night)
    pattern = night.camera.bayer_pattern
    if pattern is None:
        return level
    return np.array(
        [np.mean([level[p] for p, colour in enumerate(pattern) if colour == c]) for c in "RGB"]
    )


def _tilted(own: np.ndarray, shape: tuple[int, int], dy: int, dx: int) -> np.ndarray:
    """Continue a plane that is known at every second pixel from (dy, dx) over the whole frame."""
    slope_y = (own[-1, 0] - own[0, 0]) / (2 * (len(own) - 1))
    slope_x = (own[0, -1] - own[0, 0]) / (2 * (own.shape[1] - 1))
    y, x = np.mgrid[: shape[0], : shape[1]]
    return own[0, 0] + slope_y * (y - dy) + slope_x * (x - dx)


def to_first(night: Night, light: Taken) -> np.ndarray:
    """The true map of a frame's px to px of the stack's first frame, 3×3."""
    return np.linalg.inv(night.lights[0].shot.matrix) @ light.shot.matrix


def _seen(night: Night, light: Taken, image: np.ndarray | None) -> np.ndarray:
    """A frame's image (ny, nx) on the stack's grid by the true geometry, 0 where it has nothing."""
    if image is None:
        return np.zeros(night.camera.shape)
    back = np.linalg.inv(to_first(night, light))  # in (x, y); arrays are (y, x)
    return ndimage.affine_transform(
        image.astype(float),
        back[1::-1, 1::-1],
        offset=back[1::-1, 2],
        order=1,
        mode="constant",
        cval=0.0,
    )


def reached(night: Night, light: Taken) -> np.ndarray:
    """(ny, nx) pixels of the stack that a trail or a cosmic ray of this light can have reached."""
    return _seen(night, light, _struck(light, reach=3)) > 0.01


def _best_sigma(night: Night) -> np.ndarray:
    """(planes, ny, nx) ADU: 1/√Σ 1/v of the frames, each brought to the first one's brightness.

    For a mosaic, the noise of a plane at its own photosites.
    """
    pattern = night.camera.bayer_pattern
    first = night.lights[0].shot
    inverse = np.zeros((len(night.bands), *night.camera.shape))
    for light in night.lights:
        to_unit = (first.transparency / light.shot.transparency) ** 2
        variance = light_variance(night, light) * to_unit
        for plane, band in enumerate(night.bands):
            own = variance
            if pattern is not None:
                # Each plane's own photosites, continued over the pixels between them.
                own = np.zeros_like(variance)
                number = 0
                for phase, colour in enumerate(pattern):
                    if colour == band:
                        dy, dx = divmod(phase, 2)
                        own += np.kron(variance[dy::2, dx::2], np.ones((2, 2)))
                        number += 1
                own /= number
            seen = _seen(night, light, own)
            inverse[plane] += np.where(seen > 0, 1 / np.where(seen > 0, seen, 1), 0)
    return 1 / np.sqrt(np.maximum(inverse, 1e-12))


def block_factor(band: str | None, *, block: int = 8) -> float:
    """Noise of the mean of a block of `block`² px over that of one photosite, by theory.

    1/8 where every pixel has its own noise. Of a mosaic's plane, bilinear interpolation spreads
    each photosite over its neighbours, some of which lie in the next block.
    """
    if band is None:
        return 1 / block
    green = band == "G"
    kernel = SPREAD[band] * (2 if green else 4)
    weights = ndimage.convolve(
        np.pad(np.full((block, block), block**-2.0), 2), kernel, mode="constant"
    )
    y, x = np.mgrid[: len(weights), : len(weights)]
    if green:
        shares = [(weights[(y + x) % 2 == p] ** 2).sum() for p in (0, 1)]
    else:
        shares = [(weights[dy::2, dx::2] ** 2).sum() for dy in (0, 1) for dx in (0, 1)]
    return float(np.sqrt(np.mean(shares)))


def blocks(image: np.ndarray, size: int) -> np.ndarray:
    """Cut (ny, nx) into (rows, columns, size²), what is left over dropped."""
    ny, nx = (side // size for side in image.shape)
    cut = image[: ny * size, : nx * size].reshape(ny, size, nx, size)
    return cut.swapaxes(1, 2).reshape(ny, nx, size * size)


def stack_noise(night: Night, truth: Expected, image: np.ndarray) -> np.ndarray:
    """Measure 2, of each plane: noise of means of 8×8 px over the best possible, where no trail
    and no cosmic ray costs a frame.
    """
    result = []
    for plane, band in enumerate(night.bands):
        off = (image[plane] - truth.mean[plane]) / truth.sigma[plane]
        dark = truth.star_light[plane] < 0.1 * truth.sky_adu[plane]
        used = blocks(truth.covered & dark & ~truth.struck, 8).all(axis=-1)
        means = blocks(off, 8).mean(axis=-1)
        # What is larger than a cell is measure 4's.
        slow = ndimage.median_filter(np.where(used, means, np.nan_to_num(means)), size=9)
        factor = block_factor(band if len(night.bands) > 1 else None)
        result.append(np.sqrt(np.mean((means - slow)[used] ** 2)) / factor)
    return np.array(result)


def told_variance(night: Night, truth: Expected, image: live.StackImage) -> np.ndarray:
    """Of each plane: rms of what single pixels are off, over what the stack's variance tells."""
    result = []
    for plane in range(len(night.bands)):
        off = (image.mean[plane] - truth.mean[plane]) / np.sqrt(image.variance[plane])
        dark = truth.star_light[plane] < 0.1 * truth.sky_adu[plane]
        used = truth.covered & dark & ~truth.struck
        # What is larger than 25 px is measure 4's.
        result.append((off - ndimage.median_filter(off, size=25))[used].std())
    return np.array(result)


@dataclasses.dataclass(frozen=True)
class Fluxes:
    """Measure 3 of one plane: relative errors of stars' fluxes, (n,) each."""

    bright: np.ndarray
    faint: np.ndarray
    faint_noise: np.ndarray

    @property
    def bright_error(self) -> float:
        """Median absolute error of bright stars, against truth."""
        return float(np.median(np.abs(self.bright)))

    @property
    def faint_bias(self) -> float:
        """Mean error of faint stars, weighted by their noise."""
        return float(np.average(self.faint, weights=self.faint_noise**-2.0))

    @property
    def faint_precision(self) -> float:
        """The noise of `faint_bias`."""
        return float(np.sum(self.faint_noise**-2.0) ** -0.5)


def fluxes(night: Night, truth: Expected, image: np.ndarray) -> list[Fluxes]:
    """Measure 3, of each plane: flux within 1.5 FWHM over a ring round it, against truth."""
    first, camera = night.lights[0].shot, night.camera
    sky = night.plan.sky
    x, y = transform(np.linalg.inv(first.matrix), sky.x, sky.y)
    widest = max(light.shot.fwhm_px for light in night.lights)
    sharpest = min(light.shot.fwhm_px for light in night.lights)
    radius = 1.5 * widest
    result = []
    for plane, band in enumerate(night.bands):
        rate = sky.star_flux(band)
        unit = _plane_levels(night)[plane] * first.exposure_s / camera.e_per_adu
        flux = rate * unit * first.transparency
        peak_e = rate * first.exposure_s * 2.5 / (np.pi * moffat_alpha(sharpest) ** 2)
        off = image[plane] - truth.mean[plane]
        errors, noises = [], []
        # Only some pixels of a mosaic's plane bring noise (and light) of their own.
        thinned = 1 / np.sqrt(_share(night, band))
        for i in np.argsort(-rate):
            window = _window(x[i], y[i], 3 * radius, camera.shape)
            if window is None:
                continue
            rows, cols, r = window
            if not truth.covered[rows, cols].all():
                continue
            disc, ring = r <= radius, (r > 2 * radius) & (r <= 3 * radius)
            near = np.hypot(x - x[i], y - y[i]) < 2 * radius
            crowded = rate[near].sum() > (1.5 if peak_e[i] > 1000 else 4) * rate[i]
            if crowded or peak_e[i] > 0.7 * camera.full_well_e:
                continue
            inside = (1 - (1 + (radius / moffat_alpha(widest)) ** 2) ** -2.5) * flux[i]
            noise = thinned * np.sqrt((truth.sigma[plane, rows, cols][disc] ** 2).sum()) / inside
            patch = off[rows, cols]
            errors.append((patch[disc] - patch[ring].mean()).sum() / inside)
            noises.append(noise)
        errors, noises = np.array(errors), np.array(noises)
        bright, faint = noises < 0.0012, (noises > 0.005) & (noises < 0.05)
        result.append(Fluxes(errors[bright], errors[faint], noises[faint]))
    return result


def _window(
    x: float, y: float, reach: float, shape: tuple[int, int]
) -> tuple[slice, slice, np.ndarray] | None:
    """Rows, columns and distances (px) round a place; None at the border."""
    half = int(reach) + 2
    cx, cy = round(x), round(y)
    if not (half <= cx < shape[1] - half and half <= cy < shape[0] - half):
        return None
    rows, cols = slice(cy - half, cy + half + 1), slice(cx - half, cx + half + 1)
    v, u = np.mgrid[rows, cols]
    return rows, cols, np.hypot(u - x, v - y)


def large_scale(night: Night, truth: Expected, image: np.ndarray) -> np.ndarray:
    """Measure 4, of each plane: rms over cells of the background's error, relative to the sky."""
    result = []
    for plane in range(len(night.bands)):
        off = (image[plane] - truth.mean[plane]) / truth.sky_adu[plane]
        dark = truth.star_light[plane] < 0.1 * truth.sky_adu[plane]
        used = blocks(dark & truth.covered, CELL_PX)
        values = np.where(used, blocks(off, CELL_PX), np.nan)
        enough = used.mean(axis=-1) > 0.3
        result.append(np.sqrt(np.mean(np.nanmean(values[enough], axis=-1) ** 2)))
    return np.array(result)


def flat_residual(night: Night) -> float:
    """Measure 5: the largest error of a cell of 32 px of the flat that lights are divided by."""
    (master,) = [m for m in night.parts.pipeline.library.masters() if m.frame_type == "flat"]
    bayer = night.camera.bayer_pattern is not None
    made = night.parts.pipeline.calibrator._flat(master, bayer=bayer)
    true = night.camera.flats[night.lights[0].shot.filter]
    ratio = made * _by_phase(flat_level(night), true.shape) / true
    return float(np.abs(np.median(blocks(ratio, 32), axis=-1) - 1).max())


@dataclasses.dataclass(frozen=True)
class Left:
    """Measure 7 of one plane."""

    on_trails: float
    """Mean on trails over that of what no trail reached, σ_st."""
    beyond: float
    """Share of the background's pixels farther than 5 σ_st from the truth."""


def pixel_sigma(truth: Expected, image: np.ndarray, plane: int) -> np.ndarray:
    """(ny, nx) ADU, σ_st: theory's map, times what resampling leaves of a single pixel's noise."""
    off = (image[plane] - truth.mean[plane]) / truth.sigma[plane]
    quiet = truth.covered & ~truth.struck
    quiet &= truth.star_light[plane] < 0.1 * truth.sky_adu[plane]
    centre = np.median(off[quiet])
    return truth.sigma[plane] * 1.4826 * np.median(np.abs(off[quiet] - centre))


def left_over(night: Night, truth: Expected, image: np.ndarray) -> list[Left]:
    """Measure 7, of each plane."""
    result = []
    for plane in range(len(night.bands)):
        off = (image[plane] - truth.mean[plane]) / pixel_sigma(truth, image, plane)
        dark = truth.star_light[plane] < 0.1 * truth.sky_adu[plane]
        background = truth.covered & dark
        around = off[background & ~truth.struck].mean()
        result.append(
            Left(
                on_trails=float(off[background & truth.trails].mean() - around),
                beyond=float(np.mean(np.abs(off[background]) > 5)),
            )
        )
    return result


def registration_errors(night: Night) -> np.ndarray:
    """Measure 8: rms over the field of each frame's misplacement, px; (frames,)."""
    ny, nx = night.camera.shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9))
    points = np.column_stack((x.ravel(), y.ravel()))
    errors = []
    for light in night.lights:
        member = light.member
        found = distortion.to_reference(member.matrix, member.distortion, points)
        off = found - distortion.project(to_first(night, light), points)
        errors.append(np.sqrt(np.mean((off**2).sum(axis=1))))
    return np.array(errors)


def half_flux_growth(night: Night, truth: Expected, image: np.ndarray) -> np.ndarray:
    """Measure 8, of each plane: half-flux radius of the stack's stars over the truth's, median."""
    first, sky = night.lights[0].shot, night.plan.sky
    x, y = transform(np.linalg.inv(first.matrix), sky.x, sky.y)
    radius = 3 * max(light.shot.fwhm_px for light in night.lights)
    sharpest = min(light.shot.fwhm_px for light in night.lights)
    result = []
    for plane, band in enumerate(night.bands):
        rate = sky.star_flux(band)
        peak_e = rate * first.exposure_s * 2.5 / (np.pi * moffat_alpha(sharpest) ** 2)
        ratios = []
        for i in np.flatnonzero((peak_e < 0.7 * night.camera.full_well_e) & (peak_e > 3000)):
            window = _window(x[i], y[i], radius, night.camera.shape)
            if window is None or not truth.covered[window[:2]].all():
                continue
            near = np.hypot(x - x[i], y - y[i]) < 2 * radius
            if rate[near].sum() > 1.2 * rate[i]:
                continue
            rows, cols, distance = window
            disc = distance <= radius
            # Neighbours, nebula and sky are the same in both.
            others = truth.mean[plane] - truth.star_light[plane]
            radii = [
                _half_flux_radius(distance[disc], (frame - others)[rows, cols][disc])
                for frame in (image[plane], truth.mean[plane])
            ]
            ratios.append(radii[0] / radii[1])
        result.append(np.median(ratios) - 1)
    return np.array(result)


def _half_flux_radius(r: np.ndarray, light: np.ndarray) -> float:
    """Σ r·light / Σ light, px: the usual definition of the half-flux radius (HFR)."""
    return float((r * light).sum() / light.sum())


def difference(night: Night, truth: Expected, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Measure 9, of each plane: rms difference of two stacks where all frames are, σ_st."""
    result = []
    for plane in range(len(night.bands)):
        off = ((image - other)[plane] / pixel_sigma(truth, image, plane))[truth.covered]
        result.append(np.sqrt(np.mean(off**2)))
    return np.array(result)
