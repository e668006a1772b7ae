"""Coloured balls on a table, some of them joined by hidden springs or rigid rods; their paths are known, the links are asked for.

After the dynamic physics task of Santoro et al. (2017, arXiv 1706.01427, section 4.4): ten balls of ten colours, seen for 16 frames, which of
them are connected, and how many separate systems are there? Unit masses move on [-1, 1] x [-1, 1] with elastic walls. A spring
pulls with force k (r - r0); a rod keeps its length (positions are corrected along the rod after each step, and velocities follow, so its
turning is damped by about a percent a second);
balls without a link between them repel each other when they touch. Velocity-Verlet steps with a fixed number per frame; all scenes of a batch
move at once. Every scene is a pure function of its key.

Shapes: B scenes, N balls, T frames (16).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.data.random import integers, uniform
from cambrian.errors import DataError

BALLS = 10
FRAMES = 16
FRAME_SECONDS = 0.1
SUBSTEPS = 5
STIFFNESS = 20.0  # of a spring, 1/s^2 for unit mass: two balls swing with a period of 2 pi / sqrt(40) s, ten frames
TOUCH = 0.1  # centre distance below which unlinked balls repel
REPULSION = 400.0
_ROD_SWEEPS = 3


@dataclass(frozen=True)
class Links:
    """`spring` and `rod` bool [B, N, N], symmetric, never both; `rest` float [B, N, N], lengths at which they exert no force."""

    spring: Tensor
    rod: Tensor
    rest: Tensor

    @property
    def joined(self) -> Tensor:
        """bool [B, N, N]: linked by either."""
        return self.spring | self.rod


@dataclass(frozen=True)
class Motion:
    """`path` float32 [B, N, T, 2], `links`, and `colour` int64 [B, N], each colour once a scene."""

    path: Tensor
    links: Links
    colour: Tensor

    def state(self) -> Tensor:
        """Object rows float32 [B, N, 10 + 2 T]: colour one-hot and positions over time. No velocity and no link is shown."""
        return torch.cat([F.one_hot(self.colour, BALLS), self.path.flatten(2)], 2)

    def connections(self) -> Tensor:
        """float32 [B, 45]: for every pair of colours (a < b), in order, whether these balls are linked."""
        where = self.colour.argsort(1)  # position of each colour
        rows = self.links.joined.gather(1, where[:, :, None].expand(-1, -1, where.shape[1]))
        by_colour = rows.gather(2, where[:, None].expand(-1, where.shape[1], -1))
        first, second = torch.triu_indices(where.shape[1], where.shape[1], 1)
        return by_colour[:, first, second].float()

    def systems(self) -> Tensor:
        """int64 [B], the number of separate systems: balls that links do not connect, however indirectly."""
        return components(self.links.joined)


def components(joined: Tensor) -> Tensor:
    """The number of connected components of graphs bool [B, N, N]: int64 [B]."""
    n = joined.shape[1]
    reach = (joined | torch.eye(n, dtype=torch.bool, device=joined.device)).float()
    for _ in range(max(1, (n - 1).bit_length())):
        reach = (reach @ reach).clamp(max=1.0)
    first = reach.argmax(2)  # the lowest-numbered ball of each ball's system
    return (first == torch.arange(n, device=joined.device)).sum(1)


def motion(key: Tensor) -> Motion:
    """One scene per key [B]."""
    start = _apart(key)
    links = _connect(key, start)
    speed = uniform(key, BALLS * 2, low=-1.0, high=1.0, stream=3).view(-1, BALLS, 2)
    return Motion(simulate(start, speed, links), links, uniform(key, BALLS, stream=4).argsort(1))


def _apart(key: Tensor) -> Tensor:
    """Starting places on a jittered 4 x 4 grid, at least 0.2 apart: float [B, N, 2]."""
    cell = uniform(key, 16, stream=0).argsort(1)[:, :BALLS]
    jitter = uniform(key, BALLS * 2, low=-0.1, high=0.1, stream=1).view(-1, BALLS, 2)
    return torch.stack([cell % 4, cell // 4], 2) * 0.4 - 0.6 + jitter


def _connect(key: Tensor, start: Tensor) -> Links:
    """Every ball reaches out, with probability 1/2, to one other ball, by a spring or a rod."""
    n = start.shape[1]
    draw = integers(key, 3 * n, 2 * (n - 1), stream=2).view(-1, 3, n)
    other = (torch.arange(n, device=key.device) + 1 + draw[:, 0] % (n - 1)) % n
    asked = F.one_hot(other, n).bool() & (draw[:, 1] % 2 == 0)[:, :, None]
    as_spring = (draw[:, 2] % 2 == 0)[:, :, None]
    spring = (asked & as_spring) | (asked & as_spring).transpose(1, 2)
    rod = ((asked & ~as_spring) | (asked & ~as_spring).transpose(1, 2)) & ~spring
    return Links(spring, rod, _gaps(start)[1])


def _gaps(position: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors [2, B, N, N] from i to j and distances [B, N, N]."""
    away = position.movedim(2, 0)[:, :, None] - position.movedim(2, 0)[..., None]
    distance = (away[0].square() + away[1].square()).sqrt()
    return away / distance.clamp(min=1e-6), distance


