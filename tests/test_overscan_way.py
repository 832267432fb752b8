"""Overscan and trim on the whole way: masters, lights, the growing and the exact stack."""

import sqlite3

import numpy as np
import pytest

from calib_library import master_file, overscan, schema
from calib_library.catalogue import registry
from calib_library.errors import HeaderError
from calib_library.frame import FrameType
from calib_library.images import product_file
from calib_library.library import CalibrationLibrary
from daemon import service
from daemon.orders import Action, Order
from tests.nights import Outcome, config_for, run
from tests.records import KEY, key
from tests.situations import HOT, NOISE, NX, NY, STARS, VIGNETTE, Situation
from tests.test_library import at, built, put_many

STRIP = 32  # px of overscan, on the right
WIDE = NX + STRIP
SECTIONS = {"BIASSEC": f"[{NX + 1}:{WIDE},1:{NY}]", "TRIMSEC": f"[5:{NX},1:{NY}]"}
SKY, FLAT_LEVEL = 400.0, 20000.0


def raw(image, *, level):
    """A read-out: the image over the bias structure, the overscan, over the level of this frame."""
    structure = 8.0 * np.sin(np.arange(WIDE) / 9.0)  # ADU, of the columns
    whole = np.zeros((NY, WIDE))
    whole[:, :NX] = image + structure[:NX]
    return whole + level


