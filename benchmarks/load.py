"""The service under load: a frame every 200 ms, bursts, an archive; latency, memory, losses.

    python benchmarks/load.py                                  # 15 minutes, then a burst of 1,000
    python benchmarks/load.py --seconds 3600 --bursts 3
    python benchmarks/load.py --seconds 0 --bursts 0 --archive 100000

The real service runs as a process of its own on frames of its simulator. Latency is from the moment
at which a frame's file had its final name to the transaction that recorded its end. See
benchmarks/README.md.
"""

import argparse
import contextlib
import dataclasses
import datetime as dt
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from daemon.simulator.night import frames, small_plan

SETTLE_S = 0.5
SAMPLE_S = 5.0
PATIENCE_S = 600.0
VARIETY = 24
"""Different pointings and skies; every frame gets noise of its own besides."""


@dataclasses.dataclass
class Camera:
    """Writes frames that are all different, of one target, as fast as asked."""

    folder: Path
    shape: tuple[int, int]
    written: int = 0

    def __post_init__(self) -> None:
        plan = small_plan(
            seed=3, shape=self.shape, bias=0, darks=0, flats=0, flat_darks=0, lights=VARIETY
        )
        self.frames = list(frames(plan))
        self.rng = np.random.default_rng(5)
        self.folder.mkdir(parents=True, exist_ok=True)

    def content(self, age: dt.timedelta = dt.timedelta()) -> bytes:
        """One light, exposed so long ago."""
        frame = self.frames[self.written % len(self.frames)]
        pixels = frame.pixels + self.rng.integers(0, 4, frame.pixels.shape, np.uint16)
        hdu = fits.PrimaryHDU(pixels)
        for card in frame.cards:
            hdu.header.append((card.keyword, card.value, card.comment), end=True)
        hdu.header["DATE-OBS"] = (dt.datetime.now(dt.UTC) - age).isoformat()[:23]
        buffer = io.BytesIO()
        hdu.writeto(buffer)
        self.written += 1
        return buffer.getvalue()

    def put(self, content: bytes, name: str) -> None:
        """Under a temporary name, then renamed, as N.I.N.A. 2 does."""
        temporary = self.folder / f"{name}.tmp"
        temporary.write_bytes(content)
        temporary.rename(self.folder / f"{name}.fits")


