"""LSTM cells beyond torch's, for `cambrian.nn.scan`: recurrent dropout, layer norm, hyper, convolutional.

    i, f, o = sigmoid(.),  g = tanh(.)      four products of [x; h], each with a bias
    c' = f c + i drop(g)                    recurrent dropout without memory loss (Semeniuta et al. 2016, eq. 10)
    h' = o tanh(c')

Dropping only the candidate g leaves what the cell already remembers intact, which dropping h or c does not. Gates are
ordered g, i, f, o, so that one sigmoid covers three of them. The forget bias starts at 1.

Shapes: T time, B batch, I input, C context, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cambrian.nn.scan import Projected, State


class LSTMCell(nn.Module):
    """LSTM with recurrent dropout on the candidate; `context` features are inputs that stay the same at every step.

    In training mode `project` draws one dropout mask per time step from torch's global generator.
    """

    def __init__(self, *, inputs: int, hidden: int, context: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden, self.dropout = hidden, dropout
        self.input = nn.Linear(inputs, 4 * hidden)
        self.context = nn.Linear(context, 4 * hidden, bias=False) if context else None
        self.recurrent = nn.Parameter(torch.empty(4 * hidden, hidden))
        with torch.no_grad():
            for gate in self.recurrent.chunk(4):
                nn.init.orthogonal_(gate)
            nn.init.zeros_(self.input.bias)
            self.input.bias[2 * hidden : 3 * hidden] = 1.0

    def initial(self, batch: int, like: Tensor) -> State:
        """(h, c), both zero [B, H]."""
        return like.new_zeros(batch, self.hidden), like.new_zeros(batch, self.hidden)

    def project(self, x: Tensor, context: Tensor | None = None) -> Projected:
        """Gate inputs [T, B, 4H], and in training with dropout the masks [T, B, H], already divided by the keep rate."""
        gates = self.input(x)
        if self.context is not None and context is not None:
            gates = gates + self.context(context)
        masks = dropout_masks(x, self.hidden, self.dropout if self.training else 0.0)
        return gates if masks is None else (gates, masks)

    def step(self, projected: Projected, state: State) -> tuple[Tensor, State]:
        gates, masks = _parts(projected)
        h, c = state
        gates = torch.addmm(gates, h, self.recurrent.t())
        g = gates[:, : self.hidden].tanh()
        i, f, o = gates[:, self.hidden :].sigmoid().chunk(3, 1)
        c = f * c + i * (g if masks is None else g * masks)
        h = o * c.tanh()
        return h, (h, c)

    def sweep(self, projected: Projected, state: State, active: list[int]) -> tuple[Tensor, State]:
        """The whole loop as one autograd node, see `_Sweep`; `active[t]` sequences, the first rows, run at step t."""
        gates, masks = _parts(projected)
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
        make = gates.new_empty if full else gates.new_zeros
        acts, tanhs = make(gates.shape), make(steps, batch, hidden)
        hs, cs = gates.new_empty(steps + 1, batch, hidden), gates.new_empty(steps + 1, batch, hidden)
        hs[0], cs[0] = h, c
        weight_t = weight.t()
        # views of all steps at once: slicing inside the loop would cost as much as the arithmetic
        gif = (acts[..., :hidden], *acts[..., hidden:].chunk(3, -1), acts[..., hidden:])
        views = [gates, acts, *gif, tanhs, hs[:-1], cs[:-1], hs[1:], cs[1:], tanhs if masks is None else masks]
        for n, *parts in zip(active, *(v.unbind(0) for v in views), strict=True):
            if n < batch:
                for old, new in zip(parts[8:10], parts[10:12], strict=True):
                    new[n:] = old[n:]
                parts = [part[:n] for part in parts]
            if n == 0:
                continue
            x, act, g, i, f, o, ifo, tanh_c, old_h, old_c, new_h, new_c, mask = parts
            torch.addmm(x, old_h, weight_t, out=act)
            g.tanh_()
            ifo.sigmoid_()
            torch.mul(f, old_c, out=new_c).addcmul_(i, g if masks is None else g * mask)
            torch.mul(o, torch.tanh(new_c, out=tanh_c), out=new_h)
        ctx.save_for_backward(acts, tanhs, hs, cs, weight, masks)
        ctx.active = active
        outputs = hs[1:].clone()
        for t, n in enumerate([] if full else active):
            outputs[t, n:] = 0.0
        return outputs, hs[-1].clone(), cs[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[Tensor | None, ...]:
        acts, tanhs, hs, cs, weight, masks = ctx.saved_tensors
        batch, hidden = hs.shape[1:]
        through, factors = _Sweep.factors(acts, tanhs, cs[:-1], masks)
        d_gates = factors.flatten(2)  # each step's factors are overwritten by its gradients
        d_h, d_c = d_h.clone(), d_c.clone()
        views = [d_outputs, through, acts[..., 2 * hidden : 3 * hidden], factors[:, :, :3], factors[:, :, 3], d_gates]
        rows = zip(ctx.active, *(v.unbind(0) for v in views), strict=True)
        for n, *parts in reversed(list(rows)):
            if n == 0:
                continue
            dh, dc = d_h, d_c
            if n < batch:
                dh, dc, *parts = (part[:n] for part in (dh, dc, *parts))
            d_out, through_c, forget, d_gif, d_o, d_all = parts
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


class LayerNormLSTMCell(nn.Module):
    """LSTM with layer norm on each gate's pre-activation and on c before the output's tanh (Ba, Kiros, Hinton 2016,
    as Ha & Eck use it).
    """

    def __init__(self, *, inputs: int, hidden: int, context: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.plain = LSTMCell(inputs=inputs, hidden=hidden, context=context, dropout=dropout)
        self.hidden = hidden
        self.gates = GateNorm(hidden=hidden)
        self.cell_norm = nn.LayerNorm(hidden)
        # the norm's own shift stands in for the bias, which it would otherwise cancel in part
        self.plain.input.bias = None

    def initial(self, batch: int, like: Tensor) -> State:
        return self.plain.initial(batch, like)

    def project(self, x: Tensor, context: Tensor | None = None) -> Projected:
        return self.plain.project(x, context)

    def step(self, projected: Projected, state: State) -> tuple[Tensor, State]:
        gates, masks = _parts(projected)
        h, c = state
        gates = self.gates(torch.addmm(gates, h, self.plain.recurrent.t()))
        h, c = _normed_update(gates, c, masks, self.cell_norm)
        return h, (h, c)


class GateNorm(nn.Module):
    """Layer norm of four gates [B, 4H], each over its own H features, with gain and shift; the forget gate's shift
    starts at 1.
    """

    def __init__(self, *, hidden: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4, hidden))
        self.shift = nn.Parameter(torch.zeros(4, hidden))
        with torch.no_grad():
            self.shift[2] = 1.0

    def forward(self, gates: Tensor) -> Tensor:
        """-> [B, 4, H]"""
        split = gates.unflatten(-1, self.gain.shape)
        return F.layer_norm(split, split.shape[-1:]) * self.gain + self.shift


class HyperLSTMCell(nn.Module):
    """LSTM whose gates are scaled and shifted by a smaller LSTM that reads the same input (Ha, Dai, Le 2017, arXiv
    1609.09106, section 4.3).

        e = hyper LSTM([x; h])
        gate_y = LN(d_h(e) . W_h h + d_x(e) . W_x x + b(e))          y in {g, i, f, o}, each with its own d and b

    `small` is the width of the hyper LSTM, `embedding` that of the vectors between it and the scales. All scales
    start at 0.1.
    """

    def __init__(
        self,
        *,
        inputs: int,
        hidden: int,
        context: int = 0,
        dropout: float = 0.0,
        small: int = 64,
        embedding: int = 16,
    ) -> None:
        super().__init__()
        self.hidden, self.embedding = hidden, embedding
        self.plain = LSTMCell(inputs=inputs, hidden=hidden, context=context, dropout=dropout)
        self.plain.input.bias = None
        self.hyper = LayerNormLSTMCell(inputs=inputs, hidden=small, context=context + hidden, dropout=dropout)
        self.embed = nn.Linear(small, 12 * embedding)  # for x, h and the shift, four gates each
        self.scale = nn.Parameter(torch.full((8, embedding, hidden), 0.1 / embedding))
        self.bias = nn.Parameter(torch.zeros(4, embedding, hidden))
        self.gates = GateNorm(hidden=hidden)
        self.cell_norm = nn.LayerNorm(hidden)
        nn.init.zeros_(self.embed.weight)
        nn.init.ones_(self.embed.bias)

    def initial(self, batch: int, like: Tensor) -> State:
        """(h, c) of the main and (h, c) of the hyper LSTM."""
        return self.plain.initial(batch, like) + self.hyper.initial(batch, like)

    def project(self, x: Tensor, context: Tensor | None = None) -> Projected:
        """Input products of both LSTMs (the part of the hyper LSTM's that reads h is added in `step`), then both
        masks.
        """
        main, masks = _parts(self.plain.project(x, context))
        small = self.hyper.plain
        hyper = small.input(x)
        if context is not None and small.context is not None:
            hyper = hyper + F.linear(context, small.context.weight[:, self.hidden :])
        if masks is None:
            return main, hyper
        return main, hyper, masks, dropout_masks(x, small.hidden, small.dropout)

    def step(self, projected: Projected, state: State) -> tuple[Tensor, State]:
        main, hyper, *masks = projected
        h, c, small_h, small_c = state
        reads_h = self.hyper.plain.context.weight[:, : self.hidden]
        hyper = torch.addmm(hyper, h, reads_h.t())
        small_out, small = self.hyper.step((hyper, masks[1]) if masks else hyper, (small_h, small_c))
        code = self.embed(small_out).unflatten(-1, (12, self.embedding))
        scales = torch.einsum("bke,keh->bkh", code[:, :8], self.scale)
        shift = torch.einsum("bke,keh->bkh", code[:, 8:], self.bias)
        recurrent = (h @ self.plain.recurrent.t()).unflatten(-1, (4, self.hidden))
        mixed = scales[:, :4] * main.unflatten(-1, (4, self.hidden)) + scales[:, 4:] * recurrent + shift
        h, c = _normed_update(self.gates(mixed.flatten(1)), c, masks[0] if masks else None, self.cell_norm)
        return h, (h, c, *small)


class ConvLSTMCell(nn.Module):
    """LSTM whose products are convolutions with `kernel` (odd): inputs [T, B, I, height, width], state [B, H, height,
    width] (Shi et al. 2015).

    No peepholes: they gained nothing in the systems that use this cell.
    """

    def __init__(self, *, inputs: int, hidden: int, kernel: int = 3) -> None:
        super().__init__()
        self.hidden = hidden
        self.input = nn.Conv2d(inputs, 4 * hidden, kernel, padding=kernel // 2)
        self.recurrent = nn.Conv2d(hidden, 4 * hidden, kernel, padding=kernel // 2, bias=False)
        with torch.no_grad():
            self.input.bias[2 * hidden : 3 * hidden] = 1.0

    def initial(self, batch: int, like: Tensor) -> State:
        zero = like.new_zeros(batch, self.hidden, *like.shape[-2:])
        return zero, zero.clone()

    def project(self, x: Tensor, context: Tensor | None = None) -> Projected:
        return self.input(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def step(self, projected: Projected, state: State) -> tuple[Tensor, State]:
        h, c = state
        g, i, f, o = (projected + self.recurrent(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, (h, c)


CELLS = {"lstm": LSTMCell, "layernorm": LayerNormLSTMCell, "hyper": HyperLSTMCell}


def dropout_masks(x: Tensor, hidden: int, rate: float) -> Tensor | None:
    """Masks [T, B, H] for x [T, B, ...], 0 or 1 / (1 - rate), a new one at every step; None when nothing is dropped."""
    if not rate:
        return None
    return x.new_empty(*x.shape[:2], hidden).uniform_().ge_(rate).div_(1 - rate)


def _parts(projected: Projected) -> tuple[Tensor, Tensor | None]:
    return (projected, None) if isinstance(projected, Tensor) else (projected[0], projected[1])


def _normed_update(gates: Tensor, c: Tensor, masks: Tensor | None, norm: nn.LayerNorm) -> State:
    """New (h, c) from normed gates [B, 4, H]."""
    g = gates[:, 0].tanh()
    i, f, o = gates[:, 1:].sigmoid().unbind(1)
    c = f * c + i * (g if masks is None else g * masks)
    return o * norm(c).tanh(), c
