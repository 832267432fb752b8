"""Lightkeeper's own part: its real pieces, composed as the daemon composes them.

Each task is a process of its own: `python by_lightkeeper.py TASK JSON`.
"""

import contextlib
import datetime as dt
import functools
import json
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import astroscrappy
import numpy as np
import numpy.typing as npt
from answer import serve
from points import POINTS
from stages import Seconds, Stages, added, clocks, medians, since, without

from calib_library import schema
from calib_library.images import frame_file, product_file
from daemon import masters, warmup
from daemon.config import Config, parse
from daemon.errors import FrameQuarantinedError, FrameRejectedError
from daemon.ledger.ledger import Frame, Ledger
from daemon.ledger.stacks import Member, Stack
from daemon.ledger.states import State
from daemon.light import cosmic, warp
from daemon.log import StatusLog
from daemon.parts import Parts, compose

Image = npt.NDArray[np.float32]


# --- a library and what works on it --------------------------------------------------------------


def configuration(library: Path, watched: Path, *, memory_mb: int, clean: str = "auto") -> Config:
    """Write and read a configuration; it lies beside the library."""
    text = (
        f'[library]\npath = "{library}"\n[[watch]]\npath = "{watched}"\n'
        f'[stack]\nmemory_mb = {memory_mb}\n[lights]\nclean_cosmics = "{clean}"\n'
    )
    library.with_suffix(".toml").write_text(text)
    return parse(text, base=library.parent)


@contextlib.contextmanager
def opened(config: Config) -> Iterator[Parts]:
    """Open (or begin) the library with the parts that work on frames, without waiting times."""
    config.library.path.mkdir(exist_ok=True)
    db = schema.connect(config.library.path / schema.DATABASE_NAME)
    schema.apply(db)
    Ledger.prepare(db)
    with Path(os.devnull).open("w") as nowhere:
        log = StatusLog(config.library.path / "status.log", stream=nowhere)
        yield compose(config, db, log, quiet_s=lambda: 0.0, beat=_silent)
    db.conn.close()


def _silent(_: str) -> None:
    """Take no notice of what is being done."""


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def arrive(parts: Parts, path: Path, *, root: Path) -> None:
    """What the worker does when the intake delivers a complete file."""
    stat = path.stat()
    info = frame_file.probe(path)
    identity = parts.pipeline.identify(info, root=root, mtime_ns=stat.st_mtime_ns)
    parts.ledger.add(path, root, stat.st_size, stat.st_mtime_ns, identity=identity, now=_now())


def work(parts: Parts) -> Frame | None:
    """Claim the next frame and take it to its end, as the worker does."""
    frame = parts.ledger.claim(_now())
    if frame is None:
        return None
    try:
        parts.pipeline.process(frame, now=_now())
    except (FrameRejectedError, FrameQuarantinedError) as error:
        print(f"{frame.name}: {error}")
        parts.ledger.finish(frame, State.REJECTED, now=_now(), reason=str(error))
    return frame


def build(parts: Parts) -> int:
    """Build the masters that are due."""
    return masters.build_due(parts.pipeline, now=_now(), quiet_s=0.0, beat=_silent)


# --- tasks ---------------------------------------------------------------------------------------


def file(*, library: str, watched: str, paths: list[str], make: bool) -> dict[str, Any]:
    """File calibration frames in a new library, and build their masters where `make` says so."""
    config = configuration(Path(library), Path(watched), memory_mb=1500)
    with opened(config) as parts:
        for path in paths:
            arrive(parts, Path(path), root=Path(watched))
        while work(parts) is not None:
            pass
        counts = {kind: n for (state, kind), n in parts.ledger.count_states().items()}
        if sum(counts.values()) < len(paths) or any(
            state != State.FILED for state, _ in parts.ledger.count_states()
        ):
            raise SystemExit(f"not all frames were filed: {parts.ledger.count_states()}")
        return {"filed": counts, "masters": build(parts) if make else 0}


