"""Levels, normalisation and checks of flats with a known vignetting."""

import numpy as np
import pytest

from calib_library.combine import ArrayRows, sigma_clipped_mean
from calib_library.flat import checks, half_split, levels, normalise, scales, with_twilight

SHAPE = (160, 220)


def vignetting():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return 1 - 1.5e-5 * ((x - 110) ** 2 + (y - 80) ** 2)


def colours():
    """Phase levels of a panel: (y even, x even), (even, odd), (odd, even), (odd, odd)."""
    return np.array([9000.0, 20000.0, 21000.0, 14000.0])


def mosaic():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return colours()[(y % 2) * 2 + x % 2]


def test_levels_are_those_of_each_colour_and_ignore_dust_and_stars():
    frame = mosaic() + np.random.default_rng(1).normal(0, 20, SHAPE)
    frame[60:64, 100:104] = 65535
    frame[90:99, 100:109] *= 0.3
    frame[80, 110] = np.nan
    assert levels(frame.astype(np.float32), bayer=True) == pytest.approx(colours(), rel=1e-3)


def test_levels_of_a_reader_equal_those_of_its_pixels():
    rng = np.random.default_rng(2)
    frame = np.rint(vignetting() * 30000 + rng.normal(0, 50, SHAPE)).astype(np.uint16)
    dark = np.full(SHAPE, 500, np.float32)
    from_reader = levels(ArrayRows(frame), bayer=False, subtract=dark)
    assert from_reader == pytest.approx(levels(frame - dark, bayer=False), rel=1e-12)
    centre = vignetting()[40:120, 54:166].mean() * 30000 - 500
    assert from_reader[0] == pytest.approx(centre, rel=2e-4)


def test_scales_bring_flats_of_a_fading_twilight_to_one_level():
    rng = np.random.default_rng(3)
    fading = np.array([1.0, 0.8, 0.64, 0.5])
    frames = [
        ArrayRows(np.rint(f * mosaic() * vignetting() + rng.normal(0, 5, SHAPE)).astype(np.uint16))
        for f in fading
    ]
    found = np.array([levels(frame, bayer=True) for frame in frames])
    factors = scales(found)
    # Relative factors are the inverse of the fading, the same for every colour.
    assert factors / factors[:1] == pytest.approx(np.tile(1 / fading[:, None], 4), rel=1e-3)
    master = sigma_clipped_mean(frames, scales=factors)
    truth = fading.mean() * mosaic() * vignetting()
    assert np.median(np.abs(master.mean / truth - 1)) < 1e-3


def test_a_frame_without_light_gets_no_weight():
    assert scales(np.array([[100.0], [0.0]])).tolist() == [[0.5], [0.0]]


@pytest.mark.parametrize("bayer", [False, True])
def test_normalise_leaves_the_shape_of_the_field_alone(bayer):
    light = mosaic() if bayer else np.full(SHAPE, 30000.0)
    flat = normalise((light * vignetting()).astype(np.float32), bayer=bayer)
    assert levels(flat, bayer=bayer) == pytest.approx(1.0, abs=1e-6)
    ratio = flat / vignetting()
    assert ratio == pytest.approx(ratio[80, 110], rel=2e-3)


def test_normalise_marks_what_gets_no_light():
    master = np.full(SHAPE, 20000.0, np.float32)
    master[0, 0], master[1, 1], master[2, 2], master[3, 3] = 900, 1100, np.nan, -50
    flat = normalise(master, bayer=False)
    assert flat[0, 0] == 0  # 0.045
    assert flat[1, 1] == np.float32(0.055)
    assert flat[2, 2] == 0
    assert flat[3, 3] == 0
    assert master[0, 0] == 900


def test_a_flat_without_light_is_refused():
    with pytest.raises(ValueError, match="no light"):
        normalise(np.zeros(SHAPE, np.float32), bayer=False)


def test_half_split_is_one_for_noise_and_more_for_a_difference():
    rng = np.random.default_rng(4)
    halves = []
    for _ in range(2):
        frames = [
            ArrayRows(np.rint(rng.normal(20000, 100, (300, 400))).astype(np.uint16))
            for _ in range(10)
        ]
        halves.append(sigma_clipped_mean(frames))
    a, b = halves
    assert half_split(a.mean, a.variance, b.mean, b.variance) == pytest.approx(1, abs=0.02)
    # A ripple of 0.2 %: amplitude 40 ADU, mean square 800 beside a variance of 2 × 1000.
    ripple = 40 * np.sin(np.arange(400) / 5).astype(np.float32)
    assert half_split(a.mean + ripple, a.variance, b.mean, b.variance) == pytest.approx(
        1.4, abs=0.05
    )


def test_checks_say_what_is_wrong():
    good = np.full((20, 1), 30000.0)
    assert checks(good) == ()
    assert "no longer linear" in checks(good * 2)[0]
    assert "full scale" in checks(good / 20)[0]
    assert "factor of 3" in checks(good * np.linspace(0.4, 1.5, 20)[:, None])[0]
    assert "take at least 5" in checks(good[:3])[0]
    shaded = np.ones(SHAPE, np.float32)
    shaded[:10] = 0
    assert "covers the sensor" in checks(good, flat=shaded)[0]


# --- twilight with dome --------------------------------------------------------------------------


