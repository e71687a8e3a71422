# ruff: noqa: E501  # a graph a line
"""Graphs as strangers' exporters write them: each a right file that must be quantized and keep its ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
N = helper.make_node


@dataclass
class Foreign:
    """One graph: input `x` (N, 3, 16, 16); `r` is the Relu of the first Conv, (N, 16, 16, 16)."""

    nodes: list[NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: list[ValueInfoProto] = field(default_factory=list)
    opset: int = 17
    functions: tuple[onnx.FunctionProto, ...] = ()
    opsets: tuple[str, ...] = ()
    inputs: tuple[ValueInfoProto, ...] = ()
    batch: str | int = "N"

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.weights = {"w0": self.random(16, 3, 3, 3), "w1": self.random(16, 16, 1, 1), **self.weights}
        self.nodes = [N("Conv", ["x", "w0"], ["c"], "first", pads=[1] * 4), N("Relu", ["c"], ["r"], "relu")]

    def random(self, *shape: int) -> np.ndarray:
        return (np.random.default_rng(sum(shape)).standard_normal(shape) * 0.3).astype(np.float32)

    def add(self, *nodes: NodeProto, **weights: np.ndarray) -> Foreign:
        self.nodes += nodes
        self.weights |= weights
        return self

    def out(self, name: str, shape: tuple[object, ...] = ("N", 16, 16, 16), kind: int = FLOAT) -> Foreign:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return self

    def save(self, path: Path) -> Path:
        x = helper.make_tensor_value_info("x", FLOAT, [self.batch, 3, 16, 16])
        tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "g", [x, *self.inputs], self.outputs, tensors)
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(name, 1) for name in self.opsets)]
        ir = {11: 6, 17: 8, 18: 8, 19: 9, 21: 10, 22: 10, 23: 11}[self.opset]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=self.functions)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
        return path


def _last(name: str = "y") -> NodeProto:
    return N("Conv", ["r", "w1"], [name], "last")


def branches(condition: str, then: list[NodeProto], other: list[NodeProto], name: str = "y") -> NodeProto:
    shape = ("N", 16, 16, 16)
    graphs = [
        helper.make_graph(nodes, branch, [], [helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, shape)])
        for nodes, branch in ((then, "then"), (other, "else"))
    ]
    return N("If", [condition], [name], "if", then_branch=graphs[0], else_branch=graphs[1])


def looping() -> NodeProto:
    shape = ("N", 16, 16, 16)
    body = helper.make_graph(
        [N("Conv", ["s", "w1"], ["t"], "inner"), N("Relu", ["t"], ["u"]), N("Identity", ["going"], ["still"])],
        "body",
        [helper.make_tensor_value_info("turn", INT64, []), helper.make_tensor_value_info("going", TensorProto.BOOL, []),
         helper.make_tensor_value_info("s", FLOAT, shape)],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), helper.make_tensor_value_info("u", FLOAT, shape)],
    )  # fmt: skip
    return N("Loop", ["turns", "", "d"], ["looped"], "loop", body=body)


def _function() -> Foreign:
    relu = helper.make_function(
        "local", "Twice", ["a"], ["b"], [N("Relu", ["a"], ["m"]), N("Add", ["m", "m"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    twice = N("Twice", ["d"], ["y"], domain="local")
    return Foreign(functions=(relu,), opsets=("local",)).add(_last("d"), twice).out("y")


def _norm_source() -> Foreign:
    one = {name: np.abs(Foreign().random(16)) + 0.5 for name in ("g", "b", "m", "v")}
    norm = N("BatchNormalization", ["d", "g", "b", "m", "v"], ["y"])
    return Foreign().add(_last("d"), norm, **one).out("y").out("d")


def _training_norm() -> Foreign:
    one = {name: np.abs(Foreign().random(16)) * 9 + 0.5 for name in ("g", "b", "m", "v")}
    norm = N("BatchNormalization", ["d", "g", "b", "m", "v"], ["n", "rm", "rv"], training_mode=1)
    return Foreign().add(_last("d"), norm, N("Relu", ["n"], ["y"]), **one).out("y")


def _gemm(*shape: int, **attributes: float) -> Foreign:
    made = Foreign().add(N("GlobalAveragePool", ["r"], ["p"]), N("Flatten", ["p"], ["f"]))
    return made.add(N("Gemm", ["f", "wg", "bg"], ["y"], "fc", **attributes),
                    wg=made.random(16, 24), bg=made.random(*shape)).out("y", ("N", 24))  # fmt: skip


def _group_norm() -> Foreign:
    norm = N("GroupNormalization", ["r", "gs", "gb"], ["n"], "gn", num_groups=4)
    made = Foreign(opset=21)
    return made.add(norm, N("Conv", ["n", "w1"], ["y"]), gs=made.random(16) + 1, gb=made.random(16)).out("y")


def _sequence() -> Foreign:
    made = Foreign()
    split = N("SplitToSequence", ["r", "parts"], ["sq"], axis=1)
    halves = (N("SequenceAt", ["sq", "zero"], ["s0"]), N("SequenceAt", ["sq", "one"], ["s1"]))
    made.add(split, *halves, N("Add", ["s0", "s1"], ["a"]), N("Conv", ["a", "w8"], ["y"]), w8=made.random(16, 8, 1, 1))
    return made.add(parts=np.array([8, 8]), zero=np.array(0), one=np.array(1)).out("y")


def _computed_reshape() -> Foreign:
    made = Foreign().add(N("GlobalAveragePool", ["r"], ["p"]), N("Shape", ["p"], ["s"]),
                         N("Cast", ["s"], ["s32"], to=TensorProto.INT32), N("Slice", ["s32", "zero", "one"], ["b"]),
                         N("Cast", ["b"], ["b64"], to=INT64), N("Cast", ["sixteen"], ["c64"], to=INT64),
                         N("Concat", ["b64", "c64"], ["to"], axis=0), N("Reshape", ["p", "to"], ["f"]))  # fmt: skip
    made.add(N("MatMul", ["f", "wf"], ["y"]), zero=np.array([0]), one=np.array([1]), sixteen=np.array([16], np.int32))
    return made.add(wf=made.random(16, 10)).out("y", ("N", 10))


def _positions() -> Foreign:
    made = Foreign()
    nodes = (N("MatMul", ["grid", "wp"], ["pe"], "position"), N("Reshape", ["pe", "sh"], ["p4"]),
             N("Transpose", ["p4"], ["pt"], perm=[0, 3, 1, 2]), N("Add", ["r", "pt"], ["a"]),
             N("Conv", ["a", "w1"], ["y"]))  # fmt: skip
    return made.add(*nodes, grid=made.random(256, 2), wp=made.random(2, 16), sh=np.array([1, 16, 16, 16])).out("y")


def _half(kind: int, opset: int) -> Foreign:
    """Weights and arithmetic in half precision between Casts."""
    made = Foreign(opset=opset)
    made.nodes = [N("Cast", ["x"], ["xh"], to=kind), N("Conv", ["xh", "h0"], ["c"], "first", pads=[1] * 4),
                  N("Relu", ["c"], ["rh"]), N("Conv", ["rh", "h1"], ["yh"], "last"),
                  N("Cast", ["yh"], ["y"], to=FLOAT)]  # fmt: skip
    narrow = {"h0": made.weights.pop("w0"), "h1": made.weights.pop("w1")}
    return made.add(
        **{name: array.astype(helper.tensor_dtype_to_np_dtype(kind)) for name, array in narrow.items()}
    ).out("y")


def _overridable() -> Foreign:
    """Initializers that are inputs too, as before IR version 4."""
    made = Foreign(inputs=(helper.make_tensor_value_info("w1", FLOAT, [16, 16, 1, 1]),)).add(_last())
    return made.out("y")


def _added(*shape: int, out: tuple[object, ...] = ("N", 8)) -> Foreign:
    made = Foreign().add(N("GlobalAveragePool", ["r"], ["p"]), N("Flatten", ["p"], ["f"]))
    made.add(N("MatMul", ["f", "wm"], ["z"], "product"), N("Add", ["z", "b"], ["y"], "sum"))
    return made.add(wm=made.random(16, 8), b=made.random(*shape)).out("y", out)


def _computed_bias() -> Foreign:
    made = Foreign().add(
        N("GlobalAveragePool", ["r"], ["p"]), N("Flatten", ["p"], ["f"]), N("Mul", ["f", "two"], ["g"])
    )
    made.add(N("Gemm", ["f", "wg", "g"], ["y"], "fc", beta=0.5, alpha=2.0), wg=made.random(16, 16), two=np.float32(2))
    return made.out("y", ("N", 16))


def _left_weight() -> Foreign:
    made = Foreign().add(N("Reshape", ["r", "list"], ["f"]), N("MatMul", ["W", "f"], ["y"], "left"))
    return made.add(list=np.array([0, 16, 256]), W=made.random(8, 16)).out("y", ("N", 8, 256))


def _later(op: str, opset: int, **attributes: object) -> Foreign:
    return Foreign(opset=opset).add(N(op, ["r"], ["n"], **attributes), N("Conv", ["n", "w1"], ["y"])).out("y")


def _rms() -> Foreign:
    made = Foreign(opset=23).add(N("RMSNormalization", ["r", "g"], ["n"], axis=-1), N("Conv", ["n", "w1"], ["y"]))
    return made.add(g=made.random(16) + 1).out("y")


def _attention() -> Foreign:
    made = Foreign(opset=23).add(N("Reshape", ["r", "list"], ["f"]), N("Transpose", ["f"], ["t"], perm=[0, 2, 1]))
    made.add(N("Attention", ["t", "t", "t"], ["a"], q_num_heads=2, kv_num_heads=2), N("MatMul", ["a", "wm"], ["y"]))
    return made.add(list=np.array([0, 16, 256]), wm=made.random(16, 8)).out("y", ("N", 256, 8))


def _as_tensorflow() -> Foreign:
    made = Foreign(opset=11)
    made.nodes = [N("Conv", ["x", "w0"], ["c"], pads=[1] * 4), N("BatchNormalization", ["c", "g", "b", "m", "v"], ["bn"]),
                  N("Clip", ["bn", "lo", "hi"], ["r"]), N("Pad", ["r", "pads"], ["pp"], mode="constant"),
                  N("Conv", ["pp", "w3"], ["d"]), N("GlobalAveragePool", ["d"], ["gp"]),
                  N("Squeeze", ["gp"], ["y"], axes=[2, 3])]  # fmt: skip
    norm = {name: np.abs(made.random(16)) + 0.5 for name in ("g", "b", "m", "v")}
    made.add(
        lo=np.float32(0), hi=np.float32(6), pads=np.array([0, 0, 0, 0, 0, 0, 1, 1]), w3=made.random(8, 16, 3, 3), **norm
    )
    return made.out("y", ("N", 8))


def _as_paddle() -> Foreign:
    made = Foreign(opset=11).add(N("Shape", ["r"], ["sh"]), N("Slice", ["sh", "z", "o"], ["n"]),
                                 N("Concat", ["n", "rest"], ["to"], axis=0), N("Reshape", ["r", "to"], ["f"]),
                                 N("Transpose", ["f"], ["t"], perm=[0, 2, 1]), N("MatMul", ["t", "wm"], ["mm"]),
                                 N("Add", ["mm", "b"], ["s"]), N("Softmax", ["s"], ["y"], axis=2))  # fmt: skip
    made.add(z=np.array([0]), o=np.array([1]), rest=np.array([16, 256]), wm=made.random(16, 8), b=made.random(8))
    return made.out("y", ("N", 256, 8))


def _half_ends() -> Foreign:
    made = _half(TensorProto.FLOAT16, 17)
    made.nodes[-2:] = [N("Conv", ["rh", "h1"], ["y"], "last"), N("Identity", ["y"], ["y2"])]
    made.outputs.clear()
    return made.out("y", kind=TensorProto.FLOAT16).out("y2", kind=TensorProto.FLOAT16)


def _named(tensor: str = "", node: str = "", weight: str = "") -> Foreign:
    """The Mul's output, the second Conv or the factor under a name like one of ours."""
    factor = weight or "factor"
    made = Foreign().add(N("Conv", ["r", "w1"], ["d"], node or "last"), N("Mul", ["r", factor], [tensor or "e"], "mul"),
                         N("Add", ["d", tensor or "e"], ["y"], "add"))  # fmt: skip
    return made.add(**{factor: np.abs(made.random(1, 16, 1, 1))}).out("y")