def lights(
    *, library: str, watched: str, paths: list[str], memory_mb: int, clean: str
) -> dict[str, Any]:
    """Let lights arrive one by one: file complete → stack updated; products are written between
    them, as the worker does, and counted apart.
    """
    config = configuration(Path(library), Path(watched), memory_mb=memory_mb, clean=clean)
    stages = Stages(POINTS)
    taken: list[Seconds] = []
    writing: list[float] = []
    parts_of_it: list[dict[str, Seconds]] = []
    with opened(config) as parts:
        warmup.kernels()
        stages.take()
        for path in paths:
            began = clocks()
            arrive(parts, Path(path), root=Path(watched))
            work(parts)
            taken.append(since(began))
            steps = stages.take()
            steps["the rest"] = without(taken[-1], functools.reduce(added, steps.values()))
            parts_of_it.append(steps)
            began = clocks()
            parts.publisher.tick(_now())
            writing.append(since(began)[0])
            stages.take()
        parts.publisher.tick(_now(), flush=True)  # as at the end of a night
        counts = parts.ledger.count_states()
    # The first one reads the masters and begins the stack.
    return {
        "first_s": taken[0][0],
        "wall_s": [wall for wall, _ in taken[1:]],
        "cpu_s": [cpu for _, cpu in taken[1:]],
        "writing_s": statistics.fmean(writing),
        "stages_s": medians(parts_of_it[1:]),
        "absent": stages.absent,
        "stacked": counts.get(("stacked", "light"), 0),
    }


def _stack(parts: Parts) -> Stack:
    (stack,) = parts.stacks.all()
    return stack


def placed(parts: Parts) -> Iterator[tuple[Frame, Member]]:
    """Give each frame of the library's one stack with its place in it."""
    for member in parts.stacks.members(_stack(parts).id):
        frame = parts.ledger.get(member.frame_id)
        assert frame is not None
        yield frame, member


def accuracy(*, library: str, watched: str, truth: str) -> dict[str, Any]:
    """Compare the stack's registrations with the truth: px rms over a grid on the frame."""
    true = json.loads(Path(truth).read_text())
    with opened(configuration(Path(library), Path(watched), memory_mb=1500)) as parts:
        stack = _stack(parts)
        reference = parts.stacks.reference(stack.target, stack.camera)
        assert reference is not None
        first = parts.ledger.get(reference.frame_id)
        assert first is not None
        to_first = np.linalg.inv(true[first.path.name]["matrix"])
        errors = {}
        for frame, member in placed(parts):
            assert frame.record is not None
            grid = _grid(frame.record.key.width, frame.record.key.height)
            wanted = _moved(to_first @ true[frame.path.name]["matrix"], grid)
            error = _moved(member.matrix, grid) - wanted
            errors[frame.path.name] = float(np.sqrt(np.mean(np.sum(error**2, axis=0))))
        states = {f"{kind} {state}": n for (state, kind), n in parts.ledger.count_states().items()}
    errors.pop(first.path.name)
    clean = [error for name, error in errors.items() if not true[name]["trail"]]
    return {
        "stacked": len(errors) + 1,
        "states": states,
        "clean_rms_px": float(np.sqrt(np.mean(np.square(clean)))),
        "median_px": statistics.median(errors.values()),
        "worst_px": max(errors.values()),
        "errors_px": errors,
    }


def _grid(width: int, height: int) -> npt.NDArray[np.float64]:
    x, y = np.meshgrid(np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9))
    return np.stack([x.ravel(), y.ravel(), np.ones(x.size)])


