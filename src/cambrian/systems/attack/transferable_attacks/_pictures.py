"""Pictures of transfer: decision regions of several networks in one plane, tables as heat maps, and strips of examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cambrian.inspect.results import Row
from cambrian.inspect.target import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plane_figure(labels: Mapping[str, Tensor], classes: Sequence[str], reach: float) -> Figure:
    """One panel per network: the regions of the commonest labels, and how many labels there are."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    everywhere = torch.cat([found.flatten() for found in labels.values()])
    counts = torch.bincount(everywhere, minlength=len(classes))
    common = counts.argsort(descending=True)[: min(9, int((counts > 0).sum()))].tolist()
    place = torch.full((len(classes),), len(common))
    place[torch.tensor(common)] = torch.arange(len(common))
    colours = [*(colormaps["tab10"](i) for i in range(len(common))), (0.85, 0.85, 0.85, 1.0)]
    figure = Figure(figsize=(2.1 * len(labels) + 0.9, 2.5), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels.items(), strict=True):
        axes.imshow(
            place[found.cpu()].numpy(), cmap=ListedColormap(colours), vmin=-0.5, vmax=len(common) + 0.5, origin="lower",
            extent=(-reach, reach, -reach, reach),
        )  # fmt: skip
        axes.plot([0], [0], marker="+", color="black")
        axes.set_title(f"{name}: {len(found.unique())} labels", fontsize=8)
        axes.tick_params(labelsize=6)
    patches = [Patch(color=colours[i], label=classes[k]) for i, k in enumerate(common)]
    figure.legend(handles=[*patches, Patch(color=colours[-1], label="others")], loc="outside right center", fontsize=7)
    return figure


def matrix_figure(rows: Sequence[Row], title: str) -> Figure:
    """Rates of a transfer table: sources down, judges across."""
    from matplotlib.figure import Figure

    names = [name for name in rows[0] if name not in ("source", "RMSD")]
    values = torch.tensor([[float(row[name]) for name in names] for row in rows])
    figure = Figure(figsize=(0.75 * len(names) + 1.8, 0.45 * len(rows) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(values.numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for i, line in enumerate(values.tolist()):
        for j, value in enumerate(line):
            axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row['source']} ({row['RMSD']:.0f})" for row in rows], fontsize=8)
    axes.set_title(title, fontsize=9)
    return figure


def strip_figure(target: Target, x: Tensor, x_adv: Tensor, y: Tensor) -> Figure:
    """Clean inputs above, moved ones below, with the target's answer (red where it is wrong)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 * len(x), 2.9), layout="constrained")
    axes = figure.subplots(2, len(x), squeeze=False)
    for line, batch in zip(axes, (x, x_adv), strict=True):
        with torch.no_grad():
            guess = target.logits(batch).argmax(1)
        pixels = ((batch - target.space.lo) / target.space.width).detach().cpu().permute(0, 2, 3, 1).clamp(0, 1)
        for i, panel in enumerate(line):
            panel.imshow(
                pixels[i].squeeze(2) if pixels.shape[3] == 1 else pixels[i, ..., :3], cmap="gray", vmin=0, vmax=1
            )
            panel.set_title(
                target.classes[int(guess[i])], fontsize=9, color="black" if guess[i] == y[i] else "firebrick"
            )
            panel.axis("off")
    return figure
