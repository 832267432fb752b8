"""Files as programs write them, half-write them and break them; products that survive a crash."""

import hashlib
import math
import os
import re
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from calib_library.atomic import atomically, write_bytes
from calib_library.errors import ImageError, IncompleteImageError
from calib_library.fits_cards import format_card, parse_card
from calib_library.frame import Card
from calib_library.images import frame_file, hashing
from calib_library.images.frame_file import load, probe
from calib_library.images.product_file import (
    ProductImages,
    RowWriter,
    read_extra,
    read_product,
    write_fits,
)
from calib_library.images.row_reader import RowReader

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def card(text):
    return text.encode("latin-1").ljust(80)


def header(*cards, end=True):
    raw = b"".join(card(c) for c in cards) + (card("END") if end else b"")
    return raw.ljust(-(-len(raw) // 2880) * 2880)


def plain_header(*more, bitpix=16, axes=(6, 4), end=True):
    lengths = [f"NAXIS{i + 1}  = {n:20d}" for i, n in enumerate(axes)]
    return header(
        "SIMPLE  =                    T",
        f"BITPIX  = {bitpix:20d}",
        f"NAXIS   = {len(axes):20d}",
        *lengths,
        *more,
        end=end,
    )


def put(tmp_path, raw, name="frame.fits"):
    path = tmp_path / name
    path.write_bytes(raw)
    return path


def noise(shape=(40, 60), dtype=np.uint16, seed=1):
    rng = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(1000, 30, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


# --- reading what astropy wrote ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint8, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(40, 60), (3, 20, 30), (1, 20, 30), (1, 1)])
def test_pixels_equal_astropys(tmp_path, dtype, shape):
    pixels = noise(shape, dtype)
    path = tmp_path / "frame.fits"
    fits.PrimaryHDU(pixels).writeto(path)
    loaded = load(path)
    assert np.array_equal(loaded.pixels, pixels[0] if shape[0] == 1 and len(shape) == 3 else pixels)
    assert loaded.pixels.dtype == np.dtype(dtype)
    assert loaded.pixels.flags.c_contiguous
    assert loaded.info.storage == np.dtype(dtype).name
    assert loaded.info.plain == (dtype in {np.uint16, np.int16})
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    status = path.stat()
    assert (loaded.size, loaded.mtime_ns, loaded.inode) == (
        status.st_size,
        status.st_mtime_ns,
        status.st_ino,
    )


def test_scaled_integers_become_physical_values(tmp_path):
    raw = np.array([[-5, 0, 7]], ">i2")
    path = put(
        tmp_path,
        plain_header("BZERO   = 100.0", "BSCALE  = 0.5", axes=(3, 1)) + raw.tobytes().ljust(2880),
    )
    loaded = load(path)
    assert loaded.pixels.tolist() == [[97.5, 100.0, 103.5]]
    assert loaded.info.storage == "float32"


def test_image_in_an_extension_with_the_primarys_cards_under_its_own(tmp_path):
    primary = fits.PrimaryHDU()
    primary.header["OBJECT"] = "M31"
    primary.header["GAIN"] = 1
    image = fits.ImageHDU(noise())
    image.header["GAIN"] = 100
    path = tmp_path / "frame.fits"
    fits.HDUList([primary, image]).writeto(path)
    loaded = load(path)
    assert np.array_equal(loaded.pixels, noise())
    values = {c.keyword: c.value for c in loaded.info.cards}
    assert values["OBJECT"] == "M31"
    assert values["GAIN"] == 100
    assert [c.keyword for c in loaded.info.cards].count("GAIN") == 1
    assert values["NAXIS"] == 2
    assert loaded.info.hdu == 1


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1", "GZIP_2"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_tile_compressed(tmp_path, kind, dtype):
    pixels = noise(dtype=dtype)
    hdu = fits.CompImageHDU(pixels, compression_type=kind, tile_shape=(16, 60))
    hdu.header["IMAGETYP"] = "Dark Frame"
    path = tmp_path / "frame.fits.fz"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path, checksum=True)
    loaded = load(path)
    assert np.array_equal(loaded.pixels, pixels)
    assert loaded.pixels.dtype == dtype
    keywords = {c.keyword for c in loaded.info.cards}
    assert "IMAGETYP" in keywords
    assert not {k for k in keywords if re.match(r"T(FORM|TYPE|FIELDS)|Z", k)}
    with RowReader(path) as reader:
        assert not reader.plain
        assert np.array_equal(reader.rows(13, 35), pixels[13:35].astype(np.float32))


def test_hcompress_is_refused_because_damaged_data_would_end_the_process(tmp_path):
    path = tmp_path / "frame.fz"
    hdu = fits.CompImageHDU(noise() >> 4, compression_type="HCOMPRESS_1")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    for read in (probe, load, RowReader):
        with pytest.raises(ImageError, match="compress with RICE or GZIP"):
            read(path)


def test_three_colour_planes_tile_compressed(tmp_path):
    pixels = noise((3, 12, 20))
    path = tmp_path / "frame.fz"
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(pixels)]).writeto(path)
    assert np.array_equal(load(path).pixels, pixels)


