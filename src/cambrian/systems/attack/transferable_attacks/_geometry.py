"""The geometry behind transfer: angles between networks' gradients, decision regions in a plane, distances to boundaries.

Shapes: B batch, M networks, T points along a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.inspect.attack import Goal, input_gradient
from cambrian.inspect.target import Target


def gradient_cosines(targets: Sequence[Target], x: Tensor, y: Tensor) -> Tensor:
    """`[M,M]`: mean over the inputs of the cosine between the loss gradients of two networks."""
    slopes = []
    for target in targets:
        target.check(x, y)
        with target.quiet() as module:
            slopes.append(input_gradient(module, x, y, Goal())[0].flatten(1))
    unit = F.normalize(torch.stack(slopes), dim=2)
    return torch.einsum("abd,cbd->ac", unit, unit) / len(x)


def plane_directions(target: Target, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Unit directions `[*shape]` for the one input `x [1,...]`: along the network's loss gradient, and a random one orthogonal
    to it.
    """
    target.check(x, y)
    if len(x) != 1:
        raise ShapeError(f"a plane goes through one input, got {len(x)}")
    with target.quiet() as module:
        first = F.normalize(input_gradient(module, x, y, Goal())[0].flatten(), dim=0)
    other = torch.randn(first.shape, generator=generator, dtype=x.dtype).to(x.device)
    second = F.normalize(other - (other @ first) * first, dim=0)
    return first.view(x.shape[1:]), second.view(x.shape[1:])


@torch.no_grad()
def decision_plane(
    targets: Mapping[str, Target], x: Tensor, d1: Tensor, d2: Tensor, *, reach: float, points: int = 41
) -> dict[str, Tensor]:
    """What every network takes `x + u d1 + v d2` for, `u` and `v` from -`reach` to `reach` (the space's units, L2):
    labels `[T,T]`, first index v. Points outside the box are asked about too.
    """
    if x.dim() != d1.dim() + 1 or len(x) != 1 or d1.shape != x.shape[1:] or d2.shape != d1.shape:
        raise ShapeError(
            f"a plane needs one input and two directions of its shape, got {list(x.shape)} and {list(d1.shape)}"
        )
    if points < 2 or not reach > 0:
        raise ConfigError(f"reach must be positive and points at least 2, got {reach} and {points}")
    ticks = torch.linspace(-reach, reach, points, dtype=x.dtype, device=x.device)
    v, u = torch.meshgrid(ticks, ticks, indexing="ij")
    shape = (-1, *[1] * d1.dim())
    grid = x + u.reshape(shape) * d1 + v.reshape(shape) * d2
    labels = {}
    for name, target in targets.items():
        with target.quiet() as module:
            labels[name] = torch.cat([module(part).argmax(1) for part in grid.split(512)]).view(points, points)
    return labels


@torch.no_grad()
def boundary_distances(
    target: Target, x: Tensor, d: Tensor, *, reach: float, points: int = 64, halvings: int = 12
) -> Tensor:
    """`[B]`: how far each input can go along its unit direction `d [B,...]` until the label changes (the space's
    units, L2; infinite beyond `reach`). Scanned at `points` places, then bisected; points outside the box are asked
    about too.
    """
    target.check(x)
    if d.shape != x.shape or points < 1 or not reach > 0:
        raise ShapeError(f"directions must be {list(x.shape)} and points and reach positive, got {list(d.shape)}")
    far = torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)
    near, wide = torch.zeros_like(far), (-1, *[1] * (x.dim() - 1))
    with target.quiet() as module:
        label = module(x).argmax(1)
        for i in range(1, points + 1):
            place = i * reach / points
            same = module(x + place * d).argmax(1) == label
            crossed = ~same & far.isinf()
            far = torch.where(crossed, place, far)
            near = torch.where(same & far.isinf(), place, near)
        known = far.isfinite()
        for _ in range(halvings if bool(known.any()) else 0):
            middle = torch.where(known, (near + far) / 2, near)
            same = module(x + middle.view(wide) * d).argmax(1) == label
            near, far = torch.where(known & same, middle, near), torch.where(known & ~same, middle, far)
    return far
