"""An order that is killed midway is finished, or not begun, after the next start: never half."""

import subprocess
import sys

import pytest

from calib_library.images import frame_file, product_file
from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests import killing
from tests.daemons import write_config
from tests.nights import Outcome, config_for, run

CHILD = """
import os, signal, sys
from pathlib import Path
from calib_library.images import frame_file, product_file
from daemon import finish, orders, service
from daemon.config import load
from daemon.ledger.stacks import Stacks
from daemon.publish import Publisher
from daemon.stack.store import Growing
from tests.killing import _wrap, arm, die

config, point, action, number = load(Path(sys.argv[1])), *sys.argv[2:]
match point:
    case "before the commit":
        owner, name = (Stacks, "finished") if action == "finish" else (Stacks, "remove_member")
        _wrap(owner, name, before=lambda *_: die())
    case "committed":
        if action == "finish":
            _wrap(finish, "settle", before=lambda *_: die())
        else:
            _wrap(Growing, "remove", before=lambda *_: die())
            _wrap(Publisher, "clear", before=lambda *_: die())
    case "half deleted":
        _wrap(Path, "unlink", after=die)
    case "written":
        _wrap(Publisher, "point", before=lambda *_: die())
    case "done":
        _wrap(orders, "carry_out", after=die)
service.carry_out(config, [orders.Order(orders.Action(action), int(number))])
"""


def killed(config, point, action, number):
    """Carry an order out, and die at the point."""
    command = [sys.executable, "-c", CHILD, str(config), point, action, str(number)]
    done = subprocess.run(command, cwd=killing.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -9, f"{point} was not met: {done.stderr}"


def night(tmp_path, lights):
    plan = small_plan(
        seed=21, shape=(256, 384), bias=0, darks=5, flats=5, flat_darks=0, lights=lights
    )
    for frame in frames(plan):
        write_frame(tmp_path / "in", frame)
    file, config = write_config(tmp_path), config_for(tmp_path)
    run(config)
    return file, config


def held(config):
    """The frames that the written stack holds, by its own header; None without a stack."""
    (stack,) = Outcome(config).stacks
    if stack.path is None:
        return None
    cards = {
        card.keyword: card.value
        for card in frame_file.probe(config.library.path / stack.path).cards
    }
    return cards["NCOMBINE"]


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before the commit", "committed", "written", "done"])
def test_a_frame_is_taken_out_or_not(point, tmp_path):
    file, config = night(tmp_path, lights=4)
    members = Outcome(config).members[1]
    victim = members[1].frame_id
    killed(file, point, "remove", victim)
    run(config)
    after = Outcome(config)
    assert [m.frame_id for m in after.members[1]] == [
        m.frame_id for m in members if m.frame_id != victim
    ]
    assert held(config) == after.stacks[0].published_frames == len(members) - 1
    assert not list((config.library.path / "orders").iterdir())
    assert len(list(config.library.path.rglob("stacks/**/*_v*.fits"))) == 1


@pytest.mark.parametrize("point", ["before the commit", "committed", "half deleted", "done"])
def test_the_last_frame_is_taken_out_or_not(point, tmp_path):
    """With it goes the product, and nothing of it remains."""
    file, config = night(tmp_path, lights=1)
    (member,) = Outcome(config).members[1]
    killed(file, point, "remove", member.frame_id)
    run(config)
    assert Outcome(config).members[1] == []
    assert held(config) is None
    assert not [path for path in config.library.path.glob("stacks/**/*") if not path.is_dir()]
    assert not list((config.library.path / "orders").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before the commit", "committed", "done"])
def test_a_stack_is_finished_once(point, tmp_path):
    file, config = night(tmp_path, lights=4)
    killed(file, point, "finish", 1)
    run(config)
    (stack,) = Outcome(config).stacks
    assert stack.final_frames == len(Outcome(config).members[1])
    finals = list(config.library.path.rglob("*_final_v*.fits"))
    assert finals == [config.library.path / stack.final_path]
    product_file.read_product(finals[0])
    assert finals[0].with_name(finals[0].name.split("_v")[0] + ".fits").exists()
    assert not list((config.library.path / "orders").iterdir())
