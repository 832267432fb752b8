import collections
import dataclasses
import datetime as dt
import math
import threading

import numpy as np
import pytest
from astropy.io import fits

from calib_library.frame import FrameType
from daemon.simulator import night, writer
from daemon.simulator.camera import REFERENCE_C, dark_ratio, make_camera, mosaic
from daemon.simulator.sky import BANDS, MOFFAT_BETA, make_sky, moffat_alpha

SHAPE = (96, 128)


@pytest.fixture(scope="module")
def sky():
    return make_sky(SHAPE, seed=3)


@pytest.fixture(scope="module")
def plan():
    return night.small_plan(seed=5, filters=("R", "B"), trails=1, bump=True)


@pytest.fixture(scope="module")
def taken(plan):
    return list(night.frames(plan))


def one_star(sky, *, x, y, flux=1000.0):
    return dataclasses.replace(
        sky,
        x=np.array([x]),
        y=np.array([y]),
        flux=np.array([flux]),
        temperature_k=np.array([5800.0]),
    )


def centroid(image):
    y, x = np.indices(image.shape)
    total = image.sum(dtype=np.float64)
    return (image * x).sum(dtype=np.float64) / total, (image * y).sum(dtype=np.float64) / total


# The sky


def test_a_star_keeps_its_flux_but_for_the_moffat_wings_outside_its_stamp(sky):
    star = one_star(sky, x=64.3, y=47.8)
    image = star.render("G", fwhm_px=3.0, with_nebula=False)
    flux = float(star.star_flux("G")[0])
    outside = (1.0 + (15.0 / moffat_alpha(3.0)) ** 2) ** (1.0 - MOFFAT_BETA)  # beyond 5 FWHM
    assert flux * (1.0 - 2 * outside) < image.sum(dtype=np.float64) < flux * 1.0001
    assert outside < 1e-3


def test_the_profile_is_half_as_bright_at_half_the_fwhm(sky):
    image = one_star(sky, x=64.0, y=48.0).render("G", fwhm_px=4.0, with_nebula=False)
    np.testing.assert_allclose(image[48, [62, 66]], image[48, 64] / 2, rtol=1e-5)
    np.testing.assert_allclose(image[[46, 50], 64], image[48, 64] / 2, rtol=1e-5)


def test_the_matrix_maps_frame_to_reference(sky):
    matrix = night.rigid(SHAPE, angle_deg=31.0, shift_px=(6.25, -3.5))
    x, y, _ = matrix @ (70.4, 40.1, 1.0)  # where a star must be to show at (70.4, 40.1)
    image = one_star(sky, x=x, y=y).render("G", fwhm_px=3.0, matrix=matrix, with_nebula=False)
    assert centroid(image) == pytest.approx((70.4, 40.1), abs=0.02)


def test_half_a_turn_shows_the_reversed_image(sky):
    turned = night.rigid(SHAPE, angle_deg=180.0, shift_px=(0.0, 0.0))
    upright = sky.render("R", fwhm_px=3.0)
    np.testing.assert_allclose(
        sky.render("R", fwhm_px=3.0, matrix=turned)[::-1, ::-1], upright, rtol=2e-3, atol=1e-3
    )


def test_the_nebula_shifts_with_the_pointing(sky):
    shifted = night.rigid(SHAPE, angle_deg=0.0, shift_px=(5.0, 3.0))
    still = sky.render("R", fwhm_px=3.0, with_stars=False)
    moved = sky.render("R", fwhm_px=3.0, matrix=shifted, with_stars=False)
    np.testing.assert_allclose(moved[:-3, :-5], still[3:, 5:], rtol=1e-4)
    assert still.max() > 5 * still.min() > 0.0


def test_larger_pixels_collect_more_nebula_and_the_same_stars(sky):
    doubled = np.diag([2.0, 2.0, 1.0])  # a frame pixel spans two reference px
    star = one_star(sky, x=64.0, y=48.0)
    fine = star.render("G", fwhm_px=4.0, with_nebula=False).sum(dtype=np.float64)
    coarse = star.render("G", fwhm_px=2.4, matrix=doubled, shape=(48, 64), with_nebula=False)
    assert coarse.sum(dtype=np.float64) == pytest.approx(fine, rel=2e-3)
    nebula = sky.render("R", fwhm_px=4.0, with_stars=False)
    binned = sky.render("R", fwhm_px=4.0, matrix=doubled, shape=(48, 64), with_stars=False)
    np.testing.assert_allclose(binned, 4.0 * nebula[::2, ::2], rtol=1e-4)


