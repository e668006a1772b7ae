"""Figures 1 to 3 of the paper on any generator: a fresh discriminator trains, and what it does to the generator's
gradients is written down.

The generator is frozen and in evaluation mode (its batch norm must not depend on the batch), the discriminator must be
new: one that trained beside the generator hides the effect. Everything works on logits, since a float32 sigmoid
reaches 1 exactly.

Shapes: R batches of B latents Z in a probe, P parameters of the generator, V dimensions of a sample.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap

from cambrian.engine.samples import Table
from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import FAKE, REAL, discriminator_accuracy, discriminator_loss, generator_loss
from cambrian.systems.gans.principled_gan._theory import vanishing_bound

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[int, torch.Generator], Tensor]
COLUMNS = ("d_loss", "accuracy", "saturating", "bound", "ns", "ns_variance")


@dataclass
class Trace:
    """What was measured, one row per probe: `iterations` of the discriminator and the columns of `COLUMNS`.

    `saturating` and `ns` are geometric means over batches of gradient norms, `ns_variance` is the variance across
    batches summed over parameters, `bound` theorem 2.4's (nan with noise, where D* is not 0 on samples).
    """

    iterations: list[int] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in COLUMNS})

    def note(self, iteration: int, row: dict[str, float]) -> None:
        """Append a row."""
        self.iterations.append(iteration)
        for name, value in row.items():
            self.columns[name].append(value)

    def at(self, name: str, iteration: int) -> float:
        """The value of a column at the last probe that is not later than `iteration`."""
        earlier = [i for i, done in enumerate(self.iterations) if done <= iteration]
        if name not in self.columns or not earlier:
            raise ConfigError(
                f"nothing was measured of {name!r} by iteration {iteration}; columns: {', '.join(COLUMNS)}"
            )
        return self.columns[name][earlier[-1]]

    def table(self) -> Table:
        """Every row, as a table."""
        rows = zip(self.iterations, *self.columns.values(), strict=True)
        return Table(("iteration", *self.columns), [list(row) for row in rows])


def marks(iterations: int) -> list[int]:
    """When to probe: 1, 2, 5, 10, 20, 50, ... and 20 times evenly up to the last iteration."""
    even = {max(1, round(iterations * i / 20)) for i in range(1, 21)}
    steep = {k * 10**e for e in range(7) for k in (1, 2, 5)}
    return sorted(even | {m for m in steep if m <= iterations})


def logits_of(critic: nn.Module, x: Tensor, source: int) -> Tensor:
    """Logits `[B]`; nets with statistics per source are told which one `x` is from."""
    told = "sources" in inspect.signature(critic.forward).parameters
    return (critic(x, (source,)) if told else critic(x)).flatten()


@torch.no_grad()  # torch.func takes its gradients all the same; the discriminator needs none
def generator_gradients(
    generator: nn.Module, critic: nn.Module, z: Tensor, kind: str, noise: Tensor | None = None
) -> Tensor:
    """The generator's gradients `[R, P]` on R batches of latents `[R, B, Z]` in one vectorised pass: `kind` is
    `minimax` (saturating) or `ns`. `B = 1` gives per-sample gradients. `noise` `[R, B, *shape]` is added to samples.
    """
    if z.ndim != 3:
        raise ShapeError(f"latents of a probe must be [batches, B, Z], got {tuple(z.shape)}")
    parameters = {name: p.detach() for name, p in generator.named_parameters() if p.requires_grad}
    noise = torch.zeros(len(z), device=z.device) if noise is None else noise

    def loss(values: dict[str, Tensor], some: Tensor, shift: Tensor) -> Tensor:
        return generator_loss(logits_of(critic, functional_call(generator, values, (some,)) + shift, FAKE), kind)

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, z, noise)
    return torch.cat([found[name].flatten(1) for name in parameters], dim=1)


@torch.no_grad()
def jacobian_norm(generator: nn.Module, z: Tensor, draw: torch.Generator, rounds: int = 20) -> float:
    """`M`, the root of the mean over latents `[N, Z]` of the squared spectral norm of `d g(z) / d theta`, by power
    iteration on `J J^T`."""
    parameters = {name: p.detach() for name, p in generator.named_parameters() if p.requires_grad}
    dims = generator(z[:1]).numel()
    start = torch.randn(len(z), dims, generator=draw).to(z)

    def largest(one: Tensor, v: Tensor) -> Tensor:
        def made(values: dict[str, Tensor]) -> Tensor:
            return functional_call(generator, values, (one[None],)).flatten()

        value = v.norm()
        for _ in range(rounds):
            back = vjp(made, parameters)[1](v / v.norm())[0]
            v = jvp(made, (parameters,), (back,))[1]
            value = v.norm()
        return value

    return float(vmap(largest)(z, start).mean().sqrt())


def distance_to_perfect(critic: nn.Module, fake: Tensor) -> float:
    """`eps` on samples `[B, ...]`, where D* and its gradient are 0: `max |D| + max || grad D ||`."""
    with torch.enable_grad():
        x = fake.detach().requires_grad_()
        value = torch.sigmoid(logits_of(critic, x, FAKE))
        (slope,) = torch.autograd.grad(value.sum(), x)
    return float(value.detach().max()) + float(slope.flatten(1).norm(dim=1).max())


class _Bench:
    """A frozen generator, data, and a discriminator under training."""

    def __init__(
        self, generator: nn.Module, prior: Draw, real: Draw, critic: nn.Module, sigma: float, draw: Any
    ) -> None:
        self.generator, self.critic, self.sigma, self.draw = generator, critic, sigma, draw
        self.prior, self.source = prior, real

    def noisy(self, x: Tensor) -> Tensor:
        return x + self.noise(x.shape).to(x) if self.sigma else x

    def noise(self, shape: Sequence[int]) -> Tensor:
        return self.sigma * torch.randn(*shape, generator=self.draw)

    @torch.no_grad()
    def pair(self, batch: int) -> tuple[Tensor, Tensor]:
        """Real and generated samples, each with noise of its own."""
        real = self.source(batch, self.draw)
        return self.noisy(real), self.noisy(self.generator(self.prior(batch, self.draw)))

    def logits(self, batch: int) -> tuple[Tensor, Tensor]:
        real, fake = self.pair(batch)
        return logits_of(self.critic, real, REAL), logits_of(self.critic, fake, FAKE)

    @torch.no_grad()
    def probe(self, probes: int, batch: int, m: float) -> dict[str, float]:
        """One row of the trace."""
        self.critic.eval()
        on_real, on_fake = self.logits(probes * batch)
        z = self.prior(probes * batch, self.draw)
        fake = self.generator(z)
        noise = self.noise(fake.shape).to(fake).unflatten(0, (probes, batch)) if self.sigma else None
        some = z.unflatten(0, (probes, batch))
        gradients = {k: generator_gradients(self.generator, self.critic, some, k, noise) for k in ("minimax", "ns")}
        norms = {k: float(g.norm(dim=1).clamp_min(1e-38).log().mean().exp()) for k, g in gradients.items()}
        bound = math.nan if self.sigma else vanishing_bound(distance_to_perfect(self.critic, fake), m)
        self.critic.train()
        return {
            "d_loss": float(discriminator_loss(on_real, on_fake)),
            "accuracy": float(discriminator_accuracy(on_real, on_fake)),
            "saturating": norms["minimax"],
            "bound": bound,
            "ns": norms["ns"],
            "ns_variance": float(gradients["ns"].var(0).sum()) if probes > 1 else math.nan,
        }


def diagnose(
    generator: nn.Module,
    prior: Draw,
    real: Tensor | Draw,
    critic: nn.Module,
    *,
    iterations: int = 4000,
    batch: int = 64,
    lr: float = 1e-3,
    beta1: float = 0.5,
    sigma: float = 0.0,
    probes: int = 10,
    latents: int = 8,
    draw: torch.Generator | None = None,
    each: Callable[[int], None] = lambda done: None,
) -> Trace:
    """Train `critic` (new, giving logits `[B, 1]`) for `iterations` against a frozen `generator` and write down the
    discriminator's loss and accuracy and the generator's gradients; see `Trace`.

    `prior(n, draw)` gives latents `[n, Z]`, `real` is a tensor of samples or a function like `prior`. `sigma` is the
    sd of fresh Gaussian noise on both sides, in every step and probe. A probe has `probes` batches, and M (theorem
    2.4) is estimated on `latents`. `each(done)` is called after every iteration. The generator is not changed.
    """
    if iterations < 1 or batch < 1 or probes < 1 or sigma < 0:
        raise ConfigError(f"iterations, batch, probes >= 1 and sigma >= 0: {iterations}, {batch}, {probes}, {sigma}")
    draw = draw or torch.Generator().manual_seed(0)
    source: Draw = _rows(real) if isinstance(real, Tensor) else real
    modes = {module: module.training for module in generator.modules()}
    generator.eval()
    try:
        bench = _Bench(generator, prior, source, critic, sigma, draw)
        m = math.nan if sigma else jacobian_norm(generator, prior(latents, draw), draw)
        optimiser = torch.optim.Adam(critic.parameters(), lr=lr, betas=(beta1, 0.999))
        trace, due = Trace(), set(marks(iterations))
        critic.train()
        for done in range(1, iterations + 1):
            loss = discriminator_loss(*bench.logits(batch))
            optimiser.zero_grad(set_to_none=True)
            loss.backward(inputs=list(critic.parameters()))
            optimiser.step()
            if done in due:
                trace.note(done, bench.probe(probes, batch, m))
            each(done)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return trace


def _rows(real: Tensor) -> Draw:
    return lambda count, draw: real[torch.randint(len(real), (count,), generator=draw)]


def figure(traces: dict[str, Trace]) -> Figure:
    """The paper's three figures, one line per trace: loss and accuracy of D, saturating gradient, NS gradient."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11.0, 3.4), layout="constrained")
    left, middle, right = drawn.subplots(1, 3)
    for number, (name, trace) in enumerate(traces.items()):
        colour = f"C{number}"
        left.plot(
            trace.iterations, [max(v, 1e-7) for v in trace.columns["d_loss"]], color=colour, label=f"{name}: loss"
        )
        left.plot(
            trace.iterations, [1 - v + 1e-4 for v in trace.columns["accuracy"]], ":", color=colour, label="wrong share"
        )
        middle.plot(trace.iterations, trace.columns["saturating"], color=colour, label=name)
        middle.plot(trace.iterations, trace.columns["bound"], "--", color=colour, linewidth=0.8, label="theorem 2.4")
        right.plot(trace.iterations, trace.columns["ns"], color=colour, label=f"{name}: norm")
        right.plot(trace.iterations, trace.columns["ns_variance"], ":", color=colour, label="variance")
    for axes, title in (
        (left, "fresh discriminator"),
        (middle, "saturating gradient"),
        (right, "non-saturating gradient"),
    ):
        axes.set(title=title, yscale="log", xlabel="iterations of D")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    return drawn
