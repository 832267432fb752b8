"""Stored pixels → physical values."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from calib_library.images.fits_headers import STORED
from calib_library.images.structure import ImageInfo


def stored_pixels(info: ImageInfo, raw: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """View the pixels of an uncompressed image, as stored, in the file's bytes."""
    dtype = np.dtype(STORED[info.bitpix])
    end = info.data_offset + math.prod(info.shape) * dtype.itemsize
    return raw[info.data_offset : end].view(dtype).reshape(info.shape)


@np.errstate(over="ignore", invalid="ignore")  # an absurd scale: the pixels' inspection says so
def physical(info: ImageInfo, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Make stored pixels physical values in native order; in place where the dtype allows."""
    if info.bzero == 0 and info.bscale == 1 and info.bitpix != 64:
        return _native(stored)
    if info.storage == "uint16":
        unsigned = _native(stored).view(np.uint16)
        unsigned ^= np.uint16(0x8000)  # + 32768 modulo 65536
        return unsigned
    values = stored.astype(np.float64) * info.bscale + info.bzero
    return values.astype(info.storage, copy=False)


def physical_into(info: ImageInfo, stored: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """The same as `physical` in memory of its own, `out` of dtype `info.storage`."""
    if info.bzero == 0 and info.bscale == 1 and info.bitpix != 64:
        out[...] = stored
    elif info.storage == "uint16":
        out.view(np.int16)[...] = stored
        out ^= np.uint16(0x8000)
    else:
        out[...] = physical(info, stored.astype(stored.dtype.newbyteorder("=")))


def _native(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if stored.dtype.isnative:
        return stored
    return stored.byteswap(inplace=True).view(stored.dtype.newbyteorder("="))
