"""A real daemon in a process of its own, watched through its journal and systemd's socket."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

COMMAND = "import sys; from daemon.cli import main; sys.exit(main())"


def wait_for(condition, seconds=240.0):
    """Wait for something that another process does; the test's own time limit is far away."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


def write_config(tmp_path: Path, extra: str = "", *, library: Path | None = None) -> Path:
    """A configuration of `tmp_path/in` → `tmp_path/library`, as a file."""
    (tmp_path / "in").mkdir(exist_ok=True)
    path = tmp_path / "config.toml"
    path.write_text(
        f'[library]\npath = "{library or tmp_path / "library"}"\n'
        f'[[watch]]\npath = "{tmp_path / "in"}"\nsettle_s = 0.1\n{extra}\n'
    )
    return path


class Daemon:
    """`lightkeeper run`, or the Python code `program` with the same arguments."""

    def __init__(self, config: Path, *, program: str = COMMAND, watchdog_s: float = 1.0) -> None:
        self.said: list[str] = []
        self.heard: list[str] = []
        self._address = str(config.parent / "notify")
        Path(self._address).unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": self._address,
            "WATCHDOG_USEC": str(int(watchdog_s * 1e6)),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "run", "--config", str(config)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._hear, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read(self):
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))

    def _hear(self):
        self._socket.settimeout(0.2)
        while self.process.poll() is None:
            try:
                self.heard += self._socket.recv(4096).decode().split("\n")
            except TimeoutError:
                continue

    def lines(self, pattern: str) -> list[str]:
        """What it said so far that matches."""
        return [line for line in self.said if re.search(pattern, line)]

    def wait(self, pattern: str, count: int = 1, seconds: float = 90.0) -> None:
        """Wait until it has said something so many times."""
        try:
            wait_for(
                lambda: len(self.lines(pattern)) >= count or self.process.poll() is not None,
                seconds,
            )
        finally:
            assert len(self.lines(pattern)) >= count, (pattern, "\n".join(self.said))

    def pings(self) -> int:
        """Watchdog pings so far."""
        return self.heard.count("WATCHDOG=1")

    def stop(self) -> int:
        """SIGTERM, as systemd does; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(5)
        self.process.stderr.close()
        self._socket.close()
