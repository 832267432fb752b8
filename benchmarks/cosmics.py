"""Cosmic rays in single frames at 26 megapixels: `cosmic.clean` beside astroscrappy, in one run.

    python benchmarks/cosmics.py [--shape 4176x6248] [--rays 200] [--repeat 9] [--json FILE]

Two simulated lights, once with a dark subtracted and once without, as on a first night: there every
hot pixel counts as a ray. Ours is the median of `--repeat` calls; astroscrappy goes once over the
whole frame, with the same options. Whether the masks are identical is printed beside the times.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

# `daemon` asks astroscrappy in one thread; here it has all.
os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())

import astroscrappy
import numpy as np
import numpy.typing as npt

from calib_library.frame import FrameType
from daemon.light import cosmic
from daemon.light.background import measure_background
from daemon.simulator.camera import make_camera
from daemon.simulator.night import plan_night, take
from daemon.simulator.sky import make_sky

T = TypeVar("T")
F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


class Light(NamedTuple):
    """A light, ADU, and what its camera is known for."""

    image: F32
    struck: Bool
    e_per_adu: float
    saturation_adu: float


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shape", default="4176x6248", help="rows x columns")
    parser.add_argument("--rays", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def lights(shape: tuple[int, int], *, rays: int, seed: int) -> dict[str, Light]:
    """Simulate a light, and subtract a dark or its level."""
    camera = make_camera(shape, seed=seed, filters=("R",))
    plan = plan_night(
        make_sky(shape, seed=seed),
        camera,
        seed=seed,
        filters=("R",),
        bias=0,
        darks=1,
        flats=0,
        flat_darks=0,
        lights=1,
        cloud=False,
        bump=False,
    )
    shots = {shot.kind: shot for shot in plan.shots}
    dark = take(plan, shots[FrameType.DARK]).pixels.astype(np.float32)
    frame = take(plan, dataclasses.replace(shots[FrameType.LIGHT], cosmic_rays=rays))
    struck = frame.truth.cosmic
    assert struck is not None
    raw = frame.pixels.astype(np.float32)
    known = (struck, camera.e_per_adu, 0.95 * min(65535.0, camera.full_well_e / camera.e_per_adu))
    return {
        "dark subtracted": Light(raw - dark, *known),
        "no dark": Light(raw - np.median(dark), *known),
    }


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """What `work` returns, and its wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def compare(light: Light, *, repeat: int) -> dict[str, float | int | bool]:
    """Clean one light in both ways."""
    background = measure_background(light.image)
    level, gain = background.level_adu, light.e_per_adu
    noise = cosmic.read_noise(background.sigma_adu, level, gain)

    def ours() -> tuple[F32, Bool]:
        return cosmic.clean(
            light.image,
            e_per_adu=gain,
            read_noise_e=noise,
            sky_adu=level,
            saturation_adu=light.saturation_adu,
        )

    ours()  # the kernels are compiled, or come from their cache
    walls, cpus = [], []
    for _ in range(repeat):
        (_, mask), wall, cpu = timed(ours)
        walls.append(wall)
        cpus.append(cpu)
    (expected, _), their_wall, their_cpu = timed(
        lambda: astroscrappy.detect_cosmics(
            light.image,
            niter=1,
            sigclip=6.0,
            objlim=10.0,
            sepmed=False,
            gain=gain,
            readnoise=noise,
            satlevel=light.saturation_adu * gain,
            cleantype="meanmask",
        )
    )
    our_wall, our_cpu = statistics.median(walls), statistics.median(cpus)
    return {
        "flagged pixels": int(mask.sum()),
        "pixels that differ": int((mask != expected).sum()),
        "masks identical": bool((mask == expected).all()),
        "struck pixels found": float(mask[light.struck].mean()),
        "ours, wall s": our_wall,
        "ours, CPU s": our_cpu,
        "astroscrappy, wall s": their_wall,
        "astroscrappy, CPU s": their_cpu,
        "wall, ours / astroscrappy": our_wall / their_wall,
        "CPU, ours / astroscrappy": our_cpu / their_cpu,
    }


def main() -> None:
    """Generate, measure, print."""
    args = arguments()
    ny, nx = (int(part) for part in args.shape.split("x"))
    print(f"{ny * nx / 1e6:.1f} megapixels, {args.rays} rays, {os.cpu_count()} cores")
    figures = {}
    for name, light in lights((ny, nx), rays=args.rays, seed=args.seed).items():
        figures[name] = compare(light, repeat=args.repeat)
        print(f"\n{name}")
        for what, value in figures[name].items():
            shown = f"{value:.4f}" if isinstance(value, float) else str(value)
            print(f"  {what:<30}{shown:>12}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))
    if not all(figure["masks identical"] for figure in figures.values()):
        raise SystemExit("the masks differ")


if __name__ == "__main__":
    main()
