"""Reads the next file while the present frame is worked on.

Loading is disk, hash and a copy: none of it holds the interpreter's lock or runs a parallel
kernel, so it costs the worker nothing. One file is read ahead, no more: a frame of 61 megapixels
is 122 MB.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from calib_library.images import frame_file

KEPT = 2
"""The file that is wanted now and the one after it."""


class Reader:
    """Used by the worker's thread; the reading happens in a thread of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._files: dict[Path, Future[frame_file.Loaded]] = {}

    def ahead(self, path: Path | None) -> None:
        """Begin to read a file that will be wanted next. The one before it, which is about to be
        loaded, is kept; older ones are forgotten.
        """
        if path is None or path in self._files:
            return
        while len(self._files) >= KEPT:
            self._files.pop(next(iter(self._files))).cancel()
        self._files[path] = self._pool.submit(frame_file.load, path)

    def load(self, path: Path) -> frame_file.Loaded:
        """The file's content, read ahead or now. Raises what `frame_file.load` raises.

        What was read ahead may be older than the file: the caller compares size and mtime.
        """
        future = self._files.pop(path, None)
        return frame_file.load(path) if future is None else future.result()

    def close(self) -> None:
        """End the thread."""
        self._files.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
