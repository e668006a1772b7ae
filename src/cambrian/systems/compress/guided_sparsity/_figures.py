"""Pictures of a guided pruning: predicted and measured speed-up over density, and the layers' sparsity in their useful
range.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cambrian.inspect.results import Row
from cambrian.systems.compress.guided_sparsity._machine import Machine, Work, predict


def roofline_figure(works: dict[str, Work], machine: Machine, measured: dict[str, Sequence[tuple[float, float]]]):
    """Speed-up over dense convolution against the share of non-zeros: lines by the model, points measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    shares = np.geomspace(0.01, 1.0, 60)
    for i, (name, work) in enumerate(works.items()):
        line = [predict(work, float(x), machine, over="conv2d").speedup for x in shares]
        axes.plot(shares, line, color=f"C{i}", lw=1.2, label=name)
        points = measured.get(name, ())
        axes.plot([x for x, _ in points], [y for _, y in points], "o", color=f"C{i}", ms=4)
    axes.axhline(1.0, color="grey", lw=0.8)
    axes.set(xscale="log", yscale="log", xlabel="share of non-zero weights", ylabel="times as fast as dense conv2d")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3, which="both")
    return figure


def layer_figure(rows: Sequence[Row]):
    """Sparsity of each layer as a bar; the range in which sparsity pays is shaded (the paper's figure 4)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 + 0.6 * len(rows), 3.2), layout="constrained")
    axes = figure.add_subplot()
    for i, row in enumerate(rows):
        low, high = row.get("low"), row.get("high")
        if low is not None and low < high:
            axes.fill_between([i - 0.45, i + 0.45], 1 - high, 1 - low, color="gold", alpha=0.5, lw=0)
        dense = str(row["verdict"]).startswith("dense")
        axes.bar(i, 1 - row["density"], width=0.5, color="lightgrey" if dense else "tab:blue")
    axes.set_xticks(range(len(rows)), [row["layer"] for row in rows], rotation=40, ha="right", fontsize=7)
    axes.set(ylabel="sparsity (shaded: where it pays)", ylim=(0, 1.02))
    return figure
