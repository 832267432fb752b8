"""Which masters a light gets, and their application: the daemon's hand on the library."""

import collections
import dataclasses
import datetime as dt
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from calib_library import compare, defects, flat, master_file, match, overscan
from calib_library.catalogue import agenda, by_hand, candidates, registry
from calib_library.catalogue.by_hand import Choice
from calib_library.catalogue.records import CalibrationSet
from calib_library.dark_model import DarkPlan
from calib_library.frame import CalibrationKey, FrameRecord, FrameType
from calib_library.library import CalibrationLibrary
from calib_library.match import MasterRecord
from daemon.darkroom import HOT_THRESHOLDS_ADU, STEPS_PER_OCTAVE, DarkChoice, DarkRoom, key_of
from daemon.ledger.ledger import Explanation
from daemon.light import calibrate
from daemon.light.noise import neighbour_noise

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
D = TypeVar("D", bound=np.generic)

KEPT_DARKS = 2
KEPT_IMAGES = 3
"""Arrays kept in memory: the darks of two temperatures, between which a sensor may flicker, with
their bad pixels, and flats of three filters. Where memory is short, one dark."""

KEPT_EDGES = 64
"""Five numbers each."""

REFUSED_FLAT = "refused flat"
"""Among the recorded masters: the flat that this light was not divided by …"""
REFUSED_SKY_FLAT = "refused sky flat"
"""… and the one whose large scale it had."""

DEAD = 255
"""The mark of a pixel that is bad for any frame."""


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """The masters chosen for one light, and why."""

    dark: MasterRecord | None
    """Of several that are combined the one that counts most."""
    bias: MasterRecord | None
    """Only where there is no dark (which contains the bias)."""
    flat: MasterRecord | None
    flags: tuple[str, ...]
    """What is missing, in words: the stack's header and the log carry them."""
    explanation: Explanation
    pending_set: int | None = None
    """A set that is about to become a better master than the one chosen here."""
    refused_flat: int | None = None
    """The flat that would have been used, had it not contradicted the light's own sky."""
    refused_sky_flat: int | None = None
    """Its `sky_flat`."""

    sky_flat: MasterRecord | None = None
    """The twilight's flat that gives `flat`, one of the dome, its large scale."""
    making: DarkChoice | None = None
    """How the dark is made; None where `dark` is subtracted as it is."""
    noise_adu: float | None = None
    """Noise of one raw pixel of the light, ADU, where its pixels were asked already."""

    @property
    def subtracted(self) -> DarkPlan | MasterRecord | None:
        """What is taken off the raw pixels first."""
        if self.making is not None and self.making.model is not None:
            return self.making.model
        return self.dark or self.bias

    def ids(self) -> dict[str, Any]:
        """What a replay needs to apply the same masters again, in plain values for JSON."""
        masters = {
            "dark": self.dark.id if self.dark else None,
            "bias": self.bias.id if self.bias else None,
            "flat": self.flat.id if self.flat else None,
        }
        further = {
            "sky_flat": self.sky_flat.id if self.sky_flat else None,
            REFUSED_FLAT: self.refused_flat,
            REFUSED_SKY_FLAT: self.refused_sky_flat,
        }
        masters |= {name: number for name, number in further.items() if number is not None}
        return masters | (self.making.as_dict() if self.making else {})


def masters_in(masters: Mapping[str, Any]) -> set[int]:
    """Every master (id) that went into a light which was calibrated by these `Calibration.ids`."""
    kinds = ("dark", "bias", "flat", "sky_flat")
    found = {masters[kind] for kind in kinds if masters.get(kind) is not None}
    making = DarkChoice.from_dict(masters)
    if making is not None and making.model is not None:
        found |= {source.master_id for source in making.model.sources}
    return found


