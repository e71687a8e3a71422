"""The trained CIFAR-10 ResNets on all 10,000 test images, by hand: `EDGECNN_DATA=… python benchmarks/cifar.py`.

Calibration images: `numpy.random.default_rng(0).permutation(50000)[:256]` of the training images. TensorRT's scheme is
evaluated in float simulation (the rtx and jetson devices share it); the CPU's schemes run on this machine's kernels,
8-bit weights as they are where it has VNNI, and 7-bit weights anywhere.
Prints one row a model and scheme: float and INT8 top-1, drop with one-sided 95 % Tango bounds, SQNR of the logits,
INT8 share of MACs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from edgecnn.backends.cpu import read_cpu
from edgecnn.data import Images, open_images, read_index
from edgecnn.measure.stats import tango_bounds
from edgecnn.pipeline import float_model
from edgecnn.process import progress
from edgecnn.quantize import quantize_model
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import read_contract
from edgecnn.recipe.load import load_device, load_recipe
from edgecnn.recipe.recipe import QuantizeSpec, ScoreSpec
from edgecnn.store.stage import Store
from edgecnn.targets.score import score_file

MODELS = {
    "ResNet-20 published": ("resnet20", "resnet20-12fca82f.th"),
    "ResNet-20 tuned on JPEG": ("resnet20", "resnet20_jpeg_finetuned.pt"),
    "ResNet-56 published": ("resnet56", "resnet56-4bfd9763.th"),
}


def schemes() -> dict[str, tuple[Scheme, bool]]:
    """Name → (scheme, whether it is simulated)."""
    cpu = load_device("cpu-x86").scheme
    found = {"TensorRT, simulated": (load_device("jetson-orin-nano").scheme, True)}
    if read_cpu().vnni:
        found["cpu-x86 8-bit, VNNI kernels"] = (cpu, False)
    narrow = cpu.model_copy(update={"weights": "int8-per-channel-7bit"})
    found["cpu-x86 7-bit, this CPU's kernels"] = (narrow, False)
    return found


def scored(folder: Path, model: Path, data: Path, *, simulate: bool) -> dict[str, np.ndarray]:
    """Outcomes of one model on the scored images."""
    folder.mkdir()
    score_file(folder, ScoreSpec(), model, data, backend="onnxruntime", simulate=simulate)
    with np.load(folder / "outcomes.npz") as outcomes:
        return {name: outcomes[name] for name in outcomes.files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranges", default="auto")
    given = parser.parse_args()
    root = Path(os.environ["EDGECNN_DATA"])
    print("| model (float top-1) | scheme | INT8 top-1 | drop, points (bounds) | SQNR dB | MACs in INT8 |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="edgecnn-cifar-") as scratch:
        store = Store(Path(scratch, "store"))
        for title, (name, file) in MODELS.items():
            sets = [f"model.name={name}", f"model.weights={root / 'resnet-cifar10' / file}"]
            recipe = load_recipe("cifar10_resnet20", sets)
            data, _, plain = float_model(recipe, store)
            model = plain.path / "model.onnx"
            contract = read_contract(model)
            assert contract is not None
            opened = open_images(recipe.data, read_index(data.path))
            chosen = np.random.default_rng(0).permutation(50_000)[:256]
            images = Images((np.stack([opened(int(number)) for number in chosen]),))
            reference = scored(Path(scratch, name + file), model, data.path, simulate=False)
            for label, (scheme, simulate) in schemes().items():
                out = Path(scratch, f"{file} {label}")
                out.mkdir()
                spec = QuantizeSpec.model_validate({"ranges": given.ranges})
                quantize_model(out, spec, scheme, model, images, contract)
                int8 = scored(out / "score", out / "model.onnx", data.path, simulate=simulate)
                right, kept = reference["outcome"] > 0.5, int8["outcome"] > 0.5
                b, c, n = int(np.sum(right & ~kept)), int(np.sum(~right & kept)), len(right)
                lower, upper = tango_bounds(b, c, n)
                error = float(np.sum((reference["logits"] - int8["logits"]).astype(np.float64) ** 2))
                sqnr = 10 * np.log10(float(np.sum(reference["logits"].astype(np.float64) ** 2)) / error)
                macs = json.loads((out / "quantize.json").read_text())["coverage"]["macs"]
                print(
                    f"| {title} ({100 * right.mean():.2f}) | {label} | {100 * kept.mean():.2f} "
                    f"| {100 * (b - c) / n:+.2f} ({100 * lower:+.2f} … {100 * upper:+.2f}) | {sqnr:.1f} | {macs:.1%} |",
                    flush=True,
                )


if __name__ == "__main__":
    with progress.showing(progress.Plain(60)):
        main()
