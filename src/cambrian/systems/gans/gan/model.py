"""`GAN`: a generator and a discriminator as one model to save, load and use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import REAL, DCGANDiscriminator, initialise_from_data
from cambrian.nn.hub import Pretrained
from cambrian.systems.gans.gan._nets import SIGNED, Critic, connected, convolutional

ARCHITECTURES = ("points", "maxout", "mlp", "dcgan", "cifar")


def check_samples(x: Tensor, shape: tuple[int, ...], arch: str) -> None:
    """Raise `ShapeError` unless `x` is `[B, *shape]`, floating point and in the range of pixels that `arch` makes."""
    if tuple(x.shape[1:]) != shape or not x.is_floating_point():
        raise ShapeError(f"samples must be floats [batch, {', '.join(map(str, shape))}], got {tuple(x.shape)}")
    if arch == "points" or not len(x):
        return
    signed, low, high = arch in SIGNED, float(x.min()), float(x.max())
    span, least = ("[-1, 1] (tanh)", -1.001) if signed else ("[0, 1] (sigmoid)", -0.001)
    # a whole batch without one dark pixel is a batch in [0, 1] that nobody converted
    if low < least or high > 1.001 or (signed and low >= 0.0 < high):
        raise ShapeError(f"{arch} works on pixels in {span} but these lie in [{low:.2f}, {high:.2f}]; rescale them")


class GAN(Pretrained, nn.Module):
    """A generator and a discriminator for samples of `shape` (`(2,)` for points, `(C, H, W)` for images).

    Images are in [0, 1] for `maxout` and `mlp` (sigmoid out) and in [-1, 1] for `dcgan` and `cifar` (tanh out).
    `outputs` is 1 (real or fake) or K class logits. Latents are uniform in [-1, 1] for `dcgan`, in [0, 1] for
    `mlp` and `cifar`, in [-sqrt 3, sqrt 3] for `maxout`, standard normal for points.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        arch: str = "dcgan",
        outputs: int = 1,
        latent: int = 100,
        hidden: Sequence[int] = (500, 250, 250),
        hidden_g: Sequence[int] = (500, 500),
        base: int = 32,
        noise_in: float = 0.3,
        noise: float = 0.5,
        kernels: int = 0,
        dims: int = 5,
        reference: int = 0,
    ) -> None:
        super().__init__()
        if arch not in ARCHITECTURES:
            raise ConfigError(f"arch {arch!r} is unknown; use one of {', '.join(ARCHITECTURES)}")
        self.shape, self.arch, self.latent = tuple(shape), arch, latent
        self.outputs, self.reference, self.signed = outputs, reference, arch in SIGNED
        common = {"latent": latent, "outputs": outputs, "kernels": kernels, "dims": dims}
        if self.signed:
            pair = convolutional(arch, self.shape, **common, base=base, reference=reference)
        else:
            sizes = {"hidden": hidden, "hidden_g": hidden_g, "noise": (noise_in, noise)}
            pair = connected(arch, self.shape, **common, **sizes)
        self.generator, self.discriminator = pair
        if reference:
            self.register_buffer("reference_x", torch.zeros(reference, *self.shape))
            self.register_buffer("reference_z", self.prior(reference, torch.Generator().manual_seed(0)))

    def prior(self, count: int, generator: torch.Generator) -> Tensor:
        """Latents `[count, Z]` of this architecture's prior."""
        if self.arch == "points":
            return torch.randn(count, self.latent, generator=generator)
        low, high = {"dcgan": (-1.0, 1.0), "maxout": (-(3**0.5), 3**0.5)}.get(self.arch, (0.0, 1.0))
        return low + (high - low) * torch.rand(count, self.latent, generator=generator)

    def generate(self, z: Tensor) -> Tensor:
        """`[B, Z] -> [B, *shape]`."""
        return self.generator(z, self.reference_z) if self.reference else self.generator(z)

    def discriminate(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """Logits `[B, outputs]`."""
        return self.discriminator(x, sources, self.reference_x) if self.reference else self.discriminator(x, sources)

    def deep_features(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """What D's last layer reads, `[B, F]`: what feature matching matches."""
        if self.reference:
            return self.discriminator.features(x, sources, self.reference_x)
        return self.discriminator.features(x, sources)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Data-dependent initialisation, and the reference batch of virtual batch norm, from one batch of data."""
        self.check(x)
        if self.reference:
            self.reference_x.copy_(x[torch.arange(self.reference) % len(x)])
        if isinstance(self.discriminator, Critic):
            x = initialise_from_data(self.discriminator.body, x)
            initialise_from_data(self.discriminator.head, x)
        else:
            initialise_from_data(self.discriminator.head, self.deep_features(x))

    # -- the model in use: evaluation mode is the caller's ----------------------------------------------------------

    def check(self, x: Tensor) -> None:
        """Raise `ShapeError` unless `x` is `[B, *shape]`, floating point and in the range that this architecture
        makes.
        """
        check_samples(x, self.shape, self.arch)

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0) -> Tensor:
        """`n` samples `[n, *shape]`; images in [0, 1] whatever the architecture."""
        z = self.prior(n, torch.Generator().manual_seed(seed)).to(next(self.parameters()).device)
        return self.show(torch.cat([self.generate(part) for part in z.split(256)]))

    def show(self, x: Tensor) -> Tensor:
        """The net's own range as [0, 1] for images; points as they are."""
        return x.add(1).div(2) if self.signed else x

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """`[B, F]`: all convolutional maps pooled to 4x4 (dcgan, 1511.06434 section 5.1), else the last hidden
        layer.
        """
        self.check(x)
        if isinstance(self.discriminator, DCGANDiscriminator):
            return self.discriminator.pyramid(x, reference=self.reference_x if self.reference else None)
        return self.deep_features(x)

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """Class probabilities `[B, K]` of a semi-supervised discriminator."""
        if self.outputs < 2:
            raise ConfigError("this discriminator has no classes; train with labels_per_class > 0")
        self.check(x)
        return F.softmax(self.discriminate(x), dim=1)

    @torch.no_grad()
    def arithmetic(self, plus: Tensor, minus: Tensor, exemplars: Tensor, *, generator: torch.Generator) -> Tensor:
        """`mean(plus) - mean(minus) + mean(exemplars)` in latent space (1511.06434, section 6.3.2): 9 samples for
        a 3x3 grid, the result in the middle, its 8 neighbours with U(-0.25, 0.25) noise on the latent. Arguments
        are `[E, Z]`."""
        centre = plus.mean(0) - minus.mean(0) + exemplars.mean(0)
        noise = 0.25 * (2 * torch.rand(9, self.latent, generator=generator) - 1).to(centre)
        noise[4] = 0
        return self.show(self.generate(centre + noise))
