"""The two roles: a study that diagnoses trained generators, and noise-annealed training for every adversarial recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cambrian.data.source import resolve
from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.loop import Loop, fit
from cambrian.engine.recipe import Recipe, Scalars
from cambrian.engine.roles import Measurement, Progress, Study, TrainingMethod, study, training_method
from cambrian.engine.samples import Gallery, Plot
from cambrian.engine.targets import trained
from cambrian.errors import CapabilityError
from cambrian.systems.gans.principled_gan._anneal import SCHEDULES, NoiseAnneal
from cambrian.systems.gans.principled_gan._diagnosis import Trace, diagnose, figure
from cambrian.systems.gans.principled_gan._plain import PlainConfig, PlainRecipe
from cambrian.systems.gans.principled_gan._theory import perfect_discriminator

HELD = 2000  # real samples that a fresh discriminator is shown
CLOUD = 200  # points of each side whose distance is measured


class Replay(nn.Module):
    """The data as a generator: `g(z) = (1 + a) z + b`, reshaped, with `a = b = 0`, where z are rows of the data."""

    def __init__(self, *, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, size = shape, math.prod(shape)
        self.stretch, self.shift = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(size))

    def forward(self, z: Tensor) -> Tensor:
        return (z * (1 + self.stretch) + self.shift).unflatten(1, self.shape)


def critics_of(recipe: Recipe[Any]) -> list[nn.Module]:
    """The discriminators of an adversarial recipe; `CapabilityError` for others."""
    found: list[nn.Module] = recipe.critics() if hasattr(recipe, "critics") else []  # type: ignore[attr-defined]
    if not found:
        raise CapabilityError(f"principled-gan acts on discriminators, and {recipe.slug} has none")
    return found


def generator_of(recipe: Any) -> nn.Module:
    """The net that maps latents to samples."""
    holder = getattr(recipe, "model", None) or getattr(recipe, "gan", recipe)
    return cast(nn.Module, holder.generator)


def examine(recipe: Any, *, replay: bool = False, seed: int = 0, **settings: Any) -> Trace:
    """`diagnose` a trained adversarial recipe (`cambrian.load(RUN).recipe()`), with a discriminator like its own but
    new; `replay` puts the data in the generator's place. `settings` go to `diagnose`."""
    critics_of(recipe)
    draw, real = torch.Generator().manual_seed(seed), _real(recipe)
    # a second recipe of the same configuration: its discriminator is initialised as any run's is
    twin = type(recipe)(recipe.config, data=recipe.data, seed=seed + 7919)
    critic = critics_of(twin)[0].to(recipe.device)
    generator, prior = generator_of(recipe), recipe.latent
    if replay:
        rows = real.flatten(1)
        generator = Replay(shape=tuple(real.shape[1:])).to(real)

        def prior(count: int, draw: torch.Generator) -> Tensor:
            return rows[torch.randint(len(rows), (count,), generator=draw)]

    with torch.random.fork_rng(devices=[]):  # dropout inside the critic is as reproducible as the rest
        torch.manual_seed(seed)
        return diagnose(generator, prior, real, critic, draw=draw, **settings)


def _real(recipe: Any, limit: int = HELD) -> Tensor:
    """Training samples `[N, ...]` in the nets' range."""
    train = recipe.data.split("train")
    batch = train[torch.arange(min(limit, len(train)))]
    return recipe.real({name: tensor.to(recipe.device) for name, tensor in batch.items()})


# -- the study ----------------------------------------------------------------------------------------------------------


