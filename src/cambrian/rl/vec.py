"""The batched environment protocol, environments by name, and the statistics of finished episodes.

An environment here is anything with the attributes of `VecEnv`; the embedded ones are `cambrian.worlds.control.vec.VecWorld`, which
also documents what `Step` holds at the end of an episode. `cambrian.rl.gym` adapts gymnasium in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cambrian.errors import ConfigError, ShapeError
from cambrian.worlds.control.registry import WORLDS, make
from cambrian.worlds.control.vec import Box, Discrete, Space, Step, VecWorld

__all__ = ["Box", "Discrete", "EpisodeStatistics", "Space", "Step", "VecEnv", "VecWorld", "make_env", "random_actions"]


class VecEnv(Protocol):
    """B environments stepped together, reset within the step that ends an episode.

    `observation` [B, ...] is what the agent sees now. `state_dict` holds all that decides the next step, where that can be had.
    """

    num_envs: int
    observation_space: Box
    action_space: Space
    observation: Tensor

    def reset(self, mask: Tensor | None = None) -> Tensor: ...

    def step(self, action: Tensor) -> Step: ...

    def render(self, index: int = 0) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def make_env(name: str, num_envs: int, *, seed: int = 0) -> VecEnv:
    """`num_envs` copies of an environment: an embedded name (`cartpole`), or `gym:ID` for a gymnasium id (extra `rl`).

    Raises `ConfigError` for an unknown name, `MissingExtraError` without gymnasium.
    """
    if name.startswith("gym:"):
        from cambrian.rl.gym import from_gymnasium

        return from_gymnasium(name.removeprefix("gym:"), num_envs, seed=seed)
    if name not in WORLDS:
        raise ConfigError(f"no environment {name!r}; embedded ones are {', '.join(WORLDS)}, others are written gym:ID")
    return make(name, num_envs, seed=seed)


def random_actions(space: Space, n: int, generator: torch.Generator) -> Tensor:
    """`n` actions drawn uniformly: [n] int64 or [n, *shape] float32. Raises `ConfigError` for an unbounded box."""
    if isinstance(space, Discrete):
        return torch.randint(0, space.n, (n,), generator=generator)
    if not (space.low > -float("inf") and space.high < float("inf")):
        raise ConfigError("random actions need a bounded action space; this box has infinite bounds")
    return space.low + (space.high - space.low) * torch.rand(n, *space.shape, generator=generator)


class EpisodeStatistics:
    """Return and length of every copy's present episode, and of the last `keep` finished ones, in the order they finished."""

    _arrays = ("running", "steps", "returns", "lengths")

    def __init__(self, num_envs: int, *, keep: int = 100) -> None:
        if keep < 1:
            raise ConfigError(f"keep must be at least 1, not {keep}")
        self.keep = keep
        self.running = np.zeros(num_envs)
        self.steps = np.zeros(num_envs, np.int64)
        self.returns = np.zeros(0)
        self.lengths = np.zeros(0, np.int64)
        self.finished = 0

    def update(self, reward: Tensor, done: Tensor) -> None:
        """Take one step's rewards [B] and ends [B]."""
        if reward.shape != self.running.shape:
            raise ShapeError(f"rewards must be of shape {self.running.shape}, not {tuple(reward.shape)}")
        self.running += reward.cpu().numpy()
        self.steps += 1
        ended = done.cpu().numpy()
        if count := int(np.count_nonzero(ended)):
            self.finished += count
            self.returns = np.concatenate((self.returns, self.running[ended]))[-self.keep :]
            self.lengths = np.concatenate((self.lengths, self.steps[ended]))[-self.keep :]
            self.running[ended] = 0
            self.steps[ended] = 0

    def mean(self, last: int | None = None) -> float:
        """Mean return of the `last` finished episodes (all that are kept); NaN before the first ends."""
        values = self.returns if last is None else self.returns[-last:]
        return float(values.mean()) if len(values) else float("nan")

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {**{name: getattr(self, name).copy() for name in self._arrays}, "finished": self.finished}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        for name in self._arrays:
            setattr(self, name, np.array(state[name]))
        self.finished = int(state["finished"])
