"""Stopping, killing and starting again: the same stack, bit for bit, no frame twice, none lost."""

import random
import signal
import subprocess
import sys

import pytest

from daemon.simulator.night import frames, small_plan
from tests import killing
from tests.daemons import COMMAND, PATIENCE_S, write_config
from tests.nights import Outcome, assert_same, config_for, run, without_trouble, write

TELLING = "from tests import killing; killing.tell_steps();"


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
    command = [sys.executable, "-c", TELLING + COMMAND, "run", "--until-idle"]
    command += ["--config", str(write_config(tmp_path, patient))]
    rng = random.Random(4)
    killed = 0
    for _ in range(12):
        life = subprocess.Popen(
            command, cwd=killing.ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        if killing.let_live(life, rng.randint(1, 16), rng):
            life.send_signal(signal.SIGKILL)
            killed += 1
        life.wait(PATIENCE_S)
    assert killed > 0
    run(config)
    assert_same(config, undisturbed)
    products = {p.name for p in (config.library.path / "stacks").rglob("*_v*.fits")}
    assert products == {Outcome(config).stacks[0].path.rpartition("/")[2]}
    assert not list(config.library.path.rglob("*.tmp"))
