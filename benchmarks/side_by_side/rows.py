"""The rows of the table: what each program is made to do, and the targets it is held to."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import by_siril
from side_by_side.bench import MEMORY_MB, Bench, Row, links
from side_by_side.process import Run, alternate

ALL_KINDS = ("bias", "dark", "flat")
OURS, SIRIL, SEIZA, CCDPROC, TUTORIAL = "lightkeeper", "siril", "seiza", "ccdproc", "tutorial"
SLOW = (CCDPROC, TUTORIAL)
"""Contestants that run once: their times are many times what is to be told apart."""

SMALL_MEMORY_MB = 600
"""The small profile: `memory_mb` of a machine with 2 GB."""

Contestants = dict[str, Callable[[], Run]]


def master(bench: Bench) -> Row:
    """A master of the darks, whole process with its write."""
    row = Row("master", "master of the darks, whole process with its write")
    frames, output = bench.frames("dark"), bench.scratch / "master.fits"

    def ours() -> Run:
        return bench.own_master(bench.library("master", kinds=("dark",), make=False))

    def siril() -> Run:
        process = bench.empty("process")
        return bench.run_siril(by_siril.master(bench.night / "sequences", process))

    def python(task: Callable[..., Run]) -> Run:
        output.unlink(missing_ok=True)
        return task("master", frames=frames, output=str(output))

    contestants: Contestants = {OURS: ours}
    if bench.siril:
        contestants[SIRIL] = siril
    if bench.seiza_python:
        contestants[SEIZA] = partial(python, bench.seiza)
    if bench.ccdproc_python:
        contestants[CCDPROC] = partial(python, bench.ccdproc)
    contestants[TUTORIAL] = partial(python, bench.hand)
    row.runs = alternate(contestants, rounds=bench.rounds, once=SLOW, say=bench.say)
    wall, cpu = _walls(row.runs), {name: run.cpu_s for name, run in row.runs.items()}
    row.ratio("wall time against siril", wall.get(OURS), wall.get(SIRIL), 1 / 4)
    row.ratio("processor time against siril", cpu.get(OURS), cpu.get(SIRIL), 1 / 5)
    row.ratio("wall time against sigma_clip", wall.get(OURS), wall.get(TUTORIAL), 1 / 15)
    row.ratio("wall time against seiza", wall.get(OURS), wall.get(SEIZA), 1 / 5)
    row.figure("peak memory", _peak(row.runs), 400, "MB")
    output.unlink(missing_ok=True)
    bench.drop("process", "master")
    return row


def light(bench: Bench) -> Row:
    """A light, file complete → stack updated, warm, everything on."""
    row = Row("light", "a light, file complete → stack updated, warm")
    some = bench.frames("light")[::2]  # with trails, and on both sides of the flip
    chosen = bench.empty("chosen")
    list(links(some, chosen, "light"))

    def ours() -> Run:
        return bench.stack_lights(bench.library("lights", kinds=ALL_KINDS, make=True), some)

    contestants: Contestants = {OURS: ours}
    if bench.siril:
        made = bench.empty("siril-masters")
        bench.run_siril(by_siril.masters(bench.night / "sequences", made))

        def siril() -> Run:
            process = bench.empty("process")
            for name in ("dark_stacked.fit", "pp_flat_stacked.fit"):
                (process / name).symlink_to(made / name)
            run = bench.run_siril(by_siril.lights(chosen, process))
            registered = len(list(process.glob("r_pp_light_*.fit")))
            if registered < len(some):
                bench.say(f"siril registered {registered} of {len(some)}")
            bench.drop("process")
            return run

        contestants[SIRIL] = siril
    if bench.seiza_python:
        masters = bench.seiza(
            "masters",
            bias=bench.frames("bias"),
            darks=bench.frames("dark"),
            flats=bench.frames("flat"),
            folder=str(bench.empty("seiza-masters")),
        ).told
        contestants[SEIZA] = partial(
            bench.seiza,
            "lights",
            frames=some,
            dark=masters["dark"],
            flat=masters["flat"],
            options={},
        )
    averages = bench.hand(
        "averages",
        darks=bench.frames("dark"),
        flats=bench.frames("flat"),
        folder=str(bench.empty("averages")),
    ).told
    contestants[TUTORIAL] = partial(
        bench.hand, "lights", frames=some, dark=averages["dark"], flat=averages["flat"]
    )
    row.runs = alternate(contestants, rounds=bench.rounds, once=SLOW, say=bench.say)
    ours_s = _each(row.runs, OURS)
    siril_s = row.runs[SIRIL].wall_s / len(some) if SIRIL in row.runs else None
    row.ratio("against siril's calibrate + register, its share", ours_s, siril_s, 1 / 2)
    row.ratio("against seiza's live push", ours_s, _each(row.runs, SEIZA), 1 / 2)
    row.ratio(
        "against the tutorial, its stack made again", ours_s, _each(row.runs, TUTORIAL), 1 / 30
    )
    if TUTORIAL in row.runs:
        alone = statistics.median(row.runs[TUTORIAL].told["registered_s"])
        row.notes.append(
            f"the tutorial without its stacking: {alone:.2f} s a light"
            + (f", ratio {ours_s / alone:.3f}" if ours_s is not None else "")
        )
    if OURS in row.runs:
        told = row.runs[OURS].told
        row.notes += _light_notes(told)
        row.notes.append(f"stacked {told['stacked']} of {len(some)}")
    bench.drop("lights", "chosen", "siril-masters", "seiza-masters", "averages")
    return row


def _light_notes(told: Mapping[str, Any]) -> list[str]:
    stages = sorted(told["stages_s"].items(), key=lambda item: -item[1][0])
    parts = ", ".join(f"{name} {1000 * wall:.0f}/{1000 * cpu:.0f}" for name, (wall, cpu) in stages)
    wall, cpu = told["wall_s"], told["cpu_s"]
    times = (
        f"first light {told['first_s']:.2f} s; warm median {statistics.median(wall):.3f} s, "
        f"slowest {max(wall):.2f} s, processor {statistics.median(cpu):.2f} s; "
        f"writing products {told['writing_s']:.2f} s a light"
    )
    return [times, f"a warm light by stage, wall/processor ms: {parts}"]


def cosmics(bench: Bench) -> Row:
    """The same with cosmic rays cleaned in every frame."""
    row = Row("cosmics", "a light with cosmic rays cleaned in the single frame")
    some = bench.frames("light")[::4]

    def cleaned(mode: str) -> Run:
        library = bench.library("lights", kinds=ALL_KINDS, make=True)
        return bench.stack_lights(library, some, clean=mode)

    row.runs = alternate(
        {mode: partial(cleaned, mode) for mode in ("always", "never")},
        rounds=min(bench.rounds, 2),
        say=bench.say,
    )
    row.ratio("against a light without", _each(row.runs, "always"), _each(row.runs, "never"), 1.6)
    library = bench.library("lights", kinds=ALL_KINDS, make=True)
    told = bench.own(
        "rays", library=str(library), watched=str(bench.watched), path=bench.frames("light")[1]
    ).told
    row.figure("pixels of the mask that differ from astroscrappy's", told["different"], 0, "px")
    row.ratio("against astroscrappy's time", told["seconds"], told["astroscrappy_s"], 1 / 20)
    row.notes.append(f"astroscrappy flags {told['flagged']} px")
    bench.drop("lights")
    return row


def large(small: Bench, bench: Bench) -> Row:
    """A light at 61 megapixels against one at 26, with the same depth of buffers."""
    row = Row("large", "a light of the large frame against one of the small")
    growth = _pixels(bench) / _pixels(small)

    def ours(one: Bench, memory_mb: int) -> Run:
        library = one.library("lights", kinds=ALL_KINDS, make=True)
        count = len(bench.frames("light"))
        return one.stack_lights(library, one.frames("light")[:count], memory_mb=memory_mb)

    row.runs = alternate(
        {
            "small": partial(ours, small, MEMORY_MB),
            "large": partial(ours, bench, round(MEMORY_MB * growth)),
        },
        rounds=small.rounds,
        say=small.say,
    )
    row.ratio("large against small", _each(row.runs, "large"), _each(row.runs, "small"), 2.5)
    row.notes.append(f"{growth:.2f} times the pixels, and times the memory for stacks")
    if "large" in row.runs:
        row.notes += _light_notes(row.runs["large"].told)
    for one in (small, bench):
        one.drop("lights")
    return row


def _pixels(bench: Bench) -> int:
    return Path(bench.frames("light")[0]).stat().st_size


def final(bench: Bench) -> Row:
    """The final stack of the registered lights: the same files for both."""
    row = Row("final", "final stack of the registered lights, whole process with its write")
    folder = bench.empty("registered")
    stacked = bench.stacked()
    bench.own("registered", library=str(stacked), watched=str(bench.watched), output=str(folder))
    output = bench.scratch / "final.fits"

    def ours() -> Run:
        output.unlink(missing_ok=True)
        return bench.own_final(folder, output)

    def siril(*, normalise: bool) -> Run:
        return bench.run_siril(
            by_siril.final(folder, bench.scratch / "siril", sequence="flat_", normalise=normalise)
        )

    contestants: Contestants = {OURS: ours}
    if bench.siril:
        contestants[SIRIL] = partial(siril, normalise=False)
        contestants["siril, normalising"] = partial(siril, normalise=True)
    contestants["lightkeeper, from raw frames"] = lambda: bench.command(
        "stack", "finish", config=stacked.with_suffix(".toml")
    )
    row.runs = alternate(contestants, rounds=bench.rounds, say=bench.say)
    wall = _walls(row.runs)
    row.ratio("against siril, which need not normalise", wall.get(OURS), wall.get(SIRIL), 1 / 2)
    for name in ("final.fits", "siril.fit"):
        (bench.scratch / name).unlink(missing_ok=True)
    bench.drop("registered")
    return row


def whole(bench: Bench) -> Row:
    """All frames, from the folder to the stack."""
    row = Row("whole", "the whole job: masters and lights, from the folder to the stack")
    count = len(bench.frames("light"))
    kinds = {
        "bias": bench.frames("bias"),
        "darks": bench.frames("dark"),
        "flats": bench.frames("flat"),
        "frames": bench.frames("light"),
    }

    def siril() -> Run:
        process = bench.empty("process")
        run = bench.run_siril(
            by_siril.whole(bench.night / "sequences", process, bench.scratch / "siril")
        )
        registered = len(list(process.glob("r_pp_light_*.fit")))
        bench.drop("process")
        return _with(run, registered=registered)

    contestants: Contestants = {OURS: partial(_daemon, bench, "whole", MEMORY_MB)}
    if bench.siril:
        contestants[SIRIL] = siril
    if bench.seiza_python:
        contestants[SEIZA] = lambda: bench.seiza(
            "whole", folder=str(bench.empty("seiza")), options={}, **kinds
        )
    contestants[TUTORIAL] = lambda: bench.hand("whole", folder=str(bench.empty("hand")), **kinds)
    row.runs = alternate(contestants, rounds=min(bench.rounds, 3), once=SLOW, say=bench.say)
    wall, cpu = _walls(row.runs), {name: run.cpu_s for name, run in row.runs.items()}
    row.ratio("wall time against siril", wall.get(OURS), wall.get(SIRIL), 1 / 3)
    row.ratio("processor time against siril", cpu.get(OURS), cpu.get(SIRIL), 1 / 3)
    row.ratio("wall time against the tutorial", wall.get(OURS), wall.get(TUTORIAL), 1 / 40)
    if OURS in row.runs:
        found = _accuracy(bench, bench.scratch / "whole")
        row.figure("lights that are not stacked", count - found["stacked"], 0, "of " + str(count))
        row.notes.append(f"frames: {found['states']}")
    for name, run in row.runs.items():
        told = {key: value for key, value in run.told.items() if key != "lost"}
        if told:
            row.notes.append(f"{name}: {told}")
    (bench.scratch / "siril.fit").unlink(missing_ok=True)
    bench.drop("whole", "seiza", "hand")
    return row


def memory(bench: Bench) -> Row:
    """The daemon's peak memory, one stack growing, in both profiles."""
    row = Row("memory", "the daemon's peak memory while one stack grows")
    row.runs = alternate(
        {
            "default": partial(_daemon, bench, "whole", MEMORY_MB),
            "small": partial(_daemon, bench, "whole", SMALL_MEMORY_MB),
        },
        rounds=1,
        say=bench.say,
    )
    row.figure("default profile", _peak(row.runs, "default"), 2500, "MB")
    row.figure(
        f"small profile (memory_mb = {SMALL_MEMORY_MB})", _peak(row.runs, "small"), 1200, "MB"
    )
    bench.drop("whole")
    return row