def test_rows_and_their_float_values(tmp_path):
    for dtype in (np.uint16, np.int16, np.float32, np.int32):
        pixels = noise(dtype=dtype)
        path = tmp_path / f"{np.dtype(dtype).name}.fits"
        fits.PrimaryHDU(pixels).writeto(path)
        with RowReader(path) as reader:
            assert reader.shape == (40, 60)
            raw = reader.rows(3, 11)
            if reader.plain:
                assert raw.dtype == ">i2"
                out = np.empty((8, 60), ">i2")
                assert reader.rows(3, 11, out) is out
                assert np.array_equal(raw, out)
            assert np.array_equal(reader.to_float(raw), pixels[3:11].astype(np.float32))


def test_a_reader_hashes_the_rows_that_it_gave(tmp_path):
    image, path = noise((40, 60)), tmp_path / "frame.fits"
    fits.PrimaryHDU(image).writeto(path)
    content = path.read_bytes()
    expected = hashlib.sha256(content).hexdigest()
    with RowReader(path) as reader:
        reader.rows(0, 8)  # a look at it, before
        reader.hash_rows()
        for y in range(0, 40, 16):
            reader.rows(y, min(y + 16, 40))
        # Another file takes the name: the answer is of the bytes that were given.
        put(tmp_path, b"another", "other")
        (tmp_path / "other").replace(path)
        assert reader.digest() == expected
        assert reader.digest() == expected
    path.write_bytes(content)
    with RowReader(path) as reader:
        assert reader.digest() == expected
        reader.hash_rows()
        reader.rows(10, 20)  # not from the first row: the file is read for it
        assert reader.digest() == expected


def test_a_reader_of_other_pixels_hashes_the_file(tmp_path):
    for name, hdu in (
        ("float", fits.PrimaryHDU(noise((9, 7), np.float32))),
        ("rice", fits.CompImageHDU(noise((40, 60)))),
    ):
        path = tmp_path / f"{name}.fits"
        hdu.writeto(path)
        with RowReader(path) as reader:
            reader.hash_rows()
            reader.rows(0, reader.shape[0])
            assert reader.digest() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real frames of ../shared are not here")
def test_real_frames_read_as_astropy_reads_them():
    paths = [*SHARED.glob("asi120/*/*1.fit"), *SHARED.glob("m27_osc/*"), *SHARED.glob("*/*1.fit")]
    assert len(paths) > 10
    commas = 0
    for path in paths:
        loaded = load(path)
        with fits.open(path) as hdus:
            assert np.array_equal(loaded.pixels, hdus[0].data)
            for mine, theirs in zip(
                loaded.info.cards, [c for c in hdus[0].header.cards if c.keyword], strict=True
            ):
                assert mine.keyword == theirs.keyword
                if mine.keyword == "COMMENT":
                    continue
                try:
                    expected = theirs.value
                except fits.VerifyError:  # the decimal comma, which no other reader parses
                    commas += 1
                    assert mine.value == 6.4e-05
                    continue
                assert mine.value == expected
                assert type(mine.value) is type(expected)
    assert commas == 2


