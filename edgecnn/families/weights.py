"""Weight files: read without ever running code from them, and fitted to a network or refused with reasons."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecnn import progress
from edgecnn.errors import EdgeError
from edgecnn.recipe import ModelSpec

State = dict[str, torch.Tensor]
TORCH_SUFFIXES = (".pt", ".pth", ".th")
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which trainers put the state dict
TRUST = "EDGECNN_TRUST_WEIGHTS"  # the build command tells its child processes by it
PREFIXES = ("module.", "_orig_mod.")  # DataParallel and torch.compile


def read_weights(path: Path) -> State:
    """The state dict in a `.safetensors` or torch file (`weights_only`), unwrapped, without `module.` prefixes.

    With EDGECNN_TRUST_WEIGHTS=1 (`--trust-weights`) a torch file may hold anything, and can run code while it loads.

    Raises:
        EdgeError: no such file, not readable, a pickle with anything but tensors (the refused global is named).
    """
    if not path.is_file():
        raise EdgeError(f"weights `{path}` do not exist", "correct `weights`, or remove it and train")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load_safetensors

        try:
            content = load_safetensors(str(path))
        except (SafetensorError, OSError) as error:
            raise EdgeError(
                f"`{path}` is not a readable safetensors file: {error}", "fetch or save it again"
            ) from error
    elif path.suffix in TORCH_SUFFIXES:
        content = _read_torch(path)
    else:
        raise EdgeError(
            f"weights `{path}` have the ending `{path.suffix}`", f"known are .safetensors, {', '.join(TORCH_SUFFIXES)}"
        )
    return _unwrapped(content, path)


def _read_torch(path: Path) -> Any:
    trusted = os.environ.get(TRUST) == "1"
    try:
        return torch.load(path, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|global)[: ]+`?([A-Za-z_][\w.]*\.\w+)", str(error))
        asked = f": it asks for `{refused.group(1)}`" if refused else ""
        raise EdgeError(
            f"`{path}` is a pickle that holds more than weights{asked}",
            "edgecnn runs no code from a weights file; if you trust where it came from, save its state dict: "
            "torch.save(model.state_dict(), 'weights.pt'), or build with --trust-weights",
        ) from error
    except Exception as error:  # torch.load raises many kinds for a damaged file
        text = str(error).split("\n")[0]
        raise EdgeError(f"`{path}` is not a readable torch file: {text}", "fetch or save it again") from error


def _unwrapped(content: Any, path: Path) -> State:
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), (dict, nn.Module)):
            content = content[wrapper]
    if isinstance(content, nn.Module):  # only a trusted file can hold one
        content = content.state_dict()
    if not isinstance(content, dict) or not content:
        raise EdgeError(f"`{path}` holds no state dict", "save one: torch.save(model.state_dict(), 'weights.pt')")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise EdgeError(
                f"`{path}` holds no state dict: `{name}` is {type(value).__name__}, not a tensor",
                "save one: torch.save(model.state_dict(), 'weights.pt')",
            )
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def load_file(net: nn.Module, path: Path, *, new_head: bool) -> None:
    """Read a weight file and fit it to the network; see `read_weights` and `fit_state`."""
    fit_state(net, read_weights(path), f"`{path}`", new_head=new_head)


def fit_state(net: nn.Module, state: State, source: str, *, new_head: bool) -> None:
    """Copy a state dict into the network, float32.

    Two differences are bridged, and said: RGB weights in a gray network (the first convolution's weights are summed
    over RGB, which answers the same for a gray image), and, with `new_head`, another number of classes.

    Raises:
        EdgeError: anything else that doesn't fit; the first keys are named.
    """
    own = net.state_dict()
    state = {name: value for name, value in state.items() if name in own or not name.endswith("num_batches_tracked")}
    first, head = _first_convolution(net), head_of(net)
    stem = f"{first}.weight"
    if stem in state and stem in own and state[stem].ndim == 4:
        given, wanted = state[stem].shape, own[stem].shape
        if given[1] == 3 and wanted[1] == 1 and given[0] == wanted[0] and given[2:] == wanted[2:]:
            state = {**state, stem: state[stem].sum(1, keepdim=True)}
            progress.current().note(f"{source}: RGB weights; the first convolution is summed for gray images")
    misfits = [name for name in state if name in own and state[name].shape != own[name].shape]
    absent = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    if misfits and not absent and not unknown and all(name.rpartition(".")[0] == head for name in misfits):
        given_classes, classes = state[misfits[0]].shape[0], own[misfits[0]].shape[0]
        if not new_head:
            raise EdgeError(
                f"the weights {source} answer {given_classes} classes, the data has {classes}",
                "train (`train.epochs` above 0 starts a new head), or take weights for these classes",
            )
        progress.current().note(
            f"{source}: {given_classes} classes; a new head `{head}` for {classes} starts untrained"
        )
        state = {name: value for name, value in state.items() if name not in misfits}
        misfits = []
    if misfits or absent or unknown:
        raise EdgeError(
            f"the weights {source} don't fit the network: " + _difference(state, own, misfits, absent, unknown),
            "check `model.name`, `model.width` and the number of classes against what was trained",
        )
    net.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()}, strict=False)


def _difference(state: State, own: State, misfits: list[str], absent: list[str], unknown: list[str]) -> str:
    lines = [f"`{name}` is {tuple(state[name].shape)}, wanted {tuple(own[name].shape)}" for name in misfits[:3]]
    lines += [f"`{name}` is not in the file" for name in absent[:3]]
    lines += [f"`{name}` is not in the network" for name in unknown[:3]]
    count = len(misfits) + len(absent) + len(unknown)
    return "; ".join(lines) + (f" ({count} keys in all)" if count > len(lines) else "")


def _first_convolution(net: nn.Module) -> str:
    return next((name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)), "")


def head_of(net: nn.Module) -> str:
    """Path of the layer that makes the logits: the last linear layer, else the last convolution."""
    for kind in (nn.Linear, nn.Conv2d):
        found = [name for name, module in net.named_modules() if isinstance(module, kind)]
        if found:
            return found[-1]
    return ""


def check_fits(net: nn.Module, model: ModelSpec, classes: int, channels: int) -> None:
    """Raise an EdgeError unless the network takes the recipe's image size and answers (N, classes)."""
    size = model.image_size
    training = net.training
    net.eval()
    try:
        with torch.no_grad():
            answer = net(torch.zeros(2, channels, size, size))
    except Exception as error:  # each network fails in its own way
        text = str(error).split("\n")[0]
        raise EdgeError(
            f"{model.family}'s `{model.name}` can't take images of {size} pixels: {text}",
            f"change `{model.section}.image_size`, or take another model",
        ) from error
    finally:
        net.train(training)
    if not isinstance(answer, torch.Tensor) or answer.shape != (2, classes):
        raise EdgeError(
            f"{model.family}'s `{model.name}` is no classifier: it does not answer one number per class",
            "take another model",
        )
