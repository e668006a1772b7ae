"""Which point may come next, so that every answer that a search finds is valid by construction.

A constraint looks ahead as far as it must: it never allows a prefix that has no valid end. Shapes: R prefixes, t chosen, n
points, V = n + 1 numbers (0 stops).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.errors import ConfigError
from cambrian.nn.decode import Constraint
from cambrian.worlds.point_sets import longest, turns

VALID = ("none", "hull", "tour", "delaunay")


def constraint(kind: str, points: Tensor, count: Tensor) -> Constraint | None:
    """The constraint of a task over points [B, n, 2], of which the first `count` [B] are real. Raises `ConfigError`."""
    if kind not in VALID:
        raise ConfigError(f"valid must be one of {', '.join(VALID)}, not {kind!r}")
    real = torch.arange(1, points.shape[1] + 1, device=points.device) <= count[:, None]
    if kind == "none":
        return None
    if kind == "tour":
        return lambda prefix, rows: _tour(prefix, real[rows])
    if kind == "delaunay":
        return lambda prefix, rows: _triangles(prefix, real[rows])
    left = (turns(points) > 0) & real[:, None, :, None] & real[:, :, None, None] & real[:, None, None]
    return lambda prefix, rows: _hull(prefix, real[rows], left[rows])


def steps(kind: str, n: int) -> int:
    """The most positions that an answer takes."""
    return longest("delaunay" if kind == "delaunay" else "tour", n) if kind != "none" else 3 * n + 1


def _seen(prefix: Tensor, n: int) -> Tensor:
    """bool [R, n]: already chosen."""
    seen = torch.zeros(len(prefix), n + 1, dtype=torch.bool, device=prefix.device)
    return seen.scatter(1, prefix.clamp(min=0), True)[:, 1:] if prefix.shape[1] else seen[:, 1:]


def _with_stop(points: Tensor, stop: Tensor) -> Tensor:
    return torch.cat((stop[:, None], points), 1)


def _tour(prefix: Tensor, real: Tensor) -> Tensor:
    """Every point once, from point 1, and then the stop."""
    open_ = real & ~_seen(prefix, real.shape[1])
    if prefix.shape[1] == 0:
        open_ = torch.zeros_like(open_)
        open_[:, 0] = True
    return _with_stop(open_, ~open_.any(1))


def _hull(prefix: Tensor, real: Tensor, left: Tensor) -> Tensor:
    """A convex polygon, counter-clockwise, at every length: a new corner lies left of the last edge, and both corners beside
    the edge that it replaces go on turning left. `left` [R, n, n, n]: do i, j, k turn left?"""
    rows, t = torch.arange(len(prefix), device=prefix.device), prefix.shape[1]
    never = torch.zeros(len(prefix), dtype=torch.bool, device=prefix.device)
    if t == 0:
        return _with_stop(left.flatten(2).any(2), never)
    at = (prefix - 1).clamp(min=0)
    first, last = at[:, 0], at[:, -1]
    if t == 1:
        return _with_stop(left[rows, first].any(2), never)
    fits = left[rows, at[:, -2], last]  # last-but-one, last, new
    if t >= 3:
        fits = fits & left[rows, last, :, first] & left[rows, :, first, at[:, 1]]
    return _with_stop(fits & real & ~_seen(prefix, real.shape[1]), never if t < 3 else ~never)


def _triangles(prefix: Tensor, real: Tensor) -> Tensor:
    """Triangles of ascending numbers, none twice, and no more than a triangulation has: 2 n - 5."""
    n, t = real.shape[1], prefix.shape[1]
    i = torch.arange(n, device=prefix.device)
    ascending = (i[:, None, None] < i[:, None]) & (i[:, None] < i)
    free = ascending & real[:, :, None, None] & real[:, None, :, None] & real[:, None, None]
    whole = (
        (prefix[:, : t - t % 3] - 1).clamp(min=0).unflatten(1, (-1, 3))
        if t >= 3
        else prefix.new_zeros(len(prefix), 0, 3)
    )
    rows = torch.arange(len(prefix), device=prefix.device)
    for k in range(whole.shape[1]):
        free[(rows, *whole[:, k].unbind(1))] = False
    opened = (prefix[:, t - t % 3 :] - 1).clamp(min=0)
    for k in range(opened.shape[1]):
        free = free[rows, opened[:, k]]
    full = t >= 3 * (2 * real.sum(1) - 5)
    open_ = (free.flatten(2).any(2) if free.dim() > 2 else free) & ~full[:, None]
    stop = torch.full((len(prefix),), t >= 3 and t % 3 == 0, device=prefix.device)
    return _with_stop(open_, stop)
