"""What a population shows: who played with whom, GAM-II, the costs of its discriminators, all members' samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cambrian.engine.recipe import action
from cambrian.engine.samples import Curves, Images, Plot, Table
from cambrian.errors import ConfigError
from cambrian.metrics.gam import GAM2, fooled, gam, gam2
from cambrian.nn.adversarial import FAKE
from cambrian.systems.gans._game import AdversarialRecipe
from cambrian.systems.gans.gap._config import Config
from cambrian.systems.gans.gap.model import GAP

SHOWN = 500  # samples of each generator that GAM-II is taken from


class Showing(AdversarialRecipe[Config]):
    """Scores and actions of the system."""

    model: GAP

    @torch.no_grad()
    def errors(self, generator: torch.Generator, count: int = SHOWN) -> Tensor:
        """How often each discriminator takes samples of each generator for data: `[M, M]`, generators in rows."""
        model = self.model
        z = self.latent(model.members * count, generator).unflatten(0, (model.members, count))
        return fooled(model.judge_each_other(model.generate_all(z)))

    def foreign(self, errors: Tensor) -> GAM2 | None:
        """GAM-II of the members that exchange: by the pool, or where there is none by each other."""
        count = self.model.count
        if self.model.pool:
            return gam2(errors[:count, count:])
        if count == 1:
            return None
        return gam2(errors[:count, :count], torch.eye(count, dtype=torch.bool, device=errors.device))

    @action
    def gam2(self, seed: int = 0) -> Table:
        """GAM-II of every member: the mean and the worst error of foreign discriminators on its samples."""
        found = self.foreign(self.errors(torch.Generator().manual_seed(seed)))
        if found is None:
            raise ConfigError("one member without a pool has no foreign discriminator to be judged by")
        best = int(self.model.best)
        return Table.of([{**row, "best": "*" if row["generator"] == best else ""} for row in found.table()])

    @action
    def duel(self, first: int = 0, second: int = 1, seed: int = 0) -> Table:
        """GAM between two members: `r_test` must be near 1 for `r_sample` to mean anything."""
        for index in (first, second):
            self.model.member(index)
        errors = self.errors(torch.Generator().manual_seed(seed))
        x = self.real(next(self.batches("test", SHOWN)))
        with torch.no_grad():
            on_data = (1.0 - fooled(self.model.judge_same(x))).tolist()
        on_samples = float(errors[second, first]), float(errors[first, second])
        found = gam((on_data[first], on_samples[0]), (on_data[second], on_samples[1]))
        winner = {0: "none", 1: str(first), 2: str(second)}[found.winner]
        return Table.of([{"r_test": found.r_test, "r_sample": found.r_sample, "winner": winner}])

    @action
    def pairs(self) -> Plot:
        """Which discriminator each generator played against, from exchange to exchange."""
        from matplotlib.figure import Figure

        history = self.extra["pairs"]
        figure = Figure(figsize=(7.0, 0.6 + 0.4 * self.model.count), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(history[-200:, 1:].T.numpy(), aspect="auto", cmap="tab10", vmin=0, vmax=9, interpolation="nearest")
        axes.set(xlabel="exchange (the last 200)", ylabel="generator", yticks=range(self.model.count))
        axes.set_title("colour: the discriminator it plays against", fontsize=9)
        return Plot(figure)

    @action
    def costs(self) -> Curves:
        """The discriminators' cost on training and held-out data: of members, and of the pool's independent GANs."""
        rows = self.extra["costs"]
        names = ["train", "held out"] + (["train, alone", "held out, alone"] if self.model.pool else [])
        steps = rows[:, 0].tolist()
        return Curves({name: (steps, rows[:, i + 1].tolist()) for i, name in enumerate(names)}, y="cost of D")

    @action
    def every(self, n: int = 10, seed: int = 0) -> Images:
        """A row of samples of each member that exchanges, the first one on top."""
        self.need_images()
        return Images(self.model.sample(n, seed, "all").flatten(0, 1).cpu(), columns=n)

    def d_costs(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Each discriminator's cost `[M]` on data `[B, *shape]` and as many samples of its own generator."""
        z = self.latent(self.model.members * len(x), generator).unflatten(0, (self.model.members, len(x)))
        fake = self.model.judge_all(self.model.generate_all(z), (FAKE,))
        softplus: Any = torch.nn.functional.softplus
        return (softplus(-self.model.judge_same(x)) + softplus(fake)).mean(1)
