"""A night at the telescope, planned from a seed and taken frame by frame, with its truth.

The plan decides everything that is not noise: pointing, seeing, clouds, mishaps, the clock. Every
frame draws its noise from its own stream, so that any frame can be taken alone, in any order.
"""

import dataclasses
import datetime as dt
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from calib_library.frame import Card, FrameType
from daemon.simulator.camera import Camera, Float32, UInt16, make_camera, mosaic
from daemon.simulator.headers import Exposure, Style, cards_of, name_of
from daemon.simulator.sky import Sky, band_of, make_sky

Float64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

TARGET = "Lantern Nebula"

_START = dt.datetime(2026, 11, 20, 17, 30, tzinfo=dt.UTC)
_OVERHEAD_S = {FrameType.LIGHT: 9.0, FrameType.FLAT: 2.0}
_OTHER_OVERHEAD_S = 1.0
_LAMP_LEVEL = 0.45  # of the full well
_LAMP_COLOUR = {"R": 0.62, "G": 1.0, "B": 0.78}  # what a colour camera sees of the flat panel
_FLAT_EXPOSURES_S = (1.5, 1.2, 2.0, 2.6)
_TRAIL_EDGE_E = 1.0  # a pixel belongs to a trail where it received more than this


@dataclasses.dataclass(frozen=True, slots=True)
class Trail:
    """A satellite or aeroplane that crosses the whole frame, in frame px."""

    x: float
    y: float
    angle_rad: float
    width_px: float
    """Full width at half maximum across the trail."""
    peak_e: float
    """Electrons on the trail's axis, above the atmosphere."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shot:
    """One planned exposure: everything about it but the noise."""

    index: int
    """Position in the night, from 0."""
    kind: FrameType
    filter: str | None
    exposure_s: float
    start: dt.datetime
    """Aware, UTC."""
    set_temperature_c: float | None
    temperature_c: float
    """°C, what the sensor has. Its header reads something near it."""
    reading_c: float
    """°C, what the camera reports: a jitter of ±0.1."""
    lamp_e_s: float = 0.0
    """e-/s/px of the flat panel, at full throughput."""
    matrix: Float64 = dataclasses.field(default_factory=lambda: np.eye(3))
    """Frame px → reference px, 3×3."""
    fwhm_px: float = 0.0
    transparency: float = 1.0
    """Of the air, against the clear sky's."""
    sky_e_s: float = 0.0
    """e-/s/px of the glow at the frame's centre, cloud included."""
    sky_gradient: tuple[float, float] = (0.0, 0.0)
    """Relative change of the glow from the centre to the right edge and to the last row."""
    trail: Trail | None = None
    cosmic_rays: int = 0
    bump_px: tuple[float, float] = (0.0, 0.0)
    """The mount was pushed by this much for the last two fifths of the exposure."""
    pier_side: str | None = None

    @property
    def ruined(self) -> bool:
        """No use to any stack: a bump, or so much cloud that little is left."""
        return self.bump_px != (0.0, 0.0) or self.transparency < 0.3


@dataclasses.dataclass(frozen=True, slots=True)
class NightPlan:
    """A sky, a camera and what is taken with them."""

    seed: int
    target: str
    sky: Sky
    camera: Camera
    shots: tuple[Shot, ...]

    def filters(self) -> tuple[str | None, ...]:
        """List the filters of the lights, in the order of their first use."""
        return tuple(dict.fromkeys(s.filter for s in self.shots if s.kind is FrameType.LIGHT))


@dataclasses.dataclass(frozen=True, slots=True)
class Truth:
    """What really happened in one frame."""

    shot: Shot
    trail: Mask | None
    """(ny, nx) pixels on a trail; None without one."""
    cosmic: Mask | None
    """(ny, nx) pixels hit by a cosmic ray; None without any."""


@dataclasses.dataclass(frozen=True, slots=True)
class SimulatedFrame:
    """One frame as the camera program has it, and its truth."""

    kind: FrameType
    filter: str | None
    exposure_s: float
    temperature_c: float
    """°C, as the header says (CCD-TEMP)."""
    pixels: UInt16
    """(ny, nx) ADU."""
    cards: tuple[Card, ...]
    """The header as the program would write it, without the structural keywords."""
    name: str
    """Path of the file below the output folder, with `/`."""
    truth: Truth


