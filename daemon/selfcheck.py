"""After each light: did its calibration do what it should? Measured, judged, and said in words."""

import dataclasses
import json
import math

import numpy as np
import numpy.typing as npt

from calib_library.catalogue import cameras
from calib_library.frame import FrameRecord
from calib_library.library import CalibrationLibrary
from daemon.calibration import Calibrator, masters_in, sampled_rows, sections_of
from daemon.ledger.conditions import Finding
from daemon.light import background, residual
from daemon.light.noise import neighbour_noise
from daemon.placing import Light

COOLER_C = 2.0
"""°C between the set point and the sensor from which the cooler has failed."""
HOT = 0.10
"""Of the hot pixels' signal; 1 °C makes as much."""
HARM = 0.3
"""Of a light's noise, at a typical hot pixel: less does no harm (algorithms, section 10)."""
LARGE_SCALE = 0.15
"""Of the amplifier's glow, or of the vignetting."""
NOISE = 0.10
"""More noise after calibration than before it."""
UNEXPLAINED = 0.2
"""More noise than photons and the measured read noise make."""
TOO_QUIET = 0.85
"""Noise over that of the sky's own photons."""
COVERED_STARS = 3
"""A light with fewer may be none."""
LIT = 0.15
"""Of full scale: a sky so bright without stars is the panel's, or the twilight's."""
CERTAIN = 0.5
"""A large-scale residual that is known worse than this says nothing."""

_FULL_SCALE = 65535.0
_LEVEL_ROWS = 4
"""Of so many sampled rows one tells the level."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Patterns:
    """What the applied masters would leave behind."""

    witnesses: residual.Witnesses | None
    large: residual.LargeScale | None
    flat_rows: npt.NDArray[np.float32] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Checked:
    """The verdict on one light's calibration."""

    findings: tuple[Finding, ...]
    lines: tuple[str, ...]
    """For `lightkeeper explain`."""
    no_light: str | None
    """Why this is no light at all, where it is none."""


class SelfCheck:
    """Measures lights against the masters that were applied to them; keeps the last patterns."""

    def __init__(self, calibrator: Calibrator, library: CalibrationLibrary) -> None:
        self._calibrator = calibrator
        self._library = library
        self._key = ""
        self._patterns = _Patterns(None, None, None)

    def look(self, raw: npt.NDArray[np.generic], record: FrameRecord, light: Light) -> Checked:
        """Judge the calibration of a light whose raw (ny, nx) pixels are given, ADU."""
        bayer = record.key.bayer_pattern is not None
        sample = sampled_rows(len(raw))
        raw_noise = light.calibration.noise_adu
        if raw_noise is None or raw.shape != (record.key.height, record.key.width):
            raw_noise = neighbour_noise(raw[sample], bayer=bayer)
        patterns = self._of(raw_noise, record, light)
        glow, vignetting = residual.large_scale(
            residual.coarse(np.mean(light.cells, axis=0)), patterns.large
        )
        hot = None
        if patterns.witnesses is not None:
            hot = residual.hot_residual(
                raw,
                patterns.witnesses,
                noise_adu=raw_noise,
                saturation_adu=record.saturation_adu or _FULL_SCALE,
                bayer=bayer,
            )
        # A debayered plane has less noise than its mosaic: only monochrome frames are compared.
        added = unexplained = None
        if not bayer:
            after = residual.sky_noise(light.image[sample], patterns.flat_rows, bayer=False)
            if any(light.calibration.ids().values()):
                added = residual.added_noise(after, raw_noise)
            unexplained = self._unexplained(after, raw[sample][::_LEVEL_ROWS], record)
        found = residual.Residuals(hot, glow, vignetting, added, unexplained)
        strength = patterns.witnesses.strength_adu if patterns.witnesses else 0.0
        covered = _covered(found, record, light)
        no_light = covered or _flat_like(record, light)
        # What a covered camera or a flat shows says nothing of its calibration.
        findings = () if no_light else judge(found, record, light, strength_adu=strength)
        return Checked((_cover(covered, record, light), *findings), _lines(found), no_light)

    def _unexplained(
        self, noise_adu: float, raw: npt.NDArray[np.generic], record: FrameRecord
    ) -> float | None:
        measured = cameras.sensor(self._library, record.key, record.row_order)
        if measured is None or measured.sensor is None:
            return None
        return residual.unexplained_noise(
            noise_adu,
            raw,
            e_per_adu=measured.sensor.gain.value,
            read_noise_e=measured.sensor.read_noise.value,
            offset_adu=measured.sensor.offset_adu,
        )

    def _of(self, noise_adu: float, record: FrameRecord, light: Light) -> _Patterns:
        # The patterns of masters hardly change within a degree, however their weights do.
        masters = light.calibration.ids()
        celsius = round(record.temperature_c or 0.0)
        key = json.dumps([sorted(masters_in(masters)), masters["flat"], celsius])
        if key != self._key:
            bayer = record.key.bayer_pattern is not None
            dark, flat, *_ = self._calibrator.arrays(noise_adu, record, light.calibration)
            dark = dark if light.calibration.dark is not None else None
            dark_cells, flat_cells = (
                None if master is None else residual.coarse(background.cell_means(master))
                for master in (dark, flat)
            )
            self._patterns = _Patterns(
                None if dark is None else residual.warm_pixels(dark, bayer=bayer),
                residual.structure(dark_cells, flat_cells),
                None if flat is None else flat[sampled_rows(len(flat))].copy(),
            )
            self._key = key
        return self._patterns


