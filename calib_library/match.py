"""Which master fits a frame, and why the others do not: every candidate with its score or refusal.

Rules (`algorithms.md` section 1, `headers.md` "Match keys"): camera, geometry, binning, gain,
offset, readout mode, sections, storage, Bayer pattern and row order must be equal, and a missing
value equals only a missing one. Beyond these a dark needs the exposure and the temperature, a bias
the temperature within 10 °C, a flat the filter, the optics and the rotator; none may be too old.
"""

import dataclasses
import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from calib_library import ageing as ages
from calib_library.ageing import ANY_AGE, Ageing
from calib_library.frame import CalibrationKey, FrameRecord, FrameType

EXPOSURE_RELATIVE = 0.01
"""Exposures this close, as a fraction, are the same …"""
EXPOSURE_ABSOLUTE_S = 0.001
"""… or this close, s: a shutter's own jitter, and all biases."""
BIAS_TOLERANCE_C = 10.0
"""A bias hardly depends on temperature: this far off it still serves, °C."""
ROTATOR_TOLERANCE_DEG = 2.0
"""Beyond this rotation the dust shadows of a flat fall beside those of the light, °."""
FOCAL_LENGTH_RELATIVE = 0.02
"""Focal lengths this close are one telescope, whose header was rounded."""

_SLACK = 1e-6  # so that a difference of exactly the tolerance is inside it in binary numbers

NAMES = {
    FrameType.BIAS: "bias",
    FrameType.DARK: "dark",
    FrameType.FLAT: "flat",
    FrameType.FLAT_DARK: "flat-dark",
}
"""How sentences name the kinds of master."""

# What may be subtracted from a flat, best first.
_PEDESTALS_OF_FLAT = (FrameType.FLAT_DARK, FrameType.DARK, FrameType.BIAS)


@dataclasses.dataclass(frozen=True, slots=True)
class MasterRecord:
    """One master of the library: what it was made of and where it lies."""

    id: int
    set_id: int
    generation: int
    """1, 2, … within its set."""
    frame_type: FrameType
    key: CalibrationKey
    """Of the raw frames: `storage` is theirs, not that of the master's file."""
    row_order: str
    exposure_s: float | None
    temperature_c: float | None
    """°C, mean of the frames."""
    filter: str | None
    """Of a flat, in its normal form."""
    session: str
    """A flat's night as the caller names it, empty otherwise."""
    telescope: str | None
    focal_length_mm: float | None
    rotator_deg: float | None
    frames: int
    """How many were combined."""
    date_obs: dt.datetime | None
    """Mean start of the frames, UTC."""
    path: PurePosixPath
    """Relative to the library's folder."""
    sha256: str
    """Of the master's file."""
    subtracted: int | None
    """The master (id) that was subtracted from each frame before combining."""
    built_at: dt.datetime
    superseded_by: int | None
    version: str
    """The program that built it."""
    notes: tuple[str, ...]
    """What a person should know about it, one sentence each."""
    flat_light: str | None = None
    """Of a flat: `sky`, `dome`, or None where nothing said it."""

    @property
    def name(self) -> str:
        """The file's name without its suffix: how faces call this master."""
        return self.path.stem


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """One master that was considered."""

    master_id: int
    name: str
    score: float | None
    """1 is perfect, 0 barely acceptable; None where refused."""
    refused: str | None
    """Why not, for a person; None where it fits."""


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """The answer of `rank`, with everything needed to explain it."""

    kind: FrameType
    """What was asked for."""
    chosen: MasterRecord | None
    candidates: tuple[Candidate, ...]
    """Those that fit, best first; then the refused, nearest first."""
    text: str
    """One sentence: what was chosen and why, or why nothing was."""
    notes: tuple[str, ...] = ()
    """What was taken on trust: fields missing on both sides, a flat of another night."""

    def as_dict(self) -> dict[str, Any]:
        """Return the decision in plain values, for a record that is kept as JSON."""
        return {
            "kind": self.kind.value,
            "master": self.chosen.id if self.chosen else None,
            "name": self.chosen.name if self.chosen else None,
            "text": self.text,
            "notes": list(self.notes),
            "candidates": [dataclasses.asdict(candidate) for candidate in self.candidates],
        }


