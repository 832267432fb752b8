"""Hot-pixel residuals of darks for any temperature and exposure, beside the published figures.

A simulated sensor with truth: 0.5 % of hot pixels (log-normal rates, 0.57 ± 0.06 eV) over a smooth
level of 0.85 eV, an amplifier's glow, masters of 30 frames, lights of 300 s at −10 °C with 150 e-
of sky; masters that are "off" are colder. A figure is the rms of (dark − truth) / σ_L over the top
0.5 % of the pixels by dark current,
σ_L the noise of one light at each pixel. Hot rate and sky are chosen so that the exact master and
the one that is 1 °C off come out as published; all other rows then are predictions.

    PYTHONPATH=. python benchmarks/darks.py [--shape 2048x2048] [--seeds 3] [--json out.json]
"""

import argparse
import dataclasses
import datetime as dt
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calib_library import dark_compose, dark_model, dark_temperature
from calib_library.dark_compose import LightNoise, ReadRows
from calib_library.dark_model import DarkPlan, Energies, Rule, Source
from calib_library.frame import CalibrationKey, FrameType
from calib_library.match import MasterRecord
from daemon.simulator.camera import make_camera

Image = npt.NDArray[np.float32]

T_C, EXPOSURE_S = -10.0, 300.0
SKY_E, FRAMES = 150.0, 30
HOT_RATE_E_S, GLOW_E_S = 0.40, 0.25


