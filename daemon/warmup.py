"""Compile the kernels before the first frame of the night needs them; cached, it takes a second.

The very first compilation costs most of a minute of processor time, and numba does it in one thread
that holds the interpreter's lock. So processes of their own do it side by side, into the cache from
which this one then loads: intake and heartbeats go on meanwhile.
"""

import contextlib
import dataclasses
import fcntl
import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PurePath
from typing import TextIO

import numpy as np
import numpy.typing as npt

from calib_library import combine, dark_compose, defects, header, inspect
from calib_library import kernels as compiled
from calib_library.dark_model import DarkPlan, Energies, Leg, Rule, Source
from daemon import rewritten
from daemon.light import background, calibrate, cosmic, debayer, quality, register, stars, warp
from daemon.light.noise import neighbour_noise
from daemon.stack import final, halve, live

SIDE_PX = 192
STARS = 40
PROCESS_BYTES = 500_000_000
"""What a process that compiles takes."""
KEPT_CACHES = 2
"""Folders of compiled kernels that stay: this version's, and that of the one before."""

Beat = Callable[[], None]
Part = Callable[[Beat], object]


def kernels(beat: Beat = lambda: None, *, stopping: Callable[[], bool] = lambda: False) -> None:
    """Take a small invented frame through every kernel of a light's way, in grey and in colour, and
    through those that make its dark.

    `beat` is called now and then: the very first start may take a minute on a small machine. Ends
    early where `stopping` says so.
    """
    parts = _stack, _stars, _cosmics, _display, _frames, _registration, _darks, _colour
    _go_through(parts, beat, stopping)  # the longest first


def later(beat: Beat = lambda: None, *, stopping: Callable[[], bool] = lambda: False) -> None:
    """Prepare what only masters and the end of the night need, when nothing else is to be done."""
    _go_through((_final, _masters, _removal), beat, stopping)


def _go_through(parts: Sequence[Part], beat: Beat, stopping: Callable[[], bool]) -> None:
    _ahead([part.__name__ for part in parts], beat, stopping)
    for part in parts:
        if not stopping():
            part(beat)


# --- side by side --------------------------------------------------------------------------------


def _ahead(parts: Sequence[str], beat: Beat, stopping: Callable[[], bool]) -> None:
    """Fill the cache where it is empty. A part that fails is compiled by whoever needs it."""
    folder = compiled.cache_folder()
    ready = folder / f"ready{''.join(parts)}"
    at_once = min(os.cpu_count() or 1, _free_bytes() // PROCESS_BYTES)
    if ready.exists() or at_once < 2:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "compiling.lock").open("w") as lock:
        while not _locked(lock):  # another process does it
            if stopping():
                return
            beat()
            time.sleep(0.2)
        if ready.exists() or not _compiled(parts, at_once, beat, stopping):
            return
        ready.touch()
    caches = sorted({path.parent for path in folder.parent.glob("*/ready*")}, key=_modified)
    for old in caches[:-KEPT_CACHES]:
        shutil.rmtree(old, ignore_errors=True)


def _compiled(parts: Sequence[str], at_once: int, beat: Beat, stopping: Callable[[], bool]) -> bool:
    """Compile all parts, so many at once. False where one failed or there was no time."""
    command = [sys.executable, "-m", "daemon.warmup", str(at_once), *parts]
    # One thread each: there are as many processes as cores.
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1"}
    # From the folder of these packages, which may not be installed; a session of its own, for it
    # has children, which must not outlive it.
    with subprocess.Popen(  # noqa: S603
        command, env=environment, cwd=Path(__file__).parents[1], start_new_session=True
    ) as compiling:
        try:
            while compiling.poll() is None and not stopping():
                time.sleep(0.1)
                beat()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(compiling.pid, signal.SIGKILL)
    return compiling.returncode == 0


def _compile(at_once: int, parts: Sequence[str]) -> None:
    """Compile the parts in children of this process, which has imported what they need."""
    # To look for garbage all the time takes an eighth of the whole; between the parts is enough,
    # and what was imported stays.
    gc.disable()
    gc.freeze()
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("fork")) as pool:
        list(pool.map(_compile_part, parts))


def _compile_part(name: str) -> None:
    gc.collect()
    globals()[name](lambda: None)


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _free_bytes() -> int:
    """Memory that is free for new processes; all of it where the kernel does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# --- the parts, functions of a beat; above they stand with the longest first ----------------------


def _frames(beat: Beat) -> None:
    """Calibration, in grey and in colour; bad pixels; half the size."""
    raw = _frame()
    dark = np.zeros(raw.shape, np.float32)
    bad = np.zeros(raw.shape, np.uint8)
    for bayer in (False, True):
        calibrate.calibrate(
            raw, dark=dark, flat=dark + 1, bad=bad, bayer=bayer, saturation_adu=None
        )
        beat()
    neighbour_noise(raw, bayer=False)
    inspect.examine(raw, header.parse((), shape=raw.shape, storage="uint16", path=PurePath("a")))
    rewritten.mark_of(raw)
    beat()
    image, mask = _image_and_mask()
    halve.image(image, mask)
    warp.bad_pixels(mask, shape=mask.shape)
    beat()


def _colour(beat: Beat) -> None:
    """The planes of a colour camera's mosaic."""
    image, mask = _image_and_mask()
    debayer.luminance(image[0], "RGGB", grid=(8, 8))
    beat()
    debayer.superpixels(image[0], mask, "RGGB")
    debayer.debayer(image[0], "RGGB")
    beat()