def _moved(matrix: npt.ArrayLike, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    moved: npt.NDArray[np.float64] = (np.asarray(matrix) @ points)[:2]
    return moved


def resampling() -> dict[str, Any]:
    """Warp Gaussian stars (FWHM 2.5 px) at random places by a turn and a shift: the error of their
    fluxes (mean) and of their centroids (px, rms over both axes), from plain moments.
    """
    cell, cells, sigma = 64, 48, 2.5 / 2.3548
    rng = np.random.default_rng(5)
    size = cell * cells
    grid = (np.arange(1, cells - 1) + 0.5) * cell
    x, y = (c.ravel() + rng.uniform(-6, 6, c.size) for c in np.meshgrid(grid, grid))
    pixels = np.arange(size)
    image = np.zeros((1, size, size), np.float32)
    for x0, y0 in zip(x, y, strict=True):
        window = np.s_[int(y0) - 20 : int(y0) + 21], np.s_[int(x0) - 20 : int(x0) + 21]
        profile = np.exp(-((pixels[window[0]] - y0) ** 2) / (2 * sigma**2))[:, None] * np.exp(
            -((pixels[window[1]] - x0) ** 2) / (2 * sigma**2)
        )
        image[0][window] += (10_000 * profile).astype(np.float32)
    angle = np.radians(0.3)
    matrix = np.array(
        [
            [np.cos(angle), -np.sin(angle), 3.37],
            [np.sin(angle), np.cos(angle), -2.61],
            [0, 0, 1],
        ]
    )
    warped, _ = warp.warp(image, matrix, shape=(size, size))
    true_x, true_y = _moved(matrix, np.stack([x, y, np.ones(x.size)]))
    fluxes, offsets = [], []
    for x0, y0 in zip(true_x, true_y, strict=True):
        left, top = round(x0) - 15, round(y0) - 15
        stamp = warped[0, top : top + 31, left : left + 31].astype(np.float64)
        rows, columns = np.mgrid[top : top + 31, left : left + 31]
        fluxes.append(stamp.sum() / (10_000 * 2 * np.pi * sigma**2) - 1)
        offsets += [
            (stamp * columns).sum() / stamp.sum() - x0,
            (stamp * rows).sum() / stamp.sum() - y0,
        ]
    return {
        "stars": len(fluxes),
        "flux_bias": abs(float(np.mean(fluxes))),
        "flux_mean": float(np.mean(fluxes)),
        "flux_scatter": float(np.std(fluxes)),
        "centroid_px": float(np.sqrt(np.mean(np.square(offsets)))),
    }


def rays(*, library: str, watched: str, path: str) -> dict[str, Any]:
    """Clean one calibrated light of cosmic rays, and compare with astroscrappy over the whole."""
    asked: dict[str, Any] = {}
    clean = cosmic.clean

    def listening(image: Image, **options: Any) -> Any:  # noqa: ANN401 — whatever it takes
        asked.update(options, image=image.copy())  # it is cleaned in its own memory
        return clean(image, **options)

    with opened(configuration(Path(library), Path(watched), memory_mb=1500)) as parts:
        loaded = frame_file.load(Path(path))
        identity = parts.pipeline.identify(
            loaded.info, root=Path(watched), mtime_ns=loaded.mtime_ns
        )
        choice = parts.pipeline.calibrator.choose(identity.record, session=identity.night, now=None)
        cosmic.clean = listening
        parts.pipeline.calibrated(loaded, identity.record, choice, clean=True)
    image = asked.pop("image")
    asked.pop("out", None)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        _, mask = clean(image, **asked)
        seconds.append(time.perf_counter() - began)
    e_per_adu, saturation_adu = asked["e_per_adu"], asked.get("saturation_adu")
    began = time.perf_counter()
    expected, _ = astroscrappy.detect_cosmics(
        image,
        sigclip=6.0,
        objlim=10.0,
        gain=e_per_adu,
        readnoise=asked["read_noise_e"],
        satlevel=1e12 if saturation_adu is None else saturation_adu * e_per_adu,
        niter=1,
        sepmed=False,
        cleantype="meanmask",
    )
    return {
        "seconds": statistics.median(seconds),
        "astroscrappy_s": time.perf_counter() - began,
        "flagged": int(np.count_nonzero(expected)),
        "different": int(np.count_nonzero(expected != mask)),
    }


def registered(*, library: str, watched: str, output: str) -> dict[str, Any]:
    """Write the members of the library's stack, registered and brought to one level, as numbered
    files: what `by_final.py` and siril's stacking both read.
    """
    folder = Path(output)
    terms = []
    with opened(configuration(Path(library), Path(watched), memory_mb=1500)) as parts:
        for number, (frame, member) in enumerate(placed(parts), start=1):
            assert frame.record is not None
            image, _ = parts.pipeline.calibrated(
                frame_file.load(frame.path),
                frame.record,
                parts.pipeline.calibrator.recorded(member.masters),
                clean=False,
            )
            moved, coverage = warp.warp(image[np.newaxis], member.matrix, shape=image.shape)
            y, x = np.ogrid[: image.shape[0], : image.shape[1]]
            a, bx, by = member.terms.planes[0]
            level = member.terms.scale * moved[0] + (a + bx * x + by * y).astype(np.float32)
            level[coverage == 0] = 0
            path = folder / f"flat_{number:05d}.fit"
            product_file.write_fits(path, level, (), scale="unit")
            terms.append(
                {
                    "index": number - 1,
                    "weight": 1.0,
                    "scale": 1.0,
                    "planes": [[0.0, 0.0, 0.0]],
                    "sigma_adu": member.terms.sigma_adu / FULL_SCALE,
                    "e_per_adu": member.terms.e_per_adu * FULL_SCALE,
                    "sky_adu": member.terms.sky_adu / FULL_SCALE,
                    "fwhm_px": member.terms.fwhm_px,
                }
            )
    (folder / "terms.json").write_text(json.dumps(terms))
    return {"frames": len(terms)}


FULL_SCALE = 65535.0


def kernels() -> dict[str, Any]:
    """Prepare the kernels as the worker does at its start."""
    began = time.perf_counter()
    warmup.kernels()
    return {"seconds": time.perf_counter() - began}


TASKS: Iterable[Any] = (
    file,
    lights,
    accuracy,
    resampling,
    rays,
    registered,
    kernels,
)

if __name__ == "__main__":
    serve({task.__name__: task for task in TASKS})
