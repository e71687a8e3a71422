"""Graphs that `quantize` refuses, and disks that are full or locked: as in test_bad_input, by the real commands."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from bad_input_desk import Desk, make_desk

pytestmark = [pytest.mark.train, pytest.mark.slow]
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return make_desk(tmp_path_factory.mktemp("desk"))


# --- graphs ---


@pytest.mark.parametrize(
    ("model", "says", "hint"),
    [
        ("nowhere", "`nowhere.onnx` does not exist", "give the path of an ONNX file"),
        ("junk", "`junk.onnx` is not a readable ONNX file", "export the model again"),
        ("odd", "fails the onnx checker: Unrecognized attribute: nonsense for operator Conv", "export the model again"),
        ("old", "`old.onnx` has opset 9 of ai.onnx; edgecnn takes 11 to 23", "export with opset 19"),
        ("new", "`new.onnx` has opset 25 of ai.onnx; edgecnn takes 11 to 23", "export with opset 19"),
        ("no-rank", "input `x` of `no-rank.onnx` has no rank", "export with a shape for every input"),
        ("lost", "node `conv` (Conv) of `lost.onnx` reads `lost`, which is not an input", "its initializer was lost"),
        ("cycle", "has a cycle: `turn` (Transpose) → `conv` (Conv) → `cast` (Cast) → `turn`", "from its inputs to"),
        ("apart", "keeps the weights `w` in the file `apart.bin`, which is missing", "put `apart.bin` beside"),
    ],
)
def test_graphs(desk: Desk, model: str, says: str, hint: str) -> None:
    quantize = ("quantize", f"{model}.onnx", "--data", "images.npz", "--device", "cpu-x86", "--out", "out")
    desk.refused(*quantize, says=says, hint=hint)


@pytest.mark.parametrize(
    ("model", "data", "says", "hint"),
    [
        ("good", "floats", "`images` in `floats.npz` is float32, not uint8", "store pixel values 0 to 255 as uint8"),
        ("good", "planes", "`images` in `planes.npz` has shape (20, 3, 8, 8)", "it looks like NCHW"),
        ("two", "images", "`images.npz` has no array `x`, which the graph takes", "`x` uint8 (*, 8, 8, 3), `numbers`"),
        ("two", "nan", "array `numbers` of `nan.npz` holds NaN or infinity in sample 7", "correct the file"),
    ],
)
def test_arrays(desk: Desk, model: str, data: str, says: str, hint: str) -> None:
    quantize = ("quantize", f"{model}.onnx", "--data", f"{data}.npz", "--device", "cpu-x86", "--images", "8")
    desk.refused(*quantize, "--out", "out", says=says, hint=hint)


def test_several_inputs_take_an_npz_with_an_array_for_each(desk: Desk, tmp_path: Path) -> None:
    quantize = ("quantize", "two.onnx", "--device", "cpu-x86", "--images", "8", "--out", str(tmp_path / "out"))
    says, hint = (
        "`two.onnx` has 2 inputs (x, numbers), and `ok` is not an .npz file",
        "one array per input, samples first",
    )
    desk.refused(*quantize, "--data", "ok", says=says, hint=hint)
    done = desk(*quantize, "--data", "feeds.npz")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["input"] == {"arrays": {"x": [20, 8, 8, 3], "numbers": [20, 8]}}
    assert report["quantize"]["sqnr_db"] > 20.0


@needs_rtx
def test_a_graph_that_the_tensorrt_parser_refuses(desk: Desk) -> None:
    quantize = ("quantize", "strange.onnx", "--data", "images.npz", "--device", "rtx-4060", "--images", "4")
    says = "parser refuses node `strange` (Det) of `typed.onnx`: UNSUPPORTED_NODE"
    desk.refused(*quantize, "--out", "out", says=says, hint="keep_float: [strange]")


@pytest.mark.parametrize(
    ("option", "says", "hint"),
    [
        (("--ranges", "mini"), "no range method `mini`", "did you mean `minmax`?"),
        (("--device", "cpu-x68"), "no device `cpu-x68`", "did you mean `cpu-x86`?"),
        (("--data", "nowhere"), "data path `nowhere` does not exist", "give an image folder"),
        (("--input", "maen=0.5"), "--input has no `maen`", "did you mean `mean`?"),
    ],
)
def test_options_of_quantize(desk: Desk, option: tuple[str, str], says: str, hint: str) -> None:
    options = {"--data": "images.npz", "--device": "cpu-x86", "--out": "out", option[0]: option[1]}
    desk.refused("quantize", "good.onnx", *(text for pair in options.items() for text in pair), says=says, hint=hint)


# --- disks ---


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs at `folder`: the kernel's own ENOSPC and EROFS, for root too."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk_during_training(desk: Desk, tmp_path: Path) -> None:
    with disk(tmp_path / "small", "size=350k") as small:
        store = {"EDGECNN_CACHE": str(small / "store")}
        says, hint = "the disk is full while making `train`: ", f"free space on the disk of `{small / 'store'}`"
        desk.refused("build", "small.yaml", "--until", "train", says=says, hint=hint, apart=True, **store)
        assert not list(small.rglob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=8m", small], check=True)
        done = desk.apart("build", "small.yaml", "--until", "train", **store)
        assert done.returncode == 0, done.stderr
        assert "data: kept" in done.stderr


def test_full_disk_in_a_stage_of_the_main_process(desk: Desk, tmp_path: Path) -> None:
    with disk(tmp_path / "small", "size=96k") as small:
        says, hint = "the disk is full while making `data`: ", "finished stages are kept"
        desk.refused("build", "small.yaml", says=says, hint=hint, EDGECNN_CACHE=str(small / "store"))
        assert not list(small.glob("store/stages/*/*"))


def test_read_only_output_folder(desk: Desk, tmp_path: Path) -> None:
    with disk(tmp_path / "locked", "ro") as locked:
        says, hint = f"cannot write to the output folder `{locked}/runs`: Read-only file system", "choose another"
        desk.refused("build", "small.yaml", "--out", f"{locked}/runs", says=says, hint=hint)
        quantize = ("quantize", "good.onnx", "--data", "images.npz", "--device", "cpu-x86", "--out", f"{locked}/runs")
        desk.refused(*quantize, says=says, hint=hint)
        store = f"{locked}/store"
        says = f"cannot write to the store `{store}`: Read-only file system"
        desk.refused("build", "small.yaml", says=says, hint="set EDGECNN_CACHE", EDGECNN_CACHE=store)


def test_output_folder_that_is_a_file(desk: Desk) -> None:
    says = "cannot write to the output folder `small.yaml/runs`"
    desk.refused("build", "small.yaml", "--out", "small.yaml/runs", says=says, hint="choose another with --out")
