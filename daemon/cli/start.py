"""What gets it going: `init`, `check-config`, `run` and `demo`."""

import sys
from pathlib import Path

from daemon.cli.common import CommandError, ConfigOption, Exit, complain, config_path, load


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
        complain(f"{config} is there already; --force replaces it")
        return Exit.USAGE
    from daemon import config as configuration
    from daemon.config_example import example

    text = example(watch=str(watch.absolute()), library=str(library.absolute()))
    settings = configuration.parse(text, name=str(config), base=Path.cwd())
    try:
        settings.library.path.mkdir(parents=True, exist_ok=True)
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{error.filename}: cannot be written: {error.strerror}") from error
    for warning in configuration.warnings(settings):
        complain(f"note: {warning}")
    sys.stdout.write(f"{config} is written. Now: lightkeeper run --config {config}\n")
    return Exit.OK


def check_config(*, config: ConfigOption = None) -> int:
    """Tell every mistake in the configuration at once, or that there is none."""
    settings = load(config)
    from daemon import config as configuration

    for warning in configuration.warnings(settings):
        complain(f"note: {warning}")
    watched = ", ".join(str(watch.path) for watch in settings.watch)
    sys.stdout.write(
        f"{config_path(config)} is in order.\n"
        f"  watched: {watched}\n"
        f"  library: {settings.library.path}\n"
    )
    return Exit.OK


def run(*, config: ConfigOption = None, until_idle: bool = False) -> int:
    """Watch the folders and work, in the foreground, until stopped by Ctrl-C or a signal.

    Parameters
    ----------
    until_idle
        Take in what is there, finish the work, and exit.
    """
    settings = load(config)
    from daemon import service

    return service.run(settings, until_idle=until_idle, reread=lambda: load(config))


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
        complain(str(error))
        return Exit.USAGE
