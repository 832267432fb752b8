"""What of the product is timed on the way of a light, and what each stage is called."""

from types import ModuleType

from calib_library import header, inspect
from calib_library.images import frame_file
from calib_library.images.hashing import Hashing
from daemon import calibration, placing, selfcheck
from daemon.ledger.ledger import Ledger
from daemon.ledger.stacks import Stacks
from daemon.light import background, calibrate, cosmic, quality, register, stars
from daemon.log import StatusLog
from daemon.publish import Publisher
from daemon.stack import live

POINTS: tuple[tuple[ModuleType | type, str, str], ...] = (
    (frame_file, "probe", "probe"),
    (header, "parse", "header"),
    (frame_file, "load", "load and hash"),
    (Hashing, "hexdigest", "load and hash"),  # what it is waited for
    (inspect, "examine", "inspect"),
    (calibration.Calibrator, "choose", "choose masters"),
    (calibration.Calibrator, "settle", "choose masters"),
    (calibration.Calibrator, "without_wrong_flat", "choose masters"),
    (calibration.Calibrator, "apply", "masters, bad pixels"),
    (calibrate, "calibrate", "calibrate"),
    (cosmic, "clean", "cosmic rays"),
    (background, "measure_background", "background"),
    (background, "cell_means", "background"),
    (stars, "detect", "stars"),
    (quality, "measure", "quality"),
    (quality, "transparency", "quality"),
    (quality, "background_plane", "quality"),
    (quality, "admit", "quality"),
    (selfcheck.SelfCheck, "look", "check of the calibration"),
    (register, "register", "register"),
    (placing, "place", "place"),
    (live, "add", "warp and add"),
    (live, "render", "render"),
    (Ledger, "add", "database"),
    (Ledger, "claim", "database"),
    (Ledger, "with_content", "database"),
    (Ledger, "finish", "database"),
    (Stacks, "open", "database"),
    (Stacks, "members", "database"),
    (Stacks, "reference", "database"),
    (Stacks, "set_reference", "database"),
    (Stacks, "add_member", "database"),
    (StatusLog, "info", "log"),
    (Publisher, "tick", "write products"),
)
"""Module or class, the function's name in it, the stage's name."""
