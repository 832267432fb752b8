"""Files that appear whole or not at all.

They are written under a temporary name in the same folder, synced, and renamed: a crash leaves the
old file or the new one, never half of either.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY_PREFIX = ".lightkeeper-"
"""Unfinished products begin so (and end in `.tmp`); left over from a crash, they may be deleted."""


@contextlib.contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that becomes `path` when the block ends well, and vanishes otherwise."""
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync(folder)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically, as `write_fits` does. Raises OSError."""
    with atomically(path) as file:
        file.write(data)


def sync(path: Path) -> None:
    """Have a file, or a folder's names, on the disk before going on. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; the rename stands all the same.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
