"""Resampling an upright frame in two sweeps, along the rows and then along the columns.

Where frame and reference differ by a shift, a small turn, a small change of scale, and perhaps a
flip, each row of the frame is first resampled at the columns of the reference, and what comes of
six such rows gives a pixel (Catmull and Smith 1980). That is 12 products a pixel instead of 42, and
since neighbours in the reference are neighbours in the frame, both sweeps are loops that the
compiler turns into vector instructions. The weights are the polynomials of `lanczos`.

The ringing clamp of `warp` is applied in each sweep to the six pixels along it.
"""

# Minima and maxima are written out: the compiler vectorises them so, and NaN stays NaN.
# ruff: noqa: FURB136

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from calib_library.kernels import CACHE_LINE, aligned, kernel
from daemon.light.lanczos import (
    BAD,
    BAD_SHARE,
    E0,
    E1,
    E2,
    EDGE_CONTRAST,
    F0,
    F1,
    F2,
    G0,
    G1,
    G2,
    PHASES,
    RING_SHARE,
    TAPS,
)

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int32]
Matrix = npt.NDArray[np.float64]

BLOCK_COLUMNS = 1024
BLOCK_ROWS = 48
"""A block of the reference that is made at once; its rows on the way stay in the second cache."""
MOST_SHEAR = 0.02
"""How far a step along a row may lead off it, px per px (1.1°)."""
MOST_STRETCH = 0.02
"""How far a step of one px may differ from one."""
SNAP_PX = 2.0**-17
"""What a position may drift over 65536 px and still count as none: the 1e-10 px which inverting a
matrix costs must not keep whole shifts and flips from copying."""
GRID = 65536.0
"""Positions at the start of a run are rounded to 1/65536 px, for the same reason."""
EDGE_PX = 1 / 2048
"""Beyond the centres of the outermost pixels by this much is still covered."""
RING_SHARE_EACH = np.float32(0.5) * RING_SHARE
"""Of the two sweeps, each may give half of it."""
FLANK_LOW, FLANK_HIGH, FLANK_SIGMA = np.float32(0.03), np.float32(0.75), np.float32(4)
"""Between the highest pixel and the value, on the flank of a star that is resolved (FWHM 2.5 px or
more), the next pixel stands between these shares of it, and above the noise: there nothing rings,
and a clamp would cost flux. Beside a hot pixel it stands at 0, beside saturated ones at 1."""

STEPS = np.arange(BLOCK_COLUMNS, dtype=np.float32)
STEPS.setflags(write=False)


class Sweeps(NamedTuple):
    """Where an upright frame lies. x runs backwards from the right border where `mirrored`, so that
    frame columns always increase along it.

        frame column of (x, frame row r)  =  x · (1 + stretch) + r · lean + left
        frame row of (x, y)  =  x · fall + y · pace + top
    """

    mirrored: float
    """1 or 0."""
    stretch: float
    lean: float
    left: float
    fall: float
    pace: float
    top: float
    area: float
    """Area of a reference pixel in frame pixels."""


class Scratch(NamedTuple):
    """Memory of a thread's own, for kernels."""

    lines: Image
    """(rows, columns), rows of the frame at the columns of a block."""
    line: Image
    """(columns,)."""
    places: Places
    """(2, columns)."""

    @classmethod
    def of(cls) -> Self:
        """For a block of BLOCK_ROWS rows or fewer."""
        rows = int(BLOCK_ROWS * (1 + MOST_STRETCH) + BLOCK_COLUMNS * MOST_SHEAR) + 12
        # A cache line more: rows at a distance of 4 kB get in each other's way.
        columns = BLOCK_COLUMNS + CACHE_LINE // 4
        line = int(BLOCK_COLUMNS * (1 + MOST_STRETCH)) + 16
        return cls(
            aligned((rows, columns), np.float32),
            aligned((line,), np.float32),
            aligned((2, BLOCK_COLUMNS), np.int32),
        )


