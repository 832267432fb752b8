"""Frames of a set that are not what their headers say, told by single pixels.

The levels of frames are compared in `judging`; here is what levels do not show. A dark that was
warmer than its header, or exposed for another time, has a level like the others' on a modern
sensor, but its hot pixels are stronger or weaker. A faint flat has the right shape and hands its
noise on to every light.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from calib_library.robust import mad_sigma

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

HOT_SIGMA = 10.0
"""Hot pixels stand so many σ of one frame above their own row's neighbourhood …"""
HOT_PIXELS = 12
"""… and fewer of them tell nothing."""
HOT_RATIO = 0.35
"""Hot pixels stronger or weaker by more than this part: more than 2.5 °C, or another exposure."""
FAINT = 20.0
"""A flat's signal in units of its noise below which it is faint: 400 e- a pixel."""


def hot_ratios(above: Sequence[Floats], *, noise_adu: float) -> Doubles | None:
    """Strength of each frame's hot pixels beside those of the median frame, (n,); 1 is like it.

    `above` are the same rows of n frames, each `above_neighbours`, (rows, nx) ADU. None
    where there are too few hot pixels to tell. The ratio is the median over the hot pixels, so
    that telegraph noise in some of them does not count.
    """
    if len(above) < 3:
        return None
    limit = HOT_SIGMA * noise_adu
    # The median costs, and memory too: only where half of the frames stand out can it do so.
    count = sum((one > limit).astype(np.uint16) for one in above)
    often = np.asarray(count) >= 0.5 * len(above)
    excess = np.stack([one[often] for one in above])
    typical = np.median(excess, axis=0)
    hot = typical > limit
    if np.count_nonzero(hot) < HOT_PIXELS:
        return None
    ratios: Doubles = np.median(excess[:, hot] / typical[hot], axis=1).astype(np.float64)
    return ratios


def judge_hot_pixels(ratios: Doubles) -> list[str | None]:
    """Say of each frame what its hot pixels betray; None where they are like the others'.

    The median frame is believed: whether all are warmer than they say, the set cannot tell.
    """
    spread = mad_sigma(ratios)
    limit = max(HOT_RATIO, 6.0 * spread)
    return [_betrayed(float(ratio)) if abs(ratio - 1.0) > limit else None for ratio in ratios]


def _betrayed(ratio: float) -> str:
    if ratio > 1:
        told = "the sensor was warmer, or the exposure longer, than its header says"
    else:
        told = "the sensor was colder, or the exposure shorter, than its header says"
    return f"its hot pixels are {ratio:.2f} times as strong as the others': {told}"


def disagreeing(levels: Doubles, *, noise_adu: float) -> str | None:
    """Say of a set of biases or darks that they are not alike: the levels (frames, blocks), ADU, of
    some part of the image scatter from frame to frame by as much as a pixel's noise, whatever each
    frame's own level does.

    Blocks of thousands of pixels scatter by a hundredth of it; where all frames are a little wrong,
    no vote finds the wrong ones.
    """
    if len(levels) < 3:
        return None
    even = levels - np.median(levels, axis=1, keepdims=True)
    scatter = float(np.std(even, axis=0, ddof=1).max())
    if scatter <= max(noise_adu, 0.01 * abs(float(np.median(levels)))):
        return None
    return (
        f"These frames do not agree: in a part of the image their levels scatter by {scatter:.0f} "
        "ADU. Light leaked in, now more, now less, or the camera was still cooling down: take them "
        "again, covered and in the dark."
    )


def faint(signal_adu: float, noise_adu: float) -> str | None:
    """Say that a flat is too faint to be used: its signal is within FAINT times its pixel noise."""
    if signal_adu >= FAINT * noise_adu:
        return None
    return (
        f"it is faint: {signal_adu:.0f} ADU of light, only {signal_adu / max(noise_adu, 1e-9):.0f} "
        "times its noise"
    )


def pixel_noise(strip: Floats, *, step: int) -> float:
    """Noise of one pixel, ADU, by differences of neighbours of one colour in (rows, nx)."""
    differences = strip[:, step:] - strip[:, :-step]
    return float(1.4826 * np.median(np.abs(differences)) / np.sqrt(2.0))


def above_neighbours(strip: Floats, step: int) -> Floats:
    """Each pixel of (rows, nx) over the mean of its two neighbours of one colour in its row."""
    padded = np.pad(strip, ((0, 0), (step, step)), mode="reflect")
    return strip - np.float32(0.5) * (padded[:, : -2 * step] + padded[:, 2 * step :])
