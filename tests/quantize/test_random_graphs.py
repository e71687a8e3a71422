"""250 random small CNNs through the quantizer: valid files, a bounded error, Q/DQ on exactly the placed edges."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from quantize_graphs import CPU, TENSORRT, contract, pictures
from random_graphs import Builder, networks

from edgecnn.backends.tensorrt.rules import check
from edgecnn.quantize import quantize_model
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import observe, open_session, run
from edgecnn.quantize.place.placement import Graph, Placement, place
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.recipe import QuantizeSpec

IMAGES = pictures(4)
# The error may not exceed this share of the largest answer (root mean square): 8 bits through a few random layers.
LARGEST_ERROR = 0.15
# The same examples in every run; EDGECNN_EXAMPLES asks for another number of them.
settings.register_profile(
    "edgecnn", max_examples=int(os.environ.get("EDGECNN_EXAMPLES", "250")), derandomize=True, deadline=None,
    database=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.mark.slow
@settings(settings.get_profile("edgecnn"))
@given(network=networks(), scheme=st.sampled_from([TENSORRT, TENSORRT, CPU]))
def test_random_networks(tmp_path_factory: object, network: tuple[Builder, str, int], scheme: Scheme) -> None:
    folder: Path = tmp_path_factory.getbasetemp() / "random"  # type: ignore[attr-defined]
    folder.mkdir(exist_ok=True)
    net, output, rank = network
    model = net.model(output, rank)
    model.metadata_props.add(key="edgecnn.io", value='{"kept": true}')
    path = folder / "m.onnx"
    onnx.save(model, str(path))
    quantize_model(folder, QuantizeSpec(images=4, ranges="minmax", recover="off"), scheme, path, IMAGES, contract())
    quantized = onnx.load(str(folder / "model.onnx"))
    onnx.checker.check_model(quantized, full_check=True)

    plain = canonical(path)
    feed = contract().feed(IMAGES.images)
    shapes, _ = observe(plain, [contract().feed(IMAGES.images[:1])])
    placement = place(Graph(plain, shapes), scheme)
    assert_placed(quantized, placement)
    assert_metadata(quantized, json.loads((folder / "quantize.json").read_text()))

    (want,) = run(open_session(plain), feed)
    (got,) = run(open_session(folder / "model.onnx", simulate=True), feed)
    error = np.sqrt(np.mean(np.square(want - got))) / max(np.abs(want).max(), 1e-6)
    assert error <= LARGEST_ERROR, f"{error:.3f}"

    if scheme is TENSORRT:
        onnx.checker.check_model(onnx.load(str(folder / "typed.onnx")), full_check=True)
        assert not check(folder / "typed.onnx")


def assert_placed(model: onnx.ModelProto, placement: Placement) -> None:
    """Q/DQ stand on the placed readings and weights, and nowhere else."""
    constants = {tensor.name for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    edges, weights = set(), set()
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for index, name in enumerate(node.input):
            maker = makers.get(name)
            if maker is None or maker.op_type != "DequantizeLinear":
                continue
            if maker.input[0] in constants:
                weights.add((node.name, index))
            else:
                edges.add((node.name, index, makers[maker.input[0]].input[0]))
    assert edges == {(e.node, e.index, a.tensor) for a in placement.activations for e in a.edges}
    with_bias = [(w.node, w.bias) for w in placement.weights if w.bias is not None and (w.node, w.bias) in weights]
    assert weights == {(w.node, w.index) for w in placement.weights} | set(with_bias)
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == len(placement.activations)


def assert_metadata(model: onnx.ModelProto, report: dict[str, object]) -> None:
    """What the file says of itself is what is in it and in the report."""
    again = onnx.ModelProto.FromString(model.SerializeToString())
    props = {prop.key: prop.value for prop in again.metadata_props}
    assert props["edgecnn.io"] == '{"kept": true}'
    told = json.loads(props["edgecnn.quantize"])
    assert told["tensors"] == report["tensors"]
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in again.graph.initializer}
    quantizers = [node for node in again.graph.node if node.op_type == "QuantizeLinear"]
    scales = {n.name.removesuffix("_QuantizeLinear"): float(arrays[n.input[1]]) for n in quantizers}
    assert scales == {entry["name"]: entry["scale"] for entry in told["tensors"]}
