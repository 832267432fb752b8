"""The written stack: a FITS file that other programs open, and a picture to look at.

Files are immutable and carry their generation in the name; the ledger's pointer moves after the
file lies on disk, whole. A link of constant name leads to the newest.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library import __version__, atomic
from calib_library.dark_model import DarkPlan
from calib_library.frame import Card, FrameRecord
from calib_library.images import product_file
from daemon.darkroom import DarkChoice
from daemon.ledger.stacks import Member, Stack
from daemon.report import preview
from daemon.stack import live

Image = npt.NDArray[np.float32]

PEDESTAL_SIGMA = 10.0
"""A stack whose background lies closer to zero than this many σ gets a pedestal, so that nothing
is cut off at 0."""


def safe(text: str) -> str:
    """A name for a file: letters, digits and `+-._`, never empty, never a path."""
    return re.sub(r"[^\w+\-.]+", "_", text, flags=re.ASCII).strip("._") or "none"


def folder_of(stack: Stack) -> Path:
    """`stacks/TARGET/FILTER`, relative to the library."""
    return Path("stacks") / safe(stack.target) / safe(stack.filter or "nofilter")


def stem_of(stack: Stack, others: Sequence[Stack]) -> str:
    """`TARGET_FILTER`, with the stack's number where an earlier stack has that name already (the
    same target by another camera, or `M 42` beside `M_42`).
    """

    def plain(one: Stack) -> str:
        return f"{safe(one.target)}_{safe(one.filter or 'nofilter')}"

    taken = any(other.id < stack.id and plain(other) == plain(stack) for other in others)
    return f"{plain(stack)}_{stack.id}" if taken else plain(stack)


def pedestal_for(image: Image, covered: npt.NDArray[np.bool_]) -> float:
    """ADU to add to `image` (planes, ny, nx) so that no background pixel of those that are
    `covered` (ny, nx) is cut off at zero; whole hundreds, often 0.
    """
    if not covered.any():
        return 0.0
    step = max(1, int(np.sqrt(covered.size / 100_000)))
    sample = image[:, ::step, ::step][:, covered[::step, ::step]]
    if not sample.size:
        return 0.0
    centre = np.median(sample, axis=1)
    spread = 1.4826 * np.median(np.abs(sample - centre[:, None]), axis=1)
    lowest = float(np.min(centre - PEDESTAL_SIGMA * spread))
    return 0.0 if lowest >= 0 else 100.0 * float(np.ceil(-lowest / 100.0))


def cards_for(
    stack: Stack,
    members: Sequence[Member],
    record: FrameRecord,
    *,
    generation: int,
    names: Sequence[str],
    masters: Sequence[str],
    settings: str,
) -> list[Card]:
    """The stack's keywords: what it shows, and everything that went into it."""
    total = sum(member.exposure_s or 0.0 for member in members)
    flags = sorted({flag for member in members for flag in member.flags})
    return [
        Card("IMAGETYP", "Light Frame", "a stack of light frames"),
        Card("OBJECT", stack.target, "target"),
        Card("STACKCNT", len(members), "frames in this stack"),
        Card("NCOMBINE", len(members), "frames in this stack"),
        Card("EXPTIME", total / len(members), "[s] exposure of one frame"),
        Card("LIVETIME", total, "[s] total exposure"),
        Card("CALSTAT", calstat([member.masters for member in members]), CALSTAT_COMMENT),
        *_camera_cards(record),
        Card("LKGEN", generation, "generation of this product"),
        Card("LKFLAGS", "; ".join(flags)[:60], "what the calibration lacks"),
        Card("LKSET", settings[:60], "settings of the stack"),
        *dark_cards([member.masters for member in members]),
        *flat_cards([member.masters for member in members]),
        *(Card("HISTORY", f"master: {name}") for name in masters),
        *(Card("HISTORY", f"frame: {name}") for name in names),
    ]


def calibrated_cards(record: FrameRecord, masters: Mapping[str, Any], name: str) -> list[Card]:
    """The keywords of one calibrated light."""
    return [
        Card("IMAGETYP", "Light Frame", "calibrated"),
        *([Card("OBJECT", record.object_name)] if record.object_name else []),
        Card("EXPTIME", record.exposure_s or 0.0, "[s]"),
        Card("CALSTAT", calstat([masters]), CALSTAT_COMMENT),
        *_camera_cards(record),
        *dark_cards([masters]),
        *flat_cards([masters]),
        Card("HISTORY", f"frame: {name}"),
    ]


