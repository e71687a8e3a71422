"""Bad input through the command line: exit code 2, one error that says what and where, a hint, and nothing written.

Each room tests its own messages in depth; here each kind of mistake meets the real commands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.train

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
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")


class Desk:
    """A folder of good and bad files, a store, and the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "EDGECNN_CACHE": str(folder / "store"), "OMP_NUM_THREADS": "1"}

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edgecnn", *arguments], cwd=self.folder, capture_output=True, text=True,
            env={**self.environment, **environment}, timeout=120,
        )  # fmt: skip

    def refused(self, *arguments: str, says: str, hint: str, makes: str = "", **environment: str) -> str:
        """Run a command that must be refused; `makes`: the one stage that it may finish before. Answers its stderr."""
        files, stages = self.files(), self.stages()
        done = self(*arguments, **environment)
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


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = Desk(tmp_path_factory.mktemp("bad-input"))
    (desk.folder / "small.yaml").write_text(RECIPE)
    (desk.folder / "mistaken.yaml").write_text(MISTAKEN)
    (desk.folder / "contradicting.yaml").write_text(CONTRADICTING)
    profile = desk("devices", "show", "rtx-4060").stdout
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
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))


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
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, ["k"])
    dynamic = [
        helper.make_node("Reshape", ["c", "shape"], ["any"], "free"),
        helper.make_node("ReduceMean", ["any"], ["y"], "mean"),
    ]
    save("dynamic-rank", body + dynamic, shape)
    save("apart", body + end, save_as_external_data=True, location="apart.bin", size_threshold=0)
    (folder / "apart.bin").unlink()
    strange = [helper.make_node("Det", ["c"], ["d"], "strange"), helper.make_node("Flatten", ["d"], ["y"], "f")]
    save("strange", body + strange)
    (folder / "junk.onnx").write_bytes(b"hello world")


# --- the recipe ---


def test_every_mistake_of_a_file_with_its_line_and_the_nearest_name(desk: Desk) -> None:
    for command in ("build", "plan", "show"):
        told = desk.refused(command, "mistaken.yaml", says="mistaken.yaml:", hint="`edgecnn schema` lists every key")
        assert "mistaken.yaml:8: unknown key `train.epoch`; did you mean `epochs`?" in told
        assert "mistaken.yaml:6: `model.image_size` is 'big': input should be a valid integer" in told
        assert "mistaken.yaml:4: `model.family` is 'smal'; did you mean `small`?" in told
        assert "mistaken.yaml:2: `data.format` is 'image-foldr'; did you mean `image-folder`?" in told
        assert "mistaken.yaml:9: `score.metric` is 'top2'; did you mean `top5`?" in told


def test_contradicting_keys(desk: Desk) -> None:
    says = "contradicting.yaml:4: `train.distill` needs a `teacher` section"
    desk.refused("build", "contradicting.yaml", says=says, hint="edgecnn show")
    says = "--set: `quantize.images` 600 is more than `data.calibrate` 512 keeps"
    desk.refused("plan", "small.yaml", "--set", "quantize.images=600", says=says, hint="edgecnn show")


def test_programs_get_the_error_as_json(desk: Desk) -> None:
    done = desk("build", "small.yaml", "--json", "--set", "train.epoch=3")
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert answer["error"].startswith("--set: unknown key `train.epoch`; did you mean `epochs`?")
    assert answer["hint"]


@pytest.mark.parametrize("command", ["build", "plan"])
def test_unknown_device(desk: Desk, command: str) -> None:
    hint = "did you mean `cpu-x86`? valid: cpu-arm64,"
    desk.refused(command, "small.yaml", "--device", "cpu-x68", says="no device `cpu-x68`", hint=hint)
    other = ("--set", "compile_for=[jetson-orin-nan]")
    desk.refused(command, "small.yaml", *other, says="no device `jetson-orin-nan`", hint="`jetson-orin-nano`?")


@pytest.mark.parametrize("command", ["build", "plan"])
def test_unknown_small_model(desk: Desk, command: str) -> None:
    says = "`model.name`: family `small` has no model `gap-z`"
    desk.refused(command, "small.yaml", "--set", "model.name=gap-z", says=says, hint="did you mean `gap-s`")


@pytest.mark.parametrize(
    ("command", "family", "name", "nearest"),
    [("build", "timm", "resnet18s", "resnet18"), ("plan", "torchvision", "resnet-18", "resnet18")],
)
def test_unknown_library_model_is_refused_before_any_stage(
    desk: Desk, command: str, family: str, name: str, nearest: str
) -> None:
    sets = ("--set", f"model={{family: {family}, name: {name}, image_size: 32}}")
    says = f"`model.name`: family `{family}` has no model `{name}`"
    told = desk.refused(command, "small.yaml", *sets, says=says, hint=f"did you mean `{nearest}`")
    assert "running" not in told


def test_unknown_model_of_a_teacher_names_its_section(desk: Desk) -> None:
    teacher = "teacher={family: timm, name: resnet18s, image_size: 32, train: {epochs: 1}}"
    says = "`teacher.name`: family `timm` has no model `resnet18s`"
    sets = ("--set", teacher, "--set", "train.distill={method: dist}")
    desk.refused("build", "small.yaml", *sets, says=says, hint="did you mean `resnet18`")


