"""Wrong situations, each ending in the right refusal, flag or warning with a sentence for a person.

Every situation has a camera and a folder of its own; the whole service works through all of them in
one go, as a camera program would drop them. The situations are those that users of other programs
complain of, and the traps of headers by which a wrong master could match.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.nights import Outcome, config_for, run, told
from tests.situations import (
    DAYS,
    FLAT,
    HOT,
    NIGHT,
    NX,
    NY,
    PEDESTAL,
    STARS,
    VIGNETTE,
    Situation,
    X,
)

# --- the situations ------------------------------------------------------------------------------

SITUATIONS = {}


def situation(function):
    SITUATIONS[function.__name__.replace("_", "-")] = function
    return function


def _other_dark(name, dark, light=None):
    """Darks that differ in one thing from the light."""

    def make(s):
        s.darks(**dark)
        s.light(**(light or {}))

    SITUATIONS[name] = make


_other_dark("dark-of-another-temperature", {"CCD-TEMP": 15.0, "SET-TEMP": 15.0})
_other_dark("dark-of-another-gain", {"GAIN": 0})
_other_dark("dark-of-another-offset", {"OFFSET": 10})
_other_dark("dark-of-another-binning", {"XBINNING": 2, "YBINNING": 2})
_other_dark("dark-of-another-readout-mode", {"READOUTM": "High Gain Mode"})
_other_dark("dark-of-another-camera", {"INSTRUME": "Camera of a friend"})
_other_dark("dark-without-temperature", {"CCD-TEMP": None, "SET-TEMP": None})
_other_dark("light-without-temperature", {}, {"CCD-TEMP": None, "SET-TEMP": None})
_other_dark("light-with-temperature-999", {}, {"CCD-TEMP": 999.0, "SET-TEMP": None})
_other_dark("cooler-far-from-its-set-point", {}, {"CCD-TEMP": 10.7})
_other_dark("dark-with-egain-only", {"GAIN": None, "EGAIN": 100.0})
_other_dark("dark-trimmed", {"TRIMSEC": "[1:320,1:240]"})
_other_dark("dark-in-signed-integers", {"as_type": "int16"})
_other_dark("dark-in-floats-0-to-1", {"as_type": "float32", "image": (PEDESTAL + HOT) / 65535.0})
_other_dark("dark-of-a-colour-camera", {"BAYERPAT": "RGGB"})
_other_dark("temperature-with-a-decimal-comma", {"CCD-TEMP": "-10,0"})
_other_dark("temperature-in-kelvin", {"CCD-TEMP": 263.15, "SET-TEMP": None})
_other_dark("filter-written-on-darks", {"FILTER": "Dark"})
_other_dark("exposures-that-contradict", {"EXPTIME": 30.0}, {"EXPTIME": 30.0, "EXPOSURE": 300.0})
_other_dark("coordinates-in-frame", {"FRAME": "FK5"})


def _other_flat(name, flat, light=None):
    """Good darks, and flats that differ in one thing from the light."""

    def make(s):
        s.darks()
        s.biases()
        s.flats(**flat)
        s.light(**(light or {}))

    SITUATIONS[name] = make


_other_flat("flat-of-another-filter", {"FILTER": "B"})
_other_flat("flat-of-clear-for-luminance", {"FILTER": "Clear"}, {"FILTER": "L"})
_other_flat("flat-at-another-rotation", {"ROTATOR": 40.0}, {"ROTATOR": 80.0})
_other_flat("flat-of-another-telescope", {"TELESCOP": "Newton"}, {"TELESCOP": "Refractor"})
_other_flat("flat-of-another-focal-length", {"FOCALLEN": 500}, {"FOCALLEN": 800})
_other_flat("flat-read-the-other-way", {"ROWORDER": "BOTTOM-UP"}, {"ROWORDER": "TOP-DOWN"})
_other_flat("flat-of-last-month", {"at": NIGHT - 30 * DAYS})


def _odd_dark(name, image):
    """Good darks, and one that is something else."""

    def make(s):
        s.darks()
        s.put("odd", image, IMAGETYP="DARK")

    SITUATIONS[name] = make


_odd_dark("flat-among-the-darks", PEDESTAL + 25000.0 * VIGNETTE)
_odd_dark("light-among-the-darks", PEDESTAL + HOT + (300.0 + 4 * STARS) * VIGNETTE)
_odd_dark("warm-dark", PEDESTAL + 2.2 * HOT)
_odd_dark("dark-with-a-light-leak", PEDESTAL + HOT + 80.0 * np.clip(1 - X / 80.0, 0, None))


def _odd_flat(name, image):
    """Good biases and flats, and one flat that is something else."""

    def make(s):
        s.biases()
        s.flats()
        s.put("odd", image, **FLAT)

    SITUATIONS[name] = make


_odd_flat("dark-among-the-flats", PEDESTAL + HOT)
_odd_flat("saturated-flat", 90000.0 * VIGNETTE)
_odd_flat("faint-flat", PEDESTAL + 90.0 * VIGNETTE)
_odd_flat("stars-in-a-flat", PEDESTAL + 12000.0 * VIGNETTE + 4 * STARS)


@situation
def dark_of_another_exposure(s):
    s.darks(EXPTIME=300.0)
    s.light()


@situation
def dark_of_two_years_ago(s):
    s.darks(at=NIGHT - 730 * DAYS)
    s.light()


@situation
def flat_labelled_as_light(s):
    s.put("odd", PEDESTAL + 25000.0 * VIGNETTE, IMAGETYP="Light Frame", FILTER="R", EXPTIME=2.0)


@situation
def minute_of_panel_called_a_light(s):
    """So long that it could be a light in the dusk."""
    s.biases()
    s.put("odd", PEDESTAL + 25000.0 * VIGNETTE, IMAGETYP="Light Frame", FILTER="H", EXPTIME=60.0)


@situation
def dark_labelled_as_light_without_a_master(s):
    s.biases()
    s.put("odd", PEDESTAL + HOT, IMAGETYP="Light Frame", FILTER="R")


@situation
def egain_and_a_pedestal(s):
    """Pedestal and sky together would have far more photon noise than the light has."""
    s.light(EGAIN=0.8)


@situation
def bias_labelled_as_dark(s):
    for _ in range(5):
        s.put("short", np.full((NY, NX), PEDESTAL), IMAGETYP="Dark Frame", EXPTIME=1e-32)


@situation
def dark_cut_short(s):
    image = PEDESTAL + 60.0 + HOT
    s.darks(image=image)
    image = image.copy()
    image[200:] = PEDESTAL
    s.put("odd", image, IMAGETYP="DARK")


@situation
def new_darks_with_light_in_them(s):
    """Last season's darks are good; the new ones all leak, so their own vote cannot tell."""
    s.darks(at=NIGHT - 100 * DAYS)
    for _ in range(5):
        s.put("new_light_dark", PEDESTAL + HOT + 60.0, IMAGETYP="DARK", at=NIGHT)
    s.light()


