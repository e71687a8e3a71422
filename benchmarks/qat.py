"""Quantization-aware training of a JPEG-tuned ResNet-20, by hand: `EDGECNN_DATA=… python benchmarks/qat.py`.

4-bit weights and 8-bit activations by TensorRT's placement, in float simulation: a stress test, for no engine. Training
images, select images and calibration images are disjoint parts of `numpy.random.default_rng(0).permutation(50000)` of
the training set; scored are the test images. `lost`: float minus PTQ (ranges and rounding to nearest, no other rung);
`recovered`: the share of it that training brings back. Then the same network at 8 bits: its Q/DQ edges, counted in the
written graph, against the placement's.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from edgecnn import data as data_room
from edgecnn.measure.stats import tango_bounds
from edgecnn.pipeline import float_model
from edgecnn.process import progress
from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import observe
from edgecnn.quantize.ladder.candidate import Candidate, Network, Tools, first
from edgecnn.quantize.place.placement import Graph, place
from edgecnn.quantize.rungs.qat import qat
from edgecnn.quantize.write.rewrite import serialized
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import read_contract
from edgecnn.recipe.load import load_device, load_recipe
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.store.stage import Store
from edgecnn.targets.score import score_file


def decoded(file: Path, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 NHWC images and labels of a pack of JPEG bytes."""
    pack = np.load(file)
    offsets, blob = pack["offsets"], pack["blob"].tobytes()
    images = [np.asarray(Image.open(io.BytesIO(blob[offsets[i] : offsets[i + 1]]))) for i in numbers]
    return np.stack(images), pack["labels"][numbers]


def write_parts(root: Path, packs: Path, train: int, scored: int) -> None:
    """train.npz, select.npz and scored.npz under `root`."""
    order = np.random.default_rng(0).permutation(50_000)
    parts = {
        "train": (packs / "cifar10_train_jpeg.npz", order[:train]),
        "select": (packs / "cifar10_train_jpeg.npz", order[train : train + 2_000]),
        "scored": (packs / "cifar10_test_jpeg.npz", np.arange(scored)),
    }
    for name, (file, numbers) in parts.items():
        images, labels = decoded(file, numbers)
        np.savez(root / f"{name}.npz", images=images, labels=labels)


def score(folder: Path, model: Path | Candidate, scheme: Scheme, data: Path) -> np.ndarray:
    """Right or wrong for each scored image."""
    folder.mkdir()
    if isinstance(model, Candidate):
        (folder / "model.onnx").write_bytes(serialized(model.quantized(scheme)))
        model = folder / "model.onnx"
    score_file(folder, ScoreSpec(), model, data, backend="onnxruntime", simulate=True)
    with np.load(folder / "outcomes.npz") as outcomes:
        return outcomes["outcome"] > 0.5


def edges(model: onnx.ModelProto) -> set[tuple[str, int]]:
    """(node, input index) of every reading of a dequantized activation."""
    weights = {tensor.name for tensor in model.graph.initializer}
    made = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] not in weights
    }
    return {(node.name, index) for node in model.graph.node for index, name in enumerate(node.input) if name in made}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--scored", type=int, default=10_000)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 8], help="of the weights; one run each")
    parser.add_argument("--set", action="append", default=[], help="of the recipe, such as quantize.qat.epochs=10")
    given = parser.parse_args()
    packs = Path(os.environ["EDGECNN_DATA"])
    with tempfile.TemporaryDirectory(prefix="edgecnn-qat-") as scratch:
        root = Path(scratch)
        write_parts(root, packs / "cifar10-jpeg", given.train, given.scored)
        sets = [f"data.root={root}", "data.train=train.npz", "data.select=select.npz", "data.scored=scored.npz"]
        recipe = load_recipe("cifar10_resnet20", [*sets, *given.set])
        data, trained, plain = float_model(recipe, Store(root / "store"))
        model = plain.path / "model.onnx"
        contract = read_contract(model)
        assert contract is not None
        graph = canonical(model)
        calibration = data_room.images(data.path, "calibrate")
        feeder = Feeder(graph, contract, calibration, recipe.quantize.images)
        shapes, _ = observe(graph, list(feeder.feeds([0, 1])))
        base = load_device("jetson-orin-nano").scheme
        float_right = score(root / "float", model, base, data.path)
        qat_spec = recipe.quantize.qat
        print(f"{given.train:,} training images, {qat_spec.epochs} epochs; {given.scored:,} test images, top-1 in %\n")
        print("| weights | float | PTQ | lost | QAT | recovered | QAT drop (bounds) | edges | seconds |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        for bits in given.bits:
            scheme = base.model_copy(update={"weight_bits": bits})
            network = Network(recipe.model, recipe.train, recipe.data, data.path, trained.path, qat_spec)
            tools = Tools(
                scheme, Graph(graph, shapes), feeder, recipe.quantize.ranges, root / f"w{bits}", network=network
            )
            candidate, _ = first(graph, place(tools.graph, scheme), tools)
            before = score(root / f"ptq{bits}", candidate, scheme, data.path)
            start = time.monotonic()
            found = qat(candidate, tools)
            seconds = time.monotonic() - start
            progress.current().note("; ".join(found.notes))
            after = score(root / f"qat{bits}", found, scheme, data.path)
            written = onnx.load(str(root / f"qat{bits}" / "model.onnx"))
            placed = {(edge.node, edge.index) for a in candidate.placement.activations for edge in a.edges}
            assert edges(written) == placed, "Q/DQ is not on exactly the placed edges"
            lost, kept = float_right.mean() - before.mean(), after.mean() - before.mean()
            recovered = f"{kept / lost:.0%}" if lost > 0 else "nothing lost"
            b, c = int(np.sum(float_right & ~after)), int(np.sum(~float_right & after))
            lower, upper = tango_bounds(b, c, len(after))
            print(
                f"| {bits}-bit | {100 * float_right.mean():.2f} | {100 * before.mean():.2f} | {100 * lost:.2f} "
                f"| {100 * after.mean():.2f} | {recovered} | {100 * (b - c) / len(after):+.2f} "
                f"({100 * lower:+.2f} … {100 * upper:+.2f}) | {len(placed)} as placed | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    with progress.showing(progress.Plain(60)):
        main()
