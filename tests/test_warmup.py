"""What is compiled ahead of time is what the work then calls: nothing is left for the dawn."""

import numpy as np

from calib_library import combine, dark_compose, dark_model, defects
from calib_library.frame import FrameType
from daemon import warmup
from daemon.light import calibrate
from daemon.stack import final
from tests.records import KEY, master


def signatures(*kernels):
    return [list(kernel.signatures) for kernel in kernels]


def test_masters_and_the_final_stack_find_their_kernels_compiled():
    kernels = (
        combine._clip_integers,
        combine._clip_floats,
        combine._decode,
        defects._local_median,
        defects._count_exceeded,
        dark_compose._mix,
        final._combine_tile,
        calibrate._calibrate,
    )
    warmup.kernels()
    warmup.later()
    before = signatures(*kernels)
    assert all(before)
    rng = np.random.default_rng(1)
    shape = (KEY.height, KEY.width)
    frames = [rng.integers(400, 600, shape).astype(np.uint16) for _ in range(5)]
    rows = [combine.ArrayRows(frame) for frame in frames]
    dark = combine.sigma_clipped_mean(rows).mean
    flat = combine.sigma_clipped_mean(rows, subtract=dark - 400, scales=np.ones((5, 4))).mean
    bad = defects.exceeded(dark, np.array([1.0, 2.0], np.float32))
    image = calibrate.calibrate(
        frames[0],
        dark=dark,
        flat=flat / flat.mean(),
        bad=bad,
        bad_above=1,
        overscan_adu=np.zeros((len(dark), 1), np.float32),
        noise=calibrate.Noise(e_per_adu=1.0, read_noise_e=3.0),
    ).image
    for planes in (1, 3):
        final.combine(
            lambda _, y0, y1, n=planes: np.repeat(image[np.newaxis, y0:y1], n, axis=0),
            [warmup._terms(index, planes=planes) for index in range(5)],
            shape=(planes, *shape),
        )
    ends = [master(k, FrameType.DARK, temperature_c=-14.0 + 4.0 * k) for k in (1, 2)]
    plan = dark_model.plan(ends, exposure_s=300.0, temperature_c=-8.0)
    reader = {k: lambda first, last: dark[first:last] for k in (1, 2)}
    light = dark_compose.LightNoise(10.0, 1.0)
    dark_compose.compose(plan, reader, shape=shape, bayer=True, light=light)
    assert signatures(*kernels) == before
