"""What is wrong with a configuration, as sentences for a person: from the errors of tomllib and
pydantic.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from daemon.toml_lines import Key

Sections = Mapping[str, type[BaseModel]]
"""Section → the model whose fields are its keys."""

_SYNTAX = re.compile(r"(?P<what>.*?) \(at line (?P<line>\d+), column (?P<column>\d+)\)", re.DOTALL)

_REMEDIES = (
    ("Unescaped '\\'", "put a path or a pattern with backslashes in single quotes: 'C:\\frames'"),
    ("Invalid hex value", "put a path with backslashes in single quotes: 'C:\\frames'"),
    ("Invalid value", 'text must stand in quotes: "…"; truth is true or false'),
    ("Cannot overwrite", "this key stands here twice; remove one"),
    ("Cannot declare", "this section stands here twice; put its keys together"),
    ("Expected '='", "a line is: key = value; or a section: [name]; or a comment: # …"),
    ("Illegal character '\\n'", "a quote is opened and not closed on this line"),
    ("Unterminated string", "a quote is opened and never closed"),
)


def syntax(name: str, message: str) -> str:
    """Say what tomllib found wrong in the file called `name`, where, and what to do."""
    found = _SYNTAX.fullmatch(message)
    what = found["what"] if found else message
    place = f":{found['line']}" if found else ""
    at = f" (column {found['column']})" if found else ""
    remedy = next((remedy for sign, remedy in _REMEDIES if sign in what), "correct this line")
    return f"{name}{place}: not TOML: {what}{at}; {remedy}"


def mistakes(details: ErrorDetails, sections: Sections) -> Iterator[tuple[Key, str]]:
    """Say in sentences what pydantic found at one place."""
    key: Key = details["loc"]
    context = details.get("ctx", {})
    match details["type"]:
        case "missing":
            yield _missing(key)
        case "extra_forbidden":
            yield key, _unknown_key(key, sections)
        case "keys":
            for name, sentence in context["keys"].items():
                yield (*key, name), f"[{_section(key)}] defaults: {sentence}"
        case "tuple_type":
            yield key, "[watch] must have two brackets, [[watch]]: there may be several"
        case "too_short":  # also told when every element has mistakes of its own
            if not details["input"]:
                yield _missing(("watch",))
        case "model_type" | "model_attributes_type":
            name = _section(key)
            yield key, f"{name} must be a section: write [{name}] on a line of its own"
        case _:
            yield key, f"[{_section(key)}] {key[-1]} {_wrong_value(details)}"


_WRONG = {
    "greater_than_equal": "is {given}; it must be {ge:g} or more",
    "greater_than": "is {given}; it must be more than {gt:g}",
    "less_than_equal": "is {given}; it must be {le:g} or less",
    "int_type": "must be a whole number{bare}, not {given}",
    "int_from_float": "must be a whole number{bare}, not {given}",
    "float_type": "must be a number{bare}, not {given}",
    "finite_number": "must be a finite number, not {given}",
    "bool_type": "must be true or false{bare}, not {given}",
}


def _wrong_value(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    given = details["input"]
    if details["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return f"must be {one_of(given, choices)}"
    if sentence := _WRONG.get(details["type"]):
        bare = ", without quotes" if isinstance(given, str) else ""
        return sentence.format(given=shown(given), bare=bare, **context)
    return details["msg"]


def _missing(key: Key) -> tuple[Key, str]:
    match key:
        case ("library",):
            return key, (
                "[library] is missing: add `[library]` and below it"
                ' `path = "/folder/for/the/library"`'
            )
        case ("watch",):
            return key, (
                "[[watch]] is missing, so that nothing is watched: add `[[watch]]` and below it"
                ' `path = "/folder/of/the/camera"`'
            )
        case _:
            return key[:-1], f'[{_section(key)}] {key[-1]} is missing: add `{key[-1]} = "/folder"`'


def _unknown_key(key: Key, sections: Sections) -> str:
    name = str(key[-1])
    if len(key) == 1:
        if homes := _homes(name, sections):
            return f"{name} must stand below {homes}, not at the top"
        return f"unknown section {unknown(name, list(sections))}"
    section = _section(key)
    known = list(sections[section].model_fields)
    if not difflib.get_close_matches(name, known, 1) and (homes := _homes(name, sections)):
        return f"[{section}] unknown key {name}; it belongs below {homes}"
    return f"[{section}] unknown key {unknown(name, known)}"


def _homes(name: str, sections: Sections) -> str:
    """Name the sections that have this key."""
    homes = (section for section, model in sections.items() if name in model.model_fields)
    return " or ".join(f"[{home}]" for home in homes)


def _section(key: Key) -> str:
    return str(key[0])


def unknown(name: str, known: Sequence[str]) -> str:
    """`nmae; did you mean name?`, or what there is."""
    near = difflib.get_close_matches(name.lower(), known, 1)
    return f"{name}; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}")


def one_of(given: object, choices: Sequence[str]) -> str:
    """`one of a, b, not "c"`, and which of them was probably meant."""
    near = difflib.get_close_matches(str(given).lower(), choices, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"one of {', '.join(choices)}, not {shown(given)}{hint}"


def shown(value: object) -> str:
    """Write a value nearly as it stands in the file, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