def test_stars_have_colours_and_a_wide_range_of_brightness(sky):
    ratio = sky.star_flux("B") / sky.star_flux("R")
    hot, cool = sky.temperature_k > 8000, sky.temperature_k < 4500
    assert ratio[hot].min() > 1.0 > ratio[cool].max()
    assert sky.star_flux("Ha").sum() < 0.1 * sky.star_flux("R").sum()
    assert sky.flux.max() / sky.flux.min() > 100
    assert np.all(np.diff(sky.flux) <= 0)
    inside = (sky.x > 0) & (sky.x < SHAPE[1] - 1) & (sky.y > 0) & (sky.y < SHAPE[0] - 1)
    assert inside.sum() == pytest.approx(220, abs=5 * math.sqrt(220))


def test_an_unknown_filter_is_refused_with_those_there_are(sky):
    with pytest.raises(ValueError, match="OIII"):
        sky.render("u'", fwhm_px=3.0)


def test_narrow_bands_see_their_own_lines(sky):
    light = {band: sky.nebula_light(BANDS[band]) for band in ("Ha", "OIII", "SII")}
    for band, source in (("Ha", "hydrogen"), ("OIII", "oxygen"), ("SII", "sulphur")):
        assert np.corrcoef(light[band].ravel(), sky.nebula[source].ravel())[0, 1] > 0.99
    assert np.corrcoef(light["Ha"].ravel(), light["OIII"].ravel())[0, 1] < 0.95


# The camera


def test_dark_current_follows_the_arrhenius_law():
    # f(T) = T^1.5 exp(−E/kT), algorithms of every dark model; k = 8.617333e-5 eV/K
    f = {c: (c + 273.15) ** 1.5 * math.exp(-0.57 / (8.617333e-5 * (c + 273.15))) for c in (-10, 5)}
    assert float(dark_ratio(5.0, energy_ev=0.57)) == pytest.approx(f[5] / f[-10], rel=1e-9)
    assert float(dark_ratio(REFERENCE_C, energy_ev=0.57)) == pytest.approx(1.0)


def test_hot_pixels_level_and_glow_each_have_their_own_temperature():
    camera = make_camera(SHAPE, seed=1, filters=("R",), hot_energy_spread_ev=0.0)
    cold, warm = camera.dark_rate(-10.0), camera.dark_rate(0.0)
    grown = (warm - camera.glow_e_s) / (cold - camera.glow_e_s)
    normal = np.ones(cold.size, bool)
    normal[camera.hot_index] = False
    far = camera.glow_e_s.ravel() < 1e-3  # where float32 has not lost the small rate in the glow
    level = float(dark_ratio(0.0, energy_ev=0.85))
    np.testing.assert_allclose(grown.ravel()[normal & far], level, rtol=1e-3)
    hottest = camera.hot_index[np.argmax(camera.hot_rate_e_s)]
    assert grown.ravel()[hottest] == pytest.approx(float(dark_ratio(0.0, energy_ev=0.57)), rel=0.01)


def test_photon_transfer_gives_back_gain_and_read_noise():
    camera = make_camera((256, 256), seed=2, filters=("R",), e_per_adu=0.8, read_noise_e=4.0)
    rng = np.random.default_rng(7)

    def expose(scene, seconds):
        return camera.expose(
            scene, filter_name="R", exposure_s=seconds, temperature_c=-10.0, rng=rng
        ).astype(np.float64)

    b1, b2 = expose(None, 0.0), expose(None, 0.0)
    lamp = np.full(camera.shape, 10000.0, np.float32)
    f1, f2 = expose(lamp, 2.0), expose(lamp, 2.0)
    bias_variance, flat_variance = np.var(b1 - b2), np.var(f1 - f2)
    gain = (f1.mean() + f2.mean() - b1.mean() - b2.mean()) / (flat_variance - bias_variance)
    # The variance of 65,536 differences is good to √(2/N) = 0.55 %: 4 σ.
    assert gain == pytest.approx(0.8, rel=0.022)
    assert gain * math.sqrt(bias_variance / 2 - 1 / 12) == pytest.approx(4.0, rel=0.035)


