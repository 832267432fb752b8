"""Two branches: what concerns one frame, and what is fatal to the service; and what a command meets
before it can begin.

Every sentence is for a person at night: it names the file or folder, what is wrong, what to do.
"""

from collections.abc import Sequence


class FrameError(Exception):
    """Concerns one frame only; the service goes on with the next."""


class FrameRejectedError(FrameError):
    """The frame is no use, for good: `str()` is the reason."""


class FrameQuarantinedError(FrameError):
    """The frame cannot be trusted as it is; a person may decide otherwise."""


class FrameDeferredError(FrameError):
    """The frame cannot be worked on now (a busy device, a writer at work): tried again later."""

    def __init__(self, reason: str, *, retry_s: float = 30.0) -> None:
        super().__init__(reason)
        self.retry_s = retry_s


class FatalError(Exception):
    """The service cannot go on; it exits non-zero and systemd starts it again."""


class AlreadyRunningError(FatalError):
    """Another instance holds the library's lock."""


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has one sentence for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class NoLibraryError(Exception):
    """There is no database yet to read from."""
