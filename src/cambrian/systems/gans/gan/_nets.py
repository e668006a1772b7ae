"""The nets of three papers, and `build`, which pairs a generator with a discriminator.

Every discriminator has `features(x, sources)` (what the last layer reads) and `forward(x, sources)` (logits).
`sources` names the runs a batch consists of: layers that look across a batch (minibatch discrimination, batch
norm) must look at one source at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cambrian.errors import ShapeError
from cambrian.nn.adversarial import (
    REAL,
    DCGANDiscriminator,
    DCGANGenerator,
    GaussianNoise,
    MaxoutLinear,
    MinibatchDiscrimination,
    WeightNormConv2d,
    WeightNormLinear,
)

SIGNED = ("dcgan", "cifar")  # architectures that make pixels in [-1, 1]


class Critic(nn.Module):
    """A body and a head, both sequences: `features = body(x)`, `logits = head(features)`."""

    def __init__(self, *, body: nn.Sequential, head: nn.Sequential) -> None:
        super().__init__()
        self.body, self.head = body, head

    def features(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """`[B, F]`."""
        return self.body(x)

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        features = self.features(x)
        return torch.cat([self.head(run) for run in features.chunk(len(sources))])


class VectorGenerator(nn.Module):
    """Fully connected: `[B, Z] -> [B, *shape]`, `out` one of sigmoid ([0, 1]), none."""

    def __init__(self, *, latent: int, shape: Sequence[int], hidden: Sequence[int], act: str, out: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise([latent, *hidden]):
            # the semi-supervised net of 2016: softplus and batch norm; the net of 2014: ReLU
            layers += [nn.Linear(a, b)] + ([nn.Softplus(), nn.BatchNorm1d(b)] if act == "softplus" else [nn.ReLU()])
        size = torch.Size(shape).numel()
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], size), nn.Unflatten(1, tuple(shape)))
        self.latent, self.out = latent, out

    def forward(self, z: Tensor) -> Tensor:
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise ShapeError(f"z must be [batch, {self.latent}], got {tuple(z.shape)}")
        x = self.layers(z)
        return torch.sigmoid(x) if self.out == "sigmoid" else x


def weight_normed_body(inputs: int, hidden: Sequence[int], noise_in: float, noise: float) -> nn.Sequential:
    """Noise, then weight-normed ReLU layers with noise between (the paper's MNIST net: 1000-500-250-250-250)."""
    layers: list[nn.Module] = [nn.Flatten(), GaussianNoise(sigma=noise_in)]
    for i, (a, b) in enumerate(itertools.pairwise([inputs, *hidden])):
        layers += [GaussianNoise(sigma=noise)] if i else []
        layers += [WeightNormLinear(inputs=a, outputs=b), nn.ReLU()]
    return nn.Sequential(*layers)


def maxout_body(inputs: int, units: int = 240, pieces: int = 5) -> nn.Sequential:
    """The discriminator of 2014: two maxout layers with dropout."""
    first = MaxoutLinear(inputs=inputs, units=units, pieces=pieces)
    second = MaxoutLinear(inputs=units, units=units, pieces=pieces)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), first, nn.Dropout(0.5), second, nn.Dropout(0.5))


def nine_convolutions(channels: int, base: int) -> nn.Sequential:
    """The CIFAR-10 discriminator of 2016: 96, 96, 96 / 2, 192, 192, 192 / 2, 192 valid, 192 1x1, 192 1x1, mean
    (base 96).
    """

    def conv(a: int, b: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> list[nn.Module]:
        layer = WeightNormConv2d(inputs=a, outputs=b, kernel=kernel, stride=stride, padding=padding)
        return [layer, nn.LeakyReLU(0.2)]

    wide = 2 * base
    return nn.Sequential(
        nn.Dropout(0.2),
        *conv(channels, base),
        *conv(base, base),
        *conv(base, base, stride=2),
        nn.Dropout(0.5),
        *conv(base, wide),
        *conv(wide, wide),
        *conv(wide, wide, stride=2),
        nn.Dropout(0.5),
        *conv(wide, wide, padding=0),
        *conv(wide, wide, kernel=1, padding=0),
        *conv(wide, wide, kernel=1, padding=0),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _plain_body(inputs: int, hidden: Sequence[int]) -> nn.Sequential:
    layers = [part for a, b in itertools.pairwise([inputs, *hidden]) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers)


def head(arch: str, width: int, outputs: int, kernels: int, dims: int) -> nn.Sequential:
    """Minibatch discrimination where `kernels` > 0, and the last linear map."""
    layers: list[nn.Module] = []
    if kernels:
        layers.append(MinibatchDiscrimination(features=width, kernels=kernels, dims=dims))
        width += kernels
    if arch in ("mlp", "cifar"):
        layers.append(WeightNormLinear(inputs=width, outputs=outputs, learn_scale=True))
    else:
        layers.append(nn.Linear(width, outputs))
    return nn.Sequential(*layers)


def convolutional(
    arch: str, shape: Sequence[int], *, latent: int, outputs: int, base: int, kernels: int, dims: int, reference: int
) -> tuple[nn.Module, nn.Module]:
    """`(generator, discriminator)` of `dcgan` or `cifar` for square images `shape = (C, S, S)`."""
    channels, size, other = shape
    if size != other:
        raise ShapeError(f"images must be square, got {size}x{other}; set size= to cut them")
    norm = "virtual" if reference else "split"
    up = DCGANGenerator(latent=latent, channels=channels, size=size, base=base, norm=norm, reference=reference)
    if arch == "cifar":
        if size < 12:
            raise ShapeError(f"the nine-convolution discriminator needs images of at least 12 pixels, got {size}")
        last = head(arch, 2 * base, outputs, kernels, dims)
        return up, Critic(body=nine_convolutions(channels, base), head=last)
    down = DCGANDiscriminator(channels=channels, size=size, base=base, outputs=outputs, norm=norm, reference=reference)
    if kernels:
        down.head = head(arch, down.width, outputs, kernels, dims)
    return up, down


def connected(
    arch: str,
    shape: Sequence[int],
    *,
    latent: int,
    outputs: int,
    hidden: Sequence[int],
    hidden_g: Sequence[int],
    noise: tuple[float, float],
    kernels: int,
    dims: int,
) -> tuple[nn.Module, nn.Module]:
    """`(generator, discriminator)` of `points`, `maxout` or `mlp` for samples of any shape."""
    inputs, width = torch.Size(shape).numel(), hidden[-1]
    if arch == "maxout":
        body, width = maxout_body(inputs), 240
    elif arch == "mlp":
        body = weight_normed_body(inputs, hidden, *noise)
    else:
        body = _plain_body(inputs, hidden)
    act, out = "softplus" if arch == "mlp" else "relu", "none" if arch == "points" else "sigmoid"
    generator = VectorGenerator(latent=latent, shape=shape, hidden=hidden_g, act=act, out=out)
    return generator, Critic(body=body, head=head(arch, width, outputs, kernels, dims))