MIRRORED, AREA = Sweeps._fields.index("mirrored"), Sweeps._fields.index("area")
NOT_UPRIGHT = Sweeps(0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
"""No sweeps (the area is 0): the frame is not upright."""


def sweeps_of(inverse: Matrix, *, width: int) -> Sweeps:
    """The sweeps of a map reference → frame (3×3, [2, 2] = 1) for a reference of `width` px,
    `NOT_UPRIGHT` where it is not.
    """
    (a, b, c), (d, e, f) = inverse[0].tolist(), inverse[1].tolist()
    if inverse[2, 0] or inverse[2, 1] or e == 0:
        return NOT_UPRIGHT
    mirrored = a < 0
    if mirrored:
        a, c = -a, a * (width - 1) + c
        d, f = -d, d * (width - 1) + f
    lean = b / e
    stretch = (a - lean * d) - 1.0
    small = max(abs(lean), abs(d)) <= MOST_SHEAR
    if not small or max(abs(stretch), abs(abs(e) - 1.0)) > MOST_STRETCH:
        return NOT_UPRIGHT
    area = abs(a * e - b * d)
    return Sweeps(
        float(mirrored), _snapped(stretch), _snapped(lean), c - lean * f, _snapped(d), e, f,
        1.0 if abs(area - 1.0) < 1e-12 else area,
    )  # fmt: skip


def _snapped(slope: float) -> float:
    return slope if abs(slope) * 65536 > SNAP_PX else 0.0


@kernel()
def unpacked(numbers: Matrix) -> Sweeps:
    """Sweeps that were handed on as an array."""
    return Sweeps(
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6],
        numbers[7],
    )  # fmt: skip


@kernel()
def sweep_block(
    plane: Image,
    sweeps: Sweeps,
    tolerance: np.float32,
    steps: Image,
    shares: Image,
    bad: Mask,
    first_bad: Places,
    bad_columns: Places,
    y0: int,
    y1: int,
    x0: int,
    x1: int,
    scratch: Scratch,
    out: Image,
    to: int,
) -> None:
    """Resample one plane (ny, nx) onto columns x0 … x1 (along the sweep: from the right where
    mirrored) of rows y0 … y1 of the reference, into the first rows of `out`, from its column `to`
    on, in the reference's own order, NaN where there is nothing.

    For kernels. `sweeps` from `sweeps_of`, `tolerance` in ADU, `steps` is STEPS, `shares` is
    `lanczos.SHARES`, the bad pixels are from `warp.bad_pixels`, `scratch` is overwritten. A block
    has at most BLOCK_COLUMNS columns, and starts at a multiple of them, so that its bits are always
    the same.
    """
    ny, nx = plane.shape
    count = x1 - x0
    corners = (
        x0 * sweeps.fall + y0 * sweeps.pace, x1 * sweeps.fall + y0 * sweeps.pace,
        x0 * sweeps.fall + y1 * sweeps.pace, x1 * sweeps.fall + y1 * sweeps.pace,
    )  # fmt: skip
    lowest = min(min(corners) + sweeps.top, 1e9)
    highest = max(max(corners) + sweeps.top, -1e9)
    if highest < -1.0 or lowest > ny:
        for y in range(y1 - y0):
            out[y, to : to + count] = np.nan
        return
    first = max(int(np.floor(lowest)), -2) - 3
    last = min(int(np.floor(highest)), ny + 1) + 5
    lines = scratch.lines
    line = scratch.line[: int(count * (1.0 + abs(sweeps.stretch))) + 16]
    some_bad = False
    for r in range(first, last):
        row = min(max(r, 0), ny - 1)
        left = x0 * (1.0 + sweeps.stretch) + (r * sweeps.lean + sweeps.left)
        right = left + (count - 1) * (1.0 + sweeps.stretch)
        if right < -1.0 or left > nx:
            lines[r - first, :count] = np.nan
            continue
        from_column = int(np.floor(left)) - 3
        _copy_line(plane[row], from_column, line)
        if bad_columns.size:
            some_bad |= _mend_line(plane, bad, first_bad, bad_columns, row, from_column, line)
        _along(line, from_column, left, sweeps.stretch, tolerance, steps, lines[r - first, :count])
    flat, stride = lines.reshape(-1), lines.shape[1]
    for y in range(y0, y1):
        _across(
            flat, stride, first, last, x0 * sweeps.fall + (y * sweeps.pace + sweeps.top),
            sweeps.fall, tolerance, steps, out[y - y0, to : to + count],
        )  # fmt: skip
    if some_bad:
        _leave_out(
            sweeps, shares, first_bad, bad_columns, first, last, y0, y1, x0, count, lines, out, to
        )
    area = np.float32(sweeps.area)
    for y in range(y0, y1):
        row = out[y - y0, to : to + count]
        _finish(sweeps, nx, ny, x0, y, area, row)
        if sweeps.mirrored > 0.0:
            _reverse(row, line)


