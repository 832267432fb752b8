"""Darks of the library's own masters, and what the daemon does with them."""

import dataclasses
import json
import sys
import types
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from calib_library import darks, defects, master_file
from calib_library.catalogue import by_hand, filing, registry
from calib_library.catalogue.records import BuiltMaster, Input
from calib_library.dark_compose import Judgement, LightNoise
from calib_library.dark_model import Rule
from calib_library.errors import LibraryError, NoMatchingMasterError
from calib_library.frame import FrameType
from calib_library.images import product_file
from calib_library.library import CalibrationLibrary
from daemon.calibration import Calibrator, _Kept, masters_in
from daemon.darkroom import HOT_THRESHOLDS_ADU, DarkChoice, DarkRoom
from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from daemon.stack import product
from tests.dark_sensor import Sensor
from tests.nights import Outcome, config_for, run
from tests.records import NIGHT, key, record
from tests.test_finish import make, worked, written

SHAPE = (384, 512)
KEY = key(width=SHAPE[1], height=SHAPE[0])


class Shelf:
    """A library folder with masters of a simulated sensor."""

    def __init__(self, root, sensor, ends):
        self.root, self.sensor = root, sensor
        ny, nx = sensor.camera.shape
        pattern = sensor.camera.bayer_pattern
        self.key = dataclasses.replace(KEY, width=nx, height=ny, bayer_pattern=pattern)
        self.library = CalibrationLibrary.open(root)
        for exposure_s, temperature_c in ends:
            self.add(exposure_s, temperature_c)

    def add(self, exposure_s, temperature_c) -> int:
        """Register a master, as a build would; returns its number."""
        taken = self.sensor.take(exposure_s, temperature_c)
        sha256 = f"{taken.id:064x}"
        set_id = filing.file_frame(
            self.library,
            record(
                FrameType.DARK, key=self.key, exposure_s=exposure_s, temperature_c=temperature_c
            ),
            sha256=sha256,
            path=self.root / f"{taken.id}.fits",
            session="",
            now=NIGHT,
        )
        path = PurePosixPath(
            f"masters/MasterDark_{exposure_s:g}s_{temperature_c:g}C_{taken.id}.fits"
        )
        (self.root / "masters").mkdir(exist_ok=True)
        product_file.write_fits(self.root / path, self.sensor.images[taken.id], [], scale="unit")
        built = BuiltMaster(
            set_id=set_id,
            generation=registry.next_generation(self.library, set_id),
            path=path,
            sha256=sha256,
            exposure_s=exposure_s,
            temperature_c=temperature_c,
            date_obs=NIGHT,
            inputs=(Input(sha256, None),),
            subtracted=None,
            version="test",
            notes=(),
        )
        return registry.register(self.library, built, NIGHT).id

    def light(self, truth_c, *, header_c=None, exposure_s=300.0):
        """(raw pixels, record) of a light whose thermometer says `header_c`."""
        raw = self.sensor.expose(truth_c, exposure_s)
        told = truth_c if header_c is None else header_c
        fields = {"exposure_s": exposure_s, "temperature_c": told, "e_per_adu": 0.8}
        return raw, record(FrameType.LIGHT, key=self.key, **fields)

    def calibrator(self) -> Calibrator:
        return Calibrator(
            self.library,
            root=self.root,
            min_frames=5,
            quiet_s=lambda: 60.0,
        )


def shelf(tmp_path, ends, **fields) -> Shelf:
    return Shelf(tmp_path, Sensor.make(SHAPE, **fields), ends)


@pytest.fixture
def two(tmp_path):
    made = shelf(tmp_path, [(300, -12.5), (300, -7.5)])
    with made.library:
        yield made


@pytest.mark.parametrize("forced", [False, True])
def test_an_extrapolation_that_does_harm_is_used_only_by_hand(tmp_path, forced):
    """One pixel in twenty is hot, 4.5 °C beyond the darks: the model says it may be wrong."""
    ends = [(300, -14.5), (300, -19.5)]
    made = shelf(tmp_path, ends, hot_fraction=0.05, hot_rate_e_s=1.5)
    with made.library as library:
        raw, told = made.light(-10.0)
        if forced:
            by_hand.force_dark(library, scope="target", subject="M 1", now=NIGHT)
        calibrator = made.calibrator()
        choice = calibrator.choose(told, session="", now=None, target="M 1")
        settled = calibrator.settle(raw, told, choice)
        assert (settled.dark is not None) == forced
        if not forced:
            return
        assert settled.making.model.rule is Rule.FORCED
        assert "dark: extrapolated by order" in settled.flags
        assert "It is used all the same, by hand." in "\n".join(settled.making.lines)
        other = calibrator.choose(told, session="", now=None, target="M 2")
        assert other.dark is None
        # What would be considered is another thing: the stack is made again either way.
        ids = settled.ids()
        assert not calibrator.would_change(told, ids, session="", target="M 1")
        by_hand.unuse(library, None, scope="target", subject="M 1")
        assert calibrator.would_change(told, ids, session="", target="M 1")


