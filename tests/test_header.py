"""Headers as programs really write them → one record."""

import datetime as dt
import re
import warnings
from pathlib import Path, PurePath

import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from calib_library.errors import HeaderError
from calib_library.frame import Card, FrameRecord, FrameType
from calib_library.header import normalise_filter, parse, target_name
from calib_library.kinds import normalise_type

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def read(path="frame.fits", *, shape=(100, 200), storage="uint16", pattern=None, **cards):
    """Parse a header given as keywords: `CCD_TEMP` stands for CCD-TEMP."""
    dashed = {"CCD_TEMP": "CCD-TEMP", "SET_TEMP": "SET-TEMP", "DATE_OBS": "DATE-OBS"}
    dashed |= {"TIME_OBS": "TIME-OBS", "MJD_OBS": "MJD-OBS", "FILT_1": "FILT-1"}
    defaults = cards.pop("defaults", {})
    written = [
        Card(dashed.get(keyword, keyword), *(value if isinstance(value, tuple) else (value,)))
        for keyword, value in cards.items()
    ]
    return parse(
        written,
        shape=shape,
        storage=storage,
        path=PurePath(path),
        pattern=re.compile(pattern) if pattern else None,
        defaults=defaults,
    )


# --- types -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ("light, Light Frame, LIGHT_FRAME, Science, object, EXPOSE, standard", FrameType.LIGHT),
        ("Tricolor Image, tricolor-image", FrameType.LIGHT),
        ("FLAT, Flat Frame, Flat Field, skyflat, SKY FLAT, DomeFlat, twilight flat", "flat"),
        ("Dark, dark frame, DARK", FrameType.DARK),
        ("DARKFLAT, Dark Flat, flat-dark, FLAT DARK, Dark Flat Frame", "flat-dark"),
        ("Bias, BIAS FRAME, zero, Offset", FrameType.BIAS),
        ("snapshot, FOCUS, acquisition, guiding, test, arc, lamp", "ignored"),
        ("FK5, 2021-03-02T11:22:33, nonsense", None),
    ],
)
def test_the_names_of_types(values, kind):
    for value in values.split(", "):
        assert normalise_type(value) == (kind, False), value


@pytest.mark.parametrize("value", ["Master Dark", "masterdark", "MASTER_DARK_FRAME"])
def test_a_type_that_starts_with_master(value):
    assert normalise_type(value) == (FrameType.DARK, True)
    assert read(IMAGETYP=value).is_master


@pytest.mark.parametrize(
    ("cards", "kind", "source"),
    [
        ({"IMAGETYP": "Light Frame", "FRAME": "Light"}, FrameType.LIGHT, "IMAGETYP"),
        ({"FRAME": "Flat"}, FrameType.FLAT, "FRAME"),
        ({"FRAME": "2021-03-02T11:22:33", "OBSTYPE": "BIAS"}, FrameType.BIAS, "OBSTYPE"),
        ({"FRAME": "FK5", "IMAGETYP": "dark"}, FrameType.DARK, "IMAGETYP"),
        ({"PICTTYPE": 3}, FrameType.DARK, "PICTTYPE"),
        ({"PICTTYPE": "4"}, FrameType.FLAT, "PICTTYPE"),
        ({"IMAGETYP": "Light", "FIELD": "FlatField_01"}, FrameType.FLAT, "FIELD"),
        ({"IMAGETYP": "Light", "FIELD": "Flatiron"}, FrameType.LIGHT, "IMAGETYP"),
        ({"IMAGETYP": "Dark Frame", "FIELD": "Bias"}, FrameType.BIAS, "FIELD"),
        ({"IMAGETYP": "Dark", "FRAMETYP": "Dark Flat"}, FrameType.FLAT_DARK, "IMAGETYP"),
        ({"SUBTYPE": "flat"}, FrameType.FLAT, "SUBTYPE"),
        ({}, None, None),
    ],
)
def test_the_type_comes_from_the_first_keyword_that_knows(cards, kind, source):
    record = read(**cards)
    assert record.frame_type == kind
    assert record.sources.get("frame_type") == source


