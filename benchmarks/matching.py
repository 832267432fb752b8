"""How long choosing takes in a large library: 10,000 masters, 200,000 filed frames.

    python -m benchmarks.matching [folder]

Makes a library of cameras, gains, temperatures, exposures, filters and nights in a temporary folder
(or in the one given), asks it for masters of many lights, and prints times per question: finding
and ranking a dark, a flat and a bias; filing one more frame; what a light would wait for. Then
`library advice`, for the lights of the last nights and for a plan, in a second library of that size
with 3,000 stacked lights.
"""

import datetime as dt
import functools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from calib_library import schema
from calib_library.catalogue import agenda, candidates, filing, registry
from calib_library.catalogue.records import BuiltMaster
from calib_library.frame import CalibrationKey, FrameRecord, FrameType
from calib_library.library import CalibrationLibrary
from calib_library.schema import transaction
from daemon.ledger import schema as ledger_schema
from daemon.report import advising
from tests.advice_rows import Records
from tests.advice_rows import fill as fill_advice
from tests.nights import config_for

MASTERS, FRAMES, QUESTIONS = 10_000, 200_000, 300
NIGHT = dt.datetime(2026, 11, 20, 22, 0, tzinfo=dt.UTC)
KINDS = [FrameType.DARK] * 5 + [FrameType.FLAT] * 4 + [FrameType.BIAS, FrameType.FLAT_DARK]
EXPOSURES = [0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 180.0, 300.0, 600.0]


def key(generator: random.Random) -> CalibrationKey:
    """One of twelve cameras and settings."""
    return CalibrationKey(
        camera=f"Camera {generator.randrange(3)}",
        width=6248,
        height=4176,
        xbinning=1,
        ybinning=1,
        gain=generator.choice([0.0, 100.0]),
        offset=generator.choice([10.0, 50.0]),
        readout_mode=None,
        sections=None,
        storage="uint16",
        bayer_pattern=None,
    )


def record(generator: random.Random, kind: FrameType) -> FrameRecord:
    """A frame of the last two years."""
    exposure = 0.001 if kind is FrameType.BIAS else generator.choice(EXPOSURES)
    return FrameRecord(
        frame_type=kind,
        key=key(generator),
        planes=1,
        exposure_s=exposure,
        temperature_c=round(generator.uniform(-20, 15), 1),
        set_temperature_c=None,
        filter=generator.choice("LRGBHSO") if kind in (FrameType.FLAT, FrameType.LIGHT) else None,
        filter_name=None,
        row_order="TOP-DOWN",
        e_per_adu=0.25,
        saturation_adu=None,
        pixel_size_um=3.76,
        focal_length_mm=530.0,
        telescope="Refractor",
        object_name=None,
        ra_deg=None,
        dec_deg=None,
        rotator_deg=generator.choice([0.0, 90.0]),
        pier_side=None,
        date_obs=NIGHT - dt.timedelta(days=generator.randrange(700)),
        program=None,
        stack_count=1,
        is_master=False,
        calibrated="",
        sources={},
    )


def fill(library: CalibrationLibrary, generator: random.Random) -> None:
    """File a frame for each master by the library's own ways, and the other frames in bulk."""
    sets: list[int] = []
    number = 0
    with transaction(library.db):
        while len(sets) < MASTERS:
            number += 1
            frame = record(generator, generator.choice(KINDS))
            # Every master has its own set: some sets would take frames of two.
            session = f"{number}"
            set_id = filing.file_frame(
                library,
                frame,
                sha256=f"{number:064x}",
                path=Path(f"/c/{number}"),
                session=session,
                now=NIGHT,
            )
            if library.set(set_id).master is not None:
                continue
            made = BuiltMaster(
                set_id=set_id,
                generation=1,
                path=PurePosixPath(f"masters/Master_{number}.fits"),
                sha256="",
                exposure_s=frame.exposure_s,
                temperature_c=frame.temperature_c,
                date_obs=frame.date_obs,
                inputs=(),
                subtracted=None,
                version="",
                notes=(),
            )
            registry.register(library, made, NIGHT, frames=20)
            sets.append(set_id)
        text = record(generator, FrameType.DARK).to_json()
        library.db.conn.executemany(
            "INSERT INTO calibration_frame (sha256, path, set_id, record, temperature_c, filed_at)"
            " VALUES (?, ?, ?, ?, -10.0, 0.0)",
            ((f"f{n}", b"/c/x", sets[n % len(sets)], text) for n in range(FRAMES - number)),
        )


def measure(name: str, asked: list[Callable[[], object]]) -> None:
    """Print the median and the slowest of 100 of a list of questions."""
    times = []
    for ask in asked:
        begin = time.perf_counter()
        ask()
        times.append(1000 * (time.perf_counter() - begin))
    times.sort()
    slow = times[int(0.99 * len(times))]
    print(f"{name:32s} median {statistics.median(times):6.2f} ms   99 % below {slow:6.2f} ms")


def _pending(library: CalibrationLibrary, light: FrameRecord) -> object:
    return agenda.pending(
        library, light, FrameType.DARK, session="1", now=NIGHT, min_frames=5, quiet_s=60.0
    )


def main(folder: Path) -> None:
    """Fill a library and ask it."""
    generator = random.Random(1)
    with CalibrationLibrary.open(folder) as library:
        begin = time.perf_counter()
        fill(library, generator)
        count = library.db.execute("SELECT count(*) FROM calibration_frame").fetchone()[0]
        print(f"{len(library.masters())} masters, {count} frames filed ", end="")
        print(f"(filled in {time.perf_counter() - begin:.0f} s)")
        lights = [record(generator, FrameType.LIGHT) for _ in range(QUESTIONS)]
        for kind in (FrameType.DARK, FrameType.FLAT, FrameType.BIAS):
            found = [candidates.best(library, light, kind, session="1").chosen for light in lights]
            name = f"{kind}: {sum(one is not None for one in found)} of {len(lights)} matched"
            ask = functools.partial(candidates.best, library, kind=kind, session="1")
            measure(name, [functools.partial(ask, light) for light in lights])
        measure(
            "a set that may be waited for",
            [functools.partial(_pending, library, light) for light in lights],
        )
        more = [record(generator, FrameType.DARK) for _ in range(QUESTIONS)]
        measure(
            "one more frame filed",
            [
                functools.partial(
                    filing.file_frame,
                    library,
                    frame,
                    sha256=f"new{n}",
                    path=Path("/c/new"),
                    session="",
                    now=NIGHT,
                )
                for n, frame in enumerate(more)
            ],
        )


def advice(folder: Path) -> None:
    """Ask for advice as the command does, opening the database each time."""
    root = folder / "library"
    root.mkdir()
    db = schema.connect(root / schema.DATABASE_NAME)
    schema.apply(db)
    ledger_schema.apply(db)
    fill_advice(Records(db))
    db.close()
    config = config_for(folder)
    plan = advising.Plan(exposure_s=120.0, filter="F1", lights=40, temperature_c=-12.5)
    for name, asked in (("advice, last nights", None), ("advice, a plan", plan)):
        ask = functools.partial(advising.gather, config, nights=7, goal=0.01, plan=asked)
        measure(name, [ask] * 10)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
    with tempfile.TemporaryDirectory() as temporary:
        advice(Path(temporary))
