"""Building the masters whose sets are complete and quiet, and what follows from a new one."""

import contextlib
import datetime as dt
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from calib_library import build, defects, flat_darks
from calib_library.catalogue import agenda, cameras, candidates, registry
from calib_library.catalogue.records import BuiltMaster, CalibrationSet, FiledFrame
from calib_library.errors import LibraryError
from calib_library.frame import FrameType
from calib_library.images.row_reader import RowReader
from daemon import memory, storage
from daemon.explain import describe
from daemon.ledger.stacks import Member
from daemon.pipeline import Pipeline

Beat = Callable[[str], None]

TELEGRAPH_MOST = 60
"""Darks in which jumping pixels are looked for: more tell no more."""


def build_due(pipeline: Pipeline, *, now: dt.datetime, quiet_s: float, beat: Beat) -> int:
    """Build every master that is due. Each is one transaction: the master registered, its
    predecessor superseded, waiting lights released, stacks that get better marked stale.

    Returns how many were built.
    """
    settings = pipeline.config.calibration
    due = agenda.due_sets(pipeline.library, now, min_frames=settings.min_frames, quiet_s=quiet_s)
    built = 0
    for one in due:
        built += _build(pipeline, one, now=now, beat=beat)
    if built:
        memory.give_back()
    return built


def _build(pipeline: Pipeline, one: CalibrationSet, *, now: dt.datetime, beat: Beat) -> bool:
    frames = pipeline.library.frames_of(one.id)
    label = f"master {describe(frames[0].record)} from {len(frames)} frames"
    beat(f"building {label}")
    try:
        pedestals = candidates.pedestals(pipeline.library, one, frames)
        darks = flat_darks.for_flats(pipeline.library, one, frames, pedestals)
        made = build.build(
            one,
            frames,
            root=pipeline.config.library.path,
            generation=registry.next_generation(pipeline.library, one.id),
            subtract=pedestals,
            made=darks,
            predecessor=candidates.predecessor(pipeline.library, one),
            sigma=pipeline.config.calibration.sigma,
            progress=lambda part: beat(f"building {label}: {part:.0%}"),
        )
    except (LibraryError, OSError) as error:
        if storage.kind_of(error) in storage.EVERYBODYS:
            raise
        pipeline.log.error("MASTER", f"{label} could not be built: {error}")
        # The lights that wait for it go on with what there is; the set is tried again when
        # another frame joins it.
        with pipeline.ledger.transaction():
            agenda.build_failed(pipeline.library, one.id, str(error), now)
            pipeline.ledger.release_waiting([one.id])
        return False
    jumping = _telegraph(pipeline, one, frames, made, label=label)
    with pipeline.ledger.transaction():
        master = registry.register(pipeline.library, made, now)
        if jumping is not None:
            registry.keep_telegraph(
                pipeline.library,
                master.id,
                pixels=defects.pack_pixels(jumping),
                found=len(jumping),
                frames=min(made.frames, TELEGRAPH_MOST),
            )
        released = pipeline.ledger.release_waiting([one.id])
        stale = mark_changed(pipeline, f"a better master has come: {master.path}")
    for reason in made.notes:
        pipeline.log.warning("MASTER", f"{label}: {reason}")
    follows = [] if jumping is None else [f"{len(jumping)} pixels jump (telegraph noise)"]
    follows += list(dict.fromkeys(dark.told for dark in darks.values()))[:1]
    follows += [f"{released} waiting lights go on"] if released else []
    follows += [f"{remade(stale)} with it"] if stale else []
    pipeline.log.info("MASTER", "; ".join([f"{label}: {master.path}", *follows]))
    return True


def _telegraph(
    pipeline: Pipeline,
    one: CalibrationSet,
    frames: Sequence[FiledFrame],
    made: BuiltMaster,
    *,
    label: str,
) -> npt.NDArray[np.int64] | None:
    """The pixels that jump from dark to dark, where the master has enough frames to tell."""
    used = {entry.sha256 for entry in made.inputs if entry.left_out is None}
    if one.frame_type is not FrameType.DARK or len(used) < defects.TELEGRAPH_FRAMES:
        return None
    gain = cameras.gain(pipeline.library, one.key, one.row_order)
    try:
        with contextlib.ExitStack() as stack:
            return defects.find_telegraph(
                [
                    stack.enter_context(RowReader(frame.path))
                    for frame in [f for f in frames if f.sha256 in used][-TELEGRAPH_MOST:]
                ],
                e_per_adu=gain.value if gain else None,
            )
    except (LibraryError, OSError) as error:
        pipeline.log.warning("MASTER", f"{label}: its jumping pixels were not looked for: {error}")
        return None


def release(pipeline: Pipeline, *, now: dt.datetime, quiet_s: float) -> int:
    """Let the lights go on whose set will not become a master after all: it stayed too small.

    Returns how many.
    """
    settings = pipeline.config.calibration
    hopeless = []
    for set_id in pipeline.ledger.awaited_sets():
        one = pipeline.library.set(set_id)
        quiet = (now - one.last_filed_at).total_seconds() > quiet_s
        coming = one.changed and one.refused is None and one.n_frames >= settings.min_frames
        if quiet and not coming:
            hopeless.append(set_id)
    return pipeline.ledger.release_waiting(hopeless) if hopeless else 0


def remade(stale: int) -> str:
    """Tell how many stacks follow a change."""
    return f"{stale or 'no'} stack{'' if stale == 1 else 's'} will be made again"


def mark_changed(pipeline: Pipeline, why: str) -> int:
    """Mark the stacks stale of which a member would now be calibrated otherwise; joins the
    caller's transaction. Returns how many.
    """
    stale = 0
    for stack in pipeline.stacks.all():
        if any(_would_change(pipeline, member) for member in pipeline.stacks.members(stack.id)):
            pipeline.stacks.mark_stale(stack.id, why)
            stale += 1
    return stale


def _would_change(pipeline: Pipeline, member: Member) -> bool:
    frame = pipeline.ledger.get(member.frame_id)
    if frame is None or frame.record is None:
        return False
    return pipeline.calibrator.would_change(
        frame.record,
        member.masters,
        session=frame.night or "",
        target=frame.target,
        sha256=frame.sha256,
    )
