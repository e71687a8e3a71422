"""Mixed precision: groups without needless conversions, a set that holds the budget, and no layer too many in float."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from quantize_graphs import CPU, TENSORRT, Net, contract, pictures, residual_net

from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import expose, observe, open_session, run_each
from edgecnn.quantize.ladder.candidate import Candidate, Drop, Tools, first
from edgecnn.quantize.place.islands import conversions, islands, without
from edgecnn.quantize.place.placement import Graph, place
from edgecnn.quantize.rungs.mixed import mixed
from edgecnn.quantize.write.rewrite import Overrides
from edgecnn.quantize.write.weights import integer_weight
from edgecnn.recipe.device import Scheme

COARSE = TENSORRT.model_copy(update={"activation_bits": 5})
COARSE_CPU = CPU.model_copy(update={"activation_bits": 5})


class Agreement:
    """A judge whose labels are the float model's own answers: the drop is the share of changed ones."""

    how = "float simulation"
    digest = "agreement"

    def __init__(self, feeder: Feeder, scheme: Scheme) -> None:
        self.scheme, self.feeds = scheme, list(feeder.feeds())
        self.exact = self._answers(feeder.model)
        self.asked = 0

    @property
    def images(self) -> int:
        return len(self.exact)

    def drop(self, candidate: Candidate) -> Drop:
        self.asked += 1
        value = float(np.mean(self._answers(candidate.quantized(self.scheme)) == self.exact))
        return Drop(1.0, value, 0.0, 1.0, self.images)

    def _answers(self, model: ir.Model) -> np.ndarray:
        return np.concatenate([out[0].argmax(1) for out in run_each(open_session(model, simulate=True), self.feeds)])


def prepared(path: Path, folder: Path, scheme: Scheme, images: int = 200) -> tuple[Tools, Candidate, Agreement]:
    model = canonical(path)
    feeder = Feeder(model, contract(), pictures(images), images)
    # Each class wins on some images: the head's bias takes the mean logits away.
    logits = np.concatenate([out[0] for out in run_each(open_session(model), feeder.feeds())])
    bias = model.graph.initializers["head.bias"]
    bias.const_value = ir.tensor(-logits.mean(0), name=bias.name)
    shapes, _ = observe(model, list(feeder.feeds([0])))
    graph = Graph(model, shapes)
    judge = Agreement(feeder, scheme)
    tools = Tools(scheme=scheme, graph=graph, feeder=feeder, ranges="minmax", folder=folder, judge=judge, budget=0.2)
    return tools, first(model, place(graph, scheme), tools)[0], judge


def graph_of(path: Path) -> Graph:
    model = canonical(path)
    shapes, _ = observe(model, list(Feeder(model, contract(), pictures(), 12).feeds([0])))
    return Graph(model, shapes)


def planted(path: Path) -> Path:
    """Four layers; the second's input holds a huge channel that nothing reads, so that its range is far too wide."""
    net = Net(3)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"))
    x = net.op("Relu", net.conv(x, 16, 16, name="bad"))
    x = net.op("Relu", net.conv(x, 16, 16, name="third"))
    weights = {tensor.name: number for number, tensor in enumerate(net.weights)}
    wide, deaf = (
        np.frombuffer(net.weights[weights[n]].raw_data, np.float32).copy() for n in ("stem.bias", "bad.weight")
    )
    wide[0] = 300.0
    deaf.reshape(16, 16, 3, 3)[:, 0] = 0.0
    net.weights[weights["stem.bias"]].raw_data = wide.tobytes()
    net.weights[weights["bad.weight"]].raw_data = deaf.tobytes()
    return net.save(path, net.head(x, 16))


# --- groups ---


