"""Long short-term memory, with the whole loop as one autograd node.

    i, f, o = sigmoid(.),  g = tanh(.)      four products of [x; h], each with a bias
    c' = f c + i drop(g)                    recurrent dropout without memory loss (Semeniuta et al. 2016, eq. 10)
    h' = o tanh(c')

Dropping only the candidate g leaves what the cell already remembers intact, which dropping h or c does not. Gates are
ordered g, i, f, o, so that one sigmoid covers three of them.

Shapes: T time, B batch, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cambrian.nn.cells.gated import GatedCell, blank, dropout_masks, hide, parts, rows
from cambrian.nn.scan import Projected, State


class LSTMCell(GatedCell):
    """LSTM with one bias a gate, that of the forget gate starting at `forget_bias`, and recurrent dropout.

    In training mode `project` draws one dropout mask per time step from torch's global generator.
    """

    states = 2

    def __init__(
        self,
        *,
        inputs: int,
        hidden: int,
        context: int = 0,
        dropout: float = 0.0,
        forget_bias: float = 1.0,
        init: str = "orthogonal",
    ) -> None:
        super().__init__(inputs=inputs, hidden=hidden, gates=4, context=context, init=init)
        self.dropout = dropout
        with torch.no_grad():
            self.input.bias[2 * hidden : 3 * hidden] = forget_bias

    def project(self, x: Tensor, context: Tensor | None = None) -> Projected:
        """Gate inputs [T, B, 4H], and in training with dropout the masks [T, B, H], already divided by the keep rate."""
        gates = super().project(x, context)
        masks = dropout_masks(x, self.hidden, self.dropout if self.training else 0.0)
        return gates if masks is None else (gates, masks)

    def step(self, projected: Projected, state: State) -> tuple[Tensor, State]:
        """One step of gate inputs [B, 4H] from (h, c)."""
        gates, masks = parts(projected)
        h, c = state
        gates = torch.addmm(gates, h, self.recurrent.t())
        g = gates[:, : self.hidden].tanh()
        i, f, o = gates[:, self.hidden :].sigmoid().chunk(3, 1)
        c = f * c + i * (g if masks is None else g * masks)
        h = o * c.tanh()
        return h, (h, c)

    def values(self, projected: Projected, state: State) -> dict[str, Tensor]:
        """Gates [B, H] of one step, by name: to look into the cell."""
        gates = torch.addmm(parts(projected)[0], state[0], self.recurrent.t())
        g, i, f, o = gates.chunk(4, 1)
        return {"g": g.tanh(), "i": i.sigmoid(), "f": f.sigmoid(), "o": o.sigmoid()}

    def sweep(self, projected: Projected, state: State, active: list[int]) -> tuple[Tensor, State]:
        """The whole loop as one autograd node, see `_Sweep`; `active[t]` sequences, the first rows, run at step t."""
        gates, masks = parts(projected)
        outputs, h, c = _Sweep.apply(gates, masks, *state, self.recurrent, active)
        return outputs, (h, c)


class _Sweep(torch.autograd.Function):
    """LSTM over time with only the activations kept, and the recurrent weight's gradient as one product over all steps.

    The plain loop makes T weight gradients and about ten autograd nodes a step; here backward has one product and five
    elementwise operations a step: whatever does not depend on the incoming gradient is formed for all steps at once.
    `active[t]` sequences, the first rows, run at step t; the others carry their state and put out zero.
    """

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, masks: Tensor | None, h: Tensor, c: Tensor, weight: Tensor, active: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps, (batch, hidden) = len(gates), h.shape
        full = min(active) == batch
        acts, tanhs = blank(full, gates, *gates.shape), blank(full, gates, steps, batch, hidden)
        hs, cs = gates.new_empty(steps + 1, batch, hidden), gates.new_empty(steps + 1, batch, hidden)
        hs[0], cs[0] = h, c
        weight_t = weight.t()
        gif = (acts[..., :hidden], *acts[..., hidden:].chunk(3, -1), acts[..., hidden:])
        stacks = [gates, acts, *gif, tanhs, hs[:-1], cs[:-1], hs[1:], cs[1:], *([] if masks is None else [masks])]
        for t, (n, views) in enumerate(rows(active, batch, *stacks)):
            if n < batch:
                hs[t + 1, n:], cs[t + 1, n:] = hs[t, n:], cs[t, n:]
                if n == 0:
                    continue
            x, act, g, i, f, o, ifo, tanh_c, old_h, old_c, new_h, new_c, *mask = views
            torch.addmm(x, old_h, weight_t, out=act)
            g.tanh_()
            ifo.sigmoid_()
            torch.mul(f, old_c, out=new_c).addcmul_(i, g * mask[0] if mask else g)
            torch.mul(o, torch.tanh(new_c, out=tanh_c), out=new_h)
        ctx.save_for_backward(acts, tanhs, hs, cs, weight, masks)
        ctx.active = active
        return hide(hs, active), hs[-1].clone(), cs[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[Tensor | None, ...]:
        acts, tanhs, hs, cs, weight, masks = ctx.saved_tensors
        batch, hidden = hs.shape[1:]
        through, factors = _Sweep.factors(acts, tanhs, cs[:-1], masks)
        d_gates = factors.flatten(2)  # each step's factors are overwritten by its gradients
        d_h, d_c = d_h.clone(), d_c.clone()
        stacks = [d_outputs, through, acts[..., 2 * hidden : 3 * hidden], factors[:, :, :3], factors[:, :, 3], d_gates]
        for n, (d_out, through_c, forget, d_gif, d_o, d_all) in rows(ctx.active, batch, *stacks, backwards=True):
            if n == 0:
                continue
            dh, dc = (d_h, d_c) if n == batch else (d_h[:n], d_c[:n])
            dc.addcmul_(dh.add_(d_out), through_c)
            d_gif.mul_(dc[:, None])
            d_o.mul_(dh)
            dc.mul_(forget)
            torch.mm(d_all, weight, out=dh)
        d_weight = d_gates.flatten(0, 1).t() @ hs[:-1].flatten(0, 1)
        return d_gates, None, d_h, d_c, d_weight, None

    @staticmethod
    def factors(acts: Tensor, tanhs: Tensor, before: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """dc/dh [T, B, H] within a step, and d(gate)/d(c or h) [T, B, 4, H]; both are zero where a sequence has
        ended.
        """
        g, i, _, o = acts.chunk(4, -1)
        through = tanhs.square().neg_().add_(1.0).mul_(o)
        out = acts.new_empty(*acts.shape[:2], 4, tanhs.shape[2])
        torch.mul(g.square().neg_().add_(1.0), i, out=out[:, :, 0])
        sig = acts[..., tanhs.shape[2] :]
        slopes = torch.addcmul(sig, sig, sig, value=-1.0).chunk(3, -1)
        torch.mul(slopes[0], g, out=out[:, :, 1])
        torch.mul(slopes[1], before, out=out[:, :, 2])
        torch.mul(slopes[2], tanhs, out=out[:, :, 3])
        if masks is not None:
            out[:, :, :2].mul_(masks[:, :, None])
        return through, out
