import dataclasses

import astroalign
import numpy as np
import pytest
from astropy.io import fits

from daemon.light import distortion, register
from daemon.light.stars import StarList, detect
from tests.star_fields import exposed, moffat, shared

SHAPE = (736, 1092)


def star_list(xy, flux):
    order = np.argsort(-flux)
    xy, flux = xy[order], flux[order]
    one = np.ones(len(flux))
    return StarList(
        xy[:, 0], xy[:, 1], flux, 3 * one, flux, one, flux, np.column_stack((flux, flux)),
        np.zeros(len(flux), bool), len(flux), 9.0,
    )  # fmt: skip


def similarity(degrees, shift, *, scale=1.0, shape=SHAPE):
    """Frame → reference: turned about the frame's centre, then shifted."""
    a = np.deg2rad(degrees)
    centre = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    matrix[:2, 2] = centre + shift - matrix[:2, :2] @ centre
    return matrix


def moved(matrix, xy):
    homogeneous = np.column_stack((xy, np.ones(len(xy)))) @ matrix.T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def pair(rng, truth, count, *, missing=0.0, spurious=0.0, noise=0.02, shape=SHAPE):
    """Star lists of a frame and its reference, by the true transform frame → reference."""
    ny, nx = shape
    reference = rng.uniform(0, (nx, ny), (count, 2))
    flux = 1 + rng.pareto(1.0, count)
    frame = moved(np.linalg.inv(truth), reference)
    keep = rng.random(count) >= missing
    keep &= np.all((frame > 0) & (frame < (nx, ny)), axis=1)
    extra = int(spurious * count)
    xy = np.vstack((frame[keep], rng.uniform(0, (nx, ny), (extra, 2))))
    brightness = np.concatenate(
        (flux[keep] * np.exp(rng.normal(0, 0.1, keep.sum())), 1 + rng.pareto(1.0, extra))
    )
    frame_list = star_list(xy + rng.normal(0, noise, xy.shape), brightness)
    return frame_list, star_list(reference + rng.normal(0, noise, reference.shape), flux)


def error_px(found, truth, shape=SHAPE):
    """Root mean square distance over the whole frame between two transforms."""
    ny, nx = shape
    grid = np.stack(np.meshgrid(np.linspace(0, nx, 9), np.linspace(0, ny, 9)), -1).reshape(-1, 2)
    return np.sqrt(np.mean(np.sum((moved(found, grid) - moved(truth, grid)) ** 2, axis=1)))


@pytest.mark.parametrize("degrees", [0.0, 1.37, -2.9, 180.0, 178.2])
@pytest.mark.parametrize("count", [8, 30, 400])
def test_clean_fields_near_the_two_sides_of_the_pier(count, degrees):
    rng = np.random.default_rng([1, count, int(degrees * 10) + 1000])
    truth = similarity(degrees, rng.uniform(-20, 20, 2))
    frame, reference = pair(rng, truth, count, noise=0.02)
    found = register.register(frame, reference, shape=SHAPE)
    assert found.method == "voting"
    assert found.flipped == (degrees > 90)
    assert error_px(found.matrix, truth) < 0.05
    assert found.matched > 0.7 * len(frame)
    assert found.rms_px < 0.06  # √2 · √2 · 0.02 px is expected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [40, 250])
def test_two_fifths_missing_and_two_fifths_spurious(count, seed):
    rng = np.random.default_rng([2, count, seed])
    truth = similarity(rng.uniform(-3, 3) + 180 * (seed % 2), rng.uniform(-80, 80, 2))
    frame, reference = pair(rng, truth, count, missing=0.4, spurious=0.4)
    found = register.register(frame, reference, shape=SHAPE)
    assert error_px(found.matrix, truth) < 0.05


@pytest.mark.parametrize("degrees", [37.0, 90.0, 271.3])
def test_any_rotation(degrees):
    rng = np.random.default_rng([3, int(degrees)])
    truth = similarity(degrees, (15.0, -22.0))
    frame, reference = pair(rng, truth, 120, missing=0.2, spurious=0.2)
    found = register.register(frame, reference, shape=SHAPE)
    assert error_px(found.matrix, truth) < 0.05
    assert found.flipped == (90 < degrees < 270)


