"""One row of a growing stack takes in the values of one frame: kernels of `live`.

Almost every pixel takes the same way, so each step is a plain loop over a row, without branches,
that the compiler turns into vector instructions; what is rare (room for a value, a value outside
the gate) is told apart first and looked at by itself. Each loop touches few arrays, because a
compiler that cannot prove them distinct checks that at the start, and gives up where there are
many. The row is a whole one: on the way through shorter pieces of so many arrays the processor
would wait for memory anew at each.

`values` and `frames` are those of the whole stack, because a row of all layers at once would not be
contiguous; all other arrays are row `y` of a plane.
"""

# Minima and maxima are written out: the compiler vectorises them so, and NaN changes nothing.
# ruff: noqa: FURB136

import numpy as np
import numpy.typing as npt

from calib_library.kernels import kernel

Image = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]
Count = npt.NDArray[np.uint16]
Flags = npt.NDArray[np.uint8]
Sums = npt.NDArray[np.int64]
Weights = npt.NDArray[np.int32]

GATE_SIGMA = 3.5
"""k of the gate. σ is measured before resampling, which takes a tenth or more off the noise, so
that this is about 4 σ of the values compared."""
CENTRE_VARIANCE = 1.5
"""Variance of the centre in units of σ²/n: between a mean (1) and a median (π/2)."""
CONTRAST_SHARE = 0.5
"""s of the gate: the share of the largest difference to the eight neighbours."""
EMPIRICAL_FROM = 8
"""Settled values from which the measured spread counts."""
MAX_QUANTA = 2.0**32
"""Values are held within ± 4 million σ, so that the integer sums cannot overflow."""
PIECE = 64
"""Pixels of a row that are looked at together: once the buffers are full, room is found only at the
borders of the frames and beside bad pixels."""
NOTHING = np.float32(np.nan)
NO_FRAME = np.uint16(0)
MAX_NUMBER = 65535


@kernel()
def scale_row(
    row: Image, scale: float, offset: float, slope: float, steps: Image, out: Image
) -> None:
    """Out = scale · row + offset + slope · k; `steps` is 0, 1, 2 …"""
    for k in range(out.size):
        out[k] = np.float32(scale * row[k] + (offset + slope * steps[k]))


@kernel()
def fill(
    values: Image, frames: Count, plane: int, y: int, most: int, number: np.uint16, fresh: Image,
    spare: Image,
) -> None:  # fmt: skip
    """Put fresh values among the waiting ones of pixels with room for them, and NaN in their place;
    `spare` is overwritten. No pixel has more than `most` waiting; higher layers are left alone.
    """
    last = min(most, values.shape[0] - 1)
    step = PIECE if most > last else fresh.size
    for x0 in range(0, fresh.size, step):
        x1 = min(x0 + step, fresh.size)
        if most > last and _all_full(frames[last, plane, y, x0:x1]):
            continue
        new = spare[x0:x1]
        _part(frames[last, plane, y, x0:x1], fresh[x0:x1], new)
        for k in range(last, 0, -1):
            _insert(
                values[k, plane, y, x0:x1], frames[k, plane, y, x0:x1],
                values[k - 1, plane, y, x0:x1], frames[k - 1, plane, y, x0:x1], new, number,
            )  # fmt: skip
        _insert_lowest(values[0, plane, y, x0:x1], frames[0, plane, y, x0:x1], new, number)


@kernel()
def _all_full(top: Count) -> bool:
    least = np.uint16(MAX_NUMBER)
    for k in range(top.size):
        least = top[k] if top[k] < least else least
    return bool(least != NO_FRAME)


@kernel()
def _part(top: Count, fresh: Image, spare: Image) -> None:
    """Values of full pixels stay in `fresh`, all others go to `spare`; NaN in their places."""
    for k in range(top.size):
        full = top[k] != NO_FRAME
        spare[k] = NOTHING if full else fresh[k]
        fresh[k] = fresh[k] if full else NOTHING


