"""The exact stack of a night that was worked through, made again from its raw frames."""

import contextlib
import dataclasses
import datetime as dt
import os
from types import SimpleNamespace

import numpy as np
import pytest

from calib_library import flat
from calib_library.images import frame_file, product_file
from daemon import bands, finish, masters
from daemon.calibration import Arrays, hot_step
from daemon.darkroom import key_of
from daemon.light import debayer, warp
from daemon.simulator.night import noiseless, small_plan
from daemon.simulator.writer import write_night
from daemon.stack import final
from tests.nights import add, new_parts

SMALL = 1
"""bytes: the smallest tiles there are, 16 rows."""


@contextlib.contextmanager
def worked(plan, folder):
    """Take a planned night in: the parts, and the one stack that it gave, written."""
    paths = write_night(folder / "in", plan)
    with new_parts(folder) as parts:
        now = dt.datetime.now(dt.UTC)
        for path in paths:
            add(parts, path, folder / "in", now=now)
        while parts.ledger.calibration_pending():
            parts.pipeline.process(parts.ledger.claim(now), now=now)
        masters.build_due(parts.pipeline, now=now, quiet_s=0.0, beat=lambda _: None)
        while (frame := parts.ledger.claim(now)) is not None:
            parts.pipeline.process(frame, now=now)
        parts.publisher.tick(now, flush=True)
        yield parts


@pytest.fixture(scope="module")
def mono(tmp_path_factory):
    """Twelve lights, dithered, turned half-way, with trails."""
    plan = small_plan(seed=5, shape=(256, 320), darks=6, flats=6, flat_darks=6, lights=12, trails=3)
    with worked(plan, tmp_path_factory.mktemp("mono")) as parts:
        yield plan, parts


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    plan = small_plan(
        seed=6, shape=(256, 320), bayer_pattern="GRBG", darks=6, flats=6, flat_darks=6, lights=6
    )
    with worked(plan, tmp_path_factory.mktemp("colour")) as parts:
        yield plan, parts


def stack_of(parts):
    (stack,) = parts.stacks.all()
    return stack


def make(parts, **options):
    options = {"memory_bytes": 50_000_000, "beat": lambda _: None, **options}
    return finish.finish(parts.pipeline, stack_of(parts), **options)


def written(parts, made):
    """The image (planes, ny, nx), its coverage, and its cards."""
    path = parts.config.library.path / made.path
    image, cards = product_file.read_product(path)
    coverage = product_file.read_extra(path, "COVERAGE")
    return image.reshape(-1, *image.shape[-2:]), coverage, cards


def log_of(parts):
    return (parts.config.library.path / "status.log").read_text()


def from_whole_frames(parts, members=None):
    """The same stack by whole frames, calibrated as they were when they came, all in memory."""
    growing = parts.live.get(stack_of(parts), parts.stacks.members(stack_of(parts).id))
    members = members or parts.stacks.members(stack_of(parts).id)
    pipeline = parts.pipeline
    frames = [parts.ledger.get(m.frame_id) for m in members]
    again = []
    for frame, m in zip(frames, members, strict=True):
        image, mask = pipeline.calibrated(
            frame_file.load(frame.path),
            frame.record,
            pipeline.calibrator.recorded(m.masters),
            clean=pipeline.cleans(len(members)),
        )
        pattern = frame.record.key.bayer_pattern
        planes = debayer.debayer(image, pattern) if pattern else image[np.newaxis]
        again.append((planes, mask))
    sigmas = np.array([growing.images[0].sigmas[m.terms.index] for m in members])

    def rows(position, y0, y1):
        image, mask = again[position]
        member = members[position]
        noise = sigmas[position] / member.terms.scale
        return np.concatenate(
            [
                warp.warp_rows(
                    image[k : k + 1], member.matrix, rows=(y0, y1), width=image.shape[2],
                    distortion=member.distortion, mask=mask, noise_adu=noise[k],
                )
                for k in range(len(image))
            ]
        )  # fmt: skip

    return final.combine(rows, [m.terms for m in members], shape=again[0][0].shape, sigmas=sigmas)