def rank(
    record: FrameRecord,
    masters: Sequence[MasterRecord],
    *,
    kind: FrameType,
    temperature_tolerance_c: float,
    session: str | None,
    ageing: Ageing = ANY_AGE,
) -> Match:
    """Choose the master of `kind` for one frame.

    Darks, flat-darks: same exposure (1 % or 1 ms), then the nearest temperature within
    `temperature_tolerance_c` (compared in steps of 0.1 °C, below which thermometers only flicker),
    lowered by age as `ageing` says, then more frames, then the newest. Bias: the nearest
    temperature within 10 °C, and age. Flats: those of
    the same `session` (None: unknown) first, then the nearest in time; the temperature is free.
    `kind` FLAT_DARK for a flat frame falls back to a dark of its exposure, then to a bias: pass
    masters of all three kinds. Masters of kinds that cannot serve are passed over in silence.

    Raises ValueError for `kind` LIGHT.
    """
    if kind is FrameType.LIGHT:
        raise ValueError("a light has no master")
    kinds = serving(kind, record.frame_type)
    subject = f"the {record.frame_type or 'frame'}"
    if record.frame_type is FrameType.FLAT:
        # What is subtracted from a flat may be taken after it: it is the light that must not wait.
        ageing = dataclasses.replace(ageing, only_older=False)
    fitting: list[tuple[tuple[float, ...], float, MasterRecord]] = []
    refused: list[tuple[tuple[float, ...], MasterRecord, str]] = []
    for master in masters:
        if master.frame_type not in kinds:
            continue
        reasons = tuple(_refusals(record, master, subject, temperature_tolerance_c))
        old = ages.refusal(
            master.frame_type,
            master.date_obs,
            record.date_obs,
            ageing=ageing,
            same_session=_same_session(master, session),
            subject=subject,
        )
        reasons += (old,) if old else ()
        distance = _temperature_distance(record, master)
        if reasons:
            # Whatever another camera's master agrees in, it is not near.
            stranger = float(master.key.camera != record.key.camera)
            ratio = _exposure_ratio(record, master)
            nearness = (stranger, len(reasons), ratio, distance, -master.id)
            refused.append((nearness, master, "; ".join(reasons)))
        else:
            tier = kinds.index(master.frame_type)
            order, score = _merit(record, master, tier, temperature_tolerance_c, session, ageing)
            fitting.append((order, score, master))
    fitting.sort(key=lambda item: item[0])
    refused.sort(key=lambda item: item[0])
    candidates = (
        *(Candidate(master.id, master.name, score, None) for _, score, master in fitting),
        *(Candidate(master.id, master.name, None, reason) for _, master, reason in refused),
    )
    if fitting:
        chosen = fitting[0][2]
        text = _why(record, chosen, session, subject, len(fitting))
        notes = _notes(record, chosen, kind, session, subject)
        old = ages.note(chosen.frame_type, chosen.date_obs, record.date_obs, ageing=ageing)
        return Match(kind, chosen, candidates, text, (*notes, old) if old else notes)
    wanted = f"No master {NAMES[kind]} for {subject}"
    if not refused:
        return Match(kind, None, (), f"{wanted}: the library has none that is anything like it.")
    _, nearest, reason = refused[0]
    text = f"{wanted}; the nearest, {nearest.name}, does not fit: {reason}."
    return Match(kind, None, candidates, text)