@situation
def faint_flats_without_a_pedestal(s):
    s.flats(level=2300.0)
    s.light()


@situation
def flat_on_a_light_that_keeps_its_pedestal(s):
    """Nothing could be subtracted from the light; its sky is faint beside its pedestal."""
    s.flats()
    s.light(sky=30.0)


@situation
def master_of_another_program(s):
    s.put("Bias", np.full((NY, NX), PEDESTAL), IMAGETYP="Bias", EXPTIME=0.0, STACKCNT=100)


@situation
def calibrated_already(s):
    s.light(CALSTAT="BDF")


@situation
def type_that_nothing_tells(s):
    s.put("thing", PEDESTAL + 8000.0 * VIGNETTE, EXPTIME=120.0)


@situation
def focus_frame(s):
    s.put("thing", PEDESTAL + STARS, IMAGETYP="SNAPSHOT")


@situation
def keywords_that_contradict(s):
    s.put("thing", PEDESTAL + 3000.0 * VIGNETTE, IMAGETYP="DARK", OBSTYPE="FLAT", EXPTIME=120.0)


@situation
def flat_without_a_filter_for_a_filtered_light(s):
    s.darks()
    s.biases()
    s.flats(FILTER=None)
    s.light()


@situation
def one_frame_twice(s):
    s.darks()
    s.twin()


