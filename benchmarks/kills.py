"""Kills the daemon at hundreds of seeded random instants of a night and compares the ends.

    python -m benchmarks.kills --kills 300 --seed 1 [--power] [--no-egain]

Each round is a whole night on fresh folders: lives that end with SIGKILL at a random instant, until
one comes to the end by itself. Each end is compared with that of a night without trouble.
"""

import argparse
import dataclasses
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from calib_library.frame import Card
from daemon.simulator.night import frames, small_plan
from daemon.simulator.writer import write_frame
from tests import killing, power
from tests.daemons import write_config

PATIENT = "[lights]\nkeep_calibrated = true\n[service]\nmax_attempts = 100"
LIVES = 12
"""Deaths in one night; the life after them comes to the end."""


def prepared(folder: Path, taken: list) -> Path:
    """A camera folder with the night's frames, and a configuration."""
    folder.mkdir()
    for frame in taken:
        write_frame(folder / "in", frame)
    return write_config(folder, PATIENT)


def without_egain(cards: Sequence[Card]) -> tuple[Card, ...]:
    """A camera whose gain must be measured: which light gets it must not depend on the moment."""
    return tuple(card for card in cards if card.keyword != "EGAIN")


def killed(config: Path, steps: int, rng: random.Random) -> int:
    """Kill the night's lives at random instants; the last one comes to the end. How many died?"""
    for deaths in range(LIVES):
        life = killing.start(config, "steps")
        if not killing.let_live(life, rng.randint(1, steps), rng):
            code = life.wait()
            assert code == 0, f"{config}: the night ended with code {code}"
            return deaths
        life.kill()
        life.wait()
    code = killing.start(config).wait()
    assert code == 0, f"{config}: the night ended with code {code}"
    return LIVES


def main() -> int:
    """Kill, compare, print one line a night; 1 where an end differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--power", action="store_true", help="cut the disk's power instead")
    parser.add_argument("--no-egain", action="store_true", help="the headers do not tell the gain")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    plan = small_plan(
        seed=21, shape=(256, 384), bias=0, darks=5, flats=5, flat_darks=5, lights=6, trails=1
    )
    taken = list(frames(plan))
    if options.no_egain:
        taken = [dataclasses.replace(one, cards=without_egain(one.cards)) for one in taken]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        # A life after a death has less to do: some come to the end all the same.
        steps = killing.undisturbed(prepared(root / "undisturbed", taken)) // 2
        expected = killing.end_state(root / "undisturbed" / "library")
        done = nights = different = 0
        while done < options.kills:
            nights += 1
            folder = root / f"night{nights}"
            config = prepared(folder, taken)
            library = folder / "library"
            if options.power:
                with power.disk(folder, library) as medium:
                    deaths = power.lives(config, medium, cuts=LIVES, steps=steps, rng=rng)
                    same = killing.end_state(library) == expected
            else:
                deaths = killed(config, steps, rng)
                same = killing.end_state(library) == expected
            different += not same
            done += deaths
            print(f"night {nights}: {deaths} deaths, {'the same' if same else 'DIFFERENT'}; {done}")
            sys.stdout.flush()
    print(f"{done} deaths in {nights} nights, {different} ends differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
