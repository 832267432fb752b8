"""A short run of the fuzzer; a long one is `python -m tests.fuzz.fuzz_images --seconds 600`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUNS = 6000
"""The same inputs each time: some 25 s on a quiet machine."""


@pytest.mark.slow
def test_whatever_a_file_holds_it_is_an_image_or_one_sentence(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz.fuzz_images",
            "--runs",
            f"{RUNS}",
            "--failures",
            str(tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        check=False,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-4000:]
    assert int(re.search(r"Done (\d+) runs", told)[1]) >= RUNS, told[-1000:]
    assert list(tmp_path.iterdir()) == []
