"""What calibration leaves behind is found with its right size, in a camera whose truth is known."""

import numpy as np
import pytest

from calib_library import flat
from daemon.light import background, residual
from daemon.light.noise import neighbour_noise
from daemon.simulator.camera import dark_ratio, make_camera

SHAPE = (448, 640)
EXPOSURE_S = 300.0
CAMERA = make_camera(SHAPE, seed=5, filters=(None,), hot_energy_spread_ev=0.0, glow_e_s=0.6)


def master(temperature_c: float, exposure_s: float = EXPOSURE_S) -> np.ndarray:
    return CAMERA.ideal_dark(exposure_s=exposure_s, temperature_c=temperature_c)


def light(temperature_c: float, *, sky_e_s: float = 0.5, seed: int = 1) -> np.ndarray:
    return CAMERA.expose(
        np.full(SHAPE, sky_e_s, np.float32),
        filter_name=None,
        exposure_s=EXPOSURE_S,
        temperature_c=temperature_c,
        rng=np.random.default_rng(seed),
    )


def cells(image: np.ndarray) -> np.ndarray:
    return residual.coarse(background.cell_means(np.ascontiguousarray(image, np.float32)))


def hot(raw: np.ndarray, dark: np.ndarray) -> residual.Estimate:
    found = residual.hot_residual(
        raw,
        residual.warm_pixels(dark, bayer=False),
        noise_adu=20.0,
        saturation_adu=65535.0,
        bayer=False,
    )
    assert found is not None
    return found


@pytest.mark.parametrize("off_c", [-3.0, -1.0, 0.0, 0.5, 2.0])
def test_hot_pixels_tell_by_how_much_the_light_was_warmer(off_c):
    found = hot(light(-10.0 + off_c), master(-10.0))
    expected = float(dark_ratio(-10.0 + off_c, energy_ev=0.57)) - 1.0
    assert found.value == pytest.approx(expected, abs=4 * found.error + 0.01)
    assert found.error < 0.02
    warmer = residual.warmer_by(found.value, temperature_c=-10.0)
    assert warmer == pytest.approx(off_c, abs=0.25)


def test_stars_on_witnesses_do_not_count():
    raw = light(-10.0).astype(np.float32)
    rng = np.random.default_rng(3)
    witnesses = residual.warm_pixels(master(-10.0), bayer=False)
    struck = rng.choice(witnesses.index, len(witnesses.index) // 20, replace=False)
    raw.ravel()[struck] += 3000.0
    assert abs(hot(raw, master(-10.0)).value) < 0.02


def test_a_dark_without_warm_pixels_tells_nothing():
    quiet = np.random.default_rng(1).normal(500.0, 2.0, SHAPE).astype(np.float32)
    found = residual.hot_residual(
        light(-10.0),
        residual.warm_pixels(quiet, bayer=False),
        noise_adu=20.0,
        saturation_adu=65535.0,
        bayer=False,
    )
    assert found is None


@pytest.mark.parametrize("taken", [0.0, 0.5, 1.0, 1.5])
def test_the_glow_that_is_left(taken):
    """The dark's glow taken off `taken` times: 1 - taken of it is left."""
    glow = CAMERA.glow_e_s * np.float32(EXPOSURE_S / CAMERA.e_per_adu)
    others = master(-10.0) - glow
    image = (light(-10.0) - others - taken * glow) / CAMERA.flats[None]
    found, _ = residual.large_scale(
        cells(image),
        residual.structure(cells(CAMERA.pedestal_adu + glow), cells(CAMERA.flats[None])),
    )
    assert found is not None
    assert found.value == pytest.approx(1.0 - taken, abs=max(0.06, 4 * found.error))
    assert found.error < 0.05


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0, 1.3])
def test_the_vignetting_that_is_left(power):
    """A flat as the power of the true one leaves F^(1 - power): (1 - power)/power of its own."""
    dark = master(-10.0)
    truth = flat.normalise(CAMERA.flats[None], bayer=False)
    applied = truth**power
    shown = applied if power else truth
    image = (light(-10.0, sky_e_s=20.0) - dark) / applied
    _, found = residual.large_scale(cells(image), residual.structure(None, cells(shown)))
    assert found is not None
    expected = (1.0 - power) / power if power else 1.0
    # The fraction is of the sky's median, which the vignette itself lowers.
    assert found.value == pytest.approx(expected, rel=0.1, abs=0.06)


def test_a_nebula_is_no_vignetting():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    nebula = 4.0 * np.exp(-((x - 200) ** 2 + (y - 300) ** 2) / (2 * 70.0**2))
    raw = light(-10.0, sky_e_s=20.0) + nebula * CAMERA.flats[None] * EXPOSURE_S / 0.8
    image = (raw - master(-10.0)) / flat.normalise(CAMERA.flats[None], bayer=False)
    _, found = residual.large_scale(
        cells(image),
        residual.structure(None, cells(flat.normalise(CAMERA.flats[None], bayer=False))),
    )
    assert found is not None
    assert not found.differs(0.15)


def test_masters_of_too_few_frames_add_noise():
    """One dark of equal noise adds √2 - 1; twenty add √(1 + 1/20) - 1."""
    rng = np.random.default_rng(4)
    raw = rng.normal(1000.0, 10.0, SHAPE).astype(np.float32)
    for n in (1, 20):
        dark = rng.normal(500.0, 10.0 / np.sqrt(n), SHAPE).astype(np.float32)
        flat_rows = np.full(SHAPE, 0.7, np.float32)
        after = residual.sky_noise((raw - dark) / flat_rows, flat_rows, bayer=False)
        found = residual.added_noise(after, neighbour_noise(raw, bayer=False))
        assert found == pytest.approx(np.sqrt(1 + 1 / n) - 1, abs=0.03)


@pytest.mark.parametrize("interference_adu", [0.0, 15.0])
def test_noise_is_held_against_what_the_camera_makes(interference_adu):
    raw = light(-10.0).astype(np.float32)
    image = raw - master(-10.0)
    image += np.random.default_rng(6).normal(0.0, interference_adu, SHAPE).astype(np.float32)
    after = residual.sky_noise(image, None, bayer=False)
    more = residual.unexplained_noise(
        after,
        raw,
        e_per_adu=0.8,
        read_noise_e=2.2,
        offset_adu=float(np.median(CAMERA.pedestal_adu)),
    )
    quiet = np.sqrt(float(np.median(raw - CAMERA.pedestal_adu)) / 0.8 + (2.2 / 0.8) ** 2)
    assert more == pytest.approx(np.hypot(quiet, interference_adu) / quiet - 1, abs=0.04)
