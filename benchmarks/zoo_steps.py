"""What the zoo does to one network, each step in a process of its own: `python zoo_steps.py STEP FOLDER [RANGES]`.

`quantize` needs edgecnn; `peer` runs in Model Optimizer's own environment and needs only that. Both take the same
eight images of noise, start their clock when their libraries are imported, and print one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

IMAGES = 8


def noise(side: int) -> np.ndarray:
    """The calibration images: uint8 (8, side, side, 3)."""
    return np.random.default_rng(0).integers(0, 256, (IMAGES, side, side, 3), np.uint8)


def side_of(model: Path) -> int:
    """Height of the images that an ONNX file takes, float32 NCHW."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    return int(graph.input[0].type.tensor_type.shape.dim[2].dim_value)


def quantize(folder: Path, ranges: str = "auto") -> dict[str, Any]:
    """model.onnx → int8/ by edgecnn in TensorRT's scheme; its typed graph is held to the 10.3 rules."""
    from edgecnn.backends.tensorrt.rules import check
    from edgecnn.data import Images
    from edgecnn.process.errors import EdgeError
    from edgecnn.quantize import model as _  # noqa: F401  # imported here, not on the clock
    from edgecnn.quantize import quantize_model
    from edgecnn.recipe.io_contract import InputContract, IoContract
    from edgecnn.recipe.load import load_device
    from edgecnn.recipe.recipe import QuantizeSpec

    model, out = folder / "model.onnx", folder / "int8"
    side = side_of(model)
    out.mkdir(exist_ok=True)
    picture = InputContract(
        name="image", layout="NCHW", dtype="float32", range=(0.0, 1.0), size=(side, side), channels=3, color="rgb",
        fit="crop",
    )  # fmt: skip
    contract = IoContract(
        task="classify", input=picture, normalization=None, normalization_inside=True, outputs=(), classes=()
    )
    start, cpu = time.monotonic(), time.process_time()
    try:
        spec = QuantizeSpec.model_validate({"images": IMAGES, "ranges": ranges, "recover": "off"})
        quantize_model(out, spec, load_device("rtx-3060").scheme, model, Images((noise(side),)), contract)
    except EdgeError as error:
        return {"refusals": [{"by": "edgecnn", "node": "", "words": error.message}]}
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    report = json.loads((out / "quantize.json").read_text())
    if not (out / "typed.onnx").exists():
        return {"refusals": [{"by": "edgecnn", "node": "", "words": "no typed graph: its opset could not be raised"}]}
    found = check(out / "typed.onnx")
    return {
        "ranges": ranges,
        "quantize_seconds": seconds,
        "quantize_cpu_seconds": cpu,
        "refusals": [{"by": "TensorRT 10.3 rules", "node": v.node, "words": v.words} for v in found],
        "qdq": report["qdq"]["quantize_linear"] + report["qdq"]["dequantize_linear"],
        "islands": report["float_islands"],
        "int8_macs": report["coverage"]["macs"],
        "sqnr_db": report["sqnr_db"],
    }


def peer(folder: Path, ranges: str = "auto") -> dict[str, Any]:
    """model.onnx → peer.onnx by Model Optimizer: INT8, FP16 elsewhere; its max for minmax, else its own default."""
    from modelopt.onnx.quantization import quantize as modelopt_quantize

    model = folder / "model.onnx"
    images = noise(side_of(model)).astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255)
    start, cpu = time.monotonic(), time.process_time()
    modelopt_quantize(
        str(model), quantize_mode="int8", calibration_method="max" if ranges == "minmax" else None,
        calibration_data={"image": np.ascontiguousarray(images)},
        calibration_eps=["cpu"], high_precision_dtype="fp16", output_path=str(folder / "peer.onnx"), log_level="ERROR",
    )  # fmt: skip
    return {"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu}


if __name__ == "__main__":
    print(json.dumps({"quantize": quantize, "peer": peer}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])))
