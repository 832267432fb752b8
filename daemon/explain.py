"""What was decided about a frame and why, in sentences: the parts of `lightkeeper explain`."""

import numpy as np

from calib_library.frame import FrameRecord, FrameType
from daemon.ledger.ledger import Identity
from daemon.placing import Light, Place


def combined_how(record: FrameRecord) -> str:
    """Why a file is no raw frame, in a few words."""
    if record.stack_count > 1:
        return f"{record.stack_count} frames in one"
    return "a master" if record.is_master else f"CALSTAT {record.calibrated}"


def describe(record: FrameRecord) -> str:
    """A calibration frame in a few words: `dark 300 s, −10.1 °C`."""
    parts = [str(record.frame_type)]
    if record.exposure_s is not None:
        parts[0] += f" {record.exposure_s:g} s"
    if record.temperature_c is not None:
        parts.append(f"{record.temperature_c:.1f} °C")
    if record.frame_type is FrameType.FLAT and record.filter:
        parts.append(f"filter {record.filter}")
    return ", ".join(parts)


def header(identity: Identity) -> tuple[str, list[str]]:
    """How the header was read: each field with the keyword that gave it."""
    record = identity.record
    lines = []
    for field, source in sorted(record.sources.items()):
        value: object
        if field == "binning":
            value = f"{record.key.xbinning}×{record.key.ybinning}"
        else:
            value = getattr(record, field, None) or getattr(record.key, field, None)
        if value is not None:
            lines.append(f"{field} = {value}  (from {source})")
    lines.append(f"target = {identity.target}, night = {identity.night}")
    return "Header", [*lines, *record.warnings]


def measured(light: Light) -> tuple[str, list[str]]:
    """What was measured on the calibrated light."""
    q = light.quality
    return "Measured", [
        f"{q.stars} stars, FWHM {q.fwhm_px:.2f} px, eccentricity {q.eccentricity:.2f}",
        f"sky {q.sky_adu:.1f} ADU, noise {q.noise_adu:.2f} ADU a pixel",
    ]


def place(found: Place) -> tuple[str, list[str]]:
    """Where the light lies in its stack and what it counts."""
    member, how = found.member, found.registration
    m = member.matrix
    angle = float(np.degrees(np.arctan2(m[1, 0], m[0, 0])))
    return "Stack", [
        f"registered: shift ({m[0, 2]:+.2f}, {m[1, 2]:+.2f}) px, rotation {angle:+.3f}°",
        f"by {how.method}, {how.model}: {how.matched} stars matched, rms {how.rms_px:.3f} px",
        f"transparency {member.quality.transparency or 1.0:.3f}, weight {member.terms.weight:.4g}",
        *(f"flag: {flag}" for flag in member.flags),
    ]