# --- the library alone ---------------------------------------------------------------------------


def test_a_master_read_by_rows_is_the_master(two):
    for master in two.library.masters():
        whole = master_file.load_master(two.root, master)
        with master_file.open_master(two.root, master) as rows:
            np.testing.assert_array_equal(np.concatenate([rows(0, 101), rows(101, 384)]), whole)
        np.testing.assert_allclose(whole, two.sensor.images[master.id], rtol=1e-6)


def test_a_dark_is_made_of_the_librarys_masters(tmp_path):
    made = shelf(tmp_path, [(60, -10), (60, -5), (300, -10), (300, -5)])
    with made.library as library:
        dark = darks.dark_for(library, library.masters()[0], exposure_s=180.0, temperature_c=-7.3)
    assert dark.plan.rule is Rule.PAIR
    assert len(dark.plan.sources) == 4
    # Measured, not assumed: the sensor's is 0.57 eV, scattered by 0.06 from pixel to pixel.
    assert dark.plan.energies.measured.startswith("hot pixels on")
    assert dark.plan.energies.hot_ev == pytest.approx(0.57, abs=0.015)
    assert made.sensor.residual(dark.image, -7.3, 180.0) < 0.13
    hot = made.sensor.hot(-7.3)
    assert np.median(dark.error[hot]) > 10 * np.median(dark.error[~hot])
    assert (dark.image.shape, dark.error.dtype) == (SHAPE, np.float32)


def test_what_cannot_be_made_is_said(two):
    like = two.library.masters()[0]
    with pytest.raises(NoMatchingMasterError, match="darks of 300 s"):
        darks.dark_for(two.library, like, exposure_s=60.0, temperature_c=-10.0)
    other = dataclasses.replace(like, key=key(gain=200.0))
    with pytest.raises(NoMatchingMasterError, match="none of this camera"):
        darks.dark_for(two.library, other, exposure_s=300.0, temperature_c=-10.0)
    (two.root / like.path).unlink()
    with pytest.raises(LibraryError, match="put the file back"):
        darks.dark_for(two.library, like, exposure_s=300.0, temperature_c=-10.0)


def test_the_levels_energy_is_measured_on_three_masters(tmp_path):
    """A smooth level of 0.9 eV that rises by 30 ADU; the glow is in the constant."""
    made = shelf(
        tmp_path,
        [(300, -15), (300, -10), (300, -5)],
        bulk_rate_e_s=0.08,
        bulk_energy_ev=0.9,
    )
    with made.library as library:
        dark = darks.dark_for(library, library.masters()[0], exposure_s=300.0, temperature_c=-7.5)
    assert dark.plan.energies.bulk_ev == pytest.approx(0.9, abs=0.03)
    wrong = made.sensor.wrong(dark.image, -7.5)[~made.sensor.hot(-7.5)]
    assert abs(np.median(wrong)) < 0.03


def test_the_notebook_page_runs(tmp_path, monkeypatch, capsys):
    """The ten lines of docs/notebook.md, in a home that has a library; drawing is only noted."""
    page = (Path(__file__).parents[1] / "docs" / "notebook.md").read_text()
    lines = page.split("```python\n")[1].split("```")[0]
    assert sum(map(bool, lines.splitlines())) == 10
    (tmp_path / "astro" / "library").mkdir(parents=True)
    ends = [(60, -10), (60, -5), (300, -10), (300, -5)]
    made = shelf(tmp_path / "astro" / "library", ends)
    made.library.close()
    drawn = []
    pyplot = types.ModuleType("matplotlib.pyplot")
    axes = types.SimpleNamespace(imshow=lambda image, **_: drawn.append(image))
    pyplot.subplots = lambda *_, **__: (None, (axes, axes))
    package = types.ModuleType("matplotlib")
    package.pyplot = pyplot
    monkeypatch.setitem(sys.modules, "matplotlib", package)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", pyplot)
    monkeypatch.setenv("HOME", str(tmp_path))
    exec(compile(lines, "notebook.md", "exec"), {})
    image, error = drawn
    assert made.sensor.residual(image, -7.3, 180.0) < 0.13
    assert error.max() > 1.0
    assert "For 180 s at −7.30 °C" in capsys.readouterr().out


