"""Calibration's memory and speed, by hand: `python benchmarks/calibration.py` (needs torch, torchvision).

Memory: peak RssAnon of a fresh process that quantizes ResNet-18 (random weights, 224 px) with 64 and with 960 images.
`--lite0` takes the trained EfficientNet-Lite0 and its photographs instead, and compares speed
alone (needs EDGECNN_DATA).
Speed: entropy ranges of the same 128 images, each side in a fresh process, one run, twice over: the ranges alone (from
one prepared graph to a range per tensor, against onnxruntime.quantization's entropy calibrator), and the whole commands
(quantize_model with its per-layer report, against quantize_static). The clock starts once the libraries are imported.
The float inferences alone, which both need, are timed too: they bound what can be gained.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecnn.quantize.graph.canonical import canonical
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import InputContract, IoContract
from edgecnn.recipe.recipe import QuantizeSpec

SIZE = 224


class Pictures:
    """The images of a file beside the model, or else random ones, made when they are read: the set takes no memory."""

    def __init__(self, model: Path, count: int) -> None:
        self.count = count
        beside = model.with_name("pixels.npy")
        self.pixels = np.load(beside, mmap_mode="r") if beside.exists() else None

    def __len__(self) -> int:
        return self.count

    def batch(self, start: int, stop: int) -> np.ndarray:
        if self.pixels is not None:
            return np.asarray(self.pixels[start:stop])
        return np.stack(
            [np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), np.uint8) for i in range(start, stop)]
        )


def export(path: Path) -> None:
    """ResNet-18 with random weights, float NCHW input, dynamic batch."""
    import torch
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    torch.onnx.export(
        model, (torch.zeros(2, 3, SIZE, SIZE),), str(path), dynamo=True, opset_version=19, input_names=["image"],
        output_names=["logits"], dynamic_shapes=(batch,), external_data=False, verbose=False,
    )  # fmt: skip


def lite0(path: Path, images: int) -> None:
    """The pack's EfficientNet-Lite0 and its first calibration images."""
    from packs import WORK, bench_model

    bench = bench_model("efficientnet-lite0", Path(os.environ["EDGECNN_DATA"]), WORK)
    path.write_bytes(bench.model.read_bytes())
    np.save(path.with_name("pixels.npy"), bench.calibration(0)[:images])


def span(model: Path) -> tuple[float, float]:
    """The range of the model's input: EfficientNet-Lite0's, or ResNet-18's."""
    return (-1.0, 1.0) if model.with_name("pixels.npy").exists() else (0.0, 1.0)


def fed(model: Path, image: np.ndarray) -> np.ndarray:
    """uint8 NHWC images as the model's input, float32 NCHW."""
    low, high = span(model)
    values: np.ndarray = image.transpose(0, 3, 1, 2).astype(np.float32) * np.float32((high - low) / 255) + low
    return values.astype(np.float32)


def input_name(model: Path) -> str:
    """The name of a graph's only input."""
    return str(ir.load(model).graph.inputs[0].name)


def scheme_and_contract(model: Path) -> tuple[Scheme, IoContract]:
    """TensorRT's scheme, and what the model is fed."""
    scheme = Scheme(activations="int8-symmetric", islands="float16", placement="tensorrt")
    image = InputContract(
        name=input_name(model),
        layout="NCHW",
        dtype="float32",
        range=span(model),
        size=(SIZE, SIZE),
        channels=3,
        color="rgb",
        fit="crop",
    )
    contract = IoContract(
        task="classify", input=image, normalization=None, normalization_inside=True, outputs=(), classes=()
    )  # fmt: skip
    return scheme, contract


def ours(model: Path, images: int, ranges: str) -> None:
    """Quantize for TensorRT with so many images."""
    from edgecnn.quantize import quantize_model

    scheme, contract = scheme_and_contract(model)
    spec = QuantizeSpec.model_validate({"images": images, "ranges": ranges})
    with tempfile.TemporaryDirectory() as out:
        quantize_model(Path(out), spec, scheme, model, Pictures(model, images), contract)


def our_ranges(model: Path, images: int) -> None:
    """From a prepared graph to an entropy range for every tensor that the TensorRT scheme quantizes."""
    from edgecnn.quantize.calibration.auto import by_method
    from edgecnn.quantize.calibration.calibrate import Feeder, calibrate
    from edgecnn.quantize.graph.sessions import observe
    from edgecnn.quantize.place.placement import Graph, place

    scheme, contract = scheme_and_contract(model)
    float_model = ir.load(model)
    feeder = Feeder(float_model, contract, Pictures(model, images), images)
    shapes, _ = observe(float_model, list(feeder.feeds([0])))
    placement = place(Graph(float_model, shapes), scheme)
    calibration = calibrate(feeder, [activation.tensor for activation in placement.counted])
    by_method("entropy", placement, calibration, scheme)


def inference(model: Path, images: int) -> None:
    """Only run the float model, on every core."""
    from edgecnn.quantize.graph.sessions import open_session, run_each

    pictures = Pictures(model, images)
    name = input_name(model)
    feeds = ({name: fed(model, pictures.batch(i, i + 1))} for i in range(images))
    for _ in run_each(open_session(model), feeds):
        pass


