"""Our default settings beside onnxruntime, NNCF and Model Optimizer, on images that calibrated nothing, by hand.

    EDGECNN_DATA=… python benchmarks/defaults.py [--device cpu-x86] [--only yolo11n] [--tools ours,nncf] [--draw 0]

Every tool gets the same float ONNX and the same calibration images, ours in the device's types, and its Q/DQ graph is
evaluated on the same held images by what runs it on that device: OpenVINO's kernels, onnxruntime's, or for TensorRT
the float simulation (onnxruntime, optimizations off). There the table tells which graphs TensorRT's rules refuse. For
`cpu-x86` onnxruntime's quantizer takes UINT8 activations and INT32 biases, as its documentation advises. `--equal`
keeps what our placement leaves float on that device float for the peers too.

Told are the SQNR in dB of all held images pooled and the median of each image's own, of every part of the output; INT8
share of MACs; seconds of the processor. Graphs and results are kept under the work folder: a second call continues.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from default_models import NETWORKS, Network, network
from packs import WORK
from quantizer_runs import HEADER, HERE, Json, Tool, environment, int8_share

from edgecnn.backends.openvino import OpenVino
from edgecnn.backends.tensorrt.rules import check
from edgecnn.process.versions import code_version
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import observe, open_session, run_each
from edgecnn.quantize.place.placement import Graph, place
from edgecnn.recipe.load import load_device

TOOLS = (
    Tool("ours fast", "ours", "fast"),
    Tool("ours", "ours", "balanced"),
    Tool("ours thorough", "ours", "thorough"),
    Tool("onnxruntime minmax", "onnxruntime", "minmax"),
    Tool("onnxruntime percentile", "onnxruntime", "percentile"),
    Tool("NNCF fast bias correction", "nncf", "fast"),
    Tool("NNCF full bias correction", "nncf", "bias"),
    Tool("Model Optimizer max", "modelopt", "max"),
    Tool("Model Optimizer entropy", "modelopt", "entropy"),
)


def outputs(net: Network, model: Path, numbers: np.ndarray, *, simulate: bool) -> list[np.ndarray]:
    """The first output of every image by onnxruntime."""
    session = open_session(model, simulate=simulate)
    found = run_each(session, (net.contract.feed(net.pool[n : n + 1]) for n in numbers))
    return [np.asarray(each[0]) for each in found]


def on_device(net: Network, model: Path, numbers: np.ndarray, backend: str) -> list[np.ndarray]:
    """The first output of every image by what runs the graph on the device."""
    if backend != "openvino":
        return outputs(net, model, numbers, simulate=backend != "onnxruntime")
    runner = OpenVino().load(model)
    return [runner(net.contract.feed(net.pool[n : n + 1]))[runner.outputs[0]] for n in numbers]


def compared(net: Network, exact: list[np.ndarray], got: list[np.ndarray]) -> Json:
    """{part: {"pooled": dB, "median": dB}}."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for a, b in zip(exact, got, strict=True):
        theirs = net.parts(b)
        for part, wanted in net.parts(a).items():
            wide = wanted.astype(np.float64)
            noise = float(np.square(wide - theirs[part]).sum())
            rows.setdefault(part, []).append((float(np.square(wide).sum()), noise))
    return {
        part: {
            "pooled": _decibel(math.fsum(s for s, _ in pairs), math.fsum(n for _, n in pairs)),
            "median": statistics.median(_decibel(s, n) for s, n in pairs),
        }
        for part, pairs in rows.items()
    }


def _decibel(signal: float, noise: float) -> float:
    return 10.0 * math.log10(signal / noise) if noise > 0 and signal > 0 else 200.0


def mean_iou(net: Network, got: list[np.ndarray], numbers: np.ndarray) -> float | None:
    """Of the classes that appear, void left out; None of a network without masks."""
    if net.masks is None:
        return None
    both: np.ndarray = np.zeros((21, 21), np.int64)
    for number, output in zip(numbers, got, strict=True):
        truth, answer = net.masks[number], output[0].argmax(0)
        known = truth < 21
        both += np.bincount(21 * truth[known].astype(np.int64) + answer[known], minlength=441).reshape(21, 21)
    seen = both.sum(1) > 0
    return float((np.diag(both) / np.maximum(both.sum(0) + both.sum(1) - np.diag(both), 1))[seen].mean())


