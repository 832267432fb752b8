"""The way of one frame, top to bottom: the only meeting of I/O and mathematics.

`Pipeline.process` reads a claimed frame, decides what it is, and either files it in the library or
calibrates, measures, registers and stacks it. It ends by recording the outcome in one transaction.
What can be wrong with a frame leaves as one of the exceptions of `daemon.errors`.
"""

import dataclasses
import datetime as dt
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt

from calib_library import header, image_io, inspect
from calib_library.errors import HeaderError, ImageError, IncompleteImageError
from calib_library.frame import FrameRecord, FrameType
from calib_library.library import CalibrationLibrary
from daemon.calibration import Calibration, Calibrator
from daemon.config import Config, WatchConfig
from daemon.errors import FrameDeferredError, FrameQuarantinedError, FrameRejectedError
from daemon.ledger.ledger import Explanation, Frame, Identity, Ledger
from daemon.ledger.stacks import Member, Photometry, Reference, Stacks
from daemon.ledger.states import State
from daemon.light import cosmic, debayer, quality, register, stars
from daemon.log import StatusLog
from daemon.stack import product
from daemon.stack.live import FrameTerms
from daemon.stack.store import LiveStacks

Image = npt.NDArray[np.float32]

PROPOSAL_CONFIDENCE = 0.8
"""A frame without a type is taken for what its pixels propose from this confidence on."""

COSMICS_BELOW_FRAMES = 4
"""Below this many frames the stack cannot reject by itself, so each frame is cleaned alone."""

REFERENCE_MIN_STARS = 10
"""A frame with fewer stars never becomes what others register to."""

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


