"""config.toml as frozen records: every mistake is told at once, with its line and its remedy."""

import datetime as dt
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
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
from pydantic_core import PydanticCustomError

from calib_library.frame import FrameType
from daemon import config_words
from daemon.errors import ConfigError
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
            {"hint": "; and ".join(config_words.unknown(name, PATTERN_GROUPS) for name in unknown)},
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
        name: f"{name} must be a camera's name as text, not {config_words.shown(given)}"
        for name, given in value.items()
        if not isinstance(given, str) or not given.strip() or not name.strip()
    }
    if problems:
        raise PydanticCustomError("keys", "has mistakes", {"keys": problems})
    return MappingProxyType({name: " ".join(given.split()) for name, given in value.items()})


def _default_problem(name: str, text: str, given: object) -> str | None:
    if name not in PATTERN_GROUPS:
        return f"unknown key {config_words.unknown(name, PATTERN_GROUPS)}"
    if isinstance(given, bool) or not isinstance(given, str | int | float) or not text:
        return f"{name} must be text or a number, not {config_words.shown(given)}"
    if name == "type" and text.lower() not in set(FrameType):
        return f"type must be {config_words.one_of(text.lower(), list(FrameType))}"
    if name in _NUMBERS and not _is_number(text):
        return f"{name} must be a number, not {config_words.shown(given)}"
    if name == "binning" and not _BINNING.fullmatch(text):
        return f'binning must be as "2" or "2x2", not {config_words.shown(given)}'
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
        "clock",
        'must be a time of day such as "08:00", not {given}',
        {"given": config_words.shown(value)},
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
    keep_variance: bool = False
    """… with the variance of each pixel beside it, where the gain is known."""
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
        raise ConfigError([config_words.syntax(name, str(error))]) from None
    try:
        config = Config.model_validate(raw, context={"base": base})
        mistakes = []
    except ValidationError as error:
        mistakes = [
            found
            for details in error.errors()
            for found in config_words.mistakes(details, SECTIONS)
        ]
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
