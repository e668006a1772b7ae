"""The recurrent engine: any cell over time, with its input product taken out of the loop.

A cell offers three methods:

    project(x, context)      x [T, B, I], context [B, C] or None -> a tensor [T, B, ...], or a tuple of such (of such)
    initial(batch, like)     -> state, a tuple of tensors [B, ...]
    step(projected, state)   one time step -> (output [B, H], state)

`project` is called once for the whole sequence, so whatever does not depend on the state (the input product, dropout
masks) is one large product instead of T small ones; `step` gets the t-th slice. `context` is an input that is the
same at every step: it is multiplied once, not T times. A cell may also offer a fused form of the whole loop,

    sweep(projected, state, active)         -> (outputs [T, B, H], final state)

which must equal the loop of `step`s where only the first `active[t]` sequences run at step t, the others carrying
their state and putting out zero (LSTM, GRU and tanh in `cambrian.nn.cells` have one; `cambrian.nn.cells.compiled`
makes one for any cell). `scan` sorts sequences by length and reverses time before it calls `sweep`, so that finished
sequences cost nothing.

Shapes: T time, B batch, I input, H output, C context features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from cambrian.errors import ShapeError

State = tuple[Tensor, ...]
Projected = Tensor | tuple["Projected", ...]
Callback = Callable[[int, Tensor, State], None]


class Cell(Protocol):
    """What `scan` needs of a cell; see the module's docstring."""

    def project(self, x: Tensor, context: Tensor | None = None) -> Projected: ...

    def initial(self, batch: int, like: Tensor) -> State: ...

    def step(self, projected: Projected, state: State) -> tuple[Tensor, State]: ...


def scan(
    cell: Cell,
    x: Tensor,
    state: State | None = None,
    *,
    context: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    reverse: bool = False,
    detach_every: int | None = None,
    fused: bool = True,
    callback: Callback | None = None,
) -> tuple[Tensor, State]:
    """Run `cell` over x [T, B, I]; returns the outputs [T, B, H] and the final state.

    Beyond a sequence's length (`lengths` [B]), or where `mask` [T, B] is False, the state is carried on unchanged,
    the output is zero and no gradient flows. With `reverse` time runs from T-1 to 0 (so a padded sequence is read
    from its own last element, and the final state belongs to time 0), while outputs stay at the positions of their
    inputs. `detach_every` cuts the gradient every so many steps (truncated backpropagation). `fused=False` forces the
    loop of single steps; so does `callback(t, output, state)`, which is called after each of them. Raises `ShapeError`
    for a wrong rank, or lengths or masks that do not fit.
    """
    _check(x, lengths, mask, detach_every)
    if state is None:
        state = cell.initial(x.shape[1], x)
    if fused and hasattr(cell, "sweep") and mask is None and callback is None:
        return _sweep(cell, x, state, context, lengths, reverse, detach_every)
    projected = cell.project(x, context)
    if lengths is not None:
        within = torch.arange(x.shape[0], device=x.device)[:, None] < lengths.to(x.device)
        mask = within if mask is None else mask & within
    return _loop(cell, projected, state, x.shape[0], mask, reverse, detach_every, callback)


def bidirectional(
    forward: Cell, backward: Cell, x: Tensor, *, lengths: Tensor | None = None, fused: bool = True
) -> tuple[Tensor, State, State]:
    """Both directions over x [T, B, I]: outputs [T, B, H + H'], final states of the forward and the backward cell."""
    ahead, last = scan(forward, x, lengths=lengths, fused=fused)
    back, first = scan(backward, x, lengths=lengths, reverse=True, fused=fused)
    return torch.cat((ahead, back), -1), last, first


def chunks(
    cell: Cell, x: Tensor, size: int, state: State | None = None, **options: Any
) -> Iterator[tuple[slice, Tensor, State]]:
    """Truncated backpropagation with the state carried on: (where in time, outputs, state) of `size` steps at a time.

    Each chunk is a graph of its own, so a loss on it can be put through `backward` before the next one is asked for;
    the state that goes on carries no gradient. `options` are those of `scan`, without `reverse` and `lengths`.
    """
    if size < 1:
        raise ShapeError(f"a chunk must hold at least 1 step, not {size}")
    for start in range(0, len(x), size):
        outputs, last = scan(cell, x[start : start + size], state, **options)
        state = tuple(s.detach() for s in last)
        yield slice(start, start + len(outputs)), outputs, last


