"""Low-dimensional densities whose modes, log-density and entropy-free facts are known exactly.

Every point is a pure function of (seed, index): point i of a world never depends on which others are asked for.

    ring8   8 Gaussians, sd 0.02, on a circle of radius 2            the mode-collapse toy of Metz et al. (1611.02163)
    grid25  25 Gaussians, sd 0.05, on {-4, -2, 0, 2, 4}^2            the grid of Dumoulin et al. (1606.00704)
    r15     15 Gaussians: one in the middle, 7 on each of two rings  the layout of Veenman et al. 2002

Shapes: N points, K modes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cambrian.data import random as keyed
from cambrian.data.split import Data, WorldSplit
from cambrian.errors import ConfigError, DataError

_SPLITS = {"train": 0, "valid": 1, "test": 2}


@dataclass(frozen=True)
class Mixture:
    """Equally likely isotropic Gaussians: `centres [K, 2]`, one standard deviation."""

    centres: Tensor
    deviation: float

    def at(self, seed: int, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Points `[N, 2]` and modes int64 `[N]` at these indices."""
        key = keyed.sample_keys(seed, epoch, index)
        mode = keyed.integers(key, 1, len(self.centres), stream=1)[:, 0]
        return self.centres[mode] + self.deviation * keyed.normal(key, 2), mode

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` fresh points `[N, 2]`."""
        mode = torch.randint(len(self.centres), (count,), generator=generator)
        return self.centres[mode] + self.deviation * torch.randn(count, 2, generator=generator)

    def log_density(self, x: Tensor) -> Tensor:
        """`log p(x)` `[N]` of points `[N, 2]`, in nats."""
        if x.ndim != 2 or x.shape[1] != 2:
            raise DataError(f"points must be [N, 2], got {tuple(x.shape)}")
        squared = torch.cdist(x, self.centres.to(x)).square() / self.deviation**2
        inside = torch.logsumexp(-0.5 * squared, dim=1)
        return inside - math.log(len(self.centres)) - math.log(2 * math.pi * self.deviation**2)


def circle(count: int, radius: float, turn: float = 0.0) -> Tensor:
    """`count` distinct points on a circle `[count, 2]`: the full turn is left out, or first and last would
    coincide.
    """
    angle = torch.arange(count) * (2 * math.pi / count) + turn
    return radius * torch.stack((angle.cos(), angle.sin()), dim=1)


def ring8() -> Mixture:
    """Eight modes on a circle."""
    return Mixture(circle(8, 2.0), 0.02)


def grid25() -> Mixture:
    """Twenty-five modes on a square grid."""
    steps = torch.arange(-2.0, 3.0) * 2.0
    return Mixture(torch.cartesian_prod(steps, steps), 0.05)


def r15() -> Mixture:
    """One mode in the middle, seven on an inner and seven on an outer ring."""
    return Mixture(torch.cat((torch.zeros(1, 2), circle(7, 1.0), circle(7, 2.5))), 0.1)


MIXTURES: dict[str, Callable[[], Mixture]] = {"ring8": ring8, "grid25": grid25, "r15": r15}


def mixture(name: str) -> Mixture:
    """The mixture of that name; `ConfigError` for an unknown one."""
    if name not in MIXTURES:
        raise ConfigError(f"no points world {name!r}; use one of {', '.join(MIXTURES)}")
    return MIXTURES[name]()


def load(name: str, *, train: int = 100_000, test: int = 10_000, seed: int = 0) -> Data:
    """A mixture as `Data` of kind `points`: `point` float32 `[N, 2]` and `label` int64 `[N]` (the mode).

    `info` holds `shape` (2,), `classes` and the `centres` `[K, 2]` and `deviation` that scores need. Splits differ
    in their keys.
    """
    world = mixture(name)

    def split(part: str, size: int) -> WorldSplit:
        def make(index: Tensor) -> dict[str, Tensor]:
            point, mode = world.at(seed, index, epoch=_SPLITS[part])
            return {"point": point, "label": mode}

        return WorldSplit(make, size)

    info = {
        "shape": (2,),
        "classes": [str(mode) for mode in range(len(world.centres))],
        "centres": world.centres.tolist(),
        "deviation": world.deviation,
    }
    return Data(name, "points", split("train", train), split("valid", test), split("test", test), info)
