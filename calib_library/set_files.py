"""The frames of a set, open for reading by rows, and whether they still are what was filed."""

import contextlib
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library import overscan
from calib_library.catalogue.records import CalibrationSet, FiledFrame
from calib_library.errors import ImageError
from calib_library.images.row_reader import RowReader
from calib_library.judging import STRIP_ROWS
from calib_library.made_dark import Mixed

Floats = npt.NDArray[np.float32]

ANOTHER = "its file is not the one that was filed"
_HASH_THREADS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A frame whose file is the one that was filed, open for reading."""

    frame: FiledFrame
    reader: RowReader
    pedestal: Floats | Mixed | None = None
    """What is subtracted from it, (ny, nx) ADU."""
    overscan: Floats | None = None
    """The levels of its overscan, which go first, (ny, 1) or (1, nx) ADU."""

    @property
    def is_as_filed(self) -> bool:
        """Whether nobody has written to the file since it was hashed."""
        return self.reader.version == self.frame.version

    @property
    def rows(self) -> "RowReader | Lowered":
        """Its rows without the overscan."""
        return self.reader if self.overscan is None else Lowered(self.reader, None, self.overscan)

    def strips(self, starts: Sequence[int]) -> list[Floats]:
        """Its rows, as `rows` has them, from each of `starts` on: (up to STRIP_ROWS, nx) ADU."""
        rows, height = self.rows, self.reader.shape[0]
        return [rows.to_float(rows.rows(y, min(height, y + STRIP_ROWS))) for y in starts]


@dataclasses.dataclass(frozen=True, slots=True)
class Lowered:
    """The rows of a frame with its own pedestal and overscan subtracted, as `combine.Rows`."""

    reader: RowReader
    pedestal: Floats | Mixed | None
    overscan: Floats | None
    storage: str = "float32"
    plain: bool = False
    bzero: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """(ny, nx)."""
        return self.reader.shape

    def rows(self, y0: int, y1: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Rows y0 to y1 (exclusive), (y1 - y0, nx) float32 ADU, into `out` where it is given."""
        values = self.reader.to_float(self.reader.rows(y0, y1), out)
        if self.overscan is not None:
            values -= self.overscan[y0:y1] if len(self.overscan) > 1 else self.overscan
        if self.pedestal is not None:
            values -= self.pedestal[y0:y1]
        return values

    def to_float(self, rows: Floats) -> Floats:
        """As a `RowReader` has it: they are already."""
        return rows


class StrangersError(Exception):
    """Files are not the frames that were filed."""

    def __init__(self, hashes: Sequence[str]) -> None:
        super().__init__(hashes)
        self.hashes = hashes
        """Of the frames that were filed."""


def open_frames(
    frames: Sequence[FiledFrame],
    group: CalibrationSet,
    stack: contextlib.ExitStack,
    left_out: dict[str, str],
) -> list[Opened]:
    """Open the frames' files; those that are not what was filed go to `left_out`."""
    shape = (group.key.height, group.key.width)
    opened = []
    for frame in frames:
        try:
            reader = stack.enter_context(RowReader(frame.path))
        except FileNotFoundError:
            left_out[frame.sha256] = "its file is gone"
        except (ImageError, OSError) as error:
            left_out[frame.sha256] = f"its file cannot be read ({error})"
        else:
            if reader.shape != shape or reader.storage != group.key.storage:
                left_out[frame.sha256] = ANOTHER
            else:
                opened.append(Opened(frame, reader))
    return opened


def check_identity(opened: Sequence[Opened]) -> None:
    """Raise StrangersError where files are not what was filed: camera programs use their file
    names again, `dark_0001.fits` may be another night's by now. A file that was not written to
    since it was hashed is not hashed again.
    """
    doubtful = [one for one in opened if not one.is_as_filed]
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        digests = list(pool.map(lambda one: one.reader.digest(), doubtful))
    hashes = [one.frame.sha256 for one in doubtful]
    strangers = [known for known, digest in zip(hashes, digests, strict=True) if digest != known]
    if strangers:
        raise StrangersError(strangers)


def sections_of(group: CalibrationSet) -> overscan.Sections:
    """The overscan and the useful part of the set's frames."""
    return overscan.of_key(group.key.sections, mosaic=group.key.bayer_pattern is not None)


def overscan_of(reader: RowReader, sections: overscan.Sections) -> Floats | None:
    """Return what is taken off a frame for its overscan; None without one."""
    if sections.bias is None:
        return None
    return overscan.correction(reader.to_float(reader.rows(0, reader.shape[0])), sections)
