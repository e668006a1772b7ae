"""The decoder protocol: what greedy search, sampling, beams and teacher forcing need of a decoder, so that each is written
once (`cambrian.nn.decode`).

    step(last, state)      last [B] symbols chosen before (-1: none yet), state -> logits [B, V], state
    unroll(target, state)  target [B, M] -> logits [B, M, V]: every position given those before it, in one pass

A state is a tuple of tensors with the batch first (nested tuples are allowed); it carries whatever of the input the decoder
needs, so that hypotheses can be repeated, reordered and dropped with it.

Shapes: B batch, V symbols, M positions.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

State = Any  # a tensor [B, ...], or a tuple of states


class Decoder(Protocol):
    """See the module's docstring. `unroll` must equal the steps it stands for."""

    def step(self, last: Tensor, state: State) -> tuple[Tensor, State]: ...

    def unroll(self, target: Tensor, state: State) -> Tensor: ...


def select(state: State, rows: Tensor) -> State:
    """The given rows of a state, in that order: int64 [R] or bool [B]."""
    if isinstance(state, Tensor):
        return state[rows]
    return tuple(select(part, rows) for part in state)


def repeat(state: State, times: int) -> State:
    """Every row `times` times in a row: the state of `times` hypotheses a sequence."""
    if isinstance(state, Tensor):
        return state.repeat_interleave(times, 0)
    return tuple(repeat(part, times) for part in state)
