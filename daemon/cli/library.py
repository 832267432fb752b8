"""`lightkeeper library …`: the masters and the cameras, what is used, what is missing."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from daemon.cli.common import CommandError, ConfigOption, Exit, JsonFlag, complain, load, show
from daemon.cli.orders import frame_number, only, order

app = App(
    name="library",
    help="Show the masters; choose one by hand, take in one made elsewhere; what was measured of"
    " the cameras; what is missing.",
)


@app.default
def library(*, config: ConfigOption = None, json: JsonFlag = False) -> int:
    """Show the masters, and the sets of frames that are not enough for one yet."""
    settings = load(config)
    from daemon.report import collect

    return show(collect.library(settings), json=json)


@app.command
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
    settings = load(config)
    from daemon.report import collect

    if (target is None) == (frame is None):
        complain("give either --target or --frame: what the master is to be used for")
        return Exit.USAGE
    if [bool(master), remove, extrapolate].count(True) != 1:
        complain("give a master to use, or --extrapolate, or --remove to go back to the rules")
        return Exit.USAGE
    words: dict[str, str] = {"kind": kind} if kind else {}
    if extrapolate:
        words["extrapolate"] = "yes"
    number = 0 if not master else only(master, collect.masters(settings, master), "master")
    if frame is not None:
        words["frame"] = str(frame_number(settings, frame))
    else:
        assert target is not None
        words["target"] = target
    return order(settings, "use", [number], words=words)


@app.command
def accept(number: int, /, *, config: ConfigOption = None) -> int:
    """Build the master of a set although it is unlike the one before: the camera is so now.

    Parameters
    ----------
    number
        The set's number, as the log gives it.
    """
    return order(load(config), "accept", [number])


@app.command(name="import")
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
    settings = load(config)
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
        raise CommandError(wrong)
    return order(settings, "import", [0], words=given)


@app.command
def sensor(*, config: ConfigOption = None, json: JsonFlag = False) -> int:
    """Show each camera's gain, read noise, linearity and dark current, with errors and history."""
    settings = load(config)
    from daemon.report import cameras

    return show(cameras.gather(settings), json=json, render=cameras.render)


@app.command
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
    settings = load(config)
    from daemon.report import advising
    from daemon.report.shots import write

    if goal <= 0 or nights < 1 or lights < 1 or (exposure is not None and exposure <= 0):
        complain("--goal, --nights, --lights and --exposure must be more than 0")
        return Exit.USAGE
    if shots is not None and shots.suffix not in {".csv", ".esq"}:
        complain(f"{shots}: the list is written as .csv or as .esq")
        return Exit.USAGE
    plan = None
    if exposure is not None:
        plan = advising.Plan(exposure, filter_name, temperature, lights, dithered, camera, sky)
    try:
        found = advising.gather(settings, nights=nights, goal=goal / 100, plan=plan)
        written = [] if shots is None else write(found.shots, shots)
    except (advising.NoAdviceError, OSError) as error:
        raise CommandError(str(error)) from error
    code = show(found, json=json, render=advising.render)
    for path in written:
        complain(f"written: {path}")
    return code
