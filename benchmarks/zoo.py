"""The edge zoo, by hand: `python benchmarks/zoo.py --work DIR` (needs the extras train and rtx).

63 CNNs with random weights are exported, quantized for TensorRT's scheme with 8 images of noise, held to the TensorRT
10.3 rules, and parsed and compiled for SM86 by TensorRT for RTX. One JSON per network in DIR/results says what became
of it, so a stopped run goes on where it was; `--redo` forgets the results. Whatever is refused leaves a reproducer of a
few nodes beside it. `--peer` quantizes the torchvision networks with NVIDIA Model Optimizer too, right after ours on
the same file, in an environment of its own. `--table` prints what is there as Markdown.
Seconds are of the step alone: imports and process starts are not in them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zoo_models import NAMES, SAMPLE, TORCHVISION
from zoo_reproducer import reproduce

from edgecnn.process.errors import EdgeError
from edgecnn.recipe.load import load_device
from edgecnn.targets import jobs

HERE = Path(__file__).parent
DEVICE = "rtx-3060"  # compute capability 8.6
PEER = "nvidia-modelopt[onnx]==0.47.0"
LIMIT_S = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "edgecnn-zoo"))
    parser.add_argument("--only", default="", help="comma-separated parts of names; `sample`, `torchvision`, `timm`")
    parser.add_argument("--side", type=int, help="image side, in place of each network's own")
    parser.add_argument("--ranges", default="auto", choices=("auto", "minmax"), help="edgecnn's range method")
    parser.add_argument("--redo", action="store_true", help="forget the results of the chosen networks")
    parser.add_argument(
        "--peer", type=Path, nargs="?", const=Path(), help="a venv with Model Optimizer; made if absent"
    )
    parser.add_argument("--table", action="store_true", help="only print the results that are there")
    arguments = parser.parse_args()
    names = chosen(arguments.only)
    results = arguments.work / "results"
    results.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        peer = None if arguments.peer is None else peer_python(arguments.peer, arguments.work)
        for name in names:
            file = results / f"{name}.json"
            found = json.loads(file.read_text()) if file.exists() and not arguments.redo else {}
            if not found or (peer and name in TORCHVISION and "peer_seconds" not in found):
                found |= run(name, arguments, peer if name in TORCHVISION else None)
                write(file, found)
            print(row(found), flush=True)
    print(table([json.loads((results / f"{n}.json").read_text()) for n in names if (results / f"{n}.json").exists()]))


def chosen(only: str) -> list[str]:
    """The networks that `--only` asks for."""
    parts = [part for part in only.split(",") if part]
    whole = {
        "sample": tuple(SAMPLE),
        "torchvision": TORCHVISION,
        "timm": tuple(n for n in NAMES if n not in TORCHVISION),
    }

    def fits(name: str, part: str) -> bool:
        return name == part if part in NAMES else name in whole[part] if part in whole else part in name

    return [name for name in NAMES if not parts or any(fits(name, part) for part in parts)]


def run(name: str, arguments: argparse.Namespace, peer: Path | None) -> dict[str, Any]:
    """Everything for one network, and what became of it."""
    side = arguments.side
    folder = arguments.work / (f"{name}-{side}" if side else name)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"name": name, "refusals": [], "conditions": conditions()}
    model = folder / "model.onnx"
    if not model.exists():
        start = time.monotonic()
        sides = [str(side)] if side else []
        done = child([sys.executable, str(HERE / "zoo_models.py"), name, str(model), *sides], folder / "export.log")
        if done:
            return found | {"refusals": [{"by": "torch.onnx.export", "node": "", "words": done}]}
        found["export_seconds"] = time.monotonic() - start
    found |= step(sys.executable, "quantize", folder, arguments.ranges)
    typed = folder / "int8" / "typed.onnx"
    if "quantize_seconds" in found:
        found |= compiled(folder, typed, found["refusals"])
    for refusal in found["refusals"]:
        if refusal["node"]:
            refusal["reproducer"] = reproduce(typed, refusal, folder)
    if peer:
        found |= {f"peer_{key}": value for key, value in step(str(peer), "peer", folder, arguments.ranges).items()}
    return found


def compiled(folder: Path, typed: Path, refusals: list[dict[str, str]]) -> dict[str, Any]:
    """Parse and compile the typed graph for the device."""
    try:
        return {"compile_seconds": jobs.build(folder, load_device(DEVICE), typed)}
    except EdgeError as error:
        words = error.message.split("\n")[0]
        node = words.split("refuses node `")[1].split("`")[0] if "refuses node `" in words else ""
        return {"refusals": [*refusals, {"by": "TensorRT for RTX", "node": node, "words": words}]}


def step(python: str, name: str, folder: Path, ranges: str) -> dict[str, Any]:
    """One step of zoo_steps in a process of its own; its JSON, or the refusal that its end is."""
    log = folder / f"{name}.log"
    with log.open("w") as err:
        try:
            done = subprocess.run(
                [python, str(HERE / "zoo_steps.py"), name, str(folder), ranges], stdout=subprocess.PIPE, stderr=err,
                text=True, timeout=LIMIT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"refusals": [{"by": name, "node": "", "words": f"not done in {LIMIT_S} s"}]}
    if done.returncode:
        last = (log.read_text().strip().splitlines() or ["no word"])[-1]
        return {"refusals": [{"by": name, "node": "", "words": f"exit {done.returncode}: {last}"}]}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def child(command: list[str], log: Path) -> str:
    """Run a command; '' when it went well, else the last line of its log."""
    with log.open("w") as err:
        done = subprocess.run(command, stdout=err, stderr=subprocess.STDOUT, timeout=LIMIT_S)
    return "" if done.returncode == 0 else (log.read_text().strip().splitlines() or [f"exit {done.returncode}"])[-1]


def peer_python(venv: Path, work: Path) -> Path:
    """The Python of an environment with Model Optimizer, which is made when it is not there."""
    venv = work / "modelopt" if venv == Path() else venv
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin" / "pip"), "install", "--quiet", PEER], check=True)
    return python


def conditions() -> dict[str, Any]:
    """What the seconds depend on."""
    packages = ("edgecnn", "torch", "torchvision", "timm", "onnx", "onnxruntime")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": cores, "machine": platform.machine(), **{package: version(package) for package in packages}}


def write(file: Path, found: dict[str, Any]) -> None:
    """The result, whole or not at all."""
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(found, indent=1))
    partial.replace(file)


def row(found: dict[str, Any]) -> str:
    """One network as a Markdown row."""
    refused = "; ".join(
        f"{r['by']}: `{r['node']}` {r['words']}" if r["node"] else f"{r['by']}: {r['words']}" for r in found["refusals"]
    )
    seconds = [f"{found[key]:.1f}" if key in found else "–" for key in ("quantize_seconds", "compile_seconds")]
    islands = str(len(found.get("islands", [])))
    share = f"{found['int8_macs']:.1%}" if "int8_macs" in found else "–"
    peer = f"{found['peer_seconds']:.1f}" if "peer_seconds" in found else "–"
    cells = (
        found["name"],
        f"refused: {refused}" if refused else "ok",
        *seconds,
        peer,
        str(found.get("qdq", "–")),
        islands,
        share,
    )
    return f"| {' | '.join(cells)} |"


def table(results: list[dict[str, Any]]) -> str:
    """All results as Markdown, with the sums that matter."""
    ok = [found for found in results if not found["refusals"]]
    with_peer = [found for found in results if "peer_seconds" in found and "quantize_seconds" in found]
    ours, theirs = (sum(found[key] for found in with_peer) for key in ("quantize_seconds", "peer_seconds"))
    head = ("network", "quantized, TensorRT 10.3 rules, compiled for SM86", "quantize s", "compile s", "peer's s")
    head += ("Q and DQ", "FP32 islands", "INT8 MACs")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(row(found) for found in results), ""]
    lines.append(
        f"{len(ok)} of {len(results)} ok ({len(ok) / max(1, len(results)):.1%}); "
        f"torchvision {sum(f['name'] in TORCHVISION for f in ok)} of {sum(f['name'] in TORCHVISION for f in results)}."
    )
    if with_peer:
        cpu = [sum(found[f"{who}_cpu_seconds"] for found in with_peer) for who in ("quantize", "peer")]
        ours_by = with_peer[0]["ranges"]
        theirs_by = "max" if ours_by == "minmax" else "its default"
        lines.append(
            f"Quantization of the same {len(with_peer)} files, Model Optimizer ({theirs_by}) after ours ({ours_by}): "
            f"{theirs:.0f} s against {ours:.0f} s, {ours / theirs:.2f} of its time (CPU seconds {cpu[0] / cpu[1]:.2f})."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
