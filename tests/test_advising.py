"""`lightkeeper library sensor` and `library advice`: what is read, said, written, how fast."""

import csv
import io
import json
import xml.etree.ElementTree as ET

import pytest

from calib_library import schema
from calib_library.advice import Noise, Shot, Site
from calib_library.catalogue import cameras
from calib_library.frame import CalibrationKey, FrameType
from calib_library.library import CalibrationLibrary
from calib_library.sensor_record import DarkCurrent, Measured, Sensor, SensorRecord
from daemon.cli import main
from daemon.ledger import lights
from daemon.ledger import schema as ledger_schema
from daemon.report import advising, shots
from daemon.report.cameras import _pm
from tests.advice_rows import Records, fill
from tests.nights import config_for
from tests.records import KEY, NIGHT, key

GAIN, READ_NOISE, RATE = 0.8, 1.8, 0.005


def measured(site_key: CalibrationKey = KEY) -> SensorRecord:
    found = Sensor(
        gain=Measured(GAIN, 0.002),
        read_noise=Measured(READ_NOISE, 0.01),
        plane_gains=(Measured(GAIN, 0.002),),
        row_noise=0.1,
        offset_adu=500.0,
        level_adu=(20_000.0, 30_000.0),
        nonlinearity=Measured(0.002, 0.003),
        coupling=Measured(0.0, 0.0002),
        step_adu=4,
        pairs=(4, 4),
        notes=(),
    )
    return SensorRecord(
        key=site_key,
        row_order="TOP-DOWN",
        measured_at=NIGHT,
        temperature_c=-10.0,
        header_e_per_adu=0.79,
        sensor=found,
        darks=(
            DarkCurrent(Measured(RATE, 1e-4), clamped=False, exposure_s=300, temperature_c=-10),
        ),
        inputs=("ab",),
        refused=None,
        warnings={},
    )


@pytest.fixture
def records(tmp_path):
    """An empty library, open for writing; `config_for(tmp_path)` is its configuration."""
    root = tmp_path / "library"
    root.mkdir()
    db = schema.connect(root / schema.DATABASE_NAME)
    schema.apply(db)
    ledger_schema.apply(db)
    with db.conn:
        yield Records(db)
    db.close()


def command(tmp_path, *words: str) -> int:
    file = tmp_path / "config.toml"
    file.write_text(
        f'[library]\npath = "{tmp_path / "library"}"\n[[watch]]\npath = "{tmp_path / "in"}"\n'
    )
    return main(["library", *words, "--config", str(file)])


def a_small_library(records, *, dithered):
    library = CalibrationLibrary(records.db, None)
    cameras.add_sensor(library, measured())
    records.stack(1)
    for n in range(50):
        xy = (8.0 * n, 0.0) if dithered else (0.1 * (n % 3), 0.0)
        fields = {"filter": "L", "filter_name": "Luminance"}
        records.light(KEY, stack=1, position=n, night="2026-11-20", xy=xy, **fields)
    records.master(1, FrameType.DARK, KEY)
    records.master(2, FrameType.FLAT, KEY, filter_name="L", exposure_s=2.0)
    records.master(3, FrameType.BIAS, KEY, exposure_s=0.0)
    records.db.conn.commit()


def test_the_lights_of_the_last_nights(records, tmp_path):
    """Sky 37.5 ADU · 0.8 = 30 e-: the middle row of section 2's table, 7 and 339 darks."""
    a_small_library(records, dithered=False)
    (line,) = advising.gather(config_for(tmp_path), nights=7, goal=0.01, plan=None).lines
    assert line.use.groups == (50,)
    assert line.use.sky_e == pytest.approx(30.0)
    assert line.noise == Noise(GAIN, READ_NOISE, RATE, GAIN * 25_000)
    assert line.dark.needed == pytest.approx(339, abs=1)
    assert line.dark.needed_dithered == 7
    assert line.dark.advice.startswith("dither: 7")


def test_dithered_lights_are_seen_to_be(records, tmp_path):
    a_small_library(records, dithered=True)
    (line,) = advising.gather(config_for(tmp_path), nights=7, goal=0.01, plan=None).lines
    assert line.use.groups == (1,) * 50
    assert line.dark.advice == "enough"


