"""Read each file of a folder in every way there is, under the limits that the kernel holds.

Run as a process of its own by test_hostile: prints one JSON line a file.
"""

import json
import resource
import sys
from pathlib import Path, PurePath

from calib_library import header
from calib_library.errors import HeaderError, ImageError
from calib_library.images import frame_file
from calib_library.images.row_reader import RowReader
from daemon.intake.intake import file_probe

MEMORY = 400_000_000
"""bytes beyond what Python and its libraries have mapped."""


def mapped():
    return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()


def attempt(read, path):
    try:
        read(path)
    except (ImageError, HeaderError) as error:
        return f"{type(error).__name__}: {error}"
    return "read"


def parsed(path):
    info = frame_file.probe(path)
    record = header.parse(
        info.cards, shape=info.shape, storage=info.storage, path=PurePath("night/x.fits")
    )
    target = header.target_name(record, PurePath("night/x.fits"))
    assert target.isprintable()
    assert "/" not in target
    assert not target.startswith(".")


def rows(path):
    with RowReader(path) as reader:
        reader.to_float(reader.rows(0, 1))


def main():
    folder = Path(sys.argv[1])
    frame_file.load(folder / "whole.fz")  # what astropy loads late is loaded before the limit
    limit = mapped() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in sorted(folder.iterdir()):
        said = {read.__name__: attempt(read, path) for read in (frame_file.probe, frame_file.load)}
        said |= {read.__name__: attempt(read, path) for read in (rows, parsed)}
        said["intake"] = type(file_probe(path)).__name__
        print(json.dumps({"name": path.name, "said": said}))


if __name__ == "__main__":
    main()