@dataclasses.dataclass(frozen=True, slots=True)
class Light:
    """One calibrated and measured light."""

    image: Image
    """(planes, ny, nx) ADU."""
    mask: npt.NDArray[np.uint8]
    """(ny, nx): 1 bad, 2 saturated."""
    stars: stars.StarList
    cells: Image
    """(planes, cy, cx) ADU, the median cells of its background."""
    quality: quality.Quality
    calibration: Calibration
    cleaned: bool


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
        log: StatusLog,
    ) -> None:
        self.config = config
        self.library = library
        self.ledger = ledger
        self.stacks = stacks
        self.live = live
        self.calibrator = calibrator
        self.log = log
        self._watches: Mapping[Path, WatchConfig] = {watch.path: watch for watch in config.watch}

    # -- what is it? ------------------------------------------------------------------------

    def identify(self, info: image_io.ImageInfo, *, root: Path, mtime_ns: int) -> Identity:
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
        moment = record.date_obs or dt.datetime.fromtimestamp(mtime_ns / 1e9, dt.UTC)
        return Identity(record, header.target_name(record, relative), night_of(moment))

    # -- the recipe -------------------------------------------------------------------------

    def process(self, frame: Frame, *, now: dt.datetime) -> State:
        """Take a claimed frame to its end, and record it there. Returns the new state."""
        loaded = self._load(frame)
        twin = self.ledger.with_content(loaded.sha256, other_than=frame.id)
        if twin is not None:
            raise FrameRejectedError(f"the same content as {twin.name} (frame {twin.id})")
        try:
            identity = self.identify(loaded.info, root=frame.root, mtime_ns=loaded.mtime_ns)
        except HeaderError as error:
            raise FrameRejectedError(str(error)) from error
        explanation: Explanation = [explain_header(identity)]
        identity = self._inspect(identity, loaded, explanation)
        if identity.record.frame_type is FrameType.LIGHT:
            return self._light(frame, loaded, identity, explanation, now)
        return self._calibration_frame(frame, loaded, identity, explanation, now)

    def _load(self, frame: Frame) -> image_io.Loaded:
        try:
            loaded = image_io.load(frame.path)
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
        self, identity: Identity, loaded: image_io.Loaded, explanation: Explanation
    ) -> Identity:
        """Do the pixels agree with the label? Fills in a missing type from confident pixels."""
        record = identity.record
        if record.planes != 1:
            raise FrameRejectedError(
                "a colour image of three planes, not a raw frame: let the camera program save raw"
            )
        found = inspect.examine(loaded.pixels, record)
        levels = (
            f"median {found.median_adu:.1f} ADU, noise {found.sigma_adu:.1f} ADU, "
            f"{found.minimum:.0f} to {found.maximum:.0f}"
        )
        explanation.append(("Pixels", [levels, *found.reasons]))
        if found.verdict == "reject":
            raise FrameRejectedError("; ".join(found.reasons))
        if record.stack_count > STACKABLE or record.is_master or record.calibrated:
            raise FrameRejectedError(
                f"already combined or calibrated ({combined_how(record)}): "
                "only raw frames are filed and stacked"
            )
        if record.frame_type is None and found.proposed and found.confidence >= PROPOSAL_CONFIDENCE:
            record = dataclasses.replace(
                record,
                frame_type=found.proposed,
                sources={**record.sources, "frame_type": "pixels"},
            )
            explanation[-1][1].append(
                f"taken for a {found.proposed} (confidence {found.confidence:.0%})"
            )
        elif record.frame_type is None:
            raise FrameQuarantinedError(
                "its type cannot be told from header, path or pixels: set IMAGETYP in the camera "
                "program, or a type in the watched folder's pattern or defaults"
            )
        elif found.verdict == "quarantine":
            raise FrameQuarantinedError("; ".join(found.reasons))
        return dataclasses.replace(identity, record=record)

    def _calibration_frame(
        self,
        frame: Frame,
        loaded: image_io.Loaded,
        identity: Identity,
        explanation: Explanation,
        now: dt.datetime,
    ) -> State:
        """File a bias, dark, flat or flat-dark."""
        with self.ledger.transaction():
            set_id = self.library.file_frame(
                identity.record,
                sha256=loaded.sha256,
                path=frame.path,
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
        self.log.info("FILED", describe(identity.record), frame=frame.name)
        return State.FILED

    def _light(
        self,
        frame: Frame,
        loaded: image_io.Loaded,
        identity: Identity,
        explanation: Explanation,
        now: dt.datetime,
    ) -> State:
        """Calibrate, measure, register and stack one light."""
        began = time.perf_counter()
        record = identity.record
        choice = self.calibrator.choose(record, session=identity.night, now=now)
        if choice.pending_set is not None:
            self.ledger.finish(
                frame,
                State.WAITING,
                now=now,
                sha256=loaded.sha256,
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
        light = self.measure(loaded, record, choice, clean=self.cleans(len(members)))
        explanation.append(explain_stars(light))
        try:
            member, photometry, reference = self.place(
                frame,
                light,
                record,
                photometry=stack.photometry,
                history=[m.quality for m in members],
                reference=self.stacks.reference(stack.target, stack.camera),
            )
        except FrameRejectedError as error:
            self.ledger.finish(
                frame,
                State.REJECTED,
                now=now,
                reason=str(error),
                sha256=loaded.sha256,
                identity=identity,
                stack_id=stack.id,
                explanation=explanation,
            )
            self.log.warning(
                "REJECTED",
                f"{identity.target} {record.filter or ''}: {error}",
                frame=frame.name,
            )
            return State.REJECTED
        explanation.append(explain_place(member))

        # The live image first: if it fails, nothing is recorded and the frame is tried again. If
        # the commit fails, the image is forgotten and made again from the members.
        with self.live.adding(stack, members) as image:
            image.add(light.image, light.mask, member)
            with self.ledger.transaction():
                if reference is not None:
                    self.stacks.set_reference(stack.target, stack.camera, reference)
                self.stacks.add_member(stack, member, photometry)
                self.ledger.finish(
                    frame,
                    State.STACKED,
                    now=now,
                    sha256=loaded.sha256,
                    identity=identity,
                    stack_id=stack.id,
                    explanation=explanation,
                )
        if self.config.lights.keep_calibrated:
            self._keep(frame, identity, light)
        flags = f" ({', '.join(member.flags)})" if member.flags else ""
        self.log.info(
            "STACKED",
            f"{identity.target} {record.filter or 'no filter'}: frame {len(members) + 1}, "
            f"FWHM {light.quality.fwhm_px:.2f} px, {light.quality.stars} stars, "
            f"{time.perf_counter() - began:.2f} s{flags}",
            frame=frame.name,
        )
        return State.STACKED

    def _keep(self, frame: Frame, identity: Identity, light: Light) -> None:
        """Write the calibrated light as a file of its own, replacing what an earlier calibration
        of it left there.
        """
        record = identity.record
        folder = Path("calibrated") / identity.night / product.safe(identity.target)
        folder /= product.safe(record.filter or "nofilter")
        path = self.config.library.path / folder / f"{product.safe(frame.path.stem)}_c.fits"
        path.parent.mkdir(parents=True, exist_ok=True)
        image_io.write_fits(
            path,
            light.image if len(light.image) > 1 else light.image[0],
            product.calibrated_cards(record, light.calibration.ids(), frame.name),
            scale=self.config.stack.scale,
            pedestal_adu=product.pedestal_for(light.image, light.mask >= 0),
        )

    # -- parts that a replay and a rebuild share --------------------------------------------

    def cleans(self, frames: int) -> bool:
        """Is a frame cleaned of cosmic rays by itself, with so many in its stack already?"""
        mode = self.config.lights.clean_cosmics
        return mode == "always" or (mode == "auto" and frames < COSMICS_BELOW_FRAMES)

    def calibrated(
        self, loaded: image_io.Loaded, record: FrameRecord, calibration: Calibration, *, clean: bool
    ) -> tuple[Image, npt.NDArray[np.uint8]]:
        """Raw pixels → (planes, ny, nx) float32 ADU and the (ny, nx) uint8 mask.

        Everything that changes pixels before they are stacked happens here, from recorded
        decisions alone, so that a replay comes to the same bits.
        """
        result = self.calibrator.apply(loaded.pixels, record, calibration)
        if record.key.bayer_pattern:
            return debayer.debayer(result.image, record.key.bayer_pattern), result.mask
        image = result.image
        if clean:
            background = stars.measure_background(image)
            e_per_adu = record.e_per_adu or 1.0
            image, _ = cosmic.clean(
                image,
                e_per_adu=e_per_adu,
                sky_adu=background.level_adu,
                read_noise_e=background.sigma_adu * e_per_adu,
            )
        return image[np.newaxis], result.mask

    def measure(
        self, loaded: image_io.Loaded, record: FrameRecord, calibration: Calibration, *, clean: bool
    ) -> Light:
        """Calibrate a light, find its stars and its background."""
        clean = clean and record.key.bayer_pattern is None
        image, mask = self.calibrated(loaded, record, calibration, clean=clean)
        luminance = image[0] if len(image) == 1 else debayer.luminance(image)
        backgrounds = [stars.measure_background(plane) for plane in image]
        background = backgrounds[0] if len(image) == 1 else stars.measure_background(luminance)
        found = stars.detect(
            luminance, mask=mask, background=background, saturation_adu=record.saturation_adu
        )
        return Light(
            image=image,
            mask=mask,
            stars=found,
            cells=np.stack([plane.cells for plane in backgrounds]),
            quality=quality.measure(found, background),
            calibration=calibration,
            cleaned=clean,
        )

    def place(
        self,
        frame: Frame,
        light: Light,
        record: FrameRecord,
        *,
        photometry: Photometry | None,
        history: Sequence[quality.Quality],
        reference: Reference | None,
    ) -> tuple[Member, Photometry | None, Reference | None]:
        """Register a light and find the numbers it is added with. FrameRejectedError if it does
        not belong into the stack. The last two are set where the light begins its stack, or is
        the first of its target.
        """
        new_reference = None
        if reference is None:
            if light.quality.stars < REFERENCE_MIN_STARS:
                raise FrameRejectedError(
                    f"only {light.quality.stars} stars, too few to begin a stack with"
                )
            new_reference = reference = Reference(frame.id, light.stars)
        try:
            registration = register.register(
                light.stars, reference.stars, shape=light.image.shape[1:]
            )
        except register.RegistrationError as error:
            raise FrameRejectedError(f"cannot be registered: {error}") from error
        matrix = registration.matrix
        first = photometry if history else None
        measured = dataclasses.replace(light.quality, residual_px=registration.rms_px)
        scale, planes, begun = 1.0, [(0.0, 0.0, 0.0)] * len(light.image), None
        if first is None:
            measured = dataclasses.replace(
                measured, weight=quality.weight(1.0, measured.noise_adu, measured.fwhm_px)
            )
            begun = Photometry(light.stars, light.cells, matrix, measured)
        else:
            to_first = np.linalg.inv(first.matrix) @ matrix
            t = quality.transparency(light.stars, first.stars, to_first)
            scale = 1.0 / t
            planes = [
                moved_plane(
                    quality.background_plane(
                        cells, first_cells, to_first, scale, light.image.shape[1:]
                    ),
                    np.linalg.inv(first.matrix),
                )
                for cells, first_cells in zip(light.cells, first.cells, strict=True)
            ]
            measured = dataclasses.replace(
                measured,
                transparency=t,
                weight=quality.weight(t, measured.noise_adu, measured.fwhm_px),
            )
            admitted, reason = quality.admit(measured, history)
            if not admitted:
                raise FrameRejectedError(reason)
        terms = FrameTerms(
            index=len(history),
            weight=measured.weight,
            scale=scale,
            planes=tuple(planes),
            sigma_adu=measured.noise_adu * scale,
            e_per_adu=(record.e_per_adu or 1.0) / scale,
            sky_adu=measured.sky_adu,
            fwhm_px=measured.fwhm_px,
        )
        flags = (*light.calibration.flags, *(("cosmics cleaned",) if light.cleaned else ()))
        member = Member(
            frame_id=frame.id,
            exposure_s=record.exposure_s,
            matrix=matrix,
            terms=terms,
            quality=measured,
            masters=light.calibration.ids(),
            flags=flags,
        )
        return member, begun, new_reference


def moved_plane(
    plane: tuple[float, float, float], matrix: npt.NDArray[np.floating]
) -> tuple[float, float, float]:
    """The plane a + bx·x + by·y (ADU) of coordinates that `matrix` (affine, 3×3) leads to, as a
    plane of the coordinates it comes from.
    """
    a, bx, by = plane
    return (
        float(a + bx * matrix[0, 2] + by * matrix[1, 2]),
        float(bx * matrix[0, 0] + by * matrix[1, 0]),
        float(bx * matrix[0, 1] + by * matrix[1, 1]),
    )


def combined_how(record: FrameRecord) -> str:
    """Why a file is no raw frame, in a few words."""
    if record.stack_count > STACKABLE:
        return f"{record.stack_count} frames in one"
    return "a master" if record.is_master else f"CALSTAT {record.calibrated}"


def describe(record: FrameRecord) -> str:
    """A calibration frame in a few words: `dark 300 s, −10.1 °C`."""
    parts = [str(record.frame_type)]
    if record.exposure_s is not None:
        parts[0] += f" {record.exposure_s:g} s"
    if record.temperature_c is not None:
        parts.append(f"{record.temperature_c:.1f} °C")
    if record.frame_type is FrameType.FLAT and record.filter:
        parts.append(f"filter {record.filter}")
    return ", ".join(parts)


def explain_header(identity: Identity) -> tuple[str, list[str]]:
    """How the header was read: each field with the keyword that gave it."""
    record = identity.record
    lines = []
    for field, source in sorted(record.sources.items()):
        value: object
        if field == "binning":
            value = f"{record.key.xbinning}×{record.key.ybinning}"
        else:
            value = getattr(record, field, None) or getattr(record.key, field, None)
        if value is not None:
            lines.append(f"{field} = {value}  (from {source})")
    lines.append(f"target = {identity.target}, night = {identity.night}")
    return "Header", [*lines, *record.warnings]


def explain_stars(light: Light) -> tuple[str, list[str]]:
    """What was measured on the calibrated light."""
    q = light.quality
    return "Measured", [
        f"{q.stars} stars, FWHM {q.fwhm_px:.2f} px, eccentricity {q.eccentricity:.2f}",
        f"sky {q.sky_adu:.1f} ADU, noise {q.noise_adu:.2f} ADU a pixel",
    ]


def explain_place(member: Member) -> tuple[str, list[str]]:
    """Where the light lies in its stack and what it counts."""
    m = member.matrix
    angle = float(np.degrees(np.arctan2(m[1, 0], m[0, 0])))
    return "Stack", [
        f"registered: shift ({m[0, 2]:+.2f}, {m[1, 2]:+.2f}) px, rotation {angle:+.3f}°",
        f"transparency {member.quality.transparency or 1.0:.3f}, weight {member.terms.weight:.4g}",
        *(f"flag: {flag}" for flag in member.flags),
    ]
