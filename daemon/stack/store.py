"""The growing images in memory, and their written products.

What lasts is in the ledger: the members of each stack, with the numbers they were added with. The
image in memory is a function of them; one that is not in memory (after a restart, or because the
memory went to another stack) is made again by replaying its members from the raw frames.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from daemon.ledger.stacks import Member, Stack
from daemon.stack import halve, live

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
Replay = Callable[[Stack, Sequence[Member]], Iterator[tuple[Image, Mask, Member]]]
"""Gives the calibrated (planes, ny, nx) image and the mask of each member again, in order."""


@dataclasses.dataclass
class Growing:
    """One stack's image in memory. `add` mutates it."""

    memory_bytes: int
    """The budget that chooses how many undecided values a pixel keeps."""
    image: live.LiveStack | None = None
    depth: live.Depth | None = None
    frames: list[int] = dataclasses.field(default_factory=list)
    """The frame ids it holds, in order."""
    exposure_s: float = 0.0
    exact: bool = True
    """Whether it is bit for bit what a replay of its members gives; not after un-stacking."""
    unpublished: int = 0
    """Frames added since the product was written."""

    def add(self, image: Image, mask: Mask, member: Member) -> None:
        """Register and accumulate one calibrated frame, (planes, ny, nx) ADU."""
        if self.image is None:
            planes, ny, nx = image.shape
            self.depth = live.depth_for((planes, ny, nx), self.memory_bytes)
            shape = (planes, ny // 2, nx // 2) if self.halved else image.shape
            self.image = live.LiveStack.empty(shape, high=self.depth.high, low=self.depth.low)
        pixels, mask, matrix, terms, distortion = self._sized(image, mask, member)
        live.add(self.image, pixels, matrix, terms, distortion=distortion, mask=mask)
        self.frames.append(member.frame_id)
        self.exposure_s += member.exposure_s or 0.0
        self.unpublished += 1

    def remove(self, image: Image, mask: Mask, member: Member) -> None:
        """Take a frame out again, given what it was added with. ValueError where the stack is
        empty.
        """
        if self.image is None:
            raise ValueError("the stack is empty: nothing can be taken out of it")
        pixels, mask, matrix, terms, distortion = self._sized(image, mask, member)
        live.remove(self.image, pixels, matrix, terms, distortion=distortion, mask=mask)
        self.frames.remove(member.frame_id)
        self.exposure_s -= member.exposure_s or 0.0
        self.unpublished += 1
        self.exact = False

    @property
    def halved(self) -> bool:
        """Whether there is no memory for all pixels: the image is of half the frames' size."""
        return self.depth is not None and self.depth.half_size

    def _sized(
        self, image: Image, mask: Mask, member: Member
    ) -> tuple[Image, Mask, Matrix, live.FrameTerms, Matrix | None]:
        """A frame as it enters the image: pixels, mask, matrix, terms, distortion."""
        if not self.halved:
            return image, mask, member.matrix, member.terms, member.distortion
        matrix, distortion = halve.place(member.matrix, member.distortion)
        return *halve.image(image, mask), matrix, halve.terms(member.terms), distortion

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.image.nbytes if self.image is not None else 0


class LiveStacks:
    """The images in memory, the most recently used last, within a budget of bytes."""

    def __init__(self, *, memory_bytes: int, replay: Replay) -> None:
        self._memory_bytes = memory_bytes
        self._replay = replay
        self._stacks: collections.OrderedDict[int, Growing] = collections.OrderedDict()

    def __contains__(self, stack_id: int) -> bool:
        return stack_id in self._stacks

    def get(self, stack: Stack, members: Sequence[Member]) -> Growing:
        """The image of exactly these members; replayed where it is not in memory."""
        wanted = [member.frame_id for member in members]
        growing = self._stacks.get(stack.id)
        if growing is None or growing.frames != wanted:
            growing = Growing(self._memory_bytes)
            for image, mask, member in self._replay(stack, members):
                growing.add(image, mask, member)
                del image, mask  # free before the next frame needs as much
            # A member whose raw file is gone was left out with a word by `replay`; it stays a
            # member, so that it comes back with its file.
            growing.frames = wanted
            growing.unpublished = abs(len(members) - stack.published_frames)
            self._stacks[stack.id] = growing
        self._stacks.move_to_end(stack.id)
        self._make_room(stack.id)
        return growing

    @contextlib.contextmanager
    def adding(self, stack: Stack, members: Sequence[Member]) -> Iterator[Growing]:
        """The image to add a frame to. Where the block fails, the image is forgotten, so that it
        never holds a frame that the ledger does not know.
        """
        try:
            yield self.get(stack, members)
        except BaseException:
            self.forget(stack.id)
            raise
        self._make_room(stack.id)

    def hand_over(self, stack_id: int, old_id: int, new_id: int) -> None:
        """A frame takes the place of another whose pixels are the same: the image stays."""
        growing = self._stacks.get(stack_id)
        if growing is not None:
            growing.frames = [new_id if one == old_id else one for one in growing.frames]

    def put(self, stack_id: int, growing: Growing) -> None:
        """Take over an image that was made anew."""
        self._stacks[stack_id] = growing
        self._stacks.move_to_end(stack_id)
        self._make_room(stack_id)

    def forget(self, stack_id: int) -> None:
        """Drop an image from memory."""
        self._stacks.pop(stack_id, None)

    def inexact(self) -> list[int]:
        """Stacks from which frames were taken out since they were last replayed."""
        return [stack_id for stack_id, growing in self._stacks.items() if not growing.exact]

    def unpublished(self) -> dict[int, Growing]:
        """Stacks in memory that hold frames which their written product does not."""
        return {key: growing for key, growing in self._stacks.items() if growing.unpublished}

    def _make_room(self, keep: int) -> None:
        """Drop the least recently used images that are published, then others, to the budget."""
        while len(self._stacks) > 1 and self._total() > self._memory_bytes:
            victim = next(key for key in self._stacks if key != keep)
            del self._stacks[victim]

    def _total(self) -> int:
        return sum(growing.nbytes for growing in self._stacks.values())
