"""The choice of a master: each rule by itself, the order of rules, and the sentences."""

import dataclasses
import datetime as dt
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib_library import match
from calib_library.frame import FrameType
from tests.records import KEY, NIGHT, key, master, record

BIAS, DARK, FLAT, FLAT_DARK, LIGHT = (
    FrameType.BIAS,
    FrameType.DARK,
    FrameType.FLAT,
    FrameType.FLAT_DARK,
    FrameType.LIGHT,
)


def rank(frame, masters, kind=DARK, *, tolerance=1.0, session=None):
    return match.rank(frame, masters, kind=kind, temperature_tolerance_c=tolerance, session=session)


def refusal(frame, one, kind=DARK, **options):
    """The one reason why this master was refused."""
    found = rank(frame, [one], kind, **options)
    assert found.chosen is None
    [candidate] = found.candidates
    assert candidate.score is None
    assert candidate.refused in found.text
    return candidate.refused


# --- what must be equal --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"camera": "ATR"}, "camera ATR, the light has ZWO ASI2600MM Pro"),
        ({"width": 32}, "size 32 × 48 px, the light has 64 × 48 px"),
        ({"xbinning": 2, "ybinning": 2}, "binning 2 × 2, the light has 1 × 1"),
        ({"gain": 0.0}, "gain 0, the light has 100"),
        ({"gain": None}, "gain not given, the light has 100"),
        ({"offset": 10.0}, "offset 10, the light has 50"),
        ({"readout_mode": "fast"}, "readout mode fast, the light has normal"),
        ({"sections": "[1:60,1:48]"}, "sections [1:60,1:48], the light has untrimmed"),
        ({"storage": "int16"}, "pixel format int16, the light has uint16"),
        ({"bayer_pattern": "RGGB"}, "Bayer pattern RGGB, the light has monochrome"),
    ],
)
@pytest.mark.parametrize("kind", [BIAS, DARK, FLAT, FLAT_DARK])
def test_a_differing_key_field_is_refused_and_named(kind, fields, sentence):
    assert refusal(record(LIGHT), master(1, kind, key=key(**fields)), kind) == sentence


def test_every_field_of_the_key_is_hard():
    """A field added to the key one day must not be forgotten here."""
    other = {
        "camera": "x",
        "width": 1,
        "height": 1,
        "xbinning": 3,
        "ybinning": 3,
        "gain": 1.0,
        "offset": 1.0,
        "readout_mode": "x",
        "sections": "x",
        "storage": "float32",
        "bayer_pattern": "GBRG",
    }
    for field in dataclasses.fields(KEY):
        assert refusal(record(LIGHT), master(1, DARK, key=key(**{field.name: other[field.name]})))


def test_a_value_the_light_lacks_is_refused_too():
    assert (
        refusal(record(LIGHT, key=key(gain=None)), master(1, DARK))
        == "gain 100, the light does not say"
    )


def test_missing_equals_missing_and_the_match_says_so():
    missing = key(gain=None, offset=None)
    found = rank(
        record(LIGHT, key=missing, temperature_c=None),
        [master(1, DARK, key=missing, temperature_c=None)],
    )
    assert found.chosen is not None
    [note] = found.notes
    assert note == (
        "Neither the light nor the master says its gain or its offset or its temperature: "
        "taken as equal."
    )


def test_row_order_is_hard():
    assert (
        refusal(record(LIGHT), master(1, FLAT, row_order="BOTTOM-UP"), FLAT)
        == "row order BOTTOM-UP, the light has TOP-DOWN"
    )


def test_all_reasons_are_given_and_the_nearest_is_the_one_with_fewest():
    far = master(1, DARK, key=key(gain=0.0), exposure_s=10.0, temperature_c=20.0)
    near = master(2, DARK, exposure_s=10.0)
    found = rank(record(LIGHT, exposure_s=50.0), [far, near])
    assert found.text == (
        "No master dark for the light; the nearest, Master2, does not fit: "
        "exposure 10 s, the light has 50 s."
    )
    assert [c.master_id for c in found.candidates] == [2, 1]
    assert found.candidates[1].refused == (
        "gain 0, the light has 100; exposure 10 s, the light has 50 s; "
        "20.0 °C, the light has −10.0 °C: more than 1.0 °C apart"
    )


