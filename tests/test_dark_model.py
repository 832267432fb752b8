"""Darks for any temperature and exposure, against the law they obey and a sensor with truth."""

import dataclasses
import json

import numba
import numpy as np
import pytest

from calib_library import dark_compose, dark_model, dark_temperature
from calib_library.dark_compose import LightNoise
from calib_library.dark_model import DarkPlan, Energies, Rule
from calib_library.errors import NoMatchingMasterError
from calib_library.frame import FrameType
from daemon.simulator.camera import dark_ratio
from tests.dark_sensor import Sensor
from tests.records import master


def masters(*ends, frames=30):
    """Records of (exposure s, temperature °C)."""
    return [
        master(i, FrameType.DARK, exposure_s=t, temperature_c=c, frames=frames)
        for i, (t, c) in enumerate(ends, start=1)
    ]


def planned(*ends, exposure_s=300.0, temperature_c=-10.0, **options) -> DarkPlan:
    return dark_model.plan(
        masters(*ends), exposure_s=exposure_s, temperature_c=temperature_c, **options
    )


# --- the law -------------------------------------------------------------------------------------


def test_the_current_is_the_simulators():
    """Two implementations of T^1.5 exp(−E/kT), of one formula."""
    for energy in (0.4, 0.57, 0.9):
        for celsius in (-30.0, -10.0, 25.0):
            ours = dark_model.dark_current(celsius, energy) / dark_model.dark_current(-10, energy)
            assert ours == pytest.approx(float(dark_ratio(celsius, energy_ev=energy)), rel=1e-5)


def test_weights_are_one_and_none_at_the_masters_and_solve_the_law():
    w = dark_model.weight_of_second
    assert w(-12.0, -12.0, -7.0, 0.57) == 0.0
    assert w(-7.0, -12.0, -7.0, 0.57) == pytest.approx(1.0)
    for t in (-11.0, -9.0, -5.0):
        f1, f2, f = (dark_model.dark_current(c, 0.57) for c in (-12.0, -7.0, t))
        weight = w(t, -12.0, -7.0, 0.57)
        assert (1 - weight) * f1 + weight * f2 == pytest.approx(f, rel=1e-9)
    # An independent figure: dark current of 0.57 eV doubles every 7.3 °C about −7.5 °C, so that
    # half-way in temperature w = (√r − 1)/(r − 1) with r the ratio across 5 °C.
    ratio = 2 ** (5 / 7.3)
    half = (ratio**0.5 - 1) / (ratio - 1)
    assert w(-7.5, -10.0, -5.0, 0.57) == pytest.approx(half, abs=0.01)


def test_the_slope_is_a_tenth_a_degree():
    """The rule of thumb of section 1, and the derivative by differences."""
    slope = dark_model.relative_slope(-10.0, 0.57)
    h = 1e-4
    ends = [np.log(dark_model.dark_current(-10.0 + d, 0.57)) for d in (-h, h)]
    assert slope == pytest.approx((ends[1] - ends[0]) / (2 * h), rel=1e-6)
    assert slope == pytest.approx(0.10, abs=0.005)


def test_a_temperature_comes_back_from_its_current():
    for celsius in (-25.0, -10.2, 3.0):
        f, f0 = (dark_model.dark_current(c, 0.6) for c in (celsius, -10.0))
        assert dark_model.temperature_at(f / f0, -10.0, 0.6) == pytest.approx(celsius, abs=1e-6)
    assert dark_model.temperature_at(-0.1, -10.0, 0.6) is None
    assert dark_model.temperature_at(1e9, -10.0, 0.6) is None


