"""Models made hard on purpose, by hand: `python benchmarks/hard.py`. Equalization alone must bring them back.

Channels between two convolutions are multiplied by 2^-4 … 2^4 and divided again by the second one's weights: the same
function in float (asserted), but one scale per activation tensor no longer fits its channels. ResNet-56 on its
conv → ReLU → conv links, EfficientNet-Lite0 on its linear links (conv → conv with nothing between), since ReLU6 is not
homogeneous. TensorRT scheme, 256 calibration images, float simulation. Exit 1 unless plain quantization loses more than
10 points of top-1 and the rung `equalize` alone ends within 0.5 points of float.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from packs import WORK, BenchModel, bench_model, ladder_tools

from edgecnn.quantize.graph.canonical import canonical, constant
from edgecnn.quantize.graph.sessions import open_session, run_each
from edgecnn.quantize.rungs.equalize import equalize
from edgecnn.recipe.device import Scheme

TENSORRT = Scheme(activations="int8-symmetric", islands="float16", placement="tensorrt")
LINKS: dict[str, tuple[str, ...]] = {"resnet56": ("Relu",), "efficientnet-lite0": ()}
FURTHEST = 4  # factors from 2^-4 to 2^4
LOSS, LEFT = 0.10, 0.005
TOLERANCE = 1e-4


def made_hard(model: ir.Model, through: tuple[str, ...], seed: int = 0) -> int:
    """Rescale in place every link conv → (an operator of `through`, or nothing) → conv; how many there were."""
    rng = np.random.default_rng(seed)
    made = 0
    for node in model.graph:
        if node.op_type != "Conv":
            continue
        reader = _only_reader(node)
        if reader is not None and through and reader.op_type in through:
            reader = _only_reader(reader)
        elif through:
            continue
        if reader is None or reader.op_type != "Conv" or _group(reader) != 1 or _group(node) != 1:
            continue
        first, second = constant(node.inputs[1]), constant(reader.inputs[1])
        assert first is not None
        assert second is not None
        factors = np.exp2(rng.integers(-FURTHEST, FURTHEST + 1, len(first))).astype(np.float32)
        _set(node.inputs[1], first * factors[:, None, None, None])
        _set(reader.inputs[1], second / factors[None, :, None, None])
        if len(node.inputs) > 2 and (bias := constant(node.inputs[2])) is not None:
            _set(node.inputs[2], bias * factors)
        made += 1
    return made


def _only_reader(node: ir.Node) -> ir.Node | None:
    uses = node.outputs[0].uses()
    return uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None


def _group(node: ir.Node) -> int:
    found = node.attributes.get("group")
    return 1 if found is None else int(found.value)


def _set(value: ir.Value | None, array: np.ndarray) -> None:
    assert value is not None
    value.const_value = ir.tensor(array, name=value.name)


def hard_model(bench: BenchModel, work: Path) -> tuple[BenchModel, int, float]:
    """The model made hard, its rescaled links, and how far its float outputs are from the original's (relative)."""
    model = canonical(bench.model)
    links = made_hard(model, LINKS[bench.name])
    path = work / f"{bench.name}-hard.onnx"
    ir.save(model, path)
    feeds = [bench.contract.feed(bench.scored[n : n + bench.batch]) for n in range(0, 16, bench.batch)]
    pairs = zip(run_each(open_session(bench.model), feeds), run_each(open_session(path), feeds), strict=True)
    apart = max(float(np.abs(a[0] - b[0]).max() / np.abs(a[0]).max()) for a, b in pairs)
    assert apart <= TOLERANCE, f"{bench.name}: float outputs {apart:.1e} apart"
    return replace(bench, model=path), links, apart


def measured(name: str, data: Path, work: Path, images: int | None) -> bool:
    """Print one model's rows; whether it is lost by plain quantization and brought back by equalization."""
    bench, links, apart = hard_model(bench_model(name, data, work), work)
    tools, plain = ladder_tools(bench, TENSORRT, 0, work / f"{name}-hard")
    start = time.monotonic()
    recovered = equalize(plain, tools)
    seconds = time.monotonic() - start
    reference = bench.outputs(bench.model, simulate=False, limit=images)
    top = bench.metric(reference)
    shown, drops = [f"float {100 * top:.2f}"], []
    for title, candidate in (("plain INT8", plain), ("equalize", recovered)):
        outputs = bench.outputs(candidate.quantized(TENSORRT), limit=images)
        drops.append(top - bench.metric(outputs))
        sqnr = bench.sqnr(reference, outputs)["logits"]
        shown.append(f"{title} {100 * (top - drops[-1]):.2f} ({sqnr:.1f} dB)")
    print(f"{name}: {links} links rescaled, float outputs {apart:.0e} apart; {', '.join(shown)}; rung {seconds:.0f} s")
    print(f"  {len(reference) * bench.batch} images at most; rungs {', '.join(recovered.rungs) or 'none'}", flush=True)
    return drops[0] > LOSS and drops[1] <= LEFT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--images", type=int, help="score only the first so many")
    parser.add_argument("--only", choices=tuple(LINKS), action="append")
    given = parser.parse_args()
    data = Path(os.environ["EDGECNN_DATA"])
    good = [measured(name, data, given.work, given.images) for name in given.only or LINKS]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
