"""The plot of `edgecnn sensitivity`: each layer's share of the noise, and its SQNR alone and in place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgecnn.report.drawing import Figure, FigureCanvasAgg, mpl, shorten_name

if TYPE_CHECKING:
    from edgecnn.quantize.noise.sensitivity import Row, Sensitivity

SHOWN = 40  # layers, the most to blame
WEIGHTS, ACTIVATION, IN_PLACE, INK, GRID = "#0b6e99", "#d1662b", "#8a8f98", "#1d2129", "#dfe2e6"
STYLE = {
    "font.size": 10, "font.family": "sans-serif", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRID,
    "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": GRID,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip


def save_plot(path: Path, found: Sensitivity, title: str) -> None:
    """Write a PNG: one line a layer, the most to blame on top."""
    rows = [row for row in found.rows if row.alone_db is not None][:SHOWN]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 1.9 + 0.24 * len(rows)), layout="constrained", dpi=130)
        FigureCanvasAgg(figure)
        blame, sqnr = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
        lines = np.arange(len(rows))
        weights = np.array([_weights_part(row) for row in rows])
        shares = np.array([100 * row.share for row in rows])
        blame.barh(lines, shares * weights, color=WEIGHTS, height=0.68, label="weights")
        blame.barh(
            lines, shares * (1 - weights), left=shares * weights, color=ACTIVATION, height=0.68, label="activation"
        )
        blame.set_yticks(lines, [shorten_name(_name_layer(row), 48) for row in rows])
        blame.set_ylim(len(rows) - 0.4, -0.6)
        blame.set_xlabel("share of the noise at the outputs, %")
        blame.grid(axis="x")
        blame.legend(loc="lower right")
        alone = np.array([row.alone_db for row in rows], float)
        placed = np.array([np.nan if row.in_place_db is None else row.in_place_db for row in rows])
        sqnr.plot(alone, lines, "o", color=WEIGHTS, label="outputs, only this layer in INT8")
        sqnr.plot(placed, lines, "D", color=IN_PLACE, markersize=5, label="its own output, everything in INT8")
        sqnr.set_xlabel("SQNR, dB")
        sqnr.tick_params(axis="y", labelleft=False)
        sqnr.grid()
        figure.legend(*sqnr.get_legend_handles_labels(), loc="outside lower right", ncols=2)
        outputs = ", ".join(f"{name} {value:.1f} dB" for name, value in found.outputs_db.items())
        hidden = sum(row.alone_db is not None for row in found.rows) - len(rows)
        more = f"; {hidden} layers with less are not drawn" if hidden else ""
        figure.suptitle(f"{title}: {outputs}{more}".replace("$", r"\$"), x=0.01, ha="left")
        figure.savefig(path, metadata={"Software": None})


def _weights_part(row: Row) -> float:
    """Share of the weights in a layer's noise, from both halves measured alone."""
    if row.weights_db is None or row.activation_db is None:
        return 0.0
    weights, activation = (10.0 ** (-value / 10.0) for value in (row.weights_db, row.activation_db))
    return float(weights / (weights + activation))


def _name_layer(row: Row) -> str:
    return row.name if row.op in row.name else f"{row.name} · {row.op}"