def test_keywords_that_contradict_each_other_leave_it_to_the_pixels():
    record = read("dark/a.fits", IMAGETYP="Light Frame", FRAME="Dark")
    assert record.frame_type is None
    assert "contradict" in record.warnings[0]


def test_a_dark_without_exposure_is_a_bias():
    record = read(IMAGETYP="Dark Frame", EXPTIME=1e-32)
    assert (record.frame_type, record.exposure_s) == (FrameType.BIAS, 0.0)


def test_what_is_neither_filed_nor_stacked_is_refused():
    with pytest.raises(HeaderError, match="SNAPSHOT"):
        read(IMAGETYP="SNAPSHOT")
    with pytest.raises(HeaderError, match="guide"):
        read(CREATOR="PHD2 Guiding v2.6.11", IMAGETYP="Light")
    with pytest.raises(HeaderError, match="5 × 5 × 5"):
        read(shape=(5, 5, 5))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("night/bias/x001.fit", FrameType.BIAS),
        ("night/dark_50s/x001.fit", FrameType.DARK),
        ("DWARF_DARK/tele_001.fits", FrameType.DARK),
        ("DWARF_RAW_TELE_IC 434_EXP_60/IC 434_60s60.fits", FrameType.LIGHT),
        ("CALI_FRAME/dark/cam_0/a.fits", FrameType.DARK),
        ("Dark-Nebula/a.fits", None),
        ("Dark Shark/a.fits", None),
        ("Dark Shark/lights/a.fits", FrameType.LIGHT),
        ("darkness/a.fits", None),
        ("Flat_ASIImg_frame0001.fit", FrameType.FLAT),
        ("x/2024_Darks 300s/001.fit", FrameType.DARK),
        ("dark-001.fits", FrameType.DARK),
        ("flats/dark_flat_001.fits", FrameType.FLAT_DARK),
        ("DARKFLAT/dark_001.fits", FrameType.FLAT_DARK),
        ("offsets/001.fit", FrameType.BIAS),
        ("M31_300s_offset_50.fit", None),
        ("lights and darks/a.fit", None),
        ("lights/flat_1.fits", None),
        ("MasterDark_300s.fits", FrameType.DARK),
    ],
)
def test_a_path_speaks_by_whole_words(path, kind):
    record = read(path)
    assert record.frame_type == kind
    assert record.sources.get("frame_type") == (None if kind is None else "path")
    assert record.is_master == path.startswith("Master")


def test_the_header_goes_before_the_path_and_says_so():
    record = read("flats/a.fits", IMAGETYP="Light Frame")
    assert record.frame_type is FrameType.LIGHT
    assert "The path says flat" in record.warnings[0]
    refined = read("DARKFLAT/a.fits", IMAGETYP="DARK")
    assert refined.frame_type is FrameType.FLAT_DARK


def test_a_stack_of_calibration_frames_is_a_master_one_of_lights_is_not():
    assert read(IMAGETYP="Bias", STACKCNT=100).is_master
    stack = read(IMAGETYP="Light", STACKCNT=614)
    assert (stack.stack_count, stack.is_master) == (614, False)
    assert read(IMAGETYP="Flat", SNAPSHOT=1).stack_count == 1
    assert read(IMAGETYP="Dark", CALFRAME="MasterDark").is_master
    assert read(IMAGETYP="Dark", ISMASTER="T").is_master
    history = read(IMAGETYP="Dark", HISTORY="ImageIntegration.numberOfImages: 20")
    assert (history.stack_count, history.is_master) == (20, True)


# --- the file's name and defaults --------------------------------------------------------------


def test_a_pattern_fills_only_what_the_header_leaves_out():
    pattern = r"(?P<target>\w+)-(?P<type>\w+)-(?P<exposure_ms>\d+)ms-g(?P<gain>\d+)-(?P<filter>\w+)"
    record = read("x/M8-light-15000ms-g100-Ha.fit", pattern=pattern, GAIN=5)
    assert (record.frame_type, record.exposure_s, record.filter) == (FrameType.LIGHT, 15.0, "H")
    assert (record.key.gain, record.sources["gain"]) == (5.0, "GAIN")
    assert (record.object_name, record.sources["object_name"]) == ("M8", "pattern")


