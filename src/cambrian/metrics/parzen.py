"""Log-likelihood under a Gaussian Parzen window on generated samples (Goodfellow et al. 2014, section 5).

    log p(x) = logsumexp_i( -||x - s_i||^2 / (2 sigma^2) ) - log M - (D / 2) log(2 pi sigma^2)

The figure that papers of 2014 print. It says little in high dimensions (Theis et al. 2015, 1511.01844): a
generator that copies cluster centres beats the training set itself. Kept because it is what those papers report.

Shapes: N points to score, M generated samples, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cambrian.errors import ConfigError, ShapeError


def parzen_log_density(points: Tensor, samples: Tensor, sigma: float, chunk: int = 1024) -> Tensor:
    """`log p` of each of `points [N, D]` in nats, float64 `[N]`."""
    if points.ndim != 2 or samples.ndim != 2 or points.shape[1] != samples.shape[1]:
        raise ShapeError(
            f"points and samples must be [N, D] and [M, D], got {tuple(points.shape)}, {tuple(samples.shape)}"
        )
    if sigma <= 0:
        raise ConfigError(f"sigma must be positive, got {sigma}")
    samples, dims = samples.double(), points.shape[1]
    constant = math.log(len(samples)) + 0.5 * dims * math.log(2 * math.pi * sigma**2)
    rows = [
        torch.logsumexp(-0.5 * torch.cdist(part.double(), samples).square() / sigma**2, dim=1)
        for part in points.split(chunk)
    ]
    return torch.cat(rows) - constant


def parzen_score(
    valid: Tensor, test: Tensor, samples: Tensor, sigmas: Sequence[float] = tuple(10 ** (-1 + i / 9) for i in range(10))
) -> tuple[float, float]:
    """Mean log-likelihood of `test` with the sigma that is best on `valid`: `(nats, sigma)`."""
    scores = [float(parzen_log_density(valid, samples, sigma).mean()) for sigma in sigmas]
    sigma = sigmas[max(range(len(sigmas)), key=scores.__getitem__)]
    return float(parzen_log_density(test, samples, sigma).mean()), sigma
