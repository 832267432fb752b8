"""A light whose file is written anew is one exposure: plate solvers add their solution to it."""

import datetime as dt
import shutil

import numpy as np
import pytest
from astropy.io import fits

from daemon import masters
from daemon.errors import FrameRejectedError
from daemon.rewritten import mark_of
from daemon.simulator.night import small_plan
from daemon.simulator.writer import write_night
from tests.nights import add, new_parts

LIGHTS = 5


@pytest.fixture(params=[None, "RGGB"], ids=["mono", "colour"])
def night(request, tmp_path):
    """(parts, the lights' files in their order) of a stack that was just grown."""
    plan = small_plan(
        seed=8,
        shape=(256, 320),
        bayer_pattern=request.param,
        bias=0,
        darks=5,
        flats=0,
        flat_darks=0,
        lights=LIGHTS,
    )
    paths = write_night(tmp_path / "in", plan)
    with new_parts(tmp_path) as parts:
        take(parts, [path for path in paths if "_R_" not in path.name and "_G_" not in path.name])
        masters.build_due(parts.pipeline, now=NOW, quiet_s=0.0, beat=lambda _: None)
        take(parts, paths)
        parts.publisher.tick(NOW, flush=True)
        frames = parts.ledger.of_stack(1)
        yield parts, [frame.path for frame in frames]


NOW = dt.datetime(2026, 11, 20, 23, 0, tzinfo=dt.UTC)


def take(parts, paths):
    """Queue these files, and work on all that is queued."""
    for path in paths:
        add(parts, path, parts.root.parent / "in", now=NOW)
    while (frame := parts.ledger.claim(NOW)) is not None:
        try:
            parts.pipeline.process(frame, now=NOW)
        except FrameRejectedError as error:
            parts.ledger.finish(frame, "rejected", now=NOW, reason=str(error))


def image_of(parts):
    """The image in memory, and the frames that it holds."""
    [stack] = parts.stacks.all()
    growing = parts.live.get(stack, parts.stacks.members(stack.id))
    return growing.render().mean, list(growing.frames)


def exposure_of(parts):
    return sum(member.exposure_s for member in parts.stacks.members(1))


def solve(path):
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["CRVAL1"] = 83.8
        hdus[0].header["PLTSOLVD"] = True


def test_a_solved_light_keeps_its_place(night):
    parts, lights = night
    before, members = image_of(parts)
    solve(lights[2])
    take(parts, [lights[2]])
    assert image_of(parts)[1] == [
        *members[:2],
        parts.ledger.find(lights[2].name)[0].id,
        *members[3:],
    ]
    np.testing.assert_array_equal(image_of(parts)[0], before)
    new, old = parts.ledger.find(lights[2].name)
    assert (new.state, old.state) == ("stacked", "rejected")
    assert f"frame {new.id} stands for it" in old.reason
    # As after a restart, and for the exact stack: the members lead to the file that is there.
    parts.live.forget(1)
    np.testing.assert_array_equal(image_of(parts)[0], before)


def test_a_solved_copy_is_left_out(night):
    parts, lights = night
    _, members = image_of(parts)
    copy = lights[1].with_stem(lights[1].stem + "_solved")
    shutil.copyfile(lights[1], copy)
    solve(copy)
    take(parts, [copy])
    assert image_of(parts)[1] == members
    [frame] = parts.ledger.find(copy.name)
    assert frame.state == "rejected"
    assert frame.reason.startswith(f"the same picture as {lights[1].name}")


def test_a_solved_file_that_was_renamed_keeps_its_place(night):
    parts, lights = night
    before, _ = image_of(parts)
    solved = lights[1].rename(lights[1].with_stem(lights[1].stem + "_solved"))
    solve(solved)
    take(parts, [solved])
    parts.live.forget(1)
    np.testing.assert_array_equal(image_of(parts)[0], before)
    assert parts.ledger.find(solved.name)[0].state == "stacked"


def test_other_pixels_of_the_same_exposure_replace_the_first(night):
    parts, lights = night
    before, members = image_of(parts)
    with fits.open(lights[3], mode="update") as hdus:
        hdus[0].data[40:44, 50:60] += 500
    take(parts, [lights[3]])
    new = parts.ledger.find(lights[3].name)[0].id
    image, now = image_of(parts)
    assert now == [*members[:3], members[4], new]
    assert exposure_of(parts) == LIGHTS * 120.0
    # What never had the first version.
    parts.live.forget(1)
    np.testing.assert_array_equal(image_of(parts)[0], image)
    assert not np.array_equal(image, before)


def test_the_only_light_of_a_stack_is_replaced(night):
    parts, lights = night
    for frame_id in image_of(parts)[1][1:]:
        parts.stacks.remove_member(frame_id)
    parts.live.forget(1)
    with fits.open(lights[0], mode="update") as hdus:
        hdus[0].data[40:44, 50:60] += 500
    take(parts, [lights[0]])
    assert image_of(parts)[1] == [parts.ledger.find(lights[0].name)[0].id]
    parts.publisher.tick(NOW, flush=True)
    [stack] = parts.stacks.all()
    assert stack.published_frames == 1
    assert (parts.root / stack.path).exists()


def test_a_name_that_was_used_again_is_another_exposure(night):
    parts, lights = night
    _, members = image_of(parts)
    with fits.open(lights[3]) as hdus:
        pixels, header = hdus[0].data.copy(), hdus[0].header.copy()
    pixels[40:44, 50:60] += 500
    header["DATE-OBS"] = "2026-11-20T23:59:59.000"
    fits.writeto(lights[3], pixels, header, overwrite=True)
    take(parts, [lights[3]])
    new, _ = parts.ledger.find(lights[3].name)
    assert new.state == "stacked", new.reason
    assert [m.frame_id for m in parts.stacks.members(1)][:LIGHTS] == members


@pytest.mark.parametrize("shape", [(40, 60), (41, 61), (8, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pixels_are_known_again_and_no_others(shape, dtype):
    pixels = np.random.default_rng(4).integers(0, 250, shape).astype(dtype)
    mark = mark_of(pixels)
    assert mark_of(np.asfortranarray(pixels)) == mark
    other = pixels.copy()
    other[5, 3] += 1
    moved = np.roll(pixels, 1, axis=1)
    others = [other, moved, pixels[::-1], pixels[:, ::-1], pixels[::-1, ::-1]]
    assert len({mark, *map(mark_of, others)}) == 6
