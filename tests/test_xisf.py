"""Files of the XISF format, written byte by byte: what is in them comes out, what is broken is
said.
"""

import contextlib
import re
import struct

import numpy as np
import pytest

from calib_library.errors import ImageError, IncompleteImageError
from calib_library.images import frame_file
from tests import xisf_files
from tests.xisf_files import keywords, prop, write

RNG = np.random.default_rng(5)
SHAPE = (37, 53)
# Smooth enough to be packed, random enough to need every byte.
LEVELS = (1000 + 50 * np.arange(53) + RNG.integers(0, 4, SHAPE)).astype(np.uint16)
IMAGES = {
    "u1": (LEVELS // 16).astype(np.uint8),
    "u2": LEVELS,
    "u4": LEVELS.astype(np.uint32) * 65537,
    "f4": (LEVELS / 65535).astype(np.float32),
    "f8": LEVELS / 65535,
}


def cards_of(path):
    return {card.keyword: card.value for card in frame_file.load_any(path).info.cards}


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kind", IMAGES)
def test_each_sample_format_is_read_as_it_was_written(tmp_path, kind, big):
    loaded = frame_file.load_any(write(tmp_path / "a.xisf", IMAGES[kind], big=big))
    assert loaded.pixels.dtype == IMAGES[kind].dtype
    assert loaded.info.storage == IMAGES[kind].dtype.name
    np.testing.assert_array_equal(loaded.pixels, IMAGES[kind])


@pytest.mark.parametrize("sub_blocks", [1, 3])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("codec", ["zlib", "lz4", "lz4hc", "literals"])
def test_each_compression_is_undone(tmp_path, codec, shuffle, sub_blocks):
    if codec.startswith("lz4") and xisf_files.lz4(b"") is None:
        pytest.skip("the system has no liblz4 to pack with")
    for kind in ("u2", "f4"):
        path = write(
            tmp_path / f"{kind}.xisf",
            IMAGES[kind],
            codec=codec,
            shuffle=shuffle,
            sub_blocks=sub_blocks,
            checksum="sha-1",
        )
        np.testing.assert_array_equal(frame_file.load_any(path).pixels, IMAGES[kind])


def test_an_lz4_copy_that_overlaps_itself_repeats(tmp_path):
    """By hand, from the description of the format: `ab`, a copy of 10 from 2 back, then `cdefg`."""
    block = bytes([0x26]) + b"ab" + bytes([2, 0]) + bytes([0x50]) + b"cdefg"
    path = write(tmp_path / "a.xisf", np.zeros((1, 17), np.uint8), codec="literals")
    raw = path.read_bytes()
    old = xisf_files.lz4_literals(bytes(17))
    size = f":{len(old)}".encode()
    assert raw.endswith(old)
    raw = raw.removesuffix(old).replace(size + b'"', f":{len(block)}".encode() + b'"') + block
    path.write_bytes(raw)
    assert frame_file.load_any(path).pixels.tobytes() == b"ababababababcdefg"


@pytest.mark.parametrize("where", ["inline", "embedded"])
@pytest.mark.parametrize("codec", [None, "zlib"])
def test_pixels_may_lie_in_the_header(tmp_path, where, codec):
    path = write(tmp_path / "a.xisf", LEVELS, where=where, codec=codec)
    np.testing.assert_array_equal(frame_file.load_any(path).pixels, LEVELS)


@pytest.mark.parametrize("normal", [False, True])
def test_three_planes_come_in_either_order(tmp_path, normal):
    image = np.stack([LEVELS, LEVELS + 1, LEVELS + 2])
    path = write(tmp_path / "a.xisf", image, normal=normal)
    np.testing.assert_array_equal(frame_file.load_any(path).pixels, image)


def test_the_first_image_is_the_integration_the_maps_follow(tmp_path):
    second = (
        '<Image geometry="2:2:1" sampleFormat="UInt8" location="inline:hex">00000000'
        f"{keywords(EXPTIME=7.0)}</Image>"
    )
    path = write(tmp_path / "a.xisf", LEVELS, keywords(EXPTIME=300.0), after=second)
    assert frame_file.load_any(path).pixels.shape == SHAPE
    assert cards_of(path)["EXPTIME"] == 300.0


def test_keywords_properties_and_attributes_become_cards(tmp_path):
    history = (
        "&lt;instance class=&quot;ImageIntegration&quot;&gt;"
        "&lt;table id=&quot;images&quot; rows=&quot;25&quot;&gt;"
    )
    inside = (
        keywords(GAIN=100, OBJECT="It''s dark", CCD_TEMP=-10.3)
        + '<FITSKeyword name="HISTORY" value="" comment="Integration with PixInsight"/>'
        + '<ColorFilterArray pattern="RGGB" width="2" height="2"/>'
        + prop("Instrument:ExposureTime", 300)
        + prop("Instrument:Sensor:Temperature", -9)  # the keyword goes first
        + prop("Instrument:Sensor:TargetTemperature", -10)
        + prop("Instrument:Camera:Gain", 0.78)
        + prop("Instrument:Camera:Name", "ZWO &lt;ASI2600&gt;", "String")
        + prop("Instrument:Telescope:FocalLength", 0.8)
        + prop("Observation:Time:Start", "2026-01-02T03:04:05Z", "TimePoint")
        + prop("PixInsight:ProcessingHistory", history, "String")
    )
    cards = cards_of(write(tmp_path / "a.xisf", LEVELS, inside, said='imageType="MasterDark"'))
    assert cards["GAIN"] == 100
    assert cards["OBJECT"] == "It's dark"
    assert (cards["EXPTIME"], cards["CCD-TEMP"], cards["SET-TEMP"]) == (300, -10.3, -10)
    assert (cards["EGAIN"], cards["INSTRUME"]) == (0.78, "ZWO <ASI2600>")
    assert (cards["FOCALLEN"], cards["BAYERPAT"]) == (800.0, "RGGB")
    assert (cards["DATE-OBS"], cards["IMAGETYP"]) == ("2026-01-02T03:04:05Z", "Master Dark")
    assert cards["PROGRAM"] == "PixInsight 1.8.9"
    assert cards["ROWORDER"] == "TOP-DOWN"
    prose = [
        card.value
        for card in frame_file.load_any(tmp_path / "a.xisf").info.cards
        if card.keyword == "HISTORY"
    ]
    assert prose == ["Integration with PixInsight", "ImageIntegration.numberOfImages: 25"]


def test_a_long_history_lies_in_a_block_of_its_own(tmp_path):
    history = '<Property id="PixInsight:ProcessingHistory" type="String" location="BLOCK"/>'
    path = write(tmp_path / "a.xisf", LEVELS, history, block=b'<table id="images" rows="60">')
    prose = [card.value for card in frame_file.load_any(path).info.cards]
    assert "ImageIntegration.numberOfImages: 60" in prose


def changed(path, old, new):
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new.ljust(len(old)) if len(new) < len(old) else new))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b'"53:37:1"', b'"99:37:1"', "bytes of pixels where"),
        (b'"53:37:1"', b'"53:37:2"', "neither one plane nor three"),
        (b'"53:37:1"', b'"9e9e9e9"', "neither one plane nor three"),
        (b'"UInt16"', b'"Int128"', "are not read"),
        (b'"attachment:', b'"url(http:a', "in another file"),
        (b"</xisf>", b"</xis>> ", "its header is damaged"),
        (b"<!-- Exten", b"<!DOCTYPE>", "its header is"),
        (b"<Image ", b"<Thing ", "damaged"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, old, new, sentence):
    path = write(tmp_path / "a.xisf", LEVELS)
    changed(path, old, new)
    with pytest.raises(ImageError, match=sentence):
        frame_file.load_any(path)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b'"zlib:', b'"zstd:', "save it without compression, or with zlib or LZ4"),
        (b'"zlib:3922"', b'"zlib:3920"', "damaged"),
        (b'"zlib:3922"', b'"zlib:9999"', "not what the header says"),
        (b'"zlib:3922"', b'"lz4:3922" ', "damaged"),
    ],
)
def test_wrong_compression_is_said(tmp_path, old, new, sentence):
    path = write(tmp_path / "a.xisf", LEVELS, codec="zlib")
    changed(path, old, new)
    with pytest.raises(ImageError, match=sentence):
        frame_file.load_any(path)