OURS = ("r_scale", "r_zero_point", "r_quantized", "r_dequantized", "r_clipped", "r_lowest", "r.fp16", "r.fp32", "y_float",
        "y.fp16", "w1_quantized", "w1_scale", "w1_dequantized", "w1.fp16", "edgecnn.seen", "edgecnn.probe", "probe_scale",
        "val_0", "r.half", "r.back", "r.exact", "edgecnn.mean.0", "edgecnn.ReduceMax.0", "edgecnn.zero", "edgecnn.smallest.0",
        "edgecnn.same.r")  # fmt: skip
OUR_NODES = ("r_QuantizeLinear", "r_DequantizeLinear", "r_Clip", "r.to_fp16", "y.to_fp32", "w1_quantized_DequantizeLinear",
             "edgecnn.probe")  # fmt: skip

ZOO: dict[str, Callable[[], Foreign]] = {
    "output twice by Identity": lambda: Foreign().add(_last(), N("Identity", ["y"], ["y2"])).out("y").out("y2"),
    "copy first": lambda: Foreign().add(_last(), N("Identity", ["y"], ["y2"])).out("y2").out("y"),
    "output twice by Dropout": lambda: Foreign().add(_last(), N("Dropout", ["y"], ["y2"])).out("y").out("y2"),
    "three copies": lambda: Foreign().add(_last(), *(N("Identity", ["y"], [f"y{i}"]) for i in (2, 3))).out("y").out("y2").out("y3"),
    "computed twice": lambda: Foreign().add(_last("d"), N("Relu", ["d"], ["y"]), N("Relu", ["d"], ["y2"])).out("y").out("y2"),
    "cast of the same type": lambda: Foreign().add(_last(), N("Cast", ["y"], ["y2"], to=FLOAT)).out("y").out("y2"),
    "inner tensor too": lambda: Foreign().add(_last(), N("Identity", ["r"], ["seen"])).out("y").out("seen"),
    "tensor that is read on": lambda: Foreign().add(_last()).out("r").out("y"),
    "norm and its source": _norm_source,
    "norm in training mode": _training_norm,
    "weight too": lambda: Foreign().add(_last()).out("y").out("w1", (16, 16, 1, 1)),
    "initializer": lambda: Foreign(weights={"p": np.ones((50, 4), np.float32)}).add(_last()).out("p", (50, 4)).out("y"),
    "constant": lambda: Foreign().add(_last(), N("Constant", [], ["p"], value_floats=[1.0, 2.0])).out("y").out("p", (2,)),
    "copy of a weight": lambda: Foreign().add(_last(), N("Identity", ["w1"], ["p"])).out("y").out("p", (16, 16, 1, 1)),
    "input passed on": lambda: Foreign().add(_last(), N("Identity", ["x"], ["same"])).out("y").out("same", ("N", 3, 16, 16)),
    "shape": lambda: Foreign().add(_last(), N("Shape", ["y"], ["size"])).out("y").out("size", (4,), INT64),
    "decided If": lambda: Foreign(weights={"yes": np.array(True)}).add(
        _last("d"), branches("yes", [N("Identity", ["d"], ["a"])], [N("Relu", ["d"], ["b"])])).out("y"),
    "decided If of an output": lambda: Foreign(weights={"yes": np.array(False)}).add(
        _last("d"), branches("yes", [N("Relu", ["d"], ["a"])], [N("Identity", ["d"], ["b"])])).out("y").out("d"),
    "open If": lambda: Foreign(weights={"edge": np.float32(0.0)}).add(
        _last("d"), N("ReduceMean", ["d"], ["mean"], keepdims=0), N("Greater", ["mean", "edge"], ["open"]),
        branches("open", [N("Identity", ["d"], ["a"])], [N("Relu", ["d"], ["b"])])).out("y"),
    "If of constants": lambda: Foreign(weights={"edge": np.float32(0.0)}).add(
        _last("d"), N("ReduceMean", ["d"], ["mean"], keepdims=0), N("Greater", ["mean", "edge"], ["open"]),
        branches("open", [N("Constant", [], ["k"], value_floats=[1.0]), N("Add", ["d", "k"], ["a"])],
            [N("Relu", ["d"], ["b"])])).out("y"),
    "Loop": lambda: Foreign(weights={"turns": np.array(2)}).add(_last("d"), looping(), N("Relu", ["looped"], ["y"])).out("y"),
    "function": _function,
    "bias (1, N)": lambda: _gemm(1, 24),
    "bias (1, 1)": lambda: _gemm(1, 1),
    "bias (1,)": lambda: _gemm(1),
    "bias ()": lambda: _gemm(),
    "alpha and beta": lambda: _gemm(24, alpha=0.5, beta=2.0),
    "group norm 21": _group_norm,
    "sum with a number": _added,
    "sum with (1, 8)": lambda: _added(1, 8),
    "sum of more dimensions": lambda: _added(1, 1, 1, 8, out=(1, 1, "N", 8)),
    "computed bias": _computed_bias,
    "weight on the left": _left_weight,
    "free sizes as -1": lambda: Foreign(batch=-1).add(_last()).out("y", (-1, 16, 16, 16)),
    "Gelu 20": lambda: _later("Gelu", 21, approximate="tanh"),
    "HardSwish 22": lambda: _later("HardSwish", 22),
    "RMSNormalization": _rms,
    "Attention 23": _attention,
    "as from TensorFlow": _as_tensorflow,
    "as from Paddle": _as_paddle,
    "FP16 outputs twice": _half_ends,
    "an output called like the input": lambda: Foreign().add(_last()).out("y").out("x", ("N", 3, 16, 16)),
    "sequence": _sequence,
    "computed reshape": _computed_reshape,
    "constant data": _positions,
    "FP16": lambda: _half(TensorProto.FLOAT16, 17),
    "BF16": lambda: _half(TensorProto.BFLOAT16, 22),
    "weights that are inputs": _overridable,
    "empty inputs": lambda: Foreign(weights={"six": np.float32(6.0), "sizes": np.array([1, 1, 2, 2], np.float32)}).add(
        _last("d"), N("Clip", ["d", "", "six"], ["e"]), N("Resize", ["e", "", "sizes"], ["y"], mode="nearest")
    ).out("y", ("N", 16, 32, 32)),
    "empty outputs": lambda: Foreign().add(
        N("Dropout", ["r"], ["p", "mask"]), N("MaxPool", ["p"], ["q", ""], kernel_shape=[1, 1]),
        N("Conv", ["q", "w1"], ["y"])).out("y"),
    **{f"tensor {name}": lambda name=name: _named(tensor=name) for name in OURS},
    **{f"weight {name}": lambda name=name: _named(weight=name) for name in OURS},
    **{f"node {name}": lambda name=name: _named(node=name) for name in OUR_NODES},
}  # fmt: skip
