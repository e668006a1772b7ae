"""The other ways to look at a block: its last frame, or stateless weights from dot products or a small network.

Each has the methods of `cambrian.nn.attention.recurrent.LSTMScorer`. Shapes: B batch, J queries, W frames of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError
from cambrian.nn.attention.recurrent import LSTMScorer, masked_softmax
from cambrian.nn.scan import State

ATTENTIONS = ("none", "dot", "mlp", "lstm")


class LastFrame(nn.Module):
    """No attention: all weight on the last frame that is there."""

    def project(self, memory: Tensor) -> Tensor:
        """Nothing to prepare."""
        return memory

    def initial(self, batch: int, like: Tensor) -> State:
        """Stateless."""
        return ()

    def step(self, query: Tensor, keys: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        """One at the last True of `mask` [B, W], for every query: [B, J, W]."""
        last = (mask.sum(1) - 1).clamp(min=0)
        weights = nn.functional.one_hot(last, mask.shape[1]).to(query.dtype) * mask
        return weights[:, None].expand(-1, query.shape[1], -1), state


class DotScorer(LastFrame):
    """e_j = s . (K h_j)."""

    def __init__(self, *, query: int, memory: int) -> None:
        super().__init__()
        self.keys = nn.Linear(memory, query, bias=False)

    def project(self, memory: Tensor) -> Tensor:
        """Keys [..., W, Q]."""
        return self.keys(memory)

    def step(self, query: Tensor, keys: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        """Weights [B, J, W] of queries [B, J, Q]."""
        return masked_softmax(query @ keys.transpose(1, 2), mask), state


class MLPScorer(DotScorer):
    """e_j = v . tanh(U s + K h_j)."""

    def __init__(self, *, query: int, memory: int) -> None:
        super().__init__(query=query, memory=memory)
        self.query = nn.Linear(query, query)
        self.energy = nn.Linear(query, 1, bias=False)

    def step(self, query: Tensor, keys: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        """Weights [B, J, W] of queries [B, J, Q]."""
        both = torch.tanh(self.query(query)[:, :, None] + keys[:, None])
        return masked_softmax(self.energy(both)[..., 0], mask), state


def scorer(name: str, *, query: int, memory: int, window: int) -> nn.Module:
    """The attention called `name`. Raises `ConfigError`."""
    if name == "none":
        return LastFrame()
    if name == "dot":
        return DotScorer(query=query, memory=memory)
    if name == "mlp":
        return MLPScorer(query=query, memory=memory)
    if name == "lstm":
        return LSTMScorer(query=query, memory=memory, window=window, hidden=query)
    raise ConfigError(f"attention must be one of {', '.join(ATTENTIONS)}, not {name!r}")
