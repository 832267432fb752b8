"""Do the pixels agree with the label? A quick look at a small part of a frame.

Windows spread over the frame are read at full resolution: they cost the same for any size of
sensor, and compact sources in them can be told from hot pixels. Only what is certain rejects a
frame; what is merely odd becomes a sentence.
"""

import dataclasses
import math
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from calib_library.frame import FrameRecord, FrameType
from calib_library.kernels import kernel

Pixels = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Verdict = Literal["ok", "quarantine", "reject"]

CONFIDENT: Final = 0.75
"""From here on a proposed type may stand in for a missing one."""
_WINDOW: Final = 96
_GRID: Final = 8
_SMALLEST: Final = 16
_ROWS: Final = 512
_FILLED: Final = 0.05
"""Share of the rows that must hold one single value before a file counts as never finished."""
_RING: Final = 8
"""px, even: a pixel at this distance in x, y or both has the same colour in a mosaic."""


@dataclasses.dataclass(frozen=True, slots=True)
class Inspection:
    """What the pixels say, and whether it agrees with the label. Levels are in ADU."""

    median_adu: float
    sigma_adu: float
    """Noise of a pixel: 1.4826 MAD of the differences of neighbours of one colour, over √2."""
    minimum: float
    maximum: float
    """Of the pixels looked at."""
    saturated_fraction: float
    gradient: float
    """Large-scale structure: (95th − 5th percentile of the windows' levels) / median."""
    star_like: int
    """Bright compact sources, wider than a pixel, in the windows."""
    proposed: FrameType | None
    """What the pixels and the exposure alone suggest."""
    confidence: float
    """Of the proposal, 0 … 1."""
    verdict: Verdict
    reasons: tuple[str, ...]
    """Sentences: what is wrong, and what to do. An `ok` frame may have some."""

    def sentences(self) -> tuple[str, ...]:
        """What was seen, for a person: the measures, what they look like, the reasons."""
        levels = (
            f"median {self.median_adu:.1f} ADU, noise {self.sigma_adu:.1f} ADU, "
            f"{self.minimum:.0f} to {self.maximum:.0f}, {self.saturated_fraction:.1%} saturated"
        )
        stars = f"{self.star_like} star-like sources in the windows"
        lines = [levels, f"{stars}, whose levels are {self.gradient:.1%} apart"]
        if self.proposed is not None:
            lines.append(f"by themselves like a {self.proposed} ({self.confidence:.0%} sure)")
        return (*lines, *self.reasons)


class Look(NamedTuple):
    """Measures of the windows, on which the rules work."""

    median: float
    sigma: float
    minimum: float
    maximum: float
    saturated: float
    """Share of the pixels at saturation."""
    spread: float
    """ADU: 95th − 5th percentile of the windows' levels, their noise taken off."""
    falloff: float
    """Share of the windows' variance that a fall-off from the centre explains, with its sign."""
    colours: float
    """ADU: range of the medians of the 2×2 mosaic's four planes."""
    stars: int
    hot: int
    """Single pixels far above their neighbours."""
    seen: int
    """Pixels among which stars and hot ones were counted."""
    full_scale: float
    """ADU."""

    @property
    def level(self) -> float:
        """Give the median as a share of the full scale."""
        return self.median / self.full_scale

    @property
    def gradient(self) -> float:
        """Give the spread as a share of the median."""
        return self.spread / abs(self.median) if self.median else 0.0

    @property
    def starry(self) -> bool:
        """Whether there are more stars than crowded hot pixels and cosmic rays can feign.

        Real darks have one such source for ninety hot pixels or more; real lights have three for
        one hot pixel.
        """
        return self.stars >= 8 and self.stars > 0.25 * self.hot

    @property
    def lit(self) -> bool:
        """Whether light fills the frame, as in a flat: a high level without hot pixels."""
        return self.level > 0.15 and self.hot < 1e-3 * self.seen

    @property
    def unlit(self) -> bool:
        """Whether there is no light at all: a low level, the same everywhere and in all colours.

        Without SATURATE a flat of 12 bits that are not shifted has a low level too; it is told by
        its vignette. Below 1 % of 16 bits not even such a flat would lie.
        """
        if self.level > 0.06 or self.colours > 0.002 * self.full_scale:
            return False
        return self.level < 0.01 or self.gradient < 0.02 or self.hot > 1e-3 * self.seen


