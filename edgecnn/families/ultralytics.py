"""YOLO detectors of Ultralytics (AGPL-3.0, the extra `[yolo]`): the only file that imports their package.

Networks YOLOv8, v9, 11 and 12: one head that predicts boxes as distributions over distances (DFL). What their package
does beside training is held off: it looks at no network and installs nothing, its settings file goes to a folder that
is gone after the import, and none of the services that it reports trainings to is loaded.
"""

from __future__ import annotations

import os
import re
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from edgecnn.families import refuse_unknown
from edgecnn.families.pickled import State
from edgecnn.families.trained import Deployed
from edgecnn.families.weights import fit_state, read_weights, start_head
from edgecnn.families.yolo_files import library_weights as library_weights
from edgecnn.families.yolo_files import published_file
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import OutputContract
from edgecnn.recipe.recipe import ModelSpec

os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false")

# On import it writes its settings, replaces Pillow's open and torch's save for the whole process, and changes how numpy
# and torch print: all of it is put back.
_OPEN, _SAVE, _THEIRS = Image.open, torch.save, os.environ.get("YOLO_CONFIG_DIR")
with tempfile.TemporaryDirectory(prefix="edgecnn-yolo-") as _folder, np.printoptions():
    os.environ["YOLO_CONFIG_DIR"] = _folder
    from ultralytics.models.yolo.detect import DetectionTrainer as DetectionTrainer
    from ultralytics.nn.modules.head import Detect
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import DEFAULT_CFG_PATH, ROOT, callbacks
del os.environ["YOLO_CONFIG_DIR"]
if _THEIRS is not None:
    os.environ["YOLO_CONFIG_DIR"] = _THEIRS
Image.open, torch.save = _OPEN, _SAVE
torch.set_printoptions(profile="default")


def _no_services(instance: object) -> None:
    """In place of what adds ClearML, Comet, DVC, MLflow, Ray, TensorBoard, W&B and Ultralytics' own platform."""


callbacks.add_integration_callbacks = _no_services
# What the first versions of 8.4 don't have.
DISTILS = find_spec("ultralytics.nn.distill_model") is not None
TRAINS_BF16 = "bf16" in DEFAULT_CFG_PATH.read_text(encoding="utf-8")

NAMES = (
    *(f"yolov8{size}" for size in "nsmlx"),
    *(f"yolov9{size}" for size in "tsmce"),
    *(f"yolo11{size}" for size in "nsmlx"),
    *(f"yolo12{size}" for size in "nsmlx"),
)
STRIDE = 32  # the coarsest of the three feature maps
# Classes that a saved network names beside tensors: its layers, losses and settings, none of which is used. Class names
# have a capital letter, functions have none; a fused layer names its `forward_fuse` by getattr.
CLASSES = re.compile(r"(torch\.nn\.(modules|parallel)|ultralytics)\.[\w.]*\.[a-z0-9_]*[A-Z]\w*|builtins\.getattr")


def names() -> tuple[str, ...]:
    """Every model name."""
    return NAMES


def create(model: ModelSpec, classes: int, channels: int, *, new_head: bool = False) -> nn.Module:
    """See `Family.create`: takes float32 (N, channels, S, S) in 0..1; in eval mode answers (N, 4 + classes, anchors).

    Raises:
        EdgeError: unknown name, image size not a multiple of 32, weights missing, refused or of other shapes.
    """
    refuse_unknown(model, NAMES)
    if model.image_size % STRIDE:
        near = max(STRIDE, round(model.image_size / STRIDE) * STRIDE)
        raise EdgeError(
            f"`{model.section}.image_size` is {model.image_size}, but `{model.name}` takes multiples of {STRIDE}",
            f"write {near}",
        )
    net = DetectionModel(layers_of(model.name), ch=channels, nc=classes, verbose=False)
    if model.weights is not None:
        path = model.weights if isinstance(model.weights, Path) else published_file(model)
        _fit(net, read_checkpoint(path), f"`{path}`", new_head=new_head)
    return net.eval()


def read_checkpoint(path: Path) -> State:
    """The state dict of a file: plain (`.safetensors`, torch), or of a whole network as Ultralytics saves it.

    No class of a whole network is used: see `pickled.read_torch`. Averaged weights (`ema`) come first.

    Raises:
        EdgeError: not readable, or it asks for anything but tensors, layers and settings, which is named.
    """
    return read_weights(path, CLASSES)