class Bench:
    """One simulated sensor and the masters that were taken with it."""

    def __init__(self, shape: tuple[int, int], seed: int) -> None:
        self.camera = make_camera(
            shape,
            seed=seed,
            filters=(None,),
            hot_rate_e_s=HOT_RATE_E_S,
            hot_energy_spread_ev=0.06,
            glow_e_s=GLOW_E_S,
        )
        self.shape = shape
        self.rng = np.random.default_rng(seed)
        self.images: dict[int, Image] = {}
        self._records: dict[tuple[float, float], MasterRecord] = {}

    def master(self, temperature_c: float, exposure_s: float = EXPOSURE_S) -> MasterRecord:
        """Return the master dark of 30 frames at a temperature, taken once."""
        at = exposure_s, temperature_c
        if at not in self._records:
            number = len(self.images) + 1
            self.images[number] = self.camera.master_dark(
                exposure_s=exposure_s, temperature_c=temperature_c, frames=FRAMES, rng=self.rng
            )
            self._records[at] = record(number, exposure_s, temperature_c)
        return self._records[at]

    def rows(self) -> dict[int, ReadRows]:
        """Return the readers of all masters."""

        def reader(image: Image) -> ReadRows:
            return lambda first, last: image[first:last]

        return {number: reader(image) for number, image in self.images.items()}

    def energies(self, plan: DarkPlan) -> Energies:
        """Measure the energy of hot pixels on the plan's own pair; the level's is known."""
        for leg in plan.legs:
            if leg.other is not None:
                ends = (leg.near, leg.other)
                hot = [self._hot(end) for end in ends]
                found = dark_compose.hot_energy(
                    *hot, first_c=ends[0].temperature_c, second_c=ends[1].temperature_c
                )
                if found:
                    return Energies(found[0], self.camera.bulk_energy_ev, "measured")
        return Energies(dark_model.ENERGY_EV, self.camera.bulk_energy_ev)

    def _hot(self, source: Source) -> Image:
        image = self.images[source.master_id]
        return dark_compose.sampled_hot(lambda a, b: image[a:b], self.shape, bayer=False)[0]

    def plan(
        self,
        masters: Sequence[MasterRecord],
        *,
        temperature_c: float = T_C,
        exposure_s: float = EXPOSURE_S,
        exact_within_c: float = 0.0,
        nearest_within_c: float = 0.0,
    ) -> DarkPlan:
        """Plan as the library does: weights by the energies that the masters themselves tell."""

        def choose(energies: Energies | None) -> DarkPlan:
            return dark_model.plan(
                masters,
                exposure_s=exposure_s,
                temperature_c=temperature_c,
                energies=energies,
                exact_within_c=exact_within_c,
                nearest_within_c=nearest_within_c,
            )

        return choose(self.energies(choose(None)))

    def compose(self, plan: DarkPlan) -> Image:
        """Make the dark of a plan."""
        return dark_compose.compose(
            plan, self.rows(), shape=self.shape, bayer=False, with_error=False
        ).dark

    @property
    def light(self) -> LightNoise:
        """The noise of a light without dark current."""
        noise_e = math.sqrt(SKY_E + self.camera.read_noise_e**2)
        return LightNoise(noise_e / self.camera.e_per_adu, self.camera.e_per_adu)

    def wrong(self, dark: Image, exposure_s: float = EXPOSURE_S) -> npt.NDArray[np.float64]:
        """Return (dark − truth) / σ_L, (ny, nx)."""
        truth = self.camera.ideal_dark(exposure_s=exposure_s, temperature_c=T_C)
        electrons = self.camera.dark_rate(T_C).astype(np.float64) * exposure_s
        electrons += SKY_E * exposure_s / EXPOSURE_S + self.camera.read_noise_e**2
        return (dark - truth) * self.camera.e_per_adu / np.sqrt(electrons)

    def residual(self, dark: Image, exposure_s: float = EXPOSURE_S) -> float:
        """Return its rms over the hot pixels."""
        rate = self.camera.dark_rate(T_C)
        hot = rate > np.quantile(rate, 0.995)
        return float(np.sqrt(np.mean(self.wrong(dark, exposure_s)[hot] ** 2)))

    def glow_left(self, dark: Image) -> float:
        """Return the mean of (dark − truth), e-, where the glow exceeds half of its peak."""
        glow = self.camera.glow_e_s
        assert glow is not None
        truth = self.camera.ideal_dark(exposure_s=EXPOSURE_S, temperature_c=T_C)
        quiet = glow > 0.5 * glow.max()
        quiet.ravel()[self.camera.hot_index] = False
        return float(np.mean((dark - truth)[quiet]) * self.camera.e_per_adu)

    def fitted(self, header_c: float, masters: Sequence[MasterRecord]) -> float:
        """Return what a light at −10 °C tells where the header says something else."""
        plan = self.plan(masters, temperature_c=header_c)
        basis = dark_temperature.fit_basis(plan, masters)
        assert basis is not None
        pixels = dark_temperature.fit_pixels(basis, self.rows(), shape=self.shape, bayer=False)
        assert pixels is not None
        raw = self.camera.expose(
            np.full(self.shape, SKY_E / EXPOSURE_S, np.float32),
            filter_name=None,
            exposure_s=EXPOSURE_S,
            temperature_c=T_C,
            rng=self.rng,
        )
        found = dark_temperature.fit(raw, pixels, light=self.light, bayer=False)
        temperature_c, why = dark_temperature.believed(found, header_c)
        assert temperature_c is not None, why
        return temperature_c


def record(number: int, exposure_s: float, temperature_c: float) -> MasterRecord:
    """Return the record of a master; all of one camera."""
    empty = {field.name: None for field in dataclasses.fields(MasterRecord)}
    key = CalibrationKey(
        **{field.name: None for field in dataclasses.fields(CalibrationKey)}  # type: ignore[arg-type]
    )
    values = {
        "id": number,
        "frame_type": FrameType.DARK,
        "key": key,
        "exposure_s": exposure_s,
        "temperature_c": temperature_c,
        "frames": FRAMES,
        "path": Path(f"{number}.fits"),
        "built_at": NOW,
        "notes": (),
    }
    return MasterRecord(**(empty | values))  # type: ignore[arg-type]


NOW = dt.datetime(2026, 11, 20, tzinfo=dt.UTC)


