"""Our quantizer beside onnxruntime's, NNCF and Model Optimizer on six trained models, by hand.

    EDGECNN_DATA=… python benchmarks/quantizers.py [--only yolov8n] [--tools ours,modelopt] [--draws 3] [--rungs …]

TensorRT's scheme; 256 calibration images, detectors 64 (see `packs.py`); every tool gets the same float ONNX and the
same images, runs in a process and, but ours, in a virtual environment of its own, and its Q/DQ graph is evaluated in
float (onnxruntime, optimizations off). Medians over the draws. Each result is kept under the work folder, so a second
call continues. `ours` has two rows: the rungs without learning, and with AdaRound.

Columns: metric (top-1, mAP50-95), change against float, equal answers, SQNR of the outputs, INT8 share of MACs counted
in the resulting graph, which rows of the TensorRT 10.3 table refuse that graph, seconds by the clock and of the
processor, peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from pathlib import Path

from packs import MODELS, WORK, bench_model
from quantizer_runs import EXCLUDED, PEERS, Json, Tool, measured, reference_outputs, result_path

from edgecnn.process import progress

PLAIN = "ranges,equalize,bias,clip"


def tools_for(model: str, given: argparse.Namespace) -> list[Tool]:
    """The rows of a model, in order."""
    found = []
    if "ours" in given.tools:
        found += [Tool(f"ours {rungs.replace(',', '+')}", "ours", rungs) for rungs in given.rungs]
    for tool in PEERS:
        if tool.peer in given.tools and (model in EXCLUDED or not tool.exclude):
            found.append(tool)
    return [tool for tool in found if not given.method or tool.method in given.method]


def run(model: str, given: argparse.Namespace) -> list[Json]:
    """Every tool and draw of one model, each kept as it comes."""
    wanted = [(draw, tool) for draw in range(given.first_draw, given.draws) for tool in tools_for(model, given)]
    bench = reference = None
    found = []
    for draw, tool in wanted:
        path = result_path(model, tool, draw, given)
        kept = json.loads(path.read_text()) if path.exists() else None
        if kept is not None and (given.table or "failed" not in kept):
            found.append(kept)  # what a tool refused is tried again
            continue
        if given.table:
            continue
        bench = bench or bench_model(model, given.data, given.work)
        reference = reference or reference_outputs(bench, given.work, given.limit)
        result = measured(bench, tool, draw, given, reference)
        print(json.dumps(result), file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(result, indent=1))
        partial.replace(path)
        found.append(result)
    return found


def table(results: list[Json]) -> list[Json]:
    """One row a model and tool: medians over the draws that worked."""
    rows = []
    for model, tool in dict.fromkeys((result["model"], result["tool"]) for result in results):
        mine = [result for result in results if (result["model"], result["tool"]) == (model, tool)]
        good = [result for result in mine if "failed" not in result]
        if not good:
            rows.append({"model": model, "tool": tool, "failed": mine[0]["failed"]})
            continue
        row: Json = {"model": model, "tool": tool, "draws": len(good), "refused": len(mine) - len(good)}
        for key in ("float", "metric", "agreement", "int8_macs", "seconds", "cpu_seconds", "peak_mb", "images"):
            row[key] = statistics.median(result[key] for result in good)
        row["metrics"] = [result["metric"] for result in good]
        row["sqnr"] = {part: statistics.median(result["sqnr"][part] for result in good) for part in good[0]["sqnr"]}
        row["rules"] = sorted({rule for result in good for rule in result["rules"]})
        row["versions"] = good[0]["versions"]
        rows.append(row)
    return rows


def lines(rows: list[Json]) -> list[str]:
    """The table as Markdown, and our distance to the best peer by model."""
    found = [
        "| model (float) | quantizer | metric | change | agree % | SQNR dB | INT8 MACs | TensorRT refuses | s | CPU s "
        "| peak MB | draws |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            found.append(f"| {row['model']} | {row['tool']} | failed: {row['failed'][:90]} | | | | | | | | | |")
            continue
        sqnr = " / ".join(f"{value:.1f}" for value in row["sqnr"].values())
        change = 100 * (row["metric"] - row["float"])
        draws = f"{row['draws']} of {row['draws'] + row['refused']}" if row["refused"] else str(row["draws"])
        found.append(
            f"| {row['model']} ({100 * row['float']:.2f}, n={row['images']:.0f}) | {row['tool']} "
            f"| {100 * row['metric']:.2f} | {change:+.2f} | {100 * row['agreement']:.2f} | {sqnr} "
            f"| {row['int8_macs']:.1%} | {', '.join(row['rules']) or '-'} | {row['seconds']:.0f} "
            f"| {row['cpu_seconds']:.0f} | {row['peak_mb']:.0f} | {draws} |"
        )
    for model in dict.fromkeys(row["model"] for row in rows):
        good = [row for row in rows if row["model"] == model and "failed" not in row]
        theirs = [row for row in good if not row["tool"].startswith("ours")]
        accepted = [row for row in theirs if not row["rules"]]
        for row in (row for row in good if row["tool"].startswith("ours")):
            found += [f"{model}, {row['tool']}, against the best of the peers"]
            found += [f"  that TensorRT accepts: {_distance(row, accepted)}"] if accepted else []
            found += [f"  of all: {_distance(row, theirs)}"] if theirs else []
    versions = {row["tool"].split()[0]: row["versions"] for row in rows if "versions" in row}
    packages = "; ".join(f"{tool}: {', '.join(f'{n} {v}' for n, v in each.items())}" for tool, each in versions.items())
    found.append(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores; {packages}")
    return found


def _distance(row: Json, peers: list[Json]) -> str:
    """A row against the best of the peers in each figure."""
    parts = [
        f"SQNR of {part} {value - max(peer['sqnr'][part] for peer in peers):+.2f} dB"
        for part, value in row["sqnr"].items()
    ]
    figures = (("metric", "metric"), ("agreement", "agreement"), ("int8_macs", "INT8 MACs"))
    parts += [f"{word} {100 * (row[key] - max(peer[key] for peer in peers)):+.2f}" for key, word in figures]
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS, action="append", help="repeatable")
    parser.add_argument("--tools", default="ours,onnxruntime,nncf,modelopt", type=lambda text: text.split(","))
    parser.add_argument("--method", action="append", help="only these methods of the tools, repeatable")
    parser.add_argument("--rungs", action="append", help=f"of ours, repeatable; default {PLAIN} and the same,adaround")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--first-draw", type=int, default=0)
    parser.add_argument("--folds", type=int, default=2, choices=(1, 2), help="1: detectors on half of the images")
    parser.add_argument("--limit", type=int, help="scored images a fold, for a quick look")
    parser.add_argument("--data", type=Path, default=os.environ.get("EDGECNN_DATA"))
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--peers", type=Path, default=WORK / "peers", help="folder of the peers' environments")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is kept")
    given = parser.parse_args()
    if given.data is None:
        parser.error("set EDGECNN_DATA or --data")
    given.rungs = given.rungs or [PLAIN, f"{PLAIN},adaround"]
    rows = table([result for model in given.only or MODELS for result in run(model, given)])
    print("\n".join(lines(rows)))
    print(json.dumps(rows))


if __name__ == "__main__":
    with progress.showing(progress.Plain(60)):
        main()