def judge(
    found: residual.Residuals, record: FrameRecord, light: Light, *, strength_adu: float
) -> tuple[Finding, ...]:
    """What a light's residuals say of its camera and its masters: one finding for each condition
    that could be told.
    """
    camera = record.key.camera or "the camera"
    dark = light.calibration.dark.name if light.calibration.dark else ""
    flat = light.calibration.flat.name if light.calibration.flat else ""
    noise, sky = light.quality.noise_adu, light.quality.sky_adu
    findings = [_cooler(record, camera)] if _has_set_point(record) else []
    if dark:
        findings.append(_dark_level(dark, sky, noise))
    if found.hot is not None and dark:
        findings.append(_hot(found.hot, dark, record, strength_adu / max(noise, 1e-6)))
    if found.glow is not None and dark:
        findings.append(_glow(found.glow, dark))
    if found.vignetting is not None and flat:
        findings.append(_vignetting(found.vignetting, flat))
    if found.added_noise is not None and (dark or flat):
        findings.append(_noise(found.added_noise, dark or flat))
    if found.unexplained_noise is not None:
        findings.append(_unexplained(found.unexplained_noise, camera))
    # With the camera's offset still in it the sky looks far brighter than it is.
    bare = light.calibration.subtracted is not None or sections_of(record.key).bias is not None
    if record.e_per_adu and bare and sky > 0 and noise > 0:
        findings.append(_gain(record.e_per_adu, camera, sky, noise))
    return tuple(findings)


def _has_set_point(record: FrameRecord) -> bool:
    return record.set_temperature_c is not None and record.temperature_c is not None


def _cooler(record: FrameRecord, camera: str) -> Finding:
    at, asked = record.temperature_c or 0.0, record.set_temperature_c or 0.0
    return Finding(
        "cooler",
        camera,
        abs(at - asked) > COOLER_C,
        f"the sensor is at {at:.1f} °C and was set to {asked:.1f} °C: the cooler does not hold. "
        "Look at its power, or choose a set point it can reach",
        certain=True,
    )


def _dark_level(dark: str, sky: float, noise: float) -> Finding:
    return Finding(
        "dark level",
        dark,
        sky < -max(2.0, 0.25 * noise),
        f"{dark} is {-sky:.1f} ADU brighter than the light it was taken from: light leaked into "
        "the darks, or their offset is another. Take darks again, cover on, in the dark",
    )


def _hot(hot: residual.Estimate, dark: str, record: FrameRecord, strength: float) -> Finding:
    bad = hot.differs(HOT) and abs(hot.value) * strength > HARM
    if hot.value <= -1.0 or record.temperature_c is None:
        why = "the dark is of another camera, or moved"
    else:
        off = residual.warmer_by(hot.value, temperature_c=record.temperature_c)
        side = "warmer" if off > 0 else "colder"
        why = f"as if the sensor had been {abs(off):.1f} °C {side} than the dark says"
    return Finding(
        "hot pixels",
        dark,
        bad,
        f"the hot pixels of the lights stand at {1.0 + hot.value:.2f} times those of {dark}, "
        f"{why}. Look at the cooler, and take darks at the temperature of the lights",
    )


