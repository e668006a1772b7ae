"""Gated recurrent unit in both orders of the reset gate, with the whole loop as one autograd node.

    r, z = sigmoid(.)                            two products of [x; h], each with a bias; z lets the new in
    before:  n = tanh(W x + U (r h) + b)         as published (Cho et al. 2014): the reset acts before the product
    after:   n = tanh(W x + b + r (U h + b'))    as in cuDNN and torch: one product a step, and a second bias
    h' = (1 - z) h + z n

torch's z is 1 minus this one: copying its weights negates the rows of z. Gates are ordered r, z, n.

Shapes: T time, B batch, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cambrian.errors import ConfigError
from cambrian.nn.cells.gated import GatedCell, blank, hide, rows
from cambrian.nn.scan import Projected, State

ORDERS = ("before", "after")


class GRUCell(GatedCell):
    """GRU; `reset` is `before` (the paper's order) or `after` (torch's).

    `update_bias` is where the bias of z starts: negative values keep what is remembered.
    """

    def __init__(
        self,
        *,
        inputs: int,
        hidden: int,
        context: int = 0,
        reset: str = "before",
        update_bias: float = 0.0,
        init: str = "orthogonal",
    ) -> None:
        if reset not in ORDERS:
            raise ConfigError(f"reset must be one of {', '.join(ORDERS)}, not {reset!r}")
        super().__init__(inputs=inputs, hidden=hidden, gates=3, context=context, init=init)
        self.reset = reset
        self.inner_bias = nn.Parameter(torch.zeros(hidden)) if reset == "after" else None
        with torch.no_grad():
            self.input.bias[hidden : 2 * hidden] = update_bias

    def step(self, projected: Projected, state: State) -> tuple[Tensor, State]:
        """One step of gate inputs [B, 3H] from (h,)."""
        gates = self.values(projected, state)
        h = torch.lerp(state[0], gates["n"], gates["z"])
        return h, (h,)

    def values(self, projected: Projected, state: State) -> dict[str, Tensor]:
        """Gates and candidate [B, H] of one step, by name: to look into the cell."""
        assert isinstance(projected, Tensor)
        (h,), hidden = state, self.hidden
        x_gates, x_new = projected[:, : 2 * hidden], projected[:, 2 * hidden :]
        if self.inner_bias is None:
            r, z = torch.addmm(x_gates, h, self.recurrent[: 2 * hidden].t()).sigmoid().chunk(2, 1)
            n = torch.addmm(x_new, r * h, self.recurrent[2 * hidden :].t()).tanh()
        else:
            product = h @ self.recurrent.t()
            r, z = (x_gates + product[:, : 2 * hidden]).sigmoid().chunk(2, 1)
            n = torch.addcmul(x_new, r, product[:, 2 * hidden :] + self.inner_bias).tanh()
        return {"r": r, "z": z, "n": n}

    def sweep(self, projected: Projected, state: State, active: list[int]) -> tuple[Tensor, State]:
        """The whole loop as one autograd node; `active[t]` sequences, the first rows, run at step t."""
        if self.inner_bias is None:
            outputs, h = _Before.apply(projected, state[0], self.recurrent, active)
        else:
            outputs, h = _After.apply(projected, state[0], self.recurrent, self.inner_bias, active)
        return outputs, (h,)


class _Before(torch.autograd.Function):
    """Reset before the product: two products a step."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, h: Tensor, weight: Tensor, active: list[int]) -> tuple[Tensor, Tensor]:
        batch, hidden = h.shape
        acts = blank(min(active) == batch, gates, *gates.shape)
        hs = gates.new_empty(len(gates) + 1, batch, hidden)
        hs[0] = h
        resets = blank(min(active) == batch, gates, len(gates), batch, hidden)  # r h
        gate_t, new_t = weight[: 2 * hidden].t(), weight[2 * hidden :].t()
        cut = 2 * hidden
        x = (gates[..., :cut], gates[..., cut:])
        a = (acts[..., :cut], *acts.chunk(3, -1))
        for t, (n, views) in enumerate(rows(active, batch, *x, *a, resets, hs[:-1], hs[1:])):
            if n < batch:
                hs[t + 1, n:] = hs[t, n:]
                if n == 0:
                    continue
            x_gates, x_new, both, r, z, new, reset, old_h, new_h = views
            torch.addmm(x_gates, old_h, gate_t, out=both).sigmoid_()
            torch.addmm(x_new, torch.mul(r, old_h, out=reset), new_t, out=new).tanh_()
            torch.lerp(old_h, new, z, out=new_h)
        ctx.save_for_backward(acts, resets, hs, weight)
        ctx.active = active
        return hide(hs, active), hs[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_h: Tensor) -> tuple[Tensor | None, ...]:
        acts, resets, hs, weight = ctx.saved_tensors
        batch, hidden = hs.shape[1:]
        gate_w, new_w = weight[: 2 * hidden], weight[2 * hidden :]
        r, z, n = acts.chunk(3, -1)
        d_gates = _slopes(r, z, n, hs[:-1], 3)
        torch.addcmul(resets, resets, r, value=-1.0, out=d_gates[:, :, 0])  # dr = d(r h) h r (1 - r)
        keep = 1.0 - z
        d_h, d_reset = d_h.clone(), torch.empty_like(d_h)
        stacks = (
            d_outputs,
            d_gates[:, :, 0],
            d_gates[:, :, 1:],
            d_gates[:, :, 2],
            d_gates[:, :, :2].flatten(2),
            keep,
            r,
        )
        for n_rows, (d_out, dr, dzn, dn, drz, kept, r_t) in rows(ctx.active, batch, *stacks, backwards=True):
            if n_rows == 0:
                continue
            dh, back = (d_h, d_reset) if n_rows == batch else (d_h[:n_rows], d_reset[:n_rows])
            dh.add_(d_out)
            dzn.mul_(dh[:, None])
            torch.mm(dn, new_w, out=back)
            dr.mul_(back)
            dh.mul_(kept).addcmul_(back, r_t).addmm_(drz, gate_w)
        flat = d_gates.flatten(2).flatten(0, 1)
        d_weight = torch.empty_like(weight)
        torch.mm(flat[:, : 2 * hidden].t(), hs[:-1].flatten(0, 1), out=d_weight[: 2 * hidden])
        torch.mm(flat[:, 2 * hidden :].t(), resets.flatten(0, 1), out=d_weight[2 * hidden :])
        return d_gates.flatten(2), d_h, d_weight, None


