"""The exact stack by itself, without the daemon around it: what a script would do."""

import contextlib
import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from answer import serve

from calib_library.images import frame_file, product_file
from calib_library.kernels import kernel
from daemon.stack import final, live

Image = npt.NDArray[np.float32]


def finish(*, folder: str, output: str) -> dict[str, Any]:
    """Stack registered files exactly: two passes with hysteresis, from disk to disk."""
    paths = sorted(Path(folder).glob("*.fit"))
    terms = [
        live.FrameTerms(**{**one, "planes": tuple(tuple(plane) for plane in one["planes"])})
        for one in json.loads((Path(folder) / "terms.json").read_text())
    ]
    infos = [frame_file.probe(path) for path in paths]
    ny, nx = infos[0].shape
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("rb", buffering=0)) for path in paths]

        def rows(position: int, y0: int, _y1: int) -> final.RowFiller:
            offset = infos[position].data_offset + 4 * nx * y0
            return functools.partial(_read, files[position].fileno(), offset)

        made = final.combine_into(rows, terms, shape=(1, ny, nx))
    product_file.write_fits(Path(output), made.image.mean[0], (), scale="adu")
    return {"frames": len(paths), "rejected": [float(share) for share in made.rejected]}


def _read(file: int, offset: int, out: Image) -> None:
    """Fill `out` (1, rows, nx) with big-endian float32 from there on in an open file."""
    stored = out.view(np.uint32).reshape(out.shape[1:])
    for first in range(0, len(stored), ROWS_AT_ONCE):
        part = stored[first : first + ROWS_AT_ONCE]
        view = memoryview(part).cast("B")
        at = offset + stored.strides[0] * first
        if os.preadv(file, [view], at) < len(view):
            raise SystemExit("a registered file ends early")
        _native(part)


ROWS_AT_ONCE = 16
"""400 kB, which stay in the second cache."""


@kernel()
def _native(bits: npt.NDArray[np.uint32]) -> None:
    """Turn rows of big-endian float32, seen as uint32 (rows, nx), round in place; what is 0, and so
    not covered, becomes NaN.
    """
    for row in range(bits.shape[0]):
        line = bits[row]
        for i in range(line.size):
            b = line[i]
            b = (
                (b >> np.uint32(24))
                | ((b >> np.uint32(8)) & np.uint32(0xFF00))
                | ((b << np.uint32(8)) & np.uint32(0xFF0000))
                | (b << np.uint32(24))
            )
            line[i] = b if b != np.uint32(0) else np.uint32(0x7FC00000)


if __name__ == "__main__":
    serve({"finish": finish})