@pytest.mark.parametrize("memory_bytes", [SMALL, 50_000_000])
def test_bands_give_what_whole_frames_give(mono, memory_bytes):
    _, parts = mono
    whole = from_whole_frames(parts)
    made = make(parts, memory_bytes=memory_bytes)
    image, coverage, _ = written(parts, made)
    assert made.frames == len(parts.stacks.members(stack_of(parts).id)) >= 10
    seen = whole.image.coverage > 0
    np.testing.assert_array_equal(coverage, whole.image.coverage)
    np.testing.assert_allclose(image[0][seen], whole.image.mean[0][seen], rtol=1e-5, atol=0.01)
    assert made.rejected == pytest.approx(whole.rejected.mean(), rel=1e-3)


def test_bands_follow_a_distortion(mono):
    """A bend of up to 30 px: a band must hold what lies under the tile's bent outline."""
    _, parts = mono
    rng = np.random.default_rng(1)
    sources = bands.open_sources(parts.pipeline, parts.stacks.members(stack_of(parts).id))
    bent = []
    for source in sources:
        bend = np.zeros((2, 10))
        bend[:, 3:6] = rng.uniform(-2000, 2000, (2, 3))
        member = dataclasses.replace(source.member, distortion=bend)
        bent.append(dataclasses.replace(source, member=member))
    whole = from_whole_frames(parts, [source.member for source in bent])
    made = finish.combine(parts.pipeline, bent, memory_bytes=SMALL)
    straight = finish.combine(parts.pipeline, sources, memory_bytes=SMALL)
    np.testing.assert_array_equal(made.image.coverage, whole.image.coverage)
    np.testing.assert_allclose(made.image.mean, whole.image.mean, rtol=1e-5, atol=0.01)
    assert abs(made.image.mean - straight.image.mean).max() > 100


def test_colour_bands_give_what_whole_colour_frames_give(colour):
    _, parts = colour
    whole = from_whole_frames(parts)
    made = make(parts, memory_bytes=SMALL)
    image, _, _ = written(parts, made)
    assert len(image) == 3
    seen = whole.image.coverage > 3
    away = abs(image - whole.image.mean)[:, seen]
    sigma = np.sqrt(whole.image.variance[:, seen])
    # The noise of a plane is measured in strips here and on the whole frame there, which moves
    # the gate and the clamp a little.
    assert np.mean(away < 0.01 * sigma) > 0.995
    assert np.sqrt(np.mean((away / sigma) ** 2)) < 0.1


def test_it_agrees_with_the_growing_stack_and_says_so(mono):
    _, parts = mono
    made = make(parts)
    assert made.difference is not None
    assert made.difference < 0.2
    line = next(line for line in reversed(log_of(parts).splitlines()) if " FINAL " in line)
    assert f"{made.frames} frames" in line
    assert f"{made.difference:.2f} sigma" in line
    assert str(made.path) in line


def test_coverage_is_exact_at_the_borders(mono):
    """Counted from the matrices alone: a frame covers a position that lies within the centres of
    its outermost pixels.
    """
    _, parts = mono
    made = make(parts)
    _, coverage, _ = written(parts, made)
    ny, nx = coverage.shape
    y, x = np.mgrid[:ny, :nx]
    expected = np.zeros((ny, nx))
    for member in parts.stacks.members(stack_of(parts).id):
        there = np.linalg.inv(member.matrix) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
        there = (there[:2] / there[2]).reshape(2, ny, nx)
        expected += (
            (there >= -1e-3).all(axis=0) & (there[0] <= nx - 0.999) & (there[1] <= ny - 0.999)
        )
    assert expected.min() < len(parts.stacks.members(stack_of(parts).id))
    assert (coverage <= expected).all()
    # The rest is bad pixels and what was left out.
    assert np.mean(coverage == expected) > 0.85
    assert np.mean(coverage >= expected - 2) > 0.99


