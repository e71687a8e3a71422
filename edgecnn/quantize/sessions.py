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

from edgecnn.errors import EdgeError
from edgecnn.quantize.light import apart

Feeds = dict[str, np.ndarray]
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
    inputs = {value.name for value in proto.graph.input}
    del proto.graph.output[:]
    for name in names:
        if name in inputs:
            # A copy: some onnxruntime releases answer an input with the caller's own memory, which may be gone by then.
            proto.graph.node.append(onnx.helper.make_node("Identity", [name], [f"edgecnn.seen.{name}"]))
            proto.graph.output.add(name=f"edgecnn.seen.{name}").type.CopyFrom(known[name].type)
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
            f"onnxruntime cannot run the graph: {first}", "do size, layout and channels of the images fit the model?"
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


def observe(model: ir.Model, feeds: list[Feeds]) -> tuple[dict[str, tuple[int, ...]], dict[str, float]]:
    """Run the graph and return (shape, largest magnitude) of its tensors, by name.

    Only shapes and extremes leave the run, never the tensors, so memory stays that of one inference. Shapes are those
    of the first feed; the magnitude is over all of them and is given for floating tensors.
    """
    proto = ir.serde.serialize_model(model)
    float_types = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
    names, floats = [], []
    for node in model.graph:
        for value in node.outputs:
            if (value.name and value.uses()) or value.is_graph_output():
                names.append(value.name)
                if value.dtype in float_types:
                    floats.append(value.name)
    names += [value.name for value in model.graph.inputs]
    del proto.graph.output[:]
    shape_of = {name: f"edgecnn.shape.{number}" for number, name in enumerate(names)}
    bound_of = {name: f"edgecnn.bound.{number}" for number, name in enumerate(floats)}
    for name, output in shape_of.items():
        proto.graph.node.append(onnx.helper.make_node("Shape", [name], [output]))
        proto.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.INT64, None))
    for name, output in bound_of.items():
        # Abs would copy the tensor; two reductions do not.
        for op in ("ReduceMax", "ReduceMin"):
            proto.graph.node.append(onnx.helper.make_node(op, [name], [f"{output}.{op}"], keepdims=0))
            proto.graph.output.add(name=f"{output}.{op}")
    session = open_session(proto, simulate=True)
    shapes: dict[str, tuple[int, ...]] = {}
    bounds: dict[str, float] = dict.fromkeys(floats, 0.0)
    for number, feed in enumerate(feeds):
        got = run(session, feed)
        if number == 0:
            shapes = {name: tuple(int(n) for n in shape) for name, shape in zip(names, got, strict=False)}
        for index, name in enumerate(floats):
            high, low = got[len(names) + 2 * index : len(names) + 2 * index + 2]
            bounds[name] = max(bounds[name], abs(float(high)), abs(float(low)))
    return shapes, bounds
