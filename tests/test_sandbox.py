"""The unit as it stands, started by a real systemd: the daemon works inside its restrictions.

systemd is the first process of a container of its own (systemd-nspawn) whose root holds nothing
but the unit, a user, a camera's folder, and read-only views of this Python and this source. It is
slow (the kernels are compiled inside) and needs root, so it runs only where it is asked for:

    LIGHTKEEPER_SYSTEMD=1 pytest tests/test_sandbox.py
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame

SOURCE = Path(__file__).resolve().parents[1]
UID = 990

CHECK = """\
systemctl is-active lightkeeper
for n in $(seq 150); do
    test "$(grep -c STACKED /var/lib/lightkeeper/status.log)" -ge 4 && break
    sleep 1
done
P=$(systemctl show lightkeeper -p MainPID --value)
cat /proc/$P/status
systemctl show lightkeeper -p NRestarts
cat /var/lib/lightkeeper/status.log
systemctl reload lightkeeper && echo reloaded
sleep 6
cat /var/lib/lightkeeper/status.log | grep CONFIG
systemctl stop lightkeeper
systemctl show lightkeeper -p Result,ExecMainStatus
systemctl --force --force poweroff
"""


@pytest.fixture
def root(tmp_path):
    """A root with nothing in it but what the service needs."""
    if "LIGHTKEEPER_SYSTEMD" not in os.environ:
        pytest.skip("takes long and needs root: LIGHTKEEPER_SYSTEMD=1 asks for it")
    if os.geteuid() != 0 or shutil.which("systemd-nspawn") is None:
        pytest.skip("needs root and systemd-nspawn (Debian: systemd-container)")
    root = tmp_path / "root"
    for folder in (
        *("usr", "etc/systemd/system", "etc/lightkeeper", "var/lib", "var/log", "var/cache"),
        *("run", "tmp", "dev", "proc", "sys", "opt/lightkeeper/bin", "opt/venv", "code", "result"),
    ):
        (root / folder).mkdir(parents=True)
    # A Python in somebody's home must be within the service's reach here.
    (root / Path(sys.base_prefix).resolve().relative_to("/")).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nmessagebus:x:101:101::/:/bin/false\n"
        f"lightkeeper:x:{UID}:{UID}::/var/lib/lightkeeper:/bin/false\n"
    )
    (root / "etc/group").write_text(f"root:x:0:\nmessagebus:x:101:\nlightkeeper:x:{UID}:\n")
    (root / "etc/os-release").write_text("ID=test\n")
    (root / "etc/machine-id").touch()
    shutil.copy("/etc/ld.so.cache", root / "etc")
    units = root / "etc/systemd/system"
    shutil.copy(SOURCE / "systemd" / "lightkeeper.service", units)
    (units / "check.service").write_text(
        "[Unit]\nWants=lightkeeper.service\nAfter=lightkeeper.service\n[Service]\nType=oneshot\n"
        "ExecStart=/bin/sh /check\nStandardOutput=file:/result/said\n"
    )
    (units / "default.target").write_text("[Unit]\nRequires=check.service\n")
    (root / "check").write_text(CHECK)
    program = root / "opt/lightkeeper/bin/lightkeeper"
    program.write_text(
        "#!/bin/sh\nexport PYTHONPATH=/code PYTHONDONTWRITEBYTECODE=1\n"
        'exec /opt/venv/bin/python -m daemon.cli "$@"\n'
    )
    program.chmod(0o755)
    (root / "etc/lightkeeper/config.toml").write_text(
        '[library]\npath = "/var/lib/lightkeeper"\n[[watch]]\npath = "/srv/camera"\n'
        "settle_s = 0.1\n[calibration]\nquiet_s = 0.3\n"
    )
    plan = small_plan(seed=21, shape=(256, 384), bias=0, darks=5, flats=5, flat_darks=5, lights=6)
    for frame in frames(plan):
        write_frame(root / "srv/camera", frame)
    return root


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_unit_runs_under_systemd(root):
    base = Path(sys.base_prefix).resolve()
    views = [f"--bind-ro={SOURCE}:/code", f"--bind-ro={sys.prefix}:/opt/venv", "--bind-ro=/usr"]
    if not base.is_relative_to("/usr"):
        views.append(f"--bind-ro={base}")
    subprocess.run(
        ["systemd-nspawn", "-q", "-D", root, "--register=no", "--keep-unit", *views, "-b"],
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    said = (root / "result/said").read_text()
    lines = said.splitlines()
    assert lines[0] == "active", said
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split() == [str(UID)] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"  # a filter is in force
    assert "NRestarts=0" in lines
    assert said.count("STACKED") >= 4
    assert said.count("MASTER ") == 3
    assert "reloaded" in lines
    assert "read again: nothing has changed" in said
    assert "Result=success" in lines
    assert "ExecMainStatus=0" in lines
    # It could read the camera's folder, and no more.
    owners = {path.stat().st_uid for path in (root / "srv/camera").rglob("*")}
    assert owners == {0}
