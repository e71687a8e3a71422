"""What onnxruntime's profile says of each kind of kernel: microseconds at the 20th percentile of many runs."""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

RUNS_SECONDS = 2.0
Shape = tuple[int, ...]


@dataclass
class Kernel:
    """A node of the optimized graph: shapes of its inputs (none of weights packed beforehand) and output, and times."""

    op: str
    inputs: list[Shape]
    output: Shape
    micros: list[float] = field(default_factory=list)

    @property
    def typical(self) -> float:
        """Its 20th percentile, microseconds."""
        return float(np.percentile(self.micros, 20))


def print_kernels(name: str, model: Path, int8: Path) -> None:
    """A line for each kind of kernel: how many, their time, and for convolutions microseconds per million MACs."""
    for path in (model, int8):
        weights, groups = _weights(path), defaultdict[str, list[tuple[Kernel, float]]](list)
        for event, kernel in _profile(path).items():
            node = re.sub(r"(_token_\d+)?_kernel_time$", "", event)
            shown = kernel.inputs[1] if kernel.op == "Conv" and len(kernel.inputs) > 1 else ()
            weight = weights.get(node, shown)
            if kernel.op in ("Conv", "QLinearConv") and weight:
                work = math.prod(kernel.output) * math.prod(weight[1:]) / 1e6
                groups[f"{kernel.op} {_kind(weight)}"].append((kernel, work))
            else:
                groups[kernel.op].append((kernel, 0.0))
        sums = {kind: sum(kernel.typical for kernel, _ in group) for kind, group in groups.items()}
        print(f"{name}, {'INT8' if path == int8 else 'float'}: {sum(sums.values()):.0f} us")
        for kind in sorted(sums, key=lambda kind: -sums[kind]):
            rates = [kernel.typical / work for kernel, work in groups[kind] if work]
            rate = f", {np.median(rates):.1f} us per million MACs (median)" if rates else ""
            print(f"    {kind}: {len(groups[kind])} nodes, {sums[kind]:.0f} us{rate}")


def _weights(path: Path) -> dict[str, Shape]:
    """The weight's shape of each quantized Conv, by node name."""
    graph = onnx.load(str(path)).graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    convs = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in makers]
    return {node.name: shapes[makers[node.input[1]].input[0]] for node in convs}


def _profile(path: Path) -> dict[str, Kernel]:
    """Kernels by the name of their event, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling, options.log_severity_level = True, 3
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        one = session.get_inputs()[0]
        shape = [size if isinstance(size, int) else 1 for size in one.shape]
        feed = {one.name: np.random.default_rng(0).random(shape, np.float32)}
        end = time.monotonic() + RUNS_SECONDS
        while time.monotonic() < end:
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    found: dict[str, Kernel] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        said = event["args"]
        inputs, outputs = (_shapes(said.get(f"{side}_type_shape", [])) for side in ("input", "output"))
        kernel = found.setdefault(event["name"], Kernel(said["op_name"], inputs, outputs[0] if outputs else ()))
        kernel.micros.append(float(event["dur"]))
    return found


def _shapes(listed: list[dict[str, list[int]]]) -> list[Shape]:
    return [tuple(next(iter(each.values()), [])) for each in listed]


def _kind(weight: Shape) -> str:
    if weight[1] == 1 and weight[0] > 1:
        return "depthwise"
    if weight[1] <= 4:
        return "image"
    return "pointwise" if math.prod(weight[2:]) == 1 else "dense"
