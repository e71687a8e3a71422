"""What beside the graph tells a foreign model's input: an exporter's metadata, and a size for free dimensions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_zoo import FLOAT, ZOO, Foreign, N
from onnx import TensorProto, helper

from edgecnn.families.onnx.input import contract_of, free_sides, of_told_size
from edgecnn.foreign.quantize import quantize_foreign
from edgecnn.process.errors import EdgeError
from edgecnn.quantize.calibration.arrays import read_arrays
from edgecnn.recipe.load import load_device


def of_any_size(path: Path, **metadata: str) -> Path:
    """(N, 3, H, W) → (N, 4)."""
    made = Foreign().add(
        N("GlobalAveragePool", ["r"], ["p"]), N("Flatten", ["p"], ["f"]), N("MatMul", ["f", "wm"], ["y"])
    )
    made.add(wm=made.random(16, 4)).out("y", ("N", 4)).save(path)
    model = onnx.load(str(path))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", FLOAT, ["N", 3, "H", "W"]))
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))
    return path


ULTRALYTICS = {"task": "detect", "stride": "32", "imgsz": "[32, 48]", "names": "{0: 'a'}"}


@pytest.mark.parametrize("text", ["", "letterbox"])
def test_metadata_of_an_ultralytics_export_tell_the_rest(text: str, tmp_path: Path) -> None:
    contract = contract_of(of_any_size(tmp_path / "m.onnx", **ULTRALYTICS), text)
    assert (contract.input.fit, contract.input.range, contract.input.size) == ("letterbox", (0.0, 1.0), (32, 48))
    assert (contract.input.layout, contract.input.color) == ("NCHW", "rgb")


def test_what_is_told_comes_before_metadata(tmp_path: Path) -> None:
    contract = contract_of(of_any_size(tmp_path / "m.onnx", **ULTRALYTICS), "size=64,stretch,range=255")
    assert (contract.input.fit, contract.input.range, contract.input.size) == ("stretch", (0.0, 255.0), (64, 64))


@pytest.mark.parametrize(
    "size", ["__import__('os')", "[" * 500, "[1.5, 2]", "['a']", "[True, 2]", "", "0", "-1", "[32, 99999999]"]
)
def test_nonsense_in_metadata_is_no_size(size: str, tmp_path: Path) -> None:
    model = of_any_size(tmp_path / "m.onnx", **{**ULTRALYTICS, "imgsz": size})
    with pytest.raises(EdgeError, match="takes any image size, so you must give one"):
        contract_of(model, "")


@pytest.mark.parametrize("size", ["", "a", "0", "-3", "²", "1x2x3", "224x", "99999", "9" * 5000])
def test_a_typed_size_is_a_size(size: str, tmp_path: Path) -> None:
    model = of_any_size(tmp_path / "m.onnx")
    for read in (lambda text: of_told_size(model, text, tmp_path / "sized"), lambda text: contract_of(model, text)):
        with pytest.raises(EdgeError, match="is not a size in pixels"):
            read(f"range=1,size={size}")


@pytest.mark.parametrize("text", ["size=24,size=32", "letterbox,crop", "fit=crop,letterbox", "layout=chwn"])
def test_what_contradicts_itself_or_is_unknown_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=r"--input(: no| gives)") as refused:
        of_told_size(of_any_size(tmp_path / "m.onnx"), text, tmp_path / "sized")
    assert refused.value.hint


def test_a_told_size_decides_for_tensorrt_and_leaves_the_cpu_free(tmp_path: Path) -> None:
    model = of_any_size(tmp_path / "m.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 24, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    wanted = {"jetson-orin-nano": ["N", 3, 24, 24], "cpu-x86": ["N", 3, "H", "W"]}
    for device, dims in wanted.items():
        quantize_foreign(
            model, data=tmp_path / "images.npz", profile=load_device(device), images=16, ranges="minmax",
            out=tmp_path / device, preprocessing="range=1,size=24", keep_float=(), effort="fast",
        )  # fmt: skip
        for file in (tmp_path / device).glob("*.onnx"):
            shape = onnx.load(str(file)).graph.input[0].type.tensor_type.shape
            assert [dim.dim_value or dim.dim_param for dim in shape.dim] == dims


@pytest.mark.parametrize("device", ["jetson-orin-nano", "cpu-x86"])
def test_images_of_a_model_whose_input_is_fp16(device: str, tmp_path: Path) -> None:
    made = ZOO["FP16 outputs twice"]()
    model = onnx.load(str(made.save(tmp_path / "m.onnx")))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    cast = next(node for node in model.graph.node if node.op_type == "Cast")
    model.graph.node.remove(cast)
    next(node for node in model.graph.node if node.name == "first").input[0] = "x"
    onnx.save(model, str(tmp_path / "m.onnx"))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    document, _ = quantize_foreign(
        tmp_path / "m.onnx", data=tmp_path / "images.npz", profile=load_device(device), images=8, ranges="minmax",
        out=tmp_path / "out", preprocessing="range=1", keep_float=(), effort="fast",
    )  # fmt: skip
    assert document["quantize"]["sqnr_db"] > 25
    for file in (tmp_path / "out").glob("*.onnx"):
        assert onnx.load(str(file)).graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16


def test_one_number_is_no_array_of_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "feeds.npz", x=np.float32(1))
    with pytest.raises(EdgeError, match=r"array `x` of `feeds\.npz` is one number"):
        read_arrays(tmp_path / "feeds.npz")


@pytest.mark.parametrize(("text", "told"), [("mean=0,std=0", "std"), ("mean=0,std=-1", "std"), ("range=0", "range=0")])
def test_preprocessing_that_cannot_be_is_told_in_a_line(text: str, told: str, tmp_path: Path) -> None:
    path = Foreign().add(N("Conv", ["r", "w1"], ["y"])).out("y").save(tmp_path / "m.onnx")
    with pytest.raises(EdgeError, match=rf"--input is not valid: .*{told}") as error:
        contract_of(path, text)
    assert "\n" not in error.value.message


def test_a_size_to_time_a_file_with(tmp_path: Path) -> None:
    model = of_any_size(tmp_path / "m.onnx")
    with pytest.raises(EdgeError, match="takes any image size at `x`, so you must give one") as refused:
        of_told_size(model, "", tmp_path / "copy")
    assert refused.value.hint == "for example --input size=224"
    timed = of_told_size(model, "size=24x32", tmp_path / "copy")
    assert timed != model
    assert not free_sides(timed)
    exported = of_any_size(tmp_path / "u.onnx", **ULTRALYTICS)
    assert not free_sides(of_told_size(exported, "", tmp_path / "other"))


def test_damaged_files_are_not_timed(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x07 no graph")
    with pytest.raises(EdgeError, match=r"is not a readable ONNX file|holds no graph"):
        of_told_size(tmp_path / "m.onnx", "", tmp_path / "copy")
