"""Labels against pixels: simulated frames whose kind is known, and every real frame there is."""

import re
import warnings
from pathlib import Path, PurePath

import numpy as np
import pytest
from astropy.io import fits

from calib_library.frame import Card, FrameType
from calib_library.header import parse
from calib_library.inspect import examine
from daemon.simulator.camera import make_camera

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
SHAPE = (240, 320)


def record(kind=None, *, shape=SHAPE, storage="uint16", **cards):
    if kind:
        cards["IMAGETYP"] = kind
    written = [Card(keyword, value) for keyword, value in cards.items()]
    return parse(written, shape=shape, storage=storage, path=PurePath("a.fits"))


def read_out(signal_e, *, seed, bias=500.0, read_noise=5.0, gain=1.0):
    """A 16-bit frame in ADU from electrons."""
    random = np.random.default_rng(seed)
    electrons = random.poisson(signal_e) + random.normal(0, read_noise, np.shape(signal_e))
    return np.clip(electrons / gain + bias, 0, 65_535).round().astype(np.uint16)


def bias_frame(seed=1):
    return read_out(np.zeros(SHAPE), seed=seed)


def dark_frame(seed=2):
    random = np.random.default_rng(99)
    rate = np.full(SHAPE, 20.0)
    hot = random.random(SHAPE) < 0.01
    rate[hot] += random.exponential(3_000, hot.sum())
    return read_out(rate, seed=seed)


def vignette(fall=0.3):
    y, x = np.indices(SHAPE, dtype=float)
    r2 = ((y - 120) ** 2 + (x - 160) ** 2) / 200**2
    return 1 - fall * r2


