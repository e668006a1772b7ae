"""Adding Gradient Noise Improves Learning for Very Deep Networks.

Arvind Neelakantan, Luke Vilnis, Quoc V. Le, Ilya Sutskever, Lukasz Kaiser, Karol Kurach, James Martens. 2015. arXiv 1511.06807.

Gaussian noise whose variance decays with training is added to every gradient, in front of any optimiser. With it a very
deep plain network leaves initialisations at which its gradient is (almost) zero, and trains.

Claim: a network of 20 layers, all weights zero, trains with gradient noise and does not train without.

    g_t <- g_t + N(0, sigma_t^2 I)          sigma_t^2 = eta / (1 + t)^gamma          t = 0, 1, ... optimiser steps

`eta` scales the variance, not the standard deviation. Noise comes after clipping (so that it is not shrunk) and before the
optimiser's own moments.

Differs from the paper:
- the study trains on scikit-learn's 8x8 digits in place of MNIST, so with batch 50, 4,000 steps and eta 0.05
- memory networks, Neural Programmer, Neural RAM and Neural GPU are not part of it: apply the method to them by `--with`

Shapes: B batch, P pixels, P total parameters in a flat noise buffer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from cambrian.data import digits, images
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe
from cambrian.engine.roles import Measurement, Progress, Study, TrainingMethod, study, training_method
from cambrian.engine.samples import Curves, Gallery
from cambrian.errors import CapabilityError, ConfigError
from cambrian.nn.flat import Layout, axpy_
from cambrian.nn.wrapped import WrappedOptimiser

ORDERS = ("clip-then-noise", "noise-then-clip")
INITS = ("zero", "gaussian", "he", "random-walk")


def noise_std(t: int, eta: float, gamma: float = 0.55) -> float:
    """sigma_t, the standard deviation at optimiser step t = 0, 1, ..."""
    return math.sqrt(eta / (1.0 + t) ** gamma)


class Scratch:
    """A noise vector and its views in the shapes of some gradients, kept from step to step."""

    def __init__(self, grads: Sequence[Tensor], where: torch.device) -> None:
        self.shapes = [g.shape for g in grads]
        self.layout = Layout.of(grads)
        self.vector = self.layout.empty()
        self.views = self.layout.views(self.vector)
        self.drawn = self.vector if where == self.vector.device else torch.empty_like(self.vector, device=where)

    def draw(self, generator: torch.Generator | None) -> list[Tensor]:
        """Fresh standard-normal noise."""
        self.drawn.normal_(generator=generator)
        if self.drawn is not self.vector:
            self.vector.copy_(self.drawn)
        return self.views


Scratches = dict[tuple[torch.device, torch.dtype], Scratch]


def add_gradient_noise_(
    params: Iterable[Tensor],
    t: int,
    eta: float,
    gamma: float = 0.55,
    generator: torch.Generator | None = None,
    *,
    scratch: Scratches | None = None,
) -> float:
    """Add noise of step `t` to every `.grad` in place; returns sigma_t. `eta` = 0 touches nothing and draws nothing.

    One draw serves all parameters of a device and dtype, so the noise is a function of the generator and the sizes alone;
    it is drawn on the generator's device. A `scratch` dict that the caller keeps saves making views at every step.
    Raises `CapabilityError` for sparse gradients.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for p in params:
        grad = p.grad
        if grad is not None:
            if grad.layout != torch.strided:
                raise CapabilityError("gradient noise needs dense gradients; build the embedding with sparse=False")
            groups.setdefault((grad.device, grad.dtype), []).append(grad)
    sigma = noise_std(t, eta, gamma)
    kept = {} if scratch is None else scratch
    for key, grads in groups.items() if eta else ():
        if key not in kept or kept[key].shapes != [g.shape for g in grads]:
            kept[key] = Scratch(grads, generator.device if generator is not None else key[0])
        axpy_(grads, kept[key].draw(generator), sigma)
    return sigma


