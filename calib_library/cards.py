"""Header cards as values: numbers that are strings, units, dates, and looking a field up."""

import datetime as dt
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from calib_library.frame import Card
from calib_library.keywords import KEYWORDS, NAMED, UNKNOWN

T = TypeVar("T")
Value = str | int | float | bool | None

_QUANTITY: Final = re.compile(
    r"([+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eEdD][+-]?\d+)?)\s*([^\d,.:][^\d,:]{0,15})?"
)
_SEXAGESIMAL: Final = re.compile(
    r"([+-]?)\s*(\d{1,3})(?:\s*[:hd°]\s*|\s+)(\d{1,2})(?:\s*[:m'′]\s*|\s+)"
    r"(\d{1,2}(?:[.,]\d*)?)\s*[s\"″]?"
)
_DATE: Final = re.compile(
    r"(?P<y>\d{4})[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})|(?P<ymd>\d{8})(?=T|$)|"
    r"(?P<d2>\d{1,2})/(?P<m2>\d{1,2})/(?P<y2>\d{4}|\d{2})"
)
_TIME: Final = re.compile(
    r"[T\s]?\s*(\d{1,2}):(\d{1,2})(?::(\d{1,2}(?:[.,]\d*)?))?\s*"
    r"(?:Z|UTC?|([+-])(\d{2}):?(\d{2}))?",
    re.IGNORECASE,
)
_MJD_EPOCH: Final = dt.datetime(1858, 11, 17, tzinfo=dt.UTC)


def collapse(text: str) -> str:
    """One line, without blanks at the ends or doubled inside."""
    return " ".join(text.split())


def compact(text: str) -> str:
    """Casefolded, without blanks, `_` and `-`: for comparing names."""
    return re.sub(r"[\s_-]", "", text.casefold())


def text_of(value: Value) -> str | None:
    """Read a value as clean text; None where it says nothing (blank, `Unknown`, `n/a`)."""
    if value is None or isinstance(value, bool):
        return None
    written = collapse(value) if isinstance(value, str) else f"{value:.10g}"
    return None if compact(written) in UNKNOWN else written


def quantity(value: Value) -> tuple[float, str] | None:
    """Read a finite number and its unit (empty without one); None for anything else.

    Understands numbers in strings, a decimal comma, Fortran's exponent `D`, a unit behind.
    """
    if value is None or isinstance(value, bool):
        return None
    if not isinstance(value, str):
        return (float(value), "") if abs(value) < 1e300 else None
    found = _QUANTITY.fullmatch(value.strip())
    if found is None:
        return None
    number = float(re.sub("[dD]", "e", found[1]).replace(",", "."))
    return (number, (found[2] or "").strip()) if math.isfinite(number) else None


def number(value: Value) -> float | None:
    """Read a finite number, whatever its unit; None for anything else."""
    found = quantity(value)
    return None if found is None else found[0]


def truth(value: Value) -> bool:
    """Whether a value means yes: True, 1, `T`, `true`, `yes`."""
    if isinstance(value, str):
        return compact(value) in {"t", "true", "yes", "y", "1"}
    return value is not None and value != 0


def sexagesimal(value: Value) -> float | None:
    """`19 59 36`, `+22:43:16.5`, `19h59m36s` → 19.993…; None for anything else."""
    found = _SEXAGESIMAL.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return None
    size = int(found[2]) + int(found[3]) / 60 + float(found[4].replace(",", ".")) / 3600
    return -size if found[1] == "-" else size


def date_and_time(text: str) -> tuple[dt.date, str] | None:
    """Split a date, and what follows it, off a text; None where it does not begin with one.

    ISO 8601 with `-`, `/` or nothing between, and FITS' old `dd/mm/yy` (a year below 70 is 20yy).
    """
    found = _DATE.match(text.strip())
    if found is None:
        return None
    if found["y"]:
        parts = (found["y"], found["m"], found["d"])
    elif found["ymd"]:
        parts = (found["ymd"][:4], found["ymd"][4:6], found["ymd"][6:])
    else:
        parts = (found["y2"], found["m2"], found["d2"])
    year, month, day = (int(part) for part in parts)
    if len(parts[0]) == 2:
        year += 2000 if year < 70 else 1900
    try:
        return dt.date(year, month, day), text.strip()[found.end() :].strip()
    except ValueError:
        return None


