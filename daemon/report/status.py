"""What the commands show: records of the daemon's state, as text for 80 columns and as JSON.

Times are aware and UTC in the records and in JSON; on a person's face they are local.
"""

import dataclasses
import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from daemon.report.layout import FAINT as _FAINT
from daemon.report.layout import HEADING as _HEADING
from daemon.report.layout import cell as _cell
from daemon.report.layout import indented as _indented
from daemon.report.layout import line as _line
from daemon.report.layout import printable
from daemon.report.layout import section as _section
from daemon.report.layout import table as _table

_PROBLEM = "bold red"


@dataclasses.dataclass(frozen=True, slots=True)
class StackStatus:
    """One growing image."""

    number: int
    """How commands call it."""
    target: str
    filter: str | None
    camera: str | None
    frames: int
    exposure_s: float
    """s, of all its frames together."""
    generation: int
    path: str | None
    """The product; None before the first is written."""
    preview: str | None
    flags: Sequence[str]
    """What is lacking, such as `no flat`."""
    updated: dt.datetime | None
    """UTC."""


@dataclasses.dataclass(frozen=True, slots=True)
class MasterStatus:
    """One master in use."""

    kind: str
    camera: str | None
    exposure_s: float | None
    """s"""
    temperature_c: float | None
    """°C"""
    gain: float | None
    filter: str | None
    frames: int
    generation: int
    path: str
    built: dt.datetime | None
    """UTC."""


@dataclasses.dataclass(frozen=True, slots=True)
class IncompleteSet:
    """Calibration frames of one kind that are not enough for a master yet, or were refused."""

    kind: str
    camera: str | None
    exposure_s: float | None
    temperature_c: float | None
    gain: float | None
    filter: str | None
    frames: int
    needed: int
    refused: str | None = None
    """Why there is no master of them, or no new one."""


@dataclasses.dataclass(frozen=True, slots=True)
class FrameStatus:
    """One of the last frames."""

    name: str
    frame_type: str | None
    state: str
    target: str | None
    filter: str | None
    note: str
    """The reason, where there is one; else what was measured. May be empty."""
    done: dt.datetime | None
    """UTC."""


@dataclasses.dataclass(frozen=True, slots=True)
class StatusReport:
    """Everything `lightkeeper status` shows."""

    folder: str
    """The library's folder; paths inside it are shown without it."""
    worker: str
    """What the daemon does now, in words; `not running`."""
    since: dt.datetime | None
    """UTC, since when it does so."""
    queue: int
    """Frames that are still to be worked on."""
    frames_by_state: Mapping[str, int]
    frames_by_type: Mapping[str, int]
    stacks: Sequence[StackStatus]
    library: Sequence[MasterStatus]
    problems: Sequence[str]
    last_frames: Sequence[FrameStatus]
    """Newest first."""


@dataclasses.dataclass(frozen=True, slots=True)
class LibraryReport:
    """Everything `lightkeeper library` shows."""

    folder: str
    masters: Sequence[MasterStatus]
    incomplete: Sequence[IncompleteSet]


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """Why one frame was treated as it was."""

    frame: str
    sections: Sequence[tuple[str, Sequence[str]]]
    """Headings with their lines."""
    others: Sequence[str] = ()
    """Further frames that the question could have meant."""


@dataclasses.dataclass(frozen=True, slots=True)
class StackReport:
    """Everything `lightkeeper stack` shows."""

    folder: str
    stacks: Sequence[StackStatus]


Report = StackReport | StatusReport | LibraryReport | Explanation


def to_json(report: Any) -> str:  # noqa: ANN401 - any dataclass
    """Write the report as indented JSON: times in UTC with `Z`, numbers that are none as null."""
    return json.dumps(_plain(dataclasses.asdict(report)), indent=2, ensure_ascii=True)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def render_text(report: Report, *, now: dt.datetime) -> RenderableType:
    """Lay a report out for a terminal; times of the day of `now` (aware) are shown without it."""
    match report:
        case StatusReport():
            return _status(report, now)
        case StackReport():
            return _stacks(report, now)
        case LibraryReport():
            return _library(report, now)
        case Explanation():
            return _explanation(report)


# --- status --------------------------------------------------------------------------------------


def _status(report: StatusReport, now: dt.datetime) -> Group:
    since = f" since {local_time(report.since, now)}" if report.since else ""
    queue = f"{report.queue} in the queue" if report.queue else "nothing in the queue"
    parts: list[RenderableType] = [
        _line("Now", f"{report.worker}{since}; {queue}"),
        _line("Frames", _counts(report.frames_by_state) or "none yet"),
    ]
    if report.frames_by_type:
        parts.append(_line("", _counts(report.frames_by_type), style=_FAINT))
    parts.append(_line("Library", _summary(report.library)))
    parts.append(_line("Folder", report.folder))
    if report.problems:
        parts += _section("Problems")
        parts += [_indented(problem, style=_PROBLEM) for problem in report.problems]
    if report.stacks:
        parts += _section("Stacks")
        parts.append(_stack_table(report.stacks, now))
        parts += _section("Pictures")
        parts += [
            _indented(_inside(stack.preview or stack.path, report.folder))
            for stack in report.stacks
            if stack.preview or stack.path
        ]
    if report.last_frames:
        parts += _section("Last frames")
        parts.append(_frame_table(report.last_frames, now))
    return Group(*parts)


