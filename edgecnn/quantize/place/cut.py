"""Which operators to run in INT8 so that the whole graph takes the least time: a minimum cut.

Every operator costs something in float and something in INT8, and every tensor that one side writes and the other reads
costs a conversion. With two choices an operator and costs that never reward disagreement this is a minimum cut between
"INT8" and "float" (Picard & Ratliff 1975; Greig, Porteous & Seheult 1989), so the answer is exact, and one that neither
order nor rounding of a search can change. Of equally cheap answers the one with the fewest INT8 operators is taken.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_flow

_INFINITE = 1 << 30
_STEPS_PER_MICROSECOND = 100  # costs are rounded to integers: a flow is then exact


@dataclass(frozen=True)
class Choice:
    """An operator: microseconds in float, and in INT8 (None: it has no INT8 kernel, or must stay float)."""

    name: str
    float_us: float
    int8_us: float | None


@dataclass(frozen=True)
class Crossing:
    """A tensor between operators.

    `maker`: who writes it; None: the graph's input, which is float. `readers`: who read it, and what reading in float
    costs beyond the conversion if it was written in INT8 (an activation that would have fused). `leaves`: it is an
    output of the graph, which is float. `to_int8_us` and `to_float_us`: the conversions, one for all readers.
    """

    maker: str | None
    readers: tuple[tuple[str, float], ...]
    to_int8_us: float
    to_float_us: float
    leaves: bool = False


@dataclass
class _Network:
    """Edges with capacities; node 0 is the INT8 side, node 1 the float side."""

    numbers: dict[str, int] = field(default_factory=dict)
    count: int = 2
    edges: list[tuple[int, int, float]] = field(default_factory=list)

    def of(self, name: str) -> int:
        """The number of an operator's node."""
        if name not in self.numbers:
            self.numbers[name] = self.new()
        return self.numbers[name]

    def new(self) -> int:
        """A node of no operator."""
        self.count += 1
        return self.count - 1


def fastest(choices: list[Choice], crossings: list[Crossing]) -> frozenset[str]:
    """Names of the operators to run in INT8."""
    network = _Network()
    for choice in choices:
        node = network.of(choice.name)
        network.edges.append((0, node, choice.float_us))  # cut if it is on the float side
        network.edges.append((node, 1, np.inf if choice.int8_us is None else choice.int8_us))
    for crossing in crossings:
        _add_crossing(network, crossing)
    reached = _int8_side(network)
    return frozenset(name for name, number in network.numbers.items() if reached[number])


def _add_crossing(network: _Network, crossing: Crossing) -> None:
    maker = 1 if crossing.maker is None else network.of(crossing.maker)
    readers = [network.of(name) for name, _ in crossing.readers]
    if readers:
        # If any reader is INT8 this node is, and from a float maker the way to it is cut once.
        wants_int8 = network.new()
        network.edges.append((wants_int8, maker, crossing.to_int8_us))
        network.edges += [(reader, wants_int8, np.inf) for reader in readers]
    if crossing.maker is None:
        return
    if readers or crossing.leaves:
        wants_float = network.new()
        network.edges.append((maker, wants_float, crossing.to_float_us))
        network.edges += [(wants_float, reader, np.inf) for reader in (*readers, *([1] if crossing.leaves else []))]
    for reader, (_, extra) in zip(readers, crossing.readers, strict=True):
        if extra > 0:
            network.edges.append((maker, reader, extra))


def _int8_side(network: _Network) -> np.ndarray:
    """Which nodes the INT8 side still reaches when the flow is at its largest: the smallest INT8 side of all cuts."""
    finite = sum(cost for _, _, cost in network.edges if cost != np.inf)
    steps = min(_STEPS_PER_MICROSECOND, (_INFINITE // 4) / max(finite, 1e-9))  # 32 bits hold the flow of any network
    rows, columns, costs = zip(*network.edges, strict=True)
    capacity = [_INFINITE if cost == np.inf else round(cost * steps) for cost in costs]
    shape = (network.count, network.count)
    # Edges between the same two nodes are added up; two infinite ones stay one.
    graph = coo_array((np.asarray(capacity, np.int64), (rows, columns)), shape=shape).tocsr()
    graph.data = np.minimum(graph.data, _INFINITE).astype(np.int32)
    flow = maximum_flow(graph, 0, 1).flow
    left = (graph.astype(np.int64) - flow.astype(np.int64)).tocsr()
    reached = np.zeros(network.count, bool)
    reached[0] = True
    waiting = deque([0])
    while waiting:
        node = waiting.popleft()
        start, end = left.indptr[node], left.indptr[node + 1]
        for other, free in zip(left.indices[start:end], left.data[start:end], strict=True):
            if free > 0 and not reached[other]:
                reached[other] = True
                waiting.append(int(other))
    return reached
