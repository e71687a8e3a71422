"""A desk with edgecnn's command line on it: a folder, a store, and a client configuration that knows the boards."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from command_line import edgecnn

MEASURED = ("latency", "when")  # what differs between two builds of the same


class Desk:
    """The command line, in a folder and a store of its own."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder, self.store = folder, folder / "store"
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **os.environ, "EDGECNN_CACHE": str(self.store), "EDGECNN_SSH_CONFIG": str(config), "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def __call__(self, *arguments: str, code: int | tuple[int, ...] = 0) -> subprocess.CompletedProcess[str]:
        done = edgecnn(self.folder, *arguments, **self.environment)
        codes = (code,) if isinstance(code, int) else code
        assert done.returncode in codes, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def build(self, recipe: str, *arguments: str, code: int | tuple[int, ...] = 0) -> Built:
        return Built(self, json.loads(self("build", recipe, "--json", *arguments, code=code).stdout))


class Built:
    """What a build left."""

    def __init__(self, desk: Desk, document: dict[str, Any]) -> None:
        self.desk = desk
        self.made: list[str] = document["made"]
        self.report: dict[str, Any] = document["report"]
        self.run = desk.folder / document["run"]
        self.keys: dict[str, str] = yaml.safe_load((self.run / "recipe.lock.yaml").read_text())["stages"]

    def stage(self, name: str) -> Path:
        """A stage's folder in the store."""
        return self.desk.store / "stages" / name / self.keys[name]

    def json(self, stage: str, name: str) -> dict[str, Any]:
        """One of a stage's JSON files."""
        content: dict[str, Any] = json.loads((self.stage(stage) / name).read_text())
        return content

    def outcomes(self, stage: str) -> dict[str, bytes]:
        """Every array of a score, as bytes."""
        with np.load(self.stage(stage) / "outcomes.npz", allow_pickle=False) as file:
            return {name: file[name].tobytes() for name in file.files}

    def figures(self) -> dict[str, float | None]:
        """Every figure but those of time."""
        return {one["name"]: one["value"] for one in self.report["figures"] if one["group"] not in MEASURED}

    def states(self) -> dict[str, str]:
        """The checks."""
        return {one["name"]: one["state"] for one in self.report["checks"]}