def test_an_empty_library_says_so():
    found = rank(record(LIGHT), [])
    assert (found.chosen, found.candidates) == (None, ())
    assert found.text == (
        "No master dark for the light: the library has none that is anything like it."
    )


def test_a_superseded_master_is_not_chosen():
    assert (
        refusal(record(LIGHT), master(1, DARK, superseded_by=2))
        == "a newer generation has replaced it"
    )


# --- exposure and temperature --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (300.0, 303.0, True),
        (300.0, 304.0, False),
        (0.0, 0.001, True),
        (0.001, 0.0021, False),
        (0.000064, 0.0, True),
        (10.0, 50.0, False),
        (None, None, True),
        (None, 0.0, False),
    ],
)
def test_same_exposure(a, b, same):
    assert match.same_exposure(a, b) is same
    assert match.same_exposure(b, a) is same


def test_a_temperature_exactly_at_the_tolerance_fits():
    # −10.1 − (−9.1) is −1.0000000000000009 in binary numbers
    assert rank(record(LIGHT, temperature_c=-10.1), [master(1, DARK, temperature_c=-9.1)]).chosen


def test_the_sentence_of_the_temperature_rule():
    assert (
        refusal(record(LIGHT, temperature_c=-10.1), master(1, DARK, temperature_c=-5.0))
        == "−5.0 °C, the light has −10.1 °C: more than 1.0 °C apart"
    )


@pytest.mark.parametrize(
    ("light", "dark", "sentence"),
    [
        (None, -10.0, "temperature −10.0 °C, the light does not say"),
        (-10.0, None, "temperature not given, the light has −10.0 °C"),
        (0.0, None, "temperature not given, the light has 0.0 °C"),
    ],
)
def test_a_temperature_on_one_side_only_is_refused(light, dark, sentence):
    assert (
        refusal(record(LIGHT, temperature_c=light), master(1, DARK, temperature_c=dark)) == sentence
    )


def test_darks_nearest_temperature_then_more_frames_then_newest():
    later = NIGHT + dt.timedelta(days=1)
    masters = [
        master(1, DARK, temperature_c=-9.5, frames=100),
        master(2, DARK, temperature_c=-10.21, frames=20),
        master(3, DARK, temperature_c=-9.8, frames=30),
        master(4, DARK, temperature_c=-9.8, frames=30, built_at=later),
        master(5, DARK, temperature_c=-11.2, frames=500),
    ]
    found = rank(record(LIGHT), masters)
    assert [c.master_id for c in found.candidates] == [4, 3, 2, 1, 5]
    assert found.candidates[-1].refused is not None
    scores = [c.score for c in found.candidates[:-1]]
    assert scores == sorted(scores, reverse=True)
    assert found.text == (
        "Master4: same exposure (300 s), 0.2 °C from the light's −10.0 °C, 30 frames, "
        "the best of 4 that fit."
    )


def test_a_zero_tolerance_still_lets_the_equal_through():
    found = rank(record(LIGHT), [master(1, DARK), master(2, DARK, temperature_c=-9.9)], tolerance=0)
    assert found.chosen.id == 1
    assert found.candidates[1].refused


def test_a_bias_serves_at_any_exposure_within_ten_degrees():
    masters = [
        master(1, BIAS, exposure_s=0.0, temperature_c=-1.0),
        master(2, BIAS, exposure_s=0.0, temperature_c=-14.0),
        master(3, BIAS, exposure_s=0.0, temperature_c=5.0),
    ]
    found = rank(record(LIGHT), masters, BIAS)
    assert found.chosen.id == 2
    assert found.candidates[-1].refused == (
        "5.0 °C, the light has −10.0 °C: more than 10.0 °C apart"
    )


# --- flats ---------------------------------------------------------------------------------------


