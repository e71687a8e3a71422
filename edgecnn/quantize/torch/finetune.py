"""Quantization-aware training, the same for every family: the graph is trained, not the network that it came from."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.process.child import run_child
from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import install_command

if TYPE_CHECKING:
    from edgecnn.quantize.ladder.candidate import Network


def finetune_quantized(out: Path, model: Path, placement: Path, data: Network, teacher: Path) -> None:
    """Train a float ONNX graph with fake quantization at exactly the edges of a placement, in a child process.

    Args:
        out: takes finetuned.npz, a candidate as `ladder.checkpoint` writes it, which tells its `epochs` and,
            `before` and `after` them, [top-1 as a fraction, mean cross-entropy] on select. In `out/resume/` a
            checkpoint after each epoch, from which a killed run continues.
        model: the float ONNX graph to train, canonical, with its `edgecnn.io` metadata.
        placement: a candidate of that graph as `ladder.checkpoint` writes it, which tells its `scheme`.
        data: the training images, and the settings.
        teacher: the float ONNX graph whose answers it must keep.

    Raises:
        EdgeError: torch is not installed, an operator that it can't run here, a loss that is not a number, or no GPU
            where one is asked for.
    """
    if find_spec("torch") is None:
        raise EdgeError("the rung `qat` needs `torch`, which is not installed", install_command("train"))
    scratch = out / "resume"
    scratch.mkdir(parents=True, exist_ok=True)
    job = {
        "model": data.model.model_dump(mode="json", exclude={"weights"}),
        "train": data.qat.model_dump(mode="json"),
        "images": data.images.model_dump(mode="json"),
        "data": str(data.data),
        "graph": str(model),
        "placement": str(placement),
        "reference": str(teacher),
        "out": str(out),
    }
    # A crash or an out-of-memory in torch must not end the quantizer, which holds a candidate already.
    run_child("edgecnn.quantize.torch.qat_child", job, scratch / "qat.log")
