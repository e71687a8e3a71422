"""One small detection dataset, written in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgecnn.recipe.recipe import DataSpec
from edgecnn.tasks.prepare import prepare

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
