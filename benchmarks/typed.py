"""The typed file in FP16 arithmetic, by hand: `EDGECNN_DATA=… python benchmarks/typed.py --work DIR` (extra train).

Networks of the zoo with random weights (noise as images) and trained ones of the data packs (photos). Each is quantized
for TensorRT's scheme, and as float given FP16 islands; told is the SQNR of both against the float file, the output that
FP16 costs most, and the seconds that the typed files took. One JSON per network in DIR/typed: a stopped run goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import detect
import numpy as np
from PIL import Image
from zoo_models import SAMPLE

from edgecnn.data import Images
from edgecnn.process.errors import EdgeError
from edgecnn.quantize import model as quantizing
from edgecnn.quantize import quantize_model
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import InputContract, IoContract
from edgecnn.recipe.recipe import QuantizeSpec

HERE = Path(__file__).parent
SCHEME = Scheme(activations="int8-symmetric", islands="float16", placement="tensorrt")
IMAGES = 16
ZOO = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet1_0", "mobilenet_v2",
    "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnet50", "vgg11_bn", "deeplabv3_mobilenet_v3_large",
    "fastvit_t8", "hrnet_w18_small", "inception_next_atto", "poolformerv2_s12", "repvit_m0_9", "resnest14d",
    "starnet_s1", *SAMPLE,
)  # fmt: skip
SIDE = {"alexnet": 96, "convnext_tiny": 96, "densenet121": 96, "fastvit_t8": 128, "hrnet_w18_small": 96}
# name: (pack, YAML, Ultralytics' class of it, side, whether its answers are boxes without suppression to come)
ULTRALYTICS = {
    "yolov8n": ("yolov8n-coco", "yolov8n.yaml", "DetectionModel", False),
    "yolo11n": ("yolo11n-coco", "yolo11n.yaml", "DetectionModel", False),
    "yolo26n": ("yolo26n-coco", "yolo26n.yaml", "DetectionModel", False),
    "yolo26n-end2end": ("yolo26n-coco", "yolo26n.yaml", "DetectionModel", True),
    "yolov8n-pose": ("yolov8n-pose-coco", "yolov8n-pose.yaml", "PoseModel", False),
    "yolov8n-seg": ("yolov8n-seg-coco", "yolov8n-seg.yaml", "SegmentationModel", False),
}
FILES = {
    "yolox-nano": "yolox-nano/yolox_nano.onnx",
    "efficientnet-lite0": "efficientnet-lite0/efficientnet_lite0_224.onnx",
    "espnetv2-0.5": "espnetv2-voc/espnetv2_s_0.5_voc21_384.onnx",
    "espnetv2-2.0": "espnetv2-voc/espnetv2_s_2.0_voc21_384.onnx",
}
NAMES = (*ZOO, *FILES, *ULTRALYTICS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "edgecnn-typed"))
    parser.add_argument("--only", default="", help="comma-separated names")
    parser.add_argument("--side", type=int, default=320, help="image side of Ultralytics' networks")
    parser.add_argument("--ranges", default="minmax", choices=("auto", "minmax"))
    parser.add_argument("--redo", action="store_true")
    parser.add_argument("--table", action="store_true", help="only print the results that are there")
    given = parser.parse_args()
    results = given.work / "typed"
    results.mkdir(parents=True, exist_ok=True)
    found = []
    for name in given.only.split(",") if given.only else NAMES:
        file = results / f"{name}.json"
        if not given.table and (given.redo or not file.exists()):
            file.write_text(json.dumps(measured(name, given), indent=1))
        if file.exists():
            found.append(json.loads(file.read_text()))
            print(row(found[-1]), flush=True)
    good = [part for part in found if max(part.get("lost_db", 99), part.get("float_lost_db", 99)) <= 1.0]
    print(f"{len(good)} of {len(found)} lose at most 1 dB against FP32.")


def measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Both typed files of one network, or why there is none."""
    folder, model = given.work / name, given.work / f"{name}.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not model.exists():
            export(name, model, given.side)
        images, contract = source(name, model)
        seconds: list[float] = []
        plain = quantizing._typed

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.monotonic()
            try:
                return plain(*arguments, **named)
            finally:
                seconds.append(time.monotonic() - start)

        quantizing._typed = timed
        start = time.monotonic()
        spec = QuantizeSpec.model_validate({"images": IMAGES, "ranges": given.ranges, "recover": "off"})
        try:
            quantize_model(folder, spec, SCHEME, model, images, contract)
            whole = time.monotonic() - start
            quantizing.typed_file(folder, model, images, contract)
        finally:
            quantizing._typed = plain
    except (EdgeError, subprocess.CalledProcessError) as error:
        return {"name": name, "refused": str(error)}
    record = json.loads((folder / "quantize.json").read_text())
    plain_record = json.loads((folder / "typed.json").read_text())
    int8, half = record["typed"] or {}, plain_record
    return {
        "name": name, "sqnr_db": int8.get("sqnr_db"), "fp32_sqnr_db": int8.get("fp32_sqnr_db"),
        "lost_db": int8.get("lost_db", 99), "islands": record["float_islands"], "outputs": int8.get("outputs"),
        "float_sqnr_db": half["sqnr_db"], "float_lost_db": half["lost_db"],
        "float_islands": plain_record["float_islands"], "seconds": whole, "typed_seconds": seconds[0],
        "float_typed_seconds": seconds[-1],
    }  # fmt: skip