def layers_of(name: str) -> dict[str, Any]:
    """The network's layers, read from the package's own file: theirs would take one of the working directory first."""
    import yaml

    described = {path.stem: path for path in (ROOT / "cfg" / "models").glob("*/*.yaml")}
    alone = described.get(name)  # YOLOv9 has a file for each size, the others have one with all sizes
    path = alone or described[name[:-1]]
    layers: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {**layers, "scale": "" if alone else name[-1], "yaml_file": f"{name}.yaml"}


def _fit(net: nn.Module, state: State, source: str, *, new_head: bool) -> None:
    """Copy weights; with another number of classes the class branches of the head start untrained, and it is said."""
    own = net.state_dict()
    state = _unfused(net, state, source)
    head = re.compile(rf"model\.{len(net.model) - 1}\.cv3\.")
    misfits = [name for name in state if name in own and state[name].shape != own[name].shape and head.match(name)]
    last = [name for name in misfits if name.endswith(".2.weight")]
    if misfits:
        given = state[last[0]].shape[0] if last else "other"
        start_head(source, given, head_of(net).nc, "its class branches", new_head=new_head)
        state = {**state, **{name: own[name] for name in misfits}}
    fit_state(net, state, source, new_head=False)


def _unfused(net: nn.Module, state: State, source: str) -> State:
    """Weights saved after Ultralytics' `fuse`, with BatchNorm put back as one that changes nothing."""
    added: State = {}
    for name, module in net.named_modules():
        norm = getattr(module, "bn", None)
        if not isinstance(norm, nn.BatchNorm2d) or f"{name}.bn.weight" in state or f"{name}.conv.bias" not in state:
            continue
        ones = torch.ones(norm.num_features)
        added |= {
            f"{name}.bn.weight": ones * (1 + norm.eps) ** 0.5, f"{name}.bn.bias": state[f"{name}.conv.bias"],
            f"{name}.bn.running_mean": 0 * ones, f"{name}.bn.running_var": ones,
        }  # fmt: skip
    if not added:
        return state
    progress.current().note(f"{source}: BatchNorm was folded into its weights; put back as one that changes nothing")
    fused = {f"{name.removesuffix('.bn.weight')}.conv.bias" for name in added if name.endswith(".bn.weight")}
    return {name: value for name, value in state.items() if name not in fused} | added


def head_of(net: nn.Module) -> Any:
    """The detection head: the last layer."""
    head = net.model[-1]
    assert isinstance(head, Detect)
    return head


def deployed(net: nn.Module, image_size: int) -> Deployed:
    """The network as it ships: boxes decoded to pixels of the model's input, x1 y1 x2 y2, and class scores in 0..1."""
    return Deployed(
        Boxed(net, image_size),
        (OutputContract(name="boxes", meaning="boxes"), OutputContract(name="scores", meaning="scores")),
        "detect",
    )


class Boxed(nn.Module):
    """float32 (N, C, S, S) in 0..1 → boxes (N, A, 4) x1 y1 x2 y2 in pixels and scores (N, A, classes)."""

    def __init__(self, net: nn.Module, image_size: int) -> None:
        super().__init__()
        # Batch norm is folded by the exporter, not by `fuse`: it would rename the weights.
        self.net, head = net, head_of(net)
        cells = [image_size // int(stride) for stride in head.stride]
        points, strides = [], []
        for side, stride in zip(cells, head.stride, strict=True):
            ys, xs = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
            points.append(torch.stack([xs, ys]).reshape(2, -1))
            strides.append(torch.full((1, side * side), float(stride)))
        self.register_buffer("points", torch.cat(points, dim=1)[None])
        self.register_buffer("strides", torch.cat(strides, dim=1)[None])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        head = head_of(self.net)
        maps: Any = images
        kept: list[Any] = []
        for layer in list(self.net.model)[:-1]:  # a slice would be another module, with other names
            if layer.f != -1:
                maps = kept[layer.f] if isinstance(layer.f, int) else [maps if f == -1 else kept[f] for f in layer.f]
            maps = layer(maps)
            kept.append(maps if layer.i in self.net.save else None)
        raw = head.forward_head([kept[f] for f in head.f], **head.one2many)
        distances = head.dfl(raw["boxes"])
        corner, opposite = self.points - distances[:, :2], self.points + distances[:, 2:]
        boxes = torch.cat([corner, opposite], dim=1) * self.strides
        return boxes.transpose(1, 2), raw["scores"].sigmoid().transpose(1, 2)
