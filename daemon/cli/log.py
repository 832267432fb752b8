"""`lightkeeper log`: the end of the status log, and what is added to it."""

import collections
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from daemon.cli.common import CommandError, ConfigOption, Exit, load

_FOLLOW_S = 0.5


def log(
    *,
    config: ConfigOption = None,
    lines: Annotated[int, Parameter(name=["--lines", "-n"])] = 20,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"])] = False,
) -> int:
    """Show the last lines of the status log.

    Parameters
    ----------
    lines
        How many.
    follow
        Go on with each new line as it comes, until Ctrl-C.
    """
    settings = load(config)
    from daemon.log import LOG_NAME

    path = settings.library.path / LOG_NAME
    if not path.exists():
        raise CommandError(f"{path}: there is no log yet; start the daemon with `lightkeeper run`")
    offset = path.stat().st_size
    for line in last_lines(path, lines):
        sys.stdout.write(line)
    if follow:
        for text in follow_lines(path, offset):
            sys.stdout.write(text)
            sys.stdout.flush()
    return Exit.OK


def last_lines(path: Path, count: int) -> list[str]:
    """Read the last `count` lines, of the log put aside before (`NAME.1`) too where it needs."""
    lines: collections.deque[str] = collections.deque(maxlen=max(0, count))
    for part in (path.with_name(f"{path.name}.1"), path):
        with contextlib.suppress(FileNotFoundError), _open_text(part) as file:
            lines.extend(file)
    return list(lines)


def follow_lines(
    path: Path, offset: int, *, sleep: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """Yield what is appended after `offset` (bytes), for ever; starts afresh in a new log."""
    inode = path.stat().st_ino
    while True:
        try:
            stat = path.stat()
        except FileNotFoundError:  # put aside this very moment
            sleep(_FOLLOW_S)
            continue
        if stat.st_ino != inode or stat.st_size < offset:
            inode, offset = stat.st_ino, 0
        if stat.st_size > offset:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
            offset += len(data)
            yield data.decode("utf-8", errors="replace")
        else:
            sleep(_FOLLOW_S)


def _open_text(path: Path) -> contextlib.AbstractContextManager[Iterator[str]]:
    return path.open(encoding="utf-8", errors="replace")
