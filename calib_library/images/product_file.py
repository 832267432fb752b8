"""The images that we write, and read again: with their scale and pedestal in the header."""

import collections
import contextlib
import math
import os
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from calib_library import atomic
from calib_library.errors import ImageError, IncompleteImageError
from calib_library.fits_cards import CARD, format_card
from calib_library.frame import Card
from calib_library.images.astropy_fits import quiet
from calib_library.images.checksums import folded, ones_sum
from calib_library.images.fits_headers import STORED, Hdu, padded, read_hdus, structural
from calib_library.images.frame_file import load, opened, reader_of
from calib_library.images.row_reader import RowReader

FULL_SCALE_ADU = 65535.0
ENCODERS = min(os.cpu_count() or 1, 4)
"""Threads that encode rows which are written together."""
Scale = Literal["unit", "adu", "uint16"]

_PIXEL_SCALE = re.compile(r"BZERO|BSCALE|BLANK|DATAMIN|DATAMAX")
_SCALE_COMMENT = {
    "unit": "pixels are (ADU + PEDESTAL) / 65535",
    "adu": "pixels are ADU + PEDESTAL",
    "uint16": "pixels are ADU + PEDESTAL",
}


def read_product(path: Path) -> tuple[npt.NDArray[np.float32], tuple[Card, ...]]:
    """Read what `write_fits` wrote: the image in ADU, scale and pedestal undone, and its cards.

    A file without our scale keyword is taken to be in ADU. Raises as `load`.
    """
    loaded = load(path, hashed=False)
    image = loaded.pixels.astype(np.float32, copy=False)
    _undo_scale(image, loaded.info.cards)
    return image, loaded.info.cards


class ProductRows:
    """Reads a (ny, nx) image that `write_fits` wrote by rows: the same bits as `read_product`."""

    def __init__(self, path: Path) -> None:
        """Open and probe; raises as `probe`."""
        self._reader = RowReader(path)

    @property
    def shape(self) -> tuple[int, ...]:
        """(ny, nx) or (3, ny, nx)."""
        return self._reader.shape

    def rows(self, y0: int, y1: int) -> npt.NDArray[np.float32]:
        """Rows y0 to y1 (exclusive) in ADU, a new array."""
        image = self._reader.to_float(self._reader.rows(y0, y1))
        _undo_scale(image, self._reader.info.cards)
        return image

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()


class ProductImages:
    """Reads the images of what `write_fits` wrote by rows, any thread at any time. Checksums are
    not looked at.
    """

    def __init__(self, path: Path) -> None:
        """Open; raises as `probe`, and ImageError where the first image is none of ours."""
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            file, status = stack.enter_context(opened(path))
            self._read, self._name = reader_of(file.fileno()), path.name
            self._hdus: dict[str | None, Hdu] = {}
            for hdu in read_hdus(path, self._read, status.st_size):
                name = hdu.value("EXTNAME")
                self._hdus[name if hdu.index and isinstance(name, str) else None] = hdu
            if self._hdu(None).bitpix not in (-32, 16):
                raise ImageError(f"{path.name}: is no product of Lightkeeper")
            self._stack = stack.pop_all()
        self._cards = self._hdu(None).cards()

    @property
    def shape(self) -> tuple[int, ...]:
        """(ny, nx) or (3, ny, nx)."""
        return self._hdu(None).axes

    @property
    def pedestal_adu(self) -> float:
        """What was added to every pixel of the image."""
        return _scale_of(self._cards)[1]

    def rows(self, y0: int, y1: int, *, extension: str | None = None) -> npt.NDArray[np.float32]:
        """Rows y0 to y1 (exclusive), (y1 − y0, nx), those of all planes counted through: of the
        image in ADU, or of an extension (EXTNAME) as written. A new array.
        """
        hdu = self._hdu(extension)
        stored = np.dtype(STORED[hdu.bitpix])
        row_bytes = stored.itemsize * hdu.axes[-1]
        raw = self._read(hdu.data_offset + y0 * row_bytes, (y1 - y0) * row_bytes)
        if len(raw) < (y1 - y0) * row_bytes:
            raise IncompleteImageError(f"{self._name}: became shorter while it was read")
        values = np.frombuffer(raw, stored).reshape(-1, hdu.axes[-1]).astype(np.float32)
        if hdu.bitpix == 16:
            values += np.float32(32768)
        if extension is None:
            _undo_scale(values, self._cards)
        return values

    def _hdu(self, extension: str | None) -> Hdu:
        if extension not in self._hdus:
            raise ImageError(f"{self._name}: has no image extension {extension}")
        return self._hdus[extension]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _undo_scale(image: npt.NDArray[np.float32], cards: Sequence[Card]) -> None:
    """Bring the values of a product's file to ADU, in place."""
    factor, pedestal = _scale_of(cards)
    if factor != 1.0:
        image *= np.float32(factor)
    if pedestal:
        image -= np.float32(pedestal)


