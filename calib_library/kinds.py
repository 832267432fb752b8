"""What type of frame it is: by the keywords, then the folders, then the file's name."""

import itertools
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Final, Literal

from calib_library import keywords as kw
from calib_library.cards import Reader, Value, compact, text_of, truth
from calib_library.errors import HeaderError
from calib_library.frame import FrameType

Ignored = Literal["ignored"]
_NOT_A_WORD: Final = re.compile(r"[\s_]+")
_NUMBERED: Final = re.compile(r"-?\d+$")
_FIRST_WORD: Final = re.compile(r"((?i:flat|bias))(?i:field)?(?![a-z])")
_BIAS_LIMIT_S: Final = 1e-6
"""A dark shorter than this is a bias: POCS writes its biases as darks of 1e-32 s."""


def normalise_type(value: str) -> tuple[FrameType | Ignored | None, bool]:
    """Read a type's name → (the type, whether it is a master).

    The type is None for a name that is not known, `ignored` for a frame that is neither filed nor
    stacked (a snapshot, a focus frame, a lamp).
    """
    name = compact(value)
    master = name.startswith("master")
    name = re.sub(r"frames?$", "", name.removeprefix("master")) or name
    found = kw.TYPES.get(name) or kw.TYPES.get(name.removesuffix("s"))
    if found is None:
        return None, master
    return ("ignored" if found == kw.IGNORED else FrameType(found)), master


def frame_type(
    reader: Reader, path: PurePath, *, exposure_s: float | None
) -> tuple[FrameType | None, bool]:
    """Decide the type → (type, whether a keyword or the name says that it is a master).

    A contradiction that cannot be resolved, and a type that nothing tells, is None. Raises
    HeaderError for a frame of an ignored type.
    """
    found, master = _by_keywords(reader)
    path_type = _by_path(reader, path)
    if "frame_type" not in reader.sources:
        found = reader.elsewhere("frame_type", lambda card: _known(card.value))
        # The user's pattern goes before the words of the path, those before a default.
        if path_type is not None and reader.sources.get("frame_type") != "pattern":
            reader.sources["frame_type"] = "path"
            found = path_type
        master = master or "master" in path.name.casefold()
    elif path_type is FrameType.FLAT_DARK and found is FrameType.DARK:
        # N.I.N.A. 3 writes plain DARK for the darks of flats; its folder still tells.
        found = FrameType.FLAT_DARK
        reader.sources["frame_type"] = "path"
    elif found is not None and path_type not in {found, None} and not _agree(found, path_type):
        reader.warn(
            f"The path says {path_type}, {reader.sources['frame_type']} says {found}: "
            "the header is believed."
        )
    if found is FrameType.DARK and exposure_s is not None and exposure_s < _BIAS_LIMIT_S:
        reader.warn("A dark without any exposure is taken as a bias.")
        found = FrameType.BIAS
    return found, master


def flat_light(reader: Reader, path: PurePath) -> str | None:
    """Say of a flat whether it was taken of the sky or of the dome; None where nothing tells.

    By the keywords that name types, then by the target's name, then by the folders and the file's
    name, the nearest first; a name that says both tells nothing.
    """
    for keyword in (*kw.TYPE_KEYWORDS, "SUBTYPE", "FIELD", "OBJECT"):
        found = _light_named(reader.text(keyword) or "")
        if found is not None:
            reader.sources["flat_light"] = keyword
            return found
    for segment in (path.stem, *reversed(path.parent.parts)):
        words = _words(segment)
        pairs = (first + second for first, second in itertools.pairwise(words))
        lights = {_light_named(word) for word in (*words, *pairs)} - {None}
        if len(lights) == 1:
            reader.sources["flat_light"] = "path"
            return lights.pop()
        if lights:
            return None
    return None


def _light_named(name: str) -> str | None:
    """`sky` of `Sky Flat`, `SKYFLATS` and `Master Sky Flat Frame`, `dome` likewise."""
    word = re.sub(r"(frames?|s)$", "", compact(name).removeprefix("master"))
    return kw.FLAT_LIGHTS.get(word.removesuffix("field"))


def _agree(found: FrameType, path_type: FrameType | None) -> bool:
    """Darks of flats may lie with the flats or with the darks."""
    return found is FrameType.FLAT_DARK and path_type in {FrameType.FLAT, FrameType.DARK}


def _known(value: Value) -> FrameType | None:
    found, _ = normalise_type(text_of(value) or "")
    return found if isinstance(found, FrameType) else None