def export(name: str, path: Path, side: int) -> None:
    """Write the network's float ONNX."""
    if name in ZOO:
        own = str(SIDE.get(name, SAMPLE.get(name, 96)))
        subprocess.run([sys.executable, str(HERE / "zoo_models.py"), name, str(path), own], check=True)
    elif name in FILES:
        path.write_bytes((data() / FILES[name]).read_bytes())
    else:
        _ultralytics(name, path, side)


def _ultralytics(name: str, path: Path, side: int) -> None:
    import torch
    from safetensors.torch import load_file
    from ultralytics.nn import tasks

    pack, yaml, kind, end2end = ULTRALYTICS[name]
    file = next(entry for entry in (data() / pack).iterdir() if "state_fp16" in entry.name)
    state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    more = {"data_kpt_shape": (17, 3), "nc": 1} if "pose" in name else {"nc": 80}
    net = getattr(tasks, kind)(yaml, verbose=False, **more)
    net.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    head = net.model[-1]
    head.export, head.format, head.dynamic = True, "onnx", False
    if hasattr(head, "end2end"):
        head.end2end = end2end
    net.eval().fuse(verbose=False)
    net(torch.zeros(1, 3, side, side))
    torch.onnx.export(net, (torch.zeros(1, 3, side, side),), str(path), opset_version=17, input_names=["images"],
                      dynamo=False)  # fmt: skip


def source(name: str, model: Path) -> tuple[Any, IoContract]:
    """Calibration images of the network's size, and what its input means."""
    import onnx

    value = onnx.load(str(model), load_external_data=False).graph.input[0]
    side = int(value.type.tensor_type.shape.dim[2].dim_value) or 224
    layout = "NCHW"
    if value.type.tensor_type.shape.dim[3].dim_value == 3:
        layout = "NHWC"
    top, color = (255.0, "bgr") if name == "yolox-nano" else (1.0, "rgb")
    picture = InputContract.model_validate({
        "name": value.name, "layout": layout, "dtype": "float32", "range": (0.0, top), "size": (side, side),
        "channels": 3, "color": color, "fit": "letterbox",
    })  # fmt: skip
    contract = IoContract(
        task="classify", input=picture, normalization=None, normalization_inside=True, outputs=(), classes=()
    )
    if name in ZOO:
        noise = np.random.default_rng(0).integers(0, 256, (IMAGES, side, side, 3), np.uint8)
        return Images((noise,)), contract
    archive = zipfile.ZipFile(data() / "coco128-train" / "coco128-train.zip")
    files = sorted(file for file in archive.namelist() if file.endswith(".jpg"))[:IMAGES]
    images = [detect.letterbox(Image.open(io.BytesIO(archive.read(file))), side, centred=True)[0] for file in files]
    return Images((np.stack(images),)), contract


def data() -> Path:
    """The folder of data packs."""
    return Path(os.environ["EDGECNN_DATA"])


def row(found: dict[str, Any]) -> str:
    """One network as a Markdown row."""
    if "refused" in found:
        return f"| {found['name']} | refused: {found['refused']} |"
    cells = (
        found["name"], *(f"{found[key]:.1f}" for key in ("fp32_sqnr_db", "sqnr_db", "lost_db")),
        str(len(found["islands"])), f"{found['float_sqnr_db']:.1f}", str(len(found["float_islands"])),
        f"{found['typed_seconds']:.1f} of {found['seconds']:.1f} s",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
