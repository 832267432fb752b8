"""Holds the rules of who imports what, by reading the source of both packages."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PURE = {
    "calib_library.ageing",
    "calib_library.cards",
    "calib_library.fits_cards",
    "calib_library.header",
    "calib_library.keywords",
    "calib_library.kinds",
    "calib_library.observation",
    "calib_library.inspect",
    "calib_library.judging",
    "calib_library.overscan",
    "calib_library.robust",
    "calib_library.clip",
    "calib_library.combine",
    "calib_library.flat",
    "calib_library.flat_checks",
    "calib_library.defects",
    "calib_library.local_median",
    "calib_library.dark_compose",
    "calib_library.dark_model",
    "calib_library.dark_temperature",
    "calib_library.made_dark",
    "calib_library.match",
    "calib_library.compare",
    "calib_library.suspects",
    "calib_library.advice",
    "calib_library.xisf",
    "calib_library.sensor",
    "calib_library.sensor_record",
    "daemon.intake.settle",
    "daemon.ledger.states",
    "daemon.light.calibrate",
    "daemon.light.candidates",
    "daemon.light.clipped",
    "daemon.light.cosmic",
    "daemon.light.debayer",
    "daemon.light.distortion",
    "daemon.light.fallback",
    "daemon.light.background",
    "daemon.light.moments",
    "daemon.light.stars",
    "daemon.light.quality",
    "daemon.light.register",
    "daemon.light.residual",
    "daemon.light.lanczos",
    "daemon.light.noise",
    "daemon.light.pairing",
    "daemon.light.reweighted",
    "daemon.light.sums",
    "daemon.light.sweeps",
    "daemon.light.warp",
    "daemon.stack.live",
    "daemon.stack.settle",
    "daemon.stack.display",
    "daemon.stack.drizzle",
    "daemon.stack.final",
    "daemon.stack.halve",
    "daemon.stack.holes",
    "daemon.report.preview",
    "daemon.toml_lines",
}
"""Arrays and records in, new values out."""

SHARED_RECORDS = {"calib_library", "calib_library.frame", "calib_library.errors"}
"""What pure modules may use of the packages beside one another and the kernels."""

IMPURE = (
    "asyncio",
    "glob",
    "logging",
    "multiprocessing",
    "os",
    "random",
    "shutil",
    "socket",
    "sqlite3",
    "sqlite_utils",
    "subprocess",
    "sys",
    "tempfile",
    "time",
    "urllib",
)

HANDED_IN = {"daemon.intake.settle": {"os", "pathlib.Path"}}
"""A pure module → what it names as a type, or as the default of what its caller hands in."""

PATH_NAMES = {"PurePath", "PurePosixPath", "PureWindowsPath"}
"""Of pathlib: names without a file system behind them."""

SQL = re.compile(
    r"\s*(SELECT\s.+\sFROM|INSERT\s+(OR\s+\w+\s+)?INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|"
    r"(CREATE|DROP|ALTER)\s+(TABLE|(UNIQUE\s+)?INDEX|TRIGGER|VIEW)|PRAGMA\s+\w+|BEGIN\s+IMMEDIATE)",
    re.DOTALL,
)


def may_hold_sql(module: str) -> bool:
    return module in {"calib_library.library", "calib_library.schema"} or module.startswith(
        ("calib_library.catalogue.", "daemon.ledger.")
    )


ONLY_IN = {
    "watchdog": {"daemon.intake.watcher"},
    "apscheduler": {"daemon.jobs"},
    "astropy.io.fits": {
        "calib_library.images.product_file",
        "calib_library.images.tiles",
        "daemon.simulator.writer",
    },
}
"""Library → the modules that alone import it."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in ("calib_library", "daemon")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Every imported name in full: `from a import b` gives `a` and `a.b`, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def violations(module: str, source: str) -> list[str]:
    """Everything in the module that a rule forbids, as sentences."""
    tree = ast.parse(source)
    names = set(imports(module, tree))
    found = []
    if is_in(module, "calib_library"):
        found += [f"imports {name}" for name in names if is_in(name, "daemon")]
    if not may_hold_sql(module):
        found += [f"holds SQL: {text}" for text in sql_texts(tree)]
    for library, homes in ONLY_IN.items():
        if module not in homes:
            found += [f"imports {name}" for name in names if is_in(name, library)]
    if module in PURE:
        found += impurities(names - HANDED_IN.get(module, set()), tree)
    return found


