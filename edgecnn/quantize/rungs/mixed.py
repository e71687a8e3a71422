"""Rung `mixed`: the fewest layers back to float (FP16 on TensorRT) that hold the accuracy budget.

1. Groups of layers that leave together without needless conversions (`islands`).
2. A cheap proxy ranks them: the noise at the model's outputs that a group alone makes, per layer, on a few images.
3. The task metric on the select split confirms: the shortest beginning of the ranking that holds, by doubling and
   bisection.
4. Pruning: groups, then single layers, go back to INT8 wherever the budget still holds, until none can. The set that
   remains is minimal: each of its layers was judged in INT8 with the others in float, and failed.

A single layer also goes back where that adds a conversion: INT8 that holds the budget comes first, and the note counts
the conversions.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from edgecnn.process import progress
from edgecnn.quantize.calibration.auto import Range, automatic, by_method
from edgecnn.quantize.calibration.calibrate import calibrate
from edgecnn.quantize.ladder import checkpoint
from edgecnn.quantize.ladder.candidate import Candidate, Tools
from edgecnn.quantize.noise.noise import Reference, difference, noises
from edgecnn.quantize.noise.split import integer_weights
from edgecnn.quantize.place.coverage import coverage
from edgecnn.quantize.place.islands import conversions, islands, without
from edgecnn.quantize.place.placement import Graph, Placement
from edgecnn.quantize.write.rewrite import Overrides
from edgecnn.tasks import Drop

Layers = frozenset[str]
_LAST = 8  # groups tried as the only one in INT8


def mixed(candidate: Candidate, tools: Tools) -> Candidate:
    """The candidate with a minimal set of layers in float, or unchanged with a note why."""
    if tools.judge is None or tools.budget is None:
        return _unchanged(candidate, "mixed: without labels and an accuracy budget nothing decides which layers")
    search = _Search(candidate, tools)
    with progress.current().task("mixed precision", None) as task:
        search.task = task
        if search.holds(frozenset()):
            return _unchanged(candidate, "mixed: every layer holds the budget in INT8")
        ranked = search.ranked()
        beginning = search.fewest(ranked)
        if beginning is None:
            return _unchanged(candidate, "mixed: not even with all layers but one group in float does the budget hold")
        layers = search.pruned(beginning, ranked)
    return search.finished(layers)


def _unchanged(candidate: Candidate, note: str) -> Candidate:
    return replace(candidate, notes=(*candidate.notes, note))


class _Search:
    """Candidates with some layers in float, each judged once, also across a killed climb."""

    def __init__(self, candidate: Candidate, tools: Tools) -> None:
        assert tools.judge is not None
        assert tools.budget is not None
        self.candidate, self.tools = candidate, tools
        self.judge, self.budget = tools.judge, tools.budget
        self.graph = Graph(candidate.model, tools.graph.shapes)
        self.order = {node.name or "": number for number, node in enumerate(self.graph.nodes())}
        self.base = conversions(self.graph, candidate.placement)
        self.ranges = _Ranges(candidate, tools)
        self.kept = _Judged(tools.folder / "mixed" / "judged.jsonl")
        self.known: dict[Layers, tuple[Candidate, Drop] | None] = {}
        self.alone: dict[str, float] = {}
        self.task: progress.Task | None = None

    def at(self, layers: Layers) -> tuple[Candidate, Drop] | None:
        """The candidate with these layers in float, judged; None where no layer would be left in INT8."""
        if layers not in self.known:
            made = self._made(layers)
            self.known[layers] = None if made is None else (made, self._judged(made))
            found = self.known[layers]
            if self.task is not None and found is not None:
                text = f"{len(layers)} layers in float: drop {100 * found[1].point:+.2f} points"
                self.task.update(len(self.known), text)
        return self.known[layers]

    def holds(self, layers: Layers) -> bool:
        """Whether they hold the budget."""
        found = self.at(layers)
        return found is not None and found[1].holds(self.budget)

    def drop(self, layers: Layers) -> Drop:
        """Of layers that leave some in INT8."""
        found = self.at(layers)
        assert found is not None
        return found[1]

    def ranked(self) -> list[Layers]:
        """The groups, most noise for each INT8 layer first."""
        groups = [frozenset(group.layers) for group in islands(self.graph, self.tools.scheme, self.candidate.placement)]
        int8 = self.candidate.placement.int8_layers
        noise = self.noise_of(groups, "rank layers")
        first = {group: min(self.order[name] for name in group) for group in groups}
        return sorted(groups, key=lambda group: (-noise[group] / max(1, len(group & int8)), first[group]))

    def noise_of(self, groups: list[Layers], name: str) -> dict[Layers, float]:
        """What each group alone, in INT8, makes at the outputs: noise over signal, mean over the outputs."""
        candidate, scheme = self.candidate, self.tools.scheme
        parts = {}
        for group in groups:
            less = without(self.graph, scheme, candidate.placement, group)
            if less is not None:
                parts[group] = difference(candidate.placement, less)
        reference = Reference(self.tools.feeder_of(candidate.model))
        found = noises(reference, candidate, scheme, list(parts.values()), integer_weights(candidate, scheme), name)
        return dict.fromkeys(groups, 0.0) | {group: each.mean for group, each in zip(parts, found, strict=True)}

    def fewest(self, ranked: list[Layers]) -> Layers | None:
        """The shortest beginning of the ranking that holds: doubled until one does, then bisected."""

        def first(count: int) -> Layers:
            return frozenset().union(*ranked[:count])

        most = len(ranked)
        while most and without(self.graph, self.tools.scheme, self.candidate.placement, first(most)) is None:
            most -= 1
        low, high = 0, min(1, most)
        while not self.holds(first(high)):
            if high == most:
                return self.all_but_one(ranked)
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.holds(first(middle)) else (middle, high)
        return first(high)

    def all_but_one(self, ranked: list[Layers]) -> Layers | None:
        """Where no beginning holds: everything in float but one of the groups that make the least noise."""
        everything: Layers = frozenset().union(*ranked)
        tried = (everything - group for group in reversed(ranked[-_LAST:]))
        return next((layers for layers in tried if self.holds(layers)), None)

    def pruned(self, layers: Layers, ranked: list[Layers]) -> Layers:
        """A smaller set that holds and of which no layer can leave."""
        for group in reversed(ranked):
            if group <= layers:
                held: Layers = frozenset().union(*(each for each in ranked if each <= layers and not each <= group))
                if group - held and self.holds(layers - (group - held)):
                    layers = layers - (group - held)
        singles = [frozenset({name}) for name in layers]
        self.alone = {min(single): noise for single, noise in self.noise_of(singles, "rank single layers").items()}
        while True:
            before = layers
            for layer in sorted(layers, key=lambda name: self._ease(layers, name)):
                if self.holds(layers - {layer}):
                    layers = layers - {layer}
            if layers == before:
                return layers

    def finished(self, layers: Layers) -> Candidate:
        """The candidate of the minimal set, with what shows that it is."""
        found = self.at(layers)
        assert found is not None
        candidate, drop = found
        half = 100 * self.budget / 2
        shown = {layer: self.drop(layers - {layer}) for layer in sorted(layers, key=self.order.__getitem__)}
        why = {
            layer: f"mixed precision: in INT8 it raises the drop on select to {100 * each.point:.2f} of {half:g} points"
            for layer, each in shown.items()
            if layer in self.candidate.placement.int8_layers
        }
        placement = replace(candidate.placement, why_float={**candidate.placement.why_float, **why})
        points = [100 * each.point for each in shown.values()]
        before, after = (coverage(self.graph, each.placement).macs for each in (self.candidate, candidate))
        int8 = self.candidate.placement.int8_layers
        others = f" and {len(layers - int8)} other operations" if layers - int8 else ""
        note = (
            f"mixed: {len(layers & int8)} of {len(int8)} INT8 layers{others} back to float"
            f" ({', '.join(shown)}); drop on select {100 * drop.point:.2f} points ({half:g} allowed), with any one of"
            f" them in INT8 {min(points):.2f} to {max(points):.2f}; INT8 share of MACs {before:.1%} → {after:.1%},"
            f" conversions between INT8 and float {self.base} → {conversions(self.graph, placement)}"
        )
        return replace(
            candidate, placement=placement, rungs=(*candidate.rungs, "mixed"), notes=(*candidate.notes, note)
        )

    def _made(self, layers: Layers) -> Candidate | None:
        if not layers:
            return self.candidate
        placement = without(self.graph, self.tools.scheme, self.candidate.placement, layers)
        if placement is None:
            return None
        ranges, methods = self.ranges.of(placement)
        tensors = {weight.tensor for weight in placement.weights}
        given = self.candidate.overrides
        overrides = Overrides(
            {name: weight for name, weight in given.weights.items() if name in tensors},
            # A bias was corrected for the errors of its layer in INT8.
            {name: bias for name, bias in given.biases.items() if name in placement.int8_layers},
        )
        return replace(self.candidate, placement=placement, ranges=ranges, methods=methods, overrides=overrides)

    def _judged(self, candidate: Candidate) -> Drop:
        key = f"{self.judge.digest} {checkpoint.digest(candidate)}"
        drop = self.kept.get(key)
        if drop is None:
            drop = self.judge.drop(candidate)
            self.kept.put(key, drop)
        return drop

    def _ease(self, layers: Layers, layer: str) -> tuple[bool, float, int]:
        """What goes back to INT8 first: what adds no conversion, then what makes the least noise."""
        scheme, placement = self.tools.scheme, self.candidate.placement
        counts = []
        for chosen in (layers, layers - {layer}):
            placed = without(self.graph, scheme, placement, chosen)
            assert placed is not None
            counts.append(conversions(self.graph, placed))
        return counts[1] > counts[0], self.alone[layer], self.order[layer]


class _Ranges:
    """Ranges for other placements: those that stand, and new ones where a tensor was not quantized before."""

    def __init__(self, candidate: Candidate, tools: Tools) -> None:
        self.candidate, self.tools = candidate, tools
        self.fitted: dict[frozenset[str], tuple[Range, str]] = {}

    def of(self, placement: Placement) -> tuple[dict[str, Range], dict[str, str]]:
        """(range, method) by tensor; a scale group whose tensors had no range, or several, is calibrated."""
        chosen: dict[int, tuple[Range, str]] = {}
        fresh: dict[int, frozenset[str]] = {}
        given = self.candidate
        for group, members in placement.groups().items():
            names = frozenset(member.tensor for member in members)
            known = {(given.ranges[name], given.methods[name]) for name in names if name in given.ranges}
            if len({span for span, _ in known}) == 1:
                chosen[group] = min(known)
            elif names in self.fitted:
                chosen[group] = self.fitted[names]
            else:
                fresh[group] = names
        if fresh:
            scheme, feeder = self.tools.scheme, self.tools.feeder_of(given.model)
            activations = tuple(each for each in placement.activations if each.group in fresh)
            part = Placement(activations, ())
            counted = calibrate(feeder, [activation.tensor for activation in part.counted])
            if self.tools.ranges == "auto":
                found = automatic(feeder, part, counted, scheme)
            else:
                found = by_method(self.tools.ranges, part, counted, scheme)
            for group, names in fresh.items():
                chosen[group] = self.fitted[names] = found.ranges[group], found.methods[group]
        ranges = {each.tensor: chosen[each.group][0] for each in placement.activations}
        return ranges, {each.tensor: chosen[each.group][1] for each in placement.activations}


class _Judged:
    """Drops by key in a file of JSON lines; a line that a kill cut off counts as absent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.drops: dict[str, Drop] = {}
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                    self.drops[entry["key"]] = Drop(**entry["drop"])
                except (ValueError, KeyError, TypeError):
                    continue

    def get(self, key: str) -> Drop | None:
        return self.drops.get(key)

    def put(self, key: str, drop: Drop) -> None:
        self.drops[key] = drop
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(f"\n{json.dumps({'key': key, 'drop': asdict(drop)})}\n")
