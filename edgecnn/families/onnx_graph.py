"""The export's child process: torch network in, readable ONNX graph out.

torch's `dynamo` exporter does the translation and folds BatchNorm. What is ours: preprocessing inside the graph,
average pooling as one node, names that follow the torch modules, no trace of where or by what script it was exported.
"""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnxscript import opset19
from torch import nn

from edgecnn import __version__
from edgecnn.families.pooling import window
from edgecnn.families.trained import Deployed, ModelCard, deployed, read_trained
from edgecnn.process.child import Json, serve
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import current
from edgecnn.recipe.io_contract import KEY, InputContract, IoContract
from edgecnn.recipe.recipe import ExportSpec

OPSET = 19  # the first with FP16 Q/DQ, the last that TensorRT 10.3 takes
IR_VERSION = 9
INPUT = "images"
TOLERANCE = 2e-4  # of an output's largest value (at least 1): float32 sums in another order stay far below it
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Preprocessed(nn.Module):
    """A network with its preprocessing: images as fed → its outputs, normalization as one Mul and one Add."""

    def __init__(self, net: nn.Module, card: ModelCard, spec: ExportSpec) -> None:
        super().__init__()
        self.net = net
        self.nhwc = spec.input == "uint8-nhwc"
        full = 255.0 if self.nhwc else 1.0
        mean, std = (np.asarray(part, np.float64) for part in (card.normalization.mean, card.normalization.std))
        self.register_buffer("scale", torch.tensor(1 / (full * std), dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(-mean / std, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> Any:
        """uint8 (N, S, S, C) or float32 (N, C, S, S) in 0..1 → the network's outputs, a tensor or a tuple of them."""
        if self.nhwc:  # cast first: TensorRT takes a uint8 input only into a Cast
            images = images.to(torch.float32).permute(0, 3, 1, 2)
        return self.net(images * self.scale + self.shift)


def work(job: Json) -> Json:
    """Export one trained model; see `edgecnn.families.export`."""
    spec = ExportSpec.model_validate(job["spec"])
    out = Path(job["out"])
    torch.set_num_threads(1)
    trained = read_trained(Path(job["model"]))
    ready = deployed(trained)
    wrapped = Preprocessed(ready.net, trained.card, spec).eval()
    model = translate(wrapped, trained.card, spec, tuple(output.name for output in ready.outputs))
    _rename(model, set(trained.net.state_dict()))
    _clean(model)
    contract = _contract(trained.card, spec, ready)
    model.metadata_props[KEY] = contract.model_dump_json()
    proto = ir.to_proto(model)
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    onnx.checker.check_model(proto)
    (out / "model.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    _compare(out / "model.onnx", wrapped, trained.card, spec)
    return {"nodes": len(proto.graph.node)}


def _example(card: ModelCard, spec: ExportSpec, count: int) -> torch.Tensor:
    size, channels = card.image_size, card.channels
    values = np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    images = torch.from_numpy(values)
    return images if spec.input == "uint8-nhwc" else images.permute(0, 3, 1, 2).contiguous().float() / 255


def translate(
    wrapped: Preprocessed, card: ModelCard, spec: ExportSpec, outputs: tuple[str, ...] = ("logits",)
) -> ir.Model:  # fmt: skip
    """torch's exporter, BatchNorm folded, opset 19, with its own names and metadata still.

    Raises:
        EdgeError: the exporter can't translate the network.
    """
    # torch.export takes a dimension of 1 for a constant, so a dynamic batch is traced with 2.
    count = 2 if spec.batch == "dynamic" else spec.batch
    shapes = {INPUT: {0: torch.export.Dim("batch")}} if spec.batch == "dynamic" else None
    current().note(f"exporting {card.family}'s `{card.name}` to ONNX opset {OPSET}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                wrapped, (_example(card, spec, count),), dynamo=True, opset_version=OPSET, input_names=[INPUT],
                output_names=list(outputs), dynamic_shapes=shapes, optimize=True, verbose=False,
                custom_translation_table={torch.ops.aten.adaptive_avg_pool2d.default: _average_pool},
            )  # fmt: skip
    except Exception as error:
        cause = error
        while cause.__cause__ is not None and not isinstance(cause, EdgeError):
            cause = cause.__cause__  # type: ignore[assignment]  # the exporter wraps the reason several times
        if isinstance(cause, EdgeError):
            raise cause from error
        text = str(cause).strip().split("\n")[0]
        raise EdgeError(
            f"{card.family}'s `{card.name}` could not be exported to ONNX: {text}",
            "try `export.batch: 1`, or another model of the family",
        ) from error
    versions = program.model.opset_imports
    if versions.get("") != OPSET:
        raise EdgeError(f"torch exported opset {versions.get('')}, wanted {OPSET}", "install onnxscript 0.5 or newer")
    return program.model


def _average_pool(self: Any, output_size: Any) -> Any:
    """Adaptive average pooling as one node; torch's own decomposition makes some twenty, with gathers."""
    height, width = (int(size) for size in self.shape[2:])
    rows, columns = (int(size) for size in output_size)
    if (rows, columns) == (1, 1):
        return opset19.GlobalAveragePool(self)
    shape = list(window((height, width), (rows, columns)))
    return opset19.AveragePool(self, kernel_shape=shape, strides=shape)


def _rename(model: ir.Model, parameters: set[str]) -> None:
    """Name weights, nodes and values after the torch modules.

    A weighted node is called by its module (`layer1.0.conv1`), any other by module and operator (`layer1.0.add`), a
    second one of that name gets `_1`; its output is the same with `.out`.
    """
    for value in list(model.graph.initializers.values()):
        value.name = _own(str(value.name))
    named: set[str] = set()
    taken: dict[str, int] = {}
    for node in model.graph:
        path = _module_path(node)
        weights = [value for value in node.inputs if value is not None and value.is_initializer()]
        if node.op_type in WEIGHTED and weights:
            path = name = _name_weights(node, weights, path, parameters, named)
        else:
            name = f"{path}.{node.op_type.lower()}" if path else node.op_type.lower()
        count = taken.get(name, 0)
        taken[name] = count + 1
        node.name = f"{name}_{count}" if count else name
        for number, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = f"{node.name}.out{number or ''}"
        for number, value in enumerate(node.inputs):  # constants that the exporter counted: shapes, axes, paddings
            if value is not None and value.is_initializer() and re.fullmatch(r"val_\d+", str(value.name)):
                value.name = f"{node.name}.in{number}"


def _module_path(node: ir.Node) -> str:
    """Path of the torch module that a node came from; `input` for our preprocessing, empty for the network itself."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
    path = scopes[-2] if len(scopes) > 1 else ""
    return "input" if path == "" else _own(f"{path}.").removesuffix(".")


def _own(name: str) -> str:
    """A name in the network itself: without the wrappers' `net.`."""
    while name.startswith("net."):
        name = name.removeprefix("net.")
    return name


def _name_weights(node: ir.Node, weights: list[ir.Value], path: str, parameters: set[str], named: set[str]) -> str:
    """Name a node's weight and bias `<module>.weight`, `<module>.bias`; return the module's path."""
    kernel = next((value for value in weights if len(value.shape or ()) > 1), weights[0])
    if kernel.name in parameters:  # a Conv with a folded BatchNorm says the BatchNorm's path; its weight says its own
        path = str(kernel.name).rpartition(".")[0]
    taken = node.graph.initializers if node.graph is not None else {}
    for value in weights:
        wanted = f"{path}.{'weight' if value is kernel else 'bias'}"
        if value.name not in parameters | named and wanted not in taken:
            value.name = wanted
        named.add(str(value.name))
    return path


def _clean(model: ir.Model) -> None:
    """Remove stack traces, user paths and the exporter's notes: the same model is the same bytes from any folder."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "edgecnn", __version__
    model.doc_string, model.domain, model.model_version = None, None, None
    model.metadata_props.clear()
    graph = model.graph
    graph.name, graph.doc_string = "edgecnn", None
    graph.metadata_props.clear()
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None


def _contract(card: ModelCard, spec: ExportSpec, ready: Deployed) -> IoContract:
    nhwc = spec.input == "uint8-nhwc"
    return IoContract(
        task=ready.task,
        input=InputContract.model_validate(
            {
                "name": INPUT,
                "layout": "NHWC" if nhwc else "NCHW",
                "dtype": "uint8" if nhwc else "float32",
                "range": (0.0, 255.0) if nhwc else (0.0, 1.0),
                "size": (card.image_size, card.image_size),
                "channels": card.channels,
                "color": card.color,
                "fit": card.fit,
            }
        ),
        normalization=card.normalization,
        normalization_inside=True,
        outputs=ready.outputs,
        classes=card.classes,
    )


def _compare(path: Path, wrapped: Preprocessed, card: ModelCard, spec: ExportSpec) -> None:
    """Raise an EdgeError unless onnxruntime answers what torch answers, on seeded noise images."""
    images = _example(card, spec, 3 if spec.batch == "dynamic" else spec.batch)  # 3: not the traced 2
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    answers = session.run(None, {INPUT: images.numpy()})
    with torch.no_grad():
        given = wrapped(images)
    for output, answer, expected in zip(
        session.get_outputs(), answers, given if isinstance(given, tuple) else (given,), strict=True
    ):
        difference = float(np.abs(answer - expected.numpy()).max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise EdgeError(
                f"the exported ONNX file and torch give different results: {output.name} differ by {difference:.3g}",
                "report this model; `model.weights` with NaN or infinite values also does this",
            )


if __name__ == "__main__":
    serve(work)
