"""Killed at every named point between writing a product and committing it, through a whole night:
the end is that of a night without trouble.
"""

import pytest

from daemon.simulator.writer import write_frame
from tests import killing
from tests.daemons import PATIENCE_S, write_config
from tests.nights import Outcome, config_for, short_night

PATIENT = "[lights]\nkeep_calibrated = true\n[service]\nmax_attempts = 50"
"""A frame that happens to be worked on at every death must not be taken for the killer."""


@pytest.fixture(scope="module")
def taken():
    return short_night()


def prepared(tmp_path, taken, extra=PATIENT):
    for frame in taken:
        write_frame(tmp_path / "in", frame)
    return write_config(tmp_path, extra)


@pytest.fixture(scope="module")
def undisturbed(taken, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("undisturbed")
    assert killing.start(prepared(tmp_path, taken)).wait(PATIENCE_S) == 0
    return killing.end_state(tmp_path / "library")


@pytest.mark.slow
@pytest.mark.parametrize("points", [killing.POINTS_BY_DAY, killing.POINTS_BY_DAWN])
def test_killed_at_every_named_point(points, taken, undisturbed, tmp_path):
    """One death after the other, each life going on from what the last one left."""
    config = prepared(tmp_path, taken)
    for what, where in points:
        code = killing.start(config, what, where).wait(PATIENCE_S)
        assert code == -9, f"the point was not met: {what} {where}"
    assert killing.start(config).wait(PATIENCE_S) == 0
    assert killing.end_state(tmp_path / "library") == undisturbed


@pytest.mark.slow
def test_a_frame_that_kills_the_process_is_given_up(taken, tmp_path_factory):
    killer = [frame for frame in taken if frame.kind == "light"][3]
    name = killer.name.rpartition("/")[2]
    spared, struck = tmp_path_factory.mktemp("spared"), tmp_path_factory.mktemp("struck")
    without = [frame for frame in taken if frame is not killer]
    extra = "[lights]\nkeep_calibrated = true"
    assert killing.start(prepared(spared, without, extra)).wait(PATIENCE_S) == 0
    config = prepared(struck, taken, extra)
    codes = []
    while 0 not in codes and len(codes) < 10:
        codes.append(killing.start(config, "read", name).wait(PATIENCE_S))
    # Once read ahead of its turn, then three attempts of its own.
    assert codes == [-9] * 4 + [0]
    outcome = Outcome(config_for(struck))
    assert outcome.frame(name).state == "failed"
    assert "given up after 3 attempts" in outcome.frame(name).reason
    ended, expected = killing.end_state(struck / "library"), killing.end_state(spared / "library")
    ended["frames"] = [row for row in ended["frames"] if row[0] != name]
    assert ended == expected


def test_a_point_that_is_never_met_is_noticed(taken, tmp_path):
    """The test of the points can fail."""
    config = prepared(tmp_path, taken[:1])
    with pytest.raises(AssertionError, match="not met"):
        assert killing.start(config, "product", "whole").wait(PATIENCE_S) == -9, "not met"
