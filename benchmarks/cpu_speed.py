"""What INT8 gains on this machine's CPU, by hand: `EDGECNN_DATA=… python benchmarks/cpu_speed.py`.

Each model is quantized as `edgecnn quantize` delivers it for cpu-x86 and cpu-x86-openvino (ranges `auto`, no budget),
then float and INT8 run alternately in one process, one thread on one core: speed-up by the median of pairs with 95 %
bounds, and by 5th percentiles. In OpenVINO NNCF's INT8 of the same model runs against ours in the same way
(performance preset, the same calibration images, in an environment of its own): ours as fast is 1.00.

EfficientNet-Lite0 and YOLOv8n are trained and calibrated on their packs; ResNet-18 and MobileNetV3-small have random
weights and images. `--kernels` prints, in place of all that, what onnxruntime's profile says of each kind of kernel,
the numbers behind `edgecnn.quantize.place.costs`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cpu_kernels import print_kernels

from edgecnn.backends.cpu import read_cpu
from edgecnn.data import Images
from edgecnn.measure.stats import p5_speedup, pair_ratio
from edgecnn.process import progress
from edgecnn.quantize import quantize_model
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import InputContract, IoContract
from edgecnn.recipe.load import load_device
from edgecnn.recipe.recipe import BenchSpec, Normalization, QuantizeSpec
from edgecnn.targets.target import Target, connect

PACKED = ("efficientnet-lite0", "yolov8n")
RANDOM = {"resnet18": "resnet18", "mobilenetv3-small": "mobilenet_v3_small"}
MODELS = ("efficientnet-lite0", "resnet18", "mobilenetv3-small", "yolov8n")
DEVICES = ("cpu-x86", "cpu-x86-openvino")
LEAST = 0.98  # lower bound of the speed-up that a delivered model must have
LEAST_OF_NNCF = 0.95
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Subject:
    """A float model, what it is fed, and its calibration images (uint8 NHWC)."""

    name: str
    model: Path
    contract: IoContract
    images: np.ndarray


def subject(name: str, data: Path, work: Path, count: int) -> Subject:
    """Make or find one model."""
    if name in PACKED:
        from packs import bench_model

        bench = bench_model(name, data, work)
        return Subject(name, bench.model, bench.contract, bench.calibration(0)[:count])
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{name}-random.onnx"
    if not path.exists():
        _export(RANDOM[name], path)
    image = InputContract(
        name="image", layout="NCHW", dtype="float32", range=(0.0, 1.0), size=(224, 224), channels=3, color="rgb",
        fit="crop",
    )  # fmt: skip
    usual = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    contract = IoContract(
        task="classify", input=image, normalization=usual, normalization_inside=False, outputs=(), classes=()
    )
    images = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), np.uint8)
    return Subject(name, path, contract, images)


def _export(name: str, path: Path) -> None:
    import torch
    import torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    partial = path.with_suffix(".partial")
    torch.onnx.export(
        model, (torch.zeros(2, 3, 224, 224),), str(partial), dynamo=True, opset_version=19, input_names=["image"],
        output_names=["logits"], dynamic_shapes=(batch,), external_data=False, verbose=False,
    )  # fmt: skip
    partial.replace(path)


def deliver(out: Path, one: Subject, scheme: Scheme) -> tuple[Path, float]:
    """The INT8 model and its share of MACs in INT8; made again only where the scheme or a source changed."""
    from edgecnn.process.versions import code_version

    key = json.dumps([code_version(), scheme.model_dump(), len(one.images)])
    stamp = out / "key.json"
    if not stamp.exists() or stamp.read_text() != key:
        out.mkdir(parents=True, exist_ok=True)
        quantize_model(
            out, QuantizeSpec(images=len(one.images)), scheme, one.model, Images((one.images,)), one.contract
        )  # fmt: skip
        stamp.write_text(key)
    share = json.loads((out / "quantize.json").read_text())["coverage"]["macs"]
    return out / "model.onnx", share


def nncf(one: Subject, peers: Path, out: Path) -> Path:
    """NNCF's INT8 model."""
    from quantizer_runs import environment

    made = out / f"{one.name}-nncf-{len(one.images)}.onnx"
    if made.exists():
        return made
    python = environment("nncf", peers)
    contract = one.contract
    outside = None if contract.normalization_inside else contract.normalization
    low, high = contract.input.range
    with tempfile.TemporaryDirectory(prefix="edgecnn-nncf-") as scratch:
        images, job = Path(scratch, "images.npy"), Path(scratch, "job.json")
        np.save(images, one.images)
        given: dict[str, Any] = {
            "name": contract.input.name, "color": contract.input.color, "low": low, "high": high,
            "mean": list(outside.mean) if outside else None, "std": list(outside.std) if outside else None,
        }  # fmt: skip
        job.write_text(json.dumps({
            "tool": "nncf", "method": "fast", "model": str(one.model), "output": str(made), "images": str(images),
            "input": given, "exclude": [],
        }))  # fmt: skip
        command = [str(python), str(HERE / "peer_child.py"), str(job)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
    return made


def race(target: Target, first: Path, second: Path, spec: BenchSpec) -> dict[str, float]:
    """How many times as fast the second file is: median of pairs with bounds, 5th percentiles, and both p5 in ms."""
    times = target.time_files(first, second, spec)
    if times is None:
        sys.exit(f"{target.profile.name} is not here: {target.facts.hardware}")
    slower = pair_ratio(times.second_ms, times.first_ms)
    return {
        "median": slower.median, "lower": slower.lower, "upper": slower.upper,
        "p5": p5_speedup(times.first_ms, times.second_ms), "pairs": float(len(times.first_ms)),
        "first_ms": float(np.quantile(times.first_ms, 0.05)), "second_ms": float(np.quantile(times.second_ms, 0.05)),
    }  # fmt: skip


def rows(given: argparse.Namespace, data: Path) -> Iterator[str]:
    """The table, row by row."""
    spec = BenchSpec(min_pairs=given.pairs, min_seconds=given.seconds, max_seconds=max(60.0, 2 * given.seconds))
    for name in given.models:
        one = subject(name, data, given.work, min(64, given.images) if name == "yolov8n" else given.images)
        for device in given.devices:
            target = connect(load_device(device))
            int8, share = deliver(given.work / "cpu-speed" / device / name, one, target.scheme)
            found = race(target, one.model, int8, spec)
            met = found["lower"] >= LEAST
            yield _row(name, device, f"float → ours ({share:.0%} of MACs)", found, met)
            if device == "cpu-x86-openvino":
                found = race(target, nncf(one, given.peers, given.work), int8, spec)
                yield _row(name, device, "NNCF's INT8 → ours", found, found["median"] >= LEAST_OF_NNCF)


def _row(name: str, device: str, what: str, found: dict[str, float], met: bool) -> str:
    return (
        f"| {name} | {device} | {what} | {found['first_ms']:.2f} → {found['second_ms']:.2f} | {found['median']:.3f} "
        f"({found['lower']:.3f} … {found['upper']:.3f}) | {found['p5']:.3f} | {found['pairs']:.0f} "
        f"| {'met' if met else 'NOT met'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--devices", nargs="+", choices=DEVICES, default=DEVICES)
    parser.add_argument("--images", type=int, default=256, help="calibration images; yolov8n: at most 64")
    parser.add_argument("--pairs", type=int, default=400, help="least number of pairs")
    parser.add_argument("--seconds", type=float, default=10.0, help="least time of each comparison")
    parser.add_argument("--core", type=int, help="the core to run on; default: the last one")
    parser.add_argument("--work", type=Path, default=Path("/tmp/edgecnn-bench"), help="where models are kept")
    parser.add_argument("--peers", type=Path, default=Path("/tmp/peers"), help="where NNCF's environment is or goes")
    parser.add_argument("--kernels", action="store_true", help="print what onnxruntime's kernels take")
    given = parser.parse_args()
    data = Path(os.environ["EDGECNN_DATA"])
    cpu = read_cpu()
    targets = [connect(load_device(device)) for device in given.devices]
    engines = ", ".join(target.facts.backend_version for target in targets)
    print(f"{cpu.name}, VNNI {cpu.vnni}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, one thread, {engines}")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if given.core is None else given.core})
    if given.kernels:
        scheme = next(target.scheme for target in targets if target.profile.backend == "onnxruntime")
        everything = scheme.model_copy(update={"costs": None})
        for name in given.models:
            one = subject(name, data, given.work, 8)
            int8, _ = deliver(given.work / "cpu-speed" / "kernels" / name, one, everything)
            print_kernels(name, one.model, int8)
        return
    print("| model | device | what | ms, 5th percentile | speed-up (95 % bounds) | by p5 | pairs | |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for row in rows(given, data):
        print(row, flush=True)


if __name__ == "__main__":
    with progress.showing(progress.Plain(60)):
        main()
