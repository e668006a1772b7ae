"""Attention over a window of fixed width whose weights come out of an LSTM, so that they depend on each other and on the
weights given before (LSTM-attention; Jaitly et al. 2016, section 3.2).

    e_j = s_m . (K h_j),   r_m = LSTM(r_{m-1}, [e_1 .. e_W]),   a = softmax(V r_m),   c = sum_j a_j h_j

Shapes: B batch, J queries of one memory, T query steps, W window, D memory features, Q query features, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cambrian.errors import ShapeError
from cambrian.nn.cells import LSTMCell
from cambrian.nn.scan import State


def masked_softmax(energies: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension of [B, J, W]; where `mask` [B, W] is False the weight is exactly zero.

    A row without a single True gives zero weights, not NaN.
    """
    if mask is None:
        return energies.softmax(-1)
    hidden = ~mask[:, None]
    weights = energies.masked_fill(hidden, torch.finfo(energies.dtype).min).softmax(-1)
    return weights.masked_fill(hidden, 0.0)


class LSTMScorer(nn.Module):
    """Weights over `window` memory vectors from a state of its own, which is carried from one query to the next."""

    def __init__(self, *, query: int, memory: int, window: int, hidden: int) -> None:
        super().__init__()
        self.window = window
        self.keys = nn.Linear(memory, query, bias=False)
        self.cell = LSTMCell(inputs=window, hidden=hidden)
        self.weights = nn.Linear(hidden, window)

    def project(self, memory: Tensor) -> Tensor:
        """Keys [..., W, Q] of a memory [..., W, D]: once a memory, not once a query."""
        return self.keys(memory)

    def initial(self, batch: int, like: Tensor) -> State:
        """The state before the first query, [B, H] twice."""
        return self.cell.initial(batch, like)

    def step(self, query: Tensor, keys: Tensor, mask: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Weights [B, J, W] for queries [B, J, Q] against keys [B, W, Q], each with its own state [B J, H]."""
        energies = query @ keys.transpose(1, 2)
        if mask is not None:
            energies = energies * mask[:, None]
        out, state = self.cell.step(self.cell.project(energies.flatten(0, 1)), state)
        return masked_softmax(self.weights(out).view_as(energies), mask), state

    def forward(
        self, query: Tensor, memory: Tensor, mask: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, Tensor]:
        """Weights [B, T, W] and contexts [B, T, D] of queries [B, T, Q], one after another, over a memory [B, W, D].

        Raises `ShapeError` when the memory is not as wide as the window.
        """
        if query.dim() != 3 or memory.dim() != 3 or memory.shape[1] != self.window or len(query) != len(memory):
            raise ShapeError(
                f"LSTM-attention over {self.window} vectors takes query [B, T, Q] and memory [B, {self.window}, D], "
                f"not {tuple(query.shape)} and {tuple(memory.shape)}; use another attention where the width varies"
            )
        keys = self.project(memory)
        state = self.initial(len(query), query) if state is None else state
        rows = []
        for one in query.split(1, 1):
            weights, state = self.step(one, keys, mask, state)
            rows.append(weights)
        weights = torch.cat(rows, 1)
        return weights, weights @ memory