@kernel()
def _copy_line(source: Image, start: int, line: Image) -> None:
    """`line` becomes the row from column `start` on, its outermost pixels repeated beyond."""
    inside = min(max(-start, 0), line.size)
    end = max(min(source.size - start, line.size), inside)
    line[:inside] = source[0]
    # Unsigned, or a place could count from the end, and there would be a branch for each pixel.
    to, place, number = np.uint64(inside), np.uint64(start + inside), np.uint64(end - inside)
    for k in range(number):
        line[to + k] = source[place + k]
    line[end:] = source[source.size - 1]


@kernel()
def _mend_line(
    plane: Image,
    bad: Mask,
    first_bad: Places,
    bad_columns: Places,
    row: int,
    start: int,
    line: Image,
) -> bool:
    """Replace the bad pixels of `line`, which is `row` from column `start` on; tells whether there
    was one.
    """
    mended = False
    for k in range(first_bad[row], first_bad[row + 1]):
        at = bad_columns[k] - start
        if 0 <= at < line.size:
            line[at] = _mended(plane, bad, row, bad_columns[k])
            mended = True
    if mended and start < 0:
        line[:-start] = line[-start]
    beyond = plane.shape[1] - start
    if mended and beyond < line.size:
        line[beyond:] = line[beyond - 1]
    return mended


@kernel()
def _mended(plane: Image, bad: Mask, row: int, column: int) -> np.float32:
    """The mean of the good pixels of the smallest square around a bad one that has any; NaN where
    even 7×7 has none.
    """
    ny, nx = plane.shape
    for reach in range(1, 4):
        total = np.float32(0)
        number = 0
        for y in range(max(row - reach, 0), min(row + reach + 1, ny)):
            for x in range(max(column - reach, 0), min(column + reach + 1, nx)):
                if not bad[y, x] & BAD:
                    total += plane[y, x]
                    number += 1
        if number:
            return np.float32(total / np.float32(number))
    return np.float32(np.nan)


