"""19: an archive does not hold back what comes tonight."""

import dataclasses
import datetime as dt
import os
import time
from contextlib import closing

from calib_library import schema
from daemon import opening, worker
from daemon.inbox import Inbox
from daemon.intake import intake as module
from daemon.intake.intake import Arrival
from daemon.log import StatusLog
from daemon.simulator.writer import fits_bytes
from tests.daemons import wait_for
from tests.incoming import TIMING, Night, frame
from tests.nights import config_for

SETTLE_S = 0.05


def test_19_an_archive_does_not_hold_back_tonight(inbox, tmp_path, monkeypatch):
    """Old files are taken in a window, tonight's at once; what is recorded is not opened again."""
    count, window = 3000, 200
    monkeypatch.setattr(module, "_WINDOW", window)
    source = tmp_path / "frame.fits"
    source.write_bytes(frame(1, 8))
    for n in range(count):
        folder = inbox / f"{n // 500}"
        folder.mkdir(exist_ok=True)
        os.link(source, folder / f"{n}.fits")
    tonight = inbox / "tonight" / "light.fits"
    now = time.time() + 86_400.0  # a day later: everything there is old
    delivered, most = [], 0

    def arrived(arrival):
        nonlocal most
        most = max(most, night.intake._pending())
        delivered.append(arrival)
        if len(delivered) == 50:
            tonight.parent.mkdir()
            tonight.write_bytes(frame())
            os.utime(tonight, (now, now))
            wait_for(lambda: tonight.parent in night.intake._hints)
        elif len(delivered) > 50 and all(one.path != tonight for one in delivered):
            # It must rest before it is whole: a quick machine would pass on hundreds meanwhile.
            time.sleep(SETTLE_S / 20)

    # The worker takes a few at a time.
    turns = [0]

    def full():
        turns[0] += 1
        return turns[0] % 20 == 0

    timing = dataclasses.replace(TIMING, quiet_s=60.0)
    night = Night(
        inbox, arrived=arrived, timing=timing, full=full, wall=lambda: now, settle_s=SETTLE_S
    )
    with night:
        wait_for(lambda: len(delivered) == count + 1)
        wait_for(night.intake.idle)
    paths = [arrival.path for arrival in delivered]
    assert len(set(paths)) == count + 1
    assert paths.index(tonight) < 150
    assert most <= window + 1  # tonight's is let in beyond it

    again = Night(inbox, timing=timing, wall=lambda: now)
    again.seen_by_ledger = {(a.path, a.size, a.mtime_ns) for a in delivered}
    with again:
        wait_for(again.intake.idle)
    assert again.probed == []


def test_19_the_folder_that_changed_last_is_scanned_first(inbox):
    for n, age_s in enumerate((3000, 10, 2000, 1000)):
        (inbox / f"{n}").mkdir()
        (inbox / f"{n}" / "a.fits").write_bytes(frame())
        os.utime(inbox / f"{n}", (time.time() - age_s,) * 2)
    found = [str(f.path.parent.name) for f in module.scan(inbox)]
    assert found == ["1", "3", "2", "0"]


def test_19_tonights_frame_is_worked_on_while_an_archive_is_recorded(lights, tmp_path, monkeypatch):
    """A worker that had first to record all of it would leave tonight's frame for minutes."""
    monkeypatch.setattr(worker, "ARRIVALS_AT_ONCE", 1)
    monkeypatch.setattr(worker, "TAKING_S", 0.0)
    (tmp_path / "in").mkdir()

    def put(name, exposed):
        day = f"{exposed:%Y-%m-%dT%H:%M:%S}"
        content = fits_bytes(lights[0])
        at = content.index(b"DATE-OBS=")
        card = f"DATE-OBS= '{day}'".encode().ljust(80)
        path = tmp_path / "in" / name
        path.write_bytes(content[:at] + card + content[at + 80 :])
        stat = path.stat()
        return Arrival(path.parent, path, stat.st_size, stat.st_mtime_ns, stat.st_ino)

    now, began = dt.datetime(2026, 11, 20, 21, tzinfo=dt.UTC), time.monotonic()  # no noon is near

    def by_this_clock(_worker):
        return now + dt.timedelta(seconds=time.monotonic() - began)

    monkeypatch.setattr(worker.Worker, "_now", by_this_clock)
    arrivals = [put("tonight.fits", now)]
    arrivals += [put(f"old_{n}.fits", now - dt.timedelta(days=90)) for n in range(20)]
    config = config_for(tmp_path)
    config.library.path.mkdir()
    storage, _ = opening.open_library(config.library.path)
    log = StatusLog(config.library.path / "status.log")
    inbox = Inbox()
    one = worker.Worker(config=config, storage=storage, log=log, inbox=inbox)
    for arrival in arrivals:
        inbox.arrived(arrival)
    one.start()
    try:
        wait_for(lambda: one.started.is_set() and one.idle)
    finally:
        one.stop()
        one.join()
    database = config.library.path / schema.DATABASE_NAME
    with closing(schema.connect(database, readonly=True).conn) as db:
        done = db.execute("SELECT done_at FROM frame WHERE name = 'tonight.fits'").fetchone()[0]
        last = db.execute("SELECT max(seen_at) FROM frame").fetchone()[0]
    assert done < last