def test_a_pattern_goes_before_the_path_and_the_path_before_a_default():
    both = read("dark/a_flat.fits", pattern="_(?P<type>flat)", defaults={"type": "light"})
    assert (both.frame_type, both.sources["frame_type"]) == (FrameType.FLAT, "pattern")
    folder = read("dark/a.fits", defaults={"type": "light", "camera": "ST-10", "binning": "2x2"})
    assert (folder.frame_type, folder.key.camera) == (FrameType.DARK, "ST-10")
    assert (folder.key.xbinning, folder.sources["camera"]) == (2, "default")
    assert read(defaults={"type": "light"}).frame_type is FrameType.LIGHT


def test_dwarfs_master_dark_says_everything_in_its_name():
    record = read("CALI_FRAME/dark/cam_0/dark_exp_60.000000_gain_60_bin_1_20C_stack_8.fits")
    assert (record.frame_type, record.is_master, record.stack_count) == ("dark", True, 8)
    assert (record.exposure_s, record.temperature_c, record.key.gain) == (60.0, 20.0, 60.0)


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cards", "seconds", "source"),
    [
        ({"EXPTIME": 30.0, "EXPOSURE": 30}, 30.0, "EXPTIME"),
        ({"EXPOSURE": "120.00"}, 120.0, "EXPOSURE"),
        ({"EXPTIME": "6,4E-05"}, 6.4e-05, "EXPTIME"),
        ({"EXPTIME": None, "EXPOINUS": 64}, 6.4e-05, "EXPOINUS"),
        ({"EXPOINMS": 1500}, 1.5, "EXPOINMS"),
        ({"EXPTIME": 0.00100000004749745}, 0.001, "EXPTIME"),
        ({"EXPTIME": 299.99996}, 300.0, "EXPTIME"),
        ({"EXPTIME": (2500, "Exposure in milliseconds")}, 2.5, "EXPTIME"),
        ({"EXPTIME": (2, "[min] exposure")}, 120.0, "EXPTIME"),
        ({"EXPTIME": "10 s"}, 10.0, "EXPTIME"),
        ({"EXPTIME": "1.2D+02"}, 120.0, "EXPTIME"),
        ({"EXPTIME": float("nan"), "EXP": 5}, 5.0, "EXP"),
        ({"EXPTIME": -1}, None, None),
        ({"EXPTIME": True}, None, None),
    ],
)
def test_exposures(cards, seconds, source):
    record = read(**cards)
    assert record.exposure_s == seconds
    assert record.sources.get("exposure_s") == source
    assert record.warnings == ()


def test_exposures_that_differ_are_flagged():
    assert "EXPOSURE 31" in read(EXPTIME=30, EXPOSURE=31).warnings[0]
    assert read(EXPTIME=30, EXPOSURE=30.2).warnings == ()


def test_a_stacks_exposure_is_that_of_one_frame():
    assert read(EXPTIME=600, STACKCNT=20, SWCREATE="CCDciel 0.9").exposure_s == 30.0
    assert read(EXPTIME=10, STACKCNT=614, CREATOR="ZWO Seestar S50").exposure_s == 10.0
    stack = read(EXPTIME=600, SUBEXP=30, STACKCNT=20)
    assert (stack.exposure_s, stack.sources["exposure_s"]) == (30.0, "SUBEXP")


@pytest.mark.parametrize(
    ("value", "celsius"),
    [
        (-10.0, -10.0),
        ("-10C", -10.0),
        ("11 C", 11.0),
        ("-9,8", -9.8),
        (263.15, -10.0),
        ("293.15 K", 20.0),
        ("50 °F", 10.0),
        (float("nan"), None),
        (999, None),
        (-273.15, None),
        ("N/A", None),
        ("notAvailable", None),
        (None, None),
        (False, None),
    ],
)
def test_temperatures(value, celsius):
    assert read(CCD_TEMP=value).temperature_c == celsius