@kernel()
def _leave_out(
    sweeps: Sweeps,
    shares: Image,
    first_bad: Places,
    bad_columns: Places,
    first: int,
    last: int,
    y0: int,
    y1: int,
    x0: int,
    count: int,
    lost: Image,
    out: Image,
    to: int,
) -> None:
    """NaN where bad pixels of frame rows first … last carry too much of a pixel; `lost` is
    overwritten.
    """
    for y in range(y1 - y0):
        lost[y, :count] = 0
    step = 1.0 + sweeps.stretch
    upright = TAPS / 2 / abs(sweeps.pace)
    for r in range(max(first, 0), min(last, first_bad.size - 1)):
        left = x0 * step + (r * sweeps.lean + sweeps.left)
        for entry in range(first_bad[r], first_bad[r + 1]):
            column = bad_columns[entry]
            begin = max(int(np.ceil((column - TAPS / 2 - left) / step)), 0)
            end = min(int(np.floor((column + TAPS / 2 - left) / step)) + 1, count)
            for k in range(begin, end):
                across = _share(shares, left + k * step, column)
                top = (x0 + k) * sweeps.fall + sweeps.top
                middle = (r - top) / sweeps.pace
                lowest = max(int(np.ceil(middle - upright)), y0)
                highest = min(int(np.floor(middle + upright)) + 1, y1)
                for y in range(lowest, highest):
                    lost[y - y0, k] += across * _share(shares, top + y * sweeps.pace, r)
                    if lost[y - y0, k] > BAD_SHARE:
                        out[y - y0, to + k] = np.nan


@kernel(inline=True)
def _share(shares: Image, place: float, pixel: int) -> float:
    """The share of the kernel, placed at `place`, that falls on a pixel."""
    before = int(np.floor(place))
    tap = pixel - before + 2
    if tap < 0 or tap >= TAPS:
        return 0.0
    return float(shares[int((place - before) * PHASES), tap])


@kernel()
def _finish(
    sweeps: Sweeps, nx: int, ny: int, x0: int, y: int, area: np.float32, out: Image
) -> None:
    """Times the area; NaN where it is not finite or outside the centres of the outermost pixels."""
    top = y * sweeps.pace + sweeps.top
    step = 1.0 + sweeps.stretch + sweeps.lean * sweeps.fall
    left = x0 * step + (sweeps.lean * top + sweeps.left)
    begin, end = _covered(left, step, nx, 0, out.size)
    begin, end = _covered(x0 * sweeps.fall + top, sweeps.fall, ny, begin, end)
    out[:begin] = np.nan
    out[end:] = np.nan
    nothing, infinite = np.float32(np.nan), np.float32(np.inf)
    # Unsigned, as in `_copy_line`.
    for k in range(np.uint64(begin), np.uint64(end)):
        value = out[k] * area
        out[k] = value if abs(value) < infinite else nothing


@kernel()
def _covered(start: float, slope: float, size: int, begin: int, end: int) -> tuple[int, int]:
    """The part of begin … end in which start + k · slope lies within 0 … size − 1."""
    if slope == 0.0:
        inside = -EDGE_PX <= start <= size - 1 + EDGE_PX
        return begin, end if inside else begin
    one = (-EDGE_PX - start) / slope
    other = (size - 1 + EDGE_PX - start) / slope
    begin = max(begin, int(np.ceil(max(min(one, other), -1.0))))
    end = min(end, int(np.floor(min(max(one, other), 1e9))) + 1)
    return begin, max(begin, end)


@kernel()
def _reverse(row: Image, spare: Image) -> None:
    """In place, over `spare`: a loop within the row would not become vector instructions."""
    number = np.uint64(row.size)
    one = np.uint64(1)
    for k in range(number):
        spare[k] = row[number - one - k]
    for k in range(number):
        row[k] = spare[k]


@kernel()
def _along(
    line: Image,
    start: int,
    left: float,
    stretch: float,
    tolerance: np.float32,
    steps: Image,
    out: Image,
) -> None:
    """Resample `line`, which begins at frame column `start`, at left + k (1 + stretch)."""
    k = 0
    while k < out.size:
        place = np.floor((left + k * (1.0 + stretch)) * GRID + 0.5) / GRID
        column = int(np.floor(place))
        between = place - column
        number = _run(between, stretch, out.size - k)
        _taps(
            line, np.uint64(column - 2 - start), np.uint64(1), steps, np.float32(between),
            np.float32(stretch), tolerance, out, np.uint64(k), np.uint64(number),
        )  # fmt: skip
        k += number


