"""The simple recurrent network h' = tanh(W x + U h + b) (Elman 1990), with the whole loop as one autograd node.

Shapes: T time, B batch, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cambrian.nn.cells.gated import GatedCell, blank, hide, rows
from cambrian.nn.scan import Projected, State


class TanhCell(GatedCell):
    """h' = tanh(W x + U h + b)."""

    def __init__(self, *, inputs: int, hidden: int, context: int = 0, init: str = "orthogonal") -> None:
        super().__init__(inputs=inputs, hidden=hidden, gates=1, context=context, init=init)

    def step(self, projected: Projected, state: State) -> tuple[Tensor, State]:
        """One step of inputs [B, H] from (h,)."""
        assert isinstance(projected, Tensor)
        h = torch.addmm(projected, state[0], self.recurrent.t()).tanh()
        return h, (h,)

    def values(self, projected: Projected, state: State) -> dict[str, Tensor]:
        """The new h [B, H]: to look into the cell."""
        return {"h": self.step(projected, state)[0]}

    def sweep(self, projected: Projected, state: State, active: list[int]) -> tuple[Tensor, State]:
        """The whole loop as one autograd node; `active[t]` sequences, the first rows, run at step t."""
        outputs, h = _Sweep.apply(projected, state[0], self.recurrent, active)
        return outputs, (h,)


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, weight: Tensor, active: list[int]) -> tuple[Tensor, Tensor]:
        hs = x.new_empty(len(x) + 1, *h.shape)
        hs[0] = h
        weight_t = weight.t()
        for t, (n, (x_t, old, new)) in enumerate(rows(active, len(h), x, hs[:-1], hs[1:])):
            if n < len(h):
                hs[t + 1, n:] = hs[t, n:]
            if n:
                torch.addmm(x_t, old, weight_t, out=new).tanh_()
        ctx.save_for_backward(hs, weight)
        ctx.active = active
        return hide(hs, active), hs[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_h: Tensor) -> tuple[Tensor | None, ...]:
        hs, weight = ctx.saved_tensors
        batch = hs.shape[1]
        slopes = hs[1:].square().neg_().add_(1.0)
        d_x = blank(min(ctx.active) == batch, slopes, *slopes.shape)
        d_h = d_h.clone()
        for n, (d_out, slope, d_t) in rows(ctx.active, batch, d_outputs, slopes, d_x, backwards=True):
            if n:
                dh = d_h if n == batch else d_h[:n]
                torch.mul(dh.add_(d_out), slope, out=d_t)
                torch.mm(d_t, weight, out=dh)
        return d_x, d_h, d_x.flatten(0, 1).t() @ hs[:-1].flatten(0, 1), None
