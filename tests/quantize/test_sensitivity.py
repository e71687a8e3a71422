"""Sensitivity: the layer that was made bad on purpose is named first, and rightly as its weights or its input."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from bad_input_desk import Desk, make_graphs, make_pictures
from quantize_graphs import CPU, TENSORRT, Net, contract, pictures, residual_net

from edgecnn.foreign.sensitivity import measure_file, table
from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import install_command
from edgecnn.quantize.calibration.histogram import Histogram
from edgecnn.quantize.calibration.ranges import Grid
from edgecnn.quantize.noise.sensitivity import Sensitivity, saturation, sensitivity
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.load import load_device
from edgecnn.recipe.recipe import QuantizeSpec

IMAGES = 120
SCHEMES = pytest.mark.parametrize("scheme", [TENSORRT, CPU], ids=["tensorrt", "cpu"])


def measured(path: Path, scheme: Scheme = TENSORRT, labels: np.ndarray | None = None) -> Sensitivity:
    spec = QuantizeSpec(images=IMAGES, ranges="minmax")
    return sensitivity(path, contract(), pictures(IMAGES), scheme, spec, labels)


def chain(path: Path, *, activation: bool = False, weights: bool = False) -> Path:
    """stem → second → third → head. `activation`: the second's input has a huge channel that it doesn't read.
    `weights`: the third's weights of a channel that is always zero are huge."""
    net = Net(3)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"))
    x = net.op("Relu", net.conv(x, 16, 16, name="second"))
    x = net.op("Relu", net.conv(x, 16, 16, name="third"))
    if activation:
        change(net, "stem.bias", lambda bias: bias.put(0, 300.0))
        change(net, "second.weight", lambda weight: weight.reshape(16, 16, 9)[:, 0].fill(0.0))
    if weights:
        change(net, "second.bias", lambda bias: bias.put(0, -300.0))
        change(net, "third.weight", lambda weight: weight.reshape(16, 16, 9)[:, 0].fill(50.0))
    return net.save(path, net.head(x, 16))


def change(net: Net, name: str, edit: object) -> None:
    tensor = next(tensor for tensor in net.weights if tensor.name == name)
    array = onnx.numpy_helper.to_array(tensor).copy()
    edit(array)  # type: ignore[operator]
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


# --- the blame ---


@SCHEMES
def test_a_planted_activation_is_named_first(tmp_path: Path, scheme: Scheme) -> None:
    found = measured(chain(tmp_path / "net.onnx", activation=True), scheme)
    worst = found.rows[0]
    assert (worst.name, worst.blame) == ("second", "activation")
    assert worst.share > 0.8
    assert worst.high is not None
    assert worst.high > 299
    assert worst.weights_db is not None
    assert worst.activation_db is not None
    assert worst.weights_db > worst.activation_db + 10
    assert worst.alone_db == pytest.approx(worst.activation_db, abs=0.5)


@SCHEMES
def test_planted_weights_are_named_first(tmp_path: Path, scheme: Scheme) -> None:
    found = measured(chain(tmp_path / "net.onnx", weights=True), scheme)
    worst = found.rows[0]
    assert (worst.name, worst.blame) == ("third", "weights")
    assert worst.share > 0.8
    assert found.weights_db < found.activations_db


def test_without_a_culprit_no_layer_has_most_of_the_blame(tmp_path: Path) -> None:
    found = measured(chain(tmp_path / "net.onnx"))
    assert found.rows[0].share < 0.8
    assert sum(row.share for row in found.rows) == pytest.approx(1.0)
    assert [row.share for row in found.rows] == sorted((row.share for row in found.rows), reverse=True)
    assert 0.1 < found.explained < 10  # of one order: errors of single layers hardly interact
    assert found.rows[0].outputs_db == {"head_out": found.rows[0].alone_db}


def test_the_skip_input_of_an_add_has_its_own_row(tmp_path: Path) -> None:
    found = measured(residual_net(tmp_path / "net.onnx"))
    rows = {row.name: row for row in found.rows}
    assert set(rows) == {"stem", "first", "second", "head", "add"}
    assert (rows["add"].tensor, rows["add"].weights_db, rows["add"].blame) == ("stem_relu_out", None, "activation")
    assert sum(row.macs for row in found.rows) == pytest.approx(1.0)


