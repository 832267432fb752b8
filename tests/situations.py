"""A camera for the tests of wrong headers and wrong masters, whose frames are made to measure:
each `Situation` has a camera and a folder of its own.
"""

import datetime as dt
import zlib
from pathlib import Path

import numpy as np
from astropy.io import fits

NY, NX = 240, 320
NIGHT = dt.datetime(2026, 11, 20, 22, 0, tzinfo=dt.UTC)
PEDESTAL, NOISE = 500.0, 6.0  # ADU
Y, X = np.mgrid[0:NY, 0:NX]
VIGNETTE = 1.0 - 0.9 * (((X - NX / 2) / NX) ** 2 + ((Y - NY / 2) / NY) ** 2)
_SKY = np.random.default_rng(11)
HOT = np.zeros((NY, NX))
HOT.flat[_SKY.choice(HOT.size, 300, replace=False)] = _SKY.uniform(200, 2000, 300)
STARS = np.zeros((NY, NX))
for _x, _y, _flux in zip(
    _SKY.uniform(8, NX - 8, 90),
    _SKY.uniform(8, NY - 8, 90),
    _SKY.uniform(3e3, 6e4, 90),
    strict=True,
):
    STARS += _flux / (2 * np.pi * 1.3**2) * np.exp(-((X - _x) ** 2 + (Y - _y) ** 2) / (2 * 1.3**2))

BASE = {
    "SWCREATE": "N.I.N.A. 3.1",
    "EXPTIME": 30.0,
    "CCD-TEMP": -10.0,
    "SET-TEMP": -10.0,
    "GAIN": 100,
    "OFFSET": 50,
    "XBINNING": 1,
    "YBINNING": 1,
}


class Situation:
    """One camera's frames below one folder of the watched ones."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._folder = folder / name
        self._folder.mkdir(parents=True)
        self._count = 0

    def put(self, label, image, *, as_type="uint16", at=None, **cards) -> str:
        """Write one frame; a card that is None is left out. Returns the file's name."""
        self._count += 1
        name = f"{self.name}_{label}_{self._count:02d}.fits"
        seed = zlib.crc32(name.encode())
        values = image + np.random.default_rng(seed).normal(0, NOISE, image.shape)
        if as_type == "uint16":
            values = np.clip(np.rint(values), 0, 65535)
        hdu = fits.PrimaryHDU(values.astype(as_type))
        moment = at or NIGHT + dt.timedelta(minutes=self._count)
        header = BASE | {
            "INSTRUME": f"Camera {self.name}",
            "DATE-OBS": moment.isoformat(timespec="seconds").removesuffix("+00:00"),
        }
        for keyword, value in (header | {k.replace("_", "-"): v for k, v in cards.items()}).items():
            if value is not None:
                hdu.header[keyword] = value
        hdu.writeto(self._folder / name)
        return name

    def twin(self) -> None:
        """The first frame once more, under another name."""
        first = min(self._folder.iterdir())
        (self._folder / f"{self.name}_twin_99.fits").write_bytes(first.read_bytes())

    def darks(self, count=5, *, image=PEDESTAL + HOT, **cards) -> None:
        for _ in range(count):
            self.put("dark", image, **({"IMAGETYP": "DARK"} | cards))

    def biases(self, count=5, **cards) -> None:
        for _ in range(count):
            self.put(
                "bias",
                np.full((NY, NX), PEDESTAL),
                **({"IMAGETYP": "BIAS", "EXPTIME": 0.0} | cards),
            )

    def flats(self, count=5, *, level=25000.0, pedestal=PEDESTAL, **cards) -> None:
        for _ in range(count):
            self.put("flat", pedestal + level * VIGNETTE, **(FLAT | cards))

    def light(self, *, sky=300.0, **cards) -> None:
        image = PEDESTAL + HOT + (sky + STARS) * VIGNETTE
        self.put(
            "light", image, **({"IMAGETYP": "LIGHT", "FILTER": "R", "OBJECT": self.name} | cards)
        )


FLAT = {"IMAGETYP": "FLAT", "FILTER": "R", "EXPTIME": 2.0}
DAYS = dt.timedelta(days=1)
