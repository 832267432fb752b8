"""Flats of the sky and of the dome: told apart by the header, together on the light."""

import dataclasses
import datetime as dt
import json

import numpy as np
import pytest

from calib_library import restore
from calib_library.catalogue import by_hand, candidates, registry
from calib_library.frame import FrameRecord, FrameType
from calib_library.images import product_file
from calib_library.library import CalibrationLibrary
from daemon import service
from daemon.calibration import Calibrator, masters_in
from daemon.orders import Action, Order
from tests import records
from tests.nights import Outcome, config_for, run
from tests.situations import HOT, NX, NY, PEDESTAL, STARS, VIGNETTE, Situation, X, Y
from tests.test_header import read
from tests.test_library import at, built, put_many

FLAT, LIGHT = FrameType.FLAT, FrameType.LIGHT
DAY = dt.timedelta(days=1)

# --- the header ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cards", "path", "light"),
    [
        ({"IMAGETYP": "Sky Flat"}, "a.fits", "sky"),
        ({"IMAGETYP": "SKYFLAT"}, "a.fits", "sky"),
        ({"IMAGETYP": "twilight flat frame"}, "a.fits", "sky"),
        ({"IMAGETYP": "DomeFlat"}, "a.fits", "dome"),
        ({"IMAGETYP": "FLAT", "OBSTYPE": "dome flat"}, "a.fits", "dome"),
        ({"IMAGETYP": "FLAT", "OBJECT": "Sky Flats"}, "a.fits", "sky"),
        ({"IMAGETYP": "FLAT"}, "SkyFlats/R_001.fits", "sky"),
        ({"IMAGETYP": "FLAT"}, "flats/Dome flat_R_001.fits", "dome"),
        ({"IMAGETYP": "FLAT", "OBJECT": "DOMEFLAT"}, "skyflats/a.fits", "dome"),
        ({"IMAGETYP": "FLAT"}, "flats/a.fits", None),
        ({"IMAGETYP": "FLAT"}, "skyflats/domeflat_skyflat.fits", None),
        ({"IMAGETYP": "FLAT", "OBJECT": "Sky"}, "a.fits", None),
        ({"IMAGETYP": "LIGHT", "OBJECT": "Sky Flat"}, "a.fits", None),
    ],
)
def test_what_a_flat_was_taken_of(cards, path, light):
    found = read(path, **cards)
    assert found.flat_light == light
    assert ("flat_light" in found.sources) == (light is not None)
    assert FrameRecord.from_json(found.to_json()) == found


def test_a_record_written_before_is_a_flat_of_unknown_light():
    old = json.loads(records.record(FLAT).to_json())
    del old["flat_light"]
    assert FrameRecord.from_json(json.dumps(old)).flat_light is None


# --- sets and the choice -------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path):
    with CalibrationLibrary.open(tmp_path) as library:
        yield library


def flats(library, light, *, night=0, **fields):
    """The master of four flats of one light, so many nights later."""
    moment, session = records.NIGHT + night * DAY, f"2026-11-{20 + night}"
    name = f"{light}{night}{fields}"
    taken = {"filter": "R", "flat_light": light, "date_obs": moment} | fields
    set_id = put_many(library, FLAT, 4, name=name, session=session, **taken)
    one = dataclasses.replace(built(library, set_id), date_obs=moment)
    return registry.register(library, one, at(9))


def calibrated(library, *, night=0, target=None):
    """The calibrator, a light, and what it chose for it."""
    calibrator = Calibrator(library, root=library.root, min_frames=3, quiet_s=lambda: 0.0)
    light = records.record(LIGHT, filter="R", date_obs=records.NIGHT + night * DAY)
    session = f"2026-11-{20 + night}"
    return calibrator, light, calibrator.choose(light, session=session, now=None, target=target)


def pair(library, **when):
    choice = calibrated(library, **when)[2]
    return choice.flat, choice.sky_flat


def test_sky_and_dome_are_two_sets_and_two_predecessors(library):
    sky, dome, plain = (flats(library, light) for light in ("sky", "dome", None))
    assert len({sky.set_id, dome.set_id, plain.set_id}) == 3
    assert [one.flat_light for one in (sky, dome, plain)] == ["sky", "dome", None]
    later = flats(library, "dome", night=1)
    group = library.set(later.set_id)
    assert group.flat_light == "dome"
    # A new set of the dome is compared with the dome's flat, not with the sky's of the same night.
    library.db.execute("DELETE FROM master_input WHERE master = ?", [later.id])
    library.db.execute("DELETE FROM master WHERE id = ?", [later.id])
    flats(library, "sky", night=1)
    assert candidates.predecessor(library, library.set(later.set_id)) == dome


def test_a_dome_gets_the_sky_of_its_night_first_then_of_the_days_around(library):
    dome = flats(library, "dome", night=3)
    assert pair(library, night=3) == (dome, None)
    flats(library, "sky", night=3, filter="B")
    flats(library, "sky", night=3, rotator_deg=40.0)
    far = flats(library, "sky", night=1)
    assert pair(library, night=3) == (dome, far)
    near = flats(library, "sky", night=3)
    assert pair(library, night=3) == (dome, near)


def test_the_sky_alone_is_used_where_the_dome_is_of_another_night(library):
    flats(library, "dome", night=0)
    sky = flats(library, "sky", night=2)
    assert pair(library, night=2) == (sky, None)
    lines = dict(calibrated(library, night=2)[2].explanation)["Flat"]
    assert "is of another night" in lines[0]


