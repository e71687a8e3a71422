"""What a network is for: one room a task, met by a module. Who prepares, scores, judges or compares asks here.

A task's own words stay in its room: labels, boxes, their metric and its bounds. Everyone else passes them on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from numpy.typing import NDArray

from edgecnn.recipe.tasks import TaskName

if TYPE_CHECKING:
    from edgecnn.measure.stats import Bounds
    from edgecnn.recipe.io_contract import IoContract
    from edgecnn.recipe.recipe import DataSpec, ScoreSpec
    from edgecnn.records import SpeedFile
    from edgecnn.report import Check, ClassAccuracy, Figure
    from edgecnn.tasks.compared import Compared

Arrays = dict[str, NDArray[Any]]
Targets = Any  # what the images of a split are labelled with; has a length
Outcomes = Any  # what a model said of images, compared with their targets


@dataclass(frozen=True)
class Drop:
    """A metric's loss against float or another candidate, a fraction of 1; one-sided 95 % bounds, paired by image."""

    float_value: float
    value: float
    lower: float
    upper: float
    images: int
    disc: float | None = 0.0  # share of images where exactly one of the two is right; None where there is no such thing

    @property
    def point(self) -> float:
        """The point estimate of the loss; negative is a gain."""
        return self.float_value - self.value

    def holds(self, budget: float) -> bool:
        """What stops the climb, one rule for every rung: the point estimate is at most half the budget.

        The other half is room for what the select split does not show: the verdict needs an interval below the budget.
        """
        return self.point <= budget / 2 + 1e-12


class Reader(Protocol):
    """Takes a model's answers batch by batch, and judges them."""

    def take(self, answers: Mapping[str, Any], numbers: Sequence[int]) -> None:
        """Answers by output name, whose first rows are of the images `numbers` of the targets.

        Raises:
            EdgeError: outputs of another shape than the contract's, or values that can't be judged.
        """

    def outcomes(self) -> Outcomes:
        """All that was taken, compared with the targets."""

    def figures(self, outcomes: Outcomes) -> dict[str, Any]:
        """What score.json tells of them: `metric`, `value`, `unit`, and what is the task's own."""


class Task(Protocol):
    """One task; met by a module."""

    LEAST_IMAGES: int  # below it the bounds of a paired difference are too coarse for any verdict
    BOUNDS_BY: str  # how a metric's bounds are made

    def watch(self, spec: DataSpec) -> dict[str, object]:
        """Files that a table, COCO JSON or data.yaml names outside `data.root`, by what a reason calls them."""

    def prepare(self, out: Path, spec: DataSpec, image_size: int) -> None:
        """Write the index, pixels and targets of a dataset; see `tasks.prepare`."""

    def targets(self, data: Path, split: Literal["select", "scored"]) -> Targets:
        """What the images of a prepared split are labelled with, in their order."""

    def take(self, targets: Targets, numbers: NDArray[Any]) -> Targets:
        """Those of some images, in that order."""

    def content(self, targets: Targets) -> Iterator[bytes]:
        """The targets' bytes, for a digest."""

    def keep(self, contract: IoContract, spec: ScoreSpec) -> dict[str, Any]:
        """What of the answers must travel from a board: {} is all; see `agent.scoring`."""

    def reader(self, contract: IoContract, spec: ScoreSpec, targets: Targets, *, final: bool = False) -> Reader:
        """Reads a model's answers.

        Args:
            final: of a score: values that aren't finite are an error, and the host's own steps are timed.
        """

    def slim(self, outcomes: Outcomes) -> Outcomes:
        """The same without what only a report shows: a climb holds many."""

    def refuse_useless(self, outcomes: Outcomes, contract: IoContract, spec: ScoreSpec) -> None:
        """Refuse a float model that knows so little that a drop against it proves nothing.

        Raises:
            EdgeError: it does.
        """

    def bounds(self, outcomes: Outcomes, metric: str) -> Bounds:
        """The metric with one-sided 95 % bounds, fractions of 1."""

    def drop(self, first: Outcomes, second: Outcomes, metric: str, *, quick: bool = False) -> Drop:
        """What the second of two models loses on the same images. `quick`: coarser bounds, the same point."""

    def drop_text(self, first: Outcomes, second: Outcomes, metric: str, names: tuple[str, str]) -> str:
        """What a check says of a paired drop beside its bounds; `names` of the two models."""

    def nothing_proved(self, outcomes: Outcomes, metric: str, *, sure: bool = False) -> str:
        """Why these outcomes prove nothing: the model does no better than one that knows nothing; '' where they do.

        Args:
            sure: its lower bound must be better, not the value alone.
        """

    def write(self, outcomes: Outcomes, path: Path) -> None:
        """A score's outcomes.npz: the same bytes for the same outcomes."""

    def read(self, path: Path, data: Path) -> Outcomes:
        """The inverse of `write`; `data` is the data stage's folder.

        Raises:
            EdgeError: they are of other images.
        """

    def kept(self, compared: Compared) -> Arrays:
        """What a run's outcomes.npz holds, and a baseline keeps: of all three models, with the targets."""

    def restore(self, kept: Arrays) -> Outcomes:
        """INT8's outcomes of a run's outcomes.npz.

        Raises:
            ValueError: the arrays are not such outcomes, and why.
        """

    def same_targets(self, first: Outcomes, second: Outcomes) -> bool:
        """Whether both are of images with equal labels."""

    def figures(self, compared: Compared, coverage: str, float_name: str) -> Iterator[Figure]:
        """The accuracy figures of a build.

        Args:
            coverage: what stands beside every INT8 accuracy. float_name: the precision that INT8 is compared with.
        """

    def host_figures(self, compared: Compared, speed: SpeedFile, float_ms: Any, int8_ms: Any) -> Iterator[Figure]:
        """What an image costs beside the engine, whose times are (pairs,) in milliseconds."""

    def class_figures(self, compared: Compared, classes: tuple[str, ...]) -> tuple[ClassAccuracy, ...]:
        """Accuracy by class, in percent."""

    def parts(self, compared: Compared, classes: tuple[str, ...]) -> dict[str, Any]:
        """Fields of the report that are this task's alone."""

    def float_note(self, compared: Compared) -> str:
        """How far the device's float engine is from FP32, where that is worth a note; else ''."""

    def paired_figures(self, first: Outcomes, second: Outcomes, metric: str, accuracy: Check) -> Iterator[Figure]:
        """The accuracy figures of a candidate against a baseline."""


def load_task(name: TaskName) -> Task:
    """The task's room."""
    match name:
        case "classify":
            from edgecnn.tasks.classify import task as classify

            return classify
        case "detect":
            from edgecnn.tasks.detect import task as detect

            return detect