def serving(kind: FrameType, frame_type: FrameType | None) -> tuple[FrameType, ...]:
    """Return the kinds of master that may serve as `kind` for such a frame, best first."""
    if kind is FrameType.FLAT_DARK and frame_type is FrameType.FLAT:
        return _PEDESTALS_OF_FLAT
    return (kind,)


def same_exposure(a_s: float | None, b_s: float | None) -> bool:
    """Whether two exposures (s) are one: within 1 % or 1 ms; missing equals only missing."""
    if a_s is None or b_s is None:
        return a_s is b_s
    tolerance = max(EXPOSURE_ABSOLUTE_S, EXPOSURE_RELATIVE * max(a_s, b_s))
    return abs(a_s - b_s) <= tolerance + _SLACK


def same_optics(
    telescopes: tuple[str | None, str | None],
    focal_lengths_mm: tuple[float | None, float | None],
    rotators_deg: tuple[float | None, float | None],
) -> tuple[bool, bool, bool]:
    """Whether telescope, focal length and rotator angle agree where both sides say them."""
    first, second = telescopes
    telescope = not first or not second or first.casefold() == second.casefold()
    a, b = focal_lengths_mm
    focal = not a or not b or abs(a - b) <= FOCAL_LENGTH_RELATIVE * max(a, b) + _SLACK
    p, q = rotators_deg
    rotator = p is None or q is None or turned(p, q) <= ROTATOR_TOLERANCE_DEG + _SLACK
    return telescope, focal, rotator


def turned(p_deg: float, q_deg: float) -> float:
    """Return the angle between two rotator positions, 0 to 180 °."""
    return abs((p_deg - q_deg + 180.0) % 360.0 - 180.0)


def _refusals(
    record: FrameRecord, master: MasterRecord, subject: str, temperature_tolerance_c: float
) -> Iterator[str]:
    """Yield every rule that keeps this master from this frame, the hardest first."""
    if master.superseded_by is not None:
        yield "a newer generation has replaced it"
    yield from _hard_refusals(record, master, subject)
    if master.frame_type is FrameType.FLAT:
        yield from _flat_refusals(record, master, subject)
        return
    if master.frame_type is not FrameType.BIAS and not same_exposure(
        record.exposure_s, master.exposure_s
    ):
        yield _differ("exposure", seconds(master.exposure_s), seconds(record.exposure_s), subject)
    tolerance = _tolerance(master, temperature_tolerance_c)
    if master.temperature_c is None and record.temperature_c is None:
        return
    if master.temperature_c is None or record.temperature_c is None:
        yield _differ(
            "temperature", celsius(master.temperature_c), celsius(record.temperature_c), subject
        )
    elif abs(master.temperature_c - record.temperature_c) > tolerance + _SLACK:
        yield (
            f"{celsius(master.temperature_c)}, {subject} has {celsius(record.temperature_c)}: "
            f"more than {tolerance:.1f} °C apart"
        )


def _hard_refusals(record: FrameRecord, master: MasterRecord, subject: str) -> Iterator[str]:
    theirs, ours = _hard_fields(master.key), _hard_fields(record.key)
    for field, value in theirs.items():
        if value != ours[field]:
            yield _differ(field, value, ours[field], subject)
    if master.row_order != record.row_order:
        yield _differ("row order", master.row_order, record.row_order, subject)


def _hard_fields(key: CalibrationKey) -> dict[str, str | None]:
    """Return the fields that must be equal as a person reads them; None is missing."""

    def number(value: float | None) -> str | None:
        return None if value is None else f"{value:g}"

    return {
        "camera": key.camera,
        "size": f"{key.width} × {key.height} px",
        "binning": f"{key.xbinning} × {key.ybinning}",
        "gain": number(key.gain),
        "offset": number(key.offset),
        "readout mode": key.readout_mode or "normal",
        "sections": key.sections or "untrimmed",
        "pixel format": key.storage,
        "Bayer pattern": key.bayer_pattern or "monochrome",
    }


