"""`edgecnn init`: three questions, one commented recipe that builds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgecnn.disk import user_path
from edgecnn.errors import EdgeError
from edgecnn.recipe_file import load_recipe, nearest_hint, packed

Ask = Callable[[str, str], str]


@dataclass(frozen=True)
class _Found:
    """What a look at the data says: recipe format, image side in pixels, colour, number of images."""

    format: str
    side: int
    color: str
    images: int


def ask_and_write(path: Path | None, *, task: str | None, data: str | None, device: str | None, ask: Ask) -> Path:
    """Ask for what is not given, look at the data, write the recipe; refuses to overwrite.

    Raises:
        EdgeError: no such task, device or data, or the file exists.
    """
    task = task or ask("task", "classify")
    if task != "classify":
        raise EdgeError(f"no task `{task}`", nearest_hint(task, ["classify"]))
    data = data or ask("data (image folder, label table, .npz, or digits)", "digits")
    device = device or ask("device", "cpu-x86")
    if device not in packed("devices"):
        raise EdgeError(f"no device `{device}`", nearest_hint(device, list(packed("devices"))))
    found = _look(data)
    name = f"{Path(data).stem}_{device}".replace(" ", "_")
    path = path or Path(f"{name}.yaml")
    if path.exists():
        raise EdgeError(f"`{path}` exists", "give another file name: edgecnn init other.yaml")
    text = _recipe(name, data, device, found, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    try:
        load_recipe(str(path))
    except EdgeError:
        path.unlink()
        raise
    return path


def _look(data: str) -> _Found:
    if data == "digits":
        return _Found("digits", 16, "gray", 1797)
    root = user_path(data)
    if not root.exists():
        raise EdgeError(
            f"no data at `{root}`", "give an image folder, a label table (.csv, .tsv), an .npz file, or digits"
        )
    if root.suffix == ".npz":
        return _look_arrays(root)
    tables = [root] if root.is_file() else [*root.glob("*.csv"), *root.glob("*.tsv")]
    if tables and tables[0].suffix in (".csv", ".tsv"):
        return _look_images("label-table", tables[0].parent)
    if root.is_dir() and any(p.is_dir() for p in root.iterdir()):
        return _look_images("image-folder", root)
    raise EdgeError(
        f"`{root}` is no data that edgecnn reads",
        "an image folder has one folder per class; a label table is a .csv or .tsv of file name and label",
    )


def _look_arrays(root: Path) -> _Found:
    import numpy as np

    with np.load(root, allow_pickle=False) as arrays:
        if "images" not in arrays:
            raise EdgeError(f"`{root}` has no array `images`", "uint8, NHWC, with `labels` beside it")
        shape = arrays["images"].shape
    gray = len(shape) == 3 or shape[3] == 1
    return _Found("arrays", min(shape[1:3]), "gray" if gray else "rgb", shape[0])


def _look_images(format_: str, root: Path) -> _Found:
    from PIL import Image

    suffixes = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes)
    for path in files:
        try:
            with Image.open(path) as image:
                side, gray = min(image.size), image.mode in ("L", "I;16", "1")
        except OSError:
            continue
        return _Found(format_, min(128, max(32, side // 32 * 32)), "gray" if gray else "rgb", len(files))
    raise EdgeError(f"no images in `{root}`")


def _recipe(name: str, data: str, device: str, found: _Found, path: Path) -> str:
    root = "" if found.format == "digits" else f"\n  root: {_relative(data, path)}"
    model = "gap-s" if found.side <= 16 else "gap-m"
    augment = "shift" if found.format == "digits" else "standard"
    return f"""\
# What to build, from which images, for which device. `edgecnn show {path.name}` prints every default,
# `edgecnn schema` every key. Build it with: edgecnn build {path.name}
name: {name}
task: classify
device: {device}                # the verdict's device; `edgecnn devices list` names them
# compile_for: [rtx-4060]       # further devices whose engines are made or checked beside it

data:
  format: {found.format}{root}
  color: {found.color}
  # train: train                # declared splits, if you have them; else a third is held out for scoring
  # scored: val

model:
  family: small                 # or timm / torchvision with any of their model names
  name: {model}
  image_size: {found.side}
  # weights: my_weights.safetensors

train:
  epochs: 20                    # 0 takes `model.weights` as they are
  batch: 64
  lr: 0.003
  augment: {augment}

quantize:
  images: {min(256, max(1, found.images // 2)):<4}                  # calibration images, taken from the training images
  ranges: auto                  # or minmax, percentile, entropy, mse
  # effort: balanced            # or fast, thorough: how long the rungs that need no labels may take

budgets:
  max_accuracy_drop: 0.02       # of INT8 against float, as a fraction: 0.02 is two points
"""


def _relative(data: str, path: Path) -> str:
    import os

    return os.path.relpath(user_path(data).absolute(), path.parent.absolute())
