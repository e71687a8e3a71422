"""timm's models by name. `weights`: a file, `pretrained` for timm's default, or the tag of one of its weights."""

from __future__ import annotations

import timm
from torch import nn

from edgecnn.families import refuse_unknown, refuse_weights
from edgecnn.families.weights import check_fits, load_file, not_fetched, start_head
from edgecnn.recipe.recipe import ModelSpec


def names() -> tuple[str, ...]:
    """Every model name, without tags."""
    return tuple(timm.list_models())


def library_weights(name: str) -> tuple[str, ...]:
    """Tags of timm's weights for a model, and `pretrained` for its default one."""
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    return ("pretrained", *(tag for tag in tags if tag)) if tags else ()


def create(model: ModelSpec, classes: int, channels: int, *, new_head: bool = False) -> nn.Module:
    """See `Family.create`. A tag in the name (`resnet18.a1_in1k`) chooses weights only with `weights: pretrained`."""
    refuse_unknown(model, names())
    architecture, _, tag = model.name.partition(".")
    extra: dict[str, object] = {}
    config = timm.get_pretrained_cfg(architecture)
    if config is not None and config.fixed_input_size:
        extra["img_size"] = model.image_size
    options = {"num_classes": classes, "in_chans": channels, "drop_rate": model.dropout, **extra}
    if isinstance(model.weights, str):
        net = _pretrained(model, architecture, tag, classes, options, new_head=new_head)
    else:
        net = timm.create_model(architecture, pretrained=False, **options)
        if model.weights is not None:
            load_file(net, model.weights, new_head=new_head)
    check_fits(net, model, classes, channels)
    return net


def _pretrained(
    model: ModelSpec, architecture: str, tag: str, classes: int, options: dict[str, object], *, new_head: bool
) -> nn.Module:
    refuse_weights(model, "timm", library_weights(architecture))
    chosen = tag if model.weights == "pretrained" else model.weights
    name = f"{architecture}.{chosen}" if chosen else architecture
    config = timm.get_pretrained_cfg(name)
    if config.num_classes != classes:
        start_head(f"`{name}`", config.num_classes, classes, "its head", new_head=new_head)
    try:
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # huggingface_hub's, urllib's and socket errors
        url = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors"
        raise not_fetched(f"timm's weights `{name}`", model, error, url) from error
