"""Improving Stochastic Gradient Descent with Feedback.

Jayanth Koushik, Hiroaki Hayashi. ICLR 2017 submission, arXiv 1611.01505 v1; with Graham Neubig: "Eve: A Gradient Based Optimization Method with Locally and Globally Adaptive Learning Rates", v3.

Adam whose learning rate is divided by a running measure of how much the loss changes from step to step: when the loss is
stuck the step grows, when it jumps the step shrinks. The same feedback works in front of any optimiser.

Claim: each at its best learning rate of a grid, Eve reaches a lower final training loss than Adam.

    theta <- theta - (alpha / d_t) mhat_t / (sqrt(vhat_t) + eps)          d_1 = 1,   d_t = beta3 d_{t-1} + (1 - beta3) r_t

    v3:  r_t = clip(|f_t - f_{t-1}| / (min(f_t, f_{t-1}) - f_star), 1/c, c)
    v1:  q = f_t / fhat_{t-1};  q <- clip(q, k+1, K+1) if q >= 1 else clip(q, 1/(K+1), 1/(k+1));  fhat_t = q fhat_{t-1}
         r_t = |fhat_t - fhat_{t-1}| / min(fhat_t, fhat_{t-1})

`f_t` is the loss whose gradient step t uses, so v1 counts from f_1 where its paper counts from f_0. `d` is one scalar per
optimiser. `f_star` is a lower bound of the loss: losses that can be negative need it set.

Differs from the paper:
- v1 divides f - f_star, which is the paper's f for its f_star = 0
- the study trains an MLP on scikit-learn's digits, and a character LSTM on Python source, in place of CIFAR, bAbI and PTB

Shapes: B batch, T characters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from cambrian.data import digits, images
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.roles import Measurement, Progress, Study, TrainingMethod, study, training_method
from cambrian.engine.samples import Curves, Gallery, Table
from cambrian.errors import CapabilityError, ConfigError, NonFiniteError
from cambrian.nn.wrapped import WrappedOptimiser

Number = TypeVar("Number", float, Tensor)
VARIANTS = ("v3", "v1")


def _clip(x: Number, low: float, high: float) -> Number:
    return x.clamp(low, high) if isinstance(x, Tensor) else min(max(x, low), high)


def _least(a: Number, b: Number) -> Number:
    return torch.minimum(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else min(a, b)  # type: ignore[type-var]


class Feedback:
    """The scalar d_t of one optimiser, from the losses in order; floats, or 0-d tensors that stay on their device.

    `d` is the current divisor, `previous` the last loss (v3) or smoothed loss (v1), above `f_star`; `t` counts losses.
    """

    def __init__(
        self,
        *,
        beta3: float = 0.999,
        c: float = 10.0,
        f_star: float = 0.0,
        variant: str = "v3",
        k: float = 0.1,
        K: float = 10.0,
    ) -> None:
        if not (0 <= beta3 < 1 and 1 <= c < math.inf and 0 < k < K and math.isfinite(f_star)):
            raise ConfigError(
                f"need 0 <= beta3 < 1 <= c, 0 < k < K and a finite f_star, not beta3={beta3}, c={c}, k={k}, K={K}, f_star={f_star}"
            )
        if variant not in VARIANTS:
            raise ConfigError(f"variant must be one of {', '.join(VARIANTS)}, not {variant!r}")
        self.beta3, self.c, self.f_star, self.variant, self.k, self.K = beta3, c, f_star, variant, k, K
        self.d: float | Tensor = 1.0
        self.previous: float | Tensor | None = None
        self.invalid: Tensor | None = None
        self.t = 0

    def update(self, loss: float | Tensor) -> float | Tensor:
        """d_t after seeing f_t = `loss`. Raises `ConfigError` at a loss that is not above f_star.

        For a tensor on an accelerator that check would stop the device's queue; `check` makes it, every 100 steps.
        """
        f = loss - self.f_star
        if isinstance(f, Tensor):
            bad = ~((f > 0) & f.isfinite())
            self.invalid = bad if self.invalid is None else self.invalid | bad
            if self.t % 100 == 0:
                self.check()
        elif not math.isfinite(f):
            raise NonFiniteError(f"the loss became {loss}; lower the learning rate")
        elif f <= 0:
            raise ConfigError(_not_above(float(loss), self.f_star))
        self.t += 1
        if self.previous is None:
            self.previous = f
            return self.d
        change = self._change(f)
        self.d = self.d + (1 - self.beta3) * (change - self.d)  # exactly 1 while every change is 1
        return self.d

    def _change(self, f: Any) -> Any:
        last: Any = self.previous
        if self.variant == "v3":
            self.previous = f
            return _clip(abs(f - last) / _least(f, last), 1 / self.c, self.c)
        q = f / last
        up, down = _clip(q, self.k + 1, self.K + 1), _clip(q, 1 / (self.K + 1), 1 / (self.k + 1))
        q = torch.where(q >= 1, up, down) if isinstance(q, Tensor) else up if q >= 1 else down
        self.previous = q * last
        return abs(self.previous - last) / _least(self.previous, last)

    def check(self) -> None:
        """Raise `ConfigError` if a loss given as a tensor was not above f_star."""
        if self.invalid is not None and bool(self.invalid):
            raise ConfigError(_not_above(None, self.f_star))

    def state_dict(self) -> dict[str, Any]:
        """d, previous and t, as plain numbers."""
        self.check()
        previous = None if self.previous is None else float(self.previous)
        return {"d": float(self.d), "previous": previous, "t": self.t}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.d, self.t = float(state["d"]), int(state["t"])
        self.previous = None if state["previous"] is None else float(state["previous"])


def _not_above(loss: float | None, f_star: float) -> str:
    seen = "a loss" if loss is None else f"the loss {loss:g}"
    return (
        f"{seen} is not above f_star = {f_star:g}; set f_star to a lower bound that this loss never reaches, "
        "as in --with eve:f_star=-100"
    )


class LossFeedback(WrappedOptimiser):
    """Any optimiser with its learning rates divided by d_t: Eve-prop around RMSprop, and so on.

    `step(loss=...)` takes the mean loss of the whole step, also under gradient accumulation; in a data-parallel job the mean
    over processes is taken here. `step(closure)` works too. Learning rates in `param_groups` stay the undivided ones.
    With `on_device` (default: where the loss lies on an accelerator) d_t is computed there, and the wrapped optimiser must
    take its learning rate as a tensor. Keyword arguments as for `Feedback`.
    """

    def __init__(self, optimizer: Optimizer, *, on_device: bool | None = None, **feedback: Any) -> None:
        super().__init__(optimizer)
        if any("lr" not in group for group in self.param_groups):
            raise ConfigError(f"{type(optimizer).__name__} has no learning rate to divide by the feedback")
        self.feedback = Feedback(**feedback)
        self.on_device = on_device
        self._rates: list[Any] = []

    @property
    def takes_loss(self) -> bool:
        """Always: `step` needs `loss=` or a closure."""
        return True

    def before(self, loss: float | Tensor | None) -> None:
        """Divide the learning rates."""
        if loss is None:
            raise CapabilityError(
                f"{type(self).__name__} needs the loss of every step: step(loss=...) or step(closure)"
            )
        d = self.feedback.update(self._read(loss))
        self._rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] / d

    def after(self) -> None:
        """Put the undivided learning rates back."""
        for group, rate in zip(self.param_groups, self._rates, strict=True):
            group["lr"] = rate

    def _read(self, loss: float | Tensor) -> float | Tensor:
        keep = isinstance(loss, Tensor) and (
            self.on_device if self.on_device is not None else loss.device.type != "cpu"
        )
        value: Any = torch.as_tensor(loss).detach().reshape(()).double()
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            value = value.clone()
            distributed.all_reduce(value)
            value = value / distributed.get_world_size()
        return value if keep else float(value)

    def own_state(self) -> dict[str, Any]:
        """The feedback's."""
        return self.feedback.state_dict()

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Restore the feedback."""
        self.feedback.load_state_dict(state)


class Eve(LossFeedback):
    """Adam with loss feedback; `betas` are (beta1, beta2, beta3). Further keywords (`eps`, `weight_decay`, `fused` ...) go to Adam."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.999),
        c: float = 10.0,
        f_star: float = 0.0,
        variant: str = "v3",
        *,
        on_device: bool | None = None,
        **adam: Any,
    ) -> None:
        if len(betas) != 3:
            raise ConfigError(f"Eve takes three betas, not {betas}")
        super().__init__(
            Adam(params, lr=lr, betas=betas[:2], **adam),
            on_device=on_device,
            beta3=betas[2],
            c=c,
            f_star=f_star,
            variant=variant,
        )
        if "capturable" not in adam and all(p.device.type == "cuda" for g in self.param_groups for p in g["params"]):
            for group in self.param_groups:  # lets the learning rate be a tensor, so that no step waits for the device
                group["capturable"] = True


