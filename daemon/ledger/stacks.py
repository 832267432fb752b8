"""The stacks' tables: which frames are members, with the numbers they were added with.

Membership is the durable state of a stack. Its image is a function of the members in their order,
so a restart replays them and comes to the same bits; the written product only caches that.
"""

import dataclasses
import datetime as dt
import functools
import io
import json
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlite_utils

from calib_library.frame import FrameRecord
from calib_library.schema import transaction
from daemon.light.quality import Quality
from daemon.light.stars import StarList
from daemon.stack.live import FrameTerms

Matrix = npt.NDArray[np.float64]

_STACKS_KEPT = 8
"""Stacks whose members are kept as read."""
_LISTS_KEPT = 16
"""Star lists of references and first frames: every light asks for those of its stack."""
_MASTERS_KEPT = 256
"""Different calibrations of members: a sensor that drifts has some."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """The star list that all filters of a target and camera register to."""

    frame_id: int
    stars: StarList
    small: npt.NDArray[np.float32] | None
    """The frame binned to a few hundred px, for phase correlation where stars fail."""
    record: FrameRecord | None
    """Of the frame: its header may hint at where others lie."""


@dataclasses.dataclass(frozen=True, slots=True)
class Photometry:
    """A stack's first frame, to which brightness and background of the others are matched."""

    stars: StarList
    cells: npt.NDArray[np.float32]
    """(planes, cy, cx) ADU, the first frame's cells."""
    matrix: Matrix
    """First frame → reference px."""
    distortion: Matrix | None
    """(2, 10), what `daemon.light.distortion` adds to the matrix."""
    quality: Quality
    exposure_s: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
    """One row: a stack of one target, filter and camera."""

    id: int
    target: str
    filter: str
    """`''` without one."""
    camera: str
    """Camera, geometry, binning and Bayer pattern, as `daemon.pipeline.stack_camera` joins them."""
    camera_name: str | None
    generation: int
    """Of the written product; 0: none has been written."""
    path: str | None
    """The product, relative to the library."""
    published_frames: int
    published_exposure_s: float
    """s, of the frames in the product."""
    updated_at: str | None
    """UTC, ISO 8601: when the product was written."""
    final_generation: int
    final_path: str | None
    """The exact stack, relative to the library."""
    final_frames: int
    """In the exact stack; 0 where it no longer is what the members would give."""
    stale: str | None
    """Why it must be made again; None while it is right."""
    photometry: Photometry | None
    """Of its first frame, to which the others are scaled."""

    @property
    def bayer_pattern(self) -> str | None:
        """Of the frames' mosaic, `RGGB`…; None: monochrome."""
        pattern = self.camera.rpartition("|")[2]
        return None if pattern == "-" else pattern

    @property
    def label(self) -> str:
        """`M42 Ha`, as the log names a stack."""
        return f"{self.target} {self.filter or 'no filter'}"


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One frame of a stack, with everything that is needed to add it again."""

    frame_id: int
    exposure_s: float | None
    """s"""
    matrix: Matrix
    """(3, 3) float64, px of the frame → px of the reference."""
    distortion: Matrix | None
    """(2, 10) float64, see `daemon.light.distortion`."""
    terms: FrameTerms
    """The numbers with which it was added."""
    quality: Quality
    masters: Mapping[str, Any]
    """What it was calibrated with, as `Calibration.ids` gives it."""
    flags: tuple[str, ...]


def _matrix(text: str) -> Matrix:
    return np.array(json.loads(text), dtype=np.float64)


def _optional(text: str | None) -> Matrix | None:
    return None if text is None else _matrix(text)


def _text(array: Matrix | None) -> str | None:
    return None if array is None else json.dumps(array.tolist())


def _terms(text: str) -> FrameTerms:
    fields = json.loads(text)
    fields["planes"] = tuple(tuple(plane) for plane in fields["planes"])
    return FrameTerms(**fields)


def _pack(array: npt.NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@functools.lru_cache(maxsize=_LISTS_KEPT)
def _stars(text: str) -> StarList:
    """A star list as it is written. Nobody changes its arrays."""
    return StarList.from_json(text)


def _stack(row: Mapping[str, Any]) -> Stack:
    photometry = None
    if row["first_stars"]:
        photometry = Photometry(
            stars=_stars(row["first_stars"]),
            cells=np.load(io.BytesIO(row["first_background"]), allow_pickle=False),
            matrix=_matrix(row["first_matrix"]),
            distortion=_optional(row["first_distortion"]),
            quality=Quality(**json.loads(row["first_quality"])),
            exposure_s=row["first_exposure_s"],
        )
    return Stack(
        photometry=photometry,
        **{f.name: row[f.name] for f in dataclasses.fields(Stack) if f.name != "photometry"},
    )


@functools.lru_cache(maxsize=_MASTERS_KEPT)
def _masters(text: str) -> Mapping[str, Any]:
    """What members were calibrated with: one object for all that were calibrated alike."""
    return types.MappingProxyType(json.loads(text))


def _member(row: Mapping[str, Any]) -> Member:
    return Member(
        frame_id=row["frame_id"],
        exposure_s=row["exposure_s"],
        matrix=_matrix(row["matrix"]),
        distortion=_optional(row["distortion"]),
        terms=_terms(row["terms"]),
        quality=Quality(**json.loads(row["quality"])),
        masters=_masters(row["masters"]),
        flags=tuple(flag for flag in row["flags"].split(",") if flag),
    )


@dataclasses.dataclass(slots=True)
class _Read:
    """A stack's members as they were read last."""

    members: list[Member] = dataclasses.field(default_factory=list)
    """In their order, up to `position`; where there is no `version`, some of them in any order."""
    position: int = -1
    version: int | None = None
    """Of the database, as far as others write to it; None where all must be read again."""


