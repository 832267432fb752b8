"""The scan, on real folders."""

import errno
import os
import threading
from pathlib import Path

import pytest

from daemon.intake.scan import belongs, ignored_name, image_name, scan


def touch(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def names(root, ignore=(), **reports):
    return sorted(str(f.path.relative_to(root)) for f in scan(root, ignore, **reports))


def test_finds_images_of_every_suffix_at_any_depth(tmp_path):
    for name in ("a.fit", "b.FITS", "c.fts", "deep/er/d.fits.fz", "e.fz"):
        touch(tmp_path / name)
    for name in ("f.txt", "g.fits.txt", "h.jpg", "fits", "i.fits.gz"):
        touch(tmp_path / name)
    assert names(tmp_path) == ["a.fit", "b.FITS", "c.fts", "deep/er/d.fits.fz", "e.fz"]


def test_gives_the_stat_of_each_file(tmp_path):
    touch(tmp_path / "a.fits", b"12345")
    (found,) = scan(tmp_path)
    assert found.stat.st_size == 5
    assert found.stat.st_ino == (tmp_path / "a.fits").stat().st_ino


@pytest.mark.parametrize(
    "name",
    [
        ".hidden.fits",
        "._mac.fits",
        ".light.fits.Ab3dEf",
        ".syncthing.light.fits.tmp",
        "~syncthing~light.fits.tmp",
        "light.fits.tmp",
        "light.fits.part",
        "light.fits.partial",
        ".stfolder",
        ".stversions",
        ".~tmp~",
        "@eaDir",
        "Thumbs.db",
    ],
)
def test_names_of_temporary_and_private_files_are_ignored(name, tmp_path):
    assert ignored_name(name)
    touch(tmp_path / name / "inside.fits")
    assert names(tmp_path) == []
    assert not belongs(tmp_path / name / "inside.fits", tmp_path)


@pytest.mark.parametrize("name", ["light.tmp.fits", "part.fits", "Thumbs.fits", "a~b.fits"])
def test_ordinary_names_are_not(name):
    assert image_name(name)


def test_the_daemons_own_folders_are_not_entered_by_whatever_path(tmp_path):
    inbox, library = tmp_path / "inbox", tmp_path / "inbox" / "library"
    touch(library / "master.fits")
    touch(inbox / "light.fits")
    (inbox / "alias").symlink_to(library)
    via = tmp_path / "via"
    via.symlink_to(inbox)
    assert names(inbox, [library]) == ["light.fits"]
    assert names(via, [library]) == ["light.fits"]
    assert names(inbox, [via / "library"]) == ["light.fits"]
    assert belongs(inbox / "light.fits", inbox, [library])
    assert not belongs(library / "master.fits", inbox, [library])
    assert not belongs(via / "library" / "master.fits", via, [library])
    assert not belongs(tmp_path / "elsewhere.fits", inbox)


def test_symlinks_are_followed_once_and_loops_end(tmp_path):
    inbox, disk = tmp_path / "inbox", tmp_path / "disk"
    touch(inbox / "a" / "one.fits")
    touch(disk / "two.fits")
    (inbox / "disk").symlink_to(disk)
    (inbox / "again").symlink_to(disk)
    (inbox / "a" / "up").symlink_to(inbox)
    (inbox / "b_link_to_a").symlink_to(inbox / "a")
    (inbox / "nowhere.fits").symlink_to(tmp_path / "missing")
    (inbox / "circle.fits").symlink_to(inbox / "circle.fits")
    (inbox / "file_link.fits").symlink_to(disk / "two.fits")
    folders = []
    found = names(inbox, on_folder=folders.append)
    assert found.count("a/one.fits") == 1  # by its plain path, not by the links to it
    assert sum(name.endswith("two.fits") for name in found) == 1
    assert "file_link.fits" in found
    assert len(found) == 3
    assert sum(folder.linked for folder in folders) == 1


def test_a_folder_inside_is_found_by_its_plain_path_whatever_links_to_it(tmp_path):
    inbox = tmp_path / "inbox"
    for n in range(10):
        touch(inbox / "nights" / f"{n}" / "x.fits")
        (inbox / f"link{n}").symlink_to(inbox / "nights" / f"{n}")
    assert names(inbox) == [f"nights/{n}/x.fits" for n in range(10)]


def test_a_root_that_is_a_symlink_keeps_its_own_name(tmp_path):
    touch(tmp_path / "disk" / "one.fits")
    (tmp_path / "inbox").symlink_to(tmp_path / "disk")
    assert [f.path for f in scan(tmp_path / "inbox")] == [tmp_path / "inbox" / "one.fits"]


def test_a_pipe_with_an_images_name_is_not_found(tmp_path):
    os.mkfifo(tmp_path / "pipe.fits")
    assert names(tmp_path) == []


def test_a_name_that_is_not_utf8_survives(tmp_path):
    raw = os.fsencode(tmp_path) + b"/M42_\xe9\xff.fits"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (found,) = scan(tmp_path)
    assert os.fsencode(found.path) == raw
    assert belongs(found.path, tmp_path)


def test_an_absent_root_is_reported_and_nothing_raised(tmp_path):
    errors = []
    assert list(scan(tmp_path / "absent", on_error=lambda *e: errors.append(e))) == []
    assert [(p, type(e)) for p, e in errors] == [(tmp_path / "absent", FileNotFoundError)]


def test_an_unreadable_folder_is_reported_and_the_rest_found(tmp_path, monkeypatch):
    touch(tmp_path / "closed" / "a.fits")
    touch(tmp_path / "open" / "b.fits")
    scandir = os.scandir

    def guarded(folder):
        if folder == tmp_path / "closed":  # as for a user without the right to read it
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    errors = []
    assert names(tmp_path, on_error=lambda *e: errors.append(e)) == ["open/b.fits"]
    assert [p for p, _ in errors] == [tmp_path / "closed"]


def test_only_the_folder_asked_for(tmp_path):
    touch(tmp_path / "a" / "one.fits")
    touch(tmp_path / "b" / "two.fits")
    assert names(tmp_path, folder=tmp_path / "b") == ["b/two.fits"]


def test_files_that_come_and_go_meanwhile_do_no_harm(tmp_path):
    for n in range(200):
        touch(tmp_path / f"{n % 20}" / f"{n}.fits")
    steady = touch(tmp_path / "steady" / "keep.fits")
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            for n in range(200):
                (tmp_path / f"{n % 20}" / f"{n}.fits").unlink(missing_ok=True)
            for n in range(200):
                touch(tmp_path / f"{n % 20}" / f"{n}.fits")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(20):
            assert steady in {found.path for found in scan(tmp_path)}
    finally:
        stop.set()
        thread.join()
