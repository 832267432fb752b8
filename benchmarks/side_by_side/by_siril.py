"""The scripts that siril is given: those it is delivered with, with links for conversion and the
comparable rejection (`rej s 3 3`; its `rej 3 3` is winsorized). For siril 1.0.
"""

from pathlib import Path

HEAD = "requires 1.0.0\n"
SIGMA = "rej s 3 3"
KINDS = ("bias", "flat", "dark")


def master(sequences: Path, process: Path) -> str:
    """Make one master dark."""
    return (
        f"{HEAD}cd {sequences / 'dark'}\nlink dark -out={process}\ncd {process}\n"
        f"stack dark {SIGMA} -nonorm\nclose\n"
    )


def masters(sequences: Path, process: Path) -> str:
    """Make all masters from the linked sequences, in `process`."""
    links = "".join(f"cd {sequences / kind}\nlink {kind} -out={process}\n" for kind in KINDS)
    return (
        f"{HEAD}{links}cd {process}\n"
        f"stack bias {SIGMA} -nonorm\n"
        "preprocess flat -bias=bias_stacked\n"
        f"stack pp_flat {SIGMA} -norm=mul\n"
        f"stack dark {SIGMA} -nonorm\n"
        "close\n"
    )


def lights(folder: Path, process: Path) -> str:
    """Calibrate (bad pixels by the dark) and register the lights of a folder; the masters lie in
    `process`.
    """
    return (
        f"{HEAD}cd {folder}\nlink light -out={process}\ncd {process}\n"
        "preprocess light -dark=dark_stacked -flat=pp_flat_stacked -cc=dark\n"
        "register pp_light\nclose\n"
    )


def final(process: Path, output: Path, *, sequence: str, normalise: bool) -> str:
    """Stack registered lights."""
    norm = "-norm=addscale -output_norm" if normalise else "-nonorm"
    return f"{HEAD}cd {process}\nstack {sequence} {SIGMA} {norm} -out={output}\nclose\n"


def whole(sequences: Path, process: Path, output: Path) -> str:
    """Do the whole job, from raw frames to the stack."""
    head, end = len(HEAD), -len("close\n")
    steps = [
        masters(sequences, process),
        lights(sequences / "light", process),
        final(process, output, sequence="r_pp_light", normalise=True),
    ]
    return HEAD + "".join(step[head:end] for step in steps) + "close\n"
