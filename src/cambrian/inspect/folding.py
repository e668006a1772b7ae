"""A network made ready for many passes in eval mode: the same answers to rounding, in less time.

    bn(conv(x)) = conv'(x),   s = gamma / sqrt(var + eps),   W' = s W,   b' = s (b - mean) + beta

Filters are also kept in the order in which a CPU's convolutions run fastest (channels last). Nothing of the network is
edited: layers get another `forward` for the time of a `with`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cambrian.inspect.maps import uncounted

TOLERANCE = 1e-4


@contextmanager
def prepared(module: nn.Module, x: Tensor) -> Iterator[nn.Module]:
    """Inside the `with`, `module` (in eval mode, on a CPU) runs with its batch norms folded into the convolutions before
    them, and with filters in channels-last order. `x [B,...]` is a small batch on which that is proved: where the answers
    differ (a convolution whose output has a second reader), or elsewhere than on a CPU, the network runs as it is.
    """
    changes: dict[nn.Module, Any] = {}
    if x.device.type == "cpu" and x.dim() == 4:
        with torch.no_grad(), uncounted():
            expected = module(x)
            changes = _changes(module, x)
            with _replaced(changes):
                found = module(x)
            if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * float(expected.abs().max())):
                changes = {}
    with _replaced(changes):
        yield module


@contextmanager
def _replaced(forwards: dict[nn.Module, Any]) -> Iterator[None]:
    """The `forward` of these modules, for a while."""
    own = {part: part.__dict__.get("forward") for part in forwards}
    try:
        for part, forward in forwards.items():
            part.forward = forward
        yield
    finally:
        for part, forward in own.items():
            part.__dict__.pop("forward", None)
            if forward is not None:
                part.forward = forward


def _changes(module: nn.Module, x: Tensor) -> dict[nn.Module, Any]:
    """The new `forward` of every convolution that runs, and of every batch norm that follows one directly."""
    order, partner = _order(module, x)
    forwards: dict[nn.Module, Any] = {}
    for conv in order:
        norm = partner.get(conv)
        weight, bias = (conv.weight, conv.bias) if norm is None else folded(conv, norm)
        forwards[conv] = _convolution(conv, weight.detach().contiguous(memory_format=torch.channels_last), bias)
        if norm is not None:
            forwards[norm] = _as_it_is
    return forwards


def _as_it_is(h: Tensor) -> Tensor:
    return h


def _convolution(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> Any:
    return lambda h: conv._conv_forward(h, weight, bias)


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that does both (with the norm's running statistics)."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = shift * scale if norm.bias is None else shift * scale + norm.bias
    return (conv.weight * scale.view(-1, 1, 1, 1)).detach(), bias.detach()


def _order(module: nn.Module, x: Tensor) -> tuple[list[nn.Conv2d], dict[nn.Module, nn.BatchNorm2d]]:
    """The convolutions that run, and the batch norm that takes exactly what a convolution that runs once gave."""
    order: list[nn.Conv2d] = []
    partner: dict[nn.Module, nn.BatchNorm2d] = {}
    maker: dict[int, nn.Module] = {}
    held: list[Tensor] = []  # so that no tensor's id is used twice
    calls: dict[nn.Module, int] = {}

    def record(part: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        calls[part] = calls.get(part, 0) + 1
        if isinstance(part, nn.Conv2d):
            order.append(part)
            maker[id(out)] = part
            held.append(out)
        elif part.running_mean is not None and id(inputs[0]) in maker:
            partner[maker[id(inputs[0])]] = part

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    handles = [part.register_forward_hook(record) for part in module.modules() if type(part) in kinds]
    try:
        module(x)
    finally:
        for handle in handles:
            handle.remove()
    single = {conv: norm for conv, norm in partner.items() if calls[conv] == calls[norm] == 1}
    return list(dict.fromkeys(order)), single
