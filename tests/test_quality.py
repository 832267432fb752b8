import dataclasses

import numpy as np
import pytest

from daemon.light import quality, register
from daemon.light.background import cell_means, measure_background
from daemon.light.quality import Quality
from daemon.light.stars import detect
from tests.star_fields import exposed, moffat, spread_out

SHAPE = (384, 448)
GOOD = Quality(
    stars=300, fwhm_px=3.0, eccentricity=0.4, sky_adu=500.0, noise_adu=20.0, transparency=1.0,
    weight=1.0,
)  # fmt: skip


def frame(seed, *, fwhm=3.0, transparency=1.0, sky=200.0, shift=(0.0, 0.0), scene=None):
    """The same 40 stars in every frame; only the seed of the noise differs."""
    x, y = spread_out(np.random.default_rng(1), SHAPE, 56)
    flux = np.random.default_rng(2).permutation(np.geomspace(5_000, 200_000, len(x)))
    light = transparency * moffat(SHAPE, x - shift[0], y - shift[1], flux, fwhm)
    if scene is not None:
        light += scene
    image = exposed(np.random.default_rng(seed), light, sky=sky)
    background = measure_background(image)
    return detect(image, background=background, saturation_adu=60_000), background


def shifted(dx, dy):
    matrix = np.eye(3)
    matrix[:2, 2] = dx, dy
    return matrix


def test_measured_quality_is_the_scene_s():
    stars, background = frame(3, fwhm=3.4, sky=400.0)
    measured = quality.measure(stars, background)
    assert measured.stars == pytest.approx(
        len(spread_out(np.random.default_rng(1), SHAPE, 56)[0]), abs=1
    )
    assert 0.97 * 3.4 < measured.fwhm_px < 1.16 * 3.4
    assert measured.eccentricity < 0.35
    assert measured.sky_adu == pytest.approx(400, rel=0.01)
    assert measured.noise_adu == pytest.approx(np.sqrt(400 + 9), rel=0.06)
    assert measured.transparency is None
    expected = 1 / (measured.noise_adu**2 * measured.fwhm_px)
    assert measured.weight == pytest.approx(expected, rel=1e-12)


def test_eccentricity_of_trailed_stars():
    x, y = spread_out(np.random.default_rng(1), SHAPE, 56)
    # A Gaussian star shaken by a Gaussian of 1.5 px along x; pixels add 1/12 px² to both axes.
    shake, sigma = 1.5, 4.0 / 2.3548
    steps = np.linspace(-4 * shake, 4 * shake, 33)
    share = np.exp(-0.5 * (steps / shake) ** 2)
    share *= 60_000 / share.sum()
    scene = sum(
        moffat(SHAPE, x + d, y, np.full(len(x), f), 4.0, beta=200, oversampling=3)
        for d, f in zip(steps, share, strict=True)
    )
    image = exposed(np.random.default_rng(4), scene)
    background = measure_background(image)
    measured = quality.measure(detect(image, background=background), background)
    minor = sigma**2 + 1 / 12
    expected = np.sqrt(1 - minor / (minor + shake**2))
    assert measured.eccentricity == pytest.approx(expected, abs=0.04)


def test_no_stars_is_a_quality_too():
    image = np.random.default_rng(5).normal(100, 5, (128, 128)).astype(np.float32)
    image[:] = 100
    background = measure_background(image)
    measured = quality.measure(detect(image, background=background), background)
    assert (measured.stars, measured.fwhm_px, measured.weight) == (0, 0.0, 0.0)
    assert not quality.admit(measured, [])[0]


@pytest.mark.parametrize("seeing", [2.5, 3.0, 4.5])
@pytest.mark.parametrize("true", [1.0, 0.6, 0.35])
def test_transparency_whatever_the_seeing(true, seeing):
    reference, _ = frame(10)
    stars, _ = frame(11, transparency=true, fwhm=seeing, sky=350.0, shift=(4.5, -3.25))
    measured = quality.transparency(stars, reference, shifted(4.5, -3.25))
    assert measured == pytest.approx(true, rel=0.02)


@pytest.mark.parametrize("seeing", [2.5, 3.6])
def test_transparency_in_a_crowded_field(seeing):
    """Every aperture holds neighbours, and a wider one holds more of them."""
    rng = np.random.default_rng(8)
    x, y = rng.uniform((0, 0), SHAPE[::-1], (350, 2)).T
    flux = 600 * rng.random(len(x)) ** (-1 / 0.85)
    lists = []
    for seed, true, fwhm in ((50, 1.0, 3.0), (51, 0.8, seeing)):
        scene = true * moffat(SHAPE, x, y, np.minimum(flux, 2e5), fwhm, oversampling=3)
        lists.append(detect(exposed(np.random.default_rng(seed), scene)))
    measured = quality.transparency(lists[1], lists[0], np.eye(3))
    assert measured == pytest.approx(0.8, rel=0.01)