def free_run(
    cell: Cell,
    first: Tensor,
    feed: Callable[[Tensor], Tensor],
    steps: int,
    state: State | None = None,
    *,
    context: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Run on the cell's own outputs: it reads `first` [B, I], then `feed(output [B, H])` -> the next input [B, I].

    Returns outputs [steps, B, H] and the final state. Teacher forcing is `scan` over the true inputs.
    """
    if first.dim() != 2 or steps < 1:
        raise ShapeError(f"free_run takes one input [B, I] and at least 1 step, not {tuple(first.shape)} and {steps}")
    state = cell.initial(len(first), first) if state is None else state
    x, outputs = first, []
    for t in range(steps):
        output, state = cell.step(at(cell.project(x[None], context), 0), state)
        outputs.append(output)
        if t + 1 < steps:
            x = feed(output)
    return torch.stack(outputs), state


def _sweep(
    cell: Any,
    x: Tensor,
    state: State,
    context: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    detach_every: int | None,
) -> tuple[Tensor, State]:
    active = [x.shape[1]] * x.shape[0]
    back: Tensor | None = None
    if lengths is not None:
        order = lengths.to(x.device).argsort(descending=True, stable=True)
        back = order.argsort()
        active = (torch.arange(x.shape[0], device=x.device)[:, None] < lengths.to(x.device)).sum(1).tolist()
        # index_select, because the gradient of x[:, order] is a slow scatter
        x, state = x.index_select(1, order), tuple(s.index_select(0, order) for s in state)
        context = None if context is None else context.index_select(0, order)
    if reverse:
        x, active = x.flip(0), active[::-1]
    projected = cell.project(x, context)
    if detach_every is None:
        outputs, state = cell.sweep(projected, state, active)
    else:
        pieces = []
        for start in range(0, len(x), detach_every):
            part = slice(start, start + detach_every)
            begin = tuple(s.detach() for s in state) if start else state
            piece, state = cell.sweep(at(projected, part), begin, active[part])
            pieces.append(piece)
        outputs = torch.cat(pieces)
    outputs = outputs.flip(0) if reverse else outputs
    if back is None:
        return outputs, state
    return outputs.index_select(1, back), tuple(s.index_select(0, back) for s in state)


def _loop(
    cell: Cell,
    projected: Projected,
    state: State,
    steps: int,
    mask: Tensor | None,
    reverse: bool,
    detach_every: int | None,
    callback: Callback | None,
) -> tuple[Tensor, State]:
    outputs: list[Any] = [None] * steps
    slices = _slices(projected)
    for count, t in enumerate(range(steps - 1, -1, -1) if reverse else range(steps)):
        if detach_every and count and count % detach_every == 0:
            state = tuple(s.detach() for s in state)
        output, new = cell.step(slices[t], state)
        if mask is not None:
            output = torch.where(_column(mask[t], output), output, output.new_zeros(()))
            new = tuple(torch.where(_column(mask[t], s), s, old) for s, old in zip(new, state, strict=True))
        outputs[t], state = output, new
        if callback is not None:
            callback(t, output, state)
    return torch.stack(outputs), state


def _slices(projected: Projected) -> list[Any]:
    """Per-step pieces; `unbind` makes one autograd node for all steps where indexing would make T."""
    if isinstance(projected, Tensor):
        return list(projected.unbind(0))
    return list(zip(*(_slices(part) for part in projected), strict=True))


def at(projected: Projected, t: int | slice) -> Projected:
    """What `project` gave, at step t or over a slice of steps."""
    return projected[t] if isinstance(projected, Tensor) else tuple(at(part, t) for part in projected)


def _column(mask: Tensor, like: Tensor) -> Tensor:
    """mask [B] as [B, 1, ...] to broadcast over `like` [B, ...]."""
    return mask.reshape(mask.shape + (1,) * (like.dim() - 1))


def _check(x: Tensor, lengths: Tensor | None, mask: Tensor | None, detach_every: int | None) -> None:
    if x.dim() < 3 or x.shape[0] == 0:
        raise ShapeError(f"scan needs x [T, B, ...] with T >= 1, not {tuple(x.shape)}")
    if lengths is not None:
        if lengths.shape != x.shape[1:2] or lengths.is_floating_point():
            raise ShapeError(f"lengths must be {x.shape[1]} integers, not {lengths.dtype} {tuple(lengths.shape)}")
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > x.shape[0]:
            raise ShapeError(f"lengths must lie in 0..{x.shape[0]}, not {low}..{high}")
    if mask is not None and (mask.shape != x.shape[:2] or mask.dtype != torch.bool):
        raise ShapeError(f"mask must be bool {tuple(x.shape[:2])}, not {mask.dtype} {tuple(mask.shape)}")
    if detach_every is not None and detach_every < 1:
        raise ShapeError(f"detach_every must be at least 1, not {detach_every}")
