"""Guesses from headers against astropy's projections; shifts of whole images against truth."""

import dataclasses

import numpy as np
import pytest
from astropy.wcs import WCS
from scipy.ndimage import gaussian_filter

from calib_library.frame import Card, FrameType
from daemon.light import fallback, register
from daemon.light.background import measure_background
from tests.records import key, record
from tests.star_fields import exposed

WIDTH, HEIGHT = 6248, 4176


def light(**fields):
    return record(FrameType.LIGHT, key=key(width=WIDTH, height=HEIGHT), **fields)


def solved(ra, dec, angle_deg, *, scale=3e-4, mirrored=False, style="CD"):
    """A solved image: its astropy WCS, and its cards."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [3000.0, 2200.0]
    a = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    steps = np.array([scale if mirrored else -scale, scale])
    linear = turn @ np.diag(steps)
    wcs.wcs.cd = linear
    values = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra, "CRVAL2": dec}
    values |= {"CRPIX1": 3000.0, "CRPIX2": 2200}
    if style == "CD":
        values |= {f"CD{i + 1}_{j + 1}": linear[i, j] for i in (0, 1) for j in (0, 1)}
    elif style == "PC":
        pc = np.diag(1 / steps) @ linear
        values |= {f"PC{i + 1}_{j + 1}": pc[i, j] for i in (0, 1) for j in (0, 1)}
        values |= {"CDELT1": steps[0], "CDELT2": steps[1]}
    else:
        values |= {"CDELT1": steps[0], "CDELT2": steps[1], "CROTA2": angle_deg}
    return wcs, [Card(name, value) for name, value in values.items()]


@pytest.mark.parametrize("style", ["CD", "PC", "CROTA"])
@pytest.mark.parametrize(
    ("ra", "dec", "angle", "mirrored"),
    [(83.8, -5.4, 3.0, False), (83.1, -5.9, 182.0, True), (359.9, 88.9, 40.0, False)],
)
def test_two_solved_headers_give_the_projection_between_them(ra, dec, angle, mirrored, style):
    ours, cards = solved(ra, dec, angle, mirrored=mirrored, style=style)
    theirs, reference = solved(ra + 0.2, dec + 0.1, 1.0, mirrored=mirrored, style=style)
    matrix = fallback.wcs_guess(light(), light(), cards=cards, reference_cards=reference)
    grid = np.stack(np.meshgrid(np.linspace(0, WIDTH, 5), np.linspace(0, HEIGHT, 5)), axis=-1)
    xy = grid.reshape(-1, 2)
    expected = theirs.wcs_world2pix(ours.wcs_pix2world(xy, 0), 0)
    np.testing.assert_allclose(register.apply(matrix, xy), expected, atol=1e-5)


def test_solved_headers_of_another_field_or_without_sense_give_nothing():
    _, cards = solved(83.8, -5.4, 3.0)
    for ra, dec in ((93.8, -5.4), (263.8, 5.4), (83.8, 84.6)):
        _, other = solved(ra, dec, 3.0)
        assert fallback.wcs_guess(light(), light(), cards=cards, reference_cards=other) is None
    replaced = {"CRVAL1": None, "CTYPE1": "GLON-CAR", "CD1_1": 0.0, "CRPIX2": "x"}
    for name, value in replaced.items():
        broken = [Card(c.keyword, value) if c.keyword == name else c for c in cards]
        if name == "CD1_1":
            broken = [Card(c.keyword, 0.0) if c.keyword[:2] == "CD" else c for c in broken]
        assert fallback.wcs_guess(light(), light(), cards=broken, reference_cards=cards) is None


def test_without_a_solution_the_side_of_the_pier_and_the_rotator_tell_the_turn():
    middle = np.array([[(WIDTH - 1) / 2, (HEIGHT - 1) / 2], [(WIDTH - 1) / 2 + 100, 0]])
    flipped = fallback.wcs_guess(light(pier_side="east"), light(pier_side="west"))
    np.testing.assert_allclose(flipped[:2, :2], -np.eye(2), atol=1e-12)
    same = fallback.wcs_guess(light(pier_side="east"), light(pier_side="east"))
    np.testing.assert_allclose(same, np.eye(3), atol=1e-9)
    turned = fallback.wcs_guess(light(rotator_deg=100.0), light(rotator_deg=70.0))
    np.testing.assert_allclose(register.apply(turned, middle[:1]), middle[:1], atol=1e-6)
    # Row 0 on top, y downwards: anticlockwise by 30° takes +x towards −y.
    np.testing.assert_allclose(turned[:2, 0], (np.cos(np.pi / 6), -np.sin(np.pi / 6)), atol=1e-12)
    upside = fallback.wcs_guess(
        light(rotator_deg=100.0, row_order="BOTTOM-UP"), light(rotator_deg=70.0)
    )
    np.testing.assert_allclose(upside[:2, 0], (np.cos(np.pi / 6), np.sin(np.pi / 6)), atol=1e-12)
    assert fallback.wcs_guess(light(), light()) is None
    assert fallback.wcs_guess(light(pier_side="east"), light()) is None


def test_telescopes_that_pointed_elsewhere_give_nothing():
    here = light(
        pier_side="east", ra_deg=359.9, dec_deg=60.0, pixel_size_um=3.76, focal_length_mm=500.0
    )
    # 1.55"/px: the diagonal is 3.24°, at 60° of declination 6.5° of right ascension.
    for ra, dec, near in ((3.0, 60.0, True), (8.0, 60.0, False), (359.9, 64.0, False)):
        other = dataclasses.replace(here, ra_deg=ra, dec_deg=dec)
        assert (fallback.wcs_guess(other, here) is not None) == near
    unknown = dataclasses.replace(here, focal_length_mm=None, dec_deg=64.0)
    assert fallback.wcs_guess(unknown, here) is not None


# Phase correlation.


def scene(rng, size):
    """Blobs of several sizes without a star among them, σ = 1."""
    image = np.zeros((size, size))
    for width in (3.0, 6.0, 15.0):
        image += width * gaussian_filter((rng.random((size, size)) < 0.002).astype(float), width)
    return image / image.std()


def cut(image, x, y, shape):
    """A window whose first pixel is at (x, y) px of `image`, by the shift theorem."""
    ny, nx = shape
    fy, fx = np.fft.fftfreq(image.shape[0])[:, None], np.fft.fftfreq(image.shape[1])[None, :]
    moved = np.fft.ifft2(np.fft.fft2(image) * np.exp(2j * np.pi * (fx * x + fy * y))).real
    return moved[:ny, :nx]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_shift_of_a_nebula_is_found_within_the_error_it_states(seed, flip):
    rng = np.random.default_rng([1, seed])
    sky, shape = scene(rng, 640), (256, 320)
    shift = rng.uniform(-25, 25, 2)
    reference = 5 * cut(sky, 100, 110, shape) + rng.normal(0, 1, shape)
    # The frame shows at (x, y) what the reference shows at (x, y) + shift.
    frame = 5 * cut(sky, 100 + shift[0], 110 + shift[1], shape)
    frame = (frame[::-1, ::-1] if flip else frame) + rng.normal(0, 1, shape)
    found = fallback.phase_shift(frame.astype(np.float32), reference.astype(np.float32), factor=4)
    assert found.flipped == flip
    assert found.method == "phase correlation"
    corner = np.array([[0.0, 0.0], [1279.0, 1023.0]])
    expected = (corner[::-1] if flip else corner) + 4 * shift
    error = register.apply(found.matrix, corner) - expected
    assert 0.01 < found.rms_px < 1.0
    # 3.5 σ of a distance in the plane: one in 500.
    assert np.hypot(*error[0]) < 3.5 * found.rms_px / np.sqrt(2)
    np.testing.assert_allclose(error[0], error[1], atol=1e-9)


@pytest.mark.parametrize("kind", ["noise", "scenes"])
def test_unrelated_images_are_refused(kind):
    for seed in range(20):
        rng = np.random.default_rng([2, seed])
        pair = rng.normal(0, 1, (2, 200, 260))
        if kind == "scenes":
            pair += [20 * scene(rng, 260)[:200] for _ in range(2)]
        with pytest.raises(register.RegistrationError, match="phase correlation"):
            fallback.phase_shift(*pair.astype(np.float32), factor=2)


def test_what_stays_with_the_sensor_is_not_taken_for_the_sky():
    rng = np.random.default_rng(3)
    shape = (256, 320)
    hot = np.zeros(shape)
    hot[rng.integers(0, 256, 400), rng.integers(0, 320, 400)] = rng.uniform(10, 1000, 400)
    columns = rng.normal(0, 3, (1, 320)) + rng.normal(0, 3, (256, 1))
    pair = [(hot + columns + rng.normal(0, 1, shape)).astype(np.float32) for _ in range(2)]
    with pytest.raises(register.RegistrationError):
        fallback.phase_shift(*pair, factor=2)
    # Where the sky is there too, at rest, it is found.
    sky = 5 * scene(rng, 320)[:256]
    found = fallback.phase_shift(*[(image + sky).astype(np.float32) for image in pair], factor=2)
    assert np.hypot(*found.matrix[:2, 2]) < 0.3
    assert not found.flipped


def test_blank_images_and_wrong_shapes():
    blank = np.zeros((64, 64), np.float32)
    with pytest.raises(register.RegistrationError):
        fallback.phase_shift(blank, blank, factor=2)
    for a, b in ((blank, blank[:-1]), (blank[:20], blank[:20]), (blank[None], blank[None])):
        with pytest.raises(ValueError, match="shape"):
            fallback.phase_shift(a, b, factor=2)


def test_phase_correlation_changes_nothing_and_repeats_itself():
    rng = np.random.default_rng(4)
    pair = [(5 * scene(rng, 128) + rng.normal(0, 1, (128, 128))).astype(np.float32)] * 2
    kept = pair[0].copy()
    pair[0].setflags(write=False)
    first = fallback.phase_shift(*pair, factor=2)
    again = fallback.phase_shift(*pair, factor=2)
    np.testing.assert_array_equal(first.matrix, again.matrix)
    np.testing.assert_array_equal(pair[0], kept)


def test_small_images_are_means_without_their_background():
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:254, :259]
    blob = 50 * np.exp(-((x - 100) ** 2 + (y - 90) ** 2) / 50)
    image = exposed(rng, blob + 0.2 * x, sky=300.0)
    image[10, 10] = np.nan
    small = fallback.small_image(image, measure_background(image), factor=4)
    assert small.shape == (63, 64)
    assert small.dtype == np.float32
    assert small[2, 2] == 0
    expected = blob[:252, :256].reshape(63, 4, 64, 4).mean(axis=(1, 3))
    difference = small - expected
    # Poisson noise of some 320 e- and read noise of 3, over 16 px.
    noise = np.sqrt(330 + 9) / 4
    assert abs(np.median(difference)) < 0.3 * noise
    assert 0.9 < difference.std() / noise < 1.2
