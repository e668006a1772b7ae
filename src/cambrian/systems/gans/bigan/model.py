"""`BiGAN`: a generator, a deterministic encoder and a discriminator, as one model to save, load and use."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import (
    ConnectedNet,
    DCGANDiscriminator,
    Flat,
    JointDiscriminator,
    SplitBatchNorm,
    Tower,
)
from cambrian.systems.gans._joint import InferenceModel
from cambrian.systems.gans._nets import POINT_SCALE, discriminator_for, generator_for

METHODS = ("bigan", "discriminator", "lr", "jlr", "ae-l2", "ae-l1")
ENCODERS = ("same", "alexnet")


class AlexEncoder(nn.Module):
    """Five convolutions and two hidden layers: `[B, C, S, S] -> [B, outputs]`; base 96 is AlexNet's widths.

    The first convolution has stride 4 on images of 64 pixels and more, else 2; max pooling after 1, 2 and 5.
    """

    def __init__(self, *, channels: int, size: int, base: int, outputs: int) -> None:
        super().__init__()
        widths = [channels, base, base * 8 // 3, 4 * base, 4 * base, base * 8 // 3]
        plan = [(11, 4 if size >= 64 else 2), (5, 1), (3, 1), (3, 1), (3, 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel, stride, kernel // 2)
            for (a, b), (kernel, stride) in zip(itertools.pairwise(widths), plan, strict=True)
        )
        self.norms = nn.ModuleList(SplitBatchNorm(features=width) for width in widths[1:])
        with torch.no_grad():
            wide = self._conv(torch.zeros(2, channels, size, size))[-1].flatten(1).shape[1]
        hidden = base * 128 // 3
        self.fc6, self.fc7, self.head = nn.Linear(wide, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)
        self.fc_norms = nn.ModuleList(SplitBatchNorm(features=hidden) for _ in range(2))

    def _conv(self, x: Tensor) -> list[Tensor]:
        out = []
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.leaky_relu(norm(conv(x)), 0.2)
            x = F.max_pool2d(x, 3, 2, 1) if i in (0, 1, 4) else x
            out.append(x)
        return out

    def maps(self, x: Tensor) -> list[Tensor]:
        """conv1 to conv5 (after pooling), fc6 and fc7, after the activation."""
        out = self._conv(x)
        h = out[-1].flatten(1)
        for layer, norm in zip((self.fc6, self.fc7), self.fc_norms, strict=True):
            h = F.leaky_relu(norm(layer(h)), 0.2)
            out.append(h)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x)[-1])


class PriorScale(nn.Module):
    """Normalises codes `[B, Z]`, feature by feature, to mean 0 and the prior's deviation (batch norm without weights)."""

    def __init__(self, *, latent: int, deviation: float) -> None:
        super().__init__()
        self.norm, self.deviation = nn.BatchNorm1d(latent, affine=False), deviation

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(z) * self.deviation


