"""One master: read its frames, judge them, combine, write the file; `library.register` commits it.

The same frames and settings give the same file under the same name (`master_file`).
"""

import contextlib
import dataclasses
import datetime as dt
import functools
import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calib_library import (
    __version__,
    atomic,
    combine,
    compare,
    flat,
    flat_checks,
    judging,
    master_file,
    overscan,
    pedestal,
    set_files,
)
from calib_library.catalogue.records import BuiltMaster, CalibrationSet, FiledFrame, Input
from calib_library.errors import ImageError, IncompatibleFramesError
from calib_library.frame import Card, FrameType
from calib_library.images import product_file
from calib_library.made_dark import MadeDark, Mixed
from calib_library.master_file import Found
from calib_library.match import MasterRecord
from calib_library.set_files import Lowered, Opened, StrangersError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Progress = Callable[[float], None]

MOST_FRAMES = 200
"""The newest of a larger set are used: each stays open, and more do not help."""
COMPARED_ROWS = 512
"""A master is compared with its predecessor by so many of its rows."""
SKY_SIGMA, SKY_ITERATIONS = 2.0, 2
"""The clip of flats of the sky: a star that is in a third of them, since they are of three fields,
lies 2.1 standard deviations from the median. It costs a fifth more noise."""
TWILIGHT_EXPOSURES = 3
"""Flats of so many exposures follow the dusk, whatever their label."""

_FULL_SCALE = {"uint16": 65535.0, "uint8": 255.0}


def build(
    group: CalibrationSet,
    frames: Sequence[FiledFrame],
    *,
    root: Path,
    generation: int,
    subtract: MasterRecord | Mapping[str, MasterRecord] | None = None,
    made: Mapping[str, MadeDark] | None = None,
    predecessor: MasterRecord | None = None,
    sigma: float = 3.0,
    minimum: int = 2,
    progress: Progress | None = None,
) -> BuiltMaster:
    """Combine the frames of a set into one master and write it below `root`/masters.

    `subtract` (for flats: flat-dark, dark or bias; where the exposures differ, as in twilight, one
    for each frame by its hash) is taken from each frame first; where `made` has a dark made of
    several for a frame, that goes before. Flats are then scaled to their common level, a colour
    camera's each by its own four planes, and keep it. Frames are left out, with the reason, whose
    file is gone or no longer the one that was filed, or whose pixels are unlike the others'.
    `predecessor` is the master that this one follows: what has changed is noted. `progress` is
    given the fraction done, 0 to 1.

    Raises IncompatibleFramesError where fewer than `minimum` frames are left, or files are missing
    and the present master was made of more frames, or the new master beside its predecessor, or a
    flat by itself, is clearly wrong; ImageError where the pedestal cannot be read;
    OSError where the master cannot be written.
    """
    strangers: dict[str, str] = {}
    while True:
        try:
            return _build(
                group,
                frames,
                root=root,
                generation=generation,
                subtract=subtract,
                made=made or {},
                predecessor=predecessor,
                sigma=sigma,
                minimum=minimum,
                report=progress or (lambda _: None),
                left_out=dict(strangers),
            )
        except StrangersError as found:
            strangers |= dict.fromkeys(found.hashes, set_files.ANOTHER)


