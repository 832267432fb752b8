"""Any program's header → one normalised record, and which keyword said so.

The keywords, values and dialects are tables in `keywords`; the rules that need more than a table
are here, each with its reason. What a header leaves out may stand in the file's name (a pattern of
the user's, or of a few programs) or in defaults; neither ever overrules a header.
"""

import dataclasses
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType
from typing import Final

from calib_library import keywords as kw
from calib_library import overscan
from calib_library.cards import Reader, Value, collapse, compact, number, quantity, text_of, truth
from calib_library.errors import HeaderError
from calib_library.frame import CalibrationKey, Card, FrameRecord, FrameType
from calib_library.kinds import flat_light, frame_type, says_nothing
from calib_library.observation import angle, date_obs, pier_side, position

_NO_DEFAULTS: Final[Mapping[str, str]] = MappingProxyType({})
_MILLISECONDS: Final = re.compile(r"\b(?:ms|msec|milli-?seconds?)\b", re.IGNORECASE)
_MICROSECONDS: Final = re.compile(r"\b(?:us|µs|usec|micro-?seconds?)\b", re.IGNORECASE)
_MINUTES: Final = re.compile(r"\b(?:min|minutes?)\b", re.IGNORECASE)
_ELECTRONS: Final = re.compile(r"electron|\be-?\s*/\s*(?:adu|dn|count)", re.IGNORECASE)
_FULL_SCALE: Final = MappingProxyType({"uint8": 255.0, "int16": 32_767.0, "uint16": 65_535.0})
_NAME_BYTES: Final = 80


def parse(
    cards: Sequence[Card],
    *,
    shape: tuple[int, ...],
    storage: str,
    path: PurePath,
    pattern: re.Pattern[str] | None = None,
    defaults: Mapping[str, str] = _NO_DEFAULTS,
) -> FrameRecord:
    """Make one record of a header.

    `cards` are the frame's (the primary's under the image HDU's), `shape` is `(ny, nx)` or
    `(planes, ny, nx)`, `storage` how the pixels are stored (`uint16`, …), `path` relative to the
    watched folder. `pattern` is searched in the file's name; its groups, and the names in
    `defaults`, are among `type`, `filter`, `exposure` (s), `exposure_ms`, `gain`, `offset`,
    `temperature` (°C), `target`, `camera`, `binning`. They fill only what the header leaves out.

    Raises HeaderError for a shape that is no image, and for a frame of a type that is neither
    filed nor stacked.
    """
    if len(shape) not in {2, 3} or min(shape) < 1 or (len(shape) == 3 and shape[0] not in {1, 3}):
        raise HeaderError(f"An image of {' × '.join(map(str, shape))} pixels cannot be used.")
    ny, nx = shape[-2:]
    reader = Reader(cards, _named(path.name, pattern), defaults)
    program = _program(reader)
    if kw.GUIDER.search(program or ""):
        raise HeaderError(f"{program} wrote it: guide frames are neither filed nor stacked.")
    planes = shape[0] if len(shape) == 3 else 1
    stack_count = _stack_count(reader)
    exposure_s = _exposure(reader, program, stack_count)
    kind, is_master = frame_type(reader, path, exposure_s=exposure_s)
    set_temperature_c = reader.in_header("set_temperature_c", _celsius)
    temperature_c = _temperature(reader, set_temperature_c)
    conversion, gain = _gain(reader, program)
    filter_name = _filter_name(reader) if kind in {FrameType.LIGHT, FrameType.FLAT, None} else None
    row_order = _row_order(reader)
    camera = reader.find("camera", _camera)
    xbinning, ybinning = _binning(reader)
    place = position(reader)
    saturation_adu = _saturation(reader, storage)
    return FrameRecord(
        frame_type=kind,
        key=CalibrationKey(
            camera=camera,
            width=nx,
            height=ny,
            xbinning=xbinning,
            ybinning=ybinning,
            gain=gain,
            offset=reader.find("offset", _not_negative),
            readout_mode=_readout_mode(reader),
            sections=_sections(reader, shape=(ny, nx)),
            storage=storage,
            bayer_pattern=_bayer(reader, camera, row_order, rows=ny) if planes == 1 else None,
        ),
        planes=planes,
        exposure_s=exposure_s,
        temperature_c=temperature_c,
        set_temperature_c=set_temperature_c,
        filter=None if filter_name is None else normalise_filter(filter_name),
        filter_name=filter_name,
        row_order=row_order,
        e_per_adu=conversion,
        saturation_adu=saturation_adu,
        pixel_size_um=reader.in_header("pixel_size_um", _positive),
        focal_length_mm=reader.in_header("focal_length_mm", _positive),
        telescope=reader.in_header("telescope", lambda card: text_of(card.value)),
        object_name=reader.find("object_name", _object),
        ra_deg=None if place is None else place[0],
        dec_deg=None if place is None else place[1],
        rotator_deg=reader.in_header("rotator_deg", angle),
        pier_side=reader.in_header("pier_side", pier_side),
        date_obs=date_obs(reader, exposure_s),
        program=program,
        stack_count=stack_count,
        is_master=kind is not FrameType.LIGHT
        and (is_master or (stack_count > 1 and kind is not None)),
        calibrated=_calibrated(reader),
        sources=reader.sources,
        warnings=tuple(reader.warnings),
        flat_light=flat_light(reader, path) if kind is FrameType.FLAT else None,
    )


