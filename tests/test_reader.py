"""Reading ahead gives the same content, the same errors, and bounded memory."""

import numpy as np
import pytest

from calib_library.errors import ImageError
from calib_library.images import frame_file, product_file
from daemon.reader import KEPT, Reader


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
        reader.ahead(following)
        loaded = reader.load(path)
        assert loaded.pixels[0, 0] == int(path.stem)
        assert loaded.sha256 == frame_file.load(path).sha256


def test_errors_come_when_the_file_is_wanted(reader, tmp_path):
    bad = tmp_path / "bad.fits"
    bad.write_text("no image" * 1000)
    reader.ahead(bad)
    reader.ahead(tmp_path / "gone.fits")
    with pytest.raises(ImageError, match=r"bad\.fits"):
        reader.load(bad)
    with pytest.raises(FileNotFoundError):
        reader.load(tmp_path / "gone.fits")


def test_no_more_than_two_are_held(reader, tmp_path):
    for n in range(6):
        reader.ahead(write(tmp_path / f"{n}.fits", n))
    assert len(reader._files) == KEPT
