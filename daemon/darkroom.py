"""The dark of each light: planned from records, settled by the light's own pixels, composed, kept.

A fitted temperature is rounded to 0.05 °C and its error to a few steps. So the frames of a cooled
camera share one plan, and one composed dark serves them all; half a step changes a hot pixel's
signal by 0.25 %, well below the masters' own noise. Composing takes some tenths of a second at 26
megapixels, so that even a camera without a cooler costs little: its sensor drifts slowly.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from calib_library import dark_model, dark_temperature, defects
from calib_library.catalogue import candidates
from calib_library.dark_compose import BINS, Counts, Judgement, LightNoise
from calib_library.dark_model import DarkPlan
from calib_library.darks import Darks
from calib_library.errors import NoMatchingMasterError
from calib_library.frame import FrameRecord
from calib_library.library import CalibrationLibrary
from calib_library.match import MasterRecord

ERROR_STEPS_C = (0.02, 0.05, dark_temperature.FIT_ERROR_C)
"""The error of a fitted temperature is one of these, °C: the next larger."""

STEPS_PER_OCTAVE = 2
"""The threshold for hot pixels moves in steps of √2 …"""
HOT_THRESHOLDS_ADU = (2.0 ** (np.arange(64) / STEPS_PER_OCTAVE)).astype(np.float32)
"""… from 1 ADU on. A pixel is marked with the number of those that it exceeds, once for all
frames."""

_BAND_ROWS = 504
"""A dark is made and its pixels are marked by so many rows, even: with their surroundings four
tiles of `dark_compose`."""
_AROUND_ROWS = 4
"""What a pixel is compared with lies up to so many rows away."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A dark as lights need it, or some rows of one."""

    dark: npt.NDArray[np.float32]
    """(ny, nx) ADU, pedestal included."""
    bad: npt.NDArray[np.uint8]
    """(ny, nx), how many of HOT_THRESHOLDS_ADU each pixel exceeds: by its own signal, or because
    the dark is in doubt for lights whose noise such a signal would double."""
    errors: Counts
    """(bins,): what a `dark_compose.Judgement` is made of."""


