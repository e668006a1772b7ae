"""Independent normals of fixed or predicted variance. Shapes: `...` any batch shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cambrian.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class Gaussian:
    """N(mu, sigma^2) of one number. With `sigma` raw outputs are [..., 1], the mean; without it [..., 2], mean and log
    variance.

    A single learned variance is the second output filled with one parameter. `min_logvar` and `max_logvar` bound a
    predicted variance: without the floor a pixel that is always black has infinite density.
    """

    sigma: float | None = None
    min_logvar: float = -9.0
    max_logvar: float = 9.0

    def __post_init__(self) -> None:
        if self.sigma is not None and not self.sigma > 0:
            raise ConfigError(f"sigma must be above 0, not {self.sigma}")

    @property
    def n_params(self) -> int:
        return 1 if self.sigma is not None else 2

    def split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, both [...]. Raises `ShapeError` for another number of outputs."""
        if params.shape[-1] != self.n_params:
            raise ShapeError(f"this Gaussian needs {self.n_params} outputs (last axis), not {tuple(params.shape)}")
        mean = params[..., 0]
        if self.sigma is not None:
            return mean, torch.full_like(mean, 2.0 * math.log(self.sigma))
        return mean, params[..., 1].clamp(self.min_logvar, self.max_logvar)

    def log_prob(self, params: Tensor, target: Tensor) -> Tensor:
        """Log-density [...] of target [...] (shapes broadcast), in nats."""
        mean, logvar = self.split(params)
        return -0.5 * ((target - mean).square() * torch.exp(-logvar) + logvar + math.log(2.0 * math.pi))

    def sample(self, params: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Draw [...]; the variance is multiplied by the temperature, and 0 gives the mean."""
        mean, logvar = self.split(params)
        noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)
        return mean + math.sqrt(max(temperature, 0.0)) * torch.exp(0.5 * logvar) * noise

    def mean(self, params: Tensor) -> Tensor:
        """[...]"""
        return self.split(params)[0]
