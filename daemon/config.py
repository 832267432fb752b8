"""config.toml as frozen records: every mistake is told at once, with its line and its remedy."""

import datetime as dt
import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from calib_library.frame import FrameType
from daemon.toml_lines import Key, key_lines, line_of

PATTERN_GROUPS = (
    "type",
    "filter",
    "exposure",
    "exposure_ms",
    "gain",
    "offset",
    "temperature",
    "target",
    "camera",
    "binning",
)
"""What a file name or `defaults` may tell of a frame whose header is silent."""

_NUMBERS = ("exposure", "exposure_ms", "gain", "offset", "temperature")

_BINNING = re.compile(r"\d+(x\d+)?")


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has one sentence for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def _folder(value: object, info: ValidationInfo) -> Path:
    """Make an absolute path; a relative one counts from the configuration file's own folder."""
    if not isinstance(value, str | Path):
        raise PydanticCustomError("folder", "must be a folder, as text in quotes")
    if not str(value).strip() or "\0" in str(value):
        raise PydanticCustomError("folder", "must be a folder; it is empty")
    base = (info.context or {}).get("base", Path())
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise PydanticCustomError(
            "folder", "begins with ~ but that user has no home: write the whole path"
        ) from None
    return Path(os.path.abspath(base / path))  # noqa: PTH100 - keeps symlinks, folds `..`


def _pattern(value: object) -> re.Pattern[str] | None:
    """Compile the expression for file names and check the names of its groups."""
    if value is None or isinstance(value, re.Pattern):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("pattern", "must be a regular expression, as text in quotes")
    try:
        pattern = re.compile(value)
    except re.error as error:
        place = f" at character {error.pos + 1}" if error.pos is not None else ""
        raise PydanticCustomError(
            "pattern",
            "is not a regular expression: {what}; a group is written (?P<filter>[LRGB])",
            {"what": f"{error.msg}{place}"},
        ) from None
    unknown = [name for name in pattern.groupindex if name not in PATTERN_GROUPS]
    if unknown:
        raise PydanticCustomError(
            "pattern",
            "has the unknown group {hint}",
            {"hint": "; and ".join(_unknown(name, PATTERN_GROUPS) for name in unknown)},
        )
    if not pattern.groupindex:
        raise PydanticCustomError(
            "pattern",
            "has no named group, so it tells nothing: write for example (?P<filter>[LRGB]);"
            " the groups are {names}",
            {"names": ", ".join(PATTERN_GROUPS)},
        )
    return pattern


def _defaults(value: object) -> Mapping[str, str]:
    """Check the names and the values that stand in for a silent header; numbers become text."""
    if not isinstance(value, Mapping):
        raise PydanticCustomError("defaults", 'must be a table, such as {{ type = "light" }}')
    texts = {name: str(given).strip() for name, given in value.items()}
    problems = {
        name: problem
        for name, text in texts.items()
        if (problem := _default_problem(name, text, value[name]))
    }
    if problems:
        raise PydanticCustomError("keys", "has mistakes", {"keys": problems})
    if "type" in texts:
        texts["type"] = texts["type"].lower()
    return MappingProxyType(texts)


def _cameras(value: object) -> Mapping[str, str]:
    """Check names of cameras: those in headers → the one to use."""
    if not isinstance(value, Mapping):
        raise PydanticCustomError(
            "cameras", 'must be a table, such as {{ "ZWO CCD ASI533MM Pro" = "ZWO ASI533MM Pro" }}'
        )
    problems = {
        name: f"{name} must be a camera's name as text, not {_shown(given)}"
        for name, given in value.items()
        if not isinstance(given, str) or not given.strip() or not name.strip()
    }
    if problems:
        raise PydanticCustomError("keys", "has mistakes", {"keys": problems})
    return MappingProxyType({name: " ".join(given.split()) for name, given in value.items()})


def _default_problem(name: str, text: str, given: object) -> str | None:
    if name not in PATTERN_GROUPS:
        return f"unknown key {_unknown(name, PATTERN_GROUPS)}"
    if isinstance(given, bool) or not isinstance(given, str | int | float) or not text:
        return f"{name} must be text or a number, not {_shown(given)}"
    if name == "type" and text.lower() not in set(FrameType):
        return f"type must be {_one_of(text.lower(), list(FrameType))}"
    if name in _NUMBERS and not _is_number(text):
        return f"{name} must be a number, not {_shown(given)}"
    if name == "binning" and not _BINNING.fullmatch(text):
        return f'binning must be as "2" or "2x2", not {_shown(given)}'
    return None


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False