def examine(pixels: Pixels, record: FrameRecord) -> Inspection:
    """Look at a frame `(ny, nx)` or `(3, ny, nx)`, integer or float, in ADU.

    Nothing is mutated. The cost is that of about 0.6 megapixels, whatever the frame's size.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _examine(pixels, record)


def _examine(pixels: Pixels, record: FrameRecord) -> Inspection:
    plane = pixels[len(pixels) // 2] if pixels.ndim == 3 else pixels
    if min(plane.shape) < _SMALLEST:
        return _refused(f"{plane.shape[1]} × {plane.shape[0]} pixels are not a sensor's frame.")
    blocks = _windows(plane)
    finite = np.isfinite(blocks)
    missing = 1 - np.count_nonzero(finite) / finite.size
    if missing > 0.5:
        return _refused(f"{missing:.0%} of the pixels are not numbers: the file is damaged.")
    if missing:
        blocks = np.where(finite, blocks, np.median(blocks[finite]))
    certain = _unfinished(plane, blocks, record)
    look = _look(blocks, plane.shape, record)
    if certain is not None:
        return _result(look, None, 0.0, "reject", (certain,))
    proposed, confidence = propose(look, record)
    verdict, reasons = judge(look, record, proposed, confidence)
    if missing:
        reasons = (*reasons, f"{missing:.1%} of the pixels are not numbers.")
    return _result(look, proposed, confidence, verdict, reasons)


def _finite(value: float) -> float:
    """Replace what absurd floats overflow to: an inspection's numbers are always finite."""
    return value if math.isfinite(value) else 0.0


def _result(
    look: Look,
    proposed: FrameType | None,
    confidence: float,
    verdict: Verdict,
    reasons: tuple[str, ...],
) -> Inspection:
    return Inspection(
        median_adu=_finite(look.median),
        sigma_adu=_finite(look.sigma),
        minimum=_finite(look.minimum),
        maximum=_finite(look.maximum),
        saturated_fraction=look.saturated,
        gradient=_finite(look.gradient),
        star_like=look.stars,
        proposed=proposed,
        confidence=confidence,
        verdict=verdict,
        reasons=reasons,
    )


def _refused(reason: str) -> Inspection:
    nothing = Look(0, 0, 0, 0, 0, 0, 0, 0, stars=0, hot=0, seen=1, full_scale=1)
    return _result(nothing, None, 0.0, "reject", (reason,))


# --- measuring ---------------------------------------------------------------------------------


