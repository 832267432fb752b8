"""What is deleted after a time, where the configuration asks for it; by default nothing is."""

import datetime as dt

from daemon.parts import Parts


def clear(parts: Parts, *, now: dt.datetime) -> int:
    """Delete calibrated lights and superseded masters that are older than the configuration keeps
    them; returns how many. A master with which a frame of a stack was calibrated stays: the stack
    may have to be made again.
    """
    settings = parts.config.library
    deleted = 0
    if settings.keep_calibrated_days:
        oldest = (now - dt.timedelta(days=settings.keep_calibrated_days)).timestamp()
        for path in (parts.root / "calibrated").rglob("*_c.fits"):
            if path.stat().st_mtime < oldest:
                path.unlink()
                deleted += 1
    if settings.keep_old_masters_days:
        limit = now - dt.timedelta(days=settings.keep_old_masters_days)
        used = {
            master
            for stack in parts.stacks.all()
            for member in parts.stacks.members(stack.id)
            for master in member.masters.values()
        }
        for one in parts.library.masters(current=False):
            path = parts.root / one.path
            old = one.superseded_by is not None and one.built_at < limit
            if old and one.id not in used and path.exists():
                path.unlink()
                deleted += 1
    if deleted:
        parts.log.info("CLEARED", f"{deleted} old calibrated lights and superseded masters")
    return deleted
