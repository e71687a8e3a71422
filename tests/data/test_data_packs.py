"""Real datasets, as users have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgecnn.data import Index, images, labels, load_images, open_images
from edgecnn.recipe.recipe import DataSpec

Prepared = Callable[..., tuple[Path, Index, DataSpec]]


def test_mnist_by_prefix(packs: Path, prepared: Prepared) -> None:
    root = packs / "mnist" / "mnist_60k_3k.npz"
    out, index, spec = prepared(format="arrays", root=root, train="train", scored="test", color="gray", image_size=28)
    assert index.classes == tuple("0123456789")
    assert (len(index.splits["train"]), len(index.splits["select"])) == (54_000, 6_000)
    assert labels(out, "scored")[:5].tolist() == [7, 2, 1, 0, 4]  # the official test set begins so
    opened = open_images(spec, index)
    mean = np.mean([opened(int(number)).mean() for number in index.splits["train"][:2000]]) / 255
    assert abs(mean - 0.1307) < 0.003
    assert images(out, "scored").shape == (3000, 28, 28, 1)


def test_cifar10_of_encoded_images(packs: Path, prepared: Prepared) -> None:
    # The small file takes train's place too: 50,000 decodes would show nothing more.
    root = packs / "cifar10-jpeg" / "cifar10_test_jpeg.npz"
    out, index, spec = prepared(format="arrays", root=root, image_size=32, calibrate=64)
    assert index.classes[3] == "cat"
    assert sorted(np.bincount(labels(out, "scored"))) == [333] * 7 + [334] * 3
    assert images(out, "calibrate").shape == (64, 32, 32, 3)
    assert open_images(spec, index)(0).shape == (32, 32, 3)


def test_imagenet_sample_loads_for_quantize(packs: Path) -> None:
    path = packs / "imagenet-sample-1000" / "imagenet_1000_256.npz"
    some, numbers = load_images(path, (224, 224), 3, "crop", 8, 0)
    assert some.shape == (8, 224, 224, 3)
    assert numbers is not None
    assert 60 < some.batch(0, 8).mean() < 180
