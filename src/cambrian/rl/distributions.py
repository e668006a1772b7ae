"""Action distributions for batches of environments: categorical (with masks), diagonal Gaussian, tanh-squashed Gaussian.

Leaner than `torch.distributions` (no argument checks, no broadcasting), with generators for every draw.

Shapes: B environments, A actions or action dimensions.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ShapeError


class ActionDistribution(Protocol):
    """What a policy gives for B observations."""

    def sample(self, generator: torch.Generator) -> Tensor: ...

    def mode(self) -> Tensor: ...

    def log_prob(self, action: Tensor) -> Tensor: ...

    def entropy(self) -> Tensor: ...


class Categorical:
    """Softmax over logits [B, A]; actions where `mask` [B, A] is false have probability zero.

    Raises `ShapeError` for a mask of another shape, or one that leaves a row without any action.
    """

    def __init__(self, logits: Tensor, *, mask: Tensor | None = None) -> None:
        if mask is not None:
            if mask.shape != logits.shape or not mask.any(-1).all():
                raise ShapeError(f"a mask must be of shape {tuple(logits.shape)} and leave an action in each row")
            logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        self.log_p = F.log_softmax(logits, -1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """[B] int64, by inverting the distribution function at a uniform draw."""
        p = self.log_p.exp()
        draw = torch.rand(*p.shape[:-1], 1, generator=generator).to(p.device)
        # Scaling by the last sum keeps the draw below it when rounding makes that less than one.
        edges = p.cumsum(-1)
        return (edges[..., :-1] <= draw * edges[..., -1:]).sum(-1)

    def mode(self) -> Tensor:
        """The most probable action: [B]."""
        return self.log_p.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """[B] -> [B]."""
        return self.log_p.gather(-1, action[..., None])[..., 0]

    def entropy(self) -> Tensor:
        """In nats: [B]. Masked actions add nothing."""
        return -(self.log_p.exp() * self.log_p).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        """KL(self | other) in nats: [B]."""
        return (self.log_p.exp() * (self.log_p - other.log_p)).sum(-1)


class DiagonalGaussian:
    """Independent normals of mean [B, A] and log standard deviation [A] or [B, A]; actions [B, A] float."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = mean, log_std.expand_as(mean)

    def sample(self, generator: torch.Generator) -> Tensor:
        """[B, A]; not clipped to any bounds: environments clip, and `log_prob` is that of the action before."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean.device)
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """[B, A] -> [B]."""
        z = (action - self.mean) * (-self.log_std).exp()
        return -(0.5 * z.square() + self.log_std).sum(-1) - 0.5 * math.log(2 * math.pi) * action.shape[-1]

    def entropy(self) -> Tensor:
        """In nats: [B]."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self | other) in nats: [B]."""
        ratio = (2 * (self.log_std - other.log_std)).exp()
        shift = ((self.mean - other.mean) * (-other.log_std).exp()).square()
        return (0.5 * (ratio + shift - 1) - self.log_std + other.log_std).sum(-1)


class SquashedGaussian:
    """tanh of a diagonal Gaussian: actions in (-1, 1)."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.base = DiagonalGaussian(mean, log_std)

    def sample(self, generator: torch.Generator) -> Tensor:
        """[B, A] in (-1, 1)."""
        return self.base.sample(generator).tanh()

    def mode(self) -> Tensor:
        """tanh of the mean (the median of each dimension)."""
        return self.base.mean.tanh()

    def log_prob(self, action: Tensor) -> Tensor:
        """[B, A] -> [B], with the change of variables log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))."""
        inner = action.clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        return self.base.log_prob(inner) - 2 * (math.log(2) - inner - F.softplus(-2 * inner)).sum(-1)

    def entropy(self) -> Tensor:
        """There is no closed form; this is the entropy before squashing, an upper bound: [B]."""
        return self.base.entropy()