def frames(plan: NightPlan, *, style: Style = "nina") -> Iterator[SimulatedFrame]:
    """Take the whole night in order, headers and names in the style of a camera program."""
    for shot in plan.shots:
        yield take(plan, shot, style=style)


def take(plan: NightPlan, shot: Shot, *, style: Style = "nina") -> SimulatedFrame:
    """Take one shot of the plan; the same shot gives the same bits. Safe in any thread."""
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence([plan.seed, shot.index, 3])))
    camera = plan.camera
    strikes = _cosmic_rays(camera.shape, rng, count=shot.cosmic_rays)
    trail_e = None if shot.trail is None else _trail_light(shot.trail, camera.shape)
    pixels = camera.expose(
        scene(plan, shot, trail_e=trail_e),
        filter_name=shot.filter,
        exposure_s=shot.exposure_s,
        temperature_c=shot.temperature_c,
        rng=rng,
        strikes_e=strikes,
    )
    exposure = Exposure(
        kind=shot.kind,
        number=shot.index,
        filter=shot.filter,
        exposure_s=shot.exposure_s,
        start=shot.start,
        reading_c=shot.reading_c,
        set_temperature_c=shot.set_temperature_c,
        pier_side=shot.pier_side,
        target=plan.target if shot.kind is FrameType.LIGHT else None,
        camera=camera.name,
        shape=camera.shape,
        gain_setting=camera.gain_setting,
        offset_setting=camera.offset_setting,
        e_per_adu=camera.e_per_adu,
        pixel_size_um=camera.pixel_size_um,
        bayer_pattern=camera.bayer_pattern,
    )
    return SimulatedFrame(
        kind=shot.kind,
        filter=shot.filter,
        exposure_s=shot.exposure_s,
        temperature_c=shot.reading_c,
        pixels=pixels,
        cards=cards_of(exposure, style=style),
        name=name_of(exposure, style=style),
        truth=Truth(shot=shot, trail=_above(trail_e, _TRAIL_EDGE_E), cosmic=_above(strikes, 0.0)),
    )


def scene(plan: NightPlan, shot: Shot, *, trail_e: Float32 | None = None) -> Float32 | None:
    """Compute the light that reaches the optics: (ny, nx) float32 e-/s/px, None with the cover on.

    `trail_e` (ny, nx) are electrons that trails bring in the whole exposure, at transparency 1.
    """
    camera = plan.camera
    if shot.kind is FrameType.FLAT:
        lamp = np.full(camera.shape, shot.lamp_e_s, dtype=np.float32)
        if camera.bayer_pattern is None:
            return lamp
        return mosaic(
            np.stack([lamp * np.float32(_LAMP_COLOUR[c]) for c in "RGB"]), camera.bayer_pattern
        )
    if shot.kind is not FrameType.LIGHT:
        return None
    light = _coloured(plan, shot)
    light *= np.float32(shot.transparency)
    light += _sky_glow(plan, shot)
    if trail_e is not None:
        light += trail_e * np.float32(shot.transparency / shot.exposure_s)
    return light


def noiseless(
    plan: NightPlan, band: str, *, fwhm_px: float, exposure_s: float, matrix: Float64 | None = None
) -> Float32:
    """Compute what a perfect stack would hold: (ny, nx) float32 ADU above the sky's level.

    In the reference's geometry (or a frame's, by its `matrix`), at transparency 1, flat.
    """
    light = plan.sky.render(band, fwhm_px=fwhm_px, matrix=matrix, shape=plan.camera.shape)
    light *= np.float32(exposure_s / plan.camera.e_per_adu)
    return light