def dark_cards(masters: Sequence[Mapping[str, Any]]) -> list[Card]:
    """How the darks of these frames (`Calibration.ids` of each) were made: temperatures and the
    worst error expected, and one line of history for each master of each way.
    """
    choices = [DarkChoice.from_dict(one) for one in masters]
    made = [one for one in choices if one is not None and one.model is not None]
    temperatures = [one.model.temperature_c for one in made if one.model]
    residuals = [one.residual_sigmas for one in made if one.residual_sigmas is not None]
    cards = []
    if temperatures:
        mean = round(sum(temperatures) / len(temperatures), 2)
        cards.append(Card("LKDTEMP", mean, "[degC] of the sensor, mean of what darks are for"))
    if residuals:
        cards.append(Card("LKDERR", max(residuals), "[sigma] error of darks, 99.5 % of pixels"))
    ways: dict[tuple[str, tuple[int, ...]], list[DarkPlan]] = {}
    for one in made:
        if one.model is not None:
            way = one.model.rule.value, tuple(source.master_id for source in one.model.sources)
            ways.setdefault(way, []).append(one.model)
    for (rule, _), plans in ways.items():
        celsius = _span([plan.temperature_c for plan in plans], "+.2f")
        fitted = sum(plan.fitted for plan in plans)
        how = f"{fitted} of {len(plans)} temperatures fitted on the light"
        cards.append(Card("HISTORY", f"dark: {rule}, {celsius} degC, {how}"))
        for position, (source, _, _) in enumerate(plans[0].weights):
            hot = _span([plan.weights[position][1] for plan in plans], ".3f")
            bulk = _span([plan.weights[position][2] for plan in plans], ".3f")
            smooth = "" if hot == bulk else f" (smooth level {bulk})"
            at = f"{source.exposure_s:g} s, {source.temperature_c:+.2f} degC"
            cards.append(Card("HISTORY", f"dark: {hot}{smooth} of {source.name} ({at})"))
    return cards


def flat_cards(masters: Sequence[Mapping[str, Any]]) -> list[Card]:
    """One line of history where flats of the dome got the twilight's large scale, from the
    `Calibration.ids` of each frame.
    """
    both = sum(one.get("sky_flat") is not None for one in masters)
    if not both:
        return []
    how = f"dome x smooth(twilight / dome), {both} of {len(masters)} frames"
    return [Card("HISTORY", f"flat: {how}")]


def _span(values: Sequence[float], form: str) -> str:
    """`0.412`, or `0.385 to 0.412` where they differ."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


CALSTAT_COMMENT = "calibrated with bias, dark, flat"


def calstat(masters: Sequence[Mapping[str, Any]]) -> str:
    """The steps that every frame went through, as MaxIm writes them: `BDF`. A dark contains the
    bias.
    """
    steps = {"B": ("bias", "dark"), "D": ("dark",), "F": ("flat",)}
    return "".join(
        letter
        for letter, kinds in steps.items()
        if all(any(one.get(kind) for kind in kinds) for one in masters)
    )


def binned(record: FrameRecord, times: int) -> FrameRecord:
    """A record of what the camera would have given at so many times its binning, for a stack that
    is smaller than its frames: its scale is then told rightly.
    """
    key = dataclasses.replace(
        record.key, xbinning=times * record.key.xbinning, ybinning=times * record.key.ybinning
    )
    size = record.pixel_size_um
    wider = None if size is None else times * size
    return dataclasses.replace(record, key=key, pixel_size_um=wider)


def _camera_cards(record: FrameRecord) -> list[Card]:
    date = record.date_obs.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] if record.date_obs else None
    values: list[tuple[str, str | float | None, str]] = [
        ("DATE-OBS", date, "UTC, start of the (first) frame"),
        ("INSTRUME", record.key.camera, "camera"),
        ("TELESCOP", record.telescope, ""),
        ("FILTER", record.filter_name or record.filter, "filter"),
        ("GAIN", record.key.gain, "camera gain setting"),
        ("OFFSET", record.key.offset, "camera offset setting"),
        ("EGAIN", record.e_per_adu, "[e-/ADU] of one frame"),
        ("CCD-TEMP", record.temperature_c, "[degC] of the (first) frame"),
        ("FOCALLEN", record.focal_length_mm, "[mm]"),
        ("XPIXSZ", record.pixel_size_um, "[um]"),
        ("XBINNING", record.key.xbinning, ""),
        ("YBINNING", record.key.ybinning, ""),
        ("RA", record.ra_deg, "[deg]"),
        ("DEC", record.dec_deg, "[deg]"),
        ("ROWORDER", record.row_order, "order of the rows"),
        ("SWCREATE", f"Lightkeeper {__version__}", ""),
    ]
    return [Card(name, value, comment) for name, value, comment in values if value is not None]


def write(
    root: Path,
    relative: Path,
    image: live.StackImage,
    cards: Sequence[Card],
    *,
    scale: product_file.Scale,
) -> None:
    """Write one generation to `relative`, a path in the library. The ledger's pointer is the
    caller's to move.
    """
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    mean, weight, variance = (
        planes if len(planes) > 1 else planes[0]
        for planes in (image.mean, image.weight, image.variance)
    )
    product_file.write_fits(
        path,
        mean,
        cards,
        scale=scale,
        pedestal_adu=pedestal_for(image.mean, image.coverage > 0),
        extra={"WEIGHT": weight, "VARIANCE": variance, "COVERAGE": image.coverage},
    )


def write_preview(root: Path, relative: Path, image: live.StackImage, *, max_px: int) -> None:
    """Write the auto-stretched picture to `relative`, a path in the library."""
    write_picture(root, relative, picture_of(image, max_px=max_px))


def picture_of(image: live.StackImage, *, max_px: int) -> bytes:
    """The auto-stretched picture, a PNG file's bytes."""
    return preview.png(image.mean, coverage=image.coverage, max_px=max_px)


def write_picture(root: Path, relative: Path, picture: bytes) -> None:
    """Write a picture to `relative`, a path in the library."""
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, picture)


def link_newest(root: Path, link_to: Path, newest: Path) -> None:
    """Let the link (both are paths in the library, in one folder) lead to the newest
    generation, at once or not at all.
    """
    link = root / link_to
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(newest.name)
    temporary.replace(link)