# --- cards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("EXPTIME =              6,4E-05 / s", 6.4e-05),
        ("EXPTIME = '6,4E-05 '", "6.4E-05"),
        ("CCDSUM  = '2,2     '", "2,2"),
        ("CCD-TEMP=                  nan", None),
        ("CCD-TEMP=                 -INF", None),
        ("CCD-TEMP=               1E9999", None),
        ("CCD-TEMP=                  26.", 26.0),
        ("CCD-TEMP=              -1.5D+1", -15.0),
        ("GAIN    =                   -7", -7),
        ("GAIN    =                     ", None),
        ("FLAG    =                    T", True),
        ("FLAG    =                    F / no", False),
        ("OBJECT  = 'Barnard''s star / east' / name", "Barnard's star / east"),
        ("OBJECT  = 'without an end", "without an end"),
        ("OBJECT  = '        '", ""),
        ("OBJECT  = 'a\x1b[31mb\x00'", "a [31mb"),
        ("OBJECT  = 'H\xe9l\xe8ne'", "Hélène"),
        ("VALUE   = (1.0, 2.0)", None),
        ("VALUE   = what is this", None),
        ("HIERARCH ESO DET GAIN = 1.5 / e", 1.5),
        ("HISTORY stacked 12 frames", "stacked 12 frames"),
    ],
)
def test_cards_as_programs_write_them(text, value):
    parsed = parse_card(card(text))
    assert parsed.value == value
    assert type(parsed.value) is type(value)


def test_utf8_and_continued_strings_are_read_whole():
    assert parse_card("OBJECT  = 'Hélène'".encode().ljust(81)).value == "Hélène"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = fits.Card("LONG", "x" * 100 + "'" + "y" * 60, "with a comment").image
    assert parse_card(written.encode()).value == "x" * 100 + "'" + "y" * 60


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=0, max_size=200))
def test_no_card_ever_raises(raw):
    parsed = parse_card(raw)
    assert parsed.keyword.isprintable()
    assert not isinstance(parsed.value, float) or math.isfinite(parsed.value)


# --- files that are not whole --------------------------------------------------------------------


def whole(tmp_path, *, checksum=False):
    path = tmp_path / "whole.fits"
    hdu = fits.PrimaryHDU(noise())
    hdu.writeto(path, checksum=checksum)
    return path.read_bytes()


def test_every_beginning_of_a_file_is_incomplete(tmp_path):
    raw = whole(tmp_path)
    path = tmp_path / "growing.fits"
    last = 2880 + 40 * 60 * 2  # the filling of the last block may be missing
    for length in [0, 1, 5, 9, 79, 80, 100, 2879, 2880, 2881, 5000, last - 1]:
        path.write_bytes(raw[:length])
        for read in (probe, load, RowReader):
            with pytest.raises(IncompleteImageError, match=r"growing\.fits"):
                read(path)
    path.write_bytes(raw[:last])
    assert np.array_equal(load(path).pixels, noise())


def test_preallocated_files_are_incomplete(tmp_path):
    raw = whole(tmp_path)
    path = tmp_path / "frame.fits"
    for written in (0, 100, 2880, 2880 + 300, 2880 + 39 * 60 * 2):
        path.write_bytes(raw[:written].ljust(len(raw), b"\0"))
        with pytest.raises(IncompleteImageError):
            probe(path)
        with pytest.raises(IncompleteImageError):
            load(path)


def test_a_header_without_its_end_before_the_data_is_incomplete(tmp_path):
    # CFITSIO writes the data before the keywords: for a moment END is missing.
    raw = plain_header(end=False) + noise((4, 6)).astype(">i2").tobytes().ljust(2880, b"\0")
    with pytest.raises(IncompleteImageError, match="no END"):
        probe(put(tmp_path, raw))


