"""A user's own ONNX file as a model: scored, timed and judged like any other, and torch is never imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from command_line import edgecnn
from own_files import RECIPE, colour_net, write_desk

BLOCK = "import sys\nfor name in ('torch', 'torchvision', 'timm', 'ultralytics'):\n    sys.modules[name] = None\n"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of coloured images, a network that knows them, and its recipe."""
    return write_desk(tmp_path_factory.mktemp("own"))


def test_it_is_built_without_torch_and_has_a_verdict_page_and_baseline(desk: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BLOCK)
    environment = {**os.environ, "PYTHONPATH": str(site), "EDGECNN_CACHE": str(tmp_path / "store")}
    before = (desk / "colours.onnx").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "edgecnn", "build", "own.yaml", "--json", "--out", str(tmp_path / "runs")],
        cwd=desk, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert report["verdict"] == "pass"
    assert report["conditions"]["model"].startswith("colours (onnx, weights colours.onnx)")
    figures = {figure["name"]: figure["value"] for figure in report["figures"]}
    assert figures["reference_accuracy"] > 99
    assert figures["speedup"] is not None
    run = tmp_path / "runs" / "latest"
    assert {"report.html", "model.int8.onnx", "outcomes.npz"} <= {path.name for path in run.iterdir()}
    kept = {"EDGECNN_CACHE": str(tmp_path / "store")}
    baseline = str(tmp_path / "own.baseline.zip")
    assert edgecnn(desk, "check", str(run), "--baseline", baseline, "--update", **kept).returncode == 0
    assert edgecnn(desk, "check", str(run), "--baseline", baseline, **kept).returncode == 0
    assert (desk / "colours.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("./colours.onnx", "./none.onnx"), "none.onnx` do not exist"),
        (("image_size: 16", "image_size: 32"), "write `model.image_size: 16`"),
        (("input: range=1", 'input: "range=1,letterbox"'), "write `data.fit: letterbox`"),
        ((", input: range=1", ""), "does not say how its float input is prepared"),
        (("calibrate: 40}", "calibrate: 40, color: gray}"), "write `data.color: rgb`"),
        (("effort: fast}", "effort: fast}\ntrain: {epochs: 1}"), "`family: onnx` is not trained"),
        (("input: range=1", "normalize: unit"), "takes the file as it is"),
        (("effort: fast}", "effort: fast}\nexport: {batch: 4}"), "`family: onnx` is not exported"),
        (("input: range=1", "input: range=1, decode: yolov8"), "`model.decode` is how boxes are read"),
        (("family: onnx", "family: timm, name: resnet18"), "are for `family: onnx`"),
        ((" weights: ./colours.onnx,", ""), "give it as `weights`"),
    ],
)
def test_what_does_not_fit_is_told(desk: Path, tmp_path: Path, change: tuple[str, str], words: str) -> None:
    (desk / "other.yaml").write_text(RECIPE.replace(*change))
    done = edgecnn(desk, "build", "other.yaml", "--until", "train", EDGECNN_CACHE=str(tmp_path))
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())


@pytest.mark.parametrize("told", [True, False])
def test_a_model_of_other_classes_is_refused_before_anything_is_quantized(
    desk: Path, tmp_path: Path, told: bool
) -> None:
    model = onnx.load(str(colour_net(desk / "ten.onnx", classes=10)))
    if not told:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
        onnx.save(model, str(desk / "ten.onnx"))
    (desk / "ten.yaml").write_text(RECIPE.replace("colours.onnx", "ten.onnx"))
    done = edgecnn(desk, "build", "ten.yaml", "--until", "train", EDGECNN_CACHE=str(tmp_path))
    assert done.returncode == 2
    assert "gives 10 logits, and the data has 3 classes" in " ".join(done.stderr.split())


def test_an_oblong_input_is_told(desk: Path, tmp_path: Path) -> None:
    model = onnx.load(str(colour_net(desk / "oblong.onnx", free=True)))
    for dim, side in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], (16, 24), strict=True):
        dim.dim_value = side
    onnx.save(model, str(desk / "oblong.onnx"))
    (desk / "oblong.yaml").write_text(RECIPE.replace("colours.onnx", "oblong.onnx"))
    done = edgecnn(desk, "build", "oblong.yaml", "--until", "train", EDGECNN_CACHE=str(tmp_path))
    assert done.returncode == 2
    assert "takes images of 16 x 24, and the recipe makes 16" in " ".join(done.stderr.split())
    assert "a recipe makes square images" in " ".join(done.stderr.split())


def test_weights_in_other_files_are_refused(desk: Path, tmp_path: Path) -> None:
    whole = onnx.load(str(desk / "colours.onnx"))
    onnx.save(whole, str(desk / "split.onnx"), save_as_external_data=True, location="split.data", size_threshold=0)
    (desk / "split.yaml").write_text(RECIPE.replace("colours.onnx", "split.onnx"))
    done = edgecnn(desk, "build", "split.yaml", "--until", "train", EDGECNN_CACHE=str(tmp_path))
    assert done.returncode == 2
    assert "keeps weights in other files" in " ".join(done.stderr.split())


def test_a_free_size_becomes_the_recipes(desk: Path, tmp_path: Path) -> None:
    colour_net(desk / "free.onnx", free=True)
    (desk / "free.yaml").write_text(RECIPE.replace("colours.onnx", "free.onnx"))
    store = {"EDGECNN_CACHE": str(tmp_path)}
    done = edgecnn(desk, "build", "free.yaml", "--until", "export", "--json", **store)
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.rglob("export/*/model.onnx")
    sides = onnx.load(str(made)).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in sides[1:]] == [3, 16, 16]


def test_an_edit_of_the_file_is_another_model(desk: Path, tmp_path: Path) -> None:
    store = {"EDGECNN_CACHE": str(tmp_path)}
    (desk / "edited.yaml").write_text(RECIPE.replace("colours.onnx", "edited.onnx"))
    for producer in ("one", "another"):
        model = onnx.load(str(colour_net(desk / "edited.onnx")))
        model.producer_name = producer
        onnx.save(model, str(desk / "edited.onnx"))
        done = edgecnn(desk, "build", "edited.yaml", "--until", "export", **store)
        assert done.returncode == 0, done.stderr
    counts = [len({path.parent for path in tmp_path.rglob(f"{stage}/*/stage.json")}) for stage in ("data", "train")]
    assert counts == [1, 2]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("{0: 'red', 1: 'green', 2: 'blue'}", "the same classes in another order"),
        ("{0: 'blue', 1: 'green', 2: 'red'}", ""),
        ("{0: 'sky', 1: 'grass', 2: 'blood'}", ""),  # other words for them, perhaps
        ("{0: 'red', 2: 'green'}", ""), ("__import__('os')", ""), ("[" * 5000, ""),
    ],
)  # fmt: skip
def test_an_exporters_names_say_the_order(names: str, words: str, desk: Path, tmp_path: Path) -> None:
    model = onnx.load(str(colour_net(desk / "named.onnx")))
    onnx.helper.set_model_props(model, {"task": "classify", "stride": "1", "imgsz": "[16, 16]", "names": names})
    onnx.save(model, str(desk / "named.onnx"))
    (desk / "named.yaml").write_text(RECIPE.replace("colours.onnx", "named.onnx"))
    done = edgecnn(desk, "build", "named.yaml", "--until", "train", EDGECNN_CACHE=str(tmp_path))
    assert done.returncode == (2 if words else 0), done.stderr
    assert words in " ".join(done.stderr.split())
