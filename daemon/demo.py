"""`lightkeeper demo`: the real daemon on a simulated camera, from the first bias to the stacks."""

import threading
import time
from pathlib import Path

from rich.console import Console

from daemon import service
from daemon.config import Config, parse
from daemon.config_example import example
from daemon.log import LOG_NAME
from daemon.report import collect
from daemon.simulator.night import NightPlan, demo_plan
from daemon.simulator.writer import write_night

PACE_S = 0.45
"""s between two frames: a night in about a minute."""

FAST_PACE_S = 0.0


def demo(folder: Path, *, fast: bool = False) -> int:
    """Take a simulated night into `folder` with the daemon watching; returns the exit code.

    Raises FileExistsError where the folder is not empty: nobody's frames are mixed with invented
    ones.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    folder = folder.absolute()
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty: give the demonstration a new folder (--folder)"
        )
    frames, library = folder / "camera", folder / "library"
    frames.mkdir(parents=True)
    text = example(watch=str(frames), library=str(library)).replace("quiet_s = 60", "quiet_s = 2")
    (folder / "config.toml").write_text(text)
    config = parse(text, name="config.toml", base=folder)
    plan = demo_plan()
    console.print(
        f"A night on {plan.target}: {len(plan.shots)} frames of {plan.camera.shape[1]} × "
        f"{plan.camera.shape[0]} px drop into {frames}"
    )
    began = time.monotonic()
    code = _night(config, plan, frames, pace_s=FAST_PACE_S if fast else PACE_S)
    _summary(console, config, time.monotonic() - began)
    return code


def _night(config: Config, plan: NightPlan, frames: Path, *, pace_s: float) -> int:
    """Run the camera in a thread and the daemon in this one, until both are done."""
    done = threading.Event()

    def camera() -> None:
        try:
            write_night(frames, plan, pace_s=pace_s)
        finally:
            done.set()

    thread = threading.Thread(target=camera, name="camera", daemon=True)
    thread.start()
    return service.run(config, until_idle=True, not_before=done)


def _summary(console: Console, config: Config, seconds: float) -> None:
    report = collect.status(config)
    console.print(f"\nThe night took {seconds:.0f} s. What it left:")
    for stack in report.stacks:
        console.print(
            f"  {stack.target} {stack.filter}: {stack.frames} frames, "
            f"{stack.exposure_s / 60:.0f} min: {stack.path}"
        )
        if stack.preview:
            console.print(f"    picture {stack.preview}")
    for picture in sorted(config.library.path.glob("stacks/*/*.png")):
        console.print(f"  in colour: {picture}")
    left_out = report.frames_by_state.get("rejected", 0)
    if left_out:
        console.print(
            f"  {left_out} frames were left out; {config.library.path / LOG_NAME} says why"
        )
    console.print(
        "Next: lightkeeper status, library or explain FRAME with "
        f"--config {config.library.path.parent / 'config.toml'}"
    )