def test_a_float_layer_has_its_reason_and_no_numbers(tmp_path: Path) -> None:
    path = residual_net(tmp_path / "net.onnx")
    spec = QuantizeSpec(images=8, ranges="minmax", keep_float=("stem",))
    found = sensitivity(path, contract(), pictures(8), TENSORRT, spec)
    stem = next(row for row in found.rows if row.name == "stem")
    assert (stem.why_float, stem.alone_db, stem.share) == ("kept float by the recipe", None, 0.0)
    assert "float: stem: kept float by the recipe" in table(found)


def test_each_output_has_its_own_figure(tmp_path: Path) -> None:
    """A layer behind which only one output stands makes no noise at the other."""
    net = Net(3)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"))
    net.conv(x, 8, 16, name="left")
    model = onnx.shape_inference.infer_shapes(net.model(net.conv(x, 8, 16, name="right"), rank=4))
    model.graph.output.append(onnx.helper.make_tensor_value_info("left_out", onnx.TensorProto.FLOAT, None))
    onnx.save(onnx.shape_inference.infer_shapes(model), str(tmp_path / "net.onnx"))
    rows = {row.name: row for row in measured(tmp_path / "net.onnx").rows}
    assert rows["left"].outputs_db is not None
    assert rows["left"].outputs_db["right_out"] == 200.0  # no noise at all
    assert rows["left"].outputs_db["left_out"] < 80.0


def test_saturation_counted_by_hand() -> None:
    histogram = Histogram()
    histogram.add(np.asarray([0.5] * 90 + [3.0] * 6 + [-2.5] * 4, np.float32))
    assert saturation(histogram, Grid(0.01, 0, -128, 127)) == pytest.approx(0.10)
    assert saturation(histogram, Grid(0.02, 0, -128, 127)) == pytest.approx(0.06)
    assert saturation(histogram, Grid(0.1, 0, -128, 127)) == 0.0
    assert saturation(histogram, Grid(0.1, 0, 0, 255)) == pytest.approx(0.04)
    assert saturation(Histogram(), Grid(1.0, 0, -128, 127)) == 0.0


# --- labels ---


def test_accuracy_where_there_are_labels(tmp_path: Path) -> None:
    path = residual_net(tmp_path / "net.onnx")
    labels = np.arange(IMAGES) % 4
    found = measured(path, labels=labels)
    assert found.float_top1 is not None
    assert found.top1 is not None
    assert all(row.top1 is not None for row in found.rows)
    assert "top-1" in table(found)
    assert abs(found.float_top1 - found.top1) * found.measured <= found.changed + 1e-9
    unlabelled = measured(path)
    assert unlabelled.float_top1 is None
    assert "top-1" not in table(unlabelled)


def test_labels_of_other_classes(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="class numbers 0 to 5, the model 4 classes"):
        measured(residual_net(tmp_path / "net.onnx"), labels=np.arange(IMAGES) % 6)


# --- the command ---


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    made = Desk(tmp_path_factory.mktemp("desk"))
    make_pictures(made.folder)
    make_graphs(made.folder)
    residual_net(made.folder / "float-input.onnx")
    (made.folder / "nothing").mkdir()
    profile = yaml.safe_dump(load_device("jetson-orin-nano").model_dump(mode="json"))
    (made.folder / "no-int8.yaml").write_text(profile.replace("- int8\n", ""))
    return made


