"""What a person asks of the library: a master chosen by hand, one made elsewhere taken in."""

import dataclasses
import datetime as dt
import hashlib
import json
import shutil
from contextlib import closing

import numpy as np
import pytest
from astropy.io import fits

from calib_library import schema
from calib_library.catalogue import by_hand
from calib_library.frame import FrameType
from calib_library.library import CalibrationLibrary
from daemon import cli
from tests import xisf_files
from tests.daemons import write_config
from tests.nights import Outcome, config_for, run, told
from tests.situations import HOT, NX, NY, PEDESTAL, Situation

CAMERA = "Camera cam"


def worked_through(tmp_path):
    """(configuration, its file) after the service has worked through what is there."""
    config = config_for(tmp_path)
    run(config)
    return config, write_config(tmp_path)


@pytest.fixture
def night(tmp_path):
    """Darks of gain 100 and 0, a light of gain 100; the service has worked through them."""
    camera = Situation(tmp_path / "in", "cam")
    camera.darks(GAIN=100)
    camera.darks(GAIN=0)
    camera.light()
    return worked_through(tmp_path)


def command(file, *words) -> int:
    return cli.main(["library", *words, "--config", str(file)])


def used(config):
    """(the light's frame, its member, the masters by gain)."""
    outcome = Outcome(config)
    [member] = [m for ms in outcome.members.values() for m in ms]
    return outcome.frame("cam_light"), member, {m.key.gain: m for m in outcome.masters}


@pytest.mark.parametrize("scope", [["--target", "cam"], ["--frame", "cam_light"]])
def test_a_master_chosen_by_hand_is_used_and_given_up_again(night, scope):
    config, file = night
    _, member, masters = used(config)
    assert member.masters["dark"] == masters[100.0].id
    before = Outcome(config).stacks[0].generation

    assert command(file, "use", masters[0.0].name, *scope) == 0
    light, member, _ = used(config)
    assert member.masters["dark"] == masters[0.0].id
    assert "dark chosen by hand" in member.flags
    assert f"{masters[0.0].name}: chosen by hand for the {scope[0][2:]}" in told(light)
    assert "by the rules: gain 0, the light has 100" in told(light)
    assert Outcome(config).stacks[0].generation > before

    assert command(file, "use", "--remove", *scope) == 0
    light, member, _ = used(config)
    assert member.masters["dark"] == masters[100.0].id
    assert "chosen by hand" not in told(light)


def test_a_master_chosen_for_a_frame_is_used_when_the_frame_comes(night, tmp_path):
    """By the hash of its file: a person may choose while the frame waits."""
    config, _ = night
    _, _, masters = used(config)
    Situation(tmp_path / "aside", "later").light(INSTRUME=CAMERA, sky=310.0)
    (later,) = (tmp_path / "aside" / "later").iterdir()
    sha256 = hashlib.sha256(later.read_bytes()).hexdigest()
    db = schema.connect(config.library.path / schema.DATABASE_NAME)
    with closing(db.conn):
        by_hand.use(
            CalibrationLibrary(db, config.library.path),
            masters[0.0].id,
            FrameType.DARK,
            scope="frame",
            subject=sha256,
            now=dt.datetime(2026, 1, 11, tzinfo=dt.UTC),
        )
    later.rename(tmp_path / "in" / later.name)
    run(config)
    outcome = Outcome(config)
    darks = {
        outcome.frame(name).id: masters[gain].id
        for name, gain in (("cam_light", 100.0), ("later_light", 0.0))
    }
    members = [member for members in outcome.members.values() for member in members]
    assert {member.frame_id: member.masters["dark"] for member in members} == darks


def test_what_is_asked_wrongly_is_said(night, capsys):
    config, file = night
    assert command(file, "use", "MasterDark") == 2
    assert command(file, "use", "--target", "cam") == 2
    assert command(file, "use", "MasterDark", "--target", "cam") == 1  # two of them
    complaint = capsys.readouterr().err
    assert "which of these?" in complaint
    assert command(file, "use", "NoSuch", "--target", "cam") == 1
    _, _, masters = used(config)
    assert command(file, "use", masters[0.0].name, "--target", "cam", "--kind", "flat") == 0
    assert "cannot be used as a flat" in Outcome(config).log
    assert used(config)[1].masters["flat"] is None