def _flat_refusals(record: FrameRecord, master: MasterRecord, subject: str) -> Iterator[str]:
    if master.filter != record.filter:
        yield _differ("filter", master.filter, record.filter, subject)
    telescope, focal, rotator = same_optics(
        (master.telescope, record.telescope),
        (master.focal_length_mm, record.focal_length_mm),
        (master.rotator_deg, record.rotator_deg),
    )
    if not telescope:
        yield _differ("telescope", master.telescope, record.telescope, subject)
    if not focal:
        theirs, ours = f"{master.focal_length_mm:g} mm", f"{record.focal_length_mm:g} mm"
        yield _differ("focal length", theirs, ours, subject)
    # What only one side says is not equal; of telescope and focal length either one will do.
    optics = _optics(record, master)
    if not any(all(pair) for pair in optics.values()):
        one_sided = [(field, pair) for field, pair in optics.items() if any(pair)]
        for field, pair in one_sided[:1]:
            yield _differ(field, *pair, subject)
    if (master.rotator_deg is None) != (record.rotator_deg is None):
        angles = _degrees(master.rotator_deg), _degrees(record.rotator_deg)
        yield _differ("rotator angle", *angles, subject)
    if not rotator:
        yield (
            f"rotator at {master.rotator_deg:.1f}°, {subject} has {record.rotator_deg:.1f}°: "
            f"more than {ROTATOR_TOLERANCE_DEG:g}° apart"
        )


def _optics(record: FrameRecord, master: MasterRecord) -> dict[str, tuple[str | None, str | None]]:
    """Return what the master and the frame say of their optics, as a person reads it."""
    return {
        "telescope": (master.telescope or None, record.telescope or None),
        "focal length": (
            _millimetres(master.focal_length_mm),
            _millimetres(record.focal_length_mm),
        ),
    }


def _millimetres(length_mm: float | None) -> str | None:
    return f"{length_mm:g} mm" if length_mm else None


def _degrees(angle_deg: float | None) -> str | None:
    return None if angle_deg is None else f"{angle_deg:.1f}°"


def _merit(
    record: FrameRecord,
    master: MasterRecord,
    tier: int,
    temperature_tolerance_c: float,
    session: str | None,
    ageing: Ageing,
) -> tuple[tuple[float, ...], float]:
    """Return (what to sort by, smallest first; the score) of a master that fits."""
    last = (-float(master.frames), -master.built_at.timestamp(), -float(master.id))
    if master.frame_type is FrameType.FLAT:
        other = not _same_session(master, session)
        days = _days_apart(record, master)
        steps = round(days, 1)
        score = 0.9 / (1.0 + steps / 30.0) if other else 1.0
        return (float(other), steps, *last), score
    distance = round(_temperature_distance(record, master), 1)
    tolerance = _tolerance(master, temperature_tolerance_c)
    closeness = 1.0 - 0.5 * (distance / tolerance if tolerance else 0.0)
    fresh = ages.freshness(master.frame_type, master.date_obs, record.date_obs, ageing=ageing)
    score = closeness * fresh / (1 + tier)
    return (float(tier), -score, *last), score


def _tolerance(master: MasterRecord, temperature_tolerance_c: float) -> float:
    return BIAS_TOLERANCE_C if master.frame_type is FrameType.BIAS else temperature_tolerance_c


def _temperature_distance(record: FrameRecord, master: MasterRecord) -> float:
    """°C between them; 0 where either is missing (which is refused unless both are)."""
    if record.temperature_c is None or master.temperature_c is None:
        return 0.0
    return abs(record.temperature_c - master.temperature_c)


def _exposure_ratio(record: FrameRecord, master: MasterRecord) -> float:
    """How many times longer the one exposure is than the other, 1 or more."""
    if record.exposure_s is None or master.exposure_s is None:
        return 1.0
    low, high = sorted((record.exposure_s, master.exposure_s))
    return high / max(low, EXPOSURE_ABSOLUTE_S)


