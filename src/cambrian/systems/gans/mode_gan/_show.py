"""What a trained mode-regularised GAN shows beside its samples: reconstructions, classes made and missed, a grid."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cambrian.engine.loop import Loop, evaluate
from cambrian.engine.recipe import action
from cambrian.engine.samples import Gallery, Images, Plot, Points, Table
from cambrian.errors import CapabilityError
from cambrian.systems.gans._game import AdversarialRecipe
from cambrian.systems.gans._judging import label_sample, panel_of
from cambrian.systems.gans.mode_gan._config import Config
from cambrian.systems.gans.mode_gan._missing import missing_modes, stacked_modes
from cambrian.systems.gans.mode_gan.model import ModeGAN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = 30  # more classes than these are drawn as sorted shares


class Showing(AdversarialRecipe[Config]):
    """The actions of the system."""

    model: ModeGAN

    @action
    def reconstruct(self, n: int = 10) -> Images | Points:
        """Held-out data above what the generator gives back of it; points: the reconstructions over the data."""
        x = self.real(next(self.batches("test", n)))
        with torch.no_grad():
            again = self.model.reconstruct(x)
        if self.model.images:
            return Images(self.model.show(torch.cat((x, again))).cpu(), columns=len(x))
        return Points(again, x)

    @action
    def classes(self, n: int = 2000, seed: int = 0) -> Plot:
        """How often each class (points: each mode) occurs in the data and in `n` samples."""
        names = self.data.info["classes"]
        if len(names) < 2:
            raise CapabilityError(f"{self.data.name} has no labels to count")
        made = self._labels(self.decoded(self.latent(n, torch.Generator().manual_seed(seed))))
        shares = {"data": label_sample(self.data), "samples": made}
        return Plot(histogram({k: torch.bincount(v, minlength=len(names)) for k, v in shares.items()}))

    @action
    def missing(self, n: int = 2000, steps: int = 400, seed: int = 0) -> Table:
        """The share of held-out data that a noisy third discriminator finds missing, at five levels of its noise."""
        made = self._flat(self.decoded(self.latent(n, torch.Generator().manual_seed(seed))))
        data, test = (self._flat(self.model.show(self.real(next(self.batches(s, n)))).cpu()) for s in ("train", "test"))
        rows = []
        for sigma in (0.1, 0.3, 0.5, 1.0, 2.0):
            told = missing_modes(made, data, test, sigma=sigma, steps=steps, seed=seed)
            rows.append({"noise": sigma, "missing": float(told.float().mean()), "of": len(told)})
        return Table.of(rows)

    @action
    def stacks(self, n: int = 10_000, seed: int = 0) -> Table:
        """How many of the 1,000 combinations `n` samples reach (any labelled data: how many classes)."""
        self.need_images()
        made = self.decoded(self.latent(n, torch.Generator().manual_seed(seed)))
        return Table.of([{"samples": n, **stacked_modes(made, panel_of(self.data))}])

    @action
    def grid(self, cells: int = 4, steps: int = 300, seed: int = 0) -> Gallery:
        """Train random cells of the protocol's grid with and without the regulariser and compare their MODE scores.

        Layers of both nets, their width (the paper's divided by 8), dropout, optimiser and learning rate vary; every
        cell is trained twice from the same seed, for `steps` updates.
        """
        self.need_images()
        draw, rows = torch.Generator().manual_seed(seed), []
        for cell in range(cells):
            setting = random_cell(draw)
            for game in ("gan", "reg"):
                config = dataclasses.replace(self.config, **setting, game=game, steps=steps, samples=500)
                loop = Loop(type(self)(config, data=self.data, seed=seed + cell))
                with torch.enable_grad():
                    for _ in range(steps):
                        loop.advance()
                found = evaluate(loop.recipe)
                rows.append({"game": game, **setting, "score": _score(found)})
        return Gallery({"MODE scores": Plot(scores_by_game(rows)), "cells": Table.of(rows)})

    def _labels(self, made: Tensor) -> Tensor:
        if self.model.images:
            return panel_of(self.data).probabilities(made).argmax(1)
        return torch.cdist(made, torch.tensor(self.data.info["centres"])).argmin(1)

    def _flat(self, x: Tensor) -> Tensor:
        """Samples at a size where noise of 1 is strong: pictures around 0, points within 1.5 of it."""
        return 2 * x - 1 if self.model.images else x / 4


def _score(found: dict[str, float]) -> float:
    """The MODE score; of stacks, whose label shares are even, the same from the classifier score's parts."""
    if "mode_score" in found:
        return found["mode_score"]
    if "kl_to_uniform" in found:
        return found["classifier_score"] * math.exp(-found["kl_to_uniform"])
    raise CapabilityError("the grid is scored by a judge, which needs labelled images that it can learn")


def random_cell(draw: torch.Generator) -> dict[str, Any]:
    """One cell of the protocol's grid of hyper-parameters, by `draw`."""

    def pick(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (1,), generator=draw))]

    depth, width = pick(2, 3, 4), pick(50, 100, 200, 400)
    return {
        "arch": "connected", "hidden": (width,) * depth, "dropout": pick(0.0, 0.5),
        "optimiser": pick("adam", "sgd"), "lr": pick(1e-2, 1e-3, 1e-4),
    }  # fmt: skip


def histogram(counts: dict[str, Tensor]) -> Figure:
    """Shares of classes `[K]` side by side; of many classes, sorted by share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.0), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, count) in enumerate(counts.items()):
        share = (count / count.sum()).tolist()
        if len(share) <= BARS:
            axes.bar([k + 0.4 * i - 0.2 for k in range(len(share))], share, width=0.4, label=name)
        else:
            axes.plot(sorted(share, reverse=True), label=name)
    axes.set(xlabel="class" if len(share) <= BARS else "class, by share", ylabel="share")
    axes.legend(fontsize=8)
    return figure


def scores_by_game(rows: list[dict[str, Any]]) -> Figure:
    """Histograms of the MODE scores of a grid's cells with and without regulariser."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.0), layout="constrained")
    axes = figure.add_subplot()
    games = ("gan", "reg")
    axes.hist([[row["score"] for row in rows if row["game"] == game] for game in games], bins=8, label=games)
    axes.set(xlabel="MODE score", ylabel="cells")
    axes.legend(fontsize=8)
    return figure
