"""The commands. Each unpacks its arguments and calls; nothing heavy is imported before it must.

Exit codes: 0 all is well, 1 a problem in the work, 2 a mistake in the command or the configuration,
3 another instance is running on this library.
"""

# Heavy modules are imported by the command that needs them, so that the others start at once.
# ruff: noqa: PLC0415

import collections
import contextlib
import datetime as dt
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from calib_library import __version__
from daemon import config as configuration
from daemon.config import Config, ConfigError
from daemon.errors import AlreadyRunningError, FatalError

if TYPE_CHECKING:
    from daemon.report.status import Report

CONFIG_VARIABLE = "LIGHTKEEPER_CONFIG"
SYSTEM_CONFIG = Path("/etc/lightkeeper/config.toml")
STATUS_LOG = "status.log"

_REFRESH_S = 2.0
_FOLLOW_S = 0.5


class Exit(IntEnum):
    """What a command's exit code means."""

    OK = 0
    PROBLEM = 1
    USAGE = 2
    ALREADY_RUNNING = 3


app = App(
    name="lightkeeper",
    version=__version__,
    help=(
        "Watch a camera's output folder all night: every frame is recognised, filed, calibrated,"
        " registered and stacked as it lands.\n\n"
        "Begin with `lightkeeper demo`, or with `lightkeeper init` and `lightkeeper run`.\n\n"
        "Exit codes: 0 all is well; 1 a problem in the work; 2 a mistake in the command or the"
        " configuration; 3 another instance is running on this library."
    ),
    default_parameter=Parameter(negative=()),
)

