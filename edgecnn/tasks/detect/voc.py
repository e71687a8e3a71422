"""Pascal VOC datasets: an XML of boxes for each image, lists of image names for each set (Everingham et al. 2010)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from edgecnn.data.pixels import EXTENSIONS
from edgecnn.data.tables import leads_out, require_inside
from edgecnn.data.texts import MIB, decode_text, read_text
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec
from edgecnn.recipe.sections import Part
from edgecnn.store.digests import is_folder, is_regular
from edgecnn.tasks.detect.annotations import NO_CLASS, Annotated, Faults, LabelledImage, Row

HINT = "correct these files, or set `data.skip_corrupt: true` to leave out their images"

MOST_BYTES = 16 * MIB  # of one image's XML
DECLARED = re.compile(rb"\s*<\?xml[^>]{0,80}encoding\s*=\s*[\"']([A-Za-z0-9._-]{1,40})[\"']")


def read_voc(spec: DataSpec) -> Annotated:
    """Read the XML files under Annotations/. `data.train` and so on name lists in ImageSets/Main.

    Undeclared: `train` (or `trainval`) and for scoring `val` (or `test`); without lists, every XML file is one pool.
    Classes are the names met in train, sorted. Coordinates count from 1 and include both ends, as VOC's do. Difficult
    objects neither count as missed nor as found.

    Raises:
        EdgeError: no Annotations folder, missing lists or images, broken XML or boxes (all, by file and line).
    """
    root = spec.place
    if not is_folder(root / "Annotations"):
        raise EdgeError(f"`{root}` has no folder `Annotations`", "set `data.root` to the folder that holds it")
    faults = Faults()
    sets = {
        part: [image for name in names if (image := _parse(root, name, spec.skip_corrupt, faults))]
        for part, names in _names(root, spec).items()
    }
    classes = tuple(sorted({row.name for image in sets["train"] for row in image.rows}))
    numbers = {name: number for number, name in enumerate(classes)}
    if spec.skip_corrupt:
        sets = {
            part: [image for image in images if all(row.name in numbers for row in image.rows)]
            for part, images in sets.items()
        }
    for image in (image for images in sets.values() for image in images):
        for row in image.rows:
            if row.name not in numbers:
                faults.add(row.where, f"class `{row.name}` does not occur in train")
    faults.refuse(HINT)
    numbered = {
        part: [
            replace(image, rows=tuple(replace(row, kind=numbers[row.name]) for row in image.rows)) for image in images
        ]
        for part, images in sets.items()
    }
    return Annotated.of(classes, numbered)


def _names(root: Path, spec: DataSpec) -> dict[Part, list[str]]:
    lists = root / "ImageSets" / "Main"

    def read(name: str, part: Part) -> list[str]:
        path = lists / f"{name}.txt"
        require_inside(part, name)
        if not is_regular(path):
            raise EdgeError(f"`data.{part}: {name}`: there is no list `{path}`", "name a list in ImageSets/Main")
        return [_without_flag(line.strip()) for line in read_text(path).split("\n") if line.strip()]

    if spec.train:
        return {part: read(name, part) for part, name in spec.declared.items()}
    there = {path.stem for path in lists.glob("[!.]*.txt")}
    if not there & {"train", "trainval"}:
        return {"train": sorted(path.stem for path in (root / "Annotations").glob("[!.]*.xml"))}
    scored = next((name for name in ("val", "test") if name in there), None)
    train = "train" if "train" in there else "trainval"
    if train == "trainval" and scored == "val":
        scored = "test" if "test" in there else None
    found: dict[Part, list[str]] = {"train": read(train, "train")}
    if scored:
        found["scored"] = read(scored, "scored")
    return found


def _without_flag(line: str) -> str:
    """The image's name; lists of one class have 1, 0 or -1 after it."""
    name, _, flag = line.rpartition(" ")
    return name.strip() if name and flag in ("1", "0", "-1") else line


def _parse(root: Path, name: str, skip: bool, faults: Faults) -> LabelledImage | None:
    """One XML file; None where it is broken (said in `faults` unless such images are skipped)."""
    path = root / "Annotations" / f"{name}.xml"
    if leads_out(name):
        faults.add(name, "leads out of the dataset's folders")
        return None
    where = f"Annotations/{path.name}"
    own = Faults()
    image = next((p for s in EXTENSIONS for p in _spelled(root / "JPEGImages", name, s) if is_regular(p)), None)
    rows: list[Row] = []
    size = None
    if image is None:
        own.add(where, f"no image `JPEGImages/{name}` with any known ending")
    try:
        text = _xml(path)
        tree = ElementTree.fromstring(text)
        if tree.tag != "annotation":
            own.add(where, f"is <{tree.tag[:40]}>, not <annotation>")
        lines = [number for number, line in enumerate(text.splitlines(), 1) for _ in range(line.count("<object>"))]
        width, height = tree.findtext("size/width"), tree.findtext("size/height")
        if width and height and int(width) > 0 and int(height) > 0:  # some tools write 0x0
            size = (int(height), int(width))
        for number, element in enumerate(tree.findall("object")):
            at = f"{where}:{lines[number] if number < len(lines) else '?'}"
            found, why = _object(element, at)
            if found is None:
                own.add(at, why)
            else:
                rows.append(found)
    except FileNotFoundError:
        own.add(where, "does not exist")
    except EdgeError as error:
        own.add(where, error.message)
    except (ValueError, ElementTree.ParseError) as error:
        own.add(where, f"cannot be read: {error}")
    if own.found:
        if not skip:
            faults.found += own.found
        return None
    assert image is not None
    return LabelledImage(image, tuple(rows), size, where)


def _xml(path: Path) -> str:
    """An XML file's text in the encoding that it declares, without entities of its own: those can grow without end.

    Raises:
        EdgeError, FileNotFoundError: as `read_text`; an unknown encoding, or entities.
    """
    if not is_regular(path) or path.stat().st_size > MOST_BYTES:
        return read_text(path, MOST_BYTES)  # tells
    content = path.read_bytes()
    declared = DECLARED.match(content)
    encoding = declared[1].decode("ascii") if declared else "utf-8"
    try:
        text = decode_text(content, path, encoding)
    except LookupError as error:
        raise EdgeError(
            f"`{path}` declares the encoding `{encoding}`, which is not known", "save it as UTF-8"
        ) from error
    if "<!ENTITY" in text:
        raise EdgeError(f"`{path}` declares XML entities", "write the text without them: annotations need none")
    return text.lstrip("\ufeff")


def _spelled(folder: Path, name: str, ending: str) -> tuple[Path, Path]:
    return folder / f"{name}{ending}", folder / f"{name}{ending.upper()}"


def _object(element: ElementTree.Element, where: str) -> tuple[Row | None, str]:
    name = (element.findtext("name") or "").strip()
    if not name:
        return None, "an object without a name"
    try:
        left, top, right, bottom = (float(element.findtext(f"bndbox/{side}") or "") for side in
                                    ("xmin", "ymin", "xmax", "ymax"))  # fmt: skip
    except ValueError:
        return None, f"`{name}` has no complete bndbox"
    if right < left or bottom < top:
        return None, f"`{name}`: the box has width {right - left:.6g} and height {bottom - top:.6g}"
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return Row(NO_CLASS, (left - 1, top - 1, right, bottom), where, crowd=difficult, name=name), ""