def linear(plan: DarkPlan) -> DarkPlan:
    """Return the same without the per-pixel logarithms."""
    legs = tuple(dataclasses.replace(leg, log=False) for leg in plan.legs)
    return dataclasses.replace(plan, legs=legs)


def around(bench: Bench, gap: float) -> list[MasterRecord]:
    """Return masters that bracket −10 °C, half the gap on either side."""
    return [bench.master(T_C - gap / 2), bench.master(T_C + gap / 2)]


def extrapolated(bench: Bench, distance: float) -> float:
    """From masters at `distance` and 5 °C beyond it, by weights; the rules stop at 2 °C."""
    near, far = bench.master(T_C - distance), bench.master(T_C - distance - 5.0)
    pair = bench.plan([near, far], temperature_c=T_C - distance - 2.0)
    ends = T_C, T_C - distance, T_C - distance - 5.0
    leg = dataclasses.replace(
        pair.legs[0],
        near=Source.of(near),
        other=Source.of(far),
        hot=dark_model.weight_of_second(*ends, pair.energies.hot_ev),
        bulk=dark_model.weight_of_second(*ends, pair.energies.bulk_ev),
    )
    return bench.residual(bench.compose(dataclasses.replace(pair, legs=(leg,))))


def by_header(bench: Bench, wrong: float, *, fit: bool) -> float:
    """With masters 5 °C apart and a header that is `wrong`; fitted on a light or not."""
    masters = around(bench, 5.0)
    temperature_c = T_C + wrong
    if fit:
        temperature_c = bench.fitted(temperature_c, masters)
    return bench.residual(bench.compose(bench.plan(masters, temperature_c=temperature_c)))


def scaled(bench: Bench) -> float:
    """The glow (e-) that a dark 3 °C off adds, its bias taken off and scaled by exactly the right
    factor of its hot pixels.
    """
    energy = dark_model.ENERGY_EV
    k = dark_model.dark_current(T_C, energy) / dark_model.dark_current(T_C - 3.0, energy)
    pedestal = bench.camera.pedestal_adu
    return bench.glow_left(
        pedestal + np.float32(k) * (bench.images[bench.master(T_C - 3.0).id] - pedestal)
    )


def exposures(bench: Bench) -> float:
    """A light of 180 s from masters of 60 and 300 s."""
    masters = [bench.master(T_C, 60.0), bench.master(T_C)]
    plan = bench.plan(masters, exposure_s=180.0, exact_within_c=0.1)
    return bench.residual(bench.compose(plan), 180.0)


def both(bench: Bench) -> float:
    """A light of 180 s between 60 and 300 s, each between −12.5 and −7.5 °C."""
    masters = [bench.master(c, t) for t in (60.0, 300.0) for c in (-12.5, -7.5)]
    return bench.residual(bench.compose(bench.plan(masters, exposure_s=180.0)), 180.0)


def pair(gap: float, *, log: bool) -> Callable[[Bench], float]:
    """A row of the table: masters `gap` apart around the light's temperature."""

    def measure(bench: Bench) -> float:
        plan = bench.plan(around(bench, gap))
        assert plan.rule in {Rule.PAIR, Rule.HOT_PAIR, Rule.WIDE_PAIR}
        return bench.residual(bench.compose(plan if log else linear(plan)))

    return measure


def nearest(distance: float) -> Callable[[Bench], float]:
    """A row of the table: the nearest master, unscaled."""
    return lambda bench: bench.residual(bench.images[bench.master(T_C - distance).id])


