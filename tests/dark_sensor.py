"""A simulated sensor, its masters, and what is wrong with a dark of it."""

import dataclasses

import numpy as np

from calib_library import dark_compose, dark_model
from calib_library.dark_compose import LightNoise
from calib_library.dark_model import Energies
from calib_library.frame import FrameType
from calib_library.match import MasterRecord
from daemon.simulator.camera import Camera, make_camera
from tests.records import master

SKY_E = 150.0
"""Of a light of 300 s, e- a pixel."""


@dataclasses.dataclass
class Sensor:
    camera: Camera
    rng: np.random.Generator
    frames: int = 30
    sky_e: float = SKY_E
    masters: dict[int, MasterRecord] = dataclasses.field(default_factory=dict)
    images: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def make(cls, shape=(384, 512), *, seed=3, **fields) -> "Sensor":
        options = {"hot_rate_e_s": 0.4, "hot_energy_spread_ev": 0.06, "glow_e_s": 0.05} | fields
        camera = make_camera(shape, seed=seed, filters=(None,), **options)
        return cls(camera, np.random.default_rng(seed + 100))

    @property
    def light(self) -> LightNoise:
        """Of a light without dark current."""
        noise_e = np.sqrt(self.sky_e + self.camera.read_noise_e**2)
        return LightNoise(float(noise_e / self.camera.e_per_adu), self.camera.e_per_adu)

    def take(self, exposure_s: float, temperature_c: float) -> MasterRecord:
        """Take a master dark into the library."""
        number = len(self.masters) + 1
        self.images[number] = self.camera.master_dark(
            exposure_s=exposure_s, temperature_c=temperature_c, frames=self.frames, rng=self.rng
        )
        self.masters[number] = master(
            number,
            FrameType.DARK,
            exposure_s=exposure_s,
            temperature_c=temperature_c,
            frames=self.frames,
        )
        return self.masters[number]

    def rows(self):
        return {
            number: lambda first, last, image=image: image[first:last]
            for number, image in self.images.items()
        }

    def plan(self, temperature_c, exposure_s=300.0, *, only=None, energies=None, **options):
        return dark_model.plan(
            list(self.masters.values()) if only is None else only,
            exposure_s=exposure_s,
            temperature_c=temperature_c,
            energies=energies or Energies(0.57, 0.85),
            **options,
        )

    def compose(self, plan, **options):
        shape = self.camera.shape
        bayer = self.camera.bayer_pattern is not None
        return dark_compose.compose(plan, self.rows(), shape=shape, bayer=bayer, **options)

    def hot(self, temperature_c) -> np.ndarray:
        """The top 0.5 % of the pixels by dark current."""
        rate = self.camera.dark_rate(temperature_c)
        return rate > np.quantile(rate, 0.995)

    def sigma(self, temperature_c, exposure_s=300.0) -> np.ndarray:
        """The noise of each pixel of a light, ADU."""
        electrons = self.camera.dark_rate(temperature_c).astype(float) * exposure_s
        electrons += self.sky_e * exposure_s / 300.0 + self.camera.read_noise_e**2
        return np.sqrt(electrons) / self.camera.e_per_adu

    def wrong(self, dark, temperature_c, exposure_s=300.0) -> np.ndarray:
        """Dark − truth, in the light's σ."""
        truth = self.camera.ideal_dark(exposure_s=exposure_s, temperature_c=temperature_c)
        return (dark - truth) / self.sigma(temperature_c, exposure_s)

    def residual(self, dark, temperature_c, exposure_s=300.0) -> float:
        """rms of that over the hot pixels: the figure of algorithms, section 1."""
        wrong = self.wrong(dark, temperature_c, exposure_s)[self.hot(temperature_c)]
        return float(np.sqrt(np.mean(wrong**2)))

    def expose(self, temperature_c, exposure_s=300.0, *, scene_e=None) -> np.ndarray:
        """A raw light: the sky, and what more is in `scene_e` (e- in the whole exposure)."""
        scene = np.full(self.camera.shape, self.sky_e / 300.0, np.float32)
        if scene_e is not None:
            scene += (scene_e / exposure_s).astype(np.float32)
        return self.camera.expose(
            scene,
            filter_name=None,
            exposure_s=exposure_s,
            temperature_c=temperature_c,
            rng=self.rng,
        )
