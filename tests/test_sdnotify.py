"""Messages as systemd gets them, on a real socket."""

import os
import socket

import pytest

from daemon.sdnotify import Notifier


@pytest.fixture
def manager(tmp_path):
    """The other end: a datagram socket as systemd binds it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(60)
        yield sock


def test_each_message_is_the_one_that_systemd_knows(manager):
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.getsockname()})
    sent = [
        notifier.ready(),
        notifier.watchdog(),
        notifier.status("M42 Ha: 12 frames\nREADY=1  σ"),
        notifier.stopping(),
    ]
    assert sent == [True] * 4
    assert [manager.recv(4096).decode() for _ in sent] == [
        "READY=1",
        "WATCHDOG=1",
        "STATUS=M42 Ha: 12 frames READY=1 σ",  # one line: nobody smuggles a message in
        "STOPPING=1",
    ]


def test_a_reload_carries_its_time(manager):
    assert Notifier(manager.getsockname()).reloading()
    first, second = manager.recv(4096).decode().splitlines()
    assert first == "RELOADING=1"
    key, value = second.split("=")
    assert key == "MONOTONIC_USEC"
    assert int(value) > 0


def test_an_abstract_socket():
    name = f"lightkeeper-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.settimeout(60)
        assert Notifier.from_environment({"NOTIFY_SOCKET": "@" + name}).ready()
        assert sock.recv(4096) == b"READY=1"


def test_a_status_with_bytes_that_are_not_utf8_is_sent(manager):
    assert Notifier(manager.getsockname()).status(os.fsdecode(b"M\xff.fits"))
    assert manager.recv(4096).startswith(b"STATUS=M")


def test_without_systemd_nothing_happens():
    notifier = Notifier.from_environment({})
    assert notifier == Notifier(None, None)
    assert notifier.ready() is False


def test_a_manager_that_has_gone_is_no_error(tmp_path):
    assert Notifier(str(tmp_path / "nobody")).watchdog() is False


@pytest.mark.parametrize(
    ("watchdog", "interval"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 30.0),  # sd_watchdog_enabled(3): at half the time
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdogs_interval(watchdog, interval):
    environment = {"NOTIFY_SOCKET": "/run/systemd/notify"} | watchdog
    assert Notifier.from_environment(environment).watchdog_interval_s == interval


def test_a_kind_of_socket_that_is_not_ours_is_left_alone():
    assert Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1"}).address is None