def test_a_plan_takes_its_sky_from_the_lights_there_were(records, tmp_path):
    a_small_library(records, dithered=True)
    plan = advising.Plan(exposure_s=60.0, filter="Lum", lights=20, temperature_c=-15.0)
    (line,) = advising.gather(config_for(tmp_path), nights=7, goal=0.01, plan=plan).lines
    assert line.use.sky_e == pytest.approx(30.0 / 5)
    assert (line.use.filter, line.use.groups, line.use.temperature_c) == ("L", (20,), -15.0)
    assert line.dark.added is None


def test_a_camera_that_nobody_measured(records, tmp_path):
    """The header has no EGAIN: 1 e-/ADU; noise² − sky = 7.5² − 37.5 = 18.75 e-²."""
    records.stack(1)
    records.light(KEY, stack=1, position=1, night="2026-11-20")
    records.db.conn.commit()
    (line,) = advising.gather(config_for(tmp_path), nights=7, goal=0.01, plan=None).lines
    assert line.noise.e_per_adu == 1.0
    assert line.noise.read_noise_e == pytest.approx(18.75**0.5)
    assert "1 e-/ADU assumed" in line.noise.assumed


def test_only_the_last_nights_count(records):
    records.stack(1)
    for n in range(6):
        records.light(KEY, stack=1, position=n, night=f"2026-11-1{n}")
    assert len(lights.used(records.db, nights=2)) == 2
    assert len(lights.used(records.db, nights=99)) == 6


def test_the_commands(records, tmp_path, capsys):
    a_small_library(records, dithered=True)
    assert command(tmp_path, "sensor") == 0
    told = capsys.readouterr().out
    assert "0.8000 ± 0.0020 e-/ADU; the header says 0.79" in told
    assert "in steps of 4 ADU" in told
    assert command(tmp_path, "sensor", "--json") == 0
    (camera,) = json.loads(capsys.readouterr().out)["cameras"]
    assert camera[0]["sensor"]["read_noise"] == [1.8, 0.01]
    assert command(tmp_path, "advice") == 0
    assert "nothing: the library has what these lights need" in capsys.readouterr().out
    file = tmp_path / "shots.csv"
    plan = ("advice", "--exposure", "60", "--filter", "Ha", "--lights", "20", "--dithered")
    assert command(tmp_path, *plan, "--shots", str(file)) == 0
    assert f"written: {file}" in capsys.readouterr().err
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [(row["type"], row["exposure_s"], row["filter"]) for row in rows] == [
        ("dark", "60", ""),
        ("flat", "", "Ha"),  # as it was asked for: what the filter wheel knows
    ]
    assert command(tmp_path, *plan, "--json") == 0
    assert json.loads(capsys.readouterr().out)["lines"][0]["use"]["exposure_s"] == 60


def test_a_sky_that_has_the_pedestal_in_it_is_taken_from_its_noise(records, tmp_path):
    """No dark, no bias: 537.5 ADU, of which 500 are the camera's offset. The noise of 7.5 ADU is
    6 e-; less the read noise of 1.8 e- the sky is 32.8 e-.
    """
    library = CalibrationLibrary(records.db, None)
    cameras.add_sensor(library, measured())
    records.stack(1)
    for n in range(10):
        records.light(KEY, stack=1, position=n, night="2026-11-20", sky_adu=537.5, dark=None)
    records.db.conn.commit()
    (line,) = advising.gather(config_for(tmp_path), nights=7, goal=0.01, plan=None).lines
    assert line.use.sky_e == pytest.approx((7.5 * GAIN) ** 2 - READ_NOISE**2)


def test_mistakes_are_told(records, tmp_path, capsys):
    assert command(tmp_path, "sensor") == 0
    assert "No camera has been measured yet" in capsys.readouterr().out
    assert command(tmp_path, "advice") == 1
    assert "--exposure" in capsys.readouterr().err
    assert command(tmp_path, "advice", "--exposure", "60") == 1
    assert "no camera" in capsys.readouterr().err
    assert command(tmp_path, "advice", "--goal", "0") == 2
    assert command(tmp_path, "advice", "--shots", "list.txt") == 2


