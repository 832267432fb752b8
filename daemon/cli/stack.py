"""`lightkeeper stack …`: the stacks, what is in them, the exact ones."""

from pathlib import Path

from cyclopts import App

from daemon.cli.common import CommandError, ConfigOption, JsonFlag, load, show
from daemon.cli.orders import frame_number, order

app = App(
    name="stack",
    help="Show the stacks; take a frame out, let one in, make the exact stack.",
)


@app.default
def stacks(*, config: ConfigOption = None, json: JsonFlag = False) -> int:
    """Show the stacks, each with its number."""
    settings = load(config)
    from daemon.report import collect

    return show(collect.stacks(settings), json=json)


@app.command
def remove(frame: str, /, *, config: ConfigOption = None) -> int:
    """Take a light out of its stack, at once and for good (`readmit` takes it back).

    Parameters
    ----------
    frame
        The frame's file name, a part of it, its path, or its number.
    """
    return _ask(config, "remove", frame)


@app.command
def readmit(frame: str, /, *, config: ConfigOption = None) -> int:
    """Let a light into its stack that was left out, whatever its quality.

    Parameters
    ----------
    frame
        The frame's file name, a part of it, its path, or its number.
    """
    return _ask(config, "readmit", frame)


@app.command
def finish(
    number: int | None = None, /, *, config: ConfigOption = None, drizzle: bool = False
) -> int:
    """Make the exact stack from all raw frames, with rejection in two passes; at the end of a night
    this happens by itself.

    Parameters
    ----------
    number
        The stack's number, as `lightkeeper stack` shows it; without it, all stacks.
    drizzle
        Make one on a grid twice as fine too: for dithered, undersampled frames.
    """
    settings = load(config)
    from daemon.report import collect

    recorded = [stack.number for stack in collect.stacks(settings).stacks]
    if number is not None and number not in recorded:
        raise CommandError(f"there is no stack {number}; `lightkeeper stack` shows them")
    return order(settings, "finish", recorded if number is None else [number], drizzle=drizzle)


def _ask(config: Path | None, action: str, frame: str) -> int:
    """Leave an order about a frame with the daemon, or carry it out where none runs."""
    settings = load(config)
    return order(settings, action, [frame_number(settings, frame)])
