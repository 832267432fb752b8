"""The commands, a module for each subject. Heavy modules are imported by the command that
needs them, so that the others start at once.

Exit codes: 0 all is well, 1 a problem in the work, 2 a mistake in the command or the configuration,
3 another instance is running on this library.
"""

import atexit
import gc
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from calib_library import __version__
from calib_library.errors import LibraryError
from daemon.cli import library, log, stack, start, status, upkeep
from daemon.cli.common import CommandError, Exit, complain
from daemon.errors import AlreadyRunningError, ConfigError, FatalError, NoLibraryError

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
for _command in (
    start.init,
    start.check_config,
    start.run,
    start.demo,
    status.status,
    status.explain,
    log.log,
    library.app,
    stack.app,
    upkeep.doctor,
    upkeep.rebuild,
):
    app.command(_command)

# When it ends, the interpreter looks through all that is left for garbage, twice: a tenth of the
# time of a command. The memory goes back as a whole; files and databases are closed by then.
atexit.register(gc.freeze)


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
            complain(problem)
        return Exit.USAGE
    except (CommandError, FatalError, LibraryError, NoLibraryError) as error:
        complain(str(error))
        return Exit.ALREADY_RUNNING if isinstance(error, AlreadyRunningError) else Exit.PROBLEM
    except KeyboardInterrupt:
        return Exit.OK
    except BrokenPipeError:  # `lightkeeper status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    return code if isinstance(code, int) else Exit.OK
