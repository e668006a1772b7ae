"""What DQN, A2C and PPO minimise, as pure functions of tensors.

PPO, clipped     L = -E[min(rho A, clip(rho, 1-eps, 1+eps) A)],  rho = pi(a|s) / pi_old(a|s)      1707.06347, eq. 7
PPO, KL penalty  L = -E[rho A - beta KL(pi_old | pi)]                                          eq. 8
A2C              L = -E[log pi(a|s) A]                                                        1602.01783
DQN              L = E[w huber(r + discount max_a Q^-(s',a) - Q(s,a))]                         Nature 2015
double DQN       Q^-(s', argmax_a Q(s',a)) for the maximum                                     1509.06461
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ShapeError


def normalised(advantage: Tensor) -> Tensor:
    """Zero mean, unit variance over the batch [n]; a batch of one is left as it is, for it has no variance."""
    if advantage.numel() < 2:
        return advantage
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float | None) -> Tensor:
    """PPO's loss, a scalar; with `clip=None` the ratio is unclipped (the bare surrogate)."""
    bare = ratio * advantage
    if clip is None:
        return -bare.mean()
    return -torch.minimum(bare, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def value_loss(value: Tensor, returns: Tensor, *, old: Tensor | None = None, clip: float | None = None) -> Tensor:
    """Half the mean squared error; with `clip`, the larger of it and that of the value kept within `clip` of the old one."""
    error = (value - returns).square()
    if clip is not None and old is not None:
        error = torch.maximum(error, (old + (value - old).clamp(-clip, clip) - returns).square())
    return 0.5 * error.mean()


def adapted_penalty(beta: float, kl: float, target: float) -> float:
    """PPO's rule for the KL coefficient: halved below target / 1.5, doubled above target * 1.5 (section 4)."""
    if kl < target / 1.5:
        return beta / 2
    return beta * 2 if kl > target * 1.5 else beta


def q_target(reward: Tensor, discount: Tensor, target_next: Tensor, online_next: Tensor | None = None) -> Tensor:
    """The value to regress on [n]: `reward + discount * max_a target_next` [n, A], or with `online_next` double DQN's.

    Raises `ShapeError` when the action values differ in shape.
    """
    if online_next is None:
        best = target_next.amax(1)
    elif online_next.shape != target_next.shape:
        raise ShapeError(
            f"online values {tuple(online_next.shape)} and target values {tuple(target_next.shape)} must agree"
        )
    else:
        best = target_next.gather(1, online_next.argmax(1, keepdim=True))[:, 0]
    return reward + discount * best


def td_loss(q: Tensor, action: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of weight * huber(error) (delta 1; the weights multiply after it), and the errors Q(s,a) - target [n], detached."""
    error = q.gather(1, action[:, None])[:, 0] - target
    loss = F.huber_loss(error, torch.zeros_like(error), reduction="none")
    return (weight * loss).mean(), error.detach()


@torch.no_grad()
def polyak(target: nn.Module, online: nn.Module, tau: float = 1.0) -> None:
    """target <- (1 - tau) target + tau online, for parameters and buffers; tau = 1 copies."""
    for old, new in zip(target.parameters(), online.parameters()):
        old.lerp_(new, tau)
    for old, new in zip(target.buffers(), online.buffers()):
        old.copy_(new)


def explained_variance(value: Tensor, returns: Tensor) -> Tensor:
    """1 - Var(returns - value) / Var(returns); 1 is perfect, 0 no better than a constant; 0 where returns are constant."""
    spread = returns.var(correction=0)
    return torch.where(spread > 0, 1 - (returns - value).var(correction=0) / spread.clamp(min=1e-12), 0.0)
