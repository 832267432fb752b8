"""How old a master may be: lowered, then refused, and said."""

import dataclasses
import datetime as dt

import pytest

from calib_library import match
from calib_library.ageing import Ageing
from calib_library.catalogue import agenda, candidates, registry
from calib_library.frame import FrameType
from calib_library.library import CalibrationLibrary
from tests.records import NIGHT, master, record
from tests.test_library import built, put, put_many

BIAS, DARK, FLAT, LIGHT = FrameType.BIAS, FrameType.DARK, FrameType.FLAT, FrameType.LIGHT


def days(count: float) -> dt.datetime:
    return NIGHT + dt.timedelta(days=count)


def rank(masters, kind=DARK, *, session=None, **rules):
    return match.rank(
        record(LIGHT),
        masters,
        kind=kind,
        temperature_tolerance_c=1.0,
        session=session,
        ageing=Ageing(**rules),
    )


def test_a_dark_of_last_year_is_refused_with_the_rule_and_its_setting():
    found = rank([master(1, DARK, date_obs=days(-400))])
    assert found.chosen is None
    assert found.candidates[0].refused == (
        "400 days from the light: darks are used for 365 days (dark_days)"
    )


@pytest.mark.parametrize("kind", [BIAS, DARK, FLAT])
def test_zero_is_no_limit(kind):
    old = master(1, kind, date_obs=days(-4000))
    assert rank([old], kind).chosen is None
    assert rank([old], kind, dark_days=0, bias_days=0, flat_days=0).chosen is old


def test_the_fresher_of_two_equal_darks_wins_and_both_scores_say_so():
    old = master(1, DARK, date_obs=days(-300), frames=50)
    new = master(2, DARK, date_obs=days(-3), frames=10)
    found = rank([old, new])
    assert found.chosen is new
    assert [candidate.score for candidate in found.candidates] == [1.0, 0.6]
    # a much nearer temperature is worth more than age
    warm = master(3, DARK, date_obs=days(-3), temperature_c=-9.0)
    assert rank([old, warm]).chosen is old


def test_past_half_its_time_the_match_says_that_new_ones_are_due():
    assert rank([master(1, DARK, date_obs=days(-180))]).notes == ()
    [note] = rank([master(1, DARK, date_obs=days(-200))]).notes
    assert note == (
        "Its frames are 200 days from the light; beyond 365 days they are no longer used "
        "(dark_days): take new darks."
    )


def test_a_flat_of_the_session_never_ages_and_serves_before_and_after():
    for offset in (-20, 20):
        flat = master(1, FLAT, session="s", date_obs=days(offset))
        assert rank([flat], FLAT, session="s").chosen is flat
        assert rank([flat], FLAT, session="other").chosen is None


def test_an_unknown_date_is_not_held_against_a_master():
    assert rank([master(1, DARK, date_obs=None)]).chosen is not None


def test_only_older():
    after = master(1, DARK, date_obs=days(0.1), frames=30)
    before = master(2, DARK, date_obs=days(-30))
    assert rank([after, before]).chosen is after
    found = rank([after, before], only_older=True)
    assert found.chosen is before
    assert found.candidates[1].refused == "taken after the light, and only_older is set"
    unknown = rank([master(3, DARK, date_obs=None)], only_older=True)
    assert unknown.chosen is None
    assert "it is not known whether it is older" in unknown.text


def test_darks_of_another_season_begin_a_new_set(tmp_path):
    with CalibrationLibrary.open(tmp_path) as library:
        first = put_many(library, DARK, 3, name="a")
        assert put(library, DARK, "near", date_obs=days(50)) == first
        second = put(library, DARK, "far", date_obs=days(120))
        assert second != first
        assert put(library, DARK, "back", date_obs=days(125)) == second


def test_a_set_that_would_be_too_young_is_not_waited_for(tmp_path):
    with CalibrationLibrary.open(tmp_path) as library:
        put_many(library, DARK, 5, date_obs=days(0.1))
        question = {"session": None, "now": days(0.2), "min_frames": 5, "quiet_s": 1.0}
        assert agenda.pending(library, record(LIGHT), DARK, **question) is not None
        library.ageing = Ageing(only_older=True)
        assert agenda.pending(library, record(LIGHT), DARK, **question) is None


def test_the_library_refuses_by_age(tmp_path):
    with CalibrationLibrary.open(tmp_path) as library:
        set_id = put_many(library, DARK, 5, date_obs=days(-500))
        made = dataclasses.replace(built(library, set_id), date_obs=days(-500))
        one = registry.register(library, made, NIGHT)
        assert candidates.best(library, record(LIGHT), DARK, session=None).chosen is None
        archived = record(LIGHT, date_obs=days(-400))
        assert candidates.best(library, archived, DARK, session=None).chosen == one
