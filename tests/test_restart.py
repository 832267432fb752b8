"""Stopping, killing and starting again: the same stack, bit for bit, no frame twice, none lost."""

import random
import signal
import subprocess
import sys
import time

import pytest

from daemon.simulator.night import frames, small_plan
from tests.daemons import COMMAND, write_config
from tests.nights import Outcome, assert_same, config_for, run, without_trouble, write


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


@pytest.fixture(scope="module")
def undisturbed(taken, tmp_path_factory):
    """The product of a night without trouble."""
    return without_trouble(taken, tmp_path_factory.mktemp("undisturbed"))


def test_a_night_in_three_parts(taken, undisturbed, tmp_path):
    config = config_for(tmp_path)
    for part in (taken[:19], taken[19:23], taken[23:]):
        write(tmp_path, part)
        run(config)
    assert_same(config, undisturbed)


@pytest.mark.slow
def test_killed_at_random_instants(taken, undisturbed, tmp_path):
    write(tmp_path, taken)
    # A frame that happens to be worked on at every kill must not be taken for the killer.
    patient = "[service]\nmax_attempts = 50"
    config = config_for(tmp_path, extra=patient)
    file = write_config(tmp_path, patient)
    command = [sys.executable, "-c", COMMAND, "run", "--until-idle", "--config", str(file)]
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
    assert_same(config, undisturbed)
    products = {p.name for p in (config.library.path / "stacks").rglob("*_v*.fits")}
    assert products == {Outcome(config).stacks[0].path.rpartition("/")[2]}
    assert not list(config.library.path.rglob("*.tmp"))