@situation
def two_targets_in_one_folder(s):
    s.light()
    s.light(OBJECT="another target")


# --- one night for all ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("wrong")
    for name, make in SITUATIONS.items():
        make(Situation(tmp_path / "in", name))
    config = config_for(tmp_path)
    # The masters are there before the lights, whatever order a folder is read in.
    lights = sorted((tmp_path / "in").rglob("*_light_*"))
    for path in lights:
        path.rename(tmp_path / path.name)
    run(config)
    for path in lights:
        (tmp_path / path.name).rename(path)
    run(config)
    return Outcome(config)


def light_of(outcome, name):
    return outcome.frame(f"{name}_light_")


def odd(outcome, name, label="odd"):
    return outcome.frame(f"{name}_{label}_")


def member(outcome, name):
    frame = light_of(outcome, name)
    assert frame.state == "stacked", (frame.reason, told(frame))
    [found] = [m for ms in outcome.members.values() for m in ms if m.frame_id == frame.id]
    return found


def masters_of(outcome, name, kind):
    return [
        m
        for m in outcome.masters
        if m.key.camera == f"Camera {name}" and m.frame_type == kind and m.superseded_by is None
    ]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dark-of-another-temperature", "15.0 °C, the light has −10.0 °C: more than"),
        ("dark-of-another-exposure", "exposure 300 s, the light has 30 s"),
        ("dark-of-another-gain", "gain 0, the light has 100"),
        ("dark-of-another-offset", "offset 10, the light has 50"),
        ("dark-of-another-binning", "binning 2 × 2, the light has 1 × 1"),
        ("dark-of-another-readout-mode", "readout mode High Gain Mode, the light has normal"),
        ("dark-of-another-camera", "the light has Camera dark-of-another-camera"),
        ("dark-without-temperature", "temperature not given, the light has −10.0 °C"),
        ("light-without-temperature", "temperature −10.0 °C, the light does not say"),
        ("light-with-temperature-999", "temperature −10.0 °C, the light does not say"),
        ("cooler-far-from-its-set-point", "−10.0 °C, the light has 10.7 °C: more than"),
        ("dark-with-egain-only", "gain not given, the light has 100"),
        ("dark-trimmed", "sections [1:320,1:240];;, the light has untrimmed"),
        ("dark-in-signed-integers", "pixel format int16, the light has uint16"),
        ("dark-in-floats-0-to-1", "pixel format float32, the light has uint16"),
        ("dark-of-a-colour-camera", "Bayer pattern RGGB, the light has monochrome"),
        ("dark-of-two-years-ago", "730 days from the light: darks are used for 365 days"),
    ],
)
def test_a_dark_that_does_not_fit_is_refused_and_the_light_says_so(outcome, name, sentence):
    found = member(outcome, name)
    assert found.masters["dark"] is None
    assert "no dark" in found.flags
    assert sentence in told(light_of(outcome, name))


@pytest.mark.parametrize(
    "name",
    [
        "temperature-with-a-decimal-comma",
        "temperature-in-kelvin",
        "filter-written-on-darks",
        "coordinates-in-frame",
    ],
)
def test_a_dark_that_is_only_written_oddly_is_used(outcome, name):
    found = member(outcome, name)
    [dark] = masters_of(outcome, name, "dark")
    assert found.masters["dark"] == dark.id
    assert dark.temperature_c == pytest.approx(-10.0, abs=0.01)


