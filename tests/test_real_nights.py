"""Real frames of real cameras through the real service."""

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from calib_library import schema
from calib_library.images import frame_file
from daemon import remake, service
from daemon.light import background, quality, stars
from daemon.log import StatusLog
from daemon.parts import compose
from daemon.stack.store import Growing
from tests.nights import Outcome, config_for, drop, run, shared

pytestmark = [pytest.mark.shared, pytest.mark.slow]


def block_noise(image: np.ndarray, size: int = 8) -> float:
    """Robust σ of the differences of neighbouring block means: the sky's large-scale noise."""
    ny, nx = (n // size * size for n in image.shape)
    means = image[:ny, :nx].reshape(ny // size, size, nx // size, size).mean(axis=(1, 3))
    steps = np.diff(means, axis=1).ravel()
    return float(1.4826 * np.median(np.abs(steps - np.median(steps))) / np.sqrt(2))


def test_tres1_darks_and_a_drift_of_many_pixels(tmp_path):
    drop(shared("tres1"), tmp_path)
    config = config_for(tmp_path)
    run(config)
    outcome = Outcome(config)
    assert outcome.states() == {"filed": 20, "stacked": 40}
    (master,) = outcome.masters
    assert (master.frame_type, master.frames) == ("dark", 20)
    assert master.temperature_c == pytest.approx(-10.0, abs=0.2)
    (stack,) = outcome.stacks
    members = outcome.members[stack.id]
    shifts = np.array([m.matrix[:2, 2] for m in members])
    assert np.ptp(shifts, axis=0).max() > 5
    assert all(m.flags == ("no flat",) or "cosmics cleaned" in m.flags for m in members)

    # Its header says 0.78 e-/ADU, where flats and biases of this camera gave 1.286.
    (check,) = [line for line in outcome.log.splitlines() if "  CHECK  " in line]
    assert "EGAIN in the header is wrong" in check
    assert 0.9 < float(check.partition("(at least ")[2].split()[0]) < 1.29

    frames, alone = replayed(config, [[m] for m in members[4:6]]), members[4].quality
    halves = replayed(config, [members[0::2], members[1::2]])
    single = block_noise(frames[0] - frames[1]) / np.sqrt(2)
    whole = block_noise(halves[0] - halves[1]) / 2
    assert single / whole == pytest.approx(np.sqrt(40), rel=0.12)

    image = outcome.image(stack)
    found = stars.detect(image)
    measured = quality.measure(found, background.measure_background(image))
    assert measured.fwhm_px < 1.12 * np.median([m.quality.fwhm_px for m in members])
    assert measured.eccentricity < alone.eccentricity + 0.05
    assert single_hot_pixels(image) < 5 < single_hot_pixels(raw(tmp_path / "in" / "tres1-030.fit"))


def raw(path) -> np.ndarray:
    """One frame as it came, float32 ADU."""
    return frame_file.load(path).pixels.astype(np.float32)


def single_hot_pixels(image: np.ndarray) -> int:
    """Pixels that stand alone above all their neighbours, as no star does that optics made."""
    inner = image[1:-1, 1:-1]
    ny, nx = image.shape
    around = [
        image[y : ny - 2 + y, x : nx - 2 + x]
        for y in range(3)
        for x in range(3)
        if (y, x) != (1, 1)
    ]
    highest = np.maximum.reduce(around)
    noise = background.measure_background(image).sigma_adu
    level = np.median(np.stack(around), axis=0)
    return int(((inner - level > 20 * noise) & (highest - level < 0.1 * (inner - level))).sum())


def replayed(config, parts) -> list[np.ndarray]:
    """The stacks, (ny, nx), of parts of the members alone, in the stack's own geometry."""
    db = schema.connect(config.library.path / schema.DATABASE_NAME)
    log = StatusLog(None, stream=io.StringIO())
    made = compose(config, db, log, quiet_s=lambda: 0.0, beat=lambda _: None)
    (stack,) = made.stacks.all()
    images = []
    for members in parts:
        growing = Growing(2_000_000_000, stack.bayer_pattern)
        for image, mask, member in remake.replay(made.pipeline, stack, members, lambda _: None):
            growing.add(image, mask, member)
        images.append(growing.render().mean[0])
    db.close()
    return images


def test_messier8_type_filter_and_exposure_from_the_name(tmp_path):
    drop(shared("messier8"), tmp_path)
    config = config_for(
        tmp_path,
        watch="pattern = '(?P<type>light)_(?P<filter>[LRGB])_(?P<exposure_ms>\\d+)ms'\n"
        'defaults = { target = "M8" }',
    )
    run(config)
    outcome = Outcome(config)
    assert {(s.target, s.filter) for s in outcome.stacks} == {("M8", f) for f in "LRGB"}
    assert outcome.states().get("stacked", 0) >= 30
    assert all(f.record.exposure_s == 15.0 for f in outcome.frames)


def test_m27_one_colour_stack(tmp_path):
    drop(shared("m27_osc"), tmp_path)
    config = config_for(tmp_path, watch='defaults = { target = "M27" }')
    run(config)
    outcome = Outcome(config)
    assert outcome.states() == {"stacked": 6}
    (stack,) = outcome.stacks
    image = outcome.image(stack)
    assert image.shape == (3, 976, 1304)


@contextlib.contextmanager
def indi_night(folder: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    """INDI's simulators at work in a process of their own, with a home of their own; nothing of
    them is left afterwards.
    """
    tool = shared("../tools/indi") / "indi_night"
    # Beside its port a server has one local socket: two test runs on one machine must not meet.
    port = free_port()
    program = folder / "programs" / "indiserver"
    program.parent.mkdir()
    (folder / "home").mkdir()
    program.write_text(f'#!/bin/sh\nexec {shutil.which("indiserver")} -u lightkeeper-{port} "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HOME": str(folder / "home"),
    }
    camera = subprocess.Popen(
        [sys.executable, str(tool), *arguments, "--port", str(port)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield camera
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(camera.pid, signal.SIGKILL)
        camera.wait()
        camera.stderr.close()


def free_port() -> int:
    """A TCP port that nobody listens on: two test runs on one machine must not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.skipif(shutil.which("indiserver") is None, reason="needs Debian's indi-bin")
def test_indi_drivers_write_while_the_daemon_watches(tmp_path):
    (tmp_path / "in").mkdir()
    config = config_for(tmp_path, extra="[calibration]\nquiet_s = 3")
    written = threading.Event()
    said = []

    def listen():
        said.append(camera.stderr.read())
        written.set()

    with indi_night(tmp_path, str(tmp_path / "in"), "--flat", "5") as camera:
        thread = threading.Thread(target=listen)
        thread.start()
        assert service.run(config, until_idle=True, not_before=written) == 0
        thread.join()
        code = camera.wait()
    if "indi_night:" in said[0]:
        pytest.skip(f"the simulated camera gave up on this busy machine: {said[0]}")
    assert code == 0, said[0]
    outcome = Outcome(config)
    kinds = {(str(m.frame_type), m.filter) for m in outcome.masters}
    assert kinds == {("bias", None), ("dark", None), ("flat", "R"), ("flat", "G")}
    assert {(s.target, s.filter) for s in outcome.stacks} == {("M31", "R"), ("M31", "G")}
    for members in outcome.members.values():
        assert len(members) == 6
        assert all(m.masters["dark"] and m.masters["flat"] for m in members)


def test_asi120_four_masters_from_paths_and_decimal_commas(tmp_path):
    drop(shared("asi120"), tmp_path)
    config = config_for(tmp_path)
    run(config)
    outcome = Outcome(config)
    assert outcome.states() == {"filed": 20}
    assert sorted((str(m.frame_type), m.exposure_s, m.frames) for m in outcome.masters) == [
        ("bias", pytest.approx(6.4e-5), 5),
        ("dark", 10.0, 2),
        ("dark", 50.0, 2),
        ("flat", 0.005, 5),
    ]
    # Three of five darks have no dark current in their last rows: the majority is wrong, and left
    # out by physics, with the reason.
    assert outcome.log.count("it was cut short") == 6
