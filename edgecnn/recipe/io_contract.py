"""What a model's input and outputs mean: one JSON under `edgecnn.io` in the ONNX metadata.

Written by export, read by quantize, score, bench, the board's agent and whoever ships the model, so that a mismatch
of size, layout, colour or normalization cannot happen downstream.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import Normalization, SuppressSpec, TaskName
from edgecnn.recipe.spec import Spec, describe_fault

if TYPE_CHECKING:
    import onnx

KEY = "edgecnn.io"
MOST_SIDE = 2**14  # pixels
Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]


class InputContract(Spec):
    """The image input. Values are `range[0]`..`range[1]` as fed; size is (height, width) in pixels."""

    name: str
    layout: Literal["NHWC", "NCHW"]
    dtype: Literal["uint8", "float16", "float32"]
    range: tuple[float, float]
    size: tuple[Side, Side]
    channels: Literal[1, 3]
    color: Literal["rgb", "bgr", "gray"]
    fit: Literal["crop", "stretch", "letterbox"]


class OutputContract(Spec):
    """One output: its name and what its values are."""

    name: str
    meaning: str


class IoContract(Spec):
    """The whole contract. `normalization.inside` True: the graph normalizes; False: who feeds must do it."""

    section: ClassVar[str] = "input"
    version: Literal[1] = 1
    task: TaskName
    input: InputContract
    normalization: Normalization | None
    normalization_inside: bool
    outputs: tuple[OutputContract, ...]
    classes: tuple[str, ...]
    nms: SuppressSpec | None = None  # a detector's suppression inside the graph; None: boxes and scores are raw

    def feed(self, images: Any) -> dict[str, Any]:
        """uint8 NHWC images (N, H, W, C), RGB or gray → the model's input by name, in its layout, dtype and range."""
        from edgecnn.measure.feeding import Feeding

        return Feeding.of(self.model_dump(exclude={"classes"}))(images)


def fed_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs that a user feeds: older files name their weights among them."""
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {tensor.values.name for tensor in graph.sparse_initializer}
    return [value for value in graph.input if value.name not in weights]


def read_contract(model: Path) -> IoContract | None:
    """The contract in an ONNX file's metadata, or None when the file has none.

    Raises:
        EdgeError: the file isn't ONNX, or its `edgecnn.io` does not parse.
    """
    import onnx

    try:
        loaded = onnx.load(str(model), load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds
        raise EdgeError(f"`{model}` is not a readable ONNX file: {error}", "export the model again") from error
    for prop in loaded.metadata_props:
        if prop.key == KEY:
            try:
                return IoContract.model_validate_json(prop.value)
            except ValidationError as error:
                raise EdgeError(
                    f"the `{KEY}` metadata of `{model}` is not valid: {describe_fault(error)}", "export the model again"
                ) from error
    return None
