"""Unrolled Generative Adversarial Networks.

Luke Metz, Ben Poole, David Pfau, Jascha Sohl-Dickstein. ICLR 2017. arXiv 1611.02163.

The generator does not answer the discriminator as it is but as it will be K updates from now, and its gradient
runs back through those updates. Hopping from mode to mode then no longer pays, because the discriminator that is
looked at has already followed. K = 0 is the ordinary GAN.

Claim: on eight Gaussians around a circle, looking 5 steps ahead reaches at least 3 more modes than not looking
ahead, at equally many generator steps.

    f(G, phi)   = E log D(x; phi) + E log(1 - D(G(z); phi))
    phi_0       = phi,   phi_{k+1} = phi_k + eta df(G, phi_k) / dphi_k          k = 0 ... K - 1, same x and z
    f_K(G, phi) = f(G, phi_K(G, phi))
    G   <- G - eta df_K/dG            through f and through phi_K
    phi <- phi + eta df/dphi          an ordinary step; the K steps ahead are thrown away

Differs from the paper:
- the claim runs 1,500 steps of batch 256 and not 25,000 of 512, with learning rate 1e-3 for both players and the
look-ahead
- images use DCGAN blocks (no batch norm in the discriminator); the paper's layer tables are not copied
- inner steps are not recomputed in the backward pass (memory grows with K)

Shapes: B batch, Z latent, C H W an image, K inner steps.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cambrian.data import images as pictures
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, action, recipe
from cambrian.engine.samples import Curves, Gallery, Images, Plot, Points, Table
from cambrian.errors import CapabilityError, ConfigError
from cambrian.metrics.modes import ModeCount, count_modes
from cambrian.nn import flat
from cambrian.nn.adversarial import (
    DCGANDiscriminator,
    DCGANGenerator,
    InnerAdam,
    InnerSGD,
    discriminator_accuracy,
    discriminator_loss,
    forbid_running_statistics,
    invert,
    unroll,
)
from cambrian.nn.adversarial.unroll import Inner, Parameters
from cambrian.systems.gans import _worlds
from cambrian.systems.gans._judging import RADIUS, judged
from cambrian.systems.gans._strips import FRAMES, POINTS_KEPT, strips

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = 5  # the score is the mean over this many last looks


@config
class Config:
    """Options of one unrolled GAN."""

    steps: int = option(1500, "generator steps", low=1)
    batch: int = option(256, "samples per step", low=2)
    unroll: int = option(5, "K, discriminator steps that the generator looks ahead; 0 is the ordinary GAN", low=0)
    inner: str = option("adam", "optimiser of the look-ahead; adam starts from D's moments", choices=("adam", "sgd"))
    inner_lr: float = option(1e-3, "step size of the look-ahead", low=0.0)
    through_opponent: bool = option(True, "let the generator's gradient run through the K steps")
    lr_g: float = option(1e-3, "Adam step size of the generator", low=0.0)
    lr_d: float = option(1e-3, "Adam step size of the discriminator", low=0.0)
    beta1: float = option(0.5, "Adam's first decay, both players and the look-ahead", low=0.0, high=0.999)
    latent: int = option(256, "Z, latent size", low=1)
    hidden: int = option(128, "width of the fully connected nets and of the LSTM", low=1)
    depth: int = option(2, "hidden layers of the fully connected nets", low=1)
    gain: float = option(0.0, "gain of the orthogonal initialisation of fully connected nets (paper: 0.8); 0 is torch's own", low=0.0)  # fmt: skip
    arch: str = option("dcgan", "image generator; points always use fully connected nets", choices=("dcgan", "lstm"))
    base: int = option(32, "width of the generator's last convolution", low=1)
    base_d: int = option(8, "width of the discriminator's first convolution (paper: a quarter of G, or half)", low=1)
    size: int | None = option(None, "resize images to this edge; None leaves them", low=4)
    stack: bool = option(False, "stack three random grey images as red, green and blue")
    look: int = option(100, "steps between two looks at the modes", low=1)
    looked_at: int = option(2000, "samples per look", low=8)


class PointNet(nn.Module):
    """ReLU layers, orthogonal where `gain` > 0; `[B, inputs] -> [B, outputs]`, the input multiplied by `scale`."""

    def __init__(self, *, inputs: int, outputs: int, hidden: int, depth: int, gain: float, scale: float = 1.0) -> None:
        super().__init__()
        widths = [inputs] + [hidden] * depth
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.layers, self.scale = nn.Sequential(*layers, nn.Linear(hidden, outputs)), scale
        for layer in self.layers:
            if gain and isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, gain)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x * self.scale)


class ColumnGenerator(nn.Module):
    """An LSTM that draws a picture column by column (section 3.2): `[B, Z] -> [B, C, H, W]` in [-1, 1]."""

    def __init__(self, *, latent: int, channels: int, size: int, hidden: int) -> None:
        super().__init__()
        self.shape = (channels, size)
        self.lstm = nn.LSTM(latent, hidden, batch_first=True)
        self.column = nn.Linear(hidden, channels * size)

    def forward(self, z: Tensor) -> Tensor:
        states, _ = self.lstm(z[:, None].expand(-1, self.shape[1], -1))  # the same z at every column
        columns = torch.tanh(self.column(states))  # [B, W, C * H]
        return columns.unflatten(2, self.shape).permute(0, 2, 3, 1)


def look_ahead(
    discriminator: nn.Module, x: Tensor, fake: Tensor, *, steps: int, inner: Inner, through_opponent: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """`f_K`, differentiable in `fake` `[B, ...]`, and the discriminator's ordinary gradients, one per parameter.

    Real and fake samples go through the discriminator as one batch; its parameters are one vector `phi`, and its
    module is never changed.
    """
    both = torch.cat((x, fake))
    phi = flat.parameters_of(discriminator).detach().requires_grad_()

    def loss(parameters: Parameters) -> Tensor:
        on_real, on_fake = flat.call(discriminator, parameters["phi"], both).chunk(2)
        return discriminator_loss(on_real, on_fake)

    ahead = unroll(loss, {"phi": phi}, steps=steps, inner=inner, differentiable=through_opponent)
    value = -loss(ahead.parameters)
    if steps:
        gradient = ahead.first_gradients[0]
    else:  # f_0 is -loss at phi itself: D's gradient is one more backward pass over the same graph
        gradient = -torch.autograd.grad(value, phi, retain_graph=True)[0]
    return value, flat.Layout.of(discriminator.parameters()).views(gradient)


class Showing(Recipe[Config]):
    """What a trained unrolled GAN measures and shows."""

    generator: nn.Module
    discriminator: nn.Module

    def _real(self, batch: Batch, generator: torch.Generator) -> Tensor:
        if self.data.kind == "points":
            return batch["point"]
        x = pictures.signed(batch["image"])
        if not self.config.stack:
            return x
        order = [torch.randperm(len(x), generator=generator) for _ in range(3)]
        return torch.cat([x[at.to(x.device)] for at in order], dim=1)

    def _latent(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, self.config.latent, generator=generator).to(self.device)

    def critics(self) -> list[nn.Module]:
        """The nets that training methods may disturb."""
        return [self.discriminator]

    def real(self, batch: Batch) -> Tensor:
        """The batch's samples in the nets' range; stacks are put together in one fixed order."""
        return self._real(batch, torch.Generator().manual_seed(0))

    def latent(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents `[count, Z]`, from the recipe's own generator unless another is given."""
        return self._latent(count, generator or self.rng)

    def _count(self, made: Tensor) -> ModeCount:
        return count_modes(made, torch.tensor(self.data.info["centres"]), self.data.info["deviation"], RADIUS)

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """On points, modes touched and covered (mean of the last looks) and the share of samples within 3 sd of a
        mode.

        On images with labels a judge's scores (see `_judging`; with `stack`, modes of 1,000); and the
        discriminator's accuracy on anything.
        """
        z = self._latent(self.config.looked_at, generator)
        made = torch.cat([self.generator(part) for part in z.split(500)])
        held = next(self.batches(split, 500))
        logits = self.discriminator(torch.cat((real := self._real(held, generator), made[: len(real)])))
        out = {"d_accuracy": float(discriminator_accuracy(logits[: len(real)], logits[len(real) :]))}
        if self.data.kind != "points":
            return out | judged(self.data, made.cpu().add(1).div(2), stack=3 if self.config.stack else 1)
        now = self._count(made.cpu())
        looks = self.extra["looks"][-LOOKS:]
        touched = float(looks[:, 1].mean()) if len(looks) else float(now.touched)
        return out | {"modes_touched": touched, "modes_covered": float(now.covered), "quality": now.quality}

    def sample(self, n: int, generator: torch.Generator) -> Plot | Images:
        """Points: how the cloud moved while training, and now. Images: a sheet."""
        made = self.generator(self._latent(n, generator)).cpu()
        if self.data.kind != "points":
            return Images(made.add(1).div(2))
        return Plot(self._strips({f"K = {self.config.unroll}": (self.extra["strip"], made)}))

    @action
    def compare(self, seed: int = 0) -> Plot:
        """Train the same GAN without unrolling (K = 0) for as many steps, and show both over time, one above the
        other.
        """
        self._needs("points")
        twin = type(self)(dataclasses.replace(self.config, unroll=0), data=self.data, seed=self.seed)
        draw = torch.Generator().manual_seed(seed)
        train = self.data.split("train")
        with torch.enable_grad():
            for twin.iteration in range(self.iteration):
                twin.step(train[torch.randint(len(train), (self.config.batch,), generator=draw)])
        with torch.no_grad():
            mine, theirs = (r.generator(r._latent(400, draw)).cpu() for r in (self, twin))
        label = f"K = {self.config.unroll}"
        return Plot(self._strips({"K = 0": (twin.extra["strip"], theirs), label: (self.extra["strip"], mine)}))

    @action
    def curve(self) -> Curves:
        """Modes touched and covered at each look."""
        self._needs("points")
        step, touched, covered = self.extra["looks"].T.tolist() if len(self.extra["looks"]) else ([], [], [])
        return Curves({"touched": (step, touched), "within 3 sd": (step, covered)}, y="modes")

    @action
    def invert(self, n: int = 8, restarts: int = 3, steps: int = 40, seed: int = 0) -> Gallery:
        """Find test samples in latent space by L-BFGS: each original above its reconstruction, and the mean
        errors.
        """
        draw = torch.Generator().manual_seed(seed)
        x = self._real(self.data.split("test")[torch.arange(n)], draw)
        z, error = invert(self.generator, x, prior=self._latent, generator=draw, restarts=restarts, steps=steps)
        with torch.no_grad():
            found = self.generator(z)
            others = self.generator(self._latent(256, draw)).flatten(1)
        table = Table.of([{"mean squared error": float(error.mean()), "diversity": float(torch.pdist(others).mean())}])
        if self.data.kind == "points":
            return Gallery({"errors": table, "inverted": Points(found, x)})
        return Gallery({"errors": table, "inverted": Images(torch.cat((x, found)).add(1).div(2), columns=n)})

    def _needs(self, kind: str) -> None:
        if self.data.kind != kind:
            raise CapabilityError(f"this action needs data of kind {kind}, the run has {self.data.kind}")

    def _strips(self, rows: dict[str, tuple[Tensor, Tensor]]) -> Figure:
        return strips(rows, torch.tensor(self.data.info["centres"]), self.config.steps)


