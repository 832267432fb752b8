"""What a person asks: take this frame out, let that one in, finish this target, use that master.

The daemon owns the database, so a command leaves its order as a small file in the library's
`orders` folder, and the worker carries it out. Where no daemon runs, the command does it itself.
"""

import dataclasses
import datetime as dt
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from calib_library import atomic
from daemon import finish, shelf
from daemon.ledger.stacks import Stack
from daemon.ledger.states import State
from daemon.light import quality
from daemon.parts import MEGABYTE, Parts

FOLDER = "orders"
FINISH_FROM_FRAMES = 3
"""With fewer frames there is nothing that the exact stack could reject better."""

FINISH_SHARE = 3
"""The tiles of the exact stack get this part of the budget; the growing ones keep theirs."""

BY_HAND = "taken out by hand"


class Action(StrEnum):
    """What can be asked."""

    REMOVE = "remove"
    READMIT = "readmit"
    FINISH = "finish"
    USE = "use"
    ACCEPT = "accept"
    IMPORT = "import"


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """One thing asked: of a frame (remove, readmit), of a stack (finish), of the library."""

    action: Action
    id: int
    """Of the frame, the stack, the master or the calibration set; 0 where there is none."""
    drizzle: bool = False
    """With the exact stack, one on a grid twice as fine."""
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What else an order to the library says, by name."""


def leave(root: Path, order: Order) -> None:
    """Write an order where the worker finds it. Raises OSError."""
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    text = json.dumps(dataclasses.asdict(order))
    atomic.write_bytes(folder / f"{uuid.uuid4().hex}.json", text.encode())


def waiting(root: Path) -> Iterator[tuple[Path, Order | None]]:
    """The orders that lie there, oldest first; None for a file that is none. The caller removes
    the file when the order is carried out.
    """
    try:
        names = [entry for entry in os.scandir(root / FOLDER) if entry.name.endswith(".json")]
    except FileNotFoundError:
        return
    for entry in sorted(names, key=lambda e: e.stat().st_mtime_ns):
        path = Path(entry.path)
        try:
            fields = json.loads(path.read_text())
            words = {str(name): str(word) for name, word in fields.get("words", {}).items()}
            action, drizzle = Action(fields["action"]), bool(fields["drizzle"])
            order = Order(action, int(fields["id"]), drizzle, words)
        except (ValueError, KeyError, TypeError, AttributeError):
            yield path, None
        else:
            yield path, order


def carry_out(parts: Parts, order: Order, *, now: dt.datetime) -> None:
    """Do what an order asks; what cannot be done is said in the log."""
    if order.action is Action.FINISH:
        stack = parts.stacks.find(order.id)
        if stack is None:
            parts.log.warning(
                "ORDER", f"there is no stack {order.id}: lightkeeper stack lists them"
            )
        else:
            finish_stack(parts, stack, drizzle=order.drizzle)
    elif order.action is Action.REMOVE:
        remove(parts, order.id, now=now)
    elif order.action is Action.USE:
        shelf.use(parts.pipeline, order.id, order.words, now=now)
    elif order.action is Action.ACCEPT:
        shelf.accept(parts.pipeline, order.id)
    elif order.action is Action.IMPORT:
        shelf.take_in(parts.pipeline, order.words, now=now)
    else:
        readmit(parts, order.id)


def finish_stack(parts: Parts, stack: Stack, *, drizzle: bool = False) -> None:
    """Make the exact stack of all members from their raw frames, and record it."""
    made = finish.finish(
        parts.pipeline,
        stack,
        memory_bytes=parts.config.stack.memory_mb * MEGABYTE // FINISH_SHARE,
        beat=parts.beat,
        drizzle=drizzle,
    )
    if made is None:
        return
    with parts.ledger.transaction():
        parts.stacks.finished(
            stack, path=str(made.path), generation=made.generation, frames=made.frames
        )
    finish.settle(parts.pipeline, made)


def finish_due(parts: Parts) -> None:
    """Make the exact stack of every stack that has grown since its last one."""
    for stack in parts.stacks.all():
        frames = len(parts.stacks.members(stack.id))
        if frames >= FINISH_FROM_FRAMES and frames != stack.final_frames and stack.stale is None:
            finish_stack(parts, stack)


def remove(parts: Parts, frame_id: int, *, now: dt.datetime) -> None:
    """Take a light out of its stack: recorded first, then out of the image in memory, at once.

    The image after un-stacking may differ in some pixels from one that never had the frame; when
    the worker has nothing else to do, it is made again from its members, exactly.
    """
    frame = parts.ledger.get(frame_id)
    if frame is None or frame.state is not State.STACKED or frame.stack_id is None:
        parts.log.warning("ORDER", f"frame {frame_id} is in no stack: nothing to take out")
        return
    stack = parts.stacks.get(frame.stack_id)
    members = parts.stacks.members(stack.id)
    member = next(one for one in members if one.frame_id == frame.id)
    last = len(members) == 1
    growing = parts.live.get(stack, members)
    with parts.ledger.transaction():
        parts.stacks.remove_member(frame.id)
        if last:
            parts.stacks.withdraw(stack)
        parts.ledger.finish(
            frame, State.REJECTED, now=now, reason=BY_HAND, stack_id=stack.id, by_hand="out"
        )
    parts.log.info("REMOVED", f"{stack.label}: {BY_HAND}", frame=frame.name)
    if last:
        parts.live.forget(stack.id)
        parts.publisher.clear(stack)
        return
    again = parts.pipeline.again(frame, member)
    if again is None or not growing.images:
        parts.live.forget(stack.id)
        return
    growing.remove(*again, member)


def readmit(parts: Parts, frame_id: int) -> None:
    """Let a rejected light into its stack after all: it goes its way again, its quality is not
    judged.
    """
    frame = parts.ledger.get(frame_id)
    if frame is None or frame.state is not State.REJECTED or frame.stack_id is None:
        parts.log.warning("ORDER", f"frame {frame_id} is no light left out of a stack")
        return
    parts.ledger.try_again(frame, by_hand="in")
    parts.log.info("READMIT", "it goes its way again", frame=frame.name)


def reconsider(parts: Parts) -> int:
    """Judge the lights that were left out for their quality again, by all frames that their stack
    has now; those that pass go their way again. Returns how many.
    """
    count = 0
    for stack in parts.stacks.all():
        history = [member.quality for member in parts.stacks.members(stack.id)]
        for frame, measured in parts.ledger.judged(stack.id):
            admitted, _ = quality.admit(quality.Quality(**json.loads(measured)), history)
            if admitted:
                parts.ledger.try_again(frame, by_hand=None)
                count += 1
    return count
