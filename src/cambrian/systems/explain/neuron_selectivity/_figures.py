"""Pictures of units: mosaics of neuron features, histograms of the indices, and the classes that drive a unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def mosaic(features: Tensor, order: Tensor, title: str, columns: int = 12) -> Any:
    """Neuron features `[U,C,r,r]` in the order of the positions in `order`, each brightened to its own maximum."""
    from matplotlib.figure import Figure

    shown = features[order].nan_to_num(0).clamp_min(0)
    shown = shown / shown.flatten(1).amax(1).clamp_min(1e-6)[:, None, None, None]
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(0.62 * columns, 0.68 * rows + 0.35), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, feature in zip(axes.flat, shown, strict=False):
        picture = feature.permute(1, 2, 0).cpu().numpy()
        axis.imshow(picture.squeeze(2) if picture.shape[2] == 1 else picture[..., :3], cmap="gray", vmin=0, vmax=1)
    figure.suptitle(title, fontsize=8)
    return figure


def histograms(indices: Mapping[str, Mapping[str, Tensor]]) -> Any:
    """`{index: {layer: [U]}}`: one row for each index, one column for each layer; dead units are left out."""
    from matplotlib.figure import Figure

    layers = list(next(iter(indices.values())))
    figure = Figure(figsize=(1.5 * len(layers) + 0.7, 1.35 * len(indices) + 0.3), layout="constrained")
    axes = figure.subplots(len(indices), len(layers), squeeze=False, sharex="row")
    for line, (index, found) in zip(axes, indices.items(), strict=True):
        low = min([0.9, *(float(v[~v.isnan()].min()) for v in found.values() if bool((~v.isnan()).any()))])
        for axis, (layer, values) in zip(line, found.items(), strict=True):
            alive = values[~values.isnan()]
            axis.hist(alive.cpu().numpy(), bins=20, range=(low, 1.0), color="tab:blue")
            if len(alive):
                axis.axvline(float(alive.median()), color="black", lw=0.8)
            axis.set_title(layer, fontsize=7)
            axis.tick_params(labelsize=6)
        line[0].set_ylabel(index, fontsize=8)
    return figure


def label_bars(units: Sequence[tuple[str, Tensor]], classes: Sequence[str], most: int = 6) -> Any:
    """For each `(title, shares [K])` the classes with the largest share of the unit's activation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.7 * len(units), 1.9), layout="constrained")
    axes = figure.subplots(1, len(units), squeeze=False)[0]
    for axis, (title, shares) in zip(axes, units, strict=True):
        values, order = shares.topk(min(most, len(shares)))
        axis.barh([classes[int(i)] for i in order][::-1], values.flip(0).cpu().numpy(), color="tab:orange")
        axis.set_xlim(0, 1)
        axis.set_title(title, fontsize=7)
        axis.tick_params(labelsize=6)
    return figure


def sorted_alive(values: Tensor) -> Tensor:
    """Positions of the units that are not dead, largest index first."""
    return values.nan_to_num(-torch.inf).argsort(descending=True)[: int((~values.isnan()).sum())]
