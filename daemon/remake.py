"""Making a stack again: from recorded decisions after a restart, from new ones when better masters
have come.
"""

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence

from daemon import explain, placing
from daemon.calibration import Image, Mask
from daemon.errors import FrameRejectedError
from daemon.ledger.ledger import Explanation, Frame
from daemon.ledger.stacks import Member, Photometry, Reference, Stack
from daemon.ledger.states import State
from daemon.pipeline import Pipeline
from daemon.stack.store import Growing

Beat = Callable[[str], None]
"""Tells the supervisor that work goes on, and at what."""

HEAD = 2
"""The first parts of a light's explanation, header and pixels, do not change."""


def replay(
    pipeline: Pipeline, stack: Stack, members: Sequence[Member], beat: Beat
) -> Iterator[tuple[Image, Mask, Member]]:
    """The calibrated frames of a stack again, exactly as they were added: recorded masters,
    recorded numbers. A frame whose raw file is gone or has changed is left out, and the log says
    so.
    """
    if len(members) > 1:
        pipeline.log.info("REPLAY", f"{stack.label}: {len(members)} frames into memory again")
    for position, member in enumerate(members, start=1):
        beat(f"replaying {stack.label}, frame {position} of {len(members)}")
        frame = pipeline.ledger.get(member.frame_id)
        if position < len(members):
            following = pipeline.ledger.get(members[position].frame_id)
            if frame is not None and following is not None:
                pipeline.reader.ahead(frame.path, [following.path])
        found = pipeline.again(frame, member) if frame else None
        if found is not None:
            yield *found, member
        del found  # a frame's memory is free before the next needs as much


@dataclasses.dataclass(frozen=True, slots=True)
class Remade:
    """What making a stack again came to."""

    members: Sequence[Member]
    explanations: Mapping[int, Explanation]
    """frame id → its explanation, of members and rejected frames."""
    rejected: Sequence[tuple[Frame, str]]
    reference: Reference | None
    """Set where the star list that others register to was renewed."""
    photometry: Photometry | None


def remake(pipeline: Pipeline, stack: Stack, growing: Growing, *, beat: Beat) -> Remade:
    """Work all lights of a stack again with the masters there are now, into `growing` (mutated).

    Nothing is recorded here: the caller commits what is returned together with the product.
    """
    members: list[Member] = []
    explanations: dict[int, Explanation] = {}
    rejected: list[tuple[Frame, str]] = []
    renewed: Reference | None = None
    photometry: Photometry | None = None
    reference = pipeline.stacks.reference(stack.target, stack.camera)
    first_id = reference.frame_id if reference is not None else None
    # The frame that all register to comes first, so that its star list is renewed before the
    # others are matched with it.
    frames = sorted(pipeline.ledger.of_stack(stack.id), key=lambda frame: frame.id != first_id)
    frames = [frame for frame in frames if frame.by_hand != "out"]
    for position, frame in enumerate(frames, start=1):
        beat(f"making {stack.label} again, frame {position} of {len(frames)}")
        loaded = pipeline.raw(frame)
        if loaded is None or frame.record is None:
            rejected.append((frame, "its raw file is gone or has changed"))
            continue
        choice = pipeline.calibrator.choose(
            frame.record,
            session=frame.night or "",
            now=None,
            target=frame.target,
            sha256=frame.sha256,
        )
        choice = pipeline.calibrator.settle(loaded.pixels, frame.record, choice)
        choice = pipeline.calibrator.without_wrong_flat(loaded.pixels, frame.record, choice)
        light = pipeline.measure(
            pipeline.calibrator.apply(loaded.pixels, frame.record, choice),
            frame.record,
            choice,
            clean=pipeline.cleans(len(members)),
        )
        steps = [*frame.explanation[:HEAD], *choice.explanation, explain.measured(light)]
        explanations[frame.id] = steps
        if reference is not None and frame.id == reference.frame_id:
            reference = renewed = Reference(
                frame.id, light.stars, placing.small_of(light), frame.record
            )
        try:
            found = placing.place(
                frame.id,
                light,
                frame.record,
                photometry=photometry,
                members=members,
                reference=reference,
                forced=frame.by_hand == "in",
            )
        except FrameRejectedError as error:
            rejected.append((frame, str(error)))
            continue
        steps.append(explain.place(found))
        photometry = found.begun or photometry
        if found.reference is not None:
            reference = renewed = found.reference
        members.append(found.member)
        growing.add(light.image, light.mask, found.member)
    return Remade(members, explanations, rejected, renewed, photometry)


def record(pipeline: Pipeline, stack: Stack, made: Remade, *, now: dt.datetime) -> None:
    """Record what `remake` came to; joins the caller's transaction."""
    if made.reference is not None:
        pipeline.stacks.set_reference(stack.target, stack.camera, made.reference)
    pipeline.stacks.replace_members(stack, made.members, made.photometry)
    outcomes: list[tuple[int, State, str | None]] = [
        (member.frame_id, State.STACKED, None) for member in made.members
    ]
    outcomes += [(frame.id, State.REJECTED, reason) for frame, reason in made.rejected]
    for frame_id, state, reason in outcomes:
        frame = pipeline.ledger.get(frame_id)
        if frame is not None:
            pipeline.ledger.finish(
                frame,
                state,
                now=now,
                reason=reason,
                stack_id=stack.id,
                explanation=made.explanations.get(frame_id),
            )
