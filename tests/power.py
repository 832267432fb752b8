"""A disk whose power can be cut: what was not synced is lost, as it is in the field.

An ext4 on a loop device; the cut is the file system's own emergency shutdown without a flush of its
journal (EXT4_IOC_SHUTDOWN, as the kernel's crash tests use it): from then on nothing more reaches
the medium. Mounted again, only what was written back before is there.
"""

import contextlib
import fcntl
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests import killing
from tests.daemons import PATIENCE_S, wait_for

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2


def released(image: Path) -> bool:
    """Whether no loop device holds a disk any more. A mount namespace that another test made at the
    same time keeps a mount of its own: until that has gone, a new mount is the disk as it was.
    """
    command = ["losetup", "--associated", image]
    return not subprocess.run(command, capture_output=True, check=True).stdout


class Disk:
    """64 MB, mounted on `place`."""

    def __init__(self, image: Path, place: Path) -> None:
        self.image, self.place = image, place
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)

    def mount(self) -> None:
        # Without ext4's own guesses of what a careless program wants synced.
        options = "loop,noauto_da_alloc"
        subprocess.run(["mount", "-o", options, self.image, self.place], check=True)

    def unmount(self) -> None:
        command = ["umount", self.place]
        # What a killed process had open is closed only when the last of it is gone.
        wait_for(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0)
        wait_for(lambda: released(self.image))

    def cut(self) -> None:
        """No more power."""
        descriptor = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def disk(folder: Path, place: Path) -> Iterator[Disk]:
    """A mounted disk, or an error where none can be made here."""
    made = Disk(folder / "image", place)
    made.mount()
    try:
        yield made
    finally:
        if os.path.ismount(place):
            subprocess.run(["umount", "-l", place], check=False)


def lives(config: Path, medium: Disk, *, cuts: int, steps: int, rng: random.Random) -> int:
    """Let the night be cut at random instants, after up to `steps` steps of each life, `cuts` times
    at most, and go on to its end; returns how often it was.
    """
    done = 0
    while done < cuts:
        life = killing.start(config, "steps")
        if not killing.let_live(life, rng.randint(1, steps), rng):
            assert life.wait(PATIENCE_S) == 0
            break
        medium.cut()
        life.kill()
        life.wait()
        medium.unmount()
        medium.mount()
        done += 1
    assert killing.start(config).wait(PATIENCE_S) == 0
    return done
