"""Rows of lights, stacks, sets and masters as the daemon writes them, without a frame on disk: what
`lightkeeper library advice` reads. Shared by the tests and `benchmarks/matching.py`.
"""

import json

from sqlite_utils import Database

from calib_library.catalogue.rows import join_key
from calib_library.frame import FrameType
from tests.records import key, record


def place(x: float, y: float) -> str:
    return json.dumps([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


class Records:
    """Writes rows as the daemon does."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.number = 0

    def light(
        self, site_key, *, stack, position, night, sky_adu=37.5, xy=(0.0, 0.0), dark=1, **fields
    ):
        self.number += 1
        text = record(FrameType.LIGHT, key=site_key, **fields).to_json()
        self.db.conn.execute(
            "INSERT INTO frame (id, path, root, name, size, mtime_ns, sha256, state, frame_type,"
            " record, target, night, date_obs, stack_id, seen_at)"
            " VALUES (?, ?, x'', ?, 1, 1, ?, 'stacked', 'light', ?, 'M 31', ?, ?, ?, '')",
            [
                self.number,
                f"l{self.number}".encode(),
                f"light{self.number}.fits",
                f"l{self.number}",
                text,
                night,
                f"{night}T22:00:00",
                stack,
            ],
        )
        self.db.conn.execute(
            "INSERT INTO stack_frame (frame_id, stack_id, position, matrix, terms, quality,"
            " masters, flags) VALUES (?, ?, ?, ?, '', ?, ?, '')",
            [
                self.number,
                stack,
                position,
                place(*xy),
                json.dumps({"sky_adu": sky_adu, "noise_adu": 7.5}),
                json.dumps({"dark": dark, "bias": None, "flat": None}),
            ],
        )

    def stack(self, number):
        self.db.conn.execute(
            "INSERT INTO stack (id, target, filter, camera) VALUES (?, 'M 31', ?, '')",
            [number, str(number)],
        )

    def master(self, number, kind, site_key, *, frames=30, exposure_s=300.0, temperature_c=-10.0,
               filter_name=None):  # fmt: skip
        text = join_key(site_key, "TOP-DOWN")
        common = (str(kind), text, site_key.camera, site_key.width, site_key.height, exposure_s,
                  temperature_c, filter_name)  # fmt: skip
        self.db.conn.execute(
            "INSERT INTO calibration_set (id, frame_type, key, camera, width, height, exposure_s,"
            " temperature_c, filter, session, frames, last_filed_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, 0)",
            [number, *common, frames],
        )
        self.db.conn.execute(
            "INSERT INTO master (id, set_id, generation, frame_type, key, camera, width, height,"
            " exposure_s, temperature_c, filter, session, frames, path, sha256, built_at, version,"
            " notes) VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, ?, '', 0, '', '[]')",
            [number, number, *common, frames, f"masters/{number}.fits"],
        )


def fill(records: Records) -> None:
    """10,000 masters, 200,000 filed frames, 3,000 lights of twelve nights."""
    keys = [key(gain=float(n)) for n in range(5)]
    number = 0
    for site_key in keys:
        for n in range(1990):
            number += 1
            exposure, temperature = 10.0 * (1 + n % 40), -25 + (n // 40) * 1.0
            records.master(
                number, FrameType.DARK, site_key, exposure_s=exposure, temperature_c=temperature
            )
        for n in range(10):
            number += 1
            records.master(number, FrameType.FLAT, site_key, filter_name=f"F{n}", exposure_s=2.0)
    text = record(FrameType.DARK).to_json()
    conn = records.db.conn
    conn.executemany(
        "INSERT INTO calibration_frame (sha256, path, set_id, record, temperature_c, filed_at)"
        " VALUES (?, ?, ?, ?, -10, 0)",
        ((f"f{n}", f"p{n}".encode(), 1 + n % 10_000, text) for n in range(200_000)),
    )
    conn.executemany(
        "INSERT INTO frame (path, root, name, size, mtime_ns, sha256, state, frame_type, record,"
        " night, date_obs, seen_at)"
        " VALUES (?, x'', ?, 1, 1, ?, 'filed', 'dark', ?, '2026-01-01', '', '')",
        ((f"p{n}".encode(), f"p{n}", f"f{n}", text) for n in range(200_000)),
    )
    records.number = 1_000_000
    for number in range(1, 4):
        records.stack(number)
    for n in range(3000):
        records.light(
            keys[n % 2],
            stack=1 + n % 3,
            position=n,
            night=f"2026-11-{10 + n % 12:02}",
            filter=f"F{n % 3}",
            exposure_s=60.0 * (1 + n % 5),
            temperature_c=-10 + (n % 7) * 0.9,
            xy=(float(n % 500), 0.0),
        )
    conn.commit()