def test_a_file_that_is_cut_or_altered_is_not_whole(tmp_path):
    path = write(tmp_path / "a.xisf", LEVELS, checksum="sha-256")
    raw = path.read_bytes()
    for end in (4, 12, 15, 100, len(raw) - 1):
        path.write_bytes(raw[:end])
        with pytest.raises((IncompleteImageError, ImageError)):
            frame_file.load_any(path)
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(IncompleteImageError, match="checksum"):
        frame_file.load_any(path)


def test_a_bomb_costs_neither_memory_nor_time(tmp_path):
    entities = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    header = f'<?xml version="1.0"?>{entities}<xisf>&b;</xisf>'.encode()
    bombs = {
        "entities": b"XISF0100" + struct.pack("<II", len(header), 0) + header,
        "endless header": b"XISF0100" + struct.pack("<II", 2**32 - 1, 0) + b"<xisf>",
    }
    big = write(tmp_path / "big.xisf", LEVELS, codec="zlib")
    changed(big, b'"53:37:1"', b'"40000:20000:1"')
    changed(big, b'"zlib:3922"', b'"zlib:1600000000"')
    raw = big.read_bytes()
    length = raw.index(b"</xisf>") + 7 - 16
    bombs["zlib"] = raw[:8] + struct.pack("<II", length, 0) + raw[16:]
    for name, content in bombs.items():
        path = tmp_path / f"{name}.xisf"
        path.write_bytes(content)
        with pytest.raises(ImageError):
            frame_file.load_any(path)


