"""Series from linear-Gaussian state-space models, whose likelihood and posteriors are known exactly.

    z_1 ~ N(0, P),  z_t = A z_{t-1} + w,  w ~ N(0, Q)
    x_t = C z_t + v,                      v ~ N(0, R)

`kalman` gives log p(x_1..T) and the filtered posteriors, `smooth` the smoothed ones (Rauch, Tung, Striebel 1965), in
float64. A series is a pure function of its key.

Shapes: N series, T steps, Z state, X observed features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cambrian.data.random import normal, sample_keys
from cambrian.data.split import Data, TensorSplit
from cambrian.errors import ShapeError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Filtered:
    """`log_likelihood` [N] in nats; means [N, T, Z] and covariances [T, Z, Z] of z_t given x_1..t, and, as predicted, given
    x_1..t-1."""

    log_likelihood: Tensor
    mean: Tensor
    covariance: Tensor
    predicted_mean: Tensor
    predicted_covariance: Tensor


@dataclass(frozen=True)
class LinearGaussian:
    """The model: `transition` A [Z, Z], `emission` C [X, Z], and the diagonals of Q [Z], R [X] and P [Z]."""

    transition: Tensor
    emission: Tensor
    process: Tensor
    noise: Tensor
    first: Tensor

    def draw(self, key: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """States [N, T, Z] and observations float32 [N, T, X] for keys [N]."""
        states, features = self.transition.shape[0], self.emission.shape[0]
        w = normal(key, steps * states, stream=1).view(-1, steps, states)
        v = normal(key, steps * features, stream=2).view(-1, steps, features)
        z = w[:, 0] * self.first.sqrt()
        path = [z]
        for t in range(1, steps):
            z = z @ self.transition.T + w[:, t] * self.process.sqrt()
            path.append(z)
        states_ = torch.stack(path, 1)
        return states_, states_ @ self.emission.T + v * self.noise.sqrt()

    def kalman(self, x: Tensor) -> Filtered:
        """Exact filtering of x [N, T, X]. Raises `ShapeError`."""
        if x.dim() != 3 or x.shape[2] != self.emission.shape[0]:
            raise ShapeError(f"series must be [N, T, {self.emission.shape[0]}], not {tuple(x.shape)}")
        a, c, x = self.transition.double(), self.emission.double(), x.double()
        q, r = torch.diag(self.process.double()), torch.diag(self.noise.double())
        mean, cov = x.new_zeros(len(x), len(a)), torch.diag(self.first.double())
        total = x.new_zeros(len(x))
        rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for t in range(x.shape[1]):
            spread = c @ cov @ c.T + r
            residual = x[:, t] - mean @ c.T
            gain = torch.linalg.solve(spread, c @ cov).T  # [Z, X]
            total += torch.distributions.MultivariateNormal(torch.zeros(len(c)).double(), spread).log_prob(residual)
            updated, left = mean + residual @ gain.T, cov - gain @ c @ cov
            rows.append((updated, left, mean, cov))
            mean, cov = updated @ a.T, a @ left @ a.T + q
        parts = list(zip(*rows, strict=True))
        return Filtered(
            total, torch.stack(parts[0], 1), torch.stack(parts[1]), torch.stack(parts[2], 1), torch.stack(parts[3])
        )

    def smooth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means [N, T, Z] and covariances [T, Z, Z] of z_t given the whole series x [N, T, X]."""
        found, a = self.kalman(x), self.transition.double()
        mean, cov = found.mean[:, -1], found.covariance[-1]
        means, covs = [mean], [cov]
        for t in range(x.shape[1] - 2, -1, -1):
            gain = torch.linalg.solve(found.predicted_covariance[t + 1], a @ found.covariance[t]).T
            mean = found.mean[:, t] + (mean - found.predicted_mean[:, t + 1]) @ gain.T
            cov = found.covariance[t] + gain @ (cov - found.predicted_covariance[t + 1]) @ gain.T
            means.append(mean)
            covs.append(cov)
        return torch.stack(means[::-1], 1), torch.stack(covs[::-1])


def turning(decay: float = 0.95, angle: float = 0.4, noise: float = 0.5) -> LinearGaussian:
    """A damped rotation in the plane, seen through three noisy sensors."""
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * decay
    emission = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, -0.7]])
    process = torch.full((2,), 1 - decay**2)
    return LinearGaussian(turn, emission, process, torch.full((3,), noise**2), torch.ones(2))


def load(*, train: int = 2000, valid: int = 200, test: int = 200, steps: int = 40, seed: int = 0) -> Data:
    """Series of `turning()` as `Data` of kind `series`: `x` float32 [N, T, 3] and `state` [N, T, 2]."""
    model = turning()
    sizes = {"train": train, "valid": valid, "test": test}
    splits = {}
    for number, (name, count) in enumerate(sizes.items()):
        state, x = model.draw(sample_keys(seed, number, torch.arange(count)), steps)
        splits[name] = TensorSplit(x=x, state=state)
    return Data("ssm", "series", splits["train"], splits["valid"], splits["test"], {"features": 3, "states": 2})
