"""What several of these tests take in."""

import pytest

from daemon.simulator.night import frames, small_plan


@pytest.fixture(scope="session")
def lights():
    """A few lights of one target."""
    plan = small_plan(
        seed=8, shape=(256, 384), bias=0, darks=0, flats=0, flat_darks=0, lights=4, flip=False
    )
    return list(frames(plan))
