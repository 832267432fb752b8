"""Overscan and trim, by the section keywords of professional cameras."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library.errors import HeaderError
from calib_library.frame import Card

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


def sections_of(cards: Sequence[Card]) -> Sections:
    """Read a header's sections; a blank card says nothing. Raises HeaderError for a broken one."""
    texts = {card.keyword: card.value for card in cards if isinstance(card.value, str)}

    def section(*keywords: str) -> Section | None:
        found = next((text for word in keywords if (text := texts.get(word, "").strip())), None)
        return None if found is None else parse_section(found)

    return Sections(trim=section("TRIMSEC", "DATASEC"), bias=section("BIASSEC"))


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


def subtract(
    image: npt.NDArray[np.float32], overscan: Section, *, by_line: bool
) -> npt.NDArray[np.float32]:
    """Take the `levels` of its overscan off an image `(ny, nx)`, in ADU, into a new array."""
    cleaned: npt.NDArray[np.float32] = image - levels(image, overscan, by_line=by_line)
    return cleaned