@pytest.mark.parametrize("scope", [["--target", "cam"], ["--frame", "cam_light"]])
def test_a_dark_is_extrapolated_far_only_by_hand(tmp_path, scope, capsys):
    """4 °C beyond the warmest of two darks: by the rules there is no dark (section 1, rule 4)."""
    camera = Situation(tmp_path / "in", "cam")
    camera.darks(**{"CCD-TEMP": -14.0, "SET-TEMP": -14.0})
    camera.darks(**{"CCD-TEMP": -18.0, "SET-TEMP": -18.0})
    config = config_for(tmp_path)
    run(config)  # neither will serve the light, so it would not wait for their masters
    camera.light()
    run(config)
    file = tmp_path / "config.toml"
    file.write_text(
        f'[library]\npath = "{config.library.path}"\n[[watch]]\npath = "{tmp_path / "in"}"\n'
    )
    light, member, _ = used(config)
    assert member.masters["dark"] is None
    assert "no dark" in member.flags
    assert "is 4.0 °C off" in told(light)

    assert command(file, "use", "--extrapolate", *scope) == 0
    assert "may be extrapolated by up to 5 °C, by hand" in Outcome(config).log
    light, member, _ = used(config)
    assert "dark: extrapolated by order" in member.flags
    assert "extrapolated by order" in told(light)
    assert {source["temperature_c"] for leg in member.masters["dark_model"]["legs"]
            for source in (leg["near"], leg["other"])} == {-14.0, -18.0}  # fmt: skip

    assert command(file, "use", "--remove", *scope) == 0
    assert used(config)[1].masters["dark"] is None
    assert command(file, "use", "--extrapolate", "--remove", *scope) == 2
    assert "or --extrapolate, or --remove" in capsys.readouterr().err


def test_one_camera_under_two_programs_has_one_name(tmp_path):
    """Darks taken with INDI, whose driver names the camera otherwise; lights with N.I.N.A."""
    camera = Situation(tmp_path / "in", "cam")
    camera.darks(INSTRUME="ZWO CCD ASI533MM Pro")
    camera.light(INSTRUME="ZWO ASI533MM Pro")
    names = '[calibration]\ncameras = { "zwo  ccd asi533mm pro" = "ZWO ASI533MM Pro" }\n'
    config = config_for(tmp_path, extra=names)
    run(config)
    outcome = Outcome(config)
    [master] = outcome.masters
    assert master.key.camera == "ZWO ASI533MM Pro"
    [member] = [m for ms in outcome.members.values() for m in ms]
    assert member.masters["dark"] == master.id
    read = told(next(frame for frame in outcome.frames if "dark" in frame.name))
    assert "camera = ZWO ASI533MM Pro  (from INSTRUME (ZWO CCD ASI533MM Pro), renamed)" in read
    file = tmp_path / "config.toml"
    file.write_text(
        f'[library]\npath = "{config.library.path}"\n[[watch]]\npath = "{tmp_path / "in"}"\n{names}'
    )
    indi = {"INSTRUME": "ZWO CCD ASI533MM Pro", "GAIN": 100, "OFFSET": 50, "CCD_TEMP": -15.0}
    path = foreign(tmp_path / "m.fits", unit(PEDESTAL + HOT), **(PIXINSIGHT | indi))
    assert command(file, "import", str(path)) == 0
    assert {one.key.camera for one in Outcome(config).masters} == {"ZWO ASI533MM Pro"}


# --- masters made elsewhere ----------------------------------------------------------------------


def foreign(path, image, **cards):
    """A master as another program writes it."""
    hdu = fits.PrimaryHDU(image)
    for keyword, value in cards.items():
        hdu.header[keyword.replace("_", "-")] = value
    hdu.writeto(path)
    return path


def unit(image):
    return (image / 65535.0).astype(np.float32)


PIXINSIGHT = {
    "IMAGETYP": "Master Dark",
    "EXPTIME": 30.0,
    "INSTRUME": CAMERA,
    "XBINNING": 1,
    "YBINNING": 1,
    "PROGRAM": "PixInsight 1.8.9",
}


@pytest.fixture
def lights(tmp_path):
    """Two lights and nothing else: no camera's frames to infer from."""
    camera = Situation(tmp_path / "in", "cam")
    camera.light()
    return worked_through(tmp_path)