ROWS: list[tuple[str, float | None, Callable[[Bench], float]]] = [
    ("exact master", 0.121, nearest(0.0)),
    ("nearest, unscaled, 0.25 °C off", 0.38, nearest(0.25)),
    ("nearest, unscaled, 0.5 °C off", 0.72, nearest(0.5)),
    ("nearest, unscaled, 1 °C off", 1.40, nearest(1.0)),
    ("nearest, unscaled, 2 °C off", 2.65, nearest(2.0)),
    ("nearest, unscaled, 5 °C off", 5.8, nearest(5.0)),
    ("sum-to-one, gap 2 °C", 0.118, pair(2.0, log=False)),
    ("sum-to-one, gap 5 °C", 0.128, pair(5.0, log=False)),
    ("sum-to-one, gap 10 °C", 0.204, pair(10.0, log=False)),
    ("sum-to-one, gap 20 °C", 0.63, pair(20.0, log=False)),
    ("as used (logarithms), gap 10 °C", 0.150, pair(10.0, log=True)),
    ("as used (logarithms), gap 20 °C", 0.38, pair(20.0, log=True)),
    ("extrapolated by 2 °C", 0.26, lambda bench: extrapolated(bench, 2.0)),
    ("extrapolated by 5 °C", 0.49, lambda bench: extrapolated(bench, 5.0)),
    ("extrapolated by 10 °C", 1.03, lambda bench: extrapolated(bench, 10.0)),
    ("header wrong by 0.5 °C, believed", 0.78, lambda bench: by_header(bench, 0.5, fit=False)),
    ("header wrong by 1 °C, believed", 1.55, lambda bench: by_header(bench, 1.0, fit=False)),
    ("header wrong by 0.5 °C, fitted", 0.131, lambda bench: by_header(bench, 0.5, fit=True)),
    ("header wrong by 1 °C, fitted", 0.131, lambda bench: by_header(bench, 1.0, fit=True)),
    ("other exposure: 180 s of 60 and 300 s", None, exposures),
    ("other exposure and gap 5 °C, four masters", None, both),
    ("glow left by a scaled dark, 3 °C off, e-", None, scaled),
    (
        "glow left by sum-to-one, gap 5 °C, e-",
        None,
        lambda bench: bench.glow_left(bench.compose(bench.plan(around(bench, 5.0)))),
    ),
]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--shape", default="1500x2000", help="ny×nx of the sensor")
    parser.add_argument("--seeds", type=int, default=3, help="sensors; the median is shown")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    ny, nx = map(int, options.shape.split("x"))
    figures: dict[str, list[float]] = {name: [] for name, _, _ in ROWS}
    for seed in range(options.seeds):
        bench = Bench((ny, nx), seed + 1)
        for name, _, measure in ROWS:
            figures[name].append(measure(bench))
    print(f"{'rms / σ_L of hot pixels':46s}{'published':>10s}{'here':>10s}{'ratio':>8s}")
    for name, published, _ in ROWS:
        here = statistics.median(figures[name])
        shown = "" if published is None else f"{published:10.3f}"
        ratio = f"{here / published:8.2f}" if published else ""
        print(f"{name:46s}{shown:>10s}{here:10.3f}{ratio}")
    timing(Bench((ny, nx), 1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def timing(bench: Bench) -> None:
    """Print what a light costs: processor time, best of three."""
    masters = around(bench, 5.0)
    plan = bench.plan(masters)
    basis = dark_temperature.fit_basis(plan, masters)
    assert basis is not None
    pixels = dark_temperature.fit_pixels(basis, bench.rows(), shape=bench.shape, bayer=False)
    assert pixels is not None
    raw = bench.images[1].astype(np.uint16)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("composing", lambda: bench.compose(plan)),
        (
            "finding the pixels of the fit",
            lambda: dark_temperature.fit_pixels(
                basis, bench.rows(), shape=bench.shape, bayer=False
            ),
        ),
        ("fitting", lambda: dark_temperature.fit(raw, pixels, light=bench.light, bayer=False)),
    ]
    megapixels = bench.shape[0] * bench.shape[1] / 1e6
    for name, run in cases:
        times = []
        for _ in range(3):
            began = time.process_time()
            run()
            times.append(time.process_time() - began)
        print(f"{name}: {1000 * min(times):.1f} ms of processor time for {megapixels:.1f} Mpx")


if __name__ == "__main__":
    main()
