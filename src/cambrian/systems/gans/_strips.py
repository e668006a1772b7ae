"""A cloud of points at moments of its training, one row of scatter plots a run.

Shapes: F frames, N points, K centres.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRAMES = 5  # sheets or clouds kept while training
POINTS_KEPT = 400


def strips(rows: dict[str, tuple[Tensor, Tensor]], centres: Tensor, steps: int) -> Figure:
    """One row of scatter plots per run: five moments of its training, then `now`."""
    from matplotlib.figure import Figure

    limit = float(centres.abs().max()) * 1.5
    figure = Figure(figsize=(2.0 * (FRAMES + 1), 2.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), FRAMES + 1, squeeze=False)
    for line, (title, (strip, now)) in zip(axes, rows.items(), strict=True):
        for i, (cell, cloud) in enumerate(zip(line, [*strip, *[now] * (FRAMES + 1 - len(strip))], strict=True)):
            cell.scatter(*centres.T.numpy(), s=70, facecolors="none", edgecolors="tab:orange", linewidths=1.0)
            cell.scatter(*cloud.T.numpy(), s=3, alpha=0.4, color="tab:blue", linewidths=0)
            step = round((i + 1) * steps / FRAMES)
            cell.set_title(f"{title}, " + (f"step {step}" if i < len(strip) else "now"), fontsize=8)
            cell.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
    return figure
