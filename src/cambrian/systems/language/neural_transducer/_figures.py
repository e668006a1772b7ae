"""Pictures of the neural transducer: which block writes which symbol, and how long symbols take to come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from cambrian.engine.samples import Plot


def grids(
    frames: Sequence[Tensor], rows: Sequence[Mapping[str, tuple[Sequence[str], Sequence[int]]]], width: int
) -> Plot:
    """For each utterance its frames [T, F] above, and below, a line each, what is written by which block of `width`.

    `rows[i]` gives for every line its symbols and their blocks.
    """
    figure = Figure(figsize=(9.0, 0.4 + 1.9 * len(frames)), layout="constrained")
    axes = figure.subplots(2 * len(frames), 1, squeeze=False, height_ratios=[1.0, 0.9] * len(frames))[:, 0]
    for i, (x, lines) in enumerate(zip(frames, rows, strict=True)):
        above, below = axes[2 * i], axes[2 * i + 1]
        above.imshow(x.T.cpu().numpy(), origin="lower", aspect="auto", extent=(0, len(x), 0, x.shape[1]), cmap="magma")
        above.set(xticks=(), yticks=())
        for y, (symbols, blocks) in enumerate(lines.values()):
            for n in sorted(set(blocks)):
                text = " ".join(s for s, b in zip(symbols, blocks, strict=True) if b == n)
                below.text(
                    (n * width + min((n + 1) * width, len(x))) / 2, y, text, ha="center", va="center", fontsize=8
                )
        below.set(xlim=(0, len(x)), ylim=(len(lines) - 0.5, -0.5), yticks=range(len(lines)))
        below.set_yticklabels(list(lines), fontsize=7)
        below.vlines(np.arange(width, len(x) + 1, width), -0.5, len(lines) - 0.5, color="lightgrey", linewidth=0.8)
        below.tick_params(axis="x", labelsize=7)
    axes[-1].set_xlabel("frame (lines: ends of blocks)", fontsize=8)
    return Plot(figure)


def histogram(delays: Sequence[float], unit: str) -> Plot:
    """How long after its end each correctly written symbol came out."""
    figure = Figure(figsize=(5.0, 2.8), layout="constrained")
    axes = figure.subplots()
    values = np.asarray(delays, dtype=float)
    steps = np.unique(values)
    axes.hist(values, bins=min(40, max(5, len(steps))), color="tab:blue")
    axes.axvline(float(np.mean(values)) if len(values) else 0.0, color="tab:orange", label="mean")
    axes.set(xlabel=f"written after the symbol's end, {unit}", ylabel="symbols")
    axes.legend(fontsize=7)
    return Plot(figure)
