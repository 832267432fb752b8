"""The night that all programs work on: simulated, reproducible, its truth beside it.

    python night.py make '{"folder": …, "shape": [4176, 6248], …}'

writes `in/` (the frames as a camera program leaves them), `truth.json` (of each light: its
transform, whether a satellite crossed it) and, for programs that want numbered files of one kind in
a folder, `sequences/{bias,dark,flat,light}/…_00001.fit` as links. One filter, mono, 16 bit; 120 s
lights at −10 °C with dithers of 9 px, seeing between 2.4 and 3.8 px, a sky that brightens by a
quarter, satellite trails on every fifth light, a meridian flip half-way (180.3°), six cosmic rays a
frame, 0.5 % of hot pixels, vignetting of 35 % and dust. No cloud and no bump: every light belongs
into the stack, so that programs can be held to registering all of them.
"""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

from answer import serve

from daemon.simulator.camera import make_camera
from daemon.simulator.night import NightPlan, plan_night, take
from daemon.simulator.sky import make_sky
from daemon.simulator.writer import write_frame

FILTER = "R"
PLAN_KEY = "plan"
_inherited: dict[str, tuple[NightPlan, Path]] = {}


def make(
    *,
    folder: str,
    shape: tuple[int, int],
    bias: int,
    darks: int,
    flats: int,
    lights: int,
    seed: int,
) -> dict[str, Any]:
    """Write the night; each frame is taken by one of as many processes as there are cores."""
    root = Path(folder)
    shape = (shape[0], shape[1])
    plan = plan_night(
        make_sky(shape, seed=seed),
        make_camera(shape, seed=seed, filters=(FILTER,)),
        seed=seed,
        filters=(FILTER,),
        bias=bias,
        darks=darks,
        flats=flats,
        flat_darks=0,
        lights=lights,
        cloud=False,
        bump=False,
        trails=lights // 5,
    )
    # Inherited by fork: the maps of sky and camera are not copied for each process.
    _inherited[PLAN_KEY] = (plan, root / "in")
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        paths = [Path(path) for path in pool.imap(_take, range(len(plan.shots)))]
    truth: dict[str, Any] = {}
    numbers: dict[str, int] = {}
    for shot, path in zip(plan.shots, paths, strict=True):
        kind = str(shot.kind)
        numbers[kind] = number = numbers.get(kind, 0) + 1
        link = root / "sequences" / kind / f"{kind}_{number:05d}.fit"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
        if kind == "light":
            truth[path.name] = {
                "matrix": shot.matrix.tolist(),
                "trail": shot.trail is not None,
                "fwhm_px": shot.fwhm_px,
            }
    (root / "truth.json").write_text(json.dumps(truth))
    return {"bytes": sum(path.stat().st_size for path in paths), "frames": len(paths)}


def _take(index: int) -> str:
    plan, folder = _inherited[PLAN_KEY]
    return str(write_frame(folder, take(plan, plan.shots[index])))


if __name__ == "__main__":
    serve({"make": make})
