"""When a growing stack is written down, and the one transaction that makes it the product."""

import dataclasses
import datetime as dt
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from calib_library import atomic
from calib_library.frame import FrameRecord
from calib_library.library import CalibrationLibrary
from daemon.calibration import masters_in
from daemon.config import Config
from daemon.ledger.ledger import Ledger
from daemon.ledger.stacks import Member, Stack, Stacks
from daemon.log import StatusLog
from daemon.report import preview
from daemon.stack import holes, live, product
from daemon.stack.store import Growing, LiveStacks

PREVIEW_EVERY_S = 5.0
"""The picture follows the frames at most this often (s)."""

BACKLOG_EVERY_S = 60.0
"""The same, for products too, while more frames are waiting already: of an archive nobody looks at
every step, and each costs as much as a light."""

ALWAYS_UP_TO_FRAMES = 8
"""A young stack is written after every frame; later ones when they have grown by a quarter, so that
200 frames write some twenty generations and not two hundred: memory cards wear out."""

GROWTH = 1.25

QUIET_S = 900.0
"""A stack that has not grown for so long (s) is written, whatever it lacks: longer than any single
exposure, else every frame would write it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """A generation that lies on disk."""

    stack: Stack
    """As it was before: its path is the generation to delete."""
    image: live.StackImage
    path: Path
    """Relative to the library, as is the link."""
    link: Path
    generation: int
    frames: int
    exposure_s: float


class Publisher:
    """Writes stacks. Used by the worker's thread alone."""

    def __init__(
        self,
        *,
        config: Config,
        ledger: Ledger,
        library: CalibrationLibrary,
        stacks: Stacks,
        live_stacks: LiveStacks,
        log: StatusLog,
    ) -> None:
        self._config = config
        self._root = config.library.path
        self._ledger = ledger
        self._library = library
        self._stacks = stacks
        self._live = live_stacks
        self._log = log
        self._grown_at: dict[int, tuple[int, float]] = {}
        self._pictured: dict[int, tuple[int, float]] = {}

    def tick(
        self,
        now: dt.datetime,
        *,
        flush: bool = False,
        backlog: bool = False,
        archive: bool = False,
    ) -> None:
        """Write what is due: pictures within seconds, products as the constants above say; with
        `flush` everything that is not written yet. `backlog`: more frames wait to be stacked;
        `archive`: no more are to come, and nobody waits to see the first one.
        """
        moment = time.monotonic()
        every_s = BACKLOG_EVERY_S if backlog else PREVIEW_EVERY_S
        for stack_id, growing in self._live.unpublished().items():
            count = len(growing.frames)
            seen, grown_at = self._grown_at.get(stack_id, (-1, moment))
            if seen != count:
                grown_at = moment
                self._grown_at[stack_id] = (count, moment)
            stack = self._stacks.get(stack_id)
            due = (
                flush
                or count <= ALWAYS_UP_TO_FRAMES
                or count >= GROWTH * stack.published_frames
                or moment - grown_at > QUIET_S
            )
            if backlog and archive:
                self._pictured.setdefault(stack_id, (-1, moment))
            pictured, pictured_at = self._pictured.get(stack_id, (-1, -math.inf))
            if due and (flush or moment - pictured_at >= every_s):
                self.publish(stack, growing, now=now)
                self._pictured[stack_id] = (count, moment)
            elif pictured != count and moment - pictured_at >= every_s:
                self._picture(stack, growing)
                self._pictured[stack_id] = (count, moment)

    def publish(self, stack: Stack, growing: Growing, *, now: dt.datetime) -> None:
        """Write the next generation of a stack, then move the ledger's pointer to it."""
        product = self.write(stack, growing, self._stacks.members(stack.id))
        if product is None:
            return
        with self._ledger.transaction():
            self.point(product, now=now)
        self.settle(product, growing)

    def write(self, stack: Stack, growing: Growing, members: Sequence[Member]) -> "Product | None":
        """Write the next generation to disk, whole; nothing points at it yet. None where there is
        no image: every frame of it was taken out.
        """
        image = rendered(growing)
        if image is None:
            return None
        generation = stack.generation + 1
        stem = product.stem_of(stack, self._stacks.all())
        folder = product.folder_of(stack)
        path = folder / f"{stem}_v{generation:04d}.fits"
        record, names = self._frames(members)
        record = product.binned(record, growing.edge)
        cards = product.cards_for(
            stack,
            members,
            record,
            generation=generation,
            names=names,
            masters=self._masters(members),
            settings=self._settings(growing),
        )
        product.write(self._root, path, image, cards, scale=self._config.stack.scale)
        return Product(
            stack,
            image,
            path,
            folder / f"{stem}.fits",
            generation,
            len(members),
            sum(member.exposure_s or 0.0 for member in members),
        )

    def point(self, made: "Product", *, now: dt.datetime) -> None:
        """Move the ledger's pointer to a written generation; joins the caller's transaction."""
        self._stacks.publish(
            made.stack,
            generation=made.generation,
            path=str(made.path),
            frames=made.frames,
            exposure_s=made.exposure_s,
            now=now,
        )

    def settle(self, made: "Product", growing: Growing) -> None:
        """After the commit: the link, the picture, and the generation before goes."""
        stack = made.stack
        growing.unpublished = 0
        product.link_newest(self._root, made.link, made.path)
        if stack.path and stack.path != str(made.path):
            (self._root / stack.path).unlink(missing_ok=True)
        self._write_picture(stack, made.image)
        self._log.info(
            "STACK",
            f"{stack.label}: {made.frames} frames, {made.exposure_s:.0f} s, "
            f"generation {made.generation}: {made.path}",
        )

    def clear(self, stack: Stack) -> None:
        """After the ledger has let go of a stack's product, whose last frame was taken out: all its
        files go.
        """
        stem = product.stem_of(stack, self._stacks.all())
        folder = self._root / product.folder_of(stack)
        for kind in (".fits", ".png", "_v*.fits", "_final*", "_drizzle.*"):
            for path in folder.glob(stem + kind):
                path.unlink()

    def _picture(self, stack: Stack, growing: Growing) -> None:
        image = rendered(growing)
        if image is not None:
            self._write_picture(stack, image)

    def _write_picture(self, stack: Stack, image: live.StackImage) -> None:
        stem = product.stem_of(stack, self._stacks.all())
        product.write_preview(
            self._root,
            product.folder_of(stack) / f"{stem}.png",
            image,
            max_px=self._config.stack.preview_px,
        )

    def _frames(self, members: Sequence[Member]) -> tuple[FrameRecord, list[str]]:
        frames = [self._ledger.get(member.frame_id) for member in members]
        names = [frame.name for frame in frames if frame is not None]
        record = next(frame.record for frame in frames if frame is not None and frame.record)
        return record, names

    def _masters(self, members: Sequence[Member]) -> list[str]:
        ids = set().union(*(masters_in(member.masters) for member in members))
        return [Path(self._library.master(i).path).name for i in sorted(ids)]

    def _settings(self, growing: Growing) -> str:
        depth = growing.depth
        kept = f"extremes {depth.high}/{depth.low}, " if depth else ""
        kept += {1: "", 2: "half size, ", 4: "quarter size, "}[growing.edge]
        return f"{kept}gate 4 sigma, cosmics {self._config.lights.clean_cosmics}"

    def colour(self) -> None:
        """Where a target has red, green and blue stacks in memory: one picture of all three."""
        by_target: dict[tuple[str, str], dict[str, Stack]] = {}
        for stack in self._stacks.all():
            by_target.setdefault((stack.target, stack.camera), {})[stack.filter] = stack
        for (target, _), filters in by_target.items():
            channels = _channels(filters)
            if channels is None:
                continue
            images = []
            for stack in channels:
                image = rendered(self._live.get(stack, self._stacks.members(stack.id)))
                if image is not None:
                    images.append(image)
            if len(images) == len(channels):
                covered = np.minimum.reduce([image.coverage for image in images])
                picture = preview.png(
                    preview.compose(*(image.mean[0] for image in images)),
                    coverage=covered,
                    max_px=self._config.stack.preview_px,
                )
                relative = (
                    Path("stacks") / product.safe(target) / f"{product.safe(target)}_colour.png"
                )
                atomic.write_bytes(self._root / relative, picture)
                self._log.info("COLOUR", f"{target}: {relative}")


def rendered(growing: Growing) -> live.StackImage | None:
    """The stack as it is written and shown, small holes filled; None without a frame."""
    image = growing.render()
    if image is None:
        return None
    return dataclasses.replace(image, mean=holes.fill(image.mean, image.coverage))


def _channels(filters: Mapping[str, Stack]) -> tuple[Stack, Stack, Stack] | None:
    """The stacks that make a colour picture: R, G, B, or S, H, O, or H, O, O."""
    for names in (("R", "G", "B"), ("S", "H", "O"), ("H", "O", "O")):
        if all(name in filters for name in names):
            red, green, blue = (filters[name] for name in names)
            return red, green, blue
    return None
