"""DATASUM and CHECKSUM of the FITS standard 4.0, appendix J."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from calib_library.errors import IncompleteImageError
from calib_library.images.fits_headers import Hdu, padded


def check_sums(path: Path, hdu: Hdu, raw: npt.NDArray[np.uint8]) -> None:
    """Compare DATASUM and CHECKSUM, where present, with the bytes (FITS standard 4.0, app. J)."""
    declared = hdu.value("DATASUM")
    checksum = hdu.value("CHECKSUM")
    has_datasum = isinstance(declared, int) or (isinstance(declared, str) and declared.isdigit())
    has_checksum = isinstance(checksum, str) and len(checksum.strip()) == 16
    if not has_datasum and not has_checksum:
        return
    end = hdu.data_offset + padded(hdu.data_bytes)
    total = ones_sum(raw[hdu.data_offset : end])
    if has_datasum and declared is not None and total != int(declared):
        raise IncompleteImageError(
            f"{path.name}: its pixels do not agree with DATASUM; the file is damaged or unfinished"
        )
    if has_checksum:
        total = ones_sum(raw[hdu.header_offset : hdu.data_offset], total)
        if total not in (0, 0xFFFFFFFF):
            raise IncompleteImageError(
                f"{path.name}: does not agree with its CHECKSUM; the file is damaged or unfinished"
            )


def ones_sum(raw: npt.NDArray[np.uint8], start: int = 0) -> int:
    """32-bit ones' complement sum of big-endian words; a missing last byte counts as zero."""
    whole = raw.size // 4 * 4
    total = start + int(raw[:whole].view(">u4").sum(dtype=np.uint64))
    total += int.from_bytes(raw[whole:].tobytes().ljust(4, b"\0"), "big")
    return folded(total)


def folded(total: int) -> int:
    """A sum of words in 32 bits, what is carried out of them added at the low end."""
    while total > 0xFFFFFFFF:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total
