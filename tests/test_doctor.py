"""The doctor finds each fault that is made here, says what to do, and finds nothing otherwise."""

import os
import shutil
import time

import pytest

from calib_library import schema
from daemon import cli, doctor, storage
from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests.nights import config_for, run

MEGA = 1_000_000


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("night")
    plan = small_plan(seed=3, shape=(192, 256), bias=5, darks=0, flats=0, flat_darks=0, lights=1)
    for frame in frames(plan):
        write_frame(tmp_path / "in", frame)
    run(config_for(tmp_path))
    return tmp_path


@pytest.fixture
def home(night, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda _: 9000 * MEGA)
    shutil.copytree(night, tmp_path / "home", symlinks=True)
    return tmp_path / "home"


def ill(home, **options):
    found = doctor.examine(config_for(home), now=options.pop("now", time.time()), **options)
    return {finding.about: finding.text for finding in found if not finding.good}


def test_a_healthy_library(home, capsys):
    assert ill(home) == {}
    (home / "config.toml").write_text(
        f'[library]\npath = "{home / "library"}"\n[[watch]]\npath = "{home / "in"}"\n'
    )
    assert cli.main(["doctor", "--config", str(home / "config.toml")]) == 0
    said = capsys.readouterr().out
    for about in ("database", "masters", "stacks", "orphans", "backup", "disk", "watch", "inotify"):
        assert f"ok {about}:" in said.replace("     ", ""), said


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-3000] ^= 0xFF
    path.write_bytes(data)


def product(home):
    (path,) = (home / "library").glob("stacks/**/*_v*.fits")
    return path


def master(home):
    (path,) = (home / "library").glob("masters/*.fits")
    return path


@pytest.mark.parametrize(
    ("about", "fault", "remedy"),
    [
        ("masters", lambda home: _flip(master(home)), "not what was written: delete it"),
        ("masters", lambda home: master(home).unlink(), "is gone: restart"),
        ("stacks", lambda home: product(home).unlink(), "is gone: restart"),
        (
            "stacks",
            lambda home: product(home).write_bytes(product(home).read_bytes()[:9000]),
            "delete it and restart",
        ),
        (
            "orphans",
            lambda home: shutil.copy(product(home), product(home).with_name("x_v0099.fits")),
            "clears them away",
        ),
        (
            "database",
            lambda home: (home / "library" / schema.DATABASE_NAME).write_bytes(b"x" * 9000),
            "lightkeeper rebuild",
        ),
        (
            "database",
            lambda home: (home / "library" / schema.DATABASE_NAME).unlink(),
            "lightkeeper rebuild",
        ),
        ("library", lambda home: (home / "library" / storage.MARKER).unlink(), "marker"),
        ("watch", lambda home: shutil.rmtree(home / "in"), "not there"),
        ("clock", lambda home: os.utime(next((home / "in").rglob("*.fits")), (4e9, 4e9)), "future"),
    ],
)
def test_each_fault_is_found(about, fault, remedy, home):
    fault(home)
    found = ill(home)
    assert set(found) == {about}
    assert remedy in found[about]


def test_a_disk_with_little_room(home, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda _: 100 * MEGA)
    assert "make room" in ill(home)["disk"]


def test_a_clock_that_was_set_back(home):
    assert "stands before the last night" in ill(home, now=time.time() - 86400)["clock"]


def test_too_many_folders(home, tmp_path):
    limit = tmp_path / "max_user_watches"
    limit.write_text("1\n")
    (home / "in" / "a").mkdir()
    said = ill(home, inotify=limit)["inotify"]
    assert "fs.inotify.max_user_watches=" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write anywhere")
def test_permissions(home):
    (home / "in").chmod(0o000)
    (home / "library").chmod(0o500)
    try:
        found = ill(home)
        assert "may not read" in found["watch"]
        assert "may not write" in found["disk"]
    finally:
        (home / "in").chmod(0o755)
        (home / "library").chmod(0o755)