def moment(day: dt.date, time: str) -> dt.datetime | None:
    """Put a day and its time together, UTC unless there is a zone (`Z`, `-0700`); None if no time.

    Fractions of any length and the second 60 are understood.
    """
    found = _TIME.fullmatch(time.strip())
    if found is None or int(found[1]) > 24 or int(found[2]) > 60:
        return None
    seconds = float((found[3] or "0").replace(",", "."))
    shift = dt.timedelta()
    if found[4]:
        shift = dt.timedelta(hours=int(found[5]), minutes=int(found[6]))
        shift = -shift if found[4] == "-" else shift
    start = dt.datetime.combine(day, dt.time(), tzinfo=dt.UTC)
    try:
        return (
            start
            + dt.timedelta(hours=int(found[1]), minutes=int(found[2]))
            + dt.timedelta(microseconds=round(seconds * 1e6))
            - shift
        )
    except OverflowError:
        return None


def from_mjd(days: float) -> dt.datetime | None:
    """Turn a modified Julian date into a moment, to 1 ms, all a double holds; None if absurd."""
    if not 15_000 < days < 120_000:
        return None
    return _MJD_EPOCH + dt.timedelta(milliseconds=round(days * 86_400_000))


class Reader:
    """Looks fields up in the header, then in the file's name, then in the defaults.

    It remembers in `sources` where each field was found, and collects `warnings`.
    """

    def __init__(
        self, cards: Sequence[Card], named: Mapping[str, str], defaults: Mapping[str, str]
    ) -> None:
        self.cards: dict[str, Card] = {}
        self.prose: list[str] = []
        """The texts of COMMENT and HISTORY."""
        self.sources: dict[str, str] = {}
        self.warnings: list[str] = []
        self._named = named
        self._defaults = defaults
        for card in cards:
            keyword = card.keyword.strip().upper()
            if keyword in {"COMMENT", "HISTORY"}:
                self.prose.append(str(card.value or ""))
            elif keyword not in self.cards or self.cards[keyword].value in {None, ""}:
                self.cards[keyword] = card._replace(keyword=keyword)

    def value(self, keyword: str) -> Value:
        """Give a keyword's value; None where it is missing."""
        card = self.cards.get(keyword)
        return None if card is None else card.value

    def text(self, keyword: str) -> str | None:
        """Give a keyword's text; None where it says nothing."""
        return text_of(self.value(keyword))

    def in_header(self, field: str, read: Callable[[Card], T | None]) -> T | None:
        """Read the first keyword of a field that `read` understands; None without one."""
        for keyword in KEYWORDS.get(field, ()):
            card = self.cards.get(keyword)
            found = None if card is None else read(card)
            if found is not None:
                self.sources[field] = keyword
                return found
        return None

    def elsewhere(self, field: str, read: Callable[[Card], T | None]) -> T | None:
        """Read a field from the file's name, else from a default; None if neither says it."""
        for source, texts in (("pattern", self._named), ("default", self._defaults)):
            for name in NAMED.get(field, ()):
                found = read(Card(name, texts[name])) if texts.get(name) else None
                if found is not None:
                    self.sources[field] = source
                    return found
        return None

    def find(self, field: str, read: Callable[[Card], T | None]) -> T | None:
        """Read a field from the header, else from elsewhere; None if nothing says it."""
        found = self.in_header(field, read)
        return self.elsewhere(field, read) if found is None else found

    def warn(self, sentence: str) -> None:
        """Note an oddity of this header, as a sentence."""
        self.warnings.append(sentence)