def aperture(image, x, y, *, radius=9, outer=14):
    """Flux of a star above its surroundings, ADU."""
    gy, gx = np.mgrid[: image.shape[0], : image.shape[1]]
    distance = np.hypot(gx - x, gy - y)
    around = np.median(image[(distance > radius + 1) & (distance < outer)])
    return float((image[distance < radius] - around).sum())


def test_stars_keep_their_flux_and_trails_are_gone(mono):
    """Against the noiseless sky, seen through the first frame's air."""
    plan, parts = mono
    made = make(parts)
    image, coverage, _ = written(parts, made)
    first = next(shot for shot in plan.shots if shot.kind == "light")
    # A flat's level is that of its middle, below 1 by what the lens takes there.
    unit = first.transparency * flat.levels(plan.camera.flats["R"] * 1e4, bayer=False)[0] / 1e4
    truth = unit * noiseless(
        plan, "R", fwhm_px=first.fwhm_px, exposure_s=first.exposure_s, matrix=first.matrix
    )
    rest = image[0] - truth
    quiet = (truth < np.percentile(truth, 60)) & (coverage >= made.frames - 2)
    rest -= np.median(rest[quiet])
    sigma = 1.4826 * np.median(abs(rest[quiet]))
    # A trail that is left would stand many σ above the background in a line of pixels.
    assert np.mean(abs(rest[quiet]) > 6 * sigma) < 1e-3

    inverse = np.linalg.inv(first.matrix)
    ratios = []
    for star in np.stack([plan.sky.x, plan.sky.y, np.ones_like(plan.sky.x)], axis=1):
        x, y, _ = inverse @ star
        if 16 < x < 304 and 16 < y < 240 and 300 < truth[round(y), round(x)] < 20000:
            ratios.append(aperture(image[0], x, y) / aperture(truth, x, y))
    assert len(ratios) >= 8
    # The brightness of twelve small frames with few stars each is matched to 1 %.
    assert np.median(ratios) == pytest.approx(1, abs=0.015)


def test_the_product_tells_what_went_into_it(mono):
    _, parts = mono
    made = make(parts)
    _, _, cards = written(parts, made)
    values = {card.keyword: card.value for card in cards}
    history = [str(card.value) for card in cards if card.keyword == "HISTORY"]
    assert values["STACKCNT"] == made.frames
    assert values["CALSTAT"] == "BDF"
    assert values["LKREJECT"] == pytest.approx(made.rejected, abs=1e-6)
    assert values["LKLIVE"] == pytest.approx(made.difference, abs=1e-4)
    told = [line for line in history if "left out" in line]
    assert len(told) == made.frames
    assert (parts.config.library.path / made.path.with_name(f"{made.link.stem}.png")).exists()


def test_the_link_follows_and_the_generation_before_goes(mono):
    _, parts = mono
    root = parts.config.library.path
    first = make(parts)
    finish.settle(parts.pipeline, first)
    assert (root / first.link).resolve() == (root / first.path).resolve()
    after = dataclasses.replace(
        first.stack, final_path=str(first.path), final_generation=first.generation
    )
    second = finish.finish(parts.pipeline, after, memory_bytes=50_000_000, beat=lambda _: None)
    assert second.generation == first.generation + 1
    assert (root / first.path).exists()
    finish.settle(parts.pipeline, second)
    assert (root / first.link).resolve() == (root / second.path).resolve()
    assert not (root / first.path).exists()


@contextlib.contextmanager
def changed(path, *, data=None, later_s=0):
    """A raw file with other content or another time, or gone; afterwards as it was."""
    before, status = path.read_bytes(), path.stat()
    try:
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + int(later_s * 1e9)))
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def raw_of(parts, position):
    member = parts.stacks.members(stack_of(parts).id)[position]
    return parts.ledger.get(member.frame_id).path


