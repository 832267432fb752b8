"""Which masters a light gets, and their application: the daemon's hand on the library."""

import collections
import dataclasses
import datetime as dt
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from calib_library import build, compare, defects, flat, match, overscan
from calib_library.frame import CalibrationKey, FrameRecord, FrameType
from calib_library.library import CalibrationLibrary, CalibrationSet, Choice
from calib_library.match import MasterRecord
from daemon.ledger.ledger import Explanation
from daemon.light import calibrate

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]

KEPT_IMAGES = 4
KEPT_MASKS = 4
"""Master arrays kept in memory: a dark and flats of three filters, and their bad pixels."""

REFUSED_FLAT = "refused flat"
"""Among the recorded masters: the flat that this light was not divided by."""

STEPS_PER_OCTAVE = 2
"""The threshold for hot pixels moves in steps of √2 …"""
HOT_THRESHOLDS_ADU = (2.0 ** (np.arange(64) / STEPS_PER_OCTAVE)).astype(np.float32)
"""… from 1 ADU on. A pixel is marked with the number of those that it exceeds, once for all
frames."""


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """The masters chosen for one light, and why."""

    dark: MasterRecord | None
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

    def ids(self) -> dict[str, int | None]:
        """What a replay needs to apply the same masters again."""
        applied = {
            "dark": self.dark.id if self.dark else None,
            "bias": self.bias.id if self.bias else None,
            "flat": self.flat.id if self.flat else None,
        }
        return applied if self.refused_flat is None else applied | {REFUSED_FLAT: self.refused_flat}


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
    ) -> None:
        self._library = library
        self._root = root
        self._min_frames = min_frames
        self._quiet_s = quiet_s
        self._images: _Kept[Image] = _Kept(KEPT_IMAGES)
        self._masks: _Kept[Mask] = _Kept(KEPT_MASKS)

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
        chosen = self._library.by_hand(target=target, sha256=sha256)
        flags = [f"{kind} chosen by hand" for kind in chosen]
        dark: MasterRecord | None = None
        explanation: Explanation = []
        # A bias that was chosen by hand takes the dark's place.
        if FrameType.DARK in chosen or FrameType.BIAS not in chosen:
            dark, explanation = self._one(record, FrameType.DARK, session, chosen)
        bias = None
        missing = []
        if dark is None:
            missing += [] if FrameType.BIAS in chosen else [FrameType.DARK]
            bias, more = self._one(record, FrameType.BIAS, session, chosen)
            explanation += more
            flags.append("no dark, bias only" if bias else "no dark")
            missing += [] if bias else [FrameType.BIAS]
        chosen_flat, more = self._one(record, FrameType.FLAT, session, chosen)
        explanation += more
        if chosen_flat is None:
            flags.append("no flat")
            missing.append(FrameType.FLAT)
        pending = None
        if now is not None:
            found = (self._pending(record, kind, session, now) for kind in missing)
            pending = next((one.id for one in found if one is not None), None)
        return Calibration(dark, bias, chosen_flat, tuple(flags), explanation, pending)

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

    def without_wrong_flat(
        self, pixels: npt.NDArray[np.generic], record: FrameRecord, choice: Calibration
    ) -> Calibration:
        """The same calibration without its flat, where that would turn the vignette of this light
        (ny, nx) around.
        """
        if choice.flat is None or f"{FrameType.FLAT} chosen by hand" in choice.flags:
            return choice
        subtract = choice.dark or choice.bias
        bayer = record.key.bayer_pattern is not None
        light, pedestal = compare.edges(useful_pixels(pixels, record.key)), None
        if subtract is not None:
            pedestal = compare.edges(self._image(subtract))
        elif sections_of(record.key).bias is not None:
            pedestal = np.zeros_like(light)  # it went with the overscan
        response = compare.edges(self._flat(choice.flat, bayer=bayer))
        # The noise is measured only where there is something to hold against it.
        wrong = compare.turned_around(light, pedestal, response, noise_adu=0.0)
        if wrong is not None:
            noise_adu = noise_of(pixels[sampled_rows(len(pixels))], bayer=bayer)
            wrong = compare.turned_around(light, pedestal, response, noise_adu=noise_adu)
        if wrong is None:
            return choice
        return dataclasses.replace(
            choice,
            flat=None,
            refused_flat=choice.flat.id,
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
        found = self._library.match(record, kind, session=session)
        lines = [found.text, *found.notes]
        for candidate in found.candidates:
            verdict = candidate.refused or f"score {candidate.score:.3g}"
            lines.append(f"{candidate.name}: {verdict}")
        return found.chosen, [(f"Master {kind}", lines)]

    def _pending(
        self, record: FrameRecord, kind: FrameType, session: str, now: dt.datetime
    ) -> CalibrationSet | None:
        return self._library.pending(
            record,
            kind,
            session=session,
            now=now,
            min_frames=self._min_frames,
            quiet_s=self._quiet_s(),
        )

    def recorded(self, masters: Mapping[str, int | None]) -> Calibration:
        """The calibration a member of a stack was added with, from the ids that it keeps."""

        def get(kind: str) -> MasterRecord | None:
            master_id = masters.get(kind)
            return None if master_id is None else self._library.master(master_id)

        return Calibration(get("dark"), get("bias"), get("flat"), (), [])

    def apply(
        self, pixels: npt.NDArray[np.generic], record: FrameRecord, calibration: Calibration
    ) -> calibrate.Calibrated:
        """Raw (ny, nx) pixels → float32 ADU, dark-subtracted, flat-fielded, bad pixels repaired;
        without the overscan, and trimmed to the useful part of the sensor.
        """
        bayer = record.key.bayer_pattern is not None
        noise_adu = noise_of(pixels[sampled_rows(len(pixels))], bayer=bayer)
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
            saturation_adu=record.saturation_adu,
        )

    def arrays(self, noise_adu: float, record: FrameRecord, calibration: Calibration) -> Arrays:
        """What `apply` applies to a frame whose noise is `noise_of` its sampled rows."""
        bayer = record.key.bayer_pattern is not None
        subtract = calibration.dark or calibration.bias
        return Arrays(
            dark=self._image(subtract) if subtract else None,
            flat=self._flat(calibration.flat, bayer=bayer) if calibration.flat else None,
            bad=self._bad(record, calibration),
            bad_above=_hot_step(noise_adu, record),
        )

    def _image(self, master: MasterRecord) -> Image:
        return self._images.get(("image", master.id), lambda: self._load(master))

    def _flat(self, master: MasterRecord, *, bayer: bool) -> Image:
        # The master's own image is not kept: only its normal form is ever used.
        return self._images.get(
            ("flat", master.id),
            lambda: flat.normalise(self._load(master), bayer=bayer),
        )

    def _load(self, master: MasterRecord) -> Image:
        """The useful part of a master."""
        image = build.load_master(self._root, master)
        return np.ascontiguousarray(image[overscan.useful(sections_of(master.key), image.shape)])

    def _bad(self, record: FrameRecord, calibration: Calibration) -> Mask | None:
        """How bad each pixel is, (ny, nx): the number of HOT_THRESHOLDS_ADU by which it is hot; 255
        for those that jump from dark to dark and those that the flat shows to be dead.
        """
        dark, flat_field = calibration.dark, calibration.flat
        if dark is None and flat_field is None:
            return None
        bayer = record.key.bayer_pattern is not None
        return self._masks.get(
            (f"bad {dark.id if dark else '-'}", flat_field.id if flat_field else 0),
            lambda: self._find_bad(dark, flat_field, bayer=bayer),
        )

    def _find_bad(
        self, dark: MasterRecord | None, flat_field: MasterRecord | None, *, bayer: bool
    ) -> Mask:
        bad: Mask | None = None
        if dark is not None:
            bad = defects.exceeded(self._image(dark), HOT_THRESHOLDS_ADU, bayer=bayer)
            jumping = self._library.telegraph(dark.id)
            if jumping is not None:
                whole = np.zeros((dark.key.height, dark.key.width), np.bool_)
                whole.reshape(-1)[defects.unpack_pixels(jumping)] = True
                bad[whole[overscan.useful(sections_of(dark.key), whole.shape)]] = 255
        if flat_field is not None:
            cold = defects.cold_pixels(self._flat(flat_field, bayer=bayer), bayer=bayer)
            bad = np.zeros(cold.shape, np.uint8) if bad is None else bad
            bad[cold] = 255
        assert bad is not None
        return bad