def test_the_set_point_never_overwrites_a_measured_temperature():
    record = read(SET_TEMP=-10, CCD_TEMP=10.7)
    assert (record.temperature_c, record.set_temperature_c) == (10.7, -10.0)
    alone = read(SET_TEMP=-10)
    assert (alone.temperature_c, alone.sources["temperature_c"]) == (-10.0, "SET-TEMP")
    assert "set point" in alone.warnings[0]
    nothing = read(SET_TEMP=0)  # of a camera without a cooler
    assert nothing.temperature_c is None


def test_exactly_zero_without_a_set_point_is_suspicious():
    assert "exactly 0" in read(CCD_TEMP=0.0).warnings[0]
    assert read(CCD_TEMP=0.0, SET_TEMP=0.0).warnings == ()


@pytest.mark.parametrize(
    ("cards", "gain", "conversion"),
    [
        ({"GAIN": 100, "EGAIN": 0.25, "SWCREATE": "N.I.N.A. 3.2"}, 100.0, 0.25),
        ({"GAIN": 1.7, "RDNOISE": 6.5}, None, 1.7),
        ({"GAIN": (3.1, "gain, e-/ADU")}, None, 3.1),
        ({"GAIN": (2, "electrons per ADU")}, None, 2.0),
        ({"GAIN": (8.5, "Gain, e-/ADU"), "COMMENT": "Generated by INDI"}, 8.5, None),
        ({"GAIN": (120, "e-/ADU")}, 120.0, None),
        ({"GAIN": 2}, 2.0, None),
        ({"GAIN": -1}, None, None),
        ({"ISOSPEED": "ISO 800"}, 800.0, None),
        ({"CVF": 0.36}, None, 0.36),
        ({"EGAIN": 1.0, "EGAINSAV": 0.0625}, None, 0.0625),
        ({"EGAIN": 0}, None, None),
        ({"EGAIN": 300}, None, None),
    ],
)
def test_gain_is_never_electrons_per_adu(cards, gain, conversion):
    record = read(**cards)
    assert (record.key.gain, record.e_per_adu) == (gain, conversion)


@pytest.mark.parametrize(
    ("cards", "binning"),
    [
        ({"XBINNING": 2, "YBINNING": 2}, (2, 2)),
        ({"CCDSUM": "2 1"}, (2, 1)),
        ({"BINNING": "3*3"}, (3, 3)),
        ({"BINNING": "4x4"}, (4, 4)),
        ({"HBIN": 2, "VBIN": 3}, (2, 3)),
        ({"XBINNING": 0, "YBINNING": -1}, (1, 1)),
        ({"XBINNING": 2}, (2, 2)),
        ({}, (1, 1)),
    ],
)
def test_binning(cards, binning):
    key = read(**cards).key
    assert (key.xbinning, key.ybinning) == binning


@pytest.mark.parametrize("mode", ["Normal", "n/a", "0", 0, "", "Default", None])
def test_the_default_readout_mode_has_no_name(mode):
    assert read(READOUTM=mode).key.readout_mode is None


def test_other_fields_of_the_key():
    record = read(
        READOUTM="High  Gain",
        OFFSET=50,
        INSTRUME="ZWO  ASI 533",
        TRIMSEC="[1:90, 1:80]",
        DATASEC="[1:91,1:81]",
    )
    key = record.key
    assert (key.readout_mode, key.offset, key.camera) == ("High Gain", 50.0, "ZWO ASI 533")
    assert key.sections == "[1:90,1:80];;[1:91,1:81]"
    assert (key.width, key.height, key.storage) == (200, 100, "uint16")
    assert read(PEDESTAL=100, BIAS=100).key.offset is None
    assert read(CAMERAID="A12", INSTRUME="x").key.camera == "A12"


def test_calibrated_frames_are_told():
    assert read(CALSTAT="BDF").calibrated == "BDF"
    assert read(CALSTAT="").calibrated == ""
    assert read(PEDESTAL=-100).calibrated == "P"
    assert read(PEDESTAL=0).calibrated == ""
    assert read(ZEROCOR="Sep  3 12:00 Zero level", FLATCOR="F").calibrated == "B"


