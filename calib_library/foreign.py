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

import numpy as np
import numpy.typing as npt

from calib_library import __version__, header, master_file, match
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
) -> Foreign:
    """Read a master and settle what it is. `given` are a person's words by the names of _OPTIONS.

    Raises LibraryError with what to give where something is lacking or contradicts; ImageError
    where the file is no image.
    """
    loaded = frame_file.load(path)
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
    record = _with(record, given)
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
    return Foreign(path, record, image, loaded.sha256, (*notes, told))


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
    known = cameras.keys_of(library, key.camera, key.width, key.height)
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
    pedestal = next((card.value for card in loaded.info.cards if card.keyword == "PEDESTAL"), None)
    if isinstance(pedestal, int | float) and pedestal:
        image -= np.float32(pedestal)
    if not np.isfinite(image).all():
        raise LibraryError(f"{path.name} has pixels that are not numbers; make it again.")
    if full_scale_adu is not None:
        image *= np.float32(full_scale_adu)
        return image, f"Its pixels were multiplied by {full_scale_adu:g}, as was asked."
    level = float(np.median(image[::4, ::4]))
    if not loaded.info.storage.startswith("float") or level > 2.0:
        return image, "Its pixels were taken as ADU, as they are."
    if record.frame_type is FrameType.FLAT:
        # Only ratios of a flat count.
        image *= np.float32(30_000.0 / max(level, 1e-9))
        return image, "It was scaled to 30000 ADU: of a flat only the ratios count."
    if UNIT_PROGRAMS.search(" ".join(_programs(loaded, record))):
        image *= np.float32(FULL_SCALE_ADU)
        return image, "Its pixels from 0 to 1 were multiplied by 65535, as its program scales."
    for master in candidates.near(library, record, record.frame_type or FrameType.DARK):
        fits = dataclasses.replace(master.key, gain=record.key.gain) == record.key
        if fits and match.same_exposure(master.exposure_s, record.exposure_s):
            known = float(np.median(master_file.load_master(library.root, master)[::4, ::4]))
            if abs(level * FULL_SCALE_ADU / known - 1.0) < LIKE:
                image *= np.float32(FULL_SCALE_ADU)
                return (
                    image,
                    f"Its pixels were multiplied by 65535, at which it is as {master.name}.",
                )
    raise LibraryError(
        f"{path.name}: its pixels run from 0 to 1, and nothing tells what 1 stands for. "
        "Give --full-scale 65535 if the program scaled 16-bit frames so (most do)."
    )


def _programs(loaded: frame_file.Loaded, record: FrameRecord) -> list[str]:
    """What names the program: its own card, and what it wrote into the history."""
    lines = [
        str(card.value) for card in loaded.info.cards if card.keyword in {"HISTORY", "COMMENT"}
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