def _scale_of(cards: Sequence[Card]) -> tuple[float, float]:
    """(factor, pedestal in ADU): a value in the file × factor − pedestal is in ADU."""
    values = {card.keyword: card.value for card in cards}
    pedestal = values.get("PEDESTAL")
    told = "LKSCALE" in values and isinstance(pedestal, int | float)
    factor = FULL_SCALE_ADU if values.get("LKSCALE") == "unit" else 1.0
    return factor, float(pedestal) if told and isinstance(pedestal, int | float) else 0.0


def read_extra(path: Path, name: str) -> npt.NDArray[np.float32]:
    """Read the image extension `name` (EXTNAME) of a product, float32 as written.

    Raises ImageError where there is none; else as `load`.
    """
    with opened(path) as (file, status):
        read = reader_of(file.fileno())
        for hdu in read_hdus(path, read, status.st_size):
            values = {card.keyword: card.value for card in hdu.cards()}
            if hdu.index and values.get("EXTNAME") == name and hdu.bitpix == -32:
                raw = read(hdu.data_offset, hdu.data_bytes)
                return np.frombuffer(raw, ">f4").reshape(hdu.axes).astype(np.float32)
    raise ImageError(f"{path.name}: has no image extension {name}")


def write_fits(
    path: Path,
    image: npt.NDArray[np.float32],
    cards: Sequence[Card],
    *,
    scale: Scale = "unit",
    pedestal_adu: float = 0.0,
    extra: Mapping[str, npt.NDArray[Any]] | None = None,
) -> None:
    """Write an image in ADU, (ny, nx) or (3, ny, nx), so that other programs open it correctly.

    `unit`: float32 (ADU + pedestal) / 65535, clipped to [0, 1]. `adu`: float32 ADU + pedestal.
    `uint16`: ADU + pedestal, rounded and clipped. NaN becomes 0. The scale stands in LKSCALE, the
    pedestal in PEDESTAL; `read_product` undoes both. `extra`: image extensions by name, written
    as float32, unscaled (NaN kept). Cards that describe the file's own layout or an old value range
    (DATAMAX, BZERO, …) are left out. The folder is made where it is missing.

    The file appears whole or not at all: temporary name in the same folder, fsync, rename, fsync of
    the folder. Raises OSError; the old file is then untouched and the temporary one removed.
    """
    with atomic.atomically(path) as file:
        with RowWriter(file, image.shape, cards, scale=scale, pedestal_adu=pedestal_adu) as writer:
            writer.write(image)
        for name, plane in (extra or {}).items():
            with RowWriter(file, plane.shape, _TOLD.get(name, ()), extension=name) as writer:
                writer.write(plane)


_TOLD = {"VARIANCE": (Card("UTYPE", "VarianceUncertainty", "what astropy's CCDData calls it"),)}
"""Cards of extensions."""


