"""A user's own ONNX file as a model: taken as it is, neither trained nor exported here. torch is not needed."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgecnn.data.index import Index, read_index
from edgecnn.families.onnx.detector import as_detector
from edgecnn.families.onnx.input import classes_of_exporter, contract_of, fixed, image_shapes
from edgecnn.onnx_file import check_onnx
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import KEY, IoContract, OutputContract
from edgecnn.recipe.recipe import DataSpec, ModelSpec

FILE = "model.onnx"


def take(out: Path, model: ModelSpec, images: DataSpec, data: Path) -> None:
    """Write the file as `model.onnx` with its contract as metadata (`edgecnn.io`): what its input and outputs mean.

    A height and width that the graph leaves free become `model.image_size`.

    Args:
        data: the data stage's folder, whose classes the model answers.

    Raises:
        EdgeError: no such file, or one that can't be quantized; its input isn't told, or it does not fit the images or
            the classes.
    """
    file = Path(model.weights or "")
    if not file.is_file():
        raise EdgeError(f"`{model.section}.weights`: no file `{file}`", "give the path of an ONNX file")
    check_onnx(file)
    _refuse_beside(file)
    index = read_index(data)
    given, side = file, model.image_size
    contract = contract_of(file, model.input or "", images.fit, (side, side))
    _check_images(file, contract, images, side)
    _check_order(file, classes_of_exporter(file), index.classes)
    if images.task == "detect":
        contract = as_detector(file, contract, index.classes, model.decode or "")
    else:
        contract = _as_classifier(file, contract, index)
    if shapes := image_shapes(file, contract.input.size, contract.input.layout):
        given = fixed(file, shapes, _folder(out / "resume"))
    _write(given, contract, out / FILE)


def deliver(out: Path, taken: Path) -> None:
    """The export stage of a file that is there already."""
    shutil.copyfile(taken / FILE, out / FILE)


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _refuse_beside(file: Path) -> None:
    """A stage's key is of the file alone: other files' weights could change unseen."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    graph = onnx.load(str(file), load_external_data=False).graph
    if any(uses_external_data(tensor) for tensor in graph.initializer):
        raise EdgeError(
            f"`{file}` keeps weights in other files",
            "save it as one: python -c \"import onnx; onnx.save(onnx.load('model.onnx'), 'whole.onnx')\"",
        )


def _check_images(file: Path, contract: IoContract, images: DataSpec, side: int) -> None:
    """Whether the recipe prepares images as the file takes them."""
    picture = contract.input
    channels = 1 if images.color == "gray" else 3
    for key, wanted, told in (
        ("model.image_size", picture.size, (side, side)),
        ("data.color", "gray" if picture.channels == 1 else "rgb", "gray" if channels == 1 else "rgb"),
        ("data.fit", picture.fit, images.fit),
    ):
        if wanted != told:
            value = wanted if isinstance(wanted, str) else _side(wanted)
            square = isinstance(wanted, str) or wanted[0] == wanted[1]
            raise EdgeError(
                f"`{file}` takes images of {value}, and the recipe makes {told if isinstance(told, str) else side}",
                f"write `{key}: {value}`" if square else "a recipe makes square images: use `edgecnn quantize`",
            )


def _check_order(file: Path, told: tuple[str, ...], classes: tuple[str, ...]) -> None:
    """Names that say another order than the data's: every answer would be counted as another class's."""
    if told != classes and sorted(told) == sorted(classes):
        raise EdgeError(
            f"`{file}` and the data name the same classes in another order",
            f"bring the data's into the model's: {', '.join(told[:5])}{', …' if len(told) > 5 else ''}",
        )


def _side(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]} x {size[1]}"


def _as_classifier(file: Path, contract: IoContract, index: Index) -> IoContract:
    """The contract with the data's classes: the first output is the logits."""
    if contract.task != "classify":
        raise EdgeError(f"`{file}` is of task {contract.task}", f"write `task: {contract.task}`, and its kind of data")
    if contract.classes and contract.classes != index.classes:
        raise EdgeError(
            f"`{file}` has the classes {', '.join(contract.classes[:5])} …, the data has"
            f" {', '.join(index.classes[:5])} …",
            "put the data's classes into the model's order",
        )
    logits = OutputContract(name=contract.outputs[0].name, meaning="logits")
    count = _logits(file, logits.name)
    if count is not None and count != len(index.classes):
        raise EdgeError(
            f"output `{logits.name}` of `{file}` gives {count} logits, and the data has {len(index.classes)} classes",
            "give images of the model's own classes, one folder a class, in its order",
        )
    return contract.model_copy(update={"outputs": (logits, *contract.outputs[1:]), "classes": index.classes})


def _logits(file: Path, name: str) -> int | None:
    """How many values an image's row has, where the graph says it."""
    import onnx

    loaded = onnx.load(str(file), load_external_data=False)
    for value in loaded.graph.output:
        if any(not dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]):
            value.type.tensor_type.ClearField("shape")  # inference says it anew
    graph = onnx.shape_inference.infer_shapes(loaded).graph
    shape = next(one.type.tensor_type.shape for one in graph.output if one.name == name)
    sides = [dim.dim_value for dim in shape.dim[1:]]
    return None if not sides or 0 in sides else max(sides)


def _write(file: Path, contract: IoContract, out: Path) -> None:
    import onnx

    loaded = onnx.load(str(file))
    kept = {prop.key: prop.value for prop in loaded.metadata_props}
    onnx.helper.set_model_props(loaded, {**kept, KEY: contract.model_dump_json()})
    onnx.save(loaded, str(out))
