"""The bytes of FITS header cards ↔ cards; those that a program wrote badly are mended."""

import math
import re
from collections.abc import Sequence

from calib_library.frame import Card

CARD = 80
"""bytes of one header card."""

_KEYWORD = re.compile(r"[A-Z0-9_-]{1,8}")
_STRING = re.compile(rb"\s*'((?:[^']|'')*)(?:'|$)[^/]*(?:/(.*))?", re.DOTALL)
_INTEGER = re.compile(r"[+-]?\d+")
_FLOAT = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([EeDd][+-]?\d+)?")
_COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+([Ee][+-]?\d+)?")


def parse_cards(images: Sequence[bytes]) -> tuple[Card, ...]:
    """Header card images → cards, blank ones left out. Never raises."""
    return tuple(card for card in map(parse_card, images) if card.keyword)


def parse_card(image: bytes) -> Card:
    """One card of 80 bytes (more with its CONTINUE cards) → keyword, value, comment. Never raises.

    Follows the FITS standard 4.0, section 4, and mends what programs write beside it: a decimal
    comma (`6,4E-05`), non-ASCII text (UTF-8, else Latin-1), control characters. A value that no
    rule reads, `nan` or an infinity among them, is None.
    """
    keyword, field = image[:8], image[8:CARD]
    if image.startswith(b"HIERARCH ") and b"=" in field:
        keyword, _, field = image[9:CARD].partition(b"=")
    elif field[:1] == b"=":
        field = field[1:]
    else:
        return Card(_text(keyword), _text(image[8:]))
    name = _text(keyword).upper()
    if quoted := _STRING.match(field):
        value, comment = _joined(quoted, image)
        return Card(name, _mended(name, value), comment)
    token, _, remark = field.partition(b"/")
    return Card(name, _number(_text(token)), _text(remark))


def parse_value(keyword: str, text: str) -> str | int | float | bool | None:
    """A card's value that stands alone, as XISF has it: in quotes a string, else a number; what is
    neither is a string all the same. Never raises.
    """
    text = text.strip()
    if quoted := _STRING.match(text.encode()):
        return _mended(keyword, _text(quoted[1].replace(b"''", b"'"), leading=True))
    # Longer than a card no number is; Python refuses to read those of thousands of digits.
    value = _number(text) if len(text) <= CARD else None
    return (_text(text.encode()) or None) if value is None else value


def format_card(card: Card) -> bytes | None:
    """A card → its 80 bytes (more for a long COMMENT or HISTORY), in the fixed format.

    None for what needs more than one card or is not of the standard: keywords of more than eight
    characters, texts of more than 68. A comment that does not fit is cut. The card's texts are
    printable ASCII, its value finite.
    """
    keyword, value = card.keyword, card.value
    if keyword in {"COMMENT", "HISTORY"}:
        text = str(value)
        lines = [text[i : i + 72] for i in range(0, len(text), 72)] or [""]
        return b"".join(f"{keyword:8}{line}".ljust(CARD).encode("ascii") for line in lines)
    if not _KEYWORD.fullmatch(keyword):
        return None
    if isinstance(value, str):
        quoted = value.replace("'", "''")
        field = f"'{quoted:8}'".ljust(20)
    elif isinstance(value, bool):
        field = f"{'T' if value else 'F':>20}"
    elif isinstance(value, float):
        field = f"{float.__repr__(value).upper():>20}"
    else:
        field = f"{'' if value is None else value:>20}"
    if len(field) > 70:
        return None
    remark = f" / {card.comment}" if card.comment else ""
    return f"{keyword:8}= {field}{remark}"[:CARD].ljust(CARD).encode("ascii")


def _joined(first: re.Match[bytes], image: bytes) -> tuple[str, str]:
    """Read the string of a card and of the CONTINUE cards that were joined to it."""
    value, comment = first[1].rstrip(), first[2] or b""
    for i in range(CARD, len(image), CARD):
        more = _STRING.match(image[i + 8 : i + CARD])
        if more is None:
            break
        value = value.removesuffix(b"&") + more[1].rstrip()
        comment += more[2] or b""
    return _text(value.replace(b"''", b"'"), leading=True), _text(comment)


def _text(raw: bytes, *, leading: bool = False) -> str:
    """Bytes of a header as printable text, blanks stripped (`leading` ones kept if asked)."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return text.rstrip() if leading else text.strip()


def _mended(keyword: str, value: str) -> str:
    """Give a number in quotes its decimal point for a comma; `2,2` of a binning stays."""
    if _COMMA_NUMBER.fullmatch(value.strip()) and not re.search("BIN|SUM", keyword):
        return value.replace(",", ".")
    return value


def _number(text: str) -> int | float | bool | None:
    if text in ("T", "F"):
        return text == "T"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        value = float(re.sub("[Dd]", "E", text.replace(",", ".")))
        return value if math.isfinite(value) else None
    return None
