"""A mixture of bivariate normals with correlations, for pen strokes.

Shapes: `...` any batch shape, M mixture components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ShapeError


@dataclass(frozen=True)
class Mixture2D:
    """A mixture of `components` bivariate normals with correlations (Graves 2013, arXiv 1308.0850, equations 16-25).

        p(x, y) = sum_j pi_j N(x, y | mu_j, sigma_j, rho_j)

    Raw outputs [..., 6M] in the order pi, mu_x, mu_y, log sigma_x, log sigma_y, atanh rho. `min_log_sigma` and
    `max_rho` bound the density: without them a component that sits on one point, or on a line, has infinite density
    and NaN gradients.
    """

    components: int
    min_log_sigma: float = -7.0
    max_log_sigma: float = 7.0
    max_rho: float = 0.999

    @property
    def n_params(self) -> int:
        return 6 * self.components

    def split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log pi [..., M], mu [..., M, 2], log sigma [..., M, 2], rho [..., M]."""
        if params.shape[-1] != self.n_params:
            raise ShapeError(
                f"{self.components} components need {self.n_params} outputs (last axis), not {tuple(params.shape)}"
            )
        pi, mu_x, mu_y, s_x, s_y, r = params.chunk(6, -1)
        log_sigma = torch.stack((s_x, s_y), -1).clamp(self.min_log_sigma, self.max_log_sigma)
        return F.log_softmax(pi, -1), torch.stack((mu_x, mu_y), -1), log_sigma, self.max_rho * r.tanh()

    def log_prob(self, params: Tensor, target: Tensor) -> Tensor:
        """Log-density [...] of target [..., 2], in nats."""
        log_pi, mu, log_sigma, rho = self.split(params)
        u = (target[..., None, :] - mu) * torch.exp(-log_sigma)
        # the quadratic form as y's own part plus x's given y: the textbook's cancels below zero when |rho| nears 1
        ux, uy = u.unbind(-1)
        quad = uy.square() + (ux - rho * uy).square() / (1 - rho.square())
        log_norm = log_sigma.sum(-1) + 0.5 * torch.log1p(-rho.square()) + math.log(2 * math.pi)
        return torch.logsumexp(log_pi - 0.5 * quad - log_norm, -1)

    def sample(
        self, params: Tensor, generator: torch.Generator, temperature: float = 1.0, *, spread: float | None = None
    ) -> Tensor:
        """Draw [..., 2]; mixture logits are divided by the temperature and variances multiplied by it (Ha & Eck 2017,
        section 3.3).

        At temperature 0 this is the mean of the likeliest component. `spread` multiplies the variances instead of the
        temperature.
        """
        log_pi, mu, log_sigma, rho = (p.flatten(0, params.dim() - 2) for p in self.split(params))
        if temperature <= 0:
            pick = log_pi.argmax(-1)
        else:
            weights = torch.softmax(log_pi / temperature, -1)
            pick = torch.multinomial(weights.to(generator.device), 1, generator=generator)[:, 0].to(params.device)
        row = torch.arange(len(pick), device=params.device)
        mu, sigma, rho = mu[row, pick], log_sigma[row, pick].exp(), rho[row, pick]
        noise = torch.randn(mu.shape, generator=generator, device=generator.device).to(mu) * math.sqrt(
            max(temperature if spread is None else spread, 0.0)
        )
        x = noise[:, 0]
        y = rho * x + torch.sqrt(1 - rho.square()) * noise[:, 1]
        return (mu + sigma * torch.stack((x, y), -1)).unflatten(0, params.shape[:-1])

    def mean(self, params: Tensor) -> Tensor:
        """[..., 2]"""
        log_pi, mu, _, _ = self.split(params)
        return (log_pi.exp()[..., None] * mu).sum(-2)
