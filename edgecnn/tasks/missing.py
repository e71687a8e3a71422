"""What a dataset lacks, told before a build."""

from __future__ import annotations

import importlib.util

from edgecnn.recipe.recipe import DataSpec
from edgecnn.store.digests import exists, is_regular
from edgecnn.tasks.detect.yolo_yaml import absent


def missing(spec: DataSpec) -> list[tuple[str, str, str]]:
    """(what, where, fix) of everything that a build would look for and not find. Reads no image."""
    if spec.format == "digits":
        if importlib.util.find_spec("sklearn") is None:
            return [("scikit-learn, which holds the digits", "Python packages", "pip install scikit-learn")]
        return []
    root = spec.place
    if not exists(root):
        what = {"yolo": "the YOLO data file", "coco": "the COCO folder"}.get(spec.format, "data folder")
        return [(what, str(root), "put the data there, or point to a copy: --set data.root=PATH")]
    if spec.format == "yolo":
        return absent(spec)
    if is_regular(root):
        return []
    if spec.format == "voc":  # `train` and so on are lists, not folders
        folders = [root / "Annotations", root / "JPEGImages"]
        return [("folder of a Pascal VOC dataset", str(f), "set `data.root`") for f in folders if not exists(f)]
    gaps = []
    for part, name in spec.declared.items():
        if not exists(root / name):
            gaps.append((f"`data.{part}`", str(root / name), f"correct `data.{part}`, or put the data there"))
    return gaps