def _build(
    group: CalibrationSet,
    frames: Sequence[FiledFrame],
    *,
    root: Path,
    generation: int,
    subtract: MasterRecord | Mapping[str, MasterRecord] | None,
    made: Mapping[str, MadeDark],
    predecessor: MasterRecord | None,
    sigma: float,
    minimum: int,
    report: Progress,
    left_out: dict[str, str],
) -> BuiltMaster:
    """As `build`, without the frames that are in `left_out` already. Raises StrangersError: then
    nothing was written.
    """
    ordered = sorted(frames, key=lambda frame: (_taken(frame), frame.sha256))
    for frame in ordered[:-MOST_FRAMES]:
        left_out[frame.sha256] = f"the newest {MOST_FRAMES} frames are enough"
    sections = set_files.sections_of(group)
    iterations = 5
    if _is_of_sky(group, frames):
        sigma, iterations = min(sigma, SKY_SIGMA), SKY_ITERATIONS
    whole = pedestal.by_frame([one for one in ordered if one.sha256 not in made], subtract)
    lowered_by = whole | {sha256: one.nearest for sha256, one in made.items()}
    loaded = {
        master.id: master_file.load_master(root, master)
        for master in {m.id: m for m in whole.values()}.values()
    }
    pedestals: dict[str, Floats | Mixed] = {
        **{sha256: loaded[master.id] for sha256, master in whole.items()},
        **{sha256: one.image for sha256, one in made.items()},
    }
    with contextlib.ExitStack() as stack:
        opened = set_files.open_frames(
            [frame for frame in ordered[-MOST_FRAMES:] if frame.sha256 not in left_out],
            group,
            stack,
            left_out,
        )
        if group.master and left_out and len(opened) < min(group.master.frames, MOST_FRAMES):
            raise _too_few(frames, left_out, group.master.frames)
        report(0.2)
        opened = [
            dataclasses.replace(
                one,
                pedestal=pedestals.get(one.frame.sha256),
                overscan=set_files.overscan_of(one.reader, sections),
            )
            for one in opened
        ]
        judged, doubt = _judge(opened, group, left_out)
        set_files.check_identity([one for one in opened if one not in judged])
        opened = judged
        if len(opened) < minimum:
            raise _too_few(frames, left_out, minimum)
        levels = _flat_levels(opened, group) if _is_flat(group) else None
        used = [one.frame for one in opened]
        if levels is not None and any(one.pedestal is None for one in opened) and not sections.bias:
            pedestal.refuse_unknown(float(np.median(levels)), ceiling_adu=_ceiling(group, used[0]))
        agreement = None if levels is None else _agreement(opened, group, levels)
        report(0.3)
        inputs = tuple(
            Input(
                frame.sha256,
                left_out.get(frame.sha256),
                master.id if (master := lowered_by.get(frame.sha256)) else None,
            )
            for frame in ordered
        )
        subtracted = pedestal.commonest(used, lowered_by)
        temperature_c = _mean([frame.record.temperature_c for frame in used])
        built = BuiltMaster(
            set_id=group.id,
            generation=generation,
            path=master_file.path_of(
                group,
                temperature_c,
                generation,
                master_file.fingerprint(inputs, lowered_by, made, sigma),
            ),
            sha256="",
            exposure_s=_mean([frame.record.exposure_s for frame in used]),
            temperature_c=temperature_c,
            date_obs=_mean_time([frame.record.date_obs for frame in used]),
            inputs=inputs,
            subtracted=subtracted.id if subtracted else None,
            version=f"Lightkeeper {__version__}",
            notes=(
                *_notes(group, ordered, left_out, lowered_by),
                *([doubt] if doubt else []),
                *_flat_checks(group, used, levels),
                *(agreement.notes if agreement else ()),
            ),
        )
        changes: list[str] = []
        common = {id(one.pedestal): one.pedestal for one in opened}
        alike = opened[0].pedestal if len(common) == 1 else None
        told = dict.fromkeys(made[one.sha256].told for one in used if one.sha256 in made)
        history = [Card("HISTORY", f"Subtracted: {one}") for one in told]
        if agreement:
            history.insert(0, Card("LKHALF", round(agreement.chi2, 4), "chi2 of half and half"))
        path = root / built.path
        _combine_into(
            path,
            opened,
            lambda found: [
                *master_file.cards_of(
                    group, used, built, subtract=subtracted, sigma=sigma, found=found
                ),
                *history,
            ],
            # Signed and floating-point frames, and those without their pedestal, may hold what
            # 0..1 of 16 bits cannot.
            scale="unit" if group.key.storage in _FULL_SCALE and not sections.bias else "adu",
            combining=functools.partial(
                combine.sigma_clipped_rows,
                # One pedestal for all is subtracted in the combining itself.
                [
                    one.rows
                    if len(common) == 1
                    else Lowered(one.reader, one.pedestal, one.overscan)
                    for one in opened
                ],
                sigma=combine.reachable_sigma(sigma, len(opened)),
                iterations=iterations,
                scales=None if levels is None else flat.scales(levels),
                subtract=None if alike is None else alike[:],
            ),
            judge=lambda thin, noise_adu: changes.extend(
                _compare(group, thin, noise_adu * math.sqrt(len(used)), root, predecessor)
            ),
            progress=lambda part: report(0.3 + 0.6 * part),
        )
    report(1.0)
    return dataclasses.replace(built, sha256=_digest(path), notes=(*built.notes, *changes))


class _Piece(NamedTuple):
    """What is kept of some rows of a master."""

    stored: product_file.Encoded
    kept: int
    """Values, of all frames, that the clip left."""
    variances: Floats
    """Of every eighth pixel of every eighth row, ADU², of the mean."""
    rows: Floats
    """Every `_thin`th row, ADU."""


