"""A lost database: what the masters' own headers say of them, as records to register again.

A master's header carries its key, its set and generation, and the beginning of the hash of every
frame in it, so that the frames are known when they are seen again, and none is counted twice.
"""

import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath, PurePosixPath

from calib_library import header
from calib_library.catalogue.records import BuiltMaster
from calib_library.errors import ImageError, LibraryError
from calib_library.frame import FrameRecord
from calib_library.images import frame_file
from calib_library.images.structure import ImageInfo
from calib_library.library import MASTERS_FOLDER

Value = str | int | float | bool | None


@dataclasses.dataclass(frozen=True, slots=True)
class FoundMaster:
    """What one master's file tells."""

    path: PurePosixPath
    """Relative to the library's folder."""
    sha256: str
    """Of the file, hexadecimal."""
    set_id: int
    generation: int
    record: FrameRecord
    """As one of its frames would have it: the key, the mean temperature."""
    session: str
    """A flat's night; empty otherwise."""
    date_obs: dt.datetime | None
    """Mean start of the frames."""
    inputs: tuple[str, ...]
    """The first 16 digits of the SHA-256 of each frame in it."""
    subtracted: str | None
    """The same of the master that was subtracted first."""
    built_at: dt.datetime
    version: str


@dataclasses.dataclass(frozen=True, slots=True)
class FoundImport:
    """What the copy of a master tells that another program made, for `register_import`."""

    record: FrameRecord
    built: BuiltMaster
    source: str
    """The name of the file that was imported."""
    session: str
    imported_at: dt.datetime


def masters(root: Path) -> Iterator[FoundMaster | FoundImport | str]:
    """Each master below `root`/masters, or a sentence where the file cannot be used."""
    for path in sorted((root / MASTERS_FOLDER).glob("Master*.fits")):
        try:
            yield read(root, path)
        except (LibraryError, OSError) as error:
            yield f"{path.name} is set aside: {str(error).removeprefix(f'{path.name}: ')}"


def read(root: Path, path: Path) -> FoundMaster | FoundImport:
    """Read one master's file, checksum and all. Raises ImageError, HeaderError, OSError."""
    loaded = frame_file.load(path)  # verifies its checksum too
    info = loaded.info
    cards: Mapping[str, Value] = {card.keyword: card.value for card in info.cards}
    if "LKIMPORT" in cards:
        return _imported(root, path, loaded, cards)
    numbers = sorted(name for name in cards if name.startswith("LKI") and name[3:].isdigit())
    generation, set_id = cards.get("LKGEN"), cards.get("LKSET")
    if not numbers or not isinstance(generation, int) or not isinstance(set_id, int):
        raise ImageError(f"{path.name}: its header does not tell what it was made of")
    record = dataclasses.replace(_record(path, info, cards), stack_count=1)
    subtracted = cards.get("LKSUBSHA")
    return FoundMaster(
        path=PurePosixPath(path.relative_to(root).as_posix()),
        sha256=loaded.sha256,
        set_id=set_id,
        generation=generation,
        record=record,
        session=str(cards.get("LKNIGHT") or ""),
        date_obs=_time(cards.get("LKMEAN")),
        inputs=tuple(str(cards[name]) for name in numbers),
        subtracted=None if subtracted is None else str(subtracted),
        built_at=_written(path),
        version=str(cards.get("SWCREATE") or ""),
    )


def _imported(
    root: Path, path: Path, loaded: frame_file.Loaded, cards: Mapping[str, Value]
) -> FoundImport:
    if "LKSTORE" not in cards:
        raise ImageError(f"{path.name}: its header does not tell for which frames it is")
    source = str(cards["LKIMPORT"])
    record = _record(path, loaded.info, cards)
    date_obs = _time(cards.get("LKMEAN"))
    built = BuiltMaster(
        set_id=0,
        generation=1,
        path=PurePosixPath(path.relative_to(root).as_posix()),
        sha256=loaded.sha256,
        exposure_s=record.exposure_s,
        temperature_c=record.temperature_c,
        date_obs=date_obs,
        inputs=(),
        subtracted=None,
        version=f"imported, made by {cards.get('LKIMPPRG') or 'an unknown program'}",
        notes=(f"Imported from {source}.",),
    )
    return FoundImport(
        record=dataclasses.replace(record, date_obs=date_obs),
        built=built,
        source=source,
        session=str(cards.get("LKNIGHT") or ""),
        imported_at=_written(path),
    )


def _record(path: Path, info: ImageInfo, cards: Mapping[str, Value]) -> FrameRecord:
    """What a frame that the master is for has in its header."""
    storage, sections = str(cards.get("LKSTORE", "")), cards.get("LKSECT")
    light = cards.get("LKLIGHT")
    parsed = header.parse(info.cards, shape=info.shape, storage=storage, path=PurePath(path.name))
    return dataclasses.replace(
        parsed,
        key=dataclasses.replace(
            parsed.key, storage=storage, sections=None if sections is None else str(sections)
        ),
        is_master=False,
        calibrated="",
        flat_light=None if light is None else str(light),
    )


def _written(path: Path) -> dt.datetime:
    return dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC)


def _time(value: Value) -> dt.datetime | None:
    return None if value is None else dt.datetime.fromisoformat(str(value)).replace(tzinfo=dt.UTC)
