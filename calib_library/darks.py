"""Darks made of a library's masters: the files and the small facts that `dark_model` needs.

Usable from a notebook: `dark_for` gives the dark of any exposure and temperature, its error and how
it was made. The daemon keeps a `Darks` and asks it for each light.
"""

import contextlib
import dataclasses
import datetime as dt
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library import dark_compose, dark_model, dark_temperature, master_file
from calib_library.catalogue import candidates
from calib_library.dark_compose import Composed, LightNoise, ReadRows
from calib_library.dark_model import DarkPlan, Energies, Leg
from calib_library.dark_temperature import FitBasis, FitPixels
from calib_library.frame import CalibrationKey, FrameRecord, FrameType
from calib_library.library import CalibrationLibrary
from calib_library.match import MasterRecord, same_exposure

Floats = npt.NDArray[np.float32]

LEVELS = 5
"""Masters whose smooth levels tell their energy."""
LEVEL_ERROR = 0.02
"""What a master's level may be wrong by, over its pixels' noise: offsets drift."""
_KEPT = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Dark:
    """A dark that was asked for."""

    plan: DarkPlan
    """Which masters, with which weights; `plan.sentences()` for a person."""
    image: Floats
    """(ny, nx) ADU, pedestal included: what is subtracted from a raw light."""
    error: Floats
    """(ny, nx) ADU, 1 σ: what the model may be wrong by. The masters' own noise comes on top."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Facts:
    """What is kept of a master's pixels, ADU."""

    hot: float
    """The dark signal of hot pixels at the 99.5th percentile."""
    level: float
    """Median of the smooth level."""
    noise: float
    """Of quiet pixels against their surroundings."""