def test_the_command_writes_json_and_a_plot(desk: Desk) -> None:
    done = desk("sensitivity", "good.onnx", "--data", "images.npz", "--device", "jetson-orin-nano", "--images", "16",
                "--out", "made", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((desk.folder / "made" / "sensitivity.json").read_text())
    assert document["schema_version"] == 1
    assert (document["model"], document["device"], document["images"]) == ("good.onnx", "jetson-orin-nano", 16)
    assert [row["name"] for row in document["rows"]] == ["conv"]
    assert document["float_top1"] is None
    plot = desk.folder / "made" / "sensitivity.png"
    if plot.exists():
        assert plot.read_bytes().startswith(b"\x89PNG")
    else:
        pytest.importorskip("matplotlib")
        pytest.fail("no plot, though matplotlib is here")


def test_without_matplotlib_it_says_how_to_get_the_plot(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else find(name, *more)
    )
    done = desk("sensitivity", "good.onnx", "--data", "ok", "--device", "cpu-x86", "--images", "8", "--out", "plain")
    assert done.returncode == 0, done.stderr
    assert f"no plot: it needs matplotlib, {install_command('report')}" in done.stdout
    assert "conv (Conv)" in done.stdout
    assert sorted(path.name for path in (desk.folder / "plain").iterdir()) == ["sensitivity.json"]


def test_arrays_of_any_graph_in_place_of_images(desk: Desk) -> None:
    rng = np.random.default_rng(0)
    np.savez(desk.folder / "arrays.npz", image=rng.random((8, 3, 8, 8), np.float32))
    document, text = measure_file(
        desk.folder / "float-input.onnx", data=desk.folder / "arrays.npz", device="jetson-orin-nano", images=8,
        ranges="minmax", out=desk.folder / "from-arrays", preprocessing="",
    )  # fmt: skip
    assert {row["name"] for row in document["rows"]} == {"stem", "first", "second", "head", "add"}
    assert "only weights" in text


GOOD = ("--data", "images.npz", "--device", "jetson-orin-nano", "--images", "8", "--out", "out")


@pytest.mark.parametrize(
    ("arguments", "says", "hint"),
    [
        (("absent.onnx", *GOOD), "`absent.onnx`", ""),
        (("good.onnx", *GOOD, "--data", "nothing"), "`nothing` has no images", ""),
        (("good.onnx", *GOOD, "--device", "jetson-orin-nan"), "no device `jetson-orin-nan`", "`jetson-orin-nano`?"),
    ],
)
def test_bad_input_of_the_command(desk: Desk, arguments: tuple[str, ...], says: str, hint: str) -> None:
    desk.refused("sensitivity", *arguments, says=says, hint=hint)


@pytest.mark.parametrize(
    ("model", "change", "says", "hint"),
    [
        ("junk.onnx", {}, "`.*junk.onnx`", ""),
        ("good.onnx", {"data": "absent"}, "data path `.*absent` does not exist", "give an image folder"),
        ("good.onnx", {"images": 80}, "asks for 80 calibration images, but there are 20", "to 20"),
        ("good.onnx", {"ranges": "best"}, "no range method `best`", "auto"),
        ("good.onnx", {"keep_float": ("con",)}, "`con`, which is not a node", "the nearest is `conv`"),
        ("good.onnx", {"keep_float": ("conv",)}, "every layer of the graph would stay float", "use the float model"),
        ("good.onnx", {"device": "./no-int8.yaml"}, "INT8 is asked", "a device that lists int8"),
        ("float-input.onnx", {}, "does not say how its float input is prepared", "--input mean="),
    ],
)
def test_bad_input(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, model: str, change: dict[str, object], says: str, hint: str
) -> None:
    monkeypatch.chdir(desk.folder)
    given = {"data": "images.npz", "device": "jetson-orin-nano", "images": 8, "ranges": "auto", "preprocessing": ""}
    given = {**given, **change}
    before = desk.files()
    with pytest.raises(EdgeError, match=says) as told:
        measure_file(Path(model), out=Path("out"), **{**given, "data": Path(str(given["data"]))})  # type: ignore[arg-type]
    assert hint in told.value.hint
    assert desk.files() == before


def test_outputs_without_numbers_are_refused(tmp_path: Path) -> None:
    """Noise of nothing is no 200 dB."""
    net = Net(3)
    path = net.save(tmp_path / "m.onnx", net.op("ArgMax", net.conv("image", 4, 3), axis=1), rank=4)
    model = onnx.load(str(path))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, str(path))
    with pytest.raises(EdgeError, match="no output of the graph holds numbers"):
        sensitivity(path, contract(), pictures(4), TENSORRT, QuantizeSpec(images=4, ranges="minmax"))
