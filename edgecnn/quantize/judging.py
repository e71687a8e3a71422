"""What the judges of classifiers and detectors share: which images decide, by whose kernels; each graph runs once."""

from __future__ import annotations

import hashlib
from typing import Generic, TypeVar

import onnx_ir as ir

from edgecnn.quantize.candidate import Candidate, Drop
from edgecnn.recipe.device import Scheme

Outcomes = TypeVar("Outcomes")  # what a model answers on the images that decide, compared with their labels


class Judging(Generic[Outcomes]):
    """A judge in the making: it sets these, and gives `_scored` and `_lost`.

    Attributes:
        numbers: of the labelled images that decide.
        kernels: name of the CPU whose own INT8 kernels run candidates; '' for the float simulation.
        exact: the float model's outcomes.
        known: outcomes by the digest of the quantized graph.
    """

    scheme: Scheme
    kernels: str
    numbers: list[int]
    exact: Outcomes
    known: dict[str, Outcomes]

    @property
    def images(self) -> int:
        """How many labelled images decide."""
        return len(self.numbers)

    @property
    def how(self) -> str:
        """What computes a candidate's answers."""
        return f"INT8 kernels of {self.kernels}" if self.kernels else "float simulation"

    def drop(self, candidate: Candidate) -> Drop:
        """What INT8 loses against the float model, with one-sided 95 % bounds."""
        return self._lost(self.exact, self._outcomes(candidate))

    def lost(self, before: Candidate, after: Candidate) -> Drop:
        """What the later of two candidates loses against the one before, both run on the same images."""
        return self._lost(self._outcomes(before), self._outcomes(after))

    def _outcomes(self, candidate: Candidate) -> Outcomes:
        """The same graph is run once."""
        quantized = candidate.quantized(self.scheme)
        content = ir.serde.serialize_model(quantized).SerializeToString(deterministic=True)
        key = hashlib.sha256(content).hexdigest()
        if key not in self.known:
            self.known[key] = self._scored(quantized)
        return self.known[key]

    def _scored(self, quantized: ir.Model) -> Outcomes:
        raise NotImplementedError

    def _lost(self, first: Outcomes, second: Outcomes) -> Drop:
        raise NotImplementedError
