"""Pictures and tables of a pruning: accuracy against work, how ranks spread over layers, agreement with the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from cambrian.inspect.controls import spearman
from cambrian.inspect.results import Row
from cambrian.systems.compress.taylor_pruning._criteria import Scores
from cambrian.systems.compress.taylor_pruning.model import combined


def agreement(scores: Scores, truth: Scores) -> dict[str, float]:
    """Spearman correlation with the oracle: mean over layers, and over all maps with and without l2 normalisation of the
    scores (the oracle's are never normalised).
    """
    flat = torch.cat([truth[name] for name in scores])
    across = {l2: torch.cat(list(combined(scores, l2=l2).values())) for l2 in (True, False)}
    layers = [spearman(scores[n].numpy(), truth[n].numpy()) for n in scores if len(scores[n]) > 1]
    return {
        "spearman per layer": sum(layers) / max(len(layers), 1),
        "spearman across": spearman(across[True].numpy(), flat.numpy()),
        "spearman across, raw": spearman(across[False].numpy(), flat.numpy()),
    }


def tradeoff_figure(histories: Mapping[str, Sequence[Row]], start: float):
    """Test accuracy over the share of maps, parameters and FLOPs that are left, one line for each criterion."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, measure in zip(figure.subplots(1, 3, sharey=True), ("maps", "params", "flops"), strict=True):
        for name, rows in histories.items():
            shares = [1.0, *(row[f"{measure} left"] for row in rows)]
            axes.plot(shares, [start, *(row["accuracy"] for row in rows)], ".-", lw=1, label=name)
        axes.invert_xaxis()
        axes.set(xlabel=f"{measure} left")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy")
    figure.axes[0].legend(fontsize=7)
    return figure


def rank_figure(scores: Scores, truth: Scores | None):
    """Quantiles of the maps' ranks among all maps in each layer, by the criterion (l2) and by the oracle (figure 9)."""
    from matplotlib.figure import Figure

    shown = {"criterion": combined(scores)} | ({"oracle": truth} if truth is not None else {})
    figure = Figure(figsize=(1.5 + 0.6 * len(scores), 3.2), layout="constrained")
    axes = figure.add_subplot()
    for shift, (name, values) in enumerate(shown.items()):
        ranks = torch.cat([values[n] for n in scores]).argsort().argsort().double() / max(
            sum(map(len, scores.values())) - 1, 1
        )
        parts = ranks.split([len(values[n]) for n in scores])
        places = [i + 0.3 * shift for i in range(len(parts))]
        quantiles = torch.stack([part.quantile(torch.tensor([0.1, 0.5, 0.9]).double()) for part in parts])
        low, middle, high = quantiles.T.numpy()
        axes.errorbar(places, middle, [middle - low, high - middle], fmt="o", ms=4, capsize=2, label=name)
    axes.set_xticks(range(len(scores)), list(scores), rotation=40, ha="right", fontsize=7)
    axes.set(ylabel="rank (1: kept longest)", ylim=(-0.03, 1.03))
    axes.legend(fontsize=7)
    return figure


def width_figure(before: Mapping[str, int], after: Mapping[str, int]):
    """Maps of each layer before and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 0.5 * len(before), 3), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(before)), list(before.values()), color="lightgrey", label="before")
    axes.bar(range(len(before)), [after[name] for name in before], color="tab:blue", label="after")
    axes.set_xticks(range(len(before)), list(before), rotation=40, ha="right", fontsize=7)
    axes.set(ylabel="feature maps")
    axes.legend(fontsize=7)
    return figure
