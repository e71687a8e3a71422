"""YOLO datasets: a data.yaml that names folders or lists of images; a text file of boxes beside each image's folder.

Label files as Ultralytics documents them: the image's path with its last `images` folder called `labels`, a line per
box, `class x_center y_center width height` in shares of the image, or a polygon of such points, whose box is taken. An
empty or absent file means background.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from edgecnn.data.annotations import Annotated, Faults, LabelledImage, Part, Row
from edgecnn.data.walk import images_below, say_passed
from edgecnn.digests import exists, is_folder, is_regular
from edgecnn.errors import EdgeError
from edgecnn.recipe import DataSpec

HINT = "correct these lines, or set `data.skip_corrupt: true` to leave out images with broken labels"
LABEL_ENDINGS = (".cache", ".json", ".txt", ".xml")  # what labelling tools leave beside images
SCORED_KEYS = ("val", "test")


def read_yolo(spec: DataSpec) -> Annotated:
    """Read names and labels. `data.train`, `data.select` and `data.scored` are keys of data.yaml.

    Undeclared: its `train`, and for scoring its `val`, if it is there and another.

    Raises:
        EdgeError: no or a broken data.yaml, missing folders, lists or images, broken label lines (all, by line).
    """
    path = yaml_file(spec)
    content = _load(path)
    classes = _classes(path, content)
    faults = Faults()
    sets: dict[Part, list[LabelledImage]] = {}
    passed: Counter[str] = Counter()
    for part, key in _keys(spec, path, content).items():
        files = [file for place in _places(path, content, key) for file in _images(place, path, key, passed)]
        labelled = (_labelled(file, spec.skip_corrupt, faults) for file in sorted(set(files)))
        sets[part] = [image for image in labelled if image is not None]
    say_passed(passed)
    faults.refuse(HINT)
    return Annotated.of(classes, sets)


def yaml_file(spec: DataSpec) -> Path:
    """data.yaml: `data.root` itself or the one in it.

    Raises:
        EdgeError: there is none, or several.
    """
    assert spec.root is not None  # the spec refuses it
    if is_regular(spec.root):
        return spec.root
    named = spec.root / "data.yaml"
    if is_regular(named):
        return named
    found = sorted(spec.root.glob("*.y*ml")) if is_folder(spec.root) else []
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"`{one.name}`" for one in found) or "no YAML file"
    raise EdgeError(f"`{spec.root}` holds {there}", "set `data.root` to the dataset's YAML file (data.yaml)")


def watched(spec: DataSpec) -> list[tuple[str, Path]]:
    """(name, path) of every folder and list that the dataset reads, for its digest; none if data.yaml is bad."""
    try:
        path = yaml_file(spec)
        content = _load(path)
        found = [("data.yaml", path)]
        for key in _keys(spec, path, content).values():
            for place in _places(path, content, key):
                found.append((key, place))
                if is_folder(place) and is_folder(labels := _labels_of(place)):
                    found.append((f"{key} labels", labels))
                elif is_regular(place):
                    for file in _images(place, path, key, Counter()):
                        found += [(file.name, file), (f"labels of {file.name}", label_file(file))]
    except (EdgeError, OSError):
        return []  # prepare reads it again and tells
    return found


def absent(spec: DataSpec) -> list[tuple[str, str, str]]:
    """(what, where, fix) of every folder or list that data.yaml names and that isn't there."""
    try:
        path = yaml_file(spec)
        content = _load(path)
        keys = _keys(spec, path, content)
    except EdgeError as error:
        return [(error.message, str(spec.root), error.hint)]
    fix = f"correct `{path}` (its `path:` is relative to the file itself), or set `data.root` to a copy that is here"
    places = {place: key for key in keys.values() for place in _places(path, content, key)}
    return [(f"`{key}` of `{path.name}`", str(place), fix) for place, key in places.items() if not exists(place)]


def label_file(image: Path) -> Path:
    """Where an image's boxes are: its last `images` folder called `labels`, the name with `.txt`."""
    return _labels_of(image.parent) / f"{image.stem}.txt"


def _labels_of(folder: Path) -> Path:
    parts = list(folder.parts)
    for number in range(len(parts) - 1, -1, -1):
        if parts[number] == "images":
            parts[number] = "labels"
            break
    return Path(*parts)


