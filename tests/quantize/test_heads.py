"""Detectors' heads, found in graphs whose names say nothing, and everything that only looks like one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantize_graphs import CPU, TENSORRT, Net, residual_net

from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import observe
from edgecnn.quantize.place.coverage import coverage
from edgecnn.quantize.place.heads import BINS, OUTPUT, head_of
from edgecnn.quantize.place.placement import Graph, Placement, place
from edgecnn.recipe.device import Scheme

BINS_OF_A_SIDE = 8


def graph_of(path: Path) -> Graph:
    model = canonical(path)
    value = model.graph.inputs[0]
    shape = [size if isinstance(size, int) else 1 for size in value.shape or ()]
    shapes, _ = observe(model, [{value.name or "": np.zeros(shape, np.float32)}])
    return Graph(model, shapes)


def pyramid(net: Net, width: int = 32, levels: int = 3) -> list[str]:
    """Backbone of `levels` scales (16, 8, 4 … pixels), heavy enough that a 1x1 head is a small share."""
    x = net.op("Relu", net.conv("image", width, 3, name="stem"))
    maps = []
    for level in range(levels):
        if level:
            x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        for _ in range(3):
            x = net.op("Relu", net.conv(x, width, width))
        maps.append(x)
    return maps


def flat(net: Net, x: str, channels: int) -> str:
    return net.op("Reshape", x, net.constant(f"shape{len(net.nodes)}", np.array([1, channels, -1], np.int64)))


def yolov8(path: Path, levels: int = 3) -> tuple[Path, set[str], str]:
    """Boxes as distributions, classes beside them; returns the head's convolutions and the DFL's."""
    net = Net(3, size=16)
    boxes, scores, wanted = [], [], set()
    for level, x in enumerate(pyramid(net, levels=levels)):
        mixed = net.op("Relu", net.conv(x, 32, 32))
        side, kind = f"a{level}", f"b{level}"
        wanted |= {side, kind}
        boxes.append(flat(net, net.conv(mixed, 4 * BINS_OF_A_SIDE, 32, kernel=1, name=side), 4 * BINS_OF_A_SIDE))
        scores.append(flat(net, net.conv(mixed, 5, 32, kernel=1, name=kind), 5))
    whole = net.op("Concat", *boxes, axis=2) if levels > 1 else boxes[0]
    shape = net.constant("bins", np.array([1, 4, BINS_OF_A_SIDE, -1], np.int64))
    turned = net.op("Transpose", net.op("Reshape", whole, shape), perm=[0, 2, 1, 3])
    steps = net.constant("steps", np.arange(BINS_OF_A_SIDE, dtype=np.float32).reshape(1, -1, 1, 1))
    sides = net.op("Conv", net.op("Softmax", turned, axis=1), steps, name="expected", kernel_shape=[1, 1])
    half = net.constant("stride", np.array([8.0], np.float32))
    decoded = net.op("Mul", flat(net, sides, 4), half)
    classes = net.op("Sigmoid", net.op("Concat", *scores, axis=2) if levels > 1 else scores[0])
    return net.save(path, net.op("Concat", decoded, classes, name="all", axis=1), 3), wanted, "expected"


def yolox(path: Path) -> tuple[Path, set[str]]:
    """Boxes, objectness and classes by separate convolutions, joined at each scale before the list of anchors."""
    net = Net(3, size=16)
    parts, wanted = [], set()
    for level, x in enumerate(pyramid(net)):
        names = [f"{letter}{level}" for letter in "abc"]
        wanted |= set(names)
        box = net.conv(net.op("Relu", net.conv(x, 32, 32)), 4, 32, kernel=1, name=names[0])
        sure = net.op("Sigmoid", net.conv(x, 1, 32, kernel=1, name=names[1]))
        kind = net.op("Sigmoid", net.conv(x, 10, 32, kernel=1, name=names[2]))
        parts.append(flat(net, net.op("Concat", box, sure, kind, axis=1), 15))
    joined = net.op("Transpose", net.op("Concat", *parts, axis=2), perm=[0, 2, 1])
    return net.save(path, joined, 3), wanted


def nanodet(path: Path) -> tuple[Path, set[str]]:
    """Classes and distributions from one convolution a scale, cut apart; the anchors are joined at the end."""
    net = Net(3, size=16)
    parts, wanted = [], set()
    for level, x in enumerate(pyramid(net)):
        both = net.conv(x, 12, 32, kernel=1, name=f"a{level}")
        wanted.add(f"a{level}")
        cut = net.constant(f"cut{level}", np.array([4, 8], np.int64))
        net.nodes.append(helper.make_node("Split", [both, cut], [f"c{level}", f"d{level}"], name=f"s{level}", axis=1))
        joined = net.op("Concat", net.op("Sigmoid", f"c{level}"), f"d{level}", axis=1)
        parts.append(net.op("Transpose", flat(net, joined, 12), perm=[0, 2, 1]))
    return net.save(path, net.op("Concat", *parts, axis=1), 3), wanted


def raw(path: Path, kernel: int = 1) -> tuple[Path, set[str]]:
    """Every scale an output of its own, nothing decoded."""
    net = Net(3, size=16)
    names = [f"a{level}" for level in range(3)]
    outputs = [net.conv(x, 15, 32, kernel=kernel, name=n) for n, x in zip(names, pyramid(net), strict=True)]
    model = net.model(outputs[0], 4)
    for name in outputs[1:]:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None, None, None]))
    onnx.save(model, str(path))
    return path, set(names)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("scheme", [TENSORRT, CPU], ids=["tensorrt", "onnxruntime"])
def test_bins_and_output_convolutions_of_a_yolov8_stay_float(tmp_path: Path, levels: int, scheme: Scheme) -> None:
    path, wanted, expected = yolov8(tmp_path / "m.onnx", levels)
    graph = graph_of(path)
    found = place(graph, scheme)
    told = {node for node, why in found.why_float.items() if why == OUTPUT}
    assert (told, found.why_float[expected]) == (wanted, BINS)
    assert _outside(found, head_of(graph).nodes - wanted)
    assert coverage(graph, found).macs > 0.85


@pytest.mark.parametrize("build", [yolox, nanodet, raw])
@pytest.mark.parametrize("scheme", [TENSORRT, CPU], ids=["tensorrt", "onnxruntime"])
def test_output_convolutions_stay_float(
    tmp_path: Path, build: Callable[[Path], tuple[Path, set[str]]], scheme: Scheme
) -> None:
    path, wanted = build(tmp_path / "m.onnx")
    graph = graph_of(path)
    found = place(graph, scheme)
    assert {node for node, why in found.why_float.items() if why == OUTPUT} == wanted
    assert _outside(found, head_of(graph).nodes - wanted)
    assert coverage(graph, found).macs > 0.85


def _outside(found: Placement, nodes: frozenset[str]) -> bool:
    """No decoding node reads through Q/DQ."""
    return not any(edge.node in nodes for activation in found.activations for edge in activation.edges)


def test_an_expected_value_by_matmul_is_one_too(tmp_path: Path) -> None:
    net = Net(3, size=16)
    shape = net.constant("bins", np.array([1, 4, BINS_OF_A_SIDE, -1], np.int64))
    x = net.op("Reshape", net.conv(pyramid(net)[-1], 4 * BINS_OF_A_SIDE, 32, kernel=1, name="sides"), shape)
    turned = net.op("Softmax", net.op("Transpose", x, perm=[0, 1, 3, 2]), axis=3)
    steps = net.constant("steps", np.arange(BINS_OF_A_SIDE, dtype=np.float32).reshape(-1, 1))
    path = net.save(tmp_path / "m.onnx", net.op("MatMul", turned, steps, name="expected"), 4)
    assert head_of(graph_of(path)).layers == {"expected": BINS, "sides": OUTPUT}


def test_dear_output_convolutions_are_kept_from_the_cheapest_kind_up(tmp_path: Path) -> None:
    """3x3 convolutions to many classes are half of this network: its boxes stay float, its classes don't."""
    net = Net(3, size=16)
    parts = []
    for level, x in enumerate(pyramid(net)):
        parts.append(flat(net, net.conv(x, 4, 32, kernel=3, name=f"box{level}"), 4))
        parts.append(flat(net, net.conv(x, 180, 32, kernel=3, name=f"class{level}"), 4))
    graph = graph_of(net.save(tmp_path / "m.onnx", net.op("Concat", *parts, axis=2), 3))
    assert set(head_of(graph).layers) == {"box0", "box1", "box2"}
    assert coverage(graph, place(graph, TENSORRT)).macs > 0.85