def _glow(glow: residual.Estimate, dark: str) -> Finding:
    word = "is left" if glow.value > 0 else "too much was taken off"
    return Finding(
        "glow",
        dark,
        glow.differs(LARGE_SCALE, sigmas=3.0),
        f"{abs(glow.value):.0%} of the glow in {dark} {word}: its exposure, gain or readout mode "
        "is not that of the lights, or light leaked into the darks",
    )


def _vignetting(left: residual.Estimate, flat: str) -> Finding:
    """Only what is over-corrected is a fault for certain: a nebula in the middle, where targets
    are, looks like vignetting that was left.
    """
    return Finding(
        "vignetting",
        flat,
        left.value < 0 and left.differs(LARGE_SCALE, sigmas=3.0),
        f"{flat} over-corrects the vignetting by {-left.value:.0%}: it lacks its own darks, or is "
        "of another optical train or focus. Take flats and flat-darks again",
    )


def _noise(added: float, master: str) -> Finding:
    return Finding(
        "noise of masters",
        master,
        added > NOISE,
        f"calibration with {master} makes the lights noisier by {added:.0%}: its frames are too "
        "few. Take more; `lightkeeper library advice` says how many",
    )


def _unexplained(more: float, camera: str) -> Finding:
    return Finding(
        "noise",
        camera,
        more > UNEXPLAINED,
        f"the lights of {camera} are {more:.0%} noisier than their sky and the measured read noise "
        "make: interference from a cable or a supply, or masters of too few frames",
    )


def _gain(e_per_adu: float, camera: str, sky: float, noise: float) -> Finding:
    photons = math.sqrt(sky / e_per_adu)
    return Finding(
        "gain",
        camera,
        noise < TOO_QUIET * photons,
        f"the lights of {camera} have a noise of {noise:.1f} ADU where their sky alone must make "
        f"{photons:.1f} ADU at {e_per_adu:g} e-/ADU: EGAIN in the header is wrong (at least "
        f"{sky / noise**2:.2f} is right), or the camera smooths its frames",
    )


def _cover(covered: str | None, record: FrameRecord, light: Light) -> Finding:
    return Finding(
        "closed cover",
        record.key.camera or "the camera",
        covered is not None,
        covered or f"{light.quality.stars} stars",
        certain=True,
    )


def _covered(found: residual.Residuals, record: FrameRecord, light: Light) -> str | None:
    """A light with no star, no sky and the hot pixels of its dark (or a bias's level, where there
    is no dark) was taken with the cover on.
    """
    dark = light.calibration.dark or light.calibration.bias
    if dark is None or light.quality.stars >= COVERED_STARS:
        return None
    dark_inside = found.hot is None or abs(found.hot.value) < 0.5
    if not dark_inside or abs(light.quality.sky_adu) > max(2.0, 0.3 * light.quality.noise_adu):
        return None
    what = "signal" if light.calibration.dark else "level"
    return (
        f"no stars, no sky, and the same {what} as {dark.name}: the cover was closed. Open it; if "
        f"this is a dark, its {record.sources.get('frame_type', 'header')} is wrong"
    )


def _flat_like(record: FrameRecord, light: Light) -> str | None:
    """A bright, even sky without a star is a flat's, or of the day."""
    full = record.saturation_adu or _FULL_SCALE
    part = light.quality.sky_adu / full
    if light.quality.stars >= COVERED_STARS or part < LIT:
        return None
    return (
        f"no stars, and evenly lit to {part:.0%} of full scale: it looks like a flat. If it is "
        f"one, its {record.sources.get('frame_type', 'header')} is wrong"
    )


def _lines(found: residual.Residuals) -> tuple[str, ...]:
    lines = []
    if found.hot is not None:
        lines.append(
            f"hot pixels: {1.0 + found.hot.value:.3f} ± {found.hot.error:.3f} times the dark's"
        )
    if found.glow is not None and found.glow.error < CERTAIN:
        lines.append(f"glow left: {found.glow.value:+.1%} ± {found.glow.error:.1%}")
    if found.vignetting is not None and found.vignetting.error < CERTAIN:
        what = "vignetting or nebula left" if found.vignetting.value > 0 else "vignetting left"
        lines.append(f"{what}: {found.vignetting.value:+.1%} ± {found.vignetting.error:.1%}")
    if found.added_noise is not None:
        lines.append(f"noise of neighbouring pixels: {found.added_noise:+.1%} by calibration")
    if found.unexplained_noise is not None:
        lines.append(
            f"noise over that of sky and readout, as measured: {1 + found.unexplained_noise:.3f}"
        )
    return tuple(lines)
