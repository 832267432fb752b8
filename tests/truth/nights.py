"""Simulated nights through the daemon's real parts, kept open beside their truth.

The frames are written to disk as a camera program writes them; the ledger, the library, the
pipeline and the live stack take them from there (`daemon.worker.compose`). What is expected of them
is computed from the simulator's truth alone.
"""

import contextlib
import dataclasses
import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from calib_library.frame import FrameType
from calib_library.images import frame_file
from daemon import finish, masters
from daemon.bands import open_sources
from daemon.ledger.ledger import Frame
from daemon.ledger.stacks import Member, Stack
from daemon.light import debayer, warp
from daemon.parts import Parts
from daemon.simulator.camera import Camera, make_camera
from daemon.simulator.night import NightPlan, Shot, SimulatedFrame, Trail, plan_night
from daemon.simulator.sky import Sky, make_sky
from daemon.simulator.writer import write_night
from daemon.stack import live
from tests.nights import add, new_parts


@dataclasses.dataclass(frozen=True)
class Taken:
    """One light in the stack: what the daemon made of it, and what it is."""

    member: Member
    frame: Frame
    simulated: SimulatedFrame

    @property
    def shot(self) -> Shot:
        return self.simulated.truth.shot


@dataclasses.dataclass(frozen=True)
class Night:
    """A night that was worked through. `lights` are the stack's members in their order."""

    plan: NightPlan
    parts: Parts
    stack: Stack
    lights: tuple[Taken, ...]
    image: live.StackImage
    """The growing stack as it is at dawn."""

    # -- what the daemon has ------------------------------------------------------------------

    @property
    def camera(self) -> Camera:
        return self.plan.camera

    @property
    def bands(self) -> tuple[str, ...]:
        """The passband of each plane of the stack."""
        return ("R", "G", "B") if self.camera.bayer_pattern else (self.lights[0].shot.filter,)

    @property
    def terms(self) -> list[live.FrameTerms]:
        return [light.member.terms for light in self.lights]

    def calibrated(self, light: Taken) -> tuple[np.ndarray, np.ndarray]:
        """(planes, ny, nx) and mask of one light, as it was stacked."""
        pipeline = self.parts.pipeline
        image, mask = pipeline.calibrated(
            frame_file.load(light.frame.path),
            light.frame.record,
            pipeline.calibrator.recorded(light.member.masters),
            clean="cosmics cleaned" in light.member.flags,
        )
        pattern = self.camera.bayer_pattern
        return (debayer.debayer(image, pattern) if pattern else image[np.newaxis]), mask

    def mosaic(self, light: Taken) -> tuple[np.ndarray, np.ndarray]:
        """(ny, nx) and mask of one light, calibrated, before anything else."""
        calibrator = self.parts.pipeline.calibrator
        result = calibrator.apply(
            frame_file.load(light.frame.path).pixels,
            light.frame.record,
            calibrator.recorded(light.member.masters),
        )
        return result.image, result.mask

    def warped(self, light: Taken) -> np.ndarray:
        """(planes, ny, nx) on the stack's grid, scaled to the first frame, NaN where nothing is."""
        image, mask = self.calibrated(light)
        terms = light.member.terms
        rows = warp.warp_rows(
            image,
            light.member.matrix,
            rows=(0, image.shape[1]),
            width=image.shape[2],
            distortion=light.member.distortion,
            mask=mask,
            noise_adu=terms.sigma_adu / terms.scale,
        )
        y, x = np.mgrid[: image.shape[1], : image.shape[2]]
        planes = np.array([a + bx * x + by * y for a, bx, by in terms.planes])
        return (terms.scale * rows + planes).astype(np.float32)

    def final(self) -> live.StackImage:
        """The exact stack of the same frames, as `lightkeeper stack finish` makes it."""
        pipeline = self.parts.pipeline
        sources = open_sources(pipeline, [light.member for light in self.lights])
        return finish.combine(pipeline, sources, memory_bytes=200_000_000).image


