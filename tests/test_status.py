"""What the commands show, with sample data: its content, not its layout."""

import datetime as dt
import io
import json
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from daemon.report.status import (
    Explanation,
    FrameStatus,
    IncompleteSet,
    LibraryReport,
    MasterStatus,
    Report,
    StackStatus,
    StatusReport,
    duration,
    local_time,
    render_text,
    to_json,
)

NOW = dt.datetime(2026, 11, 21, 3, 15, tzinfo=dt.UTC)
FOLDER = "/data/lightkeeper"


def ago(minutes: float) -> dt.datetime:
    return NOW - dt.timedelta(minutes=minutes)


MASTERS = [
    MasterStatus(
        "dark",
        "ZWO ASI2600MM Pro",
        300.0,
        -10.02,
        100.0,
        None,
        20,
        2,
        f"{FOLDER}/d.fits",
        ago(3000),
    ),
    MasterStatus(
        "flat", "ZWO ASI2600MM Pro", 2.5, -0.01, 100.0, "Ha", 25, 1, f"{FOLDER}/f.fits", ago(30)
    ),
    MasterStatus("bias", None, None, None, None, None, 50, 1, f"{FOLDER}/b.fits", None),
]

STATUS = StatusReport(
    folder=FOLDER,
    worker="stacking M42_Ha_0012.fits",
    since=ago(0.2),
    queue=3,
    frames_by_state={"stacked": 48, "filed": 70, "rejected": 2, "failed": 0},
    frames_by_type={"dark": 20, "light": 50},
    stacks=[
        StackStatus(
            1,
            target="M42",
            filter="Ha",
            camera="ZWO ASI2600MM Pro",
            frames=24,
            exposure_s=7200.0,
            generation=24,
            path=f"{FOLDER}/stacks/M42/Ha/M42_Ha_v24.fits",
            preview=f"{FOLDER}/stacks/M42/Ha/M42_Ha.png",
            flags=["no flat", "no dark"],
            updated=ago(3),
        ),
        StackStatus(2, "M31", None, None, 1, 30.0, 0, None, None, [], None),
    ],
    library=MASTERS,
    problems=["/data/camera is not mounted"],
    last_frames=[
        FrameStatus("M42_0012.fits", "light", "stacked", "M42", "Ha", "FWHM 3.1 px", ago(1)),
        FrameStatus(
            "[bold]x\x1b[31m\udcff.fits", None, "rejected", None, None, "no image", ago(600)
        ),
    ],
)

LIBRARY = LibraryReport(
    folder=FOLDER,
    masters=MASTERS,
    incomplete=[IncompleteSet("dark", "QHY600", 600.0, -20.0, 56.0, None, 3, 5)],
)


@pytest.fixture(autouse=True)
def _time_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two hours east of Greenwich (POSIX writes that with a minus)."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-2")
        time.tzset()
        yield
    time.tzset()


def rendered(report: Report, *, width: int = 80) -> str:
    """As a terminal of that width without colours shows it."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, highlight=False).print(
        render_text(report, now=NOW)
    )
    return out.getvalue()


def rows(text: str) -> list[str]:
    """The lines, with runs of blanks made one."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_status_tells_what_the_daemon_does() -> None:
    lines = rows(rendered(STATUS))
    assert "Now stacking M42_Ha_0012.fits since 05:14:48; 3 in the queue" in lines
    assert "Frames 48 stacked, 70 filed, 2 rejected" in lines
    assert "20 dark, 50 light" in lines
    assert "Library masters: 1 bias, 1 dark, 1 flat" in lines
    assert "/data/camera is not mounted" in lines


def test_status_tells_each_stack_and_where_its_picture_is() -> None:
    lines = rows(rendered(STATUS))
    assert "M42 Ha 24 2 h 00 min 05:12:00 no flat, no dark" in lines
    assert "M31 - 1 30 s -" in lines
    assert "stacks/M42/Ha/M42_Ha.png" in lines


def test_status_tells_the_last_frames() -> None:
    lines = rows(rendered(STATUS, width=120))
    assert "05:14:00 stacked M42_0012.fits light M42 Ha; FWHM 3.1 px" in lines
    # A hostile name is text: neither markup, nor an escape, nor an undecodable byte.
    assert "2026-11-20 19:15 rejected [bold]x�[31m�.fits no image" in lines
    assert "\x1b" not in rendered(STATUS)


