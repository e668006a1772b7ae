"""Gaussians and logistics over a grid of levels: the probability of a level is the mass of its bin.

    P(x) = F((x + s/2 - mu) / sigma) - F((x - s/2 - mu) / sigma)        the first and last bins are open

with F the normal or the logistic distribution function. The mass is formed in log space from the tail that the bin lies
in, so that neither a level far from mu nor a narrow sigma gives log 0 or a NaN gradient.

Shapes: `...` any; the last axis of the parameters is (mu, log sigma).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ShapeError

FAR = -20.0  # sigmas below which the normal tail is taken from its asymptotic series
NARROW = 1e-3  # below this width in sigmas a bin's mass is its density times its width


@dataclass(frozen=True)
class _Discretized:
    """`levels` bins of width `step`; level k is centred at (k - (levels - 1) / 2) step, so the grid is symmetric."""

    levels: int = 256
    step: float = 1 / 128
    min_log_sigma: float = -7.0
    max_log_sigma: float = 7.0

    @property
    def n_params(self) -> int:
        return 2

    @property
    def last(self) -> float:
        """The centre of the last bin; the first is its negative."""
        return (self.levels - 1) / 2 * self.step

    def split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """mu and the clamped log sigma, both [...]."""
        if params.shape[-1] != self.n_params:
            raise ShapeError(f"the last axis must hold (mu, log sigma), not {tuple(params.shape)}")
        mu, log_sigma = params.unbind(-1)
        return mu, log_sigma.clamp(self.min_log_sigma, self.max_log_sigma)

    def centre(self, level: Tensor) -> Tensor:
        """The value of a level (float32)."""
        return (level.float() - (self.levels - 1) / 2) * self.step

    def log_prob(self, params: Tensor, target: Tensor) -> Tensor:
        """Log-probability [...] in nats of `target` [...]: bin centres, as `centre` gives them. Raises `ShapeError` for
        values off the grid, whose "probability" would be none.
        """
        mu, log_sigma = self.split(params)
        level = target / self.step + (self.levels - 1) / 2
        within = (level > -0.5) & (level < self.levels - 0.5)
        if not bool(((level - level.round()).abs() < 1e-2).all() and within.all()):
            raise ShapeError(f"targets must be centres of {self.levels} bins of width {self.step:g}, all of them")
        scale = torch.exp(-log_sigma)
        low, high = (target - mu - self.step / 2) * scale, (target - mu + self.step / 2) * scale
        inside = self._log_mass(low, high, self.step * scale)
        first, final = target < -self.last + self.step / 2, target > self.last - self.step / 2
        # an open bin's own branch sees 0 where it is not used: infinite tails there would give NaN gradients
        below = self.log_cdf(torch.where(first, high, high.new_zeros(())))
        above = self.log_cdf(-torch.where(final, low, low.new_zeros(())))
        return torch.where(first, below, torch.where(final, above, inside))

    def _log_mass(self, low: Tensor, high: Tensor, width: Tensor) -> Tensor:
        flip = low + high > 0  # the mass right of the mean is taken from the other tail
        a, b = torch.where(flip, -high, low), torch.where(flip, -low, high)
        narrow = width < NARROW
        upper = self.log_cdf(b)
        gap = torch.where(narrow, upper.new_ones(()), upper - self.log_cdf(a))
        wide = upper + torch.log(-torch.expm1(-gap.clamp_min(1e-30)))
        return torch.where(narrow, self.log_density((a + b) / 2) + torch.log(width), wide)

    def log_cdf(self, u: Tensor) -> Tensor:
        """log F(u) of the standard distribution."""
        raise NotImplementedError

    def log_density(self, u: Tensor) -> Tensor:
        """log F'(u) of the standard distribution."""
        raise NotImplementedError

    def noise(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from the standard distribution of the shape of `like`."""
        raise NotImplementedError

    def cdf(self, params: Tensor, level: Tensor) -> Tensor:
        """P(below `level`) [...]: 0 at level 0, 1 at `levels`. This is what an entropy coder needs."""
        mu, log_sigma = self.split(params)
        edge = (level.to(mu.dtype) - self.levels / 2) * self.step
        inner = torch.exp(self.log_cdf((edge - mu) * torch.exp(-log_sigma)))
        return torch.where(level <= 0, 0.0, torch.where(level >= self.levels, 1.0, inner))

    def sample(self, params: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Draw bin centres [...]; sigma is multiplied by the square root of `temperature` (0: the bin of mu)."""
        mu, log_sigma = self.split(params)
        value = mu + self.noise(mu, generator) * log_sigma.exp() * math.sqrt(max(temperature, 0.0))
        return self.centre((value / self.step + (self.levels - 1) / 2).round().clamp(0, self.levels - 1)).to(mu)

    def mean(self, params: Tensor) -> Tensor:
        """mu [...], held within the grid."""
        return self.split(params)[0].clamp(-self.last, self.last)


class DiscretizedGaussian(_Discretized):
    """Bins of a normal distribution (the exact-coding likelihood of Gregor et al. 2016's Gaussian pixels)."""

    def log_cdf(self, u: Tensor) -> Tensor:
        # far out torch's slope is wrong in single precision, and then NaN: there the tail's own series is used
        far = u < FAR
        v = torch.where(far, u, u.new_full((), FAR)).square().reciprocal()
        tail = -0.5 / v + 0.5 * torch.log(v) - 0.5 * math.log(2 * math.pi) + torch.log1p(v * (3 * v - 1))
        return torch.where(far, tail, torch.special.log_ndtr(torch.where(far, u.new_full((), FAR), u)))

    def log_density(self, u: Tensor) -> Tensor:
        return -0.5 * u.square() - 0.5 * math.log(2 * math.pi)

    def noise(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


class DiscretizedLogistic(_Discretized):
    """Bins of a logistic distribution (Kingma et al. 2016, arXiv 1606.04934, appendix); sigma is its scale."""

    def log_cdf(self, u: Tensor) -> Tensor:
        return F.logsigmoid(u)

    def log_density(self, u: Tensor) -> Tensor:
        return F.logsigmoid(u) + F.logsigmoid(-u)

    def noise(self, like: Tensor, generator: torch.Generator) -> Tensor:
        u = torch.rand(like.shape, generator=generator, device=generator.device, dtype=torch.float64)
        return torch.logit(u.clamp(1e-12, 1 - 1e-12)).to(like)
