"""The resampling kernel: Lanczos-3 with its moments made exact, as a table and as polynomials.

A plain normalised Lanczos-3 kernel misplaces a star by up to 0.02 px, because it does not reproduce
a slope; here each phase gets the smallest change (least squares over its six taps) that makes its
moments exact up to the second, so that flux, position and width of a star come through. At phase 0
the kernel is one pixel: a shift by whole pixels copies.

With t the place between the third and the fourth of six pixels p0 … p5, s = t(1 − t), u = t − ½,
v = u², Sᵢ = pᵢ + p₅₋ᵢ and Dᵢ = pᵢ − p₅₋ᵢ, every such kernel that is symmetric and exact up to the
second moment is

    (1 − t) p2 + t p3 + s [ e (S0 − 3 S1 + 2 S2) − ¼ (S1 − S2) + u (f (D0 − 5 D2) + g (D1 − 3 D2)) ]

with three functions e, f, g of v. Polynomials of the second order in v, fitted by least squares,
give the weights of the table to 2e-6, and copy a pixel bit for bit at t = 0 and t = 1.
"""

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]

PHASE_BITS = 10
PHASES = 1 << PHASE_BITS
"""Positions are rounded to 1/1024 px where the table is used, which misplaces a star by 0.0005 px
at most."""
TAPS = 6
RING_SHARE = np.float32(0.01)
"""The share of an edge's height by which a value may lie farther out: what a star of FWHM 2.5 px
shows of the kernel's own error around it. A hot pixel, unclamped, would draw rings of 13 %."""
EDGE_CONTRAST = np.float32(5)
"""How many times higher than the nearest pixels (above the darkest of all) another pixel must stand
for the value to be clamped. Beside the peak of a star none does."""
BAD = np.uint8(1)
"""Bit of the mask for pixels that must not be used."""
BAD_SHARE = 0.1
"""An output pixel of which more than this share of the kernel (sum of |weights|) falls on bad
pixels is left out; below it they are replaced by the others."""

E0, E1, E2 = np.float32(0.09513118), np.float32(-0.02413902), np.float32(-0.01915032)
F0, F1, F2 = np.float32(-0.19339646), np.float32(0.15423216), np.float32(-0.03988415)
G0, G1, G2 = np.float32(0.75700168), np.float32(-0.45684467), np.float32(0.11443889)


def _lanczos_table() -> Image:
    """Weights (PHASES, TAPS) f32 for pixels −2 … 3 relative to the one at or before the position.

    L(d) = sinc(d) sinc(d/3), then corrected to Σw = 1, Σw·t = 0, Σw·t² = 0 with t the tap's
    distance from the position.
    """
    phase = np.arange(PHASES)[:, None] / PHASES
    distance = np.arange(-2, 4)[None, :] - phase
    weights = np.sinc(distance) * np.sinc(distance / 3)
    weights[0] = distance[0] == 0
    moments = np.stack([distance**order for order in range(3)], axis=1)
    wanted = np.array([1.0, 0.0, 0.0])
    missing = wanted - np.einsum("pot,pt->po", moments, weights)
    weights += np.einsum("pto,po->pt", np.linalg.pinv(moments), missing)
    weights[0] = distance[0] == 0
    return np.ascontiguousarray(weights, dtype=np.float32)


TABLE = _lanczos_table()
TABLE.setflags(write=False)

SHARES = np.abs(TABLE) / np.abs(TABLE).sum(axis=1, keepdims=True)
SHARES.setflags(write=False)
"""(PHASES, TAPS) f32, the share of each tap."""