def test_a_file_that_still_lacks_its_extensions_is_incomplete(tmp_path):
    path = tmp_path / "frame.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(noise()), fits.ImageHDU(noise())]).writeto(path)
    raw = path.read_bytes()
    for length in (2880, 2884, 2900, 2880 * 3, len(raw) // 2 + 1, len(raw) - 2880):
        with pytest.raises(IncompleteImageError):
            probe(put(tmp_path, raw[:length], "cut.fits"))
    promised = plain_header("NEXTEND = 1") + noise((4, 6)).astype(">i2").tobytes().ljust(2880)
    with pytest.raises(IncompleteImageError, match="promises 1"):
        probe(put(tmp_path, promised, "promised.fits"))


@pytest.mark.parametrize("keyword", ["DATASUM", "CHECKSUM"])
def test_checksums_are_verified(tmp_path, keyword):
    path = put(tmp_path, whole(tmp_path, checksum="datasum" if keyword == "DATASUM" else True))
    assert np.array_equal(load(path).pixels, noise())
    raw = bytearray(path.read_bytes())
    raw[5000 if keyword == "DATASUM" else raw.index(b"array data type")] ^= 1
    path.write_bytes(raw)
    with pytest.raises(IncompleteImageError, match=keyword):
        load(path)
    load(path, verify=False)


def test_a_file_that_changes_while_it_is_read_is_incomplete(tmp_path, monkeypatch):
    path = put(tmp_path, whole(tmp_path))
    read = frame_file.read_and_hash

    def read_while_it_is_touched(file, raw, decode):
        digest = read(file, raw, decode)
        os.utime(path, ns=(1, 1))
        return digest

    monkeypatch.setattr(frame_file, "read_and_hash", read_while_it_is_touched)
    with pytest.raises(IncompleteImageError, match="changed"):
        load(path)


def test_pixels_are_not_decoded_by_a_header_that_has_changed_since(tmp_path, monkeypatch):
    """In the instant between looking at the header and reading the file, whose clock is coarse."""
    path = put(tmp_path, whole(tmp_path))
    read = frame_file.read_and_hash

    def read_another_header(file, raw, decode):
        status, content = path.stat(), path.read_bytes()
        path.write_bytes(content.replace(b"32768", b"32767", 1))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return read(file, raw, decode)

    monkeypatch.setattr(frame_file, "read_and_hash", read_another_header)
    with pytest.raises(IncompleteImageError, match="changed"):
        load(path)


def test_a_product_is_read_without_the_hash_that_nobody_asks_for(tmp_path):
    path = put(tmp_path, whole(tmp_path))
    plain, hashed = load(path, hashed=False), load(path)
    assert plain.sha256 == ""
    assert hashed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    np.testing.assert_array_equal(plain.pixels, hashed.pixels)


@pytest.mark.parametrize("part", [512, 2880, 1 << 20])
def test_files_of_many_parts_are_hashed_as_stored_and_decoded_whole(tmp_path, monkeypatch, part):
    monkeypatch.setattr(hashing, "PART_BYTES", part)
    path = put(tmp_path, whole(tmp_path))
    for _ in range(20):
        loaded = load(path)
        assert np.array_equal(loaded.pixels, noise())
        assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


KINDS = {
    "unsigned": np.arange(600, dtype=np.uint16).reshape(20, 30) * 100,
    "signed": np.arange(-300, 300, dtype=np.int16).reshape(20, 30),
    "bytes": np.arange(600).reshape(20, 30).astype(np.uint8),
    "long": np.arange(600, dtype=np.int32).reshape(20, 30) - 5,
    "float": np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30),
    "double": np.linspace(-1, 1, 600).reshape(20, 30),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_there_and_can_be_written_while_the_file_is_still_hashed(
    tmp_path, monkeypatch, kind
):
    """The hash is of what was read, though it is made later than anything is done with the pixels,
    and only who asks for it waits.
    """
    goes_on, sha256 = threading.Event(), hashlib.sha256

    class Late:
        """A SHA-256 that does not begin before it may."""

        def __init__(self) -> None:
            self._digest = sha256()
            self.hexdigest = self._digest.hexdigest

        def update(self, data):
            assert goes_on.wait(60)
            self._digest.update(data)

    monkeypatch.setattr(hashing.hashlib, "sha256", Late)
    path = tmp_path / "frame.fits"
    fits.PrimaryHDU(KINDS[kind]).writeto(path)
    loaded = load(path)
    assert np.array_equal(loaded.pixels, KINDS[kind])
    loaded.pixels[:] = 7
    goes_on.set()
    assert loaded.sha256 == sha256(path.read_bytes()).hexdigest()


# --- files that are not images -------------------------------------------------------------------

EXTENSION = header(
    "XTENSION= 'IMAGE   '", "BITPIX  = 8", "NAXIS   = 0", "PCOUNT  = 0", "GCOUNT  = 1"
)
HOSTILE = {
    "text": b"Once upon a time" * 300,
    "gzip": b"\x1f\x8b\x08" + b"\0" * 3000,
    "xisf": b"XISF0100" + b"\0" * 3000,
    "wide": plain_header(axes=(10**18, 2)),
    "square of a billion": plain_header(axes=(10**9, 10**9)),
    "many axes": plain_header(axes=(10**18,) * 60),
    "more axes than there are": header(
        "SIMPLE  =                    T", "BITPIX  = 16", "NAXIS   = 3"
    )
    + bytes(2880),
    "a thousand axes": header("SIMPLE  =                    T", "BITPIX  = 16", "NAXIS   = 999"),
    "negative": plain_header(axes=(-5, -5)),
    "nameless type": plain_header(bitpix=17),
    "huge type": plain_header(bitpix=10**30),
    "one dimension": plain_header(axes=(100,)) + bytes(2880),
    "five planes": plain_header(axes=(6, 4, 5)) + bytes(2880),
    "no bitpix": header("SIMPLE  =                    T", "NAXIS   = 0"),
    "bitpix is text": header("SIMPLE  =                    T", "BITPIX  = 'x'", "NAXIS   = 0"),
    "bscale zero": plain_header("BSCALE  = 0.0") + b"1" * 2880,
    "bzero is nan": plain_header("BZERO   = nan") + b"1" * 2880,
    "endless header": plain_header(end=False) + card("COMMENT x") * 60_000,
    "thousands of parts": plain_header(axes=()) + EXTENSION * 3000,
    "absurd heap": plain_header(axes=())
    + header("XTENSION= 'IMAGE   '", "BITPIX  = 8", "NAXIS   = 0", f"PCOUNT  = {10**40}"),
    "compressed bomb": plain_header(axes=())
    + header(
        "XTENSION= 'BINTABLE'",
        "BITPIX  = 8",
        "NAXIS   = 2",
        "NAXIS1  = 8",
        "NAXIS2  = 1",
        "PCOUNT  = 0",
        "GCOUNT  = 1",
        "TFIELDS = 1",
        "ZIMAGE  =                    T",
        "ZBITPIX = 16",
        "ZNAXIS  = 2",
        "ZNAXIS1 = 1000000000",
        "ZNAXIS2 = 1000000000",
        "ZCMPTYPE= 'RICE_1'",
        "TTYPE1  = 'COMPRESSED_DATA'",
        "TFORM1  = '1PB(0)'",
    )
    + bytes(2880),
    "huge tile": plain_header(axes=())
    + header(
        "XTENSION= 'BINTABLE'",
        "BITPIX  = 8",
        "NAXIS   = 2",
        "NAXIS1  = 8",
        "NAXIS2  = 1",
        "PCOUNT  = 0",
        "GCOUNT  = 1",
        "TFIELDS = 1",
        "ZIMAGE  =                    T",
        "ZBITPIX = 16",
        "ZNAXIS  = 2",
        "ZNAXIS1 = 10",
        "ZNAXIS2 = 10",
        "ZTILE1  = 1000000000",
        "ZTILE2  = 1000000000",
        "ZCMPTYPE= 'RICE_1'",
        "TTYPE1  = 'COMPRESSED_DATA'",
        "TFORM1  = '1PB(0)'",
    )
    + bytes(2880),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_one_sentence_and_little_memory(tmp_path, name):
    path = put(tmp_path, HOSTILE[name])
    for read in (probe, load, RowReader):
        tracemalloc.start()
        with pytest.raises(ImageError) as caught:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert not isinstance(caught.value, IncompleteImageError)
        sentence = str(caught.value)
        assert sentence.startswith("frame.fits: ")
        assert "\n" not in sentence
        assert len(sentence) < 250
        assert peak < 40e6


def test_sparse_files_are_not_allocated(tmp_path):
    path = put(tmp_path, plain_header())
    os.truncate(path, 2**33)
    with pytest.raises(ImageError, match="GB"):
        load(path)


def test_a_pipe_does_not_stop_the_reader(tmp_path):
    path = tmp_path / "frame.fits"
    os.mkfifo(path)
    with pytest.raises(ImageError, match="not a regular file"):
        probe(path)


def test_a_missing_file_is_the_systems_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "nothing.fits")


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1", "GZIP_2"])
def test_damaged_compressed_pixels_are_an_image_error_or_an_image(tmp_path, kind):
    path = tmp_path / "frame.fz"
    hdu = fits.CompImageHDU(noise(), compression_type=kind)
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    raw = path.read_bytes()
    rng = np.random.default_rng(8)
    refused = 0
    for _ in range(150):
        damaged = np.frombuffer(raw, np.uint8).copy()
        at = rng.integers(2880, len(raw), rng.integers(1, 30))
        damaged[at] = rng.integers(0, 256, at.size)
        path.write_bytes(damaged.tobytes())
        try:
            loaded = load(path)
        except ImageError:
            refused += 1
        else:
            assert loaded.pixels.shape == loaded.info.shape
    assert refused > 0


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_header_is_an_image_error_or_an_image(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "frame.fits"
    raw = bytearray(plain_header() + noise((4, 6)).astype(">i2").tobytes().ljust(2880))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, 480))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        loaded = load(path)
    except ImageError:
        return
    assert loaded.pixels.shape == loaded.info.shape