def test_an_empty_status_says_so() -> None:
    empty = StatusReport(FOLDER, "not running", None, 0, {}, {}, [], [], [], [])
    lines = rows(rendered(empty))
    assert "Now not running; nothing in the queue" in lines
    assert "Frames none yet" in lines
    assert "Library no masters yet" in lines
    assert not {"Problems", "Stacks", "Last frames"} & set(lines)


def test_library_tells_the_masters_of_each_camera_and_what_is_missing() -> None:
    lines = rows(rendered(LIBRARY))
    asi, unnamed, qhy = (
        next(i for i, line in enumerate(lines) if name in line)
        for name in ("Masters of ZWO", "a camera without a name", "Not complete yet, of QHY600")
    )
    assert "dark 300 s -10.0 °C 100 - 20 2026-11-19 03:15 2" in lines[asi:unnamed]
    assert "flat 2.5 s 0.0 °C 100 Ha 25 04:45:00 1" in lines[asi:unnamed]
    assert "bias - - - - 50 - 1" in lines[unnamed:qhy]
    assert "dark 600 s -20.0 °C 56 - 3 of 5 2" in lines[qhy:]


def test_an_empty_library_says_so() -> None:
    assert "Masters none yet" in rows(rendered(LibraryReport(FOLDER, [], [])))


def test_explanation_is_told_under_its_headings() -> None:
    text = rendered(
        Explanation(
            "M42_0012.fits",
            [
                ("Header", ["IMAGETYP = LIGHT"]),
                ("Dark", ["master 9 refused: [120 s] is not 300 s"]),
            ],
            others=["7: M42_0012.fits (rejected)"],
        )
    )
    lines = rows(text)
    assert lines[0] == "M42_0012.fits"
    assert lines.index("Header") + 1 == lines.index("IMAGETYP = LIGHT")
    assert lines.index("Dark") + 1 == lines.index("master 9 refused: [120 s] is not 300 s")
    assert "7: M42_0012.fits (rejected)" in lines


@pytest.mark.parametrize("report", [STATUS, LIBRARY])
def test_every_line_fits_80_columns_and_no_word_is_lost(report: Report) -> None:
    narrow, wide = rendered(report), rendered(report, width=300)
    assert max(map(len, narrow.splitlines())) <= 80
    assert sorted(narrow.split()) == sorted(wide.split())


def test_json_has_times_in_utc_and_every_field() -> None:
    content = json.loads(to_json(STATUS))
    assert content["since"] == "2026-11-21T03:14:48Z"
    assert content["stacks"][0]["updated"] == "2026-11-21T03:12:00Z"
    assert content["stacks"][0]["exposure_s"] == 7200.0
    assert content["stacks"][1]["filter"] is None
    assert content["frames_by_state"]["stacked"] == 48
    assert content["last_frames"][1]["name"] == STATUS.last_frames[1].name
    assert [m["kind"] for m in json.loads(to_json(LIBRARY))["masters"]] == ["dark", "flat", "bias"]


def test_json_has_no_numbers_that_json_does_not_know() -> None:
    report = LibraryReport(
        FOLDER, [], [IncompleteSet("dark", None, float("nan"), float("inf"), None, None, 1, 5)]
    )
    (part,) = json.loads(to_json(report), parse_constant=pytest.fail)["incomplete"]
    assert part["exposure_s"] is None
    assert part["temperature_c"] is None


def test_a_local_time_in_another_zone_of_the_record_is_the_same() -> None:
    zone = dt.timezone(dt.timedelta(hours=-7))
    assert local_time(ago(1).astimezone(zone), NOW) == "05:14:00"
    # 23:59:59 local is the day before, though in UTC it is the same day.
    assert (
        local_time(dt.datetime(2026, 11, 20, 21, 59, 59, tzinfo=dt.UTC), NOW) == "2026-11-20 23:59"
    )
    assert local_time(dt.datetime(2026, 11, 20, 22, 0, 0, tzinfo=dt.UTC), NOW) == "00:00:00"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "0.5 s"),
        (59.4, "59.4 s"),
        (60, "1 min"),
        (3569, "59 min"),
        (3571, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (360000, "100 h 00 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