def reader(model: Path, images: int) -> Any:
    """onnxruntime's calibration reader over the same images, one at a time."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # an untyped library
        def __init__(self) -> None:
            pictures, self.name = Pictures(model, images), input_name(model)
            self.feeds = iter(pictures.batch(i, i + 1) for i in range(images))

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.feeds, None)
            if image is None:
                return None
            return {self.name: fed(model, image)}

    return Reader()


def their_ranges(model: Path, images: int) -> None:
    """onnxruntime.quantization's entropy calibrator, over the operators that quantize_static calibrates."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    with tempfile.TemporaryDirectory() as out:
        calibrator = create_calibrator(
            str(model), list({*QDQRegistry, *QLinearOpsRegistry}), augmented_model_path=str(Path(out) / "a.onnx"),
            calibrate_method=CalibrationMethod.Entropy, extra_options={"symmetric": True},
        )  # fmt: skip
        calibrator.collect_data(reader(model, images))
        calibrator.compute_data()


def theirs(model: Path, images: int) -> None:
    """onnxruntime.quantization: symmetric S8S8, per-channel weights, entropy."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as out:
        quantize_static(
            str(model), str(Path(out) / "q.onnx"), reader(model, images),
            quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Entropy,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )  # fmt: skip


def watched(work: Callable[[], None]) -> dict[str, float]:
    """Run, sampling this process's RssAnon every 5 ms: seconds, processor seconds and peak in MB."""
    peak, done = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.005):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    peak = max(peak, int(line.split()[1]))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    start, cpu = time.monotonic(), time.process_time()
    work()
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - cpu
    done.set()
    thread.join()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak / 1000}


def fresh(*arguments: str) -> dict[str, float]:
    """This script in a new process; its last line is JSON."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", type=int, default=64, help="images of the small run")
    parser.add_argument("--many", type=int, default=960, help="images of the large run")
    parser.add_argument("--ranges", default="auto", help="range method of the memory runs")
    parser.add_argument("--entropy", type=int, default=128, help="images of the speed comparison; 0 leaves it out")
    parser.add_argument("--lite0", action="store_true", help="EfficientNet-Lite0 and photographs, speed alone")
    parser.add_argument("--child", nargs=4, metavar=("WHO", "MODEL", "IMAGES", "RANGES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        who, model, images, ranges = given.child
        for module in ("onnxruntime.quantization", "edgecnn.quantize.model"):
            importlib.import_module(module)
        match who:
            case "ours":
                found = watched(lambda: ours(Path(model), int(images), ranges))
            case "inference":
                found = watched(lambda: inference(Path(model), int(images)))
            case "our-ranges":
                found = watched(lambda: our_ranges(Path(model), int(images)))
            case "their-ranges":
                found = watched(lambda: their_ranges(Path(model), int(images)))
            case _:
                found = watched(lambda: theirs(Path(model), int(images)))
        print(json.dumps(found))
        return
    libraries = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "onnx", "numpy"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {libraries}")
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder) / "model.onnx")
        if given.lite0:
            lite0(Path(model), given.entropy)
        else:
            export(Path(model))
        prepared = str(Path(folder) / "prepared.onnx")
        ir.save(canonical(Path(model)), prepared)
        if not given.lite0:
            memory(model, given)
        if given.entropy:
            compare(model, prepared, str(given.entropy))


def memory(model: str, given: argparse.Namespace) -> None:
    """Print the peaks of a few and of many images, and their ratio."""
    few = fresh("--child", "ours", model, str(given.few), given.ranges)
    many = fresh("--child", "ours", model, str(given.many), given.ranges)
    for count, found in ((given.few, few), (given.many, many)):
        peak, seconds = found["peak_mb"], found["seconds"]
        print(f"memory, {given.ranges}, {count} images: peak RssAnon {peak:.0f} MB, {seconds:.1f} s")
    print(f"memory ratio {given.many}/{given.few}: {many['peak_mb'] / few['peak_mb']:.3f}")


def compare(model: str, prepared: str, images: str) -> None:
    """Print both comparisons of speed."""
    bare = fresh("--child", "inference", model, images, "entropy")
    print(f"inference alone, {images} images: {bare['seconds']:.1f} s")
    alone, whole = ("ranges alone", prepared, "our-ranges", "their-ranges"), ("whole commands", model, "ours", "theirs")
    for title, file, who, peer in (alone, whole):
        found = {
            name: fresh("--child", child, file, images, "entropy")
            for name, child in (("edgecnn", who), ("onnxruntime", peer))
        }
        for name, run in found.items():
            wall, cpu, peak = run["seconds"], run["cpu_seconds"], run["peak_mb"]
            print(f"entropy, {title}, {name}: {wall:.1f} s, processor {cpu:.1f} s, peak {peak:.0f} MB")
        wall, cpu = (found["onnxruntime"][key] / found["edgecnn"][key] for key in ("seconds", "cpu_seconds"))
        print(f"entropy, {title}: {wall:.1f} times faster by clock, {cpu:.1f} by processor time")


if __name__ == "__main__":
    main()