def test_a_pixinsight_master_is_asked_for_what_it_lacks_then_used(lights, tmp_path, capsys):
    config, file = lights
    path = foreign(tmp_path / "masterDark.fits", unit(PEDESTAL + HOT), **PIXINSIGHT)
    assert command(file, "import", str(path)) == 1
    complaint = capsys.readouterr().err
    assert "does not say its temperature, its gain, its offset" in complaint
    assert "--temperature -10 (°C), --gain 100, --offset 50" in complaint

    options = ["--temperature", "-10", "--gain", "100", "--offset", "50"]
    assert command(file, "import", str(path), *options) == 0
    outcome = Outcome(config)
    [master] = outcome.masters
    assert master.version == "imported, made by PixInsight 1.8.9"
    assert (master.temperature_c, master.key.gain, master.key.storage) == (-10.0, 100.0, "uint16")
    image = fits.getdata(config.library.path / master.path)
    assert np.abs(image - (PEDESTAL + HOT)).max() < 0.01  # ADU
    # The light that had none was made again with it.
    [member] = [m for ms in outcome.members.values() for m in ms]
    assert member.masters["dark"] == master.id
    assert path.exists()

    assert command(file, "import", str(path), *options) == 0
    assert "in the library already" in Outcome(config).log
    assert len(Outcome(config).masters) == 1


def test_a_siril_master_of_floats_and_an_asiair_bias(lights, tmp_path):
    config, file = lights
    siril = foreign(
        tmp_path / "dark_stacked.fits",
        unit(PEDESTAL + HOT),
        IMAGETYP="DARK",
        EXPTIME=30.0,
        INSTRUME=CAMERA,
        CCD_TEMP=-10.0,
        GAIN=100,
        OFFSET=50,
        STACKCNT=40,
        PROGRAM="Siril 1.2.0",
    )
    assert command(file, "import", str(siril)) == 0
    asiair = foreign(
        tmp_path / "Bias.fit",
        np.full((NY, NX), PEDESTAL, np.uint16),
        IMAGETYP="Bias",
        EXPTIME=0.001,
        STACKCNT=100,
        CREATOR="ZWO ASIAIR Plus",
        INSTRUME=CAMERA,
        GAIN=100,
        OFFSET=50,
        CCD_TEMP=-10.0,
    )
    assert command(file, "import", str(asiair)) == 0
    masters = {m.frame_type: m for m in Outcome(config).masters}
    assert (masters["dark"].frames, masters["bias"].frames) == (40, 100)
    bias = fits.getdata(config.library.path / masters["bias"].path)
    assert (bias == PEDESTAL).all()


def test_a_scale_that_nothing_tells_is_asked_for(lights, tmp_path, capsys):
    config, file = lights
    cards = PIXINSIGHT | {"PROGRAM": "Unheard Of", "GAIN": 100, "OFFSET": 50, "CCD_TEMP": -10.0}
    path = foreign(tmp_path / "m.fits", unit(PEDESTAL + HOT), **cards)
    assert command(file, "import", str(path)) == 1
    assert "nothing tells what 1 stands for. Give --full-scale 65535" in capsys.readouterr().err
    assert command(file, "import", str(path), "--full-scale", "65535") == 0
    [master] = Outcome(config).masters
    image = fits.getdata(config.library.path / master.path)
    assert np.median(image) == pytest.approx(PEDESTAL, abs=0.01)


def test_the_camera_s_own_frames_tell_what_is_lacking_and_the_scale(night, tmp_path):
    config, file = night
    cards = PIXINSIGHT | {"PROGRAM": "Unheard Of", "CCD_TEMP": -10.0, "GAIN": 100}
    path = foreign(tmp_path / "m.fits", unit(PEDESTAL + HOT), **cards)
    assert command(file, "import", str(path)) == 0
    log = Outcome(config).log
    assert "Its offset (50.0) was taken from the camera's frames." in log
    assert "multiplied by 65535, at which it is as MasterDark_30s" in log


@pytest.mark.parametrize(
    ("image", "cards", "sentence"),
    [
        (unit(PEDESTAL + HOT), {"CALSTAT": "B"}, "had its bias subtracted already"),
        (np.zeros((3, NY, NX), np.float32), {}, "is a colour image of three planes"),
        (unit(PEDESTAL + HOT), {"IMAGETYP": "Light Frame"}, "does not say its type. Give --type"),
    ],
)
def test_what_cannot_be_a_master_is_refused(lights, tmp_path, capsys, image, cards, sentence):
    _, file = lights
    path = foreign(tmp_path / "m.fits", image, **(PIXINSIGHT | cards))
    assert command(file, "import", str(path)) == 1
    assert sentence in capsys.readouterr().err


def test_raw_frames_never_mix_with_an_imported_master(lights, tmp_path):
    """They make a set and a master of their own; the better one of the two is chosen."""
    config, file = lights
    cards = PIXINSIGHT | {"GAIN": 100, "OFFSET": 50, "CCD_TEMP": -10.0, "NCOMBINE": 3}
    path = foreign(tmp_path / "m.fits", unit(PEDESTAL + HOT), **cards)
    assert command(file, "import", str(path)) == 0
    Situation(tmp_path / "in", "cam2").darks(INSTRUME=CAMERA)
    run(config)
    masters = Outcome(config).masters
    assert sorted(m.frames for m in masters) == [3, 5]
    assert len({m.set_id for m in masters}) == 2
    assert all(m.superseded_by is None for m in masters)


