"""What prepare leaves: the index of all images, and uint8 arrays at model size for calibrate, select and scored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgecnn.data.pixels import Color, Fit, Pixels
from edgecnn.process.errors import EdgeError

Split = Literal["train", "select", "scored", "calibrate"]
Prepared = Literal["calibrate", "select", "scored"]
Labels = NDArray[np.int64]
VERSION = 1
FACTS = ("classes", "channels", "color", "fit", "image_size", "digest", "skipped")  # of an index that are in index.json
SHARD_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Index:
    """All images of a dataset, by number.

    Attributes:
        classes: names, in the order of the class numbers.
        channels: 1 or 3.
        color, fit, image_size: how images are brought to model size.
        files: path of each image relative to the data folder; None for images in arrays.
        labels: int64 (N,), class number of each image, of every split.
        splits: sorted image numbers; `train`, `select` and `scored` are disjoint. `calibrate` is the beginning of a
            seeded permutation of train, in that order. A corrupt image that was left out is in none.
        digest: hex SHA-256 of the images' stored bytes, the labels, the splits and how images are fitted.
        skipped: names of corrupt images that were left out.
    """

    classes: tuple[str, ...]
    channels: int
    color: Color
    fit: Fit
    image_size: int
    files: tuple[str | None, ...]
    labels: Labels
    splits: dict[Split, Labels]
    digest: str
    skipped: tuple[str, ...]


def write_index(out: Path, index: Index) -> None:
    """Write index.json (small facts, for people and boards) and index.npz (labels, splits, file names)."""
    facts = {
        "version": VERSION,
        **{name: getattr(index, name) for name in FACTS},
        "images": len(index.labels),
        "splits": {split: len(index.splits[split]) for split in get_args(Split)},
    }
    (out / "index.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    arrays: dict[str, NDArray[np.generic]] = {"labels": index.labels}
    arrays.update({split: index.splits[split] for split in get_args(Split)})
    if any(index.files):
        # NUL-joined bytes: numpy's fixed-width text would take the longest name's room for every name.
        names = "\0".join(name or "" for name in index.files).encode("utf-8", "surrogateescape")
        arrays["files"] = np.frombuffer(names, np.uint8)
    np.savez(out / "index.npz", **arrays)  # type: ignore[arg-type]  # the stub takes the names for allow_pickle


def read_index(path: Path) -> Index:
    """Read the index of a data artifact's folder.

    Raises:
        EdgeError: the folder has none, or one of another version.
    """
    try:
        facts = json.loads((path / "index.json").read_text(encoding="utf-8"))
        with np.load(path / "index.npz", allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise EdgeError(
            f"`{path}` holds no readable index: {error}", "prepare the data again with `edgecnn build`"
        ) from error
    if facts["version"] != VERSION:
        raise EdgeError(f"`{path / 'index.json'}` has version {facts['version']}, this edgecnn reads {VERSION}")
    files: tuple[str | None, ...] = (None,) * int(facts["images"])
    if "files" in arrays:
        files = tuple(arrays["files"].tobytes().decode("utf-8", "surrogateescape").split("\0"))
    plain: dict[str, Any] = {
        name: tuple(facts[name]) if isinstance(facts[name], list) else facts[name] for name in FACTS
    }
    splits = {split: arrays[split] for split in get_args(Split)}
    return Index(files=files, labels=arrays["labels"], splits=splits, **plain)


@dataclass(frozen=True)
class Images:
    """A sequence of uint8 (H, W, C) images over one or more arrays (N, H, W, C), mapped from disk where large."""

    shards: tuple[Pixels, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images, height, width, channels)."""
        height, width, channels = self.shards[0].shape[1:]
        return len(self), height, width, channels

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def __getitem__(self, number: int) -> Pixels:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return np.asarray(self.batch(number, number + 1)[0])

    def batch(self, start: int, stop: int) -> Pixels:
        """Images start to stop (cut at the end), uint8 NHWC, a copy in memory."""
        parts, first = [], 0
        for shard in self.shards:
            low, high = max(start - first, 0), min(stop - first, len(shard))
            if low < high:
                parts.append(shard[low:high])
            first += len(shard)
        return np.concatenate(parts) if parts else np.zeros((0, *self.shape[1:]), np.uint8)

    def batches(self, size: int) -> Iterator[Pixels]:
        """All images in order, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.batch(start, start + size)


def images(path: Path, split: Prepared) -> Images:
    """The prepared images of a split: uint8 NHWC at model size. Raises EdgeError when the folder has none."""
    shards = sorted(path.glob(f"{split}-*.npy"))
    if not shards:
        raise EdgeError(f"`{path}` has no {split} images", "prepare the data again with `edgecnn build`")
    return Images(tuple(np.load(shard, mmap_mode="r", allow_pickle=False) for shard in shards))


def labels(path: Path, split: Literal["select", "scored"]) -> Labels:
    """The class numbers of a prepared split, int64 (N,), in the order of its images."""
    try:
        return np.asarray(np.load(path / f"{split}_labels.npy", allow_pickle=False))
    except OSError as error:
        raise EdgeError(f"`{path}` has no {split} labels", "prepare the data again with `edgecnn build`") from error


def write_shards(
    out: Path, split: str, count: int, items: Iterable[Pixels], shard_bytes: int = SHARD_BYTES
) -> None:  # fmt: skip
    """Stream `count` images of one shape to `<split>-00000.npy` and on, each at most `shard_bytes` of pixels.

    Written, not mapped: on a full disk a write raises OSError where a mapped page would kill the process.
    """
    source = iter(items)
    number = done = 0
    while done < count:
        first = next(source)
        here = min(count - done, max(1, shard_bytes // first.nbytes))
        with (out / f"{split}-{number:05d}.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (here, *first.shape)}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(first.tobytes())
            for _ in range(here - 1):
                file.write(next(source).tobytes())
        number, done = number + 1, done + here
