"""Every mistake in a dataset is an EdgeError that says what, where and the fix."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecnn.data.tables import read_table
from edgecnn.process.errors import EdgeError
from edgecnn.quantize.calibration.arrays import read_arrays
from edgecnn.recipe.recipe import DataSpec
from edgecnn.tasks.missing import missing
from edgecnn.tasks.prepare import prepare

Arrays = Callable[..., Path]
Picture = Callable[..., Path]


def fails(match: str, hint: str, **spec: object) -> None:
    """Preparing this raises an EdgeError of this message and hint, and writes nothing."""
    out = Path(str(spec["root"])).parent / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(EdgeError) as caught:
        prepare(out, DataSpec.model_validate(spec), 8)
    assert match in caught.value.message
    assert hint in caught.value.hint
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("format", ["image-folder", "label-table", "arrays"])
def test_missing_data_folder(tmp_path: Path, format: str) -> None:
    fails(
        f"data folder `{tmp_path / 'nowhere'}` does not exist",
        "set `data.root`",
        format=format,
        root=tmp_path / "nowhere",
    )


def test_empty_class_folder(folder: Path) -> None:
    (folder / "bird").mkdir()
    (folder / "bird" / "readme.txt").write_text("soon")
    fails("empty class folder", "remove it or put images in it", format="image-folder", root=folder)
    fails("`bird`", ".png", format="image-folder", root=folder)


def test_no_class_folders(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "flat" / "a.png")
    fails("has no class folders", "in a folder of its name", format="image-folder", root=tmp_path / "flat")
    fails("is not a folder", "one folder per class", format="image-folder", root=tmp_path / "flat" / "a.png")


def test_one_class_only(folder: Path, arrays: Arrays) -> None:
    (folder / "dog").rename(folder.parent / "dog")
    fails("have only: `cat`", "check `data.root`", format="image-folder", root=folder)
    fails("at least two classes", "", format="arrays", root=arrays(labels=np.zeros(40, int)))


def test_sets_mistaken_for_classes(folder: Path) -> None:
    (folder / "cat").rename(folder / "train")
    (folder / "dog").rename(folder / "val")
    fails("are sets, not classes: `train`, `val`", "declare them: `data.train`", format="image-folder", root=folder)


def test_corrupt_images_are_all_listed(folder: Path) -> None:
    for number in range(12):
        path = folder / "cat" / f"{number:02d}.png"
        path.write_bytes(path.read_bytes()[:100])
    (folder / "dog" / "00.png").write_bytes(b"")
    fails("13 corrupt images: `cat/00.png", "`data.skip_corrupt: true`", format="image-folder", root=folder)
    fails("`cat/09.png", "", format="image-folder", root=folder)
    fails(" and 3 more", "", format="image-folder", root=folder)


def test_one_corrupt_image_is_named_with_its_reason(folder: Path) -> None:
    (folder / "dog" / "07.png").write_bytes(b"")
    fails("corrupt image: `dog/07.png (the file is empty)`", "skip_corrupt", format="image-folder", root=folder)


def test_a_class_that_is_all_corrupt(folder: Path) -> None:
    for path in (folder / "cat").iterdir():
        path.write_bytes(b"")
    fails("every image of these classes is corrupt: `cat`", "", format="image-folder", root=folder, skip_corrupt=True)


def test_corrupt_image_in_a_blob(folder: Path, arrays: Arrays) -> None:
    contents = [path.read_bytes() for path in sorted(folder.rglob("*.png"))]
    contents[20] = contents[20][:90]
    offsets = np.cumsum([0, *map(len, contents)])
    blob = np.frombuffer(b"".join(contents), np.uint8)
    path = arrays(images=None, labels=np.arange(24) % 2, blob=blob, offsets=offsets)
    fails("corrupt image: `set.npz, image 20", "skip_corrupt", format="arrays", root=path)


def test_declared_folder_missing_or_outside(folder: Path) -> None:
    fails(
        "`data.scored: test` is missing",
        "holds `cat`, `dog`",
        format="image-folder",
        root=folder,
        train="cat",
        scored="test",
    )
    fails("`data.train: ../x` is outside", "watched", format="image-folder", root=folder, train="../x", scored="dog")


def test_scored_class_that_train_lacks(folder: Path, tmp_path: Path, picture: Picture) -> None:
    root = tmp_path / "sets"
    root.mkdir()
    folder.rename(root / "train")
    picture(root / "test" / "cat" / "a.png")
    picture(root / "test" / "fox" / "a.png")
    fails(
        "`scored` has classes that `train` does not have: `fox`", "add them to `data.train`",
        format="image-folder", root=root, train="train", scored="test",
    )  # fmt: skip


def test_sets_that_share_images(folder: Path) -> None:
    fails("`train` and `scored` share images", "disjoint", format="image-folder", root=folder, train=".", scored=".")


@pytest.fixture
def table(tmp_path: Path, picture: Picture) -> Callable[[str], Path]:
    """A folder of a.png … f.png and a label table of the given text."""
    for number, name in enumerate("abcdef"):
        picture(tmp_path / "t" / f"{name}.png", number)

    def write(text: str, name: str = "labels.csv") -> Path:
        (tmp_path / "t" / name).write_text(text)
        return tmp_path / "t"

    return write


def test_table_names_a_missing_file(table: Callable[..., Path]) -> None:
    root = table("a.png,x\nz.png,y\n")
    fails("names missing files: `z.png (line 2)`", "paths are relative to", format="label-table", root=root)


def test_a_table_of_names_whose_images_lie_in_a_folder_beside_it(table: Callable[..., Path], tmp_path: Path) -> None:
    """As competitions hand them out: `train_master.tsv` of `id` and a word of its own, the images in `train/`."""
    root = table("id\texpression\na.png\tsad\nb.png\tglad\n", "train_master.tsv")
    assert [row.label for row in read_table(root / "train_master.tsv", root)] == ["sad", "glad"]
    (root / "train").mkdir()
    for name in "ab":
        (root / f"{name}.png").rename(root / "train" / f"{name}.png")
    hint = "train/b.png` is there: write `train/` before the names"
    fails("names missing files: `a.png (line 2)`, `b.png (line 3)`", hint, format="label-table", root=root)


def test_table_with_duplicate_rows(table: Callable[..., Path]) -> None:
    root = table("file,label\na.png,x\nb.png,y\n./a.png,y\n")
    fails("has duplicate rows: `a.png (lines 2, 4)`", "keep one row", format="label-table", root=root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,x\nb.png\n", "line 2: expected 2 values, got ['b.png']"),
        ("a.png;x\n", "line 1: expected 2 values"),
        ("a.png,\n", "line 1: expected 2 values"),
        ("file,label\n", "has no rows"),
        ("../t/a.png,x\n", "names files outside"),
        ("/etc/a.png,x\n", "names files outside"),
    ],
)
def test_bad_tables(table: Callable[..., Path], text: str, message: str) -> None:
    fails(message, "", format="label-table", root=table(text))


def test_which_table_is_meant(table: Callable[..., Path]) -> None:
    root = table("a.png,x\n")
    table("b.png,x\n", "other.tsv")
    fails("must hold one label table", "set `data.root` to the table", format="label-table", root=root)
    fails("is not a label table", ".csv (comma)", format="label-table", root=root / "a.png")
    fails("names another", "set `data.root` to the folder", format="label-table", root=root / "labels.csv", train="x")


def test_tables_with_other_classes_or_shared_files(table: Callable[..., Path]) -> None:
    table("a.png,x\nb.png,y\nc.png,x\nd.png,y\n", "train.csv")
    root = table("e.png,z\n", "test.csv")
    both = {"format": "label-table", "root": root, "train": "train.csv", "scored": "test.csv"}
    fails("`scored` has classes that `train` does not have: `z`", "", **both)
    table("a.png,x\n", "test.csv")
    fails("`train` and `scored` share images: `a.png`", "must be disjoint", **both)


FLOATS = np.zeros((40, 6, 6, 3), np.float32)
BYTES = np.zeros((40, 6, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        ({"images": None}, "has no array `images`; it has labels", "`blob` and `offsets`"),
        ({"labels": None}, "has no array `labels`", "one integer class number"),
        ({"images": FLOATS}, "is float32, not uint8", "0 to 255"),
        ({"images": BYTES.transpose(0, 3, 1, 2)}, "has shape (40, 3, 6, 6)", "looks like NCHW"),
        ({"images": BYTES[..., :2]}, "has shape (40, 6, 6, 2)", "1 or 3 channels"),
        ({"labels": np.arange(39) % 4}, "has 40 images but `labels` has shape (39,)", "one label for each image"),
        ({"labels": np.arange(40) % 4 - 1}, "has the negative label -1 (image 0)", "0, 1, 2"),
        ({"labels": np.arange(40) % 4 / 2}, "is float64, not integers", "class numbers"),
        ({"labels": np.array(["cat"] * 40)}, "is <U3, not integers", "class numbers"),
        ({"labels": np.array([None] * 40)}, "cannot be read", "without Python objects"),
        ({"labels": np.arange(40) % 4 + 1}, "has no image of label `0`", "without gaps"),
        ({"names": np.array(["a", "b"])}, "labels of classes that `train` does not have: `2`, `3`", "names"),
        ({"names": np.arange(4)}, "not a list of texts", "dtype=str"),
        ({"labels": np.array([0, 1] * 19 + [2, 2])}, "too few images to split in these classes: `2 (2)`", "add images"),
        ({"images": None, "blob": np.zeros(9, np.uint8), "offsets": np.array([0, 5, 3])}, "does not cut", "never fall"),
        ({"images": None, "blob": np.zeros(9), "offsets": np.array([0, 9])}, "not uint8 bytes", "bytes"),
    ],
)  # fmt: skip
def test_bad_arrays(arrays: Arrays, keys: dict[str, object], message: str, hint: str) -> None:
    fails(message, hint, format="arrays", root=arrays(**keys))


def test_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK no")
    fails("is not an .npz file", "numpy.savez", format="arrays", root=tmp_path / "a.npz")


def test_archive_cut_inside(arrays: Arrays) -> None:
    path = arrays()
    content = dict(np.load(path))
    np.savez_compressed(path, **content)
    damaged = bytearray(path.read_bytes())
    damaged[2000:2100] = bytes(100)
    path.write_bytes(damaged)
    fails("array `images` in", "numpy.savez", format="arrays", root=path)


def test_array_sets(arrays: Arrays) -> None:
    arrays("train.npz")
    root = arrays("test.npz", labels=np.arange(40) % 6).parent
    fails(
        "labels of classes that `train` does not have: `4`, `5`",
        "",
        format="arrays",
        root=root,
        train="train.npz",
        scored="test.npz",
    )
    fails("are the same", "disjoint", format="arrays", root=root, train="train.npz", scored="train.npz")
    fails(
        "`data.train: a.npz` is missing",
        "`test.npz`, `train.npz`",
        format="arrays",
        root=root,
        train="a.npz",
        scored="test.npz",
    )
    fails("no file in it is declared", "`test.npz`, `train.npz`", format="arrays", root=root)
    fails("has no array `val_images`", "", format="arrays", root=root / "test.npz", train="val", scored="test")


def test_missing_tells_plan_without_reading(folder: Path, tmp_path: Path) -> None:
    assert missing(DataSpec(format="digits", color="gray")) == []
    assert missing(DataSpec(format="image-folder", root=folder)) == []
    nowhere = tmp_path / "nowhere"
    assert [(what, where) for what, where, _ in missing(DataSpec(format="arrays", root=nowhere))] == [
        ("data folder", str(nowhere))
    ]
    gaps = missing(DataSpec(format="image-folder", root=folder, train="cat", select="val", scored="test"))
    assert [where for _, where, _ in gaps] == [str(folder / "val"), str(folder / "test")]


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    """The beginning of a .npy file that promises an array of this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_2_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((10**12, 6, 6, 3)), "promises 108,000,000,000,000 bytes"),
        (header((2**40, 2**40, 2**40)), "promises"),
        (header((-1, 6, 6, 3)), "cannot be read"),
        (header((4, 6, 6, 3), "<U1000000000"), "promises|cannot be read"),
        (b"\x93NUMPY\x03\x00\xff\xff\xff\xff", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_arrays_whose_header_promises_too_much(tmp_path: Path, packed: int, content: bytes, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", packed) as archive:
        archive.writestr("images.npy", content)
        archive.writestr("labels.npy", header((4,)) + bytes(4))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(EdgeError, match=message):
        prepare(out, DataSpec(format="arrays", root=tmp_path / "a.npz"), 8)
    with pytest.raises(EdgeError, match=message):
        read_arrays(tmp_path / "a.npz")


def test_an_array_that_unpacks_to_more_than_the_memory(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    path = arrays()
    np.savez_compressed(path, images=np.zeros((99, 64, 64, 3), np.uint8), labels=np.arange(99) % 4)
    monkeypatch.setattr("os.sysconf", lambda name: 1 << 20 if name == "SC_PHYS_PAGES" else 1)
    fails("unpacked it takes 1,216,512 of 1,048,576 bytes", "numpy.savez", format="arrays", root=path)


@pytest.mark.parametrize("label", [10**12, 2**63])
def test_a_label_without_bounds(arrays: Arrays, label: int) -> None:
    labels = np.full(40, 1, np.uint64)
    labels[3] = label
    fails(f"has the label {label}", "class numbers end", format="arrays", root=arrays(labels=labels))


def test_members_of_an_archive_that_are_encrypted_or_no_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images", b"no ending")
        archive.writestr("../../labels.npy", b"never written anywhere")
    fails("cannot be read", "numpy.savez", format="arrays", root=tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", images=BYTES, labels=np.arange(40) % 4)
    content = bytearray((tmp_path / "b.npz").read_bytes())
    for place in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
        content[place] |= 1  # the flag of encryption
    (tmp_path / "b.npz").write_bytes(content)
    fails("cannot be read", "numpy.savez", format="arrays", root=tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.png,x\n".encode("utf-16"), ""),
        (b"a.png,x\nb.png,caf\xe9\n", "line 2: byte 0xe9 is not utf-8 text"),
        (b"a.png," + b"x" * 200_000 + b"\n", "field larger than field limit"),
        (b"a.png,x\0\n", "line 1: a NUL character"),
        (b'"a.png,x\n', "cannot be read"),
        (b"x" * 300 + b",x\n", "names missing files"),
    ],
)
def test_tables_of_other_bytes(table: Callable[..., Path], content: bytes, message: str, tmp_path: Path) -> None:
    root = table("")
    (root / "labels.csv").write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(EdgeError, match=message or "at least|needs"):  # one image is read, and one class is too few
        prepare(out, DataSpec(format="label-table", root=root), 8)