class Stacks:
    """The stacks' tables on an open connection; transactions as in `Ledger`."""

    def __init__(self, db: sqlite_utils.Database) -> None:
        self.db = db
        # Members as read before, by stack: every light asks for all of its stack's, and reading
        # thousands of them anew for each would take longer than the work on it.
        self._read: dict[int, _Read] = {}

    def open(self, *, target: str, filter_: str, camera: str, camera_name: str | None) -> Stack:
        """The stack of a target, filter and camera, begun where there is none."""
        with transaction(self.db):
            self.db.conn.execute(
                "INSERT INTO stack (target, filter, camera, camera_name) VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                (target, filter_, camera, camera_name),
            )
        return self._stacks("target = ? AND filter = ? AND camera = ?", (target, filter_, camera))[
            0
        ]

    def get(self, stack_id: int) -> Stack:
        """One stack by its number."""
        return self._stacks("id = ?", (stack_id,))[0]

    def find(self, stack_id: int) -> Stack | None:
        """One stack by its number, None where there is none."""
        return next(iter(self._stacks("id = ?", (stack_id,))), None)

    def all(self) -> list[Stack]:
        """Every stack that has members or a product."""
        return self._stacks(
            "generation > 0 OR id IN (SELECT stack_id FROM stack_frame) ORDER BY target, filter",
            (),
        )

    def stale(self) -> list[Stack]:
        """Stacks that must be made again."""
        return self._stacks("stale IS NOT NULL ORDER BY id", ())

    def behind(self) -> list[Stack]:
        """Stacks whose written product does not hold exactly their members: the daemon was
        stopped between adding a frame and writing.
        """
        return self._stacks(
            "stale IS NULL AND published_frames != "
            "(SELECT count(*) FROM stack_frame WHERE stack_id = stack.id) ORDER BY id",
            (),
        )

    def _stacks(self, condition: str, values: Sequence[object]) -> list[Stack]:
        query = f"SELECT * FROM stack WHERE {condition}"  # noqa: S608 — conditions are literals
        return [_stack(row) for row in self.db.query(query, values)]

    def reference(self, target: str, camera: str) -> Reference | None:
        """What frames of this target and camera register to, None before the first."""
        for row in self.db.query(
            "SELECT frame_id, stars, thumbnail, record FROM reference "
            "JOIN frame ON frame.id = frame_id "
            "WHERE reference.target = ? AND camera = ?",
            (target, camera),
        ):
            small = row["thumbnail"]
            return Reference(
                row["frame_id"],
                _stars(row["stars"]),
                None if small is None else np.load(io.BytesIO(small), allow_pickle=False),
                FrameRecord.from_json(row["record"]) if row["record"] else None,
            )
        return None

    def set_reference(self, target: str, camera: str, reference: Reference) -> None:
        """Record (or renew) the star list that this target and camera register to."""
        with transaction(self.db):
            self.db.conn.execute(
                "INSERT INTO reference (target, camera, frame_id, stars, thumbnail) "
                "VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (target, camera) DO UPDATE SET frame_id = excluded.frame_id, "
                "stars = excluded.stars, thumbnail = excluded.thumbnail",
                (
                    target,
                    camera,
                    reference.frame_id,
                    reference.stars.to_json(),
                    None if reference.small is None else _pack(reference.small),
                ),
            )

    def members(self, stack_id: int) -> list[Member]:
        """The frames of a stack in the order in which they were added."""
        read = self._read.pop(stack_id, None) or _Read()
        # What a transaction has changed may yet be undone: nothing of it is kept.
        undecided = self.db.conn.in_transaction
        version = self.db.execute("PRAGMA data_version").fetchone()[0]  # of others' writing
        whole = undecided or version != read.version
        places = self.db.conn.execute(
            "SELECT frame_id, position FROM stack_frame WHERE stack_id = ? AND position > ? "
            "ORDER BY position",
            (stack_id, -1 if whole else read.position),
        ).fetchall()
        known = {member.frame_id: member for member in read.members} if whole else {}
        new = json.dumps([frame for frame, _ in places if frame not in known])
        for row in self.db.query(
            "SELECT * FROM stack_frame WHERE frame_id IN (SELECT value FROM json_each(?))", (new,)
        ):
            known[row["frame_id"]] = _member(row)
        found = [known[frame] for frame, _ in places]
        if not undecided:
            read.members = found if whole else read.members + found
            read.position = places[-1][1] if places else -1 if whole else read.position
            read.version = version
            found = read.members.copy()
        self._read[stack_id] = read  # now the last
        while len(self._read) > _STACKS_KEPT:
            self._read.pop(next(iter(self._read)))
        return found

    def _forget(self, *frame_ids: int) -> None:
        """Read these members anew, and the order of all: their rows are about to change, whether
        or not that is committed. What is added needs no such word: it is read as it comes.
        """
        for read in self._read.values():
            read.members = [one for one in read.members if one.frame_id not in frame_ids]
            read.version = None

    def add_member(self, stack: Stack, member: Member, photometry: Photometry | None) -> None:
        """Append a frame; the first one brings the photometric reference along."""
        with transaction(self.db):
            self.db.conn.execute(
                """
                INSERT INTO stack_frame (frame_id, stack_id, position, exposure_s, matrix,
                                         distortion, terms, quality, masters, flags)
                VALUES (?, ?, (SELECT coalesce(max(position) + 1, 0) FROM stack_frame
                               WHERE stack_id = ?), ?, ?, ?, ?, ?, ?, ?)
                """,
                (
                    member.frame_id,
                    stack.id,
                    stack.id,
                    member.exposure_s,
                    json.dumps(member.matrix.tolist()),
                    _text(member.distortion),
                    json.dumps(dataclasses.asdict(member.terms)),
                    json.dumps(dataclasses.asdict(member.quality)),
                    json.dumps(dict(member.masters)),
                    ",".join(member.flags),
                ),
            )
            if photometry is not None:
                self._set_photometry(stack.id, photometry)

    def replace_members(
        self, stack: Stack, members: Sequence[Member], photometry: Photometry | None
    ) -> None:
        """The stack was made again: these are its frames now, and it is no longer stale."""
        self._read.pop(stack.id, None)
        with transaction(self.db):
            self.db.conn.execute("DELETE FROM stack_frame WHERE stack_id = ?", (stack.id,))
            for member in members:
                self.add_member(stack, member, None)
            if photometry is not None:
                self._set_photometry(stack.id, photometry)
            self.db.conn.execute(
                "UPDATE stack SET stale = NULL, final_frames = 0 WHERE id = ?", (stack.id,)
            )

    def _set_photometry(self, stack_id: int, photometry: Photometry) -> None:
        self.db.conn.execute(
            "UPDATE stack SET first_stars = ?, first_background = ?, first_matrix = ?, "
            "first_quality = ?, first_exposure_s = ?, first_distortion = ? WHERE id = ?",
            (
                photometry.stars.to_json(),
                _pack(photometry.cells),
                json.dumps(photometry.matrix.tolist()),
                json.dumps(dataclasses.asdict(photometry.quality)),
                photometry.exposure_s,
                _text(photometry.distortion),
                stack_id,
            ),
        )

    def remove_member(self, frame_id: int) -> None:
        """Take a frame out of its stack's record."""
        self._forget(frame_id)
        with transaction(self.db):
            self.db.conn.execute("DELETE FROM stack_frame WHERE frame_id = ?", (frame_id,))

    def hand_over(self, old_id: int, new_id: int) -> None:
        """Let a frame take the place of another whose pixels are the same."""
        self._forget(old_id, new_id)
        with transaction(self.db):
            for table in ("stack_frame", "reference"):
                self.db.conn.execute(
                    f"UPDATE {table} SET frame_id = ? WHERE frame_id = ?",  # noqa: S608 — literals
                    (new_id, old_id),
                )

    def mark_stale(self, stack_id: int, why: str) -> None:
        """The stack's image no longer is what its members and masters would give."""
        with transaction(self.db):
            self.db.conn.execute("UPDATE stack SET stale = ? WHERE id = ?", (why, stack_id))

    def publish(
        self,
        stack: Stack,
        *,
        generation: int,
        path: str,
        frames: int,
        exposure_s: float,
        now: dt.datetime,
    ) -> None:
        """Point the stack at its next product, which lies on disk, whole, already."""
        with transaction(self.db):
            self.db.conn.execute(
                "UPDATE stack SET generation = ?, path = ?, published_frames = ?, "
                "published_exposure_s = ?, updated_at = ? WHERE id = ?",
                (
                    generation,
                    path,
                    frames,
                    float(exposure_s),
                    now.astimezone(dt.UTC).isoformat(timespec="seconds"),
                    stack.id,
                ),
            )

    def withdraw(self, stack: Stack) -> None:
        """The stack has no frames left: nothing is its product."""
        with transaction(self.db):
            self.db.conn.execute(
                "UPDATE stack SET path = NULL, published_frames = 0, published_exposure_s = 0, "
                "final_path = NULL, final_frames = 0 "
                "WHERE id = ?",
                (stack.id,),
            )

    def lost_product(self, stack: Stack) -> None:
        """The written product is gone: the stack is behind, and is written again."""
        with transaction(self.db):
            self.db.conn.execute(
                "UPDATE stack SET path = NULL, published_frames = 0, published_exposure_s = 0 "
                "WHERE id = ?",
                (stack.id,),
            )

    def lost_final(self, stack: Stack) -> None:
        """The exact stack is gone: it is made again at the next end of a night."""
        with transaction(self.db):
            self.db.conn.execute(
                "UPDATE stack SET final_path = NULL, final_frames = 0 WHERE id = ?", (stack.id,)
            )

    def finished(self, stack: Stack, *, path: str, generation: int, frames: int) -> None:
        """Point the stack at its exact image, which lies on disk, whole, already."""
        with transaction(self.db):
            self.db.conn.execute(
                "UPDATE stack SET final_generation = ?, final_path = ?, final_frames = ? "
                "WHERE id = ?",
                (generation, path, frames, stack.id),
            )

    def product_paths(self) -> set[str]:
        """The products in use, relative to the library: all others are orphans."""
        return {
            row["path"]
            for row in self.db.query(
                "SELECT path FROM stack WHERE path IS NOT NULL "
                "UNION SELECT final_path FROM stack WHERE final_path IS NOT NULL"
            )
        }
