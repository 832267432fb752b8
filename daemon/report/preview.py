"""Pictures for people: the screen-transfer stretch amateurs know, and PNG files of it.

The stretch is the midtones transfer function of PixInsight's AutoSTF: the background's median goes
to `target`, everything darker than `shadows` normalised deviations from it to black.
"""

import io
import unicodedata
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import sparse

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Bool = NDArray[np.bool_]
Coverage = NDArray[Any]  # any integer or boolean type
F = TypeVar("F", np.float32, np.float64)
T = TypeVar("T", bound=np.generic)

_ROWS = 32  # of the smaller image, worked on at a time
_SAMPLE = 1_000_000  # pixels that the statistics of one plane look at, at most
_MAD_TO_SIGMA = 1.4826
_STRIP_BACKGROUND = (18, 18, 20)
_STRIP_TEXT = (200, 200, 200)
# Pillow's own font has little beyond ASCII: these are written out, and these it can draw.
_PLAIN = str.maketrans({"×": "x", "−": "-", "–": "-", "—": "-", "σ": "sigma", "µ": "u", "→": ">"})
_DRAWABLE = "°·±’“”"


def midtones(x: NDArray[F], balance: float) -> NDArray[F]:
    """Midtones transfer function of `x` in 0..1: 0 → 0, `balance` → ½, 1 → 1.

    (m − 1) x / ((2m − 1) x − m), PixInsight reference, HistogramTransformation.
    """
    result: NDArray[F] = (balance - 1.0) * x / ((2.0 * balance - 1.0) * x - balance)
    return result


