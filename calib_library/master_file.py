"""A master's file: its name, its header, and how it is read.

The header says everything the database knows of the master. The name carries the generation and a
hash of what went into it: the same frames and settings give the same bytes under the same name, and
nothing else is ever written under that name.
"""

import contextlib
import dataclasses
import datetime as dt
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from calib_library import __version__, combine
from calib_library.catalogue.records import BuiltMaster, CalibrationSet, FiledFrame, Input
from calib_library.errors import ImageError, LibraryError
from calib_library.frame import CalibrationKey, Card, FrameType
from calib_library.images import product_file
from calib_library.library import MASTERS_FOLDER
from calib_library.made_dark import MadeDark
from calib_library.match import MasterRecord
from calib_library.set_files import sections_of

Floats = npt.NDArray[np.float32]

TITLES = {
    FrameType.BIAS: ("MasterBias", "Master Bias"),
    FrameType.DARK: ("MasterDark", "Master Dark"),
    FrameType.FLAT: ("MasterFlat", "Master Flat"),
    FrameType.FLAT_DARK: ("MasterFlatDark", "Master Flat Dark"),
}


# --- reading -------------------------------------------------------------------------------------


def load_master(root: Path, master: MasterRecord) -> Floats:
    """Read a master of the library as (ny, nx) float32, ADU.

    Raises LibraryError where its file is gone, ImageError where it is damaged.
    """
    path = root / master.path
    try:
        image, _ = product_file.read_product(path)
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
            reader = stack.enter_context(product_file.ProductRows(path))
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


# --- its name ------------------------------------------------------------------------------------


def path_of(
    group: CalibrationSet, temperature_c: float | None, generation: int, fingerprint: str
) -> PurePosixPath:
    """Return e.g. `masters/MasterDark_300s_-10C_g100_o50_bin1_CAMERA_v1_3fa9c1d2.fits`."""
    key = group.key
    parts = [TITLES[group.frame_type][0]]
    is_flat = group.frame_type is FrameType.FLAT
    if is_flat:
        parts += [group.filter or "nofilter", group.flat_light or "", group.session]
    elif group.frame_type is not FrameType.BIAS and group.exposure_s is not None:
        parts.append(f"{group.exposure_s:g}s")
    if not is_flat and temperature_c is not None:
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


def fingerprint(
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


# --- its header ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What is known of a master only once it is combined."""

    kept: float = 0.0
    """The fraction of the values that was kept."""
    noise_adu: float = 0.0
    """Median error of the mean."""


def cards_of(
    group: CalibrationSet,
    used: Sequence[FiledFrame],
    built: BuiltMaster,
    *,
    subtract: MasterRecord | None,
    sigma: float,
    found: Found,
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
        Card(
            "LKSIGMA",
            round(combine.reachable_sigma(sigma, len(used)), 4),
            "clip, standard deviations",
        ),
        Card("LKKEPT", round(found.kept, 6), "fraction of the values kept"),
        Card("LKNOISE", round(found.noise_adu, 4), "[ADU] median error of the mean"),
        Card("LKSUBTR", subtract.name if subtract else None, "master subtracted first"),
        Card("LKSUBSHA", subtract.sha256[:16] if subtract else None, "its SHA-256, beginning"),
        Card("LKOVER", True if sections_of(group).bias else None, "overscan subtracted first"),
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


def fits_time(moment: dt.datetime | None) -> str | None:
    """Return a moment as FITS writes it, UTC without a zone."""
    if moment is None:
        return None
    return moment.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
