"""The images in memory: who makes room for whom, and what is said of it."""

import dataclasses
from types import SimpleNamespace

import numpy as np

from daemon.stack.store import Growing, LiveStacks
from tests.test_halve import member

SHAPE = (400, 500)
MILLION_BYTES = 1_000_000


def stack_of(number):
    return SimpleNamespace(
        id=number, label=f"M42 {'LRG'[number]}", bayer_pattern=None, published_frames=0
    )


def frames_of(number, count):
    rng = np.random.default_rng(number)
    mask = np.zeros(SHAPE, np.uint8)
    for index in range(count):
        image = rng.normal(1000, 10, SHAPE).astype(np.float32)
        yield image, mask, dataclasses.replace(member(index, np.eye(3)), frame_id=index + 1)


def replayed(stack, members):
    return frames_of(stack.id, len(members))


def test_a_stack_that_had_to_make_room_comes_back_the_same_and_it_is_said_what_to_do():
    told = []
    # A pixel takes 50 bytes and 12 while it is written: 12.4 million bytes, for which there is no
    # room; 44 and 12 with a buffer less: 11.2 million, 8.8 of them in memory, and no room for two.
    stacks = LiveStacks(memory_bytes=12 * MILLION_BYTES, replay=replayed, tell=told.append)
    members = [one for *_, one in frames_of(0, 6)]
    first = stacks.get(stack_of(0), members)
    assert first.nbytes == 44 * 400 * 500
    before = first.render()
    stacks.get(stack_of(1), members)
    assert 0 not in stacks
    assert told == []
    after = stacks.get(stack_of(0), members).render()
    for name in ("mean", "weight", "variance", "coverage"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    for number in (1, 0, 1, 0):
        stacks.get(stack_of(number), members)
    # Two stacks that would then have 50 bytes a pixel; below 38 and 12 they are of half the size.
    assert len(told) == 1
    assert "M42 L had to make room" in told[0]
    assert "its 6 frames are read again" in told[0]
    assert "memory_mb should be 20, or below 10," in told[0]


def test_room_is_made_before_it_is_taken():
    """A stack that comes back, or begins, never lies in memory beside the one that makes room."""
    stacks = LiveStacks(
        memory_bytes=12 * MILLION_BYTES, replay=lambda _, members: seen(len(members))
    )

    def seen(count):
        for number, frame in enumerate(frames_of(0, count)):
            beside.append((number, 1 in stacks))
            yield frame

    members = [one for *_, one in frames_of(0, 2)]
    beside = []
    begun = stacks.get(stack_of(1), [])
    begun.add(*next(frames_of(1, 1)))
    stacks.get(stack_of(0), members)
    # When its second frame is asked for, the first has its place.
    assert beside == [(0, True), (1, False)]
    stacks.get(stack_of(2), []).add(*next(frames_of(2, 1)))
    assert 0 not in stacks


def test_stacks_that_fit_together_stay_and_nothing_is_said():
    told = []
    stacks = LiveStacks(memory_bytes=9 * MILLION_BYTES, replay=replayed, tell=told.append)
    members = [one for *_, one in frames_of(0, 2)]
    # At half the size: 2.5 million bytes each.
    growing = [stacks.get(stack_of(number), members) for number in range(3)]
    assert all(isinstance(one, Growing) and one.edge == 2 for one in growing)
    again = [stacks.get(stack_of(number), members) for number in range(3)]
    assert all(one is other for one, other in zip(growing, again, strict=True))
    assert told == []
