"""A new master beside the one it follows: level, noise, hot pixels and structure.

A sensor changes slowly. A master that is suddenly brighter, or brighter at one side, has seen light
or was warm: it must not take the old one's place. One that is suddenly darker speaks against the
old one; it is taken, and the change is said.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from calib_library.suspects import HOT_PIXELS, HOT_SIGMA, above_neighbours

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

GRID = 12
"""Cells along each side in which the structure is compared."""
NOTABLE_NOISE, POISON_NOISE = 1.0, 4.0
"""A level, or a part of the image, that moved by so many times one frame's noise …"""
NOTABLE_PART, POISON_PART = 0.01, 0.04
"""… and by this part of the level, is told; is refused."""
NOISE_RATIO = 1.4
HOT_RATIO, POISON_HOT_RATIO = 1.35, 1.8
"""Hot pixels so much stronger: 2.6 °C; 5 °C."""
FLAT_PART = 0.03
"""A flat whose parts moved by more than this corrects something else."""
TURNED = 1.10
"""A flat that leaves the corners of the sky this much brighter than its centre …"""
TURNED_NOISE = 2.0
"""… and by so many times the noise of a pixel, is refused for that light."""
BRIGHT_CORNERS = 1.03
"""No lens lights the corners of its field more than the centre."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What is different about the new master."""

    notes: tuple[str, ...] = ()
    """Sentences without a full stop, for the log: it is used all the same."""
    poison: str | None = None
    """Why it must not be used."""


def darks(
    new: Floats, old: Floats, *, noise_adu: float, old_noise_adu: float | None, step: int
) -> Verdict:
    """Compare two masters of bias, dark or flat-dark, (ny, nx), ADU, of one camera and setting.

    They may be thinned to some of their rows. `noise_adu` is the noise of one pixel in one frame,
    of the new frames and the old ones; `step` is 2 for a mosaic. Nothing is mutated.
    """
    before = cells(old)
    moved = cells(new) - before
    level, jump = float(np.median(before)), float(np.median(moved))
    uneven = moved - jump
    ratio = _hot_ratio(new, old, noise_adu=noise_adu, step=step)
    for size, told in (
        (jump, f"its level is {level + jump:.0f} ADU where its predecessor had {level:.0f} ADU"),
        (float(uneven.max()), f"a part of it is {uneven.max():.0f} ADU brighter than before"),
    ):
        if size > max(POISON_NOISE * noise_adu, POISON_PART * abs(level)):
            return Verdict(poison=f"{told}: light has leaked in, or it was warm")
    if ratio is not None and ratio > POISON_HOT_RATIO:
        return Verdict(
            poison=f"its hot pixels are {ratio:.1f} times as strong as its predecessor's: the "
            "sensor was warmer, or the exposure longer, than the headers say"
        )
    limit = max(NOTABLE_NOISE * noise_adu, NOTABLE_PART * abs(level))
    notes = []
    if abs(jump) > limit:
        notes.append(f"its level moved from {level:.0f} ADU to {level + jump:.0f} ADU")
    if np.abs(uneven).max() > limit:
        notes.append(f"a part of it moved by {uneven[_farthest(uneven)]:+.0f} ADU")
    if old_noise_adu and not 1 / NOISE_RATIO < noise_adu / old_noise_adu < NOISE_RATIO:
        notes.append(
            f"the noise of its frames is {noise_adu:.1f} ADU where it was {old_noise_adu:.1f} ADU"
        )
    if ratio is not None and not 1 / HOT_RATIO < ratio < HOT_RATIO:
        notes.append(f"its hot pixels are {ratio:.2f} times as strong as before")
    return Verdict(tuple(notes))


def shared_hot(new: Floats, old: Floats, *, step: int) -> float | None:
    """Part of the hot pixels of one dark (ny, nx) that stand out in another too; None with too few.

    Hot are those that are HOT_SIGMA above the spread of their own image's pixels; half of that is
    enough in the other one, which may be colder or shorter. Two sensors share a few by chance.
    """
    before, after = above_neighbours(old, step), above_neighbours(new, step)
    hot = before > HOT_SIGMA * _spread(before)
    if np.count_nonzero(hot) < HOT_PIXELS:
        return None
    return float(np.mean(after[hot] > HOT_SIGMA / 2 * _spread(after)))


def _spread(excess: Floats) -> float:
    """Robust standard deviation of `above_neighbours`, ADU; at least a tenth of one."""
    return max(0.1, 1.4826 * float(np.median(np.abs(excess[::4]))))