# --- which masters -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "options", "rule", "used"),
    [
        ([(300, -10), (300, -9.7)], {}, Rule.EXACT, {1}),
        ([(300, -10.4), (300, -15), (300, -5)], {}, Rule.EXACT, {1}),
        ([(300, -10.4), (300, -15), (300, -5)], {"exact_within_c": 0.2}, Rule.HOT_PAIR, {1, 3}),
        ([(300, -12.5), (300, -7.5), (300, -20)], {}, Rule.PAIR, {1, 2}),
        ([(300, -15), (300, -5)], {}, Rule.HOT_PAIR, {1, 2}),
        ([(300, -20), (300, 0)], {}, Rule.WIDE_PAIR, {1, 2}),
        ([(60, -10), (600, -10)], {}, Rule.EXACT, {1, 2}),
        ([(10, -10), (60, -10), (600, -10), (900, -10)], {}, Rule.EXACT, {2, 3}),
        ([(60, -12), (60, -8), (600, -10)], {}, Rule.PAIR, {1, 2, 3}),
        ([(60, -12), (60, -8), (600, -13), (600, -9)], {}, Rule.PAIR, {1, 2, 3, 4}),
        # Exposures hold on real sensors, brackets of 15 °C do not.
        ([(300, -20), (300, 0), (60, -10), (600, -10)], {}, Rule.EXACT, {3, 4}),
        # But a close pair of the very exposure needs two masters, not four.
        ([(300, -15), (300, -5), (60, -10), (600, -10)], {}, Rule.HOT_PAIR, {1, 2}),
        ([(300, -8.5), (300, -3)], {}, Rule.EXTRAPOLATED, {1, 2}),
        ([(300, -6), (300, 0)], {"force": True}, Rule.FORCED, {1, 2}),
        ([(300, -9.1)], {"nearest_within_c": 1.0}, Rule.NEAREST, {1}),
        ([(300, -9.1), (300, -5)], {"nearest_within_c": 1.0}, Rule.EXTRAPOLATED, {1, 2}),
    ],
)  # fmt: skip
def test_the_rules_in_their_order(ends, options, rule, used):
    plan = planned(*ends, **options)
    assert plan.rule is rule
    assert {source.master_id for source in plan.sources} == used
    for place in (1, 2):
        assert sum(term[place] for term in plan.weights) == pytest.approx(1.0)
    doubtful = {Rule.WIDE_PAIR, Rule.EXTRAPOLATED, Rule.NEAREST, Rule.FORCED}
    assert bool(plan.warnings) == (rule in doubtful)


@pytest.mark.parametrize(
    ("ends", "options", "why"),
    [
        ([], {}, "none of this camera"),
        ([(300, None)], {}, "none of this camera"),
        ([(300, -9.1)], {}, "0.9 °C off"),
        ([(300, -7), (300, 0)], {}, "3.0 °C off"),
        ([(300, -4), (300, 0)], {"force": True}, "6.0 °C off"),
        ([(300, -21), (300, 0)], {}, "10.0 °C off"),
        ([(60, -10), (120, -10)], {}, "no exposures bracket it"),
        ([(60, -10), (600, 5)], {}, "no exposures bracket it"),
    ],
)
def test_refusals_say_what_is_missing(ends, options, why):
    with pytest.raises(NoMatchingMasterError, match=why):
        planned(*ends, **options)


def test_between_equals_more_frames_count():
    near = masters((300, -10.04), (300, -9.96))
    near[0] = dataclasses.replace(near[0], frames=12)
    plan = dark_model.plan(near, exposure_s=300.0, temperature_c=-10.0)
    assert plan.sources[0].master_id == 2


def test_the_temperature_has_no_edges():
    """Frames that flicker between two readings get nearly the same dark."""
    ends = [(300, -12.0), (300, -8.0)]
    for t in np.arange(-11.4, -8.6, 0.1):
        one, two = (planned(*ends, temperature_c=float(c)) for c in (t, t + 0.01))
        there = {source.master_id: hot for source, hot, _ in one.weights}
        assert all(abs(there[s.master_id] - hot) < 0.01 for s, hot, _ in two.weights)


def test_exposures_weigh_as_time_does():
    plan = planned((60, -10), (600, -10), exposure_s=180.0)
    assert [hot for _, hot, _ in plan.weights] == pytest.approx([7 / 9, 2 / 9])


def test_a_plan_survives_json():
    for ends in ([(300, -10)], [(60, -12), (60, -8), (600, -10)], [(300, -20), (300, 0)]):
        plan = planned(*ends, energies=Energies(0.61, 0.9, "test"))
        assert DarkPlan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan


def test_a_plan_explains_itself():
    text = "\n".join(planned((300, -20), (300, 0), energies=Energies(0.6, 0.85)).sentences())
    for words in ("300 s at −10.00 °C", "from the header", "Master1", "0.600 eV", "20 °C apart"):
        assert words in text


