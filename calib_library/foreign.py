"""Masters made elsewhere, by PixInsight, Siril, an ASIAIR: settled in scale, copied, registered.

The copy is a product of this library like any other: in ADU of the raw frames, with our cards. What
the file does not say and cannot be inferred is asked for; nothing is guessed.
"""

import dataclasses
import datetime as dt
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from calib_library import __version__, compare, header, master_file, match
from calib_library.catalogue import cameras, candidates, registry
from calib_library.catalogue.records import BuiltMaster
from calib_library.errors import LibraryError
from calib_library.frame import CalibrationKey, Card, FrameRecord, FrameType
from calib_library.images import frame_file, product_file
from calib_library.images.product_file import FULL_SCALE_ADU
from calib_library.library import MASTERS_FOLDER, CalibrationLibrary
from calib_library.match import MasterRecord

Floats = npt.NDArray[np.float32]

NONE = "none"
"""Given for what the camera does not have: `--temperature none`."""
UNIT_PROGRAMS = re.compile(r"pixinsight|siril", re.IGNORECASE)
"""These scale 16-bit frames to 0..1 by 65535 (FULL_SCALE_ADU)."""
LIKE = 0.2
"""Levels this close, as a part, speak for a scale."""
WIDE_STEP = 65537.0
"""65535 of 16 bits is all of 32."""
SAME_SENSOR, ANOTHER_SENSOR = 0.5, 0.25
"""Two darks of one sensor share more than this part of their hot pixels; of two sensors, less."""

