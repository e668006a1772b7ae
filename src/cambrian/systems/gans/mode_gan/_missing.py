"""Which data does a generator leave out? A noisy third discriminator, and the count of stacks of digits.

A discriminator between data and samples, trained after the fact and kept from perfection by noise on its input and
hidden layers, is sure (D* near 1) only where there are no samples at all. The share of test points of which it is
sure is the paper's estimate of what is missing; how much that is depends on the noise, so several levels are told.

Shapes: N samples, T test points, K classes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.metrics.modes import counts_of, kl_to_uniform
from cambrian.nn.adversarial import GaussianNoise, discriminator_loss

DRAWS = 16  # of the noise, whose mean is D*(x)


class NoisyDiscriminator(nn.Module):
    """`[N, *shape]` -> logits `[N]`; noise `sigma` on the input and half of it on hidden layers, also when it judges."""

    def __init__(self, *, features: int, sigma: float, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), GaussianNoise(sigma=sigma),
            nn.Linear(features, hidden), nn.LeakyReLU(0.2), GaussianNoise(sigma=sigma / 2),
            nn.Linear(hidden, hidden), nn.LeakyReLU(0.2), GaussianNoise(sigma=sigma / 2), nn.Linear(hidden, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[:, 0]

    @torch.no_grad()
    def certainty(self, x: Tensor, draws: int = DRAWS) -> Tensor:
        """`D*(x)` `[N]`: the probability of data, mean over draws of the noise."""
        return torch.stack([self(x).sigmoid() for _ in range(draws)]).mean(0)


def train_third_party(
    data: Tensor, made: Tensor, *, sigma: float, steps: int = 400, batch: int = 128, seed: int = 0
) -> NoisyDiscriminator:
    """D* between `data [N, ...]` and samples `made [M, ...]`; the global random state is left as it was."""
    if data.shape[1:] != made.shape[1:] or not len(data) or not len(made):
        raise ShapeError(f"data and samples must have one shape, got {tuple(data.shape)} and {tuple(made.shape)}")
    if sigma < 0 or steps < 1:
        raise ConfigError(f"sigma must be >= 0 and steps >= 1, got {sigma} and {steps}")
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = NoisyDiscriminator(features=data[0].numel(), sigma=sigma)
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(steps):
            real, fake = (x[torch.randint(len(x), (batch,), generator=draw)] for x in (data, made))
            loss = discriminator_loss(*net(torch.cat((real, fake))).chunk(2))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    return net


def missing_modes(
    made: Tensor, data: Tensor, test: Tensor, *, sigma: float, steps: int = 400, sure: float = 0.9, seed: int = 0
) -> Tensor:
    """Which of the points `test [T, ...]` count as missed by samples `made`: bool `[T]`, `D* > sure`.

    D* learns from `data` and `made`; the test points should be new to it.
    """
    net = train_third_party(data, made, sigma=sigma, steps=steps, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return net.certainty(test) > sure


class Classifier(Protocol):
    """Gives class probabilities `[N, K]` of samples."""

    def probabilities(self, images: Tensor) -> Tensor: ...


def stacked_modes(made: Tensor, classifier: Classifier) -> dict[str, float]:
    """How many of K classes samples `[N, C, H, W]` in [0, 1] reach and miss, and the divergence from even shares."""
    probabilities = classifier.probabilities(made)
    counts = counts_of(probabilities.argmax(1), probabilities.shape[1])
    reached = float((counts > 0).sum())
    return {"reached": reached, "missed": len(counts) - reached, "kl_to_uniform": kl_to_uniform(counts)}
