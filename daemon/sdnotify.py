"""What systemd is told: ready, alive, a status line, stopping (sd_notify(3)).

Without systemd every call does nothing.
"""

import dataclasses
import os
import socket
import time
from collections.abc import Mapping
from typing import Self


@dataclasses.dataclass(frozen=True, slots=True)
class Notifier:
    """A way to the service manager. Each call returns whether the message was sent.

    A message that cannot be sent is not an error here: the manager draws its own conclusions
    from silence.
    """

    address: str | None
    """A Unix socket's path, or `@name` of an abstract one; None: nobody listens."""
    watchdog_interval_s: float | None = None
    """s between two `watchdog` calls: half of what the manager allows. None: not wanted."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.

        A watchdog that is meant for another process, or makes no sense, is not ours.
        """
        address = environ.get("NOTIFY_SOCKET", "")
        usec = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", "") in {"", str(os.getpid())}
        interval = int(usec) / 2e6 if ours and usec.isdecimal() and int(usec) > 0 else None
        if not address.startswith(("/", "@")):
            return cls(None)
        return cls(address, interval)

    def ready(self) -> bool:
        """Tell that the watch stands and the first scan has begun."""
        return self._send("READY=1")

    def watchdog(self) -> bool:
        """Tell that the work goes on. Only to be called while that is true."""
        return self._send("WATCHDOG=1")

    def status(self, text: str) -> bool:
        """Set the line that `systemctl status` shows."""
        return self._send("STATUS=" + " ".join(text.split()))

    def reloading(self) -> bool:
        """Tell that the configuration is being read again; `ready` ends it."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        """Tell that the service has begun to stop."""
        return self._send("STOPPING=1")

    def _send(self, message: str) -> bool:
        if self.address is None:
            return False
        # An abstract socket's name starts with a null byte.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(1.0)  # a stuck manager must not stop the night
                sock.sendto(message.encode("utf-8", "backslashreplace"), address)
        except OSError:
            return False
        return True