def with_camera(record: FrameRecord, names: Mapping[str, str]) -> FrameRecord:
    """Give a camera the one name that it has here: programs call it by its driver's, by its model's
    or by its serial number, and its frames would never meet their masters.

    `names`: a header's name, in any case → the name to use.
    """
    camera = compact(record.key.camera or "")
    for written, name in names.items():
        if camera == compact(written) and record.key.camera != name:
            source = f"{record.sources.get('camera', 'header')} ({record.key.camera}), renamed"
            return dataclasses.replace(
                record,
                key=dataclasses.replace(record.key, camera=name),
                sources={**record.sources, "camera": source},
            )
    return record


def normalise_filter(name: str) -> str | None:
    """Bring a filter's name to its normal form: `Ha`, `Filter_H-alpha` → `H`; `none` → None.

    Photometric names keep their case and prime: Sloan `r` (`r'`, `rp`, `SDSS r`) is not red. A name
    that is in no table is casefolded and compact, and stays a filter of its own.
    """
    bare = re.sub(r"[\s_-]", "", name.strip())
    bare = re.sub(r"^filter(?=.)", "", bare, flags=re.IGNORECASE)
    if compact(bare) in kw.NO_FILTER:
        return None
    sloan = re.fullmatch(
        r"(?:sdss|sloan)?([ugriz])(?:['′’]|p(?:rime)?)|(?:sdss|sloan)([ugriz])", bare, re.IGNORECASE
    )
    if sloan is not None and bare != bare.upper():
        return f"{(sloan[1] or sloan[2]).lower()}'"
    known = kw.FILTERS.get(bare.casefold())
    if known is not None:
        return known
    return bare if len(bare) == 1 else bare.casefold()


def target_name(record: FrameRecord, path: PurePath) -> str:
    """Name the target of a light, safe as a folder's name.

    OBJECT; else the nearest parent folder of `path` that is more than a type, a date or a filter;
    else `untitled`. Never holds a path separator or a control character, nor begins with a dot.
    """
    folders = (part for part in reversed(path.parent.parts) if not says_nothing(part))
    for name in (record.object_name, *folders):
        safe = _safe(name or "")
        if safe:
            return safe
    return "untitled"


def _safe(name: str) -> str:
    plain = "".join(
        "_" if unicodedata.category(sign)[0] == "C" or sign in '/\\:*?"<>|' else sign
        for sign in unicodedata.normalize("NFC", name)
    )
    short = collapse(plain).encode()[:_NAME_BYTES].decode(errors="ignore")
    stripped = short.strip(" .")
    return stripped if stripped.strip("_. ") else ""