def test_other_networks_have_no_head(tmp_path: Path) -> None:
    assert head_of(graph_of(residual_net(tmp_path / "classifier.onnx"))).layers == {}

    net = Net(3, size=16)  # two scales, the smaller resized to the larger and added, as LRASPP does
    large, _, small = pyramid(net)
    up = net.constant("up", np.array([1, 1, 4, 4], np.float32))
    low, high = net.conv(large, 4, 32, kernel=1), net.conv(small, 4, 32, kernel=1)
    total = net.op("Add", low, net.op("Resize", high, "", up, mode="linear"))
    assert head_of(graph_of(net.save(tmp_path / "segments.onnx", total, 4))).layers == {}

    net = Net(3, size=16)  # an auxiliary classifier's vector beside the main one's
    vectors = [
        net.op("Flatten", net.op("GlobalAveragePool", net.conv(x, 4, 32, kernel=1))) for x in pyramid(net, levels=2)
    ]
    assert head_of(graph_of(net.save(tmp_path / "two.onnx", net.op("Concat", *vectors, axis=1)))).layers == {}

    net = Net(3, size=16)  # one map is a segmentation, whatever its activation
    last = net.op("Softmax", net.conv(pyramid(net)[-1], 4, 32, kernel=1), axis=1)
    assert head_of(graph_of(net.save(tmp_path / "map.onnx", last, 4))).layers == {}

    path, _ = raw(tmp_path / "features.onnx", kernel=3)  # a feature pyramid: the maps of a backbone, not a head
    assert head_of(graph_of(path)).layers == {}


def test_yolox_nano(packs: Path) -> None:
    graph = graph_of(packs / "yolox-nano" / "yolox_nano.onnx")
    found = head_of(graph).layers
    weights = {node.inputs[1].name for node in graph.nodes() if node.name in found}
    assert weights == {f"head.{kind}_preds.{level}.weight" for kind in ("cls", "obj", "reg") for level in range(3)}
    assert coverage(graph, place(graph, TENSORRT)).macs > 0.95


@pytest.mark.slow
def test_yolov8n(packs: Path, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ultralytics")
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    from floats import float_model

    float_model("yolov8n", packs, tmp_path / "m.onnx")
    graph = graph_of(tmp_path / "m.onnx")
    assert sorted(name.split("/")[-2] for name in head_of(graph).layers) == [
        "conv", "cv2.0.2", "cv2.1.2", "cv2.2.2", "cv3.0.2", "cv3.1.2", "cv3.2.2",
    ]  # fmt: skip
    assert coverage(graph, place(graph, TENSORRT)).macs > 0.97
