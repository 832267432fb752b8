"""Where in a TOML file a key stands: tomllib does not tell, and a person needs the line."""

import re
import tomllib
from collections.abc import Mapping

Key = tuple[str | int, ...]
"""The way to a value, with the number of each array's element: `("watch", 0, "settle_s")`."""

_TOKEN = re.compile(
    r'''
      (?P<comment> \#[^\n]* )
    | (?P<string>  """(?:\\.|[^\\])*?"{3,5} | \'{3}.*?\'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*' )
    | (?P<newline> \n )
    | (?P<open>    [\[{] )
    | (?P<close>   [\]}] )
    | (?P<equals>  = )
    | (?P<dot>     \. )
    | (?P<bare>    [^\s"'\#\[\]{}=.]+ )
    | (?P<blank>   \s+? )
    ''',
    re.VERBOSE | re.DOTALL,
)


def key_lines(text: str) -> dict[Key, int]:
    """Find the line (from 1) of every key and section in a text that is valid TOML.

    Keys of an inline table are left out: they stand on their table's line.
    """
    lines: dict[Key, int] = {}
    arrays: dict[Key, int] = {}
    table: Key = ()
    names: list[str] = []
    line, depth, header, value = 1, 0, 0, False
    for token in _TOKEN.finditer(text):
        kind, written = token.lastgroup, token.group()
        if value:  # skip to the end of the value
            depth += (kind == "open") - (kind == "close")
            value = not (kind == "newline" and depth == 0)
        elif kind == "open":
            header += 1
        elif kind in {"bare", "string"}:
            names.append(_unquoted(written))
        elif kind == "equals":
            key = (*table, *names)
            for length in range(len(table) + 1, len(key) + 1):
                lines.setdefault(key[:length], line)
            names, value = [], True
        elif kind == "newline" and header:
            table = _table(tuple(names), arrays, is_array=header == 2)
            for length in range(1, len(table) + 1):
                lines.setdefault(table[:length], line)
            names, header = [], 0
        line += written.count("\n")
    if header:  # the last line has no newline
        table = _table(tuple(names), arrays, is_array=header == 2)
        lines.setdefault(table, line)
    return lines


def _table(names: Key, arrays: dict[Key, int], *, is_array: bool) -> Key:
    """Put the number of its element after each name that is an array of tables; counts `arrays`."""
    key: Key = ()
    for position, name in enumerate(names):
        key = (*key, name)
        if is_array and position == len(names) - 1:
            arrays[key] = arrays.get(key, -1) + 1
        if key in arrays:
            key = (*key, arrays[key])
    return key


def _unquoted(written: str) -> str:
    if written.startswith("'"):
        return written[1:-1]
    if written.startswith('"'):
        return str(tomllib.loads(f"key = {written}")["key"])
    return written


def line_of(lines: Mapping[Key, int], key: Key) -> int:
    """Find the line of a key, or of what stands nearest above it; 1 where nothing does."""
    return next((lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in lines), 1)