def test_another_scale_is_left_to_astroalign():
    rng = np.random.default_rng(4)
    truth = similarity(25.0, (5.0, 9.0), scale=1.3)
    frame, reference = pair(rng, truth, 60)
    found = register.register(frame, reference, shape=SHAPE)
    assert found.method == "astroalign"
    assert error_px(found.matrix, truth) < 0.1


@pytest.mark.parametrize("count", [8, 60, 500])
@pytest.mark.parametrize("shape", [(256, 320), SHAPE])
def test_unrelated_fields_are_refused(shape, count):
    for seed in range(2):
        rng = np.random.default_rng([5, seed, count])
        frame, _ = pair(rng, np.eye(3), count, shape=shape)
        _, reference = pair(rng, np.eye(3), count, shape=shape)
        with pytest.raises(register.RegistrationError, match=str(count)):
            register.register(frame, reference, shape=shape)


def test_chance_is_not_taken_for_a_match():
    """Twenty stars in so small a field that many lie on each other whatever one does."""
    shape = (60, 70)
    for seed in range(30):
        rng = np.random.default_rng([9, seed, 20])
        frame, _ = pair(rng, np.eye(3), 20, shape=shape)
        _, reference = pair(rng, np.eye(3), 20, shape=shape)
        with pytest.raises(register.RegistrationError):
            register.register(frame, reference, shape=shape)


def test_a_rotation_just_beyond_the_first_trials_is_not_half_matched():
    """In a crowd the middle of the frame matches at a wrong angle; its corners do not."""
    shape = (256, 320)
    for seed in range(12):
        rng = np.random.default_rng([13, seed])
        truth = similarity(3.1 + 0.3 * seed, rng.uniform(-8, 8, 2), shape=shape)
        frame, reference = pair(rng, truth, 500, shape=shape)
        found = register.register(frame, reference, shape=shape)
        assert error_px(found.matrix, truth, shape) < 0.05


def test_too_few_stars_are_refused_with_their_number():
    rng = np.random.default_rng(6)
    frame, reference = pair(rng, np.eye(3), 4)
    with pytest.raises(register.RegistrationError, match="the frame has 4"):
        register.register(frame, reference, shape=SHAPE)
    empty = detect(np.zeros((64, 64), dtype=np.float32))
    with pytest.raises(register.RegistrationError, match="the frame has 0"):
        register.register(empty, reference, shape=SHAPE)


def test_stars_on_one_spot_are_refused_and_do_not_crash():
    rng = np.random.default_rng(7)
    _, reference = pair(rng, np.eye(3), 50)
    spot = star_list(np.full((20, 2), 100.0), np.arange(1.0, 21.0))
    with pytest.raises(register.RegistrationError):
        register.register(spot, reference, shape=SHAPE)


def test_the_reference_itself_is_the_identity():
    rng = np.random.default_rng(8)
    frame, _ = pair(rng, np.eye(3), 50)
    found = register.register(frame, frame, shape=SHAPE)
    assert found.method == "identity"
    np.testing.assert_array_equal(found.matrix, np.eye(3))
    # The same stars in another object, as they come back from the ledger.
    again = register.register(StarList.from_json(frame.to_json()), frame, shape=SHAPE)
    np.testing.assert_allclose(again.matrix, np.eye(3), atol=1e-9)


def test_differential_refraction_is_fitted_by_a_richer_model():
    rng = np.random.default_rng(9)
    truth = similarity(0.5, (8.0, -5.0))
    truth[:2, :2] = truth[:2, :2] @ np.diag((1.0, 1.002))  # squeezed by 0.2 % towards the horizon
    frame, reference = pair(rng, truth, 300)
    found = register.register(frame, reference, shape=SHAPE)
    assert found.model in {"affine", "homography"}
    assert error_px(found.matrix, truth) < 0.05


