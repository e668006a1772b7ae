"""Which latent vector makes this picture? Batched L-BFGS over rows that do not know of each other.

`torch.optim.LBFGS` treats a batch as one problem: one step length, one curvature history, one stopping rule for
all rows. Here every row has its own (Nocedal & Wright, algorithms 7.4 and 3.1), while the objective is still
evaluated for the whole batch at once.

Shapes: N problems, D unknowns of each, M history length, R restarts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cambrian.errors import ConfigError, ShapeError

Objective = Callable[[Tensor], Tensor]


@dataclass
class _History:
    """The last M curvature pairs of every row: steps s, gradient changes y `[M, N, D]` and `rho = 1 / s.y` `[M,
    N]`.
    """

    s: Tensor
    y: Tensor
    rho: Tensor

    @classmethod
    def empty(cls, z: Tensor, length: int) -> _History:
        return cls(z.new_zeros(length, *z.shape), z.new_zeros(length, *z.shape), z.new_zeros(length, z.shape[0]))

    def push(self, s: Tensor, y: Tensor) -> None:
        """Rows whose pair has no positive curvature get rho = 0, which makes the pair count for nothing."""
        curvature = (s * y).sum(1)
        sound = curvature > 1e-10 * y.square().sum(1).clamp_min(1e-30)
        rho = torch.where(sound, 1.0 / curvature.where(sound, torch.ones_like(curvature)), torch.zeros_like(curvature))
        self.s = torch.cat((self.s[1:], s[None]))
        self.y = torch.cat((self.y[1:], y[None]))
        self.rho = torch.cat((self.rho[1:], rho[None]))

    def direction(self, gradient: Tensor) -> Tensor:
        """`-H gradient` of every row by the two-loop recursion; rows without history get the negative gradient,
        scaled to at most unit length."""
        q, alphas = gradient.clone(), []
        for s, y, rho in zip(self.s.flip(0), self.y.flip(0), self.rho.flip(0), strict=True):
            alpha = rho * (s * q).sum(1)
            q = q - alpha[:, None] * y
            alphas.append(alpha)
        newest = self.rho[-1]
        curved = newest > 0
        scale = torch.where(curved, 1.0 / (newest * self.y[-1].square().sum(1)).clamp_min(1e-30), 1.0)
        first = (~(self.rho > 0).any(0)).to(q.dtype)
        length = gradient.norm(dim=1).clamp_min(1.0)
        q = q * (scale * (1 - first) + first / length)[:, None]
        for s, y, rho, alpha in zip(self.s, self.y, self.rho, reversed(alphas), strict=True):
            beta = rho * (y * q).sum(1)
            q = q + s * (alpha - beta)[:, None]
        return -q


def _evaluate(objective: Objective, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = objective(z)
        if value.shape != z.shape[:1]:
            raise ShapeError(f"the objective must give one value per row, [{z.shape[0]}], got {tuple(value.shape)}")
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


def lbfgs(
    objective: Objective, start: Tensor, *, steps: int = 50, history: int = 10, trials: int = 12
) -> tuple[Tensor, Tensor]:
    """Minimise `objective([N, D]) -> [N]` from `start [N, D]`, each row on its own: `(z [N, D], value [N])`.

    A row takes the first of `trials` halved step lengths that meets the Armijo condition and stays where it is
    when none does, so no row's value ever rises. Rows must not influence each other in `objective` (no batch
    statistics).
    """
    if start.ndim != 2:
        raise ShapeError(f"start must be [problems, unknowns], got {tuple(start.shape)}")
    if steps < 1 or history < 1:
        raise ConfigError(f"steps and history must be >= 1, got {steps} and {history}")
    z = start.detach().clone()
    value, gradient = _evaluate(objective, z)
    past = _History.empty(z, history)
    for _ in range(steps):
        direction = past.direction(gradient)
        slope = (direction * gradient).sum(1)
        downhill = slope < 0
        direction = torch.where(downhill[:, None], direction, -gradient)
        slope = torch.where(downhill, slope, -gradient.square().sum(1))
        moved, new_value, new_gradient = _search(objective, z, value, gradient, direction, slope, trials)
        past.push(moved - z, new_gradient - gradient)
        if torch.equal(moved, z):
            break
        z, value, gradient = moved, new_value, new_gradient
    return z, value


def _search(
    objective: Objective, z: Tensor, value: Tensor, gradient: Tensor, direction: Tensor, slope: Tensor, trials: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Backtracking with one step length per row; rows that are done keep theirs while the others go on halving."""
    best, best_value, best_gradient = z.clone(), value.clone(), gradient.clone()
    pending = torch.ones_like(value, dtype=torch.bool)
    length = 1.0
    for _ in range(trials):
        trial = z + length * direction
        trial_value, trial_gradient = _evaluate(objective, trial)
        accept = pending & (trial_value <= value + 1e-4 * length * slope) & trial_value.isfinite()
        best = torch.where(accept[:, None], trial, best)
        best_value = torch.where(accept, trial_value, best_value)
        best_gradient = torch.where(accept[:, None], trial_gradient, best_gradient)
        pending = pending & ~accept
        if not bool(pending.any()):
            break
        length *= 0.5
    return best, best_value, best_gradient


def invert(
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    prior: Callable[[int, torch.Generator], Tensor],
    generator: torch.Generator,
    restarts: int = 3,
    steps: int = 50,
) -> tuple[Tensor, Tensor]:
    """`z* = argmin_z mean (decode(z) - x)^2` for every row of `x`: `(z [N, D], mse [N])`, the best of `restarts`
    starts drawn by `prior(count, generator) -> [count, D]` (Metz et al. 2016, section 3.4).

    All restarts run as one batch of `N * R` rows. `decode` must treat rows independently: put it in evaluation mode.
    """
    if restarts < 1:
        raise ConfigError(f"restarts must be >= 1, got {restarts}")
    count = x.shape[0]
    goal = x.flatten(1).repeat(restarts, 1)  # [R N, pixels]
    start = prior(count * restarts, generator).to(x.device)
    z, error = lbfgs(lambda z: (decode(z).flatten(1) - goal).square().mean(1), start, steps=steps)
    error, z = error.view(restarts, count), z.view(restarts, count, -1)
    best = error.argmin(0)
    rows = torch.arange(count, device=x.device)
    return z[best, rows], error[best, rows]