# --- products ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "tolerance", "dtype"),
    [("unit", 0.005, ">f4"), ("adu", 1e-4, ">f4"), ("uint16", 0.51, np.uint16)],
)
@pytest.mark.parametrize("shape", [(40, 61), (3, 20, 31)])
def test_a_product_reads_back_in_adu(tmp_path, scale, tolerance, dtype, shape):
    image = noise(shape, np.float32)
    image.flat[5] = -60.0
    path = tmp_path / "new folder" / "stack.fits"
    write_fits(path, image, [Card("OBJECT", "M 42")], scale=scale, pedestal_adu=100)
    back, cards = read_product(path)
    assert np.abs(back - image).max() <= tolerance
    assert back.dtype == np.float32
    assert Card("OBJECT", "M 42") in cards
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # DATASUM is verified by astropy, too
        with fits.open(path, checksum=True) as hdus:
            hdus.verify("exception")
            stored = hdus[0].data
            assert stored.dtype == dtype
            assert hdus[0].header["PEDESTAL"] == 100
    expected = {"unit": (image + 100) / 65535, "adu": image + 100, "uint16": image + 100}[scale]
    assert stored == pytest.approx(expected, rel=1e-6, abs=0.5 if scale == "uint16" else 0)


def test_unit_products_stay_within_their_range(tmp_path):
    image = np.array([[-5.0, 0.0, 65535.0, 7e4, np.nan]], np.float32)
    path = tmp_path / "stack.fits"
    write_fits(path, image, [])
    assert fits.getdata(path).tolist() == [[0.0, 0.0, 1.0, 1.0, 0.0]]
    write_fits(path, image, [], scale="uint16")
    assert fits.getdata(path).tolist() == [[0, 0, 65535, 65535, 0]]


