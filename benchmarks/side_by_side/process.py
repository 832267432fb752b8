"""Running one process and measuring all of it: wall time, processor time, peak memory.

The measuring process itself must stay small: on Linux a child's peak counts from what its parent
held when it was started.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from side_by_side.answer import MARK

TAIL_LINES = 12
NOT_INHERITED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONDONTWRITEBYTECODE")
"""What `daemon` sets for itself where it is imported: the peers' threads are their own affair. And
an installed program is not compiled anew at each start, as this one would be from its sources.
"""


class FailedError(Exception):
    """A process ended with an error; the message tells its last lines."""


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """What one process took (or the median of several), and what it told."""

    wall_s: float
    cpu_s: float
    """User and system time of all its threads and children."""
    peak_mb: float
    """The largest resident memory, 10^6 bytes."""
    told: Mapping[str, Any]
    """The figures of the process itself; of the last one where it is a median."""
    times: int = 1


def run(
    argv: Sequence[str | Path],
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 7200.0,
) -> Run:
    """Run a command in `folder` and measure it. FailedError if it fails or takes too long."""
    with tempfile.TemporaryFile("w+") as output:
        began = time.perf_counter()
        child = subprocess.Popen(
            [str(part) for part in argv],
            cwd=folder,
            env={**_inherited(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        killer = threading.Timer(timeout_s, child.send_signal, [signal.SIGKILL])
        killer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            killer.cancel()
        wall_s = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = output.read().splitlines()
    if child.returncode:
        tail = "\n".join(lines[-TAIL_LINES:])
        raise FailedError(f"{argv[0]} ended with {child.returncode}:\n{tail}")
    told = next((line for line in reversed(lines) if line.startswith(MARK)), MARK + "{}")
    return Run(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss * 1024 / 1e6,
        told=json.loads(told.removeprefix(MARK)),
    )


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}


def median(runs: Sequence[Run]) -> Run:
    """Take the median of each measure; the largest of the peaks."""
    return Run(
        wall_s=statistics.median(one.wall_s for one in runs),
        cpu_s=statistics.median(one.cpu_s for one in runs),
        peak_mb=max(one.peak_mb for one in runs),
        told=runs[-1].told,
        times=len(runs),
    )


def alternate(
    contestants: Mapping[str, Callable[[], Run]],
    *,
    rounds: int,
    once: Sequence[str] = (),
    say: Callable[[str], None],
) -> dict[str, Run]:
    """Run the contestants in turn, `rounds` times, so that what disturbs the machine disturbs all.

    Those named in `once` take part in the first round only. One that fails is left out, and `say`
    tells why. Returns each one's median.
    """
    done: dict[str, list[Run]] = {}
    broken: set[str] = set()
    for number in range(rounds):
        for name, contestant in contestants.items():
            if name in broken or (number and name in once):
                continue
            try:
                one = contestant()
            except FailedError as error:
                broken.add(name)
                say(f"{name}: {error}")
                continue
            say(f"{name}: {one.wall_s:.2f} s, cpu {one.cpu_s:.2f} s, {one.peak_mb:.0f} MB")
            done.setdefault(name, []).append(one)
    return {name: median(runs) for name, runs in done.items() if name not in broken}


@contextlib.contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """Give an empty folder, which is gone afterwards with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
