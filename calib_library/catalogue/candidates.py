"""From which masters one is chosen for a frame: few rows, however large the library is."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from calib_library import match
from calib_library.ageing import Ageing
from calib_library.catalogue.records import CalibrationSet, FiledFrame
from calib_library.catalogue.rows import frame_of, key_text, master_of, real, select, timestamp
from calib_library.frame import FrameRecord, FrameType
from calib_library.library import CalibrationLibrary
from calib_library.match import MasterRecord, Match

# How many masters of each sort `near` returns: enough to choose from, and to explain by.
_FITTING, _NEAR, _FAR = 24, 8, 4
_DARKS = 96  # from which a dark is combined

_Query = tuple[str, str, int]  # WHERE, ORDER BY, LIMIT

# Those that are too old, or too new, come last: they are among the candidates to be explained.
_BY_AGE = (
    "(abs(date_obs - :date) > :reach) IS 1, (:only_older AND (date_obs > :date) IS NOT 0) IS 1,"
)
_NEAREST_TEMPERATURE = (
    f"{_BY_AGE} (temperature_c IS NULL) <> (:temperature IS NULL),"
    " abs(temperature_c - :temperature), frames DESC, id DESC"
)
# Another key of this camera (the lexical neighbours share the most), another camera, another size.
_FAR_QUERIES: tuple[_Query, ...] = (
    ("camera IS :camera AND width = :width AND height = :height AND key < :key", "key DESC", _FAR),
    ("camera IS :camera AND width = :width AND height = :height AND key > :key", "key", _FAR),
    ("width = :width AND height = :height AND camera IS NOT :camera", "id DESC", _FAR),
    ("camera IS :camera AND (width <> :width OR height <> :height)", "id DESC", _FAR),
)

# What is unknown on a side compares as NULL, which `IS 1` takes for agreeing, as the rule does.
_BY_OPTICS = (
    "(telescope <> :telescope COLLATE NOCASE) IS 1,"
    " (abs(focal_length_mm - :focal) > :focal_tolerance) IS 1,"
    " (telescope IS NULL OR :telescope IS NULL) AND (focal_length_mm IS NULL OR :focal IS NULL)"
    " AND coalesce(telescope, :telescope, focal_length_mm, :focal) IS NOT NULL,"
    " (rotator_deg IS NULL) <> (:rotator IS NULL),"
    " (min(abs(rotator_deg - :rotator), abs(360 - abs(rotator_deg - :rotator))) > :turn) IS 1,"
)
_BY_NIGHT = " session <> :session, date_obs IS NULL, abs(date_obs - :date), id DESC"
_FLAT_QUERIES: tuple[_Query, ...] = (
    ("key = :key AND filter IS :filter", _BY_OPTICS + _BY_AGE + _BY_NIGHT, _FITTING),
    ("key = :key AND filter IS NOT :filter", _BY_NIGHT, _NEAR),
)


def near(
    library: CalibrationLibrary,
    record: FrameRecord,
    kind: FrameType,
    *,
    session: str | None = None,
    flat_light: str | None = None,
) -> list[MasterRecord]:
    """Return the current masters from which `match.rank` chooses `kind` for this frame;
    with `flat_light` (sky, dome) only flats of that light.

    All that could be chosen are among them, and a few near misses of every sort (another
    exposure, another gain, another camera), so that a refusal can be explained. Their number
    is bounded: asking costs milliseconds however large the library is.
    """
    found: dict[int, MasterRecord] = {}
    only = "" if flat_light is None else " AND flat_light = :flat_light"
    for serving in match.serving(kind, record.frame_type):
        queries = _FLAT_QUERIES if serving is FrameType.FLAT else _dark_queries(record, serving)
        terms = {
            **_terms(record, serving, session, library.ageing),
            "flat_light": flat_light,
        }
        for where, order_by, limit in (*queries, *_FAR_QUERIES):
            rows = select(
                library.db,
                "master",
                f"superseded_by IS NULL AND frame_type = :kind{only} AND {where}",
                terms,
                order_by=order_by,
                limit=limit,
            )
            found.update((row["id"], master_of(row)) for row in rows if row["id"] not in found)
    return list(found.values())


def best(
    library: CalibrationLibrary,
    record: FrameRecord,
    kind: FrameType,
    *,
    session: str | None,
    flat_light: str | None = None,
) -> Match:
    """Choose the master of `kind` for this frame: `near`, then `match.rank`."""
    return match.rank(
        record,
        near(library, record, kind, session=session, flat_light=flat_light),
        kind=kind,
        temperature_tolerance_c=library.temperature_tolerance_c,
        session=session,
        ageing=library.ageing,
    )


def darks(
    library: CalibrationLibrary, record: FrameRecord, *, flat_darks: bool = False
) -> list[MasterRecord]:
    """Return the current darks that fit this frame but for exposure and temperature, the
    nearest in temperature first: what `dark_model.plan` combines. Their number is bounded.

    `flat_darks`: these too, for a flat.
    """
    kinds = "('dark', 'flat-dark')" if flat_darks else "('dark')"
    rows = select(
        library.db,
        "master",
        f"superseded_by IS NULL AND frame_type IN {kinds} AND key = :key"
        " AND exposure_s IS NOT NULL AND temperature_c IS NOT NULL",
        {"key": key_text(record), "temperature": real(record.temperature_c)},
        order_by="abs(temperature_c - :temperature), frames DESC, id DESC",
        limit=_DARKS,
    )
    found = []
    for master in map(master_of, rows):
        there = dataclasses.replace(
            record, exposure_s=master.exposure_s, temperature_c=master.temperature_c
        )
        if match.rank(
            there,
            [master],
            kind=FrameType.FLAT_DARK if flat_darks else FrameType.DARK,
            temperature_tolerance_c=0.0,
            session=None,
            ageing=library.ageing,
        ).chosen:
            found.append(master)
    return found


def pedestals(
    library: CalibrationLibrary, group: CalibrationSet, frames: Sequence[FiledFrame]
) -> dict[str, MasterRecord]:
    """Choose what is subtracted from each of these frames, by its hash: for flats the flat-dark
    or the dark of the frame's own exposure, or the bias; for other frames nothing.
    """
    if group.frame_type is not FrameType.FLAT:
        return {}
    chosen: dict[float | None, MasterRecord | None] = {}
    for frame in frames:
        exposure = frame.record.exposure_s
        if exposure not in chosen:
            typical = dataclasses.replace(
                frame.record, frame_type=group.frame_type, temperature_c=group.temperature_c
            )
            found = best(library, typical, FrameType.FLAT_DARK, session=group.session)
            chosen[exposure] = found.chosen
    return {
        frame.sha256: master
        for frame in frames
        if (master := chosen[frame.record.exposure_s]) is not None
    }


def predecessor(library: CalibrationLibrary, group: CalibrationSet) -> MasterRecord | None:
    """Return the master that a new one of this set is compared with: the set's present one, or
    the best of another set that would serve the same frames. None where a person has accepted
    that the camera is another now.
    """
    if group.accepted:
        return None
    if group.master:
        return group.master
    typical = _typical(library, group)
    others = [
        master
        for master in near(library, typical, group.frame_type, session=group.session)
        if master.frame_type is group.frame_type and master.flat_light == group.flat_light
    ]
    return match.rank(
        typical,
        others,
        kind=group.frame_type,
        temperature_tolerance_c=library.temperature_tolerance_c,
        session=group.session,
    ).chosen


def _typical(library: CalibrationLibrary, group: CalibrationSet) -> FrameRecord:
    """Return a record that stands for a set: its first frame's, at the mean temperature."""
    rows = select(
        library.db,
        "calibration_frame",
        "set_id = ?",
        [group.id],
        order_by="date_obs, sha256",
        limit=1,
    )
    return dataclasses.replace(
        next(map(frame_of, rows)).record,
        frame_type=group.frame_type,
        exposure_s=group.exposure_s,
        temperature_c=group.temperature_c,
    )


