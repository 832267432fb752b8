"""The systemd unit: what it promises, and what systemd itself says of it."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[1] / "systemd" / "lightkeeper.service"
HIGHEST_EXPOSURE = 1.5
"""Of 10, by `systemd-analyze security`; a bare unit has 9.6."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here"
)


def analyze(*arguments):
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def service():
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(UNIT)
    return parser["Service"]


def test_it_speaks_the_protocol_that_the_daemon_speaks(service):
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert int(service["WatchdogSec"]) > 0
    assert service["Restart"] == "on-failure"


def test_the_user_is_a_static_one(service):
    # The camera's folder belongs to somebody: only a user that stays can be put in its group.
    assert service["User"] == "lightkeeper"
    assert "DynamicUser" not in service


def test_compiled_kernels_have_a_place_and_may_run(service):
    assert "MemoryDenyWriteExecute" not in service
    cache = f"/var/cache/{service['CacheDirectory']}"
    environment = re.findall(r"^Environment=(\S+)", UNIT.read_text("utf-8"), re.MULTILINE)
    assert f"NUMBA_CACHE_DIR={cache}/kernels" in environment


@needs_systemd
def test_systemd_finds_no_fault_with_it(tmp_path):
    # As installed, but with a program that exists here.
    text = UNIT.read_text("utf-8").replace("=/opt/lightkeeper/bin/lightkeeper ", "=/bin/true ")
    copy = tmp_path / UNIT.name
    copy.write_text(text, "utf-8")
    result = analyze("verify", str(copy))
    if "Operation not permitted" in result.stderr or "Failed to initialize" in result.stderr:
        pytest.skip(f"systemd-analyze cannot work here: {result.stderr.strip()}")
    assert (result.returncode, result.stderr) == (0, "")


@needs_systemd
def test_it_is_closed_as_far_as_it_can_be():
    result = analyze("security", "--offline=true", str(UNIT))
    found = re.search(r"Overall exposure level.*?: ([\d.]+)", result.stdout)
    if found is None:
        pytest.skip(f"systemd-analyze cannot judge a unit offline here: {result.stderr.strip()}")
    assert float(found[1]) <= HIGHEST_EXPOSURE