def test_a_similarity_is_not_upgraded_without_need():
    models = []
    for seed in range(8):
        rng = np.random.default_rng([10, seed])
        frame, reference = pair(rng, similarity(1.0, (3.0, 4.0)), 300)
        models.append(register.register(frame, reference, shape=SHAPE).model)
    assert models.count("similarity") >= 7


def test_it_is_deterministic():
    rng = np.random.default_rng(11)
    frame, reference = pair(rng, similarity(70.0, (3.0, 4.0)), 150, missing=0.3, spurious=0.3)
    first = register.register(frame, reference, shape=SHAPE)
    for _ in range(3):
        again = register.register(frame, reference, shape=SHAPE)
        np.testing.assert_array_equal(again.matrix, first.matrix)


# Fields that are bent. A lens moves a star from its place in the plane, q, to q + D(q).

BIG = (4176, 6248)


def lens(xy, radial, keystone, shape=BIG):
    """D: so many px along the radius, and of keystone, at the corners."""
    ny, nx = shape
    u = (xy - [(nx - 1) / 2, (ny - 1) / 2]) / (np.hypot(nx, ny) / 2)
    square = np.sum(u**2, axis=1, keepdims=True)
    return xy + radial * u * square + keystone * u * u[:, 1:]


def unlens(xy, radial, keystone, shape=BIG):
    place = xy.copy()
    for _ in range(60):
        place -= lens(place, radial, keystone, shape) - xy
    return place


def bent_pair(rng, turn, lenses, *, missing=0.0, noise=0.05, stars=1200, shape=BIG):
    """Lists of the 500 brightest stars; `turn` is the similarity between the undistorted planes,
    `lenses` those of the frame and of the reference.
    """
    ny, nx = shape
    sky = rng.uniform((-0.15 * nx, -0.15 * ny), (1.15 * nx, 1.15 * ny), (stars, 2))
    flux = 1 + rng.pareto(1.0, stars)
    lists = []
    for plane, glass in ((moved(np.linalg.inv(turn), sky), lenses[0]), (sky, lenses[1])):
        xy = lens(plane, *glass, shape)
        keep = np.all((xy > 0) & (xy < (nx, ny)), axis=1) & (rng.random(stars) >= missing)
        extra = int(missing * keep.sum())
        xy = np.vstack(
            (xy[keep] + rng.normal(0, noise, (keep.sum(), 2)), rng.uniform(0, (nx, ny), (extra, 2)))
        )
        bright = np.concatenate(
            (flux[keep] * np.exp(rng.normal(0, 0.1, keep.sum())), 1 + rng.pareto(1.0, extra))
        )
        order = np.argsort(-bright)[:500]
        lists.append(star_list(xy[order], bright[order]))
    return lists


def bent_errors(found, turn, lenses, shape=BIG):
    """Distance from the truth (px) on a grid over the overlap, to its corners."""
    ny, nx = shape
    grid = np.stack(np.meshgrid(np.linspace(0, nx - 1, 15), np.linspace(0, ny - 1, 11)), -1)
    grid = grid.reshape(-1, 2)
    truth = lens(moved(np.linalg.inv(turn), unlens(grid, *lenses[1], shape)), *lenses[0], shape)
    inside = np.all((truth >= 0) & (truth <= (nx - 1, ny - 1)), axis=1)
    there = distortion.to_frame(found.matrix, found.distortion, grid)
    return np.hypot(*(there - truth)[inside].T)


