"""YOLO, COCO and VOC become the same boxes; what is broken is listed with file and line; odd images come through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_sets import FORMATS, PICTURES, SIZE, as_coco, as_voc, as_yolo, label, picture, prepared, spec, write
from PIL import Image

from edgecnn.data import read_index
from edgecnn.data.letterbox import Letterbox
from edgecnn.process.errors import EdgeError
from edgecnn.tasks.detect.boxes import read_boxes
from edgecnn.tasks.detect.yolo import read_yolo
from edgecnn.tasks.prepare import prepare


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_becomes_the_same_boxes(form: str, tmp_path: Path) -> None:
    out = prepared(tmp_path / "out", FORMATS[form](tmp_path / "data"))
    index, boxes = read_index(out), read_boxes(out / "boxes.npz")
    assert index.classes[0] == "cell"
    assert [Path(name or "").name for name in index.files] == [file for file, _, _ in PICTURES]
    assert boxes.sizes.tolist() == [list(size) for _, size, _ in PICTURES]
    for number, (_, _, expected) in enumerate(PICTURES):
        found, kinds, crowd = boxes.of(number)
        assert found == pytest.approx(np.asarray([row[1:] for row in expected], float).reshape(-1, 4), abs=1e-3)
        assert kinds.tolist() == [row[0] for row in expected]
        assert not crowd.any()


@pytest.mark.parametrize("form", FORMATS)
def test_a_prepared_split_has_its_boxes_and_letterboxed_pixels(form: str, tmp_path: Path) -> None:
    out = prepared(tmp_path / "out", FORMATS[form](tmp_path / "data"))
    index, boxes = read_index(out), read_boxes(out / "boxes.npz")
    (number,) = index.splits["scored"].tolist()
    scored = read_boxes(out / "scored_boxes.npz")
    assert np.array_equal(scored.of(0)[0], boxes.of(number)[0])
    pixels = np.load(out / "scored-00000.npy")
    assert pixels.shape == (1, SIZE, SIZE, 3)
    height, width = PICTURES[number][1]
    top, left = Letterbox(height, width, (SIZE, SIZE)).corner
    assert (pixels[0, :top] == 114).all()
    assert (pixels[0, :, :left] == 114).all()


def test_declared_sets_are_keys_of_data_yaml(tmp_path: Path) -> None:
    as_yolo(tmp_path)
    picture(tmp_path / "images" / "val" / "v.png", (20, 20))
    (tmp_path / "labels" / "val").mkdir()
    (tmp_path / "labels" / "val" / "v.txt").write_text("0 .5 .5 .2 .2")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: [images/val]\nnames: {0: cell, 1: blob}\n")
    index = read_index(prepared(tmp_path / "out", spec("yolo", tmp_path / "data.yaml", calibrate=1)))
    assert [index.files[number] for number in index.splits["scored"]] == ["images/val/v.png"]


def test_a_list_of_images(tmp_path: Path) -> None:
    as_yolo(tmp_path)
    (tmp_path / "some.txt").write_text("images/train/a.png\n\n./images/train/b.png\nimages/train/d.png\n")
    (tmp_path / "data.yaml").write_text("train: some.txt\nnames: [cell, blob]\n")
    assert len(read_index(prepared(tmp_path / "out", spec("yolo", tmp_path, train="train"))).files) == 3
    (tmp_path / "some.txt").write_text("images/train/a.png\nimages/train/gone.png\n")
    with pytest.raises(EdgeError, match=r"some\.txt:2: no image"):
        prepare(tmp_path, spec("yolo", tmp_path, train="train"), SIZE)


def test_a_polygon_becomes_its_box(tmp_path: Path) -> None:
    data = as_yolo(tmp_path)
    label(tmp_path, "a.png").write_text("1 0.1 0.5 0.3 0.1 0.2 0.9\n")
    boxes = read_boxes(prepared(tmp_path / "out", data) / "boxes.npz")
    assert boxes.of(0)[0][0].tolist() == pytest.approx([8, 4, 24, 36], abs=1e-3)


def test_equal_rows_count_once(tmp_path: Path) -> None:
    data = as_yolo(tmp_path)
    path = label(tmp_path, "d.png")
    path.write_text(path.read_text() + "\n" + path.read_text())
    assert len(read_boxes(prepared(tmp_path / "out", data) / "boxes.npz").of(3)[1]) == 1


BROKEN_LINES = [
    ("0 0.5 0.5 0.2", "4 values"),
    ("0 0.5 0.5 0.2 0.2 0.1", "6 values"),
    ("0 1.5 0.5 0.2 0.2", r"outside \[0, 1\]"),
    ("0 -0.1 0.5 0.2 0.2", r"outside \[0, 1\]"),
    ("0 0.5 0.5 -0.2 0.2", "width -0.2"),
    ("0 0.5 0.5 0.2 0", "height 0"),
    ("9 0.5 0.5 0.2 0.2", "class 9 is unknown"),
    ("-1 0.5 0.5 0.2 0.2", "class -1"),
    ("0.5 0.5 0.5 0.2 0.2", "class 0.5"),
    ("cell 0.5 0.5 0.2 0.2", "not numbers"),
    ("0 nan 0.5 0.2 0.2", "not numbers"),
]


@pytest.mark.parametrize(("line", "why"), BROKEN_LINES)
def test_a_broken_line_is_named(line: str, why: str, tmp_path: Path) -> None:
    data = as_yolo(tmp_path)
    label(tmp_path, "a.png").write_text(f"0 0.5 0.5 0.2 0.2\n{line}\n")
    with pytest.raises(EdgeError, match=rf"train/a\.txt:2.*({why})"):
        prepare(tmp_path, data, SIZE)


def test_all_broken_labels_are_listed_and_can_be_left_out(tmp_path: Path) -> None:
    data = as_yolo(tmp_path)
    label(tmp_path, "a.png").write_text("0 2 2 1 1\n")
    label(tmp_path, "d.png").write_text("what\n")
    with pytest.raises(EdgeError, match=r"2 broken labels: .*a\.txt:1.*d\.txt:1"):
        prepare(tmp_path, data, SIZE)
    picture(tmp_path / "images" / "train" / "e.png", (10, 10))  # an image without a label file: background
    found = read_yolo(data.model_copy(update={"skip_corrupt": True}))
    assert [(image.file.name, len(image.rows)) for image in found.images] == [("b.png", 1), ("c.png", 0), ("e.png", 0)]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bbox": [1, 1, -3, 2]}, r"annotations\[1\] \(id 1\): the box has width -3"),
        ({"bbox": [1, 1, 2]}, "bbox: List should have at least 4 items"),
        ({"bbox": [500, 1, 3, 2]}, r"annotations\[1\].*outside the image"),
        ({"category_id": 1}, "category 1 is unknown"),
        ({"image_id": 999}, "image_id 999 is not an image"),
    ],
)
def test_a_broken_coco_annotation_is_named(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    data = as_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["annotations"][1].update(change)
    write(tmp_path, document)
    with pytest.raises(EdgeError, match=why):
        prepare(tmp_path, data, SIZE)


def test_a_missing_coco_image_and_a_wrong_size_are_named(tmp_path: Path) -> None:
    data = as_coco(tmp_path)
    (tmp_path / "train" / "c.png").unlink()
    with pytest.raises(EdgeError, match=r"image 102: .*c\.png` does not exist"):
        prepare(tmp_path, data, SIZE)
    picture(tmp_path / "train" / "c.png", (20, 10))
    with pytest.raises(EdgeError, match=r"image 102: the labels are for 50x50 pixels, `c\.png` has 10x20"):
        prepare(tmp_path, data, SIZE)


def test_crowd_and_difficult_boxes_are_marked(tmp_path: Path) -> None:
    data = as_coco(tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["iscrowd"] = 1
    write(tmp_path / "coco", document)
    assert read_boxes(prepared(tmp_path / "one", data) / "boxes.npz").crowd.tolist() == [True, False, False, False]
    data = as_voc(tmp_path / "voc")
    xml = tmp_path / "voc" / "Annotations" / "d.xml"
    xml.write_text(xml.read_text().replace("<difficult>0", "<difficult>1"))
    assert read_boxes(prepared(tmp_path / "two", data) / "boxes.npz").crowd.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("<xmax>90<", "<xmax>3<", r"Annotations/d\.xml:3: `cell`: the box has width"),
        ("<ymax>30</ymax>", "", r"d\.xml:3: `cell` has no complete bndbox"),
        ("<name>cell</name>", "", "without a name"),
        ("</annotation>", "", r"Annotations/d\.xml: cannot be read"),
        ("<width>90<", "<width>91<", "the labels are for 91x30"),
    ],
)
def test_a_broken_voc_file_is_named(old: str, new: str, why: str, tmp_path: Path) -> None:
    data = as_voc(tmp_path)
    xml = tmp_path / "Annotations" / "d.xml"
    xml.write_text(xml.read_text().replace(old, new))
    with pytest.raises(EdgeError, match=why):
        prepare(tmp_path, data, SIZE)


def test_voc_lists_and_a_class_that_train_lacks(tmp_path: Path) -> None:
    as_voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("c\nd\na\n")
    (lists / "val.txt").write_text("b\n")
    out = prepared(tmp_path / "out", spec("voc", tmp_path, calibrate=1))
    index = read_index(out)
    assert [index.files[number] for number in index.splits["scored"]] == ["JPEGImages/b.png"]
    (lists / "train.txt").write_text("c\nd\n")
    with pytest.raises(EdgeError, match=r"b\.xml:3: class `zblob` does not occur in train"):
        prepare(tmp_path, spec("voc", tmp_path), SIZE)
    (lists / "train.txt").write_text("c\ngone\n")
    with pytest.raises(EdgeError, match=r"gone\.xml: (no image|does not exist)"):
        prepare(tmp_path, spec("voc", tmp_path), SIZE)


@pytest.mark.parametrize("names", [("one",), tuple(f"class {number}" for number in range(1000))])
def test_one_class_and_a_thousand(names: tuple[str, ...], tmp_path: Path) -> None:
    data = as_yolo(tmp_path, names)
    for file, _, boxes in PICTURES:
        label(tmp_path, file).write_text("\n".join(f"{len(names) - 1} 0.5 0.5 0.1 0.1" for _ in boxes))
    out = prepared(tmp_path / "out", data)
    assert read_index(out).classes == names
    assert set(read_boxes(out / "boxes.npz").classes.tolist()) == {len(names) - 1}


@pytest.mark.parametrize("mode", ["L", "I;16", "CMYK", "P", "RGBA", "1"])
def test_images_of_every_mode_come_through(mode: str, tmp_path: Path) -> None:
    data = as_yolo(tmp_path)
    path = tmp_path / "images" / "train" / "a.png"
    gray = np.linspace(0, 65535, 40 * 80).reshape(40, 80)
    path.unlink()
    match mode:
        case "I;16":
            Image.fromarray(gray.astype(np.uint16)).save(path)
        case "CMYK":
            Image.fromarray((gray / 257).astype(np.uint8)).convert("CMYK").save(path.with_suffix(".jpg"))
        case _:
            Image.fromarray((gray / 257).astype(np.uint8)).convert(mode).save(path)
    boxes = read_boxes(prepared(tmp_path / "out", data) / "boxes.npz")
    assert boxes.sizes[0].tolist() == [40, 80]
    assert len(boxes.of(0)[1]) == 2


def test_boxes_are_of_the_image_as_shown(tmp_path: Path) -> None:
    data = as_yolo(tmp_path)
    (tmp_path / "images" / "train" / "a.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter: stored 40 high and 80 wide, shown 80 high and 40 wide
    Image.new("RGB", (80, 40)).save(tmp_path / "images" / "train" / "a.jpg", exif=exif)
    label(tmp_path, "a.jpg").write_text("0 0.5 0.5 1 1\n")
    boxes = read_boxes(prepared(tmp_path / "out", data) / "boxes.npz")
    assert boxes.sizes[0].tolist() == [80, 40]
    assert boxes.of(0)[0].tolist() == [[0, 0, 40, 80]]


def test_a_very_large_image(tmp_path: Path) -> None:
    data = as_yolo(tmp_path)
    Image.new("L", (9000, 8200)).save(tmp_path / "images" / "train" / "a.png")
    boxes = read_boxes(prepared(tmp_path / "out", data) / "boxes.npz")
    assert boxes.sizes[0].tolist() == [8200, 9000]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("train: images/train\n", "no `names`"),
        ("names: [a]\nval: x\n", r"`data\.train: train` is not a set"),
        ("train: elsewhere\nnames: [a, b]\n", "elsewhere.*does not exist"),
        ("train: images/train\nnames: {1: a}\n", "without gaps"),
        ("train: images/train\nnames: [a, b]\nnc: 3\n", "`nc` is 3"),
        ("- 1\n", "not a YOLO data file"),
        (": : :\n", "cannot read"),
    ],
)
def test_a_bad_data_yaml_is_named(content: str, why: str, tmp_path: Path) -> None:
    data = as_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(EdgeError, match=why):
        prepare(tmp_path, data, SIZE)


def test_the_same_folder_for_training_and_scoring_is_refused(tmp_path: Path) -> None:
    as_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [a, b]\n")
    with pytest.raises(EdgeError, match="share images"):
        prepare(tmp_path, spec("yolo", tmp_path, train="train", scored="val"), SIZE)