def test_unmarked_flats_and_those_chosen_by_hand_stay_alone(library):
    plain = flats(library, None)
    flats(library, "sky", night=1)
    assert pair(library) == (plain, None)
    dome = flats(library, "dome", night=1)
    by_hand.use(library, dome.id, FLAT, scope="target", subject="M 1", now=at(0))
    assert pair(library, night=1, target="M 1") == (dome, None)


def test_what_was_used_is_recorded_and_a_new_sky_flat_changes_it(library):
    dome = flats(library, "dome")
    calibrator, light, choice = calibrated(library)
    alone = json.loads(json.dumps(choice.ids()))
    assert "sky_flat" not in alone

    def changed(masters):
        return calibrator.would_change(light, masters, session="2026-11-20")

    assert not changed(alone)
    sky = flats(library, "sky")
    assert changed(alone)
    both = json.loads(json.dumps(calibrated(library)[2].ids()))
    assert masters_in(both) == {dome.id, sky.id}
    assert not changed(both)
    assert calibrator.recorded(both).ids() == both
    # A light whose own pixels refused the pair is not done again for the same pair …
    refused = {name: value for name, value in both.items() if name != "sky_flat"}
    refused |= {"flat": None, "refused flat": dome.id}
    assert not changed(refused | {"refused sky flat": sky.id})
    # … and one that refused the dome alone gets its chance with the sky.
    assert changed(refused)


# --- the whole way -------------------------------------------------------------------------------

SKY_ADU = 3000.0
SCREEN = 1.0 + 0.05 * (X / NX - 0.5) - 0.04 * (Y / NY - 0.5)
SCREEN = SCREEN + 0.06 * np.exp(-((X - 220) ** 2 + (Y - 90) ** 2) / (2 * 70.0**2))
_RNG = np.random.default_rng(5)
RESPONSE = VIGNETTE * _RNG.normal(1.0, 0.01, VIGNETTE.shape)


def photons(image):
    return _RNG.poisson(np.clip(image, 0, None)).astype(float)


def unevenness(image):
    """Rms of the sky over blocks of 40 px about its mean: 0 in truth."""
    ny, nx = 40 * (NY // 40), 40 * (NX // 40)
    quiet = np.where(STARS < 0.5, image, np.nan)[:ny, :nx]
    blocks = quiet.reshape(ny // 40, 40, nx // 40, 40).transpose(0, 2, 1, 3)
    levels = np.nanmedian(blocks.reshape(*blocks.shape[:2], -1), axis=2)
    return np.std(levels) / np.mean(levels)


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Lights with darks and flats of the dome; then the sky's come, and all is done again."""
    tmp_path = tmp_path_factory.mktemp("dome")
    camera = Situation(tmp_path / "in", "dome")
    camera.darks()
    camera.biases()
    for _ in range(8):
        image = PEDESTAL + photons(25000 * RESPONSE * SCREEN)
        camera.put("flat", image, IMAGETYP="DOMEFLAT", FILTER="R", EXPTIME=2.0)
    for _ in range(4):
        image = PEDESTAL + HOT + photons((SKY_ADU + STARS) * RESPONSE)
        camera.put("light", image, IMAGETYP="LIGHT", FILTER="R", OBJECT="x")
    config = config_for(tmp_path)
    run(config)
    before = Outcome(config)
    first = before.image(before.stacks[0])
    for n in range(6):
        image = PEDESTAL + photons((20000 - 1500 * n) * RESPONSE)
        camera.put("twilight", image, IMAGETYP="Sky Flat", FILTER="R", EXPTIME=1.0 + n)
    run(config)
    return config, before, first, Outcome(config)


def test_the_sky_is_even_once_the_twilight_has_corrected_the_dome(nights):
    _, before, first, after = nights
    assert before.states()["stacked"] == 4
    assert after.stacks[0].generation > before.stacks[0].generation
    again = after.image(after.stacks[0])
    assert unevenness(first) > 0.01
    # 4 lights of 3,000 ADU leave 0.03 % to a block; the curvature of so small a screen the rest.
    assert unevenness(again) < 0.0025
    assert unevenness(again) < 0.15 * unevenness(first)


def test_members_and_the_header_say_of_both(nights):
    config, before, _, after = nights
    light = {m.flat_light: m.id for m in after.masters if m.frame_type is FLAT}
    assert set(light) == {"dome", "sky"}
    [old], [new] = ([*outcome.members.values()] for outcome in (before, after))
    assert {m.masters["flat"] for m in [*old, *new]} == {light["dome"]}
    assert not any("sky_flat" in m.masters for m in old)
    assert {m.masters["sky_flat"] for m in new} == {light["sky"]}
    cards = product_file.read_product(config.library.path / after.stacks[0].path)[1]
    history = [card.value for card in cards if card.keyword == "HISTORY"]
    assert "flat: dome x smooth(twilight / dome), 4 of 4 frames" in history
    assert sum("MasterFlat" in str(line) for line in history) == 2


def test_the_exact_stack_replays_the_same_flat(nights):
    config, _, _, after = nights
    growing = after.image(after.stacks[0])
    assert service.carry_out(config, [Order(Action.FINISH, after.stacks[0].id)]) == 0
    [stack] = Outcome(config).stacks
    exact = product_file.read_product(config.library.path / stack.final_path)[0]
    assert unevenness(exact) == pytest.approx(unevenness(growing), abs=2e-4)


def test_a_lost_database_still_knows_the_light_of_its_flats(nights):
    config, _, _, after = nights
    found = [one for one in restore.masters(config.library.path) if not isinstance(one, str)]
    told = {one.record.flat_light for one in found if one.record.frame_type is FLAT}
    assert told == {m.flat_light for m in after.masters if m.frame_type is FLAT}
