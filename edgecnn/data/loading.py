"""Images of a `--data PATH`, for tools that are given a model and no recipe."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from edgecnn.data.archives import Archive
from edgecnn.data.checking import corrupt_error, in_order
from edgecnn.data.index import Images, Labels
from edgecnn.data.openers import ArrayImages, FileImages, Opener
from edgecnn.data.pixels import EXTENSIONS, Color, Fit, Pixels, Unreadable, fit_image
from edgecnn.data.sources import SET_NAMES, by_class
from edgecnn.data.tables import listed, read_table
from edgecnn.data.walk import images_below, say_passed
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import track
from edgecnn.store.digests import exists, is_folder


def load_images(
    path: Path, size: tuple[int, int], channels: int, fit: Fit = "crop", limit: int | None = None, seed: int = 0
) -> tuple[Images, Labels | None]:
    """Up to `limit` images of a path, in a seeded order, brought to (height, width) `size` and 1 or 3 `channels`.

    Args:
        path: a folder of images (flat, or one folder per class), a label table (.csv, .tsv, paths relative to its
            folder), or an .npz with `images` or `blob` and `offsets`, and optional `labels`.

    Returns:
        uint8 NHWC images, kept in an unnamed temporary file so that memory stays flat, and int64 class numbers
        (sorted class names, or the file's own numbers); None where the path has none.

    Raises:
        EdgeError: nothing there, no images, corrupt images (all of those chosen are listed).
    """
    if channels not in (1, 3):
        raise EdgeError(
            f"images can be read with 1 or 3 channels, not {channels}", "the model's input must be an image"
        )
    opener, labels, count = _found(path, "gray" if channels == 1 else "rgb")
    if count == 0:
        raise EdgeError(f"`{path}` has no images", "give data with at least one image")
    chosen = np.random.RandomState(seed % 2**32).permutation(count)[:limit]
    return Images((decoded(opener, chosen, size, channels, fit),)), None if labels is None else labels[chosen]


def _found(path: Path, color: Color) -> tuple[Opener, Labels | None, int]:
    if not exists(path):
        raise EdgeError(f"data path `{path}` does not exist", "give an image folder, a label table or an .npz")
    if is_folder(path):
        return _in_folder(path, color)
    match path.suffix.lower():
        case ".csv" | ".tsv":
            rows = read_table(path, path.parent)
            return (
                FileImages(path.parent, tuple(row.file for row in rows), color),
                _class_numbers([row.label for row in rows]),
                len(rows),
            )
        case ".npz":
            archive = Archive(path)
            opener = ArrayImages((archive,), color)
            count = len(opener.parts()[0])
            labelled = "labels" in set(archive.keys())
            return opener, archive.labels(count) if labelled else None, count
        case _:
            raise EdgeError(f"`{path}` is not data", "give an image folder, a label table (.csv, .tsv) or an .npz")


def _in_folder(folder: Path, color: Color) -> tuple[Opener, Labels | None, int]:
    walked = images_below(folder)
    flat = tuple(name for name in walked.files if "/" not in name)
    if flat:
        below = len(walked.files) - len(flat)
        say_passed(walked.passed + Counter({"images in folders beside the images": below}))
        return FileImages(folder, flat, color), None, len(flat)
    found, passed = by_class(folder)
    say_passed(passed)
    files = [file for inside in found.values() for file in inside]
    names = [name for name, inside in found.items() for _ in inside]
    sets = {name.lower() for name in found} <= SET_NAMES  # one level too high: these say nothing of an image's class
    if not files:
        raise EdgeError(f"`{folder}` has no images", f"looked for {listed(list(EXTENSIONS))} there and in its folders")
    return FileImages(folder, tuple(files), color), None if sets else _class_numbers(names), len(files)


def _class_numbers(names: list[str]) -> Labels:
    numeric = all(name.isdecimal() for name in names)
    order = sorted(set(names), key=lambda name: (int(name) if numeric else 0, name))
    numbers = {name: number for number, name in enumerate(order)}
    return np.array([numbers[name] for name in names], np.int64)


def decoded(opener: Opener, numbers: Labels, size: tuple[int, int], channels: int, fit: Fit) -> Pixels:
    """These images at (height, width) `size`, uint8 (N, H, W, C), in an unnamed temporary file.

    Raises:
        EdgeError: corrupt images, all of them listed; or no room for the file.
    """

    def fitted(number: int) -> Pixels | str:
        try:
            return fit_image(opener.checked(number), size, fit)
        except Unreadable as error:
            return str(error)

    corrupt: dict[int, str] = {}
    wanted = [int(number) for number in numbers]
    try:
        with tempfile.TemporaryFile() as file:
            results = track(in_order(fitted, wanted), "reading images", len(wanted))
            for number, result in zip(wanted, results, strict=True):
                if isinstance(result, str):
                    corrupt[number] = result
                else:
                    file.write(result.tobytes())
            if corrupt:
                raise corrupt_error(opener, corrupt, "repair or remove them")
            file.flush()
            return np.memmap(file, np.uint8, "r", shape=(len(wanted), *size, channels))
    except OSError as error:
        raise EdgeError(
            f"cannot keep {len(wanted)} images in `{tempfile.gettempdir()}`: {error.strerror}",
            "free space there, set TMPDIR to a roomier folder, or use fewer images",
        ) from error