@dataclasses.dataclass(frozen=True, slots=True)
class DarkChoice:
    """How the dark of one light is made, and why."""

    model: DarkPlan | None
    """None where no dark can be made, or the one that can would do harm."""
    considered: tuple[int, ...]
    """The darks (ids) that the choice was made among: with others it may be another."""
    lines: tuple[str, ...] = ()
    """For `lightkeeper explain`."""
    flags: tuple[str, ...] = ()
    fitted_c: float | None = None
    """The sensor's temperature as the light's hot pixels tell it, °C."""
    residual_sigmas: float | None = None
    """What the dark may be wrong by at the 99.5th percentile of the pixels, in σ of the light."""
    forced: bool = False
    """A person wants it, though it be extrapolated far and do harm."""

    def as_dict(self) -> dict[str, Any]:
        """What a replay needs, in plain values for JSON."""
        return {
            "dark_model": self.model.as_dict() if self.model else None,
            "considered": list(self.considered),
            "fitted_c": self.fitted_c,
            "dark_residual": self.residual_sigmas,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self | None:
        """Read what `as_dict` gave; None where a light was calibrated without any of this."""
        if "considered" not in fields:
            return None
        model = fields["dark_model"]
        return cls(
            DarkPlan.from_dict(model) if model else None,
            tuple(fields["considered"]),
            fitted_c=fields["fitted_c"],
            residual_sigmas=fields["dark_residual"],
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Verdict:
    """What is kept of a composed dark's judgement."""

    sigmas: float
    warning: str | None
    refused: str | None


class DarkRoom:
    """Plans and makes the darks of lights. The arrays it gives are the caller's to keep."""

    def __init__(
        self, library: CalibrationLibrary, *, root: Path, temperature_tolerance_c: float
    ) -> None:
        self._library = library
        self._tolerance_c = temperature_tolerance_c
        self._darks = Darks(root, library.master)
        self._verdicts: dict[tuple[str, int], _Verdict] = {}
        self._last: tuple[str, Made] | None = None

    def choose(
        self, record: FrameRecord, *, fitted_c: float | None = None, forced: bool = False
    ) -> DarkChoice | None:
        """How the dark would be made, from records alone; None where the light tells no temperature
        or no exposure.

        `fitted_c`: its temperature was fitted before, and what would be considered for that counts
        as well. `forced`: a person wants it extrapolated where the rules would not.
        """
        if record.exposure_s is None or record.temperature_c is None:
            return None
        pool = candidates.darks(self._library, record)
        considered = self._considered(record, pool, fitted_c, forced=forced)
        try:
            model = self._plan(record, pool, record.temperature_c, forced=forced)
        except NoMatchingMasterError as error:
            return DarkChoice(None, considered, (str(error),), forced=forced)
        return DarkChoice(model, considered, model.sentences(), _flags(model), forced=forced)

    def settle(
        self,
        pixels: npt.NDArray[np.generic],
        noise_adu: float,
        record: FrameRecord,
        choice: DarkChoice,
    ) -> DarkChoice:
        """The choice once the light's raw (ny, nx) pixels, of such noise, were asked: its
        temperature is fitted, the energies are the library's own, and a dark that would do harm is
        refused. Raises LibraryError where a master cannot be read.
        """
        if choice.model is None or record.temperature_c is None:
            return choice
        light = LightNoise(noise_adu, record.e_per_adu or 1.0)
        pool = candidates.darks(self._library, record)
        found, why = self._fit(pixels, record, choice.model, pool, light)
        model, note = self._best(choice.model, pool, found, light, forced=choice.forced)
        verdict = self._judge(model, noise_adu, record)
        harmful = verdict.refused
        if harmful and choice.forced:
            harmful = f"{harmful} It is used all the same, by hand."
            verdict = dataclasses.replace(verdict, refused=None)
        notes = [note for note in (why, note, verdict.warning, harmful) if note]
        doubtful = ("temperature in doubt",) if why and "look at the cooler" in why else ()
        return DarkChoice(
            model=None if verdict.refused else model,
            considered=self._considered(
                record, pool, found.temperature_c if found else None, forced=choice.forced
            ),
            lines=(
                *model.sentences(),
                f"In 99.5 % of the pixels that is {verdict.sigmas:.2f} σ of the light or less.",
                *notes,
            ),
            flags=(*(() if verdict.refused else _flags(model)), *doubtful),
            fitted_c=found.temperature_c if found else None,
            residual_sigmas=round(verdict.sigmas, 2),
            forced=choice.forced,
        )

    def make(self, model: DarkPlan, record: FrameRecord, *, noise_adu: float = 1.0) -> Made:
        """The dark of a plan, judged by a light of such noise. The last one is kept until
        `forget`.
        """
        key = key_of(model)
        if self._last is None or self._last[0] != key:
            self._last = None  # so that two are not in memory at once
            shape = ny, _ = record.key.height, record.key.width
            made = Made(
                np.empty(shape, np.float32), np.empty(shape, np.uint8), np.zeros(BINS, np.int64)
            )
            for first in range(0, ny, _BAND_ROWS):
                here = slice(first, min(first + _BAND_ROWS, ny))
                band = self.make_rows(model, record, here.start, here.stop, noise_adu=noise_adu)
                made.dark[here], made.bad[here] = band.dark, band.bad
                np.add(made.errors, band.errors, out=made.errors)
            self._last = key, made
        return self._last[1]

    def forget(self) -> None:
        """Let go of the last dark; whoever needs it keeps it."""
        self._last = None

    def make_rows(
        self,
        model: DarkPlan,
        record: FrameRecord,
        first: int,
        last: int,
        *,
        noise_adu: float = 1.0,
    ) -> Made:
        """Rows first (even) … last − 1 of the same, to the same bits; nothing is kept."""
        light = LightNoise(noise_adu, record.e_per_adu or 1.0)
        top, bottom = max(first - _AROUND_ROWS, 0), min(last + _AROUND_ROWS, record.key.height)
        made = self._darks.compose(model, light=light, with_error=False, span=(top, bottom))
        bad = defects.exceeded(
            made.dark,
            HOT_THRESHOLDS_ADU,
            bayer=record.key.bayer_pattern is not None,
            doubt=made.doubt,
            # As a signal of D ADU doubles the noise of a light of variance D / (3 gain).
            doubt_scale=3.0 * (record.e_per_adu or 1.0),
        )
        here = slice(first - top, last - top)
        return Made(made.dark[here], bad[here], made.errors[here].sum(axis=0))

    # --- inside ----------------------------------------------------------------------------------

    def _plan(
        self,
        record: FrameRecord,
        pool: Sequence[MasterRecord],
        temperature_c: float,
        *,
        exact_within_c: float = dark_model.EXACT_C,
        forced: bool,
    ) -> DarkPlan:
        model = dark_model.plan(
            pool,
            exposure_s=record.exposure_s or 0.0,
            temperature_c=temperature_c,
            exact_within_c=exact_within_c,
            nearest_within_c=self._tolerance_c,
            force=forced,
        )
        return _shared(model)

    def _considered(
        self,
        record: FrameRecord,
        pool: Sequence[MasterRecord],
        fitted_c: float | None,
        *,
        forced: bool,
    ) -> tuple[int, ...]:
        """The masters near a light in temperature and exposure, as the rules choose among them."""
        found: set[int] = set()
        temperatures = [one for one in (record.temperature_c, fitted_c) if one is not None]
        for temperature_c in temperatures:
            for exact_c in (dark_model.EXACT_C, 0.0):
                try:
                    model = self._plan(
                        record, pool, temperature_c, exact_within_c=exact_c, forced=forced
                    )
                except NoMatchingMasterError:
                    continue
                found |= {source.master_id for source in model.sources}
                basis = dark_temperature.fit_basis(model, pool)
                found |= set(basis.ids) if basis else set()
        return tuple(sorted(found))

    def _fit(
        self,
        pixels: npt.NDArray[np.generic],
        record: FrameRecord,
        model: DarkPlan,
        pool: Sequence[MasterRecord],
        light: LightNoise,
    ) -> tuple[dark_temperature.Fit | None, str | None]:
        """(the temperature to believe, rounded; why the header's is used, or None)."""
        measured = dataclasses.replace(model, energies=self._darks.energies(model, pool))
        basis = dark_temperature.fit_basis(measured, pool)
        if basis is None:
            return None, None
        hot = self._darks.fit_pixels(basis)
        found = None
        if hot is not None:
            found = dark_temperature.fit(
                pixels,
                hot,
                light=light,
                bayer=record.key.bayer_pattern is not None,
                saturation_adu=record.saturation_adu,
            )
        temperature_c, why = dark_temperature.believed(found, record.temperature_c or 0.0)
        if found is None or temperature_c is None:
            return None, why
        error_c = next(step for step in ERROR_STEPS_C if found.error_c <= step)
        return dataclasses.replace(found, temperature_c=temperature_c, error_c=error_c), None

    def _best(
        self,
        planned: DarkPlan,
        pool: Sequence[MasterRecord],
        found: dark_temperature.Fit | None,
        light: LightNoise,
        *,
        forced: bool,
    ) -> tuple[DarkPlan, str | None]:
        """(the plan for the believed temperature, what a person should know of it)."""
        hot_adu = self._darks.hot_level(planned.nearest.master_id)
        exact_c = dark_model.exact_within(light.noise_adu, hot_adu)
        try:
            model = self._darks.plan(
                pool,
                exposure_s=planned.exposure_s,
                temperature_c=found.temperature_c if found else planned.temperature_c,
                # A header's readings flicker by half a degree: only a fitted temperature is worth
                # leaving a master that is near.
                exact_within_c=exact_c if found else dark_model.EXACT_C,
                nearest_within_c=self._tolerance_c,
                fitted_error_c=found.error_c if found else None,
                force=forced,
            )
        except NoMatchingMasterError as error:
            return planned, f"{error} So the header's temperature was used."
        return _shared(model), None

    def _judge(self, model: DarkPlan, noise_adu: float, record: FrameRecord) -> _Verdict:
        # In steps of √2 of the noise: one verdict serves many frames.
        step = math.floor(2.0 * math.log2(max(noise_adu, 1e-3)))
        key = key_of(model), step
        if key not in self._verdicts:
            if len(self._verdicts) > 256:
                self._verdicts.clear()
            self.forget()
            made = self.make(model, record, noise_adu=2.0 ** (step / 2.0))
            judged = Judgement(made.errors)
            self._verdicts[key] = _Verdict(judged.error_sigmas, judged.warning, judged.refused)
        return self._verdicts[key]


@functools.lru_cache(maxsize=64)
def key_of(model: DarkPlan) -> str:
    """What two plans share that give the same dark and the same doubtful pixels."""
    fields = model.as_dict()
    wanted = ["legs", "relative_error", "relative_error_log"]
    if any(leg.other is not None for leg in model.legs):
        wanted += ["temperature_c", "energies"]
    return json.dumps({name: fields[name] for name in wanted}, sort_keys=True)


def _shared(model: DarkPlan) -> DarkPlan:
    """The plan with its errors rounded up to steps of √2: readings that flicker by a tenth of a
    degree shall not each have a dark of their own.
    """
    return dataclasses.replace(
        model,
        relative_error=_step_up(model.relative_error),
        relative_error_log=_step_up(model.relative_error_log),
    )


def _step_up(error: float) -> float:
    return 2.0 ** (math.ceil(2.0 * math.log2(error)) / 2.0) if error > 0.0 else 0.0


def _flags(model: DarkPlan) -> tuple[str, ...]:
    return (f"dark: {model.rule}",) if model.warnings else ()
