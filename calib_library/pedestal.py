"""What is subtracted from flats before they are combined: a flat-dark, a dark or a bias."""

from collections import Counter
from collections.abc import Mapping, Sequence

from calib_library import match
from calib_library.catalogue.records import FiledFrame
from calib_library.errors import IncompatibleFramesError
from calib_library.frame import FrameType
from calib_library.match import MasterRecord

LONG_FLAT_S = 5.0
"""Up to this exposure the dark current of a flat is nothing beside its light: a bias will do."""
UNKNOWN_PEDESTAL = 0.05
"""Flats below this part of full scale are not used without their pedestal."""


def by_frame(
    frames: Sequence[FiledFrame], subtract: MasterRecord | Mapping[str, MasterRecord] | None
) -> dict[str, MasterRecord]:
    """Return what is subtracted from each frame, by its hash."""
    if subtract is None:
        return {}
    if isinstance(subtract, MasterRecord):
        return {frame.sha256: subtract for frame in frames}
    return {one.sha256: subtract[one.sha256] for one in frames if one.sha256 in subtract}


def commonest(
    used: Sequence[FiledFrame], lowered_by: Mapping[str, MasterRecord]
) -> MasterRecord | None:
    """Return the master that was subtracted from the most frames."""
    masters = [lowered_by[frame.sha256] for frame in used if frame.sha256 in lowered_by]
    counts = Counter(master.id for master in masters)
    return max(masters, key=lambda master: (counts[master.id], -master.id), default=None)


def refuse_unknown(level_adu: float, *, ceiling_adu: float | None) -> None:
    """Raise IncompatibleFramesError for flats without a pedestal of which it may be a large part.

    `level_adu` is theirs, `ceiling_adu` their saturation, where it is known.
    """
    if ceiling_adu is None or level_adu >= UNKNOWN_PEDESTAL * ceiling_adu:
        return
    raise IncompatibleFramesError(
        f"These flats reach only {level_adu / ceiling_adu:.1%} of full scale, and there is no "
        "flat-dark, dark or bias to subtract from them: how much of that is light cannot be "
        "told, and they would spoil the corners of every light. Take flat-darks or bias "
        "frames of this gain and offset; the flats are used by themselves then."
    )


def notes(
    used: Sequence[FiledFrame], lowered_by: Mapping[str, MasterRecord], *, has_overscan: bool
) -> list[str]:
    """Say what is not as good as it could be in what is subtracted from flats."""
    told = []
    bare = sum(frame.sha256 not in lowered_by for frame in used)
    if bare and not has_overscan:
        these = "these flats" if bare == len(used) else f"{bare} of {len(used)} flats"
        told.append(
            f"There was no flat-dark, dark or bias to subtract from {these}: they correct "
            "too little until there is one."
        )
    long = max(
        (
            frame.record.exposure_s or 0.0
            for frame in used
            if frame.sha256 in lowered_by and lowered_by[frame.sha256].frame_type is FrameType.BIAS
        ),
        default=0.0,
    )
    if long > LONG_FLAT_S:
        told.append(
            f"Flats of {match.seconds(long)} had only a bias subtracted: "
            "flat-darks of that exposure would be better."
        )
    return told