@pytest.mark.parametrize(
    "command",
    [
        ("build", "small.yaml", "--device", "./no-int8.yaml"),
        ("plan", "small.yaml", "--device", "./no-int8.yaml"),
        ("build", "small.yaml", "--set", "compile_for=[./no-int8.yaml]"),
        ("quantize", "good.onnx", "--data", "images.npz", "--device", "./no-int8.yaml", "--out", "out"),
    ],
)
def test_int8_asked_of_a_device_without_it(desk: Desk, command: tuple[str, ...]) -> None:
    says = "INT8 is asked, but device `rtx-4060` lists only fp32, fp16"
    desk.refused(*command, says=says, hint="pick a device that lists int8")


def test_device_whose_name_is_no_file_name(desk: Desk, tmp_path: Path) -> None:
    text = (desk.folder / "no-int8.yaml").read_text()
    (tmp_path / "up.yaml").write_text(text.replace("name: rtx-4060", "name: ../up"))
    says, hint = "up.yaml:1: `name` is '../up'", "`edgecnn devices show cpu-x86`"
    desk.refused("build", "small.yaml", "--device", str(tmp_path / "up.yaml"), says=says, hint=hint)


# --- the data ---


@pytest.mark.parametrize(
    ("root", "says", "hint"),
    [
        ("./nowhere", "data folder: not found in", "`edgecnn plan RECIPE` shows this"),
        ("./empty", "empty class folder in", "remove it or put images in it"),
        ("./empty", "`bird`", "remove it or put images in it"),
        ("./one", "a classifier needs at least two classes; the training images have only: `cat`", "`data.root`"),
        ("./corrupt", "corrupt image: `dog/03.png (not an image format", "`data.skip_corrupt: true`"),
        ("./ok/missing.csv", "missing.csv` names missing files: `dog/99.png (line 25)`", "paths are relative to"),
        ("./ok/twice.csv", "twice.csv` has duplicate rows: `dog/03.png (lines 16, 25)`", "keep one row for each file"),
    ],
)
def test_data(desk: Desk, root: str, says: str, hint: str) -> None:
    format = "label-table" if root.endswith(".csv") else "image-folder"
    sets = ("--set", f"data={{format: {format}, root: {root}}}", "--set", "quantize.images=8")
    desk.refused("build", "small.yaml", *sets, says=says, hint=hint)


def test_fewer_calibration_images_than_asked_is_said_before_training(desk: Desk) -> None:
    sets = ("--set", "data={format: image-folder, root: ./ok}")
    says = "`quantize.images` asks for 16 calibration images, but there are 14"
    hint = "lower `quantize.images` to 14"
    told = desk.refused("build", "small.yaml", *sets, says=says, hint=hint, makes="data")
    assert "train: running" not in told
    quantize = (
        "quantize",
        "good.onnx",
        "--data",
        "images.npz",
        "--device",
        "cpu-x86",
        "--out",
        "out",
        "--images",
        "80",
    )
    desk.refused(*quantize, says="asks for 80 calibration images, but there are 20", hint="to 20 or give more")


# --- training and weights ---


def test_nan_loss_names_the_step(desk: Desk) -> None:
    sets = ("--set", "train.lr=1e30", "--set", "train.warmup_epochs=0")
    says = "the loss is not a number (epoch 1, step 2); no epoch was finished"
    desk.refused("build", "small.yaml", *sets, says=says, hint="lower `train.lr` (now 1e+30)")


def test_weights_whose_shapes_do_not_fit(desk: Desk, tmp_path: Path) -> None:
    from edgecnn.families import small
    from edgecnn.recipe import ModelSpec

    wide = small.create(ModelSpec(family="small", name="gap-m", image_size=8), 10, 1)
    torch.save(wide.state_dict(), tmp_path / "wide.pt")
    sets = ("--set", "train.epochs=0", "--set", f"model.weights={tmp_path / 'wide.pt'}")
    says = "don't fit the network: `features.0.0.weight` is (32, 1, 3, 3), wanted (16, 1, 3, 3)"
    desk.refused("build", "small.yaml", *sets, says=says, hint="check `model.name`, `model.width`")


class Code:
    """Pickles to a call that writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_that_is_more_than_weights_runs_only_where_it_is_trusted(desk: Desk, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "code.pt"
    torch.save({"weight": Code(mark)}, path)
    build = ("build", "small.yaml", "--set", "train.epochs=0", "--set", f"model.weights={path}")
    says = f"`{path}` is a pickle that holds more than weights: it asks for `posix.system`"
    desk.refused(*build, says=says, hint="build with --trust-weights", EDGECNN_TRUST_WEIGHTS="1")
    assert not mark.exists()  # the command's own option decides, no setting left in a shell
    says = "holds no state dict: `weight` is int, not a tensor"
    desk.refused(*build, "--trust-weights", says=says, hint="torch.save(model.state_dict()")
    assert mark.exists()


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
        ("dynamic-rank", "has a tensor of dynamic rank: `any`, made by Reshape `free`", "number of dimensions"),
        ("apart", "keeps the weights `w` in the file `apart.bin`, which is missing", "put `apart.bin` beside"),
    ],
)
def test_graphs(desk: Desk, model: str, says: str, hint: str) -> None:
    quantize = ("quantize", f"{model}.onnx", "--data", "images.npz", "--device", "cpu-x86", "--out", "out")
    desk.refused(*quantize, says=says, hint=hint)


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
        desk.refused("build", "small.yaml", "--until", "train", says=says, hint=hint, **store)
        assert not list(small.rglob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=8m", small], check=True)
        done = desk("build", "small.yaml", "--until", "train", **store)
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
