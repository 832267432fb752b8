"""What a person asks of the library: use this master here, take that one in, believe this set."""

import datetime as dt
from collections.abc import Mapping
from pathlib import Path

from calib_library import foreign
from calib_library.catalogue import agenda, by_hand
from calib_library.catalogue.by_hand import Scope
from calib_library.dark_model import FORCED_C
from calib_library.errors import LibraryError
from calib_library.frame import FrameType
from calib_library.library import CalibrationLibrary
from daemon.masters import mark_changed, remade
from daemon.pipeline import Pipeline, night_of

FULL_SCALE = "full-scale"


def use(pipeline: Pipeline, master_id: int, words: Mapping[str, str], *, now: dt.datetime) -> None:
    """Use a master for a target or a frame whatever the rules say, or (0) go back to the rules, or
    have its dark extrapolated (`extrapolate` among the words); the stacks that change by it are
    made again. `words`: kind, and target or frame (its number).
    """
    kind = FrameType(words["kind"]) if words.get("kind") else None
    found = _subject(pipeline, words)
    if found is None:
        pipeline.log.warning("ORDER", "there is no such frame, or it was not read yet")
        return
    scope, subject, label = found
    try:
        with pipeline.ledger.transaction():
            if "extrapolate" in words:
                by_hand.force_dark(pipeline.library, scope=scope, subject=subject, now=now)
                told = (
                    f"the dark of {label} may be extrapolated by up to {FORCED_C:.0f} °C, by hand"
                )
            elif master_id:
                name = _use(pipeline, master_id, kind, scope, subject, now=now)
                told = f"{name}, chosen by hand for {label}"
            else:
                gone = by_hand.unuse(pipeline.library, kind, scope=scope, subject=subject)
                told = f"{gone} masters chosen by hand for {label} are given up: by the rules again"
            stale = mark_changed(pipeline, told)
    except LibraryError as error:
        pipeline.log.warning("ORDER", str(error))
        return
    pipeline.log.info("CHOSEN", f"{told}; {remade(stale)}")


def _use(
    pipeline: Pipeline,
    master_id: int,
    kind: FrameType | None,
    scope: Scope,
    subject: str,
    *,
    now: dt.datetime,
) -> str:
    """Record the choice; returns the kind and the name of the master."""
    master = pipeline.library.master(master_id)
    role = kind or (
        FrameType.DARK if master.frame_type is FrameType.FLAT_DARK else master.frame_type
    )
    if (role is FrameType.FLAT) != (master.frame_type is FrameType.FLAT):
        raise LibraryError(f"{master.name} cannot be used as a {role}.")
    by_hand.use(pipeline.library, master_id, role, scope=scope, subject=subject, now=now)
    return f"{role}: {master.name}"


def _subject(pipeline: Pipeline, words: Mapping[str, str]) -> tuple[Scope, str, str] | None:
    """What a choice is for, and how the log calls it; None for a frame that is not known."""
    if "frame" not in words:
        return "target", words["target"], f"the target {words['target']}"
    frame = pipeline.ledger.get(int(words["frame"]))
    if frame is None or frame.sha256 is None:
        return None
    return "frame", frame.sha256, f"the frame {frame.name}"


def accept(pipeline: Pipeline, set_id: int) -> None:
    """Let the next master of a set be unlike its predecessor: a person says that it is right."""
    try:
        agenda.accept(pipeline.library, set_id)
    except LibraryError as error:
        pipeline.log.warning("ORDER", str(error))
        return
    pipeline.log.info("ACCEPTED", f"set {set_id}: its master is built as its frames are")


def take_in(pipeline: Pipeline, words: Mapping[str, str], *, now: dt.datetime) -> None:
    """Import a master that another program made. `words`: path, and the options that were given."""
    path = Path(words["path"])
    try:
        found = examined(pipeline.library, words, pipeline.config.calibration.cameras)
        session = night_of(found.record.date_obs) if found.record.date_obs else ""
        with pipeline.ledger.transaction():
            master = foreign.take(found, pipeline.library, session=session, now=now)
            stale = mark_changed(pipeline, f"a better master has come: {master.path}")
    except (LibraryError, OSError) as error:
        pipeline.log.warning("IMPORT", f"{path.name} is not taken in: {error}")
        return
    for told in found.notes:
        pipeline.log.info("IMPORT", f"{path.name}: {told}")
    pipeline.log.info("IMPORT", f"{path.name} is {master.path}; {remade(stale)} with it")


def refusal(root: Path, words: Mapping[str, str], cameras: Mapping[str, str]) -> str | None:
    """Why a master of another program cannot be taken in, with what to give; None where it can."""
    try:
        with CalibrationLibrary.open(root, readonly=True) as library:
            examined(library, words, cameras)
    except (LibraryError, OSError) as error:
        return str(error)
    return None


def examined(
    library: CalibrationLibrary, words: Mapping[str, str], cameras: Mapping[str, str]
) -> foreign.Foreign:
    """What a master that is to be imported is. Raises LibraryError, OSError."""
    given = {name: word for name, word in words.items() if name not in {"path", FULL_SCALE}}
    scale = words.get(FULL_SCALE)
    return foreign.examine(
        Path(words["path"]),
        given,
        full_scale_adu=float(scale) if scale else None,
        library=library,
        cameras=cameras,
    )
