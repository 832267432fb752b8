"""Do the flats of a set agree with one another? What a master by itself does not show.

The frames of the first half of the set, in order of time, are held against those of the second:
only noise may tell them apart (`algorithms.md` section 7: half-split χ² = 1 ± 0.02). Strips across
the image are enough for it.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from calib_library.flat import half_split
from calib_library.frame import FrameRecord

Floats = npt.NDArray[np.float32]

STRIPS: Final = 8
STRIP_ROWS: Final = 32
"""So many strips of so many rows are looked at."""
LEAST_FRAMES: Final = 6
"""Three in each half, for a variance."""
CHI2_MARGIN: Final = 0.02
NOTABLE: Final = 0.002
"""Halves that differ by less than this part (rms) spoil no light: half of it is in the master."""
BLOCK_PX: Final = 32
NOTABLE_BLOCK: Final = 0.01
"""The same of one block: dust shadows are 1 to 5 % deep …"""
BLOCK_SIGMA: Final = 6.0
"""… and stand out of the blocks' own noise."""
STAR_SIGMA: Final = 8.0
RING_PX: Final = 6
STAR_FRAMES: Final = 9
"""Frames at either end of the set in which stars are looked for."""
STARS: Final = 8
"""So many compact differences are stars: chance makes none."""
FIELD_DEG: Final = 1 / 60
"""Pointings closer than this are one field."""
FIELDS: Final = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Agreement:
    """How the two halves of a set compare."""

    chi2: float
    """Reduced; 1 where only noise tells them apart."""
    notes: tuple[str, ...]
    """Sentences for a person; empty where all is well."""