@kernel()
def _across(
    lines: Image,
    stride: int,
    first: int,
    last: int,
    top: float,
    fall: float,
    tolerance: np.float32,
    steps: Image,
    out: Image,
) -> None:
    """Resample the frame rows first … last, each already at the columns of `out` and `stride` px
    from the next, at frame row top + k · fall.
    """
    k = 0
    while k < out.size:
        place = np.floor((top + k * fall) * GRID + 0.5) / GRID
        row = int(np.floor(place))
        between = place - row
        number = _run(between, fall, out.size - k)
        if row - 2 < first or row + 4 > last:
            out[k : k + number] = np.nan
        else:
            _taps(
                lines, np.uint64((row - 2 - first) * stride + k), np.uint64(stride), steps,
                np.float32(between), np.float32(fall), tolerance, out, np.uint64(k),
                np.uint64(number),
            )  # fmt: skip
        k += number


@kernel(inline=True)
def _run(between: float, slope: float, most: int) -> int:
    """How many steps of `slope` stay between the same two pixels, from `between` (0 … 1) on."""
    number = float(most)
    if slope > 0.0:
        number = min((1.0 - between) / slope + 1.0, number)
    elif slope < 0.0:
        number = min(between / -slope + 1.0, number)
    return max(int(number), 1)


@kernel()
def _taps(
    source: Image,
    base: np.uint64,
    stride: np.uint64,
    steps: Image,
    between: np.float32,
    slope: np.float32,
    tolerance: np.float32,
    out: Image,
    at: np.uint64,
    number: np.uint64,
) -> None:
    """The value between the third and the fourth of the six pixels base + i · stride + k, at
    between + slope · k, for each k; clamped beside an unresolved edge (see `warp`).
    """
    one, half, quarter = np.float32(1), np.float32(0.5), np.float32(0.25)
    three, five = np.float32(3), np.float32(5)
    b1 = base + stride
    b2 = b1 + stride
    b3 = b2 + stride
    b4 = b3 + stride
    b5 = b4 + stride
    for k in range(number):
        p0 = source[base + k]
        p1 = source[b1 + k]
        p2 = source[b2 + k]
        p3 = source[b3 + k]
        p4 = source[b4 + k]
        p5 = source[b5 + k]
        t = between + slope * steps[k]
        u = t - half
        v = u * u
        e = E0 + v * (E1 + v * E2)
        f = F0 + v * (F1 + v * F2)
        g = G0 + v * (G1 + v * G2)
        s1 = (p1 + p4) - (p2 + p3)
        d2 = p2 - p3
        even = e * (((p0 + p5) - (p2 + p3)) - three * s1) - quarter * s1
        odd = f * ((p0 - p5) - five * d2) + g * ((p1 - p4) - three * d2)
        value = ((one - t) * p2 + t * p3) + (t * (one - t)) * (even + u * odd)
        low = p2 if p2 < p3 else p3
        high = p3 if p2 < p3 else p2
        bottom = p0 if p0 < low else low
        bottom = p1 if p1 < bottom else bottom
        bottom = p4 if p4 < bottom else bottom
        bottom = p5 if p5 < bottom else bottom
        top = p0 if p0 > high else high
        top = p1 if p1 > top else top
        top = p4 if p4 > top else top
        top = p5 if p5 > top else top
        reach = top - bottom
        allowed = tolerance + RING_SHARE_EACH * reach
        steep = reach > EDGE_CONTRAST * ((high - bottom) + tolerance)
        left = p0 if p0 > p1 else p1
        right = p5 if p5 > p4 else p4
        outer = (p0 if left > right else p5) - bottom
        inner = (p1 if left > right else p4) - bottom
        flank = FLANK_LOW * outer + FLANK_SIGMA * tolerance < inner < FLANK_HIGH * outer
        steep = steep and not flank
        least = low - allowed if steep else value
        most = high + allowed if steep else value
        value = least if value < least else value
        value = most if value > most else value
        out[at + k] = value