def _by_keywords(reader: Reader) -> tuple[FrameType | None, bool]:
    """Collect what every keyword says and make one of it; `sources` is set where any spoke."""
    says: dict[str, FrameType | Ignored] = {}
    master = truth(reader.value("ISMASTER"))
    for keyword in kw.TYPE_KEYWORDS:
        value = reader.text(keyword)
        if value is None:
            continue
        picture = kw.PICTTYPES.get(value) if keyword == "PICTTYPE" else None
        found, is_master = (picture, False) if picture else normalise_type(value)
        master = master or is_master
        if found is not None:
            says[keyword] = found
        elif keyword == "IMAGETYP":
            reader.warn(f"IMAGETYP “{value[:40]}” is not a type of frame that is known.")
    if not says and (found := _known(reader.value("SUBTYPE"))) is not None:
        says["SUBTYPE"] = found
    if not says:
        return None, master
    keyword, first = next(iter(says.items()))
    if first == "ignored":
        raise HeaderError(
            f"{keyword} says “{reader.text(keyword)}”: such frames are neither filed nor stacked."
        )
    reader.sources["frame_type"] = keyword
    distinct = set(says.values())
    if distinct == {FrameType.DARK, FrameType.FLAT_DARK}:
        return FrameType.FLAT_DARK, master
    if len(distinct) > 1:
        told = ", ".join(f"{word} says {value}" for word, value in says.items())
        reader.warn(f"The keywords contradict each other: {told}. The pixels must decide.")
        return None, master
    return _refined(reader, FrameType(first)), master


def _refined(reader: Reader, found: FrameType) -> FrameType:
    """SUBTYPE (Jocular) and FIELD (POCS) know better that a `light` is a flat, a `dark` a bias."""
    better = {FrameType.LIGHT: FrameType.FLAT, FrameType.DARK: FrameType.BIAS}.get(found)
    for keyword in ("SUBTYPE", "FIELD"):
        value = reader.text(keyword) or ""
        word = _FIRST_WORD.match(value)
        if better is not None and word is not None and _known(word[1]) is better:
            reader.warn(f"{keyword} says “{value[:40]}”: the frame is taken as a {better}.")
            reader.sources["frame_type"] = keyword
            return better
    return found


def _words(name: str) -> list[str]:
    """Split a name at `_` and blanks, casefolded, without `master` and a running number."""
    words = (word.removeprefix("master") for word in _NOT_A_WORD.split(name.casefold()))
    return [_NUMBERED.sub("", word) or word for word in words if word]


def _types_in(name: str) -> Iterator[FrameType]:
    """Every type that whole words of a name say: `DWARF_DARK` does, `Dark-Nebula` does not."""
    words = _words(name)
    at = 0
    while at < len(words):
        following = words[at + 1] if at + 1 < len(words) else ""
        pair = kw.PATH_PAIRS.get((words[at], following))
        single = kw.PATH_WORDS.get(words[at])
        if pair is not None:
            yield pair
        elif single is not None and not (words[at] == "dark" and following in kw.AFTER_DARK):
            yield single
        at += 1 if pair is None else 2


def _by_path(reader: Reader, path: PurePath) -> FrameType | None:
    """Take the nearest folder that says exactly one type, and what the file's name adds."""
    folder = None
    for segment in reversed(path.parent.parts):
        types = set(_types_in(segment))
        whole = kw.FOLDERS.get(segment.strip().casefold())
        if whole is not None:
            types.add(whole)
        if len(types) == 1:
            folder = types.pop()
            break
    named = set(_types_in(path.stem))
    if folder is None:
        return named.pop() if len(named) == 1 else None
    if not named - {folder}:
        return folder
    if named == {FrameType.FLAT_DARK} and folder in {FrameType.FLAT, FrameType.DARK}:
        return FrameType.FLAT_DARK
    if folder is FrameType.FLAT_DARK and named <= {FrameType.FLAT, FrameType.DARK}:
        return FrameType.FLAT_DARK
    told = " and ".join(sorted(named))
    reader.warn(f"The folder says {folder}, the file's name {told}: the path decides nothing.")
    return None


def says_nothing(folder: str) -> bool:
    """Whether a folder's name is only types, dates, numbers, exposures and the like."""
    informative = (
        word
        for word in _words(folder)
        if word not in kw.PATH_WORDS
        and word not in kw.FOLDERS
        and word not in kw.PLAIN_FOLDERS
        and word not in kw.FILTERS
        and not re.fullmatch(r"[\d.:/+-]+(?:s|sec|ms|min|c|°c|nm|x\d+)?", word)
        and not re.fullmatch(r"(?:gain|g|offset|o|bin|temp|session|night)-?\d*", word)
    )
    return next(informative, None) is None
