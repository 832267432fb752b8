"""Stopping, killing and starting again: the same stack, bit for bit, no frame twice, none lost."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests.nights import Outcome, config_for, run

COMMAND = "import sys; from daemon.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def taken():
    """A night's frames, with trails and cosmic rays, so that the state of a stack matters."""
    plan = small_plan(
        seed=21,
        shape=(256, 384),
        bias=0,
        darks=6,
        flats=6,
        flat_darks=5,
        lights=9,
        trails=2,
        cosmic_rays=6,
    )
    return list(frames(plan))


def write(tmp_path, selection):
    for frame in selection:
        write_frame(tmp_path / "in", frame)


@pytest.fixture(scope="module")
def undisturbed(taken, tmp_path_factory):
    """The product of a night without trouble."""
    tmp_path = tmp_path_factory.mktemp("undisturbed")
    write(tmp_path, taken)
    config = config_for(tmp_path)
    run(config)
    outcome = Outcome(config)
    return outcome.states(), outcome.image(outcome.stacks[0])


def test_a_night_in_three_parts(taken, undisturbed, tmp_path):
    config = config_for(tmp_path)
    for part in (taken[:19], taken[19:23], taken[23:]):
        write(tmp_path, part)
        run(config)
    outcome = Outcome(config)
    states, image = undisturbed
    assert outcome.states() == states
    np.testing.assert_array_equal(outcome.image(outcome.stacks[0]), image)


@pytest.mark.slow
def test_killed_at_random_instants(taken, undisturbed, tmp_path):
    write(tmp_path, taken)
    # A frame that happens to be worked on at every kill must not be taken for the killer.
    patient = "[service]\nmax_attempts = 50"
    config = config_for(tmp_path, extra=patient)
    (tmp_path / "config.toml").write_text(
        f'[library]\npath = "{tmp_path / "library"}"\n'
        f'[[watch]]\npath = "{tmp_path / "in"}"\nsettle_s = 0.1\n{patient}\n'
    )
    command = [sys.executable, "-c", COMMAND, "run", "--until-idle"]
    command += ["--config", str(tmp_path / "config.toml")]
    rng = random.Random(4)
    killed = 0
    for _ in range(12):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            # The work itself begins after the imports, and takes some seconds in all.
            process.wait(1.5 + rng.random() * 3.0)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        time.sleep(0.05)
    assert killed > 0
    run(config)
    outcome = Outcome(config)
    states, image = undisturbed
    assert outcome.states() == states
    np.testing.assert_array_equal(outcome.image(outcome.stacks[0]), image)
    products = {p.name for p in (config.library.path / "stacks").rglob("*_v*.fits")}
    assert products == {outcome.stacks[0].path.rpartition("/")[2]}
    assert not list(config.library.path.rglob("*.tmp"))