@config
class Options:
    """Options of `--with eve`."""

    c: float = option(10.0, "the relative change of the loss is clipped to [1/c, c]", low=1.0)
    f_star: float = option(0.0, "a lower bound that the loss never reaches; set it where losses can be negative")
    beta3: float = option(0.999, "how slowly d follows the loss changes", low=0.0, high=0.999999)
    variant: str = option("v3", "form of the feedback, by version of the paper", choices=VARIANTS)


@training_method("eve")
class EveMethod(TrainingMethod[Options]):
    """Eve in place of Adam, at the recipe's own learning rate and betas; loss feedback around any other optimiser."""

    def optimiser(self, factory: Callable[..., Any], params: list[Any], settings: dict[str, Any]) -> Any:
        """The recipe's optimiser with feedback; d_t and the last loss are in its checkpoint."""
        o = self.options
        if factory is Adam:
            rest = {k: v for k, v in settings.items() if k != "betas"}
            betas = (*settings.get("betas", (0.9, 0.999)), o.beta3)
            return Eve(params, betas=betas, c=o.c, f_star=o.f_star, variant=o.variant, **rest)
        base = factory(params, **settings)
        return LossFeedback(base, beta3=o.beta3, c=o.c, f_star=o.f_star, variant=o.variant)


# -- the study: Eve against Adam, and against Adam with the same step sizes but no feedback -----------------------------