def _named(name: str, pattern: re.Pattern[str] | None) -> dict[str, str]:
    """Collect what the patterns find in a file's name; the user's goes first."""
    found: dict[str, str] = {}
    for each in (*kw.NAME_PATTERNS[::-1], *([pattern] if pattern else [])):
        match = each.search(name)
        if match is not None:
            found |= {group: text for group, text in match.groupdict().items() if text}
    return found


def _program(reader: Reader) -> str | None:
    """Name the program; a bare version (Seestar's PROGRAM) is none, INDI tells in a comment."""

    def name(card: Card) -> str | None:
        written = text_of(card.value)
        return None if written is None or quantity(written) is not None else written

    found = reader.in_header("program", name)
    if found is None and any("generated by indi" in line.casefold() for line in reader.prose):
        reader.sources["program"] = "COMMENT"
        return "INDI"
    return found


def _stack_count(reader: Reader) -> int:
    """Count the frames in this file: 1 unless a keyword, the name or HISTORY tells of more."""

    def count(card: Card) -> int | None:
        found = number(card.value)
        return None if found is None or not 1 <= found < 1e6 else int(found)

    found = reader.find("stack_count", count)
    if found is not None:
        return found
    for pattern in kw.STACK_HISTORY:
        counts = [int(match[1]) for line in reader.prose if (match := pattern.search(line))]
        if counts and 1 < max(counts) < 1e6:
            reader.sources["stack_count"] = "HISTORY"
            return max(counts)
    return 1


def _seconds(card: Card) -> float | None:
    """Read an exposure; its unit is the keyword's, or stands behind it or in the comment."""
    found = quantity(card.value)
    if found is None or not 0 <= found[0] < 1e10:
        return None
    said = f"{found[1]} {card.comment}"
    if card.keyword == "EXPOINUS" or _MICROSECONDS.search(said):
        return found[0] / 1e6
    if card.keyword in {"EXPOINMS", "exposure_ms"} or _MILLISECONDS.search(said):
        return found[0] / 1e3
    return found[0] * 60 if _MINUTES.search(said) else found[0]


def _exposure(reader: Reader, program: str | None, stack_count: int) -> float | None:
    """Find the exposure of one frame, s, to 1 ms; below 0.1 s, where that is 1 %, to 1 µs."""
    found = reader.find("exposure_s", _seconds)
    sub = reader.in_header("sub_exposure_s", _seconds) if stack_count > 1 else None
    reader.sources.pop("sub_exposure_s", None)
    if found is not None:
        for keyword in kw.KEYWORDS["exposure_s"]:
            card = reader.cards.get(keyword)
            other = None if card is None else _seconds(card)
            if other is not None and abs(other - found) > 0.01 * max(other, found):
                reader.warn(
                    f"{reader.sources['exposure_s']} says {found:g} s, {keyword} {other:g} s: "
                    "the first is believed."
                )
    if sub:
        reader.sources["exposure_s"] = "SUBEXP"
        found = sub
    elif found is not None and stack_count > 1 and kw.TOTAL_EXPOSURE.search(program or ""):
        found /= stack_count
    return None if found is None else round(found, 3 if found >= 0.1 else 6)


def _celsius(card: Card) -> float | None:
    """Read a temperature in °C; None for what no sensor has (999, −273.15)."""
    found = quantity(card.value)
    if found is None:
        return None
    value, unit = found[0], found[1].casefold().strip("°º. ")
    if unit in {"f", "degf"}:
        value = (value - 32) / 1.8
    elif unit in {"k", "kelvin"} or value > 100:
        value -= 273.15
    return round(value, 4) if -200 < value <= 100 else None


