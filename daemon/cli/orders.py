"""Orders for the daemon: which frame or master a word means, and who carries an order out."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from daemon.cli.common import CommandError, Exit

if TYPE_CHECKING:
    from daemon.config import Config


def order(
    settings: "Config",
    action: str,
    numbers: Sequence[int],
    *,
    drizzle: bool = False,
    words: Mapping[str, str] | None = None,
) -> int:
    """Leave orders with the daemon, or carry them out where none runs."""
    from daemon import orders, service
    from daemon.report import collect

    asked = [
        orders.Order(orders.Action(action), number, drizzle, words or {}) for number in numbers
    ]
    if not collect.running(settings.library.path):
        return service.carry_out(settings, asked)
    for one in asked:
        orders.leave(settings.library.path, one)
    sys.stdout.write("The daemon does it next; `lightkeeper log` tells.\n")
    return Exit.OK


def frame_number(settings: "Config", text: str) -> int:
    """The number of the one frame that `text` means. Raises CommandError, NoLibraryError."""
    from daemon.report import collect

    found = [(n, f"{name} ({state})") for n, name, state in collect.frames(settings, text)]
    return only(text, found, "frame")


def only(text: str, found: Sequence[tuple[int, str]], what: str) -> int:
    """The number of the one thing of `found` (number, name). Raises CommandError."""
    if len(found) != 1:
        problem = "which of these?" if found else f"no such {what} is recorded"
        names = [f"  {number}: {name}" for number, name in found]
        raise CommandError("\n".join([f"{text}: {problem}", *names]))
    return found[0][0]
