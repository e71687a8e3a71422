"""torchvision's classification models by name. `weights`: a file, or a name such as `DEFAULT`, `IMAGENET1K_V1`."""

from __future__ import annotations

from pickle import UnpicklingError

import torch
import torchvision
from torch import nn

from edgecnn.families import fetched_file, refuse_unknown, refuse_weights
from edgecnn.families.pickled import State
from edgecnn.families.weights import check_fits, fit_state, not_fetched, read_weights
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import ModelSpec

# GoogLeNet and Inception train with side heads, and their weight files hold them; here there is one output.
SIDE_HEADS = ("aux1.", "aux2.", "AuxLogits.")


def names() -> tuple[str, ...]:
    """Every model name."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


def library_weights(name: str) -> tuple[str, ...]:
    """Names of torchvision's weights for a model, and `DEFAULT`."""
    return ("DEFAULT", *(weight.name for weight in torchvision.models.get_model_weights(name)))


def create(model: ModelSpec, classes: int, channels: int, *, new_head: bool = False) -> nn.Module:
    """See `Family.create`. `dropout` replaces the rate of every dropout layer, 0 included."""
    refuse_unknown(model, names())
    extra: dict[str, object] = {}
    if model.name in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False, "init_weights": True}
    if model.name.startswith("vit_"):
        extra = {"image_size": model.image_size}
    net = torchvision.models.get_model(model.name, weights=None, num_classes=classes, **extra)
    if channels != 3:
        _take_channels(net, channels)
    _set_dropout(net, model)
    match model.weights:
        case None:
            state = None
        case str() as name:
            state = _download(model, name)
        case path:
            state = read_weights(path)
    if state is not None:
        kept = {key: value for key, value in state.items() if not key.startswith(SIDE_HEADS)}
        fit_state(net, kept, f"`{model.weights}`", new_head=new_head)
    check_fits(net, model, classes, channels)
    return net


def _take_channels(net: nn.Module, channels: int) -> None:
    name, first = next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    parent, _, leaf = name.rpartition(".")
    replacement = nn.Conv2d(
        channels, first.out_channels, first.kernel_size, first.stride, first.padding, first.dilation,
        bias=first.bias is not None,
    )  # fmt: skip
    with torch.no_grad():
        replacement.weight.copy_(first.weight.sum(1, keepdim=True) / 3**0.5)  # the variance that the library chose
        if first.bias is not None:
            replacement.bias.copy_(first.bias)
    setattr(net.get_submodule(parent), leaf, replacement)


def _set_dropout(net: nn.Module, model: ModelSpec) -> None:
    layers = [module for module in net.modules() if isinstance(module, nn.Dropout)]
    if model.dropout and not layers:
        raise EdgeError(
            f"`{model.section}.dropout` is {model.dropout}, but torchvision's `{model.name}` has no dropout layer",
            "set it to 0, or take timm's model of that name",
        )
    for layer in layers:
        layer.p = model.dropout


def _download(model: ModelSpec, name: str) -> State:
    refuse_weights(model, "torchvision", library_weights(model.name))
    told = f"torchvision's weights `{name}` for `{model.name}`"
    weights = torchvision.models.get_model_weights(model.name)[name]
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except UnpicklingError as error:  # what lies in torch's cache is not what was published
        raise EdgeError(
            f"{told} are kept as a pickle that holds more than weights",
            f"remove `{fetched_file(weights.url.rsplit('/')[-1])}`, and they are fetched again",
        ) from error
    except Exception as error:  # urllib, socket and hash errors
        raise not_fetched(told, model, error, weights.url) from error
