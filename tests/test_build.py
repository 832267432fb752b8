"""Masters from frames on disk: pixels against truth, what is left out, the file and its name."""

import dataclasses
import datetime as dt
import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from calib_library import build, combine, header, judging, master_file
from calib_library.catalogue import agenda, candidates, filing, registry
from calib_library.errors import ImageError, IncompatibleFramesError, LibraryError
from calib_library.frame import FrameType
from calib_library.images import frame_file, product_file
from calib_library.images.row_reader import RowReader
from calib_library.library import CalibrationLibrary
from tests.records import NIGHT, key, record

BIAS, DARK, FLAT, FLAT_DARK = (
    FrameType.BIAS,
    FrameType.DARK,
    FrameType.FLAT,
    FrameType.FLAT_DARK,
)
SHARED = Path(__file__).resolve().parents[1].parent / "shared"
NY, NX = 48, 64
NOISE = 8.0  # ADU, of one pixel in one frame
Y, X = np.mgrid[0:NY, 0:NX]
LEVEL = 500.0 + 20.0 * np.sin(X / 5.0) + 0.2 * Y  # ADU, the true bias
VIGNETTE = 1.0 - 0.4 * (((X - NX / 2) / NX) ** 2 + ((Y - NY / 2) / NY) ** 2)


@dataclasses.dataclass
class Bench:
    """A library and a camera's folder."""

    root: Path
    library: CalibrationLibrary
    taken: int = 0

    def take(self, kind, pixels, **fields) -> tuple[int, Path]:
        """Write one frame as a camera would, and file it."""
        session = fields.pop("session", "")
        storage = fields.pop("storage", "uint16")
        self.taken += 1
        path = self.root / f"{kind}_{self.taken:03d}.fits"
        pixels = np.asarray(pixels)
        if storage == "uint16":
            pixels = np.clip(np.rint(pixels), 0, 65535)
        fits.PrimaryHDU(pixels.astype(storage)).writeto(path)
        frame = record(
            kind,
            key=key(storage=storage, **fields.pop("key", {})),
            date_obs=NIGHT + dt.timedelta(minutes=self.taken),
            **fields,
        )
        status = path.stat()
        set_id = filing.file_frame(
            self.library,
            frame,
            sha256=digest(path),
            path=path,
            session=session,
            now=NIGHT,
            version=(status.st_size, status.st_mtime_ns),
        )
        return set_id, path

    def take_many(self, kind, images, **fields) -> int:
        [set_id] = {self.take(kind, image, **fields)[0] for image in images}
        return set_id

    def build(self, set_id, **options):
        """Build and register; return (master, image in ADU, cards by keyword)."""
        group = self.library.set(set_id)
        built = build.build(
            group,
            self.library.frames_of(set_id),
            root=self.root,
            generation=registry.next_generation(self.library, set_id),
            **options,
        )
        master = registry.register(self.library, built, NIGHT)
        image, cards = product_file.read_product(self.root / master.path)
        return master, image, {card.keyword: card.value for card in cards}

    def failure(self, set_id) -> str:
        with pytest.raises(IncompatibleFramesError) as caught:
            self.build(set_id)
        return str(caught.value)


@pytest.fixture
def bench(tmp_path):
    with CalibrationLibrary.open(tmp_path) as library:
        yield Bench(tmp_path, library)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def noisy(truth, count, *, seed=1, sigma=NOISE):
    generator = np.random.default_rng(seed)
    return [truth + generator.normal(0, sigma, truth.shape) for _ in range(count)]


# --- bias and dark -------------------------------------------------------------------------------


def test_a_master_bias_is_the_truth_within_the_noise_of_the_mean(bench):
    master, image, _ = bench.build(bench.take_many(BIAS, noisy(LEVEL, 16), exposure_s=0.0))
    assert (master.frames, master.generation, master.notes) == (16, 1, ())
    expected = np.sqrt(NOISE**2 + 1 / 12) / 4
    assert np.std(image - LEVEL) == pytest.approx(expected, rel=0.08)
    assert abs(np.mean(image - LEVEL)) < 5 * expected / np.sqrt(image.size)
    assert image.dtype == np.float32
    loaded = master_file.load_master(bench.root, master)
    np.testing.assert_array_equal(loaded, image)


