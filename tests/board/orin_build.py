"""A whole build on a stand-in board, in a process of its own, to be interrupted and killed.

    python orin_build.py RECIPE DEVICE STORE RUNS [KEY=VALUE …]

As `edgecnn build RECIPE --host board`, but that the agent's TensorRT is the recorded one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgecnn.agent.pack import pack_agent
from edgecnn.pipeline import build
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.load import load_device, load_recipe
from edgecnn.store.stage import Store
from edgecnn.targets.hosts import Boards
from edgecnn.targets.ssh import connect_boards
from edgecnn.verdict.runs import publish

RECORDED = Path(__file__).parents[1] / "agent" / "recorded_trt.py"


def main(recipe_file: str, device: str, store_root: str, runs: str, *sets: str) -> None:
    recipe = load_recipe(recipe_file, sets, device)
    remeasure = "--remeasure" in sys.argv
    agent = pack_agent(replace={"backends.tensorrt.trt": RECORDED})
    with progress.showing(progress.Plain(0.5)):
        target = connect_boards(load_device(device), Boards(("board",)), agent)
        store = Store(Path(store_root), recipe=recipe.name, remeasure=remeasure)
        report, evidence = build(recipe, target, store)
    run, report = publish(Path(runs), recipe, report, evidence, [], store.versions)
    print(json.dumps({"run": str(run), "made": [], "report": report.model_dump(mode="json")}))


if __name__ == "__main__":
    try:
        main(*(argument for argument in sys.argv[1:] if argument != "--remeasure"))
    except EdgeError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
    except KeyboardInterrupt:
        sys.exit(130)
