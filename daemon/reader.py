"""Reads the next files while the present frame is worked on.

Loading is disk, hash and a copy: none of it holds the interpreter's lock or runs a parallel
kernel, so it costs the worker nothing. A light takes longer to work on than to read: one is read
ahead, no more. Calibration frames are only looked at and filed, and are read side by side.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from calib_library.frame import FrameType
from calib_library.images import frame_file
from daemon.ledger.ledger import Waiting

AHEAD = 3
"""Files that are read side by side, at most."""
AHEAD_BYTES = 160_000_000
"""Of several files: three of 26 megapixels, or one of 61."""


class Reader:
    """Used by the worker's thread; the reading happens in threads of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="reader")
        self._files: dict[Path, Future[frame_file.Loaded]] = {}

    def ahead(self, present: Path, following: Sequence[Path]) -> None:
        """Begin to read the files that will be wanted after the present one. It is kept where it
        was read ahead itself, and is about to be loaded; all others are forgotten.
        """
        for path in [path for path in self._files if path != present and path not in following]:
            self._files.pop(path).cancel()
        for path in following:
            if path not in self._files:
                self._files[path] = self._pool.submit(frame_file.load, path, awaited=False)

    def load(self, path: Path) -> frame_file.Loaded:
        """The file's content, read ahead or now. Raises what `frame_file.load` raises.

        What was read ahead may be older than the file: the caller compares size and mtime.
        """
        future = self._files.pop(path, None)
        return frame_file.load(path) if future is None else future.result()

    def close(self) -> None:
        """End the threads."""
        self._files.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)


def worth_it(coming: Sequence[Waiting]) -> list[Path]:
    """Which of the coming frames' files to read ahead: the next one, and with it calibration frames
    after it, as far as memory allows.
    """
    paths: list[Path] = []
    total = 0
    for waiting in coming[:AHEAD]:
        total += waiting.size
        if paths and (waiting.frame_type in {None, FrameType.LIGHT} or total > AHEAD_BYTES):
            break
        paths.append(waiting.path)
    return paths
