"""Layers of recurrent cells: `RNN(cell="lstm", inputs=88, hidden=64, layers=2, bidirectional=True)`.

Shapes: T time, B batch, I input, D directions, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.cells.compiled import compiled
from cambrian.nn.cells.hooks import VariationalDropout, Zoneout
from cambrian.nn.cells.registry import build
from cambrian.nn.hub import Pretrained
from cambrian.nn.scan import State, at, scan

Layered = tuple[State, ...]


class RNN(nn.Module, Pretrained):
    """Recurrent layers over x [T, B, I] -> outputs [T, B, D H] and the final states, one for each layer and direction.

    `cell` is a name of `cambrian.nn.cells.CELLS`, or equations (a text with an =); `options` go to it. `dropout` acts
    between layers, `variational` on inputs and h of each cell, `zoneout` on its states. `residual` adds a layer's
    input to its output where the two are equally wide. `chunk` > 0 compiles that many steps of a cell at a time.
    """

    def __init__(
        self,
        *,
        inputs: int,
        hidden: int,
        cell: str = "lstm",
        layers: int = 1,
        bidirectional: bool = False,
        residual: bool = False,
        dropout: float = 0.0,
        variational: float = 0.0,
        zoneout: float = 0.0,
        chunk: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if layers < 1 or not 0 <= dropout < 1:
            raise ConfigError(f"layers must be at least 1 and dropout in [0, 1), not {layers} and {dropout}")
        self.inputs, self.hidden, self.layers, self.residual, self.dropout = inputs, hidden, layers, residual, dropout
        self.directions = 2 if bidirectional else 1
        self.cells = nn.ModuleList()
        for i in range(layers * self.directions):
            wide = inputs if i < self.directions else self.directions * hidden
            one = build(cell, inputs=wide, hidden=hidden, **(options or {}))
            one = VariationalDropout(one, inputs=variational, state=variational) if variational else one
            one = Zoneout(one, rate=zoneout) if zoneout else one
            self.cells.append(compiled(one, chunk) if chunk else one)

    def initial(self, batch: int, like: Tensor) -> Layered:
        """Zero states, for each layer and direction."""
        return tuple(cell.initial(batch, like) for cell in self.cells)

    def forward(
        self,
        x: Tensor,
        state: Layered | None = None,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        detach_every: int | None = None,
        fused: bool = True,
    ) -> tuple[Tensor, Layered]:
        """Outputs [T, B, D H], zero beyond `lengths` [B], and the states at each sequence's own end.

        `state` continues from an earlier call (one direction only). See `cambrian.nn.scan.scan` for the other
        arguments. Raises `ShapeError`.
        """
        self._check(x, state)
        state = self.initial(x.shape[1], x) if state is None else state
        last: list[State] = []
        for layer in range(self.layers):
            outputs = []
            for direction in range(self.directions):
                i = layer * self.directions + direction
                how = {"lengths": lengths, "mask": mask, "detach_every": detach_every, "fused": fused}
                out, final = scan(self.cells[i], x, state[i], reverse=bool(direction), **how)
                outputs.append(out)
                last.append(final)
            y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
            if self.residual and y.shape == x.shape:
                y = y + x
            x = F.dropout(y, self.dropout, self.training and layer + 1 < self.layers)
        return x, tuple(last)

    def step(self, x: Tensor, state: Layered) -> tuple[Tensor, Layered]:
        """One step from x [B, I], for running freely: output [B, H] and the new states."""
        self._check(x[None], state)
        new: list[State] = []
        for cell, old in zip(self.cells, state, strict=True):
            y, final = cell.step(at(cell.project(x[None]), 0), old)
            new.append(final)
            x = y + x if self.residual and y.shape == x.shape else y
        return x, tuple(new)

    def _check(self, x: Tensor, state: Layered | None) -> None:
        if x.dim() != 3 or x.shape[2] != self.inputs or not x.is_floating_point():
            raise ShapeError(
                f"an RNN of {self.inputs} inputs takes float [T, B, {self.inputs}], not {x.dtype} {tuple(x.shape)}"
            )
        if state is None:
            return
        if self.directions == 2:
            raise ShapeError("a bidirectional RNN reads whole sequences; it takes no state and makes no single steps")
        if len(state) != self.layers or any(s.shape[0] != x.shape[1] for layer in state for s in layer):
            raise ShapeError(f"the state must be {self.layers} layers of tensors for a batch of {x.shape[1]}")


def detached(state: Layered) -> Layered:
    """The same states without their history: what the next chunk of truncated backpropagation starts from."""
    return tuple(tuple(s.detach() for s in layer) for layer in state)
