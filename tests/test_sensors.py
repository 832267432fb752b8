"""The service measures the camera when masters are built, keeps it, and warns once."""

import dataclasses
import datetime as dt

import pytest

from calib_library.catalogue import cameras
from calib_library.library import CalibrationLibrary
from calib_library.sensor_record import Measured
from daemon import sensors
from daemon.simulator.camera import dark_ratio
from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests.nights import Outcome, config_for, run
from tests.records import NIGHT

GAIN, READ_NOISE = 0.8, 2.2  # the simulated camera's, e-/ADU and e-
BULK = 0.012  # its smooth dark current at −10 °C, e-/s, without the glow


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Two runs over frames whose header has EGAIN upside down; between them the camera changes.

    The second run finds an earlier measurement of another gain, as if the driver had changed.
    """
    tmp_path = tmp_path_factory.mktemp("sensor")
    plan = small_plan(
        seed=4, shape=(512, 640), bias=8, darks=6, flats=8, flat_darks=0, lights=0, exposure_s=600.0
    )
    config = config_for(tmp_path)
    for frame in frames(plan):
        cards = tuple(
            card._replace(value=round(1 / GAIN, 4)) if card.keyword == "EGAIN" else card
            for card in frame.cards
        )
        write_frame(tmp_path / "in", dataclasses.replace(frame, cards=cards))
    run(config)
    first = Outcome(config).log
    with CalibrationLibrary.open(config.library.path) as library:
        (made,) = cameras.sensors(library)
        other = dataclasses.replace(made.sensor, gain=Measured(0.6, 0.001))
        library.db.execute("DELETE FROM sensor")
        cameras.add_sensor(
            library,
            dataclasses.replace(
                made, sensor=other, measured_at=made.measured_at - dt.timedelta(days=1)
            ),
        )
    run(config)
    second = Outcome(config).log[len(first) :]
    run(config)
    third = Outcome(config).log[len(first) + len(second) :]
    return config, made, (first, second, third)


def test_the_camera_is_measured_once_all_masters_are_there(nights):
    _, made, _ = nights
    assert made.refused is None
    found = made.sensor
    assert found.gain.value == pytest.approx(GAIN, abs=5 * found.gain.error)
    assert found.gain.error < 0.01 * GAIN
    assert found.read_noise.value == pytest.approx(READ_NOISE, rel=0.02)
    assert found.pairs == (4, 4)
    assert made.header_e_per_adu == pytest.approx(1.25)
    assert len(made.inputs) == 16


def test_its_dark_current_is_that_of_the_camera(nights):
    _, made, _ = nights
    (dark,) = made.darks
    assert not dark.clamped
    assert dark.exposure_s == 600.0
    truth = BULK * float(dark_ratio(dark.temperature_c, energy_ev=0.85))
    # Glow and hot pixels are in the frames, not in this figure: the middle of the patches.
    assert truth - 4 * dark.rate.error < dark.rate.value < 2 * truth + 4 * dark.rate.error


def test_a_header_that_lies_is_warned_of_once(nights):
    _, _, (first, second, third) = nights
    assert first.count("upside down") == 1
    assert first.count("warning: Candela 294M") == 1
    assert "upside down" not in second + third


def test_a_gain_that_has_changed_is_warned_of_once(nights):
    config, _, (_, second, third) = nights
    assert second.count("the gain was 0.600") == 1
    assert "SENSOR" not in third
    with CalibrationLibrary.open(config.library.path, readonly=True) as library:
        history = cameras.sensors(library)
    assert [round(one.sensor.gain.value, 1) for one in history] == [0.8, 0.6]
    assert set(history[0].warnings) == {"header", "gain"}


def test_lights_without_egain_get_the_measured_gain_and_keep_it(tmp_path):
    plan = small_plan(seed=5, shape=(256, 320), bias=6, darks=5, flats=6, flat_darks=0, lights=3)
    config = config_for(tmp_path)
    taken = [
        dataclasses.replace(
            frame, cards=tuple(card for card in frame.cards if card.keyword != "EGAIN")
        )
        for frame in frames(plan)
    ]
    for frame in taken:
        write_frame(tmp_path / "in", frame)
    run(config)
    outcome = Outcome(config)
    with CalibrationLibrary.open(config.library.path, readonly=True) as library:
        gain = cameras.sensors(library)[0].sensor.gain
    recorded = [frame.record for frame in outcome.frames if frame.frame_type == "light"]
    assert len(recorded) == 3
    for record in recorded:
        assert record.e_per_adu == gain.value
        assert record.e_per_adu == pytest.approx(GAIN, abs=5 * gain.error)
        assert record.sources["e_per_adu"] == "the camera as it was measured"
    # Frames of the library say what their headers say.
    assert all(f.record.e_per_adu is None for f in outcome.frames if f.frame_type != "light")


def test_files_that_are_gone_or_others_by_now_are_not_measured(tmp_path):
    """Camera programs use their file names again: what was a bias may be another night's flat."""
    plan = small_plan(seed=7, shape=(256, 320), bias=6, darks=0, flats=8, flat_darks=0, lights=0)
    config = config_for(tmp_path)
    written = {}
    for frame in frames(plan):
        written.setdefault(str(frame.kind), []).append(write_frame(tmp_path / "in", frame))
    run(config)
    biases, flats = written["bias"], written["flat"]
    biases[0].unlink()
    biases[1].write_bytes(flats[0].read_bytes())
    biases[2].write_bytes(b"no image")
    with CalibrationLibrary.open(config.library.path) as library:
        (before,) = cameras.sensors(library)
        again = sensors.measure(library, before.key, before.row_order, before=None, now=NIGHT)
        for path in biases:
            path.unlink(missing_ok=True)
        refused = sensors.measure(library, before.key, before.row_order, before=None, now=NIGHT)
    assert before.sensor.pairs == (4, 3)
    assert again.sensor.pairs == (4, 1)
    assert again.sensor.gain.value == pytest.approx(GAIN, rel=0.02)
    assert refused.sensor is None
    assert "two biases are needed" in refused.refused
