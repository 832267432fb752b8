"""The pieces of which reports are laid out on a terminal."""

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

HEADING = "bold"
FAINT = "dim"


def printable(text: str) -> str:
    """Replace what must not reach a terminal: control characters, undecodable bytes."""
    return "".join(character if character.isprintable() else "�" for character in text)


def table(*columns: str) -> Table:
    """Make a table without lines; `>` after a column's name puts it to the right."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=FAINT)
    for column in columns:
        right = column.endswith(">")
        made.add_column(
            column.rstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    return made


def cell(text: str, *, style: str = "") -> Text:
    """Make one cell of a table."""
    return Text(printable(text), style=style)


def section(heading: str) -> list[RenderableType]:
    """Make an empty line and a heading."""
    return [Text(), Text(printable(heading), style=HEADING)]


def line(name: str, text: str, *, style: str = "") -> Table:
    """Make a name and what is said of it."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=8, style=HEADING)
    grid.add_column(overflow="fold")
    grid.add_row(name, cell(text, style=style))
    return grid


def indented(text: str, *, style: str = "") -> Padding:
    """Make a paragraph two columns in."""
    return Padding(Text(printable(text), style=style, overflow="fold"), (0, 0, 0, 2))