@pytest.mark.parametrize("count", [5, 8, 20])
def test_a_cosmic_ray_in_one_dark_leaves_no_trace(bench, count):
    """With the usual 3 sigma it would stay, at a fifth, in a master of five."""
    images = noisy(LEVEL, count)
    images[2][10, 20] += 3000.0
    _, image, _ = bench.build(bench.take_many(DARK, images))
    assert abs(image[10, 20] - LEVEL[10, 20]) < 5 * NOISE / np.sqrt(count - 1)


@pytest.mark.parametrize("n", [5, 8, 9, 10, 20])
def test_the_clip_can_reject_one_of_n(n):
    values = np.zeros(n)
    values[0] = 1e6
    reach = abs(values[0] - np.median(values)) / np.std(values)
    assert combine.reachable_sigma(3.0, n) < reach
    assert combine.reachable_sigma(3.0, n) <= 3.0
    assert combine.reachable_sigma(2.0, n) == 2.0
    # honest noise is hardly touched: a clip of at least 2.2 sigma
    assert combine.reachable_sigma(3.0, n) > 2.2


def test_a_frame_with_an_open_cover_is_left_out_and_named(bench):
    images = noisy(LEVEL, 6)
    images[3] += 400.0
    master, image, cards = bench.build(bench.take_many(DARK, images))
    assert (master.frames, cards["NCOMBINE"], cards["LKLEFT"]) == (5, 5, 1)
    assert abs(np.mean(image - LEVEL)) < 1.0
    [note] = master.notes
    assert note.startswith("dark_004.fits was left out: its level is ")
    reasons = [reason for _, reason in bench.library.inputs_of(master.id)]
    assert [reason is not None for reason in reasons] == [False, False, False, True, False, False]


def test_frames_that_were_cut_short_are_left_out_though_they_are_the_majority(bench):
    """Seen on a real camera: the last rows of three darks of five hold no dark current."""
    images = noisy(LEVEL + 60.0, 5)
    for n in (0, 2, 4):
        images[n][40:] -= 60.0
    master, image, _ = bench.build(bench.take_many(DARK, images))
    reasons = [reason for _, reason in bench.library.inputs_of(master.id)]
    assert [reason is not None for reason in reasons] == [True, False, True, False, True]
    assert all("it was cut short" in reason for reason in reasons if reason)
    assert abs(np.mean(image[40:] - LEVEL[40:]) - 60.0) < 2.0


def test_a_part_that_is_too_bright_in_one_frame_leaves_that_frame_out(bench):
    images = noisy(LEVEL, 5)
    images[2][:20] += 40.0
    master, _, _ = bench.build(bench.take_many(DARK, images))
    reasons = [reason for _, reason in bench.library.inputs_of(master.id)]
    assert [reason is not None for reason in reasons] == [False, False, True, False, False]
    assert reasons[2].startswith("around row 0 its level is 5")


def test_a_glow_that_all_frames_have_is_no_fault(bench):
    glow = LEVEL + 800.0 * np.exp(-((Y - NY) ** 2 + (X - NX) ** 2) / 200.0)
    assert bench.build(bench.take_many(DARK, noisy(glow, 5)))[0].frames == 5


def test_a_slow_drift_of_the_level_stays(bench):
    images = [image + drift for image, drift in zip(noisy(LEVEL, 6), range(0, 12, 2), strict=True)]
    assert bench.build(bench.take_many(DARK, images))[0].frames == 6


def test_two_frames_cannot_outvote_each_other():
    levels = np.array([[500.0, 500.0, 500.0], [500.0, 500.0, 900.0]])
    assert judging.judge_levels(levels, noise_adu=8.0, rows=[0, 8, 16]) == [None, None]


@pytest.mark.parametrize(("storage", "low"), [("int16", -40.0), ("float32", -0.25)])
def test_signed_and_float_frames_keep_their_values(bench, storage, low):
    frames = [np.full((NY, NX), low) for _ in range(3)]
    for n, frame in enumerate(frames):
        frame[0, n] = 0.0  # three different files
    _, image, _ = bench.build(bench.take_many(DARK, frames, storage=storage))
    assert image[20, 20] == low


# --- flats ---------------------------------------------------------------------------------------


def flat_images(levels, *, seed=5, colours=(1.0, 1.0, 1.0, 1.0), drift=0.0):
    """Flats of a vignette on top of the bias, with shot noise at 1 e-/ADU."""
    generator = np.random.default_rng(seed)
    phase = (Y % 2) * 2 + X % 2
    images = []
    for n, level in enumerate(levels):
        tint = np.asarray(colours) * (1.0 + drift * n * np.array([1.0, 0.0, 0.0, -1.0]))
        images.append(LEVEL + generator.poisson(level * VIGNETTE * tint[phase]))
    return images