def _starts(length: int, window: int) -> npt.NDArray[np.intp]:
    """Spread windows evenly; each begins at an even pixel, on the same colour of a mosaic."""
    count = min(_GRID, max(1, length // window))
    return (np.linspace(0, length - window, count) / 2).astype(np.intp) * 2


def _windows(plane: Pixels) -> Floats:
    """Cut windows over the whole frame, `(rows, columns, size, size)`, square and even."""
    size = min(_WINDOW, *plane.shape) // 2 * 2
    across = _starts(plane.shape[1], size)
    return np.stack(
        [
            np.stack([plane[y : y + size, x : x + size] for x in across])
            for y in _starts(plane.shape[0], size)
        ]
    ).astype(np.float32)


def _unfinished(plane: Pixels, blocks: Floats, record: FrameRecord) -> str | None:
    """Say why this cannot be a whole image: it is constant, or rows of it were never written."""
    rows = plane[:: max(1, plane.shape[0] // _ROWS), :: max(1, plane.shape[1] // 128)]
    lowest, highest = rows.min(axis=1), rows.max(axis=1)
    still = lowest == highest
    if still.all() and (lowest == lowest[0]).all() and np.ptp(blocks) == 0:
        value = float(lowest[0])
        if value == 0 or (value == 32_768 and record.key.storage == "uint16"):
            return "Every pixel is zero: the file was never filled. Take the frame again."
        return f"Every pixel is {value:g}: this is not an image. Take the frame again."
    # 32768 is what a zero in the file means where BZERO makes 16 bits unsigned.
    blank = still & ((lowest == 0) | (lowest == 32_768))
    share = _longest_run(blank) / len(blank)
    alive = np.count_nonzero(~still) > 0.9 * np.count_nonzero(~blank)
    if share >= _FILLED and alive:
        return (
            f"{share:.0%} of the rows are empty: the file was not written to its end. Copy it "
            "again, or take the frame again."
        )
    return None


def _longest_run(flags: npt.NDArray[np.bool_]) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0


def _look(blocks: Floats, shape: tuple[int, ...], record: FrameRecord) -> Look:
    """Measure windows `(rows, columns, size, size)` of a frame of `shape`."""
    rows, columns, size = blocks.shape[:3]
    flat = blocks.reshape(rows * columns, size, size)
    # The four planes of a mosaic; of a monochrome frame, four samples of the same.
    planes = np.stack([flat[:, y::2, x::2] for y in (0, 1) for x in (0, 1)], axis=1)
    medians = _median(planes.reshape(*planes.shape[:2], -1))
    steps = np.abs(planes[..., 1:] - planes[..., :-1]).reshape(len(flat), -1)
    noise = 1.4826 / math.sqrt(2) * _median(steps)
    floor = _half_step(steps)
    sigma = float(np.median(noise))
    levels = medians.mean(axis=1)
    # Medians of equal windows scatter by 1.2533 σ / √n; 5 … 95 % of them span 3.3 times that.
    scatter = 3.3 * 1.2533 * max(sigma, floor) / size + floor
    low, high = float(np.percentile(levels, 5)), float(np.percentile(levels, 95))
    maximum = float(blocks.max())
    full_scale, saturated = _saturation(blocks, maximum, record)
    stars, hot = _sources(flat, medians, np.maximum(noise, np.float32(floor)))
    return Look(
        median=float(np.median(medians)),
        sigma=sigma,
        minimum=float(blocks.min()),
        maximum=maximum,
        saturated=saturated,
        spread=max(0.0, high - low - scatter),
        falloff=_falloff(levels.reshape(rows, columns), shape),
        colours=float(np.ptp(np.median(medians, axis=0))),
        stars=stars,
        hot=hot,
        seen=len(flat) * max(1, size - 2 * _RING) ** 2,
        full_scale=full_scale,
    )


def _median(values: Floats) -> Floats:
    """Take the upper median along the last axis: ten times as fast as numpy's mean of two."""
    middle = values.shape[-1] // 2
    return np.ascontiguousarray(np.partition(values, middle, axis=-1)[..., middle])


def _half_step(steps: Floats) -> float:
    """Half the smallest step between values: 8 of a 12-bit camera's shifted to 16 bits."""
    some = steps[:, :64]
    moving = some[some > 0]
    return float(moving.min()) / 2 if len(moving) else 0.5


def _saturation(blocks: Floats, maximum: float, record: FrameRecord) -> tuple[float, float]:
    """Full scale in ADU, and the share of pixels at it (0 for floats, whose limit is unknown)."""
    known = {"uint8": 255.0, "int16": 32_767.0, "uint16": 65_535.0}.get(record.key.storage)
    if record.saturation_adu is not None:
        known = record.saturation_adu
    elif known is None:
        return (1.0 if maximum <= 1.5 else 65_535.0), 0.0
    elif maximum in {1023.0, 4095.0, 16_383.0} and _share(blocks == maximum) > 1e-3:
        known = maximum  # 10, 12 or 14 bits, not shifted
    # 12 and 14 bits shifted to the left end at 65520 and 65532.
    return known, _share(blocks >= 0.98 * known)


def _share(flags: npt.NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(flags) / flags.size)


def _falloff(levels: Floats, shape: tuple[int, ...]) -> float:
    """Correlate the windows' levels `(rows, columns)` with closeness to the centre: −1 … 1."""
    rows, columns = levels.shape
    if min(rows, columns) < 3 or np.ptp(levels) == 0:
        return 0.0
    y = np.linspace(-shape[0], shape[0], rows)
    x = np.linspace(-shape[1], shape[1], columns)
    closeness = -(y[:, np.newaxis] ** 2 + x**2)
    return float(np.corrcoef(levels.ravel(), closeness.ravel())[0, 1])


@kernel(allocates=True)
def _sources(flat: Floats, medians: Floats, noise: Floats) -> tuple[int, int]:
    """Count compact sources wider than a pixel, and hot pixels.

    `flat` is `(n, size, size)`, `medians` `(n, 4)` of the mosaic's planes, `noise` `(n,)`. A source
    stands 8 σ above the median of eight pixels around it at a distance; a star's light reaches
    three of its four neighbours, a hot pixel's none, a bad column's two.
    """
    n, size = flat.shape[:2]
    above = np.empty((size, size), np.float32)
    lowest = np.empty(size, np.float32)
    ring = np.empty(8, np.float32)
    stars = hot = 0
    for k in range(n):
        for y in range(size):
            for x in range(size):
                above[y, x] = flat[k, y, x] - medians[k, 2 * (y % 2) + x % 2]
        least = np.float32(8.0) * noise[k]
        for y in range(_RING, size - _RING):
            # What does not even stand above the ring's lowest pixel need not be looked at closely.
            lowest[:] = np.inf
            for dy in (-_RING, 0, _RING):
                for dx in (-_RING, 0, _RING):
                    if dy != 0 or dx != 0:
                        for x in range(_RING, size - _RING):
                            lowest[x] = min(lowest[x], above[y + dy, x + dx])
            for x in range(_RING, size - _RING):
                value = above[y, x]
                if (
                    value - lowest[x] > least
                    and value > above[y - 1, x]
                    and value >= above[y + 1, x]
                    and value > above[y, x - 1]
                    and value >= above[y, x + 1]
                ):
                    around = _ring_median(above, y, x, ring)
                    if value - around > least:
                        wide, line = _form(above, y, x, around, np.float32(3.0) * noise[k])
                        stars += wide >= 3 and not line
                        hot += wide <= 1
    return stars, hot


@kernel()
def _ring_median(above: Floats, y: int, x: int, ring: Floats) -> np.float32:
    """Median of the eight pixels at a distance; `ring` is scratch."""
    number = 0
    for dy in (-_RING, 0, _RING):
        for dx in (-_RING, 0, _RING):
            if dy != 0 or dx != 0:
                value = above[y + dy, x + dx]
                at = number
                while at > 0 and ring[at - 1] > value:
                    ring[at] = ring[at - 1]
                    at -= 1
                ring[at] = value
                number += 1
    return np.float32((ring[3] + ring[4]) / np.float32(2.0))


@kernel()
def _form(above: Floats, y: int, x: int, around: np.float32, least: np.float32) -> tuple[int, bool]:
    """How many of its four neighbours a source reaches, and whether it is part of a line."""
    height = above[y, x] - around
    limit = max(least, np.float32(0.15) * height)
    wide, line = 0, False
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        wide += above[y + dy, x + dx] - around > limit
    # A bright column or row reaches far on both sides along itself, and with a little noise its
    # highest pixel has a third bright neighbour: no star is that long.
    for dy, dx in ((_RING, 0), (0, _RING)):
        ends = min(above[y + dy, x + dx], above[y - dy, x - dx])
        line |= ends - around > np.float32(0.4) * height
    return wide, line


# --- judging -----------------------------------------------------------------------------------


def propose(look: Look, record: FrameRecord) -> tuple[FrameType | None, float]:
    """Say what a frame is by its pixels and exposure alone, and with what confidence, 0 … 1."""
    exposure = record.exposure_s
    if look.saturated > 0.5:
        return None, 0.0
    if look.starry:
        return FrameType.LIGHT, min(0.95, 0.7 + 0.01 * look.stars)
    if look.lit:
        # A long exposure at that level may be a light under clouds or a bright sky.
        brief = exposure is None or exposure <= 60
        marked = look.falloff > 0.5 or look.gradient > 0.02 or look.colours > 0.02 * look.median
        return FrameType.FLAT, 0.55 + 0.2 * brief + 0.15 * marked
    warm = look.hot > 1e-3 * look.seen
    if not look.unlit or exposure is None:
        guess = FrameType.DARK if warm else FrameType.BIAS
        return (guess, 0.6 if warm else 0.5) if look.unlit or warm else (None, 0.0)
    if exposure <= 0.01:
        return FrameType.BIAS, 0.85
    return FrameType.DARK, 0.8 if exposure >= 1 else 0.5


def judge(
    look: Look, record: FrameRecord, proposed: FrameType | None, confidence: float
) -> tuple[Verdict, tuple[str, ...]]:
    """Compare the pixels with the label → (verdict, reasons)."""
    kind = record.frame_type
    if kind is None:
        return _unlabelled(proposed, confidence)
    if kind is FrameType.LIGHT:
        wrong, odd = _light(look, record)
    elif kind is FrameType.FLAT:
        wrong, odd = _flat(look)
    else:
        wrong, odd = _dark(look, kind)
    if record.key.storage == "int16" and look.minimum < -16_384:
        odd.append(
            "Values far below zero: the program seems to have stored unsigned numbers as signed "
            "ones, so that bright pixels wrap."
        )
    return ("quarantine" if wrong else "ok"), (*wrong, *odd)


def _unlabelled(proposed: FrameType | None, confidence: float) -> tuple[Verdict, tuple[str, ...]]:
    if proposed is not None and confidence >= CONFIDENT:
        told = (
            f"Nothing but the pixels tells the type: they look like a {proposed} "
            f"({confidence:.0%} sure)."
        )
        return "ok", (told,)
    guess = f" The pixels hint at a {proposed} ({confidence:.0%} sure)." if proposed else ""
    asked = (
        f"Neither the header nor the path tells for certain what kind of frame this is.{guess} "
        "Put it into a folder named light, flat, dark or bias."
    )
    return "quarantine", (asked,)


_Reasons = tuple[list[str], list[str]]
"""What contradicts the label for certain, and what is only odd."""


def _light(look: Look, record: FrameRecord) -> _Reasons:
    wrong, odd = [], []
    if look.saturated > 0.5:
        odd.append(f"{look.saturated:.0%} of the pixels are saturated.")
    elif look.lit and look.stars == 0 and (record.exposure_s or 0) <= 30:
        wrong.append(
            f"Labelled as a light, but it is evenly lit to {look.level:.0%} of the range and has "
            "no stars: it looks like a flat. Correct its type."
        )
    elif look.unlit and look.stars < 3 and look.gradient < 0.02:
        odd.append("No stars and no structure: was the cover closed?")
    return wrong, odd


def _flat(look: Look) -> _Reasons:
    wrong, odd = [], []
    if look.saturated > 0.2:
        wrong.append(
            f"{look.saturated:.0%} of this flat is saturated: take it again with a shorter "
            "exposure or a dimmer light."
        )
    elif look.starry and not look.lit:
        wrong.append(
            f"Labelled as a flat, but it shows stars ({look.stars} in the parts looked at): it "
            "looks like a light. Correct its type."
        )
    elif look.unlit:
        wrong.append(
            f"Labelled as a flat, but there is no light in it ({look.median:.0f} ADU): it looks "
            "like a bias or a dark. Correct its type, or take the flat with more light."
        )
    elif look.saturated > 0.01:
        odd.append(f"{look.saturated:.1%} of this flat is saturated: expose less.")
    elif look.level < 0.06:
        odd.append(
            f"This flat is faint ({look.median:.0f} ADU): a third to a half of the range is best."
        )
    if look.starry and look.lit and look.stars > 3e-4 * look.seen:
        # Grain and dust of a starless flat come to a fifth of this.
        wrong.append(
            f"This flat shows stars ({look.stars} in the parts looked at), which would be printed "
            "into every light: take twilight flats earlier, and move the telescope between them."
        )
    elif look.starry and look.lit:
        odd.append("This flat may show stars: move the telescope between twilight flats.")
    return wrong, odd


def _dark(look: Look, kind: FrameType) -> _Reasons:
    wrong, odd = [], []
    if look.starry:
        wrong.append(
            f"Labelled as a {kind}, but it shows stars ({look.stars} in the parts looked at): it "
            "looks like a light. Correct its type, or cover the telescope."
        )
    elif look.lit or look.saturated > 0.5:
        wrong.append(
            f"Labelled as a {kind}, but light fills it to {look.level:.0%} of the range: it looks "
            "like a flat. Correct its type, or cover the telescope."
        )
    elif look.colours > 0.005 * look.full_scale and look.hot < 1e-3 * look.seen:
        odd.append("The colours of the mosaic differ: is light leaking in?")
    elif look.minimum == 0 and look.median <= 2 * look.sigma:
        odd.append("Pixels are cut off at zero: raise the camera's offset.")
    return wrong, odd
