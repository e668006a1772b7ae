"""`ALI`: a decoder, a stochastic encoder and a discriminator of pairs, as one model to save, load and use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import source_logit
from cambrian.nn.latent import DiagGaussian
from cambrian.systems.gans._joint import InferenceModel
from cambrian.systems.gans.ali import _nets

ARCHITECTURES = ("connected", "dcgan", "cifar")
LOG_SIGMA = (-5.0, 2.0)  # unclamped, one outlying row would give draws without bound
FEATURE_LAYERS = 3  # of the encoder, beside its output


class ALI(InferenceModel):
    """A generative model of samples of `shape` that also infers: `q(z|x) = N(mu(x), diag sigma(x)^2)`.

    `classes` > 0 gives the discriminator a class for each and one for decoder pairs; `conditions` > 0 gives encoder,
    decoder and discriminator a vector of so many attributes beside their input, which stands behind z as columns of
    the latent: `[z, c]`. Samples then draw c as one of the unit vectors.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        arch: str = "connected",
        latent: int = 64,
        hidden: Sequence[int] = (256, 256),
        base: int = 32,
        stochastic: bool = True,
        classes: int = 0,
        conditions: int = 0,
        dropout_in: float = 0.2,
        dropout: float = 0.5,
        init: float = 0.0,
    ) -> None:
        super().__init__(shape=shape, latent=latent)
        if arch not in ARCHITECTURES:
            raise ConfigError(f"arch {arch!r} is unknown; use one of {', '.join(ARCHITECTURES)}")
        self.stochastic, self.classes, self.conditions = stochastic, classes, conditions
        nets = {"arch": arch, "hidden": hidden, "base": base}
        self.encoder, self.generator = _nets.encoder_and_decoder(
            self.shape, latent=latent, conditions=conditions, outputs=latent * (1 + stochastic), **nets
        )
        self.discriminator = _nets.discriminator(
            self.shape, latent + conditions, dropout_in=dropout_in, dropout=dropout, outputs=max(classes, 1), **nets
        )
        if init:
            _nets.small_weights_(self, init)

    # -- the game -----------------------------------------------------------------------------------------------------

    def prior(self, count: int, generator: torch.Generator) -> Tensor:
        """Latents `[count, Z]`; with conditions `[count, Z + A]`, a random unit vector behind each."""
        z = super().prior(count, generator)
        if not self.conditions:
            return z
        pick = torch.randint(self.conditions, (count,), generator=generator)
        return torch.cat((z, F.one_hot(pick, self.conditions).to(z)), dim=1)

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> DiagGaussian:
        """`q(z|x)`; without `stochastic`, sigma is 1 and codes are means."""
        out = self.encoder(self._told(x, condition))
        mean, log_sigma = out.chunk(2, 1) if self.stochastic else (out, torch.zeros_like(out))
        return DiagGaussian(mean, 2.0 * log_sigma.clamp(*LOG_SIGMA))

    def _told(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """What the encoder reads: `x` with one constant plane (of points: one number) for each attribute."""
        if not self.conditions:
            return x
        assert condition is not None
        planes = condition.view(*condition.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
        return torch.cat((x, planes.to(x)), dim=1)

    def code(self, x: Tensor, generator: torch.Generator | None = None, condition: Tensor | None = None) -> Tensor:
        """Draws `[B, Z]` of `q(z|x)`, differentiable (the mean without `stochastic`), conditions behind them."""
        posterior = self.posterior(x, condition)
        z = posterior.sample(generator) if self.stochastic else posterior.mean
        return self.beside(z, condition)

    def beside(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """`z [B, Z]` with its conditions `[B, A]` as further columns."""
        if not self.conditions:
            return z
        assert condition is not None
        return torch.cat((z, condition.to(z)), dim=1)

    @torch.no_grad()
    def initialise(self, mean: Tensor) -> None:
        """Start the decoder of the CIFAR table at the mean picture `[C, H, W]` in [0, 1]."""
        if isinstance(self.generator, _nets.ConvolutionalDecoder):
            self.generator.bias.set_to(mean)

    # -- the model in use: evaluation mode is the caller's ------------------------------------------------------------

    @torch.no_grad()
    def encode(self, x: Tensor, sample: bool = True, condition: Tensor | None = None, seed: int = 0) -> Tensor:
        """`[B, Z]`: a draw from `q(z|x)`, or its mean."""
        posterior = self.posterior(self.check(x), self.check_condition(condition, len(x)))
        if not (sample and self.stochastic):
            return posterior.mean
        return posterior.sample(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Samples `[B, *shape]` of codes `[B, Z]` as people see them: images in [0, 1]."""
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise ShapeError(f"codes must be [batch, {self.latent}], got {tuple(z.shape)}")
        return self.show(self.generate(self.beside(z, self.check_condition(condition, len(z)))))

    def reconstruct(self, x: Tensor, sample: bool = True, condition: Tensor | None = None, seed: int = 0) -> Tensor:
        """`[B, *shape]` as `decode` gives them."""
        return self.decode(self.encode(x, sample, condition, seed), condition)

    def interpolate(self, first: Tensor, second: Tensor, steps: int = 9, condition: Tensor | None = None) -> Tensor:
        """Ways between samples `[B, *shape]` each, straight between the means of their codes: `[B, steps, *shape]`."""
        ends = [self.encode(x, sample=False, condition=condition) for x in (first, second)]
        if len(ends[0]) != len(ends[1]) or steps < 2:
            raise ShapeError(f"a way needs two ends and two steps, got {len(ends[0])}, {len(ends[1])} and {steps}")
        way = torch.linspace(0, 1, steps, device=ends[0].device)[None, :, None]
        z = torch.lerp(ends[0][:, None], ends[1][:, None], way).flatten(0, 1)
        told = None if condition is None else condition.repeat_interleave(steps, dim=0)
        return self.decode(z, told).unflatten(0, (len(first), steps))

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """Class probabilities `[B, K]` by the discriminator, of pairs of `x` and the mean of its code."""
        if not self.classes:
            raise ConfigError("this discriminator has no classes; train with labels_per_class > 0")
        mean = self.posterior(self.check(x)).mean
        return self.discriminator(x, mean).softmax(1)

    @torch.no_grad()
    def features(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """`[B, F]`: the encoder's last three hidden layers and the mean of the code, side by side (section 4.3)."""
        told = self.check_condition(condition, len(self.check(x)))
        mean = self.posterior(x, told).mean
        maps = list(self.encoder.maps(self._told(x, told)))[-FEATURE_LAYERS:]  # type: ignore[operator]
        return torch.cat([m.flatten(1) for m in maps] + [mean], dim=1)

    def check_condition(self, condition: Tensor | None, count: int) -> Tensor | None:
        """`condition` itself; raises `ShapeError` unless it is `[count, A]` where the model has conditions."""
        if not self.conditions:
            return None
        if condition is None or tuple(condition.shape) != (count, self.conditions):
            found = None if condition is None else tuple(condition.shape)
            raise ShapeError(f"conditions must be [{count}, {self.conditions}], got {found}")
        return condition

    def source(self, logits: Tensor) -> Tensor:
        """Real-or-fake logits `[B]` of the discriminator's output: with K classes, any of K against the one more."""
        return source_logit(logits) if self.classes else logits.flatten()
