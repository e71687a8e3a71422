"""Every operator that a block may hold: torch answers what onnxruntime answers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch")
import torch

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.torch.operators import OPERATORS, apply, unmapped

RNG = np.random.default_rng(0)
IMAGE = (2, 4, 6, 8)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def one(op: str, shapes: list[tuple[int, ...]], constants: list[np.ndarray | None], outputs: int = 1, opset: int = 19,
        **attributes: object) -> onnx.ModelProto:  # fmt: skip
    """A graph of one node: inputs of these shapes first, then its constants (None: left out)."""
    names = [f"x{i}" for i in range(len(shapes))]
    given = [f"c{i}" if c is not None else "" for i, c in enumerate(constants)]
    made = [f"y{i}" for i in range(outputs)]
    known = shapes[0] if op == "GroupNormalization" else None  # onnx infers no shape of it
    graph = helper.make_graph(
        [helper.make_node(op, [*names, *given], made, name="node", **attributes)], "one",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(names, shapes, strict=True)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, known) for n in made],
        [numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(constants) if c is not None],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


CASES = {
    "Conv": one("Conv", [IMAGE], [floats(8, 4, 3, 3), floats(8)], strides=[2, 1], pads=[1, 1, 1, 1]),
    "Conv depthwise": one("Conv", [IMAGE], [floats(8, 1, 3, 3)], group=4, pads=[1, 1, 1, 1]),
    "Conv grouped, dilated": one("Conv", [IMAGE], [floats(6, 2, 3, 3)], group=2, dilations=[2, 2], pads=[2, 2, 2, 2]),
    "Conv uneven": one("Conv", [IMAGE], [floats(8, 4, 3, 3)], strides=[2, 2], pads=[0, 0, 1, 1]),
    "Conv 1d": one("Conv", [(2, 4, 9)], [floats(3, 4, 3), floats(3)], pads=[1, 1]),
    "ConvTranspose": one("ConvTranspose", [IMAGE], [floats(4, 3, 3, 3), floats(3)], strides=[2, 2], pads=[1, 1, 1, 1],
                         output_padding=[1, 1]),
    "ConvTranspose grouped": one("ConvTranspose", [IMAGE], [floats(4, 3, 2, 2), floats(6)], group=2, strides=[2, 2]),
    "ConvTranspose uneven": one("ConvTranspose", [IMAGE], [floats(4, 3, 3, 3), floats(3)], strides=[2, 2],
                                pads=[0, 1, 1, 0], output_padding=[1, 0]),
    "ConvTranspose to a shape": one("ConvTranspose", [IMAGE], [floats(4, 3, 3, 3), floats(3)], strides=[2, 2],
                                    output_shape=[12, 16]),
    "ConvTranspose 1d uneven": one("ConvTranspose", [(2, 4, 9)], [floats(4, 3, 3)], strides=[2], pads=[0, 1]),
    "Einsum": one("Einsum", [(2, 4, 6), (2, 5, 6)], [], equation="bij,bkj->bik"),
    "Einsum constant": one("Einsum", [IMAGE], [floats(4, 5)], equation="bchw,cd->bdhw"),
    "LayerNormalization": one("LayerNormalization", [(2, 5, 8)], [floats(8), floats(8)], epsilon=1e-4),
    "LayerNormalization, scale only": one("LayerNormalization", [IMAGE], [floats(4, 6, 8)], axis=1),
    "InstanceNormalization": one("InstanceNormalization", [IMAGE], [floats(4), floats(4)], epsilon=1e-3),
    "GroupNormalization": one("GroupNormalization", [IMAGE], [floats(4), floats(4)], num_groups=2, opset=21),
    "GroupNormalization 18": one("GroupNormalization", [IMAGE], [floats(2), floats(2)], num_groups=2, opset=18),
    "Gelu": one("Gelu", [IMAGE], [], opset=20),
    "Gelu tanh": one("Gelu", [IMAGE], [], opset=20, approximate="tanh"),
    "Mish": one("Mish", [IMAGE], []),
    "Softplus": one("Softplus", [IMAGE], []),
    "Elu": one("Elu", [IMAGE], [], alpha=0.7),
    "Softmax": one("Softmax", [IMAGE], [], axis=1),
    "Erf": one("Erf", [IMAGE], []),
    "Exp": one("Exp", [IMAGE], []),
    "Sqrt of a square": one("Sqrt", [IMAGE], []),
    "Abs": one("Abs", [IMAGE], []),
    "Neg": one("Neg", [IMAGE], []),
    "Pow": one("Pow", [IMAGE], [np.float32(2.0)]),
    "Max": one("Max", [IMAGE, IMAGE], [np.float32(0.1)]),
    "Min": one("Min", [IMAGE, (2, 4, 1, 1)], []),
    "Sum": one("Sum", [IMAGE, IMAGE, IMAGE], []),
    "GlobalMaxPool": one("GlobalMaxPool", [IMAGE], []),
    "ReduceSum": one("ReduceSum", [IMAGE], [whole(-1)], keepdims=0),
    "ReduceSum of all": one("ReduceSum", [IMAGE], []),
    "ReduceSum of none": one("ReduceSum", [IMAGE], [], noop_with_empty_axes=1),
    "ReduceMax": one("ReduceMax", [IMAGE], [whole(1)]),
    "ReduceMin": one("ReduceMin", [IMAGE], [whole(2, 3)]),
    "Gather": one("Gather", [IMAGE], [whole(3, -4, 1)], axis=1),
    "Gather one": one("Gather", [IMAGE], [np.int64(-1)], axis=2),
    "Expand": one("Expand", [(2, 1, 6, 1)], [whole(4, 1, 8)]),
    "Pad reflect": one("Pad", [IMAGE], [whole(0, 0, 1, 1, 0, 0, 2, 1)], mode="reflect"),
    "Pad edge": one("Pad", [IMAGE], [whole(0, 1, 1, 0, 0, 0, 2, 1)], mode="edge"),
    "Gemm": one("Gemm", [(3, 5)], [floats(4, 5), floats(4)], transB=1),
    "Gemm alpha": one("Gemm", [(3, 5)], [floats(5, 4), floats(4)], alpha=0.5, beta=2.0),
    "MatMul": one("MatMul", [(2, 3, 5)], [floats(5, 4)]),
    "Relu": one("Relu", [IMAGE], []),
    "Clip": one("Clip", [IMAGE], [np.float32(0.0), np.float32(0.6)]),
    "Clip, upper only": one("Clip", [IMAGE], [None, np.float32(0.6)]),
    "LeakyRelu": one("LeakyRelu", [IMAGE], [], alpha=0.2),
    "PRelu": one("PRelu", [IMAGE], [floats(4, 1, 1)]),
    "Sigmoid": one("Sigmoid", [IMAGE], []),
    "Tanh": one("Tanh", [IMAGE], []),
    "HardSigmoid": one("HardSigmoid", [IMAGE], [], alpha=1 / 6, beta=0.5),
    "HardSwish": one("HardSwish", [IMAGE], []),
    "Add": one("Add", [IMAGE, IMAGE], []),
    "Add constant": one("Add", [IMAGE], [floats(1, 4, 1, 1)]),
    "Sub": one("Sub", [IMAGE, (2, 4, 1, 1)], []),
    "Mul": one("Mul", [IMAGE, (2, 4, 1, 1)], []),
    "Div": one("Div", [IMAGE], [np.float32([[[[2.0]]]])]),
    "Concat": one("Concat", [IMAGE, IMAGE, IMAGE], [], axis=1),
    "MaxPool": one("MaxPool", [IMAGE], [], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool ceil": one("MaxPool", [IMAGE], [], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "MaxPool 5": one("MaxPool", [IMAGE], [], kernel_shape=[5, 5], strides=[1, 1], pads=[2, 2, 2, 2]),
    "AveragePool": one("AveragePool", [IMAGE], [], kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
    "AveragePool padded": one("AveragePool", [IMAGE], [], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "GlobalAveragePool": one("GlobalAveragePool", [IMAGE], []),
    "ReduceMean": one("ReduceMean", [IMAGE], [whole(2, 3)], keepdims=0),
    "ReduceMean 13": one("ReduceMean", [IMAGE], [], opset=13, axes=[-1, -2], keepdims=1),
    "Resize floor": one("Resize", [IMAGE], [None, np.float32([1, 1, 2, 2])], mode="nearest",
                        coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "Resize half pixel": one("Resize", [IMAGE], [None, np.float32([1, 1, 2, 3])], mode="nearest"),
    **{
        f"Resize {mode} {how} {scale}": one("Resize", [IMAGE], [None, np.float32([1, 1, scale, scale])], mode=mode,
                                            coordinate_transformation_mode=how)
        for mode in ("nearest", "linear", "cubic") for scale in (2.0, 1.5, 0.5)
        for how in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    },
    **{
        f"Resize {mode}": one("Resize", [IMAGE], [None, np.float32([1, 1, 1.7, 0.6])], nearest_mode=mode)
        for mode in ("ceil", "round_prefer_ceil", "floor")
    },
    "Resize to a size": one("Resize", [IMAGE], [None, None, whole(2, 4, 9, 5)], mode="linear"),
    "Slice": one("Slice", [IMAGE], [whole(1, 0), whole(2**31, -1), whole(3, 2), whole(2, 1)]),
    "Slice backwards": one("Slice", [IMAGE], [whole(-1), whole(-(2**62)), whole(1), whole(-1)]),
    "Split": one("Split", [IMAGE], [whole(1, 3)], outputs=2, axis=1),
    "Split evenly": one("Split", [IMAGE], [], outputs=2, axis=1, num_outputs=2),
    "Reshape": one("Reshape", [IMAGE], [whole(0, 2, -1, 8)]),
    "Flatten": one("Flatten", [IMAGE], [], axis=1),
    "Transpose": one("Transpose", [IMAGE], [], perm=[0, 2, 3, 1]),
    "Squeeze": one("Squeeze", [(2, 4, 1, 1)], [whole(2, 3)]),
    "Unsqueeze": one("Unsqueeze", [(2, 4)], [whole(-1, 1)]),
    "Pad": one("Pad", [IMAGE], [whole(0, 1, 0, 2, 0, 0, 1, 0), np.float32(0.5)]),
    "BatchNormalization": one("BatchNormalization", [IMAGE], [floats(4), floats(4), floats(4), np.abs(floats(4))],
                              epsilon=1e-3),
    "Identity": one("Identity", [IMAGE], []),
    "DepthToSpace DCR": one("DepthToSpace", [IMAGE], [], blocksize=2),
    "DepthToSpace CRD": one("DepthToSpace", [IMAGE], [], blocksize=2, mode="CRD"),
    "SpaceToDepth": one("SpaceToDepth", [IMAGE], [], blocksize=2),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_torch_answers_what_onnxruntime_answers(case: str) -> None:
    proto = CASES[case]
    if case != "GroupNormalization 18":  # deprecated; runtimes take it
        onnx.checker.check_model(proto)
    feeds = {v.name: floats(*(d.dim_value for d in v.type.tensor_type.shape.dim)) for v in proto.graph.input}
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, feeds)
    node = next(iter(ir.serde.deserialize_model(proto).graph))
    assert unmapped(node) == ""
    inputs = []
    for value in node.inputs:
        array = feeds.get(value.name) if value is not None else None
        array = constant(value) if array is None else array
        inputs.append(torch.from_numpy(np.array(array)) if array is not None else None)
    got = apply(node, inputs)
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        assert tuple(mine.shape) == theirs.shape
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-5, atol=1e-5)


def test_every_mapped_operator_has_a_case() -> None:
    assert {proto.graph.node[0].op_type for proto in CASES.values()} == OPERATORS


UNMAPPED = {
    "Resize antialiased": one("Resize", [IMAGE], [None, np.float32([1, 1, 0.5, 0.5])], mode="linear", antialias=1),
    "Resize a part": one(
        "Resize",
        [IMAGE],
        [floats(8), np.float32([1, 1, 2, 2])],
        mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
    ),
    "CumSum": one("CumSum", [IMAGE], [np.int64(1)]),
    "Pow of whole numbers": one("Pow", [IMAGE], [np.int64(2)]),
    "Gather by a table": one("Gather", [IMAGE], [whole(0, 1, 1, 0).reshape(2, 2)], axis=1),
    "automatic padding": one("Conv", [IMAGE], [floats(8, 4, 3, 3)], auto_pad="SAME_UPPER"),
    "computed weight": one("Conv", [IMAGE, (8, 4, 3, 3)], []),
    "AveragePool ceil": one("AveragePool", [IMAGE], [], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
}


@pytest.mark.parametrize("case", UNMAPPED)
def test_what_is_not_mapped_is_told(case: str) -> None:
    assert unmapped(next(iter(ir.serde.deserialize_model(UNMAPPED[case]).graph)))


def test_a_fixed_batch_of_one_in_a_reshape_takes_any_batch() -> None:
    node = next(iter(ir.serde.deserialize_model(one("Reshape", [(1, 4, 6)], [whole(1, 24)])).graph))
    x = torch.arange(72, dtype=torch.float32).reshape(3, 4, 6)
    assert torch.equal(apply(node, [x, None])[0], x.reshape(3, 24))
