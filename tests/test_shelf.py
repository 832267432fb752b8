"""What a person asks of the library: a master chosen by hand, one made elsewhere taken in."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from astropy.io import fits

from daemon import cli
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


def test_an_order_that_is_none_is_said_and_put_away(lights):
    config, _ = lights
    folder = config.library.path / "orders"
    folder.mkdir(exist_ok=True)
    (folder / "x.json").write_text(json.dumps({"action": "use", "id": 1, "words": ["no"]}))
    run(config)
    assert "this is no order" in Outcome(config).log
    assert not list(folder.iterdir())
