"""Taking a frame out of a stack and letting one in again, against a stack without it."""

import dataclasses

import numpy as np
import pytest

from calib_library.images import product_file
from daemon import cli
from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests.nights import Outcome, config_for, run


@pytest.fixture(scope="module")
def taken():
    plan = small_plan(
        seed=31,
        shape=(384, 512),
        bias=0,
        darks=5,
        flats=5,
        flat_darks=5,
        lights=6,
        trails=1,
        flip=False,
    )
    return list(frames(plan))


def toml(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(
        f'[library]\npath = "{tmp_path / "library"}"\n[[watch]]\npath = "{tmp_path / "in"}"\n'
        "settle_s = 0.1\n[lights]\nclean_cosmics = 'never'\n"
    )
    return str(path)


def test_remove_equals_a_stack_that_never_had_the_frame(taken, tmp_path_factory, capsys):
    tmp_path, other = tmp_path_factory.mktemp("removed"), tmp_path_factory.mktemp("never")
    lights = [frame for frame in taken if frame.kind == "light"]
    victim = lights[3]
    for frame in taken:
        write_frame(tmp_path / "in", frame)
        if frame is not victim:
            write_frame(other / "in", frame)
    # Whether a frame is cleaned alone depends on its place in the stack.
    uncleaned = "[lights]\nclean_cosmics = 'never'"
    config, without = config_for(tmp_path, extra=uncleaned), config_for(other, extra=uncleaned)
    run(config)
    run(without)
    name = victim.name.rpartition("/")[2]
    before = Outcome(config)
    first = before.image(before.stacks[0])

    assert cli.main(["stack", "remove", name, "--config", toml(tmp_path)]) == 0

    after = Outcome(config)
    assert after.frame(name).state == "rejected"
    assert after.frame(name).by_hand == "out"
    assert len(after.members[after.stacks[0].id]) == len(lights) - 1
    expected = Outcome(without)
    np.testing.assert_array_equal(after.image(after.stacks[0]), expected.image(expected.stacks[0]))

    run(config)  # another start does not bring it back
    assert Outcome(config).frame(name).state == "rejected"

    assert cli.main(["stack", "readmit", name, "--config", toml(tmp_path)]) == 0
    again = Outcome(config)
    assert again.frame(name).state == "stacked"
    # The frames are the same, their order is not: the same up to rounding nearly everywhere.
    assert np.mean(np.abs(first - again.image(again.stacks[0])) < 0.01) > 0.98

    assert cli.main(["stack", "--config", toml(tmp_path)]) == 0
    assert " 6 " in capsys.readouterr().out


def test_what_cannot_be_done_is_said(taken, tmp_path, capsys):
    write_frame(tmp_path / "in", next(f for f in taken if f.kind == "dark"))
    assert cli.main(["stack", "remove", "x", "--config", toml(tmp_path)]) == 1
    assert "no library" in capsys.readouterr().err
    run(config_for(tmp_path))
    assert cli.main(["stack", "remove", "nothing", "--config", toml(tmp_path)]) == 1
    assert "no such frame" in capsys.readouterr().err
    assert cli.main(["stack", "remove", "1", "--config", toml(tmp_path)]) == 0
    assert "in no stack" in Outcome(config_for(tmp_path)).log


def test_a_light_left_out_for_its_quality_is_judged_again(taken, tmp_path):
    """Five sharp frames refuse a wider one; among ten wide ones it belongs."""
    from daemon.light import quality

    base = quality.Quality(100, 2.0, 0.3, 300.0, 10.0, 1.0, 1e-3, 0.1)
    sharp = [dataclasses.replace(base, fwhm_px=2.0 + 0.01 * n) for n in range(5)]
    wide = [dataclasses.replace(base, fwhm_px=2.8 + 0.05 * n) for n in range(8)]
    candidate = dataclasses.replace(base, fwhm_px=2.9)
    assert not quality.admit(candidate, sharp)[0]
    assert quality.admit(candidate, sharp + wide)[0]


def test_finish_makes_the_exact_stack(taken, tmp_path, capsys):
    for frame in taken:
        write_frame(tmp_path / "in", frame)
    config = config_for(tmp_path)
    run(config)
    assert cli.main(["stack", "finish", "7", "--config", toml(tmp_path)]) == 1
    assert "no stack 7" in capsys.readouterr().err
    assert cli.main(["stack", "finish", "--drizzle", "--config", toml(tmp_path)]) == 0
    outcome = Outcome(config)
    (stack,) = outcome.stacks
    assert stack.final_frames == 6
    exact, _ = product_file.read_product(config.library.path / stack.final_path)
    growing = outcome.image(stack)
    assert exact.shape == growing.shape
    # Both see the same sky: they differ by a fraction of the noise of one frame.
    sigma = outcome.members[stack.id][0].quality.noise_adu
    assert np.median(np.abs(exact - growing)) < 0.1 * sigma
    (fine,) = (config.library.path / stack.final_path).parent.glob("*_drizzle.fits")
    assert product_file.read_product(fine)[0].shape == tuple(2 * side for side in exact.shape)
    assert any("FINAL" in line for line in outcome.log.splitlines())