def test_the_mean_of_many_darks_is_the_ideal_dark():
    camera = make_camera(SHAPE, seed=3, filters=("R",))
    rng = np.random.default_rng(8)
    n, truth = 40, camera.ideal_dark(exposure_s=120.0, temperature_c=-5.0)
    darks = [
        camera.expose(None, filter_name=None, exposure_s=120.0, temperature_c=-5.0, rng=rng)
        for _ in range(n)
    ]
    signal = (truth - camera.pedestal_adu) * camera.e_per_adu
    variance = (signal + camera.read_noise_e**2) / camera.e_per_adu**2 + 1 / 12
    deviation = (np.mean(darks, axis=0) - truth) / np.sqrt(variance / n)
    assert deviation.mean() == pytest.approx(0.0, abs=5 / math.sqrt(truth.size))
    assert deviation.std() == pytest.approx(1.0, abs=5 / math.sqrt(2 * truth.size))


def test_a_flat_shows_vignetting_and_dust_and_a_full_well_saturates():
    camera = make_camera((192, 256), seed=4, filters=("R", "B"))
    flat = camera.flats["R"]
    centre, corner = np.median(flat[86:106, 118:138]), np.median(flat[:10, :10])
    assert corner < 0.8 * centre
    assert not np.array_equal(flat, camera.flats["B"])
    frame = camera.expose(
        np.full((192, 256), 1e6, np.float32),
        filter_name="R",
        exposure_s=1.0,
        temperature_c=-10.0,
        rng=np.random.default_rng(9),
    )
    full = camera.pedestal_adu + camera.full_well_e / camera.e_per_adu
    assert np.abs(frame - full).max() < 6 * camera.read_noise_e / camera.e_per_adu
    assert camera.saturation_adu == pytest.approx(full.min(), abs=0.01)


def test_sixteen_bits_are_the_last_limit():
    camera = make_camera((32, 32), seed=4, filters=("R",), full_well_e=1e6)
    bright = np.full((32, 32), 5e5, np.float32)
    frame = camera.expose(
        bright, filter_name="R", exposure_s=1.0, temperature_c=0.0, rng=np.random.default_rng(1)
    )
    assert np.all(frame == 65535)
    assert camera.saturation_adu == 65535


@pytest.mark.parametrize(
    ("pattern", "expected"), [("RGGB", [[0, 1], [1, 2]]), ("GBRG", [[1, 2], [0, 1]])]
)
def test_mosaic_picks_the_colour_of_each_phase(pattern, expected):
    planes = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((3, 5, 7), np.float32)
    np.testing.assert_array_equal(mosaic(planes, pattern), np.tile(expected, (3, 4))[:5, :7])


def test_an_unknown_pattern_is_refused():
    with pytest.raises(ValueError, match="RGGB"):
        make_camera((8, 8), seed=1, filters=(None,), bayer_pattern="RGB")


# The night


def test_a_light_is_what_its_truth_predicts_to_within_its_noise(plan, taken):
    """Calibrated with the camera's truth, what is left is white and has the predicted variance."""
    camera = plan.camera
    frame = next(f for f in taken if f.kind is FrameType.LIGHT and f.truth.trail is None)
    shot = frame.truth.shot
    dark = camera.ideal_dark(exposure_s=shot.exposure_s, temperature_c=shot.temperature_c)
    light_e = night.scene(plan, shot) * camera.flats[shot.filter] * shot.exposure_s
    expected = dark + light_e / camera.e_per_adu
    variance_e = (expected - camera.pedestal_adu) * camera.e_per_adu + camera.read_noise_e**2
    deviation = (frame.pixels - expected) * camera.e_per_adu / np.sqrt(variance_e)
    good = expected < 0.95 * camera.saturation_adu
    if frame.truth.cosmic is not None:
        good &= ~frame.truth.cosmic
    assert good.mean() > 0.99
    assert deviation[good].std() == pytest.approx(1.0, abs=0.02)
    assert deviation[good].mean() == pytest.approx(0.0, abs=5 / math.sqrt(good.sum()))


