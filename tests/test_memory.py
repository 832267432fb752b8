"""Freed memory comes back to the system: asked of the system, in a process of its own."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library is not told anything"
)

RESIDENT_MB = """
def resident_mb():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6
"""

SMALL_PIECES = """
import resource
from daemon import memory
pieces = [bytearray(60_000) for _ in range(5000)]
full = resident_mb()
pinned = pieces[::500]  # between them nothing goes back by itself
del pieces
memory.give_back()
print(full - resident_mb())
"""

PLANES = """
import resource
from daemon import memory
memory.keep_little()
bytearray(30_000_000)  # once such a block was freed, the library keeps all that are smaller
planes = [bytearray(26_000_000) for _ in range(4)]
pinned = bytearray(60_000)
full = resident_mb()
del planes
print(full - resident_mb())
"""


def printed_mb(script):
    command = [sys.executable, "-c", RESIDENT_MB + script]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_what_lies_free_goes_back():
    """Of 300 MB; by itself less than half of it."""
    assert printed_mb(SMALL_PIECES) > 250


def test_large_planes_go_back_as_soon_as_they_are_freed():
    """Of 104 MB; otherwise half of it."""
    assert printed_mb(PLANES) > 100
