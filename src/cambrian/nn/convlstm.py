"""LSTM cells beyond torch's, for `cambrian.nn.scan`: layer norm, hyper, convolutional.

The plain cell, with recurrent dropout, is `cambrian.nn.cells.lstm.LSTMCell`. Gates are ordered g, i, f, o, and the
forget bias starts at 1.

Shapes: T time, B batch, I input, C context, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.nn.cells.gated import dropout_masks, parts
from cambrian.nn.cells.lstm import LSTMCell
from cambrian.nn.scan import Projected, State


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
        gates, masks = parts(projected)
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
        main, masks = parts(self.plain.project(x, context))
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
        return self.update(projected + self.recurrent(state[0]), state)

    def fused(self, inputs: Tensor, extra: Tensor | None, state: State) -> tuple[Tensor, State]:
        """One step with the input and the recurrent product as one convolution of [inputs [B, I, ...]; h]; `extra`
        [B, 4H, ...] joins the gates.
        """
        weight = torch.cat((self.input.weight, self.recurrent.weight), 1)
        both = torch.cat((inputs, state[0]), 1)
        gates = F.conv2d(both, weight, self.input.bias, padding=self.input.padding)
        return self.update(gates if extra is None else gates + extra, state)

    def update(self, gates: Tensor, state: State) -> tuple[Tensor, State]:
        """The output and the new state from gates [B, 4H, height, width] before their nonlinearities."""
        _, c = state
        g, i, f, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, (h, c)


CELLS = {"lstm": LSTMCell, "layernorm": LayerNormLSTMCell, "hyper": HyperLSTMCell}


def _normed_update(gates: Tensor, c: Tensor, masks: Tensor | None, norm: nn.LayerNorm) -> State:
    """New (h, c) from normed gates [B, 4, H]."""
    g = gates[:, 0].tanh()
    i, f, o = gates[:, 1:].sigmoid().unbind(1)
    c = f * c + i * (g if masks is None else g * masks)
    return o * norm(c).tanh(), c