def test_how_near_is_exact_depends_on_the_noise():
    """0.3 σ / (0.10 D): 10 ADU of noise and 300 ADU of dark signal allow 0.1 °C."""
    assert dark_model.exact_within(10.0, 300.0) == pytest.approx(0.1)
    assert dark_model.exact_within(10.0, 5.0) == dark_model.EXACT_C
    assert dark_model.exact_within(10.0, 0.0) == dark_model.EXACT_C


# --- the pixels, without noise -------------------------------------------------------------------


def quiet_sensor(**fields) -> Sensor:
    """A sensor whose masters are free of noise."""
    sensor = Sensor.make((96, 128), hot_energy_spread_ev=0.0, **fields)
    sensor.frames = 10**9
    return sensor


@pytest.mark.parametrize(
    ("ends", "exposure_s", "temperature_c"),
    [
        ([(300, -12), (300, -8)], 300.0, -9.3),
        ([(60, -9.3), (600, -9.3)], 180.0, -9.3),
        ([(60, -12), (60, -8), (600, -13), (600, -9)], 180.0, -9.3),
        ([(300, -8.5), (300, -5)], 300.0, -9.3),
    ],
)
def test_the_law_is_met_to_a_hundredth_of_an_adu(ends, exposure_s, temperature_c):
    """With the truth's energies: pedestal, glow, smooth level and hot pixels all come right."""
    sensor = quiet_sensor(bulk_energy_ev=0.57)
    for end in ends:
        sensor.take(*end)
    energies = Energies(0.57, 0.57)
    plan = sensor.plan(temperature_c, exposure_s, energies=energies, exact_within_c=0.05)
    dark = sensor.compose(plan).dark
    truth = sensor.camera.ideal_dark(exposure_s=exposure_s, temperature_c=temperature_c)
    np.testing.assert_allclose(dark, truth, rtol=3e-5, atol=0.02)


def test_a_scaled_dark_would_multiply_the_glow_and_this_does_not():
    sensor = quiet_sensor(glow_e_s=0.5, bulk_energy_ev=0.57)
    for t in (-13, -8):
        sensor.take(300, t)
    dark = sensor.compose(sensor.plan(-10.0, energies=Energies(0.57, 0.57))).dark
    corner = np.s_[-20:, -10:]
    truth = sensor.camera.ideal_dark(exposure_s=300.0, temperature_c=-10.0)
    assert np.abs(dark - truth)[corner].max() < 0.05
    pedestal = sensor.camera.pedestal_adu
    scaled = pedestal + (sensor.images[1] - pedestal) * dark_ratio(-10, energy_ev=0.57) / (
        dark_ratio(-13, energy_ev=0.57)
    )
    assert np.mean((scaled - truth)[corner]) > 30


def test_two_energies_keep_the_level_right():
    """Hot pixels of 0.57 eV over a level of 0.9 eV, as real sensors have them."""
    sensor = quiet_sensor(bulk_rate_e_s=0.5, bulk_energy_ev=0.9)
    for t in (-15, -5):
        sensor.take(300, t)

    def level_error(energies):
        plan = sensor.plan(-10.0, energies=energies)
        dark = sensor.compose(plan).dark
        wrong = dark - sensor.camera.ideal_dark(exposure_s=300.0, temperature_c=-10.0)
        return abs(float(np.median(wrong))), sensor.residual(dark, -10.0)

    one, two = level_error(Energies(0.57, 0.57)), level_error(Energies(0.57, 0.9))
    assert one[0] > 5.0
    assert two[0] < 0.3
    assert two[1] < one[1]


def test_a_pixels_own_energy_is_found_by_its_logarithm():
    """Noiseless pixels of 0.45 and 0.75 eV on an even pedestal, masters 10 °C apart."""
    f = dark_model.dark_current
    shape, signals = (24, 30), {(6, 6): 0.45, (6, 20): 0.75, (16, 12): 0.57}
    images = []
    for celsius in (-15.0, -5.0):
        image = np.full(shape, 500.0, np.float32)
        for at, energy in signals.items():
            image[at] += 1000.0 * f(celsius, energy) / f(-10.0, energy)
        images.append(image)
    rows = {i: lambda a, b, image=image: image[a:b] for i, image in enumerate(images, 1)}
    plan = planned((300, -15), (300, -5))
    assert all(leg.log for leg in plan.legs)
    dark = dark_compose.compose(plan, rows, shape=shape, bayer=False).dark
    for at in signals:
        assert dark[at] == pytest.approx(1500.0, abs=0.1)
    linear = dataclasses.replace(
        plan, legs=tuple(dataclasses.replace(leg, log=False) for leg in plan.legs)
    )
    linear_dark = dark_compose.compose(linear, rows, shape=shape, bayer=False).dark
    for at in ((6, 6), (6, 20)):
        assert abs(linear_dark[at] - 1500.0) > 10
    assert linear_dark[16, 12] == pytest.approx(1500.0, abs=0.1)


