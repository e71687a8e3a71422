"""The six models of the benchmarks with their images, scoring and first candidates, from the data packs.

`bench_model(name, data, work)` makes what is missing under `work` (float ONNX, decoded images) and keeps it there.

* resnet20, resnet20-jpeg, resnet56: calibrated on `default_rng(draw).permutation(50000)[:256]` of CIFAR-10's training
  images, scored on the 10,000 test images, all JPEG.
* efficientnet-lite0: calibrated on the first 256 of `default_rng(0).permutation(1000)`, scored on the other 744. There
  are no further images, so draw 0 takes centre crops, the others random 224 px crops and flips of the same 256.
* yolov8n (640 px), yolox-nano (416 px): calibrated on 64 of the 128 images, `default_rng(draw).permutation(128)`.

Detectors are cross-fitted: fold 0 calibrates on the first half of the draw and scores the second, fold 1 the other way
round, and mAP is pooled over both. By hand: `python benchmarks/packs.py` prints the float metrics.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import detect
import numpy as np
import onnx_ir as ir
from floats import IMAGENET, float_model
from PIL import Image

from edgecnn.data import Images
from edgecnn.process.progress import track
from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import observe, open_session, run_each
from edgecnn.quantize.ladder.candidate import Candidate, Tools, first
from edgecnn.quantize.place.placement import Graph, place
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import InputContract, IoContract, OutputContract
from edgecnn.recipe.recipe import Normalization, RangeMethod

CLASSIFIERS = ("resnet20", "resnet20-jpeg", "resnet56", "efficientnet-lite0")
DETECTORS = ("yolov8n", "yolox-nano")
MODELS = (*CLASSIFIERS, *DETECTORS)
WORK = Path("/tmp/edgecnn-bench")
Outputs = list[list[np.ndarray]]

_OVERLAP = {"yolov8": 0.7, "yolox": 0.65}  # NMS thresholds of each project's own evaluation


@dataclass(frozen=True)
class BenchModel:
    """One model, its images and how it is scored.

    Attributes:
        contract: what its input means; `feed` turns uint8 NHWC images into it.
        scored: uint8 NHWC images.
        labels: int64 (N,); None for detectors, which have `truths` and `fits`.
        layout: a detector's output layout, see `detect`.
        folds: 1, or 2 for a cross-fitted detector: calibration(draw, fold) goes with scored_of(draw, fold).
        batch: images of one inference when scoring.
    """

    name: str
    task: str
    model: Path
    contract: IoContract
    scored: np.ndarray
    draw: Callable[[int, int], np.ndarray]
    labels: np.ndarray | None = None
    truths: list[detect.Truth] = field(default_factory=list)
    fits: list[detect.Fit] = field(default_factory=list)
    layout: str = ""
    folds: int = 1
    batch: int = 1

    def calibration(self, draw: int, fold: int = 0) -> np.ndarray:
        """Calibration images, uint8 NHWC: 256, detectors 64."""
        return self.draw(draw, fold)

    def scored_of(self, draw: int, fold: int = 0) -> np.ndarray:
        """Numbers of the scored images that this calibration did not see."""
        if self.folds == 1:
            return np.arange(len(self.scored))
        return _half(draw, 1 - fold, len(self.scored))

    def outputs(
        self, model: Path | ir.Model, simulate: bool = True, limit: int | None = None, numbers: np.ndarray | None = None
    ) -> Outputs:
        """The model's outputs, one list of arrays per inference of `batch` images, in order.

        Args:
            simulate: graph optimizations off, so that Q/DQ is evaluated in float.
            limit: only the first images.
            numbers: only these images of `scored`, in this order.
        """
        chosen = np.arange(len(self.scored)) if numbers is None else numbers
        chosen = chosen[:limit]
        session = open_session(model, simulate=simulate)
        found = run_each(session, (self.contract.feed(self.scored[part]) for part in self._parts(chosen)))
        return list(track(found, f"score {self.name}", -(-len(chosen) // self.batch)))

    def _parts(self, chosen: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(chosen), self.batch):
            yield chosen[start : start + self.batch]

    def metric(self, outputs: Outputs, numbers: np.ndarray | None = None) -> float:
        """Top-1 or mAP50-95, 0..1, of the outputs of the images `numbers` (default: the first ones)."""
        if self.labels is not None:
            logits = np.concatenate([each[0] for each in outputs])
            labels = self.labels[: len(logits)] if numbers is None else self.labels[numbers[: len(logits)]]
            return float(np.mean(logits.argmax(1) == labels))
        order = range(len(outputs)) if numbers is None else [int(n) for n in numbers[: len(outputs)]]
        return detect.mean_average_precision(
            self.detections(outputs, order), [self.truths[n] for n in order], [self.fits[n] for n in order]
        )

    def detections(self, outputs: Outputs, numbers: Sequence[int]) -> list[np.ndarray]:
        """A detector's boxes, (N, 6) an image: xyxy in the image's own pixels, score, class; see `detect`."""
        size, overlap = self.contract.input.size[0], _OVERLAP[self.layout]
        return [
            detect.detections(each[0], self.layout, self.fits[number], size, overlap)
            for each, number in zip(outputs, numbers, strict=True)
        ]

    def agreement(self, reference: Outputs, outputs: Outputs) -> float:
        """Share of equal answers: the first class of images, or of the anchors that the float model scores 0.25 up."""
        if self.task == "classify":
            pairs = [(a[0].argmax(1), b[0].argmax(1)) for a, b in zip(reference, outputs, strict=True)]
        else:
            pairs = []
            for a, b in zip(reference, outputs, strict=True):
                exact, got = (detect.parts(each[0], self.layout)[1] for each in (a, b))
                if self.layout == "yolox":
                    exact, got = exact[:, :1] * exact[:, 1:], got[:, :1] * got[:, 1:]
                sure = exact.max(1) >= 0.25
                pairs.append((exact[sure].argmax(1), got[sure].argmax(1)))
        equal = np.concatenate([a == b for a, b in pairs])
        return float(equal.mean()) if len(equal) else 1.0

    def sqnr(self, reference: Outputs, outputs: Outputs) -> dict[str, float]:
        """SQNR in dB: {"logits"}, or {"boxes", "classes"}: boxes as the network gives them, scores as logits."""
        if self.task == "classify":
            return {"logits": detect.sqnr([each[0] for each in reference], [each[0] for each in outputs])}
        exact = [detect.parts(each[0], self.layout) for each in reference]
        got = [detect.parts(each[0], self.layout) for each in outputs]
        return {
            "boxes": detect.sqnr([a for a, _ in exact], [a for a, _ in got]),
            "classes": detect.sqnr([detect.logits(b) for _, b in exact], [detect.logits(b) for _, b in got]),
        }


def bench_model(name: str, data: Path, work: Path = WORK) -> BenchModel:
    """One of MODELS; what it needs is made under `work` at the first call."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{name}.onnx"
    if not path.exists():
        float_model(name, data, path)
    match name:
        case "efficientnet-lite0":
            return _lite0(name, path, data, work)
        case "yolov8n" | "yolox-nano":
            return _detector(name, path, data, work)
        case _:
            return _cifar(name, path, data, work)