def flat(number, **fields):
    return master(number, FLAT, **({"filter": "H", "exposure_s": 2.0} | fields))


def test_a_flat_needs_the_filter_and_neither_exposure_nor_temperature():
    light = record(LIGHT, filter="H")
    assert rank(light, [flat(1, temperature_c=25.0)], FLAT).chosen
    assert refusal(light, flat(1, filter="O"), FLAT) == "filter O, the light has H"
    assert refusal(light, flat(1, filter=None), FLAT) == "filter not given, the light has H"
    assert rank(record(LIGHT), [flat(1, filter=None)], FLAT).chosen


@pytest.mark.parametrize(
    ("theirs", "ours", "sentence"),
    [
        ({"telescope": "Newton"}, {"telescope": "FSQ"}, "telescope Newton, the light has FSQ"),
        ({"telescope": "fsq"}, {"telescope": "FSQ"}, None),
        (
            {"focal_length_mm": 800.0},
            {"focal_length_mm": 530.0},
            "focal length 800 mm, the light has 530 mm",
        ),
        ({"focal_length_mm": 530.0}, {"focal_length_mm": 531.5}, None),
        ({"rotator_deg": 359.5}, {"rotator_deg": 1.2}, None),
        (
            {"rotator_deg": 359.0},
            {"rotator_deg": 1.2},
            "rotator at 359.0°, the light has 1.2°: more than 2° apart",
        ),
        (
            {"rotator_deg": 180.0},
            {"rotator_deg": 0.0},
            "rotator at 180.0°, the light has 0.0°: more than 2° apart",
        ),
    ],
)
def test_optics_of_a_flat(theirs, ours, sentence):
    light = record(LIGHT, filter="H", **ours)
    if sentence is None:
        assert rank(light, [flat(1, **theirs)], FLAT).chosen
    else:
        assert refusal(light, flat(1, **theirs), FLAT) == sentence


@pytest.mark.parametrize(
    ("theirs", "ours", "sentence"),
    [
        ({}, {"rotator_deg": 30.0}, "rotator angle not given, the light has 30.0°"),
        ({"rotator_deg": 30.0}, {}, "rotator angle 30.0°, the light does not say"),
        ({"telescope": "FSQ"}, {}, "telescope FSQ, the light does not say"),
        ({}, {"focal_length_mm": 530.0}, "focal length not given, the light has 530 mm"),
        ({"telescope": "FSQ"}, {"focal_length_mm": 530.0}, "telescope FSQ, the light does not say"),
    ],
)
def test_optics_that_only_one_side_says_are_not_equal(theirs, ours, sentence):
    assert refusal(record(LIGHT, filter="H", **ours), flat(1, **theirs), FLAT) == sentence


def test_a_shared_focal_length_tells_the_telescope_and_the_match_says_so():
    light = record(LIGHT, filter="H", telescope="FSQ", focal_length_mm=530.0)
    found = rank(light, [flat(1, focal_length_mm=530.0)], FLAT, session="s")
    assert found.chosen
    assert "Only one side says its telescope: not compared." in found.notes


def test_optics_that_nobody_says_are_taken_as_equal_and_the_match_says_so():
    found = rank(record(LIGHT, filter="H"), [flat(1, session="s")], FLAT, session="s")
    [note] = found.notes
    assert note == (
        "Neither the light nor the master says its telescope or its rotator angle: taken as equal."
    )


def test_flats_of_the_same_night_then_the_nearest_in_time():
    def days(n):
        return NIGHT + dt.timedelta(days=n)

    masters = [
        flat(1, session="a", date_obs=days(-3), frames=90),
        flat(2, session="b", date_obs=days(0.4), frames=5),
        flat(3, session="c", date_obs=days(2)),
        flat(4, session="d", date_obs=None),
    ]
    light = record(LIGHT, filter="H")
    same = rank(light, masters, FLAT, session="b")
    assert [c.master_id for c in same.candidates] == [2, 3, 1, 4]
    assert same.text == "Master2: filter H, same night, 5 frames, the best of 4 that fit."
    assert not [note for note in same.notes if "night" in note]
    other = rank(light, masters[::2], FLAT, session="b")
    assert other.chosen.id == 3
    [note] = [note for note in other.notes if "night" in note]
    assert note == (
        "The flat is not of the light's night (another night, 2.0 days apart): dust may have moved."
    )
    scores = [c.score for c in rank(light, masters, FLAT, session=None).candidates]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] == 0