# --- the pixels, by another implementation -------------------------------------------------------


def plain_median(image, step):
    """The 5×5 same-colour median, the border repeated by colour."""
    ny, nx = image.shape
    pad = 2 * step

    def inside(i, n):
        while i < 0:
            i += step
        while i >= n:
            i -= step
        return i

    y = [inside(i, ny) for i in range(-pad, ny + pad)]
    x = [inside(i, nx) for i in range(-pad, nx + pad)]
    padded = image[np.ix_(y, x)]
    views = [
        padded[dy : dy + ny, dx : dx + nx]
        for dy in range(0, 4 * step + 1, step)
        for dx in range(0, 4 * step + 1, step)
    ]
    return np.median(np.stack(views), axis=0)


def harmful(made, light):
    """Where the light's noise has a smaller variance than `doubt`; what is no number counts."""
    return ~(made.doubt <= np.float32(light.noise_adu**2))


@pytest.mark.parametrize("bayer", [False, True])
def test_composing_in_tiles_is_what_numpy_gives_at_once(bayer):
    """More rows than a tile has; error, harmful pixels, share and percentile as well."""
    sensor = Sensor.make((300, 140), bayer_pattern="RGGB" if bayer else None, hot_rate_e_s=2.0)
    for end in ((300, -14), (300, -6)):
        sensor.take(*end)
    plan = sensor.plan(-9.0)
    made = sensor.compose(plan, light=sensor.light)
    first, second = (sensor.images[s.master_id].astype(float) for s in plan.sources)
    level1, level2 = (plain_median(image, 2 if bayer else 1) for image in (first, second))
    h1, h2 = first - level1, second - level2
    leg = plan.legs[0]
    hot = (1 - leg.hot) * h1 + leg.hot * h2
    t, t1, t2 = (c + 273.15 for c in (-9.0, leg.near.temperature_c, leg.other.temperature_c))
    u = (1 / t1 - 1 / t) / (1 / t1 - 1 / t2)
    floor1, floor2 = (20 * 1.4826 * np.median(np.abs(h - np.median(h))) for h in (h1, h2))
    by_log = (h1 > floor1) & (h2 > floor2)
    assert by_log.sum() > 50
    # Where a pixel lies on the very threshold, either is right.
    clear = (np.abs(h1 / floor1 - 1) > 0.03) & (np.abs(h2 / floor2 - 1) > 0.03)
    assert clear.mean() > 0.99
    per_t = (h1[by_log] / t1**1.5) ** (1 - u) * (h2[by_log] / t2**1.5) ** u
    hot[by_log] = per_t * t**1.5
    dark = (1 - leg.bulk) * level1 + leg.bulk * level2 + hot
    np.testing.assert_allclose(made.dark[clear], dark[clear], rtol=2e-5, atol=2e-3)
    error = np.abs(hot) * np.where(by_log, plan.relative_error_log, plan.relative_error)
    np.testing.assert_allclose(made.error[clear], error[clear], rtol=1e-3, atol=1e-3)
    ratio = error / np.sqrt(sensor.light.noise_adu**2 + np.maximum(hot, 0) / 0.8)
    assert np.mean((harmful(made, sensor.light) != (ratio > 0.5))[clear]) < 1e-4
    assert made.judgement.share_harmful == pytest.approx(np.mean(ratio > 0.5), abs=2e-4)
    assert made.judgement.error_sigmas == pytest.approx(np.quantile(ratio, 0.995), abs=0.011)


def test_a_single_master_is_given_as_it_is():
    sensor = Sensor.make((70, 60))
    sensor.take(300, -10.1)
    made = sensor.compose(sensor.plan(-10.0))
    np.testing.assert_array_equal(made.dark, sensor.images[1])
    assert made.doubt is None