def test_saturation_is_never_datamax():
    assert read(DATAMAX=4_000).saturation_adu is None
    assert read(SATURATE=60_000).saturation_adu == 60_000
    assert read(SATURATE=200_000).saturation_adu is None
    assert read(ADCBITS=16).saturation_adu == 65_535
    assert read(ADCBITS=12).saturation_adu is None


# --- filters and mosaics -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        *((name, "H") for name in ("Ha", "H-alpha", "HALPHA", "h", "Filter Ha", "H_alpha")),
        *((name, "O") for name in ("OIII", "O3", "o-iii")),
        *((name, "S") for name in ("SII", "S2", "s")),
        *((name, "L") for name in ("Lum", "Luminance", "l", "Filter_L ", "L")),
        *((name, "R") for name in ("Red", "R", "RED")),
        *((name, "B") for name in ("Blue", "B")),
        ("r", "r"),
        *((name, "r'") for name in ("r'", "rp", "SDSS r", "sdss-r'")),
        ("V", "V"),
        ("I", "I"),
        ("clear", "clear"),
        ("Filter 2", "2"),
        ("HaOiii", "haoiii"),
        ("None", None),
        ("no filter", None),
        ("", None),
    ],
)
def test_filters_have_a_normal_form(written, normal):
    assert normalise_filter(written) == normal


def test_where_the_filter_stands():
    assert read(FILTERS="Filter_L ").filter == "L"
    assert read(FILTER="", FILT_1="Red").filter == "R"
    both = read(FILTER1="V", FILTER2="open")
    assert (both.filter, both.sources["filter"]) == ("V", "FILTER1+FILTER2")
    assert read(INSFLNAM="Ha").sources["filter"] == "INSFLNAM"
    named = read(FILTER="H-alpha", IMAGETYP="Light")
    assert (named.filter, named.filter_name) == ("H", "H-alpha")


@pytest.mark.parametrize("kind", ["Bias", "Dark", "DARKFLAT"])
def test_a_filter_means_nothing_without_light(kind):
    record = read(IMAGETYP=kind, FILTER="Dark")
    assert (record.filter, record.filter_name) == (None, None)


@pytest.mark.parametrize(
    ("cards", "rows", "pattern"),
    [
        ({"BAYERPAT": "RGGB"}, 100, "RGGB"),
        ({"COLORTYP": "GRBG"}, 100, "GRBG"),
        ({"BAYERPAT": "INVALID"}, 100, None),
        ({"COLORTYP": "RAW16"}, 100, None),
        ({"BAYERPAT": "RGGB", "XBAYROFF": 1}, 100, "GRBG"),
        ({"BAYERPAT": "RGGB", "YBAYROFF": 1}, 100, "GBRG"),
        ({"BAYERPAT": "RGGB", "XBAYROFF": 1, "YBAYROFF": 1}, 100, "BGGR"),
        ({"BAYERPAT": "RGGB", "ROWORDER": "BOTTOM-UP"}, 100, "GBRG"),
        ({"BAYERPAT": "RGGB", "ROWORDER": "BOTTOM-UP"}, 101, "RGGB"),
        ({"BAYERPAT": "RGGB", "ROWORDER": "bottom-up", "YBAYROFF": 1}, 100, "RGGB"),
        ({"BAYERPAT": "RGGB", "ROWORDER": "TOP-DOWN"}, 100, "RGGB"),
        ({"BAYERPAT": "RGGB", "INSTRUME": "ZWO ASI1600MM Pro"}, 100, None),
        ({"BAYERPAT": "RGGB", "CFAIMAGE": "NO"}, 100, None),
    ],
)
def test_the_mosaic_is_that_of_the_stored_rows(cards, rows, pattern):
    assert read(shape=(rows, 200), **cards).key.bayer_pattern == pattern


def test_a_colour_image_has_no_mosaic():
    record = read(shape=(3, 100, 200), BAYERPAT="RGGB")
    assert (record.planes, record.key.bayer_pattern, record.key.height) == (3, None, 100)


