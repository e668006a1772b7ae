"""The table of a network's layers: shapes, parameters, multiply-accumulates and receptive fields, measured by one
forward pass.

Receptive field arithmetic (size r, stride j, offset o = centre of the first output's field, in input pixels; kernel
k, dilation d, stride s, padding p):

    k' = d (k - 1) + 1,   r <- r + (k' - 1) j,   o <- o + ((k' - 1) / 2 - p) j,   j <- j s

Along a branch the field follows the module that produced the layer's input; where tensors are made outside of a
module (add, a functional activation) the widest field so far with that picture size is taken; after a functional
pooling, which no hook sees, the field is None. Horizontal and vertical are the same unless the kernels differ: the
table gives the vertical one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from cambrian.inspect.hooks import quiet


@dataclass(frozen=True)
class Field:
    """Receptive field in input pixels: `size`, `stride` between neighbours, `offset` of the first one's centre from
    pixel 0.
    """

    size: float = 1
    stride: float = 1
    offset: float = 0.0


@dataclass(frozen=True)
class Layer:
    """One leaf module as it ran for a batch of one; shapes include the batch."""

    name: str
    kind: str
    weight: tuple[int, ...] | None
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    params: int
    macs: int
    field: Field | None


def macs(part: nn.Module, shape_in: tuple[int, ...], shape_out: tuple[int, ...]) -> int:
    """Multiply-accumulates of a convolution or linear layer for that input; 0 for all others."""
    weight = getattr(part, "weight", None)
    if isinstance(part, nn.Linear):
        return prod(shape_out) * part.in_features
    if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return prod(shape_out) * prod(weight.shape[1:])
    if isinstance(part, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return prod(shape_in) * prod(weight.shape[1:])
    return 0


def grow(field: Field, part: nn.Module, shape_in: tuple[int, ...], shape_out: tuple[int, ...]) -> Field | None:
    """The field after one module; None once the position in the picture is lost (linear layers, flattening to
    vectors).
    """
    if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)):
        kernel, stride, pad = _first(part.kernel_size), _first(part.stride), _first(part.padding)
        kernel = _first(getattr(part, "dilation", 1)) * (kernel - 1) + 1
        if isinstance(pad, str):
            pad = 0 if pad == "valid" else (kernel - 1) // 2
        offset = field.offset + ((kernel - 1) / 2 - pad) * field.stride
        return Field(field.size + (kernel - 1) * field.stride, field.stride * stride, offset)
    if isinstance(part, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        ratio = shape_in[-2] / shape_out[-2]
        offset = field.offset + (ratio - 1) / 2 * field.stride
        return Field(field.size + (ratio - 1) * field.stride, field.stride * ratio, offset)
    spatial = len(shape_in) == len(shape_out) and shape_in[2:] == shape_out[2:]
    return field if spatial and not isinstance(part, (nn.Linear, nn.Bilinear)) else None


def _first(value: int | str | tuple[int, ...]) -> int | str:
    return value[0] if isinstance(value, tuple) else value


def layer_table(module: nn.Module, x: Tensor) -> list[Layer]:
    """Run `module` on `x` once in eval mode and list the leaf modules in the order in which they first ran."""
    names = {part: name for name, part in module.named_modules()}
    rows: dict[str, Layer] = {}
    fields: dict[int, Field | None] = {id(x): Field()}
    held: list[Tensor] = [x]  # keeps every tensor alive, so that an id is never used twice
    widest: dict[tuple[int, ...], Field] = {tuple(x.shape[2:]): Field()}  # by picture size

    def record(part: nn.Module, inputs: tuple, out: object) -> None:
        if not inputs or not isinstance(inputs[0], Tensor) or not isinstance(out, Tensor):
            return
        shape_in, shape_out = tuple(inputs[0].shape), tuple(out.shape)
        before = fields[id(inputs[0])] if id(inputs[0]) in fields else widest.get(shape_in[2:])
        after = grow(before, part, shape_in, shape_out) if before is not None else None
        fields[id(out)] = after
        held.append(out)
        if after is not None and after.size >= widest.get(shape_out[2:], Field(0)).size:
            widest[shape_out[2:]] = after
        name = names[part]
        weight = getattr(part, "weight", None)
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else None
        params = sum(p.numel() for p in part.parameters())
        previous = rows[name].macs if name in rows else 0
        count = previous + macs(part, shape_in, shape_out)
        rows[name] = Layer(name, type(part).__name__, shape, shape_in, shape_out, params, count, after)

    leaves = [part for part in module.modules() if not any(True for _ in part.children())]
    handles = [part.register_forward_hook(record) for part in leaves]
    try:
        with quiet(module), torch.no_grad():
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    return list(rows.values())
