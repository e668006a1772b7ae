"""One of K unordered values, for grey levels, tokens and classes. Shapes: `...` any batch shape, K classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class Categorical:
    """Raw outputs [..., K] are logits; targets [...] are int64 below K."""

    classes: int

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ConfigError(f"classes must be at least 2, not {self.classes}")

    @property
    def n_params(self) -> int:
        return self.classes

    def split(self, params: Tensor) -> Tensor:
        """Log-probabilities [..., K]. Raises `ShapeError` for another number of outputs."""
        if params.shape[-1] != self.classes:
            raise ShapeError(f"{self.classes} classes need as many outputs (last axis), not {tuple(params.shape)}")
        return F.log_softmax(params, -1)

    def log_prob(self, params: Tensor, target: Tensor) -> Tensor:
        """Log-probability [...] of target [...] (shapes broadcast), in nats. Raises `ShapeError` unless it is int64."""
        if target.dtype != torch.int64:
            raise ShapeError(f"classes must be int64, not {target.dtype}")
        log_p = self.split(params)
        shape = torch.broadcast_shapes(log_p.shape[:-1], target.shape)
        index = target.expand(shape)[..., None]
        return log_p.expand(*shape, self.classes).gather(-1, index)[..., 0]

    def sample(self, params: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Draw int64 [...]; logits are divided by the temperature, and 0 takes the likeliest class."""
        log_p = self.split(params)
        if temperature <= 0:
            return log_p.argmax(-1)
        weights = torch.softmax(log_p.flatten(0, -2) / temperature, -1).to(generator.device)
        return torch.multinomial(weights, 1, generator=generator).view(params.shape[:-1]).to(params.device)

    def mean(self, params: Tensor) -> Tensor:
        """Expected class number [...], of use where classes are levels."""
        return self.split(params).exp() @ torch.arange(self.classes, device=params.device, dtype=params.dtype)
