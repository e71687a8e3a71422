"""Climbs with known true effects: what the kept rungs really lose, by the rule that keeps them, by hand.

    python benchmarks/keep_rule.py [--climbs 2000] [--seed 1]

A climb has four rungs behind `ranges`. Each changes the outputs' SQNR and, apart from that, the true accuracy; its
select images are drawn anew from the same truth. Classification: right or wrong by image, paired. Detection-like: an
average precision by image, heavy-tailed, its bounds by the paired bootstrap of the judge. Told is the true loss of the
chosen candidate less that of `ranges`, in points, mean over the climbs: below 0 the climb has gained.

`points`: the drop's point decides, SQNR only where it is equal. `steps.better`: within the paired bounds the cleaner
outputs win.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgecnn.quantize.ladder.steps import Step, better
from edgecnn.recipe.recipe import RungName
from edgecnn.tasks import Drop
from edgecnn.tasks.classify.outcomes import paired_drop

IMAGES = (64, 128, 256, 500, 1000, 5000)
RUNGS: tuple[RungName, ...] = ("equalize", "bias", "clip", "adaround")
RIGHT = 0.75  # of the float model
RESAMPLES = 200
Rule = Callable[[Step, Step, Drop], bool]


@dataclass(frozen=True)
class World:
    """How a rung changes a model.

    Attributes:
        db: mean and deviation of a rung's change of SQNR.
        lost: points that `ranges` loses at 25 dB; with the noise's amplitude the loss falls.
        luck: deviation, in points, of what the SQNR doesn't tell.
        traps: share of rungs that look 2 dB cleaner and truly lose `trap` points.
    """

    name: str
    db: tuple[float, float]
    lost: float
    luck: float
    traps: float = 0.0
    trap: float = 0.0


WORLDS = (
    World("cleaner is better", (1.5, 2.0), 1.0, 0.0),
    World("cleaner is better, by and large", (1.5, 2.0), 1.0, 0.15),
    World("a hard model", (2.0, 2.5), 6.0, 0.5),
    World("most rungs harm", (-1.0, 2.0), 1.0, 0.15),
    World("one in fifty is a trap of 3 points", (1.5, 2.0), 1.0, 0.15, 0.02, 3.0),
)


def points_first(before: Step, after: Step, lost: Drop) -> bool:
    """The point of the drop decides."""
    assert before.sqnr_db is not None
    assert after.sqnr_db is not None
    return lost.point < 0 or (lost.point == 0 and after.sqnr_db >= before.sqnr_db)


def bounds_first(before: Step, after: Step, lost: Drop) -> bool:
    """The ladder's own."""
    return better(before, after, lost)[0]


RULES: dict[str, Rule] = {"points": points_first, "steps.better": bounds_first}


def step(rung: RungName, sqnr_db: float) -> Step:
    """As the ladder makes it."""
    return Step(rung, False, "", 0.0, 0, 1.0, 1.0, None, sqnr_db)


def classified(random: np.random.Generator, loss: float, base: np.ndarray, noise: float) -> np.ndarray:
    """(N,) bool: `base` with `noise` of the answers changed both ways, and `loss` of them lost besides."""
    lose, win = noise / 2 + max(loss, 0.0), noise / 2 + max(-loss, 0.0)
    chance = random.random(len(base))
    return np.where(base, chance >= lose / RIGHT, chance < win / (1 - RIGHT))


def detected(random: np.random.Generator, loss: float, base: np.ndarray, noise: float) -> np.ndarray:
    """(N,) float: `base` with a change for one image in five, heavy-tailed, and `loss` for all."""
    changed = random.random(len(base)) < 0.2
    return base - loss + np.where(changed, random.standard_t(3, len(base)) * noise, 0.0)


def mean_drop(first: np.ndarray, second: np.ndarray) -> Drop:
    """Of per-image values, by the paired bootstrap with the judge's resamples; of many images by what that tends to."""
    count = len(first)
    if count > 500:
        point, half = float((first - second).mean()), 1.645 * float((first - second).std()) / count**0.5
        return Drop(float(first.mean()), float(second.mean()), point - half, point + half, count, None)
    weights = np.random.RandomState(0).multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
    drops = weights @ (first - second)
    lower, upper = np.quantile(drops, (0.05, 0.95))
    return Drop(float(first.mean()), float(second.mean()), float(lower), float(upper), count, None)


def climbed(random: np.random.Generator, world: World, images: int, *, boxes: bool) -> dict[str, float]:
    """One climb: points of true loss of what each rule chooses, less those of `ranges`."""

    def expected(db: float) -> float:
        return world.lost / 100 * float(10 ** (-(db - 25.0) / 20))

    start = 25.0
    changes, luck = random.normal(*world.db, len(RUNGS)), random.normal(0.0, world.luck / 100, len(RUNGS))
    traps = random.random(len(RUNGS)) < world.traps
    changes, luck = np.where(traps, 2.0, changes), np.where(traps, world.trap / 100, luck)
    base = random.random(images) < RIGHT if not boxes else random.beta(0.8, 1.0, images)
    seeds = random.integers(0, 2**31, len(RUNGS) + 1)

    def answers(number: int, loss: float) -> np.ndarray:
        own = np.random.default_rng(int(seeds[number]))
        return detected(own, loss, base, 0.08) if boxes else classified(own, loss, base, 0.03)

    found = {}
    for name, rule in RULES.items():
        db, offset, current = start, 0.0, answers(0, expected(start))
        for number, rung in enumerate(RUNGS):
            after_db = db + float(changes[number])
            after_offset = offset + float(luck[number])
            tried = answers(1 + number, expected(after_db) + after_offset)
            lost = mean_drop(current, tried) if boxes else paired_drop(current, tried)
            if rule(step(RUNGS[max(number - 1, 0)], db), step(rung, after_db), lost):
                db, offset, current = after_db, after_offset, tried
        found[name] = 100 * (expected(db) + offset - expected(start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--climbs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(
        "| rungs | select images | " + " | ".join(f"{rule}, {kind}" for kind in ("classes", "boxes") for rule in RULES)
    )
    print("|---" * (2 + 2 * len(RULES)) + "|")
    worst = dict.fromkeys(RULES, -np.inf)
    for world in WORLDS:
        for images in IMAGES:
            cells = []
            for boxes in (False, True):
                random = np.random.default_rng([given.seed, images, boxes])
                found = [climbed(random, world, images, boxes=boxes) for _ in range(given.climbs)]
                for rule in RULES:
                    mean = float(np.mean([one[rule] for one in found]))
                    worst[rule] = max(worst[rule], mean)
                    cells.append(f"{mean:+.3f}")
            print(f"| {world.name} | {images:,} | {' | '.join(cells)} |", flush=True)
    print(", ".join(f"{rule}: at worst {value:+.3f} points" for rule, value in worst.items()))


if __name__ == "__main__":
    main()
