"""The status log: readable, whole, bounded, and safe to look at."""

import datetime as dt
import io
import logging
import os
import threading

import pytest

from daemon import log as module
from daemon.log import Level, StatusLog, clean

NOON = dt.datetime(2026, 11, 21, 3, 12, 45, tzinfo=dt.timezone(dt.timedelta(hours=1)))


def make(path, **options):
    stream = options.pop("stream", io.StringIO())
    return StatusLog(path, stream=stream, now=lambda: NOON, environ={}, **options), stream


def test_one_line_an_event_in_local_time(tmp_path):
    log, stream = make(tmp_path / "status.log")
    log.event("STACKED", "M42 Ha  light_0012.fits", weight=0.8123456789, frames=12, reason=None)
    line = "2026-11-21 03:12:45  STACKED   M42 Ha  light_0012.fits  weight=0.812346  frames=12\n"
    assert (tmp_path / "status.log").read_text("utf-8") == line
    assert stream.getvalue() == line


def test_levels_are_words_for_people(tmp_path):
    log, _ = make(tmp_path / "status.log")
    log.info("A", "x")
    log.warning("B", "y", target="Dark Nebula")
    log.error("C", "z")
    assert [line[21:] for line in (tmp_path / "status.log").read_text("utf-8").splitlines()] == [
        "A         x",
        'B         warning: y  target="Dark Nebula"',
        "C         error: z",
    ]


def test_a_long_kind_stays_a_word_of_its_own(tmp_path):
    log, _ = make(tmp_path / "status.log")
    log.warning("UNREADABLE", "x")
    log.warning("QUARANTINED", "y")
    assert [line[21:] for line in (tmp_path / "status.log").read_text("utf-8").splitlines()] == [
        "UNREADABLE warning: x",
        "QUARANTINED warning: y",
    ]


@pytest.mark.parametrize(
    ("level", "priority"), [(Level.INFO, 6), (Level.WARNING, 4), (Level.ERROR, 3)]
)
def test_the_journal_gets_the_priority_and_not_the_time(tmp_path, level, priority):
    with (tmp_path / "journal").open("w+", encoding="utf-8") as journal:
        stat = os.fstat(journal.fileno())
        environ = {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}
        StatusLog(None, stream=journal, environ=environ).event("WATCH", "x", level=level)
        journal.seek(0)
        line = journal.read()
    assert line.startswith(f"<{priority}>WATCH")
    assert line.count("\n") == 1


HOSTILE = [
    ("a\nb", r"a\x0ab"),
    ("a\r\x1b[31mred", r"a\x0d\x1b[31mred"),
    ("tab\tnull\0", r"tab\x09null\x00"),
    ("\x9b2J", r"\x9b2J"),  # the one-character form of an escape
    ("\u202egnp.stif", r"\u202egnp.stif"),  # right-to-left override
    ("a\u2028b", r"a\u2028b"),
    (os.fsdecode(b"M42_\xe9\xff.fits"), r"M42_\xe9\xff.fits"),
    ("σ = 3 °C, Ω μ 星雲 é", "σ = 3 °C, Ω μ 星雲 é"),
]


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
def test_what_would_harm_a_reader_is_made_visible(text, shown, tmp_path):
    assert clean(text) == shown
    log, stream = make(tmp_path / "status.log")
    log.event(text, text, field=text)
    written = (tmp_path / "status.log").read_text("utf-8")
    assert written.count("\n") == 1
    assert len(written.splitlines()) == 1
    assert written.count(shown) == 3
    assert stream.getvalue() == written


def test_a_line_is_bounded(tmp_path):
    log, _ = make(tmp_path / "status.log")
    log.event("HEADER", "x" * 1_000_000)
    assert len((tmp_path / "status.log").read_text("utf-8")) < 5000


def test_the_log_is_put_aside_before_it_grows_too_long(tmp_path):
    log, _ = make(tmp_path / "status.log", max_bytes=500, kept=3)
    for n in range(100):
        log.event("N", f"{n:04d}")
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == ["status.log", *(f"status.log.{n}" for n in (1, 2, 3))]
    assert all(f.stat().st_size <= 500 for f in files)
    ordered = [tmp_path / "status.log.3", tmp_path / "status.log.2", tmp_path / "status.log.1"]
    numbers = [
        int(line[-4:]) for f in [*ordered, files[0]] for line in f.read_text("utf-8").splitlines()
    ]
    assert numbers == list(range(numbers[0], 100))  # the newest, without a gap


def test_a_log_moved_away_by_somebody_else_is_begun_again(tmp_path):
    log, _ = make(tmp_path / "status.log")
    log.info("A", "one")
    (tmp_path / "status.log").rename(tmp_path / "away")
    log.info("A", "two")
    assert (tmp_path / "status.log").read_text("utf-8").endswith("two\n")


def test_a_full_disk_stops_nothing_and_the_loss_is_told(tmp_path, monkeypatch):
    log, stream = make(tmp_path / "status.log")
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(module.os, "write", full)
        for _ in range(3):
            log.info("A", "lost from the file")
    log.info("A", "written")
    lines = (tmp_path / "status.log").read_text("utf-8").splitlines()
    assert [line[31:] for line in lines] == ["warning: 3 lines could not be written", "written"]
    assert stream.getvalue().count("lost from the file") == 3
    assert stream.getvalue().count("No space left") == 1


def test_a_terminal_that_knows_only_ascii_gets_something(tmp_path):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    log, _ = make(tmp_path / "status.log", stream=stream)
    log.info("A", "3 σ")
    assert raw.getvalue().endswith(b"3 \\u03c3\n")
    assert (tmp_path / "status.log").read_text("utf-8").endswith("3 σ\n")


def test_a_closed_terminal_stops_nothing(tmp_path):
    stream = io.StringIO()
    log, _ = make(tmp_path / "status.log", stream=stream)
    stream.close()
    log.info("A", "x")
    assert (tmp_path / "status.log").read_text("utf-8").endswith("x\n")


def test_lines_of_many_threads_stay_whole(tmp_path):
    log, _ = make(tmp_path / "status.log", max_bytes=20_000, kept=50)
    barrier = threading.Barrier(8)

    def work(who):
        barrier.wait()
        for n in range(200):
            log.event("N", f"{who}-{n}-" + "x" * 50)

    threads = [threading.Thread(target=work, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [line for f in tmp_path.iterdir() for line in f.read_text("utf-8").splitlines()]
    assert sorted(line[31:] for line in lines) == sorted(
        f"{who}-{n}-" + "x" * 50 for who in range(8) for n in range(200)
    )


def test_warnings_of_other_libraries_arrive_and_their_chatter_does_not(tmp_path):
    log, _ = make(tmp_path / "status.log")
    logger = logging.getLogger("some.library")
    handler = log.handler()
    logger.addHandler(handler)
    try:
        logger.info("chatter")
        logger.warning("missed by %s", "3 s")
        try:
            int("bad\nvalue")
        except ValueError:
            logger.exception("a job failed")
    finally:
        logger.removeHandler(handler)
    lines = (tmp_path / "status.log").read_text("utf-8").splitlines()
    first, second = (line[31:] for line in lines)
    assert first == "warning: some.library: missed by 3 s"
    assert second.startswith("error: some.library: a job failed (ValueError: ")
