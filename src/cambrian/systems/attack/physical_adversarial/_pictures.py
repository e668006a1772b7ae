"""Figures: pictures, their photographs and what is cut out of them; destruction over the strength of a transformation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cambrian.inspect.camera import Photo
from cambrian.inspect.target import Target
from cambrian.systems.attack.physical_adversarial.model import SWEEPS, Rate


@torch.no_grad()
def photo_figure(target: Target, x: Tensor, x_adv: Tensor, y: Tensor, camera: Photo):
    """Columns: pictures. Rows: clean, its crop, attacked, its photograph, its crop; with class and confidence, red when
    wrong.
    """
    from matplotlib.figure import Figure

    shot, clean = camera.shoot(x_adv), camera.shoot(x)
    rows = [("clean", x), ("clean, cut out", clean.crops), ("attacked", x_adv)]
    rows += [("photograph", shot.photos), ("attacked, cut out", shot.crops)]
    figure = Figure(figsize=(1.15 * len(x) + 0.6, 6.6), layout="constrained")
    axes = figure.subplots(len(rows), len(x), squeeze=False)
    for r, (title, pictures) in enumerate(rows):
        answers = None if title == "photograph" else target.logits(pictures.clamp(0, 1)).softmax(1).max(1)
        for i in range(len(x)):
            axis = axes[r, i]
            shown = pictures[i].permute(1, 2, 0).clamp(0, 1).numpy()
            axis.imshow(shown.squeeze(2) if shown.shape[2] == 1 else shown, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if i == 0:
                axis.set_ylabel(title, fontsize=8)
            if answers is not None:
                guess = int(answers.indices[i])
                text = f"{target.classes[guess]} {100 * float(answers.values[i]):.0f}%"
                axis.set_title(text, fontsize=8, pad=2, color="black" if guess == int(y[i]) else "firebrick")
    return figure


def sweep_figure(rates: Mapping[str, Mapping[str, list[Rate]]]):
    """One panel per transformation: destruction rate of each attack over its strength."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * len(rates), 2.6), layout="constrained")
    axes = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for axis, (name, attacks) in zip(axes, rates.items(), strict=True):
        for attack, found in attacks.items():
            pairs = [(v, r.rate) for v, r in zip(SWEEPS[name][1], found, strict=True) if r.rate is not None]
            axis.plot(*zip(*pairs, strict=True), marker="o", ms=3, lw=1, label=attack) if pairs else None
        axis.set_xlabel(name, fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].set(ylabel="destruction rate", ylim=(0, 1))
    axes[0].legend(fontsize=7)
    return figure