def _flats_considered(masters: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The flat and the sky flat that the rules gave a light, whether or not its own pixels refused
    them afterwards: they would do so again.
    """
    return (
        masters.get("flat") or masters.get(REFUSED_FLAT),
        masters.get("sky_flat") or masters.get(REFUSED_SKY_FLAT),
    )


class Arrays(NamedTuple):
    """What is applied to a frame, (ny, nx) each; None where there is nothing."""

    dark: Image | None
    """ADU; or a bias."""
    flat: Image | None
    """Normalised."""
    bad: Mask | None
    """Bad are the pixels above `bad_above`."""
    bad_above: int

    def rows(self, first: int, last: int) -> "Arrays":
        """The same for rows first … last of the frame."""
        return Arrays(
            None if self.dark is None else self.dark[first:last],
            None if self.flat is None else self.flat[first:last],
            None if self.bad is None else self.bad[first:last],
            self.bad_above,
        )


class Calibrator:
    """Chooses masters by `match` and applies them; keeps the last arrays in memory."""

    def __init__(
        self,
        library: CalibrationLibrary,
        *,
        root: Path,
        min_frames: int,
        quiet_s: Callable[[], float],
        kept_darks: int = KEPT_DARKS,
    ) -> None:
        self.kept_darks = kept_darks
        self._library = library
        self._root = root
        self._min_frames = min_frames
        self._quiet_s = quiet_s
        self._darkroom = DarkRoom(
            library, root=root, temperature_tolerance_c=library.temperature_tolerance_c
        )
        self._darks: _Kept[Image] = _Kept(kept_darks)
        self._images: _Kept[Image] = _Kept(KEPT_IMAGES)
        self._masks: _Kept[Mask] = _Kept(kept_darks)
        self._edges: _Kept[npt.NDArray[np.float64]] = _Kept(KEPT_EDGES)

    def choose(
        self,
        record: FrameRecord,
        *,
        session: str,
        now: dt.datetime | None,
        target: str | None = None,
        sha256: str | None = None,
    ) -> Calibration:
        """The best masters there are for a light of the night `session`; those that a person chose
        for its `target` or for the frame itself (`sha256`) go before all others.

        With `now`, `pending_set` names a set that will soon give a master that is missing.
        """
        chosen = by_hand.chosen(self._library, target=target, sha256=sha256)
        flags = [f"{kind} chosen by hand" for kind in chosen]
        dark: MasterRecord | None = None
        explanation: Explanation = []
        making, missing = None, []
        # What a person chose is applied as it is; a bias chosen so takes the dark's place.
        if FrameType.DARK in chosen:
            dark, explanation = self._one(record, FrameType.DARK, session, chosen)
        elif FrameType.BIAS not in chosen:
            dark, explanation = self.match(record, FrameType.DARK, session)
            forced = by_hand.is_dark_forced(self._library, target=target, sha256=sha256)
            making = self._darkroom.choose(record, forced=forced)
            if making is not None:
                dark = self._principal(making)
                alone = [("Darks, each by itself", lines) for _, lines in explanation]
                explanation = [("Dark", list(making.lines)), *alone]
                flags += making.flags
                # A dark that is only the best there is is worth waiting for a better.
                missing += [FrameType.DARK] if making.flags else []
        bias = None
        if dark is None:
            missing += [] if FrameType.BIAS in chosen or missing else [FrameType.DARK]
            bias, more = self._one(record, FrameType.BIAS, session, chosen)
            explanation += more
            flags.append("no dark, bias only" if bias else "no dark")
            missing += [] if bias else [FrameType.BIAS]
        chosen_flat, more = self._one(record, FrameType.FLAT, session, chosen)
        explanation += more
        sky_flat = None
        if chosen_flat is not None and FrameType.FLAT not in chosen:
            chosen_flat, sky_flat, more = self._dome_with_sky(record, session, chosen_flat)
            explanation += more
        if chosen_flat is None:
            flags.append("no flat")
            missing.append(FrameType.FLAT)
        pending = None
        if now is not None:
            found = (self._pending(record, kind, session, now) for kind in missing)
            pending = next((one.id for one in found if one is not None), None)
        return Calibration(
            dark,
            bias,
            chosen_flat,
            tuple(flags),
            explanation,
            pending,
            sky_flat=sky_flat,
            making=making,
        )

    def settle(
        self, pixels: npt.NDArray[np.generic], record: FrameRecord, choice: Calibration
    ) -> Calibration:
        """What `choose` chose from records, once the light's raw (ny, nx) pixels were asked. What
        is found is recorded in what this returns, so that a replay comes to the same bits.

        Raises LibraryError where a master cannot be read.
        """
        if choice.making is None or choice.making.model is None:
            return choice
        noise_adu = _raw_noise(pixels, record)
        making = self._darkroom.settle(pixels, noise_adu, record, choice.making)
        flags = [flag for flag in choice.flags if flag not in choice.making.flags]
        explanation = [
            ("Dark", list(making.lines)) if part[0] == "Dark" else part
            for part in choice.explanation
        ]
        dark, bias = self._principal(making), None
        if dark is None:
            bias, more = self.match(record, FrameType.BIAS, "")
            explanation += more
            flags.append("no dark, bias only" if bias else "no dark")
        return dataclasses.replace(
            choice,
            dark=dark,
            bias=bias,
            flags=(*making.flags, *flags),
            explanation=explanation,
            making=making,
            noise_adu=noise_adu,
        )

    def would_change(
        self,
        record: FrameRecord,
        masters: Mapping[str, Any],
        *,
        session: str,
        target: str | None = None,
        sha256: str | None = None,
    ) -> bool:
        """Whether a light that was calibrated by these `Calibration.ids` would now be calibrated
        otherwise.
        """
        now = self.choose(record, session=session, now=None, target=target, sha256=sha256)
        before = DarkChoice.from_dict(masters)
        ids = now.ids()
        if _flats_considered(ids) != _flats_considered(masters):
            return True
        if before is None or now.making is None:
            pedestals = any(ids[kind] != masters.get(kind) for kind in ("dark", "bias"))
            return pedestals or (before is None) != (now.making is None)
        # The light's own pixels had their say in the dark: it would be another only if others were
        # considered for it.
        making = self._darkroom.choose(record, fitted_c=before.fitted_c, forced=now.making.forced)
        considered = making.considered if making is not None else ()
        return considered != before.considered

    def _principal(self, making: DarkChoice) -> MasterRecord | None:
        return self._library.master(making.model.nearest.master_id) if making.model else None

    def _one(
        self,
        record: FrameRecord,
        kind: FrameType,
        session: str,
        chosen: Mapping[FrameType, Choice],
    ) -> tuple[MasterRecord | None, Explanation]:
        """The master of one kind: by hand, else by the rules."""
        choice = chosen.get(kind)
        if choice is None:
            return self.match(record, kind, session)
        when = f"{choice.chosen_at:%Y-%m-%d %H:%M} UTC"
        lines = [f"{choice.master.name}: chosen by hand for the {choice.scope} ({when})"]
        if (choice.master.key.width, choice.master.key.height) != (
            record.key.width,
            record.key.height,
        ):
            lines.append("it is of another size than the light, and cannot be used all the same")
            found, more = self.match(record, kind, session)
            return found, [(f"Master {kind}", lines), *more]
        rules = match.rank(
            record,
            [choice.master],
            kind=choice.master.frame_type,
            temperature_tolerance_c=self._library.temperature_tolerance_c,
            session=session,
            ageing=self._library.ageing,
        )
        refused = rules.candidates[0].refused if rules.candidates else None
        lines.append(f"by the rules: {refused or 'it fits'}")
        return choice.master, [(f"Master {kind}", lines)]

    def _dome_with_sky(
        self, record: FrameRecord, session: str, found: MasterRecord
    ) -> tuple[MasterRecord, MasterRecord | None, Explanation]:
        """The flat that the rules found, and where there are one of the dome and one of the sky,
        both: the dome's first, for the detail; the sky's for the large scale.

        The dust of a dome's flat of another night may have moved since the sky's was taken: then
        the sky's is used by itself.
        """
        other = {"dome": "sky", "sky": "dome"}.get(found.flat_light or "")
        if other is None:
            return found, None, []
        second = candidates.best(
            self._library, record, FrameType.FLAT, session=session, flat_light=other
        ).chosen
        if second is None:
            return found, None, []
        if other == "dome" and second.session != found.session:
            told = f"{second.name} (dome) is of another night: {found.name} (sky) is used alone."
            return found, None, [("Flat", [told])]
        dome, sky = (found, second) if other == "sky" else (second, found)
        told = f"{dome.name} (dome) for the detail, {sky.name} (sky) for the large scale."
        return dome, sky, [("Flat", [told])]

    def without_wrong_flat(
        self, pixels: npt.NDArray[np.generic], record: FrameRecord, choice: Calibration
    ) -> Calibration:
        """The same calibration without its flat, where that would turn the vignette of this light
        (ny, nx) around.
        """
        if choice.flat is None or f"{FrameType.FLAT} chosen by hand" in choice.flags:
            return choice
        subtract = choice.subtracted
        bayer = record.key.bayer_pattern is not None
        light, pedestal = compare.edges(useful_pixels(pixels, record.key)), None
        if subtract is not None:
            pedestal = self._edges.get(
                _dark_kept_as(subtract), lambda: compare.edges(self._image(subtract, record))
            )
        elif sections_of(record.key).bias is not None:
            pedestal = np.zeros_like(light)  # it went with the overscan
        chosen, sky_flat = choice.flat, choice.sky_flat
        response = self._edges.get(
            _flat_kept_as("flat", chosen, sky_flat),
            lambda: compare.edges(self._flat(chosen, sky_flat, bayer=bayer)),
        )
        # The noise is measured only where there is something to hold against it.
        wrong = compare.turned_around(light, pedestal, response, noise_adu=0.0)
        if wrong is not None:
            noise_adu = neighbour_noise(pixels[sampled_rows(len(pixels))], bayer=bayer)
            wrong = compare.turned_around(light, pedestal, response, noise_adu=noise_adu)
        if wrong is None:
            return choice
        return dataclasses.replace(
            choice,
            flat=None,
            sky_flat=None,
            refused_flat=choice.flat.id,
            refused_sky_flat=choice.sky_flat.id if choice.sky_flat else None,
            flags=(*choice.flags, "flat refused"),
            explanation=[
                *choice.explanation,
                ("Flat", [f"{choice.flat.name} is not used: {wrong}."]),
            ],
        )

    def match(
        self, record: FrameRecord, kind: FrameType, session: str
    ) -> tuple[MasterRecord | None, Explanation]:
        """The master of one kind for a frame, and every candidate with its score or refusal."""
        found = candidates.best(self._library, record, kind, session=session)
        lines = [found.text, *found.notes]
        # Masters of other cameras tell something only where there is none of this one.
        others = [one for one in found.candidates if (one.refused or "").startswith("camera ")]
        shown = [one for one in found.candidates if one not in others] or others
        for candidate in shown:
            verdict = candidate.refused or f"score {candidate.score:.3g}"
            lines.append(f"{candidate.name}: {verdict}")
        if any(";" not in (one.refused or "") for one in shown if one in others):
            lines.append(
                "Is one of these this camera under another name? `cameras` in the configuration "
                "gives it one name."
            )
        return found.chosen, [(f"Master {kind}", lines)]

    def _pending(
        self, record: FrameRecord, kind: FrameType, session: str, now: dt.datetime
    ) -> CalibrationSet | None:
        return agenda.pending(
            self._library,
            record,
            kind,
            session=session,
            now=now,
            min_frames=self._min_frames,
            quiet_s=self._quiet_s(),
        )

    def recorded(self, masters: Mapping[str, Any]) -> Calibration:
        """The calibration a member of a stack was added with, from the ids that it keeps."""

        def get(kind: str) -> MasterRecord | None:
            master_id = masters.get(kind)
            return None if master_id is None else self._library.master(master_id)

        making = DarkChoice.from_dict(masters)
        return Calibration(
            get("dark"),
            get("bias"),
            get("flat"),
            (),
            [],
            sky_flat=get("sky_flat"),
            making=making,
        )

    def apply(
        self,
        pixels: npt.NDArray[np.generic],
        record: FrameRecord,
        calibration: Calibration,
        *,
        noise: calibrate.Noise | None = None,
    ) -> calibrate.Calibrated:
        """Raw (ny, nx) pixels → float32 ADU, dark-subtracted, flat-fielded, bad pixels repaired;
        without the overscan, and trimmed to the useful part of the sensor. With a variance where
        there is a `noise`.
        """
        bayer = record.key.bayer_pattern is not None
        noise_adu = calibration.noise_adu
        if noise_adu is None:
            noise_adu = _raw_noise(pixels, record)
        arrays = self.arrays(noise_adu, record, calibration)
        sections = applied_sections(record, calibration)
        return calibrate.calibrate(
            pixels[overscan.useful(sections, pixels.shape)],
            overscan_adu=useful_correction(pixels, sections),
            dark=arrays.dark,
            flat=arrays.flat,
            bad=arrays.bad,
            bad_above=arrays.bad_above,
            bayer=bayer,
            noise=noise,
            saturation_adu=record.saturation_adu,
        )

    def arrays(self, noise_adu: float, record: FrameRecord, calibration: Calibration) -> Arrays:
        """What `apply` applies to a frame whose noise is `neighbour_noise` of its sampled rows."""
        # The plane first: where a dark must be made for it, both are made at once.
        bad = self._bad(record, calibration)
        subtract = calibration.subtracted
        dark = self._image(subtract, record) if subtract else None
        # Whether or not this light's judgement led to what is kept now.
        self._darkroom.forget()
        return Arrays(
            dark=dark,
            flat=self.flat_of(record, calibration),
            bad=bad,
            bad_above=hot_step(noise_adu, record),
        )

    def flat_of(self, record: FrameRecord, calibration: Calibration) -> Image | None:
        """The flat of `arrays` alone."""
        if calibration.flat is None:
            return None
        bayer = record.key.bayer_pattern is not None
        return self._flat(calibration.flat, calibration.sky_flat, bayer=bayer)

    def band(
        self,
        noise_adu: float,
        record: FrameRecord,
        calibration: Calibration,
        first: int,
        last: int,
    ) -> Arrays:
        """Rows first (even) … last − 1 of what `arrays` gives, to the same bits. A dark that is not
        kept is made for these rows alone: for work that goes through many frames band by band,
        whose sensor was at another temperature in each.
        """
        model = calibration.making.model if calibration.making else None
        whole = (slice(0, record.key.height), slice(0, record.key.width))
        if model is None or calibration.dark is None or _useful(record.key) != whole:
            return self.arrays(noise_adu, record, calibration).rows(first, last)
        bad_key = _bad_kept_as(model, calibration.dark)
        if self._darks.has(_dark_kept_as(model)) and self._masks.has(bad_key):
            return self.arrays(noise_adu, record, calibration).rows(first, last)
        made = self._darkroom.make_rows(model, record, first, last)
        bad = made.bad
        nx = record.key.width
        jumping = self._jumping(calibration.dark)
        low, high = np.searchsorted(jumping, (first * nx, last * nx))
        bad.reshape(-1)[jumping[low:high] - first * nx] = DEAD
        whole_flat = self.flat_of(record, calibration)
        flat_field = None if whole_flat is None else whole_flat[first:last]
        return Arrays(made.dark, flat_field, bad, hot_step(noise_adu, record))

    def _image(self, subtract: DarkPlan | MasterRecord, record: FrameRecord) -> Image:
        def make() -> Image:
            if isinstance(subtract, DarkPlan):
                return _cropped(self._darkroom.make(subtract, record).dark, record.key)
            return self._load(subtract)

        return self._darks.get(_dark_kept_as(subtract), make)

    def _flat(self, master: MasterRecord, sky: MasterRecord | None = None, *, bayer: bool) -> Image:
        """A flat in its normal form; with `sky`, of which it gets the large scale. Pixels that it
        shows to be dead are 0, for which `calibrate` takes them for bad: no mask is kept of them.
        """

        def normal(one: MasterRecord) -> Image:
            return flat.normalise(self._load(one), bayer=bayer)

        def make() -> Image:
            made = normal(master)
            if sky is not None:
                made = flat.with_twilight(made, normal(sky), bayer=bayer)
            made[defects.cold_pixels(made, bayer=bayer)] = 0.0
            return made

        # The masters' own images are not kept: only this is ever used.
        return self._images.get(_flat_kept_as("flat", master, sky), make)

    def _load(self, master: MasterRecord) -> Image:
        """The useful part of a master."""
        return _cropped(master_file.load_master(self._root, master), master.key)

    def _bad(self, record: FrameRecord, calibration: Calibration) -> Mask | None:
        """How bad each pixel is, (ny, nx): the number of HOT_THRESHOLDS_ADU by which it is hot, or
        its dark is in doubt; 255 for those that jump from dark to dark. None without a dark.
        """
        dark, subtract = calibration.dark, calibration.subtracted
        if dark is None or subtract is None:
            return None
        return self._masks.get(
            _bad_kept_as(subtract, dark),
            lambda: self._find_bad(record, dark, subtract),
        )

    def _find_bad(
        self, record: FrameRecord, dark: MasterRecord, subtract: DarkPlan | MasterRecord
    ) -> Mask:
        if isinstance(subtract, DarkPlan):
            made = self._darkroom.make(subtract, record)
            self._darks.get(_dark_kept_as(subtract), lambda: _cropped(made.dark, record.key))
            bad = _cropped(made.bad, record.key)
        else:
            bayer = record.key.bayer_pattern is not None
            bad = defects.exceeded(self._image(subtract, record), HOT_THRESHOLDS_ADU, bayer=bayer)
        jumping = self._jumping(dark)
        if len(jumping):
            whole = np.zeros((record.key.height, record.key.width), np.bool_)
            whole.reshape(-1)[jumping] = True
            bad[_cropped(whole, record.key)] = DEAD
        return bad

    def _jumping(self, dark: MasterRecord) -> npt.NDArray[np.int64]:
        """The telegraph pixels (n,) that the frames of a dark showed: flat indices, ascending."""
        found = registry.telegraph(self._library, dark.id)
        return np.empty(0, np.int64) if found is None else defects.unpack_pixels(found)


def _dark_kept_as(subtract: DarkPlan | MasterRecord) -> tuple[str, int]:
    """The key under which what is subtracted is kept: the pixels of a plan of one master are that
    master's own, however far from its temperature the light was.
    """
    if not isinstance(subtract, DarkPlan):
        return "image", subtract.id
    if len(subtract.sources) == 1:
        return "image", subtract.sources[0].master_id
    return key_of(subtract), 0


def _bad_kept_as(subtract: DarkPlan | MasterRecord, dark: MasterRecord) -> tuple[str, int]:
    """The same of its bad pixels, of which the error of the plan decides."""
    return f"bad {key_of(subtract) if isinstance(subtract, DarkPlan) else 'image'}", dark.id


def _flat_kept_as(what: str, master: MasterRecord, sky: MasterRecord | None) -> tuple[str, int]:
    """The same of what is made of a flat, with or without the sky's large scale."""
    return (what if sky is None else f"{what} with sky {sky.id}"), master.id


def hot_step(noise_adu: float, record: FrameRecord) -> int:
    """Which threshold a hot pixel must exceed to do a frame harm: to double the noise.

    The shot noise of D e- of dark current is √D. In ADU²: excess/gain > (2² − 1) σ².
    """
    limit = 3.0 * noise_adu**2 * (record.e_per_adu or 1.0)
    step = math.floor(STEPS_PER_OCTAVE * math.log2(max(limit, 1.0)))
    return min(step, len(HOT_THRESHOLDS_ADU) - 1)


def _raw_noise(pixels: npt.NDArray[np.generic], record: FrameRecord) -> float:
    bayer = record.key.bayer_pattern is not None
    return neighbour_noise(pixels[sampled_rows(len(pixels))], bayer=bayer)


def sections_of(key: CalibrationKey) -> overscan.Sections:
    """The overscan and the useful part of a camera's frames."""
    return overscan.of_key(key.sections, mosaic=key.bayer_pattern is not None)


def applied_sections(record: FrameRecord, calibration: Calibration) -> overscan.Sections:
    """The sections of a light, as its masters have them: they were made so."""
    masters = (calibration.dark, calibration.bias, calibration.flat)
    return sections_of(next((master.key for master in masters if master), record.key))


def useful_correction(pixels: npt.NDArray[np.generic], sections: overscan.Sections) -> Image | None:
    """What is taken off the useful part of raw (ny, nx) pixels for their overscan, ADU, (n, 1) or
    (1, n); None where there is none.
    """
    levels = overscan.correction(pixels, sections)
    if levels is None:
        return None
    rows, columns = overscan.useful(sections, pixels.shape)
    return levels[rows] if levels.shape[1] == 1 else levels[:, columns]


def useful_pixels(pixels: npt.NDArray[np.generic], key: CalibrationKey) -> npt.NDArray[np.generic]:
    """The useful part of raw (ny, nx) pixels, without their overscan: a view where nothing is to
    be taken off, else float32 ADU.
    """
    sections = sections_of(key)
    part = pixels[overscan.useful(sections, pixels.shape)]
    levels = useful_correction(pixels, sections)
    return part if levels is None else part.astype(np.float32) - levels


def _useful(key: CalibrationKey) -> tuple[slice, slice]:
    """The rows and columns of the sensor that see light."""
    return overscan.useful(sections_of(key), (key.height, key.width))


def _cropped(image: npt.NDArray[D], key: CalibrationKey) -> npt.NDArray[D]:
    """The useful part of a whole image (ny, nx), contiguous."""
    return np.ascontiguousarray(image[_useful(key)])


def sampled_rows(ny: int) -> slice:
    """The rows of a frame of `ny` rows from which its noise is measured."""
    return slice(None, None, max(1, ny // 64))


A = TypeVar("A")


class _Kept(Generic[A]):
    """The arrays used last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._arrays: collections.OrderedDict[tuple[str, int], A] = collections.OrderedDict()

    def has(self, key: tuple[str, int]) -> bool:
        """Is this one kept?"""
        return key in self._arrays

    def get(self, key: tuple[str, int], make: Callable[[], A]) -> A:
        """The array of this key, made where it is not kept."""
        if key not in self._arrays:
            while len(self._arrays) >= self._most:
                self._arrays.popitem(last=False)  # before there is one more
            self._arrays[key] = make()
        self._arrays.move_to_end(key)
        return self._arrays[key]