class Encoded(NamedTuple):
    """Rows as they stand in a file."""

    stored: npt.NDArray[np.uint8]
    """Their bytes."""
    total: int
    """Of these bytes, as `ones_sum` has it."""


class RowWriter:
    """Appends one image HDU to a file that `atomically` gave, from the first row to the last: for
    images that need not be in memory as a whole.

    As `write_fits`, whose arguments these are; an extension (`extension` is its name) is written
    as it is. When the block ends well, the rows must all be there (ValueError), and the header is
    written once more, with its DATASUM.
    """

    def __init__(
        self,
        file: BinaryIO,
        shape: tuple[int, ...],
        cards: Sequence[Card],
        *,
        scale: Scale | None = None,
        pedestal_adu: float = 0.0,
        extension: str | None = None,
    ) -> None:
        self._file, self._shape, self._extension = file, shape, extension
        self._scale, self._pedestal = scale, pedestal_adu
        self._start = file.tell()
        self._header = self._header_of(cards)
        file.write(_padded_header(self._header, 0))
        self._total = self._written = 0
        self._carry = b""

    def describe(self, cards: Sequence[Card]) -> None:
        """Replace the header's cards by others that take up as much room (ValueError)."""
        header = self._header_of(cards)
        if len(header) != len(self._header):
            raise ValueError("a header that is replaced must keep its length")
        self._header = header

    def write(self, rows: npt.NDArray[Any]) -> None:
        """Append rows, (…, nx) in ADU, float32 (of an extension any type). Some threads encode."""
        rows = rows.reshape(-1, rows.shape[-1])
        step = max(1, 100_000 // max(1, rows.shape[1]))
        begun: collections.deque[Future[Encoded]] = collections.deque()
        with ThreadPoolExecutor(ENCODERS, "encode") as pool:
            for y in range(0, len(rows), step):
                begun.append(pool.submit(self.encoded, rows[y : y + step]))
                if len(begun) > 2 * ENCODERS:
                    self.append(begun.popleft().result())
            while begun:
                self.append(begun.popleft().result())

    def encoded(self, rows: npt.NDArray[Any]) -> Encoded:
        """Turn some rows, as for `write`, into what `append` takes. Any thread may do that."""
        stored = _encoded(rows, self._scale, self._pedestal)
        return Encoded(stored, ones_sum(stored))

    def append(self, rows: Encoded) -> None:
        """Append rows that were `encoded`."""
        if self._carry or rows.stored.size % 4:
            stored = np.concatenate([np.frombuffer(self._carry, np.uint8), rows.stored])
            # Whole words of 4 bytes, for the sum; what is over is kept.
            whole = stored.size // 4 * 4
            self._carry = stored[whole:].tobytes()
            rows = Encoded(stored[:whole], ones_sum(stored[:whole]))
        self._total = folded(self._total + rows.total)
        self._file.write(rows.stored.data)
        self._written += rows.stored.size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            return
        size = 2 if self._scale == "uint16" else 4
        if self._written + len(self._carry) != size * math.prod(self._shape):
            raise ValueError(f"not all rows of an image of {self._shape} were written")
        self._total = ones_sum(np.frombuffer(self._carry, np.uint8), self._total)
        self._file.write(self._carry)
        self._written += len(self._carry)
        self._file.write(bytes(padded(self._written) - self._written))
        end = self._file.tell()
        self._file.seek(self._start)
        self._file.write(_padded_header(self._header, self._total))
        self._file.seek(end)

    def _header_of(self, cards: Sequence[Card]) -> bytes:
        if self._scale is not None:
            own = [Card("LKSCALE", self._scale, _SCALE_COMMENT[self._scale])]
            if self._pedestal:
                own.append(Card("PEDESTAL", float(self._pedestal), "ADU added to every pixel"))
            cards = [*own, *(c for c in cards if c.keyword not in {"LKSCALE", "PEDESTAL"})]
        return _image_header(
            self._shape, cards, integer=self._scale == "uint16", extension=self._extension
        )


def _encoded(rows: npt.NDArray[Any], scale: Scale | None, pedestal: float) -> npt.NDArray[np.uint8]:
    """Rows in ADU → the bytes that are stored. The bounds of fmax and fmin take the place of NaN.

    float32 steps in place, one after the other, over rows that stay in the second cache.
    """
    if scale is None:
        return _big_endian(rows.astype(np.float32))
    values = rows + np.float32(pedestal)
    if scale == "adu":
        np.nan_to_num(values, copy=False, nan=0.0)
    elif scale == "unit":
        values /= np.float32(FULL_SCALE_ADU)
        np.fmin(np.fmax(values, 0.0, out=values), 1.0, out=values)
    else:
        np.fmin(np.fmax(values, 0.0, out=values), FULL_SCALE_ADU, out=values)
        return _big_endian((np.rint(values, out=values).astype(np.int32) - 32768).astype(np.int16))
    return _big_endian(values)


def _big_endian(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The bytes of native values; in place."""
    stored = values.byteswap(inplace=True) if sys.byteorder == "little" else values
    return stored.reshape(-1).view(np.uint8)


def _image_header(
    shape: tuple[int, ...], cards: Sequence[Card], *, integer: bool, extension: str | None
) -> bytes:
    """The cards of an image's header, as bytes, without DATASUM and END."""
    if extension is None:
        own = [Card("SIMPLE", True, "conforms to FITS standard")]  # noqa: FBT003 — FITS's own T
    else:
        own = [Card("XTENSION", "IMAGE", "image extension")]
    own += [Card("BITPIX", 16 if integer else -32), Card("NAXIS", len(shape))]
    own += [Card(f"NAXIS{n}", length) for n, length in enumerate(reversed(shape), start=1)]
    if extension is None:
        own.append(Card("EXTEND", True))  # noqa: FBT003
    else:
        own += [Card("PCOUNT", 0), Card("GCOUNT", 1), Card("EXTNAME", extension)]
    if integer:
        own += [Card("BZERO", 32768), Card("BSCALE", 1)]
    kept = (
        card
        for card in cards
        if not structural(card.keyword) and not _PIXEL_SCALE.fullmatch(card.keyword)
    )
    return b"".join(map(_card_bytes, (*own, *kept)))


def _card_bytes(card: Card) -> bytes:
    """A card in the form that FITS allows: printable ASCII, a finite value, a fitting comment.

    A card that cannot be written (a keyword with strange characters) is left out: it came from a
    foreign header, and the product must not fail for it.
    """
    value = card.value
    if isinstance(value, str):
        value = _ascii(value)
    elif isinstance(value, float) and not math.isfinite(value):
        value = None
    plain = Card(card.keyword, value, _ascii(card.comment))
    return format_card(plain) or _unusual_card(plain)


def _unusual_card(card: Card) -> bytes:
    """A card with a long name or a long text: HIERARCH and CONTINUE are astropy's."""
    from astropy.io import fits  # noqa: PLC0415

    # Without its warnings: long names become HIERARCH, long comments are cut.
    with quiet(), contextlib.suppress(ValueError, fits.VerifyError):
        encoded: bytes = fits.Card(card.keyword, card.value, card.comment).image.encode("ascii")
        return encoded
    return b""


def _ascii(text: str) -> str:
    """Reduce to printable ASCII: accents are dropped, what has no such form becomes `?`."""
    if text.isascii() and text.isprintable():
        return text
    plain = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" else "?" for c in plain)


def _padded_header(cards: bytes, datasum: int) -> bytes:
    last = _card_bytes(Card("DATASUM", str(datasum).rjust(10), "data unit checksum"))
    header = cards + last + b"END".ljust(CARD)
    return header.ljust(padded(len(header)))