@config
class Config:
    """Whose generator is examined, when, and by what discriminator."""

    target: str = option(
        "plain", "who trains the generator: the study's own small nets, or an adversarial system by name"
    )
    data: str | None = option(None, "what it trains on; None is the system's own default")
    arch: str = option("mlp", "nets, where the target is gan", choices=("mlp", "maxout", "dcgan"))
    hidden: tuple[int, ...] = option((256, 256), "widths of the discriminator (plain, gan)", low=1)
    hidden_g: tuple[int, ...] = option((256, 256), "widths of the generator (plain, gan)", low=1)
    base: int = option(32, "convolutional width of gan's nets", low=1)
    stops: tuple[int, ...] = option((200, 2000), "updates after which the generator is examined", low=1)
    iterations: int = option(1500, "iterations of the fresh discriminator", low=1)
    first: int = option(50, "iteration from which the fall of the gradient is counted", low=1)
    batch: int = option(128, "samples of each source", low=2)
    lr: float = option(1e-3, "Adam step size of the fresh discriminator", low=0.0)
    lr_target: float = option(5e-4, "Adam step size of the target's training (plain, gan)", low=0.0)
    sigma: float = option(
        0.0, "sd of the noise on both sides while the fresh discriminator trains, in the nets' units", low=0.0
    )
    fake: str = option("trained", "what is examined: the trained generator, or the data in its place", choices=("trained", "data"))  # fmt: skip
    probes: int = option(10, "batches of a probe", low=2)


CLAIM = Claim(
    name="vanishing",
    statement="Between iterations 50 and 1,500 of a fresh discriminator the saturating generator gradient falls at least "
    "10 times as far as with noise on both sides whose sigma is 0.3 of the range of a pixel, and at least 30-fold for "
    "either generator.",
    metric="fall",
    direction="higher",
    margin=10.0,
    compare="ratio",
    paper="figure 2: norms drop by up to 5 orders of magnitude within 4,000 iterations (DCGAN of 1, 10 and 25 epochs)",
    arms={"plain": Arm(), "noisy": Arm({"sigma": 0.6})},
    system="plain",
    baselines=("noisy",),
    sabotage=Arm({"fake": "data"}),
    conditions=(Condition("plain", "least_fall", ">=", 30.0),),
)


@study("principled-gan")
class PrincipledGANStudy(Study[Config]):
    """Trains a target for a few and for many updates, and a fresh discriminator against each generator."""

    presets = {
        "smoke": Config(stops=(40,), iterations=60, first=10, hidden=(64,), hidden_g=(64,)),
        "laptop": Config(),
        "paper": Config(
            target="gan",
            data="glyphs",
            arch="dcgan",
            base=64,
            lr=2e-4,
            lr_target=2e-4,
            stops=(125, 1250, 3125),
            iterations=4000,
        ),
    }
    claims = (CLAIM,)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        """Metrics over the stops: `fall`, the geometric mean of how far the saturating gradient fell from iteration
        `first` to the last, `least_fall`, the same in log means of the stop that fell least, `ns_growth`,
        `accuracy_400`, the last `accuracy`, `within_bound` (share of probes below theorem 2.4's bound; 1 with noise)
        and `gap`, the least distance of 200 samples and 200 data points."""
        c = self.config
        traces: dict[str, Trace] = {}
        gaps: list[float] = []
        for number, (stop, recipe) in enumerate(self.targets(seed)):
            gaps.append(_gap(recipe, seed))
            traces[f"generator at {stop}"] = examine(
                recipe,
                replay=c.fake == "data",
                seed=seed * 31 + number,
                iterations=c.iterations,
                batch=c.batch,
                lr=c.lr,
                sigma=c.sigma,
                probes=c.probes,
                each=lambda done, n=number: progress(n * c.iterations + done, len(c.stops) * c.iterations),
            )
        metrics = {**summary(list(traces.values()), c.first), "gap": min(gaps)}
        shown = {"figures": Plot(figure(traces)), **{name: trace.table() for name, trace in traces.items()}}
        return Measurement(metrics, Gallery(shown))

    def targets(self, seed: int) -> Iterator[tuple[int, Any]]:
        """The generator's recipe at every stop."""
        c = self.config
        if c.target == "plain":
            settings = PlainConfig(
                steps=max(c.stops), batch=c.batch, hidden=c.hidden, hidden_g=c.hidden_g, lr=c.lr_target
            )
            data = PlainRecipe.load_data(settings, resolve(c.data, "digits"))
            loop = Loop(PlainRecipe(settings, data=data, seed=seed))
            for stop in sorted(c.stops):
                fit(loop, stop)
                yield stop, loop.recipe
            return
        own: dict[str, Any] = {}
        if c.target == "gan":
            own = {"labels_per_class": 0, "loss": "ns", "noise_in": 0.0, "noise": 0.0, "lr": c.lr_target}
            own |= {"arch": c.arch, "hidden": c.hidden, "hidden_g": c.hidden_g, "base": c.base}
        for stop in sorted(c.stops):
            yield stop, trained(c.target, overrides={**own, "steps": stop}, seed=seed, data=c.data)