def _dark_queries(record: FrameRecord, kind: FrameType) -> tuple[_Query, ...]:
    """Return the queries for a bias, a dark or a flat-dark of this frame's own key."""
    if kind is FrameType.BIAS:
        return (("key = :key", _NEAREST_TEMPERATURE, _FITTING),)
    if record.exposure_s is None:
        return (
            ("key = :key AND exposure_s IS NULL", _NEAREST_TEMPERATURE, _FITTING),
            ("key = :key AND exposure_s IS NOT NULL", _NEAREST_TEMPERATURE, _NEAR),
        )
    return (
        ("key = :key AND exposure_s BETWEEN :low AND :high", _NEAREST_TEMPERATURE, _FITTING),
        ("key = :key AND exposure_s < :low", "exposure_s DESC", _NEAR),
        ("key = :key AND exposure_s > :high", "exposure_s", _NEAR),
        ("key = :key AND exposure_s IS NULL", "id DESC", _FAR),
    )


def _terms(
    record: FrameRecord, kind: FrameType, session: str | None, ageing: Ageing
) -> dict[str, Any]:
    """Return the named values of the candidates' queries."""
    limit_days = ageing.limit_days(kind)
    exposure = real(record.exposure_s)
    focal = real(record.focal_length_mm)
    reach = max(match.EXPOSURE_ABSOLUTE_S, 0.02 * exposure) if exposure is not None else None
    return {
        "kind": kind.value,
        "key": key_text(record),
        "camera": record.key.camera,
        "width": int(record.key.width),
        "height": int(record.key.height),
        # Somewhat wider than the rule itself, which `match` applies.
        "low": exposure - reach if exposure is not None and reach is not None else None,
        "high": exposure + reach if exposure is not None and reach is not None else None,
        "temperature": real(record.temperature_c),
        "filter": record.filter,
        "telescope": record.telescope or None,
        "focal": focal or None,
        "focal_tolerance": match.FOCAL_LENGTH_RELATIVE * focal if focal else None,
        "rotator": real(record.rotator_deg),
        "turn": match.ROTATOR_TOLERANCE_DEG,
        "session": session or "",
        "date": timestamp(record.date_obs) if record.date_obs else None,
        "reach": 86400.0 * limit_days if math.isfinite(limit_days) else None,
        "only_older": int(ageing.only_older and record.frame_type is not FrameType.FLAT),
    }
