"""Pictures of what the network learned. Shapes: N pictures, C channels, H x W pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def histogram_figure(data: Tensor, made: Tensor) -> Any:
    """Share of each grey level in uint8 pictures [N, C, H, W] and in those that were made."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 2.6), layout="constrained")
    axes = figure.subplots()
    for name, image in (("data", data), ("samples", made)):
        share = torch.bincount(image.flatten().long().cpu(), minlength=256) / image.numel()
        axes.plot(share, label=name, linewidth=0.8)
    axes.set(xlabel="grey level", ylabel="share", yscale="log")
    axes.legend(fontsize=7)
    return figure


def field_figure(strength: Tensor, row: int, column: int) -> Any:
    """|gradient| [H, W] of the outputs at (row, column), on a logarithmic scale; what has none stays white."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2, 3.0), layout="constrained")
    axes = figure.subplots()
    shown = torch.where(strength > 0, strength.clamp(min=1e-12).log10(), torch.full_like(strength, torch.nan))
    picture = axes.imshow(shown, cmap="viridis")
    axes.plot(column, row, "s", color="tab:red", markersize=4)
    axes.set(xticks=(), yticks=())
    figure.colorbar(picture, ax=axes, label="log10 |gradient|")
    return figure
