"""Soft attention over a set of keys, with one signature: additive, dot and bilinear scores.

    additive   u_j = v' tanh(W_k k_j + W_q q)        (Bahdanau et al. 2015, arXiv 1409.0473)
    dot        u_j = q' k_j
    bilinear   u_j = q' W k_j                        (Luong et al. 2015, arXiv 1508.04025)
    weights    softmax over j of u, context sum_j w_j k_j

What depends on the keys alone is computed once by `prepare` and given back as `cached`.

Shapes: B batch, M queries (any number of axes, or none), S keys, Dq, Dk sizes, A size of the additive layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cambrian.errors import ShapeError


class Scorer(nn.Module):
    """Base: a subclass gives `prepare` and `compare`."""

    def __init__(self, *, query: int, key: int) -> None:
        super().__init__()
        self.query_size, self.key_size = query, key

    def prepare(self, keys: Tensor) -> Tensor:
        """What of the scores depends on keys [B, S, Dk] alone."""
        return keys

    def compare(self, query: Tensor, prepared: Tensor) -> Tensor:
        """Scores [B, M, S] of queries [B, M, Dq] against prepared keys."""
        raise NotImplementedError

    def scores(
        self, query: Tensor, keys: Tensor, mask: Tensor | None = None, *, cached: Tensor | None = None
    ) -> Tensor:
        """Raw scores [B, *, S] of queries [B, *, Dq]; minus infinity where mask [B, S] is False. Raises `ShapeError`."""
        self._check(query, keys, mask)
        flat = query.reshape(query.shape[0], -1, query.shape[-1])
        found = self.compare(flat, self.prepare(keys) if cached is None else cached)
        if mask is not None:
            found = found.masked_fill(~mask[:, None], -math.inf)
        return found.reshape(*query.shape[:-1], keys.shape[1])

    def forward(
        self, query: Tensor, keys: Tensor, mask: Tensor | None = None, *, cached: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Weights [B, *, S] and context [B, *, Dk] of queries [B, *, Dq] over keys [B, S, Dk]."""
        weights = torch.softmax(self.scores(query, keys, mask, cached=cached), -1)
        flat = weights.reshape(query.shape[0], -1, keys.shape[1])
        return weights, torch.bmm(flat, keys).reshape(*query.shape[:-1], keys.shape[2])

    def _check(self, query: Tensor, keys: Tensor, mask: Tensor | None) -> None:
        if keys.dim() != 3 or keys.shape[2] != self.key_size or keys.shape[1] == 0:
            raise ShapeError(f"keys must be [B, S, {self.key_size}] with S >= 1, not {tuple(keys.shape)}")
        if query.dim() < 2 or query.shape[0] != len(keys) or query.shape[-1] != self.query_size:
            raise ShapeError(f"queries must be [{len(keys)}, *, {self.query_size}], not {tuple(query.shape)}")
        if mask is None:
            return
        if mask.shape != keys.shape[:2] or mask.dtype != torch.bool:
            raise ShapeError(f"mask must be bool {tuple(keys.shape[:2])}, not {mask.dtype} {tuple(mask.shape)}")
        if not bool(mask.any(1).all()):
            raise ShapeError("a sequence has no key at all: its attention is undefined")


class Additive(Scorer):
    """v' tanh(W_k k + W_q q). Sequences of queries are scored a few at a time, as many as keep [B, m, S, A] within `budget`
    elements (default: what a CPU's cache holds, or a share of a GPU's memory), so that it never grows with M."""

    def __init__(self, *, query: int, key: int, size: int, budget: int | None = None) -> None:
        super().__init__(query=query, key=key)
        self.from_key = nn.Linear(key, size, bias=False)
        self.from_query = nn.Linear(query, size, bias=False)
        self.v = nn.Linear(size, 1, bias=False)
        self.budget = budget

    def prepare(self, keys: Tensor) -> Tensor:
        return self.from_key(keys)

    def compare(self, query: Tensor, prepared: Tensor) -> Tensor:
        budget = self.budget or (1 << 26 if query.is_cuda else 1 << 19)
        parts = self.from_query(query).split(max(1, budget // prepared.numel()), 1)
        return torch.cat([self.v(torch.tanh(prepared[:, None] + part[:, :, None]))[..., 0] for part in parts], 1)


class Dot(Scorer):
    """q' k, divided by the root of the size when `scaled`."""

    def __init__(self, *, size: int, scaled: bool = False) -> None:
        super().__init__(query=size, key=size)
        self.factor = 1 / math.sqrt(size) if scaled else 1.0

    def compare(self, query: Tensor, prepared: Tensor) -> Tensor:
        return torch.bmm(query, prepared.transpose(1, 2)) * self.factor


class Bilinear(Scorer):
    """q' W k; W is applied to the keys, once."""

    def __init__(self, *, query: int, key: int) -> None:
        super().__init__(query=query, key=key)
        self.weight = nn.Linear(key, query, bias=False)

    def prepare(self, keys: Tensor) -> Tensor:
        return self.weight(keys)

    def compare(self, query: Tensor, prepared: Tensor) -> Tensor:
        return torch.bmm(query, prepared.transpose(1, 2))