def ladder_tools(
    bench: BenchModel, scheme: Scheme, draw: int, folder: Path, fold: int = 0, keep_float: tuple[str, ...] = (),
    ranges: RangeMethod = "auto",
) -> tuple[Tools, Candidate]:  # fmt: skip
    """What a rung takes: tools over the canonical graph, and the candidate with its first ranges."""
    folder.mkdir(parents=True, exist_ok=True)
    model = canonical(bench.model)
    images = bench.calibration(draw, fold)
    feeder = Feeder(model, bench.contract, Images((images,)), len(images))
    shapes, _ = observe(model, list(feeder.feeds([0, 1])))
    graph = Graph(model, shapes)
    tools = Tools(scheme=scheme, graph=graph, feeder=feeder, ranges=ranges, folder=folder)
    candidate, _ = first(model, place(graph, scheme, keep_float), tools)
    return tools, candidate


def _cifar(name: str, path: Path, data: Path, work: Path) -> BenchModel:
    pack = data / "cifar10-jpeg"
    test, labels = _kept(work / "cifar-test", lambda: _blob(pack / "cifar10_test_jpeg.npz", None))

    def draw(number: int, fold: int) -> np.ndarray:
        chosen = np.random.default_rng(number).permutation(50_000)[:256]
        return _kept(work / f"cifar-draw{number}", lambda: _blob(pack / "cifar10_train_jpeg.npz", chosen))[0]

    contract = _contract("images", 32, IMAGENET, "logits")
    return BenchModel(name, "classify", path, contract, test, draw, labels, batch=50)


