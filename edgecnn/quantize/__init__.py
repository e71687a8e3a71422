"""Float ONNX in, INT8 Q/DQ ONNX out: check · canonical · placement · calibrate · ranges · ladder · rewrite · typed.

Torch is not needed for the first rungs of the ladder; only `rungs/learned/` and `torch/` import it, when climbed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.process.errors import EdgeError
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import IoContract, read_contract
from edgecnn.recipe.recipe import DataSpec, Promise, QuantizeSpec, Student, SuppressSpec
from edgecnn.store.stage import Artifact, decided_by
from edgecnn.tasks import load_task

if TYPE_CHECKING:
    from edgecnn.quantize.calibration.arrays import NamedArrays
    from edgecnn.quantize.calibration.calibrate import ImageSource
    from edgecnn.quantize.ladder.candidate import Network
    from edgecnn.quantize.ladder.judge import Selected

__all__ = ["check_onnx", "check_readable", "quantize", "quantize_model", "suppress", "typed_float"]


LIBRARIES = (
    "numpy", "onnx", "onnx-ir", "onnxruntime", "pillow", "scipy", "timm", "torch", "torchvision", "ultralytics",
)  # fmt: skip


@decided_by(*LIBRARIES, rooms=("quantize", "onnx_file", "tasks", "measure", "data", "training", "families", "recipe"))
def quantize(
    out: Path, spec: QuantizeSpec, promise: Promise, scheme: Scheme, kernels: str, student: Student, images: DataSpec,
    plain: Artifact, trained: Artifact, data: Artifact,
) -> None:  # fmt: skip
    """Stage: the exported float graph → INT8, calibrated on the first `spec.images` of the calibrate split.

    The rungs of `spec.effort` are climbed, the others while the drop on the select split misses the promise; a killed
    climb continues from `out/resume`. `student` and `images` are what the qat rung trains with; the scored split is
    never read.

    Args:
        kernels: this CPU's name where its own INT8 kernels will run the graph, '' for the float simulation.

    Raises:
        EdgeError: see `quantize_model`; or the export has no `edgecnn.io` metadata.
    """
    from edgecnn import data as data_room
    from edgecnn.quantize.ladder.candidate import Network
    from edgecnn.quantize.ladder.judge import Selected

    model = plain.path / "model.onnx"
    contract = exported_contract(model)
    shown, selected = data_room.images(data.path, "select"), None
    if promise.max_accuracy_drop is not None:
        selected = Selected(shown, load_task(contract.task).targets(data.path, "select"))
    network = None
    if not student.model.own_file:
        network = Network(student.model, student.train, images, data.path, trained.path, spec.qat)
    quantize_model(
        out, spec, scheme, model, data_room.images(data.path, "calibrate"), contract, promise=promise,
        selected=selected, held=shown, kernels=kernels, network=network,
    )  # fmt: skip


@decided_by("onnx", "onnx-ir", "onnxruntime", "numpy", rooms=("quantize", "onnx_file", "measure", "data", "recipe"))
def typed_float(out: Path, scheme: Scheme, plain: Artifact, data: Artifact) -> None:
    """Stage: what INT8 must beat. model.onnx as exported; with FP16 islands also typed.onnx, the same in FP16.

    typed.json tells what its FP16 arithmetic makes of a few images of the calibrate split.
    """
    from edgecnn import data as data_room
    from edgecnn.quantize.model import typed_file

    model = plain.path / "model.onnx"
    (out / "model.onnx").write_bytes(model.read_bytes())
    if scheme.islands == "float16":
        typed_file(out, model, data_room.images(data.path, "calibrate"), exported_contract(model))


def exported_contract(model: Path) -> IoContract:
    """The contract in a graph that edgecnn exported.

    Raises:
        EdgeError: it has none.
    """
    contract = read_contract(model)
    if contract is None:
        raise EdgeError(f"`{model}` has no `edgecnn.io` metadata", "export it with edgecnn")
    return contract


@decided_by("onnx", "onnx-ir", "numpy", rooms=("quantize", "onnx_file", "measure", "recipe"))
def suppress(out: Path, spec: SuppressSpec, model: Artifact) -> None:
    """Stage: a detector's graphs, float or INT8, with suppression as their last step; quantize.json beside them.

    Raises:
        EdgeError: the model's contract has no boxes and scores.
    """
    from edgecnn.quantize.write.suppression import suppressed

    for name in ("model.onnx", "typed.onnx"):
        if (model.path / name).exists():
            (out / name).write_bytes(suppressed(model.path / name, spec))
    for name in ("quantize.json", "typed.json"):
        if (model.path / name).exists():
            (out / name).write_bytes((model.path / name).read_bytes())


def quantize_model(
    out: Path, spec: QuantizeSpec, scheme: Scheme, model: Path, images: ImageSource | NamedArrays,
    contract: IoContract | None, *,
    promise: Promise | None = None, selected: Selected | None = None,
    held: ImageSource | NamedArrays | None = None, kernels: str = "", network: Network | None = None,
    folder: Path | None = None,
) -> None:  # fmt: skip
    """Quantize any float ONNX; torch is needed only by the learned rungs of a climb.

    Args:
        out: folder that takes model.onnx (INT8 Q/DQ, FP32 elsewhere), typed.onnx (with `islands: float16`: FP16
            elsewhere, for strongly typed builds) and quantize.json.
        images: calibration images, uint8 NHWC of the contract's size, or arrays by input name, which the graph takes
            as they are; the first `spec.images` are used.
        contract: what the model's input means; None with arrays, which no budget can be judged on.
        promise: the accuracy budget, which the ladder is climbed for; None: the rungs of `spec.effort` alone.
        selected: labelled images that judge it, disjoint from `images`.
        held: further images, on which the outputs are compared at the end, if `images` has too few past
            `spec.images`.
        kernels: name of the CPU whose own INT8 kernels judge; '': the float simulation.
        network: what the qat rung trains; None: there is none.
        folder: where a killed climb continues, removed at the end; default `out/resume`.

    Raises:
        EdgeError: the file fails `check_onnx`; too few or unfitting images; `keep_float` names no node; every layer
            would stay float; a tensor takes NaN or infinity; a weight holds them; onnx refuses the result; a budget
            without labelled images, or of a model that is no better than a constant answer.
    """
    from edgecnn.quantize.model import quantize_file

    quantize_file(
        out, spec, scheme, model, images, contract, promise=promise or Promise(), selected=selected, held=held,
        kernels=kernels, network=network, folder=folder or out / "resume",
    )  # fmt: skip