def shape_error(image, plane=None):
    """Large-scale departure from the true vignette, rms, as a fraction."""
    part = np.s_[:, :] if plane is None else np.s_[plane // 2 :: 2, plane % 2 :: 2]
    ratio = np.asarray(image, np.float64)[part] / VIGNETTE[part]
    ny, nx = ratio.shape[0] // 8 * 8, ratio.shape[1] // 8 * 8
    blocks = ratio[:ny, :nx].reshape(ny // 8, 8, nx // 8, 8).mean(axis=(1, 3))
    return np.std(blocks / blocks.mean())


def test_a_master_flat_is_the_vignette_at_its_native_level(bench):
    bias = bench.build(bench.take_many(BIAS, noisy(LEVEL, 20), exposure_s=0.0))[0]
    levels = [20000, 24000, 28000, 31000, 22000, 26000, 30000, 25000, 27000]
    set_id = bench.take_many(FLAT, flat_images(levels), filter="H", session="2026-11-20")
    master, image, cards = bench.build(set_id, subtract=bias)
    assert master.frames == 9  # different levels are no fault
    assert master.subtracted == bias.id
    assert cards["LKSUBTR"] == bias.name
    # 1/sqrt(26000 e × 9 frames × 64 px) = 0.03 %
    assert shape_error(image) < 1e-3
    centre = image[NY // 4 : -NY // 4, NX // 4 : -NX // 4].mean()
    assert 20000 < centre < 31000
    without, raw, _ = bench.build(set_id)
    assert shape_error(raw) > 1.3 * shape_error(image)
    assert "no flat-dark, dark or bias to subtract" in without.notes[0]


def test_colours_of_a_lamp_that_drift_do_not_mix(bench):
    images = flat_images([24000] * 9, colours=(0.4, 1.0, 1.0, 0.6), drift=0.03)
    bias = bench.build(
        bench.take_many(BIAS, noisy(LEVEL, 20), exposure_s=0.0, key={"bayer_pattern": "RGGB"})
    )[0]
    set_id = bench.take_many(FLAT, images, session="n", key={"bayer_pattern": "RGGB"})
    _, image, cards = bench.build(set_id, subtract=bias)
    assert cards["BAYERPAT"] == "RGGB"
    for plane in range(4):
        # 1/sqrt(9600 e × 9 × 64) = 0.04 % in the faintest
        assert shape_error(image, plane) < 2e-3
    # Each plane's scatter among the scaled frames is shot noise only: nothing more was clipped.
    assert cards["LKKEPT"] > 0.95


def test_a_saturated_an_empty_and_a_clouded_flat_are_left_out(bench):
    images = flat_images([24000] * 5)
    images[0] = np.full((NY, NX), 65535.0) - (X == 1)
    images[1] = LEVEL - 20.0
    images[2][:24] *= 0.5
    bias = bench.build(bench.take_many(BIAS, noisy(LEVEL, 5), exposure_s=0.0))[0]
    set_id = bench.take_many(FLAT, images, session="n")
    # two good ones and the clouded one are left to vote: a majority
    bench.take(FLAT, flat_images([23000], seed=9)[0], session="n")
    master, _, _ = bench.build(set_id, subtract=bias)
    assert master.frames == 3
    saturated, empty, clouded = master.notes[:3]
    assert "flat_006.fits was left out: it is saturated (level 65535 ADU)" in saturated
    assert "there is no light on it" in empty
    assert "of it differs by" in clouded


def test_the_pedestal_of_another_size_is_not_used(bench):
    bias = bench.build(bench.take_many(BIAS, noisy(LEVEL, 5), exposure_s=0.0))[0]
    smaller = dataclasses.replace(bias, key=key(width=32))
    with pytest.raises(ImageError, match="not the image that was registered"):
        master_file.load_master(bench.root, smaller)


# --- what the files have become ------------------------------------------------------------------


def test_files_that_are_gone_or_overwritten_are_left_out(bench):
    images = noisy(LEVEL, 6)
    paths = [bench.take(DARK, image)[1] for image in images[:-1]]
    set_id, last = bench.take(DARK, images[-1])
    paths[0].unlink()
    fits.PrimaryHDU(np.full((NY, NX), 700, np.uint16)).writeto(paths[1], overwrite=True)
    last.write_bytes(b"no image any more")
    master, image, _ = bench.build(set_id)
    assert master.frames == 3
    assert abs(np.mean(image - LEVEL)) < 2.0
    assert master.notes[:2] == (
        "dark_001.fits was left out: its file is gone.",
        "dark_002.fits was left out: its file is not the one that was filed.",
    )
    assert "its file cannot be read" in master.notes[2]


def test_only_files_that_were_written_to_are_hashed_again(bench, monkeypatch):
    hashed = []
    genuine = RowReader.digest
    monkeypatch.setattr(
        RowReader,
        "digest",
        lambda reader: hashed.append(reader.info.path.name) or genuine(reader),
    )
    set_id = bench.take_many(DARK, noisy(LEVEL, 6))
    os.utime(bench.root / "dark_003.fits", ns=(0, 0))
    master, *_ = bench.build(set_id)
    assert hashed == ["dark_003.fits"]
    assert master.frames == 6


def test_a_frame_that_was_exchanged_for_its_like_is_in_no_master(bench):
    """Nothing in its pixels tells that it is another frame: its hash does, after combining."""
    images = noisy(LEVEL, 7)
    taken = [bench.take(DARK, image) for image in images]
    fits.PrimaryHDU(np.rint(images[3] + 5.0).astype(np.uint16)).writeto(taken[3][1], overwrite=True)
    master, image, _ = bench.build(taken[0][0])
    assert master.frames == 6
    assert master.notes == ("dark_004.fits was left out: its file is not the one that was filed.",)
    others = np.delete(np.rint(images), 3, axis=0)
    kept = np.abs(others - np.median(others, axis=0)) <= (
        combine.reachable_sigma(3.0, 6) * np.std(others, axis=0)
    )
    expected = np.mean(others, axis=0)
    everything = kept.all(axis=0)
    assert everything.mean() > 0.5
    np.testing.assert_allclose(image[everything], expected[everything], rtol=1e-6)
    # The file of the first attempt never came to be.
    assert [path.name for path in (bench.root / "masters").iterdir()] == [master.path.name]


def test_too_few_frames_is_a_sentence(bench):
    set_id, path = bench.take(DARK, LEVEL)
    bench.take(DARK, LEVEL + 1)
    path.unlink()
    assert bench.failure(set_id) == (
        "Only 1 of 2 frames can be used, 2 are needed (dark_001.fits: its file is gone)."
    )
    assert not (bench.root / "masters").exists()


def test_a_new_generation_is_never_made_of_less_because_files_are_gone(bench):
    images = noisy(LEVEL, 8)
    paths = [bench.take(DARK, image)[1] for image in images[:6]]
    set_id, _ = bench.take(DARK, images[6])
    first = bench.build(set_id)[0]
    for path in paths[:4]:
        path.unlink()
    bench.take(DARK, images[7])
    assert "Only 4 of 8 frames can be used, 7 are needed" in bench.failure(set_id)
    assert bench.library.set(set_id).master == first


def test_a_master_that_is_gone_is_a_sentence(bench):
    master = bench.build(bench.take_many(DARK, noisy(LEVEL, 3)))[0]
    (bench.root / master.path).unlink()
    with pytest.raises(LibraryError, match="is no longer in"):
        master_file.load_master(bench.root, master)


# --- the file ------------------------------------------------------------------------------------


def test_the_name_says_what_it_is_and_generations_do_not_meet(bench):
    images = noisy(LEVEL, 4)
    set_id = bench.take_many(DARK, images[:3])
    first, _, _ = bench.build(set_id)
    bench.take(DARK, images[3])
    second, _, _ = bench.build(set_id)
    start = "MasterDark_300s_-10C_g100_o50_bin1_ZWO-ASI2600MM-Pro_v"
    for master, generation in ((first, 1), (second, 2)):
        assert master.path.parent.as_posix() == "masters"
        assert master.name.startswith(f"{start}{generation}_")
        assert master.sha256 == digest(bench.root / master.path)


@pytest.mark.parametrize(
    "camera", ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a\x00b\n", "Kamera\u2044Ä" * 30]
)
def test_no_header_names_a_path(bench, camera):
    set_id = bench.take_many(
        FLAT,
        flat_images([20000] * 3),
        key={"camera": camera},
        filter="../../H",
        session="../2026",
    )
    master, _, _ = bench.build(set_id)
    path = (bench.root / master.path).resolve()
    assert path.parent == (bench.root / "masters").resolve()
    assert path.is_file()
    assert len(path.name.encode()) < 200
    assert path.name.isprintable()
    assert path.name.isascii()


def test_different_sets_never_share_a_name(bench):
    """Readout modes are not part of the name."""
    one = bench.take_many(DARK, noisy(LEVEL, 3), key={"readout_mode": "a"})
    other = bench.take_many(DARK, noisy(LEVEL, 3, seed=2), key={"readout_mode": "b"})
    assert one != other
    assert bench.build(one)[0].path != bench.build(other)[0].path


def test_building_again_gives_the_same_bytes(bench):
    """A crash between the file and the commit: the next start writes the same file again."""
    set_id = bench.take_many(DARK, noisy(LEVEL, 7))
    group, frames = bench.library.set(set_id), bench.library.frames_of(set_id)
    built = [
        build.build(group, order, root=bench.root, generation=1) for order in (frames, frames[::-1])
    ]
    assert built[0] == built[1]
    assert len(list((bench.root / "masters").iterdir())) == 1


def test_the_header_says_what_the_database_knows(bench):
    set_id = bench.take_many(
        FLAT,
        flat_images([24000] * 3),
        filter="H",
        session="2026-11-20",
        exposure_s=2.0,
        temperature_c=-9.87,
        row_order="BOTTOM-UP",
        telescope="FSQ-106",
        focal_length_mm=530.0,
        rotator_deg=12.5,
        key={"camera": "ASI2600MC", "bayer_pattern": "RGGB", "readout_mode": "High Gain"},
    )
    master, _, cards = bench.build(set_id)
    path = bench.root / master.path
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(path, checksum=True) as hdus:
            plain = hdus[0].header
            assert hdus[0].data.min() >= 0
            assert hdus[0].data.max() <= 1
    assert plain["IMAGETYP"] == "Master Flat"
    assert (plain["STACKCNT"], plain["LIVETIME"]) == (3, 6.0)
    assert plain["SWCREATE"].startswith("Lightkeeper ")
    assert (cards["LKSET"], cards["LKGEN"], cards["LKNIGHT"]) == (set_id, 1, "2026-11-20")
    hashes = {frame.sha256[:16] for frame in bench.library.frames_of(set_id)}
    assert {cards[f"LKI{n:05d}"] for n in (1, 2, 3)} == hashes
    # read back by the header's own reader, as a foreign master would be
    info = frame_file.probe(path)
    parsed = header.parse(info.cards, shape=info.shape, storage=info.storage, path=Path("x.fits"))
    assert (parsed.frame_type, parsed.is_master, parsed.stack_count) == (FLAT, True, 3)
    assert (parsed.exposure_s, parsed.temperature_c, parsed.filter) == (2.0, -9.87, "H")
    assert dataclasses.replace(parsed.key, storage="uint16") == master.key
    assert (parsed.row_order, parsed.rotator_deg) == ("BOTTOM-UP", 12.5)
    assert (parsed.telescope, parsed.focal_length_mm) == ("FSQ-106", 530.0)


def test_every_kind_reads_back_as_a_master_of_its_kind(bench):
    for seed, kind in enumerate((BIAS, DARK, FLAT_DARK)):
        master, _, _ = bench.build(bench.take_many(kind, noisy(LEVEL, 3, seed=seed)))
        info = frame_file.probe(bench.root / master.path)
        parsed = header.parse(
            info.cards, shape=info.shape, storage=info.storage, path=Path("x.fits")
        )
        assert (parsed.frame_type, parsed.is_master) == (kind, True)


def test_progress_grows_to_one(bench):
    seen: list[float] = []
    bench.build(bench.take_many(DARK, noisy(LEVEL, 3)), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


# --- real frames ---------------------------------------------------------------------------------


@pytest.mark.shared
def test_the_asi120_gives_four_masters(bench):
    """A colour camera without cooling: bias, two darks and a flat, by header and path alone."""
    folder = SHARED / "data" / "asi120"
    if not folder.is_dir():
        pytest.skip(f"the real frames of asi120 are not here ({folder})")
    for path in sorted(folder.glob("*/*.fit")):
        loaded = frame_file.load(path)
        frame = header.parse(
            loaded.info.cards,
            shape=loaded.info.shape,
            storage=loaded.info.storage,
            path=path.relative_to(folder),
        )
        filing.file_frame(
            bench.library, frame, sha256=loaded.sha256, path=path, session="2024-04-18", now=NIGHT
        )
    due = agenda.due_sets(bench.library, NIGHT, min_frames=5, quiet_s=0)
    assert [(group.frame_type, group.exposure_s) for group in due] == [
        (BIAS, pytest.approx(6.4e-5)),
        (DARK, 10.0),
        (DARK, 50.0),
        (FLAT, 0.005),
    ]
    images = {}
    for group in due:
        frames = bench.library.frames_of(group.id)
        subtract = candidates.pedestals(bench.library, group, frames)
        master, image, _ = bench.build(group.id, subtract=subtract)
        # In three darks of five the last rows were cut short: dark current cannot fall.
        dark = group.frame_type is DARK
        assert (master.frames, len(master.notes)) == ((2, 3) if dark else (5, 0))
        assert all("it was cut short" in note for note in master.notes)
        images[group.frame_type, group.exposure_s] = image
        # against the plain mean: they agree but for the rejected outliers
        plain = np.mean(
            [fits.getdata(f.path).astype(float) for f in bench.library.frames_of(group.id)], axis=0
        )
        if subtract:
            assert group.frame_type is FLAT
            [pedestal] = {one.id: one for one in subtract.values()}.values()
            plain -= master_file.load_master(bench.root, pedestal)
            assert pedestal.frame_type is BIAS
        assert np.median(image) == pytest.approx(np.median(plain), rel=0.01)
    bias, short, long, flat = images.values()
    # darkness grows with exposure, the flat is bright, and hot pixels grow linearly
    assert np.median(bias) < np.median(short) < np.median(long) < np.median(flat)
    assert np.median(long[-64:]) == pytest.approx(np.median(long), rel=0.01)
    hot = (long - bias > 3000) & (long < 50000)
    assert hot.sum() > 50
    assert np.median((short - bias)[hot] / (long - bias)[hot]) == pytest.approx(0.2, abs=0.05)
    light = candidates.best(
        bench.library,
        record(
            FrameType.LIGHT,
            key=due[0].key,
            exposure_s=50.0,
            temperature_c=25.9,
            date_obs=dt.datetime(2024, 4, 18, 22, 0, tzinfo=dt.UTC),
        ),
        DARK,
        session=None,
    )
    assert light.chosen.exposure_s == 50.0


# --- what it takes -------------------------------------------------------------------------------

BUILD_ALONE = """
import sys
from pathlib import Path
from calib_library import build
from calib_library.library import CalibrationLibrary
root, set_id = Path(sys.argv[1]), int(sys.argv[2])
with CalibrationLibrary.open(root) as library:
    build.build(library.set(set_id), library.frames_of(set_id), root=root, generation=2)
print(*sys.modules)
"""


def test_a_script_that_builds_a_master_loads_no_more_than_it_needs(bench):
    """Half of its time would be modules: those of the daemon, and what numba knows of scipy."""
    set_id = bench.take_many(DARK, noisy(LEVEL, 5))
    bench.build(set_id)  # from now on its kernels are in the cache
    done = subprocess.run(
        [sys.executable, "-c", BUILD_ALONE, str(bench.root), str(set_id)],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = set(done.stdout.split())
    assert "numba" in loaded
    assert not loaded & {
        "daemon", "pydantic", "apscheduler", "watchdog", "astropy", "PIL", "astroalign",
        "scipy.linalg", "numba.np.linalg",
    }  # fmt: skip


def test_darks_that_all_leak_as_they_please_are_told(bench):
    """A slope of 0 to 120 ADU, half to three halves as strong in each frame: no vote finds the
    wrong ones, since all are.
    """
    strengths = np.random.default_rng(6).uniform(0.5, 1.5, 8)
    slope = np.linspace(0.0, 120.0, NX)
    images = [
        image + strength * slope for image, strength in zip(noisy(LEVEL, 8), strengths, strict=True)
    ]
    master, _, _ = bench.build(bench.take_many(DARK, images))
    [note] = master.notes
    assert note.startswith("These frames do not agree: in a part of the image")
    # The block at the bright edge against the middle: 3/8 of 120 ADU for a strength of 1.
    expected = 0.375 * 120.0 * np.std(strengths, ddof=1)
    told = float(note.split("scatter by ")[1].split(" ADU")[0])
    assert told == pytest.approx(expected, rel=0.25)


def test_darks_whose_whole_level_drifts_are_not(bench):
    images = [image + drift for drift, image in zip(range(0, 16, 2), noisy(LEVEL, 8), strict=True)]
    assert bench.build(bench.take_many(DARK, images))[0].notes == ()
