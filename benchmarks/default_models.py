"""The networks on which `defaults.py` compares default settings: float ONNX, its images, how they are drawn.

Every network has one pool of images; draw d is `default_rng(d).permutation`: the first calibrate, the next are held.
YOLO networks are exported at 320 px, where an inference costs a quarter. What is made is kept under `work`.
"""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import detect
import numpy as np
import onnx
from floats import IMAGENET, OPSET, float_model
from PIL import Image

from edgecnn.recipe.io_contract import InputContract, IoContract, OutputContract
from edgecnn.recipe.recipe import Normalization

SMALL = 320
HALF = ((0.5,) * 3, (0.5,) * 3)
NETWORKS = (
    "resnet20", "efficientnet-lite0", "mobilenetv2", "espnetv2", "yolov8n", "yolo11n", "yolo26n", "yolox-nano",
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """One network with all its images.

    Attributes:
        pool: uint8 NHWC; `masks`: uint8 (N, S, S) of segmentation, 255 is void, and all void where there is none.
        calibrate, held: how many images of a draw.
        layout: a detector's output layout, see `detect`; '' of others.
    """

    name: str
    model: Path
    contract: IoContract
    pool: np.ndarray
    calibrate: int
    held: int
    layout: str = ""
    masks: np.ndarray | None = None

    def draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the images that calibrate, and of those held."""
        order = np.random.default_rng(number).permutation(len(self.pool))
        return order[: self.calibrate], order[self.calibrate : self.calibrate + self.held]

    def parts(self, output: np.ndarray) -> dict[str, np.ndarray]:
        """What is compared of one image's output: a detector's boxes, and its class scores before the sigmoid."""
        if not self.layout:
            return {"logits": output}
        boxes, scores = detect.parts(output, self.layout)
        return {"boxes": boxes, "classes": detect.logits(scores)}


def network(name: str, data: Path, work: Path) -> Network:
    """One of NETWORKS."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{name}-default.onnx"
    if not path.exists():
        _made(name, data, path)
    match name:
        case "resnet20":
            pool = _packed(data / "cifar10-jpeg" / "cifar10_test_jpeg.npz", 512, None)
            return Network(name, path, _contract("images", 32, IMAGENET, "logits"), pool, 256, 256)
        case "efficientnet-lite0" | "mobilenetv2":
            pool = _packed(data / "imagenet-sample-1000" / "imagenet_1000_256.npz", 512, 224)
            names = ("x", "y") if name == "efficientnet-lite0" else ("images", "logits")
            return Network(name, path, _contract(names[0], 224, HALF, names[1]), pool, 128, 128)
        case "espnetv2":
            pool, masks = _segmented(data)
            return Network(
                name, path, _contract("image", 384, IMAGENET, "logits", fit="stretch"), pool, 48, 50, masks=masks
            )
        case "yolox-nano":
            contract = _contract("images", 416, None, "output", "bgr", 255.0, "letterbox")
            return Network(name, path, contract, _boxed(data, work, 416, False), 64, 64, "yolox")
        case _:
            contract = _contract("images", SMALL, None, "output0", fit="letterbox")
            return Network(name, path, contract, _boxed(data, work, SMALL, True), 64, 64, "yolov8")


def _made(name: str, data: Path, path: Path) -> None:
    """Write the float ONNX of `name` to `path`, whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    match name:
        case "mobilenetv2":
            _mobilenet(data / "mobilenetv2-imagenet" / "mobilenetv2_state_fp16.safetensors", partial)
        case "espnetv2":
            onnx.save(onnx.load(str(data / "espnetv2-voc" / "espnetv2_s_2.0_voc21_384.onnx")), str(partial))
        case "yolov8n":
            _yolo(name, data / "yolov8n-coco" / "yolov8n_state_fp16.pt", partial)
        case "yolo11n" | "yolo26n":
            _yolo(name, data / f"{name}-coco" / f"{name}_state_fp16.safetensors", partial)
        case _:
            float_model(name, data, partial)
    partial.replace(path)


def _mobilenet(weights: Path, path: Path) -> None:
    import timm
    import torch
    from safetensors.torch import load_file

    # Padding as TensorFlow's is worked out in the forward pass: of a fixed size it traces to constants.
    net = timm.create_model("mobilenetv2_100", pretrained=False, num_classes=1000, pad_type="same", exportable=True)
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(weights).items()})
    torch.onnx.export(
        net.eval(), (torch.zeros(1, 3, 224, 224),), str(path), dynamo=False, opset_version=OPSET,
        input_names=["images"], output_names=["logits"],
    )  # fmt: skip


def _yolo(name: str, weights: Path, path: Path) -> None:
    """Ultralytics' own network and export form: BatchNorm fused, boxes decoded, output (1, 84, anchors)."""
    os.environ |= {
        "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "YOLO_CONFIG_DIR": tempfile.mkdtemp(prefix="edgecnn-yolo-"),
        "YOLO_VERBOSE": "0",
    }  # fmt: skip
    import torch
    from safetensors.torch import load_file
    from ultralytics.nn.tasks import DetectionModel

    net = DetectionModel(f"{name}.yaml", nc=80, verbose=False)
    state = torch.load(weights, weights_only=True) if weights.suffix == ".pt" else load_file(weights)
    net.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    net.eval()
    head = net.model[-1]
    if getattr(head, "end2end", False):
        head.end2end = False  # boxes and scores of every anchor, as the others answer
    net.fuse(verbose=False)
    for module in net.modules():
        if hasattr(module, "export") and hasattr(module, "dfl"):
            module.export, module.format, module.dynamic = True, "onnx", False
        if type(module).__name__ == "C2f":
            module.forward = module.forward_split
    image = torch.zeros(1, 3, SMALL, SMALL)
    with torch.no_grad():
        net(image)
    torch.onnx.export(
        net, (image,), str(path), dynamo=False, opset_version=OPSET, input_names=["images"], output_names=["output0"]
    )


def _contract(
    name: str, size: int, normalization: tuple[tuple[float, ...], tuple[float, ...]] | None, output: str,
    color: str = "rgb", top: float = 1.0, fit: str = "crop",
) -> IoContract:  # fmt: skip
    given = Normalization(mean=normalization[0], std=normalization[1]) if normalization else None
    return IoContract(
        task="classify",
        input=InputContract.model_validate({
            "name": name, "layout": "NCHW", "dtype": "float32", "range": (0.0, top), "size": (size, size),
            "channels": 3, "color": color, "fit": fit,
        }),
        normalization=given, normalization_inside=False, outputs=(OutputContract(name=output, meaning=""),), classes=(),
    )  # fmt: skip


def _packed(path: Path, count: int, size: int | None) -> np.ndarray:
    """The first images of a fixed permutation of a pack, their centre if a size is given."""
    with np.load(path) as pack:
        offsets, blob = pack["offsets"], pack["blob"].tobytes()
    chosen = np.random.default_rng(99).permutation(len(offsets) - 1)[:count]
    images = [np.asarray(Image.open(io.BytesIO(blob[offsets[n] : offsets[n + 1]])).convert("RGB")) for n in chosen]
    pool = np.stack(images)
    if size is None:
        return pool
    edge = (pool.shape[1] - size) // 2
    return pool[:, edge : edge + size, edge : edge + size]


def _boxed(data: Path, work: Path, size: int, centred: bool) -> np.ndarray:
    store = work / f"default-coco-{size}.npy"
    if not store.exists():
        archive = zipfile.ZipFile(data / "coco128-train" / "coco128-train.zip")
        files = sorted(file for file in archive.namelist() if file.endswith(".jpg"))
        images = [detect.letterbox(Image.open(io.BytesIO(archive.read(f))), size, centred=centred)[0] for f in files]
        partial = store.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, np.stack(images))
        partial.replace(store)
    return np.asarray(np.load(store))


def _segmented(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 100 images that have masks, 384 px, and the masks brought to that size by the nearest pixel."""
    photos = zipfile.ZipFile(data / "coco128-train" / "coco128-train.zip")
    labels = zipfile.ZipFile(data / "coco128-train-masks" / "coco128-train-masks.zip")
    names = {Path(name).stem: name for name in photos.namelist() if name.endswith(".jpg")}
    masks = {Path(name).stem: name for name in labels.namelist() if "voc21/" in name and name.endswith(".png")}
    images, truths = [], []
    for stem in sorted(masks):
        photo = Image.open(io.BytesIO(photos.read(names[stem]))).convert("RGB")
        images.append(np.asarray(photo.resize((384, 384), Image.Resampling.BILINEAR)))
        mask = Image.open(io.BytesIO(labels.read(masks[stem])))
        truths.append(np.asarray(mask.resize((384, 384), Image.Resampling.NEAREST)))
    return np.stack(images), np.stack(truths)
