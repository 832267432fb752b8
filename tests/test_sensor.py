"""A camera's figures are found again in frames made with known ones."""

import dataclasses
import math

import numpy as np
import pytest

from calib_library import sensor
from calib_library.combine import ArrayRows
from calib_library.errors import IncompatibleFramesError
from calib_library.images.row_reader import RowReader
from calib_library.sensor_record import DarkCurrent, Measured, SensorRecord
from tests.nights import shared
from tests.records import KEY, NIGHT

SHAPE = (1024, 1024)


class Camera:
    """Poisson light through a vignette, a pedestal with structure, Gaussian noise, rounding."""

    def __init__(self, seed, *, gain=0.8, read_noise=2.2, step=1, shape=SHAPE, colours=None):
        self.rng = np.random.default_rng(seed)
        self.gain, self.read_noise, self.step, self.shape = gain, read_noise, step, shape
        y, x = np.mgrid[: shape[0], : shape[1]]
        r2 = ((y / shape[0] - 0.5) ** 2 + (x / shape[1] - 0.5) ** 2) * 2
        self.flat = 1 - 0.35 * r2 + self.rng.normal(0, 0.005, shape)
        if colours:
            self.flat *= np.array(colours)[2 * (y % 2) + x % 2]
        self.pedestal = 500 * step + self.rng.normal(0, 3 * step, shape)

    def take(self, level_e, *, cosmics=500, coupling=0.0, row_noise_e=0.0, bend=0.0, shift=0.0):
        """One frame; `bend`: fraction lost at 40,000 e-; `shift`: ADU added to the pedestal."""
        charge = self.rng.poisson(np.broadcast_to(level_e * self.flat, self.shape)).astype(float)
        if coupling:
            near = np.pad(charge, 1, mode="edge")
            charge = (1 - 4 * coupling) * charge + coupling * (
                near[:-2, 1:-1] + near[2:, 1:-1] + near[1:-1, :-2] + near[1:-1, 2:]
            )
        charge -= bend * charge**2 / 40_000
        ny, nx = self.shape
        hits = self.rng.integers(0, ny, cosmics), self.rng.integers(0, nx, cosmics)
        charge[hits] += self.rng.uniform(50, 5000, cosmics)
        charge += self.rng.normal(0, self.read_noise, self.shape)
        charge += self.rng.normal(0, row_noise_e, (ny, 1)) if row_noise_e else 0.0
        adu = charge / self.gain + self.pedestal + shift
        return ArrayRows(np.clip(np.rint(adu / self.step) * self.step, 0, 65535).astype(np.uint16))

    def frames(self, count, level_e=0.0, **kwargs):
        return [self.take(level_e, **kwargs) for _ in range(count)]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("gain", "read_noise", "step", "level_e"),
    [
        (0.8, 2.2, 1, 16_000),
        (3.0, 1.8, 1, 40_000),  # the noise of a bias is 0.6 ADU: its MAD is 0 or 1
        (0.25, 1.5, 4, 8_000),  # 14 bits padded to 16
        (0.1, 1.6, 16, 5_000),  # 12 bits padded to 16
    ],
)
def test_gain_and_read_noise(seed, gain, read_noise, step, level_e):
    """Targets: 0.5 % and 2 %, with 500 cosmic rays in every frame of a megapixel."""
    camera = Camera(seed, gain=gain, read_noise=read_noise, step=step)
    found = sensor.measure(camera.frames(8, level_e), camera.frames(8), bayer=False)
    assert found.gain.value == pytest.approx(gain, rel=0.005)
    assert found.read_noise.value == pytest.approx(read_noise, rel=0.02)
    assert found.gain.error < 0.003 * gain
    assert abs(found.gain.value - gain) < 5 * found.gain.error
    assert found.step_adu == step
    assert found.offset_adu == pytest.approx(500 * step, abs=step)
    assert found.pairs == (4, 4)
    assert found.notes == ()


@pytest.mark.parametrize("seed", [4, 5])
def test_every_bayer_plane_has_its_own_gain(seed):
    camera = Camera(seed, gain=1.3, read_noise=3.0, shape=(2048, 2048), colours=(0.5, 1, 1, 0.7))
    found = sensor.measure(camera.frames(8, 30_000), camera.frames(4), bayer=True)
    assert len(found.plane_gains) == 4
    for plane in found.plane_gains:
        assert plane.value == pytest.approx(1.3, rel=0.005)
    assert found.gain.value == pytest.approx(1.3, rel=0.003)
    assert found.read_noise.value == pytest.approx(3.0, rel=0.02)


