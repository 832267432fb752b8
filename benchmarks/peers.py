"""Lightkeeper beside its peers, in one run, on one simulated night.

    python benchmarks/peers.py [--shape 4176x6248] [--lights 30] [--only master,light] [--json FILE]

See benchmarks/README.md for what is compared with what, and what it needs.
"""

import argparse
import contextlib
import dataclasses
import datetime as dt
import json
import math
import os
import platform
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from side_by_side import bench, process, rows
from side_by_side.bench import Bench, Row

LARGE_CALIBRATION = 5
LARGE_LIGHTS = 8
SEED = 11

SPACE = {
    # Times the pixels: 2 bytes a raw frame, 4 a calibrated or registered one, for every light both;
    # with masters, links and libraries.
    "raw": 2,
    "products": 8,
    "masters": 60,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--shape", type=_shape, default="4176x6248", help="rows x columns")
    parser.add_argument(
        "--large", type=_shape, default="6388x9576", help="rows x columns of the row `large`"
    )
    parser.add_argument("--lights", type=int, default=30)
    parser.add_argument("--calibration", type=int, default=20, help="bias, darks, flats, of each")
    parser.add_argument("--rounds", type=int, default=5, help="runs of which medians are taken")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[*rows.ROWS, "large"],
        help="rows, with commas",
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument(
        "--folder", type=Path, default="/dev/shm", help="for frames and products: best a tmpfs"
    )
    parser.add_argument(
        "--siril", default=os.environ.get("SIRIL", "siril-cli"), help="or $SIRIL; 1.0"
    )
    parser.add_argument(
        "--peer-python",
        default=os.environ.get("PEER_PYTHON", sys.executable),
        help="or $PEER_PYTHON; the interpreter that has seiza and ccdproc",
    )
    chosen = parser.parse_args()
    unknown = set(chosen.only) - {*rows.ROWS, "large"}
    if unknown:
        parser.error(
            f"no row {', '.join(sorted(unknown))}: there are {', '.join(rows.ROWS)}, large"
        )
    return chosen


def _shape(text: str) -> tuple[int, int]:
    ny, nx = text.split("x")
    return int(ny), int(nx)


def say(text: str) -> None:
    """Show progress."""
    print(f"{dt.datetime.now():%H:%M:%S}  {text}", flush=True)  # noqa: DTZ005 — for a person


def main() -> None:
    """Generate, run, tell. What is written is deleted at the end, whatever ends it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    args = arguments()
    siril = shutil.which(args.siril)
    versions = {
        "siril": bench.version_of([siril, "--version"]) if siril else None,
        "seiza": bench.module_version(args.peer_python, "seiza"),
        "ccdproc": bench.module_version(args.peer_python, "ccdproc"),
        "astroalign": bench.module_version(sys.executable, "astroalign"),
        "astropy": bench.module_version(sys.executable, "astropy"),
    }
    for name, version in versions.items():
        say(f"{name} {version}" if version else f"{name} is missing, and left out")
    report: dict[str, Any] = {"machine": machine(), "versions": versions, "seed": SEED, "rows": []}
    done: list[Row] = []
    with process.scratch(args.folder, "lightkeeper-peers") as folder:
        check_space(folder, args.shape, args.lights, args.calibration)

        def night(name: str, shape: tuple[int, int], calibration: int, lights: int) -> Bench:
            say(f"{name}: {3 * calibration} calibration frames and {lights} lights of {shape}")
            return begin(
                folder / name,
                shape,
                calibration=calibration,
                lights=lights,
                siril=siril if versions["siril"] else None,
                seiza_python=args.peer_python if versions["seiza"] else None,
                ccdproc_python=args.peer_python if versions["ccdproc"] else None,
                rounds=args.rounds,
            )

        wanted = [name for name in rows.ROWS if name in args.only]
        if wanted:
            one = night("night", args.shape, args.calibration, args.lights)
            for name in wanted:
                done += attempt(name, lambda name=name, one=one: rows.ROWS[name](one))
            shutil.rmtree(folder / "night")
        if "large" in args.only:
            pair = [
                night(name, shape, LARGE_CALIBRATION, LARGE_LIGHTS)
                for name, shape in (("small", args.shape), ("large", args.large))
            ]
            done += attempt("large", lambda: rows.large(*pair))
    report["rows"] = [row_report(row) for row in done]
    for line in table(done):
        print(line)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


def machine() -> dict[str, Any]:
    """What it ran on, and how busy that was."""
    model = "unknown"
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_at_start": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def check_space(folder: Path, shape: tuple[int, int], lights: int, calibration: int) -> None:
    """Refuse to begin what cannot end."""
    frames = SPACE["raw"] * (3 * calibration + lights)
    needed = math.prod(shape) * (frames + SPACE["products"] * lights + SPACE["masters"])
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SystemExit(
            f"{folder.parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: "
            "choose another --folder, a smaller --shape or fewer --lights"
        )


def begin(
    folder: Path,
    shape: tuple[int, int],
    *,
    calibration: int,
    lights: int,
    siril: str | None,
    seiza_python: str | None,
    ccdproc_python: str | None,
    rounds: int,
) -> Bench:
    """Generate a night below `folder`."""
    scratch = folder / "work"
    scratch.mkdir(parents=True)
    task = {
        "folder": str(folder),
        "shape": shape,
        "bias": calibration,
        "darks": calibration,
        "flats": calibration,
        "lights": lights,
        "seed": SEED,
    }
    run = process.run(
        [sys.executable, bench.HERE / "night.py", "make", json.dumps(task)],
        folder=scratch,
        environment={"PYTHONPATH": str(bench.REPOSITORY)},
    )
    say(f"{run.told['frames']} frames, {run.told['bytes'] / 1e9:.1f} GB, in {run.wall_s:.0f} s")
    return Bench(
        night=folder,
        scratch=scratch,
        python=sys.executable,
        siril=siril,
        seiza_python=seiza_python,
        ccdproc_python=ccdproc_python,
        rounds=rounds,
        say=lambda text: say("  " + text),
    )


def attempt(name: str, make: Any) -> Iterator[Row]:  # noqa: ANN401 — a function without arguments
    """Give the row, or nothing and a word where it could not be measured."""
    say(name)
    try:
        yield make()
    except process.FailedError as error:
        say(f"{name} could not be measured: {error}")


def row_report(row: Row) -> dict[str, Any]:
    """A row for JSON."""
    told = dataclasses.asdict(row)
    for target, one in zip(told["targets"], row.targets, strict=True):
        target |= {"value": one.value, "met": one.met}
    return told


def table(done: Sequence[Row]) -> Iterator[str]:
    """The lines for people: the targets, then what each program took."""
    head = ("", "Lightkeeper", "peer", "ratio", "target", "")
    yield f"\n{head[0]:<58}{head[1]:>12}{head[2]:>12}{head[3]:>10}{head[4]:>9}"
    for row in done:
        yield row.title
        for one in row.targets:
            peer = "" if one.theirs is None else _number(one.theirs)
            ratio = "" if one.theirs is None else _number(one.value)
            unit = one.unit if one.theirs is None else ""
            yield (
                f"  {one.text:<56}{_number(one.ours):>12}{peer:>12}{ratio:>10}"
                f"{_number(one.bound):>9}{unit:>6}  {'met' if one.met else 'MISSED'}"
            )
    yield f"\n{'':<40}{'wall, s':>10}{'cpu, s':>10}{'peak, MB':>10}{'runs':>6}"
    for row in done:
        yield row.title
        for name, run in row.runs.items():
            yield (
                f"  {name:<38}{run.wall_s:>10.2f}{run.cpu_s:>10.2f}{run.peak_mb:>10.0f}"
                f"{run.times:>6}"
            )
        for note in row.notes:
            yield f"    {note}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"


if __name__ == "__main__":
    main()