@pytest.mark.parametrize("how", [["--from-files"], []])
def test_an_imported_master_outlives_the_database(lights, tmp_path, how):
    """With the backup too: it is older than the import, and does not know of it."""
    config, file = lights
    database = config.library.path / "lightkeeper.db"
    (config.library.path / "backup").mkdir(exist_ok=True)
    shutil.copy(database, config.library.path / "backup" / "lightkeeper-20260101-120000.db")
    flat = {"IMAGETYP": "Master Flat", "FILTER": "H", "DATE-OBS": "2026-01-01T18:00:00"}
    optics = {"TELESCOP": "Newton", "FOCALLEN": 800.0, "BAYERPAT": "RGGB", "ROWORDER": "BOTTOM-UP"}
    of_camera = {"INSTRUME": CAMERA, "GAIN": 100, "OFFSET": 50, "CCD-TEMP": -10.0, "STACKCNT": 30}
    siril = {"PROGRAM": "Siril 1.2.0", "EXPTIME": 30.0}
    for name, cards in (
        ("dark.fits", {"IMAGETYP": "DARK", **of_camera, **siril}),
        ("flat.fits", {**flat, **optics, **of_camera, **siril}),
    ):
        foreign(tmp_path / name, unit(PEDESTAL + HOT), **cards)
        assert command(file, "import", str(tmp_path / name)) == 0
    before = Outcome(config)
    [member] = [m for ms in before.members.values() for m in ms]
    assert len(before.masters) == 2
    assert member.masters["dark"] is not None
    stranger = config.library.path / "masters" / "MasterDark_of_nothing.fits"
    foreign(stranger, unit(PEDESTAL + HOT), **PIXINSIGHT)
    for path in config.library.path.glob("lightkeeper.db*"):
        path.unlink()

    assert cli.main(["rebuild", *how, "--config", str(file)]) == 0
    run(config)

    after = Outcome(config)
    forget = {"id": 0, "set_id": 0, "built_at": before.masters[0].built_at, "notes": ()}
    assert {dataclasses.replace(one, **forget) for one in after.masters} == {
        dataclasses.replace(one, **forget) for one in before.masters
    }
    if how:  # the backup has the light stacked already, as it was before the import
        [again] = [m for ms in after.members.values() for m in ms]
        assert again.masters["dark"] in {m.id for m in after.masters if m.frame_type == "dark"}
    assert list(config.library.path.glob(f"recovered/*/masters/{stranger.name}"))
    assert command(file, "import", str(tmp_path / "dark.fits")) == 0
    assert "in the library already" in Outcome(config).log


# --- PixInsight's own files ----------------------------------------------------------------------


def pixinsight(path, image, *, kind="Master Dark", **cards):
    """A master as WBPP leaves it: what it is in keywords and properties, no gain, no offset."""
    history = "&lt;table id=&quot;images&quot; rows=&quot;40&quot;&gt;"
    said = {"IMAGETYP": kind, "EXPTIME": 30.0, "INSTRUME": CAMERA} | cards
    inside = (
        xisf_files.keywords(**said)
        + xisf_files.prop("Instrument:Sensor:Temperature", -10)
        + xisf_files.prop("PixInsight:ProcessingHistory", history, "String")
    )
    return xisf_files.write(path, image, inside, codec="zlib", shuffle=True, checksum="sha-1")


