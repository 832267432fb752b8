"""What works on frames, put together over one connection."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from sqlite_utils import Database

from calib_library.ageing import Ageing
from calib_library.library import CalibrationLibrary
from daemon import remake
from daemon.calibration import KEPT_DARKS, Calibrator
from daemon.config import Config
from daemon.ledger.ledger import Ledger
from daemon.ledger.stacks import Stacks
from daemon.log import StatusLog
from daemon.pipeline import Pipeline
from daemon.publish import Publisher
from daemon.reader import Reader
from daemon.stack.store import LiveStacks

MEGABYTE = 1_000_000
SMALL_MB = 1000
"""Memory for growing stacks below which the rest of the process is sparing too."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """The collaborators. They belong to the thread of their connection."""

    config: Config
    log: StatusLog
    beat: remake.Beat
    library: CalibrationLibrary
    ledger: Ledger
    stacks: Stacks
    live: LiveStacks
    pipeline: Pipeline
    publisher: Publisher

    @property
    def root(self) -> Path:
        """The library's folder."""
        return self.config.library.path


def compose(
    config: Config,
    db: Database,
    log: StatusLog,
    *,
    quiet_s: Callable[[], float],
    beat: remake.Beat,
) -> Parts:
    """Put the parts together. `quiet_s` tells how long a set must be quiet before its master is
    built; `beat` is called with what is being done whenever something takes time.
    """
    settings = config.calibration
    root = config.library.path
    ledger, stacks = Ledger(db), Stacks(db)
    library = CalibrationLibrary(
        db,
        root,
        temperature_tolerance_c=settings.temperature_tolerance_c,
        ageing=Ageing(
            flat_days=settings.flat_days,
            dark_days=settings.dark_days,
            bias_days=settings.bias_days,
            only_older=settings.only_older,
        ),
    )
    calibrator = Calibrator(
        library,
        root=root,
        min_frames=settings.min_frames,
        quiet_s=quiet_s,
        kept_darks=KEPT_DARKS if config.stack.memory_mb >= SMALL_MB else 1,
    )
    images = LiveStacks(
        memory_bytes=config.stack.memory_mb * MEGABYTE,
        # A replay takes the frames' way again, which is put together below.
        replay=lambda stack, members: remake.replay(pipeline, stack, members, beat),
        tell=lambda sentence: log.warning("MEMORY", sentence),
    )
    pipeline = Pipeline(
        config=config,
        library=library,
        ledger=ledger,
        stacks=stacks,
        live=images,
        calibrator=calibrator,
        reader=Reader(),
        log=log,
    )
    publisher = Publisher(
        config=config, ledger=ledger, library=library, stacks=stacks, live_stacks=images, log=log
    )
    return Parts(config, log, beat, library, ledger, stacks, images, pipeline, publisher)
