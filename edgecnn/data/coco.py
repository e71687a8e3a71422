"""COCO datasets: one JSON of images, categories and boxes for each set (cocodataset.org, "Data format")."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgecnn.data.annotations import NO_CLASS, Annotated, Faults, LabelledImage, Part, Row
from edgecnn.errors import EdgeError
from edgecnn.recipe import DataSpec

HINT = "correct these annotations, or set `data.skip_corrupt: true` to leave out their images"


def read_coco(spec: DataSpec) -> Annotated:
    """Read the JSON files. `data.train`, `data.select` and `data.scored` are paths of JSON files under `data.root`.

    Images are looked for in the folder of the JSON's name (`instances_val2017.json` → `val2017/`), in `images/` and in
    `data.root` itself, with and without `images/` before it. Crowd boxes are kept as such.

    Raises:
        EdgeError: nothing declared, no such file, no COCO JSON, sets of other classes, missing images or broken boxes
            (all of them, by the annotation's place and id).
    """
    assert spec.root is not None  # the spec refuses it
    declared: dict[Part, str | None] = {"train": spec.train, "select": spec.select, "scored": spec.scored}
    sets: dict[Part, list[LabelledImage]] = {}
    classes: tuple[str, ...] = ()
    faults = Faults()
    if not spec.train:
        declared = {"train": _only(spec.root)}
    for part, name in declared.items():
        if name is None:
            continue
        path = spec.root / name if spec.root.is_dir() else spec.root
        content = _load(path)
        names = {int(kind["id"]): str(kind["name"]) for kind in content["categories"]}
        ordered = tuple(names[key] for key in sorted(names))
        if classes and ordered != classes:
            raise EdgeError(
                f"`{path}` has other categories than `data.train`",
                "all sets of a dataset need the same `categories`",
            )
        classes = ordered
        numbers = {key: number for number, key in enumerate(sorted(names))}
        sets[part] = _images(path, content, numbers, spec, faults)
    faults.refuse(HINT)
    return Annotated.of(classes, sets)


def _only(root: Path) -> str:
    if root.is_file():
        return root.name
    found = sorted(root.glob("*.json")) + sorted(root.glob("annotations/*.json"))
    if len(found) != 1:
        there = ", ".join(f"`{path.relative_to(root)}`" for path in found[:10]) or "no JSON file"
        raise EdgeError(
            f"`data.train` is not declared and `{root}` holds {there}",
            "declare `data.train` and `data.scored` as paths of JSON files under `data.root`",
        )
    return str(found[0].relative_to(root))


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgeError(
            f"cannot read `{path}`: {error.strerror}", "`data.train` and `data.scored` are relative to `data.root`"
        ) from error
    except ValueError as error:
        raise EdgeError(f"`{path}` is not JSON: {error}") from error
    missing = [
        key for key in ("images", "categories", "annotations") if not isinstance(content, dict) or key not in content
    ]
    if missing:
        raise EdgeError(f"`{path}` is not a COCO file: it has no `{missing[0]}`")
    return dict(content)


def image_folder(path: Path, root: Path, files: list[str]) -> Path:
    """Where a set's images are: the first usual place that holds any of them.

    Raises:
        EdgeError: none does.
    """
    base = root if root.is_dir() else root.parent
    stem = path.stem.removeprefix("instances_").removeprefix("person_keypoints_")
    places = list(dict.fromkeys([base / "images" / stem, base / stem, base / "images", base, path.parent]))
    for place in places:
        if any((place / file).is_file() for file in files):
            return place
    looked = ", ".join(f"`{place}`" for place in places)
    raise EdgeError(f"the images of `{path}` are not there: no `{files[0]}` in {looked}", "put them into one of these")


def _images(
    path: Path, content: dict[str, Any], numbers: dict[int, int], spec: DataSpec, faults: Faults
) -> list[LabelledImage]:
    assert spec.root is not None
    entries = content["images"]
    if not entries:
        return []
    folder = image_folder(path, spec.root, [str(entry["file_name"]) for entry in entries])
    rows: dict[int, list[Row]] = {int(entry["id"]): [] for entry in entries}
    bad: set[int] = set()
    own = Faults()
    for number, annotation in enumerate(content["annotations"]):
        where = f"{path.name}, annotations[{number}] (id {annotation.get('id', '?')})"
        image, why = annotation.get("image_id"), ""
        box = annotation.get("bbox")
        if image not in rows:
            own.add(where, f"image_id {image} is no image of the file")
            continue
        if annotation.get("category_id") not in numbers:
            why = f"category {annotation.get('category_id')} is unknown"
        elif not isinstance(box, list) or len(box) != 4:
            why = f"bbox {box} is not [x, y, width, height]"
        elif box[2] <= 0 or box[3] <= 0:
            why = f"the box has width {box[2]:.6g} and height {box[3]:.6g}"
        if why:
            bad.add(image)
            own.add(where, why)
            continue
        x, y, width, height = (float(side) for side in box)
        kind = numbers.get(annotation["category_id"], NO_CLASS)
        rows[image].append(Row(kind, (x, y, x + width, y + height), where, crowd=bool(annotation.get("iscrowd", 0))))
    result = []
    for entry in entries:
        file = folder / str(entry["file_name"])
        where = f"{path.name}, image {entry['id']}"
        if not file.is_file():
            own.add(where, f"`{file}` does not exist")
            bad.add(int(entry["id"]))
            continue
        size = (int(entry["height"]), int(entry["width"])) if "height" in entry and "width" in entry else None
        if int(entry["id"]) not in bad or not spec.skip_corrupt:
            result.append(LabelledImage(file, tuple(rows[int(entry["id"])]), size, where))
    if not spec.skip_corrupt:
        faults.found += own.found
    return result