def plan_night(
    sky: Sky,
    camera: Camera,
    *,
    seed: int,
    target: str = TARGET,
    filters: Sequence[str | None] = ("R", "G", "B"),
    bias: int = 10,
    darks: int = 10,
    flats: int = 10,
    flat_darks: int = 8,
    lights: int = 10,
    exposure_s: float = 120.0,
    set_temperature_c: float = -10.0,
    dark_sets: Sequence[tuple[float, float]] | None = None,
    seeing_px: tuple[float, float] = (2.4, 3.8),
    dither_px: float = 9.0,
    flip: bool = True,
    cloud: bool = True,
    bump: bool = True,
    trails: int = 3,
    cosmic_rays: int = 6,
    flats_at_dawn: bool = False,
    start: dt.datetime = _START,
) -> NightPlan:
    """Plan a night: calibration frames, then the lights, a cycle of the filters at a time.

    Counts of flats, flat-darks and lights hold for each filter. `dark_sets` lists (°C, s) of more
    than one set of darks; None is one set that fits the lights. `seeing_px` are the best and worst
    FWHM. `dither_px` is the standard deviation of the random pointing. Half-way `flip` turns the
    frame by 180° (nearly). `cloud` passes over some lights in a row and leaves one useless;
    `bump` ruins another. `trails` is the number of lights with a trail. With `flats_at_dawn` the
    flats and flat-darks come last. A camera without a filter wheel has the one filter None.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 4]))
    dark_list = dark_sets if dark_sets is not None else [(set_temperature_c, exposure_s)]
    closed = [(FrameType.BIAS, None, 0.0, set_temperature_c)] * bias
    for temperature, seconds in dark_list:
        closed += [(FrameType.DARK, None, seconds, temperature)] * darks
    panel: list[tuple[FrameType, str | None, float, float]] = []
    for index, name in enumerate(filters):
        seconds = _FLAT_EXPOSURES_S[index % len(_FLAT_EXPOSURES_S)]
        panel += [(FrameType.FLAT, name, seconds, set_temperature_c)] * flats
        panel += [(FrameType.FLAT_DARK, name, seconds, set_temperature_c)] * flat_darks
    subs = [
        (FrameType.LIGHT, name, exposure_s, set_temperature_c)
        for _ in range(lights)
        for name in filters
    ]
    sequence = closed + subs + panel if flats_at_dawn else closed + panel + subs
    sky_of_night = _Weather.draw(
        rng, count=len(subs), seeing_px=seeing_px, cloud=cloud, bump=bump, trails=trails
    )
    shots: list[Shot] = []
    clock, light_number = start, 0
    for index, (kind, name, seconds, temperature) in enumerate(sequence):
        true_c = temperature + rng.normal(0.0, 0.02)
        shot = Shot(
            index=index,
            kind=kind,
            filter=name,
            exposure_s=seconds,
            start=clock,
            set_temperature_c=temperature,
            temperature_c=true_c,
            reading_c=round(
                float(np.clip(rng.normal(true_c, 0.05), true_c - 0.1, true_c + 0.1)), 1
            ),
        )
        if kind is FrameType.FLAT:
            level = _LAMP_LEVEL * camera.full_well_e / seconds
            shot = dataclasses.replace(shot, lamp_e_s=level * rng.uniform(0.98, 1.02))
        if kind is FrameType.LIGHT:
            shot = _light(
                shot,
                camera,
                sky_of_night,
                number=light_number,
                rng=rng,
                dither_px=dither_px,
                flip=flip,
                cosmic_rays=cosmic_rays,
            )
            light_number += 1
        shots.append(shot)
        clock += dt.timedelta(seconds=seconds + _OVERHEAD_S.get(kind, _OTHER_OVERHEAD_S))
    return NightPlan(seed=seed, target=target, sky=sky, camera=camera, shots=tuple(shots))


def demo_plan(
    *,
    seed: int = 7,
    shape: tuple[int, int] = (900, 1200),
    lights: int = 10,
    bayer_pattern: str | None = None,
    flats_at_dawn: bool = False,
) -> NightPlan:
    """Plan the demonstration's night: one target in R, G and B, a hundred frames in all.

    With a Bayer pattern the camera has no filter wheel, and takes three times the lights.
    """
    filters: tuple[str | None, ...] = ("R", "G", "B") if bayer_pattern is None else (None,)
    return plan_night(
        make_sky(shape, seed=seed),
        make_camera(shape, seed=seed, filters=filters, bayer_pattern=bayer_pattern),
        seed=seed,
        filters=filters,
        lights=lights * 3 // len(filters),
        flats_at_dawn=flats_at_dawn,
    )


def small_plan(
    *,
    seed: int = 1,
    shape: tuple[int, int] = (192, 256),
    filters: Sequence[str | None] = ("R",),
    bayer_pattern: str | None = None,
    bias: int = 3,
    darks: int = 3,
    flats: int = 3,
    flat_darks: int = 3,
    lights: int = 4,
    exposure_s: float = 120.0,
    set_temperature_c: float = -10.0,
    dark_sets: Sequence[tuple[float, float]] | None = None,
    dither_px: float = 5.0,
    flip: bool = True,
    cloud: bool = False,
    bump: bool = False,
    trails: int = 0,
    cosmic_rays: int = 2,
    flats_at_dawn: bool = False,
) -> NightPlan:
    """Plan a short night of small frames for tests, without mishaps unless asked for."""
    used = tuple(filters) if bayer_pattern is None else (None,)
    return plan_night(
        make_sky(shape, seed=seed),
        make_camera(shape, seed=seed, filters=used, bayer_pattern=bayer_pattern),
        seed=seed,
        filters=used,
        bias=bias,
        darks=darks,
        flats=flats,
        flat_darks=flat_darks,
        lights=lights,
        exposure_s=exposure_s,
        set_temperature_c=set_temperature_c,
        dark_sets=dark_sets,
        dither_px=dither_px,
        flip=flip,
        cloud=cloud,
        bump=bump,
        trails=trails,
        cosmic_rays=cosmic_rays,
        flats_at_dawn=flats_at_dawn,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Weather:
    """Conditions of each light of the night, (n,) each, and its mishaps."""

    fwhm_px: Float64
    transparency: Float64
    sky: Float64
    """Relative to the clear sky's glow."""
    bumped: int | None
    with_trail: frozenset[int]

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        *,
        count: int,
        seeing_px: tuple[float, float],
        cloud: bool,
        bump: bool,
        trails: int,
    ) -> "_Weather":
        """Slow waves for seeing and haze, one bank of cloud, mishaps on frames of their own."""
        phase = np.linspace(0.0, 1.0, count) if count > 1 else np.zeros(count)
        wave = np.sin(2.0 * np.pi * (1.3 * phase + rng.random())) + 0.4 * np.sin(
            2.0 * np.pi * (3.7 * phase + rng.random())
        )
        best, worst = seeing_px
        fwhm = best + (worst - best) * np.clip(
            0.45 + 0.3 * wave + rng.normal(0.0, 0.06, count), 0.0, 1.0
        )
        haze = 1.0 - 0.05 * (1.0 + np.sin(2.0 * np.pi * (phase + rng.random()))) / 2.0
        transparency = haze + rng.normal(0.0, 0.004, count)
        sky = 1.0 + 0.25 * phase
        if cloud and count:
            middle = round(0.66 * count)
            distance = (np.arange(count) - middle) / max(1.0, 0.035 * count)
            bank = 0.86 * np.exp(-0.5 * distance**2)
            transparency *= 1.0 - bank
            sky *= 1.0 + 0.7 * bank
        clear = [int(i) for i in np.flatnonzero(transparency > 0.8)][1:]
        mishaps = [clear[int(i)] for i in rng.permutation(len(clear))]
        bumped = mishaps.pop() if bump and mishaps else None
        return cls(
            fwhm_px=fwhm,
            transparency=transparency,
            sky=sky,
            bumped=bumped,
            with_trail=frozenset(mishaps[:trails]),
        )


