"""When and where: the start of an exposure, the position, the side of the pier, the rotator."""

import datetime as dt
import re
from typing import Final

from calib_library import keywords as kw
from calib_library.cards import (
    Reader,
    compact,
    date_and_time,
    from_mjd,
    moment,
    number,
    sexagesimal,
    text_of,
)
from calib_library.frame import Card

_EARLIEST: Final = 1980
_LATEST: Final = 2200
"""Years; beyond these no camera's clock was set."""
_COUNTED_IN_HOURS: Final = re.compile(r"dwarf[\s_-]*(?:ii|2)\b", re.IGNORECASE)


def position(reader: Reader) -> tuple[float, float] | None:
    """Right ascension and declination, °: a string is in hours, a number in degrees."""
    instrument = f"{reader.text('TELESCOP')} {reader.text('INSTRUME')}"
    hours = bool(_COUNTED_IN_HOURS.search(instrument))
    for across, up in kw.POSITIONS:
        if across == "CRVAL1" and not (reader.text("CTYPE1") or "RA").startswith("RA"):
            continue
        ra, dec = (sexagesimal(reader.value(word)) for word in (across, up))
        if ra is not None:
            ra *= 15
        else:
            ra = number(reader.value(across))
            text = isinstance(reader.value(across), str)
            ra = ra * 15 if ra is not None and ra < 24 and (hours or text) else ra
        dec = number(reader.value(up)) if dec is None else dec
        if ra is None or dec is None or (ra, dec) == (0, 0):
            continue
        if 0 <= ra <= 360 and abs(dec) <= 90:
            reader.sources["ra_deg"], reader.sources["dec_deg"] = across, up
            return ra % 360, dec
    return None


def pier_side(card: Card) -> str | None:
    """Read the side of the pier, `east` or `west`."""
    written = compact(text_of(card.value) or "").removeprefix("pier")
    return {"east": "east", "e": "east", "west": "west", "w": "west"}.get(written)


def angle(card: Card) -> float | None:
    """Read an angle, °, as 0 … 360."""
    found = number(card.value)
    return None if found is None or abs(found) > 3600 else found % 360


def date_obs(reader: Reader, exposure_s: float | None) -> dt.datetime | None:
    """Find the start of the exposure, UTC."""
    found, keyword = _date_found(reader)
    if found is None or keyword is None:
        return None
    if not _EARLIEST <= found.year < _LATEST:
        reader.warn(f"{keyword} says {found:%Y-%m-%d}: the camera's clock was not set.")
        return None
    comment = reader.cards[keyword].comment.casefold()
    if re.search(r"\bend\b", comment) and exposure_s is not None:  # Dwarf 3
        found -= dt.timedelta(seconds=exposure_s)
    if re.search(r"\blocal\b", comment):
        reader.warn(f"{keyword} says in its comment that it is local time; it is read as UTC.")
    return found


def _date_found(reader: Reader) -> tuple[dt.datetime | None, str | None]:
    """Find a readable time and its keyword; a date alone borrows the time from beside it."""
    midnight: tuple[dt.datetime | None, str | None] = (None, None)
    for keyword in kw.DATES:
        split = date_and_time(reader.text(keyword) or "")
        if split is None:
            continue
        day, rest = split
        if rest:
            times = {keyword: rest}
        else:
            times = {f"{keyword}+{word}": reader.text(word) or "" for word in kw.TIMES}
            midnight = (moment(day, "00:00"), keyword) if midnight[0] is None else midnight
        for source, text in times.items():
            _, time = date_and_time(text) or (day, text)
            found = moment(day, time)
            if found is not None:
                reader.sources["date_obs"] = source
                return found, keyword
    for keyword, epoch in kw.JULIAN:
        days = number(reader.value(keyword))
        found = None if days is None else from_mjd(days - epoch)
        if found is not None:
            reader.sources["date_obs"] = keyword
            return found, keyword
    if midnight[1] is not None:
        reader.sources["date_obs"] = midnight[1]
        reader.warn(f"{midnight[1]} holds a date without a time: midnight is taken.")
    return midnight
