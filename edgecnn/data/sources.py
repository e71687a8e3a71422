"""What a dataset holds, found without decoding an image: classes, labels, names and which set each image is in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecnn.data.archives import Archive
from edgecnn.data.index import Labels
from edgecnn.data.openers import ArrayImages, Digits, FileImages, Opener, declared_archives, image_folder
from edgecnn.data.pixels import EXTENSIONS
from edgecnn.data.tables import listed, read_table, require_inside
from edgecnn.data.walk import Places, Walked, images_below, require_utf8, say_passed
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec
from edgecnn.recipe.sections import Part
from edgecnn.store.digests import exists, is_folder, is_regular

# Folder names that are sets, not classes: a root of these is one level too high.
SET_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing", "select", "scored"}


@dataclass(frozen=True)
class Source:
    """A dataset before splitting. Images are numbered train (or pool) first, then select, then scored."""

    classes: tuple[str, ...]
    labels: Labels
    files: tuple[str | None, ...]
    parts: dict[Part, range]  # an undeclared set is absent; `train` alone is the pool
    opener: Opener


def find_source(spec: DataSpec) -> Source:
    """Look up a dataset. Reads names, tables and label arrays, no image.

    Raises:
        EdgeError: whatever is wrong with it: missing, empty, contradicting; by name.
    """
    if spec.root is not None and not exists(spec.root):
        raise EdgeError(f"data folder `{spec.root}` does not exist", "set `data.root`; it is relative to the recipe")
    match spec.format:
        case "image-folder":
            return _files(spec, _class_folders(spec))
        case "label-table":
            return _files(spec, _tables(spec))
        case "arrays" | "digits":
            return _arrays(spec)
        case "yolo" | "coco" | "voc":
            raise AssertionError(f"{spec.format} has no labels of whole images")


def class_folders(folder: Path) -> list[str]:
    """Names of the visible folders in a folder, sorted: the class order of torchvision's ImageFolder.

    Raises:
        EdgeError: a name that is not UTF-8.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir() if is_folder(entry) and not entry.name.startswith("."))
    except OSError as error:
        raise EdgeError(f"cannot read the folder `{folder}`: {error.strerror}", "check its permissions") from error
    require_utf8(names, f"the name of a class folder of `{folder}`")
    return names


def by_class(folder: Path) -> tuple[dict[str, list[str]], Counter[str]]:
    """(image files of each class folder relative to `folder`, what was passed over); a class may be without any."""
    walked: Walked = images_below(folder)
    found: dict[str, list[str]] = {name: [] for name in class_folders(folder)}
    passed = Counter(walked.passed)
    for file in walked.files:
        name, inside, _ = file.partition("/")
        if inside:
            found[name].append(file)
        else:
            passed["images outside the class folders"] += 1
    return found, passed


def _declared_paths(spec: DataSpec) -> list[tuple[Part, Path]]:
    """Declared sets as existing paths under root; root itself, as the pool, when none is declared."""
    root = spec.place
    paths: list[tuple[Part, Path]] = []
    for part, name in spec.declared.items():
        require_inside(part, name)
        if not exists(root / name):
            there = sorted(entry.name for entry in root.iterdir()) if is_folder(root) else []
            raise EdgeError(
                f"`data.{part}: {name}` is missing: there is no `{root / name}`",
                f"`{root}` holds {listed(there)}" if there else f"put it under `{root}`",
            )
        paths.append((part, root / name))
    return paths or [("train", root)]


Labelled = list[tuple[str, str]]  # (file relative to the image folder, class name)


def _files(spec: DataSpec, sets: dict[Part, Labelled]) -> Source:
    """Number the files of the sets; classes are those of train."""
    names = {name for _, name in sets["train"]}
    if all(name.isdecimal() for name in names):
        classes = tuple(sorted(names, key=lambda name: (int(name), name))) if spec.format == "label-table" else None
    else:
        classes = None
    classes = classes or tuple(sorted(names))
    numbers = {name: number for number, name in enumerate(classes)}
    files: list[str] = []
    labels: list[int] = []
    parts: dict[Part, range] = {}
    where: dict[str, Part] = {}
    folder, real = image_folder(spec), Places()
    for part, labelled in sets.items():
        strange = sorted({name for _, name in labelled} - numbers.keys())
        if strange:
            raise EdgeError(
                f"`{part}` has classes that `train` does not have: {listed(strange)}",
                f"add them to `data.train`, or remove them from `data.{part}`",
            )
        places = {file: real.of(folder / file) for file, _ in labelled}
        shared = [file for file, place in places.items() if place in where]
        if shared:
            raise EdgeError(
                f"`{where[places[shared[0]]]}` and `{part}` share images: {listed(shared)}", "the sets must be disjoint"
            )
        where.update((place, part) for place in places.values())
        parts[part] = range(len(files), len(files) + len(labelled))
        files += [file for file, _ in labelled]
        labels += [numbers[name] for _, name in labelled]
    opener = FileImages(folder, tuple(files), spec.color)
    return Source(classes, np.asarray(labels, np.int64), tuple(files), parts, opener)