@kernel()
def _insert(
    values: Image,
    frames: Count,
    below: Image,
    frames_below: Count,
    fresh: Image,
    number: np.uint16,
) -> None:
    for k in range(fresh.size):
        value = fresh[k]
        new = value == value  # noqa: PLR0124 (not NaN)
        moves = new and (frames_below[k] == NO_FRAME or below[k] > value)
        here = new and (frames[k] == NO_FRAME or values[k] > value)
        values[k] = below[k] if moves else value if here else values[k]
        frames[k] = frames_below[k] if moves else number if here else frames[k]


@kernel()
def _insert_lowest(values: Image, frames: Count, fresh: Image, number: np.uint16) -> None:
    for k in range(fresh.size):
        value = fresh[k]
        new = value == value  # noqa: PLR0124 (not NaN)
        here = new and (frames[k] == NO_FRAME or values[k] > value)
        values[k] = value if here else values[k]
        frames[k] = number if here else frames[k]


@kernel()
def push(
    values: Image, frames: Count, plane: int, y: int, low: int, number: np.uint16, fresh: Image,
    out: Image, who: Count,
) -> None:  # fmt: skip
    """Put fresh values among the waiting ones of full pixels; `out` and `who` are what they push
    out towards the middle, or themselves. Where `fresh` is NaN nothing changes, and `out` is NaN.
    """
    last = values.shape[0] - 1
    _pushed_out(
        values[low - 1, plane, y], frames[low - 1, plane, y],
        values[low, plane, y], frames[low, plane, y], fresh, number, out, who,
    )  # fmt: skip
    for k in range(low, last):
        _push_up(
            values[k, plane, y], frames[k, plane, y],
            values[k + 1, plane, y], frames[k + 1, plane, y], fresh, number,
        )  # fmt: skip
    _push_top(values[last, plane, y], frames[last, plane, y], fresh, number)
    for k in range(low - 1, 0, -1):
        _push_down(
            values[k, plane, y], frames[k, plane, y],
            values[k - 1, plane, y], frames[k - 1, plane, y], fresh, number,
        )  # fmt: skip
    _push_bottom(values[0, plane, y], frames[0, plane, y], fresh, number)


@kernel()
def _pushed_out(
    below: Image,
    frames_below: Count,
    above: Image,
    frames_above: Count,
    fresh: Image,
    number: np.uint16,
    out: Image,
    who: Count,
) -> None:
    for k in range(out.size):
        value = fresh[k]
        out[k] = above[k] if value > above[k] else below[k] if value < below[k] else value
    for k in range(out.size):
        value = fresh[k]
        down = frames_below[k] if value < below[k] else number
        who[k] = frames_above[k] if value > above[k] else down


@kernel()
def _push_up(
    values: Image,
    frames: Count,
    above: Image,
    frames_above: Count,
    fresh: Image,
    number: np.uint16,
) -> None:
    for k in range(fresh.size):
        value, beyond = fresh[k], above[k]
        passes = value > beyond
        enters = value > values[k]
        values[k] = beyond if passes else value if enters else values[k]
        frames[k] = frames_above[k] if passes else number if enters else frames[k]


@kernel()
def _push_top(values: Image, frames: Count, fresh: Image, number: np.uint16) -> None:
    for k in range(fresh.size):
        enters = fresh[k] > values[k]
        values[k] = fresh[k] if enters else values[k]
        frames[k] = number if enters else frames[k]


@kernel()
def _push_down(
    values: Image,
    frames: Count,
    below: Image,
    frames_below: Count,
    fresh: Image,
    number: np.uint16,
) -> None:
    for k in range(fresh.size):
        value, beyond = fresh[k], below[k]
        passes = value < beyond
        enters = value < values[k]
        values[k] = beyond if passes else value if enters else values[k]
        frames[k] = frames_below[k] if passes else number if enters else frames[k]


@kernel()
def _push_bottom(values: Image, frames: Count, fresh: Image, number: np.uint16) -> None:
    for k in range(fresh.size):
        enters = fresh[k] < values[k]
        values[k] = fresh[k] if enters else values[k]
        frames[k] = number if enters else frames[k]