class BiGAN(InferenceModel):
    """Features of samples of `shape` without labels; `method` is the game, or one of the paper's comparisons.

    With `zoom` the generator makes images of 1/zoom of the edge, which is also what the discriminator sees of real
    ones; the encoder sees all of them.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        method: str = "bigan",
        arch: str = "connected",
        encoder: str = "same",
        latent: int = 50,
        hidden: Sequence[int] = (256, 256),
        base: int = 32,
        zoom: int = 1,
        prior: str = "uniform",
        norm_d: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(shape=shape, latent=latent, prior=prior)
        if method not in METHODS or encoder not in ENCODERS:
            raise ConfigError(f"method is one of {METHODS} and encoder of {ENCODERS}, not {method!r}, {encoder!r}")
        self.method, self.zoom = method, zoom
        self.small = self._small()
        nets = {"arch": "connected" if not self.images else arch, "hidden": hidden, "base": base}
        if encoder == "alexnet" and self.images:
            sizes = {"channels": shape[0], "size": shape[1], "base": base}
            self.encoder: nn.Module = AlexEncoder(**sizes, outputs=latent)
        else:
            self.encoder = discriminator_for(self.shape, **nets, outputs=latent)
        self.rescale = PriorScale(latent=latent, deviation=3**-0.5 if prior == "uniform" else 1.0)
        self.generator = generator_for(self.small, **nets, latent=latent)
        norm = "split" if norm_d and self.images else "none"
        if method == "bigan":
            self.discriminator = joint_discriminator(self.small, latent, **nets, norm=norm, dropout=dropout)
        elif not self.autoencodes:
            self.discriminator = discriminator_for(self.small, **nets, norm=norm, dropout=dropout)

    def _small(self) -> tuple[int, ...]:
        if self.zoom == 1:
            return self.shape
        if not self.images or self.shape[1] % self.zoom or self.shape[2] % self.zoom:
            raise ShapeError(f"samples of {self.shape} cannot be made {self.zoom} times smaller; set zoom=1")
        return (self.shape[0], self.shape[1] // self.zoom, self.shape[2] // self.zoom)

    @property
    def autoencodes(self) -> bool:
        """Whether the method is an autoencoder's, without discriminator."""
        return self.method.startswith("ae")

    # -- the game -----------------------------------------------------------------------------------------------------

    def code(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`E(x)` `[B, Z]`, differentiable."""
        return self.rescale(self.encoder(x))

    def seen(self, x: Tensor) -> Tensor:
        """`[B, *shape]`, or what `zoom` leaves of it."""
        return x if self.zoom == 1 or tuple(x.shape[1:]) == self.small else F.avg_pool2d(x, self.zoom)

    def enlarged(self, x: Tensor) -> Tensor:
        """Generated samples at the encoder's size."""
        if self.zoom == 1:
            return x
        return F.interpolate(x, scale_factor=self.zoom, mode="bilinear", align_corners=False)

    def show(self, x: Tensor) -> Tensor:
        """Images in [0, 1], generated ones at the size of the data; points as they are."""
        return super().show(self.enlarged(x) if tuple(x.shape[1:]) == self.small else x)

    # -- the model in use: evaluation mode is the caller's ------------------------------------------------------------

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Codes `[B, Z]`, on the scale of the prior."""
        return self.code(self.check(x))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Samples `[B, *shape]` of codes as people see them: images in [0, 1]."""
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise ShapeError(f"codes must be [batch, {self.latent}], got {tuple(z.shape)}")
        return self.show(self.generate(z))

    @torch.no_grad()
    def features(self, x: Tensor, layer: str = "penultimate") -> Tensor:
        """`[B, F]` of one layer after its activation: `layer1` ... `layerN`, `penultimate` (the last) or `code`.

        With `method=discriminator` the layers are those of D.
        """
        self.check(x)
        if layer == "code":
            return self.code(x)
        maps = self._maps(x)
        if layer == "penultimate":
            return maps[-1].flatten(1)
        names = [f"layer{i + 1}" for i in range(len(maps))]
        if layer not in names:
            raise ConfigError(f"layer {layer!r} is unknown; use code, penultimate, {', '.join(names)}")
        return maps[names.index(layer)].flatten(1)

    def _maps(self, x: Tensor) -> Sequence[Tensor]:
        net, seen = (self.discriminator, self.seen(x)) if self.method == "discriminator" else (self.encoder, x)
        return net.maps(seen)  # type: ignore[operator]

    def layers(self) -> list[str]:
        """Names that `features` takes, in the order of the net."""
        x = torch.zeros(2, *self.shape)
        with torch.no_grad():
            count = len(self._maps(x.to(next(self.parameters()).device)))
        return [f"layer{i + 1}" for i in range(count)] + ["code"]


def joint_discriminator(
    shape: Sequence[int], latent: int, *, arch: str, hidden: Sequence[int], base: int, norm: str, dropout: float
) -> JointDiscriminator:
    """LeakyReLU layers over pairs `(x [B, *shape], z [B, Z])`; batch norm, source by source, on all but the first."""
    convolutional = len(shape) == 3 and arch == "dcgan"
    if convolutional:
        x_tower: nn.Module = DCGANDiscriminator(
            channels=shape[0], size=shape[1], base=base, norm=norm, head=nn.Sequential()
        )
        z_tower: nn.Module = Tower(nn.Linear(latent, hidden[0]), nn.LeakyReLU(0.2))
        width = int(x_tower.width) + hidden[0]
    else:
        x_tower, z_tower = Flat(scale=POINT_SCALE if len(shape) == 1 else 1.0), Flat()
        width = torch.Size(shape).numel() + latent
    joint = ConnectedNet(
        inputs=(width,), outputs=(1,), hidden=hidden, act="lrelu", norm=norm, norm_first=convolutional, dropout=dropout
    )
    return JointDiscriminator(x_tower=x_tower, z_tower=z_tower, joint=joint)