def _clock(value: object) -> dt.time:
    """Read `"08:00"` (or TOML's own 08:00:00)."""
    if isinstance(value, dt.time):
        return value
    if isinstance(value, str) and re.fullmatch(r"\d{1,2}:\d{2}", value):
        hours, minutes = map(int, value.split(":"))
        if hours < 24 and minutes < 60:
            return dt.time(hours, minutes)
    raise PydanticCustomError(
        "clock", 'must be a time of day such as "08:00", not {given}', {"given": _shown(value)}
    )


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=False
    )


Folder = Annotated[Path, BeforeValidator(_folder)]


class LibraryConfig(_Section):
    """Where everything that Lightkeeper writes goes."""

    path: Folder
    """The folder for the database, masters, stacks, previews and status.log."""
    keep_calibrated_days: int = Field(default=0, ge=0, le=100_000)
    """Days after which a calibrated light's file is deleted; 0: never."""
    keep_old_masters_days: int = Field(default=0, ge=0, le=100_000)
    """Days after which a superseded master that no stack needs is deleted; 0: never."""


class WatchConfig(_Section):
    """One folder in which a camera's program writes frames. It is only ever read."""

    path: Folder
    pattern: Annotated[re.Pattern[str] | None, BeforeValidator(_pattern)] = None
    """Searched in a file's name; its named groups (`PATTERN_GROUPS`) fill what the header leaves
    out."""
    settle_s: float = Field(default=2.0, gt=0, le=3600)
    """s, for which a file must not have changed before it is looked at."""
    defaults: Annotated[Mapping[str, str], BeforeValidator(_defaults)] = Field(
        default_factory=lambda: MappingProxyType({})
    )
    """`PATTERN_GROUPS` → the value where neither header nor file name tells."""


class CalibrationConfig(_Section):
    """How masters are built and matched."""

    min_frames: int = Field(default=5, ge=2, le=10_000)
    """Frames of one kind before a master is built from them."""
    quiet_s: float = Field(default=60.0, ge=0, le=86_400)
    """s without a new frame of the set, before its master is built."""
    sigma: float = Field(default=3.0, ge=1, le=20)
    """Values further from the median than this many standard deviations are left out."""
    temperature_tolerance_c: float = Field(default=1.0, ge=0, le=50)
    """°C between a frame and a dark that may still be used for it."""
    flat_days: float = Field(default=14.0, ge=0, le=36_500)
    """Days between a light and a flat of another session that may still be used; 0: any."""
    dark_days: float = Field(default=365.0, ge=0, le=36_500)
    """The same for darks and flat-darks."""
    bias_days: float = Field(default=365.0, ge=0, le=36_500)
    """The same for biases."""
    only_older: bool = False
    """Use only masters whose frames were taken before the light."""
    cameras: Annotated[Mapping[str, str], BeforeValidator(_cameras)] = Field(
        default_factory=lambda: MappingProxyType({})
    )
    """A camera's name in headers → the name under which its frames and masters are kept."""


class LightsConfig(_Section):
    """What is done with each light."""

    keep_calibrated: bool = False
    """Keep each calibrated light as a file of its own."""
    clean_cosmics: Literal["auto", "always", "never"] = "auto"
    """`auto`: single frames and stacks of fewer than 8."""


class StackConfig(_Section):
    """The growing image of each target and filter."""

    memory_mb: int = Field(default=1500, ge=64, le=1_000_000)
    """MB (1e6 bytes) that the stacks in memory may take."""
    scale: Literal["unit", "adu", "uint16"] = "unit"
    """How pixels are written: float32 0..1, float32 in ADU, or 16-bit."""
    preview_px: int = Field(default=2000, ge=64, le=20_000)
    """px, the longer side of a preview."""


