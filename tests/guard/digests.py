"""The guard: what the quantizer writes for small graphs, and what a report says, as digests that are committed.

It promises that a change of code that is meant to move, rename or shorten leaves every result as it was: the INT8 and
the typed ONNX file of each graph of `exact_graphs` for each scheme that devices have, range method and rung of
recovery, and report.json of a classifier and of a detector without its times, versions and machine.

A digest is of what the file says (nodes, names, attributes, types, shapes, every value, the metadata but the version),
not of its bytes, so that another protobuf or onnx changes nothing. Float sums depend on a CPU's vectors; so the graphs
are exact in any order. Where that can't be had (Sigmoid, rungs that sum errors, reports), numbers are taken out of the
digest and compared beside it, each within TOLERANCE.

A change that is meant: `pytest tests/guard --renew`, and its reason goes into the commit. To see what changed:
`pytest tests/guard --texts FOLDER` before and after, and `diff -r`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from exact_graphs import GRAPHS, IMAGES, INEXACT, arrays
from onnx import numpy_helper

from edgecnn.quantize import exported_contract, quantize_model
from edgecnn.quantize.calibration.arrays import NamedArrays
from edgecnn.recipe.load import load_device
from edgecnn.recipe.recipe import QuantizeSpec

COMMITTED = Path(__file__).with_name("digests.json")
TOLERANCE = 1e-3
DEVICES = {"tensorrt": "jetson-orin-nano", "x86": "cpu-x86", "arm64": "cpu-arm64", "openvino": "cpu-x86-openvino"}
RANGES = ("minmax", "percentile", "entropy", "mse")
METADATA = "edgecnn.quantize"


def _word(value: Any) -> str:
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return "-".join(map(str, parts))


@dataclass(frozen=True)
class Case:
    """One graph through the quantizer; `exact` where every value stands in the digest."""

    graph: str
    device: str
    spec: dict[str, Any]
    exact: bool = True

    @property
    def name(self) -> str:
        return "-".join([self.graph, self.device, *(_word(value) for value in self.spec.values())])


def cases() -> Iterator[Case]:
    """Every graph for every scheme with `auto` ranges; range methods, rungs and kept layers on one graph each."""
    for device in DEVICES:
        for graph in GRAPHS:
            yield Case(graph, device, {"ranges": "auto", "recover": "off"}, graph not in INEXACT)
        for effort in ("fast", "balanced"):
            yield Case("normalized", device, {"ranges": "auto", "effort": effort}, exact=False)
        yield Case("depthwise", device, {"effort": "thorough", "recover": {"stop_at": "clip"}}, exact=False)
    for method in RANGES:
        for device in ("x86", "tensorrt"):
            yield Case("residual", device, {"ranges": method, "recover": "off"})
    yield Case("residual", "tensorrt", {"ranges": "minmax", "recover": "off", "keep_float": ["conv4"]})


class Images:
    """uint8 NHWC images, multiples of 16."""

    pixels = (np.random.default_rng(3).integers(0, 16, (IMAGES, 8, 8, 3)) * 16).astype(np.uint8)

    def __len__(self) -> int:
        return IMAGES

    def batch(self, start: int, stop: int) -> np.ndarray:
        return self.pixels[start:stop]


@dataclass(frozen=True)
class Told:
    """What a result says: lines that must be the same, and numbers by place that must be near."""

    lines: tuple[str, ...]
    numbers: dict[str, float]

    def text(self) -> str:
        """All of it, to be compared by a person."""
        return "\n".join([*self.lines, *(f"{place} {value:.4g}" for place, value in self.numbers.items())]) + "\n"

    def as_json(self) -> dict[str, Any]:
        digest = hashlib.sha256("\n".join([*self.lines, *self.numbers]).encode()).hexdigest()
        return {
            "digest": digest,
            **({"numbers": [shortened(n) for n in self.numbers.values()]} if self.numbers else {}),
        }


def shortened(number: float) -> float:
    """Four digits, which TOLERANCE needs."""
    return float(f"{number:.4g}")


def quantized(case: Case) -> dict[str, Told]:
    """`int8` and, of a scheme with FP16 islands, `typed`: the files that the quantizer writes."""
    with tempfile.TemporaryDirectory() as scratch:
        out, model = Path(scratch, "out"), Path(scratch, "model.onnx")
        out.mkdir()
        graph = GRAPHS[case.graph]()
        onnx.save(graph, str(model))
        spec = QuantizeSpec.model_validate({"images": IMAGES, **case.spec})
        scheme = load_device(DEVICES[case.device]).scheme
        if graph.graph.input[0].name == "image":
            quantize_model(out, spec, scheme, model, Images(), exported_contract(model))
        else:
            feeds = {value.name: arrays(seed=number) for number, value in enumerate(graph.graph.input)}
            quantize_model(out, spec, scheme, model, NamedArrays(feeds), None)
        files = {"int8": out / "model.onnx", "typed": out / "typed.onnx"}
        return {name: graph_told(onnx.load(str(path)), case.exact) for name, path in files.items() if path.exists()}


def graph_told(model: onnx.ModelProto, exact: bool) -> Told:
    """A file as lines: opset, nodes in order, inputs, outputs, constants, metadata."""
    lines = [f"ir {model.ir_version}", *sorted(f"opset {one.domain} {one.version}" for one in model.opset_import)]
    numbers: dict[str, float] = {}
    for node in model.graph.node:
        attributes = sorted(f"{one.name}={onnx.helper.get_attribute_value(one)!r}" for one in node.attribute)
        lines.append(f"{node.op_type} {node.name} {list(node.input)} {list(node.output)} {attributes}")
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.tensor_type
        lines.append(f"{value.name} {kind.elem_type} {[one.dim_param or one.dim_value for one in kind.shape.dim]}")
    for tensor in sorted(model.graph.initializer, key=lambda one: one.name):
        values = numpy_helper.to_array(tensor)
        line = f"{tensor.name} {tensor.data_type} {values.shape}"
        if exact or tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT64):
            line += f" {hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()}"
        else:
            numbers[tensor.name] = float(np.abs(values.astype(np.float64)).mean())
        lines.append(line)
    for prop in sorted(model.metadata_props, key=lambda one: one.key):
        document = json.loads(prop.value)
        if prop.key == METADATA:
            del document["edgecnn"]
        told = document_told(document, prop.key, exact)
        lines += told.lines
        numbers |= told.numbers
    return Told(tuple(lines), numbers)


def document_told(document: Any, place: str = "", exact: bool = False) -> Told:
    """A JSON document as lines; its floats stand beside them unless they must be exact."""
    lines: list[str] = []
    numbers: dict[str, float] = {}

    def walk(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                walk(value[key], f"{place}.{key}")
        elif isinstance(value, list):
            lines.append(f"{place}: {len(value)}")
            for number, one in enumerate(value):
                walk(one, f"{place}[{number}]")
        elif isinstance(value, float) and not exact:
            numbers[place] = value
        else:
            lines.append(f"{place}: {value!r}")

    walk(document, place)
    return Told(tuple(lines), numbers)


def differences(name: str, now: Told, then: dict[str, Any]) -> list[str]:
    """What is not as it was; empty where all is."""
    made = now.as_json()
    if made["digest"] != then["digest"]:
        return [f"{name}: the digest changed"]
    return [
        f"{name}: {place} was {before:.6g}, is {after:.6g}"
        for (place, after), before in zip(now.numbers.items(), then.get("numbers", ()), strict=True)
        if abs(after - before) > TOLERANCE * max(abs(before), 1e-6)
    ]


class Guard:
    """Compares what is told with what is committed, or takes it down to be committed."""

    def __init__(self, renew: bool, texts: Path | None) -> None:
        self.renew, self.texts = renew, texts
        self.committed = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}
        self.told: dict[str, Told] = {}

    def check(self, name: str, told: Told) -> None:
        self.told[name] = told
        if self.texts:
            self.texts.mkdir(parents=True, exist_ok=True)
            (self.texts / f"{name}.txt").write_text(told.text())
        if not self.renew:
            assert name in self.committed, f"{name} is new: run `pytest tests/guard --renew`"
            found = differences(name, told, self.committed[name])
            assert not found, "; ".join([*found[:5], "see the docstring of tests/guard/digests.py"])

    def write(self, keep: bool) -> None:
        """Commit what was told; of what wasn't, the old digests only if asked."""
        documents = (self.committed if keep else {}) | {name: told.as_json() for name, told in self.told.items()}
        rows = (f"{json.dumps(name)}: {json.dumps(documents[name])}" for name in sorted(documents))
        COMMITTED.write_text("{\n" + ",\n".join(rows) + "\n}\n")
