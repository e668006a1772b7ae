"""What the cells share: the input product of all gates, the state's matrix, dropout masks, and rows of a sweep.

Shapes: T time, B batch, I input, C context, H hidden, G gates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError
from cambrian.nn.scan import Projected, State

INITS = ("orthogonal", "uniform")


class GatedCell(nn.Module):
    """Base of cells whose gates are `input(x) + context(c) + recurrent h + ...`; a subclass gives `step`.

    `init` decides the state's matrices: `orthogonal` for each gate (input matrices as `nn.Linear` makes them), or
    `uniform` in +-1/sqrt(H) for both, as torch's recurrent layers do; biases are zero. `states` is the number of
    state tensors [B, H].
    """

    states = 1

    def __init__(self, *, inputs: int, hidden: int, gates: int, context: int = 0, init: str = "orthogonal") -> None:
        super().__init__()
        if min(inputs, hidden) < 1 or context < 0:
            raise ConfigError(
                f"inputs and hidden must be at least 1, context at least 0, not {inputs, hidden, context}"
            )
        if init not in INITS:
            raise ConfigError(f"init must be one of {', '.join(INITS)}, not {init!r}")
        self.hidden = hidden
        self.input = nn.Linear(inputs, gates * hidden)
        self.context = nn.Linear(context, gates * hidden, bias=False) if context else None
        self.recurrent = nn.Parameter(torch.empty(gates * hidden, hidden))
        with torch.no_grad():
            if init == "uniform":
                nn.init.uniform_(self.input.weight, -(hidden**-0.5), hidden**-0.5)
                nn.init.uniform_(self.recurrent, -(hidden**-0.5), hidden**-0.5)
            else:
                for gate in self.recurrent.chunk(gates):
                    nn.init.orthogonal_(gate)
            nn.init.zeros_(self.input.bias)

    def initial(self, batch: int, like: Tensor) -> State:
        """Zero states [B, H], of the type and on the device of `like`."""
        return tuple(like.new_zeros(batch, self.hidden) for _ in range(self.states))

    def project(self, x: Tensor, context: Tensor | None = None) -> Projected:
        """Gate inputs [T, B, G H] of x [T, B, I] and context [B, C]."""
        gates = self.input(x)
        if self.context is not None and context is not None:
            gates = gates + self.context(context)
        return gates


def dropout_masks(x: Tensor, hidden: int, rate: float) -> Tensor | None:
    """Masks [T, B, H] for x [T, B, ...], 0 or 1 / (1 - rate), a new one at every step; None when nothing is dropped."""
    if not rate:
        return None
    return x.new_empty(*x.shape[:2], hidden).uniform_().ge_(rate).div_(1 - rate)


def parts(projected: Projected) -> tuple[Tensor, Tensor | None]:
    """Gate inputs and masks, of which there may be none."""
    return (projected, None) if isinstance(projected, Tensor) else (projected[0], projected[1])


def rows(
    active: Sequence[int], batch: int, *stacks: Tensor, backwards: bool = False
) -> Iterator[tuple[int, list[Tensor]]]:
    """For each step of a sweep its number of running sequences n and the first n rows of every stack [T, B, ...].

    Views of all steps are made at once: slicing inside the loop would cost as much as the arithmetic.
    """
    table = list(zip(active, *(stack.unbind(0) for stack in stacks), strict=True))
    for n, *views in reversed(table) if backwards else table:
        yield n, views if n == batch else [view[:n] for view in views]


def blank(full: bool, like: Tensor, *shape: int) -> Tensor:
    """Room for a sweep's results: zero where sequences have ended, unless all run to the end."""
    return like.new_empty(shape) if full else like.new_zeros(shape)


def hide(states: Tensor, active: Sequence[int]) -> Tensor:
    """Outputs [T, B, H] from states [T + 1, B, H]: a copy of what follows each step, zero where a sequence rests."""
    outputs = states[1:].clone()
    for t, n in enumerate(active):
        if n < outputs.shape[1]:
            outputs[t, n:] = 0.0
    return outputs
