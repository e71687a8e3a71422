"""A folder of good and bad files, a store, and the command line, for the tests of bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from command_line import edgecnn
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

RECIPE = """\
name: small
data: {format: digits, color: gray}
model: {family: small, name: gap-s, image_size: 8, normalize: half}
train: {epochs: 1, threads: 1, device: cpu, augment: none}
quantize: {images: 16}
device: cpu-x86
"""
MISTAKEN = """\
name: mistaken
data: {format: image-foldr, root: ok}
model:
  family: smal
  name: gap-s
  image_size: big
train:
  epoch: 3
score: {metric: top2}
device: cpu-x86
"""
CONTRADICTING = RECIPE.replace("train: {", "train: {distill: {method: dist}, ")


class Desk:
    """A folder of good and bad files, a store, and the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"EDGECNN_CACHE": str(folder / "store"), "OMP_NUM_THREADS": "1"}

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return edgecnn(self.folder, *arguments, **{**self.environment, **environment})

    def apart(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The same in a process of its own, with children of its own: what the system refuses, it refuses to them."""
        return subprocess.run(
            [sys.executable, "-m", "edgecnn", *arguments], cwd=self.folder, capture_output=True, text=True,
            env={**os.environ, **self.environment, **environment}, timeout=120,
        )  # fmt: skip

    def refused(
        self, *arguments: str, says: str, hint: str, makes: str = "", apart: bool = False, **environment: str
    ) -> str:
        """Run a command that must be refused; `makes`: the one stage that it may finish before. Answers its stderr."""
        files, stages = self.files(), self.stages()
        done = (self.apart if apart else self)(*arguments, **environment)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("error: ") == 1, done.stderr
        message, _, told_hint = done.stderr.partition("error: ")[2].partition("\nhint: ")
        assert says in message
        assert hint in told_hint
        assert told_hint.strip()
        assert done.stdout == ""
        assert self.files() == files
        assert stages <= self.stages()
        assert {folder.parent.name for folder in self.stages() - stages} <= {makes}
        partial = [path.name for folder in self.folder.glob("store/partial/*") for path in folder.iterdir()]
        assert set(partial) <= {"resume"}
        return done.stderr

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.relative_to(self.folder).parts[0] != "store")

    def stages(self) -> set[Path]:
        return set(self.folder.glob("store/stages/*/*"))


def make_desk(folder: Path) -> Desk:
    """A desk with the data stage of its good recipe made."""
    desk = Desk(folder)
    (desk.folder / "small.yaml").write_text(RECIPE)
    (desk.folder / "mistaken.yaml").write_text(MISTAKEN)
    (desk.folder / "contradicting.yaml").write_text(CONTRADICTING)
    profile = desk("devices", "show", "jetson-orin-nano").stdout
    (desk.folder / "no-int8.yaml").write_text(profile.replace("- int8\n", ""))
    make_pictures(desk.folder)
    make_graphs(desk.folder)
    assert desk("build", "small.yaml", "--until", "data").returncode == 0
    return desk


def make_pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, classes in (("ok", "cat dog"), ("empty", "cat dog"), ("one", "cat"), ("corrupt", "cat dog")):
        for label in classes.split():
            (folder / name / label).mkdir(parents=True)
            for number in range(12):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / label / f"{number:02d}.png")
    (folder / "empty" / "bird").mkdir()
    (folder / "corrupt" / "dog" / "03.png").write_bytes(b"not a picture")
    rows = [f"{label}/{number:02d}.png,{label}" for label in ("cat", "dog") for number in range(12)]
    (folder / "ok" / "missing.csv").write_text("\n".join([*rows, "dog/99.png,dog"]))
    (folder / "ok" / "twice.csv").write_text("\n".join([*rows, "dog/03.png,cat"]))
    pixels = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=pixels)
    np.savez(folder / "floats.npz", images=np.full((20, 8, 8, 3), np.nan, np.float32))
    np.savez(folder / "planes.npz", images=pixels.transpose(0, 3, 1, 2))
    numbers = rng.standard_normal((20, 8)).astype(np.float32)
    np.savez(folder / "feeds.npz", x=pixels, numbers=numbers)
    np.savez(folder / "nan.npz", x=pixels, numbers=np.where(numbers == numbers[7, 0], np.nan, numbers))


def make_graphs(folder: Path) -> None:
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32), "w")
    pixels = helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 8, 8, 3])
    body = [
        helper.make_node("Cast", ["x"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], "turn", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
    ]
    end = [helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"), helper.make_node("Flatten", ["p"], ["y"], "f")]

    def save(
        name: str, nodes: list[onnx.NodeProto], *more: onnx.ValueInfoProto, opset: int = 19, **kept: object
    ) -> None:
        inputs = list(more) if name == "no-rank" else [pixels, *more]
        answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])
        graph = helper.make_graph(nodes, "g", inputs, [answer], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        onnx.save(model, str(folder / f"{name}.onnx"), **kept)

    save("good", body + end)
    save("old", body + end, opset=9)
    save("new", body + end, opset=25)
    save("odd", [*body[:2], helper.make_node("Conv", ["planes", "w"], ["c"], "conv", nonsense=1), *end])
    save("no-rank", body + end, helper.make_tensor_value_info("x", TensorProto.UINT8, None))
    added = helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", 8])
    save("two", [*body, end[0], helper.make_node("Flatten", ["p"], ["flat"], "f"),
                 helper.make_node("Add", ["flat", "numbers"], ["y"], "add")], added)  # fmt: skip
    lost = helper.make_node("Conv", ["planes", "lost"], ["c"], "conv", pads=[1, 1, 1, 1])
    save("lost", [*body[:2], lost, *end])
    turned = helper.make_node("Cast", ["c"], ["float"], "cast", to=TensorProto.FLOAT)
    save("cycle", [turned, *body[1:], *end])
    save("apart", body + end, save_as_external_data=True, location="apart.bin", size_threshold=0)
    (folder / "apart.bin").unlink()
    strange = [helper.make_node("Det", ["c"], ["d"], "strange"), helper.make_node("Flatten", ["d"], ["y"], "f")]
    save("strange", body + strange)
    (folder / "junk.onnx").write_bytes(b"hello world")
