"""Rung `adaround`: learn which way each weight rounds, block after block, each on what the INT8 graph before it gives.

Rounding: Nagel et al. 2020 ("Up or down?"). Blocks, targets of the float graph and inputs of the quantized one: Li et
al. 2021 (BRECQ). Beside the rounding it learns biases and the activations' scales that only one block reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgecnn.data.archives import DAMAGED
from edgecnn.process import progress
from edgecnn.process.versions import install_command
from edgecnn.quantize.ladder.candidate import Candidate, Tools
from edgecnn.quantize.noise.split import integer_weights, sqnr_of
from edgecnn.quantize.place.placement import Graph
from edgecnn.quantize.write.rewrite import Overrides
from edgecnn.quantize.write.weights import IntegerWeight

if TYPE_CHECKING:
    from edgecnn.quantize.rungs.learned.blocks import Block
    from edgecnn.quantize.rungs.learned.learn import Learned, Plan
    from edgecnn.quantize.rungs.learned.stream import Tensors

NAME = "adaround"
_LEAST_BATCH, _LEAST_ITERATIONS = 2, 60


@dataclass(frozen=True)
class Settings:
    """How much is learned.

    Attributes:
        images: at most, and of these the share that only judges.
        held_bytes: at most, of the tensors held between blocks; decides how many images a model of large tensors gets.
        work: about the multiply-accumulates of all forward passes; decides batches and iterations of large models, so
            that the time does not grow with the model, and that no clock decides a result.
    """

    images: int = 256
    held_share: float = 0.25
    held_bytes: int = 600 << 20  # of block inputs and outputs held at a time
    iterations: int = 200
    work: float = 8e11
    largest_batch: int = 32
    threads: int = 1  # two that share a busy core wait for each other: 65 times slower on small blocks


def adaround(candidate: Candidate, tools: Tools, settings: Settings | None = None) -> Candidate:
    """The candidate with learned weights, biases and ranges, or as it was with a note why.

    Each block's result is kept under `tools.folder / "adaround"` with a digest of all that decided it, so a killed run
    continues. A block is kept only if its error falls on calibration images that it did not learn from, and the whole
    only if the SQNR of the model's outputs rises on them.
    """
    if importlib.util.find_spec("torch") is None:
        return _unchanged(candidate, f"adaround needs torch: {install_command('train')}")
    given = settings or Settings()
    if tools.feeder.count < 2 * tools.feeder.batch:
        return _unchanged(candidate, "adaround needs at least two calibration images")
    with _steady(given.threads, tools.seed):
        return _Climb(candidate, tools, given).run()


def _unchanged(candidate: Candidate, note: str) -> Candidate:
    progress.current().note(note)
    return replace(candidate, notes=(*candidate.notes, note))


@contextlib.contextmanager
def _steady(threads: int, seed: int) -> Iterator[None]:
    """Torch with fixed threads and only deterministic algorithms; as it was afterwards."""
    import torch

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    was = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(min(threads, available))
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_num_threads(was[0])
            torch.use_deterministic_algorithms(was[1], warn_only=only_warned)


class _Climb:
    """One run of the rung: the candidate so far, and where the streams of tensors stand."""

    def __init__(self, candidate: Candidate, tools: Tools, settings: Settings) -> None:
        from edgecnn.quantize.rungs.learned import blocks

        self.start, self.candidate, self.tools, self.settings = candidate, candidate, tools, settings
        self.graph = Graph(candidate.model, tools.graph.shapes)
        self.batch = tools.feeder.batch
        self.blocks = blocks.cut(self.graph, candidate.placement, self.batch)
        self.sample, self.held = self._images()
        self.folder = tools.folder / NAME
        self.folder.mkdir(parents=True, exist_ok=True)
        self.key = self._first_key()
        self.at = self.done = 0
        self.exact: Tensors = {}
        self.given: Tensors = {}
        self.improved: list[float] = []

    def run(self) -> Candidate:
        """Block after block, then the look at the whole."""
        tried = 0
        for number, block in enumerate(progress.track(self.blocks, NAME)):
            for unit in self._units(block):
                tried += 1
                self._learn(number, block, unit)
        before, after = self._judge(self.start), self._judge(self.candidate)
        if after <= before or not self.improved:
            return _unchanged(self.start, f"adaround: no gain on held-out images ({before:.1f} dB → {after:.1f} dB)")
        note = (
            f"adaround: {len(self.improved)} of {tried} blocks learned from {len(self.sample) - self.held} images; "
            f"output SQNR on {self.held} others {before:.1f} → {after:.1f} dB"
        )
        progress.current().note(note)
        return replace(self.candidate, rungs=(*self.start.rungs, NAME), notes=(*self.start.notes, note))

    def _images(self) -> tuple[list[int], int]:
        """Sampled images, those for judging last, and how many these are; both fill whole batches."""
        from edgecnn.quantize.rungs.learned.blocks import alive

        sizes = []
        for number, block in enumerate(self.blocks):
            names = {*alive(self.graph, self.blocks, number), *block.outputs}
            sizes.append(8 * sum(int(np.prod(self.graph.shapes.get(name, (1,)))) for name in names) // self.batch)
        fit = max(2 * self.batch, int(self.settings.held_bytes / max(sizes)))
        count = min(self.settings.images, self.tools.feeder.count, fit)
        count -= count % self.batch
        held = max(self.batch, int(count * self.settings.held_share) // self.batch * self.batch)
        return self.tools.feeder.sample(count), held

    def _units(self, block: Block) -> list[Block]:
        from edgecnn.quantize.rungs.learned import blocks
        from edgecnn.quantize.torch import operators

        nodes = {node.name: node for node in self.candidate.model.graph}
        whole = not blocks.too_many_layers(block) and not any(operators.unmapped(nodes[name]) for name in block.nodes)
        singles = [unit for unit in blocks.single_layers(block, self.graph)
                   if not operators.unmapped(nodes[unit.nodes[0]])]  # fmt: skip
        if whole and self._by_image(block):
            return [block] if block.layers else []
        return [unit for unit in singles if self._by_image(unit)]

    def _by_image(self, unit: Block) -> bool:
        """Whether all that it reads and answers has the images in front: an output may have them elsewhere, or none."""
        shapes = [self.graph.shapes.get(name, ()) for name in (*unit.inputs, *unit.outputs)]
        return all(len(shape) > 1 and shape[0] == self.batch for shape in shapes)

    def _learn(self, number: int, block: Block, unit: Block) -> None:
        from edgecnn.quantize.rungs.learned.learn import learn

        plan = self._plan(unit)
        key = hashlib.sha256(f"{self.key} {unit} {plan}".encode()).hexdigest()
        path = self.folder / f"{self.done:04d}.npz"
        learned = _read(path, key)
        if learned is None:
            self._move(number)
            scheme = self.tools.scheme
            targets = self._values(self.candidate.model, self.exact, list(unit.outputs), simulate=False)
            given = self._values(self.candidate.quantized(scheme), self.given, list(unit.inputs), simulate=True)
            integers = integer_weights(self.candidate, scheme)
            learned = learn(unit, self.candidate, integers, scheme, given, targets, self.held, plan)
            _write(path, key, learned)
            if unit is block:
                self.exact = {**self.exact, **targets}  # the next block need not compute them again
        self.key = hashlib.sha256(f"{key} {_text(learned)}".encode()).hexdigest()
        self.done += 1
        if learned.sure:
            self.candidate = _with(self.candidate, learned)
            self.improved.append(learned.held_out)

    def _plan(self, unit: Block) -> Plan:
        from edgecnn.quantize.rungs.learned.blocks import cost
        from edgecnn.quantize.rungs.learned.learn import Plan

        given = self.settings
        images = given.work / len(self.blocks) / cost(unit, self.graph)
        batch = int(np.clip(images / given.iterations, _LEAST_BATCH, given.largest_batch))
        batch = min(batch, len(self.sample) - self.held)
        iterations = int(np.clip(images / batch, min(_LEAST_ITERATIONS, given.iterations), given.iterations))
        return Plan(iterations, batch, self.tools.seed)

    def _move(self, number: int) -> None:
        """Let both streams stand before block `number`."""
        from edgecnn.quantize.rungs.learned.blocks import alive
        from edgecnn.quantize.rungs.learned.stream import fed

        if not self.given:
            self.exact = self.given = fed(self.tools.feeder_of(self.candidate.model), self.sample)
        names = alive(self.graph, self.blocks, number)
        if self.at < number or set(names) != set(self.given):
            self.exact = self._values(self.candidate.model, self.exact, names, simulate=False)
            self.given = self._values(self.candidate.quantized(self.tools.scheme), self.given, names, simulate=True)
            self.at = number

    def _values(self, model: ir.Model, given: Tensors, names: list[str], *, simulate: bool) -> Tensors:
        from edgecnn.quantize.rungs.learned.stream import evaluate

        here = {name: given[name] for name in names if name in given}
        rest = [name for name in names if name not in given]
        return {**here, **(evaluate(model, given, rest, self.batch, simulate=simulate) if rest else {})}

    def _judge(self, candidate: Candidate) -> float:
        judged = self.sample[-self.held :]
        model = candidate.quantized(self.tools.scheme)
        return sqnr_of([model], self.tools.graph.model, self.tools.feeder, judged)[0]

    def _first_key(self) -> str:
        import torch

        given = self.start
        content = hashlib.sha256(ir.serde.serialize_model(given.model).SerializeToString(deterministic=True))
        for name, integer in sorted(given.overrides.weights.items()):
            content.update(name.encode() + integer.values.tobytes() + integer.scales.tobytes())
        for name, bias in sorted(given.overrides.biases.items()):
            content.update(name.encode() + bias.tobytes())
        digests = self.tools.feeder.digests
        parts = (given.placement, sorted(given.ranges.items()), self.tools.scheme, self.settings, self.tools.seed,
                 torch.__version__, torch.get_num_threads(), [digests[i] for i in self.sample])  # fmt: skip
        content.update(repr(parts).encode())
        return content.hexdigest()


def _with(candidate: Candidate, learned: Learned) -> Candidate:
    overrides = Overrides(
        {**candidate.overrides.weights, **learned.weights}, {**candidate.overrides.biases, **learned.biases}
    )
    groups = {activation.tensor: activation.group for activation in candidate.placement.activations}
    ranges = {
        tensor: (low * learned.factors.get(groups[tensor], 1.0), high * learned.factors.get(groups[tensor], 1.0))
        for tensor, (low, high) in candidate.ranges.items()
    }
    return replace(candidate, overrides=overrides, ranges=ranges)


# --- what a block learned, as a file ---


def _text(learned: Learned) -> str:
    content = hashlib.sha256(repr((sorted(learned.factors.items()), learned.held_out, learned.sure)).encode())
    for name, integer in sorted(learned.weights.items()):
        content.update(name.encode() + integer.values.tobytes())
    for name, bias in sorted(learned.biases.items()):
        content.update(name.encode() + bias.tobytes())
    return content.hexdigest()


def _write(path: Path, key: str, learned: Learned) -> None:
    """Atomically: a killed run leaves the whole file or none."""
    names = {"weights": list(learned.weights), "biases": list(learned.biases)}
    head = {
        "key": key, **names, "axes": [integer.axis for integer in learned.weights.values()],
        "factors": list(learned.factors.items()), "held_out": learned.held_out, "seen": learned.seen,
        "sure": learned.sure,
    }  # fmt: skip
    arrays = {f"values{i}": integer.values for i, integer in enumerate(learned.weights.values())}
    arrays |= {f"scales{i}": integer.scales for i, integer in enumerate(learned.weights.values())}
    arrays |= {f"bias{i}": bias for i, bias in enumerate(learned.biases.values())}
    arrays["head"] = np.asarray(json.dumps(head))
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy takes any keyword but its own two
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path, key: str) -> Learned | None:
    """What the file holds if it was made from the same; None otherwise, also when it is damaged."""
    from edgecnn.quantize.rungs.learned.learn import Learned

    try:
        with np.load(path) as file:
            head = json.loads(str(file["head"]))
            if head["key"] != key:
                return None
            weights = {
                name: IntegerWeight(file[f"values{i}"], file[f"scales{i}"], head["axes"][i])
                for i, name in enumerate(head["weights"])
            }
            biases = {name: file[f"bias{i}"] for i, name in enumerate(head["biases"])}
            factors = {int(group): factor for group, factor in head["factors"]}
            return Learned(weights, biases, factors, head["held_out"], head["seen"], head["sure"])
    except (*DAMAGED, OSError, AttributeError, IndexError):
        return None
