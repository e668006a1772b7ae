"""A mixture of normals with diagonal covariances over vectors, such as frames of sound.

Shapes: `...` any batch shape, D features, M mixture components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ShapeError


@dataclass(frozen=True)
class DiagMixture:
    """p(x) = sum_m pi_m prod_d N(x_d | mu_md, v_md), the output of an RNN-GMM; one component is a diagonal normal.

    Raw outputs [..., n_params]: means [M D], log-variances [M D], and with several components their logits [M].
    Variances are exp(.) + `floor`: without a floor a component that sits on one point has infinite density.
    """

    features: int
    components: int = 1
    floor: float = 1e-6

    @property
    def n_params(self) -> int:
        return 2 * self.features * self.components + (self.components if self.components > 1 else 0)

    def split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log pi [..., M], means and log-variances [..., M, D]. Raises `ShapeError`."""
        if params.shape[-1] != self.n_params:
            raise ShapeError(f"{self} needs {self.n_params} outputs (last axis), not {tuple(params.shape)}")
        size = self.features * self.components
        mean, logvar, logits = params[..., :size], params[..., size : 2 * size], params[..., 2 * size :]
        if self.components == 1:
            logits = params.new_zeros(*params.shape[:-1], 1)
        shape = (self.components, self.features)
        floor = torch.as_tensor(math.log(self.floor), dtype=params.dtype, device=params.device)
        logvar = torch.logaddexp(logvar, floor)
        return F.log_softmax(logits, -1), mean.unflatten(-1, shape), logvar.unflatten(-1, shape)

    def log_prob(self, params: Tensor, target: Tensor) -> Tensor:
        """Log-density [...] of target [..., D], in nats."""
        log_pi, mean, logvar = self.split(params)
        squares = (target[..., None, :] - mean).square() * torch.exp(-logvar)
        each = -0.5 * (squares + logvar + math.log(2 * math.pi)).sum(-1)
        return each[..., 0] if self.components == 1 else torch.logsumexp(log_pi + each, -1)

    def sample(self, params: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Draw [..., D]: mixture logits are divided by the temperature and variances multiplied by it; at 0 the mean of the
        likeliest component."""
        log_pi, mean, logvar = (p.flatten(0, params.dim() - 2) for p in self.split(params))
        if temperature <= 0 or self.components == 1:
            pick = log_pi.argmax(-1)
        else:
            weights = torch.softmax(log_pi / temperature, -1).to(generator.device)
            pick = torch.multinomial(weights, 1, generator=generator)[:, 0].to(params.device)
        row = torch.arange(len(pick), device=params.device)
        noise = torch.randn(mean[:, 0].shape, generator=generator, device=generator.device).to(mean)
        drawn = mean[row, pick] + math.sqrt(max(temperature, 0.0)) * torch.exp(0.5 * logvar[row, pick]) * noise
        return drawn.unflatten(0, params.shape[:-1])

    def mean(self, params: Tensor) -> Tensor:
        """[..., D]"""
        log_pi, mean, _ = self.split(params)
        return (log_pi.exp()[..., None] * mean).sum(-2)
