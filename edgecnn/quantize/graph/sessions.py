"""onnxruntime sessions of this room: calibration, simulation, and what a graph's tensors look like when it runs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from edgecnn.process.errors import EdgeError
from edgecnn.quantize.graph.light import apart
from edgecnn.quantize.graph.names import Names

Feeds = dict[str, np.ndarray]
_KINDS = {
    "float": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16,
    "double": ir.DataType.DOUBLE, "int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8, "int16": ir.DataType.INT16,
    "uint16": ir.DataType.UINT16, "int32": ir.DataType.INT32, "uint32": ir.DataType.UINT32,
    "int64": ir.DataType.INT64, "uint64": ir.DataType.UINT64, "bool": ir.DataType.BOOL,
}  # as onnxruntime calls them  # fmt: skip
_MOST_WORKERS = 8  # each holds the activations of one inference


def open_session(model: ir.Model | onnx.ModelProto | Path, *, simulate: bool = False) -> onnxruntime.InferenceSession:
    """A CPU session.

    Args:
        model: a graph or a file.
        simulate: no graph optimizations, so that Q/DQ is evaluated in float as it stands: the *float simulation* that
            stands for TensorRT. False: every optimization, including the CPU's own INT8 kernels.

    The memory arena is off: it keeps the largest activations of a run, and would make memory depend on history.
    One thread per inference: `run_each` runs several beside each other, which keeps every core busy without waiting.
    """
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL if simulate else level.ORT_ENABLE_ALL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    weights: list[onnxruntime.OrtValue] = []
    arrays: dict[str, np.ndarray] = {}
    if isinstance(model, Path):
        source: Any = str(model)
    else:
        proto = ir.serde.serialize_model(model) if isinstance(model, ir.Model) else model
        light, arrays = apart(proto, decode=simulate)
        source = light.SerializeToString()
        weights = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        options.add_external_initializers(list(arrays), weights)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own kinds
        first = str(error).split("\n")[0]
        raise EdgeError(f"onnxruntime cannot load the graph: {first}", "check the file with `onnx.checker`") from error
    session.weights = weights, arrays  # it reads their memory for as long as it lives
    return session


def expose(model: ir.Model, names: list[str]) -> onnx.ModelProto:
    """The model as a protobuf whose only outputs are the tensors `names`, in that order."""
    proto = ir.serde.serialize_model(model)
    known = {value.name: value for value in (*proto.graph.value_info, *proto.graph.output, *proto.graph.input)}
    inputs, free = {value.name for value in proto.graph.input}, Names(model.graph)
    del proto.graph.output[:]
    for name in names:
        if name in inputs:
            # A copy: some onnxruntime releases answer an input with the caller's own memory, which may be gone by then.
            seen = free.free(f"edgecnn.seen.{name}")
            proto.graph.node.append(onnx.helper.make_node("Identity", [name], [seen]))
            proto.graph.output.add(name=seen).type.CopyFrom(known[name].type)
        elif name in known:
            proto.graph.output.append(known[name])
        else:
            proto.graph.output.add(name=name)
    return proto


def run(session: onnxruntime.InferenceSession, feeds: Feeds, outputs: list[str] | None = None) -> list[np.ndarray]:
    """Run once; onnxruntime's refusal of an input becomes an EdgeError."""
    try:
        return session.run(outputs, feeds)
    except Exception as error:
        first = str(error).split("\n")[0]
        raise EdgeError(
            f"onnxruntime cannot run the graph: {first}",
            "check that size, layout and channels of the images fit the model",
        ) from error