def test_conversions_counted_by_hand(tmp_path: Path) -> None:
    graph = graph_of(residual_net(tmp_path / "net.onnx"))
    placement = place(graph, TENSORRT)
    # The image and, behind the float pooling, the head's input.
    assert conversions(graph, placement) == 2
    expected = {
        ("stem",): 2,  # the image no more, but the stem's output
        ("first",): 4,  # the stem's output is read both ways, the first's output is quantized behind a float layer
        ("second",): 4 - 1,  # the stem's output is read both ways; what follows is float anyway
        ("first", "second"): 2,
        ("head",): 1,
    }
    for layers, count in expected.items():
        less = without(graph, TENSORRT, placement, layers)
        assert less is not None
        assert (layers, conversions(graph, less)) == (layers, count)


def test_residual_pairs_leave_together(tmp_path: Path) -> None:
    graph = graph_of(residual_net(tmp_path / "net.onnx"))
    found = {island.layers: island.conversions for island in islands(graph, TENSORRT, place(graph, TENSORRT))}
    assert found[("first", "second")] == 0
    assert ("first",) not in found
    assert {layer for layers in found for layer in layers} == {"stem", "first", "second", "head"}


def test_with_onnxruntime_what_makes_and_reads_a_stored_tensor_leaves_together(tmp_path: Path) -> None:
    graph = graph_of(residual_net(tmp_path / "net.onnx"))
    found = {island.layers: island.conversions for island in islands(graph, CPU, place(graph, CPU))}
    assert {("stem",), ("first",), ("second",), ("head",)} <= set(found)
    # The image's Q is gone; the first's and the second's outputs are quantized behind float, the last ReLU's too.
    assert found[("stem", "first", "add")] == 2
    assert found[("pool", "flatten", "head")] == 1  # a DQ before; the head's output is float anyway


def test_every_layer_float_is_no_placement(tmp_path: Path) -> None:
    graph = graph_of(residual_net(tmp_path / "net.onnx"))
    placement = place(graph, TENSORRT, ("stem",))
    assert placement.kept == ("stem",)
    assert without(graph, TENSORRT, placement, placement.int8_layers) is None


# --- the rung ---


def test_the_planted_layer_alone_goes_back(tmp_path: Path) -> None:
    tools, candidate, judge = prepared(planted(tmp_path / "net.onnx"), tmp_path, TENSORRT)
    assert not judge.drop(candidate).holds(0.2)
    result = mixed(candidate, tools)
    assert result.placement.kept == ("bad",)
    assert "drop on select" in result.placement.why_float["bad"]
    assert result.rungs == ("mixed",)
    assert "1 of 4 INT8 layers back to float (bad)" in result.notes[-1]
    assert candidate.placement.kept == ()  # what was given is left as it is


@pytest.mark.parametrize("scheme", [COARSE, COARSE_CPU], ids=["tensorrt", "onnxruntime"])
def test_no_single_layer_of_the_set_can_go_back(tmp_path: Path, scheme: Scheme) -> None:
    """All sets of float nodes, judged one by one in graphs built anew."""
    tools, candidate, judge = prepared(residual_net(tmp_path / "net.onnx"), tmp_path, scheme)
    groups = islands(tools.graph, scheme, candidate.placement)
    nodes = sorted({name for group in groups for name in group.layers})
    held = set()
    for count in range(len(nodes)):
        for chosen in combinations(nodes, count):
            placement = without(tools.graph, scheme, candidate.placement, chosen)
            if placement is None:
                continue
            made = replace(candidate, placement=placement)
            fresh = [a.tensor for a in placement.activations if a.tensor not in candidate.ranges]
            assert not fresh  # so the candidate's own ranges are all that is needed
            if judge.drop(made).holds(0.2):
                held.add(frozenset(chosen))
    assert frozenset() not in held
    result = frozenset(mixed(candidate, tools).placement.kept)
    assert result in held
    assert not any(result - {layer} in held for layer in result)
    layers = candidate.placement.int8_layers
    assert len(result & layers) == min(len(chosen & layers) for chosen in held)


