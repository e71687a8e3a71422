"""The recovery ladder in a report: what the quantizer did to hold the accuracy budget."""

from __future__ import annotations

from typing import Literal

from edgecnn.recipe.spec import Spec

State = Literal["unasked", "held", "within", "missed"]  # held: at most half the budget; missed: above it


class Rung(Spec):
    """One rung of the recovery ladder. Accuracies in percent and the drop in points, on the select images."""

    rung: str
    kept: bool
    why: str
    float_accuracy: float | None = None
    accuracy: float | None = None
    drop: float | None = None  # bounds are one-sided 95 %, paired
    lower: float | None = None
    upper: float | None = None
    images: int | None = None
    sqnr_db: float | None = None  # of the outputs, median of held calibration images, float simulation
    seconds: float
    float_nodes: int  # layers with weights that stay float
    int8_macs: float  # percent
    expected_speed: float  # the first rung's is 1; estimated from the MACs, not measured


class Ladder(Spec):
    """The climb: what the quantizer did to hold the accuracy budget, and where it ended."""

    state: State
    budget: float | None = None  # points
    best: str  # the rung that the delivered model comes from
    stop_at: str  # the last rung that was allowed
    judged: str  # what computed the candidates' answers
    rungs: tuple[Rung, ...]
