"""Sections and overscan, against the FITS convention and a simulated read-out."""

import numpy as np
import pytest

from calib_library.errors import HeaderError
from calib_library.overscan import Section, levels, parse_section


@pytest.mark.parametrize(
    ("text", "section"),
    [
        ("[1:100,1:200]", Section(0, 100, 0, 200)),
        (" [ 5:8 , 2:2 ] ", Section(4, 8, 1, 2)),
        ("[100:1,200:1]", Section(0, 100, 0, 200)),
    ],
)
def test_a_section_is_one_based_and_inclusive(text, section):
    assert parse_section(text) == section


@pytest.mark.parametrize("text", ["", "[*,1:2]", "[1:2]", "[0:5,1:5]", "[1:4:2,1:4]", "x[1:2,1:2]"])
def test_what_is_not_a_section_is_refused(text):
    with pytest.raises(HeaderError):
        parse_section(text)


def test_x_is_the_column():
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert parse_section("[3:4,1:1]").of(image).tolist() == [[2.0, 3.0]]


def test_a_section_beyond_the_image_is_refused():
    with pytest.raises(HeaderError, match="4 × 3"):
        parse_section("[1:5,1:3]").of(np.zeros((3, 4), np.float32))


@pytest.mark.parametrize("turned", [False, True])
def test_a_drifting_level_goes_line_by_line(turned):
    random = np.random.default_rng(11)
    truth = random.uniform(100, 200, (60, 90)).astype(np.float32)
    truth[:, 70:] = 0  # the overscan sees no light
    drift = np.linspace(500, 530, 60, dtype=np.float32)[:, np.newaxis]
    raw = (truth + drift).astype(np.float32)
    before = raw.copy()
    strip = Section(70, 90, 0, 60)
    if turned:
        truth, raw, before, strip = truth.T, raw.T, before.T, Section(0, 60, 70, 90)
    assert np.abs(raw - levels(raw, strip, by_line=True) - truth).max() < 1e-3
    level = raw - levels(raw, strip, by_line=False)
    assert np.abs(level - truth).max() == pytest.approx(15, abs=0.6)  # half the drift is left
    assert (raw == before).all()


def test_lines_beside_the_strip_lose_its_whole_level():
    raw = np.full((10, 10), 7.0, np.float32)
    raw[:, 8:] = 5.0
    cleaned = raw - levels(raw, Section(8, 10, 2, 10), by_line=True)
    assert (cleaned[:, :8] == 2.0).all()


def test_levels_extend_to_the_image():
    image = np.full((6, 8), 500, np.uint16)
    image[:, 6:] = (10 * np.arange(6) + 300)[:, None]
    upright = levels(image, Section(6, 8, 0, 6), by_line=True)
    assert upright.shape == (6, 1)
    assert upright[:, 0].tolist() == [300, 310, 320, 330, 340, 350]
    flat = levels(image.T, Section(0, 6, 6, 8), by_line=False)
    assert flat.shape == (1, 6)
    assert (flat == 325).all()