def test_a_frame_that_is_gone_is_left_out_and_named(mono):
    _, parts = mono
    path = raw_of(parts, 4)
    whole = make(parts)
    with changed(path):
        made = make(parts)
    assert made.frames == whole.frames - 1
    assert made.difference is None
    assert any("MISSING" in line and path.name in line for line in log_of(parts).splitlines())
    _, _, cards = written(parts, made)
    assert not any(path.name in str(card.value) for card in cards)


def test_content_decides_whether_a_frame_has_changed(mono):
    """A file that was copied back has a new time and the same content; a file that was written
    over has another.
    """
    _, parts = mono
    path = raw_of(parts, 5)
    data = path.read_bytes()
    frames = make(parts).frames
    with changed(path, data=data, later_s=60):
        assert make(parts).frames == frames
    other = data[:-40000] + bytes(byte ^ 1 for byte in data[-40000:])
    with changed(path, data=other, later_s=60):
        assert make(parts).frames == frames - 1


@pytest.mark.parametrize("how", ["gone", "written over", "cut short"])
def test_a_frame_that_is_lost_while_it_is_combined_is_left_out(mono, how):
    _, parts = mono
    path = raw_of(parts, 6)
    data = {"gone": None, "written over": path.read_bytes(), "cut short": b"SIMPLE  ="}[how]
    frames = make(parts, memory_bytes=SMALL).frames
    with contextlib.ExitStack() as stack:

        def beat(doing):
            if doing.endswith("%") and len(begun) == 0:
                begun.append(doing)
                stack.enter_context(changed(path, data=data, later_s=60))

        begun = []
        made = make(parts, memory_bytes=SMALL, beat=beat)
    assert begun
    assert made.frames == frames - 1
    assert make(parts, memory_bytes=SMALL).frames == frames


def test_no_frame_left_is_told_and_nothing_written(mono):
    _, parts = mono
    before = sorted((parts.config.library.path / "stacks").rglob("*"))
    with contextlib.ExitStack() as stack:
        for position in range(len(parts.stacks.members(stack_of(parts).id))):
            stack.enter_context(changed(raw_of(parts, position)))
        assert make(parts) is None
    assert sorted((parts.config.library.path / "stacks").rglob("*")) == before
    assert "no raw frame of it can be read" in log_of(parts)


def test_rays_are_cleaned_where_the_stack_cannot_reject_them(tmp_path):
    plan = small_plan(
        seed=9, shape=(192, 256), darks=6, flats=6, flat_darks=6, lights=2, cosmic_rays=40,
        flip=False,
    )  # fmt: skip
    with worked(plan, tmp_path) as parts:
        members = parts.stacks.members(stack_of(parts).id)
        assert all("cosmics cleaned" in member.flags for member in members)
        whole = from_whole_frames(parts)
        image, _, _ = written(parts, make(parts, memory_bytes=SMALL))
        seen = whole.image.coverage > 0
        np.testing.assert_allclose(image[0][seen], whole.image.mean[0][seen], rtol=1e-5, atol=0.01)
        sources = bands.open_sources(parts.pipeline, members)
        assert all(source.rays[0].size > 20 for source in sources)


def test_a_band_is_what_lies_under_the_tile_and_little_more(mono):
    _, parts = mono
    sources = bands.open_sources(parts.pipeline, parts.stacks.members(stack_of(parts).id))
    for source in sources:
        first, last = bands.band_of(source, 100, 140, 320)
        assert first % 2 == 0
        assert 40 < last - first < 100
        corners = np.array([[0, 100, 1], [319, 100, 1], [0, 139, 1], [319, 139, 1.0]]).T
        y = (np.linalg.inv(source.member.matrix) @ corners)[1]
        assert first <= max(y.min() - 10, 0)
        assert last >= min(y.max() + 11, 256)
    assert bands.band_of(sources[0], 5000, 5040, 320) == (0, 0)


