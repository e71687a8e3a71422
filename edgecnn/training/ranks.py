"""One process or several: what torchrun says in RANK, LOCAL_RANK and WORLD_SIZE."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import TrainSpec


@dataclass(frozen=True)
class Ranks:
    """This process among `world`; only the first writes and speaks."""

    rank: int = 0
    local: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def agreed(self, values: list[float], device: torch.device) -> list[float]:
        """The first process's numbers, in every process; float64 keeps them exact."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return [float(value) for value in shared.tolist()]

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join torchrun's process group while the context lasts; alone without torchrun."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", os.environ["RANK"])), world)
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()


def pick_device(train: TrainSpec, ranks: Ranks) -> torch.device:
    """The device of `train.device`; `auto` takes a GPU when there is one.

    Raises:
        EdgeError: `cuda` is asked for and torch sees no GPU.
    """
    if train.device == "cpu" or (train.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise EdgeError(
            "`train.device` is cuda, but torch sees no GPU here", "write `device: auto`, or install torch for CUDA"
        )
    return torch.device("cuda", ranks.local)