def telescope(shape, *, seed=7):
    """True response: vignetting, dust shadows, and pixels that differ by 0.5 %."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    v, u = y / shape[0] - 0.5, x / shape[1] - 0.5
    response = 1 - 0.5 * (u**2 + v**2)
    for cy, cx in rng.uniform(0, 1, (6, 2)) * shape:
        response *= 1 - 0.06 * (np.abs(np.hypot(y - cy, x - cx) - 6) < 3)
    return response * rng.normal(1, 0.005, shape)


def screen(shape):
    """Light of a dome: a gradient, and the glare of a lamp; 2.5 % rms from even."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    v, u = y / shape[0] - 0.5, x / shape[1] - 0.5
    glare = 0.07 * np.exp(-((u - 0.2) ** 2 + (v + 0.15) ** 2) / (2 * 0.22**2))
    light = 1 + 0.03 * u - 0.02 * v + glare
    return light / light.mean()


def flat_of(light, *, electrons, frames, seed, bayer):
    """Master of `frames` flats of so many electrons each, normalised."""
    total = np.random.default_rng(seed).poisson(electrons * frames * light)
    return normalise((total / frames).astype(np.float32), bayer=bayer)


def large_scale(error, *, bayer, block=64):
    """Rms of an image's means over blocks, about its mean; of a mosaic's phases the worst."""

    def one(plane):
        size = block // 2 if bayer else block
        ny, nx = (n // size for n in plane.shape)
        cut = plane[: ny * size, : nx * size].astype(np.float64)
        return np.std(cut.reshape(ny, size, nx, size).mean(axis=(1, 3)))

    return max(one(error[dy::2, dx::2]) for dy in (0, 1) for dx in (0, 1)) if bayer else one(error)


def by_polynomial(dome, degree=3):
    """The usual way: the dome's flat over a cubic polynomial fitted to it (less a flat response's
    own vignetting, which here is known and is given to it)."""
    ny, nx = dome.shape
    y, x = np.mgrid[:ny, :nx]
    v, u = y / ny - 0.5, x / nx - 0.5
    terms = [u**i * v**j for i in range(degree + 1) for j in range(degree + 1 - i)]
    matrix = np.stack([t[::4, ::4].ravel() for t in terms], axis=1)
    vignette = 1 - 0.5 * (u**2 + v**2)
    found = np.linalg.lstsq(matrix, (dome / vignette)[::4, ::4].ravel(), rcond=None)[0]
    return dome / sum(c * t for c, t in zip(found, terms, strict=True))


@pytest.mark.parametrize(("shape", "bayer"), [((1100, 1390), False), ((1101, 1391), True)])
def test_twilight_gives_the_dome_its_large_scale(shape, bayer):
    response = telescope(shape)
    colours = np.array([0.5, 1.0, 1.1, 0.8])
    y, x = np.mgrid[: shape[0], : shape[1]]
    colour = colours[(y % 2) * 2 + x % 2] if bayer else 1.0
    dome = flat_of(
        response * screen(shape) * colour, electrons=30000, frames=25, seed=1, bayer=bayer
    )
    twilight = flat_of(response * colour, electrons=20000, frames=5, seed=2, bayer=bayer)
    made = with_twilight(dome, twilight, bayer=bayer)
    assert made.dtype == np.float32
    assert made.shape == shape
    assert levels(made, bayer=bayer) == pytest.approx(np.ones(4 if bayer else 1), abs=1e-3)
    alone = large_scale(dome / response, bayer=bayer)
    assert 0.018 < alone < 0.032
    assert large_scale(made / response, bayer=bayer) < 0.0004
    if not bayer:
        assert large_scale(made / response, bayer=False) < 0.3 * large_scale(
            by_polynomial(dome) / response, bayer=False
        )

    def pixels(image):
        step = 2 if bayer else 1
        error = image / response / np.median(image / response)
        return 1.4826 * np.median(np.abs(error[:, step:] - error[:, :-step])) / np.sqrt(2)

    # The detail stays the dome's, whose photons are 7.5 times the twilight's.
    assert pixels(made) == pytest.approx(pixels(dome / screen(shape)), rel=0.01)
    assert pixels(twilight) > 2.5 * pixels(dome)


@pytest.mark.parametrize("shape", [(5, 7), (20, 400), (40, 90), (65, 65)])
@pytest.mark.parametrize("bayer", [False, True])
def test_a_plane_between_them_is_followed_to_the_edges_at_any_size(shape, bayer):
    y, x = np.mgrid[: shape[0], : shape[1]]
    slope = 1 + 1e-4 * (x - shape[1] / 2) - 2e-4 * (y - shape[0] / 2)
    dome = np.ones(shape, np.float32)
    made = with_twilight(dome, slope.astype(np.float32), bayer=bayer)
    # Of an axis of one block only the level is known.
    blocks = [max(1, round(size / 32)) for size in shape]
    known = 1 + (x - shape[1] / 2) * (1e-4 if blocks[1] > 1 else 0)
    known -= (y - shape[0] / 2) * (2e-4 if blocks[0] > 1 else 0)
    error = made / known
    assert np.ptp(error) < 5e-4


def test_dead_pixels_stay_dead_and_tell_nothing():
    dome, twilight = np.ones((130, 200), np.float32), np.ones((130, 200), np.float32)
    dome[:64, :64] = 0.0
    dome[100, 100] = 0.0
    twilight[90:110, 150:190] = 0.0  # of one side only
    made = with_twilight(dome, twilight, bayer=False)
    assert (made == 0.0).sum() == 64 * 64 + 1
    assert made == pytest.approx(dome, abs=1e-6)
