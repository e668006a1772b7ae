"""The embedded environments by name."""

from __future__ import annotations

from typing import Any

from cambrian.errors import ConfigError
from cambrian.worlds.control.classic import Acrobot, CartPole, MountainCar, Pendulum
from cambrian.worlds.control.grid import Breakout, GridMaze
from cambrian.worlds.control.vec import VecWorld

WORLDS: dict[str, type[VecWorld]] = {
    "cartpole": CartPole,
    "acrobot": Acrobot,
    "mountaincar": MountainCar,
    "pendulum": Pendulum,
    "breakout": Breakout,
    "gridmaze": GridMaze,
}


def make(name: str, num_envs: int, **settings: Any) -> VecWorld:
    """`num_envs` copies of the embedded environment `name`; `settings` as for `VecWorld`. Raises `ConfigError`."""
    if name not in WORLDS:
        raise ConfigError(f"no embedded environment {name!r}; there are {', '.join(WORLDS)}")
    return WORLDS[name](num_envs, **settings)
