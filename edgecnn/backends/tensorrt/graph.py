"""An ONNX graph as the TensorRT rules look at it: types, constants and neighbours by tensor name."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper

from edgecnn.process.errors import EdgeError


@dataclass(frozen=True)
class Graph:
    """A model with shape inference done. Names are tensor names; types are onnx TensorProto numbers."""

    model: onnx.ModelProto
    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    consumers: dict[str, list[onnx.NodeProto]] = field(default_factory=lambda: defaultdict(list))
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.constants.update({one.name: one for one in self.model.graph.initializer})
        for node in self.nodes:
            self.producers.update({name: node for name in node.output if name})
            for name in dict.fromkeys(node.input):
                self.consumers[name].append(node)
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self.constants[node.output[0]] = attribute.t

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes of the main graph, in the file's order."""
        return list(self.model.graph.node)

    @property
    def opset(self) -> int:
        """Version of the default domain."""
        return max((one.version for one in self.model.opset_import if one.domain in ("", "ai.onnx")), default=1)

    @cached_property
    def types(self) -> dict[str, int]:
        """Element type of every tensor that shape inference could tell."""
        graph = self.model.graph
        found = {name: one.data_type for name, one in self.constants.items()}
        for info in (*graph.input, *graph.output, *graph.value_info):
            if info.type.tensor_type.elem_type:
                found[info.name] = info.type.tensor_type.elem_type
        return found

    def value(self, name: str) -> Any | None:
        """A constant's value as a numpy array, or None when the tensor is computed."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)


def read_graph(path: Path) -> Graph:
    """Read and shape-infer an ONNX file.

    Raises:
        EdgeError: it isn't readable ONNX.
    """
    try:
        model = onnx.load(str(path))
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # protobuf and onnx raise kinds of their own
        raise EdgeError(f"`{path}` is not a readable ONNX file: {error}", "export the model again") from error
    return Graph(model)


def label(node: onnx.NodeProto) -> str:
    """A node's name, or its first output's where it has none."""
    return node.name or (node.output[0] if node.output else node.op_type)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value, or `default`."""
    for one in node.attribute:
        if one.name == name:
            return onnx.helper.get_attribute_value(one)
    return default


def type_name(number: int) -> str:
    """`FLOAT16` for 10."""
    name: str = TensorProto.DataType.Name(number)
    return name
