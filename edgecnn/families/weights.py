"""Weight files: read without ever running code from them, and fitted to a network or refused with reasons."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecnn.families.pickled import Record, State, read_torch, state_of
from edgecnn.families.pooling import Pools
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import ModelSpec

TORCH_SUFFIXES = (".pt", ".pth", ".th")
# Keys under which trainers put a network or its state dict: averaged over the training steps, and as it was last.
AVERAGED = (
    "state_dict_ema", "model_ema", "ema", "ema_state_dict", "model_state_dict_ema", "model_ema_state_dict", "ema_model",
    "averaged_model", "swa_model", "swa_state_dict",
)  # fmt: skip
LAST = ("state_dict", "model_state_dict", "model", "online_model", "module", "net", "network")
TRUST = "EDGECNN_TRUST_WEIGHTS"  # the build command tells its child processes by it
PREFIXES = ("module.", "_orig_mod.")  # DataParallel and torch.compile
COUNT = "n_averaged"  # beside the weights of torch.optim.swa_utils.AveragedModel


def read_weights(path: Path, whole: re.Pattern[str] | None = None) -> State:
    """The state dict in a `.safetensors` or torch file, unwrapped, without `module.` prefixes.

    Where the file holds averaged weights beside those of the last step, the averaged ones are taken, and it is said.
    With EDGECNN_TRUST_WEIGHTS=1 (`--trust-weights`) a torch file may hold anything, and can run code while it loads.

    Args:
        whole: full names of the classes that a network saved whole may consist of; see `pickled.read_torch`.

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
        content = read_torch(path, whole, trusted=os.environ.get(TRUST) == "1")
    else:
        raise EdgeError(
            f"weights `{path}` have the ending `{path.suffix}`", f"known are .safetensors, {', '.join(TORCH_SUFFIXES)}"
        )
    return _chosen(content, path)


def _chosen(content: Any, path: Path) -> State:
    """The state dict to take of all that a file holds; averaged weights first."""
    last = _first(content, LAST)
    for key in AVERAGED:
        value = content.get(key) if isinstance(content, dict) else None
        if not value or not isinstance(value, (dict, Record, nn.Module)):
            continue
        if state := _state(value):
            if last:
                progress.current().note(f"`{path}`: using the averaged weights (`{key}`), not those of the last step")
            return state
        progress.current().note(f"`{path}`: `{key}` holds no state dict; averaged weights in another form are not used")
    state = last or _state(content)
    if not state:
        raise EdgeError(
            f"`{path}` holds no state dict{_reason(content)}",
            "save one: torch.save(model.state_dict(), 'weights.pt')",
        )
    if averaged := _averaged_beside(state):
        progress.current().note(f"`{path}`: using the averaged weights (`{averaged[0]}.…`), not those of the last step")
        return averaged[1]
    return state


def _first(content: object, keys: tuple[str, ...]) -> State | None:
    """The state dict under the first of some keys that has one."""
    found = (_state(content[key]) for key in keys if isinstance(content, dict) and key in content)
    return next((state for state in found if state), None)


def _state(value: object, depth: int = 0) -> State | None:
    """The state dict that a value is or wraps, without prefixes; None where it is something else."""
    if isinstance(value, Record):
        try:
            value = state_of(student_of(value))
        except ValueError:
            return None
    if isinstance(value, nn.Module):  # only a trusted file can hold one
        value = getattr(value, "student_model", value).state_dict()
    if not isinstance(value, dict) or not value or depth > 3:
        return None
    if all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()):
        state = {name: tensor for name, tensor in value.items() if name != COUNT}
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        return state
    found = (_state(value[key], depth + 1) for key in (*AVERAGED, *LAST) if key in value)
    return next((state for state in found if state), None)


def _averaged_beside(state: State) -> tuple[str, State] | None:
    """(prefix, weights) of averaged weights that lie beside the last ones in one state dict, under a prefix."""
    for key in AVERAGED:
        averaged = _state({name.removeprefix(f"{key}."): t for name, t in state.items() if name.startswith(f"{key}.")})
        others = [name for name in state if not name.startswith(f"{key}.")]
        for last in LAST:
            if averaged and averaged.keys() == {name.removeprefix(f"{last}.") for name in others}:
                return key, averaged
    return None


def student_of(network: Record) -> Record:
    """The network itself where Ultralytics saved it together with its teacher."""
    student = (network.state.get("_modules") or {}).get("student_model")
    return student if isinstance(student, Record) else network


def _reason(content: object) -> str:
    """What is wrong with something that is not a state dict, for a message."""
    if not isinstance(content, dict):
        return ""
    wrong = [(name, value) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    return f": `{wrong[0][0]}` is {type(wrong[0][1]).__name__}, not a tensor" if wrong else ""


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
    for name, value in state.items():
        if value.is_nested:
            raise EdgeError(f"`{name}` of the weights {source} is a nested tensor", "save plain tensors")
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
        start_head(source, given_classes, classes, f"its head `{head}`", new_head=new_head)
        state = {name: value for name, value in state.items() if name not in misfits}
        misfits = []
    if misfits or absent or unknown:
        raise EdgeError(
            f"the weights {source} don't fit the network: " + _difference(state, own, misfits, absent, unknown),
            "check `model.name`, `model.width` and the number of classes against what was trained",
        )
    for name, value in state.items():
        if why := _no_number(value, own[name]):
            raise EdgeError(
                f"the weights {source} don't fit the network: `{name}` {why}",
                "save the trained float weights: torch.save(model.state_dict(), 'weights.pt')",
            )
    net.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()}, strict=False)


def start_head(source: str, given: object, classes: int, head: str, *, new_head: bool) -> None:
    """Say that the part of a network which tells classes apart starts untrained.

    Raises:
        EdgeError: `new_head` does not allow it.
    """
    if not new_head:
        raise EdgeError(
            f"the weights {source} answer {given} classes, the data has {classes}",
            "train (`train.epochs` above 0 starts a new head), or take weights for these classes",
        )
    progress.current().note(f"{source}: {given} classes; for {classes}, {head} will start untrained")


def not_fetched(what: str, model: ModelSpec, error: Exception, url: str) -> EdgeError:
    """Published weights that the network does not give, and how to bring them."""
    return EdgeError(
        f"{what} could not be fetched: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
        f"where there is a network, download {url} and write `{model.section}.weights: ./{url.rpartition('/')[2]}`",
    )


def _no_number(value: torch.Tensor, own: torch.Tensor) -> str:
    """Why a tensor can't stand for the network's own; empty where it can."""
    if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        return f"is not a plain array ({value.layout}, {value.dtype})"
    if value.is_floating_point() != own.is_floating_point() or value.is_complex():
        return f"holds {value.dtype}, wanted {own.dtype}"
    if value.is_floating_point() and bool(torch.isnan(value.float()).any()):
        return "holds values that are not numbers (NaN)"
    return ""


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
    """Raise an EdgeError unless the network takes the image size, can be exported at it, and answers (N, classes)."""
    size = model.image_size
    training = net.training
    net.eval()
    try:
        with torch.no_grad(), Pools():
            answer = net(torch.zeros(2, channels, size, size))
    except EdgeError:
        raise
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
            f"{model.family}'s `{model.name}` is not a classifier: it does not answer one number per class",
            "take another model",
        )
