"""The status log: one line an event, for a person at three in the morning; and the journal.

Names and headers come from other programs, so nothing reaches a line before its control
characters, escapes, line breaks and broken bytes have been made visible.
"""

import datetime as dt
import logging
import os
import sys
import threading
import unicodedata
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TextIO

MAX_BYTES = 10_000_000
"""bytes; a log that would grow beyond this is put aside first."""
KEPT = 5
"""Logs put aside, `status.log.1` the newest."""
_LONGEST_LINE = 4000  # characters; a hostile header must not fill the disk
_KIND_WIDTH = 10


class Level(StrEnum):
    """How much an event matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_PRIORITY = {Level.INFO: 6, Level.WARNING: 4, Level.ERROR: 3}  # syslog(3), read by the journal
_MARK = {Level.INFO: "", Level.WARNING: "warning: ", Level.ERROR: "error: "}


class Event(Protocol):
    """What a part of the daemon needs in order to say something: `StatusLog.event`."""

    def __call__(self, kind: str, text: str, *, level: Level = Level.INFO) -> None:
        """Tell one event."""


def clean(text: str) -> str:
    r"""Make everything invisible or dangerous in a text visible.

    Control and format characters (line breaks, escapes, those that reverse the direction of
    writing), separators other than the blank, and bytes that are not UTF-8 (surrogate escapes)
    become `\xNN` or `\uNNNN`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] != "C" and category not in {"Zl", "Zp"}:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's stand-in for the byte
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _fields_text(fields: Mapping[str, object]) -> str:
    """`  key=value` for each field that has a value; values with blanks are quoted."""
    parts = []
    for key, value in fields.items():
        if value is not None:
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            parts.append(f'  {key}="{text}"' if " " in text else f"  {key}={text}")
    return "".join(parts)


def _now() -> dt.datetime:
    return dt.datetime.now(tz=dt.UTC).astimezone()


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the stream goes straight to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        stat = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


class StatusLog:
    """Writes each event to a file and to the journal or the terminal. Thread-safe.

    A full disk stops no work: lines that cannot be written are counted, and the number is told
    as soon as writing is possible again.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        stream: TextIO | None = None,
        max_bytes: int = MAX_BYTES,
        kept: int = KEPT,
        now: Callable[[], dt.datetime] = _now,
        environ: Mapping[str, str] = os.environ,
        present: Callable[[], bool] = lambda: True,
    ) -> None:
        """Log to `path` (None: no file), whose folder must exist, and to `stream` (stderr).

        `now` returns local time. While `present` says no, `path` is not where it belongs (its disk
        is not mounted), and nothing is written there.
        """
        self._present = present
        self._path, self._max_bytes, self._kept, self._now = path, max_bytes, kept, now
        self._stream = sys.stderr if stream is None else stream
        self._journal = _is_journal(self._stream, environ)
        self._lost = 0
        self._lock = threading.Lock()

    def event(self, kind: str, text: str, *, level: Level = Level.INFO, **fields: object) -> None:
        """Write one line: local time, kind, text, and the fields that are not None."""
        said = clean(_MARK[level] + text + _fields_text(fields))
        if len(said) > _LONGEST_LINE:
            said = said[: _LONGEST_LINE - 1] + "…"
        body = f"{clean(kind):<{_KIND_WIDTH - 1}} {said}"
        stamp = f"{self._now():%Y-%m-%d %H:%M:%S}"
        with self._lock:
            self._to_stream(f"<{_PRIORITY[level]}>{body}" if self._journal else f"{stamp}  {body}")
            if self._path is not None:
                self._to_file(self._path, stamp, body)

    def info(self, kind: str, text: str, **fields: object) -> None:
        """Tell an event that needs nobody."""
        self.event(kind, text, level=Level.INFO, **fields)

    def warning(self, kind: str, text: str, **fields: object) -> None:
        """Tell what somebody should know of."""
        self.event(kind, text, level=Level.WARNING, **fields)

    def error(self, kind: str, text: str, **fields: object) -> None:
        """Tell what somebody must do something about."""
        self.event(kind, text, level=Level.ERROR, **fields)

    def handler(self) -> logging.Handler:
        """Return a handler that brings other libraries' warnings (watchdog, apscheduler) here."""
        return _Bridge(self)

    def _to_stream(self, line: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            # A terminal in the C locale must not stop on the σ of a sentence.
            safe = line.encode(encoding, "backslashreplace").decode(encoding)
            self._stream.write(safe + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # closed, or a pipe whose reader has gone
            return

    def _to_file(self, path: Path, stamp: str, body: str) -> None:
        lines = [f"{stamp}  {body}\n"]
        if self._lost:
            missing = f"{self._lost} lines could not be written"
            lines.insert(0, f"{stamp}  {'LOG':<{_KIND_WIDTH}}warning: {missing}\n")
        data = "".join(lines).encode()
        if not self._present():
            self._lost += 1
            return
        try:
            self._rotate(path, len(data))
            # Opened anew each time: another program may have moved the file away.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                written = os.write(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            if not self._lost:
                self._to_stream(f"the status log {path} cannot be written: {error}")
            self._lost += 1
            return
        self._lost = 0 if written == len(data) else self._lost + 1

    def _rotate(self, path: Path, coming: int) -> None:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return
        if size == 0 or size + coming <= self._max_bytes:
            return
        for n in range(self._kept - 1, 0, -1):
            older = path.with_name(f"{path.name}.{n}")
            if older.exists():
                older.replace(path.with_name(f"{path.name}.{n + 1}"))
        path.replace(path.with_name(f"{path.name}.1"))


class _Bridge(logging.Handler):
    """Passes records of the standard logging on to the status log."""

    def __init__(self, log: StatusLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        level = Level.ERROR if record.levelno >= logging.ERROR else Level.WARNING
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        self._log.event("LIBRARY", f"{record.name}: {text}", level=level)
