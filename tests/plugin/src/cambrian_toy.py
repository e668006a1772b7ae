"""A toy system outside the package.

A. Nobody. Nowhere 2017.

Fits a linear map with a small network; exists so that the engine can be tested without any real system.

Claim: the network with a hidden layer fits better than the constant.

Differs from the paper:
- nothing

Shapes: B batch.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from cambrian.data.random import normal
from cambrian.data.split import Data, TensorSplit
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Supervised, action, recipe
from cambrian.engine.samples import Points, Texts
from cambrian.nn.hub import Pretrained


@config
class Config:
    """Configuration of the toy."""

    steps: int = option(40, "training iterations", low=0)
    batch: int = option(8, "samples per step", low=1)
    hidden: int = option(16, "hidden units", low=1, high=512)
    lr: float = option(1e-2, "learning rate", low=0.0)
    noise: float = option(0.01, "keyed input noise", low=0.0)
    poison_at: int | None = option(None, "make the loss NaN at this step")
    pause: float = option(0.0, "seconds to sleep in every step", low=0.0)
    shape: str = option("mlp", "architecture", choices=("mlp", "linear"))


class ToyNet(nn.Module, Pretrained):
    """[B, 4] -> [B]."""

    def __init__(self, *, hidden: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Dropout(0.1), nn.Linear(hidden, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 4] -> [B]."""
        return self.body(x)[:, 0]


CLAIM = Claim(
    name="fits", statement="Training lowers the error.", metric="mse", direction="lower", margin=0.5,
    paper="invented", arms={"trained": Arm(), "frozen": Arm({"lr": 0.0})}, system="trained", baselines=("frozen",),
    sabotage=Arm({"lr": 0.0}), preset="laptop",
)  # fmt: skip


@recipe("toy", data="plane")
class ToyRecipe(Supervised[Config]):
    """The toy's recipe."""

    presets = {"smoke": Config(), "laptop": Config(steps=300), "paper": Config(steps=400)}
    claims = (CLAIM,)
    headline = ("mse", "lower")

    @classmethod
    def load_data(cls, config, source):
        """A random linear map."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(83, 4, generator=generator)
        y = x @ torch.tensor([1.0, -2.0, 0.5, 1.5])
        split = TensorSplit(x=x, y=y)
        return Data("plane", "table", split, split, split)

    def build(self, config, data):
        """One network, one optimiser."""
        self.model = ToyNet(hidden=config.hidden)
        self.optim = self.optimiser(torch.optim.Adam, self.model.parameters(), lr=config.lr)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optim, 20, 0.9)

    def objective(self, batch):
        """Squared error on keyed noisy inputs, plus noise from the recipe's own generator."""
        x = batch["x"] + self.config.noise * normal(batch["key"], 4)
        loss = ((self.model(x) - batch["y"]) ** 2).mean() + 1e-6 * torch.randn(1, generator=self.rng)[0]
        return loss, {}

    def step(self, batch):
        """The supervised step, a schedule, and on request a pause or a poisoned loss."""
        if self.config.pause:
            time.sleep(self.config.pause)
        out = dict(super().step(batch))
        self.schedule.step()
        self.extra["seen"] = self.extra.get("seen", 0) + len(batch["x"])
        if self.config.poison_at == self.iteration + 1:
            out["loss"] = torch.tensor(float("nan"))
        return out

    def evaluate(self, split, generator):
        """Mean squared error."""
        errors = [((self.model(b["x"]) - b["y"]) ** 2).sum() for b in self.batches(split)]
        return {"mse": float(sum(errors)) / len(self.data.split(split))}

    def sample(self, n, generator):
        """Random inputs against outputs."""
        x = torch.randn(n, 4, generator=generator)
        return Points(torch.stack([x[:, 0], self.model(x)], 1))

    @action
    def predict(self, a: float = 1.0, times: int = 1) -> Texts:
        """The output at (a, a, a, a)."""
        value = float(self.model(torch.full((1, 4), a)))
        return Texts([f"{value:.3f}"] * times)
