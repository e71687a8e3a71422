"""Reports whose every number is decided by fixed data: of artifacts made by hand, and of a build without training."""

from __future__ import annotations

import base64
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
from command_line import edgecnn
from evidence_folders import CPU, HERE, climb, evidence, recipe
from scoring import write_detections

from edgecnn.data.index import Index, write_index
from edgecnn.recipe.recipe import Recipe
from edgecnn.report import as_json
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.detect import Detections
from edgecnn.verdict.gate import judge

CELLS = ("cell", "blob")
WIDTHS = (8, 16, 32)  # of `gap-s` at half its width
DIGITS = """\
name: digits
data: {format: digits, color: gray}
model: {family: small, name: gap-s, width: 0.5, image_size: 16, normalize: half,
        weights: ./weights.safetensors}
quantize: {images: 32, effort: fast}
bench: {min_pairs: 4, min_seconds: 0.05, max_seconds: 0.1}
device: ./device.yaml
budgets: {max_accuracy_drop: 0.05, min_accuracy: 0.5}
"""
# 7-bit weights, told: the scheme is the same with VNNI and without, and 16-bit sums don't saturate.
DEVICE = """\
name: any-cpu
backend: onnxruntime
architecture: {machine}
precisions: [fp32, int8]
scheme: {{activations: uint8-asymmetric, weights: int8-per-channel-7bit, bias: int32, placement: onnxruntime}}
source: a test
"""
# The linear layer on the features of the given convolutions, fitted to the scored images by least squares: times 64.
HEAD = (
    "<N!neZU6uP^Zu9sNB>L!xd7w-MgK|wo&Nv;H~@G6)&2Va9RSAwmjD0&!TwtSlK&?E2>^8dMFA-Q5di@JwgCnJmjD0&*Z?sA(Euj^uKzv$Jpi"
    "8n=>Px#1puZ2wE#T;4giY))c^nh(EqIei~suoO8|xcM*kB4f&cjb^Zy<IV*vmF6ad`+xBqMa2LCYtkN~9rasL1S69DS}b^zc1O#t8i6#oDK)"
    "Bl?RDgf00$^TRTf&Y>J@BsS%766C;T>t<8CjoW;6#vKneg8lJ!2bgP4*viE(Eo)1vH#`&J^*?ECjbBd0|0{n1^^EK&j0BE4*yjFApjQuLI0r"
    "tNB{r;{r{!_@d0B0s{z~ph5#Y}%K!iXf&caXG66~etp8>IE&l)j8~?cf^#9iY=>IYR^Z@k#uKouAqX2gQApQUV$p1C~vj6e`5C7Qzive!{`u"
    "_j`Yyjr|Lje8%1^_Pr@c#e+k^nyds{q{o{Qr;t&;Hi_^Zo+>@&6YA!T$gN5C8lC;Qtl>1OU?jfB%{R0ssI2(f`E%p#UQQ3jovq5&r-HDFBiG"
    "Pyhe_0sxHxzX1yXIspIw{Qg=1P5uA?l>kfsNC1-mtN{Q20{{g9hyVZpnEx~Y-~GY=Jpcy)YybcN?Ev%u*8k4`3;<RD!~pXD=>Pfu4ghBV*Z="
    "?kg8z{JbN|}^ZT}7dm;aOgf&Tyi@&DQXmH__$Pyd+!_5c6?+W`6g_y1J@6adQs-~X=v-~jvoe*Pr^?Ee4&4gfU&-T#CDJ^<YS1pl!9DgXcgm"
    ";lKC!vNg>0RT?_%KrcW{QqeF`T!>Y5CB{L!v1LhyZ`$C"
)
BIAS = [219, -649, 156, -155, -346, 185, -20, 194, -409, 314]
MACHINE = (
    "run", "when", "edgecnn", "distribution", "notes", "warnings", "seconds", "hardware", "backend", "scoring",
    "reference", "judged", "latency",
)  # fmt: skip


def classifier(folder: Path) -> dict[str, Any]:
    """Ten classes, twenty layers, a climb of three rungs, budgets that pass, fail and stay undecided."""
    made = evidence(folder, images=2000, b=40, c=20, accuracy=0.92, climb=climb("held", 0.04, 0.05, 0.009))
    budgets = recipe(max_accuracy_drop=0.02, min_accuracy=0.919, min_speedup=3.0, max_p99_ms=8.0, max_size_mb=0.5)
    return timeless(json.loads(as_json(judge(budgets, CPU, HERE, made))))


