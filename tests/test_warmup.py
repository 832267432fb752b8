"""What is compiled ahead of time is what the work then calls: nothing is left for the dawn."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from calib_library import clip, combine, dark_compose, dark_model, defects, kernels, local_median
from calib_library.frame import FrameType
from daemon import warmup
from daemon.light import calibrate, warp
from daemon.stack import display, final, live
from tests.records import KEY, master


def signatures(*compiled):
    return [list(kernel.signatures) for kernel in compiled]


def test_masters_and_stacks_find_their_kernels_compiled():
    used = (
        clip.clip_integers,
        clip.clip_floats,
        clip.decode,
        local_median._local_median,
        defects._trimmed_moments,
        defects._count_exceeded,
        dark_compose._mix,
        final._combine_strip,
        calibrate._calibrate,
        warp._mark_blocks,
        warp._warp_bands,
        warp._split_coverage,
        warp._list_bad,
        warp._mark_blocks,
        live._add_bands,
        live._contrast_tiles,
        live._remove_bands,
        display.render_tiles,
    )
    warmup.kernels()
    warmup.later()
    before = signatures(*used)
    assert all(before)
    rng = np.random.default_rng(1)
    shape = (KEY.height, KEY.width)
    frames = [rng.integers(400, 600, shape).astype(np.uint16) for _ in range(5)]
    rows = [combine.ArrayRows(frame) for frame in frames]
    dark = combine.sigma_clipped_mean(rows).mean
    flat = combine.sigma_clipped_mean(rows, subtract=dark - 400, scales=np.ones((5, 4))).mean
    bad = defects.exceeded(dark, np.array([1.0, 2.0], np.float32))
    image = calibrate.calibrate(
        frames[0],
        dark=dark,
        flat=flat / flat.mean(),
        bad=bad,
        bad_above=1,
        overscan_adu=np.zeros((len(dark), 1), np.float32),
        noise=calibrate.Noise(e_per_adu=1.0, read_noise_e=3.0),
    ).image
    for planes in (1, 3):
        final.combine(
            lambda _, y0, y1, n=planes: np.repeat(image[np.newaxis, y0:y1], n, axis=0),
            [warmup._terms(index, planes=planes) for index in range(5)],
            shape=(planes, *shape),
        )
    defects.find_telegraph(rows * 4)
    moved = warp.bad_pixels(bad, shape=image.shape)
    assert moved[0].any()
    warp.warp(image[np.newaxis], np.eye(3), shape=image.shape)
    stack = live.LiveStack.empty((1, *image.shape), high=2, low=1)
    for index in range(5):
        live.add(stack, image[np.newaxis], np.eye(3), warmup._terms(index, planes=1), mask=bad)
    live.remove(stack, image[np.newaxis], np.eye(3), warmup._terms(0, planes=1), mask=bad)
    live.render(stack)
    ends = [master(k, FrameType.DARK, temperature_c=-14.0 + 4.0 * k) for k in (1, 2)]
    plan = dark_model.plan(ends, exposure_s=300.0, temperature_c=-8.0)
    reader = {k: lambda first, last: dark[first:last] for k in (1, 2)}
    light = dark_compose.LightNoise(10.0, 1.0)
    dark_compose.compose(plan, reader, shape=shape, bayer=True, light=light)
    assert signatures(*used) == before


COUNT_COMPILATIONS = """
from numba.core import event
from daemon import warmup
with event.install_recorder("numba:compile") as compilations:
    warmup.kernels()
    warmup.later()
print(len(compilations.buffer))
"""


@pytest.mark.slow
def test_the_very_first_start_leaves_the_compiling_to_others(tmp_path):
    """The service's own process, whose lock it would hold, finds all in the cache."""
    if warmup._free_bytes() < 2 * warmup.PROCESS_BYTES or os.cpu_count() == 1:
        pytest.skip("one core, or too little memory: this machine compiles in one process")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_COMPILATIONS],
        env=environment,
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) == 0
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("ready*"))) == 2


def test_a_part_that_cannot_be_compiled_is_told(capfd):
    assert not warmup._compiled(["_no_such_part"], 2, lambda: None, lambda: False)
    assert "_no_such_part" in capfd.readouterr().err


def living(group):
    """The processes of a group that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                found.append(path)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are listed by Linux")
def test_compiling_ends_with_the_service_and_leaves_no_process(tmp_path, monkeypatch):
    """The part would take seconds more."""
    begun, most = [], []
    original = subprocess.Popen

    class Watched(original):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            begun.append(self.pid)

    monkeypatch.setattr(warmup.subprocess, "Popen", Watched)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))

    def children_are_at_work():
        most.append(len(living(begun[0])))
        return most[-1] >= 3

    assert not warmup._compiled(["_stack", "_stars"], 2, lambda: None, children_are_at_work)
    assert most[-1] >= 3
    for _ in range(20):  # they have been killed; that takes a moment
        if not living(begun[0]):
            break
        time.sleep(0.1)
    assert not living(begun[0])


def test_each_version_of_the_kernels_has_a_cache_of_its_own(tmp_path, monkeypatch):
    """Types are kept by name: an old file could not even be read by a version that renamed one."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    for package in ("calib_library", "daemon/light"):
        (tmp_path / package).mkdir(parents=True)
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "calib_library" / "kernels.py"))
    source = tmp_path / "daemon" / "light" / "warp.py"
    folders = []
    for text in ("@kernel()\ndef a(): ...", "@kernel()\ndef b(): ...", "def c(): ..."):
        source.write_text(text)
        folders.append(kernels.cache_folder())
    assert len(set(folders)) == 3
    (tmp_path / "daemon" / "light" / "cli.py").write_text("def nothing_compiled(): ...")
    assert kernels.cache_folder() == folders[-1]