def test_twilight_flats_of_different_levels_and_flicker_are_brought_to_one_level():
    camera = Camera(6)
    rows = 1 + 0.13 * np.sin(np.arange(SHAPE[0]) / 40.0)[:, None]
    flats = []
    for level, phase in ((20_000, 1), (14_000, -1), (12_000, 1), (17_000, -1)):
        camera.flat, even = camera.flat * rows**phase, camera.flat
        flats.append(camera.take(level))
        camera.flat = even
    found = sensor.measure(flats, camera.frames(4), bayer=False)
    assert found.gain.value == pytest.approx(0.8, rel=0.005)


@pytest.mark.parametrize("bayer", [False, True])
def test_twilight_whose_gradient_turns_feigns_no_coupling(bayer):
    """Between two flats the light of the left edge over that of the right one changes by 0.6 %."""
    camera = Camera(17, colours=(0.6, 1, 1, 0.7) if bayer else None)
    slope = 0.003 * np.linspace(-1, 1, SHAPE[1])
    flats = []
    for turn in (1, -1, 1, -1, 1, -1):
        camera.flat, even = camera.flat * (1 + turn * slope), camera.flat
        flats.append(camera.take(16_000))
        camera.flat = even
    found = sensor.measure(flats, camera.frames(6), bayer=bayer)
    assert found.notes == ()
    assert abs(found.coupling.value) < 4 * found.coupling.error
    assert found.gain.value == pytest.approx(0.8, rel=0.005)


def test_noise_of_whole_rows_is_told_apart():
    camera = Camera(7, read_noise=2.0)
    found = sensor.measure(
        camera.frames(4, 16_000, row_noise_e=1.5),
        camera.frames(8, row_noise_e=1.5),
        bayer=False,
    )
    assert found.read_noise.value == pytest.approx(2.0, rel=0.02)
    assert found.row_noise == pytest.approx(1.5, rel=0.1)
    assert found.gain.value == pytest.approx(0.8, rel=0.005)


def test_neighbours_that_share_charge_are_found_and_allowed_for():
    # Uncorrected, 0.5 % of coupling makes the gain 1/((1 − 0.02)² + 4 · 0.005²) = 1.041 of itself.
    camera = Camera(8)
    found = sensor.measure(
        camera.frames(8, 16_000, coupling=0.005, cosmics=0), camera.frames(4), bayer=False
    )
    assert found.coupling.value == pytest.approx(0.005, abs=5 * found.coupling.error)
    assert found.gain.value == pytest.approx(0.8, rel=0.005)
    assert any("share" in note for note in found.notes)


def test_a_response_that_bends_is_seen():
    """At the brightest patch, of 38,000 e-, y = x − a x² falls short by 4 % · 38/40."""
    camera = Camera(9, gain=1.0)
    flats = [
        camera.take(level, bend=0.04, cosmics=0)
        for level in (40_000, 40_000, 24_000, 24_000, 10_000, 10_000)
    ]
    found = sensor.measure(flats, camera.frames(6), bayer=False)
    assert found.nonlinearity.value == pytest.approx(0.04, rel=0.15)
    straight = [camera.take(level) for level in (40_000, 40_000, 10_000, 10_000)]
    level = sensor.measure(straight, camera.frames(4), bayer=False).nonlinearity
    assert abs(level.value) < 4 * level.error < 0.02


def test_flats_without_photon_noise_are_refused_in_a_sentence():
    camera = Camera(10, shape=(256, 256))
    with pytest.raises(IncompatibleFramesError, match="saturated, or hold no light"):
        sensor.measure(camera.frames(2, 200_000), camera.frames(2), bayer=False)
    with pytest.raises(IncompatibleFramesError, match="two biases"):
        sensor.measure(camera.frames(2, 9_000), camera.frames(1), bayer=False)
    with pytest.raises(IncompatibleFramesError, match="different sizes"):
        sensor.measure(camera.frames(2, 9_000), Camera(1, shape=(128, 256)).frames(2), bayer=False)
    small = Camera(11, shape=(100, 100))
    with pytest.raises(IncompatibleFramesError, match="too small"):
        sensor.measure(small.frames(2, 9_000), small.frames(2), bayer=True)


def test_a_noise_below_the_rounding_is_said_to_be():
    camera = Camera(12, gain=8.0, read_noise=1.5, shape=(512, 512))
    found = sensor.measure(camera.frames(4, 50_000), camera.frames(4), bayer=False)
    assert any("hidden by the rounding" in note for note in found.notes)


@pytest.mark.parametrize("bayer", [False, True])
def test_dark_current(bayer):
    camera = Camera(13, gain=0.7)
    hot = camera.rng.random(SHAPE) < 0.005
    camera.flat = np.where(hot, 100.0, 1.0)
    found = sensor.dark_current(
        camera.frames(2, 6.0),
        camera.frames(2),
        exposure_s=300,
        temperature_c=-10.0,
        gain=Measured(0.7, 0.001),
        bayer=bayer,
    )
    assert not found.clamped
    assert found.rate.value == pytest.approx(6 / 300, rel=0.02)
    assert abs(found.rate.value - 6 / 300) < 5 * found.rate.error


