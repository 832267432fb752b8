"""A master by the calibration library alone, without the daemon: what a script would do."""

import datetime as dt
import time
from pathlib import Path
from typing import Any

from answer import serve

from calib_library import build, schema
from calib_library.catalogue import agenda, registry
from calib_library.library import CalibrationLibrary


def master(*, library: str) -> dict[str, Any]:
    """Build the one master that is due: read, checked, combined, written, registered."""
    began = time.perf_counter()
    root, now = Path(library), dt.datetime.now(dt.UTC)
    db = schema.connect(root / schema.DATABASE_NAME)
    shelf = CalibrationLibrary(db, root, temperature_tolerance_c=1.0)
    (due,) = agenda.due_sets(shelf, now, min_frames=2, quiet_s=0.0)
    made = build.build(
        due, shelf.frames_of(due.id), root=root, generation=registry.next_generation(shelf, due.id)
    )
    with schema.transaction(db):
        registry.register(shelf, made, now)
    db.conn.close()
    return {"seconds": time.perf_counter() - began}


if __name__ == "__main__":
    serve({"master": master})
