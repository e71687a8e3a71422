"""Bad input through the command line: exit code 2, one error that says what and where, a hint, and nothing written.

Each room tests its own messages in depth; here each kind of mistake meets the real commands.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from bad_input_desk import Desk, make_desk

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return make_desk(tmp_path_factory.mktemp("desk"))


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


def test_unknown_library_model_is_refused_before_any_stage(desk: Desk) -> None:
    sets = ("--set", "model={family: torchvision, name: resnet-18, image_size: 32}")
    says = "`model.name`: family `torchvision` has no model `resnet-18`"
    told = desk.refused("plan", "small.yaml", *sets, says=says, hint="did you mean `resnet18`")
    assert "running" not in told


def test_unknown_model_of_a_teacher_names_its_section(desk: Desk) -> None:
    teacher = "teacher={family: timm, name: resnet18s, image_size: 32, train: {epochs: 1}}"
    says = "`teacher.name`: family `timm` has no model `resnet18s`"
    sets = ("--set", teacher, "--set", "train.distill={method: dist}")
    told = desk.refused("build", "small.yaml", *sets, says=says, hint="did you mean `resnet18`")
    assert "running" not in told


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
    says = "INT8 is asked for, but device `jetson-orin-nano` lists only fp32, fp16"
    desk.refused(*command, says=says, hint="pick a device that lists int8")


def test_device_whose_name_is_no_file_name(desk: Desk, tmp_path: Path) -> None:
    text = (desk.folder / "no-int8.yaml").read_text()
    (tmp_path / "up.yaml").write_text(text.replace("name: jetson-orin-nano", "name: ../up"))
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
    # Ultralytics gives PIL another way to open images: where a test before has imported it, this one is not the user's.
    desk.refused("build", "small.yaml", *sets, says=says, hint=hint, apart=root == "./corrupt")


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
    from edgecnn.recipe.recipe import ModelSpec

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
