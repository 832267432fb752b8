"""At the start: what a death between two steps left in the library is cleared away or completed.

The transaction is the commit point. What was written and not committed is an orphan and goes; what
was committed and not completed (the link, the picture) is completed; what is recorded and no longer
there is made again.
"""

import re
from pathlib import Path

from calib_library import atomic
from calib_library.catalogue import agenda, registry
from calib_library.errors import ImageError
from calib_library.images import product_file
from daemon.ledger.stacks import Stack
from daemon.parts import Parts
from daemon.report import preview
from daemon.stack import product

WRITTEN = ("masters", "stacks", "calibrated", "backup")
"""The folders of the library that the worker alone writes."""

_GENERATION = re.compile(r"_v\d{4,}\.fits$")


def heal(parts: Parts) -> None:
    """Bring files and database together. Raises OSError."""
    root = parts.root
    for folder in WRITTEN:
        for path in (root / folder).rglob(".*.tmp"):
            path.unlink(missing_ok=True)
    for stack in parts.stacks.all():
        if stack.path and not (root / stack.path).exists():
            parts.stacks.lost_product(stack)
            parts.log.warning("LOST", f"{stack.path} is gone; it will be made again")
        elif stack.path:
            _link(root, Path(stack.path))
            _picture(parts, stack, Path(stack.path))
        elif not stack.final_path and not parts.stacks.members(stack.id):
            parts.publisher.clear(stack)
        if stack.final_path and not (root / stack.final_path).exists():
            parts.stacks.lost_final(stack)
            parts.log.warning("LOST", f"{stack.final_path} is gone; it will be made again")
        elif stack.final_path:
            _link(root, Path(stack.final_path))
    for master in parts.library.masters():
        if not (root / master.path).exists():
            agenda.rebuild_due(parts.library, master.set_id)
            parts.log.warning("LOST", f"{master.path} is gone; it will be built again")


def sweep(parts: Parts) -> None:
    """Delete products that no row points at: their transaction never came."""
    root = parts.root
    used = parts.stacks.product_paths()
    if used:  # else it is a new or a lost database: nothing is known to be an orphan
        for path in (root / "stacks").rglob("*_v[0-9][0-9][0-9][0-9]*.fits"):
            if str(path.relative_to(root)) not in used:
                path.unlink()
    for orphan in registry.orphans(parts.library):
        orphan.unlink(missing_ok=True)


def _link(root: Path, newest: Path) -> None:
    """Let the link of constant name lead to this generation, where it does not."""
    link = newest.with_name(_GENERATION.sub(".fits", newest.name))
    there = root / link
    if not (there.is_symlink() and there.readlink() == Path(newest.name)):
        product.link_newest(root, link, newest)


def _picture(parts: Parts, stack: Stack, newest: Path) -> None:
    """Draw the picture of a written product, where there is none that is at least as new."""
    path = parts.root / newest
    picture = path.with_name(_GENERATION.sub(".png", newest.name))
    if picture.exists() and picture.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return
    try:
        image, _ = product_file.read_product(path)
        coverage = product_file.read_extra(path, "COVERAGE")
    except ImageError as error:
        parts.log.error("DAMAGED", f"{stack.label}: {error}; it will be made again")
        parts.stacks.lost_product(stack)
        return
    planes = image.reshape(-1, *image.shape[-2:])
    max_px = parts.config.stack.preview_px
    atomic.write_bytes(picture, preview.png(planes, coverage=coverage, max_px=max_px))
