"""An intake on real files, and the frames that come in, for the tests of how files arrive."""

import dataclasses
import functools
import os
import shutil
import subprocess
import sys
import tempfile

import pytest

from daemon.intake.intake import Intake, Timing, Watched, file_probe
from daemon.log import Level
from tests.daemons import PATIENCE_S, wait_for

# Long where a test must not depend on it, short where it waits for it.
NEVER_S = 1e6
TIMING = Timing(grace_s=NEVER_S, quiet_s=NEVER_S, scan_s=NEVER_S, often_s=NEVER_S, health_s=0.1)
IMPATIENT = dataclasses.replace(TIMING, grace_s=0.6)
"""For what is told of files that stay incomplete or unreadable."""
SCANNING = dataclasses.replace(TIMING, scan_s=0.05, often_s=0.05)
"""For where events tell nothing."""

by_events_and_by_scans = pytest.mark.parametrize("watch", [True, False], ids=["events", "scan"])


def header(*cards):
    text = "".join(f"{card:<80}" for card in (*cards, "END"))
    return text.ljust(-(-len(text) // 2880) * 2880).encode("ascii")


def frame(
    ny=20, nx=30, *, value=7, keywords=("IMAGETYP= 'Light   '", "EXPTIME =                 60.0")
):
    """A whole FITS file: 16-bit unsigned, ny rows of nx pixels."""
    structure = (
        "SIMPLE  =                    T",
        "BITPIX  =                   16",
        "NAXIS   =                    2",
        f"NAXIS1  = {nx:20d}",
        f"NAXIS2  = {ny:20d}",
        "BZERO   =                32768",
        "BSCALE  =                    1",
    )
    pixels = value.to_bytes(2, "big") * (ny * nx)
    return header(*structure, *keywords) + pixels.ljust(-(-len(pixels) // 2880) * 2880, b"\0")


def appear(path, content):
    """Let a file come whole: one that is written in its place may be seen empty."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.rename(path)


class Night:
    """An intake and what it has delivered and said."""

    def __init__(self, *roots, settle_s=0.05, **options):
        self.arrivals, self.unusables, self.events, self.probed = [], [], [], []
        self.seen_by_ledger = set()
        probe = options.pop("probe", file_probe)

        def counting(path):
            self.probed.append(path)
            return probe(path)

        given = {
            "arrived": self.arrivals.append,
            "unusable": lambda path, reason, _stat, _final: self.unusables.append((path, reason)),
            "known": lambda *version: version in self.seen_by_ledger,
            "event": self.event,
            "timing": TIMING,
        }
        self.intake = Intake(
            [Watched(root, settle_s) for root in roots], probe=counting, **(given | options)
        )

    def event(self, kind, text, *, level=Level.INFO):
        self.events.append((kind, text, level))

    def __enter__(self):
        self.intake.start()
        assert self.intake.wait_started(PATIENCE_S)
        return self

    def __exit__(self, *_):
        self.intake.stop()
        assert not self.intake.is_alive()

    def paths(self):
        return [arrival.path for arrival in self.arrivals]

    def said(self, kind):
        return [text for k, text, _ in self.events if k == kind]

    def turns(self, count=5):
        """Wait until the intake has looked around so many times more."""
        beats = set()
        wait_for(lambda: beats.add(self.intake._beat) or len(beats) > count)

    def settled(self):
        """Wait until a scan begun now has ended and nothing is pending."""
        self.intake.rescan()
        wait_for(self.intake.idle)


def arrives(night, path):
    """Wait until a file is delivered."""
    wait_for(lambda: path in night.paths())


WHOLE = frame(ny=100, nx=100, keywords=[f"KEY{n:<5}= {n:20d}" for n in range(50)])
EXTENSION = header(
    "XTENSION= 'IMAGE   '",
    "BITPIX  =                    8",
    "NAXIS   =                    2",
    "NAXIS1  =                 2880",
    "NAXIS2  =                    2",
    "PCOUNT  =                    0",
    "GCOUNT  =                    1",
) + bytes(5760)


_INSIDE = "LIGHTKEEPER_TEST_HAS_ITS_OWN_MOUNTS"


def in_own_mounts(test):
    """Run a test in a mount and user namespace of its own, where it may mount and set limits.

    The test is run again by a pytest of its own; nothing of what it mounts is seen outside, nor
    outlives it.
    """

    @functools.wraps(test)
    def outside(*arguments, **named):
        if _INSIDE in os.environ:
            test(*arguments, **named)
            return
        enter = ["unshare", "--map-root-user", "--mount"]
        allowed = shutil.which("unshare") and subprocess.run(
            [*enter, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
        )
        if not allowed or allowed.returncode:
            pytest.skip("this machine does not allow a mount namespace (unshare --map-root-user)")
        name = os.environ["PYTEST_CURRENT_TEST"].rsplit(" ", 1)[0]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [*enter, sys.executable, "-m", "pytest", "-q", f"--basetemp={folder}/test", name],
                env={**os.environ, _INSIDE: "1"},
                capture_output=True,
                text=True,
                check=False,
            )
        if "1 skipped" in done.stdout:
            pytest.skip(done.stdout.split("SKIPPED", 1)[-1].splitlines()[0])
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "1 passed" in done.stdout

    return outside


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def unmount(folder):
    """Take away what is mounted at a folder, even while a thread looks into it."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)
