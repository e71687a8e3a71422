"""Rung `qat`: the weights, biases and step sizes are trained on, taught by the float model (LSQ, Esser et al. 2020).

Only for a network that was trained here: its training images are known. The training itself is in another process;
this room knows only the files that go there and come back.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from edgecnn.process.errors import EdgeError
from edgecnn.quantize.ladder import checkpoint
from edgecnn.quantize.ladder.candidate import Candidate, Tools
from edgecnn.quantize.torch.finetune import finetune_quantized


def qat(candidate: Candidate, tools: Tools) -> Candidate:
    """Train the candidate with fake quantization at exactly its Q/DQ edges.

    What comes back has the same placement, trained float weights in its graph, their integers with learned scales,
    biases and learned ranges. It is kept if on select its top-1 is higher, or equal with a smaller loss; a killed
    training continues after its last epoch.

    Raises:
        EdgeError: see `finetune_quantized`; or torch is not installed.
    """
    network = tools.network
    if network is None:
        return _unchanged(candidate, "this ONNX file has no torch model that could be trained")
    key = hashlib.sha256(f"{checkpoint.digest(candidate)} {network.qat.model_dump_json()}".encode())
    out = tools.folder / "qat" / key.hexdigest()[:16]
    result = out / "finetuned.npz"
    found = checkpoint.read(result, candidate.model)
    if found is None:
        out.mkdir(parents=True, exist_ok=True)
        for name, model in (("float.onnx", candidate.model), ("teacher.onnx", tools.graph.model)):
            (out / name).write_bytes(checkpoint.model_bytes(model))
        checkpoint.write(out / "start.npz", candidate, candidate.model, {"scheme": tools.scheme.model_dump()})
        finetune_quantized(out, out / "float.onnx", out / "start.npz", network, out / "teacher.onnx")
        found = checkpoint.read(result, candidate.model)
    if found is None:
        raise EdgeError(f"training left no readable `{result}`", "free space on that disk, then quantize again")
    trained, told = found
    (before, loss_before), (after, loss_after) = told["before"], told["after"]
    change = f"{100 * before:.2f} % → {100 * after:.2f} % top-1 on select in {told['epochs']} epochs"
    if (after, -loss_after) <= (before, -loss_before):
        return _unchanged(candidate, f"training gained nothing: {change}")
    return replace(
        trained,
        methods=dict.fromkeys(trained.ranges, "learned"),
        rungs=(*candidate.rungs, "qat"),
        notes=(*candidate.notes, f"qat: {change}"),
    )


def _unchanged(candidate: Candidate, why: str) -> Candidate:
    return replace(candidate, notes=(*candidate.notes, f"qat: {why}"))
