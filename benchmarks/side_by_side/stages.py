"""Where the time of a light goes: functions of the product are wrapped with clocks.

Each stage is told its own time, without that of the stages it calls: wall time, and processor time
of all threads.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

Point = tuple[ModuleType | type, str, str]
"""Module or class, the function's name in it, the stage's name."""

Seconds = tuple[float, float]
"""Wall time, processor time of all threads."""


def clocks() -> Seconds:
    """Read both clocks."""
    return time.perf_counter(), time.process_time()


def since(began: Seconds) -> Seconds:
    """What has passed on both clocks."""
    wall, cpu = clocks()
    return wall - began[0], cpu - began[1]


def added(one: Seconds, other: Seconds) -> Seconds:
    """The sum of two times, on both clocks."""
    return one[0] + other[0], one[1] + other[1]


def without(one: Seconds, other: Seconds) -> Seconds:
    """The difference of two times, on both clocks."""
    return one[0] - other[0], one[1] - other[1]


def medians(steps: Sequence[dict[str, Seconds]]) -> dict[str, Seconds]:
    """The median wall and processor time of each stage; 0 where most did without it."""
    names = dict.fromkeys(name for one in steps for name in one)
    times = {
        name: zip(*(one.get(name, (0.0, 0.0)) for one in steps), strict=True) for name in names
    }
    return {
        name: (statistics.median(wall), statistics.median(cpu))
        for name, (wall, cpu) in times.items()
    }


class Stages:
    """Own time by stage. One thread."""

    def __init__(self, points: Iterable[Point]) -> None:
        """Wrap the functions; those that are not there (any more) are named in `absent`."""
        self.times: dict[str, Seconds] = {}
        self.absent: list[str] = []
        self._inner: list[Seconds] = []
        for owner, name, stage in points:
            if hasattr(owner, name):
                setattr(owner, name, self._timed(getattr(owner, name), stage))
            else:
                self.absent.append(f"{owner.__name__}.{name}")

    def take(self) -> dict[str, Seconds]:
        """Give what has been gathered, and begin anew."""
        taken, self.times = self.times, {}
        return taken

    def _timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 — whatever it wraps
            self._inner.append((0.0, 0.0))
            began = clocks()
            try:
                return function(*args, **kwargs)
            finally:
                spent = since(began)
                own = without(spent, self._inner.pop())
                self.times[stage] = added(self.times.get(stage, (0.0, 0.0)), own)
                if self._inner:
                    self._inner[-1] = added(self._inner[-1], spent)

        return timed