class ServiceConfig(_Section):
    """The service itself."""

    rescan_s: float = Field(default=300.0, ge=1, le=86_400)
    """s between two full scans of the watched folders."""
    end_of_night: Annotated[dt.time, BeforeValidator(_clock)] = dt.time(8, 0)
    """Local time at which the night is closed."""
    backup_keep: int = Field(default=7, ge=0, le=1000)
    """Backups of the database that are kept; 0: none are made."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Times a frame is tried before it is given up."""


class Config(_Section):
    """The whole of config.toml."""

    library: LibraryConfig
    watch: tuple[WatchConfig, ...] = Field(strict=False, min_length=1)
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)
    lights: LightsConfig = LightsConfig()
    stack: StackConfig = StackConfig()
    service: ServiceConfig = ServiceConfig()


SECTIONS: Mapping[str, type[_Section]] = MappingProxyType(
    {
        "library": LibraryConfig,
        "watch": WatchConfig,
        "calibration": CalibrationConfig,
        "lights": LightsConfig,
        "stack": StackConfig,
        "service": ServiceConfig,
    }
)


def load(path: Path) -> Config:
    """Read and check the configuration; raises ConfigError with every mistake in it."""
    text = _read(path)
    return parse(text, name=str(path), base=path.absolute().parent)