def detector(folder: Path) -> dict[str, Any]:
    """Two classes on 60 images; INT8 loses some boxes and moves others."""
    made, numbers = evidence(folder, images=60, classes=CELLS), np.arange(60)
    for path in made.data.path.iterdir():
        path.unlink()
    splits = {"train": numbers[:0], "select": numbers[:0], "scored": numbers, "calibrate": numbers[:0]}
    names = tuple(f"images/{number}.jpg" for number in numbers)
    write_index(made.data.path, Index(CELLS, 3, "rgb", "letterbox", 64, names, np.zeros(60, np.int64), splits, "d", ()))
    np.save(made.data.path / "scored-00000.npy", np.full((60, 64, 64, 3), 114, np.uint8))
    boxes = np.tile(np.asarray([[10, 10, 30, 30]], np.float32), (60, 1))
    truth = Boxes(np.arange(61), boxes, numbers % 2, np.zeros(60, bool), np.full((60, 2), (40, 60), np.int32))
    truth.write(made.data.path / "scored_boxes.npz")
    asked = Recipe.model_validate({
        "name": "cells", "task": "detect", "data": {"format": "yolo", "root": "data.yaml"}, "device": "cpu-x86",
        "model": {"family": "ultralytics", "name": "yolov8n", "image_size": 64}, "score": {"metric": "map50_95"},
        "budgets": {"max_accuracy_drop": 0.1},
    })  # fmt: skip
    for artifact, int8 in ((made.reference, False), (made.before, False), (made.after, True)):
        found = Detections.joined([_found(number, int8) for number in numbers])
        write_detections(artifact.path, found, truth, CELLS, "map50_95")
    return timeless(json.loads(as_json(judge(asked, CPU, HERE, made))))


def _found(number: int, int8: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of an image: its box, in INT8 3 pixels off on every third and lost on every tenth, and one that isn't there."""
    shift = 3.0 if int8 and number % 3 == 0 else 0.0
    rows = [] if int8 and number % 10 == 0 else [([10 + shift, 10, 30 + shift, 30], 0.9 - number / 256, number % 2)]
    rows.append(([32, 10, 52, 30], 0.25 + number / 512, 1))
    boxes, scores, kinds = zip(*rows, strict=True)
    return np.asarray(boxes, np.float32), np.asarray(scores, np.float32), np.asarray(kinds, np.int64)


def digits(folder: Path) -> dict[str, Any]:
    """The quickstart's images through the command line: a network of given weights, and no training."""
    from safetensors.numpy import save_file

    save_file(_weights(), str(folder / "weights.safetensors"))
    (folder / "digits.yaml").write_text(DIGITS)
    (folder / "device.yaml").write_text(DEVICE.format(machine=platform.machine()))
    done = edgecnn(folder, "build", "digits.yaml", "--json", EDGECNN_CACHE=str(folder / "store"))
    assert done.stdout, done.stderr
    document = timeless(json.loads(done.stdout)["report"])
    document["figures"] = [
        {key: value for key, value in figure.items() if key != "conditions"}
        for figure in document["figures"]
        if figure["group"] not in ("latency", "size")
    ]
    return document


def _weights() -> dict[str, np.ndarray]:
    """Integers times a power of two for `gap-s`: its BatchNorms change nothing but by a bias."""
    random, found, before = np.random.default_rng(5), {}, 1
    for number, width in enumerate(WIDTHS):
        part = f"features.{number}"
        found[f"{part}.0.weight"] = random.integers(-4, 5, (width, before, 3, 3)) / 16
        found |= {f"{part}.1.bias": random.integers(-4, 5, width) / 8, f"{part}.1.running_mean": np.zeros(width)}
        found |= {f"{part}.1.weight": np.ones(width), f"{part}.1.running_var": np.ones(width)}
        before = width
    head = np.frombuffer(base64.b85decode("".join(HEAD)), "<i2").reshape(10, before)
    found |= {"linear.weight": head / 64, "linear.bias": np.asarray(BIAS) / 64}
    return {name: value.astype(np.float32) for name, value in found.items()}


def timeless(value: Any) -> Any:
    """A report without what tells of the run, its time and its machine."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key not in MACHINE}
    return [timeless(one) for one in value] if isinstance(value, list) else value
