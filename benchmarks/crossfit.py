"""Cross-fitted mAP of the detectors with intervals, from the boxes that `quantizers.py` kept: run that first.

    EDGECNN_DATA=… python benchmarks/crossfit.py [--only yolov8n] [--draws 1]

Every tool's drop against float, and its distance to ours, by the paired bootstrap over all images of the draw (1,000
resamples, one-sided 95 % bounds). In points of mAP50-95 as our own accumulation counts it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from packs import DETECTORS, WORK, BenchModel, bench_model
from quantizer_runs import FLOAT, PEERS, Tool, kept_detections, result_path

from edgecnn.tasks.detect.average_precision import MapDrop, Matches, map_drop, match
from edgecnn.tasks.detect.boxes import Boxes

RUNGS = ("ranges,equalize,bias,clip", "ranges,equalize,bias,clip,adaround")
CLASSES = 80


def truth(bench: BenchModel) -> Boxes:
    """The labelled boxes of all images."""
    counts = [len(one.classes) for one in bench.truths]
    boxes = np.concatenate([one.boxes for one in bench.truths]).astype(np.float32)
    classes = np.concatenate([one.classes for one in bench.truths])
    sizes = np.array([(fit.height, fit.width) for fit in bench.fits], np.int32)
    return Boxes(np.cumsum([0, *counts]).astype(np.int64), boxes, classes, np.zeros(len(classes), bool), sizes)


def matches(bench: BenchModel, tool: Tool, draw: int, given: Any) -> Matches | None:
    """A tool's boxes matched with the labels; None where it was not run."""
    path = result_path(bench.name, tool, draw, given)
    if not path.with_suffix(".npz").exists():
        return None
    numbers, found = kept_detections(path)
    return match(found, truth(bench).take(numbers), CLASSES)


def rows(bench: BenchModel, draw: int, given: Any) -> Iterator[str]:
    """One row a tool: mAP, drop against float, and what ours has more."""
    exact = matches(bench, FLOAT, draw, given)
    if exact is None:
        return
    own = [Tool(f"ours {rungs.replace(',', '+')}", "ours", rungs) for rungs in RUNGS]
    found = {tool.name: matches(bench, tool, draw, given) for tool in (*own, *PEERS)}
    ours = [found[tool.name] for tool in own]
    for name, one in found.items():
        if one is None:
            continue
        ahead = [
            _words(map_drop(mine, one, "map50_95")) if mine is not None and mine is not one else "-" for mine in ours
        ]  # fmt: skip
        value = 100 * float(one.mean_ap("map50_95")[0])
        lost = _words(map_drop(exact, one, "map50_95"))
        yield f"| {bench.name} | {draw} | {name} | {value:.2f} | {lost} | {' | '.join(ahead)} |"


def _words(drop: MapDrop) -> str:
    return f"{100 * drop.point:+.2f} ({100 * drop.lower:+.2f} … {100 * drop.upper:+.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=DETECTORS, action="append", help="repeatable")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--work", type=Path, default=WORK)
    given = parser.parse_args()
    given.limit, given.folds = None, 2
    print("| model | draw | quantizer | mAP | drop | ours has more | ours with AdaRound has more |")
    print("|---|---|---|---|---|---|---|")
    for name in given.only or DETECTORS:
        bench = bench_model(name, Path(os.environ["EDGECNN_DATA"]), given.work)
        for draw in range(given.draws):
            for row in rows(bench, draw, given):
                print(row, flush=True)


if __name__ == "__main__":
    main()
