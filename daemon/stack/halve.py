"""A frame at half the size, or a quarter, for a stack that has no memory for all its pixels.

Each n×n pixels become their mean. Pixel (X, Y) of what becomes of them lies at (n X + (n − 1)/2,
n Y + (n − 1)/2) of the whole, in frames and reference alike. Of a colour camera's mosaic each
colour becomes a plane of its own, from its own pixels in each block, without being demosaiced: it
has the noise of those, and lies where they are, beside the centre of the block, so that each plane
has a matrix of its own. Frames are measured and registered whole, and the final stack is whole:
only the growing stack is smaller.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calib_library.kernels import kernel, side_by_side
from daemon.light import debayer, warp
from daemon.light.distortion import UNIT_PX, monomials
from daemon.light.lanczos import BAD
from daemon.stack.live import FrameTerms

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]


class Sized(NamedTuple):
    """Planes of a frame as they enter a stack of their size."""

    image: Image
    """(planes, ny, nx) ADU."""
    mask: Mask
    """(ny, nx), bit 1 = bad."""
    matrix: Matrix
    """3×3, px of these planes → px of the stack."""
    terms: FrameTerms
    distortion: Matrix | None


def grey(whole: Sized, edge: int) -> Sized:
    """A monochrome frame, `edge`×`edge` pixels made one."""
    small, mask = image(whole.image, whole.mask, edge)
    matrix, distortion = place(whole.matrix, whole.distortion, edge)
    return Sized(small, mask, matrix, terms(whole.terms, edge), distortion)


def colours(
    mosaic: Image,
    mask: Mask,
    pattern: str,
    matrix: Matrix,
    whole: FrameTerms,
    distortion: Matrix | None,
    *,
    edge: int,
) -> list[Sized]:
    """Red, green and blue of a (ny, nx) mosaic, each by itself, `edge`×`edge` (an even number)
    pixels made one: `matrix`, `distortion` and the terms `whole` are those of the frame with all
    its pixels.

    A plane's noise is that of its own pixels, and its electrons are theirs: of 2×2 pixels one's, or
    of green two's; not those of four, as after a demosaicing.
    """
    planes, masks = debayer.superpixels(mosaic, mask, pattern, edge=edge)
    small, bend = place(matrix, distortion, edge)
    common = terms(whole, edge)
    step = max(1, int(np.sqrt(planes[0].size / 50_000)))
    skies = np.median(planes[:, ::step, ::step].reshape(3, -1), axis=1)
    away = skies - skies @ [0.25, 0.5, 0.25]
    made = []
    for k, plane in enumerate(planes[:, np.newaxis]):
        # Pixels of the plane lie beside the centres of the blocks.
        beside = np.eye(3)
        beside[:2, 2] = np.array(debayer.offset(pattern, k)) / edge
        own = dataclasses.replace(
            common,
            planes=(common.planes[k],),
            sigma_adu=max(common.sigma_adu, whole.scale * warp.pixel_noise(plane)),
            e_per_adu=whole.e_per_adu * debayer.pixels_of(pattern, k, edge=edge),
            sky_adu=whole.sky_adu + float(away[k]),
        )
        made.append(Sized(plane, masks[k], small @ beside, own, bend))
    return made


def image(whole: Image, mask: Mask, edge: int = 2) -> tuple[Image, Mask]:
    """(planes, ny, nx) f32 ADU and its (ny, nx) uint8 mask → (planes, ny//edge, nx//edge) and the
    mask of it. Each pixel is the mean of the good ones (bit 1 not set) of its `edge`×`edge`, and
    bad where fewer than three quarters are; the other bits are those that any of them has. What is
    left over of rows and columns is left out. Nothing is changed.
    """
    planes, height, width = whole.shape
    small = np.empty((planes, height // edge, width // edge), np.float32)
    bits = np.empty(small.shape[1:], np.uint8)
    side_by_side(_shrink, len(bits), whole, mask, edge, small, bits)
    return small, bits


def to_whole(edge: int) -> Matrix:
    """Px of what `edge`×`edge` pixels become → px of the whole, 3×3."""
    middle = (edge - 1) / 2
    return np.array([[edge, 0.0, middle], [0.0, edge, middle], [0.0, 0.0, 1.0]])


def place(matrix: Matrix, distortion: Matrix | None, edge: int = 2) -> tuple[Matrix, Matrix | None]:
    """The 3×3 matrix frame → reference and the (2, 10) distortion (`daemon.light.distortion`)
    between what `edge`×`edge` pixels of both become.
    """
    outwards = to_whole(edge)
    small = np.asarray(np.linalg.inv(outwards) @ matrix @ outwards, dtype=np.float64)
    if distortion is None:
        return small, None
    # A cubic stays one when its arguments are scaled and shifted: sixteen points determine it.
    grid = np.linspace(-UNIT_PX, UNIT_PX, 4)
    points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    moved = monomials(points * edge + (edge - 1) / 2) @ distortion.T / edge
    found = np.asarray(np.linalg.lstsq(monomials(points), moved)[0], dtype=np.float64)
    return small, np.ascontiguousarray(found.T)


def terms(whole: FrameTerms, edge: int = 2) -> FrameTerms:
    """A frame's numbers where `edge`×`edge` pixels are one. The mean of n² pixels has an n-th of
    their noise, if theirs is independent; and n² times the electrons make one ADU of it.
    """
    middle = (edge - 1) / 2
    return dataclasses.replace(
        whole,
        planes=tuple((a + (bx + by) * middle, edge * bx, edge * by) for a, bx, by in whole.planes),
        sigma_adu=whole.sigma_adu / edge,
        e_per_adu=whole.e_per_adu * edge**2,
        fwhm_px=whole.fwhm_px / edge,
    )


@kernel()
def _shrink(
    first: int, last: int, whole: Image, mask: Mask, edge: int, small: Image, bits: Mask
) -> None:
    planes, _, width = small.shape
    number = edge * edge
    for y in range(first, last):
        for x in range(width):
            every = np.uint8(0)
            good = 0
            for k in range(number):
                flags = mask[y * edge + k // edge, x * edge + k % edge]
                every |= flags
                good += 1 - (flags & BAD)
            others = every & ~BAD
            enough = 4 * good >= 3 * number
            bits[y, x] = others if enough else others | BAD
            for plane in range(planes):
                total = np.float32(0)
                for k in range(number):
                    j, i = y * edge + k // edge, x * edge + k % edge
                    used = not enough or not mask[j, i] & BAD
                    total += whole[plane, j, i] if used else np.float32(0)
                small[plane, y, x] = total / np.float32(good if enough else number)