class _After(torch.autograd.Function):
    """Reset after the product: one product a step, and in backward four elementwise operations."""

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, h: Tensor, weight: Tensor, bias: Tensor, active: list[int]
    ) -> tuple[Tensor, Tensor]:
        batch, hidden = h.shape
        full, cut = min(active) == batch, 2 * hidden
        acts, products = blank(full, gates, *gates.shape), blank(full, gates, *gates.shape)
        hs = gates.new_empty(len(gates) + 1, batch, hidden)
        hs[0] = h
        weight_t, shift = weight.t(), torch.cat((bias.new_zeros(cut), bias))
        stacks = (gates[..., :cut], gates[..., cut:], products, products[..., :cut], products[..., cut:])
        for t, (n, views) in enumerate(
            rows(active, batch, *stacks, acts[..., :cut], *acts.chunk(3, -1), hs[:-1], hs[1:])
        ):
            if n < batch:
                hs[t + 1, n:] = hs[t, n:]
                if n == 0:
                    continue
            x_gates, x_new, product, by_gates, by_new, both, r, z, new, old_h, new_h = views
            torch.addmm(shift, old_h, weight_t, out=product)
            torch.add(x_gates, by_gates, out=both).sigmoid_()
            torch.addcmul(x_new, r, by_new, out=new).tanh_()
            torch.lerp(old_h, new, z, out=new_h)
        ctx.save_for_backward(acts, products[..., cut:], hs, weight)
        ctx.active = active
        return hide(hs, active), hs[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_h: Tensor) -> tuple[Tensor | None, ...]:
        acts, inner, hs, weight = ctx.saved_tensors
        batch = hs.shape[1]
        r, z, n = acts.chunk(3, -1)
        # gradients of r, z, U h + b' and W x + b; the last but one is the last times r
        factors = _slopes(r, z, n, hs[:-1], 4)
        factors[:, :, 3] = factors[:, :, 2]
        factors[:, :, 2] *= r
        torch.mul(factors[:, :, 2] * inner, 1.0 - r, out=factors[:, :, 0])
        keep = 1.0 - z
        d_h = d_h.clone()
        stacks = (d_outputs, factors, factors[:, :, :3].flatten(2), keep)
        for n_rows, (d_out, d_all, d_product, kept) in rows(ctx.active, batch, *stacks, backwards=True):
            if n_rows == 0:
                continue
            dh = d_h if n_rows == batch else d_h[:n_rows]
            d_all.mul_(dh.add_(d_out)[:, None])
            dh.mul_(kept).addmm_(d_product, weight)
        d_gates = torch.cat((factors[:, :, :2], factors[:, :, 3:]), 2).flatten(2)
        flat = factors[:, :, :3].flatten(2).flatten(0, 1)
        d_weight = flat.t() @ hs[:-1].flatten(0, 1)
        return d_gates, d_h, d_weight, factors[:, :, 2].sum((0, 1)), None


def _slopes(r: Tensor, z: Tensor, n: Tensor, before: Tensor, columns: int) -> Tensor:
    """[T, B, columns, H] with d h' / d(pre-activation) of z in column 1 and of n in column 2; the others are unset."""
    out = r.new_empty(*r.shape[:2], columns, r.shape[2])
    torch.addcmul(z, z, z, value=-1.0, out=out[:, :, 1]).mul_(n - before)
    torch.addcmul(z, z, n.square(), value=-1.0, out=out[:, :, 2])
    return out