def quantized(net: Network, tool: Tool, draw: int, given: Any, made: Path) -> Json:
    """Run the tool in its own process; what its child tells."""
    images = made.with_name("images.npy")
    np.save(images, net.pool[net.draw(draw)[0]])
    normalization = net.contract.normalization
    job = {
        "tool": tool.peer, "method": tool.method, "model": str(net.model), "output": str(made), "images": str(images),
        "exclude": stays_float(net, given.device) if given.equal and tool.peer != "ours" else [],
        "types": "u8s8" if _in_types(tool, given) else "s8s8",
        "network": net.name, "data": str(given.data), "work": str(given.work), "device": given.device,
        "input": {
            "name": net.contract.input.name, "color": net.contract.input.color,
            "low": net.contract.input.range[0], "high": net.contract.input.range[1],
            "mean": list(normalization.mean) if normalization else [],
            "std": list(normalization.std) if normalization else [],
        },
    }  # fmt: skip
    path = made.with_name("job.json")
    path.write_text(json.dumps(job))
    python = sys.executable if tool.peer == "ours" else str(environment(tool.peer, given.peers))
    child = "our_default.py" if tool.peer == "ours" else "peer_child.py"
    done = subprocess.run([python, str(HERE / child), str(path)], capture_output=True, text=True, cwd=made.parent)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failed": (lines or ["no message"])[-1]}
    found: Json = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def stays_float(net: Network, device: str) -> list[str]:
    """Names of the layers that our placement leaves float on the device."""
    model = canonical(net.model)
    shapes, _ = observe(model, [net.contract.feed(net.pool[:1])])
    known = {node.name for node in ir.load(net.model).graph}
    return [name for name in place(Graph(model, shapes), load_device(device).scheme).why_float if name in known]


def graph_of(net: Network, tool: Tool, draw: int, given: Any) -> tuple[Path, Json]:
    """The tool's graph, kept, and what its child told."""
    made = Path(given.work) / "defaults" / "graphs" / f"{_key(net.name, tool, draw, given, graph=True)}.onnx"
    told = made.with_suffix(".json")
    if not told.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="edgecnn-default-", dir=made.parent) as scratch:
            new = Path(scratch, "model.onnx")
            answer = quantized(net, tool, draw, given, new)
            if "failed" not in answer:
                new.replace(made)
            Path(scratch, "told.json").write_text(json.dumps(answer))
            Path(scratch, "told.json").replace(told)
    return made, json.loads(told.read_text())


def measured(net: Network, tool: Tool, draw: int, given: Any) -> Json:
    """One tool on one draw."""
    head = {"model": net.name, "tool": tool.name, "draw": draw}
    made, told = graph_of(net, tool, draw, given)
    if "failed" in told:
        return {**head, **told}
    backend = load_device(given.device).backend
    numbers = net.draw(draw)[1]
    exact = outputs(net, net.model, numbers, simulate=False)
    got = on_device(net, made, numbers, backend)
    simulated = got if backend == "tensorrt" else outputs(net, made, numbers, simulate=True)
    return {
        **head, "images": len(numbers), "sqnr": compared(net, exact, got), "int8_macs": _share(net, made),
        "simulated": compared(net, exact, simulated),
        "miou": mean_iou(net, got, numbers), "float_miou": mean_iou(net, exact, numbers),
        "refused": sorted({violation.rule.id for violation in check(made)} - HEADER), **told,
    }  # fmt: skip


def _share(net: Network, made: Path) -> float:
    class Scored:
        contract, scored = net.contract, net.pool

    return int8_share(Scored, made)  # type: ignore[arg-type]  # all that it reads