def flats(new: Floats, old: Floats) -> Verdict:
    """Compare two flats (ny, nx) of one filter and optics, at whatever levels."""
    before, after = cells(old), cells(new)
    if not (before > 0).all() or not (after > 0).all():
        return Verdict()
    if corners(after) > BRIGHT_CORNERS and corners(before) < 1.0:
        return Verdict(
            poison=f"its corners are {corners(after) - 1:.0%} brighter than its centre, where its "
            f"predecessor's are {1 - corners(before):.0%} darker: it would turn the vignette around"
        )
    ratio = after / before
    ratio = ratio / np.median(ratio) - 1.0
    if np.abs(ratio).max() <= FLAT_PART:
        return Verdict()
    return Verdict(
        (f"a part of it moved by {ratio[_farthest(ratio)]:+.1%}: dust or optics have changed",)
    )


def edges(image: npt.NDArray[np.generic]) -> Doubles:
    """Means of the four corner cells and of the centre, (5,), of an image (ny, nx)."""
    ny, nx = image.shape
    h, w = max(1, ny // GRID), max(1, nx // GRID)
    y, x = (ny - h) // 2, (nx - w) // 2
    parts = (
        image[:h, :w],
        image[:h, -w:],
        image[-h:, :w],
        image[-h:, -w:],
        image[y : y + h, x : x + w],
    )
    return np.array([float(cells(part, 1)[0, 0]) for part in parts])


def turned_around(
    light: Doubles, subtracted: Doubles | None, flat: Doubles, *, noise_adu: float
) -> str | None:
    """Say that a flat turns the vignette of a light around instead of taking it away.

    `light`, `subtracted` (a dark or a bias; None where there is none) and `flat` are `edges`, ADU;
    `noise_adu` is the noise of one pixel of the light. A pedestal that is left in the light is not
    dimmed in the corners: divided by the flat it shines there. None where all is well, or where
    the sky is too faint to tell.
    """
    sky = light if subtracted is None else light - subtracted
    if sky[4] <= 0 or not (flat > 0).all():
        return None
    response = flat / flat[4]
    before = float(np.median(sky[:4])) / sky[4]
    after = float(np.median(sky[:4] / response[:4])) / sky[4]
    if after < TURNED or (after - 1.0) * sky[4] < TURNED_NOISE * noise_adu:
        return None
    if abs(after - 1.0) <= abs(before - 1.0):
        return None
    return (
        f"it would turn the vignette around: the sky's corners stand at {before:.0%} of the centre "
        f"before it and at {after:.0%} after it"
        + ("" if subtracted is not None else ", since no dark or bias was subtracted")
    )


def corners(block: Doubles) -> float:
    """Mean of the four corner cells over the mean of the four in the centre."""
    ny, nx = block.shape
    edge = np.mean([block[0, 0], block[0, -1], block[-1, 0], block[-1, -1]])
    y, x = ny // 2, nx // 2
    return float(edge / np.mean(block[max(y - 1, 0) : y + 1, max(x - 1, 0) : x + 1]))


def cells(image: npt.NDArray[np.generic], grid: int = GRID) -> Doubles:
    """Means of `grid` × `grid` cells of an image (ny, nx), without their highest and lowest tenth.

    Large cells are thinned to some thousand pixels, a mosaic's colours all among them.
    """
    ny, nx = image.shape
    rows, columns = _borders(ny, grid), _borders(nx, grid)
    thin = max(1, round((ny * nx / grid**2 / 4000) ** 0.5)) | 1
    result = np.empty((len(rows) - 1, len(columns) - 1))
    for j in range(len(rows) - 1):
        for i in range(len(columns) - 1):
            part = image[rows[j] : rows[j + 1] : thin, columns[i] : columns[i + 1] : thin]
            ordered = np.sort(part.astype(np.float64), axis=None)
            cut = ordered.size // 10
            result[j, i] = ordered[cut : ordered.size - cut].mean()
    return result


def _borders(length: int, grid: int) -> list[int]:
    return sorted({int(edge) for edge in np.linspace(0, length, min(grid, length) + 1)})


def _farthest(block: Doubles) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(np.argmax(np.abs(block)), block.shape))


def _hot_ratio(new: Floats, old: Floats, *, noise_adu: float, step: int) -> float | None:
    """Median ratio of the hot pixels' excess over their neighbours; None with too few of them."""
    before, after = above_neighbours(old, step), above_neighbours(new, step)
    hot = before > HOT_SIGMA * noise_adu
    if np.count_nonzero(hot) < HOT_PIXELS:
        return None
    return float(np.median(after[hot] / before[hot]))