def _light(
    shot: Shot,
    camera: Camera,
    weather: _Weather,
    *,
    number: int,
    rng: np.random.Generator,
    dither_px: float,
    flip: bool,
    cosmic_rays: int,
) -> Shot:
    """Complete the plan of one light: pointing, conditions, mishaps."""
    ny, nx = camera.shape
    flipped = flip and number >= len(weather.fwhm_px) / 2
    # A mount comes back from its flip a little off in angle, and farther off in position.
    angle = rng.normal(0.0, 0.02) + (180.3 if flipped else 0.0)
    shift = rng.normal(0.0, dither_px, 2) + (
        np.array([1.8, -1.3]) * dither_px if flipped else np.zeros(2)
    )
    glow = band_of(shot.filter or "G").sky_e_s * weather.sky[number]
    trail = Trail(
        x=rng.uniform(0.3, 0.7) * nx,
        y=rng.uniform(0.3, 0.7) * ny,
        angle_rad=rng.uniform(0.0, math.pi),
        width_px=rng.uniform(2.5, 4.0),
        peak_e=rng.uniform(200.0, 900.0),
    )
    return dataclasses.replace(
        shot,
        matrix=rigid(camera.shape, angle_deg=angle, shift_px=(shift[0], shift[1])),
        fwhm_px=float(weather.fwhm_px[number]),
        transparency=float(weather.transparency[number]),
        sky_e_s=float(glow),
        sky_gradient=(
            float(rng.normal(0.03, 0.01)) * (-1.0 if flipped else 1.0),
            float(rng.normal(0.05, 0.01)) * (-1.0 if flipped else 1.0),
        ),
        trail=trail if number in weather.with_trail else None,
        cosmic_rays=int(rng.poisson(cosmic_rays)),
        bump_px=(9.0, 5.0) if number == weather.bumped else (0.0, 0.0),
        pier_side="East" if flipped else "West",
    )