def test_the_brightest_stars_stand_where_the_matrix_says_on_both_sides_of_the_flip(plan, taken):
    lights = [f for f in taken if f.kind is FrameType.LIGHT and not f.truth.shot.ruined]
    assert {f.truth.shot.pier_side for f in lights} == {"West", "East"}
    ny, nx = plan.camera.shape
    errors = {"West": [], "East": []}
    for frame in lights:
        to_frame = np.linalg.inv(frame.truth.shot.matrix)
        sky = plan.sky
        x, y, _ = to_frame @ np.stack([sky.x, sky.y, np.ones_like(sky.x)])
        order = np.argsort(sky.star_flux(frame.filter))[::-1]
        inside = [i for i in order if 12 < x[i] < nx - 13 and 12 < y[i] < ny - 13][:8]
        for i in inside:
            near = np.hypot(x - x[i], y - y[i])
            rivals = (near < 14) & (sky.flux > 0.05 * sky.flux[i])
            cx, cy = round(x[i]), round(y[i])
            box = frame.pixels[cy - 3 : cy + 4, cx - 3 : cx + 4].astype(np.float64)
            if rivals.sum() > 1 or box.max() >= plan.camera.saturation_adu:
                continue
            got = centroid(np.clip(box - np.percentile(box, 30), 0.0, None))
            expected = (3 + x[i] - cx, 3 + y[i] - cy)
            errors[frame.truth.shot.pier_side].append(np.subtract(got, expected))
    for found in errors.values():
        # The box pulls each centroid towards its middle, equally often from either side.
        assert len(found) >= 8
        assert np.abs(found).max() < 0.4
        assert np.median(found, axis=0) == pytest.approx((0.0, 0.0), abs=0.08)


def test_the_same_shot_gives_the_same_bits_alone_and_in_any_thread(plan, taken):
    again = night.small_plan(seed=5, filters=("R", "B"), trails=1, bump=True)
    index = len(plan.shots) - 2
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(night.take(again, again.shots[index])))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for frame in results:
        np.testing.assert_array_equal(frame.pixels, taken[index].pixels)
        assert frame.cards == taken[index].cards
    other = night.take(dataclasses.replace(plan, seed=6), plan.shots[index])
    assert not np.array_equal(other.pixels, taken[index].pixels)


def test_every_frame_has_noise_of_its_own(plan, taken):
    bias = [f.pixels - plan.camera.pedestal_adu for f in taken if f.kind is FrameType.BIAS]
    assert len(bias) == 3
    for one, other in ((0, 1), (0, 2), (1, 2)):
        correlation = np.corrcoef(bias[one].ravel(), bias[other].ravel())[0, 1]
        assert abs(correlation) < 5 / math.sqrt(bias[0].size) + 0.01  # rounding shares a little


def test_trails_and_cosmic_rays_are_where_the_truth_says(plan, taken):
    trailed = [f for f in taken if f.truth.trail is not None]
    assert len(trailed) == 1
    frame = trailed[0]
    mask = frame.truth.trail
    assert 0.005 < mask.mean() < 0.2
    assert np.median(frame.pixels[mask]) > np.median(frame.pixels[~mask]) + 50
    struck = [f for f in taken if f.truth.cosmic is not None]
    assert struck
    for frame in struck:
        clean = night.scene(plan, frame.truth.shot) * frame.exposure_s / plan.camera.e_per_adu
        excess = frame.pixels - plan.camera.pedestal_adu - clean
        # A ray brings 700 e in the median, σ = 0.7 in its logarithm: hardly ever below 90 e.
        assert np.median(excess[frame.truth.cosmic]) > 90 / plan.camera.e_per_adu


def test_a_bump_doubles_the_stars(plan):
    shot = next(s for s in plan.shots if s.bump_px != (0.0, 0.0))
    assert shot.ruined
    steady = dataclasses.replace(shot, bump_px=(0.0, 0.0))
    doubled, single = night.scene(plan, shot), night.scene(plan, steady)
    assert doubled.sum() == pytest.approx(single.sum(), rel=0.02)
    dx, dy = (int(v) for v in shot.bump_px)
    peak = np.unravel_index(np.argmax(single[20:-20, 20:-20]), (152, 216))
    y, x = peak[0] + 20, peak[1] + 20
    background = np.median(single)
    height = single[y, x] - background
    assert doubled[y, x] - background == pytest.approx(0.6 * height, rel=0.05)
    assert doubled[y - dy, x - dx] - background == pytest.approx(0.4 * height, rel=0.1)


def test_flats_are_under_half_full_and_flat_darks_match_their_flats(plan, taken):
    exposures = collections.defaultdict(set)
    for frame in taken:
        if frame.kind in (FrameType.FLAT, FrameType.FLAT_DARK):
            exposures[frame.filter].add(frame.exposure_s)
        if frame.kind is FrameType.FLAT:
            share = np.median(frame.pixels) / plan.camera.saturation_adu
            assert 0.35 < share < 0.5
        if frame.kind is FrameType.FLAT_DARK:
            assert np.median(frame.pixels) < 600
    assert [len(v) for v in exposures.values()] == [1, 1]
    assert exposures["R"] != exposures["B"]


