"""Generator and discriminator of deep convolutional GANs (Radford, Metz, Chintala 2015, 1511.06434).

All-convolutional: 5x5 fractionally strided convolutions up, 5x5 strided convolutions down, no pooling, no hidden
fully connected layer; batch norm everywhere except the generator's output and the discriminator's first layer.

Shapes: N batch, Z latent, C image channels, S image size (square), b base width (channels next to the image).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial.layers import REAL, SplitBatchNorm, VirtualBatchNorm, initialise_from_data

NORMS = ("split", "virtual", "none")


def stages_for(size: int, stages: int | None = None) -> int:
    """How many times an image of `size` is halved: `stages`, or as often as leaves at least 4 pixels an edge (at
    most 4).

    Raises `ShapeError` where the size is no multiple of `2 ** stages`.
    """
    if stages is None:
        stages = 0
        while stages < 4 and size % 2 ** (stages + 1) == 0 and size // 2 ** (stages + 1) >= 4:
            stages += 1
        stages = max(stages, 1)
    if size % 2**stages or size // 2**stages < 1:
        raise ShapeError(
            f"image size {size} is not a multiple of {2**stages} ({stages} halvings); "
            f"resize to {max(1, round(size / 2**stages)) * 2**stages}"
        )
    return stages


def small_normal_(module: nn.Module) -> None:
    """Weights of convolutions and linear maps from N(0, 0.02^2), biases 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _norm(kind: str, features: int, reference: int) -> nn.Module:
    if kind not in NORMS:
        raise ConfigError(f"norm {kind!r} is unknown; use one of {', '.join(NORMS)}")
    if kind == "split":
        return SplitBatchNorm(features=features)
    return VirtualBatchNorm(features=features, reference=reference) if kind == "virtual" else nn.Identity()


def _normalise(norm: nn.Module, x: Tensor, sources: tuple[int, ...]) -> Tensor:
    return norm(x, sources) if isinstance(norm, SplitBatchNorm) else norm(x)


class UpBlock(nn.Module):
    """5x5 fractionally strided convolution that doubles the edge, norm, ReLU; `last` leaves norm and ReLU out."""

    def __init__(
        self, *, inputs: int, outputs: int, norm: str = "split", reference: int = 0, last: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 5, 2, 2, output_padding=1, bias=last or norm == "none")
        self.norm = None if last else _norm(norm, outputs, reference)

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else F.relu(_normalise(self.norm, x, sources))


class DownBlock(nn.Module):
    """5x5 convolution of stride 2, norm unless `first`, LeakyReLU 0.2."""

    def __init__(
        self, *, inputs: int, outputs: int, norm: str = "split", reference: int = 0, first: bool = False
    ) -> None:
        super().__init__()
        plain = first or norm == "none"
        self.conv = nn.Conv2d(inputs, outputs, 5, 2, 2, bias=plain)
        self.norm = None if plain else _norm(norm, outputs, reference)

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        x = self.conv(x)
        return F.leaky_relu(x if self.norm is None else _normalise(self.norm, x, sources), 0.2)


