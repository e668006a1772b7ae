"""Independent coin flips, for binary pixels and flags. Shapes: `...` any batch shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ShapeError


@dataclass(frozen=True)
class Bernoulli:
    """Raw outputs [..., 1], the logit of a one; targets [...] are 0 or 1.

    A target between 0 and 1 gives the usual cross-entropy, which is no log-likelihood: it normalises over {0, 1} only.
    """

    @property
    def n_params(self) -> int:
        return 1

    def split(self, params: Tensor) -> Tensor:
        """Logits [...]. Raises `ShapeError` unless the last axis has one output."""
        if params.shape[-1] != 1:
            raise ShapeError(f"a Bernoulli needs 1 output (last axis), not {tuple(params.shape)}")
        return params[..., 0]

    def log_prob(self, params: Tensor, target: Tensor) -> Tensor:
        """Log-probability [...] of target [...] (shapes broadcast), in nats."""
        logits = self.split(params)
        return target * logits - F.softplus(logits)

    def sample(self, params: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Draw [...] of 0.0 and 1.0; logits are divided by the temperature, and 0 takes the likelier value."""
        logits = self.split(params)
        if temperature <= 0:
            return (logits > 0).to(params)
        chance = torch.rand(logits.shape, generator=generator, device=generator.device).to(logits)
        return (chance < torch.sigmoid(logits / temperature)).to(params)

    def mean(self, params: Tensor) -> Tensor:
        """Probability of a one, [...]."""
        return torch.sigmoid(self.split(params))
