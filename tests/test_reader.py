"""Reading ahead gives the same content, the same errors, and bounded memory."""

import numpy as np
import pytest

from calib_library.errors import ImageError
from calib_library.frame import FrameType
from calib_library.images import frame_file, product_file
from daemon.ledger.ledger import Waiting
from daemon.reader import AHEAD, AHEAD_BYTES, Reader, worth_it


@pytest.fixture
def reader():
    made = Reader()
    yield made
    made.close()


def write(path, value):
    product_file.write_fits(path, np.full((10, 12), value, np.float32), [], scale="adu")
    return path


def test_what_is_read_ahead_is_what_is_loaded(reader, tmp_path):
    paths = [write(tmp_path / f"{n}.fits", n) for n in range(5)]
    for path, following in zip(paths, [*paths[1:], None], strict=True):
        reader.ahead(path, [following] if following else [])
        loaded = reader.load(path)
        assert loaded.pixels[0, 0] == int(path.stem)
        assert loaded.sha256 == frame_file.load(path).sha256


def test_errors_come_when_the_file_is_wanted(reader, tmp_path):
    bad = tmp_path / "bad.fits"
    bad.write_text("no image" * 1000)
    reader.ahead(tmp_path / "first.fits", [bad, tmp_path / "gone.fits"])
    with pytest.raises(ImageError, match=r"bad\.fits"):
        reader.load(bad)
    with pytest.raises(FileNotFoundError):
        reader.load(tmp_path / "gone.fits")


def test_the_wanted_file_and_those_read_ahead_are_held_and_no_more(reader, tmp_path):
    paths = [write(tmp_path / f"{n}.fits", n) for n in range(8)]
    reader.ahead(paths[0], paths[1:4])
    assert list(reader._files) == paths[1:4]
    reader.ahead(paths[1], paths[2:5])
    assert list(reader._files) == paths[1:5]
    reader.ahead(paths[2], paths[7:])  # a frame of tonight came before the others
    assert list(reader._files) == [paths[2], paths[7]]


@pytest.mark.parametrize(
    ("kinds", "megabytes", "count"),
    [
        (["dark", "dark", "dark", "dark"], 52, AHEAD),
        (["dark", "dark", "dark"], 122, 1),
        (["dark", "dark", "light"], 52, 2),
        (["light", "light", "light"], 52, 1),
        (["light", "flat", None], 52, 2),
        ([None, "dark"], 3 * AHEAD_BYTES / 1e6, 1),
        ([], 0, 0),
    ],
)
def test_several_calibration_frames_are_read_ahead_but_one_light(kinds, megabytes, count, tmp_path):
    coming = [
        Waiting(tmp_path / str(n), int(megabytes * 1e6), FrameType(kind) if kind else None)
        for n, kind in enumerate(kinds)
    ]
    assert worth_it(coming) == [one.path for one in coming[:count]]