def _class_folders(spec: DataSpec) -> dict[Part, Labelled]:
    root = spec.place
    sets: dict[Part, Labelled] = {}
    passed: Counter[str] = Counter()
    for part, folder in _declared_paths(spec):
        if not is_folder(folder):
            raise EdgeError(
                f"`{folder}` is not a folder", "`format: image-folder` needs a folder with one folder per class"
            )
        classes = class_folders(folder)
        if not classes:
            raise EdgeError(f"`{folder}` has no class folders", "put the images of each class in a folder of its name")
        if not spec.train and {name.lower() for name in classes} <= SET_NAMES:
            raise EdgeError(
                f"the folders of `{folder}` are sets, not classes: {listed(classes)}",
                "declare them: `data.train`, `data.scored` and, if there is a third, `data.select`",
            )
        prefix = folder.relative_to(root)
        found, others = by_class(folder)
        passed += others
        empty = [name for name, inside in found.items() if not inside]
        if empty:
            raise EdgeError(
                f"empty class folder in `{folder}`: {listed(empty)}",
                f"remove it or put images in it ({', '.join(EXTENSIONS)})",
            )
        sets[part] = [((prefix / file).as_posix(), name) for name, inside in found.items() for file in inside]
    say_passed(passed)
    return sets


def _tables(spec: DataSpec) -> dict[Part, Labelled]:
    root, folder = spec.place, image_folder(spec)
    if is_regular(root) and spec.train:
        raise EdgeError(
            f"`data.root` is the table `{root}` and `data.train` names another",
            "set `data.root` to the folder that `train`, `select` and `scored` are in",
        )
    sets: dict[Part, Labelled] = {}
    for part, table in _declared_paths(spec):
        path = table
        if is_folder(table):
            tables = sorted(entry for entry in table.iterdir() if entry.suffix.lower() in (".csv", ".tsv"))
            if spec.train or len(tables) != 1:
                found = listed([entry.name for entry in tables]) or "none"
                raise EdgeError(
                    f"`{table}` must hold one label table (.csv or .tsv); it holds: {found}",
                    "set `data.root` to the table, or declare `data.train` and `data.scored`",
                )
            path = tables[0]
        sets[part] = [(row.file, row.label) for row in read_table(path, folder)]
    return sets


def _arrays(spec: DataSpec) -> Source:
    if spec.root is not None and is_folder(spec.root):
        if not spec.train:
            there = listed(sorted(path.name for path in spec.root.glob("*.npz")))
            raise EdgeError(
                f"`data.root` is the folder `{spec.root}` and no file in it is declared",
                f"set `data.root` to one .npz, or `data.train` and `data.scored` to files in it: {there}",
            )
        _declared_paths(spec)
    archives = declared_archives(spec)
    names: list[Part] = [*spec.declared] or ["train"]
    if len(set(archives)) != len(archives):
        raise EdgeError("two of `data.train`, `data.select`, `data.scored` are the same", "the sets must be disjoint")
    opener = ArrayImages(archives, spec.color)
    images = opener.parts()
    labels = [archive.labels(len(part)) for archive, part in zip(archives, images, strict=True)]
    classes = _array_classes(archives[0], labels[0])
    for archive, numbers in zip(archives, labels, strict=True):
        if numbers.size and int(numbers.max()) >= len(classes):
            raise EdgeError(
                f"`{archive.name}` has labels of classes that `train` does not have: "
                f"{_numbers(numbers[numbers >= len(classes)])}; train has 0 to {len(classes) - 1}",
                "add images of them to train, remove them, or correct the array `names`",
            )
    ends = np.cumsum([0, *(len(part) for part in images)])
    parts = {name: range(int(a), int(b)) for name, a, b in zip(names, ends[:-1], ends[1:], strict=True)}
    return Source(classes, np.concatenate(labels), (None,) * int(ends[-1]), parts, opener)


def _array_classes(archive: Archive | Digits, labels: Labels) -> tuple[str, ...]:
    """The file's names, which may hold classes without images; else the numbers, which must have no gap."""
    names = archive.class_names()
    if names is not None:
        return names
    if labels.size == 0:
        raise EdgeError(f"`{archive.name}` has no images", "write at least one image of each class into it")
    count = int(labels.max()) + 1
    absent = np.setdiff1d(np.arange(count), labels)
    if absent.size:
        raise EdgeError(
            f"`{archive.name}` has no image of label {_numbers(absent)}, though its labels go up to {count - 1}",
            "count classes from 0 without gaps, or name all classes in an array `names`",
        )
    return tuple(str(number) for number in range(count))


def _numbers(labels: Iterable[int]) -> str:
    return listed([str(label) for label in np.unique(np.asarray(labels))])
