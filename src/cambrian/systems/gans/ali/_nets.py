"""The nets of the paper's CIFAR-10 table, its maxout discriminators, and the nets of small data beside them.

    encoder   5/1/32  4/2/64  4/1/128  4/2/256  4/1/512  1/1/512  1/1/2Z     kernel/stride/maps, batch norm, LeakyReLU 0.1
    decoder   4/1/256  4/2/128  4/1/64  4/2/32  5/1/32  1/1/32  1/1/C        transposed but the last two; sigmoid
    D(x)      the encoder's first five, maxout of 2 instead of norm          dropout 0.2, then 0.5
    D(z)      1/1/512  1/1/512                                              maxout of 2
    D(x, z)   1/1/1024  1/1/1024  1/1/1                                     maxout of 2, dropout 0.5 before each

All convolutions are valid. `base` scales every width; the table is base 32. Shapes: B batch, Z latent, C S S an image.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ShapeError
from cambrian.nn.adversarial import (
    DCGANDiscriminator,
    Flat,
    JointDiscriminator,
    MaxoutLinear,
    SplitBatchNorm,
    Tower,
    maxout,
)
from cambrian.systems.gans._nets import POINT_SCALE, discriminator_for, generator_for

PIECES = 2
LAYERS = ((5, 1, 1), (4, 2, 2), (4, 1, 4), (4, 2, 8))  # kernel, stride, maps / base; then one layer on all that is left


def edges_of(size: int) -> list[int]:
    """Edges of the maps between the valid convolutions: `[size, ..., last]`; `ShapeError` where a stride does not fit."""
    edges = [size]
    for kernel, stride, _ in LAYERS:
        rest = edges[-1] - kernel
        if rest < 0 or rest % stride:
            raise ShapeError(f"the CIFAR nets take images whose edge is a multiple of 4 from 20 up, got {size}")
        edges.append(rest // stride + 1)
    return edges


class ConvolutionalEncoder(nn.Module):
    """`[B, C, S, S] -> [B, outputs]`; `maps(x)` are the hidden layers."""

    def __init__(self, *, channels: int, size: int, base: int, outputs: int) -> None:
        super().__init__()
        layers = [*LAYERS, (edges_of(size)[-1], 1, 16), (1, 1, 16)]
        widths = [channels, *(base * times for _, _, times in layers)]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel, stride, bias=False)
            for (a, b), (kernel, stride, _) in zip(itertools.pairwise(widths), layers, strict=True)
        )
        self.norms = nn.ModuleList(SplitBatchNorm(features=width) for width in widths[1:])
        self.head = nn.Conv2d(widths[-1], outputs, 1)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Every hidden map, first to last."""
        out = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), 0.1)
            out.append(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x)[-1]).flatten(1)