ConfigOption = Annotated[
    Path | None,
    Parameter(
        name="--config",
        help="The configuration. Without it: $LIGHTKEEPER_CONFIG, else ./config.toml, else"
        " /etc/lightkeeper/config.toml.",
    ),
]
JsonFlag = Annotated[bool, Parameter(name="--json", help="For scripts: JSON, times in UTC.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `arguments` default to the process's own."""
    try:
        command, bound, _ = app.parse_args(
            list(sys.argv[1:] if arguments is None else arguments),
            print_error=True,
            exit_on_error=False,
        )
        code = command(*bound.args, **bound.kwargs)
        sys.stdout.flush()
    except CycloptsError:
        return Exit.USAGE
    except ConfigError as error:
        for problem in error.problems:
            _complain(problem)
        return Exit.USAGE
    except FatalError as error:
        _complain(str(error))
        return Exit.ALREADY_RUNNING if isinstance(error, AlreadyRunningError) else Exit.PROBLEM
    except KeyboardInterrupt:
        return Exit.OK
    except BrokenPipeError:  # `lightkeeper status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    return code if isinstance(code, int) else Exit.OK


@app.command
def run(*, config: ConfigOption = None, until_idle: bool = False) -> int:
    """Watch the folders and work, in the foreground, until stopped by Ctrl-C or a signal.

    Parameters
    ----------
    until_idle
        Take in what is there, finish the work, and exit.
    """
    settings = _load(config)
    from daemon import service

    return service.run(settings, until_idle=until_idle, reread=lambda: _load(config))


@app.command
def status(*, config: ConfigOption = None, watch: bool = False, json: JsonFlag = False) -> int:
    """Show what the daemon does, the frames by state, the stacks and the problems.

    Parameters
    ----------
    watch
        Keep showing it, until Ctrl-C.
    """
    settings = _load(config)
    from daemon.report import collect

    if watch and not json:
        return _watch(lambda: collect.status(settings))
    return _show(lambda: collect.status(settings), json=json)


library_app = App(
    name="library",
    help="Show the masters; choose one by hand, take in one made elsewhere; what was measured of"
    " the cameras; what is missing.",
)
app.command(library_app)


@library_app.default
def library(*, config: ConfigOption = None, json: JsonFlag = False) -> int:
    """Show the masters, and the sets of frames that are not enough for one yet."""
    settings = _load(config)
    from daemon.report import collect

    return _show(lambda: collect.library(settings), json=json)


@library_app.command
def use(
    master: str = "",
    /,
    *,
    target: str | None = None,
    frame: str | None = None,
    kind: Literal["bias", "dark", "flat"] | None = None,
    remove: bool = False,
    extrapolate: bool = False,
    config: ConfigOption = None,
) -> int:
    """Use a master for a target or a frame, whatever the rules say; its stacks are made again.

    Parameters
    ----------
    master
        The master's file name, or a part of it, as `lightkeeper library` shows it.
    target
        For all lights of this target.
    frame
        For this light: its file name, a part of it, its path, or its number.
    kind
        As what it is used; without it, as what it is.
    remove
        Go back to the rules, for this kind or for all.
    extrapolate
        Instead of a master: let the dark be extrapolated by up to 5 °C where all darks are on one
        side of the light's temperature. By itself that is done up to 2 °C only.
    """
    settings = _load(config)
    from daemon.report import collect

    if (target is None) == (frame is None):
        _complain("give either --target or --frame: what the master is to be used for")
        return Exit.USAGE
    if [bool(master), remove, extrapolate].count(True) != 1:
        _complain("give a master to use, or --extrapolate, or --remove to go back to the rules")
        return Exit.USAGE
    words: dict[str, str] = {"kind": kind} if kind else {}
    if extrapolate:
        words["extrapolate"] = "yes"
    try:
        number = 0 if not master else _only(master, collect.masters(settings, master), "master")
        if frame is not None:
            found = [(n, f"{name} ({state})") for n, name, state in collect.frames(settings, frame)]
            words["frame"] = str(_only(frame, found, "frame"))
        else:
            assert target is not None
            words["target"] = target
    except collect.NoLibraryError as error:
        _complain(str(error))
        return Exit.PROBLEM
    except LookupError:
        return Exit.PROBLEM
    return _order(settings, "use", [number], words=words)


@library_app.command
def accept(number: int, /, *, config: ConfigOption = None) -> int:
    """Build the master of a set although it is unlike the one before: the camera is so now.

    Parameters
    ----------
    number
        The set's number, as the log gives it.
    """
    return _order(_load(config), "accept", [number])


@library_app.command(name="import")
def import_(
    file: Path,
    /,
    *,
    type_: Annotated[str | None, Parameter(name="--type")] = None,
    exposure: str | None = None,
    temperature: str | None = None,
    camera: str | None = None,
    gain: str | None = None,
    offset: str | None = None,
    filter_: Annotated[str | None, Parameter(name="--filter")] = None,
    full_scale: float | None = None,
    config: ConfigOption = None,
) -> int:
    """Take in a master that PixInsight, Siril or an ASIAIR has made: it is copied, and used.

    What its header does not say is asked for; `none` is an answer too.

    Parameters
    ----------
    file
        The master, a FITS or an XISF file.
    type_
        bias, dark, flat or flat-dark.
    exposure
        In seconds.
    temperature
        Of the sensor, in °C.
    camera
        As its frames name it.
    gain
        The camera's setting.
    offset
        The camera's setting.
    filter_
        Of a flat.
    full_scale
        ADU of the raw frames for which 1 stands, in a master whose pixels run from 0 to 1.
    """
    settings = _load(config)
    from daemon import shelf

    words = {
        "type": type_,
        "exposure": exposure,
        "temperature": temperature,
        "camera": camera,
        "gain": gain,
        "offset": offset,
        "filter": filter_,
        "full-scale": None if full_scale is None else f"{full_scale:g}",
    }
    given = {name: word for name, word in words.items() if word is not None}
    given["path"] = str(file.absolute())
    wrong = shelf.refusal(settings.library.path, given, settings.calibration.cameras)
    if wrong:
        _complain(wrong)
        return Exit.PROBLEM
    return _order(settings, "import", [0], words=given)


@library_app.command
def sensor(*, config: ConfigOption = None, json: JsonFlag = False) -> int:
    """Show each camera's gain, read noise, linearity and dark current, with errors and history."""
    settings = _load(config)
    from daemon.report import cameras

    return _show(lambda: cameras.gather(settings), json=json, render=cameras.render)


@library_app.command
def advice(
    *,
    config: ConfigOption = None,
    nights: int = 7,
    goal: float = 1.0,
    exposure: float | None = None,
    filter_name: Annotated[str | None, Parameter(name="--filter")] = None,
    temperature: float | None = None,
    lights: int = 50,
    dithered: bool = False,
    camera: str | None = None,
    sky: float | None = None,
    shots: Path | None = None,
    json: JsonFlag = False,
) -> int:
    """Tell how much noise the masters add to the stacks, which are missing, and what to take.

    Parameters
    ----------
    nights
        For the lights of so many nights.
    goal
        How much noise one master may add, in percent.
    exposure
        For a plan instead: the exposure of its lights, in seconds.
    filter_name
        Their filter.
    temperature
        Their temperature, in °C; without it that of the last lights.
    lights
        How many they are.
    dithered
        They will be dithered.
    camera
        A part of the camera's name; without it the one used last.
    sky
        Sky in one of them, in electrons a pixel; without it as the last lights had it.
    shots
        Write what is to be taken to this file: .csv, or .esq for Ekos.
    """
    settings = _load(config)
    from calib_library.errors import LibraryError
    from daemon.report import advising, collect
    from daemon.report.shots import write

    if goal <= 0 or nights < 1 or lights < 1 or (exposure is not None and exposure <= 0):
        _complain("--goal, --nights, --lights and --exposure must be more than 0")
        return Exit.USAGE
    if shots is not None and shots.suffix not in {".csv", ".esq"}:
        _complain(f"{shots}: the list is written as .csv or as .esq")
        return Exit.USAGE
    plan = None
    if exposure is not None:
        plan = advising.Plan(exposure, filter_name, temperature, lights, dithered, camera, sky)
    try:
        found = advising.gather(settings, nights=nights, goal=goal / 100, plan=plan)
        written = [] if shots is None else write(found.shots, shots)
    except (advising.NoAdviceError, collect.NoLibraryError, LibraryError, OSError) as error:
        _complain(str(error))
        return Exit.PROBLEM
    code = _show(lambda: found, json=json, render=advising.render)
    for path in written:
        _complain(f"written: {path}")
    return code


@app.command
def explain(frame: str, /, *, config: ConfigOption = None, json: JsonFlag = False) -> int:
    """Tell why a frame was treated as it was: its header, its masters, its quality, its stack.

    Parameters
    ----------
    frame
        The frame's file name, a part of it, its path, or its number.
    """
    settings = _load(config)
    from daemon.report import collect

    return _show(
        lambda: collect.explain(settings, frame),
        json=json,
        none=f"{frame}: no such frame is recorded; `lightkeeper log` shows what came in",
    )


@app.command
def log(
    *,
    config: ConfigOption = None,
    lines: Annotated[int, Parameter(name=["--lines", "-n"])] = 20,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"])] = False,
) -> int:
    """Show the last lines of the status log.

    Parameters
    ----------
    lines
        How many.
    follow
        Go on with each new line as it comes, until Ctrl-C.
    """
    path = _load(config).library.path / STATUS_LOG
    if not path.exists():
        _complain(f"{path}: there is no log yet; start the daemon with `lightkeeper run`")
        return Exit.PROBLEM
    offset = path.stat().st_size
    for line in last_lines(path, lines):
        sys.stdout.write(line)
    if follow:
        for text in follow_lines(path, offset):
            sys.stdout.write(text)
            sys.stdout.flush()
    return Exit.OK


@app.command
def check_config(*, config: ConfigOption = None) -> int:
    """Tell every mistake in the configuration at once, or that there is none."""
    settings = _load(config)
    for warning in configuration.warnings(settings):
        _complain(f"note: {warning}")
    watched = ", ".join(str(watch.path) for watch in settings.watch)
    sys.stdout.write(
        f"{_config_path(config)} is in order.\n"
        f"  watched: {watched}\n"
        f"  library: {settings.library.path}\n"
    )
    return Exit.OK


@app.command
def init(*, watch: Path, library: Path, config: Path, force: bool = False) -> int:
    """Write a commented configuration that works.

    Parameters
    ----------
    watch
        The folder in which the camera's program writes frames.
    library
        The folder for everything that Lightkeeper writes; it is made if it is not there.
    config
        The file to write.
    force
        Replace the file if it is there already.
    """
    if config.exists() and not force:
        _complain(f"{config} is there already; --force replaces it")
        return Exit.USAGE
    text = configuration.example(watch=str(watch.absolute()), library=str(library.absolute()))
    settings = configuration.parse(text, name=str(config), base=Path.cwd())
    try:
        settings.library.path.mkdir(parents=True, exist_ok=True)
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(text, encoding="utf-8")
    except OSError as error:
        _complain(f"{error.filename}: cannot be written: {error.strerror}")
        return Exit.PROBLEM
    for warning in configuration.warnings(settings):
        _complain(f"note: {warning}")
    sys.stdout.write(f"{config} is written. Now: lightkeeper run --config {config}\n")
    return Exit.OK


@app.command
def doctor(*, config: ConfigOption = None) -> int:
    """Look at database, products, disk, folders, limits and clock; say what to do where one is ill.

    The exit code is 1 where something is.
    """
    settings = _load(config)
    from daemon import doctor as examination

    ill = 0
    for finding in examination.examine(settings, now=time.time()):
        ill += not finding.good
        sys.stdout.write(examination.text(finding) + "\n")
    return Exit.PROBLEM if ill else Exit.OK


@app.command
def rebuild(*, config: ConfigOption = None, from_files: bool = False) -> int:
    """Make a lost or damaged database again, from its newest sound backup or from the files.

    Nothing is deleted: what the new database does not speak of is set aside.

    Parameters
    ----------
    from_files
        Do without the backups: masters are known by their headers, frames are found again.
    """
    settings = _load(config)
    from daemon import rebuild as rebuilding

    made = rebuilding.rebuild(
        settings.library.path, from_files=from_files, now=dt.datetime.now(dt.UTC)
    )
    for problem in made.problems:
        _complain(f"note: {problem}")
    source = f"the backup {made.backup}" if made.backup else "the masters' files"
    aside = f" What there was is in {made.aside}." if made.aside else ""
    sys.stdout.write(
        f"The database is made again from {source}: {made.masters} masters.{aside} Frames and "
        "stacks are found and made again: lightkeeper run\n"
    )
    return Exit.OK


stack_app = App(
    name="stack",
    help="Show the stacks; take a frame out, let one in, make the exact stack.",
)
app.command(stack_app)


@stack_app.default
def stacks(*, config: ConfigOption = None, json: JsonFlag = False) -> int:
    """Show the stacks, each with its number."""
    settings = _load(config)
    from daemon.report import collect

    return _show(lambda: collect.stacks(settings), json=json)


@stack_app.command
def remove(frame: str, /, *, config: ConfigOption = None) -> int:
    """Take a light out of its stack, at once and for good (`readmit` takes it back).

    Parameters
    ----------
    frame
        The frame's file name, a part of it, its path, or its number.
    """
    return _ask(config, "remove", frame)


@stack_app.command
def readmit(frame: str, /, *, config: ConfigOption = None) -> int:
    """Let a light into its stack that was left out, whatever its quality.

    Parameters
    ----------
    frame
        The frame's file name, a part of it, its path, or its number.
    """
    return _ask(config, "readmit", frame)


@stack_app.command
def finish(
    number: int | None = None, /, *, config: ConfigOption = None, drizzle: bool = False
) -> int:
    """Make the exact stack from all raw frames, with rejection in two passes; at the end of a night
    this happens by itself.

    Parameters
    ----------
    number
        The stack's number, as `lightkeeper stack` shows it; without it, all stacks.
    drizzle
        Make one on a grid twice as fine too: for dithered, undersampled frames.
    """
    settings = _load(config)
    from daemon.report import collect

    try:
        stacks = [stack.number for stack in collect.stacks(settings).stacks]
    except collect.NoLibraryError as error:
        _complain(str(error))
        return Exit.PROBLEM
    if number is not None and number not in stacks:
        _complain(f"there is no stack {number}; `lightkeeper stack` shows them")
        return Exit.PROBLEM
    return _order(settings, "finish", stacks if number is None else [number], drizzle=drizzle)


def _order(
    settings: configuration.Config,
    action: str,
    numbers: Sequence[int],
    *,
    drizzle: bool = False,
    words: Mapping[str, str] | None = None,
) -> int:
    """Leave orders with the daemon, or carry them out where none runs."""
    from daemon import orders, service
    from daemon.report import collect

    asked = [
        orders.Order(orders.Action(action), number, drizzle, words or {}) for number in numbers
    ]
    if not collect.running(settings.library.path):
        return service.carry_out(settings, asked)
    for order in asked:
        orders.leave(settings.library.path, order)
    sys.stdout.write("The daemon does it next; `lightkeeper log` tells.\n")
    return Exit.OK


def _only(text: str, found: Sequence[tuple[int, str]], what: str) -> int:
    """The number of the one thing that `text` means. Raises LookupError, with a complaint made."""
    if len(found) != 1:
        _complain(f"{text}: " + (f"no such {what} is recorded" if not found else "which of these?"))
        for number, name in found:
            _complain(f"  {number}: {name}")
        raise LookupError(text)
    return found[0][0]


def _ask(config: Path | None, action: str, frame: str) -> int:
    """Leave an order about a frame with the daemon, or carry it out where none runs."""
    settings = _load(config)
    from daemon.report import collect

    try:
        found = collect.frames(settings, frame)
    except collect.NoLibraryError as error:
        _complain(str(error))
        return Exit.PROBLEM
    if len(found) != 1:
        _complain(f"{frame}: " + ("no such frame is recorded" if not found else "which of these?"))
        for number, name, state in found:
            _complain(f"  {number}: {name} ({state})")
        return Exit.PROBLEM
    return _order(settings, action, [found[0][0]])


@app.command
def demo(*, folder: Path = Path("lightkeeper-demo"), fast: bool = False) -> int:
    """Run the real daemon on a simulated camera, and tell where the pictures are.

    Parameters
    ----------
    folder
        Where to put the simulated night, the library and the stacks: new, or empty.
    fast
        Without a pause between two frames.
    """
    from daemon import demo as demonstration

    try:
        return demonstration.demo(folder, fast=fast)
    except FileExistsError as error:
        _complain(str(error))
        return Exit.USAGE


# --- the log -------------------------------------------------------------------------------------


def last_lines(path: Path, count: int) -> list[str]:
    """Read the last `count` lines, of the log put aside before (`NAME.1`) too where it needs."""
    lines: collections.deque[str] = collections.deque(maxlen=max(0, count))
    for part in (path.with_name(f"{path.name}.1"), path):
        with contextlib.suppress(FileNotFoundError), _open_text(part) as file:
            lines.extend(file)
    return list(lines)


def follow_lines(
    path: Path, offset: int, *, sleep: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """Yield what is appended after `offset` (bytes), for ever; starts afresh in a new log."""
    inode = path.stat().st_ino
    while True:
        try:
            stat = path.stat()
        except FileNotFoundError:  # put aside this very moment
            sleep(_FOLLOW_S)
            continue
        if stat.st_ino != inode or stat.st_size < offset:
            inode, offset = stat.st_ino, 0
        if stat.st_size > offset:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
            offset += len(data)
            yield data.decode("utf-8", errors="replace")
        else:
            sleep(_FOLLOW_S)


def _open_text(path: Path) -> contextlib.AbstractContextManager[Iterator[str]]:
    return path.open(encoding="utf-8", errors="replace")


# --- pieces --------------------------------------------------------------------------------------


def _config_path(given: Path | None) -> Path:
    """Choose the configuration file: as given, by the environment, here, or the system's."""
    if given is not None:
        return given
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    here = Path("config.toml")
    return here if here.exists() or not SYSTEM_CONFIG.exists() else SYSTEM_CONFIG


def _load(given: Path | None) -> Config:
    return configuration.load(_config_path(given))


def _complain(sentence: str) -> None:
    sys.stderr.write(f"{sentence.encode('utf-8', 'backslashreplace').decode()}\n")


def _show(
    make: Callable[[], Any],
    *,
    json: bool,
    none: str = "",
    render: Callable[..., Any] | None = None,
) -> int:
    """Print a report; where there is none, the sentence says so and the exit code is 1."""
    from calib_library.errors import LibraryError
    from daemon.report.collect import NoLibraryError
    from daemon.report.status import render_text, to_json

    try:
        report = make()
    except (NoLibraryError, LibraryError) as error:
        _complain(str(error))
        return Exit.PROBLEM
    if report is None:
        _complain(none)
        return Exit.PROBLEM
    if json:
        sys.stdout.write(to_json(report) + "\n")
    else:
        made = (render or render_text)(report, now=dt.datetime.now(dt.UTC))
        Console(highlight=False).print(made)
    return Exit.OK


def _watch(make: "Callable[[], Report]") -> int:
    """Show a report again and again on the whole screen, until Ctrl-C."""
    from rich.live import Live

    from daemon.report.collect import NoLibraryError
    from daemon.report.status import render_text

    try:
        with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
            while True:
                live.update(render_text(make(), now=dt.datetime.now(dt.UTC)), refresh=True)
                time.sleep(_REFRESH_S)
    except NoLibraryError as error:
        _complain(str(error))
        return Exit.PROBLEM


if __name__ == "__main__":
    sys.exit(main())
