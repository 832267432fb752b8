"""The power is cut at random instants: what was not synced is lost, and nothing is missed."""

import os
import random
import shutil
import subprocess

import pytest

from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests import killing, power
from tests.daemons import write_config

PATIENT = "[lights]\nkeep_calibrated = true\n[service]\nmax_attempts = 50"


@pytest.fixture
def medium(tmp_path):
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("a disk whose power can be cut needs root, mkfs.ext4 and a loop device")
    try:
        with power.disk(tmp_path, tmp_path / "library") as made:
            yield made
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"no loop device can be mounted here: {error}")


def test_what_was_not_synced_is_lost(medium):
    """The disk of these tests does drop what a careless writer leaves to chance."""
    careless, careful = medium.place / "careless", medium.place / "careful"
    careless.write_bytes(b"x" * 100_000)
    with careful.open("wb") as file:
        file.write(b"x" * 100_000)
        file.flush()
        os.fsync(file.fileno())
    careless.rename(medium.place / "renamed")
    medium.cut()
    with pytest.raises(OSError, match="error"):
        (medium.place / "later").write_bytes(b"x")
    medium.unmount()
    medium.mount()
    assert careful.read_bytes() == b"x" * 100_000
    renamed = medium.place / "renamed"
    assert not renamed.exists() or renamed.stat().st_size < 100_000


@pytest.mark.slow
def test_the_power_is_cut(medium, tmp_path, tmp_path_factory):
    plan = small_plan(
        seed=21, shape=(256, 384), bias=0, darks=5, flats=5, flat_darks=5, lights=6, trails=1
    )
    other = tmp_path_factory.mktemp("undisturbed")
    for frame in frames(plan):
        write_frame(tmp_path / "in", frame)
        write_frame(other / "in", frame)
    steps = killing.undisturbed(write_config(other, PATIENT))
    config = write_config(tmp_path, PATIENT)
    done = power.lives(config, medium, cuts=6, steps=steps // 2, rng=random.Random(3))
    assert done >= 1
    ended = killing.end_state(tmp_path / "library")
    assert ended == killing.end_state(other / "library")