def _along(size: Tensor, unit: Tensor) -> Tensor:
    """The sum over j of vectors of length `size` [B, N, N] from i towards j: [B, N, 2]."""
    return (size * unit).sum(3).movedim(0, 2)


def forces(position: Tensor, links: Links) -> Tensor:
    """The force on every ball, [B, N, 2]: springs, and repulsion of unlinked balls that touch."""
    unit, distance = _gaps(position)
    pull = STIFFNESS * (distance - links.rest) * links.spring
    apart = ~(links.joined | torch.eye(position.shape[1], dtype=torch.bool, device=position.device))
    push = REPULSION * (TOUCH - distance).clamp(min=0) * apart
    return _along(pull - push, unit)


def simulate(
    position: Tensor,
    velocity: Tensor,
    links: Links,
    *,
    frames: int = FRAMES,
    substeps: int = SUBSTEPS,
    walls: bool = True,
) -> Tensor:
    """Positions float [B, N, T, 2] from the start `position` (the first frame) and `velocity`, both [B, N, 2].

    Raises `DataError` when the links do not fit the balls.
    """
    if links.spring.shape != (*position.shape[:2], position.shape[1]) or velocity.shape != position.shape:
        raise DataError(
            f"links {list(links.spring.shape)} or velocity {list(velocity.shape)} do not fit {list(position.shape)}"
        )
    step, rigid = FRAME_SECONDS / substeps, bool(links.rod.any())
    shown, acceleration = [position], forces(position, links)
    for _ in range(frames - 1):
        for _ in range(substeps):
            half = velocity + 0.5 * step * acceleration
            moved = position + step * half
            moved = _keep_rods(moved, links) if rigid else moved
            half = (moved - position) / step
            acceleration = forces(moved, links)
            velocity = half + 0.5 * step * acceleration
            velocity = _keep_rates(moved, velocity, links) if rigid else velocity
            position = moved
            if walls:
                velocity = torch.where((position.abs() > 1) & (position * velocity > 0), -velocity, velocity)
        shown.append(position)
    return torch.stack(shown, 2)


def _keep_rods(position: Tensor, links: Links) -> Tensor:
    """Move the ends of every rod towards its length, half of the error each (Jacobi sweeps, damped by the ends' rod counts)."""
    share = _rod_share(links)
    for _ in range(_ROD_SWEEPS):
        unit, distance = _gaps(position)
        position = position + _along((distance - links.rest) * share, unit)
    return position


def _keep_rates(position: Tensor, velocity: Tensor, links: Links) -> Tensor:
    """Remove velocity along rods, in the same way."""
    share = _rod_share(links)
    unit, _ = _gaps(position)
    for _ in range(_ROD_SWEEPS):
        rate = velocity.movedim(2, 0)
        closing = ((rate[:, :, None] - rate[..., None]) * unit).sum(0)
        velocity = velocity + _along(closing * share, unit)
    return velocity


def _rod_share(links: Links) -> Tensor:
    """[B, N, N], symmetric so that momentum is kept: 1/2 for a lone rod, less where an end holds several."""
    count = links.rod.sum(2)
    return links.rod / (2.0 * torch.maximum(count[:, :, None], count[:, None]).clamp(min=1))
