"""Regularisers that wrap any cell: zoneout, and dropout masks that stay the same over a sequence.

Both draw from torch's global generator in training, once a scan, in `project`.

Shapes: T time, B batch, I input, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError
from cambrian.nn.scan import Projected, State


class Wrapped(nn.Module):
    """A cell inside a cell: `cell` does the work."""

    def __init__(self, cell: nn.Module, *rates: float) -> None:
        super().__init__()
        if any(not 0 <= rate < 1 for rate in rates):
            raise ConfigError(f"a dropout rate must be at least 0 and below 1, not {rates}")
        self.cell, self.hidden = cell, cell.hidden

    def initial(self, batch: int, like: Tensor) -> State:
        return self.cell.initial(batch, like)


class Zoneout(Wrapped):
    """Keeps each unit of each state from the step before with probability `rate` (Krueger et al. 2017, arXiv
    1606.01305); outside training the two are mixed in these shares.
    """

    def __init__(self, cell: nn.Module, *, rate: float = 0.1) -> None:
        super().__init__(cell, rate)
        self.rate = rate

    def project(self, x: Tensor, context: Tensor | None = None) -> Projected:
        """What the cell projects, and in training one mask [T, B, H] for each state (1 = keep the old)."""
        inner = self.cell.project(x, context)
        if not self.training:
            return (inner,)
        widths = [s.shape[1:] for s in self.cell.initial(1, x)]
        return (inner, *(x.new_empty(*x.shape[:2], *w).uniform_().lt_(self.rate) for w in widths))

    def step(self, projected: Projected, state: State) -> tuple[Tensor, State]:
        """The cell's step, mixed with the old state. The output is the first of the mixed states."""
        inner, *keep = projected
        _, new = self.cell.step(inner, state)
        shares = keep or [self.rate] * len(state)
        mixed = tuple(torch.lerp(n, s, k) for k, s, n in zip(shares, state, new, strict=True))
        return mixed[0], mixed


class VariationalDropout(Wrapped):
    """Drops inputs and units of h with masks that are drawn once a sequence and stay (Gal & Ghahramani 2016, arXiv
    1512.05287).
    """

    def __init__(self, cell: nn.Module, *, inputs: float = 0.0, state: float = 0.0) -> None:
        super().__init__(cell, inputs, state)
        self.input_rate, self.state_rate = inputs, state

    def project(self, x: Tensor, context: Tensor | None = None) -> Projected:
        """What the cell projects from the masked x, and in training the mask of h, the same at every step."""
        if not self.training:
            return (self.cell.project(x, context),)
        inner = self.cell.project(x * _mask(x[0], self.input_rate), context)
        mask = _mask(self.cell.initial(x.shape[1], x)[0], self.state_rate)
        return inner, mask.expand(len(x), *mask.shape)

    def step(self, projected: Projected, state: State) -> tuple[Tensor, State]:
        """The cell's step from the masked h."""
        inner, *mask = projected
        return self.cell.step(inner, (state[0] * mask[0], *state[1:]) if mask else state)


def _mask(like: Tensor, rate: float) -> Tensor:
    return torch.empty_like(like).uniform_().ge_(rate).div_(1 - rate)
