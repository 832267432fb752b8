"""The tutorial way: astropy's sigma_clip, numpy, astroalign.register and a median."""

import dataclasses
import time
from collections.abc import Iterator
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


@dataclasses.dataclass
class Aligned:
    """Lights calibrated and registered to the first."""

    images: list[np.ndarray] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)
    """Those that could not be registered, and why."""


def clocks() -> np.ndarray:
    """Wall and processor time, s."""
    return np.array([time.perf_counter(), time.process_time()])


def aligned(frames: list[str], dark: np.ndarray, flat: np.ndarray) -> Iterator[Aligned]:
    """Calibrate and register light by light; what there is so far after each."""
    reference = calibrated(frames[0], dark, flat)
    done = Aligned([reference])
    yield done
    for path in frames[1:]:
        light = calibrated(path, dark, flat)
        try:
            image, _ = astroalign.register(light, reference)
        except (astroalign.MaxIterError, ValueError) as error:
            done.lost.append(f"{Path(path).name}: {error}")
        else:
            done.images.append(image.astype(FLOAT))
        yield done


def stacked(images: list[np.ndarray]) -> np.ndarray:
    """The median of registered images."""
    return np.median(np.stack(images), axis=0)


def lights(*, frames: list[str], dark: str, flat: str) -> dict[str, Any]:
    """Let lights come one by one: what each but the first takes to be calibrated and registered,
    and what it takes until there is a stack with it.
    """
    masters = _masters(dark, flat)
    registering, stacking = [], []
    done = Aligned()
    began = clocks()
    for done in aligned(frames, *masters):
        registering.append(clocks() - began)
        stacked(done.images)
        stacking.append(clocks() - began)
        began = clocks()
    wall, cpu = np.transpose(stacking[1:]).tolist()
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "registered_s": np.transpose(registering[1:])[0].tolist(),
        "lost": done.lost,
    }


def _masters(dark: str, flat: str) -> tuple[np.ndarray, np.ndarray]:
    field = read(flat)
    return read(dark), field / field.mean()


def whole(
    *, bias: list[str], darks: list[str], flats: list[str], frames: list[str], folder: str
) -> dict[str, Any]:
    """Masters, registered lights, their median."""
    field = combined(flats, subtract=combined(bias))
    *_, done = aligned(frames, combined(darks), field / field.mean())
    fits.writeto(f"{folder}/stack.fits", stacked(done.images), overwrite=True)
    return {"registered": len(done.images), "lost": done.lost}


if __name__ == "__main__":
    serve({"master": master, "averages": averages, "lights": lights, "whole": whole})
