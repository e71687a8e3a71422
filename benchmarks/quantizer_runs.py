"""One quantizer on one model and draw: its environment, its process with a job, scoring, INT8 share of MACs."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from packs import BenchModel, Outputs

from edgecnn.backends.tensorrt.rules import check
from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import code_version
from edgecnn.quantize.graph.sessions import observe
from edgecnn.quantize.place.coverage import macs
from edgecnn.quantize.place.placement import LAYERS, Graph
from edgecnn.tasks.detect.detect import Detections

Json = dict[str, Any]
HERE = Path(__file__).resolve().parent

# What pip installs for each peer, newest releases.
PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnx", "sympy"),
    "nncf": ("nncf", "openvino", "onnx", "onnxruntime"),
    "modelopt": ("nvidia-modelopt[onnx]",),
}
# Ultralytics' own exclusions for INT8 (utils/export/engine.py): the head's output convolutions and the DFL, by node
# name; for YOLOX the same layers, by the names of their weights.
EXCLUDED = {"yolov8n": (r".*\.2/Conv$", r".*/dfl/.*"), "yolox-nano": (r"head\.(cls|reg|obj)_preds\..*",)}
# Ops that pass INT8 values on: Q/DQ before them serves the layer behind them.
_PASSING = frozenset({
    "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Identity",
})  # fmt: skip


HEADER = {"ir-version", "opset"}  # rows of the TensorRT table that a rewritten header satisfies


@dataclass(frozen=True)
class Tool:
    """A row of the table.

    Attributes:
        peer: name of its environment, or `ours`.
        method: of a peer; for ours the rungs, comma-separated.
        exclude: detectors only: without INT8 on the layers of EXCLUDED.
    """

    name: str
    peer: str
    method: str
    exclude: bool = False


PEERS = (
    Tool("onnxruntime minmax S8S8", "onnxruntime", "minmax"),
    Tool("onnxruntime percentile S8S8", "onnxruntime", "percentile"),
    Tool("NNCF performance", "nncf", "fast"),
    Tool("NNCF full bias correction", "nncf", "bias"),
    Tool("Model Optimizer max", "modelopt", "max"),
    Tool("Model Optimizer entropy", "modelopt", "entropy"),
    Tool("Model Optimizer max, head excluded", "modelopt", "max", exclude=True),
    Tool("Model Optimizer entropy, head excluded", "modelopt", "entropy", exclude=True),
)


FLOAT = Tool("float", "float", "")


def environment(peer: str, folder: Path) -> Path:
    """The peer's Python; its virtual environment is made where it is missing."""
    home = folder / peer
    python = home / "bin" / "python"
    if not (home / ".ready").exists():
        print(f"making {home}: {', '.join(PACKAGES[peer])}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES[peer]], check=True)
        (home / ".ready").touch()
    return python


def measured(bench: BenchModel, tool: Tool, draw: int, given: Any, reference: Outputs) -> Json:
    """Quantize and score, every fold; a refusal by the tool is a result too.

    Args:
        given: the command line: peers, work, data, limit, folds.
        reference: the float model's outputs of all scored images.
    """
    runs, outputs, chosen, shares = [], [], [], []
    rules: set[str] = set()
    for fold in range(min(bench.folds, given.folds)):
        with tempfile.TemporaryDirectory(prefix="edgecnn-quantizer-") as scratch:
            made = Path(scratch, "model.onnx")
            try:
                runs.append(_quantized(bench, tool, draw, fold, given, made))
            except subprocess.CalledProcessError as error:
                lines = [line for line in (error.stderr or "").splitlines() if line.strip()]
                return {"model": bench.name, "tool": tool.name, "draw": draw, "failed": (lines or ["no message"])[-1]}
            numbers = bench.scored_of(draw, fold)[: given.limit]
            try:
                shares.append(int8_share(bench, made))
                rules |= {violation.rule.id for violation in check(made)} - HEADER
                outputs += bench.outputs(made, numbers=numbers)
            except EdgeError as error:
                return {"model": bench.name, "tool": tool.name, "draw": draw, "failed": error.message.splitlines()[0]}
            chosen.append(numbers)
    numbers = np.concatenate(chosen)
    exact = _chosen(bench, reference, numbers)
    if bench.task == "detect":
        save_detections(bench, exact, numbers, result_path(bench.name, FLOAT, draw, given))
        save_detections(bench, outputs, numbers, result_path(bench.name, tool, draw, given))
    return {
        "model": bench.name, "tool": tool.name, "draw": draw, "images": len(numbers),
        "float": bench.metric(exact, numbers), "metric": bench.metric(outputs, numbers),
        "agreement": bench.agreement(exact, outputs), "sqnr": bench.sqnr(exact, outputs), "int8_macs": min(shares),
        "rules": sorted(rules),
        "seconds": statistics.mean(run["seconds"] for run in runs),
        "cpu_seconds": statistics.mean(run["cpu_seconds"] for run in runs),
        "peak_mb": max(run["peak_mb"] for run in runs), "versions": runs[0]["versions"],
        **({"notes": runs[0]["notes"]} if "notes" in runs[0] else {}),
    }  # fmt: skip


def _chosen(bench: BenchModel, outputs: Outputs, numbers: np.ndarray) -> Outputs:
    """The outputs of the images `numbers`: detectors answer one image at a time, the others in order from the first."""
    if bench.folds == 1:
        return outputs[: -(-len(numbers) // bench.batch)]
    return [outputs[int(number)] for number in numbers]


def reference_outputs(bench: BenchModel, work: Path, limit: int | None) -> Outputs:
    """The float model's outputs of all scored images (or the first `limit`), kept on disk."""
    path = work / f"{bench.name}-float-{limit or 'all'}.npy"
    if not path.exists():
        whole = bench.outputs(bench.model, simulate=False, limit=limit if bench.folds == 1 else None)
        partial = path.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, np.concatenate([each[0] for each in whole]))
        partial.replace(path)
    array = np.load(path, mmap_mode="r")
    return [[np.asarray(array[start : start + bench.batch])] for start in range(0, len(array), bench.batch)]


def _quantized(bench: BenchModel, tool: Tool, draw: int, fold: int, given: Any, made: Path) -> Json:
    images = made.with_name("images.npy")
    np.save(images, bench.calibration(draw, fold))
    contract = bench.contract
    job = {
        "tool": tool.peer, "method": tool.method, "model": str(bench.model), "output": str(made),
        "images": str(images), "exclude": excluded(bench) if tool.exclude else [],
        "input": {
            "name": contract.input.name, "color": contract.input.color,
            "low": contract.input.range[0], "high": contract.input.range[1],
            "mean": list(contract.normalization.mean) if contract.normalization else [],
            "std": list(contract.normalization.std) if contract.normalization else [],
        },
        "name": bench.name, "draw": draw, "fold": fold, "data": str(given.data), "work": str(given.work),
    }  # fmt: skip
    path = made.with_name("job.json")
    path.write_text(json.dumps(job))
    if tool.peer == "ours":
        command = [sys.executable, str(HERE / "our_child.py"), str(path)]
    else:
        command = [str(environment(tool.peer, given.peers)), str(HERE / "peer_child.py"), str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=made.parent)
    found: Json = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def excluded(bench: BenchModel) -> list[str]:
    """Names of the nodes that EXCLUDED means."""
    model = ir.load(bench.model)
    found = []
    for node in model.graph:
        names = [node.name or "", *(value.name or "" for value in node.inputs[1:2] if value is not None)]
        if any(re.fullmatch(pattern, name) for pattern in EXCLUDED[bench.name] for name in names):
            found.append(node.name or "")
    return found


def int8_share(bench: BenchModel, path: Path) -> float:
    """Share of MACs whose data and weight both come through DequantizeLinear; the same measure for every tool."""
    # A weight behind DequantizeLinear has the shape that counts; not every tool writes it down.
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(onnx.load(str(path))))
    for value in model.graph.inputs[:1]:
        feed = bench.contract.feed(np.asarray(bench.scored[:1]))
        shapes, _ = observe(model, [{value.name or "": feed[bench.contract.input.name]}])
    graph = Graph(model, shapes)
    counts = {node: macs(node, graph) for node in graph.nodes() if node.op_type in LAYERS}
    whole = sum(counts.values())
    return sum(n for node, n in counts.items() if all(_dequantized(v) for v in node.inputs[:2])) / whole


def _dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    if producer is None:
        return False
    if producer.op_type in ("Resize", *_PASSING):
        return all(_dequantized(v) for v in (producer.inputs if producer.op_type == "Concat" else producer.inputs[:1]))
    return producer.op_type == "DequantizeLinear"


def save_detections(bench: BenchModel, outputs: Outputs, numbers: np.ndarray, result: Path) -> None:
    """Keep the boxes of the images `numbers` beside the result, sorted by image, for paired comparisons."""
    order = np.argsort(numbers)
    found = bench.detections([outputs[int(n)] for n in order], [int(numbers[n]) for n in order])
    result.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        result.with_suffix(".npz"), numbers=numbers[order], counts=[len(rows) for rows in found],
        rows=np.concatenate([np.zeros((0, 6)), *found]),
    )  # fmt: skip


def kept_detections(result: Path) -> tuple[np.ndarray, Detections]:
    """(numbers of the images, their boxes) as `save_detections` wrote them."""
    with np.load(result.with_suffix(".npz")) as kept:
        rows, counts, numbers = kept["rows"], kept["counts"], kept["numbers"]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return numbers, Detections(
        offsets, rows[:, :4].astype(np.float32), rows[:, 4].astype(np.float32), rows[:, 5].astype(np.int64)
    )


def result_path(bench: str, tool: Tool, draw: int, given: Any) -> Path:
    """Where a result is kept. Ours belongs to the code that made it."""
    code = f"-{code_version()[:12]}" if tool.peer == "ours" else ""
    few = (f"-first{given.limit}" if given.limit else "") + ("-fold" if given.folds == 1 else "")
    return given.work / "results" / f"{bench}-{re.sub(r'[^a-z0-9]+', '-', tool.name.lower())}-{draw}{few}{code}.json"
