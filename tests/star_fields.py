"""Small star fields with known truth, for the tests of stars, quality, registration and rays."""

from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def shared(folder):
    """The folder of real frames, or skip with a sentence."""
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(f"the real frames of {folder} are not beside the repository")
    return path


def moffat(shape, x, y, flux, fwhm, *, beta=3.5, oversampling=5):
    """Noiseless Moffat stars, integrated over pixels: (ny, nx) float64."""
    ny, nx = shape
    image = np.zeros(shape)
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    reach = int(8 * fwhm) + 3
    inner = (np.arange(oversampling) + 0.5) / oversampling - 0.5
    for x1, y1, f1 in zip(x, y, flux, strict=True):
        left, right = max(int(x1) - reach, 0), min(int(x1) + reach + 1, nx)
        low, high = max(int(y1) - reach, 0), min(int(y1) + reach + 1, ny)
        if left >= right or low >= high:
            continue
        u = (np.arange(left, right)[:, None] + inner).ravel() - x1
        v = (np.arange(low, high)[:, None] + inner).ravel() - y1
        profile = (1 + (u[None, :] ** 2 + v[:, None] ** 2) / alpha**2) ** -beta
        profile *= (beta - 1) / (np.pi * alpha**2)
        cells = profile.reshape(high - low, oversampling, right - left, oversampling)
        image[low:high, left:right] += f1 * cells.mean(axis=(1, 3))
    return image


def exposed(rng, scene, *, sky=200.0, read_noise=3.0):
    """`scene` (ADU = e-) with sky, Poisson and read noise: float32."""
    return (rng.poisson(scene + sky) + rng.normal(0, read_noise, scene.shape)).astype(np.float32)


def spread_out(rng, shape, step):
    """Positions on a jittered grid, so that no star blends with another: x, y."""
    ny, nx = shape
    margin = int(0.2 * step) + 16
    gx, gy = np.meshgrid(np.arange(margin, nx - margin, step), np.arange(margin, ny - margin, step))
    jitter = rng.uniform(-0.2 * step, 0.2 * step, (2, *gx.shape))
    return (gx + jitter[0]).ravel(), (gy + jitter[1]).ravel()


def nearest(stars, x, y):
    """For each detection: distance (px) to the nearest true star, and its index."""
    distance = np.hypot(stars.x[:, None] - x, stars.y[:, None] - y)
    return distance.min(axis=1), distance.argmin(axis=1)
