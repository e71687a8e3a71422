"""The zoo's networks, and their export: `python benchmarks/zoo_models.py NAME FILE.onnx [SIDE]` makes one file.

Random weights (seed 0): the zoo is about graphs. BatchNorm statistics are taken from noise first, so that activations
keep a scale; a network that is made to be re-parametrized is exported as it is deployed.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

# 20 classifiers and 3 segmentation networks of torchvision.
TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf",
    "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "vgg11_bn", "wide_resnet50_2",
    "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large",
)  # fmt: skip
# 40 CNNs of timm, one of each architecture family, the small ones; none of them has attention over the image.
TIMM = (
    "convnextv2_atto", "cspdarknet53", "darknet53", "dla46_c", "dpn48b", "ecaresnet26t", "efficientnet_es",
    "ese_vovnet19b_dw", "fasternet_t0", "fastvit_t8", "fbnetc_100", "fbnetv3_b", "gernet_s", "ghostnet_100",
    "hardcorenas_a", "hgnetv2_b0", "hrnet_w18_small", "inception_next_atto", "lcnet_050", "mixnet_s",
    "mobilenet_edgetpu_v2_xs", "mobilenetv1_100", "mobilenetv4_conv_small", "mobileone_s0", "nf_regnet_b0",
    "poolformerv2_s12", "regnetz_b16", "repghostnet_050", "repvgg_a0", "repvit_m0_9", "res2net50_14w_8s", "resnest14d",
    "rexnet_100", "selecsls42b", "skresnet18", "spnasnet_100", "starnet_s1", "tf_efficientnet_lite0", "tinynet_e",
    "xception41",
)  # fmt: skip
NAMES = TORCHVISION + TIMM
# A few of different kinds, small: what the tests take.
SAMPLE = {
    "squeezenet1_1": 64, "shufflenet_v2_x1_0": 64, "lraspp_mobilenet_v3_large": 64, "mobilenetv4_conv_small": 64,
    "repvgg_a0": 64, "convnextv2_atto": 64,
}  # fmt: skip
_SEGMENTATION = ("deeplabv3", "fcn", "lraspp")
_STATIC_BATCH = 1


def export(name: str, path: Path, side: int | None = None) -> None:
    """Write one network: float32 NCHW input `image`, opset 19, a dynamic batch where torch can follow one."""
    import onnx
    import torch

    torch.set_num_threads(1)
    net, own = _network(name)
    side = side or own
    _settle(net, side)
    if name in TIMM:
        from timm.utils.model import reparameterize_model

        net = reparameterize_model(net)
    export_of = {"dynamo": True, "opset_version": 19, "input_names": ["image"], "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shapes = ({0: torch.export.Dim("batch")},)
            program = torch.onnx.export(net, (torch.zeros(2, 3, side, side),), dynamic_shapes=shapes, **export_of)
        except Exception as error:  # noqa: BLE001  # the exporter raises its own kinds; then the batch is fixed
            print(f"no dynamic batch: {str(error).splitlines()[0]}", file=sys.stderr)
            program = torch.onnx.export(net, (torch.zeros(_STATIC_BATCH, 3, side, side),), **export_of)
    proto = program.model_proto
    onnx.checker.check_model(proto)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(proto.SerializeToString(deterministic=True))
    partial.replace(path)


def _network(name: str) -> tuple[Any, int]:
    """The network in evaluation mode and its own image side."""
    import torch

    torch.manual_seed(0)
    if name in TIMM:
        import timm

        net = timm.create_model(name, pretrained=False, exportable=True)
        return net.eval(), int(net.default_cfg["input_size"][-1])
    import torchvision

    if name.startswith(_SEGMENTATION):
        net = torchvision.models.segmentation.__dict__[name](weights=None, weights_backbone=None, num_classes=21)
        return _main_output(net.eval()).eval(), 224
    more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    net = torchvision.models.__dict__[name](weights=None, **more)
    return net.eval(), 299 if name == "inception_v3" else 224


def _settle(net: Any, side: int) -> None:
    """BatchNorm statistics of noise: with the initial ones (0, 1) the signal of a deep network dies out or explodes."""
    import torch

    norms = [module for module in net.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = None  # a plain mean
        norm.reset_running_stats()
    with torch.no_grad():
        net(torch.rand(4, 3, side, side))
    net.eval()


def _main_output(net: Any) -> Any:
    """A segmentation network answers with a dictionary; the same with its main output alone."""
    import torch

    class MainOutput(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, image: Any) -> Any:
            return self.net(image)["out"]

    return MainOutput()


if __name__ == "__main__":
    export(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
