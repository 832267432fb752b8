"""How long a restart takes: the daemon is killed, and the stack must be in memory again.

    python -m benchmarks.replay --folder DIR [--lights 200] [--shape 4176x6248]
        [--memory-mb 1500] [--pattern RGGB] [--json FILE]

Lights that are all different are written to DIR, which should be on the disk that the frames of a
night would lie on: 200 of 26 megapixels take 10 GB, which are deleted at the end. A process with
the daemon's own parts stacks them and is killed (SIGKILL), without having written its stack down.
Then the real service is started, and the time is taken until the log says that the stack of all
frames is written again, which is after it was replayed. Its pixels, weights and coverage must be
those that the killed process had in memory, bit for bit.
"""

import argparse
import dataclasses
import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from calib_library import schema
from calib_library.frame import Card, FrameType
from calib_library.images import frame_file, product_file
from daemon import masters, reader, warmup
from daemon.config import Config, parse
from daemon.ledger.ledger import Ledger
from daemon.log import StatusLog
from daemon.parts import Parts, compose
from daemon.simulator.camera import make_camera
from daemon.simulator.night import SimulatedFrame, plan_night, take
from daemon.simulator.sky import make_sky
from daemon.simulator.writer import write_frame

BASES = 6
"""Simulated lights, each at its own pointing and seeing; every frame is one of them with noise of
its own."""
CALIBRATION = 5
"""Darks, flats and flat-darks."""
EXPOSURE = dt.timedelta(seconds=129)
PATIENCE_S = 3600.0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, required=True, help="on a disk, with room for all")
    parser.add_argument("--lights", type=int, default=200)
    parser.add_argument("--shape", default="4176x6248", help="rows x columns")
    parser.add_argument("--memory-mb", type=int, default=1500, help="memory for growing stacks")
    parser.add_argument("--pattern", help="of a colour camera: RGGB, BGGR, GRBG or GBRG")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Write the frames, stack them, die, start again, print."""
    args = arguments()
    ny, nx = (int(part) for part in args.shape.split("x"))
    args.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="lightkeeper-replay-", dir=args.folder))
    (folder / "config.toml").write_text(
        f'[library]\npath = "{folder / "library"}"\n[[watch]]\npath = "{folder / "in"}"\n'
        f"[stack]\nmemory_mb = {args.memory_mb}\n"
    )
    (folder / "library").mkdir()
    figures: dict[str, float] = {"megapixels": ny * nx / 1e6, "cores": float(os.cpu_count() or 1)}
    try:
        # In a child: its memory is not the daemon's.
        _child(lambda: generate(folder / "in", (ny, nx), args.lights, args.pattern))
        usage, seconds = _child(lambda: grow(folder), killed=True)
        figures["frames stacked"] = float((folder / "stacked").read_text())
        figures["a frame stacked, mean s"] = seconds / figures["frames stacked"]
        figures["a frame stacked, mean CPU s"] = _busy(usage) / figures["frames stacked"]
        figures["peak memory while it grew, MB"] = usage.ru_maxrss * 1.024e-3
        figures |= restart(folder, int(figures["frames stacked"]))
        figures["the same bits"] = float(same(folder))
    finally:
        shutil.rmtree(folder)
    for name, value in figures.items():
        print(f"{name:<44}{value:10.3f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))
    if not figures["the same bits"]:
        raise SystemExit("the stack is not the same")


def _child(work, *, killed: bool = False):  # noqa: ANN001, ANN202 — () → None
    """Do it in a process of its own: what it used, and for how long (s)."""
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 — the parent must not go on as two
            print(f"\n{error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status) != (-signal.SIGKILL if killed else 0):
        raise SystemExit("it could not be done")
    return usage, time.perf_counter() - began


def _busy(usage) -> float:  # noqa: ANN001 — resource.struct_rusage
    """Processor time, s."""
    return float(usage.ru_utime + usage.ru_stime)


# --- the frames ----------------------------------------------------------------------------------


def generate(folder: Path, shape: tuple[int, int], lights: int, pattern: str | None) -> None:
    """Write calibration frames and so many lights that are all different."""
    filters = ("R",) if pattern is None else (None,)
    sky = make_sky(shape, seed=11)
    camera = make_camera(shape, seed=11, filters=filters, bayer_pattern=pattern)
    plan = plan_night(
        sky,
        camera,
        seed=11,
        filters=filters,
        bias=0,
        darks=CALIBRATION,
        flats=CALIBRATION,
        flat_darks=CALIBRATION,
        lights=BASES,
        cloud=False,
        bump=False,
    )
    bases: list[SimulatedFrame] = []
    for number, shot in enumerate(plan.shots, start=1):
        frame = take(plan, shot)
        if frame.kind is FrameType.LIGHT:
            bases.append(frame)
        else:
            write_frame(folder, frame)
        _progress("simulated", number, len(plan.shots))
    noise = np.random.default_rng(5).integers(0, 5, shape, np.uint16)
    for number in range(lights):
        write_frame(folder, _varied(bases[number % BASES], noise, number))
        _progress("written", number + 1, lights)


def _varied(base: SimulatedFrame, noise: np.ndarray, number: int) -> SimulatedFrame:
    """A light like another, taken later, with a few ADU of other noise."""
    moment = dt.datetime(2026, 11, 20, 20, tzinfo=dt.UTC) + number * EXPOSURE
    pixels = base.pixels + np.roll(noise, (7 * number, 13 * number), axis=(0, 1))
    cards = tuple(
        Card(card.keyword, moment.isoformat()[:23], card.comment)
        if card.keyword == "DATE-OBS"
        else card
        for card in base.cards
    )
    name = str(Path(base.name).with_name(f"light_{number:04d}.fits"))
    return dataclasses.replace(base, pixels=pixels, cards=cards, name=name)


def _progress(what: str, number: int, of: int) -> None:
    print(f"\r{what}: {number} of {of}", end="\n" if number == of else "", flush=True)


# --- the first life ------------------------------------------------------------------------------


def grow(folder: Path) -> None:
    """Stack everything; keep what the stack would be written as; die of SIGKILL."""
    config = parse((folder / "config.toml").read_text(), base=folder)
    db = schema.connect(config.library.path / schema.DATABASE_NAME)
    schema.apply(db)
    Ledger.prepare(db)
    with Path(os.devnull).open("w") as nowhere:
        log = StatusLog(config.library.path / "status.log", stream=nowhere)
        parts = compose(config, db, log, quiet_s=lambda: 0.0, beat=lambda _: None)
        warmup.kernels()
        _take_in(parts, config)
        built, done = False, 0
        lights = sum(1 for _ in (folder / "in").rglob("light_*.fits"))
        while (frame := parts.ledger.claim(dt.datetime.now(dt.UTC))) is not None:
            if frame.frame_type is FrameType.LIGHT and not built:
                now = dt.datetime.now(dt.UTC)
                masters.build_due(parts.pipeline, now=now, quiet_s=0.0, beat=lambda _: None)
                built = True
            coming = parts.ledger.next_files(dt.datetime.now(dt.UTC), most=reader.AHEAD)
            parts.pipeline.reader.ahead(frame.path, reader.worth_it(coming))
            parts.pipeline.process(frame, now=dt.datetime.now(dt.UTC))
            if frame.frame_type is FrameType.LIGHT:
                done += 1
                _progress("stacked", done, lights)
        (stack,) = parts.stacks.all()
        members = parts.stacks.members(stack.id)
        written = parts.publisher.write(stack, parts.live.get(stack, members), members)
        assert written is not None
        shutil.copyfile(config.library.path / written.path, folder / "before.fits")
        (folder / "stacked").write_text(str(len(members)))
        # Nothing points at it, as if death had come before.
        os.kill(os.getpid(), signal.SIGKILL)


def _take_in(parts: Parts, config: Config) -> None:
    """Record what is in the watched folder."""
    root = config.watch[0].path
    for path in sorted(root.rglob("*.fits")):
        stat = path.stat()
        identity = parts.pipeline.identify(
            frame_file.probe(path), root=root, mtime_ns=stat.st_mtime_ns
        )
        parts.ledger.add(
            path=path,
            root=root,
            size=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            identity=identity,
            now=dt.datetime.now(dt.UTC),
        )


# --- the second ----------------------------------------------------------------------------------


def restart(folder: Path, frames: int) -> dict[str, float]:
    """Start the real service and wait for the stack; figures by name."""
    log = folder / "library" / "status.log"
    before = len(log.read_text().splitlines())
    load = os.getloadavg()[0]
    began = time.perf_counter()
    command = "import sys; from daemon.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "run", "--config", str(folder / "config.toml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen: dict[str, float] = {}
    try:
        while "STACK" not in seen:
            for line in log.read_text().splitlines()[before:]:
                for word in ("REPLAY", "STACK"):
                    if f"  {word}  " in line and word not in seen:
                        seen[word] = time.perf_counter() - began
                        print(f"{seen[word]:8.1f} s  {line}")
            if process.poll() is not None or time.perf_counter() - began > PATIENCE_S:
                raise SystemExit(f"the stack did not come back: see {log}")
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGTERM)
        _, _, usage = os.wait4(process.pid, 0)
    replayed = seen["STACK"] - seen["REPLAY"]
    return {
        "load average at the restart": load,
        "from the start to the replay, s": seen["REPLAY"],
        "replayed and written, s": replayed,
        "from the start to the stack, s": seen["STACK"],
        "a frame replayed, mean s": replayed / frames,
        "service, from start to end, CPU s": _busy(usage),
        "a frame, mean CPU s": _busy(usage) / frames,
        "peak memory of the service, MB": usage.ru_maxrss * 1.024e-3,
    }


def same(folder: Path) -> bool:
    """Whether the stack is what it was: pixels, weights, coverage."""
    (link,) = (
        path for path in (folder / "library" / "stacks").rglob("*.fits") if path.is_symlink()
    )
    before = folder / "before.fits"
    images = [product_file.read_product(path)[0] for path in (before, link)]
    alike = [np.array_equal(*images)]
    alike += [
        np.array_equal(product_file.read_extra(before, name), product_file.read_extra(link, name))
        for name in ("WEIGHT", "COVERAGE")
    ]
    return all(alike)


if __name__ == "__main__":
    main()
