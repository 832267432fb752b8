"""Pixels that jump are found when a dark master is built, and marked in every light after."""

import dataclasses

import numpy as np
import pytest

from calib_library import defects
from calib_library.catalogue import registry
from calib_library.images import frame_file
from calib_library.library import CalibrationLibrary
from daemon.calibration import Calibrator
from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests.nights import Outcome, config_for, run

SHAPE = (256, 320)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A night whose camera has 60 pixels that hold 120 ADU more in every second frame."""
    tmp_path = tmp_path_factory.mktemp("telegraph")
    plan = small_plan(
        seed=6, shape=SHAPE, bias=5, darks=24, flats=6, flat_darks=0, lights=3, flip=False
    )
    rng = np.random.default_rng(1)
    jumping = np.sort(rng.choice(SHAPE[0] * SHAPE[1], 60, replace=False))
    for frame in frames(plan):
        pixels = frame.pixels.copy()
        up = jumping[rng.random(60) < 0.5]
        pixels.reshape(-1)[up] += np.uint16(120)
        write_frame(tmp_path / "in", dataclasses.replace(frame, pixels=pixels))
    config = config_for(tmp_path)
    run(config)
    return config, Outcome(config), jumping


def test_they_are_found_with_the_master_and_kept(night):
    config, outcome, jumping = night
    (dark,) = [one for one in outcome.masters if one.frame_type == "dark"]
    with CalibrationLibrary.open(config.library.path, readonly=True) as library:
        found = defects.unpack_pixels(registry.telegraph(library, dark.id))
        others = [one.id for one in outcome.masters if one.id != dark.id]
        assert all(registry.telegraph(library, number) is None for number in others)
    # Those on a very hot pixel are hidden by its shot noise; nothing else jumps.
    assert len(np.intersect1d(found, jumping)) >= 57
    assert len(np.setdiff1d(found, jumping)) <= 2
    assert f"{len(found)} pixels jump" in outcome.log


def test_they_are_bad_in_every_light(night):
    """Bad pixels have no weight in a stack, and are repaired in the single frame."""
    config, outcome, jumping = night
    light = next(frame for frame in outcome.frames if frame.frame_type == "light")
    with CalibrationLibrary.open(config.library.path, readonly=True) as library:
        calibrator = Calibrator(
            library,
            root=config.library.path,
            min_frames=5,
            quiet_s=lambda: 0.0,
        )
        choice = calibrator.choose(light.record, session=light.night, now=None)
        done = calibrator.apply(frame_file.load(light.path).pixels, light.record, choice)
    bad = np.flatnonzero(done.mask & defects.BAD)
    assert len(np.intersect1d(bad, jumping)) >= 57
    assert len(bad) < 0.02 * done.mask.size
