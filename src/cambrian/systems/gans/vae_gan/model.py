"""Encoder, decoder and discriminator, the terms of their three losses from one shared pass, and editing by vectors.

Shapes: B batch, Z latent, C H W an image, T attributes, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.nn.adversarial import FAKE, REAL, generator_loss
from cambrian.nn.latent import DiagGaussian, kl_diag
from cambrian.systems.gans._nets import GenerativeModel, discriminator_for, generator_for

VARIANTS = ("vae", "gan", "vae-dis", "vae-gan")
LOGVAR = 10.0  # bound of log variances: a far-off encoder must not overflow exp


def gaussian_error(x: Tensor, other: Tensor, sigma: float = 1.0) -> Tensor:
    """`1/2 |x - other|^2 / sigma^2` of features or pixels `[B, ...]`, summed over all but the batch, which is averaged.

    It is `-log N(x | other, sigma^2 I)` without its constant.
    """
    return 0.5 / sigma**2 * (x - other).flatten(1).square().sum(1).mean()


@dataclass(frozen=True)
class Terms:
    """What the three losses are made of, all scalars on one graph; None where a variant has no such term.

    `real` and `fake` are the discriminator's costs on data and on samples, `fool` the decoder's.
    """

    prior: Tensor | None = None
    error: Tensor | None = None
    real: Tensor | None = None
    fake: Tensor | None = None
    fool: Tensor | None = None

    def encoder(self) -> Tensor:
        """`L_prior + L_llike`."""
        return _present(self.prior) + _present(self.error)

    def decoder(self, gamma: float, gan_weight: float) -> Tensor:
        """`gamma L_llike - L_GAN`, the second weighed by `gan_weight`."""
        parts = [] if self.error is None else [gamma * self.error]
        return sum(parts if self.fool is None else [*parts, gan_weight * self.fool], torch.zeros(()))

    def discriminator(self, real_weight: float) -> Tensor:
        """`-L_GAN`, real and generated halves weighed."""
        return 2.0 * (real_weight * _present(self.real) + (1.0 - real_weight) * _present(self.fake))


def _present(term: Tensor | None) -> Tensor:
    if term is None:
        raise CapabilityError("this variant has no such loss; use variant=vae-gan")
    return term


def throttle(real: float, fake: float, *, equilibrium: float, margin: float) -> tuple[bool, bool]:
    """Whether (decoder, discriminator) may update, from the discriminator's mean costs on data and on samples.

    The released rule: D rests while either cost is below `equilibrium - margin`, the decoder while either is above
    `equilibrium + margin`, and when both would rest both play.
    """
    discriminator = min(real, fake) >= equilibrium - margin
    decoder = max(real, fake) <= equilibrium + margin
    return (decoder, discriminator) if decoder or discriminator else (True, True)


class _Solved(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx, loss: Tensor, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, *slopes: Tensor):
        return None, None, *(slopes[0] * gradient for gradient in ctx.gradients)


def solved(loss: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """`loss` as a scalar whose backward pass hands `gradients` to `parameters`.

    So players that share a graph can be differentiated together, before any of them moves, and step one by one.
    """
    return _Solved.apply(loss.detach(), tuple(gradients), *parameters)


class VAEGAN(GenerativeModel):
    """`encode`, `decode`, `reconstruct`, `sample`; attribute vectors once `learn_attributes` has seen some pictures.

    With `conditional`, encoder, decoder and discriminator get the T attributes beside their input, and a latent of
    `prior` or `generate` is `[B, Z + T]`. `variant` says which nets there are; `rival` is the generator of the GAN
    whose discriminator `vae-dis` borrows.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        latent: int = 128,
        variant: str = "vae-gan",
        arch: str = "dcgan",
        hidden: Sequence[int] = (256, 256),
        base: int = 32,
        attributes: Sequence[str] = (),
        conditional: bool = False,
    ) -> None:
        super().__init__(shape=shape, latent=latent)
        if variant not in VARIANTS:
            raise ConfigError(f"variant {variant!r} is unknown; use one of {', '.join(VARIANTS)}")
        if conditional and not attributes:
            raise ConfigError("a conditional model needs the names of its attributes")
        self.attributes, self.conditional, self.variant = tuple(attributes), conditional, variant
        extra = len(self.attributes) if conditional else 0
        sizes = {"arch": arch, "hidden": tuple(hidden), "base": base}
        seen = (shape[0] + extra, *shape[1:])
        self.generator = generator_for(shape, latent=latent + extra, **sizes)
        if variant != "gan":
            self.encoder = discriminator_for(seen, outputs=2 * latent, **sizes)
        if variant != "vae":
            self.discriminator = discriminator_for(seen, **sizes)
        if variant == "vae-dis":
            self.rival = generator_for(shape, latent=latent + extra, **sizes)
        self.register_buffer("directions", torch.zeros(len(self.attributes), latent))
        self.register_buffer("rates", torch.full((len(self.attributes),), 0.5))

    def prior(self, count: int, generator: torch.Generator) -> Tensor:
        """Latents `[count, Z]`; with `conditional` `[count, Z + T]`, attributes as frequent as they were learnt."""
        z = super().prior(count, generator)
        if not self.conditional:
            return z
        coins = torch.rand(count, len(self.attributes), generator=generator).to(z.device)
        return torch.cat((z, (coins < self.rates).to(z)), dim=1)

    def encode(self, x: Tensor, traits: Tensor | None = None) -> DiagGaussian:
        """`q(z|x)` of samples `[B, *shape]`: mean and log variance `[B, Z]`, the latter bounded."""
        if self.variant == "gan":
            raise CapabilityError("the variant gan has no encoder; use vae, vae-dis or vae-gan")
        mean, logvar = self.encoder(self._beside(x, traits)).chunk(2, dim=1)
        return DiagGaussian(mean, logvar.clamp(-LOGVAR, LOGVAR))

    def decode(self, z: Tensor, traits: Tensor | None = None) -> Tensor:
        """`[B, Z] -> [B, *shape]` in the net's range."""
        return self.generate(self._joined(z, traits))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, traits: Tensor | None = None) -> Tensor:
        """The decoded posterior mean of `[B, *shape]`."""
        return self.decode(self.encode(self.check(x), traits).mean, traits)

    def judge(self, x: Tensor, sources: tuple[int, ...], traits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The discriminator's logits `[B]` and features `[B, F]` (its deepest map) from one pass."""
        features = self.discriminator.features(self._beside(x, traits), sources)
        return self.discriminator.head(features).flatten(), features

    def _joined(self, z: Tensor, traits: Tensor | None) -> Tensor:
        if not self.conditional:
            return z
        return torch.cat((z, self._traits(traits, len(z))), dim=1)

    def _beside(self, x: Tensor, traits: Tensor | None) -> Tensor:
        """Attributes as constant maps beside the channels, or as numbers beside a point's coordinates."""
        if not self.conditional:
            return x
        known = self._traits(traits, len(x))
        return torch.cat((x, known[:, :, None, None].expand(-1, -1, *x.shape[2:]) if self.images else known), dim=1)

    def _traits(self, traits: Tensor | None, count: int) -> Tensor:
        if traits is None or traits.shape != (count, len(self.attributes)):
            got = None if traits is None else tuple(traits.shape)
            raise ShapeError(f"a conditional model needs attributes [{count}, {len(self.attributes)}], got {got}")
        return traits

    # -- editing ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def learn_attributes(self, x: Tensor, traits: Tensor) -> None:
        """Keep, for each attribute, mean code with it minus mean code without it; `x [N, *shape]`, `traits [N, T]`."""
        if traits.shape != (len(x), len(self.attributes)):
            raise ShapeError(f"attributes must be [{len(x)}, {len(self.attributes)}], got {tuple(traits.shape)}")
        codes = [self.encode(a, b).mean for a, b in zip(x.split(250), traits.split(250), strict=True)]
        self.directions.copy_(mean_difference(torch.cat(codes), traits))
        self.rates.copy_(traits.mean(0))

    def attribute_vector(self, name: str) -> Tensor:
        """The learnt direction `[Z]` of an attribute."""
        if name not in self.attributes:
            known = ", ".join(self.attributes) or "none"
            raise ConfigError(f"attribute {name!r} is unknown; this model has: {known}")
        vector = self.directions[self.attributes.index(name)]
        if not bool(vector.any()):
            raise CapabilityError("the attribute vectors are not learnt yet; train to the end or call learn_attributes")
        return vector

    @torch.no_grad()
    def edit(self, x: Tensor, change: Mapping[str, float]) -> Tensor:
        """`[B, *shape]` reconstructed with attributes moved, as in `{"glasses": +1}`."""
        if self.conditional:
            raise CapabilityError("a conditional model is edited by its condition: decode(z, attributes)")
        z = self.encode(self.check(x)).mean
        for name, amount in change.items():
            z = z + amount * self.attribute_vector(name)
        return self.decode(z)

    # -- one round --------------------------------------------------------------------------------------------------

    def terms(
        self,
        x: Tensor,
        z_p: Tensor,
        generator: torch.Generator,
        *,
        traits: Tensor | None = None,
        pixel: bool = False,
        sigma: float = 1.0,
        joint: bool = False,
        kind: str = "minimax",
    ) -> Terms:
        """All terms of a round on `x [B, *shape]` and prior latents `z_p [B, Z (+ T)]`, from one pass of each net.

        `pixel` measures errors in pixels, `sigma` is their standard deviation; `joint` normalises the discriminator's batch of three sources by common
        statistics, as the authors do, else each source by its own; `kind` is the decoder's loss.
        """
        q = self.encode(x, traits)
        z = self._joined(q.sample(generator), traits)
        prior = kl_diag(q).sum(1).mean()
        if self.variant == "vae":
            return Terms(prior, gaussian_error(x, self.generate(z), sigma))
        if self.variant == "vae-dis":  # the discriminator is another GAN's: it takes no part in the game
            again = self.generate(z)
            _, features = self.judge(torch.cat((x, again)), _sources(2, joint), _twice(traits, traits))
            pair = (x, again) if pixel else features.chunk(2)
            return Terms(prior, gaussian_error(*pair, sigma))
        made = self.generate(torch.cat((z, z_p)))  # reconstructions, then samples
        told = _twice(traits, traits, None if traits is None else z_p[:, self.latent :])
        logits, features = self.judge(torch.cat((x, made)), _sources(3, joint), told)
        seen, again, _ = features.chunk(3)
        pair = (x, made[: len(x)]) if pixel else (seen, again)
        return Terms(prior, gaussian_error(*pair, sigma), *_costs(logits, len(x), kind))

    def game(
        self,
        x: Tensor,
        z_p: Tensor,
        *,
        traits: Tensor | None = None,
        joint: bool = False,
        kind: str = "minimax",
    ) -> Terms:
        """The terms of a game without an encoder: of the variant gan, or of the GAN that vae-dis trains first."""
        made = self.rival(z_p) if self.variant == "vae-dis" else self.generate(z_p)
        told = _twice(traits, None if traits is None else z_p[:, self.latent :])
        logits, _ = self.judge(torch.cat((x, made)), _sources(2, joint), told)
        return Terms(None, None, *_costs(logits, len(x), kind))


def _costs(logits: Tensor, count: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    real, fake = logits[:count], logits[count:]
    return F.softplus(-real).mean(), F.softplus(fake).mean(), generator_loss(fake, kind)


def _sources(count: int, joint: bool) -> tuple[int, ...]:
    return (REAL,) if joint else (REAL, *[FAKE] * (count - 1))


def _twice(*traits: Tensor | None) -> Tensor | None:
    known = [one for one in traits if one is not None]
    return torch.cat(known) if known else None


def mean_difference(codes: Tensor, traits: Tensor) -> Tensor:
    """Mean of `codes [N, Z]` with each attribute of `traits [N, T]` minus the mean without: `[T, Z]`."""
    has, lacks = traits.to(codes).T, 1.0 - traits.to(codes).T
    return has @ codes / has.sum(1, keepdim=True).clamp_min(1) - lacks @ codes / lacks.sum(1, keepdim=True).clamp_min(1)
