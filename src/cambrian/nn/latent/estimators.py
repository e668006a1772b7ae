"""Bounds on log p(x) from log weights, and losses whose gradients are the estimators of the literature.

    log w_k = log p(x, z_k) - log q(z_k | x),   z_k ~ q(z | x)
    L_K     = E log 1/K sum_k w_k               Burda et al. 2016; K = 1 is the ELBO

Shapes: K samples (first axis), B batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cambrian.errors import ConfigError, ShapeError

ESTIMATORS = ("elbo", "stl", "iwae", "dreg")
PATH_ONLY = ("stl", "dreg")  # those that need log q with its parameters held fixed


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    """log (1/K sum_k w_k) over `dim`, in nats."""
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


def normalised_weights(log_w: Tensor) -> Tensor:
    """w_k / sum_j w_j [K, B] without gradient."""
    return torch.softmax(log_w.detach(), 0)


def effective_samples(log_w: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 [B], between 1 and K: how many of the samples count."""
    return normalised_weights(log_w).square().sum(0).reciprocal()


def bound_loss(log_w: Tensor, kind: str = "elbo", *, uniform: bool = False) -> Tensor:
    """A scalar whose gradient is that of the estimator `kind`, from log weights [K, B] of reparameterised samples.

    - `elbo`: minus the mean of log w (SGVB estimator A with L = K samples).
    - `stl`: the same for log w whose log q has its parameters held fixed (Roeder et al. 2017, sticking the landing): the
      score term, zero on average, is left out.
    - `iwae`: minus L_K; its gradient weighs each sample's by w_k / sum w.
    - `dreg`: doubly reparameterised IWAE (Tucker et al. 2019): the decoder's gradient as in `iwae`, the encoder's with
      squared weights. Needs log w as for `stl`, whose samples went through a `Funnel` that is closed here.

    `uniform` replaces the normalised weights by 1/K, which undoes what importance weighting adds.
    """
    if log_w.dim() != 2:
        raise ShapeError(f"log weights must be [K, B], not {tuple(log_w.shape)}")
    if kind not in ESTIMATORS:
        raise ConfigError(f"no estimator {kind!r}; use one of {', '.join(ESTIMATORS)}")
    if kind in ("elbo", "stl") or uniform:
        return -log_w.mean()
    if kind == "iwae":
        return -log_mean_exp(log_w).mean()
    return -(normalised_weights(log_w) * log_w).sum(0).mean()


class Funnel:
    """Lets samples into their densities, and scales the gradient that comes back by weights that are known only later.

    DReG needs d log w / dz times w~^2 where the decoder gets w~: `pass_through` returns z [K, B, Z] as it is, and when
    the loss is differentiated multiplies its gradient by what `close` was given, [K, B]. Where one stochastic layer is
    drawn from another, the path of the sampling itself must not pass, only what enters a density.
    """

    def __init__(self) -> None:
        self.weights: Tensor | None = None

    def pass_through(self, z: Tensor) -> Tensor:
        """z, whose gradient will be scaled."""
        if not z.requires_grad:
            return z
        copy = z.view_as(z)
        copy.register_hook(self._scale)
        return copy

    def close(self, log_w: Tensor) -> None:
        """Fix the weights: w_k / sum w of log weights [K, B]."""
        self.weights = normalised_weights(log_w)

    def _scale(self, gradient: Tensor) -> Tensor:
        return gradient if self.weights is None else gradient * self.weights[..., None]


class StreamingLogMean:
    """log (1/K sum w) over samples that come in chunks, in the memory of one chunk and float64.

    Order and size of the chunks change nothing but rounding.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None

    def add(self, log_w: Tensor) -> None:
        """Take in log weights [k, B]."""
        part = torch.logsumexp(log_w.double(), 0)
        self.total = part if self.total is None else torch.logaddexp(self.total, part)
        self.count += len(log_w)

    def value(self) -> Tensor:
        """[B] float64. Raises `ShapeError` before the first chunk."""
        if self.total is None:
            raise ShapeError("no log weights were added yet")
        return self.total - math.log(self.count)
