"""Pictures of an attack through a substitute: curves over the queries, and the set as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cambrian.inspect.results import Row
from cambrian.systems.attack.blackbox.model import Substitute

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curve_figure(rows: Sequence[Row]) -> Figure:
    """Agreement with the victim and success of the attack, against the number of label queries."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for name in ("agreement", "transfer"):
        points = [(row["label queries"], row[name]) for row in rows if name in row]
        axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", markersize=4, label=name)
    axes.set(xlabel="label queries", ylabel="share of inputs", ylim=(0, 1.02))
    if len(rows) > 1:
        axes.set_xscale("log")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def growth_figure(substitute: Substitute, seeds: int, classes: Sequence[str], columns: int = 10) -> Figure:
    """The first seeds, then a row for each doubling: what it made of them, titled with the victim's labels."""
    from matplotlib.figure import Figure

    columns = min(columns, seeds)
    starts, start = [0], seeds
    while start + columns <= len(substitute.x):
        starts.append(start)
        start *= 2
    space = substitute.target.space
    figure = Figure(figsize=(0.8 * columns, 0.95 * len(starts)), layout="constrained")
    axes = figure.subplots(len(starts), columns, squeeze=False)
    for row, start in enumerate(starts):
        for column in range(columns):
            picture = (substitute.x[start + column] - space.lo) / space.width
            shown = picture.cpu().permute(1, 2, 0).clamp(0, 1).numpy()
            grey = shown.shape[2] == 1
            axes[row, column].imshow(shown.squeeze(2) if grey else shown[..., :3], cmap="gray", vmin=0, vmax=1)
            axes[row, column].set_title(classes[int(substitute.labels[start + column])], fontsize=7, pad=2)
            axes[row, column].axis("off")
    return figure