def _in_types(tool: Tool, given: Any) -> bool:
    """Whether the tool's graph depends on the device: ours, and onnxruntime's own for onnxruntime."""
    return tool.peer == "ours" or (tool.peer == "onnxruntime" and load_device(given.device).backend == "onnxruntime")


def _key(name: str, tool: Tool, draw: int, given: Any, *, graph: bool) -> str:
    """What names a kept result, or the kept graph, which most peers make alike for every device; ours by its code."""
    code = f"-{code_version()[:12]}" if tool.peer == "ours" else ""
    equal = "-equal" if given.equal and tool.peer != "ours" else ""
    own = _in_types(tool, given) or ((equal or not graph) and load_device(given.device).backend != "tensorrt")
    return f"{name}-{tool.name.replace(' ', '-')}-{draw}{code}{f'-{given.device}' if own else ''}{equal}"


def kept_at(name: str, tool: Tool, draw: int, given: Any) -> Path:
    """Where a result is kept."""
    return Path(given.work) / "defaults" / f"{_key(name, tool, draw, given, graph=False)}.json"


def lines(results: list[Json], backend: str) -> list[str]:
    """The table as Markdown, medians over the draws."""
    found = [
        "| network | quantizer | SQNR pooled, dB | per-image median, dB | INT8 MACs | s | draws |",
        "|---" * 7 + "|",
    ]
    for name, tool in dict.fromkeys((result["model"], result["tool"]) for result in results):
        mine = [result for result in results if (result["model"], result["tool"]) == (name, tool)]
        good = [result for result in mine if "failed" not in result]
        if not good:
            found.append(f"| {name} | {tool} | failed: {mine[0]['failed'][:80]} | | | | |")
            continue
        by = {
            how: " / ".join(f"{statistics.median(r['sqnr'][part][how] for r in good):.1f}" for part in good[0]["sqnr"])
            for how in ("pooled", "median")
        }
        refused = ", refused" if any(r.get("refused") for r in good) and backend == "tensorrt" else ""
        iou = f"; mIoU {_middle(good, 'miou'):.3f} of {_middle(good, 'float_miou'):.3f}" if good[0].get("miou") else ""
        found.append(
            f"| {name} | {tool}{refused} | {by['pooled']}{iou} | {by['median']} | {_middle(good, 'int8_macs'):.1%}"
            f" | {_middle(good, 'cpu_seconds'):.0f} | {len(good)} |"
        )
    return found


def _middle(results: list[Json], key: str) -> float:
    return float(statistics.median(result[key] for result in results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NETWORKS, action="append", help="repeatable")
    parser.add_argument("--tools", default="ours,onnxruntime,nncf,modelopt", type=lambda text: text.split(","))
    parser.add_argument("--method", action="append", help="only these methods of the tools, repeatable")
    parser.add_argument("--draw", type=int, action="append", help="repeatable; default 0, 1, 2")
    parser.add_argument("--device", default="jetson-orin-nano", help="whose types ours takes, and what evaluates")
    parser.add_argument("--equal", action="store_true", help="peers leave float what ours leaves float")
    parser.add_argument("--data", type=Path, default=os.environ.get("EDGECNN_DATA"))
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--peers", type=Path, default=WORK / "peers", help="folder of the peers' environments")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is kept")
    given = parser.parse_args()
    if given.data is None:
        parser.error("set EDGECNN_DATA or --data")
    tools = [t for t in TOOLS if t.peer in given.tools and (not given.method or t.method in given.method)]
    results = []
    for name in given.only or NETWORKS:
        net = None
        for draw in given.draw or (0, 1, 2):
            for tool in tools:
                path = kept_at(name, tool, draw, given)
                if not path.exists():
                    if given.table:
                        continue
                    net = net or network(name, given.data, given.work)
                    result = measured(net, tool, draw, given)
                    print(json.dumps(result), file=sys.stderr, flush=True)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    partial = path.with_suffix(f".{os.getpid()}")
                    partial.write_text(json.dumps(result, indent=1))
                    partial.replace(path)
                results.append(json.loads(path.read_text()))
    print("\n".join(lines(results, load_device(given.device).backend)))


if __name__ == "__main__":
    main()
