"""Advantages and returns from rollouts: generalised advantage estimation and n-step targets.

    delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t)                     GAE, eq. 11 (1506.02438)
    A_t     = delta_t + gamma lam (1 - done_t) A_{t+1},      R_t = A_t + V(s_t)      eq. 16

A truncated step bootstraps with the value of its own successor (`final_obs`), a terminated one with zero; neither lets the next
episode in. With lam = 1, R_t is the n-step return of A3C (n shrinking towards the end of the rollout).

Shapes: T steps, B environments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cambrian.errors import ConfigError, ShapeError
from cambrian.worlds.control.vec import Step


def gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, done: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both [T, B]; `next_values` [T, B] is V of each step's own successor (before any reset).

    Raises `ShapeError` when the shapes differ.
    """
    shapes = {tuple(t.shape) for t in (rewards, values, next_values, terminated, done)}
    if len(shapes) != 1:
        raise ShapeError(
            f"rewards, values, next_values, terminated and done must have one shape [T, B], not {sorted(shapes)}"
        )
    delta = rewards + gamma * next_values * (~terminated) - values
    decay = gamma * lam * (~done).to(delta.dtype)
    advantages = torch.empty_like(delta)
    carry = torch.zeros_like(delta[0])
    for t, (step, keep) in reversed(list(enumerate(zip(delta.unbind(0), decay.unbind(0))))):
        carry = torch.addcmul(step, keep, carry)
        advantages[t] = carry
    return advantages, advantages + values


def discounted(rewards: Tensor, done: Tensor, start: Tensor, *, gamma: float) -> tuple[Tensor, Tensor]:
    """Running discounted sums G_t = r_t + gamma G_{t-1} [T, B], set to zero after the end of an episode; and the one to go on from."""
    sums = torch.empty_like(rewards)
    for t in range(len(rewards)):
        start = rewards[t] + gamma * start
        sums[t] = start
        start = start * (~done[t])
    return sums, start


class NStep:
    """Turns single steps into n-step transitions: each one leaves, once, when its n-th successor has come.

        reward = sum_{k<m} gamma^k r_{t+k},   discount = gamma^m (0 if the episode terminated),   m = min(n, steps to its end)

    so that the target is `reward + discount * V(next_obs)`. `push` gives None until the window has filled.
    """

    def __init__(self, n: int, gamma: float) -> None:
        if n < 1:
            raise ConfigError(f"n must be at least 1, not {n}")
        self.n, self.gamma = n, gamma
        self.window: deque[dict[str, Tensor]] = deque(maxlen=n)

    def push(self, obs: Tensor, action: Tensor, step: Step) -> dict[str, Tensor] | None:
        """Take what was seen, done and met; give the oldest transition: obs, action, reward, next_obs, discount, each [B, ...]."""
        self.window.append(
            {"obs": obs, "action": action, "reward": step.reward, "next_obs": step.final_obs,
             "terminated": step.terminated, "done": step.done}
        )  # fmt: skip
        if len(self.window) < self.n:
            return None
        first = self.window[0]
        reward, next_obs, done = first["reward"], first["next_obs"], first["done"]
        discount = self.gamma * (~first["terminated"]).to(reward.dtype)
        scale = self.gamma
        for later in list(self.window)[1:]:
            alive = ~done
            reward = reward + scale * later["reward"] * alive
            scale *= self.gamma
            discount = torch.where(alive, scale * (~later["terminated"]).to(reward.dtype), discount)
            next_obs = torch.where(alive.view(-1, *[1] * (next_obs.dim() - 1)), later["next_obs"], next_obs)
            done = done | later["done"]
        return {
            "obs": first["obs"],
            "action": first["action"],
            "reward": reward,
            "next_obs": next_obs,
            "discount": discount,
        }

    def state_dict(self) -> dict[str, Any]:
        """The steps that wait."""
        return {str(i): dict(step) for i, step in enumerate(self.window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.window = deque((dict(state[str(i)]) for i in range(len(state))), maxlen=self.n)