def test_no_damage_to_a_packed_block_leaves_its_bounds(tmp_path):
    """Every byte of an LZ4 block changed in turn: an error, or pixels of the right size."""
    image = np.tile(np.arange(16, dtype=np.uint8), (8, 4))
    path = write(tmp_path / "a.xisf", image, codec="literals", shuffle=False)
    if (packed := xisf_files.lz4(image.tobytes())) is not None:
        path = write(tmp_path / "a.xisf", image, codec="lz4")
        assert path.read_bytes().endswith(packed)
    raw = path.read_bytes()
    for at in range(8192, len(raw)):
        for value in (0, 1, 15, 240, 255):
            path.write_bytes(raw[:at] + bytes([value]) + raw[at + 1 :])
            with contextlib.suppress(ImageError):
                assert frame_file.load_any(path).pixels.shape == image.shape


def test_mutated_files_end_in_one_sentence_or_an_image(tmp_path):
    """Bytes changed, numbers exchanged, pieces cut out: nothing but ImageError comes out."""
    rng = np.random.default_rng(3)
    inside = keywords(EXPTIME=30.0, OBJECT="x") + prop("Instrument:ExposureTime", 300)
    seeds = [
        write(tmp_path / f"{n}.xisf", LEVELS, inside, **options).read_bytes()
        for n, options in enumerate(
            [{}, {"codec": "zlib", "shuffle": True, "sub_blocks": 2}, {"codec": "literals"},
             {"where": "inline", "codec": "zlib"}, {"where": "embedded"}]
        )
    ]  # fmt: skip
    path = tmp_path / "mutant.xisf"
    images = 0
    for n in range(1500):
        raw = bytearray(seeds[n % len(seeds)])
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(16, min(1200, len(raw))))
            if n % 3 == 0:
                raw[at] = rng.integers(256)
            elif n % 3 == 1:
                del raw[at : at + rng.integers(1, 9)]
            elif (digit := re.compile(rb"\d+").search(raw, at)) is not None:
                raw[digit.start() : digit.end()] = b"9" * rng.choice([1, 5, 20])
        path.write_bytes(raw)
        with contextlib.suppress(ImageError):
            images += frame_file.load_any(path).pixels.size > 0
    assert images > 100  # many changes do no harm


def test_a_number_of_thousands_of_digits_is_only_a_text(tmp_path):
    path = write(tmp_path / "a.xisf", LEVELS, f'<FITSKeyword name="GAIN" value="{"9" * 5000}"/>')
    assert isinstance(cards_of(path)["GAIN"], str)


def test_a_header_is_utf_8_whatever_it_declares(tmp_path):
    path = write(tmp_path / "a.xisf", LEVELS, keywords(OBJECT="Nébuleuse"))
    changed(path, b'"UTF-8"', b'"UTF-9"')
    assert cards_of(path)["OBJECT"] == "Nébuleuse"