def _temperature(reader: Reader, set_temperature_c: float | None) -> float | None:
    """Find the measured temperature; the set point stands in only where nothing was measured."""
    found = reader.find("temperature_c", _celsius)
    if found is None and set_temperature_c:
        reader.sources["temperature_c"] = reader.sources["set_temperature_c"]
        reader.warn(
            f"No measured sensor temperature: the set point of {set_temperature_c:g} °C stands "
            "in for it."
        )
        return set_temperature_c
    if found == 0 and set_temperature_c is None:
        reader.warn(
            "A sensor temperature of exactly 0 °C without a set point may mean that the camera "
            "reports none."
        )
    return found


def _positive(card: Card) -> float | None:
    found = number(card.value)
    return None if found is None or found <= 0 else found


def _not_negative(card: Card) -> float | None:
    """Read a setting; programs write −1 for one that was not made."""
    found = number(card.value)
    return None if found is None or found < 0 else found


def _gain(reader: Reader, program: str | None) -> tuple[float | None, float | None]:
    """Electrons per ADU, and the gain setting: GAIN is the first in headers of observatories."""

    def conversion(card: Card) -> float | None:
        found = number(card.value)
        if found is not None and found > 100:
            reader.warn(f"{card.keyword} {found:g} cannot be electrons per ADU: left out.")
        return None if found is None or not 0 < found <= 100 else found

    def setting(card: Card) -> float | None:
        if isinstance(card.value, str):
            text = re.sub(r"^iso[\s_-]*", "", card.value.strip(), flags=re.IGNORECASE)
            card = card._replace(value=text)
        return _not_negative(card)

    e_per_adu = reader.in_header("e_per_adu", conversion)
    card = reader.cards.get("GAIN")
    if e_per_adu is None and card is not None and _gain_is_conversion(reader, card, program):
        reader.sources["e_per_adu"] = "GAIN"
        e_per_adu = number(card.value)
        del reader.cards["GAIN"]
    return e_per_adu, reader.find("gain", setting)


def _gain_is_conversion(reader: Reader, card: Card, program: str | None) -> bool:
    """Decide by program and magnitude; a camera's setting is a whole number or large."""
    value = number(card.value)
    if value is None or not 0 < value <= 20 or kw.AMATEUR.search(program or ""):
        return False
    observatory = any(word in reader.cards for word in kw.READ_NOISE)
    return observatory or not value.is_integer() or _ELECTRONS.search(card.comment) is not None


def _binning(reader: Reader) -> tuple[int, int]:
    """Horizontal and vertical binning; 1 where nothing sensible is said."""

    def pair(x: Value, y: Value) -> tuple[int, int] | None:
        if isinstance(x, str) and (found := re.fullmatch(r"\s*(\d+)\s*[*x×,\s]\s*(\d+)\s*", x)):
            x, y = int(found[1]), int(found[2])
        across, down = number(x), number(y)
        if across is None:
            return None
        down = across if down is None else down
        return max(1, int(min(across, 100))), max(1, int(min(down, 100)))

    for horizontal, vertical in kw.BINNING:
        found = pair(reader.value(horizontal), reader.value(vertical))
        if found is not None:
            reader.sources["binning"] = horizontal
            return found
    named = reader.elsewhere("binning", lambda card: pair(card.value, card.value))
    return (1, 1) if named is None else named


def _camera(card: Card) -> str | None:
    written = text_of(card.value)
    return None if written == "0" else written


def _readout_mode(reader: Reader) -> str | None:
    mode = reader.in_header("readout_mode", lambda card: text_of(card.value))
    return None if mode is None or compact(mode) in kw.DEFAULT_READOUT else mode


def _filter_name(reader: Reader) -> str | None:
    """Find the filter as written; of two wheels, both that do something."""
    found = reader.in_header("filter", lambda card: text_of(card.value))
    if found is not None:
        return found
    wheels = [name for word in ("FILTER1", "FILTER2") if (name := reader.text(word))]
    if wheels:
        reader.sources["filter"] = "FILTER1+FILTER2"
        return "+".join(n for n in wheels if compact(n) not in kw.EMPTY_SLOT) or wheels[0]
    late = reader.in_header("filter_late", lambda card: text_of(card.value))
    if late is not None:
        reader.sources["filter"] = reader.sources.pop("filter_late")
        return late
    return reader.elsewhere("filter", lambda card: text_of(card.value))