# --- when and where ----------------------------------------------------------------------------

MOMENT = dt.datetime(2025, 9, 10, 3, 25, 8, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("cards", "moment"),
    [
        ({"DATE_OBS": "2025-09-10T03:25:08"}, MOMENT),
        ({"DATE_OBS": "2025-09-10T03:25:08.1655624"}, MOMENT.replace(microsecond=165_562)),
        ({"DATE_OBS": "2025-09-10T03:25:08Z"}, MOMENT),
        ({"DATE_OBS": "2025-09-09T20:25:08-0700"}, MOMENT),
        ({"DATE_OBS": "2025-09-10T05:25:08+02:00"}, MOMENT),
        ({"DATE_OBS": "2025-09-10 03:25:08"}, MOMENT),
        ({"DATE_OBS": "2025/09/10", "UT": "03:25:08"}, MOMENT),
        ({"DATE_OBS": "10/09/25", "TIME_OBS": "03:25:08"}, MOMENT),
        ({"DATE_OBS": "10/09/97", "TIME_OBS": "03:25:08"}, MOMENT.replace(year=1997)),
        ({"DATE_OBS": "2025-09-10", "UTSTART": "2025-09-10T03:25:08"}, MOMENT),
        ({"DATE_OBS": "2025-09-10", "MJD_OBS": 60928.142453703703}, MOMENT),
        ({"MJD_OBS": 60928.142453703703}, MOMENT),
        ({"UT_DATE": "2025-09-10", "TIME_OBS": "03:25:08"}, MOMENT),
        ({"DATE_OBS": "2025-09-10T03:24:60"}, MOMENT.replace(minute=25, second=0)),
        ({"DATE_OBS": ("2025-09-10T03:26:08", "Time end of exposure"), "EXPTIME": 60}, MOMENT),
        ({"DATE_OBS": "2025-09-10"}, dt.datetime(2025, 9, 10, tzinfo=dt.UTC)),
        ({"DATE_OBS": "1970-01-01T00:00:12"}, None),
        ({"DATE_OBS": "2025-13-45T99:00:00"}, None),
        ({"DATE_OBS": "yesterday"}, None),
        ({"DATE-LOC": "2025-09-10T03:25:08"}, None),
        ({}, None),
    ],
)
def test_times(cards, moment):
    assert read(**cards).date_obs == moment


def test_the_source_of_a_time_names_both_cards():
    record = read(DATE_OBS="2025-09-10", UT="03:25:08")
    assert record.sources["date_obs"] == "DATE-OBS+UT"
    assert "midnight" in read(DATE_OBS="2025-09-10").warnings[0]


@pytest.mark.parametrize(
    ("cards", "ra", "dec"),
    [
        ({"OBJCTRA": "19 59 36", "OBJCTDEC": "+22 43 16"}, 299.9, 22.721111),
        ({"RA": "19:59:36", "DEC": "-00:30:00"}, 299.9, -0.5),
        ({"RA": "19h59m36s", "DEC": "22d43m16s"}, 299.9, 22.721111),
        ({"RA": 10.99584, "DEC": 41.4}, 10.99584, 41.4),
        ({"RA": 5.5, "DEC": -2.5, "TELESCOP": "DWARF II"}, 82.5, -2.5),
        ({"RA": 85.2, "DEC": -2.5, "TELESCOP": "DWARFIII"}, 85.2, -2.5),
        ({"CRVAL1": 10.4, "CRVAL2": 40.6, "CTYPE1": "RA---TAN"}, 10.4, 40.6),
        ({"CRVAL1": 10.4, "CRVAL2": 40.6, "CTYPE1": "LINEAR"}, None, None),
        ({"RA": 400.0, "DEC": 10.0}, None, None),
        ({"RA": 10.0}, None, None),
    ],
)
def test_positions(cards, ra, dec):
    record = read(**cards)
    assert record.ra_deg == (None if ra is None else pytest.approx(ra, abs=1e-5))
    assert record.dec_deg == (None if dec is None else pytest.approx(dec, abs=1e-5))