class UntiedBias(nn.Module):
    """One bias for each channel at each place; `set_to(mean)` makes a constant 0 before it the mean picture after it."""

    def __init__(self, *, shape: Sequence[int]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(*shape))

    @torch.no_grad()
    def set_to(self, mean: Tensor) -> None:
        """Log-odds of the mean pixels `[C, S, S]`, which lie in [0, 1]."""
        self.bias.copy_(torch.logit(mean, eps=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class ConvolutionalDecoder(nn.Module):
    """`[B, Z] -> [B, C, S, S]`: a sigmoid stretched to [-1, 1]."""

    def __init__(self, *, latent: int, channels: int, size: int, base: int) -> None:
        super().__init__()
        last = edges_of(size)[-1]
        plan = [(last, 1, 8), (4, 2, 4), (4, 1, 2), (4, 2, 1), (5, 1, 1)]
        widths = [latent, *(base * times for _, _, times in plan)]
        layers: list[nn.Module] = []
        for (a, b), (kernel, stride, _) in zip(itertools.pairwise(widths), plan, strict=True):
            layers += [nn.ConvTranspose2d(a, b, kernel, stride, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.1)]
        layers += [nn.Conv2d(base, base, 1, bias=False), nn.BatchNorm2d(base), nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(base, channels, 1, bias=False))
        self.bias = UntiedBias(shape=(channels, size, size))

    def forward(self, z: Tensor) -> Tensor:
        return 2.0 * torch.sigmoid(self.bias(self.layers(z[:, :, None, None]))) - 1.0


class MaxoutConv2d(nn.Module):
    """The largest of two valid convolutions."""

    def __init__(self, *, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs * PIECES, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return maxout(self.conv(x), PIECES)


def maxout_layers(inputs: int, widths: Sequence[int], *, dropout_in: float, dropout: float) -> list[nn.Module]:
    """Dropout and a maxout layer for each of `widths`."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise([inputs, *widths])):
        layers += [nn.Dropout(dropout if i else dropout_in), MaxoutLinear(inputs=a, units=b, pieces=PIECES)]
    return layers


def discriminator(
    shape: Sequence[int],
    codes: int,
    *,
    arch: str,
    hidden: Sequence[int],
    base: int,
    dropout_in: float,
    dropout: float,
    outputs: int,
) -> JointDiscriminator:
    """Maxout over pairs `(x [B, *shape], z [B, codes])`, no batch norm anywhere: with it in D this game went wrong."""
    if len(shape) == 1 or arch == "connected":
        x_tower: nn.Module = Flat(scale=POINT_SCALE if len(shape) == 1 else 1.0)
        z_tower: nn.Module = Flat()
        joined, widths, first = torch.Size(shape).numel() + codes, list(hidden), dropout_in
    else:
        z_width = 16 * base if arch == "cifar" else hidden[0]
        z_tower = Tower(*maxout_layers(codes, [z_width] * 2, dropout_in=dropout_in, dropout=dropout))
        if arch == "cifar":
            x_tower, x_width = _maxout_tower(shape, base, dropout_in, dropout), 16 * base
            widths = [32 * base] * 2
        else:
            x_tower = DCGANDiscriminator(channels=shape[0], size=shape[1], base=base, norm="none", head=nn.Sequential())
            x_width, widths = x_tower.width, list(hidden)
        joined, first = x_width + z_width, dropout
    layers = maxout_layers(joined, widths, dropout_in=first, dropout=dropout)
    joint = Tower(*layers, nn.Dropout(dropout), nn.Linear(widths[-1], outputs))
    return JointDiscriminator(x_tower=x_tower, z_tower=z_tower, joint=joint)


def _maxout_tower(shape: Sequence[int], base: int, dropout_in: float, dropout: float) -> Tower:
    plan = [*LAYERS, (edges_of(shape[1])[-1], 1, 16)]
    widths = [shape[0], *(base * times for _, _, times in plan)]
    layers: list[nn.Module] = []
    for i, ((a, b), (kernel, stride, _)) in enumerate(zip(itertools.pairwise(widths), plan, strict=True)):
        layers += [nn.Dropout(dropout if i else dropout_in)]
        layers += [MaxoutConv2d(inputs=a, outputs=b, kernel=kernel, stride=stride)]
    return Tower(*layers)


def encoder_and_decoder(
    shape: Sequence[int], *, arch: str, latent: int, conditions: int, outputs: int, hidden: Sequence[int], base: int
) -> tuple[nn.Module, nn.Module]:
    """`[B, C + conditions, ...] -> [B, outputs]` and `[B, latent + conditions] -> [B, *shape]`."""
    seen = (shape[0] + conditions, *shape[1:])
    if arch == "cifar" and len(shape) == 3:
        if shape[1] != shape[2]:
            raise ShapeError(f"images must be square, got {shape[1]}x{shape[2]}; set size= to cut them")
        sizes = {"size": shape[1], "base": base}
        return (
            ConvolutionalEncoder(channels=seen[0], outputs=outputs, **sizes),
            ConvolutionalDecoder(latent=latent + conditions, channels=shape[0], **sizes),
        )
    kind = "connected" if len(shape) == 1 else arch
    return (
        discriminator_for(seen, arch=kind, hidden=hidden, base=base, outputs=outputs),
        generator_for(shape, arch=kind, latent=latent + conditions, hidden=hidden, base=base),
    )


def small_weights_(module: nn.Module, deviation: float) -> None:
    """Weights of all linear and convolutional maps from N(0, deviation^2), their biases 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, deviation)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