def test_extensions_are_written_as_they_are(tmp_path):
    image = noise((7, 9), np.float32)
    weight = np.where(image > 1000, np.nan, image)
    path = tmp_path / "stack.fits"
    write_fits(path, image, [], extra={"WEIGHT": weight, "COUNT": image * 2})
    assert np.array_equal(read_extra(path, "WEIGHT"), weight, equal_nan=True)
    assert np.array_equal(read_extra(path, "COUNT"), image * 2)
    with fits.open(path, checksum=True) as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "WEIGHT", "COUNT"]
    with pytest.raises(ImageError, match="no image extension FLAT"):
        read_extra(path, "FLAT")


@pytest.mark.parametrize("scale", ["unit", "adu", "uint16"])
@pytest.mark.parametrize("shape", [(40, 61), (3, 20, 31)])
def test_a_product_is_read_by_rows(tmp_path, scale, shape):
    image = noise(shape, np.float32)
    coverage = np.arange(shape[-2] * shape[-1], dtype=np.uint16).reshape(shape[-2:])
    path = tmp_path / "stack.fits"
    write_fits(path, image, [], scale=scale, pedestal_adu=100, extra={"COVERAGE": coverage})
    rows, _ = read_product(path)
    rows = rows.reshape(-1, shape[-1])
    with ProductImages(path) as product:
        assert (product.shape, product.pedestal_adu) == (shape, 100)
        for y0, y1 in ((0, 7), (7, 33), (18, len(rows))):
            assert np.array_equal(product.rows(y0, y1), rows[y0:y1])
        assert np.array_equal(product.rows(3, 9, extension="COVERAGE"), coverage[3:9])
        with pytest.raises(ImageError, match="no image extension FLAT"):
            product.rows(0, 1, extension="FLAT")