# --- the daemon ----------------------------------------------------------------------------------


def residual(made, calibrated, raw, truth_c) -> float:
    """rms of what the dark left in the hot pixels that were not repaired, in σ of the light."""
    subtracted = raw.astype(np.float32) - calibrated.image
    good = made.sensor.hot(truth_c) & (calibrated.mask == 0)
    return float(np.sqrt(np.mean(made.sensor.wrong(subtracted, truth_c)[good] ** 2)))


def test_a_lying_thermometer_is_found_out(two):
    calibrator = two.calibrator()
    raw, told = two.light(-10.0, header_c=-9.0)
    choice = calibrator.choose(told, session="", now=None)
    settled = calibrator.settle(raw, told, choice)
    assert settled.making.fitted_c == pytest.approx(-10.0, abs=0.1)
    assert settled.flags == ("no flat",)
    believed, fitted = (
        residual(two, calibrator.apply(raw, told, one), raw, -10.0) for one in (choice, settled)
    )
    assert believed > 0.5
    assert fitted < 0.3
    assert settled.making.residual_sigmas < 0.5


def test_a_master_that_is_near_is_left_where_the_light_says_so(two):
    """The header says −12.4, next to a master; the sensor was at −11.4."""
    calibrator = two.calibrator()
    raw, told = two.light(-11.4, header_c=-12.4)
    choice = calibrator.choose(told, session="", now=None)
    assert choice.making.model.rule is Rule.EXACT
    settled = calibrator.settle(raw, told, choice)
    assert settled.making.model.rule is Rule.PAIR
    assert residual(two, calibrator.apply(raw, told, settled), raw, -11.4) < 0.3


def test_a_replay_from_the_record_comes_to_the_same_bits(two):
    raw, told = two.light(-9.3, header_c=-9.8)
    first = two.calibrator()
    settled = first.settle(raw, told, first.choose(told, session="", now=None))
    masters = json.loads(json.dumps(settled.ids()))
    again = two.calibrator()
    recorded = again.recorded(masters)
    for one in (first.apply(raw, told, settled), again.apply(raw, told, settled)):
        other = again.apply(raw, told, recorded)
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.mask, other.mask)
    assert masters_in(masters) == {1, 2}
    assert recorded.ids() == settled.ids()


def test_frames_of_a_cooled_camera_share_one_dark(two):
    """A sensor at −10.00 ± 0.02 °C whose header flickers by 0.4 °C: one or two plans, not twelve;
    and no array is kept but the calibrator's few.
    """
    calibrator = two.calibrator()
    plans = set()
    for number in range(12):
        raw, told = two.light(-10.0, header_c=-10.2 + 0.4 * (number % 2))
        choice = calibrator.choose(told, session="", now=None)
        settled = calibrator.settle(raw, told, choice)
        plans.add(settled.making.model.temperature_c)
    assert len(plans) <= 3


def test_lights_beside_one_master_share_its_pixels(tmp_path):
    """A degree off or none, what is subtracted is the same array; only the doubt differs."""
    made = shelf(tmp_path, [(300, -10)])
    with made.library:
        calibrator = made.calibrator()
        given = []
        for celsius in (-10.0, -9.1):
            raw, told = made.light(celsius)
            settled = calibrator.settle(raw, told, calibrator.choose(told, session="", now=None))
            given.append((settled, calibrator.arrays(9.0, told, settled)))
        (one, first), (other, second) = given
        assert one.making.model.relative_error != other.making.model.relative_error
        assert first.dark is second.dark
        assert first.bad is not second.bad


@pytest.mark.parametrize("bayer", [None, "RGGB"])
def test_a_band_is_what_the_whole_would_be(tmp_path, bayer):
    """Rows of a dark that is not kept, with the logarithms of a wide pair: dark, bad pixels."""
    made = shelf(tmp_path, [(300, -14), (300, -6)], bayer_pattern=bayer)
    with made.library:
        whole, banded = made.calibrator(), made.calibrator()
        raw, told = made.light(-10.0)
        settled = whole.settle(raw, told, whole.choose(told, session="", now=None))
        assert settled.making.model.rule is Rule.HOT_PAIR
        recorded = banded.recorded(json.loads(json.dumps(settled.ids())))
        expected = whole.arrays(9.0, told, settled)
        assert (expected.bad > expected.bad_above).sum() > 20
        for first, last in ((0, 50), (118, 262), (300, 384)):
            dark, flat, bad, above = banded.band(9.0, told, recorded, first, last)
            np.testing.assert_array_equal(dark, expected.dark[first:last])
            np.testing.assert_array_equal(bad, expected.bad[first:last])
            assert (flat, above) == (None, expected.bad_above)