def _hot_step(noise_adu: float, record: FrameRecord) -> int:
    """Which threshold a hot pixel must exceed to do a frame harm: to double the noise.

    The shot noise of D e- of dark current is √D. In ADU²: excess/gain > (2² − 1) σ².
    """
    limit = 3.0 * noise_adu**2 * (record.e_per_adu or 1.0)
    step = math.floor(STEPS_PER_OCTAVE * math.log2(max(limit, 1.0)))
    return min(step, len(HOT_THRESHOLDS_ADU) - 1)


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


def sampled_rows(ny: int) -> slice:
    """The rows of a frame of `ny` rows from which its noise is measured."""
    return slice(None, None, max(1, ny // 64))


def noise_of(sample: npt.NDArray[np.generic], *, bayer: bool) -> float:
    """Noise of one raw pixel (ADU) in a sample (n, nx) of whole rows: 1.4826 MAD of the
    differences of neighbours of one colour, over √2.
    """
    rows = sample.astype(np.float32)
    step = 2 if bayer else 1
    differences = rows[:, step:] - rows[:, :-step]
    return float(1.4826 * np.median(np.abs(differences)) / np.sqrt(2.0))


A = TypeVar("A")


class _Kept(Generic[A]):
    """The arrays used last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._arrays: collections.OrderedDict[tuple[str, int], A] = collections.OrderedDict()

    def get(self, key: tuple[str, int], make: Callable[[], A]) -> A:
        """The array of this key, made where it is not kept."""
        if key not in self._arrays:
            self._arrays[key] = make()
            while len(self._arrays) > self._most:
                self._arrays.popitem(last=False)
        self._arrays.move_to_end(key)
        return self._arrays[key]