def run_each(session: onnxruntime.InferenceSession, feeds: Iterable[Feeds]) -> Iterator[list[np.ndarray]]:
    """Outputs of each feed in order, one inference per core running ahead of the caller."""
    workers = min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _MOST_WORKERS
    )
    waiting: deque[Future[list[np.ndarray]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for feed in feeds:
            waiting.append(pool.submit(run, session, feed))
            if len(waiting) > workers:  # one waits, so that no core idles while the caller counts
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def complete_types(model: ir.Model) -> None:
    """Give the tensors whose type onnx does not infer, behind subgraphs and foreign operators, the one they have."""
    unknown = [v for node in model.graph for v in node.outputs if v.type is None and v.name and v.uses()]
    if not unknown:
        return
    session = open_session(expose(model, [value.name or "" for value in unknown]), simulate=True)
    for value, told in zip(unknown, session.get_outputs(), strict=True):
        kind = told.type.removeprefix("tensor(").removesuffix(")")
        if told.type.startswith("tensor(") and kind in _KINDS:
            value.type = ir.TensorType(_KINDS[kind])


def _complete_ranks(model: ir.Model, feed: Feeds) -> None:
    """Give the tensors whose rank onnx does not infer the one that they have in a run; sizes stay unknown."""
    unknown = [
        value
        for node in model.graph
        for value in node.outputs
        if value.shape is None and value.name and (value.uses() or value.is_graph_output()) and _is_tensor(value)
    ]
    if not unknown:
        return
    session = open_session(expose(model, [value.name or "" for value in unknown]), simulate=True)
    for value, array in zip(unknown, run(session, feed), strict=True):
        if isinstance(array, np.ndarray):
            value.shape = ir.Shape([None] * array.ndim)


def _is_tensor(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType)


def observe(model: ir.Model, feeds: list[Feeds]) -> tuple[dict[str, tuple[int, ...]], dict[str, float]]:
    """Run the graph and return (shape, largest magnitude) of its tensors, by name.

    Only shapes and extremes leave the run, never the tensors, so memory stays that of one inference. Shapes are those
    of the first feed; the magnitude is over all of them and is given for floating tensors. A tensor whose rank onnx
    cannot infer gets, in place, the rank that it has.
    """
    _complete_ranks(model, feeds[0])
    proto = ir.serde.serialize_model(model)
    float_types = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
    made = [
        value
        for node in model.graph
        for value in node.outputs
        if ((value.name and value.uses()) or value.is_graph_output()) and _is_tensor(value)  # no sequences
    ]
    names = [value.name or "" for value in (*made, *model.graph.inputs)]
    floats = [value for value in made if value.dtype in float_types]
    del proto.graph.output[:]
    free = Names(model.graph)

    def add(op: str, inputs: list[str], **attributes: int) -> str:
        name = free.free("edgecnn.seen")
        proto.graph.node.append(onnx.helper.make_node(op, inputs, [name], **attributes))
        return name

    flat, zero = free.free("edgecnn.flat"), free.free("edgecnn.zero")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([-1], np.int64), flat))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), zero))
    for name in names:
        proto.graph.output.add(name=add("Shape", [name]))
    for value in floats:
        name = value.name or ""
        if value.dtype == ir.DataType.FLOAT and _may_be_empty(value):
            name = add("Concat", [add("Reshape", [name, flat]), zero], axis=0)  # nothing has no largest value
        for op in ("ReduceMax", "ReduceMin"):  # Abs would copy the tensor; two reductions do not
            proto.graph.output.add(name=add(op, [name], keepdims=0))
    session = open_session(proto, simulate=True)
    shapes: dict[str, tuple[int, ...]] = {}
    bounds: dict[str, float] = {value.name or "": 0.0 for value in floats}
    for number, feed in enumerate(feeds):
        got = run(session, feed)
        if number == 0:
            shapes = {name: tuple(int(n) for n in shape) for name, shape in zip(names, got, strict=False)}
        for name, high, low in zip(bounds, got[len(names) :: 2], got[len(names) + 1 :: 2], strict=True):
            bounds[name] = max(bounds[name], abs(float(high)), abs(float(low)))
    return shapes, bounds


def _may_be_empty(value: ir.Value) -> bool:
    """A size beside the batch is unknown: the values may decide it."""
    return value.shape is None or not all(isinstance(size, int) for size in list(value.shape)[1:])
