"""When something is ill: `doctor` and `rebuild`."""

import datetime as dt
import sys
import time

from daemon.cli.common import ConfigOption, Exit, complain, load


def doctor(*, config: ConfigOption = None) -> int:
    """Look at database, products, disk, folders, limits and clock; say what to do where one is ill.

    The exit code is 1 where something is.
    """
    settings = load(config)
    from daemon import doctor as examination

    ill = 0
    for finding in examination.examine(settings, now=time.time()):
        ill += not finding.good
        sys.stdout.write(examination.text(finding) + "\n")
    return Exit.PROBLEM if ill else Exit.OK


def rebuild(*, config: ConfigOption = None, from_files: bool = False) -> int:
    """Make a lost or damaged database again, from its newest sound backup or from the files.

    Nothing is deleted: what the new database does not speak of is set aside.

    Parameters
    ----------
    from_files
        Do without the backups: masters are known by their headers, frames are found again.
    """
    settings = load(config)
    from daemon import rebuild as rebuilding

    made = rebuilding.rebuild(
        settings.library.path, from_files=from_files, now=dt.datetime.now(dt.UTC)
    )
    for problem in made.problems:
        complain(f"note: {problem}")
    source = f"the backup {made.backup}" if made.backup else "the masters' files"
    aside = f" What there was is in {made.aside}." if made.aside else ""
    sys.stdout.write(
        f"The database is made again from {source}: {made.masters} masters.{aside} Frames and "
        "stacks are found and made again: lightkeeper run\n"
    )
    return Exit.OK
