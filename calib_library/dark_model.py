"""A dark for any temperature and exposure, combined from the masters there are, with its error.

Masters are never scaled, which would multiply the pedestal and the amplifier's glow. They are
combined with weights that sum to one, so that all that does not depend on temperature cancels:

    D(T) = (1 − w) D(T1) + w D(T2),   w = [f(T) − f(T1)] / [f(T2) − f(T1)],
    f(T) = T^1.5 exp(−E / kT)   (T in kelvin; Widenhorn et al. 2002)

Exposures combine likewise, w = (t − t1) / (t2 − t1). Hot pixels (what stands out of its 5×5
surroundings) and the smooth level have activation energies E of their own, so each has its own w.

`plan` chooses the masters and the weights from records alone; `dark_compose` makes the dark,
`dark_temperature` reads the sensor's temperature off a light.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Self

from calib_library.errors import NoMatchingMasterError
from calib_library.frame import FrameRecord
from calib_library.match import MasterRecord, celsius, same_exposure, seconds

BOLTZMANN_EV_K = 8.617333262e-5
ZERO_C_IN_K = 273.15
ENERGY_EV = 0.57
"""Activation energy of a camera whose own was never measured, eV."""
ENERGY_SPREAD_EV = 0.06
"""How much single pixels differ from their camera's energy, eV, 1 σ."""
ENERGIES_EV = (0.25, 1.40)
"""What is measured beyond these is no activation energy: silicon's gap ends at 1.2 eV."""

EXACT_C = 0.5
"""A master this close in temperature (°C) is the dark itself …"""
EXACT_SIGMAS, RELATIVE_PER_C = 0.3, 0.10
"""… unless this fraction of the light's noise is reached before: dark current grows by a tenth
per °C."""
CLOSE_GAP_C, HOT_GAP_C, WIDEST_GAP_C = 5.0, 10.0, 20.0
"""Pairs up to the first gap (°C) are combined by weights alone, beyond it hot pixels by their own
logarithms, beyond the second with a warning, beyond the third not at all."""
EXTRAPOLATED_C, FORCED_C = 2.0, 5.0
"""How far (°C) beyond the masters the dark may lie: with a warning; when the user insists."""
LEAST_GAP_C = 1.0
"""Masters closer than this (°C) tell nothing of the temperature: thermometers flicker."""
THERMOMETER_C = 0.1
"""What a header's temperature may be wrong by where nothing better is known, °C, 1 σ."""


class Rule(StrEnum):
    """How a dark was come by; in the order in which they are tried."""

    EXACT = "the master itself"
    PAIR = "two temperatures"
    HOT_PAIR = "two temperatures, hot pixels by logarithm"
    WIDE_PAIR = "two temperatures far apart"
    EXTRAPOLATED = "extrapolated in temperature"
    NEAREST = "the nearest master"
    FORCED = "extrapolated by order"


_ORDER = tuple(Rule)
_WARNED = {Rule.WIDE_PAIR, Rule.EXTRAPOLATED, Rule.NEAREST, Rule.FORCED}


@dataclasses.dataclass(frozen=True, slots=True)
class Energies:
    """A camera's activation energies, eV."""

    hot_ev: float = ENERGY_EV
    bulk_ev: float = ENERGY_EV
    """Of the smooth level."""
    measured: str = "not measured yet"
    """Where they are from, for a person."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A master as a plan speaks of it."""

    master_id: int
    name: str
    exposure_s: float
    temperature_c: float
    frames: int

    @classmethod
    def of(cls, master: MasterRecord) -> Self:
        """Speak of a master whose temperature and exposure are known."""
        assert master.temperature_c is not None
        assert master.exposure_s is not None
        return cls(master.id, master.name, master.exposure_s, master.temperature_c, master.frames)


@dataclasses.dataclass(frozen=True, slots=True)
class Leg:
    """The dark of one exposure: a master, or two of different temperatures."""

    share: float
    """Of this exposure in the dark; the shares of a plan's legs sum to one."""
    near: Source
    """The nearer in temperature."""
    other: Source | None = None
    hot: float = 0.0
    """Weight of `other` for hot pixels; that of `near` is 1 − hot."""
    bulk: float = 0.0
    """Weight of `other` for the smooth level."""
    log: bool = False
    """Hot pixels by the logarithms of their signals."""