def test_frames_of_a_tile_share_the_dark_that_they_need(mono):
    """Of more temperatures than are kept: made once for all bands that overlap, a turned frame's
    for itself.
    """
    _, parts = mono
    made = []

    def band(*args):
        first, last = args[3:]
        made.append((first, last))
        rows = np.arange(first, last)[:, np.newaxis]
        return Arrays(rows, rows, rows, 0)

    whole = np.arange(4000)[:, np.newaxis]
    calibrator = SimpleNamespace(kept_darks=1, band=band, flat_of=lambda *_: whole)
    opened = bands.open_sources(parts.pipeline, parts.stacks.members(stack_of(parts).id))
    plans = {key_of(one.calibration.making.model): one.calibration for one in opened}
    two = list(plans.values())[:2]
    sources = [
        dataclasses.replace(one, shape=(4000, 320), calibration=two[k % 2])
        for k, one in enumerate(opened)
    ]
    places = range(len(sources) - 1)
    turned = len(sources) - 1, 3000, 3200
    tiles = [[(k, top + 6 * k, top + 200 + 6 * k) for k in places] for top in (500, 660)]
    masters = bands._Masters(calibrator, sources, [[*tiles[0], turned], tiles[1]])
    for tile in ([*tiles[0], turned], tiles[1]):
        made.clear()
        for position, first, last in tile:
            dark, one_flat, bad, above = masters.arrays(position, first, last)
            for rows in (dark, one_flat, bad):
                assert rows[:, 0].tolist() == list(range(first, last))
            source = sources[position]
            assert above == hot_step(source.noise_adu, source.record)
        here = [request for request in tile if request != turned]
        groups = [here[0::2], here[1::2]]
        expected = [(group[0][1], group[-1][2]) for group in groups]
        assert made == expected + [turned[1:]] * (turned in tile)


