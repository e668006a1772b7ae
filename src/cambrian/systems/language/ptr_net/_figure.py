"""Answers as pictures. Shapes: N sets, n points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def _lines(task: str, points: Tensor, answer: list[int]) -> list[Tensor]:
    """Closed polygons [k, 2] that show an answer."""
    rings = [answer] if task != "delaunay" else [answer[i : i + 3] for i in range(0, len(answer) - 2, 3)]
    return [points[torch.tensor([*ring, ring[0]]) - 1] for ring in rings if len(ring) > 1]


def answers_figure(
    task: str, sets: Sequence[Tensor], answers: Sequence[list[int]], truths: Sequence[list[int]] | None = None
) -> Any:
    """One panel a set: its points [n, 2], the answer in blue, and, where it is known, the truth as a wide grey line."""
    from matplotlib.figure import Figure

    columns = min(4, len(sets))
    rows = math.ceil(len(sets) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for i, axis in enumerate(axes):
        axis.set_axis_off()
        axis.set_aspect("equal")
        if i >= len(sets):
            continue
        points = sets[i].cpu()
        for line in [] if truths is None else _lines(task, points, truths[i]):
            axis.plot(*line.T, color="0.75", linewidth=5)
        for line in _lines(task, points, answers[i]):
            axis.plot(*line.T, color="tab:blue", linewidth=1.2)
        axis.plot(*points.T, "o", color="black", markersize=4)
        for number, (x, y) in enumerate(points.tolist(), 1):
            axis.annotate(str(number), (x, y), fontsize=6, textcoords="offset points", xytext=(3, 3))
    return figure