def test_transparency_is_not_fooled_by_a_variable_star():
    reference, _ = frame(12)
    stars, _ = frame(13, transparency=0.8)
    shared = stars.shared.copy()
    shared[[0, 3]] *= [[5.0], [0.1]]
    varied = dataclasses.replace(stars, shared=shared)
    assert quality.transparency(varied, reference, np.eye(3)) == pytest.approx(0.8, rel=0.02)


def test_transparency_leaves_out_saturated_stars():
    """More than half of the stars are clipped: their ratio would be nearly 1."""
    x, y = spread_out(np.random.default_rng(1), SHAPE, 56)
    flux = np.where(np.arange(len(x)) % 5 < 3, 1e6, 2e4)
    lists = []
    for seed, t in ((40, 1.0), (41, 0.6)):
        image = exposed(np.random.default_rng(seed), t * moffat(SHAPE, x, y, flux, 3.0))
        lists.append(detect(np.minimum(image, np.float32(10_000)), saturation_adu=10_000))
    assert lists[1].saturated.sum() > 0.5 * len(lists[1])
    measured = quality.transparency(lists[1], lists[0], np.eye(3))
    assert measured == pytest.approx(0.6, rel=0.02)


def test_transparency_needs_a_common_star():
    reference, _ = frame(14)
    with pytest.raises(register.RegistrationError, match="star"):
        quality.transparency(reference, reference, shifted(20_000, 0))
    with pytest.raises(register.RegistrationError, match="star"):
        quality.transparency(reference.take(slice(0, 0)), reference, np.eye(3))


def ramp(a, bx, by):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return a + bx * x + by * y


def test_background_plane_is_what_was_added():
    """Moonlight: the frame has another level and slope; t = 0.5, so the scale is 2."""
    rng = np.random.default_rng(20)
    reference = cell_means(rng.normal(ramp(500, 0.1, 0.0), 10).astype(np.float32))
    own = rng.normal(ramp(300, 0.3, -0.2), 10).astype(np.float32)
    matrix = shifted(12.0, -9.0)  # frame → reference
    a, bx, by = quality.background_plane(cell_means(own), reference, matrix, 2.0, SHAPE)
    # reference(x, y) − 2 frame(x − 12, y + 9), the same in theory:
    y, x = np.mgrid[20:360:40, 20:420:40]
    expected = 500 + 0.1 * x - 2 * (300 + 0.3 * (x - 12) - 0.2 * (y + 9))
    np.testing.assert_allclose(a + bx * x + by * y, expected, atol=1.5)
    assert bx == pytest.approx(0.1 - 0.6, abs=0.01)
    assert by == pytest.approx(0.4, abs=0.01)


def test_background_plane_of_a_turned_frame():
    rng = np.random.default_rng(21)
    ny, nx = SHAPE
    flip = np.array([[-1.0, 0, nx - 1], [0, -1, ny - 1], [0, 0, 1]])
    reference = cell_means(rng.normal(ramp(400, 0, 0), 5).astype(np.float32))
    own = cell_means(rng.normal(ramp(400, 0.5, 0), 5).astype(np.float32))
    a, bx, by = quality.background_plane(own, reference, flip, 1.0, SHAPE)
    # The frame's level at reference x is 400 + 0.5 (nx − 1 − x).
    assert a == pytest.approx(-0.5 * (nx - 1), abs=1.5)
    assert bx == pytest.approx(0.5, abs=0.01)
    assert by == pytest.approx(0, abs=0.01)


def test_background_plane_does_not_bend_for_a_halo():
    rng = np.random.default_rng(22)
    reference = cell_means(rng.normal(200, 5, SHAPE).astype(np.float32))
    own = rng.normal(150, 5, SHAPE)
    own[:70, :130] += 400  # a twentieth of the frame
    a, bx, by = quality.background_plane(
        cell_means(own.astype(np.float32)), reference, np.eye(3), 1.0, SHAPE
    )
    assert a == pytest.approx(50, abs=1)
    assert abs(bx) + abs(by) < 0.01


