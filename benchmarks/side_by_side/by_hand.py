"""The tutorial way: astropy's sigma_clip, numpy, astroalign.register and a median."""

import time
from pathlib import Path
from typing import Any

import astroalign
import numpy as np
from answer import serve
from astropy.io import fits
from astropy.stats import sigma_clip

FLOAT = np.float32


def read(path: str) -> np.ndarray:
    """One frame as float32."""
    return fits.getdata(path).astype(FLOAT)


def combined(frames: list[str], *, subtract: np.ndarray | None = None) -> np.ndarray:
    """The mean without what lies beyond 3 σ; flats lose `subtract` and are scaled to mean 1."""
    cube = np.stack([read(path) for path in frames])
    if subtract is not None:
        cube -= subtract
        cube /= cube.mean(axis=(1, 2), keepdims=True)
    clipped = sigma_clip(
        cube, sigma=3, maxiters=5, cenfunc="median", stdfunc="std", axis=0, masked=False, copy=False
    )
    return np.nanmean(clipped, axis=0)


def master(*, frames: list[str], output: str) -> dict[str, Any]:
    """Make a master."""
    fits.writeto(output, combined(frames), overwrite=True)
    return {}


def averages(*, darks: list[str], flats: list[str], folder: str) -> dict[str, Any]:
    """Plain means, for `lights` to work with; their making is not measured."""
    paths = {"dark": f"{folder}/dark.fits", "flat": f"{folder}/flat.fits"}
    for frames, path in ((darks, paths["dark"]), (flats, paths["flat"])):
        fits.writeto(path, sum(read(frame) for frame in frames) / FLOAT(len(frames)))
    return paths


def calibrated(path: str, dark: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """One calibrated light."""
    return (read(path) - dark) / flat


def aligned(
    frames: list[str], dark: np.ndarray, flat: np.ndarray
) -> tuple[list[np.ndarray], list[str], list[float], list[float]]:
    """Calibrate and register the lights to the first; those that fail are named."""
    reference = calibrated(frames[0], dark, flat)
    images, lost, wall, cpu = [reference], [], [], []
    for path in frames[1:]:
        began, used = time.perf_counter(), time.process_time()
        light = calibrated(path, dark, flat)
        try:
            image, _ = astroalign.register(light, reference)
        except (astroalign.MaxIterError, ValueError) as error:
            lost.append(f"{Path(path).name}: {error}")
        else:
            images.append(image.astype(FLOAT))
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    return images, lost, wall, cpu


def lights(*, frames: list[str], dark: str, flat: str) -> dict[str, Any]:
    """Calibrate and register lights one by one; what stacking them costs is not counted."""
    _, lost, wall, cpu = aligned(frames, *_masters(dark, flat))
    return {"wall_s": wall, "cpu_s": cpu, "lost": lost}


def _masters(dark: str, flat: str) -> tuple[np.ndarray, np.ndarray]:
    field = read(flat)
    return read(dark), field / field.mean()


def whole(
    *, bias: list[str], darks: list[str], flats: list[str], frames: list[str], folder: str
) -> dict[str, Any]:
    """Masters, registered lights, their median."""
    field = combined(flats, subtract=combined(bias))
    images, lost, _, _ = aligned(frames, combined(darks), field / field.mean())
    fits.writeto(f"{folder}/stack.fits", np.median(np.stack(images), axis=0), overwrite=True)
    return {"registered": len(images), "lost": lost}


if __name__ == "__main__":
    serve({"master": master, "averages": averages, "lights": lights, "whole": whole})
