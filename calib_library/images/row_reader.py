"""Image files read row by row: for combining many frames in bounded memory."""

import contextlib
import hashlib
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from calib_library.errors import ImageError, IncompleteImageError
from calib_library.images.fits_headers import STORED
from calib_library.images.frame_file import opened, reader_of
from calib_library.images.pixels import physical
from calib_library.images.structure import examine
from calib_library.images.tiles import open_section, section_rows


class RowReader:
    """Reads an open image file row by row, for combining many frames in bounded memory."""

    def __init__(self, path: Path) -> None:
        """Open and probe; raises as `probe`."""
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._file, status = stack.enter_context(opened(path))
            read = reader_of(self._file.fileno())
            self.info = examine(path, read, status.st_size)[0]
            self._section = open_section(self.info, stack) if self.info.compressed else None
            self._stack = stack.pop_all()
        self._hashed: hashlib._Hash | None = None
        self._next_row = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(ny, nx) or (3, ny, nx)."""
        return self.info.shape

    @property
    def storage(self) -> str:
        """The dtype of the physical values."""
        return self.info.storage

    @property
    def plain(self) -> bool:
        """Rows come as stored: big-endian int16, physical value = stored + `bzero`."""
        return self.info.plain

    @property
    def bzero(self) -> float:
        """ADU to add to plain rows: 32768 for unsigned data, 0 for signed."""
        return self.info.bzero

    @np.errstate(over="ignore", invalid="ignore")  # a double beyond float32 becomes infinite
    def rows(self, y0: int, y1: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Rows y0 to y1 (exclusive) of a (ny, nx) image, into `out` where it is given.

        Plain files: dtype `>i2`, as stored. All others: float32 physical values (ADU).
        `out` is (y1 - y0, nx), C-contiguous, of that dtype.
        """
        if len(self.shape) != 2:
            raise ImageError(f"{self.info.path.name}: a colour image cannot be read by rows")
        nx = self.shape[1]
        if self.plain:
            raw = np.empty((y1 - y0, nx), ">i2") if out is None else out
            self._read_into(raw, y0 * nx * 2)
            if self._hashed is not None and y0 == self._next_row:
                self._hashed.update(raw.reshape(-1).view(np.uint8).data)
                self._next_row = y1
            return raw
        if self._section is not None:
            stored = section_rows(self.info, self._section, y0, y1)
        else:
            stored = np.empty((y1 - y0, nx), STORED[self.info.bitpix])
            self._read_into(stored, y0 * nx * stored.itemsize)
        values = physical(self.info, stored)
        if out is None:
            return values.astype(np.float32)
        np.copyto(out, values, casting="unsafe")
        return out

    def to_float(
        self, raw: npt.NDArray[Any], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Turn what `rows` gave into float32 physical values (ADU), into `out` if given."""
        if out is None:
            out = np.empty(raw.shape, np.float32)
        if self.plain:
            np.add(raw, np.float32(self.bzero), out=out, casting="unsafe")
        else:
            np.copyto(out, raw, casting="unsafe")
        return out

    @property
    def version(self) -> tuple[int, int]:
        """Size (bytes) and mtime_ns of the opened file, now."""
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def hash_rows(self) -> None:
        """From now on hash what `rows` reads, so that `digest` need not read it once more."""
        self._hashed = hashlib.sha256(self._pread(0, self.info.data_offset)) if self.plain else None
        self._next_row = 0

    def digest(self) -> str:
        """SHA-256 of the file, hexadecimal: of the very bytes that `rows` gave, where it gave all
        rows once and in order since `hash_rows`, as they are stored; else the file is read for it.
        """
        if self._hashed is not None and self._next_row == self.shape[0]:
            end = self.info.data_offset + 2 * math.prod(self.shape)
            complete = self._hashed.copy()
            complete.update(self._pread(end, os.fstat(self._file.fileno()).st_size - end))
            return complete.hexdigest()
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the file; further reads fail."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _pread(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def _read_into(self, target: npt.NDArray[Any], offset: int) -> None:
        view = target.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            at = self.info.data_offset + offset + done
            count = os.preadv(self._file.fileno(), [view[done:]], at)
            if count == 0:
                raise IncompleteImageError(
                    f"{self.info.path.name}: became shorter while it was read"
                )
            done += count