def test_a_master_of_pixinsight_s_own_format_is_used_and_outlives_the_database(lights, tmp_path):
    config, file = lights
    settings = ["--gain", "100", "--offset", "50"]
    dark = pixinsight(tmp_path / "masterDark.xisf", unit(PEDESTAL + HOT))
    bias = pixinsight(
        tmp_path / "masterBias.xisf",
        np.full((NY, NX), PEDESTAL * 65537, np.uint32),
        kind="Master Bias",
        EXPTIME=0.001,
    )
    flat = pixinsight(
        tmp_path / "masterFlat.xisf",
        np.full((NY, NX), 0.4),  # double precision
        kind="Master Flat",
        FILTER="H",
        EXPTIME=1.0,
    )
    for path in (dark, bias, flat):
        assert command(file, "import", str(path), *settings) == 0
    before = {one.frame_type: one for one in Outcome(config).masters}
    assert {kind: one.frames for kind, one in before.items()} == dict.fromkeys(before, 40)
    assert before["dark"].temperature_c == -10.0
    assert before["dark"].version == "imported, made by PixInsight 1.8.9"
    for kind, truth in (("dark", PEDESTAL + HOT), ("bias", PEDESTAL), ("flat", 30_000.0)):
        image = fits.getdata(config.library.path / before[kind].path)
        assert np.abs(image - truth).max() < 0.01  # ADU
    assert "32 bits were divided by 65537" in Outcome(config).log
    [member] = [m for ms in Outcome(config).members.values() for m in ms]
    assert member.masters["dark"] == before["dark"].id

    for path in config.library.path.glob("lightkeeper.db*"):
        path.unlink()
    assert cli.main(["rebuild", "--from-files", "--config", str(file)]) == 0
    after = {one.frame_type: one for one in Outcome(config).masters}
    assert {kind: one.path for kind, one in after.items()} == {
        kind: one.path for kind, one in before.items()
    }
    assert command(file, "import", str(dark), *settings) == 0
    assert "in the library already" in Outcome(config).log


def test_a_master_that_lies_the_other_way_up_is_turned_as_its_hot_pixels_tell(night, tmp_path):
    config, file = night
    upside_down = pixinsight(tmp_path / "m.xisf", unit(PEDESTAL + HOT)[::-1].copy(), GAIN=100)
    assert command(file, "import", str(upside_down)) == 0
    assert "It was turned upside down" in Outcome(config).log
    [master] = [one for one in Outcome(config).masters if one.version.startswith("imported")]
    image = fits.getdata(config.library.path / master.path)
    assert np.abs(image - (PEDESTAL + HOT)).max() < 0.01


def test_a_dark_of_another_sensor_is_told_by_its_hot_pixels(night, tmp_path):
    config, file = night
    other = np.random.default_rng(77).permuted(PEDESTAL + HOT)
    assert command(file, "import", str(pixinsight(tmp_path / "m.xisf", unit(other), GAIN=100))) == 0
    assert "is it of this very camera?" in Outcome(config).log


def test_frames_stored_bottom_up_get_their_master_so(tmp_path):
    """PixInsight turns them around when it reads them, and leaves the keyword."""
    camera = Situation(tmp_path / "in", "cam")
    camera.darks(GAIN=100, ROWORDER="BOTTOM-UP")
    camera.light(ROWORDER="BOTTOM-UP")
    config = config_for(tmp_path)
    run(config)
    file = tmp_path / "config.toml"
    file.write_text(
        f'[library]\npath = "{config.library.path}"\n[[watch]]\npath = "{tmp_path / "in"}"\n'
    )
    flat = np.linspace(0.3, 0.5, NY * NX).reshape(NY, NX).astype(np.float32)
    path = pixinsight(
        tmp_path / "f.xisf", flat[::-1].copy(), kind="Master Flat", FILTER="H",
        GAIN=100, ROWORDER="BOTTOM-UP",
    )  # fmt: skip
    assert command(file, "import", str(path)) == 0
    [master] = [one for one in Outcome(config).masters if one.version.startswith("imported")]
    assert master.row_order == "BOTTOM-UP"
    image = fits.getdata(config.library.path / master.path)
    np.testing.assert_allclose(image / np.median(image), flat / np.median(flat), rtol=1e-5)


def test_a_pedestal_in_adu_is_taken_off_a_master_of_zero_to_one(lights, tmp_path):
    config, file = lights
    path = pixinsight(
        tmp_path / "m.xisf", unit(PEDESTAL + HOT + 150), GAIN=100, OFFSET=50, PEDESTAL=150
    )
    assert command(file, "import", str(path)) == 0
    [master] = Outcome(config).masters
    image = fits.getdata(config.library.path / master.path)
    assert np.abs(image - (PEDESTAL + HOT)).max() < 0.01


def test_eight_bits_are_too_coarse_for_a_master(lights, tmp_path, capsys):
    _, file = lights
    path = pixinsight(tmp_path / "m.xisf", np.full((NY, NX), 3, np.uint8), GAIN=100, OFFSET=50)
    assert command(file, "import", str(path)) == 1
    assert "only 8 bits a pixel" in capsys.readouterr().err


def test_an_order_that_is_none_is_said_and_put_away(lights):
    config, _ = lights
    folder = config.library.path / "orders"
    folder.mkdir(exist_ok=True)
    (folder / "x.json").write_text(json.dumps({"action": "use", "id": 1, "words": ["no"]}))
    run(config)
    assert "this is no order" in Outcome(config).log
    assert not list(folder.iterdir())