def test_optics_and_mount():
    record = read(FOCALLEN=0, XPIXSZ="3.76", ROTATANG=370, PIERSIDE="pierWest", TELESCOP="Unknown")
    assert (record.focal_length_mm, record.pixel_size_um) == (None, 3.76)
    assert (record.rotator_deg, record.pier_side, record.telescope) == (10.0, "west", None)
    assert read(OBJCTROT=98).rotator_deg is None


# --- targets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path", "target"),
    [
        ("M 31", "x/a.fits", "M 31"),
        ("Unknown", "M8/Light/2025-09-16/a.fits", "M8"),
        (None, "NGC 7000/LIGHT_300s/Ha/a.fits", "NGC 7000"),
        (None, "2025-09-16/20250917/Lights/a.fits", "untitled"),
        (None, "a.fits", "untitled"),
        ("../../etc/passwd", "a.fits", "_.._etc_passwd"),
        (".hidden", "a.fits", "hidden"),
        ("NGC\n7000\x1b[31m", "a.fits", "NGC 7000_[31m"),
        ("...", "M8/a.fits", "M8"),
        ("é" * 200, "a.fits", "é" * 40),
    ],
)
def test_target_names_are_safe(name, path, target):
    record = read(path, OBJECT=name)
    assert target_name(record, PurePath(path)) == target


# --- anything at all ---------------------------------------------------------------------------

KEYWORDS = st.sampled_from(
    [
        "IMAGETYP",
        "FRAME",
        "EXPTIME",
        "EXPOSURE",
        "EXPOINUS",
        "STACKCNT",
        "CCD-TEMP",
        "SET-TEMP",
        "GAIN",
        "EGAIN",
        "OFFSET",
        "XBINNING",
        "CCDSUM",
        "READOUTM",
        "FILTER",
        "FILTER1",
        "BAYERPAT",
        "XBAYROFF",
        "ROWORDER",
        "INSTRUME",
        "XPIXSZ",
        "FOCALLEN",
        "OBJECT",
        "RA",
        "DEC",
        "OBJCTRA",
        "OBJCTDEC",
        "ROTATOR",
        "PIERSIDE",
        "DATE-OBS",
        "TIME-OBS",
        "MJD-OBS",
        "SATURATE",
        "ADCBITS",
        "TRIMSEC",
        "CALSTAT",
        "PEDESTAL",
        "SWCREATE",
        "COMMENT",
        "HISTORY",
        "ISMASTER",
        "FIELD",
        "PICTTYPE",
    ]
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.from_regex(r"[-+]?\d{1,4}[:/., -]\d{1,3}[:/., T-]\d{1,9}", fullmatch=True),
)


@given(st.lists(st.builds(Card, KEYWORDS, VALUES, st.text(max_size=10))), st.text(max_size=30))
def test_any_header_makes_a_record_that_json_can_hold_or_is_refused(cards, name):
    path = PurePath("x") / (name.replace("/", "_").replace("\0", "_") or "a")
    try:
        record = parse(cards, shape=(10, 20), storage="uint16", path=path)
    except HeaderError:
        return
    assert FrameRecord.from_json(record.to_json()) == record
    target = target_name(record, path)
    assert target
    assert not target.startswith(".")
    assert not set(target) & set("/\\\n\r\t\0\x1b")


# --- real headers ------------------------------------------------------------------------------


def real(name):
    file = SHARED / name
    if not file.exists():
        pytest.skip("The real frames in ../shared/data are not here.")
    return file


def cards_of(header):
    """Cards as a reader would mend them: a decimal comma becomes a point, the rest None."""
    cards = []
    for card in header.cards:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = card.image[10:30].split("/")[0].strip()
            mended = re.fullmatch(r"\d+,\d+E-\d+", raw)
            value = raw.replace(",", ".") if mended else card.value
        cards.append(Card(card.keyword, value, card.comment))
    return cards


def dump(name):
    lines = [line for line in real(f"headers/{name}").read_text().splitlines() if line[:1] != "#"]
    header = fits.Header.fromstring("\n".join(lines), sep="\n")
    shape = tuple(header[f"NAXIS{axis}"] for axis in range(header["NAXIS"], 0, -1))
    return {"cards": cards_of(header), "shape": shape, "storage": "uint16"}