def parse(text: str, *, name: str = "config.toml", base: Path) -> Config:
    """Check the text of a configuration file called `name`; relative folders count from `base`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax(name, str(error))]) from None
    try:
        config = Config.model_validate(raw, context={"base": base})
        mistakes = []
    except ValidationError as error:
        mistakes = [found for details in error.errors() for found in _mistakes(details)]
    mistakes += _folder_mistakes(raw, base)
    if mistakes:
        lines = key_lines(text)
        placed = [(line_of(lines, key), sentence) for key, sentence in mistakes]
        placed.sort(key=lambda mistake: mistake[0])
        raise ConfigError([f"{name}:{line}: {sentence}" for line, sentence in placed])
    return config


def warnings(config: Config) -> tuple[str, ...]:
    """Sentences on what is not wrong but worth knowing; looks at the folders as they are now."""
    return tuple(
        f"{watch.path}: this watched folder does not exist (yet); frames are taken in as soon as"
        " it does"
        for watch in config.watch
        if not watch.path.is_dir()
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        what = (
            "there is no such file; write one with"
            f" `lightkeeper init --watch FOLDER --library FOLDER --config {path}`"
        )
    except IsADirectoryError:
        what = "this is a folder; give the configuration file in it"
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 text (byte {error.start}); save it as UTF-8"
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
    raise ConfigError([f"{path}: {what}"])


# --- sentences -----------------------------------------------------------------------------------


_SYNTAX = re.compile(r"(?P<what>.*?) \(at line (?P<line>\d+), column (?P<column>\d+)\)", re.DOTALL)

_REMEDIES = (
    ("Unescaped '\\'", "put a path or a pattern with backslashes in single quotes: 'C:\\frames'"),
    ("Invalid hex value", "put a path with backslashes in single quotes: 'C:\\frames'"),
    ("Invalid value", 'text must stand in quotes: "…"; truth is true or false'),
    ("Cannot overwrite", "this key stands here twice; remove one"),
    ("Cannot declare", "this section stands here twice; put its keys together"),
    ("Expected '='", "a line is: key = value; or a section: [name]; or a comment: # …"),
    ("Illegal character '\\n'", "a quote is opened and not closed on this line"),
    ("Unterminated string", "a quote is opened and never closed"),
)


def _syntax(name: str, message: str) -> str:
    found = _SYNTAX.fullmatch(message)
    what = found["what"] if found else message
    place = f":{found['line']}" if found else ""
    at = f" (column {found['column']})" if found else ""
    remedy = next((remedy for sign, remedy in _REMEDIES if sign in what), "correct this line")
    return f"{name}{place}: not TOML: {what}{at}; {remedy}"


def _mistakes(details: ErrorDetails) -> Iterator[tuple[Key, str]]:
    """Say in sentences what pydantic found at one place."""
    key: Key = details["loc"]
    context = details.get("ctx", {})
    match details["type"]:
        case "missing":
            yield _missing(key)
        case "extra_forbidden":
            yield key, _unknown_key(key)
        case "keys":
            for name, sentence in context["keys"].items():
                yield (*key, name), f"[{_section(key)}] defaults: {sentence}"
        case "tuple_type":
            yield key, "[watch] must have two brackets, [[watch]]: there may be several"
        case "too_short":  # also told when every element has mistakes of its own
            if not details["input"]:
                yield _missing(("watch",))
        case "model_type" | "model_attributes_type":
            name = _section(key)
            yield key, f"{name} must be a section: write [{name}] on a line of its own"
        case _:
            yield key, f"[{_section(key)}] {key[-1]} {_wrong_value(details)}"


_WRONG = {
    "greater_than_equal": "is {given}; it must be {ge:g} or more",
    "greater_than": "is {given}; it must be more than {gt:g}",
    "less_than_equal": "is {given}; it must be {le:g} or less",
    "int_type": "must be a whole number{bare}, not {given}",
    "int_from_float": "must be a whole number{bare}, not {given}",
    "float_type": "must be a number{bare}, not {given}",
    "finite_number": "must be a finite number, not {given}",
    "bool_type": "must be true or false{bare}, not {given}",
}


def _wrong_value(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    given = details["input"]
    if details["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return f"must be {_one_of(given, choices)}"
    if sentence := _WRONG.get(details["type"]):
        bare = ", without quotes" if isinstance(given, str) else ""
        return sentence.format(given=_shown(given), bare=bare, **context)
    return details["msg"]


def _missing(key: Key) -> tuple[Key, str]:
    match key:
        case ("library",):
            return key, (
                "[library] is missing: add `[library]` and below it"
                ' `path = "/folder/for/the/library"`'
            )
        case ("watch",):
            return key, (
                "[[watch]] is missing, so that nothing is watched: add `[[watch]]` and below it"
                ' `path = "/folder/of/the/camera"`'
            )
        case _:
            return key[:-1], f'[{_section(key)}] {key[-1]} is missing: add `{key[-1]} = "/folder"`'


def _unknown_key(key: Key) -> str:
    name = str(key[-1])
    if len(key) == 1:
        if homes := _homes(name):
            return f"{name} must stand below {homes}, not at the top"
        return f"unknown section {_unknown(name, list(SECTIONS))}"
    section = _section(key)
    known = list(SECTIONS[section].model_fields)
    if not difflib.get_close_matches(name, known, 1) and (homes := _homes(name)):
        return f"[{section}] unknown key {name}; it belongs below {homes}"
    return f"[{section}] unknown key {_unknown(name, known)}"


def _homes(name: str) -> str:
    """Name the sections that have this key."""
    homes = (section for section, model in SECTIONS.items() if name in model.model_fields)
    return " or ".join(f"[{home}]" for home in homes)


def _section(key: Key) -> str:
    return str(key[0])


def _unknown(name: str, known: Sequence[str]) -> str:
    """`nmae; did you mean name?`, or what there is."""
    near = difflib.get_close_matches(name.lower(), known, 1)
    return f"{name}; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}")


def _one_of(given: object, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(given).lower(), choices, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"one of {', '.join(choices)}, not {_shown(given)}{hint}"


def _shown(value: object) -> str:
    """Write a value nearly as it stands in the file, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


# --- folders that must be apart ------------------------------------------------------------------


def _folder_mistakes(raw: Mapping[str, Any], base: Path) -> Iterator[tuple[Key, str]]:
    """Find folders inside one another.

    It reads the raw values, so that these are told together with every other mistake.
    """
    library = _path_of(raw.get("library"), base)
    tables = raw.get("watch")
    paths = [_path_of(table, base) for table in tables] if isinstance(tables, list) else []
    watched = [(index, path) for index, path in enumerate(paths) if path]
    for index, path in watched:
        if library and library.is_relative_to(path):
            sentence = (
                f"[library] path {library} is inside the watched folder {path}: the daemon would"
                " take its own masters and stacks for new frames; choose a folder outside it"
            )
            yield ("library", "path"), sentence
        elif library and path.is_relative_to(library):
            sentence = (
                f"[watch] path {path} is inside the library {library}, which belongs to the"
                " daemon alone; choose a folder outside it"
            )
            yield ("watch", index, "path"), sentence
        for other, earlier in watched[:index]:
            if path.is_relative_to(earlier) or earlier.is_relative_to(path):
                sentence = (
                    f"[watch] path {path} and {earlier} (watched folder {other + 1}) are the same"
                    " or inside one another, so that frames would be found twice; remove one"
                )
                yield ("watch", index, "path"), sentence


