"""What the daemon does and why it did it: `status` and `explain`."""

import datetime as dt
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from daemon.cli.common import CommandError, ConfigOption, JsonFlag, load, show

if TYPE_CHECKING:
    from daemon.report.status import Report

_REFRESH_S = 2.0


def status(*, config: ConfigOption = None, watch: bool = False, json: JsonFlag = False) -> int:
    """Show what the daemon does, the frames by state, the stacks and the problems.

    Parameters
    ----------
    watch
        Keep showing it, until Ctrl-C.
    """
    settings = load(config)
    from daemon.report import collect

    if watch and not json:
        _watch(lambda: collect.status(settings))
    return show(collect.status(settings), json=json)


def _watch(make: "Callable[[], Report]") -> NoReturn:
    """Show a report again and again on the whole screen, until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    from daemon.report.status import render_text

    with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
        while True:
            live.update(render_text(make(), now=dt.datetime.now(dt.UTC)), refresh=True)
            time.sleep(_REFRESH_S)


def explain(frame: str, /, *, config: ConfigOption = None, json: JsonFlag = False) -> int:
    """Tell why a frame was treated as it was: its header, its masters, its quality, its stack.

    Parameters
    ----------
    frame
        The frame's file name, a part of it, its path, or its number.
    """
    settings = load(config)
    from daemon.report import collect

    found = collect.explain(settings, frame)
    if found is None:
        raise CommandError(
            f"{frame}: no such frame is recorded; `lightkeeper log` shows what came in"
        )
    return show(found, json=json)
