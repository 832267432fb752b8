"""The calibration library: frames filed in sets, masters built of them, both read by their numbers.

What changes it stands in `catalogue`, subject by subject: functions of an open library. Each that
writes is one transaction, or part of the caller's. A frame's file stays where it is; the library
remembers its path and its hash.
"""

from pathlib import Path
from typing import Self

from sqlite_utils import Database

from calib_library import schema
from calib_library.ageing import USUAL, Ageing
from calib_library.catalogue.records import CalibrationSet, FiledFrame
from calib_library.catalogue.rows import frame_of, master_of, select, sets_where
from calib_library.errors import LibraryError
from calib_library.match import MasterRecord

MASTERS_FOLDER = "masters"
"""Inside the library's folder."""


class CalibrationLibrary:
    """The frames and masters of one library folder, through one open connection."""

    def __init__(
        self,
        db: Database,
        root: Path,
        *,
        temperature_tolerance_c: float = 1.0,
        ageing: Ageing = USUAL,
    ) -> None:
        """Use a connection whose tables exist (`schema.apply`); it belongs to the calling thread.

        `temperature_tolerance_c`: darks this far (°C) from a set's mean belong to the set.
        `ageing`: masters that are too old are refused.
        """
        self.db = db
        self.root = root
        self.temperature_tolerance_c = temperature_tolerance_c
        self.ageing = ageing

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        readonly: bool = False,
        temperature_tolerance_c: float = 1.0,
        ageing: Ageing = USUAL,
    ) -> Self:
        """Open the library in a folder, for a notebook or a script; use it in a `with`.

        Raises LibraryError where there is none to read.
        """
        db = schema.connect(root / schema.DATABASE_NAME, readonly=readonly)
        try:
            if readonly:
                schema.require(db, root)
            else:
                schema.apply(db)
        except BaseException:
            db.close()
            raise
        return cls(db, root, temperature_tolerance_c=temperature_tolerance_c, ageing=ageing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.db.close()

    def frame(self, sha256: str) -> FiledFrame | None:
        """Return the filed frame with these bytes."""
        rows = select(self.db, "calibration_frame", "sha256 = ?", [sha256])
        return next(map(frame_of, rows), None)

    def frames_of(self, set_id: int) -> list[FiledFrame]:
        """Return the frames that a master of this set may use, in the order they were taken."""
        rows = select(
            self.db,
            "calibration_frame",
            "set_id = ?",
            [set_id],
            order_by="date_obs, sha256",
        )
        return [frame_of(row) for row in rows]

    def sets(self) -> list[CalibrationSet]:
        """Return every set, with its current master."""
        return sets_where(self.db, "1")

    def set(self, set_id: int) -> CalibrationSet:
        """Return one set. Raises LibraryError where there is none of this number."""
        found = sets_where(self.db, "id = ?", [set_id])
        if not found:
            raise LibraryError(f"There is no calibration set {set_id}.")
        return found[0]

    def master(self, master_id: int) -> MasterRecord:
        """Return one master, current or not. Raises LibraryError where there is none."""
        for row in select(self.db, "master", "id = ?", [master_id]):
            return master_of(row)
        raise LibraryError(f"There is no master {master_id}.")

    def masters(self, *, current: bool = True) -> list[MasterRecord]:
        """Return the masters in use, or all generations."""
        rows = select(self.db, "master", "superseded_by IS NULL" if current else "1", order_by="id")
        return [master_of(row) for row in rows]

    def inputs_of(self, master_id: int) -> list[tuple[FiledFrame, str | None]]:
        """Return the frames that a master's build looked at; with the reason where left out."""
        reasons = dict(
            self.db.execute(
                "SELECT frame, left_out FROM master_input WHERE master = ?", [master_id]
            )
        )
        rows = select(
            self.db,
            "calibration_frame",
            "id IN (SELECT frame FROM master_input WHERE master = ?)",
            [master_id],
            order_by="date_obs, sha256",
        )
        return [(frame, reasons[frame.id]) for frame in map(frame_of, rows)]
