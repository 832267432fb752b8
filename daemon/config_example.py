"""The commented configuration that `lightkeeper init` writes."""

import json


def example(*, watch: str, library: str) -> str:
    """Write a commented configuration with these two folders and every setting at its default."""
    return _EXAMPLE.replace("@watch@", _basic_string(watch)).replace(
        "@library@", _basic_string(library)
    )


def _basic_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_EXAMPLE = """\
# Lightkeeper's configuration. `lightkeeper check-config` tells every mistake in it at once.
# Every setting stands at its default; one that is left out has it too. Folders may begin with ~; a
# relative folder counts from the folder of this file.

[library]
# Everything that Lightkeeper writes goes here: the database, masters, stacks, previews and
# status.log. On a local disk, and never inside a watched folder.
path = @library@

# Days after which calibrated lights, and superseded masters that no stack needs, are deleted;
# 0 keeps them for ever.
keep_calibrated_days = 0
keep_old_masters_days = 0

# A folder in which the camera's program writes frames, with all its subfolders. It is only read.
# There may be several: repeat [[watch]].
[[watch]]
path = @watch@

# A file must not have changed for so many seconds before it is looked at.
settle_s = 2.0

# Where the header is silent, a regular expression that is searched in the file's name may tell.
# Groups: type filter exposure exposure_ms gain offset temperature target camera binning.
# This one reads M8_Ha_300s_0001.fits:
#pattern = '(?P<target>[^_]+)_(?P<filter>[^_]+)_(?P<exposure>[0-9.]+)s'

# Where neither header nor file name tells, these do (names as above).
#defaults = { type = "light", camera = "My camera" }

[calibration]
# Frames of one kind before a master is built from them.
min_frames = 5

# Seconds without a new frame of the set before its master is built.
quiet_s = 60.0

# Values further from the median than so many standard deviations are left out of a master.
sigma = 3.0

# Darks are combined for each light's own temperature. Where there is only one, it is used as it is
# when it was taken within so many °C. Darks this close are also one set.
temperature_tolerance_c = 1.0

# Masters age. Flats of the light's own session come first; flats of another session are used up to
# so many days from the light, darks and biases likewise. 0 is no limit.
flat_days = 14.0
dark_days = 365.0
bias_days = 365.0

# Use only masters whose frames were taken before the light: then a light's calibration never
# changes afterwards, and flats at dawn are for the next night.
only_older = false

# One camera has several names where several programs or drivers write its frames, and then its
# darks fit its lights no longer. A name as a header has it = the name to use for new frames (best
# that of the masters there are: lightkeeper library).
#cameras = { "ZWO CCD ASI2600MM Pro" = "ZWO ASI2600MM Pro" }

[lights]
# Keep each calibrated light as a file of its own (they need as much disk as the raw frames, twice).
keep_calibrated = false

# With them the variance of each pixel (ADU squared, extension VARIANCE), for photometry: twice the
# disk again. The camera's gain must be known, from the header or from flats and biases.
keep_variance = false

# Remove cosmic rays before stacking: "auto" for single frames and stacks of fewer than 8 (larger
# ones reject them anyway), "always", "never".
clean_cosmics = "auto"

[stack]
# Memory for growing stacks, in MB. More of it rejects satellites and aeroplanes better; where a
# stack does not fit, it grows at half the size, or a quarter (26 megapixels need 1350, in colour
# 4000; docs/configuration.md). The final stack always has all pixels.
memory_mb = 1500

# Pixels of stacks and calibrated lights: "unit" (float32, 0 to 1, opens correctly everywhere),
# "adu" (float32 in ADU, for photometry), "uint16" (half the disk).
scale = "unit"

# The longer side of a preview, in pixels.
preview_px = 2000

[service]
# Seconds between two full scans of the watched folders (events tell of most frames at once).
rescan_s = 300.0

# Local time at which the night is over and is summed up.
end_of_night = "08:00"

# Backups of the database that are kept.
backup_keep = 7

# A frame that fails so often is given up, and says why.
max_attempts = 3
"""
