"""The advice: the table of section 2, measured stacks, and what a library lacks."""

import dataclasses
import datetime as dt
import math

import numpy as np
import pytest

from calib_library import advice
from calib_library.advice import Noise, Site, Use
from calib_library.frame import FrameType
from daemon.simulator.camera import dark_ratio
from tests.records import KEY, key, master

SITE = Site(KEY, "TOP-DOWN")
CMOS = Noise(e_per_adu=0.8, read_noise_e=1.8, dark_e_s=0.005, flat_e=25_000)


def use(lights=50, *, dithered=True, **fields):
    defaults = {
        "site": SITE,
        "filter": "L",
        "exposure_s": 300.0,
        "temperature_c": -10.0,
        "groups": (1,) * lights if dithered else (lights,),
        "sky_e": 30.0,
        "name": "M 31",
    }
    return Use(**(defaults | fields))


def dark(number, **fields):
    return master(number, FrameType.DARK, **fields)


def flat(number=900, **fields):
    return master(number, FrameType.FLAT, **({"filter": "L", "exposure_s": 2.0} | fields))


BIAS = master(800, FrameType.BIAS, exposure_s=0.0, frames=100)


def advise(uses, masters, **kwargs):
    return advice.advise(uses, masters, dict.fromkeys([one.site for one in uses], CMOS), **kwargs)


# --- the formula ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sky_e", "dithered", "undithered"), [(150, 2, 76), (30, 7, 339), (6, 22, 1098)]
)
def test_the_table_of_section_2(sky_e, dithered, undithered):
    """R = 1.8 e-, 1.5 e- of dark current, x = 1 %, 50 lights; the product never says below 5."""
    light = advice.light_variance(CMOS, sky_e=sky_e, exposure_s=300)
    one = advice.dark_variance(CMOS, exposure_s=300, parts=[(1.0, 1)])
    assert advice.frames_needed(light, one, (1,) * 50, 0.01) == max(5, dithered)
    # The table's figures are of a dark current that was rounded to 1.5.
    assert advice.frames_needed(light, one, (50,), 0.01) == pytest.approx(undithered, abs=1)


def test_independent_groups():
    assert advice.independent((1,) * 12) == 12
    assert advice.independent((12,)) == 1
    assert advice.independent((3, 3, 3)) == 3
    assert advice.independent((4, 1)) == pytest.approx(25 / 17)


@pytest.mark.parametrize(
    ("groups", "n_dark", "n_flat", "n_pedestal", "weights"),
    [
        ((1,) * 16, 5, 8, 8, (1.0,)),
        ((16,), 5, 8, 8, (1.0,)),
        ((16,), 20, 4, 4, (1.0,)),
        ((4, 4, 4, 4), 5, 4, 8, (1.0,)),
        ((8, 4, 2, 2), 8, 6, 3, (1.0,)),
        ((16,), 8, 6, 6, (0.4, 0.6)),
        ((16,), 8, 6, 6, (-0.3, 1.3)),
    ],
)
def test_the_formula_against_measured_stacks(groups, n_dark, n_flat, n_pedestal, weights):
    """Lights, darks, flats and their bias are drawn pixel by pixel, calibrated and stacked.

    The lights of a group lie on the same pixels, those of another on others, as dithering does.
    1 + x is the noise of that stack over that of one calibrated by the truth.
    """
    rng = np.random.default_rng(sum(groups) + n_dark + n_flat)
    sky, current, read, level = 60.0, 8.0, 4.0, 900.0
    noise = Noise(1.0, read, current / 100, level)
    pixels = 200_000

    def mean(n, electrons):
        """The mean of n exposures of one pixel's worth each."""
        return rng.poisson(n * electrons, pixels) / n + rng.normal(0, read / math.sqrt(n), pixels)

    stack, ideal = np.zeros(pixels), np.zeros(pixels)
    for n in groups:
        darks = [w * mean(n_dark, current) for w in weights]
        field = (mean(n_flat, level) - mean(n_pedestal, 0)) / level
        lights = mean(n, sky + current)
        stack += n * (lights - sum(darks)) / field / sum(groups)
        ideal += n * (lights - current) / sum(groups)
    light = advice.light_variance(noise, sky_e=sky, exposure_s=100)
    masters = advice.dark_variance(
        noise, exposure_s=100, parts=[(w, n_dark) for w in weights]
    ) + advice.flat_variance(noise, sky_e=sky, flats=n_flat, pedestals=n_pedestal)
    predicted = 1 + advice.added_noise(light, masters, groups)
    assert stack.std() / ideal.std() == pytest.approx(predicted, rel=0.01)


