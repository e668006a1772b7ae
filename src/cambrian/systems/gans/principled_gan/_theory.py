"""The paper's theorems as functions of points, densities and numbers. All divergences are in nats.

Shapes: N, M points, D dimensions, K cells of a partition, P parameters of the generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError, DataError, ShapeError


class PerfectDiscriminator(nn.Module):
    """`[B, D] -> [B]`, infinitely smooth: 1 within a third of `gap` of any point of `x`, 0 likewise of `y`, 1/2 far
    from both; flat wherever it is 0 or 1 (theorem 2.1).

        D(p) = 1/2 + (1 - prod_i (1 - b(p, x_i))) / 2 - (1 - prod_j (1 - b(p, y_j))) / 2
        b(p, q) = 1 for |p - q| <= gap / 3, 0 for |p - q| >= 2 gap / 3, smooth between
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
            raise ShapeError(f"two clouds must be [N, D] and [M, D], got {tuple(x.shape)} and {tuple(y.shape)}")
        self.register_buffer("x", x.detach().clone())
        self.register_buffer("y", y.detach().clone())
        self.gap = float(_distances(x, y).min())
        if not self.gap > 0:
            raise DataError("the clouds share a point, so no smooth discriminator is perfect; add noise to neither")

    def _near(self, points: Tensor, cloud: Tensor) -> Tensor:
        """1 near the cloud, 0 far from it."""
        share = _distances(points, cloud).square() / self.gap**2
        along = ((share - 1 / 9) * 3).clamp(1e-3, 1 - 1e-3)  # 0 at a third of the gap, 1 at two thirds
        bump = torch.sigmoid(1 / along - 1 / (1 - along))  # exactly 1 or 0 in floats at the clamped ends
        return 1 - (1 - bump).prod(1)

    def forward(self, points: Tensor) -> Tensor:
        if points.ndim != 2 or points.shape[1] != self.x.shape[1]:
            raise ShapeError(f"points must be [B, {self.x.shape[1]}], got {tuple(points.shape)}")
        return 0.5 + 0.5 * self._near(points, self.x) - 0.5 * self._near(points, self.y)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")  # exact where points nearly coincide


def perfect_discriminator(x: Tensor, y: Tensor) -> PerfectDiscriminator:
    """The smooth discriminator that is right on every point of clouds `x` `[N, D]` (1) and `y` `[M, D]` (0) and has no
    gradient there. Raises `DataError` where the clouds share a point."""
    return PerfectDiscriminator(x, y)


@dataclass(frozen=True)
class Divergences:
    """Of two distributions p and q, in nats."""

    kl_pq: float
    kl_qp: float
    jsd: float


def divergences(p: Tensor, q: Tensor) -> Divergences:
    """KL both ways (infinite where one has mass and the other none) and JSD, `KL(p||m) / 2 + KL(q||m) / 2` with
    `m = (p + q) / 2`, of masses `[K]` that sum to 1."""
    if p.shape != q.shape or p.ndim != 1 or not all(abs(float(m.sum()) - 1) < 1e-3 for m in (p, q)):
        raise ShapeError(f"p and q must be masses [K] that sum to 1, got {tuple(p.shape)} and {tuple(q.shape)}")
    p, q = p.double(), q.double()
    middle = 0.5 * (p + q)
    return Divergences(
        *(float(kl(a, b)) for a, b in ((p, q), (q, p))), float(0.5 * kl(p, middle) + 0.5 * kl(q, middle))
    )


def kl(p: Tensor, q: Tensor) -> Tensor:
    """`sum p log(p / q)` with 0 log 0 = 0, differentiable where both are positive."""
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum()


def vanishing_bound(eps: float, m: float) -> float:
    """Theorem 2.4: what the norm of the saturating gradient stays below, `M eps / (1 - eps)`; infinite for eps >= 1."""
    if eps < 0 or m < 0:
        raise ConfigError(f"eps and M must be at least 0, got {eps} and {m}")
    return m * eps / (1 - eps) if eps < 1 else math.inf


def noisy_ns_gradients(
    jacobians: Tensor, *, value_sd: float, gradient_sd: float, draws: int, generator: torch.Generator
) -> Tensor:
    """Theorem 2.6 by simulation: `draws` non-saturating gradients `[draws, P]` at a perfect discriminator whose value
    and gradient are off by independent white noise, for a batch of Jacobians `[N, D, P]` of `g`.

        grad = -(1/N) sum_i J_i^T r_i / e_i,    e_i ~ N(0, value_sd^2),  r_i ~ N(0, gradient_sd^2 I)

    Component p is a centred Cauchy variable of scale `(gradient_sd / value_sd) (1/N) sum_i |J_i[:, p]|`.
    """
    if jacobians.ndim != 3:
        raise ShapeError(f"Jacobians must be [N, D, P], got {tuple(jacobians.shape)}")
    count, dims, _ = jacobians.shape
    off = value_sd * torch.randn(draws, count, generator=generator, dtype=torch.float64)
    slope = gradient_sd * torch.randn(draws, count, dims, generator=generator, dtype=torch.float64)
    return -torch.einsum("sn,snd,ndp->sp", 1 / off, slope, jacobians.double()) / count


def jsd_bound(jsd: float, variance: float, diameter: float) -> float:
    """Section 3: what the Wasserstein distance of data and samples stays below when noise with `E ||e||^2 = variance`
    leaves a Jensen-Shannon divergence `jsd` between them, on supports that together have `diameter`.

    Only noise of bounded support has a finite diameter: for Gaussian noise the bound says nothing.
    """
    if min(jsd, variance, diameter) < 0 or jsd > math.log(2) + 1e-6:
        raise ConfigError(f"jsd lies in [0, log 2], variance and diameter are >= 0: {jsd}, {variance}, {diameter}")
    return 2 * math.sqrt(variance) + 2 * diameter * math.sqrt(jsd)


def smoothed_jsd(
    x: Tensor, y: Tensor, density: Callable[[Tensor], Tensor], half_width: float, cells: int = 4000
) -> tuple[float, float]:
    """JSD of clouds on a line, `[N]` and `[M]`, after noise of `density(t)` with support [-half_width, half_width], by
    the midpoint rule; and the diameter of the noisy supports."""
    both = torch.cat((x, y)).double()
    low, high = float(both.min()) - half_width, float(both.max()) + half_width
    at = low + (high - low) * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    masses = [density(at[:, None] - cloud.double()[None]).mean(1) for cloud in (x, y)]
    p, q = (mass / mass.sum() for mass in masses)
    return divergences(p, q).jsd, high - low