CONTESTANTS = ("eve", "adam", "scaled", "replay")
WORKLOADS = ("digits", "characters")
CHARACTERS = {"workload": "characters", "steps": 400, "batch": 16, "hidden": 64, "rates": (1e-3, 3e-3, 1e-2, 3e-2)}
LOW_RATES = (
    1e-4,
    3e-4,
    1e-3,
    3e-3,
)  # "equal learning rates" are compared up to here, below the rates at which both are at their best


@config
class Config:
    """A grid of trainings of one optimiser on one workload."""

    steps: int = option(1500, "optimiser steps of each training", low=1)
    batch: int = option(128, "samples per step", low=1)
    rates: tuple[float, ...] = option((1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "grid of learning rates", low=0.0)
    workload: str = option("digits", "an MLP on digits, or an LSTM on characters of Python source", choices=WORKLOADS)
    hidden: int = option(128, "units of a hidden layer", low=1)
    length: int = option(32, "characters in a sequence", low=2)
    optimiser: str = option(
        "eve",
        "scaled: Adam at lr / (Eve's last d); replay: Adam at lr / (the d_t that Eve had on another seed)",
        choices=CONTESTANTS,
    )
    c: float = option(10.0, "clipping of the relative change of the loss; 1 switches the feedback off", low=1.0)
    variant: str = option("v3", "form of the feedback", choices=VARIANTS)


class Characters(nn.Module):
    """Next-character model: embedding, one LSTM layer, softmax."""

    def __init__(self, *, symbols: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 16)
        self.lstm = nn.LSTM(16, hidden, batch_first=True)
        self.out = nn.Linear(hidden, symbols)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B*T, symbols] of characters [B, T]."""
        return self.out(self.lstm(self.embed(x))[0]).flatten(0, 1)


def source_text() -> Tensor:
    """Python source of a few long-lived standard-library modules, as character codes 0..127."""
    import argparse
    import heapq
    import textwrap

    text = "".join(Path(m.__file__).read_text(encoding="utf-8") for m in (argparse, textwrap, heapq))
    return torch.tensor(list(text.encode("ascii", "ignore")))


class Workload:
    """A network, its batches, and the loss over the whole training set."""

    def __init__(self, c: Config, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            h = c.hidden
            if c.workload == "digits":
                train = digits.load(seed).train
                assert train is not None
                batch = train[torch.arange(digits.TRAIN)]
                self.x, self.y = images.unit(batch["image"]).flatten(1), batch["label"]
                sizes = (self.x.shape[1], h, h, h)
                layers = [part for i in range(3) for part in (nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU())]
                self.model: nn.Module = nn.Sequential(*layers, nn.Linear(h, 10))
            else:
                windows = source_text().unfold(0, c.length + 1, c.length)
                self.x, self.y = windows[:, :-1], windows[:, 1:]
                self.model = Characters(symbols=128, hidden=h)
        self.order = torch.Generator().manual_seed(seed * 31 + 7)
        self.batch = c.batch

    def loss(self) -> Tensor:
        """The loss of the next random minibatch."""
        index = torch.randint(len(self.x), (self.batch,), generator=self.order)
        return F.cross_entropy(self.model(self.x[index]), self.y[index].flatten())

    def full_loss(self) -> float:
        """The loss over the training set."""
        with torch.no_grad():
            parts = [F.cross_entropy(self.model(x), y.flatten(), reduction="sum")
                     for x, y in zip(self.x.split(1024), self.y.split(1024), strict=True)]  # fmt: skip
        return float(sum(parts)) / self.y.numel()


def train(
    c: Config, seed: int, lr: float, divisors: Sequence[float] | None = None
) -> tuple[float, list[float], list[float]]:
    """Train once: the final full-train loss, d_t and the minibatch losses. With `divisors` Adam runs at lr / divisors[t]."""
    work = Workload(c, seed)
    eve = None if divisors is not None else Eve(work.model.parameters(), lr, c=c.c, variant=c.variant, fused=True)
    optim: Any = eve or Adam(work.model.parameters(), lr, fused=True)
    ds: list[float] = []
    losses: list[float] = []
    for step in range(c.steps):
        loss = work.loss()
        optim.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if eve is not None:
            eve.step(loss=losses[-1])
            ds.append(float(eve.feedback.d))
        else:
            assert divisors is not None
            optim.param_groups[0]["lr"] = lr / divisors[step]
            optim.step()
            ds.append(divisors[step])
    return work.full_loss(), ds, losses


def contest(c: Config, seed: int, lr: float) -> tuple[float, list[float], list[float]]:
    """Train the chosen contestant at `lr`; the controls first run Eve to learn their divisors."""
    if c.optimiser == "eve":
        return train(c, seed, lr)
    if c.optimiser == "adam":
        return train(c, seed, lr, [1.0] * c.steps)
    if c.optimiser == "scaled":
        return train(c, seed, lr, train(c, seed, lr)[1][-1:] * c.steps)
    return train(c, seed, lr, train(c, seed + 1000, lr)[1])


@study("eve")
class EveStudy(Study[Config]):
    """Trains one contestant over the grid of learning rates."""

    presets = {
        "smoke": Config(steps=150, rates=(1e-3, 3e-3)),
        "laptop": Config(),
        "paper": Config(steps=20_000, hidden=512),
    }

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        """Metrics: `best_loss` and `best_rate` over the grid, `low_rate_loss` (geometric mean up to 3e-3), `final_d`."""
        c = self.config
        found: dict[float, tuple[float, list[float], list[float]]] = {}
        for k, lr in enumerate(c.rates):
            found[lr] = contest(c, seed, lr)
            progress(k + 1, len(c.rates))
        best = min(found, key=lambda lr: found[lr][0])
        low = [math.log(max(run[0], 1e-30)) for lr, run in found.items() if lr <= max(LOW_RATES)]
        metrics = {"best_loss": found[best][0], "best_rate": best, "final_d": found[best][1][-1]}
        if low:
            metrics["low_rate_loss"] = math.exp(sum(low) / len(low))
        at = range(c.steps)
        picture = Gallery(
            {
                "final loss": Table(
                    ("learning rate", "full-train loss", "last d"),
                    [(lr, run[0], run[1][-1]) for lr, run in found.items()],
                ),
                "d": Curves({f"lr {lr:g}": (at, run[1]) for lr, run in found.items()}, y="d"),
                "effective rate": Curves(
                    {f"lr {lr:g}": (at, [lr / d for d in run[1]]) for lr, run in found.items()}, y="lr / d"
                ),
                "loss": Curves({f"lr {lr:g}": _smooth(run[2]) for lr, run in found.items()}, y="minibatch loss"),
            }
        )
        return Measurement(metrics, picture)

    claims = (
        Claim(
            name="best-of-grid",
            statement="Each at its best learning rate of a grid, Eve ends at a lower full-train loss than Adam.",
            metric="best_loss",
            direction="lower",
            margin=0.9,
            compare="ratio",
            paper="figures 2-4: lowest training loss among six optimisers on CIFAR-10/100, bAbI and PTB (curves only)",
            arms={"eve": Arm(), "adam": Arm({"optimiser": "adam"})},
            system="eve",
            baselines=("adam",),
            sabotage=Arm({"c": 1.0}),
        ),
        Claim(
            name="equal-rate",
            statement="At equal learning rates up to 3e-3, Eve ends lower than Adam (geometric mean over the grid).",
            metric="low_rate_loss",
            direction="lower",
            margin=0.85,
            compare="ratio",
            paper="faster convergence than Adam at equal learning rates (curves only)",
            arms={"eve": Arm(), "adam": Arm({"optimiser": "adam"})},
            system="eve",
            baselines=("adam",),
            sabotage=Arm({"c": 1.0}),
        ),
        Claim(
            name="feedback",
            statement="The gain at equal rates is the feedback's: Adam at Eve's last step size, or with another seed's d_t, ends higher.",
            metric="low_rate_loss",
            direction="lower",
            margin=0.85,
            compare="ratio",
            paper="section 3: the gain is ascribed to feedback from the loss (no such control in the paper)",
            arms={
                "eve": Arm(),
                "scaled": Arm({"optimiser": "scaled", "rates": LOW_RATES}),
                "replay": Arm({"optimiser": "replay", "rates": LOW_RATES}),
            },
            system="eve",
            baselines=("scaled", "replay"),
            sabotage=Arm({"c": 1.0}),
        ),
        Claim(
            name="characters",
            statement="Best of the grid again, for an LSTM on characters of Python source.",
            metric="best_loss",
            direction="lower",
            margin=0.9,
            compare="ratio",
            paper="figure 4: character model on PTB (curves only)",
            arms={"eve": Arm(CHARACTERS), "adam": Arm({**CHARACTERS, "optimiser": "adam"})},
            system="eve",
            baselines=("adam",),
            sabotage=Arm({**CHARACTERS, "c": 1.0}),
        ),
    )


def _smooth(values: Sequence[float], width: int = 25) -> tuple[list[float], list[float]]:
    blocks = [values[i : i + width] for i in range(0, len(values), width)]
    return [float(min((i + 1) * width, len(values))) for i in range(len(blocks))], [sum(b) / len(b) for b in blocks]