def test_what_is_needed_brings_it_just_under_the_goal():
    light = advice.light_variance(CMOS, sky_e=30, exposure_s=300)
    one = advice.dark_variance(CMOS, exposure_s=300, parts=[(1.0, 1)])
    needed = advice.frames_needed(light, one, (10, 10), 0.01)
    assert needed > advice.LEAST
    assert advice.added_noise(light, one / needed, (10, 10)) <= 0.01
    assert advice.added_noise(light, one / (needed - 1), (10, 10)) > 0.01


# --- what is said --------------------------------------------------------------------------------


def test_enough_is_said_to_be_enough():
    (line,) = (found := advise([use()], [dark(1, frames=30), flat(frames=30), BIAS])).lines
    assert (line.dark.advice, line.flat.advice) == ("enough", "enough")
    assert line.dark.have == "30 darks at -10 °C"
    light, one = 30 + 1.5 + 1.8**2, 1.5 + 1.8**2
    assert line.dark.added == pytest.approx(math.sqrt(1 + one / 30 / light) - 1)
    assert line.added < 0.01
    assert found.shots == ()


def test_where_too_many_would_be_needed_dithering_is_the_answer():
    (line,) = (found := advise([use(dithered=False)], [dark(1, frames=30), flat(), BIAS])).lines
    assert line.dark.needed == pytest.approx(339, abs=1)
    assert line.dark.needed_dithered == 7
    assert line.dark.advice == f"dither: 7 are then enough, instead of {line.dark.needed}"
    assert not [shot for shot in found.shots if shot.kind is FrameType.DARK]


def test_a_few_more_frames_where_a_few_are_enough():
    (line,) = (found := advise([use(sky_e=6.0)], [dark(1, frames=8), flat(), BIAS])).lines
    assert line.dark.needed == 22
    assert line.dark.advice == "take 14 more"
    (shot,) = found.shots
    assert (shot.kind, shot.count, shot.exposure_s, shot.temperature_c) == ("dark", 14, 300, -10)


def test_an_interpolated_dark_costs_the_sum_of_squared_weights():
    darks = [dark(1, temperature_c=-15.0, frames=20), dark(2, temperature_c=-10.0, frames=30)]
    (line,) = (found := advise([use(temperature_c=-12.0)], [*darks, flat(), BIAS])).lines
    low, middle, high = (float(dark_ratio(c, energy_ev=0.57)) for c in (-15, -12, -10))
    w = (middle - low) / (high - low)
    light, one = 30 + 1.5 + 1.8**2, 1.5 + 1.8**2
    v = ((1 - w) ** 2 / 20 + w**2 / 30) * one
    assert line.dark.added == pytest.approx(math.sqrt(1 + v / light) - 1)
    assert line.dark.have == "20 at -15 °C with 30 at -10 °C"
    assert found.shots == ()  # 5 °C apart is what a good library has


def test_an_exposure_between_two_is_interpolated():
    darks = [dark(1, exposure_s=60.0, frames=20), dark(2, exposure_s=600.0, frames=20)]
    (line,) = advise([use(exposure_s=300.0)], [*darks, flat(), BIAS]).lines
    w = (300 - 60) / (600 - 60)
    light, one = 30 + 1.5 + 1.8**2, 1.5 + 1.8**2
    expected = math.sqrt(1 + ((1 - w) ** 2 + w**2) / 20 * one / light) - 1
    assert line.dark.added == pytest.approx(expected)


