"""Which masters a light gets, and their application: the daemon's hand on the library."""

import collections
import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from calib_library import build, defects, flat, match
from calib_library.frame import FrameRecord, FrameType
from calib_library.library import CalibrationLibrary, CalibrationSet
from calib_library.match import MasterRecord
from daemon.ledger.ledger import Explanation
from daemon.light import calibrate

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]

KEPT_IMAGES = 4
KEPT_MASKS = 2
"""Master arrays kept in memory: a dark and flats of three filters, the hot pixels of two darks."""

HOT_SIGMA = 8.0
"""A pixel of a master dark this far above its neighbours (in the noise of the dark) is repaired.
Dark subtraction removes its mean; what is left is its shot noise, which the stack weighs down."""


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

    def ids(self) -> dict[str, int | None]:
        """What a replay needs to apply the same masters again."""
        return {
            "dark": self.dark.id if self.dark else None,
            "bias": self.bias.id if self.bias else None,
            "flat": self.flat.id if self.flat else None,
        }


class Calibrator:
    """Chooses masters by `match` and applies them; keeps the last arrays in memory."""

    def __init__(
        self,
        library: CalibrationLibrary,
        *,
        root: Path,
        temperature_tolerance_c: float,
        min_frames: int,
        quiet_s: Callable[[], float],
    ) -> None:
        self._library = library
        self._root = root
        self._tolerance_c = temperature_tolerance_c
        self._min_frames = min_frames
        self._quiet_s = quiet_s
        self._images: _Kept[Image] = _Kept(KEPT_IMAGES)
        self._masks: _Kept[Mask] = _Kept(KEPT_MASKS)

    def choose(self, record: FrameRecord, *, session: str, now: dt.datetime | None) -> Calibration:
        """The best masters there are for a light of the night `session`.

        With `now`, `pending_set` names a set that will soon give a master that is missing.
        """
        dark, explanation = self.match(record, FrameType.DARK, session)
        bias = None
        flags = []
        missing = []
        if dark is None:
            missing.append(FrameType.DARK)
            bias, more = self.match(record, FrameType.BIAS, session)
            explanation += more
            flags.append("no dark, bias only" if bias else "no dark")
            missing += [] if bias else [FrameType.BIAS]
        chosen_flat, more = self.match(record, FrameType.FLAT, session)
        explanation += more
        if chosen_flat is None:
            flags.append("no flat")
            missing.append(FrameType.FLAT)
        pending = None
        if now is not None:
            found = (self._pending(record, kind, session, now) for kind in missing)
            pending = next((one.id for one in found if one is not None), None)
        return Calibration(dark, bias, chosen_flat, tuple(flags), explanation, pending)

    def match(
        self, record: FrameRecord, kind: FrameType, session: str
    ) -> tuple[MasterRecord | None, Explanation]:
        """The master of one kind for a frame, and every candidate with its score or refusal."""
        found = match.rank(
            record,
            self._library.candidates(record, kind, session=session),
            kind=kind,
            temperature_tolerance_c=self._tolerance_c,
            session=session,
        )
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
        """Raw (ny, nx) pixels → float32 ADU, dark-subtracted, flat-fielded, bad pixels repaired."""
        bayer = record.key.bayer_pattern is not None
        subtract = calibration.dark or calibration.bias
        return calibrate.calibrate(
            pixels,
            dark=self._image(subtract) if subtract else None,
            flat=self._flat(calibration.flat, bayer=bayer) if calibration.flat else None,
            bad=self._hot(calibration.dark, bayer=bayer) if calibration.dark else None,
            bayer=bayer,
            saturation_adu=record.saturation_adu,
        )

    def _image(self, master: MasterRecord) -> Image:
        return self._images.get(("image", master.id), lambda: build.load_master(self._root, master))

    def _flat(self, master: MasterRecord, *, bayer: bool) -> Image:
        # The master's own image is not kept: only its normal form is ever used.
        return self._images.get(
            ("flat", master.id),
            lambda: flat.normalise(build.load_master(self._root, master), bayer=bayer),
        )

    def _hot(self, master: MasterRecord, *, bayer: bool) -> Mask:
        return self._masks.get(
            ("hot", master.id),
            lambda: defects.hot_pixels(self._image(master), sigma=HOT_SIGMA, bayer=bayer).astype(
                np.uint8
            ),
        )


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