def _combine_into(
    path: Path,
    opened: Sequence[Opened],
    cards: Callable[[Found], Sequence[Card]],
    *,
    scale: product_file.Scale,
    combining: Callable[[Callable[[int, combine.Combined], _Piece]], Generator[tuple[int, _Piece]]],
    judge: Callable[[Floats, float], None],
    progress: Progress,
) -> None:
    """Write a master while it is combined; its rows are never in memory all at once.

    Frames whose files have another time than when they were filed are hashed by the same reading.
    `judge` is given every `_thin`th row of the master
    and the median error of the mean, both in ADU, before the file appears. Raises StrangersError
    where a frame is not what was filed, and what `judge` raises; the file then does not appear.
    """
    ny, nx = opened[0].reader.shape
    step = _thin(ny)
    for one in opened:
        if not one.is_as_filed:
            one.reader.hash_rows()
    kept, variances, rows = 0, [], []
    with (
        atomic.atomically(path) as file,
        product_file.RowWriter(file, (ny, nx), cards(Found()), scale=scale) as writer,
    ):

        def done(y0: int, part: combine.Combined) -> _Piece:
            return _Piece(
                stored=writer.encoded(part.mean),
                kept=int(part.count.sum(dtype=np.int64)),
                variances=part.variance[-y0 % 8 :: 8, ::8].copy(),
                rows=part.mean[-y0 % step :: step].copy(),
            )

        with contextlib.closing(combining(done)) as pieces:
            for y1, piece in pieces:
                writer.append(piece.stored)
                kept += piece.kept
                variances.append(piece.variances)
                rows.append(piece.rows)
                progress(y1 / ny)
        set_files.check_identity(opened)
        noise_adu = math.sqrt(float(np.median(np.concatenate(variances))))
        judge(np.concatenate(rows), noise_adu)
        writer.describe(cards(Found(kept / (len(opened) * ny * nx), noise_adu)))


def _judge(
    opened: Sequence[Opened], group: CalibrationSet, left_out: dict[str, str]
) -> tuple[list[Opened], str | None]:
    """Compare the frames' pixels; those that are not like the others go to `left_out`. Return the
    others, and what is wrong with all of them.
    """
    doubt = None
    if not opened:
        return [], doubt
    starts = judging.strip_starts(group.key.height)
    step = 2 if group.key.bayer_pattern else 1
    columns = overscan.useful(set_files.sections_of(group), opened[0].reader.shape)[1]

    def strips(one: Opened) -> list[Floats]:
        return [strip[:, columns] for strip in one.strips(starts)]

    with ThreadPoolExecutor(combine.THREADS, "master-judge") as pool:
        if _is_flat(group):
            base = np.array([_base_levels(one.pedestal, starts, columns) for one in opened])
            reasons = judging.flats(
                list(pool.map(lambda one: judging.look_at_flat(strips(one), step=step), opened)),
                base_adu=base,
                saturation_adu=_ceiling(group, opened[0].frame),
            )
        else:
            reasons, doubt = judging.darks(
                list(pool.map(lambda one: judging.look_at_dark(strips(one), step=step), opened)),
                starts=starts,
            )
    for one, reason in zip(opened, reasons, strict=True):
        if reason:
            left_out[one.frame.sha256] = reason
    return [one for one in opened if one.frame.sha256 not in left_out], doubt


def _base_levels(
    lowered_by: Floats | Mixed | None, starts: Sequence[int], columns: slice
) -> list[float]:
    """Return the levels of what is subtracted from a flat, strip by strip, ADU."""
    if lowered_by is None:
        return [0.0] * len(starts)
    return [judging.trimmed_mean(lowered_by[y : y + judging.STRIP_ROWS, columns]) for y in starts]


def _flat_levels(opened: Sequence[Opened], group: CalibrationSet) -> Doubles:
    """Return the levels (n, 1) or (n, 4) of the flats above their pedestals, ADU."""
    bayer = group.key.bayer_pattern is not None
    measured = np.array(
        [flat.levels(one.rows, bayer=bayer, subtract=one.pedestal) for one in opened], np.float64
    )
    if not (measured > 0).all():
        raise IncompatibleFramesError("A flat of this set has no light in one of its colours.")
    return measured


def _too_few(
    frames: Sequence[FiledFrame], left_out: dict[str, str], wanted: int
) -> IncompatibleFramesError:
    first = next((frame for frame in frames if frame.sha256 in left_out), None)
    example = f" ({first.path.name}: {left_out[first.sha256]})" if first else ""
    return IncompatibleFramesError(
        f"Only {len(frames) - len(left_out)} of {len(frames)} frames can be used, "
        f"{wanted} are needed{example}."
    )


def _notes(
    group: CalibrationSet,
    frames: Sequence[FiledFrame],
    left_out: dict[str, str],
    lowered_by: Mapping[str, MasterRecord],
) -> tuple[str, ...]:
    notes = [
        f"{frame.path.name} was left out: {left_out[frame.sha256]}."
        for frame in frames[-MOST_FRAMES:]
        if frame.sha256 in left_out
    ]
    if len(frames) > MOST_FRAMES:
        notes.append(f"Of {len(frames)} frames the newest {MOST_FRAMES} were used.")
    if not _is_flat(group):
        return tuple(notes)
    used = [frame for frame in frames if frame.sha256 not in left_out]
    has_overscan = set_files.sections_of(group).bias is not None
    return (*notes, *pedestal.notes(used, lowered_by, has_overscan=has_overscan))