def test_what_is_no_product_is_not_read_by_rows(tmp_path):
    path = tmp_path / "foreign.fits"
    fits.PrimaryHDU(np.zeros((5, 6), np.int32)).writeto(path)
    with pytest.raises(ImageError, match="no product"):
        ProductImages(path)
    with pytest.raises(FileNotFoundError):
        ProductImages(tmp_path / "nothing.fits")


def test_foreign_cards_cannot_break_a_product(tmp_path):
    cards = [
        Card("DATAMAX", 65535),
        Card("BZERO", 32768),
        Card("BSCALE", 2.0),
        Card("NAXIS1", 10**9),
        Card("CHECKSUM", "0000000000000000"),
        Card("OBJECT", "Hélène\nEND\x00", "naïve"),
        Card("EMPTY", None),
        Card("INFINITE", float("inf")),
        Card("LONG", "x" * 200),
        Card("A KEYWORD WITH = AND é", 1),
        Card("ESO DET GAIN", 1.5, "a name of more than 8"),
        Card("HUGE", 10**60),
        Card("HISTORY", "y" * 200),
        Card("COMMENT", "as written"),
    ]
    path = tmp_path / "stack.fits"
    image = noise((5, 6), np.float32)
    write_fits(path, image, cards)
    with fits.open(path) as hdus:
        hdus.verify("exception")
        header = hdus[0].header
        assert "DATAMAX" not in header
        assert "BZERO" not in header
        assert header["NAXIS1"] == 6
        assert header["OBJECT"].startswith("Helene")
        assert header["LONG"] == "x" * 200
        assert header["ESO DET GAIN"] == 1.5
    assert np.abs(read_product(path)[0] - image).max() < 0.005


def test_a_product_without_our_scale_is_in_adu(tmp_path):
    path = tmp_path / "foreign.fits"
    hdu = fits.PrimaryHDU(noise())
    hdu.header["PEDESTAL"] = 100
    hdu.writeto(path)
    assert np.array_equal(read_product(path)[0], noise().astype(np.float32))


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("fails", ["replace", "fsync"])
def test_a_crash_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fails):
    path = tmp_path / "stack.fits"
    old = noise((6, 7), np.float32)
    write_fits(path, old, [])

    def crash(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path if fails == "replace" else os, fails, crash)
    with pytest.raises(OSError, match="No space left"):
        write_fits(path, old + 1, [])
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"half")
    monkeypatch.undo()
    assert listing(tmp_path) == ["stack.fits"]
    assert np.abs(read_product(path)[0] - old).max() < 0.005


