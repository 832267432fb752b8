"""Our sigma-clipped master beside those of other programs, on the same frames.

Each has a definition of its own; where it is known, ours with that definition must give the same
pixels. Where it is not, both must be as near to the truth.
"""

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from calib_library.combine import sigma_clipped_mean
from calib_library.images.row_reader import RowReader

N, SHAPE, NOISE = 20, (64, 96), 12.0
TRUTH = 1000.0 + 20.0 * np.sin(np.arange(SHAPE[1]) / 7.0) * np.ones(SHAPE)
STANDARD_ERROR = np.sqrt((NOISE**2 + 1 / 12) / N)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Darks with a cosmic ray in one frame of every fifth pixel: (files, where, which frame)."""
    rng = np.random.default_rng(4)
    struck = rng.integers(0, 5 * N, SHAPE)
    folder = tmp_path_factory.mktemp("darks")
    paths = []
    for k in range(N):
        pixels = np.rint(TRUTH + rng.normal(0, NOISE, SHAPE) + 4000.0 * (struck == k))
        hdu = fits.PrimaryHDU(pixels.astype(np.uint16))
        hdu.header["EXPTIME"], hdu.header["IMAGETYP"] = 300.0, "Dark Frame"
        hdu.header["INSTRUME"], hdu.header["CCD-TEMP"] = "Camera", -10.0
        paths.append(folder / f"dark_{k + 1:05d}.fit")
        hdu.writeto(paths[-1])
    return paths, struck < N


def ours(paths, **options):
    readers = [RowReader(path) for path in paths]
    try:
        return sigma_clipped_mean(readers, **options).mean
    finally:
        for reader in readers:
            reader.close()


def test_ours_is_the_truth(night):
    paths, struck = night
    error = ours(paths) - TRUTH
    assert error[~struck].std() == pytest.approx(STANDARD_ERROR, rel=0.05)
    assert error[struck].std() == pytest.approx(STANDARD_ERROR * np.sqrt(N / (N - 1)), rel=0.08)
    assert abs(error.mean()) < 4 * STANDARD_ERROR / np.sqrt(error.size)


def test_equals_ccdproc_which_clips_once(night):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        ccdproc = pytest.importorskip("ccdproc", reason="ccdproc is not installed (extra `peers`)")
        theirs = ccdproc.combine(
            [str(path) for path in night[0]],
            method="average",
            unit="adu",
            sigma_clip=True,
            sigma_clip_low_thresh=3,
            sigma_clip_high_thresh=3,
            sigma_clip_func="median",
            sigma_clip_dev_func="std",
            dtype="float64",
        )
    np.testing.assert_allclose(ours(night[0], sigma=3.0, iterations=1), theirs.data, rtol=1e-6)


def test_equals_siril_which_measures_the_spread_of_a_sample(night, tmp_path):
    """Siril divides the squares by n - 1: its 3 sigma are our 3 √(n / (n - 1))."""
    siril = shutil.which(os.environ.get("SIRIL", "siril-cli"))
    if siril is None:
        pytest.skip("siril-cli is not installed (Debian package siril)")
    process, home = tmp_path / "process", tmp_path / "home"
    process.mkdir()
    home.mkdir()
    script = tmp_path / "script.ssf"
    script.write_text(
        f"requires 1.0.0\ncd {night[0][0].parent}\nlink dark -out={process}\ncd {process}\n"
        "stack dark rej s 3 3 -nonorm\nclose\n"
    )
    subprocess.run(
        [siril, "-s", script],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")},
        check=True,
        capture_output=True,
        timeout=900,
    )
    stored = fits.getdata(process / "dark_stacked.fit")
    theirs = stored.astype(np.float64) * (65535.0 if stored.dtype.kind == "f" else 1.0)
    difference = np.abs(ours(night[0], sigma=3.0 * np.sqrt(N / (N - 1))) - theirs)
    # A pixel from which a frame was dropped has n - 1 values left, and a slightly other bound.
    assert (difference < 0.01).mean() > 0.999
    assert difference.max() < 4 * NOISE / N


def test_is_as_near_to_the_truth_as_seiza(night, tmp_path):
    """Seiza judges each value by the others alone; it rejects a few more that are only noise."""
    seiza = pytest.importorskip("seiza", reason="seiza is not installed (extra `peers`)")
    paths, struck = night
    output = Path(tmp_path / "master.fits")
    seiza.build_dark([str(path) for path in paths], str(output))
    theirs, mine = fits.getdata(output).astype(np.float64), ours(paths)
    for where in (struck, ~struck):
        error, other = (mine - TRUTH)[where], (theirs - TRUTH)[where]
        assert error.std() < 1.03 * other.std()
        assert other.std() < 1.1 * STANDARD_ERROR * np.sqrt(N / (N - 1))
    # What they do not share is what each rejects alone: less than a third of the common error.
    assert (mine - theirs).std() < STANDARD_ERROR / 3
    assert abs((mine - theirs).mean()) < 0.02 * STANDARD_ERROR