def _path_of(table: object, base: Path) -> Path | None:
    value = table.get("path") if isinstance(table, Mapping) else None
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return None
    try:
        return (base / Path(value).expanduser()).resolve()
    except (RuntimeError, OSError):  # no such user, a loop of links: told elsewhere or later
        return None


# --- the commented example -----------------------------------------------------------------------


def example(*, watch: str, library: str) -> str:
    """Write a commented configuration with these two folders and every setting at its default."""
    return _EXAMPLE.replace("@watch@", _basic_string(watch)).replace(
        "@library@", _basic_string(library)
    )


def _basic_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_EXAMPLE = """\
# Lightkeeper's configuration. `lightkeeper check-config` tells every mistake in it at once.
# Every setting stands at its default; one that is left out has it too. Folders may begin with ~; a
# relative folder counts from the folder of this file.

[library]
# Everything that Lightkeeper writes goes here: the database, masters, stacks, previews and
# status.log. On a local disk, and never inside a watched folder.
path = @library@

# Days after which calibrated lights, and superseded masters that no stack needs, are deleted;
# 0 keeps them for ever.
keep_calibrated_days = 0
keep_old_masters_days = 0

# A folder in which the camera's program writes frames, with all its subfolders. It is only read.
# There may be several: repeat [[watch]].
[[watch]]
path = @watch@

# A file must not have changed for so many seconds before it is looked at.
settle_s = 2.0

# Where the header is silent, a regular expression that is searched in the file's name may tell.
# Groups: type filter exposure exposure_ms gain offset temperature target camera binning.
# This one reads M8_Ha_300s_0001.fits:
#pattern = '(?P<target>[^_]+)_(?P<filter>[^_]+)_(?P<exposure>[0-9.]+)s'

# Where neither header nor file name tells, these do (names as above).
#defaults = { type = "light", camera = "My camera" }

[calibration]
# Frames of one kind before a master is built from them.
min_frames = 5

# Seconds without a new frame of the set before its master is built.
quiet_s = 60.0

# Values further from the median than so many standard deviations are left out of a master.
sigma = 3.0

# Darks are combined for each light's own temperature. Where there is only one, it is used as it is
# when it was taken within so many °C. Darks this close are also one set.
temperature_tolerance_c = 1.0

# Masters age. Flats of the light's own session come first; flats of another session are used up to
# so many days from the light, darks and biases likewise. 0 is no limit.
flat_days = 14.0
dark_days = 365.0
bias_days = 365.0

# Use only masters whose frames were taken before the light: then a light's calibration never
# changes afterwards, and flats at dawn are for the next night.
only_older = false

# One camera has several names where several programs or drivers write its frames, and then its
# darks fit its lights no longer. A name as a header has it = the name to use for new frames (best
# that of the masters there are: lightkeeper library).
#cameras = { "ZWO CCD ASI2600MM Pro" = "ZWO ASI2600MM Pro" }

[lights]
# Keep each calibrated light as a file of its own (they need as much disk as the raw frames, twice).
keep_calibrated = false

# Remove cosmic rays before stacking: "auto" for single frames and stacks of fewer than 8 (larger
# ones reject them anyway), "always", "never".
clean_cosmics = "auto"

[stack]
# Memory for growing stacks, in MB. More of it rejects satellites and aeroplanes better; where a
# stack does not fit, it grows at half the size (26 megapixels need 1350; docs/configuration.md).
memory_mb = 1500

# Pixels of stacks and calibrated lights: "unit" (float32, 0 to 1, opens correctly everywhere),
# "adu" (float32 in ADU, for photometry), "uint16" (half the disk).
scale = "unit"

# The longer side of a preview, in pixels.
preview_px = 2000

[service]
# Seconds between two full scans of the watched folders (events tell of most frames at once).
rescan_s = 300.0

# Local time at which the night is over and is summed up.
end_of_night = "08:00"

# Backups of the database that are kept.
backup_keep = 7

# A frame that fails so often is given up, and says why.
max_attempts = 3
"""
