"""What one rung of the ladder brought, what it cost, and the rules that compare rungs with a budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgecnn.measure import stats
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.recipe import RungName
from edgecnn.tasks import Drop

# held: the drop is at most half the budget; within: at most the budget; missed: above it; unasked: there is no budget.
State = Literal["unasked", "held", "within", "missed"]
# A float layer's cost in INT8 layers: FP16 tensor cores do half, FP32 vector units a quarter of the INT8 products.
COST = {"float16": 2.0, "float32": 4.0}
ROUNDING = 1e-12  # of a difference between two shares


@dataclass(frozen=True)
class Step:
    """One rung as it was climbed.

    Attributes:
        kept: its candidate replaced the one before; `why` says why or why not.
        seconds: of the rung and its judging.
        float_nodes: layers with weights that stay float; int8_macs: share of multiply-accumulates in INT8.
        expected_speed: the first rung's is 1; by the rule `expected_speed`, never measured.
        drop: on the select images; None where no budget asks for it.
        sqnr_db: of outputs and ends (`auto.Looked`), float simulation, median of held calibration images; None where
            nothing is compared.
    """

    rung: RungName
    kept: bool
    why: str
    seconds: float
    float_nodes: int
    int8_macs: float
    expected_speed: float
    drop: Drop | None = None
    sqnr_db: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The row of quantize.json; accuracies and drops are fractions of 1."""
        drop = self.drop
        return {
            "rung": self.rung, "kept": self.kept, "why": self.why,
            "float_value": drop.float_value if drop else None, "value": drop.value if drop else None,
            "drop": drop.point if drop else None, "lower": drop.lower if drop else None,
            "upper": drop.upper if drop else None, "images": drop.images if drop else None,
            "disc": drop.disc if drop else None,
            "sqnr_db": self.sqnr_db, "seconds": round(self.seconds, 3), "float_nodes": self.float_nodes,
            "int8_macs": self.int8_macs, "expected_speed": self.expected_speed,
        }  # fmt: skip

    def describe(self) -> str:
        """One line for the person who waits."""
        parts = [f"rung {self.rung}: {'kept' if self.kept else 'not kept'}, {self.why}"]
        if self.drop is not None:
            parts.append(f"drop {100 * self.drop.point:+.2f} points")
        if self.sqnr_db is not None:
            parts.append(f"SQNR {self.sqnr_db:.1f} dB")
        return " · ".join([*parts, f"{self.seconds:.0f} s"])

    def stored(self) -> dict[str, Any]:
        """JSON-ready; `restored` is the inverse."""
        return asdict(self)


def restored(content: dict[str, Any]) -> Step:
    """A step from its stored form."""
    drop = content["drop"]
    return Step(**{**content, "drop": Drop(**drop) if drop else None})


def expected_speed(int8_macs: float, before: float, scheme: Scheme) -> float:
    """Speed of a graph relative to another, estimated from the share of MACs that each computes in INT8.

    A float multiply-accumulate counts as 2 INT8 ones where islands are FP16 (NVIDIA A100 Tensor Core GPU Architecture,
    2020: 1,248 INT8 against 624 FP16 TOPS with sparsity), as 4 where they are FP32 (a vector register holds four bytes
    for each float). Reformats, memory and launches are left out: an order between rungs, not a time.
    """

    def cost(share: float) -> float:
        return share + (1.0 - share) * COST[scheme.islands]

    return cost(before) / cost(int8_macs)


def state_of(drop: Drop | None, budget: float | None) -> State:
    """Where a drop stands to the budget."""
    if budget is None or drop is None:
        return "unasked"
    if drop.holds(budget):
        return "held"
    return "within" if drop.point <= budget + ROUNDING else "missed"


def better(before: Step, after: Step, lost: Drop | None) -> tuple[bool, str]:
    """Whether the later candidate replaces the one before, and why.

    What labelled images prove decides: a sure loss rejects, a sure gain keeps. Within their bounds points are noise,
    and the cleaner outputs win; layers given back to float must lower the drop besides.

    Args:
        lost: what `after` loses against `before` on select, paired by image; None where no labels judge.
    """
    if before.sqnr_db is None or after.sqnr_db is None:
        raise ValueError("rungs are compared only where their outputs were")
    sqnr = f"SQNR {before.sqnr_db:.1f} → {after.sqnr_db:.1f} dB"
    points = ""
    if lost is not None:
        word = f"{100 * abs(lost.point):.2f} points {'lower' if lost.point <= 0 else 'higher'} than with"
        points = f", the drop {word} `{before.rung}` ({100 * lost.lower:+.2f} … {100 * lost.upper:+.2f})"
        if lost.lower > 0:
            return False, f"a loss beyond chance: {points[2:]}, {sqnr}"
        if lost.upper < 0:
            return True, f"a gain beyond chance: {points[2:]}, {sqnr}"
    if after.int8_macs < before.int8_macs and (lost is None or lost.point >= 0):
        return False, f"more layers in float have not lowered the drop, {sqnr}{points}"
    if after.sqnr_db < before.sqnr_db:
        return False, f"the outputs are no cleaner: {sqnr}{points}"
    return True, f"{sqnr}{points}"


def support_note(drop: Drop, budget: float) -> str:
    """Why the select images are too few for this budget; '' where they are enough.

    Asked of the first candidate, for those to come: what they lose is not known yet, but answers that change both ways
    and cancel out will be as many.
    """
    if budget <= 0.0:
        return "no number of images can support a budget of 0: only a drop of 0 or less on select stops the climb"
    if drop.disc is None:
        wanted = stats.images_for_bounds(drop.images, drop.upper - drop.point, budget)
        if wanted <= drop.images:
            return ""
        return (
            f"{drop.images:,} select images cannot support a budget of {100 * budget:g} points: even to prove a drop of"
            f" 0 takes about {wanted:,} (the bounds of this one reach {100 * (drop.upper - drop.point):.2f} points"
            " above it); the climb follows their noise"
        )
    both_ways = max(0.0, drop.disc - abs(drop.point))
    needed = stats.images_needed(both_ways, budget)
    if needed is None or needed <= drop.images:
        return ""
    return (
        f"{drop.images:,} select images cannot support a budget of {100 * budget:g} points: even to prove a drop of 0"
        f" takes about {needed:,} (float and INT8 disagree both ways on {both_ways:.1%} of them); the climb follows"
        " their noise"
    )
