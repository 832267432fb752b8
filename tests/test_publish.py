"""When a growing stack is written: at once while frames come one by one, seldom in a backlog."""

import types

import pytest

from daemon import publish
from daemon.publish import Publisher
from tests.records import NIGHT


class Recorded(Publisher):
    """Notes what would be written, as (moment, kind, frames)."""

    def __init__(self, clock):
        self.clock, self.growing = clock, types.SimpleNamespace(frames=[])
        self.stack = types.SimpleNamespace(published_frames=0)
        self.done = []
        super().__init__(
            config=types.SimpleNamespace(library=types.SimpleNamespace(path=None)),
            ledger=None,
            library=None,
            stacks=types.SimpleNamespace(get=lambda _: self.stack),
            live_stacks=types.SimpleNamespace(unpublished=lambda: {1: self.growing}),
            log=None,
        )

    def publish(self, *_, **__):
        self.done.append((self.clock[0], "product", len(self.growing.frames)))
        self.stack.published_frames = len(self.growing.frames)

    def _picture(self, *_):
        self.done.append((self.clock[0], "picture", len(self.growing.frames)))


@pytest.fixture
def publisher(monkeypatch):
    clock = [0.5]  # the machine has just started: the first frame is shown all the same
    monkeypatch.setattr(publish.time, "monotonic", lambda: clock[0])
    return Recorded(clock)


def run(publisher, frames, *, every_s, backlog, archive=False):
    for _ in range(frames):
        publisher.growing.frames.append(None)
        publisher.tick(NIGHT, backlog=backlog, archive=archive)
        publisher.clock[0] += every_s


def test_frames_that_come_one_by_one_are_each_shown(publisher):
    run(publisher, 10, every_s=60.0, backlog=False)
    assert [frames for _, _, frames in publisher.done] == list(range(1, 11))
    assert [kind for _, kind, _ in publisher.done] == 8 * ["product"] + ["picture", "product"]


def test_a_backlog_is_written_once_a_minute_and_at_its_end(publisher):
    run(publisher, 100, every_s=1.5, backlog=True)
    moments = [moment for moment, _, _ in publisher.done]
    assert moments == [0.5, 60.5, 120.5]
    publisher.clock[0] += publish.PREVIEW_EVERY_S
    publisher.growing.frames += 10 * [None]
    publisher.tick(NIGHT)
    assert publisher.done[-1][1:] == ("product", 110)


def test_of_an_archive_the_first_frame_is_not_shown_either(publisher):
    run(publisher, 50, every_s=1.5, backlog=True, archive=True)
    assert [moment for moment, _, _ in publisher.done] == [60.5]
    publisher.clock[0] += publish.PREVIEW_EVERY_S
    publisher.growing.frames.append(None)
    publisher.tick(NIGHT, archive=True)
    publisher.growing.frames.append(None)
    publisher.tick(NIGHT, flush=True)
    assert publisher.done[-1][1:] == ("product", 52)


def test_a_short_archive_is_written_at_its_end(publisher):
    run(publisher, 2, every_s=0.5, backlog=True, archive=True)
    publisher.tick(NIGHT, archive=True)
    publisher.tick(NIGHT, flush=True)
    assert [(kind, frames) for _, kind, frames in publisher.done] == [("product", 2)]
