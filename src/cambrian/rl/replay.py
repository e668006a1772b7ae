"""Replay memory: a ring of transitions, drawn uniformly or by priority, all of it in `state_dict`.

    P(i) = p_i^alpha / sum_k p_k^alpha,   p_i = |TD error_i| + 1e-6      prioritised replay, eq. 1 (1511.05952)
    w_i  = (N P(i))^-beta / max_k w_k                                   section 3.4

A new transition gets the largest priority seen so far; max_k is over the whole memory.

Shapes: N transitions in memory, n drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cambrian.errors import ConfigError, ShapeError


class Replay:
    """A ring of `capacity` transitions. Columns take name, shape and type (uint8 stays uint8) from the first `add`."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ConfigError(f"capacity must be at least 1, not {capacity}")
        self.capacity, self.size, self.head = capacity, 0, 0
        self.columns: dict[str, Tensor] = {}

    def add(self, **rows: Tensor) -> Tensor:
        """Append B transitions (each column [B, ...]), over the oldest when full; returns their slots [B].

        Raises `ShapeError` when a column is missing or of another shape than before, or B exceeds the capacity.
        """
        count = len(next(iter(rows.values())))
        if not self.columns:
            self.columns = {k: torch.zeros(self.capacity, *v.shape[1:], dtype=v.dtype) for k, v in rows.items()}
        expected = {k: tuple(v.shape[1:]) for k, v in self.columns.items()}
        given = {k: tuple(v.shape[1:]) for k, v in rows.items()}
        if given != expected or count > self.capacity or any(len(v) != count for v in rows.values()):
            raise ShapeError(f"expected up to {self.capacity} rows of {expected}, got {count} rows of {given}")
        slots = (torch.arange(count) + self.head) % self.capacity
        for name, values in rows.items():
            self.columns[name][slots] = values.detach().cpu()
        self.head = (self.head + count) % self.capacity
        self.size = min(self.size + count, self.capacity)
        return slots

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`n` transitions drawn uniformly with replacement, with their slots as `index` and `weight` = 1."""
        if not self.size:
            raise ConfigError("the replay memory is empty; add transitions before drawing")
        index = torch.randint(0, self.size, (n,), generator=generator)
        return {**self.at(index), "weight": torch.ones(n)}

    def at(self, index: Tensor) -> dict[str, Tensor]:
        """The transitions in the given slots."""
        return {**{name: column[index] for name, column in self.columns.items()}, "index": index}

    def state_dict(self) -> dict[str, Any]:
        """The filled part of every column, and where the ring stands."""
        return {"columns": {k: v[: self.size] for k, v in self.columns.items()}, "size": self.size, "head": self.head}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`. Raises `ConfigError` when the memory saved does not fit."""
        self.size, self.head = int(state["size"]), int(state["head"])
        if self.size > self.capacity:
            raise ConfigError(f"the checkpoint holds {self.size} transitions, more than the capacity {self.capacity}")
        self.columns = {}
        for name, saved in state["columns"].items():
            self.columns[name] = torch.zeros(self.capacity, *saved.shape[1:], dtype=saved.dtype)
            self.columns[name][: self.size] = saved


class SumTree:
    """Sums and minima over `size` non-negative leaves, kept in a tree in which every node has 64 children.

    A wide tree costs a handful of array operations for a whole batch (3 levels for 262,144 leaves), where a binary one needs 18.
    Nodes are recomputed from their children, so rounding errors do not pile up.
    """

    fan = 64

    def __init__(self, size: int) -> None:
        widths = [size]
        while widths[-1] > 1:
            widths.append(-(-widths[-1] // self.fan))
        padded = [width * self.fan for width in widths[1:]] + [1] if size > 1 else [1]
        self.sums = [np.zeros(width) for width in padded]
        self.mins = [np.full(width, np.inf) for width in padded]

    @property
    def total(self) -> float:
        """The sum of all leaves."""
        return float(self.sums[-1].sum())

    @property
    def smallest(self) -> float:
        """The least of the leaves that have been set."""
        return float(self.mins[-1].min())

    def update(self, index: Tensor, values: Tensor) -> None:
        """Set leaves [n]; equal indices must carry equal values."""
        place = index.numpy()
        self.sums[0][place] = self.mins[0][place] = values.numpy()
        for level in range(1, len(self.sums)):
            place = place // self.fan
            self.sums[level][place] = np.add.reduce(self.sums[level - 1].reshape(-1, self.fan)[place], 1)
            self.mins[level][place] = np.minimum.reduce(self.mins[level - 1].reshape(-1, self.fan)[place], 1)

    def find(self, mass: Tensor) -> Tensor:
        """The leaf in which each cumulative mass [n] in [0, total) falls: [n]."""
        left, node, row = mass.numpy(), np.zeros(len(mass), np.int64), np.arange(len(mass))
        for sums in reversed(self.sums[:-1]):
            children = sums.reshape(-1, self.fan)[node]
            edges = np.add.accumulate(children, 1)
            # Rounding may have put the mass at or beyond the last edge, where only empty children follow.
            left = np.minimum(left, edges[:, -1] * (1 - 1e-12))
            child = np.add.reduce(edges <= left[:, None], 1)
            left = left - (edges[row, child] - children[row, child])
            node = node * self.fan + child
        return torch.from_numpy(node)


class PrioritisedReplay(Replay):
    """A ring drawn in proportion to p^alpha; `update` sets the priorities of what was drawn."""

    def __init__(self, capacity: int, *, alpha: float = 0.6, epsilon: float = 1e-6) -> None:
        super().__init__(capacity)
        self.alpha, self.epsilon = alpha, epsilon
        self.tree = SumTree(capacity)
        self.largest = 1.0

    def add(self, **rows: Tensor) -> Tensor:
        """As `Replay.add`; the new transitions get the largest priority seen so far."""
        slots = super().add(**rows)
        self.tree.update(slots, torch.full((len(slots),), self.largest**self.alpha, dtype=torch.float64))
        return slots

    def sample(self, n: int, generator: torch.Generator, *, beta: float = 1.0) -> dict[str, Tensor]:
        """`n` transitions, one from each of n equal slices of the total priority, with `weight` = (N P)^-beta / max w."""
        if not self.size:
            raise ConfigError("the replay memory is empty; add transitions before drawing")
        total = self.tree.total
        slices = (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        index = self.tree.find(slices * total)
        leaves = torch.from_numpy(self.tree.sums[0][index.numpy()])
        weight = (leaves / self.tree.smallest) ** -beta
        return {**self.at(index), "weight": weight.float()}

    def update(self, index: Tensor, errors: Tensor) -> None:
        """Set the priorities of slots [n] from their TD errors [n] (any sign)."""
        priority = errors.detach().cpu().double().abs() + self.epsilon
        self.largest = max(self.largest, float(priority.max()))
        self.tree.update(index, priority**self.alpha)

    def state_dict(self) -> dict[str, Any]:
        """The ring, the leaves and the largest priority."""
        return {
            **super().state_dict(),
            "leaves": torch.from_numpy(self.tree.sums[0][: self.size].copy()),
            "largest": self.largest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`; the tree is built anew from its leaves, which gives the same sums."""
        super().load_state_dict(state)
        self.tree = SumTree(self.capacity)
        self.tree.update(torch.arange(self.size), state["leaves"])
        self.largest = float(state["largest"])
