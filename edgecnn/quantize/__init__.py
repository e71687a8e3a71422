"""Float ONNX in, INT8 Q/DQ ONNX out: check · canonical · placement · calibrate · ranges · rewrite · typed. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.device import Scheme
from edgecnn.errors import EdgeError
from edgecnn.io_contract import IoContract, read_contract
from edgecnn.recipe import QuantizeSpec
from edgecnn.store import Artifact, decided_by

if TYPE_CHECKING:
    from edgecnn.quantize.calibrate import ImageSource

__all__ = ["check_onnx", "quantize", "quantize_model", "typed_float"]


@decided_by("onnx", "onnx-ir", "onnxruntime", "numpy")
def quantize(out: Path, spec: QuantizeSpec, scheme: Scheme, plain: Artifact, data: Artifact) -> None:
    """Stage: the exported float graph → INT8, calibrated on the first `spec.images` of the calibrate split.

    Raises:
        EdgeError: see `quantize_model`; or the export has no `edgecnn.io` metadata.
    """
    from edgecnn.data import images

    model = plain.path / "model.onnx"
    contract = read_contract(model)
    if contract is None:
        raise EdgeError(f"`{model}` has no `edgecnn.io` metadata", "export it with edgecnn")
    quantize_model(out, spec, scheme, model, images(data.path, "calibrate"), contract)


@decided_by("onnx", "onnx-ir", "numpy")
def typed_float(out: Path, scheme: Scheme, plain: Artifact) -> None:
    """Stage: what INT8 must beat. model.onnx as exported; with FP16 islands also typed.onnx, the same in FP16.

    Only weights are checked against FP16's limits here: no images are read.
    """
    from edgecnn.quantize.model import typed_file

    typed_file(out, scheme, plain.path / "model.onnx")


def quantize_model(
    out: Path, spec: QuantizeSpec, scheme: Scheme, model: Path, images: ImageSource, contract: IoContract
) -> None:
    """Quantize any float ONNX; torch is not needed.

    Args:
        out: folder that takes model.onnx (INT8 Q/DQ, FP32 elsewhere), typed.onnx (with `islands: float16`: FP16
            elsewhere, for strongly typed builds) and quantize.json.
        images: calibration images, uint8 NHWC of the contract's size; the first `spec.images` are used.
        contract: what the model's input means.

    Raises:
        EdgeError: the file fails `check_onnx`; too few or unfitting images; `keep_float` names no node; every layer
            would stay float; a tensor takes NaN or infinity; a weight holds them; onnx refuses the result.
    """
    from edgecnn.quantize.model import quantize_file

    quantize_file(out, spec, scheme, model, images, contract)


def check_onnx(path: Path) -> None:
    """Refuse a file that the quantizer cannot take.

    Raises:
        EdgeError: not readable; external data missing; opset of ai.onnx outside 11..23; fails the onnx checker; already
            quantized; an input or a tensor of dynamic rank.
    """
    from edgecnn.quantize.check import check_onnx as check

    check(path)
