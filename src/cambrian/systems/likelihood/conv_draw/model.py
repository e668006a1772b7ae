"""The network of conv-draw: one recurrent loop that training, sampling and both codecs run.

Shapes: B batch, C channels, H x W pixels, T steps, Z latent maps on h x w cells; h = H/scale, half
of that in layer 2.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.convlstm import ConvLSTMCell
from cambrian.nn.hub import Pretrained
from cambrian.nn.latent import DiagGaussian, kl_diag
from cambrian.nn.likelihood.discretized import DiscretizedGaussian
from cambrian.nn.scan import State

GRID = 2.0**-14
PIXELS = DiscretizedGaussian(levels=256, step=1 / 128, min_log_sigma=-5.5, max_log_sigma=2.0)
LIKELIHOODS = ("discretized", "gaussian", "bernoulli")
PRIORS = ("learned", "standard")
SPREADS = ("pixel", "picture")

Choose = Callable[[int, DiagGaussian, DiagGaussian | None], Tensor]
"""`choose(slot, prior, posterior) -> z`: how the loop gets its latents; without a picture the posterior is None."""


@dataclass
class Drawing:
    """The loop's state: (h, c) of each layer's encoder and decoder, and the canvas [B, 2C, H, W]."""

    encoders: list[State]
    decoders: list[State]
    canvas: Tensor


class ConvDRAW(nn.Module, Pretrained):
    """A recurrent convolutional VAE of uint8 pictures [B, C, H, W], H and W divisible by `scale` times `layers`.

    `spread="picture"` gives all pixels of a picture one sigma, so that the bound counts the logarithm of the mean
    squared error; with one a pixel, what is hard to draw is given up for what is easy. `feedback` shows the encoder
    what the canvas still lacks; `prior="standard"` replaces the learned prior by N(0, 1); `steps=1` is the single-shot
    convolutional VAE with exactly as many parameters. `scale` is the side of a cell of the LSTMs in pixels. `size` is
    what `sample` draws and what larger pictures are cut into by the codecs.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        size: int = 16,
        hidden: int = 24,
        latent: int = 4,
        steps: int = 6,
        layers: int = 1,
        scale: int = 2,
        kernel: int = 3,
        likelihood: str = "discretized",
        prior: str = "learned",
        feedback: bool = True,
        spread: str = "pixel",
    ) -> None:
        super().__init__()
        if (
            likelihood not in LIKELIHOODS
            or prior not in PRIORS
            or spread not in SPREADS
            or layers not in (1, 2)
            or kernel % 2 == 0
        ):
            raise ConfigError(
                f"likelihood is one of {LIKELIHOODS}, prior of {PRIORS}, layers 1 or 2, kernel odd; "
                f"not {likelihood!r}, {prior!r}, {layers}, {kernel}"
            )
        if scale not in (2, 4) or size % (scale * layers):
            raise ConfigError(f"scale is 2 or 4 and divides size, twice with two layers; not {scale} and {size}")
        self.channels, self.size, self.hidden, self.latent = channels, size, hidden, latent
        self.steps, self.layers, self.scale, self.likelihood = steps, layers, scale, likelihood
        self.spread = spread
        self.learned, self.feedback, self.grid = prior == "learned", feedback, 0.0
        self.outputs = channels if likelihood == "bernoulli" else 2 * channels
        self.canvas = nn.Parameter(torch.zeros(self.outputs))
        down = {"kernel_size": scale + 3 if scale == 2 else 8, "stride": scale, "padding": 2, "bias": False}
        self.read = nn.Conv2d(channels, 4 * hidden, **down)
        self.read_error = nn.Conv2d(channels, 4 * hidden, **down) if feedback else None
        self.read_canvas = nn.Conv2d(self.outputs, 4 * hidden, **down)
        self.write = nn.Conv2d(hidden, scale**2 * self.outputs, 3, padding=1)
        self.read_up = nn.Conv2d(hidden, 4 * hidden, 5, stride=2, padding=2, bias=False) if layers == 2 else None
        above = hidden * (layers - 1)  # layer 1 hears layer 2's decoder
        inputs = [latent + above] + [latent] * (layers - 1)
        self.encoders = nn.ModuleList(ConvLSTMCell(inputs=hidden, hidden=hidden, kernel=kernel) for _ in inputs)
        self.decoders = nn.ModuleList(ConvLSTMCell(inputs=n, hidden=hidden, kernel=kernel) for n in inputs)
        widths = [hidden + above] + [hidden] * (layers - 1)
        self.posteriors = nn.ModuleList(nn.Conv2d(n, 2 * latent, 1) for n in widths)
        self.priors = nn.ModuleList(nn.Conv2d(n, 2 * latent, 1) for n in widths) if self.learned else None
        with torch.no_grad():
            self.canvas[channels:] = 3.0  # wide at first, so that the first pictures are not impossible
            for head in (*self.posteriors, *(self.priors or ())):
                head.bias.zero_()
            for head in self.posteriors:
                head.bias[latent:] = -2.0  # little noise at first, so that latents are worth listening to
            self.write.bias.zero_()
        self.register_buffer("cost", torch.ones(self.slots, self.widest))

    # -- sizes -------------------------------------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """How many maps of latents a picture takes: one a step and layer, the upper layer first."""
        return self.steps * self.layers

    @property
    def widest(self) -> int:
        """Latents of the largest slot at the model's own size."""
        return self.latent * (self.size // self.scale) ** 2

    def slot_shape(self, slot: int, height: int, width: int) -> tuple[int, int, int]:
        """[Z, h, w] of a slot for pictures of height x width."""
        scale = self.scale * (self._layer(slot) + 1)
        return self.latent, height // scale, width // scale

    def _layer(self, slot: int) -> int:
        return self.layers - 1 - slot % self.layers

    # -- the loop ----------------------------------------------------------------------------------------------------

    def unfold(
        self, choose: Choose, x: Tensor | None = None, *, batch: int = 0, height: int = 0, width: int = 0
    ) -> Tensor:
        """Draw: T times ask `choose` for latents and write. Returns the last canvas [B, 2C, H, W].

        With pictures `x` (from `scaled`) the encoder reads them and `choose` gets posteriors; without, give the sizes.
        """
        if x is not None:
            batch, _, height, width = x.shape
        state = self._start(batch, height or self.size, width or self.size)
        still = None if x is None else self.read(x)  # does not change from step to step
        for slot in range(self.slots):
            if x is not None and still is not None and slot % self.layers == 0:
                self._encode(x, still, state)
            layer = self._layer(slot)
            heard = state.decoders[layer][0]  # the decoder BEFORE this step's latents
            above = [self._up(state.decoders[1][0])] if layer == 0 and self.layers == 2 else []
            prior = self._normal(self.priors[layer] if self.priors is not None else None, [heard, *above])
            read = self._normal(self.posteriors[layer], [state.encoders[layer][0], *above]) if x is not None else None
            self._decode(layer, choose(slot, prior, read), above, state)
            if layer == 0:
                state.canvas = self._snap(state.canvas + F.pixel_shuffle(self.write(state.decoders[0][0]), self.scale))
        return state.canvas

    def _start(self, batch: int, height: int, width: int) -> Drawing:
        maps = [
            self.canvas.new_zeros(1, self.hidden, *self.slot_shape(s, height, width)[1:]) for s in range(self.slots)
        ]
        zeros = [maps[self.layers - 1 - layer].expand(batch, -1, -1, -1) for layer in range(self.layers)]
        canvas = self.canvas[None, :, None, None].expand(batch, -1, height, width)
        return Drawing([(z, z) for z in zeros], [(z, z) for z in zeros], canvas)

    def _encode(self, x: Tensor, still: Tensor, state: Drawing) -> None:
        """h_e = LSTM_E([x, eps], h_e, h_d), eps = x - mu(r): the part of x is hoisted out of the loop."""
        seen = still
        if self.read_error is not None:
            seen = seen + self.read_error(self._snap(x - self.pixel_mean(state.canvas)))
        for layer, cell in enumerate(self.encoders):
            state.encoders[layer] = self._step(cell, state.decoders[layer][0], seen, state.encoders[layer])
            if self.read_up is not None:
                seen = self.read_up(state.encoders[layer][0])

    def _decode(self, layer: int, z: Tensor, above: list[Tensor], state: Drawing) -> None:
        """h_d = LSTM_D(z, h_d, r)."""
        extra = self.read_canvas(state.canvas) if layer == 0 else None
        inputs = torch.cat((z, *above), 1)
        state.decoders[layer] = self._step(self.decoders[layer], inputs, extra, state.decoders[layer])

    def _step(self, cell: nn.Module, inputs: Tensor, extra: Tensor | None, state: State) -> State:
        assert isinstance(cell, ConvLSTMCell)
        _, (h, c) = cell.fused(inputs, extra, state)
        return self._snap(h), self._snap(c)

    def _normal(self, head: nn.Module | None, inputs: list[Tensor]) -> DiagGaussian:
        if head is None:
            return DiagGaussian.standard(inputs[0][:, :1].expand(-1, self.latent, -1, -1))
        mean, logvar = self._snap(head(torch.cat(inputs, 1) if len(inputs) > 1 else inputs[0])).chunk(2, 1)
        return DiagGaussian(mean, logvar.clamp(-10.0, 4.0))

    def _up(self, maps: Tensor) -> Tensor:
        return F.interpolate(maps, scale_factor=2.0, mode="nearest")

    def _snap(self, x: Tensor) -> Tensor:
        return torch.round(x / self.grid) * self.grid if self.grid else x

    # -- pixels ------------------------------------------------------------------------------------------------------

    def scaled(self, image: Tensor) -> Tensor:
        """uint8 [B, C, H, W] as (value - 127.5) / 128, in the type of the weights: multiples of 2^-8. Raises
        `ShapeError` for another type, rank, number of channels or size.
        """
        if image.dtype != torch.uint8 or image.dim() != 4 or image.shape[1] != self.channels:
            raise ShapeError(
                f"pictures must be uint8 [B, {self.channels}, H, W], not {image.dtype} {tuple(image.shape)}"
            )
        unit = self.scale * self.layers
        if image.shape[2] % unit or image.shape[3] % unit or not image.numel():
            raise ShapeError(f"height and width must be divisible by {unit}, not {tuple(image.shape[2:])}")
        return (image.to(self.canvas.dtype) - 127.5) / 128

    def pixel_mean(self, canvas: Tensor) -> Tensor:
        """What the canvas shows, in the units of `scaled`."""
        if self.likelihood == "bernoulli":
            return self._snap(canvas.sigmoid() * 2 - 1) * PIXELS.last
        return canvas[:, : self.channels]

    def pixel_params(self, canvas: Tensor) -> Tensor:
        """(mu, log sigma) of every pixel [B, C, H, W, 2]; the canvas holds log variances, averaged over the picture
        with `spread="picture"`.
        """
        mu, logvar = canvas.chunk(2, 1)
        if self.spread == "picture":  # on the grid again: a mean of exact numbers need not be exact
            logvar = self._snap(logvar.mean((1, 2, 3), keepdim=True)).expand_as(mu)
        return torch.stack((mu, 0.5 * logvar - 3.0), -1)

    def picture(self, canvas: Tensor) -> Tensor:
        """The mean as uint8 [B, C, H, W]."""
        return (self.pixel_mean(canvas) * 128 + 127.5).round().clamp(0, 255).to(torch.uint8)

    def log_likelihood(self, canvas: Tensor, image: Tensor, generator: torch.Generator) -> Tensor:
        """log p(image | canvas) [B] in nats: of the pixel's bin; of a uniform draw from it, times its width, for
        `gaussian` (the paper's L_x, a bound of the former); of values above 127 for `bernoulli`.
        """
        if self.likelihood == "bernoulli":
            ink = (image > 127).to(canvas.dtype)
            return -F.binary_cross_entropy_with_logits(canvas, ink, reduction="none").flatten(1).sum(1)
        params, x = self.pixel_params(canvas), self.scaled(image)
        if self.likelihood == "discretized":
            return PIXELS.log_prob(params, x).flatten(1).sum(1)
        noise = torch.rand(x.shape, generator=generator, device=generator.device).to(x) - 0.5
        mu, log_sigma = PIXELS.split(params)
        u = (x + noise * PIXELS.step - mu) * torch.exp(-log_sigma)
        return (PIXELS.log_density(u) - log_sigma + math.log(PIXELS.step)).flatten(1).sum(1)

    # -- public ------------------------------------------------------------------------------------------------------

    def elbo(
        self, image: Tensor, generator: torch.Generator, *, profile: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of uint8 pictures with one sample of each latent: -log p(x | z) [B] and KL [B, T], whose sum bounds
        -log p(x) in nats, and the mean KL of each latent [slots, widest] (empty unless `profile`).
        """
        found: list[Tensor] = []

        def choose(slot: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Tensor:
            assert posterior is not None
            found.append(kl_diag(posterior, prior))
            return posterior.sample(generator)

        canvas = self.unfold(choose, self.scaled(image))
        kl = torch.stack([k.flatten(1).sum(1) for k in found], 1).unflatten(1, (self.steps, self.layers)).sum(2)
        means = kl.new_zeros(0)
        if profile:
            flat = [k.detach().mean(0).flatten() for k in found]
            means = torch.stack([F.pad(k, (0, self.widest - len(k))) for k in flat])
        return -self.log_likelihood(canvas, image, generator), kl, means

    @torch.no_grad()
    def sample(
        self, n: int, temperature: float = 1.0, *, generator: torch.Generator, height: int = 0, width: int = 0
    ) -> Tensor:
        """n pictures from the prior, uint8 [n, C, H, W]: the means of the last canvas, without pixel noise. The
        latents' variance is multiplied by `temperature`.
        """

        def choose(slot: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Tensor:
            return prior.mean + math.sqrt(temperature) * (prior.sample(generator) - prior.mean)

        return self.picture(self.unfold(choose, batch=n, height=height, width=width))

    @torch.no_grad()
    def reconstruct(
        self, image: Tensor, keep: int | None = None, rest: str = "mean", *, generator: torch.Generator,
        last: bool = False,
    ) -> Tensor:  # fmt: skip
        """Pictures [B, C, H, W] from the latents of their first `keep` steps (of their last, with `last`); the other
        steps come from the prior: their means (`rest="mean"`, or "zero-var") or full draws ("sample").
        """
        keep = self.steps if keep is None else keep
        if not 0 <= keep <= self.steps or rest not in ("mean", "zero-var", "sample"):
            raise ConfigError(f"keep is 0 to {self.steps} and rest mean, zero-var or sample, not {keep} and {rest!r}")

        def choose(slot: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Tensor:
            assert posterior is not None
            step = slot // self.layers
            if (step >= self.steps - keep) if last else (step < keep):
                return posterior.sample(generator)
            return prior.sample(generator) if rest == "sample" else prior.mean

        return self.picture(self.unfold(choose, self.scaled(image)))

    def encode(self, image: Tensor, *, mode: str = "lossy", **options: object) -> bytes:
        """Pictures uint8 [N, C, H, W] or [C, H, W] of any size as bytes; see `_codec.encode`."""
        from cambrian.systems.likelihood.conv_draw import _codec

        return _codec.encode(self, image, mode=mode, **options).data  # type: ignore[arg-type]

    def decode(self, data: bytes) -> Tensor:
        """The uint8 pictures [N, C, H, W] of `encode`'s bytes."""
        from cambrian.systems.likelihood.conv_draw import _codec

        return _codec.decode(self, data)

    def exact(self) -> ConvDRAW:
        """A float64 copy in which every product and sum is exact, so that no order of summation, batch size or number
        of threads can change a bit: weights and everything that a convolution reads are multiples of 2^-14, their
        products of 2^-28, and sums stay below 2^24, which float64's 53 bits hold. What is not exact (sigmoid, tanh)
        acts on single numbers and is rounded to the grid before it is read again.
        """
        twin = copy.deepcopy(self).cpu().double().eval().requires_grad_(False)
        twin.grid = GRID
        for parameter in twin.parameters():
            parameter.copy_(torch.round(parameter / GRID) * GRID)
        return twin