@dataclasses.dataclass(frozen=True, slots=True)
class DarkPlan:
    """Which masters make the dark of one frame, how, and how good that is."""

    rule: Rule
    exposure_s: float
    temperature_c: float
    """What the dark is for, °C."""
    temperature_error_c: float
    """1 σ."""
    fitted: bool
    """The temperature was read off the light itself, not from its header."""
    legs: tuple[Leg, ...]
    """One, or two of different exposures."""
    energies: Energies
    relative_error: float
    """Of a hot pixel's dark signal, 1 σ, from the spread of the energies and the temperature."""
    relative_error_log: float
    """The same where the logarithms are used: they know the pixel's own energy."""
    warnings: tuple[str, ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        """The masters, each once."""
        return tuple(source for source, _, _ in self.weights)

    @property
    def weights(self) -> tuple[tuple[Source, float, float], ...]:
        """(master, its weight for hot pixels, for the smooth level); each sums to one."""
        found: list[tuple[Source, float, float]] = []
        for leg in self.legs:
            found.append((leg.near, leg.share * (1.0 - leg.hot), leg.share * (1.0 - leg.bulk)))
            if leg.other is not None:
                found.append((leg.other, leg.share * leg.hot, leg.share * leg.bulk))
        return tuple(found)

    @property
    def nearest(self) -> Source:
        """The master that counts most."""
        return max(self.weights, key=lambda term: abs(term[1]))[0]

    def sentences(self) -> tuple[str, ...]:
        """The plan for a person."""
        how = "fitted on the light" if self.fitted else "from the header"
        exposures = ", two exposures" if len(self.legs) > 1 else ""
        wanted = f"For {seconds(self.exposure_s)} at {celsius2(self.temperature_c)}"
        error = f"±{self.temperature_error_c:.2f} °C"
        lines = [f"{wanted} ({how}, {error}): {self.rule}{exposures}."]
        for source, hot, bulk in self.weights:
            smooth = "" if abs(hot - bulk) < 5e-4 else f", {bulk:.3f} for the smooth level"
            lines.append(
                f"{hot:.3f} of {source.name} ({seconds(source.exposure_s)}, "
                f"{celsius2(source.temperature_c)}, {source.frames} frames){smooth}"
            )
        if any(leg.other for leg in self.legs):
            lines.append(
                f"Activation energies: hot pixels {self.energies.hot_ev:.3f} eV, smooth level "
                f"{self.energies.bulk_ev:.3f} eV ({self.energies.measured})."
            )
        lines.append(f"A hot pixel's dark is expected right within {self.relative_error:.1%}.")
        return (*lines, *self.warnings)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan in plain values for JSON, from which `from_dict` makes an equal one."""
        return dataclasses.asdict(self) | {"rule": self.rule.name}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `as_dict` gave."""

        def leg(one: Mapping[str, Any]) -> Leg:
            other = one["other"]
            ends = {"near": Source(**one["near"]), "other": Source(**other) if other else None}
            return Leg(**{**one, **ends})

        return cls(
            **{
                **fields,
                "rule": Rule[fields["rule"]],
                "legs": tuple(map(leg, fields["legs"])),
                "energies": Energies(**fields["energies"]),
                "warnings": tuple(fields["warnings"]),
            }
        )


# --- the law -------------------------------------------------------------------------------------


def dark_current(temperature_c: float, energy_ev: float) -> float:
    """Dark current at a temperature over that at 0 °C: f(T) / f(0 °C)."""
    return math.exp(_log_current(temperature_c, energy_ev))


def _log_current(temperature_c: float, energy_ev: float) -> float:
    kelvin = temperature_c + ZERO_C_IN_K
    exponent = energy_ev / BOLTZMANN_EV_K * (1.0 / ZERO_C_IN_K - 1.0 / kelvin)
    return 1.5 * math.log(kelvin / ZERO_C_IN_K) + exponent


def relative_slope(temperature_c: float, energy_ev: float) -> float:
    """Growth of the dark current with temperature, d ln f / dT, per °C."""
    kelvin = temperature_c + ZERO_C_IN_K
    return 1.5 / kelvin + energy_ev / (BOLTZMANN_EV_K * kelvin**2)


def weight_of_second(
    temperature_c: float, first_c: float, second_c: float, energy_ev: float
) -> float:
    """The weight w of the dark at `second_c` that, with 1 − w of that at `first_c`, gives the dark
    at `temperature_c`.
    """
    # In units of the first: far below zero the currents are tiny.
    ratio = math.expm1(_log_current(temperature_c, energy_ev) - _log_current(first_c, energy_ev))
    whole = math.expm1(_log_current(second_c, energy_ev) - _log_current(first_c, energy_ev))
    return ratio / whole


def temperature_at(ratio: float, reference_c: float, energy_ev: float) -> float | None:
    """The temperature (°C) at which the dark current is `ratio` times that at `reference_c`; None
    where it is none within 60 °C.
    """
    low, high = reference_c - 60.0, reference_c + 60.0
    wanted = _log_current(reference_c, energy_ev) + (math.log(ratio) if ratio > 0 else -math.inf)
    if not _log_current(low, energy_ev) <= wanted <= _log_current(high, energy_ev):
        return None
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _log_current(middle, energy_ev) < wanted:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def exact_within(noise_adu: float, hot_adu: float) -> float:
    """How far (°C) from a frame of such noise (ADU) a master may be to be its dark itself; its dark
    signal is `hot_adu` at the 99.5th percentile.
    """
    if hot_adu <= 0:
        return EXACT_C
    return min(EXACT_C, EXACT_SIGMAS * noise_adu / (RELATIVE_PER_C * hot_adu))


# --- which masters -------------------------------------------------------------------------------


def plan(
    masters: Sequence[MasterRecord],
    *,
    exposure_s: float,
    temperature_c: float,
    energies: Energies | None = None,
    exact_within_c: float = EXACT_C,
    nearest_within_c: float = 0.0,
    force: bool = False,
    fitted_error_c: float | None = None,
) -> DarkPlan:
    """Choose how the dark of a frame is made, by the first rule that some masters fulfil:

    1. the master itself: same exposure, within `exact_within_c`;
    2. two masters of the same exposure whose temperatures bracket the frame's, up to 10 °C apart;
    3. the same from two exposures that bracket the frame's, temperatures by 1 or 2 at each;
    4. masters 10 to 20 °C apart, with a warning; likewise at two exposures. (On real sensors a
       pair of exposures holds everywhere, a bracket of 15 °C does not: so it comes after them.)
    5. extrapolated from two temperatures on one side, up to 2 °C, with a warning;
    6. the nearest single master within `nearest_within_c`, unscaled, with a warning;
    7. with `force`, extrapolated up to 5 °C.

    `masters` are darks of the frame's own key (camera, gain, offset, mode, geometry); those without
    temperature or exposure are passed over. `fitted_error_c`: the temperature was fitted on the
    light, with this error. Raises NoMatchingMasterError with the reason where there is none.
    """
    usable = [m for m in masters if m.temperature_c is not None and m.exposure_s is not None]
    if not usable:
        raise NoMatchingMasterError(
            "No dark can be made: the library has none of this camera and setting (gain, offset, "
            "mode, binning, size) that tells its temperature."
        )
    energies = energies or Energies()
    choose = functools.partial(
        _at_exposure,
        temperature_c=temperature_c,
        energies=energies,
        exact_within_c=exact_within_c,
        nearest_within_c=nearest_within_c,
        force=force,
    )
    groups = _by_exposure(usable)
    ends = [(exposure, *found) for exposure, group in groups if (found := choose(group))]
    options: list[tuple[tuple[float, ...], Rule, tuple[Leg, ...]]] = [
        ((_precedence(rule, exposures=1),), rule, (leg,))
        for exposure, rule, leg in ends
        if same_exposure(exposure, exposure_s)
    ]
    for (t1, rule1, leg1), (t2, rule2, leg2) in itertools.combinations(ends, 2):
        if t1 < exposure_s < t2 and not same_exposure(t1, t2):
            worse = max(rule1, rule2, key=_ORDER.index)
            w = (exposure_s - t1) / (t2 - t1)
            two = dataclasses.replace(leg1, share=1.0 - w), dataclasses.replace(leg2, share=w)
            options.append(((_precedence(worse, exposures=2), t2 - t1), worse, two))
    if not options:
        raise NoMatchingMasterError(_why_none(usable, exposure_s, temperature_c))
    _, rule, legs = min(options, key=lambda option: option[0])
    made = DarkPlan(
        rule=rule,
        exposure_s=exposure_s,
        temperature_c=temperature_c,
        temperature_error_c=THERMOMETER_C if fitted_error_c is None else fitted_error_c,
        fitted=fitted_error_c is not None,
        legs=legs,
        energies=energies,
        relative_error=0.0,
        relative_error_log=0.0,
        warnings=(_warning(rule, legs, temperature_c),) if rule in _WARNED else (),
    )
    by_temperature = made.temperature_error_c * relative_slope(temperature_c, energies.hot_ev)
    return dataclasses.replace(
        made,
        relative_error=math.hypot(energy_error(made), by_temperature),
        relative_error_log=by_temperature,
    )


def for_flat(
    masters: Sequence[MasterRecord], record: FrameRecord, *, nearest_within_c: float
) -> DarkPlan | None:
    """Plan the dark of a flat; None where it has no exposure or temperature, or where there is
    none without extrapolating.
    """
    if record.exposure_s is None or record.temperature_c is None:
        return None
    try:
        made = plan(
            masters,
            exposure_s=record.exposure_s,
            temperature_c=record.temperature_c,
            nearest_within_c=nearest_within_c,
        )
    except NoMatchingMasterError:
        return None
    return None if made.rule in {Rule.EXTRAPOLATED, Rule.FORCED} else made


def _precedence(rule: Rule, *, exposures: int) -> float:
    """The place of a rule in the order: pairs of exposures after the close pairs of temperatures
    and before all that is doubtful.
    """
    place = float(_ORDER.index(rule))
    if exposures == 1:
        return place
    close = _ORDER.index(Rule.HOT_PAIR)
    return max(place, close) + 0.5


def _by_exposure(masters: Sequence[MasterRecord]) -> list[tuple[float, list[MasterRecord]]]:
    """The masters in groups of one exposure (s), the shortest first."""
    groups: list[tuple[float, list[MasterRecord]]] = []
    for master in sorted(masters, key=lambda one: (one.exposure_s or 0.0, one.id)):
        exposure = master.exposure_s or 0.0
        if groups and same_exposure(groups[-1][0], exposure):
            groups[-1][1].append(master)
        else:
            groups.append((exposure, [master]))
    return groups


def _at_exposure(
    masters: Sequence[MasterRecord],
    *,
    temperature_c: float,
    energies: Energies,
    exact_within_c: float,
    nearest_within_c: float,
    force: bool,
) -> tuple[Rule, Leg] | None:
    """The best way to the frame's temperature with masters of one exposure."""
    ranked = sorted(masters, key=lambda one: _nearness(one, temperature_c))
    nearest = ranked[0]
    distance = abs(_celsius(nearest) - temperature_c)
    if distance <= exact_within_c:
        return Rule.EXACT, Leg(1.0, Source.of(nearest))
    below = [one for one in ranked if _celsius(one) < temperature_c]
    above = [one for one in ranked if _celsius(one) > temperature_c]

    def pair(first: MasterRecord, second: MasterRecord, *, log: bool) -> Leg:
        ends = temperature_c, _celsius(first), _celsius(second)
        return Leg(
            1.0,
            Source.of(first),
            Source.of(second),
            hot=weight_of_second(*ends, energies.hot_ev),
            bulk=weight_of_second(*ends, energies.bulk_ev),
            log=log,
        )

    if below and above:
        first, second = sorted((below[0], above[0]), key=lambda m: _nearness(m, temperature_c))
        gap = abs(_celsius(first) - _celsius(second))
        for rule, widest in (
            (Rule.PAIR, CLOSE_GAP_C),
            (Rule.HOT_PAIR, HOT_GAP_C),
            (Rule.WIDE_PAIR, WIDEST_GAP_C),
        ):
            if gap <= widest + 1e-6:
                return rule, pair(first, second, log=rule is not Rule.PAIR)
    partner = next((one for one in ranked[1:] if _lever(one, nearest, distance)), None)
    if partner is not None and distance <= EXTRAPOLATED_C:
        return Rule.EXTRAPOLATED, pair(nearest, partner, log=False)
    if distance <= nearest_within_c + 1e-6:
        return Rule.NEAREST, Leg(1.0, Source.of(nearest))
    if partner is not None and force and distance <= FORCED_C:
        return Rule.FORCED, pair(nearest, partner, log=False)
    return None


def _lever(other: MasterRecord, nearest: MasterRecord, distance_c: float) -> bool:
    """Whether two masters are far enough apart to extrapolate by `distance_c`, and no farther than
    the law holds.
    """
    gap = abs(_celsius(other) - _celsius(nearest))
    return max(distance_c, LEAST_GAP_C) <= gap <= WIDEST_GAP_C


def _nearness(master: MasterRecord, temperature_c: float) -> tuple[float, ...]:
    """What masters are sorted by: 0.1 °C is less than thermometers flicker; then more frames."""
    distance = abs(_celsius(master) - temperature_c)
    return round(distance, 1), -float(master.frames), -master.built_at.timestamp(), -master.id


def _celsius(master: MasterRecord) -> float:
    assert master.temperature_c is not None
    return master.temperature_c


def energy_error(made: DarkPlan) -> float:
    """The relative error of a hot pixel whose energy is the camera's, or 1 σ beside it."""

    def relative(energy: float) -> float:
        wanted = made.exposure_s * dark_current(made.temperature_c, energy)
        given = sum(
            hot * source.exposure_s * dark_current(source.temperature_c, energy)
            for source, hot, _ in made.weights
        )
        return abs(given / wanted - 1.0)

    energy = made.energies.hot_ev
    return max(map(relative, (energy - ENERGY_SPREAD_EV, energy, energy + ENERGY_SPREAD_EV)))


def _warning(rule: Rule, legs: Sequence[Leg], temperature_c: float) -> str:
    near = min((leg.near for leg in legs), key=lambda one: abs(one.temperature_c - temperature_c))
    distance = abs(near.temperature_c - temperature_c)
    if rule is Rule.WIDE_PAIR:
        gap = max(
            abs(leg.near.temperature_c - leg.other.temperature_c) for leg in legs if leg.other
        )
        return (
            f"The darks on either side are {gap:.0f} °C apart; hot pixels may remain: take darks "
            f"near {celsius(temperature_c)}."
        )
    if rule is Rule.NEAREST:
        return (
            f"The only dark near is {distance:.1f} °C off and is used as it is: take darks at "
            f"{celsius(temperature_c)}, or 5 °C from it on both sides."
        )
    return (
        f"All darks are on one side of {celsius(temperature_c)}, {distance:.1f} °C off: the dark "
        "is extrapolated and noisier; take darks on the other side."
    )


def _why_none(masters: Sequence[MasterRecord], exposure_s: float, temperature_c: float) -> str:
    wanted = f"No dark for {seconds(exposure_s)} at {celsius(temperature_c)} can be made"
    same = [one for one in masters if same_exposure(one.exposure_s, exposure_s)]
    if same:
        nearest = min(same, key=lambda one: _nearness(one, temperature_c))
        off = abs(_celsius(nearest) - temperature_c)
        return (
            f"{wanted}: the nearest of this exposure, {nearest.name}, is {off:.1f} °C off, and no "
            f"other within {WIDEST_GAP_C:.0f} °C of it lies on the other side."
        )
    exposures = ", ".join(f"{seconds(e)}" for e, _ in _by_exposure(masters))
    return (
        f"{wanted}: no exposures bracket it at temperatures that do (there are darks of "
        f"{exposures})."
    )


def celsius2(temperature_c: float) -> str:
    """A temperature with two decimals and a true minus sign."""
    return f"{temperature_c:.2f} °C".replace("-", "−")
