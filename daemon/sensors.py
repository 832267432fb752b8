"""Measuring cameras from the flats, biases and darks that masters were built of.

One measurement is one row: the history of a camera in one setting. A warning is given once for a
condition, when it begins.
"""

import contextlib
import datetime as dt
import itertools
from collections.abc import Callable, Sequence
from pathlib import PurePath

from calib_library import header, sensor
from calib_library.catalogue import cameras
from calib_library.catalogue.records import FiledFrame
from calib_library.errors import LibraryError
from calib_library.frame import CalibrationKey, FrameType
from calib_library.images import frame_file
from calib_library.images.row_reader import RowReader
from calib_library.library import CalibrationLibrary
from calib_library.match import MasterRecord
from calib_library.sensor_record import DarkCurrent, Measured, Sensor, SensorRecord
from daemon import memory
from daemon.pipeline import Pipeline

Beat = Callable[[str], None]
Pair = tuple[FiledFrame, FiledFrame]

DARK_SETS = 12
"""The newest darks whose current is measured at a time."""


def measure_next(pipeline: Pipeline, *, now: dt.datetime, beat: Beat) -> bool:
    """Measure one camera of which masters were built since it last was; False where there is none.

    The measurement, or why there is none, is kept in one transaction. What is newly wrong is said
    in the log.
    """
    library = pipeline.library
    due = cameras.unmeasured(library)
    if due is None:
        return False
    key, row_order = due
    beat(f"measuring {key.camera or 'the camera'}")
    before = [one for one in cameras.sensors(library, key, row_order) if one.sensor is not None]
    made = measure(library, key, row_order, before=before[0] if before else None, now=now)
    cameras.add_sensor(library, made)
    memory.give_back()
    name = _name(key)
    if made.sensor is None:
        pipeline.log.info("SENSOR", f"{name}: could not be measured: {made.refused}")
        return True
    gain, noise = made.sensor.gain, made.sensor.read_noise
    last = before[0].sensor if before else None
    # Each new master has the camera measured again: only what is news is said.
    if last is None or abs(gain.value - last.gain.value) > gain.error:
        pipeline.log.info(
            "SENSOR",
            f"{name}: {gain.value:.3f} ± {gain.error:.3f} e-/ADU, "
            f"read noise {noise.value:.3f} ± {noise.error:.3f} e-",
        )
    known = before[0].warnings if before else {}
    for sort, sentence in made.warnings.items():
        if sort not in known:
            pipeline.log.warning("SENSOR", f"{name}: {sentence}")
    return True


def measure(
    library: CalibrationLibrary,
    key: CalibrationKey,
    row_order: str,
    *,
    before: SensorRecord | None,
    now: dt.datetime,
) -> SensorRecord:
    """Measure a camera in one setting from the frames of its masters; nothing is written.

    `before`: the last measurement, with which this one is compared.
    """
    masters = cameras.masters_of(library, key, row_order)
    flats = _pairs(library, [one for one in masters if one.frame_type is FrameType.FLAT])
    biases: list[Pair] = []
    for kind in (FrameType.BIAS, FrameType.FLAT_DARK):
        biases = biases or _pairs(library, [one for one in masters if one.frame_type is kind])
    used = [frame for pair in (*flats, *biases) for frame in pair]
    found, refused = None, None
    darks: tuple[DarkCurrent, ...] = ()
    saturation = _first([frame.record.saturation_adu for pair in flats for frame in pair])
    bayer = key.bayer_pattern is not None
    try:
        with contextlib.ExitStack() as stack:
            readers = {frame.id: stack.enter_context(RowReader(frame.path)) for frame in used}
            found = sensor.measure(
                [readers[frame.id] for pair in flats for frame in pair],
                [readers[frame.id] for pair in biases for frame in pair],
                bayer=bayer,
                saturation_adu=saturation,
            )
        darks, refused = _dark_currents(library, masters, biases[0], gain=found.gain, bayer=bayer)
    except (LibraryError, OSError) as error:
        refused = str(error)
    says = _first([frame.record.e_per_adu for pair in flats for frame in pair])
    return SensorRecord(
        key=key,
        row_order=row_order,
        measured_at=now,
        temperature_c=_first([frame.record.temperature_c for pair in biases for frame in pair]),
        header_e_per_adu=says,
        sensor=found,
        darks=darks,
        inputs=tuple(frame.sha256 for frame in used),
        refused=refused,
        warnings={} if found is None else _warnings(found, before, says),
    )


