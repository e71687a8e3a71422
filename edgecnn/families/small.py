"""Small CNNs that train in seconds to minutes, all with global average pooling, so any image size works.

`gap-s`, `gap-m`, `gap-l`: convolution, BatchNorm, ReLU blocks; a block's first convolution halves the image.
`simple`: the three-block CNN of the classic tutorials (3x3 convolution, BatchNorm, ReLU, 2x2 max pooling).
`resnet20` … `resnet110`: the CIFAR ResNets of He et al. 2015 (arXiv:1512.03385, section 4.2), depth 6n+2, with the
parameter-free shortcut (option A). Their parameter names are those of the published CIFAR-10 checkpoints.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from edgecnn.families import SMALL_NAMES, refuse_unknown
from edgecnn.families.weights import check_fits, load_file
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import ModelSpec

# (output channels, convolutions) of each block.
GAP_BLOCKS: dict[str, tuple[tuple[int, int], ...]] = {
    "gap-s": ((16, 1), (32, 1), (64, 1)),
    "gap-m": ((32, 1), (64, 2), (128, 2)),
    "gap-l": ((64, 2), (128, 2), (256, 2)),
}


class Gap(nn.Module):
    """Blocks of 3x3 convolution, BatchNorm, ReLU; then global average pooling, dropout and one linear layer."""

    def __init__(
        self, blocks: tuple[tuple[int, int], ...], channels: int, classes: int, dropout: float, *, pooled: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (width, convolutions) in enumerate(blocks):
            block: list[nn.Module] = []
            for place in range(convolutions):
                stride = 2 if number > 0 and place == 0 and not pooled else 1
                block += [
                    nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
                ]  # fmt: skip
                channels = width
            if pooled:
                block.append(nn.MaxPool2d(2, ceil_mode=True))  # ceil: a 1-pixel map stays one pixel
            layers.append(nn.Sequential(*block))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 (N, C, H, W) → logits (N, classes)."""
        return self.linear(self.dropout(self.pool(self.features(x)).flatten(1)))


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the size halves, it subsamples and pads channels with zeros."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.padding = ((after - before) // 2, after - before - (after - before) // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, before, H, W) → (N, after, H / stride, W / stride), odd sizes rounded up."""
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or any(self.padding):
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))
        return functional.relu(out + x)


class CifarResNet(nn.Module):
    """CIFAR ResNet of depth 6n+2 with three stages of n blocks."""

    def __init__(self, depth: int, width: float, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        widths = tuple(_scaled(base, width) for base in (16, 32, 64))
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks, 1)
        self.layer2 = _stage(widths[0], widths[1], blocks, 2)
        self.layer3 = _stage(widths[1], widths[2], blocks, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 (N, C, H, W) → logits (N, classes)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.dropout(self.pool(x).flatten(1)))


def _stage(before: int, after: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Residual(before, after, stride), *(Residual(after, after, 1) for _ in range(blocks - 1)))


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def names() -> tuple[str, ...]:
    """Every model name."""
    return SMALL_NAMES


def library_weights(name: str) -> tuple[str, ...]:
    """None: these networks come with no weights of their own."""
    return ()


def create(model: ModelSpec, classes: int, channels: int, *, new_head: bool = False) -> nn.Module:
    """See `Family.create`."""
    refuse_unknown(model, SMALL_NAMES)
    if isinstance(model.weights, str):
        raise EdgeError(
            f"`{model.section}.weights`: no file `{model.weights}`, and family `small` has no weights of its own",
            "give the path of a .safetensors or .pt file, or remove `weights` and train",
        )
    net: nn.Module
    if model.name.startswith("resnet"):
        net = CifarResNet(int(model.name.removeprefix("resnet")), model.width, channels, classes, model.dropout)
    else:
        pooled = model.name == "simple"
        base = ((32, 1), (64, 1), (128, 1)) if pooled else GAP_BLOCKS[model.name]
        blocks = tuple((_scaled(width, model.width), convolutions) for width, convolutions in base)
        net = Gap(blocks, channels, classes, model.dropout, pooled=pooled)
    for module in net.modules():  # He et al. 2015 (arXiv:1502.01852): keeps the variance through ReLU
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if model.weights is not None:
        load_file(net, model.weights, new_head=new_head)
    check_fits(net, model, classes, channels)
    return net
