"""Small anti-aliased drawings, for pictures of environments."""

from __future__ import annotations

import torch
from torch import Tensor

Colour = tuple[float, float, float]
Point = tuple[float, float]


def blank(height: int, width: int) -> Tensor:
    """A white picture [3, height, width]."""
    return torch.ones(3, height, width)


def line(view: Tensor, start: Point, end: Point, colour: Colour, radius: float) -> None:
    """Draw a segment with round ends, in place; points are (x, y) in pixels."""
    y, x = _grid(view)
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = dx * dx + dy * dy
    along = ((x - start[0]) * dx + (y - start[1]) * dy) / max(length, 1e-9)
    along = along.clamp(0.0, 1.0)
    distance = ((x - start[0] - along * dx).square() + (y - start[1] - along * dy).square()).sqrt()
    _blend(view, distance, colour, radius)


def disc(view: Tensor, centre: Point, radius: float, colour: Colour) -> None:
    """Draw a filled circle, in place."""
    y, x = _grid(view)
    _blend(view, ((x - centre[0]).square() + (y - centre[1]).square()).sqrt(), colour, radius)


def cells(colours: Tensor, size: int) -> Tensor:
    """A grid of cell colours [3, rows, columns] as a picture with cells of `size` pixels."""
    return colours.repeat_interleave(size, 1).repeat_interleave(size, 2)


def _grid(view: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = view.shape[1:]
    return torch.arange(rows, dtype=torch.float32)[:, None], torch.arange(columns, dtype=torch.float32)[None]


def _blend(view: Tensor, distance: Tensor, colour: Colour, radius: float) -> None:
    cover = (radius + 0.5 - distance).clamp(0.0, 1.0)
    view.mul_(1 - cover).add_(torch.tensor(colour)[:, None, None] * cover)
