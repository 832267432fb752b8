"""One master: read its frames, judge them, combine, write the file; `library.register` commits it.

The file's header says everything the database knows of the master. Its name carries the generation
and a hash of what went into it: the same frames and settings give the same bytes under the same
name, and nothing else is ever written under that name.
"""

import contextlib
import dataclasses
import datetime as dt
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library import (
    __version__,
    combine,
    compare,
    flat,
    flat_checks,
    image_io,
    match,
    overscan,
    suspects,
)
from calib_library.errors import ImageError, IncompatibleFramesError, LibraryError
from calib_library.frame import CalibrationKey, Card, FrameType
from calib_library.library import (
    MASTERS_FOLDER,
    BuiltMaster,
    CalibrationSet,
    FiledFrame,
    Input,
)
from calib_library.made_dark import MadeDark, Mixed
from calib_library.match import MasterRecord

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Progress = Callable[[float], None]

MOST_FRAMES = 200
"""The newest of a larger set are used: each stays open, and more do not help (section 2)."""
STRIPS = 16
"""Places down the image at which a frame's level is compared with the others'."""
STRIP_ROWS = 8
COMPARED_ROWS = 512
"""A master is compared with its predecessor by so many of its rows."""
SATURATED = 0.95
"""A flat whose level is above this fraction of saturation is no longer linear."""
FLAT_RATIO = 3.0
"""A flat this many times brighter or darker than the set's median is not one of them."""
LONG_FLAT_S = 5.0
"""Up to this exposure the dark current of a flat is nothing beside its light: a bias will do."""
UNKNOWN_PEDESTAL = 0.05
"""Flats below this part of full scale are not used without their pedestal."""
BLOCKS = 4
"""Parts of a strip, side by side …"""
BLOCK_PIXELS = 3000
"""… of which so many pixels are enough for a level."""
HOT_SAMPLE = 100_000
"""Pixels of a frame, in whole strips, whose hot ones are compared."""
NOISE_STRIPS = 4
"""The noise is taken from every fourth strip."""
SKY_SIGMA, SKY_ITERATIONS = 2.0, 2
"""The clip of flats of the sky: a star that is in a third of them, since they are of three fields,
lies 2.1 standard deviations from the median. It costs a fifth more noise."""
TWILIGHT_EXPOSURES = 3
"""Flats of so many exposures follow the dusk, whatever their label."""
FLAT_SHAPE = 0.3
"""Flats differ by flicker bands of 13 %; a strip that differs by more than this is damaged."""

TITLES = {
    FrameType.BIAS: ("MasterBias", "Master Bias"),
    FrameType.DARK: ("MasterDark", "Master Dark"),
    FrameType.FLAT: ("MasterFlat", "Master Flat"),
    FrameType.FLAT_DARK: ("MasterFlatDark", "Master Flat Dark"),
}
_FULL_SCALE = {"uint16": 65535.0, "uint8": 255.0}
_HASH_THREADS = 4
_ANOTHER = "its file is not the one that was filed"


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    """A frame whose file is the one that was filed, open for reading."""

    frame: FiledFrame
    reader: image_io.RowReader
    pedestal: Floats | Mixed | None = None
    """What is subtracted from it, (ny, nx) ADU."""
    overscan: Floats | None = None
    """The levels of its overscan, which go first, (ny, 1) or (1, nx) ADU."""

    @property
    def is_as_filed(self) -> bool:
        """Nobody has written to the file since it was hashed."""
        return self.reader.version == self.frame.version

    @property
    def rows(self) -> "image_io.RowReader | _Lowered":
        """Its rows without the overscan."""
        return self.reader if self.overscan is None else _Lowered(self.reader, None, self.overscan)


