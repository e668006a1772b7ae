"""A list of tensors as one vector: views both ways, arithmetic in one call, networks as functions of a vector.

Shapes: P total number of elements, n tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cambrian.errors import ShapeError


@dataclass(frozen=True)
class Layout:
    """Where each of n tensors of one dtype and device lies in a vector [P]."""

    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Layout:
        """The layout of `tensors` in their order. Raises `ShapeError` for none, or for mixed dtypes or devices."""
        items = list(tensors)
        kinds = {(t.dtype, t.device) for t in items}
        if len(kinds) != 1:
            raise ShapeError(f"a flat vector needs tensors of one dtype and device, not {sorted(map(str, kinds))}")
        (dtype, device), *_ = kinds
        return cls(tuple(t.shape for t in items), dtype, device)

    @property
    def sizes(self) -> list[int]:
        """Elements of each tensor."""
        return [shape.numel() for shape in self.shapes]

    @property
    def total(self) -> int:
        """P, the length of the vector."""
        return sum(self.sizes)

    def empty(self) -> Tensor:
        """An uninitialised vector [P]."""
        return torch.empty(self.total, dtype=self.dtype, device=self.device)

    def views(self, vector: Tensor) -> list[Tensor]:
        """The n tensors as views of `vector` [P]: writing to one writes to the other. Differentiable."""
        if vector.shape != (self.total,):
            raise ShapeError(f"this layout holds {self.total} elements, not a tensor of shape {tuple(vector.shape)}")
        return [part.view(shape) for part, shape in zip(vector.split(self.sizes), self.shapes, strict=True)]

    def pack(self, tensors: Iterable[Tensor | None], out: Tensor | None = None) -> Tensor:
        """Copy tensors of this layout into one vector [P]; None stands for zeros (a parameter without gradient)."""
        vector = self.empty() if out is None else out
        for view, tensor in zip(self.views(vector), tensors, strict=True):
            view.zero_() if tensor is None else view.copy_(tensor)
        return vector


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """All elements of `tensors` in order, as one new vector [P]; differentiable."""
    items = list(tensors)
    Layout.of(items)
    return torch.cat([t.reshape(-1) for t in items])


def share(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Move parameters into one vector [P] of which each becomes a view; returns it.

    Values do not change; from then on one in-place operation on the vector updates the whole network. Moving the module
    to another device or dtype breaks the tie.
    """
    items = list(parameters)
    layout = Layout.of(items)
    vector = layout.pack(p.detach() for p in items)
    for parameter, view in zip(items, layout.views(vector), strict=True):
        parameter.data = view
    return vector


def axpy_(ys: Sequence[Tensor], xs: Sequence[Tensor], alpha: float | Tensor = 1.0) -> None:
    """ys += alpha xs, tensor by tensor in one fused call."""
    if not len(ys):
        return
    if isinstance(alpha, Tensor):
        torch._foreach_add_(list(ys), torch._foreach_mul(list(xs), alpha))
    else:
        torch._foreach_add_(list(ys), list(xs), alpha=alpha)


def parameters_of(module: nn.Module) -> Tensor:
    """The trainable parameters of `module` as one new vector [P], in the order of `named_parameters`."""
    return flatten(p.detach() for p in module.parameters())


def call(module: nn.Module, vector: Tensor, *args: Any, **kwargs: Any) -> Any:
    """`module(*args)` with its parameters read from `vector` [P] (order of `named_parameters`); differentiable in it."""
    named = dict(module.named_parameters())
    views = Layout.of(named.values()).views(vector)
    return functional_call(module, dict(zip(named, views, strict=True)), args, kwargs)


def column(size: int, index: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Column `index` of the standard-normal matrix [size, any] that `seed` names, made without storing the matrix.

    Random-subspace methods regenerate columns in place of keeping a P x k matrix.
    """
    # splitmix64 spreads neighbouring (seed, index) pairs over all seeds
    word = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    word = ((word ^ (word >> 30)) * 0x94D049BB133111EB) & (2**64 - 1)
    generator = torch.Generator().manual_seed((word ^ (word >> 31)) & (2**63 - 1))
    return torch.randn(size, generator=generator, dtype=dtype)


def combine(weights: Tensor, size: int, seed: int) -> Tensor:
    """Sum_k weights[k] column(size, k, seed): a point [size] of the random subspace, one column in memory at a time."""
    point = torch.zeros(size, dtype=weights.dtype)
    for index, weight in enumerate(weights.tolist()):
        point.add_(column(size, index, seed, weights.dtype), alpha=weight)
    return point
