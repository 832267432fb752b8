"""The way of one frame, top to bottom: the only meeting of I/O and mathematics.

`Pipeline.process` reads a claimed frame, decides what it is, and either files it in the library or
calibrates, measures, registers and stacks it. It ends by recording the outcome in one transaction.
What can be wrong with a frame leaves as one of the exceptions of `daemon.errors`.
"""

import dataclasses
import datetime as dt
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calib_library import header, inspect
from calib_library.catalogue import by_hand, cameras, filing
from calib_library.errors import HeaderError, ImageError, IncompleteImageError
from calib_library.frame import FrameRecord, FrameType
from calib_library.images import frame_file
from calib_library.images.structure import ImageInfo
from calib_library.library import CalibrationLibrary
from daemon import explain, kept, placing, rewritten
from daemon.calibration import Calibration, Calibrator, useful_pixels
from daemon.config import Config, WatchConfig
from daemon.errors import FrameDeferredError, FrameQuarantinedError, FrameRejectedError
from daemon.ledger import conditions
from daemon.ledger.ledger import Explanation, Frame, Identity, Ledger
from daemon.ledger.stacks import Member, Stacks
from daemon.ledger.states import State
from daemon.light import background, calibrate, cosmic, debayer, quality, stars
from daemon.light.background import Background
from daemon.log import StatusLog
from daemon.placing import Light
from daemon.reader import Reader
from daemon.selfcheck import SelfCheck
from daemon.stack.store import LiveStacks

Image = npt.NDArray[np.float32]

COSMICS_BELOW_FRAMES = 8
"""Below this many frames the stack cannot reject by itself, so each frame is cleaned alone."""

STACKABLE = 1
"""Frames combined in a raw light."""


def night_of(moment: dt.datetime) -> str:
    """The local date of the evening in whose night (noon to noon) a moment lies."""
    return (moment.astimezone() - dt.timedelta(hours=12)).date().isoformat()


def stack_camera(record: FrameRecord) -> str:
    """What must be equal among the lights of one stack: camera, geometry, binning, pattern."""
    key = record.key
    parts = (key.camera, key.width, key.height, key.xbinning, key.ybinning, key.bayer_pattern)
    return "|".join("-" if part is None else str(part) for part in parts)


class _Started(NamedTuple):
    """A light, as far as it goes while its file is still being hashed."""

    began: float
    """s, of `time.perf_counter`."""
    choice: Calibration
    calibrated: calibrate.Calibrated | None
    """None where it waits for a master."""


