"""A real daemon in a process of its own, watched through its journal and systemd's socket."""

import contextlib
import datetime as dt
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

COMMAND = "import sys; from daemon.cli import main; sys.exit(main())"


PATIENCE_S = 300.0
"""For what must come, however busy the machine is: how long it takes never decides a test."""


def wait_for(condition):
    """Wait for something that another thread or process does, and return it."""
    end = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return value


def at_another_hour(extra: str) -> str:
    """Settings whose end of the night is half a day away: that job must not come into a test."""
    line = f'end_of_night = "{(dt.datetime.now().hour + 12) % 24:02}:00"\n'  # noqa: DTZ005 - local
    if "[service]\n" in extra:
        return extra.replace("[service]\n", f"[service]\n{line}")
    return f"{extra}\n[service]\n{line}"


def write_config(tmp_path: Path, extra: str = "", *, library: Path | None = None) -> Path:
    """A configuration of `tmp_path/in` → `tmp_path/library`, as a file."""
    (tmp_path / "in").mkdir(exist_ok=True)
    path = tmp_path / "config.toml"
    path.write_text(
        f'[library]\npath = "{library or tmp_path / "library"}"\n'
        f'[[watch]]\npath = "{tmp_path / "in"}"\nsettle_s = 0.1\n{at_another_hour(extra)}\n'
    )
    return path


class Daemon:
    """`lightkeeper run`, or the Python code `program` with the same arguments."""

    def __init__(self, config: Path, *, program: str = COMMAND, watchdog_s: float = 1.0) -> None:
        self.said: list[str] = []
        self.heard: list[str] = []
        # Abstract: a path may be too long for a socket, where temporary files lie deep.
        name = f"lightkeeper-{uuid.uuid4().hex}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name}")
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": f"@{name}",
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
        ended = False
        while not ended:
            # Looked at before: what was sent until the end is still heard.
            ended = self.process.poll() is not None
            with contextlib.suppress(TimeoutError):
                while True:
                    self.heard += self._socket.recv(4096).decode().split("\n")

    def lines(self, pattern: str) -> list[str]:
        """What it said so far that matches."""
        return [line for line in self.said if re.search(pattern, line)]

    def told(self, pattern: str) -> list[str]:
        """What systemd was told so far that matches."""
        return [line for line in self.heard if re.search(pattern, line)]

    def wait(self, pattern: str, count: int = 1) -> None:
        """Wait until it has said something so many times, or can say nothing any more."""
        try:
            wait_for(lambda: len(self.lines(pattern)) >= count or not self._threads[0].is_alive())
        finally:
            assert len(self.lines(pattern)) >= count, (pattern, "\n".join(self.said))

    def pings(self) -> int:
        """Watchdog pings so far."""
        return self.heard.count("WATCHDOG=1")

    def stop(self) -> int:
        """SIGTERM, as systemd does; returns the exit code. All that it said has been read then."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_S)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self.process.stderr.close()
        self._socket.close()
