"""How long a light takes, and how much memory, at 26 megapixels: file complete → stack updated.

    python benchmarks/light26.py [--folder DIR] [--lights 12] [--shape 4176x6248]
        [--memory-mb 2500] [--json FILE]

Simulated frames are written to DIR (a tmpfs by choice: the disk is not what is measured), the
daemon's own parts work on them one by one, and each step is timed. Cold is the first light of the
process (kernels from their cache, masters from disk); warm is the median of the others. At the end
the stack is dropped from memory and replayed from its raw frames, as after a restart, or when the
memory went to another filter's stack; 200 frames are extrapolated: what the first of them cost,
which were cleaned of cosmic rays each by itself, and the median of the others for all the rest.

A table tells where the time of a warm light goes: each stage's own, without that of the stages it
calls, on the wall's clock and of the processor (all threads); of the lights that were cleaned of
cosmic rays, the first of a stack, and of the others.
"""

import argparse
import datetime as dt
import functools
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from side_by_side.points import POINTS
from side_by_side.stages import Seconds, Stages, added, clocks, medians, since, without

from calib_library import schema
from calib_library.frame import FrameType
from calib_library.images import frame_file
from daemon import masters, remake, warmup
from daemon.config import parse
from daemon.ledger.ledger import Ledger
from daemon.log import StatusLog
from daemon.parts import MEGABYTE, Parts, compose
from daemon.pipeline import COSMICS_BELOW_FRAMES
from daemon.simulator.camera import make_camera
from daemon.simulator.night import plan_night, take
from daemon.simulator.sky import make_sky
from daemon.simulator.writer import write_frame
from daemon.stack.store import Growing

Figures = dict[str, float]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--lights", type=int, default=12)
    parser.add_argument("--calibration", type=int, default=20, help="darks and flats, each")
    parser.add_argument("--shape", default="4176x6248", help="rows x columns")
    parser.add_argument("--memory-mb", type=int, default=2500, help="memory for growing stacks")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def peak_mb() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Generate, measure, print."""
    args = arguments()
    ny, nx = (int(part) for part in args.shape.split("x"))
    folder = Path(tempfile.mkdtemp(prefix="lightkeeper-bench-", dir=args.folder))
    try:
        # The frames come from a child, so that its memory is not counted as the daemon's.
        child = os.fork()
        if child == 0:
            generate(folder, (ny, nx), lights=args.lights, calibration=args.calibration)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit("the frames could not be generated")
        figures, stages = measure(folder, megapixels=ny * nx / 1e6, memory_mb=args.memory_mb)
    finally:
        shutil.rmtree(folder)
    for name, value in figures.items():
        print(f"{name:<44}{value:10.3f}")
    for title, steps in stages.items():
        print_stages(title, steps)
    if args.json:
        args.json.write_text(json.dumps({**figures, "stages, s": stages}, indent=1))


def print_stages(title: str, steps: Mapping[str, Seconds]) -> None:
    """The longest first."""
    print(f"\n{title + ', by stage':<44}{'wall, ms':>10}{'CPU, ms':>10}")
    for name, (wall, cpu) in sorted(steps.items(), key=lambda step: -step[1][0]):
        print(f"  {name:<42}{1000 * wall:>10.1f}{1000 * cpu:>10.1f}")


def generate(folder: Path, shape: tuple[int, int], *, lights: int, calibration: int) -> None:
    """Write the night's frames below `folder/in`."""
    sky = make_sky(shape, seed=11)
    camera = make_camera(shape, seed=11, filters=("R",))
    plan = plan_night(
        sky,
        camera,
        seed=11,
        filters=("R",),
        bias=0,
        darks=calibration,
        flats=calibration,
        flat_darks=5,
        lights=lights,
        cloud=False,
        bump=False,
    )
    for number, shot in enumerate(plan.shots, start=1):
        write_frame(folder / "in", take(plan, shot))
        print(f"\rframe {number} of {len(plan.shots)}", end="", flush=True)
    print()


