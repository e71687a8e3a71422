"""What a path holds, by a look at its names: the `data` section that reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgecnn.data.archives import Archive, Rows
from edgecnn.data.openers import ArrayImages, image_folder, read_image
from edgecnn.data.pixels import Unreadable, opened
from edgecnn.data.sources import SET_NAMES, class_folders, find_source
from edgecnn.data.texts import read_text
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec
from edgecnn.store.digests import exists, is_folder, is_regular
from edgecnn.tasks.detect.prepare import annotated

READ = (
    "one folder per class, alone or below train/ and val/; a label table (.csv, .tsv); an .npz; a YOLO data.yaml, COCO "
    "or Pascal VOC folder; or digits"
)
TRAIN, VAL, TEST = ("train", "training"), ("val", "valid", "validation", "select"), ("test", "testing", "scored")
COCO_HEAD = 1 << 20  # bytes of a JSON in which one of COCO's keys stands


@dataclass(frozen=True)
class Guess:
    """The data section that reads a path, and how large its first image is (shorter and longer side, pixels)."""

    spec: DataSpec
    shorter: int
    longer: int


def guess(path: Path) -> Guess:
    """Look at a path. Reads names, tables and labels, and the head of one image; refuses what a build would.

    Raises:
        EdgeError: nothing that is read here, or data with something wrong.
    """
    if str(path) == "digits":
        return Guess(DataSpec(format="digits", color="gray"), 8, 8)
    if not exists(path):
        raise EdgeError(f"no data at `{path}`", f"give {READ}")
    found = _archive(path) if path.suffix == ".npz" else _spec(path)
    spec = DataSpec.model_validate(found)
    if spec.format == "arrays":
        return _of_arrays(spec)
    image = _first_image(spec)
    try:
        with opened(image) as head:
            gray, sides = head.mode in ("L", "LA", "1") or head.mode.startswith("I;"), sorted(head.size)
    except Unreadable as error:
        raise EdgeError(f"corrupt image `{image}`: {error}", "repair or remove it") from error
    return Guess(spec.model_copy(update={"color": "gray" if gray else "rgb"}), sides[0], sides[1])


def _spec(path: Path) -> dict[str, object]:
    """Keys of the data section."""
    if is_regular(path):
        forms = {".csv": "label-table", ".tsv": "label-table", ".yaml": "yolo", ".yml": "yolo", ".json": "coco"}
        form = forms.get(path.suffix.lower())
        if form is None:
            raise EdgeError(f"`{path}` is not data that edgecnn reads", f"give {READ}")
        return {"format": form, "root": path}
    if not is_folder(path):
        raise EdgeError(f"`{path}` is a pipe, socket or device", f"give {READ}")
    names = [entry.name for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    files = [name for name in names if is_regular(path / name)]
    yaml = [name for name in files if name.lower().endswith((".yaml", ".yml"))]
    if "data.yaml" in yaml or len(yaml) == 1:
        return {"format": "yolo", "root": path / ("data.yaml" if "data.yaml" in yaml else yaml[0])}
    if {"Annotations", "JPEGImages"} <= set(names):
        return {"format": "voc", "root": path}
    if jsons := _coco_files(path):
        return {"format": "coco", "root": path, **_sets(jsons)}
    if tables := [name for name in files if name.lower().endswith((".csv", ".tsv"))]:
        one = {"format": "label-table", "root": path / tables[0]}
        return one if len(tables) == 1 else {"format": "label-table", "root": path, **_sets(tables)}
    if archives := [name for name in files if name.endswith(".npz")]:
        return {"format": "arrays", "root": path, **_sets(archives)}
    folders = class_folders(path)
    if {"images", "labels"} <= set(folders):
        raise EdgeError(
            f"`{path}` has `images` and `labels` but no data.yaml that names the classes",
            "write one there: `train: images/train`, `val: images/val`, `names: [first, second]`",
        )
    if not folders:
        raise EdgeError(f"`{path}` is not data that edgecnn reads", f"give {READ}")
    sets = _sets(folders) if {name.lower() for name in folders} <= SET_NAMES else {}
    return {"format": "image-folder", "root": path, **sets}


def _archive(path: Path) -> dict[str, object]:
    """One .npz of images, or of sets told apart by prefixes: `train_images`, `val_images`."""
    keys = Archive(path).keys()
    parts = [key.removesuffix("_images") for key in keys if key.endswith("_images")]
    plain = {"images", "blob"} & set(keys) or not parts
    return {"format": "arrays", "root": path, **({} if plain else _sets(parts))}


def _of_arrays(spec: DataSpec) -> Guess:
    source = find_source(spec)
    assert isinstance(source.opener, ArrayImages)
    first = source.opener.parts()[0]
    channels = first.pixels.shape[3] if isinstance(first, Rows) else 3
    sides = sorted(read_image(source.opener, 0).shape[:2])
    return Guess(spec.model_copy(update={"color": "gray" if channels == 1 else "rgb"}), sides[0], sides[1])


def _sets(names: Iterable[str]) -> dict[str, str]:
    """Which of the names is train, select and scored, by the words in them; a single one is all there is to train on.

    Raises:
        EdgeError: several, and none or more than one is called train.
    """
    found: dict[str, str] = {}
    names = list(names)
    for kind, words in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        mine = [name for name in names if any(word in _words(name) for word in words)]
        if len(mine) == 1:
            found[kind] = mine[0]
    if "train" not in found:
        if len(names) == 1:
            return {"train": names[0]}
        told = ", ".join(f"`{name}`" for name in names[:10])
        raise EdgeError(
            f"it is not clear which of {told} are for training",
            "give the one file or folder, or name them train and val",
        )
    held = [found[kind] for kind in ("val", "test") if kind in found]
    keys = {1: ("scored",), 2: ("select", "scored")}.get(len(held), ())
    return {"train": found["train"], **dict(zip(keys, held, strict=True))}


def _words(name: str) -> set[str]:
    """`annotations/instances_val2017.json` → {annotations, instances, val}."""
    letters = "".join(
        character.lower() if character.isalpha() else " " for character in name.rpartition(".")[0] or name
    )
    return set(letters.split())


def _coco_files(root: Path) -> list[str]:
    """COCO files where its tools put them: beside the images, in annotations/, or in each set's folder."""
    found = [path for pattern in ("*.json", "annotations/*.json", "*/_annotations.coco.json")
             for path in sorted(root.glob(pattern)) if not path.name.startswith(".")]  # fmt: skip
    instances = [path for path in found if path.name.startswith("instances_")] or found
    return [path.relative_to(root).as_posix() for path in instances if _is_coco(path)]


def _is_coco(path: Path) -> bool:
    """Without reading gigabytes: the keys stand in its head, or it is small enough to look at."""
    try:
        if path.stat().st_size <= COCO_HEAD:
            content = json.loads(read_text(path))
            return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()
        with path.open("rb") as file:
            head = file.read(COCO_HEAD)
        return any(key in head for key in (b'"images"', b'"annotations"'))
    except (OSError, ValueError, RecursionError, EdgeError):
        return False


def _first_image(spec: DataSpec) -> Path:
    """An image of the dataset, which is read as a build reads it."""
    if spec.task == "detect":
        return annotated(spec)[0].images[0].file
    return image_folder(spec) / next(name for name in find_source(spec).files if name)