NO_LENS = (0.0, 0.0)


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize(
    ("degrees", "shift", "lenses", "model"),
    [
        (0.3, (12, -30), ((60, 0), NO_LENS), "third-order"),
        (179.6, (40, -70), ((60, 0), NO_LENS), "third-order"),
        (0.3, (12, -30), ((40, 40), NO_LENS), "third-order"),
        (0.2, (60, -40), ((60, 0), (60, 0)), "second-order"),
        (180.4, (60, -40), ((60, 0), (60, 0)), "second-order"),
        (37.0, (60, -40), ((40, 20), (40, 20)), "second-order"),
        (0.4, (60, -40), ((0, 60), (0, 60)), "homography"),
        (180.4, (60, -40), ((0, 60), (0, 60)), "homography"),
    ],
)
def test_fields_bent_by_60_px_at_the_corners(degrees, shift, lenses, model, missing):
    turn = similarity(degrees, shift, shape=BIG)
    for seed in range(2):
        rng = np.random.default_rng([20, seed, int(degrees)])
        frame, reference = bent_pair(rng, turn, lenses, missing=missing)
        found = register.register(frame, reference, shape=BIG)
        error = bent_errors(found, turn, lenses)
        assert np.sqrt(np.mean(error**2)) < 0.03
        assert error.max() < 0.15
        assert found.model == model
        assert (found.distortion is not None) == (model in {"second-order", "third-order"})
        assert found.flipped == (90 < degrees < 270)
        # Of 500 stars in either list, all but those near the border are common.
        assert found.matched > 350 * (1 - missing) ** 2
        assert found.rms_px < 1.2 * 0.05 * 2


def test_what_a_similarity_leaves_of_a_bent_field():
    """So that the test above is one: 6 px, as the matrix that stands beside the distortion."""
    turn = similarity(0.3, (12, -30), shape=BIG)
    frame, reference = bent_pair(np.random.default_rng(21), turn, ((60, 0), NO_LENS))
    found = register.register(frame, reference, shape=BIG)
    bare = dataclasses.replace(found, distortion=None)
    left = np.sqrt(np.mean(bent_errors(bare, turn, ((60, 0), NO_LENS)) ** 2))
    assert 4 < left < 8


def test_a_clean_field_is_registered_to_a_hundredth_of_a_pixel():
    errors = []
    for seed in range(4):
        rng = np.random.default_rng([22, seed])
        turn = similarity(0.3 + 180 * (seed % 2), (12, -30), shape=BIG)
        frame, reference = bent_pair(rng, turn, (NO_LENS, NO_LENS), noise=0.03)
        found = register.register(frame, reference, shape=BIG)
        errors.append(bent_errors(found, turn, (NO_LENS, NO_LENS)))
        assert found.distortion is None
    assert np.sqrt(np.mean(np.square(errors))) < 0.01


def test_a_clean_field_is_registered_to_a_hundredth_of_a_pixel_from_its_pixels():
    """Two exposures of 250 stars, of different seeing, found and measured as the daemon does."""
    shape, errors = (900, 1200), []
    for seed in range(2):
        rng = np.random.default_rng([77, seed])
        x, y = rng.uniform(20, 1180, 250), rng.uniform(20, 880, 250)
        flux = 10 ** rng.uniform(3.3, 5.3, 250)
        turn = similarity(0.3 + 180 * seed, (6.3, -4.7), shape=shape)
        there = register.apply(turn, np.column_stack((x, y)))
        frame = detect(exposed(rng, moffat(shape, x, y, flux, 3.0)))
        reference = detect(exposed(rng, moffat(shape, *there.T, flux, 3.4)))
        found = register.register(frame, reference, shape=shape)
        grid = np.stack(np.meshgrid(np.linspace(0, 1199, 9), np.linspace(0, 899, 9)), axis=-1)
        off = register.apply(found.matrix, grid.reshape(-1, 2)) - register.apply(
            turn, grid.reshape(-1, 2)
        )
        errors.append(np.mean((off**2).sum(axis=1)))
    assert np.sqrt(np.mean(errors)) < 0.007


def test_below_a_hundred_matches_there_is_no_polynomial():
    turn = similarity(0.3, (12, -30), shape=BIG)
    lenses = ((8, 0), NO_LENS)
    rng = np.random.default_rng(23)
    few = register.register(*bent_pair(rng, turn, lenses, stars=125), shape=BIG)
    assert few.matched < 100
    assert few.distortion is None
    many = register.register(*bent_pair(rng, turn, lenses, stars=250), shape=BIG)
    assert many.matched > 100
    assert many.distortion is not None


