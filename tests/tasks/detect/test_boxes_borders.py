"""Foreign annotations of another shape are refused by file and place, and never end in a traceback or a wait."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detection_sets import FORMATS, SIZE, as_coco, as_voc, picture, prepared, spec, write
from PIL import Image

from edgecnn.data import read_index
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec
from edgecnn.store.stage import Store
from edgecnn.tasks.detect.boxes import read_boxes
from edgecnn.tasks.prepare import prepare, watch

COCO_SHAPES: dict[str, Callable[[dict[str, Any]], object]] = {
    "category without name": lambda c: c["categories"][0].pop("name"),
    "categories null": lambda c: c.update(categories=None),
    "no categories": lambda c: c.update(categories=[], annotations=[]),
    "category is text": lambda c: c.update(categories=["a"]),
    "category id of text": lambda c: c["categories"][0].update(id="x"),
    "image id of another type than image_id": lambda c: c["images"][0].update(id="img1"),
    "image without id": lambda c: c["images"][0].pop("id"),
    "image without file_name": lambda c: c["images"][0].pop("file_name"),
    "file_name of 300 bytes": lambda c: c["images"][0].update(file_name="x" * 300),
    "file_name with NUL": lambda c: c["images"][0].update(file_name="a\0b"),
    "images is an object": lambda c: c.update(images={"0": c["images"][0]}),
    "image is null": lambda c: c["images"].append(None),
    "width of text": lambda c: c["images"][0].update(width="96.0"),
    "width true": lambda c: c["images"][0].update(width=True),
    "bbox of texts": lambda c: c["annotations"][0].update(bbox=["1", "2", "3", "4"]),
    "bbox with null": lambda c: c["annotations"][0].update(bbox=[1, 2, None, 4]),
    "bbox is an object": lambda c: c["annotations"][0].update(bbox={"x": 1}),
    "bbox nan": lambda c: c["annotations"][0].update(bbox=[1, float("nan"), 3, 4]),
    "bbox too long for a float": lambda c: c["annotations"][0].update(bbox=[1, 2, 10**400, 4]),
    "image_id is a list": lambda c: c["annotations"][0].update(image_id=[0]),
    "category_id is a list": lambda c: c["annotations"][0].update(category_id=[1]),
    "annotation null": lambda c: c["annotations"].append(None),
    "same image id twice": lambda c: c["images"][1].update(id=100),
    "same image twice": lambda c: c["images"][1].update(file_name="./a.png"),
    "same category id twice": lambda c: c["categories"][1].update(id=7),
    "all boxes in shares": lambda c: [one.update(bbox=[0.1, 0.2, 0.3, 0.4]) for one in c["annotations"]],
}


@pytest.mark.parametrize("case", COCO_SHAPES)
def test_coco_values_of_another_shape_are_refused_by_place(case: str, tmp_path: Path) -> None:
    data = as_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    COCO_SHAPES[case](document)
    write(tmp_path, document)
    with pytest.raises(EdgeError, match=r"instances_train\.json"):
        prepare(tmp_path, data, SIZE)


def test_coco_written_by_other_programs_is_read(tmp_path: Path) -> None:
    """Whole numbers as floats, ids of text, sizes left out, a byte order mark, UTF-16."""
    data = as_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    for image in document["images"]:
        image.update(id=f"image {image['id']}", width=None)
    for one in document["annotations"]:
        one.update(image_id=f"image {one['image_id']}", category_id=float(one["category_id"]))
    for number, encoding in enumerate(("utf-8-sig", "utf-16")):
        path.write_text(json.dumps(document), encoding=encoding)
        assert len(read_boxes(prepared(tmp_path / f"out{number}", data) / "boxes.npz").boxes) == 4
    path.write_bytes(json.dumps(document).replace("cell", "z\xe9ll").encode("latin-1"))
    document["categories"][0]["name"] = "caf\xe9"
    path.write_bytes(json.dumps(document, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(EdgeError, match=r"line 1: byte 0xe9 is not utf-8 text"):
        prepare(tmp_path, data, SIZE)
    path.write_text("[" * 100_000)
    with pytest.raises(EdgeError, match="is not JSON"):
        prepare(tmp_path, data, SIZE)


@pytest.mark.parametrize("place", ["beside the JSON", "elsewhere"])
def test_every_coco_image_is_part_of_the_key(place: str, tmp_path: Path) -> None:
    """`data.root` the JSON itself, or names that lead out of it: a repainted image is seen."""
    data = as_coco(tmp_path / "set")
    path = tmp_path / "set" / "annotations" / "instances_train.json"
    if place == "elsewhere":
        document = json.loads(path.read_text())
        (tmp_path / "far").mkdir()
        for image in document["images"]:
            (tmp_path / "set" / "train" / image["file_name"]).rename(tmp_path / "far" / image["file_name"])
            image["file_name"] = f"../../far/{image['file_name']}"
        write(tmp_path / "set", document)
        image = tmp_path / "far" / "a.png"
    else:
        shutil.copytree(tmp_path / "set" / "train", tmp_path / "set" / "annotations", dirs_exist_ok=True)
        data = spec("coco", path)
        image = path.parent / "a.png"
    assert len(read_index(prepared(tmp_path / "out", data)).files) == 4
    store = Store(tmp_path / "store")
    before = store.facts(prepare, (data, SIZE, watch(data)))
    Image.new("RGB", (80, 40)).save(image)
    assert store.facts(prepare, (data, SIZE, watch(data))) != before


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("part", ["train", "scored"])
def test_a_set_without_a_box_is_refused(form: str, part: str, tmp_path: Path) -> None:
    """Its labels are elsewhere: every answer would be wrong, and a score of zero would pass for a result."""
    data = FORMATS[form](tmp_path)
    files = [tmp_path / "labels" / "train", tmp_path / "Annotations"]
    document = tmp_path / "annotations" / "instances_train.json"
    if part == "train":
        for folder in files:
            for file in folder.glob("*"):
                file.write_text("" if form == "yolo" else "<annotation></annotation>")
        if form == "coco":
            write(tmp_path, {**json.loads(document.read_text()), "annotations": []})
    else:
        picture(tmp_path / "images" / "val" / "v.png", (20, 20))
        (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cell, blob]\n")
        lists = tmp_path / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("a\nb\nd")
        (lists / "val.txt").write_text("c\n")
        data = spec(form, tmp_path, calibrate=1)
        if form == "coco":
            (tmp_path / "val.json").write_text(json.dumps({
                "images": [{"id": 1, "file_name": "images/val/v.png"}], "annotations": [],
                "categories": json.loads(document.read_text())["categories"],
            }))  # fmt: skip
            data = spec(form, tmp_path, train="annotations/instances_train.json", scored="val.json", calibrate=1)
    with pytest.raises(EdgeError, match=rf"none of the \d images of `{part}` has a labelled box"):
        prepare(tmp_path, data, SIZE)


def rows(root: Path, row: str, names: str = "") -> DataSpec:
    """Five images of 100 by 100 with this row each."""
    for number in range(5):
        picture(root / "images" / f"{number}.png", (100, 100))
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{number}.txt").write_text(row, encoding="utf-8")
    (root / "data.yaml").write_text(f"{names}train: images\nnames: [a]\n")
    return spec("yolo", root, train="train")


POSE = "0 .5 .5 .2 .2 .45 .45 .55 .55 .5 .45 .5 .55"


@pytest.mark.parametrize(
    ("row", "names"),
    [(POSE, "kpt_shape: [4, 2]\n"), ("0 .5 .5 .2 .2 .45 .45 2 .55 .55 0", "kpt_shape: [2, 3]\n"), (POSE[:14], ""),
     ("\ufeff0 .5 .5 .2 .2\r\n", ""), (POSE[:14], "kpt_shape: [4, 2]\n"), ("0.0 5e-1 +.5 .2 .2", "")],
)  # fmt: skip
def test_rows_that_are_boxes(row: str, names: str, tmp_path: Path) -> None:
    boxes = read_boxes(prepared(tmp_path / "out", rows(tmp_path / "d", row, names)) / "boxes.npz")
    assert boxes.of(0)[0].tolist() == [pytest.approx([40, 40, 60, 60], abs=1e-3)]


@pytest.mark.parametrize(
    ("row", "names", "why"),
    [
        (POSE, "", r"look like boxes with keypoints \(13 values a row\)"),
        (POSE, "kpt_shape: [5, 2]\n", "by `kpt_shape` a row has 15"),
        (POSE, "kpt_shape: 17\n", "`kpt_shape` is '17'"),
        ("0 .5 .5 .2 .2 .91 1", "", "a tracker's box, or a triangle"),
        ("0 .5 .5 .2 .2 .91 12", "", "a tracker's box, or a triangle"),
        ("0 .5 .5 .2 .2 .91", "", "6 values"),
        ("nan .5 .5 .2 .2", "", "not numbers"),
        ("inf .5 .5 .2 .2", "", "not numbers"),
        ("1e300 .5 .5 .2 .2", "", "is not a number from 0"),
        ("0 .5 .5 .2 2_0", "", "not numbers"),
        ("0 .5 .5 .2 \u0662", "", "not numbers"),
        ("0 .5 .5 1e999 .2", "", "not numbers"),
        ("9" * 5000, "", "not numbers|1 values"),
    ],
)
def test_rows_that_are_not(row: str, names: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=why):
        prepare(tmp_path, rows(tmp_path / "d", row, names), SIZE)


def test_class_names_stay_as_they_are_written(tmp_path: Path) -> None:
    """YAML would read them as truth values, numbers and dates."""
    data = rows(tmp_path / "d", "0 .5 .5 .2 .2")
    (tmp_path / "d" / "data.yaml").write_text("train: images\nval:\nnames: [no, on, 007, 1e3, 2020-01-01, 'null']\n")
    index = read_index(prepared(tmp_path / "out", data))
    assert index.classes == ("no", "on", "007", "1e3", "2020-01-01", "null")


BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    "text",
    ["names: [[a], [b]]\n", "names: {0: {a: b}}\n", "names: [a]\ntrain: {a: b}\n", "names: [a]\ntrain: [[a]]\n",
     "names: &x [*x]\ntrain: images\n", "names: [a]\npath: [a]\ntrain: images\n", BOMB + "names: *a29\ntrain: images\n",
     "[" * 5000, "names: [a]\nnames: [b]\ntrain: images\n", "names: [a]\ntrain: " + "x" * 300, "? [a]\n: b\n",
     "names: !!python/object/apply:os.abort []\ntrain: images\n", "names: [a]\ntrain: \"a\\0b\"\n", "\x00", "names: 5"],
)  # fmt: skip
def test_a_data_yaml_of_another_shape_is_refused(text: str, tmp_path: Path) -> None:
    data = rows(tmp_path / "d", "0 .5 .5 .2 .2")
    (tmp_path / "d" / "data.yaml").write_text(text)
    with pytest.raises(EdgeError, match=r"data\.yaml"):
        prepare(tmp_path, data, SIZE)


def test_label_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    data = rows(tmp_path / "d", "0 .5 .5 .2 .2")
    labels = tmp_path / "d" / "labels"
    for number in range(4):
        (labels / f"{number}.txt").unlink()
    (labels / "0.txt").symlink_to(tmp_path / "gone")
    os.mkfifo(labels / "1.txt")
    (labels / "2.txt").mkdir()
    (labels / "3.txt").write_bytes(b"\xe9")
    with pytest.raises(EdgeError, match=r"4 broken labels: .*leads nowhere.*not a regular.*not a regular.*0xe9"):
        prepare(tmp_path, data, SIZE)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text.replace("annotation>", "html>"), "is <html>, not <annotation>"),
        (lambda text: '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]>' + text, "declares XML entities"),
        (lambda text: text.replace("<xmax>90<", "<xmax>nan<"), "a coordinate is not a number"),
        (lambda text: text.replace("<xmax>90<", f"<xmax>{'9' * 5000}<"), "not a number|outside"),
        (lambda text: text.replace("<width>90<", f"<width>{'9' * 5000}<"), "cannot be read"),
        (lambda text: '<?xml version="1.0" encoding="klingon"?>' + text, "declares the encoding `klingon`"),
    ],
)
def test_voc_values_of_another_kind_are_named(change: Callable[[str], str], why: str, tmp_path: Path) -> None:
    data = as_voc(tmp_path)
    path = tmp_path / "Annotations" / "d.xml"
    path.write_text(change(path.read_text()))
    with pytest.raises(EdgeError, match=rf"d\.xml.*({why})"):
        prepare(tmp_path, data, SIZE)


def test_voc_of_other_encodings_and_hidden_files(tmp_path: Path) -> None:
    data = as_voc(tmp_path)
    text = (tmp_path / "Annotations" / "d.xml").read_text().replace("cell", "caf\xe9")
    (tmp_path / "Annotations" / "._d.xml").write_bytes(b"\0\5\x16\7")  # what macOS leaves on other disks
    for number, (encoding, head) in enumerate(
        (("latin-1", "ISO-8859-1"), ("utf-16", "UTF-16"), ("utf-8-sig", "utf-8"))
    ):
        declared = f'<?xml version="1.0" encoding="{head}"?>{text}'
        (tmp_path / "Annotations" / "d.xml").write_text(declared, encoding=encoding)
        assert "caf\xe9" in read_index(prepared(tmp_path / f"out{number}", data)).classes