_OPTIONS = {
    "type": "--type dark (or bias, flat, flat-dark)",
    "exposure": "--exposure 300 (seconds)",
    "temperature": "--temperature -10 (°C)",
    "camera": '--camera "ZWO ASI2600MM Pro" (as its frames have it)',
    "gain": "--gain 100",
    "offset": "--offset 50",
    "filter": "--filter H",
}
_NEEDED = {
    FrameType.BIAS: ("camera", "gain", "offset"),
    FrameType.DARK: ("exposure", "temperature", "camera", "gain", "offset"),
    FrameType.FLAT_DARK: ("exposure", "temperature", "camera", "gain", "offset"),
    FrameType.FLAT: ("filter", "camera", "gain", "offset"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Foreign:
    """A master that could be imported."""

    source: Path
    record: FrameRecord
    image: Floats
    """(ny, nx), ADU of the raw frames."""
    sha256: str
    """Of the file as it was given."""
    notes: tuple[str, ...]
    """What was inferred, one sentence each."""


def examine(
    path: Path,
    given: Mapping[str, str],
    *,
    full_scale_adu: float | None,
    library: CalibrationLibrary,
    cameras: Mapping[str, str] = MappingProxyType({}),
) -> Foreign:
    """Read a master and settle what it is. `given` are a person's words by the names of _OPTIONS,
    `cameras` the names that cameras have here, by those of headers.

    Raises LibraryError with what to give where something is lacking or contradicts; ImageError
    where the file is no image.
    """
    loaded = frame_file.load_any(path)
    record = header.parse(
        loaded.info.cards,
        shape=loaded.info.shape,
        storage=loaded.info.storage,
        path=path,
        pattern=None,
        defaults={},
    )
    if record.planes != 1:
        raise LibraryError(
            f"{path.name} is a colour image of three planes; a master must be as the sensor gives "
            "it, before the colours are made."
        )
    record = header.with_camera(_with(record, given), cameras)
    kind = record.frame_type
    if kind is None or kind is FrameType.LIGHT:
        raise _lacking(path, ["type"])
    if kind is not FrameType.FLAT and set(record.calibrated) & set("BD"):
        raise LibraryError(
            f"{path.name} had its bias subtracted already (CALSTAT {record.calibrated}): "
            f"Lightkeeper subtracts a whole {kind} from each light. Import one made of raw frames."
        )
    record, notes = _inferred(record, given, library)
    lacking = [name for name in _NEEDED[kind] if name not in given and _value(record, name) is None]
    if lacking:
        raise _lacking(path, lacking)
    image, told = _in_adu(path, loaded, record, full_scale_adu=full_scale_adu, library=library)
    record, image, turned = _as_stored(record, image, library, xisf=path.suffix.lower() == ".xisf")
    return Foreign(path, record, image, loaded.sha256, (*notes, told, *turned))


def take(
    foreign: Foreign, library: CalibrationLibrary, *, session: str, now: dt.datetime
) -> MasterRecord:
    """Write our copy and register it. Raises LibraryError where it is there already, OSError."""
    record, key = foreign.record, foreign.record.key
    path = _path(foreign)
    if any(master.path == path for master in library.masters(current=False)):
        raise LibraryError(f"{foreign.source.name} is in the library already, as {path.name}.")
    title = master_file.TITLES[record.frame_type or FrameType.DARK][1]
    cards = [
        Card("IMAGETYP", title, "type of image"),
        Card("NCOMBINE", record.stack_count, "frames combined"),
        Card("STACKCNT", record.stack_count, "frames combined"),
        Card("EXPTIME", record.exposure_s, "[s] of one frame"),
        Card("CCD-TEMP", record.temperature_c, "[degC] of the sensor"),
        Card("FILTER", record.filter, "filter"),
        Card("GAIN", key.gain, "camera's gain setting"),
        Card("OFFSET", key.offset, "camera's offset setting"),
        Card("READOUTM", key.readout_mode, "readout mode"),
        Card("XBINNING", key.xbinning, "binning along a row"),
        Card("YBINNING", key.ybinning, "binning along a column"),
        Card("INSTRUME", key.camera, "camera"),
        Card(
            "BAYERPAT", master_file.displayed_pattern(key, record.row_order), "pattern as displayed"
        ),
        Card("ROWORDER", record.row_order, "order of rows"),
        Card("TELESCOP", record.telescope, "telescope"),
        Card("FOCALLEN", record.focal_length_mm, "[mm] focal length"),
        Card("ROTATANG", record.rotator_deg, "[deg] mechanical rotator angle"),
        Card("LKNIGHT", session or None, "night of the flats"),
        Card("LKSTORE", key.storage, "pixel format of the raw frames"),
        Card("LKSECT", key.sections, "sections of the raw frames"),
        Card("LKMEAN", master_file.fits_time(record.date_obs), "[UTC] start of the frames"),
        Card("SWCREATE", f"Lightkeeper {__version__}", "program that made this file"),
        Card("LKIMPORT", foreign.source.name, "master that was imported"),
        Card("LKIMPSHA", foreign.sha256[:16], "its SHA-256, beginning"),
        Card("LKIMPPRG", record.program, "program that made it"),
    ]
    product_file.write_fits(
        library.root / path,
        foreign.image,
        [card for card in cards if card.value is not None],
        # A float master may hold what 0..1 of 16 bits cannot.
        scale="adu",
    )
    made = BuiltMaster(
        set_id=0,
        generation=1,
        path=path,
        sha256=hashlib.sha256((library.root / path).read_bytes()).hexdigest(),
        exposure_s=record.exposure_s,
        temperature_c=record.temperature_c,
        date_obs=record.date_obs,
        inputs=(),
        subtracted=None,
        version=f"imported, made by {record.program or 'an unknown program'}",
        notes=(f"Imported from {foreign.source.name}.", *foreign.notes),
    )
    return registry.register_import(
        library, record, made, source=foreign.source.name, session=session, now=now
    )


def _with(record: FrameRecord, given: Mapping[str, str]) -> FrameRecord:
    """Put a person's words in the place of the header's."""
    number = {
        name: None if given[name].casefold() == NONE else _number(name, given[name])
        for name in ("exposure", "temperature", "gain", "offset")
        if name in given
    }
    text = {
        name: None if given[name].casefold() == NONE else given[name]
        for name in ("camera", "filter")
        if name in given
    }
    key = record.key
    key = dataclasses.replace(
        key,
        camera=text.get("camera", key.camera),
        gain=number.get("gain", key.gain),
        offset=number.get("offset", key.offset),
    )
    filter_ = record.filter
    if "filter" in text:
        filter_ = None if text["filter"] is None else header.normalise_filter(text["filter"])
    kind = record.frame_type
    if "type" in given:
        if given["type"] not in {t.value for t in _NEEDED}:
            raise LibraryError(
                f"--type must be bias, dark, flat or flat-dark, not {given['type']}."
            )
        kind = FrameType(given["type"])
    return dataclasses.replace(
        record,
        key=key,
        frame_type=kind,
        exposure_s=number.get("exposure", record.exposure_s),
        temperature_c=number.get("temperature", record.temperature_c),
        filter=filter_,
    )


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:
        raise LibraryError(f"--{name} must be a number, or {NONE}; not {text}.")
    return value


def _inferred(
    record: FrameRecord, given: Mapping[str, str], library: CalibrationLibrary
) -> tuple[FrameRecord, tuple[str, ...]]:
    """Take what the file lacks from the camera's own frames, where these all agree.

    The storage is always the raw frames': a float master is of 16-bit frames.
    """
    key = dataclasses.replace(record.key, storage="uint16")
    known = [one for one, _ in cameras.keys_of(library, key.camera, key.width, key.height)]
    notes = []
    for name in ("gain", "offset", "readout_mode", "bayer_pattern", "sections", "storage"):
        values = {getattr(one, name) for one in known}
        if name in given or len(values) != 1:
            continue
        [value] = values
        if name == "storage" or (getattr(key, name) is None and value is not None):
            if name != "storage":
                notes.append(
                    f"Its {name.replace('_', ' ')} ({value}) was taken from the camera's frames."
                )
            key = dataclasses.replace(key, **{name: value})
    return dataclasses.replace(record, key=key), tuple(notes)


def _value(record: FrameRecord, name: str) -> object:
    """Return what an option of _OPTIONS would set."""
    key: CalibrationKey = record.key
    return {
        "exposure": record.exposure_s,
        "temperature": record.temperature_c,
        "camera": key.camera,
        "gain": key.gain,
        "offset": key.offset,
        "filter": record.filter,
    }[name]


def _lacking(path: Path, names: list[str]) -> LibraryError:
    asked = ", ".join(_OPTIONS[name] for name in names)
    return LibraryError(
        f"{path.name} does not say its {', its '.join(names)}. Give {asked}; or {NONE} for what "
        "the camera's own frames do not say either."
    )


def _in_adu(
    path: Path,
    loaded: frame_file.Loaded,
    record: FrameRecord,
    *,
    full_scale_adu: float | None,
    library: CalibrationLibrary,
) -> tuple[Floats, str]:
    """Return the pixels in ADU of the raw frames, and how their scale was found."""
    image = np.array(loaded.pixels, np.float32)
    if not np.isfinite(image).all():
        raise LibraryError(f"{path.name} has pixels that are not numbers; make it again.")
    pedestal = next((card.value for card in loaded.info.cards if card.keyword == "PEDESTAL"), None)
    if not isinstance(pedestal, int | float):
        pedestal = 0.0
    unit = loaded.info.storage.startswith("float") and float(np.median(image[::4, ::4])) <= 2.0
    # Where pixels run from 0 to 1 a pedestal of some hundred is one in ADU.
    later = unit and abs(pedestal) > 2.0
    if pedestal and not later:
        image -= np.float32(pedestal)
    told = _scale(path, loaded, image, record, full_scale_adu, library, unit=unit)
    if later:
        image -= np.float32(pedestal)
    return image, told


def _scale(
    path: Path,
    loaded: frame_file.Loaded,
    image: Floats,
    record: FrameRecord,
    full_scale_adu: float | None,
    library: CalibrationLibrary,
    *,
    unit: bool,
) -> str:
    """Bring pixels to ADU in place; returns how. `unit`: they run from 0 to 1."""
    if full_scale_adu is not None:
        image *= np.float32(full_scale_adu)
        return f"Its pixels were multiplied by {full_scale_adu:g}, as was asked."
    if loaded.info.storage == "uint8" and record.key.storage != "uint8":
        raise LibraryError(
            f"{path.name} has only 8 bits a pixel, too coarse for a master: save it as float or "
            "with 16 bits."
        )
    if loaded.info.storage == "uint32" and float(image.max()) > FULL_SCALE_ADU:
        image /= np.float32(WIDE_STEP)
        return "Its pixels of 32 bits were divided by 65537, to 16 bits."
    if not unit:
        return "Its pixels were taken as ADU, as they are."
    level = float(np.median(image[::4, ::4]))
    if record.frame_type is FrameType.FLAT:
        # Only ratios of a flat count.
        image *= np.float32(30_000.0 / max(level, 1e-9))
        return "It was scaled to 30000 ADU: of a flat only the ratios count."
    if UNIT_PROGRAMS.search(" ".join(_programs(loaded, record))):
        image *= np.float32(FULL_SCALE_ADU)
        return "Its pixels from 0 to 1 were multiplied by 65535, as its program scales."
    for master in candidates.near(library, record, record.frame_type or FrameType.DARK):
        fits = dataclasses.replace(master.key, gain=record.key.gain) == record.key
        if fits and match.same_exposure(master.exposure_s, record.exposure_s):
            known = float(np.median(master_file.load_master(library.root, master)[::4, ::4]))
            if abs(level * FULL_SCALE_ADU / known - 1.0) < LIKE:
                image *= np.float32(FULL_SCALE_ADU)
                return f"Its pixels were multiplied by 65535, at which it is as {master.name}."
    raise LibraryError(
        f"{path.name}: its pixels run from 0 to 1, and nothing tells what 1 stands for. "
        "Give --full-scale 65535 if the program scaled 16-bit frames so (most do)."
    )


def _as_stored(
    record: FrameRecord, image: Floats, library: CalibrationLibrary, *, xisf: bool
) -> tuple[FrameRecord, Floats, tuple[str, ...]]:
    """Give a master the order of rows of the camera's raw frames, as it will be applied to them.

    XISF has the top row first, and PixInsight turns frames around whose ROWORDER is BOTTOM-UP (or,
    set so, all). A dark's hot pixels tell, where the library has darks of the camera; else, of
    XISF, the order of the camera's frames.
    """
    key = record.key
    known = cameras.keys_of(library, key.camera, key.width, key.height)
    orders = {order for _, order in known}
    order = orders.pop() if xisf and len(orders) == 1 else record.row_order
    turned, note = record.row_order != order, None
    if record.frame_type in {FrameType.DARK, FrameType.FLAT_DARK}:
        shared = _shared_hot(record, image, library)
        if shared is not None:
            order, straight, over, name = shared
            if max(straight, over) < ANOTHER_SENSOR:
                note = (
                    f"Only {max(straight, over):.0%} of the hot pixels of {name} are hot in it: is "
                    "it of this very camera?"
                )
            elif max(straight, over) > SAME_SENSOR:
                turned = over > straight
    if not turned and order == record.row_order:
        return record, image, () if note is None else (note,)
    patterns = {one.bayer_pattern for one, _ in known}
    pattern = key.bayer_pattern
    if len(patterns) == 1:
        [pattern] = patterns
    elif pattern and turned and key.height % 2 == 0:
        pattern = pattern[2:] + pattern[:2]
    record = dataclasses.replace(
        record, row_order=order, key=dataclasses.replace(key, bayer_pattern=pattern)
    )
    if turned:
        image = np.ascontiguousarray(image[::-1])
        note = "It was turned upside down, as the camera's own frames are stored."
    return record, image, () if note is None else (note,)


def _shared_hot(
    record: FrameRecord, image: Floats, library: CalibrationLibrary
) -> tuple[str, float, float, str] | None:
    """(order of rows, part of the hot pixels shared as it is, and upside down, name) beside the
    longest dark of the camera and size; None without one.
    """
    key = record.key
    darks = [
        master
        for master in library.masters()
        if master.frame_type is FrameType.DARK
        and (master.key.camera, master.key.width, master.key.height)
        == (key.camera, key.width, key.height)
    ]
    if not darks:
        return None
    longest = max(darks, key=lambda master: (master.exposure_s or 0.0, master.id))
    old = master_file.load_master(library.root, longest)
    step = 2 if longest.key.bayer_pattern else 1
    straight = compare.shared_hot(image, old, step=step)
    over = compare.shared_hot(image[::-1], old, step=step)
    if straight is None or over is None:
        return None
    return longest.row_order, straight, over, longest.name


def _programs(loaded: frame_file.Loaded, record: FrameRecord) -> list[str]:
    """What names the program: its own card, and what it wrote into the history."""
    lines = [
        str(card.value)
        for card in loaded.info.cards
        if card.keyword in {"HISTORY", "COMMENT", "PROGRAM"}
    ]
    return [record.program or "", *lines]


def _path(foreign: Foreign) -> PurePosixPath:
    record, key = foreign.record, foreign.record.key
    parts = [master_file.TITLES[record.frame_type or FrameType.DARK][0]]
    if record.frame_type is FrameType.FLAT:
        parts.append(record.filter or "nofilter")
    elif record.exposure_s:
        parts.append(f"{record.exposure_s:g}s")
    if record.frame_type is not FrameType.FLAT and record.temperature_c is not None:
        parts.append(f"{round(record.temperature_c):d}C")
    parts += [f"g{key.gain:g}"] if key.gain is not None else []
    parts += [key.camera or "", "imported", foreign.sha256[:8]]
    return PurePosixPath(
        MASTERS_FOLDER, "_".join(filter(None, map(master_file.safe, parts))) + ".fits"
    )
