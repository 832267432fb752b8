"""Overscan and trim, by the section keywords of professional cameras."""

import dataclasses
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library.errors import HeaderError
from calib_library.robust import mad_sigma

SKIPPED = 4
"""The first columns of an overscan still hold charge of the image: they are left out …"""
WIDE = 12
"""… of a strip that is at least so wide, px."""
DRIFT = 2.0
"""Lines are corrected one by one where they scatter by so many times the noise of their medians."""

KEPT = " (with its overscan level)"
"""Ends the sections of masters that were made before overscan was subtracted: what was calibrated
with them is calibrated so again, the frame as it is."""

_SECTION = re.compile(r"\[\s*(\d+)\s*:\s*(\d+)\s*,\s*(\d+)\s*:\s*(\d+)\s*\]")


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """A rectangle of pixels, 0-based and half-open: columns x0 … x1 − 1, rows y0 … y1 − 1."""

    x0: int
    x1: int
    y0: int
    y1: int

    def of(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Cut the rectangle out of an image `(ny, nx)`, as a view.

        Raises HeaderError where the section reaches beyond the image.
        """
        ny, nx = image.shape
        if self.x1 > nx or self.y1 > ny:
            raise HeaderError(
                f"The section [{self.x0 + 1}:{self.x1},{self.y0 + 1}:{self.y1}] reaches beyond "
                f"the image of {nx} × {ny} pixels."
            )
        return image[self.y0 : self.y1, self.x0 : self.x1]


@dataclasses.dataclass(frozen=True, slots=True)
class Sections:
    """What a header says about the parts of its image; None where it says nothing."""

    trim: Section | None
    """The part with useful pixels, by TRIMSEC, else DATASEC."""
    bias: Section | None
    """The overscan, by BIASSEC."""


def parse_section(text: str) -> Section:
    """Read a section as IRAF writes it: `[x1:x2,y1:y2]`, 1-based and inclusive, x first.

    A reversed range (`[100:1,…]`, a flipped read-out) is the same pixels. Raises HeaderError where
    the text is not a section, or begins below 1.
    """
    found = _SECTION.fullmatch(text.strip())
    if found is None:
        raise HeaderError(f"“{text.strip()[:40]}” is not a section such as [1:100,1:200].")
    xa, xb, ya, yb = (int(number) for number in found.groups())
    if min(xa, xb, ya, yb) < 1:
        raise HeaderError(f"The section {text.strip()[:40]} begins below 1.")
    return Section(min(xa, xb) - 1, max(xa, xb), min(ya, yb) - 1, max(ya, yb))


def levels(image: npt.NDArray[Any], overscan: Section, *, by_line: bool) -> npt.NDArray[np.float32]:
    """The level of an image's overscan, ADU: for each row (ny, 1) where the strip is upright, else
    for each column (1, nx).

    With `by_line`, each line along the strip's short side has its own median (for a level that
    drifts during the read-out: it adds the read noise × 1.25/√width); lines that the strip does not
    cover, and all of them without `by_line`, have the median of the whole strip. Raises HeaderError
    where the section reaches beyond the image.
    """
    strip = overscan.of(image)
    upright = strip.shape[0] >= strip.shape[1]
    level = np.full(image.shape[0 if upright else 1], np.median(strip), dtype=np.float32)
    if by_line and upright:
        level[overscan.y0 : overscan.y1] = np.median(strip, axis=1)
    elif by_line:
        level[overscan.x0 : overscan.x1] = np.median(strip, axis=0)
    return level[:, np.newaxis] if upright else level[np.newaxis]


def of_key(text: str | None, *, mosaic: bool = False) -> Sections:
    """Read the sections of a match key: TRIMSEC, BIASSEC and DATASEC as written, joined by `;`.

    The trim of a `mosaic` begins at even pixels, so that its pattern stays what it is. Raises
    HeaderError for a broken one.
    """
    if text is not None and text.endswith(KEPT):
        return Sections(trim=None, bias=None)
    trim, bias, data = (part.strip() for part in (text or ";;").split(";"))
    useful = parse_section(trim or data) if trim or data else None
    if useful is not None and mosaic:
        even_x, even_y = useful.x0 + useful.x0 % 2, useful.y0 + useful.y0 % 2
        useful = dataclasses.replace(useful, x0=even_x, y0=even_y)
    return Sections(trim=useful, bias=parse_section(bias) if bias else None)


def correction(image: npt.NDArray[Any], sections: Sections) -> npt.NDArray[np.float32] | None:
    """What is to be taken off an image (ny, nx) for its overscan, ADU: (ny, 1) or (1, nx), as
    `levels`; None without an overscan.

    The strip's first columns do not count. The level is one for the whole frame unless the lines
    really drift: line by line it would add noise of its own.
    """
    if sections.bias is None:
        return None
    strip = _without_first(sections.bias)
    values = strip.of(image).astype(np.float32)
    return levels(image, strip, by_line=_drifts(values if _upright(strip) else values.T))


def useful(sections: Sections, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns of an image of `shape` with useful pixels; without a trim, all."""
    trim = sections.trim
    if trim is None:
        return slice(0, shape[0]), slice(0, shape[1])
    return slice(trim.y0, trim.y1), slice(trim.x0, trim.x1)


def _upright(section: Section) -> bool:
    return section.y1 - section.y0 >= section.x1 - section.x0


def _without_first(section: Section) -> Section:
    """Leave the first pixels of the strip's short side out, where it is wide enough."""
    if _upright(section):
        skip = SKIPPED if section.x1 - section.x0 >= WIDE else 0
        return dataclasses.replace(section, x0=section.x0 + skip)
    skip = SKIPPED if section.y1 - section.y0 >= WIDE else 0
    return dataclasses.replace(section, y0=section.y0 + skip)


def _drifts(strip: npt.NDArray[np.float32]) -> bool:
    """Whether the lines (n, width) of a strip differ by more than their noise explains."""
    if strip.shape[1] < 2:
        return False
    noise = 1.4826 * np.median(np.abs(np.diff(strip, axis=1))) / np.sqrt(2.0)
    # The median of a line has 1.2533 σ / √width; means show the drift of quantised values too.
    expected = max(float(noise), 0.3) / np.sqrt(strip.shape[1])
    lines = strip.mean(axis=1, dtype=np.float64)
    scatter = mad_sigma(lines)
    return scatter > DRIFT * float(expected)