def _gap(recipe: Any, seed: int) -> float:
    """Least distance between generated and real points: above 0, a smooth perfect discriminator of both exists."""
    with torch.no_grad():
        made = generator_of(recipe)(recipe.latent(CLOUD, torch.Generator().manual_seed(seed)))
    return perfect_discriminator(_real(recipe, CLOUD).flatten(1), made.flatten(1)).gap


def summary(traces: list[Trace], first: int) -> dict[str, float]:
    """The study's figures from the traces of its generators."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def change(trace: Trace, name: str) -> float:
        return trace.columns[name][-1] / trace.at(name, first)

    falls = [-math.log(change(trace, "saturating")) for trace in traces]
    within = [s <= b or math.isnan(b) for t in traces for s, b in zip(t.columns["saturating"], t.columns["bound"])]
    return {
        "fall": math.exp(mean(falls)),
        "least_fall": math.exp(min(falls)),
        "ns_growth": math.exp(mean([math.log(change(trace, "ns")) for trace in traces])),
        "ns_variance_growth": math.exp(mean([math.log(change(trace, "ns_variance")) for trace in traces])),
        "accuracy_400": mean([trace.at("accuracy", 400) for trace in traces]),
        "accuracy": mean([trace.columns["accuracy"][-1] for trace in traces]),
        "within_bound": mean([float(w) for w in within]),
    }


# -- the training method --------------------------------------------------------------------------------------------------


@config
class Options:
    """Options of `--with principled-gan`."""

    sigma: float = option(0.3, "sd of the noise at the first step, in units of the nets' samples", low=0.0)
    schedule: str = option("linear", "how it goes to 0", choices=SCHEDULES)
    until: float = option(0.9, "share of the steps after which there is no noise", low=0.01, high=1.0)
    target: float = option(0.85, "target-acc: accuracy of the discriminator to hold", low=0.51, high=0.99)
    rate: float = option(0.02, "target-acc: relative change of sigma a step", low=0.0)


@training_method("principled-gan")
class NoiseAnnealMethod(TrainingMethod[Options]):
    """Fresh noise on what every discriminator of a recipe sees while training, less and less of it."""

    noise: NoiseAnneal

    def built(self, recipe: Recipe[Any]) -> None:
        """Attach to the recipe's critics. Raises `CapabilityError` for recipes without any."""
        o, nets = self.options, critics_of(recipe)
        self.noise = NoiseAnneal(
            sigma=o.sigma,
            schedule=o.schedule,
            steps=recipe.config.steps,
            until=o.until,
            target=o.target,
            rate=o.rate,
            seed=recipe.seed * 1_000_033 + 17,
        )
        for net in nets:
            self.noise.attach(net)

    def after_step(self, recipe: Recipe[Any], scalars: Scalars) -> None:
        """Advance the schedule, by the accuracy that the recipe logged where the schedule asks for it."""
        accuracy = scalars.get("d_accuracy")
        if self.options.schedule == "target-acc" and accuracy is None and not self.noise.t:
            raise CapabilityError(f"target-acc follows d_accuracy, which {recipe.slug} does not log; use linear")
        self.noise.advance(None if accuracy is None else float(accuracy))

    def state_dict(self) -> dict[str, Any]:
        """Sigma's state and the noise generator's."""
        return self.noise.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.noise.load_state_dict(state)