def shot(generator, image):
    return generator.poisson(np.clip(image, 0, None)).astype(float)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Every frame stands on another level, by tens of ADU: only its overscan tells which."""
    tmp_path = tmp_path_factory.mktemp("overscan")
    camera = Situation(tmp_path / "in", "ccd")
    generator = np.random.default_rng(3)

    def level():
        return generator.uniform(400.0, 480.0)

    for _ in range(8):
        camera.put("dark", raw(HOT, level=level()), IMAGETYP="DARK", **SECTIONS)
        flat = shot(generator, FLAT_LEVEL * VIGNETTE)
        camera.put(
            "flat", raw(flat, level=level()), IMAGETYP="FLAT", FILTER="R", EXPTIME=2.0, **SECTIONS
        )
        camera.put(
            "bias", raw(np.zeros((NY, NX)), level=level()), IMAGETYP="BIAS", EXPTIME=0.0, **SECTIONS
        )
    for _ in range(4):
        light = shot(generator, (SKY + STARS) * VIGNETTE) + HOT
        camera.put(
            "light", raw(light, level=level()), IMAGETYP="LIGHT", FILTER="R", OBJECT="x", **SECTIONS
        )
    config = config_for(tmp_path)
    run(config)
    return config, Outcome(config)


def test_masters_hold_the_structure_of_the_bias_and_no_level(night):
    config, outcome = night
    with CalibrationLibrary.open(config.library.path, readonly=True) as library:
        images = {m.frame_type: master_file.load_master(library.root, m) for m in outcome.masters}
    error = NOISE / np.sqrt(8)
    structure = raw(np.zeros((NY, NX)), level=0.0)[:, :NX]
    bias = images[FrameType.BIAS][:, :NX]
    assert abs(np.mean(bias - structure)) < 0.5  # ADU: one level a frame, from 28 columns
    assert np.std(bias - structure) == pytest.approx(error, rel=0.1)
    dark = images[FrameType.DARK][:, :NX]
    assert abs(np.mean(dark - structure - HOT)) < 0.5
    flat = images[FrameType.FLAT][:, :NX]
    assert np.mean(flat / VIGNETTE) == pytest.approx(FLAT_LEVEL, rel=0.002)


def test_a_light_loses_its_own_level_and_what_is_no_sensor(night):
    _, outcome = night
    assert outcome.states()["stacked"] == 4
    [stack] = outcome.stacks
    image = outcome.image(stack)
    assert image.shape == (NY, NX - 4)
    # The sky stands at its own level although the frames stood 80 ADU apart.
    # A flat is 1 in its centre, where the vignette is not.
    centre = VIGNETTE[:, 4:][NY // 4 : -NY // 4, NX // 4 : -NX // 4].mean()
    dim = np.median(image[STARS[:, 4:] < 0.5])
    assert dim == pytest.approx(SKY * centre, abs=1.0)


def test_the_exact_stack_is_that_of_the_growing_one(night):
    config, outcome = night
    [stack] = outcome.stacks
    growing = outcome.image(stack)
    assert service.carry_out(config, [Order(Action.FINISH, stack.id)]) == 0
    after = Outcome(config)
    [stack] = after.stacks
    exact = product_file.read_product(config.library.path / stack.final_path)[0]
    assert exact.shape == growing.shape
    inner = np.s_[10:-10, 10:-10]
    difference = (exact - growing)[inner]
    assert abs(np.median(difference)) < 0.2
    assert np.percentile(np.abs(difference), 99) < 15.0


# --- the parts -----------------------------------------------------------------------------------


def sections(trim="", bias="", data=""):
    return overscan.of_key(f"{trim};{bias};{data}")


def test_the_first_columns_of_the_strip_do_not_count():
    image = np.full((60, 80), 500.0, np.float32)
    image[:, 64:67] += 40.0  # charge of the image that trails into the overscan
    found = overscan.correction(image, sections(bias="[65:80,1:60]"))
    assert found.shape == (60, 1)
    assert (found == 500.0).all()


def test_lines_are_corrected_alone_only_where_they_drift():
    generator = np.random.default_rng(2)
    image = generator.normal(500.0, 8.0, (200, 80)).astype(np.float32)
    steady = overscan.correction(image, sections(bias="[49:80,1:200]"))
    assert np.ptp(steady) == 0.0
    image += np.linspace(0, 30, 200, dtype=np.float32)[:, np.newaxis]
    drifting = overscan.correction(image, sections(bias="[49:80,1:200]"))
    assert np.ptp(drifting) > 20.0


def test_a_mosaic_s_trim_begins_at_even_pixels():
    text = "[4:60,2:40];;"
    assert overscan.of_key(text).trim == overscan.Section(3, 60, 1, 40)
    assert overscan.of_key(text, mosaic=True).trim == overscan.Section(4, 60, 2, 40)
    assert overscan.of_key(";;[1:50,1:40]").trim == overscan.Section(0, 50, 0, 40)
    assert overscan.of_key(None) == overscan.Sections(None, None)
    with pytest.raises(HeaderError):
        overscan.of_key("[1:2];;")


def test_masters_of_before_keep_their_frames_as_they_were(tmp_path):
    """A library of the version before: its masters hold the overscan's level, so they must not
    meet lights that have lost it, and their sets are due.
    """
    text = "[1:60,1:48];[61:64,1:48];"
    with CalibrationLibrary.open(tmp_path) as library:
        set_id = put_many(library, FrameType.DARK, 5, key=key(sections=text))
        registry.register(library, built(library, set_id), at(1))
        plain = put_many(library, FrameType.DARK, 5, name="p", key=KEY)
        registry.register(library, built(library, plain), at(1))
    with sqlite3.connect(tmp_path / schema.DATABASE_NAME) as db:
        _undo(db)
    with CalibrationLibrary.open(tmp_path) as library:
        old = library.set(set_id)
        assert old.changed
        assert old.master.key.sections == text + overscan.KEPT
        assert overscan.of_key(old.master.key.sections) == overscan.Sections(None, None)
        assert not library.set(plain).changed
        assert library.set(plain).master.key == KEY


def _undo(db):
    """Bring a database back to before the last migration."""
    for table, column in (
        ("calibration_set", "date_obs"),
        ("calibration_set", "accepted"),
        ("calibration_set", "imported"),
        ("master_input", "subtracted"),
    ):
        db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    db.execute("DROP TABLE master_choice")
    db.execute("DELETE FROM _sqlite_migrations WHERE name = 'ages_pedestals_imports_overrides'")