CLAIM = Claim(
    name="modes",
    statement="Unrolling the discriminator 5 steps keeps the generator from collapsing: on a ring of eight Gaussians "
    "it reaches at least 3 modes more than the same GAN without unrolling after equally many generator steps.",
    metric="modes_touched",
    direction="higher",
    margin=3.0,
    paper="figure 2: on a ring of 8, K = 0 hops, K = 10 covers; table 1: 30.6 -> 236.4 of 1,000 stacked digits, K = 0 -> 5",
    arms={"unrolled": Arm(), "plain": Arm({"unroll": 0})},
    system="unrolled",
    baselines=("plain",),
    sabotage=Arm({"inner_lr": 0.0}),
    conditions=(Condition("unrolled", "modes_touched", ">=", 6.0),),
)


@recipe("unrolled-gan", data="ring8")
class UnrolledGANRecipe(Showing):
    """Trains G against a look-ahead D, and D by ordinary steps."""

    presets = {
        "smoke": Config(steps=150, batch=64, hidden=64, latent=32, look=30, looked_at=512),
        "laptop": Config(),
        "paper": Config(steps=25_000, batch=512, unroll=10, lr_d=1e-4, inner_lr=1e-4, gain=0.8, look=500),
    }
    claims = (CLAIM,)
    headline = ("modes_touched", "higher")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        if source.kind == "world":
            return _worlds.load(source, size=config.size)
        return pictures.load(source, size=config.size, channels=1 if config.stack else None)

    def build(self, config: Config, data: Data) -> None:
        if data.kind == "points":
            hidden, depth, gain = config.hidden, config.depth, config.gain
            self.generator = PointNet(inputs=config.latent, outputs=2, hidden=hidden, depth=depth, gain=gain)
            self.discriminator = PointNet(inputs=2, outputs=1, hidden=hidden, depth=depth, gain=gain, scale=0.25)
        else:
            self._build_for_images(config, data)
        forbid_running_statistics(self.discriminator)
        betas = (config.beta1, 0.999)
        self.g_optim = self.optimiser(torch.optim.Adam, self.generator.parameters(), lr=config.lr_g, betas=betas)
        self.d_optim = self.optimiser(torch.optim.Adam, self.discriminator.parameters(), lr=config.lr_d, betas=betas)
        self.extra = {"looks": torch.zeros(0, 3), "strip": torch.zeros(0, POINTS_KEPT, 2)}

    def _build_for_images(self, config: Config, data: Data) -> None:
        channels, size, other = data.info["shape"]
        if size != other:
            raise ConfigError(f"images are {size}x{other}; set size= to bring them to a square")
        channels = 3 if config.stack else channels
        if config.arch == "lstm":
            self.generator = ColumnGenerator(latent=config.latent, channels=channels, size=size, hidden=config.hidden)
        else:
            self.generator = DCGANGenerator(latent=config.latent, channels=channels, size=size, base=config.base)
        self.discriminator = DCGANDiscriminator(channels=channels, size=size, base=config.base_d, norm="none")

    # -- training -------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        x = self._real(batch, self.rng)
        fake = self.generator(self._latent(len(x), self.rng))
        value, d_gradients = look_ahead(
            self.discriminator,
            x,
            fake,
            steps=self.config.unroll,
            inner=self._inner(),
            through_opponent=self.config.through_opponent,
        )
        g_parameters = list(self.generator.parameters())
        g_gradients = torch.autograd.grad(value, g_parameters)
        _set_gradients(g_parameters, g_gradients)
        _set_gradients(list(self.discriminator.parameters()), d_gradients)
        self.apply_gradients(self.g_optim, loss=value.detach())
        self.apply_gradients(self.d_optim)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(g_gradients)))
        scalars: dict[str, Tensor | float] = {"f_ahead": value.detach(), "g_grad": norm}
        if self.data.kind == "points":
            if (self.iteration + 1) % self.config.look == 0:
                self._look()
            scalars["modes_touched"] = float(self.extra["looks"][-1, 1]) if len(self.extra["looks"]) else 0.0
        return scalars

    def _inner(self) -> Inner:
        if self.config.inner == "sgd":
            return InnerSGD(self.config.inner_lr)
        follow = self.d_optim if isinstance(self.d_optim, torch.optim.Adam) else None
        return InnerAdam(self.config.inner_lr, (self.config.beta1, 0.999), follow=follow)

    @torch.no_grad()
    def _look(self) -> None:
        """Count modes now, and keep points for the picture at five moments of the run."""
        made = self.generator(self._latent(self.config.looked_at, self.rng)).cpu()
        found = self._count(made)
        row = torch.tensor([[self.iteration + 1.0, found.touched, found.covered]])
        self.extra["looks"] = torch.cat((self.extra["looks"], row))
        done, total = len(self.extra["looks"]), max(1, self.config.steps // self.config.look)
        if FRAMES * done // total > FRAMES * (done - 1) // total:
            self.extra["strip"] = torch.cat((self.extra["strip"], _rows(made, POINTS_KEPT)[None]))


def _set_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def _rows(x: Tensor, count: int) -> Tensor:
    """Exactly `count` rows of `x`, from the start again where it has fewer."""
    return x[torch.arange(count) % len(x)]
