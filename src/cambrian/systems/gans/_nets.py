"""The nets and the model that systems of this family build on: one call for points, small pictures and large ones.

Images are in [-1, 1]. `connected` nets take samples of any shape, `dcgan` square images.
Shapes: B batch, Z latent, C H W an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import ConnectedNet, DCGANDiscriminator, DCGANGenerator
from cambrian.nn.hub import Pretrained

ARCHITECTURES = ("connected", "dcgan")
PRIORS = ("normal", "uniform")
POINT_SCALE = 0.25  # points of the embedded mixtures lie within 6 of the origin


def generator_for(
    shape: Sequence[int], *, arch: str, latent: int, hidden: Sequence[int], base: int, norm: str = "split"
) -> nn.Module:
    """`[B, Z] -> [B, *shape]`: images in [-1, 1] (tanh), points unbounded and without batch norm."""
    if _convolutional(shape, arch):
        return DCGANGenerator(latent=latent, channels=shape[0], size=shape[1], base=base, norm=norm)
    points = len(shape) == 1
    made = "none" if points else "tanh"
    norm = "none" if points else norm
    return ConnectedNet(inputs=(latent,), outputs=shape, hidden=hidden, norm=norm, out=made)


def discriminator_for(
    shape: Sequence[int],
    *,
    arch: str,
    hidden: Sequence[int],
    base: int,
    outputs: int = 1,
    norm: str = "split",
    dropout: float = 0.0,
) -> nn.Module:
    """`[B, *shape] -> [B, outputs]` with `features(x, sources)`: a critic, an encoder (`outputs=Z`) or a classifier."""
    if _convolutional(shape, arch):
        return DCGANDiscriminator(channels=shape[0], size=shape[1], base=base, outputs=outputs, norm=norm)
    scale = POINT_SCALE if len(shape) == 1 else 1.0
    norm = "none" if len(shape) == 1 else norm
    return ConnectedNet(
        inputs=shape, outputs=(outputs,), hidden=hidden, act="lrelu", norm=norm, norm_first=False, dropout=dropout, scale=scale
    )  # fmt: skip


def _convolutional(shape: Sequence[int], arch: str) -> bool:
    if arch not in ARCHITECTURES:
        raise ConfigError(f"arch {arch!r} is unknown; use one of {', '.join(ARCHITECTURES)}")
    if len(shape) == 1 or arch == "connected":
        return False
    if shape[1] != shape[2]:
        raise ShapeError(f"images must be square, got {shape[1]}x{shape[2]}; set size= to cut them")
    return True


class GenerativeModel(Pretrained, nn.Module):
    """Base of the family's models: a `generator` from a known prior to samples of `shape`.

    `prior` is `normal`, N(0, I), or `uniform`, U(-1, 1)^Z. A subclass makes `self.generator` and its other nets.
    """

    generator: nn.Module

    def __init__(self, *, shape: Sequence[int], latent: int, prior: str = "normal") -> None:
        super().__init__()
        if prior not in PRIORS:
            raise ConfigError(f"prior {prior!r} is unknown; use one of {', '.join(PRIORS)}")
        self.shape, self.latent, self.prior_kind = tuple(shape), latent, prior

    @property
    def images(self) -> bool:
        """Whether samples are images; else they are points."""
        return len(self.shape) == 3

    def prior(self, count: int, generator: torch.Generator) -> Tensor:
        """Latents `[count, Z]`, on the model's device."""
        if self.prior_kind == "normal":
            z = torch.randn(count, self.latent, generator=generator)
        else:
            z = 2.0 * torch.rand(count, self.latent, generator=generator) - 1.0
        return z.to(next(self.parameters()).device)

    def generate(self, z: Tensor) -> Tensor:
        """`[B, Z] -> [B, *shape]` in the net's own range."""
        return self.generator(z)

    def show(self, x: Tensor) -> Tensor:
        """Samples of the net's range as people see them: images in [0, 1], points as they are."""
        return x.add(1.0).div(2.0) if self.images else x

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0) -> Tensor:
        """`n` samples `[n, *shape]`; images in [0, 1]."""
        z = self.prior(n, torch.Generator().manual_seed(seed))
        return self.show(torch.cat([self.generate(part) for part in z.split(256)]))

    def check(self, x: Tensor) -> Tensor:
        """`x` itself; raises `ShapeError` unless it is `[B, *shape]`, floating point, and images lie in [-1, 1]."""
        if tuple(x.shape[1:]) != self.shape or not x.is_floating_point() or not len(x):
            shape = ", ".join(map(str, self.shape))
            raise ShapeError(f"samples must be floats [batch >= 1, {shape}], got {x.dtype} {tuple(x.shape)}")
        if self.images and (float(x.min()) < -1.001 or float(x.max()) > 1.001):
            low, high = float(x.min()), float(x.max())
            raise ShapeError(f"images must lie in [-1, 1], these in [{low:.2f}, {high:.2f}]; rescale them")
        return x
