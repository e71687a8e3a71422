"""The same images, asked of three models: what a task's figures and a verdict are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecnn.records import ScoreFile


@dataclass(frozen=True)
class Scored:
    """One model's score: its file, and its task's outcomes image by image."""

    file: ScoreFile
    outcomes: Any


@dataclass(frozen=True)
class Compared:
    """FP32 on the host, the float engine and INT8; `data` is the data stage's folder."""

    reference: Scored
    before: Scored
    after: Scored
    data: Path

    def by_name(self) -> dict[str, Scored]:
        """The three, by the name that outcomes.npz gives them."""
        return {"reference": self.reference, "float": self.before, "int8": self.after}

    def titled(self, float_name: str) -> list[tuple[str, str, Scored, str]]:
        """(name of its accuracy figure, title, score, conditions) of each; `float_name` is the engine's precision."""
        # Without the device its float engine was never run: what was scored is the graph.
        float_title = "float graph, no engine run" if self.before.file.simulated else f"{float_name} engine"
        int8_title = f"INT8{', simulated' if self.after.file.simulated else ''}"
        rows = (
            ("reference_accuracy", "FP32 reference", self.reference),
            ("float_accuracy", float_title, self.before),
            ("int8_accuracy", int8_title, self.after),
        )
        return [
            (name, title, one, f"{one.file.n:,} images · {one.file.how}{' · simulated' if one.file.simulated else ''}")
            for name, title, one in rows
        ]

    @property
    def paired(self) -> str:
        """Conditions of what is paired by image."""
        return f"FP32 reference against INT8, the same {self.after.file.n:,} images"