def stretch(
    image: Float32,
    coverage: Coverage | None = None,
    *,
    target: float = 0.25,
    shadows: float = -2.8,
) -> Bytes:
    """Stretch for a screen: `image` (planes, ny, nx) float32 in any unit → uint8 (ny, nx[, 3]).

    Statistics are those of the covered pixels alone (`coverage` (ny, nx), above 0; a value that is
    not finite is uncovered too). Uncovered pixels are black. The brightest covered pixel is white.
    Colour is neutralised first, then all planes share one stretch, so that hues are kept.
    `shadows` counts 1.4826 MAD from the median. Raises ValueError unless planes is 1 or 3.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 planes, not the shape {image.shape}")
    covered = _covered(image, coverage)
    if not covered.any():
        return np.zeros((*image.shape[1:], 3) if image.shape[0] == 3 else image.shape[1:], np.uint8)
    # A shift of a plane is a black point of its own: no copy of the image is needed.
    shifts = _neutral_shifts(image, covered)
    statistics = np.array([_level_and_spread(plane, covered) for plane in image])
    level, spread = float(np.mean(statistics[:, 0] + shifts)), float(np.mean(statistics[:, 1]))
    brightest = max(
        float(np.max(plane, where=covered, initial=-np.inf)) + float(shift)
        for plane, shift in zip(image, shifts, strict=True)
    )
    black = level + shadows * spread
    if black >= level:  # nothing varies about the median: show it at the target all the same
        black = level - target * max(brightest - level, 1.0)
    white = max(brightest, level + (level - black))
    balance = float(midtones(np.array((level - black) / (white - black)), target))
    picture = np.empty((*image.shape[1:], image.shape[0]), np.uint8)
    for index, (plane, shift) in enumerate(zip(image, shifts, strict=True)):
        unit = (plane - np.float32(black - shift)) / np.float32(white - black)
        np.clip(unit, 0.0, 1.0, out=unit)
        unit[~covered] = 0.0
        np.rint(255.0 * midtones(unit, balance), out=unit)
        picture[..., index] = unit
    return picture if image.shape[0] == 3 else picture[..., 0]


def compose(
    red: Float32, green: Float32, blue: Float32, coverage: Coverage | None = None
) -> Float32:
    """One colour image (3, ny, nx) from three registered planes (ny, nx), in their own ADU.

    Backgrounds are brought to one level; then each plane is scaled so that the light above the
    background of the brightest half per cent (the stars) is white on average. Pixels that are not
    covered in all three become NaN. A new array; large planes are better shrunk with `downscale`
    before than after.
    """
    image = np.stack([red, green, blue]).astype(np.float32, copy=False)
    covered = _covered(image, coverage)
    if covered.any():
        image += _neutral_shifts(image, covered)[:, None, None]
        level = np.float32(_sky_level(image[0], covered))
        above = image[:, covered]
        above = above[:, :: max(1, above.shape[1] // _SAMPLE)] - level
        light = np.sum(above, axis=0)
        strengths = np.median(above[:, light >= np.quantile(light, 0.995)], axis=1)
        if np.all(strengths > 0.0):
            image -= level
            image *= (strengths.mean() / strengths)[:, None, None]
            image += level
    image[:, ~covered] = np.nan
    return image


def downscale(image: Float32, coverage: Coverage | None, *, max_px: int) -> tuple[Float32, Bool]:
    """Shrink by area averaging until the longer side has at most `max_px` px.

    `image` (planes, ny, nx) float32. Returns new arrays: the mean of the covered part of every
    output pixel's area (0 where nothing is covered), and whether at least half of it was covered.
    Fractions of pixels count by their area. A smaller image keeps its size.
    """
    covered = _covered(image, coverage)
    ny, nx = covered.shape
    if max(ny, nx) <= max_px:
        return np.where(covered, image, np.float32(0.0)), covered
    scale = max_px / max(ny, nx)
    rows = _area_weights(ny, max(1, round(ny * scale)))
    columns = _area_weights(nx, max(1, round(nx * scale))).T.tocsc()

    def shrink(plane: NDArray[Any]) -> Float32:
        # Some rows at a time: nothing of the size of a large image is made beside it.
        small = np.empty((rows.shape[0], columns.shape[1]), np.float32)
        for top in range(0, len(small), _ROWS):
            part = rows[top : top + _ROWS]
            y = slice(part.indices[0], part.indices[-1] + 1)
            values = np.where(covered[y], plane[y], np.float32(0.0))
            small[top : top + _ROWS] = (part[:, y] @ values) @ columns
        return small

    weight = shrink(np.broadcast_to(np.float32(1.0), covered.shape))
    share = np.maximum(weight, np.float32(1e-6))
    return np.stack([shrink(plane) / share for plane in image]), weight >= 0.5


def png(
    image: Float32,
    coverage: Coverage | None = None,
    *,
    max_px: int = 2000,
    caption: str | None = None,
    target: float = 0.25,
    shadows: float = -2.8,
) -> bytes:
    """Make a PNG file's bytes: `image` (planes, ny, nx) shrunk to `max_px`, then stretched.

    `caption`, where given, stands in a strip below the picture.
    """
    small, covered = downscale(image, coverage, max_px=max_px)
    picture = Image.fromarray(stretch(small, covered, target=target, shadows=shadows))
    if caption:
        picture = _with_caption(picture, caption)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def _covered(image: Float32, coverage: Coverage | None) -> Bool:
    """Pixels (ny, nx) that are covered and finite in every plane."""
    covered = np.ones(image.shape[1:], dtype=np.bool_)
    for plane in image:
        covered &= np.isfinite(plane)
    if coverage is not None:
        covered &= np.greater(coverage, 0)
    return covered


def _neutral_shifts(image: Float32, covered: Bool) -> Float32:
    """Find what to add to each plane, (planes,) float32 in the image's unit, to bring all
    backgrounds to their mean.

    The background is the tenth percentile of the medians of small covered blocks: open sky, where
    the median of all would see the nebula. Sky glow is additive, so a shift takes its colour away
    and leaves that of the stars.
    """
    if image.shape[0] == 1:
        return np.zeros(1, dtype=np.float32)
    levels = np.array([_sky_level(plane, covered) for plane in image])
    shifts: Float32 = (levels.mean() - levels).astype(np.float32)
    return shifts


def _level_and_spread(plane: Float32, covered: Bool) -> tuple[float, float]:
    """Median and 1.4826 MAD of the covered pixels of one plane, from a regular sample."""
    values = plane[covered]
    values = values[:: max(1, values.size // _SAMPLE)]
    level = float(np.median(values))
    return level, _MAD_TO_SIGMA * float(np.median(np.abs(values - np.float32(level))))


def _sky_level(plane: Float32, covered: Bool) -> float:
    """Tenth percentile of the medians of blocks of 16×16 samples that are wholly covered."""
    step = max(1, int(np.sqrt(plane.size / _SAMPLE)))
    values, whole = plane[::step, ::step], covered[::step, ::step]
    rows, columns = values.shape[0] // 16, values.shape[1] // 16
    if rows and columns:
        blocks = _blocks(values, rows, columns)[_blocks(whole, rows, columns).all(axis=1)]
        if blocks.size:
            return float(np.quantile(np.median(blocks, axis=1), 0.1))
    return _level_and_spread(plane, covered)[0]


def _blocks(values: NDArray[T], rows: int, columns: int) -> NDArray[T]:
    """Rearrange (ny, nx) to (rows × columns, 256): one row for each 16×16 block."""
    cut = values[: 16 * rows, : 16 * columns].reshape(rows, 16, columns, 16)
    return cut.swapaxes(1, 2).reshape(rows * columns, 256)


def _area_weights(size: int, smaller: int) -> sparse.csr_matrix:
    """Matrix (smaller, size) that averages cells of size/smaller px, fractions by their area."""
    edges = np.linspace(0.0, size, smaller + 1)
    first = np.floor(edges[:-1]).astype(np.int64)
    last = np.minimum(np.ceil(edges[1:]).astype(np.int64), size)
    row = np.repeat(np.arange(smaller), last - first)
    column = np.arange(row.size) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
    column += first[row]
    overlap = np.minimum(column + 1, edges[row + 1]) - np.maximum(column, edges[row])
    weights = (overlap * smaller / size).astype(np.float32)
    return sparse.csr_matrix((weights, (row, column)), shape=(smaller, size))


def _with_caption(picture: Image.Image, caption: str) -> Image.Image:
    """Put the caption in a strip below, in a size that fits the picture's width."""
    caption = _drawable(caption)
    size = max(11, picture.width // 70)
    font = ImageFont.load_default(size)
    strip = round(2.0 * size)
    framed = Image.new("RGB", (picture.width, picture.height + strip), _STRIP_BACKGROUND)
    framed.paste(picture.convert("RGB"), (0, 0))
    ImageDraw.Draw(framed).text(
        (size, picture.height + strip // 2), caption, fill=_STRIP_TEXT, font=font, anchor="lm"
    )
    return framed


def _drawable(text: str) -> str:
    """Write a text with the signs of Pillow's font: accents dropped, unknown signs as `?`."""
    letters = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    kept = (c for c in letters if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" or c in _DRAWABLE else "?" for c in kept)