def _same_session(master: MasterRecord, session: str | None) -> bool:
    return bool(session) and master.session == session


def _days_apart(record: FrameRecord, master: MasterRecord) -> float:
    if record.date_obs is None or master.date_obs is None:
        return float("inf")
    return abs((record.date_obs - master.date_obs).total_seconds()) / 86400.0


def _why(
    record: FrameRecord, master: MasterRecord, session: str | None, subject: str, fitting: int
) -> str:
    parts: list[str] = []
    if master.frame_type is FrameType.FLAT:
        parts.append(f"filter {master.filter}" if master.filter else "no filter")
        parts.append(_which_night(record, master, session))
    else:
        if master.frame_type is not FrameType.BIAS:
            parts.append(f"same exposure ({seconds(master.exposure_s)})")
        if master.temperature_c is None:
            parts.append("no temperature on either side")
        else:
            distance = _temperature_distance(record, master)
            parts.append(f"{distance:.1f} °C from {subject}'s {celsius(record.temperature_c)}")
    parts.append(f"{master.frames} frames")
    best = f", the best of {fitting} that fit" if fitting > 1 else ""
    return f"{master.name}: {', '.join(parts)}{best}."


def _which_night(record: FrameRecord, master: MasterRecord, session: str | None) -> str:
    if _same_session(master, session):
        return "same night"
    days = _days_apart(record, master)
    return "night unknown" if days == float("inf") else f"another night, {days:.1f} days apart"


def _notes(
    record: FrameRecord,
    master: MasterRecord,
    kind: FrameType,
    session: str | None,
    subject: str,
) -> tuple[str, ...]:
    """Say what was taken on trust."""
    notes = []
    missing = [name for name, value in _hard_fields(master.key).items() if value is None]
    if master.frame_type is FrameType.FLAT:
        optics = _optics(record, master)
        missing += [] if any(theirs for theirs, _ in optics.values()) else ["telescope"]
        missing += ["rotator angle"] if master.rotator_deg is None else []
    if master.frame_type is not FrameType.FLAT and master.temperature_c is None:
        missing.append("temperature")
    if master.frame_type in {FrameType.DARK, FrameType.FLAT_DARK} and master.exposure_s is None:
        missing.append("exposure")
    if missing:
        notes.append(
            f"Neither {subject} nor the master says its {' or its '.join(missing)}: taken as equal."
        )
    if master.frame_type is FrameType.FLAT:
        if not _same_session(master, session):
            night = _which_night(record, master, session)
            notes.append(f"The flat is not of {subject}'s night ({night}): dust may have moved.")
        one_sided = [
            name
            for name, a, b in (
                ("telescope", master.telescope, record.telescope),
                ("focal length", master.focal_length_mm, record.focal_length_mm),
            )
            if (a is None) != (b is None)
        ]
        if one_sided:
            notes.append(f"Only one side says its {' and its '.join(one_sided)}: not compared.")
    elif master.frame_type is not kind:
        notes.append(
            f"There is no {NAMES[kind]} for {subject}: "
            f"a {NAMES[master.frame_type]} takes its place."
        )
    return tuple(notes)


def _differ(field: str, theirs: str | None, ours: str | None, subject: str) -> str:
    if theirs is None:
        return f"{field} not given, {subject} has {ours}"
    return f"{field} {theirs}, {subject} {'does not say' if ours is None else f'has {ours}'}"


def seconds(exposure_s: float | None) -> str | None:
    """Return an exposure as a person reads it: `300 s`, `0.005 s`; None stays None."""
    return None if exposure_s is None else f"{exposure_s:g} s"


def celsius(temperature_c: float | None) -> str | None:
    """Return a temperature with one decimal and a true minus sign; None stays None."""
    if temperature_c is None:
        return None
    return f"{temperature_c:.1f} °C".replace("-0.0 ", "0.0 ").replace("-", "−")
