"""timm's models by name. `weights`: a file, `pretrained` for timm's default, or the tag of one of its weights."""

from __future__ import annotations

import timm
from torch import nn

from edgecnn import progress
from edgecnn.errors import EdgeError
from edgecnn.families import nearest, refuse_unknown
from edgecnn.families.finetune import finetune_quantized as finetune_quantized
from edgecnn.families.weights import check_fits, load_file
from edgecnn.recipe import ModelSpec


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
    asked = str(model.weights)
    known = library_weights(architecture)
    if asked not in known:
        raise EdgeError(
            f"`{model.section}.weights`: no file `{asked}`, and timm has no weights `{asked}` for `{architecture}`",
            nearest(asked, known, "weights"),
        )
    chosen = tag if asked == "pretrained" else asked
    name = f"{architecture}.{chosen}" if chosen else architecture
    config = timm.get_pretrained_cfg(name)
    if config.num_classes != classes:
        if not new_head:
            raise EdgeError(
                f"timm's weights `{name}` answer {config.num_classes} classes, the data has {classes}",
                "train (`train.epochs` above 0 starts a new head), or take weights for these classes",
            )
        progress.current().note(
            f"timm `{name}`: {config.num_classes} classes; a new head for {classes} starts untrained"
        )
    try:
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # huggingface_hub's, urllib's and socket errors
        text = str(error).split("\n")[0]
        raise EdgeError(
            f"timm's weights `{name}` could not be fetched: {text}",
            f"where there is a network, download model.safetensors of https://huggingface.co/{config.hf_hub_id} "
            "and write `weights: ./model.safetensors`",
        ) from error
