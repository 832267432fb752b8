"""Reading a file's bytes while those before them are hashed and decoded."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

PART_BYTES = 2**20
"""A file is read, hashed and decoded by parts of this size."""


class Hashing:
    """The SHA-256 of a file's bytes, made by a thread of its own: `parts` are its tasks, which hold
    the bytes until they are done.
    """

    def __init__(self, digest: "hashlib._Hash", parts: Sequence[Future[None]]) -> None:
        self._digest = digest
        self._parts = parts

    def hexdigest(self) -> str:
        """The file's, once all is hashed: from then on its bytes may be overwritten."""
        for part in self._parts:
            part.result()
        return self._digest.hexdigest()


def read_and_hash(
    file: BinaryIO, raw: npt.NDArray[np.uint8], decode: Callable[[int], None] | None = None
) -> Hashing | None:
    """Fill `raw` from the file, while what was read is being hashed, and `decode(end)` is called
    by another thread whenever the bytes before `end` are there. None where the file ends early.
    """
    view = raw.data
    digest = hashlib.sha256()
    hashed, decoded = [], []
    hasher, decoder = ThreadPoolExecutor(1, "hash"), ThreadPoolExecutor(1, "decode")
    try:
        for first in range(0, len(view), PART_BYTES):
            part = view[first : first + PART_BYTES]
            if not fill(file, part):
                return None
            hashed.append(hasher.submit(digest.update, part))
            if decode is not None:
                decoded.append(decoder.submit(decode, first + len(part)))
    finally:
        decoder.shutdown()
        hasher.shutdown(wait=False)  # the thread ends with its last task
    for one in decoded:
        one.result()
    return Hashing(digest, hashed)


def fill(file: BinaryIO, view: memoryview) -> bool:
    """Read until `view` is full; False where the file ends early."""
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True