def test_readings_jitter_about_the_true_temperature(plan):
    errors = np.array([s.reading_c - s.temperature_c for s in plan.shots])
    assert np.abs(errors).max() <= 0.151  # ±0.1 and the rounding to a tenth
    assert len({s.reading_c for s in plan.shots}) > 1
    assert all(abs(s.temperature_c - -10.0) < 0.11 for s in plan.shots)


def test_a_set_of_darks_for_each_temperature_and_exposure():
    plan = night.small_plan(dark_sets=[(-10.0, 120.0), (-5.0, 120.0), (-5.0, 300.0)], darks=2)
    got = [(s.set_temperature_c, s.exposure_s) for s in plan.shots if s.kind is FrameType.DARK]
    assert got == [(-10.0, 120.0)] * 2 + [(-5.0, 120.0)] * 2 + [(-5.0, 300.0)] * 2


def test_the_demo_has_a_full_night_in_it():
    plan = night.demo_plan(shape=(96, 128))
    lights = [s for s in plan.shots if s.kind is FrameType.LIGHT]
    counts = collections.Counter((s.kind, s.filter) for s in plan.shots)
    assert counts[FrameType.BIAS, None] == counts[FrameType.DARK, None] == 10
    for name in "RGB":
        assert counts[FrameType.FLAT, name] == counts[FrameType.LIGHT, name] == 10
        assert counts[FrameType.FLAT_DARK, name] == 8
    assert plan.filters() == ("R", "G", "B")
    assert all(2.4 <= s.fwhm_px <= 3.8 for s in lights)
    assert np.ptp([s.fwhm_px for s in lights]) > 0.7
    assert min(s.transparency for s in lights) < 0.3
    assert sum(s.transparency > 0.85 for s in lights) >= 20
    assert sum(s.bump_px != (0.0, 0.0) for s in lights) == 1
    assert sum(s.trail is not None for s in lights) == 3
    assert [s.matrix[0, 0] < 0 for s in lights] == 15 * [False] + 15 * [True]
    assert {s.filter for s in lights if s.matrix[0, 0] < 0} == {"R", "G", "B"}
    shifts = np.array([s.matrix[:2, 2] for s in lights[:15]])
    assert 3 < shifts.std() < 20
    for before, after in zip(plan.shots, plan.shots[1:], strict=False):
        assert after.start >= before.start + dt.timedelta(seconds=before.exposure_s)


def test_flats_can_come_at_dawn():
    plan = night.small_plan(flats_at_dawn=True)
    kinds = [s.kind for s in plan.shots]
    assert kinds.index(FrameType.FLAT) > max(
        i for i, kind in enumerate(kinds) if kind is FrameType.LIGHT
    )


def test_a_colour_camera_sees_colours_through_its_mosaic():
    plan = night.small_plan(seed=2, bayer_pattern="GRBG", lights=1, flip=False)
    frames = list(night.frames(plan))
    flat = next(f for f in frames if f.kind is FrameType.FLAT)
    level = flat.pixels - plan.camera.pedestal_adu
    red, green, blue = level[0::2, 1::2], level[0::2, 0::2], level[1::2, 0::2]
    # The panel's colours are 0.62, 1 and 0.78, and neighbours see the same vignetting.
    assert np.median(red / green) == pytest.approx(0.62, rel=0.01)
    assert np.median(blue / green) == pytest.approx(0.78, rel=0.01)
    light = frames[-1]
    assert light.filter is None
    cards = {card.keyword: card.value for card in light.cards}
    assert cards["BAYERPAT"] == "GRBG"
    assert "FILTER" not in cards
    expected = night.scene(plan, light.truth.shot)
    for band, rows, columns in (("R", 0, 1), ("G", 0, 0), ("B", 1, 0)):
        alone = plan.sky.render(
            band, fwhm_px=light.truth.shot.fwhm_px, matrix=light.truth.shot.matrix
        )[rows::2, columns::2]
        rest = expected[rows::2, columns::2] - alone * light.truth.shot.transparency
        assert np.ptp(rest) < 0.3 * np.median(rest)  # the glow alone: smooth


def test_a_perfect_stack_is_flat_and_in_adu(plan):
    ideal = night.noiseless(plan, "R", fwhm_px=3.0, exposure_s=120.0)
    scene = plan.sky.render("R", fwhm_px=3.0)
    np.testing.assert_allclose(ideal, scene * 120.0 / plan.camera.e_per_adu, rtol=1e-5)


# The camera program


