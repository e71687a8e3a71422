"""One walk for all readers: every real file once, none hidden, dead or special, and a word on what is passed over."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from edgecnn.data import load_images, read_index
from edgecnn.data.sources import find_source
from edgecnn.data.walk import images_below
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import Plain, showing
from edgecnn.recipe.recipe import DataSpec
from edgecnn.store.digests import Digests
from edgecnn.tasks.detect.yolo import read_yolo
from edgecnn.tasks.prepare import prepare

Picture = Callable[..., Path]
Prepared = Callable[..., tuple[Path, object, DataSpec]]


@pytest.fixture
def yolo(tmp_path: Path, picture: Picture) -> DataSpec:
    """Six labelled images in train and in val."""
    for part in ("train", "val"):
        for number in range(6):
            picture(tmp_path / "y" / "images" / part / f"{number}.png", number)
            label = tmp_path / "y" / "labels" / part / f"{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "y" / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a]\n")
    return DataSpec(format="yolo", root=tmp_path / "y")


def train_of(spec: DataSpec) -> tuple[int, int]:
    """(training images, of them without boxes)."""
    found = read_yolo(spec)
    mine = [found.images[number] for number in found.parts["train"]]
    return len(mine), sum(not image.rows for image in mine)


def test_links_in_a_circle_give_every_image_once(folder: Path) -> None:
    for number in range(2):  # two of them double the paths at every level
        (folder / "cat" / f"again{number}").symlink_to(folder / "cat")
    (folder / "cat" / "up").symlink_to(folder)
    assert len(find_source(DataSpec(format="image-folder", root=folder)).files) == 24
    assert len(load_images(folder, (8, 8), 3)[0]) == 24
    (folder / "cat" / "12.png").symlink_to(folder / "cat" / "00.png")
    assert "cat/12.png" not in images_below(folder).files
    assert images_below(folder).passed == {"linked twice": 4}


def test_a_class_that_is_another_one_is_refused(folder: Path) -> None:
    (folder / "tiger").symlink_to(folder / "cat")
    with pytest.raises(EdgeError, match=r"empty class folder.*`tiger`"):
        find_source(DataSpec(format="image-folder", root=folder))


def test_images_that_are_links_are_read(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "cat", tmp_path / "store")
    (folder / "cat").mkdir()
    for file in sorted((tmp_path / "store").iterdir())[:6]:
        (folder / "cat" / file.name).symlink_to(file)
    (folder / "cat" / "rest").symlink_to(tmp_path / "store")
    files = find_source(DataSpec(format="image-folder", root=folder)).files
    assert len(files) == 24
    assert sum(name is not None and name.startswith("cat/rest/") for name in files) == 12


def test_yolo_passes_hidden_folders_and_follows_linked_ones(yolo: DataSpec, tmp_path: Path) -> None:
    assert yolo.root
    hidden = yolo.root / "images" / "train" / ".ipynb_checkpoints"
    hidden.mkdir()
    shutil.copy(yolo.root / "images" / "train" / "0.png", hidden / "0-checkpoint.png")
    assert train_of(yolo) == (6, 0)
    for kind in ("images", "labels"):
        far = tmp_path / "far" / kind
        far.mkdir(parents=True)
        for file in sorted(p for p in (yolo.root / kind / "train").iterdir() if p.is_file())[3:]:
            shutil.move(file, far / file.name)
        (yolo.root / kind / "train" / "batch2").symlink_to(far)
    assert train_of(yolo) == (6, 0)


def test_more_endings_are_read_and_the_others_are_told(
    folder: Path, yolo: DataSpec, picture: Picture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert yolo.root
    source = Image.fromarray(np.random.RandomState(3).randint(0, 255, (8, 8, 3)).astype(np.uint8))
    source.save(folder / "cat" / "x.jfif", "JPEG")
    source.save(yolo.root / "images" / "train" / "x.jfif", "JPEG")
    taken = 25
    if features.check("avif"):
        source.save(folder / "cat" / "x.avif")
        taken += 1
    for name in ("a.heic", "b.HEIC", "notes.txt", "LICENSE", ".hidden.png"):
        (folder / "dog" / name).write_bytes(b"?")
    (yolo.root / "images" / "train" / "a.heic").write_bytes(b"?")
    picture(folder / "loose.png")
    with showing(Plain()):
        assert len(find_source(DataSpec(format="image-folder", root=folder)).files) == taken
    told = capsys.readouterr().err
    for part in ("skipped 5 files ", "2 .heic", "1 .txt", "1 without ending", "1 images outside the class folders"):
        assert part in told
    with showing(Plain()):
        assert train_of(yolo) == (7, 1)
    assert "1 .heic" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["latin-1 image", "latin-1 note", "dangling link", "circle", "pipe", "socket"])
def test_odd_names_and_files_below_the_root(
    case: str, folder: Path, tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    match case:
        case "latin-1 image":
            (folder / "dog" / "00.png").rename(folder / "dog" / "caf\udce9.png")
        case "latin-1 note":
            (folder / "caf\udce9.txt").write_text("x")
        case "dangling link":
            (folder / "cat" / "old.png").symlink_to(tmp_path / "gone.png")
        case "circle":
            (folder / "cat" / "round.png").symlink_to(folder / "cat" / "round.png")
        case "pipe":
            os.mkfifo(folder / "cat" / "pipe.png")  # reading it would wait for ever
        case "socket":
            monkeypatch.chdir(folder)
            with socket.socket(socket.AF_UNIX) as server:
                server.bind("s.png")
    digests = Digests(tmp_path / "digests.sqlite")
    before = digests.of(folder)
    out, _, data = prepared(format="image-folder", root=folder, calibrate=4)
    assert len(read_index(out).files) == 24
    Image.new("RGB", (9, 9)).save(folder / "cat" / "05.png")
    assert digests.of(folder) != before
    if case == "latin-1 image":
        (folder / "dog" / "caf\udce9.png").write_bytes(b"")
        with pytest.raises(EdgeError, match="corrupt image"):
            prepare(tmp_path / "out", data, 8)
        _, index, _ = prepared(format="image-folder", root=folder, calibrate=4, skip_corrupt=True)
        assert index.skipped == ("dog/caf\\xe9.png",)


def test_a_class_folder_whose_name_is_not_utf8_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "cat").rename(folder / "caf\udce9")
    with pytest.raises(EdgeError, match=r"not UTF-8: `caf\\xe9`"):
        prepare(tmp_path, DataSpec(format="image-folder", root=folder), 8)


def test_a_changed_target_of_a_link_is_seen(folder: Path, tmp_path: Path) -> None:
    target = shutil.move(folder / "cat" / "00.png", tmp_path / "far.png")
    (folder / "cat" / "00.png").symlink_to(target)
    digests = Digests(tmp_path / "digests.sqlite")
    before = digests.of(folder)
    Image.new("RGB", (9, 9)).save(target)
    assert digests.of(folder) != before


def test_a_pipe_or_a_name_that_cannot_be_as_root(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EdgeError, match="pipe, socket or device"):
        Digests(tmp_path / "digests.sqlite").of(tmp_path / "pipe")
    with pytest.raises(EdgeError, match="does not exist"):
        find_source(DataSpec(format="image-folder", root=tmp_path / ("x" * 300)))


def test_sets_that_are_one_folder_under_two_names_share_their_images(folder: Path, yolo: DataSpec) -> None:
    root = folder.parent / "sets"
    root.mkdir()
    folder.rename(root / "train")
    (root / "val").symlink_to(root / "train")
    with pytest.raises(EdgeError, match="`train` and `scored` share images"):
        find_source(DataSpec(format="image-folder", root=root, train="train", scored="val"))
    assert yolo.root
    shutil.rmtree(yolo.root / "images" / "val")
    (yolo.root / "images" / "val").symlink_to(yolo.root / "images" / "train")
    with pytest.raises(EdgeError, match="`train` and `scored` share images"):
        read_yolo(yolo)


def test_folders_of_sets_say_nothing_of_classes(folder: Path) -> None:
    root = folder.parent / "sets"
    root.mkdir()
    folder.rename(root / "train")
    shutil.copytree(root / "train", root / "val")
    images, labels = load_images(root, (8, 8), 3)
    assert (len(images), labels) == (48, None)
    assert load_images(root / "val", (8, 8), 3)[1] is not None