def test_any_number_of_threads_gives_the_same_bits():
    sensor = Sensor.make((200, 120))
    for end in ((300, -14), (300, -6)):
        sensor.take(*end)
    plan = sensor.plan(-9.0)
    before = numba.get_num_threads()
    try:
        made = []
        for threads in (1, before):
            numba.set_num_threads(threads)
            made.append(sensor.compose(plan, light=sensor.light))
    finally:
        numba.set_num_threads(before)
    for name in ("dark", "error", "doubt"):
        np.testing.assert_array_equal(getattr(made[0], name), getattr(made[1], name))
    assert made[0].judgement.share_harmful == made[1].judgement.share_harmful


def test_pixels_that_are_not_finite_are_harmful():
    sensor = Sensor.make((70, 60))
    sensor.take(300, -10.0)
    sensor.images[1][30, 30] = np.nan
    made = sensor.compose(sensor.plan(-10.0), light=sensor.light)
    assert harmful(made, sensor.light)[30, 30]
    assert harmful(made, sensor.light).sum() < 20


# --- the error, and what follows from it ---------------------------------------------------------


def test_the_error_covers_what_is_wrong():
    """Masters without noise, energies scattered by the 0.06 eV that the error supposes: at least
    68 % of the hot pixels lie within it, since the error grows with the departure.
    """
    sensor = Sensor.make((256, 256), hot_energy_spread_ev=0.06)
    sensor.frames = 10**9
    for t in (-12.5, -7.5):
        sensor.take(300, t)
    plan = sensor.plan(-10.0)
    made = sensor.compose(dataclasses.replace(plan, relative_error=dark_model.energy_error(plan)))
    truth = sensor.camera.ideal_dark(exposure_s=300.0, temperature_c=-10.0)
    bright = sensor.hot(-10.0) & (truth - sensor.camera.pedestal_adu > 200)
    inside = np.abs(made.dark - truth)[bright] <= made.error[bright] + 0.2
    assert bright.sum() > 100
    assert 0.6 < inside.mean() < 0.95


def test_too_many_wrong_pixels_are_refused_and_some_are_warned_of():
    """2 % of the pixels with a dark signal of 40 σ, known within 5 % by a thermometer that may
    be 0.5 °C off: 2 σ. The same of 0.6 %: a warning's worth is left in the percentile.
    """
    plan = planned((300, -10.0), fitted_error_c=0.5)
    light = LightNoise(10.0, 1e9)

    def judged(image):
        rows = {1: lambda first, last: image[first:last]}
        made = dark_compose.compose(plan, rows, shape=image.shape, bayer=False, light=light)
        return made.judgement

    even = np.full((200, 200), 500.0, np.float32)
    for share, refused in ((0.02, True), (0.006, False)):
        hot = np.random.default_rng(1).random(even.shape) < share
        made = judged(even + np.float32(400.0) * hot)
        assert made.share_harmful == pytest.approx(share, rel=0.15)
        assert (made.refused is not None) == refused
        assert (made.warning is not None) == (not refused)
    good = judged(even)
    assert (good.refused, good.warning, good.error_sigmas) == (None, None, 0.0)


# --- energies ------------------------------------------------------------------------------------


def test_the_hot_energy_is_measured():
    sensor = Sensor.make((384, 512), hot_energy_ev=0.63)
    ends = [sensor.take(300, t) for t in (-15, -10)]
    hot = [
        dark_compose.sampled_hot(sensor.rows()[m.id], sensor.camera.shape, bayer=False)[0]
        for m in ends
    ]
    energy, pixels = dark_compose.hot_energy(*hot, first_c=-15.0, second_c=-10.0)
    # The median of n energies that scatter by 0.06 eV.
    assert energy == pytest.approx(0.63, abs=4 * 1.25 * 0.06 / np.sqrt(pixels) + 0.003)
    assert dark_compose.hot_energy(*hot, first_c=-15.0, second_c=-14.5) is None
    assert dark_compose.hot_energy(hot[0], hot[0], first_c=-15.0, second_c=-10.0) is None
    noise = np.random.default_rng(0).normal(size=(2, 50, 50)).astype(np.float32)
    assert dark_compose.hot_energy(*noise, first_c=-15.0, second_c=-10.0) is None


