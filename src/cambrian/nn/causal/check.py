"""Which inputs an output depends on, found by disturbing them: the test that an autoregressive network is causal."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cambrian.errors import ShapeError


def dependence(function: Callable[[Tensor], Tensor], x: Tensor, *, order: str | Tensor = "time") -> Tensor:
    """Bool [P, P]: whether output position o (row) changes when input position i (column) is disturbed.

    `function` maps x [B, ..., *positions] to outputs [B, ..., *positions]. `order` says what the P positions are:
    `time` (the last axis), `raster` (the last two, row by row), or their ranks, a permutation of 0..P-1 with the shape
    of the position axes; rows and columns of the result are in that order. Integer inputs get another value between
    the least and the greatest that occur, floating ones are raised by about their own size. Raises `ShapeError` where
    the axes do not fit, and for integers that are all equal.
    """
    axes = {"time": 1, "raster": 2}[order] if isinstance(order, str) else order.dim()
    if x.dim() <= axes:
        raise ShapeError(f"x must be [B, ..., positions] with {axes} axes of positions, not {tuple(x.shape)}")
    shape = x.shape[-axes:]
    count = int(torch.tensor(shape).prod())
    ranks = torch.arange(count) if isinstance(order, str) else order.reshape(-1)
    if ranks.numel() != count or not torch.equal(ranks.sort().values.cpu(), torch.arange(count)):
        raise ShapeError(f"order must number the {count} positions {tuple(shape)} from 0 to {count - 1}, each once")
    where = ranks.argsort()
    with torch.no_grad():
        before = function(x)
        if before.shape[-axes:] != shape:
            raise ShapeError(f"function must keep the positions {tuple(shape)}, it gave {tuple(before.shape[-axes:])}")
        columns = [_changed(function, x, before, axes, int(i))[where] for i in where]
    return torch.stack(columns, 1)


def assert_causal(
    function: Callable[[Tensor], Tensor], x: Tensor, *, order: str | Tensor = "time", strict: bool = False
) -> None:
    """Raise `AssertionError` if an output depends on a later input; with `strict` also on the input at its own place.

    Arguments as of `dependence`. A network whose output t predicts sample t + 1 from samples up to t is causal, not
    strict; one whose output t is the distribution of input t itself must be strict.
    """
    found = dependence(function, x, order=order)
    wrong = found.triu(0 if strict else 1)
    if wrong.any():
        o, i = wrong.nonzero()[0].tolist()
        raise AssertionError(f"output {o} of {len(found)} depends on input {i}, which it must not see")


def _changed(function: Callable[[Tensor], Tensor], x: Tensor, before: Tensor, axes: int, position: int) -> Tensor:
    """Which output positions, flattened, differ after input `position` is disturbed in every channel."""
    flat = x.flatten(-axes).clone()
    flat[..., position] = _another(x, flat[..., position])
    after = function(flat.reshape(x.shape))
    differs = (after != before).flatten(-axes)
    return differs.reshape(-1, differs.shape[-1]).any(0)


def _another(x: Tensor, values: Tensor) -> Tensor:
    if x.is_floating_point():
        return values + (0.5 + x.abs().mean())
    low, high = int(x.min()), int(x.max())
    if low == high:
        raise ShapeError(f"x must hold at least two values to be disturbed, not only {low}")
    return torch.where(values < high, values + 1, torch.full_like(values, low))