def _lite0(name: str, path: Path, data: Path, work: Path) -> BenchModel:
    pack = data / "imagenet-sample-1000" / "imagenet_1000_256.npz"
    whole, labels = _kept(work / "imagenet", lambda: _blob(pack, None))
    order = np.random.default_rng(0).permutation(1000)
    calibrate, scored = order[:256], order[256:]

    def draw(number: int, fold: int) -> np.ndarray:
        if number == 0:
            return whole[calibrate, 16:240, 16:240]
        rng = np.random.default_rng(number)
        crops = []
        for image in whole[calibrate]:
            top, left = rng.integers(0, 33, 2)
            crop = image[top : top + 224, left : left + 224]
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
        return np.stack(crops)

    contract = _contract("x", 224, ((0.5,) * 3, (0.5,) * 3), "y")
    images = whole[scored, 16:240, 16:240]
    return BenchModel(name, "classify", path, contract, images, draw, labels[scored], batch=8)


def _detector(name: str, path: Path, data: Path, work: Path) -> BenchModel:
    layout = "yolov8" if name == "yolov8n" else "yolox"
    size = 640 if layout == "yolov8" else 416
    archive = zipfile.ZipFile(data / "coco128-train" / "coco128-train.zip")
    files = sorted(file for file in archive.namelist() if file.endswith(".jpg"))
    store, notes = work / f"coco-{size}.npy", work / f"coco-{size}.json"
    if not (store.exists() and notes.exists()):
        pairs = [
            detect.letterbox(Image.open(io.BytesIO(archive.read(file))), size, centred=layout == "yolov8")
            for file in files
        ]
        _save(store, np.stack([image for image, _ in pairs]))
        notes.write_text(json.dumps([vars(fit) for _, fit in pairs]))
    images = np.load(store, mmap_mode="r")
    fits = [detect.Fit(**fit) for fit in json.loads(notes.read_text())]
    labels = [file.replace("images/", "labels/", 1).removesuffix(".jpg") + ".txt" for file in files]
    texts = [archive.read(label).decode() if label in archive.namelist() else "" for label in labels]
    truths = [detect.truth(text, fit) for text, fit in zip(texts, fits, strict=True)]

    def draw(number: int, fold: int) -> np.ndarray:
        return np.asarray(images[_half(number, fold, len(images))])

    how = ("output0", "rgb", 1.0) if layout == "yolov8" else ("output", "bgr", 255.0)
    contract = _contract("images", size, None, *how)
    return BenchModel(name, "detect", path, contract, images, draw, truths=truths, fits=fits, layout=layout, folds=2)


def _half(draw: int, half: int, count: int) -> np.ndarray:
    order = np.random.default_rng(draw).permutation(count)
    return np.sort(order[: count // 2] if half == 0 else order[count // 2 :])


def _contract(
    name: str, size: int, normalization: tuple[tuple[float, ...], tuple[float, ...]] | None, output: str,
    color: str = "rgb", top: float = 1.0,
) -> IoContract:  # fmt: skip
    given = Normalization(mean=normalization[0], std=normalization[1]) if normalization else None
    return IoContract(
        task="classify",
        input=InputContract.model_validate({
            "name": name, "layout": "NCHW", "dtype": "float32", "range": (0.0, top), "size": (size, size),
            "channels": 3, "color": color, "fit": "letterbox" if normalization is None else "crop",
        }),
        normalization=given,
        normalization_inside=False,
        outputs=(OutputContract(name=output, meaning="logits"),),
        classes=(),
    )  # fmt: skip


def _blob(path: Path, chosen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Decode encoded images of a pack: uint8 (N, H, W, 3) and labels."""
    with np.load(path) as pack:
        offsets, data, labels = pack["offsets"], pack["blob"].tobytes(), pack["labels"].astype(np.int64)
    numbers = np.arange(len(labels)) if chosen is None else chosen
    images = [np.asarray(Image.open(io.BytesIO(data[offsets[n] : offsets[n + 1]])).convert("RGB")) for n in numbers]
    return np.stack(images), labels[numbers]


def _kept(stem: Path, make: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = stem.with_suffix(".npy"), stem.with_suffix(".labels.npy")
    if not (images.exists() and labels.exists()):
        made = make()
        _save(images, made[0])
        _save(labels, made[1])
    return np.load(images), np.load(labels)


def _save(path: Path, array: np.ndarray) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.npy")
    np.save(partial, array)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--only", choices=MODELS, action="append")
    given = parser.parse_args()
    for name in given.only or MODELS:
        bench = bench_model(name, Path(os.environ["EDGECNN_DATA"]), given.work)
        print(f"{name}: float {100 * bench.metric(bench.outputs(bench.model, simulate=False)):.2f}", flush=True)


if __name__ == "__main__":
    main()
