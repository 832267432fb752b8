"""Flats of the sky and of the dome: told apart by the header, together on the light."""

import datetime as dt
import json

import numpy as np
import pytest

from calib_library import build
from calib_library.frame import FrameRecord, FrameType
from calib_library.library import CalibrationLibrary
from daemon.calibration import Calibrator, masters_in
from tests import records
from tests.nights import Outcome, config_for, run
from tests.test_header import read
from tests.test_library import at, built, put_many
from tests.test_wrong_situations import HOT, NX, NY, PEDESTAL, STARS, VIGNETTE, Situation, X, Y

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
    found = read(cards, path=path)
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


def flats(library, light, *, night=0, filter_="R"):
    """Ids of the set and of the master of four flats of one light, so many nights later."""
    taken = records.record(
        FLAT, filter=filter_, flat_light=light, date_obs=records.NIGHT + night * DAY
    )
    session = f"2026-11-{20 + night}"
    set_id = put_many(library, taken, 4, session=session)
    return library.register(built(library, set_id), at(9))


def chosen(library, *, night=0, hand=None):
    calibrator = Calibrator(library, root=library.root, min_frames=3, quiet_s=lambda: 0.0)
    light = records.record(LIGHT, filter="R", date_obs=records.NIGHT + night * DAY)
    session = f"2026-11-{20 + night}"
    return calibrator, light, calibrator.choose(light, session=session, now=None, target=hand)
