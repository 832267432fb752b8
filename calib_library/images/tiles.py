"""The pixels of tile-compressed images (`.fz`), which astropy unpacks, within bounds."""

import contextlib
import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from calib_library.errors import ImageError
from calib_library.images.astropy_fits import quiet
from calib_library.images.structure import ImageInfo

if TYPE_CHECKING:
    from astropy.io import fits

_GZIP_COLUMNS = frozenset({"COMPRESSED_DATA", "GZIP_COMPRESSED_DATA"})


def decompress(info: ImageInfo, raw: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Decompress the stored pixels, (ny, nx) or (3, ny, nx), before BZERO."""
    from astropy.io import fits  # noqa: PLC0415

    with (
        _astropy(info.path),
        fits.open(io.BytesIO(raw.data), do_not_scale_image_data=True, memmap=False) as hdus,
    ):
        _check_streams(info, io.BytesIO(raw.data))
        pixels = np.ascontiguousarray(hdus[info.hdu].data)
        return _expected(info, pixels, info.shape)


def open_section(info: ImageInfo, stack: contextlib.ExitStack) -> "fits.CompImageSection":
    """Open the image for reading by rows, until `stack` closes it. Raises ImageError."""
    from astropy.io import fits  # noqa: PLC0415

    with _astropy(info.path):
        _check_streams(info, info.path)
        hdus = stack.enter_context(
            fits.open(info.path, do_not_scale_image_data=True, memmap=False, mode="readonly")
        )
        return hdus[info.hdu].section


def section_rows(
    info: ImageInfo, section: "fits.CompImageSection", y0: int, y1: int
) -> npt.NDArray[Any]:
    """Unpack rows y0 to y1 (exclusive) of a (ny, nx) image, before BZERO. Raises ImageError."""
    with _astropy(info.path):
        # Leading axes of length 1 are not part of our shape.
        index = (0,) * (len(section.shape) - 2)
        pixels = np.ascontiguousarray(section[(*index, slice(y0, y1))])
        return _expected(info, pixels, (y1 - y0, info.shape[1]))


def _check_streams(info: ImageInfo, file: BinaryIO | Path) -> None:
    """Refuse gzip streams that unpack to more than their tile holds: astropy unpacks all of it."""
    if not info.stream_limit:
        return
    from astropy.io import fits  # noqa: PLC0415

    with fits.open(file, disable_image_compression=True, memmap=False) as hdus:
        table = hdus[info.hdu]
        for name in _GZIP_COLUMNS & {str(name).upper() for name in table.columns.names}:
            for stream in table.data[name]:
                if _unpacks_beyond(np.asarray(stream).tobytes(), info.stream_limit):
                    raise ImageError("a tile unpacks to more than the header says")


def _unpacks_beyond(stream: bytes, limit: int) -> bool:
    """Whether a gzip stream, of all its members, holds more than `limit` bytes."""
    size = 0
    while stream.startswith(b"\x1f\x8b"):
        member = zlib.decompressobj(31)
        size += len(member.decompress(stream, limit - size + 1))
        if size > limit:
            return True
        stream = member.unused_data
    return False


def _expected(
    info: ImageInfo, pixels: npt.NDArray[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    if pixels.size != math.prod(shape) or pixels.dtype.itemsize * 8 != abs(info.bitpix):
        raise ImageError(f"{info.path.name}: the compressed pixels are not what the header says")
    return pixels.reshape(shape)


@contextlib.contextmanager
def _astropy(path: Path) -> Iterator[None]:
    """Run astropy without its warnings; whatever it raises on a broken file is an ImageError.

    It is imported where it is needed, for compressed files: that takes a quarter of a second.
    """
    with quiet():
        try:
            yield
        except Exception as error:
            raise ImageError(
                f"{path.name}: the compressed pixels cannot be read ({_sentence(error)}); "
                "copy the file again from the camera's computer"
            ) from error


def _sentence(error: Exception) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return (text or type(error).__name__)[:200]