def flat_frame(level=25_000.0, seed=3, mosaic=None):
    light = level * vignette()
    if mosaic:
        light = light * np.tile(mosaic, (SHAPE[0] // 2, SHAPE[1] // 2))
    return read_out(light, seed=seed)


def light_frame(seed=4, stars=60, sky=300.0, fwhm=3.0):
    random = np.random.default_rng(77)
    y, x = np.indices(SHAPE, dtype=float)
    scene = np.full(SHAPE, sky)
    for _ in range(stars):
        cy, cx = random.uniform(0, SHAPE[0]), random.uniform(0, SHAPE[1])
        r2 = (y - cy) ** 2 + (x - cx) ** 2
        scene += random.uniform(500, 20_000) * np.exp(-4 * np.log(2) * r2 / fwhm**2)
    return read_out(scene * vignette(0.1), seed=seed)


FRAMES = {"bias": bias_frame, "dark": dark_frame, "flat": flat_frame, "light": light_frame}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_true_label_is_ok(kind):
    seen = examine(FRAMES[kind](), record(kind))
    assert seen.verdict == "ok"
    assert seen.reasons == ()


@pytest.mark.parametrize(
    ("label", "truth"),
    [
        ("flat", "bias"),
        ("flat", "dark"),
        ("flat", "light"),
        ("dark", "flat"),
        ("bias", "flat"),
        ("dark flat", "flat"),
        ("dark", "light"),
        ("bias", "light"),
        ("light", "flat"),
    ],
)
def test_a_lying_label_waits_in_quarantine(label, truth):
    seen = examine(FRAMES[truth](), record(label))
    assert seen.verdict == "quarantine"
    assert "Labelled as a" in seen.reasons[0]


@pytest.mark.parametrize("label", ["dark", "bias"])
def test_an_even_mono_flat_in_the_darks_is_found(label):
    even = read_out(np.full(SHAPE, 20_000.0), seed=5)
    assert examine(even, record(label)).verdict == "quarantine"


def test_a_hot_dark_is_no_flat_however_high_its_level():
    warm = dark_frame() + np.uint16(15_000)  # a sensor at 40 °C
    assert examine(warm, record("dark")).verdict == "ok"


def test_a_closed_cover_is_a_warning_only():
    seen = examine(dark_frame(), record("light", EXPTIME=60))
    assert seen.verdict == "ok"
    assert "cover closed" in seen.reasons[0]


def test_a_mosaic_flat_has_no_stars():
    seen = examine(flat_frame(mosaic=[[0.6, 1.0], [1.0, 0.5]]), record("flat", BAYERPAT="RGGB"))
    assert (seen.verdict, seen.star_like, seen.proposed) == ("ok", 0, FrameType.FLAT)


@pytest.mark.parametrize(
    ("frame", "exposure", "kind"),
    [
        (light_frame, 60.0, FrameType.LIGHT),
        (light_frame, None, FrameType.LIGHT),
        (flat_frame, 1.0, FrameType.FLAT),
        (bias_frame, 0.001, FrameType.BIAS),
        (dark_frame, 60.0, FrameType.DARK),
    ],
)
def test_without_a_label_the_pixels_propose(frame, exposure, kind):
    seen = examine(frame(), record(**({} if exposure is None else {"EXPTIME": exposure})))
    assert (seen.proposed, seen.verdict) == (kind, "ok")
    assert seen.confidence >= 0.75


@pytest.mark.parametrize("frame", [bias_frame, dark_frame])
def test_without_label_and_exposure_a_dark_frame_waits(frame):
    seen = examine(frame(), record())
    assert seen.verdict == "quarantine"
    assert seen.confidence < 0.75


def test_level_noise_and_saturation_are_those_of_the_simulation():
    frame = read_out(np.full(SHAPE, 2_000.0), seed=6, read_noise=10.0, gain=2.0)
    seen = examine(frame, record("light"))
    assert seen.median_adu == pytest.approx(500 + 1_000, abs=1)
    assert seen.sigma_adu == pytest.approx(np.sqrt(2_000 + 100) / 2, rel=0.05)
    assert seen.gradient < 0.003
    frame[::4] = 65_535
    assert examine(frame, record("light")).saturated_fraction == pytest.approx(0.25, abs=0.01)


def test_what_was_seen_is_said_to_a_person():
    frame = read_out(np.full(SHAPE, 2_000.0), seed=6, read_noise=10.0, gain=2.0)
    frame[np.random.default_rng(7).random(SHAPE) < 0.1] = 65_535
    levels = examine(frame, record("light")).sentences()[0]
    told = re.fullmatch(
        r"median 15\d\d\.\d ADU, noise [\d.]+ ADU, 1\d{3} to 65535, ([\d.]+)% saturated", levels
    )
    assert float(told[1]) == pytest.approx(10, abs=1)

    seen = examine(light_frame(stars=60), record("light"))
    _, sources, guess, *reasons = seen.sentences()
    assert 30 <= int(sources.split(" star-like sources")[0]) <= 60  # some lie on one another
    assert re.fullmatch(r"by themselves like a light \(\d+% sure\)", guess)
    assert reasons == []

    small = examine(np.zeros((4, 4), np.uint16), record("light")).sentences()
    assert "not a sensor's frame" in small[-1]
    assert not any("by themselves" in line for line in small)


def test_the_gradient_is_that_of_the_vignette():
    seen = examine(flat_frame(), record("flat"))
    levels = 25_000 * vignette()
    whole = np.ptp(levels) / np.median(levels)
    assert 0.1 * whole < seen.gradient < whole  # windows average over their size


def test_a_saturated_flat_waits():
    seen = examine(flat_frame(level=90_000), record("flat"))
    assert seen.verdict == "quarantine"
    assert "shorter exposure" in seen.reasons[0]


@pytest.mark.parametrize(
    ("pixels", "word"),
    [
        (np.full(SHAPE, np.nan, np.float32), "not numbers"),
        (np.zeros(SHAPE, np.uint16), "zero"),
        (np.full(SHAPE, 32_768, np.uint16), "zero"),
        (np.full(SHAPE, 700, np.uint16), "700"),
        (np.full(SHAPE, 65_535, np.uint16), "65535"),
        (np.ones((3, 3), np.uint16), "3 × 3"),
    ],
)
def test_what_is_certainly_no_image_is_rejected(pixels, word):
    seen = examine(pixels, record("light", shape=pixels.shape, storage=str(pixels.dtype)))
    assert seen.verdict == "reject"
    assert word in seen.reasons[0]


@pytest.mark.parametrize("fill", [0, 32_768])
@pytest.mark.parametrize("kind", FRAMES)
def test_a_file_that_was_filled_only_half_is_rejected(kind, fill):
    frame = FRAMES[kind]()
    frame[SHAPE[0] // 2 :] = fill
    seen = examine(frame, record(kind))
    assert seen.verdict == "reject"
    assert "50%" in seen.reasons[0]


def test_a_few_dead_rows_are_no_reason():
    frame = dark_frame()
    frame[100:104] = 0
    assert examine(frame, record("dark")).verdict == "ok"


def test_colour_planes_and_floats_are_looked_at_too():
    colour = np.stack([light_frame(seed) for seed in (1, 2, 3)]).astype(np.float32)
    seen = examine(colour, record("light", shape=colour.shape, storage="float32"))
    assert (seen.verdict, seen.proposed) == ("ok", FrameType.LIGHT)
    colour[:, :10] = np.nan
    patchy = examine(colour, record("light", shape=colour.shape, storage="float32"))
    assert patchy.verdict == "ok"
    assert "not numbers" in patchy.reasons[-1]


def test_absurd_floats_give_finite_numbers():
    frame = np.random.default_rng(8).choice([-1e300, 1e300], SHAPE)
    seen = examine(frame, record("light", storage="float64"))
    for value in (seen.median_adu, seen.sigma_adu, seen.maximum, seen.gradient):
        assert np.isfinite(value)


def test_wrapped_unsigned_data_is_mentioned():
    frame = flat_frame(level=33_000).view(np.int16)
    seen = examine(frame, record("flat", storage="int16"))
    assert any("wrap" in reason for reason in seen.reasons)


def test_nothing_is_mutated_and_a_look_is_repeatable():
    frame = light_frame()
    before = frame.copy()
    assert examine(frame, record("light")) == examine(frame, record("light"))
    assert (frame == before).all()


REAL = sorted(SHARED.glob("*/*.fit*")) + sorted(SHARED.glob("asi120/*/*.fit"))


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["asi120", "tres1", "messier8", "m27_osc"])
def test_no_real_frame_is_quarantined(folder):
    files = [file for file in REAL if file.relative_to(SHARED).parts[0] == folder]
    if not files:
        pytest.skip("The real frames in ../shared/data are not here.")
    for file in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ASIImg's decimal commas
            pixels, header = fits.getdata(file), fits.getheader(file)
        name = file.relative_to(SHARED)
        kind = header.get("IMAGETYP", header.get("FRAME"))
        kind = kind or ("light" if folder == "messier8" else name.parts[1].split("_")[0])
        seen = examine(pixels, record(kind, shape=pixels.shape))
        assert (seen.verdict, seen.reasons) == ("ok", ()), name
        assert seen.proposed == record(kind).frame_type or folder == "asi120", name


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "lie"),
    [
        ("asi120/flat/Flat_ASIImg_frame0001.fit", "dark"),
        ("asi120/flat/Flat_ASIImg_frame0001.fit", "bias"),
        ("asi120/flat/Flat_ASIImg_frame0001.fit", "light"),
        ("asi120/bias/Bias_ASIImg_frame0001.fit", "flat"),
        ("asi120/dark_50s/Dark_ASIImg_50sec_frame0001.fit", "flat"),
        ("tres1/tres1-001d.fit", "flat"),
        ("tres1/tres1-021.fit", "dark"),
        ("tres1/tres1-021.fit", "flat"),
        ("m27_osc/Light_1069.fits", "dark"),
        ("messier8/light_B_15000ms_1.fit", "bias"),
    ],
)
def test_a_lie_about_a_real_frame_is_found(file, lie):
    if not (SHARED / file).exists():
        pytest.skip("The real frames in ../shared/data are not here.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = fits.getdata(SHARED / file)
    assert examine(pixels, record(lie, shape=pixels.shape)).verdict == "quarantine"


def test_bright_columns_of_a_bias_are_no_stars():
    """A simulated camera of this shape has bias columns that stand out of the noise."""
    shape = (1596, 2394)
    camera = make_camera(shape, seed=11, filters=("R",))
    for number in range(3):
        rng = np.random.default_rng(number)
        pixels = camera.expose(None, filter_name=None, exposure_s=0.0, temperature_c=-10.0, rng=rng)
        found = examine(pixels, record("BIAS", shape=shape))
        assert found.verdict == "ok", found.reasons