def test_a_polynomial_is_not_stretched_over_what_no_star_holds():
    """Bent, but with stars in the left half of the frame only."""
    turn = similarity(0.3, (12, -30), shape=BIG)
    lenses = ((20, 0), NO_LENS)
    frame, reference = bent_pair(np.random.default_rng(24), turn, lenses, stars=1500)
    left = [stars.take(np.flatnonzero(stars.x < 2200)) for stars in (frame, reference)]
    assert min(len(stars) for stars in left) > 120
    half = register.register(*left, shape=BIG)
    assert half.distortion is None or bent_errors(half, turn, lenses).max() < 2
    whole = register.register(frame, reference, shape=BIG)
    assert whole.distortion is not None


def test_unrelated_crowds_do_not_grow_together():
    """A polynomial is pliable: five hundred stars in a small field must not be bent onto others."""
    for shape in ((120, 140), (256, 320), (400, 500)):
        for seed in range(3):
            rng = np.random.default_rng([25, seed, shape[0]])
            frame, _ = pair(rng, np.eye(3), 400, shape=shape)
            _, reference = pair(rng, np.eye(3), 400, shape=shape)
            with pytest.raises(register.RegistrationError):
                register.register(frame, reference, shape=shape)


# Hints.


def test_a_hint_from_the_headers_finds_what_nothing_else_does():
    """Another scale and angle, 60 % missing and 60 % spurious: too much for triangles, and votes
    need the scale. The hint's shift is wrong by hundreds of pixels.
    """
    helped = 0
    for seed in range(4):
        rng = np.random.default_rng([26, seed])
        truth = similarity(25.0, (5.0, 9.0), scale=1.3)
        frame, reference = pair(rng, truth, 60, missing=0.6, spurious=0.6)
        hint = similarity(24.2, (-190.0, 140.0), scale=1.3)
        found = register.register(frame, reference, shape=SHAPE, hint=hint)
        assert error_px(found.matrix, truth) < 0.1
        helped += found.method == "header"
    assert helped >= 2


def test_with_a_hint_three_stars_are_enough_and_two_are_not():
    truth = similarity(0.4, (21.0, -13.0), shape=BIG)
    xy = np.array([[800.0, 700.0], [5200.0, 1100.0], [2900.0, 3600.0], [4000.0, 2000.0]])
    flux = np.array([4.0, 3.0, 2.0, 1.0])
    there = moved(np.linalg.inv(truth), xy)
    for number in (2, 3, 4):
        lists = [star_list(places[:number], flux[:number]) for places in (there, xy)]
        with pytest.raises(register.RegistrationError, match=f"the frame has {number}"):
            register.register(*lists, shape=BIG)
        if number == 2:
            with pytest.raises(register.RegistrationError, match="3 stars; the frame has 2"):
                register.register(*lists, shape=BIG, hint=np.eye(3))
        else:
            found = register.register(*lists, shape=BIG, hint=np.eye(3))
            assert found.method == "header"
            assert error_px(found.matrix, truth, BIG) < 1e-6


def test_a_hint_is_not_believed_without_stars():
    for seed in range(4):
        rng = np.random.default_rng([27, seed])
        for count in (4, 8, 60):
            frame, _ = pair(rng, np.eye(3), count)
            _, reference = pair(rng, np.eye(3), count)
            with pytest.raises(register.RegistrationError):
                register.register(frame, reference, shape=SHAPE, hint=np.eye(3))


def test_a_wrong_hint_does_no_harm():
    rng = np.random.default_rng(28)
    truth = similarity(1.0, (15.0, -22.0))
    frame, reference = pair(rng, truth, 100, missing=0.2, spurious=0.2)
    plain = register.register(frame, reference, shape=SHAPE)
    hinted = register.register(frame, reference, shape=SHAPE, hint=similarity(90.0, (500.0, 0.0)))
    np.testing.assert_array_equal(plain.matrix, hinted.matrix)


