"""The data stage: every format, the index, shards, digests and what training reads."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecnn.data import Images, Index, fit_image, images, labels, open_images, read_index
from edgecnn.data.index import write_shards
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import Plain, showing
from edgecnn.recipe.recipe import DataSpec
from edgecnn.store.stage import Store
from edgecnn.tasks.prepare import prepare, watch

Prepared = Callable[..., tuple[Path, Index, DataSpec]]
Arrays = Callable[..., Path]
Picture = Callable[..., Path]


def check_prepared(out: Path, index: Index, spec: DataSpec) -> None:
    """What holds for every format: the shards are the originals of the split, fitted, with their labels."""
    opened = pickle.loads(pickle.dumps(open_images(spec, index)))
    for split in ("calibrate", "select", "scored"):
        stored = images(out, split)
        assert stored.shape == (len(index.splits[split]), index.image_size, index.image_size, index.channels)
        for place, number in enumerate(index.splits[split][:5]):
            original = opened(int(number))
            assert original.dtype == np.uint8
            assert original.flags.writeable
            assert np.array_equal(stored[place], fit_image(original, index.image_size, index.fit))
    for split in ("select", "scored"):
        assert np.array_equal(labels(out, split), index.labels[index.splits[split]])


def test_digits(prepared: Prepared) -> None:
    out, index, spec = prepared(format="digits", color="gray")
    check_prepared(out, index, spec)
    assert index.classes == tuple("0123456789")
    assert len(index.labels) == 1797
    assert len(index.splits["scored"]) == 599
    assert images(out, "scored").batch(0, 599).max() == 255
    assert index.files[0] is None


def test_image_folder(folder: Path, prepared: Prepared) -> None:
    (folder / ".cache").mkdir()
    (folder / "cat" / "notes.txt").write_text("not an image")
    out, index, spec = prepared(format="image-folder", root=folder)
    check_prepared(out, index, spec)
    assert index.classes == ("cat", "dog")
    assert index.files[:2] == ("cat/00.png", "cat/01.png")
    assert len(index.files) == 24
    assert open_images(spec, index)(0).shape == (12, 10, 3)


def test_image_folder_with_declared_sets(folder: Path, tmp_path: Path, prepared: Prepared, picture: Picture) -> None:
    root = tmp_path / "sets"
    root.mkdir()
    folder.rename(root / "train")
    for name in ("test/dog", "val/cat", "val/dog"):
        picture(root / name / "ü.png", 5)
    out, index, spec = prepared(
        format="image-folder", root=root, train="train", select="val", scored="test", color="gray"
    )
    check_prepared(out, index, spec)
    assert [index.files[number] for number in index.splits["select"]] == ["val/cat/ü.png", "val/dog/ü.png"]
    assert labels(out, "scored").tolist() == [1]
    assert len(index.splits["train"]) == 24


def table(path: Path, rows: list[tuple[str, str]], header: str = "", delimiter: str = ",") -> Path:
    text = "".join(f"{file}{delimiter}{label}\n" for file, label in rows)
    path.write_text((header + "\n" if header else "") + text, encoding="utf-8")
    return path


FACES = [(f"faces/{number:02d}.png", str(number % 3 * 5)) for number in range(18)]


@pytest.fixture
def faces(tmp_path: Path, picture: Picture) -> Path:
    for number, (file, _) in enumerate(FACES):
        picture(tmp_path / "table" / file, number, mode="L")
    return tmp_path / "table"


@pytest.mark.parametrize(
    ("name", "header", "delimiter"), [("l.csv", "", ","), ("l.csv", "file,label", ","), ("l.tsv", "File\tLabel", "\t")]
)
@pytest.mark.parametrize("root_is_table", [False, True])
def test_label_table(
    faces: Path, prepared: Prepared, name: str, header: str, delimiter: str, root_is_table: bool
) -> None:
    path = table(faces / name, FACES, header, delimiter)
    out, index, spec = prepared(format="label-table", root=path if root_is_table else faces, color="gray")
    check_prepared(out, index, spec)
    assert index.classes == ("0", "5", "10")  # whole numbers sort as numbers
    assert index.labels[:4].tolist() == [0, 1, 2, 0]
    assert index.files == tuple(file for file, _ in FACES)


def test_label_table_with_declared_sets_and_more_columns(faces: Path, prepared: Prepared) -> None:
    (faces / "train.csv").write_text("age,label,file\n" + "".join(f"3,{label},{file}\n" for file, label in FACES[:12]))
    table(faces / "test.csv", FACES[12:])
    out, index, spec = prepared(format="label-table", root=faces, train="train.csv", scored="test.csv")
    check_prepared(out, index, spec)
    assert index.splits["scored"].tolist() == list(range(12, 18))
    assert index.channels == 3


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_pool_with_names(arrays: Arrays, prepared: Prepared, save: Callable[..., None]) -> None:
    path = arrays()
    content = dict(np.load(path))
    save(path, **content, names=np.array(["n", "e", "s", "w"]))
    out, index, spec = prepared(format="arrays", root=path, image_size=6)
    check_prepared(out, index, spec)
    assert index.classes == ("n", "e", "s", "w")
    assert np.array_equal(images(out, "scored").batch(0, 99), content["images"][index.splits["scored"]])


def test_stored_arrays_are_mapped_not_read(arrays: Arrays, prepared: Prepared) -> None:
    _, index, spec = prepared(format="arrays", root=arrays())
    opened = open_images(spec, index)
    opened(0)
    (archives,) = opened.args
    assert isinstance(archives.parts()[0].pixels, np.memmap)
    assert len(pickle.dumps(opened)) < 1000  # the pixels stay behind


def test_arrays_gray_without_channel_and_prefixes(arrays: Arrays, prepared: Prepared) -> None:
    pixels = np.random.RandomState(3).randint(0, 256, (30, 5, 5)).astype(np.uint8)
    path = arrays(
        images=None, labels=None, train_images=pixels[:24], train_labels=np.arange(24) % 2,
        test_images=pixels[24:], test_labels=np.arange(6) % 2,
    )  # fmt: skip
    out, index, spec = prepared(format="arrays", root=path, train="train", scored="test", color="gray", image_size=5)
    check_prepared(out, index, spec)
    assert np.array_equal(images(out, "scored").batch(0, 6)[..., 0], pixels[24:])
    with pytest.raises(EdgeError, match="sets named test, train"):
        prepared(format="arrays", root=path)


def blob(folder: Path, arrays: Arrays) -> Path:
    contents = [path.read_bytes() for path in sorted(folder.rglob("*.png"))]
    offsets = np.cumsum([0, *map(len, contents)]).astype(np.uint32)
    return arrays(
        images=None, labels=np.arange(24) // 12, blob=np.frombuffer(b"".join(contents), np.uint8), offsets=offsets
    )


def test_arrays_of_encoded_images(folder: Path, arrays: Arrays, prepared: Prepared) -> None:
    out, index, spec = prepared(format="arrays", root=blob(folder, arrays))
    check_prepared(out, index, spec)
    from_files = prepared(format="image-folder", root=folder)[0]
    assert (out / "scored-00000.npy").read_bytes() == (from_files / "scored-00000.npy").read_bytes()


def test_same_data_same_bytes_and_a_changed_train_image_changes_the_digest(
    folder: Path, prepared: Prepared, picture: Picture
) -> None:
    out, index, _ = prepared(format="image-folder", root=folder)
    again, _, _ = prepared(format="image-folder", root=folder)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in again.iterdir())
    for path in out.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    picture(folder / str(index.files[index.splits["train"][0]]), 999)
    _, changed, _ = prepared(format="image-folder", root=folder)
    assert changed.digest != index.digest
    assert prepared(format="image-folder", root=folder, fit="stretch")[1].digest != changed.digest


def test_index_json_is_for_people_too(folder: Path, prepared: Prepared) -> None:
    out, _, _ = prepared(format="image-folder", root=folder)
    facts = json.loads((out / "index.json").read_text())
    assert facts["classes"] == ["cat", "dog"]
    assert facts["splits"] == {"train": 14, "select": 2, "scored": 8, "calibrate": 14}


def test_corrupt_images_are_left_out_and_said(
    folder: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "cat" / "03.png").write_bytes(b"no image")
    with showing(Plain()):
        out, index, spec = prepared(format="image-folder", root=folder, skip_corrupt=True)
    assert "left out 1 corrupt image: `cat/03.png`" in capsys.readouterr().err
    assert index.skipped == ("cat/03.png",)
    assert index.files[3] == "cat/03.png"
    assert all(3 not in numbers for numbers in index.splits.values())
    check_prepared(out, index, spec)


def test_copies_between_scored_and_train_are_said(
    arrays: Arrays, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays("a.npz", seed=1)
    path = arrays("b.npz", seed=1)
    with showing(Plain()):
        prepared(format="arrays", root=path.parent, train="a.npz", scored="b.npz")
    assert "40 of 40 scored images are exact copies" in capsys.readouterr().err


def test_memory_stays_flat(tmp_path: Path, prepared: Prepared, picture: Picture) -> None:
    for number in range(160):
        picture(tmp_path / "many" / "ab"[number % 2] / f"{number}.png", number, size=(256, 256))
    tracemalloc.start()
    out, _, _ = prepared(format="image-folder", root=tmp_path / "many", image_size=256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    written = sum(path.stat().st_size for path in out.glob("*-*.npy"))
    assert written > 30e6
    assert peak < written / 2


def test_shards_are_cut_and_read_as_one(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (11, 4, 4, 3)).astype(np.uint8)
    write_shards(tmp_path, "scored", 11, iter(pixels), shard_bytes=200)  # 4 images of 48 bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"scored-0000{n}.npy" for n in range(3)]
    stored = images(tmp_path, "scored")
    assert stored.shape == (11, 4, 4, 3)
    assert np.array_equal(np.concatenate(list(stored.batches(3))), pixels)
    assert np.array_equal(stored.batch(3, 9), pixels[3:9])
    assert np.array_equal(list(stored)[10], pixels[10])
    assert stored.batch(11, 20).shape == (0, 4, 4, 3)
    assert isinstance(stored, Images)


def test_store_sees_a_changed_image_beside_a_table(faces: Path, tmp_path: Path, picture: Picture) -> None:
    spec = DataSpec(format="label-table", root=table(faces / "labels.csv", FACES), color="gray")
    store = Store(tmp_path / "store", recipe="faces")
    first = store.stage("data", prepare, spec, 8, watch(spec))
    assert store.stage("data", prepare, spec, 8, watch(spec)) == first
    picture(faces / FACES[0][0], 99, mode="L")
    second = store.stage("data", prepare, spec, 8, watch(spec))
    assert [decision.kept for decision in store.decisions] == [False, True, False]
    assert store.decisions[-1].reasons == (f"data.root: {FACES[0][0]} changed",)
    assert read_index(second.path).digest != read_index(first.path).digest


def test_store_sees_a_changed_image_in_a_linked_class_folder(folder: Path, tmp_path: Path, picture: Picture) -> None:
    (folder / "dog").rename(tmp_path / "dogs")
    (folder / "dog").symlink_to(tmp_path / "dogs")
    spec = DataSpec(format="image-folder", root=folder)
    store = Store(tmp_path / "store", recipe="pets")
    first = store.stage("data", prepare, spec, 8)
    picture(tmp_path / "dogs" / "00.png", 99)
    assert read_index(first.path).classes == ("cat", "dog")
    assert store.stage("data", prepare, spec, 8) != first


def test_an_image_that_vanishes_later_is_named(folder: Path, prepared: Prepared) -> None:
    _, index, spec = prepared(format="image-folder", root=folder)
    opened = open_images(spec, index)
    (folder / "cat" / "00.png").unlink()
    with pytest.raises(EdgeError, match=r"cannot read image `.*cat/00.png`"):
        opened(0)
    (folder / "cat" / "01.png").write_bytes((folder / "cat" / "01.png").read_bytes()[:200])
    with pytest.raises(EdgeError, match=r"corrupt image `cat/01\.png`"):
        opened(1)


def test_a_folder_without_data_is_told(tmp_path: Path) -> None:
    for read in (read_index, lambda path: images(path, "scored"), lambda path: labels(path, "scored")):
        with pytest.raises(EdgeError, match="prepare the data again"):
            read(tmp_path)