def _stacks(report: StackReport, now: dt.datetime) -> RenderableType:
    if not report.stacks:
        return _line("Stacks", "none yet")
    table = _table("No>", "Target", "Filter", "Frames>", "Exposure>", "Updated>", "Picture")
    for stack in report.stacks:
        table.add_row(
            _cell(str(stack.number)),
            _cell(stack.target),
            _cell(stack.filter or "-"),
            _cell(str(stack.frames)),
            _cell(duration(stack.exposure_s)),
            _cell(local_time(stack.updated, now)),
            _cell(_inside(stack.preview or stack.path or "-", report.folder)),
        )
    return table


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _summary(masters: Sequence[MasterStatus]) -> str:
    kinds: dict[str, int] = {}
    for master in masters:
        kinds[master.kind] = kinds.get(master.kind, 0) + 1
    made = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"masters: {made}" if made else "no masters yet"


def _stack_table(stacks: Sequence[StackStatus], now: dt.datetime) -> Table:
    table = _table("Target", "Filter", "Frames>", "Exposure>", "Updated>", "Notes")
    for stack in stacks:
        table.add_row(
            _cell(stack.target),
            _cell(stack.filter or "-"),
            _cell(str(stack.frames)),
            _cell(duration(stack.exposure_s)),
            _cell(local_time(stack.updated, now)),
            _cell(", ".join(stack.flags), style="yellow"),
        )
    return table


def _frame_table(frames: Sequence[FrameStatus], now: dt.datetime) -> Table:
    table = _table("Time>", "State", "Frame", "Note")
    for frame in frames:
        what = " ".join(word for word in (frame.frame_type, frame.target, frame.filter) if word)
        note = "; ".join(word for word in (what, frame.note) if word)
        style = "" if frame.state in {"stacked", "filed", "new", "waiting"} else "red"
        table.add_row(
            _cell(local_time(frame.done, now)),
            _cell(frame.state, style=style),
            _cell(frame.name),
            _cell(note),
        )
    return table


# --- library -------------------------------------------------------------------------------------


def _library(report: LibraryReport, now: dt.datetime) -> Group:
    parts: list[RenderableType] = [_line("Folder", report.folder)]
    if not report.masters:
        parts.append(_line("Masters", "none yet"))
    for camera in _cameras(report.masters):
        parts += _section(f"Masters of {camera or 'a camera without a name'}")
        table = _table(
            "Kind", "Exposure>", "Temp.>", "Gain>", "Filter", "Frames>", "Made>", "Generation>"
        )
        for master in report.masters:
            if master.camera == camera:
                table.add_row(
                    *_set_cells(master),
                    _cell(str(master.frames)),
                    _cell(local_time(master.built, now)),
                    _cell(str(master.generation)),
                )
        parts.append(table)
    for camera in _cameras(report.incomplete):
        parts += _section(f"Not complete yet, of {camera or 'a camera without a name'}")
        table = _table("Kind", "Exposure>", "Temp.>", "Gain>", "Filter", "Frames>", "Missing>")
        for part in report.incomplete:
            if part.camera == camera:
                table.add_row(
                    *_set_cells(part),
                    _cell(f"{part.frames} of {part.needed}"),
                    _cell(str(max(0, part.needed - part.frames))),
                )
        parts.append(table)
    reasons = list(dict.fromkeys(part.refused for part in report.incomplete if part.refused))
    if reasons:
        parts += [*_section("Refused"), *(_cell(reason) for reason in reasons)]
    return Group(*parts)


def _cameras(sets: Iterable[MasterStatus | IncompleteSet]) -> list[str | None]:
    """Each camera once, in the order in which they come."""
    return list(dict.fromkeys(entry.camera for entry in sets))


def _set_cells(entry: MasterStatus | IncompleteSet) -> list[Text]:
    return [
        _cell(entry.kind),
        _cell("-" if entry.exposure_s is None else f"{entry.exposure_s:g} s"),
        _cell(
            "-" if entry.temperature_c is None else f"{round(entry.temperature_c, 1) + 0.0:.1f} °C"
        ),
        _cell("-" if entry.gain is None else f"{entry.gain:g}"),
        _cell(entry.filter or "-"),
    ]


# --- explanation ---------------------------------------------------------------------------------


def _explanation(report: Explanation) -> Group:
    parts: list[RenderableType] = [Text(printable(report.frame), style=_HEADING)]
    for heading, lines in report.sections:
        parts += _section(heading)
        parts += [_indented(line) for line in lines]
    if report.others:
        parts += _section("Other frames with such a name")
        parts += [_indented(other, style=_FAINT) for other in report.others]
    return Group(*parts)


# --- pieces --------------------------------------------------------------------------------------


def local_time(when: dt.datetime | None, now: dt.datetime) -> str:
    """`03:12:45` on the local day of `now`, else `2026-11-20 23:50`; `-` for None."""
    if when is None:
        return "-"
    local = when.astimezone()
    same_day = local.date() == now.astimezone().date()
    return f"{local:%H:%M:%S}" if same_day else f"{local:%Y-%m-%d %H:%M}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _inside(path: str | None, folder: str) -> str:
    """Leave out of a path the folder it is in."""
    pure = PurePath(path or "")
    return str(pure.relative_to(folder)) if folder and pure.is_relative_to(folder) else str(pure)