def test_contradicting_exposures_are_flagged(outcome):
    text = told(light_of(outcome, "exposures-that-contradict"))
    assert "says 30 s" in text or "300 s" in text
    assert "the first is believed" in text


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("flat-of-another-filter", "filter B, the light has R"),
        ("flat-of-clear-for-luminance", "filter clear, the light has L"),
        ("flat-at-another-rotation", "rotator at 40.0°, the light has 80.0°: more than 2° apart"),
        ("flat-of-another-telescope", "telescope Newton, the light has Refractor"),
        ("flat-of-another-focal-length", "focal length 500 mm, the light has 800 mm"),
        ("flat-read-the-other-way", "row order BOTTOM-UP, the light has TOP-DOWN"),
        ("flat-of-last-month", "30 days from the light: flats are used for 14 days (flat_days)"),
    ],
)
def test_a_flat_that_does_not_fit_is_refused_and_the_light_says_so(outcome, name, sentence):
    found = member(outcome, name)
    assert found.masters["flat"] is None
    assert found.masters["dark"] is not None
    assert "no flat" in found.flags
    assert sentence in told(light_of(outcome, name))


def test_a_flat_without_a_filter_is_not_used_for_a_filtered_light(outcome):
    assert member(outcome, "flat-without-a-filter-for-a-filtered-light").masters["flat"] is None


@pytest.mark.parametrize(
    ("name", "label", "sentence"),
    [
        ("flat-labelled-as-light", "odd", "it looks like a flat"),
        ("flat-among-the-darks", "odd", "it looks like a flat"),
        ("light-among-the-darks", "odd", "it looks like a light"),
        ("dark-among-the-flats", "odd", "it looks like a bias or a dark"),
        ("faint-flat", "odd", "there is no light in it"),
        ("saturated-flat", "odd", "of this flat is saturated"),
        ("stars-in-a-flat", "odd", "This flat shows stars"),
        ("type-that-nothing-tells", "thing", "Neither the header nor the path tells"),
        ("keywords-that-contradict", "thing", "tells for certain what kind of frame"),
    ],
)
def test_a_frame_that_is_not_what_it_says_is_set_aside(outcome, name, label, sentence):
    frame = odd(outcome, name, label)
    assert frame.state == "quarantined"
    assert sentence in frame.reason
    [line] = [line for line in outcome.log.splitlines() if line.endswith(f"frame={frame.name}")]
    assert f"QUARANTINED warning: {frame.reason}" in line


@pytest.mark.parametrize(
    ("name", "label", "sentence"),
    [
        ("master-of-another-program", "Bias", "already combined or calibrated (100 frames in one)"),
        ("calibrated-already", "light", "already combined or calibrated (CALSTAT BDF)"),
        ("one-frame-twice", "twin", "the same content as one-frame-twice_dark_01.fits"),
        ("focus-frame", "thing", "such frames are neither filed nor stacked"),
    ],
)
def test_what_is_no_raw_frame_is_rejected(outcome, name, label, sentence):
    frame = odd(outcome, name, label)
    assert frame.state == "rejected"
    assert sentence in frame.reason


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("warm-dark", "dark", "times as strong as the others': the sensor was warmer"),
        ("dark-with-a-light-leak", "dark", "around row"),
        ("dark-cut-short", "dark", "it was cut short"),
    ],
)
def test_a_poisoned_frame_never_enters_the_master(outcome, name, kind, sentence):
    frame = odd(outcome, name)
    assert frame.state == "filed"  # its header and its look are right; beside the others it is not
    [one] = masters_of(outcome, name, kind)
    assert one.frames == 5
    assert any(frame.name in note and sentence in note for note in one.notes), one.notes
    assert f"{frame.name} was left out" in outcome.log


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("flat-among-the-darks", "dark"),
        ("light-among-the-darks", "dark"),
        ("dark-among-the-flats", "flat"),
        ("faint-flat", "flat"),
        ("saturated-flat", "flat"),
        ("stars-in-a-flat", "flat"),
    ],
)
def test_a_frame_set_aside_is_in_no_master(outcome, name, kind):
    [one] = masters_of(outcome, name, kind)
    assert one.frames == 5


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("minute-of-panel-called-a-light", "evenly lit to 3"),
        (
            "minute-of-panel-called-a-light",
            "it looks like a flat. If it is one, its IMAGETYP is",
        ),
        ("dark-labelled-as-light-without-a-master", "no stars, no sky, and the same level as"),
        ("dark-labelled-as-light-without-a-master", "if this is a dark, its IMAGETYP is wrong"),
    ],
)
def test_what_is_called_a_light_and_is_none_is_told_as_what_it_looks_like(outcome, name, sentence):
    frame = odd(outcome, name)
    assert frame.state == "rejected"
    assert sentence in frame.reason
    covered = [line for line in outcome.log.splitlines() if "CHECK" in line and name in line]
    assert not any("cover" in line for line in covered) or name.startswith("dark")


