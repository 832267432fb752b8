"""What all commands share: their exit codes, the configuration, how something is said and shown."""

import datetime as dt
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from daemon.config import Config

CONFIG_VARIABLE = "LIGHTKEEPER_CONFIG"
SYSTEM_CONFIG = Path("/etc/lightkeeper/config.toml")


class Exit(IntEnum):
    """What a command's exit code means."""

    OK = 0
    PROBLEM = 1
    USAGE = 2
    ALREADY_RUNNING = 3


ConfigOption = Annotated[
    Path | None,
    Parameter(
        name="--config",
        help="The configuration. Without it: $LIGHTKEEPER_CONFIG, else ./config.toml, else"
        " /etc/lightkeeper/config.toml.",
    ),
]
JsonFlag = Annotated[bool, Parameter(name="--json", help="For scripts: JSON, times in UTC.")]


class CommandError(Exception):
    """The command cannot do what is asked, exit code 1; `str()` is a sentence, or several lines."""


def config_path(given: Path | None) -> Path:
    """Choose the configuration file: as given, by the environment, here, or the system's."""
    if given is not None:
        return given
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    here = Path("config.toml")
    return here if here.exists() or not SYSTEM_CONFIG.exists() else SYSTEM_CONFIG


def load(given: Path | None) -> "Config":
    """Read the configuration that is meant. Raises ConfigError."""
    from daemon import config

    return config.load(config_path(given))


def complain(sentence: str) -> None:
    """Say what is wrong, or worth knowing, beside what the command was asked for."""
    sys.stderr.write(f"{sentence.encode('utf-8', 'backslashreplace').decode()}\n")


def show(
    report: Any,  # noqa: ANN401 — any dataclass
    *,
    json: bool,
    render: Callable[..., Any] | None = None,
) -> int:
    """Print a report as JSON, or for a person: by `render`, else as `daemon.report.status` does."""
    from rich.console import Console

    from daemon.report.status import render_text, to_json

    if json:
        sys.stdout.write(to_json(report) + "\n")
    else:
        made = (render or render_text)(report, now=dt.datetime.now(dt.UTC))
        Console(highlight=False).print(made)
    return Exit.OK
