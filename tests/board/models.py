"""Jobs that take a while, and the files they need."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from golden_graphs import colour_images, colours

from edgecnn.recipe.io_contract import read_contract

SLOW_ENGINES = {"backends.tensorrt.trt": Path(__file__).with_name("slow_trt.py")}
Json = dict[str, Any]
Job = tuple[Json, dict[str, Path]]


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compile_job(folder: Path, backend: str = "tensorrt") -> Job:
    """Build an engine, or load the graph; how slowly is the board's environment's choice."""
    model = colours(folder / "model.onnx")
    digest = digest_of(model)
    return {"do": "compile", "backend": backend, "graph": digest, "name": model.name}, {digest: model}


def score_job(folder: Path, images: int = 50) -> Job:
    """Answer some images with onnxruntime."""
    model, shard = colours(folder / "model.onnx"), folder / "images.npy"
    np.save(shard, colour_images(images)[0])
    contract = read_contract(model)
    assert contract is not None
    job = {
        "do": "score", "backend": "onnxruntime", "model": digest_of(model), "graph": digest_of(model),
        "io": contract.model_dump(mode="json"), "shards": [digest_of(shard)], "first": 0, "batch": 8,
        "keep": {},
    }  # fmt: skip
    return job, {digest_of(model): model, digest_of(shard): shard}


def time_job(folder: Path, seconds: float, **more: Any) -> Job:
    """Time two models for so long."""
    first, second = colours(folder / "first.onnx"), colours(folder / "second.onnx", quantized=True)
    spec = {
        "batch": 1,
        "threads": 1,
        "warmup_ms": 1,
        "min_pairs": 64,
        "min_seconds": seconds,
        "max_seconds": seconds + 0.5,
    }
    job = {
        "do": "time", "backend": "onnxruntime", "first": digest_of(first), "second": digest_of(second),
        "spec": spec, "until": "speed", **more,
    }  # fmt: skip
    return job, {digest_of(first): first, digest_of(second): second}


def answers(folder: Path) -> dict[str, Any]:
    """All arrays of a score's output files, by file and name."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as content:
            found |= {f"{path.name}/{name}": content[name].tolist() for name in content.files}
    assert found, json.dumps([path.name for path in folder.iterdir()])
    return found
