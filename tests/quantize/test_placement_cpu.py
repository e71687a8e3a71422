"""What CPUs make of a graph: islands that INT8 would slow down stay float, and OpenVINO's rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from quantize_graphs import ARM, CPU, OPENVINO, TENSORRT, Net, contract, pictures, residual_net

from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import observe, open_session, run
from edgecnn.quantize.ladder.candidate import Tools, first
from edgecnn.quantize.place.coverage import coverage
from edgecnn.quantize.place.placement import Graph, Placement, place
from edgecnn.quantize.write.repeats import delivered, without_repeats
from edgecnn.recipe.device import DeviceFacts, Scheme, resolve

X86_VNNI = CPU.model_copy(update={"costs": "x86-vnni"})
X86 = CPU.model_copy(update={"costs": "x86", "weights": "int8-per-channel-7bit"})
ARM64 = ARM.model_copy(update={"costs": "arm64"})


def read(path: Path, size: int) -> Graph:
    model = canonical(path)
    shapes, _ = observe(model, [{"image": np.zeros((1, 3, size, size), np.float32)}])
    return Graph(model, shapes)


def edges(placement: Placement) -> dict[str, list[tuple[str, int]]]:
    return {a.tensor: [(edge.node, edge.index) for edge in a.edges] for a in placement.activations}


def chain(path: Path, size: int, channels: int, activation: str, layers: int = 3) -> Path:
    """image → conv → … → conv, an activation behind each, → head."""
    net = Net(3, size=size)
    x = net.op(activation, net.conv("image", channels, 3, name="stem"), name="stem_act")
    for number in range(layers):
        x = net.op(activation, net.conv(x, channels, channels, name=f"c{number}"), name=f"act{number}")
    return net.save(path, net.head(x, channels))


# --- onnxruntime: what is worth it ---


@pytest.mark.parametrize("scheme", [X86_VNNI, X86, ARM64])
def test_large_convolutions_with_relu_are_one_island_on_every_cpu(tmp_path: Path, scheme: Scheme) -> None:
    graph = read(chain(tmp_path / "m.onnx", 56, 64, "Relu"), 56)
    placement = place(graph, scheme)
    assert {"c0", "c1", "c2"} <= placement.int8_layers
    assert coverage(graph, placement).macs > 0.95
    for name, reason in placement.why_float.items():
        assert reason == f"slower in INT8 than in float on this kind of CPU ({scheme.costs})", name


def test_small_convolutions_between_hard_swishes_stay_float(tmp_path: Path) -> None:
    """Each would need four kernels more: its activation has no INT8 form, and in float it is part of the Conv."""
    path = chain(tmp_path / "m.onnx", 14, 24, "HardSwish")
    graph = read(path, 14)
    everything = place(graph, CPU)
    assert {"stem", "c0", "c1", "c2", "head"} == everything.int8_layers
    wide = Net(3, size=14)
    x = wide.op("HardSwish", wide.conv("image", 24, 3, name="stem"), name="act")
    x = wide.op("HardSwish", wide.conv(x, 24, 24, name="small"), name="act2")
    pooled = wide.op("Flatten", wide.op("GlobalAveragePool", x, name="pool"), name="flat")
    weight = wide.constant("large.weight", wide.rng.standard_normal((2048, 24)).astype(np.float32))
    hidden = wide.op("Relu", wide.op("Gemm", pooled, weight, name="large", transB=1), name="relu")
    last = wide.constant("last.weight", wide.rng.standard_normal((1000, 2048)).astype(np.float32))
    graph = read(wide.save(tmp_path / "n.onnx", wide.op("Gemm", hidden, last, name="last", transB=1)), 14)
    placement = place(graph, X86_VNNI)
    assert {"small", "stem"} & placement.int8_layers == set()
    assert "last" in placement.int8_layers  # two million weights are read four times as fast
    assert placement.why_float["small"] == "slower in INT8 than in float on this kind of CPU (x86-vnni)"


def test_where_no_layer_is_worth_it_all_are_quantized_as_asked(tmp_path: Path) -> None:
    path = residual_net(tmp_path / "m.onnx")  # 8x8 images
    assert place(read(path, 8), X86_VNNI) == place(read(path, 8), CPU)


def test_a_layer_kept_float_by_name_stays_so_and_says_so(tmp_path: Path) -> None:
    graph = read(chain(tmp_path / "m.onnx", 56, 64, "Relu"), 56)
    placement = place(graph, X86_VNNI, ("c1",))
    assert placement.why_float["c1"] == "kept float by the recipe"
    assert {"c0", "c2"} <= placement.int8_layers


def test_a_float_reader_of_a_float_tensor_reads_it_as_it_is(tmp_path: Path) -> None:
    net = Net(3, size=8)
    x = net.op("HardSwish", net.conv("image", 16, 3, name="stem"), name="act")
    branch = net.op("Relu", net.conv(x, 16, 16, name="c"), name="relu")
    side = net.op("Tanh", x, name="side")
    graph = read(net.save(tmp_path / "m.onnx", net.head(net.op("Mul", branch, side, name="mul"), 16)), 8)
    found = edges(place(graph, CPU))
    assert found["act_out"] == [("c", 0)]  # not Tanh, which would read a rounded value through one more kernel
    assert found["side_out"] == [("mul", 1)]


def test_every_reader_of_an_int8_tensor_reads_int8(tmp_path: Path) -> None:
    net = Net(3, size=8)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    side = net.op("Tanh", x, name="side")
    total = net.op("Mul", net.conv(x, 16, 16, name="c"), side, name="mul")
    found = edges(place(read(net.save(tmp_path / "m.onnx", net.head(total, 16)), 8), CPU))
    assert found["relu_out"] == [("c", 0), ("side", 0)]  # a kernel fuses only if its one output is quantized


def test_the_same_graph_has_the_same_islands_every_time(tmp_path: Path) -> None:
    path = chain(tmp_path / "m.onnx", 14, 48, "HardSwish")
    assert place(read(path, 14), X86_VNNI) == place(read(path, 14), X86_VNNI)


# --- which scheme a CPU gets ---


@pytest.mark.parametrize("vnni", [True, False, None])
def test_the_scheme_follows_what_the_cpu_answered(vnni: bool | None) -> None:
    facts = DeviceFacts(reachable=True, backend_version="any", hardware="a CPU", vnni=vnni)
    cpu, openvino = resolve(X86_VNNI, facts), resolve(OPENVINO, facts)
    narrow = vnni is False  # None: not asked, or not x86
    assert cpu.weights == openvino.weights == ("int8-per-channel-7bit" if narrow else "int8-per-channel")
    assert cpu.costs == ("x86" if narrow else "x86-vnni")
    assert openvino.costs is None
    assert resolve(ARM64, facts.model_copy(update={"vnni": None})) == ARM64
    assert resolve(TENSORRT, facts) == TENSORRT


# --- OpenVINO ---


def test_openvino_has_no_layer_too_thin(tmp_path: Path) -> None:
    net = Net(3)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="r1")
    x = net.op("Relu", net.conv(x, 4, 16, name="thin"), name="r2")
    graph = read(net.save(tmp_path / "m.onnx", net.head(net.conv(x, 16, 4, name="wide"), 16)), 8)
    assert place(graph, OPENVINO).int8_layers == {"stem", "thin", "wide", "head"}
    assert place(graph, TENSORRT).int8_layers == {"stem", "head"}


def test_openvino_quantizes_both_sides_of_an_add_that_no_relu_follows(tmp_path: Path) -> None:
    def residual(path: Path, *, relu: bool) -> Graph:
        net = Net(3)
        stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="stem_relu")
        total = net.op("Add", net.conv(stem, 16, 16, name="c"), stem, name="add")
        last = net.op("Relu", total, name="relu") if relu else total
        return read(net.save(path, net.head(net.conv(last, 16, 16, name="d"), 16)), 8)

    bare = edges(place(residual(tmp_path / "a.onnx", relu=False), OPENVINO))
    assert bare["c_out"] == [("add", 0)]
    assert bare["stem_relu_out"] == [("add", 1), ("c", 0)]
    followed = edges(place(residual(tmp_path / "b.onnx", relu=True), OPENVINO))
    assert "c_out" not in followed
    assert followed["stem_relu_out"] == [("add", 1), ("c", 0)]


def branches(path: Path) -> Path:
    """conv → MaxPool → [conv, itself] → Concat → Slice → conv."""
    net = Net(3)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    x = net.op("MaxPool", x, name="max", kernel_shape=[2, 2], strides=[2, 2])
    side = net.op("Relu", net.conv(x, 16, 16, name="side"), name="side_relu")
    joined = net.op("Concat", side, x, name="concat", axis=1)
    ends = [net.constant(n, np.asarray(v, np.int64)) for n, v in (("s", [4]), ("e", [28]), ("a", [1]))]
    part = net.op("Slice", joined, *ends, name="slice")
    return net.save(path, net.head(net.conv(part, 16, 24, name="last"), 16))


def test_repeated_pairs_are_left_out_and_change_no_bit(tmp_path: Path) -> None:
    graph = read(branches(tmp_path / "m.onnx"), 8)
    feeder = Feeder(graph.model, contract(), pictures(), 4)
    placement = place(graph, OPENVINO)
    tools = Tools(scheme=OPENVINO, graph=graph, feeder=feeder, ranges="minmax", folder=tmp_path)
    full = first(graph.model, placement, tools)[0].quantized(OPENVINO)
    short = delivered(full, OPENVINO)

    def pairs(model: ir.Model) -> set[str]:
        return {node.name or "" for node in model.graph if node.op_type == "QuantizeLinear"}

    behind = {f"{name}_out_QuantizeLinear" for name in ("max", "concat", "slice")}
    assert behind <= pairs(full)
    assert pairs(short) == pairs(full) - behind
    for feed in feeder.feeds():
        whole, less = (run(open_session(model, simulate=True), feed)[0] for model in (full, short))
        np.testing.assert_array_equal(whole, less)
    assert delivered(full, TENSORRT) is full


def test_a_pair_with_another_scale_stays(tmp_path: Path) -> None:
    graph = read(branches(tmp_path / "m.onnx"), 8)
    feeder = Feeder(graph.model, contract(), pictures(), 4)
    tools = Tools(scheme=OPENVINO, graph=graph, feeder=feeder, ranges="minmax", folder=tmp_path)
    full = first(graph.model, place(graph, OPENVINO), tools)[0].quantized(OPENVINO)
    scale = next(value for name, value in full.graph.initializers.items() if name == "slice_out_scale")
    scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(2.0), name="slice_out_scale")
    kept = {node.name for node in without_repeats(full).graph if node.op_type == "QuantizeLinear"}
    assert "slice_out_QuantizeLinear" in kept
    assert "max_out_QuantizeLinear" not in kept
