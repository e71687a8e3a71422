"""Artifacts of a build made by hand: the folders that the stages leave, with numbers a test chooses."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.recipe.device import DeviceFacts, DeviceProfile, Scheme
from edgecnn.recipe.recipe import Recipe
from edgecnn.store.stage import Artifact
from edgecnn.verdict.evidence import Evidence

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CPU = DeviceProfile(
    name="cpu-x86",
    backend="onnxruntime",
    architecture="x86_64",
    precisions=("fp32", "int8"),
    scheme=Scheme(activations="uint8-asymmetric", bias="int32", placement="onnxruntime"),
    source="a test",
)
ORIN = DeviceProfile(
    name="jetson-orin-nano",
    backend="tensorrt",
    architecture="aarch64",
    compute_capability="8.7",
    precisions=("fp32", "fp16", "int8"),
    tensorrt_rules="10.3",
    scheme=Scheme(activations="int8-symmetric", islands="float16", placement="tensorrt"),
    source="a test",
)
HERE = DeviceFacts(reachable=True, backend_version="onnxruntime 1.32.0", hardware="AMD EPYC, 2 cores", vnni=False)
NO_BOARD = DeviceFacts(reachable=False, backend_version="TensorRT for RTX 1.7.1 (parser only)", hardware="no board")


def recipe(**budgets: float) -> Recipe:
    """A recipe with these budgets; the rest does not matter to a verdict."""
    return Recipe.model_validate(
        {
            "name": "quickstart",
            "data": {"format": "digits", "color": "gray"},
            "model": {"family": "small", "name": "gap", "image_size": 32},
            "device": "cpu-x86",
            "budgets": budgets,
        }
    )


def evidence(
    root: Path,
    *,
    images: int = 600,
    b: int = 4,
    c: int = 2,
    accuracy: float = 0.97,
    classes: tuple[str, ...] = CLASSES,
    pairs: int = 500,
    speedup: float = 1.8,
    noise: float = 0.03,
    speed: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    simulated: bool = False,
    int8_bytes: int = 290_000,
    layers: int = 20,
    climb: dict[str, Any] | None = None,
    seed: int = 0,
) -> Evidence:
    """Write all nine artifacts under `root`: b images right only in float, c only in INT8; `speedup` in every pair.

    `climb` is the ladder's part of quantize.json, as `climb` below makes it.
    """
    random = np.random.default_rng(seed)
    label = random.integers(0, len(classes), images)
    float_right = np.arange(images) < round(accuracy * images)
    int8_right = float_right.copy()
    int8_right[:b] = False
    int8_right[images - c :] = True
    wrong = (label + random.integers(1, len(classes), images)) % len(classes)
    order = random.permutation(images)
    logits = random.normal(0, 1, (images, len(classes)))
    scores = {}
    for name, right, is_simulated, error in (
        ("reference", float_right, False, 0.0), ("before", float_right, simulated, 1e-6),
        ("after", int8_right, simulated, 0.05),
    ):  # fmt: skip
        predicted = np.where(right, label, wrong)
        own = logits + error * random.normal(0, 1, logits.shape)
        own[np.arange(images), predicted] = 8.0 + error
        arrays = {
            "label": label,
            "predicted": predicted,
            "outcome": right.astype(np.float32),
            "logits": own.astype(np.float32),
        }
        how = "onnxruntime 1.32.0, FP32" if name == "reference" else "onnxruntime 1.32.0"
        folder = _folder(root, f"score-{name}")
        np.savez(folder / "outcomes.npz", **{key: array[order] for key, array in arrays.items()})
        document = {"metric": "top1", "value": float(right.mean()), "unit": "fraction", "n": images, "how": how}
        _write(folder / "score.json", {**document, "simulated": is_simulated, "seconds": 1.0})
        scores[name] = Artifact(f"score-{name}", "0", folder)
    data = _folder(root, "data")
    _write(data / "index.json", {"classes": classes, "digest": "d" * 64, "image_size": 32})
    np.save(data / "scored-00000.npy", random.integers(0, 256, (images, 4, 4, 3)).astype(np.uint8))
    np.save(data / "scored_labels.npy", label[order])
    plain, int8 = _folder(root, "export"), _folder(root, "quantize")
    (plain / "model.onnx").write_bytes(b"f" * 1_080_000)
    (int8 / "model.onnx").write_bytes(b"8" * int8_bytes)
    _write(int8 / "quantize.json", quantize_document(layers, random) | (climb or {}))
    found = {"device": "cpu-x86", "backend": "onnxruntime", "built": True, "runnable": True, "engine": None,
             "graph": "model.onnx", "checks": [], "note": "", "size_bytes": 290_000, "seconds": 0.1}  # fmt: skip
    for name, document in (("base", found), ("engine", {**found, **(engine or {})})):
        _write(_folder(root, name) / "engine.json", document)
    return Evidence(
        data=Artifact("data", "0", data), plain=Artifact("export", "0", plain), int8=Artifact("quantize", "0", int8),
        base=Artifact("compile-float", "0", root / "base"), engine=Artifact("compile-int8", "0", root / "engine"),
        reference=scores["reference"], before=scores["before"], after=scores["after"],
        speed=Artifact("speed", "0", _speed(root, random, pairs, speedup, noise, speed or {})),
    )  # fmt: skip


def climb(state: str, *drops: float, budget: float = 0.02) -> dict[str, Any]:
    """A climb whose rungs lost these shares of 1,000 select images; the one that lost least is kept last."""
    names = ("ranges", "equalize", "bias", "clip", "adaround", "mixed", "qat")
    rows, best = [], 0
    for number, drop in enumerate(drops):
        best = number if drop < drops[best] else best
        rows.append({
            "rung": names[number], "kept": best == number, "why": f"drop {100 * drop:.2f} points, so to say",
            "float_value": 0.97, "value": 0.97 - drop, "drop": drop, "lower": drop - 0.004, "upper": drop + 0.004,
            "images": 1000, "disc": abs(drop) + 0.01, "sqnr_db": 20.0 + number, "seconds": 1.5, "float_nodes": number,
            "int8_macs": 1 - 0.01 * number, "expected_speed": 1 / (1 + 0.03 * number),
        })  # fmt: skip
    recovery = {
        "budget": budget, "state": state, "best": names[best], "stop_at": "qat", "judged": "float simulation",
        "notes": ["a note of the climb"] if state == "missed" else [],
    }  # fmt: skip
    return {"ladder": rows, "recovery": recovery}


def quantize_document(layers: int, random: np.random.Generator) -> dict[str, Any]:
    """quantize.json of a residual network whose last layer stays float."""
    names = [f"layer{1 + 3 * number // layers}.{number % 3}.conv{1 + number % 2}" for number in range(layers)]
    rows = [
        {"name": name, "op": "Conv", "weight": f"{name}.weight", "macs": 2_359_296, "int8": True, "why_float": None,
         "sqnr_db": round(float(random.normal(31, 3)), 2)}
        for name in names
    ]  # fmt: skip
    if rows:
        rows[-1] |= {"name": "fc", "op": "Gemm", "int8": False, "why_float": "keep_float names it", "sqnr_db": None}
    return {
        "scheme": {"activations": "uint8-asymmetric", "weights": "int8-per-channel-7bit", "bias": "int32",
                   "islands": "float32", "placement": "onnxruntime"},
        "ranges": "auto", "calibration": {"images": 256, "digest": "c0ffee" * 10, "batch": 32, "seconds": 3.2},
        "coverage": {"macs": 0.992, "activation_bytes": 0.968}, "qdq": {"quantize_linear": 40, "dequantize_linear": 62},
        "layers": rows, "tensors": [], "sqnr_db": 26.4, "float_islands": [],
    }  # fmt: skip


def _speed(
    root: Path, random: np.random.Generator, pairs: int, speedup: float, noise: float, given: dict[str, Any]
) -> Path:
    folder = _folder(root, "speed")
    document = {
        "measured": True, "why": None, "when": "2026-01-02T03:04:05+00:00", "pairs": pairs, "seconds": 3.1,
        "warmup_ms": 200, "batch": 1, "threads": 1, "hardware": "AMD EPYC, 2 cores", "backend": "onnxruntime 1.32.0",
        "what": "engine time only",
        "clocks_locked": False, "p99_valid": False, "p99_invalid_why": "a shared machine", "load_average": 0.4, **given,
    }  # fmt: skip
    _write(folder / "speed.json", document)
    if document["measured"]:
        tail = 0.15 * random.exponential(0.25, (2, pairs))
        int8 = np.exp(random.normal(0, noise, pairs)) + tail[0]
        plain = speedup * (np.exp(random.normal(0, noise, pairs)) + tail[1])
        np.savez(folder / "times.npz", float_ms=2.4 * plain, int8_ms=2.4 * int8)
    return folder


def _folder(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document))


@dataclass(frozen=True)
class Recorded:
    """Timings as bench leaves them."""

    first_ms: np.ndarray
    second_ms: np.ndarray
    conditions: dict[str, Any] = field(default_factory=lambda: {"seconds": 3.0, "batch": 1, "hardware": "AMD EPYC"})


def recorded_pairs(ratio: float, pairs: int = 400, seed: int = 0) -> Recorded:
    """Pairs of a drifting machine; the second model takes `ratio` times as long."""
    random = np.random.default_rng(seed)
    mood = 3 * np.exp(np.cumsum(random.normal(0, 0.01, pairs)))
    noise = np.exp(random.normal(0, 0.03, (2, pairs)))
    return Recorded(mood * noise[0], ratio * mood * noise[1])