class GradientNoise(WrappedOptimiser):
    """Any optimiser, fed with noisy gradients.

    `clip_norm` clips inside, in the given `order`; leave it None where the training loop clips before `step`. Without a
    `generator` one is made from torch's current initial seed, equal on every process of a data-parallel job (which keeps
    replicas equal). With mixed precision unscale the gradients before `step`. Raises `ConfigError` for bad values.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        eta: float = 0.01,
        gamma: float = 0.55,
        generator: torch.Generator | None = None,
        *,
        order: str = "clip-then-noise",
        clip_norm: float | None = None,
    ) -> None:
        if not (0 <= eta < math.inf and 0 <= gamma < math.inf):
            raise ConfigError(f"eta and gamma must be finite and at least 0, not eta={eta}, gamma={gamma}")
        if order not in ORDERS or (clip_norm is not None and not clip_norm > 0):
            raise ConfigError(f"order is one of {', '.join(ORDERS)} and clip_norm positive, not {order!r}, {clip_norm}")
        super().__init__(optimizer)
        self.eta, self.gamma, self.order, self.clip_norm, self.t = eta, gamma, order, clip_norm, 0
        self.scratch: Scratches = {}
        self.generator = generator or torch.Generator().manual_seed(torch.initial_seed())

    def before(self, loss: float | Tensor | None) -> None:
        """Clip and add noise, in the chosen order."""
        params = [p for group in self.param_groups for p in group["params"]]
        if self.clip_norm is not None and self.order == "clip-then-noise":
            nn.utils.clip_grad_norm_(params, self.clip_norm)
        add_gradient_noise_(params, self.t, self.eta, self.gamma, self.generator, scratch=self.scratch)
        if self.clip_norm is not None and self.order == "noise-then-clip":
            nn.utils.clip_grad_norm_(params, self.clip_norm)
        self.t += 1

    def own_state(self) -> dict[str, Any]:
        """The step and the generator."""
        return {"t": self.t, "generator": self.generator.get_state()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Restore the step and the generator."""
        self.t = int(state["t"])
        self.generator.set_state(state["generator"].cpu())


@config
class Options:
    """Options of `--with gradient-noise`."""

    eta: float = option(0.01, "variance of the noise at the first step", low=0.0)
    gamma: float = option(0.55, "decay exponent of the variance; 0 is constant noise", low=0.0)
    clip_norm: float | None = option(
        None, "clip the global gradient norm in here, besides the recipe's own clipping", low=1e-12
    )
    order: str = option("clip-then-noise", "whether that clipping comes before the noise", choices=ORDERS)


@training_method("gradient-noise")
class GradientNoiseMethod(TrainingMethod[Options]):
    """Wraps every optimiser of a recipe, each with noise of its own; the state is in the optimisers' checkpoints."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.seed, self.made = 0, 0

    def attach(self, recipe: Recipe[Any]) -> None:
        """Take the run's seed, which all processes share."""
        self.seed = recipe.seed

    def optimiser(self, factory: Callable[..., Any], params: list[Any], settings: dict[str, Any]) -> Any:
        """The recipe's optimiser inside `GradientNoise`."""
        self.made += 1
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.made)
        o = self.options
        base = factory(params, **settings)
        return GradientNoise(base, o.eta, o.gamma, generator, order=o.order, clip_norm=o.clip_norm)


# -- the study: a deep network from a bad start -----------------------------------------------------------------------


@config
class Config:
    """One training of the deep network."""

    steps: int = option(4000, "optimiser steps", low=1)
    batch: int = option(50, "samples per step", low=1, high=digits.TRAIN)
    layers: int = option(20, "hidden layers", low=1)
    width: int = option(50, "units of a hidden layer", low=1)
    init: str = option("zero", "initial weights (biases are zero)", choices=INITS)
    std: float = option(0.1, "standard deviation of init=gaussian", low=0.0)
    lr: float = option(0.1, "learning rate of plain SGD", low=0.0)
    clip: float = option(10.0, "clip the global gradient norm at this", low=0.0)
    eta: float = option(0.05, "variance of the noise at the first step; 0 is the baseline", low=0.0)
    gamma: float = option(0.55, "decay exponent of the variance", low=0.0)
    schedule: str = option(
        "annealed", "constant: the same accumulated variance, not annealed", choices=("annealed", "constant")
    )