def _daemon(bench: Bench, name: str, memory_mb: int) -> Run:
    library = bench.empty(name)
    config = bench.scratch / f"{name}.toml"
    config.write_text(
        f'[library]\npath = "{library}"\n[[watch]]\npath = "{bench.watched}"\n'
        f"[stack]\nmemory_mb = {memory_mb}\n"
    )
    return bench.command("run", "--until-idle", config=config)


def accuracy(bench: Bench) -> Row:
    """Registration and resampling against truth."""
    row = Row("accuracy", "registration and resampling against truth")
    found = _accuracy(bench, bench.stacked())
    row.figure("registration of lights without trails, rms", found["clean_rms_px"], 0.01, "px")
    row.notes.append(
        f"all {found['stacked']} stacked lights, trails among them: median "
        f"{found['median_px']:.4f} px, worst {found['worst_px']:.4f} px"
    )
    warped = bench.own("resampling").told
    row.figure("warp, mean flux error", warped["flux_bias"], 1e-4, "")
    row.figure("warp, centroid rms", warped["centroid_px"], 0.005, "px")
    return row


def _accuracy(bench: Bench, library: Path) -> Mapping[str, float]:
    return bench.own(
        "accuracy",
        library=str(library),
        watched=str(bench.watched),
        truth=str(bench.night / "truth.json"),
    ).told