def test_background_plane_is_not_fooled_by_a_nebula():
    """Filaments narrower than a cell, which a dither moves about in their cells, and stars under
    two kinds of seeing; a flip, a quarter turn.
    """
    rng = np.random.default_rng(23)
    side = 512
    y, x = np.mgrid[:side, :side]
    stars = rng.uniform(0, side, (2, 600)), 400 * rng.random(600) ** (-1 / 0.85)

    def seen(matrix, fwhm, sky):
        to_sky = np.asarray(matrix)
        u = to_sky[0, 0] * x + to_sky[0, 1] * y + to_sky[0, 2]
        v = to_sky[1, 0] * x + to_sky[1, 1] * y + to_sky[1, 2]
        filaments = 600 * np.exp(-(((u + 40 * np.sin(v / 40)) % 90 - 45) ** 2) / (2 * 6**2))
        back = np.linalg.inv(to_sky)
        (sx, sy), flux = stars
        at = back[:2, :2] @ (sx, sy) + back[:2, 2:]
        return cell_means(exposed(rng, filaments + moffat(x.shape, *at, flux, fwhm), sky=sky))

    reference = seen(np.eye(3), 3.0, 300.0)
    turns = {
        "dither": [[1, 0, 11.3], [0, 1, -7.6], [0, 0, 1.0]],
        "flip": [[-1, 0, side + 4.4], [0, -1, side - 9.7], [0, 0, 1.0]],
        "turn": [[0, -1, side + 3.1], [1, 0, 5.8], [0, 0, 1.0]],
    }
    for name, matrix in turns.items():
        own = seen(matrix, 3.6, 400.0)
        a, bx, by = quality.background_plane(own, reference, np.array(matrix), 1.0, x.shape)
        off = a + bx * x + by * y + 100
        assert np.sqrt(np.mean(off**2)) < 0.7, name


def test_background_plane_of_frames_that_hardly_overlap():
    cells = np.full((6, 7), 100, dtype=np.float32)
    apart = quality.background_plane(cells, cells + 7, shifted(5000, 0), 1.0, SHAPE)
    assert apart == (0.0, 0.0, 0.0)
    cells = np.full((48, 56), 100, dtype=np.float32)
    corner = quality.background_plane(cells, cells + 7, shifted(430, 366), 1.0, SHAPE)
    assert corner == pytest.approx((7.0, 0.0, 0.0))


def test_a_flat_scale_counts_the_area_of_a_pixel():
    cells = np.full((6, 7), 100, dtype=np.float32)
    matrix = np.diag((1.25, 1.25, 1.0))
    a, _, _ = quality.background_plane(cells, cells, matrix, 1.0, SHAPE)
    assert a == pytest.approx(100 - 100 / 1.25**2, rel=1e-6)


def test_weight_is_by_the_formula():
    assert quality.weight(0.5, 10.0, 4.0) == pytest.approx(0.25 / 400)
    assert quality.weight(1.0, 0.0, 3.0) == 0
    assert quality.weight(1.0, 5.0, 0.0) == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"stars": 9}, "9 stars"),
        ({"transparency": 0.29}, "0.29"),
        ({"fwhm_px": 6.1}, "6.10 px"),
    ],
)
def test_absolute_limits(change, word):
    admitted, reason = quality.admit(dataclasses.replace(GOOD, **change), [GOOD])
    assert not admitted
    assert word in reason


def history(count, rng):
    return [
        dataclasses.replace(
            GOOD,
            fwhm_px=3 * float(np.exp(rng.normal(0, 0.03))),
            sky_adu=500 * float(np.exp(rng.normal(0, 0.02))),
            stars=int(300 * np.exp(rng.normal(0, 0.04))),
            transparency=1 + float(rng.normal(0, 0.02)),
            residual_px=0.1,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"fwhm_px": 4.5}, "FWHM"),
        ({"stars": 150}, "stars"),
        ({"sky_adu": 800.0}, "sky"),
        ({"transparency": 0.6}, "transparency"),
        ({"residual_px": 0.9}, "residual"),
    ],
)
def test_outliers_among_five_frames_or_more(change, word):
    rng = np.random.default_rng(30)
    worse = dataclasses.replace(GOOD, **change)
    assert quality.admit(worse, history(4, rng)) == (True, "")
    admitted, reason = quality.admit(worse, history(8, rng))
    assert not admitted
    assert word in reason


def test_better_than_the_others_is_welcome():
    better = dataclasses.replace(
        GOOD, fwhm_px=1.5, stars=900, sky_adu=200.0, transparency=1.5, residual_px=0.01
    )
    assert quality.admit(better, history(8, np.random.default_rng(31))) == (True, "")


def test_an_ordinary_frame_is_admitted():
    rng = np.random.default_rng(32)
    past = history(20, rng)
    assert all(quality.admit(q, past) == (True, "") for q in history(30, rng))
