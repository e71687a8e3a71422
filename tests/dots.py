"""A YOLO dataset that a few seconds of training can read: images with one bright square each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_dots(root: Path, count: int) -> None:
    """`count` images of 64x48 pixels under images/train, their boxes, and data.yaml."""
    rng = np.random.default_rng(0)
    for folder in ("images/train", "labels/train"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 60, (48, 64, 3), np.uint8)
        x, y = int(rng.integers(0, 40)), int(rng.integers(0, 24))
        pixels[y : y + 20, x : x + 20] = 250
        Image.fromarray(pixels).save(root / f"images/train/{number:02d}.png")
        (root / f"labels/train/{number:02d}.txt").write_text(f"0 {(x + 10) / 64} {(y + 10) / 48} {20 / 64} {20 / 48}\n")
    (root / "data.yaml").write_text("train: images/train\nnames: [dot]\n")
