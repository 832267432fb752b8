"""The library's lock: one daemon at a time. The kernel releases it however the process ends."""

import fcntl
import os
from pathlib import Path
from typing import Self

from daemon.errors import AlreadyRunningError
from daemon.report.collect import LOCK_NAME


class Lock:
    """Held from `take` to `release`; a context manager that does both."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take it, where it is not held. Raises AlreadyRunningError, OSError."""
        if self._descriptor is not None:
            return
        path = self._root / LOCK_NAME
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise AlreadyRunningError(
                f"another Lightkeeper works on {self._root} already: stop it first "
                "(systemctl stop lightkeeper), or give this one another library"
            ) from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go of it, and of the file: an open one keeps its disk from being unmounted."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
