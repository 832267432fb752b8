"""A frame at half the size, for a stack that has no memory for all its pixels.

Each 2×2 pixels become their mean; a colour camera's frame has its planes by then. Pixel (X, Y) of
the half lies at (2X + ½, 2Y + ½) of the whole, in frames and reference alike. Frames are measured
and registered whole, and the final stack is whole: only the growing stack is of half the size.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
from numba import prange

from calib_library.kernels import kernel
from daemon.light.distortion import UNIT_PX, monomials
from daemon.light.lanczos import BAD
from daemon.stack.live import FrameTerms

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

TO_WHOLE = np.array([[2.0, 0.0, 0.5], [0.0, 2.0, 0.5], [0.0, 0.0, 1.0]])
TO_WHOLE.setflags(write=False)
"""Half px → whole px, 3×3."""


def image(whole: Image, mask: Mask) -> tuple[Image, Mask]:
    """(planes, ny, nx) f32 ADU and its (ny, nx) uint8 mask → (planes, ny//2, nx//2) and the mask
    of it. Each pixel is the mean of the good ones (bit 1 not set) of its four, and bad where fewer
    than three are; the other bits are those that any of the four has. An odd last row or column
    is left out. Nothing is changed.
    """
    planes, height, width = whole.shape
    half = np.empty((planes, height // 2, width // 2), np.float32)
    bits = np.empty(half.shape[1:], np.uint8)
    _halve(whole, mask, half, bits)
    return half, bits


def place(matrix: Matrix, distortion: Matrix | None) -> tuple[Matrix, Matrix | None]:
    """The 3×3 matrix frame → reference and the (2, 10) distortion (`daemon.light.distortion`)
    between halves.
    """
    inverse = np.linalg.inv(TO_WHOLE)
    half = inverse @ matrix @ TO_WHOLE
    if distortion is None:
        return half, None
    # A cubic stays one when its arguments are scaled and shifted: sixteen points determine it.
    grid = np.linspace(-UNIT_PX, UNIT_PX, 4)
    points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    moved = monomials(points * 2.0 + 0.5) @ distortion.T / 2.0
    found = np.asarray(np.linalg.lstsq(monomials(points), moved)[0], dtype=np.float64)
    return half, np.ascontiguousarray(found.T)


def terms(whole: FrameTerms) -> FrameTerms:
    """A frame's numbers at half the size. The mean of four pixels has half their noise, if theirs
    is independent; and four times the electrons make one ADU of it.
    """
    return dataclasses.replace(
        whole,
        planes=tuple((a + (bx + by) / 2, 2 * bx, 2 * by) for a, bx, by in whole.planes),
        sigma_adu=whole.sigma_adu / 2,
        e_per_adu=whole.e_per_adu * 4,
        fwhm_px=whole.fwhm_px / 2,
    )


@kernel(parallel=True)
def _halve(whole: Image, mask: Mask, half: Image, bits: Mask) -> None:
    planes, height, width = half.shape
    for y in prange(height):
        for x in range(width):
            every = np.uint8(0)
            good = 0
            for k in range(4):
                flags = mask[2 * y + k // 2, 2 * x + k % 2]
                every |= flags
                good += 1 - (flags & BAD)
            others = every & ~BAD
            bits[y, x] = others if good >= 3 else others | BAD
            for plane in range(planes):
                a, b = whole[plane, 2 * y, 2 * x], whole[plane, 2 * y, 2 * x + 1]
                c, d = whole[plane, 2 * y + 1, 2 * x], whole[plane, 2 * y + 1, 2 * x + 1]
                if good == 3:
                    a = np.float32(0) if mask[2 * y, 2 * x] & BAD else a
                    b = np.float32(0) if mask[2 * y, 2 * x + 1] & BAD else b
                    c = np.float32(0) if mask[2 * y + 1, 2 * x] & BAD else c
                    d = np.float32(0) if mask[2 * y + 1, 2 * x + 1] & BAD else d
                    half[plane, y, x] = (a + b + c + d) / np.float32(3)
                else:
                    half[plane, y, x] = np.float32(0.25) * ((a + b) + (c + d))