# --- what a flat itself gets ---------------------------------------------------------------------


def test_a_flat_gets_its_flat_dark_else_a_dark_else_a_bias():
    frame = record(FLAT, filter="H", exposure_s=2.0)
    masters = [
        master(1, BIAS, exposure_s=0.0, frames=100),
        master(2, DARK, exposure_s=2.0, frames=50),
        master(3, FLAT_DARK, exposure_s=2.0, temperature_c=-9.2, frames=5),
        flat(4),
    ]
    found = rank(frame, masters, FLAT_DARK)
    assert [c.master_id for c in found.candidates] == [3, 2, 1]
    assert not found.notes
    second = rank(frame, masters[:2], FLAT_DARK)
    assert second.chosen.id == 2
    assert second.notes == ("There is no flat-dark for the flat: a dark takes its place.",)
    assert rank(frame, masters[:1], FLAT_DARK).chosen.id == 1
    assert (
        refusal(frame, master(1, DARK, exposure_s=300.0), FLAT_DARK)
        == "exposure 300 s, the flat has 2 s"
    )


def test_a_light_gets_no_flat_dark():
    masters = [master(1, BIAS), master(2, DARK), master(3, FLAT_DARK)]
    assert rank(record(LIGHT), masters, DARK).chosen.id == 2
    with pytest.raises(ValueError, match="light"):
        rank(record(LIGHT), masters, LIGHT)


# --- properties ----------------------------------------------------------------------------------

TEMPERATURES = st.none() | st.floats(-30, 30).map(lambda t: round(t, 1))
MASTERS = st.lists(
    st.builds(
        lambda kind, exposure, temperature, frames, gain: (
            kind,
            exposure,
            temperature,
            frames,
            gain,
        ),
        st.sampled_from([BIAS, DARK, FLAT_DARK, FLAT]),
        st.sampled_from([0.0, 2.0, 300.0, 301.0, None]),
        TEMPERATURES,
        st.integers(1, 4),
        st.sampled_from([100.0, 0.0, None]),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(MASTERS, TEMPERATURES, st.sampled_from([BIAS, DARK, FLAT_DARK, FLAT]), st.randoms())
def test_the_choice_obeys_the_rules_and_not_the_order_of_the_list(
    drawn, temperature, kind, generator: random.Random
):
    masters = [
        master(n, k, exposure_s=e, temperature_c=t, frames=f, key=key(gain=g))
        for n, (k, e, t, f, g) in enumerate(drawn, start=1)
    ]
    light = record(LIGHT, temperature_c=temperature)
    found = rank(light, masters, kind)
    shuffled = generator.sample(masters, len(masters))
    assert rank(light, shuffled, kind) == found
    fitting = []
    for m in masters:
        if m.frame_type is not kind or m.key != light.key:
            continue
        if kind in {DARK, FLAT_DARK} and m.exposure_s not in {300.0, 301.0}:
            continue
        if kind is not FLAT:
            if (m.temperature_c is None) != (temperature is None):
                continue
            limit = 10.0 if kind is BIAS else 1.0
            if temperature is not None and abs(m.temperature_c - temperature) > limit + 1e-9:
                continue
        fitting.append(m)
    assert {c.master_id for c in found.candidates if c.refused is None} == {m.id for m in fitting}
    assert (found.chosen is None) == (not fitting)
    if found.chosen and kind is not FLAT and temperature is not None:
        nearest = min(abs(m.temperature_c - temperature) for m in fitting)
        assert abs(found.chosen.temperature_c - temperature) <= nearest + 0.1
    assert json.loads(json.dumps(found.as_dict()))["master"] == (
        found.chosen.id if found.chosen else None
    )
