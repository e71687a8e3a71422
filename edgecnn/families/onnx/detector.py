"""Which output of a user's detector holds its boxes, and in which layout."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import current
from edgecnn.recipe.io_contract import IoContract, OutputContract
from edgecnn.recipe.load import nearest_hint
from edgecnn.tasks.detect.decode import Decoder, layout


def as_detector(model: Path, contract: IoContract, classes: tuple[str, ...], decoder: str) -> IoContract:
    """The contract of a model whose outputs are to be read as boxes: told by `decoder`, else found by their shape.

    Raises:
        EdgeError: no such layout, no output that has it, or a model of other classes.
    """
    if decoder and decoder not in get_args(Decoder):
        raise EdgeError(f"--decode: no layout `{decoder}`", nearest_hint(decoder, get_args(Decoder)))
    if contract.task == "detect":
        if decoder:
            raise EdgeError(f"`{model}` says what its outputs mean, and --decode gives another", "leave --decode out")
        if contract.nms is not None:
            raise EdgeError(
                f"`{model}` suppresses boxes itself, and its last layers are behind that", "export it with `nms: none`"
            )
        if len(contract.classes) != len(classes):
            raise EdgeError(
                f"`{model}` is of {len(contract.classes)} classes, the data of {len(classes)}", "give the data's model"
            )
        if contract.classes != classes and sorted(contract.classes) == sorted(classes):
            raise EdgeError(
                f"`{model}` and the data name the same classes in another order",
                f"bring the data's into the model's: {', '.join(contract.classes[:5])}, …",
            )
        return contract
    if contract.input.fit != "letterbox":
        raise EdgeError(f"a detector takes whole images, not `{contract.input.fit}`", "write --input …,letterbox")
    name, meaning = _found(model, contract, len(classes), decoder)
    current().note(f"`{name}` of `{model.name}` is read as {meaning}, {len(classes)} classes")
    outputs = (OutputContract(name=name, meaning=meaning),)
    return contract.model_copy(update={"task": "detect", "outputs": outputs, "classes": classes})


def _found(model: Path, contract: IoContract, classes: int, decoder: str) -> tuple[str, str]:
    """(output, layout): the only output whose shape the layout allows."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    size = contract.input.size
    shapes = {
        one.name: tuple(max(0, side.dim_value) or None for side in one.type.tensor_type.shape.dim)
        for one in graph.output
    }
    # Whoever exponentiates in the graph has decoded the sides there.
    pixels = any(node.op_type == "Exp" for node in graph.node)
    tried = (decoder,) if decoder else ("yolov8", "yolox-pixels" if pixels else "yolox")
    fitting = [
        (name, one)
        for one in tried
        for name, shape in shapes.items()
        if len(shape) == 3 and all(a in (None, b) for a, b in zip(shape[1:], layout(one, classes, size), strict=True))
    ]
    if len(fitting) == 1:
        return fitting[0]
    told = ", ".join(f"`{name}` {list(shape)}" for name, shape in shapes.items())
    wanted = "; ".join(f"{one}: (N, {', '.join(map(str, layout(one, classes, size)))})" for one in tried)
    raise EdgeError(
        f"{'no' if not fitting else 'more than one'} output of `{model}` is laid out as {' or '.join(tried)}: it has"
        f" {told}, and for {classes} classes and images of {size[0]}x{size[1]} it takes {wanted}",
        "see `edgecnn quantize --help` on --decode; the data must name the model's classes, in its order",
    )
