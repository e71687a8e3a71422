"""YOLO, COCO and VOC become the same boxes; what is broken is listed with file and line; odd images come through."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgecnn.data import prepare, read_index
from edgecnn.data.boxes import read_boxes
from edgecnn.data.letterbox import Letterbox
from edgecnn.errors import EdgeError
from edgecnn.recipe import DataSpec
from edgecnn.store import Store

SIZE = 32
# (file, (height, width), [(class, x1, y1, x2, y2)])
PICTURES = [
    ("a.png", (40, 80), [(0, 8, 4, 40, 36), (1, 60, 0, 80, 10)]),
    ("b.png", (64, 32), [(1, 0, 0, 1, 1)]),
    ("c.png", (50, 50), []),
    ("d.png", (30, 90), [(0, 45, 15, 90, 30)]),
]


def picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 255, (*size, 3), np.uint8)).convert(mode).save(
        path
    )


def as_yolo(root: Path, names: object = ("cell", "blob")) -> DataSpec:
    for file, (height, width), boxes in PICTURES:
        picture(root / "images" / "train" / file, (height, width))
        lines = [
            f"{kind} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height}"
            for kind, x1, y1, x2, y2 in boxes
        ]
        label(root, file).parent.mkdir(parents=True, exist_ok=True)
        label(root, file).write_text("\n".join(lines))
    (root / "data.yaml").write_text(json.dumps({"path": ".", "train": "images/train", "names": list(names)}))  # type: ignore[call-overload]
    return spec("yolo", root, train="train")


def label(root: Path, file: str) -> Path:
    return root / "labels" / "train" / f"{Path(file).stem}.txt"


def as_coco(root: Path) -> DataSpec:
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": [
        {"id": 7, "name": "blob"}, {"id": 3, "name": "cell"}
    ]}  # fmt: skip
    for number, (file, (height, width), boxes) in enumerate(PICTURES, 100):
        picture(root / "train" / file, (height, width))
        document["images"].append({"id": number, "file_name": file, "height": height, "width": width})
        for kind, x1, y1, x2, y2 in boxes:
            document["annotations"].append({
                "id": len(document["annotations"]), "image_id": number, "category_id": (3, 7)[kind],
                "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0,
            })  # fmt: skip
    write(root, document)
    return spec("coco", root, train="annotations/instances_train.json")


def write(root: Path, document: dict[str, Any]) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document))


def as_voc(root: Path) -> DataSpec:
    for file, (height, width), boxes in PICTURES:
        picture(root / "JPEGImages" / file, (height, width))
        objects = "".join(
            f"<object>\n<name>{('cell', 'zblob')[kind]}</name><difficult>0</difficult>\n"
            f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>\n"
            "</object>\n"
            for kind, x1, y1, x2, y2 in boxes
        )
        path = root / "Annotations" / f"{Path(file).stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"<annotation>\n<size><width>{width}</width><height>{height}</height></size>\n{objects}</annotation>"
        )
    return spec("voc", root)


FORMATS = {"yolo": as_yolo, "coco": as_coco, "voc": as_voc}


def spec(form: str, root: Path, **more: object) -> DataSpec:
    return DataSpec.model_validate(
        {"format": form, "root": root, "fit": "letterbox", "calibrate": 2, "scored_fraction": 0.25,
         "select_fraction": 0.3, **more}
    )  # fmt: skip


def prepared(folder: Path, data: DataSpec) -> Path:
    folder.mkdir()
    prepare(folder, data, SIZE)
    return folder


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
    (tmp_path / "data.yaml").write_text("train: images/train\nval: [images/val]\nnames: {0: cell, 1: blob}\n")
    index = read_index(prepared(tmp_path / "out", spec("yolo", tmp_path / "data.yaml", calibrate=1)))
    assert [index.files[number] for number in index.splits["scored"]] == ["images/val/v.png"]


def test_a_list_of_images(tmp_path: Path) -> None:
    as_yolo(tmp_path)
    (tmp_path / "some.txt").write_text("images/train/a.png\n\n./images/train/b.png\nimages/train/c.png\n")
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
    ("0 nan 0.5 0.2 0.2", r"outside|not a number"),
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
    out = prepared(tmp_path / "out", data.model_copy(update={"skip_corrupt": True}))
    assert [Path(name or "").name for name in read_index(out).files] == ["b.png", "c.png", "e.png"]


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
        ("names: [a]\nval: x\n", r"`data\.train: train` is no set"),
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
    before = store.facts(prepare, (data,))
    Image.new("RGB", (80, 40)).save(image)
    assert store.facts(prepare, (data,)) != before