@dataclasses.dataclass(frozen=True, slots=True)
class _Lowered:
    """The rows of a frame with its own pedestal and overscan subtracted, as `combine.Rows`."""

    reader: image_io.RowReader
    pedestal: Floats | Mixed | None
    overscan: Floats | None
    storage: str = "float32"
    plain: bool = False
    bzero: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.reader.shape

    def rows(self, y0: int, y1: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        values = self.reader.to_float(self.reader.rows(y0, y1), out)
        if self.overscan is not None:
            values -= self.overscan[y0:y1] if len(self.overscan) > 1 else self.overscan
        if self.pedestal is not None:
            values -= self.pedestal[y0:y1]
        return values

    def to_float(self, rows: Floats) -> Floats:
        """As a `RowReader` has it: they are already."""
        return rows


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
        except _StrangersError as found:
            strangers |= dict.fromkeys(found.hashes, _ANOTHER)


class _StrangersError(Exception):
    """Files are not the frames that were filed."""

    def __init__(self, hashes: Sequence[str]) -> None:
        super().__init__(hashes)
        self.hashes = hashes
        """Of the frames that were filed."""


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
    """As `build`, without the frames that are in `left_out` already. Raises _StrangersError: then
    nothing was written.
    """
    ordered = sorted(frames, key=lambda frame: (_taken(frame), frame.sha256))
    for frame in ordered[:-MOST_FRAMES]:
        left_out[frame.sha256] = f"the newest {MOST_FRAMES} frames are enough"
    sections = _sections(group)
    iterations = 5
    if _is_of_sky(group, frames):
        sigma, iterations = min(sigma, SKY_SIGMA), SKY_ITERATIONS
    whole = _by_frame([frame for frame in ordered if frame.sha256 not in made], subtract)
    lowered_by = whole | {sha256: one.nearest for sha256, one in made.items()}
    loaded = {
        master.id: load_master(root, master)
        for master in {m.id: m for m in whole.values()}.values()
    }
    pedestals: dict[str, Floats | Mixed] = {
        **{sha256: loaded[master.id] for sha256, master in whole.items()},
        **{sha256: one.image for sha256, one in made.items()},
    }
    with contextlib.ExitStack() as stack:
        opened = _open(
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
                overscan=_overscan(one.reader, sections),
            )
            for one in opened
        ]
        doubts: list[str] = []
        judged = _judge(opened, group, left_out, doubts)
        _check_identity([one for one in opened if one not in judged])
        opened = judged
        if len(opened) < minimum:
            raise _too_few(frames, left_out, minimum)
        levels = _flat_levels(opened, group) if _is_flat(group) else None
        if levels is not None:
            _refuse_pedestal(group, opened, levels)
        agreement = None if levels is None else _agreement(opened, group, levels)
        report(0.3)
        used = [one.frame for one in opened]
        inputs = tuple(
            Input(
                frame.sha256,
                left_out.get(frame.sha256),
                master.id if (master := lowered_by.get(frame.sha256)) else None,
            )
            for frame in ordered
        )
        subtracted = _commonest(used, lowered_by)
        built = BuiltMaster(
            set_id=group.id,
            generation=generation,
            path=_path(group, used, generation, _fingerprint(inputs, lowered_by, made, sigma)),
            sha256="",
            exposure_s=_mean([frame.record.exposure_s for frame in used]),
            temperature_c=_mean([frame.record.temperature_c for frame in used]),
            date_obs=_mean_time([frame.record.date_obs for frame in used]),
            inputs=inputs,
            subtracted=subtracted.id if subtracted else None,
            version=f"Lightkeeper {__version__}",
            notes=(
                *_notes(group, ordered, left_out, lowered_by),
                *doubts,
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
                *_cards(group, used, built, subtract=subtracted, sigma=sigma, found=found),
                *history,
            ],
            # Signed and floating-point frames, and those without their pedestal, may hold what
            # 0..1 of 16 bits cannot.
            scale="unit" if group.key.storage in _FULL_SCALE and not sections.bias else "adu",
            pieces=combine.sigma_clipped_rows(
                # One pedestal for all is subtracted in the combining itself.
                [
                    one.rows
                    if len(common) == 1
                    else _Lowered(one.reader, one.pedestal, one.overscan)
                    for one in opened
                ],
                sigma=reachable_sigma(sigma, len(opened)),
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """What is known of a master only once it is combined."""

    kept: float = 0.0
    """The fraction of the values that was kept."""
    noise_adu: float = 0.0
    """Median error of the mean."""


def _combine_into(
    path: Path,
    opened: Sequence[_Opened],
    cards: Callable[[_Found], Sequence[Card]],
    *,
    scale: image_io.Scale,
    pieces: Generator[tuple[int, int, combine.Combined]],
    judge: Callable[[Floats, float], None],
    progress: Progress,
) -> None:
    """Write a master while it is combined; its rows are never in memory all at once.

    Frames whose files have another time than when they were filed are hashed by the same reading.
    `judge` is given every `_thin`th row of the master
    and the median error of the mean, both in ADU, before the file appears. Raises _StrangersError
    where a frame is not what was filed, and what `judge` raises; the file then does not appear.
    """
    ny, nx = opened[0].reader.shape
    step = _thin(ny)
    for one in opened:
        if not one.is_as_filed:
            one.reader.hash_rows()
    kept, variances, rows = 0, [], []
    with (
        image_io.atomically(path) as file,
        image_io.RowWriter(file, (ny, nx), cards(_Found()), scale=scale) as writer,
        contextlib.closing(pieces),
        ThreadPoolExecutor(1, "master-writer") as pool,
    ):
        written = pool.submit(lambda: None)
        for y0, y1, part in pieces:
            written.result()
            written = pool.submit(writer.write, part.mean.copy())
            kept += int(part.count.sum(dtype=np.int64))
            variances.append(part.variance[-y0 % 8 :: 8, ::8].copy())
            rows.append(part.mean[-y0 % step :: step].copy())
            progress(y1 / ny)
        written.result()
        _check_identity(opened)
        noise_adu = math.sqrt(float(np.median(np.concatenate(variances))))
        judge(np.concatenate(rows), noise_adu)
        writer.describe(cards(_Found(kept / (len(opened) * ny * nx), noise_adu)))


def load_master(root: Path, master: MasterRecord) -> Floats:
    """Read a master of the library as (ny, nx) float32, ADU.

    Raises LibraryError where its file is gone, ImageError where it is damaged.
    """
    path = root / master.path
    try:
        image, _ = image_io.read_product(path)
    except FileNotFoundError:
        raise _gone(master, path) from None
    if image.shape != (master.key.height, master.key.width):
        raise ImageError(f"{path.name}: is not the image that was registered under this name")
    return image


@contextlib.contextmanager
def open_master(root: Path, master: MasterRecord) -> Iterator[Callable[[int, int], Floats]]:
    """Open a master of the library for reading by rows: (first, last) → (last − first, nx) float32
    ADU, the same bits as `load_master` gives. Raises as it does.
    """
    path = root / master.path
    with contextlib.ExitStack() as stack:
        try:
            reader = stack.enter_context(image_io.ProductRows(path))
        except FileNotFoundError:
            raise _gone(master, path) from None
        if reader.shape != (master.key.height, master.key.width):
            raise ImageError(f"{path.name}: is not the image that was registered under this name")
        yield reader.rows


def _gone(master: MasterRecord, path: Path) -> LibraryError:
    return LibraryError(
        f"The master {master.name} is no longer in {path.parent}; put the file back, or "
        "exclude and admit one of its frames to have it built again."
    )


def reachable_sigma(sigma: float, n: int) -> float:
    """Return the clip for n frames, in standard deviations, that can still reject one of them.

    One wild value among n lies n/√(n−1) population standard deviations from the others' median,
    however wild: at 3σ nothing could be rejected from 8 frames or fewer. Nine tenths of it leaves
    room for the others' own noise.
    """
    return sigma if n < 2 else min(sigma, 0.9 * n / math.sqrt(n - 1))


# --- the frames ----------------------------------------------------------------------------------


def _open(
    frames: Sequence[FiledFrame],
    group: CalibrationSet,
    stack: contextlib.ExitStack,
    left_out: dict[str, str],
) -> list[_Opened]:
    """Open the frames' files; those that are not what was filed go to `left_out`."""
    shape = (group.key.height, group.key.width)
    opened = []
    for frame in frames:
        try:
            reader = stack.enter_context(image_io.RowReader(frame.path))
        except FileNotFoundError:
            left_out[frame.sha256] = "its file is gone"
        except (ImageError, OSError) as error:
            left_out[frame.sha256] = f"its file cannot be read ({error})"
        else:
            if reader.shape != shape or reader.storage != group.key.storage:
                left_out[frame.sha256] = _ANOTHER
            else:
                opened.append(_Opened(frame, reader))
    return opened


def _check_identity(opened: Sequence[_Opened]) -> None:
    """Raise _StrangersError where files are not what was filed: camera programs use their file
    names again, `dark_0001.fits` may be another night's by now. A file that was not written to
    since it was hashed is not hashed again.
    """
    doubtful = [one for one in opened if not one.is_as_filed]
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        digests = list(pool.map(lambda one: one.reader.digest(), doubtful))
    hashes = [one.frame.sha256 for one in doubtful]
    strangers = [known for known, digest in zip(hashes, digests, strict=True) if digest != known]
    if strangers:
        raise _StrangersError(strangers)


def _by_frame(
    frames: Sequence[FiledFrame], subtract: MasterRecord | Mapping[str, MasterRecord] | None
) -> dict[str, MasterRecord]:
    """Return what is subtracted from each frame, by its hash."""
    if subtract is None:
        return {}
    if isinstance(subtract, MasterRecord):
        return {frame.sha256: subtract for frame in frames}
    return {one.sha256: subtract[one.sha256] for one in frames if one.sha256 in subtract}


def _commonest(
    used: Sequence[FiledFrame], lowered_by: Mapping[str, MasterRecord]
) -> MasterRecord | None:
    """Return the master that was subtracted from the most frames."""
    masters = [lowered_by[frame.sha256] for frame in used if frame.sha256 in lowered_by]
    counts = Counter(master.id for master in masters)
    return max(masters, key=lambda master: (counts[master.id], -master.id), default=None)


def _judge(
    opened: Sequence[_Opened],
    group: CalibrationSet,
    left_out: dict[str, str],
    notes: list[str],
) -> list[_Opened]:
    """Compare the frames' pixels; those that are not like the others go to `left_out`, and what is
    wrong with all of them to `notes`.
    """
    if not opened:
        return []
    starts = _strip_starts(group.key.height)
    step = 2 if group.key.bayer_pattern else 1
    columns = overscan.useful(_sections(group), opened[0].reader.shape)[1]
    samples = [[strip[:, columns] for strip in _strips(one.rows, starts)] for one in opened]
    levels = np.array([[_trimmed_mean(strip) for strip in strips] for strips in samples])
    if _is_flat(group):
        base = np.array([_base_levels(one.pedestal, starts, columns) for one in opened])
        ceiling = _ceiling(group, opened[0].frame)
        noise = np.array(
            [
                np.median([suspects.pixel_noise(s, step=step) for s in strips[::NOISE_STRIPS]])
                for strips in samples
            ]
        )
        reasons = judge_flats(levels, base_adu=base, saturation_adu=ceiling, noise_adu=noise)
    else:
        spread = float(np.median([_spread(strip) for strips in samples for strip in strips]))
        reasons = judge_levels(levels, noise_adu=spread, rows=starts)
        blocks = _block_levels(samples)
        rows = [row for row in starts for _ in range(BLOCKS)]
        # Once more by blocks of the strips: light leaks in at a side or a corner.
        _add(reasons, lambda left: judge_levels(blocks[left], noise_adu=spread, rows=rows))
        _add(reasons, lambda left: _judge_hot([samples[i] for i in left], step))
        alike = [i for i, reason in enumerate(reasons) if reason is None]
        # A leak makes the strips' own spread large: here the noise is that of single pixels.
        pixel = [suspects.pixel_noise(strips[0], step=step) for strips in samples]
        told = suspects.disagreeing(blocks[alike], noise_adu=float(np.median(pixel)))
        notes += [told] if told else []
    for one, reason in zip(opened, reasons, strict=True):
        if reason:
            left_out[one.frame.sha256] = reason
    return [one for one in opened if one.frame.sha256 not in left_out]


def _add(reasons: list[str | None], judge: Callable[[Sequence[int]], Sequence[str | None]]) -> None:
    """Let a further rule judge the frames that are left; its reasons go into `reasons`."""
    left = [i for i, reason in enumerate(reasons) if reason is None]
    for i, reason in zip(left, judge(left), strict=True):
        reasons[i] = reason


def _block_levels(samples: Sequence[Sequence[Floats]]) -> Doubles:
    """Return the levels of the strips' blocks, side by side, (frames, strips × BLOCKS), ADU."""
    thin = max(1, samples[0][0].size // (BLOCKS * BLOCK_PIXELS))
    return np.array(
        [
            [
                _trimmed_mean(block[:, ::thin])
                for strip in strips
                for block in np.array_split(strip, BLOCKS, axis=1)
            ]
            for strips in samples
        ]
    )


def _judge_hot(samples: Sequence[Sequence[Floats]], step: int) -> Sequence[str | None]:
    """Judge darks by their hot pixels, which show a warm sensor and another exposure."""
    if not samples:
        return []
    pixels = sum(strip.size for strip in samples[0])
    some = slice(None, None, max(1, pixels // HOT_SAMPLE))
    noise = float(
        np.median(
            [
                suspects.pixel_noise(strip, step=step)
                for strips in samples
                for strip in strips[some][::NOISE_STRIPS]
            ]
        )
    )
    joined = [np.concatenate(strips[some]) for strips in samples]
    ratios = suspects.hot_ratios(joined, noise_adu=noise, step=step)
    return [None] * len(samples) if ratios is None else suspects.judge_hot_pixels(ratios)


def _base_levels(
    pedestal: Floats | Mixed | None, starts: Sequence[int], columns: slice
) -> list[float]:
    """Return the levels of what is subtracted from a flat, strip by strip, ADU."""
    if pedestal is None:
        return [0.0] * len(starts)
    return [_trimmed_mean(pedestal[y : y + STRIP_ROWS, columns]) for y in starts]


def judge_levels(levels: Doubles, *, noise_adu: float, rows: Sequence[int]) -> list[str | None]:
    """Judge bias or dark frames by their levels (frames, strips), ADU: None, or what is wrong.

    `noise_adu` is the noise of a pixel, `rows` (strips,) are the strips' first rows. As a whole a
    frame must not differ from the median frame by more than 3 times the noise, 2 % of the level and
    6 robust standard deviations: that was an open cover; slow drifts stay. Then each strip, drifts
    taken off: by physics first (`_cut_short`), then by vote among those left.
    """
    centre = np.median(levels, axis=0)
    offsets = np.median(levels - centre, axis=1)
    reasons: list[str | None] = [None] * len(levels)
    if len(levels) >= 3:
        robust = 1.4826 * float(np.median(np.abs(offsets)))
        typical = float(np.median(centre))
        limit = max(6.0 * robust, 3.0 * noise_adu, 0.02 * abs(typical))
        for i in np.flatnonzero(np.abs(offsets) > limit).tolist():
            reasons[i] = (
                f"its level is {typical + offsets[i]:.0f} ADU "
                f"where the others have {typical:.0f} ADU"
            )
    even = levels - offsets[:, None]
    for judge in (_cut_short, _outvoted):
        for strip, row in enumerate(rows):
            left = [i for i, reason in enumerate(reasons) if reason is None]
            for i, reason in judge(even[left], strip, noise_adu=noise_adu).items():
                reasons[left[i]] = f"around row {row} its level is {reason}"
    return reasons


def _cut_short(levels: Doubles, strip: int, *, noise_adu: float) -> dict[int, str]:
    """Return the frames that hold too little in one strip, be they the majority.

    Dark current cannot fall: where frames disagree, those that lie below their own usual level, and
    the others do not, were not exposed or not read to the end.
    """
    groups = _two_groups(levels, strip, noise_adu=noise_adu)
    if groups is None:
        return {}
    low, high, limit = groups
    here, usual = levels[:, strip], np.median(levels, axis=1)
    fallen = here < usual - limit
    if not fallen[low].all() or fallen[high].any():
        return {}
    expected = np.median(here[high])
    return {i: f"{here[i]:.0f} ADU instead of {expected:.0f} ADU: it was cut short" for i in low}


def _outvoted(levels: Doubles, strip: int, *, noise_adu: float) -> dict[int, str]:
    """Return the smaller of two groups that disagree on one strip; equal ones are left alone."""
    groups = _two_groups(levels, strip, noise_adu=noise_adu)
    if groups is None or len(groups[0]) == len(groups[1]):
        return {}
    few, many = sorted(groups[:2], key=len)
    here = levels[:, strip]
    expected = np.median(here[many])
    return {i: f"{here[i]:.0f} ADU where the others have {expected:.0f} ADU" for i in few}


def _two_groups(
    levels: Doubles, strip: int, *, noise_adu: float
) -> tuple[list[int], list[int], float] | None:
    """Split frames (frames, strips) at the widest gap between their levels in one strip.

    Returns (the lower, the higher, the limit in ADU); None where the gap is within half the pixel
    noise, 1 % of the level or 6 times the frames' usual scatter: they agree.
    """
    if len(levels) < 2:
        return None
    scatter = 1.4826 * float(np.median(np.abs(levels - np.median(levels, axis=0))))
    limit = max(0.5 * noise_adu, 0.01 * abs(float(np.median(levels))), 6.0 * scatter)
    order = np.argsort(levels[:, strip], kind="stable")
    gaps = np.diff(levels[order, strip])
    if gaps.max() <= limit:
        return None
    cut = int(np.argmax(gaps)) + 1
    return order[:cut].tolist(), order[cut:].tolist(), limit


def judge_flats(
    levels: Doubles,
    *,
    base_adu: Doubles,
    saturation_adu: float | None,
    noise_adu: Doubles | None = None,
) -> list[str | None]:
    """Judge flats by their levels (frames, strips), ADU, above `base_adu`, (strips,) or one a frame
    (frames, strips).

    Physics first: a saturated, an empty or a faint frame (`noise_adu` (frames,) is the noise of a
    pixel) is no flat, whatever the others are. Then the vote:
    a frame 3 times brighter or darker than the median, or one whose strips differ from the common
    shape by 30 %. Different exposures of a twilight are no fault.
    """
    signal = levels - base_adu
    noises = np.zeros(len(levels)) if noise_adu is None else noise_adu
    reasons: list[str | None] = []
    for row, light, noise in zip(levels, signal, noises, strict=True):
        if saturation_adu is not None and np.median(row) > SATURATED * saturation_adu:
            reasons.append(f"it is saturated (level {np.median(row):.0f} ADU)")
        elif np.median(light) <= 0:
            reasons.append(f"there is no light on it (level {np.median(row):.0f} ADU)")
        else:
            reasons.append(suspects.faint(float(np.median(light)), float(noise)))
    good = np.array([reason is None for reason in reasons])
    if good.sum() < 3:
        return reasons
    middle = np.median(signal, axis=1)
    typical = float(np.median(middle[good]))
    shape = signal[good] / middle[good, None]
    common = np.median(shape, axis=0)
    for i in np.flatnonzero(good):
        ratio = middle[i] / typical
        with np.errstate(divide="ignore", invalid="ignore"):
            departure = float(np.max(np.abs(signal[i] / middle[i] / common - 1.0)))
        if not 1.0 / FLAT_RATIO <= ratio <= FLAT_RATIO:
            reasons[i] = f"its level is {middle[i]:.0f} ADU where the others have {typical:.0f} ADU"
        elif departure > FLAT_SHAPE:
            reasons[i] = f"a part of it differs by {departure:.0%} from the other flats' shape"
    return reasons


def _strip_starts(height: int) -> list[int]:
    """Return first rows of the strips, even, so that each holds all Bayer phases."""
    last = max(0, height - STRIP_ROWS)
    return sorted({int(y) // 2 * 2 for y in np.linspace(0, last, STRIPS)})


def _strips(reader: image_io.RowReader | _Lowered, starts: Sequence[int]) -> list[Floats]:
    height = reader.shape[0]
    return [reader.to_float(reader.rows(y, min(height, y + STRIP_ROWS))) for y in starts]


def _trimmed_mean(strip: Floats) -> float:
    """Mean of the middle four fifths: robust as a median, and not quantised as one."""
    ordered = np.sort(strip, axis=None)  # ten times as fast as numpy's quantiles
    tenth = ordered.size // 10
    return float(ordered[tenth : ordered.size - tenth].mean(dtype=np.float64))


def _spread(strip: Floats) -> float:
    centre = np.sort(strip, axis=None)[strip.size // 2]
    return float(1.4826 * np.sort(np.abs(strip - centre), axis=None)[strip.size // 2])


def _flat_levels(opened: Sequence[_Opened], group: CalibrationSet) -> Doubles:
    """Return the levels (n, 1) or (n, 4) of the flats above their pedestals, ADU."""
    bayer = group.key.bayer_pattern is not None
    measured = np.array(
        [flat.levels(one.rows, bayer=bayer, subtract=one.pedestal) for one in opened], np.float64
    )
    if not (measured > 0).all():
        raise IncompatibleFramesError("A flat of this set has no light in one of its colours.")
    return measured


def _refuse_pedestal(group: CalibrationSet, opened: Sequence[_Opened], levels: Doubles) -> None:
    """Raise IncompatibleFramesError for flats of which the pedestal may be a large part."""
    ceiling = _ceiling(group, opened[0].frame)
    level = float(np.median(levels))
    if ceiling is None or level >= UNKNOWN_PEDESTAL * ceiling or _sections(group).bias:
        return
    if any(one.pedestal is None for one in opened):
        raise IncompatibleFramesError(
            f"These flats reach only {level / ceiling:.1%} of full scale, and there is no "
            "flat-dark, dark or bias to subtract from them: how much of that is light cannot be "
            "told, and they would spoil the corners of every light. Take flat-darks or bias "
            "frames of this gain and offset; the flats are used by themselves then."
        )


def _too_few(
    frames: Sequence[FiledFrame], left_out: dict[str, str], wanted: int
) -> IncompatibleFramesError:
    first = next((frame for frame in frames if frame.sha256 in left_out), None)
    example = f" ({first.path.name}: {left_out[first.sha256]})" if first else ""
    return IncompatibleFramesError(
        f"Only {len(frames) - len(left_out)} of {len(frames)} frames can be used, "
        f"{wanted} are needed{example}."
    )


# --- the file ------------------------------------------------------------------------------------


def _path(
    group: CalibrationSet, used: Sequence[FiledFrame], generation: int, fingerprint: str
) -> PurePosixPath:
    """Return e.g. `masters/MasterDark_300s_-10C_g100_o50_bin1_CAMERA_v1_3fa9c1d2.fits`."""
    key = group.key
    temperature_c = _mean([frame.record.temperature_c for frame in used])
    parts = [TITLES[group.frame_type][0]]
    if _is_flat(group):
        parts += [group.filter or "nofilter", group.flat_light or "", group.session]
    elif group.frame_type is not FrameType.BIAS and group.exposure_s is not None:
        parts.append(f"{group.exposure_s:g}s")
    if not _is_flat(group) and temperature_c is not None:
        parts.append(f"{round(temperature_c):d}C")
    parts += [f"g{key.gain:g}"] if key.gain is not None else []
    parts += [f"o{key.offset:g}"] if key.offset is not None else []
    square = key.xbinning == key.ybinning
    parts.append(f"bin{key.xbinning}" if square else f"bin{key.xbinning}x{key.ybinning}")
    parts += [key.camera or "", f"v{generation}", fingerprint]
    return PurePosixPath(MASTERS_FOLDER, "_".join(filter(None, map(safe, parts))) + ".fits")


def safe(text: str) -> str:
    """Return a header's text as a part of a file name: plain letters, no separators, short."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip(".").rstrip("-")[:40]


def _fingerprint(
    inputs: Sequence[Input],
    lowered_by: Mapping[str, MasterRecord],
    made: Mapping[str, MadeDark],
    sigma: float,
) -> str:
    """Return eight digits that stand for everything the pixels depend on."""
    lines = sorted(
        f"{entry.sha256} {lowered_by[entry.sha256].sha256 if entry.sha256 in lowered_by else ''}"
        for entry in inputs
        if entry.left_out is None
    )
    lines += [
        f"{entry.sha256} {made[entry.sha256].mark}"
        for entry in inputs
        if entry.left_out is None and entry.sha256 in made
    ]
    lines += [f"{sigma:g}", __version__]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def _cards(
    group: CalibrationSet,
    used: Sequence[FiledFrame],
    built: BuiltMaster,
    *,
    subtract: MasterRecord | None,
    sigma: float,
    found: _Found,
) -> list[Card]:
    """Return the header: what other programs read, then all that the database knows (LK…)."""
    key = group.key
    live_s = math.fsum(frame.record.exposure_s or 0.0 for frame in used)
    first = min((frame.record.date_obs for frame in used if frame.record.date_obs), default=None)
    cards = [
        Card("IMAGETYP", TITLES[group.frame_type][1], "type of image"),
        Card("NCOMBINE", len(used), "frames combined"),
        Card("STACKCNT", len(used), "frames combined"),
        Card("EXPTIME", built.exposure_s, "[s] of one frame"),
        Card("LIVETIME", live_s, "[s] of all frames"),
        Card("CCD-TEMP", _rounded(built.temperature_c, 3), "[degC] mean of the frames"),
        Card("FILTER", group.filter, "filter"),
        Card("GAIN", key.gain, "camera's gain setting"),
        Card("OFFSET", key.offset, "camera's offset setting"),
        Card("READOUTM", key.readout_mode, "readout mode"),
        Card("XBINNING", key.xbinning, "binning along a row"),
        Card("YBINNING", key.ybinning, "binning along a column"),
        Card("INSTRUME", key.camera, "camera"),
        Card("BAYERPAT", displayed_pattern(key, group.row_order), "Bayer pattern as displayed"),
        Card("ROWORDER", group.row_order, "order of rows"),
        Card("TELESCOP", group.telescope, "telescope"),
        Card("FOCALLEN", group.focal_length_mm, "[mm] focal length"),
        Card("ROTATANG", group.rotator_deg, "[deg] mechanical rotator angle"),
        Card("DATE-OBS", fits_time(first), "[UTC] start of the first frame"),
        Card("SWCREATE", built.version, "program that made this file"),
        Card("LKSET", group.id, "calibration set"),
        Card("LKGEN", built.generation, "generation of its master"),
        Card("LKNIGHT", group.session or None, "night of the flats"),
        Card("LKLIGHT", group.flat_light, "what the flats were taken of"),
        Card("LKSTORE", key.storage, "pixel format of the raw frames"),
        Card("LKSECT", key.sections, "sections of the raw frames"),
        Card("LKMEAN", fits_time(built.date_obs), "[UTC] mean start of the frames"),
        Card("LKMETHOD", "sigma-clipped mean", "how the frames were combined"),
        Card("LKSIGMA", round(reachable_sigma(sigma, len(used)), 4), "clip, standard deviations"),
        Card("LKKEPT", round(found.kept, 6), "fraction of the values kept"),
        Card("LKNOISE", round(found.noise_adu, 4), "[ADU] median error of the mean"),
        Card("LKSUBTR", subtract.name if subtract else None, "master subtracted first"),
        Card("LKSUBSHA", subtract.sha256[:16] if subtract else None, "its SHA-256, beginning"),
        Card("LKOVER", True if _sections(group).bias else None, "overscan subtracted first"),
        Card("LKLEFT", len(built.inputs) - len(used), "frames left out"),
    ]
    cards += [
        Card(f"LKI{number:05d}", frame.sha256[:16], "SHA-256 of an input, beginning")
        for number, frame in enumerate(used, start=1)
    ]
    return [card for card in cards if card.value is not None]


def displayed_pattern(key: CalibrationKey, row_order: str) -> str | None:
    """Return the mosaic at the first displayed row, as headers give it; ours begins as stored."""
    pattern = key.bayer_pattern
    if pattern and row_order == "BOTTOM-UP" and key.height % 2 == 0:
        return pattern[2:] + pattern[:2]
    return pattern


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
    bare = sum(frame.sha256 not in lowered_by for frame in used)
    if bare and not _sections(group).bias:
        these = "these flats" if bare == len(used) else f"{bare} of {len(used)} flats"
        notes.append(
            f"There was no flat-dark, dark or bias to subtract from {these}: they correct "
            "too little until there is one."
        )
    long = max(
        (
            frame.record.exposure_s or 0.0
            for frame in used
            if frame.sha256 in lowered_by and lowered_by[frame.sha256].frame_type is FrameType.BIAS
        ),
        default=0.0,
    )
    if long > LONG_FLAT_S:
        notes.append(
            f"Flats of {match.seconds(long)} had only a bias subtracted: "
            "flat-darks of that exposure would be better."
        )
    return tuple(notes)


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
    opened: Sequence[_Opened], group: CalibrationSet, levels: Doubles
) -> flat_checks.Agreement | None:
    """Hold the flats of the set's first half against those of its second."""
    columns = overscan.useful(_sections(group), opened[0].reader.shape)[1]
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


def _sections(group: CalibrationSet) -> overscan.Sections:
    return overscan.of_key(group.key.sections, mosaic=group.key.bayer_pattern is not None)


def _overscan(reader: image_io.RowReader, sections: overscan.Sections) -> Floats | None:
    """Return what is taken off a frame for its overscan; None without one."""
    if sections.bias is None:
        return None
    return overscan.correction(reader.to_float(reader.rows(0, reader.shape[0])), sections)


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
        whole, cards = image_io.read_product(root / predecessor.path)
    except (ImageError, OSError):
        return (f"Its predecessor {predecessor.name} cannot be read: not compared.",)
    columns = overscan.useful(_sections(group), whole.shape)[1]
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


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def fits_time(moment: dt.datetime | None) -> str | None:
    """Return a moment as FITS writes it, UTC without a zone."""
    if moment is None:
        return None
    return moment.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
