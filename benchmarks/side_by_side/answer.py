"""How a measured program gets its task and tells its figures: JSON in, a line of JSON out.

Used by the `by_*` programs, each of which is run by the interpreter of the packages it measures;
it needs nothing but the standard library.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

MARK = "RESULT "


def serve(tasks: Mapping[str, Callable[..., Mapping[str, Any]]]) -> None:
    """Run the task that the command line names, with its JSON object as keyword arguments."""
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    print(MARK + json.dumps(tasks[name](**arguments)), flush=True)
