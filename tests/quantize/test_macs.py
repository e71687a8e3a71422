"""Every operator that multiplies and accumulates counts, whether it is quantized or not, and is told of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_zoo import FLOAT, Foreign, N, branches, looping
from onnx import NodeProto, helper
from quantize_graphs import CPU, TENSORRT
from test_foreign_zoo import quantized

FIRST = 16 * 27 * 256  # the zoo's first Conv, the only INT8 layer of these graphs


def einsum() -> Foreign:
    made = Foreign()
    made.add(N("Einsum", ["r", "we"], ["y"], "einsum", equation="nchw,oc->nohw"), we=made.random(8, 16))
    return made.out("y", ("N", 8, 16, 16))


def dots() -> Foreign:
    """The same with an ellipsis."""
    made = Foreign().add(N("Transpose", ["r"], ["t"], perm=[0, 2, 3, 1]))
    made.add(N("Einsum", ["t", "we"], ["y"], "einsum", equation="...c,oc->...o"), we=made.random(8, 16))
    return made.out("y", ("N", 16, 16, 8))


def recurrent(op: str, gates: int) -> Foreign:
    """16 steps of 16 numbers, 8 hidden ones."""
    made = Foreign().add(
        N("ReduceMean", ["r"], ["m"], axes=[3], keepdims=0), N("Transpose", ["m"], ["s"], perm=[2, 0, 1])
    )
    made.add(N(op, ["s", "W", "R"], ["all"], op.lower(), hidden_size=8), N("Squeeze", ["all", "one"], ["y"]))
    made.add(W=made.random(1, gates * 8, 16), R=made.random(1, gates * 8, 8), one=np.array([1]))
    return made.out("y", (16, "N", 8))


def fused() -> Foreign:
    made = Foreign(opsets=("com.microsoft",))
    made.add(N("FusedConv", ["r", "w1"], ["y"], "fused", domain="com.microsoft", activation="Relu"))
    return made.out("y")


def attention() -> Foreign:
    """Scores and values of 256 places with 16 numbers each."""
    made = Foreign(opsets=("com.microsoft",)).add(
        N("Reshape", ["r", "list"], ["f"]), N("Transpose", ["f"], ["t"], perm=[0, 2, 1])
    )
    made.add(N("MultiHeadAttention", ["t", "t", "t"], ["y"], "attention", domain="com.microsoft", num_heads=2))
    return made.add(list=np.array([0, 16, -1])).out("y", ("N", 256, 16))


def branch() -> Foreign:
    """Of an If the heavier branch."""
    made = Foreign(weights={"edge": np.float32(0.0)})
    made.add(N("ReduceMean", ["r"], ["mean"], keepdims=0), N("Greater", ["mean", "edge"], ["open"]))
    return made.add(branches("open", [N("Conv", ["r", "w1"], ["a"], "inner")], [N("Relu", ["r"], ["b"])])).out("y")


def loop() -> Foreign:
    made = Foreign(weights={"turns": np.array(3)}).add(N("Relu", ["r"], ["d"]), looping(), N("Relu", ["looped"], ["y"]))
    return made.out("y")


def scan() -> Foreign:
    """16 rows, each (N, 16, 16) times (16, 4)."""
    inner: list[NodeProto] = [N("MatMul", ["row", "wm"], ["p"], "inner"), N("Identity", ["s"], ["t"])]
    ends = [helper.make_tensor_value_info("s", FLOAT, [1]), helper.make_tensor_value_info("row", FLOAT, ["N", 16, 16])]
    outs = [helper.make_tensor_value_info("t", FLOAT, [1]), helper.make_tensor_value_info("p", FLOAT, ["N", 16, 4])]
    body = helper.make_graph(inner, "body", ends, outs)
    node = N("Scan", ["zero", "r"], ["last", "y"], "scan", body=body, num_scan_inputs=1, scan_input_axes=[2])
    made = Foreign(weights={"zero": np.zeros(1, np.float32)}).add(node)
    return made.add(wm=made.random(16, 4)).out("y", (16, "N", 16, 4))


CASES: dict[str, tuple[Callable[[], Foreign], int, str, str]] = {
    "einsum": (einsum, 256 * 16 * 8, "einsum", "Einsum stays float"),
    "ellipsis": (dots, 256 * 16 * 8, "einsum", "Einsum stays float"),
    "LSTM": (lambda: recurrent("LSTM", 4), 16 * 32 * 24, "lstm", "LSTM stays float"),
    "GRU": (lambda: recurrent("GRU", 3), 16 * 24 * 24, "gru", "GRU stays float"),
    "RNN": (lambda: recurrent("RNN", 1), 16 * 8 * 24, "rnn", "RNN stays float"),
    "fused convolution": (fused, 256 * 16 * 16, "fused", "FusedConv stays float"),
    "attention": (attention, 256 * 256 * 32, "attention", "MultiHeadAttention stays float"),
    "If": (branch, 256 * 16 * 16, "if/inner", "inside If `if`"),
    "Loop": (loop, 3 * 256 * 16 * 16, "loop/inner", "inside Loop `loop`"),
    "Scan": (scan, 16 * 16 * 16 * 4, "scan/inner", "inside Scan `scan`"),
}


@pytest.mark.parametrize("name", CASES)
def test_counted(name: str, tmp_path: Path) -> None:
    made, count, layer, why = CASES[name]
    record: dict[str, Any] = quantized(made().save(tmp_path / "m.onnx"), CPU)
    told = {one["name"]: one for one in record["layers"]}
    assert (told[layer]["macs"], told[layer]["int8"], told[layer]["why_float"]) == (count, False, why)
    assert told["first"]["int8"]
    assert record["coverage"]["macs"] == pytest.approx(FIRST / (FIRST + count))


def test_a_function_of_the_file_counts(tmp_path: Path) -> None:
    """It is written out where it is called, so its layers are quantized too."""
    body = [N("Conv", ["a", "k"], ["b"], "inside")]
    function = helper.make_function("local", "Layer", ["a", "k"], ["b"], body, [helper.make_opsetid("", 17)])
    made = (
        Foreign(functions=(function,), opsets=("local",)).add(N("Layer", ["r", "w1"], ["y"], domain="local")).out("y")
    )
    record: dict[str, Any] = quantized(made.save(tmp_path / "m.onnx"), TENSORRT)
    assert sorted(one["macs"] for one in record["layers"]) == sorted([FIRST, 256 * 16 * 16])
    assert record["coverage"]["macs"] == 1.0
