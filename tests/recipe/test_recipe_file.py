"""Recipe files: every mistake at once with its line, overrides, paths, packed names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecnn.process.errors import EdgeError
from edgecnn.recipe.device import DeviceProfile
from edgecnn.recipe.load import load_device, load_recipe, packed, schema
from edgecnn.recipe.recipe import Recipe
from edgecnn.recipe.yaml_file import dump_yaml

GOOD = """\
name: good
data: {format: digits, color: gray}
model: {family: small, name: gap-s, image_size: 8}
train:
  epochs: 3
device: cpu-x86
"""


def recipe(folder: Path, text: str = GOOD, name: str = "r.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def refused(path: str, *sets: str) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        load_recipe(path, sets)
    return caught.value


def test_loads_with_defaults(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path))
    assert loaded.train.epochs == 3
    assert loaded.quantize.images == 256


def test_all_mistakes_at_once_with_lines(tmp_path: Path) -> None:
    text = GOOD.replace("  epochs: 3", "  epoch: 3\n  batch: many").replace("small", "smal")
    error = refused(recipe(tmp_path, text))
    assert "r.yaml:5: unknown key `train.epoch`; did you mean `epochs`?" in error.message
    assert "r.yaml:6: `train.batch` is 'many': input should be a valid integer" in error.message
    assert "r.yaml:3: `model.family` is 'smal'; did you mean `small`?" in error.message
    assert "edgecnn schema" in error.hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("epochs: 3", "epochs: -1"), "`train.epochs` is -1: input should be greater than or equal to 0"),
        (("device: cpu-x86\n", ""), "`device` is missing"),
        (("device: cpu-x86", "device: cpu-x87"), "no device `cpu-x87`"),
        (("device: cpu-x86", "device: cpu-x86\ncompile_for: [rtx-4061]"), "no device `rtx-4061`"),
        (("format: digits", "format: digit"), "did you mean `digits`?"),
        (("epochs: 3", "epochs: 3\n  epochs: 4"), "`train.epochs` is written twice"),
        (("device: cpu-x86", "device: cpu-x86\nscore: {metric: top2}"), "did you mean `top5`?"),
        (("device: cpu-x86", "device: cpu-x86\nbudgets: {max_accuracy_drop: 0.5}"), "less than 0.5"),
        (("device: cpu-x86", "device: cpu-x86\nbudgets: {max_accuracy_drop: 1}"), "max_accuracy_drop"),
        (("color: gray", "color: gray, root: x"), "`format: digits` is built in and takes no root"),
        (("color: gray", "color: rgb"), "write `color: gray`"),
        (("epochs: 3", "epochs: 3\n  distill: {method: dist}"), "`train.distill` needs a `teacher` section"),
        (("image_size: 8", "image_size: 8, width: 2.0, family: timm"), "`model.family` is written twice"),
        (("family: small", "family: timm"), None),
        (("family: small, name: gap-s", "family: timm, width: 2.0, name: x"), "`width` is for `family: small`"),
        (("device: cpu-x86", "device: cpu-x86\nquantize: {images: 513}"), "is more than `data.calibrate` 512"),
        (("device: cpu-x86", "device: cpu-x86\nquantize: {recover: {stop_at: clipp}}"), "did you mean `clip`?"),
        (("device: cpu-x86", "device: cpu-x86\nquantize: {recover: of}"), "did you mean `off`?"),
        (("device: cpu-x86", "device: cpu-x86\nquantize: {recover: mixed}"), "write `recover: {stop_at: mixed}`"),
        (("image_size: 8", "image_size: 8, normalize: {mean: [0.5], std: [0.5, 0.5]}"), "std has 2"),
        (("image_size: 8", "image_size: 8, normalize: {mean: [0, 0, 0], std: [1, 1, 1]}"), "must have 1 numbers"),
        (("format: digits, color: gray", "format: arrays"), "`format: arrays` needs `root`"),
        (("format: digits, color: gray", "format: arrays, root: x, scored: y"), "`train` must be declared too"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, change: tuple[str, str], words: str | None) -> None:
    path = recipe(tmp_path, GOOD.replace(*change))
    if words is None:
        load_recipe(path)
    else:
        error = refused(path)
        assert words in f"{error.message} {error.hint}"


def test_teacher_and_distill_belong_together(tmp_path: Path) -> None:
    teacher = "teacher: {family: small, name: gap-m, image_size: 8}\n"
    assert "`train.distill` is not" in refused(recipe(tmp_path, GOOD + teacher)).message
    text = GOOD.replace("epochs: 3", "epochs: 0\n  distill: {method: logits}") + teacher
    assert "nothing would be trained" in refused(recipe(tmp_path, text)).message


def test_set_overrides_and_is_named_in_errors(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    assert load_recipe(path, ["train.epochs=7", "budgets.max_accuracy_drop=0.01"]).train.epochs == 7
    assert "--set: unknown key `train.epoch`" in refused(path, "train.epoch=7").message
    assert "not key=value" in refused(path, "train.epochs").message
    assert "is a value, not a section" in refused(path, "train.epochs.x=1").message


def test_device_option_replaces(tmp_path: Path) -> None:
    assert load_recipe(recipe(tmp_path), device="jetson-orin-nano").device == "jetson-orin-nano"


def test_paths_are_relative_to_the_recipe_then_to_the_data_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "w.pt").write_text("")
    (tmp_path / "here" / "local.pt").write_text("")
    text = GOOD.replace("format: digits, color: gray", "format: image-folder, root: pictures")
    monkeypatch.delenv("EDGECNN_DATA", raising=False)
    here = recipe(tmp_path / "here", text.replace("image_size: 8", "image_size: 8, weights: local.pt"))
    loaded = load_recipe(here)
    assert loaded.data.root == tmp_path / "here" / "pictures"
    assert loaded.model.weights == tmp_path / "here" / "local.pt"
    monkeypatch.setenv("EDGECNN_DATA", str(tmp_path))
    other = recipe(tmp_path / "here", text.replace("image_size: 8", "image_size: 8, weights: pack/w.pt"))
    assert load_recipe(other).model.weights == tmp_path / "pack" / "w.pt"
    name = recipe(tmp_path / "here", text.replace("image_size: 8", "image_size: 8, weights: IMAGENET1K_V1"))
    assert load_recipe(name).model.weights == "IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("text", "words"), [("[1, 2]", "has no keys"), ("a: [", "r.yaml:1: not valid YAML"), ("", "no keys")]
)
def test_not_a_recipe(tmp_path: Path, text: str, words: str) -> None:
    assert words in refused(recipe(tmp_path, text)).message


def test_unknown_recipe_offers_the_nearest() -> None:
    assert "did you mean `quickstart`?" in refused("quikstart").hint


@pytest.mark.parametrize("name", sorted(packed("recipes")))
def test_packed_recipes_load(name: str) -> None:
    assert load_recipe(name).name == name


def test_packed_devices_load_and_name_their_source() -> None:
    expected = {
        "cpu-x86", "cpu-x86-openvino", "cpu-arm64", "rtx-3060", "rtx-4060", "rtx-4090", "rtx-5090", "rtx-30-to-50",
        "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-thor",
    }  # fmt: skip
    assert set(packed("devices")) == expected
    for name in expected:
        profile = load_device(name)
        assert profile.name == name
        assert profile.source


def test_schema_is_json_and_knows_the_keys() -> None:
    document = json.loads(json.dumps(schema()))
    assert set(document["properties"]) == set(Recipe.model_fields)
    assert document["additionalProperties"] is False


def test_leaves_are_named_as_a_user_writes_them(tmp_path: Path) -> None:
    leaves = dict(load_recipe(recipe(tmp_path)).student.leaves())
    assert leaves["train.epochs"] == 3
    assert leaves["model.name"] == "gap-s"


def undescribed(schema: object) -> Iterator[str]:
    """Keys of a JSON Schema, at any depth, that say nothing about themselves."""
    if isinstance(schema, dict):
        for key, found in schema.get("properties", {}).items():
            if not found.get("description"):
                yield key
        for found in schema.values():
            yield from undescribed(found)
    elif isinstance(schema, list):
        for found in schema:
            yield from undescribed(found)


def test_every_key_is_described() -> None:
    assert list(undescribed(schema())) == []
    assert list(undescribed(DeviceProfile.model_json_schema())) == []


def test_off_is_a_word(tmp_path: Path) -> None:
    text = f"{GOOD}quantize: {{recover: off, keep_float: [no, on]}}\n"
    quantize = load_recipe(recipe(tmp_path, text)).quantize
    assert (quantize.recover, quantize.stop_at, quantize.keep_float) == ("off", "ranges", ("no", "on"))
    assert load_recipe(recipe(tmp_path), ["quantize.recover=off"]).quantize.recover == "off"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("train.epochs=true", "--set: `train.epochs` is True: input should be a valid integer"),
        ("train.epochs='3'", "--set: `train.epochs` is '3': input should be a valid integer"),
        ("train.lr=yes", "--set: `train.lr` is 'yes': input should be a valid number"),
        ("train.lr=.inf", "`--set train.lr=.inf`: the value is .inf: not a finite number"),
        ("train.lr='inf'", "--set: `train.lr` is 'inf': input should be a valid number"),
        ("budgets.max_p99_ms=false", "--set: `budgets.max_p99_ms` is False: input should be a valid number"),
        ("model.normalize={mean: [true], std: [1]}", "`model.normalize.mean` is [True]: input should be a valid"),
        ("train.seed=99999999999999999999", "not a whole number below 2^63"),
        ("bench.threads=100000", "`bench.threads` is 100000: input should be less than or equal to 1024"),
        ("compile_for=[rtx-4060, jetson-orin-nano, rtx-4060]", "`compile_for` names `rtx-4060` twice"),
        (f"name={'n' * 101}", "`name` is 'nnn"),
        ("name=2024-01-01 12:00", "`name` is '2024-01-01 12:00': string should match"),
        ('model.weights="a\\0/b"', "not a path: it holds a NUL byte"),
        ("model.weights=~no-such-user/w.pt", "r.yaml:3: `model.weights`: there is no home folder for `~no-such-user`"),
        (f"model.weights=a/{'w' * 256}.pt", "r.yaml:3: `model.weights`: `a/www"),
        (f"device={'d' * 300}", "a name in it, is too long"),
        ("model={a: &x [*x]}", "`a.0` refers to itself"),
    ],
)  # fmt: skip
def test_values_of_a_wrong_kind(tmp_path: Path, given: str, words: str) -> None:
    error = refused(recipe(tmp_path), given)
    assert words in error.message
    assert len(error.message) < 500
    assert error.hint


def test_a_packed_recipe_looks_for_data_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGECNN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10-jpeg").mkdir()
    assert load_recipe("cifar10_resnet20").data.root == tmp_path / "cifar10-jpeg"
    assert load_recipe("faces_gap").data.root == tmp_path / "data" / "faces"


def test_a_lock_is_built_as_the_recipe_that_it_locks(tmp_path: Path) -> None:
    made = load_recipe(recipe(tmp_path), ["quantize.recover=off", "train.lr=1e-5", "name='1e5'"])
    lock = {"recipe": made.model_dump(mode="json"), "stages": {}, "data_digest": "", "versions": {"numpy": "1.0"}}
    file = recipe(tmp_path, dump_yaml(lock), "recipe.lock.yaml")
    assert load_recipe(file) == made
    assert load_recipe(file, ["train.epochs=5"]).train.epochs == 5
    error = refused(recipe(tmp_path, dump_yaml(lock).replace("epochs: 3", "epochs: many"), "edited.lock.yaml"))
    assert re.search(r"edited\.lock\.yaml:\d\d: `train\.epochs` is 'many'", error.message)


def test_packed_recipes_name_their_schema_to_editors(repo: Path) -> None:
    stored = (repo / "recipes" / "recipe.schema.json").read_text()
    assert json.loads(stored) == schema(), "write it again: edgecnn schema > recipes/recipe.schema.json"
    for file in packed("recipes").values():
        assert file.read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")
