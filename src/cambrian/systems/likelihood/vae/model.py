"""The variational autoencoder: one or two stochastic layers, conditions, flows, and the bounds on log p(x).

Shapes: K samples, B batch, N rows, C H W a picture, Z latent features (Z2 of a second layer), Y classes, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.nn.hub import Pretrained
from cambrian.nn.latent import DiagGaussian, Funnel, StreamingLogMean, flow_for, kl_diag, log_mean_exp, slerp
from cambrian.systems.likelihood.vae._nets import decoder_for, encoder_for, glorot, layers
from cambrian.systems.likelihood.vae._pixels import Pixels

LOGVAR = 12.0  # bound of the posterior's log variances: a far-off encoder must not overflow exp
CHUNK = 1 << 17  # numbers of the decoder's output that evaluation holds at once: a chunk fits the cache


@dataclass(frozen=True)
class Bound:
    """The evidence lower bound split: `reconstruction` E log p(x|z) [B] and `kl` [B, Z (+ Z2)] a feature, in nats.

    With a flow the divergence is one number, [B, 1].
    """

    reconstruction: Tensor
    kl: Tensor

    @property
    def value(self) -> Tensor:
        """The bound on log p(x) [B]."""
        return self.reconstruction - self.kl.sum(1)


@dataclass(frozen=True)
class Draw:
    """Samples of the posterior: `z` [K, B, Z] for the decoder, the log densities [K, B] of all layers, and the
    divergence [K or 1, B, Z (+ Z2)], analytic where there is a formula."""

    z: Tensor
    log_prior: Tensor
    log_q: Tensor
    kl: Tensor


class VAE(nn.Module, Pretrained):
    """p(z) p(x|z) with q(z|x) = N(mu(x), diag sigma(x)^2) over pictures `shape` (C, H, W) in [0, 1].

    `encoder` and `decoder` are `mlp` or `conv`; `likelihood` one of `LIKELIHOODS`; `second` > 0 puts a second stochastic
    layer of that size on top (Burda et al.); `classes` > 0 makes it conditional, with the prior N(0, I) or, with
    `learned_prior`, p(z|y), and with a `recogniser` q(y|x) for where nobody tells the class; `flow` bends the posterior.
    With `hidden=()` encoder and decoder are linear.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        encoder: str = "mlp",
        decoder: str = "mlp",
        likelihood: str = "bernoulli",
        latent: int = 20,
        hidden: Sequence[int] = (128, 128),
        base: int = 32,
        activation: str = "tanh",
        second: int = 0,
        classes: int = 0,
        embed: int = 10,
        learned_prior: bool = False,
        flow: str = "none",
        flow_layers: int = 4,
        sigma: float = 0.1,
        levels: int = 16,
        recogniser: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.latent, self.second, self.classes = tuple(shape), latent, second, classes
        if second and flow != "none":
            raise ConfigError("a flow bends one stochastic layer; use second=0")
        if recogniser and classes < 2:
            raise ConfigError(f"a recogniser needs two classes or more, not {classes}")
        if learned_prior and (not classes or second):
            raise ConfigError("a learned prior p(z|y) needs classes, and one stochastic layer")
        self.pixels = Pixels(likelihood, channels=shape[0], sigma=sigma, levels=levels)
        extra = embed if classes else 0
        self.condition = nn.Embedding(classes, embed) if classes else None
        self.encoder = encoder_for(encoder, shape, extra, hidden, base, activation)
        self.flow = flow_for(flow, latent=latent, layers=flow_layers)
        heads = 2 * latent + (self.flow.context if self.flow is not None else 0)
        self.posterior = glorot(nn.Linear(self.encoder.features, heads))
        with torch.no_grad():  # a flow begins near the identity
            self.posterior.weight[2 * latent :].mul_(0.1)
        self.decoder = decoder_for(decoder, self.pixels.planes, shape, latent + extra, hidden, base, activation)
        self.prior = glorot(nn.Linear(embed, 2 * latent)) if learned_prior else None
        if second:
            width = max(16, 2 * latent)
            self.up = nn.Sequential(layers((latent, width, width), activation), glorot(nn.Linear(width, 2 * second)))
            self.down = nn.Sequential(layers((second, width, width), activation), glorot(nn.Linear(width, 2 * latent)))
        if recogniser:
            self.recogniser = encoder_for(encoder, shape, 0, hidden, base, activation)
            self.verdict = glorot(nn.Linear(self.recogniser.features, classes))
        self.logvar = nn.Parameter(torch.tensor(-2.0)) if likelihood == "gaussian-scalar" else None
        self.register_buffer("centre", torch.zeros(self.shape))

    @torch.no_grad()
    def initialise(self, mean: Tensor) -> None:
        """Start from the mean picture [C, H, W]: the encoder sees what differs from it, the decoder begins with it."""
        self.centre.copy_(mean)
        bias = self.pixels.bias(mean)
        if bias is not None:
            self.decoder.start_at(bias)

    # -- inference --------------------------------------------------------------------------------------------------

    def encode(self, x: Tensor, y: Tensor | None = None) -> DiagGaussian:
        """q(z|x) [B, Z] of the layer next to the pictures, before a flow; x [B, C, H, W] in [0, 1], y int64 [B]."""
        self._check(x, y)
        return self._posterior(x, y)[0]

    def classify(self, x: Tensor) -> Tensor:
        """Logits [B, Y] of q(y|x). Raises `CapabilityError` without a recogniser."""
        if not hasattr(self, "recogniser"):
            raise CapabilityError("this model has no recogniser q(y|x); build it with recogniser=True")
        return self.verdict(self.recogniser(x - self.centre, x.new_zeros(len(x), 0)))

    def draw(
        self,
        x: Tensor,
        samples: int,
        generator: torch.Generator,
        y: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        path_only: bool = False,
        funnel: Funnel | None = None,
    ) -> Draw:
        """`samples` draws of q for each of x [B, C, H, W]; `noise` [K, B, Z + Z2] stands in for the generator.

        `path_only` holds the parameters of q fixed in log q (sticking the landing); `funnel` is DReG's.
        """
        self._check(x, y)
        noise = self.noise(samples, len(x), generator) if noise is None else noise.to(x)
        return self._draw(x, y, noise, path_only, funnel)

    def noise(self, samples: int, batch: int, generator: torch.Generator) -> Tensor:
        """Standard normal numbers [K, B, Z + Z2], on the model's device."""
        shape = (samples, batch, self.latent + self.second)
        return torch.randn(shape, generator=generator, device=generator.device).to(self.centre)

    def _posterior(self, x: Tensor, y: Tensor | None) -> tuple[DiagGaussian, Tensor]:
        out = self.posterior(self.encoder(x - self.centre, self._embedded(y, len(x))))
        mean, logvar, context = out.split((self.latent, self.latent, out.shape[1] - 2 * self.latent), 1)
        return DiagGaussian(mean, logvar.clamp(-LOGVAR, LOGVAR)), context

    def _draw(self, x: Tensor, y: Tensor | None, noise: Tensor, path_only: bool, funnel: Funnel | None) -> Draw:
        q, context = self._posterior(x, y)
        return self._from(q, context, y, noise, path_only, funnel)

    def _from(
        self,
        q: DiagGaussian,
        context: Tensor,
        y: Tensor | None,
        noise: Tensor,
        path_only: bool = False,
        funnel: Funnel | None = None,
    ) -> Draw:
        """The draws of one posterior; the encoder's pass is the caller's, so that chunks of samples share it."""
        if path_only and self.flow is not None:
            raise CapabilityError("a flow's density needs its inverse here; use objective elbo or iwae with flows")
        z = q.mean + q.std * noise[..., : self.latent]
        seen = funnel.pass_through(z) if funnel is not None else z
        fixed = q.detach() if path_only else q
        if self.second:
            return self._second(z, seen, fixed, noise[..., self.latent :], path_only, funnel)
        log_q = fixed.log_prob(seen)
        prior = self._prior(y, q.mean)
        if self.flow is not None:
            seen, log_det = self.flow(seen, context)
            log_q = log_q - log_det
            kl = (log_q - prior.log_prob(seen))[..., None]
        else:
            kl = kl_diag(q, prior)[None]
        return Draw(seen, prior.log_prob(seen), log_q, kl)

    def _second(
        self, z: Tensor, seen: Tensor, q: DiagGaussian, noise: Tensor, path_only: bool, funnel: Funnel | None
    ) -> Draw:
        """The layer above: q(z2|z), p(z2) = N(0, I), p(z|z2)."""
        above = _gaussian(self.up(z))
        z2 = above.mean + above.std * noise
        seen2 = funnel.pass_through(z2) if funnel is not None else z2
        if path_only:
            fixed = {name: parameter.detach() for name, parameter in self.up.named_parameters()}
            above = _gaussian(functional_call(self.up, fixed, (seen,)))
        top = DiagGaussian.standard(above.mean)
        below = _gaussian(self.down(seen2))
        log_prior = top.log_prob(seen2) + below.log_prob(seen)
        log_q = q.log_prob(seen) + above.log_prob(seen2)
        ratio = 0.5 * (below.logvar - q.logvar) + 0.5 * (
            (seen - below.mean).square() * torch.exp(-below.logvar) - (seen - q.mean).square() * torch.exp(-q.logvar)
        )
        return Draw(seen, log_prior, log_q, torch.cat((ratio, kl_diag(above)), -1))

    # -- bounds -----------------------------------------------------------------------------------------------------

    def log_weights(self, x: Tensor, draw: Draw, y: Tensor | None = None) -> Tensor:
        """log p(x, z) - log q(z|x) [K, B] of a draw."""
        return self.log_likelihood(x, draw.z, y) + draw.log_prior - draw.log_q

    def log_likelihood(self, x: Tensor, z: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x|z) [K, B] of x [B, C, H, W] and z [K, B, Z]: one pass of the decoder for all K."""
        return self.pixels.log_prob(self.planes(z, y), x, self.logvar)

    def elbo(self, x: Tensor, generator: torch.Generator, samples: int = 1, y: Tensor | None = None) -> Bound:
        """The evidence lower bound by SGVB estimator B (analytic divergence), averaged over `samples`."""
        draw = self.draw(x, samples, generator, y)
        return Bound(self.log_likelihood(x, draw.z, y).mean(0), draw.kl.mean(0))

    def iwae(self, x: Tensor, samples: int, generator: torch.Generator, y: Tensor | None = None) -> Tensor:
        """L_K(x) [B], K = `samples`: log of the mean weight, a bound that tightens with K."""
        return log_mean_exp(self.log_weights(x, self.draw(x, samples, generator, y), y))

    @torch.no_grad()
    def nll(
        self,
        x: Tensor,
        generator: torch.Generator,
        samples: int = 5000,
        y: Tensor | None = None,
        chunk: int = CHUNK,
    ) -> Tensor:
        """Importance estimate of -log p(x) [B] (float64, nats), an upper bound on average.

        One encoder pass; samples go through the decoder in chunks of at most `chunk` outputs, which changes nothing but
        memory: the noise is drawn before it is cut.
        """
        self._check(x, y)
        q, context = self._posterior(x, y)
        noise = self.noise(samples, len(x), generator)
        size = max(1, chunk // (len(x) * self.pixels.planes * self.shape[1] * self.shape[2]))
        stream = StreamingLogMean()
        for part in noise.split(size):
            stream.add(self.log_weights(x, self._from(q, context, y, part), y))
        return -stream.value()

    # -- generation -------------------------------------------------------------------------------------------------

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Expected pictures [N, C, H, W] in [0, 1] of codes [N, Z]."""
        self._check_codes(z, y)
        return self.pixels.mean(self.planes(z[None], y)[0], self.logvar)

    def planes(self, z: Tensor, y: Tensor | None) -> Tensor:
        """The decoder's planes [K, N, P, H, W] of codes [K, N, Z]."""
        if self.condition is not None:
            z = torch.cat((z, self._embedded(y, z.shape[1]).expand(len(z), -1, -1)), -1)
        return self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])

    def codes(self, n: int, generator: torch.Generator, y: Tensor | None = None) -> Tensor:
        """Codes [n, Z] from the prior, through the second layer where there is one."""
        noise = self.noise(1, n, generator)[0]
        if self.second:
            below = _gaussian(self.down(noise[:, self.latent :]))
            return below.mean + below.std * noise[:, : self.latent]
        prior = self._prior(y, noise)
        return prior.mean + prior.std * noise

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, y: Tensor | None = None, *, pixels: bool = False) -> Tensor:
        """n pictures [n, C, H, W] from the prior: expected ones, or with `pixels` a draw of every pixel."""
        z = self.codes(n, generator, y)
        self._check_codes(z, y)
        raw = self.planes(z[None], y)[0]
        return self.pixels.sample(raw, generator, self.logvar) if pixels else self.pixels.mean(raw, self.logvar)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Expected pictures [B, C, H, W] of the posterior means."""
        return self.decode(self.centres(x, y), y)

    @torch.no_grad()
    def centres(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Codes [B, Z] that stand for x: posterior means, bent by the flow where there is one."""
        self._check(x, y)
        q, context = self._posterior(x, y)
        return q.mean if self.flow is None else self.flow(q.mean, context)[0]

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, n: int = 8, y: Tensor | None = None) -> Tensor:
        """n pictures [n, C, H, W] on the great circle between the codes of a and b, both [C, H, W]; y int64 [1]."""
        both = None if y is None else y.expand(2)
        first, last = self.centres(torch.stack((a, b)), both)
        return self.decode(slerp(first, last, n), None if y is None else y.expand(n))

    # -- parts ------------------------------------------------------------------------------------------------------

    def _embedded(self, y: Tensor | None, count: int) -> Tensor:
        if self.condition is None:
            return self.centre.new_zeros(count, 0)
        return self.condition(y)

    def _prior(self, y: Tensor | None, like: Tensor) -> DiagGaussian:
        if self.prior is None:
            return DiagGaussian.standard(like)
        return _gaussian(self.prior(self._embedded(y, len(like))))

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        if tuple(x.shape[1:]) != self.shape or not x.is_floating_point() or not len(x):
            shape = ", ".join(map(str, self.shape))
            raise ShapeError(f"pictures must be floats [batch >= 1, {shape}], not {x.dtype} {tuple(x.shape)}")
        low, high = float(x.min()), float(x.max())
        if not (low >= -1e-4 and high <= 1.0 + 1e-4):
            raise ShapeError(f"pictures must lie in [0, 1], these in [{low:.3g}, {high:.3g}]; rescale them")
        self._check_labels(y, len(x))

    def _check_codes(self, z: Tensor, y: Tensor | None) -> None:
        if z.dim() != 2 or z.shape[1] != self.latent:
            raise ShapeError(f"codes must be [batch, {self.latent}], not {tuple(z.shape)}")
        self._check_labels(y, len(z))

    def _check_labels(self, y: Tensor | None, count: int) -> None:
        if self.condition is None:
            if y is not None:
                raise ShapeError("this model is not conditional: leave y out, or build it with classes")
            return
        if y is None or y.dtype != torch.int64 or y.shape != (count,):
            got = "none" if y is None else f"{y.dtype} {tuple(y.shape)}"
            raise ShapeError(f"a conditional model needs classes y int64 [{count}], not {got}")
        if int(y.min()) < 0 or int(y.max()) >= self.classes:
            raise ShapeError(f"classes must lie in 0..{self.classes - 1}, not {int(y.min())}..{int(y.max())}")


def _gaussian(raw: Tensor) -> DiagGaussian:
    mean, logvar = raw.chunk(2, -1)
    return DiagGaussian(mean, logvar.clamp(-LOGVAR, LOGVAR))