def _pairs(library: CalibrationLibrary, masters: Sequence[MasterRecord]) -> list[Pair]:
    """Neighbouring frames that are in these masters: first one pair of each, then the next."""
    of_each: list[list[Pair]] = []
    for master in masters[: sensor.PAIRS]:
        used = (frame for frame, out in library.inputs_of(master.id) if out is None)
        frames = list(itertools.islice(filter(_is_there, used), 2 * sensor.PAIRS))
        of_each.append(list(zip(frames[::2], frames[1::2], strict=False)))
    rounds = itertools.zip_longest(*of_each)
    return [pair for one in rounds for pair in one if pair is not None][: sensor.PAIRS]


def _is_there(frame: FiledFrame) -> bool:
    """Is the file still the frame that was filed? Camera programs use their file names again."""
    try:
        info = frame_file.probe(frame.path)
        now = header.parse(
            info.cards, shape=info.shape, storage=info.storage, path=PurePath(frame.path.name)
        )
    except (LibraryError, OSError):
        return False
    then = frame.record
    return (
        info.shape == (then.key.height, then.key.width)
        and info.storage == then.key.storage
        and now.date_obs == then.date_obs
    )


def _dark_currents(
    library: CalibrationLibrary,
    masters: Sequence[MasterRecord],
    bias: Pair,
    *,
    gain: Measured,
    bayer: bool,
) -> tuple[tuple[DarkCurrent, ...], str | None]:
    """The dark current of each dark set, and what was wrong with one that could not be measured."""
    found = []
    trouble = None
    for master in [one for one in masters if one.frame_type is FrameType.DARK][:DARK_SETS]:
        pair = next(iter(_pairs(library, [master])), None)
        if pair is None or not master.exposure_s:
            continue
        try:
            with contextlib.ExitStack() as stack:
                dark, under = (
                    [stack.enter_context(RowReader(frame.path)) for frame in frames]
                    for frames in (pair, bias)
                )
                current = sensor.dark_current(
                    dark,
                    under,
                    exposure_s=master.exposure_s,
                    temperature_c=master.temperature_c,
                    gain=gain,
                    bayer=bayer,
                )
        except (LibraryError, OSError) as error:
            trouble = f"{master.name}: {error}"
        else:
            found.append(current)
    return tuple(found), trouble


def _warnings(
    found: Sensor, before: SensorRecord | None, header_e_per_adu: float | None
) -> dict[str, str]:
    said = {"header": sensor.contradiction(found.gain, header_e_per_adu)}
    if before is not None and before.sensor is not None:
        old = before.sensor
        said["gain"] = sensor.drift(old.gain, found.gain, what="gain", unit="e-/ADU")
        said["read noise"] = sensor.drift(
            old.read_noise, found.read_noise, what="read noise", unit="e-"
        )
    return {sort: sentence for sort, sentence in said.items() if sentence}


def _first(values: Sequence[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _name(key: CalibrationKey) -> str:
    """`ZWO ASI2600MM Pro, gain 100, offset 50`."""
    parts = [key.camera or "the camera"]
    parts += [f"gain {key.gain:g}"] if key.gain is not None else []
    parts += [f"offset {key.offset:g}"] if key.offset is not None else []
    parts += [key.readout_mode] if key.readout_mode else []
    parts += [f"{key.xbinning}×{key.ybinning}"] if key.xbinning * key.ybinning > 1 else []
    return ", ".join(parts)