@contextlib.contextmanager
def worked(plan: NightPlan, folder: Path) -> Iterator[Night]:
    """Take a planned night in, in its order; the parts stay open for the length of the block."""
    simulated: dict[str, SimulatedFrame] = {}
    paths = write_night(
        folder / "in", plan, on_frame=lambda frame, path: simulated.update({path.name: frame})
    )
    with new_parts(folder) as parts:
        for path in paths:
            add(parts, path, folder / "in", now=dt.datetime.now(dt.UTC))
        _work(parts)
        (stack,) = parts.stacks.all()
        members = parts.stacks.members(stack.id)
        frames = [parts.ledger.get(member.frame_id) for member in members]
        growing = parts.live.get(stack, members)
        yield Night(
            plan,
            parts,
            stack,
            tuple(
                Taken(member, frame, simulated[frame.path.name])
                for member, frame in zip(members, frames, strict=True)
            ),
            growing.render(),
        )


def _work(parts: Parts) -> None:
    """Calibration frames, their masters, then the lights."""
    built = False
    while (frame := parts.ledger.claim(dt.datetime.now(dt.UTC))) is not None:
        if frame.frame_type is FrameType.LIGHT and not built:
            masters.build_due(
                parts.pipeline, now=dt.datetime.now(dt.UTC), quiet_s=0.0, beat=lambda _: None
            )
            built = True
        parts.pipeline.process(frame, now=dt.datetime.now(dt.UTC))


def plan_for(
    seed: int, *, bayer: str | None, shape: tuple[int, int] = (640, 960), **changes: object
) -> NightPlan:
    """Plan the night of the measures: 20 lights of 300 s, trails in three, a flip half-way."""
    filters: tuple[str | None, ...] = ("R",) if bayer is None else (None,)
    settings = {
        "filters": filters,
        "exposure_s": 300.0,
        "lights": 20,
        "bias": 0,
        "darks": 16,
        "flats": 12,
        "flat_darks": 8,
        "seeing_px": (2.7, 3.5),
        "cloud": False,
        "bump": False,
    }
    plan = plan_night(
        sky_for(shape, seed=seed),
        make_camera(shape, seed=seed, filters=filters, bayer_pattern=bayer),
        seed=seed,
        **{**settings, **changes},
    )
    return with_trails(plan, brighter=2.0)


def with_trails(plan: NightPlan, *, brighter: float = 1.0, first_sigma: float = 0.0) -> NightPlan:
    """Make trails `brighter` than the simulator's, whose lights are shorter; where `first_sigma`
    is not 0, the first light has one of so many times the noise of its pixels.
    """
    first = next(shot for shot in plan.shots if shot.kind is FrameType.LIGHT)
    ny, nx = plan.camera.shape
    noise_e = float(np.sqrt(first.sky_e_s * first.exposure_s + plan.camera.read_noise_e**2))

    def trailed(shot: Shot) -> Shot:
        trail = shot.trail
        if trail is not None:
            trail = dataclasses.replace(trail, peak_e=brighter * trail.peak_e)
        if first_sigma and shot is first:
            trail = Trail(0.4 * nx, 0.5 * ny, 0.7, 3.0, first_sigma * noise_e)
        return dataclasses.replace(shot, trail=trail)

    return dataclasses.replace(plan, shots=tuple(trailed(shot) for shot in plan.shots))


def sky_for(shape: tuple[int, int], *, seed: int) -> Sky:
    """A field for the measures: the simulator's, and two things that a frame of 26 megapixels has
    and one as small as these has not: bright stars by the dozen, here on a grid of about 70 px, and
    a nebula without structure finer than the seeing.
    """
    zoom, pitch = 4, 70
    stars = round(2.3e-3 * shape[0] * shape[1])
    field = make_sky(shape, seed=seed, stars=stars, faintest_e_s=2.0, brightest_e_s=1000.0)
    coarse = make_sky((shape[0] // zoom, shape[1] // zoom), seed=seed)
    rng = np.random.default_rng([seed, 99])
    y, x = np.mgrid[pitch // 2 : shape[0] : pitch, pitch // 2 : shape[1] : pitch]
    bright = rng.uniform(-12, 12, (2, x.size)) + np.stack((x.ravel(), y.ravel()))
    flux = np.append(rng.uniform(400.0, 1000.0, x.size), field.flux)
    order = np.argsort(-flux)
    return dataclasses.replace(
        field,
        x=np.append(bright[0], field.x)[order],
        y=np.append(bright[1], field.y)[order],
        flux=flux[order],
        temperature_k=np.append(rng.uniform(4000, 8000, x.size), field.temperature_k)[order],
        nebula=coarse.nebula,
        cell_px=zoom * coarse.cell_px,
        origin_px=zoom * coarse.origin_px,
    )