def test_headers_tell_what_each_program_tells(taken):
    light = next(f for f in taken if f.kind is FrameType.LIGHT)
    shot = light.truth.shot
    cards = {card.keyword: card.value for card in light.cards}
    assert (cards["IMAGETYP"], cards["FILTER"], cards["EXPTIME"]) == ("LIGHT", light.filter, 120.0)
    assert (cards["CCD-TEMP"], cards["SET-TEMP"]) == (light.temperature_c, -10.0)
    assert (cards["EGAIN"], cards["OBJECT"]) == (0.8, "Lantern Nebula")
    assert dt.datetime.fromisoformat(cards["DATE-OBS"]).replace(tzinfo=dt.UTC) == shot.start
    # MJD 51544.5 is noon of the first of January, 2000.
    noon = dt.datetime(2000, 1, 1, 12, tzinfo=dt.UTC)
    assert cards["MJD-OBS"] == pytest.approx(51544.5 + (shot.start - noon) / dt.timedelta(days=1))
    dark = next(f for f in taken if f.kind is FrameType.FLAT_DARK)
    assert {c.keyword: c.value for c in dark.cards}["IMAGETYP"] == "DARKFLAT"


def test_indi_calls_a_flat_dark_a_dark_and_hides_the_electrons(plan):
    shot = next(s for s in plan.shots if s.kind is FrameType.FLAT_DARK)
    frame = night.take(plan, shot, style="indi")
    cards = {card.keyword: card.value for card in frame.cards}
    assert (cards["FRAME"], cards["IMAGETYP"]) == ("Dark", "Dark Frame")
    assert not {"EGAIN", "SET-TEMP", "EXPOSURE"} & set(cards)
    assert frame.name.startswith("Calibration/Dark/")


@pytest.mark.parametrize("style", ["nina", "indi"])
def test_a_night_on_disk_is_the_night_that_was_taken(tmp_path, style):
    plan = night.small_plan(shape=(48, 64), bias=2, darks=1, flats=1, flat_darks=1, lights=2)
    seen = []
    paths = writer.write_night(
        tmp_path, plan, on_frame=lambda frame, path: seen.append((frame, path)), style=style
    )
    assert [path for _, path in seen] == list(paths)
    assert sorted(tmp_path.rglob("*.*")) == sorted(paths)  # no temporary name is left
    expected = list(night.frames(plan, style=style))
    assert len(paths) == len(expected) == len(set(paths)) == 7
    for path, frame in zip(paths, expected, strict=True):
        assert path == tmp_path / frame.name
        assert path.stat().st_size % 2880 == 0
        with fits.open(path) as hdus:
            assert (hdus[0].header["BITPIX"], hdus[0].header["NAXIS1"]) == (16, 64)
            np.testing.assert_array_equal(hdus[0].data, frame.pixels)
            for card in frame.cards:
                if card.keyword != "COMMENT":
                    assert hdus[0].header[card.keyword] == card.value


class Witness(threading.Event):
    """An event that looks at a folder whenever somebody waits."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.sizes = []

    def wait(self, timeout=None):  # noqa: ARG002 - the signature of Event
        self.sizes += [p.stat().st_size for p in self.folder.rglob("*.fits")]
        return self.is_set()


def test_indi_files_grow_in_place(tmp_path):
    plan = night.small_plan(shape=(48, 64))
    frame = night.take(plan, plan.shots[0], style="indi")
    witness = Witness(tmp_path)
    path = writer.write_frame(tmp_path, frame, style="indi", slowly_s=60.0, stop=witness)
    assert len(witness.sizes) > 4
    assert witness.sizes == sorted(set(witness.sizes))
    assert witness.sizes[-1] == path.stat().st_size == len(writer.fits_bytes(frame))


def test_nina_files_appear_whole(tmp_path, monkeypatch):
    plan = night.small_plan(shape=(48, 64))
    frame = night.take(plan, plan.shots[0])
    renamed = []
    replace = type(tmp_path).replace

    def watch(self, target):
        renamed.append((self.name, self.stat().st_size, target.exists()))
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", watch)
    path = writer.write_frame(tmp_path, frame)
    assert renamed == [(f"{path.stem}.tmp", len(writer.fits_bytes(frame)), False)]


def test_a_night_can_be_stopped_after_any_frame(tmp_path):
    plan = night.small_plan(shape=(48, 64))
    stop = threading.Event()
    paths = writer.write_night(
        tmp_path,
        plan,
        on_frame=lambda frame, _: stop.set() if frame.truth.shot.index == 2 else None,
        pace_s=0.001,
        stop=stop,
    )
    assert len(paths) == 3
