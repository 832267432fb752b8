import numpy as np
import pytest
from astropy.io import fits

from daemon.light import register
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