def _load(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, yaml.YAMLError) as error:
        raise EdgeError(f"cannot read `{path}`: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise EdgeError(f"`{path}` is not a YOLO data file", "it needs `train:`, `val:` and `names:`")
    return content


def _classes(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise EdgeError(f"`{path}`: `names` must number the classes 0 to {len(names) - 1} without gaps")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise EdgeError(f"`{path}` has no `names`", "list the class names, in the order of their numbers")
    if content.get("nc", len(names)) != len(names):
        raise EdgeError(f"`{path}`: `nc` is {content['nc']}, but `names` lists {len(names)} classes")
    return tuple(str(name) for name in names)


def _keys(spec: DataSpec, path: Path, content: dict[str, Any]) -> dict[Part, str]:
    """Which key of data.yaml each set is."""
    declared: dict[Part, str | None] = {"train": spec.train, "select": spec.select, "scored": spec.scored}
    if spec.train is None:
        keys: dict[Part, str] = {"train": "train"}
        other = next((key for key in SCORED_KEYS if content.get(key)), None)
        if other and _places(path, content, other) != _places(path, content, "train"):
            keys["scored"] = other
    else:
        keys = {part: key for part, key in declared.items() if key}
    for part, key in keys.items():
        if not content.get(key):
            sets = ", ".join(f"`{name}`" for name in ("train", "val", "test") if content.get(name)) or "none"
            raise EdgeError(f"`data.{part}: {key}` is no set of `{path}`; it has {sets}", "name one of them")
    return keys


def _places(path: Path, content: dict[str, Any], key: str) -> list[Path]:
    value = content.get(key)
    base = Path(str(content.get("path") or "."))
    base = base if base.is_absolute() else path.parent / base
    return [base / str(one) for one in (value if isinstance(value, list) else [value])]


def _images(place: Path, path: Path, key: str, passed: Counter[str]) -> list[Path]:
    if is_folder(place):
        walked = images_below(place, beside=LABEL_ENDINGS)
        if not walked.files:
            raise EdgeError(f"`{place}`, which `{key}` of `{path}` names, has no images")
        passed += walked.passed
        return [place / file for file in walked.files]
    if not is_regular(place):
        raise EdgeError(
            f"`{key}` of `{path}` names `{place}`, which does not exist",
            "correct it; paths are relative to `path`, and `path` to the YAML file",
        )
    lines = place.read_text(encoding="utf-8", errors="replace").splitlines()
    found, faults = [], Faults()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        image = Path(line.strip())
        image = image if image.is_absolute() else place.parent / image
        if is_regular(image):
            found.append(image)
        else:
            faults.add(f"{place.name}:{number}", f"no image `{image}`")
    faults.refuse("correct the list; its paths are relative to its own folder")
    return found


def _labelled(image: Path, skip: bool, faults: Faults) -> LabelledImage | None:
    """One image with its boxes; None where its labels are broken and may be left out."""
    path = label_file(image)
    own = Faults()
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    except (OSError, UnicodeDecodeError) as error:
        own.add(path.name, f"cannot be read: {error}")
        lines = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            row, why = _row(line.split(), f"{path.parent.name}/{path.name}:{number}")
            if row is None:
                own.add(f"{path.parent.name}/{path.name}:{number}", why)
            else:
                rows.append(row)
    if own.found and skip:
        return None
    faults.found += own.found
    once = {(row.kind, row.box): row for row in rows}  # tools write a box twice; it is one object
    return LabelledImage(image, tuple(once.values()), where=f"{path.parent.name}/{path.name}")


def _row(cells: list[str], where: str) -> tuple[Row | None, str]:
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        return None, f"not numbers: {' '.join(cells)[:60]}"
    if len(numbers) < 5 or (len(numbers) > 5 and len(numbers) % 2 == 0):
        return None, f"{len(numbers)} values; a box has 5 (class x y width height), a polygon an odd number from 7"
    if numbers[0] != int(numbers[0]) or numbers[0] < 0:
        return None, f"class {cells[0]} is not a number from 0"
    kind = int(numbers[0])
    if len(numbers) > 5:
        across, down = numbers[1::2], numbers[2::2]
        return Row(kind, (min(across), min(down), max(across), max(down)), where, relative=True), ""
    x, y, width, height = numbers[1:]
    if not all(0 <= value <= 1 for value in (x, y, width, height)):
        if width <= 0 or height <= 0:
            return None, f"the box has width {width:.6g} and height {height:.6g}"
        return None, f"outside [0, 1]: {' '.join(cells[1:])}"
    if width <= 0 or height <= 0:
        return None, f"the box has width {width:.6g} and height {height:.6g}"
    # Half a box may stick out: labels are of whole objects, cut at the image's edge.
    left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return Row(kind, (max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)), where, relative=True), ""