class Pipeline:
    """The collaborators of one frame's way. Used by the worker's thread alone."""

    def __init__(
        self,
        *,
        config: Config,
        library: CalibrationLibrary,
        ledger: Ledger,
        stacks: Stacks,
        live: LiveStacks,
        calibrator: Calibrator,
        reader: Reader,
        log: StatusLog,
    ) -> None:
        self.config = config
        self.library = library
        self.ledger = ledger
        self.stacks = stacks
        self.live = live
        self.calibrator = calibrator
        self._selfcheck = SelfCheck(calibrator, library)
        self.reader = reader
        self.log = log
        self._watches: Mapping[Path, WatchConfig] = {watch.path: watch for watch in config.watch}

    # -- what is it? ------------------------------------------------------------------------

    def identify(self, info: ImageInfo, *, root: Path, mtime_ns: int) -> Identity:
        """The record, target and night that a header and a path tell; HeaderError if they refuse
        (a focus frame, a guide frame).
        """
        watch = self._watches.get(root)
        path = PurePath(info.path)
        relative = path.relative_to(root) if path.is_relative_to(root) else PurePath(path.name)
        pattern = watch.pattern if watch else None
        defaults = dict(watch.defaults) if watch else {}
        record = header.parse(
            info.cards,
            shape=info.shape,
            storage=info.storage,
            path=relative,
            pattern=pattern,
            defaults=defaults,
        )
        record = header.with_camera(record, self.config.calibration.cameras)
        moment = record.date_obs or dt.datetime.fromtimestamp(mtime_ns / 1e9, dt.UTC)
        return Identity(record, header.target_name(record, relative), night_of(moment))

    # -- the recipe -------------------------------------------------------------------------

    def process(self, frame: Frame, *, now: dt.datetime) -> State:
        """Take a claimed frame to its end, and record it there. Returns the new state."""
        loaded = self._load(frame)
        explanation: Explanation = []
        mark, old, same, started = "", None, False, None
        try:  # while the file is still being hashed: nothing is recorded yet
            identity = self._recognised(frame, loaded, explanation)
            is_light = identity.record.frame_type is FrameType.LIGHT
            if is_light:
                identity = self._with_gain(identity)
                mark = rewritten.mark_of(loaded.pixels)
                old, same = self._stacked_before(frame, mark, identity.record)
            if is_light and not same:
                started = self._start(loaded, identity, now)
        finally:  # of a copy nothing else is said, whatever may be wrong with it
            self._refuse_copy(frame, loaded)
        if started is not None:
            return self._light(
                frame, loaded, identity, explanation, now, started, old=old, mark=mark
            )
        if old is not None:
            return self._once(frame, loaded, identity, explanation, now, old=old, mark=mark)
        return self._calibration_frame(frame, loaded, identity, explanation, now)

    def _recognised(
        self, frame: Frame, loaded: frame_file.Loaded, explanation: Explanation
    ) -> Identity:
        """What the header tells and the pixels agree to. Nothing is recorded."""
        try:
            identity = self.identify(loaded.info, root=frame.root, mtime_ns=loaded.mtime_ns)
        except HeaderError as error:
            raise FrameRejectedError(str(error)) from error
        explanation.append(explain.header(identity))
        return self._inspect(identity, loaded, explanation)

    def _refuse_copy(self, frame: Frame, loaded: frame_file.Loaded) -> None:
        """Wait for the file's hash; is another frame of this content counted already?"""
        twin = self.ledger.with_content(loaded.sha256, other_than=frame.id)
        if twin is not None:
            raise FrameRejectedError(f"the same content as {twin.name} (frame {twin.id})")

    def _load(self, frame: Frame) -> frame_file.Loaded:
        try:
            loaded = self.reader.load(frame.path)
        except IncompleteImageError as error:
            raise FrameDeferredError(str(error)) from error
        except ImageError as error:
            raise FrameRejectedError(str(error)) from error
        except FileNotFoundError as error:
            raise FrameDeferredError("the file is gone", retry_s=600) from error
        except OSError as error:
            raise FrameDeferredError(f"cannot be read: {error.strerror}") from error
        if (loaded.size, loaded.mtime_ns) != (frame.size, frame.mtime_ns):
            raise FrameDeferredError("the file has changed since it was found")
        return loaded

    def _inspect(
        self, identity: Identity, loaded: frame_file.Loaded, explanation: Explanation
    ) -> Identity:
        """Do the pixels agree with the label? Fills in a missing type from confident pixels."""
        record = identity.record
        if record.planes != 1:
            raise FrameRejectedError(
                "a colour image of three planes, not a raw frame: let the camera program save raw"
            )
        found = inspect.examine(loaded.pixels, record)
        explanation.append(("Pixels", list(found.sentences())))
        if found.verdict == "reject":
            raise FrameRejectedError(" ".join(found.reasons))
        if record.stack_count > STACKABLE or record.is_master or record.calibrated:
            raise FrameRejectedError(
                f"already combined or calibrated ({explain.combined_how(record)}): "
                "only raw frames are filed and stacked"
            )
        if found.verdict == "quarantine":
            raise FrameQuarantinedError(" ".join(found.reasons))
        if record.frame_type is None:
            # The verdict is ok: the pixels are sure enough of what they propose.
            record = dataclasses.replace(
                record,
                frame_type=found.proposed,
                sources={**record.sources, "frame_type": "pixels"},
            )
        return dataclasses.replace(identity, record=record)

    def _calibration_frame(
        self,
        frame: Frame,
        loaded: frame_file.Loaded,
        identity: Identity,
        explanation: Explanation,
        now: dt.datetime,
    ) -> State:
        """File a bias, dark, flat or flat-dark."""
        with self.ledger.transaction():
            set_id = filing.file_frame(
                self.library,
                identity.record,
                sha256=loaded.sha256,
                path=frame.path,
                version=(loaded.size, loaded.mtime_ns),
                session=identity.night,
                now=now,
            )
            explanation.append(("Library", [f"filed in calibration set {set_id}"]))
            self.ledger.finish(
                frame,
                State.FILED,
                now=now,
                sha256=loaded.sha256,
                identity=identity,
                explanation=explanation,
            )
        self.log.info("FILED", explain.describe(identity.record), frame=frame.name)
        return State.FILED

    def _start(self, loaded: frame_file.Loaded, identity: Identity, now: dt.datetime) -> _Started:
        """Choose the masters of a light, and apply them if they are those it shall have."""
        began = time.perf_counter()
        record = identity.record
        # Hardly ever does a person choose for a single frame: then the hash is waited for.
        chosen = by_hand.for_single_frames(self.library)
        choice = self.calibrator.choose(
            record,
            session=identity.night,
            now=now,
            target=identity.target,
            sha256=loaded.sha256 if chosen else None,
        )
        if choice.pending_set is not None:
            return _Started(began, choice, None)
        choice = self.calibrator.settle(loaded.pixels, record, choice)
        choice = self.calibrator.without_wrong_flat(loaded.pixels, record, choice)
        return _Started(began, choice, self.calibrator.apply(loaded.pixels, record, choice))

    def _light(
        self,
        frame: Frame,
        loaded: frame_file.Loaded,
        identity: Identity,
        explanation: Explanation,
        now: dt.datetime,
        started: _Started,
        *,
        old: Frame | None,
        mark: str,
    ) -> State:
        """Measure, register and stack one light; it stands for `old`, whose file was written
        anew.
        """
        record, choice = identity.record, started.choice
        if started.calibrated is None:
            self.ledger.finish(
                frame,
                State.WAITING,
                now=now,
                sha256=loaded.sha256,
                pixels=mark,
                identity=identity,
                waits_for=choice.pending_set,
                explanation=explanation,
                reason="its master is about to be built",
            )
            return State.WAITING
        explanation.extend(choice.explanation)

        stack = self.stacks.open(
            target=identity.target,
            filter_=record.filter or "",
            camera=stack_camera(record),
            camera_name=record.key.camera,
        )
        members = self.stacks.members(stack.id)
        if old is not None and old.stack_id is not None:
            members = [one for one in members if one.frame_id != old.id]
            self.live.forget(old.stack_id)  # it holds what is counted no more
        light = self.measure(started.calibrated, record, choice, clean=self.cleans(len(members)))
        explanation.append(explain.measured(light))
        checked = self._selfcheck.look(useful_pixels(loaded.pixels, record.key), record, light)
        if checked.lines:
            explanation.append(("Calibration check", list(checked.lines)))
        try:
            found = placing.place(
                frame.id,
                light,
                record,
                photometry=stack.photometry,
                members=members,
                reference=self.stacks.reference(stack.target, stack.camera),
                no_light=checked.no_light,
                forced=frame.by_hand == "in",
            )
        except FrameRejectedError as error:
            measured = error.quality if isinstance(error, placing.NotAdmittedError) else None
            reason = str(error)
            if measured is not None and choice.subtracted is None:
                reason += " (no dark or bias was subtracted from it)"
            with self.ledger.transaction():
                self._replaced(old, frame, now)
                changed = conditions.note(self.ledger.db, checked.findings, now=now)
                self.ledger.finish(
                    frame,
                    State.REJECTED,
                    now=now,
                    reason=reason,
                    sha256=loaded.sha256,
                    pixels=mark,
                    identity=identity,
                    stack_id=stack.id,
                    explanation=explanation,
                    quality=json.dumps(dataclasses.asdict(measured)) if measured else None,
                )
            self.log.warning(
                "REJECTED",
                f"{identity.target} {record.filter or ''}: {reason}",
                frame=frame.name,
            )
            self._say(changed)
            return State.REJECTED
        member = found.member
        explanation.append(explain.place(found))

        # Before the commit: after it, a death would leave the frame without this file for good.
        if self.config.lights.keep_calibrated:
            kept.write(self.config, self.calibrator, frame, identity, light, loaded.pixels)
        # The live image first: if it fails, nothing is recorded and the frame is tried again. If
        # the commit fails, the image is forgotten and made again from the members.
        with self.live.adding(stack, members) as image:
            image.add(light.image, light.mask, member)
            if image.edge > 1 and not members:
                self.log.info("MEMORY", image.smaller(light.image.shape))
            with self.ledger.transaction():
                self._replaced(old, frame, now)
                if found.reference is not None:
                    self.stacks.set_reference(stack.target, stack.camera, found.reference)
                self.stacks.add_member(stack, member, found.begun)
                changed = conditions.note(self.ledger.db, checked.findings, now=now)
                self.ledger.finish(
                    frame,
                    State.STACKED,
                    now=now,
                    sha256=loaded.sha256,
                    pixels=mark,
                    identity=identity,
                    stack_id=stack.id,
                    explanation=explanation,
                )
        flags = f" ({', '.join(member.flags)})" if member.flags else ""
        self.log.info(
            "STACKED",
            f"{identity.target} {record.filter or 'no filter'}: frame {len(members) + 1}, "
            f"FWHM {light.quality.fwhm_px:.2f} px, {light.quality.stars} stars, "
            f"{time.perf_counter() - started.began:.2f} s{flags}",
            frame=frame.name,
        )
        self._say(changed)
        return State.STACKED

    def _stacked_before(
        self, frame: Frame, mark: str, record: FrameRecord
    ) -> tuple[Frame | None, bool]:
        """The light in a stack of which this is a later version or a copy, and whether the picture
        is the same; (None, False) for what is no such thing, as nearly every frame.
        """
        for old in self.ledger.stacked_before(frame, record.date_obs):
            if rewritten.same_picture(mark, record, old):
                return old, True
            if old.path == frame.path and rewritten.same_exposure(record, old.record):
                return old, False
        return None, False

    def _once(
        self,
        frame: Frame,
        loaded: frame_file.Loaded,
        identity: Identity,
        explanation: Explanation,
        now: dt.datetime,
        *,
        old: Frame,
        mark: str,
    ) -> State:
        """End a light whose picture is in a stack already: it takes the place of the earlier
        version of its file; a copy is left out.
        """
        copy = old.path != frame.path and old.path.exists()
        state = State.REJECTED if copy else State.STACKED
        reason = f"the same picture as {old.name} (frame {old.id}), with another header"
        if copy:
            explanation.append(("Stack", [reason]))
        else:
            explanation.append(("Stack", [f"{reason}: it has its place in the stack"]))
        with self.ledger.transaction():
            if not copy:
                self.stacks.hand_over(old.id, frame.id)
                self._replaced(old, frame, now)
            self.ledger.finish(
                frame,
                state,
                now=now,
                reason=reason if copy else None,
                sha256=loaded.sha256,
                pixels=mark,
                identity=identity,
                stack_id=old.stack_id,
                explanation=explanation,
            )
        if copy:
            self.log.warning("REJECTED", reason, frame=frame.name)
        else:
            if old.stack_id is not None:
                self.live.hand_over(old.stack_id, old.id, frame.id)
            self.log.info("SAME", f"{reason}: it keeps its place", frame=frame.name)
        return state

    def _replaced(self, old: Frame | None, new: Frame, now: dt.datetime) -> None:
        """The earlier version of a frame's file counts no more; joins the caller's transaction."""
        if old is None or old.stack_id is None:
            return
        stack = self.stacks.get(old.stack_id)
        self.stacks.remove_member(old.id)
        if not self.stacks.members(stack.id):
            self.stacks.withdraw(stack)
        reason = f"its file was written anew: frame {new.id} stands for it"
        # Of no stack: one that is made again must not look for the pixels that are gone.
        self.ledger.finish(old, State.REJECTED, now=now, reason=reason)

    def _say(self, changed: Sequence[conditions.Condition]) -> None:
        """One line when a condition begins, one when it is over."""
        for one in changed:
            if one.over:
                self.log.info("CHECK", f"over: {one.kind} of {one.subject}")
            else:
                self.log.warning("CHECK", one.sentence)

    def _with_gain(self, identity: Identity) -> Identity:
        """Where the header has no e-/ADU, that which was measured of the camera. It is recorded
        with the frame, so that a replay uses the same.
        """
        record = identity.record
        if record.e_per_adu is not None:
            return identity
        gain = cameras.gain(self.library, record.key, record.row_order)
        if gain is None:
            return identity
        record = dataclasses.replace(
            record,
            e_per_adu=gain.value,
            sources={**record.sources, "e_per_adu": "the camera as it was measured"},
        )
        return dataclasses.replace(identity, record=record)

    # -- parts that a replay and a rebuild share --------------------------------------------

    def cleans(self, frames: int) -> bool:
        """Is a frame cleaned of cosmic rays by itself, with so many in its stack already?"""
        mode = self.config.lights.clean_cosmics
        return mode == "always" or (mode == "auto" and frames < COSMICS_BELOW_FRAMES)

    def calibrated(
        self,
        loaded: frame_file.Loaded,
        record: FrameRecord,
        calibration: Calibration,
        *,
        clean: bool,
    ) -> tuple[Image, npt.NDArray[np.uint8]]:
        """Raw pixels → (ny, nx) float32 ADU, of a colour camera still a mosaic, and the (ny, nx)
        uint8 mask.

        Everything that changes pixels before they are stacked happens here, from recorded
        decisions alone, so that a replay comes to the same bits.
        """
        result = self.calibrator.apply(loaded.pixels, record, calibration)
        if clean and record.key.bayer_pattern is None:
            self._clean(result.image, record)
        return result.image, result.mask

    def _clean(self, image: Image, record: FrameRecord) -> Background:
        """Clean a calibrated (ny, nx) image of cosmic rays, in place. Returns the sky as it was
        before: it leaves them out, and is the frame's with and without them.
        """
        sky = background.measure_background(image)
        e_per_adu = record.e_per_adu or 1.0
        cosmic.clean(
            image,
            e_per_adu=e_per_adu,
            sky_adu=sky.level_adu,
            read_noise_e=cosmic.read_noise(sky.sigma_adu, sky.level_adu, e_per_adu),
            saturation_adu=record.saturation_adu,
            out=image,
        )
        return sky

    def raw(self, frame: Frame) -> frame_file.Loaded | None:
        """The raw file of a frame that was stacked; None, and a line in the log, where it is gone
        or has changed since.
        """
        try:
            loaded = self.reader.load(frame.path)
        except (ImageError, OSError) as error:
            self.log.warning("MISSING", f"cannot be read again: {error}", frame=frame.name)
            return None
        if loaded.sha256 != frame.sha256:
            self.log.warning("MISSING", "has changed since it was stacked", frame=frame.name)
            return None
        return loaded

    def again(self, frame: Frame, member: Member) -> tuple[Image, npt.NDArray[np.uint8]] | None:
        """A member's calibrated (ny, nx) image and mask once more, exactly as it was added; None
        where its raw file is gone or has changed.
        """
        loaded = self.raw(frame)
        if loaded is None or frame.record is None:
            return None
        return self.calibrated(
            loaded,
            frame.record,
            self.calibrator.recorded(member.masters),
            clean="cosmics cleaned" in member.flags,
        )

    def measure(
        self,
        calibrated: calibrate.Calibrated,
        record: FrameRecord,
        calibration: Calibration,
        *,
        clean: bool,
    ) -> Light:
        """Find the stars and the background of a light as `calibrator.apply` gives it; it is
        cleaned of cosmic rays first, in place, where that is asked.
        """
        image, mask = calibrated.image, calibrated.mask
        pattern = record.key.bayer_pattern
        clean = clean and pattern is None
        sky = self._clean(image, record) if clean else None
        if pattern is None:
            luminance, cells = image, background.cell_means(image)[np.newaxis]
        else:
            luminance, cells = debayer.luminance(
                image, pattern, grid=background.cell_grid(image.shape)
            )
        if sky is None:
            sky = background.measure_background(luminance)
        found = stars.detect(
            luminance, mask=mask, background=sky, saturation_adu=record.saturation_adu
        )
        return Light(
            image=image,
            mask=mask,
            pattern=pattern,
            stars=found,
            cells=cells,
            quality=quality.measure(found, sky),
            calibration=calibration,
            cleaned=clean,
        )
