# ruff: noqa: E501  # a case a line
"""Hostile and damaged ONNX files: each is refused with what, where and what to do, or quantized; nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_zoo import FLOAT, ZOO, Foreign, N, branches
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_mutations import mutated_bytes, mutated_model

from edgecnn.onnx_file.check import check_onnx
from edgecnn.process.errors import EdgeError
from edgecnn.quantize.graph.canonical import canonical

BASES = ("open If", "Loop", "sequence", "computed reshape", "function", "group norm 21", "bias (1, N)", "empty inputs")
CASES = 320


def test_mutated_files_are_refused_or_taken() -> None:
    """In a process of its own, whose memory is limited: onnx and onnxruntime are C++."""
    command = [sys.executable, __file__, str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    taken, refused = (int(word) for word in done.stdout.split()[-2:])
    assert taken + refused == CASES
    assert taken > 10
    assert refused > 100


def fuzz(count: int, folder: Path) -> tuple[int, int]:
    """How many files were taken, and how many refused."""
    given = []
    (folder / "weights.bin").write_bytes(bytes(4096))
    for name in BASES:
        path = ZOO[name]().save(folder / "base.onnx")
        given.append((path.read_bytes(), onnx.load(str(path))))
    taken = refused = 0
    for seed in range(count):
        data, model = given[seed % len(given)]
        path = folder / "m.onnx"
        path.write_bytes(mutated_bytes(data, seed) if seed % 3 == 0 else mutated_model(model, seed).SerializeToString())
        try:
            canonical(path)
            taken += 1
        except EdgeError as error:
            refused += bool(error.message and error.hint)
        except BaseException:
            print("seed", seed)
            raise
    return taken, refused


# --- one of each kind ---


def model(change: Callable[[ModelProto], object], name: str = "bias (1, N)") -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        path = ZOO[name]().save(folder / "m.onnx")
        made = onnx.load(str(path))
        change(made)
        path.write_bytes(made.SerializeToString())
        return path

    return save


def outside(location: str, offset: str = "0", length: str = "") -> Callable[[Path], Path]:
    def change(made: ModelProto) -> None:
        tensor = made.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            if value:
                tensor.external_data.add(key=key, value=value)

    def save(folder: Path) -> Path:
        (folder.parent / "outside.bin").write_bytes(bytes(4096))
        inside = folder / "inside"
        inside.mkdir()
        (inside / "short.bin").write_bytes(bytes(100))
        (inside / "link.bin").symlink_to(folder.parent / "outside.bin")
        return model(change)(inside)

    return save


def huge_fill(folder: Path) -> Path:
    """ConstantOfShape of 10^10, its shape computed."""
    made = Foreign(weights={"many": np.asarray([10**5], np.int64)})
    made.add(N("Concat", ["many", "many"], ["shape"], axis=0), N("ConstantOfShape", ["shape"], ["zeros"], "fill"),
             N("ReduceMax", ["zeros"], ["zero"], keepdims=0), N("Add", ["r", "zero"], ["y"]))  # fmt: skip
    return made.out("y").save(folder / "m.onnx")


def deep(folder: Path) -> Path:
    """An If in an If in an If …"""
    node = N("Relu", ["r"], ["inner"])
    for level in range(20):
        node = branches("yes", [node], [N("Neg", ["r"], [f"other{level}"])], f"level{level}")
    node.output[0] = "y"
    made = Foreign(weights={"yes": np.asarray(True)}).add(node).out("y")
    path = folder / "m.onnx"
    x = helper.make_tensor_value_info("x", FLOAT, ["N", 3, 16, 16])
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in made.weights.items()]
    graph = helper.make_graph(made.nodes, "g", [x], made.outputs, tensors)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


def recursive(made: ModelProto) -> None:
    body = [N("F", ["a"], ["b"], domain="local")]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    made.functions.append(helper.make_function("local", "F", ["a"], ["b"], body, imports))
    made.opset_import.add(domain="local", version=1)


def strings(made: ModelProto) -> None:
    made.graph.initializer[0].ClearField("raw_data")
    made.graph.initializer[0].data_type = TensorProto.STRING


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "too few bytes": (model(lambda m: setattr(m.graph.initializer[0], "raw_data", b"1234")), r"`w0` .* holds 4 bytes of 1,728"),
    "too many bytes": (model(lambda m: setattr(m.graph.initializer[0], "raw_data", bytes(2000))), "holds 2,000 bytes of 1,728"),
    "negative size": (model(lambda m: m.graph.initializer[0].dims.append(-1)), r"has the size 16 x 3 x 3 x 3 x -1"),
    "endless size": (model(lambda m: m.graph.initializer[0].dims.append(2**62)), r"not one from 0 to"),
    "strings": (model(strings), "holds strings"),
    "unknown type": (model(lambda m: setattr(m.graph.initializer[0], "data_type", 99)), "unknown type 99"),
    "absolute place": (outside("/etc/passwd"), "which is not beside the ONNX file"),
    "place above": (outside("../outside.bin"), "which is not beside the ONNX file"),
    "link outside": (outside("link.bin"), "which is not beside the ONNX file"),
    "no place": (outside("nowhere.bin"), "in the file `nowhere.bin`, which is missing"),
    "long place": (outside("x" * 300), "no valid name"),
    "NUL in a place": (outside("a\0b"), "no valid name"),
    "bytes past the end": (outside("short.bin"), "1,728 bytes from 0 on, of 100"),
    "negative offset": (outside("short.bin", "-1"), "bytes from -1 on"),
    "offset of words": (outside("short.bin", "one"), "not a number"),
    "two opsets": (model(lambda m: m.opset_import.add(domain="", version=13)), "two opsets of ai.onnx"),
    "opset of the future": (model(lambda m: setattr(m.opset_import[0], "version", 2**62)), "edgecnn takes 11 to 23"),
    "two weights of a name": (model(lambda m: m.graph.initializer.add().CopyFrom(m.graph.initializer[0])), "two initializers called `w0`"),
    "output without a node": (model(lambda m: setattr(m.graph.output[0], "name", "no")), "not made by any node"),
    "two outputs of a name": (model(lambda m: m.graph.output.add().CopyFrom(m.graph.output[0])), "without a name of their own"),
    "node without outputs": (model(lambda m: m.graph.node[1].ClearField("output")), "no operator or no output"),
    "function of itself": (model(recursive), "`local.F` .* calls itself"),
    "wrong attribute": (model(lambda m: setattr(m.graph.node[0].attribute[0], "type", 1)), "fails the onnx checker"),
    "endless padding": (model(lambda m: m.graph.node[0].attribute[0].ints.__setitem__(0, 2**40)), r"node `first` \(Conv\) .* has the `pads` 1,099,511,627,776"),
    "input of nothing": (model(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 0)), "a dimension of 0"),
    "endless loop": (model(lambda m: setattr(next(t for t in m.graph.initializer if t.name == "turns"), "raw_data", (10**12).to_bytes(8, "little")), "Loop"), r"Loop `loop` .* runs 1,000,000,000,000 times"),
    "wrong output shape": (model(lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 7)), r"is declared as \? x 7; the graph computes \? x 24"),
    "huge fill": (huge_fill, "more than 268,435,456 elements"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_one_of_each_kind(name: str, tmp_path: Path) -> None:
    save, says = HOSTILE[name]
    path = save(tmp_path)
    with pytest.raises(EdgeError, match=says) as refused:
        check_onnx(path)
    assert refused.value.hint


@pytest.mark.parametrize("form", ["value", "value_int", "value_ints", "outside"])
def test_the_turns_of_a_loop_are_read_in_every_form(form: str, tmp_path: Path) -> None:
    def saved(turns: int) -> Path:
        made = ZOO["Loop"]()
        number = made.weights.pop("turns") * 0 + turns
        given = {"value": numpy_helper.from_array(number), "value_int": turns, "value_ints": [turns]}
        if form == "outside":
            made.weights["turns"] = number
        else:
            made.nodes.insert(0, N("Constant", [], ["turns"], **{form: given[form]}))
        path = made.save(tmp_path / "m.onnx")
        if form == "outside":
            onnx.save(onnx.load(path), path, save_as_external_data=True, location=f"{turns}.bin", size_threshold=0)
        return path

    canonical(saved(2))
    with pytest.raises(EdgeError, match=r"Loop `loop` .* runs 10,001 times"):
        check_onnx(saved(10_001))


def test_a_loop_that_ends_by_its_condition_may_be_given_any_number_of_turns(tmp_path: Path) -> None:
    """As torch writes `while`; with neither a number nor a condition it is endless."""
    made = ZOO["Loop"]()
    made.weights["turns"] = made.weights["turns"] * 0 + (2**63 - 1)
    made.weights["two"] = made.weights["turns"] * 0 + 2
    loop = next(node for node in made.nodes if node.op_type == "Loop")
    body = loop.attribute[0].g
    last = next(node for node in body.node if node.output[0] == "still")
    with pytest.raises(EdgeError, match=r"Loop `loop` .* runs 9,223,372,036,854,775,807 times"):
        check_onnx(made.save(tmp_path / "m.onnx"))
    loop.input[0] = ""
    with pytest.raises(EdgeError, match=r"Loop `loop` .* runs without end"):
        check_onnx(made.save(tmp_path / "m.onnx"))
    last.CopyFrom(N("Less", ["turn", "two"], ["still"]))
    check_onnx(made.save(tmp_path / "m.onnx"))
    loop.input[0] = "turns"
    check_onnx(made.save(tmp_path / "m.onnx"))


def test_branches_within_branches(tmp_path: Path) -> None:
    """Twenty levels, each decided: what is left is one operator."""
    left = canonical(deep(tmp_path))
    assert [node.op_type for node in left.graph] == ["Conv", "Relu", "Relu"]


def test_small_computed_shapes_are_still_folded(tmp_path: Path) -> None:
    made = Foreign(weights={"two": np.asarray([1, 16, 1, 1], np.int64)})
    made.add(N("ConstantOfShape", ["two"], ["zeros"]), N("Add", ["r", "zeros"], ["y"]))
    folded = canonical(made.out("y").save(tmp_path / "m.onnx"))
    assert "ConstantOfShape" not in {node.op_type for node in folded.graph}


if __name__ == "__main__":
    import resource
    import tempfile

    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    with tempfile.TemporaryDirectory() as scratch:
        print(*fuzz(int(sys.argv[1]), Path(scratch)))
