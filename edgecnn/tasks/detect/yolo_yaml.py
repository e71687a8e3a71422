"""A YOLO dataset's data.yaml: class names, and the folders or lists of images that are its sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecnn.data.texts import MIB, read_text, short
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec
from edgecnn.recipe.sections import Part
from edgecnn.store.digests import exists, is_folder, is_regular

SCORED_KEYS = ("val", "test")
NOTHING = ("", "~", "null", "Null", "NULL")
MOST_BYTES = MIB  # 20,000 class names take half of it


@dataclass(frozen=True)
class DataYaml:
    """What a data.yaml says.

    Attributes:
        classes: names, in the order of their numbers.
        sets: places of each key that has some, `train`, `val`, …; absolute, or relative to the working directory.
        keypoints: values after a row's box (`kpt_shape`); 0 where rows are boxes or polygons.
    """

    path: Path
    classes: tuple[str, ...]
    sets: dict[str, tuple[Path, ...]]
    keypoints: int

    def keys(self, spec: DataSpec) -> dict[Part, str]:
        """Which key each set is. Undeclared: `train`, and for scoring `val` or `test` if it is there and another.

        Raises:
            EdgeError: a declared key that the file does not have.
        """
        keys = spec.declared
        if not keys:
            keys = {"train": "train"}
            other = next((key for key in SCORED_KEYS if key in self.sets), None)
            if other and self.sets[other] != self.sets.get("train"):
                keys["scored"] = other
        for part, key in keys.items():
            if key not in self.sets:
                sets = ", ".join(f"`{name}`" for name in self.sets) or "none"
                raise EdgeError(
                    f"`data.{part}: {key}` is not a set of `{self.path}`; it has {sets}", "name one of them"
                )
        return keys


def yaml_file(spec: DataSpec) -> Path:
    """data.yaml: `data.root` itself or the one in it.

    Raises:
        EdgeError: there is none, or several.
    """
    root = spec.place
    for path in (root, root / "data.yaml"):
        if is_regular(path):
            return path
    found = [path for path in sorted(root.glob("[!.]*.y*ml")) if is_regular(path)] if is_folder(root) else []
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"`{path.name}`" for path in found) or "no YAML file"
    raise EdgeError(f"`{root}` holds {there}", "set `data.root` to the dataset's YAML file (data.yaml)")


def read_data_yaml(spec: DataSpec) -> DataYaml:
    """Read it.

    Raises:
        EdgeError: there is none, it is not YAML, or a value is of another kind.
    """
    path = yaml_file(spec)
    content = _load(path)
    folder = content.get("path")
    if folder is not None and not isinstance(folder, str):
        raise EdgeError(f"`{path}`: `path` is {short(folder)}, not a folder's name", "write `path: FOLDER`")
    base = path.parent / (folder or ".")
    sets = {
        key: tuple(base / place for place in _places(path, key, content[key]))
        for key in dict.fromkeys(("train", *SCORED_KEYS, *spec.declared.values()))
        if key in content
    }
    return DataYaml(path, _classes(path, content), sets, _keypoints(path, content))


def absent(spec: DataSpec) -> list[tuple[str, str, str]]:
    """(what, where, fix) of every folder or list that is read and isn't there."""
    try:
        content = read_data_yaml(spec)
        keys = content.keys(spec)
    except EdgeError as error:
        return [(error.message, str(spec.root), error.hint)]
    path = content.path
    fix = f"correct `{path}` (its `path:` is relative to the file itself), or set `data.root` to a copy that is here"
    places = {place: key for key in keys.values() for place in content.sets[key]}
    return [(f"`{key}` of `{path.name}`", str(place), fix) for place, key in places.items() if not exists(place)]


def _load(path: Path) -> dict[str, Any]:
    """The keys that have a value; every scalar is the text that stands there, so a class `no` stays `no`."""
    import yaml

    try:
        loader = yaml.BaseLoader(read_text(path, MOST_BYTES))
        node = loader.get_single_node()
        content, keys = None, []
        if isinstance(node, yaml.MappingNode):
            content, keys = loader.construct_document(node), [key.value for key, _ in node.value]
    except FileNotFoundError as error:
        raise EdgeError(f"cannot read `{path}`: {error.strerror}", "set `data.root` to the data file") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise EdgeError(f"cannot read `{path}`: {told[:200]}", "correct the YAML there") from error
    if content is None:
        raise EdgeError(f"`{path}` is not a YOLO data file", "it needs `train:`, `val:` and `names:`")
    if len(set(map(str, keys))) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise EdgeError(f"`{path}` has `{short(twice)[1:-1]}` twice", "keep one of them")
    return {key: value for key, value in content.items() if value not in NOTHING}


def _classes(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        numbers = {str(number): number for number in range(len(names))}
        if names.keys() != numbers.keys():
            raise EdgeError(
                f"`{path}`: `names` must number the classes 0 to {len(names) - 1} without gaps", "renumber them"
            )
        names = [names[number] for number in numbers]
    if not isinstance(names, list) or not names:
        raise EdgeError(f"`{path}` has no `names`", "list the class names, in the order of their numbers")
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise EdgeError(f"`{path}`: the name of class {number} is {short(name)}", "write a text")
    if content.get("nc", str(len(names))) != str(len(names)):
        raise EdgeError(
            f"`{path}`: `nc` is {short(content['nc'])[1:-1]}, but `names` lists {len(names)} classes",
            "correct one of them",
        )
    return tuple(names)


def _places(path: Path, key: str, value: object) -> list[str]:
    found = []
    for place in value if isinstance(value, list) else [value]:
        if not isinstance(place, str) or not place:
            raise EdgeError(f"`{path}`: `{key}` names {short(place)}", "write a folder or list of images, or several")
        found.append(place)
    return found


def _keypoints(path: Path, content: dict[str, Any]) -> int:
    """Values that follow the box in a pose dataset's rows: points times values of each."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    right = isinstance(shape, list) and len(shape) == 2 and all(isinstance(v, str) and v.isdecimal() for v in shape)
    if not right or len(shape[0]) > 4 or int(shape[0]) < 1 or shape[1] not in ("2", "3"):
        raise EdgeError(f"`{path}`: `kpt_shape` is {short(shape)}", "write [points, 2 or 3], such as [17, 3]")
    return int(shape[0]) * int(shape[1])