@kernel()
def measure(
    out: Image, who: Count, total: Sums, weight: Weights, quantum: float, shares: Image,
    variance: np.float32, away: Image, share: Image, far: Flags,
) -> None:  # fmt: skip
    """How far each value lies from the mean of the settled ones, ADU (0 where there are none), its
    weight (0 where it is NaN), and whether it lies outside the gate's smallest width.

    `shares` (numbers,) are those of the frames `who`; `variance` is the smallest of any.
    """
    limit = np.float32(GATE_SIGMA * GATE_SIGMA) * variance
    one = np.float32(1)
    for k in range(out.size):
        old = float(weight[k])
        lean = float(out[k]) * old - float(total[k]) * quantum
        away[k] = np.float32(lean) / max(np.float32(old), one)
    for k in range(out.size):
        far[k] = away[k] * away[k] > limit
    for k in range(out.size):
        share[k] = shares[who[k]] if out[k] == out[k] else np.float32(0)


@kernel()
def judge(
    out: Image, who: Count, table: Matrix, plane: int, sky: float, contrast_unit: float, depth: int,
    weight: Weights, spread: Image, settled: Count, contrast: Count, away: Image, share: Image,
    far: Flags,
) -> None:  # fmt: skip
    """Weight 0 to the values outside the gate. `far` has a multiple of 8 entries."""
    limit = np.float32(GATE_SIGMA * GATE_SIGMA)
    words = far.view(np.uint64)
    for word in range((out.size + 7) // 8):
        # Most values lie near, so that eight are passed over at once.
        if not words[word]:
            continue
        for k in range(8 * word, min(8 * word + 8, out.size)):
            row = table[who[k]]
            variance = row[4 + plane]
            if not away[k] * away[k] > limit * np.float32(variance):
                continue
            number = int(settled[k])
            centre = float(out[k]) - float(away[k])
            if abs(away[k]) > gate(
                centre, sky, contrast[k] * contrast_unit, variance, row[1], row[2], row[3],
                number + depth, empirical(float(spread[k]), int(weight[k]), number),
            ):  # fmt: skip
                share[k] = np.float32(0)


@kernel()
def sum_up(
    out: Image, share: Image, away: Image, quantum: float,
    total: Sums, weight: Weights, spread: Image, settled: Count,
) -> None:  # fmt: skip
    """Settle the values, each with its weight."""
    per_adu = 1.0 / quantum
    for k in range(out.size):
        value = out[k] if share[k] > np.float32(0) else np.float32(0)
        total[k] += int(float(share[k]) * quanta(float(value), per_adu))
    for k in range(out.size):
        old = np.float32(weight[k])
        change = share[k] * (away[k] * away[k]) * (old / max(old + share[k], np.float32(1)))
        spread[k] += change if share[k] > np.float32(0) else np.float32(0)
        weight[k] += np.int32(share[k])
    for k in range(out.size):
        settled[k] += np.uint16(1) if share[k] > np.float32(0) else np.uint16(0)


@kernel(inline=True)
def gate(
    centre: float,
    sky: float,
    contrast: float,
    variance: float,
    per_adu: float,
    seeing: float,
    steep: float,
    number: int,
    measured: float,
) -> float:
    """How far a value may lie from the centre, ADU. measured: ADU², see `empirical`."""
    source = max(centre - sky, 0.0)
    noise = (variance + source * per_adu) * (1.0 + CENTRE_VARIANCE / number)
    slack = min(seeing * source, steep * contrast) + CONTRAST_SHARE * contrast
    return float(GATE_SIGMA * np.sqrt(max(noise, measured)) + slack)


@kernel(inline=True)
def quanta(value: float, per_adu: float) -> float:
    """A value in whole quanta, of which there are `per_adu`: a power of two, so that this is exact
    and need not divide.
    """
    return float(np.floor(min(max(value * per_adu, -MAX_QUANTA), MAX_QUANTA) + 0.5))


@kernel(inline=True)
def empirical(spread: float, weight: int, number: int) -> float:
    """ADU², the spread of the settled values, 0 while they are few."""
    if number < EMPIRICAL_FROM:
        return 0.0
    return spread / weight * number / (number - 1.0)