def test_a_broken_card_leaves_nothing_behind(tmp_path):
    with pytest.raises(AttributeError):
        write_fits(tmp_path / "stack.fits", noise((4, 4), np.float32), ["not a card"])
    assert listing(tmp_path) == []


def test_write_bytes_replaces_the_whole_file(tmp_path):
    path = tmp_path / "status.json"
    write_bytes(path, b"a longer first version")
    write_bytes(path, b"short")
    assert path.read_bytes() == b"short"
    assert listing(tmp_path) == ["status.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("scale", ["unit", "adu", "uint16"])
def test_an_image_written_by_rows_is_the_same_file(tmp_path, scale):
    image = np.random.default_rng(2).normal(20_000, 30_000, (31, 7)).astype(np.float32)
    image[3, 3], image[4, 4], image[5, 5] = np.nan, np.inf, -np.inf
    cards = [Card("OBJECT", "M 42"), Card("LKKEPT", 0.9876)]
    write_fits(tmp_path / "whole.fits", image, cards, scale=scale)
    with atomically(tmp_path / "rows.fits") as file:
        blank = [Card("OBJECT", ""), Card("LKKEPT", 0.0)]
        with RowWriter(file, image.shape, blank, scale=scale) as writer:
            for y in range(0, 31, 3):
                writer.write(image[y : y + 3])
            writer.describe(cards)
    assert (tmp_path / "rows.fits").read_bytes() == (tmp_path / "whole.fits").read_bytes()
    with fits.open(tmp_path / "rows.fits", checksum=True) as hdus:
        warnings.simplefilter("error")
        stored = hdus[0].data.astype(np.float64)
    full = {"unit": 1 / 65535, "adu": 1.0, "uint16": 1.0}[scale]
    finite = np.isfinite(image)
    expected = image[finite] * full
    if scale != "adu":
        expected = np.clip(expected, 0, 65535 * full)
    assert np.allclose(stored[finite], expected, rtol=1e-6, atol=0.5 if scale == "uint16" else 0)
    assert stored[3, 3] == 0


def test_an_image_that_lacks_rows_never_appears(tmp_path):
    image = noise((6, 5), np.float32)
    with (
        pytest.raises(ValueError, match="not all rows"),
        atomically(tmp_path / "image.fits") as file,
        RowWriter(file, image.shape, [], scale="adu") as writer,
    ):
        writer.write(image[:-1])
    with (
        pytest.raises(ValueError, match="keep its length"),
        atomically(tmp_path / "image.fits") as file,
        RowWriter(file, image.shape, [], scale="adu") as writer,
    ):
        writer.describe([Card("OBJECT", "M 42")])
    assert listing(tmp_path) == []


@given(
    keyword=st.text("ABCXYZ019_-", min_size=1, max_size=8),
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**18), 10**18),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
    ),
    comment=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
)
@settings(deadline=None)
def test_a_card_is_read_by_astropy_as_it_was_meant(keyword, value, comment):
    raw = format_card(Card(keyword, value, comment))
    if raw is None:
        assert isinstance(value, str)
        assert len(value.replace("'", "''")) > 68
        return
    if keyword in {"COMMENT", "HISTORY", "CONTINUE", "END"}:
        return
    assert len(raw) == 80
    theirs = fits.Card.fromstring(raw)
    theirs.verify("exception")
    meant = value.rstrip() if isinstance(value, str) else value
    read = None if isinstance(theirs.value, fits.card.Undefined) else theirs.value
    assert read == meant
    assert isinstance(read, bool) == isinstance(value, bool)
    assert comment.strip().startswith(theirs.comment.strip())
