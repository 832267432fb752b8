"""What the rows share: the frames, the programs, and how each is called."""

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from side_by_side import process
from side_by_side.process import Run

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent

MEMORY_MB = 1500
"""The product's default for growing stacks."""


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """One line of the issue's table: a figure, or a ratio of two, and its bound."""

    text: str
    ours: float
    bound: float
    theirs: float | None = None
    unit: str = "s"

    @property
    def value(self) -> float:
        """What is held against the bound."""
        return self.ours if self.theirs is None else self.ours / self.theirs

    @property
    def met(self) -> bool:
        """Is it reached?"""
        return self.value <= self.bound


@dataclasses.dataclass
class Row:
    """What one row of the table came to. Filled by its function."""

    name: str
    title: str
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    targets: list[Target] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def ratio(
        self,
        text: str,
        ours: float | None,
        theirs: float | None,
        bound: float,
        unit: str = "s",
    ) -> None:
        """Hold ours / theirs against a bound; left out where either could not be measured."""
        if ours is not None and theirs:
            self.targets.append(Target(text, ours, bound, theirs, unit))

    def figure(self, text: str, ours: float | None, bound: float, unit: str) -> None:
        """Hold a figure against a bound."""
        if ours is not None:
            self.targets.append(Target(text, ours, bound, None, unit))


@dataclasses.dataclass(frozen=True)
class Bench:
    """The night and the programs. Paths of `night` are absolute."""

    night: Path
    """The folder that `night.py` made."""
    scratch: Path
    """On the same file system; every row empties what it makes there."""
    python: str
    """The interpreter that has Lightkeeper, astropy and astroalign."""
    siril: str | None
    seiza_python: str | None
    ccdproc_python: str | None
    rounds: int
    say: Callable[[str], None]

    # -- frames ---------------------------------------------------------------------------------

    def frames(self, kind: str) -> list[str]:
        """The files of one kind, as the camera program named them."""
        links = sorted((self.night / "sequences" / kind).glob("*.fit"))
        return [str(link.resolve()) for link in links]

    @property
    def watched(self) -> Path:
        """The camera's output folder."""
        return self.night / "in"

    # -- programs -------------------------------------------------------------------------------

    def own(
        self, task: str, environment: Mapping[str, str] | None = None, **task_input: object
    ) -> Run:
        """Run one of Lightkeeper's tasks."""
        return self._python(self.python, "by_lightkeeper.py", task, task_input, environment)

    def hand(self, task: str, **task_input: object) -> Run:
        """Run a task of the tutorial way."""
        return self._python(self.python, "by_hand.py", task, task_input)

    def seiza(self, task: str, **task_input: object) -> Run:
        """Run a task of seiza; only where `seiza_python` is set."""
        assert self.seiza_python
        return self._python(self.seiza_python, "by_seiza.py", task, task_input)

    def ccdproc(self, task: str, **task_input: object) -> Run:
        """Run a task of ccdproc; only where `ccdproc_python` is set."""
        assert self.ccdproc_python
        return self._python(self.ccdproc_python, "by_ccdproc.py", task, task_input)

    def _python(
        self,
        python: str,
        program: str,
        task: str,
        task_input: Mapping[str, object],
        environment: Mapping[str, str] | None = None,
    ) -> Run:
        return process.run(
            [python, HERE / program, task, json.dumps(task_input)],
            folder=self.scratch,
            environment={"PYTHONPATH": str(REPOSITORY), **(environment or {})},
        )

    def run_siril(self, script: str) -> Run:
        """Run a siril script, with an empty configuration of its own."""
        assert self.siril
        path = self.scratch / "script.ssf"
        path.write_text(script)
        home = self.scratch / "home"
        home.mkdir(exist_ok=True)
        places = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")}
        return process.run([self.siril, "-s", path], folder=self.scratch, environment=places)

    def own_master(self, library: Path) -> Run:
        """Let the calibration library build the one master that is due."""
        task_input = {"library": str(library)}
        # As `daemon` has it for all that it runs.
        environment = {"OPENBLAS_NUM_THREADS": "1"}
        return self._python(self.python, "by_library.py", "master", task_input, environment)

    def own_final(self, folder: Path, output: Path) -> Run:
        """Let the exact stack be made of registered files."""
        task_input = {"folder": str(folder), "output": str(output)}
        environment = {"OPENBLAS_NUM_THREADS": "1"}
        return self._python(self.python, "by_final.py", "finish", task_input, environment)

    def command(self, *words: str, config: Path) -> Run:
        """Run one of Lightkeeper's commands, such as `run --until-idle`."""
        return process.run(
            [self.python, "-m", "daemon.cli", *words, "--config", config],
            folder=self.scratch,
            environment={"PYTHONPATH": str(REPOSITORY)},
        )

    # -- what several rows begin with -----------------------------------------------------------

    def empty(self, name: str) -> Path:
        """Give an empty folder in the scratch folder."""
        folder = self.scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def drop(self, *names: str) -> None:
        """Delete folders that are no longer needed: the memory they lie in is scarce."""
        for name in names:
            shutil.rmtree(self.scratch / name, ignore_errors=True)

    def library(self, name: str, *, kinds: Sequence[str], make: bool) -> Path:
        """Give a fresh library under `name` in which frames of these kinds are filed, and their
        masters made where `make` says so. Worked out once, then copied.
        """
        pattern = self.scratch / f"pattern-{'-'.join(kinds)}-{make}"
        if not pattern.exists():
            paths = [path for kind in kinds for path in self.frames(kind)]
            self.own(
                "file", library=str(pattern), watched=str(self.watched), paths=paths, make=make
            )
        fresh = self.scratch / name
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(pattern, fresh, copy_function=_copied)
        return fresh

    def stacked(self) -> Path:
        """Give a library in which all lights were stacked, one by one."""
        folder = self.scratch / "stacked"
        if not folder.exists():
            self.library("stacked", kinds=("bias", "dark", "flat"), make=True)
            self.stack_lights(folder, self.frames("light"))
        return folder

    def stack_lights(
        self,
        library: Path,
        paths: Sequence[str],
        *,
        memory_mb: int = MEMORY_MB,
        clean: str = "auto",
    ) -> Run:
        """Let lights arrive one by one at a library that has its masters."""
        return self.own(
            "lights",
            library=str(library),
            watched=str(self.watched),
            paths=list(paths),
            memory_mb=memory_mb,
            clean=clean,
        )


def _copied(source: str, target: str) -> str:
    """Copy a file; masters, which nobody changes, as a second name of the same one."""
    if source.endswith(".fits"):
        os.link(source, target)
        return target
    return str(shutil.copy2(source, target))


def version_of(command: Sequence[str]) -> str | None:
    """What a program says of its version, None where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def module_version(python: str, module: str) -> str | None:
    """The version of a module that an interpreter has, None without it."""
    code = f"import {module}, importlib.metadata as m; print(m.version({module!r}))"
    return version_of([python, "-c", code])


def links(paths: Sequence[str], folder: Path, kind: str) -> Iterator[Path]:
    """Make numbered links `kind_00001.fit` … in a folder."""
    for number, path in enumerate(paths, start=1):
        link = folder / f"{kind}_{number:05d}.fit"
        link.symlink_to(path)
        yield link