def measure(
    folder: Path, *, megapixels: float, memory_mb: int
) -> tuple[Figures, dict[str, dict[str, Seconds]]]:
    """Let the daemon's parts work on the frames: figures by name, and the stages of warm lights."""
    stages = Stages(POINTS)
    steps: list[dict[str, Seconds]] = []
    (folder / "library").mkdir()
    config = parse(
        f'[library]\npath = "{folder / "library"}"\n[[watch]]\npath = "{folder / "in"}"\n'
        f"[stack]\nmemory_mb = {memory_mb}\n",
        base=folder,
    )
    database = config.library.path / schema.DATABASE_NAME
    db = schema.connect(database)
    schema.apply(db)
    Ledger.prepare(db)
    with Path(os.devnull).open("w") as nowhere:
        log = StatusLog(config.library.path / "status.log", stream=nowhere)
        parts = compose(config, db, log, quiet_s=lambda: 0.0, beat=lambda _: None)
        figures: Figures = {"megapixels": megapixels, "cores": float(os.cpu_count() or 1)}
        figures["load of the machine at the start"] = os.getloadavg()[0]
        began = time.perf_counter()
        warmup.kernels()
        figures["kernels ready, s"] = time.perf_counter() - began
        now = dt.datetime.now(dt.UTC)
        arrive(parts, folder / "in", now=now)
        filed: list[float] = []
        lights: list[float] = []
        processor: list[float] = []
        built = False
        while (frame := parts.ledger.claim(now)) is not None:
            is_light = frame.frame_type is FrameType.LIGHT
            if is_light and not built:
                figures["memory after filing, MB"] = peak_mb()
                began = time.perf_counter()
                count = masters.build_due(
                    parts.pipeline, now=dt.datetime.now(dt.UTC), quiet_s=0.0, beat=lambda _: None
                )
                figures[f"{count} masters, read, combined, written, s"] = (
                    time.perf_counter() - began
                )
                figures["memory after the masters, MB"] = peak_mb()
                built = True
            stages.take()
            started = clocks()
            parts.pipeline.process(frame, now=dt.datetime.now(dt.UTC))
            wall, cpu = since(started)
            (lights if is_light else filed).append(wall)
            if is_light:
                processor.append(cpu)
                own = stages.take()
                known = functools.reduce(added, own.values(), (0.0, 0.0))
                steps.append({**own, "the rest": without((wall, cpu), known)})
        summarise(filed, lights, processor, figures)
        began = time.perf_counter()
        parts.publisher.tick(dt.datetime.now(dt.UTC), flush=True)
        figures["stack rendered and written, s"] = time.perf_counter() - began
        figures["peak memory, MB"] = peak_mb()
        replayed(parts, figures)
        figures["peak memory, replay included, MB"] = peak_mb()
        figures["frames stacked"] = float(parts.ledger.count_states().get(("stacked", "light"), 0))
    return figures, grouped(steps)


def grouped(steps: Sequence[dict[str, Seconds]]) -> dict[str, dict[str, Seconds]]:
    """The medians of the stages of warm lights, of those that were cleaned and of the others."""
    groups = {
        "a light, cleaned of cosmic rays": steps[1:COSMICS_BELOW_FRAMES],
        "a light": steps[COSMICS_BELOW_FRAMES:],
    }
    return {title: medians(some) for title, some in groups.items() if some}


def summarise(
    filed: list[float], lights: list[float], processor: list[float], figures: Figures
) -> None:
    """What the frames took, in seconds, into `figures`."""
    figures["a calibration frame filed, median s"] = statistics.median(filed)
    figures["first light, cold, s"] = lights[0]
    figures["light, warm, median s"] = statistics.median(lights[1:])
    figures["light, warm, slowest s"] = max(lights[1:])
    figures["light, warm, median CPU s"] = statistics.median(processor[1:])


def arrive(parts: Parts, root: Path, *, now: dt.datetime) -> None:
    """Enter all files below `root` in the ledger, as the intake does."""
    for path in sorted(root.rglob("*.fits")):
        stat = path.stat()
        info = frame_file.probe(path)
        parts.ledger.add(
            path=path,
            root=root,
            size=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            identity=parts.pipeline.identify(info, root=root, mtime_ns=stat.st_mtime_ns),
            now=now,
        )


def replayed(parts: Parts, figures: dict[str, float]) -> None:
    """Drop the stack from memory and make it again from its raw frames, into `figures`."""
    (stack,) = parts.stacks.all()
    members = parts.stacks.members(stack.id)
    parts.live.forget(stack.id)
    growing = Growing(parts.config.stack.memory_mb * MEGABYTE, stack.bayer_pattern)
    cleaned: list[float] = []
    others: list[float] = []
    processor: list[float] = []
    began, busy = time.perf_counter(), time.process_time()
    for image, mask, member in remake.replay(parts.pipeline, stack, members, parts.beat):
        growing.add(image, mask, member)
        del image, mask
        took = time.perf_counter() - began
        if "cosmics cleaned" in member.flags:
            cleaned.append(took)
        else:
            others.append(took)
            processor.append(time.process_time() - busy)
        began, busy = time.perf_counter(), time.process_time()
    figures["a frame replayed, median s"] = statistics.median(others)
    figures["a frame replayed, median CPU s"] = statistics.median(processor)
    figures["a frame replayed and cleaned, median s"] = statistics.median(cleaned)
    rest = 200 - len(cleaned)
    figures["200 frames replayed, extrapolated s"] = sum(cleaned) + rest * statistics.median(others)


if __name__ == "__main__":
    main()