class Darks:
    """Makes darks of the masters below one folder; remembers what it measured on them."""

    def __init__(self, root: Path, master: Callable[[int], MasterRecord]) -> None:
        """`root` is the library's folder, `master` gives the record of a master's number."""
        self._root = root
        self._master = master
        self._facts = functools.lru_cache(maxsize=_KEPT)(self._measure)
        self._hot_energy = functools.lru_cache(maxsize=_KEPT)(self._measure_hot_energy)
        self._pixels = functools.lru_cache(maxsize=4)(self._find_pixels)

    def plan(
        self,
        masters: Sequence[MasterRecord],
        *,
        exposure_s: float,
        temperature_c: float,
        exact_within_c: float = dark_model.EXACT_C,
        nearest_within_c: float = 0.0,
        force: bool = False,
        fitted_error_c: float | None = None,
    ) -> DarkPlan:
        """Plan a dark as `dark_model.plan` does, with the energies that the library itself tells.
        Raises NoMatchingMasterError, and LibraryError where a master cannot be read.
        """
        choose = functools.partial(
            dark_model.plan,
            masters,
            exposure_s=exposure_s,
            temperature_c=temperature_c,
            exact_within_c=exact_within_c,
            nearest_within_c=nearest_within_c,
            force=force,
            fitted_error_c=fitted_error_c,
        )
        # Which masters does not depend on the energies; the weights do.
        return choose(energies=self.energies(choose(), masters))

    def energies(self, made: DarkPlan, masters: Sequence[MasterRecord]) -> Energies:
        """The camera's activation energies, as the plan's own pair of temperatures and the masters
        of its exposure tell them; 0.57 eV where they do not.
        """
        pair = next((leg for leg in made.legs if leg.other is not None), None)
        if pair is None:
            near = made.legs[0].near
            other = dark_temperature.partner(near, masters)
            pair = Leg(1.0, near, other) if other else None
        if pair is None or pair.other is None:
            return Energies()
        hot = self._hot_energy(*sorted((pair.near.master_id, pair.other.master_id)))
        hot_ev = hot[0] if hot else dark_model.ENERGY_EV
        told = [f"hot pixels on {hot[1]} pixels of two masters"] if hot else []
        levels = self._levels(pair, masters)
        bulk = None
        if len(levels) >= 3:
            facts = [self._facts(master.id) for master in levels]
            bulk = dark_compose.bulk_energy(
                [master.temperature_c or 0.0 for master in levels],
                [one.level for one in facts],
                error_adu=LEVEL_ERROR * max(one.noise for one in facts),
            )
            told += [f"smooth level on {len(levels)} masters"] if bulk else []
        return Energies(hot_ev, bulk or hot_ev, ", ".join(told) or "not measured yet")

    def hot_level(self, master_id: int) -> float:
        """The dark signal of a master's hot pixels at the 99.5th percentile, ADU."""
        return self._facts(master_id).hot

    def fit_pixels(self, basis: FitBasis) -> FitPixels | None:
        """The pixels on which lights' temperatures are fitted with these masters."""
        return self._pixels(basis)

    def compose(
        self,
        made: DarkPlan,
        *,
        light: LightNoise | None = None,
        with_error: bool = True,
        span: tuple[int, int] | None = None,
    ) -> Composed:
        """Make the dark of a plan, or the rows of a `span`. Raises LibraryError where a master
        cannot be read.
        """
        ids = [source.master_id for source in made.sources]
        # Only logarithms ask for a master's noise.
        pairs = [(leg.near, leg.other) for leg in made.legs if leg.log]
        by_log = {one.master_id for pair in pairs for one in pair if one}
        with self._open(ids) as rows:
            shape, bayer = self._shape(ids[0])
            return dark_compose.compose(
                made,
                rows,
                shape=shape,
                bayer=bayer,
                light=light,
                with_error=with_error,
                noises={i: self._facts(i).noise for i in by_log},
                span=span,
            )

    # --- inside ----------------------------------------------------------------------------------

    def _shape(self, master_id: int) -> tuple[tuple[int, int], bool]:
        key = self._master(master_id).key
        return (key.height, key.width), key.bayer_pattern is not None

    @contextlib.contextmanager
    def _open(self, ids: Sequence[int]) -> Iterator[Mapping[int, ReadRows]]:
        with contextlib.ExitStack() as stack:
            yield {
                i: stack.enter_context(master_file.open_master(self._root, self._master(i)))
                for i in dict.fromkeys(ids)
            }

    def _sampled(self, master_id: int) -> tuple[Floats, Floats]:
        shape, bayer = self._shape(master_id)
        with self._open([master_id]) as rows:
            return dark_compose.sampled_hot(rows[master_id], shape, bayer=bayer)

    def _measure(self, master_id: int) -> _Facts:
        hot, smooth = self._sampled(master_id)
        finite = np.isfinite(hot)
        return _Facts(
            hot=float(np.quantile(hot[finite], 0.995)) if finite.any() else 0.0,
            level=float(np.median(smooth)),
            noise=dark_compose.robust_sigma(hot),
        )

    def _measure_hot_energy(self, first: int, second: int) -> tuple[float, int] | None:
        masters = self._master(first), self._master(second)
        hot = [self._sampled(master.id)[0] for master in masters]
        celsius = [master.temperature_c or 0.0 for master in masters]
        return dark_compose.hot_energy(*hot, first_c=celsius[0], second_c=celsius[1])

    def _levels(self, pair: Leg, masters: Sequence[MasterRecord]) -> list[MasterRecord]:
        """Masters of the pair's exposure at temperatures of their own, the nearest first."""
        here = pair.near.temperature_c
        found: list[MasterRecord] = []
        for master in sorted(masters, key=lambda one: abs((one.temperature_c or 0.0) - here)):
            celsius = master.temperature_c
            if (
                celsius is not None
                and same_exposure(master.exposure_s, pair.near.exposure_s)
                and abs(celsius - here) <= dark_model.WIDEST_GAP_C
                and all(
                    abs(celsius - (one.temperature_c or 0.0)) >= dark_model.LEAST_GAP_C
                    for one in found
                )
            ):
                found.append(master)
        return found[:LEVELS]

    def _find_pixels(self, basis: FitBasis) -> FitPixels | None:
        with self._open(basis.ids) as rows:
            shape, bayer = self._shape(basis.ids[0])
            return dark_temperature.fit_pixels(basis, rows, shape=shape, bayer=bayer)


def dark_for(
    library: CalibrationLibrary,
    like: MasterRecord | FrameRecord,
    *,
    exposure_s: float,
    temperature_c: float,
    force: bool = False,
) -> Dark:
    """The dark of a camera at an exposure (s) and a temperature (°C), with its error.

    `like` is any frame or master of that camera, gain, offset, mode and size. `force` allows to
    extrapolate by up to 5 °C. Raises NoMatchingMasterError with the reason where the library's
    masters cannot tell, LibraryError where one of them cannot be read.
    """
    record = _light_of(like.key, like.row_order, exposure_s, temperature_c)
    darks = Darks(library.root, library.master)
    made = darks.plan(
        candidates.darks(library, record),
        exposure_s=exposure_s,
        temperature_c=temperature_c,
        force=force,
    )
    composed = darks.compose(made)
    assert composed.error is not None
    return Dark(made, composed.dark, composed.error)


def _light_of(
    key: CalibrationKey, row_order: str, exposure_s: float, temperature_c: float
) -> FrameRecord:
    """A light that is nothing but its camera, exposure and temperature."""
    nothing: dict[str, Any] = {field.name: None for field in dataclasses.fields(FrameRecord)}
    return FrameRecord(
        **nothing
        | {
            "frame_type": FrameType.LIGHT,
            "key": key,
            "planes": 1,
            "exposure_s": exposure_s,
            "temperature_c": temperature_c,
            "row_order": row_order,
            "stack_count": 1,
            "is_master": False,
            "calibrated": "",
            "sources": {},
            "warnings": (),
            "date_obs": dt.datetime.now(dt.UTC),
        }
    )