def test_a_pedestal_that_stays_in_a_light_accuses_no_gain(outcome):
    name = "egain-and-a-pedestal"
    assert "no dark" in member(outcome, name).flags
    assert f"the lights of Camera {name} have a noise" not in outcome.log


def test_masters_of_other_cameras_are_told_of_only_where_there_is_no_other(outcome):
    darks = dict(light_of(outcome, "dark-of-another-gain").explanation)["Darks, each by itself"]
    assert "camera Camera" not in "\n".join(darks)
    assert "gain 0, the light has 100" in darks[0]  # the nearest is this camera's own
    assert "camera Camera" in told(light_of(outcome, "dark-of-another-camera"))


def test_a_bias_that_is_called_a_dark_is_a_bias(outcome):
    [one] = masters_of(outcome, "bias-labelled-as-dark", "bias")
    assert one.frames == 5
    assert masters_of(outcome, "bias-labelled-as-dark", "dark") == []
    frame = next(f for f in outcome.frames if "bias-labelled-as-dark" in f.name)
    assert "A dark without any exposure is taken as a bias." in told(frame)


def test_new_darks_that_all_leak_do_not_replace_the_good_ones(outcome):
    name = "new-darks-with-light-in-them"
    [good] = masters_of(outcome, name, "dark")
    assert good.date_obs < NIGHT - 50 * DAYS
    assert member(outcome, name).masters["dark"] == good.id
    assert "light has leaked in, or it was warm" in outcome.log
    assert outcome.log.count("light has leaked in, or it was warm") == 1


def test_faint_flats_without_a_pedestal_are_refused(outcome):
    name = "faint-flats-without-a-pedestal"
    assert masters_of(outcome, name, "flat") == []
    assert "no flat" in member(outcome, name).flags
    assert "Take flat-darks or bias frames of this gain and offset" in outcome.log


def test_a_flat_that_would_turn_the_vignette_around_is_refused(outcome):
    name = "flat-on-a-light-that-keeps-its-pedestal"
    [flat] = masters_of(outcome, name, "flat")
    found = member(outcome, name)
    assert found.masters["flat"] is None
    assert "flat refused" in found.flags
    text = told(light_of(outcome, name))
    assert f"{flat.name} is not used: it would turn the vignette around" in text
    assert "since no dark or bias was subtracted" in text


def test_two_targets_are_two_stacks(outcome):
    name = "two-targets-in-one-folder"
    stacks = [s for s in outcome.stacks if s.camera.startswith(f"Camera {name}|")]
    assert {stack.target for stack in stacks} == {name, "another target"}
    assert [len(outcome.members[stack.id]) for stack in stacks] == [1, 1]


def test_every_situation_is_looked_at():
    """A situation without a test would prove nothing."""
    source = Path(__file__).read_text(encoding="utf-8")
    begin = source.index("# --- one night for all")
    assert [name for name in SITUATIONS if f'"{name}"' not in source[begin:]] == []
    assert len(SITUATIONS) >= 30
