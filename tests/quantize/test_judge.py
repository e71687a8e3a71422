"""What a candidate loses on select images: counted by hand, whatever the batch, and refused where it proves nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from color_graphs import CONTRACT, as_ir, color_net, colors, hard_net, selected, without_quantization
from foreign_zoo import Foreign, N
from onnx import TensorProto
from quantize_graphs import CPU, TENSORRT, Pictures

from edgecnn.families.onnx.input import contract_of
from edgecnn.measure import stats
from edgecnn.process.errors import EdgeError
from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.ladder.candidate import Tools
from edgecnn.quantize.ladder.judge import Selected, SelectJudge
from edgecnn.quantize.ladder.quality import fidelity, split
from edgecnn.quantize.place.placement import Graph
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.tasks.classify.outcomes import paired_drop

TOP1 = ScoreSpec(metric="top1")
# Blue is read as green: the 10 blue ones of 30 images are lost.
BLIND = np.array([[1, 0, 0], [0, 1, 0.9], [0, 0, 0.1]], np.float32)


class Counting(Pictures):
    """Images that count how often they were read."""

    reads = 0

    def batch(self, start: int, stop: int) -> np.ndarray:
        self.reads += stop - start
        return super().batch(start, stop)


def judge_of(count: int = 30, **given: object) -> SelectJudge:
    return SelectJudge(as_ir(color_net()), CONTRACT, selected(count), TOP1, TENSORRT, **given)  # type: ignore[arg-type]


def test_drop_is_what_one_counts() -> None:
    drop = judge_of().drop(without_quantization(color_net(second=BLIND)))
    lower, upper = stats.tango_bounds(10, 0, 30)
    assert (drop.float_value, drop.images) == (1.0, 30)
    assert drop.point == pytest.approx(10 / 30)
    assert (drop.lower, drop.upper, drop.disc) == (lower, upper, pytest.approx(10 / 30))


def test_the_same_graph_loses_nothing() -> None:
    drop = judge_of().drop(without_quantization(color_net()))
    assert (drop.point, drop.disc) == (0.0, 0.0)
    assert drop.lower < 0.0 < drop.upper


def test_gains_and_losses_are_paired() -> None:
    drop = paired_drop(np.array([1, 1, 1, 0, 0], bool), np.array([0, 1, 1, 1, 0], bool))
    assert (drop.point, drop.disc, drop.float_value) == (0.0, 0.4, 0.6)


@pytest.mark.parametrize(
    "reference",
    [color_net(batch=7), color_net(flat=True), color_net(batch=1)],
    ids=["a batch that does not divide the images", "one row for the whole batch", "one image at a time"],
)
def test_graphs_that_take_batches_otherwise_are_judged_alike(reference: object) -> None:
    judge = SelectJudge(as_ir(reference), CONTRACT, selected(), TOP1, TENSORRT)
    assert judge.batch in (1, 7)
    assert judge.exact.right.all()
    assert len(judge.exact) == 30


@pytest.mark.parametrize("end", ["a map", "one number", "class numbers", "classes first"])
def test_what_is_no_row_of_logits_is_not_judged(end: str, tmp_path: Path) -> None:
    """A map whose largest value decides, or answers of a batch under each other, would be counted as something."""
    kinds = {
        "a map": ("Conv", ["r", "w1"], {}), "one number": ("ReduceMean", ["r"], {"keepdims": 0}),
        "class numbers": ("ArgMax", ["r"], {"axis": 1}), "classes first": ("Transpose", ["r"], {"perm": [1, 0, 2, 3]}),
    }  # fmt: skip
    op, inputs, attributes = kinds[end]
    kind = TensorProto.INT64 if end == "class numbers" else TensorProto.FLOAT
    given = Foreign().add(N(op, inputs, ["y"], **attributes))
    path = given.out("y", () if end == "one number" else (None,) * 4, kind).save(tmp_path / "m.onnx")
    contract = contract_of(path, "range=1")
    chosen = Selected(Pictures(np.zeros((6, 16, 16, 3), np.uint8)), np.arange(6) % 3)
    with pytest.raises(EdgeError, match=r"output `y` is .*, not one row of logits for each image"):
        SelectJudge(canonical(path), contract, chosen, TOP1, TENSORRT)


def test_only_some_images_decide_and_they_are_of_all_classes() -> None:
    images, labels = colors(300)
    order = np.argsort(labels, kind="stable")  # as a folder of classes stands
    sorted_by_class = Selected(Pictures(images[order]), labels[order])
    judge = SelectJudge(as_ir(color_net()), CONTRACT, sorted_by_class, TOP1, TENSORRT, most=60)
    assert judge.images == 60
    assert sorted_by_class.draw(60).tolist() == judge.numbers.tolist()
    assert min(np.bincount(judge.targets)) > 10


def test_a_candidate_is_scored_once() -> None:
    images, labels = colors()
    source = Counting(images)
    judge = SelectJudge(as_ir(color_net()), CONTRACT, Selected(source, labels), TOP1, TENSORRT)
    first = judge.drop(without_quantization(color_net(second=BLIND)))
    reads = source.reads
    assert judge.drop(without_quantization(color_net(second=BLIND))) == first
    assert source.reads == reads
    judge.drop(without_quantization(color_net()))
    assert source.reads > reads


def test_how_says_who_computes() -> None:
    assert judge_of().how == "float simulation"
    assert judge_of(kernels="AMD EPYC").how == "INT8 kernels of AMD EPYC"
    assert judge_of(kernels="AMD EPYC").digest != judge_of().digest
    assert judge_of().digest == judge_of().digest
    assert judge_of(27).digest != judge_of().digest


def test_the_cpus_own_kernels_judge_a_quantized_graph() -> None:
    from edgecnn.quantize.graph.sessions import observe
    from edgecnn.quantize.ladder.candidate import Tools, first
    from edgecnn.quantize.place.placement import Graph, place

    model = as_ir(color_net())
    feeder = Feeder(model, CONTRACT, Pictures(colors()[0]), 30)
    graph = Graph(model, observe(model, list(feeder.feeds([0])))[0])
    candidate, _ = first(model, place(graph, CPU), Tools(CPU, graph, feeder, "minmax", folder=None))  # type: ignore[arg-type]
    judge = SelectJudge(model, CONTRACT, selected(), TOP1, CPU, kernels="this CPU")
    assert judge.drop(candidate).point == 0.0


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(30) % 3 * 5, "label 10 is not a class of the model, which gives 9 logits"),
        (np.arange(30) % 3 - 1, "label -1 is not a class"),
        ((np.arange(30) + 1) % 3, "right on 0 of 30 labelled images, which is not better than a constant answer"),
        (np.zeros(30, int), "constant answer (100.0%)"),
        (np.arange(29) % 3, "30 images and 29 labels"),
    ],
)
def test_labels_that_prove_nothing_are_refused(labels: np.ndarray, words: str) -> None:
    images, _ = colors()
    with pytest.raises(EdgeError) as refused:
        SelectJudge(as_ir(color_net()), CONTRACT, Selected(Pictures(images), labels), TOP1, TENSORRT)
    assert words in refused.value.message


def test_images_too_few_to_show_any_model_right_refuse_none() -> None:
    images, labels = colors()
    few = [int(np.flatnonzero(labels == kind)[0]) for kind in (0, 1)]
    judge = SelectJudge(as_ir(color_net()), CONTRACT, Selected(Pictures(images[few]), labels[few]), TOP1, TENSORRT)
    assert judge.exact.right.all()


def test_top5_of_three_classes_proves_nothing() -> None:
    with pytest.raises(EdgeError, match="constant answer"):
        SelectJudge(as_ir(color_net()), CONTRACT, selected(), ScoreSpec(metric="top5"), TENSORRT)


def test_a_model_that_gives_no_numbers_is_at_chance() -> None:
    broken = color_net(first=np.full((3, 3), np.nan, np.float32))
    with pytest.raises(EdgeError, match="right on 0 of 30"):
        SelectJudge(as_ir(broken), CONTRACT, selected(), TOP1, TENSORRT)


def test_logits_that_are_not_there_are_refused() -> None:
    elsewhere = CONTRACT.model_copy(update={"outputs": (CONTRACT.outputs[0].model_copy(update={"name": "scores"}),)})
    with pytest.raises(EdgeError, match="`scores`, but the graph's outputs are logits"):
        SelectJudge(as_ir(color_net()), elsewhere, selected(), TOP1, TENSORRT)


def test_fidelity_is_the_noise_at_the_outputs_of_held_images(tmp_path: Path) -> None:
    model = as_ir(color_net())
    feeder = Feeder(model, CONTRACT, Pictures(colors(40)[0]), 40)
    tools = Tools(TENSORRT, Graph(model, {}), feeder, "minmax", tmp_path)
    assert not set(split(tools)[1]) & set(feeder.sample(30))
    assert fidelity(tools, without_quantization(color_net())) > 120  # float32 rounding
    halved = without_quantization(color_net(second=0.5 * np.eye(3, dtype=np.float32)))
    assert fidelity(tools, halved) == pytest.approx(6.02, abs=0.01)  # noise a quarter of the signal's power
    assert fidelity(tools, without_quantization(hard_net())) > 120  # the same function


def test_fidelity_of_a_single_image(tmp_path: Path) -> None:
    model = as_ir(color_net())
    feeder = Feeder(model, CONTRACT, Pictures(colors(1)[0]), 1)
    assert split(Tools(TENSORRT, Graph(model, {}), feeder, "minmax", tmp_path)) == ([0], [0])


def test_two_candidates_are_compared_with_each_other() -> None:
    """Both lose images against float, others each: paired, the one gains what the other loses."""
    judge = judge_of()
    blind, sound = without_quantization(color_net(second=BLIND)), without_quantization(color_net())
    lost = judge.lost(sound, blind)
    assert lost.point == pytest.approx(judge.drop(blind).point)
    assert lost.lower > 0
    gained = judge.lost(blind, sound)
    assert (gained.point, gained.lower, gained.upper) == pytest.approx((-lost.point, -lost.upper, -lost.lower))
