"""Trunks of encoders and decoders, fully connected or convolutional, for pictures of any size.

Shapes: N any number of rows, C H W a picture, E numbers of a condition, F features, P output planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError

NETS = ("mlp", "conv")
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
STAGES = (1, 2, 4)  # multiples of the base width: 32-64-128
SMALLEST = 4  # pictures are halved while a side is longer than this


def layers(sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Linear layers from sizes[0] to sizes[-1], each followed by the activation; Glorot weights, zero biases."""
    made: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        made += [glorot(nn.Linear(inputs, outputs)), ACTIVATIONS[activation]()]
    return nn.Sequential(*made)


def glorot(linear: nn.Linear) -> nn.Linear:
    """The layer with Glorot's uniform weights and a zero bias."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def halvings(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes from the picture down, at most three halvings: 28 -> 14 -> 7 -> 3, 8 -> 4."""
    sizes = [(height, width)]
    while len(sizes) <= len(STAGES) and min(sizes[-1]) > SMALLEST:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes


class MLPEncoder(nn.Module):
    """[N, C, H, W] and a condition [N, E] (E may be 0) -> [N, F]."""

    def __init__(self, shape: Sequence[int], condition: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        inputs = shape[0] * shape[1] * shape[2] + condition
        self.features = hidden[-1] if hidden else inputs
        self.body = layers((inputs, *hidden), activation)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.body(torch.cat((x.flatten(1), condition), 1))


class MLPDecoder(nn.Module):
    """[N, Z + E] -> [N, P, H, W]."""

    def __init__(self, planes: int, shape: Sequence[int], inputs: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        self.shape = (planes, *shape[1:])
        self.body = layers((inputs, *hidden[::-1]), activation)
        self.head = glorot(nn.Linear(hidden[0] if hidden else inputs, planes * shape[1] * shape[2]))

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.body(z)).view(len(z), *self.shape)

    @torch.no_grad()
    def start_at(self, bias: Tensor) -> None:
        """Begin with this output [P, H, W] wherever the features are zero."""
        self.head.bias.copy_(bias.flatten())


class ConvEncoder(nn.Module):
    """4x4 convolutions of stride 2 while the picture is large, one hidden layer; the condition comes as constant planes."""

    def __init__(self, shape: Sequence[int], condition: int, base: int, hidden: int) -> None:
        super().__init__()
        sizes = halvings(*shape[1:])
        made: list[nn.Module] = []
        channels = shape[0] + condition
        for stage in STAGES[: len(sizes) - 1]:
            made += [nn.Conv2d(channels, base * stage, 4, 2, 1), nn.ReLU()]
            channels = base * stage
        self.body = nn.Sequential(*made, nn.Flatten())
        self.out = nn.Linear(channels * sizes[-1][0] * sizes[-1][1], hidden)
        self.features = hidden

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        planes = condition[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return F.relu(self.out(self.body(torch.cat((x, planes), 1))))


class ConvDecoder(nn.Module):
    """The encoder mirrored: enlarge by repeating pixels (nearest), then a 3x3 convolution, which leaves no checkerboard."""

    def __init__(self, planes: int, shape: Sequence[int], inputs: int, base: int, hidden: int) -> None:
        super().__init__()
        self.sizes = halvings(*shape[1:])[::-1]
        widths = [base * stage for stage in STAGES[: len(self.sizes) - 1]][::-1] or [base]
        self.first = (widths[0], *self.sizes[0])
        self.enter = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, widths[0] * self.first[1] * self.first[2]),
            nn.ReLU(),
        )
        outs = [*widths[1:], base][: len(self.sizes) - 1]
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, 1, 1) for i, o in zip(widths, outs, strict=False))
        self.head = nn.Conv2d(outs[-1] if outs else widths[-1], planes, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.enter(z).view(len(z), *self.first)
        for size, convolution in zip(self.sizes[1:], self.convolutions, strict=True):
            x = F.relu(convolution(F.interpolate(x, size=size, mode="nearest")))
        return self.head(x)

    @torch.no_grad()
    def start_at(self, bias: Tensor) -> None:
        """Begin with the mean over places of this output [P, H, W]."""
        self.head.bias.copy_(bias.mean((1, 2)))


def encoder_for(kind: str, shape: Sequence[int], condition: int, hidden: Sequence[int], base: int, activation: str):
    """The encoder called `kind`; its `features` says F. Raises `ConfigError`."""
    _known(kind, activation)
    if kind == "mlp":
        return MLPEncoder(shape, condition, hidden, activation)
    return ConvEncoder(shape, condition, base, hidden[-1] if hidden else 128)


def decoder_for(kind: str, planes: int, shape: Sequence[int], inputs: int, hidden: Sequence[int], base: int, activation: str):  # fmt: skip
    """The decoder called `kind`. Raises `ConfigError`."""
    _known(kind, activation)
    if kind == "mlp":
        return MLPDecoder(planes, shape, inputs, hidden, activation)
    return ConvDecoder(planes, shape, inputs, base, hidden[-1] if hidden else 128)


def _known(kind: str, activation: str) -> None:
    if kind not in NETS or activation not in ACTIVATIONS:
        raise ConfigError(
            f"nets are {', '.join(NETS)} and activations {', '.join(ACTIVATIONS)}, not {kind!r}, {activation!r}"
        )