def kernels(bench: Bench) -> Row:
    """The first start ever, and a later one."""
    row = Row("kernels", "preparing the kernels at the start")
    cache = {"NUMBA_CACHE_DIR": str(bench.empty("kernels"))}
    first = bench.own("kernels", cache)
    later = [bench.own("kernels", cache) for _ in range(bench.rounds)]
    row.runs = {"first ever": first, "later": later[-1]}
    row.figure("first start ever", first.told["seconds"], 20, "s")
    seconds = statistics.median(run.told["seconds"] for run in later)
    row.figure("later starts", seconds, 1, "s")
    bench.drop("kernels")
    return row


ROWS: Mapping[str, Callable[[Bench], Row]] = {
    "kernels": kernels,
    "master": master,
    "light": light,
    "cosmics": cosmics,
    "accuracy": accuracy,
    "final": final,
    "whole": whole,
    "memory": memory,
}
"""In the order in which they run. `large` needs two nights and comes last."""


def _walls(runs: Mapping[str, Run]) -> dict[str, float]:
    return {name: run.wall_s for name, run in runs.items()}


def _peak(runs: Mapping[str, Run], name: str = OURS) -> float | None:
    return runs[name].peak_mb if name in runs else None


def _each(runs: Mapping[str, Run], name: str) -> float | None:
    """The median time of one light that a program measured itself."""
    return statistics.median(runs[name].told["wall_s"]) if name in runs else None


def _with(run: Run, **told: float) -> Run:
    return Run(run.wall_s, run.cpu_s, run.peak_mb, {**run.told, **told})