class DCGANGenerator(nn.Module):
    """`[N, Z] -> [N, C, S, S]` in [-1, 1] (tanh).

    The first map has `base * 2 ** (stages - 1)` channels and halves them at each doubling: base 128, 4 stages,
    size 64 is the paper's 1024-512-256-128-C.
    """

    def __init__(
        self,
        *,
        latent: int,
        channels: int,
        size: int,
        base: int,
        stages: int | None = None,
        norm: str = "split",
        reference: int = 0,
    ) -> None:
        super().__init__()
        stages = stages_for(size, stages)
        self.latent, self.reference = latent, reference if norm == "virtual" else 0
        self.first = (base * 2 ** (stages - 1), size // 2**stages)
        self.project = nn.Linear(latent, self.first[0] * self.first[1] ** 2)
        self.norm = _norm(norm, self.first[0], reference)
        widths = [base * 2**i for i in reversed(range(stages))] + [channels]
        self.blocks = nn.ModuleList(
            UpBlock(inputs=a, outputs=b, norm=norm, reference=reference, last=i == stages - 1)
            for i, (a, b) in enumerate(itertools.pairwise(widths))
        )
        small_normal_(self)

    def start(self, z: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """The first map `[N, width, S', S']` from `z [N, Z]`."""
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise ShapeError(f"z must be [batch, {self.latent}], got {tuple(z.shape)}")
        width, edge = self.first
        return F.relu(_normalise(self.norm, self.project(z).unflatten(1, (width, edge, edge)), sources))

    def resume(self, x: Tensor, block: int, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """The picture from the map that enters block number `block`."""
        for up in list(self.blocks)[block:]:
            x = up(x, sources)
        return torch.tanh(x)

    def forward(self, z: Tensor, reference: Tensor | None = None, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """With virtual batch norm, `reference [R, Z]` is the fixed batch of latents that is normalised by.

        `sources` names the equal runs that `z` consists of (drawn, encoded ...): each is normalised for itself.
        """
        if self.reference:
            if reference is None:
                raise ShapeError("a generator with virtual batch norm needs its reference latents")
            z = torch.cat((reference, z))
        return self.resume(self.start(z, sources), 0, sources)[self.reference :]


class DCGANDiscriminator(nn.Module):
    """`[N, C, S, S]` in [-1, 1] -> `[N, outputs]` logits; `head` may replace the last linear map (minibatch layer
    ...).

    `features(x)` is the last map, flattened; `maps(x)` all of them; `pyramid(x)` the paper's representation
    (section 5.1).
    """

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        base: int,
        outputs: int = 1,
        stages: int | None = None,
        norm: str = "split",
        reference: int = 0,
        head: nn.Sequential | None = None,
    ) -> None:
        super().__init__()
        stages = stages_for(size, stages)
        self.shape, self.reference = (channels, size, size), reference if norm == "virtual" else 0
        widths = [channels] + [base * 2**i for i in range(stages)]
        self.blocks = nn.ModuleList(
            DownBlock(inputs=a, outputs=b, norm=norm, reference=reference, first=i == 0)
            for i, (a, b) in enumerate(itertools.pairwise(widths))
        )
        self.width = widths[-1] * (size // 2**stages) ** 2
        self.head = head if head is not None else nn.Sequential(nn.Linear(self.width, outputs))
        small_normal_(self)

    def maps(self, x: Tensor, sources: tuple[int, ...] = (REAL,), reference: Tensor | None = None) -> Sequence[Tensor]:
        """Every block's output, first to last; `reference [R, C, S, S]` is needed with virtual batch norm."""
        if tuple(x.shape[1:]) != self.shape:
            raise ShapeError(f"images must be [batch, {', '.join(map(str, self.shape))}], got {tuple(x.shape)}")
        if self.reference:
            if reference is None:
                raise ShapeError("a discriminator with virtual batch norm needs its reference images")
            x = torch.cat((reference, x))
        out = []
        for block in self.blocks:
            x = block(x, sources)
            out.append(x[self.reference :])
        return out

    def features(self, x: Tensor, sources: tuple[int, ...] = (REAL,), reference: Tensor | None = None) -> Tensor:
        """What the head reads: `[N, width]`."""
        return self.maps(x, sources, reference)[-1].flatten(1)

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,), reference: Tensor | None = None) -> Tensor:
        """Logits; a batch of several sources in equal runs is classified run by run, so that no layer mixes them."""
        features = self.features(x, sources, reference)
        return torch.cat([self.head(run) for run in features.chunk(len(sources))])

    def pyramid(self, x: Tensor, grid: int = 4, reference: Tensor | None = None) -> Tensor:
        """All maps max-pooled to `grid x grid`, flattened and concatenated: `[N, F]`."""
        maps = self.maps(x, reference=reference)
        return torch.cat([F.adaptive_max_pool2d(m, min(grid, m.shape[-1])).flatten(1) for m in maps], dim=1)

    def initialise_head(self, x: Tensor, reference: Tensor | None = None) -> None:
        """Let data-dependent layers of the head set themselves by one batch of images."""
        with torch.no_grad():
            initialise_from_data(self.head, self.features(x, reference=reference))