class DeepMLP(nn.Module):
    """The paper's 20 x 50 ReLU network (section 4.1): `layers` hidden layers, a linear output, biases zero.

    Its parameters are one vector [P], so that clipping, noise and update are one operation each. `random-walk` is the
    initialisation of Sussillo & Abbott (2014, arXiv 1412.6558) for ReLU.
    """

    def __init__(
        self, *, inputs: int, classes: int, layers: int, width: int, init: str, std: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        widths = [inputs] + [width] * layers + [classes]
        parts: list[Tensor] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            he = math.sqrt(2.0 / fan_in)
            walk = he * math.exp(1.2 / (max(fan_in, 6) - 2.4))
            scale = {"zero": 0.0, "gaussian": std, "he": he, "random-walk": walk}[init]
            parts += [scale * torch.randn(fan_in, fan_out, generator=generator), torch.zeros(fan_out)]
        self.layout = Layout.of(parts)
        self.vector = nn.Parameter(self.layout.pack(parts))

    def weights(self) -> list[Tensor]:
        """The weight matrices [in, out], as views."""
        return self.layout.views(self.vector)[::2]

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of inputs [B, inputs]."""
        parts = self.layout.views(self.vector)
        for weight, bias in zip(parts[:-2:2], parts[1:-2:2], strict=True):
            x = torch.addmm(bias, x, weight).relu_()
        return torch.addmm(parts[-1], x, parts[-2])


def equal_variance_eta(eta: float, gamma: float, steps: int) -> float:
    """The constant variance whose sum over `steps` equals that of the annealed schedule."""
    return eta * sum((1.0 + t) ** -gamma for t in range(steps)) / steps


@study("gradient-noise")
class GradientNoiseStudy(Study[Config]):
    """Trains the deep network with and without noise from each initialisation."""

    presets = {
        "smoke": Config(steps=600, layers=3, eta=0.1),
        "laptop": Config(),
        "paper": Config(steps=100_000, eta=0.01),
    }

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        """Train on digits; metrics `accuracy` (test) and `loss` (of the last tenth of training)."""
        c = self.config
        trace = _train(c, seed, lambda done: progress(done, c.steps))
        at, tail = trace["at"], trace["losses"][-max(1, len(trace["losses"]) // 10) :]
        layers = {
            f"layer {i}": (at, [row[i] for row in trace["stds"]]) for i in range(0, c.layers + 1, max(1, c.layers // 4))
        }
        sigma = [noise_std(t, c.eta, c.gamma if c.schedule == "annealed" else 0.0) for t in at]
        picture = Gallery(
            {
                "training loss": Curves({"loss": (at, trace["losses"])}, y="cross-entropy"),
                "noise": Curves({"sigma": (at, sigma)}, y="standard deviation of the noise"),
                "weights": Curves(layers, y="standard deviation of the weights"),
            }
        )
        return Measurement({"accuracy": trace["accuracy"], "loss": sum(tail) / len(tail)}, picture)


def _train(c: Config, seed: int, report: Callable[[int], None]) -> dict[str, Any]:
    data = digits.load(seed)
    train, test = data.train[torch.arange(digits.TRAIN)], data.test[torch.arange(digits.TEST)]  # type: ignore[index]
    x, y = images.unit(train["image"]).flatten(1), train["label"]
    model = DeepMLP(
        inputs=x.shape[1], classes=10, layers=c.layers, width=c.width, init=c.init, std=c.std, seed=seed * 31 + 4
    )
    order = torch.Generator().manual_seed(seed * 31 + 5)
    eta, gamma = c.eta, c.gamma
    if c.schedule == "constant":
        eta, gamma = equal_variance_eta(eta, gamma, c.steps), 0.0
    noise = torch.Generator().manual_seed(seed * 31 + 6)
    optim = GradientNoise(torch.optim.SGD([model.vector], lr=c.lr), eta, gamma, noise, clip_norm=c.clip)
    trace: dict[str, Any] = {"at": [], "losses": [], "stds": []}
    every, smooth = max(1, c.steps // 100), 0.0
    for step in range(c.steps):
        index = torch.randint(len(x), (c.batch,), generator=order)
        loss = F.cross_entropy(model(x[index]), y[index])
        optim.zero_grad()
        loss.backward()
        optim.step()
        smooth += loss.item() / every
        if step % every == every - 1:
            trace["at"].append(step + 1)
            trace["losses"].append(smooth)
            trace["stds"].append([float(w.detach().std()) for w in model.weights()])
            smooth = 0.0
            report(step + 1)
    with torch.no_grad():
        answer = model(images.unit(test["image"]).flatten(1)).argmax(1)
    trace["accuracy"] = float((answer == test["label"]).float().mean())
    return trace


def _claims() -> Sequence[Claim]:
    off = Arm({"eta": 0.0})
    seeds = (0, 1, 2, 3)
    shared = {"seeds": seeds, "sabotage": off, "direction": "higher"}
    zero = Claim(
        name="zero-init",
        statement="A 20-layer network that starts from zero weights trains with gradient noise, and not without.",
        metric="accuracy",
        margin=0.40,
        paper="MNIST, zero init, clip 10: best 11.4 -> 94.5 %, average 10.1 -> 49.7 %",
        arms={"noise": Arm(), "plain": off},
        system="noise",
        baselines=("plain",),
        **shared,
    )
    gaussian = Claim(
        name="gaussian-init",
        statement="The same from a Gaussian start that is too small (standard deviation 0.1).",
        metric="accuracy",
        margin=0.40,
        paper="MNIST, simple init, no clip: best 89.9 -> 96.7 %, average 43.1 -> 52.7 %",
        arms={"noise": Arm({"init": "gaussian"}), "plain": Arm({"init": "gaussian", "eta": 0.0})},
        system="noise",
        baselines=("plain",),
        **{**shared, "sabotage": Arm({"init": "gaussian", "eta": 0.0})},
    )
    annealed = Claim(
        name="annealed",
        statement="Annealed noise beats constant noise of equal accumulated variance.",
        metric="accuracy",
        margin=0.0,
        paper="section 3: fixed noise was worse (no figure)",
        arms={"annealed": Arm(), "constant": Arm({"schedule": "constant"})},
        system="annealed",
        baselines=("constant",),
        **shared,
    )
    return zero, gaussian, annealed


GradientNoiseStudy.claims = tuple(_claims())