def rigid(shape: tuple[int, int], *, angle_deg: float, shift_px: tuple[float, float]) -> Float64:
    """Make a frame → reference matrix, 3×3: a turn about the centre, then a shift."""
    cx, cy = (shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return np.array(
        [
            [cos, -sin, cx - cos * cx + sin * cy + shift_px[0]],
            [sin, cos, cy - sin * cx - cos * cy + shift_px[1]],
            [0.0, 0.0, 1.0],
        ]
    )


def _coloured(plan: NightPlan, shot: Shot) -> Float32:
    """Stars and nebula as the sensor's pixels see them, bump included, e-/s/px."""
    pattern = plan.camera.bayer_pattern
    if pattern is None:
        if shot.filter is None:
            raise ValueError("a monochrome camera takes its lights through a filter")
        return _rendered(plan, shot, shot.filter)
    return mosaic(np.stack([_rendered(plan, shot, band) for band in "RGB"]), pattern)


def _rendered(plan: NightPlan, shot: Shot, band: str) -> Float32:
    def seen(matrix: Float64) -> Float32:
        return plan.sky.render(band, fwhm_px=shot.fwhm_px, matrix=matrix, shape=plan.camera.shape)

    light = seen(shot.matrix)
    if shot.bump_px != (0.0, 0.0):
        pushed = np.eye(3)
        pushed[:2, 2] = shot.bump_px
        light = np.float32(0.6) * light + np.float32(0.4) * seen(shot.matrix @ pushed)
    return light


def _sky_glow(plan: NightPlan, shot: Shot) -> Float32:
    """Spread the sky's glow over the frame: (ny, nx) float32 e-/s/px, in its colour."""
    ny, nx = plan.camera.shape
    x = np.linspace(-1.0, 1.0, nx, dtype=np.float32)[None, :] * np.float32(shot.sky_gradient[0])
    y = np.linspace(-1.0, 1.0, ny, dtype=np.float32)[:, None] * np.float32(shot.sky_gradient[1])
    glow = np.float32(shot.sky_e_s) * (np.float32(1.0) + x + y)
    pattern = plan.camera.bayer_pattern
    if pattern is None:
        return glow
    tints = [np.float32(band_of(c).sky_e_s / band_of("G").sky_e_s) for c in "RGB"]
    return mosaic(np.stack([glow * tint for tint in tints]), pattern)


def _trail_light(trail: Trail, shape: tuple[int, int]) -> Float32:
    """Electrons of a trail, (ny, nx) float32: Gaussian across, even along."""
    y = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(trail.y)
    x = np.arange(shape[1], dtype=np.float32)[None, :] - np.float32(trail.x)
    across = x * np.float32(math.sin(trail.angle_rad)) - y * np.float32(math.cos(trail.angle_rad))
    sigma = trail.width_px / 2.3548
    light: Float32 = np.float32(trail.peak_e) * np.exp(across**2 / np.float32(-2.0 * sigma**2))
    return light


def _cosmic_rays(shape: tuple[int, int], rng: np.random.Generator, *, count: int) -> Float32 | None:
    """Draw the tracks of particles: electrons (ny, nx) float32; None for none."""
    if count == 0:
        return None
    strikes = np.zeros(shape, dtype=np.float32)
    for _ in range(count):
        y, x = rng.uniform(0, shape[0] - 1), rng.uniform(0, shape[1] - 1)
        angle, length = rng.uniform(0.0, 2.0 * math.pi), rng.exponential(4.0)
        steps = np.arange(0.0, max(length, 0.5), 0.5)
        rows = np.rint(y + steps * math.sin(angle)).astype(np.int64)
        columns = np.rint(x + steps * math.cos(angle)).astype(np.int64)
        inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
        np.add.at(strikes, (rows[inside], columns[inside]), rng.lognormal(np.log(700.0), 0.7))
    return strikes


def _above(electrons: Float32 | None, limit: float) -> Mask | None:
    return None if electrons is None else np.greater(electrons, np.float32(limit))