@pytest.mark.shared
def test_nina():
    light = parse(**dump("nina-typ-light.txt"), path=PurePath("M 27/a.fits"))
    assert (light.frame_type, light.exposure_s, light.temperature_c) == ("light", 120.0, -10.0)
    assert (light.key.gain, light.key.offset, light.key.bayer_pattern) == (100.0, 50.0, "RGGB")
    assert light.e_per_adu == pytest.approx(0.242862924933434)
    assert (light.filter, light.object_name, light.pier_side) == ("haoiii", "M 27", "west")
    assert light.date_obs == dt.datetime(2025, 9, 17, 3, 34, 2, 647_711, dt.UTC)
    assert light.warnings == ()
    dark = parse(**dump("nina-dark-raw.txt"), path=PurePath("DARK/a.fits"))
    assert (dark.frame_type, dark.filter, dark.set_temperature_c) == ("dark", None, -10.0)
    assert dark.key == light.key


@pytest.mark.shared
def test_asiair():
    light = parse(**dump("asiair-typ-light.txt"), path=PurePath("a.fit"))
    assert (light.frame_type, light.filter, light.filter_name) == ("light", None, "None")
    master = parse(**dump("malformedasimaster.txt"), path=PurePath("a.fit"))
    assert (master.frame_type, master.is_master, master.stack_count) == ("bias", True, 100)
    assert (master.exposure_s, master.temperature_c, master.filter) == (0.001, -9.8, None)
    assert master.key == light.key


@pytest.mark.shared
def test_seestar_and_dwarf():
    raw = parse(**dump("seestar-typ-light.txt"), path=PurePath("a.fit"))
    assert (raw.planes, raw.key.bayer_pattern, raw.stack_count) == (1, "GRBG", 1)
    stack = parse(**dump("seestar-stacked.txt"), path=PurePath("a.fit"))
    assert (stack.planes, stack.key.bayer_pattern, stack.stack_count) == (3, None, 614)
    assert (stack.exposure_s, stack.program) == (10.0, "ZWO Seestar S50")
    folder = PurePath("IC 434 Horsehead Nebula/DWARF_RAW_TELE_IC 434_EXP_60_GAIN_60")
    dwarf = parse(**dump("typ-light.txt"), path=folder / "IC 434_60s60_Astro.fits")
    assert (dwarf.frame_type, dwarf.temperature_c, dwarf.key.gain) == ("light", 16.0, 60.0)
    assert dwarf.date_obs == dt.datetime(2025, 10, 18, 4, 58, 26, 401_000, dt.UTC)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("asi120/bias/Bias_ASIImg_frame0001.fit", ("bias", 6.4e-05, 26.0, None)),
        ("asi120/dark_50s/Dark_ASIImg_50sec_frame0001.fit", ("dark", 50.0, 25.2, None)),
        ("asi120/flat/Flat_ASIImg_frame0001.fit", ("flat", 0.005, 24.5, None)),
        ("tres1/tres1-001d.fit", ("dark", 60.0, -9.7878, None)),
        ("tres1/tres1-021.fit", ("light", 60.0, -9.7878, "2")),
        ("messier8/light_B_15000ms_1.fit", ("light", 15.0, None, "B")),
        ("m27_osc/Light_1069.fits", ("light", 6.0, None, "L")),
    ],
)
def test_real_frames(file, expected):
    header = fits.getheader(real(file))
    record = parse(
        cards_of(header),
        shape=(header["NAXIS2"], header["NAXIS1"]),
        storage="uint16",
        path=PurePath(file),
        pattern=re.compile(r"(?P<type>light)_(?P<filter>[LRGB])_(?P<exposure_ms>\d+)ms_"),
    )
    assert (record.frame_type, record.exposure_s, record.temperature_c, record.filter) == expected
    assert record.warnings == ()
    assert target_name(record, PurePath(file)) == file.split("/")[0]
    assert FrameRecord.from_json(record.to_json()) == record
