"""What the rung `adaround` gains, and what stays: `EDGECNN_DATA=… python benchmarks/learned.py --only resnet20`.

For every model of `packs.py`, TensorRT's scheme, float simulation, ranges `auto`, one calibration draw: output SQNR on
scored images before and after, of the whole, of weights alone and of activations alone; agreement; seconds. Where the
whole is as low as the activations alone, no rounding of weights can gain more.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import packs

from edgecnn.quantize.noise.split import only_activations, only_weights
from edgecnn.quantize.rungs.learned.adaround import adaround
from edgecnn.recipe.load import load_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=packs.MODELS, action="append")
    parser.add_argument("--limit", type=int, default=None, help="scored images")
    parser.add_argument("--draw", type=int, default=0)
    given = parser.parse_args()
    scheme = load_device("jetson-orin-nano").scheme
    print("| model | | SQNR dB: whole | weights alone | activations alone | agreement | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="edgecnn-learned-") as scratch:
        for name in given.only or packs.MODELS:
            bench = packs.bench_model(name, Path(os.environ["EDGECNN_DATA"]))
            tools, before = packs.ladder_tools(bench, scheme, given.draw, Path(scratch, name))
            numbers = bench.scored_of(given.draw)[: given.limit]
            reference = bench.outputs(bench.model, simulate=False, numbers=numbers)
            start = time.perf_counter()
            after = adaround(before, tools)
            seconds = {"before": 0.0, "after": time.perf_counter() - start}
            for label, candidate in (("before", before), ("after", after)):
                models = (
                    candidate.quantized(scheme), only_weights(candidate, scheme), only_activations(candidate, scheme)
                )  # fmt: skip
                outputs = [bench.outputs(model, numbers=numbers) for model in models]
                cells = [
                    ", ".join(f"{value:.2f}" for value in bench.sqnr(reference, each).values()) for each in outputs
                ]
                agreement = 100 * bench.agreement(reference, outputs[0])
                print(
                    f"| {name} | {label} | {' | '.join(cells)} | {agreement:.2f} % | {seconds[label]:.0f} |", flush=True
                )


if __name__ == "__main__":
    main()
