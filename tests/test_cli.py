"""The commands: what they call, what they say, how they end."""

import itertools
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from calib_library import __version__, schema
from daemon.cli import common, main
from daemon.cli import log as log_command
from daemon.cli.log import follow_lines, last_lines
from daemon.config import Config, load
from daemon.errors import AlreadyRunningError, FatalError

ROOT = Path(__file__).resolve().parents[1]

COMMANDS = ("run", "status", "library", "explain", "log", "check-config", "init", "demo")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(common.CONFIG_VARIABLE, raising=False)
    monkeypatch.setattr(common, "SYSTEM_CONFIG", tmp_path / "etc" / "config.toml")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration as `init` writes it, with its two folders there."""
    (tmp_path / "camera").mkdir()
    file = tmp_path / "night.toml"
    assert main(["init", "--watch", "camera", "--library", "library", "--config", str(file)]) == 0
    return file


# --- help, usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"lightkeeper {command}" in capsys.readouterr().out


def test_help_names_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for command in COMMANDS:
        assert f"│ {command} " in out
    for meaning in ("0 all is well", "1 a problem", "2 a mistake", "3 another instance"):
        assert meaning in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    "arguments", [["statsu"], ["status", "--wacth"], ["explain"], ["init"], ["log", "-n", "many"]]
)
def test_a_mistake_in_the_command_ends_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "Error" in told.err


# --- configuration --------------------------------------------------------------------------------


def test_three_mistakes_are_told_at_once_and_end_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        "[library]\npath = 'lib'\n[[watch]]\npath = 'cam'\nsettel_s = 2\n"
        "[calibration]\nsigma = 'x'\n[stack]\nscale = 'big'\n"
    )
    for command in (["check-config"], ["run"], ["status"], ["log"], ["explain", "x"]):
        assert main(command) == 2
        told = capsys.readouterr()
        lines = told.err.splitlines()
        assert told.out == ""
        assert [line.split(": ")[0] for line in lines] == [f"config.toml:{n}" for n in (5, 7, 9)]


def test_check_config_says_when_all_is_in_order(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["check-config", "--config", str(config)]) == 0
    told = capsys.readouterr()
    assert "in order" in told.out
    assert str(tmp_path / "camera") in told.out
    assert told.err == ""
    (tmp_path / "camera").rmdir()
    assert main(["check-config", "--config", str(config)]) == 0
    assert "does not exist" in capsys.readouterr().err


def test_the_configuration_is_found_where_the_help_says(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def found() -> str:
        capsys.readouterr()
        main(["check-config"])
        told = capsys.readouterr()
        return told.out.split(" is in order")[0] or told.err.split(":")[0]

    assert found() == "config.toml"  # none anywhere: the error names the nearest place
    system = tmp_path / "etc" / "config.toml"
    system.parent.mkdir()
    system.write_text(config.read_text())
    assert found() == str(system)
    Path("config.toml").write_text(config.read_text())
    assert found() == "config.toml"
    monkeypatch.setenv(common.CONFIG_VARIABLE, str(config))
    assert found() == str(config)


# --- init -----------------------------------------------------------------------------------------


def test_init_writes_a_configuration_that_works(config: Path, tmp_path: Path) -> None:
    settings = load(config)
    assert settings.watch[0].path == tmp_path / "camera"
    assert settings.library.path == tmp_path / "library"
    assert settings.library.path.is_dir()
    assert config.read_text().count("\n# ") > 20


def test_init_replaces_nothing_unasked(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("mine")
    arguments = ["init", "--watch", "other", "--library", "library", "--config", str(config)]
    assert main(arguments) == 2
    assert config.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert load(config).watch[0].path.name == "other"


def test_init_refuses_a_library_inside_the_watched_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    assert main(["init", "--watch", "a", "--library", "a/out", "--config", str(file)]) == 2
    assert "inside the watched folder" in capsys.readouterr().err
    assert not file.exists()
    assert not (tmp_path / "a").exists()


def test_init_says_what_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["init", "--watch", "a", "--library", "file/lib", "--config", "c.toml"]
    assert main(arguments) == 1
    assert "cannot be written" in capsys.readouterr().err


# --- run, demo: what they call --------------------------------------------------------------------


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stands in for the service: the command must only unpack and call."""
    module = types.ModuleType("daemon.service")
    monkeypatch.setitem(sys.modules, "daemon.service", module)
    monkeypatch.setattr("daemon.service", module, raising=False)
    return module


def test_run_calls_the_service_and_returns_its_code(
    config: Path, service: types.ModuleType
) -> None:
    calls = []

    def run(settings: Config, *, until_idle: bool, reread: object) -> int:
        calls.append((settings, until_idle))
        return 1 if until_idle else 0

    service.run = run  # type: ignore[attr-defined]
    assert main(["run", "--config", str(config)]) == 0
    assert main(["run", "--until-idle", "--config", str(config)]) == 1
    assert calls == [(load(config), False), (load(config), True)]


