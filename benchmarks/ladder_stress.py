"""Mixed precision under stress, by hand: `EDGECNN_DATA=… python benchmarks/ladder_stress.py [--activation-bits 6]`.

ResNet-20 on CIFAR-10 with the activations of TensorRT's scheme cut to 6 bits (float simulation; no engine has them):
the climb must end in mixed precision, with a set of float layers from which no single one can go back to INT8 within
the budget. The set is found on labelled train images (select); then each of its layers is put back to INT8 alone in a
graph built anew and judged anew on select, where the rule decides. The 10,000 test images are scored before and after.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from packs import WORK, BenchModel, _blob, _kept, bench_model, ladder_tools

from edgecnn.data import Images
from edgecnn.process import progress
from edgecnn.quantize.ladder.candidate import Candidate, Tools
from edgecnn.quantize.ladder.judge import Selected, SelectJudge
from edgecnn.quantize.ladder.ladder import climb
from edgecnn.quantize.place.coverage import coverage
from edgecnn.quantize.place.islands import conversions
from edgecnn.quantize.place.placement import place
from edgecnn.quantize.rungs.mixed import mixed
from edgecnn.quantize.write.rewrite import Overrides
from edgecnn.recipe.load import load_device
from edgecnn.tasks import Drop
from edgecnn.tasks.classify.outcomes import paired_drop


def selected(data: Path, count: int, work: Path) -> Selected:
    """Train images that draw 0 does not calibrate with."""
    chosen = np.random.default_rng(0).permutation(50_000)[256 : 256 + count]
    pack = data / "cifar10-jpeg" / "cifar10_train_jpeg.npz"
    images, labels = _kept(work / f"cifar-select{count}", lambda: _blob(pack, chosen))
    return Selected(Images((images,)), labels)


def right(bench: BenchModel, outputs: list[list[np.ndarray]]) -> np.ndarray:
    """Whether each scored image is answered right."""
    assert bench.labels is not None
    logits = np.concatenate([each[0] for each in outputs])
    return np.asarray(logits.argmax(1) == bench.labels[: len(logits)])


def told(drop: Drop) -> str:
    """Drop and its bounds in points."""
    return f"{100 * drop.point:+.2f} ({100 * drop.lower:+.2f} … {100 * drop.upper:+.2f})"


def with_one_more(candidate: Candidate, tools: Tools, before: Candidate, layer: str) -> Candidate:
    """The candidate with this layer in INT8 too, put together from the parts and not by the rung."""
    kept = tuple(name for name in candidate.placement.kept if name != layer)
    placement = place(tools.graph, tools.scheme, kept)
    known = {**before.ranges, **candidate.ranges}
    biases = {n: b for n, b in before.overrides.biases.items() if n in placement.int8_layers}
    return replace(
        before, placement=placement, overrides=Overrides(before.overrides.weights, biases),
        ranges={a.tensor: known[a.tensor] for a in placement.activations},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--activation-bits", type=int, default=6)
    parser.add_argument("--budget", type=float, default=0.005, help="largest accuracy drop, a fraction of 1")
    parser.add_argument("--select", type=int, default=5000)
    parser.add_argument("--limit", type=int, default=10_000, help="scored images")
    parser.add_argument("--model", choices=("resnet20", "resnet20-jpeg", "resnet56"), default="resnet20")
    parser.add_argument(
        "--alone", action="store_true", help="only the rung `mixed` after `ranges`, not the whole climb"
    )
    parser.add_argument("--each", action="store_true", help="score the test images also with each layer back in INT8")
    parser.add_argument("--work", type=Path, default=WORK)
    given = parser.parse_args()
    data = Path(os.environ["EDGECNN_DATA"])
    bench = bench_model(given.model, data, given.work)
    scheme = load_device("jetson-orin-nano").scheme.model_copy(update={"activation_bits": given.activation_bits})
    with tempfile.TemporaryDirectory(prefix="edgecnn-stress-") as scratch:
        tools, first = ladder_tools(bench, scheme, 0, Path(scratch))
        judge = SelectJudge(
            tools.graph.model, bench.contract, selected(data, given.select, given.work), "top1", scheme,
            most=given.select,
        )  # fmt: skip
        tools = replace(tools, judge=judge, budget=given.budget)
        start = time.monotonic()
        if given.alone:
            before = first
            final = mixed(first, tools)
            rows = [("ranges", judge.drop(first)), ("mixed", judge.drop(final))]
        else:
            below = climb(tools, first.placement, stop_at="adaround")
            climbed = climb(tools, first.placement, stop_at="mixed")
            before, final = below.candidate, climbed.candidate
            rows = [(step.rung + ("" if step.kept else ", not kept"), step.drop) for step in climbed.rungs if step.drop]
        seconds = time.monotonic() - start
        print(f"# {given.model}, {given.activation_bits}-bit activations, TensorRT scheme in float simulation; "
              f"{judge.images:,} select images, budget {100 * given.budget:g} points, so at most "
              f"{50 * given.budget:g} on select; {seconds:.0f} s")  # fmt: skip
        for name, drop in rows:
            print(f"{name}: drop on select {told(drop)}")
        for note in final.notes:
            print(note)
        reference = right(bench, bench.outputs(bench.model, simulate=False, limit=given.limit))

        def scored(candidate: Candidate) -> Drop:
            outputs = bench.outputs(candidate.quantized(scheme), limit=given.limit)
            return paired_drop(reference, right(bench, outputs))

        print(f"\n| | drop on {judge.images:,} select | drop on {len(reference):,} test | MACs in INT8 | conversions |")
        print("|---|---|---|---|---|")

        def row(name: str, candidate: Candidate, *, test: bool = True) -> Drop:
            drop = judge.drop(candidate)
            share = coverage(tools.graph, candidate.placement).macs
            print(f"| {name} | {told(drop)} | {told(scored(candidate)) if test else '-'} | {share:.1%} "
                  f"| {conversions(tools.graph, candidate.placement)} |", flush=True)  # fmt: skip
            return drop

        row("every layer INT8", before)
        assert row("mixed", final).holds(given.budget), "the climb does not hold the budget"
        layers = [name for name in final.placement.kept if name not in before.placement.kept]
        if not layers:
            sys.exit("a rung below `mixed` holds the budget with every layer in INT8: no set to look at")
        for layer in layers:
            drop = row(f"mixed, but `{layer}` INT8", with_one_more(final, tools, before, layer), test=given.each)
            assert not drop.holds(given.budget), f"{layer} can go INT8 within the budget"
        print(f"\nminimal: none of the {len(layers)} float layers can go INT8 within the budget")


if __name__ == "__main__":
    with progress.showing(progress.Plain(30)):
        main()
