"""Quantization-aware training, the same for every family: the graph is trained, not the network that it came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.process.child import run_child

if TYPE_CHECKING:
    from edgecnn.quantize.candidate import Network


def finetune_quantized(out: Path, model: Path, placement: Path, data: Network, teacher: Path) -> None:
    """See `Family.finetune_quantized`."""
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
    # By name, as export does: the training room reads families, so families cannot import it; and a crash or an
    # out-of-memory in torch must not end the quantizer, which holds a candidate already.
    run_child("edgecnn.training.qat_child", job, scratch / "qat.log")