@pytest.mark.parametrize(
    ("error", "code"),
    [(AlreadyRunningError("it runs already"), 3), (FatalError("the disk is gone"), 1)],
)
def test_what_is_fatal_is_a_sentence_and_a_code(
    config: Path,
    service: types.ModuleType,
    error: FatalError,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(settings: Config, *, until_idle: bool, reread: object) -> int:
        raise error

    service.run = run  # type: ignore[attr-defined]
    assert main(["run", "--config", str(config)]) == code
    assert capsys.readouterr().err == f"{error}\n"


def test_demo_mixes_nothing_with_what_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def demo(folder: Path, *, fast: bool) -> int:
        assert (folder, fast) == (Path("night"), True)
        raise FileExistsError("night is not empty")

    module = types.ModuleType("daemon.demo")
    module.demo = demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "daemon.demo", module)
    monkeypatch.setattr("daemon.demo", module, raising=False)
    assert main(["demo", "--folder", "night", "--fast"]) == 2
    assert capsys.readouterr().err == "night is not empty\n"


def test_the_commands_and_options_of_the_readme_exist(capsys: pytest.CaptureFixture[str]) -> None:
    shown = [
        line.split()
        for line in re.findall(r"lightkeeper ([a-z][^`\n|&]*)", (ROOT / "README.md").read_text())
    ]
    assert len(shown) >= 8
    for command, *words in shown:
        if command in COMMANDS:
            main([command, "--help"])
            out = capsys.readouterr().out
            assert all(word in out for word in words if word.startswith("-")), (command, words)
        else:
            assert not any(word.startswith("-") for word in words), command
    assert {command for command, *_ in shown} >= set(COMMANDS) - {"demo"}


# --- status, library, explain ---------------------------------------------------------------------


@pytest.mark.parametrize("command", [["status"], ["library"], ["explain", "x.fits"]])
def test_before_the_first_run_the_answer_is_a_sentence(
    config: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for extra in ([], ["--json"]):
        assert main([*command, "--config", str(config), *extra]) == 1
        told = capsys.readouterr()
        assert told.out == ""
        assert "lightkeeper run" in told.err


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["library"],
        ["library", "use", "Master", "--target", "M 8"],
        ["library", "sensor"],
        ["library", "advice"],
        ["explain", "x.fits"],
        ["stack"],
        ["stack", "remove", "x.fits"],
        ["stack", "finish"],
    ],
)
def test_a_damaged_database_is_a_sentence(
    config: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    database = config.parent / "library" / schema.DATABASE_NAME
    database.write_bytes(b"nothing that SQLite knows" * 1000)
    capsys.readouterr()
    assert main([*command, "--config", str(config)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"The database {database} cannot be opened")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("command", ["--help", "check-config", "log", "status"])
def test_commands_start_without_the_heavy_libraries(config: Path, command: str) -> None:
    """They answer at once because nothing that they do not need is imported."""
    heavy = ("numba", "astropy", "scipy", "astroalign", "watchdog", "apscheduler")
    program = (
        "import sys; from daemon.cli import main; main([sys.argv[1]]);"
        f"sys.stderr.write('imported: ' + ' '.join(sorted(set({heavy}) & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command],
        cwd=config.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), common.CONFIG_VARIABLE: str(config)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "imported: "


def test_a_reader_that_goes_away_is_no_error(config: Path) -> None:
    program = "import sys; from daemon.cli import main; sys.exit(main(['log', '-n', '100000']))"
    log = config.parent / "library" / "status.log"
    log.write_text("a line of the log\n" * 100_000)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=config.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), common.CONFIG_VARIABLE: str(config)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert (process.wait(), errors) == (0, b"")


# --- log ------------------------------------------------------------------------------------------


def test_log_shows_the_last_lines(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = config.parent / "library" / "status.log"
    capsys.readouterr()
    assert main(["log", "--config", str(config)]) == 1
    assert "no log yet" in capsys.readouterr().err
    log.write_text("".join(f"line {n} σ\n" for n in range(100)))
    assert main(["log", "--config", str(config)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"line {n} σ" for n in range(80, 100)]
    assert main(["log", "-n", "1", "--config", str(config)]) == 0
    assert capsys.readouterr().out == "line 99 σ\n"


def test_last_lines_reach_into_the_log_put_aside(tmp_path: Path) -> None:
    log = tmp_path / "status.log"
    (tmp_path / "status.log.1").write_text("1\n2\n3\n")
    log.write_bytes(b"4\n\xff5\n")
    assert last_lines(log, 3) == ["3\n", "4\n", "�5\n"]
    assert last_lines(log, 1) == ["�5\n"]
    assert last_lines(log, 0) == []
    assert last_lines(log, 99) == ["1\n", "2\n", "3\n", "4\n", "�5\n"]


def test_follow_lines_shows_what_is_appended_through_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "status.log"
    log.write_text("old\n")

    def append(text: str) -> None:
        with log.open("a") as file:
            file.write(text)

    def rotate() -> None:
        log.replace(tmp_path / "status.log.1")

    steps = iter(
        [
            lambda: append("one\n"),
            lambda: append("twö\nthree\n"),
            lambda: None,
            rotate,
            lambda: append("four, in a new log\n"),
            lambda: log.write_text("cut\n"),
        ]
    )
    followed = follow_lines(log, log.stat().st_size, sleep=lambda _: next(steps)())
    assert list(itertools.islice(followed, 4)) == [
        "one\n",
        "twö\nthree\n",
        "four, in a new log\n",
        "cut\n",
    ]


def test_log_follow_ends_with_0_at_ctrl_c(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "library" / "status.log").write_text("one\n")

    def interrupted(_path: Path, _offset: int) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(log_command, "follow_lines", interrupted)
    capsys.readouterr()
    assert main(["log", "--follow", "--config", str(config)]) == 0
    assert capsys.readouterr().out == "one\n"