def strip_starts(height: int) -> list[int]:
    """Return the first rows of the strips, even, for a mosaic."""
    last = max(0, height - STRIP_ROWS)
    return sorted({int(y) // 2 * 2 for y in np.linspace(0, last, STRIPS)})


def compare_halves(strips: Iterable[tuple[int, Floats]], *, step: int) -> Agreement | None:
    """Compare the halves of a set of flats.

    `strips`: (first row, (n, rows, nx) ADU: the same rows of all n frames, in order of time, at
    one level, without their pedestal); `step` is 2 for a mosaic. None for fewer than LEAST_FRAMES.
    """
    means: tuple[list[Floats], list[Floats]] = [], []
    variances: tuple[list[Floats], list[Floats]] = [], []
    blocks: list[tuple[int, int, float, float]] = []
    stars, frames = 0, 0
    for first_row, frames_rows in strips:
        frames = len(frames_rows)
        if frames < LEAST_FRAMES:
            return None
        halves = frames_rows[: frames // 2], frames_rows[frames // 2 :]
        for half, mean, variance in zip(halves, means, variances, strict=True):
            mean.append(half.mean(axis=0))
            variance.append(half.var(axis=0, ddof=1) / np.float32(len(half)))
        blocks += _blocks(first_row, means[1][-1] - means[0][-1], means[0][-1])
        # A star that moves from frame to frame is in no median; the ends tell most of one that
        # stands, since the sky changed most between them.
        ends = halves[0][:STAR_FRAMES], halves[1][-STAR_FRAMES:]
        first, second = (np.median(end, axis=0).astype(np.float32) for end in ends)
        stars += _compact(second - first, step)
    if not frames:
        return None
    (a, b), (v, w) = (map(np.concatenate, pair) for pair in (means, variances))
    chi2 = half_split(a, v, b, w)
    level = float(np.mean(a, dtype=np.float64))
    excess = (chi2 - 1.0) * float(np.mean(v, dtype=np.float64) + np.mean(w, dtype=np.float64))
    differ = math.sqrt(max(0.0, excess)) / max(level, 1e-9)
    spread = math.sqrt((2.0 + 2.0 / (frames // 2 - 1)) / a.size)
    told = []
    if stars >= STARS:
        told.append(
            f"Stars stand at the same place in these flats ({stars} in the parts looked at) and "
            "are printed into every light: move the telescope between twilight flats, or stop its "
            "drive."
        )
    elif (moved := _moved(blocks)) is not None:
        y, x, by = moved
        told.append(
            f"The first and the second half of these flats differ by {by:+.1%} around x {x}, "
            f"y {y}: dust has moved, or something was in the way."
        )
    elif chi2 > 1.0 + CHI2_MARGIN + 5.0 * spread and differ > NOTABLE:
        told.append(
            f"The first and the second half of these flats differ by {differ:.1%} (χ² {chi2:.2f} "
            "instead of 1): the light changed from frame to frame, or dew came."
        )
    return Agreement(chi2, tuple(told))


def _blocks(row: int, difference: Floats, level: Floats) -> list[tuple[int, int, float, float]]:
    """(y, x, difference over the level, its error) of the blocks of a strip."""
    found = []
    height = len(difference)
    for x in range(0, difference.shape[1] - BLOCK_PX + 1, BLOCK_PX):
        part = difference[:, x : x + BLOCK_PX]
        base = float(np.mean(level[:, x : x + BLOCK_PX]))
        if base > 0:
            centre = float(np.median(part))
            noise = 1.4826 * float(np.median(np.abs(part - centre)))
            # 1.25: the error of a median over that of a mean.
            error = 1.25 * noise / math.sqrt(part.size) / base
            found.append((row + height // 2, x + BLOCK_PX // 2, centre / base, error))
    return found


def _moved(blocks: Sequence[tuple[int, int, float, float]]) -> tuple[int, int, float] | None:
    """The block (y, x) that differs most, and by how much; None where none does, or all do."""
    if not blocks:
        return None
    parts = np.array([part for _, _, part, _ in blocks])
    middle = float(np.median(parts))
    if 1.4826 * float(np.median(np.abs(parts - middle))) > NOTABLE:
        return None
    y, x, part, error = max(blocks, key=lambda block: abs(block[2] - middle))
    by = part - middle
    return (y, x, by) if abs(by) > max(NOTABLE_BLOCK, BLOCK_SIGMA * error) else None


def _compact(difference: Floats, step: int) -> int:
    """Count what stands out of a difference (rows, nx), up or down, as a star does: highest in its
    middle, three of its four neighbours (of one colour) behind it, and nothing in the ring around
    that comes near it. A shadow is wider, and its edge longer.
    """
    far = RING_PX * step
    noise = 1.4826 * float(np.median(np.abs(difference - np.median(difference))))
    ny, nx = difference.shape
    if noise <= 0 or min(ny, nx) <= 2 * far:
        return 0

    def moved(dy: int, dx: int) -> Floats:
        return difference[far + dy : ny - far + dy, far + dx : nx - far + dx]

    ring = [(dy, dx) for dy in (-far, 0, far) for dx in (-far, 0, far) if dy or dx]
    count = 0
    for sign in (np.float32(1), np.float32(-1)):
        height = sign * moved(0, 0)
        peak = height > STAR_SIGMA * noise
        behind = np.zeros(peak.shape, np.int8)
        for dy, dx in ((0, step), (0, -step), (step, 0), (-step, 0)):
            neighbour = sign * moved(dy, dx)
            peak &= height >= neighbour
            behind += neighbour > np.maximum(3.0 * noise, 0.15 * height)
        for dy, dx in ring:
            peak &= sign * moved(dy, dx) < 0.4 * height
        count += int(np.count_nonzero(peak & (behind >= 3)))
    return count


def one_field(records: Sequence[FrameRecord]) -> str | None:
    """Say that flats of the sky are of fewer than three fields, where their headers tell them."""
    fields: list[tuple[float, float]] = []
    for record in records:
        if record.ra_deg is None or record.dec_deg is None:
            return None
        here = (record.ra_deg, record.dec_deg)
        if all(_apart(here, field) > FIELD_DEG for field in fields):
            fields.append(here)
    if not fields or len(fields) >= FIELDS:
        return None
    many = "one field" if len(fields) == 1 else f"{len(fields)} fields"
    return (
        f"These flats of the sky are all of {many}: stars in them may be printed into every light. "
        f"Take them of {FIELDS} fields or more, or stop the telescope's drive."
    )


def _apart(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Angle between two places of the sky near one another, °."""
    turn = (a[0] - b[0] + 180.0) % 360.0 - 180.0
    return math.hypot(turn * math.cos(math.radians(a[1])), a[1] - b[1])
