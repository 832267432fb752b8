"""A stack of half the size, against the same frames halved and stacked by hand; of colours, against
the places and the noise that theory gives each.
"""

import dataclasses

import numpy as np
import pytest

from daemon.ledger.stacks import Member
from daemon.light import distortion as distortions
from daemon.light import quality
from daemon.stack import halve, live
from daemon.stack.store import Growing

TO_WHOLE = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1.0]])
BENT = np.array(
    [
        [3.0, -90.0, 40.0, 150.0, -70.0, 30.0, -900.0, 400.0, -500.0, 200.0],
        [-2.0, 50.0, 120.0, -40.0, 90.0, -110.0, 300.0, -600.0, 800.0, 500.0],
    ]
)
TILTED = np.array([[0.999, -0.02, 12.5], [0.021, 1.001, -7.25], [1e-6, -2e-6, 1.0]])


def terms(index=0, **changes):
    whole = live.FrameTerms(
        index=index, weight=1.0, scale=1.0, planes=((0.0, 0.0, 0.0),), sigma_adu=10.0,
        e_per_adu=1.0, sky_adu=1000.0, fwhm_px=4.0,
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)


def test_four_pixels_become_their_mean_without_the_bad_ones():
    rng = np.random.default_rng(1)
    whole = rng.normal(1000, 10, (3, 9, 13)).astype(np.float32)
    mask = np.zeros((9, 13), np.uint8)
    mask[2, 4] = 1  # one of four
    mask[4, 6] = mask[5, 7] = 1  # two of four
    mask[0, 1] = 2
    kept = whole.copy()
    half, bits = halve.image(whole, mask)
    expected = whole[:, :8, :12].astype(float).reshape(3, 4, 2, 6, 2).mean(axis=(2, 4))
    good = whole[:, 2:4, 4:6].astype(float)
    expected[:, 1, 2] = (good[:, 0, 1] + good[:, 1, 0] + good[:, 1, 1]) / 3
    np.testing.assert_allclose(half, expected, rtol=1e-6)
    wanted = np.zeros((4, 6), np.uint8)
    wanted[2, 3], wanted[0, 0] = 1, 2
    np.testing.assert_array_equal(bits, wanted)
    quarter, bits = halve.image(whole, mask, 4)
    block = whole[:, 4:8, 4:8].astype(float)
    good = mask[4:8, 4:8] == 0
    np.testing.assert_allclose(quarter[:, 1, 1], block[:, good].mean(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(bits, [[2, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(whole, kept)


@pytest.mark.parametrize("distortion", [None, BENT])
def test_the_half_lies_where_the_whole_does(distortion):
    half_matrix, half_distortion = halve.place(TILTED, distortion)
    points = np.random.default_rng(2).uniform(0, 3000, (50, 2))
    whole = distortions.to_frame(TILTED, distortion, points * 2 + 0.5)
    half = distortions.to_frame(half_matrix, half_distortion, points)
    np.testing.assert_allclose(half * 2 + 0.5, whole, atol=1e-7)


def test_the_numbers_of_a_frame_at_half_the_size():
    whole = terms(planes=((5.0, 0.02, -0.01),), sigma_adu=8.0, e_per_adu=0.7, fwhm_px=3.0)
    half = halve.terms(whole)
    x, y = 200.0, 90.0
    (a, bx, by), (ha, hbx, hby) = whole.planes[0], half.planes[0]
    assert ha + hbx * x + hby * y == pytest.approx(a + bx * (2 * x + 0.5) + by * (2 * y + 0.5))
    # 1000 ADU of a source, in a pixel of four times the area: noise of the mean of four.
    rng = np.random.default_rng(3)
    electrons = rng.poisson(1000 * 0.7, (4, 200_000)) / 0.7 + rng.normal(0, 8.0, (4, 200_000))
    expected = half.sigma_adu**2 + 1000 / half.e_per_adu
    assert electrons.mean(axis=0).var() == pytest.approx(expected, rel=0.02)
    assert half.fwhm_px == 1.5


def member(index, matrix):
    measured = quality.Quality(**{f.name: 1 for f in dataclasses.fields(quality.Quality)})
    values = {f.name: None for f in dataclasses.fields(Member)}
    values |= {
        "frame_id": index + 1, "matrix": matrix, "terms": terms(index), "distortion": None,
        "quality": measured, "exposure_s": 30.0, "masters": {}, "flags": (),
    }  # fmt: skip
    return Member(**values)


def test_a_stack_without_memory_for_all_pixels_grows_at_half_the_size_and_forgets_frames():
    rng = np.random.default_rng(4)
    shape = (80, 100)
    truth = 1000 + 0.5 * np.arange(100)[None, :] + np.zeros(shape)
    mask = np.zeros(shape, np.uint8)
    small, enough = Growing(20 * truth.size), Growing(100 * truth.size)
    frames = []
    for index in range(12):
        dx, dy = rng.integers(-3, 4, 2) if index else (0, 0)
        matrix = np.array([[1, 0, float(dx)], [0, 1, float(dy)], [0, 0, 1]])
        x = np.arange(100)[np.newaxis]
        image = 1000 + 0.5 * (x + dx) + rng.uniform(-17, 17, (80, 100))
        frames.append((image.astype(np.float32), mask, member(index, matrix)))
        small.add(*frames[-1])
        enough.add(*frames[-1])
    assert (small.edge, enough.edge) == (2, 1)
    assert small.images[0].shape == (1, 40, 50)
    # 20 bytes of sums, 18 of waiting values and 12 while it is written.
    assert "half the size, 50 × 40 px" in small.smaller(shape)
    assert "memory_mb must be 1." in small.smaller(shape)
    assert "must be 1305." in small.smaller((4176, 6248))
    assert small.nbytes * 3.9 < enough.nbytes
    shown = small.render()
    inner = np.s_[0, 6:-6, 6:-6]
    expected = 1000 + 0.5 * (2 * np.arange(50) + 0.5)
    # 12 frames of 4 pixels of σ 9.8.
    assert np.abs(shown.mean[inner] - expected[6:-6]).max() < 5 * 9.8 / np.sqrt(48)
    assert (shown.coverage[6:-6, 6:-6] >= 11).all()
    for frame in frames:
        small.remove(*frame)
    assert not small.images[0].weight.any()
    assert not small.images[0].settled.any()
    with pytest.raises(ValueError, match="empty"):
        Growing(10**9).remove(*frames[0])


PATTERNS = ["RGGB", "BGGR", "GRBG", "GBRG"]
ZERO = (0.0, 0.0, 0.0)


@pytest.mark.parametrize("distortion", [None, BENT])
@pytest.mark.parametrize(("pattern", "size"), [*((one, 2) for one in PATTERNS), ("GBRG", 4)])
def test_each_colour_lies_where_its_own_pixels_lie(pattern, size, distortion):
    mosaic, mask = np.zeros((60, 80), np.float32), np.zeros((60, 80), np.uint8)
    whole = terms(planes=(ZERO,) * 3)
    parts = halve.colours(mosaic, mask, pattern, TILTED, whole, distortion, edge=size)
    cells = np.random.default_rng(5).integers(0, 4000 // size, (40, 2)).astype(float)
    for letter, part in zip("RGB", parts, strict=True):
        block = [
            (x, y) for y in range(size) for x in range(size)
            if pattern[2 * (y % 2) + x % 2] == letter
        ]  # fmt: skip
        raw = size * cells + np.mean(block, axis=0)  # in px of the mosaic
        middle = (size - 1) / 2
        expected = (distortions.to_reference(TILTED, distortion, raw) - middle) / size
        found = distortions.to_reference(part.matrix, part.distortion, cells)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("size", [2, 4])
def test_the_numbers_of_each_colour_are_those_of_its_own_pixels(size):
    """Photons and read noise of a mosaic: red and blue have a pixel's, green has half the variance
    and twice the electrons.
    """
    rng = np.random.default_rng(6)
    gain, read, scale = 0.7, 5.0, 1.25
    skies = {"R": 300.0, "G": 900.0, "B": 500.0}
    shape = (800, 900)

    def mosaic_of(more):
        levels = np.empty(shape)
        for k, letter in enumerate("GRBG"):
            levels[k // 2 :: 2, k % 2 :: 2] = skies[letter] + more
        return (rng.poisson(levels * gain) / gain + rng.normal(0, read, shape)).astype(np.float32)

    whole = terms(
        scale=scale, sigma_adu=1.0, e_per_adu=gain / scale, sky_adu=650.0,
        planes=((1.0, 0.02, 0.0), (2.0, 0.0, 0.01), ZERO),
    )  # fmt: skip
    mask = np.zeros(shape, np.uint8)
    dark, bright = (
        halve.colours(mosaic_of(more), mask, "GRBG", np.eye(3), whole, None, edge=size)
        for more in (0.0, 2000.0)
    )
    for plane, (letter, share) in enumerate((("R", 0.25), ("G", 0.5), ("B", 0.25))):
        pixels = share * size**2
        found = dark[plane].terms
        variance = (skies[letter] / gain + read**2) / pixels
        assert found.sigma_adu == pytest.approx(scale * np.sqrt(variance), rel=0.02)
        # (300 + 2 · 900 + 500)/4 is the luminance's sky.
        assert found.sky_adu == pytest.approx(skies[letter], abs=0.5)
        # 2000 ADU of a source more, 2500 in the stack.
        gained = scale**2 * (bright[plane].image.var() - dark[plane].image.var())
        assert gained == pytest.approx(2500 / found.e_per_adu, rel=0.02)
        assert len(found.planes) == 1
    middle = (size - 1) / 2
    assert dark[0].terms.planes[0] == pytest.approx((1 + 0.02 * middle, 0.02 * size, 0.0))


def lights(rng, pattern, places, *, shape, number, noise, sigma):
    """Mosaics of round stars of `sigma` px at `places` (n, 2) of the reference, turned and
    dithered, with the matrices frame → reference.
    """
    sky = dict(zip("RGB", (800.0, 1000.0, 900.0), strict=True))
    y, x = np.mgrid[: shape[0], : shape[1]]
    for index in range(number):
        angle = np.deg2rad(rng.normal(0, 0.3) + 180 * (index % 2))
        c, s = np.cos(angle), np.sin(angle)
        cy, cx = (shape[0] - 1) / 2, (shape[1] - 1) / 2
        dx, dy = rng.uniform(-4, 4, 2) if index else (0.0, 0.0)
        matrix = np.array(
            [[c, -s, cx + dx - c * cx + s * cy], [s, c, cy + dy - s * cx - c * cy], [0, 0, 1]]
        )
        if not index:
            matrix = np.eye(3)
        image = rng.normal(0, noise, shape)
        for k, letter in enumerate(pattern):
            image[k // 2 :: 2, k % 2 :: 2] += sky[letter]
        for px, py, _ in np.column_stack([places, np.ones(len(places))]) @ np.linalg.inv(matrix).T:
            image += 20000 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2))
        yield image.astype(np.float32), matrix


@pytest.mark.parametrize(("pattern", "size"), [("RGGB", 2), ("GBRG", 2), ("RGGB", 4)])
def test_stars_of_a_smaller_colour_stack_lie_in_all_colours_where_they_are(pattern, size):
    """Half of the frames are turned by 180°, so that a colour that is half a pixel off shows as two
    stars. The noise of the stack is what its variance says.
    """
    rng = np.random.default_rng(7)
    shape, noise, sigma = (60 * size, 80 * size), 12.0, 0.95 * size
    places = size / 2 * np.array([[40.3, 50.8], [80.0, 61.5], [118.6, 38.2], [60.9, 84.1]])
    pixels = 3 * shape[0] * shape[1]
    growing = Growing(62 * pixels // size**2, pattern)
    mask = np.zeros(shape, np.uint8)
    frames = []
    for index, (image, matrix) in enumerate(
        lights(rng, pattern, places, shape=shape, number=20, noise=noise, sigma=sigma)
    ):
        # The luminance of a demosaiced frame has σ √(5.5 / 4²) or so of a pixel's.
        own = terms(
            index, planes=(ZERO,) * 3, sigma_adu=0.5 * noise, e_per_adu=1e6, fwhm_px=2.355 * sigma
        )
        frames.append((image, mask, dataclasses.replace(member(index, matrix), terms=own)))
        growing.add(*frames[-1])
    assert growing.edge == size
    shown = growing.render()
    assert shown.mean.shape == (3, shape[0] // size, shape[1] // size)
    assert (shown.coverage[20 // size : -20 // size, 20 // size : -20 // size] >= 18).mean() > 0.99
    y, x = np.mgrid[: shown.mean.shape[1], : shown.mean.shape[2]]
    for plane, sky in zip(shown.mean.astype(float), (800.0, 1000.0, 900.0), strict=True):
        for place in places:
            px, py = (place + 0.5) / size - 0.5
            light = (plane - sky) * (np.hypot(x - px, y - py) < 7 * sigma / size)
            centre = [(light * x).sum() / light.sum(), (light * y).sum() / light.sum()]
            # In px of the frames; half a raw pixel off would be 0.5.
            np.testing.assert_allclose(
                np.array(centre) * size, np.array([px, py]) * size, atol=0.04 * sigma
            )
            flux = light.sum() * size**2
            assert flux == pytest.approx(20000 * 2 * np.pi * sigma**2, rel=0.01)
    empty = np.ones(plane.shape, bool)
    for place in places:
        px, py = (place + 0.5) / size - 0.5
        empty &= np.hypot(x - px, y - py) > 20 / size
    empty[: 12 // size] = empty[-12 // size :] = empty[:, : 12 // size] = False
    empty[:, -12 // size :] = False
    for k, number in enumerate((1, 2, 1)):
        expected = noise / np.sqrt(20 * number * (size / 2) ** 2)
        # Resampling takes a part of the noise away, 16 % and up to 20.
        assert 0.78 * expected < shown.mean[k][empty].std() < 1.02 * expected
        told = np.sqrt(np.median(shown.variance[k][empty]))
        assert told == pytest.approx(0.92 * expected, rel=0.1)
    for frame in frames:
        growing.remove(*frame)
    # `live.remove` promises 99.9 %.
    assert all(np.mean(image.weight != 0) < 1e-3 for image in growing.images)


def test_a_bad_pixel_costs_its_own_colour_only():
    mosaic = np.full((40, 40), 100.0, np.float32)
    mask = np.zeros((40, 40), np.uint8)
    mosaic[20, 20] = mosaic[10, 11] = 5000.0  # red, and one green of two
    mask[20, 20] = mask[10, 11] = 1
    growing = Growing(62 * 3 * 400, "RGGB")
    growing.add(mosaic, mask, dataclasses.replace(member(0, np.eye(3)), terms=terms(
        planes=(ZERO,) * 3)))  # fmt: skip
    red, green, blue = (image.frames[0, 0] for image in growing.images)
    # The red pixel has no value of its own in this frame, its neighbours have.
    np.testing.assert_allclose(growing.render().mean[growing.render().weight > 0], 100, atol=0.01)
    assert (green[1:-1, 1:-1] > 0).all()
    assert (blue[2:-2, 2:-2] > 0).all()
    assert red[10, 10] == 0 or growing.images[0].values[0, 0, 10, 10] == pytest.approx(100)