def _flat_checks(
    group: CalibrationSet, used: Sequence[FiledFrame], levels: Doubles | None
) -> tuple[str, ...]:
    if levels is None:
        return ()
    found: list[str] = []
    if group.flat_light == "sky":
        field = flat_checks.one_field([frame.record for frame in used])
        found += [field] if field else []
    ceiling = _ceiling(group, used[0])
    return (*found, *(flat.checks(levels, saturation_adu=ceiling) if ceiling else ()))


def _agreement(
    opened: Sequence[Opened], group: CalibrationSet, levels: Doubles
) -> flat_checks.Agreement | None:
    """Hold the flats of the set's first half against those of its second."""
    columns = overscan.useful(set_files.sections_of(group), opened[0].reader.shape)[1]
    factors = flat.scales(levels).astype(np.float32)
    step = 2 if group.key.bayer_pattern else 1

    def strips() -> Iterator[tuple[int, Floats]]:
        for first in flat_checks.strip_starts(group.key.height):
            last = min(group.key.height, first + flat_checks.STRIP_ROWS)
            frames = []
            for one, factor in zip(opened, factors, strict=True):
                strip = one.rows.to_float(one.rows.rows(first, last))
                if one.pedestal is not None:
                    strip -= one.pedestal[first:last]
                for phase, scale in enumerate(factor):
                    strip[phase // 2 :: step, phase % 2 :: step] *= scale
                frames.append(strip[:, columns])
            yield first, np.stack(frames)

    return flat_checks.compare_halves(strips(), step=step)


def _thin(ny: int) -> int:
    """Return the step between the rows by which masters of `ny` rows are compared."""
    return max(1, ny // COMPARED_ROWS)


def _compare(
    group: CalibrationSet,
    new: Floats,
    noise_adu: float,
    root: Path,
    predecessor: MasterRecord | None,
) -> tuple[str, ...]:
    """Say how a master, by every `_thin`th of its rows, differs from its predecessor; `noise_adu`
    is that of a pixel in one frame.

    Raises IncompatibleFramesError where it must not be used.
    """
    if predecessor is None:
        return ()
    try:
        whole, cards = product_file.read_product(root / predecessor.path)
    except (ImageError, OSError):
        return (f"Its predecessor {predecessor.name} cannot be read: not compared.",)
    columns = overscan.useful(set_files.sections_of(group), whole.shape)[1]
    old, new = whole[:: _thin(group.key.height), columns], new[:, columns]
    if old.shape != new.shape:
        return (f"Its predecessor {predecessor.name} has another size: not compared.",)
    if _is_flat(group):
        verdict = compare.flats(new, old)
    else:
        said = {card.keyword: card.value for card in cards}
        error, count = said.get("LKNOISE"), said.get("NCOMBINE")
        old_noise = None
        if isinstance(error, int | float) and isinstance(count, int):
            old_noise = float(error) * math.sqrt(count)
        verdict = compare.darks(
            new,
            old,
            noise_adu=noise_adu,
            old_noise_adu=old_noise,
            step=2 if group.key.bayer_pattern else 1,
        )
    if verdict.poison:
        raise IncompatibleFramesError(
            f"Beside its predecessor {predecessor.name}, {verdict.poison}. It is not used; if the "
            f"camera is now like this, say so: lightkeeper library accept {group.id}"
        )
    return tuple(f"Beside its predecessor {predecessor.name}, {told}." for told in verdict.notes)


def _ceiling(group: CalibrationSet, frame: FiledFrame) -> float | None:
    """Saturation, ADU: the header's, or that of the pixel format; None for floats."""
    return frame.record.saturation_adu or _FULL_SCALE.get(group.key.storage)


def _is_flat(group: CalibrationSet) -> bool:
    return group.frame_type is FrameType.FLAT


def _is_of_sky(group: CalibrationSet, frames: Sequence[FiledFrame]) -> bool:
    exposures = {frame.record.exposure_s for frame in frames}
    twilight = group.flat_light is None and len(exposures) >= TWILIGHT_EXPOSURES
    return _is_flat(group) and (group.flat_light == "sky" or twilight)


def _taken(frame: FiledFrame) -> dt.datetime:
    return frame.record.date_obs or frame.filed_at


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _mean_time(moments: Sequence[dt.datetime | None]) -> dt.datetime | None:
    mean = _mean([moment.timestamp() if moment else None for moment in moments])
    return None if mean is None else dt.datetime.fromtimestamp(mean, tz=dt.UTC)