def test_before_the_first_run_the_answer_is_a_sentence(tmp_path, capsys):
    for words in (("sensor",), ("advice",)):
        assert command(tmp_path, *words) == 1
        assert "lightkeeper run" in capsys.readouterr().err


# --- the list of shots ---------------------------------------------------------------------------

SHOTS = (
    Shot(Site(KEY, "TOP-DOWN"), FrameType.DARK, 300.0, -10.0, None, 30, "0 of 30 are there"),
    Shot(Site(KEY, "TOP-DOWN"), FrameType.FLAT, None, None, "H<a>", 30, "none"),
    Shot(Site(key(camera="=1+1", xbinning=2), "TOP-DOWN"), FrameType.BIAS, 0.0, None, None, 9, ""),
)


def test_the_ekos_sequence_has_what_its_loader_reads():
    root = ET.fromstring(shots.to_esq(SHOTS, camera=KEY.camera))
    assert (root.tag, root.attrib) == ("SequenceQueue", {"version": "2.6"})
    dark, flat = root.findall("Job")
    assert [dark.findtext(tag) for tag in ("Exposure", "Type", "Count")] == ["300", "Dark", "30"]
    temperature = dark.find("Temperature")
    assert (temperature.text, temperature.get("force")) == ("-10", "true")
    assert (dark.findtext("Binning/X"), dark.findtext("Binning/Y")) == ("1", "1")
    vectors = {
        vector.get("name"): {one.get("name"): one.text for one in vector}
        for vector in dark.findall("Properties/PropertyVector")
    }
    assert vectors["CCD_GAIN"] == {"GAIN": "100"}
    assert vectors["CCD_CONTROLS"] == {"Gain": "100", "Offset": "50"}
    assert (flat.findtext("Filter"), flat.findtext("Type")) == ("H<a>", "Flat")
    # Its exposure is found by Ekos, for half of full scale; a dark's is as it stands.
    duration = flat.find("Calibration/FlatDuration")
    assert duration.get("dark") == "false"
    level = [duration.findtext(tag) for tag in ("Type", "Value", "Tolerance")]
    assert level == ["ADU", "30000", "3000"]
    assert dark.find("Calibration") is None
    assert flat.find("Temperature") is None


def test_a_filter_is_named_as_its_program_names_it(records, tmp_path):
    """Of a name that it does not know Ekos would take the wheel's first filter."""
    a_small_library(records, dithered=True)
    plan = advising.Plan(exposure_s=60.0, filter="Lum", lights=400)
    found = advising.gather(config_for(tmp_path), nights=7, goal=0.001, plan=plan)
    flat = next(shot for shot in found.shots if shot.kind == FrameType.FLAT)
    assert (flat.filter, flat.filter_name) == ("L", "Luminance")
    root = ET.fromstring(shots.to_esq([flat], camera=KEY.camera))
    assert root.findtext("Job/Filter") == "Luminance"


def test_the_csv_holds_no_formula():
    rows = list(csv.DictReader(io.StringIO(shots.to_csv(SHOTS))))
    assert rows[0]["temperature_c"] == "-10"
    assert rows[2]["camera"] == "'=1+1"
    assert rows[2]["binning"] == "2x1"


def test_every_camera_has_a_sequence_of_its_own(tmp_path):
    written = shots.write(SHOTS, tmp_path / "list.esq")
    assert [path.name for path in written] == ["list-ZWO-ASI2600MM-Pro.esq", "list-1-1.esq"]
    assert all(ET.fromstring(path.read_text()).findall("Job") for path in written)


def test_values_are_shown_with_two_digits_of_their_error():
    assert _pm(Measured(0.80123, 0.0021)) == "0.8012 ± 0.0021"
    assert _pm(Measured(12.3456, 0.31)) == "12.35 ± 0.31"
    assert _pm(Measured(123.0, 45.0)) == "123 ± 45"
    assert _pm(Measured(1.2345, float("inf"))) == "1.23"


# --- size ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_advice_from_ten_thousand_masters_and_two_hundred_thousand_frames(records, tmp_path):
    fill(records)
    config = config_for(tmp_path)
    found = advising.gather(config, nights=7, goal=0.01, plan=None)
    assert len(found.lines) > 50
    assert len(found.grid) > 1000
