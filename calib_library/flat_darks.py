"""The dark of flats that have none of their own: the dark model's, at their exposure.

Better than a bias, which leaves dark current and glow in the flat. It is never extrapolated: flats
have neither hot pixels nor faint skies by which an error would show.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from calib_library import dark_model
from calib_library.catalogue import candidates
from calib_library.catalogue.records import CalibrationSet, FiledFrame
from calib_library.dark_model import DarkPlan, Leg
from calib_library.darks import Darks
from calib_library.errors import NoMatchingMasterError
from calib_library.frame import FrameType
from calib_library.library import CalibrationLibrary
from calib_library.made_dark import MadeDark, Mixed
from calib_library.match import MasterRecord

Floats = npt.NDArray[np.float32]


def for_flats(
    library: CalibrationLibrary,
    group: CalibrationSet,
    frames: Sequence[FiledFrame],
    chosen: Mapping[str, MasterRecord],
) -> dict[str, MadeDark]:
    """Make the darks, by the frame's hash, of those flats of a set for which `chosen` has none, or
    but a bias; where the model would extrapolate, none.

    Raises LibraryError where a master cannot be read.
    """
    if group.frame_type is not FrameType.FLAT:
        return {}
    darks = Darks(library.root, library.master)
    by_exposure: dict[float | None, MadeDark | None] = {}
    images: dict[Leg, Floats] = {}
    made = {}
    for frame in frames:
        present = chosen.get(frame.sha256)
        if present is not None and present.frame_type is not FrameType.BIAS:
            continue
        exposure = frame.record.exposure_s
        if exposure not in by_exposure:
            plan = _plan(library, darks, group, frame)
            by_exposure[exposure] = _make(library, darks, plan, images) if plan else None
        if (one := by_exposure[exposure]) is not None:
            made[frame.sha256] = one
    return made


def _make(
    library: CalibrationLibrary, darks: Darks, plan: DarkPlan, images: dict[Leg, Floats]
) -> MadeDark:
    """Make the dark of each of a plan's exposures, where it is not in `images` yet."""
    parts = []
    for leg in plan.legs:
        whole = dataclasses.replace(leg, share=1.0)
        if whole not in images:
            alone = dataclasses.replace(plan, legs=(whole,))
            images[whole] = darks.compose(alone, with_error=False).dark
        parts.append((leg.share, images[whole]))
    return MadeDark(plan, Mixed(tuple(parts)), library.master(plan.nearest.master_id))


def _plan(
    library: CalibrationLibrary, darks: Darks, group: CalibrationSet, frame: FiledFrame
) -> DarkPlan | None:
    record = dataclasses.replace(
        frame.record, frame_type=FrameType.FLAT, temperature_c=group.temperature_c
    )
    pool = candidates.darks(library, record, flat_darks=True)
    within_c = library.temperature_tolerance_c
    planned = dark_model.for_flat(pool, record, nearest_within_c=within_c)
    if planned is None:
        return None
    try:
        return darks.plan(
            pool,
            exposure_s=planned.exposure_s,
            temperature_c=planned.temperature_c,
            nearest_within_c=within_c,
        )
    except NoMatchingMasterError:
        return None