def test_better_darks_change_the_choice_and_others_do_not(two):
    calibrator = two.calibrator()
    raw, told = two.light(-10.0, header_c=-9.0)
    settled = calibrator.settle(raw, told, calibrator.choose(told, session="", now=None))
    masters = json.loads(json.dumps(settled.ids()))

    def changes() -> bool:
        return calibrator.would_change(told, masters, session="")

    assert not changes()
    two.add(300, -25)
    two.add(30, -10)
    assert not changes()
    # Near the temperature that the light told, not the header's.
    two.add(300, -10.4)
    assert changes()


def test_a_dark_that_would_do_harm_is_refused(tmp_path):
    """One pixel in twenty is hot and the only dark is 0.9 °C off: wrong by more than half a σ in
    more than 1 % of the pixels.
    """
    made = shelf(tmp_path, [(300, -9.1)], hot_fraction=0.05, hot_rate_e_s=1.5)
    with made.library:
        calibrator = made.calibrator()
        raw, told = made.light(-10.0)
        choice = calibrator.choose(told, session="", now=None)
        assert choice.flags == ("dark: the nearest master", "no flat")
        settled = calibrator.settle(raw, told, choice)
        assert settled.dark is None
        assert settled.subtracted is None
        assert set(settled.flags) == {"no flat", "no dark"}
        assert any("could be wrong by more than 0.5 σ" in line for line in settled.making.lines)
        masters = json.loads(json.dumps(settled.ids()))
        assert not calibrator.would_change(told, masters, session="")
        made.add(300, -10.0)
        assert calibrator.would_change(told, masters, session="")


def test_pixels_of_doubtful_dark_are_marked_bad(tmp_path):
    """Extrapolated by 2 °C: the hottest pixels are not trusted, and their error is stated."""
    made = shelf(tmp_path, [(300, -8.0), (300, -3.0)], hot_fraction=0.008)
    with made.library:
        calibrator = made.calibrator()
        raw, told = made.light(-10.0)
        settled = calibrator.settle(raw, told, calibrator.choose(told, session="", now=None))
        assert settled.making.model.rule is Rule.EXTRAPOLATED
        assert settled.flags == ("dark: extrapolated in temperature", "no flat")
        calibrated = calibrator.apply(raw, told, settled)
        wrong = np.abs(made.sensor.wrong(raw.astype(np.float32) - calibrated.image, -10.0))
        assert wrong[calibrated.mask == 0].max() < 3.0


@pytest.mark.parametrize("bayer_pattern", [None, "RGGB"])
def test_a_dark_made_in_bands_is_that_made_at_once(tmp_path, bayer_pattern):
    """More rows than two bands have: its pixels, which are bad, and how wrong it may be."""
    shape = (1150, 80)
    sensor = Sensor.make(shape, hot_rate_e_s=2.0, bayer_pattern=bayer_pattern)
    bayer = bayer_pattern is not None
    made = Shelf(tmp_path, sensor, [(300, -14.0), (300, -6.0)])
    with made.library as library:
        _, told = made.light(-9.0)
        room = DarkRoom(library, root=tmp_path, temperature_tolerance_c=0.5)
        model = room.choose(told).model
        assert len(model.sources) == 2
        light = LightNoise(7.0, 0.8)
        whole = darks.Darks(tmp_path, library.master).compose(model, light=light)
        found = room.make(model, told, noise_adu=7.0)
        np.testing.assert_array_equal(found.dark, whole.dark)
        marks = defects.exceeded(
            whole.dark, HOT_THRESHOLDS_ADU, bayer=bayer, doubt=whole.doubt, doubt_scale=2.4
        )
        assert np.unique(marks).size > 5
        np.testing.assert_array_equal(found.bad, marks)
        judged = Judgement(found.errors)
        assert found.errors.sum() == whole.dark.size
        assert judged.share_harmful == whole.judgement.share_harmful > 0
        assert judged.error_sigmas == whole.judgement.error_sigmas > 0


