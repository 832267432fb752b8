"""The foreign camera program's part: puts simulated frames on disk the way such programs do.

This is the one module besides `product_file` that writes FITS, and on purpose not by its means:
what the daemon reads must not come from its own writer.
"""

import collections
import io
import itertools
import os
import pathlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from astropy.io import fits

from daemon.simulator.headers import Style
from daemon.simulator.night import NightPlan, SimulatedFrame, take

_SLICES = 8  # pieces in which a file grows when it is written in place
_IN_PLACE_SHARE = 0.5  # of the pace: how long a driver takes to write a file
_AHEAD = 2  # frames exposed ahead of the one being written, each in a thread of its own


def fits_bytes(frame: SimulatedFrame) -> bytes:
    """Make the whole file of a frame: 16-bit unsigned (BZERO 32768), padded to FITS blocks."""
    hdu = fits.PrimaryHDU(frame.pixels)
    for card in frame.cards:
        hdu.header.append((card.keyword, card.value, card.comment), end=True)
    buffer = io.BytesIO()
    hdu.writeto(buffer)
    return buffer.getvalue()


def write_frame(
    folder: pathlib.Path,
    frame: SimulatedFrame,
    *,
    style: Style = "nina",
    slowly_s: float = 0.0,
    stop: threading.Event | None = None,
) -> pathlib.Path:
    """Write one frame below `folder`, making its folders, and return its path.

    `nina` writes under a temporary name in the same folder, then renames, as N.I.N.A. 2 does.
    `indi` writes under the final name, growing over `slowly_s` seconds. `stop`, when set, ends the
    waiting, never the file. Raises OSError.
    """
    path = folder / frame.name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = fits_bytes(frame)
    if style == "nina":
        temporary = path.with_name(f"{path.stem}.tmp")
        temporary.write_bytes(content)
        temporary.replace(path)
        return path
    pause = stop or threading.Event()
    size = -(-len(content) // _SLICES)
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(content), size):
            file.write(content[start : start + size])
            pause.wait(slowly_s / _SLICES)
    return path


def write_night(
    folder: os.PathLike[str] | str,
    plan: NightPlan,
    *,
    on_frame: Callable[[SimulatedFrame, pathlib.Path], None] | None = None,
    pace_s: float = 0.0,
    style: Style = "nina",
    stop: threading.Event | None = None,
) -> tuple[pathlib.Path, ...]:
    """Write the frames of a plan in their order, at least `pace_s` seconds apart.

    `on_frame(frame, path)` is called, in this thread, after each. `stop`, when set, ends the night
    after the frame at hand. Returns the paths written. Raises OSError.
    """
    target = pathlib.Path(folder)
    pause = stop or threading.Event()
    written: list[pathlib.Path] = []
    waiting: collections.deque[Future[SimulatedFrame]] = collections.deque()
    shots = iter(plan.shots)
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="simulator") as pool:
        for shot in itertools.islice(shots, _AHEAD):
            waiting.append(pool.submit(take, plan, shot, style=style))
        while waiting and not pause.is_set():
            frame = waiting.popleft().result()
            waiting.extend(
                pool.submit(take, plan, shot, style=style) for shot in itertools.islice(shots, 1)
            )
            slowly = pace_s * _IN_PLACE_SHARE if style == "indi" else 0.0
            path = write_frame(target, frame, style=style, slowly_s=slowly, stop=pause)
            written.append(path)
            if on_frame is not None:
                on_frame(frame, path)
            pause.wait(pace_s - slowly)
    return tuple(written)
