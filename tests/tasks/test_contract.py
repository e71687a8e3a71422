"""What every task promises its users: one set of tests for all of them, and what a task can't do asserted to fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import InputContract, IoContract, OutputContract
from edgecnn.recipe.recipe import MetricName, ScoreSpec, TaskName
from edgecnn.recipe.tasks import TASKS, DataFormat, task_of_format, task_of_metric
from edgecnn.records import ScoreFile
from edgecnn.tasks import Task, load_task
from edgecnn.tasks.compared import Compared, Scored
from edgecnn.tasks.detect.boxes import Boxes

COUNT, SIZE, BATCH = 60, 32, 7
CLASSES = ("first", "second")
NUMBERS = np.arange(COUNT)
KINDS = NUMBERS % 2


@dataclass(frozen=True)
class World:
    """A task's targets of COUNT images, and a model's answers to some of them of which the first `wrong` are wrong."""

    targets: Any
    outputs: tuple[str, ...]
    answers: Callable[[range, int], dict[str, np.ndarray]]
    keep: dict[str, Any]

    def contract(self, task: TaskName) -> IoContract:
        """The contract of such a model."""
        return IoContract(
            task=task,
            input=InputContract(
                name="images", layout="NHWC", dtype="uint8", range=(0.0, 255.0), size=(SIZE, SIZE), channels=3,
                color="rgb", fit=TASKS[task].fits[0],
            ),
            normalization=None, normalization_inside=True, classes=CLASSES,
            outputs=tuple(OutputContract(name=name, meaning=name) for name in self.outputs),
        )  # fmt: skip


def _logits(numbers: range, wrong: int) -> dict[str, np.ndarray]:
    chosen = [KINDS[n] ^ (n < wrong) for n in numbers]
    return {"logits": np.eye(len(CLASSES), dtype=np.float32)[chosen]}


def _boxes(numbers: range, wrong: int) -> dict[str, np.ndarray]:
    scores = np.zeros((len(numbers), 3, len(CLASSES)), np.float32)
    for row, n in enumerate(numbers):
        scores[row, 0, KINDS[n] ^ (n < wrong)] = 0.9
    boxes = np.tile(np.asarray([[4, 4, 20, 20], [0, 0, 3, 3], [0, 0, 3, 3]], np.float32), (len(numbers), 1, 1))
    return {"boxes": boxes, "scores": scores}


WORLDS: dict[TaskName, World] = {
    "classify": World(KINDS.astype(np.int64), ("logits",), _logits, {}),
    "detect": World(
        Boxes(
            np.arange(COUNT + 1), np.tile(np.asarray([[4, 4, 20, 20]], np.float32), (COUNT, 1)),
            KINDS.astype(np.int64), np.zeros(COUNT, bool), np.full((COUNT, 2), SIZE, np.int32),
        ),
        ("boxes", "scores"), _boxes, {"rows": "scores", "above": 0.001},
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", get_args(TaskName))


def judged(name: TaskName, wrong: int, numbers: range = range(COUNT), *, final: bool = False) -> Any:
    """The outcomes of a model that is wrong on the first `wrong` images."""
    world, task = WORLDS[name], load_task(name)
    reader = task.reader(world.contract(name), spec_of(name), world.targets, final=final)
    for start in range(numbers.start, numbers.stop, BATCH):
        part = range(start, min(start + BATCH, numbers.stop))
        filled = world.answers(range(start, start + BATCH) if part.stop < COUNT else part, wrong)
        reader.take(filled, part)
    return reader.outcomes()


def spec_of(name: TaskName) -> ScoreSpec:
    return ScoreSpec(metric=TASKS[name].metrics[0])


def compared(name: TaskName, folder: Path, wrong: int) -> Compared:
    """Three scores whose last is wrong on some images, through the files of a score stage."""
    world, task, spec = WORLDS[name], load_task(name), spec_of(name)
    scores = []
    for lost in (0, 0, wrong):
        outcomes = judged(name, lost)
        reader = task.reader(world.contract(name), spec, world.targets)
        file = ScoreFile.model_validate({**reader.figures(outcomes), "n": COUNT, "how": "x", "simulated": False})
        scores.append(Scored(file, outcomes))
    return Compared(scores[0], scores[1], scores[2], folder)


@EVERY
def test_a_task_has_all_that_the_protocol_names(name: TaskName) -> None:
    task = load_task(name)
    promised = {one for one in vars(Task) if not one.startswith("_")} | set(Task.__annotations__)
    assert {one for one in promised if not hasattr(task, one)} == set()


def test_every_format_and_metric_is_of_one_task() -> None:
    for kind, of in ((DataFormat, task_of_format), (MetricName, task_of_metric)):
        column = "formats" if kind is DataFormat else "metrics"
        for value in get_args(kind):
            owners = [name for name, traits in TASKS.items() if value in getattr(traits, column)]
            assert owners == [of(value)]


@EVERY
def test_value_bounds_and_drop_are_one_definition(name: TaskName) -> None:
    task, metric = load_task(name), TASKS[name].metrics[0]
    sound, worse = judged(name, 0), judged(name, 30)
    assert len(sound) == COUNT
    assert task.bounds(sound, metric).value == pytest.approx(1.0)
    bounds = task.bounds(worse, metric)
    assert bounds.lower <= bounds.value <= bounds.upper
    for quick in (False, True):
        drop = task.drop(sound, worse, metric, quick=quick)
        assert drop.point == pytest.approx(1.0 - bounds.value)
        assert 0 < drop.lower <= drop.point <= drop.upper
        assert task.drop(task.slim(sound), task.slim(worse), metric, quick=quick) == drop
    assert task.drop(sound, sound, metric).point == 0.0
    reader = task.reader(WORLDS[name].contract(name), spec_of(name), WORLDS[name].targets)
    assert reader.figures(worse)["value"] == pytest.approx(bounds.value)


@EVERY
def test_images_in_pieces_are_judged_as_in_one(name: TaskName) -> None:
    task, metric = load_task(name), TASKS[name].metrics[0]
    some = task.take(WORLDS[name].targets, NUMBERS[:21])
    assert len(some) == 21
    assert len(b"".join(task.content(some))) < len(b"".join(task.content(WORLDS[name].targets)))
    part = judged(name, 10, range(21))
    assert len(part) == 21
    assert task.bounds(part, metric).value < task.bounds(judged(name, 10), metric).value


@EVERY
def test_what_knows_nothing_is_told_and_refused(name: TaskName) -> None:
    task, metric = load_task(name), TASKS[name].metrics[0]
    contract, blind = WORLDS[name].contract(name), judged(name, COUNT)
    assert task.nothing_proved(judged(name, 0), metric) == ""
    assert "proves nothing" in task.nothing_proved(blind, metric)
    task.refuse_useless(judged(name, 0), contract, spec_of(name))
    with pytest.raises(EdgeError, match="proves nothing"):
        task.refuse_useless(blind, contract, spec_of(name))


@EVERY
def test_a_score_and_a_run_are_read_as_they_were_written(name: TaskName, tmp_path: Path) -> None:
    task, metric = load_task(name), TASKS[name].metrics[0]
    found = compared(name, tmp_path, 12)
    for path in (tmp_path / "one.npz", tmp_path / "two.npz"):
        task.write(found.after.outcomes, path)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    arrays = task.kept(found)
    again = task.restore(arrays)
    assert task.same_targets(again, found.reference.outcomes)
    assert task.drop(found.after.outcomes, again, metric).point == 0.0
    for lost in [one for one in arrays if one.startswith("int8_")]:
        with pytest.raises(ValueError, match="it lacks"):
            task.restore({one: values for one, values in arrays.items() if one != lost})
    with pytest.raises(ValueError, match="its "):
        task.restore({**arrays, "int8_more": np.full(COUNT, "text")})


@EVERY
def test_a_report_has_its_figures(name: TaskName, tmp_path: Path) -> None:
    task, metric = load_task(name), TASKS[name].metrics[0]
    found = compared(name, tmp_path, 12)
    figures = {figure.name: figure for figure in task.figures(found, "coverage 1 %", "FP32")}
    assert {"reference_accuracy", "float_accuracy", "int8_accuracy", "accuracy_drop"} <= set(figures)
    drop = task.drop(found.reference.outcomes, found.after.outcomes, metric)
    assert figures["accuracy_drop"].value == pytest.approx(100 * drop.point)
    assert "coverage 1 %" in figures["int8_accuracy"].conditions
    assert all(figure.group == "accuracy" for figure in figures.values())
    classes = task.class_figures(found, CLASSES)
    assert [one.name for one in classes] == list(CLASSES)
    assert task.float_note(found) == ""


@EVERY
def test_what_travels_from_a_board(name: TaskName) -> None:
    world = WORLDS[name]
    assert load_task(name).keep(world.contract(name), ScoreSpec(metric=TASKS[name].metrics[0])) == world.keep


@EVERY
def test_answers_that_cannot_be_judged_are_refused(name: TaskName) -> None:
    world, task = WORLDS[name], load_task(name)
    broken = {key: np.full_like(values, np.nan) for key, values in world.answers(range(BATCH), 0).items()}
    reader = task.reader(world.contract(name), spec_of(name), world.targets, final=True)
    with pytest.raises(EdgeError, match="not finite"):
        take_all(reader, broken)
    fewer = world.contract(name).model_copy(update={"classes": CLASSES[:1]})
    reader = task.reader(fewer, spec_of(name), world.targets, final=True)
    with pytest.raises(EdgeError, match="class"):
        take_all(reader, world.answers(range(BATCH), 0))


def take_all(reader: Any, answers: dict[str, np.ndarray]) -> None:
    reader.take(answers, range(BATCH))
    reader.outcomes()


def test_what_a_task_cannot_do_is_refused() -> None:
    with pytest.raises(EdgeError, match="the logits are to be output"):
        take_all(
            load_task("classify").reader(WORLDS["classify"].contract("classify"), ScoreSpec(), KINDS),
            WORLDS["detect"].answers(range(BATCH), 0),
        )
    with pytest.raises(KeyError):  # boxes are missing from a classifier's answers
        take_all(
            load_task("detect").reader(
                WORLDS["detect"].contract("detect"), ScoreSpec(metric="map50"), WORLDS["detect"].targets
            ),
            WORLDS["classify"].answers(range(BATCH), 0),
        )
    with pytest.raises(ValueError, match="it lacks"):  # a detector's baseline is not a classifier's
        load_task("classify").restore({"truth_offsets": np.arange(3)})
    with pytest.raises(ValueError, match="it lacks"):
        load_task("detect").restore({"label": KINDS})