def test_the_level_energy_is_measured_where_the_levels_follow_the_law():
    f = dark_model.dark_current
    celsius = [-10.0, -5.0, 0.0, 10.0]
    levels = [512.0 + 40.0 * f(c, 0.9) for c in celsius]
    assert dark_compose.bulk_energy(celsius, levels, error_adu=0.1) == pytest.approx(0.9, abs=0.002)
    assert dark_compose.bulk_energy(celsius[:2], levels[:2], error_adu=0.1) is None
    assert dark_compose.bulk_energy(celsius, levels, error_adu=10.0) is None
    assert dark_compose.bulk_energy(celsius, levels[::-1], error_adu=0.1) is None
    # A black level that is clamped falls while the sensor warms.
    clamped = [512.0, 530.0, 500.0, 560.0]
    assert dark_compose.bulk_energy(celsius, clamped, error_adu=0.1) is None


# --- the temperature, from the light -------------------------------------------------------------


@pytest.fixture(scope="module")
def two_temperatures():
    sensor = Sensor.make((512, 768))
    for t in (-12.5, -7.5):
        sensor.take(300, t)
    return sensor


def fitted(sensor, raw, *, plan=None, **options):
    plan = plan or sensor.plan(-10.0, exact_within_c=0.0)
    basis = dark_temperature.fit_basis(plan, list(sensor.masters.values()))
    bayer = sensor.camera.bayer_pattern is not None
    pixels = dark_temperature.fit_pixels(
        basis, sensor.rows(), shape=sensor.camera.shape, bayer=bayer
    )
    return dark_temperature.fit(raw, pixels, light=sensor.light, bayer=bayer, **options)


@pytest.mark.parametrize("truth_c", [-11.6, -10.0, -9.2, -6.5])
def test_the_temperature_is_read_off_a_light(two_temperatures, truth_c):
    found = fitted(two_temperatures, two_temperatures.expose(truth_c))
    assert found.error_c < 0.05
    assert found.temperature_c == pytest.approx(truth_c, abs=max(0.07, 4 * found.error_c))


def test_its_error_is_what_it_says(two_temperatures):
    """40 lights at one temperature: their scatter against the error that each states."""
    basis = dark_temperature.fit_basis(
        two_temperatures.plan(-10.0), list(two_temperatures.masters.values())
    )
    pixels = dark_temperature.fit_pixels(
        basis, two_temperatures.rows(), shape=two_temperatures.camera.shape, bayer=False
    )
    found = [
        dark_temperature.fit(
            two_temperatures.expose(-10.0), pixels, light=two_temperatures.light, bayer=False
        )
        for _ in range(40)
    ]
    scatter = np.std([one.temperature_c for one in found], ddof=1)
    stated = np.median([one.error_c for one in found])
    # The energies' scatter is the same in every light: it is in the error, not in the scatter.
    assert scatter < 1.5 * stated
    assert abs(np.mean([one.temperature_c for one in found]) + 10.0) < 4 * stated


