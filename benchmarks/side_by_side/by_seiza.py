"""What seiza does with the same frames; run by an interpreter that has it."""

import time
from pathlib import Path
from typing import Any

import seiza
from answer import serve


def master(*, frames: list[str], output: str) -> dict[str, Any]:
    """Make a master dark."""
    result = seiza.build_dark(frames, output)
    return {"rejected": result.rejected_samples, "method": result.rejection_method}


def masters(*, bias: list[str], darks: list[str], flats: list[str], folder: str) -> dict[str, Any]:
    """Make all masters; the dark keeps its bias, which the flats lose."""
    began = time.perf_counter()
    paths = {kind: f"{folder}/{kind}.fits" for kind in ("bias", "dark", "flat")}
    seiza.build_bias(bias, paths["bias"])
    seiza.build_dark(darks, paths["dark"])
    seiza.build_flat(flats, paths["flat"], bias=paths["bias"])
    return {"seconds": time.perf_counter() - began, **paths}


def lights(*, frames: list[str], dark: str, flat: str, options: dict[str, Any]) -> dict[str, Any]:
    """Push lights one by one into a live stack, as they would come."""
    began = time.perf_counter()
    stack = seiza.LiveStacker(
        frames[0], options=seiza.StackOptions(**options), dark=dark, flat=flat
    )
    opened = time.perf_counter() - began
    wall, cpu, reasons = [], [], []
    for frame in frames[1:]:
        began, used = time.perf_counter(), time.process_time()
        found = stack.push_fits(frame)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
        if not found.accepted:
            reasons.append(f"{Path(frame).name}: {found.reason}")
    return {
        "first_s": opened,
        "wall_s": wall,
        "cpu_s": cpu,
        "accepted": stack.accepted_frames,
        "reasons": reasons,
    }


def whole(
    *,
    bias: list[str],
    darks: list[str],
    flats: list[str],
    frames: list[str],
    folder: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Masters, then the batch stack."""
    made = masters(bias=bias, darks=darks, flats=flats, folder=folder)
    result = seiza.stack_fits(
        frames,
        f"{folder}/stack.fits",
        options=seiza.StackOptions(**options),
        dark=made["dark"],
        flat=made["flat"],
    )
    return {"accepted": result.accepted_frames, "rejected": result.rejected_frames}


if __name__ == "__main__":
    serve({"master": master, "masters": masters, "lights": lights, "whole": whole})