def in_blocks(fine):
    """The light of the four fine pixels that make a pixel of the reference."""
    planes, height, width = fine.shape
    return fine.reshape(planes, height // 2, 2, width // 2, 2).sum(axis=(2, 4))


def drizzled(parts, **options):
    made = make(parts, drizzle=True, **options)
    path = parts.config.library.path / made.drizzled
    image, cards = product_file.read_product(path)
    weight = product_file.read_extra(path, "WEIGHT")
    shape = (-1, *image.shape[-2:])
    return made, image.reshape(shape), weight.reshape(shape), cards


@pytest.mark.parametrize("memory_bytes", [SMALL, 50_000_000])
def test_the_finer_grid_holds_the_same_light(mono, memory_bytes):
    """Against the exact stack, which resamples by another kernel: the same sky, the same stars."""
    _, parts = mono
    made, fine, weight, cards = drizzled(parts, memory_bytes=memory_bytes)
    exact, coverage, exact_cards = written(parts, made)
    assert fine.shape == (1, 512, 640)
    blocks = in_blocks(fine)[0].astype(float)
    seen = coverage > 0
    assert np.median(blocks[seen]) == pytest.approx(np.median(exact[0][seen]), rel=1e-3)
    full = coverage >= made.frames - 1
    away = (blocks - exact[0])[full]
    noise = 1.4826 * np.median(abs(exact[0][full] - np.median(exact[0][full])))
    assert 1.4826 * np.median(abs(away)) < noise
    y, x = np.unravel_index(np.argsort(exact[0] * full, axis=None)[-400:], exact[0].shape)
    stars = [aperture(blocks, a, b) / aperture(exact[0], a, b) for a, b in zip(x, y, strict=True)]
    assert np.median(stars) == pytest.approx(1, abs=0.01)
    # No trail, which the exact stack had to reject.
    quiet = full & (exact[0] < np.percentile(exact[0][full], 70))
    rest = (blocks - exact[0])[quiet]
    assert np.mean(abs(rest) > 8 * 1.4826 * np.median(abs(rest))) < 1e-3
    values = {card.keyword: card.value for card in cards}
    before = {card.keyword: card.value for card in exact_cards}
    assert values["XPIXSZ"] == pytest.approx(before["XPIXSZ"] / 2)
    assert "drizzle x2" in values["LKSET"]
    assert values["STACKCNT"] == made.frames
    # The variance: the scatter of the sky's pixels, where all frames are.
    path = parts.config.library.path / made.drizzled
    variance = product_file.read_extra(path, "VARIANCE").reshape(fine.shape)
    assert np.isfinite(variance).all()
    # Of pixels so far apart that no drop falls on both, and so near that the nebula is the same.
    dark = full & (exact[0] < np.percentile(exact[0][full], 30))
    there = dark.repeat(2, axis=0).repeat(2, axis=1)
    there = there[:, 4:] & there[:, :-4]
    steps = fine[0, :, 4:] - fine[0, :, :-4]
    sigmas = np.sqrt(variance[0, :, 4:] + variance[0, :, :-4])
    assert 1.4826 * np.median(abs(steps / sigmas)[there]) == pytest.approx(1, abs=0.06)
    assert any("VARIANCE" in str(card.value) for card in cards if card.keyword == "HISTORY")
    # Outside of all frames there is nothing.
    empty = coverage == 0
    assert not in_blocks(weight)[0][empty & ~dilated(seen)].any()


def dilated(mask):
    grown = np.pad(mask, 1)
    return np.logical_or.reduce(
        [grown[1 + a : len(grown) - 1 + a, 1 + b : grown.shape[1] - 1 + b]
         for a in (-1, 0, 1) for b in (-1, 0, 1)]
    )  # fmt: skip


def test_what_was_rejected_is_not_dropped(mono, monkeypatch):
    """Without the exact stack's decisions its trails come through."""
    _, parts = mono
    _, fine, weight, _ = drizzled(parts)
    nothing = np.zeros((1, 0, 0), np.bool_)
    monkeypatch.setattr(finish.Rejections, "rows", lambda *_: nothing)
    _, careless, more, _ = drizzled(parts)
    assert (more >= weight - 1e-6).all()
    sigma = 1.4826 * np.median(abs(fine - np.median(fine)))
    assert (careless - fine).max() > 10 * sigma
    assert np.mean(more > weight + 1e-6) > 1e-3


def test_the_finer_grid_does_not_depend_on_its_tiles(mono):
    """Also where what was rejected lies across the border of two tiles."""
    _, parts = mono
    _, tiled, some, _ = drizzled(parts, memory_bytes=SMALL)
    _, whole, weight, _ = drizzled(parts)
    np.testing.assert_allclose(some, weight, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(tiled, whole, rtol=1e-5, atol=0.003)


def test_colours_of_a_mosaic_on_the_finer_grid(colour):
    _, parts = colour
    made, fine, weight, _ = drizzled(parts)
    exact, coverage, _ = written(parts, made)
    assert fine.shape == (3, 512, 640)
    seen = coverage >= made.frames - 1
    for plane in range(3):
        blocks = in_blocks(fine[plane : plane + 1])[0]
        # The difference, because noise shifts the median of a skew distribution.
        assert abs(np.median((blocks - exact[plane])[seen])) < 2e-3 * np.median(exact[plane])
        assert (weight[plane] > 0).mean() > 0.4
    assert (weight[1] > 0).mean() > (weight[0] > 0).mean()


def test_rejections_come_back_as_they_went_in():
    rng = np.random.default_rng(8)
    masks = rng.random((2, 3, 30, 17)) < 0.1
    kept = finish.Rejections()
    for first in range(0, 30, 7):
        for position in range(2):
            kept.add(position, first, masks[position][:, first : first + 7])
    for first, last in ((0, 30), (5, 9), (13, 29)):
        for position in range(2):
            np.testing.assert_array_equal(
                kept.rows(position, 3, first, last), masks[position][:, first:last]
            )
