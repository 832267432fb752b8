"""Where the time of a light goes: functions of the product are wrapped with a clock.

Each stage is told its own time, without that of the stages it calls.
"""

import functools
import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

Point = tuple[ModuleType | type, str, str]
"""Module or class, the function's name in it, the stage's name."""


class Stages:
    """Own seconds by stage. One thread."""

    def __init__(self, points: Iterable[Point]) -> None:
        """Wrap the functions; those that are not there (any more) are named in `absent`."""
        self.seconds: dict[str, float] = {}
        self.absent: list[str] = []
        self._inner: list[float] = []
        for owner, name, stage in points:
            if hasattr(owner, name):
                setattr(owner, name, self._timed(getattr(owner, name), stage))
            else:
                self.absent.append(f"{owner.__name__}.{name}")

    def take(self) -> dict[str, float]:
        """Give what has been gathered, and begin anew."""
        taken, self.seconds = self.seconds, {}
        return taken

    def _timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 — whatever it wraps
            self._inner.append(0.0)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - began
                own = spent - self._inner.pop()
                self.seconds[stage] = self.seconds.get(stage, 0.0) + own
                if self._inner:
                    self._inner[-1] += spent

        return timed
