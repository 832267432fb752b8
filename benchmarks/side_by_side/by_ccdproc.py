"""What ccdproc does with the same frames; run by an interpreter that has it."""

from typing import Any

import ccdproc
from answer import serve

MEMORY_BYTES = 2e9


def master(*, frames: list[str], output: str) -> dict[str, Any]:
    """Combine a master in the way that is fastest there: functions by name, float32, a limit."""
    combined = ccdproc.combine(
        frames,
        method="average",
        unit="adu",
        sigma_clip=True,
        sigma_clip_low_thresh=3,
        sigma_clip_high_thresh=3,
        sigma_clip_func="median",
        sigma_clip_dev_func="std",
        mem_limit=MEMORY_BYTES,
        dtype="float32",
    )
    combined.data = combined.data.astype("float32")
    combined.mask = combined.uncertainty = None
    combined.write(output, overwrite=True)
    return {}


if __name__ == "__main__":
    serve({"master": master})
