"""The growing images in memory, and their written products.

What lasts is in the ledger: the members of each stack, with the numbers they were added with. The
image in memory is a function of them; one that is not in memory (after a restart, or because the
memory went to another stack) is made again by replaying its members from the raw frames.
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from daemon.ledger.stacks import Member, Stack
from daemon.light import debayer
from daemon.stack import halve, live

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
SIZES = {2: "half", 4: "a quarter of"}
"""Of a stack with one pixel for so many by so many."""
Replay = Callable[[Stack, Sequence[Member]], Iterator[tuple[Image, Mask, Member]]]
"""Gives the calibrated (ny, nx) image and the mask of each member again, in order."""


@dataclasses.dataclass
class Growing:
    """One stack's image in memory. `add` mutates it."""

    memory_bytes: int
    """The budget that chooses how many undecided values a pixel keeps."""
    pattern: str | None = None
    """Of the frames' mosaic, `RGGB`…; None: monochrome."""
    room: Callable[[int], None] = lambda _: None
    """Called with the bytes that it will hold, before it takes them."""
    images: tuple[live.LiveStack, ...] = ()
    """One of all planes; where a mosaic's stack is smaller than its frames, one of each colour."""
    depth: live.Depth | None = None
    frames: list[int] = dataclasses.field(default_factory=list)
    """The frame ids it holds, in order."""
    exposure_s: float = 0.0
    exact: bool = True
    """Whether it is bit for bit what a replay of its members gives; not after un-stacking."""
    unpublished: int = 0
    """Frames added since the product was written."""

    def add(self, image: Image, mask: Mask, member: Member) -> None:
        """Register and accumulate one calibrated frame (ny, nx), ADU: grey, or the mosaic."""
        if not self.images:
            self._begin(image.shape[0], image.shape[1])
        for stack, one in zip(self.images, self._sized(image, mask, member), strict=True):
            live.add(
                stack, one.image, one.matrix, one.terms, distortion=one.distortion, mask=one.mask
            )
        self.frames.append(member.frame_id)
        self.exposure_s += member.exposure_s or 0.0
        self.unpublished += 1

    def remove(self, image: Image, mask: Mask, member: Member) -> None:
        """Take a frame out again, given what it was added with. ValueError where the stack is
        empty.
        """
        if not self.images:
            raise ValueError("the stack is empty: nothing can be taken out of it")
        for stack, one in zip(self.images, self._sized(image, mask, member), strict=True):
            live.remove(
                stack, one.image, one.matrix, one.terms, distortion=one.distortion, mask=one.mask
            )
        self.frames.remove(member.frame_id)
        self.exposure_s -= member.exposure_s or 0.0
        self.unpublished += 1
        self.exact = False

    def render(self) -> live.StackImage | None:
        """The stack as it is now (`live.render`); None without a frame."""
        if not self.images:
            return None
        _, ny, nx = self.images[0].shape
        made = live.empty_image((self._planes, ny, nx))
        first = 0
        for stack in self.images:
            part = slice(first, first + stack.shape[0])
            # The coverage is that of the plane with the most: they share it.
            arrays = made.mean[part], made.weight[part], made.variance[part], made.coverage
            live.render(stack, into=live.StackImage(*arrays))
            first = part.stop
        return made

    @property
    def edge(self) -> int:
        """One pixel of the image is so many by so many of the frames': more than one where there is
        no memory for all of them.
        """
        return self.depth.edge if self.depth is not None else 1

    def smaller(self, shape: tuple[int, ...]) -> str:
        """A sentence on a stack that is smaller than its frames of `shape` (ny, nx)."""
        whole = live.memory_for((self._planes, shape[0], shape[1]), *live.DEPTHS[-1])
        ny, nx = self.images[0].shape[1:]
        return (
            f"the stack grows at {SIZES[self.edge]} the size, {nx} × {ny} px: for all pixels "
            f"[stack] memory_mb must be {math.ceil(whole / 1e6)}. The final stack is of full size"
        )

    @property
    def _planes(self) -> int:
        return 1 if self.pattern is None else 3

    def _begin(self, ny: int, nx: int) -> None:
        """Make room for frames of that size."""
        self.depth = high, low, edge = live.depth_for((self._planes, ny, nx), self.memory_bytes)
        pixels = self._planes * (ny // edge) * (nx // edge)
        self.room((live.BYTES_FIXED + live.BYTES_WAITING * (high + low)) * pixels)
        each = [1] * self._planes if edge > 1 else [self._planes]
        self.images = tuple(
            live.LiveStack.empty((planes, ny // edge, nx // edge), high=high, low=low)
            for planes in each
        )

    def _sized(self, image: Image, mask: Mask, member: Member) -> list[halve.Sized]:
        """A frame as it enters each of the images."""
        numbers = member.matrix, member.terms, member.distortion
        if self.pattern is None:
            whole = halve.Sized(image[np.newaxis], mask, *numbers)
            return [whole if self.edge == 1 else halve.grey(whole, self.edge)]
        if self.edge == 1:
            return [halve.Sized(debayer.debayer(image, self.pattern), mask, *numbers)]
        return halve.colours(image, mask, self.pattern, *numbers, edge=self.edge)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(image.nbytes for image in self.images)

    @property
    def most_bytes(self) -> int:
        """The same with the deepest buffers, which it has where there is more memory."""
        pixels = sum(math.prod(image.shape) for image in self.images)
        return (live.BYTES_FIXED + live.BYTES_WAITING * sum(live.DEPTHS[0])) * pixels


class LiveStacks:
    """The images in memory, the most recently used last, within a budget of bytes."""

    def __init__(
        self, *, memory_bytes: int, replay: Replay, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        """`tell` is called with a sentence when a stack comes back that had to make room: once, and
        again where more memory is missing than was told.
        """
        self._memory_bytes = memory_bytes
        self._replay = replay
        self._tell = tell
        self._evicted: dict[int, int] = {}
        self._told_mb = 0
        self._stacks: collections.OrderedDict[int, Growing] = collections.OrderedDict()

    def __contains__(self, stack_id: int) -> bool:
        return stack_id in self._stacks

    def get(self, stack: Stack, members: Sequence[Member]) -> Growing:
        """The image of exactly these members; replayed where it is not in memory."""
        wanted = [member.frame_id for member in members]
        growing = self._stacks.get(stack.id)
        if growing is None or growing.frames != wanted:
            if stack.id in self._evicted:
                self._say_short(stack, len(members))
                del self._evicted[stack.id]
            self.forget(stack.id)  # before it is held twice
            growing = self.begin(stack)
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

    def begin(self, stack: Stack) -> Growing:
        """An empty image of a stack, for which others make room when its first frame comes."""

        def room(more: int) -> None:
            self._make_room(stack.id, more)

        return Growing(self._memory_bytes, stack.bayer_pattern, room)

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

    def _make_room(self, keep: int, more: int = 0) -> None:
        """Drop the least recently used images until the others and `more` bytes fit the budget."""
        while self._total() + more > self._memory_bytes:
            victim = next((key for key in self._stacks if key != keep), None)
            if victim is None:
                return
            self._evicted[victim] = self._stacks[victim].most_bytes
            del self._stacks[victim]

    def _say_short(self, stack: Stack, frames: int) -> None:
        """Say what to do where stacks make room for each other in turn."""
        others = {key: size for key, size in self._evicted.items() if key not in self._stacks}
        here = sum(one.most_bytes for one in self._stacks.values())
        together = math.ceil((here + sum(others.values())) / 1e6)
        if together <= self._told_mb:
            return
        self._told_mb = together
        growing = next((one for one in self._stacks.values() if one.images), None)
        smaller = ""
        if growing is not None and growing.edge == 1:
            planes, ny, nx = growing.images[0].shape
            least = live.memory_for((planes, ny, nx), *live.DEPTHS[-1])
            smaller = f", or below {math.floor(least / 1e6)}, with which they grow at half the size"
        self._tell(
            f"{stack.label} had to make room for another stack, and its {frames} frames are read "
            f"again: this takes long with every change of filter. [stack] memory_mb should be "
            f"{together}{smaller}"
        )

    def _total(self) -> int:
        return sum(growing.nbytes for growing in self._stacks.values())