def test_what_astroalign_shuffles_comes_out_the_same():
    """Positions half a pixel wrong, so that the first good triangles decide what it finds; and
    numpy's own generators are neither seeded nor drawn from.
    """
    rng = np.random.default_rng([29, 0])
    truth = similarity(25.0, (5.0, 9.0), scale=1.3)
    frame, reference = pair(rng, truth, 60, missing=0.15, spurious=0.15, noise=0.5)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    found = [
        astroalign.find_transform(frame.xy[:50], reference.xy[:50])[0].params for _ in range(6)
    ]
    for params in found[1:]:
        np.testing.assert_array_equal(params, found[0])
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert np.random.default_rng().integers(2**62) != np.random.default_rng().integers(2**62)


def test_bent_registrations_repeat_themselves():
    turn = similarity(0.3, (12, -30), shape=BIG)
    frame, reference = bent_pair(np.random.default_rng(30), turn, ((60, 0), NO_LENS))
    first = register.register(frame, reference, shape=BIG)
    again = register.register(frame, reference, shape=BIG)
    np.testing.assert_array_equal(first.matrix, again.matrix)
    np.testing.assert_array_equal(first.distortion, again.distortion)


def test_images_from_end_to_end():
    """Drawn, exposed, detected and registered, with another seeing and a flip."""
    rng = np.random.default_rng(12)
    shape = (400, 480)
    truth = similarity(179.4, (12.3, -7.8), shape=shape)
    x, y = rng.uniform(0, (shape[1], shape[0]), (70, 2)).T
    flux = 3000 * (1 + rng.pareto(0.9, 70))
    there = moved(np.linalg.inv(truth), np.column_stack((x, y))).T
    reference = detect(exposed(rng, moffat(shape, x, y, flux, 2.6)))
    frame = detect(exposed(rng, moffat(shape, *there, 0.7 * flux, 3.8), sky=350))
    found = register.register(frame, reference, shape=shape)
    assert found.flipped
    assert error_px(found.matrix, truth, shape) < 0.05


# Real frames.


def pixels(path):
    return fits.getdata(path).astype(np.float32)


@pytest.mark.shared
def test_forty_drifting_lights_of_tres1_register_to_the_first():
    folder = shared("tres1")
    dark = np.mean([pixels(p) for p in sorted(folder.glob("*d.fit"))], axis=0)
    lights = sorted(set(folder.glob("*.fit")) - set(folder.glob("*d.fit")))
    assert len(lights) == 40
    lists = [detect(pixels(p) - dark) for p in lights]
    shifts = []
    for stars in lists:
        found = register.register(stars, lists[0], shape=SHAPE)
        assert found.matched > 300
        assert found.rms_px < 0.12
        shifts.append(found.matrix[:2, 2])
    # A mount that drifts: many pixels in the night, little from one frame to the next.
    steps = np.hypot(*np.diff(shifts, axis=0).T)
    assert np.hypot(*shifts[-1]) > 30
    assert steps.max() < 3


@pytest.mark.shared
def test_four_filters_of_messier8_register_onto_one_reference():
    folder = shared("messier8")
    paths = sorted(folder.glob("*_L_*")) + sorted(folder.glob("*_[RGB]_*"))
    assert len(paths) == 32
    first = pixels(paths[0])
    reference = detect(first)
    for path in paths:
        found = register.register(detect(pixels(path)), reference, shape=first.shape)
        assert found.matched > 150
        assert found.rms_px < 0.3


@pytest.mark.shared
def test_colour_lights_of_m27_register_by_their_luminance():
    lists = []
    for path in sorted(shared("m27_osc").glob("*.fits")):
        mosaic = np.pad(pixels(path), ((0, 1), (0, 1)), mode="edge")
        luminance = 0.25 * (mosaic[:-1, :-1] + mosaic[1:, :-1] + mosaic[:-1, 1:] + mosaic[1:, 1:])
        lists.append(detect(luminance))
    assert len(lists) == 6
    for stars in lists[1:]:
        found = register.register(stars, lists[0], shape=(976, 1304))
        assert found.matched > 250
        assert found.rms_px < 0.6
        assert not found.flipped
