"""Checkpoints that a kill can't spoil: written beside, synced, renamed. A rerun finds the last finished epoch.

resume/last.pt                    everything to continue after its epoch; names the best epoch
resume/best-0007.safetensors      the weights of the best epoch; older ones go once last.pt no longer names them
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgecnn.families.trained import write_state
from edgecnn.process import progress
from edgecnn.process.disk import fsync, replacing

LAST = "last.pt"
Content = dict[str, Any]


def save(resume: Path, content: Content, best: int, state: dict[str, Any] | None) -> None:
    """Keep an epoch: `state` are its weights when it is the best so far; `best` is the best epoch's number."""
    if state is not None:
        with replacing(best_file(resume, best)) as part:
            write_state(part, state)
        fsync(resume)  # the weights are there before the checkpoint that names them
    with replacing(resume / LAST) as part:
        torch.save(content, part)
    fsync(resume)
    for old in resume.glob("best-*.safetensors"):
        if old != best_file(resume, best):
            old.unlink()


def load(resume: Path) -> Content | None:
    """The last finished epoch's checkpoint, or None when there is none or it can't be read (said)."""
    path = resume / LAST
    if not path.exists():
        return None
    try:
        content: Content = torch.load(path, map_location="cpu", weights_only=True)
        if best_file(resume, content["best_epoch"]).exists():
            return content
    except Exception as error:  # noqa: BLE001  # torch.load raises many kinds for a damaged file
        progress.current().note(f"train: the checkpoint cannot be read ({type(error).__name__}); starting over")
        return None
    progress.current().note("train: the checkpoint's best weights are missing; starting over")
    return None


def best_file(resume: Path, epoch: int) -> Path:
    """Where the best epoch's weights are kept."""
    return resume / f"best-{epoch:04d}.safetensors"