def test_a_killed_climb_asks_no_question_twice(tmp_path: Path) -> None:
    tools, candidate, judge = prepared(residual_net(tmp_path / "net.onnx"), tmp_path, COARSE)
    result = mixed(candidate, tools)
    asked = judge.asked
    assert asked > 3
    judged = tmp_path / "mixed" / "judged.jsonl"
    judged.write_text(judged.read_text()[:-40])  # the kill came while the last one was written
    again = mixed(candidate, tools)
    assert judge.asked == asked + 1
    assert again.placement == result.placement
    assert again.ranges == result.ranges


@pytest.mark.parametrize(
    ("change", "note"),
    [({"judge": None}, "without labels"), ({"budget": None}, "without labels"), ({"budget": 2.0}, "holds the budget")],
)
def test_unchanged_with_a_note(tmp_path: Path, change: dict[str, None], note: str) -> None:
    tools, candidate, _ = prepared(residual_net(tmp_path / "net.onnx"), tmp_path, COARSE)
    result = mixed(candidate, replace(tools, **change))
    assert note in result.notes[-1]
    assert replace(result, notes=candidate.notes) == candidate


def test_a_budget_that_no_set_holds(tmp_path: Path) -> None:
    tools, candidate, _ = prepared(residual_net(tmp_path / "net.onnx"), tmp_path, COARSE)

    class Never(Agreement):
        def drop(self, candidate: Candidate) -> Drop:
            return replace(super().drop(candidate), float_value=2.0)

    result = mixed(candidate, replace(tools, judge=Never(tools.feeder, COARSE)))
    assert "not even with all layers but one group in float does the budget hold" in result.notes[-1]
    assert result.placement == candidate.placement


def test_a_tensor_quantized_for_the_first_time_is_calibrated(tmp_path: Path) -> None:
    """Both inputs of the Add are layers: with one in float, the other fuses and the first's output gets Q/DQ."""
    net = Net(3)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"))
    big, small = net.conv(x, 16, 16, name="big"), net.conv(x, 16, 16, kernel=1, name="small")
    path = net.save(tmp_path / "net.onnx", net.head(net.op("Relu", net.op("Add", big, small, name="add")), 16))
    tools, candidate, judge = prepared(path, tmp_path, TENSORRT)
    assert "big_out" not in candidate.ranges

    class BigMustLeave(Agreement):
        """Holds with `big` in float, whatever else is."""

        def drop(self, candidate: Candidate) -> Drop:
            return Drop(1.0, 0.0 if "big" in candidate.placement.int8_layers else 1.0, 0.0, 1.0, 100)

    result = mixed(candidate, replace(tools, judge=BigMustLeave(tools.feeder, TENSORRT)))
    assert result.placement.kept == ("big",)
    seen = np.concatenate(
        [out[0].ravel() for out in run_each(open_session(expose(candidate.model, ["big_out"])), judge.feeds)]
    )
    assert result.ranges["big_out"] == pytest.approx((seen.min(), seen.max()))
    kept = set(result.ranges) & set(candidate.ranges)
    assert {name: result.ranges[name] for name in kept} == {name: candidate.ranges[name] for name in kept}
    open_session(result.quantized(TENSORRT), simulate=True)


def test_overrides_of_float_layers_are_dropped_others_stay(tmp_path: Path) -> None:
    tools, candidate, _ = prepared(planted(tmp_path / "net.onnx"), tmp_path, TENSORRT)
    initializers = candidate.model.graph.initializers
    weights = {
        f"{name}.weight": integer_weight("", initializers[f"{name}.weight"].const_value.numpy(), 0, TENSORRT)
        for name in ("bad", "third")
    }
    biases = {name: initializers[f"{name}.bias"].const_value.numpy() for name in ("bad", "third")}
    given = replace(candidate, overrides=Overrides(weights, biases))
    result = mixed(given, tools)
    assert result.placement.kept == ("bad",)
    assert list(result.overrides.weights) == ["third.weight"]
    assert list(result.overrides.biases) == ["third"]
