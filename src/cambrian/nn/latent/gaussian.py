"""Gaussian posteriors, their divergences, and paths between codes.

Shapes: B batch, Z latent features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cambrian.errors import ShapeError


@dataclass(frozen=True)
class DiagGaussian:
    """A normal distribution with independent features: `mean` and `logvar`, both [..., Z]; sums run over the last
    axis.
    """

    mean: Tensor
    logvar: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.logvar.shape:
            raise ShapeError(f"mean {tuple(self.mean.shape)} and logvar {tuple(self.logvar.shape)} must agree")

    @classmethod
    def standard(cls, like: Tensor) -> DiagGaussian:
        """N(0, I) of the shape of `like`."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None, count: int | None = None) -> Tensor:
        """mean + std * eps, differentiable in both (Kingma & Welling 2014); with `count` that many draws [count, ..., Z].
        The noise is drawn where the generator lives.
        """
        device = self.mean.device if generator is None else generator.device
        shape = self.mean.shape if count is None else (count, *self.mean.shape)
        noise = torch.randn(shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def detach(self) -> DiagGaussian:
        """The same distribution, through which no gradient flows."""
        return DiagGaussian(self.mean.detach(), self.logvar.detach())

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density [...] of z [..., Z], in nats."""
        squares = (z - self.mean).square() * torch.exp(-self.logvar)
        return -0.5 * (squares + self.logvar + math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy [...], in nats."""
        return 0.5 * (self.logvar + math.log(2 * math.pi * math.e)).sum(-1)


def kl_diag(q: DiagGaussian, p: DiagGaussian | None = None) -> Tensor:
    """KL(q || p) per feature [..., Z], in nats; p is N(0, I) when not given."""
    if p is None:
        return 0.5 * (q.logvar.exp() + q.mean.square() - 1.0 - q.logvar)
    squares = (q.mean - p.mean).square()
    return 0.5 * (p.logvar - q.logvar + (q.logvar.exp() + squares) * torch.exp(-p.logvar) - 1.0)


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """How many latent features carry information: variance over the data of the posterior means [N, Z] above
    `threshold` (Burda et al. 2016).
    """
    return int((means.var(0) > threshold).sum())


def slerp(a: Tensor, b: Tensor, n: int) -> Tensor:
    """n points on the great circle from a to b (both [Z]), ends included: [n, Z]; straight where a and b are
    parallel.
    """
    if a.shape != b.shape or a.dim() != 1:
        raise ShapeError(f"slerp needs two vectors of one size, not {tuple(a.shape)} and {tuple(b.shape)}")
    t = torch.linspace(0.0, 1.0, n, dtype=a.dtype, device=a.device)[:, None]
    cosine = torch.dot(a, b) / (a.norm() * b.norm()).clamp(min=1e-12)
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    if float(angle.sin()) < 1e-4:
        return torch.lerp(a[None], b[None], t)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / angle.sin()