def test_the_dark_current_of_a_camera_that_moves_its_black_level_is_that_of_the_noise():
    camera = Camera(14, gain=0.7)
    camera.flat = np.ones(SHAPE)
    found = sensor.dark_current(
        camera.frames(2, 40.0, shift=-70.0),
        camera.frames(2),
        exposure_s=100,
        temperature_c=-10.0,
        gain=Measured(0.7, 0.001),
        bayer=False,
    )
    assert found.clamped
    assert found.rate.value == pytest.approx(0.4, rel=0.03)


def test_a_measurement_is_read_again_as_it_was_kept():
    camera = Camera(16, shape=(256, 256))
    found = sensor.measure(camera.frames(2, 9_000), camera.frames(2), bayer=False)
    made = SensorRecord(
        key=KEY,
        row_order="TOP-DOWN",
        measured_at=NIGHT,
        temperature_c=-10.0,
        header_e_per_adu=None,
        sensor=found,
        darks=(
            DarkCurrent(Measured(0.01, 0.002), clamped=False, exposure_s=300.0, temperature_c=None),
        ),
        inputs=("ab", "cd"),
        refused=None,
        warnings={"header": "it is upside down"},
    )
    again = SensorRecord.restore(made.details(), key=KEY, row_order="TOP-DOWN", measured_at=NIGHT)
    assert again == made
    unsure = dataclasses.replace(
        made, sensor=dataclasses.replace(found, nonlinearity=Measured(0.0, math.inf))
    )
    assert (
        SensorRecord.restore(unsure.details(), key=KEY, row_order="TOP-DOWN", measured_at=NIGHT)
        == unsure
    )


def test_drift_beyond_its_errors_is_said_and_smaller_changes_are_not():
    def told(now):
        return sensor.drift(Measured(1.0, 0.002), Measured(now, 0.002), what="gain", unit="e-/ADU")

    assert told(1.019) is None  # below 2 %
    assert told(1.05).startswith("the gain was 1.000")
    assert sensor.drift(Measured(1, 0.1), Measured(1.4, 0.1), what="gain", unit="") is None


def test_a_header_that_is_upside_down_is_named():
    gain = Measured(1.286, 0.004)
    assert sensor.contradiction(gain, None) is None
    assert sensor.contradiction(gain, 1.2) is None
    assert "upside down" in sensor.contradiction(gain, 0.78)
    told = sensor.contradiction(gain, 2.0)
    assert "the header says 2 e-/ADU" in told
    assert "upside" not in told


def test_frames_are_left_as_they_were_and_the_answer_is_the_same_again():
    camera = Camera(15, shape=(256, 256))
    flats, biases = camera.frames(2, 9_000), camera.frames(2)
    before = [one.pixels.copy() for one in flats + biases]
    first = sensor.measure(flats, biases, bayer=True)
    assert sensor.measure(flats, biases, bayer=True) == first
    assert all(np.array_equal(a, b.pixels) for a, b in zip(before, flats + biases, strict=True))


@pytest.mark.shared
def test_a_real_camera():
    """The ASI120's two green planes must agree; its software gives 12 bits padded to 16."""
    folder = shared("asi120")
    flats = [RowReader(path) for path in sorted((folder / "flat").glob("*.fit"))]
    biases = [RowReader(path) for path in sorted((folder / "bias").glob("*.fit"))]
    found = sensor.measure(flats, biases, bayer=True)
    assert found.step_adu == 16
    green, _, _, other = found.plane_gains  # GRBG
    assert abs(green.value - other.value) < 4 * (green.error + other.error)
    assert green.error < 0.01 * green.value
    # Janesick's formula in its plainest form, on the middle of the first green plane; rows are
    # scaled by their means, for the lamp flickers. It knows nothing of coupled neighbours.
    a, b, c, d = (
        one.to_float(one.rows(352, 608))[::2, 512:768:2].astype(float)
        for one in (*flats[:2], *biases[:2])
    )
    a, b = a - c.mean(), b - c.mean()
    ratio = a.mean(axis=1, keepdims=True) / b.mean(axis=1, keepdims=True)
    plain = (a + ratio**2 * b).mean() / (np.var(a - ratio * b) - np.var(c - d))
    coupled = 1 - 8 * found.coupling.value
    assert green.value == pytest.approx(plain * coupled, rel=0.05)
    for one in (*flats, *biases):
        one.close()
