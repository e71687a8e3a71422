"""The six float models of the benchmarks as ONNX files, made once from the packs and kept in a work folder.

CIFAR ResNets and EfficientNet-Lite0 take normalized float32 NCHW of any batch; the detectors one image of fixed size.
Every quantizer gets the same file.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir

from edgecnn.quantize.graph.canonical import canonical

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
WEIGHTS = {
    "resnet20": "resnet20-12fca82f.th",
    "resnet20-jpeg": "resnet20_jpeg_finetuned.pt",
    "resnet56": "resnet56-4bfd9763.th",
}
OPSET = 17


def float_model(name: str, data: Path, path: Path) -> None:
    """Write the float ONNX of `name` to `path`, whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    match name:
        case "resnet20" | "resnet20-jpeg" | "resnet56":
            _cifar(name, data / "resnet-cifar10" / WEIGHTS[name], partial)
        case "efficientnet-lite0":
            # As exported it computes its paddings from the image's size, with arithmetic that peers quantize too, into
            # a graph that doesn't run: every tool gets it folded.
            ir.save(canonical(data / "efficientnet-lite0" / "efficientnet_lite0_224.onnx"), partial)
        case "yolov8n":
            _yolov8(data / "yolov8n-coco" / "yolov8n_state_fp16.pt", partial)
        case "yolox-nano":
            old = onnx.load(str(data / "yolox-nano" / "yolox_nano.onnx"))  # opset 11: too old for per-channel Q/DQ
            onnx.save(onnx.version_converter.convert_version(old, OPSET), str(partial))
        case _:
            sys.exit(f"no model `{name}`")
    onnx.checker.check_model(str(partial), full_check=True)
    partial.replace(path)


def _cifar(name: str, weights: Path, path: Path) -> None:
    import torch

    from edgecnn.families.small import create
    from edgecnn.recipe.recipe import ModelSpec

    spec = ModelSpec.model_validate(
        {"family": "small", "name": name.removesuffix("-jpeg"), "image_size": 32, "weights": weights}
    )
    net = create(spec, 10, 3).eval()
    torch.onnx.export(
        net, (torch.zeros(2, 3, 32, 32),), str(path), dynamo=False, opset_version=OPSET, input_names=["images"],
        output_names=["logits"], dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip


def _yolov8(weights: Path, path: Path) -> None:
    """Ultralytics' own network and export form: BatchNorm fused, boxes decoded, output (1, 84, 8400)."""
    os.environ |= {
        "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "YOLO_CONFIG_DIR": tempfile.mkdtemp(prefix="edgecnn-yolo-"),
        "YOLO_VERBOSE": "0",
    }  # fmt: skip
    import torch
    from ultralytics.nn.tasks import DetectionModel

    net = DetectionModel("yolov8n.yaml", nc=80, verbose=False)
    state = torch.load(weights, weights_only=True)
    net.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in state.items()})
    net.eval().fuse(verbose=False)
    for module in net.modules():
        if hasattr(module, "export") and hasattr(module, "dfl"):  # the head: decoded boxes and nothing else
            module.export, module.format, module.dynamic = True, "onnx", False
        if type(module).__name__ == "C2f":
            module.forward = module.forward_split
    image = torch.zeros(1, 3, 640, 640)
    with torch.no_grad():
        net(image)
    torch.onnx.export(
        net, (image,), str(path), dynamo=False, opset_version=OPSET, input_names=["images"], output_names=["output0"]
    )
