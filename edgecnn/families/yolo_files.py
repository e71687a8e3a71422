"""Ultralytics' published weights (AGPL-3.0): fetched once, by name, and known by their SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from edgecnn.families import ULTRALYTICS_RELEASE, fetched_file, refuse_weights
from edgecnn.families.weights import not_fetched
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import ModelSpec

# Of the files of the release; several projects that pin them agree on each.
SHA256 = {
    "yolov8n.pt": "f59b3d833e2ff32e194b5bb8e08d211dc7c5bdf144b90d2c8412c47ccfc83b36",
    "yolov8s.pt": "1f47a78bf100391c2a140b7ac73a1caae18c32779be7d310658112f7ac9aa78a",
    "yolov8m.pt": "5d4a90cdc7a21786cc59cd19778e9eafff836df9e2da32524737c7ee6efe4fe5",
    "yolov8l.pt": "64c9115303f6a25575f82200d1b22ec409fa6bd7d08d0313884fc20d919478cd",
    "yolov8x.pt": "3df4ada6b4dad6d657868f2fdf7faecfb34dcfccf3a25c4b82079064718524c8",
    "yolo11n.pt": "0ebbc80d4a7680d14987a577cd21342b65ecfd94632bd9a8da63ae6417644ee1",
    "yolo11s.pt": "85a76fe86dd8afe384648546b56a7a78580c7cb7b404fc595f97969322d502d5",
    "yolo11m.pt": "d5ffc1a674953a08e11a8d21e022781b1b23a19b730afc309290bd9fb5305b95",
    "yolo11l.pt": "9ebd0e09d59811db4b1d61e2bc6730649608b1ac47f8dd01e2da6bca7c20023f",
    "yolo11x.pt": "7bc158aa95c0ebfdd87f70f01653c1131b93e92522dbe15c228bcd742e773a24",
}


def library_weights(name: str) -> tuple[str, ...]:
    """The published file of a model, trained on COCO."""
    return (f"{name}.pt",)


def published_file(model: ModelSpec) -> Path:
    """The file that `model.weights` names, fetched into torch's cache where it isn't there yet.

    Raises:
        EdgeError: no such file is published, it can't be fetched, or what is there is another file.
    """
    refuse_weights(model, "Ultralytics", library_weights(model.name))
    name = str(model.weights)
    path, url, wanted = fetched_file(name), f"{ULTRALYTICS_RELEASE}/{name}", SHA256.get(name)
    if not path.is_file():
        progress.current().note(f"fetching {url}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=wanted, progress=False)
        except Exception as error:  # urllib's and socket errors, and another hash
            raise not_fetched(f"Ultralytics' weights `{name}`", model, error, url) from error
    found = _sha256(path)
    if wanted is None:
        progress.current().note(f"`{name}`: SHA-256 {found}, which is not checked: edgecnn knows none for this file")
    elif found != wanted:
        raise EdgeError(
            f"`{path}` is not the `{name}` that Ultralytics published: its SHA-256 is {found}, not {wanted}",
            f"remove it, and it is fetched again; name a file of your own by its path: "
            f"`{model.section}.weights: ./{name}`",
        )
    return path


def _sha256(path: Path) -> str:
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()