def test_a_light_without_a_temperature_takes_what_it_always_took(two):
    raw, told = two.light(-10.0)
    told = dataclasses.replace(told, temperature_c=None)
    calibrator = two.calibrator()
    choice = calibrator.choose(told, session="", now=None)
    assert (choice.dark, choice.making, choice.flags) == (None, None, ("no dark", "no flat"))
    assert calibrator.settle(raw, told, choice) is choice
    assert calibrator.recorded(choice.ids()).ids() == choice.ids()


def test_headers_and_explanations_tell_how_the_dark_was_made(two):
    calibrator = two.calibrator()
    raw, told = two.light(-10.0, header_c=-9.5)
    settled = calibrator.settle(raw, told, calibrator.choose(told, session="", now=None))
    (lines,) = (lines for title, lines in settled.explanation if title == "Dark")
    text = "\n".join(lines)
    for words in ("fitted on the light", "two temperatures", "MasterDark_300s_-12.5C", " eV", "σ"):
        assert words in text
    cards = product.dark_cards([settled.ids(), settled.ids()])
    values = {card.keyword: card.value for card in cards}
    assert values["LKDTEMP"] == pytest.approx(-10.0, abs=0.1)
    assert 0 < values["LKDERR"] < 0.5
    history = "\n".join(str(card.value) for card in cards if card.keyword == "HISTORY")
    assert history.isascii()
    for words in ("2 of 2 temperatures fitted", "of MasterDark_300s_-7.5C_2 (300 s, -7.50 degC)"):
        assert words in history
    assert product.dark_cards([{"dark": 1, "bias": None, "flat": None}]) == []


def test_the_record_of_an_older_version_is_read():
    assert DarkChoice.from_dict({"dark": 1, "bias": None, "flat": 2}) is None
    assert masters_in({"dark": 1, "bias": None, "flat": 2}) == {1, 2}


# --- a whole night -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_night_between_two_sets_of_darks(tmp_path):
    """Darks 3 °C above and 4 °C below, lights stacked in two sessions: fitted, combined, replayed
    to the same bits.
    """
    plan = small_plan(
        seed=5,
        shape=(384, 512),
        bias=0,
        darks=6,
        flats=6,
        flat_darks=5,
        lights=6,
        flip=False,
        dark_sets=[(-14.0, 120.0), (-7.0, 120.0)],
    )
    taken = list(frames(plan))
    images = []
    for name, parts in (("whole", [taken]), ("halves", [taken[:-3], taken[-3:]])):
        folder = tmp_path / name
        config = config_for(folder)
        for part in parts:
            for frame in part:
                write_frame(folder / "in", frame)
            run(config)
        outcome = Outcome(config)
        (stack,) = outcome.stacks
        members = outcome.members[stack.id]
        assert len(members) == 6
        assert all(member.flags in {(), ("cosmics cleaned",)} for member in members)
        models = [DarkChoice.from_dict(member.masters).model for member in members]
        assert {model.rule for model in models} == {Rule.HOT_PAIR}
        assert all(model.fitted for model in models)
        assert all(abs(model.temperature_c + 10.0) < 0.2 for model in models)
        _, cards = product_file.read_product(config.library.path / stack.path)
        values = {card.keyword: card.value for card in cards}
        assert values["CALSTAT"] == "BDF"
        assert values["LKDTEMP"] == pytest.approx(-10.0, abs=0.15)
        images.append(outcome.image(stack))
    np.testing.assert_array_equal(*images)


@pytest.mark.slow
def test_an_exact_stack_by_bands_of_darks_is_the_same(tmp_path, monkeypatch):
    """As where the sensor was at another temperature in each frame and no dark is kept whole."""
    plan = small_plan(
        seed=7,
        shape=(256, 320),
        bias=0,
        darks=5,
        flats=5,
        flat_darks=5,
        lights=9,
        dark_sets=[(-14.0, 120.0), (-7.0, 120.0)],
    )
    with worked(plan, tmp_path) as parts:
        whole, _, _ = written(parts, make(parts, memory_bytes=3_000_000))
        calibrator = parts.pipeline.calibrator
        bands = []
        by_rows = calibrator.band
        monkeypatch.setattr(calibrator, "kept_darks", 0)
        monkeypatch.setattr(_Kept, "has", lambda *_: False)
        monkeypatch.setattr(
            calibrator, "band", lambda *args: bands.append(args[3:]) or by_rows(*args)
        )
        banded, _, _ = written(parts, make(parts, memory_bytes=3_000_000))
    np.testing.assert_array_equal(whole, banded)
    assert len(bands) > 9