def _row_order(reader: Reader) -> str:
    written = compact(reader.text("ROWORDER") or "")
    if written in {"topdown", "bottomup"}:
        reader.sources["row_order"] = "ROWORDER"
    return "BOTTOM-UP" if written == "bottomup" else "TOP-DOWN"


def _bayer(reader: Reader, camera: str | None, row_order: str, *, rows: int) -> str | None:
    """Find the mosaic's pattern at the first pixel of the first *stored* row.

    A header gives it for the image as displayed, and where the pattern begins outside the image,
    by how many pixels; with BOTTOM-UP the last stored row is displayed first.
    """
    for keyword in ("BAYERPAT", "COLORTYP"):
        pattern = (reader.text(keyword) or "").upper()
        if pattern in kw.BAYER:
            break
    else:
        return None
    if reader.value("CFAIMAGE") is not None and not truth(reader.value("CFAIMAGE")):
        return None
    if camera is not None and kw.MONO_CAMERA.search(camera):
        reader.warn(f"{keyword} is left out: {camera} is a monochrome camera.")
        return None
    reader.sources["bayer_pattern"] = keyword
    shift_x, shift_y = (int(number(reader.value(word)) or 0) for word in ("XBAYROFF", "YBAYROFF"))

    def colour(x: int, y: int) -> str:
        displayed = rows - 1 - y if row_order == "BOTTOM-UP" else y
        return pattern[2 * ((displayed + shift_y) % 2) + (x + shift_x) % 2]

    return "".join(colour(x, y) for y in (0, 1) for x in (0, 1))


def _sections(reader: Reader, *, shape: tuple[int, int]) -> str | None:
    """TRIMSEC, BIASSEC and DATASEC; a missing one among them leaves its place empty, and so does
    one that cannot be.
    """
    written = [(reader.text(word) or "").replace(" ", "") for word in kw.SECTIONS]
    for place, text in enumerate(written):
        try:
            section = overscan.parse_section(text) if text else None
        except HeaderError as error:
            reader.warn(f"{kw.SECTIONS[place]} is left out. {error}")
            written[place] = ""
            continue
        if section is not None and (section.y1 > shape[0] or section.x1 > shape[1]):
            reader.warn(
                f"{kw.SECTIONS[place]} {text} reaches beyond the image of {shape[1]} × {shape[0]} "
                "pixels: it is left out."
            )
            written[place] = ""
    return ";".join(written) if any(written) else None


def _object(card: Card) -> str | None:
    written = text_of(card.value)
    return None if written is None or compact(written) in kw.NO_OBJECT else written


def _saturation(reader: Reader, storage: str) -> float | None:
    """SATURATE; else all 16 bits where ADCBITS says so (fewer may be shifted to the left)."""
    limit = _FULL_SCALE.get(storage, math.inf)
    found = reader.in_header("saturation_adu", _positive)
    if found is not None and found <= limit:
        return found
    reader.sources.pop("saturation_adu", None)
    if storage == "uint16" and number(reader.value("ADCBITS")) == 16:
        reader.sources["saturation_adu"] = "ADCBITS"
        return limit
    return None


def _calibrated(reader: Reader) -> str:
    """Which corrections were made: B, D, F; P where only a pedestal tells that some were."""
    letters = set((reader.text("CALSTAT") or "").upper()) & set("BDF")
    for keyword, letter in kw.CORRECTED:
        value = reader.value(keyword)
        done = isinstance(value, str) and compact(value) not in {"", "f", "false", "no", "omit"}
        if done or value is True:
            letters.add(letter)
    if letters:
        return "".join(letter for letter in "BDF" if letter in letters)
    if number(reader.value("PEDESTAL")):
        reader.warn("PEDESTAL is not 0: some program has calibrated this frame.")
        return "P"
    return ""