def test_lights_at_wandering_temperatures_want_darks_every_five_degrees():
    temperatures = (-3.2, -0.5, 2.0, 4.4)
    uses = [use(10, temperature_c=t, exposure_s=e) for t in temperatures for e in (60, 120, 300)]
    found = advise(uses, [dark(1, temperature_c=0.2, frames=30, exposure_s=60.0)])
    wanted = {(c.exposure_s, c.temperature_c): c.wanted for c in found.grid if c.wanted}
    # Two exposures that span those used, every 5 °C across the temperatures; one is there.
    assert set(wanted) == {(60, -5), (60, 5), (300, -5), (300, 0), (300, 5)}
    assert set(wanted.values()) == {30}
    assert {(s.exposure_s, s.temperature_c) for s in found.shots if s.kind == "dark"} == set(wanted)
    (there,) = [c for c in found.grid if (c.exposure_s, c.temperature_c) == (60, 0)]
    assert (there.frames, there.lights) == (30, 10)  # those at −0.5 °C


def test_darks_that_bracket_wandering_lights_are_enough():
    """6.5 to 11.8 °C between darks at 4.5, 9 and 13 °C: none at 15 °C is asked for, and each dark
    has one square of the grid.
    """
    uses = [use(2, temperature_c=t) for t in (6.5, 7.8, 9.0, 10.0, 11.8)]
    there = [dark(n, temperature_c=t, frames=30) for n, t in enumerate((4.5, 9.0, 13.0), start=1)]
    found = advise(uses, [*there, flat(), BIAS])
    assert found.shots == ()
    assert [(cell.temperature_c, cell.frames, cell.wanted) for cell in found.grid] == [
        (4.0, 30, 0),
        (9.0, 30, 0),
        (13.0, 30, 0),
    ]
    # Without the warmest, lights at 11.8 °C have no dark on the other side.
    (shot,) = advise(uses, [*there[:2], flat(), BIAS]).shots
    assert (shot.kind, shot.temperature_c) == ("dark", 15.0)


def test_a_flat_that_had_a_dark_made_for_it_wants_no_flat_darks():
    masters = [dark(1, frames=30, exposure_s=5.0), dark(2, frames=30), flat(exposure_s=20.0)]
    assert [shot.kind for shot in advise([use()], masters).shots] == ["flat-dark"]
    made = [*masters[:2], dataclasses.replace(masters[2], subtracted=1)]
    assert advise([use()], made).shots == ()


def test_lights_of_one_set_point_want_darks_there():
    uses = [use(10, temperature_c=t) for t in (-10.2, -10.0, -9.8)]
    (shot,) = [s for s in advise(uses, [flat(), BIAS]).shots if s.kind == "dark"]
    assert (shot.exposure_s, shot.temperature_c, shot.count) == (300, -10, 30)


def test_cameras_are_kept_apart():
    other = Site(key(gain=0.0), "TOP-DOWN")
    found = advise([use(), use(site=other)], [dark(1, frames=30), flat(), BIAS])
    assert [line.dark.frames for line in found.lines] == [30, 0]
    assert {shot.site for shot in found.shots} == {other}


def test_flats_of_every_filter_and_what_is_subtracted_from_them():
    uses = [use(filter="L"), use(filter="H")]
    found = advise(uses, [dark(1, frames=30), flat()])
    kinds = {(shot.kind, shot.filter): shot for shot in found.shots}
    assert set(kinds) == {("flat", "H"), ("flat-dark", None)}
    assert kinds["flat", "H"].exposure_s is None
    assert kinds["flat-dark", None].exposure_s == 2.0
    assert found.lines[1].added is None


def test_a_camera_without_a_thermometer():
    uses = [use(temperature_c=None)]
    assert advise(uses, [dark(1, temperature_c=None, frames=30), flat(), BIAS]).shots == ()
    (shot,) = advise(uses, [dark(1, frames=30), flat(), BIAS]).shots
    assert (shot.kind, shot.temperature_c) == ("dark", None)


def test_ten_thousand_masters():
    night = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    first = dark(1)
    masters = [
        dataclasses.replace(
            first,
            id=n,
            exposure_s=float(10 * (1 + n % 40)),
            temperature_c=-25 + (n // 40) * 0.2,
            frames=10 + n % 30,
            built_at=night,
        )
        for n in range(10_000)
    ]
    uses = [
        use(20, exposure_s=10.0 * e, temperature_c=-20.0 + t) for e in (3, 6, 30) for t in range(12)
    ]
    found = advise(uses, [*masters, flat(), BIAS])
    assert len(found.lines) == 36