def _cosmics(beat: Beat) -> None:
    """Cosmic rays of a single frame."""
    image = _frame().astype(np.float32)
    cosmic.clean(image, e_per_adu=1.0, read_noise_e=3.0, sky_adu=1000.0)
    beat()


def _stars(beat: Beat) -> None:
    """The sky, in both sorts of cells, and the stars."""
    (image,), mask = _image_and_mask()
    background.cell_means(image)
    beat()
    sky = background.measure_background(image)
    beat()
    stars.detect(image, mask=mask, background=sky, saturation_adu=None)
    beat()


def _registration(beat: Beat) -> None:
    """Two frames of the same stars."""
    x, y = np.random.default_rng(1).uniform(0, SIDE_PX, (2, STARS))
    flux, none = np.linspace(5000, 1000, STARS), np.zeros(STARS)
    found = stars.StarList(
        x=x, y=y, flux=flux, fwhm=none + 3, peak=flux / 10, elongation=none + 1, snr=flux / 10,
        shared=np.stack([flux, flux], axis=1), saturated=none > 0, found=STARS, radius_px=11.3,
    )  # fmt: skip
    beside = dataclasses.replace(found, x=found.x + 1.0)
    registration = register.register(found, beside, shape=(SIDE_PX, SIDE_PX))
    quality.transparency(found, beside, registration.matrix)
    cells = np.ones(background.cell_grid((SIDE_PX, SIDE_PX)), np.float32)
    quality.background_plane(cells, cells, registration.matrix, 1.0, (SIDE_PX, SIDE_PX))
    beat()


def _stack(beat: Beat) -> live.LiveStack:
    """A growing stack, of so many frames that values are settled and the contrast is measured;
    without bad pixels, whose places `_frames` looks for.
    """
    image, _ = _image_and_mask()
    stack = live.LiveStack.empty(image.shape, high=3, low=2)
    for index in range(6):
        live.add(stack, image, np.eye(3), _terms(index, planes=1))
        beat()
    return stack


def _display(beat: Beat) -> None:
    """A stack is shown: an empty one is as good."""
    stack = live.LiveStack.empty((1, SIDE_PX, SIDE_PX))
    terms = _terms(0, planes=1)
    stack.terms[0], stack.sigmas[0], stack.sky = terms, (terms.sigma_adu,), (terms.sky_adu,)
    stack.quantum, stack.weight_unit = 0.01, 1.0
    live.render(stack)
    beat()


def _removal(beat: Beat) -> None:
    """A frame is taken out of its stack again."""
    image, _ = _image_and_mask()
    live.remove(_stack(beat), image, np.eye(3), _terms(0, planes=1))
    beat()


def _masters(beat: Beat) -> None:
    """Combining; telegraph pixels."""
    counts = combine.ArrayRows(_frame())
    combine.sigma_clipped_mean([counts] * 3)
    beat()
    combine.sigma_clipped_mean([counts] * 3, scales=np.ones(3))
    beat()
    defects.find_telegraph([counts] * defects.TELEGRAPH_FRAMES)
    beat()


def _darks(beat: Beat) -> None:
    """Hot pixels; composed darks."""
    image = _frame().astype(np.float32)
    defects.exceeded(image, np.array([1.0], np.float32))
    cold, warm = (Source(k, "", 1.0, -10.0 + 5.0 * k, 1) for k in range(2))
    plan = DarkPlan(
        rule=Rule.PAIR,
        exposure_s=1.0,
        temperature_c=-8.0,
        temperature_error_c=0.1,
        fitted=False,
        legs=(Leg(1.0, cold, warm, hot=0.3, bulk=0.3),),
        energies=Energies(),
        relative_error=0.01,
        relative_error_log=0.01,
        warnings=(),
    )
    light = dark_compose.LightNoise(10.0, 1.0)
    rows = {k: lambda first, last: image[first:last] for k in range(2)}
    dark_compose.compose(plan, rows, shape=image.shape, bayer=False, light=light, with_error=False)
    beat()


def _final(beat: Beat) -> None:
    """The exact stack, and the frames on its grid."""
    image = _frame().astype(np.float32)
    warp.warp(image[np.newaxis], np.eye(3), shape=image.shape)
    beat()
    terms = [_terms(index, planes=1) for index in range(3)]
    final.combine(lambda _, y0, y1: image[np.newaxis, y0:y1], terms, shape=(1, *image.shape))
    beat()


def _image_and_mask() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """(1, ny, nx) and (ny, nx): of a camera that has bad pixels, as all have."""
    image = _frame().astype(np.float32)[np.newaxis]
    mask = np.zeros(image.shape[1:], np.uint8)
    mask[::50, ::50] = defects.BAD
    return image, mask


def _terms(index: int, *, planes: int) -> live.FrameTerms:
    return live.FrameTerms(
        index=index, weight=1.0, scale=1.0, planes=((0.0, 0.0, 0.0),) * planes,
        sigma_adu=10.0, e_per_adu=1.0, sky_adu=1000.0, fwhm_px=3.0,
    )  # fmt: skip


def _frame() -> npt.NDArray[np.uint16]:
    """(ny, nx) a sky of noise and round stars, always the same."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    image = rng.normal(1000.0, 10.0, (SIDE_PX, SIDE_PX))
    for sx, sy in rng.uniform(12, SIDE_PX - 12, (STARS, 2)):
        image += rng.uniform(1000, 5000) * np.exp(-((x - sx) ** 2 + (y - sy) ** 2) / (2 * 1.5**2))
    return image.astype(np.uint16)


if __name__ == "__main__":
    _compile(int(sys.argv[1]), sys.argv[2:])