def sql_texts(tree: ast.AST) -> list[str]:
    """Strings (but docstrings) that are statements of SQL; of an f-string its first part."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value.strip()[:60]
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
        and SQL.match(node.value)
    ]


def impurities(names: set[str], tree: ast.AST) -> list[str]:
    """What a pure module must not do: know files, clocks, threads, settings, logs."""
    allowed = PURE | SHARED_RECORDS | {"calib_library.kernels"}
    found = [f"imports {name}" for name in names if name.partition(".")[0] in IMPURE]
    found += [
        f"imports {name}"
        for name in names
        if is_in(name, "pathlib") and name.partition(".")[2] not in {"", *PATH_NAMES}
    ]
    found += [
        f"imports {name}, which is not pure"
        for name in names & set(MODULES)
        if name not in allowed and not is_package_of(name, allowed)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name == "pathlib" for alias in node.names):
            found.append("imports pathlib as a whole")
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Name(id="open" | "print" | "input"):
                    found.append(f"calls {node.func.id}() in line {node.lineno}")
                case ast.Attribute(attr="now" | "utcnow" | "today"):
                    found.append(f"reads the clock in line {node.lineno}")
                case ast.Attribute(attr="default_rng") if not node.args:
                    found.append(f"draws unseeded random numbers in line {node.lineno}")
    return found


def is_package_of(name: str, modules: set[str]) -> bool:
    return any(module.startswith(f"{name}.") for module in modules)


@pytest.mark.parametrize("module", MODULES)
def test_the_module_keeps_the_rules(module: str) -> None:
    assert violations(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("calib_library.library", "import daemon.config"),
        ("calib_library.library", "from daemon import config"),
        ("daemon.pipeline", "def f():\n    db.execute('SELECT a FROM frame')"),
        ("daemon.pipeline", 'q = f"""\n  INSERT INTO frame ({names}) VALUES (1)"""'),
        ("daemon.pipeline", "db.execute('PRAGMA foreign_keys = ON')"),
        ("daemon.pipeline", "from watchdog.observers import Observer"),
        ("daemon.intake.scan", "import watchdog"),
        ("daemon.service", "from apscheduler.schedulers import background"),
        ("daemon.pipeline", "from astropy.io import fits"),
        ("daemon.pipeline", "def f():\n    import astropy.io.fits as pyfits"),
        ("daemon.pipeline", "from astropy.io.fits import open"),
        ("daemon.light.stars", "import os"),
        ("daemon.light.stars", "import os.path"),
        ("daemon.light.stars", "from logging import getLogger"),
        ("daemon.light.stars", "from pathlib import Path"),
        ("daemon.light.stars", "import pathlib"),
        ("daemon.light.stars", "import sqlite3"),
        ("daemon.light.stars", "from daemon.config import Config"),
        ("daemon.light.stars", "from daemon import config"),
        ("daemon.light.stars", "from ..config import Config"),
        ("daemon.light.stars", "from calib_library.images import frame_file"),
        ("daemon.light.stars", "text = open('x').read()"),
        ("daemon.light.stars", "import datetime as dt\nnow = dt.datetime.now(dt.UTC)"),
        ("daemon.light.stars", "import numpy as np\nr = np.random.default_rng()"),
    ],
)
def test_a_breach_is_found(module: str, source: str) -> None:
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("daemon.pipeline", "from calib_library.frame import FrameRecord"),
        ("daemon.pipeline", '"""SELECT what FROM the docstring."""'),
        ("daemon.pipeline", "text = 'Select a folder from the list'"),
        ("daemon.pipeline", "from astropy.stats import sigma_clip"),
        ("daemon.ledger.stacks", "db.execute('UPDATE stack SET stale = NULL')"),
        ("daemon.light.stars", "from pathlib import PurePath"),
        ("daemon.light.stars", "import numpy as np\nr = np.random.default_rng(1)"),
        ("daemon.light.stars", "from calib_library.kernels import kernel"),
        ("daemon.light.quality", "from daemon.light import stars\nfrom .stars import StarList"),
    ],
)
def test_what_is_allowed_is_allowed(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_no_modules_import_one_another_in_a_circle() -> None:
    uses = {
        module: set(imports(module, ast.parse(path.read_text(encoding="utf-8")))) & set(MODULES)
        for module, path in MODULES.items()
        if is_in(module, "calib_library")
    }
    # Raises CycleError, which names the circle.
    assert list(graphlib.TopologicalSorter(uses).static_order())


def test_every_pure_module_is_there() -> None:
    """A module that is renamed must not slip out of the rules."""
    assert set(MODULES) >= PURE