def test_stars_and_telegraph_pixels_do_not_move_it(two_temperatures):
    sensor = two_temperatures
    rng = np.random.default_rng(4)
    ny, nx = sensor.camera.shape
    y, x = np.mgrid[:ny, :nx].astype(np.float32)
    scene = np.zeros((ny, nx))
    for sy, sx in rng.uniform(10, 500, (300, 2)) * [1.0, 1.5]:
        box = np.s_[max(int(sy) - 9, 0) : int(sy) + 10, max(int(sx) - 9, 0) : int(sx) + 10]
        r2 = (y[box] - sy) ** 2 + (x[box] - sx) ** 2
        scene[box] += 10 ** rng.uniform(2, 4.3) * np.exp(-r2 / (2 * 1.3**2))
    raw = sensor.expose(-9.2, scene_e=scene).astype(np.float32)
    hot = np.flatnonzero(sensor.hot(-9.2))
    jumping = rng.choice(hot, len(hot) // 6, replace=False)
    jump = rng.uniform(-0.5, 0.5, len(jumping)) * sensor.camera.dark_rate(-9.2).ravel()[jumping]
    raw.ravel()[jumping] += jump * 300.0 / sensor.camera.e_per_adu
    found = fitted(sensor, raw, saturation_adu=sensor.camera.saturation_adu)
    assert found.temperature_c == pytest.approx(-9.2, abs=0.1)


def test_it_is_read_off_a_mosaic_and_between_exposures():
    sensor = Sensor.make((512, 512), bayer_pattern="RGGB")
    for end in ((60, -12), (60, -8), (600, -12.5), (600, -7)):
        sensor.take(*end)
    plan = sensor.plan(-10.0, 300.0)
    found = fitted(sensor, sensor.expose(-9.5), plan=plan)
    assert found.temperature_c == pytest.approx(-9.5, abs=max(0.07, 4 * found.error_c))


def test_an_exact_master_borrows_a_partner(two_temperatures):
    sensor = two_temperatures
    plan = sensor.plan(-12.5)
    assert plan.rule is Rule.EXACT
    basis = dark_temperature.fit_basis(plan, list(sensor.masters.values()))
    assert set(basis.ids) == {1, 2}
    assert dark_temperature.fit_basis(plan, [sensor.masters[1]]) is None


@pytest.mark.parametrize(
    ("found", "header", "used", "words"),
    [
        (dark_temperature.Fit(-9.42, 0.02, 900), -10.0, -9.4, None),
        (dark_temperature.Fit(-8.4, 0.02, 900), -10.0, None, "look at the cooler"),
        (dark_temperature.Fit(-9.4, 0.2, 900), -10.0, None, "only within 0.20 °C"),
        (dark_temperature.Fit(-9.4, float("nan"), 900), -10.0, None, "only within"),
        (None, -10.0, None, "Too few hot pixels"),
    ],
)
def test_what_is_believed(found, header, used, words):
    temperature, why = dark_temperature.believed(found, header)
    assert temperature == (pytest.approx(used) if used else None)
    assert (why is None) if words is None else words in why


# --- the table of section 1, at small size -------------------------------------------------------


def expected_residual(sensor, plan, temperature_c) -> float:
    """From theory: the masters' noise through the weights, and the true energies through the law,
    pixel by pixel.
    """
    camera, hot = sensor.camera, sensor.hot(temperature_c)
    variance = np.zeros(int(hot.sum()))
    given = np.zeros(int(hot.sum()))
    for source, weight, _ in plan.weights:
        electrons = camera.dark_rate(source.temperature_c)[hot].astype(float) * source.exposure_s
        variance += weight**2 * (electrons + camera.read_noise_e**2) / sensor.frames
        given += weight * electrons
    wanted = camera.dark_rate(temperature_c)[hot].astype(float) * plan.exposure_s
    squares = (variance + (given - wanted) ** 2) / camera.e_per_adu**2
    return float(np.sqrt(np.mean(squares / sensor.sigma(temperature_c)[hot] ** 2)))


@pytest.mark.parametrize(
    ("ends", "published"),
    [
        ([(300, -10)], 0.121),
        ([(300, -11), (300, -9)], 0.118),
        ([(300, -12.5), (300, -7.5)], 0.128),
        ([(60, -10), (600, -10)], 0.121),
        ([(300, -8), (300, -3)], 0.26),
    ],
)
def test_hot_residuals_are_what_theory_says_and_as_published(ends, published):
    sensor = Sensor.make((768, 768), bulk_energy_ev=0.57)
    for end in ends:
        sensor.take(*end)
    plan = sensor.plan(-10.0, energies=Energies(0.57, 0.57))
    measured = sensor.residual(sensor.compose(plan).dark, -10.0)
    assert measured == pytest.approx(expected_residual(sensor, plan, -10.0), rel=0.08)
    assert measured < 1.2 * published


@pytest.mark.parametrize(("gap", "published"), [(10, 0.150), (20, 0.38)])
def test_wide_brackets_with_logarithms_are_as_published(gap, published):
    sensor = Sensor.make((768, 768))
    for t in (-10 - gap / 2, -10 + gap / 2):
        sensor.take(300, t)
    plan = sensor.plan(-10.0)
    measured = sensor.residual(sensor.compose(plan).dark, -10.0)
    assert measured < 1.2 * published
    assert measured < 0.6 * expected_residual(sensor, plan, -10.0)


def test_a_header_that_is_wrong_does_no_harm_once_the_light_is_asked(two_temperatures):
    sensor = two_temperatures
    raw = sensor.expose(-10.0)
    by_header = sensor.plan(-9.0, exact_within_c=0.0)
    told, _ = dark_temperature.believed(fitted(sensor, raw, plan=by_header), -9.0)
    by_light = sensor.plan(told, exact_within_c=0.0)
    wrong, right = (
        sensor.residual(sensor.compose(plan).dark, -10.0) for plan in (by_header, by_light)
    )
    assert wrong > 1.0
    assert right < 1.2 * 0.131
