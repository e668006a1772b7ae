"""Batch normalisation folded into the convolution or linear layer before it: the same function, fewer passes over memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cambrian.errors import CapabilityError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def folded_weights(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the single layer that computes `norm(layer(x))` in evaluation mode.

    w' = w * gamma / sqrt(var + eps);  b' = (b - mean) * gamma / sqrt(var + eps) + beta
    """
    if norm.running_mean is None or norm.running_var is None:
        raise CapabilityError("only batch norms with running statistics can be folded; this one keeps none")
    gain = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight
    bias = layer.bias if layer.bias is not None else torch.zeros_like(norm.running_mean)
    shift = norm.bias if norm.bias is not None else 0.0
    weight = layer.weight * gain.view(-1, *[1] * (layer.weight.ndim - 1))
    return weight.detach(), ((bias - norm.running_mean) * gain + shift).detach()


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose batch norms right behind a convolution or linear layer are `Identity`.

    Layers are paired inside each `nn.Sequential`; names stay, so taps and state-dict keys of other layers stay too.
    Raises `CapabilityError` where a batch norm keeps no running statistics.
    """
    model = copy.deepcopy(model).eval()
    for parent in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        before: nn.Module | None = None
        for name, child in parent.named_children():
            if before is not None and isinstance(child, NORMS) and isinstance(before, nn.Conv2d | nn.Linear):
                weight, bias = folded_weights(before, child)
                before.weight = nn.Parameter(weight)
                before.bias = nn.Parameter(bias)
                setattr(parent, name, nn.Identity())
            before = child
    return model
