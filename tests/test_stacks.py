"""The members of a stack as they are read light after light, beside what the database holds."""

import dataclasses

import numpy as np
import pytest

from calib_library import schema
from daemon.ledger.ledger import Ledger
from daemon.ledger.stacks import Member, Stacks
from daemon.light.quality import Quality
from daemon.stack.live import FrameTerms

FRAMES = 12


@pytest.fixture
def path(tmp_path):
    db = schema.connect(tmp_path / "test.db")
    schema.apply(db)
    Ledger.prepare(db)
    for number in range(1, FRAMES + 1):
        db.conn.execute(
            "INSERT INTO frame (id, path, root, name, size, mtime_ns, state, seen_at) "
            "VALUES (?, ?, X'2f696e', 'x', 1, 1, 'stacked', '2026-11-21')",
            (number, f"/in/{number}".encode()),
        )
    db.conn.commit()
    db.close()
    return tmp_path / "test.db"


def opened(path):
    db = schema.connect(path)
    return Stacks(db), db


def begun(stacks):
    return stacks.open(target="M42", filter_="H", camera="Cam|-", camera_name="Cam")


def member(number, *, weight=1.0, masters=None):
    return Member(
        frame_id=number,
        exposure_s=60.0,
        matrix=np.eye(3),
        distortion=None,
        terms=FrameTerms(
            index=number, weight=weight, scale=1.0, planes=((0.0, 0.0, 0.0),), sigma_adu=1.0,
            e_per_adu=1.0, sky_adu=1.0, fwhm_px=3.0,
        ),
        quality=Quality(20, 3.0, 0.1, 1.0, 1.0, None, weight),
        masters=masters or {"dark": 1, "bias": None, "flat": 2},
        flags=(),
    )  # fmt: skip


def seen(stacks, stack):
    return [(one.frame_id, one.terms.weight, one.flags) for one in stacks.members(stack.id)]


def test_frames_are_seen_as_they_come_and_go(path):
    """Every look tells what somebody sees who reads the database for the first time."""
    stacks, db = opened(path)
    stack = begun(stacks)

    def agree():
        fresh, other = opened(path)
        assert seen(stacks, stack) == seen(fresh, stack)
        other.close()

    for number in (1, 2, 3, 4):
        stacks.add_member(stack, member(number), None)
        agree()
    stacks.remove_member(2)
    agree()
    stacks.remove_member(4)  # its place is the next one's
    stacks.add_member(stack, member(5), None)
    agree()
    stacks.hand_over(1, 6)
    agree()
    changed = [member(3, weight=2.0), member(6, weight=3.0)]
    stacks.replace_members(stack, changed, None)
    agree()
    assert [number for number, *_ in seen(stacks, stack)] == [3, 6]
    for number in (3, 6):
        stacks.remove_member(number)
    agree()
    stacks.add_member(stack, member(3, weight=4.0), None)
    agree()
    db.close()


@pytest.mark.parametrize("looks", [True, False])
def test_what_was_undone_was_never_there(path, looks):
    """With or without a look in the midst of it."""
    stacks, db = opened(path)
    stack = begun(stacks)
    for number in (1, 2, 3):
        stacks.add_member(stack, member(number), None)
    before = seen(stacks, stack)

    def fail():
        with schema.transaction(db):
            stacks.remove_member(2)
            stacks.hand_over(3, 8)
            stacks.add_member(stack, member(9), None)
            if looks:
                assert [number for number, *_ in seen(stacks, stack)] == [1, 8, 9]
            stacks.replace_members(stack, [member(1, weight=7.0)], None)
            if looks:
                assert seen(stacks, stack) == [(1, 7.0, ())]
            raise OSError("the disk is full")

    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            fail()
        assert seen(stacks, stack) == before
    stacks.add_member(stack, member(9, weight=5.0), None)
    assert seen(stacks, stack) == [*before, (9, 5.0, ())]
    db.close()


def test_what_another_connection_wrote_is_seen(path):
    stacks, db = opened(path)
    others, other = opened(path)
    stack = begun(stacks)
    for number in (1, 2):
        stacks.add_member(stack, member(number), None)
    assert len(stacks.members(stack.id)) == 2
    others.remove_member(2)
    others.add_member(stack, member(3), None)
    assert [number for number, *_ in seen(stacks, stack)] == [1, 3]
    db.close()
    other.close()


def test_a_list_of_members_is_the_callers(path):
    stacks, db = opened(path)
    stack = begun(stacks)
    stacks.add_member(stack, member(1), None)
    stacks.members(stack.id).clear()
    assert len(stacks.members(stack.id)) == 1
    db.close()


def test_members_that_were_calibrated_alike_share_it(path):
    """Thousands of them hold one; and it is what was recorded, to be recorded again."""
    stacks, db = opened(path)
    stack = begun(stacks)
    for number in (1, 2):
        stacks.add_member(stack, member(number), None)
    stacks.add_member(stack, member(3, masters={"dark": 5, "bias": None, "flat": None}), None)
    first, second, third = stacks.members(stack.id)
    assert first.masters is second.masters
    assert (first.masters["dark"], third.masters["dark"]) == (1, 5)
    stacks.replace_members(stack, [dataclasses.replace(first, exposure_s=1.0), third], None)
    assert [dict(one.masters) for one in stacks.members(stack.id)] == [
        {"dark": 1, "bias": None, "flat": 2},
        {"dark": 5, "bias": None, "flat": None},
    ]
    db.close()
