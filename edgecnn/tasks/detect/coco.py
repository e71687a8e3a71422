"""COCO datasets: one JSON of images, categories and boxes for each set (cocodataset.org, "Data format")."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, StrictInt, StrictStr, ValidationError

from edgecnn.data.tables import leads_out, listed, require_inside
from edgecnn.data.texts import Foreign, Number, Whole, first_fault, read_text, short, whole
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec
from edgecnn.recipe.sections import Part
from edgecnn.store.digests import is_folder, is_regular
from edgecnn.tasks.detect.annotations import Annotated as AnnotatedSets
from edgecnn.tasks.detect.annotations import Faults, LabelledImage, Row

HINT = "correct these annotations, or set `data.skip_corrupt: true` to leave out their images"
LISTS = ("images", "categories", "annotations")
Text = Annotated[StrictStr, Field(min_length=1)]
Id = Annotated[StrictInt | StrictStr, BeforeValidator(whole)]
T = TypeVar("T", bound=Foreign)


class _Category(Foreign):
    id: Whole
    name: Text


class _Image(Foreign):
    id: Id
    file_name: Text
    height: Whole | None = None
    width: Whole | None = None


class _Annotation(Foreign):
    image_id: Id
    category_id: Annotated[StrictInt, BeforeValidator(whole)]
    bbox: Annotated[list[Number], Field(min_length=4, max_length=4)]
    iscrowd: Whole | bool = 0


def read_coco(spec: DataSpec) -> AnnotatedSets:
    """Read the JSON files. `data.train`, `data.select` and `data.scored` are paths of JSON files under `data.root`.

    Images are looked for in the folder of the JSON's name (`instances_val2017.json` → `val2017/`), in `images/` and in
    `data.root` itself, with and without `images/` before it. Crowd boxes are kept as such.

    Raises:
        EdgeError: nothing declared, no such file, no COCO JSON, sets of other classes, missing images or broken boxes
            (all of them, by the annotation's place and id).
    """
    sets: dict[Part, list[LabelledImage]] = {}
    classes: tuple[str, ...] = ()
    faults = Faults()
    for part, path in _declared(spec):
        content = _load(path)
        categories = _records(path, "categories", content, _Category)
        _refuse_twice(path, "category id", [one.id for one in categories])
        names = {one.id: one.name for one in categories}
        ordered = tuple(names[key] for key in sorted(names))
        if not ordered:
            raise EdgeError(f"`{path}` has no categories", "its `categories` must list the classes: [{id, name}, …]")
        if classes and ordered != classes:
            raise EdgeError(
                f"`{path}` has other categories than `data.train`",
                "all sets of a dataset need the same `categories`",
            )
        classes = ordered
        numbers = {key: number for number, key in enumerate(sorted(names))}
        sets[part] = _images(path, content, numbers, spec, faults)
    faults.refuse(HINT)
    return AnnotatedSets.of(classes, sets)


def _declared(spec: DataSpec) -> list[tuple[Part, Path]]:
    """The JSON file of each set."""
    root = spec.place
    if not spec.train:
        return [("train", _only(root))]
    if not is_folder(root):
        raise EdgeError(
            f"`data.root` is the file `{root}` and `data.train` names another",
            "set `data.root` to the folder that `train`, `select` and `scored` are in",
        )
    for part, name in spec.declared.items():
        require_inside(part, name)
    return [(part, root / name) for part, name in spec.declared.items()]


def _only(root: Path) -> Path:
    if is_regular(root):
        return root
    found = [path for place in (root, root / "annotations") for path in sorted(place.glob("[!.]*.json"))]
    if len(found) != 1:
        there = ", ".join(f"`{path.relative_to(root)}`" for path in found[:10]) or "no JSON file"
        raise EdgeError(
            f"`data.train` is not declared and `{root}` holds {there}",
            "declare `data.train` and `data.scored` as paths of JSON files under `data.root`",
        )
    return found[0]


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError as error:
        raise EdgeError(
            f"cannot read `{path}`: {error.strerror}", "`data.train` and `data.scored` are relative to `data.root`"
        ) from error
    except (ValueError, RecursionError) as error:
        raise EdgeError(f"`{path}` is not JSON: {error}", "export it again with the tool that made it") from error
    for key in LISTS:
        if not isinstance(content, dict) or key not in content:
            raise EdgeError(f"`{path}` is not a COCO file: it has no `{key}`", f"it needs {', '.join(LISTS)}")
        if not isinstance(content[key], list):
            raise EdgeError(
                f"`{path}`: `{key}` is {short(content[key])}, not a list", "see cocodataset.org, Data format"
            )
    return dict(content)


def _records(path: Path, key: str, content: dict[str, Any], kind: type[T]) -> list[T]:
    """The records of a list whose entries must all be right, for nothing could be told of the others without them.

    Raises:
        EdgeError: some are not; all of them, by their place.
    """
    found, faults = [], Faults()
    for number, value in enumerate(content[key]):
        try:
            found.append(kind.model_validate(value))
        except ValidationError as error:
            faults.add(f"{path.name}, {key}[{number}]", first_fault(error))
    faults.refuse(f"correct `{path}`")
    return found


def _refuse_twice(path: Path, what: str, values: Sequence[int | str]) -> None:
    places: dict[int | str, list[int]] = {}
    for number, value in enumerate(values):
        places.setdefault(value, []).append(number)
    twice = [f"{short(value)} (entries {', '.join(map(str, at))})" for value, at in places.items() if len(at) > 1]
    if twice:
        raise EdgeError(
            f"`{path}` has the same {what} twice: {listed(twice)}",
            "renumber the entries when files are merged; each image once, with all its annotations",
        )


def image_folder(path: Path, root: Path, files: list[str]) -> Path:
    """Where a set's images are: the first usual place that holds any of them.

    Raises:
        EdgeError: none does.
    """
    base = root if is_folder(root) else root.parent
    stem = path.stem.removeprefix("instances_").removeprefix("person_keypoints_")
    places = list(dict.fromkeys([base / "images" / stem, base / stem, base / "images", base, path.parent]))
    for place in places:
        if any(is_regular(place / file) for file in files):
            return place
    looked = ", ".join(f"`{place}`" for place in places)
    raise EdgeError(
        f"the images of `{path}` do not exist: no `{short(files[0])[1:-1]}` in {looked}", "put them into one of these"
    )


def outside(spec: DataSpec) -> tuple[Path, ...]:
    """Image files that a digest of `data.root` does not hold: all where it is the JSON, else those beyond its folder.

    None if a file is bad: reading it again tells.
    """
    try:
        return tuple(
            image
            for _, path in _declared(spec)
            for image in _outside(path, spec.place, path.stat().st_mtime_ns, path.stat().st_size)
        )
    except (EdgeError, OSError):
        return ()


@lru_cache(maxsize=8)
def _outside(path: Path, root: Path, _mtime: int, _size: int) -> tuple[Path, ...]:
    text = read_text(path)
    if is_folder(root) and not any(sign in text for sign in ("..", '"/', "\\")):
        return ()  # no name in it can lead out; large files are not parsed twice
    content = _load(path)
    names = [one.file_name for one in _records(path, "images", content, _Image)]
    if not names:
        return ()
    folder, inside = image_folder(path, root, names), is_folder(root)
    return tuple(folder / name for name in names if not inside or leads_out(name))


def _images(
    path: Path, content: dict[str, Any], numbers: dict[int, int], spec: DataSpec, faults: Faults
) -> list[LabelledImage]:
    entries = _records(path, "images", content, _Image)
    if not entries:
        return []
    _refuse_twice(path, "image id", [one.id for one in entries])
    _refuse_twice(path, "file_name", [os.path.normpath(one.file_name) for one in entries])
    folder = image_folder(path, spec.place, [one.file_name for one in entries])
    own = Faults()
    rows, bad = _rows(path, content["annotations"], {one.id for one in entries}, numbers, own)
    result = []
    for entry in entries:
        file = folder / entry.file_name
        where = f"{path.name}, image {entry.id}"
        if not is_regular(file):
            own.add(where, f"`{file}` does not exist")
            bad.add(entry.id)
        elif entry.id not in bad or not spec.skip_corrupt:
            size = (entry.height, entry.width) if entry.height and entry.width else None
            result.append(LabelledImage(file, tuple(rows.get(entry.id, ())), size, where))
    if not spec.skip_corrupt:
        faults.found += own.found
    return result


def _rows(
    path: Path, annotations: list[Any], images: set[int | str], numbers: dict[int, int], faults: Faults
) -> tuple[dict[int | str, list[Row]], set[int | str]]:
    """(rows by image, images with a broken annotation)."""
    rows: dict[int | str, list[Row]] = {}
    bad: set[int | str] = set()
    shares = parts = 0  # boxes within [0, 1], and those of them with a fraction
    for number, value in enumerate(annotations):
        where = f"{path.name}, annotations[{number}]"
        if isinstance(value, dict) and "id" in value:
            where += f" (id {short(value['id'])})"
        try:
            one = _Annotation.model_validate(value)
        except ValidationError as error:
            image = value.get("image_id") if isinstance(value, dict) else None
            if isinstance(image, int | str):
                bad.add(image)
            faults.add(where, first_fault(error))
            continue
        x, y, width, height = one.bbox
        shares += max(one.bbox) <= 1.0
        parts += max(one.bbox) <= 1.0 and any(value % 1 for value in one.bbox)
        why = ""
        if one.image_id not in images:
            why = f"image_id {short(one.image_id)} is not an image of the file"
        elif one.category_id not in numbers:
            why = f"category {short(one.category_id)} is unknown"
        elif width <= 0 or height <= 0:
            why = f"the box has width {width:.6g} and height {height:.6g}"
        if why:
            bad.add(one.image_id)
            faults.add(where, why)
            continue
        box = (x, y, x + width, y + height)
        rows.setdefault(one.image_id, []).append(Row(numbers[one.category_id], box, where, crowd=bool(one.iscrowd)))
    if parts and shares == len(annotations):
        raise EdgeError(
            f"`{path}`: every bbox lies within [0, 1], so these are fractions of the image, not pixels",
            "COCO's bbox is [x, y, width, height] in pixels: multiply by the image's width and height",
        )
    return rows, bad
