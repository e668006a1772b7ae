"""What the networks of the zoo share: input normalisation, activations by name, initialisation, input checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError, ShapeError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "elu": nn.ELU}


def make_activation(name: str) -> nn.Module:
    """A fresh activation (never in place: feature taps keep what they saw). Raises `ConfigError` for another name."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"no activation {name!r}; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class Normalise(nn.Module):
    """`(x - mean) / std` by channel as a layer, so that a network takes plain pixels in [0, 1].

    One value stands for all channels. The values are constants of the architecture and no part of the state.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)) -> None:
        super().__init__()
        if min(std) <= 0:
            raise ConfigError(f"std must be positive, not {tuple(std)}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def scaled(channels: int, width: float) -> int:
    """`channels` times the width multiplier, at least one."""
    return max(1, round(channels * width))


def check_images(x: Tensor, channels: int, size: int | None, name: str) -> None:
    """Raise `ShapeError` unless `x` is a float batch `[B, channels, H, W]` (`size` x `size` where that is fixed)."""
    good = x.ndim == 4 and x.shape[1] == channels and (size is None or tuple(x.shape[2:]) == (size, size))
    if not good:
        wanted = f"[B, {channels}, {size or 'H'}, {size or 'W'}]"
        raise ShapeError(f"{name} takes images {wanted}, not {list(x.shape)}; resize them or build it for that size")
    if not x.is_floating_point():
        raise ShapeError(f"{name} takes floating point pixels in [0, 1], not {x.dtype}; use cambrian.data.images.unit")


def initialise(module: nn.Module, scheme: str, std: float = 0.01) -> None:
    """Draw all convolution and linear weights anew, biases 0, batch norms 1 and 0.

    `he` (He et al. 2015, fan out for convolutions), `glorot` (Glorot and Bengio 2010) or `normal`: N(0, std^2).
    """
    draw = {
        "he": lambda w: nn.init.kaiming_normal_(w, mode="fan_out" if w.ndim == 4 else "fan_in", nonlinearity="relu"),
        "glorot": nn.init.xavier_uniform_,
        "normal": lambda w: nn.init.normal_(w, 0.0, std),
    }
    if scheme not in draw:
        raise ConfigError(f"no initialisation {scheme!r}; choose one of {', '.join(draw)}")
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            draw[scheme](layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