@dataclasses.dataclass
class Service:
    """The service as a process, and its memory as time goes by."""

    process: subprocess.Popen[bytes]
    library: Path
    began: float = dataclasses.field(default_factory=time.monotonic)
    memory: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    """(s, MB resident)."""

    def sample(self) -> None:
        """Note the memory, if it is time."""
        now = time.monotonic() - self.began
        if not self.memory or now - self.memory[-1][0] >= SAMPLE_S:
            self.memory.append((round(now, 1), self.resident()))
        if self.process.poll() is not None:
            raise RuntimeError(f"the service has ended with {self.process.returncode}")

    def resident(self) -> float:
        """MB."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text("ascii")
        return int(text.split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

    def rows(self, query: str) -> list[Any]:
        """Ask its database."""
        uri = f"file:{self.library / 'lightkeeper.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60)) as db:
            return db.execute(query).fetchall()

    def wait_for(self, query: str, value: int, patience_s: float = PATIENCE_S) -> float:
        """Wait until a count reaches a value; returns the seconds it took."""
        began = time.monotonic()
        while True:
            with contextlib.suppress(sqlite3.OperationalError):  # not made yet
                if self.rows(query)[0][0] >= value:
                    return time.monotonic() - began
            if time.monotonic() - began > patience_s:
                raise RuntimeError(f"not {value} after {patience_s:.0f} s: {query}")
            self.sample()
            time.sleep(0.2)


DONE = "SELECT count(*) FROM frame WHERE done_at IS NOT NULL"
TAKEN = "SELECT count(*) FROM frame"


@contextlib.contextmanager
def service(folder: Path) -> Iterator[Service]:
    """Run the service on `folder`/in until the block ends."""
    (folder / "config.toml").write_text(
        f'[library]\npath = "{folder / "library"}"\n'
        f'[[watch]]\npath = "{folder / "in"}"\nsettle_s = {SETTLE_S}\n'
        "[stack]\nmemory_mb = 200\n"
    )
    command = "import sys; from daemon.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "run", "--config", str(folder / "config.toml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    one = Service(process, folder / "library")
    try:
        log = one.library / "status.log"
        while not log.exists() or "SCAN" not in log.read_text():
            one.sample()
            time.sleep(0.1)
        yield one
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def latencies(one: Service, prefix: str) -> list[float]:
    """Seconds from the file to its end, of every frame of that name."""
    rows = one.rows(
        f"SELECT mtime_ns, done_at FROM frame WHERE name GLOB '{prefix}*' AND done_at IS NOT NULL "
        "ORDER BY id"
    )
    return [dt.datetime.fromisoformat(done).timestamp() - ns / 1e9 for ns, done in rows]


def percentiles(values: list[float]) -> dict[str, float]:
    """Of latencies, s."""
    marks = (50, 90, 99, 100)
    return {f"p{m}": round(float(np.percentile(values, m)), 3) for m in marks}


def paced(one: Service, camera: Camera, *, seconds: float, every: float) -> dict[str, Any]:
    """Frames at a steady pace."""
    began = time.monotonic()
    before = camera.written
    while time.monotonic() - began < seconds:
        camera.put(camera.content(), f"paced_{camera.written:06d}")
        one.sample()
        due = began + (camera.written - before) * every
        time.sleep(max(0.0, due - time.monotonic()))
    pace = (time.monotonic() - began) / (camera.written - before)
    behind = one.wait_for(DONE, camera.written)
    values = latencies(one, "paced_")
    third = len(values) // 3
    return {
        "frames": camera.written - before,
        "seconds_between": round(pace, 3),
        "seconds_behind_at_the_end": round(behind, 1),
        "latency_s": percentiles(values),
        "latency_s_first_third": percentiles(values[:third]),
        "latency_s_last_third": percentiles(values[-third:]),
    }


def burst(one: Service, camera: Camera, *, count: int, number: int) -> dict[str, Any]:
    """Many files in one rename."""
    hidden = Camera(camera.folder / f".burst{number}", camera.shape, camera.written)
    for n in range(count):
        hidden.put(hidden.content(), f"burst{number}_{n:05d}")
        one.sample()
    camera.written = hidden.written
    began = time.monotonic()
    now = time.time()
    for path in hidden.folder.iterdir():
        os.utime(path, (now, now))
    hidden.folder.rename(camera.folder / f"burst{number}")
    one.wait_for(TAKEN, camera.written)
    recorded = time.monotonic() - began
    one.wait_for(DONE, camera.written)
    order = [
        r[0]
        for r in one.rows("SELECT name FROM frame WHERE name GLOB 'burst*' ORDER BY done_at, id")
    ]
    return {
        "frames": count,
        "seconds_until_recorded": round(recorded, 1),
        "seconds_until_done": round(time.monotonic() - began, 1),
        "in_the_order_of_exposure": order == sorted(order),
    }


def archive(folder: Path, shape: tuple[int, int], *, count: int) -> dict[str, Any]:
    """Old frames by the tens of thousands, and one of tonight in their midst."""
    camera = Camera(folder / "in", shape)
    age = dt.timedelta(days=90)
    old = time.time() - age.total_seconds()
    sources = []
    for n in range(count):
        night = camera.folder / f"{n // 1000:04d}"
        if n % 1000 == 0:
            night.mkdir()
            source = night / "source.fits"
            source.write_bytes(camera.content(age))
            os.utime(source, (old, old))
            sources.append(source)
            continue
        os.link(source, night / f"{n:06d}.fits")
    files = count
    with service(folder) as one:
        before = one.resident()
        one.wait_for(TAKEN, min(files // 20, 2000))
        camera.put(camera.content(), "tonight_1")
        one.wait_for(
            "SELECT count(*) FROM frame WHERE name GLOB 'tonight_1*' AND done_at IS NOT NULL", 1
        )
        recorded = one.wait_for(TAKEN, files + 1, patience_s=7200)
        camera.put(camera.content(), "tonight_2")
        one.wait_for(
            "SELECT count(*) FROM frame WHERE name GLOB 'tonight_2*' AND done_at IS NOT NULL", 1
        )
        done = one.rows(DONE)[0][0]
        result = {
            "files": files,
            "seconds_until_recorded": round(recorded, 1),
            "latency_s_of_tonights_two": [round(v, 2) for v in latencies(one, "tonight")],
            "worked_on_meanwhile": done,
            "rss_mb_at_start": round(before),
            "rss_mb_most": round(max(m for _, m in one.memory)),
        }
    lines = (folder / "library" / "status.log").read_text().count("  SCAN ")
    with service(folder) as one:
        log = one.library / "status.log"
        began = time.monotonic()
        while log.read_text().count("  SCAN ") <= lines:
            one.sample()
            time.sleep(0.1)
        result["second_life"] = [x for x in log.read_text().splitlines() if "  SCAN " in x][-1]
        result["second_life_s"] = round(time.monotonic() - began, 1)
        result["rss_mb_second_life"] = round(one.resident())
    return result


def losses(one: Service, written: int) -> dict[str, Any]:
    """Whether every frame came to an end, and none twice."""
    states = dict(one.rows("SELECT state, count(*) FROM frame GROUP BY state"))
    twice = one.rows("SELECT count(*) - count(DISTINCT sha256) FROM frame WHERE state = 'stacked'")
    members = one.rows("SELECT count(*) FROM stack_frame")[0][0]
    return {
        "written": written,
        "lost": written - sum(states.values()),
        "counted_twice": twice[0][0] + abs(members - states.get("stacked", 0)),
        "states": states,
    }


def main() -> None:
    """Run what is asked and print it as JSON."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=900.0, help="at a steady pace")
    parser.add_argument("--every", type=float, default=0.2, help="s between frames")
    parser.add_argument("--bursts", type=int, default=1)
    parser.add_argument("--burst", type=int, default=1000, help="files of a burst")
    parser.add_argument("--archive", type=int, default=0, help="old files, in a library apart")
    parser.add_argument("--shape", default="192x256")
    parser.add_argument("--folder", type=Path, help="where frames and products go")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows, columns = (int(n) for n in given.shape.split("x"))
    result: dict[str, Any] = {"shape": [rows, columns]}
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        if given.seconds or given.bursts:
            camera = Camera(folder / "in", (rows, columns))
            with service(folder) as one:
                if given.seconds:
                    result["paced"] = paced(one, camera, seconds=given.seconds, every=given.every)
                    print(json.dumps(result), flush=True)
                result["bursts"] = [
                    burst(one, camera, count=given.burst, number=n) for n in range(given.bursts)
                ]
                result |= losses(one, camera.written)
                result["rss_mb"] = [
                    [t, round(m)] for t, m in one.memory[:: max(1, len(one.memory) // 30)]
                ]
                size = (one.library / "lightkeeper.db").stat().st_size
                result["database_bytes_a_frame"] = size // max(1, camera.written)
        if given.archive:
            (folder / "archive").mkdir()
            result["archive"] = archive(folder / "archive", (rows, columns), count=given.archive)
    text = json.dumps(result, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text)


if __name__ == "__main__":
    main()
